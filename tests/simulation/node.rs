//! Processes: a worker around `Member`, a controller around `Leader`. They do
//! as little as a driver can: requests, watches, sessions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rpop::domain::shards::holding::{Member, Observation, ShardSeen};
use rpop::domain::shards::leader::{Decree, Leader, RecordSeen, SliceSeen, Workers};
use rpop::domain::shards::timing::Boot;
use rpop::domain::shards::{Incarnation, ShardId};
use rpop::domain::work::RecordKey;

use super::owed::Debt;

/// A clock that started at its own time and is a little fast or slow.
#[derive(Clone, Copy)]
pub struct Clock {
    pub offset: u64,
    /// Milliseconds that it counts in a million.
    pub rate: u64,
}

impl Clock {
    pub fn at(self, now: u64) -> Boot {
        Boot(self.offset + u64::try_from(u128::from(now) * u128::from(self.rate) / 1_000_000).unwrap())
    }

    /// The first moment at which it shows `boot`.
    pub fn when(self, boot: Boot) -> u64 {
        if boot == Boot::NEVER {
            return u64::MAX;
        }
        let since = u128::from(boot.0.saturating_sub(self.offset));
        u64::try_from(since * 1_000_000 / u128::from(self.rate)).unwrap() + 1
    }
}

/// What may hinder a process.
#[derive(Clone, Copy, Default)]
pub struct Hindrance {
    /// SIGSTOP until then.
    pub stopped_until: u64,
    /// No way to the API server until then.
    pub cut_until: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Open,
    Fetched,
    Committed,
}

/// A session at a maildrop.
#[derive(Clone)]
pub struct Session {
    pub id: u64,
    pub shard: ShardId,
    pub epoch: i64,
    pub login: u64,
    pub stage: Stage,
    /// The ledger as it was read.
    pub version: u64,
    pub seen: BTreeSet<u64>,
    pub batch: BTreeSet<u64>,
}

/// What a worker follows.
#[derive(Default)]
pub struct Followed {
    pub epoch: i64,
    pub slices: u32,
    pub known: BTreeMap<u32, SliceSeen>,
    /// Polls may be scheduled.
    pub started: bool,
    pub draining: bool,
    /// What was told by `SlicesRead`.
    pub told: Option<BTreeMap<String, Observation>>,
}

impl Followed {
    pub fn is_complete(&self) -> bool {
        self.slices > 0 && (0..self.slices).all(|number| self.known.contains_key(&number)) || self.slices == 0
    }

    pub fn names(&self, key: &RecordKey) -> bool {
        self.known.values().any(|slice| slice.items.iter().any(|item| item.key == *key))
    }
}

pub struct Worker {
    pub pod: String,
    pub boot: u32,
    /// Counts the processes at this place; events of former ones are void.
    pub life: u64,
    pub member: Option<Member>,
    pub clock: Clock,
    pub hindrance: Hindrance,
    pub registered: bool,
    pub sessions: BTreeMap<RecordKey, Session>,
    pub owed: BTreeMap<RecordKey, Debt>,
    pub followed: BTreeMap<ShardId, Followed>,
    /// Requests under way, with what their answer is for.
    pub pending: HashMap<u64, Pending>,
    pub watching: bool,
    /// Answers and changes arrive in order.
    pub last_heard: u64,
    pub next_wake: u64,
    /// The pod is replaced by another one rather than restarted.
    pub leaving: bool,
    pub lease_healthy_since: u64,
}

impl Worker {
    pub fn me(&self) -> Incarnation {
        Incarnation::new(&self.pod, self.boot)
    }
}

/// What a worker waits for.
#[derive(Clone)]
pub enum Pending {
    Renew { sent: Boot },
    Look(ShardId),
    Follow(ShardId, i64),
    Write(ShardId, String),
    Commit(RecordKey, u64),
    Settle(RecordKey),
    List,
}

pub struct Controller {
    pub life: u64,
    /// While it leads.
    pub machine: Option<Leader>,
    /// While it does not: it counts all the same.
    pub workers: Option<Workers>,
    pub clock: Clock,
    pub hindrance: Hindrance,
    pub pending: HashMap<u64, Wanted>,
    pub watching: bool,
    pub last_heard: u64,
    pub next_read: u64,
    pub next_wake: u64,
    /// Its claim ends then unless it renews.
    pub leads_until: u64,
}

/// What a controller waits for.
#[derive(Clone)]
pub enum Wanted {
    Leases {
        sent: Boot,
        /// It was told to be late.
        late: bool,
    },
    All,
    Done(Decree),
    /// What is there instead of what the decree was to change.
    Look(Decree),
}

/// Requests at the API server.
#[derive(Clone)]
pub enum Call {
    Renew {
        by: Incarnation,
        first: bool,
        leaving: bool,
    },
    /// A worker that has left gives its lease back.
    Release(Incarnation),
    Get(ShardId),
    GetSlices(ShardId),
    GetSlice(ShardId, u32),
    Write(ShardSeen, Incarnation),
    Commit {
        key: RecordKey,
        read: u64,
        shard: ShardId,
        epoch: i64,
        batch: BTreeSet<u64>,
    },
    List,
    Leases,
    Obey(Decree),
}

pub fn records(count: usize, hosts: usize) -> Vec<RecordSeen> {
    (0..count).map(|at| record(at, host(at % hosts), 0)).collect()
}

pub fn host(at: usize) -> Arc<str> {
    format!("pop{at}.test").into()
}

/// `edit` is how often it was changed.
pub fn record(at: usize, host: Arc<str>, edit: u64) -> RecordSeen {
    let uid = (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    RecordSeen {
        key: RecordKey { namespace: "mail".into(), name: format!("r{at:04}").into() },
        maildrop: uid,
        host,
        port: 995,
        interval: Some(std::time::Duration::from_secs(20)),
        digest: uid ^ (edit << 32),
        bytes: 400,
        destination: 1,
        destination_bytes: 200,
    }
}
