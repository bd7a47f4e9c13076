//! Crashes, broken surroundings and wrong input: nothing is lost, and what is
//! wrong is said where it is.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::Instant;

use crate::support::dovecot::Dovecot;
use crate::support::mail::{census, census_arrived, message};
use crate::support::manifest::{self, Record};
use crate::support::pop3::{self, Pop3};
use crate::support::proxy::{Proxy, Weather};
use crate::support::rig::{NAME, Rig, SHORT};
use crate::support::rpop::{self, Site};
use crate::support::smtp::{self, Smtp};
use crate::support::{is_root, skipped, wait_until};

/// Fails unless each of `count` messages arrived, and returns how many came
/// more than once.
fn repeated(marks: &BTreeMap<String, usize>, name: &str, count: usize) -> usize {
    for at in 0..count {
        assert!(marks.contains_key(&format!("{name}-{at:05}")), "{name}-{at:05} is lost");
    }
    assert_eq!(marks.len(), count, "something arrived that was never sent");
    marks.values().map(|count| count - 1).sum()
}

/// quirks: "kill -9, power loss, connection drop at any byte, on either side"
fn killed_at_many_moments(leave: bool) {
    const COUNT: usize = 400;
    const CHECKPOINT: usize = 20;
    let pop = Pop3::new().generated("k", COUNT, 2500);
    let rig = if leave { Rig::keeping(pop) } else { Rig::new(pop) };
    // Moments from the first message to the last, and odd ones in between.
    let moments = [1, 2, 19, 20, 21, 39, 55, 77, 100, 141, 160, 222, 260, 300, 333, 361, 390, 399, 400];
    let mut kills = 0;
    for moment in moments {
        let mut running = rig.site.start_once();
        wait_until("a moment to kill at", || rig.sink.marks().len() >= moment || !running.runs());
        if running.runs() {
            kills += 1;
        }
        running.kill();
        wait_until("the sessions' end", || rig.pop.open() == 0 && rig.sink.open() == 0);
    }
    let run = rig.poll().expect(0);
    let repeated = repeated(&rig.sink.marks(), "k", COUNT);
    println!("{kills} kills, {repeated} messages repeated (leave: {leave})");
    assert!(repeated <= kills * CHECKPOINT, "{repeated} repeated after {kills} kills\n{}", run.text());
    assert_eq!(rig.pop.uids().len(), if leave { COUNT } else { 0 }, "orphans on the server");
    rig.poll().expect(0);
    assert_eq!(rig.sink.marks().values().sum::<usize>(), COUNT + repeated, "a later poll repeats");
}

#[test]
fn kill_9_loses_nothing_and_repeats_at_most_a_checkpoint() {
    killed_at_many_moments(false);
}

#[test]
fn kill_9_while_mail_is_kept_loses_nothing_and_repeats_at_most_a_checkpoint() {
    killed_at_many_moments(true);
}

#[test]
fn a_connection_cut_at_any_octet_loses_nothing() {
    // quirks: "EOF in the middle of a body ends that session at once."
    const COUNT: usize = 5;
    let rig = Rig::new(Pop3::new().generated("c", COUNT, 600));
    for octets in (0..4200).step_by(97) {
        rig.pop.cut_after(Some(octets));
        let run = rig.poll();
        assert!(matches!(run.code(), 0 | 1), "{}", run.text());
        assert!(run.took < Duration::from_secs(10), "cut after {octets}: {:?}", run.took);
    }
    rig.pop.cut_after(None);
    // What was cut off in its middle may have been set aside for a while.
    let marks = rig.sink.marks();
    assert!(marks.values().all(|count| *count <= 2), "{marks:?}");
    rig.poll();
    for accepted in rig.sink.mail() {
        let mark = accepted.message.mark();
        assert_eq!(accepted.message.original(), message(&mark, 600), "a torn message was accepted");
    }
}

