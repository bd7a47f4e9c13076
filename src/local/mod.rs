//! The engine's ports on one machine: manifests, ledgers, statuses and mail in
//! files.

pub mod identity;
pub mod ledger;
pub mod maildir;
pub mod manifests;
pub mod state;
pub mod status;
pub mod tokens;
