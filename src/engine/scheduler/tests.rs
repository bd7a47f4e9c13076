//! What a user would notice of the scheduler, and its laws under any history.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_mins(1);
/// An arbitrary moment in 2026.
const START: Moment = Moment(1_795_000_000_000);

fn rules() -> Rules {
    Rules {
        processors: 4,
        host_connections: 2,
        delay_failed_hosts: 10 * MINUTE,
        delay_failed_accounts: 10 * MINUTE,
    }
}

fn timing(name: &str, host: &str) -> Timing {
    Timing {
        key: RecordKey { namespace: "mail".into(), name: name.into() },
        uid: name.bytes().fold(7, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)),
        interval: Some(5 * MINUTE),
        host: host.into(),
        port: 995,
        maildrop: name.bytes().fold(1, |hash: u64, byte| hash << 8 | u64::from(byte)),
    }
}

const GOOD: End = End { failure: None, login_delay: None };

fn failed(code: Code, scope: Scope) -> End {
    End { failure: Some((code, scope)), login_delay: None }
}

fn once(scheduler: &mut Scheduler, name: &str, host: &str, now: Moment) -> Id {
    scheduler.put(&timing(name, host), Past { at_once: true, ..Past::default() }, false, now)
}

/// All polls that start now.
fn starts(scheduler: &mut Scheduler, now: Moment) -> Vec<Id> {
    let mut started = Vec::new();
    loop {
        match scheduler.step(now) {
            Step::Poll(id) => started.push(id),
            Step::Yield(_) => {}
            Step::Wait(_) => return started,
        }
    }
}

#[test]
fn a_record_keeps_its_rhythm_on_the_wall_clock() {
    let mut scheduler = Scheduler::new(rules());
    let id = once(&mut scheduler, "a", "h", START);
    assert_eq!(starts(&mut scheduler, START), [id]);
    let first = scheduler.finished(id, GOOD, START.after(Duration::from_secs(2))).unwrap();
    assert!(first.since(START) >= 150 * Duration::from_secs(1), "not at once after an early poll");
    assert!(first.since(START) <= 450 * Duration::from_secs(1));
    assert_eq!(starts(&mut scheduler, Moment(first.0 - 1)), []);
    assert_eq!(starts(&mut scheduler, first), [id]);
    let second = scheduler.finished(id, GOOD, first.after(Duration::from_secs(40))).unwrap();
    assert_eq!(second.since(first), 5 * MINUTE, "how long a poll takes does not shift the rhythm");

    // Another process, hours later, finds the same slots.
    let later = START.after(Duration::from_secs(40_000));
    let mut other = Scheduler::new(rules());
    let id = other.put(
        &timing("a", "h"),
        Past { last_poll: Some(Moment(later.0 - 1000)), ..Past::default() },
        false,
        later,
    );
    assert_eq!(other.next(id).unwrap().since(first).as_millis() % (5 * MINUTE).as_millis(), 0);
}

#[test]
fn a_long_poll_is_not_followed_by_those_it_missed() {
    let mut scheduler = Scheduler::new(rules());
    let id = once(&mut scheduler, "a", "h", START);
    starts(&mut scheduler, START);
    let end = START.after(17 * MINUTE);
    let next = scheduler.finished(id, GOOD, end).unwrap();
    assert!(next > end && next.since(end) <= 5 * MINUTE);
}

#[test]
fn overdue_polls_are_spread_when_there_are_many_and_not_when_there_are_few() {
    let mut few = Scheduler::new(rules());
    let only = few.put(&timing("only", "h"), Past::default(), false, START);
    assert_eq!(few.next(only), Some(START));

    let mut many = Scheduler::new(Rules { processors: 10_000, host_connections: 0, ..rules() });
    let dues: Vec<Moment> = (0..10_000)
        .map(|n| {
            let id = many.put(&timing(&format!("r{n}"), "h"), Past::default(), false, START);
            many.next(id).unwrap()
        })
        .collect();
    assert!(dues.iter().all(|due| due.since(START) < MINUTE));
    let in_second = |second: u64| dues.iter().filter(|due| due.since(START).as_secs() == second).count();
    assert!((30..60).all(|second| (50..500).contains(&in_second(second))), "evenly");
}

