//! A ledger held against its description.

use std::collections::BTreeMap;

use super::*;

/// What a ledger is by its description alone: lists, searched from end to end.
#[derive(Default)]
struct Model {
    entries: BTreeMap<u8, Vec<Entry>>,
    missed: BTreeMap<u8, (i32, u8)>,
    /// Day and digest of what stands under a Message-ID.
    copies: BTreeMap<u64, Vec<(i32, u64)>>,
}

impl Model {
    fn put(&mut self, uid: u8, mut new: Entry) {
        self.missed.remove(&uid);
        let twins = self.entries.entry(uid).or_default();
        twins.sort_by_key(|old| old.size);
        let sizes = |old: &Entry| old.size == new.size || old.size == 0 || new.size == 0;
        let by_digest = |old: &Entry| new.digest != 0 && old.digest == new.digest;
        let position = |is: &dyn Fn(&Entry) -> bool| twins.iter().position(is);
        let at = position(&|old| by_digest(old) && old.size == new.size)
            .or_else(|| position(&|old| by_digest(old) && sizes(old)))
            .or_else(|| position(&|old| old.digest == 0 && old.size == new.size))
            .or_else(|| position(&|old| old.digest == 0 && sizes(old)));
        match at {
            Some(at) => {
                if new.size == 0 {
                    new.size = twins[at].size;
                }
                twins[at] = new;
            }
            None => twins.push(new),
        }
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Put(uid, entry) => self.put(*uid, entry.clone()),
            Step::Forget(uid) => {
                self.entries.remove(uid);
                self.missed.remove(uid);
            }
            Step::Missed(uid, since, listings) if self.entries.contains_key(uid) => {
                self.missed.remove(uid);
                if *listings > 0 {
                    self.missed.insert(*uid, (*since, *listings));
                }
            }
            Step::Missed(..) => {}
            Step::Copy(message_id, digest, day) => {
                let copies = self.copies.entry(*message_id).or_default();
                copies.sort_unstable();
                match copies.iter().position(|(_, old)| old == digest) {
                    Some(at) => drop(copies.remove(at)),
                    None if copies.len() == 8 => drop(copies.remove(0)),
                    None => {}
                }
                copies.push((*day, *digest));
            }
            Step::ForgetCopies(message_id) => drop(self.copies.remove(message_id)),
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, Entry),
    Forget(u8),
    Missed(u8, i32, u8),
    Copy(u64, u64, i32),
    ForgetCopies(u64),
}

