//! The slices: what they say, what they are to say, and who may still be
//! polled because of what they said.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::records::{Number, Place, Records, said};
use super::workers::is_older;
use super::{Decree, Observation, ShardSeen, SliceSeen, Target};
use crate::domain::shards::ShardId;
use crate::domain::shards::packing::{self, Held};

#[derive(Default)]
struct Slice {
    /// `None`: it does not exist.
    version: Option<String>,
    /// The last version that was seen of it: what is not newer, an answer that
    /// comes after the word of its deletion, is of what is gone.
    last: Option<String>,
    /// Of the object that exists.
    uid: Arc<str>,
    generation: i64,
    items: Vec<Held>,
    /// Taken out, and by which generation of the object that exists.
    removed: Vec<(Number, i64)>,
    /// What a write puts in whose end is not known.
    maybe: Vec<Number>,
    /// It names records taken out, perhaps such as need not be named any more.
    noted: bool,
}

impl Slice {
    fn is_used(&self) -> bool {
        !self.items.is_empty() || !self.removed.is_empty() || !self.maybe.is_empty() || self.noted
    }

    /// Empty, but for names that would make another leader wait for nothing.
    fn is_to_be_cleared(&self) -> bool {
        self.noted && self.items.is_empty() && self.removed.is_empty()
    }

    /// Whether it is the object that was seen there, whatever its generation.
    fn is(&self, seen: &Observation) -> bool {
        self.version.is_some() && self.uid == seen.uid
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
    /// Slices whose shards' holders may poll by an object of that name that was
    /// deleted before this leader could see it.
    unseen: BTreeSet<Place>,
    /// Before the first decision: over how many shards hosts are spread, as
    /// the items say.
    pub(super) said: Option<Vec<(Number, u32)>>,
}

impl Slices {
    pub(super) fn new() -> Self {
        Self {
            all: BTreeMap::new(),
            pending: BTreeSet::new(),
            unseen: BTreeSet::new(),
            said: Some(Vec::new()),
        }
    }

    /// Before the first decision: who held these shards when this leader began
    /// may poll by slices of which nothing is known. All that such a holder may
    /// have read are slices below `spec.slices`, which never falls while it
    /// lives; and where it says that it works by the very object that exists,
    /// nothing but that object was there to be read since.
    pub(super) fn look_back<'a>(
        &mut self,
        records: &mut Records,
        shards: impl Iterator<Item = &'a ShardSeen>,
    ) {
        for shard in shards {
            for number in 0..shard.slices {
                let at = (shard.id, number);
                let slice = self.all.entry(at).or_default();
                let observed = shard.observed.get(&shard.id.slice(number));
                if shard.holder.is_some() && !observed.is_some_and(|seen| slice.is(seen)) {
                    self.unseen.insert(at);
                }
                if slice.version.is_none() {
                    records.dirty.insert(shard.id);
                }
            }
        }
    }

