//! What people may do with records: users with the roles that `deploy/` brings
//! along, impersonated on a real API server, and the policy that holds a
//! namespace to the accounts that its RpopDomain gives it.

use kube::api::{Api, Patch, PatchParams};
use rpop::api::RpopDomain;
use serde_json::{Value, json};

use crate::parts::{PATIENCE, wait_for};
use crate::policies::installed;
use crate::support::{Answer, SYSTEM, Server, namespace};

/// Somebody, of no group but everybody's.
#[derive(Clone, Copy)]
struct Person<'s> {
    server: &'s Server,
    name: &'static str,
}

impl Person<'_> {
    fn tries(self, args: &[&str], input: &str) -> Answer {
        let all = [&["--as", self.name, "--as-group", "system:authenticated"], args].concat();
        self.server.kubectl_as(&self.server.admin_kubeconfig, &all, input)
    }

    fn creates(self, object: &Value) -> Answer {
        self.tries(&["create", "-f", "-"], &object.to_string())
    }

    fn tries_to_create(self, object: &Value) -> Answer {
        self.tries(&["create", "--dry-run=server", "-f", "-"], &object.to_string())
    }

    /// `what` is like `-n NAMESPACE KIND NAME`.
    fn patches(self, what: &[&str], patch: &Value) -> Answer {
        let patch = patch.to_string();
        self.tries(&[&["patch", "--type=merge", "-p", &patch], what].concat(), "")
    }

    /// By a RoleBinding in that namespace; by a ClusterRoleBinding without one.
    fn is_bound(self, role: &str, namespace: Option<&str>) {
        let name = format!("{}-{role}-{}", self.name, namespace.unwrap_or("all"));
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={}", self.name));
        let args = match namespace {
            Some(namespace) => vec!["-n", namespace, "create", "rolebinding", &name, &role, &user],
            None => vec!["create", "clusterrolebinding", &name, &role, &user],
        };
        self.server.kubectl(&args).succeeds();
    }
}

fn record(namespace: &str, name: &str, account: &str) -> Value {
    json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopRecord",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "account": account, "pollEvery": "5m",
            "remote": {"host": "pop.isp.example", "account": "a", "passwordSecretRef": {"name": "s"}},
        },
    })
}

fn domain(name: &str, aliases: &[&str], allow: &Value) -> Value {
    json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopDomain", "metadata": {"name": name},
        "spec": {"aliases": aliases, "delivery": {"smtp": {"host": "mail.example"}}, "allow": allow},
    })
}

