//! One message on its way in: header composed, body kept or streamed.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::ports::{Content, Job, Part};
use crate::domain::envelope::{Envelope, Recipient};
use crate::domain::ledger::{Digest, Entry, Ledger, State};
use crate::domain::wire::Piece;
use crate::message::{Composed, Composer, MAX_HOPS, Trace};

/// Messages up to this many octets are held whole before they are handed
/// over; larger ones are streamed through.
pub(super) const WHOLE: u64 = 128 * 1024;

/// Parts that may wait in a stream's channel.
const STREAM_DEPTH: usize = 2;

/// A message that is to be fetched.
#[derive(Clone, Debug)]
pub(super) struct Fetch {
    pub(super) number: u32,
    /// `None` where the server has no UIDL.
    pub(super) uid: Option<Box<[u8]>>,
    /// The keyed hash of the UID; 0 without one.
    pub(super) hash: u64,
    /// By LIST.
    pub(super) size: Option<u64>,
    pub(super) prior: Option<Box<Entry>>,
    /// Its UID is not its own: what it is shows only its digest.
    pub(super) ambiguous: bool,
    /// `onReject: Postmaster` sends it there, whatever rules say.
    pub(super) to_postmaster: bool,
}

impl Fetch {
    /// The ledger's name for it, where its octets must be known for that.
    pub(super) fn uid_of(&self, digest: u64) -> Box<[u8]> {
        self.uid.clone().unwrap_or_else(|| format!("no-uidl:{digest:016x}").into_bytes().into())
    }

    pub(super) fn attempts(&self) -> u16 {
        match self.prior.as_ref().map(|entry| &entry.state) {
            Some(State::Quarantined { attempts, .. } | State::Owed { attempts, .. }) => *attempts,
            _ => 0,
        }
    }

    pub(super) fn was_uncertain(&self) -> bool {
        matches!(self.prior.as_ref().map(|entry| &entry.state), Some(State::Uncertain))
    }
}

/// What is known of a message when all of it has been read.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) fetch: Fetch,
    /// Octets as the server counts them.
    pub(super) octets: u64,
    pub(super) message_id: u64,
    pub(super) digest: u64,
}

/// Where the octets of a message go once the header is known.
enum Way {
    /// Still in the header.
    Header(Box<Composer>),
    /// Held until the message is whole.
    Hold,
    /// Into a courier's stream.
    Stream(mpsc::Sender<Part>),
    /// Read and forgotten.
    Discard,
}

/// Why a message is not handed over although it could be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// It has been here before.
    Loop,
    /// Its Message-ID is known (`onUidChange: MatchMessageId`).
    KnownMessageId,
}

/// A message of which the first octet has come and the last has not been
/// confirmed.
pub(super) struct Incoming {
    pub(super) id: u64,
    pub(super) fetch: Fetch,
    way: Way,
    held: Vec<Piece>,
    held_octets: u64,
    digest: Digest,
    message_id: u64,
    pub(super) rule: Option<(Rule, String)>,
    envelope: Option<Envelope>,
    /// Octets that the header has grown by.
    growth: i64,
    /// Octets that came.
    octets: u64,
}

/// What a header makes of a message.
pub(super) struct Judgement<'a> {
    pub(super) keys: &'a Ledger,
    pub(super) recipient: &'a Recipient,
    /// Sorted hashes of Message-IDs that count as known.
    pub(super) known: &'a [u64],
}

impl Incoming {
    pub(super) fn new(id: u64, fetch: Fetch, trace: Arc<Trace>, keys: &Ledger) -> Self {
        Self {
            id,
            fetch,
            way: Way::Header(Box::new(Composer::new(trace, Timestamp::now()))),
            held: Vec::new(),
            held_octets: 0,
            digest: keys.digest(),
            message_id: 0,
            rule: None,
            envelope: None,
            growth: 0,
            octets: 0,
        }
    }

    /// Whether far more came than LIST and the record's limit allow: it may
    /// have no end.
    pub(super) fn is_endless(&self, limit: Option<u64>) -> bool {
        let twice = |octets: u64| octets.saturating_mul(2).saturating_add(16 << 20);
        let listed = self.fetch.size.filter(|size| *size > 0);
        let limit = limit.filter(|_| !self.fetch.to_postmaster);
        listed.into_iter().chain(limit).any(|most| self.octets > twice(most))
    }

    /// Octets held in memory.
    pub(super) fn held_octets(&self) -> u64 {
        self.held_octets
    }

    /// The stream that takes this message, if it is streamed.
    pub(super) fn stream(&self) -> Option<&mpsc::Sender<Part>> {
        match &self.way {
            Way::Stream(sender) => Some(sender),
            _ => None,
        }
    }

    /// Takes no more of it; what is held is dropped, a stream is aborted.
    pub(super) fn discard(&mut self) {
        self.way = Way::Discard;
        self.held = Vec::new();
        self.held_octets = 0;
    }

