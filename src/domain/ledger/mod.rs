//! What is remembered of a maildrop: which UIDs were taken, and how.
//!
//! Pure: stores (`local`, later `k8s`) read and write it, the engine asks it.
//!
//! ```text
//!   UIDL lines --> Survey --> Findings: unseen, delete, pruning
//!                    |
//!    LedgerStore --> Ledger <-- Change (durable first, then applied)
//! ```
//!
//! UIDs are kept as 64-bit hashes under a key of the ledger's own (its salt):
//! with 100 000 of them the odds that two share one are below 1 in 10^9, and
//! nobody who does not know the salt can make them do so.

mod survey;
mod table;
mod twins;

use std::collections::HashMap;
use std::fmt;
use std::hash::Hasher as _;

use siphasher::sip::{SipHasher13, SipHasher24};

pub use survey::{Action, Candidate, Deletion, Findings, Survey, SurveyPolicy};
use table::{Kind, Slot, Table};
pub use twins::{Told, Twin, Twins};

/// The state of a UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Accepted by the destination and left on the server on purpose.
    Kept,
    /// Accepted (or discarded); the server is to delete it, or was told to and
    /// has not been seen without it yet.
    Deleting,
    /// The destination's answer never came: it is tried once more.
    Uncertain,
    /// Refused or unreadable: set aside and tried again at `next_try`.
    Quarantined {
        /// Tries so far, at least 1.
        attempts: u16,
        /// Unix seconds.
        next_try: i64,
        /// One line for people, without control characters, at most 200 octets.
        reason: Box<str>,
    },
}

/// What is remembered of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// See [`State`].
    pub state: State,
    /// The day it was taken: days since 1970-01-01 UTC.
    pub day: i32,
    /// Octets by LIST, 0 where unknown.
    pub size: u64,
    /// Keyed hash of its Message-ID, 0 where it has none.
    pub message_id: u64,
    /// Keyed hash of its octets, 0 where unknown.
    pub digest: u64,
}

/// One step of a ledger; stores make it durable, then apply it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Remembers or changes a message, and clears what [`Change::Missed`] said
    /// of its UID. Among entries of an equal UID the one with equal size and
    /// digest is replaced, and else one whose digest is unknown, and else a
    /// further one is added. Sizes that are both known must be equal.
    Put {
        /// As listed.
        uid: Box<[u8]>,
        /// What is known.
        entry: Entry,
    },
    /// Forgets all entries of a UID, after the pruning rule.
    Forget {
        /// Its keyed hash.
        hash: u64,
    },
    /// Complete listings lacked it; with `listings` 0: it is there again.
    Missed {
        /// Its keyed hash.
        hash: u64,
        /// Day of the first such listing.
        since: i32,
        /// How many there were in a row; counted to 3.
        listings: u8,
    },
}

/// A record's memory. An entry takes 40 octets and its share of an index:
/// about 50 in all.
#[derive(Clone, Default)]
pub struct Ledger {
    salt: [u8; 16],
    table: Table,
    details: HashMap<Identity, Detail>,
    kept: usize,
    mark: Mark,
}

/// Where in its store a ledger was read or last written: for stores alone.
/// They use it as the fence against other writers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Which object it is (an inode), 0 where there is none yet.
    pub object: u64,
    /// Its version: a time of modification, a resource version.
    pub version: u64,
    /// Octets that are known to be good.
    pub length: u64,
    /// Lines, or whatever else shows how much of it is dead.
    pub lines: u64,
}

/// What tells entries apart: hash, size, digest.
type Identity = (u64, u64, u64);

/// What only quarantined entries have.
#[derive(Clone, Debug)]
struct Detail {
    attempts: u16,
    next_try: i64,
    reason: Box<str>,
}

impl Ledger {
    /// An empty ledger. `salt` is 16 octets of randomness; it stays the same
    /// for the ledger's life.
    pub fn new(salt: [u8; 16]) -> Self {
        Self { salt, ..Self::default() }
    }

    /// The key of its hashes.
    pub fn salt(&self) -> [u8; 16] {
        self.salt
    }

