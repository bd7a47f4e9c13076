use std::collections::{BTreeSet, HashSet};

use super::*;
use crate::domain::shards::mapping::{host_hash, maildrop_hash};

const TIMING: Timing = Timing::FAST;
const SHARDS: u16 = 16;
const CONFIG: Config = Config { shards: SHARDS, timing: TIMING };

/// A worker that does what the protocol asks of it, by what it has read: as
/// `worker::driver` does it.
#[allow(clippy::struct_excessive_bools, reason = "troubles that come and go, each by itself")]
struct Hand {
    me: Incarnation,
    alive: bool,
    /// It takes in nothing new of shards and slices, but goes on polling.
    lags: bool,
    /// It takes in everything, but no status that it writes arrives.
    mute: bool,
    leaving: bool,
    followed: BTreeMap<ShardId, Followed>,
}

/// A shard that a worker holds.
#[derive(Default)]
struct Followed {
    epoch: i64,
    /// By number what was last read of each slice: one that is gone stays as it
    /// was until another one is there.
    known: BTreeMap<u32, (Observation, Vec<RecordKey>)>,
    /// What was told of: all slices of `spec.slices`, when all were known.
    taken: Option<BTreeMap<String, Observation>>,
    /// What is polled.
    polled: BTreeSet<RecordKey>,
}

/// An API server, workers and a leader.
struct World {
    now: Boot,
    version: u64,
    up: bool,
    leases: BTreeMap<Arc<str>, LeaseSeen>,
    shards: BTreeMap<ShardId, ShardSeen>,
    slices: BTreeMap<(ShardId, u32), SliceSeen>,
    records: BTreeMap<RecordKey, RecordSeen>,
    hands: Vec<Hand>,
    leader: Leader,
    log: Vec<Decree>,
    /// Of the next writes of slices and shards: not done now, and the answer
    /// is lost.
    lost: usize,
    /// What was lost, and may be done later.
    late: Vec<Decree>,
    /// Slices that were deleted by hand; nobody has told the leader yet.
    untold: Vec<(ShardId, u32)>,
}

fn key(n: usize) -> RecordKey {
    RecordKey { namespace: "mail".into(), name: format!("r{n}").into() }
}

fn record(n: usize, host: usize, digest: u64) -> RecordSeen {
    RecordSeen {
        key: key(n),
        maildrop: maildrop_hash(&format!("account-{n}")),
        host: format!("pop{host}.example").into(),
        port: 995,
        interval: Some(Duration::from_mins(5)),
        digest,
        bytes: 500,
        destination: 1,
        destination_bytes: 300,
    }
}

fn lease_name(worker: &Incarnation) -> Arc<str> {
    format!("rpop-worker-{}", worker.pod()).into()
}

impl Followed {
    /// Looks at the slices; takes them in when all of them are known. Whether
    /// something else is polled from now on.
    fn read(&mut self, shard: &ShardSeen, slices: &BTreeMap<(ShardId, u32), SliceSeen>) -> bool {
        if self.epoch != shard.epoch {
            *self = Self { epoch: shard.epoch, ..Self::default() };
        }
        self.known.retain(|number, _| *number < shard.slices);
        for number in 0..shard.slices {
            if let Some(slice) = slices.get(&(shard.id, number)) {
                let seen = Observation { uid: Arc::clone(&slice.uid), generation: slice.generation };
                let keys = slice.items.iter().map(|item| item.key.clone()).collect();
                self.known.insert(number, (seen, keys));
            }
        }
        if self.known.len() != shard.slices as usize {
            return false;
        }
        let named = self.known.iter();
        self.taken = Some(named.map(|(number, (seen, _))| (shard.id.slice(*number), seen.clone())).collect());
        // Sessions of records that no slice names any more end here.
        let polled = self.known.values().flat_map(|(_, keys)| keys).cloned().collect();
        std::mem::replace(&mut self.polled, polled) != self.polled
    }
}

