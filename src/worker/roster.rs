//! Which records this worker may poll, by which right, and which sessions are
//! open: what the driver decides, and every poll asks.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::fence::Fence;
use crate::api::Sliced;
use crate::domain::shards::ShardId;
use crate::domain::shards::holding::{Heard, Member, Order, Settling};
use crate::domain::shards::timing::Boot;
use crate::domain::work::{RecordKey, WorkItem};
use crate::engine::owed::Tenure;
use crate::engine::ports::Stage;

/// A record of a shard that this worker holds.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its shard.
    pub shard: ShardId,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation` of the work item.
    pub generation: i64,
    /// Over how many shards the records of its host are spread.
    pub factor: u32,
    /// What to poll.
    pub item: Arc<WorkItem>,
}

/// By which right a record is polled and its ledger written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// `metadata.uid` of the record.
    pub uid: Arc<str>,
    /// Its shard.
    pub shard: ShardId,
    /// The epoch in which this worker holds it.
    pub epoch: i64,
}

/// Shared by the driver, polls, ledgers and statuses; a clone is the same one.
#[derive(Clone)]
pub struct Roster {
    state: Arc<Mutex<State>>,
    fence: Fence,
    /// A session has ended.
    closed: Arc<Notify>,
    /// Counts the times at which more may be polled than before.
    opened: watch::Sender<u64>,
}

struct State {
    member: Member,
    records: HashMap<RecordKey, Entry>,
    sessions: HashMap<RecordKey, Open>,
}

struct Open {
    right: Right,
    stage: watch::Sender<Stage>,
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Roster")
            .field("records", &state.records.len())
            .field("sessions", &state.sessions.len())
            .finish_non_exhaustive()
    }
}

/// Whether a poll may begin.
#[derive(Debug)]
pub enum Entrance {
    /// It may; the session counts as open until this is dropped.
    Open(Session),
    /// Not just now: the worker does not know whether it still counts as
    /// alive. To be asked again when `opened` changes.
    Later,
    /// No: it is not (any more) this worker's, or not as this item says.
    Refused,
}

impl Roster {
    /// With nothing in it.
    pub fn new(member: Member, fence: Fence) -> Self {
        let state = State { member, records: HashMap::new(), sessions: HashMap::new() };
        let (opened, _) = watch::channel(0);
        Self { state: Arc::new(Mutex::new(state)), fence, closed: Arc::default(), opened }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The fence of this worker.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Lets the member hear of it; what is to be done.
    pub fn hear(&self, heard: Heard) -> Vec<Order> {
        let now = self.fence.now();
        self.state().member.hear(now, heard)
    }

    /// When the member wants to hear the next tick.
    pub fn next_wake(&self) -> Boot {
        self.state().member.next_wake()
    }

    /// The shards that this worker holds.
    pub fn held(&self) -> Vec<ShardId> {
        self.state().member.held().collect()
    }

    /// More may be polled than before: who waits asks again.
    pub fn open_up(&self) {
        self.opened.send_modify(|count| *count += 1);
    }

    /// Changes when what was [`Entrance::Later`] may be asked again.
    pub fn opened(&self) -> watch::Receiver<u64> {
        self.opened.subscribe()
    }

    /// Waits for the end of a session; a permit is kept for whoever comes late.
    pub async fn closed(&self) {
        self.closed.notified().await;
    }

    /// The records of a shard are these from now on. Returns such as are no
    /// more, and have a session open.
    pub fn assign(&self, shard: ShardId, records: &BTreeMap<RecordKey, Arc<Sliced>>) -> Vec<RecordKey> {
        let mut state = self.state();
        state.records.retain(|key, entry| entry.shard != shard || records.contains_key(key));
        for (key, sliced) in records {
            let entry = Entry {
                shard,
                uid: sliced.uid.as_str().into(),
                generation: sliced.generation,
                factor: sliced.factor,
                item: Arc::new(sliced.item.clone()),
            };
            match state.records.get_mut(key) {
                Some(known) if known.shard != shard => {
                    // The leader adds a record to a shard only once the other one
                    // has let go of it.
                    tracing::warn!(record = %key, "it is in {} and in {shard}: left where it was", known.shard);
                }
                Some(known) if known.item == entry.item => {
                    (known.uid, known.generation, known.factor) = (entry.uid, entry.generation, entry.factor);
                }
                _ => {
                    state.records.insert(key.clone(), entry);
                }
            }
        }
        let stray = |key: &RecordKey| state.records.get(key).is_none_or(|entry| entry.shard != shard);
        let open = state.sessions.iter().filter(|(_, open)| open.right.shard == shard);
        open.map(|(key, _)| key).filter(|key| stray(key)).cloned().collect()
    }

    /// Nothing is known of the shard's records any more.
    pub fn forget(&self, shard: ShardId) {
        self.state().records.retain(|_, entry| entry.shard != shard);
    }

    /// The record, if it is one of ours.
    pub fn find(&self, key: &RecordKey) -> Option<Entry> {
        self.state().records.get(key).cloned()
    }

    /// The records of these shards.
    pub fn records_of(&self, shards: &std::collections::BTreeSet<ShardId>) -> Vec<Entry> {
        self.state().records.values().filter(|entry| shards.contains(&entry.shard)).cloned().collect()
    }

    /// Asks whether a poll of `item` may begin, right before it does.
    pub fn enter(&self, item: &WorkItem) -> Entrance {
        let now = self.fence.now();
        let mut state = self.state();
        let Some(entry) = state.records.get(&item.key).filter(|entry| *entry.item == *item) else {
            return Entrance::Refused;
        };
        let (shard, uid) = (entry.shard, Arc::clone(&entry.uid));
        if !state.member.polled().any(|polled| polled == shard) || state.sessions.contains_key(&item.key) {
            return Entrance::Refused;
        }
        let Some(epoch) = state.member.may_poll(shard, now).filter(|_| self.fence.is_open()) else {
            return Entrance::Later;
        };
        let (stage, stop) = watch::channel(Stage::Running);
        let right = Right { uid, shard, epoch };
        state.sessions.insert(item.key.clone(), Open { right, stage });
        Entrance::Open(Session { roster: self.clone(), key: item.key.clone(), shard, stop })
    }

    /// The right to a record's ledger: while its session is open, or may be.
    pub fn right(&self, key: &RecordKey) -> Option<Right> {
        let state = self.state();
        if let Some(open) = state.sessions.get(key) {
            // A shard that came back under another epoch is another one.
            return (state.member.epoch(open.right.shard) == Some(open.right.epoch))
                .then(|| open.right.clone());
        }
        let entry = state.records.get(key)?;
        let epoch = state.member.epoch(entry.shard)?;
        Some(Right { uid: Arc::clone(&entry.uid), shard: entry.shard, epoch })
    }

    /// Whether what the record's session, which counts as open, left
    /// uncommitted when it was cut off may be committed.
    pub fn may_settle(&self, key: &RecordKey) -> Settling {
        let now = self.fence.now();
        let state = self.state();
        let Some(Open { right, .. }) = state.sessions.get(key) else { return Settling::Never };
        match state.member.may_settle(right.shard, right.epoch, now) {
            Settling::Now if !self.fence.is_open() => Settling::Later,
            settling => settling,
        }
    }

    /// Tells sessions how far they may go; those of one shard, or all.
    pub fn tell(&self, shard: Option<ShardId>, stage: Stage) {
        for open in self.state().sessions.values() {
            if shard.is_none_or(|shard| open.right.shard == shard) {
                open.stage.send_if_modified(|now| std::mem::replace(now, stage.max(*now)) < stage);
            }
        }
    }

    /// Tells the session of one record.
    pub fn tell_record(&self, key: &RecordKey, stage: Stage) {
        if let Some(open) = self.state().sessions.get(key) {
            open.stage.send_if_modified(|now| std::mem::replace(now, stage.max(*now)) < stage);
        }
    }

    /// Sessions of a shard that are open.
    pub fn open(&self, shard: ShardId) -> usize {
        self.state().sessions.values().filter(|open| open.right.shard == shard).count()
    }

    /// Whether the record has a session open under the shard's right.
    pub fn is_open(&self, key: &RecordKey, shard: ShardId) -> bool {
        self.state().sessions.get(key).is_some_and(|open| open.right.shard == shard)
    }
}

impl Tenure for Roster {
    type Right = Right;

    fn right(&self, key: &RecordKey) -> Option<Right> {
        self.right(key)
    }
}

/// A session that counts as open.
#[derive(Debug)]
pub struct Session {
    roster: Roster,
    key: RecordKey,
    /// Its record's shard.
    pub shard: ShardId,
    /// How far it may go.
    pub stop: watch::Receiver<Stage>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.roster.state().sessions.remove(&self.key);
        self.roster.closed.notify_one();
    }
}
