//! What one session has to do, from what the maildrop holds.

use std::collections::{HashMap, HashSet};

use super::incoming::Fetch;
use super::plan::{Plan, Tally};
use super::ports::Observer;
use crate::domain::ledger::{
    Candidate, Change, Entry, Findings, Ledger, State, SurveyPolicy, Told, Twins, day_of,
};
use crate::domain::work::{OnReject, WorkItem};

/// The work of a session.
#[derive(Default)]
pub(super) struct Work {
    /// To fetch.
    pub(super) queue: Vec<Fetch>,
    /// To delete: the ledger knows already that they are.
    pub(super) deletions: Vec<u32>,
    /// To delete once the change is durable.
    pub(super) durable_deletions: Vec<(Change, u32)>,
    /// To commit.
    pub(super) changes: Vec<Change>,
    /// To commit after a session that went well.
    pub(super) pruning: Vec<Change>,
    /// Sorted hashes of Message-IDs that count as known.
    pub(super) known: Vec<u64>,
    /// See [`super::transfer::Context::moved`].
    pub(super) moved: HashMap<u64, Vec<(u64, Entry)>>,
    /// Tells messages of one UID apart.
    pub(super) twins: HashMap<u64, Twins>,
    /// The server has no UIDL.
    pub(super) without_uids: bool,
}

