//! SMTP envelopes whose parts cannot hold what would break a command line.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A mail address that is safe inside `<…>` of MAIL FROM or RCPT TO: RFC 5321
/// `Mailbox`, or with UTF-8 its RFC 6531 form. No control characters, spaces
/// only inside a quoted local part, at most 64 + 1 + 255 octets.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mailbox {
    text: Arc<str>,
    at: usize,
}

/// Why a text is not a [`Mailbox`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MailboxError {
    /// There is no `@`, or nothing before or behind it.
    #[error("an address needs the form local@domain")]
    Form,
    /// Over 64 octets before the `@` or 255 behind it.
    #[error("the address is too long (64 octets before the @, 255 behind it)")]
    TooLong,
    /// A character that RFC 5321 does not allow there.
    #[error("the address holds a character that is not allowed in an SMTP envelope")]
    Character,
}

impl Mailbox {
    /// Parses `local@domain` (RFC 5321, section 4.1.2; UTF-8 as in RFC 6531).
    ///
    /// # Errors
    /// A [`MailboxError`] that says which rule is broken.
    pub fn parse(text: &str) -> Result<Self, MailboxError> {
        let at = text.rfind('@').ok_or(MailboxError::Form)?;
        let (local, domain) = (text.get(..at).unwrap_or(""), text.get(at + 1..).unwrap_or(""));
        if local.is_empty() || domain.is_empty() {
            return Err(MailboxError::Form);
        }
        if local.len() > 64 || domain.len() > 255 {
            return Err(MailboxError::TooLong);
        }
        if !(valid_local(local) && valid_domain(domain)) {
            return Err(MailboxError::Character);
        }
        Ok(Self { text: text.into(), at })
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What stands before the last `@`, quotes included.
    pub fn local(&self) -> &str {
        self.text.get(..self.at).unwrap_or("")
    }

    /// What stands behind it.
    pub fn domain(&self) -> &str {
        self.text.get(self.at + 1..).unwrap_or("")
    }

    /// The same mailbox with its domain as the domain name system has it: an
    /// internationalised one by its A-labels (RFC 5890, UTS 46), in lower case.
    /// One that has none stays as it is.
    #[must_use]
    pub fn with_ascii_domain(self) -> Self {
        if self.domain().is_ascii() {
            return self;
        }
        let text = format!("{}@{}", self.local(), domain_key(self.domain()));
        Self::parse(&text).unwrap_or(self)
    }

    /// Whether mail servers may read a further address out of the local part,
    /// and send the mail there: `%` (`user%elsewhere@here`), `!` (UUCP), or a
    /// quoted `@`.
    pub fn is_routed(&self) -> bool {
        self.local().contains(['%', '!', '@'])
    }

    /// Whether SMTPUTF8 is needed to transmit it (RFC 6531).
    pub fn needs_utf8(&self) -> bool {
        !self.text.is_ascii()
    }

    /// `local+detail@domain`, with `separator` in the place of `+`.
    ///
    /// # Errors
    /// When `detail` cannot stand in a local part, or makes it too long.
    pub fn with_detail(&self, separator: &str, detail: &str) -> Result<Self, MailboxError> {
        let local = self.local();
        let plain = detail.chars().all(|c| is_atext(c) || c == '.');
        let text = if plain && !local.starts_with('"') {
            format!("{local}{separator}{detail}@{}", self.domain())
        } else {
            let inner = local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
            let mut quoted = String::with_capacity(local.len() + detail.len() + 8);
            quoted.push('"');
            quoted.push_str(inner.unwrap_or(local));
            quoted.push_str(separator);
            for c in detail.chars() {
                if matches!(c, '"' | '\\') {
                    quoted.push('\\');
                }
                quoted.push(c);
            }
            quoted.push('"');
            format!("{quoted}@{}", self.domain())
        };
        Self::parse(&text)
    }
}

/// What names of one domain have in common: its A-labels (RFC 5890, UTS 46), in
/// lower case. What cannot be written so is in lower case.
pub fn domain_key(domain: &str) -> Cow<'_, str> {
    if domain.is_ascii() {
        return if domain.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(domain.to_ascii_lowercase())
        } else {
            Cow::Borrowed(domain)
        };
    }
    Cow::Owned(idna::domain_to_ascii(domain).unwrap_or_else(|_| domain.to_lowercase()))
}

fn is_atext(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || (!c.is_ascii() && !c.is_control())
}

fn valid_local(local: &str) -> bool {
    if let Some(inner) = local.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        let mut chars = inner.chars();
        while let Some(c) = chars.next() {
            let ok = match c {
                '\\' => chars.next().is_some_and(|next| matches!(next, ' '..='~')),
                '"' => false,
                c => !c.is_control(),
            };
            if !ok {
                return false;
            }
        }
        return !inner.is_empty();
    }
    local.split('.').all(|atom| !atom.is_empty() && atom.chars().all(is_atext))
}

