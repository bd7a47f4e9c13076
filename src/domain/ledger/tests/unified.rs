//! What only unified accounts have: messages that are owed to some of their
//! recipients, and copies.

use super::*;

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn copy(message_id: u64, digest: u64, day: i32) -> Change {
    Change::Copy { message_id, digest, day }
}

fn copies(ledger: &Ledger, today: i32) -> Vec<(u64, u64)> {
    let mut copies: Vec<_> = ledger.copies(today).collect();
    copies.sort_unstable();
    copies
}

#[test]
fn a_recipient_is_known_by_its_address_whatever_the_case_of_the_domain() {
    let ledger = Ledger::new([7; 16]);
    let of = |text: &str| ledger.recipient(&mailbox(text));
    assert_eq!(of("alice@example.com"), of("alice@EXAMPLE.Com"));
    assert_eq!(of("alice@b\u{fc}ro.example"), of("alice@B\u{dc}RO.example"));
    let others = ["Alice@example.com", "alice@example.org", "alic@eexample.com", "\"alice\"@example.com"];
    let mut hashes: Vec<u64> = others.iter().map(|other| of(other)).collect();
    hashes.extend([of("alice@example.com"), ledger.message_id(b"alice@example.com")]);
    hashes.extend([ledger.hash(b"alice@example.com"), Ledger::new([8; 16]).recipient(&mailbox(others[1]))]);
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), others.len() + 4);
}

#[test]
fn what_is_owed_waits_and_then_comes_back_with_its_recipients() {
    let now = keep().now;
    let ledger = ledger(&[
        put("later", entry(owed(now + 1, &[1], true), 1, 1)),
        put("due", entry(owed(now, &[9, 3, 3, 5], true), 1, 1)),
    ]);
    let found = list(&ledger, keep(), &["later", "due"]);
    assert_eq!((unseen(&found), found.waiting, found.owed, found.known), (vec![2], 1, 1, 0));
    let prior = found.unseen[0].prior.clone().expect("what is known of it");
    assert_eq!(prior.state, owed(now, &[3, 5, 9], true), "in order, each once");
    assert!(!found.unseen[0].ambiguous);
}

#[test]
fn what_is_owed_is_never_deleted_and_not_forgotten_before_a_kept_one() {
    let mut ledger = ledger(&[kept("a"), kept("b"), put("o", entry(owed(i64::MAX, &[1], false), 1, 1))]);
    let policy = SurveyPolicy { keep_for_days: Some(0), ..keep() };
    assert_eq!(deleted(&list(&ledger, policy, &["a", "b", "o"])), [1, 2]);
    let policy = SurveyPolicy { leave: false, delete_seen: true, ..keep() };
    assert_eq!(deleted(&list(&ledger, policy, &["a", "b", "o"])), [1, 2]);
    assert!(list::<&str>(&ledger, keep(), &[]).pruning.is_empty(), "an empty listing after a full one");

    let at = |day: i64| SurveyPolicy { now: keep().now + day * DAY, ..keep() };
    for day in [0, 1, 13] {
        prune(&mut ledger, at(day), &["b"]);
        assert_eq!(ledger.len(), 3, "day {day}");
    }
    prune(&mut ledger, at(14), &["b"]);
    assert_eq!((ledger.len(), ledger.weight()), (1, 1));
}

#[test]
fn a_mass_change_is_seen_by_what_is_owed_as_by_what_is_kept() {
    let mut ledger = Ledger::new([7; 16]);
    for (number, uid) in names("old", 100).iter().enumerate() {
        let state = owed(0, &[1], true);
        ledger.apply(&put(uid, Entry { message_id: ledger_id(number), ..entry(state, 10, 1) }));
    }
    assert_eq!(ledger.kept(), 0);
    let found = list(&ledger, keep(), &names("new", 100));
    assert_eq!((found.all_changed, found.remembered, found.vanished_owed.len()), (true, 100, 0));
    let matching = SurveyPolicy { on_uid_change: OnUidChange::MatchMessageId, ..keep() };
    let found = list(&ledger, matching, &names("new", 100));
    assert!(found.all_changed);
    assert!(found.vanished_ids.is_empty(), "a message that is owed to somebody is not to be passed over");
    let mut ids: Vec<u64> = found.vanished_owed.iter().map(|(_, entry)| entry.message_id).collect();
    ids.sort_unstable();
    let mut all: Vec<u64> = (0..100).map(ledger_id).collect();
    all.sort_unstable();
    assert_eq!(ids, all, "it is owed to these under whatever UID it has now");
}

