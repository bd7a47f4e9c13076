//! When which record is polled: pure decisions, with time as an argument.
//!
//! ```text
//!   idle, by due time --due--> its host's queue --host may--> ready hosts --processors--> polling
//!          ^                          ^                                                      |
//!          |                          +-- the host failed: its queue waits for one probe     |
//!          +------------------------------- finished: next slot, or a delay ----------------+
//! ```
//!
//! - A record has a *slot*, its uid modulo its interval on the wall clock, so
//!   that the rhythm survives restarts and records do not bunch.
//! - Records of one maildrop are polled one after the other.
//! - Hosts take turns: ten thousand due records of one provider do not stand
//!   in front of the one record of another.
//! - A host that failed, or has not been seen to answer yet, may not take all
//!   processors: a quarter is kept for hosts that answer ([`reserve`]), and one
//!   whose turn never comes displaces a session that has heard nothing
//!   ([`Step::Yield`]).
//! - An idle record costs a table entry and nothing else: no task, no timer.

mod delays;
mod entries;
mod hosts;
mod rest;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::code::Code;
use crate::domain::work::{RecordKey, Settings};

pub use self::delays::{FIRST_LOCAL_DELAY, LONGEST_DELAY, LONGEST_LOGIN_DELAY, LONGEST_SPREAD};
use self::entries::{Entry, State};
use self::hosts::{Host, Trust};
pub use self::rest::Rest;
use super::report::Scope;

/// A moment: milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// `wait` later.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(millis(wait)))
    }

    /// How long after `earlier` this is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Names a record of the scheduler; not reused while its record is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u32);

/// What the scheduler follows of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Simultaneous polls; 0 starts none.
    pub processors: u32,
    /// Simultaneous polls of one host; 0 is no limit.
    pub host_connections: u32,
    /// How long a failed host is left alone.
    pub delay_failed_hosts: Duration,
    /// How long a failed account is left alone, the first time.
    pub delay_failed_accounts: Duration,
}

impl From<&Settings> for Rules {
    fn from(settings: &Settings) -> Self {
        Self {
            processors: settings.processors,
            host_connections: settings.host_connections,
            delay_failed_hosts: settings.delay_failed_hosts,
            delay_failed_accounts: settings.delay_failed_accounts,
        }
    }
}

/// What the scheduler knows of a record.
#[derive(Clone, Debug)]
pub struct Timing {
    /// Whose.
    pub key: RecordKey,
    /// Its phase.
    pub uid: u64,
    /// Its rhythm; `None` is not polled.
    pub interval: Option<Duration>,
    /// The remote host; its letters' case does not count.
    pub host: Arc<str>,
    /// Its port: services on other ports fail on their own.
    pub port: u16,
    /// Tells the maildrops of a host apart: those of an equal number are polled
    /// one after the other, since POP3 gives a maildrop to one session at a
    /// time (RFC 1939, section 4).
    pub maildrop: u64,
}

/// What is known of a record from an earlier run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// The end of its last poll.
    pub last_poll: Option<Moment>,
    /// A delay that still holds: not before.
    pub not_before: Option<Moment>,
    /// Failures in a row.
    pub failures: u16,
    /// Logins refused in a row.
    pub refused: u16,
    /// Its host answered at the last poll.
    pub answered: bool,
    /// Whatever all that says: due now, not spread.
    pub at_once: bool,
}

/// How a poll ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Why it failed, if it did.
    pub failure: Option<(Code, Scope)>,
    /// The server's wish (LOGIN-DELAY, RFC 2449, section 6.5).
    pub login_delay: Option<Duration>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start polling this record, and say [`Scheduler::finished`] in the end.
    Poll(Id),
    /// End this poll: it has heard nothing from its host for [`PATIENCE`],
    /// while others wait for its place. It comes again in the rear.
    Yield(Id),
    /// Ask again then, or when something changed.
    Wait(Option<Moment>),
}

/// How long a session may hear nothing from a host not known to answer, once
/// others wait for its processor: at a record's first turn and at its second.
/// Behind those it is left to its deadlines. Most hosts are heard within the
/// first, so that a start among many silent ones takes seconds.
pub const PATIENCE: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(3)];