fn valid_domain(domain: &str) -> bool {
    if let Some(inner) = domain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return inner.chars().all(|c| c.is_ascii_hexdigit() || matches!(c, ':' | '.' | 'I' | 'P' | 'v'));
    }
    domain.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| {
                c.is_ascii_alphanumeric() || matches!(c, '-' | '_') || (!c.is_ascii() && !c.is_control())
            })
    })
}

impl TryFrom<String> for Mailbox {
    type Error = MailboxError;

    fn try_from(text: String) -> Result<Self, MailboxError> {
        Self::parse(&text)
    }
}

impl From<Mailbox> for String {
    fn from(mailbox: Mailbox) -> Self {
        mailbox.as_str().to_owned()
    }
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}>", self.text)
    }
}

/// The reverse-path of an envelope; `None` is the null sender `<>`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReversePath(pub Option<Mailbox>);

/// Which delivery status notifications a recipient asks for (RFC 3461, 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notify {
    /// Nothing is said.
    #[default]
    Unsaid,
    /// `NOTIFY=NEVER`.
    Never,
    /// `NOTIFY=FAILURE`.
    Failure,
}

/// A forward-path with its DSN parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipient {
    /// Whom the message is for.
    pub address: Mailbox,
    /// What is to be reported.
    pub notify: Notify,
}

/// An SMTP envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// MAIL FROM.
    pub sender: ReversePath,
    /// RCPT TO; never empty.
    pub recipients: Vec<Recipient>,
    /// SIZE (RFC 1870), where known: octets with CRLF line ends, unstuffed.
    pub size: Option<u64>,
    /// The header holds UTF-8 (RFC 6532).
    pub utf8_header: bool,
    /// ENVID (RFC 3461, 4.4), where wanted.
    pub envid: Option<Arc<str>>,
    /// The recipients were found in a message, and the destination is to say
    /// which of them there are: nothing of the content goes out before all
    /// replies to RCPT are known, and a Maildir is not made for them.
    pub await_recipients: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_addresses_that_are_safe_in_an_envelope() {
        for good in [
            "a@b",
            "alice+x@example.com",
            "\"a b\"@example.com",
            "ü@exämple.de",
            "x@[192.0.2.1]",
            "\"a\\\"b\"@c.d",
        ] {
            assert!(Mailbox::parse(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn rejects_addresses_that_would_break_a_command() {
        for bad in [
            "",
            "a",
            "@b",
            "a@",
            "a b@c",
            "a@b c",
            "a@b>\r\nDATA",
            "a\0@b",
            "a@b\n",
            "<a@b>",
            "a..b@c",
            "a@-b",
            "\"a\"b\"@c",
            "a@b@c d",
        ] {
            assert!(Mailbox::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(Mailbox::parse(&format!("{}@b", "x".repeat(65))), Err(MailboxError::TooLong));
    }

    #[test]
    fn names_of_one_domain_are_equal_however_they_are_written() {
        for (written, key) in [
            ("example.com", "example.com"),
            ("EXAMPLE.com", "example.com"),
            ("exämple.com", "xn--exmple-cua.com"),
            ("EXÄMPLE.com", "xn--exmple-cua.com"),
            ("exa\u{308}mple.com", "xn--exmple-cua.com"),
            ("XN--Exmple-CUA.com", "xn--exmple-cua.com"),
            ("ｅｘａｍｐｌｅ．com", "example.com"),
            // No name of the domain name system.
            ("a\u{fffd}B.com", "a\u{fffd}b.com"),
        ] {
            assert_eq!(domain_key(written), key, "{written}");
        }
        let ascii = |text| Mailbox::parse(text).unwrap().with_ascii_domain().as_str().to_owned();
        assert_eq!(ascii("ü@exämple.com"), "ü@xn--exmple-cua.com");
        assert_eq!(ascii("A@Example.COM"), "A@Example.COM");
        assert_eq!(ascii("a@x\u{fffd}.com"), "a@x\u{fffd}.com");
    }

    #[test]
    fn local_parts_that_lead_elsewhere_are_known() {
        for routed in [
            "evil%foreign.test@a.test",
            "foreign.test!evil@a.test",
            "\"evil@foreign.test\"@a.test",
            "\"@f:e\"@a",
        ] {
            assert!(Mailbox::parse(routed).unwrap().is_routed(), "{routed}");
        }
        for plain in ["alice@a.test", "alice+tag=x@a.test", "\"a b\"@a.test", "SRS0=x=y=f.test=u@a.test"] {
            assert!(!Mailbox::parse(plain).unwrap().is_routed(), "{plain}");
        }
    }

    #[test]
    fn detail_is_quoted_where_it_must_be() {
        let alice = Mailbox::parse("alice@example.com").unwrap();
        assert_eq!(alice.with_detail("+", "Archive").unwrap().as_str(), "alice+Archive@example.com");
        assert_eq!(alice.with_detail("+", "My Mail").unwrap().as_str(), "\"alice+My Mail\"@example.com");
        assert_eq!(alice.with_detail("+", "a\"b").unwrap().as_str(), "\"alice+a\\\"b\"@example.com");
        assert!(alice.with_detail("+", "a\r\nb").is_err());
    }
}
