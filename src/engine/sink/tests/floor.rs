//! Destinations that take a message slowly, and sources that give it slowly.

use super::*;

/// A destination that reads so many octets a second as soon as it knows a
/// recipient.
fn reads(announces: &[&'static str], octets: usize) -> Fake {
    let fake = Fake::new(announces);
    let rate = Arc::clone(&fake.state().rate);
    {
        let mut state = fake.state();
        state.pipe = 64;
        state.rule = Box::new(move |_, what| {
            if what.starts_with("RCPT") {
                rate.store(octets, Ordering::Relaxed);
            }
            None
        });
    }
    fake
}

fn large(octets: usize) -> String {
    "a line of some thirty-two octets\n".repeat(octets / 33)
}

// A tarpit: there is progress all the time.
#[tokio::test(start_paused = true)]
async fn a_destination_that_reads_an_octet_a_second_is_given_up() {
    for announces in WAYS {
        for octets in [1, 900] {
            let fake = reads(announces, octets);
            let text = large(400_000);
            let begun = Instant::now();
            let jobs = vec![Job { content: whole(&text), ..job(1, &["a@b"]) }];
            let results = deliver(smtp(&fake), jobs).await;
            let took = begun.elapsed().as_secs();
            assert!((60..100).contains(&took), "{took} s");
            assert!(
                matches!(&results[0], Err(Undelivered::Unavailable { code: Code::DestinationUnavailable, message })
                    if message.contains("less than 1 KiB a second")),
                "{announces:?} {results:?}"
            );
            assert!(fake.taken().is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn so_is_one_that_slows_down_in_the_midst_of_a_stream() {
    for announces in WAYS {
        let fake = reads(announces, 2000);
        let rate = Arc::clone(&fake.state().rate);
        let Courier { jobs, mut outcomes } = smtp(&fake);
        let (parts, stream) = streamed(1);
        jobs.send(stream).await.unwrap();
        let feed = tokio::spawn(async move {
            let lines = Bytes::from(large(16_000).replace('\n', "\r\n"));
            while parts.send(Part::Data(Piece::new(lines.clone(), true))).await.is_ok() {}
        });
        tokio::time::sleep(Duration::from_mins(5)).await;
        assert!(outcomes.try_recv().is_err(), "{announces:?}: fast enough so far");
        rate.store(10, Ordering::Relaxed);
        let begun = Instant::now();
        let result = outcomes.recv().await.unwrap().result;
        assert!(
            matches!(&result, Err(Undelivered::Unavailable { message, .. }) if message.contains("1 KiB a second")),
            "{announces:?} {result:?}"
        );
        // What it read fast in the window that had begun counts for it.
        assert!(begun.elapsed() < Duration::from_mins(2), "{:?}", begun.elapsed());
        feed.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_is_just_fast_enough_gets_its_message() {
    for announces in WAYS {
        let fake = reads(announces, 1500);
        let text = large(400_000);
        let begun = Instant::now();
        let results = deliver(smtp(&fake), vec![Job { content: whole(&text), ..job(1, &["a@b"]) }]).await;
        assert_eq!(results, [Ok(accepted(1))], "{announces:?}");
        assert!(begun.elapsed() > Duration::from_mins(4));
        assert_eq!(fake.taken()[0].body.len(), text.len() + text.lines().count());
    }
}

// Back-pressure: the time in which the POP3 server is slow is not the
// destination's.
#[tokio::test(start_paused = true)]
async fn a_source_that_gives_little_is_not_held_against_the_destination() {
    for announces in WAYS {
        let fake = reads(announces, 1500);
        let Courier { jobs, mut outcomes } = smtp(&fake);
        let (parts, stream) = streamed(1);
        jobs.send(stream).await.unwrap();
        for _ in 0..100 {
            parts.send(Part::Data(piece(b"only a few octets\r\n", true))).await.unwrap();
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        parts.send(Part::End).await.unwrap();
        assert_eq!(outcomes.recv().await.unwrap().result, Ok(accepted(1)), "{announces:?}");
        assert_eq!(fake.taken()[0].body.len(), 1900);
    }
}

// The time in which a server works on a message is not time in which it reads
// the next slowly.
#[tokio::test(start_paused = true)]
async fn work_on_one_message_is_not_held_against_the_next() {
    for announces in [ALL, NO_CHUNKING] {
        let fake = Fake::new(announces);
        {
            let mut state = fake.state();
            (state.pipe, state.works) = (64, Duration::from_mins(3));
        }
        let text = large(20_000);
        let jobs = (1..4).map(|id| Job { content: whole(&text), ..job(id, &["a@b"]) }).collect();
        let results = deliver(smtp(&fake), jobs).await;
        assert!(results.iter().all(|result| *result == Ok(accepted(1))), "{announces:?} {results:?}");
    }
}

// quirks: "per-read and whole-session deadlines; no phase without a deadline"
#[tokio::test(start_paused = true)]
async fn a_short_deadline_behind_a_long_one_is_kept() {
    for announces in [NO_CHUNKING, PLAIN] {
        // Five seconds for the first message, and then never a word.
        let fake = Fake::with(announces, |_, what| what.starts_with("MAIL FROM:<s2").then_some(Act::Hang));
        fake.state().works = Duration::from_secs(5);
        let begun = Instant::now();
        let Courier { jobs, mut outcomes } = smtp(&fake);
        jobs.send(job(1, &["a@b"])).await.unwrap();
        jobs.send(job(2, &["a@b"])).await.unwrap();
        drop(jobs);
        assert_eq!(outcomes.recv().await.unwrap().result, Ok(accepted(1)));
        let result = outcomes.recv().await.unwrap().result;
        let took = begun.elapsed().as_secs();
        assert!(took < 150, "{took} s: {result:?}");
    }
}
