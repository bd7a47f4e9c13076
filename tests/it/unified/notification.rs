//! Who is told of recipients that a destination refuses for good.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;
use crate::support::pop3::Pop3;
use crate::support::smtp::Smtp;

const TO: [&str; 3] = ["al@local.test", "bad@local.test", "worse@local.test"];

fn unknown() -> impl Fn(&Call<'_>) -> Act {
    refusing(&[("bad@", "550 5.1.1 <bad@local.test> unknown"), ("worse@", "554 5.7.1 go away")])
}

/// The mail that is no copy of a message from the maildrop.
fn notifications(to: &FakeSmtp) -> Vec<Accepted> {
    to.mail().into_iter().filter(|mail| mail.message.headers("Auto-Submitted") == ["auto-replied"]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_is_told_once_of_all_who_were_refused_and_the_message_is_done() {
    for octets in [500, 300_000] {
        let from = Pop3::new().mail("u1", &enveloped("m-1", &TO, octets)).start();
        let to = Smtp::new().script(unknown()).start();
        let mut bench = simple(&from, &to, header());
        // It has no say here.
        bench.item.on_reject = rpop::domain::work::OnReject::Postmaster;
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, report.counters.deleted), (1, 1));
        assert_eq!(got(&to, "m-1"), [rcpt(&["al@local.test"], FAILURE)]);
        let told = notifications(&to);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].sender(), "");
        assert_eq!(recipients(&told[0]), rcpt(&["author@sender.test"], NEVER));
        let text = told[0].message.text();
        for part in [
            "multipart/report",
            "Final-Recipient: rfc822; bad@local.test",
            "Final-Recipient: rfc822; worse@local.test",
            "550 5.1.1 <bad@local.test> unknown",
            "554 5.7.1 go away",
            "Message-ID: <m-1@sender.test>",
        ] {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        assert!(!text.contains("al@local.test"), "{text}");
        bench.poll_well().await;
        assert_eq!((to.accepted(), bench.ledger().len()), (2, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_are_refused_the_notification_is_all_there_is() {
    for octets in [500, 300_000] {
        let from = Pop3::new().mail("u1", &enveloped("m-1", &["bad@local.test"], octets)).start();
        let to = Smtp::new().with("CHUNKING").script(unknown()).start();
        let bench = simple(&from, &to, header());
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, report.counters.rejected), (0, 1));
        assert_eq!((notifications(&to).len(), to.accepted()), (1, 1));
        assert_eq!((from.uids().len(), from.retrieved().len()), (0, 1));
        assert_eq!(to.broken_off(), 0, "nothing of the message was sent");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn for_the_null_sender_the_postmaster_is_told() {
    let text = String::from_utf8(enveloped("m-1", &TO, 500)).unwrap();
    let text = text.replacen("<author@sender.test>", "<>", 1);
    let from = Pop3::new().mail("u1", text.as_bytes()).start();
    let to = Smtp::new().script(unknown()).start();
    let bench = simple(&from, &to, header());
    bench.poll_well().await;
    let told = notifications(&to);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].sender(), recipients(&told[0])), ("", rcpt(&["postmaster@local.test"], NEVER)));
    assert!(told[0].message.text().contains("bad@local.test"));
    assert!(from.uids().is_empty());
}

