//! What multi-line answers of real and hostile servers do to a whole poll.

use std::time::Duration;

use crate::support::mail::{canonical, message};
use crate::support::pop3::{Act, Mail, Pop3, retr_answer};
use crate::support::rig::Rig;
use crate::support::smtp::Smtp;

/// A message with a mark and this body.
fn with_body(mark: &str, body: &[u8]) -> Vec<u8> {
    let mut text = format!("X-Rpop-Mark: {mark}\r\nFrom: s@sender.test\r\n\r\n").into_bytes();
    text.extend_from_slice(body);
    text
}

#[test]
fn a_bare_line_feed_ends_neither_the_message_nor_starts_a_reply() {
    // quirks: "End only on exact `CRLF . CRLF`."
    let attack = with_body(
        "attack",
        b"before\n.\r\n+OK 99 octets\r\nX-Rpop-Mark: forged\r\nFrom: ceo@example.com\r\n\r\npay\n.\n+OK\r\nend\r\n",
    );
    let rig = Rig::new(Pop3::new().mail("attack", &attack).generated("m", 2, 400));
    rig.poll().expect(0);
    assert_eq!(rig.marks(), ["attack", "m-00000", "m-00001"]);
    let mail = rig.sink.mail();
    let found = mail.iter().find(|mail| mail.message.mark() == "attack").unwrap();
    assert_eq!(found.message.original(), canonical(&attack));
    assert_eq!(rig.sink.commands().iter().filter(|(_, line)| line.starts_with("MAIL")).count(), 3);
}

/// Message 1 is answered wrongly; 2 and 3 are fine and must arrive.
fn the_rest_arrives(answer: Vec<u8>, size: Option<u64>, octets: &[u8]) -> Rig {
    let first = Mail { uid: b"bad".to_vec(), octets: octets.to_vec(), size };
    let rig = Rig::new(Pop3::new().mail_with(first).generated("m", 2, 400).script(move |call| {
        if call.verb == "RETR" && call.number() == 1 && !answer.is_empty() {
            Act::Say(answer.clone())
        } else {
            Act::Properly
        }
    }));
    rig.poll_until(2, 3);
    rig
}

#[test]
fn an_unstuffed_terminator_in_the_middle_neither_blocks_nor_repeats() {
    // quirks: "Unstuffed `CRLF.CRLF` mid-body (broken server)"
    let whole = with_body("bad", b"first half\r\n.\r\nX-Rpop-Mark: forged\r\n\r\nsecond half\r\n");
    let mut answer = b"+OK\r\n".to_vec();
    answer.extend_from_slice(&whole);
    answer.extend_from_slice(b".\r\n");
    // By LIST, a dot at the start of a line counts once.
    let rig = the_rest_arrives(answer, Some(whole.len() as u64), &whole);
    for _ in 0..3 {
        rig.poll();
    }
    let marks = rig.marks();
    assert!(!marks.contains(&"forged".to_owned()) && !marks.contains(&"bad".to_owned()), "{marks:?}");
    assert!(rig.pop.uids().contains(&"bad".to_owned()), "what was not delivered was deleted");
    let tries = rig.pop.retrieved().iter().filter(|uid| *uid == "bad").count();
    let asked = rig.pop.commands().iter().filter(|(_, line)| line == "RETR 1").count();
    assert!(tries + asked <= 6, "retrieved {asked} times in a few polls");
}

#[test]
fn a_terminator_glued_to_the_last_line_blocks_nobody() {
    // quirks: "Terminator glued to the last line (Exchange 2000)"
    let whole = with_body("bad", b"text\r\nlast line");
    let mut answer = b"+OK\r\n".to_vec();
    answer.extend_from_slice(&whole);
    answer.extend_from_slice(b".\r\n");
    let rig = the_rest_arrives(answer, Some(whole.len() as u64), &whole);
    for _ in 0..2 {
        rig.poll();
    }
    let marks = rig.marks();
    assert!(marks.contains(&"m-00000".to_owned()) && marks.contains(&"m-00001".to_owned()), "{marks:?}");
    assert!(marks.contains(&"bad".to_owned()) || rig.pop.uids() == ["bad"], "it is lost");
}

