//! A worker's own judgement whether it may still count as alive.

use super::timing::{Boot, Timing};

/// How far a worker has stopped itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Standing {
    /// The last acknowledged renewal was sent less than F ago.
    Valid,
    /// It was sent F ago or earlier, or there was none yet.
    Fenced,
    /// F + A ago or earlier: no socket may be open.
    Closed,
    /// The lease is lost, for good.
    Lost,
}

/// Measures from the moment when the last acknowledged renewal was *sent*: the
/// leader cannot have seen it earlier, so its own count ends later.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    timing: Timing,
    /// When the last acknowledged renewal was sent.
    sent: Option<Boot>,
    lost: bool,
    told: Standing,
}

impl Fence {
    /// Closed until the first renewal is acknowledged.
    pub fn new(timing: Timing) -> Self {
        Self { timing, sent: None, lost: false, told: Standing::Closed }
    }

    /// A renewal that was sent then has been acknowledged.
    pub fn renewed(&mut self, sent: Boot) {
        self.sent = Some(self.sent.map_or(sent, |before| before.max(sent)));
    }

    /// The lease belongs to somebody else, or to nobody: never again.
    pub fn lose(&mut self) {
        self.lost = true;
    }

    /// The standing at `now`.
    pub fn standing(&self, now: Boot) -> Standing {
        match self.sent {
            _ if self.lost => Standing::Lost,
            Some(_) if now < self.fenced_at() => Standing::Valid,
            Some(_) if now < self.closed_at() => Standing::Fenced,
            _ => Standing::Closed,
        }
    }

    /// The standing at `now`, and the one before, if it is another.
    pub fn look(&mut self, now: Boot) -> Option<(Standing, Standing)> {
        let standing = self.standing(now);
        let before = std::mem::replace(&mut self.told, standing);
        (before != self.told).then_some((before, self.told))
    }

    /// When the standing changes next unless a renewal is acknowledged.
    pub fn next_change(&self) -> Boot {
        match self.told {
            Standing::Valid => self.fenced_at(),
            Standing::Fenced => self.closed_at(),
            Standing::Closed | Standing::Lost => Boot::NEVER,
        }
    }

    fn fenced_at(&self) -> Boot {
        self.sent.map_or(Boot(0), |sent| sent.after(self.timing.fence_after))
    }

    fn closed_at(&self) -> Boot {
        self.fenced_at().after(self.timing.close_within)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_from_when_the_acknowledged_renewal_was_sent() {
        let mut fence = Fence::new(Timing::DEFAULT);
        assert_eq!(fence.standing(Boot(0)), Standing::Closed);
        fence.renewed(Boot(1_000));
        // The answer came 6 s later; that gives no more time.
        assert_eq!(fence.look(Boot(7_000)), Some((Standing::Closed, Standing::Valid)));
        assert_eq!(fence.next_change(), Boot(21_000));
        assert_eq!(fence.standing(Boot(20_999)), Standing::Valid);
        assert_eq!(fence.look(Boot(21_000)), Some((Standing::Valid, Standing::Fenced)));
        assert_eq!(fence.next_change(), Boot(24_000));
        assert_eq!(fence.look(Boot(23_999)), None);
        assert_eq!(fence.look(Boot(24_000)), Some((Standing::Fenced, Standing::Closed)));
        assert_eq!(fence.next_change(), Boot::NEVER);
    }

    #[test]
    fn a_late_answer_to_an_old_renewal_takes_nothing_back() {
        let mut fence = Fence::new(Timing::FAST);
        fence.renewed(Boot(10_000));
        fence.renewed(Boot(8_000));
        assert_eq!(fence.standing(Boot(14_499)), Standing::Valid);
        assert_eq!(fence.standing(Boot(14_500)), Standing::Fenced);
    }

    #[test]
    fn a_lost_lease_is_lost_whatever_comes() {
        let mut fence = Fence::new(Timing::FAST);
        fence.renewed(Boot(1));
        fence.lose();
        fence.renewed(Boot(100));
        assert_eq!(fence.standing(Boot(101)), Standing::Lost);
    }
}
