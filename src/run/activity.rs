//! The activity schedule as a run follows it. It means the wall clock, which
//! may be set while the run goes on; everything else follows the monotonic one.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Poller, Run};
use crate::domain::schedule::{Closed, Schedule};
use crate::engine::ports::Stage;
use crate::engine::scheduler::{Moment, Rest};

/// What time it is for people.
#[derive(Clone)]
pub struct Wall(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Default for Wall {
    /// The system's clock.
    fn default() -> Self {
        Self::new(Timestamp::now)
    }
}

impl Wall {
    /// Another clock.
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub(super) fn now(&self) -> Timestamp {
        (self.0)()
    }
}

/// See the module's page.
#[derive(Default)]
pub(super) struct Activity {
    schedule: Option<Arc<Schedule>>,
    /// What was found, and from when until when it holds.
    found: Option<(Timestamp, Timestamp, Option<Closed>)>,
}

impl Activity {
    /// Another schedule, or the same.
    pub(super) fn follow(&mut self, schedule: Option<&Arc<Schedule>>) {
        if self.schedule.as_ref() != schedule {
            *self = Self { schedule: schedule.cloned(), found: None };
        }
    }

    /// The present time of rest, or the next one.
    pub(super) fn closed(&mut self, now: Timestamp) -> Option<Closed> {
        let schedule = self.schedule.as_ref()?;
        match self.found {
            Some((from, until, found)) if from <= now && now < until => found,
            _ => {
                let found = schedule.closed(now);
                // A schedule that is always open may be looked at again
                // some day: time zones change.
                let day = now.saturating_add(jiff::SignedDuration::from_hours(24)).unwrap_or(now);
                self.found = Some((now, found.map_or(day, |closed| closed.until), found));
                found
            }
        }
    }

    /// A moment as the clocks of the schedule's zone show it.
    pub(super) fn shown(&self, at: Timestamp) -> String {
        match &self.schedule {
            Some(schedule) => schedule.local(at).strftime("%A, %Y-%m-%d %H:%M (%Q)").to_string(),
            None => at.to_string(),
        }
    }
}

impl<P: Poller> Run<P> {
    /// Rests, or begins again, as the schedule says; returns when that changes.
    pub(super) fn look_at_activity(&mut self) -> Option<Moment> {
        let (wall, now) = (self.parts.wall.now(), self.clock.now());
        let closed = self.activity.closed(wall);
        let ahead = |at: Timestamp| Duration::try_from(at.duration_since(wall)).unwrap_or_default();
        let rest = closed.map(|closed| Rest {
            from: now.after(ahead(closed.from)),
            // Moments are whole milliseconds: rather one too late than early.
            until: now.after(ahead(closed.until) + Duration::from_millis(1)),
        });
        self.scheduler.rest(rest, now);
        let resting = closed.filter(|closed| closed.from <= wall);
        if self.resting != Some(resting.is_some()) {
            self.parts.metrics.active(resting.is_none());
            match resting {
                Some(closed) => {
                    let until = self.activity.shown(closed.until);
                    tracing::info!("outside of activitySchedule: nothing is polled until {until}");
                    for running in self.running.values() {
                        running.stop.send_if_modified(|stage| {
                            std::mem::replace(stage, Stage::Draining.max(*stage)) < Stage::Draining
                        });
                    }
                }
                None if self.resting.is_some() => tracing::info!("activitySchedule: polling begins again"),
                None => {}
            }
            self.resting = Some(resting.is_some());
        }
        rest.map(|rest| if resting.is_some() { rest.until } else { rest.from })
    }

    /// Why nothing is polled now, if that is so.
    pub(super) fn why_resting(&mut self) -> Option<String> {
        let wall = self.parts.wall.now();
        let closed = self.activity.closed(wall).filter(|closed| closed.from <= wall)?;
        Some(not_before(&self.activity.shown(closed.until)))
    }
}

/// Outside of `schedule`: what is to be said of it.
pub fn outside(schedule: Option<&Arc<Schedule>>, now: Timestamp) -> Option<String> {
    let closed = schedule?.closed(now).filter(|closed| closed.from <= now)?;
    let mut activity = Activity::default();
    activity.follow(schedule);
    Some(not_before(&activity.shown(closed.until)))
}

fn not_before(until: &str) -> String {
    format!("outside of RpopSettings.activitySchedule: nothing is polled until {until}")
}
