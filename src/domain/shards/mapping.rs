//! Record to shard. All records of a host share a shard, so that one worker
//! knows how many connections it has there and whether it answers; a giant
//! host is split over several, each with its part of the host's connections.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use super::ShardId;

/// A host with fewer records than one and a half of this is never split: its
/// polls would win nothing, and its connections would be cut into ones.
const LEAST_WORTH_SPLITTING: u64 = 32;

/// The hash of a host, on which the place of its records rests: it must never
/// change. A host is its name, in any case, and its port, as in the scheduler.
pub fn host_hash(name: &str, port: u16) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(name.to_ascii_lowercase().as_bytes());
    hasher.write(&[0]);
    hasher.write(&port.to_be_bytes());
    hasher.finish()
}

/// The hash of a maildrop's account at its host, on which the place of its
/// records rests where the host is split. Records of one maildrop are thereby
/// polled by one worker, which does that one after the other.
pub fn maildrop_hash(account: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    // Most servers do not tell letters' case apart.
    hasher.write(account.to_ascii_lowercase().as_bytes());
    hasher.finish()
}

/// The shard, of `shards`, of the records of a maildrop, of a host that is
/// split over `factor` shards.
///
/// The upper bits of `maildrop` choose among them, so that half of the records
/// stay where they are when the factor doubles.
pub fn shard(host: u64, maildrop: u64, factor: u32, shards: u16) -> ShardId {
    let shards = u64::from(shards.max(1));
    let factor = u64::from(factor).clamp(1, shards);
    let part = u64::try_from((u128::from(maildrop) * u128::from(factor)) >> 64).unwrap_or(0);
    let place = (host % shards + part * shards / factor) % shards;
    ShardId(u16::try_from(place).unwrap_or(0))
}

/// What decides over how many shards hosts are split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// Records of all hosts.
    pub records: u64,
    /// Shards there are.
    pub shards: u16,
    /// Connections to one host at a time, everywhere together; 0: no limit.
    pub limit: u32,
}

impl Scale {
    /// Over how many shards a host with so many records is split: a power of
    /// two, never more than it may have connections. `known` is the answer of
    /// last time, which stays until it is clearly wrong: every other answer
    /// moves records.
    pub fn factor(&self, known: Option<u32>, records: u64) -> u32 {
        let shards = u64::from(self.shards.max(1));
        // A host's fair share of the shards is `records * grain / unit`.
        let (unit, grain) = if self.records > LEAST_WORTH_SPLITTING * shards {
            (self.records, shards)
        } else {
            (LEAST_WORTH_SPLITTING, 1)
        };
        let share = records.saturating_mul(grain);
        let right = u32::try_from(share.div_ceil(unit).max(1).next_power_of_two()).unwrap_or(1 << 31);
        let wanted = match known.map(|known| known.max(1)) {
            None => right,
            Some(known) => {
                let now = unit.saturating_mul(u64::from(known));
                let grown = share.saturating_mul(2) >= now.saturating_mul(3);
                let shrunk = share.saturating_mul(4) <= now;
                if grown || shrunk { right } else { known }
            }
        };
        let most = match self.limit {
            0 => shards,
            limit => shards.min(u64::from(limit)),
        };
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        wanted.min(1 << most.ilog2())
    }

