//! What objects say of one another: the same checks in the same words, for
//! files and for the cluster.

use crate::domain::envelope::Mailbox;
use crate::domain::text::escape;
use crate::domain::work::{Destination, RecordKey, Special, Unified, WorkItem};

/// `apop` in a record, and not in the settings.
pub(crate) const APOP_OFF: &str = "apop has no effect: RpopSettings has useApop off";

/// `useForOutgoing` in a domain.
pub(crate) const OUTGOING: &str = "useForOutgoing has no effect: RpopSettings has useDomainAddresses off";

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

/// `special` with a header that has another use. The CRD has a rule of the
/// same words.
pub(crate) const TAKEN_HEADER: &str = "this header has another use, and RPOP would remove it: write the header in which your provider keeps the envelope recipient, like X-Original-To or Delivered-To, or \"*\" to use To and Cc";

/// Whether everybody's mail has that header, or RPOP or the recipients need
/// it: it holds no envelope recipient, and must not be removed.
pub(crate) fn is_taken_header(name: &str) -> bool {
    const NAMES: &[&str] = &[
        "received",
        "return-path",
        "from",
        "sender",
        "reply-to",
        "to",
        "cc",
        "bcc",
        "subject",
        "date",
        "message-id",
        "in-reply-to",
        "references",
        "mime-version",
        "dkim-signature",
        "authentication-results",
        "errors-to",
        "return-receipt-to",
        "disposition-notification-to",
    ];
    const FAMILIES: &[&str] = &["content-", "resent-", "list-", "arc-"];
    let name = name.to_ascii_lowercase();
    NAMES.contains(&&*name) || FAMILIES.iter().any(|family| name.starts_with(family))
}

/// `special` while the settings name no Main Domain.
pub(crate) const NO_MAIN_DOMAIN: &str = "special needs the Main Domain, whose postmaster owns the record and gets what is for nobody else: write mainDomain: example.com in RpopSettings";

/// `special` while it cannot be read which is the Main Domain.
pub(crate) const SETTINGS_BROKEN: &str =
    "special needs the Main Domain, and RpopSettings, which names it, has errors";

/// `special` while nothing can be delivered to the Main Domain.
pub(crate) fn unusable_main_domain(name: Option<&str>) -> String {
    let name = name.map(|name| format!(" {}", escape(name))).unwrap_or_default();
    format!(
        "special needs the Main Domain, and the RpopDomain{name} that RpopSettings names as mainDomain is not there or has errors"
    )
}

/// `special` in a record of somebody else than the Main Domain's postmaster.
pub(crate) fn not_the_postmasters(owner: Option<&Mailbox>) -> String {
    let owner = owner.map_or_else(
        || "his address, in the domain that RpopSettings names as mainDomain".to_owned(),
        ToString::to_string,
    );
    format!(
        "with special a record delivers to any account of any RpopDomain, so it must belong to the postmaster of the Main Domain: write account: {owner}"
    )
}

/// Local domains that do not fit a record with `special`.
pub(crate) fn unified_too_large(octets: usize, most: usize, names: usize, deliveries: usize) -> String {
    format!(
        "with special a record carries all local domains, and these ({names} names and aliases, {deliveries} different deliveries) take {octets} octets of {most}: remove aliases that get no mail, or give RpopDomains the same delivery, which then counts once"
    )
}

/// Domains that a record with `special` cannot deliver to.
pub(crate) fn left_out(domains: &[impl AsRef<str>]) -> Option<String> {
    let some = listed(domains);
    match domains {
        [] => None,
        [_] => {
            Some(format!("RpopDomain {some} has errors: until it is mended, mail for its addresses waits"))
        }
        _ => Some(format!(
            "the RpopDomains {some} have errors: until they are mended, mail for their addresses waits"
        )),
    }
}

