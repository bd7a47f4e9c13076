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

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::domain::envelope::{Envelope, Notify};
use crate::domain::work::Timeouts;
use crate::engine::ports::{Content, Job, Outcome, Part, Refusal, Undelivered, Verdict};
use crate::smtp;
use crate::smtp::client::Protocol;
use crate::smtp::command::{self, MailParameters, Ret};
use crate::smtp::extension::Extensions;
use crate::smtp::reply::Reply;
use crate::smtp::wire::Wire;

/// Messages in flight on one connection, their replies outstanding.
const WINDOW_MESSAGES: usize = 32;
/// Octets of these; one message may be larger.
const WINDOW_OCTETS: u64 = 1024 * 1024;
/// Octets of a stream that wait for the server before no more are taken.
const HIGH_WATER: u64 = 256 * 1024;

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

impl From<smtp::Error> for Lost {
    fn from(error: smtp::Error) -> Self {
        Self { error, farewell: false, aborted: false }
    }
}

/// A connection and its transactions.
#[derive(Debug)]
pub(super) struct Session<S> {
    wire: Wire<S>,
    extensions: Extensions,
    terms: Terms,
    /// In the order of their replies; the last is the one being sent.
    transactions: VecDeque<Transaction>,
    expected: VecDeque<Expected>,
    /// The server's transaction is open or in doubt: RSET before the next.
    dirty: bool,
    /// 421 was said.
    farewell: bool,
    /// The connection has served another route before.
    pub(super) reused: bool,
    /// Replies heard since the connection was taken up for this route.
    pub(super) heard: u64,
    /// Messages accepted since then.
    pub(super) accepted: u64,
    progress: Instant,
    finished: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Reset,
    Mail,
    Rcpt,
    Data,
    Chunk,
    Last,
}

