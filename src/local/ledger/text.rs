//! The text of a ledger file: one message a line, for people to read and edit.
//!
//! ```text
//! rpop-ledger 1 salt=00112233445566778899aabbccddeeff
//! # comments, and empty lines, are kept; the head ends with one that begins with ---
//! kept UID day=2026-11-23 size=4096 id=0123456789abcdef digest=0123456789abcdef
//! deleting UID day=2026-11-23 size=4096
//! uncertain UID day=2026-11-23 size=4096 missing=2026-11-25/2
//! quarantined UID day=2026-11-23 size=10 tries=2 next=2026-11-23T12:00:00Z reason=550 no such user
//! owed UID day=2026-11-23 tries=1 next=2026-11-23T12:00:00Z to=#0123456789abcdef,#89abcdef01234567 reached reason=452 full
//! copy id=0123456789abcdef digest=89abcdef01234567 day=2026-11-23 of=0123456789abcd
//! missing #89abcdef01234567 day=2026-11-25 listings=3
//! forget #89abcdef01234567
//! ```
//!
//! A later line for a UID counts more than an earlier one. Octets of a UID
//! that are no visible ASCII, and `%`, are written `%XX`; an empty UID is `%`.

mod scan;
mod write;

use jiff::Timestamp;
use jiff::civil::Date;

use crate::domain::ledger::{Entry, MOST_OWED, State};
pub(super) use scan::{ScanError, Scanned, scan};
pub(super) use write::{write_copy, write_forget, write_missed, write_put};

/// What begins every ledger file; the number is the format's version.
const MAGIC: &str = "rpop-ledger 1 salt=";

/// See [`crate::domain::ledger::origin`].
const MOST_ORIGIN: u64 = u64::MAX >> 8;

/// Written below the header of a new file.
const HELP: &str = "\
# What rpop took from this mailbox, one message a line: STATE UID and what is known of it.
#   kept         delivered, and left on the server on purpose
#   deleting     delivered; to be deleted on the server, or deleted in the last session
#   uncertain    the destination's answer was lost: tried once more
#   quarantined  refused or unreadable: tried again at next=
#   owed         done with for some of its recipients: tried again at next= for those of to= alone
#                (hashes of their addresses); 'reached' says that somebody has got it
# Of several lines for one UID the last one counts. To have a message fetched again, delete its
# lines; to keep one from being fetched, add a line 'kept UID'. Edit while rpop does not run.
# A line 'copy' is of a message that was delivered, whatever its UID: for 30 days another one of its
# Message-ID and content counts as a copy of it, but not the message itself ('of', a hash of its UID).
# Each line ends with a line feed.
# --- Leave this line in its place: without it and without a message the file counts as cut off. ---
";
/// The last line of a whole head, now and in files of earlier builds.
const HEAD_ENDS: [&[u8]; 2] = [
    b"# --- Leave this line in its place: without it and without a message the file counts as cut off. ---",
    b"# end each line with a line feed.",
];

/// Whether this line is the last one of a file's head. Every cut through the
/// head leaves it out, so that what remains is not taken for an empty ledger.
pub(super) fn ends_head(line: &[u8]) -> bool {
    HEAD_ENDS.contains(&line.trim_ascii())
}

/// Writes the end of a head of which the rest was deleted.
pub(super) fn write_head_end(text: &mut Vec<u8>) {
    text.extend_from_slice(HEAD_ENDS[0]);
    text.push(b'\n');
}

/// The longest UID that is kept, in octets.
pub(super) const MOST_UID: usize = 64 << 10;
/// The longest line that is read: each octet of a UID takes up to three, each
/// recipient that a message is owed to 18.
const MOST_LINE: usize = 3 * MOST_UID + 18 * MOST_OWED + 4096;
/// Octets that are read at once.
const CHUNK: usize = 64 << 10;

/// The first lines of a new file.
pub(super) fn header(salt: [u8; 16]) -> Vec<u8> {
    let salt = u128::from_be_bytes(salt);
    format!("{MAGIC}{salt:032x}\n{HELP}").into_bytes()
}

/// The salt, from a file's first line.
pub(super) fn parse_header(line: &[u8]) -> Result<[u8; 16], &'static str> {
    const WANTED: &str = "the first line must be 'rpop-ledger 1 salt=' and 32 hexadecimal digits";
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let Some(hex) = line.strip_prefix(MAGIC.as_bytes()) else {
        let version = line.strip_prefix(b"rpop-ledger ").map(|rest| split(rest).0);
        return Err(if version.is_some_and(|version| !version.is_empty() && version != b"1") {
            "it was written by a newer rpop"
        } else {
            WANTED
        });
    };
    let mut salt = [0; 16];
    if hex.len() != 32 {
        return Err(WANTED);
    }
    for (octet, digits) in salt.iter_mut().zip(hex.chunks(2)) {
        *octet = u8::try_from(parse_hex(digits).ok_or(WANTED)?).map_err(|_| WANTED)?;
    }
    Ok(salt)
}