#[test]
fn a_failed_host_waits_with_all_its_records_and_one_probe_ends_that() {
    let mut scheduler = Scheduler::new(Rules { processors: 16, ..rules() });
    let ids: Vec<Id> =
        (0..6).map(|n| once(&mut scheduler, &format!("r{n}"), "Dead.Example", START)).collect();
    let fine = once(&mut scheduler, "fine", "other", START);
    assert_eq!(starts(&mut scheduler, START).len(), 3, "two of one host, one of the other");
    scheduler.finished(fine, GOOD, START);
    let now = START.after(MINUTE);
    scheduler.finished(ids[0], failed(Code::HostUnreachable, Scope::Host), now);
    for id in &ids[2..] {
        let next = scheduler.next(*id).unwrap();
        assert_eq!(next.since(now), 10 * MINUTE, "known for all records of the host at once");
    }
    scheduler.finished(ids[1], failed(Code::HostUnreachable, Scope::Host), now);
    assert_eq!(scheduler.figures(now).failed_hosts, 1);
    assert!(!starts(&mut scheduler, now.after(9 * MINUTE)).iter().any(|id| ids.contains(id)));
    let again = now.after(10 * MINUTE);
    let probe: Vec<Id> = starts(&mut scheduler, again).into_iter().filter(|id| ids.contains(id)).collect();
    assert_eq!(probe.len(), 1, "one looks whether the host is back");
    scheduler.answered(probe[0]);
    assert_eq!(starts(&mut scheduler, again).len(), 1, "heard: the others follow, two at a time");
    assert_eq!(scheduler.figures(again).failed_hosts, 0);
}

#[test]
fn repeated_refusals_of_a_password_come_ever_more_seldom() {
    let mut scheduler = Scheduler::new(rules());
    let id = once(&mut scheduler, "a", "h", START);
    let mut now = START;
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert_eq!(starts(&mut scheduler, now), [id]);
        let next = scheduler.finished(id, failed(Code::AuthFailed, Scope::Account), now).unwrap();
        waits.push(next.since(now));
        now = next;
    }
    assert!(waits[0] >= 10 * MINUTE && waits[0] < 16 * MINUTE, "{waits:?}");
    assert!(waits.windows(2).take(4).all(|pair| pair[1] > pair[0] * 3 / 2), "{waits:?}");
    assert!(waits.iter().all(|wait| *wait <= LONGEST_DELAY + 6 * MINUTE), "{waits:?}");
    // Somebody mends the record: at once, and with a clean record.
    scheduler.put(&timing("a", "h"), Past::default(), true, now);
    assert_eq!(scheduler.next(id), Some(now));
    assert_eq!(scheduler.failures(id), 0);
}

#[test]
fn a_host_that_is_away_in_between_does_not_make_refused_logins_more_frequent() {
    let mut scheduler = Scheduler::new(rules());
    let id = once(&mut scheduler, "a", "h", START);
    let mut now = START;
    let mut waits = Vec::new();
    for _ in 0..4 {
        for end in [failed(Code::AuthFailed, Scope::Account), failed(Code::HostUnreachable, Scope::Host)] {
            assert_eq!(starts(&mut scheduler, now), [id]);
            let next = scheduler.finished(id, end, now).unwrap();
            if end.failure == Some((Code::AuthFailed, Scope::Account)) {
                waits.push(next.since(now));
            }
            now = next;
        }
    }
    for (wait, least) in waits.iter().zip([10, 20, 40, 80]) {
        assert!(*wait >= least * MINUTE && *wait < (least + 6) * MINUTE, "{waits:?}");
    }
    // One that was taken, whatever came of its mail, ends it.
    starts(&mut scheduler, now);
    now = scheduler.finished(id, failed(Code::DestinationUnavailable, Scope::Local), now).unwrap();
    starts(&mut scheduler, now);
    let next = scheduler.finished(id, failed(Code::AuthFailed, Scope::Account), now).unwrap();
    assert!(next.since(now) < 16 * MINUTE);
}

