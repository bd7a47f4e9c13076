//! Copies of one message in a unified maildrop: a provider that stores one for
//! each recipient must not make one for each of each.

use std::collections::{HashMap, HashSet};

use super::super::incoming::{Fetch, Taken};
use crate::domain::ledger::{Change, Ledger, State};

/// What tells messages apart here: Message-ID and copy digest.
pub(super) type Key = (u64, u64);

/// Messages whose copies are recognised: those that the ledger knows, and
/// those that came in this session.
#[derive(Debug)]
pub(in super::super) struct Copies {
    /// By the ledger, each with the origin that it remembers; sorted.
    delivered: Vec<(Key, u64)>,
    here: HashMap<Key, Twin>,
    /// The Message-IDs of `here`.
    ids: HashSet<u64>,
}

/// What is known of a message whose copies may come.
#[derive(Debug)]
enum Twin {
    /// It is with the destination, or about to be; these copies wait for what
    /// becomes of it.
    Undecided(Vec<Taken>),
    /// Somebody has it.
    Reached,
}

/// What a message is to those that came before.
#[derive(Debug)]
pub(super) enum Meeting {
    /// The copy of one that somebody has.
    Copy(Taken),
    /// The copy of one of which that is not certain: it was put with it.
    Waits,
    /// None: its own copies are recognised from now on.
    First(Taken),
}

impl Copies {
    /// With what the ledger knows. `pruning` says what a listing lacks.
    ///
    /// A message that is owed to somebody and has vanished from the server may
    /// have come back under another UID. It is then no copy: better twice for
    /// some than never for others.
    pub(in super::super) fn of(ledger: &Ledger, pruning: &[Change], today: i32) -> Self {
        let mut missing = HashMap::new();
        for change in pruning {
            match change {
                Change::Missed { hash, listings, .. } => missing.insert(*hash, *listings > 0),
                Change::Forget { hash } => missing.insert(*hash, true),
                Change::Put { .. } | Change::Copy { .. } => None,
            };
        }
        let is_missing = |hash| missing.get(&hash).copied().unwrap_or_else(|| ledger.missed(hash).is_some());
        let vanished: HashSet<u64> = ledger
            .iter()
            .filter(|(hash, entry)| matches!(entry.state, State::Owed { .. }) && is_missing(*hash))
            .map(|(_, entry)| entry.message_id)
            .collect();
        let copies = ledger.copies_with_origins(today).filter(|(id, ..)| !vanished.contains(id));
        Self::new(copies.map(|(id, digest, origin)| ((id, digest), origin)))
    }

    fn new(delivered: impl Iterator<Item = (Key, u64)>) -> Self {
        let mut delivered: Vec<(Key, u64)> = delivered.collect();
        delivered.sort_unstable();
        Self { delivered, here: HashMap::new(), ids: HashSet::new() }
    }

    /// Whether a message with this Message-ID may be a copy. One without
    /// (0) never is.
    pub(in super::super) fn knows(&self, message_id: u64) -> bool {
        let at = self.delivered.partition_point(|((id, _), _)| *id < message_id);
        message_id != 0
            && (self.delivered.get(at).is_some_and(|((id, _), _)| *id == message_id)
                || self.ids.contains(&message_id))
    }

    /// Whether the ledger knows a message with this content, and not as
    /// `taken` itself: of that it may know no more, or no more to whom it is
    /// owed, because a person deleted its line.
    fn is_delivered(&self, taken: &Taken, key: Key) -> bool {
        let at = self.delivered.binary_search_by_key(&key, |(key, _)| *key);
        let origin = at.ok().and_then(|at| self.delivered.get(at)).map(|(_, origin)| *origin);
        origin.is_some_and(|origin| origin == 0 || origin != taken.fetch.origin())
    }

    /// Takes a message that has been read whole.
    pub(super) fn meet(&mut self, taken: Taken, digest: u64) -> Meeting {
        let key = (taken.message_id, digest);
        if taken.message_id == 0 {
            return Meeting::First(taken);
        }
        if self.is_delivered(&taken, key) {
            return Meeting::Copy(taken);
        }
        match self.here.get_mut(&key) {
            Some(Twin::Reached) => Meeting::Copy(taken),
            Some(Twin::Undecided(waiting)) => {
                waiting.push(taken);
                Meeting::Waits
            }
            None => {
                self.here.insert(key, Twin::Undecided(Vec::new()));
                self.ids.insert(key.0);
                Meeting::First(taken)
            }
        }
    }