    /// Takes a piece. Returns the job that streams the message, when it turns
    /// out to be large; parts for the stream are appended to `out`.
    pub(super) fn push(&mut self, piece: Piece, rules: &Judgement<'_>, out: &mut Outgoing) -> Option<Job> {
        self.octets += piece.bytes.len() as u64;
        self.digest.update(&piece.bytes);
        match &mut self.way {
            Way::Header(composer) => {
                let composed = composer.push(piece)?;
                self.judge(composed, rules);
            }
            Way::Hold => self.hold(piece),
            Way::Stream(sender) => out.push(sender, Part::Data(piece)),
            Way::Discard => {}
        }
        self.stream_if_large(out)
    }

    fn hold(&mut self, piece: Piece) {
        self.held_octets += piece.bytes.len() as u64;
        self.held.push(piece);
    }

    fn judge(&mut self, composed: Composed, rules: &Judgement<'_>) {
        self.message_id = composed.message_id.as_deref().map_or(0, |id| rules.keys.message_id(id));
        if !self.fetch.to_postmaster {
            if composed.own_trace {
                self.rule =
                    Some((Rule::Loop, "it carries our own trace header: it has been here before".into()));
            } else if composed.hops > MAX_HOPS {
                let why =
                    format!("it has {} Received headers (limit {MAX_HOPS}): a mail loop", composed.hops);
                self.rule = Some((Rule::Loop, why));
            } else if rules.known.binary_search(&self.message_id).is_ok() {
                self.rule = Some((Rule::KnownMessageId, String::new()));
            }
        }
        if self.rule.is_some() {
            self.discard();
            return;
        }
        self.growth = composed.growth;
        self.envelope = Some(Envelope {
            sender: composed.sender,
            recipients: vec![rules.recipient.clone()],
            size: None,
            utf8_header: composed.utf8,
            envid: None,
            await_recipients: false,
        });
        self.way = Way::Hold;
        for piece in composed.pieces {
            self.hold(piece);
        }
    }

    fn stream_if_large(&mut self, out: &mut Outgoing) -> Option<Job> {
        let large = self.held_octets > WHOLE
            || (self.held_octets > 0 && self.fetch.size.is_some_and(|size| size > WHOLE));
        if !large || !matches!(self.way, Way::Hold) {
            return None;
        }
        let mut envelope = self.envelope.take()?;
        envelope.size = self.fetch.size.map(|size| size.saturating_add_signed(self.growth));
        let (sender, receiver) = mpsc::channel(STREAM_DEPTH);
        for piece in self.held.drain(..) {
            out.push(&sender, Part::Data(piece));
        }
        self.held_octets = 0;
        self.way = Way::Stream(sender);
        Some(Job { id: self.id, envelope, content: Content::Stream(receiver) })
    }

    /// The message has ended; `octets` as the server counts them.
    pub(super) fn end(mut self, octets: u64, rules: &Judgement<'_>) -> Ended {
        self.way = match self.way {
            Way::Header(composer) => {
                self.way = Way::Discard;
                let composed = composer.finish();
                self.judge(composed, rules);
                self.way
            }
            way => way,
        };
        let taken =
            Taken { octets, message_id: self.message_id, digest: self.digest.finish(), fetch: self.fetch };
        let way = match (self.way, self.rule) {
            (_, Some((rule, why))) => EndedWay::Ruled(rule, why),
            (Way::Stream(sender), None) => EndedWay::Streamed(self.id, sender),
            (_, None) => match self.envelope {
                Some(mut envelope) => {
                    envelope.size = Some(self.held.iter().map(|piece| piece.unstuffed_len() as u64).sum());
                    EndedWay::Whole(Job { id: self.id, envelope, content: Content::Whole(self.held.into()) })
                }
                None => EndedWay::Void,
            },
        };
        Ended { taken, way }
    }
}

/// A message read to its end, and not confirmed yet.
pub(super) struct Ended {
    pub(super) taken: Taken,
    pub(super) way: EndedWay,
}

/// How the message waits for its confirmation.
pub(super) enum EndedWay {
    /// To be handed over.
    Whole(Job),
    /// Handed over but for its final dot.
    Streamed(u64, mpsc::Sender<Part>),
    /// Not to be handed over.
    Ruled(Rule, String),
    /// Given up before its end.
    Void,
}

/// Parts on their way into streams, in order.
#[derive(Default)]
pub(super) struct Outgoing {
    parts: std::collections::VecDeque<(mpsc::Sender<Part>, Part)>,
}

impl Outgoing {
    pub(super) fn push(&mut self, to: &mpsc::Sender<Part>, part: Part) {
        self.parts.push_back((to.clone(), part));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Whether reading must wait.
    pub(super) fn is_full(&self) -> bool {
        self.parts.len() >= 2
    }

    /// Drops what was meant for `to`.
    pub(super) fn withdraw(&mut self, to: &mpsc::Sender<Part>) {
        self.parts.retain(|(sender, _)| !sender.same_channel(to));
    }

    /// Moves one part on. Cancel-safe. Pending for ever when there is none.
    /// `Some`: that stream's receiver is gone.
    pub(super) async fn advance(&mut self) -> Option<mpsc::Sender<Part>> {
        let Some((sender, _)) = self.parts.front() else { return std::future::pending().await };
        let sender = sender.clone();
        let permit = sender.reserve().await;
        let (_, part) = self.parts.pop_front()?;
        if let Ok(permit) = permit {
            permit.send(part);
            return None;
        }
        self.withdraw(&sender);
        Some(sender.clone())
    }
}