/// Processors kept for hosts that are known to answer.
pub fn reserve(processors: u32) -> u32 {
    match processors {
        0 | 1 => 0,
        2..=7 => 1,
        more => more / 4,
    }
}

/// Decides; see the module's page.
#[derive(Debug)]
pub struct Scheduler {
    rules: Rules,
    entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    by_key: HashMap<RecordKey, u32>,
    hosts: Vec<Option<Host>>,
    free_hosts: Vec<u32>,
    by_host: HashMap<(Arc<str>, u16), u32>,
    timed: BTreeSet<(Moment, u32)>,
    failed: BTreeSet<(Moment, u32)>,
    /// Hosts that may be polled: those that answer, and the others.
    ready: VecDeque<u32>,
    doubtful_ready: VecDeque<u32>,
    /// Maildrops that are being polled, by host.
    busy: HashSet<(u32, u64)>,
    polling: u32,
    doubtful: u32,
    /// Doubtful sessions by the end of [`PATIENCE`], for [`Step::Yield`].
    unheard: BTreeSet<(Moment, u32)>,
    /// Simultaneous polls of hosts that have a limit of their own.
    limits: HashMap<(Arc<str>, u16), u32>,
    /// Sessions told to make room.
    yielding: u32,
    scheduled: u32,
    /// The present or the next time in which nothing begins.
    rest: Option<Rest>,
}

