//! A worker's driver.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rpop::domain::shards::LeaseHolder;
use rpop::domain::shards::ShardId;
use rpop::domain::shards::holding::{Exit, Heard, Member, Observation, Order, Renewed, ShardSeen, Written};
use rpop::domain::work::RecordKey;

use super::answers::Answered;
use super::api::{Api, Change};
use super::node::{Call, Followed, Pending, Session, Stage};
use super::sim::{DRAIN, Death, Event, Inbound, POLL, Sim, Who};

impl Sim {
    pub fn start_worker(&mut self, at: usize) {
        let boot = u32::try_from(self.roll(u64::from(u32::MAX))).unwrap();
        let (now, timing) = (self.now, self.timing);
        let worker = &mut self.workers[at];
        worker.life += 1;
        worker.boot = boot;
        worker.registered = false;
        worker.watching = false;
        worker.leaving = false;
        worker.hindrance.stopped_until = 0;
        worker.lease_healthy_since = now;
        worker.next_wake = u64::MAX;
        worker.member = Some(Member::new(worker.me(), timing, DRAIN));
        let (me, who) = (worker.me(), Who::Worker(at, worker.life));
        self.note(|| format!("{me} starts"));
        self.after(0, Event::Hear(who, Inbound::Wake));
        self.after(1, Event::Hear(who, Inbound::Watch));
    }

    /// The process is gone, however.
    pub fn end_worker(&mut self, at: usize) {
        let (me, now) = (self.workers[at].me(), self.now);
        self.note(|| format!("{me} is gone"));
        self.drop_sessions(at, |_| true);
        for (_, debt) in std::mem::take(&mut self.workers[at].owed) {
            self.abort(debt.batch);
        }
        let worker = &mut self.workers[at];
        worker.member = None;
        worker.life += 1;
        worker.followed.clear();
        worker.pending.clear();
        worker.watching = false;
        self.deaths.push(Death { who: me, at: now });
    }

    /// Ends sessions without QUIT: the server forgets their DELEs.
    fn drop_sessions(&mut self, at: usize, which: impl Fn(&Session) -> bool) {
        let keys: Vec<_> = self.workers[at]
            .sessions
            .iter()
            .filter(|(_, session)| which(session))
            .map(|(key, _)| key.clone())
            .collect();
        for key in keys {
            let session = self.workers[at].sessions.remove(&key).expect("it was there");
            if session.stage == Stage::Fetched {
                self.abort(session.batch);
            }
        }
    }

    pub fn wake_worker(&mut self, at: usize) {
        self.worker_member(at, Heard::Tick);
    }

    pub fn worker_hears(&mut self, at: usize, inbound: Inbound) {
        match inbound {
            Inbound::Wake => self.worker_member(at, Heard::Tick),
            Inbound::Watch => self.watch_as_worker(at),
            Inbound::Timeout(id) => {
                if let Some(pending) = self.workers[at].pending.remove(&id) {
                    self.worker_waits_in_vain(at, pending);
                }
            }
            Inbound::Answer(id, answered) => {
                if let Some(pending) = self.workers[at].pending.remove(&id) {
                    self.worker_answered(at, pending, answered);
                }
            }
            Inbound::Change(change) => self.worker_sees(at, change),
            Inbound::Poll(key, shard, epoch) => self.poll(at, key, shard, epoch),
            Inbound::Step(key, id) => self.step(at, key, id),
            Inbound::Settle(key) => self.settle(at, &key),
        }
    }

    pub fn worker_request(&mut self, at: usize, deadline: u64, pending: Pending, call: Call) {
        let (id, who) = (self.id(), Who::Worker(at, self.workers[at].life));
        self.workers[at].pending.insert(id, pending);
        self.request(who, id, deadline, call);
    }

    fn watch_as_worker(&mut self, at: usize) {
        if !self.workers[at].watching {
            self.worker_request(at, 5_000, Pending::List, Call::List);
        }
    }

