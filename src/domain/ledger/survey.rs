//! A listing held against the ledger: what is new, what is to be deleted, and
//! what may be forgotten.

use std::collections::HashSet;

use super::table::{Kind, Slot};
use super::{Change, Entry, Ledger, State, day_of};
use crate::domain::work::OnUidChange;

/// A kept UID is forgotten after so many days without it,
const MISSING_DAYS: i32 = 14;
/// and so many complete listings.
const MISSING_LISTINGS: u8 = 3;
/// A mass change needs at least so many kept UIDs that ought to be listed, and
/// as many that are not known: fewer are neither a surge nor a surprise.
const MASS: u64 = 20;
/// Changes of one survey to absences; the rest is left to the next listing.
const MOST_PRUNED: usize = 16_384;
/// New messages named by one survey,
const MOST_UNSEEN: usize = 100_000;
/// and octets of their UIDs. What is beyond is counted, and found next time.
const MOST_UNSEEN_OCTETS: usize = 8 << 20;

/// What a record's manifest says of messages that were taken.
#[derive(Clone, Copy, Debug)]
pub struct SurveyPolicy {
    /// Unix seconds.
    pub now: i64,
    /// Messages stay on the server.
    pub leave: bool,
    /// With `leave`: for this many days.
    pub keep_for_days: Option<u32>,
    /// With `leave` off: what was kept while it was on is deleted too.
    pub delete_seen: bool,
    /// What a mass change means.
    pub on_uid_change: OnUidChange,
}

/// What is to be done with a message that the ledger knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Nothing,
    /// Delete it on the server.
    Delete,
    /// Nothing yet: it is quarantined, or owed, and not due.
    Wait,
    /// Try it (again).
    Retry,
}

impl SurveyPolicy {
    /// What is to be done with a message that is still listed.
    pub fn action(&self, entry: &Entry) -> Action {
        match &entry.state {
            State::Kept => self.kept(entry.day),
            State::Deleting => Action::Delete,
            State::Uncertain => Action::Retry,
            State::Quarantined { next_try, .. } | State::Owed { next_try, .. } => self.due(*next_try),
            // Of these no listing says anything.
            State::Copy => Action::Nothing,
        }
    }

    fn kept(&self, day: i32) -> Action {
        let delete = match (self.leave, self.keep_for_days) {
            (true, Some(days)) => i64::from(day) + i64::from(days) <= i64::from(day_of(self.now)),
            (true, None) => false,
            (false, _) => self.delete_seen,
        };
        if delete { Action::Delete } else { Action::Nothing }
    }

    fn due(&self, next_try: i64) -> Action {
        if next_try <= self.now { Action::Retry } else { Action::Wait }
    }
}

/// A message to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number in this session.
    pub number: u32,
    /// The keyed hash of its UID.
    pub hash: u64,
    /// As listed.
    pub uid: Box<[u8]>,
    /// What is known of an earlier try: quarantined or owed, and due, or
    /// uncertain.
    pub prior: Option<Box<Entry>>,
    /// The UID says too little: listed more than once, or known for several
    /// messages of different states. Size and digest decide, see
    /// [`super::Twins`].
    pub ambiguous: bool,
}

impl Candidate {
    /// The changes that remember what became of it. Where an earlier try is
    /// known and there is no doubt which message it was, nothing of it stays:
    /// some servers serve other octets at each retrieval, which would leave
    /// the earlier try to be made for ever.
    pub fn settle(&self, entry: Entry, changes: &mut Vec<Change>) {
        // Where the one takes the other's place anyway nothing is forgotten: a
        // power loss between the two would cost what is known of recipients.
        let replaces =
            |prior: &Entry| prior.size == entry.size && (prior.digest == entry.digest || prior.digest == 0);
        if self.prior.as_deref().is_some_and(|prior| !replaces(prior)) && !self.ambiguous {
            changes.push(Change::Forget { hash: self.hash });
        }
        changes.push(Change::Put { uid: self.uid.clone(), entry });
    }
}

/// A message to delete without fetching it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// Its number in this session.
    pub number: u32,
    /// The keyed hash of its UID.
    pub hash: u64,
    /// As listed.
    pub uid: Box<[u8]>,
    /// What the ledger holds.
    pub entry: Entry,
}

