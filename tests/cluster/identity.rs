//! Who a process is to the API server, and what it says where that is not
//! good enough.

use crate::parts::rpop::Running;
use crate::support::{Identity, SYSTEM, eventually, namespace, server};

/// A process with an identity, but for some variables.
fn start(identity: &Identity, part: &str, variables: &[&str]) -> Running {
    identity.run(&[part, "--listen", "off", "--log-level", "all-info"], variables)
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_that_are_not_accepted_are_no_matter_of_rights() {
    let Some(server) = server() else { return };
    let kubeconfig = server.kubeconfig("stranger", "no-such-token", SYSTEM);
    let (pod, account, namespace) = ("stranger".into(), "nobody".into(), SYSTEM.into());
    let identity = Identity { pod, account, namespace, kubeconfig };
    for (part, watch) in [("controller", None), ("worker", Some("the watch fails and is tried again"))] {
        let mut process = start(&identity, part, &[]);
        process.wait_to_say("does not accept the credentials");
        process.wait_to_say("kubectl auth whoami");
        if let Some(watch) = watch {
            process.wait_to_say(watch);
        }
        let text = process.text();
        assert!(text.contains("reason=unauthorized") && !text.contains("forbidden"), "{text}");
        assert!(!text.contains("Status {") && !text.contains("no-such-token"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_may_not_do_is_said_in_the_servers_words_alone() {
    let Some(server) = server() else { return };
    let elsewhere = namespace(&server.client().await).await;
    let identity = server.pod_token(&elsewhere, "without-rights", "rightless").await;
    let mut worker = start(&identity, "worker", &[]);
    worker.wait_to_say("the watch fails and is tried again: not allowed: rpopshards.rpop.dev is forbidden");
    let text = worker.text();
    assert!(text.contains("reason=forbidden"), "{text}");
    assert!(!text.contains("Status {"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_pod_namespace_it_is_the_namespace_of_the_context() {
    let Some(server) = server() else { return };
    let client = server.client().await;
    let own = namespace(&client).await;
    let identity = server.pod_token(&own, "rpop-worker", "contextual").await;
    let mut worker = start(&identity, "worker", &["POD_NAMESPACE="]);
    worker.wait_to_say(&format!(
        "POD_NAMESPACE is not set: the namespace of RPOP is {own} by the kubeconfig's context"
    ));
    // What it may not do names where it tried.
    eventually("the worker to look there", || async {
        worker.text().contains(&format!("in the namespace \"{own}\"")).then_some(())
    })
    .await;
}
