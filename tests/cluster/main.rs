//! The operator on a real kube-apiserver and etcd.
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
    missing_docs,
    unreachable_pub,
    reason = "in tests a failed expectation is a failed test"
)]

mod admission;
mod controller;
mod fixture;
mod identity;
mod install;
mod lease;
mod ledger;
#[path = "../it/support/mod.rs"]
mod parts;
mod people;
mod policies;
mod support;
mod unified;
mod worker;
