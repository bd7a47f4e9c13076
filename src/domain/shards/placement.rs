//! Shard to worker: sticky and least loaded. A shard stays where it is unless
//! its worker is gone, leaves or carries clearly more than its share.

use std::collections::BTreeSet;

use super::{Incarnation, ShardId};

/// A worker may carry so much more or less than the average, in per cent,
/// before shards are moved for it.
pub const TOLERANCE: u64 = 10;

/// What a worker may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Takes shards.
    Takes,
    /// Keeps what it has, but is given nothing: not heard of lately.
    Keeps,
    /// Has to lose all it has.
    Leaves,
}

/// A worker to place shards at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// Who.
    pub name: Incarnation,
    /// What it can carry, in any unit that all have in common (processors);
    /// 0 counts as 1.
    pub capacity: u32,
    /// What it may be asked.
    pub role: Role,
}

/// A shard to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which.
    pub id: ShardId,
    /// What it weighs, in any unit: an average of sessions at a time; 0 counts
    /// as 1.
    pub load: u64,
    /// The worker it is at or on its way to: a place in [`View::workers`].
    pub at: Option<usize>,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The workers that are alive.
    pub workers: Vec<Worker>,
    /// All shards.
    pub shards: Vec<Shard>,
}

/// Why a shard is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// It had no worker.
    Homeless,
    /// Its worker leaves.
    Leaving,
    /// Its worker carries too much, or another too little.
    Balance,
}

impl Why {
    /// For the label of a metric.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Homeless => "Homeless",
            Self::Leaving => "Leaving",
            Self::Balance => "Balance",
        }
    }
}

/// A shard gets another worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub shard: ShardId,
    /// The worker's place in [`View::workers`].
    pub to: usize,
    /// What for.
    pub why: Why,
}

/// The moves that give every shard a worker and every worker its share: those
/// that must be first, and each one makes things better even if those after it
/// are left out. Nothing while nobody takes shards. O(n log n).
pub fn plan(view: &View) -> Vec<Move> {
    plan_within(view, TOLERANCE)
}

/// [`plan`] with another tolerance, in per cent: what it would cost.
pub fn plan_within(view: &View, tolerance: u64) -> Vec<Move> {
    let mut board = Board::new(view);
    if board.takers.is_empty() {
        return Vec::new();
    }
    board.house();
    board.balance(tolerance.min(100));
    board.moves
}

struct Board<'a> {
    view: &'a View,
    /// Of each worker.
    loads: Vec<u64>,
    /// Of each worker that stays: what it has and has had before, by weight.
    shards: Vec<BTreeSet<(u64, usize)>>,
    /// Those that take shards, the least loaded first.
    takers: BTreeSet<(Level, usize)>,
    /// Those that have shards to give, the least loaded first.
    givers: BTreeSet<(Level, usize)>,
    moves: Vec<Move>,
}

/// Load by capacity, as a fixed-point number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Level(u128);

impl Level {
    fn of(load: u64, capacity: u64) -> Self {
        Self((u128::from(load) << 32) / u128::from(capacity.max(1)))
    }

    fn per_cent(self, part: u64) -> Self {
        Self(self.0 * u128::from(part) / 100)
    }
}

impl<'a> Board<'a> {
    fn new(view: &'a View) -> Self {
        let mut loads = vec![0_u64; view.workers.len()];
        let mut shards = vec![BTreeSet::new(); view.workers.len()];
        for (n, shard) in view.shards.iter().enumerate() {
            if let Some(at) = shard.at.filter(|at| view.stays(*at)) {
                loads[at] += shard.weight();
                shards[at].insert((shard.weight(), n));
            }
        }
        let mut board =
            Self { view, loads, shards, takers: BTreeSet::new(), givers: BTreeSet::new(), moves: Vec::new() };
        for (n, worker) in view.workers.iter().enumerate() {
            if worker.role == Role::Takes {
                board.takers.insert((board.level(n), n));
            }
            if worker.role != Role::Leaves {
                board.givers.insert((board.level(n), n));
            }
        }
        board
    }

