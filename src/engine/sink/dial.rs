//! How a connection to a mail server comes about, up to the point where mail
//! may be sent.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::domain::code::Code;
use crate::domain::work::{Endpoint, MailHost, SecretRef, Timeouts, TlsMode};
use crate::smtp;
use crate::smtp::client::{Client, Credentials, Protocol};
use crate::smtp::extension::Extensions;
use crate::smtp::wire::Wire;

/// Why no mail can be sent over a connection, or none can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// For status and metrics.
    pub code: Code,
    /// For people; one line.
    pub message: Arc<str>,
}

impl Trouble {
    /// Trouble with `host`.
    pub(super) fn new(code: Code, host: &MailHost, what: impl std::fmt::Display) -> Self {
        Self { code, message: format!("destination {}: {what}", host.endpoint).into() }
    }
}

/// Makes connections: the network, or a test's pipes.
pub trait Dial: Send + Sync + 'static {
    /// What is connected.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Connects, without TLS.
    fn connect(
        &self,
        host: &MailHost,
        within: Duration,
    ) -> impl Future<Output = Result<Self::Stream, Trouble>> + Send;

    /// Makes the TLS handshake, at once or behind STARTTLS.
    fn secure(
        &self,
        stream: Self::Stream,
        host: &MailHost,
        within: Duration,
    ) -> impl Future<Output = Result<Self::Stream, Trouble>> + Send;

    /// Fetches a password.
    fn secret(
        &self,
        at: &SecretRef,
    ) -> impl Future<Output = Result<zeroize::Zeroizing<Vec<u8>>, Trouble>> + Send;

    /// This host's name, for EHLO where the destination sets none.
    fn host_name(&self) -> Arc<str>;
}

/// Whether octets to `endpoint` stay on this machine.
fn is_local(endpoint: &Endpoint) -> bool {
    match endpoint {
        Endpoint::Unix(_) => true,
        Endpoint::Tcp(host, _) => {
            host.eq_ignore_ascii_case("localhost")
                || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
        }
    }
}

/// Whether an opportunistic connection asks for a certificate that fits.
fn is_verified(host: &MailHost) -> bool {
    host.tls.ca.is_some() || !host.tls.pins.is_empty() || host.tls.server_name.is_some()
}

/// Connects, greets, secures and logs in.
///
/// # Errors
/// A [`Trouble`] that names the destination and says what to do.
pub(super) async fn establish<D: Dial>(
    dial: &D,
    host: &MailHost,
    protocol: Protocol,
    timeouts: &Timeouts,
) -> Result<(Wire<D::Stream>, Extensions), Trouble> {
    let try_tls = host.tls.mode != TlsMode::None;
    match attempt(dial, host, protocol, timeouts, try_tls).await {
        // Opportunistic: a server whose TLS does not work gets the mail in
        // clear text, as it would if it announced none, unless somebody asked
        // for a certificate or a password is to be kept from those who break
        // TLS for it.
        Err(Setback { trouble, injected: false })
            if trouble.code == Code::TlsFailed
                && host.tls.mode == TlsMode::Opportunistic
                && !is_verified(host)
                && host.auth.is_none() =>
        {
            tracing::info!(message = %trouble.message, "TLS does not work: going on without it");
            attempt(dial, host, protocol, timeouts, false).await.map_err(|setback| setback.trouble)
        }
        Err(setback) => Err(advise(setback, host)),
        Ok(ready) => Ok(ready),
    }
}

/// Why a connection did not come about.
struct Setback {
    trouble: Trouble,
    /// Octets stood behind the reply to STARTTLS: somebody is in the way, and
    /// clear text is what they are after.
    injected: bool,
}

impl From<Trouble> for Setback {
    fn from(trouble: Trouble) -> Self {
        Self { trouble, injected: false }
    }
}

