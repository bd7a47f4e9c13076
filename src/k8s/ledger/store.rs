//! One operation on one record's ledger, as requests to the API server.

mod whose;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::time::Instant;
use tracing::debug;

use super::call::{Tries, Trouble, random};
use super::codec::{Chunk, ChunkRef, Group, Head, Seal, unpack};
use super::fold::{self, Fold, Live};
use super::object::{Place, Stored, head_data, keeps};
use super::{Inner, Owner};
use crate::domain::ledger::{Change, Ledger, Mark};
use crate::engine::ports::LedgerError;

/// As whom we write.
const MANAGER: &str = "rpop-worker";
/// Chunks that are read at once.
const PARALLEL: usize = 4;
/// Changes of others to metadata that one write gives way to.
const MOST_TOUCHES: u32 = 8;

/// What the process remembers of a ledger from one operation to the next.
#[derive(Debug, Default)]
pub(super) enum Known {
    /// Nothing: it has to be read.
    #[default]
    Nothing,
    /// There is none.
    Absent,
    /// It is as this process read or wrote it.
    There(Box<Seen>),
}

/// See [`Known::There`].
#[derive(Debug)]
pub(super) struct Seen {
    stored: Stored,
    /// Of the head's litter what may still exist.
    unswept: Vec<Seal>,
    /// The record's uid.
    record: String,
    /// When the record's annotations were read, and whether they keep the
    /// ledger.
    read: Option<(Instant, bool)>,
}

impl Known {
    /// For the ledger: its object, and the seal of the head.
    pub(super) fn mark(&self) -> Mark {
        match self {
            Self::There(seen) => mark_of(&seen.stored),
            Self::Nothing | Self::Absent => Mark::default(),
        }
    }
}

fn mark_of(stored: &Stored) -> Mark {
    let object = stored.uid.bytes().fold(0xcbf2_9ce4_8422_2325, |sum: u64, octet| {
        (sum ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
    });
    Mark { object: object.max(1), version: stored.seal.short(), length: 0, lines: 0 }
}

/// Something to write.
#[derive(Debug)]
pub(super) struct Task {
    /// What the ledger's mark is.
    pub(super) mark: Mark,
    pub(super) salt: [u8; 16],
    /// What to commit; without it the head is only to be there and ours.
    pub(super) batch: Option<Batch>,
}

/// Changes as groups.
#[derive(Debug)]
pub(super) struct Batch {
    /// What is known of the UIDs from now on.
    pub(super) groups: BTreeMap<u64, Box<[u8]>>,
    /// What the ledger is afterwards.
    pub(super) live: Live,
    /// There are UIDs among them that were not known.
    pub(super) grows: bool,
}

/// One operation.
pub(super) struct Work<'a> {
    inner: &'a Inner,
    place: Place,
    owner: Owner,
    tries: Tries,
    maps: Api<ConfigMap>,
}

impl<'a> Work<'a> {
    pub(super) fn new(inner: &'a Inner, place: Place, owner: Owner) -> Self {
        let maps = Api::namespaced(inner.client.clone(), &place.namespace);
        Self { inner, place, owner, tries: Tries::new(inner.patience), maps }
    }

    /// Reads the ledger.
    pub(super) async fn load(&mut self, known: Known) -> Result<(Ledger, Known), LedgerError> {
        let mut missing: Option<(Seal, String)> = None;
        loop {
            let Some(object) = self.get(&self.place.head.clone()).await? else {
                return Ok((Ledger::new(salt()), Known::Absent));
            };
            let stored = self.place.read_head(&object)?;
            if let Some((seal, name)) = missing
                && seal == stored.seal
            {
                return Err(self.place.damaged(&name, "it is missing"));
            }
            let Some(seen) = self.adopt(&object.metadata, stored, &known).await? else {
                return Ok((Ledger::new(salt()), Known::Absent));
            };
            self.check_fence(&seen.stored.head).await?;
            match self.read(&seen.stored.head).await {
                Ok(ledger) => return Ok((ledger, Known::There(Box::new(seen)))),
                // The head may have been written while its chunks were read.
                Err(Unread::Missing(name)) => missing = Some((seen.stored.seal, name)),
                Err(Unread::Failed(error)) => return Err(error),
            }
        }
    }