    fn worker_waits_in_vain(&mut self, at: usize, pending: Pending) {
        match pending {
            Pending::Renew { sent } => {
                self.worker_member(at, Heard::RenewalAnswered { sent, result: Renewed::Failed });
            }
            Pending::Look(_) => {}
            Pending::Follow(shard, epoch) => {
                // Until it succeeds.
                let due =
                    self.workers[at].followed.get(&shard).is_some_and(|followed| followed.epoch == epoch);
                if due {
                    self.worker_request(at, 5_000, Pending::Follow(shard, epoch), Call::GetSlices(shard));
                }
            }
            Pending::Write(shard, version) => {
                self.worker_member(at, Heard::Wrote { shard, version, result: Written::Failed });
            }
            Pending::Commit(key, id) => {
                let live = self.workers[at].sessions.get(&key).is_some_and(|session| session.id == id);
                if live {
                    // Nobody knows: the ledger is read anew.
                    self.cut_off(at, |session| session.id == id);
                    self.drained(at);
                }
            }
            Pending::Settle(key) => self.settle(at, &key),
            Pending::List => {
                self.workers[at].watching = false;
                let who = Who::Worker(at, self.workers[at].life);
                self.after(1_000, Event::Hear(who, Inbound::Watch));
            }
        }
    }

    fn worker_answered(&mut self, at: usize, pending: Pending, answered: Answered) {
        match (pending, answered) {
            (Pending::Renew { sent }, Answered::Renewed(done)) => {
                self.workers[at].registered |= done;
                let result = if done { Renewed::Ok } else { Renewed::Lost };
                self.worker_member(at, Heard::RenewalAnswered { sent, result });
            }
            (Pending::Look(shard), Answered::Shard(seen)) => {
                let heard = seen.map_or(Heard::ShardGone(shard), Heard::Shard);
                self.worker_member(at, heard);
            }
            (Pending::Follow(shard, epoch), Answered::Slices(slices)) => {
                let Some(followed) = self.workers[at].followed.get_mut(&shard) else { return };
                if followed.epoch != epoch {
                    return;
                }
                match slices {
                    Some(slices) => {
                        for slice in slices {
                            let newer = followed
                                .known
                                .get(&slice.number)
                                .is_none_or(|known| is_newer(&slice.version, &known.version));
                            if newer {
                                followed.known.insert(slice.number, slice);
                            }
                        }
                        self.slices_read(at, shard);
                    }
                    None => self.worker_waits_in_vain(at, Pending::Follow(shard, epoch)),
                }
            }
            (Pending::Write(shard, version), Answered::Written(written)) => {
                let result = written.map_or(Written::Conflict, Written::Ok);
                self.worker_member(at, Heard::Wrote { shard, version, result });
            }
            (Pending::Commit(key, id), Answered::Committed(version)) => {
                let Some(session) =
                    self.workers[at].sessions.get_mut(&key).filter(|session| session.id == id)
                else {
                    return;
                };
                if let Some(version) = version {
                    (session.stage, session.version) = (Stage::Committed, version);
                    let who = Who::Worker(at, self.workers[at].life);
                    self.after(10, Event::Hear(who, Inbound::Step(key, id)));
                } else {
                    self.drop_sessions(at, |session| session.id == id);
                    self.drained(at);
                }
            }
            (Pending::Settle(key), Answered::Committed(version)) => match version {
                Some(_) => self.settled(at, &key),
                None => self.settle(at, &key),
            },
            (Pending::List, Answered::All(shards, slices)) => {
                for shard in shards {
                    self.worker_sees(at, Change::Shard(shard));
                }
                for slice in slices {
                    self.worker_sees(at, Change::Slice(slice));
                }
            }
            _ => panic!("an answer to another question"),
        }
    }

    fn worker_sees(&mut self, at: usize, change: Change) {
        match change {
            Change::Shard(shard) => self.worker_member(at, Heard::Shard(shard)),
            Change::Slice(slice) => {
                let shard = slice.shard;
                let Some(followed) = self.workers[at].followed.get_mut(&shard) else { return };
                let known = followed.known.get(&slice.number);
                // Only after the first consistent read.
                if known.is_some_and(|known| is_newer(&slice.version, &known.version)) {
                    followed.known.insert(slice.number, slice);
                    self.slices_read(at, shard);
                }
            }
            // What it knows of the slice holds until there is another one.
            Change::Lease(_) | Change::SliceGone(..) => {}
        }
    }