/// Direct storing cannot reach a sender.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_queue_the_postmaster_is_told() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &TO, 500)).start();
    let to = Smtp::lmtp().script(unknown()).start();
    let bench = bench(&from, &to, header(), &store(&to, "local.test"), None);
    bench.poll_well().await;
    let told = notifications(&to);
    assert_eq!(told.len(), 1);
    assert_eq!(recipients(&told[0]), rcpt(&["postmaster@local.test"], ""));
    assert!(told[0].message.text().contains("author@sender.test"), "in whose stead");
    assert!(from.uids().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lmtp_s_refusal_of_one_recipient_behind_the_message_is_told_too() {
    for octets in [500, 300_000] {
        let to_all = ["al@second.test", "full@second.test", "cy@second.test"];
        let from = Pop3::new().mail("u1", &enveloped("m-1", &to_all, octets)).start();
        let main = Smtp::new().start();
        let second = Smtp::lmtp()
            .script(|call| {
                let full = call.verb == "." && call.argument.contains("full@");
                if full { Act::Say("552 5.2.2 over quota".into()) } else { Act::Properly }
            })
            .start();
        let bench =
            bench(&from, &main, header(), &queue(&main, "local.test"), Some(&store(&second, "second.test")));
        bench.poll_well().await;
        assert_eq!(got(&second, "m-1"), [rcpt(&["al@second.test", "cy@second.test"], "")]);
        let told = notifications(&main);
        assert_eq!(told.len(), 1, "by the Main Domain's queue");
        assert_eq!(recipients(&told[0]), rcpt(&["author@sender.test"], NEVER));
        assert!(told[0].message.text().contains("552 5.2.2 over quota"));
        assert!(from.uids().is_empty());
    }
}

/// RFC 1870: no octet of it is sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_destination_s_size_is_told_to_the_sender() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &["al@local.test"], 9000)).start();
    let to = Smtp::new().extensions(&["PIPELINING", "SIZE 8000", "DSN"]).start();
    let bench = simple(&from, &to, header());
    bench.poll_well().await;
    assert_eq!((got(&to, "m-1").len(), notifications(&to).len()), (0, 1));
    assert!(notifications(&to)[0].message.text().contains("552"));
    assert!(from.uids().is_empty());
}

