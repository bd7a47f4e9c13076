//! A process that is killed while it commits: every commit that it reported
//! is there, and of the one under way a part at most.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::tests::all;
use super::*;
use crate::domain::ledger::{Entry, State};

const CHILD: &str = "RPOP_TEST_COMMIT_IN";
const RECORDS: [&str; 3] = ["a", "b", "c"];

fn key(name: &str) -> RecordKey {
    RecordKey { namespace: "mail".into(), name: name.into() }
}

/// A batch takes new mail (some of it for a part of its recipients), marks that
/// of the last one and forgets that of the one before: the file is written anew
/// every few batches. And it remembers a content, more of them than are kept.
fn batch(ledger: &Ledger, number: u64) -> Vec<Change> {
    let uid = |batch: u64, at: u64| format!("{batch}-{at} with some length to it").into_bytes();
    let entry = |batch: u64, state| Entry {
        state,
        day: 20_000,
        size: 4096,
        message_id: batch + 1,
        digest: batch + 1,
    };
    let (message_id, day) = (number % 3 + 1, 20_000 + i32::try_from(number % 100).unwrap());
    let mut changes = vec![Change::Copy { message_id, digest: number + 1, day }];
    for at in 0..5 {
        let owed = State::Owed {
            attempts: 1,
            next_try: 1_700_000_000,
            reason: "452 full".into(),
            to: (1..at + 2).collect(),
            reached: at == 3,
        };
        let state = if at % 2 == 1 { owed } else { State::Kept };
        changes.push(Change::Put { uid: uid(number, at).into(), entry: entry(number, state) });
        if let Some(last) = number.checked_sub(1) {
            changes.push(Change::Put { uid: uid(last, at).into(), entry: entry(last, State::Deleting) });
        }
        if let Some(before) = number.checked_sub(2) {
            changes.push(Change::Forget { hash: ledger.hash(&uid(before, at)) });
        }
    }
    changes
}

/// The child: commits to several records until it is killed, and says each
/// time that it did. Does nothing in an ordinary test run.
#[test]
fn child() {
    let Ok(state) = std::env::var(CHILD) else { return };
    let (state, from) = state.split_once('|').unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let ledgers = FileLedgers::new(Arc::new(StateDir::open(state).unwrap()));
    let mut tasks = Vec::new();
    for (name, from) in RECORDS.into_iter().zip(from.split(',')) {
        let (ledgers, mut number) = (ledgers.clone(), from.parse::<u64>().unwrap());
        tasks.push(runtime.spawn(async move {
            let key = key(name);
            let mut ledger = ledgers.load(&key).await.unwrap();
            while number < u64::MAX {
                let changes = batch(&ledger, number);
                ledgers.commit(&key, &mut ledger, changes).await.unwrap();
                let mut out = std::io::stdout().lock();
                out.write_all(format!("\ndone {name} {number}\n").as_bytes()).unwrap();
                out.flush().unwrap();
                number += 1;
            }
        }));
    }
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
}

// quirks: "kill -9, power loss, connection drop at any byte, on either side: no message lost"
#[test]
fn every_commit_that_was_reported_survives_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut next = [0_u64; RECORDS.len()];
    for round in 0..25_u64 {
        let from: Vec<String> = next.iter().map(u64::to_string).collect();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["local::ledger::crash::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(CHILD, format!("{}|{}", state.display(), from.join(",")))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut take = |next: &mut [u64]| -> bool {
            let Some(Ok(line)) = lines.next() else { return false };
            if let Some((name, number)) = line.strip_prefix("done ").and_then(|line| line.split_once(' ')) {
                let at = RECORDS.iter().position(|record| *record == name).unwrap();
                next[at] = number.parse::<u64>().unwrap() + 1;
            }
            true
        };
        for _ in 0..20 + round * 13 % 60 {
            assert!(take(&mut next), "the child ended by itself");
        }
        // Any moment will do, and no two rounds should have the same one.
        std::thread::sleep(Duration::from_micros(round * 377 % 3000));
        child.kill().unwrap();
        child.wait().unwrap();
        while take(&mut next) {}

        let ledgers = FileLedgers::new(Arc::new(StateDir::open(&state).expect("the lock died with it")));
        for (name, next) in RECORDS.into_iter().zip(next) {
            let loaded = runtime.block_on(ledgers.load(&key(name))).unwrap();
            let mut wanted = Ledger::new(loaded.salt());
            for number in 0..next {
                for change in batch(&wanted, number) {
                    wanted.apply(&change);
                }
            }
            let mut found = all(&wanted) == all(&loaded);
            for change in batch(&wanted, next) {
                wanted.apply(&change);
                found |= all(&wanted) == all(&loaded);
            }
            assert!(found, "round {round}: {name} is not as batch {next} or a part of it left it");
        }
    }
    assert!(next.iter().all(|next| *next > 25), "{next:?}");
}

/// A power loss may leave any part of what was appended last.
#[tokio::test]
async fn every_prefix_of_the_last_append_is_recovered() {
    let folder = tempfile::tempdir().unwrap();
    let ledgers = FileLedgers::new(Arc::new(StateDir::open(folder.path().join("state")).unwrap()));
    let key = key("a");
    let mut ledger = ledgers.load(&key).await.unwrap();
    for number in 0..3 {
        let changes = batch(&ledger, number);
        ledgers.commit(&key, &mut ledger, changes).await.unwrap();
    }
    let path = ledgers.path(&key).unwrap();
    let acknowledged = std::fs::metadata(&path).unwrap().len();
    let before = ledgers.load(&key).await.unwrap();
    let changes = batch(&ledger, 3);
    ledgers.commit(&key, &mut ledger, changes.clone()).await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in usize::try_from(acknowledged).unwrap()..whole.len() {
        for filler in [&b""[..], &[0; 300]] {
            std::fs::write(&path, [&whole[..length], filler].concat()).unwrap();
            let loaded = ledgers.load(&key).await.unwrap();
            let lines = memchr::memchr_iter(b'\n', &whole[usize::try_from(acknowledged).unwrap()..length]);
            let mut wanted = before.clone();
            for change in changes.iter().take(lines.count()) {
                wanted.apply(change);
            }
            assert_eq!(all(&loaded), all(&wanted), "cut at {length}");
        }
    }
}
