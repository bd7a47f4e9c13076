//! Conditions, as every resource of ours has them in its status.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Characters of a condition's message; what is longer is cut.
pub const LONGEST_MESSAGE: usize = 1024;

/// Whether what a condition's type says is so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It is.
    True,
    /// It is not.
    False,
    /// It is not known yet.
    Unknown,
}

impl Status {
    /// As it stands in a condition.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Status {
    fn from(is: bool) -> Self {
        if is { Self::True } else { Self::False }
    }
}

impl From<Option<bool>> for Status {
    fn from(is: Option<bool>) -> Self {
        is.map_or(Self::Unknown, Self::from)
    }
}

/// Says what is so: the condition of this type is replaced or added.
///
/// `reason` is one word in CamelCase, for programs; `message` one line for
/// people, whose control characters become spaces and which is cut at
/// [`LONGEST_MESSAGE`]. `lastTransitionTime` becomes `now` only when the
/// status changes. Returns whether anything but that time changed.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: impl Into<Status>,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let status = status.into().as_str();
    let message: String =
        message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_MESSAGE).collect();
    let mut made = Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    let Some(known) = conditions.iter_mut().find(|known| known.type_ == type_) else {
        conditions.push(made);
        return true;
    };
    if known.status == status {
        made.last_transition_time = known.last_transition_time.clone();
    }
    let changed = *known != made;
    *known = made;
    changed
}

/// The condition of this type.
pub fn find<'c>(conditions: &'c [Condition], type_: &str) -> Option<&'c Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether the condition of this type says `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

/// Whether two lists say the same, whatever their order and since when they
/// do: what need not be written again.
pub fn same(a: &[Condition], b: &[Condition]) -> bool {
    let says = |condition: &Condition, other: &Condition| {
        condition.status == other.status
            && condition.reason == other.reason
            && condition.message == other.message
            && condition.observed_generation == other.observed_generation
    };
    a.len() == b.len()
        && a.iter().all(|condition| find(b, &condition.type_).is_some_and(|other| says(condition, other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_time_is_that_of_the_last_change_of_status() {
        let mut all = Vec::new();
        assert!(set(&mut all, "Ready", true, "Polled", "", Some(1), at(10)));
        assert!(set(&mut all, "Ready", true, "Polled", "two\nlines", Some(2), at(20)));
        assert_eq!((all.len(), all[0].last_transition_time.0, &*all[0].message), (1, at(10), "two lines"));
        assert!(!set(&mut all, "Ready", true, "Polled", "two lines", Some(2), at(30)));
        assert!(set(&mut all, "Ready", None, "Waiting", "", Some(2), at(40)));
        assert_eq!((all[0].last_transition_time.0, &*all[0].status), (at(40), "Unknown"));
    }

    #[test]
    fn lists_are_the_same_whatever_their_order_and_times() {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        set(&mut a, "Ready", true, "Polled", "", Some(1), at(10));
        set(&mut a, "Accepted", true, "Allowed", "", Some(1), at(10));
        set(&mut b, "Accepted", true, "Allowed", "", Some(1), at(20));
        assert!(!same(&a, &b));
        set(&mut b, "Ready", true, "Polled", "", Some(1), at(30));
        assert!(same(&a, &b));
        assert!(is_true(&b, "Ready") && !is_true(&b, "Polled"));
        set(&mut b, "Ready", true, "Polled", "", Some(2), at(30));
        assert!(!same(&a, &b));
    }
}
