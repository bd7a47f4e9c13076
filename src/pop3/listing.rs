//! The lines of UIDL and LIST (RFC 1939, sections 7 and 5), read without an
//! allocation a line.

use bytes::{Buf as _, BytesMut};
use memchr::memchr;

use super::reply::number;

/// What a listing held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Lines that were passed on.
    pub lines: u64,
    /// Lines that say nothing usable: number 0, one that came before, one
    /// that is out of order or absurd, no UID, or far too long.
    pub void_lines: u64,
}

/// A listing that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Endless;

/// Reads the lines of a multi-line response that are meant to be short.
#[derive(Debug)]
pub(super) struct Lines {
    longest: usize,
    /// Lines that may still come.
    left: u64,
    /// Octets that may still come.
    octets_left: u64,
    /// In a line that is too long.
    skipping: bool,
    /// The terminator may end in a bare LF, as the status line did.
    bare: bool,
    /// What stands before the next line was CRLF (or, if `bare`, LF).
    ended: bool,
    /// Octets of the input that hold no line end.
    scanned: usize,
}

/// One line, without its end; `None` is a line that was too long.
type Line<'a> = Option<&'a [u8]>;

impl Lines {
    /// Octets of a whole response.
    const MAX_OCTETS: u64 = 1 << 30;

    pub(super) fn new(max_line: usize, max_lines: u64, bare: bool) -> Self {
        Self {
            longest: max_line,
            left: max_lines,
            octets_left: Self::MAX_OCTETS,
            skipping: false,
            bare,
            ended: true,
            scanned: 0,
        }
    }

    /// Passes on the complete lines of `input` and takes them away from it.
    /// Returns whether the response has ended.
    pub(super) fn read(
        &mut self,
        input: &mut BytesMut,
        mut see: impl FnMut(Line<'_>),
    ) -> Result<bool, Endless> {
        let mut at = 0;
        let mut ended = false;
        while let Some(found) = memchr(b'\n', &input[at + self.scanned..]) {
            let end = at + self.scanned + found;
            self.scanned = 0;
            let line = &input[at..end];
            at = end + 1;
            let (line, whole) = match line.strip_suffix(b"\r") {
                Some(line) => (line, true),
                None => (line, self.bare),
            };
            if line == b"." && whole && self.ended && !self.skipping {
                ended = true;
                break;
            }
            self.left = self.left.checked_sub(1).ok_or(Endless)?;
            let too_long = std::mem::take(&mut self.skipping) || line.len() > self.longest;
            see((!too_long).then_some(line));
            self.ended = whole;
        }
        let mut used = at as u64;
        input.advance(at);
        if ended {
            return Ok(true);
        }
        self.scanned = input.len();
        if self.scanned > self.longest + 1 {
            // Its last octet stays: it may be the CR of the line's end.
            self.skipping = true;
            used += (self.scanned - 1) as u64;
            input.advance(self.scanned - 1);
            self.scanned = 1;
        }
        self.octets_left = self.octets_left.checked_sub(used).ok_or(Endless)?;
        Ok(false)
    }
}

/// Which message numbers a listing may still name.
#[derive(Debug)]
pub(super) struct Numbers {
    /// STAT's count.
    count: u64,
    highest: u64,
    /// A bit for each number that was named: it may be named once.
    named: Vec<u64>,
}

impl Numbers {
    /// For a maildrop of `count` messages, or where that is not known.
    pub(super) fn new(count: Option<u32>) -> Self {
        Self { count: count.map_or(u64::from(u32::MAX), u64::from), highest: 0, named: Vec::new() }
    }

    /// Numbers above this are absurd, whatever STAT says; it bounds `named`.
    const MOST: u64 = 16_000_000;

