//! What destinations answer, and what becomes of the mail then.

use std::time::Duration;

use crate::support::mail::message;
use crate::support::manifest::Record;
use crate::support::pop3::Pop3;
use crate::support::rig::{Rig, SHORT};
use crate::support::smtp::{Act, Call, Smtp};

#[test]
fn a_421_at_any_phase_loses_and_repeats_nothing() {
    // quirks: "421 at the banner, MAIL, RCPT, DATA, after the dot"
    for lmtp in [true, false] {
        for verb in ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA", "."] {
            let script = move |call: &Call<'_>| {
                if call.session == 1
                    && call.verb == verb
                    && (call.nth == 2 || matches!(verb, "CONNECT" | "EHLO"))
                {
                    Act::SayAndClose("421 4.3.2 shutting down".into())
                } else {
                    Act::Properly
                }
            };
            let sink = if lmtp { Smtp::lmtp() } else { Smtp::new() }.script(script);
            let rig = Rig::to(Pop3::new().generated("m", 5, 400), sink);
            rig.poll_until(5, 3);
            rig.poll();
            assert_eq!(rig.marks().len(), 5, "{verb}, LMTP: {lmtp}");
            assert!(rig.pop.uids().is_empty(), "{verb}: {:?}", rig.pop.uids());
        }
    }
}

#[test]
fn a_connection_lost_behind_the_dot_is_tried_once_more() {
    // quirks: "connection lost after the dot and before the reply (outcome unknown)"
    for accepted in [true, false] {
        let script = move |call: &Call<'_>| match (call.session, call.verb, call.nth) {
            (1, ".", 3) => {
                if accepted {
                    Act::AcceptAndClose
                } else {
                    Act::Close
                }
            }
            _ => Act::Properly,
        };
        let rig = Rig::to(Pop3::new().generated("m", 6, 400), Smtp::lmtp().script(script));
        for _ in 0..3 {
            rig.poll();
        }
        let marks = rig.sink.marks();
        assert_eq!(marks.len(), 6, "{marks:?}");
        let extra: usize = marks.values().map(|count| count - 1).sum();
        assert!(extra <= usize::from(accepted), "{marks:?}");
        assert!(rig.pop.uids().is_empty(), "{:?}", rig.pop.uids());
    }
}

#[test]
fn an_idle_connection_that_dies_between_messages_costs_nothing() {
    // quirks: "Idle SMTP/LMTP connection dies between messages"
    for lmtp in [true, false] {
        let script = |call: &Call<'_>| if call.verb == "." { Act::ProperlyAndClose } else { Act::Properly };
        let sink = if lmtp { Smtp::lmtp() } else { Smtp::new() }.script(script);
        let rig = Rig::to(Pop3::new().generated("m", 12, 400), sink);
        let run = rig.poll();
        assert_eq!(rig.marks().len(), 12, "LMTP: {lmtp}: {}", run.text());
        assert!(rig.pop.uids().is_empty());
        assert!(rig.sink.sessions() >= 12);
    }
}

#[test]
fn a_message_refused_for_good_is_kept_and_not_offered_at_each_poll() {
    // quirks: "A local 5xx neither bounces to a forged sender nor loses the message nor retries for ever."
    let refuse = |call: &Call<'_>| match call.verb {
        "." if call.holds("X-Rpop-Mark: m-00001") => Act::Say("554 5.7.1 we do not like it".into()),
        _ => Act::Properly,
    };
    let rig = Rig::to(Pop3::new().generated("m", 4, 400), Smtp::lmtp().script(refuse));
    let run = rig.poll().expect(1);
    run.says("MessageRejected");
    for _ in 0..4 {
        rig.poll();
    }
    assert_eq!(rig.marks(), ["m-00000", "m-00002", "m-00003"]);
    assert_eq!(rig.pop.uids(), ["m-00001"]);
    let tries = rig.pop.retrieved().iter().filter(|uid| *uid == "m-00001").count();
    assert!(tries <= 2, "fetched {tries} times within seconds");
}

#[test]
fn on_reject_says_what_becomes_of_refused_mail() {
    let refuse = |call: &Call<'_>| match (call.verb, call.argument) {
        (".", recipient) if call.holds("X-Rpop-Mark: m-00001") && recipient.contains("alice") => {
            Act::Say("554 5.7.1 we do not like it".into())
        }
        _ => Act::Properly,
    };
    let rig = Rig::with(Pop3::new().generated("m", 3, 400), Smtp::lmtp().script(refuse), |record| {
        record.with("onReject: Discard")
    });
    rig.poll();
    assert_eq!(rig.marks(), ["m-00000", "m-00002"]);
    assert!(rig.pop.uids().is_empty());
    let rig = Rig::with(Pop3::new().generated("m", 3, 400), Smtp::lmtp().script(refuse), |record| {
        record.with("onReject: Postmaster")
    });
    for _ in 0..2 {
        rig.poll();
    }
    let mail = rig.sink.mail();
    let told = mail.iter().find(|mail| mail.addresses() == ["postmaster@local.test"]);
    assert!(told.is_some_and(|mail| mail.message.text().contains("m-00001")), "{mail:?}");
    assert!(rig.pop.uids().is_empty());
}

