//! Unified accounts through the engine: what scripted destinations receive,
//! and what is remembered of messages that only some of them took.

mod copies;
mod crash;
mod destinations;
mod distrust;
mod envelope;
mod fairness;
mod notification;
mod refusals;
mod strays;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use rpop::domain::envelope::Mailbox;
use rpop::domain::ledger::{Change, Entry, State};
use rpop::domain::work::{Destination, LocalDomains, Special, Unified};

use crate::bench::Bench;
use crate::support::mail::message;
use crate::support::pop3::FakePop3;
use crate::support::smtp::{Accepted, Act, Call, FakeSmtp, Smtp};
use crate::support::work::mail_host;

/// The header that names recipients.
const HEADER: &str = "X-Real-To";

fn header() -> Special {
    Special::Header(HEADER.into())
}

/// A destination that is a queue.
fn queue(to: &FakeSmtp, domain: &str) -> Arc<Destination> {
    Arc::new(Destination {
        domain: domain.into(),
        smtp: Some(mail_host(to.port())),
        lmtp: None,
        maildir: None,
    })
}

/// A destination that stores directly.
fn store(to: &FakeSmtp, domain: &str) -> Arc<Destination> {
    Arc::new(Destination {
        domain: domain.into(),
        smtp: None,
        lmtp: Some(mail_host(to.port())),
        maildir: None,
    })
}

/// A bench for a unified account: the Main Domain `local.test` (alias
/// `alias.test`) at `main`, and `second.test` at `second` where there is one.
fn bench(
    from: &FakePop3,
    to: &FakeSmtp,
    special: Special,
    main: &Arc<Destination>,
    second: Option<&Arc<Destination>>,
) -> Bench {
    let mut bench = Bench::new(from, to);
    let local = |names: &[&str], destination: &Arc<Destination>| LocalDomains {
        names: names.iter().map(|name| (*name).into()).collect(),
        owners: Vec::new(),
        destination: Arc::clone(destination),
    };
    let mut domains = vec![local(&["alias.test", "local.test"], main)];
    domains.extend(second.map(|second| local(&["second.test"], second)));
    bench.item.account = Mailbox::parse("postmaster@local.test").unwrap();
    bench.item.destination = Arc::clone(main);
    bench.item.unified = Some(Arc::new(Unified {
        special,
        relay_foreign: false,
        deduplicate: true,
        domains,
        postmaster: Mailbox::parse("postmaster@local.test").unwrap(),
    }));
    bench
}

/// With one destination, a queue.
fn simple(from: &FakePop3, to: &FakeSmtp, special: Special) -> Bench {
    bench(from, to, special, &queue(to, "local.test"), None)
}

impl Bench {
    fn change(&mut self, change: impl FnOnce(&mut Unified)) {
        let mut unified = (**self.item.unified.as_ref().unwrap()).clone();
        change(&mut unified);
        self.item.unified = Some(Arc::new(unified));
    }

    /// What is owed, in no particular order: attempts, number of recipients,
    /// whether somebody has it.
    fn owed(&self) -> Vec<(u16, usize, bool)> {
        let owed = |(_, entry): (u64, Entry)| match entry.state {
            State::Owed { attempts, to, reached, .. } => Some((attempts, to.len(), reached)),
            _ => None,
        };
        self.ledger().iter().filter_map(owed).collect()
    }

    /// All copies are so many days older.
    fn age(&self, days: i32) {
        let mut ledgers = self.memory.ledgers.lock().unwrap();
        let Some(ledger) = ledgers.get_mut(&self.item.key) else { return };
        let copies: Vec<Entry> =
            ledger.iter().filter(|(_, entry)| entry.state == State::Copy).map(|(_, entry)| entry).collect();
        for Entry { message_id, digest, day, .. } in copies {
            ledger.apply(&Change::Copy { message_id, digest, day: day - days });
        }
    }

    /// All that waits is due at once.
    fn hurry(&self, uids: &[&str]) {
        let mut ledgers = self.memory.ledgers.lock().unwrap();
        let Some(ledger) = ledgers.get_mut(&self.item.key) else { return };
        for uid in uids {
            let entries: Vec<Entry> = ledger.entries(ledger.hash(uid.as_bytes())).collect();
            for mut entry in entries {
                if let State::Owed { next_try, .. } | State::Quarantined { next_try, .. } = &mut entry.state {
                    *next_try = 0;
                    ledger.apply(&Change::Put { uid: uid.as_bytes().into(), entry });
                }
            }
        }
    }
}

/// A queue that refuses `bo@…` for now, the first time.
fn puts_bo_off_once() -> FakeSmtp {
    let times = AtomicUsize::new(0);
    Smtp::new()
        .script(move |call| {
            let hit = call.verb == "RCPT" && call.argument.contains("bo@") && times.fetch_add(1, SeqCst) < 1;
            if hit { Act::Say("450 4.2.1 later".into()) } else { Act::Properly }
        })
        .start()
}

/// A generated message with other To and Cc fields (whole lines).
fn addressed(mark: &str, fields: &str, octets: usize) -> Vec<u8> {
    let text = String::from_utf8(message(mark, octets)).unwrap();
    text.replacen("To: somebody@local.test\r\n", fields, 1).into_bytes()
}

/// A generated message with the envelope header of a provider.
fn enveloped(mark: &str, to: &[&str], octets: usize) -> Vec<u8> {
    let mut text: Vec<u8> = to.iter().flat_map(|to| format!("{HEADER}: {to}\r\n").into_bytes()).collect();
    text.splice(0..0, b"Return-Path: <author@sender.test>\r\n".iter().copied());
    text.extend(message(mark, octets));
    text
}

/// A generated message whose recipient both kinds of account find.
fn both(mark: &str, to: &str) -> Vec<u8> {
    let mut text = format!("Return-Path: <author@sender.test>\r\n{HEADER}: {to}\r\n").into_bytes();
    text.extend(addressed(mark, &format!("To: {to}\r\n"), 500));
    text
}

/// Who got a message, as RCPT said it; ORCPT (RFC 3461, section 4.2) left out.
fn recipients(mail: &Accepted) -> Vec<String> {
    mail.recipients.iter().map(|to| to.split(" ORCPT=").next().unwrap().to_owned()).collect()
}

/// Who got a message with this mark: one list for each time that it was
/// accepted.
fn got(to: &FakeSmtp, mark: &str) -> Vec<Vec<String>> {
    to.mail().iter().filter(|mail| mail.message.mark() == mark).map(recipients).collect()
}

/// `RCPT` arguments of these.
fn rcpt(to: &[&str], notify: &str) -> Vec<String> {
    to.iter().map(|to| format!("TO:<{to}>{notify}")).collect()
}

const FAILURE: &str = " NOTIFY=FAILURE";
const NEVER: &str = " NOTIFY=NEVER";

/// A script that answers RCPT for addresses that contain a text.
fn refusing(answers: &'static [(&'static str, &'static str)]) -> impl Fn(&Call<'_>) -> Act {
    move |call| {
        let hit = answers.iter().find(|(part, _)| call.verb == "RCPT" && call.argument.contains(part));
        hit.map_or(Act::Properly, |(_, reply)| Act::Say((*reply).into()))
    }
}

/// How often each verb came.
fn count(to: &FakeSmtp, verb: &str) -> usize {
    to.commands().iter().filter(|(_, line)| line.split(' ').next() == Some(verb)).count()
}
