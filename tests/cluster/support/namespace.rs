//! A namespace a test.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::FutureExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};

use super::server;

/// Runs a test in a fresh namespace of the shared server, with all rights.
/// When it fails, what is in the namespace is printed.
pub async fn with_namespace<F>(test: impl FnOnce(Client, Arc<str>) -> F)
where
    F: Future<Output = ()>,
{
    let Some(server) = server() else { return };
    let client = server.client().await;
    let namespace = namespace(&client).await;
    let result = AssertUnwindSafe(test(client.clone(), Arc::clone(&namespace))).catch_unwind().await;
    if let Err(panic) = result {
        let kinds = "rpoprecords,rpopshards,rpopworkslices,leases,configmaps,events";
        let left = server.kubectl(&["-n", &namespace, "get", kinds, "-o", "yaml", "--ignore-not-found"]);
        eprintln!("--- in namespace {namespace}:\n{}{}", left.stdout, left.stderr);
        std::panic::resume_unwind(panic);
    }
    let all: Api<Namespace> = Api::all(client);
    // Nobody empties it without a controller manager; the server ends soon.
    drop(all.delete(&namespace, &DeleteParams::default()).await);
}

/// Makes a namespace with a name of its own.
pub async fn namespace(client: &Client) -> Arc<str> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.clone());
    let all: Api<Namespace> = Api::all(client.clone());
    all.create(&PostParams::default(), &namespace).await.expect("a namespace");
    name.into()
}
