//! A delivery status notification (RFC 3464 in the multipart/report of RFC
//! 6522): what tells a sender which recipients of a message were refused for
//! good.
//!
//! All that it quotes is hostile. What a server said and what addresses hold
//! gets into header fields only where it is printable ASCII, and into the
//! words for people only behind white space; hence nothing of it can end a
//! line, begin a field or be taken for a boundary.
//!
//! The octets are ASCII, whatever is quoted, unless an address in From or To
//! is not. Only then, since only then has the way to the reader to know
//! SMTPUTF8, the original's header may be `message/global-headers` in 8bit
//! (RFC 6533, section 4.5). Otherwise
//! - the words for people are quoted-printable if they are not ASCII;
//! - `message/delivery-status` is 7bit, as RFC 3464 demands: addresses with
//!   UTF-8 have the form `utf-8; \x{FC}@…` of RFC 6533, and so has what is not
//!   ASCII in a Diagnostic-Code;
//! - the original's header is `text/rfc822-headers`, and quoted-printable
//!   where it is not clean: RFC 6522, section 4, allows that, every octet
//!   survives, and what is readable stays so. base64 is not allowed there,
//!   and octets replaced by `?` are missed when a message is looked for.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::trace::push_host;
use crate::domain::envelope::{Mailbox, ReversePath};
use crate::domain::text::shown;
use crate::domain::wire::{Piece, stuff};

/// As many refused recipients are named in the words for people; all are in
/// the report.
const MOST_IN_WORDS: usize = 100;

/// As much of the original's header is returned.
const MOST_HEADER: usize = 32 * 1024;

/// Octets of a line without its end (RFC 5322, section 2.1.1).
const LONGEST_LINE: usize = 998;

/// Octets of a server's text in a Diagnostic-Code, escapes included.
const LONGEST_DIAGNOSTIC: usize = 600;

/// Octets of the original's Message-ID that are taken over.
const LONGEST_ID: usize = 250;

/// A recipient that was refused for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The recipient.
    pub address: Mailbox,
    /// The SMTP reply code, as 550.
    pub code: u16,
    /// What the destination said with it. It is made printable, and cut at
    /// 200 characters, where it is not.
    pub text: String,
    /// The host that said it, where known.
    pub by: Option<Arc<str>>,
}

/// A notification about one message.
#[derive(Clone, Debug)]
pub struct Notification<'a> {
    /// This host.
    pub reporting_mta: &'a str,
    /// To whom it goes: the message's sender; or for mail of the null sender
    /// the postmaster of the Main Domain.
    pub to: &'a Mailbox,
    /// From whom it comes.
    pub from: &'a Mailbox,
    /// Who was refused; at least one.
    pub refused: &'a [Refused],
    /// Other recipients are still to get it: it is tried again for them.
    pub others_wait: bool,
    /// The header of the message, unstuffed and without its blank line. Of a
    /// longer one 32 KiB are returned.
    pub header: &'a [u8],
    /// The sender of the message, where the postmaster is told in its stead.
    pub in_stead_of: Option<&'a ReversePath>,
    /// The date of the notification.
    pub now: Timestamp,
    /// Tells notifications of the same instant apart.
    pub unique: u64,
    /// When the message was retrieved.
    pub arrived: Timestamp,
}

