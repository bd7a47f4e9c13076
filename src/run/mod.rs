//! What the scheduler decides is done here: in the embedded run and in the
//! cluster's workers alike.
//!
//! One task a poll, none for idle records. Everything else happens in the
//! loop of [`Run::go`], which never waits for a poll.

mod activity;
mod history;
mod polling;
pub mod status;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::Instrument as _;

use self::activity::Activity;
pub use self::activity::{Wall, outside};
use self::history::{moment, past, say, say_refused};
pub use self::polling::{Poller, Relay, Waiting};
use self::polling::{Turn, interrupted, report_of, turn};
use self::status::{FailedHost, LastError, RecordStatus, Refusals, Snapshot};
use crate::domain::code::Code;
use crate::domain::shards::mapping::maildrop_hash;
use crate::domain::work::{RecordKey, Settings, WorkItem};
use crate::engine::ports::Stage;
use crate::engine::report::{PollError, Report, Scope};
use crate::engine::scheduler::{End, Id, Moment, Past, Rules, Scheduler, Step, Timing};

use crate::telemetry::http::Health;
use crate::telemetry::logs;
use crate::telemetry::metrics::{Metrics, RecordStates};

/// From the first signal to the end of what has not ended by itself.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(30);
/// How often the figures are renewed and the loop shows that it is alive.
const BEAT: Duration = Duration::from_secs(5);

/// How long after the end of a poll the figures are renewed, at the latest.
const RENEW: Duration = Duration::from_millis(500);

/// Hears how the run goes: progress and the table at its end.
pub trait Audience: Send + Sync {
    /// So many records are going to be polled.
    fn planned(&self, records: usize) {
        let _ = records;
    }
    /// A poll begins.
    fn started(&self, item: &WorkItem) {
        let _ = item;
    }
    /// A poll ended, or (in a run that polls once) will not take place.
    fn ended(&self, item: &WorkItem, report: &Report) {
        let _ = (item, report);
    }
    /// A poll does not take place: its login was refused before and waits.
    fn held(&self, item: &WorkItem) {
        let _ = item;
    }
}

/// Hears nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Audience for Nobody {}

/// Remembers how records are doing, across runs. All methods return at once.
pub trait Statuses: Send + Sync {
    /// A record's status has changed.
    fn put(&self, key: &RecordKey, status: RecordStatus);
    /// The record is gone.
    fn remove(&self, key: &RecordKey);
    /// Other hosts are left alone than before.
    fn put_hosts(&self, hosts: Vec<FailedHost>);
}

/// Why a record cannot be polled as its manifests are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `ConfigInvalid`, `SecretMissing` or `SecretInvalid`.
    pub code: Code,
    /// One line for people.
    pub message: String,
    /// The document could not be read as it stands: what was in force before
    /// stays in force, as it would in a cluster, which refuses such an edit.
    pub keep: bool,
}

/// What is to be done from now on.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// The settings.
    pub settings: Arc<Settings>,
    /// All records.
    pub items: Vec<Arc<WorkItem>>,
    /// Such as are worth a try at once although they are the same: a Secret of
    /// theirs has changed.
    pub retry: HashSet<RecordKey>,
    /// Records that cannot be polled as their manifests are, and why.
    pub problems: BTreeMap<RecordKey, Problem>,
    /// What others know of records that this run has not polled: looked at
    /// when such a record is new here.
    pub past: HashMap<RecordKey, Past>,
    /// Simultaneous sessions with hosts (names in lower case) of which others
    /// have their part.
    pub host_limits: HashMap<(Arc<str>, u16), u32>,
    /// Hosts that others have found to fail: left alone here, too, and never
    /// told by [`Statuses::put_hosts`].
    pub hosts: Vec<FailedHost>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Polls that succeeded.
    pub good: u64,
    /// Polls that failed, or did not take place in a run that polls once.
    pub failed: u64,
    /// Messages that were refused, set aside or deferred.
    pub refused: u64,
    /// A signal ended it, perhaps before all was done.
    pub ended_early: bool,
}

/// What a run works with.
pub struct Parts<P> {
    /// Polls.
    pub poller: Arc<P>,
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Is told that the run is alive.
    pub health: Arc<Health>,
    /// Shows progress.
    pub audience: Arc<dyn Audience>,
    /// Remembers.
    pub statuses: Arc<dyn Statuses>,
    /// What earlier runs remembered.
    pub past: Snapshot,
    /// Of [`Relay::new`].
    pub heard: mpsc::UnboundedReceiver<RecordKey>,
    /// The clock that the activity schedule means.
    pub wall: Wall,
}

