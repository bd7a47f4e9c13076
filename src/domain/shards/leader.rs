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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::placement::Why;
use super::timing::{Boot, Timing};
use super::{Incarnation, LeaseHolder, ShardId};
pub use crate::domain::shards::holding::ShardSeen;
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
    /// `WorkItem::uid`.
    pub uid: u64,
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
    /// the list request). To be made every [`Leader::read_every`] from the
    /// start: who is dead is counted by these reads.
    Leases {
        /// When the request was sent.
        sent: Boot,
        /// All of them.
        leases: Vec<LeaseSeen>,
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
    /// Something of our own failed, a read or a write, or took longer than it
    /// should: the API server may be away for all. Every count of dead workers
    /// starts afresh.
    Gap,
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
    /// factor, in this order, with the destinations that they use.
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
