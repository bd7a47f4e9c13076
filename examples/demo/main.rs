//! `make run`: RPOP between real mail servers, on this machine alone.
//!
//! A private Dovecot plays the provider; a second one and a Postfix are the
//! own mail system. The manifests are the files beside this one, with the
//! ports and the authority of this run filled in.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a demonstration that cannot go on says why and ends")]
#![allow(clippy::let_underscore_must_use, clippy::must_use_candidate, clippy::new_without_default)]
#![allow(clippy::return_self_not_must_use, missing_docs, unreachable_pub)]

#[path = "../../tests/it/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use support::dovecot::Dovecot;
use support::mail::{self, census};
use support::postfix::Postfix;
use support::rpop;
use tokio::time::Instant;

/// Where the rendered manifests are left for reading.
const FOLDER: &str = ".demo";

/// A mailbox of the provider and where its mail must arrive.
struct Mailbox {
    account: &'static str,
    folder: Option<&'static str>,
    messages: usize,
    octets: usize,
    note: &'static str,
}

const MAILBOXES: &[Mailbox] = &[
    Mailbox { account: "alice", folder: None, messages: 25, octets: 3000, note: "plain, to Postfix" },
    Mailbox { account: "bob", folder: None, messages: 25, octets: 3000, note: "STLS, to Postfix" },
    Mailbox {
        account: "carol",
        folder: Some("Archive"),
        messages: 10,
        octets: 200_000,
        note: "TLS, folder Archive",
    },
    Mailbox { account: "dave", folder: None, messages: 40, octets: 4000, note: "TLS, kept at the provider" },
    Mailbox { account: "erin", folder: None, messages: 2000, octets: 4000, note: "TLS, 2000 messages" },
    Mailbox { account: "frank", folder: None, messages: 3, octets: 1000, note: "its password is wrong" },
];

fn main() -> ExitCode {
    let Some(provider) = Dovecot::start("the demonstration") else { return ExitCode::FAILURE };
    let Some(home) = Dovecot::start("the demonstration") else { return ExitCode::FAILURE };
    let began = Instant::now();

    title("A provider with six mailboxes, and a mail system of our own");
    provider.add(MAILBOXES.iter().map(|mailbox| mailbox.account));
    home.add(MAILBOXES.iter().map(|mailbox| mailbox.account));
    let mut sent = BTreeMap::new();
    for mailbox in MAILBOXES {
        let messages =
            provider.inbox(mailbox.account).fill_generated(mailbox.account, mailbox.messages, mailbox.octets);
        println!("  {:6} {:>5} messages   {}", mailbox.account, messages.len(), mailbox.note);
        sent.insert(mailbox.account, census(messages.iter().map(Vec::as_slice)));
    }
    let postfix = Postfix::start("the part of Postfix", home.lmtp);
    println!("  provider: Dovecot, POP3 on {} (STLS) and {} (TLS)", provider.pop3, provider.pop3s);
    let queue = match &postfix {
        Some(postfix) => format!("Postfix, SMTP on {}", postfix.smtp),
        None => "no Postfix here".to_owned(),
    };
    println!("  own:      {queue}; Dovecot, LMTP on {}", home.lmtp);

    let folder = PathBuf::from(FOLDER);
    let manifests = render(&folder, &provider, &home, postfix.as_ref());
    println!("  manifests: {} (from examples/demo/)", manifests.display());

    title("First poll: everything is new");
    poll(&manifests, &folder);
    if let Some(postfix) = &postfix {
        support::wait_until("Postfix's queue to empty", || postfix.queued() == 0);
    }

    title("Proof: each message arrived once, octet for octet (SHA-256)");
    let first = prove(&home, &sent);

    title("Second poll: nothing repeats");
    poll(&manifests, &folder);
    if let Some(postfix) = &postfix {
        support::wait_until("Postfix's queue to empty", || postfix.queued() == 0);
    }
    let second = prove(&home, &sent);

    title("What stayed at the provider");
    let mut stayed = true;
    for mailbox in MAILBOXES {
        let left = provider.inbox(mailbox.account).count();
        let (expected, why) = match mailbox.account {
            "dave" => (mailbox.messages, "leave: true"),
            "frank" => (mailbox.messages, "nobody could log in"),
            _ => (0, "delivered, then deleted"),
        };
        stayed &= left == expected;
        println!("  {} {:6} {left:>5} messages   {why}", mark(left == expected), mailbox.account);
    }

    if !(first && second && stayed) {
        println!("\nThis is not as it should be. The state and the manifests are in {FOLDER}/.");
        return ExitCode::FAILURE;
    }
    println!("\nAll of it in {:.1} s. Next, a mailbox of your own:", began.elapsed().as_secs_f32());
    println!("  mkdir -p mail && cp examples/one-machine/*.yaml mail/ && $EDITOR mail/*.yaml");
    let binary = rpop::binary();
    let shown =
        std::env::current_dir().ok().and_then(|here| binary.strip_prefix(here).ok().map(Path::to_owned));
    let binary = shown.unwrap_or(binary);
    println!("  {} check -f mail --connect", binary.display());
    println!("  {} run -f mail", binary.display());
    ExitCode::SUCCESS
}