/// A line behind the header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// Nothing to be applied.
    Comment,
    /// `missed` is the day of the first listing without it and how many there
    /// were.
    Put {
        uid: &'a [u8],
        entry: Entry,
        missed: Option<(i32, u8)>,
    },
    Missed {
        hash: u64,
        since: i32,
        listings: u8,
    },
    Forget {
        hash: u64,
    },
    Copy {
        message_id: u64,
        digest: u64,
        /// Of the UID, or 0.
        origin: u64,
        day: i32,
    },
}

/// Reads lines; holds what is reused from one to the next.
#[derive(Debug)]
pub(super) struct Parser {
    uid: Vec<u8>,
    /// What a line without a day gets: nobody knows better.
    today: i32,
    /// The last date read: most lines share it with the one before.
    date: ([u8; 10], i32),
}

impl Parser {
    pub(super) fn new(today: i32) -> Self {
        Self { uid: Vec::new(), today, date: (*b"1970-01-01", 0) }
    }

    /// Reads one line (without its line feed).
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn line<'a>(&'a mut self, line: &'a [u8]) -> Result<Line<'a>, &'static str> {
        let line = line.trim_ascii();
        let Some(first) = line.first() else { return Ok(Line::Comment) };
        if *first == b'#' {
            return Ok(Line::Comment);
        }
        let (word, rest) = split(line);
        match word {
            b"kept" => self.put(State::Kept, rest),
            b"deleting" => self.put(State::Deleting, rest),
            b"uncertain" => self.put(State::Uncertain, rest),
            b"quarantined" => {
                self.put(State::Quarantined { attempts: 1, next_try: 0, reason: Box::default() }, rest)
            }
            b"owed" => {
                let (reason, to) = (Box::default(), Box::default());
                self.put(State::Owed { attempts: 1, next_try: 0, reason, to, reached: false }, rest)
            }
            b"copy" => self.copy(rest),
            b"forget" => {
                let (hash, rest) = split(rest);
                let hash = parse_hash(hash)?;
                if rest.is_empty() { Ok(Line::Forget { hash }) } else { Err("'forget' takes only a hash") }
            }
            b"missing" => self.missing(rest),
            _ => Err(
                "a line begins with kept, deleting, uncertain, quarantined, owed, copy, missing, forget or #",
            ),
        }
    }

    fn copy<'a>(&mut self, mut rest: &'a [u8]) -> Result<Line<'a>, &'static str> {
        let wrong = "'copy' takes id=, digest= and of=, each with hexadecimal digits, and day=YYYY-MM-DD";
        let (mut message_id, mut digest, mut origin, mut day) = (0, 0, 0, self.today);
        while !rest.is_empty() {
            let (field, next) = split(rest);
            let equals = memchr::memchr(b'=', field).ok_or(wrong)?;
            let (name, value) = (&field[..equals], &field[equals + 1..]);
            match name {
                b"id" => message_id = parse_hex(value).ok_or(wrong)?,
                b"digest" => digest = parse_hex(value).ok_or(wrong)?,
                b"of" => origin = parse_hex(value).filter(|of| *of <= MOST_ORIGIN).ok_or(wrong)?,
                b"day" => day = self.date(value).ok_or(wrong)?,
                _ => return Err(wrong),
            }
            rest = next;
        }
        if message_id == 0 || digest == 0 {
            return Err(wrong);
        }
        Ok(Line::Copy { message_id, digest, origin, day })
    }

    fn missing<'a>(&mut self, rest: &'a [u8]) -> Result<Line<'a>, &'static str> {
        let (hash, rest) = split(rest);
        let hash = parse_hash(hash)?;
        let (day, rest) = split(rest);
        let (listings, rest) = split(rest);
        let day = day.strip_prefix(b"day=").and_then(|day| self.date(day));
        let listings = listings.strip_prefix(b"listings=").and_then(parse_number);
        match (day, listings.map(u8::try_from), rest) {
            (Some(since), Some(Ok(listings)), b"") => Ok(Line::Missed { hash, since, listings }),
            _ => Err("'missing' takes a hash, day=YYYY-MM-DD and listings=N"),
        }
    }

    fn put<'a>(&'a mut self, state: State, rest: &'a [u8]) -> Result<Line<'a>, &'static str> {
        let (escaped, mut rest) = split(rest);
        if escaped.is_empty() {
            return Err("the UID is missing");
        }
        let mut entry = Entry { state, day: self.today, size: 0, message_id: 0, digest: 0 };
        let mut missed = None;
        while !rest.is_empty() {
            let (field, next) = split(rest);
            let Some(equals) = memchr::memchr(b'=', field) else {
                if let (b"reached", State::Owed { reached, .. }) = (field, &mut entry.state) {
                    *reached = true;
                    rest = next;
                    continue;
                }
                return Err("behind the UID stand fields of the form name=value");
            };
            let (name, value) = (&field[..equals], &field[equals + 1..]);
            match name {
                b"day" => entry.day = self.date(value).ok_or("day= takes a date, YYYY-MM-DD")?,
                b"size" => entry.size = parse_number(value).ok_or("size= takes a number of octets")?,
                b"id" => entry.message_id = parse_hex(value).ok_or("id= takes hexadecimal digits")?,
                b"digest" => entry.digest = parse_hex(value).ok_or("digest= takes hexadecimal digits")?,
                b"missing" => {
                    let wrong = "missing= takes a date and a number, YYYY-MM-DD/N";
                    let slash = memchr::memchr(b'/', value).ok_or(wrong)?;
                    let since = self.date(&value[..slash]).ok_or(wrong)?;
                    let listings = parse_number(&value[slash + 1..]).ok_or(wrong)?;
                    missed = Some((since, u8::try_from(listings).map_err(|_| wrong)?));
                }
                b"tries" | b"next" | b"reason" => {
                    // The reason is the last field, and takes the rest of the line.
                    let whole = &rest[equals + 1..];
                    set_aside(&mut entry.state, name, value, whole)?;
                    if name == b"reason" {
                        break;
                    }
                }
                b"to" => match &mut entry.state {
                    State::Owed { to, .. } => *to = parse_hashes(value)?,
                    _ => return Err("to belongs to owed messages"),
                },
                _ => {
                    return Err("the fields are day, size, id, digest, missing, tries, next, to and reason");
                }
            }
            rest = next;
        }
        if matches!(&entry.state, State::Owed { to, .. } if to.is_empty()) {
            return Err("'owed' takes to=, the hashes of the recipients that it is owed to");
        }
        let uid = self.unescape(escaped)?;
        Ok(Line::Put { uid, entry, missed })
    }

    fn unescape<'a>(&'a mut self, escaped: &'a [u8]) -> Result<&'a [u8], &'static str> {
        if memchr::memchr(b'%', escaped).is_none() {
            return Ok(escaped);
        }
        self.uid.clear();
        let mut rest = escaped;
        if rest == b"%" {
            rest = b"";
        }
        while let Some((octet, behind)) = rest.split_first() {
            if *octet == b'%' {
                let wrong = "% in a UID is followed by two hexadecimal digits";
                let digits = behind.get(..2).ok_or(wrong)?;
                self.uid.push(u8::try_from(parse_hex(digits).ok_or(wrong)?).map_err(|_| wrong)?);
                rest = &behind[2..];
            } else {
                self.uid.push(*octet);
                rest = behind;
            }
        }
        Ok(&self.uid)
    }

    fn date(&mut self, text: &[u8]) -> Option<i32> {
        if text == self.date.0 {
            return Some(self.date.1);
        }
        let (year, month, day) = (text.get(..4)?, text.get(5..7)?, text.get(8..)?);
        if text.len() != 10 || text[4] != b'-' || text[7] != b'-' {
            return None;
        }
        let part = |digits| parse_number(digits).and_then(|number| i16::try_from(number).ok());
        let date = Date::new(part(year)?, i8::try_from(part(month)?).ok()?, i8::try_from(part(day)?).ok()?);
        let days =
            i32::try_from(date.ok()?.duration_since(Date::constant(1970, 1, 1)).as_hours() / 24).ok()?;
        self.date = (text.try_into().ok()?, days);
        Some(days)
    }
}

