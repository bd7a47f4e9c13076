//! What a leader can know of Leases by reading them: whether somebody who is
//! silent could have spoken.

use std::time::Duration;

use crate::domain::shards::timing::{Boot, Timing};

/// Why it was not known for a while whether workers could renew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// Reads of the Leases failed.
    Failed,
    /// Reads took too long.
    Slow,
    /// Nothing was read: this process did not run.
    Paused,
    /// Reads went well, but nobody's Lease was written.
    Unwritten,
}

impl Cause {
    /// A word of a closed list, for metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Slow => "slow",
            Self::Paused => "paused",
            Self::Unwritten => "unwritten",
        }
    }
}

/// What is worth telling people of the reads of Leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It is not known any more whether workers could renew: nobody is taken
    /// for dead. Once a period.
    Blind {
        /// Why.
        cause: Cause,
        /// Since the last good read, or the last written Lease.
        since: Duration,
        /// The slowest read in that time.
        slowest: Duration,
        /// Reads in that time that failed.
        failed: u32,
    },
    /// Every count of silence was set back: it has started afresh, or, where a
    /// read failed and the next one went well, it will take as much longer as
    /// such a failure may have cost a worker.
    SetBack(Cause),
    /// For D nothing like that has happened: the period is over.
    Over {
        /// From its begin to the last time that counts started afresh.
        lasted: Duration,
        /// How often they did.
        times: u32,
        /// The slowest read in that time.
        slowest: Duration,
        /// Reads in that time that failed.
        failed: u32,
    },
}

/// What a read means for those who are silent in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// They could have renewed.
    Silence,
    /// They may have missed an attempt: so much does not count.
    Less(Duration),
    /// Nothing is known of the time before.
    Nothing,
}

/// A time in which blindness and sight alternate.
struct Period {
    began: Boot,
    times: u32,
    slowest: Duration,
    failed: u32,
    /// When the counts last started afresh.
    last: Boot,
}

/// When Leases were read, and when they were seen to have been written.
pub(super) struct Evidence {
    timing: Timing,
    /// When the latest of the reads that were answered was sent.
    read: Option<Boot>,
    /// When the last good read was heard.
    good: Option<Boot>,
    /// When it was last seen that somebody has written a Lease.
    written: Option<Boot>,
    /// Since the last good read.
    slowest: Duration,
    failed: u32,
    paused: bool,
    /// When anybody last looked at the clock.
    looked: Option<Boot>,
    period: Option<Period>,
    notices: Vec<Sight>,
}

/// Notices that nobody takes are not kept for ever.
const MOST_NOTICES: usize = 16;

impl Evidence {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            timing,
            read: None,
            good: None,
            written: None,
            slowest: Duration::ZERO,
            failed: 0,
            paused: false,
            looked: None,
            period: None,
            notices: Vec::new(),
        }
    }

    /// A read says something of others only if it was answered within that,
    /// and only as long afterwards. A worker renews every R; that its renewal
    /// is seen takes an answer to it, a read that was answered just before it
    /// and the next one: R + 3 x this is to be no more than D.
    fn good_for(&self) -> Duration {
        self.timing.dead_after / 4
    }

    /// As long nobody's Lease needs to have been written. The leader's own is
    /// among them: this is how long it leads without an acknowledged renewal.
    fn written_for(&self) -> Duration {
        self.timing.dead_after / 3
    }

    /// When the latest answered read was sent.
    pub(super) fn read(&self) -> Option<Boot> {
        self.read
    }

    /// Somebody has written a Lease.
    pub(super) fn is_written(&mut self, now: Boot) {
        self.written = Some(now);
    }

    /// A read that was sent then failed. What was sent before the latest
    /// answered one says nothing more.
    pub(super) fn failed(&mut self, now: Boot, sent: Boot) {
        if self.read.is_none_or(|read| sent > read) {
            self.failed = self.failed.saturating_add(1);
        }
        self.look(now);
    }

    /// A read that was sent then is heard; `written`: it shows a Lease that
    /// was written since the last one.
    pub(super) fn heard(&mut self, now: Boot, sent: Boot, written: bool) -> Meaning {
        self.read = self.read.max(Some(sent));
        let took = now.since(sent);
        self.slowest = self.slowest.max(took);
        self.look(now);
        if took > self.good_for() {
            if written {
                self.written = self.written.max(Some(sent));
            }
            return Meaning::Silence;
        }
        let (sighted, cause, failed) = (self.is_current(now), self.cause(now), self.failed > 0);
        let before = self.good.replace(now);
        if written || self.written.is_none() {
            self.written = Some(now);
        }
        self.note_reads();
        let Some(before) = before else { return Meaning::Silence };
        if sighted && failed {
            self.tell(Sight::SetBack(Cause::Failed));
            // A renewal that meets the same is given up after less than R, and
            // the next one follows after R/2 at most.
            return Meaning::Less(now.since(before) + self.timing.renew_every * 3 / 2);
        }
        if sighted {
            return Meaning::Silence;
        }
        if self.is_current(now) {
            self.tell(Sight::SetBack(cause));
            if let Some(period) = &mut self.period {
                period.times = period.times.saturating_add(1);
                period.last = now;
            }
        }
        Meaning::Nothing
    }

    /// Whether who is silent could have renewed until a moment ago.
    pub(super) fn is_current(&self, now: Boot) -> bool {
        let within = |then: Option<Boot>, span| then.is_some_and(|then| now.since(then) <= span);
        within(self.good, self.good_for()) && within(self.written, self.written_for())
    }

    /// Time has passed. To be called every D/15 or so: a longer pause is one of
    /// this process.
    pub(super) fn look(&mut self, now: Boot) {
        self.paused |= self.looked.is_some_and(|looked| now.since(looked) > self.good_for() / 2);
        self.looked = self.looked.max(Some(now));
        let Some(good) = self.good else { return };
        let current = self.is_current(now);
        match &mut self.period {
            None if !current => {
                let cause = self.cause(now);
                let quiet = if cause == Cause::Unwritten { self.written.unwrap_or(good) } else { good };
                let (slowest, failed) = (self.slowest, self.failed);
                self.tell(Sight::Blind { cause, since: now.since(quiet), slowest, failed });
                self.period = Some(Period { began: now, times: 0, slowest, failed: 0, last: now });
            }
            Some(period) if !current => period.last = now,
            Some(period) if now.since(period.last) >= self.timing.dead_after => {
                let notice = Sight::Over {
                    lasted: period.last.since(period.began),
                    times: period.times,
                    slowest: period.slowest,
                    failed: period.failed,
                };
                self.period = None;
                self.tell(notice);
            }
            _ => {}
        }
    }

    fn cause(&self, now: Boot) -> Cause {
        let good = self.good.unwrap_or(now);
        if now.since(good) <= self.good_for() {
            Cause::Unwritten
        } else if self.paused {
            Cause::Paused
        } else if self.failed > 0 {
            Cause::Failed
        } else {
            Cause::Slow
        }
    }

    /// A good read ends a stretch of bad ones.
    fn note_reads(&mut self) {
        let (slowest, failed) = (std::mem::take(&mut self.slowest), std::mem::take(&mut self.failed));
        self.paused = false;
        if let Some(period) = &mut self.period {
            period.slowest = period.slowest.max(slowest);
            period.failed = period.failed.saturating_add(failed);
        }
    }

    fn tell(&mut self, notice: Sight) {
        if self.notices.len() < MOST_NOTICES {
            self.notices.push(notice);
        }
    }

    pub(super) fn take_notices(&mut self) -> Vec<Sight> {
        std::mem::take(&mut self.notices)
    }
}
