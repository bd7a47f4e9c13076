//! The table behind a ledger: slots in the order in which they came, found by
//! hash. A listing comes in much the same order, so that lookups walk forward
//! through memory.

/// The kinds of [`super::State`], without what only a few entries have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Kept,
    Deleting,
    Uncertain,
    Quarantined,
    Owed,
    /// In a table of their own, see [`super::copies`].
    Copy,
}

/// One entry in 40 octets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) hash: u64,
    pub(super) message_id: u64,
    pub(super) digest: u64,
    /// Octets in the upper 56 bits, listings that lacked it (0 to 3) in bits
    /// 3 and 4, the kind in bits 0 to 2.
    packed: u64,
    pub(super) day: i32,
    /// The day of the first listing without it; 0 unless one lacked it.
    pub(super) since: i32,
}

/// Larger sizes are remembered as this one: a limit of the packing, far above
/// any message.
pub(super) const MOST_OCTETS: u64 = u64::MAX >> 8;

impl Slot {
    pub(super) fn new(hash: u64, kind: Kind, size: u64) -> Self {
        let mut slot = Self { hash, message_id: 0, digest: 0, packed: 0, day: 0, since: 0 };
        slot.packed = match kind {
            Kind::Kept => 0,
            Kind::Deleting => 1,
            Kind::Uncertain => 2,
            Kind::Quarantined => 3,
            Kind::Owed => 4,
            Kind::Copy => 5,
        };
        slot.set_size(size);
        slot
    }

    pub(super) fn kind(&self) -> Kind {
        match self.packed & 7 {
            0 => Kind::Kept,
            1 => Kind::Deleting,
            2 => Kind::Uncertain,
            3 => Kind::Quarantined,
            4 => Kind::Owed,
            _ => Kind::Copy,
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.packed >> 8
    }

    pub(super) fn set_size(&mut self, size: u64) {
        self.packed = (self.packed & 0xff) | (size.min(MOST_OCTETS) << 8);
    }

    /// Listings in a row that lacked it, counted to 3.
    pub(super) fn missed(&self) -> u8 {
        ((self.packed >> 3) & 3) as u8
    }

    pub(super) fn miss(&mut self, since: i32, listings: u8) {
        self.packed = (self.packed & !0b1_1000) | (u64::from(listings.min(3)) << 3);
        self.since = if listings == 0 { 0 } else { since };
    }
}

const FREE: u32 = u32::MAX;

/// Open addressing with linear probing over a vector of slots. The hashes are
/// keyed, so that nobody who does not know the salt can make them collide.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    slots: Vec<Slot>,
    /// A power of two long, at most three quarters taken; empty at first.
    index: Vec<u32>,
}

impl Table {
    pub(super) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(super) fn slot_mut(&mut self, at: usize) -> &mut Slot {
        &mut self.slots[at]
    }

