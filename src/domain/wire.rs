//! Message octets in wire form, as POP3 (RFC 1939, section 3) and SMTP
//! (RFC 5321, section 4.5.2) both carry them: lines end in CRLF and nothing
//! else, and a line that begins with a dot has a second one before it.
//!
//! Both protocols agree on that form, so a message that comes from a POP3
//! server goes to an SMTP server without being unstuffed and stuffed again:
//! [`Decoder`] finds the end of the message, rewrites only what breaks the
//! form, and passes everything else on as slices of the buffer it was read
//! into.

use bytes::{Buf as _, Bytes, BytesMut};
use memchr::{memchr2, memmem};

/// A part of a message in wire form.
///
/// Invariants: every CR is followed by LF and every LF preceded by CR, and no
/// piece ends between the two; no line is a lone dot, and whoever unstuffs
/// takes one dot away from every line that begins with one; the terminating
/// `.` CRLF is not part of it; the last piece of a message ends in CRLF.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// The octets.
    pub bytes: Bytes,
    /// Lines that begin in it with a dot, hence octets that unstuffing takes
    /// away: 0 lets an unstuffing sink take `bytes` as they are.
    pub stuffed: u32,
    /// The piece begins at the start of a line.
    pub at_line_start: bool,
}

impl Piece {
    /// A piece of octets that are in wire form already; counts their leading
    /// dots.
    pub fn new(bytes: Bytes, at_line_start: bool) -> Self {
        let leading = at_line_start && bytes.first() == Some(&b'.');
        let inner = memmem::find_iter(&bytes, b"\n.").count();
        let stuffed = u32::try_from(inner + usize::from(leading)).unwrap_or(u32::MAX);
        Self { bytes, stuffed, at_line_start }
    }

    /// Octets in wire form.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Octets that [`Piece::unstuffed`] yields.
    pub fn unstuffed_len(&self) -> usize {
        self.bytes.len() - self.stuffed as usize
    }

    /// Takes the first `at` octets off as a piece of their own, without
    /// copying. `at` must not stand between CR and LF; behind a line's end it
    /// is always right.
    #[must_use]
    pub fn split_to(&mut self, at: usize) -> Self {
        let at = at.min(self.bytes.len());
        let head = Self::new(self.bytes.split_to(at), self.at_line_start);
        self.stuffed -= head.stuffed.min(self.stuffed);
        if let Some(last) = head.bytes.last() {
            self.at_line_start = *last == b'\n';
        }
        head
    }

    /// The octets without the stuffed dots, as slices of the piece: what BDAT
    /// and files take.
    pub fn unstuffed(&self) -> Unstuffed {
        Unstuffed { rest: self.bytes.clone(), left: self.stuffed, line_start: self.at_line_start }
    }
}

/// Slices of a [`Piece`] between its stuffed dots; see [`Piece::unstuffed`].
/// At most one more than there are such dots, none of them empty.
#[derive(Clone, Debug)]
pub struct Unstuffed {
    rest: Bytes,
    left: u32,
    line_start: bool,
}

impl Iterator for Unstuffed {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.line_start && self.left > 0 && self.rest.first() == Some(&b'.') {
            self.left -= 1;
            let _dot = self.rest.split_to(1);
        }
        self.line_start = false;
        if self.rest.is_empty() {
            return None;
        }
        let next_dot = if self.left == 0 { None } else { memmem::find(&self.rest, b"\n.") };
        match next_dot {
            None => Some(std::mem::take(&mut self.rest)),
            Some(at) => {
                self.line_start = true;
                Some(self.rest.split_to(at + 1))
            }
        }
    }
}

/// Puts content of our own making into wire form: line ends become CRLF,
/// leading dots are doubled, and the last line is ended. Empty content stays
/// empty.
pub fn stuff(content: &[u8]) -> Piece {
    let mut out = Vec::with_capacity(content.len() + content.len() / 32 + 2);
    let mut stuffed = 0;
    let mut rest = content;
    let mut line_start = true;
    while !rest.is_empty() {
        if line_start && rest.first() == Some(&b'.') {
            out.push(b'.');
            stuffed += 1;
        }
        let Some(at) = memchr2(b'\r', b'\n', rest) else {
            out.extend_from_slice(rest);
            out.extend_from_slice(b"\r\n");
            break;
        };
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(b"\r\n");
        let pair = rest[at..].starts_with(b"\r\n");
        rest = &rest[at + 1 + usize::from(pair)..];
        line_start = true;
    }
    Piece { bytes: out.into(), stuffed, at_line_start: true }
}

