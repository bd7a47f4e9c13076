//! The event loop: real time, delays, and all that goes wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use rpop::domain::shards::leader::{Config, RecordSeen, Workers};
use rpop::domain::shards::timing::Timing;
use rpop::domain::shards::{Incarnation, ShardId};
use rpop::domain::work::RecordKey;

use super::api::Api;
use super::node::{Call, Clock, Controller, Hindrance, Worker, records};

pub const RECORDS: usize = 80;
pub const HOSTS: usize = 10;
pub const SHARDS: u16 = 16;
pub const POLL: u64 = 20_000;
pub const DRAIN: Duration = Duration::from_secs(10);

/// Who sends or hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who {
    Worker(usize, u64),
    Controller(usize, u64),
}

pub enum Event {
    /// A request arrives at the API server.
    Arrive(Who, u64, Call),
    /// An answer, a change or a timer arrives at a process.
    Hear(Who, Inbound),
    /// A process that was stopped goes on.
    Resume(Who),
    /// The kubelet starts a worker.
    Start(usize),
    /// Somebody should lead.
    Elect,
    Mail,
    Trouble,
    /// The API server is back.
    Up,
}

pub enum Inbound {
    Wake,
    /// The request got no answer in its time.
    Timeout(u64),
    Answer(u64, super::answers::Answered),
    Change(super::api::Change),
    /// The watch should be opened again.
    Watch,
    Poll(RecordKey, ShardId, i64),
    Step(RecordKey, u64),
    Settle(RecordKey),
}

/// What has happened, counted.
#[derive(Debug, Default)]
pub struct Counts {
    pub events: u64,
    pub polls: u64,
    pub messages: u64,
    pub repeated: u64,
    pub settled: u64,
    pub steals: u64,
    pub given: u64,
    pub handed: u64,
    pub moved_records: u64,
    pub kills: u64,
    pub stops: u64,
    pub cuts: u64,
    pub outages: u64,
    pub deletions: u64,
    pub leaders: u64,
    pub conflicts: u64,
    pub exits: u64,
    pub fail_overs: Vec<u64>,
}

/// A worker's death: its shards must be elsewhere in time.
pub struct Death {
    pub who: Incarnation,
    pub at: u64,
}

pub struct Sim {
    pub now: u64,
    dice: u64,
    sequence: u64,
    queue: BTreeMap<(u64, u64), Event>,
    pub timing: Timing,
    pub api: Api,
    pub drops: HashMap<RecordKey, super::api::Maildrop>,
    pub delivered: BTreeMap<u64, u32>,
    pub aborted: BTreeMap<u64, u32>,
    pub workers: Vec<Worker>,
    pub controllers: Vec<Controller>,
    pub leading: Option<usize>,
    /// The API server is away until then.
    pub away_until: u64,
    pub slow_until: u64,
    /// Nothing can be written until then.
    pub no_writes_until: u64,
    /// A message takes so long at most, and half of it at least, if it is not 0.
    pub pace: u64,
    /// Since then API server and leader have been well.
    pub well_since: u64,
    pub deaths: Vec<Death>,
    pub calm: bool,
    pub edits: u64,
    pub records: Vec<RecordSeen>,
    next_mail: u64,
    next_id: u64,
    pub counts: Counts,
    trace: VecDeque<String>,
    pub broken: Option<String>,
    pub epochs: BTreeMap<ShardId, i64>,
    pub holders: BTreeMap<ShardId, Option<Incarnation>>,
}

impl Sim {
    pub fn new(seed: u64, timing: Timing, workers: usize) -> Self {
        let mut sim = Self {
            now: 1_000,
            dice: seed,
            sequence: 0,
            queue: BTreeMap::new(),
            timing,
            api: Api::default(),
            drops: HashMap::new(),
            delivered: BTreeMap::new(),
            aborted: BTreeMap::new(),
            workers: Vec::new(),
            controllers: Vec::new(),
            leading: None,
            away_until: 0,
            slow_until: 0,
            no_writes_until: 0,
            pace: 0,
            well_since: 0,
            deaths: Vec::new(),
            calm: true,
            edits: 0,
            records: records(RECORDS, HOSTS),
            next_mail: 0,
            next_id: 0,
            counts: Counts::default(),
            trace: VecDeque::new(),
            broken: None,
            epochs: BTreeMap::new(),
            holders: BTreeMap::new(),
        };
        for record in &sim.records {
            sim.drops.insert(record.key.clone(), super::api::Maildrop::default());
            sim.api.records.insert(record.key.clone(), record.clone());
        }
        for _ in 0..2 {
            let clock = sim.clock();
            sim.controllers.push(Controller {
                life: 0,
                machine: None,
                workers: Some(Workers::new(timing)),
                clock,
                hindrance: Hindrance::default(),
                pending: HashMap::new(),
                watching: false,
                last_heard: 0,
                next_read: u64::MAX,
                next_wake: u64::MAX,
                leads_until: 0,
            });
        }
        for at in 0..workers {
            sim.add_worker();
            sim.after(50 * at as u64, Event::Start(at));
        }
        for at in 0..2 {
            sim.begin_to_count(at);
        }
        sim.after(100, Event::Elect);
        sim.after(500, Event::Mail);
        sim
    }

