//! Who is alive.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::LeaseSeen;
use crate::domain::shards::placement::{Role, Worker};
use crate::domain::shards::timing::{Boot, Timing};
use crate::domain::shards::{Incarnation, LeaseHolder};

/// A first placement waits so long at most for workers that are expected.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where nobody knows how many workers there will be: so long after the last.
const SETTLED: Duration = Duration::from_secs(1);

struct Lease {
    seen: LeaseSeen,
    /// When this version was seen first, or the count began afresh.
    since: Boot,
}

/// The membership Leases, and how long each has not been renewed.
pub(super) struct Workers {
    timing: Timing,
    leases: BTreeMap<Arc<str>, Lease>,
    /// The last complete read: when it was sent and when it was answered.
    read: Option<(Boot, Boot)>,
    /// Workers that hold shards but have no Lease: since when.
    missing: HashMap<Incarnation, Boot>,
    expected: Option<u32>,
    /// When the first worker came, and the last.
    came: Option<(Boot, Boot)>,
    /// Who takes shards, or how much, has changed.
    pub(super) changed: bool,
}

impl Workers {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            timing,
            leases: BTreeMap::new(),
            read: None,
            missing: HashMap::new(),
            expected: None,
            came: None,
            changed: true,
        }
    }

    /// The read of all Leases is repeated so often.
    pub(super) fn read_every(timing: Timing) -> Duration {
        timing.dead_after / 15
    }

    pub(super) fn expect(&mut self, workers: u32) {
        self.expected = (workers > 0).then_some(workers);
    }

    /// Every count starts afresh.
    pub(super) fn gap(&mut self, now: Boot) {
        self.leases.values_mut().for_each(|lease| lease.since = now);
        self.missing.clear();
    }

    pub(super) fn read_all(&mut self, now: Boot, sent: Boot, leases: Vec<LeaseSeen>) {
        if !self.is_current(now) {
            self.gap(now);
        }
        let names: HashSet<Arc<str>> = leases.iter().map(|lease| Arc::clone(&lease.name)).collect();
        for lease in leases {
            self.see(now, lease);
        }
        let before = self.leases.len();
        self.leases.retain(|name, _| names.contains(name));
        self.changed |= before != self.leases.len();
        self.read = Some((sent, now));
    }

    pub(super) fn see(&mut self, now: Boot, seen: LeaseSeen) {
        let before = self.leases.get(&seen.name);
        if let Some(before) = before {
            if before.seen.version == seen.version || is_older(&seen.version, &before.seen.version) {
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
        self.leases.insert(Arc::clone(&seen.name), Lease { seen, since: now });
    }

    /// Whether what is known of Leases is of now: a pause of ours, or of the
    /// API server, is no pause of the workers.
    fn is_current(&self, now: Boot) -> bool {
        self.read.is_some_and(|(_, answered)| now.since(answered) <= self.timing.dead_after / 4)
    }

    /// Whether all Leases were read by a request sent no earlier than `then`.
    pub(super) fn is_read_since(&self, then: Boot) -> bool {
        self.read.is_some_and(|(sent, _)| sent >= then)
    }

    fn is_over(&self, since: Boot) -> bool {
        self.is_read_since(since.after(self.timing.dead_after))
    }

    /// Leases whose workers have not renewed them for D.
    pub(super) fn dead(&self, now: Boot) -> Vec<(&LeaseSeen, &Incarnation)> {
        if !self.is_current(now) {
            return Vec::new();
        }
        let dead = self.leases.values().filter(|lease| self.is_over(lease.since));
        dead.filter_map(|lease| match &lease.seen.holder {
            LeaseHolder::Worker(worker) => Some((&lease.seen, worker)),
            _ => None,
        })
        .collect()
    }

    /// Leases that have been nobody's for so long that nobody will ask.
    pub(super) fn obsolete(&self) -> Vec<&LeaseSeen> {
        let old = |lease: &&Lease| self.is_read_since(lease.since.after(self.timing.dead_after * 10));
        let free = |lease: &&Lease| !matches!(lease.seen.holder, LeaseHolder::Worker(_));
        self.leases.values().filter(free).filter(old).map(|lease| &lease.seen).collect()
    }

    /// The workers that are alive as far as anybody knows, and what each may
    /// be asked.
    pub(super) fn alive(&self, now: Boot) -> Vec<Worker> {
        let late = self.timing.renew_every * 5 / 2;
        let some = self.leases.values().filter_map(|lease| {
            let LeaseHolder::Worker(name) = &lease.seen.holder else { return None };
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
        self.leases.values().filter_map(|lease| match &lease.seen.holder {
            LeaseHolder::Worker(worker) => Some((&lease.seen, worker)),
            _ => None,
        })
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
                self.is_current(now) && self.is_over(since)
            }
        }
    }
}

/// Whether version `a` is older than `b`: they are numbers that grow. What is
/// no number counts as newer.
pub(super) fn is_older(a: &str, b: &str) -> bool {
    matches!((a.parse::<u64>(), b.parse::<u64>()), (Ok(a), Ok(b)) if a < b)
}