impl Deletion {
    /// The change to commit before DELE, if the ledger does not say already
    /// that the message is being deleted: a deleted one is forgotten at the
    /// next listing without it, a kept one much later.
    pub fn change(&self) -> Option<Change> {
        let entry = Entry { state: State::Deleting, ..self.entry.clone() };
        (self.entry.state != State::Deleting).then(|| Change::Put { uid: self.uid.clone(), entry })
    }
}

/// What a survey found.
#[derive(Debug, Default)]
pub struct Findings {
    /// Messages to fetch, by number.
    pub unseen: Vec<Candidate>,
    /// How many there are: more than in `unseen` only beyond 100 000, or 8 MiB
    /// of UIDs.
    pub unseen_total: u64,
    /// Messages to delete, by number.
    pub delete: Vec<Deletion>,
    /// Messages that are quarantined, or owed to some, and not due.
    pub waiting: u64,
    /// Of these the ones that are owed.
    pub owed: u64,
    /// Lines of the listing, void ones left out.
    pub listed: u64,
    /// Of these known and without need of a fetch.
    pub known: u64,
    /// What to forget or to count as missing. Where the listing does not allow
    /// to conclude anything from it, only copies that are too old.
    pub pruning: Vec<Change>,
    /// Messages that are kept, or owed to some.
    pub remembered: u64,
    /// Nearly all UIDs changed at once: of at least 20 of these that ought to
    /// be listed fewer than a tenth is, and at least 20 others are.
    pub all_changed: bool,
    /// With [`OnUidChange::MatchMessageId`], after or at a mass change: sorted
    /// Message-ID hashes of kept messages that this listing lacks. What bears
    /// one of them was taken under another UID.
    pub vanished_ids: Vec<u64>,
    /// Likewise what is owed, with the hashes of its UIDs: what bears such a
    /// Message-ID may be owed to these under another UID.
    pub vanished_owed: Vec<(u64, Entry)>,
}

impl Findings {
    /// Holds what is known against LIST. A server may give a UID to another
    /// message once the first one is gone (RFC 1939, section 7). That is sure
    /// where the size is another one (`size_of` says 0 where it knows none).
    /// Where a message was deleted before, and QUIT may have been obeyed, it may
    /// be so with an equal size, too: `is_sure`, of a UID's hash, says that it
    /// was not. What is in doubt is to be looked at before it is deleted, or
    /// kept from all recipients but those that the first one is owed to.
    pub fn check_against_list(&mut self, size_of: impl Fn(u32) -> u64, is_sure: impl Fn(u64) -> bool) {
        let is_sized = |entry: &Entry, number| entry.is_sized(size_of(number));
        for candidate in &mut self.unseen {
            let owed = candidate.prior.take_if(|prior| {
                matches!(prior.state, State::Owed { .. }) && !is_sized(prior, candidate.number)
            });
            candidate.ambiguous |= owed.is_some();
        }
        let (delete, doubtful): (Vec<_>, Vec<_>) = self.delete.drain(..).partition(|deletion| {
            is_sized(&deletion.entry, deletion.number)
                && (is_sure(deletion.hash) || !deletion.entry.may_be_gone())
        });
        self.delete = delete;
        if doubtful.is_empty() {
            return;
        }
        self.known -= doubtful.len() as u64;
        self.unseen_total += doubtful.len() as u64;
        self.unseen.extend(doubtful.into_iter().map(|deletion| Candidate {
            number: deletion.number,
            hash: deletion.hash,
            uid: deletion.uid,
            prior: None,
            ambiguous: true,
        }));
        self.unseen.sort_by_key(|candidate| candidate.number);
    }
}

/// Takes a listing line by line, and allocates only for what is not known.
#[derive(Debug)]
pub struct Survey<'a> {
    ledger: &'a Ledger,
    policy: SurveyPolicy,
    /// For each slot the number under which its UID was listed first, or 0.
    numbers: Vec<u32>,
    /// Known UIDs that were listed more than once.
    repeated: HashSet<u64>,
    /// Lines whose UID the ledger does not know at all.
    strange: u64,
    octets: usize,
    unnamed: u64,
    void: bool,
    found: Findings,
}

/// What a known UID means before it is known whether it comes again.
#[derive(Clone, Copy)]
enum Verdict {
    Clear(Action),
    Ambiguous,
}

impl<'a> Survey<'a> {
    pub(super) fn new(ledger: &'a Ledger, policy: SurveyPolicy) -> Self {
        Self {
            ledger,
            policy,
            numbers: vec![0; ledger.table.slots().len()],
            repeated: HashSet::new(),
            strange: 0,
            octets: 0,
            unnamed: 0,
            void: false,
            found: Findings::default(),
        }
    }

