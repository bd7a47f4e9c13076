//! Fetching, handing over, committing and deleting, all at once, on one
//! session.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::batch::Batch;
use super::incoming::{Ended, EndedWay, Fetch, Incoming, Judgement, Outgoing, Rule, Taken};
use super::plan::{Plan, Tally};
use super::ports::{Courier, Job, LedgerError, Observer, Outcome, Part, Stage, Via};
use super::report::{PollError, Scope};
use crate::domain::code::Code;
use crate::domain::envelope::Recipient;
use crate::domain::ledger::{Ledger, Twins};
use crate::domain::wire;
use crate::domain::work::WorkItem;
use crate::message::Trace;
use crate::net::Stream;
use crate::pop3::{Client, Command, Event, Reply, ResponseCode};

mod outcome;
mod trouble;

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
/// Refusals of the recipient for good, likewise.
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
    pub(super) via: Via,
    pub(super) observer: &'a dyn Observer,
    pub(super) trace: Arc<Trace>,
    /// An empty ledger with the keys of the record's: that one may be out on a
    /// commit.
    pub(super) keys: Ledger,
    /// Sorted hashes of Message-IDs that count as known.
    pub(super) known: Vec<u64>,
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
    fn judgement(&self, fetch: &Fetch) -> Judgement<'_> {
        let recipient = match &self.postmaster {
            Some(postmaster) if fetch.to_postmaster => postmaster,
            _ => &self.recipient,
        };
        Judgement { keys: &self.keys, recipient, known: &self.known }
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
}

