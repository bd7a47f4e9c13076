//! What one poll says of itself.

use std::time::Duration;

use crate::domain::code::Code;

/// The result of one poll.
#[derive(Debug)]
pub struct Report {
    /// `Ok` when the session went through to its end. Messages that were
    /// refused are in the counters, not here.
    pub result: Result<(), PollError>,
    /// What was done.
    pub counters: Counters,
    /// From the start of the connection to its end.
    pub took: Duration,
    /// The server asked not to log in again sooner than this (RFC 2449, 6.5).
    pub login_delay: Option<Duration>,
    /// The first refusal or quarantine of this poll, for people.
    pub refused: Option<String>,
}

/// Why a poll ended early.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct PollError {
    /// For status, metrics and the documents.
    pub code: Code,
    /// For people: what happened and what to do. One line, no secrets; what
    /// servers said is escaped and capped.
    pub message: String,
    /// What has failed, hence what waits.
    pub scope: Scope,
}

/// What a failure says something about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The remote host: all its records wait `delayFailedHosts`.
    Host,
    /// The account: this record waits `delayFailedAccounts`.
    Account,
    /// The destination or this machine: this record waits, with back-off.
    Local,
}

impl Counters {
    /// Messages refused, set aside or deferred in this poll.
    pub fn refused(&self) -> u64 {
        self.rejected.max(self.quarantined) + self.deferred
    }
}

/// What a poll did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages in the maildrop.
    pub listed: u64,
    /// Of these not known to the ledger.
    pub unseen: u64,
    /// Retrieved.
    pub fetched: u64,
    /// Accepted by the destination.
    pub delivered: u64,
    /// Refused by the destination or by a rule of ours, for good.
    pub rejected: u64,
    /// Set aside in this poll.
    pub quarantined: u64,
    /// Set aside now or earlier, and still in the maildrop.
    pub in_quarantine: u64,
    /// Refused for now by the destination.
    pub deferred: u64,
    /// Refused for now, in this poll or earlier, by all their recipients or
    /// some: they wait in the maildrop.
    pub waiting: u64,
    /// Copies that were not delivered again.
    pub duplicates: u64,
    /// Deleted on the server.
    pub deleted: u64,
    /// Octets retrieved.
    pub bytes: u64,
}
