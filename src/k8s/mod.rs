//! The engine's ports, and what the processes share, on an API server.

pub mod client;
mod election;
pub mod error;
pub mod events;
pub mod ledger;
pub mod lease;
pub mod secrets;
pub mod status;
