//! The worker's machine, told stories; then random ones.

use super::*;

const SHARD: ShardId = ShardId(7);
const F: u64 = 20_000;
const LIMIT: Duration = Duration::from_secs(30);

fn me() -> Incarnation {
    Incarnation::new("rpop-worker-a", 1)
}

fn other() -> Incarnation {
    Incarnation::new("rpop-worker-b", 2)
}

fn shard(version: u64, desired: Option<Incarnation>, holder: Option<Incarnation>, epoch: i64) -> ShardSeen {
    ShardSeen {
        id: SHARD,
        version: version.to_string(),
        desired,
        holder,
        epoch,
        slices: 1,
        observed: BTreeMap::new(),
    }
}

fn slices(generation: i64) -> BTreeMap<String, Observation> {
    BTreeMap::from([("shard-007-0".to_owned(), Observation { uid: "u".into(), generation })])
}

fn renewed(sent: u64, result: Renewed) -> Heard {
    Heard::RenewalAnswered { sent: Boot(sent), result }
}

fn read(epoch: i64, generation: i64) -> Heard {
    Heard::SlicesRead { shard: SHARD, epoch, observed: slices(generation) }
}

/// Without the renewals, which each story would repeat.
fn told(member: &mut Member, now: u64, heard: Heard) -> Vec<Order> {
    let mut orders = member.hear(Boot(now), heard);
    orders.retain(|order| !matches!(order, Order::Renew { .. }));
    orders
}

fn wrote(version: u64, result: Written) -> Heard {
    Heard::Wrote { shard: SHARD, version: version.to_string(), result }
}

/// A member since 0 that polls the shard since 0, at version 11 and epoch 3.
fn polling() -> Member {
    let mut member = Member::new(me(), Timing::DEFAULT, LIMIT);
    assert_eq!(member.hear(Boot(0), Heard::Tick), [Order::Renew { leaving: false }]);
    assert_eq!(told(&mut member, 0, renewed(0, Renewed::Ok)), []);
    let orders = told(&mut member, 0, Heard::Shard(shard(10, Some(me()), Some(me()), 3)));
    assert_eq!(orders, [Order::Follow { shard: SHARD, epoch: 3, slices: 1 }]);
    assert_eq!(member.may_poll(SHARD, Boot(0)), None, "its slices are not read");
    let orders = told(&mut member, 0, read(3, 1));
    assert_eq!(orders[0], Order::Start { shard: SHARD, epoch: 3 });
    assert_eq!(
        orders[1..],
        [Order::WriteStatus {
            shard: SHARD,
            version: "10".to_owned(),
            holder: Some(me()),
            epoch: 3,
            observed: slices(1)
        }]
    );
    let now = ShardSeen { observed: slices(1), ..shard(11, Some(me()), Some(me()), 3) };
    assert_eq!(told(&mut member, 0, wrote(10, Written::Ok(now))), []);
    assert_eq!(member.may_poll(SHARD, Boot(0)), Some(3));
    member
}

fn hand_over(version: u64, heir: Option<Incarnation>, epoch: i64, generation: i64) -> Order {
    Order::WriteStatus {
        shard: SHARD,
        version: version.to_string(),
        holder: heir,
        epoch,
        observed: slices(generation),
    }
}

#[test]
fn nothing_is_polled_before_the_first_renewal_is_acknowledged() {
    let mut member = Member::new(me(), Timing::DEFAULT, LIMIT);
    told(&mut member, 0, Heard::Shard(shard(10, Some(me()), Some(me()), 3)));
    told(&mut member, 1, read(3, 1));
    assert_eq!(member.may_poll(SHARD, Boot(1)), None);
    let orders = told(&mut member, 50, renewed(2, Renewed::Ok));
    assert_eq!(orders, [Order::Start { shard: SHARD, epoch: 3 }]);
    assert_eq!(member.may_poll(SHARD, Boot(50)), Some(3));
}

#[test]
fn a_shard_moves_only_after_its_sessions_have_ended() {
    let mut member = polling();
    let orders = told(&mut member, 100, Heard::Shard(shard(12, Some(other()), Some(me()), 3)));
    assert_eq!(orders, [Order::Drain { shard: SHARD, epoch: 3 }]);
    assert_eq!(member.may_poll(SHARD, Boot(100)), None);
    assert_eq!(member.epoch(SHARD), Some(3), "its sessions still commit");
    let orders = told(&mut member, 200, Heard::Drained { shard: SHARD, epoch: 3 });
    assert_eq!(orders, [hand_over(12, Some(other()), 4, 1)]);
    assert_eq!(member.epoch(SHARD), None);
    let done = shard(13, Some(other()), Some(other()), 4);
    assert_eq!(told(&mut member, 300, wrote(12, Written::Ok(done))), [Order::Forget(SHARD)]);
    assert_eq!(member.held().count(), 0);
}

