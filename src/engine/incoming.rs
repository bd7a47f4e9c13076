//! One message on its way in: header composed, body kept or streamed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::ports::{Content, Job, Part};
use super::route::{MAIN, to_mailbox};
use super::standing::{Aim, Desk, Sent, Standing};
use super::transfer::Copies;
use crate::domain::envelope::{Envelope, Recipient, ReversePath};
use crate::domain::ledger::{Digest, Entry, Ledger, State, origin};
use crate::domain::wire::Piece;
use crate::message::{Addressees, Composed, Composer, MAX_HOPS, Trace, Unify};

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
    /// All that the ledger knows under its UID was to be deleted; if this is
    /// another message, that is gone.
    pub(super) reused: bool,
    /// It is owed, and the ledger knows it under this hash of another UID.
    pub(super) moved_from: Option<u64>,
    /// `onReject: Postmaster` sends it there, whatever rules say; or it is a
    /// unified account's, and for nobody else.
    pub(super) to_postmaster: bool,
    /// Of a unified account: what became of its recipients so far.
    pub(super) standing: Option<Box<Standing>>,
}

impl Fetch {
    /// A message of which nothing is known.
    pub(super) fn new(number: u32, uid: Option<Box<[u8]>>, hash: u64, size: Option<u64>) -> Self {
        Self {
            number,
            uid,
            hash,
            size,
            prior: None,
            ambiguous: false,
            reused: false,
            moved_from: None,
            to_postmaster: false,
            standing: None,
        }
    }

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

    /// What is known of its recipients, as far as something is.
    pub(super) fn standing(&self) -> Standing {
        self.standing.as_deref().cloned().unwrap_or_else(|| Standing::of(self.prior.as_deref()))
    }

    /// Whether it was retrieved before in this session.
    pub(super) fn is_again(&self) -> bool {
        self.standing.as_ref().is_some_and(|standing| standing.retrieved)
    }

    /// Whether the ledger owes it to some of its recipients.
    pub(super) fn is_owed(&self) -> bool {
        matches!(self.prior.as_ref().map(|entry| &entry.state), Some(State::Owed { .. }))
    }

    /// What a copy of it remembers of its UID; 0 where that is not its own.
    pub(super) fn origin(&self) -> u64 {
        if self.uid.is_none() || self.ambiguous { 0 } else { origin(self.hash) }
    }

    /// Its UID was another message's, which is gone.
    pub(super) fn disown(&mut self) {
        (self.prior, self.reused) = (None, true);
    }

