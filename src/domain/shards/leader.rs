//! The leader's side of the protocol: who is alive, who shall poll what, and
//! what the slices shall say. It hears what there is and decides what to
//! write; the driver around it does the input and output.
//!
//! ```text
//!   Leases --> dead, leaving, load --+--> placement --> SetDesired --> (hand-over by the holder)
//!                                    |                      |
//!   RpopShards --------------------- + <--------------------+--> GiveAway (holder none or dead)
//!   records --> mapping --> packing <--> RpopWorkSlices: WriteSlice
//! ```
//!
//! Everything it knows it has from the objects: a leader that takes over goes
//! on where the last one stopped, and every write compares and swaps.

mod evidence;
mod records;
mod slices;
mod workers;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

pub use self::evidence::{Cause, Sight};
use self::records::Records;
use self::slices::{Observed, Slices};
pub use self::workers::Workers;
use self::workers::is_older;
use super::placement::{self, Role, View, Why, Worker};
use super::timing::{Boot, Timing};
use super::{Incarnation, LeaseHolder, ShardId};
pub use crate::domain::shards::holding::{Observation, ShardSeen};
use crate::domain::work::RecordKey;

/// A membership Lease as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseSeen {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `spec.holderIdentity`.
    pub holder: LeaseHolder,
    /// Its worker is about to end (`rpop.dev/leaving`).
    pub leaving: bool,
    /// Processors of its worker (`rpop.dev/capacity`); 0 where not said.
    pub capacity: u32,
    /// Session-seconds per second of the shards it holds (`rpop.dev/load`).
    pub load: BTreeMap<ShardId, f32>,
}

/// A slice as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceSeen {
    /// Whose.
    pub shard: ShardId,
    /// Its number in the shard.
    pub number: u32,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
    /// Its items, as far as they can be read.
    pub items: Vec<ItemSeen>,
    /// Records that were taken out and whose sessions may still be open
    /// (the annotation [`REMOVED`], read by [`parse_removed`]).
    pub removed: Vec<RecordKey>,
}

/// An item of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemSeen {
    /// The record.
    pub key: RecordKey,
    /// `WorkItem::uid`: the hash of its `metadata.uid`.
    pub uid: u64,
    /// What [`RecordSeen::digest`] would be for the record that this item was
    /// made from.
    pub digest: u64,
    /// Over how many shards its host is spread, as the item says.
    pub factor: u32,
}

/// A record that is to be polled, as the controller has resolved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSeen {
    /// The record.
    pub key: RecordKey,
    /// [`mapping::maildrop_hash`](super::mapping::maildrop_hash) of its account
    /// there.
    pub maildrop: u64,
    /// The remote host.
    pub host: Arc<str>,
    /// And its port.
    pub port: u16,
    /// How often; `None`: not polled.
    pub interval: Option<Duration>,
    /// A hash of the item and its destination, without its past, its place and
    /// its factor: another one means that the slice is written again.
    pub digest: u64,
    /// Octets of the item as JSON.
    pub bytes: u32,
    /// A hash of its destination, which a slice holds once.
    pub destination: u64,
    /// Octets of the destination as JSON.
    pub destination_bytes: u32,
}

/// What was seen or heard.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    /// All membership Leases, by a consistent read (no `resourceVersion` in
    /// the list request). To be made every [`Workers::read_every`] from the
    /// start: who is dead is counted by these reads.
    Leases {
        /// When the request was sent.
        sent: Boot,
        /// All of them.
        leases: Vec<LeaseSeen>,
        /// `metadata.resourceVersion` of the leader's own Lease, by the same
        /// read; empty if there is none. That it changes shows that Leases can
        /// be written.
        leader: String,
    },
    /// Such a read failed, or is not answered within [`Workers::late_after`];
    /// once for each.
    Unread {
        /// When the request was sent.
        sent: Boot,
    },
    /// One of them, by a watch or as the answer to a write.
    Lease(LeaseSeen),
    /// All shards, first or again.
    Shards(Vec<ShardSeen>),
    /// One shard, by a watch or as the answer to a write.
    Shard(ShardSeen),
    /// The shard is deleted.
    ShardGone(ShardId),
    /// All slices, first or again.
    Slices(Vec<SliceSeen>),
    /// One slice, by a watch or as the answer to a write.
    Slice(SliceSeen),
    /// The slice is deleted.
    SliceGone(ShardId, u32),
    /// All records that may be polled, first or again.
    Records(Vec<RecordSeen>),
    /// One record that may be polled: new, or changed.
    Record(RecordSeen),
    /// The record is deleted, or must not be polled.
    RecordGone(RecordKey),
    /// So many workers there should be (Pods of the worker's Deployment).
    Expected(u32),
    /// `hostConnections` of the settings; 0: no limit.
    Connections(u32),
    /// How a decree ended: exactly one for each, after the object that the
    /// write returned was told by `Lease`, `Shard` or `Slice`.
    Answered {
        /// [`Decree::target`].
        target: Target,
        /// How it ended.
        answer: Answer,
    },
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Done.
    Done,
    /// The object is at another version, there already, or gone (409, 404).
    Conflict,
    /// Nobody knows: perhaps it was done, perhaps it still will be.
    Failed,
}