/// Says what to do where opportunistic TLS might have been expected to go on
/// in clear text.
fn advise(Setback { trouble, injected }: Setback, host: &MailHost) -> Trouble {
    let refrained =
        host.tls.mode == TlsMode::Opportunistic && !is_verified(host) && (injected || host.auth.is_some());
    if trouble.code != Code::TlsFailed || !refrained {
        return trouble;
    }
    let advice = if host.auth.is_none() {
        "nothing is sent in clear text after that: repair TLS there; tls: {mode: StartTls} always wants it, \
         and tls: {mode: None} accepts clear text"
    } else if is_local(&host.endpoint) {
        "with auth nothing is sent in clear text after that: repair TLS there (tls: {mode: StartTls} always \
         wants it), or write tls: {mode: None} to accept clear text on this machine"
    } else {
        "with auth nothing is sent in clear text after that: repair TLS there and write tls: {mode: StartTls}; \
         clear text is accepted by tls: {mode: None} without auth"
    };
    Trouble { code: trouble.code, message: format!("{}; {advice}", trouble.message).into() }
}

async fn attempt<D: Dial>(
    dial: &D,
    host: &MailHost,
    protocol: Protocol,
    timeouts: &Timeouts,
    try_tls: bool,
) -> Result<(Wire<D::Stream>, Extensions), Setback> {
    let trouble = |error: smtp::Error| Trouble::new(code_of(&error), host, error);
    let name = host.ehlo_name.clone().unwrap_or_else(|| dial.host_name());
    let begun = Instant::now();
    let mut stream = dial.connect(host, timeouts.connect).await?;
    if host.tls.mode == TlsMode::Implicit {
        let left = timeouts.connect.saturating_sub(begun.elapsed());
        stream = dial.secure(stream, host, left).await?;
    }
    let mut secured = host.tls.mode == TlsMode::Implicit;
    let mut client = Client::greet(stream, protocol, timeouts.reply).await.map_err(trouble)?;
    let mut extensions = client.hello(&name).await.map_err(trouble)?;

    if try_tls && !secured {
        let required = host.tls.mode == TlsMode::StartTls || is_verified(host);
        if extensions.start_tls {
            match client.start_tls().await {
                Ok(stream) => {
                    let stream = dial.secure(stream, host, timeouts.connect).await?;
                    secured = true;
                    client = Client::after_tls(stream, protocol, timeouts.reply);
                    extensions = client.hello(&name).await.map_err(trouble)?;
                }
                Err((smtp::Error::Refused { .. }, Some(back))) if !required && host.auth.is_none() => {
                    client = back;
                }
                Err((error, _)) => {
                    let injected = matches!(error, smtp::Error::Injected);
                    return Err(Setback { trouble: Trouble::new(Code::TlsFailed, host, error), injected });
                }
            }
        } else if required {
            return Err(Trouble::new(
                Code::TlsFailed,
                host,
                "TLS is required, and the server does not announce STARTTLS",
            )
            .into());
        }
    }

    if let Some((user, secret)) = &host.auth {
        if !secured && !is_local(&host.endpoint) {
            return Err(Trouble::new(
                Code::DestinationRefused,
                host,
                "the password is not sent in clear text: set tls.mode of this delivery to StartTls or Implicit",
            )
            .into());
        }
        let password = dial.secret(secret).await?;
        let credentials = Credentials { user: user.to_string(), password };
        client.authenticate(&credentials).await.map_err(|error| match error {
            smtp::Error::Credentials => Trouble::new(
                Code::SecretInvalid,
                host,
                format_args!("{error} (Secret {}/{}, key {})", secret.namespace, secret.name, secret.key),
            ),
            smtp::Error::NoMechanism => Trouble::new(Code::DestinationRefused, host, error),
            error => trouble(error),
        })?;
    }
    let (wire, _) = client.into_wire();
    Ok((wire, extensions))
}

fn code_of(error: &smtp::Error) -> Code {
    match error {
        smtp::Error::Refused { reply, .. } if reply.is_permanent() => Code::DestinationRefused,
        _ => Code::DestinationUnavailable,
    }
}
