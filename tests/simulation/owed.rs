//! What sessions had handed over, and not committed, when they were cut off.

use std::collections::{BTreeMap, BTreeSet};

use rpop::domain::shards::ShardId;
use rpop::domain::shards::holding::Settling;
use rpop::domain::work::RecordKey;

use super::node::{Call, Pending, Session, Stage};
use super::sim::{Event, Inbound, Sim, Who};

/// A batch that is to be committed before the record is polled again.
#[derive(Clone)]
pub struct Debt {
    pub shard: ShardId,
    pub epoch: i64,
    pub batch: BTreeSet<u64>,
}

impl Sim {
    /// Drops sessions without QUIT, and remembers what they had fetched.
    pub fn cut_off(&mut self, at: usize, which: impl Fn(&Session) -> bool) {
        let worker = &mut self.workers[at];
        let all = std::mem::take(&mut worker.sessions).into_iter();
        let (cut, left): (BTreeMap<_, _>, _) = all.partition(|(_, session)| which(session));
        worker.sessions = left;
        let who = Who::Worker(at, worker.life);
        for (key, session) in cut {
            if session.stage == Stage::Fetched {
                let Session { shard, epoch, batch, .. } = session;
                self.workers[at].owed.insert(key.clone(), Debt { shard, epoch, batch });
                self.after(1, Event::Hear(who, Inbound::Settle(key)));
            }
        }
    }

    pub fn settle(&mut self, at: usize, key: &RecordKey) {
        let worker = &self.workers[at];
        let (Some(debt), Some(member)) = (worker.owed.get(key).cloned(), &worker.member) else { return };
        let who = Who::Worker(at, worker.life);
        match member.may_settle(debt.shard, debt.epoch, worker.clock.at(self.now)) {
            Settling::Never => {
                self.workers[at].owed.remove(key);
                self.abort(debt.batch);
                self.drained(at);
            }
            Settling::Later => self.after(1_000, Event::Hear(who, Inbound::Settle(key.clone()))),
            Settling::Now => {
                // Read afresh: what was committed, and not answered, is there.
                let ledger = self.api.ledgers.get(key);
                let read = ledger.map_or(0, |ledger| ledger.version);
                if ledger.is_some_and(|ledger| debt.batch.is_subset(&ledger.seen)) {
                    self.settled(at, key);
                    return;
                }
                let Debt { shard, epoch, batch } = debt;
                let call = Call::Commit { key: key.clone(), read, shard, epoch, batch };
                self.worker_request(at, 5_000, Pending::Settle(key.clone()), call);
            }
        }
    }

    pub fn settled(&mut self, at: usize, key: &RecordKey) {
        if self.workers[at].owed.remove(key).is_some() {
            self.counts.settled += 1;
            self.drained(at);
        }
    }

    /// A batch that was fetched for nothing.
    pub fn abort(&mut self, batch: BTreeSet<u64>) {
        for message in batch {
            *self.aborted.entry(message).or_default() += 1;
        }
    }
}
