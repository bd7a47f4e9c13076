//! Whole polls between real servers: what a user set up is what happens.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::authority::Authority;
use crate::support::dovecot::Dovecot;
use crate::support::mail::{census, census_arrived, message};
use crate::support::manifest::{self, Record};
use crate::support::pop3::Pop3;
use crate::support::postfix::Postfix;
use crate::support::proxy::{Proxy, Weather};
use crate::support::raw::Raw;
use crate::support::rpop::{self, Site};
use crate::support::smtp::Smtp;
use crate::support::wait_until;

/// What was sent to each account.
type Sent = BTreeMap<String, Vec<Vec<u8>>>;

/// Provider and home of `accounts`, each with `count` messages at the provider.
fn pair(test: &str, accounts: &[&str], count: usize) -> Option<(Dovecot, Dovecot, Sent)> {
    let (provider, home) = (Dovecot::start(test)?, Dovecot::start(test)?);
    provider.add(accounts);
    home.add(accounts);
    let fill = |account: &&str| {
        ((*account).to_owned(), provider.inbox(account).fill_generated(account, count, 3000))
    };
    let sent = accounts.iter().map(fill).collect();
    Some((provider, home, sent))
}

fn same(home: &Dovecot, account: &str, folder: Option<&str>, sent: &[Vec<u8>]) {
    let arrived = home.mailbox(account, folder).read();
    assert_eq!(census_arrived(&arrived), census(sent.iter().map(Vec::as_slice)), "{account}");
}

#[test]
fn clear_text_stls_and_tls_arrive_once_through_postfix() {
    let test = "clear_text_stls_and_tls_arrive_once_through_postfix";
    let Some((provider, home, sent)) = pair(test, &["alice", "bob", "carol"], 12) else { return };
    let Some(postfix) = Postfix::start(test, home.lmtp) else { return };
    let site = Site::for_delivery(&rpop::smtp(postfix.smtp));
    site.secret("ca", "ca.crt", &provider.authority.pem);
    site.record(&Record::plain("clear", provider.pop3, "alice"));
    site.record(&Record::plain("stls", provider.pop3, "bob").starttls());
    site.record(&Record::plain("tls", provider.pop3s, "carol").implicit());
    site.once().expect(0);
    wait_until("the queue to empty", || postfix.queued() == 0);
    for (account, sent) in &sent {
        same(&home, account, None, sent);
        assert_eq!(provider.inbox(account).count(), 0, "{account}");
    }
    site.once().expect(0);
    wait_until("the queue to empty", || postfix.queued() == 0);
    for (account, sent) in &sent {
        same(&home, account, None, sent);
    }
    let log = provider.log();
    assert!(log.contains("user=<bob>") && log.contains("TLS"), "{log}");
}

#[test]
fn a_mailbox_is_stored_directly_over_tcp_and_over_a_socket() {
    let test = "a_mailbox_is_stored_directly_over_tcp_and_over_a_socket";
    let Some((provider, home, sent)) = pair(test, &["alice", "bob"], 7) else { return };
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    let socket = format!("{{lmtp: {{socket: \"{}\", tls: {{mode: None}}}}}}", home.socket().display());
    site.write("socket.yaml", &manifest::domain("socket.test", &socket));
    site.record(&Record::plain("tcp", provider.pop3, "alice").with("mailbox: Archive"));
    site.record(&Record::plain("socket", provider.pop3, "bob").to("bob@socket.test").with("mailbox: Lists"));
    site.once().expect(0);
    same(&home, "alice", Some("Archive"), &sent["alice"]);
    same(&home, "bob", Some("Lists"), &sent["bob"]);
    assert_eq!(home.inbox("alice").count() + home.inbox("bob").count(), 0);
}