#[test]
fn a_shard_that_nobody_shall_have_is_handed_to_nobody() {
    let mut member = polling();
    told(&mut member, 100, Heard::Shard(shard(12, None, Some(me()), 3)));
    let orders = told(&mut member, 200, Heard::Drained { shard: SHARD, epoch: 3 });
    assert_eq!(orders, [hand_over(12, None, 4, 1)]);
}

#[test]
fn sessions_that_do_not_end_are_dropped_at_the_drain_limit() {
    let mut member = polling();
    told(&mut member, 100, Heard::Shard(shard(12, Some(other()), Some(me()), 3)));
    for at in [7_000, 14_000, 21_000, 28_000] {
        told(&mut member, at, renewed(at - 100, Renewed::Ok));
    }
    assert_eq!(told(&mut member, 30_099, Heard::Tick), []);
    assert_eq!(member.next_wake(), Boot(30_100));
    assert_eq!(told(&mut member, 30_100, Heard::Tick), [Order::Abort(SHARD)]);
    assert_eq!(told(&mut member, 30_200, Heard::Tick), [], "told once");
    assert_eq!(
        told(&mut member, 30_300, Heard::Drained { shard: SHARD, epoch: 3 }),
        [hand_over(12, Some(other()), 4, 1)]
    );
}

#[test]
fn what_another_shall_have_is_passed_on_unopened() {
    let mut member = Member::new(me(), Timing::DEFAULT, LIMIT);
    let orders = told(&mut member, 0, Heard::Shard(shard(10, Some(other()), Some(me()), 3)));
    assert!(matches!(&orders[..], [Order::WriteStatus { epoch: 4, holder, .. }] if *holder == Some(other())));
}

#[test]
fn a_shard_wanted_back_while_it_drains_is_polled_again_only_once_it_has_drained() {
    let mut member = polling();
    told(&mut member, 100, Heard::Shard(shard(12, Some(other()), Some(me()), 3)));
    assert_eq!(told(&mut member, 150, Heard::Shard(shard(13, Some(me()), Some(me()), 3))), []);
    assert_eq!(member.may_poll(SHARD, Boot(150)), None);
    let orders = told(&mut member, 200, Heard::Drained { shard: SHARD, epoch: 3 });
    assert_eq!(orders[0], Order::Start { shard: SHARD, epoch: 3 });
    assert_eq!(member.may_poll(SHARD, Boot(200)), Some(3));
}

#[test]
fn a_hand_over_whose_answer_was_lost_is_never_taken_back() {
    let mut member = polling();
    told(&mut member, 100, Heard::Shard(shard(12, Some(other()), Some(me()), 3)));
    told(&mut member, 200, Heard::Drained { shard: SHARD, epoch: 3 });
    assert_eq!(told(&mut member, 10_000, wrote(12, Written::Failed)), []);
    // A watch that starts anew tells old news: it proves nothing.
    told(&mut member, 10_100, Heard::Shard(shard(11, Some(me()), Some(me()), 3)));
    assert_eq!(member.may_poll(SHARD, Boot(10_100)), None);
    // So it is tried again, on the same version.
    assert_eq!(told(&mut member, 10_500, Heard::Tick), [hand_over(12, Some(other()), 4, 1)]);
    assert_eq!(told(&mut member, 10_600, wrote(12, Written::Conflict)), [Order::Look(SHARD)]);
    let there = shard(13, Some(other()), Some(other()), 4);
    assert_eq!(told(&mut member, 10_700, Heard::Shard(there)), [Order::Forget(SHARD)]);
}

#[test]
fn a_hand_over_that_came_too_late_is_given_up_when_the_shard_is_wanted_back() {
    let mut member = polling();
    told(&mut member, 100, Heard::Shard(shard(12, Some(other()), Some(me()), 3)));
    told(&mut member, 200, Heard::Drained { shard: SHARD, epoch: 3 });
    // While the write is under way nothing is polled, whatever is seen.
    assert_eq!(told(&mut member, 300, Heard::Shard(shard(13, Some(me()), Some(me()), 3))), []);
    assert_eq!(member.may_poll(SHARD, Boot(300)), None);
    let orders = told(&mut member, 400, wrote(12, Written::Conflict));
    assert_eq!(orders[0], Order::Start { shard: SHARD, epoch: 3 });
}