    /// The connections that each of `factor` shards of a host has: at least
    /// one; 0 for no limit.
    pub fn connections(&self, factor: u32) -> u32 {
        if self.limit == 0 { 0 } else { (self.limit / factor.max(1)).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn uids(count: u64) -> impl Iterator<Item = u64> + Clone {
        (0..count).map(|n| host_hash(&format!("uid-{n}"), 0))
    }

    fn spread(host: u64, count: u64, factor: u32) -> Vec<ShardId> {
        uids(count).map(|uid| shard(host, uid, factor, 256)).collect()
    }

    fn scale(records: u64, limit: u32) -> Scale {
        Scale { records, shards: 256, limit }
    }

    #[test]
    fn the_place_of_a_record_never_changes_between_versions() {
        let host = host_hash("POP.isp.example", 995);
        assert_eq!(host, host_hash("pop.isp.example", 995));
        assert_ne!(host, host_hash("pop.isp.example", 110));
        assert_eq!(host, 0x9ac5_6ea6_76e2_98ac);
        assert_eq!(shard(host, 7, 1, 256), ShardId(172));
        assert_eq!(shard(host, u64::MAX, 4, 256), ShardId(108));
    }

    #[test]
    fn records_of_one_maildrop_have_one_owner_however_large_the_host() {
        let host = host_hash("outlook.example", 995);
        let at = |account: &str| shard(host, maildrop_hash(account), 64, 256);
        assert_eq!(at("alice@outlook.example"), at("Alice@Outlook.example"));
        assert_ne!(at("alice@outlook.example"), at("bob@outlook.example"));
    }

    #[test]
    fn a_small_host_has_one_owner() {
        let host = host_hash("pop.isp.example", 995);
        let factor = scale(100_000, 20).factor(None, 300);
        assert_eq!(factor, 1);
        assert!(spread(host, 300, factor).windows(2).all(|two| two[0] == two[1]));
        // Nor is one split because it is the only one.
        assert_eq!(scale(40, 20).factor(None, 30), 1);
    }

    #[test]
    fn a_giant_host_is_spread_evenly_and_keeps_its_limit() {
        let scale = scale(100_000, 20);
        let factor = scale.factor(None, 20_000);
        assert_eq!(factor, 16, "at most as many as it may have connections");
        assert_eq!(scale.connections(factor), 1);
        assert_eq!(Scale { limit: 0, ..scale }.factor(None, 20_000), 64);
        assert_eq!(Scale { limit: 0, ..scale }.connections(64), 0);
        let mut counts = std::collections::BTreeMap::<ShardId, u32>::new();
        for at in spread(host_hash("outlook.example", 995), 20_000, factor) {
            *counts.entry(at).or_default() += 1;
        }
        assert_eq!(counts.len(), 16);
        assert!(counts.values().all(|count| (1_050..1_450).contains(count)), "{counts:?}");
    }

    #[test]
    fn half_of_the_records_stay_when_a_host_grows() {
        let host = host_hash("outlook.example", 995);
        let (before, after) = (spread(host, 10_000, 8), spread(host, 10_000, 16));
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert!((4_700..5_300).contains(&moved), "{moved}");
    }

    proptest! {
        #[test]
        fn a_factor_is_a_power_of_two_within_limits_and_holds(
            records in 1_u64..2_000_000, part in 0.0_f64..1.0, limit in 0_u32..300, shards in 1_u16..2000,
            known in prop::option::of(0_u32..12),
        ) {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let of_host = (records as f64 * part) as u64;
            let scale = Scale { records, shards, limit };
            let factor = scale.factor(known.map(|power| 1 << power), of_host);
            prop_assert!(factor.is_power_of_two() && factor <= u32::from(shards));
            prop_assert!(limit == 0 || factor <= limit);
            prop_assert_eq!(scale.factor(Some(factor), of_host), factor, "asked again, it is the same");
            prop_assert!(limit == 0 || u64::from(scale.connections(factor)) * u64::from(factor) <= u64::from(limit));
            let at = shard(host_hash("h", 1), of_host.wrapping_mul(0x9e37_79b9_7f4a_7c15), factor, shards);
            prop_assert!(at.0 < shards);
        }

        #[test]
        fn small_changes_of_the_numbers_move_nothing(records in 10_000_u64..1_000_000, host in 1_000_u64..10_000) {
            let scale = Scale { records, shards: 256, limit: 0 };
            let factor = scale.factor(None, host);
            // A fifth more or less, of the host or of all.
            for (all, one) in [(records, host * 6 / 5), (records, host * 4 / 5), (records * 6 / 5, host), (records * 5 / 6, host)] {
                prop_assert_eq!(Scale { records: all, ..scale }.factor(Some(factor), one), factor);
            }
        }
    }
}
