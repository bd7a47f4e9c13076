//! Integration tests: the `rpop` binary and real or scripted servers.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    clippy::indexing_slicing,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use,
    clippy::new_without_default,
    clippy::let_underscore_must_use,
    missing_docs,
    unreachable_pub,
    reason = "in tests a failed expectation is a failed test"
)]

mod ahead;
mod authentication;
mod bench;
mod chaos;
mod delivery;
mod destination;
mod docs;
mod domain_wide;
mod engine;
mod faults;
mod framing;
mod layers;
mod logins;
mod notification;
mod oauth;
mod parts;
mod reach;
mod resources;
mod schedule;
mod session;
mod support;
mod surroundings;
mod uidl;
mod unified;
mod unified_real;
