//! What a status says already, as far as it is ours to say.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::status::Wanted;
use crate::api::{ItemPast, RpopRecordStatus};

/// A condition, small: there are ten thousands of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) status: Box<str>,
    pub(super) reason: Box<str>,
    pub(super) message: Box<str>,
    pub(super) generation: Option<i64>,
    pub(super) since: Time,
}

impl Said {
    fn of(condition: &Condition) -> Self {
        Self {
            status: condition.status.as_str().into(),
            reason: condition.reason.as_str().into(),
            message: condition.message.as_str().into(),
            generation: condition.observed_generation,
            since: condition.last_transition_time.clone(),
        }
    }
}

/// The `lastError` of a record that was never polled for what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: Box<str>,
    pub(super) message: Box<str>,
    /// `last` has the code, too.
    pub(super) last: bool,
}

impl Refused {
    fn of(status: &RpopRecordStatus) -> Option<Self> {
        let error = status.last_error.as_ref().filter(|error| error.is_refusal())?;
        Some(Self {
            code: error.code.as_str().into(),
            message: error.message.as_str().into(),
            last: status.last.as_deref() == Some(&error.code),
        })
    }
}

/// The parts of a status that concern the controller.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shown {
    /// What we said of a record that we refused.
    pub(super) refused: Option<Box<Refused>>,
    pub(super) accepted: Option<Said>,
    pub(super) ready: Option<Said>,
    pub(super) generation: Option<i64>,
    pub(super) shard: Option<u32>,
    pub(super) factor: Option<u32>,
    /// How its polls went.
    pub(super) past: ItemPast,
}

impl Shown {
    /// That of a record.
    pub(super) fn of_record(status: &RpopRecordStatus) -> Self {
        let unix = |time: &Option<Time>| time.as_ref().map(|time| time.0.as_second());
        let failures = status.last_error.as_ref().map_or(0, |error| error.count);
        // Whether a refused login has to wait is looked at by whoever would make
        // it: the Secret may be another one by then.
        let waits =
            failures > 0 && status.last_error.as_ref().is_some_and(|error| error.refused_logins.is_none());
        let past = ItemPast {
            last_poll: unix(&status.last_poll_time),
            not_before: unix(&status.next_poll_time).filter(|_| waits),
            failures: u16::try_from(failures).unwrap_or(u16::MAX),
        };
        Self {
            refused: Refused::of(status).map(Box::new),
            shard: status.shard,
            factor: status.shard_factor,
            past,
            ..Self::of_conditions(status.observed_generation, &status.conditions)
        }
    }

    /// That of anything else.
    pub(super) fn of_conditions(generation: Option<i64>, conditions: &[Condition]) -> Self {
        let find = |kind: &str| conditions.iter().find(|one| one.type_ == kind).map(Said::of);
        Self { accepted: find("Accepted"), ready: find("Ready"), generation, ..Self::default() }
    }

    /// Whether both say the same where it is ours to say.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        // A worker that is still ending its last poll of a record that is
        // refused by now writes over what was said of that.
        let refused = other.accepted.as_ref().is_some_and(|said| &*said.status == "False");
        self.accepted == other.accepted
            && self.refused == other.refused
            && (!refused || self.ready == other.ready)
            && self.generation == other.generation
            && (self.shard, self.factor) == (other.shard, other.factor)
            && self.ready.is_some() == other.ready.is_some()
    }
}

/// What we said last.
#[derive(Clone, Debug)]
pub(super) struct Told {
    pub(super) wanted: Wanted,
    pub(super) fate: Fate,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It waits to be written, or is on its way.
    Sent,
    /// The API server has it.
    Written,
    /// The API server did not take it: it counts as not said.
    Refused,
}

impl Told {
    /// What the status says, or is about to say; `None` where it was refused.
    pub(super) fn standing(&self) -> Option<&Wanted> {
        (self.fate != Fate::Refused).then_some(&self.wanted)
    }
}
