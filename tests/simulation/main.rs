//! The real machines of worker and leader in a simulated cluster: an API
//! server in memory, clocks that drift, answers that are late or lost, watches
//! that break, processes that are killed, stopped and cut off. What happens is
//! decided by a seed; what must hold is looked at after each event.
//!
//! `RPOP_SIMULATION=1000` tries so many seeds, `RPOP_SIMULATION_SEED=7` one
//! and tells its story.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::let_underscore_must_use,
    missing_docs,
    unreachable_pub,
    reason = "in tests a failed expectation is a failed test"
)]

mod answers;
mod api;
mod controller;
mod node;
mod owed;
mod sight;
mod sim;
mod trouble;
mod unknown;
mod worker;

use rpop::domain::shards::timing::Timing;
use sim::{Counts, Event, POLL, Sim};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// Trouble for so many events, then calm: all is as it should be again.
fn story(seed: u64, timing: Timing, events: u64) -> Counts {
    let mut sim = Sim::new(seed, timing, 5);
    let fail = |sim: &Sim, what: &str| -> ! {
        let lines = number("RPOP_SIMULATION_LINES").map_or(120, |lines| usize::try_from(lines).unwrap());
        panic!("seed {seed}: {what}\n{}\n{:?}", sim.story(lines), sim.counts)
    };
    let ok = |sim: &Sim| {
        if let Some(what) = &sim.broken {
            fail(sim, what);
        }
    };
    // Every shard finds a worker and every record is polled.
    sim.run_until(15_000 + 2 * POLL);
    ok(&sim);
    let unpolled = sim.unpolled_since(1);
    if !unpolled.is_empty() {
        fail(&sim, &format!("I8: {} records are not polled: {:?}", unpolled.len(), unpolled.first()));
    }
    sim.calm = false;
    sim.after(1, Event::Trouble);
    while sim.counts.events < events && sim.broken.is_none() {
        let next = sim.now + 10_000;
        sim.run_until(next);
    }
    ok(&sim);
    sim.calm_down();
    let settling = 2 * u64::try_from(timing.dead_after.as_millis()).unwrap() + 120_000;
    let settled = sim.now + settling;
    sim.run_until(settled);
    ok(&sim);
    let (writes, from) = (sim.api.writes, sim.now);
    sim.run_until(from + 3 * POLL);
    ok(&sim);
    let unpolled = sim.unpolled_since(from);
    if !unpolled.is_empty() {
        fail(
            &sim,
            &format!("I8: {} records are not polled any more: {:?}", unpolled.len(), unpolled.first()),
        );
    }
    // I7: where nothing happens, only leases are written.
    if sim.api.writes[1..] != writes[1..] {
        fail(
            &sim,
            &format!("I7: shards and slices are written in the calm: {writes:?} -> {:?}", sim.api.writes),
        );
    }
    if number("RPOP_SIMULATION_SEED").is_some() {
        println!("{}", sim.story(4000));
    }
    sim.counts
}

fn stories(timing: Timing) {
    let seeds = match number("RPOP_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("RPOP_SIMULATION").unwrap_or(6),
    };
    let mut fail_overs = Vec::new();
    for seed in seeds {
        let mut counts = story(seed, timing, 20_000);
        fail_overs.append(&mut counts.fail_overs);
        println!("seed {seed}: {counts:?}");
    }
    fail_overs.sort_unstable();
    let share = |part: usize| fail_overs.get(fail_overs.len() * part / 100).copied().unwrap_or(0);
    println!("fail-over, ms: median {}, p90 {}, p99 {}", share(50), share(90), share(99));
}

#[test]
fn all_holds_with_the_fast_timing() {
    stories(Timing::FAST);
}

#[test]
fn all_holds_with_the_default_timing() {
    stories(Timing::DEFAULT);
}

/// Each death alone: its shards are elsewhere within D + 3 s.
fn fails_over(timing: Timing) {
    let limit = u64::try_from(timing.dead_after.as_millis()).unwrap() + 3_000;
    let mut sim = Sim::new(number("RPOP_SIMULATION_SEED").unwrap_or(1), timing, 5);
    sim.run_until(20_000);
    for death in 0..40 {
        let at = sim.workers.iter().position(|worker| worker.member.is_some()).unwrap();
        sim.end_worker(at);
        let (back, next) = (sim.add_worker(), sim.now + limit + 5_000 + sim.roll(5_000));
        sim.after(limit + 1_000, Event::Start(back));
        sim.run_until(next);
        assert!(sim.broken.is_none(), "death {death}: {:?}\n{}", sim.broken, sim.story(60));
    }
    let mut fail_overs = std::mem::take(&mut sim.counts.fail_overs);
    fail_overs.sort_unstable();
    println!("fail-over, ms: median {}, most {}", fail_overs[20], fail_overs[39]);
    assert_eq!((fail_overs.len(), sim.counts.steals), (40, 40));
    assert!(fail_overs[39] <= limit);
}

#[test]
fn a_dead_workers_shards_are_elsewhere_soon() {
    fails_over(Timing::FAST);
    fails_over(Timing::DEFAULT);
}

/// The API server is away for a moment, for a while, for long: nobody is taken
/// for dead afterwards, no shard moves, and polling goes on.
fn outlives_outages(timing: Timing) {
    let dead_after = u64::try_from(timing.dead_after.as_millis()).unwrap();
    let mut sim = Sim::new(number("RPOP_SIMULATION_SEED").unwrap_or(1), timing, 5);
    sim.run_until(60_000);
    let epochs = sim.epochs.clone();
    for span in [1, 2, 5, 10, 20, 40].map(|tenths| tenths * dead_after / 10 + 1_000) {
        for _ in 0..4 {
            sim.outage(span);
            let calm = sim.now + span + 2 * dead_after + sim.roll(5_000);
            sim.run_until(calm);
            assert!(sim.broken.is_none(), "{:?}\n{}", sim.broken, sim.story(60));
            assert_eq!((sim.counts.steals, &sim.epochs), (0, &epochs), "after {span} ms\n{}", sim.story(60));
            let (from, next) = (sim.now, sim.now + 2 * POLL);
            sim.run_until(next);
            assert_eq!(sim.unpolled_since(from).len(), 0, "after {span} ms\n{}", sim.story(60));
        }
    }
    assert!(sim.counts.settled > 0, "nobody was cut off amid a batch: {:?}", sim.counts);
    assert_eq!(sim.counts.repeated, 0, "what was accepted is not delivered again\n{}", sim.story(60));
}

#[test]
fn an_outage_is_nobodys_death() {
    outlives_outages(Timing::FAST);
    outlives_outages(Timing::DEFAULT);
}