#[test]
fn a_login_that_is_known_to_be_refused_waits_and_counts_on() {
    let mut scheduler = Scheduler::new(rules());
    let id = once(&mut scheduler, "a", "h", START);
    assert_eq!(starts(&mut scheduler, START), [id]);
    let until = START.after(200 * MINUTE);
    assert_eq!(scheduler.hold(id, until, 5, START), Some(until));
    assert_eq!(starts(&mut scheduler, START.after(199 * MINUTE)), []);
    assert_eq!(starts(&mut scheduler, until), [id]);
    let next = scheduler.finished(id, failed(Code::AuthFailed, Scope::Account), until).unwrap();
    assert!(next.since(until) >= 320 * MINUTE, "the sixth in a row");
    // Changed while it was asked for: that is tried at once.
    starts(&mut scheduler, next);
    scheduler.put(&timing("a", "h"), Past::default(), true, next);
    assert_eq!(scheduler.hold(id, next.after(60 * MINUTE), 6, next), Some(next));
    // A clock that is wrong holds nothing for ever.
    starts(&mut scheduler, next);
    let held = scheduler.hold(id, next.after(1_000_000 * MINUTE), 6, next).unwrap();
    assert_eq!(held.since(next), LONGEST_DELAY);
}

#[test]
fn a_locked_account_waits_its_delay_and_others_of_its_host_do_not() {
    let mut scheduler = Scheduler::new(rules());
    let locked = once(&mut scheduler, "locked", "h", START);
    let fine = once(&mut scheduler, "fine", "h", START);
    starts(&mut scheduler, START);
    for _ in 0..3 {
        let at = scheduler.next(locked).unwrap_or(START);
        starts(&mut scheduler, at);
        let next = scheduler.finished(locked, failed(Code::MailboxLocked, Scope::Account), at).unwrap();
        assert!(next.since(at) >= 10 * MINUTE && next.since(at) <= 11 * MINUTE);
    }
    let next = scheduler.finished(fine, GOOD, START).unwrap();
    assert!(next.since(START) <= 450 * Duration::from_secs(1));
}

#[test]
fn trouble_of_the_destination_backs_off_from_seconds_to_the_rhythm() {
    let mut scheduler = Scheduler::new(rules());
    let id = once(&mut scheduler, "a", "h", START);
    let mut now = START;
    for (failure, least) in [(0, 30), (1, 60), (2, 120), (3, 240), (4, 480), (5, 600), (6, 600)] {
        starts(&mut scheduler, now);
        let next = scheduler.finished(id, failed(Code::DestinationUnavailable, Scope::Local), now).unwrap();
        let wait = next.since(now).as_secs();
        assert!((least..=least + 60).contains(&wait), "failure {failure}: {wait} s");
        now = next;
    }
}

// quirks: "Honour LOGIN-DELAY n and EXPIRE 0 capabilities"
#[test]
fn the_servers_login_delay_is_kept_and_an_absurd_one_is_not() {
    let mut scheduler = Scheduler::new(rules());
    let id = once(&mut scheduler, "a", "h", START);
    starts(&mut scheduler, START);
    let wish = End { failure: None, login_delay: Some(30 * MINUTE) };
    let next = scheduler.finished(id, wish, START).unwrap();
    assert_eq!(next.since(START), 30 * MINUTE);
    starts(&mut scheduler, next);
    let absurd = End { failure: None, login_delay: Some(Duration::MAX) };
    assert_eq!(scheduler.finished(id, absurd, next).unwrap().since(next), LONGEST_LOGIN_DELAY);
}

