//! Commits that failed, or seemed to, and are made up for.

use rpop::engine::owed::{Owing, Tenure};

use super::*;

impl Tenure for Worker {
    type Right = Owner;

    fn right(&self, key: &RecordKey) -> Option<Owner> {
        self.held.owner(key)
    }
}

impl Worker {
    fn owing(&self) -> Owing<Self> {
        Owing::new(Arc::new(self.ledgers.clone()), self.clone())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_ones_own_whose_answer_was_lost_is_not_taken_for_somebody_elses() {
    let Some(here) = Here::new().await else { return };
    for fate in [Fate::LoseAnswer, Fate::Drop] {
        let worker = here.worker(7, 1).await.impatient();
        let mut ledger = worker.load().await.unwrap();
        worker.reserve(&mut ledger).await.unwrap();
        let before = ledger.len() as u64;
        here.gate.judge(move |method, _| if method == "GET" { Fate::Refuse(503) } else { fate });
        let error = worker.commit(&mut ledger, puts(before..before + 5)).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unavailable(_)), "{error:?}");
        here.gate.open();
        let ledgers = worker.owing();
        // With what was accepted while the commit was under way.
        ledgers.owe(&here.key, ledger.salt(), puts(before..before + 8));
        let settled = ledgers.load(&here.key).await.unwrap();
        assert_eq!(settled.len() as u64, before + 8);
        assert!(!ledgers.owes(&here.key));
        assert_eq!(all(&here.worker(7, 1).await.load().await.unwrap()), all(&settled));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_next_holder_has_written_is_left_as_it_is() {
    let Some(here) = Here::new().await else { return };
    let old = here.worker(7, 1).await;
    let mut ledger = old.load().await.unwrap();
    old.reserve(&mut ledger).await.unwrap();
    let ledgers = old.owing();
    ledgers.owe(&here.key, ledger.salt(), puts(0..5));
    // The old one does not know of it yet.
    let new = here.worker(7, 2).await;
    let mut theirs = new.load().await.unwrap();
    new.commit(&mut theirs, puts(3..4)).await.unwrap();
    here.gate.requests();
    is_conflict(ledgers.settle(&here.key).await);
    assert!(!ledgers.owes(&here.key), "it is over");
    assert_eq!(here.gate.writes(), [] as [&str; 0]);
    new.commit(&mut theirs, puts(4..5)).await.unwrap();
    assert_eq!(new.load().await.unwrap().len(), 2);
}