    async fn read(&self, head: &Head) -> Result<Ledger, Unread> {
        let names: Vec<ChunkRef> = head.chunks().copied().collect();
        let chunks: Vec<Arc<[u8]>> =
            stream::iter(names.clone()).map(|name| self.chunk(name)).buffered(PARALLEL).try_collect().await?;
        let mut ledger = Ledger::new(head.salt);
        for (name, octets) in names.iter().zip(&chunks) {
            let each = |hash, _: &[u8], group: Group| {
                ledger.apply(&Change::Forget { hash });
                group.put_into(&mut ledger, hash);
            };
            unpack(octets, name, head.salt, each).map_err(|flaw| {
                // It may be put back as it was.
                self.inner.chunks.remove(name.seal);
                self.place.flawed(&self.place.chunk(name.seal), flaw)
            })?;
        }
        for (hash, body) in &head.fresh {
            let group = Group::parse(body).map_err(|flaw| self.place.flawed(&self.place.head, flaw))?;
            ledger.apply(&Change::Forget { hash: *hash });
            group.put_into(&mut ledger, *hash);
        }
        ledger.shrink();
        Ok(ledger)
    }

    async fn chunk(&self, chunk: ChunkRef) -> Result<Arc<[u8]>, Unread> {
        if let Some(octets) = self.inner.chunks.get(chunk.seal) {
            return Ok(octets);
        }
        let name = self.place.chunk(chunk.seal);
        let mut tries = self.tries.clone();
        let object = match tries.again(|| self.maps.get(&name)).await {
            Ok(object) => object,
            Err(Trouble::Missing(_)) => return Err(Unread::Missing(name)),
            Err(trouble) => return Err(trouble.of(&self.place.shown(&name)).into()),
        };
        let octets: Arc<[u8]> = Place::chunk_data(&object)
            .ok_or_else(|| self.place.damaged(&name, "it has no binaryData.chunk"))?
            .into();
        self.inner.chunks.put(chunk.seal, Arc::clone(&octets));
        Ok(octets)
    }

    /// Carries out a task.
    pub(super) async fn write(&mut self, known: Known, task: Task) -> Result<Known, LedgerError> {
        let Some(seen) = self.base(known, task.mark).await? else {
            return self.begin(task).await.map(|seen| Known::There(Box::new(seen)));
        };
        let head = &seen.stored.head;
        if head.salt != task.salt {
            return Err(self.conflict("it was made anew by somebody else"));
        }
        self.check_fence(head).await?;
        let is_ours = (head.shard, head.epoch) == (self.owner.shard.0, self.owner.epoch);
        let seen = match task.batch {
            Some(batch) => self.commit(seen, batch).await?,
            None if is_ours => seen,
            None => {
                let head = Head { litter: seen.unswept.clone(), ..head.clone() };
                self.swap(seen, head).await?
            }
        };
        Ok(Known::There(Box::new(seen)))
    }

    /// What is known of the ledger that was read as `mark` says.
    async fn base(&mut self, known: Known, mark: Mark) -> Result<Option<Seen>, LedgerError> {
        let seen = match known {
            Known::There(seen) if seen.record == self.owner.uid => Some(*seen),
            Known::There(_) => return Err(self.conflict("it was read for another record of this name")),
            Known::Absent | Known::Nothing => None,
        };
        if mark == Mark::default() {
            return match seen {
                None => Ok(None),
                Some(_) => Err(self.conflict("there was none when it was read")),
            };
        }
        if let Some(seen) = seen {
            return if mark_of(&seen.stored) == mark {
                Ok(Some(seen))
            } else {
                Err(self.conflict("it was written since it was read"))
            };
        }
        let object = self.get(&self.place.head.clone()).await?;
        let object = object.ok_or_else(|| self.conflict("it was removed since it was read"))?;
        let stored = self.place.read_head(&object)?;
        if mark_of(&stored) != mark {
            return Err(self.conflict(&written_by(&stored.head)));
        }
        let unswept = stored.head.litter.clone();
        Ok(Some(Seen { stored, unswept, record: self.owner.uid.clone(), read: None }))
    }

    /// The first write of a ledger.
    async fn begin(&mut self, task: Task) -> Result<Seen, LedgerError> {
        let kept = keeps(&self.record().await?);
        let at = Instant::now();
        let mut head = Head::new(task.salt);
        let mut later = None;
        if let Some(batch) = task.batch {
            head.fresh.clone_from(&batch.groups);
            head.fresh.retain(|_, body| !Group::is_forgotten(body));
            if head.size() > self.inner.bounds.head {
                head.fresh.clear();
                later = Some(batch);
            }
        }
        let stored = self.create(head, !kept).await?;
        let seen =
            Seen { stored, unswept: Vec::new(), record: self.owner.uid.clone(), read: Some((at, kept)) };
        match later {
            None => Ok(seen),
            Some(batch) => self.commit(seen, batch).await,
        }
    }