#[test]
fn short_and_odd_replies_are_what_they_are() {
    // quirks: "`+OK` without text; `+ERR`; a reply without CRLF; EOF anywhere."
    let rig = Rig::new(Pop3::new().banner("+OK").generated("m", 3, 400).script(|call| {
        match (call.verb, call.session) {
            ("RETR", _) if call.number() == 2 => Act::line("+ERR no such message"),
            ("USER" | "NOOP", _) => Act::line("+OK"),
            _ => Act::Properly,
        }
    }));
    rig.poll();
    let marks = rig.marks();
    assert!(marks.contains(&"m-00000".to_owned()), "{marks:?}");
    assert!(!marks.contains(&"m-00001".to_owned()), "{marks:?}");
    assert!(rig.pop.uids().contains(&"m-00001".to_owned()), "+ERR was taken for success");
    for verb in ["CONNECT", "CAPA", "USER", "PASS", "AUTH", "STAT", "LIST", "UIDL", "RETR", "DELE", "QUIT"] {
        let wanted = verb.to_owned();
        let script = move |call: &crate::support::pop3::Call<'_>| match call.session {
            1 if call.verb == wanted => Act::SayAndClose(b"+OK 1 2".to_vec()),
            _ => Act::Properly,
        };
        let rig = Rig::new(Pop3::new().generated("m", 3, 400).script(script));
        let run = rig.poll();
        assert!(run.took < Duration::from_secs(8), "{verb}: {:?}", run.took);
        assert!(matches!(run.code(), 0 | 1), "{verb}: {}", run.text());
        rig.poll();
        assert!(rig.marks().len() + rig.pop.uids().len() >= 3, "{verb}: mail is lost");
    }
}

#[test]
fn the_strangest_mail_arrives_with_its_octets() {
    // quirks: "1 MB line, 3 MB header, NUL, lone CR, lone LF, 8-bit, 0-byte message, ..."
    let long_line = with_body("long-line", &[b"y".repeat(1_000_000), b"\r\n".to_vec()].concat());
    let mut long_header = b"X-Rpop-Mark: long-header\r\n".to_vec();
    for at in 0..60_000 {
        long_header
            .extend_from_slice(format!("X-Filler-{at}: 0123456789012345678901234567890123\r\n").as_bytes());
    }
    long_header.extend_from_slice(b"\r\nbody\r\n");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("long-line", long_line),
        ("long-header", long_header),
        ("nul", with_body("nul", b"a\0b\r\n\0\r\n")),
        ("bare-lf", with_body("bare-lf", b"one\ntwo\n.\n..\n.three\r\n")),
        ("eight-bit", with_body("eight-bit", b"\xe4\xf6\xfc \xff\xfe\x80\r\n")),
        ("no-blank-line", b"X-Rpop-Mark: no-blank-line\r\nSubject: only a header\r\n".to_vec()),
        (
            "bad-header",
            b"X-Rpop-Mark: bad-header\r\nthis is no header line\r\nSubject: x\r\n\r\nbody\r\n".to_vec(),
        ),
        ("dots", with_body("dots", b".\r\n..\r\n...\r\n.x\r\n \r\n.")),
    ];
    let pop = cases.iter().fold(Pop3::new(), |pop, (name, octets)| pop.mail(name, octets));
    let rig = Rig::new(pop);
    rig.poll().expect(0);
    assert_eq!(rig.sink.accepted(), cases.len());
    let arrived = rig.sink.messages();
    for (name, octets) in &cases {
        let found =
            arrived.iter().find(|message| message.mark() == *name).unwrap_or_else(|| panic!("{name}"));
        let mut wanted = canonical(octets);
        if !wanted.ends_with(b"\r\n") {
            wanted.extend_from_slice(b"\r\n");
        }
        assert!(
            found.raw.ends_with(&wanted) || found.raw.ends_with(&[&wanted[..], b"\r\n"].concat()),
            "{name} changed"
        );
    }
}

