//! Random stories of leaders, workers and an API server, and those of them that
//! went wrong once: above all, slices that somebody deletes by hand.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Happening {
    Seconds(usize),
    Put(usize, usize, u64),
    Delete(usize),
    Kill(usize),
    Restart(usize),
    Join(usize),
    Leave(usize),
    Lag(usize, bool),
    Mute(usize, bool),
    /// A new leader, that has counted already or not; perhaps a slice is
    /// deleted while it reads all there is.
    Elect(bool, Option<usize>),
    Outage(usize),
    Lost(usize),
    /// What was lost is done now; the watch of slices tells of it, or breaks
    /// and begins with all there is.
    Late(bool),
    /// A slice is deleted by hand and its records are edited; before anybody is
    /// told, there is another leader.
    Unseen(usize, usize),
    /// By hand; and the leader is told of it soon, or at once.
    DeleteSlice(usize, bool),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (1_usize..4).prop_map(Happening::Seconds),
        1 => (5_usize..15).prop_map(Happening::Seconds),
        8 => (0_usize..30, 0_usize..12, 1_u64..4).prop_map(|(n, host, digest)| Happening::Put(n, host, digest)),
        3 => (0_usize..30).prop_map(Happening::Delete),
        1 => (0_usize..5).prop_map(Happening::Kill),
        1 => (0_usize..5).prop_map(Happening::Restart),
        2 => (0_usize..5).prop_map(Happening::Join),
        1 => (0_usize..5).prop_map(Happening::Leave),
        4 => (0_usize..5, any::<bool>()).prop_map(|(n, lags)| Happening::Lag(n, lags)),
        2 => (0_usize..5, any::<bool>()).prop_map(|(n, mute)| Happening::Mute(n, mute)),
        3 => (any::<bool>(), prop::option::weighted(0.2, 0_usize..20))
            .prop_map(|(counted, slice)| Happening::Elect(counted, slice)),
        1 => (1_usize..20).prop_map(Happening::Outage),
        2 => (1_usize..4).prop_map(Happening::Lost),
        2 => any::<bool>().prop_map(Happening::Late),
        2 => (0_usize..20, 0_usize..12).prop_map(|(n, host)| Happening::Unseen(n, host)),
        5 => (0_usize..20, any::<bool>()).prop_map(|(n, told)| Happening::DeleteSlice(n, told)),
    ]
}

impl World {
    fn hands_of(&mut self, n: usize) -> impl Iterator<Item = &mut Hand> {
        self.hands.iter_mut().filter(move |hand| hand.me.pod() == format!("w{n}"))
    }

    fn delete_nth_slice(&mut self, n: usize) {
        if let Some(at) = self.slices.keys().nth(n).copied() {
            self.delete_slice(at);
        }
    }

    #[allow(clippy::needless_pass_by_value, reason = "what has happened is over")]
    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Seconds(count) => self.seconds(count),
            Happening::Put(n, host, digest) => {
                // Of some of them a slice has one each.
                let bytes = if digest == 3 { 60_000 } else { 500 };
                self.put(RecordSeen { bytes, ..record(n, host, digest) });
                self.lead();
            }
            Happening::Delete(n) => {
                self.delete(n);
                self.lead();
            }
            Happening::Kill(n) => self.hands_of(n).for_each(|hand| hand.alive = false),
            Happening::Restart(n) | Happening::Join(n) => {
                if self.up {
                    let boot = u32::try_from(self.version).expect("a small number");
                    self.join(&format!("w{n}"), boot);
                }
            }
            Happening::Leave(n) => self.hands_of(n).for_each(|hand| hand.leaving = true),
            Happening::Lag(n, lags) => self.hands_of(n).for_each(|hand| hand.lags = lags),
            Happening::Mute(n, mute) => self.hands_of(n).for_each(|hand| hand.mute = mute),
            Happening::Elect(counted, slice) => {
                // Nothing that the old one sent comes after the new one has
                // begun: it had the time of a lease for that.
                self.late.clear();
                let before = std::mem::replace(&mut self.leader, Leader::new(CONFIG)).into_workers();
                let workers = if counted { before } else { Workers::new(TIMING) };
                self.elect_with(workers, |world| {
                    if let Some(n) = slice {
                        world.work();
                        world.delete_nth_slice(n);
                    }
                });
            }
            Happening::Outage(count) => {
                self.up = false;
                self.seconds(count);
                self.up = true;
            }
            Happening::Lost(count) => self.lost = count,
            Happening::Late(told) => {
                if told {
                    self.tell_deletions();
                }
                for decree in std::mem::take(&mut self.late) {
                    self.carry_out(&decree);
                    if told {
                        self.tell(&decree.target());
                    }
                }
                self.untold.clear();
                self.leader.hear(self.now, Seen::Shards(self.shards.values().cloned().collect()));
                self.leader.hear(self.now, Seen::Slices(self.slices.values().cloned().collect()));
            }
            Happening::Unseen(n, host) => {
                if let Some(slice) = self.slices.values().nth(n).cloned() {
                    for item in slice.items {
                        if let Some(record) = self.records.get_mut(&item.key) {
                            record.host = format!("pop{host}.example").into();
                            record.digest += 10;
                        }
                    }
                    self.delete_slice((slice.shard, slice.number));
                }
                self.late.clear();
                self.elect();
            }
            Happening::DeleteSlice(n, told) => {
                self.delete_nth_slice(n);
                if told {
                    self.tell_deletions();
                }
            }
        }
    }

    /// All that hinders is over.
    fn recover(&mut self) {
        for hand in &mut self.hands {
            (hand.lags, hand.mute) = (false, false);
        }
        self.lost = 0;
    }
}

