//! The header of a message on its way through: what is removed, what is
//! added, and what it says about the envelope. Sans I/O; the only place that
//! knows RFC 5322.
//!
//! ```text
//! Piece, Piece, …  --Composer::push-->  Composed { pieces, sender, … }
//!                                       later pieces pass untouched
//! ```
//!
//! For a unified account ([`Composer::unified`]) it also tells whom a message
//! is for, and begins the digest by which copies of it are known.

mod addressees;
mod compose;
mod copies;
mod header;
mod notification;
mod sender;
mod shown;
mod trace;
mod unify;

#[cfg(test)]
mod corpus;

pub use compose::{Composed, Composer, MAX_HEADER, MAX_HOPS};
pub use notification::{Notification, Refused};
pub use trace::{Trace, TraceContext};
pub use unify::{Addressees, MOST_ADDRESSEES, Unify};
