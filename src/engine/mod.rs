//! One poll of one maildrop, and the pool of connections to destinations.
//! Knows neither Kubernetes nor files: those are behind [`ports`].

pub mod ports;
pub mod report;
pub mod scheduler;
pub mod sink;
