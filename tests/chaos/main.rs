//! The operator among real troubles, and at size. A process of its own, since
//! it needs the machine to itself: what runs beside it would be measured, too.
//!
//! `scripts/kubetools` says where these come from. Where they cannot be had
//! the tests are skipped and say so; in CI that is a failure.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::string_slice,
    clippy::indexing_slicing,
    clippy::must_use_candidate,
    clippy::return_self_not_must_use,
    clippy::new_without_default,
    clippy::let_underscore_must_use,
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "in tests a failed expectation is a failed test"
)]

mod chaos;
#[path = "../it/support/mod.rs"]
mod parts;
mod scale;
#[path = "../cluster/support/mod.rs"]
mod support;
