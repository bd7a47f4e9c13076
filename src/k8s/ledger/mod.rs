//! Ledgers in `ConfigMaps`: `rpop-uids-NAME` in the record's namespace.
//!
//! ```text
//!  rpop-uids-NAME (head, <= 16 KiB)         rpop-uids-NAME-SEAL (chunks, <= 256 KiB)
//!  salt, nonce, shard, epoch      names     immutable: groups of UIDs, sorted
//!  runs of chunks  ---------------------->  by their hashes
//!  latest groups   --- folded, when they outgrow the head, into --->  new chunks
//! ```
//!
//! A batch of changes rewrites the head alone, by compare-and-swap on its
//! `resourceVersion`; the shard's epoch in it refuses holders of the past. When
//! an answer is lost the head is read again: no two writes are the same, so it
//! says for sure whether ours went through. See
//! `docs/design/0006-ledger-in-configmaps.md`.

mod call;
mod codec;
mod fold;
mod object;
mod shelf;
mod store;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use kube::Client;
use tokio::sync::OwnedMutexGuard;

use crate::domain::ledger::{Change, Ledger, Mark};
use crate::domain::shards::ShardId;
use crate::domain::work::RecordKey;
use crate::engine::ports::{LedgerError, LedgerStore, Pending};
use call::Patience;
use codec::Group;
use fold::{Bounds, Live};
use object::Place;
pub use object::{KEEP_LEDGER, LEDGER, PREFIX};
use shelf::Shelf;
use store::{Batch, Known, Task, Work};

/// Records whose heads are remembered between polls.
const MOST_REMEMBERED: usize = 4096;

/// What the process may poll.
pub trait Holdings: Send + Sync {
    /// By which right it polls a record and writes its ledger; `None` where it
    /// has none, and every operation ends in [`LedgerError::Conflict`].
    fn owner(&self, key: &RecordKey) -> Option<Owner>;
}

/// The right to a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The record's `metadata.uid`.
    pub uid: String,
    /// The epoch in which the process holds the shard.
    pub epoch: i64,
    /// The shard that the record is in.
    pub shard: ShardId,
}

/// Keeps ledgers in `ConfigMaps`.
#[derive(Clone)]
pub struct ConfigMapLedgers {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    holdings: Arc<dyn Holdings>,
    /// Where the shards are.
    system: Option<Arc<str>>,
    patience: Patience,
    bounds: Bounds,
    chunks: Shelf,
    turns: Mutex<HashMap<RecordKey, Turn>>,
}

/// What is known of a record's ledger, for one operation at a time. One that
/// nobody waits for any more (a poll was aborted) still goes to its end.
type Turn = Arc<tokio::sync::Mutex<Known>>;

impl ConfigMapLedgers {
    /// Ledgers of the records that `holdings` knows.
    pub fn new(client: Client, holdings: Arc<dyn Holdings>) -> Self {
        let inner = Inner {
            client,
            holdings,
            system: None,
            patience: Patience::default(),
            bounds: Bounds::default(),
            chunks: Shelf::default(),
            turns: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// With the namespace of the shards: a ledger whose epoch is higher than
    /// its shard's own was written before RPOP was installed anew (epochs begin
    /// afresh with the shards), and does not stop its record.
    #[must_use]
    pub fn with_shards_in(self, namespace: &str) -> Self {
        self.with(|inner| inner.system = Some(namespace.into()))
    }

    /// With bounds of its own, for tests: octets of a head, of a chunk and of
    /// all chunks.
    #[doc(hidden)]
    #[must_use]
    pub fn with_bounds(self, head: usize, chunk: usize, all: u64) -> Self {
        self.with(|inner| inner.bounds = Bounds::new(head, chunk, all))
    }

    /// With less patience, for tests: a request, and an operation with all its
    /// requests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_patience(self, request: std::time::Duration, whole: std::time::Duration) -> Self {
        self.with(|inner| inner.patience = Patience { request, whole, ..inner.patience })
    }

    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let old = self.inner;
        let mut inner = Inner {
            client: old.client.clone(),
            holdings: Arc::clone(&old.holdings),
            system: old.system.clone(),
            patience: old.patience,
            bounds: old.bounds,
            chunks: Shelf::default(),
            turns: Mutex::default(),
        };
        change(&mut inner);
        Self { inner: Arc::new(inner) }
    }

    async fn load(&self, key: &RecordKey) -> Result<Ledger, LedgerError> {
        let (mut known, place, owner) = self.begin(key).await?;
        let mut work = Work::new(&self.inner, place, owner);
        let (mut ledger, after) = work.load(std::mem::take(&mut *known)).await?;
        ledger.set_mark(after.mark());
        *known = after;
        Ok(ledger)
    }

