//! "Recipients at several destinations, or some still owed: one RETR for each
//! destination, with the recipients still owed in the ledger."

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use super::*;
use crate::support::policy::Policy;

#[test]
fn each_destination_is_served_by_a_retrieval_of_its_own() {
    let test = "each_destination_is_served_by_a_retrieval_of_its_own";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    place.second();
    place.record(HEADER, &[]);
    for (octets, mark) in [(0, "small"), (300_000, "large")] {
        let before = place.provider.retrieved();
        let traces = format!(
            "{HEADER}: alice@local.test, cy@second.test, bob@alias.test, dan@second.test, al@alias.test\r\n"
        );
        place.put(&[
            sized(mark, &traces, "From: author@sender.test\r\n", octets),
            enveloped(&format!("{mark}-queue"), &["alice@local.test"]),
            enveloped(&format!("{mark}-store"), &["cy@second.test"]),
        ]);
        place.poll(false);
        assert_eq!(place.provider.retrieved() - before, 4, "twice what has two destinations");
        assert_eq!(place.left(), 0);
        let held = place.held();
        // bob@alias.test is no alias that the Postfix knows.
        assert_eq!(held[mark].asked(), [("alice@local.test", "FAILURE"), ("al@alias.test", "FAILURE")]);
        assert_eq!(held[&format!("{mark}-queue")].asked(), [("alice@local.test", "FAILURE")]);
        assert_eq!(held.len(), 3, "and the report of bob's");
        place.queue.release();
    }
    let stored = ["large", "large-store", "small", "small-store"];
    assert_eq!(
        (place.marks("cy"), place.marks("dan")),
        (stored.map(String::from).to_vec(), vec!["large".into(), "small".into()])
    );
    for mail in place.home.inbox("dan").read() {
        assert_eq!(mail.headers(HEADER), [""; 0]);
    }
    assert_eq!((place.home.inbox("author").count(), place.owed()), (2, vec![]));
}

#[test]
fn who_is_owed_a_message_gets_it_later_and_nobody_else_again() {
    let test = "who_is_owed_a_message_gets_it_later_and_nobody_else_again";
    for special in [HEADER, "\"*\""] {
        // Postfix is told by a greylisting service to put bob and carol off, once
        // for each message.
        let put_off = Arc::new(Mutex::new(BTreeSet::new()));
        let known = Arc::clone(&put_off);
        let policy = Policy::start(move |question| {
            let late = question.state == "RCPT"
                && ["bob@local.test", "carol@local.test"].contains(&question.recipient.as_str());
            let first =
                late && known.lock().unwrap().insert((question.sender.clone(), question.recipient.clone()));
            first.then(|| "450 4.2.1 greylisted".to_owned())
        });
        let settings =
            format!("smtpd_recipient_restrictions = {}, permit_mynetworks, reject\n", policy.restriction());
        let Some(place) = Place::start(test, &settings, Options::default()) else { return };
        place.second();
        place.record(special, &[]);
        for account in ["cy", "dan"] {
            place.home.inbox(account).fill(0, std::iter::empty());
        }
        // The Dovecot cannot store for cy, and says so after DATA.
        place.home.break_inbox("cy", true);
        let with = |mark: &str, to: &str| {
            mail(
                mark,
                &format!("Return-Path: <{mark}@sender.test>\r\n{HEADER}: {to}\r\n"),
                &format!("To: {to}\r\n"),
            )
        };
        let first = "alice@local.test, bob@local.test, cy@second.test, dan@second.test";
        place.put(&[with("all", first), with("late", "carol@local.test"), with("well", "alice@local.test")]);
        place.poll(true);
        let held = place.held();
        let notify = if special == HEADER { "FAILURE" } else { "NEVER" };
        assert_eq!(held["all"].asked(), [("alice@local.test", notify)]);
        assert_eq!(held["well"].asked(), [("alice@local.test", notify)]);
        assert_eq!(held.len(), 2, "nobody is told of what is put off");
        assert_eq!((place.marks("dan"), place.left()), (vec!["all".into()], 2));
        // The one that nobody has is remembered as such.
        assert_eq!(place.owed(), [1, 2]);
        let owed = place.ledger().into_iter().filter(|line| line.starts_with("owed "));
        assert_eq!(owed.filter(|line| line.contains(" reached ")).count(), 1);
        place.queue.release();

        place.home.break_inbox("cy", false);
        place.poll(false);
        let held = place.held();
        assert_eq!(held["all"].asked(), [("bob@local.test", notify)], "for him alone");
        assert_eq!(held["late"].asked(), [("carol@local.test", notify)]);
        assert_eq!(held.len(), 2);
        place.queue.release();
        assert_eq!((place.owed(), place.left()), (vec![], 0));
        for (account, has) in [
            ("alice", &["all", "well"][..]),
            ("bob", &["all"]),
            ("carol", &["late"]),
            ("cy", &["all"]),
            ("dan", &["all"]),
        ] {
            assert_eq!(place.marks(account), has, "{special} {account}");
        }
        let told: usize = ["author", "postmaster"].iter().map(|one| place.home.inbox(one).count()).sum();
        assert_eq!((told, policy.asked() > 0), (0, true));
    }
}
