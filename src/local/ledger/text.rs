//! The text of a ledger file: one message a line, for people to read and edit.
//!
//! ```text
//! rpop-ledger 1 salt=00112233445566778899aabbccddeeff
//! # comments, and empty lines, are kept; the head ends with one that begins with ---
//! kept UID day=2026-11-23 size=4096 id=0123456789abcdef digest=0123456789abcdef
//! deleting UID day=2026-11-23 size=4096
//! uncertain UID day=2026-11-23 size=4096 missing=2026-11-25/2
//! quarantined UID day=2026-11-23 size=10 tries=2 next=2026-11-23T12:00:00Z reason=550 no such user
//! missing #89abcdef01234567 day=2026-11-25 listings=3
//! forget #89abcdef01234567
//! ```
//!
//! A later line for a UID counts more than an earlier one. Octets of a UID
//! that are no visible ASCII, and `%`, are written `%XX`; an empty UID is `%`.

use std::io::{self, Read, Write as _};

use jiff::Timestamp;
use jiff::civil::Date;

use crate::domain::ledger::{Entry, State};

/// What begins every ledger file; the number is the format's version.
const MAGIC: &str = "rpop-ledger 1 salt=";

/// Written below the header of a new file.
const HELP: &str = "\
# What rpop took from this mailbox, one message a line: STATE UID and what is known of it.
#   kept         delivered, and left on the server on purpose
#   deleting     delivered; to be deleted on the server, or deleted in the last session
#   uncertain    the destination's answer was lost: tried once more
#   quarantined  refused or unreadable: tried again at next=
# Of several lines for one UID the last one counts. To have a message fetched again, delete its
# lines; to keep one from being fetched, add a line 'kept UID'. Edit while rpop does not run.
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
/// The longest line that is read: each octet of a UID takes up to three.
const MOST_LINE: usize = 3 * MOST_UID + 4096;
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
            b"forget" => {
                let (hash, rest) = split(rest);
                let hash = parse_hash(hash)?;
                if rest.is_empty() { Ok(Line::Forget { hash }) } else { Err("'forget' takes only a hash") }
            }
            b"missing" => self.missing(rest),
            _ => Err("a line begins with kept, deleting, uncertain, quarantined, missing, forget or #"),
        }
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
                    quarantine(&mut entry.state, name, value, whole)?;
                    if name == b"reason" {
                        break;
                    }
                }
                _ => {
                    return Err("the fields are day, size, id, digest, missing, tries, next and reason");
                }
            }
            rest = next;
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

fn quarantine(state: &mut State, name: &[u8], value: &[u8], whole: &[u8]) -> Result<(), &'static str> {
    let State::Quarantined { attempts, next_try, reason } = state else {
        return Err("tries, next and reason belong to quarantined messages");
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

/// Appends the line of an entry, or nothing where the UID is too long: a
/// message under such a UID would only be fetched again.
pub(super) fn write_put(text: &mut Vec<u8>, uid: &[u8], entry: &Entry, missed: Option<(i32, u8)>) {
    let word = match entry.state {
        State::Kept => "kept ",
        State::Deleting => "deleting ",
        State::Uncertain => "uncertain ",
        State::Quarantined { .. } => "quarantined ",
    };
    text.extend_from_slice(word.as_bytes());
    escape(text, uid);
    text.extend_from_slice(b" day=");
    write_day(text, entry.day);
    if entry.size != 0 {
        put(text, format_args!(" size={}", entry.size));
    }
    if entry.message_id != 0 {
        put(text, format_args!(" id={:016x}", entry.message_id));
    }
    if entry.digest != 0 {
        put(text, format_args!(" digest={:016x}", entry.digest));
    }
    if let Some((since, listings)) = missed {
        text.extend_from_slice(b" missing=");
        write_day(text, since);
        put(text, format_args!("/{listings}"));
    }
    if let State::Quarantined { attempts, next_try, reason } = &entry.state {
        let next = Timestamp::from_second(*next_try).unwrap_or(Timestamp::UNIX_EPOCH);
        put(text, format_args!(" tries={attempts} next={next} reason="));
        let plain = reason.chars().map(|c| if c.is_control() { '?' } else { c });
        for c in plain.take(200) {
            put(text, format_args!("{c}"));
        }
    }
    text.push(b'\n');
}

pub(super) fn write_missed(text: &mut Vec<u8>, hash: u64, since: i32, listings: u8) {
    put(text, format_args!("missing #{hash:016x} day="));
    write_day(text, since);
    put(text, format_args!(" listings={listings}\n"));
}

pub(super) fn write_forget(text: &mut Vec<u8>, hash: u64) {
    put(text, format_args!("forget #{hash:016x}\n"));
}

fn put(text: &mut Vec<u8>, arguments: std::fmt::Arguments<'_>) {
    // Writing to a vector cannot fail.
    text.write_fmt(arguments).unwrap_or_default();
}

fn escape(text: &mut Vec<u8>, uid: &[u8]) {
    if uid.is_empty() {
        text.push(b'%');
    }
    for octet in uid {
        if octet.is_ascii_graphic() && *octet != b'%' {
            text.push(*octet);
        } else {
            put(text, format_args!("%{octet:02X}"));
        }
    }
}

fn write_day(text: &mut Vec<u8>, day: i32) {
    let day = i64::from(day).clamp(-719_528, 2_932_896); // the years 0 to 9999
    let date = Date::constant(1970, 1, 1).saturating_add(jiff::SignedDuration::from_hours(day * 24));
    put(text, format_args!("{date}"));
}

/// How a file was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Scanned {
    /// Octets up to and with the last line feed.
    pub(super) length: u64,
    /// Octets behind it: a line that was never written to its end.
    pub(super) torn: u64,
    /// Complete lines.
    pub(super) lines: u64,
}

