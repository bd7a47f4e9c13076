//! Connections that break, servers that say good-bye, destinations that are down.

use super::*;

fn unavailable(result: &Result<Vec<Verdict>, Undelivered>) -> &str {
    match result {
        Err(Undelivered::Unavailable { message, .. }) => message,
        other => panic!("{other:?}"),
    }
}

/// A rule that acts at the `nth` (from 1) command that begins with `prefix`.
fn at(
    prefix: &'static str,
    nth: usize,
    act: impl Fn() -> Option<Act> + Send + 'static,
) -> impl FnMut(usize, &str) -> Option<Act> + Send + 'static {
    let mut count = 0;
    move |_, what| {
        count += usize::from(what.starts_with(prefix));
        if what.starts_with(prefix) && count == nth { act() } else { None }
    }
}

// quirks: "421 at the banner, MAIL, RCPT, DATA, after the dot"
#[tokio::test]
async fn good_bye_before_the_end_of_a_message_is_followed_by_another_connection() {
    for announces in WAYS {
        for prefix in ["MAIL", "RCPT", "DATA"] {
            if prefix == "DATA" && announces.contains(&"CHUNKING") {
                continue;
            }
            let bye = || Some(Act::Bye("421 4.3.2 closing\r\n".to_owned()));
            let fake = Fake::with(announces, at(prefix, 3, bye));
            let results = deliver(smtp(&fake), (0..10).map(|id| job(id, &["a@b"])).collect()).await;
            for result in &results {
                assert_eq!(*result, Ok(accepted(1)), "{announces:?} {prefix}");
            }
            assert_eq!((fake.taken().len(), fake.connections()), (10, 2));
        }
    }
}

// quirks: "421 ... after the dot"
#[tokio::test]
async fn good_bye_instead_of_acceptance_is_a_deferral() {
    for announces in WAYS {
        let bye = || Some(Act::Bye("421 4.3.0 disk trouble\r\n".to_owned()));
        let fake = Fake::with(announces, at(".", 3, bye));
        let results = deliver(smtp(&fake), (0..10).map(|id| job(id, &["a@b"])).collect()).await;
        let deferred = results.iter().filter(|result| **result != Ok(accepted(1))).collect::<Vec<_>>();
        assert_eq!(deferred.len(), 1, "{announces:?}");
        assert_eq!(code_of(&deferred[0].as_ref().unwrap()[0]), (421, "."));
        assert_eq!(fake.taken().len(), 9);
    }
}

// quirks: "421 at the banner"
#[tokio::test]
async fn good_bye_at_the_banner_fails_what_waits_at_once() {
    let fake =
        Fake::with(ALL, |_, what| (what == "HI").then(|| Act::Bye("421 4.7.0 try later\r\n".to_owned())));
    let results = deliver(smtp(&fake), (0..100).map(|id| job(id, &["a@b"])).collect()).await;
    assert_eq!(results.len(), 100);
    for result in &results {
        assert_eq!(
            unavailable(result),
            "destination mail.example:25: the connection was answered with 421 4.7.0 try later"
        );
    }
    assert_eq!(fake.connections(), 1, "one try for all of them");
}

#[tokio::test]
async fn a_server_that_takes_few_messages_a_connection() {
    for announces in WAYS {
        let mut taken = std::collections::HashMap::<usize, u32>::new();
        let fake = Fake::with(announces, move |connection, what| {
            let count = taken.entry(connection).or_default();
            *count += u32::from(what.starts_with("MAIL"));
            (*count > 3).then(|| Act::Bye("421 4.7.0 too many messages\r\n".to_owned()))
        });
        let results = deliver(smtp(&fake), (0..30).map(|id| job(id, &["a@b"])).collect()).await;
        for result in &results {
            assert_eq!(*result, Ok(accepted(1)), "{announces:?}");
        }
        assert_eq!(fake.taken().len(), 30);
    }
}

