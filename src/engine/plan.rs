//! What a poll carries through its sessions.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use super::incoming::Fetch;
use super::report::{Counters, PollError};

/// What a poll carries from one of its sessions to the next.
#[derive(Default)]
pub(super) struct Plan {
    /// Messages are fetched singly, each confirmed: something was out of step.
    pub(super) careful: bool,
    /// How often a session broke at a message, by UID or else by number.
    pub(super) strikes: HashMap<Result<Box<[u8]>, u32>, u8>,
    /// Messages at which two sessions broke, and how. They are passed over, and
    /// set aside once something shows that the fault is theirs and not the
    /// server's: another message comes through, or nothing else was wanting.
    pub(super) suspects: Vec<(Fetch, String)>,
    /// Messages that the server refused to hand over for now, and how. They are
    /// passed over, and set aside once it hands over another one behind them.
    pub(super) busy: Vec<(Fetch, String)>,
    /// Sessions that broke.
    pub(super) broken: u32,
    /// Numbers to pass over where there are no UIDs.
    pub(super) skip: HashSet<u32>,
    /// The server drops the connection on CAPA.
    pub(super) without_capa: bool,
    /// Hashes of the UIDs of messages that are to be deleted, and are surely
    /// still there: no QUIT was said since they were looked at.
    pub(super) undeleted: HashSet<u64>,
    /// The server has obeyed our DELEs.
    pub(super) left_cleanly: bool,
    /// Messages fetched by earlier sessions of this poll.
    pub(super) budget: Option<u64>,
    /// Of a unified account: destinations that get nothing more in this poll.
    pub(super) away: BTreeMap<usize, PollError>,
    /// Of a unified account: messages (by the hashes of their UIDs) that wait
    /// for a later poll.
    pub(super) tried: HashSet<u64>,
}

/// What a poll has to report, as it grows.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) counters: Counters,
    pub(super) refused: Option<String>,
    pub(super) login_delay: Option<Duration>,
    /// The maildrop was surveyed in this poll.
    pub(super) surveyed: bool,
}

impl Tally {
    /// A message was refused for now, by all its recipients or some.
    pub(super) fn defer(&mut self, why: &str) {
        self.counters.deferred += 1;
        self.counters.waiting += 1;
        self.note(why);
    }

    /// Keeps the first of the troubles with single messages.
    pub(super) fn note(&mut self, what: &str) {
        if self.refused.is_none() {
            self.refused = Some(what.to_owned());
        }
    }
}
