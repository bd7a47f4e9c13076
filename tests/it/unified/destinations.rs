//! Several destinations, and recipients that are owed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use rpop::domain::code::Code;
use rpop::engine::report::Counters;

use super::*;
use crate::support::pop3::Pop3;
use crate::support::smtp::Smtp;

const BOTH: [&str; 3] = ["al@local.test", "bo@second.test", "cy@local.test"];

#[tokio::test(flavor = "multi_thread")]
async fn each_destination_gets_its_recipients_from_a_retrieval_of_its_own() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &BOTH, 500)).start();
    let (first, second) = (Smtp::new().start(), Smtp::lmtp().start());
    let mut bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&store(&second, "second.test")));
    for leave in [true, false] {
        bench.item.leave = leave;
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, report.counters.fetched), (1, 1), "one message");
        from.put("u2", &enveloped("m-2", &BOTH, 500));
    }
    for mark in ["m-1", "m-2"] {
        assert_eq!(got(&first, mark), [rcpt(&["al@local.test", "cy@local.test"], FAILURE)]);
        assert_eq!(got(&second, mark), [rcpt(&["bo@second.test"], "")]);
    }
    assert_eq!(from.retrieved(), ["u1", "u1", "u2", "u2"]);
    assert_eq!(bench.owed(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_away_holds_up_only_its_own_recipients() {
    let mut pop = Pop3::new();
    for at in 0..5 {
        pop = pop
            .mail(&format!("both-{at}"), &enveloped(&format!("both-{at}"), &BOTH, 500))
            .mail(&format!("one-{at}"), &enveloped(&format!("one-{at}"), &["al@local.test"], 500))
            .mail(&format!("other-{at}"), &enveloped(&format!("other-{at}"), &["bo@second.test"], 500));
    }
    let from = pop.start();
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let first = Smtp::new().start();
    let second = Smtp::new()
        .script(
            move |call| {
                if call.verb == "CONNECT" && is_down.load(SeqCst) { Act::Close } else { Act::Properly }
            },
        )
        .start();
    let bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&queue(&second, "second.test")));
    let report = bench.poll().await;
    assert_eq!(report.result.as_ref().unwrap_err().code, Code::DestinationUnavailable, "{report:?}");
    assert_eq!((report.counters.delivered, report.counters.deleted), (10, 5));
    assert_eq!((first.accepted(), second.accepted()), (10, 0));
    assert_eq!(bench.owed(), [(1, 1, true); 5]);
    // What is owed to it alone is not retrieved once it is known to be down;
    // what is known of it only by its header is, once.
    let retrieved = from.retrieved();
    assert!(retrieved.len() <= 15 + 5, "{retrieved:?}");
    let others = retrieved.iter().filter(|uid| uid.starts_with("other")).count();
    assert_eq!(others, 5);

    down.store(false, SeqCst);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.deleted), (5, 10), "five were reached before");
    assert_eq!((first.accepted(), second.accepted()), (10, 10));
    assert!(second.mail().iter().all(|mail| recipients(mail) == rcpt(&["bo@second.test"], FAILURE)));
    assert!(from.uids().is_empty() && bench.owed().is_empty());
}

/// As the controller hands on a domain with errors.
#[tokio::test(flavor = "multi_thread")]
async fn mail_for_a_domain_that_leads_nowhere_is_owed_until_the_domain_is_mended() {
    for special in [header(), Special::Addressees] {
        let to = ["al@local.test", "bo@second.test"];
        let mail = [enveloped("m-1", &to, 500), addressed("m-1", &format!("To: {}\r\n", to.join(", ")), 500)];
        let of = usize::from(special == Special::Addressees);
        let from = Pop3::new().mail("u1", &mail[of]).start();
        let (first, second) = (Smtp::new().start(), Smtp::new().start());
        let nowhere = Arc::new(Destination { domain: "second.test".into(), ..Destination::default() });
        let main = queue(&first, "local.test");
        let mut bench = bench(&from, &first, special, &main, Some(&nowhere));
        let failed = bench.poll().await.result.unwrap_err();
        assert!(failed.message.contains("second.test"), "{failed}");
        assert_eq!((first.accepted(), bench.owed()), (1, vec![(1, 1, true)]));
        bench.hurry(&["u1"]);
        bench.change(|unified| unified.domains[1].destination = queue(&second, "second.test"));
        bench.poll_well().await;
        assert_eq!((first.accepted(), second.accepted(), from.uids().len()), (1, 1, 0));
    }
}

