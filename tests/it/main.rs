//! Integration tests.

mod resources;
