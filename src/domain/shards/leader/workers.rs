//! Who is alive.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::evidence::{Evidence, Meaning, Sight};
use super::{LeaseSeen, Seen};
use crate::domain::shards::placement::{Role, Worker};
use crate::domain::shards::timing::{Boot, Timing};
use crate::domain::shards::{Incarnation, LeaseHolder};

/// A first placement waits so long at most for workers that are expected.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where nobody knows how many workers there will be: so long after the last.
const SETTLED: Duration = Duration::from_secs(1);

/// Leases are read at least so often.
const SELDOM: Duration = Duration::from_secs(1);

struct Lease {
    seen: LeaseSeen,
    /// When this version was seen first, or the count began afresh.
    since: Boot,
}

impl Lease {
    fn worker(&self) -> Option<&Incarnation> {
        match &self.seen.holder {
            LeaseHolder::Worker(worker) => Some(worker),
            LeaseHolder::Stolen(_) | LeaseHolder::Nobody => None,
        }
    }
}

/// The membership Leases, and how long each has not been renewed: whoever
/// leads next counts on from there. Who does not lead keeps them by
/// [`Workers::hear`].
pub struct Workers {
    timing: Timing,
    leases: BTreeMap<Arc<str>, Lease>,
    evidence: Evidence,
    /// The Lease of whoever leads, as it was read last.
    leader: String,
    /// Workers that hold shards but have no Lease: since when.
    missing: HashMap<Incarnation, Boot>,
    expected: Option<u32>,
    /// When the first worker came, and the last.
    came: Option<(Boot, Boot)>,
    /// Who takes shards, or how much, has changed.
    pub(super) changed: bool,
}