#[test]
fn what_is_kept_is_not_fetched_again_and_new_mail_is() {
    let Some((provider, home, mut sent)) = pair("what_is_kept", &["alice"], 30) else { return };
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    site.record(&Record::plain("keep", provider.pop3, "alice").with("leave: true"));
    site.once().expect(0);
    assert_eq!(provider.inbox("alice").count(), 30);
    let new = message("new-1", 1500);
    let reply = Raw::connect(provider.lmtp).deliver("LHLO x", "s@sender.test", "alice@p.test", &new);
    assert!(reply.starts_with("250"), "{reply}");
    let kept = sent.get_mut("alice").unwrap();
    kept.push(new);
    site.once().expect(0);
    same(&home, "alice", None, kept);
    assert_eq!(provider.inbox("alice").count(), 31);
    // quirks: "State survives a recreated pod": the state folder is all there is.
    let moved = Site::for_delivery(&rpop::lmtp(home.lmtp));
    moved.record(&Record::plain("keep", provider.pop3, "alice").with("leave: true"));
    std::fs::rename(&site.state, &moved.state).unwrap();
    moved.once().expect(0);
    same(&home, "alice", None, kept);
    // With leave turned off only later deliveries go, unless deleteSeen says so.
    moved.record(&Record::plain("keep", provider.pop3, "alice").with("leave: false"));
    moved.once().expect(0);
    assert_eq!(provider.inbox("alice").count(), 31);
    moved.record(&Record::plain("keep", provider.pop3, "alice").with("deleteSeen: true"));
    moved.once().expect(0);
    assert_eq!(provider.inbox("alice").count(), 0);
    same(&home, "alice", None, kept);
}

#[test]
fn a_wrong_password_disturbs_no_other_record() {
    let Some((provider, home, sent)) = pair("a_wrong_password", &["alice", "bob"], 5) else { return };
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    site.secret("wrong", "password", "not it");
    site.record(&Record::plain("right", provider.pop3, "alice"));
    site.record(&Record::plain("wrong", provider.pop3, "bob").secret("wrong"));
    let run = site.once().expect(1);
    run.says("AuthFailed");
    run.says("mail/wrong");
    assert!(!run.text().contains("not it"), "a password was printed:\n{}", run.text());
    same(&home, "alice", None, &sent["alice"]);
    assert_eq!((home.inbox("bob").count(), provider.inbox("bob").count()), (0, 5));
}

#[test]
fn two_thousand_messages_arrive_once_and_unchanged() {
    let Some((provider, home, sent)) = pair("two_thousand_messages", &["erin"], 2000) else { return };
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    site.secret("ca", "ca.crt", &provider.authority.pem);
    site.record(&Record::plain("many", provider.pop3s, "erin").implicit());
    site.once().expect(0);
    same(&home, "erin", None, &sent["erin"]);
    assert_eq!(provider.inbox("erin").count(), 0);
}

#[test]
fn latency_is_paid_once_and_not_for_each_message() {
    const COUNT: usize = 300;
    let test = "latency_is_paid_once_and_not_for_each_message";
    let Some((provider, home, sent)) = pair(test, &["alice", "bob"], COUNT) else { return };
    let far = Proxy::delaying(provider.pop3, Duration::from_millis(50));
    let beyond = Proxy::delaying(home.lmtp, Duration::from_millis(50));
    let site = Site::for_delivery(&rpop::lmtp(beyond.port));
    site.record(&Record::plain("far", far.port, "alice"));
    let run = site.once().expect(0);
    same(&home, "alice", None, &sent["alice"]);
    // One round trip of 0.1 s a message and a side would be a minute.
    assert!(run.took < Duration::from_secs(20), "{:?}", run.took);
    // And where the server announces no PIPELINING it just takes longer.
    let hiding = Proxy::start(provider.pop3, Weather { hide: Some("PIPELINING"), ..Weather::default() });
    site.remove("record-far.yaml");
    site.record(&Record::plain("old", hiding.port, "bob"));
    site.once().expect(0);
    same(&home, "bob", None, &sent["bob"]);
}

