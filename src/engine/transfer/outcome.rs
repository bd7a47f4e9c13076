//! What becomes of a message: the destination's answers, the rules, and what
//! the ledger is told of them.

use std::collections::HashSet;

use super::super::incoming::{Fetch, Taken};
use super::super::ports::{LedgerError, Outcome, Undelivered, Verdict};
use super::super::refusals::{is_before_content, is_for_another_turn};
use super::super::report::{PollError, Scope};
use super::super::standing::{Sent, Standing};
use super::{Answer, DEFERRALS, Handed, MOST_DEFERRALS, REFUSALS, Transfer, ledger_error};
use crate::domain::code::Code;
use crate::domain::ledger::{Action, Change, Entry, State, Twin, day_of};
use crate::domain::text::shown;
use crate::domain::work::OnReject;

/// What a lane's destination refused, with no acceptance between.
#[derive(Debug, Default)]
pub(super) struct Streak {
    /// Messages refused for now: of those for the same recipients one counts.
    deferred: u32,
    /// All of them.
    messages: u32,
    /// Messages that were refused for good before any of it was sent.
    pub(super) refused: u32,
    /// Who was put off.
    whom: HashSet<u64>,
}

impl Streak {
    /// One more was refused for now. Whether that is enough: one account that
    /// is full says nothing about the others, but all of a maildrop is not
    /// retrieved to learn so.
    fn defer(&mut self, whom: &[Sent]) -> bool {
        self.messages += 1;
        let known = self.whom.len();
        self.whom.extend(whom.iter().map(|to| to.hash));
        self.deferred += u32::from(whom.is_empty() || self.whom.len() > known);
        self.deferred >= DEFERRALS || self.messages >= MOST_DEFERRALS
    }

    /// One more was refused for good. Whether that is enough.
    fn refuse(&mut self) -> bool {
        self.refused += 1;
        self.refused >= REFUSALS
    }
}

