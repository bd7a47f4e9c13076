//! RPOP retrieves mail from remote POP3 maildrops and forwards it, over SMTP
//! or LMTP, to the accounts of the user's own mail system.
//!
//! ```text
//!   manifests (files, or the API server)
//!        |  api: types, CEL rules           local: files, ledgers, status
//!        v                                        |  implements
//!   domain::work::WorkItem  ---->  engine  <------+  engine::ports
//!                                    |
//!              +---------------------+----------------------+
//!              v                     v                      v
//!       pop3 (codec, client)   message (header)   smtp (codec, client)
//!              |                     |                      |
//!              +------- domain: wire, ledger, envelope -----+
//!                                    |
//!                           net: connect, TLS, deadlines
//! ```
//!
//! | layer | may use | never |
//! |---|---|---|
//! | `domain` | nothing but data and arithmetic | tokio, kube, clocks |
//! | `net`, `pop3`, `smtp`, `message` | `domain` | kube |
//! | `oauth` | the above; Secrets and tokens through `engine::ports` | kube, files |
//! | `engine` | the above, through its own `ports` | kube, files |
//! | `run` | `engine`, `telemetry`: one loop for files and cluster | kube, files |
//! | `local`, `k8s` | implement the ports | the protocols |
//! | `controller`, `worker` | the above | the protocols |
//! | `cli`, `main` | all | |
//!
//! A test fails when `kube` appears in a layer that must not know it.

pub mod api;
pub mod cli;
pub mod controller;
pub mod domain;
pub mod engine;
pub mod k8s;
pub mod local;
pub mod message;
pub mod net;
pub mod oauth;
pub mod pop3;
pub mod run;
pub mod shutdown;
pub mod smtp;
pub mod telemetry;
pub mod worker;
