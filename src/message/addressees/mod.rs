//! Whom a message of a unified account is for: DESIGN, "Envelope".

use std::collections::HashSet;
use std::ops::ControlFlow;

use bytes::Bytes;

use super::header::{Field, Name};
use super::unify::{Addressees, MOST_ADDRESSEES};
use crate::domain::envelope::Mailbox;
use crate::domain::work::Special;

mod scan;

/// The addresses of the fields that `special` means. `value` gives a field's
/// value, unstuffed.
pub(super) fn find(special: &Special, fields: &[Field], value: impl Fn(&Field) -> Bytes) -> Addressees {
    let mut search = Search::default();
    let block = match special {
        Special::Header(_) => None,
        Special::Addressees => resent_block(fields),
    };
    let counts = |name| match special {
        Special::Header(_) => name == Name::Special,
        Special::Addressees if block.is_some() => is_resent_recipient(name),
        Special::Addressees => matches!(name, Name::To | Name::Cc | Name::Bcc),
    };
    for field in block.unwrap_or(fields).iter().filter(|field| counts(field.name)) {
        search.found.fields += 1;
        if !search.found.more {
            // Broken off or not, the result says it.
            let (ControlFlow::Continue(()) | ControlFlow::Break(())) =
                scan::scan(&value(field), |address| search.take(address));
        }
    }
    search.found
}

/// The fields of the resending that counts: the latest (RFC 5322, section
/// 3.6.6: each puts a block of its own on top, in one piece) that says for
/// whom it was. Mailing list software resends without that; then what stands
/// below is the best that is known.
fn resent_block(fields: &[Field]) -> Option<&[Field]> {
    let mut from = 0;
    let mut seen = Singles::default();
    let mut has_recipient = false;
    for (at, field) in fields.iter().enumerate() {
        let goes_on = is_resent(field.name)
            && at
                .checked_sub(1)
                .and_then(|before| fields.get(before))
                .is_some_and(|before| is_resent(before.name) && before.all.end == field.all.start);
        if !goes_on || seen.repeats(field.name) {
            if has_recipient {
                return fields.get(from..at);
            }
            from = at;
            seen = Singles::default();
        }
        seen.add(field.name);
        has_recipient |= is_resent_recipient(field.name);
    }
    has_recipient.then(|| fields.get(from..)).flatten()
}

/// Fields that stand at most once in a block, so that a second one shows that
/// another block begins.
#[derive(Clone, Copy, Default)]
struct Singles {
    date: bool,
    from: bool,
    message_id: bool,
}

impl Singles {
    fn repeats(self, name: Name) -> bool {
        match name {
            Name::ResentDate => self.date,
            Name::ResentFrom => self.from,
            Name::ResentMessageId => self.message_id,
            _ => false,
        }
    }

    fn add(&mut self, name: Name) {
        match name {
            Name::ResentDate => self.date = true,
            Name::ResentFrom => self.from = true,
            Name::ResentMessageId => self.message_id = true,
            _ => {}
        }
    }
}

fn is_resent_recipient(name: Name) -> bool {
    matches!(name, Name::ResentTo | Name::ResentCc | Name::ResentBcc)
}

fn is_resent(name: Name) -> bool {
    is_resent_recipient(name)
        || matches!(
            name,
            Name::ResentSender
                | Name::ResentFrom
                | Name::ResentDate
                | Name::ResentMessageId
                | Name::ResentOther
        )
}

/// Distinct addresses, to a bound.
#[derive(Default)]
struct Search {
    found: Addressees,
    /// Their domains in lower case.
    seen: HashSet<Mailbox>,
}

impl Search {
    fn take(&mut self, address: Option<Mailbox>) -> ControlFlow<()> {
        let Some(address) = address.map(Mailbox::with_ascii_domain) else {
            self.found.unusable = self.found.unusable.saturating_add(1);
            return ControlFlow::Continue(());
        };
        let key = folded(&address);
        if self.seen.contains(&key) {
            return ControlFlow::Continue(());
        }
        if self.found.found.len() == MOST_ADDRESSEES {
            self.found.more = true;
            return ControlFlow::Break(());
        }
        self.seen.insert(key);
        self.found.found.push(address);
        ControlFlow::Continue(())
    }
}

/// With its domain in lower case.
fn folded(address: &Mailbox) -> Mailbox {
    let domain = address.domain();
    if !domain.chars().any(char::is_uppercase) {
        return address.clone();
    }
    let text = format!("{}@{}", address.local(), domain.to_lowercase());
    Mailbox::parse(&text).unwrap_or_else(|_| address.clone())
}

#[cfg(test)]
mod tests;
