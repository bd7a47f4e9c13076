mod unified;

use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use super::file::Fault;
use super::*;
use crate::domain::ledger::{Entry, State};
use crate::engine::owed::{Always, Owing};

pub(super) fn key(name: &str) -> RecordKey {
    RecordKey { namespace: "mail".into(), name: name.into() }
}

fn entry(state: State) -> Entry {
    Entry { state, day: 20_000, size: 10, message_id: 3, digest: 4 }
}

fn put(uid: &str, state: State) -> Change {
    Change::Put { uid: uid.as_bytes().into(), entry: entry(state) }
}

pub(super) fn puts(uids: std::ops::Range<u32>) -> Vec<Change> {
    uids.map(|number| put(&format!("uid-{number}"), State::Kept)).collect()
}

pub(super) struct Fixture {
    pub(super) folder: TempDir,
    pub(super) ledgers: FileLedgers,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ledgers = FileLedgers::new(Arc::new(StateDir::open(folder.path().join("state")).unwrap()));
        Self { folder, ledgers }
    }

    /// As a new process would see it.
    fn restart(self) -> Self {
        drop(self.ledgers);
        let ledgers = FileLedgers::new(Arc::new(StateDir::open(self.folder.path().join("state")).unwrap()));
        Self { folder: self.folder, ledgers }
    }

    pub(super) async fn load(&self) -> Ledger {
        self.ledgers.load(&key("a")).await.unwrap()
    }

    pub(super) async fn commit(&self, ledger: &mut Ledger, changes: Vec<Change>) {
        self.ledgers.commit(&key("a"), ledger, changes).await.unwrap();
    }

    pub(super) fn path(&self) -> PathBuf {
        self.ledgers.path(&key("a")).unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(self.path()).unwrap()
    }

    pub(super) fn edit(&self, change: impl FnOnce(String) -> String) {
        fs::write(self.path(), change(self.text())).unwrap();
    }

    pub(super) fn fail(&self, faults: &[Fault]) {
        self.ledgers.inner.disk.faults.lock().unwrap().extend_from_slice(faults);
    }
}

pub(super) fn all(ledger: &Ledger) -> Vec<impl Ord + std::fmt::Debug + use<>> {
    let describe = |(hash, entry): (u64, Entry)| (hash, format!("{entry:?}"), ledger.missed(hash));
    let mut all: Vec<_> = ledger.iter().map(describe).collect();
    all.sort();
    all
}

#[tokio::test]
async fn what_was_committed_is_there_in_the_next_process() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    assert!(ledger.is_empty());
    assert!(!here.path().exists(), "a poll that changes nothing writes nothing");
    here.commit(&mut ledger, vec![]).await;
    assert!(!here.path().exists());
    here.commit(&mut ledger, puts(0..3)).await;
    here.commit(&mut ledger, vec![put("uid-1", State::Deleting)]).await;
    let missed = Change::Missed { hash: ledger.hash(b"uid-2"), since: 20_001, listings: 2 };
    here.commit(&mut ledger, vec![missed]).await;
    let here = here.restart();
    let again = here.load().await;
    assert_eq!(all(&again), all(&ledger));
    assert_eq!(again.entries(again.hash(b"uid-1")).next().unwrap().state, State::Deleting);
    assert_eq!(again.missed(again.hash(b"uid-2")), Some((20_001, 2)));
    assert_eq!(again.mark(), ledger.mark());
}

#[tokio::test]
async fn the_file_reads_well() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    let reason = "550 5.7.1 no such user".into();
    let quarantined = State::Quarantined { attempts: 2, next_try: 1_700_000_000, reason };
    here.commit(&mut ledger, vec![put("abc", State::Kept), put("d e", quarantined)]).await;
    let text = here.text();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with(['#', 'r'])).collect();
    assert_eq!(
        lines,
        [
            "kept abc day=2024-10-04 size=10 id=0000000000000003 digest=0000000000000004",
            "quarantined d%20e day=2024-10-04 size=10 id=0000000000000003 digest=0000000000000004 tries=2 \
             next=2023-11-14T22:13:20Z reason=550 5.7.1 no such user",
        ]
    );
}

