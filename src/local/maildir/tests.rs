mod disk;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::domain::envelope::{Envelope, Mailbox, Recipient, ReversePath};
use crate::domain::wire::stuff;
use crate::domain::work::{Destination, MaildirPath, Timeouts};
use crate::engine::ports::Via;

fn route(template: &str, mailbox: Option<&str>) -> Route {
    let maildir = Some(MaildirPath(template.into()));
    Route {
        destination: Arc::new(Destination { domain: "b".into(), maildir, ..Destination::default() }),
        via: Via::Maildir,
        mailbox: mailbox.map(Into::into),
        unified: false,
        timeouts: Timeouts::default(),
    }
}

/// Of a record with a unified account.
fn unified(template: &str) -> Route {
    Route { unified: true, ..route(template, None) }
}

/// A message whose recipients were found in it.
fn found(id: u64, to: &[&str], content: Content) -> Job {
    let mut job = job(id, to, content);
    job.envelope.await_recipients = true;
    job
}

fn job(id: u64, to: &[&str], content: Content) -> Job {
    let recipients = to
        .iter()
        .map(|to| Recipient {
            address: Mailbox::parse(to).unwrap(),
            notify: crate::domain::envelope::Notify::Unsaid,
        })
        .collect();
    let sender = ReversePath::default();
    Job {
        id,
        envelope: Envelope {
            sender,
            recipients,
            size: None,
            utf8_header: false,
            envid: None,
            await_recipients: false,
        },
        content,
        leave: None,
    }
}

fn whole(text: &str) -> Content {
    Content::Whole(vec![stuff(text.as_bytes())].into())
}

async fn deliver(courier: Courier, jobs: Vec<Job>) -> Vec<Outcome> {
    let Courier { jobs: sender, mut outcomes } = courier;
    let feed = tokio::spawn(async move {
        for job in jobs {
            sender.send(job).await.unwrap();
        }
    });
    let mut all = Vec::new();
    while let Some(outcome) = outcomes.recv().await {
        all.push(outcome);
    }
    feed.await.unwrap();
    all.sort_by_key(|outcome| outcome.id);
    all
}

