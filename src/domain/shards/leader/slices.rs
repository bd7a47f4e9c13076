//! The slices: what they say, what they are to say, and who may still be
//! polled because of what they said.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::records::{Number, Place, Records, said};
use super::workers::is_older;
use super::{Decree, SliceSeen, Target};
use crate::domain::shards::ShardId;
use crate::domain::shards::packing::{self, Held};

#[derive(Default)]
struct Slice {
    /// `None`: it does not exist.
    version: Option<String>,
    generation: i64,
    items: Vec<Held>,
    /// Taken out, and by which generation.
    removed: Vec<(Number, i64)>,
    /// What a write puts in whose end is not known.
    maybe: Vec<Number>,
    /// It names records taken out, perhaps such as need not be named any more.
    noted: bool,
}

impl Slice {
    fn is_used(&self) -> bool {
        let empty = self.items.is_empty() && self.removed.is_empty() && self.maybe.is_empty();
        self.version.is_some() && (!empty || self.noted)
    }

    /// Empty, but for names that would make another leader wait for nothing.
    fn is_to_be_cleared(&self) -> bool {
        self.noted && self.items.is_empty() && self.removed.is_empty()
    }

    fn holds(&self) -> HashSet<Number> {
        self.items.iter().map(|item| item.record).chain(self.maybe.iter().copied()).collect()
    }
}

/// All slices.
pub(super) struct Slices {
    all: BTreeMap<Place, Slice>,
    /// Slices out of which records were taken whose sessions may be open.
    pending: BTreeSet<Place>,
    /// Before the first decision: over how many shards hosts are spread, as
    /// the items say.
    pub(super) said: Option<Vec<(Number, u32)>>,
}

impl Slices {
    pub(super) fn new() -> Self {
        Self { all: BTreeMap::new(), pending: BTreeSet::new(), said: Some(Vec::new()) }
    }

    pub(super) fn replace(&mut self, records: &mut Records, all: Vec<SliceSeen>) {
        let names: HashSet<Place> = all.iter().map(|slice| (slice.shard, slice.number)).collect();
        let gone: Vec<Place> = self.all.keys().filter(|at| !names.contains(*at)).copied().collect();
        for at in gone {
            self.gone(records, at);
        }
        for slice in all {
            self.see(records, slice);
        }
    }

    pub(super) fn see(&mut self, records: &mut Records, seen: SliceSeen) {
        let at = (seen.shard, seen.number);
        let slice = self.all.entry(at).or_default();
        if let Some(version) = &slice.version
            && (*version == seen.version || is_older(&seen.version, version))
        {
            return;
        }
        let before = slice.holds();
        slice.items.clear();
        for item in &seen.items {
            let record = records.number(&item.key);
            slice.items.push(Held { record, digest: said(item.digest, item.factor) });
            if let Some(early) = &mut self.said {
                early.push((record, item.factor));
            }
        }
        // A write that had this in mind, or any other, cannot succeed any more.
        slice.maybe.clear();
        slice.version = Some(seen.version);
        slice.generation = seen.generation;
        slice.noted = !seen.removed.is_empty();
        let after = slice.holds();
        let old = std::mem::take(&mut slice.removed);
        for key in &seen.removed {
            let number = records.number(key);
            if after.contains(&number) || slice.removed.iter().any(|(known, _)| *known == number) {
                continue;
            }
            let since = old.iter().find(|(known, _)| *known == number).map(|(_, generation)| *generation);
            slice.removed.push((number, since.unwrap_or(seen.generation).min(seen.generation)));
        }
        for number in &after {
            records.arrive(*number, at);
        }
        for (number, _) in &slice.removed {
            records.begin_leaving(*number, at);
        }
        if slice.removed.is_empty() {
            self.pending.remove(&at);
        } else {
            self.pending.insert(at);
        }
        let removed: HashSet<Number> = slice.removed.iter().map(|(number, _)| *number).collect();
        for (number, _) in old.iter().filter(|(number, _)| !removed.contains(number)) {
            records.has_left(*number, at);
        }
        for number in before.difference(&after) {
            records.leave(*number, at);
        }
        records.dirty.insert(at.0);
    }

    /// It was deleted, by whomever: its holder may not know yet.
    pub(super) fn gone(&mut self, records: &mut Records, at: Place) {
        let Some(slice) = self.all.get_mut(&at).filter(|slice| slice.version.is_some()) else { return };
        let held = slice.holds();
        *slice = Slice { removed: std::mem::take(&mut slice.removed), ..Slice::default() };
        for removed in &mut slice.removed {
            removed.1 = 1;
        }
        slice.removed.extend(held.iter().map(|number| (*number, 1)));
        for number in &held {
            records.begin_leaving(*number, at);
        }
        if !slice.removed.is_empty() {
            self.pending.insert(at);
        }
        for number in held {
            records.leave(number, at);
        }
        records.dirty.insert(at.0);
    }