impl Notification<'_> {
    /// Whether its own header is UTF-8, so that SMTPUTF8 is needed for it.
    pub fn needs_utf8(&self) -> bool {
        self.from.needs_utf8() || self.to.needs_utf8()
    }

    /// The whole message.
    pub fn compose(&self) -> Vec<Piece> {
        let original = Original::new(self.header, self.needs_utf8());
        let boundary = self.boundary();
        let mut out = Vec::with_capacity(2048 + original.octets.len() + 512 * self.refused.len());
        self.push_header(&mut out, &boundary, original.encoding == "8bit");
        delimiter(&mut out, &boundary, "");
        self.push_words(&mut out);
        delimiter(&mut out, &boundary, "");
        self.push_status(&mut out);
        delimiter(&mut out, &boundary, "");
        original.push(&mut out);
        delimiter(&mut out, &boundary, "--");
        vec![stuff(&out)]
    }

    /// `=_` cannot stand in quoted-printable, nor can a line of ours begin
    /// with a hyphen, and an [`Original`] in which one does is
    /// quoted-printable.
    fn boundary(&self) -> String {
        format!("=_rpop_{:016x}_{:x}", self.unique, self.now.as_millisecond().unsigned_abs())
    }

    fn push_header(&self, out: &mut Vec<u8>, boundary: &str, eight_bit: bool) {
        let whose = if self.in_stead_of.is_some() { "A" } else { "Your" };
        let mut text = String::with_capacity(1024);
        write!(
            text,
            "From: Mail Delivery System <{}>\r\nTo: {}\r\nSubject: {whose} message was not delivered to {}\r\n\
             Date: {}\r\nMessage-ID: <{}.{:016x}@{}>\r\n",
            self.from,
            self.to,
            recipients(self.refused.len()),
            date(self.now),
            self.now.as_millisecond().unsigned_abs(),
            self.unique,
            right_side(self.reporting_mta),
        )
        .unwrap_or_default();
        if let Some(id) = message_id(self.header) {
            write!(text, "In-Reply-To: {id}\r\nReferences: {id}\r\n").unwrap_or_default();
        }
        write!(
            text,
            "Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n"
        )
        .unwrap_or_default();
        if eight_bit {
            text.push_str("Content-Transfer-Encoding: 8bit\r\n");
        }
        out.extend_from_slice(text.as_bytes());
    }

    fn push_words(&self, out: &mut Vec<u8>) {
        let words = self.words();
        let plain = words.is_ascii();
        part(out, "text/plain; charset=utf-8", if plain { "7bit" } else { "quoted-printable" });
        if plain {
            out.extend_from_slice(words.as_bytes());
        } else {
            quoted_printable(out, words.as_bytes());
        }
    }

    /// Lines that hold what others said begin with white space.
    fn words(&self) -> String {
        let mut text = String::with_capacity(1024);
        text.push_str("This is the mail system at\r\n    ");
        push_host(&mut text, self.reporting_mta);
        let (whose, ours) = match self.in_stead_of {
            None => ("Your message", "your message"),
            Some(_) => ("A message", "the message"),
        };
        write!(
            text,
            "\r\n\r\n{whose}, which arrived here on {}, was not delivered to\r\n{}. Their mail server \
             refused it for good; it is not tried again.\r\n",
            date(self.arrived),
            recipients(self.refused.len()),
        )
        .unwrap_or_default();
        for one in self.refused.iter().take(MOST_IN_WORDS) {
            write!(text, "\r\n    {}\r\n        ", shown(one.address.as_str())).unwrap_or_default();
            // Without a server it may be our own word.
            if let Some(by) = &one.by {
                push_host(&mut text, by);
                text.push_str(" said: ");
            }
            write!(text, "{}\r\n", reply(one)).unwrap_or_default();
        }
        let more = self.refused.len().saturating_sub(MOST_IN_WORDS);
        if more > 0 {
            write!(text, "\r\nand to {more} more; the attached report names all of them.\r\n")
                .unwrap_or_default();
        }
        if self.others_wait {
            text.push_str("\r\nOther recipients have it not yet: it is tried again for them.\r\n");
        } else {
            write!(
                text,
                "\r\nAll other recipients are taken care of: {ours} need not be sent to them\r\nagain.\r\n"
            )
            .unwrap_or_default();
        }
        match self.in_stead_of {
            None => {}
            Some(ReversePath(None)) => text.push_str(
                "\r\nYou get this as the postmaster: the message has the null sender, as\r\nnotifications have, \
                 so there is nobody else to tell.\r\n",
            ),
            Some(ReversePath(Some(sender))) => {
                text.push_str("\r\nYou get this as the postmaster, since there is no way to tell the sender:\r\n    ");
                text.push_str(&shown(sender.as_str()));
                text.push_str("\r\n");
            }
        }
        write!(text, "\r\nThe header of {ours} is attached.\r\n").unwrap_or_default();
        text
    }

    /// RFC 3464, section 2.
    fn push_status(&self, out: &mut Vec<u8>) {
        part(out, "message/delivery-status", "7bit");
        let mut text = String::from("Reporting-MTA: dns; ");
        push_host(&mut text, self.reporting_mta);
        write!(text, "\r\nArrival-Date: {}\r\n", date(self.arrived)).unwrap_or_default();
        for one in self.refused {
            text.push_str("\r\nFinal-Recipient: ");
            push_address(&mut text, &one.address);
            text.push_str("\r\nAction: failed\r\nStatus: ");
            push_status_code(&mut text, one);
            if let Some(by) = &one.by {
                text.push_str("\r\nRemote-MTA: dns; ");
                push_host(&mut text, by);
            }
            text.push_str("\r\nDiagnostic-Code: smtp;");
            push_folded(&mut text, &ascii(&reply(one)));
            text.push_str("\r\n");
        }
        out.extend_from_slice(text.as_bytes());
    }
}

/// The header of the original, as a part of its own.
struct Original {
    kind: &'static str,
    encoding: &'static str,
    octets: Vec<u8>,
}