#[test]
fn who_is_owed_less_takes_the_place_of_what_was_owed() {
    let now = keep().now;
    let mut ledger = ledger(&[put("a", entry(owed(now, &[1, 2, 3, 4, 5], false), 10, 1))]);
    assert_eq!(ledger.weight(), 2);
    let candidate = list(&ledger, keep(), &["a"]).unseen.remove(0);
    let mut changes = Vec::new();
    candidate.settle(entry(owed(now + 900, &[2], true), 10, 1), &mut changes);
    assert_eq!(changes.len(), 1, "a power loss must not fall between forgetting and remembering");
    ledger.apply(&changes[0]);
    let found: Vec<Entry> = ledger.entries(candidate.hash).collect();
    assert_eq!((&found[..], ledger.weight()), (&[entry(owed(now + 900, &[2], true), 10, 1)][..], 1));
    // And where other octets came than before nothing of it stays.
    changes.clear();
    candidate.settle(entry(State::Kept, 12, 2), &mut changes);
    for change in &changes {
        ledger.apply(change);
    }
    assert_eq!((ledger.len(), ledger.kept(), ledger.weight()), (1, 1, 1));
}

#[test]
fn a_uid_that_was_given_to_another_message_is_looked_at_before_it_is_withheld_from_others() {
    let owed = |digest| entry(owed(0, &[1], true), 10, digest);
    let ledger = ledger(&[put("1", owed(1)), put("2", owed(2)), put("3", owed(3))]);
    let mut found = list(&ledger, keep(), &["1", "2", "3"]);
    found.check_against_list(|number| [0, 11, 10, 0][number as usize], |_| false);
    let doubtful = |at: usize| (found.unseen[at].ambiguous, found.unseen[at].prior.is_none());
    assert_eq!([0, 1, 2].map(doubtful), [(true, true), (false, false), (false, false)]);
    // It is another one: for all of its recipients.
    let twins = || ledger.twins(found.unseen[0].hash, &keep(), false);
    assert_eq!(twins().by_size(&[(1, 11)]), [(1, Told::Fetch)]);
    assert_eq!(twins().by_digest(11, 7), Twin::New { digest: 7, prior: None });
    // It is the same one, and LIST tells its size differently.
    assert_eq!(twins().by_digest(11, 1), Twin::New { digest: 1, prior: Some(owed(1)) });
}

#[test]
fn twins_that_are_owed_are_told_apart() {
    let (due, later) = (owed(0, &[1], true), owed(i64::MAX, &[2], true));
    let ledger = ledger(&[
        put("same", entry(due.clone(), 10, 1)),
        put("same", entry(State::Kept, 10, 2)),
        put("same", entry(later, 20, 3)),
    ]);
    let mut twins = ledger.twins(ledger.hash(b"same"), &keep(), false);
    let told = twins.by_size(&[(1, 10), (2, 20), (3, 10)]);
    assert_eq!(told, [(1, Told::Fetch), (2, Told::Waiting), (3, Told::Fetch)]);
    assert_eq!(twins.by_digest(10, 2), Twin::Known(entry(State::Kept, 10, 2), Action::Nothing));
    assert_eq!(twins.by_digest(10, 1), Twin::New { digest: 1, prior: Some(entry(due, 10, 1)) });
}

#[test]
fn nobody_knows_which_of_two_messages_a_person_meant_to_be_owed_so_both_go_to_all() {
    let ledger = ledger(&[put("same", entry(owed(0, &[1], true), 0, 0))]);
    let mut twins = ledger.twins(ledger.hash(b"same"), &keep(), false);
    for digest in [1, 2] {
        assert_eq!(twins.by_digest(5, digest), Twin::New { digest, prior: None });
    }
}

#[test]
fn a_copy_is_known_for_thirty_days_and_then_forgotten_with_the_last_of_its_message_id() {
    let mut ledger =
        ledger(&[copy(1, 11, TODAY), copy(1, 12, TODAY + 10), copy(2, 21, TODAY + 1), copy(3, 31, TODAY)]);
    assert_eq!(copies(&ledger, TODAY + 30), [(1, 11), (1, 12), (2, 21), (3, 31)]);
    assert_eq!(ledger.outdated_copies(TODAY + 30).count(), 0);
    assert_eq!(copies(&ledger, TODAY + 31), [(1, 12), (2, 21)]);
    // Seen again: its days begin anew.
    ledger.apply(&copy(3, 31, TODAY + 20));
    assert_eq!(copies(&ledger, TODAY + 31), [(1, 12), (2, 21), (3, 31)]);
    let at = |day: i64| SurveyPolicy { now: keep().now + day * DAY, ..keep() };
    prune(&mut ledger, at(32), &[]);
    assert_eq!((ledger.len(), ledger.copies_len()), (3, 3), "1 has a younger one, 2 is over");
    prune(&mut ledger, at(51), &[]);
    assert!(ledger.is_empty());
    // A clock that was ahead does not make copies old.
    ledger.apply(&copy(1, 11, i32::MAX));
    assert_eq!(copies(&ledger, TODAY), [(1, 11)]);
}

