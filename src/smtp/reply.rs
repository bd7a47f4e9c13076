//! Replies (RFC 5321, section 4.2) and their decoder.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::domain::text::shown;

/// Lines of one reply; an EHLO answer has some twenty.
pub const MAX_LINES: usize = 100;
/// Octets of one reply, line ends included.
pub const MAX_OCTETS: usize = 64 * 1024;

/// A whole reply.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    text: Bytes,
}

/// An enhanced status code (RFC 3463): class, subject, detail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enhanced(pub u8, pub u16, pub u16);

impl Reply {
    /// The three digits, 200 to 599.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// The texts of its lines, separated by LF, as the server wrote them.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The texts of its lines.
    pub fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.text.split(|&octet| octet == b'\n')
    }

    /// The same code with `***` for a text.
    pub(super) fn without_text(&self) -> Self {
        Self { code: self.code, text: Bytes::from_static(b"***") }
    }

    /// 2yz.
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// 3yz: the server waits for more.
    pub fn is_intermediate(&self) -> bool {
        self.code / 100 == 3
    }

    /// 4yz: not now.
    pub fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }

    /// 5yz: never.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// The enhanced code at the start of the text (RFC 2034), if its class is
    /// that of the reply.
    pub fn enhanced(&self) -> Option<Enhanced> {
        let word = self.text.split(|octet| matches!(octet, b' ' | b'\n')).next()?;
        let word = std::str::from_utf8(word).ok()?;
        let mut parts = word.split('.');
        let class: u8 = parts.next()?.parse().ok()?;
        let subject = decimal(parts.next()?)?;
        let detail = decimal(parts.next()?)?;
        let whole = parts.next().is_none() && u16::from(class) == self.code / 100;
        whole.then_some(Enhanced(class, subject, detail))
    }

    /// The text for people: one line, printable, at most
    /// [`LONGEST`](crate::domain::text::LONGEST) characters.
    pub fn shown(&self) -> String {
        let spaced = |&octet: &u8| if octet == b'\n' { b' ' } else { octet };
        // Four octets a character, and some to be cut off.
        shown(self.text.iter().take(1024).map(spaced).collect::<Vec<_>>())
    }
}

fn decimal(digits: &str) -> Option<u16> {
    (matches!(digits.len(), 1..=3) && digits.bytes().all(|d| d.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code, self.shown())
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({self})")
    }
}

/// What arrived is no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A line that does not begin as a reply does.
    #[error("the server sent what is no reply: {0}")]
    Malformed(String),
    /// Lines of one reply with different codes.
    #[error("the server sent a reply whose lines have different codes ({0} and {1})")]
    Mixed(u16, u16),
    /// Beyond [`MAX_LINES`] or [`MAX_OCTETS`].
    #[error("the server sent a reply without end (over {MAX_LINES} lines or {MAX_OCTETS} octets)")]
    TooLong,
}

/// Takes octets, yields replies. Holds at most one unfinished reply.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Octets of the current line that hold no LF.
    scanned: usize,
    lines: usize,
    octets: usize,
    code: u16,
    text: Vec<u8>,
}

impl Decoder {
    /// Whether part of a reply has been taken.
    pub fn is_amid(&self) -> bool {
        self.lines > 0 || self.scanned > 0
    }