#[test]
fn a_destination_cut_at_any_octet_loses_nothing() {
    const COUNT: usize = 5;
    let pop = Pop3::new().generated("c", COUNT, 600).start();
    let sink = Smtp::lmtp().start();
    // Each reply of the sink is cut off somewhere, in turn.
    for octets in (0..420).step_by(23) {
        let weather = Weather { cut_after: Some(octets), ..Weather::default() };
        let proxy = Proxy::start(sink.port(), weather);
        let site = Site::for_delivery(&rpop::lmtp(proxy.port));
        site.settings(&[SHORT]);
        site.record(&Record::plain(NAME, pop.port(), "alice").with("leave: true"));
        let before = sink.marks();
        let run = site.once();
        assert!(matches!(run.code(), 0 | 1), "{}", run.text());
        // Cut off behind its dot a message may come twice, and no other.
        let unclear = site.once();
        assert!(matches!(unclear.code(), 0 | 1), "{}", unclear.text());
        let straight = Site::for_delivery(&rpop::lmtp(sink.port()));
        straight.settings(&[SHORT]);
        straight.record(&Record::plain(NAME, pop.port(), "alice").with("leave: true"));
        std::fs::rename(&site.state, &straight.state).unwrap();
        straight.once();
        straight.once();
        for at in 0..COUNT {
            let mark = format!("c-{at:05}");
            let came = sink.marks()[&mark] - before.get(&mark).copied().unwrap_or(0);
            assert!((1..=3).contains(&came), "{mark} came {came} times with replies cut after {octets}");
        }
    }
    for accepted in sink.mail() {
        assert_eq!(accepted.message.original(), message(&accepted.message.mark(), 600), "torn");
    }
}

#[test]
fn a_destination_that_is_down_costs_nothing_but_time() {
    let rig = Rig::new(Pop3::new().generated("d", 6, 500));
    let fine = Smtp::lmtp().start();
    rig.site.write("fine.yaml", &manifest::domain("fine.test", &rpop::lmtp(fine.port())));
    let other = Pop3::new().generated("f", 3, 500).start();
    rig.site.record(&Record::plain("fine", other.port(), "alice").to("alice@fine.test"));
    let dead = crate::support::free_port();
    rig.site.write("domain.yaml", &manifest::domain("local.test", &rpop::lmtp(dead)));
    for _ in 0..3 {
        rig.poll().expect(1).says("DestinationUnavailable");
    }
    assert_eq!((rig.pop.uids().len(), fine.accepted(), other.uids().len()), (6, 3, 0));
    rig.site.write("domain.yaml", &manifest::domain("local.test", &rpop::lmtp(rig.sink.port())));
    rig.poll().expect(0);
    assert_eq!((rig.marks().len(), rig.pop.uids().len()), (6, 0));
}

