//! The planner: how long it takes to place shards, how much moves when a
//! worker comes or goes, how even it is; and what a leader needs for all its
//! records. Prints a table, then measures times.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rpop::domain::shards::leader::{
    Answer, Config, Decree, ItemSeen, Leader, LeaseSeen, RecordSeen, Seen, ShardSeen, SliceSeen,
};
use rpop::domain::shards::mapping::{Scale, host_hash, shard};
use rpop::domain::shards::placement::{Role, Shard, View, Worker, plan};
use rpop::domain::shards::timing::{Boot, Timing};
use rpop::domain::shards::{Incarnation, LeaseHolder, ShardId};
use rpop::domain::work::RecordKey;
use tokio::time::Instant;

const SIZES: [(u64, usize, u16); 5] = [
    (10_000, 10, 256),
    (100_000, 100, 1024),
    (1_000_000, 100, 1024),
    (1_000_000, 1000, 1024),
    (1_000_000, 1000, 16_384),
];

/// Hosts of records, whose sizes fall by Zipf's law.
fn hosts(records: u64) -> impl Iterator<Item = (u64, u64)> {
    let (mut left, mut rank) = (records, 0);
    std::iter::from_fn(move || {
        rank += 1;
        let size = (records / 12 / rank).clamp(1, left.max(1)).min(left);
        left -= size;
        (size > 0).then_some((rank, size))
    })
}

