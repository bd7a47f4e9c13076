//! Messages, Maildirs, and the proof that sets of messages are equal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// A header of ours that stands first in every generated message: what lies
/// before it was added on the way.
pub const MARK: &str = "X-Rpop-Mark";

/// A message with CRLF line ends, `octets` long (at least its header), whose
/// content depends on `mark` alone. Some of its lines begin with dots.
pub fn message(mark: &str, octets: usize) -> Vec<u8> {
    let mut text = format!(
        "{MARK}: {mark}\r\nMessage-ID: <{mark}@sender.test>\r\nFrom: Sender <sender@sender.test>\r\n\
         To: somebody@local.test\r\nSubject: message {mark}\r\nDate: Mon, 2 Nov 2026 10:00:00 +0000\r\n\r\n"
    );
    let mut line = 0_u32;
    while text.len() + 2 < octets {
        let dots = ["", ".", "", "..", "", "", "", ""][line as usize % 8];
        write!(text, "{dots}{line:06} {mark} lorem ipsum dolor sit amet, consectetur adipisici elit")
            .expect("text");
        text.truncate(octets - 2);
        text.push_str("\r\n");
        line += 1;
    }
    text.into_bytes()
}

/// A message that arrived.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// As stored or received, line ends as they are.
    pub raw: Vec<u8>,
}

impl Arrived {
    /// With bare LF.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.raw).replace("\r\n", "\n")
    }

    /// The values of a header, in order, unfolded.
    pub fn headers(&self, name: &str) -> Vec<String> {
        let text = self.text();
        let head = text.split("\n\n").next().unwrap_or_default().replace("\n ", " ").replace("\n\t", " ");
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }

    /// The mark of a generated message.
    pub fn mark(&self) -> String {
        self.headers(MARK).first().cloned().unwrap_or_default()
    }

    /// What the sender wrote: from the mark on, with CRLF.
    pub fn original(&self) -> Vec<u8> {
        let text = canonical(&self.raw);
        let needle = format!("{MARK}:");
        let at = memchr::memmem::find(&text, needle.as_bytes()).unwrap_or(0);
        text.get(at..).unwrap_or_default().to_vec()
    }

    /// SHA-256 of the [`original`](Self::original), hex.
    pub fn digest(&self) -> String {
        digest(&self.original())
    }
}

/// SHA-256, hex.
pub fn digest(octets: &[u8]) -> String {
    let mut text = String::with_capacity(64);
    for octet in Sha256::digest(octets) {
        write!(text, "{octet:02x}").expect("text");
    }
    text
}

/// Bare LF becomes CRLF.
pub fn canonical(raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() + raw.len() / 32);
    let mut before = 0;
    for &octet in raw {
        if octet == b'\n' && before != b'\r' {
            out.push(b'\r');
        }
        out.push(octet);
        before = octet;
    }
    out
}

/// A multiset of digests: how often each message is there.
pub fn census<'a>(messages: impl IntoIterator<Item = &'a [u8]>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for message in messages {
        *counts.entry(digest(message)).or_default() += 1;
    }
    counts
}

/// The census of what arrived, by what the senders wrote.
pub fn census_arrived(messages: &[Arrived]) -> BTreeMap<String, usize> {
    let originals: Vec<Vec<u8>> = messages.iter().map(Arrived::original).collect();
    census(originals.iter().map(Vec::as_slice))
}

/// A Maildir that a server reads and writes too.
#[derive(Debug, Clone)]
pub struct Maildir {
    path: PathBuf,
    owner: Option<(u32, u32)>,
}

impl Maildir {
    /// One at `path`, whose files belong to `owner`; made when first written.
    pub fn new(path: PathBuf, owner: Option<(u32, u32)>) -> Self {
        Self { path, owner }
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts messages in as they are, far faster than any delivery. `first` is
    /// the number of the first, so that later calls add behind earlier ones.
    pub fn fill<'a>(&self, first: usize, messages: impl IntoIterator<Item = &'a [u8]>) {
        for name in ["", "tmp", "new", "cur"] {
            let folder = self.path.join(name);
            std::fs::create_dir_all(&folder).expect("a Maildir");
            self.give(&folder);
        }
        for (at, message) in messages.into_iter().enumerate() {
            let virtual_size = canonical(message).len();
            let name = format!(
                "{}.M{:06}P1.filled,S={},W={virtual_size}",
                1_700_000_000 + first + at,
                (first + at) % 1_000_000,
                message.len()
            );
            let path = self.path.join("tmp").join(&name);
            std::fs::write(&path, message).expect("a message");
            self.give(&path);
            std::fs::rename(&path, self.path.join("new").join(&name)).expect("it moves");
        }
    }

    /// `count` generated messages of about `octets`, marked `NAME-NUMBER`.
    pub fn fill_generated(&self, name: &str, count: usize, octets: usize) -> Vec<Vec<u8>> {
        let messages: Vec<Vec<u8>> =
            (0..count).map(|at| message(&format!("{name}-{at:05}"), octets)).collect();
        self.fill(0, messages.iter().map(Vec::as_slice));
        messages
    }

    /// How many messages are in it.
    pub fn count(&self) -> usize {
        self.files().len()
    }

    /// All messages in it.
    pub fn read(&self) -> Vec<Arrived> {
        let read = |path: &PathBuf| std::fs::read(path).ok().map(|raw| Arrived { raw });
        self.files().iter().filter_map(read).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for name in ["new", "cur"] {
            let Ok(entries) = std::fs::read_dir(self.path.join(name)) else { continue };
            files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
        }
        files.sort();
        files
    }

    fn give(&self, path: &Path) {
        if let Some((user, group)) = self.owner {
            chown(path, Some(user), Some(group)).expect("root may give away");
        }
    }
}