#[test]
fn an_unknown_recipient_is_one_answer_for_the_whole_mailbox() {
    let sink = Smtp::lmtp().script(|call| match call.verb {
        "RCPT" => Act::Say("550 5.1.1 no such user".into()),
        _ => Act::Properly,
    });
    let rig = Rig::to(Pop3::new().generated("m", 20, 400), sink);
    rig.poll().expect(1).says("550");
    assert_eq!((rig.sink.accepted(), rig.pop.uids().len()), (0, 20));
}

#[test]
fn notify_is_said_only_where_dsn_is_announced() {
    // quirks: "NOTIFY on a server that does not announce DSN is a 5xx"
    let with_path = [b"Return-Path: <bounces@sender.test>\r\n".to_vec(), message("m", 300)].concat();
    let rig = Rig::to(Pop3::new().mail("m", &with_path), Smtp::new());
    rig.poll().expect(0);
    let mail = rig.sink.mail();
    assert!(mail[0].recipients[0].contains("NOTIFY=NEVER"), "{mail:?}");
    assert_eq!(mail[0].sender(), "bounces@sender.test");
    assert!(mail[0].message.headers("Return-Path").is_empty());
    let rig = Rig::to(Pop3::new().mail("m", &with_path), Smtp::new().extensions(&["PIPELINING", "8BITMIME"]));
    rig.poll().expect(0);
    let mail = rig.sink.mail();
    assert!(!mail[0].recipients[0].contains("NOTIFY"), "{mail:?}");
    assert_eq!(mail[0].sender(), "", "without DSN a null sender says that failures are not to be reported");
}

#[test]
fn odd_return_paths_become_valid_senders_or_none() {
    // quirks: "Return-Path with spaces, CR, NUL, folded, 600 characters, UTF-8 ..., source route, `<>`"
    let long = format!("<{}@x.test>", "a".repeat(600));
    let paths: Vec<(&[u8], Option<&str>)> = vec![
        (b"<a b@x.test>", None),
        (b"<a@x.test>\rRCPT TO:<evil@x.test>", None),
        (b"<a\0b@x.test>", None),
        (b"\r\n <folded@x.test>", Some("folded@x.test")),
        (long.as_bytes(), None),
        (b"<@relay.test,@other.test:routed@x.test>", Some("routed@x.test")),
        (b"<>", Some("")),
        (b"<ok@x.test>> SIZE=1\nRSET", None),
    ];
    let mut pop = Pop3::new();
    for (at, (path, _)) in paths.iter().enumerate() {
        let mark = format!("m-{at:05}");
        let head = [b"Return-Path: ".to_vec(), path.to_vec(), b"\r\n".to_vec()].concat();
        pop = pop.mail(&mark, &[head, message(&mark, 300)].concat());
    }
    let rig = Rig::to(pop, Smtp::new());
    rig.poll().expect(0);
    assert_eq!(rig.marks().len(), paths.len());
    for mail in rig.sink.mail() {
        let at: usize = mail.message.mark().trim_start_matches("m-").parse().unwrap();
        if let Some(expected) = paths[at].1 {
            assert_eq!(mail.sender(), expected, "{at}");
        }
        assert!(
            mail.sender().len() < 330 && !mail.sender().contains([' ', '\0', '\r', '>']),
            "{at}: {}",
            mail.mail
        );
        assert_eq!(mail.addresses(), ["alice@local.test"], "{at}");
    }
    assert!(
        !rig.sink.commands().iter().any(|(_, line)| line.contains("evil") || line == "RSET"),
        "a command was injected"
    );
}

#[test]
fn a_message_over_the_announced_size_is_not_sent_and_blocks_nobody() {
    // quirks: "SIZE exceeded, 552, 452; 8BITMIME absent"
    let pop =
        Pop3::new().generated("m", 2, 400).mail("big", &message("big", 20_000)).mail("z", &message("z", 400));
    let sink = Smtp::new().extensions(&["PIPELINING", "SIZE 5000"]);
    let rig = Rig::to(pop, sink);
    rig.poll().expect(1);
    assert_eq!(rig.marks(), ["m-00000", "m-00001", "z"]);
    assert_eq!(rig.pop.uids(), ["big"]);
}