#[test]
fn the_answer_to_an_overtaken_write_is_not_taken_for_another_ones() {
    let mut member = polling();
    told(&mut member, 100, Heard::Shard(shard(12, Some(other()), Some(me()), 3)));
    told(&mut member, 200, Heard::Drained { shard: SHARD, epoch: 3 });
    // The watch is faster than the answer, and the shard comes back as fast.
    told(&mut member, 300, Heard::Shard(shard(13, Some(other()), Some(other()), 4)));
    told(&mut member, 400, Heard::Shard(shard(15, Some(other()), Some(me()), 5)));
    let late = shard(13, Some(other()), Some(other()), 4);
    assert_eq!(told(&mut member, 500, wrote(12, Written::Ok(late))), []);
    let done = shard(16, Some(other()), Some(other()), 6);
    told(&mut member, 600, wrote(15, Written::Ok(done)));
    assert_eq!(member.held().count(), 0);
}

#[test]
fn a_worker_without_renewals_stops_starting_then_aborts_then_closes() {
    let mut member = polling();
    assert_eq!(member.may_poll(SHARD, Boot(F - 1)), Some(3));
    // Whether or not anybody told it that time has passed.
    assert_eq!(member.may_poll(SHARD, Boot(F)), None);
    assert_eq!(told(&mut member, F, Heard::Tick), [Order::AbortAll]);
    assert_eq!(told(&mut member, F + 2_999, Heard::Tick), []);
    assert_eq!(told(&mut member, F + 3_000, Heard::Tick), [Order::CloseAll]);
}

#[test]
fn a_worker_that_fenced_itself_and_was_not_stolen_goes_on() {
    let mut member = polling();
    told(&mut member, F, Heard::Tick);
    let orders = told(&mut member, F + 10_000, renewed(F + 9_000, Renewed::Ok));
    assert_eq!(orders, [Order::CloseAll, Order::Start { shard: SHARD, epoch: 3 }][1..]);
    assert_eq!(member.may_poll(SHARD, Boot(F + 10_000)), Some(3));
}

#[test]
fn what_was_cut_off_is_committed_by_whoever_holds_the_shard_ever_since() {
    let mut member = polling();
    assert_eq!(member.may_settle(SHARD, 3, Boot(F - 1)), Settling::Now);
    assert_eq!(member.may_settle(SHARD, 2, Boot(F - 1)), Settling::Never, "another epoch's");
    assert_eq!(member.may_settle(ShardId(1), 3, Boot(F - 1)), Settling::Never);
    // Whether or not anybody told it that time has passed.
    assert_eq!(member.may_settle(SHARD, 3, Boot(F)), Settling::Later);
    told(&mut member, F + 60_000, Heard::Tick);
    assert_eq!(member.may_settle(SHARD, 3, Boot(F + 60_000)), Settling::Later);
    told(&mut member, F + 60_000, renewed(F + 59_000, Renewed::Ok));
    assert_eq!(member.may_settle(SHARD, 3, Boot(F + 60_000)), Settling::Now);
    // Wanted elsewhere: before it is handed over, and for no longer than any
    // other session may last.
    let since = F + 60_000;
    told(&mut member, since, Heard::Shard(shard(12, Some(other()), Some(me()), 3)));
    assert_eq!(member.may_settle(SHARD, 3, Boot(since)), Settling::Now);
    told(&mut member, since + 29_000, renewed(since + 28_900, Renewed::Ok));
    let mut late = member.clone();
    assert_eq!(told(&mut late, since + 30_000, Heard::Tick), [Order::Abort(SHARD)]);
    assert_eq!(late.may_settle(SHARD, 3, Boot(since + 30_000)), Settling::Never);
    told(&mut member, since + 29_500, Heard::Drained { shard: SHARD, epoch: 3 });
    assert_eq!(member.may_settle(SHARD, 3, Boot(since + 29_500)), Settling::Never);
    // Stolen meanwhile.
    let mut member = polling();
    told(&mut member, F, Heard::Tick);
    told(&mut member, F + 1, renewed(F, Renewed::Lost));
    assert_eq!(member.may_settle(SHARD, 3, Boot(F + 1)), Settling::Never);
    // Given to another and back.
    let mut member = polling();
    told(&mut member, 10, Heard::Shard(shard(13, Some(me()), Some(me()), 5)));
    assert_eq!(member.may_settle(SHARD, 3, Boot(10)), Settling::Never);
}