/// The object that a decree writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A membership Lease, by its name.
    Lease(Arc<str>),
    /// A shard.
    Shard(ShardId),
    /// A slice.
    Slice(ShardId, u32),
}

/// What is to be written. Every write compares and swaps with its `version`.
/// No two are under way for one object.
#[derive(Clone, Debug, PartialEq)]
pub enum Decree {
    /// The worker is dead: set `spec.holderIdentity` to
    /// `LeaseHolder::Stolen(worker)`, if the Lease has exactly this version.
    StealLease {
        /// The Lease.
        name: Arc<str>,
        /// Its `resourceVersion`.
        version: String,
        /// Whose it was.
        worker: Incarnation,
    },
    /// Nobody has a use for the Lease any more: delete it at this version.
    DeleteLease {
        /// The Lease.
        name: Arc<str>,
        /// Its `resourceVersion`.
        version: String,
    },
    /// Create the shard: no worker, epoch 0, no slices.
    CreateShard(ShardId),
    /// Write `spec` of the shard.
    SetDesired {
        /// The shard.
        shard: ShardId,
        /// Its `resourceVersion`.
        version: String,
        /// `spec.desired`.
        desired: Option<Incarnation>,
        /// `spec.slices`.
        slices: u32,
        /// Why the worker is another one; `None` where it is the same.
        why: Option<Why>,
    },
    /// Write `status.holder` and `status.epoch` of the shard: it has no
    /// holder, or a dead one. The rest of the status stays.
    GiveAway {
        /// The shard.
        shard: ShardId,
        /// Its `resourceVersion`.
        version: String,
        /// The new holder.
        holder: Incarnation,
        /// One more than before.
        epoch: i64,
    },
    /// Write, or create, the slice: items of these records, each with its
    /// factor, in this order, with the destinations that they use. It is
    /// always created empty and filled by another write: a creation that
    /// arrives late, when the slice has been deleted again, brings nothing
    /// back.
    WriteSlice {
        /// The shard.
        shard: ShardId,
        /// The slice's number.
        number: u32,
        /// Its `resourceVersion`; `None`: it is to be created.
        version: Option<String>,
        /// The records and over how many shards their hosts are spread.
        items: Vec<(RecordKey, u32)>,
        /// For the annotation [`REMOVED`], by [`format_removed`]; to be taken
        /// away where this is empty.
        removed: Vec<RecordKey>,
    },
}

impl Decree {
    /// The object that it writes.
    pub fn target(&self) -> Target {
        match self {
            Self::StealLease { name, .. } | Self::DeleteLease { name, .. } => Target::Lease(Arc::clone(name)),
            Self::CreateShard(shard) | Self::SetDesired { shard, .. } | Self::GiveAway { shard, .. } => {
                Target::Shard(*shard)
            }
            Self::WriteSlice { shard, number, .. } => Target::Slice(*shard, *number),
        }
    }
}

/// The annotation of a slice that names the records that were taken out of it
/// and whose sessions may still be open.
pub const REMOVED: &str = "rpop.dev/removed";

/// The value of the annotation [`REMOVED`].
pub fn format_removed(removed: &[RecordKey]) -> String {
    let names: Vec<String> = removed.iter().map(RecordKey::to_string).collect();
    names.join(",")
}

/// Reads the annotation [`REMOVED`]; what is no record's name is passed over.
pub fn parse_removed(text: &str) -> Vec<RecordKey> {
    let names = text.split(',').filter_map(|name| name.split_once('/'));
    names.map(|(namespace, name)| RecordKey { namespace: namespace.into(), name: name.into() }).collect()
}

