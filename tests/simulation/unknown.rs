//! A write whose end is not known may have been done: nothing is built on the
//! hope that it was not.

use std::collections::BTreeMap;
use std::sync::Arc;

use rpop::domain::shards::holding::ShardSeen;
use rpop::domain::shards::leader::{
    Answer, Config, Decree, ItemSeen, Leader, LeaseSeen, RecordSeen, Seen, SliceSeen,
};
use rpop::domain::shards::mapping;
use rpop::domain::shards::timing::{Boot, Timing};
use rpop::domain::shards::{Incarnation, LeaseHolder, ShardId};

use super::node::{host, record};

const SHARDS: u16 = 4;

fn shard_of(record: &RecordSeen) -> ShardId {
    mapping::shard(mapping::host_hash(&record.host, record.port), record.maildrop, 1, SHARDS)
}

/// A shard without a holder is given away, and the answer is late: perhaps the
/// new holder has read its slice already. A record that is taken out of that
/// slice meanwhile must not appear in another shard.
#[test]
fn a_record_stays_out_while_it_is_not_known_who_holds_its_old_shard() {
    let worker = Incarnation::new("w", 1);
    let (old, new) = (0..20)
        .flat_map(|from| (0..20).map(move |to| (record(1, host(from), 0), record(1, host(to), 1))))
        .find(|(old, new)| shard_of(old) != shard_of(new))
        .unwrap();
    let (from, to) = (shard_of(&old), shard_of(&new));
    let mut leader = Leader::new(Config { shards: SHARDS, timing: Timing::FAST });
    let shard = |id: ShardId| {
        let holder = (id != from).then(|| worker.clone());
        let (slices, observed) = (u32::from(id == from), BTreeMap::new());
        ShardSeen {
            id,
            version: "10".into(),
            desired: Some(worker.clone()),
            holder,
            epoch: 1,
            slices,
            observed,
        }
    };
    let item = ItemSeen { key: old.key.clone(), uid: old.maildrop, digest: old.digest, factor: 1 };
    let slice = |version: &str, generation, items, removed| SliceSeen {
        shard: from,
        number: 0,
        version: version.into(),
        uid: "s".into(),
        generation,
        items,
        removed,
    };
    let lease = |version: u64| LeaseSeen {
        name: Arc::from("rpop-worker-w"),
        version: version.to_string(),
        holder: LeaseHolder::Worker(worker.clone()),
        leaving: false,
        capacity: 1,
        load: BTreeMap::new(),
    };
    leader.hear(Boot(1_000), Seen::Connections(20));
    leader.hear(Boot(1_000), Seen::Expected(1));
    leader.hear(Boot(1_000), Seen::Shards((0..SHARDS).map(|id| shard(ShardId(id))).collect()));
    leader.hear(Boot(1_000), Seen::Slices(vec![slice("11", 1, vec![item], vec![])]));
    leader.hear(Boot(1_000), Seen::Records(vec![old.clone()]));
    leader.hear(
        Boot(1_010),
        Seen::Leases { sent: Boot(1_001), leases: vec![lease(20)], leader: String::new() },
    );
    let decrees = leader.decide(Boot(1_011));
    assert!(
        decrees.iter().any(|decree| matches!(decree, Decree::GiveAway { shard, .. } if *shard == from)),
        "{from} is given away: {decrees:?}"
    );
    // It was done, the worker polls the record; nobody has told the leader.
    leader.hear(Boot(1_500), Seen::Record(new.clone()));
    let decrees = leader.decide(Boot(1_501));
    let removal =
        decrees.iter().find(|decree| matches!(decree, Decree::WriteSlice { shard, .. } if *shard == from));
    let removal = removal.unwrap_or_else(|| panic!("the record leaves {from}: {decrees:?}"));
    leader.hear(Boot(1_550), Seen::Slice(slice("30", 2, vec![], vec![old.key.clone()])));
    leader.hear(Boot(1_550), Seen::Answered { target: removal.target(), answer: Answer::Done });
    for step in 0..20 {
        let now = 1_600 + step * 500;
        leader.hear(
            Boot(now),
            Seen::Leases { sent: Boot(now - 5), leases: vec![lease(100 + step)], leader: String::new() },
        );
        for decree in leader.decide(Boot(now)) {
            let adds = matches!(&decree, Decree::WriteSlice { shard, items, .. } if *shard == to && !items.is_empty());
            assert!(!adds, "{} is added to {to} while {from} may have a holder that polls it", old.key);
        }
    }
}
