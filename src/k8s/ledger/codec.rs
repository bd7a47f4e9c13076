//! How a ledger is written: groups, the head, chunks.
//!
//! ```text
//! object = "RPOPUIDS" format:u8 kind:u8 payload checksum:16
//! head   = salt:16 nonce:u64 shard epoch runs litter groups
//! runs   = count { count { checksum:16 octets groups } }     oldest first
//! litter = count { checksum:16 }
//! chunk  = salt:16 nonce:u64 groups
//! groups = count { gap body }                                ascending hashes
//! body   = (entries << 2 | listings) [since] { entry }
//! entry  = flags:u8 day [size] [id:u64] [digest:u64] [attempts next reason [owed]]
//! owed   = (count << 1 | reached) { recipient:u64 }
//! ```
//!
//! Format 1 has neither messages that are owed nor copies; an object is of
//! format 2 only if it holds some, so that a build that does not know them
//! reads all that it can understand, and says of the rest that it is newer.
//!
//! What has no width is a LEB128 number, signed ones in zigzag; fixed ones are
//! big-endian. The checksum is the first half of the SHA-256 of all that is
//! before it: an object is as it was written, or it is damaged. A chunk is
//! named by it.
//!
//! A group is *all* that is known of a UID, or all copies of a Message-ID.
//! Among several of one hash the
//! newest counts alone, and one without entries means "forgotten": so the
//! order within a chunk, and what merges with what, never matters.

mod entry;

use std::collections::BTreeMap;
use std::fmt;

use sha2::{Digest as _, Sha256};

use crate::domain::ledger::{Entry, Ledger, State};
use entry::{DAY_ZERO, OWED, Reader, put_entry, put_number, put_signed, width};

/// The newest format that this build reads and writes.
const FORMAT: u8 = 2;
/// The format of objects without messages that are owed, and without copies.
const PLAIN: u8 = 1;
const MAGIC: &[u8; 8] = b"RPOPUIDS";
/// Octets of magic, format and kind.
const PREFIX: usize = MAGIC.len() + 2;
const CHECKSUM: usize = 16;
/// Octets of all chunks of a ledger that is read: what memory has to bear.
pub(super) const MOST_OCTETS_READ: u64 = 24 << 20;
/// Chunks of a ledger.
pub(super) const MOST_CHUNKS: usize = 120;

/// Why octets are no ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("it does not begin as a ledger of RPOP does")]
    Foreign,
    #[error("its checksum does not agree: it was cut off or changed")]
    Checksum,
    #[error("it was written by a newer RPOP (format {0}, this one reads {FORMAT})")]
    Newer(u8),
    #[error("{0}")]
    Malformed(&'static str),
}

/// The name of a chunk, and the checksum of any object.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Seal(pub(super) [u8; CHECKSUM]);

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Seal {
    /// The first 64 bits.
    pub(super) fn short(self) -> u64 {
        self.0.iter().take(8).fold(0, |sum, octet| sum << 8 | u64::from(*octet))
    }
}

/// All that is remembered of one UID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Group {
    /// In the order in which they can be put without replacing each other;
    /// none: the UID is forgotten.
    pub(super) entries: Vec<Entry>,
    /// The day of the first listing without it, if `listings` is not 0.
    pub(super) since: i32,
    /// Listings in a row without it, 0 to 3.
    pub(super) listings: u8,
}

impl Group {
    /// What `ledger` knows of a UID.
    pub(super) fn of(ledger: &Ledger, hash: u64) -> Self {
        let (since, listings) = ledger.missed(hash).unwrap_or_default();
        let positions = ledger.positions(hash).chain(ledger.copy_positions(hash));
        let entries = positions.map(|at| ledger.entry(at)).collect();
        Self { entries, since, listings }
    }

    /// Adds it to a ledger that knows nothing of the hash.
    pub(super) fn put_into(&self, ledger: &mut Ledger, hash: u64) {
        use crate::domain::ledger::Change;
        for entry in &self.entries {
            ledger.put(hash, entry);
        }
        if self.listings > 0 {
            ledger.apply(&Change::Missed { hash, since: self.since, listings: self.listings });
        }
    }

    /// Whether `body` says that a UID is forgotten.
    pub(super) fn is_forgotten(body: &[u8]) -> bool {
        body == [0]
    }

    /// The group as it is written.
    pub(super) fn body(&self) -> Box<[u8]> {
        let mut out = Vec::with_capacity(24 * self.entries.len() + 4);
        let listings = if self.entries.is_empty() { 0 } else { self.listings.min(3) };
        put_number(&mut out, (self.entries.len() as u64) << 2 | u64::from(listings));
        if listings > 0 {
            put_signed(&mut out, i64::from(self.since) - DAY_ZERO);
        }
        for entry in &self.entries {
            put_entry(&mut out, entry);
        }
        out.into()
    }

