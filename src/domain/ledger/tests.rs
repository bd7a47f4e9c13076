mod model;
mod unified;

use proptest::prelude::*;

use super::*;
use crate::domain::work::OnUidChange;

const DAY: i64 = 86_400;
const TODAY: i32 = 20_000;
const NONE: [u32; 0] = [];

fn keep() -> SurveyPolicy {
    SurveyPolicy {
        now: i64::from(TODAY) * DAY,
        leave: true,
        keep_for_days: None,
        delete_seen: false,
        on_uid_change: OnUidChange::Pause,
    }
}

fn entry(state: State, size: u64, digest: u64) -> Entry {
    Entry { state, day: TODAY, size, message_id: 0, digest }
}

fn quarantined(next_try: i64) -> State {
    State::Quarantined { attempts: 1, next_try, reason: "550 no".into() }
}

fn owed(next_try: i64, to: &[u64], reached: bool) -> State {
    State::Owed { attempts: 2, next_try, reason: "452 full".into(), to: to.into(), reached }
}

fn put(uid: &str, entry: Entry) -> Change {
    Change::Put { uid: uid.as_bytes().into(), entry }
}

fn kept(uid: &str) -> Change {
    put(uid, entry(State::Kept, 10, 1))
}

fn ledger(changes: &[Change]) -> Ledger {
    let mut ledger = Ledger::new([7; 16]);
    for change in changes {
        ledger.apply(change);
    }
    ledger
}

fn list<S: AsRef<str>>(ledger: &Ledger, policy: SurveyPolicy, uids: &[S]) -> Findings {
    let mut survey = ledger.survey(policy);
    for (at, uid) in uids.iter().enumerate() {
        survey.see(u32::try_from(at + 1).unwrap(), uid.as_ref().as_bytes());
    }
    survey.finish()
}

fn unseen(found: &Findings) -> Vec<u32> {
    found.unseen.iter().map(|candidate| candidate.number).collect()
}

