//! The records of a shard to its slices: whatever changes rewrites as few
//! slices as can be, one where one is enough.

use std::collections::{HashMap, HashSet};

/// Items of a slice at most.
pub const MOST_ITEMS: usize = 256;
/// Octets of a slice at most, its destinations among them.
pub const MOST_BYTES: usize = 128 * 1024;
/// Octets up to which items are added: the rest is for items that grow.
const FULL: usize = MOST_BYTES - MOST_BYTES / 8;
/// Octets of a slice without items.
const EMPTY: usize = 1024;

/// An item that a slice has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which record.
    pub record: u32,
    /// What it says.
    pub digest: u64,
}

/// A slice as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Its items.
    pub items: Vec<Held>,
    /// Places that must stay empty: of records taken out whose sessions may
    /// still be open, for these are listed in it.
    pub reserved: usize,
}

/// A record that is to be in one of the slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub record: u32,
    /// What its item is to say.
    pub digest: u64,
    /// Octets of the item.
    pub bytes: u32,
    /// Its destination, which a slice holds once.
    pub destination: u64,
    /// Octets of the destination.
    pub destination_bytes: u32,
}

/// A slice to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Its number; beyond those that are there: to be created.
    pub slice: usize,
    /// Its records from now on.
    pub records: Vec<u32>,
}

/// The slices to be written next, so that the shard comes to hold what is
/// `wanted`. A slice that gives a record to another one is written only when
/// the other one has it: ask again after these are written, until there is
/// nothing to do. Meanwhile a record may be in two slices, never in none.
pub fn pack(slices: &[Slice], wanted: &[Wanted]) -> Vec<Rewrite> {
    let by_record: HashMap<u32, &Wanted> = wanted.iter().map(|item| (item.record, item)).collect();
    let mut held: HashMap<u32, usize> = HashMap::with_capacity(wanted.len());
    // Of two places the first one counts, but not one that must give.
    let mut givers = Vec::new();
    for (n, slice) in slices.iter().enumerate() {
        if Draft::of(slice, |record| by_record.get(&record).copied()).overflows() {
            givers.push(n);
            continue;
        }
        for item in slice.items.iter().filter(|item| by_record.contains_key(&item.record)) {
            held.entry(item.record).or_insert(n);
        }
    }
    for n in givers {
        for item in slices[n].items.iter().filter(|item| by_record.contains_key(&item.record)) {
            held.entry(item.record).or_insert(n);
        }
    }
    let mut drafts: Vec<Draft> = slices
        .iter()
        .enumerate()
        .map(|(n, slice)| {
            Draft::of(slice, |record| (held.get(&record) == Some(&n)).then(|| by_record[&record]))
        })
        .collect();

    let mut homeless: Vec<&Wanted> = Vec::new();
    for draft in &mut drafts {
        homeless.extend(draft.evict());
    }
    if homeless.is_empty() {
        empty_last(&mut drafts);
    }
    homeless.extend(wanted.iter().filter(|item| !held.contains_key(&item.record)));
    for item in homeless {
        let open = |draft: &Draft| !draft.gives && draft.takes(item);
        let place = drafts
            .iter()
            .position(|draft| draft.changed && !draft.items.is_empty() && open(draft))
            .or_else(|| drafts.iter().position(open));
        match place {
            Some(n) => drafts[n].add(item),
            None => drafts.push(Draft::with(item)),
        }
    }
    // Whoever gives waits until the takers are written.
    drafts
        .into_iter()
        .enumerate()
        .filter(|(_, draft)| draft.changed && !draft.gives)
        .map(|(slice, draft)| Rewrite {
            slice,
            records: draft.items.iter().map(|item| item.record).collect(),
        })
        .collect()
}

/// The last slice that has items, emptied, if those before it have room for
/// them and for as much again: so slices become fewer when records do.
fn empty_last(drafts: &mut [Draft<'_>]) {
    let Some(last) = drafts.iter().rposition(|draft| !draft.items.is_empty()) else { return };
    let (before, rest) = drafts.split_at_mut(last);
    let Some(giver) = rest.first_mut().filter(|giver| !giver.changed) else { return };
    let (items, bytes) = (2 * giver.items.len(), 2 * giver.bytes);
    // One takes them all: one write.
    let taker =
        before.iter_mut().find(|taker| taker.count() + items <= MOST_ITEMS && taker.bytes + bytes <= FULL);
    if let Some(taker) = taker {
        giver.gives = true;
        for item in std::mem::take(&mut giver.items) {
            taker.add(item);
        }
    }
}

/// A slice as it is going to be.
#[derive(Default)]
struct Draft<'a> {
    items: Vec<&'a Wanted>,
    destinations: HashSet<u64>,
    bytes: usize,
    reserved: usize,
    changed: bool,
    /// Gives items to other slices.
    gives: bool,
}

impl<'a> Draft<'a> {
    fn of(slice: &Slice, stays: impl Fn(u32) -> Option<&'a Wanted>) -> Self {
        let mut draft = Self { bytes: EMPTY, reserved: slice.reserved, ..Self::default() };
        let mut seen = HashSet::with_capacity(slice.items.len());
        for item in &slice.items {
            match stays(item.record).filter(|_| seen.insert(item.record)) {
                Some(wanted) => {
                    draft.changed |= wanted.digest != item.digest;
                    draft.put(wanted);
                }
                None => draft.changed = true,
            }
        }
        draft
    }

    fn with(item: &'a Wanted) -> Self {
        let mut draft = Self { bytes: EMPTY, ..Self::default() };
        draft.add(item);
        draft
    }

    fn count(&self) -> usize {
        self.items.len() + self.reserved
    }

    fn costs(&self, item: &Wanted) -> usize {
        let shared = self.destinations.contains(&item.destination);
        let destination = if shared { 0 } else { item.destination_bytes };
        // A comma each.
        item.bytes as usize + destination as usize + 2
    }

    fn takes(&self, item: &Wanted) -> bool {
        self.count() < MOST_ITEMS && self.bytes + self.costs(item) <= FULL
    }

    fn put(&mut self, item: &'a Wanted) {
        self.bytes += self.costs(item);
        self.destinations.insert(item.destination);
        self.items.push(item);
    }

    fn add(&mut self, item: &'a Wanted) {
        self.changed = true;
        self.put(item);
    }

    /// One item alone may be as large as it likes.
    fn overflows(&self) -> bool {
        self.items.len() > 1 && (self.bytes > MOST_BYTES || self.items.len() > MOST_ITEMS)
    }

    /// What does not fit any more, from the end; the first item always stays.
    fn evict(&mut self) -> Vec<&'a Wanted> {
        let mut evicted = Vec::new();
        while self.overflows() {
            let items = std::mem::take(&mut self.items);
            self.destinations.clear();
            self.bytes = EMPTY;
            let keep = items.len() - 1;
            evicted.extend(items.get(keep));
            for item in items.into_iter().take(keep) {
                self.put(item);
            }
        }
        self.gives |= !evicted.is_empty();
        evicted
    }
}

#[cfg(test)]
#[path = "packing_tests.rs"]
mod tests;
