//! For whom a message is.

use super::*;
use crate::support::pop3::Pop3;
use crate::support::smtp::Smtp;

#[tokio::test(flavor = "multi_thread")]
async fn the_named_header_names_the_recipients_and_is_removed() {
    let text = enveloped(
        "m-1",
        &["al@local.test, \"b o\"@Alias.test", "x@elsewhere.test (no)", "cy@local.test"],
        500,
    );
    let from = Pop3::new().mail("u1", &text).start();
    let to = Smtp::new().start();
    let bench = simple(&from, &to, header());
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.deleted), (1, 1));
    let mail = &to.mail()[0];
    assert_eq!(recipients(mail), rcpt(&["al@local.test", "\"b o\"@Alias.test", "cy@local.test"], FAILURE));
    assert_eq!(mail.sender(), "author@sender.test");
    assert!(mail.mail.contains("RET=HDRS"), "{}", mail.mail);
    assert_eq!(mail.message.headers(HEADER), [""; 0]);
    assert_eq!(mail.message.original(), message("m-1", 500));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_star_takes_whom_the_message_is_addressed_to_and_the_destination_knows() {
    let fields =
        "To: Al <al@local.test>, nobody@local.test\r\nCc: friends: bo@alias.test, x@elsewhere.test;\r\n";
    let from = Pop3::new().mail("u1", &addressed("m-1", fields, 500)).start();
    let to = Smtp::new().script(refusing(&[("nobody", "550 5.1.1 no such user")])).start();
    let bench = simple(&from, &to, Special::Addressees);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.rejected, report.counters.deleted), (1, 0, 1));
    assert_eq!(got(&to, "m-1"), [rcpt(&["al@local.test", "bo@alias.test"], NEVER)]);
    assert_eq!((to.accepted(), from.retrieved().len()), (1, 1), "in silence, and without a second retrieval");
    assert!(report.refused.is_none(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_star_finds_nobody_for_is_the_postmasters() {
    let from =
        Pop3::new().mail("u1", &addressed("m-1", "To: no1@local.test, no2@local.test\r\n", 500)).start();
    let to = Smtp::new().script(refusing(&[("no", "550 5.1.1 no such user")])).start();
    let bench = simple(&from, &to, Special::Addressees);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.deleted), (1, 1));
    assert_eq!(got(&to, "m-1"), [rcpt(&["postmaster@local.test"], NEVER)]);
    assert_eq!(from.retrieved().len(), 2);
    assert_eq!(count(&to, "DATA"), 1, "nothing is sent for nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_recipient_can_be_known_it_is_the_postmasters_at_once() {
    let many: Vec<String> = (0..1001).map(|at| format!("user{at}@local.test")).collect();
    let many = many.chunks(20).map(|some| some.join(", ")).collect::<Vec<_>>();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut cut = b"Return-Path: <author@sender.test>\r\n".to_vec();
    cut.extend_from_slice(format!("{HEADER}: al@local.test\r\nX-Fill: ").as_bytes());
    cut.extend_from_slice(&b"filler \r\n ".repeat(30_000));
    cut.extend_from_slice(b"\r\n");
    cut.extend(message("cut", 400));
    for text in [
        message("none", 500),
        enveloped("foreign", &["x@elsewhere.test"], 500),
        enveloped("broken", &["@@@ <>, (nothing)"], 500),
        enveloped("many", &many, 500),
        cut,
    ] {
        let from = Pop3::new().mail("u1", &text).start();
        let to = Smtp::new().start();
        let bench = simple(&from, &to, header());
        let report = bench.poll_well().await;
        let mail = to.mail();
        assert_eq!(mail.len(), 1);
        assert_eq!(recipients(&mail[0]), rcpt(&["postmaster@local.test"], NEVER), "{report:?}");
        assert_eq!((from.retrieved().len(), from.uids().len()), (1, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_recipients_are_served() {
    let all: Vec<String> = (0..1000).map(|at| format!("user{at}@local.test")).collect();
    let lines = all.chunks(20).map(|some| some.join(", ")).collect::<Vec<_>>();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let from = Pop3::new().mail("u1", &enveloped("m-1", &lines, 500)).start();
    // A server that takes 400 at a time (RFC 5321, section 4.5.3.1.10).
    let taken = std::sync::atomic::AtomicUsize::new(0);
    let to = Smtp::new()
        .script(move |call| {
            use std::sync::atomic::Ordering::SeqCst;
            match call.verb {
                "MAIL" => taken.store(0, SeqCst),
                "RCPT" if taken.fetch_add(1, SeqCst) >= 400 => {
                    return Act::Say("452 4.5.3 Error: too many recipients".into());
                }
                _ => {}
            }
            Act::Properly
        })
        .start();
    let bench = simple(&from, &to, header());
    let report = bench.poll_well().await;
    assert_eq!((report.counters.delivered, report.counters.fetched), (1, 1), "one message");
    assert_eq!(got(&to, "m-1").iter().map(Vec::len).collect::<Vec<_>>(), [400, 400, 200]);
    assert_eq!(got(&to, "m-1").concat(), rcpt(&all.iter().map(String::as_str).collect::<Vec<_>>(), FAILURE));
    assert!(from.uids().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_recipients_are_relayed_only_where_the_record_says_so() {
    let text = enveloped("m-1", &["x@elsewhere.test", "al@local.test"], 500);
    for relay in [false, true] {
        let from = Pop3::new().mail("u1", &text).start();
        let to = Smtp::new().start();
        let mut bench = simple(&from, &to, header());
        bench.change(|unified| unified.relay_foreign = relay);
        bench.poll_well().await;
        let expected = if relay { &["x@elsewhere.test", "al@local.test"][..] } else { &["al@local.test"] };
        assert_eq!(got(&to, "m-1"), [rcpt(expected, FAILURE)]);
    }
    // They go by the Main Domain's queue, and where it has none, nowhere.
    let from = Pop3::new().mail("u1", &text).start();
    let to = Smtp::lmtp().start();
    let mut bench = bench(&from, &to, header(), &store(&to, "local.test"), None);
    bench.change(|unified| unified.relay_foreign = true);
    bench.poll_well().await;
    assert_eq!(got(&to, "m-1"), [rcpt(&["al@local.test"], "")]);
    let told = &to.mail()[1];
    assert_eq!(recipients(told), rcpt(&["postmaster@local.test"], ""));
    assert!(told.message.text().contains("x@elsewhere.test"), "{}", told.message.text());
    assert!(from.uids().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lmtp_hears_nothing_of_notify() {
    for special in [header(), Special::Addressees] {
        let text = both("m-1", "al@local.test");
        let from = Pop3::new().mail("u1", &text).start();
        let to = Smtp::lmtp().start();
        let bench = bench(&from, &to, special, &store(&to, "local.test"), None);
        bench.poll_well().await;
        assert_eq!(got(&to, "m-1")[0][0], "TO:<al@local.test>");
    }
}

/// `withoutDsn`: a null sender is how "do not report failures" is said.
#[tokio::test(flavor = "multi_thread")]
async fn without_dsn_the_sender_is_kept_where_failures_are_to_be_reported() {
    for (special, sender) in [(header(), "author@sender.test"), (Special::Addressees, "")] {
        let text = both("m-1", "al@local.test");
        let from = Pop3::new().mail("u1", &text).start();
        let to = Smtp::new().extensions(&["PIPELINING", "8BITMIME"]).start();
        let bench = simple(&from, &to, special);
        bench.poll_well().await;
        assert_eq!(recipients(&to.mail()[0]), rcpt(&["al@local.test"], ""));
        assert_eq!(to.mail()[0].sender(), sender);
    }
}

/// Our own trace header makes a loop here as anywhere, and the limits hold.
#[tokio::test(flavor = "multi_thread")]
async fn loops_and_limits_stay_under_on_reject() {
    let first = Pop3::new().mail("u1", &enveloped("m-1", &["al@local.test"], 500)).start();
    let to = Smtp::new().start();
    let bench = simple(&first, &to, header());
    bench.poll_well().await;
    let mut came_back = b"X-Real-To: al@local.test\r\n".to_vec();
    came_back.extend(to.mail()[0].message.raw.clone());
    let from = Pop3::new()
        .mail("loop", &came_back)
        .mail("large", &enveloped("large", &["al@local.test"], 5000))
        .start();
    let mut bench = simple(&from, &to, header());
    bench.item.limits.message_size = Some(3000);
    let report = bench.poll_well().await;
    assert_eq!((report.counters.quarantined, bench.quarantined()), (2, 2), "{report:?}");
    bench.item.limits.message_size = None;
    bench.item.on_reject = rpop::domain::work::OnReject::Postmaster;
    bench.poll_well().await;
    assert_eq!(got(&to, "large"), [rcpt(&["al@local.test"], FAILURE)]);
}
