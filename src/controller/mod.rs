//! The leader-elected controller: records become work items, shards and slices.
//!
//! ```text
//!   watches --> index --> dereference --> validate --> build --> apply --> status
//!                (view)        pure         pure        pure    (work)    (outbox)
//! ```
//!
//! Each step is a file, and its input carries the phase: a status can only be
//! made of what was applied. What is to be written goes through one outbox
//! with a bound on its rate and its concurrency.
#![cfg_attr(not(test), allow(dead_code))]

mod allow;
mod apply;
mod build;
mod dereference;
mod index;
mod look;
mod outbox;
mod shown;
mod status;
mod validate;
mod watch;