fn set_aside(state: &mut State, name: &[u8], value: &[u8], whole: &[u8]) -> Result<(), &'static str> {
    let (State::Quarantined { attempts, next_try, reason } | State::Owed { attempts, next_try, reason, .. }) =
        state
    else {
        return Err("tries, next and reason belong to quarantined and owed messages");
    };
    match name {
        b"tries" => {
            let tries = parse_number(value).and_then(|number| u16::try_from(number).ok());
            *attempts = tries.ok_or("tries= takes a number up to 65535")?;
        }
        b"next" => {
            let text = std::str::from_utf8(value).unwrap_or("");
            let time: Timestamp =
                text.parse().map_err(|_| "next= takes a time such as 2026-11-23T12:00:00Z")?;
            *next_try = time.as_second();
        }
        _ => *reason = String::from_utf8_lossy(whole).into(),
    }
    Ok(())
}

/// The first word of a line, and what follows it.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    let end = memchr::memchr2(b' ', b'\t', line).unwrap_or(line.len());
    (&line[..end], line[end..].trim_ascii_start())
}

fn parse_number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })
}

fn parse_hex(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(digit))
    })
}

fn parse_hash(text: &[u8]) -> Result<u64, &'static str> {
    let digits = text.strip_prefix(b"#").filter(|digits| digits.len() == 16);
    digits.and_then(parse_hex).ok_or("a hash is # and 16 hexadecimal digits")
}

fn parse_hashes(text: &[u8]) -> Result<Box<[u64]>, &'static str> {
    let mut hashes = Vec::new();
    for hash in text.split(|octet| *octet == b',') {
        if hashes.len() == MOST_OWED {
            return Err("to= takes at most 1000 hashes");
        }
        hashes.push(parse_hash(hash)?);
    }
    hashes.sort_unstable();
    hashes.dedup();
    Ok(hashes.into())
}

#[cfg(test)]
mod tests;