    /// Somebody has the message: the copies that waited, which are done with.
    pub(super) fn reached(&mut self, key: Key) -> Vec<Taken> {
        self.ids.insert(key.0);
        match self.here.insert(key, Twin::Reached) {
            Some(Twin::Undecided(waiting)) => waiting,
            _ => Vec::new(),
        }
    }

    /// Nobody has it, and nothing more is done about it in this session: one
    /// of its copies is to be fetched in its place, and the others wait for
    /// that one.
    pub(super) fn given_up(&mut self, key: Key) -> Option<Fetch> {
        match self.here.get_mut(&key) {
            Some(Twin::Undecided(waiting)) => {
                let heir = waiting.pop();
                if heir.is_none() {
                    self.here.remove(&key);
                }
                heir.map(|taken| taken.fetch)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(number: u32, message_id: u64) -> Taken {
        let fetch = Fetch::new(number, None, 0, None);
        Taken { fetch, octets: 100, message_id, digest: 0 }
    }

    #[test]
    fn the_ledgers_messages_have_copies() {
        let mut copies = Copies::new([((5, 50), 0), ((7, 71), 0), ((7, 70), 9)].into_iter());
        assert!(copies.knows(5) && copies.knows(7) && !copies.knows(6) && !copies.knows(0));
        assert!(matches!(copies.meet(taken(1, 7), 70), Meeting::Copy(_)));
        // Another message with the same Message-ID.
        assert!(matches!(copies.meet(taken(2, 7), 72), Meeting::First(_)));
    }

    #[test]
    fn a_message_is_no_copy_of_itself() {
        let hash = 0x0123_4567_89ab_cdef;
        let mut itself = taken(1, 7);
        (itself.fetch.uid, itself.fetch.hash) = (Some(b"u1".as_slice().into()), hash);
        let mut copies = Copies::new([((7, 70), crate::domain::ledger::origin(hash))].into_iter());
        assert!(matches!(copies.meet(itself, 70), Meeting::First(_)));
        let mut other = taken(2, 7);
        (other.fetch.uid, other.fetch.hash) = (Some(b"u2".as_slice().into()), !hash);
        assert!(matches!(copies.meet(other, 70), Meeting::Copy(_)));
    }

    #[test]
    fn copies_wait_for_the_first_of_them() {
        let mut copies = Copies::new(std::iter::empty());
        assert!(matches!(copies.meet(taken(1, 9), 90), Meeting::First(_)));
        assert!(copies.knows(9));
        assert!(matches!(copies.meet(taken(2, 9), 90), Meeting::Waits));
        assert!(matches!(copies.meet(taken(3, 9), 91), Meeting::First(_)));
        let waited = copies.reached((9, 90));
        assert_eq!(waited.iter().map(|taken| taken.fetch.number).collect::<Vec<_>>(), [2]);
        assert!(matches!(copies.meet(taken(4, 9), 90), Meeting::Copy(_)));
    }

    #[test]
    fn a_copy_takes_the_place_of_one_that_nobody_got() {
        let mut copies = Copies::new(std::iter::empty());
        for number in 1..4 {
            copies.meet(taken(number, 9), 90);
        }
        let heir = copies.given_up((9, 90)).unwrap();
        assert!(matches!(copies.meet(taken(4, 9), 90), Meeting::Waits), "the heir is undecided");
        assert_eq!(copies.reached((9, 90)).len(), 2);
        assert!((2..4).contains(&heir.number));

        copies.meet(taken(1, 8), 80);
        assert!(copies.given_up((8, 80)).is_none());
        assert!(matches!(copies.meet(taken(2, 8), 80), Meeting::First(_)), "it is tried on its own");
    }

    #[test]
    fn without_a_message_id_there_are_no_copies() {
        let mut copies = Copies::new(std::iter::empty());
        for number in 1..4 {
            assert!(matches!(copies.meet(taken(number, 0), 90), Meeting::First(_)));
        }
    }
}
