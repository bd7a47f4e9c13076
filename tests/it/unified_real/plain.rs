//! "Plain record: envelope recipient = the account. No `mailbox`: SMTP to the
//! domain's queue with `NOTIFY=NEVER`. `mailbox`: LMTP straight to
//! `account+mailbox@domain`, no queue."

use super::*;

#[test]
fn a_plain_record_s_mail_is_its_account_s_and_no_failure_is_reported() {
    let test = "a_plain_record_s_mail_is_its_account_s_and_no_failure_is_reported";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    place.provider.add(["a", "g"]);
    let record = |name: &str, to: &str| Record::plain(name, place.provider.pop3, name).to(to);
    place.site.record(&record("a", "alice@local.test"));
    place.site.record(&record("g", "ghost@local.test"));
    // Whatever the message says of recipients.
    let fields = "To: bob@local.test\r\nCc: carol@local.test\r\n";
    let traces = format!("Return-Path: <author@sender.test>\r\n{HEADER}: bob@local.test\r\n");
    for account in ["a", "g"] {
        place.provider.inbox(account).fill(0, [mail(account, &traces, fields).as_slice()]);
    }
    place.poll(false);
    let held = place.held();
    for (mark, to) in [("a", "alice@local.test"), ("g", "ghost@local.test")] {
        assert_eq!(held[mark].asked(), [(to, "NEVER")]);
        assert_eq!((held[mark].sender.as_str(), held[mark].ret), ("author@sender.test", None));
        assert_eq!(held[mark].message.headers(HEADER), ["bob@local.test"], "it is a header like others");
    }
    place.queue.release();
    assert_eq!(place.marks("alice"), ["a"]);
    // Nobody at home knows ghost, and his message's sender does not hear of it.
    assert_eq!(place.queue.logged("to=<ghost@local.test>, relay="), 1);
    assert_eq!(place.queue.logged("status=bounced"), 1);
    assert_eq!(place.home.inbox("author").count() + place.home.inbox("postmaster").count(), 0);
    assert_eq!(place.home.inbox("bob").count() + place.home.inbox("carol").count(), 0);
}

#[test]
fn a_mailbox_is_stored_directly_and_no_queue_hears_of_it() {
    let test = "a_mailbox_is_stored_directly_and_no_queue_hears_of_it";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    let both = format!(
        "{{smtp: {{host: 127.0.0.1, port: {}, tls: {{mode: None}}}}, lmtp: {{host: 127.0.0.1, port: {}, tls: {{mode: None}}}}}}",
        place.queue.smtp, place.home.lmtp
    );
    place.domain("local.test", &both, "aliases: [alias.test]");
    place.provider.add(["direct", "queued"]);
    let record = |name: &str| Record::plain(name, place.provider.pop3, name).to("alice@local.test");
    place.site.record(&record("direct").with("mailbox: Archive"));
    place.site.record(&record("queued"));
    for account in ["direct", "queued"] {
        let sent = addressed(account, "To: bob@local.test\r\n");
        place.provider.inbox(account).fill(0, [sent.as_slice()]);
    }
    place.poll(false);
    // Of a domain that has both, the queue gets what is for no mailbox.
    assert_eq!(place.held().keys().collect::<Vec<_>>(), ["queued"]);
    assert_eq!(place.queue.ever_queued(), 1);
    let stored = place.home.mailbox("alice", Some("Archive")).read();
    assert_eq!(marks(&stored), ["direct"]);
    assert_eq!(stored[0].headers("Delivered-To"), ["alice+Archive@local.test"]);
    assert_eq!(stored[0].headers("Return-Path"), ["<author@sender.test>"]);
    assert_eq!(place.home.inbox("alice").count(), 0);
}
