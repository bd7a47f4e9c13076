//! What the workers before this one learnt of a record's login: it is in the
//! record's status, and read once, before the first login that is made here. A
//! shard that moves must not have all accounts tried again whose passwords are
//! refused: servers lock them.

use kube::Client;
use kube::api::GetParams;
use kube::core::request::Request;
use serde::Deserialize;
use tokio::sync::watch;

use super::roster::Roster;
use crate::api::{API_VERSION, RpopRecordStatus};
use crate::domain::work::{Settings, WorkItem};
use crate::engine::ports::{Pending, Stage};
use crate::engine::report::Report;
use crate::k8s::secrets::ApiSecrets;
use crate::run::status::Refusals;
use crate::run::{Poller, Waiting};

/// Lets polls through to `inner`, and remembers.
pub(super) struct Recalling<P> {
    inner: P,
    client: Client,
    secrets: ApiSecrets,
    roster: Roster,
}

#[derive(Deserialize)]
struct Seen {
    metadata: SeenMeta,
    #[serde(default)]
    status: Option<RpopRecordStatus>,
}

#[derive(Deserialize)]
struct SeenMeta {
    #[serde(default)]
    uid: String,
}

impl<P: Poller> Recalling<P> {
    pub(super) fn new(inner: P, client: Client, secrets: ApiSecrets, roster: Roster) -> Self {
        Self { inner, client, secrets, roster }
    }

    async fn recall(&self, item: &WorkItem) -> Option<Waiting> {
        let entry = self.roster.find(&item.key)?;
        let request =
            Request::new(format!("/apis/{API_VERSION}/namespaces/{}/rpoprecords", item.key.namespace));
        let get = request.get(&item.key.name, &GetParams::default()).ok()?;
        let text = match self.client.request_text(get).await {
            Ok(text) => text,
            Err(error) => {
                tracing::debug!(record = %item.key, "its status cannot be read: {error}");
                return None;
            }
        };
        waiting(&text, &entry.uid)
    }

    /// The record's generation, and the versions of its Secrets: nothing of
    /// what is in them.
    async fn mark(&self, item: &WorkItem) -> Option<Box<str>> {
        let generation = self.roster.find(&item.key)?.generation;
        let versions = self.secrets.versions(item).await.ok()?;
        Some(format!("{generation} {}", versions.trim_end()).into())
    }
}

fn waiting(text: &str, uid: &str) -> Option<Waiting> {
    let seen: Seen = serde_json::from_str(text).ok()?;
    if seen.metadata.uid != uid {
        return None;
    }
    let status = seen.status?;
    let refused = status.last_error?.refused_logins?;
    let until = status.next_poll_time?.0.as_second();
    let refusals = Refusals {
        since: refused.since.0.as_second(),
        count: refused.count,
        credentials: Some(refused.credentials?.into()),
    };
    Some(Waiting { refusals, until })
}

impl<P: Poller> Poller for Recalling<P> {
    fn poll<'a>(
        &'a self,
        item: &'a WorkItem,
        settings: &'a Settings,
        stop: watch::Receiver<Stage>,
    ) -> Pending<'a, Report> {
        self.inner.poll(item, settings, stop)
    }

    fn credentials<'a>(&'a self, item: &'a WorkItem) -> Pending<'a, Option<Box<str>>> {
        Box::pin(self.mark(item))
    }

    fn remembered<'a>(&'a self, item: &'a WorkItem) -> Pending<'a, Option<Waiting>> {
        Box::pin(self.recall(item))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_said_of_this_very_record_is_remembered() {
        let mut object = json!({
            "metadata": {"uid": "8d3c"},
            "status": {
                "nextPollTime": "1970-01-01T01:00:00Z",
                "lastError": {"code": "HostUnreachable", "message": "m", "count": 1, "refusedLogins": {
                    "since": "1970-01-01T00:10:00Z", "count": 3, "credentials": "2 71",
                }},
            },
        });
        let found = waiting(&object.to_string(), "8d3c").unwrap();
        assert_eq!((found.until, found.refusals.since, found.refusals.count), (3600, 600, 3));
        assert_eq!(waiting(&object.to_string(), "another"), None);
        object["status"]["lastError"]["refusedLogins"]["credentials"].take();
        assert_eq!(waiting(&object.to_string(), "8d3c"), None, "nobody knows with what");
        assert_eq!(waiting("{}", ""), None);
    }
}
