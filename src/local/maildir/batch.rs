//! Messages made durable together, in two steps: written to `tmp` and brought
//! to disk; renamed into `new`, and the folders brought to disk. Only with the
//! second they are delivered. All of it blocks.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::local_form;
use crate::domain::code::Code;
use crate::domain::wire::Piece;

/// From so many files on, one `syncfs` is faster than a sync of each. It also
/// waits for what others have written to that file system, hence not always.
const SYNCFS_FROM: usize = 4;

/// Makes file names that no other delivery makes.
#[derive(Debug)]
pub(super) struct Postmark {
    host: String,
    count: AtomicU64,
}

impl Postmark {
    pub(super) fn new(host: &str) -> Self {
        let mut name = String::new();
        for c in host.chars().filter(|c| !c.is_control() && !c.is_whitespace()).take(64) {
            match c {
                '/' => name.push_str("\\057"),
                ':' => name.push_str("\\072"),
                c => name.push(c),
            }
        }
        if name.is_empty() {
            name.push_str("localhost");
        }
        Self { host: name, count: AtomicU64::new(0) }
    }

    fn name(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        format!("{}.M{:06}P{process}_{count}.{}", now.as_secs(), now.subsec_micros(), self.host)
    }
}

/// A message to be prepared.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) folders: Vec<PathBuf>,
    pub(super) body: Body,
    pub(super) prepared: oneshot::Sender<Result<Vec<Draft>, Failure>>,
    /// What it takes of the memory for messages, until it is written.
    pub(super) memory: Option<OwnedSemaphorePermit>,
}

/// A prepared message to be delivered.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) drafts: Vec<Draft>,
    pub(super) report: oneshot::Sender<Result<(), Failure>>,
}

#[derive(Debug)]
pub(super) enum Body {
    /// To be written.
    Whole(Arc<[Piece]>),
    /// Written as it arrived, not yet on disk.
    Written(Vec<Draft>),
}

/// Why a message is not in its folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Nothing was delivered.
    Unavailable { code: Code, message: Arc<str> },
    /// It is there, but might not survive a loss of power.
    Unknown { message: Arc<str> },
    /// The stream ended early.
    Aborted,
    /// The writer is gone.
    Ended,
}

/// What to do about an error of the file system, at `path`.
pub(super) fn failure(what: &str, path: &Path, error: &io::Error) -> Failure {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space there: the mail stays on its server until then".to_owned()
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "; mount it for writing, or set another delivery.maildir.path".to_owned()
        }
        io::ErrorKind::PermissionDenied => format!(
            "; make that folder writable for the user that runs rpop (uid {})",
            rustix::process::geteuid().as_raw()
        ),
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "; something else is in the place of a folder there".to_owned()
        }
        _ => String::new(),
    };
    let message = format!("{what} {}: {error}{advice}", path.display());
    Failure::Unavailable { code: Code::DestinationUnavailable, message: message.into() }
}

/// A file in `tmp` that vanishes unless it is kept.
#[derive(Debug)]
pub(super) struct Draft {
    /// Until it is on disk: many may wait, and open files are few.
    file: Option<File>,
    tmp: PathBuf,
    new: PathBuf,
    name: String,
    device: u64,
    /// Folders that had to be made, hence parents to be brought to disk.
    made: Vec<PathBuf>,
    kept: bool,
}

impl Draft {
    pub(super) fn create(folder: &Path, postmark: &Postmark) -> Result<Self, Failure> {
        let name = postmark.name();
        let tmp = folder.join("tmp").join(&name);
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp);
        let mut made = Vec::new();
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                for part in ["tmp", "new", "cur"] {
                    let part = folder.join(part);
                    make(&part, &mut made)
                        .map_err(|error| failure("cannot make the folder", &part, &error))?;
                }
                open()
            }
            other => other,
        };
        let file = file.map_err(|error| failure("cannot write", &tmp, &error))?;
        let device = file.metadata().map_or(0, |data| data.dev());
        Ok(Self { file: Some(file), tmp, new: folder.join("new"), name, device, made, kept: false })
    }

    pub(super) fn write(&mut self, octets: &[u8]) -> Result<(), Failure> {
        let Some(file) = &mut self.file else { return Err(Failure::Ended) };
        file.write_all(octets).map_err(|error| failure("cannot write", &self.tmp, &error))
    }

    /// Brings it to disk; with `all`, everything on its file system.
    fn sync(&self, all: bool) -> Result<(), Failure> {
        let Some(file) = &self.file else { return Err(Failure::Ended) };
        let synced = if all { rustix::fs::syncfs(file).map_err(io::Error::from) } else { file.sync_data() };
        synced.map_err(|error| failure("cannot write to disk", &self.tmp, &error))
    }

    fn publish(&mut self) -> Result<(), Failure> {
        let to = self.new.join(&self.name);
        match fs::rename(&self.tmp, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.new.exists() => {
                // Somebody's Maildir lacks a `new`.
                make(&self.new, &mut self.made)
                    .and_then(|()| fs::rename(&self.tmp, &to))
                    .map_err(|error| failure("cannot deliver to", &to, &error))?;
            }
            other => other.map_err(|error| failure("cannot deliver to", &to, &error))?,
        }
        self.kept = true;
        Ok(())
    }

    /// Takes back a message that was published before another copy failed.
    fn retract(&mut self) {
        if self.kept {
            fs::remove_file(self.new.join(&self.name)).ok();
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            fs::remove_file(&self.tmp).ok();
        }
    }
}

