//! Equal UIDs for several messages in one listing, which RFC 1939, section 7
//! forbids and some servers do: messages are told apart by size, and where
//! that is not enough by the digest of their octets.

use super::survey::{Action, SurveyPolicy};
use super::{Entry, Ledger, State};

/// Tells the messages of one UID apart.
///
/// First [`Twins::by_size`] once with all of them; then the ones that it says
/// are to be fetched, each handed to [`Twins::by_digest`] when its octets are
/// known. An entry of the ledger speaks for one message only.
#[derive(Clone, Debug)]
pub struct Twins {
    entries: Vec<Known>,
}

#[derive(Clone, Debug)]
struct Known {
    entry: Entry,
    action: Action,
    claimed: bool,
}

/// What the size says of one of several messages with an equal UID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It was taken: there is nothing to do.
    Known,
    /// It is quarantined, or owed, and not due.
    Waiting,
    /// It was taken, and is to be deleted on the server now.
    Delete(Entry),
    /// It must be fetched to know what it is.
    Fetch,
}

/// What the digest says of a message that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Twin {
    /// It was taken in an earlier poll; the action is what the policy says.
    Known(Entry, Action),
    /// It is new. `digest` is what to remember it under.
    New {
        /// See [`Entry::digest`].
        digest: u64,
        /// What is known of an earlier try: quarantined, owed or uncertain.
        prior: Option<Entry>,
    },
    /// The very octets of another message of this UID that was taken already,
    /// and a further message in the maildrop all the same. Remembered under
    /// `digest`, it will not be fetched again.
    Copy {
        /// See [`Entry::digest`].
        digest: u64,
    },
}

impl Twins {
    pub(super) fn new(ledger: &Ledger, hash: u64, policy: &SurveyPolicy) -> Self {
        let known = |entry: Entry| Known { action: policy.action(&entry), entry, claimed: false };
        Self { entries: ledger.entries(hash).map(known).collect() }
    }

    /// What sizes alone tell, for each of `listed` (number and octets by LIST,
    /// 0 for unknown) in its order. Where at most as many messages of a size
    /// are listed as the ledger knows, and it would do the same with all of
    /// them, none is fetched.
    pub fn by_size(&mut self, listed: &[(u32, u64)]) -> Vec<(u32, Told)> {
        let sizes: Vec<u64> = listed.iter().map(|(_, size)| *size).collect();
        let mut told = Vec::with_capacity(listed.len());
        for (number, size) in listed {
            told.push((*number, self.tell(*size, &sizes)));
        }
        told
    }

    fn tell(&mut self, size: u64, sizes: &[u64]) -> Told {
        let there = sizes.iter().filter(|other| **other == size).count();
        let mut alike = self.entries.iter().filter(|known| known.entry.size == size);
        let Some(first) = alike.next().map(|known| known.action) else { return Told::Fetch };
        let mut count = 1;
        for known in alike {
            if known.action != first {
                return Told::Fetch;
            }
            count += 1;
        }
        if size == 0 || there > count {
            return Told::Fetch;
        }
        match first {
            Action::Nothing => Told::Known,
            Action::Wait => Told::Waiting,
            Action::Retry => Told::Fetch,
            Action::Delete => {
                let open = self.entries.iter_mut().find(|known| known.entry.size == size && !known.claimed);
                match open {
                    Some(known) => {
                        known.claimed = true;
                        Told::Delete(known.entry.clone())
                    }
                    None => Told::Fetch,
                }
            }
        }
    }

    /// What a fetched message is, by its size and the digest of its octets.
    /// Each call stands for another message of the listing.
    pub fn by_digest(&mut self, size: u64, digest: u64) -> Twin {
        let mut digest = digest;
        let mut copies = false;
        // Copies of the same octets are remembered under the numbers that
        // follow their digest.
        while let Some(known) = self.entries.iter_mut().find(|known| {
            // What is owed must not be delivered to all again because LIST
            // tells its size differently by now.
            known.entry.digest == digest && (known.entry.is_sized(size) || known.entry.is_owed())
        }) {
            if !known.claimed {
                known.claimed = true;
                return match known.action {
                    Action::Retry => Twin::New { digest, prior: Some(known.entry.clone()) },
                    action => Twin::Known(known.entry.clone(), action),
                };
            }
            copies = true;
            digest = digest.wrapping_add(1).max(1);
        }
        // An earlier try that did not come to an end has no digest. Where it is
        // one that did (a line that a person wrote), nobody can tell which of
        // the messages it was: better one of them twice than one of them lost.
        // As one that is owed to some would be, if it were the wrong one.
        let prior = self.entries.iter_mut().find(|known| {
            let vague = known.entry.digest == 0 && known.entry.is_sized(size);
            vague && !known.claimed && known.action == Action::Retry && !known.entry.is_owed()
        });
        let prior = prior.map(|known| {
            known.claimed = true;
            known.entry.clone()
        });
        let entry = Entry { state: State::Kept, day: 0, size, message_id: 0, digest };
        self.entries.push(Known { entry, action: Action::Nothing, claimed: true });
        if copies { Twin::Copy { digest } } else { Twin::New { digest, prior } }
    }
}

impl Entry {
    /// Whether a message of this size may be the one; 0 is unknown.
    pub(super) fn is_sized(&self, size: u64) -> bool {
        self.size == size || self.size == 0 || size == 0
    }

    fn is_owed(&self) -> bool {
        matches!(self.state, State::Owed { .. })
    }
}