    /// Takes `number` once, in whatever order; above STAT's count only if it
    /// continues the sequence, as new mail does.
    pub(super) fn take(&mut self, number: u64) -> Option<u32> {
        let fits = (1..=Self::MOST).contains(&number) && (number <= self.count || number == self.highest + 1);
        let narrow = u32::try_from(number).ok().filter(|_| fits)?;
        let (word, bit) = (usize::try_from(number / 64).ok()?, 1 << (number % 64));
        if self.named.len() <= word {
            self.named.resize(word + 1, 0);
        }
        if self.named[word] & bit != 0 {
            return None;
        }
        self.named[word] |= bit;
        self.highest = self.highest.max(number);
        Some(narrow)
    }
}

/// `number rest`, the blanks around `rest` taken away.
pub(super) fn entry(line: &[u8]) -> Option<(u64, &[u8])> {
    let line = line.trim_ascii();
    let blank = line.iter().position(u8::is_ascii_whitespace)?;
    Some((number(&line[..blank])?, line[blank..].trim_ascii_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        input: &[u8],
        chunk: usize,
        max_line: usize,
        bare: bool,
    ) -> (Vec<Option<Vec<u8>>>, bool, Vec<u8>) {
        let mut lines = Lines::new(max_line, 1000, bare);
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        let mut ended = false;
        for chunk in input.chunks(chunk) {
            buffer.extend_from_slice(chunk);
            if !ended {
                ended = lines.read(&mut buffer, |line| seen.push(line.map(<[u8]>::to_vec))).unwrap();
                assert!(ended || buffer.len() <= max_line + 1);
            }
        }
        (seen, ended, buffer.to_vec())
    }

    #[test]
    fn lines_are_read_in_any_chunks() {
        let input = b"1 a\r\n2 b\n3 ccccccccccccccccccccccc\r\n.\n4 d\r\n.\r\n+OK";
        let expected = vec![
            Some(b"1 a".to_vec()),
            Some(b"2 b".to_vec()),
            None,
            Some(b".".to_vec()),
            Some(b"4 d".to_vec()),
        ];
        for chunk in 1..=input.len() {
            let (seen, ended, rest) = read(input, chunk, 10, false);
            assert!(ended);
            assert_eq!(seen, expected, "chunks of {chunk}");
            assert_eq!(rest, b"+OK");
        }
    }

    #[test]
    fn a_server_that_ends_all_lines_in_lf_is_understood() {
        let (seen, ended, _) = read(b"1 a\n2 b\n.\n", 3, 100, true);
        assert!(ended);
        assert_eq!(seen.len(), 2);
    }

    #[test]
    fn an_endless_listing_ends() {
        // quirks: "An endless line, header, UIDL list, CAPA or EHLO answer: bounded memory and a deadline."
        let mut lines = Lines::new(100, 10, false);
        let mut input = BytesMut::from(&b"1 a\r\n".repeat(11)[..]);
        assert_eq!(lines.read(&mut input, |_| {}), Err(Endless));

        let mut lines = Lines { octets_left: 10 << 20, ..Lines::new(100, 10, false) };
        let mut result = Ok(false);
        let mut most = 0;
        while result == Ok(false) {
            let mut input = BytesMut::from(&vec![b'x'; 1 << 20][..]);
            result = lines.read(&mut input, |_| {});
            most = most.max(input.len());
        }
        assert_eq!(result, Err(Endless));
        assert!(most <= 101);
    }

    #[test]
    fn numbers_that_cannot_be_void_their_line() {
        // quirks: "Message number above the STAT count, message number 0, numbers out of order"
        let mut numbers = Numbers::new(Some(3));
        let taken: Vec<_> = [0, 1, 1, 3, 2, 9, 4, 5, u64::MAX].map(|n| numbers.take(n)).to_vec();
        assert_eq!(taken, [None, Some(1), None, Some(3), Some(2), None, Some(4), Some(5), None]);
    }

    #[test]
    fn entries_are_taken_apart() {
        assert_eq!(entry(b"1   a b/c\xff "), Some((1, &b"a b/c\xff"[..])));
        assert_eq!(entry(b"1\ta"), Some((1, &b"a"[..])));
        for bad in [&b""[..], b"1", b"1 ", b"x y", b"-1 y", b"99999999999999999999 y"] {
            assert_eq!(entry(bad), None, "{bad:?}");
        }
    }
}
