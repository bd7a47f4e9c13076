//! What the credentials of a worker, of the controller and of the people of a
//! namespace are good for: real tokens, bound to Pods, under the rights and
//! policies of `deploy/`.

use std::sync::LazyLock;

use rpop::engine::ports::{TokenId, TokenStore as _, TokenStoreError};
use rpop::k8s::tokens::SecretTokens;
use serde_json::{Value, json};

use crate::support::{Answer, Identity, SYSTEM, Server};

/// One server for this file and for `people`, with `deploy/` on it: the policies
/// hold for all who use it.
pub(crate) fn installed() -> Option<&'static Server> {
    static INSTALLED: LazyLock<Option<Server>> = LazyLock::new(|| {
        let server = Server::start()?;
        server.deploy();
        Some(server)
    });
    // Starting blocks: not on a thread of the runtime.
    std::thread::spawn(|| INSTALLED.as_ref()).join().unwrap()
}

async fn worker(server: &Server, pod: &str) -> Identity {
    server.pod_token(SYSTEM, "rpop-worker", pod).await
}

async fn controller(server: &Server) -> Identity {
    server.pod_token(SYSTEM, "rpop-controller", "controller-0").await
}

/// kubectl with one's rights.
trait Acts {
    fn tries(&self, server: &Server, args: &[&str], input: &str) -> Answer;

    fn creates(&self, server: &Server, object: &Value) -> Answer {
        self.tries(server, &["create", "-f", "-"], &object.to_string())
    }

    /// `what` is like `-n NAMESPACE KIND NAME`.
    fn patches(&self, server: &Server, what: &[&str], patch: &Value) -> Answer {
        let patch = patch.to_string();
        let mut args = vec!["patch", "--type=merge", "-p", &patch];
        args.extend(what);
        self.tries(server, &args, "")
    }
}

impl Acts for Identity {
    fn tries(&self, server: &Server, args: &[&str], input: &str) -> Answer {
        server.kubectl_as(&self.kubeconfig, args, input)
    }
}

fn shard(name: &str, desired: Option<&str>) -> Value {
    let mut spec = json!({"slices": 1});
    if let Some(desired) = desired {
        spec["desired"] = json!(desired);
    }
    json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopShard",
        "metadata": {"name": name, "namespace": SYSTEM}, "spec": spec,
    })
}

fn lease(name: &str, holder: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": name, "namespace": SYSTEM}, "spec": {"holderIdentity": holder},
    })
}

fn map(name: &str, namespace: &str, ledger: Option<&str>) -> Value {
    let labels = ledger.map(|record| json!({"rpop.dev/ledger": record}));
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": labels}, "data": {"a": "b"},
    })
}

/// A shard as the controller makes it, held by `holder` in epoch 7.
async fn held_shard(server: &Server, name: &str, holder: &str, desired: &str) {
    let controller = controller(server).await;
    controller.creates(server, &shard(name, Some(desired))).succeeds();
    let status = json!({"status": {"holder": holder, "epoch": 7}});
    controller.patches(server, &status_of(name), &status).succeeds();
}

fn status_of(shard: &str) -> [&str; 5] {
    ["-n", SYSTEM, "rpopshard", shard, "--subresource=status"]
}

fn forbidden(answer: Answer, why: &str) {
    let error = answer.fails();
    assert!(error.contains("forbidden") || error.contains("Forbidden"), "{error}");
    assert!(error.contains(why), "{error}");
}

#[tokio::test]
async fn a_worker_gets_the_secret_that_it_can_name_and_lists_none() {
    let Some(server) = installed() else { return };
    let worker = worker(server, "reader").await;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": "first-isp", "namespace": "default"}, "stringData": {"password": "x"},
    });
    server.apply(&secret.to_string()).succeeds();
    worker.tries(server, &["-n", "default", "get", "secret", "first-isp"], "").succeeds();
    for args in [
        &["get", "secrets", "-A"][..],
        &["-n", "default", "get", "secrets"],
        &["-n", SYSTEM, "get", "secrets"],
        &["get", "--raw", "/api/v1/namespaces/default/secrets?watch=1"],
    ] {
        forbidden(worker.tries(server, args, ""), "secrets");
    }
    let changed = json!({"stringData": {"password": "y"}});
    forbidden(worker.patches(server, &["-n", "default", "secret", "first-isp"], &changed), "secrets");
    let leader = controller(server).await;
    forbidden(leader.tries(server, &["-n", "default", "get", "secret", "first-isp"], ""), "secrets");
}