    /// Shards whose holders may poll by what nobody has seen.
    fn blind(&self) -> BTreeSet<ShardId> {
        self.unseen.iter().map(|at| at.0).collect()
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
        if let Some(last) = &slice.last
            && (*last == seen.version || is_older(&seen.version, last))
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
        let same = slice.version.is_some() && slice.uid == seen.uid;
        slice.last = Some(seen.version.clone());
        slice.version = Some(seen.version);
        slice.uid = seen.uid;
        slice.generation = seen.generation;
        slice.noted = !seen.removed.is_empty();
        let after = slice.holds();
        let old = std::mem::take(&mut slice.removed);
        let known: HashMap<Number, i64> = if same { old.iter().copied().collect() } else { HashMap::new() };
        // Also what it does not name: it may be another object than the one
        // that had them.
        let named = seen.removed.iter().map(|key| records.number(key));
        let mut gone: Vec<Number> = named.chain(old.iter().map(|(number, _)| *number)).collect();
        gone.extend(before.difference(&after));
        let mut listed = HashSet::new();
        gone.retain(|number| !after.contains(number) && listed.insert(*number));
        for number in gone {
            let since = known.get(&number).copied().unwrap_or(seen.generation);
            slice.removed.push((number, since.min(seen.generation)));
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
        for (number, _) in old.iter().filter(|(number, _)| after.contains(number)) {
            records.has_left(*number, at);
        }
        for number in before.difference(&after) {
            records.leave(*number, at);
        }
        records.dirty.insert(at.0);
    }

    /// It was deleted, by whomever: its holder may not know yet. Nobody works
    /// by what comes in its place before that is there.
    pub(super) fn gone(&mut self, records: &mut Records, at: Place) {
        let Some(slice) = self.all.get_mut(&at).filter(|slice| slice.version.is_some()) else { return };
        let held = slice.holds();
        let (last, mut removed) = (slice.last.take(), std::mem::take(&mut slice.removed));
        removed.retain(|(number, _)| !held.contains(number));
        removed.extend(held.iter().map(|number| (*number, i64::MAX)));
        *slice = Slice { last, removed, ..Slice::default() };
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
        let blind = self.blind();
        let waiting: Vec<Place> = self.pending.union(&self.unseen).copied().collect();
        for at in waiting {
            let Some(slice) = self.all.get_mut(&at) else { continue };
            let works_by = match observed(at.0, &at.0.slice(at.1)) {
                Observed::NoHolder => i64::MAX,
                Observed::Slice(seen) if slice.is(&seen) => seen.generation,
                // Of another object of that name, the generations say nothing.
                Observed::Slice(_) | Observed::Nothing => continue,
            };
            self.unseen.remove(&at);
            slice.removed.retain(|(number, since)| {
                let over = *since <= works_by;
                if over {
                    settled.push((*number, at));
                }
                !over
            });
        }
        for (number, at) in settled {
            records.has_left(number, at);
            records.dirty.insert(at.0);
        }
        self.pending.retain(|at| self.all.get(at).is_some_and(|slice| !slice.removed.is_empty()));
        if self.blind() != blind {
            records.disturb_all();
        }
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
        is_busy: impl Fn(&Target) -> bool,
        followed: impl Fn(ShardId) -> u32,
        mut room: usize,
    ) -> Vec<Decree> {
        let mut decrees = Vec::new();
        let blind = self.blind();
        for shard in records.dirty.clone() {
            if room == 0 {
                break;
            }
            let own = self.all.range((shard, 0)..=(shard, u32::MAX));
            let numbers: Vec<u32> = own.map(|((_, number), _)| *number).collect();
            let followed = followed(shard).max(self.count(shard));
            let count = numbers.last().map_or(0, |last| last + 1).max(followed);
            if (0..=count).any(|number| is_busy(&Target::Slice(shard, number))) {
                continue;
            }
            let current: Vec<packing::Slice> = (0..count)
                .map(|number| {
                    let slice = self.all.get(&(shard, number));
                    // What was in a slice that is gone may go back there.
                    let stays = |(number, _): &&(Number, i64)| !records.is_awaited(*number, shard);
                    packing::Slice {
                        items: slice.map(|slice| slice.items.clone()).unwrap_or_default(),
                        reserved: slice.map_or(0, |slice| slice.removed.iter().filter(stays).count()),
                    }
                })
                .collect();
            let mut rewrites = packing::pack(&current, &records.wanted(shard, &blind));
            self.add_unresolved(records, shard, followed, &mut rewrites);
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
    /// are made void by another one; a slice that the holder is to read, and
    /// that somebody deleted, is there again; and an empty one forgets what it
    /// was emptied of.
    fn add_unresolved(
        &self,
        records: &Records,
        shard: ShardId,
        followed: u32,
        rewrites: &mut Vec<packing::Rewrite>,
    ) {
        let own = self.all.range((shard, 0)..=(shard, u32::MAX));
        let unresolved = own.filter(|(_, slice)| !slice.maybe.is_empty() || slice.is_to_be_cleared());
        let mut numbers: BTreeSet<u32> = unresolved.map(|((_, number), _)| *number).collect();
        let exists =
            |number: &u32| self.all.get(&(shard, *number)).is_some_and(|slice| slice.version.is_some());
        numbers.extend((0..followed).filter(|number| !exists(number)));
        for number in numbers {
            let at = number as usize;
            if !rewrites.iter().any(|rewrite| rewrite.slice == at) {
                let items = self.all.get(&(shard, number)).map(|slice| slice.items.as_slice());
                let stays = items.unwrap_or_default().iter().map(|item| item.record);
                let stays = stays.filter(|record| records.belongs(*record, shard)).collect();
                rewrites.push(packing::Rewrite { slice: at, records: stays });
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
        // A creation that comes when nobody counts on it any more must put
        // nothing in: the next write does, which holds for this object alone.
        let put_in = if slice.version.is_some() { rewrite.records.as_slice() } else { &[] };
        for number in put_in {
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
            items: put_in.iter().map(item).collect(),
            removed: removed.iter().map(|number| records.key(*number).clone()).collect(),
        }
    }
}

/// By which object, and generation, of a slice its shard's holder works.
pub(super) enum Observed {
    /// The shard has none, or a dead one.
    NoHolder,
    /// By that one.
    Slice(Observation),
    /// It has not said.
    Nothing,
}
