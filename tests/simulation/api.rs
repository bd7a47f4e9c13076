//! An API server in memory: objects with versions, compare-and-swap, and what
//! the outside world would see of it: maildrops and a destination.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rpop::domain::shards::holding::ShardSeen;
use rpop::domain::shards::leader::{Answer, Decree, ItemSeen, LeaseSeen, RecordSeen, SliceSeen};
use rpop::domain::shards::{Incarnation, LeaseHolder, ShardId};
use rpop::domain::work::RecordKey;

/// A maildrop. It lets anybody in, as the worst of servers would.
#[derive(Default)]
pub struct Maildrop {
    pub mail: BTreeSet<u64>,
    pub logins: u64,
    pub last_login: u64,
}

/// A ledger, as far as the protocol goes.
#[derive(Clone, Default)]
pub struct Ledger {
    pub version: u64,
    pub shard: Option<ShardId>,
    pub epoch: i64,
    pub seen: BTreeSet<u64>,
}

/// A change that watches tell.
#[derive(Clone)]
pub enum Change {
    Lease(LeaseSeen),
    Shard(ShardSeen),
    Slice(SliceSeen),
    SliceGone(ShardId, u32),
}

#[derive(Default)]
pub struct Api {
    pub version: u64,
    pub leases: BTreeMap<Arc<str>, LeaseSeen>,
    /// The version of the leader's own lease.
    pub leader: u64,
    pub shards: BTreeMap<ShardId, ShardSeen>,
    pub slices: BTreeMap<(ShardId, u32), SliceSeen>,
    pub records: BTreeMap<RecordKey, RecordSeen>,
    pub ledgers: BTreeMap<RecordKey, Ledger>,
    /// To be told to watches.
    pub changes: Vec<Change>,
    /// Writes of leases, shards and slices so far.
    pub writes: [u64; 3],
}

/// What a renewal met.
pub enum Renewal {
    Done,
    Lost,
}

