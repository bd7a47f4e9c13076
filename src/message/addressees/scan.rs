//! The addresses of one field: RFC 5322, sections 3.4 and 4.4, as they are
//! written and as they are miswritten.
//!
//! mail-parser finds the one sender that is needed (`sender`); for recipients
//! it is not good enough. As of 0.11 it
//! - joins what belongs apart, `<a@b> <c@d>` or one address a line without
//!   commas, and finds neither;
//! - divides what belongs together: a quoted local part without angle
//!   brackets, a comment within an address, an IPv6 literal, a quoted `>`;
//! - puts U+FFFD for octets that are no UTF-8, which an envelope takes: mail
//!   for an address that nobody wrote;
//! - takes what follows a quote or an angle bracket that is never closed for
//!   a name.
//!
//! Where it does well, both find the same: see the tests.

use std::ops::ControlFlow;

use crate::domain::envelope::Mailbox;
use crate::message::sender;

/// Octets of an address that are looked at; no mailbox has that many.
const LONGEST: usize = 1024;

/// Addresses that may stand before an angle bracket and turn out to be a
/// display name. Nobody's name is longer.
const MOST_PENDING: usize = 100;

/// So many comments without an end are looked for; each costs a way to the
/// end of the field.
const PATIENCE: u8 = 3;

/// Hands over what looks like an address in a field's value, in order: the
/// mailbox, or `None` for what fits no envelope. Goes on until there is no
/// more, or until `found` breaks off.
///
/// Addresses stand apart by commas and semicolons; also by white space alone,
/// where nothing else makes sense of it. What stands before an angle bracket
/// is a name, whatever it looks like, and what stands before a colon the name
/// of a group, a source route or a scheme.
pub(super) fn scan<F>(value: &[u8], found: F) -> ControlFlow<()>
where
    F: FnMut(Option<Mailbox>) -> ControlFlow<()>,
{
    let mut reader = Reader {
        value,
        at: 0,
        run: Run::default(),
        gap: false,
        pending: Vec::new(),
        quotes_end: true,
        patience: PATIENCE,
        found,
    };
    reader.list()
}

struct Reader<'v, F> {
    value: &'v [u8],
    at: usize,
    run: Run,
    /// White space or a comment came behind the last element of `run`.
    gap: bool,
    /// Addresses without angle brackets since the last separator.
    pending: Vec<Option<Mailbox>>,
    /// No quote without an end has been met.
    quotes_end: bool,
    patience: u8,
    found: F,
}

/// What may become one address: words joined by dots and an `@`.
#[derive(Default)]
struct Run {
    /// Without quotes, white space and comments.
    text: Vec<u8>,
    /// Where in `text` the `@` is.
    at: Option<usize>,
    /// A word of the local part was quoted.
    quoted: bool,
    /// Nothing but one quoted word.
    lone: bool,
    /// No address, whatever else comes.
    bad: bool,
    last: Last,
}

/// What a run ends with.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Last {
    #[default]
    Nothing,
    /// A dot or an `@`: the next word belongs to it.
    Joint,
    Atom,
    /// A quoted word or a domain literal.
    Closed,
}

/// Where an element stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    List,
    Angle,
}

