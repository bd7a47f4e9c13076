use tokio::io::AsyncReadExt as _;

use super::*;
use crate::domain::code::Code;
use crate::pop3::{Error, Question, Scope};

async fn greet(said: &'static [u8]) -> Result<Client<DuplexStream>, Error> {
    let (near, server) = server([("", said)]);
    drop(server.await.unwrap());
    Client::greet(near, deadlines()).await
}

#[tokio::test]
async fn greetings_are_understood() {
    let plain = greet(b"+OK\r\n").await.unwrap();
    assert_eq!(plain.greeting().challenge, None);
    let bare = greet(b"+OK hello\n").await.unwrap();
    assert_eq!(&*bare.greeting().text, "hello");
    let apop = greet(b"+OK ready <1.2@host>\r\n").await.unwrap();
    assert_eq!(apop.greeting().challenge.as_deref(), Some(&b"<1.2@host>"[..]));
    let fake = greet(b"+OK ready <1 2@host>\r\n").await.unwrap();
    assert_eq!(fake.greeting().challenge, None);
}

#[tokio::test]
async fn what_is_no_greeting_is_an_error() {
    // quirks: "`+OK` without text; `+ERR`; a reply without CRLF; EOF anywhere."
    for (said, code, scope) in [
        (&b""[..], Code::HostUnreachable, Scope::Host),
        (b"+OK no end", Code::HostUnreachable, Scope::Host),
        (b"+OK no end\r", Code::HostUnreachable, Scope::Host),
        (b"+ERR busy\r\n", Code::ServerBusy, Scope::Host),
        (b"-ERR too many connections\r\n", Code::ServerBusy, Scope::Host),
        (b"-ERR [IN-USE] locked\r\n", Code::MailboxLocked, Scope::Account),
        (b"220 smtp.example ESMTP\r\n", Code::ProtocolError, Scope::Account),
        (b"\x16\x03\x01\x02\x00\n", Code::ProtocolError, Scope::Account),
    ] {
        let error = greet(said).await.unwrap_err();
        assert_eq!((error.code(), error.scope()), (code, scope), "{said:?}: {error}");
    }
}

#[tokio::test]
async fn an_endless_greeting_is_cut_off() {
    // quirks: "An endless line, header, UIDL list, CAPA or EHLO answer: bounded memory and a deadline."
    let (near, far) = duplex(1024);
    let server = tokio::spawn(async move {
        let mut far = far;
        while far.write_all(&[b'x'; 512]).await.is_ok() {}
    });
    let error = Client::greet(near, deadlines()).await.unwrap_err();
    assert_eq!(error.code(), Code::ProtocolError);
    assert!(error.to_string().len() < 400);
    server.await.unwrap();
}

#[tokio::test]
async fn a_server_without_capa_has_unknown_capabilities() {
    // quirks: "CAPA answered `-ERR`, or the connection dropped on CAPA; CAPA differs before TLS"
    // quirks: "Servers without CAPA at all (popa3d, solid-pop3d)"
    let (mut client, _server) = client([("CAPA", &b"-ERR unknown command\r\n"[..])]).await;
    let capabilities = client.capabilities().await.unwrap();
    assert!(!capabilities.known);
}

#[tokio::test]
async fn a_server_that_hangs_up_on_capa_is_told_apart() {
    // quirks: "CAPA answered `-ERR`, or the connection dropped on CAPA; CAPA differs before TLS"
    let (mut client, server) = client([("CAPA", &b""[..])]).await;
    let (answer, ()) = tokio::join!(client.capabilities(), async { drop(server.await.unwrap()) });
    let error = answer.unwrap_err();
    assert!(error.is_dropped_on_capa());
}

#[tokio::test]
async fn capabilities_differ_before_and_after_the_login() {
    // quirks: "CAPA differs before TLS, after TLS, after login: ask again after each."
    let (mut client, _server) = client([
        ("CAPA", &b"+OK\r\nUSER\r\nSTLS\r\n.\r\n"[..]),
        ("CAPA", b"+OK list\r\nUIDL\r\nPIPELINING\r\n.\r\n"),
    ])
    .await;
    let before = client.capabilities().await.unwrap().clone();
    assert!(before.user && before.stls && !before.uidl);
    let after = client.capabilities().await.unwrap();
    assert!(after.uidl && after.pipelining && !after.stls);
}

