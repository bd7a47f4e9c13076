//! What a leader can see of workers and what it makes of it: an API server
//! that is slow, that comes and goes, that takes no writes, a leader that is
//! stopped. Nobody who lives is taken for dead, and who is dead is found out
//! in time.

use rpop::domain::shards::timing::Timing;

use super::number;
use super::sim::{Event, Sim, Who};

/// `RPOP_SIMULATION=100` for so many of each, `RPOP_SIMULATION_SEED` for one.
fn seeds() -> std::ops::Range<u64> {
    match number("RPOP_SIMULATION_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..1 + number("RPOP_SIMULATION").unwrap_or(1),
    }
}

/// Well for a while, with clocks that agree: the limits are by the leader's.
fn begun(seed: u64, timing: Timing) -> Sim {
    let mut sim = Sim::new(seed, timing, 5);
    for controller in &mut sim.controllers {
        controller.clock.rate = 1_000_000;
    }
    sim.run_until(40_000);
    // What is promised here is looked at here.
    sim.well_since = u64::MAX / 2;
    sim
}

fn pass(sim: &mut Sim, span: u64) {
    let until = sim.now + span;
    sim.run_until(until);
    assert!(sim.broken.is_none(), "{:?}\n{}", sim.broken, sim.story(60));
}

/// A worker dies; how long until its lease is taken.
fn death(sim: &mut Sim, limit: u64) -> u64 {
    let (from, steals) = (sim.now, sim.counts.steals);
    let at = sim.workers.iter().position(|worker| worker.member.is_some()).unwrap();
    sim.end_worker(at);
    while sim.counts.steals == steals {
        assert!(sim.now < from + limit, "not within {limit} ms\n{}", sim.story(80));
        pass(sim, 10);
    }
    let took = sim.now - from;
    // And nobody else.
    pass(sim, limit);
    assert_eq!(sim.counts.steals, steals + 1, "{}", sim.story(80));
    let back = sim.add_worker();
    sim.after(1, Event::Start(back));
    pass(sim, limit);
    took
}

/// Each request is answered after `answer` at most, and a half of it at least.
fn slow(seed: u64, timing: Timing, answer: u64, limit: Option<u64>) {
    let dead_after = u64::try_from(timing.dead_after.as_millis()).unwrap();
    let mut sim = begun(seed, timing);
    sim.pace = answer / 2;
    pass(&mut sim, 30 * dead_after);
    assert_eq!((sim.counts.steals, seed, answer), (0, seed, answer), "{}", sim.story(80));
    if let Some(limit) = limit {
        let took: Vec<u64> = (0..6).map(|_| death(&mut sim, limit)).collect();
        println!("{timing:?}: answers within {answer} ms: taken for dead after {took:?}, limit {limit}");
    }
}

#[test]
fn a_slow_api_server_makes_nobody_dead_and_the_dead_not_much_later() {
    for (seed, timing) in seeds().flat_map(|seed| [(seed, Timing::FAST), (seed, Timing::DEFAULT)]) {
        let dead_after = u64::try_from(timing.dead_after.as_millis()).unwrap();
        let every = dead_after.div_euclid(15).min(1_000);
        // The read that sees the last renewal, and the steal.
        let late = |answer: u64| dead_after + every.max(answer) + 2 * answer + 250;
        slow(seed, timing, 900, Some(dead_after + 3_000));
        for part in [8, 7] {
            slow(seed, timing, dead_after / part, Some(late(dead_after / part)));
        }
        // From D/6 on the lead is lost now and then, from D/5 on renewals are
        // given up: nothing is promised but that nobody is harmed.
        for (up, down) in [(1, 5), (1, 4), (2, 7), (1, 3), (2, 5)] {
            slow(seed, timing, dead_after * up / down, None);
        }
    }
}