    /// The keyed hash of a UID.
    pub fn hash(&self, uid: &[u8]) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.salt);
        hasher.write(uid);
        hasher.finish()
    }

    /// A keyed hasher for a message's octets ([`Entry::digest`]).
    pub fn digest(&self) -> Digest {
        Digest::new(self.salt, 0x5c)
    }

    /// The keyed hash of a Message-ID ([`Entry::message_id`]); never 0.
    pub fn message_id(&self, id: &[u8]) -> u64 {
        let mut digest = Digest::new(self.salt, 0x36);
        digest.update(id);
        digest.finish()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.table.slots().len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many entries are [`State::Kept`].
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// The entries of a UID; more than one only where a server listed it for
    /// several messages at once.
    pub fn entries(&self, hash: u64) -> impl Iterator<Item = Entry> {
        self.table.find(hash).map(|at| self.entry(at))
    }

    /// All entries with their hashes, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Entry)> {
        self.table.slots().iter().enumerate().map(|(at, slot)| (slot.hash, self.entry(at)))
    }

    /// Since when and how often complete listings lacked a UID: the day of the
    /// first one and their number (1 to 3).
    pub fn missed(&self, hash: u64) -> Option<(i32, u8)> {
        let slot = self.table.slots()[self.table.find(hash).next()?];
        (slot.missed() > 0).then_some((slot.since, slot.missed()))
    }

    /// Applies one change. Stores call it once the change is durable.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Put { uid, entry } => {
                self.put(self.hash(uid), entry);
            }
            Change::Forget { hash } => self.forget(*hash),
            Change::Missed { hash, since, listings } => self.miss(*hash, *since, *listings),
        }
    }

    /// Like [`Change::Put`] with the hash in place of the UID. The position at
    /// which the entry now is stays valid until something is forgotten; it is
    /// for stores that copy live entries.
    pub(crate) fn put(&mut self, hash: u64, entry: &Entry) -> usize {
        let (kind, detail) = match &entry.state {
            State::Kept => (Kind::Kept, None),
            State::Deleting => (Kind::Deleting, None),
            State::Uncertain => (Kind::Uncertain, None),
            State::Quarantined { attempts, next_try, reason } => (
                Kind::Quarantined,
                Some(Detail { attempts: *attempts, next_try: *next_try, reason: reason.clone() }),
            ),
        };
        let mut slot = Slot::new(hash, kind, entry.size);
        (slot.day, slot.message_id, slot.digest) = (entry.day, entry.message_id, entry.digest);
        let at = match self.replaced_by(&slot) {
            None if self.table.find(hash).next().is_none() => self.table.push(slot),
            None => {
                self.miss(hash, 0, 0);
                self.table.push(slot)
            }
            Some(at) => {
                self.miss(hash, 0, 0);
                let old = *self.table.slot_mut(at);
                self.account_for_loss_of(&old);
                if entry.size == 0 {
                    slot.set_size(old.size());
                }
                *self.table.slot_mut(at) = slot;
                at
            }
        };
        self.kept += usize::from(kind == Kind::Kept);
        if let Some(detail) = detail {
            self.details.insert(identity(&slot), detail);
        }
        at
    }

    /// The entry whose place a new one takes. The choice must not depend on
    /// the order in which entries came, or a ledger would not read back from
    /// its store as it was; that is also why an unknown size (0) takes on the
    /// one that it meets.
    fn replaced_by(&self, new: &Slot) -> Option<usize> {
        let rank = |at: &usize| {
            let old = &self.table.slots()[*at];
            let same_size = old.size() == new.size();
            let either_unsized = old.size() == 0 || new.size() == 0;
            let rank = match (old.digest != 0 && old.digest == new.digest, old.digest == 0) {
                (true, _) if same_size => 0,
                (true, _) if either_unsized => 1,
                (_, true) if same_size => 2,
                (_, true) if either_unsized => 3,
                _ => return None,
            };
            Some((rank, old.size()))
        };
        let ranked = self.table.find(new.hash).filter_map(|at| rank(&at).map(|rank| (rank, at)));
        ranked.min().map(|(_, at)| at)
    }

    fn forget(&mut self, hash: u64) {
        while let Some(at) = self.table.find(hash).next() {
            let gone = self.table.remove(at);
            self.account_for_loss_of(&gone);
        }
    }

    fn account_for_loss_of(&mut self, slot: &Slot) {
        match slot.kind() {
            Kind::Kept => self.kept -= 1,
            Kind::Quarantined => {
                self.details.remove(&identity(slot));
            }
            Kind::Deleting | Kind::Uncertain => {}
        }
    }

    fn miss(&mut self, hash: u64, since: i32, listings: u8) {
        let mut next = self.table.find(hash).next();
        let mut seen = 0;
        while let Some(at) = next {
            self.table.slot_mut(at).miss(since, listings);
            seen += 1;
            next = self.table.find(hash).nth(seen);
        }
    }

    /// Starts to hold a listing against the ledger.
    pub fn survey(&self, policy: SurveyPolicy) -> Survey<'_> {
        Survey::new(self, policy)
    }

    /// For messages of one UID in one listing that are to be told apart.
    /// `sure`: what is being deleted cannot be gone yet.
    pub fn twins(&self, hash: u64, policy: &SurveyPolicy, sure: bool) -> Twins {
        Twins::new(self, hash, policy, sure)
    }

    /// The store's mark.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// For the store that has read or written it.
    pub fn set_mark(&mut self, mark: Mark) {
        self.mark = mark;
    }

    /// Gives back memory that growth has set aside: for stores, after reading.
    pub fn shrink(&mut self) {
        self.table.shrink();
        self.details.shrink_to_fit();
    }

    /// The positions of a UID's entries, those whose digest is known first:
    /// put in this order they do not replace each other.
    pub(crate) fn positions(&self, hash: u64) -> impl Iterator<Item = usize> {
        let known = move |at: &usize| self.table.slots()[*at].digest != 0;
        let unknown = move |at: &usize| self.table.slots()[*at].digest == 0;
        self.table.find(hash).filter(known).chain(self.table.find(hash).filter(unknown))
    }

    /// The entry at a position.
    pub(crate) fn entry(&self, at: usize) -> Entry {
        let slot = &self.table.slots()[at];
        let state = match slot.kind() {
            Kind::Kept => State::Kept,
            Kind::Deleting => State::Deleting,
            Kind::Uncertain => State::Uncertain,
            Kind::Quarantined => {
                let detail = self.details.get(&identity(slot));
                State::Quarantined {
                    attempts: detail.map_or(1, |detail| detail.attempts),
                    next_try: detail.map_or(0, |detail| detail.next_try),
                    reason: detail.map(|detail| detail.reason.clone()).unwrap_or_default(),
                }
            }
        };
        Entry { state, day: slot.day, size: slot.size(), message_id: slot.message_id, digest: slot.digest }
    }

    /// When the quarantined entry at a position is to be tried again.
    fn next_try(&self, at: usize) -> i64 {
        self.details.get(&identity(&self.table.slots()[at])).map_or(0, |detail| detail.next_try)
    }
}

