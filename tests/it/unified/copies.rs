//! One message stored once for each recipient, and messages that only look
//! like that.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;
use crate::support::pop3::Pop3;
use crate::support::smtp::Smtp;

const TO: &str = "To: al@local.test, bo@local.test\r\n";
const SIZES: [usize; 2] = [500, 300_000];

/// The copy that a provider made for one recipient.
fn copy(mark: &str, of: usize, octets: usize) -> Vec<u8> {
    let mut text = format!(
        "Return-Path: <author@sender.test>\r\nX-Original-To: user{of}@provider.test\r\n\
         Delivered-To: user{of}@provider.test\r\n\
         Received: from a by b with ESMTP id {of}; Mon, 2 Nov 2026 10:00:0{of} +0000\r\n"
    )
    .into_bytes();
    text.extend(addressed(mark, TO, octets));
    text
}

/// Another message with the same Message-ID.
fn other(mark: &str, octets: usize) -> Vec<u8> {
    let mut text = copy(mark, 1, octets);
    text.extend_from_slice(b"A footer that a list has added.\r\n");
    text
}

fn three(octets: usize) -> FakePop3 {
    let mut pop = Pop3::new();
    for of in 1..4 {
        pop = pop.mail(&format!("u{of}"), &copy("m-1", of, octets));
    }
    pop.start()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_one_maildrop_are_delivered_once() {
    for octets in SIZES {
        let from = three(octets);
        let to = Smtp::new().start();
        let bench = simple(&from, &to, Special::Addressees);
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, report.counters.duplicates), (1, 2), "{octets}");
        assert_eq!(got(&to, "m-1"), [rcpt(&["al@local.test", "bo@local.test"], NEVER)]);
        assert!(from.uids().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_known_in_later_polls_whatever_the_listing_says() {
    for octets in SIZES {
        let from = Pop3::new().mail("u1", &copy("m-1", 1, octets)).start();
        let to = Smtp::new().start();
        let bench = simple(&from, &to, Special::Addressees);
        bench.poll_well().await;
        bench.poll_well().await;
        from.put("u2", &copy("m-1", 2, octets));
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, report.counters.duplicates), (0, 1), "{octets}");
        assert_eq!((to.accepted(), from.retrieved().len()), (1, 2));
        assert!(from.uids().is_empty());
    }
}

/// The poll that forgets what is too old may deliver a copy of it, which
/// counts for the next thirty days.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_comes_when_its_copies_are_too_old_is_remembered_anew() {
    for octets in SIZES {
        let from = Pop3::new().mail("u1", &copy("m-1", 1, octets)).start();
        let to = Smtp::new().start();
        let bench = simple(&from, &to, Special::Addressees);
        bench.poll_well().await;
        bench.age(31);
        for (uid, of, delivered, duplicates) in [("u2", 2, 1, 0), ("u3", 3, 0, 1)] {
            from.put(uid, &copy("m-1", of, octets));
            let report = bench.poll_well().await;
            assert_eq!(
                (report.counters.delivered, report.counters.duplicates),
                (delivered, duplicates),
                "{octets} {uid}"
            );
        }
        bench.age(31);
        bench.poll_well().await;
        assert_eq!(bench.ledger().copies_len(), 0, "and forgotten in the end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_the_same_message_id_and_other_content_is_delivered() {
    for octets in SIZES {
        for polls in [1, 2] {
            let from = Pop3::new().mail("u1", &copy("m-1", 1, octets)).start();
            let to = Smtp::new().start();
            let bench = simple(&from, &to, Special::Addressees);
            if polls == 2 {
                bench.poll_well().await;
            }
            from.put("u2", &other("m-1", octets));
            from.put("u3", &copy("m-1", 3, octets));
            from.put("u4", &other("m-1", octets));
            let report = bench.poll_well().await;
            assert_eq!(report.counters.duplicates, 2, "{octets} {polls}");
            assert_eq!(got(&to, "m-1").len(), 2);
            assert!(from.uids().is_empty());
            let sizes: Vec<_> = to.messages().iter().map(|mail| mail.original().len()).collect();
            assert_ne!(sizes[0], sizes[1], "both are whole");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_copy_is_delivered_where_the_record_or_the_header_says_so() {
    let from = three(500);
    let to = Smtp::new().start();
    let mut bench = simple(&from, &to, Special::Addressees);
    bench.change(|unified| unified.deduplicate = false);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.duplicates), (3, 0));
    assert_eq!(got(&to, "m-1").len(), 3);

    // Each has its own recipient.
    let from = Pop3::new()
        .mail("u1", &enveloped("m-1", &["al@local.test"], 500))
        .mail("u2", &enveloped("m-1", &["bo@local.test"], 500))
        .mail("u3", &enveloped("m-1", &["bo@local.test"], 500))
        .start();
    let to = Smtp::new().start();
    let report = simple(&from, &to, header()).poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.duplicates), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_message_id_nothing_is_a_copy() {
    let text = String::from_utf8(addressed("m-1", TO, 500)).unwrap();
    let text = text.replacen("Message-ID: <m-1@sender.test>\r\n", "", 1);
    let from = Pop3::new().mail("u1", text.as_bytes()).mail("u2", text.as_bytes()).start();
    let to = Smtp::new().start();
    let report = simple(&from, &to, Special::Addressees).poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.duplicates), (2, 0));
}