/// How a leader works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// How many shards there are to be.
    pub shards: u16,
    /// D and R.
    pub timing: Timing,
}

/// Shards at most that are on their way between two live workers for the sake
/// of balance.
const MOST_BALANCING: usize = 8;
/// Writes at most that are under way.
const MOST_WRITES: usize = 32;
/// Without a change of the workers, balance is looked at so often.
const BALANCE_EVERY: Duration = Duration::from_secs(30);
/// After a write that met another version, or whose end is not known; doubled
/// with each failure in a row, up to [`PAUSE_MOST`].
const PAUSE: Duration = Duration::from_millis(500);
/// The longest such pause.
const PAUSE_MOST: Duration = Duration::from_secs(8);
/// A measured load becomes believed within this time.
const BELIEVED_AFTER: f64 = 60.0;
/// A shard without polls weighs so much that those of a worker together weigh
/// this many sessions: where little is to do, shards are shared out by number.
const IDLE_WORKER: f64 = 0.25;

struct Shard {
    seen: ShardSeen,
    /// When this holder was seen first.
    held_since: Boot,
    /// Session-seconds per second, and when that was said.
    load: Option<(f64, Boot)>,
}

enum Flight {
    UnderWay,
    /// Not again before that, unless the object changes.
    Paused(Boot),
}

struct Busy {
    flight: Flight,
    failures: u32,
}

/// The leader; see the module's page. A process that becomes the leader makes
/// a new one: it tells it all shards, all slices and all records (in any
/// order), and then begins to read the Leases. Until it has all that it
/// decides nothing.
#[allow(clippy::struct_excessive_bools, reason = "what was told and what was done are apart")]
pub struct Leader {
    config: Config,
    workers: Workers,
    records: Records,
    slices: Slices,
    shards: BTreeMap<ShardId, Shard>,
    /// When all shards were told first.
    shards_told: Option<Boot>,
    slices_told: bool,
    records_told: bool,
    busy: HashMap<Target, Busy>,
    balanced: Boot,
    /// The first placement of this leader was made, or not needed.
    warm: bool,
}

impl Leader {
    /// A leader that knows nothing yet.
    pub fn new(config: Config) -> Self {
        Self::resume(config, Workers::new(config.timing))
    }

    /// A leader that knows nothing yet but what this process has counted
    /// before it led.
    pub fn resume(config: Config, workers: Workers) -> Self {
        Self {
            workers: workers.new_term(),
            records: Records::new(config.shards),
            slices: Slices::new(),
            shards: BTreeMap::new(),
            shards_told: None,
            slices_told: false,
            records_told: false,
            busy: HashMap::new(),
            balanced: Boot(0),
            warm: false,
            config,
        }
    }

    /// It leads no more: what it has counted, for its next term.
    pub fn into_workers(self) -> Workers {
        self.workers
    }

    /// When [`Leader::decide`] is to be called if nothing is heard.
    pub fn next_look(&self, now: Boot) -> Boot {
        self.workers.next_death(now).min(now.after(self.workers.read_every()))
    }

    /// What people should know of the reads since the last call.
    pub fn take_notices(&mut self) -> Vec<Sight> {
        self.workers.take_notices()
    }

    /// Hears what was seen. Cheap: a batch is heard before one decision.
    pub fn hear(&mut self, now: Boot, seen: Seen) {
        match seen {
            Seen::Leases { .. } => {
                self.workers.hear(now, seen);
                self.weigh(now);
            }
            Seen::Unread { .. } => self.workers.hear(now, seen),
            Seen::Lease(lease) => {
                self.changed(&Target::Lease(Arc::clone(&lease.name)));
                self.workers.see(now, lease);
            }
            Seen::Shards(all) => {
                let names: Vec<ShardId> = all.iter().map(|shard| shard.id).collect();
                self.shards.retain(|id, _| names.contains(id));
                for shard in all {
                    self.see_shard(now, shard);
                }
                self.shards_told.get_or_insert(now);
            }
            Seen::Shard(shard) => self.see_shard(now, shard),
            Seen::ShardGone(id) => {
                self.shards.remove(&id);
            }
            Seen::Slices(all) => {
                self.slices.replace(&mut self.records, all);
                self.slices_told = true;
            }
            Seen::Slice(slice) => {
                self.changed(&Target::Slice(slice.shard, slice.number));
                self.slices.see(&mut self.records, slice);
            }
            Seen::SliceGone(shard, number) => {
                self.changed(&Target::Slice(shard, number));
                self.slices.gone(&mut self.records, (shard, number));
            }
            Seen::Records(all) => {
                self.records.replace(&all);
                self.records_told = true;
            }
            Seen::Record(record) => self.records.put(&record),
            Seen::RecordGone(key) => self.records.remove(&key),
            Seen::Expected(workers) => self.workers.expect(workers),
            Seen::Connections(limit) => self.records.limit(limit),
            Seen::Answered { target, answer } => self.answered(now, target, answer),
        }
    }

