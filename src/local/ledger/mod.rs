//! Ledgers in text files: `rpopids/NAMESPACE/NAME` under the state folder.
//!
//! A batch of changes is appended and made durable by `fdatasync` before it is
//! acknowledged; several records do so in parallel, and the file system joins
//! them. When dead lines prevail the file is written anew. Files are open
//! only while they are read or written. See `docs/design/0003-ledger-files.md`.

mod file;
mod text;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tracing::warn;

use crate::domain::ledger::{Change, Ledger, day_of};
use crate::domain::work::RecordKey;
use crate::engine::ports::{LedgerError, LedgerStore, Pending};
use crate::local::state::{StateDir, record_path};
use file::{Disk, Doubt, LedgerFile};

/// The folder of the ledgers in a state folder.
const FOLDER: &str = "rpopids";
/// Files that are read or written at once: enough for the file system to join
/// their commits even where a flush takes 10 ms.
const PARALLEL: usize = 32;
/// Entries of one ledger: 50 MB of memory. Beyond it is full.
const MOST_ENTRIES: usize = 1_000_000;
/// What the engine reckons for one.
const RESERVED: u64 = 200;
/// Dead lines that are not worth writing a file anew.
const FEW_LINES: u64 = 64;

/// Keeps ledgers in files.
#[derive(Clone, Debug)]
pub struct FileLedgers {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `None`: for reading alone.
    state: Option<Arc<StateDir>>,
    folder: PathBuf,
    permits: Arc<Semaphore>,
    files: Mutex<Files>,
    freed: Condvar,
    disk: Disk,
}

#[derive(Debug, Default)]
struct Files {
    /// Records whose file is being read or written. An operation that nobody
    /// waits for any more (a poll was aborted) still goes to its end.
    busy: HashSet<RecordKey>,
    /// What failures have left in doubt.
    doubts: HashMap<RecordKey, Doubt>,
}

impl FileLedgers {
    /// The ledgers of a state folder.
    pub fn new(state: Arc<StateDir>) -> Self {
        let folder = state.path().join(FOLDER);
        Self::with(Some(state), folder)
    }

    /// The ledgers of a state folder that another process may be using: they
    /// can be read, and every commit is refused.
    pub fn read_only(state: &Path) -> Self {
        Self::with(None, state.join(FOLDER))
    }

    fn with(state: Option<Arc<StateDir>>, folder: PathBuf) -> Self {
        let inner = Inner {
            state,
            folder,
            permits: Arc::new(Semaphore::new(PARALLEL)),
            files: Mutex::default(),
            freed: Condvar::new(),
            disk: Disk::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The file of a record.
    ///
    /// # Errors
    /// [`LedgerError::Unavailable`] where the names are no Kubernetes names.
    pub fn path(&self, key: &RecordKey) -> Result<PathBuf, LedgerError> {
        record_path(&self.inner.folder, key, "").ok_or_else(|| {
            let text = format!("{:?} cannot be the name of a ledger file", key.to_string());
            LedgerError::Unavailable(text)
        })
    }

    /// Runs `task` on a record's file, in the blocking pool, alone.
    async fn run<T: Send + 'static>(
        &self,
        key: &RecordKey,
        task: impl FnOnce(&Inner, LedgerFile<'_>) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let path = self.path(key)?;
        let ended = |_| LedgerError::Unavailable("the process is ending".to_owned());
        let permit = Arc::clone(&self.inner.permits).acquire_owned().await.map_err(ended)?;
        let (inner, key) = (Arc::clone(&self.inner), key.clone());
        let work = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let mut held = inner.hold(&key);
            let file = LedgerFile { path: &path, disk: &inner.disk, doubt: &mut held.doubt };
            task(&inner, file)
        });
        work.await.map_err(|error| LedgerError::Unavailable(format!("the ledger's task failed: {error}")))?
    }

    async fn load(&self, key: &RecordKey) -> Result<Ledger, LedgerError> {
        let loaded = self
            .run(key, |inner, mut file| {
                let loaded = file.load(today())?;
                if loaded.is_none() {
                    inner.check_folder()?;
                }
                Ok(loaded)
            })
            .await?;
        let Some(loaded) = loaded else { return Ok(Ledger::new(salt())) };
        if loaded.torn > 0 {
            warn!(
                record = %key,
                octets = loaded.torn,
                "the ledger's last line has no end, as a power loss leaves it: it is left out"
            );
        }
        Ok(loaded.ledger)
    }

