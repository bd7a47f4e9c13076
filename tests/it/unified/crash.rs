//! A process that dies at any moment, and servers that fail at random: nobody
//! is forgotten, and no more is repeated than `checkpoint` allows.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rpop::domain::work::Checkpoint;
use rpop::engine::owed::{Always, Owing};

use super::*;
use crate::support::pop3::{self, Pop3};
use crate::support::smtp::Smtp;

const MESSAGES: usize = 6;
const ALL: [&str; 4] = ["al@local.test", "bo@second.test", "no@local.test", "cy@second.test"];

/// How often each recipient got each message.
fn census(servers: &[&FakeSmtp]) -> HashMap<(String, String), usize> {
    let mut census = HashMap::new();
    for mail in servers.iter().flat_map(|server| server.mail()) {
        let is_notification = !mail.message.headers("Auto-Submitted").is_empty();
        for to in mail.addresses() {
            let mark = if is_notification { mail.message.text() } else { mail.message.mark() };
            let mark = mark.split("Message-ID: <m-").last().unwrap().split('@').next().unwrap().to_owned();
            *census.entry((mark.trim_start_matches("m-").to_owned(), to.to_owned())).or_default() += 1;
        }
    }
    census
}

/// Kills the poll when the servers have heard `moment` commands, starts anew,
/// and goes on until all is done. The number of repeats.
async fn killed_at(moment: usize, special: Special, drop_owed: bool) -> Option<usize> {
    let mut pop = Pop3::new();
    for at in 0..MESSAGES {
        let mut text = enveloped(&format!("m-{at}"), &ALL, 400);
        text.splice(0..0, format!("To: {}\r\n", ALL.join(", ")).into_bytes());
        pop = pop.mail(&format!("u{at}"), &text);
    }
    let from = pop.start();
    let first = Smtp::new().script(refusing(&[("no@", "550 5.1.1 unknown")])).start();
    let second = Smtp::lmtp().start();
    let mut bench = bench(
        &from,
        &first,
        special.clone(),
        &queue(&first, "local.test"),
        Some(&store(&second, "second.test")),
    );
    bench.settings.checkpoint = Checkpoint { messages: 2, every: Duration::from_secs(5) };
    {
        let poll = bench.poll();
        tokio::pin!(poll);
        loop {
            let heard = from.commands().len() + first.commands().len() + second.commands().len();
            if heard >= moment {
                break;
            }
            tokio::select! {
                report = &mut poll => {
                    assert!(report.result.is_ok(), "{report:?}");
                    return None;
                }
                () = tokio::time::sleep(Duration::from_micros(50)) => {}
            }
        }
    }
    // What a destination has read by now it may still accept.
    tokio::time::sleep(Duration::from_millis(20)).await;
    if drop_owed {
        // The process is gone, and what it remembered in memory alone.
        bench.engine.ledgers = Arc::new(Owing::new(Arc::clone(&bench.memory) as _, Always));
    }
    bench.poll_well().await;
    bench.poll_well().await;
    assert!(from.uids().is_empty(), "{moment}: {:?}", bench.ledger());
    let census = census(&[&first, &second]);
    let mut wanted = vec!["al@local.test", "bo@second.test", "cy@second.test"];
    if special != Special::Addressees {
        wanted.push("author@sender.test");
    }
    let mut repeats = std::collections::HashSet::new();
    for at in 0..MESSAGES {
        for to in &wanted {
            let times = census.get(&(at.to_string(), (*to).to_owned())).copied().unwrap_or(0);
            assert!(times > 0, "killed at {moment}: message {at} never reached {to}: {census:?}");
            assert!(times <= 2, "killed at {moment}: message {at} reached {to} {times} times");
            if times > 1 {
                repeats.insert(at);
            }
        }
    }
    Some(repeats.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_process_forgets_nobody_and_repeats_no_more_than_the_checkpoint() {
    for special in [header(), Special::Addressees] {
        let mut moments = 0;
        for moment in (1..).step_by(3) {
            let Some(repeats) = killed_at(moment, special.clone(), true).await else { break };
            assert!(repeats <= 2, "killed at {moment}: {repeats} messages were repeated");
            moments += 1;
        }
        assert!(moments > 20, "{moments} moments were tried");
    }
}

/// A poll that is merely dropped remembers what it had heard.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_poll_repeats_only_what_it_had_not_heard_of() {
    for moment in (1..).step_by(11) {
        let Some(repeats) = killed_at(moment, header(), false).await else { break };
        assert!(repeats <= 2, "dropped at {moment}: {repeats} messages were repeated");
    }
}

/// The same numbers for the same seed; who gets which, timing decides.
struct Dice {
    seed: u64,
    thrown: AtomicU64,
}

impl Dice {
    fn new(seed: u64) -> Self {
        Self { seed, thrown: AtomicU64::new(0) }
    }

    /// True once in so many times, and after 120 throws never.
    fn hits(&self, once_in: u64) -> bool {
        let throw = self.thrown.fetch_add(1, Ordering::SeqCst);
        let mut mixed = (self.seed << 32 | throw).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        throw < 120 && (mixed ^ (mixed >> 29)).is_multiple_of(once_in)
    }
}

fn fickle(dice: Dice) -> impl Fn(&Call<'_>) -> Act {
    move |call| match call.verb {
        "RCPT" if call.argument.contains("no@") => Act::Say("550 5.1.1 unknown".into()),
        "RCPT" | "." | "MAIL" | "DATA" if dice.hits(5) => Act::Say("451 4.3.0 not now".into()),
        "CONNECT" | "MAIL" | "RCPT" if dice.hits(12) => Act::Close,
        _ => Act::Properly,
    }
}

/// Refusals for now at any command, connections that close before anything is
/// accepted, sessions that break: each recipient gets each message once.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_refused_for_now_everybody_gets_it_once() {
    let sets: [&[&str]; 5] = [
        &ALL,
        &["al@local.test"],
        &["cy@second.test", "al@local.test"],
        &["no@local.test"],
        &["bo@second.test", "no@local.test"],
    ];
    for seed in 0..12 {
        let special = if seed % 2 == 0 { header() } else { Special::Addressees };
        let star = special == Special::Addressees;
        let mut pop = Pop3::new();
        let mut uids = Vec::new();
        for at in 0..15 {
            let (to, octets) = (sets[at % 5], [400, 3000, 150_000][at % 3]);
            let mut text = enveloped(&format!("m-{at}"), to, octets);
            text.splice(0..0, format!("To: {}\r\n", to.join(", ")).into_bytes());
            let text = String::from_utf8(text).unwrap().replacen("To: somebody@local.test\r\n", "", 1);
            // Copies of some.
            for copy in 0..=usize::from(star && at % 4 == 0) {
                uids.push(format!("u{at}-{copy}"));
                pop = pop.mail(&format!("u{at}-{copy}"), text.as_bytes());
            }
        }
        let dice = Dice::new(seed);
        let from = pop
            .script(move |call| {
                let breaks = matches!(call.verb, "RETR" | "DELE") && dice.hits(25);
                if breaks { pop3::Act::Close } else { pop3::Act::Properly }
            })
            .start();
        let first = Smtp::new().script(fickle(Dice::new(seed + 100))).start();
        let second = Smtp::lmtp().script(fickle(Dice::new(seed + 200))).start();
        let bench =
            bench(&from, &first, special, &queue(&first, "local.test"), Some(&store(&second, "second.test")));
        let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
        let mut polls = 0;
        while !from.uids().is_empty() {
            polls += 1;
            assert!(polls < 60, "{seed}: {:?} {:?}", from.uids(), bench.ledger().iter().collect::<Vec<_>>());
            bench.poll().await;
            bench.hurry(&uids);
        }
        let mut got: HashMap<(String, String), usize> = HashMap::new();
        let mut told: HashMap<String, usize> = HashMap::new();
        for mail in first.mail().iter().chain(&second.mail()) {
            if mail.message.headers("Auto-Submitted").is_empty() {
                for to in mail.addresses() {
                    *got.entry((mail.message.mark(), to.to_owned())).or_default() += 1;
                }
            } else {
                assert_eq!(recipients(mail), rcpt(&["author@sender.test"], NEVER));
                let text = mail.message.text();
                assert!(text.contains("rfc822; no@local.test"), "{text}");
                let mark = text.split("Message-ID: <m-").last().unwrap().split('@').next().unwrap();
                *told.entry(format!("m-{mark}")).or_default() += 1;
            }
        }
        for at in 0..15 {
            let mark = format!("m-{at}");
            for to in sets[at % 5].iter().filter(|to| !to.starts_with("no@")) {
                let times = got.remove(&(mark.clone(), (*to).to_owned()));
                assert_eq!(times, Some(1), "seed {seed}: {mark} to {to}");
            }
            let refused = sets[at % 5].contains(&"no@local.test");
            assert_eq!(told.remove(&mark).unwrap_or(0), usize::from(refused && !star), "seed {seed}: {mark}");
            if star && sets[at % 5] == ["no@local.test"] {
                let times = got.remove(&(mark.clone(), "postmaster@local.test".to_owned()));
                assert_eq!(times, Some(1), "seed {seed}: {mark} to the postmaster");
            }
        }
        assert!(got.is_empty() && told.is_empty(), "seed {seed}: {got:?} {told:?}");
    }
}
