//! A controller's driver.

use rpop::domain::shards::leader::{Answer, Decree, Leader, Seen, Workers};

use super::answers::Answered;
use super::api::Change;
use super::node::{Call, Wanted, host, record};
use super::sim::{Event, Inbound, Sim, Who};

impl Sim {
    /// A part of D, in milliseconds.
    pub fn part(&self, of: u32) -> u64 {
        u64::try_from((self.timing.dead_after / of).as_millis()).unwrap()
    }

    pub fn read_every(&self) -> u64 {
        u64::try_from(Workers::new(self.timing).read_every().as_millis()).unwrap()
    }

    /// Claims the leadership for whoever can, as an election by a Lease does: a
    /// claim lasts for D/3 from when its renewal was sent, which is given up
    /// after D/6; another one takes the lease after D/2.
    pub fn elect(&mut self) {
        let now = self.now;
        let (claim, limit) = (self.part(3), self.part(6));
        let takes = self.latency() + self.latency();
        let mut next = self.part(15).max(takes);
        let writes = now >= self.no_writes_until;
        if let Some(at) = self.leading {
            let who = Who::Controller(at, self.controllers[at].life);
            let stopped = self.controllers[at].hindrance.stopped_until > now;
            if self.controllers[at].machine.is_some() && !stopped && self.reaches(who) && writes {
                self.api.leader += 1;
                if takes <= limit && now + takes < self.controllers[at].leads_until {
                    self.controllers[at].leads_until = now + claim;
                } else {
                    next = limit + self.part(15);
                }
            } else if self.controllers[at].leads_until + self.part(6) < now {
                self.leading = None;
            }
        }
        if self.leading.is_none() && writes && takes <= limit {
            for at in 0..self.controllers.len() {
                let (life, hindrance) = (self.controllers[at].life, self.controllers[at].hindrance);
                if hindrance.stopped_until <= now && self.reaches(Who::Controller(at, life)) {
                    self.api.leader += 1;
                    self.lead(at);
                    break;
                }
            }
        }
        for at in 0..self.controllers.len() {
            self.controller_looks_at_the_clock(at);
        }
        self.after(next, Event::Elect);
    }

    /// A claim that has run out is noticed before anything else is done.
    pub fn controller_looks_at_the_clock(&mut self, at: usize) {
        let controller = &mut self.controllers[at];
        let stopped = controller.hindrance.stopped_until > self.now;
        if !stopped && controller.leads_until < self.now {
            let Some(machine) = controller.machine.take() else { return };
            controller.workers = Some(machine.into_workers());
            self.note(|| format!("controller {at} leads no more"));
            self.begin_to_count(at);
        }
    }

    /// The process ends, and another one starts.
    pub fn kill_controller(&mut self, at: usize) {
        self.note(|| format!("controller {at} is killed"));
        self.controllers[at].machine = None;
        self.controllers[at].workers = Some(Workers::new(self.timing));
        self.begin_to_count(at);
    }

    /// Reads leases, and does nothing else.
    pub fn begin_to_count(&mut self, at: usize) {
        let now = self.now;
        let controller = &mut self.controllers[at];
        controller.life += 1;
        controller.pending.clear();
        (controller.watching, controller.next_read) = (false, now);
        let who = Who::Controller(at, controller.life);
        self.after(2, Event::Hear(who, Inbound::Wake));
    }

    fn lead(&mut self, at: usize) {
        let (now, config) = (self.now, self.config());
        self.counts.leaders += 1;
        self.note(|| format!("controller {at} leads"));
        self.leading = Some(at);
        self.well_since = self.well_since.max(now);
        let claim = self.part(3);
        let controller = &mut self.controllers[at];
        controller.life += 1;
        controller.leads_until = now + claim;
        let counted = controller.workers.take().expect("it has not led");
        controller.machine = Some(Leader::resume(config, counted));
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
        // The second where the first is late, no more.
        let under_way =
            controller.pending.values().filter(|wanted| matches!(wanted, Wanted::Leases { .. })).count();
        if under_way == 2 || under_way == 1 && self.now < controller.next_read + self.read_every() {
            return;
        }
        self.controllers[at].next_read = self.now + self.read_every();
        self.controller_request(at, 5_000, Wanted::Leases { sent, late: false }, Call::Leases);
    }