#[tokio::test]
async fn a_person_may_delete_lines_and_change_states() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..3)).await;
    here.edit(|text| {
        let kept = text.lines().filter(|line| !line.contains("uid-0"));
        let mut text: String = kept.flat_map(|line| [line, "\r\n"]).collect();
        text = text.replace("kept uid-1", "deleting uid-1");
        text.push_str("\n# mine\nkept by-hand\n");
        text
    });
    let mut ledger = here.load().await;
    assert_eq!((ledger.len(), ledger.kept()), (3, 2));
    assert_eq!(ledger.entries(ledger.hash(b"by-hand")).next().unwrap().day, today());
    here.commit(&mut ledger, vec![put("new", State::Kept)]).await;
    assert_eq!(all(&here.load().await), all(&ledger));
}

#[tokio::test]
async fn lines_added_by_hand_during_a_poll_are_kept() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..2)).await;
    here.edit(|text| text + "kept by-hand\n");
    here.commit(&mut ledger, puts(2..3)).await;
    let ledger = here.load().await;
    assert_eq!(ledger.len(), 4);
}

// quirks: "A state file with garbage in it: an error for that record, never an empty memory"
#[tokio::test]
async fn garbage_is_an_error_that_names_file_and_line() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..3)).await;
    let good = here.text();
    let lines = good.lines().count();
    for (text, line) in [
        (String::new(), 1),
        ("kept abc\n".to_owned(), 1),
        ("\0\0\0\0\0\0\0\0".to_owned(), 1),
        (good.replace("kept uid-1", "keqt uid-1"), lines - 1),
        (good.clone() + "\u{1}\u{2}\u{3}\n", lines + 1),
        (good.clone() + "\0\0\0\0\nkept abc\n", lines + 1),
        (good.replace("salt=", "salt=x"), 1),
    ] {
        fs::write(here.path(), &text).unwrap();
        let error = here.ledgers.load(&key("a")).await.unwrap_err();
        let wanted = format!("{}:{line}:", here.path().display());
        assert!(matches!(error, LedgerError::Damaged(_)), "{error}");
        assert!(error.to_string().starts_with(&wanted), "{error} instead of {wanted}");
        assert_eq!(fs::read_to_string(here.path()).unwrap(), text, "evidence is left as it is");
        // Other records go on.
        let other = key("b");
        let mut ledger = here.ledgers.load(&other).await.unwrap();
        here.ledgers.commit(&other, &mut ledger, puts(0..1)).await.unwrap();
    }
}

// quirks: "A state file with garbage in it: an error for that record, never an empty memory"
#[tokio::test]
async fn a_file_cut_off_in_its_head_is_never_an_empty_ledger() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..1)).await;
    let whole = here.text();
    let head = whole.find("kept uid-0").unwrap();
    for length in 0..head {
        fs::write(here.path(), &whole.as_bytes()[..length]).unwrap();
        let error = here.ledgers.load(&key("a")).await.unwrap_err();
        assert!(matches!(error, LedgerError::Damaged(_)), "cut at {length}: {error}");
        if length % 50 == 0 {
            // Cut during a poll: no commit makes it look whole again.
            let error = here.ledgers.commit(&key("a"), &mut ledger, puts(1..2)).await.unwrap_err();
            assert!(matches!(error, LedgerError::Damaged(_)), "cut at {length}: {error}");
        }
    }
    fs::write(here.path(), &whole.as_bytes()[..head]).unwrap();
    assert!(here.load().await.is_empty());
}

#[tokio::test]
async fn files_of_earlier_builds_are_read_with_and_without_messages() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..1)).await;
    let old = "rpop-ledger 1 salt=00112233445566778899aabbccddeeff\n# What rpop took\n\
               # end each line with a line feed.\n";
    fs::write(here.path(), old).unwrap();
    assert!(here.load().await.is_empty());
    here.edit(|text| text + "kept abc\n");
    assert_eq!(here.load().await.len(), 1);
    // A person may delete all comments as long as there are messages; when
    // these go too, the file stays readable.
    here.edit(|text| text.lines().filter(|line| !line.starts_with('#')).flat_map(|l| [l, "\n"]).collect());
    let mut ledger = here.load().await;
    assert_eq!(ledger.len(), 1);
    for _ in 0..70 {
        here.commit(&mut ledger, vec![put("abc", State::Deleting)]).await;
    }
    let forget = Change::Forget { hash: ledger.hash(b"abc") };
    here.commit(&mut ledger, vec![forget]).await;
    assert!(here.load().await.is_empty());
    let path = here.path();
    let (disk, mut doubt) = (&here.ledgers.inner.disk, Doubt::default());
    let mut file = LedgerFile { path: &path, disk, doubt: &mut doubt };
    file.compact(today()).unwrap();
    assert!(!here.text().contains("abc"));
    assert!(here.load().await.is_empty());
}