#[tokio::test]
async fn a_worker_writes_the_status_of_records_and_nothing_else_of_them() {
    let Some(server) = installed() else { return };
    let worker = worker(server, "reporter").await;
    let record = |name: &str| {
        json!({
            "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopRecord",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "account": "alice@example.com", "pollEvery": "5m",
                "remote": {"host": "pop.isp.example", "account": "a", "passwordSecretRef": {"name": "s"}},
            },
        })
    };
    server.apply(&record("reported").to_string()).succeeds();
    let whole = ["-n", "default", "rpoprecord", "reported"];
    let status = ["-n", "default", "rpoprecord", "reported", "--subresource=status"];

    let both = json!({"status": {"last": "AuthFailed"}, "spec": {"account": "mallory@example.com"}});
    worker.patches(server, &status, &both).succeeds();
    let found =
        server.kubectl(&["get", "rpop", "reported", "-o", "jsonpath={.status.last} {.spec.account}"]).stdout;
    assert_eq!(found, "AuthFailed alice@example.com");

    let spec = json!({"spec": {"account": "mallory@example.com"}});
    forbidden(worker.patches(server, &whole, &spec), "rpoprecords");
    forbidden(worker.creates(server, &record("another")), "rpoprecords");
    forbidden(worker.tries(server, &["-n", "default", "delete", "rpop", "reported"], ""), "rpoprecords");
    forbidden(worker.tries(server, &["get", "rpop", "-A"], ""), "rpoprecords");
    forbidden(worker.tries(server, &["get", "rpopdomains"], ""), "rpopdomains");
}

#[tokio::test]
async fn a_worker_takes_no_shard_and_hands_its_own_over_to_whom_the_leader_wants() {
    let Some(server) = installed() else { return };
    let (first, second) = (worker(server, "holder-1").await, worker(server, "holder-2").await);
    held_shard(server, "shard-001", "holder-1/0badcafe", "holder-2/11111111").await;
    let status = status_of("shard-001");

    // Another's, even where one is wanted next.
    let mine = json!({"status": {"holder": "holder-2/11111111", "epoch": 8}});
    forbidden(second.patches(server, &status, &mine), "held by \"holder-1/0badcafe\"");
    let report = json!({"status": {"observedSlices": {"shard-001-0": {"uid": "a-slice", "generation": 1}}}});
    forbidden(second.patches(server, &status, &report), "this is Pod \"holder-2\"");

    // The holder reports, and hands over to the wanted one alone.
    first.patches(server, &status, &report).succeeds();
    let friend = json!({"status": {"holder": "holder-3/22222222", "epoch": 8}});
    forbidden(first.patches(server, &status, &friend), "spec.desired and to nobody else");
    first.patches(server, &status, &mine).succeeds();
    forbidden(first.patches(server, &status, &report), "held by \"holder-2/11111111\"");
    second.patches(server, &status, &report).succeeds();

    // A container that was restarted in the same Pod is the same Pod.
    second.patches(server, &status, &json!({"status": {"holder": null, "epoch": 9}})).succeeds();
    // An empty one is the leader's to give away.
    let take = json!({"status": {"holder": "holder-2/11111111", "epoch": 10}});
    forbidden(second.patches(server, &status, &take), "the shard is held by \"\"");
    controller(server).await.patches(server, &status, &take).succeeds();

    // The rest of the shard, and the slices, are not a worker's at all.
    let spec = json!({"spec": {"desired": "holder-1/0badcafe"}});
    forbidden(first.patches(server, &["-n", SYSTEM, "rpopshard", "shard-001"], &spec), "rpopshards");
    forbidden(first.tries(server, &["-n", SYSTEM, "delete", "rpopshard", "shard-001"], ""), "rpopshards");
    let slice = json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopWorkSlice",
        "metadata": {"name": "shard-001-0", "namespace": SYSTEM}, "spec": {"format": 1, "shard": 1},
    });
    forbidden(first.creates(server, &slice), "rpopworkslices");
}