/// What keeps a record with `special` from being polled: files of which a
/// part cannot be read, and domains that have errors.
pub(crate) fn not_all_domains(files: &[impl AsRef<str>], domains: &[impl AsRef<str>]) -> Option<String> {
    let of_domains = match domains {
        [] => None,
        [_] => Some(format!("RpopDomain {} has errors", listed(domains))),
        _ => Some(format!("the RpopDomains {} have errors", listed(domains))),
    };
    let of_files =
        (!files.is_empty()).then(|| format!("what cannot be read in {} may be a domain", listed(files)));
    let why: Vec<String> = of_domains.into_iter().chain(of_files).collect();
    (!why.is_empty()).then(|| {
        format!(
            "not polled, since {}: mend that first, for mail to a domain that is not known would be taken for foreign and lost",
            why.join(", and ")
        )
    })
}

/// Domains whose deliveries lack a Secret, to a record with `special`.
pub(crate) fn waiting(domains: &[impl AsRef<str>]) -> Option<String> {
    let (what, lacks) = match domains {
        [] => return None,
        [_] => ("RpopDomain", "lacks a Secret that can be used: mail for it waits until it has one"),
        _ => ("the RpopDomains", "lack Secrets that can be used: mail for them waits until they have them"),
    };
    Some(format!("{what} {} {lacks}", listed(domains)))
}

/// A postmaster of the Main Domain who is in another, which has no queue.
pub(crate) fn postmaster_by_main(postmaster: &Mailbox, his: &str, main: &str) -> String {
    format!(
        "mail to the postmaster {postmaster} goes to delivery.smtp of RpopDomain {main}, by which notifications are sent, since RpopDomain {his} has none: that server must take mail for him, or write a postmaster of {main}, or give {his} delivery.smtp"
    )
}

/// A postmaster of the Main Domain for whom there is no way.
pub(crate) fn postmaster_nowhere(postmaster: &Mailbox, main: &str) -> String {
    format!(
        "the postmaster {postmaster} of RpopDomain {main} is in no RpopDomain, and there is no delivery.smtp to send his mail by: what is for nobody else may be refused; write a postmaster of {main}, or an RpopDomain {}",
        escape(postmaster.domain())
    )
}

/// A sender is told by SMTP that a recipient of his was refused.
pub(crate) fn without_notifications(unified: &Unified, main: &Destination) -> Option<String> {
    let tells = matches!(unified.special, Special::Header(_)) && main.smtp.is_none();
    tells.then(|| {
        format!(
            "RpopDomain {} has no delivery.smtp: when a recipient is refused, {} is told of it, and not the sender",
            main.domain, unified.postmaster
        )
    })
}

/// What is done with the mail of a unified account.
pub(crate) fn distributes(unified: &Unified) -> String {
    let names: Vec<&str> =
        unified.domains.iter().flat_map(|place| place.names.iter().map(|name| &**name)).collect();
    let (names, postmaster) = (listed(&names), &unified.postmaster);
    let addresses = match (&unified.special, unified.relay_foreign) {
        (Special::Header(name), false) => format!("the addresses in {} that are in {names}", escape(name)),
        (Special::Header(name), true) => {
            format!("all addresses in {}, also outside of {names}", escape(name))
        }
        (Special::Addressees, _) => format!("the addresses in To, Cc and Bcc that exist in {names}"),
    };
    format!("delivers to {addresses}; a message without one goes to {postmaster}")
}

/// The first of many names.
fn listed(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| escape(name.as_ref())).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_everybody_are_taken_and_those_of_providers_are_free() {
        for taken in
            ["Received", "FROM", "to", "Message-Id", "Content-Type", "resent-to", "List-Id", "ARC-Seal"]
        {
            assert!(is_taken_header(taken), "{taken}");
        }
        for free in [
            "X-Original-To",
            "Delivered-To",
            "Envelope-To",
            "X-RCPT-TO",
            "Apparently-To",
            "Archived-At",
            "Tom",
        ] {
            assert!(!is_taken_header(free), "{free}");
        }
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..7).map(|n| format!("d{n}.example")).collect();
        assert_eq!(listed(&names[..2]), "d0.example, d1.example");
        assert!(left_out(&names).unwrap().contains("d4.example and 2 more have errors"));
        assert_eq!(left_out(&names[..0]), None);
    }
}