impl Original {
    fn new(header: &[u8], utf8_allowed: bool) -> Self {
        let mut header = header;
        if header.len() > MOST_HEADER {
            let cut = header.get(..MOST_HEADER).unwrap_or_default();
            header = memchr::memrchr(b'\n', cut).and_then(|end| cut.get(..=end)).unwrap_or(cut);
        }
        while let Some(rest) = header.strip_suffix(b"\n").or_else(|| header.strip_suffix(b"\r")) {
            header = rest;
        }
        let clean = is_clean(header);
        let utf8 = !header.is_ascii() && std::str::from_utf8(header).is_ok();
        let (kind, encoding) = match (header.is_ascii(), utf8) {
            (true, _) if clean => ("text/rfc822-headers", "7bit"),
            (_, true) if clean && utf8_allowed && is_header(header) => ("message/global-headers", "8bit"),
            // The parameter is not registered, and hence ignored or a help.
            (_, true) => ("text/rfc822-headers; charset=utf-8", "quoted-printable"),
            _ => ("text/rfc822-headers", "quoted-printable"),
        };
        let octets = if encoding == "quoted-printable" {
            let mut octets = Vec::with_capacity(2 * header.len());
            quoted_printable(&mut octets, header);
            octets
        } else {
            header.to_vec()
        };
        Self { kind, encoding, octets }
    }