    pub fn config(&self) -> Config {
        Config { shards: SHARDS, timing: self.timing }
    }

    /// A place for a worker, in a pod of its own; not started yet.
    pub fn add_worker(&mut self) -> usize {
        let clock = self.clock();
        let at = self.workers.len();
        self.workers.push(Worker {
            pod: format!("w{at}"),
            boot: 0,
            life: 0,
            member: None,
            clock,
            hindrance: Hindrance::default(),
            registered: false,
            sessions: BTreeMap::new(),
            owed: BTreeMap::new(),
            followed: BTreeMap::new(),
            pending: HashMap::new(),
            watching: false,
            last_heard: 0,
            next_wake: u64::MAX,
            leaving: false,
            lease_healthy_since: 0,
        });
        at
    }

    fn clock(&mut self) -> Clock {
        Clock { offset: self.roll(10_000_000), rate: 960_000 + self.roll(80_001) }
    }

    /// Below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.dice = self.dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.dice;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides.max(1)
    }

    pub fn at(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((time.max(self.now), self.sequence), event);
    }

    pub fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    pub fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if self.trace.len() == 4000 {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>8.3} {}", self.now as f64 / 1000.0, what()));
    }

    /// An invariant is broken.
    pub fn breaks(&mut self, what: String) {
        if self.broken.is_none() {
            self.note(|| format!("BROKEN: {what}"));
            self.broken = Some(what);
        }
    }

    /// The last events that name one of these.
    pub fn story(&self, lines: usize) -> String {
        let skip = self.trace.len().saturating_sub(lines);
        self.trace.iter().skip(skip).cloned().collect::<Vec<_>>().join("\n")
    }

    pub fn is_up(&self) -> bool {
        self.now >= self.away_until
    }

    pub fn hindrance(&mut self, who: Who) -> &mut Hindrance {
        match who {
            Who::Worker(at, _) => &mut self.workers[at].hindrance,
            Who::Controller(at, _) => &mut self.controllers[at].hindrance,
        }
    }

    pub fn is_current(&self, who: Who) -> bool {
        match who {
            Who::Worker(at, life) => self.workers[at].life == life && self.workers[at].member.is_some(),
            Who::Controller(at, life) => {
                let controller = &self.controllers[at];
                controller.life == life && (controller.machine.is_some() || controller.workers.is_some())
            }
        }
    }

    pub fn reaches(&mut self, who: Who) -> bool {
        let now = self.now;
        self.is_up() && self.hindrance(who).cut_until <= now
    }

    /// How long a message takes one way.
    pub fn latency(&mut self) -> u64 {
        if self.pace > 0 {
            return self.pace / 2 + self.roll(self.pace / 2 + 1);
        }
        let slow = self.now < self.slow_until;
        1 + self.roll(if slow { 6_000 } else { 25 })
    }

    /// Sends a request, with the timer for its answer.
    pub fn request(&mut self, who: Who, id: u64, deadline: u64, call: Call) {
        if self.reaches(who) {
            let delay = self.latency();
            self.after(delay, Event::Arrive(who, id, call));
            self.after(deadline, Event::Hear(who, Inbound::Timeout(id)));
        } else {
            // Refused at once, or nothing is heard.
            let delay = if self.roll(2) == 0 { 5 } else { deadline };
            self.after(delay, Event::Hear(who, Inbound::Timeout(id)));
        }
    }

    /// Something travels from the API server to a process: what a watch tells
    /// in its order, answers in any.
    pub fn tell(&mut self, who: Who, inbound: Inbound) {
        let time = self.now + self.latency();
        if matches!(&inbound, Inbound::Answer(_, answered) if !answered.begins_watch()) {
            self.at(time, Event::Hear(who, inbound));
            return;
        }
        let last = match who {
            Who::Worker(at, _) => &mut self.workers[at].last_heard,
            Who::Controller(at, _) => &mut self.controllers[at].last_heard,
        };
        *last = (*last).max(time);
        let time = *last;
        self.at(time, Event::Hear(who, inbound));
    }

    /// Runs until `time`, or until an invariant breaks.
    pub fn run_until(&mut self, time: u64) {
        while self.broken.is_none() {
            let Some((&(at, _), _)) = self.queue.first_key_value() else { break };
            if at > time {
                break;
            }
            let ((at, _), event) = self.queue.pop_first().expect("there is one");
            self.now = at;
            self.happen(event);
        }
        if self.broken.is_none() {
            self.now = time;
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive(who, id, call) => {
                self.counts.events += 1;
                if self.is_up() {
                    self.arrive(who, id, call);
                }
            }
            Event::Hear(who, inbound) => {
                if !self.is_current(who) {
                    return;
                }
                let (now, stopped) = (self.now, self.hindrance(who).stopped_until);
                if stopped > now {
                    // It is all there when the process goes on.
                    self.at(stopped + 1, Event::Hear(who, inbound));
                    return;
                }
                let outside = matches!(inbound, Inbound::Answer(..) | Inbound::Change(_));
                if outside && !self.reaches(who) {
                    return;
                }
                self.counts.events += 1;
                match who {
                    Who::Worker(at, _) => self.worker_hears(at, inbound),
                    Who::Controller(at, _) => self.controller_hears(at, inbound),
                }
            }
            Event::Resume(who) => {
                if self.is_current(who) {
                    // The first thing is a look at the clock.
                    match who {
                        Who::Worker(at, _) => self.wake_worker(at),
                        Who::Controller(at, _) => self.controller_looks_at_the_clock(at),
                    }
                }
            }
            Event::Start(at) => self.start_worker(at),
            Event::Elect => self.elect(),
            Event::Mail => self.mail(),
            Event::Trouble => self.trouble(),
            Event::Up => {}
        }
        self.tell_changes();
        self.check();
    }

    fn mail(&mut self) {
        if !self.calm || self.counts.events < 20_000 {
            let (at, count) = (self.roll(RECORDS as u64), 1 + self.roll(3));
            let key = self.records[usize::try_from(at).unwrap()].key.clone();
            for _ in 0..count {
                self.next_mail += 1;
                self.counts.messages += 1;
                self.drops.get_mut(&key).expect("a maildrop").mail.insert(self.next_mail);
            }
        }
        self.after(300, Event::Mail);
    }

    /// Changes of objects go to whoever watches.
    fn tell_changes(&mut self) {
        let changes = std::mem::take(&mut self.api.changes);
        if changes.is_empty() {
            return;
        }
        let mut watchers: Vec<Who> = Vec::new();
        for (at, worker) in self.workers.iter().enumerate() {
            if worker.watching {
                watchers.push(Who::Worker(at, worker.life));
            }
        }
        for (at, controller) in self.controllers.iter().enumerate() {
            if controller.watching {
                watchers.push(Who::Controller(at, controller.life));
            }
        }
        for who in watchers {
            if self.reaches(who) {
                for change in &changes {
                    self.tell(who, Inbound::Change(change.clone()));
                }
            }
        }
    }

    /// What must hold after every event.
    fn check(&mut self) {
        let shards: Vec<_> =
            self.api.shards.values().map(|shard| (shard.id, shard.epoch, shard.holder.clone())).collect();
        for (id, epoch, holder) in shards {
            let before = self.epochs.insert(id, epoch).unwrap_or(0);
            let held = self.holders.insert(id, holder.clone()).flatten();
            if epoch < before || epoch == before && held != holder {
                self.breaks(format!(
                    "I4: {id} goes from {held:?} at epoch {before} to {holder:?} at {epoch}"
                ));
            }
        }
        let limit = u64::try_from(self.timing.dead_after.as_millis()).unwrap() + 3_000;
        let (now, well) = (self.now, self.well_since);
        let mut late = None;
        let mut over = Vec::new();
        self.deaths.retain(|death| {
            let left =
                self.api.shards.values().filter(|shard| shard.holder.as_ref() == Some(&death.who)).count();
            if left == 0 {
                over.push(now - death.at);
                return false;
            }
            // Only while nothing else is wrong is there a promise.
            let since = death.at.max(well);
            if now > since + limit {
                late = Some(format!("{left} shards stay at {}, dead for {} ms", death.who, now - death.at));
            }
            true
        });
        self.counts.fail_overs.extend(over);
        if let Some(late) = late {
            self.breaks(format!("fail-over: {late}"));
        }
    }

    pub fn unpolled_since(&self, time: u64) -> BTreeSet<RecordKey> {
        let unpolled = self.drops.iter().filter(|(_, drop)| drop.last_login < time);
        unpolled.map(|(key, _)| key.clone()).collect()
    }
}