#[test]
fn chunking_carries_the_same_octets() {
    let strange = b"X-Rpop-Mark: strange\r\n\r\n.\r\n..x\nlone\r\n\0\xff\r\n".to_vec();
    let pop =
        Pop3::new().generated("m", 20, 3000).mail("strange", &strange).mail("big", &message("big", 900_000));
    let sink = Smtp::lmtp().with("CHUNKING").with("BINARYMIME");
    let rig = Rig::to(pop, sink);
    rig.poll().expect(0);
    assert_eq!(rig.marks().len(), 22);
    for mail in rig.sink.mail() {
        let mark = mail.message.mark();
        let wanted = match mark.as_str() {
            "strange" => crate::support::mail::canonical(&strange),
            "big" => message("big", 900_000),
            mark => message(mark, 3000),
        };
        assert_eq!(mail.message.original(), wanted, "{mark}");
    }
}

#[test]
fn a_server_without_extensions_gets_everything_one_by_one() {
    let rig = Rig::to(Pop3::new().capabilities(None).generated("m", 8, 2000), Smtp::new().extensions(&[]));
    rig.poll().expect(0);
    assert_eq!(rig.marks().len(), 8);
}

#[test]
fn mail_does_not_go_round_in_circles() {
    // quirks: "A loop through our own trace header, the Received-hop cap, a Delivered-To ..."
    let rig = Rig::keeping(Pop3::new().generated("m", 1, 400));
    rig.poll().expect(0);
    let delivered = rig.sink.messages()[0].raw.clone();
    rig.pop.put("again", &delivered);
    let hops = "Received: from a by b; Mon, 2 Nov 2026 10:00:00 +0000\r\n".repeat(120);
    rig.pop.put("hops", &[hops.into_bytes(), message("hops", 300)].concat());
    let few = "Received: from a by b; Mon, 2 Nov 2026 10:00:00 +0000\r\n".repeat(8);
    rig.pop.put("few", &[few.into_bytes(), message("few", 300)].concat());
    rig.poll();
    rig.poll();
    let marks = rig.marks();
    assert_eq!(marks, ["few", "m-00000"], "{marks:?}");
    assert_eq!(rig.pop.uids().len(), 4);
}

#[test]
fn a_delivered_to_of_ours_goes_and_others_stay() {
    let head = b"Delivered-To: alice@local.test\r\nDelivered-To: alice77@isp.test\r\n".to_vec();
    let rig = Rig::new(Pop3::new().mail("m", &[head, message("m", 300)].concat()));
    rig.poll().expect(0);
    let arrived = rig.sink.messages();
    assert_eq!(arrived[0].headers("Delivered-To"), ["alice77@isp.test"]);
}

#[test]
fn a_slow_destination_neither_times_out_the_source_nor_loses() {
    // quirks: "Auto-logout while the SMTP side stalls"
    let sink = Smtp::lmtp().script(|call| match (call.verb, call.nth) {
        (".", 2 | 5) => Act::Later(Duration::from_millis(3500)),
        _ => Act::Properly,
    });
    let rig = Rig::to(Pop3::new().generated("m", 8, 200_000), sink);
    rig.site.settings(&["timeouts: {connect: 3s, reply: 3s, data: 3s, afterDot: 10s}"]);
    let run = rig.poll();
    rig.poll_until(8, 2);
    assert_eq!(rig.marks().len(), 8, "{}", run.text());
    assert!(rig.pop.uids().is_empty());
}

#[test]
fn a_destination_that_never_answers_ends_at_its_deadline() {
    for verb in ["CONNECT", "EHLO", "MAIL", "DATA", "."] {
        let sink =
            Smtp::lmtp().script(move |call| if call.verb == verb { Act::Silence } else { Act::Properly });
        let rig = Rig::to(Pop3::new().generated("m", 3, 400), sink);
        let run = rig.poll().expect(1);
        assert!(run.took < Duration::from_secs(25), "{verb}: {:?}", run.took);
        assert_eq!((rig.sink.accepted(), rig.pop.uids().len()), (0, 3), "{verb}");
    }
}

#[test]
fn records_of_one_destination_share_its_connections() {
    let rig = Rig::new(Pop3::new().generated("a", 1, 400));
    // One poll after the other: none can have a reason for a second connection.
    rig.site.settings(&[SHORT, "processors: 1"]);
    let others: Vec<_> = (0..15).map(|at| Pop3::new().generated(&format!("o{at}"), 1, 400).start()).collect();
    for (at, server) in others.iter().enumerate() {
        rig.site.record(&Record::plain(&format!("o{at}"), server.port(), "alice"));
    }
    rig.poll().expect(0);
    assert_eq!(rig.marks().len(), 16);
    assert_eq!(rig.sink.sessions(), 1);
}