// quirks: "One poison message, one silent server, one slow account never hold up another account."
#[test]
fn a_thousand_silent_hosts_do_not_hold_up_those_that_answer() {
    let rules = Rules { processors: 64, host_connections: 20, ..rules() };
    let mut scheduler = Scheduler::new(rules);
    for n in 0..1000 {
        once(&mut scheduler, &format!("silent{n}"), &format!("silent{n}"), START);
    }
    let fine: HashSet<Id> =
        (0..100).map(|n| once(&mut scheduler, &format!("fine{n}"), &format!("fine{n}"), START)).collect();
    // Silent sessions end after a minute, the others at once.
    let mut polled = HashSet::new();
    let mut running: HashMap<Id, Moment> = HashMap::new();
    let mut now = START;
    while polled.len() < fine.len() {
        match scheduler.step(now) {
            Step::Poll(id) if fine.contains(&id) => {
                polled.insert(id);
                scheduler.finished(id, GOOD, now);
            }
            Step::Poll(id) => {
                running.insert(id, now.after(MINUTE));
            }
            Step::Yield(id) => {
                running.remove(&id);
                scheduler.finished(id, failed(Code::Interrupted, Scope::Local), now);
            }
            Step::Wait(_) => {
                now = now.after(Duration::from_millis(500));
                let ended: Vec<Id> =
                    running.iter().filter(|(_, end)| **end <= now).map(|(id, _)| *id).collect();
                for id in ended {
                    running.remove(&id);
                    scheduler.finished(id, failed(Code::TimedOut, Scope::Host), now);
                }
            }
        }
        assert!(now.since(START) <= Duration::from_secs(12), "{} of 100 after 12 s", polled.len());
    }
    // Once they are known to answer, the silent ones cost them nothing at all.
    let mut worst = Duration::ZERO;
    let end = now.after(30 * MINUTE);
    while now < end {
        match scheduler.step(now) {
            Step::Poll(id) if fine.contains(&id) => {
                worst = worst.max(now.since(scheduler.entry(id.0).unwrap().due));
                scheduler.finished(id, GOOD, now);
            }
            Step::Poll(id) => {
                running.insert(id, now.after(MINUTE));
            }
            Step::Yield(id) => {
                running.remove(&id);
                scheduler.finished(id, failed(Code::Interrupted, Scope::Local), now);
            }
            Step::Wait(_) => {
                now = now.after(Duration::from_millis(500));
                let ended: Vec<Id> =
                    running.iter().filter(|(_, end)| **end <= now).map(|(id, _)| *id).collect();
                for id in ended {
                    running.remove(&id);
                    scheduler.finished(id, failed(Code::TimedOut, Scope::Host), now);
                }
            }
        }
    }
    assert!(worst <= Duration::from_secs(1), "{worst:?}");
}

#[test]
fn ten_thousand_accounts_of_one_host_do_not_stand_before_another_host() {
    let mut scheduler = Scheduler::new(Rules { processors: 4, host_connections: 0, ..rules() });
    for n in 0..10_000 {
        once(&mut scheduler, &format!("big{n}"), "big", START);
    }
    let small = once(&mut scheduler, "small", "small", START);
    for turn in 0..10 {
        for id in starts(&mut scheduler, START) {
            if id == small {
                return;
            }
            scheduler.finished(id, GOOD, START);
        }
        assert!(turn < 9, "the small host had no turn");
    }
}

#[test]
fn an_idle_record_is_small() {
    let entry = size_of::<Option<Entry>>();
    // Tables may be grown to twice of what they hold.
    let by_key = 2 * (size_of::<(RecordKey, u32)>() + 1);
    let timed = 2 * size_of::<(Moment, u32)>();
    let host = size_of::<Option<Host>>() + 2 * (size_of::<((Arc<str>, u16), u32)>() + 1);
    assert!(2 * entry + by_key + timed + host <= 600, "{entry} {by_key} {timed} {host}");
    assert!(entry + by_key + timed <= 300, "{entry} {by_key} {timed}");
}