    async fn reserve(&self, key: &RecordKey, ledger: &mut Ledger, octets: u64) -> Result<(), LedgerError> {
        self.inner.bounds.check_room(&Place::of(key)?, ledger, octets)?;
        let task = Task { mark: ledger.mark(), salt: ledger.salt(), batch: None };
        ledger.set_mark(self.detached(key, task).await?);
        Ok(())
    }

    async fn commit(
        &self,
        key: &RecordKey,
        ledger: &mut Ledger,
        changes: Vec<Change>,
    ) -> Result<(), LedgerError> {
        if let Some(flaw) = changes.iter().find_map(Change::flaw) {
            let place = Place::of(key)?;
            return Err(LedgerError::Full(format!("{}: {flaw}", place.shown(&place.head))));
        }
        let groups = changed(ledger, &changes);
        if !groups.is_empty() {
            let grows = groups.iter().any(|(hash, body)| !Group::is_forgotten(body) && !ledger.knows(*hash));
            let live = Live::after(ledger, &changes);
            let batch = Some(Batch { groups, live, grows });
            let task = Task { mark: ledger.mark(), salt: ledger.salt(), batch };
            ledger.set_mark(self.detached(key, task).await?);
        }
        for change in &changes {
            ledger.apply(change);
        }
        Ok(())
    }

    /// Writes to its end, whether or not anybody waits for it.
    async fn detached(&self, key: &RecordKey, task: Task) -> Result<Mark, LedgerError> {
        // Here, so that what comes after it waits, however soon that is.
        let (mut known, place, owner) = self.begin(key).await?;
        let inner = Arc::clone(&self.inner);
        let running = tokio::spawn(async move {
            let mut work = Work::new(&inner, place, owner);
            let after = work.write(std::mem::take(&mut *known), task).await?;
            let mark = after.mark();
            *known = after;
            Ok(mark)
        });
        running
            .await
            .map_err(|error| LedgerError::Unavailable(format!("the ledger's task failed: {error}")))?
    }

    /// Waits until nothing else is done with a record's ledger. What is known
    /// of it is to be taken out, and put back only if all went well.
    async fn begin(&self, key: &RecordKey) -> Result<(OwnedMutexGuard<Known>, Place, Owner), LedgerError> {
        let place = Place::of(key)?;
        let known = self.inner.turn(key).lock_owned().await;
        let owner = self.inner.holdings.owner(key).ok_or_else(|| {
            let text = format!("{}: this worker does not hold the record", place.shown(&place.head));
            LedgerError::Conflict(text)
        })?;
        Ok((known, place, owner))
    }
}

impl LedgerStore for ConfigMapLedgers {
    fn load<'a>(&'a self, key: &'a RecordKey) -> Pending<'a, Result<Ledger, LedgerError>> {
        Box::pin(self.load(key))
    }

    /// Makes the head where there is none, and puts the holder's epoch into
    /// it: from then on no earlier holder can commit. Costs a request only at
    /// the first messages after either.
    fn reserve<'a>(
        &'a self,
        key: &'a RecordKey,
        ledger: &'a mut Ledger,
        octets: u64,
    ) -> Pending<'a, Result<(), LedgerError>> {
        Box::pin(self.reserve(key, ledger, octets))
    }

    fn commit<'a>(
        &'a self,
        key: &'a RecordKey,
        ledger: &'a mut Ledger,
        changes: Vec<Change>,
    ) -> Pending<'a, Result<(), LedgerError>> {
        Box::pin(self.commit(key, ledger, changes))
    }
}

impl Inner {
    fn turn(&self, key: &RecordKey) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.len() >= MOST_REMEMBERED && !turns.contains_key(key) {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        Arc::clone(turns.entry(key.clone()).or_default())
    }
}

impl fmt::Debug for ConfigMapLedgers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigMapLedgers").finish_non_exhaustive()
    }
}

/// What the UIDs of `changes` come to: those alone that are not as before.
fn changed(ledger: &Ledger, changes: &[Change]) -> BTreeMap<u64, Box<[u8]>> {
    let mut scratch = Ledger::new(ledger.salt());
    let mut groups = BTreeMap::new();
    for change in changes {
        let hash = ledger.hash_of(change);
        groups.entry(hash).or_insert_with(|| {
            let before = Group::of(ledger, hash);
            before.put_into(&mut scratch, hash);
            before.body()
        });
        scratch.apply(change);
    }
    groups.retain(|hash, body| {
        let after = Group::of(&scratch, *hash).body();
        let differs = *body != after;
        *body = after;
        differs
    });
    groups
}

#[cfg(test)]
mod tests;
