//! The activity schedule as a user sees it: with a clock that is set, and with
//! one that is changed while it runs.

use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;

use crate::support::manifest::Record;
use crate::support::pop3::{Act, Pop3};
use crate::support::rig::{NAME, Rig};
use crate::support::smtp::Smtp;
use crate::support::wait_until;

const HOURS: &str =
    "activitySchedule: {timeZone: Europe/Berlin, windows: [{from: \"08:00\", to: \"18:00\"}]}";

/// A maildrop whose messages take their time.
fn slow(messages: usize) -> Pop3 {
    Pop3::new().capabilities(Some(&["UIDL", "USER"])).generated("m", messages, 400).script(|call| {
        if call.verb == "RETR" {
            std::thread::sleep(Duration::from_millis(50));
        }
        Act::Properly
    })
}

/// In the evening of the day before the clocks go forward the poll that is
/// under way ends between two messages; in the morning, an hour sooner than on
/// any other day, the rest is fetched.
#[test]
fn polling_ends_in_the_evening_and_goes_on_in_the_morning_by_the_clocks_of_the_zone() {
    let test = "polling_ends_in_the_evening_and_goes_on_in_the_morning_by_the_clocks_of_the_zone";
    let rig = Rig::to(slow(400), Smtp::lmtp());
    rig.site.settings(&[HOURS]);
    let Some(mut evening) = rig.site.start_at(test, "2026-03-28 16:59:57", &[]) else { return };
    evening.wait_to_say("nothing is polled until Sunday, 2026-03-29 08:00 (Europe/Berlin)");
    wait_until("the session's end", || rig.pop.open() == 0);
    let fetched = rig.sink.accepted();
    assert!((5..400).contains(&fetched), "{fetched} of 400");
    assert_eq!((rig.pop.count("QUIT"), rig.pop.uids().len()), (1, 400 - fetched), "it left in order");
    evening.signal(Signal::TERM);
    evening.wait().expect(0);

    let sessions = rig.pop.sessions();
    let mut morning = rig.site.start_at(test, "2026-03-29 05:59:57", &[]).unwrap();
    morning.wait_to_say("nothing is polled until Sunday, 2026-03-29 08:00 (Europe/Berlin)");
    morning.wait_to_say("polling begins again");
    wait_until("the rest", || rig.sink.accepted() == 400);
    assert_eq!(rig.marks().len(), 400);
    assert_eq!(rig.pop.sessions(), sessions + 1);
    let text = morning.text();
    let (before, _) = text.split_once("polling begins again").unwrap();
    assert!(!before.contains("delivered"), "nothing before eight:\n{text}");
    morning.signal(Signal::TERM);
    morning.wait().expect(0);
}

/// The same moment, a winter's day: it is not yet eight.
#[test]
fn on_other_days_the_same_hour_of_utc_is_outside() {
    let test = "on_other_days_the_same_hour_of_utc_is_outside";
    let rig = Rig::new(Pop3::new().generated("m", 1, 300));
    rig.site.settings(&[HOURS]);
    let Some(run) = rig.site.start_at(test, "2026-03-28 06:30:00", &["--once"]) else { return };
    let run = run.wait().expect(0);
    run.says("Interrupted: outside of RpopSettings.activitySchedule");
    run.says("until Saturday, 2026-03-28 08:00 (Europe/Berlin)");
    assert_eq!(rig.pop.sessions(), 0);
    let summer = rig.site.start_at(test, "2026-03-29 06:30:00", &["--once"]).unwrap();
    summer.wait().expect(0);
    assert_eq!(rig.sink.accepted(), 1);
}

/// Windows in UTC around now, or far from it.
fn window(open: bool) -> String {
    let now = Timestamp::now().to_zoned(TimeZone::UTC);
    let at =
        |hours| now.checked_add(SignedDuration::from_hours(hours)).unwrap().strftime("%H:%M").to_string();
    let (from, to) = if open { (at(-5), at(5)) } else { (at(5), at(10)) };
    format!("activitySchedule: {{windows: [{{from: \"{from}\", to: \"{to}\"}}]}}")
}

#[test]
fn a_schedule_is_taken_up_while_it_runs_and_a_wrong_one_leaves_the_last_good_one() {
    let rig = Rig::to(slow(1000), Smtp::lmtp());
    let often =
        Record::plain(NAME, rig.pop.port(), "alice").yaml().replace("pollEvery: 5m", "pollEvery: 10s");
    rig.site.write(&format!("record-{NAME}.yaml"), &often);
    rig.site.settings(&[&window(true)]);
    let mut running = rig.site.start(&[]);
    wait_until("some mail", || rig.sink.accepted() > 5);
    rig.site.settings(&[&window(false)]);
    running.wait_to_say("outside of activitySchedule");
    wait_until("the session's end", || rig.pop.open() == 0);
    let (fetched, sessions) = (rig.sink.accepted(), rig.pop.sessions());
    assert!(fetched < 1000);
    // A record that is new is no reason to connect.
    rig.site.record(&Record::plain("other", rig.pop.port(), "alice"));
    running.wait_to_say("the manifests have changed: 2 records");
    rig.site.settings(&["activitySchedule: {timeZone: Berlin, windows: [{from: \"00:00\", to: \"24:00\"}]}"]);
    running.wait_to_say("there is no time zone `Berlin`: did you mean `Europe/Berlin`?");
    assert_eq!((rig.sink.accepted(), rig.pop.sessions()), (fetched, sessions));
    rig.site.remove("record-other.yaml");
    rig.site.settings(&[]);
    running.wait_to_say("polling begins again");
    wait_until("more mail", || rig.sink.accepted() > fetched + 5);
    running.signal(Signal::INT);
    running.wait().expect(0);
    assert!(rig.sink.marks().values().all(|count| *count == 1));
}

#[test]
fn check_connects_to_nobody_outside_and_says_so() {
    let rig = Rig::new(Pop3::new().generated("m", 1, 300));
    rig.site.settings(&[&window(false)]);
    let manifests = rig.site.manifests();
    let state = rig.site.state.clone();
    let args = ["check", "--connect", "-f", manifests.to_str().unwrap(), "--state", state.to_str().unwrap()];
    let run = rig.site.rpop(&args).expect(0);
    run.says("no server was asked: outside of RpopSettings.activitySchedule");
    assert_eq!(rig.pop.sessions(), 0);
}

#[test]
fn a_schedule_that_cannot_be_is_refused_with_what_to_write() {
    let rig = Rig::new(Pop3::new());
    for (schedule, says) in [
        ("{windows: []}", "`windows` is empty"),
        ("{windows: [{from: \"08:00\", to: \"08:00\"}]}", "never opens: for the whole day write"),
        ("{timeZone: ../x, windows: [{from: \"08:00\", to: \"09:00\"}]}", "write an IANA name"),
        ("{windows: [{days: [Monday], from: \"08:00\", to: \"09:00\"}]}", "Mon"),
        ("{windows: [{from: \"8:00\", to: \"09:00\"}]}", "5"),
        ("{windows: [{from: \"28:00\", to: \"09:00\"}]}", "write a time of day like \"08:00\""),
    ] {
        rig.site.settings(&[&format!("activitySchedule: {schedule}")]);
        let run = rig.site.rpop(&["check", "-f", rig.site.manifests().to_str().unwrap()]).expect(2);
        run.says(says);
    }
}
