//! The one place where connections are made.

use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, InvalidMessage};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::address::{AddressPolicy, Refusal};
use super::dial::{self, DialError};
use super::error::{ConnectError, Error, TlsError};
use super::material::TlsMaterial;
use super::resolve;
use super::stream::{Kind, Stream};
use super::tls::Configs;
use super::verify::{Refused, is_ca_as_server};
use crate::domain::text::shown;
use crate::domain::work::{Settings, Source, TlsMode, TlsPolicy};

/// What holds for one TCP connection besides its host and port.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectOptions<'a> {
    /// Which addresses may be connected to; all where there is none.
    pub policy: Option<&'a AddressPolicy>,
    /// The local addresses to connect from.
    pub source: Option<Source>,
}

/// Makes connections. One a process, shared: it bounds the lookups and keeps
/// the TLS configurations whose sessions are resumed.
pub struct Connector {
    lookups: Arc<Semaphore>,
    configs: Configs,
}

impl Default for Connector {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector with nothing cached yet.
    pub fn new() -> Self {
        Self { lookups: Arc::new(Semaphore::new(resolve::LOOKUPS)), configs: Configs::new() }
    }

    /// The addresses of `host`, of either family, by the system's resolver.
    ///
    /// # Errors
    /// [`ConnectError::NotFound`] or [`ConnectError::TimedOut`].
    pub async fn lookup(&self, host: &str, deadline: Duration) -> Result<Vec<IpAddr>, ConnectError> {
        let found = timeout(deadline, resolve::resolve(&self.lookups, host, 0)).await;
        match found {
            Ok(Ok(list)) => Ok(list.iter().map(SocketAddr::ip).collect()),
            Ok(Err(error)) => Err(not_found(host, &error)),
            Err(_) => Err(timed_out(host, 0, Phase::Lookup, deadline)),
        }
    }

    /// The rule for remote hosts: the settings, this host's interfaces, and
    /// what `deliveries` (hosts) and the names in `ownAddresses` resolve to
    /// within `deadline`. A name that does not resolve is still known as our
    /// own by its name.
    pub async fn address_policy(
        &self,
        settings: &Settings,
        deliveries: impl IntoIterator<Item = &str>,
        deadline: Duration,
    ) -> AddressPolicy {
        let policy = AddressPolicy::new(settings);
        if !policy.guards_self() {
            return policy;
        }
        let policy = policy.with_own_names(deliveries).with_interfaces();
        let names = policy.own_names().to_vec();
        let found = join_all(names.iter().map(|name| self.lookup(name, deadline))).await;
        policy.with_own(found.into_iter().flatten().flatten())
    }

    /// Connects to `host` (a name or an address literal) over TCP, without
    /// TLS, within `deadline`: the lookup included. All resolved addresses
    /// are judged by the policy, and only those that passed are connected to.
    ///
    /// # Errors
    /// A [`ConnectError`] that names the host and what to do. One own address
    /// among several makes the host ourselves: it would be polled sooner or
    /// later.
    pub async fn connect(
        &self,
        host: &str,
        port: u16,
        options: &ConnectOptions<'_>,
        deadline: Duration,
    ) -> Result<Stream, ConnectError> {
        let mut phase = Phase::Lookup;
        match timeout(deadline, self.reach(host, port, options, &mut phase)).await {
            Ok(result) => result,
            Err(_) => Err(timed_out(host, port, phase, deadline)),
        }
    }

