//! What is known of how records are doing: kept over restarts in files, or
//! shown in the status of the resources.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::domain::code::Code;
use crate::domain::work::RecordKey;
use crate::engine::report::Counters;

/// Characters of an error's message.
const LONGEST_MESSAGE: usize = 600;

/// The status of a record. Times are Unix seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordStatus {
    /// The end of the last poll that went well.
    pub last_success: Option<i64>,
    /// The end of the last poll.
    pub last_poll: Option<i64>,
    /// When the next one is due.
    pub next_poll: Option<i64>,
    /// Why the last one did not go well, if it did not.
    pub error: Option<Box<LastError>>,
    /// Counted since the record was first polled.
    pub totals: Totals,
    /// Why messages are set aside, or wait: the reason that was told last, if
    /// any are.
    /// A thin pointer, since there are ten thousands of these.
    pub set_aside: Option<Box<Box<str>>>,
}

/// An error that lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// Its code.
    pub code: Code,
    /// For people, one line.
    pub message: Box<str>,
    /// When polls began to fail with this code.
    pub since: i64,
    /// How many have since, in a row.
    pub count: u32,
    /// Logins that were refused and not followed by one that was taken:
    /// whatever other errors came between.
    pub refusals: Option<Refusals>,
}

/// Logins that the server refused in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusals {
    /// When the first of them was; Unix seconds.
    pub since: i64,
    /// How many there were.
    pub count: u32,
    /// What tells the credentials of the last one from others, where that is
    /// known: see [`Poller::credentials`](super::Poller::credentials).
    pub credentials: Option<Box<str>>,
}

/// Sums over all polls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Totals {
    /// Polls.
    pub polls: u64,
    /// Polls that failed.
    pub failed: u64,
    /// Messages retrieved.
    pub fetched: u64,
    /// Messages accepted by the destination.
    pub delivered: u64,
    /// Messages refused for good.
    pub rejected: u64,
    /// Messages deleted on the server.
    pub deleted: u64,
    /// Octets retrieved.
    pub bytes: u64,
    /// Messages that are set aside now.
    pub in_quarantine: u32,
    /// Messages that wait now, since all their recipients or some were refused
    /// for now.
    pub waiting: u32,
}

/// A remote host that is left alone for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedHost {
    /// `host:port` as the scheduler names it.
    pub host: Box<str>,
    /// Until when; Unix seconds.
    pub until: i64,
    /// Why.
    pub error: LastError,
}

impl LastError {
    /// The first failure of its kind. Control characters in `message` become
    /// spaces; it is cut at 600 characters.
    pub fn new(code: Code, message: &str, now: i64) -> Self {
        let plain = message.chars().map(|c| if c.is_control() { ' ' } else { c });
        let message: String = plain.take(LONGEST_MESSAGE).collect();
        let first = Refusals { since: now, count: 1, credentials: None };
        let refusals = (code == Code::AuthFailed).then_some(first);
        Self { code, message: message.into(), since: now, count: 1, refusals }
    }

    /// This failure after `before`: one of the same code goes on, and so do
    /// refused logins.
    #[must_use]
    pub fn after(mut self, before: Option<&Self>) -> Self {
        if let Some(earlier) = before.and_then(|before| before.refusals.as_ref())
            && !self.code.is_behind_login()
        {
            let more = u32::from(self.refusals.is_some());
            self.refusals = Some(Refusals { count: earlier.count.saturating_add(more), ..earlier.clone() });
        }
        if let Some(before) = before.filter(|before| before.code == self.code) {
            self.since = before.since;
            self.count = before.count.saturating_add(1);
        }
        self
    }
}

impl RecordStatus {
    /// The first refusal of the poll that was just counted. A poll without one
    /// leaves the earlier reason as long as messages are set aside, or wait.
    pub fn tell_set_aside(&mut self, refused: Option<&str>) {
        if self.totals.in_quarantine == 0 && self.totals.waiting == 0 {
            self.set_aside = None;
        } else if let Some(refused) = refused {
            let plain = refused.chars().map(|c| if c.is_control() { ' ' } else { c });
            self.set_aside = Some(plain.take(LONGEST_MESSAGE).collect::<String>().into_boxed_str().into());
        }
    }

    /// A poll ended well.
    pub fn succeeded(&mut self, now: i64, counters: &Counters) {
        self.polled(now, counters);
        self.stay(counters);
        self.last_success = Some(now);
        self.error = None;
    }

    /// A poll ended early; what it did until then is in `counters`.
    pub fn failed(&mut self, now: i64, code: Code, message: &str, counters: &Counters) {
        self.polled(now, counters);
        self.totals.failed += 1;
        let error = LastError::new(code, message, now).after(self.error.as_deref());
        self.error = Some(Box::new(error));
    }

