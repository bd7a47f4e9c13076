//! What the API server answers.

use rpop::domain::shards::LeaseHolder;
use rpop::domain::shards::holding::ShardSeen;
use rpop::domain::shards::leader::{Answer, Decree, LeaseSeen, SliceSeen};

use super::api::{Change, Renewal};
use super::node::Call;
use super::sim::{Inbound, Sim, Who};

pub enum Answered {
    Renewed(bool),
    Shard(Option<ShardSeen>),
    Slices(Option<Vec<SliceSeen>>),
    Slice(Option<SliceSeen>),
    Written(Option<ShardSeen>),
    Committed(Option<u64>),
    All(Vec<ShardSeen>, Vec<SliceSeen>),
    /// With the version of the leader's own.
    Leases(Vec<LeaseSeen>, String),
    Obeyed(Answer, Option<Change>),
}

impl Answered {
    /// A list from which a watch goes on: nothing in between is missed.
    pub fn begins_watch(&self) -> bool {
        matches!(self, Self::All(..))
    }
}

impl Sim {
    pub fn arrive(&mut self, who: Who, id: u64, call: Call) {
        let reads = matches!(call, Call::Get(_) | Call::GetSlices(_) | Call::List | Call::Leases);
        if !reads && self.now < self.no_writes_until {
            // Refused, or never answered.
            if self.roll(2) == 0 {
                self.tell(who, Inbound::Timeout(id));
            }
            return;
        }
        let answer = match call {
            Call::Renew { by, first, leaving } => {
                // A process that is gone may have sent this; then it renews
                // once more, which is all it does.
                Answered::Renewed(matches!(self.api.renew(&by, first, leaving), Renewal::Done))
            }
            Call::Release(by) => {
                self.api.release(&by);
                return;
            }
            Call::Get(shard) => Answered::Shard(self.api.shards.get(&shard).cloned()),
            Call::GetSlices(shard) => Answered::Slices(self.api.slices_of(shard)),
            Call::GetSlice(shard, number) => Answered::Slice(self.api.slices.get(&(shard, number)).cloned()),
            Call::Write(wanted, by) => {
                let stolen = self
                    .api
                    .leases
                    .get(&super::api::Api::lease_name(&by))
                    .is_some_and(|lease| lease.holder == LeaseHolder::Stolen(by.clone()));
                let before = self.api.shards.get(&wanted.id).cloned();
                let held = before.is_some_and(|shard| shard.holder.as_ref() == Some(&by));
                let (shard, holder) = (wanted.id, wanted.holder.clone());
                let written = self.api.write_status(wanted);
                if written.is_some() {
                    if !held {
                        self.breaks(format!("{by} writes the status of {shard}, which it does not hold"));
                    }
                    if holder.as_ref() != Some(&by) {
                        self.counts.handed += 1;
                        self.note(|| format!("{by} hands {shard} over to {holder:?} (stolen: {stolen})"));
                    }
                } else {
                    self.counts.conflicts += 1;
                }
                Answered::Written(written)
            }
            Call::Commit { key, read, shard, epoch, batch } => {
                Answered::Committed(self.api.commit(&key, read, (shard, epoch), &batch))
            }
            Call::List => {
                match who {
                    Who::Worker(at, life) if self.workers[at].life == life => {
                        self.workers[at].watching = self.workers[at].pending.contains_key(&id);
                    }
                    Who::Controller(at, life) if self.controllers[at].life == life => {
                        self.controllers[at].watching = self.controllers[at].pending.contains_key(&id);
                    }
                    _ => {}
                }
                Answered::All(
                    self.api.shards.values().cloned().collect(),
                    self.api.slices.values().cloned().collect(),
                )
            }
            Call::Leases => {
                Answered::Leases(self.api.leases.values().cloned().collect(), self.api.leader.to_string())
            }
            Call::Obey(decree) => {
                let (answer, object) = self.api.obey(&decree);
                if answer == Answer::Done {
                    self.watch_decree(&decree);
                } else {
                    self.counts.conflicts += 1;
                }
                Answered::Obeyed(answer, object)
            }
        };
        self.tell(who, Inbound::Answer(id, answer));
    }

    /// A leader's write has been carried out.
    fn watch_decree(&mut self, decree: &Decree) {
        match decree {
            Decree::StealLease { worker, .. } => {
                self.counts.steals += 1;
                let now = self.now;
                let victim =
                    self.workers.iter().find(|other| other.member.is_some() && other.me() == *worker);
                let alive =
                    victim.map(|victim| (victim.hindrance, victim.lease_healthy_since, victim.registered));
                self.note(|| format!("the lease of {worker} is stolen (it lives: {})", alive.is_some()));
                let span = u64::try_from(self.timing.dead_after.as_millis()).unwrap();
                if let Some((hindrance, since, true)) = alive {
                    // Whoever could reach the API server all the time has renewed.
                    let hindered = hindrance.stopped_until + span + 8_000 > now
                        || hindrance.cut_until + span + 8_000 > now
                        || self.well_since + span > now
                        || since + span > now;
                    if !hindered {
                        self.breaks(format!("{worker} is taken for dead, and nothing was wrong with it"));
                    }
                    // An outage is nobody's death.
                    if self.away_until + span > now
                        && self.away_until < now
                        && hindrance.stopped_until < self.away_until
                        && hindrance.cut_until < self.away_until
                    {
                        self.breaks(format!("{worker} is taken for dead after an outage"));
                    }
                }
            }
            Decree::GiveAway { shard, holder, epoch, .. } => {
                self.counts.given += 1;
                let (shard, epoch) = (*shard, *epoch);
                self.note(|| format!("{shard} is given to {holder} at epoch {epoch}"));
            }
            Decree::SetDesired { shard, desired, slices, why, .. } => {
                self.note(|| format!("{shard}: {desired:?} is desired, {slices} slices ({why:?})"));
            }
            Decree::WriteSlice { shard, number, items, removed, .. } => {
                self.note(|| {
                    format!(
                        "slice {shard}-{number}: {} items, removed {:?}",
                        items.len(),
                        removed.iter().map(|key| key.name.to_string()).collect::<Vec<_>>()
                    )
                });
            }
            _ => {}
        }
    }
}
