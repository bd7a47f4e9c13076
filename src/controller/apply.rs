//! Step 4: an accepted record is put among the work. Only what was put there
//! can be said in its status.

use super::build::Prepared;
use super::work::Work;
use crate::domain::work::RecordKey;

/// A record that has its shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Applied {
    pub(super) generation: i64,
    pub(super) shard: u16,
    /// Over how many shards its host is spread.
    pub(super) factor: u32,
    pub(super) warnings: Vec<String>,
    pub(super) polled: bool,
    pub(super) paused: bool,
}

/// Puts a record among the work. `None`: its shard is told later.
pub(super) fn apply(work: &mut Work, prepared: Prepared) -> Option<Applied> {
    let Prepared { item, uid, generation, past, paused, warnings } = prepared;
    let polled = item.interval.is_some();
    let key = item.key.clone();
    work.put(item, &uid, generation, past);
    let (shard, factor) = work.placed(&key)?;
    Some(Applied { generation, shard: shard.0, factor, warnings, polled, paused })
}

/// A record is none of the work any more.
pub(super) fn withdraw(work: &mut Work, key: &RecordKey) {
    work.remove(key);
}
