//! The protocol as a state machine with the invariants it promises.

use stateright::{Model, Property};

use super::state::{Budget, Inc, LEADERS, Life, PODS, Request, State};

/// A step. The first number is the pod or the leader, the second the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Boot(usize),
    Crash(usize),
    Exit(usize),
    Pause(usize),
    Resume(usize),
    Fence(usize),
    GoOn(usize),
    Renew(usize),
    Observe(usize, usize),
    Read(usize, usize),
    Acknowledge(usize, usize),
    HandOver(usize, usize),
    Login(usize, usize),
    Fetch(usize),
    Commit(usize),
    Delete(usize),
    Quit(usize),
    Close(usize),
    Land(Request),
    LandUnheard(Request),
    Lose(Request),
    Look(usize),
    Steal(usize, usize),
    GiveAway(usize, usize),
    Desire(usize, usize, Inc, bool),
    Edit,
    Remove(usize),
    Add(usize),
    DeleteSlice(usize),
}

/// A protocol that is almost right. The model must tell it from the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A lease is stolen whatever its version is by now.
    StealWithoutCas,
    /// A process that starts again calls itself what it was called before.
    ReuseIncarnation,
    /// A shard's status is written whatever its version is by now.
    WriteWithoutCas,
    /// A shard is handed over while a session is open.
    HandOverEarly,
    /// DELE without waiting for the commit.
    DeleteEarly,
    /// A record is in its new slice before it is out of the old one.
    AddFirst,
    /// A record is in its new slice before the old holder has said that it is
    /// out of the old one.
    AddUnacknowledged,
    /// A slice is acknowledged while a session of a removed record is open.
    AckBeforeEnd,
    /// A slice that was read under an earlier holding is polled by.
    StaleSlice,
    /// A slice made again is acknowledged by a generation of its predecessor.
    AckByGeneration,
    /// A slice made again is taken to be known because it has nothing in it.
    TrustTheNewSlice,
}

/// A configuration to check.
#[derive(Clone, Debug, Default)]
pub struct Protocol {
    pub shards: usize,
    pub leaders: usize,
    pub budget: Budget,
    pub mutant: Option<Mutant>,
    /// A lease may run out under a worker that does not notice: the ledger's
    /// compare-and-swap alone is left to keep the mail safe.
    pub broken_clocks: bool,
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::start(self.budget)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for request in &state.wire {
            actions.push(Action::Land(*request));
            if state.budget.losses > 0 {
                actions.push(Action::Lose(*request));
                if !matches!(request, Request::Status { .. }) {
                    actions.push(Action::LandUnheard(*request));
                }
            }
        }
        for pod in 0..PODS {
            self.worker_actions(state, pod, actions);
        }
        for leader in 0..self.leaders.min(LEADERS) {
            self.leader_actions(state, leader, actions);
        }
        self.record_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Land(request) | Action::LandUnheard(request) | Action::Lose(request) => {
                state.wire.retain(|sent| *sent != request);
                let heard = matches!(action, Action::Land(_));
                state.budget.losses -= u8::from(!heard);
                if !matches!(action, Action::Lose(_)) {
                    self.land(&mut state, request, heard);
                }
            }
            _ => {
                self.worker_step(&mut state, action).or_else(|| self.leader_step(&mut state, action))?;
            }
        }
        // The first leader has a good connection. What it would do by older
        // knowledge meets 409, or is what the second one does.
        state.look(0);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("I2: no DELE before its commit", |_, state: &State| {
                !state.broken.deleted_uncommitted
            }),
            Property::always("I3: repeats only of batches given up", |_, state: &State| {
                state.maildrop.delivered <= state.committed() + state.maildrop.aborted + state.open_batches()
            }),
            Property::always("I4: epochs never fall", |_, state: &State| !state.broken.epoch_fell),
            Property::always("nothing is lost", |_, state: &State| {
                state.maildrop.present || state.maildrop.delivered > 0
            }),
            Property::always(
                "I8: where nothing more can happen all is done",
                |model: &Self, state: &State| {
                    if state.all_done() {
                        return true;
                    }
                    let mut actions = Vec::new();
                    model.actions(state, &mut actions);
                    !actions.is_empty()
                },
            ),
            Property::eventually("I8: the message is accepted, committed, deleted", |_, state: &State| {
                state.all_done()
            }),
        ];
        if !self.broken_clocks {
            properties.extend([
                Property::always("I1: one session a maildrop", |_, state: &State| !state.broken.two_sessions),
                Property::always("I6: a stolen incarnation never acts", |_, state: &State| {
                    !state.broken.stolen_acted
                }),
            ]);
        }
        if self.mutant.is_none() {
            properties.extend(self.sights());
        }
        properties
    }
}

impl Protocol {
    /// What must be possible, or the rest says nothing.
    fn sights(&self) -> Vec<Property<Self>> {
        let mut sights = Vec::new();
        if self.broken_clocks {
            sights.push(Property::sometimes("two poll at once", |_, state: &State| {
                state.broken.two_sessions && state.all_done()
            }));
        }
        if self.budget.moves > 0 {
            sights.push(Property::sometimes("a shard is handed over", |_, state: &State| {
                state.seen.handed_over
            }));
        }
        if self.budget.crashes > 0 {
            sights.push(Property::sometimes("a dead worker's shard is given away", |_, state: &State| {
                state.seen.given_away && state.all_done()
            }));
            sights.push(Property::sometimes("a crash repeats the message", |_, state: &State| {
                state.maildrop.delivered > 1
            }));
        }
        if self.budget.fences > 0 && !self.broken_clocks {
            sights
                .push(Property::sometimes("a fenced worker goes on", |_, state: &State| state.seen.went_on));
        }
        if self.budget.pauses > 0 && !self.broken_clocks {
            sights.push(Property::sometimes("a stopped worker is taken for dead", |_, state: &State| {
                state.workers.iter().any(|worker| worker.life == Life::Paused { late: true })
            }));
        }
        if self.budget.edits > 0 {
            sights.push(Property::sometimes("a record moves", |_, state: &State| {
                state.seen.record_moved && state.all_done()
            }));
        }
        if self.budget.deletions > 0 {
            sights.push(Property::sometimes("a record of a deleted slice moves", |_, state: &State| {
                state.seen.deleted_moved && state.all_done()
            }));
        }
        sights
    }
}
