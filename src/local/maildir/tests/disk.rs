//! Disks that are full, read-only or somebody else's. What needs root to be
//! set up is passed over with a word elsewhere.

use std::process::Command;

use super::*;

/// A file system in memory, unmounted when dropped.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    /// `None`, and a word about it, where it cannot be had.
    fn mount(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "rpop-test"])
            .arg(folder.path())
            .output();
        match mount {
            Ok(output) if output.status.success() => Some(Self { folder }),
            other => {
                eprintln!("SKIPPED: no tmpfs can be mounted here (it takes root): {other:?}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn remount(&self, options: &str) {
        let options = format!("remount,{options}");
        let done = Command::new("mount").args(["-o", &options]).arg(self.path()).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.path()).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn text(id: u64) -> String {
    format!("n: {id}\n\n{}", "some words of a message, many lines of them\n".repeat(180))
}

fn refused(outcome: &Outcome) -> &str {
    match &outcome.result {
        Err(Undelivered::Unavailable { code: Code::DestinationUnavailable, message }) => message,
        other => panic!("{other:?}"),
    }
}

/// Exactly the accepted messages are there, each of them whole.
fn only_whole(folder: &Path, outcomes: &[Outcome]) -> usize {
    let accepted: BTreeSet<_> =
        outcomes.iter().filter(|outcome| outcome.result.is_ok()).map(|outcome| text(outcome.id)).collect();
    let found: BTreeSet<_> =
        files(&folder.join("new")).iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    assert_eq!(found, accepted);
    assert!(files(&folder.join("tmp")).is_empty(), "nothing half-written stays behind");
    found.len()
}

#[tokio::test]
async fn a_full_disk_takes_whole_messages_or_none() {
    // The first has no room for octets, the second none for files.
    for options in ["size=200k", "size=4m,nr_inodes=16"] {
        let Some(disk) = Disk::mount(options) else { return };
        let template = disk.path().join("{local}").display().to_string();
        let sink = MaildirSink::new("h");
        let jobs = (0..100).map(|id| job(id, &["al@b"], whole(&text(id)))).collect();
        let outcomes = deliver(sink.open(route(&template, None)), jobs).await;
        let folder = disk.path().join("al");
        let found = only_whole(&folder, &outcomes);
        assert!((1..99).contains(&found), "{options}: {found} messages");
        let message = outcomes.iter().find(|outcome| outcome.result.is_err()).map(refused).unwrap();
        assert!(message.contains(&format!("{}/", folder.display())), "{message}");
        assert!(message.contains("free some space") && message.contains("stays on its server"), "{message}");

        // A stream that is larger than what is left.
        let Courier { jobs, mut outcomes } = sink.open(route(&template, None));
        let (parts, content) = mpsc::channel(1);
        jobs.send(job(1, &["al@b"], Content::Stream(content))).await.unwrap();
        let lines = Bytes::from("0123456789abcdef\r\n".repeat(50_000));
        for _ in 0..10 {
            if parts.send(Part::Data(Piece::new(lines.clone(), true))).await.is_err() {
                break;
            }
        }
        drop((parts.send(Part::End).await, parts));
        let outcome = outcomes.recv().await.unwrap();
        assert!(refused(&outcome).contains("free some space"), "{outcome:?}");
        assert_eq!(files(&folder.join("new")).len(), found);
        assert!(files(&folder.join("tmp")).is_empty());

        // Space again: mail again, by the same sink.
        for file in files(&folder.join("new")) {
            fs::remove_file(file).unwrap();
        }
        let outcomes =
            deliver(sink.open(route(&template, None)), vec![job(7, &["al@b"], whole(&text(7)))]).await;
        assert_eq!(only_whole(&folder, &outcomes), 1);
    }
}

#[tokio::test]
async fn a_read_only_disk_is_told_with_its_path() {
    let Some(disk) = Disk::mount("size=1m") else { return };
    let template = disk.path().join("{local}").display().to_string();
    let sink = MaildirSink::new("h");
    let outcomes = deliver(sink.open(route(&template, None)), vec![job(1, &["al@b"], whole(&text(1)))]).await;
    assert_eq!(only_whole(&disk.path().join("al"), &outcomes), 1);
    disk.remount("ro");
    // A folder that is there, and one that would have to be made.
    for to in ["al@b", "new@b"] {
        let outcomes = deliver(sink.open(route(&template, None)), vec![job(2, &[to], whole(&text(2)))]).await;
        let message = refused(&outcomes[0]);
        let folder = disk.path().join(to.trim_end_matches("@b"));
        assert!(message.contains(&format!("{}/", folder.display())), "{message}");
        assert!(message.contains("mount it for writing"), "{message}");
    }
    assert_eq!(files(&disk.path().join("al/new")).len(), 1);
    disk.remount("rw");
    let outcomes = deliver(sink.open(route(&template, None)), vec![job(1, &["al@b"], whole(&text(1)))]).await;
    assert_eq!(only_whole(&disk.path().join("al"), &outcomes), 1);
}

/// Root may write everywhere: this test then runs itself again without that
/// power.
#[tokio::test]
async fn a_folder_that_may_not_be_written_is_told_with_its_path() {
    const AGAIN: &str = "RPOP_TEST_WITHOUT_POWERS";
    let root = tempfile::tempdir().unwrap();
    let locked = root.path().join("al");
    for part in ["tmp", "new", "cur"] {
        fs::create_dir_all(locked.join(part)).unwrap();
    }
    let lock = |folder: &Path, mode| {
        fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
    };
    lock(&locked.join("tmp"), 0o500);
    if fs::write(locked.join("tmp/x"), b"").is_ok() {
        assert!(std::env::var_os(AGAIN).is_none(), "the power was to be dropped");
        let powers = "-dac_override,-dac_read_search";
        let test = "local::maildir::tests::disk::a_folder_that_may_not_be_written_is_told_with_its_path";
        let again = Command::new("setpriv")
            .args(["--bounding-set", powers, "--inh-caps", powers])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(AGAIN, "1")
            .output();
        match again {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success() && said.contains("1 passed"), "{output:?}");
            }
            Err(error) => eprintln!("SKIPPED: root may write everywhere, and there is no setpriv: {error}"),
        }
        return;
    }
    let template = root.path().join("{local}").display().to_string();
    let sink = MaildirSink::new("h");
    let uid = format!("(uid {})", rustix::process::geteuid().as_raw());
    let send = async |to: &str| {
        let outcomes = deliver(sink.open(route(&template, None)), vec![job(1, &[to], whole(&text(1)))]).await;
        let message = refused(&outcomes[0]).to_owned();
        assert!(message.contains("make that folder writable") && message.contains(&uid), "{message}");
        message
    };
    // No file in tmp.
    assert!(send("al@b").await.contains(&format!("{}/tmp/", locked.display())));
    // A file in tmp, but no name in new.
    lock(&locked.join("tmp"), 0o700);
    lock(&locked.join("new"), 0o500);
    assert!(send("al@b").await.contains(&format!("{}/new/", locked.display())));
    assert!(files(&locked.join("tmp")).is_empty() && files(&locked.join("new")).is_empty());
    // No folder for a newcomer.
    lock(root.path(), 0o500);
    assert!(send("newcomer@b").await.contains(&format!("{}/newcomer", root.path().display())));
    lock(root.path(), 0o700);
    assert!(!root.path().join("newcomer").exists());
}