    /// What to write now. To be called after anything was heard, and when it is
    /// time for [`Leader::next_look`].
    pub fn decide(&mut self, now: Boot) -> Vec<Decree> {
        self.workers.look(now);
        if !self.is_ready() {
            return Vec::new();
        }
        if let Some(said) = self.slices.said.take() {
            self.records.recall(said);
            let held = self.shards.values().map(|shard| &shard.seen);
            self.slices.look_back(&mut self.records, held);
        }
        self.records.spread();
        let mut decrees = self.lead_workers(now);
        let under_way = self.busy.values().filter(|busy| matches!(busy.flight, Flight::UnderWay)).count();
        let mut room = MOST_WRITES.saturating_sub(under_way);
        decrees.truncate(room);
        room -= decrees.len();
        let gone = self.gone(now);
        let shards = self.lead_shards(now, &gone, room);
        room -= shards.len();
        decrees.extend(shards);
        self.settle(&gone);
        let (busy, shards) = (&self.busy, &self.shards);
        // Of shards beyond those there are, nothing is made again.
        let ours = |shard: &&Shard| shard.seen.id.0 < self.config.shards;
        let followed = |id: ShardId| shards.get(&id).filter(ours).map_or(0, |shard| shard.seen.slices);
        let is_busy = |target: &Target| is_busy(busy, target, now);
        decrees.extend(self.slices.decide(&mut self.records, is_busy, followed, room));
        for decree in &decrees {
            let busy =
                self.busy.entry(decree.target()).or_insert(Busy { flight: Flight::UnderWay, failures: 0 });
            busy.flight = Flight::UnderWay;
        }
        decrees
    }

    /// The shard that has the record among its slices, and over how many
    /// shards its host is spread; `None` until it is there.
    pub fn place_of(&self, record: &RecordKey) -> Option<(ShardId, u32)> {
        self.records.placed(record)
    }

    /// Shards that are polled by a live worker, of all there are.
    pub fn shards_held(&self) -> (usize, usize) {
        let held = |shard: &&Shard| shard.seen.holder.is_some() && shard.seen.holder == shard.seen.desired;
        (self.shards.values().filter(held).count(), self.shards.len())
    }

    fn is_ready(&self) -> bool {
        // Leases read later than the shards name every worker that these name.
        self.slices_told
            && self.records_told
            && self.shards_told.is_some_and(|told| self.workers.is_read_since(told))
    }

    fn see_shard(&mut self, now: Boot, seen: ShardSeen) {
        let before = self.shards.get(&seen.id);
        let fresh = before.is_none_or(|before| {
            before.seen.version != seen.version && !is_older(&seen.version, &before.seen.version)
        });
        if !fresh {
            return;
        }
        let same = before.is_some_and(|before| before.seen.holder == seen.holder);
        let held_since = before.filter(|_| same).map_or(now, |before| before.held_since);
        let load = before.and_then(|before| before.load);
        self.changed(&Target::Shard(seen.id));
        self.shards.insert(seen.id, Shard { seen, held_since, load });
    }

    /// The object is another than it was: what failed may go well now.
    fn changed(&mut self, target: &Target) {
        if let Some(Busy { flight: Flight::Paused(_), .. }) = self.busy.get(target) {
            self.busy.remove(target);
        }
    }

