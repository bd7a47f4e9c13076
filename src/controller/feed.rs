//! What the leader's machine is fed with: shards, slices and leases, watched
//! or read only while this process leads.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::watcher::Event;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::watch::config;
use super::work::{shard_seen, slice_seen};
use crate::domain::shards::leader::{LeaseSeen, Seen};
use crate::domain::shards::{LeaseHolder, ShardId};
use crate::domain::text::causes;
use crate::k8s::client::{REQUEST_DEADLINE, boot_now};
use crate::k8s::error::within;
use crate::k8s::lease::{COMPONENT_LABEL, WORKER, WorkerLease};
use crate::k8s::watching::Watching;

/// What waits to be heard.
const QUEUE: usize = 1024;

/// Where the leader's objects are, and how they are read.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) client: Client,
    pub(super) system: std::sync::Arc<str>,
    pub(super) streaming: bool,
    pub(super) read_every: Duration,
}

/// Starts to read; ends with `tasks`.
pub(super) fn start(source: &Source, tasks: &mut JoinSet<()>) -> mpsc::Receiver<Seen> {
    let (heard, receiver) = mpsc::channel(QUEUE);
    let shards = Told {
        seen: shard_seen,
        all: Seen::Shards,
        one: Seen::Shard,
        gone: |name| ShardId::parse(name).map(Seen::ShardGone),
    };
    let slices = Told {
        seen: slice_seen,
        all: Seen::Slices,
        one: Seen::Slice,
        gone: |name| ShardId::parse_slice(name).map(|(shard, number)| Seen::SliceGone(shard, number)),
    };
    tasks.spawn(objects(source.clone(), heard.clone(), shards));
    tasks.spawn(objects(source.clone(), heard.clone(), slices));
    tasks.spawn(leases(source.clone(), heard));
    receiver
}

/// How the leader's machine is told of the objects of a kind.
struct Told<K, T> {
    seen: fn(&K) -> Option<T>,
    all: fn(Vec<T>) -> Seen,
    one: fn(T) -> Seen,
    gone: fn(&str) -> Option<Seen>,
}

/// Tells all that happens to the objects of a kind.
async fn objects<K, T>(source: Source, heard: mpsc::Sender<Seen>, told: Told<K, T>)
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<DeserializeGuard<K>> = Api::namespaced(source.client, &source.system);
    let read = |guard: DeserializeGuard<K>| match guard.0 {
        Ok(object) => (told.seen)(&object),
        Err(invalid) => {
            let name = invalid.metadata.name.as_deref().unwrap_or("?");
            tracing::error!(name, "the {} cannot be read: {}", K::kind(&()), causes(&invalid));
            None
        }
    };
    let mut all = Vec::new();
    let mut watching = Watching::new(api, config(source.streaming));
    loop {
        let seen = match watching.next().await {
            Some(Event::Init) => {
                all = Vec::new();
                None
            }
            Some(Event::InitApply(object)) => {
                all.extend(read(object));
                None
            }
            Some(Event::InitDone) => Some((told.all)(std::mem::take(&mut all))),
            Some(Event::Apply(object)) => read(object).map(told.one),
            Some(Event::Delete(object)) => (told.gone)(object.meta().name.as_deref().unwrap_or("")),
            None => Some(Seen::Gap),
        };
        if !tell(&heard, seen).await {
            return;
        }
    }
}

/// Lists the leases of workers again and again: a watch that is silent says
/// nothing of those that are silent, too.
async fn leases(source: Source, heard: mpsc::Sender<Seen>) {
    let api: Api<Lease> = Api::namespaced(source.client.clone(), &source.system);
    let params = ListParams::default().labels(&format!("{COMPONENT_LABEL}={WORKER}"));
    if let Some(pods) = expected(&source).await
        && !tell(&heard, Some(Seen::Expected(pods))).await
    {
        return;
    }
    let mut ticks = interval(source.read_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said: Option<Instant> = None;
    loop {
        ticks.tick().await;
        let sent = boot_now();
        let seen = match within(REQUEST_DEADLINE, api.list(&params)).await {
            Ok(list) => {
                said = None;
                let leases = list.items.iter().map(|lease| lease_seen(&WorkerLease::read(lease))).collect();
                Seen::Leases { sent, leases }
            }
            Err(error) => {
                if said.is_none_or(|before| before.elapsed() > Duration::from_secs(30)) {
                    said = Some(Instant::now());
                    tracing::warn!(
                        reason = error.reason(),
                        "the workers' leases cannot be read: {}",
                        causes(&error)
                    );
                }
                Seen::Gap
            }
        };
        if !tell(&heard, Some(seen)).await {
            return;
        }
    }
}

/// How many pods of workers there are: so many may be about to come.
async fn expected(source: &Source) -> Option<u32> {
    let api: Api<Pod> = Api::namespaced(source.client.clone(), &source.system);
    let selector = "app.kubernetes.io/name=rpop,app.kubernetes.io/component in (worker,combined)";
    let params = ListParams::default().labels(selector);
    let pods = within(REQUEST_DEADLINE, api.list_metadata(&params)).await;
    match pods {
        Ok(pods) => {
            let there = pods.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).count();
            u32::try_from(there).ok().filter(|count| *count > 0)
        }
        Err(error) => {
            tracing::debug!(reason = error.reason(), "the workers' pods cannot be counted");
            None
        }
    }
}

async fn tell(heard: &mpsc::Sender<Seen>, seen: Option<Seen>) -> bool {
    match seen {
        Some(seen) => heard.send(seen).await.is_ok(),
        None => !heard.is_closed(),
    }
}

/// A lease as the machine sees it.
pub(super) fn lease_seen(lease: &WorkerLease) -> LeaseSeen {
    let holder = match (&lease.holder, lease.stolen) {
        (None, _) => LeaseHolder::Nobody,
        (Some(worker), false) => LeaseHolder::Worker(worker.clone()),
        (Some(worker), true) => LeaseHolder::Stolen(worker.clone()),
    };
    LeaseSeen {
        name: lease.name.as_str().into(),
        version: lease.version.clone(),
        holder,
        leaving: lease.word.leaving,
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded")]
        capacity: lease.word.capacity.clamp(0.0, 1_000_000.0).ceil() as u32,
        load: lease.word.load.clone(),
    }
}