// quirks: "connection lost after the dot and before the reply (outcome unknown)"
#[tokio::test]
async fn a_connection_lost_behind_the_dot_is_an_unknown_outcome() {
    for announces in WAYS {
        for via in [Via::Smtp, Via::Lmtp] {
            let fake = Fake::with(announces, at(".", 1, || Some(Act::Close)));
            let courier = fake.pool().open(route(via, host()));
            let results = deliver(courier, vec![job(1, &["a@b"])]).await;
            assert!(
                matches!(&results[0], Err(Undelivered::Unknown { message }) if message.contains("may or may not")),
                "{announces:?} {results:?}"
            );
            assert_eq!(fake.commands(".").len(), 1, "never sent a second time by itself");
        }
    }
}

#[tokio::test]
async fn a_connection_lost_before_the_dot_is_tried_once_more() {
    for announces in [NO_CHUNKING, PLAIN] {
        for prefix in ["MAIL", "RCPT", "DATA"] {
            let fake = Fake::with(announces, at(prefix, 1, || Some(Act::Close)));
            let results = deliver(smtp(&fake), vec![job(1, &["a@b"]), job(2, &["a@b"])]).await;
            assert_eq!(results, [Ok(accepted(1)), Ok(accepted(1))]);
            assert_eq!(fake.connections(), 2);

            let fake = Fake::with(announces, move |_, what| what.starts_with(prefix).then_some(Act::Close));
            let results = deliver(smtp(&fake), (0..50).map(|id| job(id, &["a@b"])).collect()).await;
            for result in &results {
                assert!(unavailable(result).contains("the server closed the connection"));
            }
            assert!(fake.connections() <= 4, "{} connections", fake.connections());
        }
    }
}

#[tokio::test]
async fn a_stream_is_tried_again_only_while_nothing_of_it_is_gone() {
    for announces in WAYS {
        let fake = Fake::with(announces, at("RCPT", 1, || Some(Act::Close)));
        let Courier { jobs, mut outcomes } = smtp(&fake);
        let (parts, untouched) = streamed(1);
        jobs.send(untouched).await.unwrap();
        parts.send(Part::Data(piece(b"x: y\r\n", true))).await.unwrap();
        parts.send(Part::End).await.unwrap();
        assert_eq!(outcomes.recv().await.unwrap().result, Ok(accepted(1)), "{announces:?}");
        assert_eq!(fake.taken()[0].body, b"x: y\r\n");
    }
    // 421 amid the body: the connection is over, and so is the stream.
    let fake = Fake::with(NO_CHUNKING, |_, what| {
        (what == "DATA").then(|| Act::Say("354 go\r\n421 4.4.2 too slow\r\n".to_owned()))
    });
    let Courier { jobs, mut outcomes } = smtp(&fake);
    let (parts, slow) = streamed(1);
    jobs.send(slow).await.unwrap();
    parts.send(Part::Data(piece(b"x: y\r\n", true))).await.unwrap();
    let result = outcomes.recv().await.unwrap().result;
    assert!(unavailable(&result).contains("421 4.4.2 too slow"), "{result:?}");
    assert!(parts.send(Part::End).await.is_err());
    drop(jobs);
}

