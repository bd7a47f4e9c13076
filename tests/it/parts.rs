//! The parts themselves work: a red test elsewhere is not their fault.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::dovecot::{Dovecot, PASSWORD};
use crate::support::mail::{self, census, census_arrived, message};
use crate::support::pop3::{self, Pop3};
use crate::support::postfix::Postfix;
use crate::support::proxy::{Proxy, Weather};
use crate::support::raw::Raw;
use crate::support::smtp::{self, Smtp};
use crate::support::wait_until;

fn login(pop: &mut Raw, user: &str) {
    assert!(pop.line().starts_with("+OK"));
    assert!(pop.ask(&format!("USER {user}")).starts_with("+OK"));
    let reply = pop.ask(&format!("PASS {PASSWORD}"));
    assert!(reply.starts_with("+OK"), "{reply}");
}

#[test]
fn what_lmtp_brings_to_dovecot_pop3_shows() {
    let Some(dovecot) = Dovecot::start("what_lmtp_brings_to_dovecot_pop3_shows") else { return };
    dovecot.add(["alice"]);
    let sent = message("one", 2000);
    let reply = Raw::connect(dovecot.lmtp).deliver("LHLO x", "s@sender.test", "alice@local.test", &sent);
    assert!(reply.starts_with("250"), "{reply}");
    let reply = Raw::connect(dovecot.lmtp).deliver("LHLO x", "", "alice+Archive@local.test", &sent);
    assert!(reply.starts_with("250"), "{reply}");
    let wanted = census([sent.as_slice()]);
    assert_eq!(census_arrived(&dovecot.inbox("alice").read()), wanted);
    assert_eq!(census_arrived(&dovecot.mailbox("alice", Some("Archive")).read()), wanted);
    let mut pop = Raw::connect(dovecot.pop3);
    login(&mut pop, "alice");
    assert!(pop.ask("STAT").starts_with("+OK 1 "));
    assert!(pop.ask("RETR 1").starts_with("+OK"));
    let text = pop.until_dot().join("\r\n") + "\r\n";
    assert_eq!(mail::Arrived { raw: text.into_bytes() }.original(), sent);
}

#[test]
fn a_filled_maildir_is_served_with_its_true_sizes() {
    let Some(dovecot) = Dovecot::start("a_filled_maildir_is_served_with_its_true_sizes") else { return };
    dovecot.add(["bob"]);
    let messages = dovecot.inbox("bob").fill_generated("bob", 300, 1000);
    let mut pop = Raw::connect(dovecot.pop3);
    login(&mut pop, "bob");
    assert_eq!(pop.ask("STAT"), format!("+OK 300 {}", messages.iter().map(Vec::len).sum::<usize>()));
    assert_eq!(pop.ask("LIST 300"), format!("+OK 300 {}", messages[299].len()));
    assert!(pop.ask("RETR 7").starts_with("+OK"));
    assert_eq!((pop.until_dot().join("\r\n") + "\r\n").as_bytes(), messages[6]);
}

#[test]
fn postfix_queues_and_hands_over_to_dovecot() {
    let test = "postfix_queues_and_hands_over_to_dovecot";
    let Some(mut dovecot) = Dovecot::start(test) else { return };
    dovecot.add(["carol"]);
    let Some(postfix) = Postfix::start(test, dovecot.lmtp) else { return };
    dovecot.halt();
    let sent = message("queued", 5000);
    let reply = Raw::connect(postfix.smtp).deliver("EHLO x", "s@sender.test", "carol@local.test", &sent);
    assert!(reply.starts_with("250"), "{reply}");
    dovecot.resume();
    wait_until("the queue to run", || dovecot.inbox("carol").count() == 1);
    assert_eq!(census_arrived(&dovecot.inbox("carol").read()), census([sent.as_slice()]));
}