fn identity(slot: &Slot) -> Identity {
    (slot.hash, slot.size(), slot.digest)
}

/// Numbers only: UIDs are nobody's business in a log, and there are many.
impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger")
            .field("entries", &self.len())
            .field("kept", &self.kept)
            .field("quarantined", &self.details.len())
            .finish_non_exhaustive()
    }
}

/// A keyed hasher over octets that come in parts; where they are divided does
/// not matter.
#[derive(Clone)]
pub struct Digest(SipHasher13);

impl Digest {
    /// `purpose` keeps a digest from being mistaken for a hash of a UID.
    fn new(mut key: [u8; 16], purpose: u8) -> Self {
        for octet in &mut key {
            *octet ^= purpose;
        }
        Self(SipHasher13::new_with_key(&key))
    }

    /// Takes more octets.
    pub fn update(&mut self, octets: &[u8]) {
        self.0.write(octets);
    }

    /// The digest; never 0, which stands for "unknown".
    pub fn finish(&self) -> u64 {
        self.0.finish().max(1)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(..)")
    }
}

/// The day of a time in Unix seconds: days since 1970-01-01 UTC.
pub fn day_of(unix: i64) -> i32 {
    i32::try_from(unix.div_euclid(86_400)).unwrap_or(if unix < 0 { i32::MIN } else { i32::MAX })
}

#[cfg(test)]
mod tests;