impl Step {
    fn change(&self, ledger: &Ledger) -> Change {
        match self {
            Self::Put(uid, entry) => Change::Put { uid: Box::new([*uid]), entry: entry.clone() },
            Self::Forget(uid) => Change::Forget { hash: ledger.hash(&[*uid]) },
            Self::Missed(uid, since, listings) => {
                Change::Missed { hash: ledger.hash(&[*uid]), since: *since, listings: *listings }
            }
            Self::Copy(message_id, digest, day) => {
                Change::Copy { message_id: *message_id, digest: *digest, day: *day }
            }
            Self::ForgetCopies(message_id) => {
                let copy = Change::Copy { message_id: *message_id, digest: 1, day: 0 };
                Change::Forget { hash: ledger.hash_of(&copy) }
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let state = prop_oneof![
        3 => Just(State::Kept),
        2 => Just(State::Deleting),
        1 => Just(State::Uncertain),
        2 => (-2..3_i64).prop_map(|ahead| quarantined(keep().now + ahead)),
        2 => (-2..3_i64, prop::collection::btree_set(any::<u64>(), 1..4), any::<bool>())
            .prop_map(|(ahead, to, reached)| owed(keep().now + ahead, &Vec::from_iter(to), reached)),
    ];
    let entry = (state, TODAY - 3..TODAY + 1, 0..3_u64, 0..3_u64)
        .prop_map(|(state, day, size, digest)| Entry { state, day, size, message_id: size, digest });
    let step = prop_oneof![
        8 => (0..40_u8, entry).prop_map(|(uid, entry)| Step::Put(uid, entry)),
        1 => (0..40_u8).prop_map(Step::Forget),
        2 => (0..40_u8, TODAY - 20..TODAY + 1, 0..4_u8).prop_map(|(uid, since, n)| Step::Missed(uid, since, n)),
        4 => (1..4_u64, 1..12_u64, TODAY - 33..TODAY - 27).prop_map(|(id, digest, day)| Step::Copy(id, digest, day)),
        1 => (1..4_u64).prop_map(Step::ForgetCopies),
    ];
    prop::collection::vec(step, 0..80)
}

fn policies() -> impl Strategy<Value = SurveyPolicy> {
    let on =
        prop_oneof![Just(OnUidChange::Pause), Just(OnUidChange::Fetch), Just(OnUidChange::MatchMessageId),];
    (any::<bool>(), prop::option::of(0..5_u32), any::<bool>(), on).prop_map(
        |(leave, keep_for_days, delete_seen, on_uid_change)| SurveyPolicy {
            leave,
            keep_for_days,
            delete_seen,
            on_uid_change,
            ..keep()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn a_ledger_is_what_its_description_says(steps in steps()) {
        let (mut ledger, mut model) = (Ledger::new([9; 16]), Model::default());
        for step in &steps {
            ledger.apply(&step.change(&ledger));
            model.apply(step);
        }
        let described = |entries: Vec<Entry>| {
            let mut texts: Vec<String> = entries.iter().map(|entry| format!("{entry:?}")).collect();
            texts.sort();
            texts
        };
        for uid in 0..40_u8 {
            let hash = ledger.hash(&[uid]);
            let wanted = model.entries.get(&uid).cloned().unwrap_or_default();
            prop_assert_eq!(described(ledger.entries(hash).collect()), described(wanted));
            prop_assert_eq!(ledger.missed(hash), model.missed.get(&uid).copied());
        }
        let kept = model.entries.values().flatten().filter(|entry| entry.state == State::Kept).count();
        prop_assert_eq!(ledger.kept(), kept);
        let uids = model.entries.values().map(Vec::len).sum::<usize>();
        prop_assert_eq!(ledger.len(), uids + model.copies.values().map(Vec::len).sum::<usize>());
        let recipients = |entry: &Entry| if let State::Owed { to, .. } = &entry.state { to.len() } else { 0 };
        let recipients = model.entries.values().flatten().map(recipients).sum::<usize>();
        prop_assert_eq!(ledger.weight(), ledger.len() + recipients / 4);

        let mut copies: Vec<_> = ledger.iter().filter(|(_, entry)| entry.state == State::Copy)
            .map(|(_, copy)| (copy.message_id, copy.day, copy.digest)).collect();
        let mut wanted: Vec<_> = model.copies.iter()
            .flat_map(|(id, copies)| copies.iter().map(|(day, digest)| (*id, *day, *digest))).collect();
        copies.sort_unstable();
        wanted.sort_unstable();
        prop_assert_eq!(&copies, &wanted);
        let mut live: Vec<_> = ledger.copies(TODAY).collect();
        live.sort_unstable();
        wanted.retain(|(_, day, _)| *day >= TODAY - 30);
        let mut wanted: Vec<_> = wanted.into_iter().map(|(id, _, digest)| (id, digest)).collect();
        wanted.sort_unstable();
        prop_assert_eq!(live, wanted);
    }

    #[test]
    fn a_survey_finds_what_its_description_says(
        steps in steps(),
        listed in prop::collection::vec(0..60_u8, 0..60),
        void in prop::bool::weighted(0.2),
        policy in policies(),
    ) {
        let (mut ledger, mut model) = (Ledger::new([9; 16]), Model::default());
        for step in &steps {
            ledger.apply(&step.change(&ledger));
            model.apply(step);
        }
        model.entries.retain(|_, entries| !entries.is_empty());
        let mut survey = ledger.survey(policy);
        for (at, uid) in listed.iter().enumerate() {
            survey.see(u32::try_from(at + 1).unwrap(), &[*uid]);
        }
        if void {
            survey.void_line();
        }
        let found = survey.finish();

        let (mut fetch, mut delete, mut known, mut waiting) = (vec![], vec![], 0, 0);
        for (at, uid) in listed.iter().enumerate() {
            let number = u32::try_from(at + 1).unwrap();
            let times = listed.iter().map(|other| usize::from(other == uid)).sum::<usize>();
            let entries = model.entries.get(uid).map_or(&[][..], Vec::as_slice);
            let actions: Vec<Action> = entries.iter().map(|entry| policy.action(entry)).collect();
            let alike = actions.windows(2).all(|two| two[0] == two[1]);
            let retried = actions.first() == Some(&Action::Retry);
            let ambiguous = times > 1 || !alike || (retried && actions.len() > 1);
            match actions.first() {
                _ if ambiguous => fetch.push((number, true, None)),
                None => fetch.push((number, false, None)),
                Some(Action::Retry) => fetch.push((number, false, Some(entries[0].clone()))),
                Some(Action::Nothing) => known += 1,
                Some(Action::Wait) => waiting += 1,
                Some(Action::Delete) => {
                    known += 1;
                    delete.push(number);
                }
            }
        }
        let fetched: Vec<_> = found.unseen.iter()
            .map(|one| (one.number, one.ambiguous, one.prior.as_deref().cloned())).collect();
        prop_assert_eq!(fetched, fetch);
        prop_assert_eq!(deleted(&found), delete);
        prop_assert_eq!((found.known, found.waiting, found.listed), (known, waiting, listed.len() as u64));
        let no_quarantine =
            |one: &Deletion| !matches!(one.entry.state, State::Quarantined { .. } | State::Owed { .. });
        prop_assert!(found.delete.iter().all(no_quarantine));
        if policy.leave && policy.keep_for_days.is_none() {
            prop_assert!(found.delete.iter().all(|one| one.entry.state == State::Deleting));
        }

        let is_expected = |uid: &u8| !model.missed.contains_key(uid);
        let kept_entries = || model.entries.iter()
            .flat_map(|(uid, entries)| entries.iter().map(move |entry| (uid, entry)))
            .filter(|(_, entry)| entry.state == State::Kept);
        let expected = kept_entries().filter(|(uid, _)| is_expected(uid)).count();
        let there = kept_entries().filter(|(uid, _)| is_expected(uid) && listed.contains(uid)).count();
        let strange = listed.iter().filter(|uid| !model.entries.contains_key(uid)).count();
        let all_changed = expected >= 20 && there * 10 < expected && strange >= 20;
        prop_assert_eq!(found.all_changed, all_changed);

        let halted = all_changed && policy.on_uid_change == OnUidChange::Pause;
        let only_deleted = |uid: &u8| model.entries[uid].iter().all(|entry| entry.state == State::Deleting);
        let full_before = model.entries.iter().any(|(uid, entries)| {
            is_expected(uid) && entries.iter().any(|entry| entry.state != State::Deleting)
        });
        let proves = !(void || listed.is_empty() && full_before);
        let mut wanted = Vec::new();
        for uid in model.entries.keys().filter(|_| !halted) {
            let missed = model.missed.get(uid).copied();
            let (since, count) = missed.map_or((TODAY, 1), |(since, count)| (since, (count + 1).min(3)));
            if listed.contains(uid) {
                wanted.extend(missed.map(|_| Step::Missed(*uid, 0, 0)));
            } else if proves && (only_deleted(uid) || (count == 3 && TODAY - since >= 14)) {
                wanted.push(Step::Forget(*uid));
            } else if proves && missed != Some((since, count)) {
                wanted.push(Step::Missed(*uid, since, count));
            }
        }
        // Whatever the listing is like.
        let outdated = |copies: &[(i32, u64)]| copies.iter().all(|(day, _)| *day < TODAY - 30);
        let outdated = model.copies.iter().filter(|(_, copies)| outdated(copies));
        wanted.extend(outdated.map(|(message_id, _)| Step::ForgetCopies(*message_id)));
        let texts = |changes: Vec<Change>| {
            let mut texts: Vec<String> = changes.iter().map(|change| format!("{change:?}")).collect();
            texts.sort();
            texts
        };
        let wanted = wanted.iter().map(|step| step.change(&ledger)).collect();
        prop_assert_eq!(texts(found.pruning), texts(wanted));
    }
}