/// A copy must not be taken for done with while nobody has the first one.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_waits_for_what_becomes_of_the_first() {
    for octets in SIZES {
        let from = three(octets);
        let times = AtomicUsize::new(0);
        let to = Smtp::new()
            .script(move |call| {
                let hit = call.verb == "." && times.fetch_add(1, SeqCst) < 1;
                if hit { Act::Say("451 4.3.0 later".into()) } else { Act::Properly }
            })
            .start();
        let bench = simple(&from, &to, Special::Addressees);
        let report = bench.poll_well().await;
        // The first was deferred; a copy was taken in its place.
        assert_eq!((report.counters.delivered, report.counters.duplicates), (1, 1), "{octets}");
        assert_eq!(to.accepted(), 1);
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, report.counters.duplicates), (0, 1));
        assert_eq!(to.accepted(), 1);
        assert!(from.uids().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_copies_of_one_that_is_set_aside_are_not_lost() {
    let from = three(500);
    let to = Smtp::new()
        .script(|call| if call.verb == "." { Act::Say("554 5.6.0 no".into()) } else { Act::Properly })
        .start();
    let bench = simple(&from, &to, Special::Addressees);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.quarantined, report.counters.duplicates), (3, 0));
    assert_eq!(from.uids().len(), 3);
}

/// Those who have it do not get its copy, and those who lack it get it from
/// the message itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_copy_of_one_that_is_owed_goes_to_nobody() {
    for octets in SIZES {
        let from =
            Pop3::new().mail("u1", &copy("m-1", 1, octets)).mail("u2", &copy("m-1", 2, octets)).start();
        let to = puts_bo_off_once();
        let bench = simple(&from, &to, Special::Addressees);
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, report.counters.duplicates), (1, 1), "{octets}");
        assert_eq!((bench.owed(), from.uids()), (vec![(1, 1, true)], vec!["u1".to_owned()]));
        from.put("u3", &copy("m-1", 3, octets));
        let report = bench.poll_well().await;
        assert_eq!(report.counters.duplicates, 1, "the retry of the first is not its own copy");
        assert_eq!(got(&to, "m-1"), [rcpt(&["al@local.test"], NEVER), rcpt(&["bo@local.test"], NEVER)]);
        assert!(from.uids().is_empty());
    }
}

