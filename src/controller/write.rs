//! One write to the API server, and what its end means.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Client, Resource};
use serde_json::Value;

use super::outbox::Ended;
use super::status::{MANAGER, Wanted};
use super::watch::causes;
use crate::api::{RpopDomain, RpopRecord, RpopSettings};
use crate::domain::work::RecordKey;

/// No write takes longer.
const DEADLINE: Duration = Duration::from_secs(10);

/// Which object is written: one write at a time for each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Record(RecordKey),
    Domain(Arc<str>),
    Settings,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Record(key) => write!(f, "RpopRecord {key}"),
            Self::Domain(name) => write!(f, "RpopDomain {name}"),
            Self::Settings => f.write_str("RpopSettings default"),
        }
    }
}

/// What is written.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// Our part of the status, of the object with that uid.
    Status { uid: Arc<str>, wanted: Wanted, body: Value },
    /// The record of that uid and version is removed.
    Remove { uid: Arc<str>, version: Arc<str> },
}

/// Why a write did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The API server refused, or could not be asked.
    #[error("{}", causes(.0))]
    Api(#[source] Box<kube::Error>),
    /// No answer.
    #[error("no answer within 10 s")]
    Deadline,
}

impl WriteError {
    fn code(&self) -> u16 {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) => status.code,
                _ => 0,
            },
            Self::Deadline => 0,
        }
    }

    /// The object is gone, or its namespace is going.
    pub(super) fn is_gone(&self) -> bool {
        self.code() == 404
    }

    /// The object is not what it was when this was decided.
    pub(super) fn is_conflict(&self) -> bool {
        self.code() == 409
    }

    /// Whether it may go well if nothing changes but time.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self.code(), 0 | 408 | 429 | 500..)
    }

    /// For a label.
    pub(super) fn reason(&self) -> &'static str {
        match self.code() {
            0 => "Unavailable",
            403 => "Forbidden",
            404 => "NotFound",
            409 => "Conflict",
            422 => "Invalid",
            429 => "TooMany",
            500.. => "Unavailable",
            _ => "Other",
        }
    }

    /// How long the API server asks to wait.
    fn retry_after(&self) -> Option<Duration> {
        let Self::Api(error) = self else { return None };
        let kube::Error::Api(status) = &**error else { return None };
        let seconds = status.details.as_ref()?.retry_after_seconds;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// What the outbox shall do.
    pub(super) fn ended(&self) -> Ended {
        match self.code() {
            // The watch tells what is there now, and that is decided anew.
            404 | 409 => Ended::Done,
            429 | 500.. | 0 | 408 => Ended::Again(self.retry_after()),
            _ => Ended::Again(Some(Duration::ZERO)),
        }
    }
}

/// Writes.
pub(super) async fn write(client: &Client, target: &Target, job: &Job) -> Result<(), WriteError> {
    let writing = async {
        let (kind, namespace, name) = match target {
            Target::Record(key) => (resource::<RpopRecord>(), Some(&*key.namespace), &*key.name),
            Target::Domain(name) => (resource::<RpopDomain>(), None, &**name),
            Target::Settings => (resource::<RpopSettings>(), None, "default"),
        };
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
            None => Api::all_with(client.clone(), &kind),
        };
        match job {
            Job::Status { uid: _, wanted: _, body } => {
                let params = PatchParams::apply(MANAGER).force();
                api.patch_status(name, &params, &Patch::Apply(body)).await.map(drop)
            }
            Job::Remove { uid, version } => {
                let same = Preconditions {
                    uid: Some(uid.to_string()),
                    resource_version: Some(version.to_string()),
                };
                let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
                api.delete(name, &params).await.map(drop)
            }
        }
    };
    match tokio::time::timeout(DEADLINE, writing).await {
        Ok(result) => result.map_err(|error| WriteError::Api(Box::new(error))),
        Err(_) => Err(WriteError::Deadline),
    }
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}
