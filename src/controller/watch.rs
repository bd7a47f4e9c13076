//! The watches: what changes in the cluster becomes a [`Change`], in the
//! order in which the API server told it.

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PartialObjectMeta, Resource};
use kube::core::DeserializeGuard;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::api::{RpopDomain, RpopRecord, RpopSettings};
use crate::k8s::watching::Watching;

/// Changes that wait to be taken in; then the watches wait.
const QUEUE: usize = 1024;
/// A watch is renewed so often (seconds): also how late a connection that died
/// in silence is noticed.
const RENEWED: u32 = 60;

/// An object, or what is left of one that cannot be read.
pub(super) type Guarded<K> = DeserializeGuard<K>;

/// What has happened. `None`: the watch failed, and is tried again.
#[expect(clippy::large_enum_variant, reason = "the largest is the most frequent")]
pub(super) enum Change {
    Record(Event<Guarded<RpopRecord>>),
    Domain(Event<Guarded<RpopDomain>>),
    Settings(Event<Guarded<RpopSettings>>),
    Namespace(Event<PartialObjectMeta<Namespace>>),
}

/// Starts the watches; they end with `tasks`.
pub(super) fn start(
    client: &kube::Client,
    streaming: bool,
    tasks: &mut JoinSet<()>,
) -> mpsc::Receiver<Change> {
    let (changes, receiver) = mpsc::channel(QUEUE);
    let all = || client.clone();
    tasks.spawn(watch(Api::all(all()), streaming, changes.clone(), Change::Namespace));
    tasks.spawn(watch(Api::all(all()), streaming, changes.clone(), Change::Settings));
    tasks.spawn(watch(Api::all(all()), streaming, changes.clone(), Change::Domain));
    tasks.spawn(watch(Api::all(all()), streaming, changes, Change::Record));
    receiver
}

async fn watch<K>(api: Api<K>, streaming: bool, changes: mpsc::Sender<Change>, change: fn(Event<K>) -> Change)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut watching = Watching::new(api, config(streaming));
    loop {
        if let Some(event) = watching.next().await
            && changes.send(change(event)).await.is_err()
        {
            return;
        }
    }
}

/// How the controller watches.
pub(super) fn config(streaming: bool) -> watcher::Config {
    let config = watcher::Config::default().timeout(RENEWED);
    if streaming { config.streaming_lists() } else { config }
}

/// Whether the API server lists by streams (`WatchList`, on by default from
/// 1.34): one that does not would answer with an error each time.
pub(super) fn lists_by_streams(major: &str, minor: &str) -> bool {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<u32>().unwrap_or(0)
    };
    (number(major), number(minor)) >= (1, 34)
}

/// A name out of metadata.
pub(super) fn name_of(meta: &ObjectMeta) -> Arc<str> {
    meta.name.as_deref().unwrap_or("").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_by_streams_where_every_server_has_them() {
        for (major, minor, wanted) in
            [("1", "33", false), ("1", "34", true), ("1", "36+", true), ("", "", false)]
        {
            assert_eq!(lists_by_streams(major, minor), wanted, "{major}.{minor}");
        }
    }
}
