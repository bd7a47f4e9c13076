//! Finds the end of a header and the fields that matter, line by line and
//! only once, however the octets are cut into pieces.

use std::ops::Range;
use std::sync::Arc;

use super::copies;
use super::unify::Unify;
use crate::domain::work::Special;

/// The fields that we look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Name {
    ReturnPath,
    DeliveredTo,
    Received,
    MessageId,
    ResentSender,
    ResentFrom,
    Sender,
    From,
    // Those below are looked for in the mail of unified accounts only.
    /// The one that `spec.special` names.
    Special,
    To,
    Cc,
    Bcc,
    ResentTo,
    ResentCc,
    ResentBcc,
    ResentDate,
    ResentMessageId,
    /// Of a resent block, and without a meaning for us.
    ResentOther,
    /// Differs between copies of a message.
    Varying,
}

/// A field of the header.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) name: Name,
    /// All of it, from its name to its last line end.
    pub(super) all: Range<usize>,
    /// Where its value begins, behind the colon.
    pub(super) value: usize,
}

/// What else is looked for in the mail of a unified account.
#[derive(Debug)]
struct Wanted {
    /// The name that holds the recipients; `None`: those of `*`.
    special: Option<Arc<str>>,
    /// What differs between copies.
    copies: bool,
}

/// The state of the search. Positions count from the first octet.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    /// What was found so far.
    pub(super) fields: Vec<Field>,
    /// The length of a leading mbox line.
    pub(super) mbox: usize,
    /// Where the header ends, behind the blank line if there is one.
    pub(super) end: Option<usize>,
    /// The first line begins with white space: our trace header would take it
    /// for its own continuation.
    pub(super) folds_into_trace: bool,
    /// Start of the line in work.
    line: usize,
    /// No line end before this one is unseen.
    searched: usize,
    /// A field has begun, so that a folded line is one of it.
    in_field: bool,
    /// That field is the last of `fields`.
    open: bool,
    wanted: Option<Wanted>,
}

impl Scanner {
    /// For the header of a unified account's message.
    pub(super) fn unified(unify: &Unify) -> Self {
        let special = match &unify.special {
            Special::Header(name) => Some(Arc::clone(name)),
            Special::Addressees => None,
        };
        let wanted = Wanted { special, copies: unify.copies.is_some() };
        Self { wanted: Some(wanted), ..Self::default() }
    }

    /// Goes on with `octets`, which begin with what earlier calls saw.
    /// Returns whether the header has ended.
    pub(super) fn feed(&mut self, octets: &[u8]) -> bool {
        while self.end.is_none() {
            let rest = octets.get(self.searched..).unwrap_or_default();
            let Some(at) = memchr::memchr(b'\n', rest) else {
                self.searched = octets.len();
                return false;
            };
            let end = self.searched + at + 1;
            self.take_line(octets, end);
            self.searched = end;
        }
        true
    }

    /// There is no more: what is left is a line too.
    pub(super) fn finish(&mut self, octets: &[u8]) {
        if !self.feed(octets) && self.line < octets.len() {
            self.take_line(octets, octets.len());
        }
    }

    /// The header is longer than `octets`: what is known must do. A field
    /// whose end was not seen is left where it is.
    pub(super) fn give_up(&mut self, octets: &[u8]) {
        let goes_on = matches!(octets.get(self.line), None | Some(b' ' | b'\t'));
        if self.open && goes_on {
            self.fields.pop();
        }
    }