// quirks: "kill -9, power loss, connection drop at any byte"
#[tokio::test]
async fn a_line_torn_by_a_power_loss_is_left_out_and_overwritten() {
    for tail in [&b"kept uid-9 day=2026"[..], b"ke", b"\0\0\0\0\0\0\0", b"\xff"] {
        let here = Fixture::new();
        let mut ledger = here.load().await;
        here.commit(&mut ledger, puts(0..3)).await;
        let mut text = here.text().into_bytes();
        text.extend_from_slice(tail);
        fs::write(here.path(), text).unwrap();
        let here = here.restart();
        let mut again = here.load().await;
        assert_eq!(all(&again), all(&ledger));
        here.commit(&mut again, puts(3..4)).await;
        assert_eq!(here.load().await.len(), 4);
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_leaves_no_trace() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..3)).await;
    let before = (all(&ledger), here.text());
    for part in [0, 10, 1000] {
        here.fail(&[Fault::Write(part)]);
        let error = here.ledgers.commit(&key("a"), &mut ledger, puts(3..5)).await.unwrap_err();
        assert!(matches!(&error, LedgerError::Unavailable(text) if text.contains("make room")), "{error}");
        assert_eq!((all(&ledger), here.text()), before);
    }
    here.commit(&mut ledger, puts(3..5)).await;
    assert_eq!(all(&here.load().await), all(&ledger));
}

#[tokio::test]
async fn what_a_failed_flush_left_is_never_believed() {
    for reload in [false, true] {
        let here = Fixture::new();
        let mut ledger = here.load().await;
        here.commit(&mut ledger, puts(0..3)).await;
        let before = all(&ledger);
        // Neither the flush works nor the truncation behind it.
        here.fail(&[Fault::Sync, Fault::Truncate]);
        here.ledgers.commit(&key("a"), &mut ledger, puts(3..5)).await.unwrap_err();
        here.fail(&[Fault::Truncate]);
        if reload {
            here.ledgers.load(&key("a")).await.unwrap_err();
            ledger = here.load().await;
        } else {
            here.ledgers.commit(&key("a"), &mut ledger, puts(5..6)).await.unwrap_err();
        }
        assert_eq!(all(&ledger), before);
        here.commit(&mut ledger, puts(6..7)).await;
        assert_eq!(ledger.len(), 4);
        assert_eq!(all(&here.load().await), all(&ledger));
    }
}

#[tokio::test]
async fn a_first_commit_that_failed_is_repeated() {
    for faults in [&[Fault::Write(5)][..], &[Fault::Sync], &[Fault::SyncFolder], &[Fault::SyncFolder; 2]] {
        let here = Fixture::new();
        let mut ledger = here.load().await;
        here.fail(faults);
        for _ in faults {
            here.ledgers.commit(&key("a"), &mut ledger, puts(0..2)).await.unwrap_err();
        }
        assert!(ledger.is_empty());
        here.commit(&mut ledger, puts(0..2)).await;
        assert_eq!(all(&here.load().await), all(&ledger));
    }
}

/// A disk that fails behind the delivery: the next poll of the same process
/// begins with what was accepted.
#[tokio::test]
async fn what_a_failed_commit_would_have_said_is_in_the_file_before_the_next_poll() {
    for faults in [&[Fault::Write(5)][..], &[Fault::Sync], &[Fault::Sync, Fault::Truncate]] {
        let here = Fixture::new();
        let ledgers = Owing::new(Arc::new(here.ledgers.clone()), Always);
        let mut ledger = ledgers.load(&key("a")).await.unwrap();
        ledgers.reserve(&key("a"), &mut ledger, 2000).await.unwrap();
        here.fail(faults);
        ledgers.commit(&key("a"), &mut ledger, puts(0..3)).await.unwrap_err();
        ledgers.owe(&key("a"), ledger.salt(), puts(0..5));
        here.fail(&[Fault::Sync]);
        let error = ledgers.load(&key("a")).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unavailable(_)), "{error}");
        assert_eq!(ledgers.load(&key("a")).await.unwrap().len(), 5);
        assert_eq!(here.load().await.len(), 5);
    }
}

