use tokio::io::AsyncReadExt as _;

use super::*;
use crate::domain::code::Code;
use crate::pop3::{BodyEnd, Command, Error, Event};

const PIPELINING: Step = ("CAPA", b"+OK\r\nPIPELINING\r\n.\r\n");

/// What was retrieved.
#[derive(Debug, Default, PartialEq, Eq)]
struct Message {
    number: u32,
    wire: Vec<u8>,
    end: Option<BodyEnd>,
}

/// Events until nothing is in flight: messages, and replies as text.
async fn collect(client: &mut Client<DuplexStream>) -> Result<(Vec<Message>, Vec<String>), Error> {
    let (mut messages, mut replies) = (Vec::new(), Vec::new());
    while client.in_flight() > 0 || !client.ready.is_empty() {
        match client.event().await? {
            Event::Begin { number } => messages.push(Message { number, ..Message::default() }),
            Event::Data(piece) => messages.last_mut().unwrap().wire.extend_from_slice(&piece.bytes),
            Event::End(end) => messages.last_mut().unwrap().end = Some(end),
            Event::Reply { command, reply } => replies.push(format!("{command}: {reply}")),
        }
    }
    Ok((messages, replies))
}

#[tokio::test]
async fn messages_come_in_the_order_of_the_commands() {
    let (mut client, server) = client([
        PIPELINING,
        ("RETR 1", b""),
        ("RETR 2", b""),
        ("DELE 1", b"+OK 6 octets\r\n..a\r\nb\r\n.\r\n-ERR gone\r\n+OK deleted\r\n"),
        ("QUIT", b"+OK bye\r\n"),
    ])
    .await;
    client.capabilities().await.unwrap();
    client.send(Command::Retr(1));
    client.send(Command::Retr(2));
    client.send(Command::Dele(1));
    client.send(Command::Quit);
    assert_eq!(client.in_flight(), 4);
    let (messages, replies) = collect(&mut client).await.unwrap();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].wire, b"..a\r\nb\r\n");
    let end = messages[0].end.unwrap();
    assert!(end.number == 1 && end.tally.octets == 7 && end.tally.agrees_with(7));
    // quirks: "New mail between STAT and UIDL; message vanishes between UIDL and RETR"
    assert_eq!(replies, ["RETR 2: -ERR gone", "DELE 1: +OK deleted", "QUIT: +OK bye"]);
    server.await.unwrap();
}

#[tokio::test]
async fn without_pipelining_each_command_waits_for_its_answer() {
    let (near, far) = duplex(1024);
    let server = tokio::spawn(async move {
        let mut far = far;
        far.write_all(b"+OK\r\n").await.unwrap();
        for _ in 0..3 {
            let mut buffer = [0; 100];
            let len = far.read(&mut buffer).await.unwrap();
            assert_eq!(&buffer[..len], b"NOOP\r\n");
            far.write_all(b"+OK\r\n").await.unwrap();
        }
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    for _ in 0..3 {
        client.send(Command::Noop);
    }
    assert_eq!(collect(&mut client).await.unwrap().1.len(), 3);
    server.await.unwrap();
}

#[tokio::test]
async fn answers_may_be_cut_anywhere() {
    // quirks: "Un-stuff dots exactly once; chunk boundaries may fall between CR, LF and dot."
    let said = b"+OK\r\n..\r\n.x\r\nbare\n.\r\n\r\n.\r\n+OK\r\n.\r\n-ERR no\r\n+OK 3 20\r\n+OK\r\n";
    let mut first = None;
    for cut in 0..said.len() {
        let (near, mut far) = duplex(1024);
        far.write_all(b"+OK\r\n").await.unwrap();
        let mut client = Client::greet(near, deadlines()).await.unwrap();
        client.capabilities = Some(crate::pop3::Capabilities { pipelining: true, ..Default::default() });
        let commands =
            [Command::Retr(1), Command::Retr(2), Command::Retr(3), Command::ListOne(3), Command::Noop];
        for command in commands {
            client.send(command);
        }
        let feed = async {
            let mut heard = [0; 38];
            far.read_exact(&mut heard).await.unwrap();
            far.write_all(&said[..cut]).await.unwrap();
            for _ in 0..5 {
                tokio::task::yield_now().await;
            }
            far.write_all(&said[cut..]).await.unwrap();
        };
        let (found, ()) = tokio::join!(collect(&mut client), feed);
        let found = found.unwrap();
        assert_eq!(found.0[0].wire, b"..\r\n.x\r\nbare\r\n..\r\n\r\n");
        assert_eq!(found.0[1].wire, b"");
        assert_eq!(found.1, ["RETR 3: -ERR no", "LIST 3: +OK 3 20", "NOOP: +OK"]);
        if let Some(first) = &first {
            assert_eq!(&found, first, "cut at {cut}");
        }
        first = Some(found);
    }
}

#[tokio::test]
async fn a_body_that_looks_like_replies_stays_a_body() {
    // quirks: "End only on exact `CRLF . CRLF`. A body containing `\n.\r\n` followed by text that looks like `+OK …`"
    let (mut client, _server) = client([
        ("RETR 1", &b"+OK\r\nx\n.\r\n+OK 99 octets\r\nFrom: ceo\r\n\r\nfake\r\n.\r\n"[..]),
        ("NOOP", b"+OK\r\n"),
    ])
    .await;
    client.send(Command::Retr(1));
    client.send(Command::Noop);
    let (messages, replies) = collect(&mut client).await.unwrap();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].wire, b"x\r\n..\r\n+OK 99 octets\r\nFrom: ceo\r\n\r\nfake\r\n");
    assert_eq!(replies, ["NOOP: +OK"]);
}

