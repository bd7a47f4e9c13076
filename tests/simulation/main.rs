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
mod sim;
mod trouble;
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
        fail(&sim, &format!("I8: {} records are not polled any more: {:?}", unpolled.len(), unpolled.first()));
    }
    // I7: where nothing happens, only leases are written.
    if sim.api.writes[1..] != writes[1..] {
        fail(&sim, &format!("I7: shards and slices are written in the calm: {writes:?} -> {:?}", sim.api.writes));
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