/// What the postmaster got in place of unknown recipients, he gets once.
#[tokio::test(flavor = "multi_thread")]
async fn the_postmaster_gets_one_copy() {
    for octets in SIZES {
        let from = three(octets);
        let to = Smtp::new().script(refusing(&[("al@", "550 no"), ("bo@", "550 no")])).start();
        let bench = simple(&from, &to, Special::Addressees);
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, report.counters.duplicates), (1, 2), "{octets}");
        assert_eq!(got(&to, "m-1"), [rcpt(&["postmaster@local.test"], NEVER)]);
        assert!(from.uids().is_empty());
    }
}

/// 200 messages, four copies of each, in no order.
#[tokio::test(flavor = "multi_thread")]
async fn many_copies_cost_one_delivery_each() {
    let mut pop = Pop3::new();
    for at in 0..800 {
        let which = at * 7 % 200;
        pop = pop.mail(&format!("u{at}"), &copy(&format!("m-{which}"), at % 10, 900));
    }
    let from = pop.start();
    let to = Smtp::new().start();
    let bench = simple(&from, &to, Special::Addressees);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.duplicates), (200, 600));
    crate::bench::once_each(&to, 200);
    assert!(from.uids().is_empty());
}

/// A migrated server: what is owed is not the copy of itself.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_owed_and_comes_back_under_another_uid_is_not_lost() {
    for octets in SIZES {
        let from = Pop3::new().mail("u1", &copy("m-1", 1, octets)).start();
        let to = puts_bo_off_once();
        let bench = simple(&from, &to, Special::Addressees);
        bench.poll_well().await;
        assert_eq!(bench.owed(), [(1, 1, true)]);
        from.edit(|mail| mail[0].uid = b"new".to_vec());
        bench.poll_well().await;
        let all = got(&to, "m-1").concat();
        assert!(all.contains(&rcpt(&["bo@local.test"], NEVER)[0]), "{octets} {all:?}");
        assert!(from.uids().is_empty());
    }
}

/// A person deletes the line of a message, or a power loss leaves only the
/// beginning of a commit.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_line_is_lost_is_not_the_copy_of_itself() {
    for octets in SIZES {
        for uncertain in [false, true] {
            let from = Pop3::new().mail("u1", &copy("m-1", 1, octets)).start();
            let to = puts_bo_off_once();
            let bench = simple(&from, &to, Special::Addressees);
            bench.poll_well().await;
            assert_eq!(bench.owed(), [(1, 1, true)]);
            {
                let mut ledgers = bench.memory.ledgers.lock().unwrap();
                let ledger = ledgers.get_mut(&bench.item.key).unwrap();
                let hash = ledger.hash(b"u1");
                ledger.apply(&Change::Forget { hash });
                if uncertain {
                    let entry = Entry { state: State::Uncertain, day: 0, size: 0, message_id: 0, digest: 0 };
                    ledger.apply(&Change::Put { uid: b"u1".as_slice().into(), entry });
                }
                assert_eq!(ledger.copies_len(), 1);
            }
            from.put("u2", &copy("m-1", 2, octets));
            let report = bench.poll_well().await;
            assert_eq!(
                got(&to, "m-1"),
                [rcpt(&["al@local.test"], NEVER), rcpt(&["al@local.test", "bo@local.test"], NEVER)]
            );
            assert_eq!(report.counters.duplicates, 1, "the other one is a copy");
            assert!(from.uids().is_empty());
        }
    }
}

/// What survives of a commit is its beginning.
#[tokio::test(flavor = "multi_thread")]
async fn whom_a_message_is_owed_to_is_written_before_that_it_has_copies() {
    let from = Pop3::new().mail("u1", &copy("m-1", 1, 500)).start();
    let to = puts_bo_off_once();
    let bench = simple(&from, &to, Special::Addressees);
    bench.poll_well().await;
    let written = bench.memory.written.lock().unwrap();
    let at = |is: &dyn Fn(&State) -> bool| {
        written.iter().position(|change| matches!(change, Change::Put { entry, .. } if is(&entry.state)))
    };
    let owed = at(&|state| matches!(state, State::Owed { .. })).unwrap();
    let copy = at(&|state| matches!(state, State::Copy)).unwrap();
    assert!(owed < copy, "{written:?}");
}
