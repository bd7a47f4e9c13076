//! What can go wrong in a POP3 session.

use std::io;
use std::time::Duration;

use super::auth::Mechanism;
use super::reply::{Reply, ResponseCode};
use super::sasl::Malformed;
use crate::domain::code::Code;

/// Why a session, or a request in it, failed. After any error but
/// [`Error::Refused`], [`Error::Unsupported`] and those of a login that sent
/// nothing ([`Error::NoMechanism`], [`Error::UserName`], [`Error::Password`])
/// the session is out of step: it must be dropped. Holds no secrets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server closed the connection, or the network did.
    #[error("the connection was lost while waiting for {}", awaited(during))]
    Closed {
        /// What was awaited.
        during: &'static str,
        /// It was not yet logged in.
        before_login: bool,
    },
    /// The operating system or TLS reported an error.
    #[error("the connection broke while waiting for {}", awaited(during))]
    Io {
        /// What was awaited.
        during: &'static str,
        /// It was not yet logged in.
        before_login: bool,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No reply came in time.
    #[error("{} did not come within {} s", awaited(during), after.as_secs())]
    TimedOut {
        /// What was awaited.
        during: &'static str,
        /// It was not yet logged in.
        before_login: bool,
        /// The deadline.
        after: Duration,
    },
    /// A message stopped in its middle, or came slower than the floor.
    #[error("message {number} {} after {octets} octets", if *.silent { "stopped" } else { "came too slowly" })]
    Stalled {
        /// Its number.
        number: u32,
        /// Octets of it so far, as the server sent them.
        octets: u64,
        /// They end in a dot and CRLF, as where a server glues the terminator
        /// to a last line that has no line end of its own.
        ends_with_dot_crlf: bool,
        /// Nothing came for the `data` deadline; otherwise it was too slow.
        silent: bool,
    },
    /// The server sent what it must not.
    #[error("{0}")]
    Protocol(String),
    /// Octets came that nothing asked for: replies can no longer be told
    /// apart.
    #[error("the server sent a reply to nothing: {0}")]
    OutOfStep(String),
    /// `-ERR`.
    #[error(
        "the server refused {}: {reply}{}",
        if *command == GREETING { "the connection" } else { *command },
        said.as_ref().map(|said| format!(" (its reason: {said})")).unwrap_or_default()
    )]
    Refused {
        /// The command without its arguments.
        command: &'static str,
        /// What the server said.
        reply: Reply,
        /// What it said before, in the mechanism's own words: the JSON of
        /// RFC 7628 or the `e=` of RFC 5802; escaped and capped.
        said: Option<String>,
        /// It was the greeting, or the name, password or mechanism.
        login: bool,
    },
    /// The server does not know a command that is optional.
    #[error("the server does not support {command}: {reply}")]
    Unsupported {
        /// The command.
        command: &'static str,
        /// What the server said.
        reply: Reply,
    },
    /// No mechanism can be used.
    #[error("{0}")]
    NoMechanism(String),
    /// A challenge that cannot be answered; the login was taken back.
    #[error("the server's challenge in {command} cannot be answered: {what}")]
    Challenge {
        /// The mechanism's command.
        command: &'static str,
        /// Which part of it.
        what: Malformed,
    },
    /// The server did not prove that it knows the password (RFC 5802,
    /// section 3).
    #[error(
        "the server took the login by {command} and did not prove that it knows the password: it may not be the \
         server that it seems to be"
    )]
    Impostor {
        /// The mechanism's command.
        command: &'static str,
    },
    /// The user name cannot be sent at all.
    #[error("{0}")]
    UserName(&'static str),
    /// The password cannot be sent at all.
    #[error("{0}")]
    Password(&'static str),
    /// STLS was refused, or something stood in the clear behind its reply.
    #[error("{0}")]
    Tls(String),
}

/// What a failure says something about; as the engine's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The host: every account there.
    Host,
    /// This account.
    Account,
}

impl Error {
    /// The code for status, metrics and documents.
    pub fn code(&self) -> Code {
        match self {
            Self::Closed { before_login: true, .. } | Self::Io { before_login: true, .. } => {
                Code::HostUnreachable
            }
            Self::Closed { .. } | Self::Io { .. } => Code::ConnectionLost,
            Self::TimedOut { .. } | Self::Stalled { .. } => Code::TimedOut,
            Self::Unsupported { command: "UIDL", .. } => Code::UidlMissing,
            Self::Protocol(_) | Self::OutOfStep(_) | Self::Unsupported { .. } | Self::Challenge { .. } => {
                Code::ProtocolError
            }
            Self::Impostor { .. } => Code::AuthFailed,
            Self::Refused { reply, login, command, .. } => match reply.code {
                Some(ResponseCode::InUse) => Code::MailboxLocked,
                Some(ResponseCode::LoginDelay) => Code::LoginDelay,
                Some(ResponseCode::SysTemp | ResponseCode::SysPerm) => Code::ServerBusy,
                Some(ResponseCode::Auth) => Code::AuthFailed,
                _ if *command == GREETING => Code::ServerBusy,
                _ if *login => Code::AuthFailed,
                _ => Code::ProtocolError,
            },
            Self::NoMechanism(_) => Code::AuthUnavailable,
            Self::UserName(_) => Code::ConfigInvalid,
            Self::Password(_) => Code::SecretInvalid,
            Self::Tls(_) => Code::TlsFailed,
        }
    }

    /// Whether the host or only the account has failed.
    pub fn scope(&self) -> Scope {
        match self {
            Self::Closed { before_login, .. }
            | Self::Io { before_login, .. }
            | Self::TimedOut { before_login, .. }
                if *before_login =>
            {
                Scope::Host
            }
            Self::Tls(_) => Scope::Host,
            Self::Refused { reply, command, .. } => match reply.code {
                Some(ResponseCode::SysTemp) => Scope::Host,
                None | Some(ResponseCode::Other) if *command == GREETING => Scope::Host,
                _ => Scope::Account,
            },
            _ => Scope::Account,
        }
    }

    /// Whether waiting may help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        !matches!(
            self.code(),
            Code::AuthFailed
                | Code::AuthUnavailable
                | Code::ConfigInvalid
                | Code::SecretInvalid
                | Code::UidlMissing
                | Code::TlsFailed
        )
    }

    /// The server did not take the access token: another one may help.
    pub fn refuses_token(&self) -> bool {
        let bearer = [Mechanism::XOAuth2, Mechanism::OAuthBearer].map(Mechanism::command);
        matches!(self, Self::Refused { command, .. } if bearer.contains(command))
            && self.code() == Code::AuthFailed
    }

    /// The code as a word for metrics.
    pub fn reason(&self) -> &'static str {
        self.code().as_str()
    }

    /// The server dropped the connection instead of answering CAPA: connect
    /// again and do not ask.
    pub fn is_dropped_on_capa(&self) -> bool {
        matches!(self, Self::Closed { during: CAPA, .. } | Self::Io { during: CAPA, .. })
    }
}

fn awaited(during: &str) -> String {
    match during {
        GREETING => "the server's greeting".to_owned(),
        NOTHING => "the next request".to_owned(),
        command => format!("the reply to {command}"),
    }
}

/// Names of what is awaited, where code depends on them.
pub(super) const CAPA: &str = "CAPA";
pub(super) const GREETING: &str = "connect";
pub(super) const NOTHING: &str = "nothing";
