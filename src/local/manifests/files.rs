//! Which files there are, what is in them, and when they change.

use std::collections::HashSet;
use std::fs;
use std::hash::Hasher;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use siphasher::sip::SipHasher13;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// The largest file that is read.
pub(super) const MAX_FILE: u64 = 16 * 1024 * 1024;
/// How deep folders are followed; symbolic links can make them endless.
const MAX_FOLDERS: usize = 8;

/// A path that was asked for cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {}: {source}", path.display())]
pub struct LoadError {
    /// The path.
    pub path: PathBuf,
    /// Why not.
    pub source: io::Error,
}

/// The manifests below `paths`, each folder in the order of names: files that
/// end in `.yaml`, `.yml` or `.json` and are not hidden. Editors' copies
/// (`a.yaml~`, `.a.yaml.swp`, `#a.yaml#`) are none of these. A file that is
/// named itself is taken whatever its name.
pub(super) fn list(paths: &[PathBuf]) -> Result<Vec<PathBuf>, LoadError> {
    let mut found = Vec::new();
    for path in paths {
        let fail = |source| LoadError { path: path.clone(), source };
        if fs::metadata(path).map_err(fail)?.is_dir() {
            // The folder that was named must be readable; one below it that
            // is not is reported like a file.
            fs::read_dir(path).map_err(fail)?;
            folder(path, 0, &mut found, &mut HashSet::new());
        } else {
            found.push(path.clone());
        }
    }
    let mut seen = HashSet::new();
    // A file that is named twice, or that two links lead to, is one file.
    found.retain(|path| seen.insert(fs::canonicalize(path).unwrap_or_else(|_| path.clone())));
    Ok(found)
}

/// Takes what is below `path`, each of the folders `been` once: a link may
/// lead back to one that it is in.
fn folder(path: &Path, depth: usize, found: &mut Vec<PathBuf>, been: &mut HashSet<(u64, u64)>) {
    if fs::metadata(path).is_ok_and(|data| !been.insert((data.dev(), data.ino()))) {
        return;
    }
    let Ok(entries) = fs::read_dir(path) else {
        return found.push(path.to_owned());
    };
    let mut names: Vec<_> = entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name())).collect();
    names.sort();
    for name in names {
        // `..data` and its like of a mounted ConfigMap are hidden too; the
        // files are seen through the links beside them.
        let text = name.to_string_lossy();
        if text.starts_with('.') {
            continue;
        }
        let below = path.join(&name);
        let manifest = ["yaml", "yml", "json"]
            .iter()
            .any(|end| below.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(end)));
        match fs::metadata(&below) {
            Ok(data) if data.is_dir() && depth < MAX_FOLDERS => folder(&below, depth + 1, found, been),
            Ok(data) if data.is_file() && manifest => found.push(below),
            // A link that leads nowhere is reported where it is read. Whatever
            // it is called: there may have been a folder.
            Err(_) if manifest || fs::symlink_metadata(&below).is_ok_and(|data| data.is_symlink()) => {
                found.push(below);
            }
            _ => {}
        }
    }
}

/// The text of a file, at most [`MAX_FILE`] octets of UTF-8.
///
/// # Errors
/// For people, with the line where it is known.
pub(super) fn text(path: &Path) -> Result<String, (u32, String)> {
    let cannot = |error: io::Error| (0, format!("cannot be read: {error}"));
    let file = fs::File::open(path).map_err(cannot)?;
    let mut octets = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut octets).map_err(cannot)?;
    if octets.len() as u64 > MAX_FILE {
        return Err((0, "is larger than 16 MiB: split it".into()));
    }
    String::from_utf8(octets).map_err(|error| {
        let before = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or(&[]);
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        (line, "is not UTF-8: convert it, for example with iconv -f latin1 -t utf8".into())
    })
}

/// Whether anybody on this machine may read the file.
pub(super) fn world_readable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|data| data.mode() & 0o004 != 0)
}

/// Notices changes of manifests by looking at the files from time to time:
/// that works on every file system, and for the links of a mounted ConfigMap.
#[derive(Debug)]
pub struct Watcher {
    paths: Vec<PathBuf>,
    every: Duration,
    next: Option<Instant>,
    look: Option<JoinHandle<Look>>,
    known: u64,
    seen: u64,
    /// How often in a row the same was seen.
    times: u32,
}

impl Watcher {
    /// Watches `paths`, looking at them every `every` (2 s is a good value).
    /// Make it before the first load, so that no change falls between.
    pub fn new(paths: Vec<PathBuf>, every: Duration) -> Self {
        let known = fingerprint(&paths);
        Self { paths, every, next: None, look: None, known: known.digest, seen: known.digest, times: 0 }
    }

    /// Waits until the files differ from the last time this returned, and have
    /// then stayed the same for one interval: a file that is just being
    /// written is not read half. While a file is empty (an editor may be about
    /// to write it in its place) it is five intervals. Cancel-safe: what has been waited and seen is
    /// not lost.
    pub async fn changed(&mut self) {
        loop {
            let next = *self.next.get_or_insert_with(|| Instant::now() + self.every);
            tokio::time::sleep_until(next).await;
            let look = self.look.get_or_insert_with(|| {
                let paths = self.paths.clone();
                tokio::task::spawn_blocking(move || fingerprint(&paths))
            });
            let now = look.await;
            self.look = None;
            self.next = None;
            let Ok(now) = now else { continue };
            self.times = if now.digest == self.seen { self.times + 1 } else { 0 };
            self.seen = now.digest;
            let enough = if now.empty { EMPTY_LOOKS } else { 1 };
            if self.times >= enough && now.digest != self.known {
                self.known = now.digest;
                return;
            }
        }
    }
}

/// Looks that must agree while a file is empty.
const EMPTY_LOOKS: u32 = 5;

/// What a look at the files finds.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Of names, inodes, sizes and times.
    digest: u64,
    /// One of them is empty.
    empty: bool,
}

fn fingerprint(paths: &[PathBuf]) -> Look {
    let mut empty = false;
    let mut hasher = SipHasher13::new();
    match list(paths) {
        Err(error) => {
            hasher.write(error.path.as_os_str().as_encoded_bytes());
            hasher.write_u8(1);
        }
        Ok(files) => {
            for file in files {
                hasher.write(file.as_os_str().as_encoded_bytes());
                if let Ok(data) = fs::metadata(&file) {
                    hasher.write_u64(data.dev());
                    hasher.write_u64(data.ino());
                    hasher.write_u64(data.size());
                    empty |= data.size() == 0;
                    hasher.write_i64(data.mtime());
                    hasher.write_i64(data.mtime_nsec());
                    hasher.write_i64(data.ctime());
                    hasher.write_i64(data.ctime_nsec());
                }
            }
        }
    }
    Look { digest: hasher.finish(), empty }
}
