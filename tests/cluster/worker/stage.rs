//! A cluster with workers and no controller: what the leader would write is
//! written by the test, under the controller's own rights.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use rpop::api::{ItemPast, RpopRecord, RpopShard, RpopWorkSlice, SLICE_FORMAT, SliceItem};
use rpop::domain::work::{Destination, WorkItem};
use serde_json::{Value, json};

use crate::parts::dovecot::PASSWORD;
use crate::parts::work;
use crate::support::{SYSTEM, Server, Worker, eventually, namespace};

/// One server for the tests that do not stop it.
pub fn server() -> Option<&'static Server> {
    static SHARED: LazyLock<Option<Server>> = LazyLock::new(|| Server::start().inspect(prepare));
    SHARED.as_ref()
}

/// What `deploy/` installs, and settings that let loopback be polled.
pub fn prepare(server: &Server) {
    server.deploy();
    server
        .apply(
            "apiVersion: rpop.dev/v1alpha1\nkind: RpopSettings\nmetadata: {name: default}\nspec:\n\
             \x20 allowSelfPoll: true\n  remoteNetworks: {allow: [127.0.0.0/8]}\n",
        )
        .succeeds();
}

/// A namespace of records, and the hands of leader and administrator.
pub struct Stage<'s> {
    pub server: &'s Server,
    pub admin: Client,
    pub leader: Client,
    pub namespace: Arc<str>,
}

impl<'s> Stage<'s> {
    pub async fn new(server: &'s Server) -> Self {
        let admin = server.client().await;
        let leader = server.pod_token(SYSTEM, "rpop-controller", "controller").await.client().await;
        let namespace = namespace(&admin).await;
        let stage = Self { server, admin, leader, namespace };
        stage.secret("password", PASSWORD).await;
        // Workers know their installation by it.
        stage.make_shard("shard-000", 0).await;
        stage
    }

    pub fn shards(&self) -> Api<RpopShard> {
        Api::namespaced(self.leader.clone(), SYSTEM)
    }

    pub async fn shard(&self, name: &str) -> RpopShard {
        self.shards().get(name).await.unwrap()
    }