/// As for any other record.
#[tokio::test(flavor = "multi_thread")]
async fn the_only_destination_s_absence_ends_the_poll() {
    let from = Pop3::new()
        .mail("u1", &enveloped("m-1", &["al@local.test"], 500))
        .mail("u2", &enveloped("m-2", &["al@local.test"], 200_000))
        .start();
    let to =
        Smtp::new().script(|call| if call.verb == "CONNECT" { Act::Close } else { Act::Properly }).start();
    let bench = simple(&from, &to, header());
    let report = bench.poll().await;
    assert_eq!(report.result.unwrap_err().code, Code::DestinationUnavailable);
    assert_eq!((from.uids().len(), bench.ledger().len()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_refused_for_now_gets_it_later_and_nobody_else() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &["al@local.test", "bo@local.test"], 500)).start();
    let times = AtomicUsize::new(0);
    let to = Smtp::new()
        .script(move |call| {
            let hit = call.verb == "RCPT" && call.argument.contains("bo@") && times.fetch_add(1, SeqCst) < 2;
            if hit { Act::Say("450 4.2.1 later".into()) } else { Act::Properly }
        })
        .start();
    let bench = simple(&from, &to, header());
    let report = bench.poll_well().await;
    let Counters { delivered, deferred, waiting, .. } = report.counters;
    assert_eq!((delivered, deferred, waiting), (1, 1, 1));
    assert_eq!(bench.owed(), [(1, 1, true)]);
    // The next poll tries, in vain, and then there is a pause.
    let report = bench.poll_well().await;
    let Counters { delivered, deferred, waiting, .. } = report.counters;
    assert_eq!((delivered, deferred, waiting), (0, 1, 1));
    assert_eq!(bench.owed(), [(2, 1, true)]);
    let report = bench.poll_well().await;
    assert_eq!(from.retrieved().len(), 2, "not yet");
    let Counters { deferred, waiting, in_quarantine, .. } = report.counters;
    assert_eq!((deferred, waiting, in_quarantine), (0, 1, 0), "it waits, and nothing is wrong with it");
    bench.hurry(&["u1"]);
    let report = bench.poll_well().await;
    let Counters { delivered, deleted, waiting, .. } = report.counters;
    assert_eq!((delivered, deleted, waiting), (0, 1, 0), "it was delivered before");
    assert_eq!(got(&to, "m-1"), [rcpt(&["al@local.test"], FAILURE), rcpt(&["bo@local.test"], FAILURE)]);
    assert!(from.uids().is_empty() && bench.owed().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_nothing_settled_is_fetched_by_the_next_poll() {
    for octets in [500, 200_000] {
        let from = Pop3::new().mail("u1", &enveloped("m-1", &["al@local.test"], octets)).start();
        let times = AtomicUsize::new(0);
        let to = Smtp::new()
            .script(move |call| {
                let hit = call.verb == "RCPT" && times.fetch_add(1, SeqCst) < 1;
                if hit { Act::Say("450 4.2.1 later".into()) } else { Act::Properly }
            })
            .start();
        let bench = simple(&from, &to, header());
        let report = bench.poll_well().await;
        assert_eq!((report.counters.deferred, from.retrieved().len()), (1, 1));
        assert_eq!(bench.owed(), [(1, 1, false)], "later polls take new mail first");
        bench.poll_well().await;
        assert_eq!(got(&to, "m-1").len(), 1);
        assert!(from.uids().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_are_owed_like_small_ones() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &BOTH, 400_000)).start();
    let times = AtomicUsize::new(0);
    let first = Smtp::new().with("CHUNKING").start();
    let second = Smtp::new()
        .with("CHUNKING")
        .script(move |call| {
            let hit = call.verb == "RCPT" && times.fetch_add(1, SeqCst) < 1;
            if hit { Act::Say("450 4.2.1 later".into()) } else { Act::Properly }
        })
        .start();
    let bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&queue(&second, "second.test")));
    bench.poll_well().await;
    assert_eq!(bench.owed(), [(1, 1, true)]);
    bench.poll_well().await;
    for (server, to) in [(&first, &["al@local.test", "cy@local.test"][..]), (&second, &["bo@second.test"])] {
        assert_eq!(got(server, "m-1"), [rcpt(to, FAILURE)]);
        assert_eq!(server.messages()[0].original(), message("m-1", 400_000));
    }
    assert_eq!(from.retrieved().len(), 3);
    assert!(from.uids().is_empty());
}

