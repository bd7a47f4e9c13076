//! Connections: names, addresses, TCP, unix sockets and TLS, each with a
//! deadline, and errors that say what to do.
//!
//! ```text
//! host, port --resolve--> addresses --AddressPolicy--> allowed ones
//!    --dial (RFC 8305)--> Stream --Connector::secure--> Stream
//!    --Stream::clearance--> Clearance: the proof that credentials may be sent
//! ```

pub mod address;
mod binding;
mod connector;
mod dial;
pub mod error;
mod material;
mod resolve;
pub mod stream;
pub mod tls;
mod verify;

pub use address::AddressPolicy;
pub use binding::ChannelBindings;
pub use connector::{ConnectOptions, Connector};
pub use error::{ConnectError, Error, TlsError};
pub use material::{MaterialError, TlsMaterial};
pub use stream::{Clearance, Stream};

#[cfg(test)]
mod reach_tests;
#[cfg(test)]
mod tls_tests;
