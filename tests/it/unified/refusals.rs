//! Refusals of the sender or the content, and answers that are lost.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use rpop::domain::work::OnReject;

use super::*;
use crate::support::pop3::Pop3;
use crate::support::smtp::Smtp;

/// A refused sender is not about recipients: as for any other record.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_sender_is_set_aside_and_told_to_nobody() {
    for special in [header(), Special::Addressees] {
        let text = both("m-1", "al@local.test");
        let from = Pop3::new().mail("u1", &text).start();
        let to = Smtp::new()
            .script(|call| if call.verb == "MAIL" { Act::Say("550 5.7.1 no".into()) } else { Act::Properly })
            .start();
        let bench = simple(&from, &to, special);
        let report = bench.poll_well().await;
        assert_eq!((report.counters.quarantined, bench.quarantined()), (1, 1));
        assert_eq!((to.accepted(), from.uids().len()), (0, 1));
    }
}

/// `*`: what the destination says of the content is the record's business,
/// unless somebody has the message.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_content_goes_as_the_record_says() {
    for (policy, quarantined, left, accepted) in
        [(OnReject::Leave, 1, 1, 0), (OnReject::Discard, 0, 0, 0), (OnReject::Postmaster, 0, 0, 1)]
    {
        let text = addressed("m-1", "To: al@local.test, no@local.test\r\n", 500);
        let from = Pop3::new().mail("u1", &text).start();
        let times = AtomicUsize::new(0);
        let to = Smtp::new()
            .script(move |call| match call.verb {
                "RCPT" if call.argument.contains("no@") => Act::Say("550 5.1.1 unknown".into()),
                "." if times.fetch_add(1, SeqCst) < 1 => Act::Say("554 5.6.0 a virus".into()),
                _ => Act::Properly,
            })
            .start();
        let mut bench = simple(&from, &to, Special::Addressees);
        bench.item.on_reject = policy;
        let report = bench.poll_well().await;
        assert_eq!(report.counters.rejected, 1);
        assert_eq!((bench.quarantined(), from.uids().len(), to.accepted()), (quarantined, left, accepted));
        if accepted == 1 {
            assert_eq!(got(&to, "m-1"), [rcpt(&["postmaster@local.test"], NEVER)]);
        }
    }
    let text = addressed("m-1", "To: al@local.test, bo@second.test\r\n", 500);
    let from = Pop3::new().mail("u1", &text).start();
    let first = Smtp::new().start();
    let second = Smtp::new()
        .script(|call| if call.verb == "." { Act::Say("554 no".into()) } else { Act::Properly })
        .start();
    let bench = bench(
        &from,
        &first,
        Special::Addressees,
        &queue(&first, "local.test"),
        Some(&queue(&second, "second.test")),
    );
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, bench.quarantined(), from.uids().len()), (1, 0, 1));
    assert!(report.refused.unwrap().contains("554"), "somebody is to know");
    assert_eq!(bench.owed(), [(1, 1, true)], "the account exists, and has it not");
    let mut bench = bench;
    bench.item.on_reject = OnReject::Discard;
    bench.poll_well().await;
    assert_eq!((bench.owed(), from.uids().len(), first.accepted()), (vec![], 0, 1));
}

/// When a postmaster cannot have it, it is set aside.
#[tokio::test(flavor = "multi_thread")]
async fn a_postmaster_who_is_refused_or_deferred_loses_nothing() {
    for (reply, quarantined) in [("550 5.1.1 no", 1), ("450 4.2.1 later", 1)] {
        for on_reject in [OnReject::Leave, OnReject::Postmaster, OnReject::Discard] {
            let from = Pop3::new().mail("u1", &message("m-1", 500)).start();
            let to = Smtp::new()
                .script(move |call| if call.verb == "RCPT" { Act::Say(reply.into()) } else { Act::Properly })
                .start();
            let mut bench = simple(&from, &to, header());
            bench.item.on_reject = on_reject;
            let report = bench.poll().await;
            assert_eq!(
                (bench.quarantined(), from.uids().len(), to.accepted()),
                (quarantined, 1, 0),
                "{report:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_tried_once_more_while_nothing_is_settled() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &["al@local.test"], 500)).start();
    let to = Smtp::new().script(|call| if call.verb == "." { Act::Close } else { Act::Properly }).start();
    let bench = simple(&from, &to, header());
    bench.poll().await;
    let states = || bench.ledger().iter().map(|(_, entry)| entry.state).collect::<Vec<_>>();
    assert_eq!(states(), [State::Uncertain]);
    bench.poll().await;
    assert_eq!((bench.quarantined(), from.retrieved().len()), (1, 2));
}

/// Behind another destination's acceptance those in doubt are owed.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_owed_where_something_is_settled() {
    let all = ["bo@second.test", "al@local.test"];
    let from = Pop3::new().mail("u1", &enveloped("m-1", &all, 500)).start();
    let first = Smtp::new().start();
    let times = AtomicUsize::new(0);
    let second = Smtp::new()
        .script(move |call| {
            let lost = call.verb == "." && times.fetch_add(1, SeqCst) < 1;
            if lost { Act::Close } else { Act::Properly }
        })
        .start();
    let bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&queue(&second, "second.test")));
    bench.poll().await;
    assert_eq!(bench.owed(), [(1, 1, true)]);
    bench.poll_well().await;
    assert_eq!(got(&first, "m-1"), [rcpt(&["al@local.test"], FAILURE)]);
    assert_eq!(got(&second, "m-1"), [rcpt(&["bo@second.test"], FAILURE)]);
    assert!(from.uids().is_empty());
}

