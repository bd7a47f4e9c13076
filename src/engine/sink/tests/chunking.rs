//! Servers that announce CHUNKING and mean something else, and the end of idle
//! connections.

use super::*;

fn without_bdat(announces: &[&'static str], reply: &'static str) -> Fake {
    let fake = Fake::with(announces, move |_, what| if what.starts_with("BDAT") { say(reply) } else { None });
    fake.state().no_bdat = true;
    fake
}

const ANNOUNCED: &[&[&str]] = &[ALL, &["CHUNKING"]];

#[tokio::test]
async fn where_bdat_is_not_known_data_is_used() {
    for announces in ANNOUNCED {
        for via in [Via::Smtp, Via::Lmtp] {
            for reply in ["500 what?", "501 what?", "502 5.5.1 no", "503 5.5.1 no", "504 no"] {
                let fake = without_bdat(announces, reply);
                let pool = fake.pool();
                let jobs = (1..20).map(|id| job(id, &["a@b"])).collect();
                let results = deliver(pool.open(route(via, host())), jobs).await;
                assert!(results.iter().all(|result| *result == Ok(accepted(1))), "{results:?}");
                // It is remembered for later polls, also on other connections.
                fake.state().commands.clear();
                let later = deliver(pool.open(route(via, host())), vec![job(20, &["a@b"])]).await;
                assert_eq!(later, [Ok(accepted(1))]);
                assert!(fake.commands("BDAT").is_empty());
                let mut taken = fake.taken();
                taken.sort_by_key(Taken::id);
                assert_eq!(taken.iter().map(Taken::id).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
                for taken in taken {
                    assert_eq!(taken.body, body_of(taken.id()));
                }
            }
        }
    }
}

// Its octets are there only once.
#[tokio::test]
async fn a_stream_is_no_test_of_whether_bdat_is_known() {
    for announces in ANNOUNCED {
        let fake = without_bdat(announces, "500 what?");
        let (parts, job) = streamed(1);
        let feed = tokio::spawn(async move {
            parts.send(Part::Data(piece(b"x: y\r\n\r\n", true))).await.unwrap();
            parts.send(Part::End).await.unwrap();
        });
        assert_eq!(deliver(smtp(&fake), vec![job]).await, [Ok(accepted(1))]);
        feed.await.unwrap();
        assert!(fake.commands("BDAT").is_empty());
        assert_eq!(fake.taken()[0].body, b"x: y\r\n\r\n");
    }
}

#[tokio::test]
async fn a_verdict_on_the_content_is_told_from_one_on_bdat() {
    for announces in ANNOUNCED {
        for (reply, at) in [
            ("550 5.7.1 spam", "."),
            ("552 5.3.4 too large", "."),
            ("554 5.6.0 virus", "."),
            ("452 4.3.1 full", "."),
            ("503 5.5.1 not now", "BDAT"),
        ] {
            // By then BDAT is known.
            let mut ends = 0;
            let fake = Fake::with(announces, move |_, what| {
                ends += usize::from(what == ".");
                if what == "." && ends == 2 { say(reply) } else { None }
            });
            let results = deliver(smtp(&fake), (1..4).map(|id| job(id, &["a@b"])).collect()).await;
            assert_eq!(code_of(&results[1].as_ref().unwrap()[0]).1, at, "{reply}");
            assert_eq!((&results[0], &results[2]), (&Ok(accepted(1)), &Ok(accepted(1))));
            assert_eq!(fake.connections(), 1);
        }
    }
}

#[tokio::test]
async fn a_verdict_on_the_first_message_is_no_reason_for_data() {
    for announces in ANNOUNCED {
        let fake = Fake::with(announces, |_, what| if what == "." { say("550 5.7.1 spam") } else { None });
        let results = deliver(smtp(&fake), vec![job(1, &["a@b"])]).await;
        assert_eq!(code_of(&results[0].as_ref().unwrap()[0]), (550, "."));
        assert!(fake.commands("DATA").is_empty());
    }
}

#[tokio::test]
async fn idle_connections_say_quit_when_the_pool_ends() {
    let fake = Fake::new(ALL);
    let pool = fake.pool();
    assert_eq!(deliver(pool.open(route(Via::Smtp, host())), vec![job(1, &["a@b"])]).await, [Ok(accepted(1))]);
    assert!(fake.commands("QUIT").is_empty());
    drop(pool);
    for _ in 0..1000 {
        if fake.state().open == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(fake.commands("QUIT"), ["QUIT"]);
}