struct Record {
    item: Arc<WorkItem>,
    status: RecordStatus,
    /// The code of the failure that was logged last.
    told: Option<Code>,
    /// It has not had its turn in this run.
    first: bool,
    /// Its login waits since it was refused before this run.
    held: bool,
}

impl Record {
    fn new(item: Arc<WorkItem>, status: RecordStatus, first: bool) -> Self {
        Self { item, status, told: None, first, held: false }
    }

    fn failing(&self) -> bool {
        self.status.error.is_some()
    }

    fn refusals(&self) -> Option<&Refusals> {
        self.status.error.as_deref()?.refusals.as_ref()
    }

    /// What is worth another login to a server that refused the last one: not
    /// where the mail goes, which is others' to change.
    fn is_other_login(&self, item: &WorkItem) -> bool {
        let here = &*self.item;
        let same_way = WorkItem {
            interval: here.interval,
            destination: Arc::clone(&here.destination),
            postmaster: here.postmaster.clone(),
            unified: here.unified.clone(),
            ..item.clone()
        };
        same_way != *here
    }
}

struct Running {
    item: Arc<WorkItem>,
    stop: watch::Sender<Stage>,
    give_way: Arc<Notify>,
    gave_way: bool,
}

/// The wall clock as it was at the start, moved on by the monotonic one: it
/// does not jump.
struct Clock {
    start: Moment,
    since: Instant,
}

impl Clock {
    fn new(wall: &Wall) -> Self {
        let start = u64::try_from(wall.now().as_millisecond()).unwrap_or(0);
        Self { start: Moment(start), since: Instant::now() }
    }

    fn now(&self) -> Moment {
        self.start.after(self.since.elapsed())
    }

    fn instant(&self, at: Moment) -> Instant {
        // A day at most: whatever the heap says, the loop looks again.
        self.since + at.since(self.start).min(self.since.elapsed() + Duration::from_hours(24))
    }
}

/// A run; see [`Run::go`].
pub struct Run<P> {
    parts: Parts<P>,
    once: bool,
    clock: Clock,
    scheduler: Scheduler,
    settings: Arc<Settings>,
    records: HashMap<RecordKey, Record>,
    running: HashMap<Id, Running>,
    tasks: JoinSet<(Id, Turn)>,
    stage: Stage,
    summary: Summary,
    /// Why hosts are left alone.
    failed_hosts: HashMap<(String, u16), LastError>,
    hosts_changed: bool,
    past: BTreeMap<RecordKey, RecordStatus>,
    /// Removed while they were polled: how that poll ends is still told.
    leaving: HashMap<RecordKey, Record>,
    activity: Activity,
    /// Nothing is polled for the sake of the schedule; `None` before the first
    /// look at it.
    resting: Option<bool>,
}

impl<P: Poller> Run<P> {
    /// Prepares a run that polls each record `once`, or goes on.
    pub fn new(mut parts: Parts<P>, desired: Desired, once: bool) -> Self {
        let Snapshot { records: past, hosts } = std::mem::take(&mut parts.past);
        let mut run = Self {
            once,
            clock: Clock::new(&parts.wall),
            scheduler: Scheduler::new(Rules::from(&*desired.settings)),
            settings: Arc::clone(&desired.settings),
            records: HashMap::with_capacity(desired.items.len()),
            running: HashMap::new(),
            tasks: JoinSet::new(),
            stage: Stage::Running,
            summary: Summary::default(),
            failed_hosts: HashMap::new(),
            hosts_changed: false,
            past,
            leaving: HashMap::new(),
            activity: Activity::default(),
            resting: None,
            parts,
        };
        // A status whose record was removed while nothing ran.
        let here: HashSet<&RecordKey> =
            desired.items.iter().map(|item| &item.key).chain(desired.problems.keys()).collect();
        for key in run.past.keys().filter(|key| !here.contains(key)) {
            run.parts.statuses.remove(key);
        }
        run.apply(desired);
        if !once {
            run.leave_alone(hosts, true);
        }
        run
    }

