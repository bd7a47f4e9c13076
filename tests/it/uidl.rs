//! Unique-ids as real servers give them.

use crate::support::mail::message;
use crate::support::manifest::Record;
use crate::support::pop3::{Act, Mail, Pop3};
use crate::support::rig::Rig;
use crate::support::smtp::{self, Smtp};

fn twins() -> Pop3 {
    // The second and third have the same UID and nothing else in common.
    let mail = |uid: &str, mark: &str, octets| Mail {
        uid: uid.as_bytes().to_vec(),
        octets: message(mark, octets),
        size: None,
    };
    Pop3::new()
        .mail_with(mail("one", "one", 500))
        .mail_with(mail("same", "twin-a", 500))
        .mail_with(mail("same", "twin-b", 700))
        .mail_with(mail("same", "twin-c", 500))
        .mail_with(mail("two", "two", 500))
}

#[test]
fn equal_uids_of_different_messages_lose_none_and_repeat_none() {
    // quirks: "Equal UIDs for different messages in one listing"
    for leave in [true, false] {
        let rig = if leave { Rig::keeping(twins()) } else { Rig::new(twins()) };
        rig.poll_until(5, 3);
        assert_eq!(rig.marks(), ["one", "twin-a", "twin-b", "twin-c", "two"]);
        for _ in 0..2 {
            rig.poll().expect(0);
        }
        assert_eq!(rig.marks().len(), 5, "fetched again");
        assert_eq!(rig.pop.uids().len(), if leave { 5 } else { 0 });
    }
}

#[test]
fn uids_of_any_length_and_octets_are_told_apart() {
    // quirks: "UIDs of 71, 128, 1000, 20000 characters; spaces, 8-bit, `/`, three spaces"
    let uids: Vec<Vec<u8>> = vec![
        b"u".repeat(70),
        b"u".repeat(71),
        b"u".repeat(128),
        b"u".repeat(1000),
        b"u".repeat(20_000),
        [b"u".repeat(19_999), b"v".to_vec()].concat(),
        b"with space".to_vec(),
        b"with  spaces".to_vec(),
        b"../../etc/passwd".to_vec(),
        b"/".to_vec(),
        b"\xe4\xf6\xfc".to_vec(),
        b"\xe4\xf6\xfd".to_vec(),
        b"%s%n\\".to_vec(),
        b"#comment".to_vec(),
    ];
    let pop = uids.iter().enumerate().fold(Pop3::new(), |pop, (at, uid)| {
        pop.mail_with(Mail { uid: uid.clone(), octets: message(&format!("m-{at:05}"), 300), size: None })
    });
    let rig = Rig::keeping(pop);
    rig.poll_until(uids.len(), 2);
    for _ in 0..2 {
        rig.poll().expect(0);
    }
    assert_eq!(rig.marks().len(), uids.len());
    assert_eq!(rig.pop.retrieved().len(), uids.len(), "fetched again");
}

#[test]
fn several_spaces_before_the_uid_are_not_part_of_it() {
    let rig =
        Rig::keeping(Pop3::new().generated("m", 2, 300).script(|call| match (call.verb, call.session) {
            ("UIDL", 1) => Act::Say(b"+OK\r\n1   m-00000\r\n2   m-00001\r\n.\r\n".to_vec()),
            _ => Act::Properly,
        }));
    rig.poll().expect(0);
    rig.poll().expect(0);
    assert_eq!(rig.marks().len(), 2);
}

#[test]
fn absurd_numbers_void_their_line_and_not_the_poll() {
    // quirks: "Message number above the STAT count, message number 0, numbers out of order"
    let listing = b"+OK\r\n0 zero\r\n1 m-00000\r\n2 m-00001\r\n1 again\r\n2 twice\r\n4294967296 big\r\n\
        -1 minus\r\nx y\r\n\r\n77777 far\r\n.\r\n";
    let rig = Rig::keeping(Pop3::new().generated("m", 2, 300).script(|call| match call.verb {
        "UIDL" => Act::Say(listing.to_vec()),
        _ => Act::Properly,
    }));
    for _ in 0..2 {
        rig.poll().expect(0);
    }
    assert_eq!(rig.marks(), ["m-00000", "m-00001"]);
}

#[test]
fn mail_that_comes_between_stat_and_uidl_is_taken() {
    // quirks: "New mail between STAT and UIDL; message vanishes between UIDL and RETR"
    let rig = Rig::new(Pop3::new().generated("m", 4, 300).script(|call| match (call.verb, call.number()) {
        ("STAT", _) => Act::line("+OK 3 900"),
        ("RETR", 2) if call.session == 1 => Act::line("-ERR it is gone"),
        ("LIST", 0) if call.session == 1 => Act::Say(b"+OK\r\n1 300\r\n2 300\r\n3 300\r\n.\r\n".to_vec()),
        _ => Act::Properly,
    }));
    rig.poll();
    let marks = rig.marks();
    for mark in ["m-00000", "m-00002", "m-00003"] {
        assert!(marks.contains(&mark.to_owned()), "{mark} did not arrive: {marks:?}");
    }
    // What vanished is not deleted by its number.
    assert_eq!(rig.pop.uids(), ["m-00001"]);
}

