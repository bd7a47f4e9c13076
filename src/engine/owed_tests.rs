use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use super::*;
use crate::domain::ledger::{Entry, State};

/// A ledger that can be taken away, made anew and written by others.
struct Disk {
    ledger: Mutex<Ledger>,
    /// Commits that fail, carried out or not.
    fails: AtomicUsize,
    carries_out: bool,
    somebody_elses: bool,
    commits: AtomicUsize,
}

impl LedgerStore for Disk {
    fn load<'a>(&'a self, _: &'a RecordKey) -> Pending<'a, Result<Ledger, LedgerError>> {
        let ledger = self.ledger.lock().unwrap().clone();
        let lost = self.somebody_elses;
        Box::pin(async move { if lost { Err(LedgerError::Conflict("epoch 9".into())) } else { Ok(ledger) } })
    }

    fn commit<'a>(
        &'a self,
        _: &'a RecordKey,
        ledger: &'a mut Ledger,
        changes: Vec<Change>,
    ) -> Pending<'a, Result<(), LedgerError>> {
        Box::pin(async move {
            self.commits.fetch_add(1, Ordering::SeqCst);
            let mut written = ledger.clone();
            for change in &changes {
                written.apply(change);
            }
            let fails =
                self.fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if fails.is_err() || self.carries_out {
                *self.ledger.lock().unwrap() = written.clone();
            }
            if fails.is_ok() {
                return Err(LedgerError::Unavailable("no answer".into()));
            }
            *ledger = written;
            Ok(())
        })
    }
}

/// Held in this epoch; in none where it is 0.
struct Epoch(Arc<AtomicI64>);

impl Tenure for Epoch {
    type Right = i64;

    fn right(&self, _: &RecordKey) -> Option<i64> {
        Some(self.0.load(Ordering::SeqCst)).filter(|epoch| *epoch > 0)
    }
}

const SALT: [u8; 16] = [7; 16];

fn key() -> RecordKey {
    RecordKey { namespace: "mail".into(), name: "first".into() }
}

fn accepted(uids: &[&str]) -> Vec<Change> {
    let entry = Entry { state: State::Deleting, day: 1, size: 10, message_id: 0, digest: 0 };
    uids.iter().map(|uid| Change::Put { uid: uid.as_bytes().into(), entry: entry.clone() }).collect()
}

struct Site {
    disk: Arc<Disk>,
    epoch: Arc<AtomicI64>,
    owing: Owing<Epoch>,
}

impl Site {
    fn new(change: impl FnOnce(&mut Disk)) -> Self {
        let mut disk = Disk {
            ledger: Mutex::new(Ledger::new(SALT)),
            fails: AtomicUsize::new(0),
            carries_out: false,
            somebody_elses: false,
            commits: AtomicUsize::new(0),
        };
        change(&mut disk);
        let (disk, epoch) = (Arc::new(disk), Arc::new(AtomicI64::new(3)));
        let owing = Owing::new(Arc::clone(&disk) as _, Epoch(Arc::clone(&epoch)));
        Self { disk, epoch, owing }
    }

    fn commits(&self) -> usize {
        self.disk.commits.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn what_is_owed_is_in_the_ledger_before_anybody_reads_it() {
    for carries_out in [false, true] {
        let site = Site::new(|disk| {
            (disk.fails, disk.carries_out) = (AtomicUsize::new(1), carries_out);
        });
        site.owing.owe(&key(), SALT, accepted(&["a", "b"]));
        assert!(site.owing.load(&key()).await.is_err(), "it is not known whether it is");
        assert!(site.owing.owes(&key()));
        let ledger = site.owing.load(&key()).await.unwrap();
        assert_eq!((ledger.len(), site.disk.ledger.lock().unwrap().len()), (2, 2));
        assert!(!site.owing.owes(&key()));
        // Once: what the ledger was told since is not overruled.
        let commits = site.commits();
        site.owing.load(&key()).await.unwrap();
        site.owing.settle(&key()).await.unwrap();
        assert_eq!(site.commits(), commits);
    }
}

#[tokio::test]
async fn what_was_accepted_under_one_right_is_not_committed_under_another() {
    let site = Site::new(|_| ());
    site.owing.owe(&key(), SALT, accepted(&["a"]));
    site.epoch.store(5, Ordering::SeqCst);
    assert_eq!(site.owing.load(&key()).await.unwrap().len(), 0);
    assert!(!site.owing.owes(&key()));
    // Back in the old epoch nothing of it is left, and without a right nothing
    // is taken in.
    site.epoch.store(3, Ordering::SeqCst);
    assert_eq!(site.owing.load(&key()).await.unwrap().len(), 0);
    site.epoch.store(0, Ordering::SeqCst);
    site.owing.owe(&key(), SALT, accepted(&["a"]));
    assert!(!site.owing.owes(&key()));
    assert_eq!(site.commits(), 0);
}

#[tokio::test]
async fn a_ledger_that_is_another_one_now_is_told_nothing() {
    let site = Site::new(|disk| disk.ledger = Mutex::new(Ledger::new([8; 16])));
    site.owing.owe(&key(), SALT, accepted(&["a"]));
    assert_eq!(site.owing.load(&key()).await.unwrap().len(), 0);
    assert!(!site.owing.owes(&key()));
    let site = Site::new(|disk| disk.somebody_elses = true);
    site.owing.owe(&key(), SALT, accepted(&["a"]));
    assert!(matches!(site.owing.settle(&key()).await, Err(LedgerError::Conflict(_))));
    assert!(!site.owing.owes(&key()));
    assert_eq!(site.commits(), 0);
}

#[tokio::test]
async fn so_many_records_and_no_more() {
    let site = Site::new(|_| ());
    let record = |at: usize| RecordKey { namespace: "mail".into(), name: format!("r{at}").into() };
    for at in 0..=MOST {
        site.owing.owe(&record(at), SALT, accepted(&["a"]));
    }
    assert!(site.owing.owes(&record(MOST - 1)) && !site.owing.owes(&record(MOST)));
    // What is void makes room.
    site.epoch.store(4, Ordering::SeqCst);
    site.owing.owe(&record(MOST), SALT, accepted(&["a"]));
    assert!(site.owing.owes(&record(MOST)) && !site.owing.owes(&record(0)));
}
