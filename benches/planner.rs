//! The planner: how long it takes to place shards, how much moves when a
//! worker comes or goes, how even it is; and what a leader needs for all its
//! records. Prints a table, then measures times.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rpop::domain::shards::leader::{Config, Leader, RecordSeen, Seen};
use rpop::domain::shards::mapping::{Scale, host_hash, shard};
use rpop::domain::shards::placement::{Role, Shard, View, Worker, plan};
use rpop::domain::shards::timing::{Boot, Timing};
use rpop::domain::shards::{Incarnation, ShardId};
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
        uid: (rank << 32 | n).wrapping_mul(0x9e37_79b9_7f4a_7c15),
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
                    leader.hear(Boot(2), Seen::Leases { sent: Boot(1), leases: Vec::new(), leader: String::new() });
                    black_box(leader.decide(Boot(2)));
                    leader
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, plans, leaders);
criterion_main!(benches);
