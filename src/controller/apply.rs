//! Step 4: an accepted record is put among the work. Only what a slice says
//! already can be said in its status.

use super::build::Prepared;
use super::work::Work;
use crate::domain::shards::timing::Boot;
use crate::domain::work::RecordKey;

/// A record that is among the work; perhaps its slice is not written yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outline {
    generation: i64,
    warnings: Vec<String>,
    polled: bool,
    paused: bool,
}

/// A record that is in a slice as it is.
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

/// Puts a record among the work.
pub(super) fn apply(work: &mut Work, prepared: Prepared, now: Boot) -> Outline {
    let Prepared { item, uid, generation, paused, warnings } = prepared;
    let polled = item.interval.is_some();
    work.put(item, &uid, generation, now);
    Outline { generation, warnings, polled, paused }
}

impl Outline {
    /// Whether its slice says what we say, and where.
    pub(super) fn applied(&self, work: &Work, key: &RecordKey) -> Option<Applied> {
        let (shard, factor) = work.placed(key)?;
        let Self { generation, warnings, polled, paused } = self.clone();
        Some(Applied { generation, shard: shard.0, factor, warnings, polled, paused })
    }
}
