//! A process that dies at any moment: nobody is forgotten, and no more is
//! repeated than `checkpoint` allows.

use std::collections::HashMap;
use std::time::Duration;

use rpop::domain::work::Checkpoint;
use rpop::engine::owed::{Always, Owing};

use super::*;
use crate::support::pop3::Pop3;
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