/// `*`: those that were refused are settled, those that were not get it.
#[tokio::test(flavor = "multi_thread")]
async fn with_a_star_the_owed_alone_are_tried_again() {
    let text = addressed("m-1", "To: no@local.test, bo@local.test\r\n", 500);
    let from = Pop3::new().mail("u1", &text).start();
    let times = AtomicUsize::new(0);
    let to = Smtp::new()
        .script(move |call| match call.verb {
            "RCPT" if call.argument.contains("no@") => Act::Say("550 5.1.1 unknown".into()),
            "RCPT" if call.argument.contains("bo@") && times.fetch_add(1, SeqCst) < 1 => {
                Act::Say("451 4.3.0 later".into())
            }
            _ => Act::Properly,
        })
        .start();
    let bench = simple(&from, &to, Special::Addressees);
    bench.poll_well().await;
    assert_eq!((bench.owed(), to.accepted()), (vec![(1, 1, false)], 0));
    let report = bench.poll_well().await;
    assert_eq!(report.counters.delivered, 1);
    assert_eq!(got(&to, "m-1"), [rcpt(&["bo@local.test"], NEVER)]);
    let asked = to.commands().iter().filter(|(_, line)| line.contains("no@")).count();
    assert_eq!(asked, 1, "not asked for again");
}

/// Equal UIDs and none at all: what a message is, only its octets say.
#[tokio::test(flavor = "multi_thread")]
async fn the_owed_are_known_where_uids_do_not_tell_messages_apart() {
    for (uidl, octets) in [(true, 500), (true, 200_000), (false, 500), (false, 200_000)] {
        let from = Pop3::new()
            .mail("same", &enveloped("m-2", &["al@local.test"], octets))
            .mail("same", &enveloped("m-1", &["al@local.test", "bo@local.test"], octets))
            .script(move |call| {
                use crate::support::pop3;
                if call.verb == "UIDL" && !uidl { pop3::Act::line("-ERR what?") } else { pop3::Act::Properly }
            })
            .start();
        let to = puts_bo_off_once();
        let bench = simple(&from, &to, header());
        bench.poll_well().await;
        assert_eq!(bench.owed(), [(1, 1, true)], "{uidl} {octets}");
        bench.poll_well().await;

        assert_eq!(got(&to, "m-1"), [rcpt(&["al@local.test"], FAILURE), rcpt(&["bo@local.test"], FAILURE)]);
        assert_eq!(got(&to, "m-2"), [rcpt(&["al@local.test"], FAILURE)]);
        assert!(from.uids().is_empty() && bench.owed().is_empty());
    }
}

/// A server without UIDs is asked for everything each time, destinations are
/// not.
#[tokio::test(flavor = "multi_thread")]
async fn without_uids_the_owed_are_left_in_peace_for_a_while_too() {
    use crate::support::pop3;
    for octets in [500, 200_000] {
        let from = Pop3::new()
            .mail("u1", &enveloped("m-1", &["al@local.test", "bo@local.test"], octets))
            .script(|call| if call.verb == "UIDL" { pop3::Act::line("-ERR") } else { pop3::Act::Properly })
            .start();
        let to = Smtp::new().script(refusing(&[("bo@", "450 4.2.1 later")])).start();
        let bench = simple(&from, &to, header());
        for (poll, attempts, asked) in [(1, 1, 1), (2, 2, 2), (3, 2, 2)] {
            let report = bench.poll_well().await;
            assert_eq!(report.counters.waiting, 1, "{octets} {poll}");
            assert_eq!(bench.owed(), [(attempts, 1, true)], "{octets} {poll}");
            let commands = to.commands();
            // A large one is asked about before it is known for what it is.
            let asks = commands.iter().filter(|(_, line)| line.contains("RCPT TO:<bo@")).count();
            assert!(asks == asked || octets > 100_000, "{octets} {poll}: {asks}");
        }
        assert_eq!((to.accepted(), from.uids().len()), (1, 1));
    }
}

/// A domain without any delivery waits, the others do not.
#[tokio::test(flavor = "multi_thread")]
async fn a_domain_without_a_delivery_holds_up_nobody_else() {
    let from = Pop3::new().mail("u1", &enveloped("m-1", &BOTH, 500)).start();
    let to = Smtp::new().start();
    let nowhere = Arc::new(Destination { domain: "second.test".into(), ..Destination::default() });
    let bench = bench(&from, &to, header(), &queue(&to, "local.test"), Some(&nowhere));
    let report = bench.poll().await;
    let error = report.result.unwrap_err();
    assert!(error.message.contains("second.test"), "{error}");
    assert_eq!(got(&to, "m-1"), [rcpt(&["al@local.test", "cy@local.test"], FAILURE)]);
    assert_eq!(bench.owed(), [(1, 1, true)]);
}