/// Whoever lags polls on by the slice that it has read, however often that is
/// deleted and made again: until it says that it has read the present one, or
/// dies, no other shard gets a record that the first one had.
#[test]
fn the_generations_of_a_slice_made_again_acknowledge_nothing_for_the_one_before() {
    let mut world = World::new(3, 20);
    for n in [5, 8] {
        world.happen(Happening::Put(4, n, 1));
    }
    for n in [3, 0] {
        world.happen(Happening::Put(n, 1, 1));
    }
    world.seconds(2);
    world.happen(Happening::Lag(1, true));
    world.second();
    world.happen(Happening::DeleteSlice(8, true));
    world.happen(Happening::Put(14, 1, 1));
    world.second();
    world.recover();
    world.seconds(3);
    assert!(world.is_complete());
}

/// A leader, elected after slices were deleted by hand whose holders lag, knows
/// nothing of the records that these had. `moved` are records that were edited
/// meanwhile: they belong to shards of workers that do not lag.
fn blinded(lagging: &[&str], moved: &mut Vec<RecordKey>) -> World {
    let mut world = World::new(3, 40);
    world.seconds(3);
    for pod in lagging {
        let of_pod =
            |at: &(ShardId, u32)| world.shards[&at.0].holder.as_ref().map(Incarnation::pod) == Some(*pod);
        let slices: Vec<_> = world.slices.keys().copied().filter(of_pod).collect();
        let gone = world.slices.keys().copied().find(|at| of_pod(at)).expect("a slice");
        let elsewhere = (1000..10_000).find(|host| {
            let to = mapping_of(&format!("pop{host}.example"));
            let holder = world.shards[&to].holder.as_ref().map(Incarnation::pod);
            holder.is_some_and(|pod| !lagging.contains(&pod))
        });
        assert!(slices.len() > 1);
        for item in world.slices[&gone].items.clone() {
            let before = world.records[&item.key].clone();
            let host = format!("pop{}.example", elsewhere.expect("a host")).into();
            world.records.insert(item.key.clone(), RecordSeen { host, digest: 2, ..before });
            moved.push(item.key);
        }
        world.hand(pod).lags = true;
        world.delete_slice(gone);
    }
    world.elect();
    world
}

#[test]
fn a_new_leader_adds_nothing_anywhere_that_an_unknown_slice_may_have_had() {
    let mut moved = Vec::new();
    let mut world = blinded(&["w1"], &mut moved);
    world.seconds(4);
    // Again a new one: what the last one has made again tells of nothing.
    world.elect();
    world.seconds(4);
    let lagging = world.hand("w1").me.clone();
    for key in &moved {
        assert_eq!(world.polled()[key], BTreeSet::from([lagging.clone()]));
        assert_eq!(world.leader.place_of(key), None);
    }
    // What others are known to have had moves as always,
    let others = |at: &&RecordKey| world.polled()[*at].iter().all(|worker| *worker != lagging);
    let known = world.records.keys().find(others).expect("a record of another worker").clone();
    let before = world.leader.place_of(&known).expect("a place");
    let to = (1000..10_000).find(|host| {
        let to = mapping_of(&format!("pop{host}.example"));
        to != before.0 && world.shards[&to].holder.as_ref() != Some(&lagging)
    });
    let changed = RecordSeen {
        host: format!("pop{}.example", to.unwrap()).into(),
        digest: 7,
        ..world.records[&known].clone()
    };
    world.put(changed);
    world.seconds(2);
    assert!(world.leader.place_of(&known).is_some_and(|now| now.0 != before.0));
    // and all the others when the holder has said by what it works.
    world.hand("w1").lags = false;
    world.seconds(2);
    assert!(world.is_complete());
}

#[test]
fn a_holder_that_never_says_by_what_it_polled_is_waited_for_until_it_is_dead() {
    let mut moved = Vec::new();
    let mut world = blinded(&["w1"], &mut moved);
    world.seconds(4);
    world.hand("w1").alive = false;
    world.seconds(12);
    assert!(world.is_complete());
}

