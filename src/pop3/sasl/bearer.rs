//! Access tokens of OAuth 2.0: OAUTHBEARER (RFC 7628) and XOAUTH2, which was
//! there before it and is all that some providers know.

use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{Malformed, scram};
use crate::domain::text::shown;

/// Between the fields of a message.
const SEPARATOR: u8 = 1;

/// The message of XOAUTH2.
pub fn xoauth2(user: &str, token: &str) -> Zeroizing<Vec<u8>> {
    joined(&[b"user=", user.as_bytes(), b"\x01auth=Bearer ", token.as_bytes(), b"\x01\x01"])
}

/// The message of OAUTHBEARER (RFC 7628, section 3.1), for a server that was
/// connected to as `host` and `port`.
pub fn oauthbearer(user: &str, host: &str, port: u16, token: &str) -> Zeroizing<Vec<u8>> {
    let (user, port) = (scram::escaped(user), port.to_string());
    joined(&[
        b"n,a=",
        user.as_bytes(),
        b",\x01host=",
        host.as_bytes(),
        b"\x01port=",
        port.as_bytes(),
        b"\x01auth=Bearer ",
        token.as_bytes(),
        b"\x01\x01",
    ])
}

fn joined(parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let mut message = Zeroizing::new(Vec::with_capacity(parts.iter().map(|part| part.len()).sum()));
    for part in parts {
        message.extend_from_slice(part);
    }
    message
}

/// Whether a token can be sent: printable ASCII, as RFC 6750, section 2.1 has
/// it, though not only the characters named there.
pub fn is_token(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|octet| octet.is_ascii_graphic())
}

/// Whether a user name leaves the message's fields apart.
pub fn is_name(user: &str) -> bool {
    !user.bytes().any(|octet| octet == SEPARATOR)
}

/// Why a server did not take a token (RFC 7628, section 3.2.2). All texts are
/// the server's: escaped and capped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `invalid_token`, `insufficient_scope`, or a number of HTTP, as
    /// providers send it.
    pub status: Option<String>,
    /// The scope that a token needs.
    pub scope: Option<String>,
    /// All of the object.
    pub text: String,
}

impl Refusal {
    /// Reads the challenge that a server sends in place of a refusal: one
    /// JSON object.
    ///
    /// # Errors
    /// [`Malformed`] for anything else.
    pub fn parse(json: &[u8]) -> Result<Self, Malformed> {
        let object: Map<String, Value> = serde_json::from_slice(json)
            .map_err(|_| Malformed("the server's reason is not a JSON object"))?;
        let word = |name: &str| match object.get(name) {
            Some(Value::String(text)) => Some(shown(text)),
            Some(Value::Number(number)) => Some(shown(number.to_string())),
            _ => None,
        };
        Ok(Self { status: word("status"), scope: word("scope"), text: shown(json) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_the_documents() {
        // Google's and Microsoft's example.
        assert_eq!(
            xoauth2("someuser@example.com", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg").as_slice(),
            b"user=someuser@example.com\x01auth=Bearer ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg\x01\x01"
        );
        // RFC 7628, section 4.1.
        assert_eq!(
            oauthbearer(
                "user@example.com",
                "server.example.com",
                143,
                "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
            )
            .as_slice(),
            b"n,a=user@example.com,\x01host=server.example.com\x01port=143\x01\
              auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
        );
        assert!(oauthbearer("a,b=c", "h", 1, "t").starts_with(b"n,a=a=2Cb=3Dc,\x01"));
    }

    #[test]
    fn a_token_that_would_end_its_field_is_none() {
        assert!(is_token("eyJhbGciOi.J9-_~+/=="));
        for bad in ["", "a b", "a\r\nDELE 1", "a\u{1}auth=Bearer b", "a\0", "t\u{f6}ken"] {
            assert!(!is_token(bad), "{bad:?}");
        }
        assert!(is_name("user@example.com") && !is_name("u\u{1}auth=x"));
    }

    #[test]
    fn a_refusal_is_read_and_cannot_harm_a_log() {
        let read = Refusal::parse(
            br#"{"status":"invalid_token","scope":"a b","openid-configuration":"https://x/"}"#,
        );
        let refusal = read.unwrap();
        assert_eq!(
            (refusal.status.as_deref(), refusal.scope.as_deref()),
            (Some("invalid_token"), Some("a b"))
        );
        assert!(refusal.text.contains("openid-configuration"));
        // Microsoft's and Google's.
        let read =
            Refusal::parse(br#"{"status":"401","schemes":"bearer mac","scope":"https://mail.google.com/"}"#);
        assert_eq!(read.unwrap().status.as_deref(), Some("401"));
        assert_eq!(Refusal::parse(br#"{"status":400}"#).unwrap().status.as_deref(), Some("400"));

        let hostile = Refusal::parse(b"{\"status\":\"\\u001b[2J\\n\",\"scope\":[1]}").unwrap();
        assert_eq!((hostile.status.as_deref(), hostile.scope), (Some("\\u{1b}[2J\\n"), None));
        let long = format!(r#"{{"status":"{}"}}"#, "x".repeat(9000));
        let long = Refusal::parse(long.as_bytes()).unwrap();
        assert_eq!(long.text.chars().count(), 200);
        assert_eq!(long.status.unwrap().chars().count(), 200);
    }

    #[test]
    fn what_is_no_json_object_is_no_reason() {
        let deep = [vec![b'['; 9000], b"1".to_vec(), vec![b']'; 9000]].concat();
        let nested = [br#"{"a":"#.repeat(1000), b"1".to_vec(), b"}".repeat(1000)].concat();
        for bad in [
            &b""[..],
            b"[]",
            b"null",
            b"{",
            b"{}x",
            b"\"x\"",
            b"{\"a\":\xff}",
            b"{'status':1}",
            &deep,
            &nested,
        ] {
            assert!(Refusal::parse(bad).is_err());
        }
    }
}
