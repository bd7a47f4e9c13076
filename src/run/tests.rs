//! The loop with scripted polls and paused time.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::*;
use crate::domain::envelope::Mailbox;
use crate::domain::work::{
    AuthChoice, Destination, Limits, Login, OnReject, OnUidChange, Remote, SecretKind, SecretRef,
};
use crate::engine::ports::{Observer, Pending};
use crate::engine::report::Counters;

/// What a scripted poll does.
#[derive(Clone, Debug)]
enum Act {
    Good,
    Fail(Code, Scope),
    /// Says nothing until its deadline.
    Silent,
    /// Is heard, and ends at a message when it is told to.
    Long,
    /// Is heard, and does not end when it is told to.
    Stubborn,
    Panic,
}

#[derive(Default)]
struct Log {
    /// (record, when it began, when it ended, how)
    polls: Vec<(String, Duration, Duration, String)>,
    running: usize,
    most: usize,
}

struct Script {
    acts: Mutex<HashMap<String, VecDeque<Act>>>,
    log: Arc<Mutex<Log>>,
    start: Instant,
    observer: Relay,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes the end of a poll down, also of one that is dropped.
struct Note {
    log: Arc<Mutex<Log>>,
    name: String,
    began: Duration,
    start: Instant,
    how: String,
}

impl Drop for Note {
    fn drop(&mut self) {
        let mut log = lock(&self.log);
        log.running -= 1;
        let how = std::mem::take(&mut self.how);
        log.polls.push((self.name.clone(), self.began, self.start.elapsed(), how));
    }
}

/// A poll that is dropped when one of three messages has arrived.
struct Done<'a>(&'a Script, &'a WorkItem);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        let counters = Counters { listed: 3, fetched: 2, delivered: 1, ..Counters::default() };
        self.0.observer.cut_off(&self.1.key, &counters);
    }
}

impl Poller for Script {
    fn credentials<'a>(&'a self, item: &'a WorkItem) -> Pending<'a, Option<Box<str>>> {
        Box::pin(std::future::ready(item.remote.login.refs().next().map(|at| Box::from(&*at.name))))
    }

