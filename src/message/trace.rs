//! Our trace header (RFC 5321, section 4.4), and how we know it again.

use std::fmt::Write as _;
use std::hash::Hasher as _;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use siphasher::sip128::{Hasher128 as _, SipHasher24};

use crate::domain::envelope::Mailbox;

/// What a trace header says, and for whom loops are looked for.
#[derive(Clone, Debug)]
pub struct TraceContext {
    /// The remote host as in the manifest: a name or an address literal.
    pub remote_host: Arc<str>,
    /// The address that was connected to.
    pub remote_address: Option<IpAddr>,
    /// This host.
    pub host_name: Arc<str>,
    /// TLS protected the session: `POP3S`.
    pub encrypted: bool,
    /// The local account that gets the mail.
    pub account: Mailbox,
    /// The recipients of the envelope: a Delivered-To with one of them is
    /// removed.
    pub recipients: Vec<Mailbox>,
    /// Keys the mark by which this installation knows its own traces. The
    /// same for all records and processes of an installation, kept over
    /// restarts, and not public: a stranger who knew it could have a message
    /// taken for a loop.
    pub key: [u8; 16],
}

/// The trace header of one session, ready but for its date.
#[derive(Clone, Debug)]
pub struct Trace {
    head: Box<str>,
    mark: Box<str>,
    recipients: Box<[Mailbox]>,
}

impl Trace {
    /// Prepares the header for all messages of a session.
    pub fn new(context: &TraceContext) -> Self {
        let mark = mark(&context.key, &context.account);
        let mut head = String::with_capacity(256);
        head.push_str("Received: from ");
        push_host(&mut head, &context.remote_host);
        if let Some(address) = context.remote_address {
            head.push_str(" (");
            push_literal(&mut head, address);
            head.push(')');
        }
        head.push_str("\r\n\tby ");
        push_host(&mut head, &context.host_name);
        head.push_str(if context.encrypted { " with POP3S" } else { " with POP3" });
        write!(head, " (RPOP {}, {mark})\r\n\t", env!("CARGO_PKG_VERSION")).unwrap_or_default();
        // UTF-8 here would make SMTPUTF8 necessary for a message that does
        // not need it itself.
        if !context.account.needs_utf8() {
            write!(head, "for <{}>", context.account).unwrap_or_default();
        }
        head.push_str("; ");
        Self {
            head: head.into_boxed_str(),
            mark: mark.into_boxed_str(),
            recipients: context.recipients.clone().into_boxed_slice(),
        }
    }

    /// The whole header field with its line ends, dated `now`.
    pub(super) fn field(&self, now: Timestamp) -> Bytes {
        let date = jiff::fmt::rfc2822::to_string(&now.to_zoned(TimeZone::UTC));
        let date = date.as_deref().unwrap_or("Thu, 1 Jan 1970 00:00:00 +0000");
        let mut field = BytesMut::with_capacity(self.head.len() + date.len() + 4);
        for part in [&self.head, date, "\r\n"] {
            field.extend_from_slice(part.as_bytes());
        }
        field.freeze()
    }

    /// Whether a Received field is a trace of ours for the same account.
    pub(super) fn is_own(&self, value: &[u8]) -> bool {
        memchr::memmem::find(value, self.mark.as_bytes()).is_some()
    }

    /// Whether `address` is an envelope recipient. Both parts are compared
    /// without regard to case, as Postfix does before it bounces.
    pub(super) fn is_recipient(&self, address: &str) -> bool {
        self.recipients.iter().any(|one| {
            one.as_str().eq_ignore_ascii_case(address)
                || (one.needs_utf8() && one.as_str().to_lowercase() == address.to_lowercase())
        })
    }
}

/// 32 hexadecimal digits that only this installation makes for this account.
fn mark(key: &[u8; 16], account: &Mailbox) -> String {
    let mut hasher = SipHasher24::new_with_key(key);
    hasher.write(b"rpop trace\0");
    hasher.write(account.as_str().to_lowercase().as_bytes());
    format!("{:032x}", hasher.finish128().as_u128())
}

/// A host name, or an address as a literal, in printable ASCII without blanks.
pub(super) fn push_host(out: &mut String, host: &str) {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse::<IpAddr>() {
        push_literal(out, address);
        return;
    }
    if bare.is_empty() {
        out.push_str("unknown");
        return;
    }
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' };
    out.extend(bare.chars().take(255).map(safe));
}

/// An address literal (RFC 5321, section 4.1.3).
fn push_literal(out: &mut String, address: IpAddr) {
    match address.to_canonical() {
        IpAddr::V4(v4) => write!(out, "[{v4}]"),
        IpAddr::V6(v6) => write!(out, "[IPv6:{v6}]"),
    }
    .unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> TraceContext {
        TraceContext {
            remote_host: "pop.isp.example".into(),
            remote_address: Some("192.0.2.1".parse().unwrap()),
            host_name: "mx.example.com".into(),
            encrypted: true,
            account: Mailbox::parse("Alice@example.com").unwrap(),
            recipients: vec![],
            key: [7; 16],
        }
    }

    fn text(context: &TraceContext) -> String {
        let now = "2026-11-23T17:35:52.25Z".parse().unwrap();
        String::from_utf8(Trace::new(context).field(now).to_vec()).unwrap()
    }

    #[test]
    fn it_reads_as_rfc_5321_wants() {
        let got = text(&context());
        let mark = mark(&[7; 16], &context().account);
        assert_eq!(
            got,
            format!(
                "Received: from pop.isp.example ([192.0.2.1])\r\n\tby mx.example.com with POP3S (RPOP {}, \
                 {mark})\r\n\tfor <Alice@example.com>; Mon, 23 Nov 2026 17:35:52 +0000\r\n",
                env!("CARGO_PKG_VERSION")
            )
        );
    }

    #[test]
    fn hosts_cannot_break_the_line_and_literals_are_bracketed() {
        let mut context = context();
        context.remote_host = "2001:db8::1".into();
        context.remote_address = Some("::ffff:192.0.2.9".parse().unwrap());
        context.host_name = "a\r\nBcc: x".into();
        context.encrypted = false;
        let got = text(&context);
        assert!(
            got.starts_with("Received: from [IPv6:2001:db8::1] ([192.0.2.9])\r\n\tby a--Bcc--x with POP3 (")
        );
        context.remote_host = "".into();
        context.account = Mailbox::parse("älice@example.com").unwrap();
        let got = text(&context);
        assert!(got.is_ascii() && got.contains("from unknown (") && !got.contains("for <"), "{got}");
    }

    #[test]
    fn the_mark_is_of_the_installation_and_the_account() {
        let trace = Trace::new(&context());
        let now = Timestamp::UNIX_EPOCH;
        assert!(trace.is_own(&trace.field(now)));
        let mut other = context();
        other.account = Mailbox::parse("alice@EXAMPLE.com").unwrap();
        assert!(trace.is_own(&Trace::new(&other).field(now)));
        other.account = Mailbox::parse("bob@example.com").unwrap();
        assert!(!trace.is_own(&Trace::new(&other).field(now)));
        other = context();
        other.key = [8; 16];
        assert!(!trace.is_own(&Trace::new(&other).field(now)));
    }
}
