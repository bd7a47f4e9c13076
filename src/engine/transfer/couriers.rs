//! The couriers of a session: one for each destination that gets something.

use std::future::poll_fn;
use std::task::Poll;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;

use super::super::ports::{Courier, Job, MailSink, Outcome, Route};

/// The couriers, by lane. A courier is opened when its first message is to be
/// handed over.
pub(in super::super) struct Couriers<'a> {
    sink: &'a dyn MailSink,
    routes: Vec<Route>,
    pub(super) jobs: Doors,
    pub(super) outcomes: Answers,
}

impl<'a> Couriers<'a> {
    /// None is open yet.
    pub(in super::super) fn new(sink: &'a dyn MailSink, routes: &[Route]) -> Self {
        Self {
            sink,
            jobs: Doors(routes.iter().map(|_| None).collect()),
            outcomes: Answers { open: routes.iter().map(|_| None).collect(), next: 0 },
            routes: routes.to_vec(),
        }
    }

    /// Opens a lane, unless it is.
    pub(super) fn open(&mut self, lane: usize) {
        if let (Some(route), Some(door), Some(answers)) =
            (self.routes.get(lane), self.jobs.0.get_mut(lane), self.outcomes.open.get_mut(lane))
            && door.is_none()
        {
            let Courier { jobs, outcomes } = self.sink.open(route.clone());
            (*door, *answers) = (Some(jobs), Some(outcomes));
        }
    }

    /// How many messages the courier of a lane prepares ahead.
    pub(super) fn ahead(&self, lane: usize) -> usize {
        self.routes.get(lane).map_or(0, |route| self.sink.ahead(route))
    }

    /// Hands a job over.
    pub(super) async fn send(&mut self, lane: usize, job: Job) -> Result<(), SendError<Job>> {
        self.open(lane);
        match self.jobs.0.get(lane) {
            Some(Some(jobs)) => jobs.send(job).await,
            _ => Err(SendError(job)),
        }
    }
}

/// Where jobs go in.
pub(super) struct Doors(Vec<Option<mpsc::Sender<Job>>>);

impl Doors {
    /// A place for a job with an open lane. Cancel-safe.
    pub(super) async fn reserve(&self, lane: usize) -> Result<mpsc::Permit<'_, Job>, SendError<()>> {
        match self.0.get(lane) {
            Some(Some(jobs)) => jobs.reserve().await,
            _ => std::future::pending().await,
        }
    }
}

/// Where outcomes come out.
pub(super) struct Answers {
    open: Vec<Option<mpsc::UnboundedReceiver<Outcome>>>,
    /// Where the next look begins, so that none is overheard.
    next: usize,
}

impl Answers {
    /// The next outcome of any courier; `None` when one of them is gone.
    /// Cancel-safe. Pending for ever where none is open.
    pub(super) async fn recv(&mut self) -> Option<Outcome> {
        poll_fn(|cx| {
            let count = self.open.len();
            for step in 0..count {
                let at = (self.next + step) % count;
                let Some(outcomes) = self.open.get_mut(at) else { continue };
                let Some(Poll::Ready(outcome)) = outcomes.as_mut().map(|outcomes| outcomes.poll_recv(cx))
                else {
                    continue;
                };
                if outcome.is_none() {
                    // It says nothing more.
                    *outcomes = None;
                }
                self.next = (at + 1) % count;
                return Poll::Ready(outcome);
            }
            Poll::Pending
        })
        .await
    }

    /// What has been said and not been heard.
    pub(super) fn try_recv(&mut self) -> Option<Outcome> {
        self.open.iter_mut().flatten().find_map(|outcomes| outcomes.try_recv().ok())
    }
}
