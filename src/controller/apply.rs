//! Step 4: an accepted record is put among the work. Only what was put there
//! can be said in its status.

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
