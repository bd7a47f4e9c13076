//! How many connections a courier uses, and how fast it is.

use super::*;

async fn rate(fake: &Fake, count: u64) -> f64 {
    let courier = smtp(fake);
    let begun = Instant::now();
    let results = deliver(courier, (0..count).map(|id| job(id, &["a@b"])).collect()).await;
    assert!(results.iter().all(|result| *result == Ok(accepted(1))));
    count as f64 / begun.elapsed().as_secs_f64()
}

#[tokio::test(start_paused = true)]
async fn latency_is_met_by_more_lanes() {
    let fake = Fake::new(NO_CHUNKING);
    fake.state().delay = Duration::from_millis(25);
    let rate = rate(&fake, 2000).await;
    assert!(rate >= 300.0, "{rate} messages/s at 50 ms");
    assert!(fake.state().most_open <= 20);
}

#[tokio::test(start_paused = true)]
async fn with_chunking_one_flight_takes_many() {
    let fake = Fake::new(ALL);
    fake.state().delay = Duration::from_millis(25);
    let rate = rate(&fake, 2000).await;
    assert!(rate >= 600.0, "{rate} messages/s at 50 ms");
}

#[tokio::test(start_paused = true)]
async fn a_fast_destination_gets_few_connections() {
    for (works, most) in [(Duration::ZERO, 1), (Duration::from_micros(500), 4)] {
        let fake = Fake::new(NO_CHUNKING);
        fake.state().works = works;
        rate(&fake, 1000).await;
        assert!(fake.connections() <= most, "{} at {works:?}", fake.connections());
    }
}

