//! Envelopes whose recipients the destination is to name the good ones of, and
//! connections that are lost between two recipients' replies.

use super::*;

fn doubtful(job: Job) -> Job {
    Job { envelope: Envelope { await_recipients: true, ..job.envelope }, ..job }
}

fn two(id: u64) -> Job {
    job(id, &["a@b", "c@b"])
}

// DESIGN: with `special` nothing goes out in one flight, since a refused
// recipient changes what follows.
#[tokio::test]
async fn no_content_goes_out_before_the_replies_to_rcpt() {
    for announces in WAYS {
        for via in [Via::Smtp, Via::Lmtp] {
            let fake = Fake::with(announces, |_, what| match what {
                what if what.starts_with("RCPT TO:<bad") => say("550 5.1.1 no such user"),
                _ => None,
            });
            let courier = fake.pool().open(route(via, host()));
            let mut jobs = Vec::new();
            for (id, to) in [&["bad1@b"][..], &["bad1@b", "bad2@b"], &["bad1@b", "a@b"]]
                .iter()
                .cycle()
                .take(6)
                .enumerate()
            {
                jobs.push(doubtful(job(id as u64, to)));
            }
            let results = deliver(courier, jobs).await;
            for (id, result) in results.iter().enumerate() {
                let codes: Vec<_> = result.as_ref().unwrap().iter().map(code_of).collect();
                let refused = (550, "RCPT");
                let expected = [vec![refused], vec![refused, refused], vec![refused, (250, "")]];
                assert_eq!(codes, expected[id % 3], "{announces:?} {via:?}");
            }
            // Without recipients there is neither DATA nor BDAT (which is noted
            // only where it is refused).
            let commands = fake.state().commands.clone();
            let count = |verb: &str| commands.iter().filter(|line| line.starts_with(verb)).count();
            let data = if announces.contains(&"CHUNKING") && via == Via::Smtp { 0 } else { 2 };
            let counts = (count("BDAT"), count("DATA"), count("."));
            assert_eq!(counts, (0, data, 2), "{announces:?} {via:?} {commands:?}");
            let mut ids: Vec<_> = fake.taken().iter().map(Taken::id).collect();
            ids.sort_unstable();
            assert_eq!(ids, [2, 5]);
            assert!(
                fake.taken().iter().all(|taken| taken.to == ["a@b"] && taken.body == body_of(taken.id()))
            );
        }
    }
}

#[tokio::test]
async fn a_stream_whose_recipients_are_all_refused_is_not_read() {
    for announces in WAYS {
        let fake =
            Fake::with(announces, |_, what| if what.starts_with("RCPT") { say("550 no") } else { None });
        let mut courier = smtp(&fake);
        let (parts, job) = streamed(1);
        courier.jobs.send(doubtful(job)).await.unwrap();
        let outcome = courier.outcomes.recv().await.unwrap();
        assert_eq!(code_of(&outcome.result.unwrap()[0]), (550, "RCPT"));
        parts.closed().await;
        assert!(fake.commands("DATA").is_empty() && fake.commands("BDAT").is_empty());
    }
}

#[tokio::test]
async fn a_recipient_whose_reply_was_heard_does_not_get_the_message_again() {
    let replies: [(fn() -> Act, bool); 2] =
        [(|| Act::Close, true), (|| Act::Bye("421 4.3.2 going down\r\n".into()), false)];
    for announces in WAYS {
        for (act, unknown) in replies {
            let mut done = false;
            let fake = Fake::with(announces, move |_, what| {
                let hit = !done && what == ". c@b";
                done |= hit;
                hit.then(act)
            });
            let results = deliver(lmtp(&fake), vec![two(1), two(2)]).await;
            let first = results[0].as_ref().unwrap();
            assert_eq!(first[0], Verdict::Accepted);
            if unknown {
                assert!(
                    matches!(&first[1], Verdict::Unknown { message } if message.contains("may or may not"))
                );
            } else {
                assert_eq!(code_of(&first[1]), (421, "."));
            }
            assert_eq!(results[1], Ok(accepted(2)), "{announces:?}");
            assert_eq!(fake.commands(". a@b").len(), 2, "once for each message");
        }
    }
}

// Postfix' smtpd_hard_error_limit: it has heard of enough unknown recipients.
#[tokio::test]
async fn recipients_that_were_refused_before_the_connection_ended_are_not_asked_for_again() {
    let ends: [fn() -> Act; 2] = [|| Act::Close, || Act::Bye("421 4.7.0 too many errors\r\n".into())];
    for announces in WAYS {
        for act in ends {
            for via in [Via::Smtp, Via::Lmtp] {
                let fake = Fake::with(announces, move |_, what| match what {
                    what if what.starts_with("RCPT TO:<bad") => say("550 5.1.1 no such user"),
                    what if what.starts_with("RCPT TO:<end") => Some(act()),
                    _ => None,
                });
                let courier = fake.pool().open(route(via, host()));
                // More than connections may be lost in a row for nothing.
                let mut jobs: Vec<Job> =
                    (0..5).map(|id| doubtful(job(id, &["a@b", "bad@b", "end@b", "c@b"]))).collect();
                jobs.push(doubtful(two(5)));
                let results = deliver(courier, jobs).await;
                for result in &results[..5] {
                    let codes: Vec<_> = result.as_ref().unwrap().iter().map(code_of).collect();
                    assert_eq!(
                        codes,
                        [(421, "RCPT"), (550, "RCPT"), (421, "RCPT"), (421, "RCPT")],
                        "{announces:?}"
                    );
                }
                assert_eq!(results[5], Ok(accepted(2)), "{announces:?}");
                assert_eq!(fake.commands("RCPT TO:<bad").len(), 5, "once for each message");
                assert_eq!(fake.taken().len(), 1);
            }
        }
    }
}