/// What a message was made of, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Octets as the server sent them, without the dots that it stuffed: a
    /// CRLF counts two, a bare CR or LF one.
    pub octets: u64,
    /// Lines, by whatever they were ended.
    pub lines: u64,
    /// Line ends that were a bare CR or LF and are CRLF now.
    pub rewritten: u64,
}

impl Tally {
    /// Octets with every line end as CRLF, unstuffed: what is passed on.
    pub fn normalised(&self) -> u64 {
        self.octets + self.rewritten
    }

    /// Whether a size that a server announced for this message (RFC 1939,
    /// sections 5 and 11) may be meant for what came: line ends counted as
    /// two octets, as one, or as they were sent.
    pub fn agrees_with(&self, announced: u64) -> bool {
        announced == self.octets
            || announced == self.normalised()
            || announced == self.normalised().saturating_sub(self.lines)
    }
}

/// Where the next octet stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// At the start of a line of the server's own: behind a CRLF that it
    /// sent, or at the start of the message. A dot here was stuffed by it, or
    /// ends the message.
    OwnLine,
    /// Behind a bare CR or LF: for the server no new line, for us one.
    MadeLine,
    /// In a line.
    Inside,
}

/// Finds the end of a POP3 multi-line response (RFC 1939, section 3) and
/// brings what stands before it into wire form.
///
/// The message ends on exactly CRLF `.` CRLF; the first CRLF may be that of
/// the status line. A bare CR or LF becomes CRLF, and a dot behind it is
/// stuffed, so that nothing in the message can end it at the next server.
/// A stretch that needs no rewriting is passed on without a copy; from at
/// most [`Decoder::MAX_UNDECIDED`] octets the decision is put off until more
/// arrive.
#[derive(Clone, Debug)]
pub struct Decoder {
    at: At,
    tally: Tally,
    /// The next octet that is passed on begins a line.
    out_line_start: bool,
    /// The last octets that came, oldest first.
    tail: [u8; 3],
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// Octets that may stay in the input because what follows decides on
    /// them: `.` CR.
    pub const MAX_UNDECIDED: usize = 2;

    /// Clean stretches up to this many octets are copied to join their
    /// rewritten neighbours, so that a message full of bare line ends makes a
    /// piece in some thousand octets and not one a line.
    const JOIN: usize = 2048;

    /// Rewritten octets that make a piece.
    const FLUSH: usize = 32 * 1024;

    /// At the start of a message, behind its status line.
    pub fn new() -> Self {
        Self { at: At::OwnLine, tally: Tally::default(), out_line_start: true, tail: *b"\0\r\n" }
    }

    /// What has been decoded so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Whether the octets so far end in a dot and CRLF: with silence behind
    /// it, the mark of a server that glues the terminator to the last line.
    pub fn ends_with_dot_crlf(&self) -> bool {
        self.tail == *b".\r\n"
    }

