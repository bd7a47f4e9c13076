//! "A recipient refused for good, at RCPT or by LMTP after DATA, gets the
//! sender one delivery status notification a message (RFC 3464), sent by SMTP;
//! the null sender's, and where there is no SMTP, the postmaster is told; then
//! the message is done: here `onReject` has no say."

use super::*;
use crate::support::report::{Found, Reader};

/// The notification in a message, as Python's parser finds it.
fn opened(reader: &mut Reader, mail: &Arrived) -> Found {
    let found = reader.read(&mail.raw);
    assert_eq!(
        (found.kind.as_str(), found.report_type.as_deref()),
        ("multipart/report", Some("delivery-status"))
    );
    assert!(found.defects.is_empty() && found.header_defects.is_empty(), "{found:?}");
    let kinds: Vec<&str> = found.parts.iter().map(|part| part.kind.as_str()).collect();
    assert_eq!(kinds, ["text/plain", "message/delivery-status", "text/rfc822-headers"]);
    assert_eq!(found.header.value("Auto-Submitted"), Some("auto-replied"));
    found
}

/// Who failed by a notification, with status code and what the server said.
fn failed(found: &Found) -> Vec<(String, String, String)> {
    let value = |fields: &crate::support::report::Fields, name: &str| {
        fields.value(name).unwrap_or_default().to_owned()
    };
    found.status[1..]
        .iter()
        .map(|fields| {
            assert_eq!(fields.value("Action"), Some("failed"));
            let to = value(fields, "Final-Recipient");
            (to, value(fields, "Status"), value(fields, "Diagnostic-Code"))
        })
        .collect()
}

#[test]
fn the_sender_is_told_once_by_a_report_that_any_mail_reader_opens() {
    let test = "the_sender_is_told_once_by_a_report_that_any_mail_reader_opens";
    let settings = "smtpd_recipient_restrictions = check_recipient_access inline:{ { carol@local.test = 554 5.7.1 not for you } }, permit_mynetworks, reject\n";
    let Some(place) = Place::start(test, settings, Options::default()) else { return };
    let Some(mut reader) = Reader::start(test) else { return };
    for on_reject in ["Leave", "Postmaster", "Discard"] {
        place.record(HEADER, &[&format!("onReject: {on_reject}")]);
        let mark = format!("m-{on_reject}");
        place.put(&[enveloped(&mark, &["zoe@local.test", "alice@local.test", "carol@local.test"])]);
        place.poll(false);

        let held = place.queue.held();
        let [message, report] = &held[..] else { panic!("the message and one report: {held:?}") };
        assert_eq!(
            (message.message.mark(), message.asked()),
            (mark.clone(), vec![("alice@local.test", "FAILURE")])
        );
        assert_eq!((report.sender.as_str(), report.ret), ("", None), "the null sender");
        assert_eq!(report.asked(), [("author@sender.test", "NEVER")]);
        let found = opened(&mut reader, &report.message);
        assert_eq!(found.header.value("To"), Some("author@sender.test"));
        assert_eq!(found.header.value("From"), Some("Mail Delivery System <postmaster@local.test>"));
        assert_eq!(found.header.value("In-Reply-To"), Some(format!("<{mark}@sender.test>").as_str()));
        assert_eq!(found.status[1].value("Remote-MTA"), Some("dns; [127.0.0.1]"));
        let unknown = "smtp; 550 5.1.1 <zoe@local.test>: Recipient address rejected: User unknown in virtual mailbox table";
        let forbidden = "smtp; 554 5.7.1 <carol@local.test>: Recipient address rejected: not for you";
        let expected =
            [("rfc822; zoe@local.test", "5.1.1", unknown), ("rfc822; carol@local.test", "5.7.1", forbidden)];
        let expected = expected.map(|(to, status, said)| (to.to_owned(), status.to_owned(), said.to_owned()));
        assert_eq!(failed(&found), expected);
        for part in ["zoe@local.test", "carol@local.test", "not for you"] {
            assert!(found.parts[0].text().contains(part), "{part}: {}", found.parts[0].text());
        }
        let returned = found.parts[2].text();
        assert!(returned.contains(&format!("{MARK}: {mark}\n")) && !returned.contains(HEADER), "{returned}");
        assert!(!report.message.text().contains("alice@local.test"), "who has it is nobody's business");

        place.queue.release();
        let told = place.home.inbox("author").read();
        let about: Vec<_> = told.iter().filter(|mail| returned_mark(&mail.text()) == mark).collect();
        assert_eq!(about.len(), 1);
        assert_eq!(about[0].headers("Return-Path"), ["<>"]);
        // Done: it is gone, and whatever follows tells nobody anything.
        assert_eq!(place.left(), 0);
        place.poll(false);
        assert_eq!(place.queue.queued(), 0);
    }
    assert_eq!(place.marks("alice"), ["m-Discard", "m-Leave", "m-Postmaster"]);
    let others: usize = ["carol", "postmaster"].iter().map(|one| place.home.inbox(one).count()).sum();
    assert_eq!((others, place.home.inbox("author").count()), (0, 3));
    assert_eq!(place.queue.ever_queued(), 6);
}

