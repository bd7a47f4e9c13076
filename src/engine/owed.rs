//! What the destination has accepted and no ledger knows yet: of sessions that
//! were cut off, or whose commit failed. It is committed before the record's
//! next poll learns what its ledger says, so that these messages are deleted
//! there and not delivered again.
//!
//! Kept in memory alone. What is lost with the process is repeated, within
//! `checkpoint`, as after any other death of a process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ports::{LedgerError, LedgerStore, Pending};
use crate::domain::ledger::{Change, Ledger};
use crate::domain::work::RecordKey;

/// Records for which something may be owed at a time. Each owes what one batch
/// may hold.
const MOST: usize = 4096;

/// By which right this process writes a record's ledger. What was accepted
/// under one right is never committed under another: between the two somebody
/// else may have polled, and knows better.
pub trait Tenure: Send + Sync {
    /// A right; equal only to itself.
    type Right: PartialEq + Send;

    /// The right to the record now, `None` where there is none.
    fn right(&self, key: &RecordKey) -> Option<Self::Right>;
}

/// The records are this process's for as long as it runs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Always;

impl Tenure for Always {
    type Right = ();

    fn right(&self, _: &RecordKey) -> Option<()> {
        Some(())
    }
}

/// A store that remembers what is owed to it; see the module's page.
pub struct Owing<T: Tenure> {
    store: Arc<dyn LedgerStore>,
    tenure: T,
    debts: Mutex<HashMap<RecordKey, Debt<T::Right>>>,
}

struct Debt<R> {
    right: R,
    /// Of the ledger that it is owed to: one that was made anew is to forget.
    salt: [u8; 16],
    changes: Vec<Change>,
}

impl<T: Tenure> std::fmt::Debug for Owing<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owing").field("records", &self.debts().len()).finish_non_exhaustive()
    }
}

impl<T: Tenure> Owing<T> {
    /// In front of `store`; `tenure` says which debts are void.
    pub fn new(store: Arc<dyn LedgerStore>, tenure: T) -> Self {
        Self { store, tenure, debts: Mutex::default() }
    }

    fn debts(&self) -> MutexGuard<'_, HashMap<RecordKey, Debt<T::Right>>> {
        self.debts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether something is owed for the record.
    pub fn owes(&self, key: &RecordKey) -> bool {
        self.debts().contains_key(key)
    }

    /// Gives up what is owed for the record, if anything is: it is fetched, and
    /// delivered, again by whoever polls the record next.
    pub fn forget(&self, key: &RecordKey, why: &str) {
        if let Some(debt) = self.debts().remove(key) {
            let messages = messages(&debt.changes);
            tracing::warn!(record = %key, messages, "accepted and not remembered, perhaps delivered again: {why}");
        }
    }

    /// Commits what is owed for the record. What is void is forgotten, and that
    /// is no error. May be dropped at any time.
    ///
    /// # Errors
    /// Those of the store; the debt stays, unless the ledger is somebody else's.
    pub async fn settle(&self, key: &RecordKey) -> Result<(), LedgerError> {
        if self.owes(key) {
            self.load_settled(key).await?;
        }
        Ok(())
    }

    async fn load_settled(&self, key: &RecordKey) -> Result<Ledger, LedgerError> {
        let Some((salt, changes)) = self.due(key) else { return self.store.load(key).await };
        // Read afresh, not as the session knew it: a commit of its own whose
        // answer was lost may be in it. Writing that again changes nothing.
        let mut ledger = match self.store.load(key).await {
            Err(error @ LedgerError::Conflict(_)) => {
                self.forget(key, "the ledger is somebody else's");
                return Err(error);
            }
            loaded => loaded?,
        };
        if ledger.salt() != salt {
            self.forget(key, "its ledger was made anew");
            return Ok(ledger);
        }
        let messages = messages(&changes);
        self.store.commit(key, &mut ledger, changes).await?;
        self.debts().remove(key);
        tracing::info!(record = %key, messages,
            "what was accepted before the last session was cut off is in the ledger now, and not fetched again");
        Ok(ledger)
    }

    /// What is owed, if it still is.
    fn due(&self, key: &RecordKey) -> Option<([u8; 16], Vec<Change>)> {
        let right = self.tenure.right(key);
        let debts = self.debts();
        let debt = debts.get(key)?;
        if right.as_ref() == Some(&debt.right) {
            return Some((debt.salt, debt.changes.clone()));
        }
        drop(debts);
        self.forget(key, "the record has been another worker's since");
        None
    }
}

/// How many messages changes are about.
fn messages(changes: &[Change]) -> usize {
    changes.iter().filter(|change| matches!(change, Change::Put { .. })).count()
}

impl<T: Tenure> LedgerStore for Owing<T> {
    fn load<'a>(&'a self, key: &'a RecordKey) -> Pending<'a, Result<Ledger, LedgerError>> {
        Box::pin(self.load_settled(key))
    }

    fn reserve<'a>(
        &'a self,
        key: &'a RecordKey,
        ledger: &'a mut Ledger,
        octets: u64,
    ) -> Pending<'a, Result<(), LedgerError>> {
        self.store.reserve(key, ledger, octets)
    }

    fn commit<'a>(
        &'a self,
        key: &'a RecordKey,
        ledger: &'a mut Ledger,
        changes: Vec<Change>,
    ) -> Pending<'a, Result<(), LedgerError>> {
        self.store.commit(key, ledger, changes)
    }

    fn owe(&self, key: &RecordKey, salt: [u8; 16], mut changes: Vec<Change>) {
        let messages = messages(&changes);
        let Some(right) = self.tenure.right(key) else {
            tracing::warn!(record = %key, messages,
                "accepted and not remembered, perhaps delivered again: the record is another worker's");
            return;
        };
        let mut debts = self.debts();
        if debts.len() >= MOST && !debts.contains_key(key) {
            debts.retain(|key, debt| self.tenure.right(key).as_ref() == Some(&debt.right));
            if debts.len() >= MOST {
                tracing::warn!(record = %key, messages,
                    "accepted and not remembered, perhaps delivered again: too many ledgers cannot be written");
                return;
            }
        }
        // A poll begins with what is owed, so there is hardly ever an older
        // debt beside a new one.
        if let Some(older) = debts.remove(key).filter(|older| older.right == right && older.salt == salt) {
            changes.splice(0..0, older.changes);
        }
        debts.insert(key.clone(), Debt { right, salt, changes });
    }
}

#[cfg(test)]
#[path = "owed_tests.rs"]
mod tests;