#[tokio::test]
async fn nobody_lowers_an_epoch() {
    let Some(server) = installed() else { return };
    let holder = worker(server, "epochs").await;
    held_shard(server, "shard-002", "epochs/0badcafe", "epochs/0badcafe").await;
    let status = status_of("shard-002");
    for lower in [json!({"status": {"epoch": 6}}), json!({"status": {"epoch": 0}})] {
        let error = holder.patches(server, &status, &lower).fails();
        assert!(error.contains("never falls"), "{error}");
        let error = controller(server).await.patches(server, &status, &lower).fails();
        assert!(error.contains("never falls"), "{error}");
    }
    holder.patches(server, &status, &json!({"status": {"epoch": 7, "holder": "epochs/0badcafe"}})).succeeds();
    let remove = r#"[{"op": "remove", "path": "/status"}]"#;
    let args = ["patch", "--type=json", "-p", remove];
    let error = controller(server).await.tries(server, &[&args[..], &status].concat(), "").fails();
    assert!(error.contains("never falls"), "{error}");
}

#[tokio::test]
async fn a_worker_renews_its_own_lease_only_and_not_under_a_stolen_identity() {
    let Some(server) = installed() else { return };
    let (first, second) = (worker(server, "member-1").await, worker(server, "member-2").await);
    let leader = controller(server).await;
    first.creates(server, &lease("rpop-worker-member-1", "member-1/0badcafe")).succeeds();
    leader.creates(server, &lease("rpop-controller", "controller-0/33333333")).succeeds();
    let own = ["-n", SYSTEM, "lease", "rpop-worker-member-1"];
    let identity = |holder: &str| json!({"spec": {"holderIdentity": holder}});

    forbidden(second.patches(server, &own, &identity("member-2/11111111")), "its own Lease");
    forbidden(second.creates(server, &lease("rpop-worker-member-3", "member-2/11111111")), "its own Lease");
    let theirs = lease("rpop-worker-member-2", "member-1/0badcafe");
    forbidden(second.creates(server, &theirs), "begins with the name");
    let election = ["-n", SYSTEM, "lease", "rpop-controller"];
    forbidden(first.patches(server, &election, &identity("member-1/0badcafe")), "its own Lease");
    forbidden(first.tries(server, &[&["delete"], &own[..]].concat(), ""), "leases");
    forbidden(first.tries(server, &["-n", SYSTEM, "get", "leases"], ""), "leases");
    let elsewhere = ["-n", "kube-system", "lease", "kube-scheduler"];
    forbidden(first.patches(server, &elsewhere, &identity("member-1/0badcafe")), "leases");

    leader.patches(server, &own, &identity("stolen/member-1/0badcafe")).succeeds();
    forbidden(first.patches(server, &own, &identity("member-1/0badcafe")), "was stolen");
    first.patches(server, &own, &identity("member-1/44444444")).succeeds();
}

#[tokio::test]
async fn a_token_that_no_pod_holds_is_no_workers() {
    let Some(server) = installed() else { return };
    worker(server, "unbound").await;
    held_shard(server, "shard-003", "unbound/0badcafe", "unbound/0badcafe").await;
    let token = server.kubectl(&["-n", SYSTEM, "create", "token", "rpop-worker"]).succeeds();
    let kubeconfig = server.kubeconfig("unbound-token", token.trim(), SYSTEM);
    let report = r#"{"status": {"observedSlices": {"shard-003-0": {"uid": "a-slice", "generation": 1}}}}"#;
    let args = [&["patch", "--type=merge", "-p", report], &status_of("shard-003")[..]].concat();
    forbidden(server.kubectl_as(&kubeconfig, &args, ""), "a token bound to its Pod");
    let own = lease("rpop-worker-unbound", "unbound/0badcafe").to_string();
    forbidden(server.kubectl_as(&kubeconfig, &["create", "-f", "-"], &own), "a token bound to its Pod");
}

#[tokio::test]
async fn of_all_config_maps_a_worker_writes_ledgers_only() {
    let Some(server) = installed() else { return };
    let worker = worker(server, "ledgers").await;
    server.apply(&map("aws-auth", "kube-system", None).to_string()).succeeds();
    // One under the name of a ledger that is somebody else's.
    server.apply(&map("rpop-uids-foreign", "default", None).to_string()).succeeds();
    let changed = json!({"data": {"a": "c"}});
    let why = "no ConfigMaps but ledgers";

    forbidden(worker.creates(server, &map("mine", "default", Some("mine"))), why);
    forbidden(worker.creates(server, &map("rpop-uids-mine", "default", None)), why);
    for (namespace, name) in [("kube-system", "aws-auth"), ("default", "rpop-uids-foreign")] {
        forbidden(worker.patches(server, &["-n", namespace, "configmap", name], &changed), why);
        forbidden(worker.tries(server, &["-n", namespace, "delete", "configmap", name], ""), why);
    }
    let adopted = json!({"metadata": {"labels": {"rpop.dev/ledger": "foreign"}}});
    forbidden(worker.patches(server, &["-n", "default", "configmap", "rpop-uids-foreign"], &adopted), why);

    let own = ["-n", "default", "configmap", "rpop-uids-first-isp"];
    worker.creates(server, &map("rpop-uids-first-isp", "default", Some("first-isp"))).succeeds();
    worker.patches(server, &own, &changed).succeeds();
    worker.tries(server, &[&["delete"], &own[..]].concat(), "").succeeds();
    forbidden(worker.tries(server, &["-n", "default", "get", "configmaps"], ""), "configmaps");
}

