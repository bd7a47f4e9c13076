//! One ledger file: reading, appending, compacting. Everything here blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::text::{self, Line, Parser, ScanError, Scanned};
use crate::domain::ledger::{Ledger, Mark};
use crate::engine::ports::LedgerError;
use crate::local::state::{advice, create_folder, parent, sync_folder};

/// Octets of a block, in most file systems.
const BLOCK: u64 = 4096;

/// What a crash or a failed write may have left undone at a file. It has to be
/// put right before the file is used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Doubt {
    /// In the file with this inode, what lies beyond this length may not be on
    /// the disk, whatever reading it back says.
    pub(super) length: Option<(u64, u64)>,
    /// The file's name may not be.
    pub(super) name: bool,
}

/// How changes get to the disk; tests let it fail.
#[derive(Debug, Default)]
pub(super) struct Disk {
    #[cfg(test)]
    pub(super) faults: std::sync::Mutex<Vec<Fault>>,
}

/// A fault for the next operation of its kind.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// So many octets are written, then the disk is full.
    Write(usize),
    Reserve,
    Sync,
    SyncFolder,
    Truncate,
}

#[cfg_attr(not(test), expect(clippy::unused_self, reason = "tests keep their faults there"))]
impl Disk {
    fn write(&self, file: &mut File, octets: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if let Some(Fault::Write(part)) = self.fault(|fault| matches!(fault, Fault::Write(_))) {
            file.write_all(&octets[..part.min(octets.len())])?;
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.write_all(octets)
    }

    /// Takes blocks for `octets` beyond `length` without making the file any
    /// longer. Where the file system cannot do that, nothing can be said
    /// before the writing.
    fn reserve(&self, file: &File, length: u64, octets: u64) -> io::Result<()> {
        #[cfg(test)]
        if self.fault(|fault| *fault == Fault::Reserve).is_some() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if octets == 0 {
            return Ok(());
        }
        let took = rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, length, octets)
        });
        match took {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            took => Ok(took?),
        }
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        #[cfg(test)]
        if self.fault(|fault| *fault == Fault::Sync).is_some() {
            return Err(io::Error::other("Input/output error"));
        }
        file.sync_data()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        if self.fault(|fault| *fault == Fault::SyncFolder).is_some() {
            return Err(io::Error::other("Input/output error"));
        }
        sync_folder(path)
    }

    fn truncate(&self, file: &File, length: u64) -> io::Result<()> {
        #[cfg(test)]
        if self.fault(|fault| *fault == Fault::Truncate).is_some() {
            return Err(io::Error::other("Input/output error"));
        }
        file.set_len(length)?;
        self.sync(file)
    }

    #[cfg(test)]
    fn fault(&self, is: impl Fn(&Fault) -> bool) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let at = faults.iter().position(is)?;
        Some(faults.remove(at))
    }
}

/// A ledger's file by its path, and what is in doubt about it.
#[derive(Debug)]
pub(super) struct LedgerFile<'a> {
    pub(super) path: &'a Path,
    pub(super) disk: &'a Disk,
    pub(super) doubt: &'a mut Doubt,
}

/// What a file held.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) ledger: Ledger,
    /// Octets of a last line that was never written to its end.
    pub(super) torn: u64,
}

