//! What a worker may do, and what comes of it.

use super::protocol::{Action, Mutant, Protocol};
use super::state::{Holder, Inc, Lease, Life, Request, Session, Shard, Stage, State, Worker};

impl Protocol {
    pub fn worker_actions(&self, state: &State, pod: usize, actions: &mut Vec<Action>) {
        let worker = &state.workers[pod];
        match worker.life {
            Life::Off => actions.push(Action::Boot(pod)),
            Life::Paused { .. } => actions.push(Action::Resume(pod)),
            Life::Fenced => {
                if state.is_stolen(pod) {
                    actions.push(Action::Exit(pod));
                } else {
                    actions.push(Action::GoOn(pod));
                }
                self.crash(state, pod, actions);
            }
            Life::Running => {
                if state.is_stolen(pod) {
                    // Its next renewal meets 409.
                    actions.push(Action::Exit(pod));
                }
                if state.budget.pauses > 0 {
                    actions.push(Action::Pause(pod));
                }
                if state.budget.fences > 0 {
                    actions.push(Action::Fence(pod));
                }
                if state.budget.renewals > 0 && !state.is_stolen(pod) {
                    actions.push(Action::Renew(pod));
                }
                self.crash(state, pod, actions);
                for shard in 0..self.shards {
                    self.shard_actions(state, pod, shard, actions);
                }
                self.session_actions(state, pod, actions);
            }
        }
    }

    fn crash(&self, state: &State, pod: usize, actions: &mut Vec<Action>) {
        if state.budget.crashes > 0 {
            actions.push(Action::Crash(pod));
        }
    }

    fn shard_actions(&self, state: &State, pod: usize, at: usize, actions: &mut Vec<Action>) {
        let (worker, me) = (&state.workers[pod], state.inc(pod));
        let known = worker.shards[at];
        if known != state.shards[at] {
            actions.push(Action::Observe(pod, at));
        }
        if known.holder != me {
            return;
        }
        if worker.slices[at] != Some(state.slices[at]) {
            actions.push(Action::Read(pod, at));
        }
        let writes = state.wire.iter().any(|sent| {
            matches!(sent, Request::Status { by, shard, .. } if *by == me && usize::from(*shard) == at)
        });
        if writes || known.version != state.shards[at].version && self.mutant != Some(Mutant::WriteWithoutCas)
        {
            // One write at a time; and one that will meet 409 changes nothing.
            return;
        }
        let busy = worker.session.stage != Stage::None && usize::from(worker.session.shard) == at;
        if let Some(slice) = worker.slices[at] {
            let may = slice.has || !busy || self.mutant == Some(Mutant::AckBeforeEnd);
            if slice.is != known.observed && may {
                actions.push(Action::Acknowledge(pod, at));
            }
        }
        let may = !busy || self.mutant == Some(Mutant::HandOverEarly);
        if known.desired != me && may {
            actions.push(Action::HandOver(pod, at));
        }
    }

    /// New sessions may be begun for the record by that shard.
    fn may_poll(&self, worker: &Worker, me: Inc, at: usize) -> bool {
        let known = worker.shards[at];
        known.holder == me && known.desired == me && worker.slices[at].is_some_and(|slice| slice.has)
    }

    fn session_actions(&self, state: &State, pod: usize, actions: &mut Vec<Action>) {
        let (worker, me) = (&state.workers[pod], state.inc(pod));
        let session = worker.session;
        let draining = session.stage != Stage::None && !self.may_poll(worker, me, usize::from(session.shard));
        match session.stage {
            Stage::None => {
                for at in 0..self.shards {
                    if self.may_poll(worker, me, at) && state.maildrop.present {
                        actions.push(Action::Login(pod, at));
                    }
                }
            }
            Stage::Open if draining => actions.push(Action::Close(pod)),
            Stage::Open if session.done => actions.push(Action::Delete(pod)),
            Stage::Open => actions.push(Action::Fetch(pod)),
            Stage::Fetched => {
                actions.push(Action::Commit(pod));
                if self.mutant == Some(Mutant::DeleteEarly) {
                    actions.push(Action::Delete(pod));
                }
            }
            Stage::Committed => actions.push(Action::Delete(pod)),
            Stage::Deleted => actions.push(Action::Quit(pod)),
            Stage::Owed => actions.push(Action::Commit(pod)),
            Stage::Committing | Stage::Repaying => {
                let sent = state.wire.iter().any(|sent| {
                    matches!(sent, Request::Commit { by, expect, .. } if *by == me && *expect == session.version)
                });
                if !sent {
                    // Its answer was lost: whether it is committed is not known.
                    actions.push(Action::Close(pod));
                }
            }
        }
        if draining && session.connected() {
            actions.push(Action::Close(pod));
        }
    }