/// LMTP: whoever's reply was heard has it, and only the other is in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_between_two_recipients_repeats_it_to_neither_that_answered() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &["al@local.test", "bo@local.test"], 500)).start();
    let times = AtomicUsize::new(0);
    let to = Smtp::lmtp()
        .script(move |call| {
            let lost = call.verb == "." && call.argument.contains("bo@") && times.fetch_add(1, SeqCst) < 1;
            if lost { Act::Close } else { Act::Properly }
        })
        .start();
    let bench = bench(&from, &to, header(), &store(&to, "local.test"), None);
    bench.poll().await;
    assert_eq!(bench.owed(), [(1, 1, true)]);
    bench.poll_well().await;
    assert_eq!(
        got(&to, "m-1"),
        [rcpt(&["bo@local.test"], "")],
        "the first one's session did not live to tell"
    );
    assert!(from.uids().is_empty());
}

/// Nothing of a large message is sent for recipients who are refused, and it
/// is read all the same: there is more mail behind it.
#[tokio::test(flavor = "multi_thread")]
async fn recipients_refused_while_a_large_message_flows() {
    let from = Pop3::new()
        .mail("u1", &addressed("m-1", "To: no@local.test\r\n", 2_000_000))
        .mail("u2", &addressed("m-2", "To: no@local.test, al@local.test\r\n", 2_000_000))
        .mail("u3", &addressed("m-3", "To: al@local.test\r\n", 500))
        .start();
    let to = Smtp::new().with("CHUNKING").script(refusing(&[("no@", "550 5.1.1 unknown")])).start();
    let bench = simple(&from, &to, Special::Addressees);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, to.broken_off()), (3, 0));
    let commands = to.commands();
    let begun = commands.iter().filter(|(_, line)| line == "DATA" || line.ends_with(" LAST")).count();
    assert_eq!(begun, 3, "nothing is begun for nobody");
    assert_eq!(got(&to, "m-1"), [rcpt(&["postmaster@local.test"], NEVER)]);
    assert_eq!(got(&to, "m-2"), [rcpt(&["al@local.test"], NEVER)]);
    assert_eq!(got(&to, "m-3"), [rcpt(&["al@local.test"], NEVER)]);
    for mark in ["m-1", "m-2"] {
        let mail = to.messages().into_iter().find(|mail| mail.mark() == mark).unwrap();
        let sent =
            if mark == "m-1" { "To: no@local.test\r\n" } else { "To: no@local.test, al@local.test\r\n" };
        assert_eq!(mail.original(), addressed(mark, sent, 2_000_000));
    }
    assert_eq!(from.retrieved().len(), 4);
    assert!(from.uids().is_empty());
}

/// `*`: an account that is full exists. Whether the server says so at RCPT or
/// behind the message, it gets it when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_full_is_not_taken_for_an_unknown_one() {
    for verb in ["RCPT", "."] {
        let text = addressed("m-1", "To: al@local.test, bo@local.test, no@local.test\r\n", 500);
        let from = Pop3::new().mail("u1", &text).start();
        let times = AtomicUsize::new(0);
        let to = Smtp::lmtp()
            .script(move |call| {
                if call.verb == "RCPT" && call.argument.contains("no@") {
                    return Act::Say("550 5.1.1 unknown".into());
                }
                let full =
                    call.verb == verb && call.argument.contains("bo@") && times.fetch_add(1, SeqCst) < 2;
                if full { Act::Say("552 5.2.2 over quota".into()) } else { Act::Properly }
            })
            .start();
        let bench = bench(&from, &to, Special::Addressees, &store(&to, "local.test"), None);
        let report = bench.poll_well().await;
        assert_eq!((bench.owed(), from.uids().len()), (vec![(1, 1, true)], 1), "{verb}");
        assert!(report.refused.unwrap().contains("552"), "somebody is to know");
        bench.poll_well().await;
        assert_eq!(bench.owed(), [(2, 1, true)]);
        bench.hurry(&["u1"]);
        bench.poll_well().await;
        assert_eq!(got(&to, "m-1"), [rcpt(&["al@local.test"], ""), rcpt(&["bo@local.test"], "")]);
        assert!(from.uids().is_empty());
    }
}
