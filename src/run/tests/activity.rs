//! The activity schedule, with a clock that the tests move.

use std::sync::atomic::{AtomicI64, Ordering};

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::domain::schedule::{Schedule, Window};

/// A wall clock that goes with the paused time, and can be set.
#[derive(Clone)]
struct Clock {
    start: Timestamp,
    since: Instant,
    set: Arc<AtomicI64>,
}

impl Clock {
    fn at(start: &str) -> Self {
        Self { start: start.parse().unwrap(), since: Instant::now(), set: Arc::default() }
    }

    fn wall(&self) -> Wall {
        let clock = self.clone();
        Wall::new(move || {
            let passed = SignedDuration::try_from(clock.since.elapsed()).unwrap();
            let set = SignedDuration::from_secs(clock.set.load(Ordering::Relaxed));
            clock.start.checked_add(passed + set).unwrap()
        })
    }

    fn set_on(&self, seconds: i64) {
        self.set.fetch_add(seconds, Ordering::Relaxed);
    }
}

fn hours(days: &[Weekday], from: &str, to: &str) -> Settings {
    let window = Window::new(days.iter().copied(), from, to).unwrap();
    let schedule = Schedule::new(TimeZone::get("Europe/Berlin").unwrap(), vec![window]);
    Settings { activity: Some(Arc::new(schedule)), ..Settings::default() }
}

fn stand_on(clock: &Clock, items: &[WorkItem], acts: &[(&str, &[Act])], settings: Settings) -> Stand {
    stand_at(clock.wall(), Snapshot::default(), items, acts, false, settings)
}

/// When polls began: minutes after the start.
fn minutes(stand: &Stand, name: &str) -> Vec<u64> {
    stand.polls(name).iter().map(|poll| poll.0.as_secs() / 60).collect()
}

async fn settings(stand: &Stand, items: &[WorkItem], settings: Settings) {
    let desired = Desired { settings: Arc::new(settings), items: shared(items), ..Desired::default() };
    stand.change.send(desired).await.unwrap();
}

fn next_poll(stand: &Stand, name: &str) -> i64 {
    let statuses = lock(&stand.memory.statuses);
    statuses.iter().rfind(|(key, _)| *key.name == *name).unwrap().1.next_poll.unwrap()
}

fn open(stand: &Stand) -> bool {
    let text = String::from_utf8(stand.metrics.encode().unwrap()).unwrap();
    text.lines().any(|line| line == "rpop_schedule_open 1")
}

