use super::*;
use crate::domain::code::Code;
use crate::pop3::{Error, Listing, Stat};

type Uids = Vec<(u32, Vec<u8>)>;

async fn uidl(stat: &'static [u8], said: &'static [u8]) -> Result<(Uids, Listing), Error> {
    let (mut client, _server) = client([("STAT", stat), ("UIDL", said)]).await;
    client.stat().await?;
    let mut found = Vec::new();
    let listing = client.uidl(|number, uid| found.push((number, uid.to_vec()))).await?;
    Ok((found, listing))
}

fn uids(expected: &[(u32, &str)]) -> Uids {
    expected.iter().map(|(number, uid)| (*number, uid.as_bytes().to_vec())).collect()
}

#[tokio::test]
async fn stat_is_read() {
    for (said, stat) in [
        (&b"+OK 2 320\r\n"[..], Stat { messages: 2, octets: 320 }),
        (b"+OK 0 0\r\n", Stat::default()),
        (b"+OK 7\r\n", Stat { messages: 7, octets: 0 }),
        (b"+OK  3  x\r\n", Stat { messages: 3, octets: 0 }),
    ] {
        let (mut client, _server) = client([("STAT", said)]).await;
        assert_eq!(client.stat().await.unwrap(), stat);
    }
    for said in [&b"+OK\r\n"[..], b"+OK many 5\r\n", b"+OK 4294967296 5\r\n", b"+OK -1 5\r\n"] {
        let (mut client, _server) = client([("STAT", said)]).await;
        assert_eq!(client.stat().await.unwrap_err().code(), Code::ProtocolError);
    }
}

#[tokio::test]
async fn uids_are_taken_as_they_are() {
    // quirks: "UIDs of 71, 128, 1000, 20000 characters; spaces, 8-bit, `/`, three spaces between number and UID"
    let long = "u".repeat(20_000);
    let said = format!("+OK\r\n1 a\r\n2   b/c d\r\n3 {long}\r\n4 \u{fc}\r\n5 a\r\n.\r\n");
    let (found, listing) =
        uidl(b"+OK 5 1\r\n", Box::leak(said.into_bytes().into_boxed_slice())).await.unwrap();
    assert_eq!(found, uids(&[(1, "a"), (2, "b/c d"), (3, &long), (4, "\u{fc}"), (5, "a")]));
    assert_eq!(listing, Listing { lines: 5, void_lines: 0 });
}

#[tokio::test]
async fn a_uid_beyond_all_bounds_voids_its_line() {
    let long = "u".repeat(70_000);
    let said = format!("+OK\r\n1 a\r\n2 {long}\r\n3 c\r\n.\r\n");
    let (found, listing) =
        uidl(b"+OK 3 1\r\n", Box::leak(said.into_bytes().into_boxed_slice())).await.unwrap();
    assert_eq!(found, uids(&[(1, "a"), (3, "c")]));
    assert_eq!(listing.void_lines, 1);
}

#[tokio::test]
async fn impossible_numbers_void_their_line_and_not_the_listing() {
    // quirks: "Message number above the STAT count, message number 0, numbers out of order"
    let said = b"+OK\r\n0 zero\r\n1 a\r\n1 again\r\n3 c\r\n2 back\r\n4294967295 far\r\nx y\r\n\r\n99999999999999999999999 z\r\n.\r\n";
    let (found, listing) = uidl(b"+OK 3 1\r\n", said).await.unwrap();
    assert_eq!(found, uids(&[(1, "a"), (3, "c"), (2, "back")]));
    assert_eq!(listing.void_lines, 6);
}

#[tokio::test]
async fn mail_that_comes_between_stat_and_uidl_is_new() {
    // quirks: "New mail between STAT and UIDL; message vanishes between UIDL and RETR"
    let (found, listing) = uidl(b"+OK 1 1\r\n", b"+OK\r\n1 a\r\n2 b\r\n3 c\r\n7 g\r\n.\r\n").await.unwrap();
    assert_eq!(found, uids(&[(1, "a"), (2, "b"), (3, "c")]));
    assert_eq!(listing.void_lines, 1);
}

#[tokio::test]
async fn counts_that_disagree_are_no_error() {
    // quirks: "LIST size wrong or 0; RETR octets differ; LIST, UIDL and STAT counts disagree"
    let (mut client, _server) = client([
        ("STAT", &b"+OK 9 1\r\n"[..]),
        ("UIDL", b"+OK\r\n1 a\r\n2 b\r\n.\r\n"),
        ("LIST", b"+OK 9 messages\r\n1 120\r\n2 0\r\n3 200 octets\r\n4 x\r\n5\r\n.\r\n"),
    ])
    .await;
    client.stat().await.unwrap();
    assert_eq!(client.uidl(|_, _| {}).await.unwrap().lines, 2);
    let mut sizes = Vec::new();
    let listing = client.list(|number, size| sizes.push((number, size))).await.unwrap();
    assert_eq!(sizes, [(1, 120), (2, 0), (3, 200)]);
    assert_eq!(listing.void_lines, 2);
}

#[tokio::test]
async fn a_server_without_uidl_is_told_apart() {
    // quirks: "UIDL missing while `leave` is on: a clear error on the record"
    let error = uidl(b"+OK 1 1\r\n", b"-ERR unknown command\r\n").await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { command: "UIDL", .. }));
    assert_eq!(error.code(), Code::UidlMissing);
    let error = uidl(b"+OK 1 1\r\n", b"-ERR [SYS/TEMP] later\r\n").await.unwrap_err();
    assert_eq!(error.code(), Code::ServerBusy);
    let (found, _) = uidl(b"+OK 0 0\r\n", b"-ERR no messages\r\n").await.unwrap();
    assert!(found.is_empty());
}

#[tokio::test]
async fn an_endless_uidl_list_ends_in_bounded_memory() {
    // quirks: "An endless line, header, UIDL list, CAPA or EHLO answer: bounded memory and a deadline."
    let (near, far) = duplex(256 * 1024);
    let server = tokio::spawn(async move {
        let mut far = far;
        far.write_all(b"+OK\r\n").await.unwrap();
        let mut line = [0; 6];
        tokio::io::AsyncReadExt::read_exact(&mut far, &mut line).await.unwrap();
        far.write_all(b"+OK\r\n").await.unwrap();
        let lines = b"0\n".repeat(64 * 1024);
        while far.write_all(&lines).await.is_ok() {}
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    let error = client.uidl(|_, _| {}).await.unwrap_err();
    assert_eq!(error.code(), Code::ProtocolError);
    assert!(client.io.input.capacity() <= 512 * 1024);
    drop(client);
    server.await.unwrap();
}

#[tokio::test]
async fn eof_in_a_listing_is_a_lost_connection() {
    // quirks: "`+OK` without text; `+ERR`; a reply without CRLF; EOF anywhere."
    let (mut client, server) = client([("UIDL", &b"+OK\r\n1 a\r\n2 b"[..])]).await;
    let (outcome, far) = tokio::join!(client.uidl(|_, _| {}), async { drop(server.await.unwrap()) });
    let () = far;
    assert!(matches!(outcome, Err(Error::Closed { during: "UIDL", .. })));
}
