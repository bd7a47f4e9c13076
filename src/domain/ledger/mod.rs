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
//!
//! Beside the UIDs stand the contents of delivered messages of a unified
//! account, under their Message-IDs: no listing says anything of these, see
//! [`State::Copy`].

mod copies;
mod survey;
mod table;
mod twins;

use std::collections::HashMap;
use std::fmt;
use std::hash::Hasher as _;

use siphasher::sip::{SipHasher13, SipHasher24};

use super::envelope::Mailbox;
use copies::Copies;
pub use copies::{COPY_DAYS, MOST_COPIES};
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
    /// Some recipients of the message are settled (accepted, or refused for
    /// good), others are still owed: fetched again at `next_try` for these
    /// alone.
    Owed {
        /// Tries so far, at least 1.
        attempts: u16,
        /// Unix seconds.
        next_try: i64,
        /// As for [`State::Quarantined`].
        reason: Box<str>,
        /// Keyed hashes of the recipients still owed ([`Ledger::recipient`]):
        /// sorted, distinct, 1 to [`MOST_OWED`].
        to: Box<[u64]>,
        /// Somebody has accepted it.
        reached: bool,
    },
    /// A delivered message of a unified account, under its Message-ID and not
    /// under a UID: for recognising copies. See [`Change::Copy`]. In place of
    /// the size there is its [`origin`], or 0: the message itself is no copy.
    Copy,
}

/// Recipients that one message can be owed to.
pub const MOST_OWED: usize = 1000;

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
    ///
    /// With [`State::Copy`] it is a [`Change::Copy`] of what the entry says,
    /// whatever the UID.
    Put {
        /// As listed.
        uid: Box<[u8]>,
        /// What is known.
        entry: Entry,
    },
    /// Forgets all entries of a UID, after the pruning rule, or all copies
    /// under a Message-ID.
    Forget {
        /// Its keyed hash; for copies see [`Ledger::iter`].
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
    /// Remembers the content of a delivered message under its Message-ID, for
    /// [`COPY_DAYS`]. One that is known gets the new day. There are at most
    /// [`MOST_COPIES`] under one Message-ID: a further one takes the place of
    /// the oldest. Nothing is remembered where either number is 0.
    Copy {
        /// [`Ledger::message_id`].
        message_id: u64,
        /// The copy digest.
        digest: u64,
        /// The day it was delivered, or seen again: days since 1970-01-01 UTC.
        day: i32,
    },
}

/// A record's memory. An entry takes 40 octets and its share of an index:
/// about 50 in all.
#[derive(Clone, Default)]
pub struct Ledger {
    salt: [u8; 16],
    table: Table,
    details: HashMap<Identity, Detail>,
    copies: Copies,
    kept: usize,
    /// Recipients owed, of all entries together.
    owed: usize,
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

/// What only quarantined and owed entries have.
#[derive(Clone, Debug)]
struct Detail {
    attempts: u16,
    next_try: i64,
    reason: Box<str>,
    /// None for quarantined ones.
    to: Box<[u64]>,
    reached: bool,
}

impl Change {
    /// Why no store can take it: what it owes is nobody's, or too many's.
    pub(crate) fn flaw(&self) -> Option<String> {
        match self {
            Self::Put { entry: Entry { state: State::Owed { to, .. }, .. }, .. }
                if to.is_empty() || to.len() > MOST_OWED =>
            {
                Some(format!("a message is owed to 1 to {MOST_OWED} recipients, not to {}", to.len()))
            }
            _ => None,
        }
    }