#[test]
fn what_lmtp_refuses_behind_the_message_is_told_by_the_main_domain_s_queue() {
    let test = "what_lmtp_refuses_behind_the_message_is_told_by_the_main_domain_s_queue";
    let options = Options { most_messages: Some(2), ..Options::default() };
    let Some(place) = Place::start(test, "", options) else { return };
    let Some(mut reader) = Reader::start(test) else { return };
    place.second();
    place.record(HEADER, &[]);
    place.home.inbox("dan").fill_generated("full", 2, 300);
    // Large ones are streamed, small ones held whole: both are refused alike.
    for (mark, octets) in [("small", 0), ("large", 400_000)] {
        let header = format!("{HEADER}: dan@second.test\r\n{HEADER}: cy@second.test, nobody@second.test\r\n");
        let traces = format!("Return-Path: <author@sender.test>\r\n{header}");
        place.put(&[sized(mark, &traces, "From: author@sender.test\r\n", octets)]);
        place.poll(false);
        let held = place.queue.held();
        let [report] = &held[..] else { panic!("one report: {held:?}") };
        assert_eq!((report.sender.as_str(), report.asked()), ("", vec![("author@sender.test", "NEVER")]));
        let failed = failed(&opened(&mut reader, &report.message));
        let [(dan, status, full), (nobody, _, unknown)] = &failed[..] else { panic!("{failed:?}") };
        assert_eq!(nobody, "rfc822; nobody@second.test");
        assert!(unknown.starts_with("smtp; 550 5.1.1 "), "at RCPT: {unknown}");
        assert_eq!((dan.as_str(), status.as_str()), ("rfc822; dan@second.test", "5.2.2"));
        assert!(full.starts_with("smtp; 552 5.2.2 <dan@second.test> Quota exceeded"), "after DATA: {full}");
        place.queue.release();
    }
    assert_eq!(place.marks("cy"), ["large", "small"]);
    assert_eq!((place.home.inbox("dan").count(), place.left()), (2, 0));
    assert_eq!(place.home.inbox("author").count(), 2);
}

#[test]
fn of_what_has_no_sender_the_postmaster_is_told() {
    let test = "of_what_has_no_sender_the_postmaster_is_told";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    let Some(mut reader) = Reader::start(test) else { return };
    place.record(HEADER, &[]);
    let traces = format!("Return-Path: <>\r\n{HEADER}: zoe@local.test\r\n{HEADER}: alice@local.test\r\n");
    place.put(&[mail("bounce", &traces, "From: MAILER-DAEMON@far.test\r\n")]);
    place.poll(false);
    let held = place.queue.held();
    let [message, report] = &held[..] else { panic!("the message and one report: {held:?}") };
    assert_eq!((message.sender.as_str(), message.asked()), ("", vec![("alice@local.test", "FAILURE")]));
    assert_eq!((report.sender.as_str(), report.asked()), ("", vec![("postmaster@local.test", "NEVER")]));
    assert_eq!(failed(&opened(&mut reader, &report.message))[0].0, "rfc822; zoe@local.test");
    place.queue.release();
    assert_eq!((place.marks("alice"), place.home.inbox("postmaster").count()), (vec!["bounce".into()], 1));
    assert_eq!((place.home.inbox("author").count(), place.left()), (0, 0));
}

#[test]
fn where_there_is_no_queue_the_postmaster_is_told() {
    let test = "where_there_is_no_queue_the_postmaster_is_told";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    let Some(mut reader) = Reader::start(test) else { return };
    place.domain("local.test", &rpop::lmtp(place.home.lmtp), "");
    place.record(HEADER, &["onReject: Discard"]);
    place.put(&[enveloped("stored", &["zoe@local.test", "alice@local.test"])]);
    place.poll(false);
    assert_eq!((place.marks("alice"), place.left()), (vec!["stored".to_owned()], 0));
    let told = place.home.inbox("postmaster").read();
    assert_eq!(told.len(), 1);
    let found = opened(&mut reader, &told[0]);
    let failed = failed(&found);
    assert_eq!((failed.len(), failed[0].0.as_str()), (1, "rfc822; zoe@local.test"));
    assert!(found.parts[0].text().contains("author@sender.test"), "in whose stead");
    assert_eq!(told[0].headers("Return-Path"), ["<>"]);
    assert_eq!((place.queue.ever_queued(), place.home.inbox("author").count()), (0, 0));
}