#[tokio::test]
async fn two_ledgers_of_one_record_do_not_overwrite_each_other() {
    let here = Fixture::new();
    let (mut one, mut two) = (here.load().await, here.load().await);
    here.commit(&mut one, puts(0..1)).await;
    let error = here.ledgers.commit(&key("a"), &mut two, puts(1..2)).await.unwrap_err();
    assert!(matches!(error, LedgerError::Conflict(_)), "{error}");
    fs::remove_file(here.path()).unwrap();
    let error = here.ledgers.commit(&key("a"), &mut one, puts(1..2)).await.unwrap_err();
    assert!(matches!(error, LedgerError::Conflict(_)), "{error}");
}

// quirks: "State survives a recreated pod"
#[tokio::test]
async fn a_state_folder_that_was_unmounted_is_not_an_empty_one() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..1)).await;
    let state = here.folder.path().join("state");
    fs::rename(&state, here.folder.path().join("elsewhere")).unwrap();
    let error = here.ledgers.load(&key("a")).await.unwrap_err();
    assert!(error.to_string().contains("unmounted"), "{error}");
    fs::create_dir(&state).unwrap();
    here.ledgers.load(&key("a")).await.unwrap_err();
    here.ledgers.commit(&key("a"), &mut ledger, puts(1..2)).await.unwrap_err();
}

#[tokio::test]
async fn dead_lines_go_and_comments_stay() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..10)).await;
    here.edit(|text| text + "# a note\n");
    let missed = Change::Missed { hash: ledger.hash(b"uid-3"), since: 20_001, listings: 2 };
    let gone = Change::Forget { hash: ledger.hash(b"uid-4") };
    here.commit(&mut ledger, vec![missed, gone]).await;
    let mut longest = 0;
    for round in 0..100 {
        let state = if round % 2 == 0 { State::Deleting } else { State::Kept };
        here.commit(&mut ledger, vec![put("uid-7", state)]).await;
        longest = longest.max(here.text().lines().count());
    }
    assert!(longest < 110, "{longest} lines for 9 entries");
    let text = here.text();
    assert!(text.contains("# a note\n") && text.starts_with("rpop-ledger 1 salt="), "{text}");
    assert!(!text.contains("uid-4"));
    let here = here.restart();
    assert_eq!(all(&here.load().await), all(&ledger));
    assert!(fs::read_dir(here.path().parent().unwrap()).unwrap().count() == 1, "no temporary file is left");
}

#[tokio::test]
async fn a_failed_compaction_leaves_the_commit_valid() {
    for fault in [Fault::Sync, Fault::SyncFolder] {
        let here = Fixture::new();
        let mut ledger = here.load().await;
        here.commit(&mut ledger, puts(0..1)).await;
        for _ in 0..65 {
            here.commit(&mut ledger, vec![put("uid-0", State::Kept)]).await;
        }
        // The append is fine; what follows it fails.
        let mut changes = vec![put("uid-0", State::Deleting)];
        let path = here.path();
        let lines = here.ledgers.lines(&key("a"), &ledger, &changes).unwrap();
        let (disk, mut doubt) = (&here.ledgers.inner.disk, Doubt::default());
        let mut file = LedgerFile { path: &path, disk, doubt: &mut doubt };
        file.append(ledger.mark(), ledger.salt(), &lines, 1).unwrap();
        here.fail(&[fault]);
        file.compact(today()).unwrap_err();
        here.ledgers.inner.files().doubts.insert(key("a"), doubt);
        for change in &changes {
            ledger.apply(change);
        }
        changes = puts(1..2);
        here.commit(&mut ledger, changes).await;
        assert_eq!(all(&here.load().await), all(&ledger));
    }
}

#[tokio::test]
async fn a_commit_that_nobody_waits_for_ends_before_the_next_load() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..1)).await;
    for round in 1..40 {
        let key = key("a");
        let commit = here.ledgers.commit(&key, &mut ledger, puts(round..round + 1));
        let aborted = tokio::time::timeout(std::time::Duration::from_micros(u64::from(round) * 5), commit);
        drop(aborted.await);
        ledger = here.load().await;
        here.commit(&mut ledger, puts(1000..1001)).await;
    }
    assert_eq!(all(&here.load().await), all(&ledger));
}

