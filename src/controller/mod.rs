//! The leader-elected controller: records become work items, shards and slices.
//!
//! ```text
//!   watches --> index --> dereference --> validate --> build --> apply ----> status
//!    (watch)    (take)          pure, one record (look)          (work)     (outbox)
//!                                                                 |  ^
//!   leases, shards, slices --(feed)--> domain::shards::leader <---+  |
//!                                            |                       |
//!                                            +--> order --(outbox)---+
//! ```
//!
//! Each step is a file, and its input carries the phase: a status can only be
//! made of what was applied, and that is what a slice says. What is to be
//! written goes through outboxes with bounds on rate and concurrency. Every
//! controller watches; only the leader writes.

mod allow;
mod apply;
mod build;
mod dereference;
mod domains;
mod driver;
mod error;
mod feed;
mod figures;
mod index;
mod look;
mod order;
mod outbox;
mod run;
mod seen;
mod shown;
mod status;
mod take;
mod validate;
mod watch;
mod work;
mod write;

pub use error::Error;
pub use run::{Options, run};