#[test]
fn zero_processors_stop_polling_and_running_polls_end_by_themselves() {
    let mut scheduler = Scheduler::new(rules());
    let ids: Vec<Id> =
        (0..8).map(|n| once(&mut scheduler, &format!("r{n}"), &format!("h{n}"), START)).collect();
    let running = starts(&mut scheduler, START);
    assert_eq!(running.len(), 3, "one processor is kept for hosts that answer");
    scheduler.follow(Rules { processors: 0, ..rules() }, START);
    scheduler.finished(running[0], GOOD, START);
    assert_eq!(starts(&mut scheduler, START), []);
    assert_eq!(scheduler.figures(START).polling, 2);
    scheduler.follow(Rules { processors: 100, ..rules() }, START);
    assert_eq!(starts(&mut scheduler, START).len(), ids.len() - 3);
}

#[test]
fn a_record_that_is_removed_and_comes_back_while_it_is_polled_is_not_polled_twice() {
    let mut scheduler = Scheduler::new(rules());
    let id = once(&mut scheduler, "a", "h", START);
    starts(&mut scheduler, START);
    assert!(scheduler.remove(&timing("a", "h").key));
    let back = scheduler.put(&timing("a", "elsewhere"), Past::default(), true, START);
    assert_eq!(back, id);
    assert_eq!(starts(&mut scheduler, START), []);
    scheduler.finished(id, failed(Code::Interrupted, Scope::Local), START);
    assert_eq!(starts(&mut scheduler, START), [id], "and then at once, as it now is");
    assert!(scheduler.remove(&timing("a", "h").key));
    assert_eq!(scheduler.finished(id, GOOD, START), None);
    assert_eq!(scheduler.figures(START).records, 0);
    assert!(scheduler.hosts.iter().all(Option::is_none), "its hosts are forgotten too");
}

#[test]
fn a_disabled_record_is_not_polled_until_it_is_enabled() {
    let mut scheduler = Scheduler::new(rules());
    let mut disabled = timing("a", "h");
    disabled.interval = None;
    let id = scheduler.put(&disabled, Past::default(), false, START);
    assert_eq!(scheduler.next(id), None);
    assert_eq!(scheduler.step(START), Step::Wait(None));
    scheduler.put(&timing("a", "h"), Past::default(), false, START);
    assert_eq!(starts(&mut scheduler, START), [id]);
    scheduler.put(&disabled, Past::default(), false, START);
    assert_eq!(scheduler.finished(id, GOOD, START), None);
}

#[test]
fn a_delay_survives_a_restart_unless_it_is_absurd() {
    let past = |wait: Duration| Past {
        last_poll: Some(START),
        not_before: Some(START.after(wait)),
        failures: 3,
        ..Past::default()
    };
    let mut scheduler = Scheduler::new(rules());
    let id = scheduler.put(&timing("a", "h"), past(80 * MINUTE), false, START);
    assert_eq!(scheduler.next(id).unwrap().since(START), 80 * MINUTE);
    let id = scheduler.put(&timing("b", "h"), past(1_000_000 * MINUTE), false, START);
    assert_eq!(scheduler.next(id).unwrap().since(START), LONGEST_DELAY);
}

#[test]
fn in_a_single_run_a_failed_host_is_not_tried_for_its_other_records() {
    let mut scheduler = Scheduler::new(rules());
    let ids: Vec<Id> = (0..5).map(|n| once(&mut scheduler, &format!("r{n}"), "h", START)).collect();
    let running = starts(&mut scheduler, START);
    assert_eq!(running.len(), 2);
    scheduler.finished(running[0], failed(Code::HostUnreachable, Scope::Host), START);
    let abandoned = scheduler.abandon_host("h", 995);
    assert_eq!(abandoned, ids[2..]);
    scheduler.finished(running[1], GOOD, START);
    let later: Vec<Id> = starts(&mut scheduler, START.after(20 * MINUTE));
    assert!(later.iter().all(|id| running.contains(id)));
}

