//! The contents of delivered messages of a unified account, under their
//! Message-IDs. Beside the table of the UIDs, so that nothing that is said of
//! those (what a listing lacks, what all changed at once) can be about them.

use super::table::{Kind, Slot, Table};
use super::{Digest, Entry, State};

/// So many days a copy is recognised.
pub const COPY_DAYS: i32 = 30;
/// Different contents that are remembered under one Message-ID.
pub const MOST_COPIES: usize = 8;

/// See the module.
#[derive(Clone, Default)]
pub(super) struct Copies(Table);

impl Copies {
    pub(super) fn len(&self) -> usize {
        self.0.slots().len()
    }

    pub(super) fn slots(&self) -> &[Slot] {
        self.0.slots()
    }

    pub(super) fn positions(&self, hash: u64) -> impl Iterator<Item = usize> {
        self.0.find(hash)
    }

    /// See [`super::Change::Copy`] and [`super::State::Copy`].
    pub(super) fn remember(&mut self, salt: [u8; 16], message_id: u64, digest: u64, origin: u64, day: i32) {
        if message_id == 0 || digest == 0 {
            return;
        }
        let hash = hash(salt, message_id);
        let (mut known, mut count, mut oldest) = (None, 0, None);
        for at in self.0.find(hash) {
            let slot = &self.0.slots()[at];
            if slot.digest == digest {
                known = Some(at);
            }
            count += 1;
            // By digest, too: the choice must not depend on the order in which
            // they are kept, which no store promises.
            let age = (slot.day, slot.digest, at);
            oldest = Some(oldest.map_or(age, |oldest| age.min(oldest)));
        }
        if let Some(at) = known {
            let slot = self.0.slot_mut(at);
            slot.day = day;
            if origin != 0 {
                slot.set_size(origin);
            }
            return;
        }
        if let Some((_, _, at)) = oldest.filter(|_| count >= MOST_COPIES) {
            self.0.remove(at);
        }
        let mut slot = Slot::new(hash, Kind::Copy, origin);
        (slot.message_id, slot.digest, slot.day) = (message_id, digest, day);
        self.0.push(slot);
    }

    pub(super) fn forget(&mut self, hash: u64) {
        while let Some(at) = self.0.find(hash).next() {
            self.0.remove(at);
        }
    }

    pub(super) fn live(&self, today: i32) -> impl Iterator<Item = &Slot> {
        self.slots().iter().filter(move |slot| is_live(slot, today))
    }

    pub(super) fn is_known(&self, hash: u64, today: i32) -> bool {
        self.0.find(hash).any(|at| is_live(&self.slots()[at], today))
    }

    /// Hashes under which there is nothing but what is too old.
    pub(super) fn outdated(&self, today: i32) -> impl Iterator<Item = u64> {
        let is_outdated = move |at: usize| !is_live(&self.slots()[at], today);
        let slots = self.slots().iter().enumerate();
        slots.filter(move |(at, _)| is_outdated(*at)).filter_map(move |(at, slot)| {
            let is_first = self.0.find(slot.hash).next() == Some(at);
            (is_first && self.0.find(slot.hash).all(is_outdated)).then_some(slot.hash)
        })
    }

    pub(super) fn shrink(&mut self) {
        self.0.shrink();
    }
}

/// What is of a later day than today was written while a clock was wrong, and
/// is no older for that.
fn is_live(slot: &Slot, today: i32) -> bool {
    today.saturating_sub(slot.day) <= COPY_DAYS
}

/// The hash of a Message-ID in a ledger's memory. Derived under the key, so
/// that no server can make up a UID that has it.
pub(super) fn hash(salt: [u8; 16], message_id: u64) -> u64 {
    let mut digest = Digest::new(salt, 0xa5);
    digest.update(&message_id.to_be_bytes());
    digest.finish()
}

pub(super) fn entry(slot: &Slot) -> Entry {
    let (message_id, digest) = (slot.message_id, slot.digest);
    Entry { state: State::Copy, day: slot.day, size: slot.size(), message_id, digest }
}
