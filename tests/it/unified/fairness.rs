//! What a destination puts off, or has enough of, does not hold up the mail of
//! others.

use rpop::domain::work::Limits;

use super::*;
use crate::support::pop3::Pop3;
use crate::support::smtp::Smtp;

/// So many for `bo`, and behind them so many for `al`.
fn behind(stuck: usize, fine: usize) -> Pop3 {
    (0..stuck + fine).fold(Pop3::new(), |pop, at| {
        let to = if at < stuck { "bo@local.test" } else { "al@local.test" };
        pop.mail(&format!("u{at}"), &both(&format!("m-{at}"), to))
    })
}

fn full() -> FakeSmtp {
    Smtp::new().script(refusing(&[("bo@", "452 4.2.2 mailbox full")])).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_full_does_not_hold_up_the_others() {
    for special in [header(), Special::Addressees] {
        let from = behind(40, 10).start();
        let to = full();
        let bench = simple(&from, &to, special);
        let report = bench.poll_well().await;
        assert_eq!((report.counters.delivered, to.accepted(), from.uids().len()), (10, 10, 40), "{report:?}");
        // Nor when there are so many that the poll ends at them.
        let from = behind(120, 10).start();
        let to = full();
        let bench = simple(&from, &to, header());
        let mut polls = 0;
        while to.accepted() < 10 {
            polls += 1;
            assert!(polls <= 4, "{} were delivered", to.accepted());
            bench.poll().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_s_limit_is_for_new_mail_first() {
    for special in [header(), Special::Addressees] {
        let from = behind(5, 10).start();
        let to = full();
        let mut bench = simple(&from, &to, special);
        bench.item.limits = Limits { message_size: None, messages_per_session: Some(5) };
        for _ in 0..4 {
            bench.poll().await;
        }
        assert_eq!((to.accepted(), from.uids().len()), (10, 5));
    }
}

/// And a fifth of it for what was tried before.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_off_has_its_turn_however_much_is_new() {
    let from = behind(5, 100).start();
    let to = puts_bo_off_once();
    let mut bench = simple(&from, &to, header());
    bench.item.limits = Limits { message_size: None, messages_per_session: Some(10) };
    bench.poll_well().await;
    assert_eq!((to.accepted(), bench.owed().len()), (9, 1));
    bench.poll_well().await;
    assert_eq!((to.accepted(), bench.owed().len()), (19, 0));
}

/// Postfix' `smtpd_hard_error_limit` is 20.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_many_unknown_recipients_reaches_the_one_that_is_known() {
    use std::collections::HashMap;
    use std::sync::Mutex;
    for special in [header(), Special::Addressees] {
        let all: Vec<String> = (0..25).map(|at| format!("no{at}@local.test")).collect();
        let all = format!("{}, al@local.test", all.join(", "));
        let mut pop = Pop3::new();
        for at in 0..12 {
            pop = pop.mail(&format!("u{at}"), &both(&format!("m-{at}"), &all));
        }
        for at in 12..20 {
            pop = pop.mail(&format!("u{at}"), &both(&format!("m-{at}"), "bo@local.test"));
        }
        let from = pop.start();
        let errors: Mutex<HashMap<usize, usize>> = Mutex::default();
        let to = Smtp::new()
            .script(move |call| {
                let mut errors = errors.lock().unwrap();
                let errors = errors.entry(call.session).or_default();
                match call.verb {
                    "RCPT" if call.argument.contains("<no") => {
                        *errors += 1;
                        if *errors < 20 {
                            Act::Say("550 5.1.1 unknown".into())
                        } else {
                            Act::SayAndClose("421 4.7.0 Error: too many errors".into())
                        }
                    }
                    "." => {
                        *errors = 0;
                        Act::Properly
                    }
                    _ => Act::Properly,
                }
            })
            .start();
        let bench = simple(&from, &to, special.clone());
        let report = bench.poll_well().await;
        assert_eq!(report.counters.delivered, 20, "{report:?}");
        assert!(from.uids().is_empty());
        for at in 0..12 {
            assert_eq!(got(&to, &format!("m-{at}")).len(), 1, "{special:?} {at}");
        }
    }
}
