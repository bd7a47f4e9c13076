//! The engine's ports, and what the processes share, on an API server.

pub mod client;
mod election;
pub mod error;
pub mod events;
pub mod lease;
pub mod ledger;
pub mod secrets;
pub mod status;
pub mod tokens;
pub(crate) mod watching;
