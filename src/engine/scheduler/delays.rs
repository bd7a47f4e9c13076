//! When a record is due: slots, spreads and back-off.

use std::time::Duration;

use super::{End, Moment, Past, Scheduler, millis};
use crate::domain::code::Code;
use crate::engine::report::Scope;

/// Back-off ends here.
pub const LONGEST_DELAY: Duration = Duration::from_hours(6);
/// Overdue polls are spread over this, or over a fifth of their interval.
pub const LONGEST_SPREAD: Duration = Duration::from_mins(1);
/// The spread grows by this with each record: a handful needs none.
const SPREAD_PER_RECORD: Duration = Duration::from_millis(20);
/// The first wait when the destination or this machine is in trouble.
pub const FIRST_LOCAL_DELAY: Duration = Duration::from_secs(30);
/// A server asking for more than this with LOGIN-DELAY is not believed.
pub const LONGEST_LOGIN_DELAY: Duration = Duration::from_hours(24);

/// Spreads what is equal for many: a number in `0..width` that is stable for
/// a record.
fn share(uid: u64, width: u64) -> u64 {
    if width == 0 { 0 } else { uid.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32) % width }
}

impl Scheduler {
    /// The next slot of a record: at least half an interval after its last
    /// poll began, so that an early poll is not followed at once by another.
    pub(super) fn slot(&self, id: u32, now: Moment) -> Moment {
        let Some(entry) = self.entry(id) else { return now };
        let interval = entry.interval.max(1);
        let earliest = now.0.max(entry.last_start.0.min(now.0).saturating_add(interval / 2));
        let phase = entry.uid % interval;
        let past = (earliest + interval - phase) % interval;
        Moment(earliest.saturating_add(interval - past))
    }

    /// At once, but not together with all others.
    pub(super) fn soon(&self, id: u32, now: Moment) -> Moment {
        let Some(entry) = self.entry(id) else { return now };
        let spread = millis(LONGEST_SPREAD)
            .min(entry.interval / 5)
            .min(millis(SPREAD_PER_RECORD) * u64::from(self.scheduled.saturating_sub(1)));
        Moment(now.0 + share(entry.uid, spread))
    }

    pub(super) fn first_due(&self, id: u32, past: Past, now: Moment) -> Moment {
        let Some(interval) = self.entry(id).map(|entry| entry.interval) else { return now };
        if past.at_once {
            return now;
        }
        let due = match past.last_poll {
            Some(last) if last <= now && now.0 - last.0 < interval => {
                // Its slot may have passed while nothing ran.
                let slot = self.slot(id, last);
                if slot <= now { self.soon(id, now) } else { slot }
            }
            _ => self.soon(id, now),
        };
        // Not longer than any delay of ours can be: a clock may have been wrong.
        let longest = now.after(LONGEST_DELAY.max(Duration::from_millis(interval)));
        due.max(past.not_before.unwrap_or(due).min(longest))
    }

    pub(super) fn next_due(&mut self, id: u32, end: End, yielded: bool, now: Moment) -> Option<Moment> {
        let rules = self.rules;
        let entry = self.entry_mut(id)?;
        entry.turns = if yielded { entry.turns.saturating_add(1) } else { 0 };
        if entry.interval == 0 {
            return None;
        }
        if std::mem::take(&mut entry.again) {
            return Some(now);
        }
        if yielded {
            return Some(now);
        }
        match end.failure {
            None => (entry.failures, entry.refused) = (0, 0),
            Some((Code::Interrupted, _)) => {}
            Some((code, _)) => {
                entry.failures = entry.failures.saturating_add(1);
                match code {
                    Code::AuthFailed => entry.refused = entry.refused.saturating_add(1),
                    code if code.is_behind_login() => entry.refused = 0,
                    _ => {}
                }
            }
        }
        let (uid, interval, failures, refused) = (entry.uid, entry.interval, entry.failures, entry.refused);
        let slot = self.slot(id, now);
        // Doubles with each failure in a row; never shorter than `first`.
        let backoff = |count: u16, first: Duration, longest: Duration| {
            let first = millis(first);
            let doubled = first.saturating_mul(1_u64 << u64::from(count.saturating_sub(1)).min(32));
            let wait = doubled.min(millis(longest)).max(first);
            Moment(now.0.saturating_add(wait).saturating_add(share(uid, (wait / 10).min(60_000))))
        };
        let delay = rules.delay_failed_accounts;
        let due = match end.failure {
            None | Some((Code::Interrupted, _)) => slot,
            // The host's own delay is what counts; then its records come one
            // after the other.
            Some((_, Scope::Host)) => now.after(rules.delay_failed_hosts),
            // Such a login, repeated, locks the account: never more often than
            // the rhythm, and ever more seldom, also when the host is away in
            // between.
            Some((Code::AuthFailed, _)) => backoff(refused, delay, LONGEST_DELAY).max(slot),
            Some((Code::AuthUnavailable | Code::UidsChanged | Code::UidlMissing, _)) => {
                backoff(failures, delay, LONGEST_DELAY).max(slot)
            }
            Some((_, Scope::Account)) => backoff(failures, delay, delay),
            Some((_, Scope::Local)) => {
                let first = FIRST_LOCAL_DELAY.min(Duration::from_millis(interval));
                backoff(failures, first, delay.max(Duration::from_millis(interval)))
            }
        };
        let wish = end.login_delay.map_or(now, |wish| now.after(wish.min(LONGEST_LOGIN_DELAY)));
        Some(due.max(wish))
    }
}
