//! CRAM-MD5 (RFC 2195).

use hmac::{Hmac, KeyInit as _, Mac as _};
use md5::Md5;
use zeroize::Zeroizing;

use super::{Malformed, hex};

/// Octets of the longest challenge that is taken.
const MAX: usize = 512;

/// What the server wants to see digested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge(Vec<u8>);

impl Challenge {
    /// Reads a decoded challenge: printable ASCII in angle brackets, as a
    /// msg-id is written (RFC 2195, section 2). More is not asked: HMAC is not
    /// to be broken by a challenge of the server's choice, as APOP is, and
    /// real servers put host names with an underscore or none at all there.
    ///
    /// # Errors
    /// [`Malformed`] says which part is not so.
    pub fn parse(text: &[u8]) -> Result<Self, Malformed> {
        if text.is_empty() {
            return Err(Malformed("the challenge is empty"));
        }
        if text.len() > MAX {
            return Err(Malformed("the challenge is longer than 512 octets"));
        }
        let inner = text.strip_prefix(b"<").and_then(|rest| rest.strip_suffix(b">"));
        let Some(inner) = inner else {
            return Err(Malformed("the challenge does not stand in angle brackets"));
        };
        if inner.is_empty() {
            return Err(Malformed("nothing stands in the challenge's angle brackets"));
        }
        if !inner.iter().all(|octet| octet.is_ascii_graphic() && !matches!(octet, b'<' | b'>')) {
            return Err(Malformed("the challenge holds more than printable ASCII"));
        }
        Ok(Self(text.to_vec()))
    }

    /// The name, a blank, and the HMAC-MD5 of the challenge under the password.
    pub fn answer(&self, user: &str, password: &[u8]) -> Zeroizing<Vec<u8>> {
        let mut mac = Hmac::<Md5>::new_from_slice(password).expect("HMAC takes keys of any length");
        mac.update(&self.0);
        let digest = hex(&mac.finalize().into_bytes());
        let mut answer = Zeroizing::new(Vec::with_capacity(user.len() + 1 + digest.len()));
        answer.extend_from_slice(user.as_bytes());
        answer.push(b' ');
        answer.extend_from_slice(digest.as_bytes());
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc_is_answered() {
        let challenge = Challenge::parse(b"<1896.697170952@postoffice.reston.mci.net>").unwrap();
        let answer = challenge.answer("tim", b"tanstaaftanstaaf");
        assert_eq!(answer.as_slice(), b"tim b913a602c7eda7a495b4e6e7334d3890");
    }

    #[test]
    fn a_long_password_is_a_key_too() {
        // RFC 2202, section 2, test case 6: a key longer than a block.
        let mut mac = Hmac::<Md5>::new_from_slice(&[0xaa; 80]).unwrap();
        mac.update(b"Test Using Larger Than Block-Size Key - Hash Key First");
        assert_eq!(hex(&mac.finalize().into_bytes()).as_str(), "6b1ab7fe4bd7bf8f0b62e6ce61b9d0cd");
    }

    #[test]
    fn what_is_no_challenge_is_refused() {
        let long = [&b"<"[..], &[b'x'; 511], b">"].concat();
        for bad in [
            &b""[..],
            b"<>",
            b"<a@b",
            b"a@b>",
            b"1.2@h",
            b"<a b@c>",
            b"<a@b>\r\n",
            b"<a\0@b>",
            b"<\xff@b>",
            b"<<a@b>",
            b"<a@b>>",
            &long,
        ] {
            assert!(Challenge::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Challenge::parse(b"<1.2.3@mail_host>").is_ok());
    }
}