impl Expected {
    fn name(self) -> &'static str {
        match self {
            Self::Reset => "RSET",
            Self::Mail => "MAIL",
            Self::Rcpt => "RCPT",
            Self::Data => "DATA",
            Self::Chunk => "BDAT",
            Self::Last => ".",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Reset,
    Mail,
    Rcpt(usize),
    Data,
    /// DATA is said, its reply outstanding.
    Go,
    Body,
    Sent,
}

#[derive(Debug)]
enum Standing {
    Open,
    Accepted,
    Settled(Verdict),
}

#[derive(Debug)]
struct Transaction {
    id: u64,
    envelope: Envelope,
    content: Content,
    lost: u32,
    since: Instant,
    begun: Instant,
    step: Step,
    standing: Vec<Standing>,
    /// Replies outstanding.
    outstanding: usize,
    /// The next recipient to be answered.
    next_rcpt: usize,
    /// Replies to the end of the message that are still to come (LMTP).
    next_last: usize,
    mail_refused: bool,
    /// A recipient was accepted although MAIL was refused.
    contrary: bool,
    aborted: bool,
    /// Octets of the stream have been taken.
    touched: bool,
    /// BDAT, not DATA.
    chunked: bool,
    /// What was sent of a stream ends a line.
    line: bool,
    /// The position in the output behind the end of the message.
    end: Option<u64>,
    weight: u64,
}

impl Transaction {
    fn settle_open(&mut self, refusal: &Verdict) {
        for standing in &mut self.standing {
            if !matches!(standing, Standing::Settled(_)) {
                *standing = Standing::Settled(refusal.clone());
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.standing.iter().all(|standing| matches!(standing, Standing::Settled(_)))
    }

    fn accepted(&self) -> usize {
        self.standing.iter().filter(|standing| matches!(standing, Standing::Accepted)).count()
    }

    fn next_open(&self, from: usize) -> Option<usize> {
        (from..self.standing.len()).find(|&at| !matches!(self.standing.get(at), Some(Standing::Settled(_))))
    }

    fn verdicts(&mut self) -> Vec<Verdict> {
        std::mem::take(&mut self.standing)
            .into_iter()
            .map(|standing| match standing {
                Standing::Settled(verdict) => verdict,
                Standing::Open | Standing::Accepted => Verdict::Deferred(local(451, "4.3.0 no reply", ".")),
            })
            .collect()
    }
}

/// A refusal of our own making.
fn local(code: u16, text: &'static str, at: &'static str) -> Refusal {
    Refusal { code, text: Bytes::from_static(text.as_bytes()), at }
}

fn verdict(reply: &Reply, at: &'static str) -> Verdict {
    let refusal = Refusal { code: reply.code(), text: Bytes::from(reply.shown()), at };
    match reply.code() / 100 {
        2 => Verdict::Accepted,
        4 => Verdict::Deferred(refusal),
        _ => Verdict::Refused(refusal),
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// A session on a connection that is ready for mail.
    pub(super) fn new(wire: Wire<S>, extensions: Extensions, terms: Terms) -> Self {
        Self {
            wire,
            extensions,
            terms,
            transactions: VecDeque::new(),
            expected: VecDeque::new(),
            dirty: false,
            farewell: false,
            reused: false,
            heard: 0,
            accepted: 0,
            progress: Instant::now(),
            finished: None,
        }
    }

    /// Takes up an idle session for a route with `terms`. `None` when the
    /// server has closed it or said something meanwhile.
    pub(super) fn resume(mut self, terms: Terms) -> Option<Self> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if self.wire.poll_reply(&mut cx).is_ready() || self.wire.has_input() {
            return None;
        }
        self.terms = terms;
        self.reused = true;
        (self.heard, self.accepted, self.finished) = (0, 0, None);
        self.progress = Instant::now();
        Some(self)
    }

    /// Whether another task may go this way.
    pub(super) fn is_usable(&self) -> bool {
        !self.farewell && self.transactions.is_empty() && self.expected.is_empty()
    }

    /// Says QUIT without waiting for the answer.
    pub(super) fn farewell(mut self) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.wire.put(|out| out.extend_from_slice(b"QUIT\r\n"));
        let _: Poll<_> = self.wire.poll_write(&mut cx);
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
            if let Poll::Ready(ended) = self.poll_work(cx, desk) {
                return Poll::Ready(ended);
            }
            // The alarm is moved only when it rings: most of the time there
            // has been progress by then.
            while alarm.as_mut().poll(cx).is_ready() {
                match self.deadline() {
                    Some((at, awaited, after)) if at <= Instant::now() => {
                        return Poll::Ready(Err(smtp::Error::TimedOut { awaited, after }.into()));
                    }
                    Some((at, ..)) => alarm.as_mut().reset(at),
                    None => alarm.as_mut().reset(Instant::now() + Duration::from_secs(1)),
                }
            }
            Poll::Pending
        })
        .await
    }

