//! The watches: what changes in the cluster becomes a [`Change`], in the
//! order in which the API server told it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, PartialObjectMeta, Resource};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::api::{RpopDomain, RpopRecord, RpopSettings, RpopShard, RpopWorkSlice};

/// Changes that wait to be taken in; then the watches wait.
const QUEUE: usize = 1024;
/// A watch is renewed so often: also how late a connection that died in
/// silence is noticed.
const RENEWED: u32 = 60;
/// A watch that fails says so once in this time.
const SAID: Duration = Duration::from_secs(30);

/// An object, or what is left of one that cannot be read.
pub(super) type Guarded<K> = Box<DeserializeGuard<K>>;

/// What has happened to the objects of one kind.
#[derive(Debug)]
pub(super) enum Happened<K> {
    /// All objects follow, up to `Listed`.
    Listing,
    /// One of them.
    Listed(K),
    /// Those that were not named are gone.
    Complete,
    /// It is there, or changed.
    Changed(K),
    /// It is gone.
    Gone(K),
    /// The watch failed; it is tried again.
    Failing,
}

/// What has happened.
#[derive(Debug)]
pub(super) enum Change {
    Record(Happened<Guarded<RpopRecord>>),
    Domain(Happened<Guarded<RpopDomain>>),
    Settings(Happened<Guarded<RpopSettings>>),
    Namespace(Happened<Box<PartialObjectMeta<Namespace>>>),
    Shard(Happened<Guarded<RpopShard>>),
    Slice(Happened<Guarded<RpopWorkSlice>>),
}

/// Starts the watches; they end with the returned set.
pub(super) fn start(
    client: &kube::Client,
    system: &str,
    streaming: bool,
    tasks: &mut JoinSet<()>,
) -> mpsc::Receiver<Change> {
    let (changes, receiver) = mpsc::channel(QUEUE);
    let all = || client.clone();
    tasks.spawn(watch(Api::all(all()), streaming, changes.clone(), Change::Namespace, Box::new));
    tasks.spawn(watch(Api::all(all()), streaming, changes.clone(), Change::Settings, Box::new));
    tasks.spawn(watch(Api::all(all()), streaming, changes.clone(), Change::Domain, Box::new));
    tasks.spawn(watch(Api::namespaced(all(), system), streaming, changes.clone(), Change::Shard, Box::new));
    tasks.spawn(watch(Api::namespaced(all(), system), streaming, changes.clone(), Change::Slice, Box::new));
    tasks.spawn(watch(Api::all(all()), streaming, changes, Change::Record, Box::new));
    receiver
}

fn watch<K, B>(
    api: Api<K>,
    streaming: bool,
    changes: mpsc::Sender<Change>,
    change: fn(Happened<B>) -> Change,
    boxed: fn(K) -> B,
) -> impl Future<Output = ()> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
    B: Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    let config = watcher::Config::default().timeout(RENEWED);
    let config = if streaming { config.streaming_lists() } else { config };
    async move {
        let stream = watcher::watcher(api, config)
            .modify(|object| {
                let meta = object.meta_mut();
                meta.managed_fields = None;
                // What kubectl apply keeps for itself is as large as the rest.
                if let Some(annotations) = &mut meta.annotations {
                    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
                }
            })
            .default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut said: Option<tokio::time::Instant> = None;
        while let Some(event) = stream.next().await {
            let happened = match event {
                Ok(Event::Init) => Happened::Listing,
                Ok(Event::InitApply(object)) => Happened::Listed(boxed(object)),
                Ok(Event::InitDone) => {
                    if said.take().is_some() {
                        tracing::info!(kind, "the watch works again");
                    }
                    Happened::Complete
                }
                Ok(Event::Apply(object)) => Happened::Changed(boxed(object)),
                Ok(Event::Delete(object)) => Happened::Gone(boxed(object)),
                Err(error) => {
                    if said.is_none_or(|before| before.elapsed() > SAID) {
                        said = Some(tokio::time::Instant::now());
                        tracing::warn!(kind, "the watch fails and is tried again: {}", causes(&error));
                    }
                    Happened::Failing
                }
            };
            if changes.send(change(happened)).await.is_err() {
                return;
            }
        }
    }
}

/// An error and what caused it, in one line.
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    crate::domain::text::shown(text)
}

/// Whether the API server lists by streams (`WatchList`, on by default from
/// 1.34): one that does not would answer with an error each time.
pub(super) fn lists_by_streams(version: &k8s_openapi::apimachinery::pkg::version::Info) -> bool {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap_or(0)
    };
    (number(&version.major), number(&version.minor)) >= (1, 34)
}

/// Labels of a namespace.
pub(super) fn labels(namespace: &PartialObjectMeta<Namespace>) -> BTreeMap<String, String> {
    namespace.metadata.labels.clone().unwrap_or_default()
}

/// A name out of metadata.
pub(super) fn name_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Arc<str> {
    meta.name.as_deref().unwrap_or("").into()
}
