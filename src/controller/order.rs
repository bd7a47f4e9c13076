//! What the leader's machine decreed, written to the API server. Every write
//! compares and swaps: it carries the version that was decided upon.

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use serde_json::json;

use super::status::MANAGER;
use super::work::{shard_seen, slice_seen};
use crate::api::{RpopShard, RpopShardSpec, RpopWorkSlice, RpopWorkSliceSpec};
use crate::domain::shards::leader::{Answer, Decree, REMOVED, Seen, Target, format_removed};
use crate::domain::shards::{Incarnation, ShardId};
use crate::domain::work::RecordKey;
use crate::k8s::client::REQUEST_DEADLINE;
use crate::k8s::error::{ApiError, within};
use crate::k8s::lease;

/// The annotation of a shard that says how many there are: the first start
/// decides, and may have been cut short.
pub(super) const SHARDS: &str = "rpop.dev/shards";

/// A slice that is to be written.
#[derive(Clone, Debug)]
pub(super) struct SliceBody {
    pub(super) name: String,
    pub(super) shard: ShardId,
    /// `None`: it is created.
    pub(super) version: Option<String>,
    pub(super) spec: RpopWorkSliceSpec,
    pub(super) removed: Vec<RecordKey>,
}

/// A decree with all that it takes to write it.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Slice { target: Target, body: Box<SliceBody> },
    Other { target: Target, decree: Decree },
}

impl Order {
    /// The object that it writes.
    pub(super) fn target(&self) -> &Target {
        match self {
            Self::Slice { target, .. } | Self::Other { target, .. } => target,
        }
    }

    /// For people.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Slice { .. } => "write a slice",
            Self::Other { decree, .. } => match decree {
                Decree::StealLease { .. } => "take a dead worker's lease",
                Decree::DeleteLease { .. } => "delete an old lease",
                Decree::CreateShard(_) => "create a shard",
                Decree::SetDesired { .. } => "place a shard",
                Decree::GiveAway { .. } => "give a shard away",
                Decree::WriteSlice { .. } => "write a slice",
            },
        }
    }
}

/// An object that nobody needs: a shard, or a slice of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    pub(super) shard: ShardId,
    pub(super) slice: Option<u32>,
    pub(super) version: String,
}

/// Removes it, if it is still what was seen.
pub(super) async fn remove(client: &Client, system: &str, orphan: &Orphan) -> Result<(), ApiError> {
    let Orphan { shard, slice, version } = orphan;
    let same = Preconditions { uid: None, resource_version: Some(version.clone()) };
    let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
    if let Some(number) = slice {
        let objects: Api<RpopWorkSlice> = Api::namespaced(client.clone(), system);
        within(REQUEST_DEADLINE, objects.delete(&shard.slice(*number), &params)).await?;
    } else {
        let objects: Api<RpopShard> = Api::namespaced(client.clone(), system);
        within(REQUEST_DEADLINE, objects.delete(&shard.to_string(), &params)).await?;
    }
    Ok(())
}

/// Writes; what the API server answered with is to be heard before the answer.
pub(super) async fn execute(
    client: &Client,
    system: &str,
    shards: u16,
    order: &Order,
) -> Result<Option<Seen>, ApiError> {
    match order {
        Order::Slice { target: _, body } => write_slice(client, system, body).await,
        Order::Other { target: _, decree } => write(client, system, shards, decree).await,
    }
}

/// What an error means to the machine.
pub(super) fn answer(error: &ApiError) -> Answer {
    match error {
        ApiError::Conflict { .. } | ApiError::NotFound { .. } | ApiError::Gone { .. } => Answer::Conflict,
        _ => Answer::Failed,
    }
}

