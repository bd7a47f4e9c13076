//! What is said on the wire, and what the answers come to.

use super::*;

#[tokio::test]
async fn messages_arrive_whole_whatever_is_announced() {
    for announces in WAYS {
        for via in [Via::Smtp, Via::Lmtp] {
            let fake = Fake::new(announces);
            let courier = fake.pool().open(route(via, host()));
            let results = deliver(courier, (0..200).map(|id| job(id, &["a@b"])).collect()).await;
            assert!(results.iter().all(|result| *result == Ok(accepted(1))), "{announces:?}");
            let mut taken = fake.taken();
            taken.sort_by_key(Taken::id);
            assert_eq!(taken.len(), 200);
            for (id, taken) in (0u64..).zip(taken) {
                assert_eq!(taken.body, body_of(id), "{announces:?} {via:?}");
                assert_eq!((taken.from, taken.to), (format!("s{id}@x"), vec!["a@b".to_owned()]));
            }
        }
    }
}

// quirks: "Normalise bare CR and bare LF to CRLF, then stuff; never emit `\n.\n`"
#[tokio::test]
async fn pieces_go_out_as_they_are_and_end_in_one_dot() {
    let pieces = || -> Arc<[Piece]> {
        vec![piece(b"a: b\r\n\r\n..x\r\n", true), piece(b"long ", true), piece(b"line\r\n...\r\n", false)]
            .into()
    };
    for announces in WAYS {
        let fake = Fake::new(announces);
        let whole = Job { content: Content::Whole(pieces()), ..job(1, &["a@b"]) };
        let empty = Job { content: Content::Whole(Vec::new().into()), ..job(2, &["a@b"]) };
        let results = deliver(smtp(&fake), vec![whole, empty]).await;
        assert_eq!(results, [Ok(accepted(1)), Ok(accepted(1))]);
        let taken = fake.taken();
        assert_eq!(taken[0].body, b"a: b\r\n\r\n.x\r\nlong line\r\n..\r\n");
        assert_eq!(taken[1].body, b"");
    }
}

