//! The worker: takes shards, polls their records, hands over.
//!
//! ```text
//!   API server --watches--> driver <--orders-- domain::shards::Member
//!        ^                    |  what is to be polled
//!        | statuses, Events   v
//!     report <----------- run::Run --polls--> gate --> engine
//!                                              |  asks, right before each poll
//!                                           roster, fence
//! ```
//! The *driver* does the input and output of the member, which decides; the
//! *roster* knows which records are ours and which sessions are open; the
//! *gate* lets polls through, and drops them when they are not ours any more;
//! the *fence* is the clock that all of them look at first.

mod driver;
pub mod fence;
pub mod gate;
mod hosts;
mod identity;
mod mend;
mod recall;
mod report;
pub mod roster;
mod run;
mod settings;
mod shard;
mod slice;
mod watching;

pub use run::{Error, Options, run};
