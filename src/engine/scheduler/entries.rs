//! Records as the scheduler sees them, and where they wait.

use super::hosts::Trust;
use super::{Moment, PATIENCE, Scheduler, Timing};
use crate::domain::work::RecordKey;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not to be polled.
    Off,
    /// In `timed`.
    Idle,
    /// In its host's queue.
    Queued,
    Polling {
        /// When its place may be given to another, if it is among the unheard.
        patience: Moment,
        /// The host of the session: the record's may have changed since,
        at: u32,
        /// and so may its maildrop.
        maildrop: u64,
        /// Counts among the doubtful: the host has not been heard.
        doubtful: bool,
        /// Was told to end.
        yielding: bool,
    },
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: RecordKey,
    pub(super) uid: u64,
    pub(super) maildrop: u64,
    /// Milliseconds; 0 is not polled.
    pub(super) interval: u64,
    pub(super) host: u32,
    pub(super) state: State,
    pub(super) due: Moment,
    pub(super) last_start: Moment,
    pub(super) failures: u16,
    /// Logins refused in a row, whatever came between.
    pub(super) refused: u16,
    /// Turns in a row at which its host said nothing until it had to yield.
    pub(super) turns: u8,
    /// Changed while it was polled: again at once.
    pub(super) again: bool,
    /// Removed while it was polled.
    pub(super) gone: bool,
}

impl Scheduler {
    pub(super) fn entry(&self, id: u32) -> Option<&Entry> {
        self.entries.get(id as usize)?.as_ref()
    }

    pub(super) fn entry_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.entries.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn set(&mut self, id: u32, entry: Option<Entry>) {
        if let Some(slot) = self.entries.get_mut(id as usize) {
            *slot = entry;
        }
    }

    pub(super) fn change(
        &mut self,
        id: u32,
        timing: &Timing,
        interval: u64,
        host: u32,
        again: bool,
        now: Moment,
    ) {
        let Some(entry) = self.entry(id) else { return };
        let polling = matches!(entry.state, State::Polling { .. });
        let moved = entry.host != host;
        let (old_host, old_interval, old_due) = (entry.host, entry.interval, entry.due);
        if !polling {
            self.rouse(id);
        }
        if moved {
            if let Some(host) = self.host_mut(host) {
                host.records += 1;
            }
            self.leave_host(old_host);
        }
        self.scheduled = self.scheduled + u32::from(interval > 0) - u32::from(old_interval > 0);
        let Some(entry) = self.entry_mut(id) else { return };
        (entry.uid, entry.maildrop) = (timing.uid, timing.maildrop);
        entry.interval = interval;
        entry.host = host;
        entry.gone = false;
        if again {
            (entry.failures, entry.refused) = (0, 0);
            entry.again = polling;
            // Perhaps it was not the host, but how this record spoke to it:
            // the record is the probe.
        }
        if again {
            self.release(host);
        }
        if polling || interval == 0 {
            return;
        }
        let due = if again || old_interval == 0 {
            self.soon(id, now)
        } else if old_interval == interval {
            old_due
        } else {
            // A delay that is under way is not shortened by a new rhythm.
            let slot = self.slot(id, now);
            if self.entry(id).is_some_and(|entry| entry.failures > 0) { old_due.max(slot) } else { slot }
        };
        self.sleep(id, due);
    }

    pub(super) fn drop_entry(&mut self, id: u32) {
        let Some(entry) = self.entries.get_mut(id as usize).and_then(Option::take) else { return };
        self.by_key.remove(&entry.key);
        self.scheduled -= u32::from(entry.interval > 0);
        self.free.push(id);
        self.leave_host(entry.host);
    }

    /// Takes a record out of whatever it waits in.
    pub(super) fn rouse(&mut self, id: u32) {
        let Some(entry) = self.entry_mut(id) else { return };
        let (state, due, host) = (entry.state, entry.due, entry.host);
        match state {
            State::Idle => {
                self.timed.remove(&(due, id));
            }
            State::Queued => {
                if let Some(host) = self.host_mut(host) {
                    host.queue.retain(|other| *other != id);
                }
            }
            State::Off | State::Polling { .. } => return,
        }
        if let Some(entry) = self.entry_mut(id) {
            entry.state = State::Off;
        }
    }

    pub(super) fn sleep(&mut self, id: u32, due: Moment) {
        if let Some(entry) = self.entry_mut(id) {
            entry.state = State::Idle;
            entry.due = due;
            self.timed.insert((due, id));
        }
    }

    pub(super) fn enqueue(&mut self, id: u32) {
        let Some(entry) = self.entry_mut(id) else { return };
        entry.state = State::Queued;
        let host = entry.host;
        if let Some(host) = self.host_mut(host) {
            host.queue.push_back(id);
        }
        self.offer(host);
    }

    pub(super) fn start(&mut self, id: u32, now: Moment) {
        let Some(at) = self.entry(id).map(|entry| entry.host) else { return };
        let doubtful = self.host_mut(at).is_some_and(|host| {
            host.polling += 1;
            host.trust != Trust::Answers
        });
        self.polling += 1;
        self.doubtful += u32::from(doubtful);
        let Some(entry) = self.entry_mut(id) else { return };
        let wait = PATIENCE.get(usize::from(entry.turns)).copied();
        let patience = now.after(wait.unwrap_or_default());
        let maildrop = entry.maildrop;
        entry.state = State::Polling { patience, at, maildrop, doubtful, yielding: false };
        entry.last_start = now;
        entry.again = false;
        self.busy.insert((at, maildrop));
        if doubtful && wait.is_some() {
            self.unheard.insert((patience, id));
        }
        self.offer(at);
    }
}