/// What is in a folder; nothing where there is none.
fn files(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .map_or_else(|_| Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
}

#[tokio::test]
async fn messages_are_files_with_local_line_ends() {
    let root = tempfile::tempdir().unwrap();
    let template = format!("{}/{{domain}}/{{local}}", root.path().display());
    let sink = MaildirSink::new("host.example");
    let jobs = (0..500).map(|id| job(id, &["al@b"], whole(&format!("n: {id}\n\n.dot\n..\nend")))).collect();
    let outcomes = deliver(sink.open(route(&template, None)), jobs).await;
    assert!(outcomes.iter().all(|outcome| outcome.result == Ok(vec![Verdict::Accepted])));
    assert_eq!(outcomes.len(), 500);
    let folder = root.path().join("b/al");
    let found = files(&folder.join("new"));
    let texts: BTreeSet<_> = found.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
    assert_eq!(texts, (0..500).map(|id| format!("n: {id}\n\n.dot\n..\nend\n")).collect());
    assert!(files(&folder.join("tmp")).is_empty() && files(&folder.join("cur")).is_empty());
    assert_eq!(fs::metadata(&found[0]).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let name = found[0].file_name().unwrap().to_str().unwrap();
    let parts: Vec<_> = name.splitn(3, '.').collect();
    assert!(
        parts[0].parse::<u64>().is_ok() && parts[1].starts_with('M') && parts[2] == "host.example",
        "{name}"
    );
}

#[tokio::test]
async fn a_mailbox_is_a_subfolder_and_several_recipients_get_a_copy_each() {
    let root = tempfile::tempdir().unwrap();
    let template = format!("{}/{{local}}", root.path().display());
    let sink = MaildirSink::new("h");
    let outcomes =
        deliver(sink.open(route(&template, Some("Archive"))), vec![job(1, &["a@b", "c@b"], whole("x: y\n"))])
            .await;
    assert_eq!(outcomes[0].result, Ok(vec![Verdict::Accepted; 2]));
    for local in ["a", "c"] {
        assert_eq!(files(&root.path().join(local).join(".Archive/new")).len(), 1);
    }
}

// quirks: "The POP3 side dies mid-message" (into a Maildir)
#[tokio::test]
async fn a_stream_becomes_a_file_only_at_its_end() {
    let root = tempfile::tempdir().unwrap();
    let template = root.path().join("{local}").display().to_string();
    let sink = MaildirSink::new("h");
    let Courier { jobs, mut outcomes } = sink.open(route(&template, None));
    let line = "0123456789abcdef\r\n".repeat(1000);
    for (id, ends) in [(1, true), (2, false)] {
        let (parts, content) = mpsc::channel(1);
        jobs.send(job(id, &["a@b"], Content::Stream(content))).await.unwrap();
        for _ in 0..50 {
            let piece = Piece::new(Bytes::from(line.clone()), true);
            parts.send(Part::Data(piece)).await.unwrap();
        }
        assert!(outcomes.try_recv().is_err());
        if ends {
            parts.send(Part::End).await.unwrap();
        }
        drop(parts);
        let outcome = outcomes.recv().await.unwrap();
        let expected = if ends { Ok(vec![Verdict::Accepted]) } else { Err(Undelivered::Aborted) };
        assert_eq!((outcome.id, outcome.result), (id, expected));
    }
    let found = files(&root.path().join("a/new"));
    assert_eq!(found.len(), 1);
    assert_eq!(fs::read_to_string(&found[0]).unwrap(), "0123456789abcdef\n".repeat(50_000));
    assert!(files(&root.path().join("a/tmp")).is_empty());
}

#[tokio::test]
async fn a_courier_that_is_dropped_leaves_no_half_messages() {
    let root = tempfile::tempdir().unwrap();
    let template = root.path().join("{local}").display().to_string();
    let courier = MaildirSink::new("h").open(route(&template, None));
    let (parts, content) = mpsc::channel(1);
    courier.jobs.send(job(1, &["a@b"], Content::Stream(content))).await.unwrap();
    parts.send(Part::Data(stuff(b"half"))).await.unwrap();
    drop(courier);
    parts.closed().await;
    // The file is removed by whichever thread held it last.
    for _ in 0..500 {
        if files(&root.path().join("a/tmp")).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(files(&root.path().join("a/tmp")).is_empty() && files(&root.path().join("a/new")).is_empty());
}

#[tokio::test]
async fn what_a_killed_delivery_left_goes_after_36_hours() {
    let root = tempfile::tempdir().unwrap();
    let tmp = root.path().join("a/tmp");
    fs::create_dir_all(&tmp).unwrap();
    let aged = |name: &str, hours: u64| {
        let file = fs::File::create(tmp.join(name)).unwrap();
        let time = std::time::SystemTime::now() - Duration::from_hours(hours);
        file.set_times(fs::FileTimes::new().set_accessed(time).set_modified(time)).unwrap();
    };
    aged("old", 37);
    aged("recent", 35);
    fs::create_dir(tmp.join("folder")).unwrap();
    let template = root.path().join("{local}").display().to_string();
    let sink = MaildirSink::new("h");
    let outcomes = deliver(sink.open(route(&template, None)), vec![job(1, &["a@b"], whole("x: y\n"))]).await;
    assert_eq!(outcomes[0].result, Ok(vec![Verdict::Accepted]));
    // It holds up no delivery, hence may end behind it.
    for _ in 0..500 {
        if !tmp.join("old").exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let left: BTreeSet<_> = files(&tmp).into_iter().collect();
    assert_eq!(left, BTreeSet::from([tmp.join("folder"), tmp.join("recent")]));
}

#[tokio::test]
async fn what_is_in_the_way_is_told_with_its_path_and_harms_no_other_message() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), b"").unwrap();
    let template = root.path().join("{local}").display().to_string();
    let jobs = vec![job(1, &["file@b"], whole("x: y\n")), job(2, &["good@b"], whole("x: y\n"))];
    let outcomes = deliver(MaildirSink::new("h").open(route(&template, None)), jobs).await;
    let Err(Undelivered::Unavailable { code, message }) = &outcomes[0].result else { panic!("{outcomes:?}") };
    assert_eq!(*code, Code::DestinationUnavailable);
    assert!(message.contains(&format!("{}/file", root.path().display())), "{message}");
    assert!(message.contains("something else is in the place of a folder"), "{message}");
    assert_eq!(outcomes[1].result, Ok(vec![Verdict::Accepted]));
}

// Also for errors that `disk` cannot bring about.
#[test]
fn advice_fits_the_error() {
    use std::io::{Error, ErrorKind};
    for (kind, words) in [
        (ErrorKind::StorageFull, "free some space"),
        (ErrorKind::QuotaExceeded, "free some space"),
        (ErrorKind::ReadOnlyFilesystem, "mount it for writing"),
        (ErrorKind::PermissionDenied, "writable for the user that runs rpop (uid "),
    ] {
        let failure = batch::failure("cannot write", Path::new("/m/al/tmp/x"), &Error::from(kind));
        let Failure::Unavailable { message, .. } = failure else { panic!() };
        assert!(message.starts_with("cannot write /m/al/tmp/x: ") && message.contains(words), "{message}");
    }
}

#[tokio::test]
async fn a_domain_without_a_path_says_so() {
    let mut nowhere = route("", None);
    nowhere.destination = Arc::default();
    // Nor is anybody refused who was found in a message: the domain has errors.
    let jobs = vec![job(1, &["a@b"], whole("x\n")), found(2, &["a@b"], whole("x\n"))];
    for outcome in deliver(MaildirSink::new("h").open(nowhere), jobs).await {
        let result = outcome.result;
        assert!(
            matches!(&result, Err(Undelivered::Unavailable { code: Code::ConfigInvalid, .. })),
            "{result:?}"
        );
    }
}

/// Not a benchmark: `cargo test --release --lib -- --ignored durable --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures"]
async fn durable_messages_a_second() {
    let place = std::env::var("RPOP_MEASURE_DIR").unwrap_or_else(|_| "target".to_owned());
    let text = "some words of a message, many lines of them\n".repeat(93);
    for (couriers, each) in [(1, 1), (1, 5000), (8, 500), (500, 1)] {
        let root = tempfile::tempdir_in(&place).unwrap();
        let template = root.path().join("{local}").display().to_string();
        let sink = MaildirSink::new("h");
        let begun = tokio::time::Instant::now();
        let mut all = JoinSet::new();
        for courier in 0..couriers {
            let to = format!("u{courier}@b");
            let jobs = (0..each).map(|id| job(id, &[&to], whole(&text))).collect();
            all.spawn(deliver(sink.open(route(&template, None)), jobs));
        }
        while let Some(outcomes) = all.join_next().await {
            assert!(outcomes.unwrap().iter().all(|outcome| outcome.result.is_ok()));
        }
        let took = begun.elapsed();
        let rate = f64::from(couriers) * each as f64 / took.as_secs_f64();
        println!("{couriers} couriers, {each} messages each: {rate:.0} messages/s ({took:?})");
    }
}

/// A forged header must not make folders.
#[tokio::test]
async fn who_was_found_in_a_message_has_a_maildir_or_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let template = root.path().join("{local}").display().to_string();
    let sink = MaildirSink::new("h");
    deliver(sink.open(route(&template, None)), vec![job(0, &["a@b", "c@b"], whole("x: y\n"))]).await;
    let to = ["a@b", "nobody@b", "a+tag@b", "c+x@b", "no+tag@b"];
    let outcomes = deliver(
        sink.open(unified(&template)),
        vec![found(1, &to, whole("x: y\n")), found(2, &["nobody@b"], whole("x: y\n"))],
    )
    .await;
    let codes = |outcome: &Outcome| {
        let verdicts = outcome.result.as_ref().unwrap().iter();
        let code = |verdict: &Verdict| match verdict {
            Verdict::Accepted => (250, ""),
            Verdict::Refused(refusal) => (refusal.code, refusal.at),
            other => panic!("{other:?}"),
        };
        verdicts.map(code).collect::<Vec<_>>()
    };
    let (yes, no) = ((250, ""), (550, "RCPT"));
    assert_eq!(codes(&outcomes[0]), [yes, no, yes, yes, no]);
    assert_eq!(codes(&outcomes[1]), [no]);
    // And a stream that nobody takes is not read.
    let Courier { jobs, mut outcomes } = sink.open(unified(&template));
    let (parts, content) = mpsc::channel(1);
    jobs.send(found(3, &["nobody@b"], Content::Stream(content))).await.unwrap();
    assert_eq!(codes(&outcomes.recv().await.unwrap()), [no]);
    parts.closed().await;
    assert_eq!(files(root.path()).len(), 2, "no folder is made");
    assert_eq!(files(&root.path().join("a/new")).len(), 2, "one copy a folder and message");
    assert_eq!(files(&root.path().join("c/new")).len(), 2);
}

