//! The state folder: one process at a time, private to its user.
//!
//! ```text
//! STATE/lock                      held while a process runs; its number
//! STATE/rpopids/NAMESPACE/NAME    ledgers
//! STATE/status/NAMESPACE/NAME.json
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::domain::work::RecordKey;

const LOCK: &str = "lock";

/// An open state folder. The lock is held until it is dropped (or the process
/// ends, in whatever way).
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: File,
}

/// Why a state folder cannot be used. The texts say what to do.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another process has it.
    #[error(
        "the state folder {} is in use by {}: stop that one first, or give this one a folder of its \
         own with --state",
        path.display(),
        holder(*pid)
    )]
    InUse {
        /// The folder.
        path: PathBuf,
        /// The process that holds the lock, where it can be told.
        pid: Option<u32>,
    },
    /// It cannot be created, read or written.
    #[error("the state folder {} cannot be used: {}", path.display(), advice(source))]
    Unusable {
        /// The folder, or what of it is in the way.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// What the system said, and what a person can do about it.
pub(super) fn advice(error: &io::Error) -> String {
    use io::ErrorKind as Kind;
    let what_to_do = match error.kind() {
        Kind::PermissionDenied => "give it to the user that rpop runs as (chown), or name another folder",
        Kind::ReadOnlyFilesystem => "it lies on a read-only file system; mount one that can be written",
        Kind::StorageFull => "the disk is full; make room, nothing is lost meanwhile",
        Kind::QuotaExceeded => "the disk quota is used up; make room, nothing is lost meanwhile",
        Kind::NotADirectory | Kind::AlreadyExists => "a file is where a folder should be; move it away",
        Kind::NotFound => "a folder above it is missing or was removed",
        _ => return error.to_string(),
    };
    format!("{error}: {what_to_do}")
}

impl StateDir {
    /// Opens the folder, creates it (mode 0700) where there is none, takes its
    /// lock and makes sure that it can be written.
    ///
    /// # Errors
    /// [`StateError`]; a second process is refused with the first one's number.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StateError> {
        let path = path.into();
        let unusable = |source| StateError::Unusable { path: path.clone(), source };
        create_folder(&path).map_err(unusable)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut lock = options.open(path.join(LOCK)).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::InUse { pid: read_pid(&mut lock), path });
            }
            Err(TryLockError::Error(source)) => return Err(unusable(source)),
        }
        write_pid(&mut lock).map_err(unusable)?;
        Ok(Self { path, lock })
    }

    /// The process that runs on this folder now, if one does: for commands
    /// that only look.
    pub fn runner(path: &Path) -> Option<u32> {
        let mut lock = File::open(path.join(LOCK)).ok()?;
        match lock.try_lock_shared() {
            Err(TryLockError::WouldBlock) => read_pid(&mut lock),
            _ => None,
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes sure that the folder under its path still is the one that was
    /// opened: to be asked before anything is created in it, which would
    /// otherwise come into being in its place.
    ///
    /// # Errors
    /// With a text that says what to do.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_still_there() {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "the state folder {} was moved, removed or unmounted; put it back and start rpop again",
            self.path.display()
        )))
    }

    /// Whether the folder under its path still is the one that was locked: it
    /// may have been removed, or its file system unmounted.
    pub(super) fn is_still_there(&self) -> bool {
        let now = fs::metadata(self.path.join(LOCK));
        match (now, self.lock.metadata()) {
            (Ok(now), Ok(then)) => (now.dev(), now.ino()) == (then.dev(), then.ino()),
            _ => false,
        }
    }
}

/// Creates a folder and those above it, for this user alone, durably.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_folder(parent(path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_folder(parent(path))?;
            match DirBuilder::new().mode(0o700).create(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => sync_folder(parent(path)),
            }
        }
        Err(error) => Err(error),
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The path of a record's file, `None` where the names are no Kubernetes names
/// (RFC 1123 subdomains): these cannot lead out of the folder.
pub(super) fn record_path(folder: &Path, key: &RecordKey, suffix: &str) -> Option<PathBuf> {
    let (namespace, name) = (&*key.namespace, &*key.name);
    let fits = is_name(namespace) && is_name(name);
    fits.then(|| folder.join(namespace).join(format!("{name}{suffix}")))
}

fn is_name(name: &str) -> bool {
    let octets = name.as_bytes();
    let edge = |octet: Option<&u8>| octet.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |octet: &u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || b"-.".contains(octet);
    octets.len() <= 240 && edge(octets.first()) && edge(octets.last()) && octets.iter().all(inner)
}

fn read_pid(lock: &mut File) -> Option<u32> {
    let mut text = String::new();
    lock.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(lock: &mut File) -> io::Result<()> {
    lock.rewind()?;
    lock.set_len(0)?;
    // For people, and void with the process: no need to wait for the disk.
    writeln!(lock, "{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(namespace: &str, name: &str) -> RecordKey {
        RecordKey { namespace: namespace.into(), name: name.into() }
    }

    // quirks: "Two fetchers started on one state at once: the second is refused with a message."
    #[test]
    fn a_second_opener_is_refused_with_the_number_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/rpop-state");
        assert_eq!(StateDir::runner(&path), None);
        let first = StateDir::open(&path).unwrap();
        let refusal = StateDir::open(&path).unwrap_err().to_string();
        let number = std::process::id();
        assert!(refusal.contains(&format!("in use by process {number}: stop that one")), "{refusal}");
        assert_eq!(StateDir::runner(&path), Some(number));
        drop(first);
        assert_eq!(StateDir::runner(&path), None);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn the_folder_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let _state = StateDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.join("lock")).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(&path, "").unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains("state cannot be used") && error.contains("move it away"), "{error}");
    }

    #[test]
    fn what_can_be_done_is_said() {
        use io::ErrorKind as Kind;
        for (kind, words) in [
            (Kind::PermissionDenied, "chown"),
            (Kind::ReadOnlyFilesystem, "read-only"),
            (Kind::StorageFull, "make room"),
            (Kind::QuotaExceeded, "make room"),
        ] {
            assert!(advice(&kind.into()).contains(words), "{kind:?}");
        }
    }

    #[test]
    fn a_folder_that_was_replaced_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let state = StateDir::open(&path).unwrap();
        assert!(state.is_still_there());
        state.check().unwrap();
        fs::rename(&path, folder.path().join("elsewhere")).unwrap();
        assert!(state.check().unwrap_err().to_string().contains("put it back"));
        assert!(!state.is_still_there());
        fs::create_dir(&path).unwrap();
        fs::write(path.join("lock"), "").unwrap();
        assert!(!state.is_still_there());
    }

    #[test]
    fn names_stay_inside_the_folder() {
        let folder = Path::new("/s");
        assert_eq!(record_path(folder, &key("mail", "a.b-c1"), ".x"), Some("/s/mail/a.b-c1.x".into()));
        for bad in ["", ".", "..", "../a", "a/b", "a\0b", ".a", "a.", "-a", "A", "ä", "a b", &"a".repeat(241)]
        {
            assert_eq!(record_path(folder, &key("mail", bad), ""), None, "{bad}");
            assert_eq!(record_path(folder, &key(bad, "a"), ".x"), None, "{bad}");
        }
    }
}
