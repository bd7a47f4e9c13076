//! The controller on a real API server, with the rights of its own
//! ServiceAccount and no others.

mod statuses;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::events::v1::Event;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rpop::api::{RpopDomain, RpopRecord, RpopSettings, RpopShard, RpopWorkSlice};
use rpop::controller::{self, Options};
use rpop::domain::shards::timing::Timing;
use rpop::engine::ports::Stage;
use rpop::k8s::client::Cluster;
use rpop::telemetry::http::Health;
use rpop::telemetry::metrics::Metrics;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{Server, eventually, namespace};

const SYSTEM: &str = "rpop-system";

/// An API server with the roles that `deploy/` gives the controller.
struct Installation {
    server: Server,
    client: Client,
}

/// A controller, as in a pod of that name.
struct Controller {
    stop: watch::Sender<Stage>,
    task: JoinHandle<Result<(), controller::Error>>,
}

impl Controller {
    /// SIGTERM.
    async fn ends(self) {
        self.stop.send_replace(Stage::Draining);
        self.task.await.unwrap().unwrap();
    }

    /// kill -9.
    async fn killed(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

impl Installation {
    async fn new() -> Option<Self> {
        let server = Server::start()?;
        let client = server.client().await;
        for file in ["namespace.yaml", "rbac.yaml"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
            server.kubectl(&["apply", "-f", path.to_str().unwrap()]).succeeds();
        }
        Some(Self { server, client })
    }

    async fn controller(&self, pod: &str, shards: u16) -> Controller {
        self.controller_behind(pod, shards, |client| client).await
    }

    /// One whose requests go another way.
    async fn controller_behind(
        &self,
        pod: &str,
        shards: u16,
        way: impl FnOnce(Client) -> Client,
    ) -> Controller {
        let identity = self.server.pod_token(SYSTEM, "rpop-controller", pod).await;
        let kubeconfig = Kubeconfig::read_from(&identity.kubeconfig).unwrap();
        let config =
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        let mut cluster = Cluster::with(config, pod, SYSTEM).unwrap();
        cluster.client = way(cluster.client);
        let (stop, stage) = watch::channel(Stage::Running);
        let options = Options { timing: Timing::FAST, shards };
        let (metrics, health) = (Arc::new(Metrics::new()), Arc::new(Health::default()));
        let task = tokio::spawn(controller::run(cluster, options, stage, metrics, health));
        Controller { stop, task }
    }

    fn apply(&self, object: &Value) {
        self.server.apply(&object.to_string()).succeeds();
    }

    fn domain(&self, name: &str, more: &Value) {
        let mut spec = json!({"delivery": {"smtp": {"host": "mx.example.com"}}});
        merge(&mut spec, more);
        self.apply(&json!({"apiVersion": "rpop.dev/v1alpha1", "kind": "RpopDomain", "metadata": {"name": name}, "spec": spec}));
    }

    fn record(&self, namespace: &str, name: &str, more: &Value) {
        self.apply(&record(namespace, name, more));
    }

    /// Waits until the record's `Accepted` says so, with a message that has
    /// all these parts.
    async fn accepted(&self, namespace: &str, name: &str, status: &str, reason: &str, parts: &[&str]) {
        let records: Api<RpopRecord> = Api::namespaced(self.client.clone(), namespace);
        let seen = std::cell::RefCell::new(String::new());
        let watched = format!("{namespace}/{name} to be {status} {reason} {parts:?}");
        let waiting = eventually(&watched, || async {
            let record = records.get_opt(name).await.ok().flatten()?;
            let generation = record.metadata.generation;
            let status_of = record.status.unwrap_or_default();
            *seen.borrow_mut() = format!("{status_of:?}");
            let said = status_of.conditions.iter().find(|said| said.type_ == "Accepted")?;
            let refusal = status_of.last_error.as_ref().map(|error| (&*error.code, &*error.message));
            let last = match status {
                "False" => {
                    status_of.last.as_deref() == Some(reason) && refusal == Some((reason, &*said.message))
                }
                _ => refusal.is_none(),
            };
            let good = last
                && said.status == status
                && said.reason == reason
                && said.observed_generation == generation
                && status_of.observed_generation == generation
                && (status == "True") == status_of.shard.is_some()
                && parts.iter().all(|part| said.message.contains(part));
            good.then_some(())
        });
        tokio::select! {
            () = waiting => {}
            () = tokio::time::sleep(std::time::Duration::from_secs(50)) => {
                panic!("{watched}; it is {}", seen.borrow())
            }
        }
    }

    /// The items of all slices: where each record is.
    async fn items(&self) -> BTreeMap<String, Vec<(String, Value)>> {
        let slices: Api<RpopWorkSlice> = Api::namespaced(self.client.clone(), SYSTEM);
        let mut all: BTreeMap<String, Vec<(String, Value)>> = BTreeMap::new();
        for slice in slices.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            for item in &slice.spec.items {
                let key =
                    format!("{}/{}", item["namespace"].as_str().unwrap(), item["name"].as_str().unwrap());
                all.entry(key).or_default().push((slice.metadata.name.clone().unwrap(), item.clone()));
            }
        }
        all
    }

    /// Waits until the slices hold exactly these records, each once.
    async fn holds(&self, records: &[&str]) {
        let wanted: BTreeSet<&str> = records.iter().copied().collect();
        eventually(&format!("the slices to hold {records:?}"), || async {
            let items = self.items().await;
            let once = items.values().all(|places| places.len() == 1);
            (once && items.keys().map(String::as_str).collect::<BTreeSet<_>>() == wanted).then_some(())
        })
        .await;
    }

    /// Says of a record what a worker says, as a worker.
    async fn polled(&self, namespace: &str, name: &str, status: &Value) {
        let records: Api<RpopRecord> = Api::namespaced(self.client.clone(), namespace);
        let object = json!({
            "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopRecord",
            "metadata": {"name": name}, "status": status,
        });
        let worker = PatchParams::apply("rpop-worker").force();
        records.patch_status(name, &worker, &Patch::Apply(object)).await.unwrap();
    }

    async fn event(&self, namespace: &str, name: &str, reason: &str) -> String {
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        eventually(&format!("an Event {reason} of {namespace}/{name}"), || async {
            let all = events.list(&ListParams::default()).await.ok()?;
            let about = |event: &Event| {
                event.reason.as_deref() == Some(reason)
                    && event.regarding.as_ref().and_then(|object| object.name.as_deref()) == Some(name)
            };
            all.items.into_iter().find(about)?.note
        })
        .await
    }
}

fn merge(spec: &mut Value, more: &Value) {
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
}

fn record(namespace: &str, name: &str, more: &Value) -> Value {
    let mut spec = json!({
        "account": "alice@example.com",
        "pollEvery": "5m",
        "remote": {"host": "pop.isp.example", "account": name, "passwordSecretRef": {"name": "isp"}},
    });
    merge(&mut spec, more);
    json!({
        "apiVersion": "rpop.dev/v1alpha1",
        "kind": "RpopRecord",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn records_become_work_and_say_why_when_they_do_not() {
    let Some(all) = Installation::new().await else { return };
    let team = namespace(&all.client).await;
    let controller = all.controller("controller-0", 4).await;

    // No domain yet; then one that allows nobody; then one that allows.
    all.record(&team, "first", &json!({}));
    all.accepted(&team, "first", "False", "DomainMissing", &["there is no RpopDomain example.com"]).await;
    assert!(all.event(&team, "first", "DomainMissing").await.contains("RpopDomain example.com"));
    all.domain("example.com", &json!({}));
    all.accepted(&team, "first", "False", "NotAllowed", &[&team, "alice@example.com", "allow: ["]).await;
    let table = all.server.kubectl(&["get", "rpop", "-n", &team]).succeeds();
    let line = table.lines().nth(1).unwrap();
    assert!(line.contains("NotAllowed") && line.contains("False"), "Last and Ready:\n{table}");
    all.holds(&[]).await;
    let labelled = json!({"allow": [{"namespaces": {"matchLabels": {"team": "a"}}, "accounts": ["ali*"]}]});
    all.domain("example.com", &labelled);
    all.server.kubectl(&["label", "namespace", &team, "team=a"]).succeeds();
    all.accepted(&team, "first", "True", "Accepted", &[]).await;
    all.event(&team, "first", "Accepted").await;
    let first = format!("{team}/first");
    all.holds(&[&first]).await;

    // What a worker says stands, until the record is refused: also behind a
    // worker that was not done by then.
    let records: Api<RpopRecord> = Api::namespaced(all.client.clone(), &team);
    let last = || async { records.get("first").await.unwrap().status.unwrap().last };
    let wrong =
        json!({"last": "AuthFailed", "lastError": {"code": "AuthFailed", "message": "no", "count": 2}});
    all.polled(&team, "first", &wrong).await;
    all.server.kubectl(&["label", "namespace", &team, "team-"]).succeeds();
    all.accepted(&team, "first", "False", "NotAllowed", &[]).await;
    all.polled(&team, "first", &json!({"last": "2030-01-01T00:00:00Z"})).await;
    all.accepted(&team, "first", "False", "NotAllowed", &[]).await;
    all.server.kubectl(&["label", "namespace", &team, "team=a"]).succeeds();
    all.accepted(&team, "first", "True", "Accepted", &[]).await;
    assert_eq!(last().await, None);
    all.polled(&team, "first", &json!({"last": "2031-01-01T00:00:00Z"})).await;
    all.accepted(&team, "first", "True", "Accepted", &[]).await;
    assert_eq!(last().await.as_deref(), Some("2031-01-01T00:00:00Z"));

    // A change reaches the slice; a paused record stays, without an interval.
    all.record(&team, "first", &json!({"pollEvery": "10m", "leave": true}));
    all.accepted(&team, "first", "True", "Accepted", &[]).await;
    let item = all.items().await[&first][0].1.clone();
    assert_eq!((item["interval"].as_u64(), item["leave"].as_bool()), (Some(600_000), Some(true)));
    assert_eq!(item["remote"]["password"]["name"], "isp", "a reference, not the secret");
    all.record(&team, "first", &json!({"paused": true}));
    all.accepted(&team, "first", "True", "Accepted", &[]).await;
    assert!(all.items().await[&first][0].1.get("interval").is_none());
    let ready = records.get("first").await.unwrap().status.unwrap().conditions;
    assert!(ready.iter().any(|said| said.type_ == "Ready" && said.reason == "Paused"), "{ready:?}");
    all.record(&team, "first", &json!({}));

    // Another account than the pair names; labels that go away and come back.
    all.record(&team, "second", &json!({"account": "bob@example.com"}));
    all.accepted(&team, "second", "False", "NotAllowed", &["bob@example.com"]).await;
    all.server.kubectl(&["label", "namespace", &team, "team-"]).succeeds();
    all.accepted(&team, "first", "False", "NotAllowed", &[]).await;
    all.holds(&[]).await;
    all.server.kubectl(&["label", "namespace", &team, "team=a"]).succeeds();
    all.accepted(&team, "first", "True", "Accepted", &[]).await;
    all.holds(&[&first]).await;

    // What cannot be done is refused with what to write.
    all.record(&team, "third", &json!({"mailbox": "Archive"}));
    all.accepted(&team, "third", "False", "ConfigInvalid", &["mailbox needs delivery.lmtp"]).await;
    all.record(&team, "third", &json!({"apop": true}));
    all.accepted(&team, "third", "True", "Accepted", &["apop has no effect"]).await;
    all.apply(&json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopSettings", "metadata": {"name": "default"},
        "spec": {"useApop": true, "mainDomain": "nowhere.example"},
    }));
    all.accepted(&team, "third", "True", "Accepted", &["complete and allowed"]).await;
    let settings: Api<RpopSettings> = Api::all(all.client.clone());
    eventually("the settings to say what is wrong", || async {
        let status = settings.get("default").await.ok()?.status?;
        let said = status.conditions.into_iter().find(|said| said.type_ == "Accepted")?;
        (said.status == "False" && said.message.contains("there is no RpopDomain nowhere.example"))
            .then_some(())
    })
    .await;

    // A Maildir is for one machine.
    all.server.kubectl(&["delete", "rpopdomain", "example.com"]).succeeds();
    all.accepted(&team, "first", "False", "DomainMissing", &[]).await;
    all.apply(&json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopDomain", "metadata": {"name": "example.com"},
        "spec": {"delivery": {"maildir": {"path": "/m/{local}"}}, "allow": labelled["allow"]},
    }));
    all.accepted(&team, "first", "False", "ConfigInvalid", &["RpopDomain example.com has errors"]).await;
    let domains: Api<RpopDomain> = Api::all(all.client.clone());
    eventually("the domain to say what is wrong", || async {
        let status = domains.get("example.com").await.ok()?.status?;
        let said = status.conditions.into_iter().find(|said| said.type_ == "Accepted")?;
        (said.status == "False" && said.message.contains("write smtp or lmtp")).then_some(())
    })
    .await;
    all.server.kubectl(&["delete", "rpopdomain", "example.com"]).succeeds();
    all.domain("example.com", &labelled);
    all.accepted(&team, "first", "True", "Accepted", &[]).await;
    let third = format!("{team}/third");
    all.holds(&[&first, &third]).await;