#[test]
fn uidl_missing_with_leave_is_said_and_nothing_is_fetched_twice() {
    // quirks: "UIDL missing while `leave` is on"
    let script = |call: &crate::support::pop3::Call<'_>| match call.verb {
        "UIDL" => Act::line("-ERR unknown command"),
        _ => Act::Properly,
    };
    let capabilities: &[&str] = &["TOP", "USER"];
    let pop = || Pop3::new().capabilities(Some(capabilities)).generated("m", 3, 300).script(script);
    let rig = Rig::keeping(pop());
    for _ in 0..2 {
        rig.poll().expect(1).says("UidlMissing");
    }
    assert!(rig.sink.accepted() == 0 && rig.pop.retrieved().is_empty());
}

#[test]
fn a_refused_message_in_the_middle_waits_and_the_rest_does_not() {
    // quirks: "A temporarily refused message in the middle of the mailbox"
    let sink = Smtp::lmtp().script(|call| match call.verb {
        "." if call.holds("X-Rpop-Mark: m-00002") => smtp::Act::Say("452 4.2.2 over quota".into()),
        _ => smtp::Act::Properly,
    });
    let rig = Rig::to(Pop3::new().generated("m", 6, 300), sink);
    rig.poll();
    assert_eq!(rig.marks(), ["m-00000", "m-00001", "m-00003", "m-00004", "m-00005"]);
    assert_eq!(rig.pop.uids(), ["m-00002"]);
}

#[test]
fn a_migrated_server_is_not_a_mailbox_of_new_mail() {
    // quirks: "mass UID change after a server migration"
    const COUNT: usize = 40;
    for (policy, delivered_again) in [("Pause", 0), ("MatchMessageId", 0), ("Fetch", COUNT)] {
        let line = format!("onUidChange: {policy}");
        let rig = Rig::with(Pop3::new().generated("m", COUNT, 300), Smtp::lmtp(), |record| {
            record.with("leave: true").with(&line)
        });
        rig.poll().expect(0);
        rig.pop.edit(|mail| {
            for mail in mail {
                mail.uid = [b"new-".to_vec(), mail.uid.clone()].concat();
            }
        });
        rig.pop.put("new-really", &message("really", 300));
        let run = rig.poll();
        let marks = rig.sink.marks();
        let again = marks.values().filter(|count| **count == 2).count();
        assert_eq!(again, delivered_again, "{policy}: {}", run.text());
        if policy == "Pause" {
            assert_eq!(run.code(), 1, "{}", run.text());
            run.says("UidsChanged");
            assert!(!marks.contains_key("really"));
        } else {
            assert!(marks.contains_key("really"), "{policy}: new mail must come: {}", run.text());
        }
        // And what was learnt is kept.
        let before = rig.sink.accepted();
        rig.poll();
        assert_eq!(rig.sink.accepted(), before, "{policy}");
    }
}

#[test]
fn an_empty_listing_after_a_full_one_forgets_nothing() {
    let rig =
        Rig::keeping(Pop3::new().generated("m", 5, 300).script(|call| match (call.verb, call.session) {
            ("UIDL" | "LIST", 2) => Act::Say(b"+OK\r\n.\r\n".to_vec()),
            ("STAT", 2) => Act::line("+OK 0 0"),
            _ => Act::Properly,
        }));
    for _ in 0..3 {
        rig.poll();
    }
    assert_eq!(rig.marks().len(), 5);
    assert_eq!(rig.pop.retrieved().len(), 5, "fetched again");
}

#[test]
fn keep_for_days_deletes_nothing_young_and_limits_hold() {
    let rig = Rig::with(
        Pop3::new().generated("m", 10, 400).mail("huge", &message("huge", 90_000)),
        Smtp::lmtp(),
        |record: Record| {
            record
                .with("leave: true")
                .with("keepForDays: 30")
                .with("limits: {messageSize: 50Ki, messagesPerSession: 4}")
        },
    );
    rig.poll();
    assert_eq!(rig.sink.accepted(), 4);
    rig.poll_until(10, 4);
    rig.poll();
    let marks = rig.marks();
    assert_eq!(marks.len(), 10, "{marks:?}");
    assert!(!marks.contains(&"huge".to_owned()));
    assert_eq!(rig.pop.uids().len(), 11);
    assert!(!rig.pop.retrieved().contains(&"huge".to_owned()), "it was fetched to be thrown away");
}