    async fn create(&mut self, mut head: Head, owned: bool) -> Result<Stored, LedgerError> {
        self.stamp(&mut head);
        let (octets, seal) = head.encode();
        let owner = owned.then(|| self.place.owner(&self.owner.uid));
        let object = self.place.new_head(octets, owner);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        loop {
            match self.tries.once(self.maps.create(&params, &object)).await {
                Ok(object) => return self.place.read_head(&object),
                // Somebody else's, or ours whose answer was lost.
                Err(Trouble::Exists(_)) => {
                    let found = self.get(&self.place.head.clone()).await?;
                    let found = found.ok_or_else(|| self.conflict("it comes and goes"))?;
                    let stored = self.place.read_head(&found)?;
                    return if stored.seal == seal {
                        Ok(stored)
                    } else {
                        Err(self.conflict(&written_by(&stored.head)))
                    };
                }
                Err(trouble) => self.pause(trouble, "cannot be made").await?,
            }
        }
    }

    async fn commit(&mut self, seen: Seen, batch: Batch) -> Result<Seen, LedgerError> {
        let mut head = Head { litter: seen.unswept.clone(), ..seen.stored.head.clone() };
        for (hash, body) in batch.groups {
            // Where there are no chunks nothing has to be overridden.
            if Group::is_forgotten(&body) && head.runs.is_empty() {
                head.fresh.remove(&hash);
            } else {
                head.fresh.insert(hash, body);
            }
        }
        if head.size() <= self.inner.bounds.head {
            return self.swap(seen, head).await;
        }
        self.fold(seen, &head, batch.live, batch.grows).await
    }

    /// Writes the latest groups into chunks. The head says first which ones
    /// there will be: should we end before it names them as its own, the next
    /// holder knows what to remove.
    async fn fold(
        &mut self,
        mut seen: Seen,
        head: &Head,
        live: Live,
        grows: bool,
    ) -> Result<Seen, LedgerError> {
        let merge = fold::merge(head, live, &self.inner.bounds);
        let mut olds = Vec::with_capacity(merge.chunks.len());
        for name in &merge.chunks {
            olds.push(self.chunk(*name).await.map_err(|unread| match unread {
                Unread::Missing(name) => self.place.damaged(&name, "it is missing"),
                Unread::Failed(error) => error,
            })?);
        }
        let folded = fold::fold(&self.place, &self.inner.bounds, head, grows, &merge, &olds);
        let Fold { chunks, mut head } = folded.inspect_err(|_| {
            for chunk in &merge.chunks {
                self.inner.chunks.remove(chunk.seal);
            }
        })?;
        if !seen.unswept.is_empty() {
            let same = Head { litter: seen.unswept.clone(), ..seen.stored.head.clone() };
            seen = self.swap(seen, same).await?;
        }
        head.litter.extend(&seen.unswept);
        let mut announced = Head { litter: seen.unswept.clone(), ..seen.stored.head.clone() };
        announced.litter.extend(chunks.iter().map(|chunk| chunk.name.seal));
        // Nothing of it is litter as long as we go on.
        seen = self.swap_keeping(seen, announced).await?;
        for chunk in &chunks {
            self.create_chunk(chunk, &seen.stored.uid.clone()).await?;
        }
        self.swap(seen, head).await
    }

    async fn create_chunk(&mut self, chunk: &Chunk, head_uid: &str) -> Result<(), LedgerError> {
        let object = self.place.new_chunk(chunk, head_uid);
        let name = self.place.chunk(chunk.name.seal);
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        match self.tries.again(|| self.maps.create(&params, &object)).await {
            Ok(_) => {}
            // Ours, whose answer was lost: no two have the same name.
            Err(Trouble::Exists(_)) => {
                let found = self.get(&name).await?;
                if found.as_ref().and_then(Place::chunk_data) != Some(&chunk.octets) {
                    return Err(self.place.damaged(&name, "it holds something else than its name says"));
                }
            }
            Err(trouble) => return Err(trouble.of(&format!("{} cannot be made", self.place.shown(&name)))),
        }
        self.inner.chunks.put(chunk.name.seal, chunk.octets.as_slice().into());
        Ok(())
    }

    /// Puts `head` in the place of what was seen, and then removes what has
    /// become litter.
    async fn swap(&mut self, seen: Seen, head: Head) -> Result<Seen, LedgerError> {
        let mut seen = self.swap_keeping(seen, head).await?;
        let litter = std::mem::take(&mut seen.unswept);
        seen.unswept = self.sweep(litter).await;
        Ok(seen)
    }