#[test]
fn a_certificate_is_trusted_for_a_reason_only() {
    let Some((provider, home, sent)) = pair("a_certificate", &["alice"], 3) else { return };
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    let other = Authority::new();
    site.secret("ca", "ca.crt", &other.pem);
    let record = Record::plain("tls", provider.pop3s, "alice");
    let wrong_pin = format!("{{pinSha256: [\"{}\"]}}", other.server(&["127.0.0.1"]).pin);
    let wrong_name = "{caRef: {name: right, key: ca.crt}, serverName: pop.elsewhere.test}";
    site.secret("right", "ca.crt", &provider.authority.pem);
    for refused in ["{mode: Implicit}", "{caRef: {name: ca, key: ca.crt}}", wrong_pin.as_str(), wrong_name] {
        site.record(&record.clone().tls(refused));
        site.once().expect(1).says("TlsFailed");
        assert_eq!(provider.logged("Login: user"), 0, "{refused}");
    }
    site.record(&record.tls(&format!("{{pinSha256: [\"{}\"]}}", provider.identity.pin)));
    site.once().expect(0);
    same(&home, "alice", None, &sent["alice"]);
}

#[test]
fn the_destination_is_reached_by_starttls_and_login() {
    let authority = Authority::new();
    let identity = authority.server(&["127.0.0.1"]);
    let sink = Smtp::new().starttls(identity.server_config()).login("relay", "open sesame").start();
    let pop = Pop3::new().generated("m", 4, 900).start();
    let delivery = format!(
        "{{smtp: {{host: 127.0.0.1, port: {}, tls: {{mode: StartTls, caRef: {{name: ca, key: ca.crt}}}}, \
         auth: {{username: relay, passwordSecretRef: {{name: relay, key: password}}}}}}}}",
        sink.port()
    );
    let site = Site::for_delivery(&delivery);
    site.secret("ca", "ca.crt", &authority.pem);
    site.secret("relay", "password", "open sesame");
    site.record(&Record::plain("r", pop.port(), "alice"));
    site.once().expect(0);
    assert_eq!(sink.accepted(), 4);
    // A destination whose login fails is not one that refused the messages.
    pop.put("m-x", &message("m-x", 500));
    site.secret("relay", "password", "closed");
    let run = site.once().expect(1);
    run.says("DestinationRefused");
    assert!(!run.text().contains("closed sesame") && !run.text().contains("open sesame"));
    assert_eq!((sink.accepted(), pop.uids().len()), (4, 1));
}

#[test]
fn mail_goes_into_a_maildir_where_there_is_no_mail_server() {
    let pop = Pop3::new().generated("m", 9, 1200).start();
    let site = Site::new();
    let path = site.path("mail");
    let delivery = format!("{{maildir: {{path: \"{}/{{local}}\"}}}}", path.display());
    site.write("domain.yaml", &manifest::domain("local.test", &delivery));
    site.record(&Record::plain("r", pop.port(), "alice"));
    site.once().expect(0);
    let arrived = crate::support::mail::Maildir::new(path.join("alice"), None).read();
    let sent: Vec<Vec<u8>> = (0..9).map(|at| message(&format!("m-{at:05}"), 1200)).collect();
    assert_eq!(census_arrived(&arrived), census(sent.iter().map(Vec::as_slice)));
    assert!(pop.uids().is_empty());
}

#[test]
fn the_trace_header_says_how_the_mail_came() {
    let Some((provider, home, _)) = pair("the_trace_header", &["alice", "bob"], 1) else { return };
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    site.secret("ca", "ca.crt", &provider.authority.pem);
    site.record(&Record::plain("clear", provider.pop3, "alice"));
    site.record(&Record::plain("tls", provider.pop3s, "bob").implicit());
    site.once().expect(0);
    for (account, with) in [("alice", "with POP3"), ("bob", "with POP3S")] {
        let arrived = home.inbox(account).read();
        let received = arrived[0].headers("Received");
        assert!(
            received.iter().any(|line| line.contains(&format!("{with} "))
                || line.contains(&format!("{with};"))
                || line.contains(&format!("{with}\n"))),
            "{received:?}"
        );
    }
}

#[test]
fn the_examples_are_valid() {
    let site = Site::new();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for name in ["demo", "one-machine", "maildir.yaml", "many-mailboxes.yaml"] {
        let path = folder.join(name);
        site.rpop(&["check", "-f", path.to_str().unwrap()]).expect(0);
    }
}
