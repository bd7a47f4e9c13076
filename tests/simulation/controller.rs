//! A controller's driver.

use rpop::domain::shards::leader::{Answer, Leader, Seen};

use super::answers::Answered;
use super::api::Change;
use super::node::{Call, Wanted, host, record};
use super::sim::{Event, Inbound, Sim, Who};

/// A claim lasts so long; a leader stops a while before by its own clock.
const CLAIM: u64 = 10_000;

impl Sim {
    /// Claims the leadership for whoever can, as an election by a Lease does.
    pub fn elect(&mut self) {
        let now = self.now;
        if let Some(at) = self.leading {
            let who = Who::Controller(at, self.controllers[at].life);
            let stopped = self.controllers[at].hindrance.stopped_until > now;
            if self.controllers[at].machine.is_some() && !stopped && self.reaches(who) {
                self.controllers[at].leads_until = now + CLAIM;
            } else if self.controllers[at].leads_until + 1_000 < now {
                self.leading = None;
            }
        }
        if self.leading.is_none() {
            for at in 0..self.controllers.len() {
                let (life, hindrance) = (self.controllers[at].life, self.controllers[at].hindrance);
                if hindrance.stopped_until <= now && self.reaches(Who::Controller(at, life)) {
                    self.lead(at);
                    break;
                }
            }
        }
        for at in 0..self.controllers.len() {
            self.controller_looks_at_the_clock(at);
        }
        self.after(1_000, Event::Elect);
    }

    /// A claim that has run out is noticed before anything else is done.
    pub fn controller_looks_at_the_clock(&mut self, at: usize) {
        let controller = &mut self.controllers[at];
        let stopped = controller.hindrance.stopped_until > self.now;
        if controller.machine.is_some() && !stopped && controller.leads_until < self.now {
            controller.machine = None;
            controller.life += 1;
            controller.pending.clear();
            controller.watching = false;
            self.note(|| format!("controller {at} leads no more"));
        }
    }

    fn lead(&mut self, at: usize) {
        let (now, config) = (self.now, self.config());
        self.counts.leaders += 1;
        self.note(|| format!("controller {at} leads"));
        self.leading = Some(at);
        self.well_since = self.well_since.max(now);
        let controller = &mut self.controllers[at];
        controller.life += 1;
        controller.leads_until = now + CLAIM;
        controller.machine = Some(Leader::new(config));
        controller.pending.clear();
        (controller.watching, controller.next_wake) = (false, u64::MAX);
        let who = Who::Controller(at, controller.life);
        let records = self.records.clone();
        let expected =
            u32::try_from(self.workers.iter().filter(|worker| worker.member.is_some()).count()).unwrap();
        self.leader_hears(at, Seen::Expected(expected));
        self.leader_hears(at, Seen::Connections(20));
        self.leader_hears(at, Seen::Records(records));
        self.after(1, Event::Hear(who, Inbound::Watch));
        self.after(2, Event::Hear(who, Inbound::Wake));
        self.read_leases(at);
    }

    fn read_leases(&mut self, at: usize) {
        let controller = &self.controllers[at];
        let sent = controller.clock.at(self.now);
        let every = controller
            .machine
            .as_ref()
            .map_or(1_000, |machine| u64::try_from(machine.read_every().as_millis()).unwrap());
        self.controllers[at].next_read = self.now + every;
        self.controller_request(at, 5_000, Wanted::Leases { sent }, Call::Leases);
    }

    fn controller_request(&mut self, at: usize, deadline: u64, wanted: Wanted, call: Call) {
        let (id, who) = (self.id(), Who::Controller(at, self.controllers[at].life));
        self.controllers[at].pending.insert(id, wanted);
        self.request(who, id, deadline, call);
    }

    fn leader_hears(&mut self, at: usize, seen: Seen) {
        let (now, clock) = (self.now, self.controllers[at].clock);
        if let Some(machine) = &mut self.controllers[at].machine {
            machine.hear(clock.at(now), seen);
        }
    }

