//! Every poll goes through here: it begins only where this worker may, ends
//! when the shard is wanted back, and is dropped, sockets and all, when the
//! worker no longer counts as alive. What such a poll could not commit is
//! committed once the worker counts as alive again; until then, or until that
//! is given up, its session counts as open: nothing else is done with the
//! record, and its shard is not handed over.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::fence::Fence;
use super::roster::{Entrance, Roster, Session};
use crate::domain::code::Code;
use crate::domain::shards::holding::Settling;
use crate::domain::work::{RecordKey, Settings, WorkItem};
use crate::engine::owed::Owing;
use crate::engine::ports::{Pending, Stage};
use crate::engine::report::{Counters, PollError, Report, Scope};
use crate::run::Poller;

/// How long the ledger may take for what is owed to it, once that may be
/// committed. Behind that it is left to the record's next poll.
const SETTLE: Duration = Duration::from_mins(1);
/// The pause before it is tried again, at first and at most.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(8)];
/// How often it is looked at whether it still may be.
const LOOK: Duration = Duration::from_secs(1);

/// Lets polls through to the engine.
#[derive(Debug)]
pub struct Gate<P> {
    inner: Arc<P>,
    roster: Roster,
    ledgers: Arc<Owing<Roster>>,
}

impl<P: Poller> Gate<P> {
    /// In front of `inner`, which keeps its ledgers in `ledgers`.
    pub fn new(inner: Arc<P>, roster: Roster, ledgers: Arc<Owing<Roster>>) -> Self {
        Self { inner, roster, ledgers }
    }

    async fn go(&self, item: &WorkItem, settings: &Settings, mut stop: watch::Receiver<Stage>) -> Report {
        let asked = Instant::now();
        let Some(mut session) = self.enter(item, &mut stop).await else {
            return interrupted("it is another worker's to poll", asked.elapsed());
        };
        let started = Instant::now();
        let (told, stopped) = watch::channel(Stage::Running);
        let poll = guarded(&*self.inner, self.roster.fence(), item, settings, stopped);
        let report = watched(poll, &mut session, &mut stop, &told).await;
        let took = started.elapsed();
        // A poll that failed by itself leaves it to the next one, if that is to
        // be this worker's.
        let last = report.is_none() || *session.stop.borrow() >= Stage::Draining;
        if last && self.ledgers.owes(&item.key) {
            self.settle(&item.key, &mut stop).await;
        }
        report.unwrap_or_else(|| interrupted("dropped: the record is not this worker's any more", took))
    }

    /// Has what is owed to the ledger committed, or forgotten where it must not
    /// be any more. Lasts for as long as the worker does not know whether it
    /// counts as alive, like every poll at this gate, and a minute more.
    async fn settle(&self, key: &RecordKey, stop: &mut watch::Receiver<Stage>) {
        let void = async {
            while self.roster.may_settle(key) != Settling::Never {
                sleep(LOOK).await;
            }
        };
        tokio::select! {
            biased;
            () = void => self.ledgers.forget(key, "the record is not this worker's any more"),
            // The process ends, and drops this.
            _ = stop.wait_for(|stage| *stage == Stage::Aborting) => {}
            () = self.commit(key) => {}
        }
    }

    async fn commit(&self, key: &RecordKey) {
        let [mut pause, longest] = PAUSES;
        let mut opened = self.roster.opened();
        let mut until = None;
        loop {
            opened.borrow_and_update();
            if self.roster.may_settle(key) != Settling::Now {
                // The clock may have been late rather than the renewal: that
                // is told by nobody.
                timeout(LOOK, opened.changed()).await.ok();
                continue;
            }
            let until = *until.get_or_insert_with(|| Instant::now() + SETTLE);
            match timeout_at(until, self.ledgers.settle(key)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) if Instant::now() + pause < until => {
                    tracing::info!(record = %key, "what was accepted cannot be remembered yet: {error}");
                    sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
                Ok(Err(error)) => {
                    return tracing::warn!(record = %key, "what was accepted is not remembered yet: {error}");
                }
                Err(_) => {
                    return tracing::warn!(record = %key, "what was accepted is not remembered yet: no answer");
                }
            }
        }
    }

    /// Waits while the worker does not know whether it counts as alive.
    async fn enter(&self, item: &WorkItem, stop: &mut watch::Receiver<Stage>) -> Option<Session> {
        let mut opened = self.roster.opened();
        loop {
            opened.borrow_and_update();
            match self.roster.enter(item) {
                Entrance::Open(session) => return Some(session),
                Entrance::Refused => return None,
                Entrance::Later => {}
            }
            tokio::select! {
                changed = opened.changed() => changed.ok()?,
                stage = stop.wait_for(|stage| *stage > Stage::Running) => {
                    drop(stage);
                    return None;
                }
            }
        }
    }
}

impl<P: Poller> Poller for Gate<P> {
    fn poll<'a>(
        &'a self,
        item: &'a WorkItem,
        settings: &'a Settings,
        stop: watch::Receiver<Stage>,
    ) -> Pending<'a, Report> {
        Box::pin(self.go(item, settings, stop))
    }
}

fn guarded<'a, P: Poller>(
    inner: &'a P,
    fence: &Fence,
    item: &'a WorkItem,
    settings: &'a Settings,
    stop: watch::Receiver<Stage>,
) -> impl Future<Output = Option<Report>> + 'a {
    // Polled for the first time behind the look at the clock.
    fence.guard(async move { inner.poll(item, settings, stop).await })
}

/// The poll, told of whoever wants it to end: the run (`stop`) or the shard.
/// `None` where it was dropped.
async fn watched(
    poll: impl Future<Output = Option<Report>>,
    session: &mut Session,
    stop: &mut watch::Receiver<Stage>,
    told: &watch::Sender<Stage>,
) -> Option<Report> {
    let mut poll = std::pin::pin!(poll);
    let (mut run_speaks, mut shard_speaks) = (true, true);
    loop {
        let stage = tokio::select! {
            biased;
            changed = session.stop.changed(), if shard_speaks => {
                shard_speaks = changed.is_ok();
                *session.stop.borrow_and_update()
            }
            changed = stop.changed(), if run_speaks => {
                run_speaks = changed.is_ok();
                *stop.borrow_and_update()
            }
            report = &mut poll => return report,
        };
        if stage == Stage::Aborting {
            return None;
        }
        told.send_if_modified(|now| std::mem::replace(now, stage.max(*now)) < stage);
    }
}

fn interrupted(why: &str, took: Duration) -> Report {
    let error = PollError { code: Code::Interrupted, message: why.to_owned(), scope: Scope::Local };
    Report { result: Err(error), counters: Counters::default(), took, login_delay: None, refused: None }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
