//! Mail transactions on one connection: what is sent when, and which reply
//! answers what.
//!
//! With PIPELINING (RFC 2920) the next MAIL, RCPT and DATA ride behind the
//! final dot of the message before. With CHUNKING (RFC 3030) a message whose
//! octets are at hand goes out whole, envelope and all, and several of them
//! are in flight; each but the first begins with RSET, since a refused BDAT
//! leaves the state of the server's transaction open and the next recipients
//! would be added to it. Without PIPELINING every step waits for its reply.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::floor::Floor;
use super::transaction::{Expected, Standing, Step, Transaction, body, mail, verdict};
use crate::domain::work::Timeouts;
use crate::engine::ports::{Content, Job, Outcome, Undelivered, Verdict};
use crate::smtp;
use crate::smtp::client::Protocol;
use crate::smtp::command;
use crate::smtp::extension::Extensions;
use crate::smtp::reply::Reply;
use crate::smtp::wire::Wire;

/// Messages in flight on one connection, their replies outstanding.
const WINDOW_MESSAGES: usize = 32;
/// Octets of these; one message may be larger.
const WINDOW_OCTETS: u64 = 1024 * 1024;
/// A connection on which a reply came so shortly ago is not suspected to be
/// dead: a courier's connections rest between two ledger commits, and a round
/// trip for each commit would be the price of the suspicion.
const FRESH: Duration = Duration::from_millis(250);

/// A job on its way, with what has been tried.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) job: Job,
    /// Connections that were lost under it.
    pub(super) lost: u32,
    /// Its stream has been read from: there is nothing to try again with.
    pub(super) spent: bool,
    /// When it came.
    pub(super) since: Instant,
}

/// What a session needs to know of its route.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) protocol: Protocol,
    pub(super) timeouts: Timeouts,
    pub(super) null_sender_without_dsn: bool,
}

/// Gives tasks and takes outcomes.
pub(super) trait Desk {
    /// A task, or `None` and a wake-up once there may be one.
    fn take(&self, cx: &mut Context<'_>) -> Option<Task>;
    /// One task is done; `took` is the time since the one before it (or its
    /// own beginning).
    fn done(&self, outcome: Outcome, took: Option<Duration>);
}

/// The connection is of no use any more.
#[derive(Debug)]
pub(super) struct Lost {
    /// Why.
    pub(super) error: smtp::Error,
    /// The server said 421: it has not accepted what it has not answered.
    pub(super) farewell: bool,
    /// The stream of the last task ended early, and the connection was given
    /// up for that alone.
    pub(super) aborted: bool,
}

impl Lost {
    /// CHUNKING was announced, and BDAT is not known.
    pub(super) fn is_for_bdat(&self) -> bool {
        matches!(&self.error, smtp::Error::Refused { to: "BDAT", reply } if is_syntactic(reply))
    }
}

/// Whether a reply is about the command as such: unknown, misspelt, not
/// implemented, out of sequence (RFC 5321, section 4.2.3).
fn is_syntactic(reply: &Reply) -> bool {
    (500..=504).contains(&reply.code())
}

impl From<smtp::Error> for Lost {
    fn from(error: smtp::Error) -> Self {
        Self { error, farewell: false, aborted: false }
    }
}

/// What a connection did before a route took it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Past {
    /// It was made for the route.
    New,
    /// It has worked until now.
    Warm,
    /// It has been idle for longer than [`FRESH`].
    Idle,
}

/// A connection and its transactions.
#[derive(Debug)]
pub(super) struct Session<S> {
    wire: Wire<S>,
    extensions: Extensions,
    terms: Terms,
    /// BDAT has had an answer that only those give who know it.
    knows_bdat: bool,
    /// In the order of their replies; the last is the one being sent.
    transactions: VecDeque<Transaction>,
    expected: VecDeque<Expected>,
    /// The server's transaction is open or in doubt: RSET before the next.
    dirty: bool,
    /// 421 was said.
    farewell: bool,
    past: Past,
    /// Replies heard since the connection was taken up for this route.
    pub(super) heard: u64,
    /// Messages accepted since then.
    pub(super) accepted: u64,
    progress: Instant,
    floor: Floor,
    finished: Option<Instant>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// A session on a connection that is ready for mail.
    pub(super) fn new(wire: Wire<S>, extensions: Extensions, terms: Terms) -> Self {
        Self {
            wire,
            extensions,
            terms,
            knows_bdat: false,
            transactions: VecDeque::new(),
            expected: VecDeque::new(),
            dirty: false,
            farewell: false,
            past: Past::New,
            heard: 0,
            accepted: 0,
            progress: Instant::now(),
            floor: Floor::default(),
            finished: None,
        }
    }

