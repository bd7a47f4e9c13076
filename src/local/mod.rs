//! local
pub mod maildir;