    // Never removes, delete removes, and nothing is left of either.
    all.record(&team, "third", &json!({"pollEvery": "Never"}));
    eventually("the record to be removed", || async {
        records.get_opt("third").await.unwrap().is_none().then_some(())
    })
    .await;
    all.event(&team, "third", "Removed").await;
    records.delete("first", &DeleteParams::default()).await.unwrap();
    all.holds(&[]).await;
    controller.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_broken_costs_only_itself() {
    let Some(mut all) = Installation::new().await else { return };
    let open = json!({"allow": [{"namespaces": {}, "accounts": ["*"]}]});
    all.domain("example.com", &open);
    let team = namespace(&all.client).await;
    let odd = json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopRecord",
        "metadata": {"name": "odd", "namespace": &*team},
        "spec": {"account": 5},
    });
    all.server.store_unchecked("rpoprecords", &odd);
    let controller = all.controller("controller-0", 4).await;
    for number in 0..20 {
        all.record(&team, &format!("good-{number}"), &json!({}));
    }
    let good: Vec<String> = (0..20).map(|number| format!("{team}/good-{number}")).collect();
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    all.holds(&good).await;
    let note = all.event(&team, "odd", "ConfigInvalid").await;
    assert!(note.contains("cannot be read by this version"), "{note}");

    // The CRD is removed, and with it all records; put back, they can be too.
    all.server.remove_crd("rpoprecords");
    all.holds(&[]).await;
    all.server.apply_crds();
    all.record(&team, "again", &json!({}));
    all.holds(&[&format!("{team}/again")]).await;
    all.accepted(&team, "again", "True", "Accepted", &[]).await;

    // So is that of the shards: they are made again.
    all.server.remove_crd("rpopshards");
    all.server.apply_crds();
    let shards: Api<RpopShard> = Api::namespaced(all.client.clone(), SYSTEM);
    eventually("the shards to be made again", || async {
        (shards.list(&ListParams::default()).await.ok()?.items.len() == 4).then_some(())
    })
    .await;
    all.record(&team, "more", &json!({}));
    all.holds(&[&format!("{team}/again"), &format!("{team}/more")]).await;

    // A namespace that is being deleted has no work; others go on. Nobody
    // empties it here, so that it stays as it is.
    let other = namespace(&all.client).await;
    all.record(&other, "last", &json!({}));
    all.accepted(&other, "last", "True", "Accepted", &[]).await;
    let namespaces: Api<Namespace> = Api::all(all.client.clone());
    namespaces.delete(&other, &DeleteParams::default()).await.unwrap();
    all.accepted(&other, "last", "False", "NotAllowed", &["is being deleted"]).await;
    all.holds(&[&format!("{team}/again"), &format!("{team}/more")]).await;
    controller.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_controllers_leads_and_the_other_takes_over() {
    let Some(all) = Installation::new().await else { return };
    all.domain("example.com", &json!({}));
    let first = all.controller("controller-0", 4).await;
    all.record(SYSTEM, "a", &json!({}));
    all.accepted(SYSTEM, "a", "True", "Accepted", &[]).await;
    // It is told another number of shards, and keeps to what there is.
    let second = all.controller("controller-1", 8).await;
    first.killed().await;
    all.record(SYSTEM, "b", &json!({}));
    all.accepted(SYSTEM, "b", "True", "Accepted", &[]).await;
    all.holds(&["rpop-system/a", "rpop-system/b"]).await;
    let shards: Api<RpopShard> = Api::namespaced(all.client.clone(), SYSTEM);
    assert_eq!(shards.list(&ListParams::default()).await.unwrap().items.len(), 4);

    // What somebody made beyond them is removed, and its record moves.
    let slices: Api<RpopWorkSlice> = Api::namespaced(all.client.clone(), SYSTEM);
    let item = all.items().await["rpop-system/a"][0].clone();
    let mut stray = slices.get(&item.0).await.unwrap().spec;
    stray.shard = 999;
    all.apply(&json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopShard",
        "metadata": {"name": "shard-999", "namespace": SYSTEM}, "spec": {"slices": 1},
    }));
    all.apply(&json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopWorkSlice",
        "metadata": {"name": "shard-999-0", "namespace": SYSTEM}, "spec": stray,
    }));
    eventually("the stray shard and its slice to be removed", || async {
        let shard = shards.get_opt("shard-999").await.unwrap();
        (shard.is_none() && slices.get_opt("shard-999-0").await.unwrap().is_none()).then_some(())
    })
    .await;
    all.holds(&["rpop-system/a", "rpop-system/b"]).await;

    // Everybody else writes to the same objects all the time.
    let (stop, storm) = watch::channel(());
    let storm = tokio::spawn({
        let (slices, shards, mut stop) = (slices.clone(), shards.clone(), storm);
        async move {
            let mut count = 0_u32;
            while !stop.has_changed().unwrap_or(true) {
                count += 1;
                let patch = Patch::Merge(json!({"metadata": {"annotations": {"storm": count.to_string()}}}));
                for slice in slices.list(&ListParams::default()).await.unwrap() {
                    let name = slice.metadata.name.unwrap();
                    drop(slices.patch(&name, &PatchParams::default(), &patch).await);
                }
                for shard in shards.list(&ListParams::default()).await.unwrap() {
                    let name = shard.metadata.name.unwrap();
                    drop(shards.patch(&name, &PatchParams::default(), &patch).await);
                }
            }
            stop.mark_unchanged();
            count
        }
    });
    let mut names: Vec<String> = vec!["rpop-system/a".into(), "rpop-system/b".into()];
    for number in 0..30 {
        let more = json!({"remote": {
            "host": format!("pop-{number}.example"), "account": "x", "passwordSecretRef": {"name": "isp"},
        }});
        all.record(SYSTEM, &format!("c-{number}"), &more);
        names.push(format!("rpop-system/c-{number}"));
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    all.holds(&names).await;
    stop.send(()).unwrap();
    assert!(storm.await.unwrap() > 3);

    // One that ends gives the lead away; a third one goes on at once.
    let third = all.controller("controller-2", 4).await;
    second.ends().await;
    all.record(SYSTEM, "a", &json!({"pollEvery": "Disabled"}));
    all.accepted(SYSTEM, "a", "True", "Accepted", &[]).await;
    assert!(all.items().await["rpop-system/a"][0].1.get("interval").is_none());
    third.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unified_record_belongs_to_the_main_postmaster_and_follows_all_domains() {
    let Some(all) = Installation::new().await else { return };
    let controller = all.controller("controller-0", 1).await;
    let settings = |main: &str| {
        all.apply(&json!({
            "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopSettings", "metadata": {"name": "default"},
            "spec": {"mainDomain": main},
        }));
    };
    let unified = |account: &str| {
        let spec = json!({"account": account, "special": "X-Original-To", "remote": {
            "host": "pop.isp.example", "account": "all", "passwordSecretRef": {"name": "isp"},
        }});
        all.record(SYSTEM, "all", &spec);
    };
    let given = || async {
        let items = all.items().await;
        let (_, item) = items.get("rpop-system/all")?.first()?.clone();
        let places = item["unified"]["domains"].as_array()?.clone();
        let names = places.iter().flat_map(|place| place["names"].as_array().cloned().unwrap_or_default());
        Some(names.filter_map(|name| name.as_str().map(str::to_owned)).collect::<Vec<_>>())
    };
    let given = &given;
    let follows = |wanted: &'static [&'static str]| async move {
        eventually(&format!("its item to know {wanted:?}"), || async {
            (given().await? == wanted).then_some(())
        })
        .await;
    };

    // Whose it must be.
    all.domain("example.com", &json!({"aliases": ["example.net"]}));
    all.record(SYSTEM, "plain", &json!({}));
    unified("alice@example.com");
    all.accepted(SYSTEM, "all", "False", "ConfigInvalid", &["write mainDomain: example.com in RpopSettings"])
        .await;
    settings("example.com");
    all.accepted(SYSTEM, "all", "False", "ConfigInvalid", &["write account: postmaster@example.com"]).await;
    unified("PostMaster@example.net");
    all.accepted(SYSTEM, "all", "True", "Accepted", &["complete and allowed"]).await;
    all.holds(&["rpop-system/all", "rpop-system/plain"]).await;
    follows(&["example.com", "example.net"]).await;

    // A domain comes, breaks, is mended with another delivery, and goes.
    all.domain("other.example", &json!({}));
    follows(&["example.com", "example.net", "other.example"]).await;
    all.server.kubectl(&["delete", "rpopdomain", "other.example"]).succeeds();
    follows(&["example.com", "example.net"]).await;
    // With errors it is ours all the same: its mail waits.
    all.domain("other.example", &json!({"delivery": {"maildir": {"path": "/m/{local}"}}}));
    follows(&["example.com", "example.net", "other.example"]).await;
    all.accepted(SYSTEM, "all", "True", "Accepted", &["RpopDomain other.example has errors"]).await;
    all.server.kubectl(&["delete", "rpopdomain", "other.example"]).succeeds();
    all.accepted(SYSTEM, "all", "True", "Accepted", &["complete and allowed"]).await;

    // As many names as fit; nothing is written of them for ever. More are
    // refused, and cost nobody else.
    let names = |count: usize| -> Vec<String> {
        (0..count).map(|n| format!("{n:03}.{}.{}.example", "a".repeat(60), "b".repeat(60))).collect()
    };
    all.domain("many.example", &json!({"aliases": names(250)}));
    all.domain(
        "more.example",
        &json!({"aliases": names(205).iter().map(|name| format!("z{name}")).collect::<Vec<_>>()}),
    );
    eventually("its item to know them all", || async { (given().await?.len() == 459).then_some(()) }).await;
    let slices: Api<RpopWorkSlice> = Api::namespaced(all.client.clone(), SYSTEM);
    let place = all.items().await["rpop-system/all"][0].0.clone();
    let slice = slices.get(&place).await.unwrap();
    assert_eq!(slice.spec.format, 2, "the oldest that knows unified accounts");
    assert!(serde_json::to_vec(&slice.spec).unwrap().len() > 60 * 1024);
    all.accepted(SYSTEM, "all", "True", "Accepted", &["complete and allowed"]).await;
    // The controller looks at everything again and finds nothing to write.
    controller.ends().await;
    let controller = all.controller("controller-1", 1).await;
    all.record(SYSTEM, "bad", &json!({"mailbox": "Archive"}));
    all.accepted(SYSTEM, "bad", "False", "ConfigInvalid", &[]).await;
    assert_eq!(slices.get(&place).await.unwrap().metadata.generation, slice.metadata.generation);
    let most: Vec<String> = names(250).iter().map(|name| format!("y{name}")).collect();
    all.domain("most.example", &json!({"aliases": most}));
    all.accepted(SYSTEM, "all", "False", "ConfigInvalid", &["710 names and aliases", "of 65536"]).await;
    all.holds(&["rpop-system/plain"]).await;
    for domain in ["many.example", "more.example", "most.example"] {
        all.server.kubectl(&["delete", "rpopdomain", domain]).succeeds();
    }
    all.accepted(SYSTEM, "all", "True", "Accepted", &[]).await;
    follows(&["example.com", "example.net"]).await;

    // Another Main Domain, one that is not there, and none of that name any more.
    all.domain("new.example", &json!({"postmaster": "chief"}));
    settings("new.example");
    all.accepted(SYSTEM, "all", "False", "ConfigInvalid", &["write account: chief@new.example"]).await;
    unified("chief@new.example");
    all.accepted(SYSTEM, "all", "True", "Accepted", &[]).await;
    settings("nowhere.example");
    all.accepted(SYSTEM, "all", "False", "ConfigInvalid", &["RpopDomain nowhere.example"]).await;
    settings("new.example");
    all.accepted(SYSTEM, "all", "True", "Accepted", &[]).await;
    all.server.kubectl(&["delete", "rpopdomain", "new.example"]).succeeds();
    all.accepted(SYSTEM, "all", "False", "DomainMissing", &["there is no RpopDomain new.example"]).await;
    all.accepted(SYSTEM, "plain", "True", "Accepted", &[]).await;
    all.holds(&["rpop-system/plain"]).await;
    controller.ends().await;
}
