//! Random stories: a worker, its driver, an API server and a leader, where
//! answers get lost or late, watches lag and start anew, processes stop and go
//! on. Whatever happens, a worker that may poll is the holder.

use proptest::prelude::*;

use super::*;

const SHARDS: u16 = 2;
const TIMING: Timing = Timing::DEFAULT;

fn me() -> Incarnation {
    Incarnation::new("rpop-worker-a", 1)
}

fn other() -> Incarnation {
    Incarnation::new("rpop-worker-b", 2)
}

/// One thing that happens; what does not apply at the moment does not.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// So many milliseconds pass, and the timer fires.
    Pass(u64),
    /// They pass, but the process is stopped (nothing fires).
    Stop(u64),
    /// The renewal under way reaches the API server.
    RenewalArrives,
    /// It is answered; or its answer is lost.
    RenewalAnswered(bool),
    /// The oldest write reaches the API server.
    WriteArrives,
    /// It is answered; or its answer is lost.
    WriteAnswered(bool),
    /// The watch tells the state so many changes ago.
    Watch(u16, usize),
    /// The driver has read the slices.
    Slices(u16),
    /// The driver starts a session.
    Open(u16),
    /// Sessions have ended, and where a drain was asked for that is told.
    End(u16),
    /// The leader wants me, another, or nobody.
    Desire(u16, u8),
    /// The other worker hands it over to whom the leader wants.
    OtherHands(u16),
    /// The leader gives away what nobody, or the dead, holds.
    Give(u16),
    /// The leader steals my lease if its count is full.
    Steal,
    /// A slice changes.
    Change(u16),
    /// A slice is deleted, and there is another one.
    Replace(u16),
    Leave,
}

fn event() -> impl Strategy<Value = Event> {
    let shard = 0..SHARDS;
    prop_oneof![
        6 => (1..4_000u64).prop_map(Event::Pass),
        1 => (1..60_000u64).prop_map(Event::Stop),
        6 => Just(Event::RenewalArrives),
        6 => prop::bool::weighted(0.85).prop_map(Event::RenewalAnswered),
        5 => Just(Event::WriteArrives),
        5 => prop::bool::weighted(0.7).prop_map(Event::WriteAnswered),
        8 => (shard.clone(), prop_oneof![4 => Just(0usize), 1 => 1..6usize])
            .prop_map(|(shard, ago)| Event::Watch(shard, ago)),
        5 => shard.clone().prop_map(Event::Slices),
        5 => shard.clone().prop_map(Event::Open),
        4 => shard.clone().prop_map(Event::End),
        3 => (shard.clone(), 0..4u8).prop_map(|(shard, who)| Event::Desire(shard, who)),
        3 => shard.clone().prop_map(Event::OtherHands),
        3 => shard.clone().prop_map(Event::Give),
        2 => Just(Event::Steal),
        1 => shard.clone().prop_map(Event::Change),
        1 => shard.prop_map(Event::Replace),
        1 => prop::bool::weighted(0.05).prop_map(|leave| if leave { Event::Leave } else { Event::Pass(1) }),
    ]
}

#[derive(Clone, Debug)]
struct Sent {
    shard: ShardId,
    version: String,
    holder: Option<Incarnation>,
    epoch: i64,
    observed: BTreeMap<String, Observation>,
    /// What the API server said, once it arrived.
    said: Option<Written>,
}

struct World {
    now: u64,
    member: Member,
    /// All states of each shard, the last one being the truth.
    shards: Vec<Vec<ShardSeen>>,
    versions: u64,
    slices: Vec<Observation>,
    /// When the lease was renewed last, by anybody's clock.
    lease_renewed: Option<u64>,
    stolen: bool,
    renewal: Option<(u64, Option<bool>)>,
    writes: Vec<Sent>,
    /// Epoch of the `Follow` in force.
    followed: Vec<Option<i64>>,
    draining: Vec<Option<i64>>,
    started: Vec<bool>,
    open: Vec<bool>,
    exited: bool,
}

impl World {
    fn new() -> Self {
        let count = usize::from(SHARDS);
        let mut world = Self {
            now: 1_000,
            member: Member::new(me(), TIMING, Duration::from_secs(30)),
            shards: Vec::new(),
            versions: 200,
            slices: vec![Observation { uid: "0".into(), generation: 1 }; count],
            lease_renewed: None,
            stolen: false,
            renewal: None,
            writes: Vec::new(),
            followed: vec![None; count],
            draining: vec![None; count],
            started: vec![false; count],
            open: vec![false; count],
            exited: false,
        };
        for id in 0..SHARDS {
            let first = ShardSeen {
                id: ShardId(id),
                version: (100 + id).to_string(),
                desired: Some(me()),
                holder: Some(me()),
                epoch: 1,
                slices: 1,
                observed: BTreeMap::new(),
            };
            world.shards.push(vec![first]);
        }
        world.hear(Heard::Tick);
        world
    }