impl World {
    fn new(workers: usize, records: usize) -> Self {
        let mut world = Self {
            now: Boot(1_000_000),
            version: 1,
            up: true,
            leases: BTreeMap::new(),
            shards: BTreeMap::new(),
            slices: BTreeMap::new(),
            records: (0..records).map(|n| (key(n), record(n, n, 1))).collect(),
            hands: Vec::new(),
            leader: Leader::new(CONFIG),
            log: Vec::new(),
            lost: 0,
            late: Vec::new(),
            untold: Vec::new(),
        };
        for n in 0..workers {
            world.join(&format!("w{n}"), 1);
        }
        world.elect();
        world
    }

    fn next(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    fn join(&mut self, pod: &str, boot: u32) {
        let me = Incarnation::new(pod, boot);
        for hand in self.hands.iter_mut().filter(|hand| hand.me.pod() == pod) {
            hand.alive = false;
        }
        let name = lease_name(&me);
        let version = self.next();
        let holder = LeaseHolder::Worker(me.clone());
        let lease = LeaseSeen {
            name: name.clone(),
            version,
            holder,
            leaving: false,
            capacity: 8,
            load: BTreeMap::new(),
        };
        self.leases.insert(name, lease);
        self.hands.push(Hand {
            me,
            alive: true,
            lags: false,
            mute: false,
            leaving: false,
            followed: BTreeMap::new(),
        });
    }

    /// A new leader, which knows nothing.
    fn elect(&mut self) {
        self.elect_with(Workers::new(TIMING), |_| {});
    }

    /// A new leader, which has counted; something happens between its reading of
    /// the shards and that of the slices.
    fn elect_with(&mut self, workers: Workers, meanwhile: impl FnOnce(&mut Self)) {
        self.leader = Leader::resume(CONFIG, workers);
        self.leader.hear(self.now, Seen::Records(self.records.values().cloned().collect()));
        self.leader.hear(self.now, Seen::Shards(self.shards.values().cloned().collect()));
        meanwhile(self);
        self.untold.clear();
        self.leader.hear(self.now, Seen::Slices(self.slices.values().cloned().collect()));
    }

    /// By hand.
    fn delete_slice(&mut self, at: (ShardId, u32)) {
        if self.slices.remove(&at).is_some() {
            self.untold.push(at);
        }
    }

    /// What the watch of slices has not told yet.
    fn tell_deletions(&mut self) {
        for (shard, number) in std::mem::take(&mut self.untold) {
            self.leader.hear(self.now, Seen::SliceGone(shard, number));
        }
    }

    fn put(&mut self, record: RecordSeen) {
        self.records.insert(record.key.clone(), record.clone());
        self.leader.hear(self.now, Seen::Record(record));
    }

    fn delete(&mut self, n: usize) {
        self.records.remove(&key(n));
        self.leader.hear(self.now, Seen::RecordGone(key(n)));
    }

    fn swap_shard(&mut self, id: ShardId, version: &str, change: impl FnOnce(&mut ShardSeen)) -> Answer {
        let next = self.next();
        match self.shards.get_mut(&id) {
            Some(shard) if shard.version == version => {
                change(shard);
                shard.version = next;
                Answer::Done
            }
            _ => Answer::Conflict,
        }
    }

    fn carry_out(&mut self, decree: &Decree) -> Answer {
        match decree {
            Decree::StealLease { name, version, worker } => {
                let next = self.next();
                match self.leases.get_mut(name) {
                    Some(lease) if lease.version == *version => {
                        lease.holder = LeaseHolder::Stolen(worker.clone());
                        lease.version = next;
                        Answer::Done
                    }
                    _ => Answer::Conflict,
                }
            }
            Decree::DeleteLease { name, version } => match self.leases.get(name) {
                Some(lease) if lease.version == *version => {
                    self.leases.remove(name);
                    Answer::Done
                }
                _ => Answer::Conflict,
            },
            Decree::CreateShard(id) => {
                let (id, version) = (*id, self.next());
                let new = ShardSeen {
                    id,
                    version,
                    desired: None,
                    holder: None,
                    epoch: 0,
                    slices: 0,
                    observed: BTreeMap::new(),
                };
                self.shards.entry(id).or_insert(new);
                Answer::Done
            }
            Decree::SetDesired { shard, version, desired, slices, .. } => {
                let (desired, slices) = (desired.clone(), *slices);
                self.swap_shard(*shard, version, |shard| {
                    shard.desired = desired;
                    shard.slices = slices;
                })
            }
            Decree::GiveAway { shard, version, holder, epoch } => {
                let old = self.shards[shard].holder.clone();
                let answer = self.swap_shard(*shard, version, |shard| {
                    shard.holder = Some(holder.clone());
                    shard.epoch = *epoch;
                });
                if answer == Answer::Done
                    && let Some(old) = old
                {
                    let hand = self.hands.iter().find(|hand| hand.me == old);
                    assert!(hand.is_none_or(|hand| !hand.alive), "taken away from {old}, which lives");
                }
                answer
            }
            Decree::WriteSlice { shard, number, version, items, removed } => {
                let at = (*shard, *number);
                let same = self.slices.get(&at).map(|slice| slice.version.clone()) == *version;
                if !same {
                    return Answer::Conflict;
                }
                assert!(items.len() <= 256);
                let items: Vec<ItemSeen> = items
                    .iter()
                    .map(|(key, factor)| {
                        let (uid, digest) =
                            self.records.get(key).map_or((0, 0), |seen| (seen.maildrop, seen.digest));
                        ItemSeen { key: key.clone(), uid, digest, factor: *factor }
                    })
                    .collect();
                let removed = parse_removed(&format_removed(removed));
                let before = self.slices.get(&at);
                assert!(before.is_some() || items.is_empty(), "created with something in it");
                // Only another spec is another generation.
                let generation = before.map_or(1, |slice| slice.generation + i64::from(slice.items != items));
                let unchanged = before.is_some_and(|slice| slice.items == items && slice.removed == removed);
                if !unchanged {
                    let uid = before.map(|slice| Arc::clone(&slice.uid));
                    let version = self.next();
                    let uid = uid.unwrap_or_else(|| format!("uid-{version}").into());
                    let (shard, number) = at;
                    let slice = SliceSeen { shard, number, version, uid, generation, items, removed };
                    self.slices.insert(at, slice);
                }
                Answer::Done
            }
        }
    }

    /// The leader decides until it has nothing more to write.
    fn lead(&mut self) {
        for _ in 0..200 {
            let decrees = self.leader.decide(self.now);
            if decrees.is_empty() {
                return;
            }
            let targets: HashSet<Target> = decrees.iter().map(Decree::target).collect();
            assert_eq!(targets.len(), decrees.len(), "two writes of one object at a time");
            for decree in decrees {
                self.log.push(decree.clone());
                let target = decree.target();
                let mut answer = Answer::Failed;
                if self.up && self.lost > 0 && !matches!(target, Target::Lease(_)) {
                    self.lost -= 1;
                    self.late.push(decree);
                } else if self.up {
                    answer = self.carry_out(&decree);
                    self.tell(&target);
                }
                self.leader.hear(self.now, Seen::Answered { target, answer });
            }
        }
        panic!("the leader never comes to an end: {:?}", &self.log[self.log.len() - 3..]);
    }

    /// A read that is answered at once. The leader has just renewed its own.
    fn read(&mut self) -> Seen {
        let leader = self.next();
        Seen::Leases { sent: self.now, leases: self.leases.values().cloned().collect(), leader }
    }

    fn tell(&mut self, target: &Target) {
        let seen = match target {
            Target::Lease(name) => self.leases.get(name).cloned().map(Seen::Lease),
            Target::Shard(id) => self.shards.get(id).cloned().map(Seen::Shard),
            Target::Slice(shard, number) => self.slices.get(&(*shard, *number)).cloned().map(Seen::Slice),
        };
        if let Some(seen) = seen {
            self.leader.hear(self.now, seen);
        }
    }

    fn renew(&mut self) {
        for n in 0..self.hands.len() {
            let hand = &self.hands[n];
            let (name, leaving) = (lease_name(&hand.me), hand.leaving);
            if !hand.alive || !self.up {
                continue;
            }
            let own = LeaseHolder::Worker(hand.me.clone());
            let version = self.next();
            match self.leases.get_mut(&name) {
                Some(lease) if lease.holder == own => {
                    lease.version = version;
                    lease.leaving = leaving;
                }
                _ => self.hands[n].alive = false,
            }
        }
    }

    fn work(&mut self) {
        for n in 0..self.hands.len() {
            if !self.hands[n].alive || self.hands[n].lags || !self.up {
                continue;
            }
            let me = self.hands[n].me.clone();
            let shards: Vec<ShardSeen> = self.shards.values().cloned().collect();
            for shard in shards {
                if shard.holder.as_ref() != Some(&me) {
                    self.hands[n].followed.remove(&shard.id);
                    continue;
                }
                let (version, mute) = (shard.version.clone(), self.hands[n].mute);
                if let Some(next) = shard.desired.clone().filter(|next| *next != me) {
                    // All its sessions end, then it hands over.
                    let taken = self.hands[n].followed.remove(&shard.id).and_then(|before| before.taken);
                    if !mute {
                        self.swap_shard(shard.id, &version, |shard| {
                            shard.holder = Some(next);
                            shard.epoch += 1;
                            shard.observed = taken.unwrap_or_else(|| shard.observed.clone());
                        });
                    }
                } else {
                    let followed = self.hands[n].followed.entry(shard.id).or_default();
                    let more = followed.read(&shard, &self.slices);
                    let observed = followed.taken.clone().filter(|taken| !mute && *taken != shard.observed);
                    if let Some(observed) = observed {
                        self.swap_shard(shard.id, &version, |shard| shard.observed = observed);
                    }
                    if more {
                        self.check();
                    }
                }
                if self.shards[&shard.id].version != version {
                    self.tell(&Target::Shard(shard.id));
                }
            }
        }
    }

    /// Every worker that lives polls what it has read.
    fn polled(&self) -> BTreeMap<RecordKey, BTreeSet<Incarnation>> {
        let mut polled: BTreeMap<RecordKey, BTreeSet<Incarnation>> = BTreeMap::new();
        for hand in self.hands.iter().filter(|hand| hand.alive) {
            for key in hand.followed.values().flat_map(|followed| &followed.polled) {
                polled.entry(key.clone()).or_default().insert(hand.me.clone());
            }
        }
        polled
    }

    fn check(&self) {
        for (key, by) in self.polled() {
            assert!(by.len() == 1, "{key} is polled by {by:?}");
        }
    }

    /// A second of fast timing: workers renew, the leader reads and decides.
    fn second(&mut self) {
        for _ in 0..2 {
            self.now = self.now.after(Duration::from_millis(500));
            self.tell_deletions();
            self.renew();
            self.work();
            let seen = if self.up { self.read() } else { Seen::Unread { sent: self.now } };
            self.leader.hear(self.now, seen);
            self.lead();
            self.work();
            self.lead();
            self.work();
        }
    }

    fn seconds(&mut self, count: usize) {
        (0..count).for_each(|_| self.second());
    }

    fn is_complete(&self) -> bool {
        let polled = self.polled();
        let right = |record: &RecordSeen| polled.contains_key(&record.key);
        self.records.values().all(right) && polled.len() == self.records.len()
    }

    fn count(&self, which: impl Fn(&Decree) -> bool) -> usize {
        self.log.iter().filter(|decree| which(decree)).count()
    }

    fn steals(&self) -> usize {
        self.count(|decree| matches!(decree, Decree::StealLease { .. }))
    }

    fn held(&self, worker: &str) -> usize {
        let by = |shard: &&ShardSeen| shard.holder.as_ref().is_some_and(|holder| holder.pod() == worker);
        self.shards.values().filter(by).count()
    }

    fn hand(&mut self, pod: &str) -> &mut Hand {
        self.hands.iter_mut().rev().find(|hand| hand.me.pod() == pod).expect("a worker")
    }
}

#[test]
fn every_record_is_soon_polled_by_one_worker_and_then_nothing_is_written() {
    let mut world = World::new(4, 200);
    world.seconds(3);
    assert!(world.is_complete());
    for n in 0..4 {
        assert_eq!(world.held(&format!("w{n}")), 4);
    }
    assert_eq!(world.leader.shards_held(), (16, 16));
    assert!(world.leader.place_of(&key(7)).is_some());
    world.log.clear();
    world.seconds(60);
    assert_eq!(world.log, [], "nothing changes, nothing is written");
    world.elect();
    world.seconds(60);
    assert_eq!(world.log, [], "a new leader finds everything as it wants it");
}

#[test]
fn a_dead_worker_is_taken_for_dead_after_d_and_not_before() {
    let mut world = World::new(3, 100);
    world.seconds(3);
    world.log.clear();
    world.hand("w1").alive = false;
    world.seconds(7);
    assert_eq!(world.log, []);
    world.seconds(3);
    assert_eq!(world.steals(), 1);
    assert!(matches!(world.log[0], Decree::StealLease { .. }), "first of all the lease: {:?}", world.log[0]);
    assert!(world.is_complete());
    assert_eq!(world.held("w1"), 0);
}

/// Of an object that cannot be written nothing follows for workers.
#[test]
fn writes_that_fail_delay_no_fail_over() {
    let mut world = World::new(3, 100);
    world.seconds(3);
    world.lost = usize::MAX;
    world.hand("w1").alive = false;
    for second in 0..9 {
        world.put(record(second, second, 7));
        world.second();
    }
    assert!(!world.late.is_empty());
    assert_eq!(world.steals(), 1);
}

/// What was counted before counts for the next leader, if it is the same
/// process or has read as well.
#[test]
fn a_new_term_counts_on() {
    let mut world = World::new(3, 100);
    world.seconds(3);
    world.hand("w1").alive = false;
    world.seconds(6);
    let before = std::mem::replace(&mut world.leader, Leader::new(CONFIG));
    world.elect_with(before.into_workers(), |_| {});
    world.seconds(1);
    assert_eq!(world.steals(), 0);
    world.seconds(2);
    assert_eq!(world.steals(), 1);
    assert!(world.is_complete());
}

#[test]
fn an_answer_that_was_overtaken_takes_nothing_back() {
    let mut world = World::new(3, 100);
    world.seconds(3);
    let old = world.read();
    world.join("w9", 1);
    world.seconds(3);
    world.log.clear();
    world.leader.hear(world.now, old);
    assert_eq!(world.leader.decide(world.now), []);
    assert!(world.held("w9") > 0);
}

#[test]
fn a_restarted_container_proves_the_old_process_dead_at_once() {
    let mut world = World::new(3, 100);
    world.seconds(3);
    world.log.clear();
    world.join("w1", 2);
    world.seconds(2);
    assert!(world.is_complete());
    assert_eq!(world.steals(), 0);
}

#[test]
fn another_holder_in_a_lease_read_before_the_shard_proves_nothing() {
    let mut world = World::new(2, 10);
    world.seconds(3);
    // The old leader's last act: w1 restarted, and got a shard. The new one
    // reads the shards after that, but is answered a list of before.
    let old: Vec<LeaseSeen> = world.leases.values().cloned().collect();
    let sent = world.now;
    world.join("w1", 2);
    world.seconds(2);
    world.now = world.now.after(Duration::from_millis(10));
    world.log.clear();
    world.elect();
    world.leader.hear(world.now, Seen::Leases { sent, leases: old, leader: String::new() });
    assert_eq!(world.leader.decide(world.now), []);
    world.seconds(5);
    assert_eq!(world.count(|decree| matches!(decree, Decree::GiveAway { .. })), 0);
}

#[test]
fn a_vanished_lease_proves_death_only_after_d() {
    let mut world = World::new(3, 100);
    world.seconds(3);
    world.log.clear();
    world.hand("w1").alive = false;
    world.leases.remove("rpop-worker-w1");
    world.seconds(7);
    assert_eq!(world.count(|decree| matches!(decree, Decree::GiveAway { .. })), 0);
    world.seconds(4);
    assert!(world.is_complete());
}

#[test]
fn an_outage_is_not_followed_by_a_mass_steal() {
    let mut world = World::new(5, 100);
    world.seconds(3);
    world.log.clear();
    world.up = false;
    world.seconds(60);
    world.up = true;
    world.seconds(10);
    assert_eq!(world.log, []);
    // Nor is a pause of the leader, in which it heard nothing of renewals.
    world.now = world.now.after(Duration::from_secs(100));
    assert_eq!(world.leader.decide(world.now), []);
    let (now, read) = (world.now, world.read());
    world.leader.hear(now, read);
    assert_eq!(world.leader.decide(now), []);
    world.seconds(10);
    assert_eq!(world.log, []);
}

#[test]
fn a_worker_that_leaves_hands_over_and_its_lease_is_cleared_away() {
    let mut world = World::new(3, 100);
    world.seconds(3);
    world.log.clear();
    world.hand("w1").leaving = true;
    world.seconds(2);
    assert_eq!(world.held("w1"), 0);
    assert!(world.is_complete());
    assert_eq!(world.count(|decree| matches!(decree, Decree::GiveAway { .. })), 0, "it hands over itself");
    world.hand("w1").alive = false;
    world.seconds(100);
    assert!(!world.leases.contains_key("rpop-worker-w1"));
}

#[test]
fn a_new_worker_gets_its_share_a_few_shards_at_a_time() {
    let mut world = World::new(1, 100);
    world.seconds(3);
    world.join("w9", 1);
    world.renew();
    let read = world.read();
    world.leader.hear(world.now, read);
    let moves = world.leader.decide(world.now);
    assert!((1..=MOST_BALANCING).contains(&moves.len()), "{moves:?}");
    for decree in &moves {
        world.carry_out(decree);
        let target = decree.target();
        world.tell(&target);
        world.leader.hear(world.now, Seen::Answered { target, answer: Answer::Done });
    }
    assert_eq!(world.leader.decide(world.now), [], "the next when these have arrived");
    world.seconds(5);
    assert!((7..=9).contains(&world.held("w9")), "{}", world.held("w9"));
    assert!(world.is_complete());
}

#[test]
fn a_cold_start_waits_for_the_workers_that_are_expected() {
    let mut world = World::new(1, 10);
    world.leader.hear(world.now, Seen::Expected(5));
    world.seconds(3);
    assert_eq!(world.held("w0"), 0);
    for n in 1..4 {
        world.join(&format!("w{n}"), 1);
    }
    world.second();
    assert_eq!(world.held("w0"), 4, "four of five are enough");

    let mut world = World::new(1, 10);
    world.leader.hear(world.now, Seen::Expected(5));
    world.seconds(12);
    assert_eq!(world.held("w0"), 16, "but nobody waits for ever");
}

/// A record whose edit moves it to another shard, at another worker.
fn mover(world: &World) -> (usize, RecordSeen) {
    let at = |host: usize| mapping_of(&format!("pop{host}.example"));
    let holder = |shard: ShardId| world.shards[&shard].holder.clone();
    let to = (1000..2000).find(|host| holder(at(*host)) != holder(at(0))).expect("a host");
    (0, record(0, to, 2))
}

fn mapping_of(host: &str) -> ShardId {
    crate::domain::shards::mapping::shard(host_hash(host, 995), 0, 1, SHARDS)
}

#[test]
fn a_record_is_added_to_its_new_shard_when_the_old_holder_has_let_go() {
    let mut world = World::new(2, 50);
    world.seconds(3);
    let (n, moved) = mover(&world);
    let old = world.shards[&mapping_of("pop0.example")].holder.clone().expect("a holder");
    world.hand(old.pod()).lags = true;
    world.put(moved);
    world.seconds(5);
    assert_eq!(world.polled()[&key(n)], BTreeSet::from([old.clone()]), "still polled by the old one alone");
    // A new leader knows of it, too.
    world.elect();
    world.seconds(5);
    assert_eq!(world.leader.place_of(&key(n)), None);
    world.hand(old.pod()).lags = false;
    world.seconds(2);
    assert!(world.is_complete());
    assert_ne!(world.polled()[&key(n)], BTreeSet::from([old]));
}

#[test]
fn a_record_deleted_and_created_again_elsewhere_is_never_polled_twice() {
    let mut world = World::new(2, 50);
    world.seconds(3);
    let (n, moved) = mover(&world);
    let old = world.shards[&mapping_of("pop0.example")].holder.clone().expect("a holder");
    world.hand(old.pod()).lags = true;
    world.delete(n);
    world.seconds(2);
    world.put(moved);
    world.seconds(3);
    world.elect();
    world.seconds(3);
    assert_eq!(world.polled()[&key(n)], BTreeSet::from([old.clone()]));
    // Its holder dies: then nobody polls it there any more.
    world.hand(old.pod()).alive = false;
    world.seconds(12);
    assert!(world.is_complete());
}

#[test]
fn a_write_whose_answer_is_lost_may_still_be_done_and_harms_nobody() {
    let mut world = World::new(2, 0);
    world.seconds(3);
    world.lost = 1;
    world.put(record(0, 0, 1));
    world.lead();
    assert_eq!(world.late.len(), 1);
    // Meanwhile the record is moved elsewhere.
    let (_, moved) = mover(&world);
    world.put(moved);
    world.lead();
    for decree in std::mem::take(&mut world.late) {
        world.carry_out(&decree);
        world.tell(&decree.target());
    }
    world.seconds(5);
    assert!(world.is_complete());
}

#[test]
fn a_giant_host_is_spread_and_stays_so_under_a_new_leader() {
    let mut world = World::new(3, 0);
    world.seconds(3);
    for n in 0..400 {
        world.put(record(n, 7, 1));
    }
    world.seconds(5);
    assert!(world.is_complete());
    let factors: BTreeSet<u32> =
        (0..400).filter_map(|n| world.leader.place_of(&key(n))).map(|(_, factor)| factor).collect();
    assert_eq!(factors, BTreeSet::from([16]));
    world.leader.hear(world.now, Seen::Connections(5));
    world.seconds(5);
    assert!(world.is_complete());
    assert_eq!(
        world.leader.place_of(&key(0)).map(|(_, factor)| factor),
        Some(4),
        "never more than connections"
    );
    // What has become uneven is evened out by and by.
    world.seconds(60);
    world.log.clear();
    world.elect();
    world.leader.hear(world.now, Seen::Connections(5));
    world.seconds(5);
    assert_eq!(world.log, []);
}

#[test]
fn a_slice_deleted_by_hand_comes_back() {
    let mut world = World::new(2, 50);
    world.seconds(3);
    let at = *world.slices.keys().next().expect("a slice");
    world.delete_slice(at);
    world.seconds(3);
    assert!(world.is_complete());
}

#[path = "leader_random.rs"]
mod random;