/// Fills in what this run decides: ports, and the provider's authority.
fn render(folder: &Path, provider: &Dovecot, home: &Dovecot, postfix: Option<&Postfix>) -> PathBuf {
    let manifests = folder.join("manifests");
    drop(std::fs::remove_dir_all(folder));
    std::fs::create_dir_all(&manifests).expect("a folder for the manifests");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/demo");
    for name in ["settings.yaml", "domains.yaml", "secrets.yaml", "records.yaml"] {
        let mut text = std::fs::read_to_string(source.join(name)).expect("a manifest of the demonstration");
        text = text
            .replace(":2110", &format!(":{}", provider.pop3))
            .replace(":2995", &format!(":{}", provider.pop3s))
            .replace("port: 2024", &format!("port: {}", home.lmtp));
        text = match postfix {
            Some(postfix) => text.replace("port: 2025", &format!("port: {}", postfix.smtp)),
            None => text.lines().filter(|line| !line.contains("port: 2025")).collect::<Vec<_>>().join("\n"),
        };
        if let Some((before, _)) = text.split_once("    -----BEGIN CERTIFICATE") {
            text = format!("{before}    {}\n", provider.authority.pem.trim_end().replace('\n', "\n    "));
        }
        let path = manifests.join(name);
        std::fs::write(&path, text).expect("a manifest");
        // As the manifests say themselves: Secrets are nobody else's business.
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .expect("its mode");
    }
    manifests
}

/// One poll of everything, on the reader's own terminal.
fn poll(manifests: &Path, folder: &Path) {
    let state = folder.join("state");
    println!("$ rpop run -f {} --state {} --once", manifests.display(), state.display());
    let start = Instant::now();
    let status = Command::new(rpop::binary())
        .args(["run", "--once", "-f"])
        .arg(manifests)
        .arg("--state")
        .arg(&state)
        .status()
        .expect("rpop runs");
    let code = status.code().unwrap_or(-1);
    println!(
        "  exit status {code} after {:.1} s: one record has a wrong password",
        start.elapsed().as_secs_f32()
    );
    assert_eq!(code, 1, "0 is all good, 2 a wrong configuration");
}

/// Compares what arrived with what was sent.
fn prove(home: &Dovecot, sent: &BTreeMap<&str, BTreeMap<String, usize>>) -> bool {
    let mut all = true;
    for mailbox in MAILBOXES {
        let arrived = home.mailbox(mailbox.account, mailbox.folder).read();
        let found = mail::census_arrived(&arrived);
        let nothing = BTreeMap::new();
        let wanted = if mailbox.account == "frank" { &nothing } else { &sent[mailbox.account] };
        let once = found == *wanted;
        all &= once;
        let place = mailbox.folder.map_or_else(|| "INBOX".to_owned(), str::to_owned);
        let lost = wanted.keys().filter(|digest| !found.contains_key(*digest)).count();
        let repeated: usize = found.values().map(|count| count - 1).sum();
        println!(
            "  {} {:6} {:>5} in {place:8} {lost} lost or changed, {repeated} repeated",
            mark(once),
            mailbox.account,
            arrived.len()
        );
    }
    all
}

fn title(text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}

fn mark(good: bool) -> &'static str {
    if good { "ok   " } else { "WRONG" }
}