#[tokio::test]
async fn of_all_secrets_a_worker_writes_refresh_tokens_only() {
    let Some(server) = installed() else { return };
    let worker = worker(server, "tokens").await;
    let secret = |name: &str, namespace: &str, kind: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": kind,
            "metadata": {"name": name, "namespace": namespace}, "data": {"refreshToken": "cg=="},
        })
    };
    let (ours, why) = (format!("rpop-token-{}", "0a".repeat(20)), "no Secrets but refresh tokens");
    let foreign = format!("rpop-token-{}", "0b".repeat(20));
    server.apply(&secret("relay", SYSTEM, "Opaque").to_string()).succeeds();
    // One under the name of a token that is somebody else's.
    server.apply(&secret(&foreign, SYSTEM, "Opaque").to_string()).succeeds();
    let replace = |object: &Value| worker.tries(server, &["replace", "-f", "-"], &object.to_string());

    forbidden(worker.creates(server, &secret("mine", SYSTEM, "rpop.dev/token")), why);
    forbidden(worker.creates(server, &secret("rpop-token-x", SYSTEM, "rpop.dev/token")), why);
    forbidden(worker.creates(server, &secret(&ours, SYSTEM, "Opaque")), why);
    forbidden(replace(&secret("relay", SYSTEM, "Opaque")), why);
    forbidden(replace(&secret(&foreign, SYSTEM, "Opaque")), why);
    // Elsewhere it writes none at all.
    forbidden(worker.creates(server, &secret(&ours, "default", "rpop.dev/token")), "secrets");

    worker.creates(server, &secret(&ours, SYSTEM, "rpop.dev/token")).succeeds();
    replace(&secret(&ours, SYSTEM, "rpop.dev/token")).succeeds();
    forbidden(worker.tries(server, &["-n", SYSTEM, "delete", "secret", &ours], ""), "secrets");
}

#[tokio::test]
async fn refresh_tokens_are_kept_in_secrets_by_whoever_saw_the_newest() {
    let Some(server) = installed() else { return };
    let client = worker(server, "keeper").await.client().await;
    let (one, other) = (SecretTokens::new(client.clone(), SYSTEM), SecretTokens::new(client, SYSTEM));
    let id = TokenId {
        digest: [0xc5; 20],
        account: "alice@contoso.example".into(),
        token_url: "https://login.example/token".into(),
    };
    assert!(one.load(&id).await.unwrap().is_none());
    one.save(&id, "r1", None).await.unwrap();
    let seen = other.load(&id).await.unwrap().unwrap();
    assert_eq!(seen.token.as_str(), "r1");
    one.save(&id, "r2", Some(&seen.version)).await.unwrap();
    for before in [None, Some(&*seen.version)] {
        let error = other.save(&id, "r3", before).await.unwrap_err();
        assert!(matches!(error, TokenStoreError::Conflict(_)), "{error}");
    }
    let newest = other.load(&id).await.unwrap().unwrap();
    assert_eq!(newest.token.as_str(), "r2");

    // For people: whose it is. And what somebody spoiled is not no token.
    let name = SecretTokens::name(&id);
    let shown = ["-n", SYSTEM, "get", "secret", &name, "-o", "jsonpath={.metadata.annotations}{.type}"];
    let shown = server.kubectl(&shown).succeeds();
    assert!(shown.contains("alice@contoso.example") && shown.ends_with("rpop.dev/token"), "{shown}");
    let spoiled = r#"{"data": {"refreshToken": ""}}"#;
    server.kubectl(&["-n", SYSTEM, "patch", "secret", &name, "--type=merge", "-p", spoiled]).succeeds();
    assert!(matches!(one.load(&id).await, Err(TokenStoreError::Damaged(_))));

    // One that was deleted meanwhile is made anew only by who knows that.
    server.kubectl(&["-n", SYSTEM, "delete", "secret", &name]).succeeds();
    let error = other.save(&id, "r3", Some(&newest.version)).await.unwrap_err();
    assert!(matches!(error, TokenStoreError::Conflict(_)), "{error}");
    other.save(&id, "r3", None).await.unwrap();
    assert_eq!(one.load(&id).await.unwrap().unwrap().token.as_str(), "r3");
}

