//! Statuses that others write, too.

use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use hyper::{Method, Request, Response};
use kube::client::Body;
use tower::{BoxError, Service};

use super::*;

/// Lets the next write of a record's status wait, and sees what becomes of all.
#[derive(Clone)]
struct Slow {
    client: Client,
    let_go: watch::Receiver<bool>,
    held: Arc<AtomicUsize>,
    answers: Arc<Mutex<Vec<u16>>>,
}

impl Service<Request<Body>> for Slow {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut this = self.clone();
        Box::pin(async move {
            let path = request.uri().path();
            let status = request.method() == Method::PATCH
                && path.contains("/rpoprecords/")
                && path.ends_with("/status");
            if status {
                this.held.fetch_add(1, SeqCst);
                this.let_go.wait_for(|go| *go).await?;
            }
            let answer = this.client.send(request).await?;
            if status {
                this.answers.lock().unwrap().push(answer.status().as_u16());
            }
            Ok(answer)
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_ends_before_the_record_is_said_to_be_accepted_is_not_written_over() {
    let Some(all) = Installation::new().await else { return };
    all.domain("example.com", &json!({}));
    let (go, let_go) = watch::channel(false);
    let (held, answers) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
    let (in_wait, seen) = (Arc::clone(&held), Arc::clone(&answers));
    let slow = move |client| Client::new(Slow { client, let_go, held: in_wait, answers: seen }, "default");
    let controller = all.controller_behind("controller-0", 4, slow).await;
    all.record(SYSTEM, "quick", &json!({}));
    eventually("the controller to write", || async { (held.load(SeqCst) == 1).then_some(()) }).await;
    let said = |type_: &str| {
        json!({
            "type": type_, "status": "True", "reason": type_, "message": "all is well",
            "observedGeneration": 1, "lastTransitionTime": "2030-01-01T00:00:00Z",
        })
    };
    let conditions = [said("Polled"), said("Delivered"), said("Ready")];
    let status = json!({"last": "2030-01-01T00:00:00Z", "conditions": conditions});
    all.polled(SYSTEM, "quick", &status).await;
    go.send(true).unwrap();
    all.accepted(SYSTEM, "quick", "True", "Accepted", &["complete and allowed"]).await;
    let records: Api<RpopRecord> = Api::namespaced(all.client.clone(), SYSTEM);
    let status = records.get("quick").await.unwrap().status.unwrap();
    let good: Vec<_> = status.conditions.iter().filter(|said| said.status == "True").collect();
    assert_eq!(good.len(), 4, "Ready is what the worker said of it: {:?}", status.conditions);
    assert_eq!(*answers.lock().unwrap(), [409, 200], "and nothing was refused for what it says");
    controller.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_takes_out_of_a_status_comes_back() {
    let Some(all) = Installation::new().await else { return };
    all.domain("example.com", &json!({}));
    all.apply(&json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopSettings", "metadata": {"name": "default"}, "spec": {},
    }));
    let controller = all.controller("controller-0", 4).await;
    all.record(SYSTEM, "good", &json!({}));
    all.record(SYSTEM, "bad", &json!({"mailbox": "Archive"}));
    let objects = [
        ("rpop/good", "True"),
        ("rpop/bad", "False"),
        ("rpopdomain/example.com", "True"),
        ("rpopsettings/default", "True"),
    ];
    let all = &all;
    let says = |object: &'static str, wanted: &'static str| async move {
        let path = "-o=jsonpath={.status.conditions[?(@.type=='Accepted')].status}";
        eventually(&format!("{object} to be Accepted={wanted}"), || async {
            let answer = all.server.kubectl(&["get", "-n", SYSTEM, object, path]);
            (answer.stdout == wanted).then_some(())
        })
        .await;
    };
    for empty in [r#"{"status": {"conditions": []}}"#, r#"{"status": null}"#] {
        for (object, wanted) in objects {
            says(object, wanted).await;
            let edit = ["patch", "-n", SYSTEM, object, "--subresource=status", "--type=merge", "-p", empty];
            all.server.kubectl(&edit).succeeds();
            says(object, wanted).await;
        }
    }
    all.accepted(SYSTEM, "good", "True", "Accepted", &["complete and allowed"]).await;
    all.accepted(SYSTEM, "bad", "False", "ConfigInvalid", &["mailbox needs delivery.lmtp"]).await;
    controller.ends().await;
}
