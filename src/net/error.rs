//! Why a connection could not be had, in words that say what to do.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::material::MaterialError;
use crate::domain::code::Code;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The name does not resolve, or to no address.
    #[error("{host} does not resolve ({detail}): check the spelling of the host and this machine's DNS")]
    NotFound {
        /// As in the manifest.
        host: String,
        /// The resolver's words.
        detail: String,
    },
    /// No resolved address lies in an allowed network.
    #[error("{host} is at {address}, which RpopSettings.remoteNetworks does not allow")]
    AddressRefused {
        /// As in the manifest.
        host: String,
        /// The first address that was refused.
        address: IpAddr,
    },
    /// The remote host is this mail system itself.
    #[error(
        "{host} ({address}) is this mail system itself, and polling it would send its mail in circles; \
         if that is intended, set RpopSettings.allowSelfPoll to true"
    )]
    SelfPoll {
        /// As in the manifest.
        host: String,
        /// The address, or the name in `ownAddresses`.
        address: String,
    },
    /// The source address cannot be used; another one is never taken silently.
    #[error("the source address {address} cannot be used to reach {host}: {detail}")]
    SourceAddressUnavailable {
        /// As in the manifest.
        host: String,
        /// As in the settings, or in the domain.
        address: String,
        /// What is wrong with it.
        detail: String,
    },
    /// No address took the connection.
    #[error("no connection to {host} port {port} ({address}): {cause}{hint}")]
    Unreachable {
        /// As in the manifest.
        host: String,
        /// TCP port.
        port: u16,
        /// The address that was tried last.
        address: SocketAddr,
        /// The last attempt's error.
        cause: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// The deadline passed.
    #[error("{host} port {port}: no {phase} within {} s (RpopSettings.timeouts.connect)", after.as_secs_f32())]
    TimedOut {
        /// As in the manifest.
        host: String,
        /// TCP port.
        port: u16,
        /// What was waited for.
        phase: &'static str,
        /// For how long.
        after: Duration,
    },
    /// A unix socket did not take the connection.
    #[error("no connection to the socket {}: {cause}", path.display())]
    Socket {
        /// As in the manifest.
        path: PathBuf,
        /// The system's error.
        cause: io::Error,
    },
    /// A unix socket did not take the connection in time.
    #[error("the socket {} took no connection within {} s", path.display(), after.as_secs_f32())]
    SocketTimedOut {
        /// As in the manifest.
        path: PathBuf,
        /// For how long.
        after: Duration,
    },
}

impl ConnectError {
    /// The code for status and metrics, seen from the POP3 side; a delivery
    /// reports its own.
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::HostNotFound,
            Self::AddressRefused { .. } => Code::AddressRefused,
            Self::SelfPoll { .. } => Code::SelfPoll,
            Self::SourceAddressUnavailable { .. } => Code::SourceAddressUnavailable,
            Self::Unreachable { .. } | Self::Socket { .. } => Code::HostUnreachable,
            Self::TimedOut { .. } | Self::SocketTimedOut { .. } => Code::TimedOut,
        }
    }

    /// Whether the same attempt may succeed later with nothing changed here.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::AddressRefused { .. } | Self::SelfPoll { .. })
    }
}

/// Why TLS could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The Secret's PEM cannot be used.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The certificate of the server is not accepted. The text says why.
    #[error("{0}")]
    Certificate(String),
    /// The first octets of the server are not TLS.
    #[error("{0}")]
    NotTls(String),
    /// The handshake failed.
    #[error("{0}")]
    Handshake(String),
    /// The handshake took too long.
    #[error("{host}: no TLS handshake within {} s: {advice}", after.as_secs_f32())]
    TimedOut {
        /// As in the manifest.
        host: String,
        /// For how long.
        after: Duration,
        /// What may be the matter.
        advice: String,
    },
    /// The name cannot stand in a certificate.
    #[error("{name:?} cannot be checked against a certificate: give tls.serverName")]
    ServerName {
        /// What was to be verified.
        name: String,
    },
    /// The policy demands TLS and the connection has none.
    #[error("tls.mode demands TLS and the connection to the server is not encrypted: nothing was sent")]
    Required,
    /// This machine has no root certificates.
    #[error(
        "this machine's root certificates cannot be loaded ({0}): install its ca-certificates package, \
         or give tls.caRef or tls.pinSha256"
    )]
    Roots(String),
    /// A defect of ours.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

impl TlsError {
    /// The code for status and metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::Material(error) => error.code(),
            Self::TimedOut { .. } => Code::TimedOut,
            Self::ServerName { .. } => Code::ConfigInvalid,
            Self::Setup(_) => Code::Internal,
            Self::Certificate(_) | Self::NotTls(_) | Self::Handshake(_) | Self::Required | Self::Roots(_) => {
                Code::TlsFailed
            }
        }
    }

    /// Whether the same attempt may succeed later with nothing changed here.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Handshake(_))
    }
}

/// Either of the two steps to a connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Error {
    /// The code for status and metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::Connect(error) => error.code(),
            Self::Tls(error) => error.code(),
        }
    }

    /// Whether the same attempt may succeed later with nothing changed here.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect(error) => error.is_transient(),
            Self::Tls(error) => error.is_transient(),
        }
    }
}