#[tokio::test]
async fn an_unstuffed_dot_in_a_message_is_noticed() {
    // quirks: "Unstuffed `CRLF.CRLF` mid-body (broken server)"
    let (mut client, _server) = client([
        ("RETR 1", &b"+OK 30 octets\r\nfirst\r\n.\r\nsecond part of it\r\n.\r\n"[..]),
        ("NOOP", b"+OK\r\n"),
    ])
    .await;
    client.send(Command::Retr(1));
    client.send(Command::Noop);
    let mut end = None;
    let error = loop {
        match client.event().await {
            Ok(Event::End(found)) => end = Some(found),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(!end.unwrap().tally.agrees_with(30));
    assert_eq!(error.code(), Code::ProtocolError);
}

#[tokio::test]
async fn a_reply_to_nothing_ends_the_session() {
    // quirks: "An unsolicited extra reply between two messages: out of step"
    let (mut client, server) = client([("RETR 1", &b"+OK\r\na\r\n.\r\n+OK surprise\r\n"[..])]).await;
    client.send(Command::Retr(1));
    collect(&mut client).await.unwrap();
    let _far = server.await.unwrap();
    assert!(client.unsolicited());
    // A command sent now must not take it for its answer.
    client.send(Command::Retr(2));
    assert!(matches!(client.event().await, Err(Error::OutOfStep(_))));
}

#[tokio::test]
async fn garbage_in_the_place_of_an_answer_is_an_error() {
    // quirks: "DELE answered with garbage on some messages; QUIT answered `-ERR` or dropped"
    let (mut client, _server) = super::client([("DELE 1", &b"\x07\x08what\r\n"[..])]).await;
    client.send(Command::Dele(1));
    let answer = client.event().await.unwrap();
    assert!(matches!(answer, Event::Reply { ref reply, .. } if !reply.is_ok()), "the message is not deleted");
    let (mut client, _server) = super::client([("NOOP", &b"\x07\x08what\r\n"[..])]).await;
    client.send(Command::Noop);
    let error = client.event().await.unwrap_err();
    assert_eq!(error.code(), Code::ProtocolError);
    assert!(!error.to_string().contains('\x07'));
    let (mut client, server) = super::client([("QUIT", &b""[..])]).await;
    client.send(Command::Quit);
    let (outcome, ()) = tokio::join!(client.event(), async { drop(server.await.unwrap()) });
    assert!(matches!(outcome, Err(Error::Closed { during: "QUIT", .. })));
}

#[tokio::test]
async fn eof_in_a_message_ends_the_session_at_once() {
    // quirks: "EOF in the middle of a body ends that session at once."
    let body = b"+OK\r\nline\r\n..dot\r\n.\r\n";
    for cut in 0..body.len() {
        let (near, mut far) = duplex(1024);
        far.write_all(b"+OK\r\n").await.unwrap();
        let mut client = Client::greet(near, deadlines()).await.unwrap();
        client.send(Command::Retr(1));
        let feed = async {
            let mut heard = [0; 8];
            far.read_exact(&mut heard).await.unwrap();
            far.write_all(&body[..cut]).await.unwrap();
            drop(far);
        };
        let (found, ()) = tokio::join!(collect(&mut client), feed);
        assert!(matches!(found, Err(Error::Closed { during: "RETR", .. })), "cut at {cut}");
    }
}

#[tokio::test]
async fn both_sides_may_block_on_writing() {
    // quirks: "PIPELINING: bounded window, no deadlock when both sides block on writes."
    const MESSAGES: u32 = 2000;
    let (near, far) = duplex(64);
    let server = tokio::spawn(async move {
        let mut far = BufReader::new(far);
        far.get_mut().write_all(b"+OK\r\n").await.unwrap();
        let mut line = String::new();
        for number in 1..=MESSAGES {
            line.clear();
            far.read_line(&mut line).await.unwrap();
            assert_eq!(line, format!("RETR {number}\r\n"));
            far.get_mut().write_all(b"+OK\r\n").await.unwrap();
            far.get_mut().write_all(&[b'x'; 300]).await.unwrap();
            far.get_mut().write_all(b"\r\n.\r\n").await.unwrap();
        }
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    client.capabilities = Some(crate::pop3::Capabilities { pipelining: true, ..Default::default() });
    (1..=MESSAGES).for_each(|number| client.send(Command::Retr(number)));
    let (messages, _) = collect(&mut client).await.unwrap();
    assert_eq!(messages.len(), MESSAGES as usize);
    server.await.unwrap();
}

#[tokio::test]
async fn an_event_that_is_not_awaited_to_its_end_loses_nothing() {
    let (near, far) = duplex(16);
    let server = tokio::spawn(async move {
        let mut far = far;
        far.write_all(b"+OK\r\n").await.unwrap();
        let mut heard = [0; 8];
        far.read_exact(&mut heard).await.unwrap();
        for octet in b"+OK\r\nSubject: x\r\n\r\n..\r\nend\r\n.\r\n" {
            far.write_all(&[*octet]).await.unwrap();
            tokio::task::yield_now().await;
        }
        far
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    client.send(Command::Retr(1));
    let mut wire = Vec::new();
    loop {
        let event = tokio::select! {
            biased;
            event = client.event() => event.unwrap(),
            () = tokio::task::yield_now() => continue,
        };
        match event {
            Event::Data(piece) => wire.extend_from_slice(&piece.bytes),
            Event::End(_) => break,
            _ => {}
        }
    }
    assert_eq!(wire, b"Subject: x\r\n\r\n..\r\nend\r\n");
    server.await.unwrap();
}

#[tokio::test]
async fn an_idle_session_holds_little() {
    let (near, far) = duplex(1 << 20);
    let server = tokio::spawn(async move {
        let mut far = far;
        far.write_all(b"+OK\r\n").await.unwrap();
        let mut heard = [0; 8];
        far.read_exact(&mut heard).await.unwrap();
        far.write_all(b"+OK\r\n").await.unwrap();
        for _ in 0..64 {
            far.write_all(&b"sixteen octets\r\n".repeat(1024)).await.unwrap();
        }
        far.write_all(b".\r\n").await.unwrap();
        far
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    client.send(Command::Retr(1));
    let mut most = 0;
    loop {
        match client.event().await.unwrap() {
            Event::End(_) => break,
            _ => most = most.max(client.io.input.capacity()),
        }
    }
    assert!(most > 16 * 1024 && most <= 256 * 1024, "{most}");
    assert!(client.io.input.capacity() <= 8 * 1024);
    server.await.unwrap();
}