    /// Decodes what it can of `input`, takes that away from it, and passes it
    /// on in pieces. Returns whether the message has ended; then `input`
    /// begins with what came behind the terminator.
    pub fn decode(&mut self, input: &mut BytesMut, mut out: impl FnMut(Piece)) -> bool {
        let mut copied = BytesMut::new();
        let mut dots = 0;
        let ended = loop {
            let stretch = self.stretch(input);
            if stretch.len > 0 {
                self.remember(&input[..stretch.len]);
                let joins = !copied.is_empty() || stretch.stop.rewrites();
                if joins && stretch.len <= Self::JOIN {
                    if copied.is_empty() {
                        copied.reserve(input.len().min(Self::FLUSH + Self::JOIN));
                    }
                    copied.extend_from_slice(&input[..stretch.len]);
                    input.advance(stretch.len);
                    dots += stretch.dots;
                } else {
                    self.emit(copied.split().freeze(), std::mem::take(&mut dots), &mut out);
                    self.emit(input.split_to(stretch.len).freeze(), stretch.dots, &mut out);
                }
            }
            match stretch.stop {
                Stop::More => break false,
                Stop::End => {
                    input.advance(b".\r\n".len());
                    break true;
                }
                Stop::BareEnd => {
                    copied.extend_from_slice(b"\r\n");
                    self.remember(&input[..1]);
                    input.advance(1);
                }
                Stop::AddDot => {
                    copied.extend_from_slice(b".");
                    dots += 1;
                }
                Stop::DropDot => {
                    self.remember(&input[..1]);
                    input.advance(1);
                }
            }
            if copied.len() >= Self::FLUSH {
                self.emit(copied.split().freeze(), std::mem::take(&mut dots), &mut out);
            }
        };
        self.emit(copied.freeze(), dots, &mut out);
        ended
    }

    /// The longest stretch at the start of `data` that is passed on as it is,
    /// and what is to be done behind it. Never ends between CR and LF.
    fn stretch(&mut self, data: &[u8]) -> Stretch {
        let mut at = 0;
        let mut dots = 0;
        let (mut octets, mut lines) = (0, 0);
        let stop = loop {
            match (self.at, data.get(at)) {
                (_, None) => break Stop::More,
                (At::OwnLine, Some(b'.')) => match (data.get(at + 1), data.get(at + 2)) {
                    (None, _) | (Some(b'\r'), None) => break Stop::More,
                    (Some(b'\r'), Some(b'\n')) => break Stop::End,
                    (Some(b'\r' | b'\n'), _) => {
                        // Stuffing before a line that is empty for us: kept,
                        // it would be a lone dot.
                        self.at = At::Inside;
                        break Stop::DropDot;
                    }
                    (Some(_), _) => {
                        dots += 1;
                        at += 1;
                    }
                },
                (At::MadeLine, Some(b'.')) => {
                    self.at = At::Inside;
                    break Stop::AddDot;
                }
                _ => {}
            }
            let Some(end) = memchr2(b'\r', b'\n', &data[at..]).map(|found| at + found) else {
                self.at = At::Inside;
                at = data.len();
                break Stop::More;
            };
            match (data[end], data.get(end + 1)) {
                (b'\r', Some(b'\n')) => {
                    at = end + 2;
                    lines += 1;
                    self.at = At::OwnLine;
                }
                (b'\r', None) => {
                    if end > at || self.at == At::Inside {
                        self.at = At::Inside;
                    }
                    at = end;
                    break Stop::More;
                }
                _ => {
                    at = end;
                    octets += 1;
                    lines += 1;
                    self.at = At::MadeLine;
                    break Stop::BareEnd;
                }
            }
        };
        octets += at as u64 - u64::from(dots);
        self.tally.octets += octets;
        self.tally.lines += lines;
        self.tally.rewritten += u64::from(stop == Stop::BareEnd);
        Stretch { len: at, dots, stop }
    }

    fn emit(&mut self, bytes: Bytes, stuffed: u32, out: &mut impl FnMut(Piece)) {
        if let Some(last) = bytes.last() {
            let at_line_start = std::mem::replace(&mut self.out_line_start, *last == b'\n');
            out(Piece { bytes, stuffed, at_line_start });
        }
    }

    fn remember(&mut self, used: &[u8]) {
        if let Some(last) = used.last_chunk::<3>() {
            self.tail = *last;
        } else {
            for octet in used {
                self.tail = [self.tail[1], self.tail[2], *octet];
            }
        }
    }
}

#[derive(Debug)]
struct Stretch {
    len: usize,
    dots: u32,
    stop: Stop,
}

/// What stands behind a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Nothing, or too little to decide.
    More,
    /// The terminator.
    End,
    /// A bare CR or LF.
    BareEnd,
    /// A dot behind a bare CR or LF.
    AddDot,
    /// A stuffed dot before a bare CR or LF.
    DropDot,
}

impl Stop {
    fn rewrites(self) -> bool {
        !matches!(self, Self::More | Self::End)
    }
}

#[cfg(test)]
mod tests;