    /// By how much it makes a ledger grow at most, as [`Ledger::weight`] counts.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::Put { entry: Entry { state: State::Owed { to, .. }, .. }, .. } => 1 + to.len() / 4,
            Self::Put { .. } | Self::Copy { .. } => 1,
            Self::Forget { .. } | Self::Missed { .. } => 0,
        }
    }
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

    /// The keyed hash of a recipient ([`State::Owed`]); never 0. The case of
    /// the domain does not matter, that of the local part does.
    pub fn recipient(&self, address: &Mailbox) -> u64 {
        let mut digest = Digest::new(self.salt, 0x6a);
        // No domain has an @.
        digest.update(address.local().as_bytes());
        digest.update(b"@");
        digest.update(address.domain().to_lowercase().as_bytes());
        digest.finish()
    }

    /// How many entries there are, copies included.
    pub fn len(&self) -> usize {
        self.table.slots().len() + self.copies.len()
    }

    /// How much there is to hold and to write, in entries: recipients owed are
    /// reckoned at four to one. Stores bound it.
    pub fn weight(&self) -> usize {
        self.len() + self.owed / 4
    }

    /// What its weight is made of, for people.
    pub(crate) fn contents(&self) -> String {
        let messages = format!("{} messages", self.table.slots().len());
        let owed = (self.owed > 0).then(|| format!(", {} recipients owed", self.owed));
        let copies = self.copies.len();
        let copies = (copies > 0).then(|| format!(", {copies} digests of the last {COPY_DAYS} days"));
        messages + &owed.unwrap_or_default() + &copies.unwrap_or_default()
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
    /// several messages at once. Never a copy.
    pub fn entries(&self, hash: u64) -> impl Iterator<Item = Entry> {
        self.table.find(hash).map(|at| self.entry(at))
    }

    /// All entries with their hashes, in no order that means anything: first
    /// those of UIDs, then copies, whose hashes are derived from their
    /// Message-IDs so that no UID has them.
    pub fn iter(&self) -> impl Iterator<Item = (u64, Entry)> {
        let uids = self.table.slots().iter().enumerate().map(|(at, slot)| (slot.hash, self.entry(at)));
        uids.chain(self.copies.slots().iter().map(|slot| (slot.hash, copies::entry(slot))))
    }

    /// Message-ID and digest of all copies of the last [`COPY_DAYS`].
    pub fn copies(&self, today: i32) -> impl Iterator<Item = (u64, u64)> {
        self.copies.live(today).map(|slot| (slot.message_id, slot.digest))
    }

    /// These, each with the [`origin`] of the message that was delivered.
    pub fn copies_with_origins(&self, today: i32) -> impl Iterator<Item = (u64, u64, u64)> {
        self.copies.live(today).map(|slot| (slot.message_id, slot.digest, slot.size()))
    }

    /// How many copies there are, whatever their age.
    pub fn copies_len(&self) -> usize {
        self.copies.len()
    }

    /// What forgets the copies that are older than [`COPY_DAYS`]: a Message-ID
    /// is forgotten with the last of its own. A survey's pruning holds it
    /// already; this is for polls that have no listing.
    pub fn outdated_copies(&self, today: i32) -> impl Iterator<Item = Change> {
        self.copies.outdated(today).map(|hash| Change::Forget { hash })
    }

    /// Whether a copy under this hash ([`Ledger::iter`]) counts today.
    pub fn has_copy(&self, hash: u64, today: i32) -> bool {
        self.copies.is_known(hash, today)
    }

    /// Whether there is an entry under this hash, of a UID or a copy.
    pub(crate) fn knows(&self, hash: u64) -> bool {
        self.table.find(hash).next().is_some() || self.copies.positions(hash).next().is_some()
    }

    /// The hash that a change is about.
    pub(crate) fn hash_of(&self, change: &Change) -> u64 {
        match change {
            Change::Put { entry: Entry { state: State::Copy, message_id, .. }, .. }
            | Change::Copy { message_id, .. } => copies::hash(self.salt, *message_id),
            Change::Put { uid, .. } => self.hash(uid),
            Change::Forget { hash } | Change::Missed { hash, .. } => *hash,
        }
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
            Change::Copy { message_id, digest, day } => {
                self.copies.remember(self.salt, *message_id, *digest, 0, *day);
            }
        }
    }

    /// Like [`Change::Put`] with the hash in place of the UID; for stores.
    pub(crate) fn put(&mut self, hash: u64, entry: &Entry) {
        let (kind, detail) = match &entry.state {
            State::Kept => (Kind::Kept, None),
            State::Deleting => (Kind::Deleting, None),
            State::Uncertain => (Kind::Uncertain, None),
            State::Quarantined { attempts, next_try, reason } => {
                let (next_try, reason) = (*next_try, reason.clone());
                let (to, reached) = (Box::default(), false);
                (Kind::Quarantined, Some(Detail { attempts: *attempts, next_try, reason, to, reached }))
            }
            State::Owed { attempts, next_try, reason, to, reached } => {
                let (next_try, reason, reached) = (*next_try, reason.clone(), *reached);
                let to = sorted(to);
                (Kind::Owed, Some(Detail { attempts: *attempts, next_try, reason, to, reached }))
            }
            State::Copy => {
                let Entry { message_id, digest, size: origin, day, .. } = *entry;
                return self.copies.remember(self.salt, message_id, digest, origin, day);
            }
        };
        let mut slot = Slot::new(hash, kind, entry.size);
        (slot.day, slot.message_id, slot.digest) = (entry.day, entry.message_id, entry.digest);
        match self.replaced_by(&slot) {
            None => {
                self.miss(hash, 0, 0);
                self.table.push(slot);
            }
            Some(at) => {
                self.miss(hash, 0, 0);
                let old = *self.table.slot_mut(at);
                self.account_for_loss_of(&old);
                if entry.size == 0 {
                    slot.set_size(old.size());
                }
                *self.table.slot_mut(at) = slot;
            }
        }
        self.kept += usize::from(kind == Kind::Kept);
        if let Some(detail) = detail {
            self.owed += detail.to.len();
            self.details.insert(identity(&slot), detail);
        }
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
        self.copies.forget(hash);
    }

    fn account_for_loss_of(&mut self, slot: &Slot) {
        match slot.kind() {
            Kind::Kept => self.kept -= 1,
            Kind::Quarantined | Kind::Owed => {
                let detail = self.details.remove(&identity(slot));
                self.owed -= detail.map_or(0, |detail| detail.to.len());
            }
            Kind::Deleting | Kind::Uncertain | Kind::Copy => {}
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
        self.copies.shrink();
        self.details.shrink_to_fit();
    }

    /// The positions of a UID's entries, those whose digest is known first:
    /// put in this order they do not replace each other.
    pub(crate) fn positions(&self, hash: u64) -> impl Iterator<Item = usize> {
        let known = move |at: &usize| self.table.slots()[*at].digest != 0;
        let unknown = move |at: &usize| self.table.slots()[*at].digest == 0;
        self.table.find(hash).filter(known).chain(self.table.find(hash).filter(unknown))
    }

    /// The positions of the copies under a hash; they are behind those of all
    /// UIDs, and below [`Self::len`].
    pub(crate) fn copy_positions(&self, hash: u64) -> impl Iterator<Item = usize> {
        let first = self.table.slots().len();
        self.copies.positions(hash).map(move |at| first + at)
    }

    /// The entry at a position, which is valid until the ledger changes.
    pub(crate) fn entry(&self, at: usize) -> Entry {
        let uids = self.table.slots();
        let Some(slot) = uids.get(at) else { return copies::entry(&self.copies.slots()[at - uids.len()]) };
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
            Kind::Owed => {
                let detail = self.details.get(&identity(slot));
                State::Owed {
                    attempts: detail.map_or(1, |detail| detail.attempts),
                    next_try: detail.map_or(0, |detail| detail.next_try),
                    reason: detail.map(|detail| detail.reason.clone()).unwrap_or_default(),
                    to: detail.map(|detail| detail.to.clone()).unwrap_or_default(),
                    reached: detail.is_some_and(|detail| detail.reached),
                }
            }
            Kind::Copy => State::Copy,
        };
        Entry { state, day: slot.day, size: slot.size(), message_id: slot.message_id, digest: slot.digest }
    }

    /// When the quarantined or owed entry at a position is to be tried again.
    fn next_try(&self, at: usize) -> i64 {
        self.details.get(&identity(&self.table.slots()[at])).map_or(0, |detail| detail.next_try)
    }
}

/// What a copy remembers of the hash of its message's UID: as much as fits.
pub fn origin(hash: u64) -> u64 {
    hash >> 8
}

/// In ascending order, each once.
fn sorted(hashes: &[u64]) -> Box<[u64]> {
    let mut hashes = hashes.to_vec();
    hashes.sort_unstable();
    hashes.dedup();
    hashes.into()
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
            .field("copies", &self.copies.len())
            .field("set_aside", &self.details.len())
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