    /// Positions of the slots with this hash, oldest probe first.
    pub(super) fn find(&self, hash: u64) -> Find<'_> {
        let place = self.home(hash);
        Find { table: self, hash, place }
    }

    /// Adds a slot behind the others, and says where.
    pub(super) fn push(&mut self, slot: Slot) -> usize {
        if (self.slots.len() + 1) * 4 > self.index.len() * 3 {
            self.grow();
        }
        let at = self.slots.len();
        self.slots.push(slot);
        self.enter(slot.hash, at);
        at
    }

    /// Takes a slot out; the last one moves to its position.
    pub(super) fn remove(&mut self, at: usize) -> Slot {
        let mask = self.index.len() - 1;
        let mut hole = self.place_of(at);
        // Closes the gap, so that no probe ends too soon.
        let mut next = (hole + 1) & mask;
        while self.index[next] != FREE {
            let wanted = self.home(self.slots[self.index[next] as usize].hash);
            if (next.wrapping_sub(wanted) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.index[hole] = self.index[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.index[hole] = FREE;
        let last = self.slots.len() - 1;
        if at != last {
            let place = self.place_of(last);
            self.index[place] = narrow(at);
        }
        self.slots.swap_remove(at)
    }

    /// Gives back what growth has set aside.
    pub(super) fn shrink(&mut self) {
        self.slots.shrink_to_fit();
    }

    fn place_of(&self, at: usize) -> usize {
        let mask = self.index.len() - 1;
        let mut place = self.home(self.slots[at].hash);
        while self.index[place] != narrow(at) {
            place = (place + 1) & mask;
        }
        place
    }

    fn home(&self, hash: u64) -> usize {
        // The hash is uniform: its low bits serve as well as any.
        #[allow(clippy::cast_possible_truncation)]
        let low = hash as usize;
        low & self.index.len().saturating_sub(1)
    }

    fn enter(&mut self, hash: u64, at: usize) {
        let mask = self.index.len() - 1;
        let mut place = self.home(hash);
        while self.index[place] != FREE {
            place = (place + 1) & mask;
        }
        self.index[place] = narrow(at);
    }

    fn grow(&mut self) {
        let wanted = (self.index.len() * 2).max(8);
        self.index.clear();
        self.index.resize(wanted, FREE);
        for at in 0..self.slots.len() {
            self.enter(self.slots[at].hash, at);
        }
    }
}

/// Positions fit 32 bits: stores bound the entries of a ledger far below.
fn narrow(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(FREE - 1)
}

/// See [`Table::find`].
pub(super) struct Find<'a> {
    table: &'a Table,
    hash: u64,
    place: usize,
}

impl Iterator for Find<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let mask = self.table.index.len().checked_sub(1)?;
        loop {
            let at = *self.table.index.get(self.place)?;
            if at == FREE {
                return None;
            }
            self.place = (self.place + 1) & mask;
            if self.table.slots[at as usize].hash == self.hash {
                return Some(at as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slot_is_40_octets() {
        assert_eq!(size_of::<Slot>(), 40);
    }

    proptest! {
        /// Few distinct hashes with equal low bits: probes run into each other.
        #[test]
        fn finds_what_a_multimap_would(steps in prop::collection::vec((0u64..24, prop::bool::weighted(0.6)), 0..400)) {
            let mut table = Table::default();
            let mut model: HashMap<u64, Vec<u64>> = HashMap::new();
            for (number, (key, add)) in steps.into_iter().enumerate() {
                let hash = (key % 6) * 0x1_0000_0000 + key / 6;
                if add {
                    let size = number as u64;
                    table.push(Slot::new(hash, Kind::Kept, size));
                    model.entry(hash).or_default().push(size);
                } else if let Some(at) = table.find(hash).next() {
                    let gone = table.remove(at);
                    model.get_mut(&hash).unwrap().retain(|size| *size != gone.size());
                } else {
                    prop_assert!(model.get(&hash).is_none_or(Vec::is_empty));
                }
            }
            for (hash, sizes) in &model {
                let mut found: Vec<u64> = table.find(*hash).map(|at| table.slots()[at].size()).collect();
                let mut wanted = sizes.clone();
                found.sort_unstable();
                wanted.sort_unstable();
                prop_assert_eq!(found, wanted);
            }
            prop_assert_eq!(table.slots().len(), model.values().map(Vec::len).sum::<usize>());
        }
    }

    #[test]
    fn size_kind_and_misses_do_not_disturb_each_other() {
        let kinds = [Kind::Kept, Kind::Deleting, Kind::Uncertain, Kind::Quarantined, Kind::Owed, Kind::Copy];
        for kind in kinds {
            let mut slot = Slot::new(1, kind, u64::MAX);
            slot.miss(7, 9);
            assert_eq!((slot.kind(), slot.size(), slot.missed(), slot.since), (kind, MOST_OCTETS, 3, 7));
            slot.miss(7, 0);
            assert_eq!((slot.kind(), slot.size(), slot.missed(), slot.since), (kind, MOST_OCTETS, 0, 0));
        }
    }
}
