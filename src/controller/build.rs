//! Step 3: what a worker shall read of an accepted record. Pure.

use std::sync::Arc;

use super::seen::{Maildrop, Record};
use super::validate::ValidatedRecord;
use crate::api::checks::Claim;
use crate::domain::work::WorkItem;

/// An accepted record, ready to be placed; only this can be applied.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) item: Arc<WorkItem>,
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    pub(super) paused: bool,
    pub(super) warnings: Vec<String>,
}

impl Prepared {
    /// Whose maildrop it is, and what it takes out of it.
    pub(super) fn claim(&self) -> (Maildrop, Claim) {
        let remote = &self.item.remote;
        let maildrop = (Arc::clone(&remote.host), remote.port, Arc::clone(&remote.account));
        (maildrop, Claim::of(&self.item))
    }
}

/// Builds the work item.
pub(super) fn build(validated: ValidatedRecord, record: &Record) -> Prepared {
    let ValidatedRecord { mut item, domain, paused, warnings } = validated;
    item.postmaster = Some(domain.postmaster.clone());
    Prepared {
        item: Arc::new(item),
        uid: Arc::clone(&record.uid),
        generation: record.generation,
        paused,
        warnings,
    }
}
