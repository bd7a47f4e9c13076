//! SMTP and LMTP as a client speaks them (RFC 5321, RFC 2033).
//!
//! Sans-I/O: [`reply`] decodes replies, [`extension`] what EHLO announces,
//! [`command`] encodes commands. [`wire`] reads and writes at once over any
//! stream; [`client`] leads a connection through greeting, EHLO, STARTTLS and
//! AUTH. Transactions, and what rides behind what, are the engine's lanes.

pub mod client;
pub mod command;
mod error;
pub mod extension;
pub mod reply;
pub mod wire;

pub use error::Error;
