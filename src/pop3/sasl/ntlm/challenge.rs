//! The server's CHALLENGE (MS-NLMP, section 2.2.1.2).

use super::{NTLM, OEM, SIGNATURE, TARGET_INFO, UNICODE, pair};
use crate::pop3::sasl::Malformed;

/// Octets up to the target information's place; older servers send no more
/// before the payload.
const SHORT_HEADER: usize = 32;
/// Octets with it.
const HEADER: usize = 48;
/// Octets of the longest challenge that is taken: target information goes back
/// to the server, in a message whose fields have lengths of 16 bits.
const MAX: usize = 8 * 1024;
/// Pairs of target information; there are ten kinds.
const MAX_PAIRS: usize = 64;

/// A challenge that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    flags: u32,
    nonce: [u8; 8],
    timestamp: Option<u64>,
    /// Without the pair that ends it.
    pairs: Vec<u8>,
}

impl Challenge {
    /// Reads a decoded challenge. Every offset and length must lie within it;
    /// target information must be whole and name no kind twice.
    ///
    /// # Errors
    /// [`Malformed`] names the field.
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        if message.len() > MAX {
            return Err(Malformed("the challenge is longer than 8192 octets"));
        }
        if message.get(..8) != Some(SIGNATURE) {
            return Err(Malformed("the challenge is not of NTLM"));
        }
        if number(message, 8)? != 2 {
            return Err(Malformed("the message is of another type than a challenge"));
        }
        field(message, 12, "the target's name lies outside of the challenge")?;
        let flags = number(message, 20)?;
        let nonce = message.get(24..SHORT_HEADER).and_then(|octets| octets.try_into().ok()).ok_or(SHORT)?;
        if flags & NTLM == 0 {
            return Err(Malformed("the server does not want NTLM"));
        }
        if flags & (UNICODE | OEM) == 0 {
            return Err(Malformed("the server names no character set"));
        }
        let mut challenge = Self { flags, nonce, timestamp: None, pairs: Vec::new() };
        if flags & TARGET_INFO != 0 {
            if message.len() < HEADER {
                return Err(SHORT);
            }
            let info = field(message, 40, "the target information lies outside of the challenge")?;
            challenge.take(info)?;
        }
        Ok(challenge)
    }

    /// Looks through target information and keeps it.
    fn take(&mut self, info: &[u8]) -> Result<(), Malformed> {
        const CUT: Malformed = Malformed("the target information ends in the middle of a pair");
        let mut rest = info;
        let mut seen = [false; 11];
        for _ in 0..MAX_PAIRS {
            let (kind, value, behind) = split(rest).ok_or(CUT)?;
            if kind == pair::END {
                if !value.is_empty() {
                    return Err(Malformed("the end of the target information has a value"));
                }
                if !behind.is_empty() {
                    return Err(Malformed("something stands behind the end of the target information"));
                }
                self.pairs = info[..info.len() - rest.len()].to_vec();
                return Ok(());
            }
            if let Some(seen) = seen.get_mut(usize::from(kind))
                && std::mem::replace(seen, true)
            {
                return Err(Malformed("the target information says one thing twice"));
            }
            match kind {
                pair::TIMESTAMP => {
                    let time =
                        value.try_into().map_err(|_| Malformed("the server's time is not of 8 octets"))?;
                    self.timestamp = Some(u64::from_le_bytes(time));
                }
                pair::FLAGS if value.len() != 4 => {
                    return Err(Malformed("the flags in the target information are not of 4 octets"));
                }
                _ => {}
            }
            rest = behind;
        }
        Err(Malformed("the target information has more than 64 pairs"))
    }

    pub(super) fn flags(&self) -> u32 {
        self.flags
    }

    pub(super) fn nonce(&self) -> [u8; 8] {
        self.nonce
    }

    /// The server's time, where it says it.
    pub(super) fn timestamp(&self) -> Option<u64> {
        self.timestamp
    }

    pub(super) fn pairs_len(&self) -> usize {
        self.pairs.len()
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = &self.pairs[..];
        std::iter::from_fn(move || {
            let (kind, value, behind) = split(rest)?;
            rest = behind;
            Some((kind, value))
        })
    }
}

const SHORT: Malformed = Malformed("the challenge is too short");

fn number(message: &[u8], at: usize) -> Result<u32, Malformed> {
    let octets = message.get(at..at + 4).and_then(|octets| octets.try_into().ok()).ok_or(SHORT)?;
    Ok(u32::from_le_bytes(octets))
}

/// What the length, the other length (of no meaning) and the offset at `at`
/// point to.
fn field<'a>(message: &'a [u8], at: usize, outside: &'static str) -> Result<&'a [u8], Malformed> {
    let len = message.get(at..at + 2).and_then(|octets| octets.try_into().ok()).ok_or(SHORT)?;
    let len = usize::from(u16::from_le_bytes(len));
    let offset = number(message, at + 4)?;
    if len == 0 {
        return Ok(&[]);
    }
    let offset = usize::try_from(offset).map_err(|_| Malformed(outside))?;
    if offset < SHORT_HEADER {
        return Err(Malformed(outside));
    }
    let end = offset.checked_add(len).ok_or(Malformed(outside))?;
    message.get(offset..end).ok_or(Malformed(outside))
}

/// Kind, value, and what stands behind the pair.
fn split(pairs: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let kind = u16::from_le_bytes(pairs.get(..2)?.try_into().ok()?);
    let len = usize::from(u16::from_le_bytes(pairs.get(2..4)?.try_into().ok()?));
    Some((kind, pairs.get(4..4 + len)?, pairs.get(4 + len..)?))
}