    async fn reserve(&self, key: &RecordKey, ledger: &mut Ledger, octets: u64) -> Result<(), LedgerError> {
        self.check_writable()?;
        let more = usize::try_from(octets.div_ceil(RESERVED)).unwrap_or(usize::MAX);
        if ledger.weight().saturating_add(more) > MOST_ENTRIES {
            return Err(self.full(key, ledger)?);
        }
        let (mark, salt) = (ledger.mark(), ledger.salt());
        let reserve = move |inner: &Inner, mut file: LedgerFile<'_>| {
            inner.check_folder()?;
            file.reserve(mark, salt, octets)
        };
        ledger.set_mark(self.run(key, reserve).await?);
        Ok(())
    }

    fn check_writable(&self) -> Result<(), LedgerError> {
        match self.inner.state {
            Some(_) => Ok(()),
            None => Err(LedgerError::Unavailable("this process only reads ledgers".to_owned())),
        }
    }

    async fn commit(
        &self,
        key: &RecordKey,
        ledger: &mut Ledger,
        changes: Vec<Change>,
    ) -> Result<(), LedgerError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.check_writable()?;
        let lines = self.lines(key, ledger, &changes)?;
        let (mark, salt, count) = (ledger.mark(), ledger.salt(), changes.len() as u64);
        let append = move |inner: &Inner, mut file: LedgerFile<'_>| {
            inner.check_folder()?;
            file.append(mark, salt, &lines, count)
        };
        let mut mark = self.run(key, append).await?;
        for change in &changes {
            ledger.apply(change);
        }
        if mark.lines > 2 * ledger.len() as u64 + FEW_LINES {
            let compacted = self.run(key, |_, mut file| file.compact(today())).await;
            match compacted {
                Ok(compacted) => mark = compacted,
                Err(error) => {
                    // What was committed stands; it is tried again later.
                    mark.lines = 0;
                    warn!(record = %key, %error, "the ledger's file could not be compacted");
                }
            }
        }
        ledger.set_mark(mark);
        Ok(())
    }

    fn lines(&self, key: &RecordKey, ledger: &Ledger, changes: &[Change]) -> Result<Vec<u8>, LedgerError> {
        let mut lines = Vec::with_capacity(changes.len() * 112);
        let mut grows = 0;
        for change in changes {
            if let Some(flaw) = change.flaw() {
                return Err(LedgerError::Full(format!("{}: {flaw}", self.path(key)?.display())));
            }
            if !ledger.knows(ledger.hash_of(change)) {
                grows += change.weight();
            }
            match change {
                Change::Put { uid, .. } if uid.len() > text::MOST_UID => {
                    let path = self.path(key)?;
                    return Err(LedgerError::Full(format!(
                        "{}: a UID of {} octets is too long to be remembered (the limit is {})",
                        path.display(),
                        uid.len(),
                        text::MOST_UID
                    )));
                }
                Change::Put { uid, entry } => text::write_put(&mut lines, uid, entry, None),
                Change::Forget { hash } => text::write_forget(&mut lines, *hash),
                Change::Missed { hash, since, listings } => {
                    text::write_missed(&mut lines, *hash, *since, *listings);
                }
                Change::Copy { message_id, digest, day } => {
                    text::write_copy(&mut lines, *message_id, *digest, 0, *day);
                }
            }
        }
        if grows > 0 && ledger.weight() + grows > MOST_ENTRIES {
            return Err(self.full(key, ledger)?);
        }
        Ok(lines)
    }

    fn full(&self, key: &RecordKey, ledger: &Ledger) -> Result<LedgerError, LedgerError> {
        Ok(LedgerError::Full(format!(
            "{} holds {}, and the limit is {MOST_ENTRIES} in all: delete mail on the server, or turn leave off",
            self.path(key)?.display(),
            ledger.contents()
        )))
    }
}

impl LedgerStore for FileLedgers {
    fn load<'a>(&'a self, key: &'a RecordKey) -> Pending<'a, Result<Ledger, LedgerError>> {
        Box::pin(self.load(key))
    }

    fn reserve<'a>(
        &'a self,
        key: &'a RecordKey,
        ledger: &'a mut Ledger,
        octets: u64,
    ) -> Pending<'a, Result<(), LedgerError>> {
        Box::pin(self.reserve(key, ledger, octets))
    }

    fn commit<'a>(
        &'a self,
        key: &'a RecordKey,
        ledger: &'a mut Ledger,
        changes: Vec<Change>,
    ) -> Pending<'a, Result<(), LedgerError>> {
        Box::pin(self.commit(key, ledger, changes))
    }
}

impl Inner {
    /// A missing file means "never any" only in the folder that was opened.
    fn check_folder(&self) -> Result<(), LedgerError> {
        let checked = self.state.as_ref().map_or(Ok(()), |state| state.check());
        checked.map_err(|error| LedgerError::Unavailable(error.to_string()))
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(&self, key: &RecordKey) -> Held<'_> {
        let mut files = self.files();
        while files.busy.contains(key) {
            files = self.freed.wait(files).unwrap_or_else(PoisonError::into_inner);
        }
        files.busy.insert(key.clone());
        let doubt = files.doubts.remove(key).unwrap_or_default();
        Held { inner: self, key: key.clone(), doubt }
    }
}

/// The right to use a record's file.
struct Held<'a> {
    inner: &'a Inner,
    key: RecordKey,
    doubt: Doubt,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut files = self.inner.files();
        files.busy.remove(&self.key);
        if self.doubt != Doubt::default() {
            files.doubts.insert(self.key.clone(), self.doubt);
        }
        drop(files);
        self.inner.freed.notify_all();
    }
}

/// Randomness for a new ledger, by way of the keys that the standard library
/// draws from the system for its hash tables.
fn salt() -> [u8; 16] {
    let mut salt = [0; 16];
    for half in salt.chunks_mut(8) {
        let mut hasher = RandomState::new().build_hasher();
        hasher.write_u64(0x7270_6f70);
        half.copy_from_slice(&hasher.finish().to_le_bytes());
    }
    salt
}

fn today() -> i32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    day_of(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod crash;
#[cfg(test)]
mod full;
#[cfg(test)]
mod tests;
