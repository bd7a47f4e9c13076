//! One poll of one maildrop, and the pool of connections to destinations.
//! Knows neither Kubernetes nor files: those are behind [`ports`].
//!
//! ```text
//! load ledger -> [ open session -> survey -> transfer -> QUIT ]* -> prune
//! ```
//! A message of a unified account takes a turn for each of its destinations;
//! see `standing`.
//!
//! A session that falls out of step is dropped and opened again for what is
//! behind the message that did it.

mod batch;
mod credentials;
mod incoming;
pub mod owed;
mod plan;
mod poll;
pub mod ports;
mod refusals;
pub mod report;
mod route;
pub mod scheduler;
mod session;
pub mod sink;
mod standing;
mod transfer;
mod work;

use std::sync::Arc;

pub use session::Checked;

use crate::net::Connector;
use crate::oauth::Tokens;
use ports::{LedgerStore, MailSink, Observer, Secrets};

/// Polls maildrops. One a process; cheap to share.
pub struct Engine {
    /// Makes connections.
    pub connector: Arc<Connector>,
    /// Reads passwords and certificates.
    pub secrets: Arc<dyn Secrets>,
    /// Gets access tokens.
    pub tokens: Tokens,
    /// Remembers UIDs.
    pub ledgers: Arc<dyn LedgerStore>,
    /// Takes messages.
    pub sink: Arc<dyn MailSink>,
    /// Hears what happens.
    pub observer: Arc<dyn Observer>,
    /// This host's name, for trace headers.
    pub host_name: Arc<str>,
    /// Marks this installation's trace headers; see
    /// [`crate::message::TraceContext::key`].
    pub trace_key: [u8; 16],
}
