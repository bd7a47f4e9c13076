//! What killed deliveries left in `tmp`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Nobody delivers for so long: "any file in tmp that has not been accessed in
/// 36 hours" may go (<https://cr.yp.to/proto/maildir.html>).
const OLD: Duration = Duration::from_hours(36);
/// Entries looked at; what is behind them is for the next start.
const MOST: usize = 10_000;
/// Folders remembered; beyond that some are swept again.
const FOLDERS: usize = 100_000;

/// Which folders have been swept by this process.
#[derive(Debug, Default)]
pub(super) struct Sweeper(Mutex<HashSet<PathBuf>>);

impl Sweeper {
    /// Sweeps a Maildir if that is the first time that it is delivered to.
    /// Must be called within a tokio runtime; waits for nothing.
    pub(super) fn visit(&self, folder: &Path) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(folder) {
            return;
        }
        if known.len() >= FOLDERS {
            known.clear();
        }
        known.insert(folder.to_owned());
        let tmp = folder.join("tmp");
        tokio::task::spawn_blocking(move || sweep(&tmp));
    }
}

/// Removes old files. What cannot be looked at or removed stays: no mail
/// depends on it.
fn sweep(tmp: &Path) {
    let Ok(entries) = fs::read_dir(tmp) else { return };
    let now = SystemTime::now();
    let is_old = |time: std::io::Result<SystemTime>| {
        time.is_ok_and(|time| now.duration_since(time).is_ok_and(|age| age > OLD))
    };
    let mut removed = 0_usize;
    for entry in entries.take(MOST).flatten() {
        // Of a symbolic link this is the link itself.
        let Ok(data) = entry.metadata() else { continue };
        if data.is_file() && is_old(data.modified()) && is_old(data.accessed()) {
            removed += usize::from(fs::remove_file(entry.path()).is_ok());
        }
    }
    if removed > 0 {
        tracing::info!(folder = %tmp.display(), removed, "half-written files of killed deliveries are removed");
    }
}
