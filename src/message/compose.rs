//! From the header as it was retrieved to the header that is sent.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

use super::header::{Field, Name, Scanner};
use super::sender;
use super::trace::Trace;
use super::unify::{Addressees, Unify};
use super::{addressees, copies, shown};
use crate::domain::envelope::ReversePath;
use crate::domain::ledger::Digest;
use crate::domain::wire::Piece;

/// The most octets of a header that are held and looked at. What follows in a
/// longer one passes through as if it were body.
pub const MAX_HEADER: usize = 256 * 1024;

/// More Received fields than this make a loop (RFC 5321, section 6.3).
pub const MAX_HOPS: u32 = 50;

/// A header with more gaps than this is copied into one piece.
const MOST_SLICES: usize = 8;

/// Takes the pieces of one message until its header is whole.
///
/// The header is copied only where it came in more than one piece; the body
/// never.
#[derive(Debug)]
pub struct Composer {
    trace: Arc<Trace>,
    now: Timestamp,
    scanner: Scanner,
    held: Held,
    /// A line that begins with a dot has been seen.
    stuffed: bool,
    unify: Option<Box<Unify>>,
}

#[derive(Debug)]
enum Held {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

/// A message's header, ready to be sent, and what it says.
#[derive(Debug)]
pub struct Composed {
    /// To be sent before everything that follows in the message: the trace
    /// header, what is kept of the header, and what came of the body with it.
    pub pieces: Vec<Piece>,
    /// The envelope sender. Where it needs SMTPUTF8
    /// ([`crate::domain::envelope::Mailbox::needs_utf8`]) and the destination
    /// lacks it, the null sender is to be said instead.
    pub sender: ReversePath,
    /// The Message-ID with its angle brackets, unfolded.
    pub message_id: Option<Bytes>,
    /// Received fields, ours not counted.
    pub hops: u32,
    /// A trace header of this installation for this account is there.
    pub own_trace: bool,
    /// The header that is sent is UTF-8 and not ASCII (RFC 6532).
    pub utf8: bool,
    /// How many octets, unstuffed, the message has grown by: for SIZE.
    pub growth: i64,
    /// The header is longer than [`MAX_HEADER`].
    pub cut: bool,
    /// Whom the header names; `None` for plain records. Where the header is
    /// `cut` they are not all.
    pub addressees: Option<Addressees>,
    /// The copy digest of the header and of what came of the body with it: the
    /// wire form of the message as it was retrieved, without the fields that
    /// differ between copies. Goes on with the later pieces. Only where
    /// [`Unify::copies`] asks for it.
    pub copy: Option<Digest>,
    /// For notifications about the message, only of unified accounts: whole
    /// lines of the header that is sent, without our trace header and the
    /// blank line, at most 32 KiB; unstuffed.
    pub header: Option<Bytes>,
}

impl Composed {
    /// Whether the message goes in circles.
    pub fn is_loop(&self) -> bool {
        self.own_trace || self.hops > MAX_HOPS
    }
}

impl Composer {
    /// For one message that is retrieved `now`.
    pub fn new(trace: Arc<Trace>, now: Timestamp) -> Self {
        Self { trace, now, scanner: Scanner::default(), held: Held::Nothing, stuffed: false, unify: None }
    }

    /// For one message of a unified account.
    pub fn unified(trace: Arc<Trace>, now: Timestamp, unify: Unify) -> Self {
        let scanner = Scanner::unified(&unify);
        Self { scanner, unify: Some(Box::new(unify)), ..Self::new(trace, now) }
    }

    /// Takes the next piece. Once this has returned something, what follows of
    /// the message is to be passed on as it is.
    pub fn push(&mut self, piece: Piece) -> Option<Composed> {
        if piece.bytes.is_empty() {
            return None;
        }
        self.stuffed |= piece.stuffed > 0;
        let mut buffer = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => {
                let bytes = piece.bytes;
                let seen = bytes.get(..bytes.len().min(MAX_HEADER)).unwrap_or_default();
                if self.scanner.feed(seen) || seen.len() == MAX_HEADER {
                    let seen = seen.len();
                    return Some(self.compose(&bytes, seen, None));
                }
                self.held = Held::One(bytes);
                return None;
            }
            Held::One(first) => {
                let mut buffer = BytesMut::with_capacity(first.len() + piece.bytes.len());
                buffer.extend_from_slice(&first);
                buffer
            }
            Held::Many(buffer) => buffer,
        };
        let before = buffer.len();
        let room = piece.bytes.len().min(MAX_HEADER - before);
        buffer.extend_from_slice(piece.bytes.get(..room).unwrap_or_default());
        if !self.scanner.feed(&buffer) && buffer.len() < MAX_HEADER {
            self.held = Held::Many(buffer);
            return None;
        }
        // What is body in this piece was copied only to be looked at.
        let end = self.scanner.end.unwrap_or(buffer.len()).max(before);
        buffer.truncate(end);
        let tail = piece.bytes.slice(end - before..);
        let seen = buffer.len();
        Some(self.compose(&buffer.freeze(), seen, Some(tail)))
    }

