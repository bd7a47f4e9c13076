//! Entries and numbers, one by one.

use super::{Flaw, Group};
use crate::domain::ledger::{Entry, MOST_OWED, State};

/// 2026-01-01: days are written relative to it, so that they take two octets.
pub(super) const DAY_ZERO: i64 = 20_454;
/// Octets of a quarantined message's reason; the ledger promises 200.
const LONGEST_REASON: usize = 400;
/// The kinds of entries that format 1 does not have.
pub(super) const OWED: u8 = 4;
const COPY: u8 = 5;
const HAS_SIZE: u8 = 0x10;
const HAS_ID: u8 = 0x20;
const HAS_DIGEST: u8 = 0x40;

pub(super) fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let kind = match entry.state {
        State::Kept => 0,
        State::Deleting => 1,
        State::Uncertain => 2,
        State::Quarantined { .. } => 3,
        State::Owed { .. } => OWED,
        State::Copy => COPY,
    };
    let has = |number: u64, flag: u8| if number == 0 { 0 } else { flag };
    out.push(
        kind | has(entry.size, HAS_SIZE) | has(entry.message_id, HAS_ID) | has(entry.digest, HAS_DIGEST),
    );
    put_signed(out, i64::from(entry.day) - DAY_ZERO);
    if entry.size != 0 {
        put_number(out, entry.size);
    }
    for hash in [entry.message_id, entry.digest] {
        if hash != 0 {
            out.extend(hash.to_be_bytes());
        }
    }
    match &entry.state {
        State::Quarantined { attempts, next_try, reason } => put_tries(out, *attempts, *next_try, reason),
        State::Owed { attempts, next_try, reason, to, reached } => {
            put_tries(out, *attempts, *next_try, reason);
            put_number(out, (to.len() as u64) << 1 | u64::from(*reached));
            out.extend(to.iter().flat_map(|hash| hash.to_be_bytes()));
        }
        State::Kept | State::Deleting | State::Uncertain | State::Copy => {}
    }
}

fn put_tries(out: &mut Vec<u8>, attempts: u16, next_try: i64, reason: &str) {
    put_number(out, u64::from(attempts));
    put_signed(out, next_try);
    let mut end = reason.len().min(LONGEST_REASON);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    put_number(out, end as u64);
    out.extend(&reason.as_bytes()[..end]);
}

pub(super) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

pub(super) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_number(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

/// Octets of [`put_number`].
pub(super) fn width(number: u64) -> usize {
    (64 - (number | 1).leading_zeros() as usize).div_ceil(7)
}

/// Takes apart what was written; all of it is bounded by the octets there are.
pub(super) struct Reader<'a> {
    pub(super) rest: &'a [u8],
}

const SHORT: Flaw = Flaw::Malformed("it ends too soon");

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Flaw> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(super) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64, Flaw> {
        let mut number = 0;
        for place in 0..10 {
            let [octet] = self.fixed()?;
            if place == 9 && octet > 1 {
                break;
            }
            number |= u64::from(octet & 0x7f) << (7 * place);
            if octet < 0x80 {
                return Ok(number);
            }
        }
        Err(Flaw::Malformed("a number has more than 64 bits"))
    }

    pub(super) fn narrow<T: TryFrom<u64>>(&mut self) -> Result<T, Flaw> {
        T::try_from(self.number()?).map_err(|_| Flaw::Malformed("a number is too large"))
    }

    pub(super) fn signed(&mut self) -> Result<i64, Flaw> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    fn day(&mut self) -> Result<i32, Flaw> {
        let day = self.signed()?.checked_add(DAY_ZERO).and_then(|day| i32::try_from(day).ok());
        day.ok_or(Flaw::Malformed("a day is out of range"))
    }

    pub(super) fn end(&self) -> Result<(), Flaw> {
        if self.rest.is_empty() { Ok(()) } else { Err(Flaw::Malformed("there is more than belongs there")) }
    }

    /// A count of things that take at least `least` octets each.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, Flaw> {
        let count: usize = self.narrow()?;
        if count > self.rest.len() / least { Err(SHORT) } else { Ok(count) }
    }

    pub(super) fn group(&mut self) -> Result<Group, Flaw> {
        let head = self.number()?;
        let (count, listings) = (head >> 2, (head & 3) as u8);
        if count > self.rest.len() as u64 / 2 {
            return Err(SHORT);
        }
        if count == 0 && listings > 0 {
            return Err(Flaw::Malformed("what is forgotten cannot be missing"));
        }
        let since = if listings > 0 { self.day()? } else { 0 };
        let entries = (0..count).map(|_| self.entry()).collect::<Result<_, _>>()?;
        Ok(Group { entries, since, listings })
    }

    fn entry(&mut self) -> Result<Entry, Flaw> {
        let [flags] = self.fixed()?;
        let day = self.day()?;
        let size = if flags & HAS_SIZE == 0 { 0 } else { self.number()? };
        let mut hash = |flag| {
            if flags & flag == 0 { Ok(0) } else { self.fixed().map(u64::from_be_bytes) }
        };
        let (message_id, digest) = (hash(HAS_ID)?, hash(HAS_DIGEST)?);
        let state = match flags & !(HAS_SIZE | HAS_ID | HAS_DIGEST) {
            0 => State::Kept,
            1 => State::Deleting,
            2 => State::Uncertain,
            3 => {
                let (attempts, next_try, reason) = self.tries()?;
                State::Quarantined { attempts, next_try, reason }
            }
            OWED => {
                let (attempts, next_try, reason) = self.tries()?;
                let (to, reached) = self.owed()?;
                State::Owed { attempts, next_try, reason, to, reached }
            }
            COPY if message_id != 0 && digest != 0 => State::Copy,
            _ => return Err(Flaw::Malformed("there is a state that this build does not know")),
        };
        Ok(Entry { state, day, size, message_id, digest })
    }

    fn tries(&mut self) -> Result<(u16, i64, Box<str>), Flaw> {
        let (attempts, next_try) = (self.narrow()?, self.signed()?);
        let length = self.count(1)?;
        let reason = std::str::from_utf8(self.take(length)?);
        let reason = reason.map_err(|_| Flaw::Malformed("a reason is no text"))?;
        Ok((attempts, next_try, reason.into()))
    }

    fn owed(&mut self) -> Result<(Box<[u64]>, bool), Flaw> {
        let number: usize = self.narrow()?;
        let (count, reached) = (number >> 1, number & 1 == 1);
        if !(1..=MOST_OWED).contains(&count) {
            return Err(Flaw::Malformed("a message is owed to nobody, or to too many"));
        }
        let (hashes, _) = self.take(count * 8)?.as_chunks();
        let to: Box<[u64]> = hashes.iter().map(|hash| u64::from_be_bytes(*hash)).collect();
        if to.is_sorted_by(|one, next| one < next) {
            Ok((to, reached))
        } else {
            Err(Flaw::Malformed("the recipients are not in order"))
        }
    }

    pub(super) fn groups(&mut self, mut each: impl FnMut(u64, &'a [u8], Group)) -> Result<usize, Flaw> {
        let count = self.count(2)?;
        let mut last: Option<u64> = None;
        for _ in 0..count {
            let gap = self.number()?;
            let hash = match last {
                None => Some(gap),
                Some(last) => last.checked_add(gap).filter(|hash| *hash > last),
            };
            let hash = hash.ok_or(Flaw::Malformed("the hashes are not in order"))?;
            last = Some(hash);
            let before = self.rest;
            let group = self.group()?;
            each(hash, &before[..before.len() - self.rest.len()], group);
        }
        Ok(count)
    }
}
