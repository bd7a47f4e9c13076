//! Why a connection to a mail server cannot go on.

use std::time::Duration;

use super::reply::{DecodeError, Reply};

/// Trouble with a connection, as opposed to the verdict on a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The stream failed.
    #[error("the connection broke: {0}")]
    Io(#[source] std::io::Error),
    /// The server closed the stream.
    #[error("the server closed the connection")]
    Closed,
    /// A deadline passed.
    #[error("no {awaited} within {} s", after.as_secs())]
    TimedOut {
        /// What was waited for.
        awaited: &'static str,
        /// How long.
        after: Duration,
    },
    /// The server takes a message, but hardly.
    #[error("the server took only {octets} octets in {} s, less than 1 KiB a second", over.as_secs())]
    TooSlow {
        /// Octets that it took.
        octets: u64,
        /// In so much time in which there was something to take.
        over: Duration,
    },
    /// A reply that is none, or one beyond all bounds.
    #[error(transparent)]
    Reply(#[from] DecodeError),
    /// A reply that refuses a step without which there is no session.
    #[error("{to} was answered with {reply}")]
    Refused {
        /// The command, or `the connection` for a greeting.
        to: &'static str,
        /// The answer.
        reply: Reply,
    },
    /// A reply where none was due, or of a kind that the command cannot have.
    #[error("out of step with the server: {to} was answered with {reply}")]
    OutOfStep {
        /// The command.
        to: &'static str,
        /// The answer.
        reply: Reply,
    },
    /// Octets came behind the reply to STARTTLS: somebody injects commands.
    #[error("the server sent octets behind its reply to STARTTLS, before the handshake")]
    Injected,
    /// The server offers no mechanism that we have.
    #[error("the server offers neither AUTH PLAIN nor AUTH LOGIN")]
    NoMechanism,
    /// User name or password cannot be sent by any mechanism.
    #[error("the user name or the password holds a CR, LF or NUL, or is empty")]
    Credentials,
}

impl Error {
    /// Whether a later try may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Io(_) | Self::Closed | Self::TimedOut { .. } | Self::TooSlow { .. } => true,
            Self::Refused { reply, .. } | Self::OutOfStep { reply, .. } => !reply.is_permanent(),
            Self::Reply(_) | Self::Injected | Self::NoMechanism | Self::Credentials => false,
        }
    }

    /// A word of a closed list, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Closed => "closed",
            Self::TimedOut { .. } | Self::TooSlow { .. } => "timeout",
            Self::Reply(_) | Self::OutOfStep { .. } => "protocol",
            Self::Refused { .. } => "refused",
            Self::Injected => "injected",
            Self::NoMechanism | Self::Credentials => "credentials",
        }
    }
}