    fn poll<'a>(
        &'a self,
        item: &'a WorkItem,
        _: &'a Settings,
        mut stop: watch::Receiver<Stage>,
    ) -> Pending<'a, Report> {
        let name = item.key.name.to_string();
        let act = {
            let mut acts = lock(&self.acts);
            let acts = acts.entry(name.clone()).or_default();
            if acts.len() > 1 { acts.pop_front() } else { acts.front().cloned() }.unwrap_or(Act::Good)
        };
        Box::pin(async move {
            {
                let mut log = lock(&self.log);
                log.running += 1;
                log.most = log.most.max(log.running);
            }
            let mut note = Note {
                log: Arc::clone(&self.log),
                name,
                began: self.start.elapsed(),
                start: self.start,
                how: "dropped".into(),
            };
            tokio::time::sleep(Duration::from_millis(10)).await;
            let fail = |code, scope| {
                report_of(PollError { code, message: "scripted".into(), scope }, Duration::from_millis(10))
            };
            if !matches!(act, Act::Silent | Act::Fail(_, Scope::Host)) {
                self.observer.surveyed(&item.key, 1, 100);
            }
            let report = match act {
                Act::Good => Report {
                    result: Ok(()),
                    counters: Counters { listed: 1, fetched: 1, delivered: 1, ..Counters::default() },
                    took: Duration::from_millis(10),
                    login_delay: None,
                    refused: None,
                },
                Act::Fail(code, scope) => fail(code, scope),
                Act::Silent => {
                    tokio::time::sleep(Duration::from_mins(1)).await;
                    fail(Code::TimedOut, Scope::Host)
                }
                Act::Long => {
                    stop.wait_for(|stage| *stage > Stage::Running).await.unwrap();
                    let counters = Counters { listed: 2, fetched: 1, delivered: 1, ..Counters::default() };
                    Report { counters, ..fail(Code::Interrupted, Scope::Local) }
                }
                Act::Stubborn => {
                    let _done = Done(self, item);
                    std::future::pending().await
                }
                Act::Panic => {
                    let _done = Done(self, item);
                    panic!("a defect")
                }
            };
            note.how = report.result.as_ref().map_or_else(|error| error.code.to_string(), |()| "ok".into());
            report
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_login_waits_over_a_restart_unless_it_would_be_another_one() {
    let refused = |mark: &str| {
        let mut status = failed_before(Code::AuthFailed, 60, 12_000);
        status.refused_with(Some(mark.into()), 0);
        status.error.as_mut().unwrap().refusals.as_mut().unwrap().count = 5;
        status
    };
    let (same, other) = (item("same", "h"), item("other", "h"));
    let records = [(same.key.clone(), refused("s")), (other.key.clone(), refused("an earlier Secret"))];
    let past = Snapshot { records: records.into_iter().collect(), hosts: Vec::new() };
    let failing: &[Act] = &[Act::Fail(Code::AuthFailed, Scope::Account)];
    let items = [same.clone(), other.clone()];
    let acts = [("same", failing), ("other", failing)];
    let stand = stand_after(past.clone(), &items, &acts, false, Settings::default());
    stand.until(600).await;
    assert_eq!((stand.polls("same").len(), stand.polls("other").len()), (0, 1), "its Secret is another one");
    // Neither a setting nor where the mail goes is of interest to the server.
    let destination = Arc::new(Destination { domain: "moved.example".into(), ..Destination::default() });
    let desired = Desired {
        settings: Arc::new(Settings { allow_self_poll: true, ..Settings::default() }),
        items: shared(&[WorkItem { destination, ..same.clone() }, other.clone()]),
        ..Desired::default()
    };
    stand.change.send(desired).await.unwrap();
    stand.until(11_900).await;
    assert_eq!(stand.polls("same").len(), 0, "longer than the first delay");
    stand.until(12_400).await;
    assert_eq!(stand.polls("same").len(), 1, "when the delay is over");
    stand.until(12_000 + 19_000).await;
    assert_eq!(stand.polls("same").len(), 1, "the sixth in a row: 320 minutes");
    {
        let statuses = lock(&stand.memory.statuses);
        let (_, status) = statuses.iter().rfind(|(key, _)| *key == same.key).unwrap();
        assert_eq!(status.error.as_ref().unwrap().refusals.as_ref().unwrap().count, 6);
    }
    stand.drain().await;

    // A change that comes while it waits is tried at once.
    let stand = stand_after(past, &items, &acts, false, Settings::default());
    stand.until(600).await;
    assert_eq!(stand.polls("same").len(), 0);
    stand.desire(&[WorkItem { leave: true, ..same.clone() }, other.clone()], &[]).await;
    stand.until(605).await;
    assert_eq!(stand.polls("same").len(), 1, "the record has changed");
    stand.desire(&[WorkItem { leave: true, ..same }, other], &["same"]).await;
    stand.until(610).await;
    assert_eq!(stand.polls("same").len(), 2, "and its Secret");
    stand.drain().await;
}

fn item(name: &str, host: &str) -> WorkItem {
    WorkItem {
        key: RecordKey { namespace: "mail".into(), name: name.into() },
        uid: name.bytes().fold(7, |hash, byte| hash * 31 + u64::from(byte)),
        account: Mailbox::parse("alice@example.com").unwrap(),
        remote: Remote {
            host: host.into(),
            port: 995,
            account: name.into(),
            login: Login::Password(SecretRef {
                kind: SecretKind::Secret,
                namespace: "mail".into(),
                name: "s".into(),
                key: "password".into(),
            }),
            auth: AuthChoice::Auto,
            apop: false,
            tls: Arc::default(),
        },
        interval: Some(Duration::from_mins(5)),
        leave: false,
        keep_for_days: None,
        delete_seen: false,
        mailbox: None,
        destination: Arc::new(Destination::default()),
        postmaster: None,
        limits: Limits { message_size: None, messages_per_session: None },
        on_reject: OnReject::Leave,
        on_uid_change: OnUidChange::Pause,
        source_address: None,
        unified: None,
    }
}

fn shared(items: &[WorkItem]) -> Vec<Arc<WorkItem>> {
    items.iter().cloned().map(Arc::new).collect()
}

#[derive(Default)]
struct Memory {
    ended: Mutex<Vec<(String, Option<Code>)>>,
    statuses: Mutex<Vec<(RecordKey, RecordStatus)>>,
    removed: Mutex<Vec<String>>,
    hosts: Mutex<Vec<FailedHost>>,
    shown: Mutex<Vec<(String, String)>>,
}

impl Statuses for Memory {
    fn put(&self, key: &RecordKey, status: RecordStatus) {
        lock(&self.statuses).push((key.clone(), status.clone()));
        lock(&self.ended).push((key.name.to_string(), status.error.map(|error| error.code)));
    }

    fn remove(&self, key: &RecordKey) {
        lock(&self.removed).push(key.name.to_string());
    }

    fn put_hosts(&self, hosts: Vec<FailedHost>) {
        *lock(&self.hosts) = hosts;
    }
}

impl Audience for Memory {
    fn ended(&self, item: &WorkItem, report: &Report) {
        let what = report.result.as_ref().map_or_else(ToString::to_string, |()| "ok".into());
        lock(&self.shown).push((item.key.name.to_string(), what));
    }
}

struct Stand {
    metrics: Arc<Metrics>,
    log: Arc<Mutex<Log>>,
    memory: Arc<Memory>,
    stop: watch::Sender<Stage>,
    change: mpsc::Sender<Desired>,
    settings: Arc<Settings>,
    run: tokio::task::JoinHandle<Summary>,
    start: Instant,
}

fn stand(items: &[WorkItem], acts: &[(&str, &[Act])], once: bool, settings: Settings) -> Stand {
    stand_after(Snapshot::default(), items, acts, once, settings)
}

fn stand_after(
    past: Snapshot,
    items: &[WorkItem],
    acts: &[(&str, &[Act])],
    once: bool,
    settings: Settings,
) -> Stand {
    stand_at(Wall::default(), past, items, acts, once, settings)
}

fn stand_at(
    wall: Wall,
    past: Snapshot,
    items: &[WorkItem],
    acts: &[(&str, &[Act])],
    once: bool,
    settings: Settings,
) -> Stand {
    let metrics = Arc::new(Metrics::new());
    let (observer, heard) = Relay::new(Arc::clone(&metrics), None);
    let log = Arc::new(Mutex::new(Log::default()));
    let acts = acts.iter().map(|(name, acts)| ((*name).to_owned(), acts.to_vec().into())).collect();
    let start = Instant::now();
    let poller = Script { acts: Mutex::new(acts), log: Arc::clone(&log), start, observer };
    let memory = Arc::new(Memory::default());
    let settings = Arc::new(settings);
    let parts = Parts {
        poller: Arc::new(poller),
        metrics: Arc::clone(&metrics),
        health: Arc::new(Health::default()),
        audience: Arc::clone(&memory) as Arc<dyn Audience>,
        statuses: Arc::clone(&memory) as Arc<dyn Statuses>,
        past,
        heard,
        wall,
    };
    let desired = Desired {
        settings: Arc::clone(&settings),
        items: shared(items),
        retry: HashSet::new(),
        problems: BTreeMap::new(),
        ..Desired::default()
    };
    let (stop, stopped) = watch::channel(Stage::Running);
    let (change, changes) = mpsc::channel(1);
    let run = tokio::spawn(Run::new(parts, desired, once).go(stopped, changes));
    Stand { metrics, log, memory, stop, change, settings, run, start }
}

impl Stand {
    fn polls(&self, name: &str) -> Vec<(Duration, Duration, String)> {
        let log = lock(&self.log);
        log.polls.iter().filter(|poll| poll.0 == name).map(|poll| (poll.1, poll.2, poll.3.clone())).collect()
    }

    async fn until(&self, seconds: u64) {
        tokio::time::sleep_until(self.start + Duration::from_secs(seconds)).await;
    }

    async fn desire(&self, items: &[WorkItem], retry: &[&str]) {
        let retry = retry.iter().map(|name| item(name, "").key).collect();
        let desired = Desired {
            settings: Arc::clone(&self.settings),
            items: shared(items),
            retry,
            problems: BTreeMap::new(),
            ..Desired::default()
        };
        self.change.send(desired).await.unwrap();
    }

    async fn drain(self) -> Summary {
        self.stop.send_replace(Stage::Draining);
        self.run.await.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn once_polls_every_enabled_record_once() {
    let mut items: Vec<WorkItem> = (0..200).map(|n| item(&format!("r{n}"), &format!("h{}", n % 7))).collect();
    items[3].interval = None;
    let stand = stand(&items, &[], true, Settings::default());
    let (log, memory) = (Arc::clone(&stand.log), Arc::clone(&stand.memory));
    let summary = stand.run.await.unwrap();
    assert_eq!(summary, Summary { good: 199, ..Summary::default() });
    let names: HashSet<String> = lock(&log).polls.iter().map(|poll| poll.0.clone()).collect();
    assert_eq!((lock(&log).polls.len(), names.len()), (199, 199));
    assert!(!names.contains("r3"), "disabled");
    assert!(lock(&log).most <= 7 * 20, "hostConnections");
    assert_eq!(lock(&memory.ended).len(), 199, "the status of each is written");
}

#[tokio::test(start_paused = true)]
async fn once_does_not_try_a_failed_host_again_and_tells_of_each_record() {
    let items: Vec<WorkItem> =
        (0..50).map(|n| item(&format!("r{n}"), "Dead.Example")).chain([item("fine", "h")]).collect();
    let acts: Vec<(String, Vec<Act>)> =
        (0..50).map(|n| (format!("r{n}"), vec![Act::Fail(Code::HostUnreachable, Scope::Host)])).collect();
    let acts: Vec<(&str, &[Act])> =
        acts.iter().map(|(name, acts)| (name.as_str(), acts.as_slice())).collect();
    let stand = stand(&items, &acts, true, Settings::default());
    let (log, memory) = (Arc::clone(&stand.log), Arc::clone(&stand.memory));
    assert_eq!(stand.run.await.unwrap(), Summary { good: 1, failed: 50, ..Summary::default() });
    assert_eq!(lock(&log).polls.len(), 21, "those that were under way, and the other host's");
    let shown = lock(&memory.shown).clone();
    assert_eq!(shown.len(), 51);
    assert_eq!(shown.iter().filter(|(_, what)| what.contains("not tried")).count(), 30);
}

#[tokio::test(start_paused = true)]
async fn once_with_no_processors_says_so() {
    let settings = Settings { processors: 0, ..Settings::default() };
    let stand = stand(&[item("a", "h")], &[], true, settings);
    let memory = Arc::clone(&stand.memory);
    assert_eq!(stand.run.await.unwrap().failed, 1);
    assert!(lock(&memory.shown)[0].1.contains("processors"));
}

// quirks: "One poison message, one silent server, one slow account never hold up another account."
#[tokio::test(start_paused = true)]
async fn silent_servers_hold_up_nobody() {
    let mut items: Vec<WorkItem> =
        (0..1000).map(|n| item(&format!("silent{n}"), &format!("silent{n}"))).collect();
    items.extend((0..50).map(|n| item(&format!("fine{n}"), &format!("fine{n}"))));
    let silent: Vec<(String, Vec<Act>)> =
        (0..1000).map(|n| (format!("silent{n}"), vec![Act::Silent])).collect();
    let acts: Vec<(&str, &[Act])> =
        silent.iter().map(|(name, acts)| (name.as_str(), acts.as_slice())).collect();
    let stand = stand(&items, &acts, true, Settings::default());
    let log = Arc::clone(&stand.log);
    let summary = stand.run.await.unwrap();
    assert_eq!((summary.good, summary.failed), (50, 1000));
    let log = lock(&log);
    let last = log.polls.iter().filter(|poll| poll.3 == "ok").map(|poll| poll.2).max().unwrap();
    assert!(last < Duration::from_secs(20), "all that answer are done after {last:?}");
    assert!(log.most <= 256);
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_of_one_record() {
    let stand =
        stand(&[item("bad", "h"), item("good", "h")], &[("bad", &[Act::Panic])], true, Settings::default());
    let memory = Arc::clone(&stand.memory);
    let summary = stand.run.await.unwrap();
    assert_eq!((summary.good, summary.failed), (1, 1));
    assert!(lock(&memory.ended).contains(&("bad".to_owned(), Some(Code::Internal))));
    let (_, status) = lock(&memory.statuses).iter().find(|(key, _)| &*key.name == "bad").cloned().unwrap();
    assert_eq!((status.totals.fetched, status.totals.delivered), (2, 1), "what it had done counts");
}

#[tokio::test(start_paused = true)]
async fn records_are_polled_in_their_rhythm_and_a_slow_one_does_not_shift_the_others() {
    let stand =
        stand(&[item("slow", "h"), item("fine", "h")], &[("slow", &[Act::Long])], false, Settings::default());
    stand.until(3600).await;
    let polls = stand.polls("fine");
    assert!((12..=13).contains(&polls.len()), "{polls:?}");
    for pair in polls[1..].windows(2) {
        assert_eq!(pair[1].0.abs_diff(pair[0].0).as_secs(), 300);
    }
    assert_eq!(stand.polls("slow").len(), 0, "still at it");
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn the_first_signal_lets_polls_end_at_a_message_and_does_not_wait_for_silent_hosts() {
    let acts: &[(&str, &[Act])] = &[("long", &[Act::Long]), ("silent", &[Act::Silent])];
    let stand = stand(&[item("long", "a"), item("silent", "b")], acts, false, Settings::default());
    stand.until(5).await;
    let (log, start) = (Arc::clone(&stand.log), stand.start);
    stand.drain().await;
    assert_eq!(start.elapsed().as_secs(), 5);
    let mut hows: Vec<String> = lock(&log).polls.iter().map(|poll| poll.3.clone()).collect();
    hows.sort();
    assert_eq!(hows, ["Interrupted", "dropped"]);
}

#[tokio::test(start_paused = true)]
async fn draining_is_bounded_and_the_second_signal_ends_it_at_once() {
    let acts: &[(&str, &[Act])] = &[("a", &[Act::Stubborn])];
    let first = stand(&[item("a", "a")], acts, false, Settings::default());
    first.until(5).await;
    let (start, memory) = (first.start, Arc::clone(&first.memory));
    first.drain().await;
    assert_eq!(start.elapsed().as_secs(), 35);
    let (_, status) = lock(&memory.statuses).last().cloned().unwrap();
    assert_eq!((status.totals.fetched, status.totals.delivered), (2, 1), "what it had done counts");
    assert_eq!((status.error, status.totals.failed), (None, 0), "and nothing is wrong with the record");

    let second = stand(&[item("a", "a")], acts, false, Settings::default());
    second.until(5).await;
    second.stop.send_replace(Stage::Draining);
    second.until(6).await;
    assert!(!second.run.is_finished());
    second.stop.send_replace(Stage::Aborting);
    second.run.await.unwrap();
    assert_eq!(second.start.elapsed().as_secs(), 6);
}

#[tokio::test(start_paused = true)]
async fn records_are_added_removed_and_changed_live() {
    let acts: &[(&str, &[Act])] = &[("changed", &[Act::Long, Act::Good]), ("removed", &[Act::Long])];
    let first = [item("changed", "h"), item("removed", "h")];
    let stand = stand(&first, acts, false, Settings::default());
    stand.until(5).await;
    let changed = WorkItem { leave: true, ..item("changed", "h") };
    stand.desire(&[changed.clone(), item("added", "h")], &[]).await;
    stand.until(10).await;
    assert_eq!(stand.polls("added").len(), 1, "at once");
    let polls = stand.polls("changed");
    assert_eq!(polls[0].2, "Interrupted");
    assert_eq!(polls[1].2, "ok", "as it is now, at once");
    assert_eq!(stand.polls("removed")[0].2, "Interrupted");
    // The same once more: nobody is disturbed.
    stand.desire(&[changed.clone(), item("added", "h")], &[]).await;
    stand.until(20).await;
    assert_eq!(stand.polls("changed").len(), 2);
    let paused = WorkItem { interval: None, ..changed };
    stand.desire(&[paused], &[]).await;
    stand.until(4000).await;
    assert_eq!(stand.polls("changed").len(), 2);
    assert!(stand.polls("added").len() <= 2, "gone");
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn what_an_interrupted_poll_did_counts_and_not_for_another_record_of_its_name() {
    let acts: &[(&str, &[Act])] = &[("changed", &[Act::Long, Act::Good]), ("anew", &[Act::Long, Act::Good])];
    let first = [item("changed", "h"), item("anew", "h")];
    let stand = stand(&first, acts, false, Settings::default());
    stand.until(5).await;
    let changed = WorkItem { leave: true, ..item("changed", "h") };
    let anew = WorkItem { uid: 77, ..item("anew", "h") };
    stand.desire(&[changed, anew], &[]).await;
    stand.until(10).await;
    let delivered = |name: &str| {
        let statuses = lock(&stand.memory.statuses);
        let (_, status) = statuses.iter().rfind(|(key, _)| *key.name == *name).expect("a status");
        (status.totals.polls, status.totals.delivered)
    };
    assert_eq!(delivered("changed"), (1, 2));
    assert_eq!(delivered("anew"), (1, 1), "the old one's are its own");
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_changed_secret_or_setting_is_tried_at_once() {
    let failing: &[Act] = &[Act::Fail(Code::AuthFailed, Scope::Account)];
    let locked: &[Act] = &[Act::Fail(Code::MailboxLocked, Scope::Account)];
    let items = [item("a", "h"), item("b", "h")];
    let stand = stand(&items, &[("a", failing), ("b", locked)], false, Settings::default());
    stand.until(5).await;
    assert_eq!((stand.polls("a").len(), stand.polls("b").len()), (1, 1));
    stand.desire(&items, &[]).await;
    stand.until(10).await;
    assert_eq!(stand.polls("a").len(), 1, "nothing has changed");
    stand.desire(&items, &["a"]).await;
    stand.until(15).await;
    assert_eq!(stand.polls("a").len(), 2, "its Secret has");
    let settings = Settings { allow_self_poll: true, ..Settings::default() };
    let desired = Desired {
        settings: Arc::new(settings),
        items: shared(&items),
        retry: HashSet::new(),
        problems: BTreeMap::new(),
        ..Desired::default()
    };
    stand.change.send(desired).await.unwrap();
    stand.until(20).await;
    assert_eq!(stand.polls("b").len(), 2, "a setting has");
    assert_eq!(stand.polls("a").len(), 2, "which is nothing to a server that refuses a login");
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_idle_records_cost_no_tasks() {
    let mut items: Vec<WorkItem> = (0..10_000).map(|n| item(&format!("r{n}"), "h")).collect();
    for item in &mut items {
        item.interval = Some(Duration::from_hours(24));
    }
    let settings = Settings { host_connections: 0, ..Settings::default() };
    let stand = stand(&items, &[], false, settings);
    stand.until(600).await;
    assert_eq!(lock(&stand.log).polls.len(), 10_000);
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(tasks <= 2, "{tasks}");
    stand.drain().await;
}

fn failed_before(code: Code, since_last: i64, until_next: i64) -> RecordStatus {
    let now = jiff::Timestamp::now().as_second();
    RecordStatus {
        last_poll: Some(now - since_last),
        next_poll: Some(now + until_next),
        error: Some(Box::new(LastError::new(code, "no", now - since_last))),
        ..RecordStatus::default()
    }
}

#[tokio::test(start_paused = true)]
async fn delays_survive_a_restart_and_a_single_run_does_not_know_them() {
    let records = [(item("a", "h").key, failed_before(Code::AuthFailed, 60, 12_000))];
    let hosts = vec![FailedHost {
        host: "dead:995".into(),
        until: jiff::Timestamp::now().as_second() + 300,
        error: LastError::new(Code::HostUnreachable, "no", 0),
    }];
    let past = Snapshot { records: records.into_iter().collect(), hosts };
    let items = [item("a", "h"), item("b", "dead")];
    let again = stand_after(past.clone(), &items, &[], false, Settings::default());
    again.until(290).await;
    assert_eq!((again.polls("a").len(), again.polls("b").len()), (0, 0));
    again.until(310).await;
    assert_eq!((again.polls("a").len(), again.polls("b").len()), (0, 1));
    again.until(530).await;
    assert_eq!(again.polls("a").len(), 0);
    again.until(550).await;
    assert_eq!(again.polls("a").len(), 1, "ten minutes after the last one, whatever the back-off was");
    again.drain().await;

    let once = stand_after(past, &items, &[], true, Settings::default());
    assert_eq!(once.run.await.unwrap(), Summary { good: 2, ..Summary::default() });
}

#[tokio::test(start_paused = true)]
async fn a_failed_host_is_written_down_until_it_is_back() {
    let acts: &[Act] = &[Act::Fail(Code::HostUnreachable, Scope::Host), Act::Good];
    let stand = stand(&[item("a", "Dead")], &[("a", acts)], false, Settings::default());
    stand.until(10).await;
    assert_eq!(
        lock(&stand.memory.hosts).iter().map(|failed| &*failed.host).collect::<Vec<_>>(),
        ["dead:995"]
    );
    stand.until(620).await;
    assert_eq!(stand.polls("a").len(), 2);
    assert!(lock(&stand.memory.hosts).is_empty());
    stand.drain().await;
}

#[tokio::test(start_paused = true)]
async fn a_record_whose_manifest_went_wrong_says_why_in_its_status() {
    let stand = stand(&[item("a", "h"), item("b", "h")], &[], false, Settings::default());
    stand.until(5).await;
    let problem = Problem { code: Code::SecretMissing, message: "no Secret".into(), keep: false };
    let desired = Desired {
        settings: Arc::clone(&stand.settings),
        items: shared(&[item("b", "h")]),
        retry: HashSet::new(),
        problems: [(item("a", "h").key, problem)].into_iter().collect(),
        ..Desired::default()
    };
    stand.change.send(desired).await.unwrap();
    stand.until(2000).await;
    assert_eq!(stand.polls("a").len(), 1);
    assert!(lock(&stand.memory.ended).contains(&("a".to_owned(), Some(Code::SecretMissing))));
    assert!(lock(&stand.memory.removed).is_empty(), "it is not gone");
    stand.desire(&[item("a", "h"), item("b", "h")], &[]).await;
    stand.until(2005).await;
    assert_eq!(stand.polls("a").len(), 2, "mended");
    stand.drain().await;
}

mod activity;
