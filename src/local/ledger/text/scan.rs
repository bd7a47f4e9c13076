//! Reading a file line by line, in bounded memory.

use std::io::{self, Read};

use super::{CHUNK, MOST_LINE};

/// How a file was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::local::ledger) struct Scanned {
    /// Octets up to and with the last line feed.
    pub(in crate::local::ledger) length: u64,
    /// Octets behind it: a line that was never written to its end.
    pub(in crate::local::ledger) torn: u64,
    /// Complete lines.
    pub(in crate::local::ledger) lines: u64,
}

/// Why a scan ended.
#[derive(Debug)]
pub(in crate::local::ledger) enum ScanError<E> {
    Read(io::Error),
    /// A line that is longer than any line can be.
    Endless(u64),
    Line(u64, E),
}

/// Hands the complete lines of a file to `each`, with their numbers from 1,
/// without their line feeds. Holds one chunk (or the whole of a file that is
/// `expected` to be smaller), or one line if that is longer.
pub(in crate::local::ledger) fn scan<E>(
    mut from: impl Read,
    expected: u64,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<Scanned, ScanError<E>> {
    let chunk = usize::try_from(expected).unwrap_or(CHUNK).saturating_add(1).min(CHUNK);
    let mut buffer = vec![0; chunk];
    let mut filled = 0;
    let mut scanned = Scanned::default();
    loop {
        if filled == buffer.len() {
            if buffer.len() > MOST_LINE {
                return Err(ScanError::Endless(scanned.lines + 1));
            }
            buffer.resize(buffer.len() * 2, 0);
        }
        let count = match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(ScanError::Read(error)),
        };
        let searched = filled;
        filled += count;
        let mut start = 0;
        for found in memchr::memchr_iter(b'\n', &buffer[searched..filled]) {
            let end = searched + found;
            scanned.lines += 1;
            each(scanned.lines, &buffer[start..end])
                .map_err(|error| ScanError::Line(scanned.lines, error))?;
            start = end + 1;
        }
        scanned.length += start as u64;
        buffer.copy_within(start..filled, 0);
        filled -= start;
    }
    scanned.torn = filled as u64;
    Ok(scanned)
}
