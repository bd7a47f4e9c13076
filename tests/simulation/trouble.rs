//! What goes wrong.

use rpop::domain::shards::holding::Heard;

use super::sim::{Event, Inbound, Sim, Who};

impl Sim {
    pub fn trouble(&mut self) {
        if self.calm {
            return;
        }
        let again = 2_000 + self.roll(12_000);
        self.after(again, Event::Trouble);
        let running: Vec<usize> =
            (0..self.workers.len()).filter(|at| self.workers[*at].member.is_some()).collect();
        let some = running.get(usize::try_from(self.roll(running.len() as u64)).unwrap()).copied();
        match (self.roll(20), some) {
            (0..3, Some(at)) if running.len() > 2 => {
                self.counts.kills += 1;
                self.end_worker(at);
                if self.roll(2) == 0 {
                    let pause = 500 + self.roll(4_000);
                    self.after(pause, Event::Start(at));
                } else {
                    self.replace();
                }
            }
            (3..7, Some(at)) => {
                let span = 200 + self.roll(self.spans());
                self.stop(Who::Worker(at, self.workers[at].life), span);
            }
            (7..10, Some(at)) => {
                let span = 500 + self.roll(self.spans());
                self.cut(Who::Worker(at, self.workers[at].life), span);
            }
            (10, Some(at)) if running.len() > 2 => {
                self.note(|| format!("w{at} is told to leave"));
                if self.workers[at].hindrance.stopped_until < self.now {
                    self.workers[at].leaving = true;
                    self.worker_member(at, Heard::Leave);
                    self.replace();
                }
            }
            (11, _) => {
                let span = 500 + self.roll(self.spans());
                self.outage(span);
            }
            (12, _) => {
                let span = 5_000 + self.roll(25_000);
                self.slow_until = self.now + span;
                self.well_since = self.slow_until + 10_000;
                self.note(|| format!("the API server is slow for {span} ms"));
            }
            (13 | 14, _) => {
                let at = usize::try_from(self.roll(2)).unwrap();
                let (span, who) =
                    (500 + self.roll(self.spans()), Who::Controller(at, self.controllers[at].life));
                if self.roll(2) == 0 { self.stop(who, span) } else { self.cut(who, span) }
            }
            (15, _) => {
                if let Some(at) = self.leading {
                    self.kill_controller(at);
                    self.well_since = self.well_since.max(self.now + 12_000);
                }
            }
            (16, _) => {
                let slices: Vec<_> = self.api.slices.keys().copied().collect();
                let at = usize::try_from(self.roll(slices.len().max(1) as u64)).unwrap();
                if let Some((shard, number)) = slices.get(at).copied() {
                    self.counts.deletions += 1;
                    self.note(|| format!("slice {shard}-{number} is deleted by hand"));
                    self.api.delete_slice((shard, number));
                }
            }
            (17, _) => {
                let span = 500 + self.roll(self.spans());
                self.refuse_writes(span);
            }
            _ => {
                for _ in 0..=self.roll(4) {
                    self.edit();
                }
            }
        }
    }

    /// Twice D, so that some troubles end before and some after.
    fn spans(&self) -> u64 {
        2 * u64::try_from(self.timing.dead_after.as_millis()).unwrap()
    }

    /// A pod of another name.
    fn replace(&mut self) {
        if self.workers.iter().filter(|worker| worker.member.is_some()).count() < 8 {
            let (at, pause) = (self.add_worker(), 500 + self.roll(5_000));
            self.after(pause, Event::Start(at));
        }
    }

    pub fn stop(&mut self, who: Who, span: u64) {
        let until = self.now + span;
        if self.hindrance(who).stopped_until > self.now {
            return;
        }
        self.counts.stops += 1;
        self.note(|| format!("{who:?} is stopped for {span} ms"));
        self.hindrance(who).stopped_until = until;
        self.at(until, Event::Resume(who));
        if matches!(who, Who::Controller(..)) {
            self.well_since = self.well_since.max(until + 12_000);
        }
    }

    fn cut(&mut self, who: Who, span: u64) {
        let until = self.now + span;
        self.counts.cuts += 1;
        self.note(|| format!("{who:?} is cut off for {span} ms"));
        let hindrance = self.hindrance(who);
        hindrance.cut_until = hindrance.cut_until.max(until);
        self.unwatch(who);
        if matches!(who, Who::Controller(..)) {
            self.well_since = self.well_since.max(until + 12_000);
        }
    }

    pub fn outage(&mut self, span: u64) {
        let until = self.now + span;
        self.counts.outages += 1;
        self.note(|| format!("the API server is away for {span} ms"));
        self.away_until = self.away_until.max(until);
        self.well_since = self.well_since.max(until + 12_000);
        let workers = self.workers.iter().enumerate().map(|(at, worker)| Who::Worker(at, worker.life));
        let controllers =
            self.controllers.iter().enumerate().map(|(at, controller)| Who::Controller(at, controller.life));
        for who in workers.chain(controllers).collect::<Vec<_>>() {
            self.unwatch(who);
        }
        self.at(until, Event::Up);
    }

    /// What is there can be read, and nothing written.
    pub fn refuse_writes(&mut self, span: u64) {
        let until = self.now + span;
        self.note(|| format!("nothing can be written for {span} ms"));
        self.no_writes_until = self.no_writes_until.max(until);
        self.well_since = self.well_since.max(until + 12_000);
    }

    /// A watch that is cut is noticed, and opened again when that is possible.
    fn unwatch(&mut self, who: Who) {
        match who {
            Who::Worker(at, _) => self.workers[at].watching = false,
            Who::Controller(at, _) => self.controllers[at].watching = false,
        }
        let delay = 500 + self.roll(1_500);
        self.after(delay, Event::Hear(who, Inbound::Watch));
    }

    /// From now on nothing goes wrong any more.
    pub fn calm_down(&mut self) {
        self.calm = true;
        self.note(|| "it calms down".into());
    }
}