    /// The worker sends a command to the maildrop: the old session's must not
    /// be obeyed after the new session's login.
    fn command(&self, state: &mut State, pod: usize) {
        state.broken.two_sessions |= state.workers[pod].session.login < state.maildrop.logins;
        state.broken.stolen_acted |= state.is_stolen(pod);
    }

    /// The sockets are closed; what was fetched is owed, or repeated by the next.
    fn close(&self, state: &mut State, pod: usize, remember: bool) {
        let session = &mut state.workers[pod].session;
        let uncommitted = session.is_uncommitted();
        if uncommitted && remember {
            session.stage = Stage::Owed;
        } else {
            *session = Session::NONE;
            state.maildrop.aborted += u8::from(uncommitted);
        }
    }

    pub fn worker_step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Boot(pod) => self.boot(state, pod),
            Action::Crash(pod) => {
                state.budget.crashes -= 1;
                self.close(state, pod, false);
                state.workers[pod].life = Life::Off;
            }
            Action::Exit(pod) => {
                self.close(state, pod, false);
                state.workers[pod].life = Life::Off;
            }
            Action::Pause(pod) => {
                state.budget.pauses -= 1;
                state.workers[pod].life = Life::Paused { late: false };
            }
            Action::Resume(pod) => {
                // The first thing is a look at the clock.
                let late = state.workers[pod].life == Life::Paused { late: true };
                state.workers[pod].life = if late { Life::Fenced } else { Life::Running };
                if late {
                    self.close(state, pod, true);
                }
            }
            Action::Fence(pod) => {
                state.budget.fences -= 1;
                state.workers[pod].life = Life::Fenced;
                self.close(state, pod, true);
            }
            Action::GoOn(pod) => {
                let lease = &mut state.leases[pod];
                lease.version += 1;
                let worker = &mut state.workers[pod];
                (worker.acked, worker.life) = (lease.version, Life::Running);
                state.seen.went_on = true;
            }
            Action::Renew(pod) => {
                state.budget.renewals -= 1;
                let request = Request::Renew { by: state.inc(pod), expect: state.leases[pod].version };
                state.send(request);
            }
            Action::Observe(pod, at) => {
                let (known, me, slice) = (state.shards[at], state.inc(pod), state.slices[at]);
                let worker = &mut state.workers[pod];
                let before = std::mem::replace(&mut worker.shards[at], known);
                let taken = known.holder == me && before.epoch != known.epoch;
                if taken && self.shards == 1 {
                    // Slices that never change can be read at any moment.
                    worker.slices[at] = Some(slice);
                } else if known.holder != me || taken && self.mutant != Some(Mutant::StaleSlice) {
                    if self.mutant != Some(Mutant::StaleSlice) {
                        worker.slices[at] = None;
                    }
                    if known.holder != me
                        && usize::from(worker.session.shard) == at
                        && worker.session.stage != Stage::None
                        && self.mutant != Some(Mutant::HandOverEarly)
                    {
                        self.close(state, pod, false);
                    }
                }
            }
            Action::Read(pod, at) => state.workers[pod].slices[at] = Some(state.slices[at]),
            Action::Acknowledge(pod, at) => {
                let (known, me) = (state.workers[pod].shards[at], state.inc(pod));
                let observed = state.workers[pod].slices[at]?.is;
                self.write(state, me, at, Shard { observed, ..known });
            }
            Action::HandOver(pod, at) => {
                let (known, me) = (state.workers[pod].shards[at], state.inc(pod));
                self.write(state, me, at, Shard { holder: known.desired, epoch: known.epoch + 1, ..known });
            }
            Action::Login(pod, at) => {
                let others = (0..state.workers.len()).any(|other| {
                    let other_worker = &state.workers[other];
                    other != pod && other_worker.life == Life::Running && other_worker.session.connected()
                });
                state.broken.two_sessions |= others;
                state.maildrop.logins += 1;
                let (login, ledger) = (state.maildrop.logins, state.ledger);
                let worker = &mut state.workers[pod];
                let epoch = worker.shards[at].epoch;
                worker.session = Session {
                    stage: Stage::Open,
                    login,
                    shard: at as u8,
                    epoch,
                    version: ledger.version,
                    done: ledger.done,
                };
                self.command(state, pod);
            }
            Action::Fetch(pod) => {
                self.command(state, pod);
                if !state.maildrop.present {
                    self.close(state, pod, false);
                    return Some(());
                }
                state.maildrop.delivered += 1;
                state.workers[pod].session.stage = Stage::Fetched;
            }
            Action::Commit(pod) => {
                let by = state.inc(pod);
                let session = &mut state.workers[pod].session;
                session.stage =
                    if session.stage == Stage::Owed { Stage::Repaying } else { Stage::Committing };
                let request = Request::Commit {
                    by,
                    shard: session.shard,
                    expect: session.version,
                    epoch: session.epoch,
                };
                state.broken.stolen_acted |= state.is_stolen(pod);
                state.send(request);
            }
            Action::Delete(pod) => {
                self.command(state, pod);
                state.broken.deleted_uncommitted |= !state.ledger.done;
                state.workers[pod].session.stage = Stage::Deleted;
            }
            Action::Quit(pod) => {
                self.command(state, pod);
                state.maildrop.present = false;
                state.workers[pod].session = Session::NONE;
            }
            Action::Close(pod) => self.close(state, pod, false),
            _ => return None,
        }
        Some(())
    }

    fn boot(&self, state: &mut State, pod: usize) {
        let worker = &mut state.workers[pod];
        if self.mutant != Some(Mutant::ReuseIncarnation) {
            worker.boot += 1;
        }
        let inc = Inc { pod: pod as u8, boot: worker.boot };
        let lease = &mut state.leases[pod];
        *lease = Lease { version: lease.version + 1, holder: Holder::Lives(inc) };
        *worker = Worker {
            life: Life::Running,
            boot: worker.boot,
            acked: lease.version,
            shards: state.shards,
            slices: [None; 2],
            session: Session::NONE,
        };
    }

    fn write(&self, state: &mut State, by: Inc, at: usize, wanted: Shard) {
        let Shard { version: expect, holder, epoch, observed, .. } = wanted;
        state.send(Request::Status { by, shard: at as u8, expect, holder, epoch, observed });
    }

    /// A request is carried out; its sender may be gone by now.
    pub fn land(&self, state: &mut State, request: Request, answered: bool) {
        let by = request.by();
        let pod = usize::from(by.pod);
        let alive = state.workers[pod].life != Life::Off && state.workers[pod].boot == by.boot;
        match request {
            Request::Renew { expect, .. } => {
                let lease = &mut state.leases[pod];
                if lease.version == expect && lease.holder == Holder::Lives(by) {
                    lease.version += 1;
                    if alive && answered {
                        state.workers[pod].acked = lease.version;
                    }
                }
            }
            Request::Status { shard, expect, holder, epoch, observed, .. } => {
                let at = usize::from(shard);
                let present = state.shards[at];
                if present.version == expect || self.mutant == Some(Mutant::WriteWithoutCas) {
                    state.seen.handed_over |= holder != by;
                    self.store(state, at, Shard { holder, epoch, observed, ..present });
                }
            }
            Request::Commit { shard, expect, epoch, .. } => {
                let ledger = &mut state.ledger;
                // Epochs of different shards say nothing about each other.
                let old = ledger.shard == shard && epoch < ledger.epoch;
                let taken = ledger.version == expect && !old;
                if taken {
                    *ledger = super::state::Ledger { version: expect + 1, shard, epoch, done: true };
                }
                let session = state.workers[pod].session;
                if alive && answered && session.version == expect {
                    match session.stage {
                        Stage::Committing if taken => {
                            state.workers[pod].session.stage = Stage::Committed;
                        }
                        Stage::Repaying if taken => state.workers[pod].session = Session::NONE,
                        // Without QUIT, so that the server forgets DELEs.
                        Stage::Committing | Stage::Repaying => self.close(state, pod, false),
                        _ => {}
                    }
                }
            }
        }
    }

    /// A shard's object is replaced.
    pub fn store(&self, state: &mut State, at: usize, new: Shard) {
        let old = state.shards[at];
        state.broken.epoch_fell |=
            new.epoch < old.epoch || new.holder != old.holder && new.epoch == old.epoch;
        state.shards[at] = Shard { version: old.version + 1, ..new };
    }
}
