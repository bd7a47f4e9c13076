//! A POP3 client (RFC 1939, RFC 2449, RFC 2595, RFC 5034, RFC 6856) over any
//! stream.
//!
//! ```text
//!   greet -> capabilities -> [start_tls -> TLS -> after_tls -> capabilities]
//!         -> [utf8] -> login -> [capabilities] -> stat, uidl, list
//!         -> send / event, pipelined -> Quit
//! ```
//!
//! The server is taken for hostile: every line, number, list and wait is
//! bounded, and what comes unasked is an error. What needs no I/O stands
//! apart from it: `reply`, `capability`, `listing`, `apop`, [`sasl`], and the
//! decoder of messages in [`crate::domain::wire`].

mod apop;
mod auth;
mod capability;
mod client;
mod error;
mod listing;
mod pipeline;
mod reply;
pub mod sasl;
mod transport;

pub use auth::{Credentials, LoginPolicy, Mechanism, Secret};
pub use capability::{Capabilities, Expire};
pub use client::{Client, Greeting, Question, Stat};
pub use error::{Error, Scope};
pub use listing::Listing;
pub use pipeline::{BodyEnd, Command, Event};
pub use reply::{Reply, ResponseCode, Status};
pub use sasl::scram::ChannelBinding;
pub use transport::Deadlines;

#[cfg(test)]
mod tests;