/// A slice that could not be written as it was decided: as it is now, or that
/// it is gone. A watch may have told of it before the answer to an earlier
/// write did, and then never again. `None` where that cannot be told.
pub(super) async fn look_again(client: &Client, system: &str, order: &Order) -> Option<Seen> {
    let Order::Slice { body, .. } = order else { return None };
    let objects: Api<RpopWorkSlice> = Api::namespaced(client.clone(), system);
    match within(REQUEST_DEADLINE, objects.get(&body.name)).await {
        Ok(slice) => slice_seen(&slice).map(Seen::Slice),
        Err(ApiError::NotFound { .. }) => {
            let (shard, number) = ShardId::parse_slice(&body.name)?;
            Some(Seen::SliceGone(shard, number))
        }
        Err(_) => None,
    }
}

async fn write(
    client: &Client,
    system: &str,
    shards: u16,
    decree: &Decree,
) -> Result<Option<Seen>, ApiError> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), system);
    let objects: Api<RpopShard> = Api::namespaced(client.clone(), system);
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let limit = REQUEST_DEADLINE;
    let shard = match decree {
        Decree::StealLease { name, version, worker } => {
            let stolen = lease::steal(&leases, name, version, worker).await?;
            tracing::warn!(lease = %name, %worker, "the worker is dead: its lease is taken");
            return Ok(Some(Seen::Lease(super::feed::lease_seen(&stolen))));
        }
        Decree::DeleteLease { name, version } => {
            let same = Preconditions { uid: None, resource_version: Some(version.clone()) };
            let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
            within(limit, leases.delete(name, &params)).await?;
            return Ok(None);
        }
        Decree::WriteSlice { .. } => return Ok(None),
        Decree::CreateShard(shard) => {
            let mut object = RpopShard::new(&shard.to_string(), RpopShardSpec::default());
            let labels = labels(*shard);
            let annotations = BTreeMap::from([(SHARDS.to_owned(), shards.to_string())]);
            object.metadata =
                ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..object.metadata };
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            within(limit, objects.create(&params, &object)).await?
        }
        Decree::SetDesired { shard, version, desired, slices, why } => {
            let body = json!({
                "metadata": {"resourceVersion": version},
                "spec": {"desired": desired.as_ref().map(Incarnation::as_str), "slices": slices},
            });
            let written =
                within(limit, objects.patch(&shard.to_string(), &params, &Patch::Merge(body))).await?;
            if let (Some(why), Some(worker)) = (why, desired) {
                tracing::info!(%shard, %worker, why = why.reason(), "the shard is placed");
            }
            written
        }
        Decree::GiveAway { shard, version, holder, epoch } => {
            let body = json!({
                "metadata": {"resourceVersion": version},
                "status": {"holder": holder.as_str(), "epoch": epoch},
            });
            let written =
                within(limit, objects.patch_status(&shard.to_string(), &params, &Patch::Merge(body))).await?;
            tracing::info!(%shard, worker = %holder, epoch, "the shard is given away");
            written
        }
    };
    Ok(shard_seen(&shard).map(Seen::Shard))
}

async fn write_slice(client: &Client, system: &str, body: &SliceBody) -> Result<Option<Seen>, ApiError> {
    let SliceBody { name, shard, version, spec, removed } = body;
    let objects: Api<RpopWorkSlice> = Api::namespaced(client.clone(), system);
    let mut object = RpopWorkSlice::new(name, spec.clone());
    object.metadata.labels = Some(labels(*shard));
    if !removed.is_empty() {
        object.metadata.annotations = Some(BTreeMap::from([(REMOVED.to_owned(), format_removed(removed))]));
    }
    object.metadata.resource_version.clone_from(version);
    let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    let written = if version.is_some() {
        within(REQUEST_DEADLINE, objects.replace(name, &params, &object)).await?
    } else {
        within(REQUEST_DEADLINE, objects.create(&params, &object)).await?
    };
    Ok(slice_seen(&written).map(Seen::Slice))
}

fn labels(shard: ShardId) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/managed-by", "rpop".to_owned()),
        ("app.kubernetes.io/part-of", "rpop".to_owned()),
        ("rpop.dev/shard", shard.0.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}