#[test]
fn whoever_wakes_up_looks_at_the_clock_first() {
    // Stopped for 40 s; what it hears first is news that would start it again.
    let mut member = polling();
    let orders = told(&mut member, 40_000, Heard::Shard(shard(12, Some(me()), Some(me()), 3)));
    assert_eq!(orders[..2], [Order::AbortAll, Order::CloseAll]);
    // An answer that lay in the socket all the time counts from its sending.
    let mut member = polling();
    let orders = told(&mut member, 40_000, renewed(7_000, Renewed::Ok));
    assert_eq!(orders, [Order::AbortAll, Order::CloseAll]);
    assert_eq!(member.may_poll(SHARD, Boot(40_000)), None);
}

#[test]
fn a_lost_lease_ends_the_process_at_once() {
    let mut member = polling();
    let orders = told(&mut member, 7_100, renewed(7_000, Renewed::Lost));
    assert_eq!(orders, [Order::AbortAll, Order::CloseAll, Order::Exit(Exit::Lost)]);
    assert_eq!(member.may_poll(SHARD, Boot(7_100)), None);
    assert_eq!(member.epoch(SHARD), None, "not even a commit");
    assert_eq!(told(&mut member, 7_200, renewed(7_150, Renewed::Ok)), []);
    assert_eq!(member.may_poll(SHARD, Boot(7_200)), None);
    assert_eq!(member.next_wake(), Boot::NEVER);
}

#[test]
fn renewals_come_every_r_and_soon_after_a_failure_never_two_at_once() {
    let mut member = Member::new(me(), Timing::DEFAULT, LIMIT);
    let renew = [Order::Renew { leaving: false }];
    assert_eq!(member.hear(Boot(0), Heard::Tick), renew);
    assert_eq!(member.hear(Boot(5_000), Heard::Tick), [], "one is under way");
    member.hear(Boot(6_000), renewed(0, Renewed::Ok));
    let due = member.next_wake().0;
    assert!((6_300..=7_000).contains(&due), "{due}");
    assert_eq!(member.hear(Boot(due), Heard::Tick), renew);
    member.hear(Boot(due + 6_300), renewed(due, Renewed::Failed));
    let again = member.next_wake().0 - due - 6_300;
    assert!((200..=440).contains(&again), "{again}");
    // Failing on, it asks less often, but never less than every R.
    let mut now = due + 6_300;
    for _ in 0..20 {
        now = member.next_wake().0;
        member.hear(Boot(now), Heard::Tick);
        member.hear(Boot(now), renewed(now, Renewed::Failed));
    }
    assert!((1_750..=3_500).contains(&(member.next_wake().0 - now)));
}

#[test]
fn what_is_worked_by_is_acknowledged_and_only_then() {
    let mut member = polling();
    let orders = told(&mut member, 100, read(3, 2));
    assert_eq!(
        orders,
        [Order::WriteStatus {
            shard: SHARD,
            version: "11".to_owned(),
            holder: Some(me()),
            epoch: 3,
            observed: slices(2)
        }]
    );
    // One write at a time; the next one says all that has come since.
    assert_eq!(told(&mut member, 110, read(3, 3)), []);
    assert_eq!(told(&mut member, 120, read(3, 4)), []);
    let now = ShardSeen { observed: slices(2), ..shard(12, Some(me()), Some(me()), 3) };
    let orders = told(&mut member, 130, wrote(11, Written::Ok(now)));
    assert!(matches!(&orders[..], [Order::WriteStatus { observed, .. }] if *observed == slices(4)));
}

#[test]
fn slices_read_under_an_earlier_epoch_start_nothing() {
    let mut member = polling();
    told(&mut member, 100, Heard::Shard(shard(20, Some(me()), Some(other()), 4)));
    let orders = told(&mut member, 200, Heard::Shard(shard(21, Some(me()), Some(me()), 5)));
    assert_eq!(orders, [Order::Follow { shard: SHARD, epoch: 5, slices: 1 }]);
    assert_eq!(told(&mut member, 300, read(3, 9)), []);
    assert_eq!(member.may_poll(SHARD, Boot(300)), None);
    assert_eq!(told(&mut member, 400, read(5, 9))[0], Order::Start { shard: SHARD, epoch: 5 });
}

#[test]
fn one_slice_more_is_followed_and_all_must_be_read() {
    let mut member = Member::new(me(), Timing::DEFAULT, LIMIT);
    told(&mut member, 0, renewed(0, Renewed::Ok));
    told(&mut member, 0, Heard::Shard(shard(10, Some(me()), Some(me()), 3)));
    let more = ShardSeen { slices: 2, ..shard(11, Some(me()), Some(me()), 3) };
    assert_eq!(
        told(&mut member, 1, Heard::Shard(more)),
        [Order::Follow { shard: SHARD, epoch: 3, slices: 2 }]
    );
    assert_eq!(told(&mut member, 2, read(3, 1)), [], "one of two");
    assert_eq!(member.may_poll(SHARD, Boot(2)), None);
}

