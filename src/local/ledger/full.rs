//! Full disks: what was reserved can be written, and what cannot be written
//! is known before anything is handed over.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use super::file::Fault;
use super::tests::{Fixture, all, key, puts};
use super::*;

/// A small file system in memory, unmounted when dropped.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None`, and a word about it, where it cannot be had.
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "rpop-test"])
            .arg(folder.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(Self(folder)),
            other => {
                eprintln!("SKIPPED: no tmpfs can be mounted here (it takes root): {other:?}");
                None
            }
        }
    }

    fn ledgers(&self) -> FileLedgers {
        FileLedgers::new(Arc::new(StateDir::open(self.0.path().join("state")).unwrap()))
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.path().join("filler")).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.path().join("filler")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn is_full<T: std::fmt::Debug>(result: Result<T, LedgerError>) {
    let error = result.unwrap_err();
    assert!(matches!(&error, LedgerError::Unavailable(text) if text.contains("make room")), "{error}");
}

// quirks: "disk full"
#[tokio::test]
async fn a_full_disk_is_known_before_messages_are_handed_over() {
    let Some(disk) = Disk::mount() else { return };
    let (ledgers, key) = (disk.ledgers(), key("a"));
    let mut ledger = ledgers.load(&key).await.unwrap();
    disk.fill();
    is_full(ledgers.reserve(&key, &mut ledger, 20_000).await);
    assert!(!ledgers.path(&key).unwrap().exists(), "nothing is left of a file that could not be created");
    disk.make_room();
    ledgers.commit(&key, &mut ledger, puts(0..3)).await.unwrap();
    disk.fill();
    is_full(ledgers.reserve(&key, &mut ledger, 20_000).await);
    assert_eq!(all(&ledgers.load(&key).await.unwrap()), all(&ledger));
    disk.make_room();
    ledgers.reserve(&key, &mut ledger, 20_000).await.unwrap();
}

#[tokio::test]
async fn what_was_reserved_can_be_committed_on_a_full_disk() {
    let Some(disk) = Disk::mount() else { return };
    let (ledgers, key) = (disk.ledgers(), key("a"));
    let mut ledger = ledgers.load(&key).await.unwrap();
    for round in 0..2 {
        // 100 messages a round, at 200 octets each; the first creates the file.
        ledgers.reserve(&key, &mut ledger, 20_000).await.unwrap();
        let length = fs::metadata(ledgers.path(&key).unwrap()).unwrap().len();
        assert_eq!(length, ledger.mark().length, "the file is not longer for it");
        disk.fill();
        for batch in 0..4 {
            let first = round * 100 + batch * 25;
            ledgers.commit(&key, &mut ledger, puts(first..first + 25)).await.unwrap();
        }
        let loaded = ledgers.load(&key).await.unwrap();
        assert_eq!((all(&loaded), loaded.mark()), (all(&ledger), ledger.mark()));
        disk.make_room();
    }
    drop(ledgers);
    assert_eq!(all(&disk.ledgers().load(&key).await.unwrap()), all(&ledger));
}

#[tokio::test]
async fn reserving_again_takes_no_more_and_disturbs_nothing() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    let reserve = async |ledger: &mut Ledger| here.ledgers.reserve(&key("a"), ledger, 20_000).await;
    reserve(&mut ledger).await.unwrap();
    assert!(here.load().await.is_empty(), "a file with a head alone is an empty ledger");
    assert_eq!(here.load().await.salt(), ledger.salt());
    let blocks = || fs::metadata(here.path()).unwrap().blocks();
    let first = blocks();
    for _ in 0..5 {
        reserve(&mut ledger).await.unwrap();
    }
    assert_eq!(blocks(), first);
    // Half a line, as a crash leaves it: overwritten as ever.
    here.commit(&mut ledger, puts(0..3)).await;
    here.edit(|text| text + "kept uid-9 day=20");
    let mut ledger = here.load().await;
    reserve(&mut ledger).await.unwrap();
    here.commit(&mut ledger, puts(3..5)).await;
    assert_eq!(all(&here.load().await), all(&ledger));
    // Compactions keep the room, and do not let it grow.
    let mut most = 0;
    for _ in 0..300 {
        reserve(&mut ledger).await.unwrap();
        here.commit(&mut ledger, puts(0..5)).await;
        most = most.max(blocks());
    }
    assert!(most * 512 < 60_000, "{most} blocks");
    assert_eq!(all(&here.load().await), all(&ledger));
}

#[tokio::test]
async fn a_reservation_that_fails_leaves_the_ledger_usable() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.fail(&[Fault::Reserve]);
    is_full(here.ledgers.reserve(&key("a"), &mut ledger, 100).await);
    // The file is of this ledger, even though the first mark did not get out.
    here.ledgers.reserve(&key("a"), &mut ledger, 100).await.unwrap();
    here.commit(&mut ledger, puts(0..1)).await;
    let mut other = Ledger::new([1; 16]);
    let error = here.ledgers.reserve(&key("a"), &mut other, 100).await.unwrap_err();
    assert!(matches!(error, LedgerError::Conflict(_)), "{error}");
    fs::remove_file(here.path()).unwrap();
    let error = here.ledgers.reserve(&key("a"), &mut ledger, 100).await.unwrap_err();
    assert!(matches!(error, LedgerError::Conflict(_)), "{error}");
    let reader = FileLedgers::read_only(&here.folder.path().join("state"));
    reader.reserve(&key("a"), &mut ledger, 100).await.unwrap_err();
}
