//! Writing lines.

use std::io::Write as _;

use jiff::Timestamp;
use jiff::civil::Date;

use crate::domain::ledger::{Entry, State};

/// Appends the line of an entry.
pub(in crate::local::ledger) fn write_put(
    text: &mut Vec<u8>,
    uid: &[u8],
    entry: &Entry,
    missed: Option<(i32, u8)>,
) {
    let word = match entry.state {
        State::Kept => "kept ",
        State::Deleting => "deleting ",
        State::Uncertain => "uncertain ",
        State::Quarantined { .. } => "quarantined ",
        State::Owed { .. } => "owed ",
        State::Copy => return write_copy(text, entry.message_id, entry.digest, entry.size, entry.day),
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
    match &entry.state {
        State::Quarantined { attempts, next_try, reason } => {
            write_tries(text, *attempts, *next_try);
            write_reason(text, reason);
        }
        State::Owed { attempts, next_try, reason, to, reached } => {
            write_tries(text, *attempts, *next_try);
            for (at, hash) in to.iter().enumerate() {
                put(text, format_args!("{}#{hash:016x}", if at == 0 { " to=" } else { "," }));
            }
            if *reached {
                text.extend_from_slice(b" reached");
            }
            write_reason(text, reason);
        }
        State::Kept | State::Deleting | State::Uncertain | State::Copy => {}
    }
    text.push(b'\n');
}

fn write_tries(text: &mut Vec<u8>, attempts: u16, next_try: i64) {
    let next = Timestamp::from_second(next_try).unwrap_or(Timestamp::UNIX_EPOCH);
    put(text, format_args!(" tries={attempts} next={next}"));
}

fn write_reason(text: &mut Vec<u8>, reason: &str) {
    text.extend_from_slice(b" reason=");
    let plain = reason.chars().map(|c| if c.is_control() { '?' } else { c });
    for c in plain.take(200) {
        put(text, format_args!("{c}"));
    }
}

/// Appends the line of a copy, or nothing where there is nothing to know it by.
pub(in crate::local::ledger) fn write_copy(
    text: &mut Vec<u8>,
    message_id: u64,
    digest: u64,
    origin: u64,
    day: i32,
) {
    if message_id != 0 && digest != 0 {
        put(text, format_args!("copy id={message_id:016x} digest={digest:016x} day="));
        write_day(text, day);
        if origin != 0 {
            put(text, format_args!(" of={origin:014x}"));
        }
        text.push(b'\n');
    }
}

pub(in crate::local::ledger) fn write_missed(text: &mut Vec<u8>, hash: u64, since: i32, listings: u8) {
    put(text, format_args!("missing #{hash:016x} day="));
    write_day(text, since);
    put(text, format_args!(" listings={listings}\n"));
}

pub(in crate::local::ledger) fn write_forget(text: &mut Vec<u8>, hash: u64) {
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
