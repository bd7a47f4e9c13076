//! Messages that are owed to somebody whom their header does not name now, and
//! those that are another message, or have another UID, than the ledger knows.

use rpop::domain::code::Code;
use rpop::domain::work::OnUidChange;

use super::*;
use crate::support::pop3::Pop3;
use crate::support::smtp::Smtp;

/// The manifest changed: nobody can say whose it would be, but a person.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_to_somebody_no_longer_ours_goes_to_the_postmaster() {
    for special in [header(), Special::Addressees] {
        let from = Pop3::new().mail("u1", &both("m-1", "al@local.test, bo@alias.test")).start();
        let to = Smtp::new().script(refusing(&[("bo@", "450 4.2.1 later")])).start();
        let mut bench = simple(&from, &to, special.clone());
        bench.poll_well().await;
        assert_eq!(bench.owed(), [(1, 1, true)]);
        bench.change(|unified| unified.domains[0].names = vec!["local.test".into()]);
        bench.poll_well().await;
        assert!(from.uids().is_empty() && bench.owed().is_empty());
        let notify = if special == Special::Addressees { NEVER } else { FAILURE };
        assert_eq!(
            got(&to, "m-1"),
            [rcpt(&["al@local.test"], notify), rcpt(&["postmaster@local.test"], NEVER)]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_postmaster_cannot_have_it_it_stays_owed() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &["al@local.test", "bo@alias.test"], 500)).start();
    let to =
        Smtp::new().script(refusing(&[("bo@", "450 4.2.1 later"), ("postmaster@", "550 5.1.1 no")])).start();
    let mut bench = simple(&from, &to, header());
    bench.poll_well().await;
    bench.change(|unified| unified.domains[0].names = vec!["local.test".into()]);
    let report = bench.poll_well().await;
    assert_eq!((bench.owed(), from.uids().len()), (vec![(2, 1, true)], 1));
    assert!(report.refused.unwrap().contains("postmaster"), "somebody is to know");
    // The alias is put back.
    bench.change(|unified| unified.domains[0].names = vec!["alias.test".into(), "local.test".into()]);
    bench.hurry(&["u1"]);
    bench.poll_well().await;
    assert_eq!(bench.owed(), [(3, 1, true)], "it is bo's again");
}

/// RFC 1939, section 7: a UID may be given away once its message is gone. Of
/// one that is owed nobody knows that it is.
#[tokio::test(flavor = "multi_thread")]
async fn another_message_under_the_uid_of_an_owed_one_is_delivered_to_all() {
    for special in [header(), Special::Addressees] {
        let cases = [
            ("cy@local.test, dy@local.test", true),
            ("cy@local.test, bo@local.test", true),
            ("cy@local.test, dy@local.test", false),
        ];
        for (others, with_id) in cases {
            let text = |mark: &str, to: &str| {
                let text = String::from_utf8(both(mark, to)).unwrap();
                let id = format!("Message-ID: <{mark}@sender.test>\r\n");
                if with_id { text } else { text.replacen(&id, "", 1) }.into_bytes()
            };
            let from = Pop3::new().mail("u1", &text("m-1", "al@local.test, bo@local.test")).start();
            let to = puts_bo_off_once();
            let bench = simple(&from, &to, special.clone());
            bench.poll_well().await;
            assert_eq!(bench.owed(), [(1, 1, true)]);
            from.edit(|mail| mail[0].octets = text("m-2", others));
            bench.poll_well().await;
            let all: Vec<&str> = others.split(", ").collect();
            let notify = if special == Special::Addressees { NEVER } else { FAILURE };
            let last = to.mail().last().map(recipients).unwrap();
            assert_eq!(last, rcpt(&all, notify), "{special:?} {others} {with_id}");
            assert!(from.uids().is_empty() && bench.owed().is_empty());
        }
    }
}

/// A migrated server.
#[tokio::test(flavor = "multi_thread")]
async fn all_uids_change_while_messages_are_owed() {
    for special in [header(), Special::Addressees] {
        for policy in [OnUidChange::Pause, OnUidChange::MatchMessageId] {
            for leave in [true, false] {
                let mut pop = Pop3::new();
                for at in 0..30 {
                    pop = pop
                        .mail(&format!("u{at}"), &both(&format!("m-{at}"), "al@local.test, bo@local.test"));
                }
                let from = pop.start();
                let down = Arc::new(std::sync::atomic::AtomicBool::new(true));
                let is_down = Arc::clone(&down);
                let to = Smtp::new()
                    .script(move |call| {
                        let hit =
                            call.verb == "RCPT" && call.argument.contains("bo@") && is_down.load(SeqCst);
                        if hit { Act::Say("450 4.2.1 later".into()) } else { Act::Properly }
                    })
                    .start();
                let mut bench = simple(&from, &to, special.clone());
                (bench.item.on_uid_change, bench.item.leave) = (policy, leave);
                bench.poll_well().await;
                assert_eq!(bench.owed().len(), 30);
                down.store(false, SeqCst);
                from.edit(|mail| {
                    for mail in mail {
                        mail.uid.splice(0..0, *b"new");
                    }
                });
                let report = bench.poll().await;
                if policy == OnUidChange::Pause {
                    assert_eq!(report.result.unwrap_err().code, Code::UidsChanged);
                    assert_eq!((to.accepted(), bench.owed().len()), (30, 30));
                    continue;
                }
                assert!(report.result.is_ok(), "{report:?}");
                let count =
                    |whom: &str| to.mail().iter().flat_map(recipients).filter(|to| to.contains(whom)).count();
                assert_eq!((count("al@"), count("bo@")), (30, 30), "{special:?} {leave}");
                assert!(bench.owed().is_empty(), "the old UIDs are forgotten");
                assert_eq!(from.uids().len(), if leave { 30 } else { 0 });
            }
        }
    }
}
