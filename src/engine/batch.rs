//! Ledger commits, batched, one at a time, while messages go on flowing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ports::{LedgerError, LedgerStore, Observer, Pending};
use crate::domain::ledger::{Change, Ledger};
use crate::domain::work::{Checkpoint, RecordKey};

type Done = (Ledger, Vec<u32>, Duration, Result<(), LedgerError>);

/// Collects what the destination accepted and makes it durable.
///
/// The bound on what may be repeated after a crash is on everything that was
/// handed to the destination and is not committed, whether its answer has been
/// read or not: see [`Batch::room`].
pub(super) struct Batch {
    store: Arc<dyn LedgerStore>,
    observer: Arc<dyn Observer>,
    key: RecordKey,
    checkpoint: Checkpoint,
    /// Out on loan while a commit runs.
    ledger: Option<Ledger>,
    changes: Vec<Change>,
    /// Messages that `changes` are about: what goes beside another change is
    /// not counted.
    counted: usize,
    /// Messages to delete once `changes` are durable.
    numbers: Vec<u32>,
    since: Option<Instant>,
    /// When the last change was added.
    last: Instant,
    /// Time between two additions while they flow.
    pace: Duration,
    /// How long commits take.
    took: Duration,
    /// Commits that waited for more changes in vain, in a row, and how many
    /// are not to wait because of that.
    in_vain: u32,
    hasty: u32,
    running: Option<Pending<'static, Done>>,
    in_commit: usize,
    /// Of the ledger.
    salt: [u8; 16],
    /// What became of messages that were handed over and is not durable; the
    /// first so many of them are in the running commit.
    outcomes: Vec<Change>,
    outcomes_in_commit: usize,
    /// A commit failed: no other is begun.
    failed: bool,
}

impl Batch {
    pub(super) fn new(
        store: Arc<dyn LedgerStore>,
        observer: Arc<dyn Observer>,
        key: RecordKey,
        checkpoint: Checkpoint,
        ledger: Ledger,
    ) -> Self {
        Self {
            store,
            observer,
            key,
            checkpoint,
            salt: ledger.salt(),
            ledger: Some(ledger),
            changes: Vec::new(),
            counted: 0,
            numbers: Vec::new(),
            since: None,
            last: Instant::now(),
            pace: Duration::ZERO,
            took: Duration::ZERO,
            in_vain: 0,
            hasty: 0,
            running: None,
            in_commit: 0,
            outcomes: Vec::new(),
            outcomes_in_commit: 0,
            failed: false,
        }
    }

    /// The ledger, unless a commit has it.
    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// Adds what became of a message that was handed over. No survey finds
    /// that out again: should the batch end without having committed it, it is
    /// owed to the store.
    pub(super) fn add_outcome(&mut self, change: Change, delete: Option<u32>) {
        self.outcomes.push(change.clone());
        self.add(change, delete);
    }

    /// Adds a change that goes with an outcome which is added behind it.
    pub(super) fn add_beside(&mut self, change: Change) {
        self.outcomes.push(change.clone());
        if !self.failed {
            self.changes.push(change);
        }
    }

    /// Adds a change; message `delete` is to be deleted once it is durable.
    pub(super) fn add(&mut self, change: Change, delete: Option<u32>) {
        if self.failed {
            return;
        }
        self.changes.push(change);
        self.counted += 1;
        self.numbers.extend(delete);
        self.last = Instant::now();
        self.since.get_or_insert(self.last);
    }

    /// Changes that are not durable yet.
    pub(super) fn uncommitted(&self) -> usize {
        self.counted + self.in_commit
    }

    /// How many more messages may be handed over while `handed` are out.
    pub(super) fn room(&self, handed: usize) -> usize {
        if self.failed {
            return 0;
        }
        (self.checkpoint.messages.max(1) as usize).saturating_sub(handed + self.uncommitted())
    }

    /// Whether a commit should start now. `idle`: nothing more will be added
    /// before it is done.
    ///
    /// Half of what may be out at once is committed while the other half is
    /// being delivered. Where the disk is slower than the destination (a commit
    /// takes longer than the delivery of all that may be out) that would leave
    /// each commit half empty: there all of it is committed together, unless
    /// it shows that nothing more comes so soon (a destination far away answers
    /// in bursts).
    pub(super) fn is_due(&self, idle: bool) -> bool {
        if self.running.is_some() || self.changes.is_empty() {
            return false;
        }
        let most = self.checkpoint.messages.max(1) as usize;
        idle || self.counted >= most
            || (self.counted * 2 >= most && (!self.waits() || self.last.elapsed() >= self.took))
            || self.since.is_some_and(|since| since.elapsed() >= self.checkpoint.every)
    }

