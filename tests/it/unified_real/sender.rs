//! "Sender: the address in Return-Path; without one the first of Sender, From
//! (the Resent- ones first); else the null sender. NOTIFY is said only where
//! the destination announces DSN; where it does not, 'do not report failures'
//! is kept by a null sender."

use super::*;

#[test]
fn the_sender_is_the_first_that_the_header_tells_of() {
    let test = "the_sender_is_the_first_that_the_header_tells_of";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    let cases = [
        (
            "path",
            "Return-Path: <list+b=c@lists.test>\r\n",
            "Sender: no@a.test\r\nFrom: no@b.test\r\n",
            "list+b=c@lists.test",
        ),
        ("sender", "", "From: no@b.test\r\nSender: Secretary <secretary@a.test>\r\n", "secretary@a.test"),
        ("from", "", "From: \"A, B\" <first@b.test>, second@b.test\r\n", "first@b.test"),
        (
            "resent-sender",
            "",
            "Resent-From: no@a.test\r\nResent-Sender: yes@a.test\r\nSender: no@b.test\r\n",
            "yes@a.test",
        ),
        (
            "resent-from",
            "",
            "Resent-From: yes@a.test\r\nSender: no@b.test\r\nFrom: no@c.test\r\n",
            "yes@a.test",
        ),
        ("nothing", "", "", ""),
        ("null", "Return-Path: <>\r\n", "From: no@b.test\r\n", ""),
        ("broken", "Return-Path: <a b@c.test>\r\n", "From: no@b.test\r\n", ""),
        ("injected", "Return-Path: <a@b.test>\r\n\tRCPT TO:<bob@local.test>\r\n", "From: no@b.test\r\n", ""),
    ];
    let to = format!("{HEADER}: alice@local.test\r\n");
    let sent: Vec<Vec<u8>> = cases
        .iter()
        .map(|(mark, traces, fields, _)| {
            mail(mark, &format!("{traces}{to}"), &format!("{fields}To: alice@local.test\r\n"))
        })
        .collect();
    let accounts = ["plain", NAME, "star"];
    place.provider.add(["plain", "star"]);
    let record = |name: &str| Record::plain(name, place.provider.pop3, name);
    place.site.record(&record("plain").to("alice@local.test"));
    place.record(HEADER, &[]);
    place.site.record(&record("star").to("postmaster@local.test").with("special: \"*\""));
    for account in accounts {
        place.provider.inbox(account).fill(0, sent.iter().map(Vec::as_slice));
    }
    place.poll(false);

    let held = place.queue.held();
    assert_eq!(held.len(), cases.len() * accounts.len());
    for (mark, _, _, sender) in cases {
        let these: Vec<&Queued> = held.iter().filter(|queued| queued.message.mark() == mark).collect();
        assert_eq!(these.len(), accounts.len(), "{mark}");
        for queued in these {
            assert_eq!(queued.sender, sender, "{mark}: {queued:?}");
            let to: Vec<&str> = queued.recipients.iter().map(|to| to.said.as_str()).collect();
            assert_eq!(to, ["alice@local.test"], "{mark}");
            assert_eq!(queued.message.headers("Return-Path"), [""; 0], "{mark}: it is removed");
        }
    }
    place.queue.release();
    // The Dovecot at home writes down which sender the message came with.
    let arrived = place.home.inbox("alice").read();
    assert_eq!(arrived.len(), cases.len() * accounts.len());
    for mail in arrived {
        let (mark, _, _, sender) = cases.iter().find(|(mark, ..)| mail.mark() == *mark).unwrap();
        assert_eq!(mail.headers("Return-Path"), [format!("<{sender}>")], "{mark}");
    }
}

/// A failure to deliver tells most: `ghost` is accepted by a Postfix, which
/// finds only later that nobody knows him.
#[test]
fn where_there_is_no_dsn_no_report_is_asked_for_by_a_null_sender_or_not_at_all() {
    let test = "where_there_is_no_dsn_no_report_is_asked_for_by_a_null_sender_or_not_at_all";
    let settings = "smtpd_discard_ehlo_keywords = dsn\n\
        virtual_mailbox_domains = local.test, kept.test, sender.test\n\
        virtual_mailbox_maps = static:x\n";
    let Some(place) = Place::start(test, settings, Options::default()) else { return };
    // `NullSender` is what is not said.
    let kept = format!(
        "{{smtp: {{host: 127.0.0.1, port: {}, tls: {{mode: None}}, withoutDsn: KeepSender}}}}",
        place.queue.smtp
    );
    place.domain("kept.test", &kept, "");
    place.provider.add(["nulled", "kept", "star"]);
    let record = |name: &str| Record::plain(name, place.provider.pop3, name);
    place.site.record(&record("nulled").to("ghost@local.test"));
    place.site.record(&record("kept").to("ghost@kept.test"));
    place.record(HEADER, &[]);
    place.site.record(&record("star").to("postmaster@local.test").with("special: \"*\""));
    let both = "ghost@local.test, ghost@kept.test";
    for account in ["nulled", "kept", NAME, "star"] {
        let sent = mail(
            account,
            &format!("Return-Path: <author@sender.test>\r\n{HEADER}: {both}\r\n"),
            &format!("To: {both}\r\n"),
        );
        place.provider.inbox(account).fill(0, [sent.as_slice()]);
    }
    place.poll(false);

    let mut held: Vec<(String, String, String)> = Vec::new();
    for queued in place.queue.held() {
        let [to] = &queued.recipients[..] else { panic!("one for each domain: {queued:?}") };
        assert_eq!((to.notify.as_str(), queued.ret), ("", None), "{queued:?}");
        held.push((queued.message.mark(), to.said.clone(), queued.sender.clone()));
    }
    held.sort();
    let author = "author@sender.test";
    let expected = [
        (NAME, "ghost@kept.test", author),
        (NAME, "ghost@local.test", author),
        ("kept", "ghost@kept.test", author),
        ("nulled", "ghost@local.test", ""),
        ("star", "ghost@kept.test", author),
        ("star", "ghost@local.test", ""),
    ];
    let expected = expected.map(|(mark, to, from)| (mark.to_owned(), to.to_owned(), from.to_owned()));
    assert_eq!(held, expected);
    assert_eq!(place.queue.logged(": reject: "), 0, "a parameter that was not announced is an error");

    place.queue.release();
    // Failures are reported for a header's recipients, and where the sender was kept.
    assert_eq!(place.bounces("author"), [NAME, NAME, "kept", "star"]);
    assert_eq!(place.home.inbox("author").count(), 4);
}