    /// The login that was refused just now was made with these. Others than
    /// before begin anew.
    pub fn refused_with(&mut self, credentials: Option<Box<str>>, now: i64) {
        let Some(refusals) = self.error.as_deref_mut().and_then(|error| error.refusals.as_mut()) else {
            return;
        };
        if refusals.credentials.is_some() && credentials.is_some() && refusals.credentials != credentials {
            (refusals.since, refusals.count) = (now, 1);
        }
        refusals.credentials = credentials;
    }

    fn polled(&mut self, now: i64, counters: &Counters) {
        self.last_poll = Some(now);
        self.totals.polls += 1;
        self.count(counters);
    }

    /// What was done by a poll that says nothing else of the record.
    pub fn count(&mut self, counters: &Counters) {
        let totals = &mut self.totals;
        totals.fetched += counters.fetched;
        totals.delivered += counters.delivered;
        totals.rejected += counters.rejected;
        totals.deleted += counters.deleted;
        totals.bytes += counters.bytes;
        // A poll that failed before the listing says nothing of these.
        if counters.listed > 0 {
            self.stay(counters);
        }
    }

    /// What is still in the maildrop, and why.
    fn stay(&mut self, counters: &Counters) {
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        self.totals.in_quarantine = count(counters.in_quarantine);
        self.totals.waiting = count(counters.waiting);
    }

    /// The column "Last": the time of the last success (RFC 3339), or the code
    /// of the error; empty before the first poll.
    pub fn last(&self) -> String {
        match (&self.error, self.last_success.and_then(time)) {
            (Some(error), _) => error.code.to_string(),
            (None, Some(time)) => time.to_string(),
            (None, None) => String::new(),
        }
    }
}

fn time(unix: i64) -> Option<Timestamp> {
    Timestamp::from_second(unix).ok()
}

/// What earlier runs remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By record.
    pub records: BTreeMap<RecordKey, RecordStatus>,
    /// Hosts that were left alone when this was written.
    pub hosts: Vec<FailedHost>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polled() -> RecordStatus {
        let mut status = RecordStatus::default();
        let counters =
            Counters { fetched: 3, delivered: 2, bytes: 99, in_quarantine: 1, ..Counters::default() };
        status.succeeded(1_700_000_000, &counters);
        status.next_poll = Some(1_700_000_300);
        status
    }

    #[test]
    fn a_healthy_record_takes_little_memory() {
        assert!(size_of::<RecordStatus>() <= 128, "{}", size_of::<RecordStatus>());
    }

    // quirks: "Log lines and status messages escape and cap what servers sent."
    #[test]
    fn an_error_counts_on_while_its_code_stays_the_same() {
        let mut status = polled();
        let none = Counters::default();
        assert_eq!(status.last(), "2023-11-14T22:13:20Z");
        status.failed(10, Code::AuthFailed, "refused\r\nPASS", &none);
        status.failed(20, Code::AuthFailed, "refused again", &none);
        let error = status.error.as_deref().unwrap();
        assert_eq!((error.since, error.count, &*error.message), (10, 2, "refused again"));
        assert_eq!(status.last(), "AuthFailed");
        status.failed(30, Code::HostUnreachable, "a\u{7}b", &none);
        let error = status.error.as_deref().unwrap();
        assert_eq!((error.since, error.count, &*error.message), (30, 1, "a b"));
        assert_eq!((status.totals.polls, status.totals.failed, status.totals.in_quarantine), (4, 3, 1));
        status.succeeded(40, &none);
        assert_eq!((status.error, status.last_success), (None, Some(40)));
    }

    #[test]
    fn refused_logins_count_on_whatever_comes_between_until_one_is_taken() {
        let (mut status, none) = (polled(), Counters::default());
        let refusals = |status: &RecordStatus| {
            let refusals = status.error.as_deref()?.refusals.clone()?;
            Some((refusals.since, refusals.count, refusals.credentials))
        };
        status.failed(10, Code::AuthFailed, "no", &none);
        status.refused_with(Some("a".into()), 10);
        status.failed(20, Code::HostUnreachable, "away", &none);
        assert_eq!(refusals(&status), Some((10, 1, Some("a".into()))));
        status.failed(30, Code::AuthFailed, "no", &none);
        status.refused_with(Some("a".into()), 30);
        assert_eq!(refusals(&status), Some((10, 2, Some("a".into()))));
        assert_eq!(status.error.as_deref().unwrap().since, 30, "of this code");
        // Another password, and refused again.
        status.failed(40, Code::AuthFailed, "no", &none);
        status.refused_with(Some("b".into()), 40);
        assert_eq!(refusals(&status), Some((40, 1, Some("b".into()))));
        status.failed(50, Code::DestinationUnavailable, "full", &none);
        assert_eq!(refusals(&status), None, "the login was taken");
        status.failed(60, Code::AuthFailed, "no", &none);
        status.succeeded(70, &none);
        assert_eq!(refusals(&status), None);
    }
}