    fn answered(&mut self, now: Boot, target: Target, answer: Answer) {
        let failures = self.busy.get(&target).map_or(0, |busy| busy.failures);
        if answer == Answer::Done {
            self.busy.remove(&target);
            if let Target::Slice(shard, number) = target {
                self.slices.done(&mut self.records, (shard, number));
            }
            return;
        }
        let pause = (PAUSE * 2_u32.saturating_pow(failures.min(8))).min(PAUSE_MOST);
        let flight = Flight::Paused(now.after(pause));
        self.busy.insert(target, Busy { flight, failures: failures + 1 });
    }

    /// The holders that can act no more.
    fn gone(&mut self, now: Boot) -> HashMap<Incarnation, bool> {
        let mut gone: HashMap<Incarnation, bool> = HashMap::new();
        for shard in self.shards.values() {
            if let Some(holder) = &shard.seen.holder {
                let is_gone = self.workers.is_gone(now, holder, shard.held_since);
                // Once is enough: it never returns.
                *gone.entry(holder.clone()).or_default() |= is_gone;
            }
        }
        gone
    }

    fn settle(&mut self, gone: &HashMap<Incarnation, bool>) {
        let (shards, busy) = (&self.shards, &self.busy);
        self.slices.settle(&mut self.records, |id, slice| {
            // A shard that is not known may have a holder.
            let Some(shard) = shards.get(&id) else { return Observed::Nothing };
            // So may one that is just given away, as long as it is not known
            // how that ended: its new holder may have read the slice before.
            let open = busy.contains_key(&Target::Shard(id));
            match &shard.seen.holder {
                None if !open => Observed::NoHolder,
                Some(holder) if !open && gone.get(holder) == Some(&true) => Observed::NoHolder,
                None => Observed::Nothing,
                Some(_) => shard
                    .seen
                    .observed
                    .get(slice)
                    .map_or(Observed::Nothing, |seen| Observed::Slice(seen.clone())),
            }
        });
    }

    fn lead_workers(&mut self, now: Boot) -> Vec<Decree> {
        let named = |worker: &Incarnation| {
            self.shards.values().any(|shard| {
                shard.seen.holder.as_ref() == Some(worker) || shard.seen.desired.as_ref() == Some(worker)
            })
        };
        let steals = self.workers.dead(now).into_iter().map(|(lease, worker)| Decree::StealLease {
            name: Arc::clone(&lease.name),
            version: lease.version.clone(),
            worker: worker.clone(),
        });
        let obsolete = self.workers.obsolete().into_iter().filter(|lease| match &lease.holder {
            LeaseHolder::Stolen(worker) | LeaseHolder::Worker(worker) => !named(worker),
            LeaseHolder::Nobody => true,
        });
        let deletions = obsolete.map(|lease| Decree::DeleteLease {
            name: Arc::clone(&lease.name),
            version: lease.version.clone(),
        });
        steals.chain(deletions).filter(|decree| !is_busy(&self.busy, &decree.target(), now)).collect()
    }

    /// Takes in what workers say of their shards.
    fn weigh(&mut self, now: Boot) {
        for (lease, worker) in self.workers.loads() {
            for (id, load) in &lease.load {
                let Some(shard) = self.shards.get_mut(id) else { continue };
                if shard.seen.holder.as_ref() != Some(worker) || !load.is_finite() {
                    continue;
                }
                let said = f64::from(load.clamp(0.0, 1e6));
                let load = shard.load.map_or(said, |(before, at)| {
                    let part = 1.0 - (-now.since(at).as_secs_f64() / BELIEVED_AFTER).exp();
                    before + (said - before) * part
                });
                shard.load = Some((load, now));
            }
        }
    }

    fn view(&self, workers: Vec<Worker>, gone: &HashMap<Incarnation, bool>) -> View {
        // Where nothing is measured yet, records are: as long as those that
        // are measured.
        let (mut measured, mut estimated) = (0.0, 0.0);
        for (id, shard) in &self.shards {
            if let Some((load, _)) = shard.load {
                measured += load;
                estimated += self.records.rate(*id);
            }
        }
        let ratio = if estimated > 0.0 { (measured / estimated).clamp(0.01, 100.0) } else { 1.0 };
        let idle = IDLE_WORKER * workers.len() as f64 / self.shards.len().max(1) as f64;
        let places: HashMap<&Incarnation, usize> =
            workers.iter().enumerate().map(|(n, worker)| (&worker.name, n)).collect();
        let at =
            |worker: &Option<Incarnation>| worker.as_ref().and_then(|worker| places.get(worker).copied());
        let shards = self.shards.iter().map(|(id, shard)| {
            let load = shard.load.map_or_else(|| self.records.rate(*id) * ratio, |(load, _)| load) + idle;
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let load = (load * 1e6) as u64;
            let holder =
                shard.seen.holder.as_ref().filter(|holder| gone.get(*holder) != Some(&true)).cloned();
            placement::Shard { id: *id, load, at: at(&shard.seen.desired).or_else(|| at(&holder)) }
        });
        View { shards: shards.collect(), workers }
    }

