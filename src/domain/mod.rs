//! Pure decisions and data: no tokio, no kube, no clock of its own. `now` and
//! randomness are arguments.

pub mod code;
pub mod envelope;
pub mod ledger;
pub mod schedule;
pub mod shards;
pub mod text;
pub mod wire;
pub mod work;
