//! A courier: takes a poll's jobs and brings them to their destination over
//! as many connections ("lanes") as its latency asks for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::dial::{Dial, Trouble, establish};
use super::pool::Shelf;
use super::session::{Desk, Lost, Session, Task, Terms};
use crate::domain::code::Code;
use crate::domain::work::MailHost;
use crate::engine::ports::{Content, Job, Outcome, Undelivered, Verdict};
use crate::engine::refusals;
use crate::smtp::Error;

/// Connections of one courier.
const MOST_LANES: usize = 20;
/// Jobs that wait here, and their octets. What waits behind them waits in the
/// channel, whose bound is the back-pressure.
const WAITING_JOBS: usize = 64;
const WAITING_OCTETS: usize = 1024 * 1024;
/// Connections that no second lane of a courier takes.
const SPARE: usize = 8;
/// A lane that needs longer for each message than this is held up by latency
/// (of the network or of the destination's disk), and more lanes help.
const SLOW: Duration = Duration::from_millis(4);
/// Above this it pays to have a few lanes, so that one is served while others
/// wait for a reply (DATA has to wait for one amid each message).
const BRISK: Duration = Duration::from_micros(30);
const FEW_LANES: usize = 4;
/// Fewer messages than these are through before another connection is made.
const WORTH_A_LANE: usize = 3;
/// How often it is looked at whether more lanes are wanted.
const REVIEW: Duration = Duration::from_millis(10);
/// Connections lost in a row without one accepted message.
const MOST_LOST: u32 = 3;

/// What the lanes of a courier share.
pub(super) struct Way<D: Dial> {
    pub(super) dial: Arc<D>,
    pub(super) shelf: Arc<Shelf<D::Stream>>,
    pub(super) host: MailHost,
    pub(super) terms: Terms,
    pub(super) outcomes: mpsc::UnboundedSender<Outcome>,
    counter: Mutex<Counter>,
}

/// The tasks that wait, and how the lanes fare.
#[derive(Debug, Default)]
struct Counter {
    waiting: VecDeque<Task>,
    octets: usize,
    wakers: Vec<Waker>,
    /// Lanes that have a connection.
    connected: usize,
    /// Lanes that are about to have one.
    connecting: usize,
    /// Smoothed time a lane needs for a message.
    pace: Option<Duration>,
    /// A connection could not be had while others worked: no more lanes.
    enough: bool,
    lost_in_row: u32,
    /// No connection can be had at all.
    down: Option<Trouble>,
}

fn is_cut_off(outcome: &Outcome) -> bool {
    let of =
        |verdict: &Verdict| matches!(verdict, Verdict::Deferred(refusal) if refusals::is_cut_off(refusal));
    outcome.result.as_ref().is_ok_and(|verdicts| verdicts.iter().any(of))
}

fn octets(job: &Job) -> usize {
    match &job.content {
        Content::Whole(pieces) => pieces.iter().map(|piece| piece.bytes.len()).sum(),
        Content::Stream(_) => 0,
    }
}

impl Counter {
    fn push(&mut self, task: Task) {
        self.octets += octets(&task.job);
        self.waiting.push_back(task);
    }

    fn pop(&mut self) -> Option<Task> {
        let task = self.waiting.pop_front()?;
        self.octets -= octets(&task.job);
        Some(task)
    }

    fn has_room(&self) -> bool {
        self.waiting.is_empty() || (self.waiting.len() < WAITING_JOBS && self.octets < WAITING_OCTETS)
    }

    /// How many lanes to open now.
    fn wanted(&self, free: usize) -> usize {
        let lanes = self.connected + self.connecting;
        let Some(first) = self.waiting.front() else { return 0 };
        if lanes == 0 {
            return 1;
        }
        let most = match self.pace {
            Some(pace) if pace >= SLOW => MOST_LANES,
            Some(pace) if pace >= BRISK && self.waiting.len() >= WORTH_A_LANE => FEW_LANES,
            None if first.since.elapsed() >= 2 * SLOW => MOST_LANES,
            _ => 1,
        };
        if self.enough || self.connecting > 0 {
            return 0;
        }
        // The last seats are for the first lanes of other polls.
        let free = free.saturating_sub(SPARE);
        self.waiting.len().min(3 * lanes).min(most.saturating_sub(lanes)).min(free)
    }
}

impl<D: Dial> Desk for Way<D> {
    fn take(&self, cx: &mut Context<'_>) -> Option<Task> {
        let mut counter = self.counter();
        let task = counter.pop();
        if task.is_none() && !counter.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            counter.wakers.push(cx.waker().clone());
        }
        task
    }

    fn done(&self, outcome: Outcome, took: Option<Duration>) {
        if let Some(took) = took {
            let mut counter = self.counter();
            counter.pace = Some(counter.pace.map_or(took, |pace| (pace * 3 + took) / 4));
        }
        self.report(outcome);
    }
}

impl<D: Dial> Way<D> {
    pub(super) fn new(
        dial: Arc<D>,
        shelf: Arc<Shelf<D::Stream>>,
        host: MailHost,
        terms: Terms,
        outcomes: mpsc::UnboundedSender<Outcome>,
    ) -> Self {
        Self { dial, shelf, host, terms, outcomes, counter: Mutex::default() }
    }