    /// Slices in force: told when no session is open for what they do not name.
    fn slices_read(&mut self, at: usize, shard: ShardId) {
        let worker = &mut self.workers[at];
        let Some(followed) = worker.followed.get_mut(&shard) else { return };
        let open = worker.sessions.iter().map(|(key, session)| (key, session.shard));
        let mut open = open.chain(worker.owed.iter().map(|(key, debt)| (key, debt.shard)));
        let idle = open.all(|(key, of)| of != shard || followed.names(key));
        if !followed.is_complete() || !idle {
            return;
        }
        let observed: BTreeMap<_, _> = followed
            .known
            .iter()
            .filter(|(number, _)| **number < followed.slices)
            .map(|(number, slice)| {
                let seen = Observation { uid: Arc::clone(&slice.uid), generation: slice.generation };
                (shard.slice(*number), seen)
            })
            .collect();
        if followed.told.as_ref() == Some(&observed) {
            return;
        }
        followed.told = Some(observed.clone());
        let (epoch, started) = (followed.epoch, followed.started);
        self.worker_member(at, Heard::SlicesRead { shard, epoch, observed });
        if started {
            self.schedule(at, shard);
        }
    }

    /// A timer for each record of the shard; the present ones die out.
    fn schedule(&mut self, at: usize, shard: ShardId) {
        let Some(followed) = self.workers[at].followed.get_mut(&shard) else { return };
        let (epoch, life) = (followed.epoch, self.workers[at].life);
        let keys: BTreeSet<_> = self.workers[at].followed[&shard]
            .known
            .values()
            .flat_map(|slice| slice.items.iter().map(|item| item.key.clone()))
            .collect();
        for key in keys {
            let delay = self.roll(POLL);
            self.after(delay, Event::Hear(Who::Worker(at, life), Inbound::Poll(key, shard, epoch)));
        }
    }

    /// The machine hears; its orders are carried out.
    pub fn worker_member(&mut self, at: usize, heard: Heard) {
        let (now, clock) = (self.now, self.workers[at].clock);
        let Some(member) = &mut self.workers[at].member else { return };
        let orders = member.hear(clock.at(now), heard);
        let wake = clock.when(member.next_wake());
        for order in orders {
            self.carry_out(at, order);
            if self.workers[at].member.is_none() {
                return;
            }
        }
        if wake != u64::MAX {
            let worker = &mut self.workers[at];
            // One timer: an earlier one replaces a later one, which then finds
            // nothing to do.
            if wake != worker.next_wake {
                worker.next_wake = wake;
                let who = Who::Worker(at, worker.life);
                self.at(wake, Event::Hear(who, Inbound::Wake));
            }
        }
    }

