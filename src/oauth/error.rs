//! Why there is no token, in words that say what to do.

use std::time::Duration;

use crate::domain::code::Code;

/// Why no access token could be had. Holds no secrets, and of what a provider
/// sent only what is escaped and capped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The provider says no (RFC 6749, section 5.2).
    #[error("{host} gives no access token: {error}{}: {advice}", detail(description))]
    Refused {
        /// The provider.
        host: String,
        /// Its word, like `invalid_grant`.
        error: String,
        /// What it says to people; may be empty.
        description: String,
        /// What to do.
        advice: String,
    },
    /// The provider cannot be asked now, or answers with what is no token.
    #[error("{message}")]
    Unavailable {
        /// `TokenUnavailable`, or what else there is for it.
        code: Code,
        /// For people.
        message: String,
        /// The same request may succeed a moment later.
        passing: bool,
        /// When the provider wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Something here is missing or cannot be used: a Secret, a URL, the place
    /// where tokens are kept.
    #[error("{message}")]
    Local {
        /// What for status and metrics.
        code: Code,
        /// For people.
        message: String,
    },
}

fn detail(description: &str) -> String {
    if description.is_empty() { String::new() } else { format!(" ({description})") }
}

impl Error {
    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable {
            code: Code::TokenUnavailable,
            message: message.into(),
            passing: false,
            retry_after: None,
        }
    }

    pub(super) fn passing(message: impl Into<String>, retry_after: Option<Duration>) -> Self {
        Self::Unavailable {
            code: Code::TokenUnavailable,
            message: message.into(),
            passing: true,
            retry_after,
        }
    }

    pub(super) fn local(code: Code, message: impl Into<String>) -> Self {
        Self::Local { code, message: message.into() }
    }

    /// The code for status and metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { .. } => Code::AuthFailed,
            Self::Unavailable { code, .. } | Self::Local { code, .. } => *code,
        }
    }

    /// Whether waiting may help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// A word of a closed list, for metrics.
    pub fn reason(&self) -> &'static str {
        self.code().as_str()
    }

    /// The refresh token is worth nothing (any more).
    pub(super) fn is_invalid_grant(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error == "invalid_grant")
    }

    /// The provider did not know the client by what it was shown.
    pub(super) fn is_invalid_client(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error == "invalid_client")
    }
}