    fn truth(&self, shard: u16) -> &ShardSeen {
        self.shards[usize::from(shard)].last().unwrap()
    }

    fn change(&mut self, shard: u16, change: impl FnOnce(&mut ShardSeen)) {
        self.versions += 1;
        let mut next = self.truth(shard).clone();
        let epoch = next.epoch;
        change(&mut next);
        assert!(next.epoch >= epoch, "an epoch fell");
        if next.holder != self.truth(shard).holder {
            assert!(next.epoch > epoch, "a holder without an epoch of its own");
            if self.truth(shard).holder == Some(me()) && !self.stolen {
                assert!(!self.open[usize::from(shard)], "handed over with a session open");
            }
        }
        next.version = self.versions.to_string();
        self.shards[usize::from(shard)].push(next);
    }

    fn hear(&mut self, heard: Heard) {
        for order in self.member.hear(Boot(self.now), heard) {
            assert!(!self.exited, "{order:?} after the end");
            self.obey(order);
        }
        let wake = self.member.next_wake();
        assert!(wake > Boot(self.now), "it spins");
        for shard in 0..SHARDS {
            self.check(shard);
        }
    }

    /// What this page is about.
    fn check(&self, shard: u16) {
        let at = usize::from(shard);
        if let Some(epoch) = self.member.may_poll(ShardId(shard), Boot(self.now)) {
            let truth = self.truth(shard);
            assert_eq!(truth.holder, Some(me()), "polls what is another's");
            assert_eq!(truth.epoch, epoch, "polls by an epoch that is over");
            assert!(!self.stolen && !self.exited, "polls after the end");
            assert!(self.started[at], "polls what was not started");
            assert_eq!(self.draining[at], None, "polls what drains");
            assert_eq!(self.followed[at], Some(epoch), "polls what is not followed");
            let renewed = self.lease_renewed.expect("a member");
            let age = Duration::from_millis(self.now - renewed);
            assert!(age < TIMING.fence_after, "polls {age:?} after its last renewal");
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Renew { .. } => self.renewal = Some((self.now, None)),
            Order::Look(ShardId(shard)) => self.look(shard),
            Order::Follow { shard, epoch, .. } => self.followed[usize::from(shard.0)] = Some(epoch),
            Order::Forget(shard) => {
                self.followed[usize::from(shard.0)] = None;
                self.draining[usize::from(shard.0)] = None;
            }
            Order::Start { shard, epoch } => {
                let at = usize::from(shard.0);
                assert_eq!(self.draining[at], None, "started before it had drained");
                assert_eq!(self.followed[at], Some(epoch));
                self.started[at] = true;
            }
            Order::Drain { shard, epoch } => {
                let at = usize::from(shard.0);
                assert_eq!(self.draining[at].replace(epoch), None, "told twice to drain");
                self.started[at] = false;
            }
            Order::Abort(shard) => {
                let at = usize::from(shard.0);
                self.started[at] = false;
                self.open[at] = false;
            }
            Order::AbortAll | Order::CloseAll => {
                self.started.fill(false);
                self.open.fill(false);
            }
            Order::WriteStatus { shard, version, holder, epoch, observed } => {
                assert!(
                    self.writes.iter().all(|write| write.shard != shard || write.version != version),
                    "two writes under way from one version"
                );
                self.writes.push(Sent { shard, version, holder, epoch, observed, said: None });
            }
            Order::Exit(_) => self.exited = true,
        }
    }

    fn look(&mut self, shard: u16) {
        let seen = self.truth(shard).clone();
        for order in self.member.hear(Boot(self.now), Heard::Shard(seen)) {
            self.obey(order);
        }
    }

