//! Couriers: lanes of SMTP and LMTP connections, and their pool.
//!
//! ```text
//!   jobs --> Courier: waiting tasks --> lane: session --> connection
//!                          ^   more lanes |  ^                 |
//!   outcomes <-------------+--------------+  +-- shelf <-- idle+
//! ```

mod courier;
mod dial;
mod floor;
mod network;
mod pool;
mod session;
mod transaction;

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc;
use tracing::Instrument as _;

pub use dial::{Dial, Trouble};
pub use network::Network;

use self::courier::Way;
use self::pool::Shelves;
use self::session::Terms;
use super::ports::{Courier, MailSink, Outcome, Route, Secrets, Undelivered, Via};
use crate::domain::code::Code;
use crate::net::Connector;
use crate::smtp::client::Protocol;

/// Jobs that a courier's channel holds.
const JOBS: usize = 64;

/// Delivers by SMTP and LMTP over pooled connections; one a process.
pub struct Pool<D: Dial> {
    dial: Arc<D>,
    shelves: Shelves<D::Stream>,
}

impl<D: Dial> fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl<D: Dial> Pool<D> {
    /// An empty pool that connects by `dial`.
    pub fn over(dial: D) -> Self {
        Self { dial: Arc::new(dial), shelves: Shelves::default() }
    }
}

impl<D: Dial> Drop for Pool<D> {
    /// The process ends: the servers are told, without waiting for them.
    fn drop(&mut self) {
        self.shelves.close();
    }
}

impl<D: Dial> MailSink for Pool<D> {
    /// Must be called within a tokio runtime.
    fn open(&self, route: Route) -> Courier {
        let Some(host) = route.host() else {
            return nowhere(&route);
        };
        let protocol = if route.via == Via::Lmtp { Protocol::Lmtp } else { Protocol::Smtp };
        let terms = Terms {
            protocol,
            timeouts: route.timeouts,
            null_sender_without_dsn: host.null_sender_without_dsn,
        };
        let (jobs, incoming) = mpsc::channel(JOBS);
        let (outgoing, outcomes) = mpsc::unbounded_channel();
        let kept = self.shelves.of(protocol, host);
        let way = Way::new(Arc::clone(&self.dial), kept, host.clone(), terms, outgoing);
        // What it says is about the record whose poll this is.
        tokio::spawn(way.run(incoming).in_current_span());
        Courier { jobs, outcomes }
    }
}

/// The pool over the real network.
#[derive(Debug)]
pub struct MailPool(Pool<Network>);

impl MailPool {
    /// An empty pool. `host_name` is what we call ourselves where a
    /// destination sets no `ehloName`.
    pub fn new(connector: Arc<Connector>, secrets: Arc<dyn Secrets>, host_name: Arc<str>) -> Self {
        Self(Pool::over(Network::new(connector, secrets, host_name)))
    }
}

impl MailSink for MailPool {
    fn open(&self, route: Route) -> Courier {
        self.0.open(route)
    }
}

/// All three kinds of delivery behind one port.
pub struct Sinks {
    mail: Arc<dyn MailSink>,
    maildir: Option<Arc<dyn MailSink>>,
}

impl fmt::Debug for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sinks").field("maildir", &self.maildir.is_some()).finish_non_exhaustive()
    }
}

impl Sinks {
    /// `mail` serves SMTP and LMTP; `maildir` only exists in the embedded run.
    pub fn new(mail: Arc<dyn MailSink>, maildir: Option<Arc<dyn MailSink>>) -> Self {
        Self { mail, maildir }
    }
}

impl MailSink for Sinks {
    fn open(&self, route: Route) -> Courier {
        match (route.via, &self.maildir) {
            (Via::Smtp | Via::Lmtp, _) => self.mail.open(route),
            (Via::Maildir, Some(maildir)) => maildir.open(route),
            (Via::Maildir, None) => nowhere(&route),
        }
    }

    fn ahead(&self, route: &Route) -> usize {
        match (route.via, &self.maildir) {
            (Via::Maildir, Some(maildir)) => maildir.ahead(route),
            _ => 0,
        }
    }
}

/// A courier for a route that leads nowhere: every job comes back.
fn nowhere(route: &Route) -> Courier {
    let message: Arc<str> =
        format!("the domain {} has no delivery by {} here", route.destination.domain, route.via.as_str())
            .into();
    let (jobs, mut incoming) = mpsc::channel::<super::ports::Job>(JOBS);
    let (outgoing, outcomes) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(job) = incoming.recv().await {
            let message = Arc::clone(&message);
            let result = Err(Undelivered::Unavailable { code: Code::ConfigInvalid, message });
            if outgoing.send(Outcome { id: job.id, result }).is_err() {
                return;
            }
        }
    });
    Courier { jobs, outcomes }
}

#[cfg(test)]
mod tests;