    /// The message ended within its header, or has no octets at all.
    #[must_use]
    pub fn finish(mut self) -> Composed {
        let octets = match std::mem::replace(&mut self.held, Held::Nothing) {
            Held::Nothing => Bytes::new(),
            Held::One(bytes) => bytes,
            Held::Many(buffer) => buffer.freeze(),
        };
        self.scanner.finish(&octets);
        // Whatever ends here is complete.
        let seen = octets.len();
        self.scanner.end.get_or_insert(seen);
        self.compose(&octets, seen, None)
    }

    /// `source` holds the header, of which `seen` octets were looked at, and
    /// perhaps body; `tail` is body.
    fn compose(&mut self, source: &Bytes, seen: usize, tail: Option<Bytes>) -> Composed {
        let cut = self.scanner.end.is_none();
        if cut {
            self.scanner.give_up(source.get(..seen).unwrap_or_default());
        }
        let end = self.scanner.end.unwrap_or(seen);
        let fields = std::mem::take(&mut self.scanner.fields);
        let value = |field: &Field| source.get(field.value..field.all.end).unwrap_or_default();

        let unify = self.unify.take();
        let addressees = unify.as_ref().map(|unify| {
            addressees::find(&unify.special, &fields, |field| {
                let value = source.slice(field.value..field.all.end);
                if self.stuffed { shown::unstuffed(value, false) } else { value }
            })
        });
        let copy = unify.and_then(|unify| unify.copies).map(|mut digest| {
            copies::take(&mut digest, source, self.scanner.mbox, &fields);
            digest.update(tail.as_deref().unwrap_or_default());
            digest
        });

        let recipients = Recipients::new(&self.trace, addressees.as_ref(), &fields);
        let mut removed: Vec<Range<usize>> = Vec::new();
        if self.scanner.mbox > 0 {
            removed.push(0..self.scanner.mbox);
        }
        let mut hops = 0;
        let mut own_trace = false;
        for field in &fields {
            let gone = match field.name {
                // A Bcc that is left over would tell its recipients to
                // everybody (RFC 5322, section 3.6.3).
                Name::ReturnPath | Name::Special | Name::Bcc | Name::ResentBcc => true,
                Name::DeliveredTo => {
                    sender::delivered_to(value(field)).is_some_and(|address| recipients.contain(&address))
                }
                Name::Received => {
                    hops += 1;
                    own_trace |= self.trace.is_own(value(field));
                    false
                }
                _ => false,
            };
            match removed.last_mut() {
                Some(last) if gone && last.end == field.all.start => last.end = field.all.end,
                _ if gone => removed.push(field.all.clone()),
                _ => {}
            }
        }

        let mut kept: Vec<Range<usize>> = Vec::with_capacity(removed.len() + 1);
        let mut from = 0;
        for gap in &removed {
            if gap.start > from {
                kept.push(from..gap.start);
            }
            from = gap.end;
        }
        let header = |range: &Range<usize>| source.get(range.start..range.end.min(end)).unwrap_or_default();
        if source.len() > from {
            kept.push(from..source.len());
        }
        let eight_bit = kept.iter().any(|range| !header(range).is_ascii());
        let utf8 = eight_bit && kept.iter().all(|range| std::str::from_utf8(header(range)).is_ok());

        let shown = addressees.is_some().then(|| shown::beginning(source, &kept, end));

        let mut trace = self.trace.field(self.now);
        let only_trace = kept.is_empty() && tail.is_none();
        if only_trace || self.scanner.folds_into_trace {
            trace = [&trace[..], b"\r\n"].concat().into();
        }
        let gone: usize = removed.iter().map(Range::len).sum();
        let growth = signed(trace.len()) - signed(gone);

        let mut pieces = Vec::with_capacity(kept.len() + 2);
        pieces.push(Piece { bytes: trace, stuffed: 0, at_line_start: true });
        if kept.len() > MOST_SLICES {
            let mut whole = BytesMut::with_capacity(end - gone.min(end));
            let mut body = None;
            for range in &kept {
                whole.extend_from_slice(header(range));
                if range.end > end {
                    body = Some(source.slice(range.start.max(end)..));
                }
            }
            self.push_piece(&mut pieces, whole.freeze());
            if let Some(body) = body {
                self.push_piece(&mut pieces, body);
            }
        } else {
            for range in kept {
                self.push_piece(&mut pieces, source.slice(range));
            }
        }
        if let Some(tail) = tail {
            self.push_piece(&mut pieces, tail);
        }

        let message_id = fields.iter().find(|field| field.name == Name::MessageId).and_then(|field| {
            let range = field.value..field.all.end;
            identifier(source, range)
        });
        let sender = envelope_sender(&fields, value);
        Composed {
            pieces,
            sender,
            message_id,
            hops,
            own_trace,
            utf8,
            growth,
            cut,
            addressees,
            copy,
            header: shown,
        }
    }