#[test]
fn the_proxy_delays_without_limiting() {
    let server = Pop3::new().generated("p", 400, 4000).start();
    let proxy = Proxy::delaying(server.port(), Duration::from_millis(40));
    let mut pop = Raw::connect(proxy.port);
    login(&mut pop, "alice");
    let start = Instant::now();
    pop.ask("NOOP");
    assert!(start.elapsed() >= Duration::from_millis(80));
    let start = Instant::now();
    let flight: Vec<String> = (1..=400).map(|number| format!("RETR {number}\r\n")).collect();
    pop.send(flight.concat().as_bytes());
    for _ in 0..400 {
        assert!(pop.line().starts_with("+OK"));
        assert!(!pop.until_dot().is_empty());
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?} for one flight", start.elapsed());
}

#[test]
fn the_proxy_cuts_and_hides() {
    let server = Pop3::new().start();
    let weather = Weather { hide: Some("PIPELINING"), ..Weather::default() };
    let hiding = Proxy::start(server.port(), weather);
    let mut pop = Raw::connect(hiding.port);
    assert_eq!(pop.line(), "+OK ready");
    assert_eq!(pop.ask("CAPA"), "+OK");
    let lines = pop.until_dot();
    assert!(lines.contains(&"UIDL".to_owned()) && !lines.contains(&"PIPELINING".to_owned()), "{lines:?}");
    let cutting = Proxy::start(server.port(), Weather { cut_after: Some(6), ..Weather::default() });
    let mut pop = Raw::connect(cutting.port);
    assert_eq!(pop.line(), "+OK re");
    assert_eq!(pop.line(), "");
}

#[test]
fn the_scripted_pop3_server_deletes_at_quit_only_and_follows_its_script() {
    let server = Pop3::new()
        .generated("f", 3, 300)
        .script(|call| match (call.verb, call.number()) {
            ("RETR", 2) => pop3::Act::line("-ERR out of order"),
            _ => pop3::Act::Properly,
        })
        .start();
    let mut pop = Raw::connect(server.port());
    login(&mut pop, "alice");
    assert_eq!(pop.ask("RETR 2"), "-ERR out of order");
    assert!(pop.ask("DELE 1").starts_with("+OK"));
    drop(pop);
    wait_until("the session's end", || server.open() == 0);
    assert_eq!(server.uids().len(), 3);
    let mut pop = Raw::connect(server.port());
    login(&mut pop, "alice");
    pop.ask("DELE 1");
    assert!(pop.ask("QUIT").starts_with("+OK"));
    assert_eq!(server.uids(), ["f-00001", "f-00002"]);
    assert_eq!((server.sessions(), server.logins(), server.count("DELE")), (2, 2, 2));
}

#[test]
fn the_scripted_lmtp_server_answers_for_each_recipient() {
    let server = Smtp::lmtp()
        .script(|call| match (call.verb, call.argument) {
            (".", "TO:<b@local.test>") => smtp::Act::Say("452 4.2.2 full".into()),
            _ => smtp::Act::Properly,
        })
        .start();
    let mut lmtp = Raw::connect(server.port());
    lmtp.reply();
    for command in
        ["LHLO x", "MAIL FROM:<s@s.test>", "RCPT TO:<a@local.test>", "RCPT TO:<b@local.test>", "DATA"]
    {
        lmtp.send(format!("{command}\r\n").as_bytes());
        let reply = lmtp.reply();
        assert!(reply.starts_with(['2', '3']), "{command}: {reply}");
    }
    lmtp.send(b"X-Rpop-Mark: m\r\n\r\n..x\r\n.\r\n");
    assert!(lmtp.reply().starts_with("250"));
    assert!(lmtp.reply().starts_with("452"));
    wait_until("the acceptance", || server.accepted() == 1);
    let mail = server.mail();
    assert_eq!((mail[0].sender(), mail[0].addresses()), ("s@s.test", vec!["a@local.test"]));
    assert_eq!(mail[0].message.raw, b"X-Rpop-Mark: m\r\n\r\n.x\r\n");
}