    /// Whether what is owed under its UID was another message.
    fn is_another(&self, message_id: u64) -> bool {
        let prior = self.prior.as_deref().filter(|_| self.is_owed() && self.standing.is_none());
        // A line that a person wrote may say nothing of it.
        let says = |prior: &Entry| prior.message_id != 0 || prior.digest != 0;
        prior.is_some_and(|prior| says(prior) && prior.message_id != message_id)
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

/// What the header of a unified account's message says.
#[derive(Debug)]
pub(super) struct Heading {
    found: Option<Addressees>,
    /// Its beginning, for notifications.
    pub(super) header: Option<Bytes>,
    pub(super) sender: ReversePath,
    pub(super) arrived: Timestamp,
    cut: bool,
    /// Of what has come so far.
    copy: Option<Digest>,
}

impl Heading {
    /// Who is to get the message now.
    pub(super) fn address(&self, desk: &Desk<'_>, standing: &mut Standing) -> Aim {
        standing.address(desk, self.found.as_ref(), self.cut)
    }

    /// Whether these are all recipients of ours that it names.
    pub(super) fn names(&self, desk: &Desk<'_>, to: &[u64]) -> bool {
        let found = self.found.iter().flat_map(|found| &found.found);
        let named: HashSet<u64> = found.map(|address| desk.keys.recipient(address)).collect();
        to.iter().all(|hash| named.contains(hash))
    }

    /// Keeps only what a notification takes: recipients are many.
    pub(super) fn addressed(&mut self) {
        self.found = None;
    }

    /// The copy digest, once the message is whole.
    pub(super) fn copy_digest(&self) -> Option<u64> {
        self.copy.as_ref().map(Digest::finish)
    }
}

/// For whom a unified account's message is handed over.
#[derive(Debug)]
pub(super) struct Entrusted {
    pub(super) purpose: Purpose,
    pub(super) heading: Heading,
}

/// See [`Entrusted`].
#[derive(Debug)]
pub(super) enum Purpose {
    /// For these.
    Recipients(Vec<Sent>),
    /// For the postmaster of the Main Domain, and why.
    Postmaster(&'static str),
    /// It is a notification to the sender; with `true` to the postmaster in
    /// the sender's stead.
    Notification(bool),
}

/// A message that is to be handed over, by which lane, and what only a unified
/// account's has.
pub(super) struct Started {
    pub(super) job: Job,
    pub(super) lane: usize,
    pub(super) unified: Option<Box<(Standing, Entrusted)>>,
}

/// A message of which the first octet has come and the last has not been
/// confirmed.
pub(super) struct Incoming {
    pub(super) id: u64,
    pub(super) fetch: Fetch,
    way: Way,
    heading: Option<Box<Heading>>,
    /// It is read to its end, and not handed over: nobody is to get it now.
    unaddressed: Option<Box<Standing>>,
    /// A stream was begun.
    streamed: bool,
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
    arrived: Timestamp,
}

/// What a header makes of a message.
pub(super) struct Judgement<'a> {
    pub(super) keys: &'a Ledger,
    pub(super) recipient: &'a Recipient,
    /// Sorted hashes of Message-IDs that count as known.
    pub(super) known: &'a [u64],
    /// See [`super::transfer::Context::moved`].
    pub(super) moved: &'a HashMap<u64, Vec<(u64, Entry)>>,
    /// Of a unified account.
    pub(super) unified: Option<UnifiedRules<'a>>,
}

/// What decides over a unified account's message.
#[derive(Clone, Copy)]
pub(super) struct UnifiedRules<'a> {
    pub(super) desk: Desk<'a>,
    /// Where copies are recognised.
    pub(super) copies: Option<&'a Copies>,
}

impl UnifiedRules<'_> {
    /// What is to be found out of a header.
    fn unify(&self) -> Unify {
        let special = self.desk.unified.special.clone();
        Unify { special, copies: self.copies.map(|_| self.desk.keys.digest()) }
    }

    /// Whether a message must be read to its end before any of it is handed
    /// over: it may be a copy.
    fn is_doubtful(&self, fetch: &Fetch, message_id: u64) -> bool {
        let certain = |standing: &Standing| standing.reached || standing.copy.is_some();
        self.copies.is_some_and(|copies| copies.knows(message_id)) && !certain(&fetch.standing())
    }

    /// Who is to get a message now: the envelope's recipients, the lane, and
    /// for whom that is. `None`: nobody, and `standing` says why.
    pub(super) fn address(
        &self,
        fetch: &Fetch,
        heading: &Heading,
        standing: &mut Standing,
    ) -> Option<(Vec<Recipient>, usize, Purpose)> {
        let aim = if fetch.to_postmaster {
            Aim::Postmaster("nobody else takes it")
        } else {
            heading.address(&self.desk, standing)
        };
        match aim {
            Aim::Recipients(lane, sent) => {
                Some((self.desk.recipients(lane, &sent), lane, Purpose::Recipients(sent)))
            }
            Aim::Postmaster(_) if self.desk.is_away(MAIN) => {
                standing.strand();
                None
            }
            Aim::Postmaster(why) => {
                let postmaster = self.desk.unified.postmaster.clone();
                let to = to_mailbox(postmaster, self.desk.lanes.via(MAIN));
                Some((vec![to], MAIN, Purpose::Postmaster(why)))
            }
            Aim::Nobody => None,
        }
    }
}

