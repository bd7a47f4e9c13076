//! What only unified accounts have: messages that are owed to some of their
//! recipients, and copies.

use super::*;

/// A message that is owed to `count` recipients.
fn owed(number: u64, count: u64, attempts: u16) -> Change {
    let Change::Put { uid, entry } = put(number) else { unreachable!() };
    let mut to: Vec<u64> = (1..=count).map(|one| entry.digest.wrapping_mul(2 * one + 1)).collect();
    to.sort_unstable();
    let reason = "452 4.2.2 mailbox full".into();
    let state = State::Owed { attempts, next_try: 1_790_000_000, reason, to: to.into(), reached: true };
    Change::Put { uid, entry: Entry { state, ..entry } }
}

fn copy(number: u64) -> Change {
    Change::Copy { message_id: number, digest: number + 1, day: 20_780 }
}

/// The format that the head is written in, and its size.
async fn head(here: &Here) -> (u8, usize) {
    let head = here.head().await.binary_data.unwrap()["head"].0.clone();
    (head[8], head.len())
}

#[tokio::test]
async fn who_is_owed_and_what_was_copied_is_known_to_the_next_holder() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await;
    let mut ledger = worker.load().await.unwrap();
    worker.reserve(&mut ledger).await.unwrap();
    worker.commit(&mut ledger, puts(0..10)).await.unwrap();
    assert_eq!(head(&here).await.0, 1, "plain records are as older builds know them");
    here.gate.requests();
    worker.commit(&mut ledger, vec![owed(3, 40, 1), copy(1), copy(2), owed(10, 1000, 1)]).await.unwrap();
    assert_eq!(here.gate.requests(), [format!("PATCH {HEAD}")]);
    assert_eq!(head(&here).await.0, 2);
    worker.commit(&mut ledger, vec![copy(2), owed(3, 40, 1)]).await.unwrap();
    assert!(here.gate.requests().is_empty(), "what is known already is not written again");

    let next = here.worker(7, 2).await;
    let mut read = next.load().await.unwrap();
    assert_eq!(all(&read), all(&ledger));
    let mut copies: Vec<_> = read.copies(20_800).collect();
    copies.sort_unstable();
    assert_eq!(copies, [(1, 2), (2, 3)]);
    let entry = read.entries(read.hash(b"uid-000000000010")).next().unwrap();
    assert!(matches!(&entry.state, State::Owed { to, reached: true, .. } if to.len() == 1000));

    // All is settled, and the copies are too old.
    let gone: Vec<Change> = read.outdated_copies(20_811).collect();
    assert_eq!(gone.len(), 2);
    next.commit(&mut read, [vec![put(3), put(10)], gone].concat()).await.unwrap();
    assert_eq!(head(&here).await.0, 1);
    assert_eq!((read.len(), read.kept()), (11, 11));
    assert_eq!(all(&next.load().await.unwrap()), all(&read));
    is_conflict(worker.commit(&mut ledger, vec![owed(3, 1, 2)]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_of_messages_that_are_owed_to_a_thousand_outgrow_no_object() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await;
    let mut ledger = worker.load().await.unwrap();
    // The very first write: larger than any head.
    for attempts in 1..=6 {
        let batch = (0..60).map(|number| owed(number, 1000, attempts));
        let batch = batch.chain((0..20).map(|number| copy(u64::from(attempts) * 100 + number)));
        let batch: Vec<Change> = batch.chain(puts(100..200)).collect();
        worker.commit(&mut ledger, batch).await.unwrap();
        for number in 0..3 {
            worker.commit(&mut ledger, vec![owed(number, 900, attempts + 10)]).await.unwrap();
            let (_, size) = head(&here).await;
            assert!(size <= 16 << 10, "{size}");
        }
        let other = here.worker(7, 1).await;
        assert_eq!(all(&other.load().await.unwrap()), all(&ledger));
    }
    let mut octets = 0;
    for name in here.objects().await {
        let data = here.maps().get(&name).await.unwrap().binary_data.unwrap();
        let size: usize = data.values().map(|data| data.0.len()).sum();
        assert!(size <= if name == HEAD { 16 << 10 } else { 256 << 10 }, "{name}: {size}");
        octets += size;
    }
    assert!(octets < 3 * 60 * 8000, "{octets} octets for 60 messages of 8 KB");
    assert_eq!(here.objects().await.len(), chunks_named(&here.head().await).len() + 1, "no orphans");
}

#[tokio::test]
async fn a_message_that_is_owed_to_nobody_or_to_too_many_is_refused() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await;
    let mut ledger = worker.load().await.unwrap();
    for count in [0, 1001] {
        let error = worker.commit(&mut ledger, vec![owed(1, count, 1)]).await.unwrap_err();
        assert!(matches!(&error, LedgerError::Full(text) if text.contains("1 to 1000")), "{error:?}");
    }
    assert!(here.gate.writes().is_empty(), "what could not be read is never written");
}