impl Api {
    fn bump(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    pub fn lease_name(worker: &Incarnation) -> Arc<str> {
        format!("rpop-worker-{}", worker.pod()).into()
    }

    /// The lease of a worker: taken at its first renewal, from whoever was in
    /// its pod before; kept by the others.
    pub fn renew(&mut self, worker: &Incarnation, first: bool, leaving: bool) -> Renewal {
        let name = Self::lease_name(worker);
        let held = self.leases.get(&name).map(|lease| &lease.holder);
        let mine = held == Some(&LeaseHolder::Worker(worker.clone()));
        let stolen = held == Some(&LeaseHolder::Stolen(worker.clone()));
        if stolen || !mine && !first {
            return Renewal::Lost;
        }
        let lease = LeaseSeen {
            name: Arc::clone(&name),
            version: self.bump(),
            holder: LeaseHolder::Worker(worker.clone()),
            leaving,
            capacity: 256,
            load: BTreeMap::new(),
        };
        self.writes[0] += 1;
        self.leases.insert(name, lease.clone());
        self.changes.push(Change::Lease(lease));
        Renewal::Done
    }

    /// The lease is nobody's from now on, if it was that worker's.
    pub fn release(&mut self, worker: &Incarnation) {
        let name = Self::lease_name(worker);
        let version = self.bump();
        if let Some(lease) = self.leases.get_mut(&name)
            && lease.holder == LeaseHolder::Worker(worker.clone())
        {
            (lease.holder, lease.version) = (LeaseHolder::Nobody, version);
            self.changes.push(Change::Lease(lease.clone()));
        }
    }

    /// A status write of a shard's holder.
    pub fn write_status(&mut self, wanted: ShardSeen) -> Option<ShardSeen> {
        let present = self.shards.get(&wanted.id)?;
        if present.version != wanted.version {
            return None;
        }
        let (desired, slices) = (present.desired.clone(), present.slices);
        let shard = ShardSeen { version: self.bump(), desired, slices, ..wanted };
        Some(self.store(shard))
    }

    pub fn store(&mut self, shard: ShardSeen) -> ShardSeen {
        self.writes[1] += 1;
        self.shards.insert(shard.id, shard.clone());
        self.changes.push(Change::Shard(shard.clone()));
        shard
    }

    /// A leader's write: what became of it, and the object as it is then.
    pub fn obey(&mut self, decree: &Decree) -> (Answer, Option<Change>) {
        let refused = (Answer::Conflict, None);
        match decree {
            Decree::StealLease { name, version, worker } => {
                let Some(lease) = self.leases.get(name).filter(|lease| lease.version == *version) else {
                    return refused;
                };
                let holder = LeaseHolder::Stolen(worker.clone());
                let lease = LeaseSeen { holder, ..lease.clone() };
                let lease = LeaseSeen { version: self.bump(), ..lease };
                self.leases.insert(Arc::clone(name), lease.clone());
                self.changes.push(Change::Lease(lease.clone()));
                (Answer::Done, Some(Change::Lease(lease)))
            }
            Decree::DeleteLease { name, version } => {
                if self.leases.get(name).is_none_or(|lease| lease.version != *version) {
                    return refused;
                }
                self.leases.remove(name);
                (Answer::Done, None)
            }
            Decree::CreateShard(id) => {
                if self.shards.contains_key(id) {
                    return refused;
                }
                let shard = ShardSeen {
                    id: *id,
                    version: self.bump(),
                    desired: None,
                    holder: None,
                    epoch: 0,
                    slices: 0,
                    observed: BTreeMap::new(),
                };
                (Answer::Done, Some(Change::Shard(self.store(shard))))
            }
            Decree::SetDesired { shard, version, desired, slices, .. } => {
                let Some(present) = self.shards.get(shard).filter(|shard| shard.version == *version) else {
                    return refused;
                };
                let changed = ShardSeen { desired: desired.clone(), slices: *slices, ..present.clone() };
                let changed = ShardSeen { version: self.bump(), ..changed };
                (Answer::Done, Some(Change::Shard(self.store(changed))))
            }
            Decree::GiveAway { shard, version, holder, epoch } => {
                let Some(present) = self.shards.get(shard).filter(|shard| shard.version == *version) else {
                    return refused;
                };
                let changed = ShardSeen { holder: Some(holder.clone()), epoch: *epoch, ..present.clone() };
                let changed = ShardSeen { version: self.bump(), ..changed };
                (Answer::Done, Some(Change::Shard(self.store(changed))))
            }
            Decree::WriteSlice { shard, number, version, items, removed } => {
                let present = self.slices.get(&(*shard, *number));
                if present.map(|slice| &slice.version) != version.as_ref() {
                    return refused;
                }
                let before = present.map_or(0, |slice| slice.generation);
                let uid = present.map(|slice| Arc::clone(&slice.uid));
                let old = present.map(|slice| slice.items.clone()).unwrap_or_default();
                let find = |key: &RecordKey, factor: u32| {
                    // A record that is gone by now keeps the item it had.
                    let known = self.records.get(key).map(|record| (record.maildrop, record.digest));
                    let (uid, digest) = known.or_else(|| {
                        old.iter().find(|item| item.key == *key).map(|item| (item.uid, item.digest))
                    })?;
                    Some(ItemSeen { key: key.clone(), uid, digest, factor })
                };
                let items: Vec<_> = items.iter().filter_map(|(key, factor)| find(key, *factor)).collect();
                // As with any object, only a changed spec is a new generation.
                let same = present.is_some_and(|slice| slice.items == items);
                let version = self.bump();
                let slice = SliceSeen {
                    shard: *shard,
                    number: *number,
                    uid: uid.unwrap_or_else(|| format!("made-{version}").into()),
                    version,
                    generation: before + i64::from(!same),
                    items,
                    removed: removed.clone(),
                };
                self.writes[2] += 1;
                self.slices.insert((*shard, *number), slice.clone());
                self.changes.push(Change::Slice(slice.clone()));
                (Answer::Done, Some(Change::Slice(slice)))
            }
        }
    }

    /// Somebody deletes a slice by hand.
    pub fn delete_slice(&mut self, at: (ShardId, u32)) {
        if self.slices.remove(&at).is_some() {
            self.bump();
            self.changes.push(Change::SliceGone(at.0, at.1));
        }
    }

    /// The slices that a shard says it has.
    pub fn slices_of(&self, shard: ShardId) -> Option<Vec<SliceSeen>> {
        let count = self.shards.get(&shard)?.slices;
        (0..count).map(|number| self.slices.get(&(shard, number)).cloned()).collect()
    }

    /// A commit: the version after it.
    pub fn commit(
        &mut self,
        key: &RecordKey,
        read: u64,
        by: (ShardId, i64),
        batch: &BTreeSet<u64>,
    ) -> Option<u64> {
        let ledger = self.ledgers.entry(key.clone()).or_default();
        let old = ledger.shard == Some(by.0) && by.1 < ledger.epoch;
        if ledger.version != read || old {
            return None;
        }
        ledger.seen.extend(batch);
        (ledger.version, ledger.shard, ledger.epoch) = (read + 1, Some(by.0), by.1);
        Some(read + 1)
    }
}
