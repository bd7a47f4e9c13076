//! The worker: takes shards, polls their records, hands over.

pub mod fence;
pub mod gate;
pub mod roster;