#[test]
fn holders_of_unknown_slices_do_not_wait_for_each_other() {
    let mut moved = Vec::new();
    let mut world = blinded(&["w1", "w2"], &mut moved);
    world.seconds(4);
    assert!(moved.iter().all(|key| world.leader.place_of(key).is_none()));
    world.hand("w2").lags = false;
    world.seconds(4);
    assert!(moved.iter().all(|key| world.leader.place_of(key).is_none()), "w1 may poll any of them");
    world.hand("w1").lags = false;
    world.seconds(2);
    assert!(world.is_complete());
}

#[test]
fn a_creation_that_comes_when_its_slice_was_deleted_again_brings_nothing_back() {
    let mut world = World::new(2, 0);
    world.seconds(3);
    world.lost = 1;
    world.put(record(0, 0, 1));
    world.lead();
    assert_eq!(world.late.len(), 1);
    world.seconds(2);
    assert!(world.is_complete(), "the second creation was done");
    let (_, moved) = mover(&world);
    world.put(moved);
    world.seconds(2);
    let at = (mapping_of("pop0.example"), 0);
    world.delete_slice(at);
    world.happen(Happening::Late(true));
    assert!(world.slices[&at].items.is_empty());
    world.seconds(2);
    assert!(world.is_complete());
}

/// Two creations of one slice: the answer to the first is lost, the second is
/// done. The first one, when the slice is deleted again, is another object.
fn with_a_late_creation() -> (World, (ShardId, u32)) {
    let mut world = World::new(2, 0);
    world.seconds(3);
    world.lost = 1;
    world.put(record(0, 0, 1));
    world.seconds(2);
    assert_eq!((world.late.len(), world.is_complete()), (1, true));
    (world, (mapping_of("pop0.example"), 0))
}

#[test]
fn a_slice_replaced_while_the_watch_was_broken_is_not_the_one_that_was_known() {
    let (mut world, at) = with_a_late_creation();
    let old = world.shards[&at.0].holder.clone().expect("a holder");
    let (n, moved) = mover(&world);
    world.hand(old.pod()).lags = true;
    world.delete_slice(at);
    world.happen(Happening::Late(false));
    world.put(moved);
    world.seconds(3);
    assert_eq!(world.polled()[&key(n)], BTreeSet::from([old.clone()]));
    world.hand(old.pod()).lags = false;
    world.seconds(2);
    assert!(world.is_complete());
    assert_ne!(world.polled()[&key(n)], BTreeSet::from([old]));
}

#[test]
fn what_an_old_creation_names_as_removed_stays_where_it_is_by_now() {
    let (mut world, at) = with_a_late_creation();
    // The creation that is lost names the record, which the slice had before.
    world.late.clear();
    world.lost = 1;
    let (n, moved) = mover(&world);
    world.delete_slice(at);
    world.put(moved);
    world.tell_deletions();
    world.lead();
    world.seconds(3);
    let there = world.polled()[&key(n)].clone();
    assert!(world.is_complete() && world.leader.place_of(&key(n)).is_some_and(|(shard, _)| shard != at.0));
    let old = world.shards[&at.0].holder.clone().expect("a holder");
    assert_ne!(there, BTreeSet::from([old.clone()]));
    world.hand(old.pod()).lags = true;
    world.delete_slice(at);
    world.happen(Happening::Late(true));
    assert_eq!(world.slices[&at].removed, [key(n)]);
    world.seconds(3);
    assert_eq!(world.polled().get(&key(n)), Some(&there));
}

/// A worker cannot take a shard in before all its slices are there, those
/// among them that have nothing in them.
#[test]
fn an_empty_slice_deleted_by_hand_keeps_nobody_from_its_shard() {
    let mut world = World::new(2, 0);
    for n in 0..2 {
        world.put(RecordSeen { bytes: 60_000, ..record(n, 0, 1) });
    }
    world.seconds(3);
    let shard = mapping_of("pop0.example");
    assert_eq!(world.shards[&shard].slices, 2);
    let first = world.slices[&(shard, 0)].items[0].key.clone();
    world.records.remove(&first);
    world.leader.hear(world.now, Seen::RecordGone(first));
    world.seconds(2);
    world.delete_slice((shard, 0));
    let holder = world.shards[&shard].holder.clone().expect("a holder");
    world.hand(holder.pod()).alive = false;
    world.seconds(12);
    assert!(world.is_complete());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64), failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_no_record_has_two_workers_and_in_the_end_each_has_one(
        happenings in prop::collection::vec(happening(), 1..60)
    ) {
        let mut world = World::new(3, 20);
        for happening in happenings {
            world.happen(happening);
        }
        world.recover();
        world.join("last", 99);
        world.seconds(25);
        prop_assert!(world.is_complete(), "{:?}", world.records.keys().filter(|key| !world.polled().contains_key(*key)).collect::<Vec<_>>());
        world.log.clear();
        world.seconds(15);
        let left: Vec<_> = world.log.iter().filter(|decree| !matches!(decree, Decree::DeleteLease { .. } | Decree::StealLease { .. })).collect();
        prop_assert!(left.is_empty(), "{left:?}");
    }
}
