//! One write to the API server, and what its end means.

use std::sync::Arc;

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::{Client, Resource};
use serde_json::Value;

use super::outbox::Ended;
use super::status::{MANAGER, Wanted};
use crate::api::{RpopDomain, RpopRecord, RpopSettings};
use crate::domain::work::RecordKey;
use crate::k8s::client::REQUEST_DEADLINE;
use crate::k8s::error::{ApiError, within};

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
    /// Our part of the status, of the object with that uid; with a version
    /// only if it still is that one.
    Status { wanted: Wanted, body: Value, version: Option<Arc<str>> },
    /// The record of that uid and version is removed.
    Remove { uid: Arc<str>, version: Arc<str> },
}

/// What the outbox shall do about an error. Conflicts and what is gone are not
/// tried again: the watch tells what is there now, and that is decided anew.
pub(super) fn ended(error: &ApiError) -> Ended {
    match error {
        // An object that the schema of today refuses can be told nothing; its
        // Event says why.
        ApiError::NotFound { .. }
        | ApiError::Conflict { .. }
        | ApiError::Gone { .. }
        | ApiError::Invalid { .. } => Ended::Done,
        error => Ended::Again(error.retry_after()),
    }
}

/// Writes.
pub(super) async fn write(client: &Client, target: &Target, job: &Job) -> Result<(), ApiError> {
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
        Job::Status { wanted: _, body, version } => {
            let params = PatchParams::apply(MANAGER).force();
            let mut body = body.clone();
            if let Some(version) = version {
                body["metadata"]["resourceVersion"] = (**version).into();
            }
            within(REQUEST_DEADLINE, api.patch_status(name, &params, &Patch::Apply(&body))).await?;
        }
        Job::Remove { uid, version } => {
            let same =
                Preconditions { uid: Some(uid.to_string()), resource_version: Some(version.to_string()) };
            let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
            within(REQUEST_DEADLINE, api.delete(name, &params)).await?;
        }
    }
    Ok(())
}

fn resource<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}
