//! The envelope between real servers: a Dovecot at the provider, a Postfix
//! that knows its users and aliases, and the Dovecot that they have their mail
//! in. What is asserted lies in the Postfix's queue and in mailboxes.

mod copies;
mod crash;
mod destinations;
mod header;
mod loops;
mod plain;
mod refused;
mod sender;
mod star;

use std::collections::BTreeMap;

use crate::support::dovecot::{Dovecot, Options};
use crate::support::mail::{Arrived, MARK};
use crate::support::manifest::{self, Record};
use crate::support::postfix::{Postfix, Queued};
use crate::support::rpop::{self, Run, Site};

/// The record's name, and that of its account at the provider.
const NAME: &str = "catchall";

/// The header that names recipients.
const HEADER: &str = "X-Real-To";

/// Who has mail at home. `cy` and `dan` are of a domain that is stored
/// directly, the others of the Postfix's.
const USERS: [&str; 7] = ["alice", "bob", "carol", "author", "cy", "dan", "postmaster"];

/// A Postfix for `local.test` and its alias, and for senders' mail. It
/// believes in `ghost` and `lost`, whom nobody at home knows; `team` is two
/// people.
const MAIL_HOST: &str = "virtual_mailbox_domains = local.test, sender.test\n\
    virtual_mailbox_maps = inline:{ { alice@local.test = x }, { bob@local.test = x }, { carol@local.test = x }, \
    { postmaster@local.test = x }, { ghost@local.test = x }, { author@sender.test = x }, { lost@sender.test = x } }\n\
    virtual_alias_domains = alias.test\n\
    virtual_alias_maps = inline:{ { al@alias.test = alice@local.test }, { alice@alias.test = alice@local.test }, \
    { team@local.test = alice@local.test bob@local.test } }\n\
    virtual_transport = $default_transport\n\
    recipient_delimiter = +\n";

/// Holds back what comes by SMTP.
const HOLD: &str = "smtpd_data_restrictions = check_client_access static:HOLD\n";

/// The servers, and a run between them.
struct Place {
    provider: Dovecot,
    home: Dovecot,
    queue: Postfix,
    site: Site,
}

impl Place {
    /// One whose Postfix holds back what it accepts; it and the Dovecot at
    /// home get further settings.
    fn start(test: &str, settings: &str, options: Options) -> Option<Self> {
        Self::open(test, &format!("{HOLD}{settings}"), options)
    }

    /// One whose Postfix passes on what it accepts.
    fn open(test: &str, settings: &str, options: Options) -> Option<Self> {
        let (provider, home) = (Dovecot::start(test)?, Dovecot::start_with(test, options)?);
        let queue = Postfix::start_with(test, home.lmtp, &format!("{MAIL_HOST}{settings}"))?;
        provider.add([NAME]);
        home.add(USERS);
        let site = Site::new();
        site.settings(&["mainDomain: local.test"]);
        let place = Self { provider, home, queue, site };
        place.domain("local.test", &rpop::smtp(place.queue.smtp), "aliases: [alias.test]");
        Some(place)
    }

    /// A domain of ours; `more` is a line of its `spec`.
    fn domain(&self, name: &str, delivery: &str, more: &str) {
        let yaml = format!("{}  {more}\n", manifest::domain(name, delivery));
        self.site.write(&format!("domain-{name}.yaml"), &yaml);
    }

    /// `second.test`, which is stored directly.
    fn second(&self) {
        self.domain("second.test", &rpop::lmtp(self.home.lmtp), "");
    }

    /// The unified record.
    fn record(&self, special: &str, more: &[&str]) {
        let record = Record::plain(NAME, self.provider.pop3, NAME)
            .to("postmaster@local.test")
            .with(&format!("special: {special}"));
        self.site.record(&more.iter().fold(record, |record, line| record.with(line)));
    }

    /// One poll, in which something was refused or put off if `refused`.
    fn poll(&self, refused: bool) -> Run {
        self.site.once().expect(i32::from(refused))
    }

    /// More mail in the provider's mailbox.
    fn put(&self, mail: &[Vec<u8>]) {
        let maildir = self.provider.inbox(NAME);
        // Later names than those of all that ever was there.
        let first = 100 * self.site.path("batches").read_dir().map_or(0, Iterator::count);
        std::fs::create_dir_all(self.site.path("batches").join(first.to_string())).unwrap();
        maildir.fill(first, mail.iter().map(Vec::as_slice));
    }