#[tokio::test(start_paused = true)]
async fn nothing_begins_outside_of_the_schedule_and_a_running_poll_ends_at_its_next_message() {
    // Half past five in the evening, Monday.
    let clock = Clock::at("2026-02-02T16:30:00Z");
    let items = [item("short", "a"), item("long", "b"), item("silent", "c")];
    let acts: &[(&str, &[Act])] = &[("long", &[Act::Long])];
    let stand = stand_on(&clock, &items, acts, hours(&[], "08:00", "18:00"));
    stand.until(29 * 60).await;
    assert!(open(&stand));
    assert!(stand.polls("long").is_empty(), "still at it");
    stand.until(31 * 60).await;
    assert!(!open(&stand));
    let long = stand.polls("long");
    assert_eq!((long[0].1.as_secs(), long[0].2.as_str()), (30 * 60, "Interrupted"));
    // 14 h later it is eight in the morning.
    let opening = 30 + 14 * 60;
    stand.until((opening - 1) * 60).await;
    assert!(minutes(&stand, "short").iter().all(|minute| *minute < 30), "{:?}", stand.polls("short"));
    assert!(!open(&stand));
    let text = String::from_utf8(stand.metrics.encode().unwrap()).unwrap();
    assert!(text.contains("rpop_overdue_records 0"), "nothing is late at night");
    stand.until((opening + 2) * 60).await;
    for name in ["short", "silent"] {
        let began: Vec<u64> = minutes(&stand, name).into_iter().filter(|minute| *minute > 30).collect();
        assert!(began.iter().all(|minute| *minute >= opening), "{began:?}");
        assert!(!began.is_empty(), "{name} is polled when it opens");
    }
    stand.until((opening + 60) * 60).await;
    let began = minutes(&stand, "short").into_iter().filter(|minute| *minute >= opening).count();
    assert!((12..=14).contains(&began), "as ever: {began}");
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn the_next_poll_that_a_record_tells_is_one_that_takes_place() {
    let clock = Clock::at("2026-02-06T16:58:00Z");
    let work = [Weekday::Monday, Weekday::Tuesday, Weekday::Wednesday, Weekday::Thursday, Weekday::Friday];
    let stand = stand_on(&clock, &[item("a", "h")], &[], hours(&work, "08:00", "18:00"));
    stand.until(5).await;
    assert_eq!(stand.polls("a").len(), 1);
    // The status follows the system's clock: the wait is what counts.
    let wait = next_poll(&stand, "a") - Timestamp::now().as_second();
    let monday: Timestamp = "2026-02-09T07:00:00Z".parse().unwrap();
    let wanted = monday.duration_since(clock.start).as_secs();
    assert!((wanted - 10..=wanted + 2).contains(&wait), "{wait}, not {wanted}");
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_schedule_that_is_changed_counts_at_once() {
    let clock = Clock::at("2026-02-02T12:00:00Z");
    let items = [item("a", "h"), item("long", "b")];
    let acts: &[(&str, &[Act])] = &[("long", &[Act::Long])];
    let stand = stand_on(&clock, &items, acts, Settings::default());
    stand.until(10).await;
    settings(&stand, &items, hours(&[], "20:00", "21:00")).await;
    stand.until(11).await;
    assert_eq!(stand.polls("long")[0].2, "Interrupted");
    stand.until(3600).await;
    assert_eq!(stand.polls("a").len(), 1);
    settings(&stand, &items, hours(&[], "00:00", "24:00")).await;
    stand.until(3610).await;
    assert_eq!(stand.polls("a").len(), 2);
    settings(&stand, &items, hours(&[], "20:00", "21:00")).await;
    stand.until(7200).await;
    assert_eq!(stand.polls("a").len(), 2);
    settings(&stand, &items, Settings::default()).await;
    stand.until(7210).await;
    assert_eq!(stand.polls("a").len(), 3, "without a schedule always");
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_is_followed() {
    let clock = Clock::at("2026-02-02T12:00:00Z");
    let stand = stand_on(&clock, &[item("a", "h")], &[], hours(&[], "08:00", "18:00"));
    stand.until(10).await;
    assert_eq!(stand.polls("a").len(), 1);
    clock.set_on(8 * 3600);
    // The clock is looked at with every beat.
    stand.until(20).await;
    assert!(!open(&stand));
    stand.until(3600).await;
    assert_eq!(stand.polls("a").len(), 1);
    clock.set_on(-8 * 3600);
    stand.until(3610).await;
    assert_eq!(stand.polls("a").len(), 2);
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn in_spring_the_morning_comes_an_hour_sooner() {
    // Saturday, 28 March 2026, 17:50 in Berlin; that night the clocks go forward.
    let clock = Clock::at("2026-03-28T16:50:00Z");
    let stand = stand_on(&clock, &[item("a", "h")], &[], hours(&[], "08:00", "18:00"));
    stand.until(24 * 3600).await;
    let began = minutes(&stand, "a");
    let first = began.iter().find(|minute| **minute > 10).unwrap();
    assert!((10 + 13 * 60..=15 + 13 * 60).contains(first), "{began:?}");
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_thousand_records_do_not_all_begin_when_it_opens() {
    let clock = Clock::at("2026-02-02T12:00:00Z");
    let items: Vec<WorkItem> = (0..1000).map(|n| item(&format!("r{n}"), &format!("h{n}"))).collect();
    let settings = Settings { processors: 2000, ..hours(&[], "14:00", "15:00") };
    let stand = stand_on(&clock, &items, &[], settings);
    stand.until(3600).await;
    assert!(lock(&stand.log).polls.is_empty(), "it is one");
    stand.until(3605).await;
    let soon = lock(&stand.log).polls.len();
    assert!((20..600).contains(&soon), "{soon} within five seconds");
    stand.until(3700).await;
    assert_eq!(lock(&stand.log).polls.len(), 1000);
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn once_polls_nothing_outside_and_that_is_no_failure() {
    let clock = Clock::at("2026-02-02T20:00:00Z");
    let stand = stand_at(
        clock.wall(),
        Snapshot::default(),
        &[item("a", "h")],
        &[],
        true,
        hours(&[], "08:00", "18:00"),
    );
    let (memory, log) = (Arc::clone(&stand.memory), Arc::clone(&stand.log));
    assert_eq!(stand.run.await.unwrap(), Summary::default());
    assert!(lock(&log).polls.is_empty());
    let shown = lock(&memory.shown).clone();
    assert!(shown[0].1.contains("until Tuesday, 2026-02-03 08:00 (Europe/Berlin)"), "{shown:?}");
}
