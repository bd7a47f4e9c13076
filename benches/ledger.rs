//! The ledger: a poll of a mailbox that keeps 50 000 messages, and commits as
//! one big mailbox and as many small ones make them. Commits are flushed to
//! the disk that holds the folder for temporary files (`TMPDIR`).

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rpop::domain::ledger::{Change, Entry, Ledger, State, SurveyPolicy};
use rpop::domain::work::{OnUidChange, RecordKey};
use rpop::engine::ports::LedgerStore as _;
use rpop::local::ledger::FileLedgers;
use rpop::local::state::StateDir;

const MANY: u32 = 50_000;

fn uid(number: u32) -> Box<[u8]> {
    format!("{number:08x}4f1e{:012x}", number.wrapping_mul(2_654_435_761)).into_bytes().into()
}

fn put(number: u32) -> Change {
    let n = u64::from(number) + 1;
    let entry = Entry {
        state: State::Kept,
        day: 20_000,
        size: 4096 + n,
        message_id: n << 32 | n,
        digest: n.wrapping_mul(0x9e37_79b9_7f4a_7c15),
    };
    Change::Put { uid: uid(number), entry }
}

fn key(name: &str) -> RecordKey {
    RecordKey { namespace: "mail".into(), name: name.into() }
}

fn ledger(count: u32) -> Ledger {
    let mut ledger = Ledger::new([7; 16]);
    for number in 0..count {
        ledger.apply(&put(number));
    }
    ledger
}

fn survey(c: &mut Criterion) {
    let ledger = ledger(MANY);
    let uids: Vec<Box<[u8]>> = (0..MANY).map(uid).collect();
    let policy = SurveyPolicy {
        now: 20_001 * 86_400,
        leave: true,
        keep_for_days: Some(30),
        delete_seen: false,
        on_uid_change: OnUidChange::Pause,
    };
    let mut group = c.benchmark_group("survey");
    group.throughput(Throughput::Elements(u64::from(MANY)));
    group.bench_function("50000 known lines", |b| {
        b.iter(|| {
            let mut survey = ledger.survey(policy);
            for (number, uid) in (1..).zip(&uids) {
                survey.see(number, uid);
            }
            black_box(survey.finish())
        });
    });
    group.finish();
}

fn files(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let ledgers = FileLedgers::new(Arc::new(StateDir::open(folder.path().join("state")).unwrap()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let big = key("big");
    runtime.block_on(async {
        let mut ledger = ledgers.load(&big).await.unwrap();
        ledgers.commit(&big, &mut ledger, (0..MANY).map(put).collect()).await.unwrap();
    });

    let mut group = c.benchmark_group("load");
    group.throughput(Throughput::Elements(u64::from(MANY)));
    group.bench_function("50000 lines", |b| {
        b.iter(|| runtime.block_on(ledgers.load(&big)).unwrap());
    });
    group.finish();

    let mut group = c.benchmark_group("commit");
    group.sample_size(20);
    let one = key("one");
    let mut ledger = runtime.block_on(ledgers.load(&one)).unwrap();
    let mut next = 0;
    group.bench_function("20 messages, one mailbox", |b| {
        b.iter(|| {
            let changes = (next..next + 20).map(put).collect();
            next = (next + 20) % 10_000;
            runtime.block_on(ledgers.commit(&one, &mut ledger, changes)).unwrap();
        });
    });
    group.throughput(Throughput::Elements(1000));
    let mut round = 0;
    for (name, fresh) in
        [("1000 mailboxes, 64 at once, first", true), ("1000 mailboxes, 64 at once, later", false)]
    {
        group.bench_function(name, |b| {
            b.iter(|| {
                round += u32::from(fresh);
                runtime.block_on(commit_everywhere(&ledgers, round));
            });
        });
    }
    group.finish();
}

/// A poll of each of 1 000 mailboxes, as far as the ledger is concerned.
async fn commit_everywhere(ledgers: &FileLedgers, round: u32) {
    let next = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let pollers: Vec<_> = (0..64)
        .map(|_| {
            let (next, ledgers) = (Arc::clone(&next), ledgers.clone());
            tokio::spawn(async move {
                loop {
                    let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if number >= 1000 {
                        return;
                    }
                    let key = key(&format!("r{round}-{number}"));
                    let mut ledger = ledgers.load(&key).await.unwrap();
                    ledgers.commit(&key, &mut ledger, vec![put(number)]).await.unwrap();
                }
            })
        })
        .collect();
    for poller in pollers {
        poller.await.unwrap();
    }
}

criterion_group!(benches, survey, files);
criterion_main!(benches);