#[test]
fn lone_cr_an_empty_message_a_blank_first_line_and_a_from_line_arrive() {
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("cr", with_body("cr", b"one\rtwo\r\n")),
        ("empty", Vec::new()),
        ("blank-first", b"\r\nX-Not-A-Header: x\r\nblank first\r\n".to_vec()),
        ("from", b"From sender Mon Nov  2 10:00:00 2026\r\nX-Rpop-Mark: from\r\n\r\nmbox\r\n".to_vec()),
    ];
    let pop = cases.iter().fold(Pop3::new(), |pop, (name, octets)| pop.mail(name, octets));
    let rig = Rig::new(pop);
    rig.poll().expect(0);
    assert_eq!((rig.sink.accepted(), rig.pop.uids().len()), (4, 0));
    let arrived = rig.sink.messages();
    assert!(
        arrived.iter().all(|message| !message.headers("Received").is_empty()),
        "each has its trace header"
    );
    let by = |name: &str| arrived.iter().find(|message| message.mark() == name).unwrap();
    assert!(!by("cr").raw.windows(2).any(|pair| pair[0] == b'\r' && pair[1] != b'\n'));
    assert!(by("cr").text().contains("one") && by("cr").text().contains("two"));
    assert!(!by("from").text().contains("From sender Mon"), "{}", by("from").text());
    assert!(
        arrived.iter().any(|message| message.text().contains("\n\nX-Not-A-Header: x\nblank first")),
        "a body became a header"
    );
}

#[test]
fn wrong_sizes_and_counts_do_not_matter() {
    // quirks: "LIST size wrong or 0; RETR octets differ; LIST, UIDL and STAT counts disagree"
    let sizes = [Some(0), Some(7), Some(1_000_000), None, Some(401)];
    let mut pop = Pop3::new();
    for (at, size) in sizes.iter().enumerate() {
        let mark = format!("m-{at:05}");
        pop =
            pop.mail_with(Mail { uid: mark.clone().into_bytes(), octets: message(&mark, 400), size: *size });
    }
    let rig = Rig::new(pop.script(|call| match call.verb {
        "STAT" => Act::line("+OK 3 12345"),
        _ => Act::Properly,
    }));
    rig.poll_until(5, 3);
    rig.poll();
    assert_eq!(rig.marks().len(), 5);
    for accepted in rig.sink.mail() {
        assert_eq!(accepted.message.original(), message(&accepted.message.mark(), 400));
    }
    assert!(rig.pop.uids().is_empty());
}

#[test]
fn list_may_be_missing_or_short() {
    for answer in [&b"-ERR unknown command\r\n"[..], b"+OK\r\n.\r\n", b"+OK\r\n1 400\r\nx y\r\n99 5\r\n.\r\n"]
    {
        let answer = answer.to_vec();
        let rig = Rig::new(Pop3::new().generated("m", 3, 400).script(move |call| {
            match (call.verb, call.argument) {
                ("LIST", "") => Act::Say(answer.clone()),
                _ => Act::Properly,
            }
        }));
        rig.poll_until(3, 3);
        assert_eq!(rig.marks().len(), 3);
    }
}

#[test]
fn an_unsolicited_reply_is_noticed_before_a_message_is_taken_for_another() {
    // quirks: "An unsolicited extra reply between two messages"
    let forged = retr_answer(b"X-Rpop-Mark: forged\r\nFrom: ceo@example.com\r\n\r\npay\r\n");
    for extra in [forged, b"+OK\r\n".to_vec(), b"-ERR\r\n".to_vec(), b"+OK 400 octets\r\n".to_vec()] {
        let extra = extra.clone();
        let rig = Rig::keeping(Pop3::new().generated("m", 6, 400).script(move |call| {
            if call.session == 1 && call.verb == "RETR" && call.number() == 3 {
                Act::ProperlyThen(extra.clone())
            } else {
                Act::Properly
            }
        }));
        rig.poll();
        for accepted in rig.sink.mail() {
            let mark = accepted.message.mark();
            assert_eq!(accepted.message.original(), message(&mark, 400), "torn or forged");
        }
        rig.poll_until(5, 3);
        let marks = rig.marks();
        assert!(!marks.contains(&"forged".to_owned()), "{marks:?}");
        assert_eq!(rig.pop.uids().len(), 6);
        // The one message that the disturbance was behind may be set aside
        // for a while; what is in the ledger is not another one's UID.
        rig.poll();
        assert!(rig.marks().len() >= 5, "{:?}", rig.marks());
    }
}