#[tokio::test]
async fn uids_that_are_too_long_are_refused() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    let uid = "x".repeat(text::MOST_UID);
    here.commit(&mut ledger, vec![put(&uid, State::Kept)]).await;
    let error = here.ledgers.commit(&key("a"), &mut ledger, vec![put(&(uid + "x"), State::Kept)]).await;
    assert!(matches!(error, Err(LedgerError::Full(_))));
    assert_eq!(here.load().await.len(), 1);
}

#[tokio::test]
async fn readers_do_not_need_the_lock_and_cannot_write() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..2)).await;
    let reader = FileLedgers::read_only(&here.folder.path().join("state"));
    let mut ledger = reader.load(&key("a")).await.unwrap();
    assert_eq!(ledger.len(), 2);
    assert!(reader.load(&key("never-polled")).await.unwrap().is_empty());
    reader.commit(&key("a"), &mut ledger, puts(2..3)).await.unwrap_err();
}

#[tokio::test]
async fn new_ledgers_have_salts_of_their_own() {
    let here = Fixture::new();
    let (one, two) = (here.load().await, here.load().await);
    assert_ne!(one.salt(), two.salt());
    assert_ne!(one.hash(b"a"), two.hash(b"a"));
}

/// The hashes of `Forget` and `Missed` stand for UIDs, those from 100 on for
/// Message-IDs.
fn changes() -> impl Strategy<Value = Change> {
    let uid = (0..12_u8).prop_map(|number| Box::from([b'u', number * 20]));
    let state = prop_oneof![
        Just(State::Kept),
        Just(State::Deleting),
        Just(State::Uncertain),
        (1..9_u16, 0..2_000_000_000_i64).prop_map(|(attempts, next_try)| State::Quarantined {
            attempts,
            next_try,
            reason: "no".into()
        }),
        (1..9_u16, 0..2_000_000_000_i64, prop::collection::btree_set(any::<u64>(), 1..5), any::<bool>())
            .prop_map(|(attempts, next_try, to, reached)| State::Owed {
                attempts,
                next_try,
                reason: "no".into(),
                to: to.into_iter().collect(),
                reached,
            }),
    ];
    let put = (uid, state, 0..3_u64, 0..3_u64).prop_map(|(uid, state, size, digest)| Change::Put {
        uid,
        entry: Entry { state, day: 20_000, size, message_id: 0, digest },
    });
    prop_oneof![
        6 => put,
        4 => (1..4_u64, 1..12_u64, 20_000..20_004_i32)
            .prop_map(|(message_id, digest, day)| Change::Copy { message_id, digest, day }),
        1 => (101..104_u64).prop_map(|hash| Change::Forget { hash }),
        1 => (0..12_u8).prop_map(|number| Change::Forget { hash: u64::from(number) }),
        1 => (0..12_u8, 0..4_u8).prop_map(|(number, listings)| Change::Missed {
            hash: u64::from(number), since: 20_001, listings
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Batches, compactions and restarts in any order: the file holds what the
    /// memory does.
    #[test]
    fn the_file_is_the_ledger(batches in prop::collection::vec(prop::collection::vec(changes(), 1..30), 1..8)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let here = Fixture::new();
            let mut ledger = here.load().await;
            for mut batch in batches {
                for change in &mut batch {
                    if let Change::Forget { hash } | Change::Missed { hash, .. } = change {
                        *hash = match hash.checked_sub(100) {
                            None => ledger.hash(&[b'u', u8::try_from(*hash).unwrap() * 20]),
                            Some(message_id) => ledger.hash_of(&Change::Copy { message_id, digest: 1, day: 0 }),
                        };
                    }
                }
                here.commit(&mut ledger, batch).await;
                assert_eq!(all(&here.load().await), all(&ledger));
                let path = here.path();
                let mut doubt = Doubt::default();
                let mut file =
                    LedgerFile { path: &path, disk: &here.ledgers.inner.disk, doubt: &mut doubt };
                let mark = file.compact(today()).unwrap();
                assert_eq!(mark.lines, ledger.len() as u64);
                ledger.set_mark(mark);
                assert_eq!(all(&here.load().await), all(&ledger));
            }
        });
    }
}