    async fn reach(
        &self,
        host: &str,
        port: u16,
        options: &ConnectOptions<'_>,
        phase: &mut Phase,
    ) -> Result<Stream, ConnectError> {
        if let Some(policy) = options.policy
            && policy.check_name(host).is_err()
        {
            return Err(ConnectError::SelfPoll {
                host: shown(host),
                address: "RpopSettings.ownAddresses names it".to_owned(),
            });
        }
        let found =
            resolve::resolve(&self.lookups, host, port).await.map_err(|error| not_found(host, &error))?;
        let mut addresses = judged(host, found, options.policy)?;
        if let Some(source) = options.source {
            let theirs = if addresses.iter().all(SocketAddr::is_ipv4) { "IPv4" } else { "IPv6" };
            addresses.retain(|address| source.towards(address.ip()).is_some());
            if addresses.is_empty() {
                return Err(ConnectError::SourceAddressUnavailable {
                    host: shown(host),
                    address: source.to_string(),
                    detail: format!(
                        "the host has only {theirs} addresses, and the source is of the other kind"
                    ),
                });
            }
        }
        *phase = Phase::Connection;
        match dial::dial(&addresses, options.source).await {
            Ok(stream) => Ok(Stream::tcp(stream)),
            Err(DialError::Source(error, address)) => Err(ConnectError::SourceAddressUnavailable {
                host: shown(host),
                address: address.to_string(),
                detail: if error.kind() == io::ErrorKind::AddrNotAvailable {
                    "no network interface of this host has it".to_owned()
                } else {
                    error.to_string()
                },
            }),
            Err(DialError::Failed(cause, address)) => {
                let hint = hint(&cause);
                Err(ConnectError::Unreachable { host: shown(host), port, address, cause, hint })
            }
        }
    }

    /// Connects to a unix socket within `deadline`.
    ///
    /// # Errors
    /// [`ConnectError::Socket`] or [`ConnectError::SocketTimedOut`].
    pub async fn connect_unix(&self, path: &Path, deadline: Duration) -> Result<Stream, ConnectError> {
        match timeout(deadline, UnixStream::connect(path)).await {
            Ok(Ok(stream)) => Ok(Stream::unix(stream)),
            Ok(Err(cause)) => Err(ConnectError::Socket { path: path.to_owned(), cause }),
            Err(_) => Err(ConnectError::SocketTimedOut { path: path.to_owned(), after: deadline }),
        }
    }

    /// Puts TLS on `stream` within `deadline`, verified as `policy` says:
    /// pins, else the CA, else the platform's roots; nothing only for
    /// [`TlsMode::Opportunistic`] without any of pins, CA and server name.
    /// `host` is what the certificate must be for, unless the policy names
    /// another.
    ///
    /// # Errors
    /// A [`TlsError`] that says what to do. `stream` is closed then.
    pub async fn secure(
        &self,
        stream: Stream,
        host: &str,
        policy: &TlsPolicy,
        material: &TlsMaterial,
        deadline: Duration,
    ) -> Result<Stream, TlsError> {
        let peer = stream.peer();
        let port = peer.map_or(0, |peer| peer.port());
        match timeout(deadline, self.handshake(stream, host, policy, material)).await {
            Ok(Ok(kind)) => Ok(Stream::tls(kind, peer)),
            Ok(Err(Failed::Ours(error))) => Err(error),
            Ok(Err(Failed::Handshake(error))) => Err(explained(&error, host, port, policy)),
            Err(_) => Err(TlsError::TimedOut {
                host: shown(host),
                after: deadline,
                advice: match policy.mode {
                    TlsMode::Implicit => advice(port),
                    _ => "the server is slow, or something on the way swallows TLS".to_owned(),
                },
            }),
        }
    }

    async fn handshake(
        &self,
        stream: Stream,
        host: &str,
        policy: &TlsPolicy,
        material: &TlsMaterial,
    ) -> Result<Kind, Failed> {
        let name = server_name(host, policy).map_err(Failed::Ours)?;
        let config = self.configs.config(policy, material).await.map_err(Failed::Ours)?;
        let tls = TlsConnector::from(config);
        match stream.kind {
            Kind::Tcp(inner) => {
                let inner = tls.connect(name, inner).await.map_err(Failed::Handshake)?;
                Ok(Kind::Tls(Box::new(inner)))
            }
            Kind::Unix(inner) => {
                let inner = tls.connect(name, Box::new(inner) as _).await.map_err(Failed::Handshake)?;
                Ok(Kind::TlsOther(Box::new(inner)))
            }
            Kind::Other(inner) => {
                let inner = tls.connect(name, inner).await.map_err(Failed::Handshake)?;
                Ok(Kind::TlsOther(Box::new(inner)))
            }
            Kind::Tls(_) | Kind::TlsOther(_) => {
                Err(Failed::Ours(TlsError::Setup("the connection is encrypted already".to_owned())))
            }
        }
    }

