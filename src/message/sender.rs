//! The envelope sender that a header tells of: DESIGN, "Envelope". Whatever
//! stands there, the outcome is a valid address or the null sender.

use mail_parser::HeaderValue;
use mail_parser::parsers::MessageStream;

use crate::domain::envelope::{Mailbox, ReversePath};

/// A longer Return-Path holds no address: RFC 5321, section 4.5.3.1.3, allows
/// 256 octets.
const LONGEST_PATH: usize = 4096;

/// As much of a Sender or From is looked at.
const LONGEST_LIST: usize = 8192;

/// The value of a Return-Path, line ends included. What is no address becomes
/// the null sender: nobody is to get reports about it.
pub(super) fn return_path(value: &[u8]) -> ReversePath {
    ReversePath(path(value))
}

fn path(value: &[u8]) -> Option<Mailbox> {
    if value.len() > LONGEST_PATH {
        return None;
    }
    let text = std::str::from_utf8(value).ok()?;
    let text = unfolded(text);
    let text = text.trim_matches([' ', '\t']);
    let inner = match text.split_once('<') {
        Some((_, rest)) => rest.rsplit_once('>')?.0.trim_matches([' ', '\t']),
        None => text,
    };
    // A source route is to be stripped (RFC 5321, appendix C).
    let inner = if inner.starts_with('@') { inner.split_once(':')?.1 } else { inner };
    Mailbox::parse(inner).ok()
}

/// Without line ends and the white space that folding put behind them: a long
/// address may have been broken there.
fn unfolded(text: &str) -> String {
    let mut lines = text.split("\r\n");
    let mut out = lines.next().unwrap_or("").to_owned();
    for line in lines {
        out.push_str(line.trim_start_matches([' ', '\t']));
    }
    out
}

/// The first address of a Sender or From, if it fits an envelope.
pub(super) fn first_address(value: &[u8]) -> Option<Mailbox> {
    let value = value.get(..value.len().min(LONGEST_LIST)).unwrap_or(value);
    let HeaderValue::Address(list) = MessageStream::new(value).parse_address() else { return None };
    let address = list.iter().find_map(|one| one.address())?;
    Mailbox::parse(address.trim()).ok().or_else(|| quoted(address))
}

/// `address` with quotes around its local part, where a parser took them off.
pub(super) fn quoted(address: &str) -> Option<Mailbox> {
    let (local, domain) = address.rsplit_once('@')?;
    let mut text = String::with_capacity(address.len() + 4);
    text.push('"');
    for c in local.chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push_str("\"@");
    text.push_str(domain);
    Mailbox::parse(&text).ok()
}