    /// Uses DATA whatever is announced.
    pub(super) fn forgo_chunking(&mut self) {
        self.extensions.chunking = false;
    }

    /// Takes up an idle session for a route with `terms`. `None` when the
    /// server has closed it or said something meanwhile.
    pub(super) fn resume(mut self, terms: Terms) -> Option<Self> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if self.wire.poll_reply(&mut cx).is_ready() || self.wire.has_input() {
            return None;
        }
        self.terms = terms;
        self.past = if self.progress.elapsed() > FRESH { Past::Idle } else { Past::Warm };
        (self.heard, self.accepted, self.finished) = (0, 0, None);
        self.progress = Instant::now();
        Some(self)
    }

    /// Whether the connection has served another route, or this one, before.
    pub(super) fn is_reused(&self) -> bool {
        self.past != Past::New
    }

    /// Whether another task may go this way.
    pub(super) fn is_usable(&self) -> bool {
        !self.farewell && self.transactions.is_empty() && self.expected.is_empty()
    }

    /// Says QUIT without waiting for the answer.
    pub(super) fn farewell(mut self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.wire.say(|out| out.extend_from_slice(b"QUIT\r\n"));
        drop(self.wire.poll_write(&mut cx));
    }

    /// Works until there is nothing to do: all transactions done and no task
    /// to be had.
    ///
    /// # Errors
    /// [`Lost`]; then [`salvage`](Self::salvage) tells what became of the
    /// transactions.
    pub(super) async fn work(&mut self, desk: &impl Desk) -> Result<(), Lost> {
        self.progress = Instant::now();
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(self.progress + Duration::from_millis(10)));
        std::future::poll_fn(|cx| {
            loop {
                self.floor.wake();
                if let Poll::Ready(ended) = self.poll_work(cx, desk) {
                    return Poll::Ready(ended);
                }
                self.watch_floor()?;
                let deadline = self.deadline();
                if let Some((at, awaited, after)) = deadline
                    && at <= Instant::now()
                {
                    return Poll::Ready(Err(smtp::Error::TimedOut { awaited, after }.into()));
                }
                // The alarm is moved only when it rings or would ring too
                // late: most of the time there has been progress by then.
                let due = deadline.map(|(at, ..)| at).into_iter().chain(self.floor.due()).min();
                if let Some(due) = due
                    && due < alarm.deadline()
                {
                    alarm.as_mut().reset(due);
                }
                if alarm.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                alarm.as_mut().reset(due.unwrap_or_else(|| Instant::now() + Duration::from_secs(1)));
            }
        })
        .await
    }

    /// Whether it is for the server to take octets of a message, and whether
    /// it takes enough of them.
    fn watch_floor(&mut self) -> Result<(), smtp::Error> {
        let written = self.wire.written();
        let flows = |transaction: &Transaction| {
            transaction.step == Step::Body || transaction.end.is_some_and(|end| end > written)
        };
        if !self.transactions.iter().any(flows) {
            self.floor.rest(written);
        } else if self.wire.backlog() > 0 && !self.is_processing() {
            self.floor.wait(written)?;
        }
        Ok(())
    }

    /// Whether the server has the whole of a message and is to answer: it may
    /// read nothing more before it is done with that.
    fn is_processing(&self) -> bool {
        let end = self.transactions.front().and_then(|front| front.end);
        self.expected.front() == Some(&Expected::Last) && end.is_some_and(|end| end <= self.wire.written())
    }

    /// When, for what and after how long the server will have been waited for
    /// in vain; `None` while it is not its turn.
    fn deadline(&self) -> Option<(Instant, &'static str, Duration)> {
        let timeouts = &self.terms.timeouts;
        let (awaited, after) = match self.expected.front() {
            _ if self.is_processing() => ("reply to the message", timeouts.after_dot),
            _ if self.wire.backlog() > 0 => ("progress in sending", timeouts.data),
            Some(Expected::Chunk) => ("reply to a part of the message", timeouts.after_dot),
            Some(_) => ("reply", timeouts.reply),
            None => return None,
        };
        Some((self.progress + after, awaited, after))
    }

    fn poll_work(&mut self, cx: &mut Context<'_>, desk: &impl Desk) -> Poll<Result<(), Lost>> {
        loop {
            let mut moved = false;
            while let Poll::Ready(reply) = self.wire.poll_reply(cx) {
                let reply = reply.map_err(|error| Lost { error, farewell: self.farewell, aborted: false })?;
                self.heard += 1;
                self.progress = Instant::now();
                moved = true;
                self.hear(&reply, desk)?;
            }
            moved |= self.send(cx)?;
            self.finish(desk);
            while self.may_begin() {
                let Some(task) = desk.take(cx) else { break };
                moved = true;
                self.begin(task);
                self.send(cx)?;
                self.finish(desk);
            }
            let before = self.wire.written();
            if let Poll::Ready(Err(error)) = self.wire.poll_write(cx) {
                return self.after_failed_write(cx, desk, error);
            }
            if self.wire.written() > before {
                self.progress = Instant::now();
                moved = true;
            }
            if self.transactions.is_empty() && self.expected.is_empty() && self.wire.backlog() == 0 && !moved
            {
                return Poll::Ready(Ok(()));
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// A server that has no more room for us says so and closes: what it said
    /// is worth more than the error of our writing into a closed connection.
    fn after_failed_write(
        &mut self,
        cx: &mut Context<'_>,
        desk: &impl Desk,
        error: smtp::Error,
    ) -> Poll<Result<(), Lost>> {
        while let Poll::Ready(Ok(reply)) = self.wire.poll_reply(cx) {
            self.heard += 1;
            self.hear(&reply, desk)?;
        }
        Poll::Ready(Err(Lost { error, farewell: self.farewell, aborted: false }))
    }

    fn may_begin(&self) -> bool {
        if self.farewell {
            return false;
        }
        let Some(last) = self.transactions.back() else { return true };
        last.step == Step::Sent
            && self.extensions.pipelining
            // Nothing is behind a message that may have to be sent again.
            && (self.knows_bdat || !last.chunked)
            && self.transactions.len() < WINDOW_MESSAGES
            && self.transactions.iter().map(|transaction| transaction.weight).sum::<u64>() < WINDOW_OCTETS
    }

    fn begin(&mut self, task: Task) {
        // A refused BDAT may leave its recipients behind.
        let doubtful = self.transactions.iter().any(|transaction| transaction.chunked);
        let reset = self.dirty || doubtful;
        let mut extensions = self.extensions;
        // A stream cannot be sent again by DATA where BDAT turns out unknown.
        extensions.chunking &= self.knows_bdat || matches!(task.job.content, Content::Whole(_));
        self.transactions.push_back(Transaction::new(task, &extensions, self.terms.protocol, reset));
    }

    /// Sends what may be sent of the last transaction. True if anything was.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<bool, Lost> {
        let pipelining = self.extensions.pipelining;
        let before = self.wire.queued();
        if self.wire.backlog() == 0 && self.expected.is_empty() {
            // So far it was not the server's turn.
            self.progress = Instant::now();
        }
        let Some(transaction) = self.transactions.back_mut() else { return Ok(false) };
        loop {
            let waits = transaction.outstanding > 0;
            if waits && !pipelining && transaction.step != Step::Body {
                break;
            }
            let expect = match transaction.step {
                Step::Reset => {
                    self.wire.say(|out| out.extend_from_slice(b"RSET\r\n"));
                    self.dirty = false;
                    transaction.step = Step::Mail;
                    Expected::Reset
                }
                Step::Mail => {
                    let (extensions, terms) = (&self.extensions, &self.terms);
                    self.wire.say(|out| mail(out, &transaction.envelope, extensions, terms));
                    transaction.step = Step::Rcpt(0);
                    Expected::Mail
                }
                Step::Rcpt(from) => {
                    let Some(at) = transaction.next_open(from) else {
                        transaction.step = Step::Data;
                        continue;
                    };
                    let dsn = self.extensions.dsn;
                    if let Some(to) = transaction.envelope.recipients.get(at) {
                        self.wire.say(|out| command::rcpt(out, &to.address, to.notify, dsn));
                    }
                    transaction.step = Step::Rcpt(at + 1);
                    Expected::Rcpt
                }
                Step::Data => {
                    let streamed = matches!(transaction.content, Content::Stream(_));
                    // Octets of a stream are there only once: they go out when
                    // it is known that somebody takes them. And a connection
                    // that was idle may be dead: its first message is not
                    // ended before a reply has shown that it lives, lest its
                    // outcome be in doubt.
                    let doubtful = self.past == Past::Idle && self.heard == 0;
                    let early = transaction.chunked && (streamed || doubtful);
                    if waits && (early || transaction.envelope.await_recipients) {
                        break;
                    }
                    if !waits && transaction.is_settled() {
                        self.dirty |= !transaction.mail_refused;
                        transaction.step = Step::Sent;
                        break;
                    }
                    if transaction.chunked {
                        transaction.step = Step::Body;
                        continue;
                    }
                    self.wire.say(|out| out.extend_from_slice(b"DATA\r\n"));
                    transaction.step = Step::Go;
                    Expected::Data
                }
                Step::Go | Step::Sent => break,
                Step::Body => {
                    if !body(&mut self.wire, &mut self.expected, transaction, pipelining, cx)? {
                        break;
                    }
                    if transaction.aborted {
                        self.dirty = true;
                    }
                    transaction.step = Step::Sent;
                    break;
                }
            };
            self.expected.push_back(expect);
            transaction.outstanding += 1;
        }
        Ok(self.wire.queued() > before)
    }

    /// Takes one reply.
    fn hear(&mut self, reply: &Reply, desk: &impl Desk) -> Result<(), Lost> {
        let out_of_step = |to: &'static str| Lost {
            error: smtp::Error::OutOfStep { to, reply: reply.clone() },
            farewell: false,
            aborted: false,
        };
        let expected = self.expected.pop_front();
        if reply.code() == 421 {
            self.farewell = true;
            if expected != Some(Expected::Last) {
                let to = expected.map_or("the connection", Expected::name);
                let error = smtp::Error::Refused { to, reply: reply.clone() };
                return Err(Lost { error, farewell: true, aborted: false });
            }
        }
        let (Some(expected), Some(transaction)) = (expected, self.transactions.front_mut()) else {
            return Err(out_of_step("nothing"));
        };
        transaction.outstanding = transaction.outstanding.saturating_sub(1);
        let refuses = reply.code() >= 400;
        if transaction.chunked
            && !self.knows_bdat
            && matches!(expected, Expected::Chunk | Expected::Last)
            && transaction.accepted() > 0
        {
            if is_syntactic(reply) {
                // The octets of the message may have been read as commands:
                // nothing more goes over this connection.
                let error = smtp::Error::Refused { to: "BDAT", reply: reply.clone() };
                return Err(Lost { error, farewell: true, aborted: false });
            }
            self.knows_bdat = true;
        }
        if reply.is_intermediate() && expected != Expected::Data {
            return Err(out_of_step(expected.name()));
        }
        match expected {
            Expected::Reset if refuses => return Err(out_of_step("RSET")),
            Expected::Reset => {}
            Expected::Mail => {
                if refuses {
                    transaction.mail_refused = true;
                    transaction.settle_open(&verdict(reply, "MAIL"));
                }
            }
            Expected::Rcpt => {
                if transaction.mail_refused {
                    transaction.contrary |= !refuses;
                } else if let Some(at) = transaction.next_open(transaction.next_rcpt) {
                    transaction.next_rcpt = at + 1;
                    if let Some(standing) = transaction.standing.get_mut(at) {
                        *standing = match verdict(reply, "RCPT") {
                            Verdict::Accepted => Standing::Accepted,
                            refusal => Standing::Settled(refusal),
                        };
                    }
                }
            }
            Expected::Data => {
                if refuses {
                    transaction.settle_open(&verdict(reply, "DATA"));
                    self.dirty |= !transaction.mail_refused;
                    transaction.step = Step::Sent;
                } else if reply.code() != 354 {
                    return Err(out_of_step("DATA"));
                } else if transaction.accepted() > 0 {
                    transaction.step = Step::Body;
                } else if transaction.contrary || self.terms.protocol == Protocol::Lmtp {
                    // Not even an empty message may go out now.
                    return Err(out_of_step("DATA"));
                } else {
                    // RFC 2920, section 3.1: it waits for a message that no
                    // recipient gets.
                    self.wire.say(|out| out.extend_from_slice(b".\r\n"));
                    self.expected.push_back(Expected::Last);
                    transaction.outstanding += 1;
                    transaction.step = Step::Sent;
                }
            }
            Expected::Chunk => {
                if refuses && !transaction.aborted && !transaction.is_settled() {
                    transaction.settle_open(&verdict(reply, "BDAT"));
                    self.dirty = true;
                    transaction.step = Step::Sent;
                }
            }
            Expected::Last => {
                self.dirty |= refuses && transaction.chunked;
                // What is said of BDAT itself is no verdict on the content.
                let bdat = transaction.chunked && is_syntactic(reply);
                let said = verdict(reply, if bdat { "BDAT" } else { "." });
                if self.terms.protocol == Protocol::Lmtp && transaction.accepted() > 0 {
                    let at = (transaction.next_last..transaction.standing.len())
                        .find(|&at| matches!(transaction.standing.get(at), Some(Standing::Accepted)));
                    if let Some(at) = at
                        && let Some(standing) = transaction.standing.get_mut(at)
                    {
                        *standing = Standing::Settled(said);
                        transaction.next_last = at + 1;
                    }
                    if transaction.accepted() > 0 {
                        // One reply for each recipient (RFC 2033, section 4.2).
                        transaction.outstanding += 1;
                        self.expected.push_front(Expected::Last);
                    }
                } else {
                    transaction.settle_open(&said);
                }
            }
        }
        self.finish(desk);
        Ok(())
    }

    /// Reports the transactions at the front that are over.
    fn finish(&mut self, desk: &impl Desk) {
        while let Some(transaction) = self.transactions.front_mut() {
            if transaction.step != Step::Sent || transaction.outstanding > 0 {
                return;
            }
            let result = if transaction.aborted && !transaction.is_settled() {
                Err(Undelivered::Aborted)
            } else {
                let verdicts = transaction.verdicts();
                self.accepted += u64::from(verdicts.contains(&Verdict::Accepted));
                Ok(verdicts)
            };
            let now = Instant::now();
            let from = self.finished.map_or(transaction.begun, |before| before.max(transaction.begun));
            self.finished = Some(now);
            let whole = matches!(transaction.content, Content::Whole(_));
            let outcome = Outcome { id: transaction.id, result };
            self.transactions.pop_front();
            desk.done(outcome, whole.then(|| now - from));
        }
    }

    /// What became of the transactions of a connection that is lost: outcomes
    /// where they are certain or can never be, and the tasks that may be tried
    /// again because the server cannot have accepted them.
    pub(super) fn salvage(mut self, lost: &Lost) -> (Vec<Outcome>, Vec<Task>) {
        let (mut outcomes, mut tasks) = (Vec::new(), Vec::new());
        let written = self.wire.written();
        let farewell = lost.farewell || self.farewell;
        let ended = !matches!(lost.error, smtp::Error::TimedOut { .. } | smtp::Error::TooSlow { .. });
        for mut transaction in self.transactions.drain(..) {
            let sent = transaction.end.is_some_and(|end| written >= end);
            if transaction.is_settled() {
                outcomes.push(Outcome { id: transaction.id, result: Ok(transaction.verdicts()) });
            } else if transaction.has_delivered() {
                // LMTP: some recipients have it, and must not get it again.
                let doubt = (sent && !farewell).then(|| doubt(&lost.error));
                outcomes.push(Outcome {
                    id: transaction.id,
                    result: Ok(transaction.verdicts_but(doubt.as_ref())),
                });
            } else if transaction.aborted {
                outcomes.push(Outcome { id: transaction.id, result: Err(Undelivered::Aborted) });
            } else if ended && transaction.is_amid_recipients() {
                // Servers put up with so many unknown recipients and no more:
                // asking for all of them again would end in the same way.
                outcomes.push(Outcome { id: transaction.id, result: Ok(transaction.verdicts_so_far()) });
            } else if sent && !farewell {
                let result = Err(Undelivered::Unknown { message: doubt(&lost.error) });
                outcomes.push(Outcome { id: transaction.id, result });
            } else {
                tasks.push(transaction.into_task());
            }
        }
        (outcomes, tasks)
    }
}

/// What to say of a message whose end was sent and not answered.
fn doubt(error: &smtp::Error) -> Arc<str> {
    format!("{error} behind the end of the message: it may or may not have been delivered").into()
}
