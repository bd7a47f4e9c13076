//! What objects say of one another: the same checks in the same words, for
//! files and for the cluster.

use crate::domain::text::escape;
use crate::domain::work::{Destination, RecordKey, WorkItem};

/// `apop` in a record, and not in the settings.
pub(crate) const APOP_OFF: &str = "apop has no effect: RpopSettings has useApop off";

/// `useForOutgoing` in a domain.
pub(crate) const OUTGOING: &str =
    "useForOutgoing has no effect: useDomainAddresses is not supported by this version yet";

/// A record's domain that nobody wrote. `known` are the names that there are,
/// as far as the record's author may know them.
pub(crate) fn no_domain(name: &str, known: &[&str]) -> String {
    let name = escape(name);
    if known.is_empty() {
        return format!("there is no RpopDomain {name}: write one that says where its mail is delivered");
    }
    let mut known = known.to_vec();
    known.sort_unstable();
    known.truncate(5);
    format!("there is no RpopDomain {name}, nor one with that alias: known are {}", known.join(", "))
}

/// A record's domain that cannot be used.
pub(crate) fn broken_domain(name: &str) -> String {
    format!("RpopDomain {} has errors", escape(name))
}

/// `mainDomain` of the settings that nobody wrote.
pub(crate) fn no_main_domain(name: &str) -> String {
    format!("there is no RpopDomain {}", escape(name))
}

/// A name that two domains want.
pub(crate) fn taken(name: &str, owner: &str) -> String {
    format!("{} belongs to RpopDomain {owner} already", escape(name))
}

/// A `mailbox` that the domain has no way to store into.
pub(crate) fn mailbox_without_store(item: &WorkItem, to: &Destination, maildirs: bool) -> Option<String> {
    if item.mailbox.is_none() || to.lmtp.is_some() || to.maildir.is_some() {
        return None;
    }
    let ways = if maildirs { "delivery.lmtp or delivery.maildir" } else { "delivery.lmtp" };
    Some(format!(
        "mailbox needs {ways} in RpopDomain {}: add it, or remove mailbox to deliver through the queue",
        to.domain
    ))
}

/// What two records of one maildrop are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// It is polled.
    pub(crate) polled: bool,
    /// It takes nothing away.
    pub(crate) leaves: bool,
}

impl Claim {
    /// That of a record.
    pub(crate) fn of(item: &WorkItem) -> Self {
        Self { polled: item.interval.is_some(), leaves: item.leave }
    }

    /// Two records of one maildrop are well only if neither takes mail away
    /// from the other.
    pub(crate) fn disputes(self, other: Self) -> bool {
        self.polled && other.polled && !(self.leaves && other.leaves)
    }
}

/// The other record of the same maildrop, where its name may be told.
pub(crate) fn rival(other: Option<&RecordKey>) -> String {
    let other = other.map_or_else(|| "a record in another namespace".to_owned(), ToString::to_string);
    format!(
        "this is the maildrop of {other} too, and what one of them deletes the other does not get: write leave: true in both, or remove one"
    )
}