    /// Reads a body that is known to be whole.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Flaw> {
        let mut reader = Reader { rest: body };
        let group = reader.group()?;
        reader.end()?;
        Ok(group)
    }
}

fn begin(format: u8, kind: u8, capacity: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(capacity + PREFIX + CHECKSUM);
    out.extend(MAGIC);
    out.extend([format, kind]);
    out
}

/// The oldest format that groups can be written in.
fn format_of<'a>(mut bodies: impl Iterator<Item = &'a [u8]>) -> u8 {
    let is_newer = |entry: &Entry| matches!(entry.state, State::Owed { .. } | State::Copy);
    let needs_newer = |body: &[u8]| {
        // Most groups have one entry, whose flags are at hand.
        let plain = matches!(body, [4, flags, ..] if flags & 0x0f < OWED);
        !plain && Group::parse(body).is_ok_and(|group| group.entries.iter().any(is_newer))
    };
    if bodies.any(needs_newer) { FORMAT } else { PLAIN }
}

fn seal(mut out: Vec<u8>) -> (Vec<u8>, Seal) {
    let seal = checksum(&out);
    out.extend(seal.0);
    (out, seal)
}

fn checksum(octets: &[u8]) -> Seal {
    let mut half = [0; CHECKSUM];
    half.copy_from_slice(&Sha256::digest(octets)[..CHECKSUM]);
    Seal(half)
}

/// The payload of an object whose checksum agrees.
fn open(octets: &[u8], kind: u8) -> Result<(&[u8], Seal), Flaw> {
    if !octets.starts_with(MAGIC) {
        return Err(Flaw::Foreign);
    }
    let (body, stored) = octets.split_last_chunk::<CHECKSUM>().ok_or(Flaw::Checksum)?;
    if checksum(body).0 != *stored {
        return Err(Flaw::Checksum);
    }
    let rest = body.get(MAGIC.len()..).unwrap_or_default();
    match rest.split_first_chunk() {
        Some(([format, _], _)) if *format > FORMAT => Err(Flaw::Newer(*format)),
        Some(([PLAIN..=FORMAT, found], payload)) if *found == kind => Ok((payload, Seal(*stored))),
        _ => Err(Flaw::Malformed("it is of another kind than its name says")),
    }
}

/// A chunk as the head names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChunkRef {
    pub(super) seal: Seal,
    pub(super) octets: u32,
    pub(super) groups: u32,
}

/// Chunks that were written together: their hashes ascend, and what they say
/// is newer than what older runs say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Run(pub(super) Vec<ChunkRef>);

impl Run {
    pub(super) fn octets(&self) -> u64 {
        self.0.iter().map(|chunk| u64::from(chunk.octets)).sum()
    }
}

/// The object that a commit writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The ledger's.
    pub(super) salt: [u8; 16],
    /// Another one in each write: no two are the same.
    pub(super) nonce: u64,
    /// The shard whose holder wrote it, and that holder's epoch: the fence.
    pub(super) shard: u16,
    pub(super) epoch: i64,
    /// Oldest first.
    pub(super) runs: Vec<Run>,
    /// Chunks that may exist and are in no run.
    pub(super) litter: Vec<Seal>,
    /// The latest groups by their hashes, as they are written.
    pub(super) fresh: BTreeMap<u64, Box<[u8]>>,
}

impl Head {
    /// Of an empty ledger.
    pub(super) fn new(salt: [u8; 16]) -> Self {
        Self {
            salt,
            nonce: 0,
            shard: 0,
            epoch: 0,
            runs: Vec::new(),
            litter: Vec::new(),
            fresh: BTreeMap::new(),
        }
    }

    pub(super) fn chunks(&self) -> impl Iterator<Item = &ChunkRef> {
        self.runs.iter().flat_map(|run| &run.0)
    }

    /// Octets of all chunks.
    pub(super) fn octets(&self) -> u64 {
        self.runs.iter().map(Run::octets).sum()
    }

    /// Groups in chunks and in the head, those that others override included.
    pub(super) fn groups(&self) -> u64 {
        self.chunks().map(|chunk| u64::from(chunk.groups)).sum::<u64>() + self.fresh.len() as u64
    }

    /// Octets of [`Self::encode`].
    pub(super) fn size(&self) -> usize {
        self.unsealed().len() + CHECKSUM
    }

    pub(super) fn encode(&self) -> (Vec<u8>, Seal) {
        seal(self.unsealed())
    }

    fn unsealed(&self) -> Vec<u8> {
        let mut out = begin(format_of(self.fresh.values().map(|body| &**body)), b'H', 1024);
        out.extend(self.salt);
        out.extend(self.nonce.to_be_bytes());
        put_number(&mut out, u64::from(self.shard));
        put_signed(&mut out, self.epoch);
        put_number(&mut out, self.runs.len() as u64);
        for run in &self.runs {
            put_number(&mut out, run.0.len() as u64);
            for chunk in &run.0 {
                out.extend(chunk.seal.0);
                put_number(&mut out, u64::from(chunk.octets));
                put_number(&mut out, u64::from(chunk.groups));
            }
        }
        put_number(&mut out, self.litter.len() as u64);
        for name in &self.litter {
            out.extend(name.0);
        }
        put_groups(&mut out, self.fresh.iter().map(|(hash, body)| (*hash, &**body)));
        out
    }

