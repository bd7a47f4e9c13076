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
//! - Hosts take turns: ten thousand due records of one provider do not stand
//!   in front of the one record of another.
//! - A host that failed, or has not been seen to answer yet, may not take all
//!   processors: a quarter is kept for hosts that answer ([`reserve`]), and one
//!   whose turn never comes displaces a session that has heard nothing
//!   ([`Step::Yield`]).
//! - An idle record costs a table entry and nothing else: no task, no timer.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::code::Code;
use crate::domain::work::{RecordKey, Settings};

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

/// Back-off ends here.
pub const LONGEST_DELAY: Duration = Duration::from_hours(6);
/// Overdue polls are spread over this, or over a fifth of their interval.
pub const LONGEST_SPREAD: Duration = Duration::from_mins(1);
/// The spread grows by this with each record: a handful needs none.
const SPREAD_PER_RECORD: Duration = Duration::from_millis(20);
/// The first wait when the destination or this machine is in trouble.
pub const FIRST_LOCAL_DELAY: Duration = Duration::from_secs(30);
/// A server asking for more than this with LOGIN-DELAY is not believed.
pub const LONGEST_LOGIN_DELAY: Duration = Duration::from_hours(24);
/// How long a session may hear nothing from a host not known to answer, once
/// others wait for its processor.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Processors kept for hosts that are known to answer.
pub fn reserve(processors: u32) -> u32 {
    match processors {
        0 | 1 => 0,
        2..=7 => 1,
        more => more / 4,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not to be polled.
    Off,
    /// In `timed`.
    Idle,
    /// In its host's queue.
    Queued,
    Polling {
        since: Moment,
        /// The host of the session: the record's may have changed since.
        at: u32,
        /// Counts among the doubtful: the host has not been heard.
        doubtful: bool,
        /// Was told to end.
        yielding: bool,
    },
}

#[derive(Debug)]
struct Entry {
    key: RecordKey,
    uid: u64,
    /// Milliseconds; 0 is not polled.
    interval: u64,
    host: u32,
    state: State,
    due: Moment,
    last_start: Moment,
    failures: u16,
    /// Had its turn with a host that said nothing: next time no yielding.
    patient: bool,
    /// Changed while it was polled: again at once.
    again: bool,
    /// Removed while it was polled.
    gone: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Unknown,
    Answers,
    /// Failed; one probe at a time.
    Failed,
}

#[derive(Debug)]
struct Host {
    name: (Arc<str>, u16),
    records: u32,
    polling: u32,
    trust: Trust,
    /// Left alone until then; in `failed`.
    until: Option<Moment>,
    queue: VecDeque<u32>,
    /// In one of the ready queues.
    ready: bool,
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
    polling: u32,
    doubtful: u32,
    /// Doubtful sessions by their start, for [`Step::Yield`].
    unheard: BTreeSet<(Moment, u32)>,
    /// Sessions told to make room.
    yielding: u32,
    scheduled: u32,
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
            polling: 0,
            doubtful: 0,
            unheard: BTreeSet::new(),
            yielding: 0,
            scheduled: 0,
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
            self.change(id, timing.uid, interval, host, again, now);
            return Id(id);
        }
        let entry = Entry {
            key: timing.key.clone(),
            uid: timing.uid,
            interval,
            host,
            state: State::Off,
            due: now,
            last_start: past.last_poll.unwrap_or_default(),
            failures: past.failures,
            patient: false,
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
            && let Some(&(since, id)) = self.unheard.first()
        {
            let patience = since.after(PATIENCE);
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
        let State::Polling { since, at, doubtful, yielding } = entry.state else { return };
        entry.state = State::Polling { since, at, doubtful: false, yielding: false };
        self.yielding -= u32::from(yielding);
        if doubtful {
            self.doubtful -= 1;
            self.unheard.remove(&(since, id.0));
        }
        self.trust(at);
    }

    /// A poll has ended. Returns when the record is polled next, if it is.
    pub fn finished(&mut self, id: Id, end: End, now: Moment) -> Option<Moment> {
        let entry = self.entry(id.0)?;
        let State::Polling { since, at, doubtful, yielding } = entry.state else { return None };
        let gone = entry.gone;
        self.polling -= 1;
        self.yielding -= u32::from(yielding);
        if doubtful {
            self.doubtful -= 1;
            self.unheard.remove(&(since, id.0));
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

    /// In a run that polls each record once: takes the records that are due and
    /// wait for a host (in lower case). They will not be polled.
    pub fn abandon_host(&mut self, host: &str, port: u16) -> Vec<Id> {
        let Some(&host) = self.by_host.get(&(Arc::from(host), port)) else { return Vec::new() };
        let others: Vec<u32> =
            self.host_mut(host).map(|host| host.queue.drain(..).collect()).unwrap_or_default();
        for other in &others {
            if let Some(entry) = self.entry_mut(*other) {
                entry.state = State::Off;
            }
        }
        others.into_iter().map(Id).collect()
    }

    /// The hosts that are left alone, and until when.
    pub fn failed_hosts(&self) -> impl Iterator<Item = (&str, u16, Moment)> {
        self.failed.iter().filter_map(|(until, at)| {
            let host = self.hosts.get(*at as usize)?.as_ref()?;
            Some((&*host.name.0, host.name.1, *until))
        })
    }

    /// Goes on leaving a host alone that an earlier run found to have failed,
    /// if a record is there; not longer than a failure would make it now.
    pub fn leave_alone(&mut self, host: &str, port: u16, until: Moment, now: Moment) {
        let until = until.min(now.after(self.rules.delay_failed_hosts));
        if until > now
            && let Some(&at) = self.by_host.get(&(Arc::from(host.to_ascii_lowercase()), port))
        {
            self.fail_until(at, until);
        }
    }

    /// When a record is polled next: `None` while it is polled, or never.
    pub fn next(&self, id: Id) -> Option<Moment> {
        let entry = self.entry(id.0)?;
        let until = self.hosts.get(entry.host as usize)?.as_ref()?.until;
        match entry.state {
            State::Idle | State::Queued => Some(until.map_or(entry.due, |until| until.max(entry.due))),
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
            if host.until.is_none() {
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

/// Spreads what is equal for many: a number in `0..width` that is stable for
/// a record.
fn share(uid: u64, width: u64) -> u64 {
    if width == 0 { 0 } else { uid.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32) % width }
}

impl Scheduler {
    fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)?.as_ref()
    }

    fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_mut()
    }

    fn set(&mut self, id: u32, entry: Option<Entry>) {
        if let Some(slot) = self.entries.get_mut(id as usize) {
            *slot = entry;
        }
    }

    fn host_mut(&mut self, host: u32) -> Option<&mut Host> {
        self.hosts.get_mut(host as usize)?.as_mut()
    }

    fn host(&mut self, name: &Arc<str>, port: u16) -> u32 {
        let lower: Arc<str> = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            name.to_ascii_lowercase().into()
        } else {
            Arc::clone(name)
        };
        let name = (lower, port);
        if let Some(&host) = self.by_host.get(&name) {
            return host;
        }
        let host = Host {
            name: name.clone(),
            records: 0,
            polling: 0,
            trust: Trust::Unknown,
            until: None,
            queue: VecDeque::new(),
            ready: false,
        };
        let at = if let Some(at) = self.free_hosts.pop() {
            if let Some(slot) = self.hosts.get_mut(at as usize) {
                *slot = Some(host);
            }
            at
        } else {
            self.hosts.push(Some(host));
            index(self.hosts.len() - 1)
        };
        self.by_host.insert(name, at);
        at
    }

    fn leave_host(&mut self, at: u32) {
        if let Some(host) = self.host_mut(at) {
            host.records -= 1;
        }
        self.vacate(at);
        self.offer(at);
    }

    /// Forgets a host that nobody needs.
    fn vacate(&mut self, at: u32) {
        let Some(host) = self.host_mut(at) else { return };
        if host.records > 0 || host.polling > 0 {
            return;
        }
        let (name, until) = (host.name.clone(), host.until);
        if let Some(until) = until {
            self.failed.remove(&(until, at));
        }
        self.ready.retain(|other| *other != at);
        self.doubtful_ready.retain(|other| *other != at);
        self.by_host.remove(&name);
        if let Some(slot) = self.hosts.get_mut(at as usize) {
            *slot = None;
        }
        self.free_hosts.push(at);
    }

    fn change(&mut self, id: u32, uid: u64, interval: u64, host: u32, again: bool, now: Moment) {
        let Some(entry) = self.entry(id) else { return };
        let polling = matches!(entry.state, State::Polling { .. });
        let moved = entry.host != host;
        let (old_host, old_interval, old_due) = (entry.host, entry.interval, entry.due);
        if !polling {
            self.rouse(id);
        }
        if moved {
            if let Some(host) = self.host_mut(host) {
                host.records += 1;
            }
            self.leave_host(old_host);
        }
        self.scheduled = self.scheduled + u32::from(interval > 0) - u32::from(old_interval > 0);
        let Some(entry) = self.entry_mut(id) else { return };
        entry.uid = uid;
        entry.interval = interval;
        entry.host = host;
        entry.gone = false;
        if again {
            entry.failures = 0;
            entry.again = polling;
            // Perhaps it was not the host, but how this record spoke to it:
            // the record is the probe.
        }
        if again {
            self.release(host);
        }
        if polling || interval == 0 {
            return;
        }
        let due = if again || old_interval == 0 {
            self.soon(id, now)
        } else if old_interval == interval {
            old_due
        } else {
            // A delay that is under way is not shortened by a new rhythm.
            let slot = self.slot(id, now);
            if self.entry(id).is_some_and(|entry| entry.failures > 0) { old_due.max(slot) } else { slot }
        };
        self.sleep(id, due);
    }

    fn drop_entry(&mut self, id: u32) {
        let Some(entry) = self.entries.get_mut(id as usize).and_then(Option::take) else { return };
        self.by_key.remove(&entry.key);
        self.scheduled -= u32::from(entry.interval > 0);
        self.free.push(id);
        self.leave_host(entry.host);
    }

    /// Takes a record out of whatever it waits in.
    fn rouse(&mut self, id: u32) {
        let Some(entry) = self.entry_mut(id) else { return };
        let (state, due, host) = (entry.state, entry.due, entry.host);
        match state {
            State::Idle => {
                self.timed.remove(&(due, id));
            }
            State::Queued => {
                if let Some(host) = self.host_mut(host) {
                    host.queue.retain(|other| *other != id);
                }
            }
            State::Off | State::Polling { .. } => return,
        }
        if let Some(entry) = self.entry_mut(id) {
            entry.state = State::Off;
        }
    }

    fn sleep(&mut self, id: u32, due: Moment) {
        if let Some(entry) = self.entry_mut(id) {
            entry.state = State::Idle;
            entry.due = due;
            self.timed.insert((due, id));
        }
    }

    fn enqueue(&mut self, id: u32) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.state = State::Queued;
        let host = entry.host;
        if let Some(host) = self.host_mut(host) {
            host.queue.push_back(id);
        }
        self.offer(host);
    }

    /// Puts a host among the ready ones if a record of it may be polled.
    fn offer(&mut self, at: u32) {
        let limit = self.rules.host_connections;
        let Some(host) = self.host_mut(at) else { return };
        let limit = match host.trust {
            Trust::Failed => 1,
            _ if limit == 0 => u32::MAX,
            _ => limit,
        };
        if host.ready || host.until.is_some() || host.queue.is_empty() || host.polling >= limit {
            return;
        }
        host.ready = true;
        if host.trust == Trust::Answers {
            self.ready.push_back(at);
        } else {
            self.doubtful_ready.push_back(at);
        }
    }

    /// Ends a failed host's delay.
    fn release(&mut self, at: u32) {
        if let Some(until) = self.host_mut(at).and_then(|host| host.until.take()) {
            self.failed.remove(&(until, at));
            self.offer(at);
        }
    }

    fn retract(&mut self, at: u32) {
        if let Some(host) = self.host_mut(at)
            && std::mem::take(&mut host.ready)
        {
            self.ready.retain(|other| *other != at);
            self.doubtful_ready.retain(|other| *other != at);
        }
    }

    fn trust(&mut self, at: u32) {
        let Some(host) = self.host_mut(at) else { return };
        let until = host.until.take();
        if host.trust != Trust::Answers {
            host.trust = Trust::Answers;
            self.retract(at);
        }
        if let Some(until) = until {
            self.failed.remove(&(until, at));
        }
        self.offer(at);
    }

    fn fail_until(&mut self, at: u32, until: Moment) {
        let Some(host) = self.host_mut(at) else { return };
        host.trust = Trust::Failed;
        let before = host.until.replace(until);
        self.retract(at);
        if let Some(before) = before {
            self.failed.remove(&(before, at));
        }
        self.failed.insert((until, at));
    }

    /// The record whose turn it is.
    fn choose(&mut self) -> Option<u32> {
        if self.polling >= self.rules.processors {
            return None;
        }
        let room = self.rules.processors - reserve(self.rules.processors);
        loop {
            let at = if let Some(at) = self.ready.pop_front() {
                at
            } else if self.doubtful < room {
                self.doubtful_ready.pop_front()?
            } else {
                return None;
            };
            let Some(host) = self.host_mut(at) else { continue };
            host.ready = false;
            if host.until.is_none()
                && let Some(id) = host.queue.pop_front()
            {
                return Some(id);
            }
        }
    }

    fn start(&mut self, id: u32, now: Moment) {
        let Some(at) = self.entry(id).map(|entry| entry.host) else { return };
        let doubtful = self.host_mut(at).is_some_and(|host| {
            host.polling += 1;
            host.trust != Trust::Answers
        });
        self.polling += 1;
        self.doubtful += u32::from(doubtful);
        let Some(entry) = self.entry_mut(id) else { return };
        entry.state = State::Polling { since: now, at, doubtful, yielding: false };
        entry.last_start = now;
        entry.again = false;
        let patient = std::mem::take(&mut entry.patient);
        if doubtful && !patient {
            self.unheard.insert((now, id));
        }
        self.offer(at);
    }

    /// The next slot of a record: at least half an interval after its last
    /// poll began, so that an early poll is not followed at once by another.
    fn slot(&self, id: u32, now: Moment) -> Moment {
        let Some(entry) = self.entry(id) else { return now };
        let interval = entry.interval.max(1);
        let earliest = now.0.max(entry.last_start.0.min(now.0).saturating_add(interval / 2));
        let phase = entry.uid % interval;
        let past = (earliest + interval - phase) % interval;
        Moment(earliest.saturating_add(interval - past))
    }

    /// At once, but not together with all others.
    fn soon(&self, id: u32, now: Moment) -> Moment {
        let Some(entry) = self.entry(id) else { return now };
        let spread = millis(LONGEST_SPREAD)
            .min(entry.interval / 5)
            .min(millis(SPREAD_PER_RECORD) * u64::from(self.scheduled.saturating_sub(1)));
        Moment(now.0 + share(entry.uid, spread))
    }

    fn first_due(&self, id: u32, past: Past, now: Moment) -> Moment {
        let Some(interval) = self.entry(id).map(|entry| entry.interval) else { return now };
        if past.at_once {
            return now;
        }
        let due = match past.last_poll {
            Some(last) if last <= now && now.0 - last.0 < interval => {
                // Its slot may have passed while nothing ran.
                let slot = self.slot(id, last);
                if slot <= now { self.soon(id, now) } else { slot }
            }
            _ => self.soon(id, now),
        };
        // Not longer than any delay of ours can be: a clock may have been wrong.
        let longest = now.after(LONGEST_DELAY.max(Duration::from_millis(interval)));
        due.max(past.not_before.unwrap_or(due).min(longest))
    }

    fn next_due(&mut self, id: u32, end: End, yielded: bool, now: Moment) -> Option<Moment> {
        let rules = self.rules;
        let entry = self.entry_mut(id)?;
        if entry.interval == 0 {
            return None;
        }
        if std::mem::take(&mut entry.again) {
            return Some(now);
        }
        if yielded {
            entry.patient = true;
            return Some(now);
        }
        match end.failure {
            None => entry.failures = 0,
            Some((Code::Interrupted, _)) => {}
            Some(_) => entry.failures = entry.failures.saturating_add(1),
        }
        let (uid, interval, failures) = (entry.uid, entry.interval, entry.failures);
        let slot = self.slot(id, now);
        // Doubles with each failure in a row; never shorter than `first`.
        let backoff = |first: Duration, longest: Duration| {
            let first = millis(first);
            let doubled = first.saturating_mul(1_u64 << u64::from(failures.saturating_sub(1)).min(32));
            let wait = doubled.min(millis(longest)).max(first);
            Moment(now.0.saturating_add(wait).saturating_add(share(uid, (wait / 10).min(60_000))))
        };
        let delay = rules.delay_failed_accounts;
        let due = match end.failure {
            None | Some((Code::Interrupted, _)) => slot,
            // The host's own delay is what counts; then its records come one
            // after the other.
            Some((_, Scope::Host)) => now.after(rules.delay_failed_hosts),
            // Such a login, repeated, locks the account: never more often than
            // the rhythm, and ever more seldom.
            Some((Code::AuthFailed | Code::AuthUnavailable | Code::UidsChanged | Code::UidlMissing, _)) => {
                backoff(delay, LONGEST_DELAY).max(slot)
            }
            Some((_, Scope::Account)) => backoff(delay, delay),
            Some((_, Scope::Local)) => {
                let first = FIRST_LOCAL_DELAY.min(Duration::from_millis(interval));
                backoff(first, delay.max(Duration::from_millis(interval)))
            }
        };
        let wish = end.login_delay.map_or(now, |wish| now.after(wish.min(LONGEST_LOGIN_DELAY)));
        Some(due.max(wish))
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