    /// Messages that the provider still has.
    fn left(&self) -> usize {
        self.provider.inbox(NAME).count()
    }

    /// The messages that the Postfix holds, by their marks; each mark once.
    fn held(&self) -> BTreeMap<String, Queued> {
        let mut by_mark = BTreeMap::new();
        for queued in self.queue.held() {
            let mark = queued.message.mark();
            let twice = by_mark.insert(mark.clone(), queued);
            assert!(twice.is_none(), "{mark:?} is in the queue twice");
        }
        by_mark
    }

    /// The marks of what an account has, sorted; one that is there twice is
    /// there twice.
    fn marks(&self, account: &str) -> Vec<String> {
        marks(&self.home.inbox(account).read())
    }

    /// The bounces of the Postfix that an account has, by the marks of the
    /// messages that they are about.
    fn bounces(&self, account: &str) -> Vec<String> {
        let mail = self.home.inbox(account).read();
        let bounce = |mail: &Arrived| {
            let is_bounce = mail.headers("Subject") == ["Undelivered Mail Returned to Sender"];
            is_bounce.then(|| returned_mark(&mail.text()))
        };
        let mut marks: Vec<String> = mail.iter().filter_map(bounce).collect();
        marks.sort();
        marks
    }

    /// The ledger's lines of messages: `STATE UID …`, the last ones of their
    /// UIDs.
    fn ledger(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.site.ledger(NAME)).unwrap_or_default();
        let mut lines = BTreeMap::new();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).skip(1) {
            let mut words = line.split(' ');
            if let (Some(state), Some(uid)) = (words.next(), words.next())
                && ["kept", "deleting", "uncertain", "quarantined", "owed"].contains(&state)
            {
                lines.insert(uid.to_owned(), line.to_owned());
            }
        }
        lines.into_values().collect()
    }

    /// How many recipients each message is still owed to.
    fn owed(&self) -> Vec<usize> {
        let to = |line: &String| {
            let to = line.strip_prefix("owed ")?.split_once(" to=")?.1.split(' ').next()?;
            Some(to.split(',').count())
        };
        let mut owed: Vec<usize> = self.ledger().iter().filter_map(to).collect();
        owed.sort_unstable();
        owed
    }
}

/// The mark of a message whose header is quoted in a text.
fn returned_mark(text: &str) -> String {
    let (_, rest) = text.split_once(&format!("\n{MARK}: ")).expect("its header is returned");
    rest.lines().next().unwrap_or_default().to_owned()
}

fn marks(mail: &[Arrived]) -> Vec<String> {
    let mut marks: Vec<String> = mail.iter().map(Arrived::mark).collect();
    marks.sort();
    marks
}

/// A message as the provider stored it: `traces` (whole lines) in front of
/// what was sent, which has `fields` (whole lines) and `octets` or more.
fn sized(mark: &str, traces: &str, fields: &str, octets: usize) -> Vec<u8> {
    let mut text = format!(
        "{traces}{MARK}: {mark}\r\n{fields}Message-ID: <{mark}@sender.test>\r\nSubject: message {mark}\r\n\
         Date: Mon, 2 Nov 2026 10:00:00 +0000\r\n\r\nThis is {mark}.\r\n.\r\n..and a line of dots\r\n"
    )
    .into_bytes();
    // Copies differ in their traces alone.
    while text.len() - traces.len() < octets {
        text.extend_from_slice(b"lorem ipsum dolor sit amet, consectetur adipisici elit\r\n");
    }
    text
}

/// A small one.
fn mail(mark: &str, traces: &str, fields: &str) -> Vec<u8> {
    sized(mark, traces, fields, 0)
}

/// With a sender that the provider's Return-Path names, and recipients that
/// the header for that does.
fn enveloped(mark: &str, to: &[&str]) -> Vec<u8> {
    let to = to.iter().map(|to| format!("{HEADER}: {to}\r\n")).collect::<Vec<_>>().concat();
    mail(mark, &format!("Return-Path: <author@sender.test>\r\n{to}"), "From: author@sender.test\r\n")
}

/// With nothing of the envelope but what its author wrote.
fn addressed(mark: &str, fields: &str) -> Vec<u8> {
    let fields = format!("From: author@sender.test\r\n{fields}");
    mail(mark, "Return-Path: <author@sender.test>\r\n", &fields)
}
