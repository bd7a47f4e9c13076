//! APOP (RFC 1939, section 7): the challenge in the greeting and its answer.

use md5::{Digest as _, Md5};
use zeroize::Zeroizing;

/// Octets of the longest challenge that is taken.
const MAX_CHALLENGE: usize = 512;

/// The challenge in a greeting's text: a strict RFC 822 msg-id, angle
/// brackets included. Whatever else stands in brackets is none: a challenge
/// of an attacker's choice, with octets that no msg-id holds, would let him
/// compute the password from the answers (CVE-2007-1558).
pub(super) fn challenge(text: &[u8]) -> Option<&[u8]> {
    let start = text.iter().position(|octet| *octet == b'<')?;
    let len = text[start..].iter().position(|octet| *octet == b'>')? + 1;
    let challenge = &text[start..start + len];
    is_msg_id(challenge).then_some(challenge)
}

/// `"<" addr-spec ">"` of RFC 822, section 6.1, without blanks and comments.
fn is_msg_id(text: &[u8]) -> bool {
    if text.len() > MAX_CHALLENGE {
        return false;
    }
    let Some(inner) = text.strip_prefix(b"<").and_then(|rest| rest.strip_suffix(b">")) else {
        return false;
    };
    let Some(rest) = words(inner, quoted_string) else { return false };
    let Some(domain) = rest.strip_prefix(b"@") else { return false };
    words(domain, domain_literal).is_some_and(<[u8]>::is_empty)
}

/// What follows `word *("." word)`, a word being an atom or what `other`
/// takes.
fn words(mut text: &[u8], other: fn(&[u8]) -> Option<&[u8]>) -> Option<&[u8]> {
    loop {
        let atom = text.iter().take_while(|octet| is_atom(**octet)).count();
        text = if atom > 0 { &text[atom..] } else { other(text)? };
        match text.strip_prefix(b".") {
            Some(rest) => text = rest,
            None => return Some(text),
        }
    }
}

fn is_atom(octet: u8) -> bool {
    octet.is_ascii_graphic() && !b"()<>@,;:\\\".[]".contains(&octet)
}

fn quoted_string(text: &[u8]) -> Option<&[u8]> {
    enclosed(text, b'"', b'"')
}

fn domain_literal(text: &[u8]) -> Option<&[u8]> {
    enclosed(text, b'[', b']')
}

/// What follows printable ASCII between `open` and `close`, with `\` before
/// what would end it.
fn enclosed(text: &[u8], open: u8, close: u8) -> Option<&[u8]> {
    let (first, mut rest) = text.split_first()?;
    if *first != open {
        return None;
    }
    loop {
        let (octet, behind) = rest.split_first()?;
        rest = match *octet {
            octet if octet == close => return Some(behind),
            b'\\' => {
                let (quoted, behind) = behind.split_first()?;
                if !matches!(quoted, b' '..=b'~') {
                    return None;
                }
                behind
            }
            b'[' | b'<' | b'>' => return None,
            b' '..=b'~' => behind,
            _ => return None,
        };
    }
}

/// The MD5 of challenge and password, in lower-case hexadecimal digits.
pub(super) fn answer(challenge: &[u8], password: &[u8]) -> Zeroizing<String> {
    use std::fmt::Write as _;
    let mut digest = Md5::new();
    digest.update(challenge);
    digest.update(password);
    let mut hex = Zeroizing::new(String::with_capacity(32));
    for octet in digest.finalize() {
        // Writing to a String cannot fail.
        let _infallible = write!(hex, "{octet:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_is_answered() {
        let greeting = b"POP3 server ready <1896.697170952@dbc.mtview.ca.us>";
        let challenge = challenge(greeting).unwrap();
        assert_eq!(challenge, b"<1896.697170952@dbc.mtview.ca.us>");
        assert_eq!(answer(challenge, b"tanstaaf").as_str(), "c4c9334bac560ecc979e58001b3e22fb");
    }

    #[test]
    fn only_a_strict_msg_id_is_a_challenge() {
        // quirks: "APOP only with a strict RFC 822 msg-id in the banner (CVE-2007-1558)"
        for good in [
            &b"<1.2.5f.abc+/==@host>"[..],
            b"Dovecot ready. <3e9.1.68@mail.example>",
            b"<\"a b\"@[192.0.2.1]>",
        ] {
            assert!(challenge(good).is_some(), "{good:?}");
        }
        for bad in [
            &b"no challenge"[..],
            b"<>",
            b"<a>",
            b"<@b>",
            b"<a@>",
            b"<a@b",
            b"a@b>",
            b"<a b@c>",
            b"<a@b@c>",
            b"<a..b@c>",
            b"<.a@b>",
            b"<a@b.>",
            b"<a\xff@b>",
            b"<a\0@b>",
            b"<a\x80\x01@b>",
            b"<<a@b>",
            b"<a@b c>",
            b"<a,b@c>",
            b"<\"a@b>",
        ] {
            assert_eq!(challenge(bad), None, "{bad:?}");
        }
        let long = [b"<".as_slice(), &[b'a'; 600], b"@b>"].concat();
        assert_eq!(challenge(&long), None);
    }
}
