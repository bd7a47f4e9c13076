//! Fetching, handing over, committing and deleting, all at once, on one
//! session.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::batch::Batch;
use super::incoming::{Ended, Entrusted, Fetch, Incoming, Judgement, Outgoing, Taken, UnifiedRules};
use super::plan::{Plan, Tally};
use super::ports::{Job, LedgerError, Observer, Outcome, Part, Stage, Undelivered, Verdict};
use super::report::{PollError, Scope};
use super::route::Lanes;
use super::standing::Desk;
use crate::domain::code::Code;
use crate::domain::envelope::Recipient;
use crate::domain::ledger::{Entry, Ledger, Twins};
use crate::domain::work::WorkItem;
use crate::message::Trace;
use crate::net::Stream;
use crate::pop3::{Client, Command, Event};

mod ahead;
mod copies;
mod couriers;
mod notices;
mod outcome;
mod reading;
mod trouble;
mod unified;

use ahead::Leaves;
pub(super) use copies::Copies;
pub(super) use couriers::Couriers;
use notices::Doubted;
use outcome::Streak;
pub(super) use unified::knows_copies;

/// RETRs under way at once, where the server announces PIPELINING.
const WINDOW_MESSAGES: usize = 1024;
/// And their octets by LIST.
const WINDOW_OCTETS: u64 = 4 << 20;
/// Octets of whole messages held for the destination.
const HELD_OCTETS: u64 = 1 << 20;
/// Deletions in one session: servers slow down over long lists of them.
const DELETIONS: usize = 5_000;
/// The POP3 side hears from us at least this often while the destination is
/// slow: servers log idle sessions out after 10 minutes (RFC 1939, section 3),
/// some much sooner.
const KEEPALIVE: Duration = Duration::from_secs(25);
/// How long an answer may take while a session that fell out of step is being
/// drained: one may be missing for good, and another session is at hand.
const DRAIN: Duration = Duration::from_secs(5);
/// Refusals for now, with no acceptance between them, that end a poll.
const DEFERRALS: u32 = 5;
/// And so many for the same recipients.
const MOST_DEFERRALS: u32 = 50;
/// Refusals for good before any of a message was sent, likewise.
const REFUSALS: u32 = 10;

/// How a session ended.
#[derive(Debug)]
pub(super) enum End {
    /// All that was to be done is done.
    Complete,
    /// Out of step, or enough for one session: another one goes on.
    Again,
}

/// What a session needs to know.
pub(super) struct Context<'a> {
    pub(super) item: &'a WorkItem,
    pub(super) recipient: Recipient,
    /// Who gets what `onReject: Postmaster` sends on.
    pub(super) postmaster: Option<Recipient>,
    pub(super) lanes: Lanes,
    pub(super) observer: &'a dyn Observer,
    pub(super) trace: Arc<Trace>,
    /// This host, for notifications.
    pub(super) host_name: Arc<str>,
    /// An empty ledger with the keys of the record's: that one may be out on a
    /// commit.
    pub(super) keys: Ledger,
    /// Sorted hashes of Message-IDs that count as known.
    pub(super) known: Vec<u64>,
    /// Owed messages that the listing lacks, after a mass change of UIDs: by
    /// Message-ID, each with the hash of its UID.
    pub(super) moved: HashMap<u64, Vec<(u64, Entry)>>,
    /// Tells messages of one UID apart, by its hash.
    pub(super) twins: HashMap<u64, Twins>,
    /// Fetching ends here.
    pub(super) until: Instant,
    /// Unix seconds.
    pub(super) now: i64,
    pub(super) pipelining: bool,
    /// The server may delete at QUIT what was retrieved (RFC 2449, 6.7).
    pub(super) expires_at_once: bool,
    /// Another login at once would be refused (LOGIN-DELAY, RFC 2449, 6.5).
    pub(super) last_session: bool,
}

impl Context<'_> {
    fn judgement<'b>(
        &'b self,
        fetch: &Fetch,
        copies: Option<&'b Copies>,
        away: &'b BTreeMap<usize, PollError>,
    ) -> Judgement<'b> {
        let recipient = match &self.postmaster {
            Some(postmaster) if fetch.to_postmaster => postmaster,
            _ => &self.recipient,
        };
        let unified = self.desk(away).map(|desk| UnifiedRules { desk, copies });
        Judgement { keys: &self.keys, recipient, known: &self.known, moved: &self.moved, unified }
    }

    /// Of a unified account.
    fn desk<'b>(&'b self, away: &'b BTreeMap<usize, PollError>) -> Option<Desk<'b>> {
        let unified = self.item.unified.as_deref()?;
        Some(Desk { unified, lanes: &self.lanes, away, keys: &self.keys })
    }
}