    /// Sessions of records taken out are known to have ended: by what the
    /// holder says that it works by, or because there is no holder.
    pub(super) fn settle(
        &mut self,
        records: &mut Records,
        mut observed: impl FnMut(ShardId, &str) -> Observed,
    ) {
        let mut settled = Vec::new();
        for at in &self.pending {
            let Some(slice) = self.all.get_mut(at) else { continue };
            let works_by = match observed(at.0, &at.0.slice(at.1)) {
                Observed::NoHolder => i64::MAX,
                // More than there is is of another object of that name.
                Observed::Generation(generation) if generation <= slice.generation => generation,
                Observed::Generation(_) | Observed::Nothing => continue,
            };
            slice.removed.retain(|(number, since)| {
                let over = *since <= works_by;
                if over {
                    settled.push((*number, *at));
                }
                !over
            });
        }
        for (number, at) in settled {
            records.has_left(number, at);
            records.dirty.insert(at.0);
        }
        self.pending.retain(|at| self.all.get(at).is_some_and(|slice| !slice.removed.is_empty()));
    }

    /// The number of slices that the shard's holder has to read.
    pub(super) fn count(&self, shard: ShardId) -> u32 {
        let own = self.all.range((shard, 0)..=(shard, u32::MAX));
        own.filter(|(_, slice)| slice.is_used()).map(|((_, number), _)| number + 1).max().unwrap_or(0)
    }

    /// The last write of the slice was done: whatever was not known about
    /// earlier ones is known now.
    pub(super) fn done(&mut self, records: &mut Records, at: Place) {
        let Some(slice) = self.all.get_mut(&at) else { return };
        let before = slice.holds();
        slice.maybe.clear();
        let after = slice.holds();
        for number in before.difference(&after) {
            records.leave(*number, at);
        }
    }

    /// The next writes, `room` of them at most.
    pub(super) fn decide(
        &mut self,
        records: &mut Records,
        mut is_busy: impl FnMut(&Target) -> bool,
        mut room: usize,
    ) -> Vec<Decree> {
        let mut decrees = Vec::new();
        for shard in records.dirty.clone() {
            if room == 0 {
                break;
            }
            let own = self.all.range((shard, 0)..=(shard, u32::MAX));
            let numbers: Vec<u32> = own.map(|((_, number), _)| *number).collect();
            let count = numbers.last().map_or(0, |last| last + 1);
            if (0..=count).any(|number| is_busy(&Target::Slice(shard, number))) {
                continue;
            }
            let current: Vec<packing::Slice> = (0..count)
                .map(|number| {
                    let slice = self.all.get(&(shard, number));
                    packing::Slice {
                        items: slice.map(|slice| slice.items.clone()).unwrap_or_default(),
                        reserved: slice.map_or(0, |slice| slice.removed.len()),
                    }
                })
                .collect();
            let mut rewrites = packing::pack(&current, &records.wanted(shard));
            self.add_unresolved(records, shard, &mut rewrites);
            if rewrites.is_empty() {
                records.dirty.remove(&shard);
            }
            for rewrite in rewrites.into_iter().take(room) {
                room -= 1;
                decrees.push(self.write(records, shard, &rewrite));
            }
        }
        decrees
    }

    /// Writes of which nobody knows whether they were done, or still will be,
    /// are made void by another one; a slice that somebody deleted while its
    /// records were on their way out is there again for its holder to see; and
    /// an empty one forgets what it was emptied of.
    fn add_unresolved(&self, records: &Records, shard: ShardId, rewrites: &mut Vec<packing::Rewrite>) {
        for ((_, number), slice) in self.all.range((shard, 0)..=(shard, u32::MAX)) {
            let unresolved = !slice.maybe.is_empty()
                || (slice.version.is_none() && !slice.removed.is_empty())
                || slice.is_to_be_cleared();
            let number = *number as usize;
            if unresolved && !rewrites.iter().any(|rewrite| rewrite.slice == number) {
                let stays = slice.items.iter().map(|item| item.record);
                let stays = stays.filter(|record| records.belongs(*record, shard)).collect();
                rewrites.push(packing::Rewrite { slice: number, records: stays });
            }
        }
    }

    fn write(&mut self, records: &mut Records, shard: ShardId, rewrite: &packing::Rewrite) -> Decree {
        let at = (shard, u32::try_from(rewrite.slice).unwrap_or(u32::MAX));
        let slice = self.all.entry(at).or_default();
        let stays: HashSet<Number> = rewrite.records.iter().copied().collect();
        let mut removed: Vec<Number> = slice
            .removed
            .iter()
            .map(|(number, _)| *number)
            .filter(|number| !stays.contains(number))
            .collect();
        // Also what another slice of the shard has by now: the holder may have
        // read neither.
        let mut leaves: Vec<Number> = slice.holds().difference(&stays).copied().collect();
        leaves.sort_unstable();
        removed.extend(leaves);
        let mut seen = HashSet::new();
        removed.retain(|number| seen.insert(*number));
        for number in &rewrite.records {
            records.arrive(*number, at);
            if !slice.maybe.contains(number) {
                slice.maybe.push(*number);
            }
        }
        let item = |number: &Number| (records.key(*number).clone(), records.factor(*number));
        Decree::WriteSlice {
            shard,
            number: at.1,
            version: slice.version.clone(),
            items: rewrite.records.iter().map(item).collect(),
            removed: removed.iter().map(|number| records.key(*number).clone()).collect(),
        }
    }
}

/// By which generation of a slice its shard's holder works.
pub(super) enum Observed {
    /// The shard has none, or a dead one.
    NoHolder,
    /// By that one.
    Generation(i64),
    /// It has not said.
    Nothing,
}
