//! From a work item to where its messages go and under which envelope.

use std::sync::Arc;

use super::ports::{Route, Via};
use super::report::{PollError, Scope};
use crate::domain::code::Code;
use crate::domain::envelope::{Mailbox, Notify, Recipient};
use crate::domain::work::{Timeouts, WorkItem};

/// The route of a plain record: LMTP (or a Maildir folder) with a mailbox, the
/// queue without one; with only one delivery everything goes there.
///
/// # Errors
/// `ConfigInvalid` where the domain has no delivery that can do it.
pub(super) fn route(item: &WorkItem, timeouts: Timeouts) -> Result<Route, PollError> {
    let to = &item.destination;
    let order: &[(bool, Via)] = if item.mailbox.is_some() {
        &[(to.lmtp.is_some(), Via::Lmtp), (to.maildir.is_some(), Via::Maildir)]
    } else {
        &[
            (to.smtp.is_some(), Via::Smtp),
            (to.lmtp.is_some(), Via::Lmtp),
            (to.maildir.is_some(), Via::Maildir),
        ]
    };
    let via = order.iter().find_map(|(there, via)| there.then_some(*via)).ok_or_else(|| PollError {
        code: Code::ConfigInvalid,
        message: format!(
            "the RpopDomain {} has no delivery that can take this record's mail: give it delivery.lmtp or delivery.maildir",
            to.domain
        ),
        scope: Scope::Local,
    })?;
    Ok(Route { destination: Arc::clone(to), via, mailbox: item.mailbox.clone(), timeouts })
}

/// The one recipient of a plain record.
///
/// # Errors
/// `ConfigInvalid` where `mailbox` cannot be part of an address.
pub(super) fn recipient(item: &WorkItem, route: &Route) -> Result<Recipient, PollError> {
    let address = match (&item.mailbox, route.via) {
        (Some(mailbox), Via::Lmtp) => {
            let separator = route.host().map_or("+", |host| &host.detail_separator);
            item.account.with_detail(separator, mailbox).map_err(|error| PollError {
                code: Code::ConfigInvalid,
                message: format!("mailbox {mailbox:?} cannot be delivered to: {error}"),
                scope: Scope::Local,
            })?
        }
        _ => item.account.clone(),
    };
    Ok(to_mailbox(address, route.via))
}

/// `address` with the notifications that suit the kind of delivery: a queue
/// must not report failures to senders that never chose us.
pub(super) fn to_mailbox(address: Mailbox, via: Via) -> Recipient {
    let notify = if via == Via::Smtp { Notify::Never } else { Notify::Unsaid };
    Recipient { address, notify }
}