pub(super) struct Transfer<'a> {
    context: Context<'a>,
    client: Client<Stream>,
    courier: Courier,
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
    held_octets: u64,
    /// Fetched in vain: to be fetched again, singly.
    again: Vec<Fetch>,
    draining: bool,
    deletions: VecDeque<u32>,
    deletes_sent: usize,
    next_id: u64,
    bad_streak: (u32, u32),
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
        courier: Courier,
        batch: &'a mut Batch,
        plan: &'a mut Plan,
        tally: &'a mut Tally,
    ) -> Self {
        let fetched_before = tally.counters.fetched;
        Self {
            context,
            client,
            courier,
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
            held_octets: 0,
            again: Vec::new(),
            draining: false,
            deletions: VecDeque::new(),
            deletes_sent: 0,
            next_id: 0,
            bad_streak: (0, 0),
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
            let room = self.batch.room(self.handed.len());
            let commit_at = self.batch.due_in().map(|wait| Instant::now() + wait);
            let keepalive = self.heard + KEEPALIVE;
            let keep_alive = self.client.in_flight() == 0;
            let (stopping, until) = (self.stopping, self.context.until);
            let (draining, drained_by) = (self.draining, self.heard + DRAIN);
            let Self { client, courier, batch, out, ready, handed, .. } = &mut *self;
            let step = tokio::select! {
                biased;
                outcome = courier.outcomes.recv() => outcome.map_or(Step::CourierGone, Step::Outcome),
                committed = batch.committed(), if batch.is_running() => Step::Committed(committed),
                permit = courier.jobs.reserve(), if room > 0 && !ready.is_empty() => {
                    match (permit, ready.pop_front()) {
                        (Ok(permit), Some((job, message))) => {
                            handed.insert(job.id, message);
                            permit.send(job);
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

    async fn on_event(&mut self, event: Event) -> Result<Option<End>, PollError> {
        self.heard = Instant::now();
        match event {
            Event::Begin { .. } => {
                if let Some(end) = self.confirm().await? {
                    return Ok(Some(end));
                }
                let Some(fetch) = self.in_flight.front().cloned() else {
                    return Err(internal("a message begins that was not asked for"));
                };
                let id = self.next_id;
                self.next_id += 1;
                self.retrieved += 1;
                let mut incoming =
                    Incoming::new(id, fetch, Arc::clone(&self.context.trace), &self.context.keys);
                if self.draining || self.failed.is_some() {
                    incoming.discard();
                }
                self.current = Some(incoming);
            }
            Event::Data(piece) => {
                self.tally.counters.bytes += piece.bytes.len() as u64;
                if let Some(current) = &mut self.current {
                    let before = current.held_octets();
                    let judge = self.context.judgement(&current.fetch);
                    let job = current.push(piece, &judge, &mut self.out);
                    self.held_octets = self.held_octets + current.held_octets() - before;
                    if current.is_endless(self.context.item.limits.message_size) {
                        return self.on_endless().map(Some);
                    }
                    if let Some(job) = job {
                        let handed = Handed { taken: None, octets: 0, fetch: current.fetch.clone() };
                        self.ready.push_back((job, handed));
                    }
                }
            }
            Event::End(end) => self.on_end(end.tally).await?,
            Event::Reply { command, reply } => return self.on_reply(command, &reply).await,
        }
        if self.out_of_step() {
            self.give_up_message("the server is out of step").map(Some)
        } else {
            Ok(None)
        }
    }

    /// In careful fetching nothing may follow a message unasked.
    fn out_of_step(&self) -> bool {
        self.plan.careful
            && self.unconfirmed.is_some()
            && self.confirmations_due == 0
            && self.client.unsolicited()
    }

    async fn on_end(&mut self, tally: wire::Tally) -> Result<(), PollError> {
        let (Some(current), Some(fetch)) = (self.current.take(), self.in_flight.pop_front()) else {
            return Err(internal("a message ends that did not begin"));
        };
        self.in_flight_octets = self.in_flight_octets.saturating_sub(fetch.size.unwrap_or(0));
        let held = current.held_octets();
        if self.draining {
            self.again.push(fetch);
            return Ok(());
        }
        let octets = tally.octets;
        let agrees = fetch.size.is_some_and(|size| tally.agrees_with(size));
        if !agrees && !self.plan.careful {
            tracing::debug!(record = %self.context.item.key, number = fetch.number, size = fetch.size, octets,
                "size differs from LIST: fetching singly");
            self.held_octets -= held;
            self.abort_stream(&current);
            self.draining = true;
            self.again.push(fetch);
            return Ok(());
        }
        let judge = self.context.judgement(&fetch);
        self.held_octets -= held;
        let ended = current.end(octets, &judge);
        if let EndedWay::Whole(job) = &ended.way {
            self.held_octets += job.envelope.size.unwrap_or(0);
        }
        self.unconfirmed = Some(ended);
        if self.plan.careful && fetch.size.is_some_and(|size| octets < size) {
            // A short copy is what an unstuffed dot leaves behind: its rest is
            // given a moment to show itself.
            let quiet = self.client.quiet(Duration::from_millis(20)).await;
            if !matches!(quiet, Ok(true)) {
                self.confirmations_due = 0;
            }
        }
        Ok(())
    }

    async fn on_reply(&mut self, command: Command, reply: &Reply) -> Result<Option<End>, PollError> {
        match command {
            Command::Noop if self.confirmations_due > 0 => {
                self.confirmations_due -= 1;
                if self.plan.careful && !reply.is_ok() {
                    return self.give_up_message("the server is out of step").map(Some);
                }
                if self.confirmations_due == 0 {
                    if self.plan.careful && self.client.unsolicited() {
                        return self.give_up_message("the server is out of step").map(Some);
                    }
                    return self.confirm().await;
                }
            }
            Command::Retr(_) => {
                if let Some(end) = self.confirm().await? {
                    return Ok(Some(end));
                }
                if let Some(fetch) = self.in_flight.pop_front() {
                    self.in_flight_octets = self.in_flight_octets.saturating_sub(fetch.size.unwrap_or(0));
                    let why = format!("the server refused to hand it over: {reply}");
                    if self.draining {
                        self.again.push(fetch);
                    } else if matches!(reply.code, Some(ResponseCode::SysTemp | ResponseCode::InUse)) {
                        self.plan.busy.push((fetch, why));
                    } else {
                        self.quarantine(&fetch, "retrieve", &why, None);
                    }
                }
            }
            Command::Dele(_) => {
                if reply.is_ok() {
                    self.deleted += 1;
                }
                return self.confirm().await;
            }
            _ => return self.confirm().await,
        }
        Ok(None)
    }

    /// The next reply has begun: the message before it is whole.
    async fn confirm(&mut self) -> Result<Option<End>, PollError> {
        if self.confirmations_due > 0 {
            return Ok(None);
        }
        let Some(Ended { mut taken, way }) = self.unconfirmed.take() else { return Ok(None) };
        self.tally.counters.fetched += 1;
        self.judge_suspects();
        self.context.observer.fetched(&self.context.item.key, taken.octets);
        let whole = matches!(way, EndedWay::Whole(_) | EndedWay::Streamed(..));
        let looked = whole || (taken.fetch.ambiguous && matches!(way, EndedWay::Ruled(..)));
        let known = looked && self.is_known(&mut taken).await?;
        match way {
            EndedWay::Whole(job) => {
                let octets = job.envelope.size.unwrap_or(0);
                if known {
                    self.held_octets -= octets;
                } else {
                    let fetch = taken.fetch.clone();
                    self.ready.push_back((job, Handed { taken: Some(taken), octets, fetch }));
                }
            }
            EndedWay::Streamed(id, sender) => {
                if known {
                    self.out.withdraw(&sender);
                } else {
                    let waiting =
                        self.ready.iter_mut().find(|(job, _)| job.id == id).map(|(_, handed)| handed);
                    if let Some(handed) = self.handed.get_mut(&id).or(waiting) {
                        handed.taken = Some(taken);
                        self.out.push(&sender, Part::End);
                    }
                }
            }
            EndedWay::Ruled(..) if known => {}
            EndedWay::Ruled(Rule::KnownMessageId, _) => self.suppress(&taken),
            EndedWay::Ruled(Rule::Loop, why) => self.refuse(&taken.fetch, Some(&taken), "loop", &why, true),
            EndedWay::Void => {}
        }
        Ok(None)
    }

    fn on_courier_gone(&mut self) {
        self.handed.clear();
        self.fail(Code::Internal, "the delivery ended before its messages did");
    }

    fn on_stream_gone(&mut self, sender: &mpsc::Sender<Part>) {
        if let Some(current) = &mut self.current
            && current.stream().is_some_and(|stream| stream.same_channel(sender))
        {
            current.discard();
        }
    }

    fn abort_stream(&mut self, current: &Incoming) {
        if let Some(sender) = current.stream() {
            self.out.withdraw(sender);
        }
        let id = current.id;
        self.ready.retain(|(job, _)| job.id != id);
    }

    /// Gives up what was not confirmed: nothing of it is delivered.
    fn abandon_unconfirmed(&mut self) {
        for ended in
            [self.current.take().and_then(|current| current.stream().cloned()), None].into_iter().flatten()
        {
            self.out.withdraw(&ended);
        }
        if let Some(Ended { way: EndedWay::Streamed(_, sender), .. }) = self.unconfirmed.take() {
            self.out.withdraw(&sender);
        }
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
        while let Ok(outcome) = self.courier.outcomes.try_recv() {
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
