//! Times in which nothing begins: outside of the activity schedule.

use super::entries::State;
use super::{Moment, Scheduler};

/// Such a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Nothing begins from here on.
    pub from: Moment,
    /// The first moment at which polls begin again.
    pub until: Moment,
}

impl Rest {
    pub(super) fn holds(self, at: Moment) -> bool {
        self.from <= at && at < self.until
    }
}

impl Scheduler {
    /// The present or the next time of rest; `None` where there is none.
    /// Running polls are not ended by this.
    pub fn rest(&mut self, rest: Option<Rest>, now: Moment) {
        let rested = self.rest.is_some_and(|rest| rest.from <= now);
        self.rest = rest;
        if rested && !self.is_resting(now) {
            self.wake_up(now);
        }
    }

    /// Whether nothing begins now.
    pub fn is_resting(&self, now: Moment) -> bool {
        self.rest.is_some_and(|rest| rest.holds(now))
    }

    /// What came due meanwhile is spread as after a restart, and is not late.
    fn wake_up(&mut self, now: Moment) {
        let late = |id: &u32| {
            let entry = self.entries.get(*id as usize).and_then(Option::as_ref);
            entry.is_some_and(|entry| match entry.state {
                State::Queued => true,
                State::Idle => entry.due <= now,
                State::Off | State::Polling { .. } => false,
            })
        };
        let late: Vec<u32> = (0..super::index(self.entries.len())).filter(late).collect();
        for id in late {
            self.rouse(id);
            let due = self.soon(id, now);
            self.sleep(id, due);
        }
    }
}
