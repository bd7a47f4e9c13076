//! The leader-elected controller: records become work items, shards and slices.