    async fn swap_keeping(&mut self, seen: Seen, mut head: Head) -> Result<Seen, LedgerError> {
        self.stamp(&mut head);
        let (octets, seal) = head.encode();
        if octets.len() > fold::HEAD {
            let text = format!("{}: old chunks of it cannot be removed", self.shown());
            return Err(LedgerError::Unavailable(text));
        }
        let data = head_data(octets);
        let mut version = seen.stored.version.clone();
        let mut touches = 0;
        let version = loop {
            let patch = json!({
                "metadata": {"uid": seen.stored.uid, "resourceVersion": version},
                "binaryData": data,
            });
            match self.patch(&patch).await {
                Ok(object) => break object.metadata.resource_version.unwrap_or_default(),
                Err(Trouble::Missing(_)) => return Err(self.conflict("it was removed")),
                // Somebody else's write, or ours whose answer was lost.
                Err(Trouble::Conflict(_)) => {
                    let now = self.get(&self.place.head.clone()).await?;
                    let now = now.ok_or_else(|| self.conflict("it was removed"))?;
                    let now = self.place.read_head(&now)?;
                    if now.uid == seen.stored.uid && now.seal == seal {
                        break now.version;
                    }
                    touches += 1;
                    let untouched = now.uid == seen.stored.uid && now.seal == seen.stored.seal;
                    if !untouched || touches > MOST_TOUCHES {
                        return Err(self.conflict(&written_by(&now.head)));
                    }
                    // A label or an annotation: the ledger is as we know it.
                    version = now.version;
                }
                Err(trouble) => self.pause(trouble, "cannot be written").await?,
            }
        };
        let stored = Stored { uid: seen.stored.uid, version, seal, head };
        let unswept = stored.head.litter.clone();
        Ok(Seen { stored, unswept, record: seen.record, read: seen.read })
    }

    /// Removes chunks that are in no run; gives back those that it could not
    /// remove. The head that we have just written names them so that the next
    /// one who writes it can.
    async fn sweep(&mut self, litter: Vec<Seal>) -> Vec<Seal> {
        for (at, seal) in litter.iter().enumerate() {
            self.inner.chunks.remove(*seal);
            let name = self.place.chunk(*seal);
            match self.tries.once(self.maps.delete(&name, &DeleteParams::default())).await {
                Ok(_) | Err(Trouble::Missing(_)) => {}
                // Somebody waits for the commit, and that is done.
                Err(trouble) => {
                    debug!(chunk = name, error = trouble.text(), "old chunks are removed later");
                    return litter[at..].to_vec();
                }
            }
        }
        Vec::new()
    }

    fn stamp(&self, head: &mut Head) {
        head.nonce = random();
        head.shard = self.owner.shard.0;
        head.epoch = self.owner.epoch;
    }

    async fn patch(&self, patch: &serde_json::Value) -> Result<ConfigMap, Trouble> {
        self.tries.once(self.maps.patch(&self.place.head, &manager(), &Patch::Merge(patch))).await
    }

    async fn get(&mut self, name: &str) -> Result<Option<ConfigMap>, LedgerError> {
        match self.tries.again(|| self.maps.get(name)).await {
            Ok(object) => Ok(Some(object)),
            Err(Trouble::Missing(_)) => Ok(None),
            Err(trouble) => Err(trouble.of(&format!("{} cannot be read", self.place.shown(name)))),
        }
    }

    async fn pause(&mut self, trouble: Trouble, what: &str) -> Result<(), LedgerError> {
        let waited = self.tries.wait(trouble).await;
        waited.map_err(|trouble| trouble.of(&format!("{} {what}", self.shown())))
    }

    fn shown(&self) -> String {
        self.place.shown(&self.place.head)
    }

    fn conflict(&self, why: &str) -> LedgerError {
        LedgerError::Conflict(format!("{}: {why}", self.shown()))
    }
}

fn manager() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

fn written_by(head: &Head) -> String {
    format!("somebody else wrote it (shard {}, epoch {})", head.shard, head.epoch)
}

fn salt() -> [u8; 16] {
    (u128::from(random()) << 64 | u128::from(random())).to_be_bytes()
}

/// Why a ledger's chunks could not be read.
enum Unread {
    /// There is no such `ConfigMap`.
    Missing(String),
    Failed(LedgerError),
}

impl From<LedgerError> for Unread {
    fn from(error: LedgerError) -> Self {
        Self::Failed(error)
    }
}