// quirks: "Idle SMTP/LMTP connection dies between messages: reconnect and go on within the same poll."
#[tokio::test(start_paused = true)]
async fn a_connection_that_died_while_idle_is_replaced_unnoticed() {
    for announces in WAYS {
        // The server closes after each message; the client sees it only when
        // it writes, because the farewell comes late.
        let fake = Fake::with(announces, |connection, what| {
            (what.starts_with("MAIL") && connection == 1 && what.contains("s2@")).then_some(Act::Close)
        });
        let pool = fake.pool();
        let Courier { jobs, mut outcomes } = pool.open(route(Via::Smtp, host()));
        for id in 1..4 {
            jobs.send(job(id, &["a@b"])).await.unwrap();
            assert_eq!(outcomes.recv().await.unwrap().result, Ok(accepted(1)), "{announces:?} {id}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!((fake.taken().len(), fake.connections()), (3, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn connections_are_kept_for_the_next_poll_but_not_for_ever() {
    let fake = Fake::new(NO_CHUNKING);
    let pool = fake.pool();
    for poll in 0..3 {
        let results = deliver(pool.open(route(Via::Smtp, host())), vec![job(poll, &["a@b"])]).await;
        assert_eq!(results, [Ok(accepted(1))]);
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!((fake.connections(), fake.state().open), (1, 1));
    tokio::time::sleep(Duration::from_mins(2)).await;
    assert_eq!(fake.state().open, 0);
    assert_eq!(fake.commands("QUIT").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_closed_an_idle_connection_costs_nothing() {
    let fake = Fake::new(NO_CHUNKING);
    let pool = fake.pool();
    deliver(pool.open(route(Via::Smtp, host())), vec![job(1, &["a@b"])]).await[0].as_ref().unwrap();
    let rule: Box<Rule> = Box::new(|_, what| what.starts_with("DATA").then_some(Act::Hang));
    fake.state().rule = rule;
    // A second poll breaks the kept connection, a third one must not notice.
    let Courier { jobs, outcomes } = pool.open(route(Via::Smtp, host()));
    jobs.send(job(2, &["a@b"])).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop((jobs, outcomes));
    fake.state().rule = Box::new(|_, _| None);
    let results = deliver(pool.open(route(Via::Smtp, host())), vec![job(3, &["a@b"])]).await;
    assert_eq!(results, [Ok(accepted(1))]);
    assert_eq!(fake.connections(), 2);
}

// quirks: "A connection pool is keyed by TLS policy and identity, never by host alone (CVE-2026-4873)."
#[tokio::test]
async fn connections_are_shared_only_by_the_same_configuration() {
    let fake = Fake::new(NO_CHUNKING);
    let pool = fake.pool();
    let secret = SecretRef {
        kind: crate::domain::work::SecretKind::Secret,
        namespace: "n".into(),
        name: "s".into(),
        key: "k".into(),
    };
    let ways = [
        (Via::Smtp, host()),
        (Via::Lmtp, host()),
        (Via::Smtp, MailHost { tls: TlsPolicy { mode: TlsMode::Opportunistic, ..host().tls }, ..host() }),
        (Via::Smtp, MailHost { tls: TlsPolicy { pins: vec![[1; 32]], ..host().tls }, ..host() }),
        (Via::Smtp, MailHost { ehlo_name: Some("other".into()), ..host() }),
        (Via::Smtp, MailHost { endpoint: Endpoint::Tcp("mail.example".into(), 587), ..host() }),
    ];
    for round in 1..3 {
        for (count, (via, host)) in ways.iter().enumerate() {
            deliver(pool.open(route(*via, host.clone())), vec![job(1, &["a@b"])]).await[0].as_ref().unwrap();
            assert_eq!(fake.connections(), if round == 1 { count + 1 } else { ways.len() });
        }
    }
    let with = MailHost { auth: Some(("user".into(), secret)), ..host() };
    let results = deliver(pool.open(route(Via::Smtp, with)), vec![job(1, &["a@b"])]).await;
    assert!(unavailable(&results[0]).contains("not sent in clear text"));
    assert_eq!(fake.connections(), ways.len() + 1, "another identity, another connection");
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_cannot_be_reached_is_tried_once_a_poll() {
    let fake = Fake::new(ALL);
    let down = Trouble { code: Code::DestinationUnavailable, message: "connection refused".into() };
    fake.state().refuse = std::iter::repeat_n(down, 10).collect();
    let courier = smtp(&fake);
    let results = deliver(courier, (0..500).map(|id| job(id, &["a@b"])).collect()).await;
    assert!(results.iter().all(|result| unavailable(result) == "connection refused"));
    assert_eq!(results.len(), 500);
    assert_eq!(fake.state().refuse.len(), 9);
}

// quirks: "per-read and whole-session deadlines; no phase without a deadline"
#[tokio::test(start_paused = true)]
async fn silence_meets_a_deadline_in_every_phase() {
    let cases = [
        ("HI", 60, "no greeting within 60 s"),
        ("EHLO", 60, "no reply to the greeting within 60 s"),
        ("MAIL", 60, "no reply within 60 s"),
        ("RCPT", 60, "no reply within 60 s"),
        ("DATA", 60, "no reply within 60 s"),
    ];
    for announces in [NO_CHUNKING, PLAIN] {
        for (prefix, seconds, message) in cases {
            let fake = Fake::with(announces, move |_, what| what.starts_with(prefix).then_some(Act::Hang));
            let begun = Instant::now();
            let results = deliver(smtp(&fake), vec![job(1, &["a@b"]), job(2, &["a@b"])]).await;
            assert!(unavailable(&results[0]).contains(message), "{results:?}");
            assert!(unavailable(&results[1]).contains(message), "{results:?}");
            assert_eq!(begun.elapsed().as_secs(), seconds, "{prefix}: one wait, not one a message");
        }
    }
    for announces in WAYS {
        let fake = Fake::with(announces, |_, what| what.starts_with('.').then_some(Act::Hang));
        let begun = Instant::now();
        let results = deliver(smtp(&fake), vec![job(1, &["a@b"])]).await;
        assert!(matches!(&results[0], Err(Undelivered::Unknown { .. })));
        assert_eq!(begun.elapsed().as_secs(), 600);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_reading_meets_the_deadline_for_data() {
    // 354, and then it never reads: 10 MB do not fit into the pipe.
    let fake = Fake::with(NO_CHUNKING, |_, what| {
        if what == "DATA" {
            Some(Act::Say("354 go\r\n".to_owned()))
        } else {
            what.starts_with("500").then_some(Act::Hang)
        }
    });
    // What follows the 354 is read as commands, each answered, until the
    // client notices that these answers are to nothing.
    let big = "500 words\n".repeat(100_000);
    let results = deliver(smtp(&fake), vec![Job { content: whole(&big), ..job(1, &["a@b"]) }]).await;
    assert!(unavailable(&results[0]).contains("no progress in sending within 60 s"), "{results:?}");
}

// quirks: "An unsolicited extra reply between two messages: out of step"
#[tokio::test]
async fn a_reply_to_nothing_ends_the_connection_not_the_mail() {
    for announces in WAYS {
        let fake = Fake::with(
            announces,
            at("RCPT", 2, || {
                Some(Act::Say("250 ok\r\n250 and another\r\n250 and more\r\n250 x\r\n".to_owned()))
            }),
        );
        let results = deliver(smtp(&fake), (0..4).map(|id| job(id, &["a@b"])).collect()).await;
        assert_eq!(results.len(), 4);
        // No message is taken for accepted that the server does not have; with
        // BDAT a positive reply is like any other and cannot be told apart.
        let sure = results.iter().filter(|result| **result == Ok(accepted(1))).count();
        assert!(sure <= fake.taken().len() || announces.contains(&"CHUNKING"), "{announces:?} {results:?}");
    }
}

// quirks: "Log lines and status messages escape and cap what servers sent."
#[tokio::test]
async fn garbage_instead_of_a_reply() {
    let fake = Fake::with(NO_CHUNKING, |_, what| {
        (what == "DATA").then(|| Act::Say("\x1b]0;x\x07 what\r\n".to_owned()))
    });
    let results = deliver(smtp(&fake), vec![job(1, &["a@b"])]).await;
    let message = unavailable(&results[0]);
    assert!(message.contains("what is no reply") && !message.contains(char::is_control), "{message}");
}
