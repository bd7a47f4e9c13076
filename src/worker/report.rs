//! What the run says of its records: to their statuses, to the leader (load),
//! and to the driver (which records the run still has in hand).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

use super::roster::Roster;
use crate::domain::code::Code;
use crate::domain::shards::ShardId;
use crate::domain::work::{RecordKey, WorkItem};
use crate::engine::report::Report;
use crate::k8s::status::{StatusWriter, Subject};
use crate::run::status::{FailedHost, RecordStatus};
use crate::run::{Audience, Statuses};

/// The load of a shard is averaged over about so long.
const LOAD_SPAN: Duration = Duration::from_mins(10);

/// Hears the run. One a worker.
pub(super) struct Reporter {
    roster: Roster,
    writer: StatusWriter,
    state: Mutex<State>,
    /// The run has let go of a record.
    pub(super) let_go: Notify,
    /// Hosts that this worker has found to fail.
    hosts: watch::Sender<Vec<FailedHost>>,
    /// Records that failed for what somebody may mend without us hearing of it;
    /// `None`: they are well again.
    ailing: mpsc::Sender<(RecordKey, Option<Code>)>,
}

#[derive(Default)]
struct State {
    /// What was given to the run and not given back.
    in_hand: HashMap<ShardId, HashSet<RecordKey>>,
    loads: BTreeMap<ShardId, Load>,
    ill: HashSet<RecordKey>,
}

/// Session-seconds a second.
struct Load {
    average: f64,
    since: Instant,
    seconds: f64,
    settled: bool,
}

impl Load {
    /// Takes in what has been counted, once enough time has passed.
    fn look(&mut self, now: Instant) -> f64 {
        let passed = now.duration_since(self.since).as_secs_f64();
        if passed >= 1.0 {
            let rate = self.seconds / passed;
            // A mean at first, then an exponential one.
            let weight = 1.0 - (-passed / LOAD_SPAN.as_secs_f64()).exp();
            self.average = if self.settled { self.average + weight * (rate - self.average) } else { rate };
            self.settled |= passed >= 60.0;
            if self.settled {
                (self.since, self.seconds) = (now, 0.0);
            }
        }
        self.average
    }
}

impl Reporter {
    pub(super) fn new(
        roster: Roster,
        writer: StatusWriter,
        ailing: mpsc::Sender<(RecordKey, Option<Code>)>,
    ) -> (Arc<Self>, watch::Receiver<Vec<FailedHost>>) {
        let (hosts, failing) = watch::channel(Vec::new());
        let state = Mutex::default();
        (Arc::new(Self { roster, writer, state, let_go: Notify::new(), hosts, ailing }), failing)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These records go to the run; records that the run has had under another
    /// shard are that one's no more.
    pub(super) fn hand_out<'a>(&self, records: impl Iterator<Item = (&'a RecordKey, ShardId)>) {
        let mut state = self.state();
        for (key, shard) in records {
            if state.in_hand.get(&shard).is_some_and(|keys| keys.contains(key)) {
                continue;
            }
            for keys in state.in_hand.values_mut() {
                keys.remove(key);
            }
            state.in_hand.entry(shard).or_default().insert(key.clone());
        }
    }

    /// Whether the run has let go of all records of the shard.
    pub(super) fn has_let_go(&self, shard: ShardId) -> bool {
        self.state().in_hand.get(&shard).is_none_or(HashSet::is_empty)
    }

    /// Session-seconds a second of these shards; others are forgotten.
    pub(super) fn loads(&self, shards: &[ShardId]) -> BTreeMap<ShardId, f32> {
        let mut state = self.state();
        let now = Instant::now();
        state.loads.retain(|shard, _| shards.contains(shard));
        let load = |load: &mut Load| {
            #[expect(clippy::cast_possible_truncation, reason = "a rough figure")]
            let load = load.look(now) as f32;
            load
        };
        state.loads.iter_mut().map(|(shard, of)| (*shard, load(of))).collect()
    }

    fn subject(&self, key: &RecordKey) -> Option<Subject> {
        let entry = self.roster.find(key)?;
        Some(Subject { uid: entry.uid, generation: entry.generation, shard: entry.shard })
    }
}

impl Statuses for Reporter {
    fn put(&self, key: &RecordKey, status: RecordStatus) {
        match self.subject(key) {
            Some(subject) => self.writer.put(key, subject, status),
            // It has left its slice, and its last poll has ended.
            None => self.writer.update(key, status),
        }
    }

    fn remove(&self, key: &RecordKey) {
        self.writer.leave(key);
        let mut state = self.state();
        for keys in state.in_hand.values_mut() {
            keys.remove(key);
        }
        state.ill.remove(key);
        drop(state);
        self.let_go.notify_one();
    }

    fn put_hosts(&self, hosts: Vec<FailedHost>) {
        self.hosts.send_replace(hosts);
    }
}

impl Audience for Reporter {
    fn ended(&self, item: &WorkItem, report: &Report) {
        if let Some(shard) = self.roster.find(&item.key).map(|entry| entry.shard) {
            let mut state = self.state();
            let now = Instant::now();
            let new = || Load { average: 0.0, since: now, seconds: 0.0, settled: false };
            state.loads.entry(shard).or_insert_with(new).seconds += report.took.as_secs_f64();
        }
        let ill = match &report.result {
            Ok(()) => None,
            Err(error) if error.code == Code::Interrupted => return,
            Err(error) => Some(error.code)
                .filter(|code| matches!(code, Code::SecretMissing | Code::SecretInvalid | Code::AuthFailed)),
        };
        let mut state = self.state();
        let was =
            if ill.is_some() { !state.ill.insert(item.key.clone()) } else { state.ill.remove(&item.key) };
        drop(state);
        if ill.is_some() || was {
            // Too many at once: they wait for their usual turn.
            self.ailing.try_send((item.key.clone(), ill)).ok();
        }
    }

    fn held(&self, item: &WorkItem) {
        self.state().ill.insert(item.key.clone());
        // Whose Secret is still the one that was refused.
        self.ailing.try_send((item.key.clone(), Some(Code::AuthFailed))).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_load_of_a_shard_is_what_its_sessions_take() {
        let mut load = Load { average: 0.0, since: Instant::now(), seconds: 0.0, settled: false };
        for _ in 0..600 {
            tokio::time::advance(Duration::from_secs(1)).await;
            load.seconds += 0.5;
            load.look(Instant::now());
        }
        assert!((load.average - 0.5).abs() < 0.01, "{}", load.average);
        for _ in 0..3600 {
            tokio::time::advance(Duration::from_secs(1)).await;
            load.look(Instant::now());
        }
        assert!(load.average < 0.01, "{}", load.average);
    }
}
