//! One poll of a run: watched, ended early where that repeats nothing, and
//! heard by metrics, progress and scheduler.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::status::Refusals;
use crate::domain::code::Code;
use crate::domain::work::{RecordKey, Settings, WorkItem};
use crate::engine::ports::{Observer, Pending, Stage, Via};
use crate::engine::report::{Counters, PollError, Report, Scope};
use crate::telemetry::metrics::Metrics;

/// Polls one record; the engine does.
pub trait Poller: Send + Sync + 'static {
    /// One poll. Ends at the next message when `stop` says so; may be dropped
    /// at any time, and then tells the observer what it had done.
    fn poll<'a>(
        &'a self,
        item: &'a WorkItem,
        settings: &'a Settings,
        stop: watch::Receiver<Stage>,
    ) -> Pending<'a, Report>;

    /// A mark of the credentials of `item` as they are now: another one where
    /// something has changed that may make a refused login succeed. It tells
    /// nobody what they are. `None` where that is not known.
    fn credentials<'a>(&'a self, item: &'a WorkItem) -> Pending<'a, Option<Box<str>>> {
        let _ = item;
        Box::pin(std::future::ready(None))
    }

    /// What others remember of refused logins of a record that this run has not
    /// polled yet.
    fn remembered<'a>(&'a self, item: &'a WorkItem) -> Pending<'a, Option<Waiting>> {
        let _ = item;
        Box::pin(std::future::ready(None))
    }
}

/// How far a poll has come.
#[derive(Default)]
struct Course {
    /// The maildrop is listed. Up to then nothing has been fetched, and the
    /// poll may be dropped without repeating anything.
    heard: AtomicBool,
    /// It was dropped: what it had done by then.
    cut_off: Mutex<Option<Counters>>,
}

/// Logins that were refused, and when the next one is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// How many, since when, with what.
    pub refusals: Refusals,
    /// Not before; Unix seconds.
    pub until: i64,
}

/// How a poll ended that was given a processor.
pub(super) enum Turn {
    /// It took place. What had been refused before it, and with what it was
    /// refused now.
    Polled { report: Report, before: Option<Box<Waiting>>, credentials: Option<Box<str>> },
    /// It did not: the same login was refused before, and has to wait.
    Held(Waiting),
}

/// One turn of a record. `first`: its first one in this run, which remembers
/// of it what is in `own`.
pub(super) async fn turn<P: Poller>(
    poller: &P,
    item: &WorkItem,
    settings: &Settings,
    first: bool,
    own: Option<Waiting>,
    stop: watch::Receiver<Stage>,
    give_way: &Notify,
) -> Turn {
    let before = if first {
        // Who cannot be asked in time is not waited for: a login too many is
        // less than a poll too few.
        tokio::time::timeout(RECALL, recall(poller, item, own)).await.unwrap_or_default()
    } else {
        None
    };
    if let Some(waiting) =
        before.as_ref().filter(|waiting| waiting.until > jiff::Timestamp::now().as_second())
    {
        return Turn::Held(waiting.clone());
    }
    let report = guarded(poller, item, settings, stop, give_way).await;
    let refused = matches!(&report.result, Err(error) if error.code == Code::AuthFailed);
    let credentials = if refused {
        tokio::time::timeout(RECALL, poller.credentials(item)).await.unwrap_or_default()
    } else {
        None
    };
    Turn::Polled { report, before: before.map(Box::new), credentials }
}

/// What was refused before, if it was what would be tried now.
async fn recall<P: Poller>(poller: &P, item: &WorkItem, own: Option<Waiting>) -> Option<Waiting> {
    let waiting = match own {
        Some(own) => own,
        None => poller.remembered(item).await?,
    };
    let now = poller.credentials(item).await?;
    (waiting.refusals.credentials.as_ref() == Some(&now)).then_some(waiting)
}

/// What was refused before is asked for at most this long.
const RECALL: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// Of the poll that the observer hears of.
    static COURSE: Arc<Course>;
}

/// The engine's observer in this run: metrics, progress, and the scheduler,
/// which wants to know that a host answers.
pub struct Relay {
    metrics: Arc<Metrics>,
    progress: Option<Arc<dyn Observer>>,
    heard: mpsc::UnboundedSender<RecordKey>,
}