#[test]
fn a_shard_that_is_taken_away_or_removed_is_dropped() {
    let mut member = polling();
    let orders = told(&mut member, 100, Heard::Shard(shard(12, Some(me()), Some(other()), 4)));
    assert_eq!(orders, [Order::Abort(SHARD), Order::Forget(SHARD)]);
    let mut member = polling();
    assert_eq!(told(&mut member, 100, Heard::ShardGone(SHARD)), [Order::Abort(SHARD), Order::Forget(SHARD)]);
    assert_eq!(member.may_poll(SHARD, Boot(100)), None);
}

#[test]
fn whoever_leaves_says_so_polls_on_until_moved_and_ends_when_all_is_handed_over() {
    let mut member = polling();
    assert_eq!(member.hear(Boot(1_000), Heard::Leave), [Order::Renew { leaving: true }]);
    member.hear(Boot(1_010), renewed(1_000, Renewed::Ok));
    assert_eq!(member.may_poll(SHARD, Boot(1_010)), Some(3));
    told(&mut member, 1_100, Heard::Shard(shard(12, Some(other()), Some(me()), 3)));
    told(&mut member, 1_200, Heard::Drained { shard: SHARD, epoch: 3 });
    let done = shard(13, Some(other()), Some(other()), 4);
    assert_eq!(
        told(&mut member, 1_300, wrote(12, Written::Ok(done))),
        [Order::Forget(SHARD), Order::Exit(Exit::Left)]
    );
}

#[test]
fn whoever_leaves_while_no_leader_is_there_lets_go_by_itself() {
    let mut member = polling();
    member.hear(Boot(1_000), Heard::Leave);
    member.hear(Boot(1_010), renewed(1_000, Renewed::Ok));
    assert_eq!(told(&mut member, 10_999, Heard::Tick), []);
    assert_eq!(told(&mut member, 11_000, Heard::Tick), [Order::Drain { shard: SHARD, epoch: 3 }]);
    assert_eq!(
        told(&mut member, 11_500, Heard::Drained { shard: SHARD, epoch: 3 }),
        [hand_over(11, None, 4, 1)]
    );
    let done = shard(12, Some(me()), None, 4);
    assert_eq!(
        told(&mut member, 11_600, wrote(11, Written::Ok(done))),
        [Order::Forget(SHARD), Order::Exit(Exit::Left)]
    );
}

#[test]
fn whoever_leaves_takes_nothing_more() {
    let mut member = polling();
    member.hear(Boot(1_000), Heard::Leave);
    let another = ShardSeen { id: ShardId(8), ..shard(20, Some(me()), Some(me()), 1) };
    let orders = told(&mut member, 1_100, Heard::Shard(another));
    assert!(
        matches!(&orders[..], [Order::WriteStatus { shard: ShardId(8), holder: None, epoch: 2, .. }]),
        "{orders:?}"
    );
}

#[test]
fn leaving_ends_even_if_nothing_can_be_handed_over() {
    let mut member = polling();
    member.hear(Boot(1_000), Heard::Leave);
    let mut orders = Vec::new();
    let mut now = 1_000;
    while orders.last() != Some(&Order::Exit(Exit::LeftBehind)) {
        let wake = member.next_wake().0;
        assert!(wake > now, "it does not spin");
        now = wake;
        orders.extend(member.hear(Boot(now), Heard::Tick));
        orders.extend(member.hear(Boot(now), renewed(now, Renewed::Failed)));
    }
    assert_eq!(now, 1_000 + 30_000 + 3_000 + 7_000);
    assert!(orders.contains(&Order::Abort(SHARD)), "at the drain limit");
}

#[test]
fn leaving_without_shards_waits_only_until_it_is_announced() {
    let mut member = Member::new(me(), Timing::DEFAULT, LIMIT);
    member.hear(Boot(0), Heard::Tick);
    member.hear(Boot(10), Heard::Leave);
    // The renewal under way did not say so: another one does.
    assert_eq!(member.hear(Boot(20), renewed(0, Renewed::Ok)), [Order::Renew { leaving: true }]);
    assert_eq!(member.hear(Boot(30), renewed(20, Renewed::Ok)), [Order::Exit(Exit::Left)]);
    // And not for ever.
    let mut member = Member::new(me(), Timing::DEFAULT, LIMIT);
    member.hear(Boot(0), Heard::Leave);
    assert_eq!(member.next_wake(), Boot(10_000));
    assert_eq!(told(&mut member, 10_000, Heard::Tick), [Order::Exit(Exit::Left)]);
}