/// Two destinations, a refusal at each, one that is to come: one notification.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_sent_when_all_were_tried_and_names_those_of_all_destinations() {
    let all = ["bad@local.test", "al@local.test", "worse@second.test", "late@second.test"];
    let from = Pop3::new().mail("u1", &enveloped("m-1", &all, 500)).start();
    let first = Smtp::new().script(unknown()).start();
    let times = AtomicUsize::new(0);
    let second = Smtp::new()
        .script(move |call| match call.verb {
            "RCPT" if call.argument.contains("worse@") => Act::Say("550 5.1.1 no".into()),
            "RCPT" if times.fetch_add(1, SeqCst) < 1 => Act::Say("450 4.2.1 later".into()),
            _ => Act::Properly,
        })
        .start();
    let bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&queue(&second, "second.test")));
    bench.poll_well().await;
    assert_eq!(notifications(&first).len(), 0, "the one that is put off may be refused as well");
    assert_eq!(bench.owed(), [(1, 3, true)]);
    bench.poll_well().await;
    assert_eq!(got(&second, "m-1"), [rcpt(&["late@second.test"], FAILURE)]);
    let told = notifications(&first);
    assert_eq!(told.len(), 1, "one notification a message");
    let text = told[0].message.text();
    assert!(text.contains("bad@local.test") && text.contains("worse@second.test"), "{text}");
    assert!(!text.contains("late@second.test") && text.contains("All other recipients"), "{text}");
    assert!(from.uids().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn until_it_is_accepted_the_refused_ones_are_owed() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &TO, 500)).start();
    let times = AtomicUsize::new(0);
    let refusal = unknown();
    let to = Smtp::new()
        .script(move |call| {
            let notification = call.verb == "RCPT" && call.argument.contains("author@");
            if notification && times.fetch_add(1, SeqCst) < 1 {
                return Act::Say("451 4.3.0 later".into());
            }
            refusal(call)
        })
        .start();
    let bench = simple(&from, &to, header());
    bench.poll_well().await;
    assert_eq!((bench.owed(), notifications(&to).len()), (vec![(1, 2, true)], 0));
    bench.poll_well().await;
    assert_eq!(notifications(&to).len(), 1);
    assert_eq!(got(&to, "m-1").len(), 1);
    assert!(from.uids().is_empty() && bench.owed().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_refused_goes_to_the_postmaster_and_then_it_is_enough() {
    for postmaster_too in [false, true] {
        let from = Pop3::new().mail("u1", &enveloped("m-1", &TO, 500)).start();
        let refusal = unknown();
        let to = Smtp::new()
            .script(move |call| {
                let sender = call.verb == "RCPT" && call.argument.contains("author@");
                let postmaster = call.verb == "RCPT" && call.argument.contains("postmaster@");
                if sender || (postmaster && postmaster_too) {
                    return Act::Say("550 5.1.1 no such user".into());
                }
                refusal(call)
            })
            .start();
        let bench = simple(&from, &to, header());
        bench.poll_well().await;
        let told = notifications(&to);
        if postmaster_too {
            assert!(told.is_empty());
        } else {
            assert_eq!(recipients(&told[0]), rcpt(&["postmaster@local.test"], NEVER));
        }
        assert!(
            from.uids().is_empty() && bench.ledger().iter().all(|(_, entry)| entry.state == State::Deleting)
        );
    }
}

/// Senders whose addresses are no good say nothing about the destination.
#[tokio::test(flavor = "multi_thread")]
async fn notifications_that_are_refused_or_put_off_end_no_poll() {
    let replies: [(&'static [(&str, &str)], usize); 3] = [
        (&[("bad@", "550 no"), ("author@", "550 5.7.1 not here")], 30),
        (&[("bad@", "550 no"), ("author@", "450 4.1.8 no such domain now"), ("postmaster@", "550 no")], 0),
        (&[("bad@", "550 no"), ("author@", "550 5.7.1 no"), ("postmaster@", "450 4.2.1 later")], 0),
    ];
    for (replies, told) in replies {
        let mut pop = Pop3::new();
        for at in 0..30 {
            let good = enveloped(&format!("good-{at}"), &["al@local.test"], 500);
            pop = pop
                .mail(&format!("u{at}"), &enveloped(&format!("m-{at}"), &["bad@local.test"], 500))
                .mail(&format!("good-{at}"), &good);
        }
        let from = pop.start();
        let to = Smtp::new().script(refusing(replies)).start();
        let bench = simple(&from, &to, header());
        let report = bench.poll_well().await;
        assert_eq!((notifications(&to).len(), from.uids().len()), (told, 30 - told), "{report:?}");
    }
}

/// Nothing is told of a message that is not known to be whole: it is retrieved
/// again, and asked for again.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_whose_size_is_wrong_is_told_of_once() {
    for size in [None, Some(7), Some(400_000)] {
        let octets = enveloped("m-1", &["bad@local.test"], 300_000);
        let from = Pop3::new()
            .mail_with(crate::support::pop3::Mail { uid: b"u1".to_vec(), octets, size })
            .mail("u2", &enveloped("m-2", &["al@local.test"], 500))
            .start();
        let to = Smtp::new().script(unknown()).start();
        let bench = simple(&from, &to, header());
        bench.poll_well().await;
        assert_eq!((notifications(&to).len(), got(&to, "m-2").len()), (1, 1), "{size:?}");
        assert!(from.uids().is_empty());
    }
}

/// It is mail of our own making, and no loop if it comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_notification_that_comes_to_the_maildrop_is_delivered() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &TO, 500)).start();
    let to = Smtp::new().script(unknown()).start();
    let bench = simple(&from, &to, header());
    bench.poll_well().await;
    let mut back = b"Return-Path: <>\r\nX-Real-To: al@local.test\r\nReceived: from a by b; Mon, 2 Nov 2026 10:00:00 +0000\r\n".to_vec();
    back.extend(notifications(&to)[0].message.raw.clone());
    from.put("u2", &back);
    let report = bench.poll_well().await;
    assert_eq!(report.counters.delivered, 1, "{report:?}");
}