    /// Whether a half is kept back for what may come while it could be written.
    fn waits(&self) -> bool {
        let is_disk_slow = self.took > self.pace.saturating_mul(self.checkpoint.messages);
        is_disk_slow && self.hasty == 0
    }

    /// Learns from the commit that starts whether waiting pays.
    fn learn(&mut self) {
        if self.hasty > 0 {
            self.hasty -= 1;
        } else if self.counted >= self.checkpoint.messages as usize {
            self.in_vain = 0;
        } else if self.waits() && self.last.elapsed() >= self.took {
            self.in_vain = (self.in_vain + 1).min(5);
            self.hasty = 1 << self.in_vain;
        }
    }

    /// When `is_due` turns true by time alone.
    pub(super) fn due_in(&self) -> Option<Duration> {
        if self.running.is_some() {
            return None;
        }
        let by_age = self.since.map(|since| self.checkpoint.every.saturating_sub(since.elapsed()));
        if self.counted * 2 < self.checkpoint.messages as usize || !self.waits() {
            return by_age;
        }
        by_age.map(|by_age| by_age.min(self.took.saturating_sub(self.last.elapsed())))
    }

    /// Starts a commit of all that was added. One at a time.
    pub(super) fn start(&mut self) {
        let Some(mut ledger) = self.ledger.take() else { return };
        self.learn();
        let changes = std::mem::take(&mut self.changes);
        let numbers = std::mem::take(&mut self.numbers);
        self.in_commit = std::mem::take(&mut self.counted);
        self.outcomes_in_commit = self.outcomes.len();
        if let (Some(since), Ok(gaps @ 1..)) =
            (self.since.take(), u32::try_from(self.in_commit.saturating_sub(1)))
        {
            self.pace = (self.pace + (self.last - since) / gaps) / 2;
        }
        let (store, observer, key) = (Arc::clone(&self.store), Arc::clone(&self.observer), self.key.clone());
        self.running = Some(Box::pin(async move {
            let started = Instant::now();
            let result = store.commit(&key, &mut ledger, changes).await;
            let took = started.elapsed();
            observer.committed(took, result.is_ok());
            (ledger, numbers, took, result)
        }));
    }

    /// Makes sure that what `queue` messages with UIDs of `octets` in all will
    /// have to say fits the store, as far as it may be handed over before a
    /// commit; `each` is what is said of one beside its UID.
    pub(super) async fn reserve(&mut self, queue: usize, octets: u64, each: u64) -> Result<(), LedgerError> {
        let Some(ledger) = self.ledger.as_mut() else { return Ok(()) };
        let messages = queue.min(self.checkpoint.messages.max(1) as usize) as u64;
        let uids = octets / queue.max(1) as u64 * messages;
        self.store.reserve(&self.key, ledger, messages * each + uids.min(1 << 20)).await
    }

    /// Whether a commit is running.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits for the running commit: the messages that may now be deleted.
    /// Cancel-safe. Pending for ever where none runs.
    pub(super) async fn committed(&mut self) -> Result<Vec<u32>, LedgerError> {
        let Some(running) = self.running.as_mut() else { return std::future::pending().await };
        let (ledger, numbers, took, result) = running.await;
        self.running = None;
        self.took = (self.took + took) / 2;
        self.in_commit = 0;
        self.ledger = Some(ledger);
        let committed = std::mem::take(&mut self.outcomes_in_commit);
        if let Err(error) = result {
            // It may have gone through all the same, and then this ledger is
            // no longer what the store holds: whoever goes on reads it anew.
            self.failed = true;
            self.changes.clear();
            self.counted = 0;
            self.numbers.clear();
            self.since = None;
            return Err(error);
        }
        self.outcomes.drain(..committed);
        Ok(numbers)
    }

    /// Commits all that is left.
    pub(super) async fn flush(&mut self) -> Result<Vec<u32>, LedgerError> {
        let mut numbers = Vec::new();
        while self.running.is_some() || !self.changes.is_empty() {
            if self.running.is_none() {
                self.start();
            }
            numbers.append(&mut self.committed().await?);
        }
        Ok(numbers)
    }
}