#[test]
fn records_of_one_maildrop_take_turns() {
    let mut scheduler = Scheduler::new(Rules { processors: 16, host_connections: 0, ..rules() });
    let same = |name: &str| Timing { maildrop: 1, ..timing(name, "h") };
    let at_once = Past { at_once: true, ..Past::default() };
    let [a, b, c] = ["a", "b", "c"].map(|name| scheduler.put(&same(name), at_once, false, START));
    let other = once(&mut scheduler, "other", "h", START);
    let elsewhere = scheduler.put(&Timing { maildrop: 1, ..timing("e", "g") }, at_once, false, START);
    let started: HashSet<Id> = starts(&mut scheduler, START).into_iter().collect();
    assert_eq!(started, HashSet::from([a, other, elsewhere]));
    scheduler.finished(other, GOOD, START);
    assert_eq!(starts(&mut scheduler, START), []);
    scheduler.finished(a, GOOD, START);
    assert_eq!(starts(&mut scheduler, START), [b]);
    // One that is given another maildrop while it is polled still has the old one.
    scheduler.put(&timing("b", "h"), Past::default(), false, START);
    assert_eq!(starts(&mut scheduler, START), []);
    scheduler.finished(b, GOOD, START);
    assert_eq!(starts(&mut scheduler, START), [c]);
}

#[derive(Clone, Debug)]
enum Event {
    Put(u8, u8, bool),
    Disable(u8),
    Remove(u8),
    Follow(u8, u8),
    Pass(u32),
    Rest(u16, u16),
    Finish(u8, u8),
    Answer(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..40_u8, 0..5_u8, any::<bool>()).prop_map(|(record, host, again)| Event::Put(record, host, again)),
        1 => (0..40_u8).prop_map(Event::Disable),
        1 => (0..40_u8).prop_map(Event::Remove),
        1 => (0..8_u8, 0..4_u8).prop_map(|(processors, connections)| Event::Follow(processors, connections)),
        4 => (0..600_000_u32).prop_map(Event::Pass),
        1 => (0..900_u16, 0..900_u16).prop_map(|(from, long)| Event::Rest(from, long)),
        6 => (any::<u8>(), 0..8_u8).prop_map(|(which, how)| Event::Finish(which, how)),
        2 => any::<u8>().prop_map(Event::Answer),
    ]
}

