//! What operators see: logs, metrics and the HTTP endpoint that serves them.

pub mod http;
pub mod logs;
pub mod metrics;
mod process;
