//! When polling is allowed: weekly windows on the clocks of a time zone.
//!
//! A moment is in a window when the clocks of the zone show a weekday and a
//! time of day that are in it. What follows for the days on which they are
//! changed: a time that they skip does not come, one that they show twice
//! comes twice, and every other window begins and ends as on any day.

use jiff::civil::{DateTime, Time, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Span, Timestamp, Zoned};

/// How far ahead a change is looked for: windows are weekly, so that a whole
/// week and the days around it hold each of them, whatever the clocks do.
const AHEAD: SignedDuration = SignedDuration::from_hours(9 * 24);
/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// The windows, and whose clocks they mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    zone: TimeZone,
    windows: Vec<Window>,
}

/// One window: on each of its days from one time to another, or to that time of
/// the next day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Bit 0 is Monday.
    days: u8,
    /// Minutes of the day.
    from: u16,
    to: u16,
}

/// A time in which nothing is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Its first moment.
    pub from: Timestamp,
    /// The first moment behind it.
    pub until: Timestamp,
}

/// What is wrong with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// Not `HH:MM`.
    #[error("write a time of day like \"08:00\", in quotes")]
    From,
    /// Not `HH:MM` up to `24:00`.
    #[error("write a time of day like \"18:30\", in quotes")]
    To,
    /// It ends where it begins.
    #[error(
        "a window that ends when it begins never opens: for the whole day write from: \"00:00\", to: \"24:00\""
    )]
    Empty,
}

impl Window {
    /// From `from` to `to` (`HH:MM`; `24:00` is the end of the day) on `days`,
    /// or on all days where there are none. A `to` before `from` is on the next
    /// day.
    ///
    /// # Errors
    /// See [`WindowError`].
    pub fn new(days: impl IntoIterator<Item = Weekday>, from: &str, to: &str) -> Result<Self, WindowError> {
        let from = minutes(from).filter(|from| *from < DAY).ok_or(WindowError::From)?;
        let to = minutes(to).ok_or(WindowError::To)?;
        if from == to {
            return Err(WindowError::Empty);
        }
        let days = days.into_iter().fold(0, |days, day| days | bit(day));
        Ok(Self { days: if days == 0 { 0x7f } else { days }, from, to })
    }

    fn holds(self, day: Weekday, minute: u16) -> bool {
        let on = |day| self.days & bit(day) != 0;
        if self.from < self.to {
            return on(day) && (self.from..self.to).contains(&minute);
        }
        (on(day) && minute >= self.from) || (on(day.previous()) && minute < self.to)
    }
}

fn bit(day: Weekday) -> u8 {
    1 << day.to_monday_zero_offset()
}

/// `HH:MM` up to `24:00`.
fn minutes(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| {
        (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse::<u16>().ok())?
    };
    let at = number(hours)? * 60 + number(minutes).filter(|minutes| *minutes < 60)?;
    (at <= DAY).then_some(at)
}

impl Schedule {
    /// These windows on the clocks of `zone`.
    pub fn new(zone: TimeZone, windows: Vec<Window>) -> Self {
        Self { zone, windows }
    }