impl<F> Reader<'_, F>
where
    F: FnMut(Option<Mailbox>) -> ControlFlow<()>,
{
    fn list(&mut self) -> ControlFlow<()> {
        while let Some(octet) = self.peek() {
            match octet {
                b',' | b';' => {
                    self.at += 1;
                    self.end_run();
                    self.flush()?;
                }
                b':' => {
                    self.at += 1;
                    self.run.clear();
                    self.flush()?;
                }
                b'<' => {
                    self.at += 1;
                    self.run.clear();
                    self.pending.clear();
                    self.angle()?;
                }
                _ => {
                    self.element(octet, Place::List);
                    if self.pending.len() > MOST_PENDING {
                        self.flush()?;
                    }
                }
            }
        }
        self.end_run();
        self.flush()
    }

    /// Behind `<`, to its end. What must not stand there ends it, too, and is
    /// left to the list: the bracket was forgotten.
    fn angle(&mut self) -> ControlFlow<()> {
        self.gap = false;
        while let Some(octet) = self.peek() {
            match octet {
                b'>' => {
                    self.at += 1;
                    break;
                }
                b',' if self.run.is_route() && self.route_goes_on() => {
                    self.gap = false;
                    self.run.push(b',');
                }
                b'<' | b',' | b';' => break,
                b':' => {
                    self.at += 1;
                    self.gap = false;
                    self.run.drop_route();
                }
                _ => self.element(octet, Place::Angle),
            }
        }
        self.gap = false;
        let empty = self.run.last == Last::Nothing;
        let mailbox = self.run.take();
        if empty { ControlFlow::Continue(()) } else { (self.found)(mailbox) }
    }

    /// Passes over commas, which may stand in a source route with nothing
    /// between them. Whether one of its elements follows.
    fn route_goes_on(&mut self) -> bool {
        let rest = self.value.get(self.at..).unwrap_or_default();
        let blank = |octet: &&u8| octet.is_ascii_whitespace() || **octet == b',';
        self.at += rest.iter().take_while(blank).count();
        self.peek() == Some(b'@')
    }

    /// Takes what begins with `octet`, the next one.
    fn element(&mut self, octet: u8, place: Place) {
        match octet {
            b' ' | b'\t' | b'\r' | b'\n' => self.white_space(place),
            b'(' => {
                self.gap = true;
                self.at = self.comment_end().unwrap_or(self.at + 1);
            }
            b'"' => {
                if let Some(end) = self.quoted_end() {
                    self.quoted_word(end, place);
                } else {
                    self.quotes_end = false;
                    self.gap = true;
                    self.at += 1;
                }
            }
            // Of brackets that were never opened.
            b')' | b'>' => {
                self.gap = true;
                self.at += 1;
            }
            b'[' if self.run.ends_with_at() => self.literal(),
            b'=' if place == Place::List && (self.gap || self.run.last == Last::Nothing) => {
                match self.encoded_word_end() {
                    Some(end) => {
                        self.end_run();
                        self.at = end;
                    }
                    None => self.octet(octet, place),
                }
            }
            _ => self.octet(octet, place),
        }
    }

    /// Within angle brackets a fold is no gap: a long address may have been
    /// broken anywhere.
    fn white_space(&mut self, place: Place) {
        let rest = self.value.get(self.at..).unwrap_or_default();
        let length = rest.iter().take_while(|octet| octet.is_ascii_whitespace()).count().max(1);
        let folded = rest.get(..length).is_some_and(|blanks| blanks.contains(&b'\n'));
        self.gap |= place == Place::List || !folded;
        self.at += length;
    }

    fn octet(&mut self, octet: u8, place: Place) {
        self.at += 1;
        let joint = matches!(octet, b'.' | b'@');
        if !joint {
            match self.run.last {
                Last::Atom | Last::Closed if self.gap => self.next_word(place),
                Last::Closed => self.run.bad = true,
                _ => {}
            }
        }
        self.gap = false;
        if octet == b'@' {
            self.run.bad |= self.run.at.is_some();
            self.run.at.get_or_insert(self.run.text.len());
        }
        self.run.lone = false;
        self.run.push(octet);
        self.run.last = if joint { Last::Joint } else { Last::Atom };
    }

    /// What follows is not of the same address.
    fn next_word(&mut self, place: Place) {
        match place {
            Place::List => self.end_run(),
            // Never by joining what somebody kept apart.
            Place::Angle => self.run.bad = true,
        }
    }

    /// A quoted string whose closing quote is at `end`.
    fn quoted_word(&mut self, end: usize, place: Place) {
        let content = self.value.get(self.at + 1..end).unwrap_or_default();
        self.at = end + 1;
        match self.run.last {
            Last::Atom | Last::Closed if self.gap => self.next_word(place),
            Last::Atom | Last::Closed => self.run.bad = true,
            _ => {}
        }
        self.gap = false;
        self.run.lone = self.run.last == Last::Nothing;
        self.run.bad |= self.run.at.is_some();
        self.run.quoted = true;
        self.run.last = Last::Closed;
        let mut escaped = false;
        for octet in content {
            match octet {
                b'\\' if !escaped => {
                    escaped = true;
                    continue;
                }
                // Folding; the white space behind it stays (RFC 5322, 3.2.4).
                b'\r' | b'\n' if !escaped => {}
                octet => self.run.push(*octet),
            }
            escaped = false;
        }
    }

    fn quoted_end(&self) -> Option<usize> {
        if !self.quotes_end {
            return None;
        }
        let mut at = self.at + 1;
        loop {
            at += memchr::memchr2(b'"', b'\\', self.value.get(at..)?)?;
            if self.value.get(at) == Some(&b'"') {
                return Some(at);
            }
            at += 2;
        }
    }

    /// Behind a comment and those within it.
    fn comment_end(&mut self) -> Option<usize> {
        if self.patience == 0 {
            return None;
        }
        let mut depth = 0_usize;
        let mut escaped = false;
        for (at, octet) in self.value.iter().enumerate().skip(self.at) {
            match octet {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'(' => depth += 1,
                b')' if depth == 1 => return Some(at + 1),
                b')' => depth -= 1,
                _ => {}
            }
        }
        self.patience -= 1;
        None
    }

    /// `[192.0.2.1]` behind an `@`.
    fn literal(&mut self) {
        let rest = self.value.get(self.at + 1..).unwrap_or_default();
        let inner = |octet: &&u8| octet.is_ascii_alphanumeric() || b":.- \t\r\n".contains(octet);
        let length = rest.iter().take_while(inner).count();
        self.run.push(b'[');
        self.at += 1;
        if rest.get(length) == Some(&b']') {
            for octet in rest.iter().take(length + 1).filter(|octet| !octet.is_ascii_whitespace()) {
                self.run.push(*octet);
            }
            self.at += length + 1;
        }
        self.run.last = Last::Closed;
        self.gap = false;
    }

    /// Behind an encoded word (RFC 2047), which is never part of an address,
    /// whatever it looks like. White space and commas must not stand in it,
    /// and do.
    fn encoded_word_end(&self) -> Option<usize> {
        let rest = self.value.get(self.at..)?.strip_prefix(b"=?")?;
        let charset =
            rest.iter().position(|octet| !(octet.is_ascii_alphanumeric() || b"-_.:*+".contains(octet)))?;
        let [b'?', b'b' | b'B' | b'q' | b'Q', b'?', text @ ..] = rest.get(charset..)? else { return None };
        // What is looked through here holds no `?`, hence no further beginning
        // of such a word: all of them together are looked through once.
        let length = memchr::memchr3(b'?', b'\r', b'\n', text)?;
        text.get(length..)?.starts_with(b"?=").then(|| self.at + 2 + charset + 3 + length + 2)
    }

    fn end_run(&mut self) {
        self.gap = false;
        let like_an_address = self.run.at.is_some();
        let mailbox = self.run.take();
        if like_an_address || mailbox.is_some() {
            self.pending.push(mailbox);
        }
    }

    fn flush(&mut self) -> ControlFlow<()> {
        for one in self.pending.drain(..) {
            (self.found)(one)?;
        }
        ControlFlow::Continue(())
    }

    fn peek(&self) -> Option<u8> {
        self.value.get(self.at).copied()
    }
}

