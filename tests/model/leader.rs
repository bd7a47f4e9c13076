//! What a leader may do, by what it has read.

use super::protocol::{Action, Mutant, Protocol};
use super::state::{Holder, Inc, Leader, Lease, Life, Observed, Shard, Slice, State};

impl Leader {
    fn lives(&self, inc: Inc) -> bool {
        self.leases[usize::from(inc.pod)].holder == Holder::Lives(inc)
    }

    /// Stolen, or followed by another process in the same pod.
    fn is_dead(&self, inc: Inc) -> bool {
        let holder = self.leases[usize::from(inc.pod)].holder;
        holder == Holder::Stolen(inc) || holder.inc().boot > inc.boot
    }
}

impl State {
    fn write_slice(&mut self, shard: usize, has: bool) {
        let Observed { object, generation } = self.slices[shard].is;
        self.slices[shard] = Slice { is: Observed { object, generation: generation + 1 }, has };
    }
}

impl Protocol {
    pub fn leader_actions(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let leader = &state.leaders[at];
        if leader.leases != state.leases || leader.shards != state.shards {
            actions.push(Action::Look(at));
        }
        for pod in 0..state.leases.len() {
            if self.may_steal(state, leader.leases[pod], pod) {
                actions.push(Action::Steal(at, pod));
            }
        }
        for shard in 0..self.shards {
            let known = leader.shards[shard];
            let stale = known.version != state.shards[shard].version;
            if stale && self.mutant != Some(Mutant::WriteWithoutCas) {
                continue;
            }
            if leader.is_dead(known.holder) && leader.lives(known.desired) {
                actions.push(Action::GiveAway(at, shard));
            }
            // A leader that is out of date may err, but not without end.
            let needed = !leader.lives(known.desired) && leader.leases == state.leases;
            for pod in 0..state.leases.len() {
                let Holder::Lives(inc) = leader.leases[pod].holder else { continue };
                if inc != known.desired && (needed || state.budget.moves > 0) {
                    actions.push(Action::Desire(at, shard, inc, !needed));
                }
            }
        }
    }

    /// D has passed by the leader's clock since it saw that version: whoever
    /// has no later acknowledgement has closed its sockets, or is stopped.
    fn may_steal(&self, state: &State, seen: Lease, pod: usize) -> bool {
        let Holder::Lives(inc) = seen.holder else { return false };
        let worker = &state.workers[pod];
        let same = worker.boot == inc.boot;
        let fresh = state.leases[pod] == seen;
        if !fresh && self.mutant != Some(Mutant::StealWithoutCas) {
            return false;
        }
        self.broken_clocks && state.budget.fences > 0
            || !same
            || !matches!(worker.life, Life::Running)
            || worker.acked > seen.version && !fresh
    }

    /// A record moves: out of its old slice first, and into the new one when
    /// no holder works by an older generation.
    pub fn record_actions(&self, state: &State, actions: &mut Vec<Action>) {
        if self.shards < 2 {
            return;
        }
        if state.budget.edits > 0 && state.maildrop.present {
            actions.push(Action::Edit);
        }
        let (home, leader) = (usize::from(state.home), &state.leaders[0]);
        if state.budget.deletions > 0 && state.maildrop.present {
            actions.extend((0..self.shards).map(Action::DeleteSlice));
        }
        let old = 1 - home;
        if state.slices[old].has {
            if self.mutant != Some(Mutant::AddFirst) || state.slices[home].has {
                actions.push(Action::Remove(old));
            }
            if self.mutant == Some(Mutant::AddFirst) && !state.slices[home].has {
                actions.push(Action::Add(home));
            }
        } else if !state.slices[home].has {
            let (observed, is) = (leader.shards[old].observed, state.slices[old].is);
            let acknowledged = match self.mutant {
                Some(Mutant::AddUnacknowledged) => true,
                Some(Mutant::AckByGeneration) => observed.generation >= is.generation,
                Some(Mutant::TrustTheNewSlice) => observed.object != is.object || observed >= is,
                _ => observed.object == is.object && observed.generation >= is.generation,
            };
            if acknowledged {
                actions.push(Action::Add(home));
            }
        }
    }

    pub fn leader_step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Look(at) => state.look(at),
            Action::Steal(at, pod) => {
                let seen = state.leaders[at].leases[pod];
                if self.broken_clocks && state.workers[pod].life == Life::Running {
                    state.budget.fences -= 1;
                }
                if let Life::Paused { late } = &mut state.workers[pod].life {
                    *late |= !self.broken_clocks && state.workers[pod].acked <= seen.version;
                }
                let version = state.leases[pod].version + 1;
                state.leases[pod] = Lease { version, holder: Holder::Stolen(seen.holder.inc()) };
                state.leaders[at].leases[pod] = state.leases[pod];
            }
            Action::GiveAway(at, shard) => {
                let known = state.leaders[at].shards[shard];
                let wanted = Shard { holder: known.desired, epoch: known.epoch + 1, ..known };
                state.seen.given_away = true;
                self.store(state, shard, wanted);
                state.leaders[at].shards[shard] = state.shards[shard];
            }
            Action::Desire(at, shard, inc, costs) => {
                state.budget.moves -= u8::from(costs);
                let known = state.leaders[at].shards[shard];
                // spec and status are different subresources of one object.
                let base =
                    if self.mutant == Some(Mutant::WriteWithoutCas) { state.shards[shard] } else { known };
                self.store(state, shard, Shard { desired: inc, ..base });
                state.leaders[at].shards[shard] = state.shards[shard];
            }
            Action::Edit => {
                state.budget.edits -= 1;
                state.home = 1 - state.home;
            }
            Action::Remove(shard) => state.write_slice(shard, false),
            Action::Add(shard) => {
                state.write_slice(shard, true);
                state.seen.record_moved = true;
                state.seen.deleted_moved |= state.slices[1 - shard].is.object > 0;
            }
            // By hand; whoever leads makes it again, empty, and need not know
            // what it had.
            Action::DeleteSlice(shard) => {
                state.budget.deletions -= 1;
                let object = state.slices[shard].is.object + 1;
                state.slices[shard] = Slice { is: Observed { object, generation: 1 }, has: false };
            }
            _ => return None,
        }
        Some(())
    }
}