impl Workers {
    /// Nothing was read yet.
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            leases: BTreeMap::new(),
            evidence: Evidence::new(timing),
            leader: String::new(),
            missing: HashMap::new(),
            expected: None,
            came: None,
            changed: true,
        }
    }

    /// The read of all Leases is to be repeated so often: a fail-over is as
    /// much later as the last renewal was seen late.
    pub fn read_every(&self) -> Duration {
        (self.timing.dead_after / 15).min(SELDOM)
    }

    /// A read that is not answered within that counts as failed, though its
    /// answer may still tell of Leases.
    pub fn late_after(&self) -> Duration {
        self.evidence.good_for()
    }

    /// Hears of Leases; of anything else nothing.
    pub fn hear(&mut self, now: Boot, seen: Seen) {
        match seen {
            Seen::Leases { sent, leases, leader } => self.read_all(now, sent, leases, leader),
            Seen::Unread { sent } => self.evidence.failed(now, sent),
            Seen::Lease(lease) => self.see(now, lease),
            _ => {}
        }
    }

    /// Time has passed. To be called at least every [`Workers::read_every`].
    pub fn look(&mut self, now: Boot) {
        self.evidence.look(now);
    }

    /// What people should know of the reads since the last call.
    pub fn take_notices(&mut self) -> Vec<Sight> {
        self.evidence.take_told()
    }

    /// Another term: of the last one only the counts remain.
    pub(super) fn new_term(self) -> Self {
        Self { missing: HashMap::new(), expected: None, changed: true, ..self }
    }

    pub(super) fn expect(&mut self, workers: u32) {
        self.expected = (workers > 0).then_some(workers);
    }

    fn read_all(&mut self, now: Boot, sent: Boot, leases: Vec<LeaseSeen>, leader: String) {
        if self.evidence.read().is_some_and(|read| read > sent) {
            // Overtaken by one that was sent later.
            return;
        }
        let renewed = |lease: &LeaseSeen| match self.leases.get(&lease.name) {
            Some(before) => is_newer(&lease.version, &before.seen.version),
            None => true,
        };
        let written = leader != self.leader || leases.iter().any(renewed);
        self.leader = leader;
        let less = match self.evidence.heard(now, sent, written) {
            Meaning::Silence => Duration::ZERO,
            Meaning::Less(span) => span,
            Meaning::Nothing => Duration::MAX,
        };
        let counts = self.leases.values_mut().map(|lease| &mut lease.since);
        for since in counts.chain(self.missing.values_mut()) {
            *since = since.after(less).min(now).max(*since);
        }
        let names: HashSet<Arc<str>> = leases.iter().map(|lease| Arc::clone(&lease.name)).collect();
        for lease in leases {
            self.see(now, lease);
        }
        let before = self.leases.len();
        self.leases.retain(|name, _| names.contains(name));
        self.changed |= before != self.leases.len();
    }

    pub(super) fn see(&mut self, now: Boot, seen: LeaseSeen) {
        let before = self.leases.get(&seen.name);
        if let Some(before) = before {
            if !is_newer(&seen.version, &before.seen.version) {
                return;
            }
            let same = before.seen.holder == seen.holder
                && before.seen.leaving == seen.leaving
                && before.seen.capacity == seen.capacity;
            self.changed |= !same;
        } else {
            self.changed = true;
        }
        let same_worker = before.is_some_and(|before| before.seen.holder == seen.holder);
        if !same_worker && matches!(seen.holder, LeaseHolder::Worker(_)) {
            self.came = Some((self.came.map_or(now, |(first, _)| first), now));
        }
        self.evidence.is_written(now);
        self.leases.insert(Arc::clone(&seen.name), Lease { seen, since: now });
    }

    /// Whether all Leases were read by a request sent no earlier than `then`.
    pub(super) fn is_read_since(&self, then: Boot) -> bool {
        self.evidence.read().is_some_and(|sent| sent >= then)
    }

    /// Leases whose workers have not renewed them for D. That they still have
    /// not is proved by the write that takes them.
    pub(super) fn dead(&self, now: Boot) -> Vec<(&LeaseSeen, &Incarnation)> {
        if !self.evidence.is_clear(now) {
            return Vec::new();
        }
        let silent = |lease: &&Lease| now.since(lease.since) >= self.timing.dead_after;
        let dead = self.leases.values().filter(silent);
        dead.filter_map(|lease| Some((&lease.seen, lease.worker()?))).collect()
    }

    /// When the next worker will have been silent for D unless it renews.
    pub(super) fn next_death(&self, now: Boot) -> Boot {
        let of_workers = self.leases.values().filter(|lease| lease.worker().is_some());
        let deaths = of_workers.map(|lease| lease.since.after(self.timing.dead_after));
        // What is over already waits for a read, or for its turn.
        deaths.filter(|death| *death > now).min().unwrap_or(Boot::NEVER)
    }

    /// Leases that have been nobody's for so long that nobody will ask.
    pub(super) fn obsolete(&self) -> Vec<&LeaseSeen> {
        let old = |lease: &&Lease| self.is_read_since(lease.since.after(self.timing.dead_after * 10));
        let free = |lease: &&Lease| lease.worker().is_none();
        self.leases.values().filter(free).filter(old).map(|lease| &lease.seen).collect()
    }

    /// The workers that are alive as far as anybody knows, and what each may
    /// be asked.
    pub(super) fn alive(&self, now: Boot) -> Vec<Worker> {
        let late = self.timing.renew_every * 5 / 2;
        let some = self.leases.values().filter_map(|lease| {
            let name = lease.worker()?;
            let role = if lease.seen.leaving {
                Role::Leaves
            } else if now.since(lease.since) > late {
                Role::Keeps
            } else {
                Role::Takes
            };
            Some(Worker { name: name.clone(), capacity: lease.seen.capacity.max(1), role })
        });
        let mut workers: Vec<Worker> = some.collect();
        if workers.iter().all(|worker| worker.role != Role::Takes) {
            // Late ones are better than none.
            workers
                .iter_mut()
                .filter(|worker| worker.role == Role::Keeps)
                .for_each(|worker| worker.role = Role::Takes);
        }
        workers
    }

    /// What workers say of the load of shards.
    pub(super) fn loads(&self) -> impl Iterator<Item = (&LeaseSeen, &Incarnation)> {
        self.leases.values().filter_map(|lease| Some((&lease.seen, lease.worker()?)))
    }

    /// Whether the first placement is to wait for more workers.
    pub(super) fn awaits_more(&self, now: Boot, takers: usize) -> bool {
        let Some((first, last)) = self.came else { return true };
        if now.since(first) >= PATIENCE {
            return false;
        }
        match self.expected {
            Some(expected) => takers * 5 < expected as usize * 4,
            None => now.since(last) < SETTLED,
        }
    }

    /// Whether that holder, first seen as such at `held_since`, has proved or
    /// been made unable to act. Whether it lives on is not asked where its
    /// Lease is its own: that one has to be stolen first.
    pub(super) fn is_gone(&mut self, now: Boot, holder: &Incarnation, held_since: Boot) -> bool {
        let own = |lease: &&Lease| match &lease.seen.holder {
            LeaseHolder::Worker(worker) | LeaseHolder::Stolen(worker) => worker.pod() == holder.pod(),
            LeaseHolder::Nobody => lease.seen.name.strip_prefix("rpop-worker-") == Some(holder.pod()),
        };
        let lease = self.leases.values().find(own).map(|lease| &lease.seen.holder);
        match lease {
            Some(LeaseHolder::Worker(worker)) if worker == holder => {
                self.missing.remove(holder);
                false
            }
            Some(LeaseHolder::Stolen(worker)) if worker == holder => true,
            // The Lease was its own before it held anything; read afterwards
            // it is another's, or given back: that one came later.
            Some(_) => self.is_read_since(held_since),
            None if !self.is_read_since(held_since) => false,
            None => {
                let since = *self.missing.entry(holder.clone()).or_insert(now);
                // No write to a Lease proves it here: a read has to.
                self.evidence.is_clear(now) && self.is_read_since(since.after(self.timing.dead_after))
            }
        }
    }
}

/// Whether version `a` is older than `b`: they are numbers that grow. What is
/// no number counts as newer.
pub(super) fn is_older(a: &str, b: &str) -> bool {
    matches!((a.parse::<u64>(), b.parse::<u64>()), (Ok(a), Ok(b)) if a < b)
}

fn is_newer(a: &str, b: &str) -> bool {
    a != b && !is_older(a, b)
}
