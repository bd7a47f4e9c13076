//! What the leader's machine is fed with: shards and slices, watched only while
//! this process leads, and leases, which are read all the time, so that who
//! takes the lead over has counted already.

use std::fmt::Debug;
use std::pin::pin;
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
use tokio::time::{Instant, sleep_until, timeout};

use super::watch::config;
use super::work::{shard_seen, slice_seen};
use crate::domain::shards::leader::{LeaseSeen, Seen};
use crate::domain::shards::timing::Boot;
use crate::domain::shards::{LeaseHolder, ShardId};
use crate::domain::text::causes;
use crate::k8s::client::{REQUEST_DEADLINE, boot_now};
use crate::k8s::error::{ApiError, within};
use crate::k8s::lease::{COMPONENT_LABEL, CONTROLLER, LEADER_LEASE, WORKER, WorkerLease};
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
    /// A read that is not answered then is told to be late.
    pub(super) late_after: Duration,
}

/// Reads of leases at once: the second where the first is late, since a
/// request may be lost in a connection.
const READS: usize = 2;

/// Starts to watch; ends with `tasks`.
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
    tasks.spawn(objects(source.clone(), heard.clone(), slices));
    let source = source.clone();
    tasks.spawn(async move {
        // Before the shards, without which nothing is decided.
        if let Some(pods) = expected(&source).await
            && !tell(&heard, Some(Seen::Expected(pods))).await
        {
            return;
        }
        objects(source, heard, shards).await;
    });
    receiver
}

/// Starts to read the leases; ends with `tasks`. Each read comes with when it
/// ended: it may wait before it is heard.
pub(super) fn read_leases(source: Source, tasks: &mut JoinSet<()>) -> mpsc::Receiver<(Boot, Seen)> {
    let (heard, receiver) = mpsc::channel(QUEUE);
    tasks.spawn(leases(source, heard));
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
            None => None,
        };
        if !tell(&heard, seen).await {
            return;
        }
    }
}

/// Lists the leases again and again: a watch that is silent says nothing of
/// those that are silent, too.
async fn leases(source: Source, heard: mpsc::Sender<(Boot, Seen)>) {
    let mut reads: JoinSet<Result<(), ApiError>> = JoinSet::new();
    let mut said: Option<Instant> = None;
    let mut last: Option<Instant> = None;
    // The API server may ask for patience.
    let mut patience = Instant::now();
    loop {
        let pause = if reads.is_empty() { source.read_every } else { source.read_every * 2 };
        let due = last.map_or(patience, |last| (last + pause).max(patience));
        tokio::select! {
            () = sleep_until(due), if reads.len() < READS => {
                reads.spawn(read(source.clone(), heard.clone()));
                last = Some(Instant::now());
            }
            Some(Ok(result)) = reads.join_next() => match result {
                Ok(()) => said = None,
                Err(error) => {
                    patience = Instant::now() + error.retry_after().unwrap_or_default();
                    if said.is_none_or(|before| before.elapsed() > Duration::from_secs(30)) {
                        said = Some(Instant::now());
                        tracing::warn!(
                            reason = error.reason(),
                            "the workers' leases cannot be read: {}",
                            causes(&error)
                        );
                    }
                }
            },
            () = heard.closed() => return,
        }
    }
}

/// One read, and what is to be heard of it.
async fn read(source: Source, heard: mpsc::Sender<(Boot, Seen)>) -> Result<(), ApiError> {
    let api: Api<Lease> = Api::namespaced(source.client, &source.system);
    let params = ListParams::default().labels(&format!("{COMPONENT_LABEL} in ({WORKER},{CONTROLLER})"));
    let sent = boot_now();
    let mut answer = pin!(within(REQUEST_DEADLINE, api.list(&params)));
    let in_time = timeout(source.late_after, &mut answer).await;
    let late = in_time.is_err();
    if late {
        drop(heard.send((boot_now(), Seen::Unread { sent })).await);
    }
    let result = match in_time {
        Ok(result) => result,
        Err(_) => answer.await,
    };
    let ended = boot_now();
    match result {
        Ok(list) => drop(heard.send((ended, leases_seen(sent, &list.items))).await),
        Err(error) => {
            if !late {
                drop(heard.send((ended, Seen::Unread { sent })).await);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn leases_seen(sent: Boot, list: &[Lease]) -> Seen {
    let (mut leases, mut leader) = (Vec::with_capacity(list.len()), String::new());
    for lease in list.iter().map(WorkerLease::read) {
        if lease.name == LEADER_LEASE {
            leader = lease.version;
        } else {
            leases.push(lease_seen(&lease));
        }
    }
    Seen::Leases { sent, leases, leader }
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