    pub fn controller_hears(&mut self, at: usize, inbound: Inbound) {
        self.controller_looks_at_the_clock(at);
        if self.controllers[at].machine.is_none() {
            return;
        }
        match inbound {
            Inbound::Wake => {
                if self.now >= self.controllers[at].next_read {
                    self.read_leases(at);
                }
                let who = Who::Controller(at, self.controllers[at].life);
                self.after(250, Event::Hear(who, Inbound::Wake));
            }
            Inbound::Watch => {
                if !self.controllers[at].watching {
                    self.controller_request(at, 5_000, Wanted::All, Call::List);
                }
            }
            Inbound::Timeout(id) => {
                if let Some(wanted) = self.controllers[at].pending.remove(&id) {
                    self.leader_hears(at, Seen::Gap);
                    match wanted {
                        Wanted::Leases { .. } => {}
                        Wanted::All => {
                            self.controllers[at].watching = false;
                            let who = Who::Controller(at, self.controllers[at].life);
                            self.after(1_000, Event::Hear(who, Inbound::Watch));
                        }
                        Wanted::Done(decree) => {
                            let (target, answer) = (decree.target(), Answer::Failed);
                            self.leader_hears(at, Seen::Answered { target, answer });
                        }
                    }
                }
            }
            Inbound::Answer(id, answered) => {
                if let Some(wanted) = self.controllers[at].pending.remove(&id) {
                    self.controller_answered(at, wanted, answered);
                }
            }
            Inbound::Change(change) => self.leader_hears(at, seen(change)),
            Inbound::Poll(..) | Inbound::Step(..) | Inbound::Settle(_) => {}
        }
        self.decide(at);
    }

    fn controller_answered(&mut self, at: usize, wanted: Wanted, answered: Answered) {
        match (wanted, answered) {
            (Wanted::Leases { sent }, Answered::Leases(leases)) => {
                self.leader_hears(at, Seen::Leases { sent, leases });
            }
            (Wanted::All, Answered::All(shards, slices)) => {
                self.leader_hears(at, Seen::Shards(shards));
                self.leader_hears(at, Seen::Slices(slices));
            }
            (Wanted::Done(decree), Answered::Obeyed(answer, object)) => {
                if let Some(object) = object {
                    self.leader_hears(at, seen(object));
                }
                self.leader_hears(at, Seen::Answered { target: decree.target(), answer });
            }
            _ => panic!("an answer to another question"),
        }
    }

    fn decide(&mut self, at: usize) {
        let (now, clock) = (self.now, self.controllers[at].clock);
        let Some(machine) = &mut self.controllers[at].machine else { return };
        let decrees = machine.decide(clock.at(now));
        for decree in decrees {
            self.controller_request(at, 5_000, Wanted::Done(decree.clone()), Call::Obey(decree));
        }
    }

    /// Somebody edits a record: its host is another one.
    pub fn edit(&mut self) {
        self.edits += 1;
        let at = usize::try_from(self.roll(self.records.len() as u64)).unwrap();
        // Often one host, so that it becomes a giant.
        let to =
            if self.roll(3) == 0 { 0 } else { usize::try_from(self.roll(super::sim::HOSTS as u64)).unwrap() };
        let changed = record(at, host(to), self.edits);
        let name = changed.key.name.clone();
        self.note(|| format!("{name} is edited: {}", changed.host));
        self.records[at] = changed.clone();
        self.api.records.insert(changed.key.clone(), changed.clone());
        self.counts.moved_records += 1;
        for at in 0..self.controllers.len() {
            self.leader_hears(at, Seen::Record(changed.clone()));
        }
    }
}

fn seen(change: Change) -> Seen {
    match change {
        Change::Lease(lease) => Seen::Lease(lease),
        Change::Shard(shard) => Seen::Shard(shard),
        Change::Slice(slice) => Seen::Slice(slice),
    }
}
