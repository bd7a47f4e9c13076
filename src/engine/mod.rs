//! One poll of one maildrop, and the pool of connections to destinations.
//! Knows neither Kubernetes nor files: those are behind [`ports`].
//!
//! ```text
//! load ledger -> [ open session -> survey -> transfer -> QUIT ]* -> prune
//! ```
//! A session that falls out of step is dropped and opened again for what is
//! behind the message that did it.

mod batch;
mod incoming;
mod poll;
pub mod ports;
pub mod report;
mod route;
pub mod scheduler;
mod session;
pub mod sink;
mod transfer;
mod work;

pub use poll::Engine;
pub use session::Checked;