fn view(records: u64, workers: usize, shards: u16) -> View {
    let mut loads = vec![0_u64; usize::from(shards)];
    let scale = Scale { records, shards, limit: 0 };
    for (rank, size) in hosts(records) {
        let host = host_hash(&format!("pop{rank}.example"), 995);
        let factor = scale.factor(None, size);
        for n in 0..size {
            let uid = (rank << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            loads[usize::from(shard(host, uid, factor, shards).0)] += 1;
        }
    }
    View {
        workers: (0..workers).map(|n| worker(n, Role::Takes)).collect(),
        shards: (0..).zip(loads).map(|(n, load)| Shard { id: ShardId(n), load, at: None }).collect(),
    }
}

fn worker(n: usize, role: Role) -> Worker {
    Worker { name: Incarnation::new(&format!("w{n}"), 1), capacity: 256, role }
}

/// Carries the plan out; the records that moved and how long it took.
fn step(view: &mut View) -> (u64, Duration) {
    let start = Instant::now();
    let moves = plan(view);
    let took = start.elapsed();
    let mut moved = 0;
    for step in moves {
        let shard = &mut view.shards[usize::from(step.shard.0)];
        shard.at = Some(step.to);
        moved += shard.load;
    }
    (moved, took)
}

fn imbalance(view: &View) -> f64 {
    let mut loads = vec![0_u64; view.workers.len()];
    for shard in &view.shards {
        loads[shard.at.unwrap()] += shard.load;
    }
    let staying = view.workers.iter().filter(|worker| worker.role != Role::Leaves).count();
    *loads.iter().max().unwrap() as f64 * staying as f64 / loads.iter().sum::<u64>() as f64
}

fn table() {
    println!(
        "| records | workers | shards | first plan | heaviest/average | one leaves: moved (its own) | then | one comes: moved | then |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (records, workers, shards) in SIZES {
        let mut view = view(records, workers, shards);
        let (_, took) = step(&mut view);
        let first = imbalance(&view);
        let own: u64 = view.shards.iter().filter(|shard| shard.at == Some(0)).map(|shard| shard.load).sum();
        view.workers[0].role = Role::Leaves;
        let (left, _) = step(&mut view);
        let after_left = imbalance(&view);
        view.workers[0] = worker(workers, Role::Takes);
        let (came, _) = step(&mut view);
        let part = |moved: u64| 100.0 * moved as f64 / records as f64;
        println!(
            "| {records} | {workers} | {shards} | {:.2} ms | {first:.3} | {:.2} % ({:.2} %) | {after_left:.3} | {:.2} % | {:.3} |",
            took.as_secs_f64() * 1e3,
            part(left),
            part(own),
            part(came),
            imbalance(&view)
        );
    }
}

fn seen(rank: u64, n: u64) -> RecordSeen {
    RecordSeen {
        key: RecordKey { namespace: "mail".into(), name: format!("r{rank}-{n}").into() },
        maildrop: (rank << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        host: format!("pop{rank}.example").into(),
        port: 995,
        interval: Some(Duration::from_mins(5)),
        digest: n,
        bytes: 500,
        destination: 1,
        destination_bytes: 300,
    }
}

fn plans(c: &mut Criterion) {
    table();
    decisions();
    let mut group = c.benchmark_group("plan");
    group.sample_size(20);
    for (records, workers, shards) in SIZES {
        let mut view = view(records, workers, shards);
        step(&mut view);
        let name = format!("{records} records, {workers} workers, {shards} shards");
        group.bench_function(format!("{name}: nothing to do"), |b| b.iter(|| black_box(plan(&view))));
        view.workers[0].role = Role::Leaves;
        group.bench_function(format!("{name}: one leaves"), |b| b.iter(|| black_box(plan(&view))));
    }
    group.finish();
}

fn leaders(c: &mut Criterion) {
    let mut group = c.benchmark_group("leader");
    group.sample_size(10);
    for records in [100_000, 1_000_000] {
        let all: Vec<RecordSeen> =
            hosts(records).flat_map(|(rank, size)| (0..size).map(move |n| seen(rank, n))).collect();
        group.bench_function(format!("takes in {records} records and decides first"), |b| {
            b.iter_batched(
                || all.clone(),
                |all| {
                    let mut leader = Leader::new(Config { shards: 1024, timing: Timing::DEFAULT });
                    leader.hear(Boot(1), Seen::Records(all));
                    leader.hear(Boot(1), Seen::Slices(Vec::new()));
                    leader.hear(Boot(1), Seen::Shards(Vec::new()));
                    leader.hear(
                        Boot(2),
                        Seen::Leases { sent: Boot(1), leases: Vec::new(), leader: String::new() },
                    );
                    black_box(leader.decide(Boot(2)));
                    leader
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// An API server that does what it is told, and workers that acknowledge.
struct World {
    now: u64,
    version: u64,
    leader: Leader,
    workers: usize,
    records: BTreeMap<RecordKey, RecordSeen>,
    shards: BTreeMap<ShardId, ShardSeen>,
    slices: BTreeMap<(ShardId, u32), SliceSeen>,
    took: Vec<Duration>,
}

impl World {
    fn settled(records: u64, workers: usize, shards: u16) -> Self {
        let leader = Leader::new(Config { shards, timing: Timing::DEFAULT });
        let all = hosts(records).flat_map(|(rank, size)| (0..size).map(move |n| seen(rank, n)));
        let mut world = Self {
            now: 1_000,
            version: 1,
            leader,
            workers,
            records: all.map(|record| (record.key.clone(), record)).collect(),
            shards: BTreeMap::new(),
            slices: BTreeMap::new(),
            took: Vec::new(),
        };
        let all = world.records.values().cloned().collect();
        world.hear(Seen::Records(all));
        world.hear(Seen::Slices(Vec::new()));
        world.hear(Seen::Shards(Vec::new()));
        for _ in 0..60 {
            world.second();
        }
        world
    }

    fn hear(&mut self, seen: Seen) {
        self.leader.hear(Boot(self.now), seen);
    }

    fn second(&mut self) {
        self.now += 1_000;
        let leases = (0..self.workers).map(|n| {
            let worker = Incarnation::new(&format!("w{n}"), 1);
            LeaseSeen {
                name: format!("rpop-worker-w{n}").into(),
                version: (self.now + n as u64).to_string(),
                holder: LeaseHolder::Worker(worker),
                leaving: false,
                capacity: 256,
                load: BTreeMap::new(),
            }
        });
        let (leases, sent) = (leases.collect(), Boot(self.now));
        self.hear(Seen::Leases { sent, leases, leader: self.now.to_string() });
        while self.decide() > 0 {}
    }

    /// One decision, measured, and what comes of it.
    fn decide(&mut self) -> usize {
        let start = Instant::now();
        let decrees = self.leader.decide(Boot(self.now));
        self.took.push(start.elapsed());
        for decree in &decrees {
            self.version += 1;
            let seen = self.obey(decree);
            self.hear(seen);
            self.hear(Seen::Answered { target: decree.target(), answer: Answer::Done });
        }
        decrees.len()
    }

    fn edit(&mut self, key: &RecordKey) {
        let record = self.records.get_mut(key).unwrap();
        record.digest += 1 << 40;
        let record = record.clone();
        self.hear(Seen::Record(record));
    }

    fn obey(&mut self, decree: &Decree) -> Seen {
        let version = self.version.to_string();
        let shard = match decree {
            Decree::CreateShard(id) => ShardSeen {
                id: *id,
                version,
                desired: None,
                holder: None,
                epoch: 0,
                slices: 0,
                observed: BTreeMap::new(),
            },
            Decree::SetDesired { shard, desired, slices, .. } => {
                let before = self.shards[shard].clone();
                // The holder hands over at once.
                let holder = before.holder.and(desired.clone());
                ShardSeen { version, desired: desired.clone(), holder, slices: *slices, ..before }
            }
            Decree::GiveAway { shard, holder, epoch, .. } => ShardSeen {
                version,
                holder: Some(holder.clone()),
                epoch: *epoch,
                ..self.shards[shard].clone()
            },
            Decree::WriteSlice { shard, number, items, removed, .. } => {
                let item = |(key, factor): &(RecordKey, u32)| {
                    let record = &self.records[key];
                    ItemSeen {
                        key: key.clone(),
                        uid: record.maildrop,
                        digest: record.digest,
                        factor: *factor,
                    }
                };
                let slice = SliceSeen {
                    shard: *shard,
                    number: *number,
                    version,
                    uid: Arc::from("slice"),
                    generation: self.slices.get(&(*shard, *number)).map_or(0, |slice| slice.generation) + 1,
                    items: items.iter().map(item).collect(),
                    removed: removed.clone(),
                };
                self.slices.insert((*shard, *number), slice.clone());
                return Seen::Slice(slice);
            }
            Decree::StealLease { .. } | Decree::DeleteLease { .. } => panic!("{decree:?}"),
        };
        self.shards.insert(shard.id, shard.clone());
        Seen::Shard(shard)
    }
}

/// How long one decision takes once all is in its place. A leader decides
/// after whatever it hears, and after each read of the leases.
fn decisions() {
    let millis = |took: &Duration| took.as_secs_f64() * 1e3;
    println!("| records | workers | shards | nothing to do | a record is edited | all records are: most |");
    println!("|---:|---:|---:|---:|---:|---:|");
    for (records, workers, shards) in [(10_000, 10, 256), (100_000, 100, 1024)] {
        let mut world = World::settled(records, workers, shards);
        let median = |took: &mut Vec<Duration>| {
            took.sort_unstable();
            took.get(took.len() / 2).map_or(0.0, millis)
        };
        world.took.clear();
        for _ in 0..20 {
            world.decide();
        }
        let nothing = median(&mut std::mem::take(&mut world.took));
        let keys: Vec<RecordKey> = world.records.keys().cloned().collect();
        let mut edits = Vec::new();
        for key in keys.iter().step_by(keys.len() / 20) {
            world.edit(key);
            world.took.clear();
            world.decide();
            edits.append(&mut world.took);
            world.second();
        }
        world.took.clear();
        for key in &keys {
            world.edit(key);
        }
        world.second();
        let most = world.took.iter().max().map_or(0.0, millis);
        println!(
            "| {records} | {workers} | {shards} | {nothing:.2} ms | {:.2} ms | {most:.2} ms |",
            median(&mut edits)
        );
    }
}

criterion_group!(benches, plans, leaders);
criterion_main!(benches);