    fn arrive(&mut self) {
        let Some(at) = self.writes.iter().position(|write| write.said.is_none()) else { return };
        let write = self.writes[at].clone();
        let said = if self.truth(write.shard.0).version == write.version {
            self.change(write.shard.0, |shard| {
                shard.holder = write.holder;
                shard.epoch = write.epoch;
                shard.observed = write.observed;
            });
            Written::Ok(self.truth(write.shard.0).clone())
        } else {
            Written::Conflict
        };
        self.writes[at].said = Some(said);
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Pass(span) => {
                let end = self.now + span;
                while self.now < end {
                    self.now = end.min(self.member.next_wake().0.max(self.now));
                    self.hear(Heard::Tick);
                }
            }
            Event::Stop(span) => {
                self.now += span;
                // Even before it hears anything.
                for shard in 0..SHARDS {
                    self.check(shard);
                }
            }
            Event::RenewalArrives => {
                if let Some((_, said @ None)) = &mut self.renewal {
                    *said = Some(!self.stolen);
                    if !self.stolen {
                        self.lease_renewed = Some(self.now);
                    }
                }
            }
            Event::RenewalAnswered(heard) => {
                if let Some((sent, said)) = self.renewal.take() {
                    let result = match said {
                        Some(true) if heard => Renewed::Ok,
                        Some(false) if heard => Renewed::Lost,
                        _ => Renewed::Failed,
                    };
                    self.hear(Heard::RenewalAnswered { sent: Boot(sent), result });
                }
            }
            Event::WriteArrives => self.arrive(),
            Event::WriteAnswered(heard) => {
                let Some(at) = self.writes.iter().position(|write| write.said.is_some() || !heard) else {
                    return;
                };
                let write = self.writes.remove(at);
                let result = write.said.filter(|_| heard).unwrap_or(Written::Failed);
                self.hear(Heard::Wrote { shard: write.shard, version: write.version, result });
            }
            Event::Watch(shard, ago) => {
                let states = &self.shards[usize::from(shard)];
                let seen = states[states.len().saturating_sub(1 + ago)].clone();
                self.hear(Heard::Shard(seen));
            }
            Event::Slices(shard) => {
                if let Some(epoch) = self.followed[usize::from(shard)] {
                    let seen = self.slices[usize::from(shard)].clone();
                    let observed = BTreeMap::from([(format!("shard-{shard:03}-0"), seen)]);
                    self.hear(Heard::SlicesRead { shard: ShardId(shard), epoch, observed });
                }
            }
            Event::Open(shard) => {
                if self.member.may_poll(ShardId(shard), Boot(self.now)).is_some() {
                    self.open[usize::from(shard)] = true;
                }
            }
            Event::End(shard) => {
                self.open[usize::from(shard)] = false;
                if let Some(epoch) = self.draining[usize::from(shard)].take() {
                    self.hear(Heard::Drained { shard: ShardId(shard), epoch });
                }
            }
            Event::Desire(shard, who) => {
                let desired = [Some(me()), Some(me()), Some(other()), None][usize::from(who)].clone();
                self.change(shard, |shard| shard.desired = desired);
            }
            Event::OtherHands(shard) => {
                let truth = self.truth(shard);
                if truth.holder == Some(other()) && truth.desired != Some(other()) {
                    self.change(shard, |shard| {
                        shard.holder = shard.desired.clone();
                        shard.epoch += 1;
                    });
                }
            }
            Event::Give(shard) => {
                let holder = &self.truth(shard).holder;
                let dead = holder.is_none() || (self.stolen && *holder == Some(me()));
                if dead {
                    let heir = if self.stolen { Some(other()) } else { self.truth(shard).desired.clone() };
                    self.change(shard, |shard| {
                        shard.holder = heir;
                        shard.epoch += 1;
                    });
                }
            }
            Event::Steal => {
                let dead_at = u64::try_from(TIMING.dead_after.as_millis()).unwrap();
                if self.lease_renewed.is_some_and(|renewed| self.now >= renewed + dead_at) {
                    self.stolen = true;
                }
            }
            Event::Change(shard) => self.slices[usize::from(shard)].generation += 1,
            Event::Replace(shard) => {
                self.versions += 1;
                let uid = self.versions.to_string().into();
                self.slices[usize::from(shard)] = Observation { uid, generation: 1 };
            }
            Event::Leave => self.hear(Heard::Leave),
        }
        for shard in 0..SHARDS {
            self.check(shard);
        }
    }

    /// From now on everything works, and the leader wants me.
    fn calm_down(&mut self) {
        for shard in 0..SHARDS {
            self.change(shard, |shard| shard.desired = Some(me()));
        }
        for _ in 0..60 {
            for event in [Event::RenewalArrives, Event::RenewalAnswered(true), Event::Pass(1_000)] {
                self.happen(event);
            }
            for shard in 0..SHARDS {
                for event in [
                    Event::WriteArrives,
                    Event::WriteAnswered(true),
                    Event::OtherHands(shard),
                    Event::Give(shard),
                    Event::Watch(shard, 0),
                    Event::Slices(shard),
                    Event::End(shard),
                ] {
                    self.happen(event);
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn whoever_may_poll_is_the_holder_whatever_happens(
        events in prop::collection::vec(event(), 1..300),
    ) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
        world.calm_down();
        if world.stolen {
            prop_assert!(world.exited, "a stolen worker ends");
        } else if world.exited || world.member.is_leaving() {
            prop_assert!(world.exited, "a leaving worker ends");
        } else {
            for shard in 0..SHARDS {
                let polls = world.member.may_poll(ShardId(shard), Boot(world.now));
                prop_assert!(polls.is_some(), "it polls what it shall: {:?}", world.member);
                let observed = &world.truth(shard).observed;
                let slice = &world.slices[usize::from(shard)];
                prop_assert_eq!(observed.values().next(), Some(slice), "and says by what");
            }
        }
    }
}