    /// Polls until all is done (once) or a shutdown has ended. What comes
    /// from `later` is taken up live.
    pub async fn go(
        mut self,
        mut stop: watch::Receiver<Stage>,
        mut later: mpsc::Receiver<Desired>,
    ) -> Summary {
        self.parts
            .audience
            .planned(self.records.values().filter(|record| record.item.interval.is_some()).count());
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut drained, mut stale) = (None, None);
        let (mut may_change, mut may_stop) = (true, true);
        loop {
            let change = self.look_at_activity();
            let wake = self.start_due();
            if self.running.is_empty() && self.is_over(wake) {
                break;
            }
            let wake = [wake, change].into_iter().flatten().min().map(|at| self.clock.instant(at));
            tokio::select! {
                Some(ended) = self.tasks.join_next() => {
                    match ended {
                        Ok((id, Turn::Polled { report, before, credentials })) => {
                            if let Some(before) = before {
                                self.scheduler.recall(id, counted(before.refusals.count));
                            }
                            self.finish(id, &report, credentials);
                        }
                        Ok((id, Turn::Held(waiting))) => self.hold(id, &waiting),
                        Err(_) => {}
                    }
                    stale = stale.or_else(|| Some(Instant::now() + RENEW));
                }
                Some(key) = self.parts.heard.recv() => {
                    if let Some(id) = self.scheduler.find(&key) {
                        self.scheduler.answered(id);
                    }
                }
                desired = later.recv(), if may_change => match desired {
                    Some(desired) => self.apply(desired),
                    None => may_change = false,
                },
                changed = stop.changed(), if may_stop => {
                    may_stop = changed.is_ok();
                    let stage = *stop.borrow_and_update();
                    if stage > self.stage {
                        self.reach(stage);
                        drained.get_or_insert_with(|| Instant::now() + DRAIN_LIMIT);
                    }
                }
                () = sleep_until(drained), if self.stage == Stage::Draining => {
                    tracing::warn!("polls that have not ended within {DRAIN_LIMIT:?} are dropped");
                    self.reach(Stage::Aborting);
                }
                () = sleep_until(wake) => {}
                () = sleep_until(stale) => {
                    stale = None;
                    self.remember_hosts();
                    self.beat();
                }
                _ = beat.tick() => self.beat(),
            }
        }
        self.give_up_rest();
        self.remember_hosts();
        self.beat();
        self.summary.ended_early = self.stage != Stage::Running;
        self.summary
    }

    /// Starts what is due; returns when something else will be.
    fn start_due(&mut self) -> Option<Moment> {
        if self.stage != Stage::Running {
            return None;
        }
        loop {
            match self.scheduler.step(self.clock.now()) {
                Step::Poll(id) => self.start(id),
                Step::Yield(id) => {
                    if let Some(running) = self.running.get_mut(&id) {
                        running.gave_way = true;
                        running.give_way.notify_one();
                    }
                }
                Step::Wait(wake) => return wake,
            }
        }
    }

    /// Whether nothing is left to wait for, while no poll is under way.
    fn is_over(&self, wake: Option<Moment>) -> bool {
        let nothing = || wake.is_none() || self.resting == Some(true) || self.records.is_empty();
        self.stage != Stage::Running || (self.once && nothing())
    }

    fn start(&mut self, id: Id) {
        let Some(record) = self.scheduler.key(id).and_then(|key| self.records.get_mut(key)) else { return };
        let own = record.refusals().cloned().zip(record.status.next_poll);
        let own = own.map(|(refusals, until)| Waiting { refusals, until });
        let first = std::mem::take(&mut record.first);
        record.held = false;
        self.parts.metrics.started(self.scheduler.lag(id));
        let item = Arc::clone(&record.item);
        self.parts.audience.started(&item);
        let (stop, stopped) = watch::channel(Stage::Running);
        let give_way = Arc::new(Notify::new());
        let running =
            Running { item: Arc::clone(&item), stop, give_way: Arc::clone(&give_way), gave_way: false };
        self.running.insert(id, running);
        let (poller, settings) = (Arc::clone(&self.parts.poller), Arc::clone(&self.settings));
        let span = tracing::info_span!(target: "rpop::poll", "poll", record = %item.key);
        let poll =
            async move { (id, turn(&*poller, &item, &settings, first, own, stopped, &give_way).await) };
        self.tasks.spawn(poll.instrument(span));
    }

    /// A record's login was refused before this run, and waits on.
    fn hold(&mut self, id: Id, waiting: &Waiting) {
        let Some(running) = self.running.remove(&id) else { return };
        let (item, now) = (running.item, self.clock.now());
        let refused = waiting.refusals.count;
        let next = self.scheduler.hold(id, moment(waiting.until), counted(refused), now);
        let next = next.map(|next| next.since(now));
        say_refused(&item.key, &waiting.refusals, next);
        let next = next.and_then(|next| jiff::Timestamp::now().checked_add(next).ok());
        let here = self.records.get_mut(&item.key).filter(|record| record.item.uid == item.uid);
        if let Some(record) = here {
            record.held = true;
            record.status.next_poll = next.map(jiff::Timestamp::as_second);
            self.parts.statuses.put(&item.key, record.status.clone());
        }
        if self.leaving.remove(&item.key).is_some() {
            self.parts.statuses.remove(&item.key);
            tracing::info!(record = %item.key, "removed");
        }
        self.parts.audience.held(&item);
    }

    fn finish(&mut self, id: Id, report: &Report, credentials: Option<Box<str>>) {
        let Some(running) = self.running.remove(&id) else { return };
        let item = running.item;
        let now = self.clock.now();
        let end = End {
            failure: report.result.as_ref().err().map(|error| (error.code, error.scope)),
            login_delay: report.login_delay,
        };
        let next = self.scheduler.finished(id, end, now);
        let interrupted = matches!(end.failure, Some((Code::Interrupted, _)));
        if running.gave_way && interrupted && next.is_some() && self.stage == Stage::Running {
            tracing::debug!(record = %item.key, "its host says nothing yet: others go first");
            return;
        }
        self.parts.metrics.polled(report);
        self.settle(&item, report, credentials, next);
        match &report.result {
            _ if self.once => {}
            Err(error) if error.scope == Scope::Host => self.tell_hosts(&item, Some(error)),
            Ok(()) => self.tell_hosts(&item, None),
            Err(_) => {}
        }
        if !self.once {
            return;
        }
        self.scheduler.remove(&item.key);
        self.records.remove(&item.key);
        if let (Some((code, Scope::Host)), Err(error)) = (end.failure, &report.result) {
            let others = self.waiting_for(&item);
            for other in others {
                let error = PollError {
                    code,
                    message: format!("not tried, since its host failed in this run: {}", error.message),
                    scope: Scope::Host,
                };
                self.give_up(&other, error);
            }
        }
    }

    /// The records that wait for the host of `item`, which has just failed.
    fn waiting_for(&mut self, item: &WorkItem) -> Vec<RecordKey> {
        let host = (item.remote.host.to_ascii_lowercase(), item.remote.port);
        let ids = self.scheduler.abandon_host(&host.0, host.1);
        ids.into_iter().filter_map(|id| self.scheduler.key(id).cloned()).collect()
    }

    /// In a run that polls once: this record will not be polled.
    fn give_up(&mut self, key: &RecordKey, error: PollError) {
        self.scheduler.remove(key);
        if let Some(record) = self.records.remove(key)
            && record.item.interval.is_some()
        {
            self.summary.failed += u64::from(self.resting != Some(true));
            let report = report_of(error, Duration::ZERO);
            self.parts.audience.ended(&record.item, &report);
        }
    }

    fn give_up_rest(&mut self) {
        if !self.once {
            return;
        }
        let rest: Vec<RecordKey> = self.records.keys().cloned().collect();
        let why = self.why_resting().filter(|_| self.stage == Stage::Running);
        for key in rest {
            if let Some(why) = &why {
                // As it should be: no failure.
                self.give_up(&key, interrupted(why));
                continue;
            }
            let error = if self.stage == Stage::Running {
                PollError {
                    code: Code::ConfigInvalid,
                    message: "polling is stopped: RpopSettings.processors is 0".to_owned(),
                    scope: Scope::Local,
                }
            } else {
                interrupted("the run was ended before its turn")
            };
            self.give_up(&key, error);
        }
    }

    /// Says, counts and remembers what a poll came to.
    fn settle(
        &mut self,
        item: &Arc<WorkItem>,
        report: &Report,
        credentials: Option<Box<str>>,
        next: Option<Moment>,
    ) {
        let counters = &report.counters;
        self.summary.refused += counters.refused();
        match &report.result {
            Ok(()) => self.summary.good += 1,
            Err(_) => self.summary.failed += 1,
        }
        let now = self.clock.now();
        let next = next.filter(|_| !self.once).map(|next| next.since(now));
        let told = self.records.get(&item.key).and_then(|record| record.told);
        say(item, report, told, next);
        let code = report.result.as_ref().err().map(|error| error.code);
        let wait = next;
        let next = next.and_then(|next| jiff::Timestamp::now().checked_add(next).ok());
        // The record may be another one of the same name by now.
        let here = self.records.get_mut(&item.key).filter(|record| record.item.uid == item.uid);
        if let Some(record) = here.or_else(|| self.leaving.get_mut(&item.key)) {
            let unix = jiff::Timestamp::now().as_second();
            match &report.result {
                Ok(()) => record.status.succeeded(unix, counters),
                // Nothing is wrong with the record.
                Err(error) if error.code == Code::Interrupted => record.status.count(counters),
                Err(error) => record.status.failed(unix, error.code, &error.message, counters),
            }
            if code == Some(Code::AuthFailed) {
                record.status.refused_with(credentials, unix);
                if let Some(refusals) = record.refusals().filter(|refusals| refusals.count > 1) {
                    say_refused(&item.key, refusals, wait);
                }
            }
            record.status.tell_set_aside(report.refused.as_deref());
            if code != Some(Code::Interrupted) {
                record.told = code;
            }
            record.status.next_poll = next.map(jiff::Timestamp::as_second);
            self.parts.statuses.put(&item.key, record.status.clone());
        }
        if self.leaving.remove(&item.key).is_some() {
            self.parts.statuses.remove(&item.key);
            tracing::info!(record = %item.key, "removed");
        }
        self.parts.audience.ended(item, report);
    }

    /// Takes up other settings and records.
    fn apply(&mut self, desired: Desired) {
        let Desired { settings, items, retry, problems, past, host_limits, hosts } = desired;
        let now = self.clock.now();
        // What failed may have failed because of a setting.
        let aside = (settings.log_level, settings.activity.clone());
        let before = Settings { log_level: aside.0, activity: aside.1, ..(*self.settings).clone() };
        let mended = before != *settings;
        logs::follow(settings.log_level);
        self.activity.follow(settings.activity.as_ref());
        if mended {
            self.scheduler.follow(Rules::from(&*settings), now);
            self.settings = settings;
        }
        self.scheduler.limit(host_limits);
        let mut gone: HashSet<RecordKey> = self.records.keys().cloned().collect();
        for item in items {
            gone.remove(&item.key);
            let again = retry.contains(&item.key);
            let past = past.get(&item.key).copied();
            self.put(item, again, mended, past, now);
        }
        self.leave_alone(hosts, false);
        for (key, problem) in &problems {
            let mut status =
                self.records.get(key).map(|record| record.status.clone()).or_else(|| self.past.remove(key));
            let status = status.get_or_insert_default();
            let error = LastError::new(problem.code, &problem.message, jiff::Timestamp::now().as_second());
            status.error = Some(Box::new(error.after(status.error.as_deref())));
            status.next_poll = None;
            self.parts.statuses.put(key, status.clone());
            self.past.insert(key.clone(), status.clone());
        }
        for key in gone {
            let polling = self.scheduler.remove(&key);
            let record = self.records.remove(&key);
            if polling && !problems.contains_key(&key) {
                self.end_poll(&key, "it was removed");
                self.leaving.extend(record.map(|record| (key, record)));
                continue;
            }
            if polling {
                self.end_poll(&key, "it was removed");
            }
            if !problems.contains_key(&key) {
                self.parts.statuses.remove(&key);
                tracing::info!(record = %key, "removed");
            }
        }
        self.beat();
    }

    fn put(&mut self, item: Arc<WorkItem>, again: bool, mended: bool, told: Option<Past>, now: Moment) {
        let timing = Timing {
            key: item.key.clone(),
            uid: item.uid,
            interval: item.interval,
            host: Arc::clone(&item.remote.host),
            port: item.remote.port,
            maildrop: maildrop_hash(&item.remote.account),
        };
        let key = item.key.clone();
        if let Some(record) = self.records.get_mut(&key) {
            let other = record.item != item;
            let material = other && {
                let rhythm_aside = WorkItem { interval: record.item.interval, ..(*item).clone() };
                rhythm_aside != *record.item
            };
            let disabled = item.interval.is_none() && record.item.interval.is_some();
            // A login that is refused is not tried again for what does not
            // concern it.
            let refused = record.held || record.refusals().is_some();
            let mended = mended && record.failing() && !refused;
            if !(other || again || mended) {
                return;
            }
            let retry = again || mended || (material && (!refused || record.is_other_login(&item)));
            if again || (material && record.is_other_login(&item)) {
                record.first = false;
            }
            record.held &= !retry;
            if other {
                if record.item.uid != item.uid {
                    *record = Record::new(Arc::clone(&item), RecordStatus::default(), record.first);
                }
                record.item = item;
            }
            let id = self.scheduler.put(&timing, Past::default(), retry, now);
            let next = self.scheduler.next(id).map(|next| next.since(now));
            let next = next.and_then(|next| jiff::Timestamp::now().checked_add(next).ok());
            record.status.next_poll = next.map(jiff::Timestamp::as_second);
            self.parts.statuses.put(&key, record.status.clone());
            if material || disabled {
                self.end_poll(&key, "it was changed");
            }
            return;
        }
        // Its poll may still be ending.
        let back = self.leaving.remove(&key).filter(|record| record.item.uid == item.uid);
        let back = back.map(|record| record.status);
        let told = told.filter(|_| back.is_none());
        let status = back.or_else(|| self.past.remove(&key)).unwrap_or_default();
        let past = told.unwrap_or_else(|| past(&status, self.once, self.settings.delay_failed_accounts));
        // One that comes back while its poll is still ending is mended, too.
        self.scheduler.put(&timing, past, true, now);
        // What was refused before, here or elsewhere, is looked at in its turn.
        self.records.insert(key, Record::new(item, status, !self.once));
    }

    /// Goes on leaving hosts alone that failed before a restart (`ours`), or
    /// that others have found to fail.
    fn leave_alone(&mut self, hosts: Vec<FailedHost>, ours: bool) {
        let now = self.clock.now();
        for failed in hosts {
            let Some((host, port)) = failed.host.rsplit_once(':') else { continue };
            if let Ok(port) = port.parse() {
                self.scheduler.leave_alone(host, port, moment(failed.until), now);
                if ours {
                    self.failed_hosts.insert((host.to_owned(), port), failed.error);
                }
            }
        }
    }

    /// Remembers that a host has failed, or has come back.
    fn tell_hosts(&mut self, item: &WorkItem, error: Option<&PollError>) {
        let host = (item.remote.host.to_ascii_lowercase(), item.remote.port);
        match error {
            Some(error) => {
                let now = jiff::Timestamp::now().as_second();
                let error = LastError::new(error.code, &error.message, now);
                let error = error.after(self.failed_hosts.get(&host));
                self.failed_hosts.insert(host, error);
            }
            None if self.failed_hosts.remove(&host).is_none() => return,
            None => {}
        }
        self.hosts_changed = true;
    }

    /// Has the hosts that are left alone written, some changes at a time.
    fn remember_hosts(&mut self) {
        if !std::mem::take(&mut self.hosts_changed) {
            return;
        }
        let hosts = self.scheduler.failed_hosts().filter_map(|(host, port, until)| {
            Some(FailedHost {
                host: format!("{host}:{port}").into(),
                until: i64::try_from(until.0 / 1000).ok()?,
                error: self.failed_hosts.get(&(host.to_owned(), port))?.clone(),
            })
        });
        self.parts.statuses.put_hosts(hosts.collect());
    }

    /// Lets the poll of a record end at its next message.
    fn end_poll(&mut self, key: &RecordKey, why: &str) {
        let running = self.scheduler.find(key).and_then(|id| self.running.get(&id));
        if let Some(running) = running {
            tracing::debug!(record = %key, "{why}: its poll ends at the next message");
            running.stop.send_replace(Stage::Draining);
        }
    }

    fn reach(&mut self, stage: Stage) {
        self.stage = stage;
        self.parts.health.set_ready(false);
        for running in self.running.values() {
            running.stop.send_replace(stage);
        }
    }

    /// Renews the figures and shows that the loop is alive.
    fn beat(&self) {
        self.parts.health.beat();
        let mut states = RecordStates::default();
        for record in self.records.values() {
            let state = match record {
                Record { item, .. } if item.interval.is_none() => &mut states.disabled,
                Record { status, .. } if status.last_poll.is_none() => &mut states.pending,
                record if record.failing() => &mut states.failing,
                Record { .. } => &mut states.ready,
            };
            *state += 1;
            states.refused += u32::from(record.held || record.refusals().is_some());
        }
        self.parts.metrics.figures(
            &self.scheduler.figures(self.clock.now()),
            self.settings.processors,
            states,
        );
    }
}

fn counted(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