    /// Whether polling is allowed then.
    pub fn is_open(&self, at: Timestamp) -> bool {
        let local = at.to_zoned(self.zone.clone());
        let minute = u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs());
        self.windows.iter().any(|window| window.holds(local.weekday(), minute))
    }

    /// The time in which nothing is polled: the one that `now` is in (as far as
    /// it is still to come), or else the next one. `None`: there is none.
    pub fn closed(&self, now: Timestamp) -> Option<Closed> {
        let from = if self.is_open(now) { self.change_after(now)? } else { now };
        // Some window begins within a week; were it not so, somebody looks again.
        let until = self.change_after(from).unwrap_or_else(|| from.saturating_add(AHEAD).unwrap_or(from));
        Some(Closed { from, until })
    }

    /// What the clocks of the zone show then.
    pub fn local(&self, at: Timestamp) -> Zoned {
        at.to_zoned(self.zone.clone())
    }

    /// The first moment behind `now` from which on the answer of
    /// [`Self::is_open`] is another one.
    fn change_after(&self, now: Timestamp) -> Option<Timestamp> {
        let open = self.is_open(now);
        let end = now.saturating_add(AHEAD).ok()?;
        let mut moments: Vec<Timestamp> =
            self.zone.following(now).map(|change| change.timestamp()).take_while(|at| *at <= end).collect();
        let today = self.local(now).date();
        for ahead in -1..=9 {
            let Ok(date) = today.checked_add(Span::new().days(ahead)) else { continue };
            for window in &self.windows {
                for minute in [window.from, window.to] {
                    // The end of a day is the beginning of the next.
                    let midnight = minute == DAY;
                    let Ok(date) = date.checked_add(Span::new().days(i64::from(midnight))) else { continue };
                    let minute = if midnight { 0 } else { minute };
                    let hour = i8::try_from(minute / 60).unwrap_or(0);
                    let Ok(time) = Time::new(hour, i8::try_from(minute % 60).unwrap_or(0), 0, 0) else {
                        continue;
                    };
                    self.add_moments(date.to_datetime(time), &mut moments);
                }
            }
        }
        moments.retain(|at| *at > now);
        moments.sort_unstable();
        moments.dedup();
        moments.into_iter().find(|at| self.is_open(*at) != open)
    }

    /// When the clocks show that: once, twice, or never (then moments around
    /// it, which do no harm).
    fn add_moments(&self, local: DateTime, moments: &mut Vec<Timestamp>) {
        let (one, other) = match self.zone.to_ambiguous_timestamp(local).offset() {
            AmbiguousOffset::Unambiguous { offset } => (offset, offset),
            AmbiguousOffset::Gap { before, after } | AmbiguousOffset::Fold { before, after } => {
                (before, after)
            }
        };
        moments.extend([one, other].into_iter().filter_map(|offset| offset.to_timestamp(local).ok()));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn berlin() -> TimeZone {
        zone("Europe/Berlin")
    }

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    const WORK: [Weekday; 5] =
        [Weekday::Monday, Weekday::Tuesday, Weekday::Wednesday, Weekday::Thursday, Weekday::Friday];

    fn schedule(zone: TimeZone, windows: &[(&[Weekday], &str, &str)]) -> Schedule {
        let windows =
            windows.iter().map(|(days, from, to)| Window::new(days.iter().copied(), from, to).unwrap());
        Schedule::new(zone, windows.collect())
    }

    fn closed(schedule: &Schedule, now: &str) -> (String, String) {
        let Closed { from, until } = schedule.closed(at(now)).unwrap();
        (
            schedule.local(from).strftime("%a %d %H:%M %z").to_string(),
            schedule.local(until).strftime("%a %d %H:%M %z").to_string(),
        )
    }

    #[test]
    fn working_hours_end_in_the_evening_and_for_the_weekend() {
        let hours = schedule(berlin(), &[(&WORK, "08:00", "18:00")]);
        // Monday, 2 February 2026; Berlin is an hour ahead.
        for (time, open) in [
            ("2026-02-02T06:59:59Z", false),
            ("2026-02-02T07:00:00Z", true),
            ("2026-02-02T16:59:59Z", true),
            ("2026-02-02T17:00:00Z", false),
            ("2026-02-07T10:00:00Z", false),
        ] {
            assert_eq!(hours.is_open(at(time)), open, "{time}");
        }
        assert_eq!(
            closed(&hours, "2026-02-02T12:00:00Z"),
            ("Mon 02 18:00 +0100".into(), "Tue 03 08:00 +0100".into())
        );
        assert_eq!(
            closed(&hours, "2026-02-06T12:00:00Z"),
            ("Fri 06 18:00 +0100".into(), "Mon 09 08:00 +0100".into())
        );
        assert_eq!(
            closed(&hours, "2026-02-07T12:00:00Z"),
            ("Sat 07 13:00 +0100".into(), "Mon 09 08:00 +0100".into())
        );
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_begins() {
        let nights = schedule(zone("UTC"), &[(&[Weekday::Friday], "22:00", "06:00")]);
        assert!(nights.is_open(at("2026-02-06T23:00:00Z")), "Friday evening");
        assert!(nights.is_open(at("2026-02-07T05:59:59Z")), "Saturday morning");
        assert!(!nights.is_open(at("2026-02-06T05:00:00Z")), "Friday morning");
        assert_eq!(
            closed(&nights, "2026-02-07T01:00:00Z"),
            ("Sat 07 06:00 +0000".into(), "Fri 13 22:00 +0000".into())
        );
    }

    #[test]
    fn windows_that_touch_are_one() {
        let most = schedule(zone("UTC"), &[(&[], "06:00", "24:00"), (&[], "00:00", "05:00")]);
        assert_eq!(
            closed(&most, "2026-02-02T23:00:00Z"),
            ("Tue 03 05:00 +0000".into(), "Tue 03 06:00 +0000".into())
        );
        assert_eq!(
            schedule(zone("UTC"), &[(&[], "00:00", "24:00")]).closed(at("2026-02-02T23:00:00Z")),
            None
        );
        assert_eq!(
            schedule(zone("UTC"), &[(&[], "12:00", "11:59"), (&[], "11:00", "13:00")])
                .closed(at("2026-02-02T23:00:00Z")),
            None
        );
    }

    #[test]
    fn the_day_on_which_clocks_go_forward_is_an_hour_shorter() {
        // Berlin, Sunday, 29 March 2026: 02:00 +01:00 is 03:00 +02:00.
        let hours = schedule(berlin(), &[(&[], "08:00", "18:00")]);
        assert_eq!(
            closed(&hours, "2026-03-28T12:00:00Z"),
            ("Sat 28 18:00 +0100".into(), "Sun 29 08:00 +0200".into())
        );
        let Closed { from, until } = hours.closed(at("2026-03-28T12:00:00Z")).unwrap();
        assert_eq!(until.duration_since(from), SignedDuration::from_hours(13));
        // What lies in the hour that is left out does not come, and what begins in it
        // begins behind it.
        let skipped = schedule(berlin(), &[(&[Weekday::Sunday], "02:15", "02:45")]);
        assert_eq!(closed(&skipped, "2026-03-28T12:00:00Z").1, "Sun 05 02:15 +0200");
        let half = schedule(berlin(), &[(&[Weekday::Sunday], "02:30", "04:00")]);
        assert_eq!(closed(&half, "2026-03-28T12:00:00Z").1, "Sun 29 03:00 +0200");
        assert_eq!(closed(&half, "2026-03-29T01:30:00Z").0, "Sun 29 04:00 +0200");
    }

    #[test]
    fn the_hour_that_comes_twice_counts_twice() {
        // Berlin, Sunday, 25 October 2026: 03:00 +02:00 is 02:00 +01:00.
        let hours = schedule(berlin(), &[(&[], "02:15", "02:45")]);
        for (time, open) in [
            ("2026-10-25T00:14:59Z", false),
            ("2026-10-25T00:15:00Z", true),
            ("2026-10-25T00:45:00Z", false),
            ("2026-10-25T01:15:00Z", true),
            ("2026-10-25T01:45:00Z", false),
        ] {
            assert_eq!(hours.is_open(at(time)), open, "{time}");
        }
        assert_eq!(
            closed(&hours, "2026-10-25T00:20:00Z"),
            ("Sun 25 02:45 +0200".into(), "Sun 25 02:15 +0100".into())
        );
        let night = schedule(berlin(), &[(&[], "22:00", "08:00")]);
        let Closed { from, until } = night.closed(at("2026-10-24T21:00:00Z")).unwrap();
        assert_eq!((from, until), (at("2026-10-25T07:00:00Z"), at("2026-10-25T21:00:00Z")));
    }

    #[test]
    fn windows_that_cannot_be_are_refused() {
        for (from, to, error) in [
            ("8:00", "18:00", WindowError::From),
            ("24:00", "18:00", WindowError::From),
            ("08:60", "18:00", WindowError::From),
            ("+8:00", "18:00", WindowError::From),
            ("08:00", "24:01", WindowError::To),
            ("08:00", "", WindowError::To),
            ("08:00", "08:00", WindowError::Empty),
        ] {
            assert_eq!(Window::new([], from, to), Err(error), "{from} {to}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Held against a look at every minute, in zones whose clocks change by
        /// an hour, by half an hour, at midnight, and not at all.
        #[test]
        fn changes_are_where_a_look_at_every_minute_finds_them(
            zone in prop::sample::select(&["Europe/Berlin", "Australia/Lord_Howe", "America/Santiago", "Asia/Kathmandu"][..]),
            windows in prop::collection::vec((0_u8..128, 0_u16..1440, 0_u16..=1440), 1..4),
            start in 0_i64..366 * 24 * 60,
        ) {
            let windows: Vec<Window> = windows
                .into_iter()
                .filter(|(_, from, to)| from != to)
                .map(|(days, from, to)| Window { days: days.max(1), from, to })
                .collect();
            prop_assume!(!windows.is_empty());
            let schedule = Schedule::new(TimeZone::get(zone).unwrap(), windows);
            let now = at("2026-01-01T00:00:00Z").checked_add(SignedDuration::from_mins(start)).unwrap();
            let minute = |n: i64| now.checked_add(SignedDuration::from_mins(n)).unwrap();
            let open = schedule.is_open(now);
            let first = (1..=8 * 24 * 60).map(minute).find(|at| schedule.is_open(*at) != open);
            let found = schedule.change_after(now);
            match first {
                Some(first) => prop_assert_eq!(found, Some(first)),
                // The ninth day was not looked at.
                None => prop_assert!(found.is_none_or(|found| found > minute(8 * 24 * 60))),
            }
        }
    }
}