#[test]
fn endless_answers_are_bounded_in_time_and_memory() {
    // quirks: "An endless line, header, UIDL list, CAPA or EHLO answer"
    let cases: &[(&str, &[u8])] = &[
        ("CONNECT", b"+OK endless"),
        ("CAPA", b"+OK\r\n"),
        ("CAPA", b"x"),
        ("UIDL", b"1 a\r\n"),
        ("UIDL", b"1"),
        ("LIST", b"1 1\r\n"),
        ("PASS", b"z"),
        ("AUTH", b"z"),
        ("DELE", b"+"),
        ("QUIT", b"+"),
    ];
    for (verb, octets) in cases {
        let octets = octets.to_vec();
        let rig =
            Rig::new(Pop3::new().generated("m", 2, 400).script(move |call| {
                if call.verb == *verb { Act::Flood(octets.clone()) } else { Act::Properly }
            }));
        let mut running = rig.site.start_once();
        let peak = peak_until_end(&mut running);
        let run = running.wait();
        assert!(run.took < Duration::from_secs(28), "{verb}: {:?}", run.took);
        assert!(peak < 96 * 1024, "{verb}: {peak} KiB resident");
    }
}

/// The most that a process had resident, in KiB.
fn peak_until_end(running: &mut crate::support::rpop::Running) -> u64 {
    let path = format!("/proc/{}/status", running.pid());
    let mut peak = 0;
    while running.runs() {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        peak = peak.max(now);
        std::thread::sleep(Duration::from_millis(5));
    }
    peak
}

#[test]
fn an_endless_header_or_line_in_a_message_takes_bounded_memory() {
    for octets in [&b"x"[..], b"X-Endless: header\r\n"] {
        let octets = octets.to_vec();
        let flood = octets.clone();
        let pop = Pop3::new().generated("m", 2, 400).script(move |call| {
            if call.verb == "RETR" && call.number() == 1 {
                let mut all = b"+OK\r\n".to_vec();
                all.extend_from_slice(&flood);
                Act::Flood(if flood.len() == 1 { flood.clone() } else { all })
            } else {
                Act::Properly
            }
        });
        let rig = Rig::to(pop, Smtp::lmtp().counting_only());
        rig.site.settings(&["timeouts: {connect: 3s, reply: 3s, data: 3s, session: 4s, afterDot: 3s}"]);
        let mut running = rig.site.start_once();
        let peak = peak_until_end(&mut running);
        let run = running.wait();
        assert!(run.took < Duration::from_secs(20), "{:?}", run.took);
        assert!(peak < 96 * 1024, "{peak} KiB resident");
        assert!(!rig.marks().contains(&"m-00000".to_owned()));
    }
}

#[test]
fn one_octet_a_second_is_not_progress() {
    // quirks: "One byte a second: a floor on the rate, not only on the silence."
    for verb in ["CONNECT", "CAPA", "UIDL", "LIST"] {
        let rig = Rig::new(Pop3::new().generated("m", 1, 400).script(move |call| {
            if call.verb == verb {
                Act::Dribble(b"+OK abcdefghijklmnopqrstuvwxyz ".to_vec(), Duration::from_millis(500))
            } else {
                Act::Properly
            }
        }));
        let run = rig.poll();
        assert!(run.took < Duration::from_secs(15), "{verb}: {:?}", run.took);
        if verb == "CONNECT" {
            assert_eq!(run.code(), 1, "{}", run.text());
        }
    }
}

#[test]
fn the_pop3_side_dies_in_the_middle_of_a_message() {
    // quirks: "The POP3 side dies mid-message: drop the SMTP connection, never send the final dot."
    let torn = [b"+OK\r\n".to_vec(), message("m-00002", 60_000)[..40_000].to_vec()].concat();
    let rig = Rig::new(Pop3::new().generated("m", 5, 60_000).script(move |call| {
        if call.session == 1 && call.verb == "RETR" && call.number() == 3 {
            Act::SayAndClose(torn.clone())
        } else {
            Act::Properly
        }
    }));
    let run = rig.poll();
    assert!(run.took < Duration::from_secs(8), "the end of the stream was waited for: {:?}", run.took);
    rig.poll_until(5, 3);
    assert_eq!(rig.marks().len(), 5);
    for accepted in rig.sink.mail() {
        assert_eq!(accepted.message.original(), message(&accepted.message.mark(), 60_000));
    }
}