    /// Takes a line. Number 0 makes it a void one.
    pub fn see(&mut self, number: u32, uid: &[u8]) {
        if number == 0 {
            self.void = true;
            return;
        }
        self.found.listed += 1;
        let hash = self.ledger.hash(uid);
        let mut slots = self.ledger.table.find(hash);
        let Some(at) = slots.next() else {
            self.strange += 1;
            self.fetch(number, hash, uid, None, false);
            return;
        };
        if self.numbers[at] != 0 {
            self.see_again(number, hash, uid, at);
        } else if slots.next().is_none() {
            self.numbers[at] = number;
            self.see_known(number, hash, uid, at, Verdict::Clear(self.action(at)));
        } else {
            for twin in self.ledger.table.find(hash) {
                self.numbers[twin] = number;
            }
            self.see_known(number, hash, uid, at, self.verdict(hash));
        }
    }

    /// The listing held a line that could not be understood (or was cut off):
    /// what it lacks proves nothing.
    pub fn void_line(&mut self) {
        self.void = true;
    }

    fn see_known(&mut self, number: u32, hash: u64, uid: &[u8], at: usize, verdict: Verdict) {
        match verdict {
            Verdict::Ambiguous => self.fetch(number, hash, uid, None, true),
            Verdict::Clear(Action::Nothing) => self.found.known += 1,
            Verdict::Clear(Action::Wait) => {
                self.found.waiting += 1;
                self.found.owed += u64::from(self.is_owed(at));
            }
            Verdict::Clear(Action::Retry) => {
                let prior = Some(Box::new(self.ledger.entry(at)));
                self.fetch(number, hash, uid, prior, false);
            }
            Verdict::Clear(Action::Delete) => {
                self.found.known += 1;
                let entry = self.ledger.entry(at);
                self.found.delete.push(Deletion { number, hash, uid: uid.into(), entry });
            }
        }
    }

    /// All messages of a repeated UID are to be looked at, the first one too,
    /// whatever was thought of it.
    fn see_again(&mut self, number: u32, hash: u64, uid: &[u8], at: usize) {
        if self.repeated.insert(hash) {
            let first = self.numbers[at];
            match self.verdict(hash) {
                Verdict::Ambiguous | Verdict::Clear(Action::Retry) => {}
                Verdict::Clear(Action::Wait) => {
                    self.found.waiting -= 1;
                    self.found.owed -= u64::from(self.is_owed(at));
                    self.fetch(first, hash, uid, None, true);
                }
                Verdict::Clear(Action::Nothing | Action::Delete) => {
                    self.found.known -= 1;
                    self.fetch(first, hash, uid, None, true);
                }
            }
        }
        self.fetch(number, hash, uid, None, true);
    }

    fn verdict(&self, hash: u64) -> Verdict {
        let mut actions = self.ledger.table.find(hash).map(|at| self.action(at));
        let first = actions.next().unwrap_or(Action::Retry);
        let (mut twins, mut alike) = (false, true);
        for action in actions {
            twins = true;
            alike &= action == first;
        }
        if twins && (!alike || first == Action::Retry) { Verdict::Ambiguous } else { Verdict::Clear(first) }
    }

    fn is_owed(&self, at: usize) -> bool {
        self.ledger.table.slots()[at].kind() == Kind::Owed
    }

    fn action(&self, at: usize) -> Action {
        let slot = &self.ledger.table.slots()[at];
        match slot.kind() {
            Kind::Kept => self.policy.kept(slot.day),
            Kind::Deleting => Action::Delete,
            Kind::Uncertain => Action::Retry,
            Kind::Quarantined | Kind::Owed => self.policy.due(self.ledger.next_try(at)),
            Kind::Copy => Action::Nothing,
        }
    }

    fn fetch(&mut self, number: u32, hash: u64, uid: &[u8], prior: Option<Box<Entry>>, ambiguous: bool) {
        if self.found.unseen.len() >= MOST_UNSEEN || self.octets + uid.len() > MOST_UNSEEN_OCTETS {
            self.unnamed += 1;
            return;
        }
        self.octets += uid.len();
        self.found.unseen.push(Candidate { number, hash, uid: uid.into(), prior, ambiguous });
    }