#[tokio::test]
async fn a_message_in_pieces_is_ended_by_its_end_alone() {
    for announces in WAYS {
        let fake = Fake::new(announces);
        let Courier { jobs, mut outcomes } = proven(&fake).await;
        let (parts, job) = streamed(7);
        jobs.send(job).await.unwrap();
        for text in [&b"a: b\r\n\r\n..x\r\n"[..], b"y\r\n"] {
            parts.send(Part::Data(Piece::new(Bytes::from_static(text), true))).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(outcomes.try_recv().is_err() && fake.taken().is_empty());
        parts.send(Part::End).await.unwrap();
        assert_eq!(outcomes.recv().await.unwrap().result, Ok(accepted(1)));
        assert_eq!(fake.taken()[0].body, b"a: b\r\n\r\n.x\r\ny\r\n");
        let chunking = announces.contains(&"CHUNKING");
        assert_eq!(fake.commands("DATA").is_empty(), chunking);
    }
}

// quirks: "The POP3 side dies mid-message: drop the SMTP connection, never send the final dot."
#[tokio::test]
async fn a_stream_that_breaks_off_is_never_delivered_and_mail_goes_on() {
    for announces in WAYS {
        let fake = Fake::new(announces);
        let Courier { jobs, mut outcomes } = proven(&fake).await;
        let (parts, broken) = streamed(1);
        jobs.send(broken).await.unwrap();
        parts.send(Part::Data(piece(b"half\r\n", true))).await.unwrap();
        drop(parts);
        jobs.send(job(2, &["a@b"])).await.unwrap();
        let first = outcomes.recv().await.unwrap();
        assert_eq!((first.id, first.result), (1, Err(Undelivered::Aborted)), "{announces:?}");
        assert_eq!(outcomes.recv().await.unwrap().result, Ok(accepted(1)));
        let taken = fake.taken();
        assert_eq!(taken.len(), 1, "{announces:?}");
        assert_eq!(taken[0].body, body_of(2));
        let chunking = announces.contains(&"CHUNKING");
        assert_eq!(fake.connections(), if chunking { 1 } else { 2 });
    }
}

#[tokio::test]
async fn dropping_the_courier_sends_no_final_dot() {
    for announces in WAYS {
        let fake = Fake::new(announces);
        let courier = proven(&fake).await;
        let (parts, job) = streamed(1);
        courier.jobs.send(job).await.unwrap();
        parts.send(Part::Data(piece(b"half\r\n", true))).await.unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
        drop(courier);
        parts.closed().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(fake.taken().is_empty());
        assert_eq!(fake.state().open, 0);
    }
}

// quirks: "LMTP: one reply per accepted RCPT after DATA; some RCPT refused and some accepted"
#[tokio::test]
async fn lmtp_tells_of_each_recipient() {
    for announces in WAYS {
        let fake = Fake::with(announces, |_, what| match what {
            "RCPT TO:<b@x>" => say("550 5.1.1 no such user"),
            "RCPT TO:<d@x>" => say("450 4.2.1 later"),
            ". c@x" => say("552 5.2.2 over quota"),
            ". e@x" => say("452 4.2.2 nearly full"),
            _ => None,
        });
        let results =
            deliver(lmtp(&fake), vec![job(1, &["a@x", "b@x", "c@x", "d@x", "e@x", "f@x"]), job(2, &["a@x"])])
                .await;
        let codes: Vec<_> = results[0].as_ref().unwrap().iter().map(code_of).collect();
        assert_eq!(codes, [(250, ""), (550, "RCPT"), (552, "."), (450, "RCPT"), (452, "."), (250, "")]);
        assert_eq!(results[1], Ok(accepted(1)), "{announces:?}");
        assert_eq!(fake.taken()[0].to, ["a@x", "f@x"]);
    }
}

#[tokio::test]
async fn refusals_at_every_command_leave_the_next_message_unharmed() {
    for announces in WAYS {
        for via in [Via::Smtp, Via::Lmtp] {
            for (at, prefix) in
                [("MAIL", "MAIL FROM:<s1@"), ("RCPT", "RCPT TO:<bad@"), ("DATA", "DATA"), (".", ".")]
            {
                if at == "DATA" && announces.contains(&"CHUNKING") {
                    continue;
                }
                for reply in ["550 5.7.1 never", "451 4.7.1 not now"] {
                    let mut done = false;
                    let fake = Fake::with(announces, move |_, what| {
                        let hit = !done && what.starts_with(prefix);
                        done |= hit;
                        if hit { say(reply) } else { None }
                    });
                    let courier = fake.pool().open(route(via, host()));
                    let mut jobs = vec![job(1, &["bad@x"])];
                    jobs.extend((2..20).map(|id| job(id, &["a@b"])));
                    let results = deliver(courier, jobs).await;
                    let first = results[0].as_ref().unwrap();
                    assert_eq!(
                        code_of(&first[0]),
                        (if reply.starts_with('4') { 451 } else { 550 }, at),
                        "{announces:?} {via:?}"
                    );
                    assert_eq!(matches!(first[0], Verdict::Deferred(_)), reply.starts_with('4'));
                    for result in &results[1..] {
                        assert_eq!(*result, Ok(accepted(1)), "{announces:?} {via:?} {at}");
                    }
                    for taken in fake.taken() {
                        assert_eq!(taken.to, ["a@b"], "no recipient of one message gets another");
                        assert_eq!(taken.body, body_of(taken.id()));
                    }
                    assert_eq!(fake.taken().len(), 18);
                    assert_eq!(fake.connections(), 1);
                }
            }
        }
    }
}

#[tokio::test]
async fn some_recipients_refused_by_smtp() {
    for announces in WAYS {
        let fake =
            Fake::with(announces, |_, what| if what == "RCPT TO:<b@x>" { say("550 no") } else { None });
        let results = deliver(smtp(&fake), vec![job(1, &["a@x", "b@x", "c@x"])]).await;
        let codes: Vec<_> = results[0].as_ref().unwrap().iter().map(code_of).collect();
        assert_eq!(codes, [(250, ""), (550, "RCPT"), (250, "")]);
        assert_eq!(fake.taken()[0].to, ["a@x", "c@x"]);
    }
}

#[tokio::test]
async fn a_go_ahead_without_recipients_gets_an_empty_message_and_no_mail() {
    let fake = Fake::with(NO_CHUNKING, |_, what| match what {
        "RCPT TO:<bad@x>" => say("550 no"),
        _ => None,
    });
    // This server says 354 although nobody is left: it is given a lone dot.
    let strange = Fake::with(NO_CHUNKING, |_, what| match what {
        "RCPT TO:<bad@x>" => say("550 no"),
        "DATA" => say("354 go on"),
        "." => say("554 no recipients"),
        _ => None,
    });
    let results = deliver(smtp(&fake), vec![job(1, &["bad@x"])]).await;
    assert_eq!(code_of(&results[0].as_ref().unwrap()[0]), (550, "RCPT"));
    let results = deliver(smtp(&strange), vec![job(1, &["bad@x"])]).await;
    assert_eq!(code_of(&results[0].as_ref().unwrap()[0]), (550, "RCPT"));
    assert!(strange.commands(".") == ["."] || strange.commands("500").is_empty());
    assert!(strange.taken().is_empty());
}

// quirks: "SIZE exceeded, 552, 452; 8BITMIME absent; SMTPUTF8; DSN NOTIFY=NEVER and NOTIFY=FAILURE"
#[tokio::test]
async fn parameters_are_said_only_where_announced() {
    let mut wanted = envelope("s@x", &["n@x", "f@x"]);
    wanted.recipients[0].notify = Notify::Never;
    wanted.recipients[1].notify = Notify::Failure;
    (wanted.size, wanted.envid, wanted.utf8_header) = (Some(1234), Some("id=1".into()), true);
    let jobs = || vec![Job { id: 1, envelope: wanted.clone(), content: whole("x: y\n\n"), leave: None }];

    let fake = Fake::new(ALL);
    deliver(smtp(&fake), jobs()).await[0].as_ref().unwrap();
    assert_eq!(
        fake.commands("MAIL"),
        ["MAIL FROM:<s@x> SIZE=1234 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=id+3D1"]
    );
    assert_eq!(
        fake.commands("RCPT"),
        ["RCPT TO:<n@x> NOTIFY=NEVER", "RCPT TO:<f@x> NOTIFY=FAILURE ORCPT=rfc822;f@x"]
    );

    let fake = Fake::new(PLAIN);
    deliver(smtp(&fake), jobs()).await[0].as_ref().unwrap();
    assert_eq!(fake.commands("MAIL"), ["MAIL FROM:<>"], "without DSN the null sender asks for no report");
    assert_eq!(fake.commands("RCPT"), ["RCPT TO:<n@x>", "RCPT TO:<f@x>"]);

    let fake = Fake::new(PLAIN);
    let kept = MailHost { null_sender_without_dsn: false, ..host() };
    deliver(fake.pool().open(route(Via::Smtp, kept)), jobs()).await[0].as_ref().unwrap();
    assert_eq!(fake.commands("MAIL"), ["MAIL FROM:<s@x>"]);

    let fake = Fake::new(PLAIN);
    deliver(lmtp(&fake), jobs()).await[0].as_ref().unwrap();
    assert_eq!(fake.commands("MAIL"), ["MAIL FROM:<s@x>"], "LMTP has no queue that could report");
}

// quirks: "SIZE exceeded"
#[tokio::test]
async fn a_message_over_the_announced_size_is_refused_without_being_sent() {
    let fake = Fake::new(&["PIPELINING", "SIZE 1000"]);
    let mut large = job(1, &["a@b"]);
    large.envelope.size = Some(1001);
    let mut fits = job(2, &["a@b"]);
    fits.envelope.size = Some(1000);
    let results = deliver(smtp(&fake), vec![large, fits]).await;
    let first = results[0].as_ref().unwrap();
    assert_eq!(code_of(&first[0]), (552, "MAIL"));
    assert!(matches!(&first[0], Verdict::Refused(refusal) if refusal.text.starts_with(b"5.3.4")));
    assert_eq!(results[1], Ok(accepted(1)));
    assert_eq!(fake.commands("MAIL").len(), 1);
}

// quirks: "Return-Path with spaces, CR, NUL, ... UTF-8 without SMTPUTF8 ...: a valid envelope sender or the null one"
#[tokio::test]
async fn utf8_addresses_without_smtputf8() {
    let fake = Fake::new(NO_CHUNKING);
    deliver(smtp(&fake), vec![Job { envelope: envelope("ü@x", &["ö@x"]), ..job(1, &["a@b"]) }]).await;
    assert_eq!(fake.commands("MAIL"), ["MAIL FROM:<ü@x> BODY=8BITMIME SMTPUTF8"]);

    let fake = Fake::new(&["PIPELINING"]);
    let jobs = vec![
        Job { envelope: envelope("ü@x", &["ö@x", "a@x"]), ..job(1, &["a@b"]) },
        Job { envelope: envelope("u@x", &["ö@x"]), ..job(2, &["a@b"]) },
    ];
    let results = deliver(smtp(&fake), jobs).await;
    assert_eq!(
        results[0].as_ref().unwrap().iter().map(code_of).collect::<Vec<_>>(),
        [(553, "RCPT"), (250, "")]
    );
    assert_eq!(code_of(&results[1].as_ref().unwrap()[0]), (553, "RCPT"));
    assert_eq!(fake.commands("MAIL"), ["MAIL FROM:<>"]);
    assert_eq!(fake.commands("RCPT"), ["RCPT TO:<a@x>"]);
}

// quirks: "PIPELINING: bounded window, no deadlock when both sides block on writes."
#[tokio::test]
async fn no_deadlock_when_both_sides_have_much_to_say() {
    for announces in [ALL, NO_CHUNKING] {
        let fake = Fake::with(announces, |_, what| {
            // Replies of 8 KB through a pipe of 1 KB.
            what.starts_with("RCPT")
                .then(|| Act::Say(format!("250-{}\r\n", "x".repeat(400)).repeat(20) + "250 ok\r\n"))
        });
        fake.state().pipe = 1024;
        let big = "line of a large message\n".repeat(4000);
        let jobs = (0..20).map(|id| Job { content: whole(&big), ..job(id, &["a@b"]) }).collect();
        let results = tokio::time::timeout(Duration::from_secs(20), deliver(smtp(&fake), jobs))
            .await
            .expect("no deadlock");
        // The rule's answers take the place of the usual acceptance.
        assert_eq!(results.len(), 20);
    }
}

#[tokio::test]
async fn the_pipeline_keeps_one_flight_for_each_message() {
    // 50 ms each way and back: what was announced decides how many flights a
    // message takes, on one connection.
    tokio::time::pause();
    for (announces, most) in [(ALL, 400), (NO_CHUNKING, 1400)] {
        let fake = Fake::new(announces);
        fake.state().delay = Duration::from_millis(25);
        let mut courier = smtp(&fake);
        // The connection and the first message.
        courier.jobs.send(job(0, &["a@b"])).await.unwrap();
        courier.outcomes.recv().await.unwrap();
        let begun = Instant::now();
        for id in 1..21 {
            courier.jobs.send(job(id, &["a@b"])).await.unwrap();
        }
        for _ in 1..21 {
            courier.outcomes.recv().await.unwrap();
        }
        let took = begun.elapsed().as_millis();
        assert!(took < most, "{announces:?}: {took} ms");
    }
}
