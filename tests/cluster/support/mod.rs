//! A real API server for the tests.
//!
//! [`server`] is one for the whole test run, with the CRDs applied: tests
//! that only need resources share it, each in a namespace of its own
//! ([`with_namespace`]). A test that runs a controller, stops the server or
//! writes `RpopSettings` starts its own with [`Server::start`], since all of
//! that is felt by every other user of a cluster.
//!
//! ```ignore
//! #[tokio::test]
//! async fn keeps_a_record() {
//!     with_namespace(|client, namespace| async move { … }).await;
//! }
//!
//! #[tokio::test]
//! async fn outlives_the_server() {
//!     let Some(mut server) = Server::start() else { return };
//!     let client = server.client().await;
//!     server.stop();
//!     server.restart();
//! }
//! ```
//!
//! Nothing outlives the test process: the kernel ends the servers, and a shell
//! that waits for our end removes their folders.

#![allow(dead_code, unused_imports, reason = "each test needs some of these")]

mod crds;
mod deploy;
mod kubectl;
mod metrics;
mod namespace;
mod pods;
mod server;
mod token;
mod tools;

pub use deploy::{SYSTEM, project};
pub use kubectl::Answer;
pub use metrics::Requests;
pub use namespace::{namespace, with_namespace};
pub use pods::Worker;
pub use server::{ControllerManager, Options, Server};
pub use token::Identity;
pub use tools::tools;

use std::sync::LazyLock;

/// The server that all tests of this run share. `None`: skipped, said aloud.
///
/// The first call takes some seconds.
pub fn server() -> Option<&'static Server> {
    static SHARED: LazyLock<Option<Server>> = LazyLock::new(Server::start);
    SHARED.as_ref()
}

/// Looks every 50 ms until `look` finds something.
///
/// # Panics
/// After [`crate::parts::PATIENCE`]; `what` says what was waited for.
pub async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let waiting = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let limit = crate::parts::PATIENCE;
    let found = tokio::time::timeout(limit, waiting).await;
    found.unwrap_or_else(|_| panic!("waited {limit:?} in vain for: {what}"))
}