/// A small file system of its own for the state; root only.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &std::path::Path, options: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).output().unwrap();
        done.status.success().then(|| Self(at.to_owned()))
    }

    fn again(&self, options: &str) {
        let mut mount = Command::new("mount");
        assert!(mount.args(["-o", options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_stops_the_record_and_loses_nothing() {
    const COUNT: usize = 200;
    let test = "a_full_disk_stops_the_record_and_loses_nothing";
    let rig = Rig::new(Pop3::new().generated("full", COUNT, 500));
    if !is_root() {
        return skipped(test, "only root can mount a small file system");
    }
    let Some(disk) = Small::mount(&rig.site.state, "size=256k") else {
        return skipped(test, "mount(8) does not work here");
    };
    rig.site.once();
    let filler = rig.site.state.join("filler");
    let first = rig.sink.accepted();
    assert_eq!(first, COUNT);
    for at in 0..COUNT {
        let mark = format!("more-{at:05}");
        rig.pop.put(&mark, &message(&mark, 500));
    }
    let full = std::fs::write(&filler, vec![0; 1 << 20]);
    assert!(full.is_err(), "the disk was to be full");
    for _ in 0..5 {
        rig.poll().expect(1).says("LedgerUnwritable");
    }
    assert!(rig.pop.uids().len() >= COUNT - 20, "deleted without a ledger");
    std::fs::remove_file(&filler).unwrap();
    rig.poll().expect(0);
    let mut marks = rig.sink.marks();
    marks.retain(|mark, _| mark.starts_with("more-"));
    let repeated = repeated(&marks, "more", COUNT);
    assert!(repeated <= 20, "{repeated} repeated");
    assert!(rig.pop.uids().is_empty());
    drop(disk);
}

#[test]
fn a_read_only_state_folder_is_said_before_anything_is_fetched() {
    let test = "a_read_only_state_folder";
    let rig = Rig::new(Pop3::new().generated("ro", 5, 500));
    let disk = if is_root() {
        let Some(disk) = Small::mount(&rig.site.state, "size=1m") else {
            return skipped(test, "mount(8) does not work here");
        };
        disk.again("remount,ro");
        Some(disk)
    } else {
        std::fs::create_dir_all(&rig.site.state).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o500);
        std::fs::set_permissions(&rig.site.state, mode).unwrap();
        None
    };
    let run = rig.poll();
    assert_ne!(run.code(), 0, "{}", run.text());
    run.says(rig.site.state.to_str().unwrap());
    assert_eq!((rig.sink.accepted(), rig.pop.uids().len()), (0, 5), "{}", run.text());
    drop(disk);
}

#[test]
fn a_second_process_on_the_same_state_is_refused() {
    // quirks: "Two fetchers started on one state at once"
    let rig = Rig::keeping(Pop3::new().generated("two", 3, 500));
    let mut first = rig.site.start(&[]);
    wait_until("the first poll", || rig.sink.accepted() == 3);
    let second = rig.poll();
    assert_ne!(second.code(), 0, "{}", second.text());
    second.says(rig.site.state.to_str().unwrap());
    assert_eq!(rig.sink.accepted(), 3);
    assert!(first.runs());
    first.signal(Signal::TERM);
    first.wait().expect(0);
    rig.poll().expect(0);
    assert_eq!(rig.sink.accepted(), 3);
}

#[test]
fn an_unreadable_ledger_stops_its_record_only() {
    // quirks: "A state file with garbage in it"
    let rig = Rig::keeping(Pop3::new().generated("g", 4, 500));
    let other = Pop3::new().generated("o", 2, 500).start();
    rig.site.record(&Record::plain("other", other.port(), "alice"));
    rig.poll().expect(0);
    assert_eq!(rig.sink.accepted(), 6);
    let path = rig.site.ledger(NAME);
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(b"\x00\xff certainly not a line of a ledger\n");
    std::fs::write(&path, &text).unwrap();
    other.put("o-new", &message("o-new", 300));
    let run = rig.poll().expect(1);
    run.says("LedgerDamaged");
    run.says(path.to_str().unwrap());
    assert_eq!(rig.sink.accepted(), 7, "the other record goes on, this one fetches nothing");
    assert_eq!(std::fs::read(&path).unwrap(), text, "what is damaged is left for a person to look at");
}

#[test]
fn a_pipe_in_the_place_of_a_ledger_holds_up_nobody() {
    let rig = Rig::keeping(Pop3::new().generated("p", 4, 500));
    let other = Pop3::new().generated("o", 2, 500).start();
    rig.site.record(&Record::plain("other", other.port(), "alice"));
    let path = rig.site.ledger(NAME);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let run = rig.poll().expect(1);
    run.says(path.to_str().unwrap());
    run.says("a pipe");
    assert_eq!(rig.sink.accepted(), 2);
}

#[test]
fn a_typo_in_a_manifest_is_shown_with_file_and_line() {
    let rig = Rig::new(Pop3::new().generated("t", 1, 300));
    let record = Record::plain("typo", rig.pop.port(), "alice").yaml().replace("pollEvery:", "polEvery:");
    let path = rig.site.write("typo.yaml", &record);
    let line = 1 + record.lines().position(|line| line.contains("polEvery")).unwrap();
    let shown = format!("{}:{line}", path.file_name().unwrap().to_str().unwrap());
    let manifests = rig.site.manifests();
    for run in [rig.site.rpop(&["check", "-f", manifests.to_str().unwrap()]), rig.poll()] {
        let run = run.expect(2);
        run.says(&shown);
        run.says("pollEvery");
    }
}

#[test]
fn a_missing_secret_is_named_and_stops_its_record_only() {
    let rig = Rig::new(Pop3::new().generated("s", 2, 300));
    rig.site.record(&Record::plain("lost", rig.pop.port(), "alice").secret("no-such-secret"));
    let run = rig.poll();
    assert_ne!(run.code(), 0, "{}", run.text());
    run.says("no-such-secret");
    assert_eq!(rig.sink.accepted(), 2);
}

#[test]
fn a_manifest_that_the_user_cannot_read_is_named() {
    let test = "a_manifest_that_the_user_cannot_read_is_named";
    if is_root() {
        // Nothing is unreadable to root: a folder in the place of a file is.
        let site = Site::new();
        let run = site.rpop(&["check", "-f", "/proc/self/mem"]);
        assert_eq!(run.code(), 2, "{}", run.text());
        return run.says("/proc/self/mem");
    }
    let site = Site::for_delivery(&rpop::lmtp(1));
    let path = site.write("secret-x.yaml", &manifest::secret("x", "password", "y"));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o000)).unwrap();
    let run = site.once();
    assert_eq!(run.code(), 2, "{test}: {}", run.text());
    run.says("secret-x.yaml");
}

#[test]
fn the_first_signal_drains() {
    const COUNT: usize = 600;
    let slow = Smtp::lmtp().script(|call| match call.verb {
        "." => smtp::Act::Later(Duration::from_millis(20)),
        _ => smtp::Act::Properly,
    });
    let rig = Rig::to(Pop3::new().generated("t", COUNT, 50_000), slow);
    let mut running = rig.site.start_once();
    wait_until("some mail", || rig.sink.accepted() >= 10);
    let asked = Instant::now();
    running.signal(Signal::TERM);
    wait_until("its end", || !running.runs());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    let run = running.wait();
    assert!(run.status.code().is_some(), "a signal ended it: {}", run.text());
    let so_far = rig.sink.accepted();
    assert!((10..COUNT).contains(&so_far), "{so_far}");
    // A clean end: nothing accepted is forgotten.
    rig.poll().expect(0);
    assert_eq!((rig.marks().len(), rig.pop.uids().len()), (COUNT, 0));
}

#[test]
fn the_second_signal_aborts() {
    let stuck = Smtp::lmtp().script(|call| match call.verb {
        "." => smtp::Act::Silence,
        _ => smtp::Act::Properly,
    });
    let rig = Rig::to(Pop3::new().generated("a", 3, 800), stuck);
    rig.site.settings(&["timeouts: {afterDot: 10m}"]);
    let mut running = rig.site.start_once();
    wait_until("a message to be sent", || {
        rig.sink.commands().iter().any(|(_, line)| line.starts_with("DATA") || line.starts_with("BDAT"))
    });
    running.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(200));
    running.signal(Signal::TERM);
    let asked = Instant::now();
    wait_until("its end", || !running.runs());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert_eq!(rig.pop.uids().len(), 3);
}

