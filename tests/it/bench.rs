//! The engine alone: real sockets and scripted servers on either side, and a
//! ledger in memory that can be made to fail.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rpop::domain::envelope::Mailbox;
use rpop::domain::ledger::{Change, Ledger, State};
use rpop::domain::work::{RecordKey, SecretRef, Settings, WorkItem};
use rpop::engine::Engine;
use rpop::engine::owed::{Always, Owing};
use rpop::engine::ports::{LedgerError, LedgerStore, Pending, SecretError, Secrets, Stage, Unobserved};
use rpop::engine::report::Report;
use rpop::engine::sink::MailPool;
use rpop::local::tokens::FileTokens;
use rpop::net::Connector;
use rpop::oauth::Tokens;
use tokio::sync::watch;
use zeroize::Zeroizing;

use crate::support::dovecot::PASSWORD;
use crate::support::pop3::FakePop3;
use crate::support::smtp::FakeSmtp;
use crate::support::work;

/// Whatever is asked for is this.
pub struct OnePassword(pub &'static [u8]);

impl Secrets for OnePassword {
    fn get<'a>(&'a self, _: &'a SecretRef) -> Pending<'a, Result<Zeroizing<Vec<u8>>, SecretError>> {
        Box::pin(async { Ok(Zeroizing::new(self.0.to_vec())) })
    }
}

/// Keeps ledgers in memory.
#[derive(Default)]
pub struct Memory {
    pub ledgers: Mutex<HashMap<RecordKey, Ledger>>,
    pub commits: AtomicUsize,
    /// All changes, in the order in which they were written.
    pub written: Mutex<Vec<Change>>,
    pub fails: AtomicBool,
    /// Commits are carried out, and their answers lost.
    pub loses_answers: AtomicBool,
    /// Commits are not answered at all.
    pub hangs: AtomicBool,
}

impl LedgerStore for Memory {
    fn load<'a>(&'a self, key: &'a RecordKey) -> Pending<'a, Result<Ledger, LedgerError>> {
        let known = self.ledgers.lock().unwrap().get(key).cloned();
        Box::pin(async move { Ok(known.unwrap_or_else(|| Ledger::new([7; 16]))) })
    }

    fn commit<'a>(
        &'a self,
        key: &'a RecordKey,
        ledger: &'a mut Ledger,
        changes: Vec<Change>,
    ) -> Pending<'a, Result<(), LedgerError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.hangs.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
            if self.fails.load(Ordering::SeqCst) {
                return Err(LedgerError::Unavailable("the disk is full".into()));
            }
            self.commits.fetch_add(1, Ordering::SeqCst);
            self.written.lock().unwrap().extend(changes.iter().cloned());
            let mut written = ledger.clone();
            for change in &changes {
                written.apply(change);
            }
            self.ledgers.lock().unwrap().insert(key.clone(), written.clone());
            if self.loses_answers.load(Ordering::SeqCst) {
                return Err(LedgerError::Unavailable("the store does not answer".into()));
            }
            *ledger = written;
            Ok(())
        })
    }
}

/// An engine between a scripted maildrop and a scripted destination.
pub struct Bench {
    pub engine: Engine,
    pub memory: Arc<Memory>,
    pub item: WorkItem,
    pub settings: Settings,
    _stop: watch::Sender<Stage>,
    pub stage: watch::Receiver<Stage>,
}

impl Bench {
    pub fn new(from: &FakePop3, to: &FakeSmtp) -> Self {
        let connector = Arc::new(Connector::new());
        let secrets: Arc<dyn Secrets> = Arc::new(OnePassword(PASSWORD.as_bytes()));
        let memory = Arc::new(Memory::default());
        let engine = Engine {
            sink: Arc::new(MailPool::new(Arc::clone(&connector), Arc::clone(&secrets), "test.host".into())),
            tokens: Tokens::new(
                Arc::clone(&connector),
                Arc::clone(&secrets),
                Arc::new(FileTokens::new(Path::new("/nonexistent"))),
            ),
            connector,
            secrets,
            ledgers: Arc::new(Owing::new(Arc::clone(&memory) as _, Always)),
            observer: Arc::new(Unobserved),
            host_name: "test.host".into(),
            trace_key: [9; 16],
        };
        let item = WorkItem {
            postmaster: Some(Mailbox::parse("postmaster@local.test").unwrap()),
            ..work::item("mail", "first", "bob@local.test", from.port(), to.port())
        };
        let (stop, stage) = watch::channel(Stage::Running);
        let mut settings = Settings { allow_self_poll: true, ..Settings::default() };
        settings.timeouts.data = Duration::from_secs(2);
        Self { engine, memory, item, settings, _stop: stop, stage }
    }

    pub async fn poll(&self) -> Report {
        let poll = self.engine.poll(&self.item, &self.settings, self.stage.clone());
        tokio::time::timeout(Duration::from_mins(1), poll).await.expect("a poll ends")
    }

    pub async fn poll_well(&self) -> Report {
        let report = self.poll().await;
        assert!(report.result.is_ok(), "{report:?}");
        report
    }

    pub fn ledger(&self) -> Ledger {
        self.memory.ledgers.lock().unwrap().get(&self.item.key).cloned().unwrap_or_default()
    }

    /// How many entries are set aside.
    pub fn quarantined(&self) -> usize {
        self.ledger().iter().filter(|(_, entry)| matches!(entry.state, State::Quarantined { .. })).count()
    }
}

/// Each of `count` generated messages arrived, and arrived once.
pub fn once_each(to: &FakeSmtp, count: usize) {
    let marks = to.marks();
    assert_eq!(marks.len(), count, "{marks:?}");
    assert!(marks.values().all(|times| *times == 1), "{marks:?}");
}