/// The address in a Delivered-To.
pub(super) fn delivered_to(value: &[u8]) -> Option<String> {
    if value.len() > LONGEST_PATH {
        return None;
    }
    let text = unfolded(std::str::from_utf8(value).ok()?);
    let text = text.trim_matches([' ', '\t']);
    Some(text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>')).unwrap_or(text).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(path: ReversePath) -> String {
        path.0.map_or_else(|| "<>".to_owned(), |one| one.to_string())
    }

    #[test]
    fn every_shape_of_return_path_is_an_address_or_null() {
        // quirks: "Return-Path with spaces, CR, NUL, folded, 600 characters, UTF-8 without SMTPUTF8, source route, `<>`"
        let long = format!("<{}@example.com>", "x".repeat(600));
        for (value, expected) in [
            (" <a@b.example>\r\n", "a@b.example"),
            (" a@b.example\r\n", "a@b.example"),
            ("\t< a@b.example >  \r\n", "a@b.example"),
            ("\r\n <a@b.example>\r\n", "a@b.example"),
            (" <a-very-long-name\r\n\t@b.example>\r\n", "a-very-long-name@b.example"),
            (" <@a.example,@b.example:c@d.example>\r\n", "c@d.example"),
            (" <\"a b\"@c.example>\r\n", "\"a b\"@c.example"),
            (" <ü@exämple.de>\r\n", "ü@exämple.de"),
            (" <a@b.example> (envelope sender)\r\n", "a@b.example"),
            (" <>\r\n", "<>"),
            (" < >\r\n", "<>"),
            ("\r\n", "<>"),
            ("", "<>"),
            (" <MAILER-DAEMON>\r\n", "<>"),
            (" <a b@c.example>\r\n", "<>"),
            (" <a@b c.example>\r\n", "<>"),
            (" <a\0@b.example>\r\n", "<>"),
            (" <a\r@b.example>\r\n", "<>"),
            (" <a@b.example> SIZE=1\r\n", "a@b.example"),
            (" <a@b.example\r\n", "<>"),
            (" <@a:@b>\r\n", "<>"),
            (" <@a>\r\n", "<>"),
            (" <a@b>,<c@d>\r\n", "<>"),
            (" <a @ b.example>\r\n", "<>"),
            (" \t \r\n\t \r\n", "<>"),
            ("\r\n\t<a@b.exam\r\n ple>\r\n\t(folded\r\n twice)\r\n", "a@b.example"),
            (" <@a.example :a@b.example>\r\n", "a@b.example"),
            (" <@a.example:<a@b.example>>\r\n", "<>"),
            (" <a@b.example>\0\r\n", "a@b.example"),
            (" <\0>\r\n", "<>"),
            (" \0\r\n", "<>"),
            (" <a@b.example\r\n RCPT TO:<c@d.example>\r\n", "<>"),
            (" <a@b.example>\r\n\tRCPT TO:<c@d.example>\r\n", "<>"),
            (" <\"a>b\"@c.example>\r\n", "\"a>b\"@c.example"),
            (" <\u{7f}@b.example>\r\n", "<>"),
            (" <a\u{85}@b.example>\r\n", "<>"),
            (" <用户@例子.广告>\r\n", "用户@例子.广告"),
            (&format!(" <a@{}example>\r\n", "x.".repeat(300)), "<>"),
            (&format!(" {}<a@b.example>\r\n", " ".repeat(600)), "a@b.example"),
            (&format!(" <a@b.example> ({})\r\n", "x".repeat(600)), "a@b.example"),
            (
                &format!(" <{}a@b.example>\r\n", "@relay.example,".repeat(40) + "@last.example:"),
                "a@b.example",
            ),
            (&format!(" {long}\r\n"), "<>"),
        ] {
            assert_eq!(shown(return_path(value.as_bytes())), expected, "{value:?}");
        }
        let utf8 = return_path(" <ü@b.example>\r\n".as_bytes()).0.unwrap();
        assert!(utf8.needs_utf8(), "who sends it knows that it must not without SMTPUTF8");
        assert_eq!(return_path(b" <\xff@b.example>\r\n"), ReversePath(None));
        assert_eq!(return_path(&vec![b' '; 1 << 20]), ReversePath(None));
    }

    #[test]
    fn the_first_address_of_a_list_is_taken() {
        for (value, expected) in [
            (" Alice <alice@example.com>, bob@example.com\r\n", Some("alice@example.com")),
            (" alice@example.com (Alice)\r\n", Some("alice@example.com")),
            (" \"Last, First\" <l.f@example.com>\r\n", Some("l.f@example.com")),
            (" =?utf-8?q?J=C3=BCrgen?=\r\n\t<j@example.com>\r\n", Some("j@example.com")),
            (" Team: a@example.com, b@example.com;\r\n", Some("a@example.com")),
            (" A <\"a b\"@example.com>\r\n", Some("\"a b\"@example.com")),
            (" undisclosed-recipients:;\r\n", None),
            (" nobody\r\n", None),
            ("\r\n", None),
            ("", None),
        ] {
            let got = first_address(value.as_bytes());
            assert_eq!(got.as_ref().map(Mailbox::as_str), expected, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn no_octets_make_an_invalid_sender(value in proptest::collection::vec(any::<u8>(), 0..400)) {
            for got in [return_path(&value).0, first_address(&value)].into_iter().flatten() {
                prop_assert!(!got.as_str().contains(['\r', '\n', '\0', '>']) || got.local().starts_with('"'));
                prop_assert!(!got.as_str().chars().any(char::is_control));
            }
        }
    }
}