    fn counter(&self) -> MutexGuard<'_, Counter> {
        self.counter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, outcome: Outcome) {
        // Nobody listens any more only when the courier is being dropped.
        self.outcomes.send(outcome).ok();
    }

    fn unavailable(&self, task: &Task, trouble: &Trouble) {
        let Trouble { code, message } = trouble.clone();
        self.report(Outcome { id: task.job.id, result: Err(Undelivered::Unavailable { code, message }) });
    }

    /// Takes jobs until there are no more, or nobody wants the outcomes.
    pub(super) async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let mut lanes = FuturesUnordered::new();
        let mut unheard = std::pin::pin!(self.outcomes.closed());
        let mut more = true;
        loop {
            let (room, idle, wanted) = {
                let counter = self.counter();
                (counter.has_room(), counter.waiting.is_empty(), counter.wanted(self.shelf.free()))
            };
            if !more && idle && lanes.is_empty() {
                return;
            }
            for _ in 0..wanted {
                self.counter().connecting += 1;
                lanes.push(self.lane());
            }
            tokio::select! {
                job = jobs.recv(), if more && room => match job {
                    Some(job) => self.accept(job),
                    None => more = false,
                },
                Some(()) = lanes.next() => {}
                () = tokio::time::sleep(REVIEW), if !idle => {}
                () = &mut unheard => return,
            }
        }
    }

    fn accept(&self, job: Job) {
        let task = Task { job, lost: 0, spent: false, since: Instant::now() };
        let mut counter = self.counter();
        if let Some(trouble) = counter.down.clone() {
            drop(counter);
            return self.unavailable(&task, &trouble);
        }
        counter.push(task);
        let wakers = std::mem::take(&mut counter.wakers);
        drop(counter);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// One connection after the other, as long as there is work.
    async fn lane(&self) {
        loop {
            let _seat = self.shelf.seat().await;
            let kept = self.shelf.take(self.terms);
            let session = match kept {
                Some(session) => Ok(session),
                None => establish(&*self.dial, &self.host, self.terms.protocol, &self.terms.timeouts)
                    .await
                    .map(|(wire, extensions)| Session::new(wire, extensions, self.terms)),
            };
            let mut session = match session {
                Ok(mut session) => {
                    if self.shelf.forgoes_chunking() {
                        session.forgo_chunking();
                    }
                    session
                }
                Err(trouble) => return self.no_connection(&trouble),
            };
            {
                let mut counter = self.counter();
                counter.connecting -= 1;
                counter.connected += 1;
            }
            let ended = session.work(self).await;
            let mut counter = self.counter();
            counter.connected -= 1;
            if session.accepted > 0 {
                counter.lost_in_row = 0;
            }
            if ended.is_ok() && session.is_usable() {
                self.shelf.put(session);
            } else if let Err(lost) = ended {
                drop(counter);
                self.recover(session, &lost);
                counter = self.counter();
            }
            if counter.waiting.is_empty() {
                return;
            }
            counter.connecting += 1;
        }
    }

    fn no_connection(&self, trouble: &Trouble) {
        let mut counter = self.counter();
        counter.connecting -= 1;
        if counter.connected > 0 {
            counter.enough = true;
        } else {
            drop(counter);
            self.go_down(trouble);
        }
    }

    /// Nothing more is tried in this poll: a destination that is down must not
    /// cost a deadline for each message.
    fn go_down(&self, trouble: &Trouble) {
        let waiting = {
            let mut counter = self.counter();
            counter.down = Some(trouble.clone());
            counter.octets = 0;
            std::mem::take(&mut counter.waiting)
        };
        for task in &waiting {
            self.unavailable(task, trouble);
        }
    }

    fn recover(&self, session: Session<D::Stream>, lost: &Lost) {
        let (reused, heard, accepted) = (session.is_reused(), session.heard, session.accepted);
        let (outcomes, tasks) = session.salvage(lost);
        let is_cut_off = outcomes.iter().any(is_cut_off);
        for outcome in outcomes {
            self.report(outcome);
        }
        let trouble = Trouble::new(Code::DestinationUnavailable, &self.host, &lost.error);
        // A connection that died while it was idle says nothing about the
        // destination, and one that was cut behind some messages little.
        // So it is with one that had enough of a message's unknown recipients.
        let innocent =
            accepted > 0 || is_cut_off || lost.aborted || lost.is_for_bdat() || (reused && heard == 0);
        if lost.is_for_bdat() {
            self.shelf.forgo_chunking();
        }
        let down = {
            let mut counter = self.counter();
            if !innocent {
                counter.lost_in_row += 1;
            }
            let timed_out = matches!(lost.error, Error::TimedOut { .. } | Error::TooSlow { .. }) && !innocent;
            timed_out || counter.lost_in_row >= MOST_LOST
        };
        if lost.is_for_bdat() {
            tracing::info!(
                message = %trouble.message,
                "CHUNKING is announced, and BDAT is not known: DATA is used from now on"
            );
        } else if !lost.aborted {
            tracing::info!(message = %trouble.message, retried = tasks.len(), "connection to the destination lost");
        }
        for mut task in tasks.into_iter().rev() {
            if innocent {
                task.lost -= 1;
            }
            if task.spent || task.lost > 1 {
                self.unavailable(&task, &trouble);
            } else {
                let mut counter = self.counter();
                counter.octets += octets(&task.job);
                counter.waiting.push_front(task);
            }
        }
        if down {
            self.go_down(&trouble);
        }
    }
}
