//! Shards as the API server has them, and as a worker writes them.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};

use crate::api::{RpopShard, RpopShardStatus};
use crate::domain::shards::holding::{Observation, ShardSeen, Written};
use crate::domain::shards::{Incarnation, ShardId};
use crate::domain::text::causes;
use crate::k8s::error::{ApiError, within};

/// One request; the member counts on an answer.
pub(super) const REQUEST: Duration = Duration::from_secs(10);

/// The shard as the member wants to see it; `None` for an object of another
/// name.
pub(super) fn seen(shard: &RpopShard) -> Option<ShardSeen> {
    let status = shard.status.as_ref();
    let named = |text: Option<&String>| text.and_then(|text| Incarnation::named(text));
    Some(ShardSeen {
        id: ShardId::parse(&shard.name_any())?,
        version: shard.resource_version()?,
        desired: named(shard.spec.desired.as_ref()),
        holder: named(status.and_then(|status| status.holder.as_ref())),
        epoch: status.map_or(0, |status| status.epoch),
        slices: shard.spec.slices,
        observed: status.map(RpopShardStatus::observations).unwrap_or_default(),
    })
}

/// A write of a shard's status.
#[derive(Clone, Debug)]
pub(super) struct StatusWrite {
    pub(super) shard: ShardId,
    pub(super) version: String,
    pub(super) holder: Option<Incarnation>,
    pub(super) epoch: i64,
    pub(super) observed: BTreeMap<String, Observation>,
    /// The slices that the status names at that version.
    pub(super) before: Vec<String>,
}

impl StatusWrite {
    /// A merge patch that holds for one version of the object.
    fn patch(&self) -> Value {
        let mut observed: Map<String, Value> =
            self.before.iter().map(|name| (name.clone(), Value::Null)).collect();
        observed.extend(self.observed.iter().map(|(name, Observation { uid, generation })| {
            (name.clone(), json!({"uid": &**uid, "generation": generation}))
        }));
        json!({
            "metadata": {"resourceVersion": self.version},
            "status": {
                "holder": self.holder.as_ref().map(Incarnation::as_str),
                "epoch": self.epoch,
                "observedSlices": observed,
            },
        })
    }

    /// Writes, if the shard still has this version.
    pub(super) async fn write(&self, shards: &Api<RpopShard>) -> Written {
        let (name, parameters, patch) =
            (self.shard.to_string(), PatchParams::default(), Patch::Merge(self.patch()));
        match within(REQUEST, shards.patch_status(&name, &parameters, &patch)).await {
            Ok(shard) => seen(&shard).map_or(Written::Failed, Written::Ok),
            Err(ApiError::Conflict { .. }) => Written::Conflict,
            Err(error) => {
                tracing::warn!(shard = %self.shard, "its status is not written: {}", causes(&error));
                // Refused for whose it is: somebody else's, so it has changed.
                if matches!(error, ApiError::Forbidden { .. } | ApiError::Invalid { .. }) {
                    Written::Conflict
                } else {
                    Written::Failed
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_that_is_no_more_is_taken_out_of_the_status() {
        let seen = Observation { uid: "5c0ffee".into(), generation: 4 };
        let write = StatusWrite {
            shard: ShardId(7),
            version: "12".to_owned(),
            holder: Incarnation::parse("a/0000002a"),
            epoch: 3,
            observed: BTreeMap::from([("shard-007-0".to_owned(), seen)]),
            before: vec!["shard-007-0".to_owned(), "shard-007-1".to_owned()],
        };
        assert_eq!(
            write.patch(),
            json!({
                "metadata": {"resourceVersion": "12"},
                "status": {
                    "holder": "a/0000002a",
                    "epoch": 3,
                    "observedSlices": {
                        "shard-007-0": {"uid": "5c0ffee", "generation": 4},
                        "shard-007-1": null,
                    },
                },
            })
        );
        let given = StatusWrite { holder: None, ..write };
        assert_eq!(given.patch()["status"]["holder"], Value::Null);
    }
}
