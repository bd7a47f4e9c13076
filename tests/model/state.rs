//! What there is: the objects of the API server, the processes, the maildrop.
//! Small enough to be enumerated: two pods, at most two shards, one record
//! with one message.

/// Pods of workers.
pub const PODS: usize = 2;
/// Shards at most.
pub const SHARDS: usize = 2;
/// Leaders at most: one of them may be out of date.
pub const LEADERS: usize = 2;

/// An incarnation of a worker: its pod, and which start of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inc {
    pub pod: u8,
    pub boot: u8,
}

/// Who a membership lease names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Holder {
    Lives(Inc),
    Stolen(Inc),
}

impl Holder {
    pub fn inc(self) -> Inc {
        match self {
            Self::Lives(inc) | Self::Stolen(inc) => inc,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    pub version: u8,
    pub holder: Holder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shard {
    pub version: u8,
    pub desired: Inc,
    pub holder: Inc,
    pub epoch: u8,
    /// What of its slice the holder works by.
    pub observed: Observed,
}

/// One object of a slice's name, at one of its generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Observed {
    pub object: u8,
    pub generation: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    pub is: Observed,
    /// The record is in it.
    pub has: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ledger {
    pub version: u8,
    pub shard: u8,
    pub epoch: u8,
    /// The message is known to be accepted.
    pub done: bool,
}

/// The maildrop and the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Maildrop {
    /// The message is still there.
    pub present: bool,
    pub delivered: u8,
    /// Batches that were given up before their commit was known.
    pub aborted: u8,
    /// Sessions so far.
    pub logins: u8,
}

/// A request on its way to the API server; it may arrive after its sender's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Request {
    Renew { by: Inc, expect: u8 },
    Status { by: Inc, shard: u8, expect: u8, holder: Inc, epoch: u8, observed: Observed },
    Commit { by: Inc, shard: u8, expect: u8, epoch: u8 },
}

impl Request {
    pub fn by(self) -> Inc {
        match self {
            Self::Renew { by, .. } | Self::Status { by, .. } | Self::Commit { by, .. } => by,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Life {
    Off,
    Running,
    /// All sockets closed: its membership may be taken for dead.
    Fenced,
    /// Stopped with its sockets open; `late`: its membership was taken for
    /// dead meanwhile, so its clock says so when it wakes.
    Paused {
        late: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    None,
    Open,
    /// The destination has the message.
    Fetched,
    /// The commit is on its way.
    Committing,
    Committed,
    /// DELE was answered; QUIT makes it so.
    Deleted,
    /// The session is closed, its batch is not known to be committed.
    Owed,
    /// ... and its commit is on its way again.
    Repaying,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    pub stage: Stage,
    pub login: u8,
    pub shard: u8,
    pub epoch: u8,
    /// The ledger's version that the session has read.
    pub version: u8,
    /// What it said: accepted before.
    pub done: bool,
}

impl Session {
    pub const NONE: Self = Self { stage: Stage::None, login: 0, shard: 0, epoch: 0, version: 0, done: false };

    pub fn is_uncommitted(self) -> bool {
        matches!(self.stage, Stage::Fetched | Stage::Committing | Stage::Owed | Stage::Repaying)
    }

    /// A connection to the maildrop is open.
    pub fn connected(self) -> bool {
        !matches!(self.stage, Stage::None | Stage::Owed | Stage::Repaying)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Worker {
    pub life: Life,
    pub boot: u8,
    /// The version of its lease by the last acknowledged renewal.
    pub acked: u8,
    /// The shards as its watch knows them.
    pub shards: [Shard; SHARDS],
    /// The slices of the shards that it holds.
    pub slices: [Option<Slice>; SHARDS],
    pub session: Session,
}

/// A leader is what it has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Leader {
    pub leases: [Lease; PODS],
    pub shards: [Shard; SHARDS],
}

/// What may still go wrong, or be wanted. Each behaviour is finite, therefore:
/// where nothing more can happen, all must be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    pub crashes: u8,
    pub pauses: u8,
    pub fences: u8,
    pub renewals: u8,
    /// Requests or their answers that are lost.
    pub losses: u8,
    /// Shards moved for balance, or by a leader that is out of date.
    pub moves: u8,
    /// Records whose host is edited.
    pub edits: u8,
    /// Slices deleted by hand.
    pub deletions: u8,
}

/// Invariants that have been broken on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Broken {
    pub two_sessions: bool,
    pub deleted_uncommitted: bool,
    pub epoch_fell: bool,
    pub stolen_acted: bool,
}

/// What has been seen on the way: a model in which nothing happens proves
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seen {
    pub handed_over: bool,
    pub given_away: bool,
    pub went_on: bool,
    pub record_moved: bool,
    /// Out of a slice that somebody deleted.
    pub deleted_moved: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub leases: [Lease; PODS],
    pub shards: [Shard; SHARDS],
    pub slices: [Slice; SHARDS],
    /// The shard that the record belongs to.
    pub home: u8,
    pub ledger: Ledger,
    pub maildrop: Maildrop,
    /// Sorted, so that equal sets are equal states.
    pub wire: Vec<Request>,
    pub workers: [Worker; PODS],
    pub leaders: [Leader; LEADERS],
    pub budget: Budget,
    pub broken: Broken,
    pub seen: Seen,
}

impl State {
    /// Both workers run; the first holds the first shard with the record, the
    /// second the second one.
    pub fn start(budget: Budget) -> Self {
        let inc = |pod: u8| Inc { pod, boot: 0 };
        let lease = |pod| Lease { version: 1, holder: Holder::Lives(inc(pod)) };
        let leases = [lease(0), lease(1)];
        let first = Observed { object: 0, generation: 1 };
        let shard =
            |pod, epoch| Shard { version: 1, desired: inc(pod), holder: inc(pod), epoch, observed: first };
        // The epochs of two shards have nothing to do with each other.
        let shards = [shard(0, 2), shard(1, 1)];
        let slices = [Slice { is: first, has: true }, Slice { is: first, has: false }];
        let worker = |held: usize| {
            let mut known = [None; SHARDS];
            known[held] = Some(slices[held]);
            Worker { life: Life::Running, boot: 0, acked: 1, shards, slices: known, session: Session::NONE }
        };
        Self {
            leases,
            shards,
            slices,
            home: 0,
            ledger: Ledger { version: 1, shard: 0, epoch: 2, done: false },
            maildrop: Maildrop { present: true, delivered: 0, aborted: 0, logins: 0 },
            wire: Vec::new(),
            workers: [worker(0), worker(1)],
            leaders: [Leader { leases, shards }; LEADERS],
            budget,
            broken: Broken::default(),
            seen: Seen::default(),
        }
    }

    pub fn send(&mut self, request: Request) {
        if let Err(at) = self.wire.binary_search(&request) {
            self.wire.insert(at, request);
        }
    }

    /// A leader reads everything.
    pub fn look(&mut self, leader: usize) {
        self.leaders[leader] = Leader { leases: self.leases, shards: self.shards };
    }

    /// The incarnation that runs (or last ran) in a pod.
    pub fn inc(&self, pod: usize) -> Inc {
        Inc { pod: pod as u8, boot: self.workers[pod].boot }
    }

    pub fn is_stolen(&self, pod: usize) -> bool {
        self.leases[pod].holder != Holder::Lives(self.inc(pod))
    }

    pub fn committed(&self) -> u8 {
        u8::from(self.ledger.done)
    }

    /// Batches that are not known to be committed, nor given up.
    pub fn open_batches(&self) -> u8 {
        self.workers.iter().map(|worker| u8::from(worker.session.is_uncommitted())).sum()
    }

    /// The message was accepted, committed and deleted.
    pub fn all_done(&self) -> bool {
        !self.maildrop.present && self.maildrop.delivered > 0 && self.ledger.done
    }
}