fn ending(how: u8) -> End {
    match how {
        0 => failed(Code::HostUnreachable, Scope::Host),
        1 => failed(Code::AuthFailed, Scope::Account),
        2 => failed(Code::DestinationUnavailable, Scope::Local),
        3 => failed(Code::Interrupted, Scope::Local),
        4 => failed(Code::Internal, Scope::Local),
        5 => End { failure: None, login_delay: Some(MINUTE) },
        _ => GOOD,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_laws_hold_under_any_history(events in prop::collection::vec(event(), 1..200)) {
        let mut scheduler = Scheduler::new(rules());
        let mut rules = rules();
        let mut now = START;
        let mut rest: Option<Rest> = None;
        // Some records share a maildrop.
        let shared = |record: u8, host: u8| {
            Timing { maildrop: u64::from(record % 9), ..timing(&format!("r{record}"), &format!("h{host}")) }
        };
        // What runs, and where: host and maildrop.
        let mut running: Vec<(Id, (u8, u8))> = Vec::new();
        let mut at: HashMap<Id, (u8, u8)> = HashMap::new();
        let mut present: HashMap<u8, Id> = HashMap::new();
        for event in events {
            match event {
                Event::Put(record, host, again) => {
                    let id = scheduler.put(&shared(record, host), Past::default(), again, now);
                    present.insert(record, id);
                    at.insert(id, (host, record % 9));
                }
                Event::Disable(record) => if present.contains_key(&record) {
                    let id = present[&record];
                    let timing = Timing { interval: None, ..shared(record, at[&id].0) };
                    scheduler.put(&timing, Past::default(), false, now);
                },
                Event::Remove(record) => if let Some(id) = present.remove(&record) {
                    let polled = scheduler.remove(&timing(&format!("r{record}"), "").key);
                    prop_assert_eq!(polled, running.iter().any(|(other, _)| *other == id));
                },
                Event::Follow(processors, connections) => {
                    rules.processors = processors.into();
                    rules.host_connections = connections.into();
                    scheduler.follow(rules, now);
                }
                Event::Pass(wait) => now = now.after(Duration::from_millis(wait.into())),
                Event::Rest(ahead, long) => {
                    let from = now.after(Duration::from_secs(ahead.into()));
                    let until = from.after(Duration::from_secs(long.into()));
                    rest = (long > 0).then_some(Rest { from, until });
                    scheduler.rest(rest, now);
                }
                Event::Finish(which, how) => if !running.is_empty() {
                    let (id, _) = running.remove(usize::from(which) % running.len());
                    if let Some(next) = scheduler.finished(id, ending(how), now) {
                        prop_assert!(next >= now);
                        prop_assert!(rest.is_none_or(|rest| next < rest.from || next >= rest.until));
                    }
                },
                Event::Answer(which) => if !running.is_empty() {
                    scheduler.answered(running[usize::from(which) % running.len()].0);
                },
            }
            loop {
                match scheduler.step(now) {
                    Step::Poll(id) => {
                        prop_assert!(running.iter().all(|(other, _)| *other != id), "polled twice at once");
                        prop_assert!(rest.is_none_or(|rest| now < rest.from || now >= rest.until), "at rest");
                        prop_assert!(running.iter().all(|(_, other)| *other != at[&id]), "two at one maildrop");
                        running.push((id, at[&id]));
                        prop_assert!(running.len() <= rules.processors as usize);
                        let there = running.iter().filter(|(_, (host, _))| *host == at[&id].0).count();
                        prop_assert!(rules.host_connections == 0 || there <= rules.host_connections as usize);
                    }
                    Step::Yield(id) => prop_assert!(running.iter().any(|(other, _)| *other == id)),
                    Step::Wait(Some(wake)) => { prop_assert!(wake > now); break }
                    Step::Wait(None) => break,
                }
            }
            prop_assert_eq!(scheduler.figures(now).polling as usize, running.len());
        }
        // Whatever happened: with room to work, every enabled record is polled
        // within its longest delay.
        scheduler.follow(Rules { processors: 4, host_connections: 2, ..rules }, now);
        for (id, _) in running.drain(..) {
            scheduler.finished(id, GOOD, now);
        }
        let mut owed: HashSet<Id> = present.values().copied()
            .filter(|id| scheduler.next(*id).is_some())
            .collect();
        let end = now.after(2 * LONGEST_DELAY);
        while !owed.is_empty() && now < end {
            match scheduler.step(now) {
                Step::Poll(id) => { owed.remove(&id); scheduler.finished(id, GOOD, now); }
                Step::Yield(_) => {}
                Step::Wait(wake) => now = wake.expect("records are owed a poll"),
            }
        }
        prop_assert!(owed.is_empty(), "never polled: {owed:?}");
        // And nothing is left behind when all are gone.
        for record in 0..40 {
            scheduler.remove(&timing(&format!("r{record}"), "").key);
        }
        prop_assert!(scheduler.timed.is_empty() && scheduler.failed.is_empty() && scheduler.unheard.is_empty());
        prop_assert!(scheduler.busy.is_empty());
        prop_assert!(scheduler.by_host.is_empty() && scheduler.ready.is_empty() && scheduler.doubtful_ready.is_empty());
        prop_assert_eq!((scheduler.polling, scheduler.doubtful, scheduler.yielding, scheduler.scheduled), (0, 0, 0, 0));
    }
}