    fn capacity(&self, worker: usize) -> u64 {
        u64::from(self.view.workers[worker].capacity.max(1))
    }

    fn level(&self, worker: usize) -> Level {
        Level::of(self.loads[worker], self.capacity(worker))
    }

    fn set_load(&mut self, worker: usize, load: u64) {
        let before = (self.level(worker), worker);
        self.loads[worker] = load;
        let after = (self.level(worker), worker);
        for ranks in [&mut self.takers, &mut self.givers] {
            if ranks.remove(&before) {
                ranks.insert(after);
            }
        }
    }

    fn give(&mut self, shard: usize, to: usize, why: Why) {
        let shard = self.view.shards[shard];
        self.set_load(to, self.loads[to] + shard.weight());
        self.moves.push(Move { shard: shard.id, to, why });
    }

    /// The heaviest homeless shard to the lightest worker.
    fn house(&mut self) {
        let view = self.view;
        let mut homeless: Vec<(u64, usize, Why)> = Vec::new();
        for (n, shard) in view.shards.iter().enumerate() {
            match shard.at.filter(|at| *at < view.workers.len()) {
                None => homeless.push((shard.weight(), n, Why::Homeless)),
                Some(at) if !view.stays(at) => homeless.push((shard.weight(), n, Why::Leaving)),
                Some(_) => {}
            }
        }
        homeless.sort_unstable_by_key(|(load, n, _)| (std::cmp::Reverse(*load), *n));
        for (_, shard, why) in homeless {
            if let Some((_, to)) = self.takers.first().copied() {
                self.give(shard, to, why);
            }
        }
    }

    /// While somebody carries too much, or too little: from the heaviest to
    /// the lightest. Shards that were moved already are not moved again.
    fn balance(&mut self, tolerance: u64) {
        let staying = self.view.workers.iter().filter(|worker| worker.role != Role::Leaves);
        let capacity = staying.map(|worker| u64::from(worker.capacity.max(1))).sum();
        let average = Level::of(self.loads.iter().sum(), capacity);
        let (most, least) = (average.per_cent(100 + tolerance), average.per_cent(100 - tolerance));
        while let (Some((low, to)), Some((high, from))) =
            (self.takers.first().copied(), self.givers.last().copied())
        {
            if (high <= most && low >= least) || low >= high {
                return;
            }
            match self.chosen(from, to) {
                Some(entry) => {
                    self.shards[from].remove(&entry);
                    self.set_load(from, self.loads[from] - entry.0);
                    self.give(entry.1, to, Why::Balance);
                }
                // Nothing it has would make it better, and others will not
                // become lighter than this one.
                None => {
                    self.givers.remove(&(high, from));
                }
            }
        }
    }

    /// The heaviest shard after whose move `from` still carries no less than
    /// `to`; else the lightest, if `to` then carries less than `from` does.
    fn chosen(&self, from: usize, to: usize) -> Option<(u64, usize)> {
        let (a, b) = (u128::from(self.loads[from]), u128::from(self.loads[to]));
        let (p, q) = (u128::from(self.capacity(from)), u128::from(self.capacity(to)));
        // (a - s) / p = (b + s) / q
        let even = (a * q).saturating_sub(b * p) / (p + q);
        let even = u64::try_from(even).unwrap_or(u64::MAX);
        let shards = &self.shards[from];
        let fits = shards.range(..=(even, usize::MAX)).next_back();
        let least = shards.first().filter(|(load, _)| (b + u128::from(*load)) * p < a * q);
        fits.or(least).copied()
    }
}

impl View {
    fn stays(&self, worker: usize) -> bool {
        self.workers.get(worker).is_some_and(|worker| worker.role != Role::Leaves)
    }
}

impl Shard {
    fn weight(&self) -> u64 {
        self.load.max(1)
    }
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