    /// The listing is at its end.
    pub fn finish(mut self) -> Findings {
        self.settle_repeated();
        self.find_mass_change();
        if !(self.found.all_changed && self.policy.on_uid_change == OnUidChange::Pause) {
            self.prune();
        }
        let room = MOST_PRUNED.saturating_sub(self.found.pruning.len());
        self.found.pruning.extend(self.ledger.outdated_copies(day_of(self.policy.now)).take(room));
        self.found.unseen_total = self.found.unseen.len() as u64 + self.unnamed;
        self.found
    }

    fn settle_repeated(&mut self) {
        self.found.delete.retain(|deletion| !self.repeated.contains(&deletion.hash));
        let unseen = &mut self.found.unseen;
        unseen.sort_unstable_by_key(|candidate| (candidate.hash, candidate.number));
        for twins in unseen.chunk_by_mut(|one, other| one.hash == other.hash) {
            if twins.len() > 1 {
                for candidate in twins {
                    candidate.prior = None;
                    candidate.ambiguous = true;
                }
            }
        }
        unseen.sort_unstable_by_key(|candidate| candidate.number);
        self.found.delete.sort_unstable_by_key(|deletion| deletion.number);
    }

    fn find_mass_change(&mut self) {
        let (mut all, mut expected, mut listed, mut missing) = (0, 0_u64, 0_u64, 0_u64);
        for (slot, number) in self.remembered() {
            all += 1;
            expected += u64::from(slot.missed() == 0);
            listed += u64::from(slot.missed() == 0 && number != 0);
            missing += u64::from(slot.missed() > 0 && number == 0);
        }
        self.found.remembered = all;
        self.found.all_changed = expected >= MASS && listed * 10 < expected && self.strange >= MASS;
        let matching = self.policy.on_uid_change == OnUidChange::MatchMessageId;
        if matching && (self.found.all_changed || missing >= MASS) {
            let (mut ids, mut owed) = (Vec::new(), Vec::new());
            for (at, slot) in self.ledger.table.slots().iter().enumerate() {
                match slot.kind() {
                    _ if self.numbers[at] != 0 || slot.message_id == 0 => {}
                    Kind::Kept => ids.push(slot.message_id),
                    Kind::Owed => owed.push((slot.hash, self.ledger.entry(at))),
                    _ => {}
                }
            }
            ids.sort_unstable();
            ids.dedup();
            (self.found.vanished_ids, self.found.vanished_owed) = (ids, owed);
        }
    }

    fn remembered(&self) -> impl Iterator<Item = (&Slot, u32)> {
        let slots = self.ledger.table.slots().iter().zip(self.numbers.iter().copied());
        slots.filter(|(slot, _)| matches!(slot.kind(), Kind::Kept | Kind::Owed))
    }

    fn prune(&mut self) {
        let slots = self.ledger.table.slots();
        let expected = |slot: &Slot| slot.kind() != Kind::Deleting && slot.missed() == 0;
        // With nothing but deleted messages an empty listing is what was to
        // be expected, and then it is as good as any other.
        let proves = !self.void && (self.found.listed > 0 || !slots.iter().any(expected));
        let today = day_of(self.policy.now);
        for (at, slot) in slots.iter().enumerate() {
            if self.found.pruning.len() >= MOST_PRUNED {
                break;
            }
            let listed = self.numbers[at] != 0;
            if (listed && slot.missed() == 0) || (!listed && !proves) {
                continue;
            }
            if self.ledger.table.find(slot.hash).next() != Some(at) {
                continue; // one change speaks for all entries of a UID
            }
            let change = if listed {
                Some(Change::Missed { hash: slot.hash, since: 0, listings: 0 })
            } else {
                self.miss(slot, today)
            };
            self.found.pruning.extend(change);
        }
    }

    fn miss(&self, slot: &Slot, today: i32) -> Option<Change> {
        let hash = slot.hash;
        let deleted = |at: usize| self.ledger.table.slots()[at].kind() == Kind::Deleting;
        if self.ledger.table.find(hash).all(deleted) {
            return Some(Change::Forget { hash });
        }
        let listings = (slot.missed() + 1).min(MISSING_LISTINGS);
        let since = if slot.missed() == 0 { today } else { slot.since };
        if listings == MISSING_LISTINGS && today.saturating_sub(since) >= MISSING_DAYS {
            return Some(Change::Forget { hash });
        }
        (listings != slot.missed()).then_some(Change::Missed { hash, since, listings })
    }
}
