//! The engine alone: what arrives, and what is remembered of it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rpop::domain::code::Code;
use rpop::domain::ledger::{Change, Entry, Ledger, State, day_of};
use rpop::domain::work::{Checkpoint, Limits, OnReject, OnUidChange, RecordKey};
use rpop::engine::ports::{Observer, Stage};
use rpop::engine::report::Counters;
use tokio::sync::watch;

use crate::bench::{Bench, OnePassword, once_each};
use crate::support::mail::message;
use crate::support::pop3::{self, Mail, Pop3};
use crate::support::smtp::{self, Smtp};

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_cannot_be_sent_is_told_with_its_secret() {
    let (from, to) = (Pop3::new().generated("m", 1, 100).start(), Smtp::new().start());
    let mut bench = Bench::new(&from, &to);
    bench.engine.secrets = Arc::new(OnePassword(b"secret\n"));
    let failed = bench.poll().await.result.unwrap_err();
    assert_eq!(failed.code, Code::SecretInvalid);
    let place = "Secret mail/password, key password: the password holds a line break";
    assert!(failed.message.starts_with(place), "{failed}");
    assert_eq!(from.uids().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_move_once_and_are_deleted() {
    let from = Pop3::new().generated("m", 300, 3000).start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.deleted), (300, 300));
    once_each(&to, 300);
    assert_eq!(from.uids().len(), 0);
    for (arrived, mark) in to.messages().iter().map(|mail| (mail.original(), mail.mark())) {
        assert_eq!(arrived, message(&mark, 3000));
    }
    let report = bench.poll_well().await;
    assert_eq!(report.counters.fetched, 0);
    assert_eq!(bench.ledger().len(), 0, "what is gone from the server is forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_every_size_come_whole() {
    let sizes = [200, 4000, 70_000, 131_000, 131_500, 300_000, 3_000_000];
    let mut from = Pop3::new();
    for (at, size) in sizes.iter().enumerate() {
        from = from.mail(&format!("u{at}"), &message(&format!("m-{at}"), *size));
    }
    let from = from.start();
    for to in [Smtp::new().with("CHUNKING").start(), Smtp::new().start()] {
        let mut bench = Bench::new(&from, &to);
        bench.item.leave = true;
        bench.poll_well().await;
        once_each(&to, sizes.len());
        for mail in to.messages() {
            let at: usize = mail.mark().trim_start_matches("m-").parse().unwrap();
            assert_eq!(mail.original(), message(&mail.mark(), sizes[at]));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_fetched_once() {
    let from = Pop3::new().generated("m", 40, 500).start();
    let to = Smtp::new().start();
    let mut bench = Bench::new(&from, &to);
    bench.item.leave = true;
    bench.poll_well().await;
    from.put("new", &message("new-1", 600));
    bench.poll_well().await;
    bench.poll_well().await;
    once_each(&to, 41);
    assert_eq!(from.uids().len(), 41);
    assert_eq!(from.retrieved().len(), 41);
}

/// `checkpoint` bounds what is with the destination and not committed.
#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_handed_over_than_a_checkpoint_allows() {
    let from = Pop3::new().generated("m", 100, 500).start();
    let to = Smtp::new().start();
    let mut bench = Bench::new(&from, &to);
    bench.settings.checkpoint = Checkpoint { messages: 7, every: Duration::from_secs(5) };
    bench.memory.fails.store(true, Ordering::SeqCst);
    let report = bench.poll().await;
    assert_eq!(report.result.unwrap_err().code, Code::LedgerUnwritable);
    assert!((1..=7).contains(&to.accepted()), "{} accepted", to.accepted());
    assert_eq!(from.uids().len(), 100, "nothing is deleted that is not committed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_accepted_and_could_not_be_committed_is_not_delivered_again() {
    for leave in [false, true] {
        let from = Pop3::new().generated("m", 60, 500).start();
        let to = Smtp::new().start();
        let mut bench = Bench::new(&from, &to);
        bench.item.leave = leave;
        bench.memory.fails.store(true, Ordering::SeqCst);
        let report = bench.poll().await;
        assert_eq!(report.result.unwrap_err().code, Code::LedgerUnwritable);
        let accepted = to.accepted();
        assert!((1..=20).contains(&accepted), "{accepted} accepted");
        // As long as they cannot be remembered nothing else is done.
        let report = bench.poll().await;
        assert_eq!(report.result.unwrap_err().code, Code::LedgerUnwritable);
        assert_eq!(to.accepted(), accepted);

        bench.memory.fails.store(false, Ordering::SeqCst);
        bench.memory.loses_answers.store(true, Ordering::SeqCst);
        let report = bench.poll().await;
        assert_eq!(report.result.unwrap_err().code, Code::LedgerUnwritable, "nobody knows");
        bench.memory.loses_answers.store(false, Ordering::SeqCst);
        bench.poll_well().await;
        once_each(&to, 60);
        assert_eq!(from.uids().len(), if leave { 60 } else { 0 });
    }
}

/// Hears what polls had done that were dropped.
#[derive(Default)]
struct CutOff(Mutex<Vec<Counters>>);

impl Observer for CutOff {
    fn cut_off(&self, _: &RecordKey, counters: &Counters) {
        self.0.lock().unwrap().push(*counters);
    }
}

/// A worker that fences itself drops its polls wherever they are.
#[tokio::test(flavor = "multi_thread")]
async fn a_poll_that_is_dropped_repeats_nothing_that_was_accepted_and_counts_it() {
    let from = Pop3::new().generated("m", 60, 500).start();
    let to = Smtp::new().start();
    let mut bench = Bench::new(&from, &to);
    let observer = Arc::new(CutOff::default());
    bench.engine.observer = Arc::clone(&observer) as _;
    bench.memory.hangs.store(true, Ordering::SeqCst);
    {
        let poll = bench.poll();
        tokio::pin!(poll);
        // All that may be out is; the commit of a part of it is under way.
        while to.accepted() < 20 {
            tokio::select! {
                report = &mut poll => panic!("{report:?}"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
        // The last answers arrive, and nobody has looked at them.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    bench.memory.hangs.store(false, Ordering::SeqCst);
    assert_eq!(bench.memory.commits.load(Ordering::SeqCst), 0);
    let report = bench.poll_well().await;
    once_each(&to, 60);
    assert_eq!(from.uids().len(), 0);
    let heard = observer.0.lock().unwrap();
    let [cut_off] = heard[..] else { panic!("once, of the one that was dropped: {heard:?}") };
    assert_eq!((cut_off.listed, cut_off.delivered), (60, 20));
    assert_eq!(cut_off.delivered + report.counters.delivered, 60);
}

/// What a survey found is found again: it may be another's wish by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_that_was_not_committed_is_thought_over() {
    let from = Pop3::new().generated("m", 5, 500).start();
    let to = Smtp::new().start();
    let mut bench = Bench::new(&from, &to);
    bench.item.leave = true;
    bench.poll_well().await;
    (bench.item.leave, bench.item.delete_seen) = (false, true);
    bench.memory.fails.store(true, Ordering::SeqCst);
    assert!(bench.poll().await.result.is_err());
    bench.memory.fails.store(false, Ordering::SeqCst);
    (bench.item.leave, bench.item.delete_seen) = (true, false);
    bench.poll_well().await;
    assert_eq!(from.uids().len(), 5);
    once_each(&to, 5);
}

// quirks: "A body containing `\n.\r\n` followed by text that looks like `+OK …`"
#[tokio::test(flavor = "multi_thread")]
async fn a_body_cannot_end_itself() {
    let mut evil = message("evil-1", 400);
    evil.extend_from_slice(b"a\n.\r\n+OK 5 octets\r\nFrom: x\r\n\r\nfake\r\n.x\r\nb\n.\nc\r.\r\nd\r\n");
    let from = Pop3::new().mail("1", &evil).generated("m", 20, 500).start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    bench.poll_well().await;
    once_each(&to, 21);
    let evil = to.messages().into_iter().find(|mail| mail.mark() == "evil-1").unwrap();
    assert!(evil.text().contains("fake\n.x\nb\n.\nc\n.\nd\n"), "{}", evil.text());
}

// quirks: "Unstuffed `CRLF.CRLF` mid-body (broken server)"
#[tokio::test(flavor = "multi_thread")]
async fn a_message_cut_by_an_unstuffed_dot_is_set_aside_and_the_rest_arrives() {
    let mut raw = b"+OK\r\n".to_vec();
    raw.extend_from_slice(&message("cut-1", 400));
    raw.extend_from_slice(b"\r\n.\r\n+OK what now\r\nmore of it\r\n.\r\n");
    let from = Pop3::new()
        .generated("a", 5, 500)
        .mail("bad", &vec![b'x'; 460])
        .generated("b", 5, 500)
        .script(move |call| {
            if call.verb == "RETR" && call.number() == 6 {
                pop3::Act::Say(raw.clone())
            } else {
                pop3::Act::Properly
            }
        })
        .start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    let report = bench.poll().await;
    assert_eq!(report.counters.quarantined, 1, "{report:?}");
    once_each(&to, 10);
    assert_eq!(from.uids(), ["bad"]);
    assert_eq!(bench.quarantined(), 1);
    let before = from.retrieved().len();
    bench.poll_well().await;
    assert_eq!(from.retrieved().len(), before, "it is not tried at every poll");
}

// quirks: "LIST size wrong or 0"
#[tokio::test(flavor = "multi_thread")]
async fn wrong_sizes_cost_time_and_nothing_else() {
    let mut from = Pop3::new();
    for at in 0..12 {
        let size = [None, Some(0), Some(7), Some(1_000_000)][at % 4];
        let octets = message(&format!("m-{at}"), 900);
        from = from.mail_with(Mail { uid: format!("u{at}").into(), octets, size });
    }
    let from = from.start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    let report = bench.poll_well().await;
    once_each(&to, 12);
    assert_eq!(report.counters.quarantined, 0);
    assert_eq!(from.uids().len(), 0);
}

// quirks: "An unsolicited extra reply between two messages"
#[tokio::test(flavor = "multi_thread")]
async fn an_unsolicited_reply_is_noticed() {
    let from = Pop3::new()
        .generated("m", 10, 500)
        .script(|call| {
            if call.verb == "RETR" && call.number() == 4 {
                pop3::Act::ProperlyThen(b"+OK surprise\r\n".to_vec())
            } else {
                pop3::Act::Properly
            }
        })
        .start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    bench.poll().await;
    let marks = to.marks();
    assert!(marks.len() >= 9 && marks.values().all(|times| *times == 1), "{marks:?}");
    for mail in to.messages() {
        assert_eq!(mail.original(), message(&mail.mark(), 500), "no message is taken for another");
    }
}

// quirks: "Terminator glued to the last line (Exchange 2000)"
#[tokio::test(flavor = "multi_thread")]
async fn a_glued_terminator_holds_up_only_its_message() {
    let mut raw = b"+OK\r\n".to_vec();
    raw.extend_from_slice(message("glued-1", 400).trim_ascii_end());
    raw.extend_from_slice(b".\r\n");
    let from = Pop3::new()
        .mail("bad", &message("glued-1", 400))
        .generated("m", 10, 500)
        .script(move |call| {
            if call.verb == "RETR" && call.number() == 1 {
                pop3::Act::Say(raw.clone())
            } else {
                pop3::Act::Properly
            }
        })
        .start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    let report = bench.poll().await;
    assert_eq!(report.counters.quarantined, 1, "{report:?}");
    once_each(&to, 10);
    assert_eq!(from.uids(), ["bad"]);
}

// quirks: "A local 5xx neither bounces to a forged sender nor loses the message nor retries for ever"
#[tokio::test(flavor = "multi_thread")]
async fn refused_messages_go_as_the_record_says() {
    for (policy, left, arrived) in
        [(OnReject::Leave, 1, 9), (OnReject::Discard, 0, 9), (OnReject::Postmaster, 0, 10)]
    {
        let from = Pop3::new().generated("m", 10, 500).start();
        let refused = AtomicBool::new(false);
        let to = Smtp::new()
            .script(move |call| {
                if call.verb == "." && call.holds("m-00003") && !refused.swap(true, Ordering::SeqCst) {
                    smtp::Act::Say("554 5.7.1 we do not like it".into())
                } else {
                    smtp::Act::Properly
                }
            })
            .start();
        let mut bench = Bench::new(&from, &to);
        bench.item.on_reject = policy;
        let report = bench.poll_well().await;
        assert_eq!(report.counters.rejected, 1);
        once_each(&to, arrived);
        assert_eq!(from.uids().len(), left, "{policy:?}");
    }
}

// quirks: "Honour `LOGIN-DELAY n` and `EXPIRE 0` capabilities"
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_expires_at_once_hears_no_quit_while_mail_is_undelivered() {
    let capabilities = ["UIDL", "USER", "PIPELINING", "EXPIRE 0", "LOGIN-DELAY 300"];
    let from = Pop3::new().capabilities(Some(&capabilities)).generated("m", 4, 500).start();
    let refused = AtomicBool::new(false);
    let to = Smtp::new()
        .script(move |call| {
            if call.verb == "." && call.holds("m-00002") && !refused.swap(true, Ordering::SeqCst) {
                smtp::Act::Say("451 4.3.0 later".into())
            } else {
                smtp::Act::Properly
            }
        })
        .start();
    let mut bench = Bench::new(&from, &to);
    bench.item.leave = true;
    let report = bench.poll_well().await;
    assert_eq!(report.login_delay, Some(Duration::from_mins(5)));
    assert_eq!((report.counters.delivered, from.count("QUIT")), (3, 0));
    bench.poll_well().await;
    once_each(&to, 4);
    assert_eq!(from.count("QUIT"), 1);
}

// quirks: "Equal UIDs for different messages in one listing"
#[tokio::test(flavor = "multi_thread")]
async fn equal_uids_of_different_messages_lose_none_and_repeat_none() {
    for leave in [true, false] {
        let from = Pop3::new()
            .mail("same", &message("a-1", 500))
            .mail("same", &message("a-2", 500))
            .mail("same", &message("a-3", 700))
            .mail("own", &message("b-1", 500))
            .start();
        let to = Smtp::new().start();
        let mut bench = Bench::new(&from, &to);
        bench.item.leave = leave;
        bench.poll_well().await;
        once_each(&to, 4);
        assert_eq!(from.uids().len(), if leave { 4 } else { 0 });
        let retrieved = from.retrieved().len();
        bench.poll_well().await;
        bench.poll_well().await;
        once_each(&to, 4);
        assert_eq!(from.retrieved().len(), retrieved, "nothing is fetched for ever");
        from.put("same", &message("a-4", 500));
        bench.poll_well().await;
        bench.poll_well().await;
        once_each(&to, 5);
    }
}

// quirks: "UIDL missing while `leave` is on"
#[tokio::test(flavor = "multi_thread")]
async fn without_uidl_mail_can_be_moved_but_not_left() {
    let from = Pop3::new()
        .generated("m", 10, 500)
        .script(|call| if call.verb == "UIDL" { pop3::Act::line("-ERR what?") } else { pop3::Act::Properly })
        .start();
    let to = Smtp::new().start();
    let mut bench = Bench::new(&from, &to);
    bench.item.leave = true;
    let error = bench.poll().await.result.unwrap_err();
    assert_eq!(error.code, Code::UidlMissing);
    assert!(error.message.contains("leave"), "{error}");
    assert_eq!(to.accepted(), 0);
    bench.item.leave = false;
    bench.poll_well().await;
    once_each(&to, 10);
    assert_eq!(from.uids().len(), 0);
    assert_eq!(bench.ledger().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_uidl_only_what_is_gone_is_forgotten() {
    let from = Pop3::new()
        .generated("m", 3, 300)
        .script(|call| if call.verb == "UIDL" { pop3::Act::line("-ERR what?") } else { pop3::Act::Properly })
        .start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    let today = day_of(jiff::Timestamp::now().as_second());
    let mut before = Ledger::new([7; 16]);
    let entry = |state| Entry { state, day: today, size: 9, message_id: 0, digest: 5 };
    let reason = "452 full".into();
    let owed = State::Owed { attempts: 1, next_try: i64::MAX, reason, to: [1].into(), reached: true };
    before.apply(&Change::Put { uid: b"no-uidl:1".as_slice().into(), entry: entry(State::Deleting) });
    before.apply(&Change::Put { uid: b"no-uidl:2".as_slice().into(), entry: entry(owed.clone()) });
    before.apply(&Change::Copy { message_id: 1, digest: 1, day: today - 31 });
    before.apply(&Change::Copy { message_id: 2, digest: 2, day: today - 29 });
    bench.memory.ledgers.lock().unwrap().insert(bench.item.key.clone(), before);
    bench.poll_well().await;
    once_each(&to, 3);
    let after = bench.ledger();
    let states: Vec<State> = after.iter().map(|(_, entry)| entry.state).collect();
    assert_eq!(states, [owed, State::Copy]);
    assert_eq!(after.copies(today).collect::<Vec<_>>(), [(2, 2)]);
}

// quirks: "DELE answered with garbage on some messages; QUIT answered `-ERR` or dropped"
#[tokio::test(flavor = "multi_thread")]
async fn deletions_that_did_not_happen_are_made_up_for() {
    let acts = [
        ("QUIT", pop3::Act::line("-ERR some messages not removed")),
        ("QUIT", pop3::Act::Close),
        ("DELE", pop3::Act::line("what is this")),
        ("DELE", pop3::Act::Close),
    ];
    for (verb, act) in acts {
        let from = Pop3::new()
            .generated("m", 30, 500)
            .script(move |call| {
                let odd = call.session == 1 && call.verb == verb && (verb == "QUIT" || call.number() == 9);
                if odd { act.clone() } else { pop3::Act::Properly }
            })
            .start();
        let to = Smtp::new().start();
        let bench = Bench::new(&from, &to);
        bench.poll().await;
        bench.poll_well().await;
        once_each(&to, 30);
        assert_eq!(from.uids().len(), 0, "nothing is orphaned");
    }
}

// quirks: "A temporarily refused message in the middle of the mailbox is retried later"
// RFC 1939, section 7: a UID is not reused "for as long as the entity using the
// unique-id exists", hence may be afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn new_mail_under_the_uids_and_with_the_sizes_of_deleted_mail_is_not_taken_for_it() {
    let from = Pop3::new().start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    for round in 1..=4 {
        for number in 1..=5 {
            from.put(&number.to_string(), &message(&format!("r{round}-{number}"), 500));
        }
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, report.counters.deleted), (5, 5), "round {round}");
        once_each(&to, 5 * round);
        assert_eq!(from.uids().len(), 0);
        assert_eq!(bench.ledger().len(), 5, "what is gone for good is forgotten");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hands_nothing_over_for_now_is_busy_and_no_message_loses_its_place() {
    let from = Pop3::new()
        .generated("m", 40, 500)
        .script(|call| match (call.session, call.verb) {
            (1, "RETR") => pop3::Act::line("-ERR [SYS/TEMP] the store is away"),
            _ => pop3::Act::Properly,
        })
        .start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    let failed = bench.poll().await.result.unwrap_err();
    assert_eq!(failed.code, Code::ServerBusy);
    assert!(failed.message.contains("the store is away"), "{failed}");
    assert_eq!(bench.quarantined(), 0);
    bench.poll_well().await;
    once_each(&to, 40);

    // What is refused alone, with the same words, is set aside.
    let from = Pop3::new()
        .generated("m", 40, 500)
        .script(|call| match (call.number(), call.verb) {
            (7, "RETR") => pop3::Act::line("-ERR [SYS/TEMP] the store is away"),
            _ => pop3::Act::Properly,
        })
        .start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    bench.poll_well().await;
    once_each(&to, 39);
    assert_eq!(bench.quarantined(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_sizes_cost_no_message() {
    let from = Pop3::new().generated("m", 5, 500).start();
    from.edit(|mail| {
        mail[1].size = Some(u64::MAX);
        mail[3].size = Some(u64::MAX - 1);
    });
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    bench.poll_well().await;
    once_each(&to, 5);
}

// A destination that refuses senders does so at RCPT.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_go_to_the_postmaster_hold_up_nobody() {
    let from = Pop3::new().generated("m", 50, 500).start();
    let refused = AtomicUsize::new(0);
    let to = Smtp::new()
        .script(move |call| {
            let bob = call.verb == "RCPT" && call.argument.contains("bob@");
            if bob && refused.fetch_add(1, Ordering::SeqCst) < 30 {
                smtp::Act::Say("554 5.7.1 your sender is on a list".into())
            } else {
                smtp::Act::Properly
            }
        })
        .start();
    let mut bench = Bench::new(&from, &to);
    bench.item.on_reject = OnReject::Postmaster;
    let report = bench.poll_well().await;
    assert_eq!((report.counters.rejected, report.counters.delivered), (30, 50));
    once_each(&to, 50);
    let to_postmaster =
        to.commands().iter().filter(|(_, said)| said.contains("RCPT TO:<postmaster@")).count();
    assert_eq!(to_postmaster, 30);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_refused_for_now_is_tried_at_the_next_poll() {
    let from = Pop3::new().generated("m", 10, 500).start();
    let times = AtomicUsize::new(0);
    let to = Smtp::new()
        .script(move |call| {
            if call.verb == "." && call.holds("m-00003") && times.fetch_add(1, Ordering::SeqCst) == 0 {
                smtp::Act::Say("451 4.3.0 later".into())
            } else {
                smtp::Act::Properly
            }
        })
        .start();
    let bench = Bench::new(&from, &to);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.deferred), (9, 1));
    bench.poll_well().await;
    once_each(&to, 10);
    assert_eq!(from.uids().len(), 0);
}

// quirks: "connection lost after the dot and before the reply (outcome unknown): retried once"
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_tried_once_more_and_then_set_aside() {
    let from = Pop3::new().generated("m", 3, 500).start();
    let to = Smtp::new()
        .extensions(&["SIZE 0"])
        .script(|call| {
            if call.verb == "." && call.holds("m-00001") { smtp::Act::Close } else { smtp::Act::Properly }
        })
        .start();
    let bench = Bench::new(&from, &to);
    bench.poll().await;
    assert_eq!(bench.ledger().iter().filter(|(_, entry)| entry.state == State::Uncertain).count(), 1);
    bench.poll().await;
    assert_eq!(bench.quarantined(), 1);
    bench.poll_well().await;
    once_each(&to, 2);
    assert_eq!(from.uids(), ["m-00001"]);
    assert_eq!(from.retrieved().iter().filter(|uid| *uid == "m-00001").count(), 2);
}

// quirks: "mass UID change after a server migration"
#[tokio::test(flavor = "multi_thread")]
async fn a_mass_change_of_uids_goes_as_the_record_says() {
    for (policy, arrived) in
        [(OnUidChange::Pause, 30), (OnUidChange::MatchMessageId, 31), (OnUidChange::Fetch, 31)]
    {
        let from = Pop3::new().generated("m", 30, 500).start();
        let to = Smtp::new().start();
        let mut bench = Bench::new(&from, &to);
        (bench.item.leave, bench.item.on_uid_change) = (true, policy);
        bench.poll_well().await;
        from.edit(|mail| mail.iter_mut().for_each(|mail| mail.uid.insert(0, b'x')));
        from.put("new", &message("new-1", 500));
        let report = bench.poll().await;
        match policy {
            OnUidChange::Pause => assert_eq!(report.result.unwrap_err().code, Code::UidsChanged),
            OnUidChange::MatchMessageId => {
                assert_eq!((report.counters.delivered, report.counters.duplicates), (1, 30));
            }
            OnUidChange::Fetch => assert_eq!(report.counters.delivered, 31),
        }
        assert_eq!(to.marks().len(), arrived);
        if policy != OnUidChange::Pause {
            assert_eq!(bench.poll_well().await.counters.fetched, 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_kept_and_a_raised_one_counts_at_once() {
    let from = Pop3::new().mail("big", &message("big-1", 5000)).generated("m", 5, 500).start();
    let to = Smtp::new().start();
    let mut bench = Bench::new(&from, &to);
    bench.item.limits = Limits { message_size: Some(1000), messages_per_session: Some(3) };
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.quarantined), (3, 1));
    bench.poll_well().await;
    once_each(&to, 5);
    bench.item.limits.message_size = None;
    bench.poll_well().await;
    once_each(&to, 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_at_a_message_and_loses_nothing() {
    let from = Pop3::new().generated("m", 400, 4000).start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    let (stop, stage) = watch::channel(Stage::Running);
    let poll = bench.engine.poll(&bench.item, &bench.settings, stage);
    let stopper = async {
        while to.accepted() < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stop.send(Stage::Draining).unwrap();
    };
    let (report, ()) = tokio::join!(poll, stopper);
    assert!(report.result.is_ok(), "{report:?}");
    assert_eq!(report.counters.delivered, report.counters.deleted);
    bench.poll_well().await;
    once_each(&to, 400);
}

/// Where another login would be refused, a message that breaks the session is
/// set aside at once: else it would break every poll.
#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_does_not_block_a_server_with_a_login_delay() {
    let from = Pop3::new()
        .capabilities(Some(&["UIDL", "USER", "LOGIN-DELAY 300"]))
        .generated("m", 3, 500)
        .script(|call| match (call.verb, call.number(), call.session) {
            ("RETR", 1, _) => pop3::Act::Close,
            ("PASS", _, 2) => pop3::Act::line("-ERR [LOGIN-DELAY] not so fast"),
            _ => pop3::Act::Properly,
        })
        .start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    assert_eq!(bench.poll().await.result.unwrap_err().code, Code::LoginDelay);
    bench.poll_well().await;
    once_each(&to, 2);
    assert_eq!(from.uids(), ["m-00000"]);
}

/// A server that breaks at every message is not a mailbox of bad messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_for_a_while_costs_no_message_its_place() {
    let from =
        Pop3::new()
            .generated("m", 12, 500)
            .script(|call| {
                if call.verb == "RETR" && call.session <= 3 { pop3::Act::Close } else { pop3::Act::Properly }
            })
            .start();
    let to = Smtp::new().start();
    let bench = Bench::new(&from, &to);
    let report = bench.poll().await;
    assert_eq!(report.result.unwrap_err().code, Code::ConnectionLost);
    assert_eq!((report.counters.quarantined, from.sessions()), (0, 3), "few logins, nothing set aside");
    bench.poll_well().await;
    once_each(&to, 12);
}

/// One message that breaks every session is set aside, the others arrive in
/// the same poll.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_breaks_every_session_is_set_aside() {
    for bad in [1, 5, 8] {
        let from = Pop3::new()
            .generated("m", 8, 500)
            .script(move |call| {
                if call.verb == "RETR" && call.argument == bad.to_string() && call.session <= 3 {
                    pop3::Act::Close
                } else {
                    pop3::Act::Properly
                }
            })
            .start();
        let to = Smtp::new().start();
        let mut bench = Bench::new(&from, &to);
        bench.item.leave = true;
        let report = bench.poll_well().await;
        assert_eq!((report.counters.quarantined, report.counters.delivered), (1, 7), "{bad}");
        once_each(&to, 7);
        assert_eq!(bench.quarantined(), 1);
    }
}

/// `onReject: Discard` is for messages, not for accounts that do not exist.
#[tokio::test(flavor = "multi_thread")]
async fn discard_needs_a_word_on_the_message() {
    for verb in ["MAIL", "RCPT", "DATA"] {
        let from = Pop3::new().generated("m", 30, 500).start();
        let to = Smtp::new()
            .script(move |call| {
                if call.verb == verb {
                    smtp::Act::Say("550 5.1.1 no such user".into())
                } else {
                    smtp::Act::Properly
                }
            })
            .start();
        let mut bench = Bench::new(&from, &to);
        bench.item.on_reject = OnReject::Discard;
        bench.poll().await;
        bench.poll().await;
        assert_eq!(from.uids().len(), 30, "{verb}: nothing is deleted");
    }
}
