//! One mail transaction: its envelope, its recipients' standing, its octets.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::session::{Lost, Task, Terms};
use crate::domain::envelope::{Envelope, Mailbox, Notify};
use crate::engine::ports::{Content, Job, Part, Refusal, Verdict};
use crate::engine::refusals;
use crate::smtp;
use crate::smtp::client::Protocol;
use crate::smtp::command::{self, MailParameters, Ret};
use crate::smtp::extension::Extensions;
use crate::smtp::reply::Reply;
use crate::smtp::wire::Wire;

/// Octets of a stream that wait for the server before no more are taken.
const HIGH_WATER: u64 = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expected {
    Reset,
    Mail,
    Rcpt,
    Data,
    Chunk,
    Last,
}

impl Expected {
    pub(super) fn name(self) -> &'static str {
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
pub(super) enum Step {
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
pub(super) enum Standing {
    Open,
    Accepted,
    Settled(Verdict),
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each read in one place")]
pub(super) struct Transaction {
    pub(super) id: u64,
    pub(super) envelope: Envelope,
    pub(super) content: Content,
    pub(super) lost: u32,
    pub(super) since: Instant,
    pub(super) begun: Instant,
    pub(super) step: Step,
    pub(super) standing: Vec<Standing>,
    /// Replies outstanding.
    pub(super) outstanding: usize,
    /// The next recipient to be answered.
    pub(super) next_rcpt: usize,
    /// Replies to the end of the message that are still to come (LMTP).
    pub(super) next_last: usize,
    pub(super) mail_refused: bool,
    /// A recipient was accepted although MAIL was refused.
    pub(super) contrary: bool,
    pub(super) aborted: bool,
    /// Octets of the stream have been taken.
    pub(super) touched: bool,
    /// BDAT, not DATA.
    pub(super) chunked: bool,
    /// What was sent of a stream ends a line.
    pub(super) line: bool,
    /// Octets of the message that were queued by DATA.
    pub(super) octets: u64,
    /// The position in the output behind the end of the message.
    pub(super) end: Option<u64>,
    pub(super) weight: u64,
}

impl Transaction {
    /// The transaction of a task, not begun. With `reset` RSET goes before.
    pub(super) fn new(task: Task, extensions: &Extensions, protocol: Protocol, reset: bool) -> Self {
        let Task { job: Job { id, envelope, content, .. }, lost, since, spent: touched } = task;
        let (needs, has) = (envelope.size.unwrap_or(0), extensions.max_size.unwrap_or(u64::MAX));
        let recipients = envelope.recipients.len();
        let standing: Vec<_> = envelope
            .recipients
            .iter()
            .map(|to| {
                if needs > has {
                    Standing::Settled(Verdict::Refused(local(552, refusals::TOO_LARGE, "MAIL")))
                } else if to.address.needs_utf8() && !extensions.smtp_utf8 {
                    Standing::Settled(Verdict::Refused(local(553, refusals::NEEDS_UTF8, "RCPT")))
                } else {
                    Standing::Open
                }
            })
            .collect();
        // How many replies an LMTP server gives to a refused BDAT LAST with
        // several recipients is told by no document: there DATA is used.
        let chunked = extensions.chunking && (protocol == Protocol::Smtp || recipients == 1);
        // Of DATA there is never more than one message in flight.
        let weight = match &content {
            Content::Whole(pieces) if chunked => pieces.iter().map(|piece| piece.bytes.len() as u64).sum(),
            _ => 0,
        };
        let settled = standing.iter().all(|standing| matches!(standing, Standing::Settled(_)));
        Self {
            id,
            envelope,
            content,
            lost,
            since,
            begun: Instant::now(),
            // Where nobody is left to send it to, nothing is sent: it only
            // waits for its turn to be reported.
            step: match (settled, reset) {
                (true, _) => Step::Sent,
                (false, true) => Step::Reset,
                (false, false) => Step::Mail,
            },
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
            octets: 0,
            end: None,
            weight,
        }
    }

    /// What is to be done with it where it cannot go on.
    pub(super) fn into_task(self) -> Task {
        Task {
            lost: self.lost + 1,
            since: self.since,
            spent: self.touched,
            job: Job { id: self.id, envelope: self.envelope, content: self.content, leave: None },
        }
    }