    /// [`Self::connect`], and [`Self::secure`] at once for
    /// [`TlsMode::Implicit`], both within one `deadline`. Whether what comes
    /// out may carry credentials is for [`Stream::clearance`] to say.
    ///
    /// # Errors
    /// Those of the two steps.
    pub async fn open(
        &self,
        host: &str,
        port: u16,
        options: &ConnectOptions<'_>,
        policy: &TlsPolicy,
        material: &TlsMaterial,
        deadline: Duration,
    ) -> Result<Stream, Error> {
        let began = tokio::time::Instant::now();
        let stream = self.connect(host, port, options, deadline).await?;
        if policy.mode != TlsMode::Implicit {
            return Ok(stream);
        }
        let left = deadline.saturating_sub(began.elapsed());
        Ok(self.secure(stream, host, policy, material, left).await?)
    }
}

enum Failed {
    Ours(TlsError),
    Handshake(io::Error),
}

#[derive(Clone, Copy)]
enum Phase {
    Lookup,
    Connection,
}

fn judged(
    host: &str,
    found: Vec<SocketAddr>,
    policy: Option<&AddressPolicy>,
) -> Result<Vec<SocketAddr>, ConnectError> {
    let Some(policy) = policy else { return Ok(found) };
    let mut allowed = Vec::with_capacity(found.len());
    let mut refused = None;
    for address in found {
        match policy.check(address.ip()) {
            Ok(()) => allowed.push(address),
            Err(Refusal::SelfPoll) => {
                return Err(ConnectError::SelfPoll { host: shown(host), address: address.ip().to_string() });
            }
            Err(Refusal::Network) => refused = refused.or(Some(address.ip())),
        }
    }
    match refused {
        Some(address) if allowed.is_empty() => {
            Err(ConnectError::AddressRefused { host: shown(host), address })
        }
        _ => Ok(allowed),
    }
}

fn not_found(host: &str, error: &io::Error) -> ConnectError {
    let text = error.to_string();
    let detail = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
    ConnectError::NotFound { host: shown(host), detail: shown(detail) }
}

fn timed_out(host: &str, port: u16, phase: Phase, after: Duration) -> ConnectError {
    let phase = match phase {
        Phase::Lookup => "answer from the name server",
        Phase::Connection => "connection",
    };
    ConnectError::TimedOut { host: shown(host), port, phase, after }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => {
            ": nothing listens there, or a firewall refuses; check host and port"
        }
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            ": this machine has no way there; check its network"
        }
        _ => "",
    }
}

fn server_name(host: &str, policy: &TlsPolicy) -> Result<ServerName<'static>, TlsError> {
    let given = policy.server_name.as_deref().unwrap_or(host);
    let bare = given.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(given);
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    ServerName::try_from(bare.to_owned()).map_err(|_| TlsError::ServerName { name: shown(given) })
}

/// What to do where TLS was expected and clear text came.
fn advice(port: u16) -> String {
    match port {
        995 | 465 => format!(
            "something that is no mail server with TLS listens on port {port}; check tls.mode and the port"
        ),
        110 => {
            "the server does not speak TLS on this port: use port 110 with tls.mode StartTls, or port 995 \
                with tls.mode Implicit"
                .to_owned()
        }
        25 | 24 | 587 => format!(
            "the server does not speak TLS on this port: use port {port} with tls.mode StartTls, or port 465 \
             with tls.mode Implicit"
        ),
        _ => format!(
            "the server does not speak TLS on this port: use port {port} with tls.mode StartTls, or the port \
             for TLS (POP3: 995, SMTP: 465) with tls.mode Implicit"
        ),
    }
}