impl LedgerFile<'_> {
    /// Reads the file; `None` where there is none.
    pub(super) fn load(&mut self, today: i32) -> Result<Option<Loaded>, LedgerError> {
        if *self.doubt != Doubt::default() {
            self.resolve()?;
        }
        // To open a named pipe would wait for somebody who writes into it.
        let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = match OpenOptions::new().read(true).custom_flags(nonblocking).open(self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.unreadable(&error)),
        };
        let kind = file.metadata().map_err(|error| self.unreadable(&error))?.file_type();
        if !kind.is_file() && !kind.is_dir() {
            return Err(self.unreadable(&io::Error::other("it is a pipe, a socket or a device, and no file")));
        }
        self.read(&file, today).map(Some)
    }

    fn read(&self, file: &File, today: i32) -> Result<Loaded, LedgerError> {
        let metadata = file.metadata().map_err(|error| self.unreadable(&error))?;
        let mut ledger = None;
        let mut parser = Parser::new(today);
        let mut dead_or_alive = 0;
        let mut headed = false;
        let scanned = self.scan(file, metadata.len(), |_, line| match &mut ledger {
            None => {
                ledger = Some(Ledger::new(text::parse_header(line)?));
                Ok(())
            }
            Some(ledger) => {
                headed |= text::ends_head(line);
                let line = parser.line(line)?;
                dead_or_alive += u64::from(line != Line::Comment);
                apply(ledger, line);
                Ok(())
            }
        })?;
        let Some(mut ledger) = ledger else {
            let what = if metadata.len() == 0 {
                "the file is empty; it should begin with a line 'rpop-ledger …'"
            } else {
                "the file was cut off within its first line"
            };
            return Err(self.damaged(1, what));
        };
        if !headed && dead_or_alive == 0 {
            return Err(self.damaged(scanned.lines + 1, "the file was cut off within its head"));
        }
        ledger.shrink();
        ledger.set_mark(Mark {
            object: metadata.ino(),
            version: 0,
            length: scanned.length,
            lines: dead_or_alive,
        });
        Ok(Loaded { ledger, torn: scanned.torn })
    }

    fn scan(
        &self,
        file: &File,
        length: u64,
        each: impl FnMut(u64, &[u8]) -> Result<(), &'static str>,
    ) -> Result<Scanned, LedgerError> {
        text::scan(file, length, each).map_err(|error| match error {
            ScanError::Read(error) => self.unreadable(&error),
            ScanError::Endless(line) => self.damaged(line, "the line is longer than any line of a ledger"),
            ScanError::Line(line, why) => self.damaged(line, why),
        })
    }

    /// Appends `lines` (of which there are `count`) and makes them durable;
    /// creates the file where the ledger, by its mark, has none yet.
    pub(super) fn append(
        &mut self,
        mark: Mark,
        salt: [u8; 16],
        lines: &[u8],
        count: u64,
    ) -> Result<Mark, LedgerError> {
        if *self.doubt != Doubt::default() {
            self.resolve()?;
        }
        if mark.object == 0 && !self.path.exists() {
            return self.create(salt, lines, count);
        }
        let (mut file, object, length) = self.open(mark, salt)?;
        let written = self.disk.write(&mut file, lines).and_then(|()| self.disk.sync(&file));
        if let Err(error) = written {
            // What was written may or may not be there after a power loss,
            // and reading it back now proves nothing: away with it.
            self.doubt.length = Some((object, length));
            if self.disk.truncate(&file, length).is_ok() {
                self.doubt.length = None;
            }
            return Err(self.unwritable(&error));
        }
        Ok(Mark { object, version: 0, length: length + lines.len() as u64, lines: mark.lines + count })
    }

    /// Takes blocks for `octets` behind the last line, which the next appends
    /// will fill; creates the file as [`Self::append`] does. The file's length
    /// stays as it is.
    pub(super) fn reserve(&mut self, mark: Mark, salt: [u8; 16], octets: u64) -> Result<Mark, LedgerError> {
        if *self.doubt != Doubt::default() {
            self.resolve()?;
        }
        let mut mark = mark;
        if mark.object == 0 && !self.path.exists() {
            mark = self.create(salt, b"", 0)?;
        }
        let (file, object, length) = self.open(mark, salt)?;
        self.disk.reserve(&file, length, octets).map_err(|error| self.unwritable(&error))?;
        Ok(Mark { object, version: 0, length, lines: mark.lines })
    }

    /// Opens the file for appending to the ledger of `salt`: it, its inode,
    /// and its length.
    fn open(&self, mark: Mark, salt: [u8; 16]) -> Result<(File, u64, u64), LedgerError> {
        let mut file = match OpenOptions::new().read(true).append(true).open(self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(self.gone()),
            Err(error) => return Err(self.unwritable(&error)),
        };
        let metadata = file.metadata().map_err(|error| self.unwritable(&error))?;
        let length = if (metadata.ino(), metadata.len()) == (mark.object, mark.length) {
            mark.length
        } else {
            self.join(&mut file, metadata.len(), mark, salt)?
        };
        Ok((file, metadata.ino(), length))
    }

    /// The file is not as it was when this ledger was read: a person edited
    /// it, a commit was not waited for, or a crash left half a line. Lines can
    /// be added to it all the same if it is of the same ledger.
    fn join(&self, file: &mut File, length: u64, mark: Mark, salt: [u8; 16]) -> Result<u64, LedgerError> {
        let mut first = [0; 64];
        let read = file.rewind().and_then(|()| {
            let count = file.take(64).read(&mut first)?;
            Ok(first.get(..count).unwrap_or_default())
        });
        let first = read.map_err(|error| self.unreadable(&error))?;
        let header = memchr::memchr(b'\n', first).map_or(first, |end| &first[..end]);
        match text::parse_header(header) {
            Ok(found) if found == salt => {}
            Ok(_) => {
                let path = self.path.display();
                let text = format!("{path}: another ledger was put in its place during the poll");
                return Err(LedgerError::Conflict(text));
            }
            Err(why) => return Err(self.damaged(1, why)),
        }
        if length < mark.length {
            // Lines were deleted, or the file was cut off: then nothing may
            // be added that makes it look whole.
            file.rewind().map_err(|error| self.unreadable(&error))?;
            self.read(file, 0)?;
        }
        let end = last_line_end(file, length).map_err(|error| self.unreadable(&error))?;
        if end < length {
            self.disk.truncate(file, end).map_err(|error| self.unwritable(&error))?;
        }
        Ok(end)
    }

    /// A new file appears whole or not at all, so that an empty or headless
    /// one is never the trace of a crash.
    fn create(&mut self, salt: [u8; 16], lines: &[u8], count: u64) -> Result<Mark, LedgerError> {
        let mut text = text::header(salt);
        text.extend_from_slice(lines);
        let temporary = temporary(self.path);
        let created = create_folder(parent(self.path)).and_then(|()| {
            let mut file = create_file(&temporary)?;
            self.disk.write(&mut file, &text)?;
            self.disk.sync(&file)?;
            let object = file.metadata()?.ino();
            fs::rename(&temporary, self.path)?;
            self.doubt.name = true;
            self.disk.sync_folder(parent(self.path))?;
            self.doubt.name = false;
            Ok(object)
        });
        if created.is_err() {
            discard(&temporary);
        }
        let object = created.map_err(|error| self.unwritable(&error))?;
        Ok(Mark { object, version: 0, length: text.len() as u64, lines: count })
    }

    /// Writes the file anew, without the lines that count no more. Comments
    /// stay where they are. On an error the old file is still there.
    pub(super) fn compact(&mut self, today: i32) -> Result<Mark, LedgerError> {
        let temporary = temporary(self.path);
        let compacted = self.compact_by(&temporary, today);
        if compacted.is_err() {
            discard(&temporary);
        }
        compacted
    }

    fn compact_by(&mut self, temporary: &Path, today: i32) -> Result<Mark, LedgerError> {
        if *self.doubt != Doubt::default() {
            self.resolve()?;
        }
        let mut file = File::open(self.path).map_err(|error| self.unreadable(&error))?;
        let ledger = self.read(&file, today)?.ledger;
        file.rewind().map_err(|error| self.unreadable(&error))?;
        let metadata = file.metadata().map_err(|error| self.unreadable(&error))?;
        // What was reserved stays reserved; less a block, so that rounding up
        // does not let it grow from one compaction to the next.
        let reserved = (metadata.blocks() * 512).saturating_sub(metadata.len()).saturating_sub(BLOCK);
        let mut to = BufWriter::with_capacity(
            64 << 10,
            create_file(temporary).map_err(|error| self.unwritable(&error))?,
        );
        let mut copy = Copy {
            ledger: &ledger,
            done: vec![false; ledger.len()],
            copied: 0,
            headed: false,
            parser: Parser::new(today),
            text: Vec::new(),
        };
        let mut failed = Ok(());
        let scanned = self.scan(&file, ledger.mark().length, |number, line| {
            if failed.is_ok() {
                copy.take(number, line)?;
                failed = to.write_all(&copy.text);
            }
            Ok(())
        })?;
        if failed.is_ok() && copy.copied == 0 && !copy.headed {
            copy.text.clear();
            text::write_head_end(&mut copy.text);
            failed = to.write_all(&copy.text);
        }
        let copied = copy.copied;
        if failed.is_ok() && (copied != ledger.len() || scanned.length != ledger.mark().length) {
            // Somebody wrote to it between the two readings: another time.
            return Err(LedgerError::Conflict(format!("{}: changed while compacted", self.path.display())));
        }
        let replaced = failed.and_then(|()| {
            let file = to.into_inner().map_err(io::IntoInnerError::into_error)?;
            let length = file.metadata()?.len();
            self.disk.reserve(&file, length, reserved)?;
            self.disk.sync(&file)?;
            let metadata = file.metadata()?;
            fs::rename(temporary, self.path)?;
            self.doubt.name = true;
            self.disk.sync_folder(parent(self.path))?;
            self.doubt.name = false;
            Ok(Mark { object: metadata.ino(), version: 0, length: metadata.len(), lines: copied as u64 })
        });
        replaced.map_err(|error| self.unwritable(&error))
    }

    /// Puts right what an earlier failure left in doubt.
    fn resolve(&mut self) -> Result<(), LedgerError> {
        let resolved = || -> io::Result<()> {
            if let Some((object, length)) = self.doubt.length {
                let file = OpenOptions::new().write(true).open(self.path)?;
                let metadata = file.metadata()?;
                if metadata.ino() == object && metadata.len() > length {
                    self.disk.truncate(&file, length)?;
                }
            }
            if self.doubt.name {
                self.disk.sync_folder(parent(self.path))?;
            }
            Ok(())
        };
        match resolved() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.unwritable(&error)),
            Ok(()) => {}
        }
        *self.doubt = Doubt::default();
        Ok(())
    }

    fn damaged(&self, line: u64, why: &str) -> LedgerError {
        LedgerError::Damaged(format!(
            "{}:{line}: {why}; correct or delete the line, or move the file away to have everything that is \
             on the server fetched again",
            self.path.display()
        ))
    }

    fn unreadable(&self, error: &io::Error) -> LedgerError {
        LedgerError::Unavailable(format!("{} cannot be read: {}", self.path.display(), advice(error)))
    }

    fn unwritable(&self, error: &io::Error) -> LedgerError {
        LedgerError::Unavailable(format!("{} cannot be written: {}", self.path.display(), advice(error)))
    }

    fn gone(&self) -> LedgerError {
        LedgerError::Conflict(format!("{} was removed during the poll", self.path.display()))
    }
}