    pub(super) fn settle_open(&mut self, refusal: &Verdict) {
        for standing in &mut self.standing {
            if !matches!(standing, Standing::Settled(_)) {
                *standing = Standing::Settled(refusal.clone());
            }
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.standing.iter().all(|standing| matches!(standing, Standing::Settled(_)))
    }

    pub(super) fn accepted(&self) -> usize {
        self.standing.iter().filter(|standing| matches!(standing, Standing::Accepted)).count()
    }

    pub(super) fn next_open(&self, from: usize) -> Option<usize> {
        (from..self.standing.len()).find(|&at| !matches!(self.standing.get(at), Some(Standing::Settled(_))))
    }

    /// Whether the message is delivered to a recipient and the transaction not
    /// over (LMTP).
    pub(super) fn has_delivered(&self) -> bool {
        self.standing.iter().any(|standing| matches!(standing, Standing::Settled(Verdict::Accepted)))
    }

    /// Whether some recipients were refused, others have no answer, and nothing
    /// of the message was sent.
    pub(super) fn is_amid_recipients(&self) -> bool {
        let is_refused = |standing: &Standing| matches!(standing, Standing::Settled(Verdict::Refused(refusal)) if refusal.at == "RCPT");
        self.end.is_none() && !self.touched && self.octets == 0 && self.standing.iter().any(is_refused)
    }

    /// The verdicts of a transaction of which no more is heard.
    pub(super) fn verdicts_so_far(&mut self) -> Vec<Verdict> {
        let (code, at) = refusals::CUT_OFF;
        let cut_off = local(code, "4.4.2 the connection ended amid the recipients", at);
        self.settle_open(&Verdict::Deferred(cut_off));
        self.verdicts()
    }

    pub(super) fn verdicts(&mut self) -> Vec<Verdict> {
        self.verdicts_but(None)
    }

    /// The verdicts; those that were not heard are deferrals, or with `doubt`
    /// unknown.
    pub(super) fn verdicts_but(&mut self, doubt: Option<&Arc<str>>) -> Vec<Verdict> {
        std::mem::take(&mut self.standing)
            .into_iter()
            .map(|standing| match (standing, doubt) {
                (Standing::Settled(verdict), _) => verdict,
                (Standing::Accepted, Some(message)) => Verdict::Unknown { message: Arc::clone(message) },
                (Standing::Open | Standing::Accepted, _) => {
                    Verdict::Deferred(local(451, "4.3.0 no reply", "."))
                }
            })
            .collect()
    }
}

/// A refusal of our own making.
pub(super) fn local(code: u16, text: &'static str, at: &'static str) -> Refusal {
    Refusal { code, text: Bytes::from_static(text.as_bytes()), at }
}

pub(super) fn verdict(reply: &Reply, at: &'static str) -> Verdict {
    let refusal = || Refusal { code: reply.code(), text: Bytes::from(reply.shown()), at };
    match reply.code() / 100 {
        2 => Verdict::Accepted,
        4 => Verdict::Deferred(refusal()),
        _ => Verdict::Refused(refusal()),
    }
}

pub(super) fn mail(out: &mut BytesMut, envelope: &Envelope, extensions: &Extensions, terms: &Terms) {
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
            || sender.is_some_and(Mailbox::needs_utf8)
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

/// Ends a message of `octets`; `line` says that they end a line.
fn dot<S: AsyncRead + AsyncWrite + Unpin>(wire: &mut Wire<S>, octets: u64, line: bool) {
    if !line {
        wire.push(Bytes::from_static(b"\r\n"));
    }
    wire.note_octets(octets + if line { 0 } else { 2 }, true);
    wire.say(|out| out.extend_from_slice(b".\r\n"));
}

/// Queues of the message what may be queued. True when that was its end.
pub(super) fn body<S: AsyncRead + AsyncWrite + Unpin>(
    wire: &mut Wire<S>,
    expected: &mut VecDeque<Expected>,
    transaction: &mut Transaction,
    pipelining: bool,
    cx: &mut Context<'_>,
) -> Result<bool, Lost> {
    let Transaction { content, line, outstanding, chunked, touched, aborted, octets, end, .. } = transaction;
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
                let length = length + if line { 0 } else { 2 };
                wire.say(|out| command::bdat(out, length, true));
                wire.note_octets(length, true);
                for piece in pieces.iter() {
                    piece.unstuffed().for_each(|octets| wire.push(octets));
                }
                if !line {
                    wire.push(Bytes::from_static(b"\r\n"));
                }
            } else {
                pieces.iter().for_each(|piece| wire.push(piece.bytes.clone()));
                let line = pieces.last().is_none_or(|piece| piece.bytes.ends_with(b"\n"));
                dot(wire, pieces.iter().map(|piece| piece.bytes.len() as u64).sum(), line);
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
                        wire.say(|out| command::bdat(out, length, false));
                        wire.note_octets(length, true);
                        piece.unstuffed().for_each(|octets| wire.push(octets));
                        expect(Expected::Chunk);
                    }
                }
                Some(Part::Data(piece)) => {
                    if !piece.is_empty() {
                        *line = piece.bytes.ends_with(b"\n");
                    }
                    *octets += piece.bytes.len() as u64;
                    wire.push(piece.bytes);
                }
                Some(Part::End) => {
                    if *chunked {
                        wire.say(|out| command::bdat(out, if *line { 0 } else { 2 }, true));
                        wire.push(Bytes::from_static(if *line { b"" } else { b"\r\n" }));
                    } else {
                        dot(wire, *octets, *line);
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
                    wire.note_octets(*octets, false);
                    // Only the end of the connection ends DATA without a
                    // delivery (RFC 5321, section 4.1.1.4).
                    return Err(Lost { error: smtp::Error::Closed, farewell: true, aborted: true });
                }
            }
        },
    }
}
