//! A whole session with a server that says anything at all: no panic, no
//! endless loop, and messages that are in wire form.
#![no_main]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rpop::pop3::{Client, Command, Credentials, Deadlines, Error, Event, LoginPolicy, Question};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::Zeroizing;

fuzz_target!(|data: &[u8]| {
    let Some((first, said)) = data.split_first() else { return };
    let stream = Said { rest: said.to_vec(), chunk: usize::from(*first) + 1 };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    // An error is a fine end.
    let _end = runtime.block_on(session(stream));
});

async fn session(stream: Said) -> Result<(), Error> {
    let minute = Duration::from_secs(60);
    let mut client = Client::greet(stream, Deadlines::new(minute, minute)).await?;
    client.capabilities().await?;
    client.utf8().await?;
    let credentials = Credentials::password("u", Zeroizing::new(b"p".to_vec()));
    let policy = LoginPolicy { apop: true, ..LoginPolicy::ENCRYPTED };
    client.login(&credentials, &policy).await?;
    client.ahead(&[Question::Stat, Question::Uidl, Question::List]);
    let stat = client.stat().await?;
    let mut last = 0;
    client
        .uidl(|number, uid| {
            assert!(number > last && !uid.is_empty());
            assert!(number <= stat.messages || number == last + 1);
            last = number;
        })
        .await?;
    client.list(|number, _| assert!(number > 0)).await?;
    for command in [
        Command::Retr(1),
        Command::Retr(2),
        Command::Dele(1),
        Command::ListOne(2),
        Command::Retr(3),
        Command::Quit,
    ] {
        client.send(command);
    }
    let mut wire = Vec::new();
    while client.in_flight() > 0 {
        match client.event().await? {
            Event::Begin { .. } => wire.clear(),
            Event::Data(piece) => wire.extend_from_slice(&piece.bytes),
            Event::End(_) => {
                assert!(wire.is_empty() || wire.ends_with(b"\r\n"));
                assert!(!wire.starts_with(b".\r\n"));
                assert!(!wire.windows(4).any(|window| window == b"\n.\r\n"));
                let pairs = wire.windows(2).filter(|window| window == b"\r\n").count();
                let ends = wire.iter().filter(|octet| matches!(octet, b'\r' | b'\n')).count();
                assert_eq!(2 * pairs, ends);
            }
            Event::Reply { reply, .. } => {
                let shown = reply.to_string();
                assert!(!shown.chars().any(char::is_control) && shown.chars().count() < 210);
            }
        }
    }
    Ok(())
}

/// Says what it was given, in chunks, and then hangs up.
struct Said {
    rest: Vec<u8>,
    chunk: usize,
}

impl AsyncRead for Said {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.chunk.min(self.rest.len()).min(buf.remaining());
        buf.put_slice(&self.rest[..len]);
        self.rest.drain(..len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(buf.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