    fn push(&self, out: &mut Vec<u8>) {
        part(out, self.kind, self.encoding);
        out.extend_from_slice(&self.octets);
        if !self.octets.is_empty() {
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Whether all of it are fields: whoever reads `message/global-headers` takes it
/// apart, and what is no header is better shown as text.
fn is_header(header: &[u8]) -> bool {
    let is_field = |line: &[u8]| {
        let name = memchr::memchr(b':', line).and_then(|end| line.get(..end)).unwrap_or_default();
        !name.is_empty() && name.iter().all(|octet| matches!(octet, 33..=126))
    };
    let is_line =
        |(at, line): (usize, &[u8])| is_field(line) || (at > 0 && matches!(line.first(), Some(b' ' | b'\t')));
    header.split(|octet| *octet == b'\n').enumerate().all(is_line)
}

/// Whether lines can stand in a part as they are: none too long, no controls
/// but tabs, and none that may be taken for a boundary.
fn is_clean(header: &[u8]) -> bool {
    let mut lines = memchr::memmem::find_iter(header, b"\r\n").chain([header.len()]);
    let mut start = 0;
    lines.all(|end| {
        let line = header.get(start..end).unwrap_or_default();
        start = end + 2;
        line.len() <= LONGEST_LINE
            && !line.starts_with(b"--")
            && line.iter().all(|octet| *octet == b'\t' || !octet.is_ascii_control())
    })
}

/// Begins a part. The CRLF before its boundary belongs to that.
fn part(out: &mut Vec<u8>, kind: &str, encoding: &str) {
    for text in ["Content-Type: ", kind, "\r\nContent-Transfer-Encoding: ", encoding, "\r\n\r\n"] {
        out.extend_from_slice(text.as_bytes());
    }
}

fn delimiter(out: &mut Vec<u8>, boundary: &str, end: &str) {
    for text in ["\r\n--", boundary, end, "\r\n"] {
        out.extend_from_slice(text.as_bytes());
    }
}

fn recipients(count: usize) -> String {
    if count == 1 { "one recipient".to_owned() } else { format!("{count} recipients") }
}

fn date(at: Timestamp) -> String {
    let date = jiff::fmt::rfc2822::to_string(&at.to_zoned(TimeZone::UTC));
    date.unwrap_or_else(|_| "Thu, 1 Jan 1970 00:00:00 +0000".to_owned())
}

/// What stands behind the `@` of our Message-ID: a dot-atom or a literal.
fn right_side(host: &str) -> String {
    let mut text = String::new();
    push_host(&mut text, host);
    let fits = text.starts_with('[') || text.split('.').all(|label| !label.is_empty());
    if fits { text } else { "rpop.invalid".to_owned() }
}

/// A server's reply, printable, in one line and with single blanks.
fn reply(refused: &Refused) -> String {
    let mut line = refused.code.to_string();
    for word in shown(&refused.text).split_whitespace() {
        line.push(' ');
        line.push_str(word);
    }
    line
}

/// `text` with what is not ASCII as `\x{…}`; what is too long ends in `...`.
fn ascii(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let before = out.len();
        if matches!(c, ' '..='~') {
            out.push(c);
        } else {
            write!(out, "\\x{{{:02X}}}", u32::from(c)).unwrap_or_default();
        }
        if out.len() > LONGEST_DIAGNOSTIC {
            out.truncate(before);
            out.push_str("...");
            break;
        }
    }
    out
}

/// The words of a Diagnostic-Code, each behind a blank, folded at 76 octets
/// where they allow it.
fn push_folded(out: &mut String, text: &str) {
    let mut column = "Diagnostic-Code: smtp;".len();
    for (at, word) in text.split(' ').enumerate() {
        if at > 0 && column + 1 + word.len() > 76 {
            out.push_str("\r\n");
            column = 0;
        }
        out.push(' ');
        out.push_str(word);
        column += 1 + word.len();
    }
}

/// `rfc822; address`, or the 7-bit form of RFC 6533, section 3
/// (utf-8-addr-xtext).
fn push_address(out: &mut String, address: &Mailbox) {
    if !address.needs_utf8() {
        write!(out, "rfc822; {address}").unwrap_or_default();
        return;
    }
    let escape = |text: &str| {
        let mut escaped = String::with_capacity(text.len() * 2);
        for c in text.chars() {
            if matches!(c, '!'..='~') && !matches!(c, '\\' | '+' | '=') {
                escaped.push(c);
            } else {
                write!(escaped, "\\x{{{:02X}}}", u32::from(c)).unwrap_or_default();
            }
        }
        escaped
    };
    let (local, domain) = (escape(address.local()), escape(address.domain()));
    // Escapes can make of an address more than a line holds.
    let fold = if local.len() + domain.len() > LONGEST_LINE - 40 { "\r\n " } else { "" };
    write!(out, "utf-8; {local}{fold}@{domain}").unwrap_or_default();
}

/// The enhanced status code (RFC 3463): what the text begins with, or what the
/// reply code alone says.
fn push_status_code(out: &mut String, refused: &Refused) {
    out.push_str(enhanced(&refused.text).unwrap_or(match refused.code {
        500 | 502 | 503 => "5.5.1",
        501 | 504 | 555 => "5.5.4",
        530 | 535 => "5.7.0",
        551 => "5.1.6",
        552 => "5.2.2",
        553 => "5.1.3",
        556 => "5.1.10",
        _ => "5.0.0",
    }));
}

/// A leading `5.x.y`. Another class would contradict `Action: failed`.
fn enhanced(text: &str) -> Option<&str> {
    let code = text.trim_ascii_start().split(' ').next()?;
    let mut numbers = code.split('.');
    let is_number =
        |text: &str| (1..=3).contains(&text.len()) && text.bytes().all(|octet| octet.is_ascii_digit());
    let fits = numbers.next() == Some("5")
        && numbers.next().is_some_and(is_number)
        && numbers.next().is_some_and(is_number)
        && numbers.next().is_none();
    fits.then_some(code)
}

/// The first Message-ID of a header, with its brackets, if it is safe and of
/// use in a header of ours.
fn message_id(header: &[u8]) -> Option<&str> {
    const NAME: &[u8] = b"message-id";
    let starts = std::iter::once(0).chain(memchr::memchr_iter(b'\n', header).map(|end| end + 1));
    let value = starts.filter_map(|start| header.get(start..)).find_map(|line| {
        let (name, rest) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then(|| rest.trim_ascii_start().strip_prefix(b":"))?
    })?;
    let mut lines = memchr::memchr_iter(b'\n', value);
    let end = lines.find(|end| !matches!(value.get(end + 1), Some(b' ' | b'\t')));
    let value = value.get(..end.unwrap_or(value.len()))?;
    let value = value.get(memchr::memchr(b'<', value)?..)?;
    let id = value.get(..=memchr::memchr(b'>', value)?)?;
    let inner = id.get(1..id.len() - 1)?;
    let safe = |octet: &u8| octet.is_ascii_graphic() && !b"<>()\",;\\".contains(octet);
    let fits = id.len() <= LONGEST_ID && inner.iter().all(safe) && inner.contains(&b'@');
    std::str::from_utf8(id).ok().filter(|_| fits)
}

/// RFC 2045, section 6.7. Line ends are CRLF; a bare CR or LF is encoded.
fn quoted_printable(out: &mut Vec<u8>, octets: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut column = 0;
    let mut rest = octets;
    while let Some((octet, behind)) = rest.split_first() {
        if let Some(behind) = rest.strip_prefix(b"\r\n") {
            out.extend_from_slice(b"\r\n");
            (column, rest) = (0, behind);
            continue;
        }
        rest = behind;
        let ends = rest.is_empty() || rest.starts_with(b"\r\n");
        let plain = match octet {
            b' ' | b'\t' => !ends,
            b'=' => false,
            octet => octet.is_ascii_graphic(),
        };
        let width = if plain { 1 } else { 3 };
        // A soft line break takes one octet of the 76 itself.
        if column + width > if ends { 76 } else { 75 } {
            out.extend_from_slice(b"=\r\n");
            column = 0;
        }
        if plain {
            out.push(*octet);
        } else {
            let [high, low] = [octet >> 4, octet & 15].map(|digit| HEX.get(usize::from(digit)));
            out.push(b'=');
            out.extend(high.into_iter().chain(low));
        }
        column += width;
    }
}

#[cfg(test)]
mod tests;