/// Why a scan ended.
#[derive(Debug)]
pub(super) enum ScanError<E> {
    Read(io::Error),
    /// A line that is longer than any line can be.
    Endless(u64),
    Line(u64, E),
}

/// Hands the complete lines of a file to `each`, with their numbers from 1,
/// without their line feeds. Holds one chunk (or the whole of a file that is
/// `expected` to be smaller), or one line if that is longer.
pub(super) fn scan<E>(
    mut from: impl Read,
    expected: u64,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<Scanned, ScanError<E>> {
    let chunk = usize::try_from(expected).unwrap_or(CHUNK).saturating_add(1).min(CHUNK);
    let mut buffer = vec![0; chunk];
    let mut filled = 0;
    let mut scanned = Scanned::default();
    loop {
        if filled == buffer.len() {
            if buffer.len() > MOST_LINE {
                return Err(ScanError::Endless(scanned.lines + 1));
            }
            buffer.resize(buffer.len() * 2, 0);
        }
        let count = match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ScanError::Read(error)),
        };
        let searched = filled;
        filled += count;
        let mut start = 0;
        for found in memchr::memchr_iter(b'\n', &buffer[searched..filled]) {
            let end = searched + found;
            scanned.lines += 1;
            each(scanned.lines, &buffer[start..end])
                .map_err(|error| ScanError::Line(scanned.lines, error))?;
            start = end + 1;
        }
        scanned.length += start as u64;
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
    scanned.torn = filled as u64;
    Ok(scanned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read_back(text: &[u8]) -> (Vec<u8>, Entry, Option<(i32, u8)>) {
        let mut parser = Parser::new(1);
        match parser.line(text.strip_suffix(b"\n").unwrap()).unwrap() {
            Line::Put { uid, entry, missed } => (uid.to_vec(), entry, missed),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn lines_read_as_people_would_write_them() {
        let mut parser = Parser::new(77);
        let plain = Entry { state: State::Kept, day: 77, size: 0, message_id: 0, digest: 0 };
        assert_eq!(
            parser.line(b"kept abc"),
            Ok(Line::Put { uid: b"abc", entry: plain.clone(), missed: None })
        );
        assert_eq!(
            parser.line(b"  kept\tabc   day=1970-01-03 \r"),
            Ok(Line::Put { uid: b"abc", entry: Entry { day: 2, ..plain }, missed: None })
        );
        assert_eq!(parser.line(b""), Ok(Line::Comment));
        assert_eq!(parser.line(b" # kept abc"), Ok(Line::Comment));
        assert_eq!(parser.line(b"forget #00000000000000ff"), Ok(Line::Forget { hash: 255 }));
    }

    #[test]
    fn lines_that_cannot_be_understood_say_why() {
        let mut parser = Parser::new(1);
        for (line, why) in [
            (&b"seen abc"[..], "begins with"),
            (b"kept", "UID is missing"),
            (b"kept abc yesterday", "name=value"),
            (b"kept abc day=2026-02-30", "day="),
            (b"kept abc day=26-1-1", "day="),
            (b"kept abc size=-1", "size="),
            (b"kept abc size=18446744073709551616", "size="),
            (b"kept abc colour=red", "fields are"),
            (b"kept abc tries=1", "belong to quarantined"),
            (b"kept a%zz", "two hexadecimal"),
            (b"kept a%2", "two hexadecimal"),
            (b"quarantined abc next=soon", "next="),
            (b"forget abc", "a hash is"),
            (b"forget #00 x", "a hash is"),
            (b"missing #0000000000000000 day=2026-01-01", "listings"),
            (b"\0\0\0\0", "begins with"),
            (b"\xff\xfe", "begins with"),
        ] {
            let error = parser.line(line).unwrap_err();
            assert!(error.contains(why), "{}: {error}", String::from_utf8_lossy(line));
        }
    }

    // quirks: "Equal UIDs for different messages ...; UIDs of 71, 128, 1000, 20000 characters; spaces, 8-bit, `/`"
    #[test]
    fn long_and_odd_uids_come_back_as_they_were() {
        for uid in [
            &b""[..],
            b" ",
            b"%",
            b"a b",
            b"#",
            b"/../../etc",
            b"\r\n",
            b"\0\xff\x80",
            &[b'x'; 71],
            &[b'y'; 128],
            &[b'%'; 1000],
            &vec![0xe4; 20_000],
            &vec![b' '; MOST_UID],
        ] {
            let entry = Entry { state: State::Kept, day: 20_000, size: 1, message_id: 2, digest: 3 };
            let mut text = Vec::new();
            write_put(&mut text, uid, &entry, None);
            assert_eq!(memchr::memchr(b'\n', &text), Some(text.len() - 1));
            assert_eq!(read_back(&text), (uid.to_vec(), entry, None));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            uid in prop::collection::vec(any::<u8>(), 0..80),
            kind in 0..4,
            day in -700_000..2_000_000_i32,
            numbers in any::<(u64, u64, u64)>(),
            missed in prop::option::of((0..100_000_i32, 1..4_u8)),
            (attempts, next_try, reason) in (any::<u16>(), 0..4_000_000_000_i64, "[ -~äö]{0,120}"),
        ) {
            let state = match kind {
                0 => State::Kept,
                1 => State::Deleting,
                2 => State::Uncertain,
                _ => State::Quarantined { attempts, next_try, reason: reason.trim().into() },
            };
            let entry = Entry { state, day, size: numbers.0, message_id: numbers.1, digest: numbers.2 };
            let mut text = Vec::new();
            write_put(&mut text, &uid, &entry, missed);
            prop_assert_eq!(read_back(&text), (uid, entry, missed));
        }

        #[test]
        fn no_line_makes_the_parser_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Err(why) = Parser::new(1).line(&line) {
                prop_assert!(!why.is_empty());
            }
        }

        #[test]
        fn garbage_behind_a_state_does_not_make_the_parser_panic(rest in "[ =/%#a-z0-9-]{0,60}") {
            for word in ["kept", "quarantined", "missing", "forget"] {
                if let Err(why) = Parser::new(1).line(format!("{word} {rest}").as_bytes()) {
                    prop_assert!(!why.is_empty());
                }
            }
        }

        #[test]
        fn scanning_in_any_portions_sees_the_same_lines(
            lines in prop::collection::vec("[a-z]{0,40}", 0..50), tail in "[a-z]{0,10}", portion in 1..50_usize,
        ) {
            struct Portions<'a>(&'a [u8], usize);
            impl Read for Portions<'_> {
                fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                    let count = self.1.min(self.0.len()).min(buffer.len());
                    buffer[..count].copy_from_slice(&self.0[..count]);
                    self.0 = &self.0[count..];
                    Ok(count)
                }
            }
            let mut text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
            let length = text.len() as u64;
            text.push_str(&tail);
            let mut seen = Vec::new();
            let scanned = scan(Portions(text.as_bytes(), portion), 7, |_, line| {
                seen.push(String::from_utf8(line.to_vec()).unwrap());
                Ok::<_, ()>(())
            });
            let wanted = Scanned { length, torn: tail.len() as u64, lines: lines.len() as u64 };
            prop_assert_eq!(scanned.unwrap(), wanted);
            prop_assert_eq!(seen, lines);
        }
    }

    #[test]
    fn an_endless_line_ends_the_scan() {
        let scanned = scan(io::repeat(b'x'), 0, |_, _| Ok::<_, ()>(()));
        assert!(matches!(scanned, Err(ScanError::Endless(1))));
    }

    #[test]
    fn the_header_gives_its_salt_back() {
        let salt = *b"\x00\x01\xfe\xffabcdefghijkl";
        let text = header(salt);
        let first = text.split(|octet| *octet == b'\n').next().unwrap();
        assert_eq!(parse_header(first), Ok(salt));
        assert!(parse_header(b"rpop-ledger 2 salt=").unwrap_err().contains("newer"));
        assert!(parse_header(b"kept abc").is_err());
    }
}
