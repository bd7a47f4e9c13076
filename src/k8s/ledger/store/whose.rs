//! Whose a ledger is: which record's, and which holder's.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, Patch, Preconditions};
use serde_json::json;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::super::call::Trouble;
use super::super::codec::Head;
use super::super::object::{Owned, Stored, keeps, owned, owners};
use super::{Known, Seen, Work, manager};
use crate::api::{RpopRecord, RpopShard};
use crate::engine::ports::LedgerError;

/// A record's annotations are looked at again after so long.
const RECORD_FRESH: Duration = Duration::from_mins(10);

impl Work<'_> {
    /// Decides whether a ledger that was found is the record's, and sees to it
    /// that it goes with the record or stays, as it shall. `None`: it was that
    /// of a record of the past, and is gone.
    pub(super) async fn adopt(
        &mut self,
        meta: &ObjectMeta,
        stored: Stored,
        known: &Known,
    ) -> Result<Option<Seen>, LedgerError> {
        let before = match known {
            Known::There(seen) if seen.record == self.owner.uid => Some(seen),
            _ => None,
        };
        let owned = owned(meta, &self.owner.uid);
        let read = before.and_then(|seen| seen.read).filter(|(at, _)| at.elapsed() < RECORD_FRESH);
        let (at, kept) = match read {
            Some(read) if owned != Owned::Others => read,
            _ => (Instant::now(), keeps(&self.record().await?)),
        };
        let keep = kept || keeps(meta);
        if owned == Owned::Others && !keep {
            self.discard(&stored).await?;
            return Ok(None);
        }
        let same = before.filter(|seen| seen.stored.seal == stored.seal && seen.stored.uid == stored.uid);
        let unswept = same.map_or_else(|| stored.head.litter.clone(), |seen| seen.unswept.clone());
        let mut seen = Seen { stored, unswept, record: self.owner.uid.clone(), read: Some((at, kept)) };
        if keep != (owned == Owned::Nobodys) {
            self.set_owner(meta, &mut seen, !keep).await;
        }
        Ok(Some(seen))
    }

    /// The metadata of the record, which is ours for sure.
    pub(super) async fn record(&mut self) -> Result<ObjectMeta, LedgerError> {
        let records: Api<RpopRecord> = Api::namespaced(self.inner.client.clone(), &self.place.namespace);
        let name = &self.place.record;
        let shown = format!("RpopRecord {}/{name}", self.place.namespace);
        let meta = match self.tries.again(|| records.get_metadata(name)).await {
            Ok(found) => found.metadata,
            Err(Trouble::Missing(_)) => return Err(LedgerError::Conflict(format!("{shown} is gone"))),
            Err(trouble) => return Err(trouble.of(&shown)),
        };
        if meta.uid.as_deref() == Some(&self.owner.uid) {
            Ok(meta)
        } else {
            Err(LedgerError::Conflict(format!(
                "{shown} was deleted and made anew since this worker heard of it"
            )))
        }
    }

    /// Removes the ledger of a record that had our record's name before it:
    /// the garbage collector is about to, and has it so far only not done.
    async fn discard(&mut self, stored: &Stored) -> Result<(), LedgerError> {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: Some(stored.uid.clone()),
            resource_version: Some(stored.version.clone()),
        });
        match self.tries.again(|| self.maps.delete(&self.place.head, &params)).await {
            Ok(_) | Err(Trouble::Missing(_)) => {
                info!(
                    record = %format_args!("{}/{}", self.place.namespace, self.place.record),
                    "the ledger of a deleted record of this name is removed"
                );
                Ok(())
            }
            Err(Trouble::Conflict(_)) => Err(self.conflict("it changed while it was being removed")),
            Err(trouble) => Err(trouble.of(&format!("{} cannot be removed", self.shown()))),
        }
    }

    async fn set_owner(&self, meta: &ObjectMeta, seen: &mut Seen, owned: bool) {
        let owner = owned.then(|| self.place.owner(&self.owner.uid));
        let patch = json!({"metadata": {
            "uid": seen.stored.uid,
            "resourceVersion": seen.stored.version,
            "ownerReferences": owners(meta, owner),
        }});
        match self.patch(&patch).await {
            Ok(object) => {
                seen.stored.version = object.metadata.resource_version.unwrap_or_default();
                info!(ledger = %self.shown(), kept = !owned, "the owner of the ledger is set");
                if owned {
                    self.own_chunks(&seen.stored).await;
                }
            }
            // It is tried again at the next poll.
            Err(trouble) => {
                warn!(ledger = %self.shown(), kept = !owned, error = trouble.text(), "its owner cannot be set");
            }
        }
    }

    /// Chunks are owned by their head. Those that were put back from a backup
    /// have lost it, or its owner.
    async fn own_chunks(&self, stored: &Stored) {
        let patch = json!({"metadata": {"ownerReferences": [self.place.head_as_owner(&stored.uid)]}});
        let (patch, manager) = (Patch::Merge(&patch), manager());
        for chunk in stored.head.chunks() {
            let name = self.place.chunk(chunk.seal);
            let request = self.maps.patch_metadata(&name, &manager, &patch);
            if let Err(trouble) = self.tries.once(request).await {
                debug!(chunk = name, error = trouble.text(), "its owner cannot be set");
            }
        }
    }

    /// Refuses a ledger that a later holder of the shard has written.
    pub(super) async fn check_fence(&mut self, head: &Head) -> Result<(), LedgerError> {
        // Epochs of different shards cannot be compared; a record moves from
        // one to the other only when the holder of the first has let go.
        if head.shard != self.owner.shard.0 || head.epoch <= self.owner.epoch {
            return Ok(());
        }
        if self.is_of_another_life(head.epoch).await? {
            info!(
                ledger = %self.shown(), epoch = head.epoch, shard = %self.owner.shard,
                "the epoch of the ledger is from before its shard was made anew"
            );
            return Ok(());
        }
        Err(self.conflict(&format!(
            "it was written in epoch {} of {}, and this worker holds that since epoch {}",
            head.epoch, self.owner.shard, self.owner.epoch
        )))
    }

    /// An epoch that the shard has not come to was counted by one that was
    /// deleted since.
    async fn is_of_another_life(&mut self, epoch: i64) -> Result<bool, LedgerError> {
        let Some(system) = &self.inner.system else { return Ok(false) };
        let shards: Api<RpopShard> = Api::namespaced(self.inner.client.clone(), system);
        let name = self.owner.shard.to_string();
        let shard = self.tries.again(|| shards.get(&name)).await;
        let shard = match shard {
            Ok(shard) => shard,
            Err(Trouble::Missing(_)) => return Ok(false),
            Err(trouble) => return Err(trouble.of(&format!("RpopShard {system}/{name}"))),
        };
        Ok(shard.status.is_some_and(|status| status.epoch < epoch))
    }
}
