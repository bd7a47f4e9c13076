//! The engine's ports on one machine: files in place of a cluster.

pub mod ledger;
pub mod maildir;
pub mod manifests;
pub mod run;
pub mod state;
pub mod status;