#[test]
fn real_servers_that_die_in_the_middle_lose_nothing() {
    const COUNT: usize = 800;
    let test = "real_servers_that_die_in_the_middle_lose_nothing";
    let Some(mut provider) = Dovecot::start(test) else { return };
    let Some(mut home) = Dovecot::start(test) else { return };
    provider.add(["alice"]);
    home.add(["alice"]);
    let sent = provider.inbox("alice").fill_generated("real", COUNT, 3000);
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    site.settings(&[SHORT]);
    site.record(&Record::plain(NAME, provider.pop3, "alice"));
    for (moment, source) in [(50, true), (200, false), (400, true), (600, false)] {
        let running = site.start_once();
        wait_until("a moment to die at", || home.inbox("alice").count() >= moment);
        let dying = if source { &mut provider } else { &mut home };
        dying.halt();
        let run = running.wait();
        assert!(matches!(run.code(), 0 | 1), "{}", run.text());
        dying.resume();
    }
    site.once().expect(0);
    let found = census_arrived(&home.inbox("alice").read());
    let wanted = census(sent.iter().map(Vec::as_slice));
    assert!(wanted.keys().all(|digest| found.contains_key(digest)), "mail is lost");
    assert!(found.keys().all(|digest| wanted.contains_key(digest)), "mail is torn");
    assert_eq!(provider.inbox("alice").count(), 0);
    // Only what the dying home had taken and not yet answered comes twice.
    let repeated: usize = found.values().map(|count| count - 1).sum();
    assert!(repeated <= 2 * 128, "{repeated} repeated");
}

