//! Real processes, a real API server, and everything that goes wrong, again
//! and again: one controller leads, another waits, workers come and go, and
//! mail arrives in a thousand maildrops all the while.
//!
//! `make chaos` runs it for ten minutes (`RPOP_CHAOS_MINUTES`), from a seed that it
//! prints (`RPOP_CHAOS_SEED` to repeat it), with the fast or the default
//! timing (`RPOP_CHAOS_TIMING`). A short form is part of `make test`.

pub mod drama;
pub mod fleet;
pub mod maildrops;
pub mod sink;
mod verdict;

use std::time::Duration;

use drama::{Act, Drama};
use fleet::{Fleet, Size};
use tokio::time::Instant;

/// Messages that are accepted before the ledger is written, at most.
const CHECKPOINT: usize = 20;

fn size() -> Size {
    let default = std::env::var("RPOP_CHAOS_TIMING").is_ok_and(|timing| timing == "default");
    Size {
        records: 1000,
        hosts: 50,
        shards: 64,
        poll_every: Duration::from_secs(30),
        timing: if default { "default" } else { "fast" },
        dead_after: Duration::from_secs(if default { 30 } else { 8 }),
        host_connections: 20,
    }
}

/// The judge is not blind: mail that two processes fetch at once is noticed,
/// and mail that one fetches is all right.
#[tokio::test(flavor = "multi_thread")]
async fn two_processes_at_one_maildrop_are_noticed() {
    let drops = maildrops::Maildrops::start((0..2).map(fleet::account)).await;
    let sink = sink::Sink::start().await;
    let site = |record: &str| {
        let site = crate::parts::rpop::Site::for_delivery(&crate::parts::rpop::smtp(sink.port));
        site.record(&crate::parts::manifest::Record::plain(record, drops.port, record));
        site
    };
    let fill = |account: &str| (0..40).for_each(|at| drops.put(account, &format!("{account}.{at}")));
    let judge = |sent| verdict::Verdict {
        sent,
        left: drops.left(),
        accepted: sink.accepted(),
        deleted: drops.deleted(),
        troubles: Vec::new(),
        grace: Duration::ZERO,
    };
    fill("u00000");
    tokio::task::block_in_place(|| site("u00000").once()).expect(0);
    assert_eq!(drops.doubles().len(), 0);
    judge(40).judge().expect("all is well");
    assert!(judge(41).judge().is_err(), "a message that is missing is noticed");
    fill("u00001");
    let (one, other) = (site("u00001"), site("u00001"));
    let (one, other) = (one.start_once(), other.start_once());
    tokio::task::block_in_place(|| (one.wait(), other.wait()));
    assert!(!drops.doubles().is_empty(), "two sessions are noticed");
    assert!(judge(80).judge().unwrap_err().contains("repeated"), "repeats are noticed");
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

fn seed() -> u64 {
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_secs());
    let seed = number("RPOP_CHAOS_SEED").unwrap_or_else(clock);
    println!("RPOP_CHAOS_SEED={seed}");
    seed
}

/// Each kind of trouble once.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_and_no_maildrop_polled_twice() {
    let Some(fleet) = Fleet::new(size()).await else { return };
    let mut drama = Drama::begin(fleet, seed(), 5).await;
    let acts = [
        Act::Kill,
        Act::Restart,
        Act::Terminate,
        Act::Freeze(Duration::from_secs(13)),
        Act::NoLeader(Duration::from_secs(12)),
        Act::SlowEtcd,
        Act::Outage(Duration::from_secs(15)),
    ];
    for act in acts {
        drama.play(act).await;
    }
    drama.end().await;
}

/// Ten minutes of it and more, in any order.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "ten minutes: make chaos"]
async fn long_form() {
    let minutes = number("RPOP_CHAOS_MINUTES").unwrap_or(10);
    let Some(fleet) = Fleet::new(size()).await else { return };
    let until = Instant::now() + Duration::from_secs(60 * minutes);
    let mut drama = Drama::begin(fleet, seed(), 5).await;
    // All of them at least once, in an order of the seed.
    let mut acts = drama.shuffled();
    while !acts.is_empty() || Instant::now() < until {
        let act = match acts.pop() {
            Some(act) => act,
            None => drama.any(),
        };
        drama.play(act).await;
    }
    drama.end().await;
}
