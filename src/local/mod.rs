//! The engine's ports on one machine: files in place of a cluster.

pub mod run;
