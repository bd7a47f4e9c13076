//! From a work item to where its messages go and under which envelope.

use std::sync::Arc;

use super::ports::{Route, Via};
use super::report::{PollError, Scope};
use crate::domain::code::Code;
use crate::domain::envelope::{Mailbox, Notify, Recipient};
use crate::domain::work::{Destination, Endpoint, Timeouts, Unified, WorkItem};

/// The ways of a record's mail: one for a plain record, one for each
/// destination for a unified one.
#[derive(Debug)]
pub(super) struct Lanes {
    /// Distinct. The first is the way to the record's account.
    routes: Vec<Route>,
    /// For each of [`crate::domain::work::Unified::domains`] its place in
    /// `routes`.
    places: Vec<usize>,
}

/// The lane to the account of the record: for a unified one that is the
/// postmaster of the Main Domain.
pub(super) const MAIN: usize = 0;

impl Lanes {
    /// The lanes of a record. A local domain without any delivery has a lane
    /// that leads nowhere: only its own mail waits.
    ///
    /// # Errors
    /// `ConfigInvalid` where the account's domain has no delivery.
    pub(super) fn new(item: &WorkItem, timeouts: Timeouts) -> Result<Self, PollError> {
        Ok(Self::of(route(item, timeouts)?, item.unified.as_deref()))
    }

    /// The lane `main`, and those to the local domains.
    pub(super) fn of(main: Route, unified: Option<&Unified>) -> Self {
        let timeouts = main.timeouts;
        let mut routes = vec![Route { unified: unified.is_some(), ..main }];
        let domains = unified.map_or(&[][..], |unified| &unified.domains);
        let places = domains.iter().map(|domain| {
            let destination = Arc::clone(&domain.destination);
            let via = via(&destination, false).unwrap_or(Via::Maildir);
            let route = Route { destination, via, mailbox: None, unified: true, timeouts };
            routes.iter().position(|known| is_same(known, &route)).unwrap_or_else(|| {
                routes.push(route);
                routes.len() - 1
            })
        });
        let places = places.collect();
        Self { routes, places }
    }

    /// How many there are; at least one.
    pub(super) fn count(&self) -> usize {
        self.routes.len()
    }

    /// The routes, in order.
    pub(super) fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// How a lane's mail is delivered.
    pub(super) fn via(&self, lane: usize) -> Via {
        self.routes.get(lane).map_or(Via::Smtp, |route| route.via)
    }

    /// The lane of a place in `Unified::domains`.
    pub(super) fn of_place(&self, place: usize) -> usize {
        self.places.get(place).copied().unwrap_or(MAIN)
    }

    /// The one recipient of a plain record.
    ///
    /// # Errors
    /// `ConfigInvalid` where `mailbox` cannot be part of an address.
    pub(super) fn recipient(&self, item: &WorkItem) -> Result<Recipient, PollError> {
        self.routes
            .first()
            .map_or_else(|| Ok(to_mailbox(item.account.clone(), Via::Smtp)), |main| recipient(item, main))
    }

    /// The name of a lane's server, if it has one.
    pub(super) fn host(&self, lane: usize) -> Option<Arc<str>> {
        match &self.routes.get(lane)?.host()?.endpoint {
            Endpoint::Tcp(host, _) => Some(Arc::clone(host)),
            Endpoint::Unix(_) => None,
        }
    }
}

fn is_same(one: &Route, other: &Route) -> bool {
    let alike = || match one.via {
        Via::Maildir => one.destination.maildir == other.destination.maildir,
        Via::Smtp | Via::Lmtp => one.host() == other.host(),
    };
    one.via == other.via
        && one.mailbox == other.mailbox
        && (Arc::ptr_eq(&one.destination, &other.destination) || alike())
}

/// The delivery to use of those that a domain has: LMTP (or a Maildir folder)
/// for a mailbox, the queue where there is none; with only one delivery
/// everything goes there.
fn via(to: &Destination, mailbox: bool) -> Option<Via> {
    let order = [
        (to.smtp.is_some() && !mailbox, Via::Smtp),
        (to.lmtp.is_some(), Via::Lmtp),
        (to.maildir.is_some(), Via::Maildir),
    ];
    order.iter().find_map(|(there, via)| there.then_some(*via))
}

/// The route of a plain record.
///
/// # Errors
/// `ConfigInvalid` where the domain has no delivery that can do it.
fn route(item: &WorkItem, timeouts: Timeouts) -> Result<Route, PollError> {
    let to = &item.destination;
    let via = via(to, item.mailbox.is_some()).ok_or_else(|| PollError {
        code: Code::ConfigInvalid,
        message: format!(
            "the RpopDomain {} has no delivery that can take this record's mail: give it delivery.lmtp or delivery.maildir",
            to.domain
        ),
        scope: Scope::Local,
    })?;
    Ok(Route { destination: Arc::clone(to), via, mailbox: item.mailbox.clone(), unified: false, timeouts })
}

fn recipient(item: &WorkItem, route: &Route) -> Result<Recipient, PollError> {
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