    /// Adds `bytes`, which follow what `pieces` hold.
    fn push_piece(&self, pieces: &mut Vec<Piece>, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let at_line_start = pieces.last().is_none_or(|piece| piece.bytes.last() == Some(&b'\n'));
        let stuffed = if self.stuffed { dotted_lines(&bytes, at_line_start) } else { 0 };
        pieces.push(Piece { bytes, stuffed, at_line_start });
    }
}

/// Whose Delivered-To is removed.
struct Recipients<'a> {
    trace: &'a Trace,
    /// Those that the header gave, in lower case; `None` where there are none.
    addressees: Option<HashSet<String>>,
}

impl<'a> Recipients<'a> {
    fn new(trace: &'a Trace, addressees: Option<&Addressees>, fields: &[Field]) -> Self {
        let addressees = addressees
            .filter(|_| fields.iter().any(|field| field.name == Name::DeliveredTo))
            .map(|one| one.found.iter().map(|address| address.as_str().to_lowercase()).collect());
        Self { trace, addressees }
    }

    fn contain(&self, address: &str) -> bool {
        self.trace.is_recipient(address)
            || self.addressees.as_ref().is_some_and(|all| all.contains(&address.to_lowercase()))
    }
}

/// Lines of wire form that begin with a dot: each of these is a doubled one.
fn dotted_lines(octets: &[u8], at_line_start: bool) -> u32 {
    let first = at_line_start && octets.first() == Some(&b'.');
    let others = memchr::memmem::find_iter(octets, b"\n.").count();
    u32::try_from(others + usize::from(first)).unwrap_or(u32::MAX)
}

/// DESIGN, "Envelope": Return-Path, else the first of Sender and From, those
/// of a resent message before.
fn envelope_sender<'a>(fields: &[Field], value: impl Fn(&Field) -> &'a [u8]) -> ReversePath {
    let first = |name| fields.iter().find(|field| field.name == name);
    if let Some(field) = first(Name::ReturnPath) {
        return sender::return_path(value(field));
    }
    let order = [Name::ResentSender, Name::ResentFrom, Name::Sender, Name::From];
    ReversePath(order.into_iter().filter_map(first).find_map(|field| sender::first_address(value(field))))
}

/// What stands in the angle brackets, with them; else all of the value.
fn identifier(source: &Bytes, range: Range<usize>) -> Option<Bytes> {
    let value = source.slice(range);
    let open = memchr::memchr(b'<', &value);
    let close = open.and_then(|open| Some(open + memchr::memchr(b'>', value.get(open..)?)?));
    let value = match (open, close) {
        (Some(open), Some(close)) => value.slice(open..=close),
        _ => value.slice_ref(value.trim_ascii()),
    };
    let folded = memchr::memchr2(b'\r', b'\n', &value).is_some();
    let value = if folded {
        value.iter().copied().filter(|octet| !octet.is_ascii_whitespace()).collect()
    } else {
        value
    };
    (!value.is_empty()).then_some(value)
}

fn signed(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
