//! Every poll goes through here: it begins only where this worker may, ends
//! when the shard is wanted back, and is dropped, sockets and all, when the
//! worker no longer counts as alive.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::fence::Fence;
use super::roster::{Entrance, Roster, Session};
use crate::domain::code::Code;
use crate::domain::work::{Settings, WorkItem};
use crate::engine::ports::{Pending, Stage};
use crate::engine::report::{Counters, PollError, Report, Scope};
use crate::run::Poller;

/// Lets polls through to the engine.
#[derive(Debug)]
pub struct Gate<P> {
    inner: Arc<P>,
    roster: Roster,
}

impl<P: Poller> Gate<P> {
    /// In front of `inner`.
    pub fn new(inner: Arc<P>, roster: Roster) -> Self {
        Self { inner, roster }
    }

    async fn go(&self, item: &WorkItem, settings: &Settings, mut stop: watch::Receiver<Stage>) -> Report {
        let asked = Instant::now();
        let Some(session) = self.enter(item, &mut stop).await else {
            return interrupted("it is another worker's to poll", asked.elapsed());
        };
        let started = Instant::now();
        let (told, stopped) = watch::channel(Stage::Running);
        let poll = guarded(&*self.inner, self.roster.fence(), item, settings, stopped);
        let report = watched(poll, session, stop, &told).await;
        report.unwrap_or_else(|| {
            interrupted("dropped: the record is not this worker's any more", started.elapsed())
        })
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
    mut session: Session,
    mut stop: watch::Receiver<Stage>,
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
