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
    /// It is not sure any more whether workers could renew: counts of silence
    /// are set back. Once a period.
    Doubtful {
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
    /// For D they were not: the period is over.
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
    missed: bool,
    paused: bool,
    /// When anybody last looked at the clock.
    looked: Option<Boot>,
    period: Option<Period>,
    told: Vec<Sight>,
}

/// What nobody takes is not kept for ever.
const MOST_TOLD: usize = 16;

impl Evidence {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            timing,
            read: None,
            good: None,
            written: None,
            slowest: Duration::ZERO,
            failed: 0,
            missed: false,
            paused: false,
            looked: None,
            period: None,
            told: Vec::new(),
        }
    }

    /// A read says something of others only if it was answered within that,
    /// and only as long afterwards. A worker renews every R; that its renewal
    /// is seen takes an answer to it, a read that was answered just before it
    /// and the next one: R + 3 x this is to be no more than D.
    pub(super) fn good_for(&self) -> Duration {
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

    /// A read that was sent then failed, or is out for longer than
    /// [`Evidence::good_for`]. Also one that others have overtaken: a renewal
    /// that was sent with it has had the same fate.
    pub(super) fn failed(&mut self, now: Boot, sent: Boot) {
        let took = now.since(sent);
        self.slowest = self.slowest.max(took);
        self.missed = true;
        if took < self.good_for() {
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
        let (sighted, cause, missed) = (self.is_current(now), self.cause(now), self.missed);
        let before = self.good.replace(now);
        if written || self.written.is_none() {
            self.written = Some(now);
        }
        let meaning = match before {
            None => Meaning::Silence,
            // A renewal that meets the same is given up after less than R, and
            // the next one follows after R/2 at most.
            Some(before) if sighted && missed => {
                Meaning::Less(now.since(before) + self.timing.renew_every * 3 / 2)
            }
            Some(_) if sighted => Meaning::Silence,
            Some(_) => Meaning::Nothing,
        };
        if meaning != Meaning::Silence {
            self.begin(now, cause, before.unwrap_or(now));
        }
        self.note_reads();
        if meaning != Meaning::Silence && self.is_current(now) {
            self.tell(Sight::SetBack(cause));
            if let Some(period) = &mut self.period {
                period.times = period.times.saturating_add(1);
                period.last = now;
            }
        }
        meaning
    }

    /// Whether a worker may be taken for dead by what was counted: nothing
    /// makes it doubtful that whoever is silent could have renewed.
    pub(super) fn is_clear(&self, now: Boot) -> bool {
        self.is_current(now) && !self.missed
    }

    /// Whether who is silent could have renewed until a moment ago.
    fn is_current(&self, now: Boot) -> bool {
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
                let since = if cause == Cause::Unwritten { self.written.unwrap_or(good) } else { good };
                self.begin(now, cause, since);
            }
            Some(period) if !current => period.last = now,
            Some(period) if now.since(period.last) >= self.timing.dead_after => {
                let over = Sight::Over {
                    lasted: period.last.since(period.began),
                    times: period.times,
                    slowest: period.slowest,
                    failed: period.failed,
                };
                self.period = None;
                self.tell(over);
            }
            _ => {}
        }
    }

    /// Told once a period.
    fn begin(&mut self, now: Boot, cause: Cause, since: Boot) {
        if self.period.is_none() {
            let (slowest, failed) = (self.slowest, self.failed);
            self.tell(Sight::Doubtful { cause, since: now.since(since), slowest, failed });
            self.period = Some(Period { began: now, times: 0, slowest, failed: 0, last: now });
        }
    }

    fn cause(&self, now: Boot) -> Cause {
        let blind = self.good.is_some_and(|good| now.since(good) > self.good_for());
        if !blind && !self.missed {
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
        (self.missed, self.paused) = (false, false);
        if let Some(period) = &mut self.period {
            period.slowest = period.slowest.max(slowest);
            period.failed = period.failed.saturating_add(failed);
        }
    }

    fn tell(&mut self, sight: Sight) {
        if self.told.len() < MOST_TOLD {
            self.told.push(sight);
        }
    }

    pub(super) fn take_told(&mut self) -> Vec<Sight> {
        std::mem::take(&mut self.told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// D 8 s, R 2 s: a read is good for 2 s, a Lease is written every 2.6 s.
    fn evidence() -> Evidence {
        let mut evidence = Evidence::new(Timing::FAST);
        assert_eq!(evidence.heard(Boot(10_000), Boot(9_900), true), Meaning::Silence);
        evidence
    }

    /// Good reads every half second, a Lease written in each.
    fn well(evidence: &mut Evidence, from: u64, until: u64) {
        for now in (from..=until).step_by(500) {
            assert_eq!(evidence.heard(Boot(now), Boot(now - 50), true), Meaning::Silence, "{now}");
            assert!(evidence.is_clear(Boot(now)));
        }
    }

    #[test]
    fn good_reads_say_that_who_is_silent_is_silent() {
        let mut evidence = evidence();
        well(&mut evidence, 10_500, 30_000);
        // Answered as late as may be, and then no more.
        assert_eq!(evidence.heard(Boot(32_000), Boot(30_000), true), Meaning::Silence);
        assert!(evidence.is_clear(Boot(34_000)));
        assert!(!evidence.is_clear(Boot(34_001)));
        assert_eq!(evidence.take_told(), []);
    }

    #[test]
    fn after_a_gap_nothing_is_known_of_the_time_before() {
        let mut evidence = evidence();
        assert_eq!(evidence.heard(Boot(12_001), Boot(12_000), true), Meaning::Nothing);
        assert!(evidence.is_clear(Boot(12_002)));
        // A slow answer is no good read, whatever it shows.
        assert_eq!(evidence.heard(Boot(14_001), Boot(12_000), true), Meaning::Silence);
        assert_eq!(evidence.heard(Boot(14_002), Boot(13_900), true), Meaning::Nothing);
    }

    #[test]
    fn a_read_that_fails_between_two_good_ones_costs_what_a_renewal_does() {
        let mut evidence = evidence();
        evidence.failed(Boot(10_510), Boot(10_500));
        assert!(!evidence.is_clear(Boot(10_510)), "not before the next good read");
        assert_eq!(evidence.heard(Boot(11_000), Boot(10_950), true), Meaning::Less(Duration::from_secs(4)));
        well(&mut evidence, 11_500, 20_000);
        let told = evidence.take_told();
        let failed = |sight: &Sight| matches!(sight, Sight::Doubtful { cause: Cause::Failed, failed: 1, .. });
        assert!(failed(&told[0]), "{told:?}");
        assert_eq!(told[1], Sight::SetBack(Cause::Failed));
        assert!(matches!(told[2], Sight::Over { times: 1, failed: 1, .. }), "{told:?}");
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn where_no_lease_is_written_nobody_is_silent() {
        let mut evidence = evidence();
        for now in (10_500..=12_500).step_by(500) {
            assert_eq!(evidence.heard(Boot(now), Boot(now - 50), false), Meaning::Silence);
        }
        for now in (13_000..=40_000).step_by(500) {
            assert_eq!(evidence.heard(Boot(now), Boot(now - 50), false), Meaning::Nothing);
            assert!(!evidence.is_clear(Boot(now)));
        }
        assert_eq!(evidence.heard(Boot(40_500), Boot(40_450), true), Meaning::Nothing);
        well(&mut evidence, 41_000, 60_000);
        let told = evidence.take_told();
        assert!(matches!(told[0], Sight::Doubtful { cause: Cause::Unwritten, .. }), "{told:?}");
        assert_eq!(told[1], Sight::SetBack(Cause::Unwritten));
        assert!(matches!(told[2], Sight::Over { times: 1, failed: 0, .. }), "{told:?}");
        assert_eq!(told.len(), 3);
    }

    #[test]
    fn people_are_told_once_a_period_and_why() {
        let mut evidence = evidence();
        // Answers take 2.5 s, for a minute.
        for now in (12_500..70_000).step_by(2_500) {
            evidence.look(Boot(now - 1_700));
            evidence.look(Boot(now - 900));
            evidence.failed(Boot(now - 500), Boot(now - 2_500));
            assert_eq!(evidence.heard(Boot(now), Boot(now - 2_500), true), Meaning::Silence);
        }
        let told = evidence.take_told();
        assert!(matches!(told[..], [Sight::Doubtful { cause: Cause::Slow, failed: 0, .. }]), "{told:?}");
        // This process stands still.
        evidence.heard(Boot(70_500), Boot(70_400), true);
        assert_eq!(evidence.heard(Boot(170_000), Boot(169_990), true), Meaning::Nothing);
        assert!(evidence.take_told().contains(&Sight::SetBack(Cause::Paused)));
    }
}
