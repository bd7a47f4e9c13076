//! Unified domain-wide accounts between real servers: each message lies where
//! its users look for it.

use std::collections::BTreeSet;

use crate::support::dovecot::Dovecot;
use crate::support::mail::{Arrived, message};
use crate::support::manifest::Record;
use crate::support::postfix::Postfix;
use crate::support::rpop::{self, Site};
use crate::support::wait_until;

/// A provider that collects the mail of a domain, and the home of its users.
fn pair(test: &str) -> Option<(Dovecot, Dovecot)> {
    let (provider, home) = (Dovecot::start(test)?, Dovecot::start(test)?);
    provider.add(["catchall"]);
    home.add(["alice", "bob", "postmaster"]);
    Some((provider, home))
}

/// As a provider stores it: `fields` in front of what was sent.
fn stored(mark: &str, fields: &str) -> Vec<u8> {
    [fields.as_bytes(), message(mark, 2000).as_slice()].concat()
}

fn record(provider: &Dovecot, special: &str) -> Record {
    Record::plain("whole-domain", provider.pop3, "catchall")
        .to("postmaster@local.test")
        .with(&format!("special: {special}"))
}

/// The marks of what an account has; one that is there twice is there twice.
fn marks(home: &Dovecot, account: &str) -> Vec<String> {
    let mut marks: Vec<String> = home.inbox(account).read().iter().map(Arrived::mark).collect();
    marks.sort();
    marks
}

#[test]
fn each_message_goes_to_whom_the_provider_names() {
    let Some((provider, home)) = pair("each_message_goes_to_whom_the_provider_names") else { return };
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    site.settings(&["mainDomain: local.test"]);
    site.record(&record(&provider, "X-Original-To"));
    let sent = [
        stored("for-alice", "Return-Path: <s@sender.test>\r\nX-Original-To: alice@local.test\r\n"),
        stored("for-both", "X-Original-To: alice@local.test\r\nX-Original-To:\r\n <bob@LOCAL.test>\r\n"),
        stored("for-a-tag", "X-Original-To: bob+lists@local.test\r\n"),
        stored("for-nobody-here", "X-Original-To: eve@elsewhere.test\r\n"),
        stored("for-nobody", ""),
        stored(
            "half-unknown",
            "Return-Path: <s@sender.test>\r\nX-Original-To: alice@local.test, zoe@local.test\r\n",
        ),
    ];
    provider.inbox("catchall").fill(0, sent.iter().map(Vec::as_slice));
    site.once().expect(0);
    assert_eq!(marks(&home, "alice"), ["for-alice", "for-both", "half-unknown"]);
    assert_eq!(marks(&home, "bob"), ["for-both"]);
    // This Dovecot files by the detail of the address.
    let tagged = home.mailbox("bob", Some("lists")).read();
    assert_eq!(tagged.iter().map(Arrived::mark).collect::<Vec<_>>(), ["for-a-tag"]);
    let told = home.inbox("postmaster").read();
    let plain: BTreeSet<String> = told.iter().map(Arrived::mark).filter(|mark| !mark.is_empty()).collect();
    assert_eq!(plain, ["for-nobody".to_owned(), "for-nobody-here".to_owned()].into());
    // There is no SMTP to tell the sender by: the postmaster is told.
    let reports: Vec<_> = told.iter().filter(|mail| mail.text().contains("multipart/report")).collect();
    assert_eq!((told.len(), reports.len()), (3, 1));
    let report = reports[0].text();
    assert!(
        report.contains("Final-Recipient: rfc822; zoe@local.test") && report.contains("Action: failed"),
        "{report}"
    );
    assert!(!report.contains("alice@local.test"), "who has it is nobody's business: {report}");
    for mail in home.inbox("alice").read() {
        assert_eq!(mail.headers("X-Original-To"), Vec::<String>::new());
    }
    assert_eq!(provider.inbox("catchall").count(), 0);
    site.once().expect(0);
    assert_eq!(home.inbox("alice").count() + home.inbox("bob").count(), 4, "nothing comes twice");
}

#[test]
fn to_and_cc_serve_where_the_provider_kept_no_envelope() {
    let Some((provider, home)) = pair("to_and_cc_serve_where_the_provider_kept_no_envelope") else { return };
    let Some(postfix) = Postfix::start("to_and_cc_serve", home.lmtp) else { return };
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    site.settings(&["mainDomain: local.test"]);
    site.write("other.yaml", &crate::support::manifest::domain("other.test", &rpop::smtp(postfix.smtp)));
    site.record(&record(&provider, "\"*\""));
    let with = |mark: &str, to: &str| {
        let text = String::from_utf8(message(mark, 2000)).unwrap();
        text.replace("To: somebody@local.test\r\n", to).into_bytes()
    };
    let copy =
        with("copied", "To: alice@local.test, zoe@local.test\r\nCc: Bob <bob@local.test>, x@far.test\r\n");
    let traced = |trace: &str| [trace.as_bytes(), copy.as_slice()].concat();
    let sent = [
        traced("Received: from a by b; Mon, 2 Nov 2026 10:00:01 +0000\r\nDelivered-To: alice@local.test\r\n"),
        traced("Received: from a by b; Mon, 2 Nov 2026 10:00:02 +0000\r\nDelivered-To: bob@local.test\r\n"),
        with("unknown", "To: zoe@local.test\r\n"),
        with("two-ways", "To: alice@local.test\r\nCc: bob@other.test\r\n"),
    ];
    provider.inbox("catchall").fill(0, sent.iter().map(Vec::as_slice));
    site.once().expect(0);
    wait_until("the queue to empty", || postfix.queued() == 0);
    assert_eq!(marks(&home, "alice"), ["copied", "two-ways"]);
    assert_eq!(marks(&home, "bob"), ["copied", "two-ways"]);
    assert_eq!(marks(&home, "postmaster"), ["unknown"]);
    // A copy that arrives days later is recognised by another process.
    let late = traced("Received: from c by d; Tue, 3 Nov 2026 10:00:00 +0000\r\n");
    provider.inbox("catchall").fill(10, [late.as_slice()]);
    site.once().expect(0);
    assert_eq!((home.inbox("alice").count(), provider.inbox("catchall").count()), (2, 0));
}