    pub(super) fn decode(octets: &[u8]) -> Result<(Self, Seal), Flaw> {
        let (payload, seal) = open(octets, b'H')?;
        let mut reader = Reader { rest: payload };
        let mut head = Self::new(reader.fixed()?);
        head.nonce = u64::from_be_bytes(reader.fixed()?);
        head.shard = reader.narrow()?;
        head.epoch = reader.signed()?;
        for _ in 0..reader.count(1)? {
            let mut run = Run::default();
            for _ in 0..reader.count(CHECKSUM + 2)? {
                let seal = Seal(reader.fixed()?);
                run.0.push(ChunkRef { seal, octets: reader.narrow()?, groups: reader.narrow()? });
            }
            head.runs.push(run);
        }
        if head.chunks().count() > MOST_CHUNKS || head.octets() > MOST_OCTETS_READ {
            return Err(Flaw::Malformed("it names more chunks than a ledger can have"));
        }
        for _ in 0..reader.count(CHECKSUM)? {
            head.litter.push(Seal(reader.fixed()?));
        }
        let fresh = &mut head.fresh;
        reader.groups(|hash, body, _| drop(fresh.insert(hash, body.into())))?;
        reader.end()?;
        Ok((head, seal))
    }
}

fn put_groups<'a>(out: &mut Vec<u8>, groups: impl ExactSizeIterator<Item = (u64, &'a [u8])>) {
    put_number(out, groups.len() as u64);
    let mut last = 0;
    for (hash, body) in groups {
        put_number(out, hash - last);
        last = hash;
        out.extend(body);
    }
}

/// A chunk that is to be written.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub(super) name: ChunkRef,
    pub(super) octets: Vec<u8>,
}

/// Divides groups (in ascending order) into chunks of at most `most` octets,
/// but where a single group is larger.
pub(super) fn pack(salt: [u8; 16], nonce: u64, most: usize, groups: &[(u64, &[u8])]) -> Vec<Chunk> {
    let room = most - PREFIX - CHECKSUM - 16 - 8 - 10;
    let mut chunks = Vec::new();
    let (mut first, mut size, mut last) = (0, 0, 0);
    for (at, (hash, body)) in groups.iter().enumerate() {
        let wants = width(hash - last) + body.len();
        if at > first && size + wants > room {
            chunks.push(chunk(salt, nonce, &groups[first..at]));
            (first, size) = (at, width(*hash) + body.len());
        } else {
            size += wants;
        }
        last = *hash;
    }
    if first < groups.len() {
        chunks.push(chunk(salt, nonce, &groups[first..]));
    }
    chunks
}

fn chunk(salt: [u8; 16], nonce: u64, groups: &[(u64, &[u8])]) -> Chunk {
    let format = format_of(groups.iter().map(|(_, body)| *body));
    let mut out = begin(format, b'C', groups.iter().map(|(_, body)| body.len() + 9).sum::<usize>() + 32);
    out.extend(salt);
    out.extend(nonce.to_be_bytes());
    put_groups(&mut out, groups.iter().copied());
    let (octets, seal) = seal(out);
    let narrow = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Chunk { name: ChunkRef { seal, octets: narrow(octets.len()), groups: narrow(groups.len()) }, octets }
}

/// Reads a chunk that the head names so, group by group.
pub(super) fn unpack<'a>(
    octets: &'a [u8],
    name: &ChunkRef,
    salt: [u8; 16],
    each: impl FnMut(u64, &'a [u8], Group),
) -> Result<(), Flaw> {
    let (payload, seal) = open(octets, b'C')?;
    if seal != name.seal || octets.len() != name.octets as usize {
        return Err(Flaw::Malformed("it holds something else than its name says"));
    }
    let mut reader = Reader { rest: payload };
    if reader.fixed()? != salt {
        return Err(Flaw::Malformed("it belongs to another ledger"));
    }
    reader.take(8)?;
    if reader.groups(each)? != name.groups as usize {
        return Err(Flaw::Malformed("it holds another number of UIDs than the head says"));
    }
    reader.end()
}

/// An object with any payload, for tests.
#[cfg(test)]
pub(super) fn sealed(kind: u8, payload: &[u8]) -> (Vec<u8>, Seal) {
    let mut out = begin(FORMAT, kind, payload.len());
    out.extend(payload);
    seal(out)
}

/// With a checksum of its own, for tests.
#[cfg(test)]
pub(super) fn resealed(octets: Vec<u8>) -> (Vec<u8>, Seal) {
    seal(octets)
}