fn deleted(found: &Findings) -> Vec<u32> {
    found.delete.iter().map(|deletion| deletion.number).collect()
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

/// Applies what a listing says of absences, as the engine does.
fn prune(ledger: &mut Ledger, policy: SurveyPolicy, uids: &[&str]) {
    for change in list(ledger, policy, uids).pruning {
        ledger.apply(&change);
    }
}

#[test]
fn what_is_kept_is_neither_fetched_nor_deleted() {
    let ledger = ledger(&[kept("a")]);
    let found = list(&ledger, keep(), &["a", "b"]);
    assert_eq!((unseen(&found), found.known, found.listed), (vec![2], 1, 2));
    assert!(found.delete.is_empty() && found.pruning.is_empty() && !found.all_changed);
}

#[test]
fn kept_mail_is_deleted_when_its_days_are_over() {
    let mut policy = SurveyPolicy { keep_for_days: Some(3), ..keep() };
    let ledger = ledger(&[kept("a"), put("q", entry(quarantined(i64::MAX), 1, 1))]);
    policy.now += 3 * DAY - 1;
    assert_eq!(deleted(&list(&ledger, policy, &["a", "q"])), NONE);
    policy.now += 1;
    let found = list(&ledger, policy, &["a", "q"]);
    assert_eq!((deleted(&found), found.waiting), (vec![1], 1), "never what is quarantined");
    let change = found.delete[0].change().expect("it must be marked before DELE");
    let Change::Put { entry, .. } = change else { panic!("{change:?}") };
    assert_eq!((entry.state, entry.size, entry.day), (State::Deleting, 10, TODAY));
}

#[test]
fn with_leave_turned_off_old_mail_stays_unless_delete_seen() {
    let ledger = ledger(&[kept("a")]);
    let off = SurveyPolicy { leave: false, keep_for_days: Some(0), ..keep() };
    assert_eq!(deleted(&list(&ledger, off, &["a"])), NONE);
    let too = SurveyPolicy { delete_seen: true, ..off };
    assert_eq!(deleted(&list(&ledger, too, &["a"])), [1]);
}

// quirks: "DELE answered with garbage on some messages; QUIT answered `-ERR` or dropped"
#[test]
fn what_was_to_be_deleted_and_is_still_listed_is_deleted_again_and_not_fetched() {
    let ledger = ledger(&[put("a", entry(State::Deleting, 10, 1))]);
    for leave in [true, false] {
        let found = list(&ledger, SurveyPolicy { leave, ..keep() }, &["a"]);
        assert_eq!((unseen(&found), deleted(&found)), (vec![], vec![1]));
        assert_eq!(found.delete[0].change(), None, "nothing new to be written");
    }
}

// quirks: "A temporarily refused message in the middle of the mailbox is retried later"
#[test]
fn quarantined_mail_waits_and_then_comes_back_with_what_is_known_of_it() {
    let now = keep().now;
    let ledger = ledger(&[
        put("later", entry(quarantined(now + 1), 1, 1)),
        put("due", entry(quarantined(now), 1, 1)),
        put("lost", entry(State::Uncertain, 1, 1)),
    ]);
    let found = list(&ledger, keep(), &["later", "due", "lost", "new"]);
    assert_eq!((unseen(&found), found.waiting, found.owed), (vec![2, 3, 4], 1, 0));
    let prior = |at: usize| found.unseen[at].prior.as_ref().map(|prior| prior.state.clone());
    assert_eq!((prior(0), prior(1), prior(2)), (Some(quarantined(now)), Some(State::Uncertain), None));
}

// quirks: "Courier replaces a message with raw UTF-8 headers by a notice, differently at each RETR"
#[test]
fn a_message_that_differs_at_each_retrieval_leaves_no_earlier_try_behind() {
    let mut ledger = ledger(&[put("a", entry(quarantined(0), 10, 1))]);
    let found = list(&ledger, keep(), &["a"]);
    let mut changes = Vec::new();
    found.unseen[0].settle(entry(State::Kept, 12, 2), &mut changes);
    for change in &changes {
        ledger.apply(change);
    }
    assert_eq!((ledger.len(), ledger.kept()), (1, 1));
    assert_eq!(unseen(&list(&ledger, keep(), &["a"])), NONE);
}

#[test]
fn a_deleted_uid_is_forgotten_at_the_first_listing_without_it() {
    let mut ledger = ledger(&[put("gone", entry(State::Deleting, 1, 1)), kept("a")]);
    prune(&mut ledger, keep(), &["a"]);
    assert_eq!(ledger.len(), 1);
}

#[test]
fn an_empty_maildrop_is_as_expected_when_all_was_deleted() {
    let mut ledger = ledger(&[put("gone", entry(State::Deleting, 1, 1))]);
    prune(&mut ledger, keep(), &[]);
    assert!(ledger.is_empty());
}

#[test]
fn a_kept_uid_is_forgotten_after_14_days_and_three_listings_without_it() {
    let mut ledger = ledger(&[kept("a"), kept("b"), put("q", entry(quarantined(0), 1, 1))]);
    let at = |day: i64| SurveyPolicy { now: keep().now + day * DAY, ..keep() };
    let hash = ledger.hash(b"a");
    prune(&mut ledger, at(0), &["b"]);
    assert_eq!(ledger.missed(hash), Some((TODAY, 1)));
    prune(&mut ledger, at(30), &["b"]);
    assert_eq!(ledger.missed(hash), Some((TODAY, 2)), "14 days, but two listings");
    prune(&mut ledger, at(30), &["b"]);
    assert_eq!(ledger.len(), 1, "the quarantined one went too");

    let mut ledger = self::ledger(&[kept("a"), kept("b")]);
    for _ in 0..3 {
        prune(&mut ledger, at(0), &["b"]);
    }
    assert!(list(&ledger, at(0), &["b"]).pruning.is_empty(), "counted to three, then nothing is written");
    assert!(list(&ledger, at(13), &["b"]).pruning.is_empty());
    prune(&mut ledger, at(14), &["b"]);
    assert_eq!(ledger.len(), 1);
}

#[test]
fn a_uid_that_reappears_starts_anew() {
    let mut ledger = ledger(&[kept("a"), kept("b")]);
    let hash = ledger.hash(b"a");
    prune(&mut ledger, keep(), &["b"]);
    assert!(ledger.missed(hash).is_some());
    prune(&mut ledger, keep(), &["a", "b"]);
    assert_eq!(ledger.missed(hash), None);
    assert!(list(&ledger, keep(), &["a", "b"]).pruning.is_empty());
}

// quirks: "Message number above the STAT count, message number 0, numbers out of order"
#[test]
fn a_listing_with_a_void_line_or_an_empty_one_after_a_full_one_prunes_nothing() {
    let ledger = ledger(&[kept("a"), put("gone", entry(State::Deleting, 1, 1))]);
    assert!(list::<&str>(&ledger, keep(), &[]).pruning.is_empty());
    for number_zero in [true, false] {
        let mut survey = ledger.survey(keep());
        survey.see(2, b"x");
        survey.see(1, b"y");
        if number_zero {
            survey.see(0, b"z");
        } else {
            survey.void_line();
        }
        let found = survey.finish();
        assert!(found.pruning.is_empty());
        assert_eq!(unseen(&found), [1, 2], "by number, whatever the order");
    }
}

// quirks: "mass UID change after a server migration (cap a surge of "new" messages, ...)"
#[test]
fn a_mass_change_is_noticed_and_stays_noticed_while_nothing_is_done() {
    let mut ledger = Ledger::new([7; 16]);
    for uid in names("old", 100) {
        ledger.apply(&kept(&uid));
    }
    for _ in 0..5 {
        let found = list(&ledger, keep(), &names("new", 100));
        assert!(found.all_changed && found.pruning.is_empty());
    }
    let few: Vec<String> = names("old", 9).into_iter().chain(names("new", 91)).collect();
    assert!(list(&ledger, keep(), &few).all_changed);
    let more: Vec<String> = names("old", 10).into_iter().chain(names("new", 90)).collect();
    assert!(!list(&ledger, keep(), &more).all_changed);
}

#[test]
fn a_tidied_maildrop_is_no_mass_change() {
    let mut ledger = Ledger::new([7; 16]);
    for uid in names("old", 1000) {
        ledger.apply(&kept(&uid));
    }
    assert!(!list::<&str>(&ledger, keep(), &[]).all_changed);
    assert!(!list(&ledger, keep(), &names("new", 19)).all_changed);
    let few = names("old", 19);
    let mut small = Ledger::new([7; 16]);
    for uid in &few {
        small.apply(&kept(uid));
    }
    assert!(!list(&small, keep(), &names("new", 500)).all_changed);
}

#[test]
fn after_a_mass_change_was_fetched_the_new_uids_are_what_is_expected() {
    let fetch = SurveyPolicy { on_uid_change: OnUidChange::Fetch, ..keep() };
    let mut ledger = Ledger::new([7; 16]);
    for uid in names("old", 100) {
        ledger.apply(&kept(&uid));
    }
    let found = list(&ledger, fetch, &names("new", 100));
    assert!(found.all_changed);
    assert_eq!(found.pruning.len(), 100);
    for change in &found.pruning {
        ledger.apply(change);
    }
    for uid in names("new", 50) {
        ledger.apply(&kept(&uid));
    }
    let found = list(&ledger, keep(), &names("new", 100));
    assert!(!found.all_changed, "a person who goes back to Pause in between is not stopped again");
    assert_eq!(found.unseen.len(), 50);
}

// quirks: "mass UID change after a server migration (... offer a Message-ID/hash fallback)"
#[test]
fn message_ids_of_vanished_mail_are_known_until_the_last_one_is_matched() {
    let matching = SurveyPolicy { on_uid_change: OnUidChange::MatchMessageId, ..keep() };
    let mut ledger = Ledger::new([7; 16]);
    let id = |number: usize| ledger_id(number);
    let known = |uid: &str, number| {
        put(uid, Entry { message_id: id(number), ..entry(State::Kept, 10, number as u64 + 1) })
    };
    for (number, uid) in names("old", 100).iter().enumerate() {
        ledger.apply(&known(uid, number));
    }
    let found = list(&ledger, matching, &names("new", 100));
    assert_eq!((found.all_changed, found.vanished_ids.len()), (true, 100));
    for change in &found.pruning {
        ledger.apply(change);
    }
    // The session broke after 60.
    for (number, uid) in names("new", 60).iter().enumerate() {
        ledger.apply(&known(uid, number));
    }
    let found = list(&ledger, matching, &names("new", 100));
    assert_eq!(found.unseen.len(), 40);
    assert!((60..100).all(|number| found.vanished_ids.binary_search(&id(number)).is_ok()));
    assert!(list(&ledger, keep(), &names("new", 100)).vanished_ids.is_empty());
}

fn ledger_id(number: usize) -> u64 {
    Ledger::new([7; 16]).message_id(format!("<{number}@example.com>").as_bytes())
}

#[test]
fn a_uid_that_was_given_to_another_message_is_looked_at_before_it_is_deleted() {
    let ledger = ledger(&[
        put("1", entry(State::Deleting, 10, 1)),
        put("2", entry(State::Deleting, 20, 1)),
        put("3", entry(State::Deleting, 0, 1)),
    ]);
    let mut found = list(&ledger, keep(), &["1", "2", "3"]);
    found.check_against_list(|number| [0, 11, 20, 30][number as usize], |_| true);
    assert_eq!((unseen(&found), deleted(&found), found.known), (vec![1], vec![2, 3], 2));
    assert!(found.unseen[0].ambiguous);
    // Its octets tell: the old one, only its size is said differently ...
    let mut twins = ledger.twins(found.unseen[0].hash, &keep(), false);
    assert_eq!(twins.by_size(&[(1, 11)]), [(1, Told::Fetch)]);
    assert_eq!(twins.by_digest(11, 2), Twin::New { digest: 2, prior: None });

    // ... and also where the sizes are equal, once QUIT was said.
    let mut found = list(&ledger, keep(), &["1", "2", "3"]);
    found.check_against_list(|number| [0, 10, 20, 30][number as usize], |_| false);
    assert_eq!((unseen(&found), deleted(&found)), (vec![1, 2, 3], vec![]));
    let mut twins = ledger.twins(found.unseen[0].hash, &keep(), false);
    assert_eq!(twins.by_size(&[(1, 10)]), [(1, Told::Fetch)]);
    let old = Twin::Known(entry(State::Deleting, 10, 1), Action::Delete);
    assert_eq!(twins.by_digest(10, 1), old);
    // What nothing is known of but its UID is deleted by that.
    let ledger = self::ledger(&[put("1", entry(State::Deleting, 10, 0))]);
    let mut found = list(&ledger, keep(), &["1"]);
    found.check_against_list(|_| 10, |_| false);
    assert_eq!(deleted(&found), vec![1]);
}

// quirks: "Equal UIDs for different messages in one listing (solid-pop3d really does that): neither is lost"
#[test]
fn messages_of_one_uid_are_each_taken_once() {
    let mut ledger = ledger(&[]);
    let listed = [(1, 100), (2, 200), (3, 200), (4, 200)];
    let digests = [11, 22, 33, 33];
    for poll in 0..3 {
        let found = list(&ledger, keep(), &["same"; 4]);
        assert_eq!(unseen(&found), [1, 2, 3, 4]);
        assert!(found.unseen.iter().all(|candidate| candidate.ambiguous));
        let mut twins = ledger.twins(found.unseen[0].hash, &keep(), false);
        let told = twins.by_size(&listed);
        if poll > 0 {
            assert!(told.iter().all(|(_, told)| *told == Told::Known), "{told:?}");
            continue;
        }
        let mut new = 0;
        for ((number, told), digest) in told.into_iter().zip(digests) {
            assert_eq!(told, Told::Fetch);
            let size = listed[number as usize - 1].1;
            let digest = match twins.by_digest(size, digest) {
                Twin::New { digest, prior: None } => {
                    new += 1;
                    digest
                }
                Twin::Copy { digest } => digest,
                other => panic!("{other:?}"),
            };
            ledger.apply(&put("same", entry(State::Kept, size, digest)));
        }
        assert_eq!((new, ledger.len()), (3, 4), "the last one is a copy of the third");
    }
    // One more arrives under the same UID, of a size that is known.
    let more = [(1, 100), (2, 200), (3, 200), (4, 200), (5, 200)];
    let mut twins = ledger.twins(ledger.hash(b"same"), &keep(), false);
    let told: Vec<bool> = twins.by_size(&more).iter().map(|(_, told)| *told == Told::Fetch).collect();
    assert_eq!(told, [false, true, true, true, true]);
    let fetched = [33, 44, 22, 33].map(|digest| twins.by_digest(200, digest));
    let new = fetched.iter().filter(|twin| matches!(twin, Twin::New { .. })).count();
    assert_eq!(new, 1, "{fetched:?}");
    assert_eq!(fetched[1], Twin::New { digest: 44, prior: None });
}

#[test]
fn twins_of_different_fate_are_fetched_to_be_told_apart() {
    let ledger = ledger(&[
        put("same", entry(State::Kept, 10, 1)),
        put("same", entry(State::Deleting, 10, 2)),
        put("same", entry(State::Deleting, 30, 3)),
        put("same", entry(quarantined(i64::MAX), 40, 4)),
    ]);
    let mut twins = ledger.twins(ledger.hash(b"same"), &keep(), true);
    let told = twins.by_size(&[(1, 10), (2, 30), (3, 10), (4, 40)]);
    let delete = Told::Delete(entry(State::Deleting, 30, 3));
    assert_eq!(told, [(1, Told::Fetch), (2, delete), (3, Told::Fetch), (4, Told::Waiting)]);
    let twin = twins.by_digest(10, 2);
    assert_eq!(twin, Twin::Known(entry(State::Deleting, 10, 2), Action::Delete));
    assert_eq!(twins.by_digest(10, 1), Twin::Known(entry(State::Kept, 10, 1), Action::Nothing));
}

#[test]
fn twins_are_recognised_where_this_listing_has_no_sizes() {
    let ledger = ledger(&[
        put("same", entry(State::Kept, 10, 1)),
        put("same", entry(State::Kept, 20, 2)),
        put("same", entry(State::Uncertain, 30, 0)),
    ]);
    let mut twins = ledger.twins(ledger.hash(b"same"), &keep(), false);
    let told = twins.by_size(&[(1, 0), (2, 0), (3, 0)]);
    assert!(told.iter().all(|(_, told)| *told == Told::Fetch));
    assert_eq!(twins.by_digest(0, 2), Twin::Known(entry(State::Kept, 20, 2), Action::Nothing));
    let prior = Some(entry(State::Uncertain, 30, 0));
    assert_eq!(twins.by_digest(0, 3), Twin::New { digest: 3, prior });
    assert_eq!(twins.by_digest(0, 1), Twin::Known(entry(State::Kept, 10, 1), Action::Nothing));
}

#[test]
fn of_two_messages_of_which_one_was_taken_nobody_knows_which_none_is_lost() {
    let ledger = ledger(&[put("same", entry(State::Kept, 0, 0))]);
    let mut twins = ledger.twins(ledger.hash(b"same"), &keep(), false);
    assert_eq!(twins.by_size(&[(1, 5), (2, 5)]), [(1, Told::Fetch), (2, Told::Fetch)]);
    for digest in [1, 2] {
        assert_eq!(twins.by_digest(5, digest), Twin::New { digest, prior: None });
    }
}

#[test]
fn a_repeated_uid_takes_back_what_was_thought_at_its_first_line() {
    let ledger = ledger(&[
        kept("k"),
        put("d", entry(State::Deleting, 1, 1)),
        put("w", entry(quarantined(i64::MAX), 1, 1)),
        put("u", entry(State::Uncertain, 1, 1)),
    ]);
    let found = list(&ledger, keep(), &["k", "d", "w", "u", "u", "w", "d", "k", "k"]);
    assert_eq!(unseen(&found), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert!(found.unseen.iter().all(|candidate| candidate.ambiguous && candidate.prior.is_none()));
    assert_eq!((found.known, found.waiting, deleted(&found)), (0, 0, vec![]));
}

#[test]
fn a_surge_is_named_up_to_a_bound_and_counted_beyond() {
    let ledger = Ledger::new([7; 16]);
    let mut survey = ledger.survey(keep());
    let uid = vec![b'x'; 60_000];
    for number in 1..=1000_u32 {
        let mut uid = uid.clone();
        uid.extend_from_slice(number.to_string().as_bytes());
        survey.see(number, &uid);
    }
    let found = survey.finish();
    assert_eq!((found.listed, found.unseen_total), (1000, 1000));
    assert!(found.unseen.iter().map(|candidate| candidate.uid.len()).sum::<usize>() <= 8 << 20);
    assert_eq!(found.unseen[0].number, 1);
}

#[test]
fn hashes_depend_on_the_salt_and_on_what_they_are_of() {
    let (one, two) = (Ledger::new([1; 16]), Ledger::new([2; 16]));
    assert_ne!(one.hash(b"a"), two.hash(b"a"));
    let mut digest = one.digest();
    digest.update(b"a");
    assert_ne!(digest.finish(), one.message_id(b"a"));
    let mut parts = one.digest();
    let mut whole = one.digest();
    for part in ["ab", "", "c", "defghijklmnop"] {
        parts.update(part.as_bytes());
    }
    whole.update(b"abcdefghijklmnop");
    assert_eq!(parts.finish(), whole.finish());
}

#[test]
fn days_begin_at_midnight_utc() {
    assert_eq!((day_of(0), day_of(86_399), day_of(86_400), day_of(-1)), (0, 0, 1, -1));
    assert_eq!((day_of(i64::MAX), day_of(i64::MIN)), (i32::MAX, i32::MIN));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// However often one UID is listed and whatever its messages are, each is
    /// new once, and after that none is fetched.
    #[test]
    fn twins_are_new_once_and_fetched_no_more(messages in prop::collection::vec((1..4_u64, 1..4_u64), 2..10)) {
        let mut ledger = Ledger::new([9; 16]);
        let listed: Vec<(u32, u64)> = (1..).zip(messages.iter().map(|(size, _)| *size)).collect();
        let hash = ledger.hash(b"same");
        let mut twins = ledger.twins(hash, &keep(), false);
        let mut new = 0;
        for (number, told) in twins.by_size(&listed) {
            prop_assert_eq!(told, Told::Fetch);
            let (size, content) = messages[number as usize - 1];
            let digest = match twins.by_digest(size, content * 1000) {
                Twin::New { digest, .. } => {
                    new += 1;
                    digest
                }
                Twin::Copy { digest } => digest,
                Twin::Known(..) => unreachable!(),
            };
            ledger.apply(&put("same", entry(State::Kept, size, digest)));
        }
        let mut different = messages.clone();
        different.sort_unstable();
        different.dedup();
        prop_assert_eq!(new, different.len());
        prop_assert_eq!(ledger.len(), messages.len());
        let told = ledger.twins(hash, &keep(), false).by_size(&listed);
        prop_assert!(told.iter().all(|(_, told)| *told == Told::Known));
    }
}