/// The numbers whose sizes are needed, sorted.
pub(super) fn wanted(findings: &Findings) -> Vec<u32> {
    let mut numbers: Vec<u32> = findings
        .unseen
        .iter()
        .map(|candidate| candidate.number)
        .chain(findings.delete.iter().map(|deletion| deletion.number))
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

impl Work {
    pub(super) fn take_findings(
        &mut self,
        findings: Findings,
        sizes: &HashMap<u32, u64>,
        ledger: &Ledger,
        policy: &SurveyPolicy,
        plan: &Plan,
        tally: &mut Tally,
    ) {
        tally.counters.listed = tally.counters.listed.max(findings.listed);
        tally.counters.in_quarantine = findings.waiting - findings.owed;
        if !std::mem::replace(&mut tally.surveyed, true) {
            // A later session of the poll also finds what this poll deferred.
            tally.counters.waiting += findings.owed;
        }
        self.known = findings.vanished_ids;
        for (hash, entry) in findings.vanished_owed {
            self.moved.entry(entry.message_id).or_default().push((hash, entry));
        }
        self.pruning = findings.pruning;
        for deletion in findings.delete {
            match deletion.change() {
                Some(change) => self.durable_deletions.push((change, deletion.number)),
                None => self.deletions.push(deletion.number),
            }
        }
        let mut ambiguous: HashMap<u64, Vec<(u32, u64)>> = HashMap::new();
        for candidate in &findings.unseen {
            if candidate.ambiguous {
                let size = sizes.get(&candidate.number).copied().unwrap_or(0);
                ambiguous.entry(candidate.hash).or_default().push((candidate.number, size));
            }
        }
        let mut told: HashMap<u32, Told> = HashMap::new();
        let mut reused: HashSet<u64> = HashSet::new();
        let mut unseen = findings.unseen_total;
        for (hash, listed) in ambiguous {
            let mut twins = ledger.twins(hash, policy, plan.undeleted.contains(&hash));
            told.extend(twins.by_size(&listed));
            // Of a UID that is listed once, whatever was deleted under it is gone.
            let gone = |entry: Entry| entry.state == State::Deleting;
            if listed.len() == 1 && ledger.entries(hash).all(gone) {
                reused.insert(hash);
            }
            self.twins.insert(hash, twins);
        }
        for candidate in findings.unseen {
            match told.remove(&candidate.number) {
                Some(Told::Known) => unseen -= 1,
                Some(Told::Waiting) => {
                    unseen -= 1;
                    tally.counters.in_quarantine += 1;
                }
                Some(Told::Delete(entry)) => {
                    unseen -= 1;
                    let entry = Entry { state: State::Deleting, ..entry };
                    self.durable_deletions
                        .push((Change::Put { uid: candidate.uid, entry }, candidate.number));
                }
                Some(Told::Fetch) | None => {
                    let size = sizes.get(&candidate.number).copied();
                    let fetch = Fetch::new(candidate.number, Some(candidate.uid), candidate.hash, size);
                    let Candidate { prior, ambiguous, .. } = candidate;
                    let reused = reused.contains(&fetch.hash);
                    self.queue.push(Fetch { prior, ambiguous, reused, ..fetch });
                }
            }
        }
        tally.counters.unseen = tally.counters.unseen.max(unseen);
    }

    pub(super) fn take_numbers(&mut self, numbers: &[u32], sizes: &HashMap<u32, u64>, tally: &mut Tally) {
        tally.counters.listed = tally.counters.listed.max(numbers.len() as u64);
        tally.counters.unseen = tally.counters.listed;
        self.without_uids = true;
        self.queue =
            numbers.iter().map(|number| Fetch::new(*number, None, 0, sizes.get(number).copied())).collect();
    }

    /// Takes out what is over the record's limits.
    pub(super) fn apply_limits(
        &mut self,
        item: &WorkItem,
        plan: &mut Plan,
        tally: &mut Tally,
        observer: &dyn Observer,
        now: i64,
    ) {
        self.queue.retain(|fetch| {
            let same = |suspect: &Fetch| {
                suspect.uid == fetch.uid && (fetch.uid.is_some() || suspect.number == fetch.number)
            };
            let tried = fetch.uid.is_some() && !fetch.ambiguous && plan.tried.contains(&fetch.hash);
            !tried && !plan.suspects.iter().any(|(suspect, _)| same(suspect))
        });
        if let Some(limit) = item.limits.message_size {
            let (fit, large): (Vec<_>, Vec<_>) = std::mem::take(&mut self.queue)
                .into_iter()
                // Who is owed a message gets it, as the others did.
                .partition(|fetch| fetch.size.unwrap_or(0) <= limit || fetch.is_owed());
            self.queue = fit;
            for fetch in large {
                self.refuse_large(fetch, limit, item, tally, observer, now);
            }
        }
        let budget = plan.budget.map_or(usize::MAX, |budget| usize::try_from(budget).unwrap_or(usize::MAX));
        if item.unified.is_some() {
            self.put_new_first(budget);
        }
        if let Some(budget) = &mut plan.budget {
            self.queue.truncate(usize::try_from(*budget).unwrap_or(usize::MAX));
            *budget = budget.saturating_sub(self.queue.len() as u64);
        }
    }

    /// One account that takes no mail for now must not hold up that of all the
    /// others: what was tried before comes behind what is new, and gets a fifth
    /// of a session that cannot take all.
    fn put_new_first(&mut self, budget: usize) {
        self.queue.sort_by_key(|fetch| fetch.prior.is_some());
        let new = self.queue.partition_point(|fetch| fetch.prior.is_none());
        let for_old = (self.queue.len() - new).min(budget / 5);
        let kept = new.min(budget - for_old);
        self.queue.drain(kept..new);
    }

    fn refuse_large(
        &mut self,
        fetch: Fetch,
        limit: u64,
        item: &WorkItem,
        tally: &mut Tally,
        observer: &dyn Observer,
        now: i64,
    ) {
        let size = fetch.size.unwrap_or(0);
        let fetch_is_new = fetch.attempts() == 0;
        let why = format!("{size} octets are more than limits.messageSize allows ({limit})");
        let entry = |state| Entry { state, day: day_of(now), size, message_id: 0, digest: 0 };
        match (item.on_reject, fetch.uid.clone()) {
            (OnReject::Postmaster, _) if item.postmaster.is_some() || item.unified.is_some() => {
                self.queue.push(Fetch { to_postmaster: true, ..fetch });
                return;
            }
            (OnReject::Discard, uid) => {
                tally.counters.rejected += 1;
                match uid {
                    Some(uid) if item.leave => {
                        self.changes.push(Change::Put { uid, entry: entry(State::Kept) });
                    }
                    Some(uid) => self
                        .durable_deletions
                        .push((Change::Put { uid, entry: entry(State::Deleting) }, fetch.number)),
                    None => self.deletions.push(fetch.number),
                }
            }
            (_, uid) => {
                tally.counters.in_quarantine += 1;
                if fetch_is_new {
                    tally.counters.rejected += 1;
                    tally.counters.quarantined += 1;
                }
                if let (Some(uid), 0) = (uid, fetch.attempts()) {
                    // Due at once: the next poll may have a larger limit.
                    let state = State::Quarantined { attempts: 1, next_try: now, reason: why.clone().into() };
                    self.changes.push(Change::Put { uid, entry: entry(state) });
                }
            }
        }
        tally.note(&why);
        if fetch_is_new {
            observer.rejected(&item.key, "size");
        }
    }
}
