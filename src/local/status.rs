//! What is known of each record's polls, kept over restarts: back-off goes on
//! where it was, and `rpop status` has something to show.
//!
//! `status/NAMESPACE/NAME.json` under the state folder, and
//! `failed-hosts.json` beside it. Written together a moment after they
//! change, each by a temporary file and a rename, without a flush to the disk:
//! after a power loss they may be old, which costs a poll too many.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tracing::warn;

use super::state::{StateDir, create_folder, parent, record_path};
use crate::domain::code::Code;
use crate::domain::work::RecordKey;
use crate::run::Statuses;
use crate::run::status::{FailedHost, LastError, RecordStatus, Refusals, Snapshot, Totals};

const FOLDER: &str = "status";
const HOSTS: &str = "failed-hosts.json";
/// Changes wait so long for others to be written with.
const TOGETHER: Duration = Duration::from_secs(1);
/// No status file is larger than this one.
const LARGEST_FILE: u64 = 64 << 10;

/// The JSON form, as in the record's file.
pub fn to_json(status: &RecordStatus, key: &RecordKey) -> String {
    let stored = Stored {
        record: key.to_string(),
        last: status.last(),
        last_success_time: status.last_success.and_then(time),
        last_poll_time: status.last_poll.and_then(time),
        next_poll_time: status.next_poll.and_then(time),
        last_error: status.error.as_deref().map(StoredError::from),
        counters: status.totals,
        set_aside: status.set_aside.clone(),
    };
    json(&stored)
}

fn from_json(text: &[u8]) -> Result<RecordStatus, serde_json::Error> {
    let stored: Stored = serde_json::from_slice(text)?;
    Ok(RecordStatus {
        last_success: stored.last_success_time.map(Timestamp::as_second),
        last_poll: stored.last_poll_time.map(Timestamp::as_second),
        next_poll: stored.next_poll_time.map(Timestamp::as_second),
        error: stored.last_error.map(|error| Box::new(error.into())),
        totals: stored.counters,
        set_aside: stored.set_aside,
    })
}

fn time(unix: i64) -> Option<Timestamp> {
    Timestamp::from_second(unix).ok()
}