#[tokio::test(start_paused = true)]
async fn lanes_that_cannot_be_had_do_not_stop_those_that_work() {
    let fake = Fake::new(NO_CHUNKING);
    fake.state().delay = Duration::from_millis(25);
    let courier = smtp(&fake);
    courier.jobs.send(job(1000, &["a@b"])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(160)).await;
    let full = Trouble { code: Code::DestinationUnavailable, message: "too many connections".into() };
    fake.state().refuse = std::iter::repeat_n(full, 1000).collect();
    let results = deliver(courier, (0..100).map(|id| job(id, &["a@b"])).collect()).await;
    assert!(results.iter().all(|result| *result == Ok(accepted(1))));
    assert_eq!((results.len(), fake.connections()), (101, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stalled_stream_does_not_hold_up_what_comes_behind_it() {
    for announces in WAYS {
        let fake = Fake::new(announces);
        let Courier { jobs, mut outcomes } = smtp(&fake);
        let (parts, stalled) = streamed(1);
        jobs.send(stalled).await.unwrap();
        parts.send(Part::Data(piece(b"x: y\r\n", true))).await.unwrap();
        for id in 2..10 {
            jobs.send(job(id, &["a@b"])).await.unwrap();
        }
        for _ in 2..10 {
            let outcome =
                tokio::time::timeout(Duration::from_secs(5), outcomes.recv()).await.unwrap().unwrap();
            assert_eq!(outcome.result, Ok(accepted(1)));
        }
        tokio::time::sleep(Duration::from_secs(1000)).await;
        parts.send(Part::End).await.unwrap();
        assert_eq!(outcomes.recv().await.unwrap().id, 1, "{announces:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_polls_at_once_share_few_connections() {
    let fake = Fake::new(NO_CHUNKING);
    fake.state().works = Duration::from_millis(50);
    let pool = fake.pool();
    let polls: Vec<_> = (0..300)
        .map(|_| {
            tokio::spawn(deliver(
                pool.open(route(Via::Smtp, host())),
                (0..3).map(|id| job(id, &["a@b"])).collect(),
            ))
        })
        .collect();
    for poll in polls {
        assert!(poll.await.unwrap().iter().all(|result| *result == Ok(accepted(1))));
    }
    assert!(fake.state().most_open <= 50, "{} connections", fake.state().most_open);
}

// quirks: "One poison message, one silent server, one slow account never hold up another account."
#[tokio::test(start_paused = true)]
async fn slow_streams_do_not_use_up_the_connections_of_others() {
    let fake = Fake::new(NO_CHUNKING);
    let pool = fake.pool();
    let mut held = Vec::new();
    for _ in 0..60 {
        let courier = pool.open(route(Via::Smtp, host()));
        let (parts, slow) = streamed(1);
        courier.jobs.send(slow).await.unwrap();
        parts.send(Part::Data(piece(b"x: y\r\n", true))).await.unwrap();
        held.push((courier, parts));
    }
    let begun = Instant::now();
    let results = deliver(pool.open(route(Via::Smtp, host())), vec![job(1, &["a@b"])]).await;
    assert_eq!(results, [Ok(accepted(1))]);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn back_pressure_reaches_the_stream() {
    let fake = Fake::with(NO_CHUNKING, |_, what| {
        if what == "DATA" {
            Some(Act::Say("354 go\r\n".to_owned()))
        } else {
            what.starts_with("500").then_some(Act::Hang)
        }
    });
    let courier = smtp(&fake);
    let (parts, job) = streamed(1);
    courier.jobs.send(job).await.unwrap();
    let mut sent = 0;
    let chunk = Piece::new(Bytes::from("500 words\r\n".repeat(1000)), true);
    while let Ok(Ok(())) =
        tokio::time::timeout(Duration::from_millis(100), parts.send(Part::Data(chunk.clone()))).await
    {
        sent += chunk.len();
    }
    assert!(sent < 600_000, "{sent} octets were taken for a server that reads nothing");
}

/// Not a benchmark, a floor: `cargo test --release --lib -- --ignored throughput --nocapture`,
/// with `RPOP_MEASURE_SMTP=host:port` (or `RPOP_MEASURE_LMTP`) over the network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn throughput() {
    for announces in [NO_CHUNKING, ALL] {
        let fake = Fake::new(announces);
        measured(&format!("{announces:?}"), smtp(&fake), 20_000, "a@b").await;
    }
    for (variable, via) in [("RPOP_MEASURE_SMTP", Via::Smtp), ("RPOP_MEASURE_LMTP", Via::Lmtp)] {
        let Ok(at) = std::env::var(variable) else { continue };
        let (name, port) = at.rsplit_once(':').unwrap();
        let to = std::env::var("RPOP_MEASURE_TO").unwrap_or_else(|_| "a@b".to_owned());
        let endpoint = Endpoint::Tcp(name.into(), port.parse().unwrap());
        let pool = MailPool::new(Arc::default(), Arc::new(NoSecrets), "client.example".into());
        let count = std::env::var("RPOP_MEASURE_COUNT").map_or(20_000, |count| count.parse().unwrap());
        for _ in 0..2 {
            let courier = pool.open(route(via, MailHost { endpoint: endpoint.clone(), ..host() }));
            measured(&at, courier, count, &to).await;
        }
    }
}

struct NoSecrets;

impl Secrets for NoSecrets {
    fn get<'a>(
        &'a self,
        _: &'a SecretRef,
    ) -> crate::engine::ports::Pending<'a, Result<Zeroizing<Vec<u8>>, crate::engine::ports::SecretError>>
    {
        Box::pin(async { Err(crate::engine::ports::SecretError::Missing("none here".to_owned())) })
    }
}

async fn measured(what: &str, courier: Courier, count: u64, to: &str) {
    let content =
        whole(&format!("Subject: x\n\n{}", "some words of a message, many lines of them\n".repeat(93)));
    let Content::Whole(pieces) = &content else { unreachable!() };
    let begun = Instant::now();
    let jobs =
        (0..count).map(|id| Job { content: Content::Whole(Arc::clone(pieces)), ..job(id, &[to]) }).collect();
    let results = deliver(courier, jobs).await;
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    if let Some(odd) = results.iter().find(|result| **result != Ok(accepted(1))) {
        println!("{odd:?}");
    }
    let taken = results.iter().filter(|result| **result == Ok(accepted(1))).count();
    println!("{what}: {rate:.0} messages/s, {taken} of {count} accepted");
}
