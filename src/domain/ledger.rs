//! What is remembered of a maildrop: which UIDs were taken, and how.
//!
//! Pure: stores (`local`, later `k8s`) read and write it, the engine asks it.
//! The shape of the public items is what the engine relies on.

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
    /// Remembers or changes a message. Among entries of an equal UID the one
    /// with equal size and digest is replaced, and else one whose digest is
    /// unknown, and else a further one is added.
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
    /// A complete listing lacked it.
    Missed {
        /// Its keyed hash.
        hash: u64,
        /// Day of the first such listing.
        since: i32,
        /// How many there were; counted to 3.
        listings: u8,
    },
}

/// A record's memory.
#[derive(Clone, Debug, Default)]
pub struct Ledger {}