/// Makes a folder, its parents included, and lists the parents of what it had
/// to make.
fn make(folder: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let build = |at: &Path| DirBuilder::new().mode(0o700).create(at);
    match build(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = folder.parent().ok_or(error)?;
            make(parent, made)?;
            if let Err(error) = build(folder)
                && !(error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir())
            {
                return Err(error);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => return Ok(()),
        Err(error) => return Err(error),
    }
    made.extend(folder.parent().map(Path::to_owned));
    Ok(())
}

/// A message on its way through a step; `report` says how it went.
struct Entry<T> {
    drafts: Vec<Draft>,
    failed: Option<Failure>,
    report: oneshot::Sender<Result<T, Failure>>,
}

/// Prepares a batch and reports on each letter of it.
pub(super) fn prepare(letters: Vec<Letter>, postmark: &Postmark) {
    let mut buffer = Vec::new();
    let wanted = letters.into_iter().filter(|letter| !letter.prepared.is_closed());
    let mut entries: Vec<_> = wanted.map(|letter| written(letter, postmark, &mut buffer)).collect();
    sync_files(&mut entries);
    for Entry { mut drafts, failed, report } in entries {
        for draft in &mut drafts {
            draft.file = None;
        }
        report.send(failed.map_or(Ok(drafts), Err)).ok();
    }
}

/// Delivers a batch of prepared messages and reports on each.
pub(super) fn deliver(parcels: Vec<Parcel>) {
    let entry = |Parcel { drafts, report }| Entry { drafts, failed: None, report };
    let mut entries: Vec<Entry<()>> = parcels.into_iter().map(entry).collect();
    for entry in &mut entries {
        if entry.report.is_closed() {
            // The poll was broken off: what it did not hear of stays undelivered.
            entry.failed = Some(Failure::Aborted);
            continue;
        }
        let published = entry.drafts.iter_mut().try_for_each(Draft::publish);
        if let Err(failure) = published {
            entry.drafts.iter_mut().for_each(Draft::retract);
            entry.failed = Some(failure);
        }
    }
    sync_folders(&mut entries);
    for Entry { drafts, failed, report } in entries {
        drop(drafts);
        report.send(failed.map_or(Ok(()), Err)).ok();
    }
}

fn written(letter: Letter, postmark: &Postmark, buffer: &mut Vec<u8>) -> Entry<Vec<Draft>> {
    let Letter { folders, body, prepared: report, memory } = letter;
    let mut entry = Entry { drafts: Vec::new(), failed: None, report };
    match body {
        Body::Written(drafts) => entry.drafts = drafts,
        Body::Whole(pieces) => {
            buffer.clear();
            pieces.iter().for_each(|piece| local_form(piece, buffer));
            drop((pieces, memory));
            for folder in &folders {
                match Draft::create(folder, postmark)
                    .and_then(|mut draft| draft.write(buffer).map(|()| draft))
                {
                    Ok(draft) => entry.drafts.push(draft),
                    Err(failure) => entry.failed = Some(failure),
                }
            }
        }
    }
    entry
}

fn sync_files(entries: &mut [Entry<Vec<Draft>>]) {
    let mut systems = BTreeMap::<u64, usize>::new();
    for draft in entries.iter().filter(|entry| entry.failed.is_none()).flat_map(|entry| &entry.drafts) {
        *systems.entry(draft.device).or_default() += 1;
    }
    let mut synced = BTreeMap::<u64, Result<(), Failure>>::new();
    for entry in entries.iter_mut().filter(|entry| entry.failed.is_none()) {
        for draft in &entry.drafts {
            let many = systems.get(&draft.device).is_some_and(|count| *count >= SYNCFS_FROM);
            let result = if many {
                synced.entry(draft.device).or_insert_with(|| draft.sync(true)).clone()
            } else {
                draft.sync(false)
            };
            if let Err(failure) = result {
                entry.failed = Some(failure);
            }
        }
    }
}

/// The names are part of the messages: they too must be on disk.
fn sync_folders(entries: &mut [Entry<()>]) {
    let mut folders = BTreeMap::new();
    for draft in entries.iter().filter(|entry| entry.failed.is_none()).flat_map(|entry| &entry.drafts) {
        for folder in draft.made.iter().chain([&draft.new]) {
            folders.insert(folder.clone(), draft);
        }
    }
    let many = folders.len() >= SYNCFS_FROM;
    let mut systems = BTreeMap::<u64, Option<String>>::new();
    let failed: BTreeMap<PathBuf, String> = folders
        .into_iter()
        .filter_map(|(folder, draft)| {
            let open = || File::open(&folder);
            let error = if many {
                let all = || {
                    let synced =
                        open().and_then(|folder| rustix::fs::syncfs(folder).map_err(io::Error::from));
                    synced.err().map(|error| error.to_string())
                };
                systems.entry(draft.device).or_insert_with(all).clone()
            } else {
                open().and_then(|folder| folder.sync_all()).err().map(|error| error.to_string())
            };
            error.map(|error| (folder, error))
        })
        .collect();
    if failed.is_empty() {
        return;
    }
    for entry in entries.iter_mut().filter(|entry| entry.failed.is_none()) {
        let touched = entry.drafts.iter().flat_map(|draft| draft.made.iter().chain([&draft.new]));
        if let Some((folder, error)) = { touched }.find_map(|folder| failed.get_key_value(folder)) {
            let message =
                format!("delivered, but the folder {} cannot be written to disk: {error}", folder.display());
            entry.failed = Some(Failure::Unknown { message: message.into() });
        }
    }
}