fn json(stored: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(stored).unwrap_or_default();
    text.push('\n');
    text
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    #[serde(default)]
    record: String,
    #[serde(default)]
    last: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_success_time: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_poll_time: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_poll_time: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_error: Option<StoredError>,
    #[serde(default)]
    counters: Totals,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    set_aside: Option<Box<Box<str>>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredError {
    code: String,
    message: String,
    since: Timestamp,
    count: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused_logins: Option<StoredRefusals>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredRefusals {
    since: Timestamp,
    count: u32,
    /// See [`Refusals::credentials`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credentials: Option<Box<str>>,
}

#[derive(Serialize, Deserialize)]
struct StoredHost {
    host: String,
    until: Timestamp,
    error: StoredError,
}

impl From<&LastError> for StoredError {
    fn from(error: &LastError) -> Self {
        Self {
            code: error.code.to_string(),
            message: error.message.to_string(),
            since: time(error.since).unwrap_or_default(),
            count: error.count,
            refused_logins: error.refusals.as_ref().map(|refusals| StoredRefusals {
                since: time(refusals.since).unwrap_or_default(),
                count: refusals.count,
                credentials: refusals.credentials.clone(),
            }),
        }
    }
}

impl From<StoredError> for LastError {
    fn from(stored: StoredError) -> Self {
        let code = Code::parse(&stored.code).unwrap_or(Code::Internal);
        let error = Self::new(code, &stored.message, stored.since.as_second());
        let refusals = stored.refused_logins.map(|stored| Refusals {
            since: stored.since.as_second(),
            count: stored.count,
            credentials: stored.credentials,
        });
        Self { count: stored.count, refusals, ..error }
    }
}

/// Writes statuses, a moment after they change. It remembers only what is not
/// written yet. Made within a tokio runtime; clones are the same store.
#[derive(Clone, Debug)]
pub struct StatusStore {
    inner: Arc<Inner>,
    _writer: Arc<Writer>,
}

#[derive(Debug)]
struct Inner {
    state: Arc<StateDir>,
    pending: Mutex<Pending>,
    /// One writes at a time, so that the newest is what stays.
    writing: Mutex<()>,
    wake: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Pending {
    /// `None`: to be removed.
    records: HashMap<RecordKey, Option<RecordStatus>>,
    hosts: Option<Vec<FailedHost>>,
}

/// The task that writes; it ends with the last clone of its store.
#[derive(Debug)]
struct Writer(tokio::task::JoinHandle<()>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StatusStore {
    /// The statuses of a state folder.
    pub fn new(state: Arc<StateDir>) -> Self {
        let inner = Arc::new(Inner {
            state,
            pending: Mutex::default(),
            writing: Mutex::default(),
            wake: Arc::default(),
        });
        let writer = tokio::spawn(write_when_woken(Arc::downgrade(&inner), Arc::clone(&inner.wake)));
        Self { inner, _writer: Arc::new(Writer(writer)) }
    }

    /// Everything that an earlier process wrote. What cannot be read is left
    /// out with a warning: nothing depends on it but the time of the next poll.
    pub async fn load_all(&self) -> Snapshot {
        let inner = Arc::clone(&self.inner);
        let read = tokio::task::spawn_blocking(move || Self::read(inner.state.path()));
        read.await.unwrap_or_default()
    }

    /// Like [`StatusStore::load_all`], for a folder that another process may
    /// be using. It blocks.
    pub fn read(state: &Path) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for namespace in entries(&state.join(FOLDER)) {
            for path in entries(&namespace) {
                let Some(key) = key_of(&path) else { continue };
                match read_file(&path).and_then(|text| Ok(from_json(&text)?)) {
                    Ok(status) => {
                        snapshot.records.insert(key, status);
                    }
                    Err(error) => warn!(path = %path.display(), %error, "a status could not be read"),
                }
            }
        }
        let path = state.join(HOSTS);
        match read_file(&path).and_then(|text| Ok(serde_json::from_slice::<Vec<StoredHost>>(&text)?)) {
            Ok(hosts) => snapshot.hosts.extend(hosts.into_iter().map(|stored| FailedHost {
                host: stored.host.into(),
                until: stored.until.as_second(),
                error: stored.error.into(),
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => warn!(path = %path.display(), %error, "the failed hosts could not be read"),
        }
        snapshot
    }

    /// Has a record's status written. Returns at once.
    pub fn put(&self, key: &RecordKey, status: RecordStatus) {
        self.inner.pending().records.insert(key.clone(), Some(status));
        self.inner.wake.notify_one();
    }

    /// Has the status of a record removed that is no more. Returns at once.
    pub fn remove(&self, key: &RecordKey) {
        self.inner.pending().records.insert(key.clone(), None);
        self.inner.wake.notify_one();
    }

    /// Has the failed hosts written: all of them. Returns at once.
    pub fn put_hosts(&self, hosts: Vec<FailedHost>) {
        self.inner.pending().hosts = Some(hosts);
        self.inner.wake.notify_one();
    }

    /// Writes now what waits to be written: before the process ends.
    ///
    /// # Errors
    /// The first trouble; what could not be written is tried again later.
    pub async fn flush(&self) -> io::Result<()> {
        flush(&self.inner).await
    }
}

impl Statuses for StatusStore {
    fn put(&self, key: &RecordKey, status: RecordStatus) {
        Self::put(self, key, status);
    }

    fn remove(&self, key: &RecordKey) {
        Self::remove(self, key);
    }

    fn put_hosts(&self, hosts: Vec<FailedHost>) {
        Self::put_hosts(self, hosts);
    }
}

/// Does not keep the state folder locked when nobody else uses it any more.
async fn write_when_woken(inner: Weak<Inner>, wake: Arc<Notify>) {
    let mut well = true;
    loop {
        wake.notified().await;
        tokio::time::sleep(TOGETHER).await;
        let Some(inner) = inner.upgrade() else { return };
        let result = flush(&inner).await;
        if let (true, Err(error)) = (well, &result) {
            warn!(folder = %inner.state.path().display(), %error, "statuses cannot be written");
        }
        well = result.is_ok();
    }
}

async fn flush(inner: &Arc<Inner>) -> io::Result<()> {
    let inner = Arc::clone(inner);
    tokio::task::spawn_blocking(move || inner.write())
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

impl Inner {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> io::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Pending { records, hosts } = std::mem::take(&mut *self.pending());
        // What waited is dropped where the folder is gone: nothing may come
        // into being in its place.
        self.state.check()?;
        let mut result = Ok(());
        for (key, status) in records {
            if let Err(error) = self.write_record(&key, status.as_ref()) {
                result = Err(error);
                self.pending().records.entry(key).or_insert(status);
            }
        }
        if let Some(hosts) = hosts
            && let Err(error) = self.write_hosts(&hosts)
        {
            result = Err(error);
            self.pending().hosts.get_or_insert(hosts);
        }
        result
    }

    fn write_record(&self, key: &RecordKey, status: Option<&RecordStatus>) -> io::Result<()> {
        let folder = self.state.path().join(FOLDER);
        let Some(path) = record_path(&folder, key, ".json") else { return Ok(()) };
        match status {
            Some(status) => replace(&path, &to_json(status, key)),
            None => match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    fn write_hosts(&self, hosts: &[FailedHost]) -> io::Result<()> {
        let stored = |failed: &FailedHost| StoredHost {
            host: failed.host.to_string(),
            until: time(failed.until).unwrap_or_default(),
            error: StoredError::from(&failed.error),
        };
        let stored: Vec<StoredHost> = hosts.iter().map(stored).collect();
        replace(&self.state.path().join(HOSTS), &json(&stored))
    }
}

/// Readers see the old text or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.tmp"));
    if let Err(error) = fs::write(&temporary, text) {
        if error.kind() != io::ErrorKind::NotFound {
            return Err(error);
        }
        create_folder(parent(path))?;
        fs::write(&temporary, text)?;
    }
    fs::rename(&temporary, path)
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > LARGEST_FILE.max(if path.ends_with(HOSTS) { 64 << 20 } else { 0 }) {
        return Err(io::Error::other("the file is too large"));
    }
    fs::read(path)
}

/// The files and folders in a folder; none where there is no such folder.
fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok().map(|entry| entry.path()))
}

fn key_of(path: &Path) -> Option<RecordKey> {
    let name = path.file_name()?.to_str()?.strip_suffix(".json")?;
    let namespace = path.parent()?.file_name()?.to_str()?;
    (!name.starts_with('.')).then(|| RecordKey { namespace: namespace.into(), name: name.into() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::engine::report::Counters;

    fn key(name: &str) -> RecordKey {
        RecordKey { namespace: "mail".into(), name: name.into() }
    }

    fn store() -> (tempfile::TempDir, StatusStore) {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path().join("state")).unwrap();
        (folder, StatusStore::new(Arc::new(state)))
    }

    fn polled() -> RecordStatus {
        let mut status = RecordStatus::default();
        let counters =
            Counters { fetched: 3, delivered: 2, bytes: 99, in_quarantine: 1, ..Counters::default() };
        status.succeeded(1_700_000_000, &counters);
        status.next_poll = Some(1_700_000_300);
        status
    }

    #[tokio::test]
    async fn a_state_folder_that_was_removed_does_not_come_back() {
        let (folder, store) = store();
        let state = folder.path().join("state");
        let error = LastError::new(Code::HostUnreachable, "no route", 1_700_000_000);
        let hosts = vec![FailedHost { host: "pop.example:995".into(), until: 1_700_000_600, error }];
        store.put(&key("a"), polled());
        store.flush().await.unwrap();
        fs::remove_dir_all(&state).unwrap();
        for _ in 0..2 {
            store.put(&key("a"), polled());
            store.put_hosts(hosts.clone());
            let error = store.flush().await.unwrap_err().to_string();
            assert!(error.contains("removed"), "{error}");
            assert!(!state.exists());
        }
        fs::create_dir(&state).unwrap();
        store.put(&key("a"), polled());
        store.put_hosts(hosts);
        store.flush().await.unwrap_err();
        assert_eq!(fs::read_dir(&state).unwrap().count(), 0, "nor is another one written to");
    }

    #[tokio::test]
    async fn what_was_put_is_there_in_the_next_process() {
        let (folder, store) = store();
        let mut failed = polled();
        failed.failed(1_700_000_001, Code::AuthFailed, "no", &Counters::default());
        failed.refused_with(Some("3f0a".into()), 1_700_000_001);
        failed.failed(1_700_000_002, Code::MailboxLocked, "in use", &Counters::default());
        store.put(&key("well"), RecordStatus::default());
        store.put(&key("well"), polled());
        store.put(&key("failed"), failed.clone());
        store.put(&key("gone"), polled());
        let error = LastError::new(Code::HostUnreachable, "no route", 1_700_000_000);
        let hosts = vec![FailedHost { host: "pop.example:995".into(), until: 1_700_000_600, error }];
        store.put_hosts(hosts.clone());
        store.flush().await.unwrap();
        store.remove(&key("gone"));
        store.remove(&key("never"));
        store.flush().await.unwrap();
        drop(store);
        let store = StatusStore::new(Arc::new(StateDir::open(folder.path().join("state")).unwrap()));
        let snapshot = store.load_all().await;
        let wanted = BTreeMap::from([(key("well"), polled()), (key("failed"), failed)]);
        assert_eq!(snapshot, Snapshot { records: wanted, hosts });
    }

    #[tokio::test(start_paused = true)]
    async fn changes_are_written_without_being_asked_to() {
        let (folder, store) = store();
        let path = folder.path().join("state/status/mail/a.json");
        store.put(&key("a"), polled());
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            std::thread::yield_now();
        }
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("\"last\": \"2023-11-14T22:13:20Z\""), "{text}");
        assert!(text.contains("\"nextPollTime\": \"2023-11-14T22:18:20Z\""), "{text}");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_left_out() {
        let (folder, store) = store();
        store.put(&key("a"), polled());
        store.put(&key("b"), polled());
        store.flush().await.unwrap();
        let folder = folder.path().join("state");
        fs::write(folder.join("status/mail/a.json"), "{\"last\": ").unwrap();
        fs::write(folder.join("status/mail/.c.json.tmp"), "half").unwrap();
        fs::write(folder.join("status/mail/d.json"), vec![b' '; 100_000]).unwrap();
        fs::write(folder.join(HOSTS), "[{}]").unwrap();
        let snapshot = StatusStore::read(&folder);
        assert_eq!(snapshot.records.into_keys().collect::<Vec<_>>(), [key("b")]);
        assert!(snapshot.hosts.is_empty());
    }

    #[tokio::test]
    async fn what_could_not_be_written_is_tried_again() {
        let (folder, store) = store();
        let status = folder.path().join("state/status");
        fs::write(&status, "a file in the way").unwrap();
        store.put(&key("a"), polled());
        store.flush().await.unwrap_err();
        fs::remove_file(&status).unwrap();
        store.flush().await.unwrap();
        assert_eq!(store.load_all().await.records.len(), 1);
    }

    #[test]
    fn a_code_of_a_newer_version_does_not_stop_reading() {
        let text = br#"{"lastError": {"code": "NewCode", "message": "m", "since": "2026-01-01T00:00:00Z",
            "count": 2}, "counters": {"polls": 1, "more": 2}, "other": 1}"#;
        let status = from_json(text).unwrap();
        assert_eq!(status.error.unwrap().code, Code::Internal);
        assert_eq!(status.totals.polls, 1);
    }
}
