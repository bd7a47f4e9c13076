//! What the leader's machine is fed with: shards, slices and leases, watched
//! or read only while this process leads.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::watch::{Watching, causes};
use super::work::{shard_seen, slice_seen};
use crate::api::{RpopShard, RpopWorkSlice};
use crate::domain::shards::leader::{LeaseSeen, Seen};
use crate::domain::shards::{LeaseHolder, ShardId};
use crate::k8s::client::{REQUEST_DEADLINE, boot_now};
use crate::k8s::error::within;
use crate::k8s::lease::{COMPONENT_LABEL, WORKER, WorkerLease};

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
    tasks.spawn(shards(source.clone(), heard.clone()));
    tasks.spawn(slices(source.clone(), heard.clone()));
    tasks.spawn(leases(source.clone(), heard));
    receiver
}

async fn shards(source: Source, heard: mpsc::Sender<Seen>) {
    let api: Api<DeserializeGuard<RpopShard>> = Api::namespaced(source.client, &source.system);
    let read = |guard: DeserializeGuard<RpopShard>| match guard.0 {
        Ok(shard) => shard_seen(&shard),
        Err(invalid) => {
            let name = invalid.metadata.name.as_deref().unwrap_or("?");
            tracing::error!(shard = name, "the shard cannot be read: {}", causes(&invalid));
            None
        }
    };
    let mut all = Vec::new();
    let mut watching = Watching::new(api, source.streaming);
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
            Some(Event::InitDone) => Some(Seen::Shards(std::mem::take(&mut all))),
            Some(Event::Apply(object)) => read(object).map(Seen::Shard),
            Some(Event::Delete(object)) => {
                let name = kube::Resource::meta(&object).name.as_deref().unwrap_or("");
                ShardId::parse(name).map(Seen::ShardGone)
            }
            None => Some(Seen::Gap),
        };
        if !tell(&heard, seen).await {
            return;
        }
    }
}

async fn slices(source: Source, heard: mpsc::Sender<Seen>) {
    let api: Api<DeserializeGuard<RpopWorkSlice>> = Api::namespaced(source.client, &source.system);
    let read = |guard: DeserializeGuard<RpopWorkSlice>| match guard.0 {
        Ok(slice) => slice_seen(&slice),
        Err(invalid) => {
            let name = invalid.metadata.name.as_deref().unwrap_or("?");
            tracing::error!(slice = name, "the slice cannot be read: {}", causes(&invalid));
            None
        }
    };
    let mut all = Vec::new();
    let mut watching = Watching::new(api, source.streaming);
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
            Some(Event::InitDone) => Some(Seen::Slices(std::mem::take(&mut all))),
            Some(Event::Apply(object)) => read(object).map(Seen::Slice),
            Some(Event::Delete(object)) => {
                let name = kube::Resource::meta(&object).name.as_deref().unwrap_or("");
                ShardId::parse_slice(name).map(|(shard, number)| Seen::SliceGone(shard, number))
            }
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