/// What has happened.
enum Step {
    /// Something that calls for no more than another look.
    Moved,
    Outcome(Outcome),
    CourierGone,
    Committed(Result<Vec<u32>, LedgerError>),
    /// The destination wants no more of a stream.
    StreamGone(mpsc::Sender<Part>),
    Event(Result<Event, crate::pop3::Error>),
    /// The POP3 side has not heard from us for long.
    Quiet,
    /// The session's deadline has passed, and its messages do not end.
    Overdue,
    /// What was in flight when the session fell out of step does not come.
    Undrained,
}

/// A message that the destination has, or is about to have.
struct Handed {
    taken: Option<Taken>,
    octets: u64,
    /// What of a streamed message is not known before its end.
    fetch: Fetch,
    lane: usize,
    /// Of a unified account.
    unified: Option<Box<Entrusted>>,
}

/// What a courier says of a job.
type Answer = Result<Vec<Verdict>, Undelivered>;

pub(super) struct Transfer<'a> {
    context: Context<'a>,
    client: Client<Stream>,
    couriers: Couriers<'a>,
    copies: Option<Copies>,
    batch: &'a mut Batch,
    plan: &'a mut Plan,
    tally: &'a mut Tally,
    queue: VecDeque<Fetch>,
    in_flight: VecDeque<Fetch>,
    in_flight_octets: u64,
    current: Option<Incoming>,
    unconfirmed: Option<Ended>,
    confirmations_due: u8,
    out: Outgoing,
    ready: VecDeque<(Job, Handed)>,
    handed: HashMap<u64, Handed>,
    /// Those of them that may not be delivered yet.
    leaves: Leaves,
    /// Answers of unified accounts to streams that are not at their end yet.
    early: HashMap<u64, (Handed, Answer)>,
    held_octets: u64,
    /// Fetched in vain: to be fetched again, singly.
    again: Vec<Fetch>,
    draining: bool,
    deletions: VecDeque<u32>,
    deletes_sent: usize,
    next_id: u64,
    /// For each lane.
    bad_streaks: Vec<Streak>,
    /// Of unified accounts, each refused by all of its recipients.
    doubted: Vec<Doubted>,
    failed: Option<PollError>,
    stopping: bool,
    in_step: bool,
    heard: Instant,
    /// Messages that began to come, and those of them that are done with.
    retrieved: u64,
    settled: u64,
    /// DELEs that were answered with `+OK`: they count when QUIT is.
    deleted: u64,
    /// Messages that earlier sessions of the poll fetched.
    fetched_before: u64,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(
        context: Context<'a>,
        client: Client<Stream>,
        couriers: Couriers<'a>,
        copies: Option<Copies>,
        batch: &'a mut Batch,
        plan: &'a mut Plan,
        tally: &'a mut Tally,
    ) -> Self {
        let fetched_before = tally.counters.fetched;
        let bad_streaks = (0..context.lanes.count()).map(|_| Streak::default()).collect();
        Self {
            context,
            client,
            couriers,
            copies,
            batch,
            plan,
            tally,
            queue: VecDeque::new(),
            in_flight: VecDeque::new(),
            in_flight_octets: 0,
            current: None,
            unconfirmed: None,
            confirmations_due: 0,
            out: Outgoing::default(),
            ready: VecDeque::new(),
            handed: HashMap::new(),
            leaves: Leaves::default(),
            early: HashMap::new(),
            held_octets: 0,
            again: Vec::new(),
            draining: false,
            deletions: VecDeque::new(),
            deletes_sent: 0,
            next_id: 0,
            bad_streaks,
            doubted: Vec::new(),
            failed: None,
            stopping: false,
            in_step: true,
            heard: Instant::now(),
            retrieved: 0,
            settled: 0,
            deleted: 0,
            fetched_before,
        }
    }

    /// Fetches `queue`, deletes `deletions` and what was accepted, says QUIT.
    /// Everything that was accepted is committed when this returns, whatever
    /// it returns, unless the ledger itself failed.
    pub(super) async fn run(
        mut self,
        queue: Vec<Fetch>,
        deletions: Vec<u32>,
        stop: &mut watch::Receiver<Stage>,
    ) -> Result<End, PollError> {
        self.queue = queue.into();
        self.deletions = deletions.into();
        let ended = self.pump(stop).await;
        self.abandon_unconfirmed();
        self.judge_busy(matches!(ended, Ok(End::Complete)));
        if matches!(ended, Ok(End::Complete)) && self.in_step && !self.stopping {
            self.judge_suspects();
        }
        let settled = self.settle().await;
        if self.in_step && settled.is_ok() && ended.is_ok() && self.client.in_flight() == 0 {
            self.leave().await;
        }
        settled?;
        let end = ended?;
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        Ok(end)
    }

    /// The loop: whatever can be done next is done.
    async fn pump(&mut self, stop: &mut watch::Receiver<Stage>) -> Result<End, PollError> {
        let mut watching = true;
        loop {
            if !self.stopping && (*stop.borrow() >= Stage::Draining || Instant::now() >= self.context.until) {
                self.stopping = true;
            }
            // Here as well as below: a server that floods us leaves no timer a
            // chance.
            if self.client.in_flight() > 0 && Instant::now() >= self.context.until + DRAIN {
                return Err(self.on_overdue());
            }
            self.ask();
            if !self.doubted.is_empty() && self.is_idle() {
                if self.stopping || self.failed.is_some() {
                    // A later poll finds out again.
                    self.doubted.clear();
                }
                self.believe(None);
            }
            let idle = self.is_idle();
            if self.batch.is_due(idle) {
                self.batch.start();
            }
            if idle
                && self.batch.uncommitted() == 0
                && self.client.in_flight() == 0
                && self.deletions.is_empty()
            {
                return Ok(self.end());
            }
            let reading = self.client.in_flight() > 0 && !self.is_full();
            self.give_leave();
            let commit_at = self.batch.due_in().map(|wait| Instant::now() + wait);
            let keepalive = self.heard + KEEPALIVE;
            let keep_alive = self.client.in_flight() == 0;
            let (stopping, until) = (self.stopping, self.context.until);
            let (draining, drained_by) = (self.draining, self.heard + DRAIN);
            let (lane, free) = (self.next_lane(), self.is_free());
            if let Some(lane) = lane {
                self.couriers.open(lane);
            }
            let Self { client, couriers, batch, out, ready, handed, leaves, .. } = &mut *self;
            let Couriers { jobs, outcomes, .. } = couriers;
            let step = tokio::select! {
                biased;
                outcome = outcomes.recv() => outcome.map_or(Step::CourierGone, Step::Outcome),
                committed = batch.committed(), if batch.is_running() => Step::Committed(committed),
                permit = jobs.reserve(lane.unwrap_or_default()), if lane.is_some() => {
                    match (permit, ready.pop_front()) {
                        (Ok(permit), Some((job, message))) => {
                            handed.insert(job.id, message);
                            permit.send(leaves.admit(job, free));
                            Step::Moved
                        }
                        _ => Step::CourierGone,
                    }
                }
                gone = out.advance(), if !out.is_empty() => gone.map_or(Step::Moved, Step::StreamGone),
                event = client.event(), if reading => Step::Event(event),
                () = sleep_until(commit_at.unwrap_or(keepalive)), if commit_at.is_some() => Step::Moved,
                changed = stop.changed(), if watching && !stopping => {
                    watching = changed.is_ok();
                    Step::Moved
                }
                () = sleep_until(until), if !stopping => Step::Moved,
                () = sleep_until(keepalive), if keep_alive => Step::Quiet,
                () = sleep_until(drained_by), if draining => Step::Undrained,
                () = sleep_until(until + DRAIN), if reading => Step::Overdue,
            };
            match step {
                Step::Moved => {}
                Step::Outcome(outcome) => self.on_outcome(outcome),
                Step::CourierGone => self.on_courier_gone(),
                Step::Committed(Ok(numbers)) => self.deletions.extend(numbers),
                Step::Committed(Err(error)) => return Err(self.on_uncommitted(&error)),
                Step::StreamGone(sender) => self.on_stream_gone(&sender),
                Step::Event(Ok(event)) => {
                    if let Some(end) = self.on_event(event).await? {
                        return Ok(end);
                    }
                }
                Step::Event(Err(error)) => return self.on_broken(&error),
                Step::Overdue => return Err(self.on_overdue()),
                Step::Undrained => {
                    self.in_step = false;
                    self.plan.careful = true;
                    return Ok(End::Again);
                }
                Step::Quiet => {
                    self.heard = Instant::now();
                    self.client.send(Command::Noop);
                }
            }
        }
    }

    /// Nothing more will come that would have to be committed.
    fn is_idle(&self) -> bool {
        (self.queue.is_empty() || self.is_closing())
            && self.in_flight.is_empty()
            && self.current.is_none()
            && self.unconfirmed.is_none()
            && self.again.is_empty()
            && self.ready.is_empty()
            && self.handed.is_empty()
            && self.out.is_empty()
    }

    /// The rest is for the next session, where there can be one.
    fn may_delete(&self) -> bool {
        self.deletes_sent < DELETIONS || self.context.last_session
    }

    /// No further message is asked for in this session.
    fn is_closing(&self) -> bool {
        self.stopping || self.failed.is_some() || !self.may_delete()
    }

    fn end(&self) -> End {
        let unfinished = !self.queue.is_empty() || !self.deletions.is_empty();
        if unfinished && !self.stopping && self.failed.is_none() { End::Again } else { End::Complete }
    }

    /// Reading would only fill memory.
    fn is_full(&self) -> bool {
        self.out.is_full() || self.held_octets >= HELD_OCTETS
    }

    /// Sends what may be sent now: DELEs of what is committed, RETRs within
    /// the window, and a NOOP whose answer confirms the last message.
    fn ask(&mut self) {
        while self.may_delete()
            && !self.draining
            && self.confirmations_due == 0
            && (self.context.pipelining || self.client.in_flight() == 0)
        {
            let Some(number) = self.deletions.pop_front() else { break };
            self.client.send(Command::Dele(number));
            self.deletes_sent += 1;
        }
        if !self.may_delete() {
            // The rest is deleted by the next session.
            self.deletions.clear();
        }
        if self.draining && self.in_flight.is_empty() && self.current.is_none() {
            self.draining = false;
            self.plan.careful = true;
            for fetch in self.again.drain(..).rev() {
                self.queue.push_front(fetch);
            }
        }
        if self.draining {
            return;
        }
        let mut asked = false;
        while !self.is_closing() && self.may_ask() {
            let Some(fetch) = self.queue.pop_front() else { break };
            self.in_flight_octets += fetch.size.unwrap_or(0);
            self.client.send(Command::Retr(fetch.number));
            self.in_flight.push_back(fetch);
            asked = true;
        }
        if asked && self.queue.is_empty() && self.context.pipelining && !self.plan.careful {
            // Its answer confirms the last message without a round trip more.
            self.client.send(Command::Noop);
        }
        if self.unconfirmed.is_some() && self.client.in_flight() == 0 {
            self.client.send(Command::Noop);
            self.confirmations_due = 1;
            if self.plan.careful {
                // What stands between a false end and the true one is at least
                // a line that is no reply: two answers cannot both be forged
                // by a message without leaving it behind.
                self.client.send(Command::Noop);
                self.confirmations_due = 2;
            }
        }
    }

    fn may_ask(&self) -> bool {
        if self.plan.careful || !self.context.pipelining {
            let free = self.client.in_flight() == 0 && self.current.is_none();
            return free && (self.unconfirmed.is_none() || !self.plan.careful);
        }
        self.in_flight.is_empty()
            || (self.in_flight.len() < WINDOW_MESSAGES && self.in_flight_octets < WINDOW_OCTETS)
    }

    /// QUIT: only now the deletions happen.
    async fn leave(&mut self) {
        if self.context.expires_at_once && self.retrieved > self.settled {
            // It might delete what nobody has accepted. The deletions that
            // are forgotten with the session are made up for by the next.
            tracing::info!(record = %self.context.item.key,
                "the server expires retrieved mail at once (EXPIRE 0) and not all was delivered: left without QUIT");
            return;
        }
        // From now on what was deleted may be gone, and its UIDs given away.
        self.plan.undeleted.clear();
        self.client.send(Command::Quit);
        match self.client.event().await {
            Ok(Event::Reply { reply, .. }) if reply.is_ok() => {
                self.plan.left_cleanly = true;
                self.tally.counters.deleted += self.deleted;
            }
            // The deletions may not have happened: the ledger still knows them.
            Ok(_) => tracing::warn!(record = %self.context.item.key,
                "the server refused QUIT: what it should delete is deleted by the next poll"),
            Err(error) => tracing::debug!(record = %self.context.item.key, "no answer to QUIT: {error}"),
        }
    }
}

/// A session that is cut off has heard what was said of its messages by then.
impl Drop for Transfer<'_> {
    fn drop(&mut self) {
        while let Some(outcome) = self.couriers.outcomes.try_recv() {
            self.on_outcome(outcome);
        }
    }
}

/// What a failed commit means for a poll: the session ends without QUIT, so
/// that the server forgets the deletions.
pub(super) fn ledger_error(error: &super::ports::LedgerError) -> PollError {
    PollError { code: error.code(), message: error.to_string(), scope: Scope::Local }
}

fn internal(what: &str) -> PollError {
    PollError { code: Code::Internal, message: what.to_owned(), scope: Scope::Account }
}