impl Incoming {
    pub(super) fn new(id: u64, fetch: Fetch, trace: Arc<Trace>, rules: &Judgement<'_>) -> Self {
        let now = Timestamp::now();
        let composer = match &rules.unified {
            Some(unified) => Composer::unified(trace, now, unified.unify()),
            None => Composer::new(trace, now),
        };
        Self {
            id,
            fetch,
            way: Way::Header(Box::new(composer)),
            heading: None,
            unaddressed: None,
            streamed: false,
            held: Vec::new(),
            held_octets: 0,
            digest: rules.keys.digest(),
            message_id: 0,
            rule: None,
            envelope: None,
            growth: 0,
            octets: 0,
            arrived: now,
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
        self.envelope = None;
        self.held = Vec::new();
        self.held_octets = 0;
    }

    /// Takes a piece. Returns the job that streams the message, when it turns
    /// out to be large; parts for the stream are appended to `out`.
    pub(super) fn push(
        &mut self,
        piece: Piece,
        rules: &Judgement<'_>,
        out: &mut Outgoing,
    ) -> Option<Started> {
        self.octets += piece.bytes.len() as u64;
        self.digest.update(&piece.bytes);
        if let Some(copy) = self.heading.as_mut().and_then(|heading| heading.copy.as_mut()) {
            copy.update(&piece.bytes);
        }
        match &mut self.way {
            Way::Header(composer) => {
                let composed = composer.push(piece)?;
                self.judge(composed, rules);
            }
            Way::Hold => self.hold(piece),
            Way::Stream(sender) => out.push(sender, Part::Data(piece)),
            Way::Discard => {}
        }
        self.stream_if_large(rules, out)
    }

    fn hold(&mut self, piece: Piece) {
        self.held_octets += piece.bytes.len() as u64;
        self.held.push(piece);
    }

    fn judge(&mut self, composed: Composed, rules: &Judgement<'_>) {
        self.message_id = composed.message_id.as_deref().map_or(0, |id| rules.keys.message_id(id));
        if self.fetch.is_another(self.message_id) {
            self.fetch.disown();
        }
        self.recognise(composed.addressees.as_ref(), rules);
        if !self.fetch.to_postmaster {
            if composed.own_trace {
                self.rule =
                    Some((Rule::Loop, "it carries our own trace header: it has been here before".into()));
            } else if composed.hops > MAX_HOPS {
                let why =
                    format!("it has {} Received headers (limit {MAX_HOPS}): a mail loop", composed.hops);
                self.rule = Some((Rule::Loop, why));
            } else if self.fetch.moved_from.is_none() && rules.known.binary_search(&self.message_id).is_ok() {
                self.rule = Some((Rule::KnownMessageId, String::new()));
            }
        }
        if self.rule.is_some() {
            self.discard();
            return;
        }
        self.growth = composed.growth;
        let recipients = if rules.unified.is_some() {
            // Whom it is for is decided when it is handed over.
            self.heading = Some(Box::new(Heading {
                found: composed.addressees,
                header: composed.header,
                sender: composed.sender.clone(),
                arrived: self.arrived,
                cut: composed.cut,
                copy: composed.copy,
            }));
            Vec::new()
        } else {
            vec![rules.recipient.clone()]
        };
        self.envelope = Some(Envelope {
            sender: composed.sender,
            recipients,
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

    /// Finds what a message is owed to that had another UID: it names all of
    /// these, and no other of its Message-ID has its size.
    fn recognise(&mut self, found: Option<&Addressees>, rules: &Judgement<'_>) {
        let fetch = &mut self.fetch;
        let is_new = fetch.prior.is_none() && fetch.standing.is_none() && !fetch.ambiguous;
        let Some(moved) = rules.moved.get(&self.message_id).filter(|_| is_new && !fetch.to_postmaster) else {
            return;
        };
        let named: HashSet<u64> = found
            .iter()
            .flat_map(|found| &found.found)
            .map(|address| rules.keys.recipient(address))
            .collect();
        let fits = |entry: &Entry| match &entry.state {
            State::Owed { to, .. } => to.iter().all(|hash| named.contains(hash)),
            _ => false,
        };
        let fitting: Vec<&(u64, Entry)> = moved.iter().filter(|(_, entry)| fits(entry)).collect();
        let sized = fitting.iter().find(|(_, entry)| Some(entry.size) == fetch.size);
        let it = sized.or_else(|| fitting.first().filter(|_| moved.len() == 1));
        if let Some((hash, entry)) = it {
            (fetch.prior, fetch.moved_from) = (Some(Box::new(entry.clone())), Some(*hash));
        }
    }

    fn stream_if_large(&mut self, rules: &Judgement<'_>, out: &mut Outgoing) -> Option<Started> {
        let large = self.held_octets > WHOLE
            || (self.held_octets > 0 && self.fetch.size.is_some_and(|size| size > WHOLE));
        if !large || !matches!(self.way, Way::Hold) {
            return None;
        }
        let mut envelope = self.envelope.take()?;
        let (lane, unified) = match &rules.unified {
            None => (MAIN, None),
            Some(unified) => {
                let (lane, entrusted) = self.entrust(unified, &mut envelope)?;
                (lane, Some(entrusted))
            }
        };
        envelope.size = self.fetch.size.map(|size| size.saturating_add_signed(self.growth));
        let (sender, receiver) = mpsc::channel(STREAM_DEPTH);
        for piece in self.held.drain(..) {
            out.push(&sender, Part::Data(piece));
        }
        self.held_octets = 0;
        self.way = Way::Stream(sender);
        self.streamed = true;
        Some(Started {
            job: Job { id: self.id, envelope, content: Content::Stream(receiver), leave: None },
            lane,
            unified,
        })
    }

    /// Who is to get a large message of a unified account. `None`: nobody, or
    /// not before it has been read to its end; it is not held until then.
    fn entrust(
        &mut self,
        unified: &UnifiedRules<'_>,
        envelope: &mut Envelope,
    ) -> Option<(usize, Box<(Standing, Entrusted)>)> {
        let heading = self.heading.take()?;
        if unified.is_doubtful(&self.fetch, self.message_id) {
            self.heading = Some(heading);
            self.discard();
            return None;
        }
        let mut standing = self.fetch.standing();
        let Some((recipients, lane, purpose)) = unified.address(&self.fetch, &heading, &mut standing) else {
            self.heading = Some(heading);
            self.unaddressed = Some(Box::new(standing));
            self.discard();
            return None;
        };
        envelope.recipients = recipients;
        envelope.await_recipients = matches!(purpose, Purpose::Recipients(_));
        // The copy digest goes on here, the rest is with the message.
        let mut heading = *heading;
        heading.addressed();
        self.heading = Some(Box::new(Heading {
            found: None,
            header: None,
            sender: ReversePath::default(),
            arrived: heading.arrived,
            cut: false,
            copy: heading.copy.take(),
        }));
        Some((lane, Box::new((standing, Entrusted { purpose, heading }))))
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
        let standing = self.fetch.standing.as_ref();
        // A server may serve other octets at each retrieval: it is known by the first.
        let digest = standing.and_then(|standing| standing.digest).unwrap_or_else(|| self.digest.finish());
        let taken = Taken { octets, message_id: self.message_id, digest, fetch: self.fetch };
        let way = match (self.way, self.rule) {
            (_, Some((rule, why))) => EndedWay::Ruled(rule, why),
            (Way::Stream(sender), None) => EndedWay::Streamed(self.id, sender),
            (_, None) => match self.envelope {
                Some(mut envelope) => {
                    envelope.size = Some(self.held.iter().map(|piece| piece.unstuffed_len() as u64).sum());
                    EndedWay::Whole(Job {
                        id: self.id,
                        envelope,
                        content: Content::Whole(self.held.into()),
                        leave: None,
                    })
                }
                None if self.heading.is_some() && !self.streamed => EndedWay::Read(self.unaddressed),
                None => EndedWay::Void,
            },
        };
        Ended { id: self.id, taken, heading: self.heading, way }
    }
}

/// A message read to its end, and not confirmed yet.
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) taken: Taken,
    /// Of a unified account's message.
    pub(super) heading: Option<Box<Heading>>,
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
    /// Of a unified account, and not to be handed over yet: it was read to see
    /// what it is, or nobody is to get it now.
    Read(Option<Box<Standing>>),
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