fn apply(ledger: &mut Ledger, line: Line<'_>) {
    use crate::domain::ledger::{Change, Entry, State};
    match line {
        Line::Comment => {}
        Line::Put { uid, entry, missed } => {
            let hash = ledger.hash(uid);
            ledger.put(hash, &entry);
            if let Some((since, listings)) = missed {
                ledger.apply(&Change::Missed { hash, since, listings });
            }
        }
        Line::Missed { hash, since, listings } => ledger.apply(&Change::Missed { hash, since, listings }),
        Line::Forget { hash } => ledger.apply(&Change::Forget { hash }),
        Line::Copy { message_id, digest, origin, day } => {
            ledger.put(0, &Entry { state: State::Copy, day, size: origin, message_id, digest });
        }
    }
}

/// The second reading of a compaction: where a UID (or the Message-ID of a
/// copy) first comes, all that is known of it by the end of the file is
/// written.
struct Copy<'a> {
    ledger: &'a Ledger,
    done: Vec<bool>,
    copied: usize,
    /// The end of the head was written.
    headed: bool,
    parser: Parser,
    /// What to write in the place of the line.
    text: Vec<u8>,
}

impl Copy<'_> {
    fn take(&mut self, number: u64, line: &[u8]) -> Result<(), &'static str> {
        self.text.clear();
        if number == 1 {
            self.text.extend_from_slice(line);
            self.text.push(b'\n');
            return Ok(());
        }
        match self.parser.line(line)? {
            Line::Comment => {
                self.headed |= text::ends_head(line);
                self.text.extend_from_slice(line);
                self.text.push(b'\n');
            }
            Line::Put { uid, .. } => {
                let hash = self.ledger.hash(uid);
                for at in self.ledger.positions(hash) {
                    if !std::mem::replace(&mut self.done[at], true) {
                        let missed = self.ledger.missed(hash);
                        text::write_put(&mut self.text, uid, &self.ledger.entry(at), missed);
                        self.copied += 1;
                    }
                }
            }
            Line::Copy { message_id, digest, day, .. } => {
                use crate::domain::ledger::Change;
                let hash = self.ledger.hash_of(&Change::Copy { message_id, digest, day });
                for at in self.ledger.copy_positions(hash) {
                    if !std::mem::replace(&mut self.done[at], true) {
                        text::write_put(&mut self.text, b"", &self.ledger.entry(at), None);
                        self.copied += 1;
                    }
                }
            }
            Line::Missed { .. } | Line::Forget { .. } => {}
        }
        Ok(())
    }
}

fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp"))
}

/// On a full disk it must not stay; it may not be there at all.
fn discard(temporary: &Path) {
    fs::remove_file(temporary).unwrap_or_default();
}

fn create_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// The position behind the last line feed.
fn last_line_end(file: &mut File, length: u64) -> io::Result<u64> {
    let mut chunk = [0; 4096];
    let mut end = length;
    while end > 0 {
        let start = end.saturating_sub(4096);
        file.seek(SeekFrom::Start(start))?;
        let size = usize::try_from(end - start).unwrap_or(chunk.len());
        let part = &mut chunk[..size];
        file.read_exact(part)?;
        if let Some(found) = memchr::memrchr(b'\n', part) {
            return Ok(start + found as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