impl Transfer<'_> {
    /// Whether a message that its UID does not tell apart was taken before;
    /// then all is done that there is to do with it.
    pub(super) async fn is_known(&mut self, taken: &mut Taken) -> Result<bool, PollError> {
        if taken.fetch.uid.is_none() {
            return self.is_known_without_uid(taken).await;
        }
        if !taken.fetch.ambiguous {
            return Ok(false);
        }
        let Some(twins) = self.context.twins.get_mut(&taken.fetch.hash) else { return Ok(false) };
        match twins.by_digest(taken.fetch.size.unwrap_or(taken.octets), taken.digest) {
            Twin::New { digest, prior } => {
                taken.digest = digest;
                taken.fetch.prior = prior.map(Box::new);
                Ok(false)
            }
            Twin::Copy { digest } => {
                taken.digest = digest;
                self.suppress(taken);
                Ok(true)
            }
            Twin::Known(entry, action) => {
                self.settled += u64::from(action != Action::Wait);
                self.tally.counters.unseen = self.tally.counters.unseen.saturating_sub(1);
                if action == Action::Delete {
                    let uid = taken.fetch.uid_of(taken.digest);
                    self.plan.undeleted.insert(taken.fetch.hash);
                    let entry = Entry { state: State::Deleting, ..entry };
                    self.batch.add(Change::Put { uid, entry }, Some(taken.fetch.number));
                }
                Ok(true)
            }
        }
    }

    async fn is_known_without_uid(&mut self, taken: &mut Taken) -> Result<bool, PollError> {
        while self.batch.is_running() {
            match self.batch.committed().await {
                Ok(numbers) => self.deletions.extend(numbers),
                Err(error) => return Err(self.on_uncommitted(&error)),
            }
        }
        let hash = self.context.keys.hash(&taken.fetch.uid_of(taken.digest));
        let Some(ledger) = self.batch.ledger() else { return Ok(false) };
        let (mut known, mut waits) = (false, false);
        for entry in ledger.entries(hash) {
            match entry.state {
                State::Kept | State::Deleting => known = true,
                State::Owed { next_try, .. } => {
                    waits = next_try > self.context.now;
                    taken.fetch.prior = Some(Box::new(entry));
                }
                State::Uncertain | State::Quarantined { .. } | State::Copy => {}
            }
        }
        if known {
            self.suppress(taken);
        } else if waits {
            self.tally.counters.waiting += 1;
        }
        Ok(known || waits)
    }

    /// A copy of what was delivered before: remembered, not delivered.
    pub(super) fn suppress(&mut self, taken: &Taken) {
        self.tally.counters.duplicates += 1;
        self.context.observer.duplicate(&self.context.item.key);
        self.settle_message(&taken.fetch, Some(taken));
    }

    /// The message is done with: kept or deleted, as the record says.
    pub(super) fn settle_message(&mut self, fetch: &Fetch, taken: Option<&Taken>) {
        self.settled += 1;
        let leave = self.context.item.leave;
        let state = if leave { State::Kept } else { State::Deleting };
        self.put(fetch, taken, state, (!leave).then_some(fetch.number));
    }

    /// Tells the ledger what became of a message; what it is told.
    pub(super) fn put(
        &mut self,
        fetch: &Fetch,
        taken: Option<&Taken>,
        state: State,
        delete: Option<u32>,
    ) -> Entry {
        let digest = taken.map_or(0, |taken| taken.digest);
        if state == State::Deleting {
            self.plan.undeleted.insert(fetch.hash);
        }
        let entry = Entry {
            state,
            day: day_of(self.context.now),
            size: fetch.size.or(taken.map(|taken| taken.octets)).unwrap_or(0),
            message_id: taken.map_or(0, |taken| taken.message_id),
            digest,
        };
        if ((fetch.prior.is_some() && !fetch.ambiguous) || fetch.reused) && fetch.uid.is_some() {
            // Some servers serve other octets at each retrieval: an earlier
            // try must not stay beside this one.
            self.batch.add_beside(Change::Forget { hash: fetch.hash });
        }
        self.batch.add_outcome(Change::Put { uid: fetch.uid_of(digest), entry: entry.clone() }, delete);
        if let Some(hash) = fetch.moved_from.filter(|hash| *hash != fetch.hash) {
            self.batch.add_beside(Change::Forget { hash });
        }
        entry
    }

    pub(super) fn on_outcome(&mut self, outcome: Outcome) {
        let Some(handed) = self.handed.remove(&outcome.id) else { return };
        self.leaves.forget(outcome.id);
        self.held_octets -= handed.octets;
        if handed.unified.is_some() {
            self.on_unified(outcome.id, handed, outcome.result);
        } else {
            self.on_plain(handed, outcome.result);
        }
    }

    fn on_plain(&mut self, handed: Handed, answer: Answer) {
        let Handed { taken, fetch, lane, .. } = handed;
        // What goes to the postmaster instead is no standstill.
        let sent_on = self.context.item.on_reject == OnReject::Postmaster
            && self.context.postmaster.is_some()
            && !fetch.to_postmaster
            && matches!(&answer, Ok(verdicts) if matches!(verdicts.first(), Some(Verdict::Refused(_))));
        if !sent_on {
            self.learn(lane, &answer, &[], true);
        }
        match answer {
            Ok(verdicts) => match verdicts.into_iter().next() {
                Some(Verdict::Accepted) => {
                    self.tally.counters.delivered += 1;
                    self.context.observer.delivered(&self.context.item.key, self.context.lanes.via(lane));
                    self.settle_message(&fetch, taken.as_ref());
                }
                Some(Verdict::Deferred(refusal)) => {
                    self.tally.defer(&format!("refused for now: {refusal}"));
                }
                Some(Verdict::Refused(refusal)) => {
                    // Only a word on the content may cost the message: what is
                    // refused earlier may be a typing error in a manifest.
                    let content = refusal.at == "." || refusal.code == 552;
                    self.refuse(&fetch, taken.as_ref(), "destination", &refusal.to_string(), content);
                }
                Some(Verdict::Unknown { message }) => self.on_uncertain(&fetch, taken.as_ref(), &message),
                None => {}
            },
            Err(Undelivered::Unknown { message }) => self.on_uncertain(&fetch, taken.as_ref(), &message),
            Err(Undelivered::Unavailable { .. } | Undelivered::Aborted) => {}
        }
    }

    /// Nobody knows whether it was delivered: it is tried once more.
    pub(super) fn on_uncertain(&mut self, fetch: &Fetch, taken: Option<&Taken>, message: &str) {
        if fetch.was_uncertain() || fetch.attempts() > 0 {
            self.quarantine(fetch, "uncertain", message, taken);
        } else {
            self.tally.defer(message);
            self.put(fetch, taken, State::Uncertain, None);
        }
    }

    /// What an answer says about the destination itself, of whom it was asked
    /// for. With `all` a refusal at RCPT says something about all messages.
    pub(super) fn learn(&mut self, lane: usize, answer: &Answer, whom: &[Sent], all: bool) {
        let Some(streak) = self.bad_streaks.get_mut(lane) else { return };
        let (code, message) = match answer {
            Ok(verdicts) if verdicts.contains(&Verdict::Accepted) => {
                *streak = Streak::default();
                return self.believe(Some(lane));
            }
            Ok(verdicts) => {
                let goes_on = !verdicts.iter().all(is_for_another_turn);
                if goes_on && verdicts.iter().any(is_for_another_turn) {
                    // The rest is still to come.
                    return;
                }
                let deferred = verdicts.iter().find_map(|verdict| match verdict {
                    Verdict::Deferred(refusal) => Some(format!("the destination refuses for now: {refusal}")),
                    Verdict::Unknown { message } => Some(message.to_string()),
                    Verdict::Accepted | Verdict::Refused(_) => None,
                });
                let refused = verdicts.iter().find_map(|verdict| match verdict {
                    Verdict::Refused(refusal)
                        if is_before_content(refusal) && (all || refusal.at != "RCPT") =>
                    {
                        Some(format!("the destination refuses this account's mail: {refusal}"))
                    }
                    _ => None,
                });
                match (deferred, refused) {
                    (Some(message), _) if streak.defer(whom) => (Code::DestinationUnavailable, message),
                    (None, Some(message)) if streak.refuse() => (Code::MessageRejected, message),
                    _ => return,
                }
            }
            Err(Undelivered::Unavailable { code, message }) => (*code, message.to_string()),
            Err(Undelivered::Unknown { message }) => {
                self.context.observer.uncertain(&self.context.item.key);
                if !streak.defer(&[]) {
                    return;
                }
                (Code::DestinationUnavailable, message.to_string())
            }
            Err(Undelivered::Aborted) => return,
        };
        if code == Code::MessageRejected {
            self.disbelieve(lane, &message);
        }
        self.lose(lane, code, &message);
    }

    /// A lane's destination gets nothing more in this poll.
    fn lose(&mut self, lane: usize, code: Code, message: &str) {
        if self.context.lanes.count() > 1 {
            self.lose_one(lane, code, message);
        } else {
            self.fail(code, message);
        }
    }

    /// Refused for good, by the destination or by a rule.
    pub(super) fn refuse(
        &mut self,
        fetch: &Fetch,
        taken: Option<&Taken>,
        reason: &'static str,
        why: &str,
        content: bool,
    ) {
        let item = self.context.item;
        match item.on_reject {
            OnReject::Discard if content => {
                self.tally.counters.rejected += 1;
                self.tally.note(why);
                self.context.observer.rejected(&item.key, reason);
                self.settle_message(fetch, taken);
                self.yield_to_copy(fetch);
            }
            OnReject::Postmaster if !fetch.to_postmaster && self.context.postmaster.is_some() => {
                self.tally.counters.rejected += 1;
                self.tally.note(why);
                self.context.observer.rejected(&item.key, reason);
                self.queue.push_back(Fetch { to_postmaster: true, ..fetch.clone() });
            }
            _ => {
                self.tally.counters.rejected += 1;
                self.quarantine(fetch, reason, why, taken);
            }
        }
    }

    pub(super) fn quarantine(
        &mut self,
        fetch: &Fetch,
        reason: &'static str,
        why: &str,
        taken: Option<&Taken>,
    ) {
        if fetch.uid.is_none() {
            // Without a UID it cannot be remembered beyond this poll.
            self.plan.skip.insert(fetch.number);
        }
        self.context.observer.rejected(&self.context.item.key, reason);
        self.tally.counters.quarantined += 1;
        self.tally.counters.in_quarantine += 1;
        self.tally.note(why);
        tracing::warn!(record = %self.context.item.key, number = fetch.number, reason, "message set aside: {why}");
        if fetch.uid.is_some() {
            let state = self.set_aside(fetch, why);
            self.put(fetch, taken, state, None);
        }
        self.yield_to_copy(fetch);
    }

    /// How the ledger remembers a message that is set aside. One that has
    /// reached somebody stays owed to the others.
    fn set_aside(&self, fetch: &Fetch, why: &str) -> State {
        if self.context.item.unified.is_some() {
            let mut standing: Standing = fetch.standing();
            if let Some(owed) = standing.set_aside(self.context.now, fetch.is_owed(), why) {
                return owed;
            }
        }
        let attempts = fetch.attempts().saturating_add(1);
        let wait = 900_i64 << u32::from(attempts.min(8) - 1).min(7);
        State::Quarantined {
            attempts,
            next_try: self.context.now + wait.min(86_400),
            reason: shown(why.as_bytes()).into(),
        }
    }

    /// What is not handed over yet must stay so: nobody would remember it.
    pub(super) fn on_uncommitted(&mut self, error: &LedgerError) -> PollError {
        let error = ledger_error(error);
        self.fail(error.code, &error.message);
        error
    }

    pub(super) fn fail(&mut self, code: Code, message: &str) {
        if self.failed.is_none() {
            self.failed = Some(PollError { code, message: message.to_owned(), scope: Scope::Local });
        }
        self.withdraw();
        // What is not handed over yet is fetched by a later poll.
        for (job, handed) in self.ready.drain(..) {
            self.held_octets -= handed.octets;
            drop(job);
        }
    }

    /// Awaits the destination's answers to what was handed over, and commits.
    pub(super) async fn settle(&mut self) -> Result<(), PollError> {
        loop {
            // A stream without its sender ends by itself; the courier has
            // deadlines of its own for everything else.
            self.give_leave();
            while !self.ready.is_empty() && self.is_free() {
                let Some((job, handed)) = self.ready.pop_front() else { break };
                let (id, lane) = (job.id, handed.lane);
                self.handed.insert(id, handed);
                if self.couriers.send(lane, job).await.is_err() {
                    self.on_courier_gone();
                }
            }
            let idle = self.ready.is_empty() && self.handed.is_empty() && self.out.is_empty();
            if self.batch.is_due(idle) {
                self.batch.start();
            }
            if idle && self.batch.uncommitted() == 0 {
                return Ok(());
            }
            let Self { couriers, batch, out, .. } = self;
            tokio::select! {
                biased;
                outcome = couriers.outcomes.recv() => match outcome {
                    Some(outcome) => self.on_outcome(outcome),
                    None => self.on_courier_gone(),
                },
                numbers = batch.committed(), if batch.is_running() => {
                    let numbers = numbers.map_err(|error| ledger_error(&error))?;
                    self.deletions.extend(numbers);
                }
                _ = out.advance(), if !out.is_empty() => {}
            }
        }
    }
}