    async fn make_shard(&self, name: &str, slices: u32) {
        let shard: RpopShard =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"slices": slices}})).unwrap();
        match self.shards().create(&PostParams::default(), &shard).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// Makes a shard of these slices, held by nobody.
    pub async fn share(&self, name: &str, slices: &[Vec<SliceItem>]) {
        for (number, items) in slices.iter().enumerate() {
            self.slice(name, number, items, SLICE_FORMAT).await;
        }
        self.make_shard(name, u32::try_from(slices.len()).unwrap()).await;
    }

    /// Writes a slice.
    pub async fn slice(&self, shard: &str, number: usize, items: &[SliceItem], format: u32) {
        let mut destinations: Vec<Value> = Vec::new();
        let mut written: Vec<Value> = Vec::new();
        for item in items {
            destinations.push(serde_json::to_value(&*destination(item)).unwrap());
            let mut item = serde_json::to_value(item).unwrap();
            item["destination"] = json!(written.len());
            written.push(item);
        }
        let number_of = shard.trim_start_matches("shard-").parse::<u32>().unwrap();
        let name = format!("{shard}-{number}");
        let slice = json!({
            "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopWorkSlice",
            "metadata": {"name": name, "namespace": SYSTEM, "labels": {"rpop.dev/shard": number_of.to_string()}},
            "spec": {"format": format, "shard": number_of, "destinations": destinations, "items": written},
        });
        let slices: Api<RpopWorkSlice> = Api::namespaced(self.leader.clone(), SYSTEM);
        let parameters = PatchParams::apply("rpop-controller").force();
        slices.patch(&name, &parameters, &Patch::Apply(slice)).await.unwrap();
    }

    /// The leader's wish.
    pub async fn desire(&self, shard: &str, worker: &str) {
        let patch = Patch::Merge(json!({"spec": {"desired": worker}}));
        self.shards().patch(shard, &PatchParams::default(), &patch).await.unwrap();
    }

    /// The leader gives a shard that is nobody's (any more).
    pub async fn give(&self, shard: &str, worker: &str) {
        self.desire(shard, worker).await;
        let epoch = self.shard(shard).await.status.map_or(0, |status| status.epoch) + 1;
        let patch = Patch::Merge(json!({"status": {"holder": worker, "epoch": epoch}}));
        self.shards().patch_status(shard, &PatchParams::default(), &patch).await.unwrap();
    }

    /// The leader takes a worker for dead.
    pub async fn steal(&self, worker: &Worker) {
        self.steal_lease(&worker.pod, &worker.me).await;
    }

    /// The same, of a process that is gone.
    pub async fn steal_lease(&self, pod: &str, me: &str) {
        let leases: Api<Lease> = Api::namespaced(self.leader.clone(), SYSTEM);
        let patch = Patch::Merge(json!({"spec": {"holderIdentity": format!("stolen/{me}")}}));
        leases.patch(&format!("rpop-worker-{pod}"), &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits until the shard's status names this holder.
    pub async fn held_by(&self, shard: &str, worker: &str) -> RpopShard {
        eventually(&format!("{shard} to be held by {worker}"), || async {
            let shard = self.shard(shard).await;
            let holder = shard.status.as_ref().and_then(|status| status.holder.clone());
            (holder.as_deref() == Some(worker)).then_some(shard)
        })
        .await
    }

    /// Starts a worker in a pod of that name, with the fast timing.
    pub async fn worker(&self, pod: &str) -> Worker {
        self.server.worker(pod).await
    }

    /// A record of an account at a fake server, and its item: polled each
    /// second, delivered by SMTP.
    pub async fn record(&self, name: &str, pop3: u16, smtp: u16) -> SliceItem {
        let record: RpopRecord = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "account": "alice@local.test", "pollEvery": "10s",
                "remote": {"host": format!("127.0.0.1:{pop3}"), "account": "alice", "passwordSecretRef": {"name": "password"}},
                "tls": {"mode": "None"},
            },
        }))
        .unwrap();
        let made = self.records().create(&PostParams::default(), &record).await.unwrap();
        let work = work(&self.namespace, name, pop3, smtp);
        SliceItem::new(
            &work,
            &made.uid().unwrap(),
            made.metadata.generation.unwrap(),
            ItemPast::default(),
            smtp.into(),
        )
    }

    pub fn records(&self) -> Api<RpopRecord> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    pub async fn secret(&self, name: &str, password: &str) {
        let secrets: Api<Secret> = Api::namespaced(self.admin.clone(), &self.namespace);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": {"password": password},
        });
        let parameters = PatchParams::apply("test").force();
        secrets.patch(name, &parameters, &Patch::Apply(secret)).await.unwrap();
    }

    /// Waits until a condition of the record is this; its reason.
    pub async fn condition(&self, name: &str, type_: &str, status: &str) -> String {
        eventually(&format!("{name} to be {type_}={status}"), || async {
            let record = self.records().get(name).await.unwrap();
            let conditions = record.status.map(|status| status.conditions).unwrap_or_default();
            let found = conditions.into_iter().find(|found| found.type_ == type_)?;
            (found.status == status).then_some(found.reason)
        })
        .await
    }

    /// Waits for an Event about an object; its note.
    pub async fn event(&self, namespace: &str, object: &str, reason: &str) -> String {
        let events: Api<Event> = Api::namespaced(self.admin.clone(), namespace);
        eventually(&format!("Event {reason} about {object}"), || async {
            let all = events.list(&ListParams::default()).await.unwrap();
            let about = |event: &Event| event.regarding.as_ref().and_then(|object| object.name.clone());
            all.into_iter()
                .find(|event| {
                    event.reason.as_deref() == Some(reason) && about(event).as_deref() == Some(object)
                })
                .map(|event| event.note.unwrap_or_default())
        })
        .await
    }
}

fn destination(item: &SliceItem) -> Arc<Destination> {
    // `destination` carries the port until the slice is written.
    Arc::clone(&work(&item.namespace, &item.name, 1, u16::try_from(item.destination).unwrap()).destination)
}

fn work(namespace: &str, name: &str, pop3: u16, smtp: u16) -> WorkItem {
    let item = work::item(namespace, name, "alice@local.test", pop3, smtp);
    WorkItem { interval: Some(Duration::from_secs(1)), ..item }
}

/// How often each message arrived.
pub fn each_once(marks: &BTreeMap<String, usize>) -> bool {
    marks.values().all(|count| *count == 1)
}