/// The accounts of a namespace, by its name.
fn named(namespace: &str, accounts: &[&str]) -> Value {
    json!({"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}, "accounts": accounts})
}

fn forbidden(answer: Answer, why: &str) {
    let error = answer.fails();
    assert!(error.contains("forbidden") || error.contains("Forbidden"), "{error}");
    assert!(error.contains(why), "{error}");
}

/// As the cluster's administrator, and without doing it.
fn would_create(server: &Server, record: &Value) -> Answer {
    let args = ["create", "--dry-run=server", "-f", "-"];
    server.kubectl_as(&server.admin_kubeconfig, &args, &record.to_string())
}

/// A policy's parameters and the labels of namespaces come to it by watches.
fn comes_to_be_refused(server: &Server, record: &Value, why: &str) {
    wait_for("the policy to refuse it", PATIENCE, || {
        would_create(server, record).stderr.contains(why).then_some(())
    });
}

fn comes_to_be_taken(server: &Server, record: &Value) {
    wait_for("the policy to let it pass", PATIENCE, || would_create(server, record).success.then_some(()));
}

const NOT_ALLOWED: &str = "may not create records for";

#[tokio::test]
async fn people_manage_the_records_of_their_namespace_and_nobody_elses() {
    let Some(server) = installed() else { return };
    let client = server.client().await;
    let (a, b) = (namespace(&client).await, namespace(&client).await);
    let allow = json!([named(&a, &["alice", "sales-*"]), named(&b, &["bob"])]);
    server.apply(&domain("people.example", &[], &allow).to_string()).succeeds();
    let person = |name| Person { server, name };
    let (alice, bob, vera) = (person("alice"), person("bob"), person("vera"));
    alice.is_bound("rpop-user", Some(&a));
    bob.is_bound("rpop-user", Some(&b));
    vera.is_bound("rpop-viewer", Some(&a));
    comes_to_be_refused(server, &record(&a, "probe", "bob@people.example"), NOT_ALLOWED);

    // Their own.
    alice.creates(&record(&a, "hers", "alice@people.example")).succeeds();
    alice.creates(&record(&a, "sales", "Sales-EU@People.Example")).succeeds();
    let hers = ["-n", &a, "rpoprecord", "hers"];
    alice.patches(&hers, &json!({"spec": {"pollEvery": "10m"}})).succeeds();
    let table = alice.tries(&["-n", &a, "get", "rpop"], "").succeeds();
    assert!(table.contains("hers") && table.contains("10m"), "{table}");
    alice.tries(&["-n", &a, "delete", "rpop", "sales"], "").succeeds();

    // Others', neither to see nor to touch.
    bob.creates(&record(&b, "his", "bob@people.example")).succeeds();
    let his = ["-n", &b, "rpoprecord", "his"];
    forbidden(alice.tries(&["-n", &b, "get", "rpop"], ""), "rpoprecords");
    forbidden(alice.tries(&["get", "rpop", "-A"], ""), "rpoprecords");
    forbidden(alice.creates(&record(&b, "more", "bob@people.example")), "rpoprecords");
    forbidden(alice.patches(&his, &json!({"spec": {"account": "alice@people.example"}})), "rpoprecords");
    forbidden(alice.tries(&["-n", &b, "delete", "rpop", "his"], ""), "rpoprecords");
    forbidden(alice.tries(&["-n", &b, "delete", "rpop", "--all"], ""), "rpoprecords");

    // Nor others' mail, by a record in their own namespace.
    let why = format!(
        "namespace {a} may not create records for bob@people.example: whoever owns RpopDomain people.example can write there allow: [{{namespaces: {{matchLabels: {{kubernetes.io/metadata.name: {a}}}}}, accounts: [\"bob\"]}}]"
    );
    forbidden(alice.creates(&record(&a, "theft", "bob@people.example")), &why);
    forbidden(alice.patches(&hers, &json!({"spec": {"account": "bob@people.example"}})), &why);
    forbidden(
        alice.tries(&["apply", "-f", "-"], &record(&a, "hers", "bob@people.example").to_string()),
        &why,
    );

    // A viewer reads.
    let seen =
        vera.tries(&["-n", &a, "get", "rpop", "hers", "-o", "jsonpath={.spec.account}"], "").succeeds();
    assert_eq!(seen, "alice@people.example");
    forbidden(vera.tries(&["-n", &b, "get", "rpop"], ""), "rpoprecords");
    forbidden(vera.creates(&record(&a, "veras", "alice@people.example")), "rpoprecords");
    forbidden(vera.patches(&hers, &json!({"spec": {"paused": true}})), "rpoprecords");
    forbidden(vera.tries(&["-n", &a, "delete", "rpop", "hers"], ""), "rpoprecords");

    // Of the cluster's own objects none of them has any.
    for kind in ["rpopdomains", "rpopsettings"] {
        for person in [alice, vera] {
            forbidden(person.tries(&["get", kind], ""), kind);
        }
    }
    let mut grab = domain("grab.example", &[], &json!([named(&a, &["*"])]));
    forbidden(alice.creates(&grab), "rpopdomains");
    grab["metadata"]["name"] = json!("people.example");
    forbidden(alice.tries(&["replace", "-f", "-"], &grab.to_string()), "rpopdomains");
}

#[tokio::test]
async fn nobody_but_rpop_writes_what_it_says_of_records_or_works_by() {
    let Some(server) = installed() else { return };
    let client = server.client().await;
    let own = namespace(&client).await;
    let owner = Person { server, name: "owner" };
    // Rights to everything in the namespace do not help.
    let all = ["-n", &own, "create", "role", "everything", "--verb=*", "--resource=*.rpop.dev"];
    server.kubectl(&all).succeeds();
    let status =
        ["-n", &own, "create", "role", "statuses", "--verb=*", "--resource=rpoprecords.rpop.dev/status"];
    server.kubectl(&status).succeeds();
    for role in ["everything", "statuses"] {
        let (role, user) = (format!("--role={role}"), "--user=owner");
        server.kubectl(&["-n", &own, "create", "rolebinding", &role[7..], &role, user]).succeeds();
    }
    owner.is_bound("rpop-admin", Some(&own));
    owner.creates(&record(&own, "one", "alice@nowhere.example")).succeeds();
    let status = ["-n", &own, "rpoprecord", "one", "--subresource=status"];
    let lie = json!({"status": {"last": "2026-01-01T00:00:00Z"}});
    let alone = "a status is written by RPOP alone";
    forbidden(owner.patches(&status, &lie), alone);
    // It is no part of what is created either.
    let mut born = record(&own, "born", "alice@nowhere.example");
    born["status"] = lie["status"].clone();
    owner.creates(&born).succeeds();
    let last = ["-n", &own, "get", "rpop", "born", "-o", "jsonpath={.status.last}"];
    assert_eq!(owner.tries(&last, "").succeeds(), "");
    for (kind, spec) in
        [("RpopShard", json!({"slices": 1})), ("RpopWorkSlice", json!({"format": 1, "shard": 1}))]
    {
        let object = json!({
            "apiVersion": "rpop.dev/v1alpha1", "kind": kind,
            "metadata": {"name": "shard-903", "namespace": SYSTEM}, "spec": spec,
        });
        forbidden(owner.creates(&object), &format!("{}s", kind.to_lowercase()));
        // Not even the cluster's administrator.
        forbidden(server.apply(&object.to_string()), "written by RPOP alone");
    }
    server.apply(&domain("status.example", &[], &json!([])).to_string()).succeeds();
    let settings = r#"{"apiVersion": "rpop.dev/v1alpha1", "kind": "RpopSettings", "metadata": {"name": "default"}, "spec": {}}"#;
    server.apply(settings).succeeds();
    let said = json!({"status": {"observedGeneration": 1}}).to_string();
    for what in [&["rpopdomain", "status.example"][..], &["rpopsettings", "default"], &status[..4]] {
        let args = [&["patch", "--type=merge", "--subresource=status", "-p", &said], what].concat();
        forbidden(server.kubectl(&args), alone);
    }
    says_of_domain(server, "status.example", &json!({"observedGeneration": 1})).await;
}

/// What the controller writes there.
async fn says_of_domain(server: &Server, name: &str, status: &Value) {
    let controller = server.pod_token(SYSTEM, "rpop-controller", "says-so").await;
    let domains: Api<RpopDomain> = Api::all(controller.client().await);
    let patch = Patch::Merge(json!({"status": status}));
    domains.patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn who_runs_the_mail_system_writes_domains_and_settings() {
    let Some(server) = installed() else { return };
    let own = namespace(&server.client().await).await;
    let (chief, local) = (Person { server, name: "chief" }, Person { server, name: "local" });
    chief.is_bound("rpop-admin", None);
    local.is_bound("rpop-admin", Some(&own));
    let theirs = domain("chief.example", &[], &json!([named(&own, &["*"])]));
    chief.creates(&theirs).succeeds();
    chief.patches(&["rpopdomain", "chief.example"], &json!({"spec": {"postmaster": "chief"}})).succeeds();
    chief.tries(&["get", "rpopdomains,rpopsettings"], "").succeeds();
    for kind in ["rpoprecords", "rpopshards", "rpopworkslices"] {
        chief.tries(&["get", kind, "-A"], "").succeeds();
    }
    forbidden(local.tries(&["get", "rpopdomains"], ""), "rpopdomains");
    forbidden(local.creates(&domain("local.example", &[], &json!([]))), "rpopdomains");
    local.creates(&record(&own, "theirs", "chief@chief.example")).succeeds();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_of_a_namespace_bring_those_of_records_along() {
    let Some(server) = installed() else { return };
    let own = namespace(&server.client().await).await;
    // It fills aggregated roles.
    let _manager = server.controller_manager();
    let person = |name| Person { server, name };
    let (editor, viewer, admin) = (person("editor"), person("viewer"), person("steward"));
    for (person, role) in [(editor, "edit"), (viewer, "view"), (admin, "admin")] {
        person.is_bound(role, Some(&own));
        wait_for("the roles to be filled", PATIENCE, || {
            person.tries(&["-n", &own, "get", "rpop"], "").success.then_some(())
        });
    }
    for (person, name) in [(editor, "of-editor"), (admin, "of-steward")] {
        wait_for("the roles to be filled", PATIENCE, || {
            person.tries_to_create(&record(&own, name, "a@nowhere.example")).success.then_some(())
        });
        person.creates(&record(&own, name, "a@nowhere.example")).succeeds();
        person.tries(&["-n", &own, "delete", "rpop", name], "").succeeds();
    }
    forbidden(viewer.creates(&record(&own, "of-viewer", "a@nowhere.example")), "rpoprecords");
    for person in [editor, viewer, admin] {
        forbidden(person.tries(&["get", "rpopdomains"], ""), "rpopdomains");
    }
}

/// The same pairs that `controller::allow` decides by, and some of those that
/// its own tests have.
#[tokio::test]
async fn accounts_are_allowed_by_labels_and_patterns_as_the_controller_reads_them() {
    let Some(server) = installed() else { return };
    let client = server.client().await;
    let (a, b) = (namespace(&client).await, namespace(&client).await);
    let label = |namespace: &str, label: &str| {
        server.kubectl(&["label", "--overwrite", "namespace", namespace, label]).succeeds();
    };
    label(&a, "team=red");
    let rules = |rules: Value| json!({"matchExpressions": rules});
    let allow = json!([
        {"namespaces": rules(json!([{"key": "team", "operator": "In", "values": ["red", "blue"]}])), "accounts": ["in"]},
        {"namespaces": rules(json!([{"key": "team", "operator": "NotIn", "values": ["red"]}])), "accounts": ["notin"]},
        {"namespaces": rules(json!([{"key": "team", "operator": "Exists"}])), "accounts": ["exists"]},
        {"namespaces": rules(json!([{"key": "team", "operator": "DoesNotExist"}])), "accounts": ["without"]},
        {"namespaces": {"matchLabels": {"team": "red"}, "matchExpressions": [{"key": "floor", "operator": "Exists"}]}, "accounts": ["both"]},
        {"namespaces": {}, "accounts": ["everybody", "a*b*c", "sales-*", "*-eu", "a.c", "x\\Ey", "ab*ba", "[a]+"]},
    ]);
    server.apply(&domain("labels.example", &[], &allow).to_string()).succeeds();
    let told = |namespace: &str, local: &str| record(namespace, "probe", &format!("{local}@labels.example"));
    comes_to_be_refused(server, &told(&a, "nobody"), NOT_ALLOWED);
    comes_to_be_taken(server, &told(&a, "in"));
    for (namespace, local, taken) in [
        (&a, "in", true),
        (&b, "in", false),
        (&a, "notin", false),
        (&b, "notin", true),
        (&a, "exists", true),
        (&b, "exists", false),
        (&a, "without", false),
        (&b, "without", true),
        (&a, "both", false),
        (&b, "EVERYbody", true),
        (&b, "everybody2", false),
        (&a, "a1b2c", true),
        (&a, "acb", false),
        (&a, "sales-eu", true),
        (&a, "presales-", false),
        (&a, "x-eu", true),
        (&a, "a.c", true),
        (&a, "axc", false),
        (&a, "x\\ey", true),
        (&a, "aba", false),
        (&a, "[a]+", true),
        (&a, "aa", false),
    ] {
        let answer = would_create(server, &told(namespace, local));
        assert_eq!(
            answer.success,
            taken,
            "{local} in {}: {}",
            if namespace == &a { "a" } else { "b" },
            answer.stderr
        );
        assert!(taken || answer.stderr.contains(NOT_ALLOWED), "{local}: {}", answer.stderr);
    }
    label(&a, "floor=1");
    comes_to_be_taken(server, &told(&a, "both"));
}

#[tokio::test]
async fn without_allow_an_account_is_for_the_system_namespace_alone() {
    let Some(server) = installed() else { return };
    let own = namespace(&server.client().await).await;
    // Nobody knows its domain yet: the controller will.
    server.apply(&record(&own, "early", "a@later.example").to_string()).succeeds();
    server.apply(&domain("later.example", &[], &json!([])).to_string()).succeeds();
    comes_to_be_refused(server, &record(&own, "late", "a@later.example"), NOT_ALLOWED);
    server.apply(&record(SYSTEM, "ours", "a@later.example").to_string()).succeeds();

    // One that is no longer allowed can still be paused, freed of finalizers
    // and removed, but not given to another account.
    let early = ["-n", &own, "rpoprecord", "early"];
    let change =
        |patch: &str| server.kubectl(&[&["patch", "--type=merge", "-p", patch], &early[..]].concat());
    change(r#"{"metadata": {"finalizers": ["rpop.dev/test"]}, "spec": {"paused": true}}"#).succeeds();
    forbidden(change(r#"{"spec": {"account": "b@later.example"}}"#), NOT_ALLOWED);
    server.kubectl(&[&["delete", "--wait=false"], &early[..]].concat()).succeeds();
    change(r#"{"metadata": {"finalizers": null}}"#).succeeds();
    wait_for("it to be gone", PATIENCE, || {
        server
            .kubectl(&[&["get", "--ignore-not-found"], &early[..]].concat())
            .succeeds()
            .is_empty()
            .then_some(())
    });
}

#[tokio::test]
async fn an_alias_counts_once_it_is_known_whose_it_is() {
    let Some(server) = installed() else { return };
    let own = namespace(&server.client().await).await;
    let made = server
        .apply(&domain("first.example", &["Alias.Example"], &json!([named(&own, &["me"])])).to_string());
    made.succeeds();
    let not_mine = record(&own, "probe", "you@alias.example");
    comes_to_be_refused(server, &record(&own, "probe", "you@first.example"), NOT_ALLOWED);
    would_create(server, &not_mine).succeeds();
    let says = |message: &str| {
        json!({"observedGeneration": 1, "conditions": [{
            "type": "Accepted", "status": "True", "reason": "Accepted", "message": message,
            "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]})
    };
    says_of_domain(server, "first.example", &says("complete and allowed")).await;
    comes_to_be_refused(server, &not_mine, "whoever owns RpopDomain first.example");
    would_create(server, &record(&own, "probe", "me@alias.example")).succeeds();
    // Another domain has it: that one's allow decides.
    let taken =
        says("accepted, but: spec.aliases: alias.example belongs to RpopDomain older.example already");
    says_of_domain(server, "first.example", &taken).await;
    comes_to_be_taken(server, &not_mine);
}
