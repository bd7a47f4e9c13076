//! How long a worker counts as alive, and how soon it stops by itself.

use std::str::FromStr;
use std::time::Duration;

/// Milliseconds of `CLOCK_BOOTTIME`: it goes on while the machine sleeps and
/// is never set. Comparable within one machine only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Boot(pub u64);

impl Boot {
    /// Never, for a deadline.
    pub const NEVER: Self = Self(u64::MAX);

    /// So much later.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// How far two clocks may drift apart in the time measured, in per cent: each
/// of the two by so much.
const DRIFT: u128 = 5;

/// The four spans on which "never two at one mailbox" rests as long as nothing
/// worse than a delay happens (what is worse, the ledger's compare-and-swap
/// catches).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    /// D: the leader takes a worker for dead that has not renewed its lease
    /// for so long by the leader's clock.
    pub dead_after: Duration,
    /// R: a worker renews its lease so often.
    pub renew_every: Duration,
    /// F: a worker whose last acknowledged renewal was *sent* so long ago
    /// starts nothing and aborts what it does.
    pub fence_after: Duration,
    /// A: so much later its last socket is closed.
    pub close_within: Duration,
}

/// Spans that do not exclude two workers at one mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// A worker might still poll when its shards are given away.
    #[error(
        "a worker would be taken for dead after {} ms although it may hold connections for {} ms \
         (each clock may be wrong by 5 %)",
        dead_after.as_millis(), closed_after.as_millis()
    )]
    Overlap {
        /// D.
        dead_after: Duration,
        /// F + A.
        closed_after: Duration,
    },
    /// One lost renewal would stop a healthy worker.
    #[error(
        "leases renewed every {} ms leave no second try before a worker stops itself after {} ms",
        renew_every.as_millis(), fence_after.as_millis()
    )]
    Hasty {
        /// R.
        renew_every: Duration,
        /// F.
        fence_after: Duration,
    },
}

impl Timing {
    /// Polling every five minutes needs no faster fail-over, and an API server
    /// that stalls for 12 s stops nobody.
    pub const DEFAULT: Self = Self {
        dead_after: Duration::from_secs(30),
        renew_every: Duration::from_secs(7),
        fence_after: Duration::from_secs(20),
        close_within: Duration::from_secs(3),
    };

    /// For tests and for the impatient, up to a hundred workers.
    pub const FAST: Self = Self {
        dead_after: Duration::from_secs(8),
        renew_every: Duration::from_secs(2),
        fence_after: Duration::from_millis(4_500),
        close_within: Duration::from_secs(1),
    };

    /// Whether these spans do what they are for.
    ///
    /// # Errors
    /// When (F + A) x 1.05 is not below D x 0.95, or when two renewals do not
    /// fit into F.
    pub fn check(self) -> Result<(), TimingError> {
        let closed_after = self.fence_after.saturating_add(self.close_within);
        if closed_after.as_millis().saturating_mul(100 + DRIFT)
            >= self.dead_after.as_millis().saturating_mul(100 - DRIFT)
        {
            return Err(TimingError::Overlap { dead_after: self.dead_after, closed_after });
        }
        if self.renew_every.is_zero() || self.renew_every.saturating_mul(2) > self.fence_after {
            return Err(TimingError::Hasty { renew_every: self.renew_every, fence_after: self.fence_after });
        }
        Ok(())
    }

    /// How long one renewal may take. Below R, so that two never overlap, but
    /// not far below: a request that is still under way when a stalled API
    /// server wakes up counts from when it was sent.
    pub fn renewal_deadline(self) -> Duration {
        self.renew_every * 9 / 10
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// What `--timing` may be, besides `default` and `fast`: nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`default` or `fast`, nothing else")]
pub struct UnknownTiming;

impl FromStr for Timing {
    type Err = UnknownTiming;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "default" => Ok(Self::DEFAULT),
            "fast" => Ok(Self::FAST),
            _ => Err(UnknownTiming),
        }
    }
}

/// `span`, shortened by up to `part` of it: where in between, `salt` decides.
pub(crate) fn jittered(span: Duration, part: u32, salt: u64) -> Duration {
    // SplitMix64's finisher: neighbouring salts land far apart.
    let mut mixed = salt.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let share = u32::try_from((mixed ^ (mixed >> 31)) & 0xffff).unwrap_or(0);
    span.saturating_sub(span / part * share / 0x1_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_settings_keep_two_workers_apart_whatever_clocks_drift() {
        assert_eq!(Timing::DEFAULT.check(), Ok(()));
        assert_eq!(Timing::FAST.check(), Ok(()));
    }

    #[test]
    fn spans_that_would_let_two_workers_meet_are_refused() {
        let slow_to_stop = Timing { fence_after: Duration::from_millis(24_200), ..Timing::DEFAULT };
        let message = slow_to_stop.check().unwrap_err().to_string();
        assert!(message.contains("30000 ms") && message.contains("27200 ms"), "{message}");
        let hasty = Timing { renew_every: Duration::from_secs(11), ..Timing::DEFAULT };
        assert!(matches!(hasty.check(), Err(TimingError::Hasty { .. })));
        let never = Timing { renew_every: Duration::ZERO, ..Timing::DEFAULT };
        assert!(never.check().is_err());
    }

    #[test]
    fn jitter_only_shortens_and_spreads() {
        let spans: Vec<_> = (0..1000).map(|salt| jittered(Duration::from_secs(7), 10, salt)).collect();
        assert!(spans.iter().all(|span| (6_300..=7_000).contains(&span.as_millis())));
        let early = spans.iter().filter(|span| span.as_millis() < 6_650).count();
        assert!((400..600).contains(&early), "{early}");
    }

    #[test]
    fn the_setting_is_named() {
        assert_eq!("fast".parse(), Ok(Timing::FAST));
        assert_eq!("default".parse(), Ok(Timing::DEFAULT));
        assert_eq!("quick".parse::<Timing>(), Err(UnknownTiming));
    }
}