    fn carry_out(&mut self, at: usize, order: Order) {
        let (me, who) = (self.workers[at].me(), Who::Worker(at, self.workers[at].life));
        match order {
            Order::Renew { leaving } => {
                let sent = self.workers[at].clock.at(self.now);
                let deadline = u64::try_from(self.timing.renewal_deadline().as_millis()).unwrap();
                let first = !self.workers[at].registered;
                self.worker_request(
                    at,
                    deadline,
                    Pending::Renew { sent },
                    Call::Renew { by: me, first, leaving },
                );
            }
            Order::Look(shard) => self.worker_request(at, 5_000, Pending::Look(shard), Call::Get(shard)),
            Order::Follow { shard, epoch, slices } => {
                let followed = self.workers[at].followed.entry(shard).or_default();
                if followed.epoch != epoch {
                    *followed = Followed { epoch, ..Followed::default() };
                }
                (followed.slices, followed.told) = (slices, None);
                self.worker_request(at, 5_000, Pending::Follow(shard, epoch), Call::GetSlices(shard));
            }
            Order::Forget(shard) => {
                self.workers[at].followed.remove(&shard);
                let left = self.workers[at].sessions.values().any(|session| session.shard == shard);
                if left {
                    self.breaks(format!("{me} forgets {shard} with sessions open"));
                }
            }
            Order::Start { shard, epoch } => {
                self.note(|| format!("{me} polls {shard} at epoch {epoch}"));
                if let Some(followed) = self.workers[at].followed.get_mut(&shard) {
                    (followed.started, followed.draining) = (true, false);
                    self.schedule(at, shard);
                } else {
                    self.breaks(format!("{me} starts {shard} without its slices"));
                }
            }
            Order::Drain { shard, .. } => {
                self.note(|| format!("{me} drains {shard}"));
                if let Some(followed) = self.workers[at].followed.get_mut(&shard) {
                    (followed.started, followed.draining) = (false, true);
                }
                // Told later, as a driver of several tasks would.
                self.after(5, Event::Hear(who, Inbound::Step(nobody(), 0)));
            }
            Order::Abort(shard) => {
                self.note(|| format!("{me} aborts {shard}"));
                self.drop_sessions(at, |session| session.shard == shard);
                if let Some(followed) = self.workers[at].followed.get_mut(&shard) {
                    followed.started = false;
                }
                self.after(5, Event::Hear(who, Inbound::Step(nobody(), 0)));
            }
            Order::AbortAll | Order::CloseAll => {
                self.note(|| format!("{me} drops all sessions"));
                self.cut_off(at, |_| true);
                for followed in self.workers[at].followed.values_mut() {
                    followed.started = false;
                }
                self.after(5, Event::Hear(who, Inbound::Step(nobody(), 0)));
            }
            Order::WriteStatus { shard, version, holder, epoch, observed } => {
                let pending = Pending::Write(shard, version.clone());
                let wanted =
                    ShardSeen { id: shard, version, desired: None, holder, epoch, slices: 0, observed };
                self.worker_request(at, 5_000, pending, Call::Write(wanted, me));
            }
            Order::Exit(exit) => {
                self.counts.exits += 1;
                self.note(|| format!("{me} ends: {exit:?}"));
                let holds = self.api.shards.values().any(|shard| shard.holder.as_ref() == Some(&me));
                let hindrance = self.workers[at].hindrance;
                // What it was given in the meantime it knows when its watch is back: a
                // list that was begun too early is waited for, then there is a pause.
                let back = 5_000 + 1_000 + 1_000;
                let hindered = hindrance.cut_until.max(hindrance.stopped_until).max(self.well_since) + back;
                if exit == Exit::Left && holds && hindered < self.now {
                    self.breaks(format!("{me} says that it left everything, and holds shards"));
                }
                if exit != Exit::Lost && self.reaches(who) {
                    let delay = self.latency();
                    self.after(delay, Event::Arrive(who, 0, Call::Release(me)));
                }
                self.end_worker(at);
                if exit == Exit::Lost {
                    // The container starts again.
                    self.after(1_000, Event::Start(at));
                }
            }
        }
    }

    /// Which drains are at their end?
    pub fn drained(&mut self, at: usize) {
        let worker = &mut self.workers[at];
        let mut done = Vec::new();
        for (&shard, followed) in &mut worker.followed {
            let busy = worker.sessions.values().any(|session| session.shard == shard)
                || worker.owed.values().any(|debt| debt.shard == shard);
            if followed.draining && !busy {
                followed.draining = false;
                done.push((shard, followed.epoch));
            }
        }
        for (shard, epoch) in done {
            self.worker_member(at, Heard::Drained { shard, epoch });
        }
        let shards: Vec<_> = self.workers[at].followed.keys().copied().collect();
        for shard in shards {
            self.slices_read(at, shard);
        }
    }

    fn poll(&mut self, at: usize, key: RecordKey, shard: ShardId, epoch: i64) {
        let (now, who) = (self.now, Who::Worker(at, self.workers[at].life));
        let worker = &self.workers[at];
        let Some(followed) = worker.followed.get(&shard) else { return };
        if followed.epoch != epoch || !followed.started || !followed.names(&key) {
            return;
        }
        let Some(member) = &worker.member else { return };
        if worker.sessions.contains_key(&key) {
            return;
        }
        let last = self.drops[&key].last_login;
        let allowed = member.may_poll(shard, worker.clock.at(now));
        self.after(POLL, Event::Hear(who, Inbound::Poll(key.clone(), shard, epoch)));
        let owes = self.workers[at].owed.contains_key(&key);
        if allowed != Some(epoch) || owes || now < last + POLL / 2 {
            return;
        }
        self.counts.polls += 1;
        let drop = self.drops.get_mut(&key).expect("a maildrop");
        drop.logins += 1;
        drop.last_login = now;
        let login = drop.logins;
        let ledger = self.api.ledgers.get(&key).cloned().unwrap_or_default();
        let id = self.id();
        let session = Session {
            id,
            shard,
            epoch,
            login,
            stage: Stage::Open,
            version: ledger.version,
            seen: ledger.seen,
            batch: BTreeSet::new(),
        };
        self.workers[at].sessions.insert(key.clone(), session);
        self.acts(at, &key, login, "logs in");
        let pause = 50 + self.roll(2_000);
        self.after(pause, Event::Hear(who, Inbound::Step(key, id)));
    }

