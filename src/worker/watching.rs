//! Watches, as a stream of what is there now and what is gone.

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures_util::{StreamExt as _, pin_mut};
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::domain::text::shown;
use crate::k8s::error::patience;

/// What a watch shows.
#[derive(Clone, Debug)]
pub(super) enum Shown<K> {
    /// An object as it is now.
    Is(K),
    /// An object that cannot be understood.
    Unreadable {
        /// Its name.
        name: String,
        /// Its `metadata.generation`.
        generation: i64,
        /// Its `metadata.resourceVersion`.
        version: String,
        /// Its `metadata.uid`.
        uid: String,
        /// Why; a program's words.
        why: String,
    },
    /// An object that is not there (any more).
    Gone(String),
    /// All that was there at the start has been shown.
    Complete,
}

impl<K> Shown<K> {
    /// What an answer to a `get` shows.
    pub(super) fn from_guard(guard: DeserializeGuard<K>) -> Self {
        match guard.0 {
            Ok(object) => Self::Is(object),
            Err(invalid) => Self::Unreadable {
                name: invalid.metadata.name.unwrap_or_default(),
                generation: invalid.metadata.generation.unwrap_or(0),
                version: invalid.metadata.resource_version.unwrap_or_default(),
                uid: invalid.metadata.uid.unwrap_or_default(),
                why: shown(invalid.error),
            },
        }
    }
}

/// Watches until nobody listens. Interruptions are bridged: what changed
/// meanwhile is shown afterwards, what went is shown as gone.
pub(super) async fn watch<K, T>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    what: &str,
    tell: mpsc::Sender<T>,
    wrap: impl Fn(Shown<K>) -> T,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let events = watcher(api, config).default_backoff();
    pin_mut!(events);
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut before: BTreeSet<String> = BTreeSet::new();
    let mut troubled = false;
    while let Some(event) = events.next().await {
        let shown = match event {
            Ok(Event::Init) => {
                before.append(&mut known);
                continue;
            }
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                before.remove(&object.name_any());
                known.insert(object.name_any());
                Shown::from_guard(object)
            }
            Ok(Event::Delete(object)) => {
                known.remove(&object.name_any());
                Shown::Gone(object.name_any())
            }
            Ok(Event::InitDone) => {
                for name in std::mem::take(&mut before) {
                    if tell.send(wrap(Shown::Gone(name))).await.is_err() {
                        return;
                    }
                }
                if std::mem::take(&mut troubled) {
                    tracing::info!("{what} are watched again");
                }
                Shown::Complete
            }
            Err(error) => {
                // Once, and again when it is over: the API server may be away
                // for long.
                if std::mem::replace(&mut troubled, true) {
                    tracing::debug!("{what} are not watched: {}", shown(error.to_string()));
                } else {
                    tracing::warn!("{what} are not watched just now: {}", shown(error.to_string()));
                }
                if let Some(asked) = patience(&error) {
                    tokio::time::sleep(asked).await;
                }
                continue;
            }
        };
        if tell.send(wrap(shown)).await.is_err() {
            return;
        }
    }
}
