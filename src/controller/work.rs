//! The work as the leader's machine knows it, and what its decrees are in
//! objects. It writes nothing itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hasher as _;
use std::sync::Arc;

use serde::Deserialize as _;
use serde_json::Value;
use siphasher::sip::SipHasher13;

use super::order::{Order, Orphan, SliceBody};
use crate::api::{ItemPast, RpopShard, RpopShardStatus, RpopWorkSlice, RpopWorkSliceSpec, SliceItem};
use crate::domain::shards::leader::{
    Config, Decree, ItemSeen, Leader, REMOVED, RecordSeen, Seen, ShardSeen, Sight, SliceSeen, Workers,
    parse_removed,
};
use crate::domain::shards::mapping::maildrop_hash;
use crate::domain::shards::timing::Boot;
use crate::domain::shards::{Incarnation, ShardId};
use crate::domain::work::{Destination, RecordKey, WorkItem};

struct Entry {
    item: Arc<WorkItem>,
    uid: Arc<str>,
    generation: i64,
    digest: u64,
}

/// Where an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    shard: ShardId,
    number: u32,
    factor: u32,
    digest: u64,
}

/// See the module's page.
pub(super) struct Work {
    leader: Leader,
    records: HashMap<RecordKey, Entry>,
    /// Before all records have been looked at once, the machine is not told of
    /// any: it would take those that are missing for gone.
    complete: bool,
    slices: HashMap<(ShardId, u32), Vec<RecordKey>>,
    /// Objects whose number is beyond that of the shards there are, by
    /// version: somebody made them, and in the end somebody has to remove them.
    strays: BTreeMap<(ShardId, Option<u32>), String>,
    shards: u16,
    placed: HashMap<RecordKey, Place>,
    /// Records whose place is another one than before.
    moved: BTreeSet<RecordKey>,
}

impl Work {
    pub(super) fn new(config: Config, workers: Workers) -> Self {
        Self {
            leader: Leader::resume(config, workers),
            records: HashMap::new(),
            complete: false,
            slices: HashMap::new(),
            strays: BTreeMap::new(),
            shards: config.shards,
            placed: HashMap::new(),
            moved: BTreeSet::new(),
        }
    }

    /// A record is to be among the work.
    pub(super) fn put(&mut self, item: Arc<WorkItem>, uid: &Arc<str>, generation: i64, now: Boot) {
        let key = item.key.clone();
        let (bytes, own) = weigh(&SliceItem::new(&item, uid, generation, ItemPast::default(), 0));
        let (destination_bytes, destination) = weigh(&*item.destination);
        let digest = combine(own, destination);
        let seen = RecordSeen {
            key: key.clone(),
            maildrop: maildrop_hash(&item.remote.account),
            host: Arc::clone(&item.remote.host),
            port: item.remote.port,
            interval: item.interval,
            digest,
            bytes,
            destination,
            destination_bytes,
        };
        let known = self.records.insert(key, Entry { item, uid: Arc::clone(uid), generation, digest });
        if self.complete && known.is_none_or(|known| known.digest != digest) {
            self.leader.hear(now, Seen::Record(seen));
        }
    }

    /// A record is none of the work (any more).
    pub(super) fn remove(&mut self, key: &RecordKey, now: Boot) {
        if self.records.remove(key).is_some() && self.complete {
            self.leader.hear(now, Seen::RecordGone(key.clone()));
        }
    }

    /// All records have been looked at.
    pub(super) fn complete(&mut self, now: Boot) {
        if self.complete {
            return;
        }
        self.complete = true;
        let records = self.records.iter().map(|(key, entry)| {
            let Entry { item, uid, generation, digest } = entry;
            let (bytes, _) = weigh(&SliceItem::new(item, uid, *generation, ItemPast::default(), 0));
            let (destination_bytes, destination) = weigh(&*item.destination);
            RecordSeen {
                key: key.clone(),
                maildrop: maildrop_hash(&item.remote.account),
                host: Arc::clone(&item.remote.host),
                port: item.remote.port,
                interval: item.interval,
                digest: *digest,
                bytes,
                destination,
                destination_bytes,
            }
        });
        let records = records.collect();
        self.leader.hear(now, Seen::Records(records));
    }

    /// The shard of a record, and over how many its host is spread, once its
    /// slice says of it what we say.
    pub(super) fn placed(&self, key: &RecordKey) -> Option<(ShardId, u32)> {
        let place = self.placed.get(key)?;
        let entry = self.records.get(key)?;
        (place.digest == entry.digest).then_some((place.shard, place.factor))
    }