    /// When, for what and after how long the server will have been waited for
    /// in vain; `None` while it is not its turn.
    fn deadline(&self) -> Option<(Instant, &'static str, Duration)> {
        let timeouts = &self.terms.timeouts;
        let processed = self.transactions.front().and_then(|front| front.end);
        let (awaited, after) = match self.expected.front() {
            // It may read nothing more before it is done with that message.
            Some(Expected::Last) if processed.is_some_and(|end| end <= self.wire.written()) => {
                ("reply to the message", timeouts.after_dot)
            }
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
            && self.transactions.len() < WINDOW_MESSAGES
            && self.transactions.iter().map(|transaction| transaction.weight).sum::<u64>() < WINDOW_OCTETS
    }

    fn begin(&mut self, task: Task) {
        let Task { job: Job { id, envelope, content }, lost, since, spent: touched } = task;
        let (needs, has) = (envelope.size.unwrap_or(0), self.extensions.max_size.unwrap_or(u64::MAX));
        let recipients = envelope.recipients.len();
        let standing: Vec<_> = envelope
            .recipients
            .iter()
            .map(|to| {
                if needs > has {
                    let text = "5.3.4 the message is larger than the destination's SIZE limit";
                    Standing::Settled(Verdict::Refused(local(552, text, "MAIL")))
                } else if to.address.needs_utf8() && !self.extensions.smtp_utf8 {
                    let text = "5.6.7 the address needs SMTPUTF8, which the destination does not have";
                    Standing::Settled(Verdict::Refused(local(553, text, "RCPT")))
                } else {
                    Standing::Open
                }
            })
            .collect();
        // How many replies an LMTP server gives to a refused BDAT LAST with
        // several recipients is told by no document: there DATA is used.
        let chunked = self.extensions.chunking && (self.terms.protocol == Protocol::Smtp || recipients == 1);
        // Of DATA there is never more than one message in flight.
        let weight = match &content {
            Content::Whole(pieces) if chunked => pieces.iter().map(|piece| piece.bytes.len() as u64).sum(),
            _ => 0,
        };
        let doubtful = self.transactions.iter().any(|transaction| transaction.chunked);
        let transaction = Transaction {
            id,
            envelope,
            content,
            lost,
            since,
            begun: Instant::now(),
            step: if self.dirty || doubtful { Step::Reset } else { Step::Mail },
            standing,
            outstanding: 0,
            next_rcpt: 0,
            next_last: 0,
            mail_refused: false,
            contrary: false,
            aborted: false,
            touched,
            chunked,
            line: true,
            end: None,
            weight,
        };
        self.transactions.push_back(transaction);
        if let Some(transaction) = self.transactions.back_mut()
            && transaction.is_settled()
        {
            // Nobody is left to send it to. It was pushed only to be finished
            // in one place; with others before it, it waits for its turn.
            transaction.step = Step::Sent;
        }
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
                    self.wire.put(|out| out.extend_from_slice(b"RSET\r\n"));
                    self.dirty = false;
                    transaction.step = Step::Mail;
                    Expected::Reset
                }
                Step::Mail => {
                    let (extensions, terms) = (&self.extensions, &self.terms);
                    self.wire.put(|out| mail(out, &transaction.envelope, extensions, terms));
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
                        self.wire.put(|out| command::rcpt(out, &to.address, to.notify, dsn));
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
                    let doubtful = self.reused && self.heard == 0;
                    if waits && transaction.chunked && (streamed || doubtful) {
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
                    self.wire.put(|out| out.extend_from_slice(b"DATA\r\n"));
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
                            refused => Standing::Settled(refused),
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
                    self.wire.put(|out| out.extend_from_slice(b".\r\n"));
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
                let said = verdict(reply, ".");
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
        for mut transaction in self.transactions.drain(..) {
            let sent = transaction.end.is_some_and(|end| written >= end);
            if transaction.is_settled() {
                outcomes.push(Outcome { id: transaction.id, result: Ok(transaction.verdicts()) });
            } else if transaction.aborted {
                outcomes.push(Outcome { id: transaction.id, result: Err(Undelivered::Aborted) });
            } else if sent && !farewell {
                let message = format!(
                    "{} behind the end of the message: it may or may not have been delivered",
                    lost.error
                );
                let result = Err(Undelivered::Unknown { message: message.into() });
                outcomes.push(Outcome { id: transaction.id, result });
            } else {
                tasks.push(Task {
                    lost: transaction.lost + 1,
                    since: transaction.since,
                    spent: transaction.touched,
                    job: Job {
                        id: transaction.id,
                        envelope: transaction.envelope,
                        content: transaction.content,
                    },
                });
            }
        }
        (outcomes, tasks)
    }
}

fn mail(out: &mut BytesMut, envelope: &Envelope, extensions: &Extensions, terms: &Terms) {
    let any = |notify: Notify| envelope.recipients.iter().any(|to| to.notify == notify);
    let mut sender = envelope.sender.0.as_ref();
    if sender.is_some_and(|sender| sender.needs_utf8() && !extensions.smtp_utf8) {
        // The mail matters more than where its failure would be reported.
        sender = None;
    }
    let queued = terms.protocol == Protocol::Smtp;
    if queued && !extensions.dsn && terms.null_sender_without_dsn && any(Notify::Never) {
        sender = None;
    }
    let utf8 = extensions.smtp_utf8
        && (envelope.utf8_header
            || sender.is_some_and(|sender| sender.needs_utf8())
            || envelope.recipients.iter().any(|to| to.address.needs_utf8()));
    let parameters = MailParameters {
        size: envelope.size.filter(|_| extensions.size),
        eight_bit: extensions.eight_bit_mime,
        utf8,
        ret: (extensions.dsn && any(Notify::Failure)).then_some(Ret::Headers),
        envid: envelope.envid.as_deref().filter(|_| extensions.dsn),
    };
    command::mail(out, sender, parameters);
}

/// Queues of the message what may be queued. True when that was its end.
fn body<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    expected: &mut VecDeque<Expected>,
    transaction: &mut Transaction,
    pipelining: bool,
    cx: &mut Context<'_>,
) -> Result<bool, Lost> {
    let Transaction { content, line, outstanding, chunked, touched, aborted, end, .. } = transaction;
    let mut expect = |what: Expected| {
        expected.push_back(what);
        *outstanding += 1;
    };
    match content {
        Content::Whole(pieces) => {
            let pieces: Arc<[_]> = Arc::clone(pieces);
            if *chunked {
                let length = pieces.iter().map(|piece| piece.unstuffed_len() as u64).sum::<u64>();
                let line = pieces.last().is_none_or(|piece| piece.bytes.ends_with(b"\n"));
                wire.put(|out| command::bdat(out, length + if line { 0 } else { 2 }, true));
                for piece in pieces.iter() {
                    piece.unstuffed().for_each(|octets| wire.push(octets));
                }
                if !line {
                    wire.push(Bytes::from_static(b"\r\n"));
                }
            } else {
                pieces.iter().for_each(|piece| wire.push(piece.bytes.clone()));
                let line = pieces.last().is_none_or(|piece| piece.bytes.ends_with(b"\n"));
                wire.push(Bytes::from_static(if line { b".\r\n" } else { b"\r\n.\r\n" }));
            }
            expect(Expected::Last);
            *end = Some(wire.queued());
            Ok(true)
        }
        Content::Stream(parts) => loop {
            if wire.backlog() >= HIGH_WATER {
                return Ok(false);
            }
            if *chunked && !pipelining && transaction.outstanding > 0 {
                return Ok(false);
            }
            let Poll::Ready(part) = parts.poll_recv(cx) else { return Ok(false) };
            *touched = true;
            let mut expect = |what: Expected| {
                expected.push_back(what);
                transaction.outstanding += 1;
            };
            match part {
                Some(Part::Data(piece)) if *chunked => {
                    let length = piece.unstuffed_len() as u64;
                    if length > 0 {
                        *line = piece.bytes.ends_with(b"\n");
                        wire.put(|out| command::bdat(out, length, false));
                        piece.unstuffed().for_each(|octets| wire.push(octets));
                        expect(Expected::Chunk);
                    }
                }
                Some(Part::Data(piece)) => {
                    if !piece.is_empty() {
                        *line = piece.bytes.ends_with(b"\n");
                    }
                    wire.push(piece.bytes);
                }
                Some(Part::End) => {
                    if *chunked {
                        wire.put(|out| command::bdat(out, if *line { 0 } else { 2 }, true));
                        wire.push(Bytes::from_static(if *line { b"" } else { b"\r\n" }));
                    } else {
                        wire.push(Bytes::from_static(if *line { b".\r\n" } else { b"\r\n.\r\n" }));
                    }
                    expect(Expected::Last);
                    *end = Some(wire.queued());
                    return Ok(true);
                }
                None => {
                    *aborted = true;
                    if *chunked {
                        return Ok(true);
                    }
                    // Only the end of the connection ends DATA without a
                    // delivery (RFC 5321, section 4.1.1.4).
                    return Err(Lost { error: smtp::Error::Closed, farewell: true, aborted: true });
                }
            }
        },
    }
}
