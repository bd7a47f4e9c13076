//! Messages of unified accounts: for whom each is, what became of its
//! recipients, and what follows from that. The decisions are
//! [`Standing`]'s; here they are carried out.

use std::collections::VecDeque;

use super::super::incoming::{Ended, EndedWay, Entrusted, Fetch, Heading, Purpose, Taken, UnifiedRules};
use super::super::ports::{Job, Undelivered, Verdict};
use super::super::report::{PollError, Scope};
use super::super::route::MAIN;
use super::super::standing::{Next, Standing, wait};
use super::copies::Meeting;
use super::{Answer, Handed, Transfer};
use crate::domain::code::Code;
use crate::domain::ledger::{Change, Entry, State, day_of};
use crate::domain::text::shown;
use crate::domain::work::{OnReject, Special, Unified};

impl Transfer<'_> {
    /// A message has been read to its end, and is known to be whole.
    pub(super) async fn confirm_unified(&mut self, ended: Ended) -> Result<(), PollError> {
        let Ended { id, mut taken, heading, way } = ended;
        if let EndedWay::Ruled(rule, why) = &way {
            let known = taken.fetch.ambiguous && self.is_known(&mut taken).await?;
            if !known {
                self.on_ruled(&taken, *rule, why);
            }
            return Ok(());
        }
        if let (EndedWay::Whole(_), Some(heading)) = (&way, &heading)
            && self.is_another(&taken, heading)
        {
            taken.fetch.disown();
        }
        let was_owed = taken.fetch.is_owed();
        let is_identified = taken.fetch.standing.as_ref().is_some_and(|standing| standing.digest.is_some());
        if !is_identified && self.is_known(&mut taken).await? {
            self.withhold(id, way);
            return Ok(());
        }
        let digest = heading.as_ref().and_then(|heading| heading.copy_digest());
        let Some((taken, standing)) = self.meet(taken, digest) else {
            self.withhold(id, way);
            return Ok(());
        };
        match way {
            EndedWay::Whole(job) => {
                if let Some(heading) = heading {
                    self.entrust(job, taken, *heading, standing);
                }
            }
            // Only now is it known for what it is.
            EndedWay::Streamed(..) | EndedWay::Void if taken.fetch.is_owed() && !was_owed => {
                self.withhold(id, way);
                self.retrieve_again(taken.fetch.clone(), Some(&taken), standing);
            }
            EndedWay::Streamed(_, sender) => {
                if self.note_end(id, taken, &standing) {
                    self.out.push(&sender, super::Part::End);
                }
            }
            EndedWay::Read(None) => self.retrieve_again(taken.fetch.clone(), Some(&taken), standing),
            EndedWay::Read(Some(mut found)) => {
                (found.digest, found.copy) = (standing.digest, standing.copy);
                self.conclude(taken.fetch.clone(), Some(taken), heading.map(|heading| *heading), *found);
            }
            EndedWay::Void => {
                self.note_end(id, taken, &standing);
            }
            EndedWay::Ruled(..) => {}
        }
        Ok(())
    }

    /// Whether a message without a Message-ID is not the one that is owed under
    /// its UID. Other octets alone do not say so: some servers change them.
    fn is_another(&self, taken: &Taken, heading: &Heading) -> bool {
        let prior = taken.fetch.prior.as_deref().filter(|_| taken.fetch.standing.is_none());
        let (Some(prior), Some(desk)) = (prior, self.context.desk(&self.plan.away)) else { return false };
        let State::Owed { to, .. } = &prior.state else { return false };
        let is_nameless = prior.message_id == 0 && taken.message_id == 0;
        let differs = prior.digest != 0 && prior.digest != taken.digest;
        is_nameless && differs && !taken.fetch.ambiguous && !heading.names(&desk, to)
    }

    /// Whether who is asked for is whom a header names, and not whom a message
    /// merely mentions.
    fn is_by_header(&self) -> bool {
        let unified = self.context.item.unified.as_deref();
        unified.is_some_and(|unified| unified.special != Special::Addressees)
    }

    /// A message that is not to be handed over, or no further.
    fn withhold(&mut self, id: u64, way: EndedWay) {
        self.early.remove(&id);
        match way {
            EndedWay::Whole(job) => self.held_octets -= job.envelope.size.unwrap_or(0),
            EndedWay::Streamed(_, sender) => self.out.withdraw(&sender),
            EndedWay::Ruled(..) | EndedWay::Read(_) | EndedWay::Void => {}
        }
    }

    /// Holds a message against those whose copy it may be: what is known of
    /// it, unless it is one.
    fn meet(&mut self, taken: Taken, digest: Option<u64>) -> Option<(Taken, Standing)> {
        let mut standing = taken.fetch.standing();
        standing.digest = Some(taken.digest);
        let (Some(copies), Some(digest)) = (&mut self.copies, digest) else { return Some((taken, standing)) };
        if standing.reached || standing.copy.is_some() || taken.message_id == 0 {
            return Some((taken, standing));
        }
        match copies.meet(taken, digest) {
            Meeting::First(taken) => {
                standing.copy = Some((taken.message_id, digest));
                Some((taken, standing))
            }
            Meeting::Copy(taken) => {
                self.suppress(&taken);
                None
            }
            Meeting::Waits => None,
        }
    }

    /// A message that is held whole goes to those for whom it is.
    fn entrust(&mut self, mut job: Job, taken: Taken, mut heading: Heading, mut standing: Standing) {
        let octets = job.envelope.size.unwrap_or(0);
        let Some(desk) = self.context.desk(&self.plan.away) else { return };
        let rules = UnifiedRules { desk, copies: None };
        let mut fetch = taken.fetch.clone();
        let Some((recipients, lane, purpose)) = rules.address(&fetch, &heading, &mut standing) else {
            self.held_octets -= octets;
            return self.conclude(fetch, Some(taken), Some(heading), standing);
        };
        heading.addressed();
        self.note_postmaster(&fetch, &purpose);
        job.envelope.await_recipients = matches!(purpose, Purpose::Recipients(_));
        job.envelope.recipients = recipients;
        fetch.standing = Some(Box::new(standing));
        let unified = Some(Box::new(Entrusted { purpose, heading }));
        self.ready.push_back((job, Handed { taken: Some(taken), octets, fetch, lane, unified }));
    }

    pub(super) fn note_postmaster(&self, fetch: &Fetch, purpose: &Purpose) {
        if let Purpose::Postmaster(why) = purpose {
            tracing::info!(record = %self.context.item.key, number = fetch.number,
                "message to the postmaster of the Main Domain: {why}");
        }
    }

    /// A streamed message is whole. Whether it is still wanted.
    fn note_end(&mut self, id: u64, taken: Taken, known: &Standing) -> bool {
        if let Some((mut handed, answer)) = self.early.remove(&id) {
            complete(&mut handed, taken, known);
            self.on_unified(id, handed, answer);
            return false;
        }
        let waiting = self.ready.iter_mut().find(|(job, _)| job.id == id).map(|(_, handed)| handed);
        let Some(handed) = self.handed.get_mut(&id).or(waiting) else { return false };
        complete(handed, taken, known);
        true
    }

    /// What a destination says of a message, or of a notification about one.
    pub(super) fn on_unified(&mut self, id: u64, mut handed: Handed, answer: Answer) {
        if answer == Err(Undelivered::Aborted) {
            // It is fetched again, or left to a later poll.
            return;
        }
        let Some(entrusted) = handed.unified.take() else { return };
        match (&entrusted.purpose, &answer) {
            // That a sender's address is refused says nothing about our mail.
            (Purpose::Notification(_), Ok(_)) => {}
            // Nor does it when somebody whom a message merely mentions is.
            (Purpose::Recipients(sent), _) => self.learn(handed.lane, &answer, sent, self.is_by_header()),
            _ => self.learn(handed.lane, &answer, &[], true),
        }
        if handed.taken.is_none() {
            // Nothing is settled before the message is known to be whole.
            handed.unified = Some(entrusted);
            self.early.insert(id, (handed, answer));
            return;
        }
        let Handed { taken, mut fetch, lane, .. } = handed;
        let standing = fetch.standing.take().map(|standing| *standing).unwrap_or_default();
        let Entrusted { purpose, heading } = *entrusted;
        match purpose {
            Purpose::Recipients(sent) => {
                let mut standing = standing;
                let was_reached = standing.reached;
                match answer {
                    Ok(verdicts) => {
                        if verdicts.iter().any(|verdict| matches!(verdict, Verdict::Unknown { .. })) {
                            self.context.observer.uncertain(&self.context.item.key);
                        }
                        if let Some(desk) = self.context.desk(&self.plan.away) {
                            standing.hear(&desk, lane, sent, verdicts);
                        }
                    }
                    Err(Undelivered::Unknown { message }) => standing.doubt(&sent, &message),
                    Err(_) => standing.put_back(&sent),
                }
                let key = standing.copy;
                let is_reached = standing.reached && !was_reached;
                let origin = fetch.origin();
                self.conclude(fetch, taken, Some(heading), standing);
                if is_reached {
                    self.on_reached(lane, key, origin);
                }
            }
            Purpose::Postmaster(_) if standing.has_strays() => {
                self.on_strays(fetch, taken, heading, lane, standing, answer);
            }
            Purpose::Postmaster(_) => {
                fetch.to_postmaster = true;
                self.on_postmaster(fetch, taken.as_ref(), lane, standing, answer);
            }
            Purpose::Notification(in_stead) => {
                self.on_notification(fetch, taken, heading, standing, in_stead, answer);
            }
        }
    }

    fn on_postmaster(
        &mut self,
        mut fetch: Fetch,
        taken: Option<&Taken>,
        lane: usize,
        standing: Standing,
        answer: Answer,
    ) {
        let partial = fetch.is_owed();
        let verdict = answer.map(|verdicts| verdicts.into_iter().next());
        match verdict {
            Ok(Some(Verdict::Accepted)) => {
                self.settle_message(&fetch, taken);
                self.on_reached(lane, standing.copy, fetch.origin());
            }
            Ok(Some(Verdict::Refused(refusal))) => {
                let content = refusal.at == "." || refusal.code == 552;
                fetch.standing = Some(Box::new(standing));
                self.refuse(&fetch, taken, "destination", &refusal.to_string(), content);
            }
            // The ledger says already that a later poll is to try.
            Ok(Some(Verdict::Unknown { message })) | Err(Undelivered::Unknown { message }) if !partial => {
                self.on_uncertain(&fetch, taken, &message);
                self.wait(&fetch, &standing, true);
            }
            Ok(Some(Verdict::Deferred(refusal))) => {
                let why = format!("refused for now: {refusal}");
                self.tally.defer(&why);
                self.put_off(&fetch, taken, &standing, &why);
                self.wait(&fetch, &standing, true);
            }
            _ => self.wait(&fetch, &standing, false),
        }
    }

    /// What the postmaster's destination says of a message that is owed to
    /// somebody whom nobody can name.
    fn on_strays(
        &mut self,
        mut fetch: Fetch,
        taken: Option<Taken>,
        heading: Heading,
        lane: usize,
        mut standing: Standing,
        answer: Answer,
    ) {
        fetch.to_postmaster = false;
        let is_first = !standing.reached;
        let (key, origin) = (standing.copy, fetch.origin());
        let why = match answer.map(|verdicts| verdicts.into_iter().next()) {
            Ok(Some(Verdict::Accepted)) => {
                standing.give_strays_up();
                self.conclude(fetch, taken, Some(heading), standing);
                if is_first {
                    self.on_reached(lane, key, origin);
                }
                return;
            }
            Ok(Some(Verdict::Deferred(refusal) | Verdict::Refused(refusal))) => refusal.to_string(),
            Ok(Some(Verdict::Unknown { message }))
            | Err(Undelivered::Unknown { message } | Undelivered::Unavailable { message, .. }) => {
                message.to_string()
            }
            Ok(None) | Err(Undelivered::Aborted) => "the postmaster did not get it".to_owned(),
        };
        standing.keep_strays(&format!("the postmaster cannot have it in a recipient's stead: {why}"));
        self.conclude(fetch, taken, Some(heading), standing);
    }

    /// Somebody has the message. The ledger says already to whom it is owed
    /// still: if only the beginning of a commit survives a power loss, it must
    /// not be one that makes the message a copy, and nothing of the others.
    fn on_reached(&mut self, lane: usize, key: Option<(u64, u64)>, origin: u64) {
        self.tally.counters.delivered += 1;
        self.context.observer.delivered(&self.context.item.key, self.context.lanes.via(lane));
        let (Some(key), Some(copies)) = (key, &mut self.copies) else { return };
        let waited = copies.reached(key);
        let day = day_of(self.context.now);
        let (message_id, digest) = key;
        let entry = Entry { state: State::Copy, day, size: origin, message_id, digest };
        self.batch.add_beside(Change::Put { uid: Box::default(), entry });
        for taken in waited {
            self.suppress(&taken);
        }
    }

    /// Does what is to be done with a message next.
    pub(super) fn conclude(
        &mut self,
        mut fetch: Fetch,
        taken: Option<Taken>,
        heading: Option<Heading>,
        mut standing: Standing,
    ) {
        let Some(unified) = self.context.item.unified.as_deref() else { return };
        let away = &self.plan.away;
        standing.put_off(|lane| away.contains_key(&lane));
        let is_main_away = away.contains_key(&MAIN);
        if self.context.item.on_reject == OnReject::Discard {
            standing.discard_unwilling();
        }
        match standing.next(&unified.special) {
            Next::Again => self.retrieve_again(fetch, taken.as_ref(), standing),
            Next::Notify => self.report(fetch, taken, heading, standing),
            Next::Postmaster if is_main_away && standing.has_strays() => {
                standing
                    .keep_strays("whom it is owed to is unknown, and the postmaster's destination is away");
                self.conclude(fetch, taken, heading, standing);
            }
            Next::Postmaster if is_main_away => self.wait(&fetch, &standing, false),
            Next::Postmaster => {
                fetch.to_postmaster = true;
                self.retrieve_again(fetch, taken.as_ref(), standing);
            }
            Next::Reject(refusal, content) => {
                standing.retrieved = true;
                fetch.standing = Some(Box::new(standing));
                self.refuse(&fetch, taken.as_ref(), "destination", &refusal.to_string(), content);
            }
            Next::Uncertain(message) => {
                self.on_uncertain(&fetch, taken.as_ref(), &message);
                self.wait(&fetch, &standing, true);
            }
            Next::Settle => {
                if standing.is_bounced() {
                    self.tally.counters.rejected += 1;
                    self.context.observer.rejected(&self.context.item.key, "recipient");
                }
                if let Some(refusal) = standing.spurned() {
                    self.tally.note(&format!("refused by a recipient's destination: {refusal}"));
                }
                self.settle_message(&fetch, taken.as_ref());
            }
            Next::Owe => self.owe(&fetch, taken.as_ref(), &standing),
            Next::Wait => {
                if standing.deferred {
                    self.tally.defer(standing.why());
                }
                if standing.is_tried() {
                    self.put_off(&fetch, taken.as_ref(), &standing, standing.why());
                }
                self.wait(&fetch, &standing, standing.is_tried());
            }
        }
    }

    /// The ledger says whom the message is owed; a later poll goes on.
    fn owe(&mut self, fetch: &Fetch, taken: Option<&Taken>, standing: &Standing) {
        let tried = standing.is_tried();
        if let Some(state) = standing.at_last(self.context.now)
            && (tried || !is_said(fetch, &state))
        {
            self.put(fetch, taken, state, None);
        }
        if tried {
            self.tally.defer(standing.why());
        }
        tracing::info!(record = %self.context.item.key, number = fetch.number,
            "message owed to some of its recipients: {}", standing.why());
        self.wait(fetch, standing, tried && !standing.reached);
    }

    /// Nothing of a message is settled, and it was tried in vain: that is noted,
    /// so that later polls take what is new before it.
    fn put_off(&mut self, fetch: &Fetch, taken: Option<&Taken>, standing: &Standing, why: &str) {
        if fetch.uid.is_none() || fetch.is_owed() {
            return;
        }
        let attempts = fetch.attempts().saturating_add(1);
        let next_try = self.context.now + wait(attempts, false);
        // Of one for the postmaster there is nobody to whom it could be owed.
        let state = standing.at_last_to_all(self.context.now).unwrap_or_else(|| State::Quarantined {
            attempts,
            next_try,
            reason: shown(why.as_bytes()).into(),
        });
        self.put(fetch, taken, state, None);
    }

    /// Nothing more is done about a message in this poll. With `in_vain` one
    /// of its copies may fare better.
    fn wait(&mut self, fetch: &Fetch, standing: &Standing, in_vain: bool) {
        if fetch.uid.is_none() {
            self.plan.skip.insert(fetch.number);
        } else if !fetch.ambiguous {
            self.plan.tried.insert(fetch.hash);
        }
        if in_vain && let Some(key) = standing.copy {
            self.inherit(key);
        }
    }

    /// A message that is set aside, or done with and nobody's: a copy of it
    /// takes its place.
    pub(super) fn yield_to_copy(&mut self, fetch: &Fetch) {
        if let Some(key) = fetch.standing.as_ref().and_then(|standing| standing.copy) {
            self.inherit(key);
        }
    }

    fn inherit(&mut self, key: (u64, u64)) {
        let Some(mut heir) = self.copies.as_mut().and_then(|copies| copies.given_up(key)) else { return };
        let mut standing = heir.standing();
        (standing.copy, standing.retrieved) = (Some(key), true);
        heir.standing = Some(Box::new(standing));
        self.queue.push_back(heir);
    }

    /// Retrieves a message once more. Who is done with, the ledger knows
    /// before that.
    fn retrieve_again(&mut self, mut fetch: Fetch, taken: Option<&Taken>, mut standing: Standing) {
        standing.retrieved = true;
        self.remember(&mut fetch, taken, &standing);
        fetch.standing = Some(Box::new(standing));
        self.queue.push_front(fetch);
    }

    /// Tells the ledger how far a message has come, unless it knows.
    pub(super) fn remember(&mut self, fetch: &mut Fetch, taken: Option<&Taken>, standing: &Standing) {
        if let Some(state) = standing.interim(self.context.now)
            && !is_said(fetch, &state)
        {
            let entry = self.put(fetch, taken, state, None);
            fetch.prior = Some(Box::new(entry));
        }
    }

    /// One of several destinations gets nothing more in this poll: its mail
    /// waits, and the others' goes on.
    pub(super) fn lose_one(&mut self, lane: usize, code: Code, message: &str) {
        let error = PollError { code, message: message.to_owned(), scope: Scope::Local };
        if self.plan.away.insert(lane, error).is_some() {
            return;
        }
        if self.plan.away.len() >= self.context.lanes.count() {
            return self.fail(code, message);
        }
        tracing::warn!(record = %self.context.item.key, "a destination is away, the others get their mail: {message}");
        let (lost, ready): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.ready).into_iter().partition(|(_, handed)| handed.lane == lane);
        self.ready = ready;
        for (job, handed) in lost {
            self.held_octets -= handed.octets;
            let result = Err(Undelivered::Unavailable { code, message: message.into() });
            self.on_unified(job.id, handed, result);
        }
        // What has nowhere else to go is not retrieved.
        for fetch in std::mem::take(&mut self.queue) {
            let standing = fetch.standing();
            let away = &self.plan.away;
            if fetch.to_postmaster && lane == MAIN {
                self.wait(&fetch, &standing, false);
            } else if standing.is_stuck(|lane| away.contains_key(&lane)) {
                self.conclude(fetch, None, None, standing);
            } else {
                self.queue.push_back(fetch);
            }
        }
    }
}

/// What of a streamed message is not known before its end.
fn complete(handed: &mut Handed, taken: Taken, known: &Standing) {
    handed.fetch.prior.clone_from(&taken.fetch.prior);
    if let Some(standing) = &mut handed.fetch.standing {
        (standing.digest, standing.copy) = (known.digest, known.copy);
    }
    handed.taken = Some(taken);
}

/// Whether the ledger says already whom the message is owed.
fn is_said(fetch: &Fetch, state: &State) -> bool {
    let said = fetch.prior.as_ref().map(|entry| &entry.state);
    match (said, state) {
        (Some(State::Owed { to: said, reached: by, .. }), State::Owed { to, reached, .. }) => {
            said == to && by == reached
        }
        _ => false,
    }
}

/// Whether copies are recognised.
pub(in super::super) fn knows_copies(unified: &Unified) -> bool {
    unified.deduplicate && unified.special == Special::Addressees
}
