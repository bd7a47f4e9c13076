//! Messages that a courier prepares ahead: it has them, and may deliver them
//! only when it is told so.
//!
//! How many messages may be delivered and not be in the ledger is bounded by
//! the checkpoint. A destination on disk waits for the disk once for all that
//! it has, so that a small checkpoint would make it slow; what it only prepares
//! nobody sees, and does not count.

use std::collections::VecDeque;

use tokio::sync::oneshot;

use super::super::ports::{Content, Job};
use super::Transfer;

/// Messages that were handed over and may not be delivered yet, in the order
/// in which they may.
#[derive(Default)]
pub(super) struct Leaves(VecDeque<(u64, oneshot::Sender<()>)>);

impl Leaves {
    /// A job that is to wait for its leave, or with `now` not.
    pub(super) fn admit(&mut self, mut job: Job, now: bool) -> Job {
        if !now {
            let (leave, awaited) = oneshot::channel();
            self.0.push_back((job.id, leave));
            job.leave = Some(awaited);
        }
        job
    }

    /// A message that waited has its outcome.
    pub(super) fn forget(&mut self, id: u64) {
        self.0.retain(|(waiting, _)| *waiting != id);
    }
}

impl Transfer<'_> {
    /// How many more messages may be delivered before the ledger is written.
    pub(super) fn room(&self) -> usize {
        self.batch.room(self.handed.len() - self.leaves.0.len())
    }

    /// Whether what is handed over now may be delivered at once.
    pub(super) fn is_free(&self) -> bool {
        self.leaves.0.is_empty() && self.room() > 0
    }

    /// The lane of the next message, if it can be handed over.
    pub(super) fn next_lane(&self) -> Option<usize> {
        let (job, handed) = self.ready.front()?;
        let ahead = || {
            // A stream is not prepared before it has come to its end.
            matches!(job.content, Content::Whole(_)) && self.leaves.0.len() < self.couriers.ahead(handed.lane)
        };
        (self.is_free() || ahead()).then_some(handed.lane)
    }

    /// What was prepared may be delivered, as far as there is room.
    pub(super) fn give_leave(&mut self) {
        while self.room() > 0 {
            let Some((_, leave)) = self.leaves.0.pop_front() else { break };
            // Whoever does not hear it has an outcome on its way.
            leave.send(()).ok();
        }
    }

    /// What was only prepared is not delivered: it is fetched by a later poll.
    pub(super) fn withdraw(&mut self) {
        for (id, _) in std::mem::take(&mut self.leaves.0) {
            if let Some(handed) = self.handed.remove(&id) {
                self.held_octets -= handed.octets;
            }
        }
    }
}