/// A message that cannot be had any more stays owed to those who lack it.
#[tokio::test(flavor = "multi_thread")]
async fn a_retrieval_that_fails_between_two_destinations_forgets_nobody() {
    use crate::support::pop3;
    let from = Pop3::new()
        .mail("u1", &enveloped("m-1", &BOTH, 500))
        .script(|call| {
            let second = call.verb == "RETR" && call.nth == 2 && call.session == 1;
            if second { pop3::Act::line("-ERR [SYS/TEMP] not now") } else { pop3::Act::Properly }
        })
        .start();
    let (first, second) = (Smtp::new().start(), Smtp::new().start());
    let bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&queue(&second, "second.test")));
    bench.poll().await;
    assert_eq!((bench.owed(), bench.quarantined()), (vec![(1, 1, true)], 0));
    bench.poll_well().await;
    assert_eq!((first.accepted(), second.accepted()), (1, 1));
    assert!(from.uids().is_empty());
}

/// RFC 2449, section 6.7: it would delete at QUIT what somebody is still owed.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_expires_at_once_hears_quit_only_when_all_have_it() {
    let capabilities = ["UIDL", "USER", "PIPELINING", "EXPIRE 0"];
    let from =
        Pop3::new().capabilities(Some(&capabilities)).mail("u1", &enveloped("m-1", &BOTH, 500)).start();
    let first = Smtp::new().start();
    let times = AtomicUsize::new(0);
    let second = Smtp::new()
        .script(move |call| {
            let hit = call.verb == "RCPT" && times.fetch_add(1, SeqCst) < 1;
            if hit { Act::Say("450 4.2.1 later".into()) } else { Act::Properly }
        })
        .start();
    let mut bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&queue(&second, "second.test")));
    bench.item.leave = true;
    bench.poll_well().await;
    assert_eq!((bench.owed(), from.count("QUIT")), (vec![(1, 1, true)], 0));
    bench.poll_well().await;
    assert_eq!(from.count("QUIT"), 1);
    from.put("u2", &enveloped("m-2", &BOTH, 500));
    bench.poll_well().await;
    assert_eq!((from.count("QUIT"), second.accepted()), (2, 2), "two retrievals are one message");
}

/// A shutdown ends at a message, and the next process goes on there.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_between_two_destinations_forgets_nobody() {
    use rpop::engine::ports::Stage;
    let mut pop = Pop3::new();
    for at in 0..40 {
        pop = pop.mail(&format!("u{at}"), &enveloped(&format!("m-{at}"), &BOTH, 500));
    }
    let from = pop.start();
    let (stop, stage) = tokio::sync::watch::channel(Stage::Running);
    let first = Smtp::new()
        .script(move |call| {
            if call.verb == "." && call.accepted == 5 {
                stop.send_replace(Stage::Draining);
            }
            Act::Properly
        })
        .start();
    let second = Smtp::lmtp().start();
    let bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&store(&second, "second.test")));
    let report = bench.engine.poll(&bench.item, &bench.settings, stage).await;
    assert!(report.result.is_ok(), "{report:?}");
    assert!(!bench.owed().is_empty(), "what was retrieved once is not retrieved again");
    bench.poll_well().await;
    crate::bench::once_each(&first, 40);
    crate::bench::once_each(&second, 40);
    assert!(from.uids().is_empty() && bench.owed().is_empty());
}