impl Scheduler {
    /// An empty one.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            entries: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            hosts: Vec::new(),
            free_hosts: Vec::new(),
            by_host: HashMap::new(),
            timed: BTreeSet::new(),
            failed: BTreeSet::new(),
            ready: VecDeque::new(),
            doubtful_ready: VecDeque::new(),
            busy: HashSet::new(),
            polling: 0,
            doubtful: 0,
            unheard: BTreeSet::new(),
            limits: HashMap::new(),
            yielding: 0,
            scheduled: 0,
            rest: None,
        }
    }

    /// Follows new rules from now on. Running polls end by themselves.
    pub fn follow(&mut self, rules: Rules, now: Moment) {
        let shorter = rules.delay_failed_hosts < self.rules.delay_failed_hosts;
        self.rules = rules;
        if shorter {
            let latest = now.after(rules.delay_failed_hosts);
            let late: Vec<u32> =
                self.failed.iter().filter(|(until, _)| *until > latest).map(|(_, host)| *host).collect();
            for host in late {
                self.fail_until(host, latest);
            }
        }
        self.offer_all();
    }

    /// Simultaneous polls of these hosts (names in lower case), in the place of
    /// the rules' number: this process has a part of them only.
    pub fn limit(&mut self, hosts: HashMap<(Arc<str>, u16), u32>) {
        if self.limits != hosts {
            self.limits = hosts;
            self.offer_all();
        }
    }

    fn offer_all(&mut self) {
        self.ready.clear();
        self.doubtful_ready.clear();
        for host in 0..self.hosts.len() {
            if let Some(host) = self.host_mut(index(host)) {
                host.ready = false;
            }
            self.offer(index(host));
        }
    }

    /// Adds a record with its `past`, or takes up a change of it. `again`: what
    /// changed may make a poll succeed that failed, so it is polled soon, and
    /// its failures are forgotten.
    pub fn put(&mut self, timing: &Timing, past: Past, again: bool, now: Moment) -> Id {
        let interval = timing.interval.map_or(0, |every| millis(every).max(1));
        let host = self.host(&timing.host, timing.port);
        if let Some(&id) = self.by_key.get(&timing.key) {
            self.change(id, timing, interval, host, again, now);
            return Id(id);
        }
        let entry = Entry {
            key: timing.key.clone(),
            uid: timing.uid,
            maildrop: timing.maildrop,
            interval,
            host,
            state: State::Off,
            due: now,
            last_start: past.last_poll.unwrap_or_default(),
            failures: past.failures,
            refused: past.refused,
            turns: 0,
            again: false,
            gone: false,
        };
        let id = if let Some(id) = self.free.pop() {
            self.set(id, Some(entry));
            id
        } else {
            self.entries.push(Some(entry));
            index(self.entries.len() - 1)
        };
        self.by_key.insert(timing.key.clone(), id);
        if let Some(host) = self.host_mut(host) {
            host.records += 1;
            if past.answered && host.trust == Trust::Unknown {
                host.trust = Trust::Answers;
            }
        }
        if interval > 0 {
            self.scheduled += 1;
            let due = self.first_due(id, past, now);
            self.sleep(id, due);
        }
        Id(id)
    }

    /// Forgets a record; one that is being polled, once its poll has ended.
    /// Returns whether it is being polled.
    pub fn remove(&mut self, key: &RecordKey) -> bool {
        let Some(&id) = self.by_key.get(key) else { return false };
        self.rouse(id);
        let Some(entry) = self.entry_mut(id) else { return false };
        if matches!(entry.state, State::Polling { .. }) {
            entry.gone = true;
            return true;
        }
        self.drop_entry(id);
        false
    }

    /// What to do at `now`. To be called until it says [`Step::Wait`].
    pub fn step(&mut self, now: Moment) -> Step {
        if self.rest.is_some_and(|rest| rest.until <= now) {
            self.rest(None, now);
        }
        while let Some(&(until, host)) = self.failed.first()
            && until <= now
        {
            self.failed.pop_first();
            if let Some(host) = self.host_mut(host) {
                host.until = None;
            }
            self.offer(host);
        }
        while let Some(&(due, id)) = self.timed.first()
            && due <= now
        {
            self.timed.pop_first();
            self.enqueue(id);
        }
        if let Some(rest) = self.rest.filter(|rest| rest.holds(now)) {
            return Step::Wait(Some(rest.until));
        }
        if let Some(id) = self.choose() {
            self.start(id, now);
            return Step::Poll(Id(id));
        }
        let mut wake = [self.timed.first(), self.failed.first()].into_iter().flatten().map(|at| at.0).min();
        // Somebody is ready, and no processor is free: who has heard nothing
        // makes room.
        let waiting = self.ready.len() + self.doubtful_ready.len();
        if waiting > self.yielding as usize
            && self.polling <= self.rules.processors
            && let Some(&(patience, id)) = self.unheard.first()
        {
            if patience <= now {
                self.unheard.pop_first();
                if let Some(Entry { state: State::Polling { yielding, .. }, .. }) = self.entry_mut(id) {
                    *yielding = true;
                    self.yielding += 1;
                }
                return Step::Yield(Id(id));
            }
            wake = Some(wake.map_or(patience, |wake| wake.min(patience)));
        }
        Step::Wait(wake)
    }

    /// The record's host is heard from: from now on it counts as one that
    /// answers. Returns at once for anything else than a running poll.
    pub fn answered(&mut self, id: Id) {
        let Some(entry) = self.entry_mut(id.0) else { return };
        let State::Polling { patience, at, maildrop, doubtful, yielding } = entry.state else { return };
        entry.state = State::Polling { patience, at, maildrop, doubtful: false, yielding: false };
        self.yielding -= u32::from(yielding);
        if doubtful {
            self.doubtful -= 1;
            self.unheard.remove(&(patience, id.0));
        }
        self.trust(at);
    }

    /// A poll has ended. Returns when the record is polled next, if it is.
    pub fn finished(&mut self, id: Id, end: End, now: Moment) -> Option<Moment> {
        let entry = self.entry(id.0)?;
        let State::Polling { patience, at, maildrop, doubtful, yielding } = entry.state else { return None };
        let gone = entry.gone;
        self.busy.remove(&(at, maildrop));
        self.polling -= 1;
        self.yielding -= u32::from(yielding);
        if doubtful {
            self.doubtful -= 1;
            self.unheard.remove(&(patience, id.0));
        }
        if let Some(host) = self.host_mut(at) {
            host.polling -= 1;
        }
        let yielded = yielding && matches!(end.failure, Some((Code::Interrupted, _)));
        match end.failure {
            Some((_, Scope::Host)) => self.fail_until(at, now.after(self.rules.delay_failed_hosts)),
            Some((Code::Interrupted | Code::Internal, _)) => {}
            // Trouble on this side of the session tells nothing of the host.
            Some((_, Scope::Local)) if doubtful => {}
            _ => self.trust(at),
        }
        if let Some(entry) = self.entry_mut(id.0) {
            entry.state = State::Off;
        }
        if gone {
            self.drop_entry(id.0);
        }
        self.vacate(at);
        self.offer(at);
        let due = self.next_due(id.0, end, yielded, now)?;
        self.sleep(id.0, due);
        self.next(id)
    }

    /// In the place of [`Scheduler::finished`]: the poll did not take place,
    /// since so many logins were `refused` before and the next one shall wait
    /// `until` then. A change of the record that came meanwhile goes before.
    pub fn hold(&mut self, id: Id, until: Moment, refused: u16, now: Moment) -> Option<Moment> {
        let changed = self.entry(id.0)?.again;
        let end = End { failure: Some((Code::Interrupted, Scope::Local)), login_delay: None };
        let next = self.finished(id, end, now)?;
        if changed {
            return Some(next);
        }
        self.recall(id, refused);
        let interval = self.entry(id.0)?.interval;
        // A clock may have been wrong.
        let longest = now.after(LONGEST_DELAY.max(Duration::from_millis(interval)));
        self.rouse(id.0);
        self.sleep(id.0, until.min(longest).max(now));
        self.next(id)
    }

    /// So many logins were refused in a row before this run: the next that is
    /// refused counts on from there.
    pub fn recall(&mut self, id: Id, refused: u16) {
        if let Some(entry) = self.entry_mut(id.0) {
            entry.refused = entry.refused.max(refused);
        }
    }

    /// When a record is polled next: `None` while it is polled, or never.
    pub fn next(&self, id: Id) -> Option<Moment> {
        let entry = self.entry(id.0)?;
        let until = self.hosts.get(entry.host as usize)?.as_ref()?.until;
        match entry.state {
            State::Idle | State::Queued => {
                let due = until.map_or(entry.due, |until| until.max(entry.due));
                Some(self.rest.filter(|rest| rest.holds(due)).map_or(due, |rest| rest.until))
            }
            State::Off | State::Polling { .. } => None,
        }
    }

    /// How long after it was due its last poll began.
    pub fn lag(&self, id: Id) -> Duration {
        self.entry(id.0).map_or(Duration::ZERO, |entry| entry.last_start.since(entry.due))
    }

    /// The record's name.
    pub fn key(&self, id: Id) -> Option<&RecordKey> {
        Some(&self.entry(id.0)?.key)
    }

    /// The record of that name.
    pub fn find(&self, key: &RecordKey) -> Option<Id> {
        self.by_key.get(key).copied().map(Id)
    }

    /// Failures in a row.
    pub fn failures(&self, id: Id) -> u16 {
        self.entry(id.0).map_or(0, |entry| entry.failures)
    }

    /// Figures for metrics.
    pub fn figures(&self, now: Moment) -> Figures {
        let mut figures = Figures {
            records: index(self.by_key.len()),
            scheduled: self.scheduled,
            polling: self.polling,
            failed_hosts: index(self.failed.len()),
            rate: self
                .entries
                .iter()
                .flatten()
                .filter(|entry| entry.interval > 0)
                .map(|entry| 1000.0 / entry.interval as f64)
                .sum(),
            ..Figures::default()
        };
        for host in self.hosts.iter().flatten() {
            let queued = index(host.queue.len());
            if host.until.is_none() && !self.is_resting(now) {
                figures.overdue += queued;
                let oldest = host.queue.iter().filter_map(|id| self.entry(*id)).map(|entry| entry.due).min();
                figures.lag = figures.lag.max(oldest.map_or(Duration::ZERO, |due| now.since(due)));
            }
        }
        figures
    }
}

/// What [`Scheduler::figures`] counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// All records.
    pub records: u32,
    /// Of these such as are polled.
    pub scheduled: u32,
    /// Being polled now.
    pub polling: u32,
    /// Due, and waiting for a processor or a connection to their host.
    pub overdue: u32,
    /// Hosts that are left alone.
    pub failed_hosts: u32,
    /// How long the first of the overdue has been waiting.
    pub lag: Duration,
    /// Polls a second, by the records' intervals.
    pub rate: f64,
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
