//! What a transcript tells, and what it must not.

use super::*;
use crate::domain::work::SecretKind;

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Listens until the guard is dropped.
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        static ONCE: std::sync::Once = std::sync::Once::new();
        // Tests on other threads listen to nothing, and what is found out
        // about a place in the program while they reach it is remembered for
        // all threads: with somebody who listens everywhere it is not "never".
        ONCE.call_once(|| {
            tracing::subscriber::set_global_default(tracing_subscriber::registry()).ok();
        });
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .without_time()
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// The lines of the transcript, without what stands before and behind.
    fn transcript(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .filter_map(|line| line.split_once("DEBUG rpop::transcript: "))
            .map(|(_, said)| said.split(" connection=").next().unwrap().to_owned())
            .collect()
    }
}

fn with_password(password: &str) -> MailHost {
    let at = SecretRef {
        kind: SecretKind::Secret,
        namespace: "mail".into(),
        name: "relay".into(),
        key: password.into(),
    };
    MailHost {
        endpoint: Endpoint::Tcp("localhost".into(), 25),
        auth: Some(("walter77".into(), at)),
        ..host()
    }
}

#[tokio::test]
async fn a_transcript_has_commands_and_replies_and_of_a_message_its_size() {
    for (announces, sent) in [
        (&["8BITMIME"][..], &[">> DATA", "<< 354 go on", ">> (48 octets)", ">> .", "<< 250 taken"][..]),
        (&["8BITMIME", "CHUNKING"], &[">> BDAT 47 LAST", ">> (47 octets)", "<< 250 taken"]),
    ] {
        let log = Log::default();
        let guard = log.listen();
        let fake = Fake::new(announces);
        let text = "Subject: private\n\n.a\nwords for nobody else\n";
        let results = deliver(smtp(&fake), vec![Job { content: whole(text), ..job(1, &["a@b"]) }]).await;
        assert_eq!(results, [Ok(accepted(1))]);
        drop(guard);
        let said = log.transcript();
        let mut wanted =
            vec!["<< 220 fake ready", ">> EHLO client.example", "<< 250-fake", "<< 250-8BITMIME"];
        if announces.len() > 1 {
            wanted.push("<< 250-CHUNKING");
        }
        wanted.extend(["<< 250 HELP", ">> MAIL FROM:<s1@x> BODY=8BITMIME", "<< 250 sender ok"]);
        wanted.extend([">> RCPT TO:<a@b>", "<< 250 recipient ok"]);
        wanted.extend(sent);
        assert_eq!(said, wanted);
        for text in ["private", "words", "nobody"] {
            assert!(!said.iter().any(|line| line.contains(text)), "{said:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_is_told_by_its_size_also_where_it_breaks_off() {
    for (ends, told) in [(true, ">> (12 octets)"), (false, ">> (10 octets, and then broken off)")] {
        let log = Log::default();
        let guard = log.listen();
        let Courier { jobs, mut outcomes } = smtp(&Fake::new(PLAIN));
        let (parts, stream) = streamed(1);
        jobs.send(stream).await.unwrap();
        parts.send(Part::Data(piece(b"x: y\r\n", true))).await.unwrap();
        parts.send(Part::Data(piece(b"half", true))).await.unwrap();
        if ends {
            parts.send(Part::End).await.unwrap();
        }
        drop(parts);
        outcomes.recv().await.unwrap();
        drop(guard);
        let said = log.transcript();
        assert!(said.iter().any(|line| line == told), "{said:?}");
        assert_eq!(said.iter().any(|line| line == ">> ."), ends, "{said:?}");
    }
}

// quirks: "Log lines and status messages escape and cap what servers sent."
#[tokio::test]
async fn what_a_server_says_stays_one_short_line() {
    let log = Log::default();
    let guard = log.listen();
    let evil = format!("250-\x1b[2J\u{202e}\r\n250 {}", "x".repeat(5000));
    let fake = Fake::with(PLAIN, move |_, what| what.starts_with("MAIL").then(|| say(&evil)).flatten());
    deliver(smtp(&fake), vec![job(1, &["a@b"])]).await[0].as_ref().unwrap();
    drop(guard);
    let said = log.transcript();
    assert!(said.iter().any(|line| line == "<< 250-\\u{1b}[2J\\u{202e}"), "{said:?}");
    assert!(said.iter().all(|line| line.chars().count() < 220), "{said:?}");
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    let plain = "AHdhbHRlcjc3AGh1bnRlcjItcGFzc3dvcmQ=";
    for (announces, reply) in [
        (&["AUTH PLAIN"][..], "235 2.7.0 in"),
        (&["AUTH PLAIN"], "535 5.7.8 hunter2-password is wrong"),
        (&["AUTH PLAIN"], "500 5.5.2 what is AUTH PLAIN AHdhbHRlcjc3AGh1bnRlcjItcGFzc3dvcmQ=?"),
        (&["AUTH LOGIN"], "235 2.7.0 in"),
        (&["AUTH LOGIN"], "535 5.7.8 aHVudGVyMi1wYXNzd29yZA== is wrong"),
    ] {
        let log = Log::default();
        let guard = log.listen();
        let fake = Fake::with(announces, move |_, what| match what {
            "AUTH LOGIN" => say("334 VXNlcm5hbWU6"),
            "d2FsdGVyNzc=" => say("334 UGFzc3dvcmQ6"),
            _ if what.starts_with("AUTH") || what == "aHVudGVyMi1wYXNzd29yZA==" => say(reply),
            _ => None,
        });
        let courier = fake.pool().open(route(Via::Smtp, with_password("hunter2-password")));
        let results = deliver(courier, vec![job(1, &["a@b"])]).await;
        drop(guard);
        assert_eq!(results[0].is_ok(), reply.starts_with("235"));
        if announces == ["AUTH PLAIN"] {
            assert_eq!(fake.commands("AUTH"), [format!("AUTH PLAIN {plain}")]);
        }
        let said = log.transcript();
        let steps: &[&str] = if announces == ["AUTH PLAIN"] {
            &[">> AUTH PLAIN ***"]
        } else {
            &[">> AUTH LOGIN", "<< 334 VXNlcm5hbWU6", ">> ***", "<< 334 UGFzc3dvcmQ6", ">> ***"]
        };
        let from = said.iter().position(|line| line.starts_with(">> AUTH")).unwrap();
        assert_eq!(said[from..from + steps.len()], *steps);
        let told = if reply.starts_with("235") {
            format!("<< {reply}")
        } else {
            format!("<< {} ***", reply.split(' ').next().unwrap())
        };
        assert_eq!(said[from + steps.len()], told);
        // Everything that was logged, and what the user is told.
        let all = format!("{}{results:?}", String::from_utf8(log.0.lock().unwrap().clone()).unwrap());
        for secret in ["hunter2", "walter77", "AHdhbHRl", "d2FsdGVy", "aHVudGVy"] {
            assert!(!all.contains(secret), "{secret} in {all}");
        }
    }
}