    /// Records whose place has changed since the last call.
    pub(super) fn take_moved(&mut self) -> BTreeSet<RecordKey> {
        std::mem::take(&mut self.moved)
    }

    /// How many records are among the work.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Something was seen or heard.
    pub(super) fn hear(&mut self, now: Boot, seen: Seen) {
        match &seen {
            Seen::Shards(shards) => {
                self.strays.retain(|(_, number), _| number.is_some());
                for shard in shards {
                    self.stray(shard.id, None, &shard.version);
                }
            }
            Seen::Shard(shard) => self.stray(shard.id, None, &shard.version),
            Seen::ShardGone(id) => drop(self.strays.remove(&(*id, None))),
            Seen::Slice(slice) => self.slice(slice),
            Seen::Slices(slices) => {
                let named: BTreeSet<(ShardId, u32)> =
                    slices.iter().map(|slice| (slice.shard, slice.number)).collect();
                let gone: Vec<_> = self.slices.keys().filter(|at| !named.contains(at)).copied().collect();
                for (shard, number) in gone {
                    self.slice_gone(shard, number);
                }
                for slice in slices {
                    self.slice(slice);
                }
            }
            Seen::SliceGone(shard, number) => self.slice_gone(*shard, *number),
            _ => {}
        }
        self.leader.hear(now, seen);
    }

    fn stray(&mut self, shard: ShardId, slice: Option<u32>, version: &str) {
        if shard.0 >= self.shards {
            self.strays.insert((shard, slice), version.to_owned());
        }
    }

    /// What nobody needs any more: objects of shards beyond those there are,
    /// once no record is in them.
    pub(super) fn orphans(&self) -> Vec<Orphan> {
        let empty = |at: &(ShardId, u32)| self.slices.get(at).is_none_or(Vec::is_empty);
        let orphans = self.strays.iter().filter(|((shard, slice), _)| match slice {
            Some(number) => empty(&(*shard, *number)),
            None => self.slices.keys().filter(|(of, _)| of == shard).all(empty),
        });
        orphans
            .map(|((shard, slice), version)| Orphan {
                shard: *shard,
                slice: *slice,
                version: version.clone(),
            })
            .collect()
    }

    fn slice(&mut self, slice: &SliceSeen) {
        self.stray(slice.shard, Some(slice.number), &slice.version);
        let at = (slice.shard, slice.number);
        let before = self.slices.remove(&at).unwrap_or_default();
        let names: BTreeSet<&RecordKey> = slice.items.iter().map(|item| &item.key).collect();
        for key in before.into_iter().filter(|key| !names.contains(key)) {
            self.unplace(key, at);
        }
        for ItemSeen { key, uid: _, digest, factor } in &slice.items {
            let place = Place { shard: slice.shard, number: slice.number, factor: *factor, digest: *digest };
            if self.placed.insert(key.clone(), place) != Some(place) {
                self.moved.insert(key.clone());
            }
        }
        self.slices.insert(at, slice.items.iter().map(|item| item.key.clone()).collect());
    }

    fn slice_gone(&mut self, shard: ShardId, number: u32) {
        self.strays.remove(&(shard, Some(number)));
        for key in self.slices.remove(&(shard, number)).unwrap_or_default() {
            self.unplace(key, (shard, number));
        }
    }

    fn unplace(&mut self, key: RecordKey, at: (ShardId, u32)) {
        if self.placed.get(&key).is_some_and(|place| (place.shard, place.number) == at) {
            self.placed.remove(&key);
            self.moved.insert(key);
        }
    }

    /// What is to be written now. `past` says how a record's polls went, for a
    /// worker that has not polled it before.
    pub(super) fn decide(&mut self, now: Boot, past: &dyn Fn(&RecordKey) -> ItemPast) -> Vec<Order> {
        let decrees = self.leader.decide(now);
        decrees.into_iter().map(|decree| self.order(decree, past)).collect()
    }

    /// When [`Work::decide`] is to be called although nothing was heard.
    pub(super) fn next_look(&self, now: Boot) -> Boot {
        self.leader.next_look(now)
    }

    /// What people should know of the reads of the workers' leases.
    pub(super) fn take_notices(&mut self) -> Vec<Sight> {
        self.leader.take_notices()
    }

    /// The lead ends: what was counted, for the next.
    pub(super) fn into_workers(self) -> Workers {
        self.leader.into_workers()
    }

    /// Shards that are polled by a live worker, of all there are.
    pub(super) fn shards_held(&self) -> (usize, usize) {
        self.leader.shards_held()
    }