impl Run {
    fn push(&mut self, octet: u8) {
        if self.text.len() < LONGEST {
            self.text.push(octet);
        } else {
            self.bad = true;
        }
    }

    /// Keeps its memory.
    fn clear(&mut self) {
        self.text.clear();
        (self.at, self.last) = (None, Last::Nothing);
        (self.quoted, self.lone, self.bad) = (false, false, false);
    }

    fn ends_with_at(&self) -> bool {
        self.last == Last::Joint && self.text.last() == Some(&b'@')
    }

    /// It begins as a source route does (RFC 5322, section 4.4).
    fn is_route(&self) -> bool {
        self.at == Some(0) && !self.quoted
    }

    /// At a colon: a source route is of no use (RFC 5321, appendix C), nor is
    /// a scheme like `mailto:` or `SMTP:`.
    fn drop_route(&mut self) {
        if self.is_route() || self.at.is_none() {
            self.clear();
        } else {
            self.bad = true;
        }
    }

    fn take(&mut self) -> Option<Mailbox> {
        let mailbox = self.mailbox();
        self.clear();
        mailbox
    }

    fn mailbox(&self) -> Option<Mailbox> {
        if self.bad || (self.at.is_none() && !self.lone) {
            return None;
        }
        let text = std::str::from_utf8(&self.text).ok()?;
        // The root's dot is no part of a domain in an envelope.
        let text = text.strip_suffix('.').unwrap_or(text);
        let Some(at) = self.at else {
            // Some quote a whole address. By the letter that is a name without
            // an address, which would be of no use to anybody.
            return Mailbox::parse(text).ok();
        };
        if self.quoted {
            let plain = !text.get(..at)?.contains(['"', '\\']);
            return plain.then(|| Mailbox::parse(text).ok()).flatten().or_else(|| sender::quoted(text));
        }
        // Some put an address into apostrophes, as if these were quotes.
        let inner = text.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
        Mailbox::parse(inner.unwrap_or(text)).ok()
    }
}