#[tokio::test]
async fn endless_capabilities_are_cut_off() {
    // quirks: "An endless line, header, UIDL list, CAPA or EHLO answer: bounded memory and a deadline."
    let (near, far) = duplex(1024);
    let server = tokio::spawn(async move {
        let mut far = far;
        far.write_all(b"+OK\r\n+OK\r\n").await.unwrap();
        while far.write_all(b"X-MORE\r\n").await.is_ok() {}
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    client.io.input.clear();
    let error = client.capabilities().await.unwrap_err();
    assert_eq!(error.code(), Code::ProtocolError);
    drop(client);
    server.await.unwrap();
}

#[tokio::test]
async fn stls_gives_the_stream_back() {
    let (client, server) = client([("STLS", &b"+OK begin\r\n"[..]), ("HELLO", b"")]).await;
    let mut stream = client.start_tls().await.unwrap();
    stream.write_all(b"HELLO\r\n").await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn octets_behind_the_reply_to_stls_fail_the_session() {
    // quirks: "STLS: any byte after the `+OK` line before the handshake fails the session."
    for said in [&b"+OK begin\r\n+OK injected\r\n"[..], b"+OK begin\r\n\0", b"+OK\n-"] {
        let (client, _server) = client([("STLS", said)]).await;
        assert_eq!(client.start_tls().await.unwrap_err().code(), Code::TlsFailed);
    }
}

#[tokio::test]
async fn a_refused_stls_ends_the_session() {
    // quirks: "STLS stripped, refused or stalled while TLS is required aborts"
    let (client, server) = client([("STLS", &b"-ERR unknown\r\n"[..])]).await;
    let error = client.start_tls().await.unwrap_err();
    assert_eq!(error.code(), Code::TlsFailed);
    let mut rest = Vec::new();
    server.await.unwrap().read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "something was sent behind a refused STLS");
}

#[tokio::test]
async fn utf8_is_said_where_it_is_announced() {
    // quirks: "Courier replaces a message with raw UTF-8 headers by a notice"
    let (mut one, _server) =
        client([("CAPA", &b"+OK\r\nUTF8 USER\r\n.\r\n"[..]), ("UTF8", b"+OK\r\n")]).await;
    assert!(!one.utf8().await.unwrap());
    assert!(one.capabilities().await.unwrap().utf8_user);
    assert!(one.utf8().await.unwrap());
}

#[tokio::test]
async fn an_unsolicited_reply_is_noticed() {
    // quirks: "An unsolicited extra reply between two messages: out of step"
    let (mut client, server) = client([("STAT", &b"+OK 1 10\r\n+OK surprise\r\n"[..])]).await;
    client.stat().await.unwrap();
    let _far = server.await.unwrap();
    assert!(client.unsolicited());
    assert!(matches!(client.stat().await, Err(Error::OutOfStep(_))));
}

#[tokio::test(start_paused = true)]
async fn quiet_tells_whether_anything_comes() {
    let (mut client, server) = client([]).await;
    assert!(client.quiet(Duration::from_millis(200)).await.unwrap());
    let mut far = server.await.unwrap();
    far.write_all(b"+").await.unwrap();
    assert!(!client.quiet(Duration::from_millis(200)).await.unwrap());
    assert!(!client.quiet(Duration::from_millis(200)).await.unwrap());
}

#[tokio::test]
async fn questions_go_ahead_where_pipelining_is_announced() {
    let (mut client, server) = client([
        ("CAPA", &b"+OK\r\nPIPELINING\r\n.\r\n"[..]),
        ("CAPA", b""),
        ("STAT", b""),
        ("UIDL", b""),
        ("LIST", b"+OK\r\nUIDL\r\nPIPELINING\r\n.\r\n+OK 1 30\r\n+OK\r\n1 a\r\n.\r\n+OK\r\n1 30\r\n.\r\n"),
    ])
    .await;
    client.ahead(&[Question::Stat]);
    assert!(client.capabilities().await.unwrap().pipelining);
    client.ahead(&[Question::Capabilities, Question::Stat, Question::Uidl, Question::List]);
    assert!(client.capabilities().await.unwrap().uidl);
    assert_eq!(client.stat().await.unwrap().messages, 1);
    assert_eq!(client.uidl(|_, _| {}).await.unwrap().lines, 1);
    assert_eq!(client.list(|_, _| {}).await.unwrap().lines, 1);
    assert!(!client.unsolicited());
    server.await.unwrap();
}

#[tokio::test]
async fn sessions_may_move_between_threads() {
    fn is_send<T: Send>(_: T) {}
    let (mut client, _server) = client([]).await;
    let mut seen = 0;
    is_send(client.event());
    is_send(client.uidl(|_, _| seen += 1));
    is_send(client.capabilities());
    is_send(client.quiet(Duration::ZERO));
    is_send(client.start_tls());
}
