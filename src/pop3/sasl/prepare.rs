//! SASLprep (RFC 4013) of names and passwords.

use std::borrow::Cow;

use zeroize::Zeroizing;

/// A password as SCRAM wants it. What cannot be prepared goes as it is, as
/// other clients do it: a server that took such a password did not prepare it
/// either.
pub(super) fn password(octets: &[u8]) -> Zeroizing<Vec<u8>> {
    let prepared = std::str::from_utf8(octets).ok().and_then(|text| stringprep::saslprep(text).ok());
    Zeroizing::new(match prepared {
        Some(Cow::Owned(text)) if !text.is_empty() => text.into_bytes(),
        _ => octets.to_vec(),
    })
}

/// A user name, likewise.
pub(super) fn name(text: &str) -> Cow<'_, str> {
    match stringprep::saslprep(text) {
        Ok(prepared) if !prepared.is_empty() => prepared,
        _ => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_of_the_rfc_are_prepared() {
        for (given, prepared) in
            [("I\u{ad}X", "IX"), ("user", "user"), ("USER", "USER"), ("\u{aa}", "a"), ("\u{2168}", "IX")]
        {
            assert_eq!(name(given), prepared);
            assert_eq!(password(given.as_bytes()).as_slice(), prepared.as_bytes());
        }
    }

    #[test]
    fn what_cannot_be_prepared_goes_as_it_is() {
        for octets in [&b"\x07"[..], "\u{627}1".as_bytes(), b"caf\xe9", "\u{ad}".as_bytes()] {
            assert_eq!(password(octets).as_slice(), octets);
        }
        assert_eq!(name("\u{7}"), "\u{7}");
    }
}