    fn take_line(&mut self, octets: &[u8], end: usize) {
        let start = std::mem::replace(&mut self.line, end);
        let text = octets.get(start..end).unwrap_or_default();
        // In wire form a leading dot has another one before it. A server that
        // forgot that must not get a field past us that the destination will
        // see when it takes the dot away.
        let stuffed = usize::from(text.first() == Some(&b'.'));
        let text = text.get(stuffed..).unwrap_or_default();
        match text {
            b"\r\n" | b"\n" => self.end = Some(end),
            [b' ' | b'\t', ..] => {
                if !self.in_field {
                    self.folds_into_trace = true;
                    self.end = Some(start);
                } else if self.open
                    && let Some(field) = self.fields.last_mut()
                {
                    field.all.end = end;
                }
            }
            _ => {
                if let Some((name, value)) = field_start(text) {
                    let name = match &self.wanted {
                        None => Name::parse(name),
                        Some(wanted) => wanted.parse(name),
                    };
                    self.in_field = true;
                    self.open = name.is_some();
                    if let Some(name) = name {
                        self.fields.push(Field { name, all: start..end, value: start + stuffed + value });
                    }
                } else if is_mbox(text) {
                    // One in the middle is the mark of a careless mail
                    // system: kept, but the header goes on behind it.
                    if start == 0 {
                        self.mbox = end;
                    } else {
                        self.in_field = true;
                    }
                    self.open = false;
                } else {
                    // Not a header line: the body has begun without a blank
                    // line. It stays as it is.
                    self.end = Some(start);
                }
            }
        }
    }
}

/// The name of the field that `line` begins, and where its value begins;
/// `None` where the line begins no field (RFC 5322, section 3.6.8, and with
/// white space before the colon section 4.5).
fn field_start(line: &[u8]) -> Option<(&[u8], usize)> {
    let name_end = line.iter().position(|octet| !matches!(octet, 33..=57 | 59..=126))?;
    let rest = line.get(name_end..)?;
    let blanks = rest.iter().position(|octet| !matches!(octet, b' ' | b'\t'))?;
    if name_end == 0 || rest.get(blanks) != Some(&b':') {
        return None;
    }
    Some((line.get(..name_end)?, name_end + blanks + 1))
}

impl Wanted {
    fn parse(&self, text: &[u8]) -> Option<Name> {
        let name = match &self.special {
            // First of all: it may well be Delivered-To.
            Some(special) if text.eq_ignore_ascii_case(special.as_bytes()) => return Some(Name::Special),
            Some(_) => Name::parse(text),
            None => Name::parse(text).or_else(|| Name::addressees(text)),
        };
        name.or_else(|| (self.copies && copies::differs(text)).then_some(Name::Varying))
    }
}

impl Name {
    const ALL: [(&'static str, Self); 8] = [
        ("Return-Path", Self::ReturnPath),
        ("Delivered-To", Self::DeliveredTo),
        ("Received", Self::Received),
        ("Message-ID", Self::MessageId),
        ("Resent-Sender", Self::ResentSender),
        ("Resent-From", Self::ResentFrom),
        ("Sender", Self::Sender),
        ("From", Self::From),
    ];

    fn parse(text: &[u8]) -> Option<Self> {
        let found = Self::ALL.iter().find(|(name, _)| text.eq_ignore_ascii_case(name.as_bytes()));
        found.map(|(_, name)| *name)
    }

    const ADDRESSEES: [(&'static str, Self); 8] = [
        ("To", Self::To),
        ("Cc", Self::Cc),
        ("Bcc", Self::Bcc),
        ("Resent-To", Self::ResentTo),
        ("Resent-Cc", Self::ResentCc),
        ("Resent-Bcc", Self::ResentBcc),
        ("Resent-Date", Self::ResentDate),
        ("Resent-Message-ID", Self::ResentMessageId),
    ];

    /// The names that `*` needs.
    fn addressees(text: &[u8]) -> Option<Self> {
        const RESENT: &[u8] = b"Resent-";
        let found = Self::ADDRESSEES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name.as_bytes()));
        let resent = text.get(..RESENT.len()).is_some_and(|start| start.eq_ignore_ascii_case(RESENT));
        found.map(|(_, name)| *name).or(resent.then_some(Self::ResentOther))
    }
}

/// `From alice@example.com Mon Nov 23 …`, perhaps quoted by `>` on its way.
fn is_mbox(line: &[u8]) -> bool {
    let quotes = line.iter().take_while(|octet| **octet == b'>').count();
    line.get(quotes..).is_some_and(|rest| rest.starts_with(b"From "))
}