/// A failed handshake, in words that say what to do.
fn explained(error: &io::Error, host: &str, port: u16, policy: &TlsPolicy) -> TlsError {
    let name = shown(host);
    let Some(cause) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        let text = match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                "the server closed the connection during the TLS handshake".to_owned()
            }
            _ => format!("the TLS handshake failed: {}", shown(error.to_string())),
        };
        return TlsError::Handshake(format!("{name}: {text}"));
    };
    match cause {
        rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
            match other.0.downcast_ref::<Refused>() {
                Some(refused) => TlsError::Certificate(refusal(refused, &name, policy)),
                None => TlsError::Certificate(format!("{name}: {}", shown(cause.to_string()))),
            }
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)
            if policy.mode == TlsMode::Implicit =>
        {
            TlsError::NotTls(format!("{name}: {}", advice(port)))
        }
        rustls::Error::InvalidMessage(_) => {
            TlsError::NotTls(format!("{name}: the server's answer to the TLS handshake is not TLS"))
        }
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(AlertDescription::ProtocolVersion) => TlsError::Handshake(format!(
            "{name}: the server and we have no TLS version and cipher in common ({}): it must offer TLS 1.2 \
             or 1.3",
            shown(cause.to_string())
        )),
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied),
        ) => TlsError::Handshake(format!(
            "{name}: the server refused our client certificate or wants one ({alert:?}): see \
             tls.clientCertificateSecretRef"
        )),
        rustls::Error::AlertReceived(AlertDescription::UnrecognisedName) => TlsError::Handshake(format!(
            "{name}: the server does not know this name: check the host, or give tls.serverName"
        )),
        cause => {
            TlsError::Handshake(format!("{name}: the TLS handshake failed: {}", shown(cause.to_string())))
        }
    }
}

fn refusal(refused: &Refused, host: &str, policy: &TlsPolicy) -> String {
    let rustls::Error::InvalidCertificate(cause) = &refused.cause else {
        return format!(
            "{host}: the server's certificate cannot be read: {}",
            shown(refused.cause.to_string())
        );
    };
    let day = |time: &rustls::pki_types::UnixTime| {
        i64::try_from(time.as_secs())
            .ok()
            .and_then(|secs| jiff::Timestamp::from_second(secs).ok())
            .map_or_else(|| "an unknown day".to_owned(), |time| time.strftime("%Y-%m-%d").to_string())
    };
    let mut text = match cause {
        CertificateError::Expired => format!("{host}: the server's certificate has expired"),
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("{host}: the server's certificate expired on {}", day(not_after))
        }
        CertificateError::NotValidYet => format!("{host}: the server's certificate is not valid yet"),
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "{host}: the server's certificate is valid only from {} on; is this machine's clock right?",
            day(not_before)
        ),
        CertificateError::UnknownIssuer if policy.ca.is_some() => {
            format!("{host}: the server's certificate was not issued by the CA in tls.caRef")
        }
        CertificateError::UnknownIssuer => format!(
            "{host}: the server's certificate was issued by nobody this machine trusts; if it is your own, \
             give its CA in tls.caRef"
        ),
        CertificateError::BadSignature if policy.ca.is_some() => format!(
            "{host}: the server's certificate is not signed with the key of the CA in tls.caRef, though that \
             has the issuer's name: is it an older one?"
        ),
        CertificateError::NotValidForName => {
            format!(
                "{host}: the server's certificate is for another name; if that is right, give tls.serverName"
            )
        }
        CertificateError::NotValidForNameContext { presented, .. } => {
            let names: Vec<&str> = presented.iter().map(|name| bare_name(name)).collect();
            let names = shown(names.join(", "));
            if names.is_empty() {
                format!("{host}: the server's certificate names no host (a subject alternative name)")
            } else {
                format!(
                    "{host}: the server's certificate is not for this name but for {names}; if that is right, \
                     give it in tls.serverName"
                )
            }
        }
        // As `openssl req -x509` makes them.
        CertificateError::Other(_) if is_ca_as_server(&refused.cause) => {
            let other = if policy.ca.is_some() { " and not the one in tls.caRef" } else { "" };
            format!(
                "{host}: the server's certificate was issued by itself{other}: it is self-signed: give it as \
                 tls.caRef, or pin it"
            )
        }
        CertificateError::ApplicationVerificationFailure if refused.pinned => {
            format!("{host}: neither the server's certificate nor its key is among tls.pinSha256")
        }
        cause => {
            format!("{host}: the server's certificate is not accepted: {}", shown(cause.to_string()))
        }
    };
    // Its fingerprint is what a person needs to compare and to pin.
    text.push_str(" (SHA-256 of its certificate: ");
    for octet in refused.fingerprint {
        write!(text, "{octet:02x}").unwrap_or_default();
    }
    text.push_str(", which tls.pinSha256 accepts once you have checked it)");
    text
}

/// rustls shows names as `DnsName("a.example")`.
fn bare_name(shown: &str) -> &str {
    shown.split('"').nth(1).unwrap_or(shown)
}