#[tokio::test]
async fn people_of_a_namespace_write_records_and_neither_they_nor_admins_write_shards() {
    let Some(server) = installed() else { return };
    let alice = server.pod_token("default", "alice", "alice").await;
    let args = ["-n", "default", "create", "rolebinding", "alice", "--clusterrole=rpop-user"];
    server.kubectl(&[&args[..], &["--serviceaccount=default:alice"]].concat()).succeeds();
    let record = json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopRecord",
        "metadata": {"name": "hers", "namespace": "default"},
        "spec": {
            "account": "alice@example.com", "pollEvery": "5m",
            "remote": {"host": "pop.isp.example", "account": "a", "passwordSecretRef": {"name": "s"}},
        },
    });
    alice.creates(server, &record).succeeds();
    alice.tries(server, &["-n", "default", "get", "rpop"], "").succeeds();
    let accepted = json!({"status": {"last": "2026-01-01T00:00:00Z"}});
    let status = ["-n", "default", "rpoprecord", "hers", "--subresource=status"];
    forbidden(alice.patches(server, &status, &accepted), "rpoprecords/status");
    for namespace in ["default", SYSTEM] {
        let mut hers = shard("shard-900", None);
        hers["metadata"]["namespace"] = json!(namespace);
        forbidden(alice.creates(server, &hers), "rpopshards");
    }

    // By hand, or from a backup, nobody does.
    forbidden(server.apply(&shard("shard-901", None).to_string()), "written by RPOP alone");
    held_shard(server, "shard-902", "somebody/0badcafe", "somebody/0badcafe").await;
    let taken = r#"{"status": {"holder": "me/0badcafe", "epoch": 8}}"#;
    let args = [&["patch", "--type=merge", "-p", taken], &status_of("shard-902")[..]].concat();
    forbidden(server.kubectl(&args), "written by RPOP alone");
    // Deleting is what an administrator may do, and an uninstallation must.
    server.kubectl(&["-n", SYSTEM, "delete", "rpopshard", "shard-902"]).succeeds();
}

/// The API server says which FlowSchema it took a request for.
#[tokio::test]
async fn what_a_fail_over_waits_for_does_not_queue_behind_the_rest_of_the_cluster() {
    let Some(server) = installed() else { return };
    let worker = worker(server, "hurried").await;
    worker.creates(server, &lease("rpop-worker-hurried", "hurried/0badcafe")).succeeds();
    let controller = server.pod_token(SYSTEM, "rpop-controller", "rpop-controller-hurried").await;
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases");
    let ours = format!("/apis/rpop.dev/v1alpha1/namespaces/{SYSTEM}");
    let renewed = format!("{leases}/rpop-worker-hurried");
    for (who, path, schema, level) in [
        (&worker, renewed, "rpop-leases", "leader-election"),
        (&controller, leases, "rpop-leases", "leader-election"),
        (&controller, format!("{ours}/rpopworkslices"), "rpop-shards", "workload-high"),
        (&worker, format!("{ours}/rpopshards"), "rpop-shards", "workload-high"),
        (&controller, "/apis/rpop.dev/v1alpha1/rpoprecords".to_owned(), "service-accounts", "workload-low"),
    ] {
        let answer = who.client().await.send(http_get(&path)).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let uid = |kind: &str, name: &str| {
            server.kubectl(&["get", kind, name, "-o", "jsonpath={.metadata.uid}"]).succeeds()
        };
        assert_eq!(header("x-kubernetes-pf-flowschema-uid"), uid("flowschema", schema), "{path}");
        let taken = header("x-kubernetes-pf-prioritylevel-uid");
        assert_eq!(taken, uid("prioritylevelconfiguration", level), "{path}");
    }
}

fn http_get(path: &str) -> hyper::Request<kube::client::Body> {
    hyper::Request::get(path).body(kube::client::Body::empty()).unwrap()
}