/// However a poll ends.
impl Drop for Batch {
    fn drop(&mut self) {
        if !self.outcomes.is_empty() {
            self.store.owe(&self.key, self.salt, std::mem::take(&mut self.outcomes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ledger::{Entry, State};
    use crate::engine::ports::Unobserved;

    /// A disk that needs so long for each commit.
    struct Disk(Duration);

    impl LedgerStore for Disk {
        fn load<'a>(&'a self, _: &'a RecordKey) -> Pending<'a, Result<Ledger, LedgerError>> {
            Box::pin(async { Ok(Ledger::new([0; 16])) })
        }

        fn commit<'a>(
            &'a self,
            _: &'a RecordKey,
            _: &'a mut Ledger,
            _: Vec<Change>,
        ) -> Pending<'a, Result<(), LedgerError>> {
            Box::pin(async {
                tokio::time::sleep(self.0).await;
                Ok(())
            })
        }
    }

    /// Delivers 400 messages, each `pace` after the one before it, as fast as
    /// the batch lets them be handed over; the number of commits.
    async fn commits(disk: Duration, pace: Duration) -> usize {
        let key = RecordKey { namespace: "n".into(), name: "r".into() };
        let checkpoint = Checkpoint { messages: 20, every: Duration::from_secs(5) };
        let (store, ledger) = (Arc::new(Disk(disk)), Ledger::new([0; 16]));
        let mut batch = Batch::new(store, Arc::new(Unobserved), key, checkpoint, ledger);
        let (mut delivered, mut commits) = (0u32, 0);
        let mut handed = 0;
        while delivered < 400 || batch.uncommitted() > 0 {
            handed += batch.room(handed).min(400 - delivered as usize - handed);
            assert!(handed + batch.uncommitted() <= 20);
            if batch.is_due(handed == 0 && delivered == 400) {
                batch.start();
                commits += 1;
            }
            let wait = batch.due_in();
            tokio::select! {
                biased;
                committed = batch.committed(), if batch.is_running() => drop(committed.unwrap()),
                () = tokio::time::sleep(pace), if handed > 0 => {
                    handed -= 1;
                    delivered += 1;
                    let entry = Entry { state: State::Kept, day: 0, size: 1, message_id: 0, digest: 0 };
                    batch.add(Change::Put { uid: delivered.to_be_bytes().into(), entry }, None);
                }
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
        commits
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_is_asked_as_seldom_as_the_checkpoint_allows() {
        let slow = commits(Duration::from_millis(100), Duration::from_millis(2)).await;
        assert!(slow <= 23, "{slow} commits of 400 messages at most 20 at a time");
    }

    // Half of what may be out is answered at a time, 50 ms after it was sent.
    #[tokio::test(start_paused = true)]
    async fn a_destination_that_answers_in_bursts_does_not_wait_for_commits_that_wait() {
        let key = RecordKey { namespace: "n".into(), name: "r".into() };
        let checkpoint = Checkpoint { messages: 20, every: Duration::from_secs(5) };
        let disk = Arc::new(Disk(Duration::from_millis(12)));
        let mut batch = Batch::new(disk, Arc::new(Unobserved), key, checkpoint, Ledger::new([0; 16]));
        let begun = Instant::now();
        let mut sent = std::collections::VecDeque::new();
        let mut delivered = 0u32;
        while delivered < 2000 {
            for _ in 0..batch.room(sent.len()) {
                sent.push_back(Instant::now() + Duration::from_millis(50));
            }
            if batch.is_due(false) {
                batch.start();
            }
            let wait = batch.due_in();
            tokio::select! {
                biased;
                committed = batch.committed(), if batch.is_running() => drop(committed.unwrap()),
                () = tokio::time::sleep_until(*sent.front().unwrap_or(&begun)), if !sent.is_empty() => {
                    sent.pop_front();
                    delivered += 1;
                    let entry = Entry { state: State::Kept, day: 0, size: 1, message_id: 0, digest: 0 };
                    batch.add(Change::Put { uid: delivered.to_be_bytes().into(), entry }, None);
                }
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
            }
        }
        let rate = 2000.0 / begun.elapsed().as_secs_f64();
        assert!(rate > 300.0, "{rate} messages a second of 400 that the round trip allows");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_disk_writes_one_half_while_the_other_is_delivered() {
        let fast = commits(Duration::from_millis(5), Duration::from_millis(2)).await;
        assert!((38..=42).contains(&fast), "{fast} commits");
    }
}