#[test]
fn silent_servers_hold_up_nobody() {
    // quirks: "One poison message, one silent server, one slow account never hold up another account."
    let rig = Rig::new(Pop3::new().generated("ok", 1, 300));
    rig.site.settings(&["timeouts: {connect: 20s, reply: 20s, data: 20s}", "processors: 40"]);
    let silent = Pop3::new().script(|_| pop3::Act::Silence).start();
    for at in 0..12 {
        rig.site.record(&Record::plain(&format!("a-silent-{at}"), silent.port(), "alice"));
    }
    let healthy: Vec<_> =
        (0..20).map(|at| Pop3::new().generated(&format!("h{at}"), 2, 300).start()).collect();
    for (at, server) in healthy.iter().enumerate() {
        rig.site.record(&Record::plain(&format!("healthy-{at}"), server.port(), "alice"));
    }
    let mut running = rig.site.start_once();
    let start = Instant::now();
    wait_until("all other mail", || rig.sink.accepted() == 41);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(running.runs(), "the silent ones were not waited for at all");
    running.kill();
}

#[test]
fn records_and_settings_are_taken_up_live() {
    let rig = Rig::keeping(Pop3::new().generated("l", 2, 300));
    let other = Pop3::new().generated("n", 3, 300).start();
    let mut running = rig.site.start(&[]);
    wait_until("the first record", || rig.sink.accepted() == 2);
    rig.site.record(&Record::plain("new", other.port(), "alice"));
    wait_until("the new record", || rig.sink.accepted() == 5);
    // A file that became wrong stops nobody.
    rig.site.write(
        "broken.yaml",
        "apiVersion: rpop.dev/v1alpha1\nkind: RpopRecord\nmetadata: {name: x}\nspec: {\n",
    );
    let third = Pop3::new().generated("q", 1, 300).start();
    rig.site.record(&Record::plain("third", third.port(), "alice"));
    wait_until("the third record", || rig.sink.accepted() == 6);
    assert!(running.runs());
    running.signal(Signal::TERM);
    running.wait().expect(0);
}

#[test]
fn what_servers_say_cannot_write_on_the_terminal() {
    // quirks: "Log lines and status messages escape and cap what servers sent."
    let evil = format!("-ERR \x1b[2J\x1b]0;owned\x07 line\x0b{}\r\n", "x".repeat(400));
    let rig = Rig::new(Pop3::new().script(move |call| match call.verb {
        "PASS" | "AUTH" => pop3::Act::Say(evil.clone().into_bytes()),
        _ => pop3::Act::Properly,
    }));
    let run = rig.poll().expect(1);
    run.says("AuthFailed");
    assert!(!run.text().contains("\x1b[2J") && !run.text().contains('\x07'), "{:?}", run.text());
    assert!(!run.text().contains(&"x".repeat(250)), "{}", run.text());
}
