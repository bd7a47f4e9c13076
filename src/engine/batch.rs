//! Ledger commits, batched, one at a time, while messages go on flowing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::ports::{LedgerError, LedgerStore, Observer, Pending};
use crate::domain::ledger::{Change, Ledger};
use crate::domain::work::{Checkpoint, RecordKey};

type Done = (Ledger, Vec<u32>, Result<(), LedgerError>);

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
    /// Messages to delete once `changes` are durable.
    numbers: Vec<u32>,
    since: Option<Instant>,
    running: Option<Pending<'static, Done>>,
    in_commit: usize,
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
            ledger: Some(ledger),
            changes: Vec::new(),
            numbers: Vec::new(),
            since: None,
            running: None,
            in_commit: 0,
        }
    }

    /// The ledger, unless a commit has it.
    pub(super) fn ledger(&self) -> Option<&Ledger> {
        self.ledger.as_ref()
    }

    /// Adds a change; message `delete` is to be deleted once it is durable.
    pub(super) fn add(&mut self, change: Change, delete: Option<u32>) {
        self.changes.push(change);
        self.numbers.extend(delete);
        self.since.get_or_insert_with(Instant::now);
    }

    /// Changes that are not durable yet.
    pub(super) fn uncommitted(&self) -> usize {
        self.changes.len() + self.in_commit
    }

    /// How many more messages may be handed over while `handed` are out.
    pub(super) fn room(&self, handed: usize) -> usize {
        (self.checkpoint.messages.max(1) as usize).saturating_sub(handed + self.uncommitted())
    }

    /// Whether a commit should start now. `idle`: nothing more will be added
    /// before it is done.
    pub(super) fn is_due(&self, handed: usize, idle: bool) -> bool {
        self.running.is_none()
            && !self.changes.is_empty()
            && (idle
                || self.changes.len() * 2 >= self.checkpoint.messages as usize
                || self.room(handed) == 0
                || self.since.is_some_and(|since| since.elapsed() >= self.checkpoint.every))
    }

    /// When `is_due` turns true by time alone.
    pub(super) fn due_in(&self) -> Option<Duration> {
        if self.running.is_some() {
            return None;
        }
        self.since.map(|since| self.checkpoint.every.saturating_sub(since.elapsed()))
    }

    /// Starts a commit of all that was added. One at a time.
    pub(super) fn start(&mut self) {
        let Some(mut ledger) = self.ledger.take() else { return };
        let changes = std::mem::take(&mut self.changes);
        let numbers = std::mem::take(&mut self.numbers);
        self.since = None;
        self.in_commit = changes.len();
        let (store, observer, key) = (Arc::clone(&self.store), Arc::clone(&self.observer), self.key.clone());
        self.running = Some(Box::pin(async move {
            let started = Instant::now();
            let result = store.commit(&key, &mut ledger, changes).await;
            observer.committed(started.elapsed(), result.is_ok());
            (ledger, numbers, result)
        }));
    }

    /// Whether a commit is running.
    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits for the running commit: the messages that may now be deleted.
    /// Cancel-safe. Pending for ever where none runs.
    pub(super) async fn committed(&mut self) -> Result<Vec<u32>, LedgerError> {
        let Some(running) = self.running.as_mut() else { return std::future::pending().await };
        let (ledger, numbers, result) = running.await;
        self.running = None;
        self.in_commit = 0;
        self.ledger = Some(ledger);
        result.map(|()| numbers)
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