/// A destination goes down while messages wait for their turn with it: they
/// are not retrieved for that.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_nowhere_else_to_go_is_not_retrieved() {
    use crate::support::{pop3, wait_until};
    let (asked, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (asks, is_asked) = (Arc::clone(&asked), Arc::clone(&asked));
    let (loses, is_lost) = (Arc::clone(&lost), Arc::clone(&lost));
    let mut pop =
        Pop3::new().capabilities(Some(&["UIDL", "USER"])).mail("u0", &enveloped("m-0", &BOTH[1..2], 500));
    for at in 1..5 {
        pop = pop.mail(&format!("u{at}"), &enveloped(&format!("m-{at}"), &BOTH, 500));
    }
    // The last one is long in coming (that it comes is what shows that the one
    // before it is whole). Meanwhile the first destination answers for two, and
    // then the second one is found to be away.
    let from = pop
        .script(move |call| {
            if call.verb == "RETR" && call.number() == 5 {
                asks.store(true, SeqCst);
                wait_until("the second destination is away", || is_lost.load(SeqCst));
                std::thread::sleep(std::time::Duration::from_millis(200));
            }
            pop3::Act::Properly
        })
        .start();
    let first = Arc::new(
        Smtp::new()
            .script(move |call| {
                if call.verb == "." {
                    wait_until("the last message is asked for", || is_asked.load(SeqCst));
                }
                Act::Properly
            })
            .start(),
    );
    let answered = Arc::clone(&first);
    let second = Smtp::lmtp()
        .script(move |call| {
            if call.verb == "CONNECT" {
                wait_until("the first destination has answered", || answered.accepted() == 2);
                std::thread::sleep(std::time::Duration::from_millis(100));
                loses.store(true, SeqCst);
                return Act::Close;
            }
            Act::Properly
        })
        .start();
    let bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&store(&second, "second.test")));
    let report = bench.poll().await;
    assert_eq!(report.result.unwrap_err().code, Code::DestinationUnavailable);
    assert_eq!((first.accepted(), bench.owed().len()), (4, 4));
    assert_eq!(from.retrieved(), ["u0", "u1", "u2", "u3", "u4"]);
}

/// Sessions that break make others follow within one poll: what is owed waits
/// for the next poll all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_poll_of_several_sessions_tries_each_message_once() {
    use crate::support::pop3;
    let from = Pop3::new()
        .mail("u1", &enveloped("m-1", &["al@local.test", "bo@local.test"], 500))
        .mail("u2", &enveloped("m-2", &["bo@local.test"], 500))
        .mail("u3", &enveloped("m-3", &["al@local.test"], 500))
        .mail("u4", &enveloped("m-4", &["al@local.test"], 500))
        .script(|call| {
            let breaks = call.verb == "RETR" && call.number() == 4 && call.session == 1;
            if breaks { pop3::Act::Close } else { pop3::Act::Properly }
        })
        .start();
    let to = Smtp::new().script(refusing(&[("bo@", "450 4.2.1 later")])).start();
    let bench = simple(&from, &to, header());
    let report = bench.poll_well().await;
    assert_eq!((from.sessions(), report.counters.delivered), (2, 3));
    let retrieved = from.retrieved();
    let owed = retrieved.iter().filter(|uid| ["u1", "u2"].contains(&uid.as_str()));
    assert_eq!(owed.count(), 2, "{retrieved:?}");
    assert_eq!(bench.owed(), [(1, 1, true), (1, 1, false)]);
}

/// Recipients who were refused by one destination are told when the queue for
/// that is there again.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_queue_is_away_nobody_is_told_and_nothing_is_done_with() {
    let down = Arc::new(AtomicBool::new(true));
    let is_down = Arc::clone(&down);
    let from = Pop3::new()
        .mail("u1", &enveloped("m-1", &["al@local.test"], 500))
        .mail("u2", &enveloped("m-2", &["bo@second.test", "bad@second.test"], 500))
        .mail("u3", &enveloped("m-3", &["bad@second.test"], 500))
        .mail("u4", &message("m-4", 500))
        .start();
    let first = Smtp::new()
        .script(
            move |call| {
                if call.verb == "CONNECT" && is_down.load(SeqCst) { Act::Close } else { Act::Properly }
            },
        )
        .start();
    let second = Smtp::lmtp().script(refusing(&[("bad@", "550 5.1.1 unknown")])).start();
    let bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&store(&second, "second.test")));
    let report = bench.poll().await;
    assert_eq!(report.result.unwrap_err().code, Code::DestinationUnavailable);
    assert_eq!((got(&second, "m-2").len(), from.uids().len()), (1, 4));
    assert_eq!(bench.owed(), [(1, 1, true), (1, 1, false)]);
    down.store(false, SeqCst);
    let report = bench.poll_well().await;
    assert_eq!((from.uids().len(), second.accepted(), first.accepted()), (0, 1, 4), "{report:?}");
    let told =
        first.mail().iter().filter(|mail| recipients(mail) == rcpt(&["author@sender.test"], NEVER)).count();
    assert_eq!(told, 2);
    assert_eq!(got(&first, "m-4"), [rcpt(&["postmaster@local.test"], NEVER)]);
}
