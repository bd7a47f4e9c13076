//! All that happens to the objects of a kind, for ever.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use kube::api::{Api, Resource};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::error::{ApiError, patience};
use crate::domain::text::causes;

/// A watch that fails on and on says so once in this time.
const SAID: Duration = Duration::from_secs(30);

/// A watch that begins anew whenever it ends.
pub(crate) struct Watching<K> {
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
    /// Watches what `config` selects, without what nobody reads.
    pub(crate) fn new(api: Api<K>, config: watcher::Config) -> Self {
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
    pub(crate) async fn next(&mut self) -> Option<Event<K>> {
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
                let error = ApiError::from(error);
                if self.said.is_none_or(|before| before.elapsed() > SAID) {
                    self.said = Some(Instant::now());
                    tracing::warn!(
                        kind = self.kind,
                        reason = error.reason(),
                        "the watch fails and is tried again: {}",
                        causes(&error)
                    );
                }
                None
            }
        }
    }
}