    /// Takes a reply from the front of `input`; `None` when more octets are
    /// needed. Lines may end in LF alone, and a code may stand without a
    /// space behind it.
    ///
    /// # Errors
    /// [`DecodeError`]; the connection is then of no use any more.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Reply>, DecodeError> {
        loop {
            let unseen = input.get(self.scanned..).unwrap_or_default();
            let Some(found) = memchr::memchr(b'\n', unseen) else {
                self.scanned = input.len();
                if self.octets + self.scanned > MAX_OCTETS {
                    return Err(DecodeError::TooLong);
                }
                return Ok(None);
            };
            let line = input.split_to(self.scanned + found + 1);
            self.scanned = 0;
            self.octets += line.len();
            self.lines += 1;
            if self.octets > MAX_OCTETS || self.lines > MAX_LINES {
                return Err(DecodeError::TooLong);
            }
            if let Some(reply) = self.line(&line.freeze())? {
                return Ok(Some(reply));
            }
        }
    }

    fn line(&mut self, line: &Bytes) -> Result<Option<Reply>, DecodeError> {
        let end = match line.as_ref() {
            [rest @ .., b'\r', b'\n'] | [rest @ .., b'\n'] | rest => rest.len(),
        };
        let (code, more) = match line.get(..end).unwrap_or_default() {
            [a @ b'2'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] => {
                let code = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
                match rest {
                    [] | [b' ', ..] => (code, false),
                    [b'-', ..] => (code, true),
                    _ => return Err(DecodeError::Malformed(shown(line.trim_ascii_end()))),
                }
            }
            other => return Err(DecodeError::Malformed(shown(other))),
        };
        if self.lines > 1 && code != self.code {
            return Err(DecodeError::Mixed(self.code, code));
        }
        self.code = code;
        let text = line.slice(end.min(4)..end);
        if more {
            self.text.extend_from_slice(&text);
            self.text.push(b'\n');
            return Ok(None);
        }
        let text = if self.text.is_empty() && self.lines == 1 {
            text
        } else {
            self.text.extend_from_slice(&text);
            Bytes::from(std::mem::take(&mut self.text))
        };
        (self.lines, self.octets) = (0, 0);
        Ok(Some(Reply { code, text }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(octets: &[u8]) -> Result<Vec<Reply>, DecodeError> {
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(octets));
        let mut out = Vec::new();
        while let Some(reply) = decoder.decode(&mut input)? {
            out.push(reply);
        }
        Ok(out)
    }

    #[test]
    fn replies_of_one_and_of_many_lines() {
        let replies = decode(b"250 2.1.0 Ok\r\n250-a\r\n250-B c\r\n250 d\r\n354 go\r\n").unwrap();
        assert_eq!(replies.len(), 3);
        assert_eq!(replies[0].enhanced(), Some(Enhanced(2, 1, 0)));
        assert_eq!(replies[1].lines().collect::<Vec<_>>(), [&b"a"[..], b"B c", b"d"]);
        assert!(replies[2].is_intermediate());
    }

    // quirks: "SIZE exceeded, 552, 452; ... `334` without a space (CVE-2025-61962)"
    #[test]
    fn a_code_without_a_space_and_a_line_without_cr() {
        let replies = decode(b"334\r\n334 \r\n220\n250-x\n250\n").unwrap();
        assert_eq!(replies.iter().map(Reply::code).collect::<Vec<_>>(), [334, 334, 220, 250]);
        assert_eq!(replies[0].text(), b"");
        assert_eq!(replies[3].text(), b"x\n");
    }

    #[test]
    fn what_is_no_reply_is_an_error_with_its_text_escaped() {
        for bad in
            [&b"\r\n"[..], b"25\r\n", b"199 no\r\n", b"600 no\r\n", b"2500 x\r\n", b"HTTP/1.1 400\x1b[2J\r\n"]
        {
            let error = decode(bad).unwrap_err();
            assert!(!error.to_string().contains(char::is_control), "{error:?}");
        }
        assert_eq!(decode(b"250-a\r\n550 b\r\n"), Err(DecodeError::Mixed(250, 550)));
    }

    // quirks: "An endless line, header, UIDL list, CAPA or EHLO answer"
    #[test]
    fn an_endless_reply_is_bounded() {
        assert_eq!(decode(&b"250-x\r\n".repeat(MAX_LINES + 1)), Err(DecodeError::TooLong));
        assert_eq!(decode(&vec![b'2'; MAX_OCTETS + 1]), Err(DecodeError::TooLong));
    }

    #[test]
    fn text_for_people_is_printable_and_short() {
        let reply =
            decode(&[b"550-\x07\xff \xc3\xbc\r\n550 ".as_slice(), &[b'x'; 400], b"\r\n"].concat()).unwrap();
        let text = reply[0].shown();
        assert!(text.starts_with("\\u{7}\\xff ü xxx"), "{text}");
        assert!(text.chars().count() <= crate::domain::text::LONGEST);
    }

    #[test]
    fn an_enhanced_code_counts_only_in_its_own_class() {
        let replies =
            decode(b"550 5.1.1 gone\r\n550 2.1.1 gone\r\n550 5.1 gone\r\n550 5.1.1.1 x\r\n").unwrap();
        assert_eq!(replies[0].enhanced(), Some(Enhanced(5, 1, 1)));
        assert!(replies[1..].iter().all(|reply| reply.enhanced().is_none()));
    }

    proptest! {
        #[test]
        fn any_octets_in_any_portions_decode_alike(
            octets in prop::collection::vec(prop_oneof![Just(b'2'), Just(b'5'), Just(b'-'), Just(b' '), Just(b'\r'), Just(b'\n'), any::<u8>()], 0..200),
            cuts in prop::collection::vec(1usize..9, 0..60),
        ) {
            let whole = decode(&octets);
            let (mut decoder, mut input, mut rest) = (Decoder::default(), BytesMut::new(), octets.as_slice());
            let mut cuts = cuts.into_iter();
            let mut out = Vec::new();
            let mut failed = None;
            while failed.is_none() && !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                rest = later;
                input.extend_from_slice(now);
                loop {
                    match decoder.decode(&mut input) {
                        Ok(Some(reply)) => out.push(reply),
                        Ok(None) => break,
                        Err(error) => { failed = Some(error); break; }
                    }
                }
            }
            match whole {
                Ok(replies) => { prop_assert!(failed.is_none()); prop_assert_eq!(out, replies); }
                Err(error) => prop_assert_eq!(failed, Some(error)),
            }
        }
    }
}