    fn order(&self, decree: Decree, past: &dyn Fn(&RecordKey) -> ItemPast) -> Order {
        let target = decree.target();
        match decree {
            Decree::WriteSlice { shard, number, version, items, removed } => Order::Slice {
                target,
                body: Box::new(self.slice_body(shard, number, version, &items, removed, past)),
            },
            decree => Order::Other { target, decree },
        }
    }

    fn slice_body(
        &self,
        shard: ShardId,
        number: u32,
        version: Option<String>,
        items: &[(RecordKey, u32)],
        removed: Vec<RecordKey>,
        past: &dyn Fn(&RecordKey) -> ItemPast,
    ) -> SliceBody {
        let mut destinations: Vec<Value> = Vec::new();
        let mut places: HashMap<*const Destination, usize> = HashMap::new();
        let mut values = Vec::with_capacity(items.len());
        for (key, factor) in items {
            // It is gone since: the machine knows, and writes the slice again.
            let Some(entry) = self.records.get(key) else { continue };
            let place = *places.entry(Arc::as_ptr(&entry.item.destination)).or_insert_with(|| {
                let value = value(&*entry.item.destination);
                destinations.iter().position(|known| *known == value).unwrap_or_else(|| {
                    destinations.push(value);
                    destinations.len() - 1
                })
            });
            let mut item = SliceItem::new(&entry.item, &entry.uid, entry.generation, past(key), place);
            item.factor = *factor;
            values.push(value(&item));
        }
        let works = items.iter().filter_map(|(key, _)| self.records.get(key)).map(|entry| &*entry.item);
        let format = RpopWorkSliceSpec::format_of(works);
        let spec = RpopWorkSliceSpec { format, shard: shard.0.into(), destinations, items: values };
        SliceBody { name: shard.slice(number), shard, version, spec, removed }
    }
}

fn value(what: &impl serde::Serialize) -> Value {
    serde_json::to_value(what).unwrap_or(Value::Null)
}

/// Octets as JSON, and a digest of them.
fn weigh(what: &impl serde::Serialize) -> (u32, u64) {
    let text = serde_json::to_vec(what).unwrap_or_default();
    let mut hasher = SipHasher13::new();
    hasher.write(&text);
    (u32::try_from(text.len()).unwrap_or(u32::MAX), hasher.finish())
}

fn combine(item: u64, destination: u64) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write_u64(item);
    hasher.write_u64(destination);
    hasher.finish()
}

/// A slice as the machine sees it. Items that cannot be read are left out:
/// they are written anew.
pub(super) fn slice_seen(slice: &RpopWorkSlice) -> Option<SliceSeen> {
    let (shard, number) = ShardId::parse_slice(slice.metadata.name.as_deref()?)?;
    let destinations: Vec<Option<u64>> = slice
        .spec
        .destinations
        .iter()
        .map(|value| Destination::deserialize(value).ok().map(|destination| weigh(&destination).1))
        .collect();
    let read = |value: &Value| {
        let mut item = SliceItem::deserialize(value).ok()?;
        let destination = (*destinations.get(item.destination)?)?;
        let factor = item.factor.max(1);
        let key = RecordKey { namespace: item.namespace.as_str().into(), name: item.name.as_str().into() };
        let uid = crate::api::work::digest(&item.uid);
        (item.past, item.destination, item.factor) = (ItemPast::default(), 0, 1);
        Some(ItemSeen { key, uid, digest: combine(weigh(&item).1, destination), factor })
    };
    let removed = slice.metadata.annotations.as_ref().and_then(|all| all.get(REMOVED));
    Some(SliceSeen {
        shard,
        number,
        version: slice.metadata.resource_version.clone().unwrap_or_default(),
        uid: slice.metadata.uid.as_deref().unwrap_or_default().into(),
        generation: slice.metadata.generation.unwrap_or(0),
        items: slice.spec.items.iter().filter_map(read).collect(),
        removed: removed.map(|text| parse_removed(text)).unwrap_or_default(),
    })
}

/// A shard as the machine sees it.
pub(super) fn shard_seen(shard: &RpopShard) -> Option<ShardSeen> {
    let status = shard.status.as_ref();
    let named = |text: &Option<String>| text.as_deref().and_then(Incarnation::named);
    Some(ShardSeen {
        id: ShardId::parse(shard.metadata.name.as_deref()?)?,
        version: shard.metadata.resource_version.clone().unwrap_or_default(),
        desired: named(&shard.spec.desired),
        holder: status.and_then(|status| named(&status.holder)),
        epoch: status.map_or(0, |status| status.epoch),
        slices: shard.spec.slices,
        observed: status.map(RpopShardStatus::observations).unwrap_or_default(),
    })
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod tests;