    fn lead_shards(&mut self, now: Boot, gone: &HashMap<Incarnation, bool>, room: usize) -> Vec<Decree> {
        let mut decrees: Vec<Decree> = (0..self.config.shards)
            .map(ShardId)
            .filter(|id| !self.shards.contains_key(id) && !is_busy(&self.busy, &Target::Shard(*id), now))
            .map(Decree::CreateShard)
            .take(room)
            .collect();
        let view = self.view(self.workers.alive(now), gone);
        let targets = self.targets(now, &view);
        for (id, shard) in &self.shards {
            if decrees.len() >= room {
                break;
            }
            if is_busy(&self.busy, &Target::Shard(*id), now) {
                continue;
            }
            let (target, why) = targets.get(id).map_or((None, None), |(to, why)| (Some(*to), *why));
            let target = target.map(|to| &view.workers[to]);
            let seen = &shard.seen;
            let free = seen.holder.as_ref().is_none_or(|holder| gone.get(holder) == Some(&true));
            // A holder may be polling by any slice that it was ever told to
            // read: as long as it lives, every leader can see which these are.
            let least = if free { 0 } else { seen.slices };
            let slices = self.slices.count(*id).max(least);
            // Where there is nobody, whoever was wanted stays wanted.
            let desired = target.map(|worker| &worker.name).or(seen.desired.as_ref());
            if desired != seen.desired.as_ref() || slices != seen.slices {
                decrees.push(Decree::SetDesired {
                    shard: *id,
                    version: seen.version.clone(),
                    desired: desired.cloned(),
                    slices,
                    why: why.filter(|_| desired != seen.desired.as_ref()),
                });
                continue;
            }
            if let Some(worker) = target.filter(|worker| free && worker.role != Role::Leaves) {
                decrees.push(Decree::GiveAway {
                    shard: *id,
                    version: seen.version.clone(),
                    holder: worker.name.clone(),
                    epoch: seen.epoch + 1,
                });
            }
        }
        decrees
    }

    /// The worker of each shard, as a place in the view, and why, where that
    /// is another one than is wanted now.
    fn targets(&mut self, now: Boot, view: &View) -> BTreeMap<ShardId, (usize, Option<Why>)> {
        let stays = view.shards.iter().filter_map(|shard| Some((shard.id, (shard.at?, None))));
        let mut targets: BTreeMap<ShardId, (usize, Option<Why>)> = stays.collect();
        let takers = view.workers.iter().filter(|worker| worker.role == Role::Takes).count();
        self.warm |= !targets.is_empty();
        if !self.warm && self.workers.awaits_more(now, takers) {
            return targets;
        }
        self.warm |= takers > 0;
        let may_balance = self.workers.changed || now.since(self.balanced) >= BALANCE_EVERY;
        let on_the_way = self
            .shards
            .values()
            .filter(|shard| shard.seen.holder.is_some() && shard.seen.holder != shard.seen.desired)
            .count();
        let mut room = if may_balance { MOST_BALANCING.saturating_sub(on_the_way) } else { 0 };
        let moves = placement::plan(view);
        let balancing = moves.iter().filter(|step| step.why == Why::Balance).count();
        for step in moves {
            if step.why == Why::Balance {
                if room == 0 {
                    continue;
                }
                room -= 1;
            }
            targets.insert(step.shard, (step.to, Some(step.why)));
        }
        if may_balance && balancing == 0 {
            // In balance: from now on it is looked at now and then.
            self.workers.changed = false;
            self.balanced = now;
        }
        targets
    }
}

fn is_busy(busy: &HashMap<Target, Busy>, target: &Target, now: Boot) -> bool {
    busy.get(target).is_some_and(|busy| match busy.flight {
        Flight::UnderWay => true,
        Flight::Paused(until) => now < until,
    })
}

#[cfg(test)]
#[path = "leader_tests.rs"]
mod tests;
