//! The engine's ports, and what the processes share, on an API server.
pub mod ledger;
