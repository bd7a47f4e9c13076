//! The header of a message on its way through: what is removed, what is
//! added, and what it says about the envelope. Sans I/O; the only place that
//! knows RFC 5322.
//!
//! ```text
//! Piece, Piece, …  --Composer::push-->  Composed { pieces, sender, … }
//!                                       later pieces pass untouched
//! ```

mod compose;
mod header;
mod notification;
mod sender;
mod trace;

pub use compose::{Composed, Composer, MAX_HEADER, MAX_HOPS};
pub use notification::{Notification, Refused};
pub use trace::{Trace, TraceContext};
