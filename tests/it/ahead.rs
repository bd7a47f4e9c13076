//! Messages that are prepared ahead of the ledger: on disk, and delivered to
//! nobody.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rpop::domain::code::Code;
use rpop::domain::work::{Destination, MaildirPath};
use rpop::engine::ports::MailSink;
use rpop::local::maildir::MaildirSink;
use tempfile::TempDir;

use crate::bench::Bench;
use crate::support::mail::Arrived;
use crate::support::pop3::{FakePop3, Pop3};
use crate::support::smtp::Smtp;
use crate::support::wait_until;

const ALL: usize = 150;
/// How many messages may be delivered before the ledger is written.
const CHECKPOINT: usize = 20;

struct Home {
    from: FakePop3,
    bench: Bench,
    folder: TempDir,
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

impl Home {
    /// A maildrop of [`ALL`] messages whose mail goes into a Maildir.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let from = Pop3::new().generated("m", ALL, 500).start();
        let mut bench = Bench::new(&from, &Smtp::new().start());
        let maildir = Some(MaildirPath(folder.path().display().to_string().into()));
        bench.item.destination =
            Arc::new(Destination { domain: "local.test".into(), smtp: None, lmtp: None, maildir });
        bench.engine.sink = Arc::new(MaildirSink::new("h")) as Arc<dyn MailSink>;
        Self { from, bench, folder }
    }

    fn delivered(&self) -> Vec<PathBuf> {
        files(&self.folder.path().join("new"))
    }

    fn prepared(&self) -> usize {
        files(&self.folder.path().join("tmp")).len()
    }

    async fn arrives_once_each(&self) {
        self.bench.poll_well().await;
        let mut marks = BTreeMap::<String, usize>::new();
        for file in self.delivered() {
            *marks.entry((Arrived { raw: std::fs::read(file).unwrap() }).mark()).or_default() += 1;
        }
        assert_eq!(marks.len(), ALL);
        assert!(marks.values().all(|times| *times == 1), "{marks:?}");
        assert_eq!((self.prepared(), self.from.uids().len()), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_ahead_is_not_delivered_before_the_ledger_has_room() {
    let home = Home::new();
    home.bench.memory.hangs.store(true, Ordering::SeqCst);
    {
        let poll = home.bench.poll();
        tokio::pin!(poll);
        while home.prepared() < ALL - CHECKPOINT || home.delivered().len() < CHECKPOINT {
            tokio::select! {
                report = &mut poll => panic!("{report:?}"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
            assert!(home.delivered().len() <= CHECKPOINT);
        }
        // The last answers arrive; nothing more is delivered.
        tokio::select! {
            report = &mut poll => panic!("{report:?}"),
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
        assert_eq!(home.delivered().len(), CHECKPOINT);
    }
    // Dropped amid that, it leaves nothing behind.
    wait_until("the temporary files are gone", || home.prepared() == 0);
    assert_eq!(home.delivered().len(), CHECKPOINT);
    home.bench.memory.hangs.store(false, Ordering::SeqCst);
    home.arrives_once_each().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_prepared_ahead_is_withdrawn_when_the_ledger_cannot_be_written() {
    let home = Home::new();
    home.bench.memory.fails.store(true, Ordering::SeqCst);
    let report = home.bench.poll().await;
    assert_eq!(report.result.unwrap_err().code, Code::LedgerUnwritable);
    wait_until("the temporary files are gone", || home.prepared() == 0);
    let delivered = home.delivered().len();
    assert!((1..=CHECKPOINT).contains(&delivered), "{delivered}");
    assert_eq!(home.from.uids().len(), ALL);
    home.bench.memory.fails.store(false, Ordering::SeqCst);
    home.arrives_once_each().await;
}
