//! Destinations that refuse everybody, and messages of which nobody can be
//! told: nothing is deleted that nobody got and nobody heard of.

use rpop::domain::code::Code;

use super::*;
use crate::support::pop3::Pop3;
use crate::support::smtp::Smtp;

/// One after the other, as a server sees them that is asked for one at a time.
fn many(count: usize, to: &str) -> Pop3 {
    (0..count)
        .fold(Pop3::new(), |pop, at| pop.mail(&format!("u{at}"), &enveloped(&format!("m-{at}"), &[to], 500)))
}

/// A Postfix that does not know the domain; a Dovecot that knows nobody by
/// that name; one that wants a password; and one that takes RCPT and then no
/// mail.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_refuses_everybody_costs_no_message() {
    let cases = [
        ("RCPT", "554 5.7.1 Relay access denied", false),
        ("RCPT", "550 5.1.1 User doesn't exist", true),
        ("RCPT", "530 5.7.0 Authentication required", false),
        ("DATA", "554 5.7.1 no", false),
        (".", "554 5.3.0 read-only file system", true),
        (".", "554 5.3.0 transaction failed", false),
    ];
    for (verb, reply, lmtp) in cases {
        let from = many(30, "al@local.test").start();
        let to = if lmtp { Smtp::lmtp() } else { Smtp::new() };
        let to = to
            .script(move |call| if call.verb == verb { Act::Say(reply.into()) } else { Act::Properly })
            .start();
        let main = if lmtp { store(&to, "local.test") } else { queue(&to, "local.test") };
        let bench = bench(&from, &to, header(), &main, None);
        let report = bench.poll().await;
        assert_eq!((from.uids().len(), to.accepted()), (30, 0), "{verb} {reply} {report:?}");
        assert!(bench.quarantined() >= 10, "{verb} {reply} {report:?}");
        if verb != "." {
            let error = report.result.unwrap_err();
            assert_eq!(error.code, Code::MessageRejected, "{error}");
        }
    }
}

/// The queue takes notifications, and none of our mail.
#[tokio::test(flavor = "multi_thread")]
async fn senders_are_not_told_of_a_destination_that_refuses_everybody() {
    let from = many(30, "al@local.test").start();
    let to = Smtp::new().script(refusing(&[("@local.test", "550 5.1.1 unknown")])).start();
    let bench = simple(&from, &to, header());
    let error = bench.poll().await.result.unwrap_err();
    assert_eq!((error.code, to.accepted(), from.uids().len()), (Code::MessageRejected, 0, 30), "{error}");
    // It is mended, and nobody has lost anything.
    let uids: Vec<String> = from.uids();
    bench.hurry(&uids.iter().map(String::as_str).collect::<Vec<_>>());
    let mended = Smtp::new().start();
    let mut bench = bench;
    bench.item.destination = queue(&mended, "local.test");
    bench.change(|unified| unified.domains[0].destination = queue(&mended, "local.test"));
    bench.poll_well().await;
    crate::bench::once_each(&mended, 30);
    assert!(from.uids().is_empty());
}

/// The others' mail goes on, and so does what is told of that.
#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_destinations_that_refuses_everybody_holds_up_its_own_mail() {
    let mut pop = many(30, "bo@second.test");
    for at in 30..40 {
        pop = pop.mail(&format!("u{at}"), &enveloped(&format!("m-{at}"), &["al@local.test"], 500));
    }
    let from = pop.start();
    let first = Smtp::new().start();
    let second = Smtp::lmtp().script(refusing(&[("bo@", "550 5.1.1 unknown")])).start();
    let bench =
        bench(&from, &first, header(), &queue(&first, "local.test"), Some(&store(&second, "second.test")));
    let error = bench.poll().await.result.unwrap_err();
    assert_eq!((error.code, first.accepted(), from.uids().len()), (Code::MessageRejected, 10, 30), "{error}");
}

/// Few of them may well be unknown: the senders are told at the end.
#[tokio::test(flavor = "multi_thread")]
async fn a_few_unknown_recipients_are_believed_at_the_end_of_the_maildrop() {
    let from = many(9, "no@local.test").start();
    let to = Smtp::new().script(refusing(&[("no@", "550 5.1.1 unknown")])).start();
    let bench = simple(&from, &to, header());
    bench.poll_well().await;
    assert_eq!((to.accepted(), from.uids().len()), (9, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_got_and_nobody_could_be_told_of_stays() {
    let mail = String::from_utf8(enveloped("m-1", &["no@local.test"], 500)).unwrap();
    let null = mail.replacen("<author@sender.test>", "<>", 1);
    for mail in [mail, null] {
        let from = Pop3::new().mail("u1", mail.as_bytes()).start();
        let to = Smtp::new()
            .script(refusing(&[
                ("no@", "550 5.1.1 unknown"),
                ("author@", "550 no"),
                ("postmaster@", "550 no"),
            ]))
            .start();
        let bench = simple(&from, &to, header());
        for _ in 0..2 {
            let report = bench.poll_well().await;
            assert_eq!((bench.quarantined(), from.uids().len()), (1, 1), "{report:?}");
            bench.hurry(&["u1"]);
        }
        assert_eq!(from.retrieved().len(), 2, "it is tried again, and rarer and rarer");
    }
}