    fn tell_late_reads(&mut self, at: usize) {
        let limit = Workers::new(self.timing).late_after();
        let controller = &mut self.controllers[at];
        let now = controller.clock.at(self.now);
        let mut late_ones = Vec::new();
        for wanted in controller.pending.values_mut() {
            if let Wanted::Leases { sent, late } = wanted
                && !*late
                && now.since(*sent) >= limit
            {
                *late = true;
                late_ones.push(*sent);
            }
        }
        for sent in late_ones {
            self.leader_hears(at, Seen::Unread { sent });
        }
    }

    fn controller_request(&mut self, at: usize, deadline: u64, wanted: Wanted, call: Call) {
        let (id, who) = (self.id(), Who::Controller(at, self.controllers[at].life));
        self.controllers[at].pending.insert(id, wanted);
        self.request(who, id, deadline, call);
    }

    fn leader_hears(&mut self, at: usize, seen: Seen) {
        let (now, clock) = (self.now, self.controllers[at].clock);
        let controller = &mut self.controllers[at];
        if let Some(machine) = &mut controller.machine {
            machine.hear(clock.at(now), seen);
        } else if let Some(workers) = &mut controller.workers {
            workers.hear(clock.at(now), seen);
        }
    }

    pub fn controller_hears(&mut self, at: usize, inbound: Inbound) {
        self.controller_looks_at_the_clock(at);
        match inbound {
            Inbound::Wake => {
                if self.now >= self.controllers[at].next_read {
                    self.read_leases(at);
                }
                self.tell_late_reads(at);
                let (now, clock) = (self.now, self.controllers[at].clock);
                if let Some(workers) = &mut self.controllers[at].workers {
                    workers.look(clock.at(now));
                }
                let who = Who::Controller(at, self.controllers[at].life);
                self.after(250, Event::Hear(who, Inbound::Wake));
            }
            Inbound::Watch => {
                if !self.controllers[at].watching && self.controllers[at].machine.is_some() {
                    self.controller_request(at, 5_000, Wanted::All, Call::List);
                }
            }
            Inbound::Timeout(id) => {
                if let Some(wanted) = self.controllers[at].pending.remove(&id) {
                    match wanted {
                        Wanted::Leases { late: true, .. } => {}
                        Wanted::Leases { sent, late: false } => {
                            self.leader_hears(at, Seen::Unread { sent });
                        }
                        Wanted::All => {
                            self.controllers[at].watching = false;
                            let who = Who::Controller(at, self.controllers[at].life);
                            self.after(1_000, Event::Hear(who, Inbound::Watch));
                        }
                        Wanted::Look(decree) => {
                            let (target, answer) = (decree.target(), Answer::Conflict);
                            self.leader_hears(at, Seen::Answered { target, answer });
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
            (Wanted::Leases { sent, .. }, Answered::Leases(leases, leader)) => {
                self.leader_hears(at, Seen::Leases { sent, leases, leader });
            }
            (Wanted::All, Answered::All(shards, slices)) => {
                self.leader_hears(at, Seen::Shards(shards));
                self.leader_hears(at, Seen::Slices(slices));
            }
            (
                Wanted::Done(decree @ Decree::WriteSlice { shard, number, .. }),
                Answered::Obeyed(Answer::Conflict, _),
            ) => {
                self.controller_request(at, 5_000, Wanted::Look(decree), Call::GetSlice(shard, number));
            }
            (Wanted::Look(decree @ Decree::WriteSlice { shard, number, .. }), Answered::Slice(found)) => {
                self.leader_hears(at, found.map_or(Seen::SliceGone(shard, number), Seen::Slice));
                let (target, answer) = (decree.target(), Answer::Conflict);
                self.leader_hears(at, Seen::Answered { target, answer });
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
        Change::SliceGone(shard, number) => Seen::SliceGone(shard, number),
    }
}
