//! The closed list of error codes that records, metrics and documents share.

/// Why a record's last poll did not succeed. Every code has a page in
/// `docs/errors.md` that says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Code {
    /// The remote name does not resolve.
    HostNotFound,
    /// No connection could be made, or it broke before the login.
    HostUnreachable,
    /// The remote host did not answer in time.
    TimedOut,
    /// The resolved address is not allowed by `remoteNetworks`.
    AddressRefused,
    /// The remote host is one of our own addresses.
    SelfPoll,
    /// The source address cannot be bound.
    SourceAddressUnavailable,
    /// TLS is required and could not be had: refused, stripped or not verified.
    TlsFailed,
    /// The server refused the user name or the password.
    AuthFailed,
    /// The server offers no mechanism that this record may use.
    AuthUnavailable,
    /// The OAuth provider gave no access token: it cannot be reached, or
    /// answers with something else.
    TokenUnavailable,
    /// The maildrop is in use by another session.
    MailboxLocked,
    /// The server asks to wait between logins.
    LoginDelay,
    /// The server reported a passing trouble of its own.
    ServerBusy,
    /// The server broke the protocol.
    ProtocolError,
    /// The connection was lost in the middle of a session.
    ConnectionLost,
    /// `leave` is on and the server has no usable UIDL.
    UidlMissing,
    /// Nearly all UIDs changed at once; see `onUidChange`.
    UidsChanged,
    /// A Secret or one of its keys is missing.
    SecretMissing,
    /// A Secret holds what cannot be used (CR, LF, NUL in a password, no PEM).
    SecretInvalid,
    /// The destination could not be reached or refused for now.
    DestinationUnavailable,
    /// The destination refused our login or needs TLS that it does not offer.
    DestinationRefused,
    /// One message or more was refused and is quarantined.
    MessageRejected,
    /// The ledger cannot be read.
    LedgerDamaged,
    /// The ledger cannot be written.
    LedgerUnwritable,
    /// The ledger can grow no more.
    LedgerFull,
    /// Another process committed to the ledger first.
    LedgerConflict,
    /// The manifest refers to something that is not there or not allowed.
    ConfigInvalid,
    /// No RpopDomain has the domain of the record's account.
    DomainMissing,
    /// The RpopDomain does not let the record's namespace use its account.
    NotAllowed,
    /// The poll was ended by a shutdown or a change of the record.
    Interrupted,
    /// A defect of RPOP itself.
    Internal,
}

impl Code {
    /// All codes, in the order of the documentation.
    pub const ALL: &'static [Self] = &[
        Self::HostNotFound,
        Self::HostUnreachable,
        Self::TimedOut,
        Self::AddressRefused,
        Self::SelfPoll,
        Self::SourceAddressUnavailable,
        Self::TlsFailed,
        Self::AuthFailed,
        Self::AuthUnavailable,
        Self::TokenUnavailable,
        Self::MailboxLocked,
        Self::LoginDelay,
        Self::ServerBusy,
        Self::ProtocolError,
        Self::ConnectionLost,
        Self::UidlMissing,
        Self::UidsChanged,
        Self::SecretMissing,
        Self::SecretInvalid,
        Self::DestinationUnavailable,
        Self::DestinationRefused,
        Self::MessageRejected,
        Self::LedgerDamaged,
        Self::LedgerUnwritable,
        Self::LedgerFull,
        Self::LedgerConflict,
        Self::ConfigInvalid,
        Self::DomainMissing,
        Self::NotAllowed,
        Self::Interrupted,
        Self::Internal,
    ];

    /// The code as users see it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostNotFound => "HostNotFound",
            Self::HostUnreachable => "HostUnreachable",
            Self::TimedOut => "TimedOut",
            Self::AddressRefused => "AddressRefused",
            Self::SelfPoll => "SelfPoll",
            Self::SourceAddressUnavailable => "SourceAddressUnavailable",
            Self::TlsFailed => "TlsFailed",
            Self::AuthFailed => "AuthFailed",
            Self::AuthUnavailable => "AuthUnavailable",
            Self::TokenUnavailable => "TokenUnavailable",
            Self::MailboxLocked => "MailboxLocked",
            Self::LoginDelay => "LoginDelay",
            Self::ServerBusy => "ServerBusy",
            Self::ProtocolError => "ProtocolError",
            Self::ConnectionLost => "ConnectionLost",
            Self::UidlMissing => "UidlMissing",
            Self::UidsChanged => "UidsChanged",
            Self::SecretMissing => "SecretMissing",
            Self::SecretInvalid => "SecretInvalid",
            Self::DestinationUnavailable => "DestinationUnavailable",
            Self::DestinationRefused => "DestinationRefused",
            Self::MessageRejected => "MessageRejected",
            Self::LedgerDamaged => "LedgerDamaged",
            Self::LedgerUnwritable => "LedgerUnwritable",
            Self::LedgerFull => "LedgerFull",
            Self::LedgerConflict => "LedgerConflict",
            Self::ConfigInvalid => "ConfigInvalid",
            Self::DomainMissing => "DomainMissing",
            Self::NotAllowed => "NotAllowed",
            Self::Interrupted => "Interrupted",
            Self::Internal => "Internal",
        }
    }

    /// Whether a poll that ended so had logged in before.
    pub fn is_behind_login(self) -> bool {
        matches!(
            self,
            Self::UidlMissing
                | Self::UidsChanged
                | Self::DestinationUnavailable
                | Self::DestinationRefused
                | Self::MessageRejected
        )
    }

    /// The code that users see as `text`, if there is one.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_listed_once_and_parses_back() {
        for (at, code) in Code::ALL.iter().enumerate() {
            assert_eq!(Code::parse(code.as_str()), Some(*code));
            assert!(!Code::ALL[..at].contains(code));
        }
    }
}
