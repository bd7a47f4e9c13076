//! Single-line replies (RFC 1939, section 3) and their response codes
//! (RFC 2449, section 8; RFC 3206).

use std::fmt;

use bytes::Bytes;

use crate::domain::text::shown;

/// `+OK` or `-ERR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `+OK`.
    Ok,
    /// `-ERR`; also `+ERR`, which some servers say.
    Err,
}

/// What a refusal is about, from the `[…]` at the start of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCode {
    /// `[IN-USE]`: another session has the maildrop (RFC 2449, 8.1.2).
    InUse,
    /// `[LOGIN-DELAY]`: logged in again too soon (RFC 2449, 8.1.1).
    LoginDelay,
    /// `[SYS/TEMP]`: passing trouble of the server (RFC 3206, 4).
    SysTemp,
    /// `[SYS/PERM]`: lasting trouble, a person must act (RFC 3206, 4).
    SysPerm,
    /// `[AUTH]`: the credentials (RFC 3206, 5).
    Auth,
    /// `[UTF8]`: the maildrop needs UTF8 mode (RFC 6856, 5).
    Utf8,
    /// Some other.
    Other,
}

impl ResponseCode {
    /// From what stands between the brackets. A sub-level that is not known
    /// counts as the level above it (RFC 2449, section 8).
    fn parse(code: &[u8]) -> Self {
        let mut levels = code.split(|octet| *octet == b'/');
        let is = |level: Option<&[u8]>, name: &[u8]| level.is_some_and(|l| l.eq_ignore_ascii_case(name));
        let first = levels.next();
        let second = levels.next();
        match () {
            () if is(first, b"IN-USE") => Self::InUse,
            () if is(first, b"LOGIN-DELAY") => Self::LoginDelay,
            () if is(first, b"SYS") && is(second, b"PERM") => Self::SysPerm,
            () if is(first, b"SYS") => Self::SysTemp,
            () if is(first, b"AUTH") => Self::Auth,
            () if is(first, b"UTF8") => Self::Utf8,
            () => Self::Other,
        }
    }
}

/// A single-line reply.
#[derive(Clone, PartialEq, Eq)]
pub struct Reply {
    /// `+OK` or `-ERR`.
    pub status: Status,
    /// The response code, if the text begins with one.
    pub code: Option<ResponseCode>,
    /// What stands behind the status and the blanks after it, as the server
    /// sent it; at most [`Reply::MAX_LINE`] octets. For logs use
    /// [`Reply::text`] only through `Display`.
    pub text: Bytes,
}

impl Reply {
    /// Octets of the longest status line that is accepted, its line end
    /// included. RFC 2449, section 4 says 512.
    pub const MAX_LINE: usize = 4096;

    /// Parses a line without its line end; `None` if it is no status line.
    pub fn parse(line: &Bytes) -> Option<Self> {
        let (status, len) = match line.get(..4) {
            Some(word) if word.eq_ignore_ascii_case(b"-ERR") || word.eq_ignore_ascii_case(b"+ERR") => {
                (Status::Err, 4)
            }
            _ if line.get(..3).is_some_and(|word| word.eq_ignore_ascii_case(b"+OK")) => (Status::Ok, 3),
            _ => return None,
        };
        if line.get(len).is_some_and(u8::is_ascii_alphanumeric) {
            return None;
        }
        let rest = &line[len..];
        let blanks = rest.iter().take_while(|octet| matches!(octet, b' ' | b'\t')).count();
        let text = line.slice(len + blanks..);
        let code = text.strip_prefix(b"[").and_then(|inner| {
            let end = inner.iter().position(|octet| *octet == b']')?;
            Some(ResponseCode::parse(&inner[..end]))
        });
        Some(Self { status, code, text })
    }

    /// The same with a text of its own: a reply that is kept must not keep the
    /// buffer that it was read into.
    pub(super) fn detached(self) -> Self {
        Self { text: Bytes::copy_from_slice(&self.text), ..self }
    }

    /// Whether it is `+OK`.
    pub fn is_ok(&self) -> bool {
        self.status == Status::Ok
    }

    /// The first two numbers of the text, as STAT and LIST n have them; `None`
    /// where there are not two, or one of them is not a number below 2^64.
    pub fn numbers(&self) -> Option<(u64, u64)> {
        let mut words = self.text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        Some((number(words.next()?)?, number(words.next()?)?))
    }
}

/// Digits as a number; `None` for anything else or too large a number.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| match digit {
        b'0'..=b'9' => sum.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

impl fmt::Display for Reply {
    /// As for logs: escaped and capped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = if self.is_ok() { "+OK" } else { "-ERR" };
        if self.text.is_empty() { f.write_str(status) } else { write!(f, "{status} {}", shown(&self.text)) }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &'static [u8]) -> Option<Reply> {
        Reply::parse(&Bytes::from_static(line))
    }

    #[test]
    fn replies_are_understood_as_servers_send_them() {
        // quirks: "`+OK` without text; `+ERR`; a reply without CRLF; EOF anywhere."
        assert!(parse(b"+OK").unwrap().is_ok());
        assert!(parse(b"+OK ").unwrap().text.is_empty());
        assert!(parse(b"+ok lower").unwrap().is_ok());
        assert!(parse(b"+OK, fine").unwrap().is_ok());
        assert!(!parse(b"+ERR no").unwrap().is_ok());
        assert!(!parse(b"-ERR").unwrap().is_ok());
        for no_reply in [&b""[..], b"+", b"+O", b"OK", b"+OKAY", b"-OK", b" +OK", b"* OK", b"-ERROR"] {
            assert_eq!(Reply::parse(&Bytes::from_static(no_reply)), None, "{no_reply:?}");
        }
    }

    #[test]
    fn response_codes_are_told_apart() {
        // quirks: "Response codes (RFC 2449, RFC 3206)"
        for (line, code) in [
            (&b"-ERR [IN-USE] locked"[..], Some(ResponseCode::InUse)),
            (b"-ERR [in-use]", Some(ResponseCode::InUse)),
            (b"-ERR [LOGIN-DELAY] wait", Some(ResponseCode::LoginDelay)),
            (b"-ERR [SYS/TEMP] disk", Some(ResponseCode::SysTemp)),
            (b"-ERR [SYS/TEMP/DISK] disk", Some(ResponseCode::SysTemp)),
            (b"-ERR [SYS/PERM] gone", Some(ResponseCode::SysPerm)),
            (b"-ERR [AUTH] wrong", Some(ResponseCode::Auth)),
            (b"+OK [UTF8] on", Some(ResponseCode::Utf8)),
            (b"-ERR [X-NEW] what", Some(ResponseCode::Other)),
            (b"-ERR [AUTH wrong", None),
            (b"-ERR wrong [AUTH]", None),
        ] {
            assert_eq!(parse(line).unwrap().code, code, "{line:?}");
        }
    }

    #[test]
    fn numbers_are_read_without_overflow() {
        assert_eq!(parse(b"+OK 3 1200").unwrap().numbers(), Some((3, 1200)));
        assert_eq!(parse(b"+OK  3   1200 octets").unwrap().numbers(), Some((3, 1200)));
        assert_eq!(parse(b"+OK 3").unwrap().numbers(), None);
        assert_eq!(parse(b"+OK 3 -1").unwrap().numbers(), None);
        assert_eq!(parse(b"+OK 3 18446744073709551616").unwrap().numbers(), None);
    }
}