/// The API server comes and goes, for a while.
#[test]
fn an_api_server_that_comes_and_goes_makes_nobody_dead() {
    for (seed, timing) in seeds().flat_map(|seed| [(seed, Timing::FAST), (seed, Timing::DEFAULT)]) {
        let dead_after = u64::try_from(timing.dead_after.as_millis()).unwrap();
        for (up, down) in [(8, 4), (4, 8), (8, 6), (16, 5), (16, 16), (12, 24), (3, 16)] {
            let (up, down) = (up * dead_after / 32, down * dead_after / 32);
            let mut sim = begun(seed, timing);
            let until = sim.now + 20 * dead_after;
            while sim.now < until {
                let span = down / 2 + sim.roll(down);
                sim.outage(span);
                let next = span + up / 2 + sim.roll(up);
                pass(&mut sim, next);
            }
            pass(&mut sim, 2 * dead_after);
            assert_eq!((sim.counts.steals, seed, up, down), (0, seed, up, down), "{}", sim.story(80));
            let took = death(&mut sim, dead_after + 3_000);
            println!("{timing:?}: {up} ms up, {down} ms down; then taken for dead after {took} ms");
        }
    }
}

/// What is there can be read, but no renewal is accepted: that is nobody's
/// death either, however long it lasts.
#[test]
fn an_api_server_that_takes_no_writes_makes_nobody_dead() {
    for (seed, timing) in seeds().flat_map(|seed| [(seed, Timing::FAST), (seed, Timing::DEFAULT)]) {
        let dead_after = u64::try_from(timing.dead_after.as_millis()).unwrap();
        let mut sim = begun(seed, timing);
        for tenths in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 20, 40] {
            for _ in 0..4 {
                let span = tenths * dead_after / 10;
                sim.refuse_writes(span);
                let calm = span + 2 * dead_after + sim.roll(5_000);
                pass(&mut sim, calm);
                assert_eq!((sim.counts.steals, seed, tenths), (0, seed, tenths), "{}", sim.story(80));
            }
        }
        death(&mut sim, dead_after + 3_000);
    }
}

/// A leader that is stopped has heard of no renewal meanwhile; another one,
/// which has, leads.
#[test]
fn a_leader_that_is_stopped_takes_nobody_for_dead() {
    for (seed, timing) in seeds().flat_map(|seed| [(seed, Timing::FAST), (seed, Timing::DEFAULT)]) {
        let dead_after = u64::try_from(timing.dead_after.as_millis()).unwrap();
        let mut sim = begun(seed, timing);
        for tenths in [1, 2, 3, 4, 5, 7, 10, 15, 20, 40] {
            let at = sim.leading.unwrap();
            let who = Who::Controller(at, sim.controllers[at].life);
            sim.stop(who, tenths * dead_after / 10);
            pass(&mut sim, tenths * dead_after / 10 + 2 * dead_after);
            assert_eq!((sim.counts.steals, seed, tenths), (0, seed, tenths), "{}", sim.story(80));
        }
        death(&mut sim, dead_after + 3_000);
    }
}

/// Whoever leads next has counted already: that a node dies with a worker and
/// the leader, at once or one after the other, delays nothing.
#[test]
fn a_leader_that_dies_with_a_worker_delays_no_fail_over() {
    for (seed, timing) in seeds().flat_map(|seed| [(seed, Timing::FAST), (seed, Timing::DEFAULT)]) {
        let dead_after = u64::try_from(timing.dead_after.as_millis()).unwrap();
        let mut sim = begun(seed, timing);
        for tenths in 0..5 {
            let at = sim.workers.iter().position(|worker| worker.member.is_some()).unwrap();
            let (from, steals) = (sim.now, sim.counts.steals);
            sim.end_worker(at);
            pass(&mut sim, tenths * dead_after / 10);
            let leader = sim.leading.unwrap();
            sim.kill_controller(leader);
            sim.controllers[leader].hindrance.cut_until = sim.now + dead_after;
            while sim.counts.steals == steals {
                assert!(sim.now < from + dead_after + 3_000, "{tenths} tenths of D\n{}", sim.story(80));
                pass(&mut sim, 10);
            }
            println!("{timing:?}: taken for dead after {} ms", sim.now - from);
            let back = sim.add_worker();
            sim.after(1, Event::Start(back));
            pass(&mut sim, 2 * dead_after);
            assert_eq!(sim.counts.steals, steals + 1);
        }
    }
}