    /// I1 and I6: whoever sends a command is the only one, and not stolen.
    fn acts(&mut self, at: usize, key: &RecordKey, login: u64, what: &str) {
        let me = self.workers[at].me();
        if self.drops[key].logins > login {
            self.breaks(format!("I1: {me} {what} at {} after another one's login", key.name));
        }
        let others = self.workers.iter().enumerate().any(|(other, worker)| {
            other != at && worker.sessions.contains_key(key) && worker.hindrance.stopped_until < self.now
        });
        if others {
            self.breaks(format!("I1: {me} {what} at {} while another one's session is open", key.name));
        }
        let stolen = self.api.leases.get(&Api::lease_name(&me)).map(|lease| lease.holder.clone());
        if stolen == Some(LeaseHolder::Stolen(me.clone())) {
            self.breaks(format!("I6: {me} {what} at {} although its lease is stolen", key.name));
        }
    }

    fn step(&mut self, at: usize, key: RecordKey, id: u64) {
        if id == 0 {
            self.drained(at);
            return;
        }
        let who = Who::Worker(at, self.workers[at].life);
        let Some(session) = self.workers[at].sessions.get(&key).filter(|session| session.id == id).cloned()
        else {
            return;
        };
        match session.stage {
            Stage::Open => {
                self.acts(at, &key, session.login, "retrieves");
                let waiting = self.drops[&key].mail.clone();
                let batch: BTreeSet<_> = waiting.difference(&session.seen).copied().collect();
                let draining =
                    self.workers[at].followed.get(&session.shard).is_none_or(|followed| followed.draining);
                let next = if batch.is_empty() || draining { Stage::Committed } else { Stage::Fetched };
                let live = self.workers[at].sessions.get_mut(&key).expect("the session");
                (live.stage, live.batch) = (next, batch.clone());
                if next == Stage::Fetched {
                    for message in &batch {
                        *self.delivered.entry(*message).or_default() += 1;
                    }
                    let (read, shard, epoch) = (session.version, session.shard, session.epoch);
                    let call = Call::Commit { key: key.clone(), read, shard, epoch, batch };
                    self.worker_request(at, 5_000, Pending::Commit(key, id), call);
                } else {
                    self.workers[at].sessions.get_mut(&key).expect("the session").batch.clear();
                    self.after(10, Event::Hear(who, Inbound::Step(key, id)));
                }
            }
            Stage::Fetched => {}
            Stage::Committed => {
                self.acts(at, &key, session.login, "deletes");
                let known = self.api.ledgers.get(&key).map(|ledger| ledger.seen.clone()).unwrap_or_default();
                let drop = self.drops.get_mut(&key).expect("a maildrop");
                let gone: Vec<_> = drop
                    .mail
                    .iter()
                    .filter(|message| session.batch.contains(message) || session.seen.contains(message))
                    .copied()
                    .collect();
                drop.mail.retain(|message| !gone.contains(message));
                for message in gone {
                    if !known.contains(&message) {
                        self.breaks(format!("I2: message {message} is deleted and not committed"));
                    }
                    let times = self.delivered.get(&message).copied().unwrap_or(0);
                    // A process that is stopped does not know yet that its batch is void.
                    let void = self.workers.iter().enumerate().filter(|(other, worker)| {
                        let theirs = worker.sessions.get(&key).is_some_and(|theirs| {
                            theirs.stage == Stage::Fetched && theirs.batch.contains(&message)
                        });
                        let owed = worker.owed.get(&key).is_some_and(|debt| debt.batch.contains(&message));
                        *other != at && (theirs || owed)
                    });
                    let void = u32::try_from(void.count()).unwrap();
                    let aborted = self.aborted.get(&message).copied().unwrap_or(0) + void;
                    if times == 0 {
                        self.breaks(format!("message {message} is lost"));
                    }
                    if times > 1 + aborted {
                        self.breaks(format!(
                            "I3: message {message} delivered {times} times, {aborted} batches aborted"
                        ));
                    }
                    self.counts.repeated += u64::from(times > 1);
                }
                self.workers[at].sessions.remove(&key);
                self.drained(at);
            }
        }
    }
}

fn nobody() -> RecordKey {
    RecordKey { namespace: "".into(), name: "".into() }
}

pub fn is_newer(version: &str, than: &str) -> bool {
    (version.len(), version) > (than.len(), than)
}
