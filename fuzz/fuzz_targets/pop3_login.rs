//! Logins by every mechanism at a server that says anything at all: they end,
//! and neither a log nor an error shows a password.
#![no_main]

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rpop::domain::work::AuthChoice;
use rpop::pop3::{ChannelBinding, Client, Credentials, Deadlines, Error, LoginPolicy};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::Zeroizing;

const CHOICES: [AuthChoice; 10] = [
    AuthChoice::Auto,
    AuthChoice::UserPass,
    AuthChoice::Plain,
    AuthChoice::Login,
    AuthChoice::CramMd5,
    AuthChoice::ScramSha256,
    AuthChoice::XOAuth2,
    AuthChoice::OAuthBearer,
    AuthChoice::Ntlm,
    AuthChoice::Msn,
];

fuzz_target!(|data: &[u8]| {
    let Some((first, said)) = data.split_first() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let outcome = runtime.block_on(login(*first, said.to_vec()));
    if let Err(error) = outcome {
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("open sesame"), "{shown}");
    }
});

async fn login(ways: u8, rest: Vec<u8>) -> Result<(), Error> {
    let choice = CHOICES[usize::from(ways) % CHOICES.len()];
    let flag = |bit: u8| ways / 10 & bit != 0;
    let minute = Duration::from_secs(60);
    let mut client = Client::greet(Said { rest }, Deadlines::new(minute, minute)).await?;
    if flag(1) {
        client.capabilities().await?;
    }
    let binding = ChannelBinding::Exporter([7; 32]);
    let encrypted = !flag(2);
    let policy = LoginPolicy {
        choice,
        apop: flag(4),
        encrypted,
        clear_text_allowed: !encrypted,
        host: if flag(8) { "pop3.msn.com" } else { "pop.example" },
        port: 995,
        binding: flag(16).then_some(&binding),
        end_point: None,
    };
    let token = matches!(choice, AuthChoice::XOAuth2 | AuthChoice::OAuthBearer);
    let credentials = if token {
        Credentials::bearer("u", Zeroizing::new("open-sesame".to_owned()))
    } else {
        Credentials::password("u", Zeroizing::new(b"open sesame".to_vec()))
    };
    client.login(&credentials, &policy).await.map(|_| ())
}

/// Says what it was given, line by line, so that nothing comes unasked, and
/// then hangs up.
struct Said {
    rest: Vec<u8>,
}

impl AsyncRead for Said {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let line = self.rest.iter().position(|octet| *octet == b'\n').map_or(self.rest.len(), |end| end + 1);
        let len = line.min(buf.remaining());
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
