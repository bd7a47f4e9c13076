//! The watches: what changes in the cluster becomes a [`Change`], in the
//! order in which the API server told it.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PartialObjectMeta, Resource};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::api::{RpopDomain, RpopRecord, RpopSettings};
use crate::k8s::error::patience;

/// Changes that wait to be taken in; then the watches wait.
const QUEUE: usize = 1024;
/// A watch is renewed so often (seconds): also how late a connection that died
/// in silence is noticed.
const RENEWED: u32 = 60;
/// A watch that fails says so once in this time.
const SAID: Duration = Duration::from_secs(30);

/// An object, or what is left of one that cannot be read.
pub(super) type Guarded<K> = DeserializeGuard<K>;

/// What has happened. `None`: the watch failed, and is tried again.
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
    let mut watching = Watching::new(api, streaming);
    loop {
        if let Some(event) = watching.next().await
            && changes.send(change(event)).await.is_err()
        {
            return;
        }
    }
}

/// All events of a kind, for ever, without what nobody reads.
pub(super) struct Watching<K> {
    stream: BoxStream<'static, watcher::Result<Event<K>>>,
    kind: String,
    /// When a failure was logged last.
    said: Option<Instant>,
    /// The API server has asked for patience.
    not_before: Option<Instant>,
}

impl<K> Watching<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    pub(super) fn new(api: Api<K>, streaming: bool) -> Self {
        let config = watcher::Config::default().timeout(RENEWED);
        let config = if streaming { config.streaming_lists() } else { config };
        let stream = watcher::watcher(api, config).modify(|object| {
            let meta = object.meta_mut();
            meta.managed_fields = None;
            // What kubectl apply keeps for itself is as large as the rest.
            if let Some(annotations) = &mut meta.annotations {
                annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
            }
        });
        Self {
            stream: stream.default_backoff().boxed(),
            kind: K::kind(&()).into_owned(),
            said: None,
            not_before: None,
        }
    }

    /// The next event; `None` if the watch failed, which is logged. It is tried
    /// again, after a pause.
    pub(super) async fn next(&mut self) -> Option<Event<K>> {
        if let Some(then) = self.not_before.take() {
            tokio::time::sleep_until(then).await;
        }
        match self.stream.next().await? {
            Ok(event) => {
                if matches!(event, Event::InitDone) && self.said.take().is_some() {
                    tracing::info!(kind = self.kind, "the watch works again");
                }
                Some(event)
            }
            Err(error) => {
                self.not_before = patience(&error).map(|asked| Instant::now() + asked);
                if self.said.is_none_or(|before| before.elapsed() > SAID) {
                    self.said = Some(Instant::now());
                    tracing::warn!(
                        kind = self.kind,
                        "the watch fails and is tried again: {}",
                        causes(&error)
                    );
                }
                None
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
