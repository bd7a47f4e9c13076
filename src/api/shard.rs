//! `RpopShard`: who polls a share of the records.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::shards::holding::Observation;

/// A share of all records, polled by one worker at a time. Internal to RPOP:
/// to be read, not to be written.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "rpop.dev",
    version = "v1alpha1",
    kind = "RpopShard",
    plural = "rpopshards",
    namespaced,
    status = "RpopShardStatus",
    derive = "PartialEq",
    doc = "A share of all records, polled by one worker at a time. Internal to RPOP: to be read, not to be written.",
    printcolumn(name = "Desired", type_ = "string", json_path = ".spec.desired"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.holder"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch"),
    printcolumn(name = "Slices", type_ = "integer", json_path = ".spec.slices"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RpopShardSpec {
    /// The worker that shall poll: its pod's name and its boot id, `POD/BOOT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub desired: Option<String>,
    /// How many RpopWorkSlices hold the shard's records: `SHARD-0` and on.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0, max = 1000))]
    pub slices: u32,
}

/// Who polls, and what it has taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RpopShardStatus {
    /// The worker that polls: `POD/BOOT`. Nobody else does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    pub holder: Option<String>,
    /// Counts the holders; never falls.
    #[serde(default)]
    #[schemars(range(min = 0))]
    #[x_kube(validation = Rule::new("self >= oldSelf").message("the epoch never falls: ledgers of a later one would refuse the holder"))]
    pub epoch: i64,
    /// What the holder works by, by the name of each of its slices: records
    /// that these do not name, it does not poll any more.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 1000))]
    pub observed_slices: BTreeMap<String, ObservedSlice>,
    /// Remote hosts that the holder leaves alone, so that others do, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub failed_hosts: Vec<ShardFailedHost>,
}

impl RpopShardStatus {
    /// `observedSlices`, as the protocol's machines take it.
    pub fn observations(&self) -> BTreeMap<String, Observation> {
        self.observed_slices.iter().map(|(name, seen)| (name.clone(), seen.into())).collect()
    }
}

/// A slice as the holder has taken it in. A slice that is deleted and made
/// again under its name is another one, and counts its generations anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct ObservedSlice {
    /// `metadata.uid` of the RpopWorkSlice: which object of that name it is.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// `metadata.generation` of that object.
    #[schemars(range(min = 0))]
    pub generation: i64,
}

impl From<&ObservedSlice> for Observation {
    fn from(seen: &ObservedSlice) -> Self {
        Self { uid: seen.uid.as_str().into(), generation: seen.generation }
    }
}

/// A remote host that is left alone for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct ShardFailedHost {
    /// `host:port`.
    #[schemars(length(max = 270))]
    pub host: String,
    /// Until then.
    pub until: Time,
    /// Why: a code from `docs/errors.md`.
    #[schemars(length(max = 64))]
    pub code: String,
}