#[tokio::test]
async fn what_is_prepared_is_seen_when_there_is_leave_and_gone_when_there_never_is() {
    let root = tempfile::tempdir().unwrap();
    let template = root.path().display().to_string();
    let sink = MaildirSink::new("h");
    let Courier { jobs, mut outcomes } = sink.open(route(&template, None));
    let mut leaves = Vec::new();
    for id in 0..AHEAD as u64 {
        let (leave, awaited) = oneshot::channel();
        let job = Job { leave: Some(awaited), ..job(id, &["a@b"], whole("x: y\n")) };
        jobs.send(job).await.unwrap();
        leaves.push(leave);
    }
    let (new, tmp) = (root.path().join("new"), root.path().join("tmp"));
    while files(&tmp).len() < AHEAD {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(files(&new).is_empty() && outcomes.try_recv().is_err());
    // In any order.
    for id in [7, 3] {
        leaves.remove(id).send(()).unwrap();
        let outcome = outcomes.recv().await.unwrap();
        assert_eq!((outcome.id, outcome.result), (id as u64, Ok(vec![Verdict::Accepted])));
    }
    assert_eq!((files(&new).len(), files(&tmp).len()), (2, AHEAD - 2));
    drop((leaves, jobs));
    let mut withdrawn = 0;
    while let Some(outcome) = outcomes.recv().await {
        assert_eq!(outcome.result, Err(Undelivered::Aborted));
        withdrawn += 1;
    }
    assert_eq!(withdrawn, AHEAD - 2);
    assert_eq!((files(&new).len(), files(&tmp).len()), (2, 0));
}

/// What is said to each recipient of each message, or that the place of the
/// accounts is at fault.
async fn said(template: &str, jobs: Vec<Job>) -> Vec<Result<Vec<u16>, String>> {
    let code = |verdict: &Verdict| match verdict {
        Verdict::Accepted => 250,
        Verdict::Refused(refusal) | Verdict::Deferred(refusal) => refusal.code,
        Verdict::Unknown { .. } => 0,
    };
    deliver(MaildirSink::new("h").open(unified(template)), jobs)
        .await
        .into_iter()
        .map(|outcome| match outcome.result {
            Ok(verdicts) => Ok(verdicts.iter().map(code).collect()),
            Err(Undelivered::Unavailable { code: Code::DestinationUnavailable, message }) => {
                Err(message.to_string())
            }
            Err(other) => panic!("{other:?}"),
        })
        .collect()
}

/// Nobody is refused, and nothing is made in the mount point: also not for the
/// postmaster, whose folder would make an unknown account of everybody else.
#[tokio::test]
async fn a_file_system_that_is_not_mounted_is_no_word_on_any_account() {
    type Make = fn(&Path);
    let makes: [(&str, Make); 6] = [
        ("holds none", |place| fs::create_dir(place).unwrap()),
        ("is not there", |_| ()),
        ("is not there", |place| std::os::unix::fs::symlink("/nonexistent/vmail", place).unwrap()),
        ("cannot look into", |place| std::os::unix::fs::symlink(place, place).unwrap()),
        ("cannot look into", |place| fs::write(place, "x").unwrap()),
        ("holds none", |place| {
            fs::create_dir_all(place.join("lost+found")).unwrap();
            fs::create_dir_all(place.join(".Trash")).unwrap();
            fs::write(place.join("README"), "x").unwrap();
        }),
    ];
    for tail in ["{local}", "{local}/Maildir", "{domain}/{local}", "all"] {
        for (words, make) in makes {
            let root = tempfile::tempdir().unwrap();
            let place = root.path().join("vmail");
            make(&place);
            let template = format!("{}/{tail}", place.display());
            let before = files(&place).len();
            let jobs = vec![
                found(1, &["alice@b"], whole("x: y\n")),
                job(2, &["postmaster@b"], whole("x: y\n")),
                found(3, &["lost+found@b"], whole("x: y\n")),
            ];
            for answer in said(&template, jobs).await {
                // A loop of links is told of whom it is met at.
                match answer {
                    Err(message) => assert!(message.contains(words), "{tail}: {message}"),
                    Ok(codes) => assert_eq!((codes, words), (vec![450], "cannot look into"), "{tail}"),
                }
            }
            assert_eq!(files(&place).len(), before, "{tail}, {words}: nothing is made");
        }
    }
}

#[tokio::test]
async fn an_account_is_a_folder_whatever_is_in_it_and_however_its_name_is_written() {
    let root = tempfile::tempdir().unwrap();
    for folder in ["alice", "Bob", "carol/cur"] {
        fs::create_dir_all(root.path().join(folder)).unwrap();
    }
    fs::write(root.path().join("mbox"), "From ").unwrap();
    std::os::unix::fs::symlink("/nonexistent/dave", root.path().join("dave")).unwrap();
    let template = root.path().join("{local}").display().to_string();
    let to = ["Alice@b", "ALICE+Lists@b", "Bob@b", "bob@b", "carol@b", "mbox@b", "dave@b", "zoe@b"];
    let answers = said(&template, vec![found(1, &to, whole("x: y\n"))]).await;
    assert_eq!(answers, [Ok(vec![250, 250, 250, 550, 250, 450, 450, 550])]);
    for name in ["alice", "Bob", "carol"] {
        assert_eq!(files(&root.path().join(name).join("new")).len(), 1, "{name}");
    }
    assert!(!root.path().join("Alice").exists());
    // The postmaster's own is made beside others, and nobody else's is.
    let answers = said(&template, vec![job(2, &["postmaster@b"], whole("x: y\n"))]).await;
    assert_eq!(answers, [Ok(vec![250])]);
    assert_eq!(files(&root.path().join("postmaster/new")).len(), 1);
    // Below the folders of accounts the Maildir need not be there.
    let template = root.path().join("{local}/Maildir").display().to_string();
    let answers = said(&template, vec![found(3, &["alice@b", "zoe@b"], whole("x: y\n"))]).await;
    assert_eq!(answers, [Ok(vec![250, 550])]);
    assert_eq!(files(&root.path().join("alice/Maildir/new")).len(), 1);
}

/// The domains that are there get their mail.
#[tokio::test]
async fn a_domain_without_a_folder_holds_up_its_own_recipients_only() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("b/alice")).unwrap();
    let template = root.path().join("{domain}/{local}").display().to_string();
    let jobs = vec![
        found(1, &["alice@b", "zoe@b", "alice@c"], whole("x: y\n")),
        job(2, &["postmaster@c"], whole("x: y\n")),
    ];
    assert_eq!(said(&template, jobs).await, [Ok(vec![250, 550, 450]), Ok(vec![450])]);
    assert!(!root.path().join("c").exists());
}