#[test]
fn old_copies_go_whatever_the_listing_is_like() {
    let mut ledger = ledger(&[copy(1, 11, TODAY - 31)]);
    for uid in names("old", 30) {
        ledger.apply(&kept(&uid));
    }
    let forget = [Change::Forget { hash: ledger.hash_of(&copy(1, 11, 0)) }];
    let mut survey = ledger.survey(keep());
    survey.see(1, b"x");
    survey.void_line();
    assert_eq!(survey.finish().pruning, forget, "a void line");
    assert_eq!(list::<&str>(&ledger, keep(), &[]).pruning, forget, "an empty listing");
    let found = list(&ledger, keep(), &names("new", 30));
    assert!(found.all_changed);
    assert_eq!(found.pruning, forget, "a mass change");
    assert_eq!(ledger.outdated_copies(TODAY).collect::<Vec<_>>(), forget, "no listing at all");
}

#[test]
fn of_more_contents_under_one_message_id_than_are_kept_the_oldest_goes() {
    let mut ledger = Ledger::new([7; 16]);
    for number in 0..8 {
        ledger.apply(&copy(1, 100 + number, TODAY + i32::from(number == 0)));
    }
    ledger.apply(&copy(2, 1, TODAY - 9));
    assert_eq!(ledger.copies_len(), 9);
    ledger.apply(&copy(1, 200, TODAY));
    let digests: Vec<u64> = copies(&ledger, TODAY).into_iter().map(|(_, digest)| digest).collect();
    assert_eq!(digests, [100, 102, 103, 104, 105, 106, 107, 200, 1]);
    ledger.apply(&copy(1, 100, TODAY));
    assert_eq!(ledger.copies_len(), 9, "known ones push nothing out");
}

#[test]
fn copies_without_an_id_or_a_digest_are_not_remembered() {
    let ledger = ledger(&[copy(0, 1, TODAY), copy(1, 0, TODAY)]);
    assert!(ledger.is_empty());
}

#[test]
fn copies_count_towards_the_size_alone() {
    let mut ledger = ledger(&[put("gone", entry(State::Deleting, 1, 1))]);
    for number in 1..=500 {
        ledger.apply(&copy(number, number, TODAY));
    }
    assert_eq!((ledger.len(), ledger.kept(), ledger.weight(), ledger.copies_len()), (501, 0, 501, 500));
    let hashes: Vec<u64> =
        ledger.iter().filter(|(_, entry)| entry.state == State::Copy).map(|(h, _)| h).collect();
    assert_eq!(hashes.len(), 500);
    // Nothing that no listing shows: an empty maildrop is as expected, and
    // what was deleted is forgotten.
    let found = list::<&str>(&ledger, keep(), &[]);
    assert_eq!(found.pruning, [Change::Forget { hash: ledger.hash(b"gone") }]);
    let matching = SurveyPolicy { on_uid_change: OnUidChange::MatchMessageId, ..keep() };
    let found = list(&ledger, matching, &names("new", 100));
    assert!(!found.all_changed && found.vanished_ids.is_empty());
    // Nor can a listing be made to speak of them.
    ledger.apply(&Change::Missed { hash: hashes[0], since: TODAY, listings: 3 });
    assert_eq!((ledger.missed(hashes[0]), ledger.entries(hashes[0]).count()), (None, 0));
    ledger.apply(&Change::Forget { hash: hashes[0] });
    assert_eq!(ledger.copies_len(), 499);
}

#[test]
fn a_copy_that_is_put_is_a_copy() {
    let mut ledger = Ledger::new([7; 16]);
    let there = Entry { state: State::Copy, day: TODAY, size: 0, message_id: 5, digest: 6 };
    ledger.apply(&put("any", there.clone()));
    assert_eq!(ledger.entries(ledger.hash(b"any")).count(), 0);
    assert_eq!(copies(&ledger, TODAY), [(5, 6)]);
    assert_eq!(ledger.iter().map(|(_, entry)| entry).collect::<Vec<_>>(), [there]);
}