impl Relay {
    /// The observer, and the end that [`Run`] listens to.
    pub fn new(
        metrics: Arc<Metrics>,
        progress: Option<Arc<dyn Observer>>,
    ) -> (Self, mpsc::UnboundedReceiver<RecordKey>) {
        let (heard, listener) = mpsc::unbounded_channel();
        (Self { metrics, progress, heard }, listener)
    }

    fn each(&self, tell: impl Fn(&dyn Observer)) {
        tell(&*self.metrics);
        if let Some(progress) = &self.progress {
            tell(&**progress);
        }
    }
}

impl Observer for Relay {
    fn surveyed(&self, key: &RecordKey, unseen: u64, octets: u64) {
        // Outside of a run (a check) nobody listens.
        if COURSE.try_with(|course| course.heard.store(true, Ordering::Relaxed)).is_ok() {
            // At the end of the run the listener is gone.
            self.heard.send(key.clone()).ok();
        }
        self.each(|to| to.surveyed(key, unseen, octets));
    }

    fn fetched(&self, key: &RecordKey, octets: u64) {
        self.each(|to| to.fetched(key, octets));
    }

    fn delivered(&self, key: &RecordKey, via: Via) {
        self.each(|to| to.delivered(key, via));
    }

    fn rejected(&self, key: &RecordKey, reason: &'static str) {
        self.each(|to| to.rejected(key, reason));
    }

    fn duplicate(&self, key: &RecordKey) {
        self.each(|to| to.duplicate(key));
    }

    fn uncertain(&self, key: &RecordKey) {
        self.each(|to| to.uncertain(key));
    }

    fn cut_off(&self, key: &RecordKey, counters: &Counters) {
        let note = |course: &Arc<Course>| {
            *course.cut_off.lock().unwrap_or_else(PoisonError::into_inner) = Some(*counters);
        };
        COURSE.try_with(note).ok();
        self.each(|to| to.cut_off(key, counters));
    }

    fn committed(&self, took: Duration, ok: bool) {
        self.each(|to| to.committed(took, ok));
    }
}

pub(super) fn interrupted(why: &str) -> PollError {
    PollError { code: Code::Interrupted, message: why.to_owned(), scope: Scope::Local }
}

pub(super) fn report_of(error: PollError, took: Duration) -> Report {
    Report { result: Err(error), counters: Counters::default(), took, login_delay: None, refused: None }
}

/// One poll, ended early where that repeats nothing; a panic is its failure.
/// However it ends, the report has what was done.
pub(super) async fn guarded<P: Poller>(
    poller: &P,
    item: &WorkItem,
    settings: &Settings,
    stop: watch::Receiver<Stage>,
    give_way: &Notify,
) -> Report {
    let started = Instant::now();
    let course = Arc::new(Course::default());
    let poll = COURSE.scope(Arc::clone(&course), poller.poll(item, settings, stop.clone()));
    let poll = AssertUnwindSafe(watched(poll, &course, stop, give_way)).catch_unwind();
    // The panic hook has logged where and why.
    let mut report = poll.await.unwrap_or_else(|_| {
        let error = PollError {
            code: Code::Internal,
            message: "a defect of RPOP ended this poll; the log says where. Please report it".to_owned(),
            scope: Scope::Local,
        };
        report_of(error, started.elapsed())
    });
    let cut_off = course.cut_off.lock().unwrap_or_else(PoisonError::into_inner).take();
    report.counters = cut_off.unwrap_or(report.counters);
    report
}

/// Drops the poll before it returns.
async fn watched(
    poll: impl Future<Output = Report>,
    course: &Course,
    mut stop: watch::Receiver<Stage>,
    give_way: &Notify,
) -> Report {
    let started = Instant::now();
    let mut poll = std::pin::pin!(poll);
    let dropped = |why: &str| report_of(interrupted(why), started.elapsed());
    loop {
        tokio::select! {
            biased;
            report = &mut poll => return report,
            () = give_way.notified() => {
                if !course.heard.load(Ordering::Relaxed) {
                    return dropped("its host said nothing while others waited");
                }
            }
            changed = stop.changed() => {
                let stage = if changed.is_ok() { *stop.borrow_and_update() } else { Stage::Aborting };
                let heard = course.heard.load(Ordering::Relaxed);
                // Before the listing nothing has been fetched: no need to wait.
                if stage == Stage::Aborting || (stage == Stage::Draining && !heard) {
                    return dropped("ended by a shutdown or a change");
                }
            }
        }
    }
}
