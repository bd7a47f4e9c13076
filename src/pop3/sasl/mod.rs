//! SASL mechanisms (RFC 4422) without I/O: what a client says, and strict,
//! bounded decoders of what a server says. Time and randomness are arguments.
//!
//! Every decoder takes the octets behind the base64 of a challenge and either
//! understands all of them or says what is wrong; none keeps more than it was
//! given.

pub mod bearer;
pub mod cram_md5;
pub mod ntlm;
pub mod plain;
pub mod scram;

mod prepare;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

/// Octets of the longest challenge that is read, in base64 (as RFC 4954,
/// section 4 has it for SMTP; RFC 5034 names no bound).
pub const MAX_CHALLENGE: usize = 12 * 1024;

/// Why a challenge cannot be answered. Names the field, quotes nothing of the
/// server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// A challenge's octets.
///
/// # Errors
/// [`Malformed`] for what is not base64 in its canonical form (RFC 4648,
/// section 4), or too long.
pub fn decode(base64: &[u8]) -> Result<Vec<u8>, Malformed> {
    if base64.len() > MAX_CHALLENGE {
        return Err(Malformed("the challenge is too long"));
    }
    STANDARD.decode(base64).map_err(|_| Malformed("the challenge is not base64"))
}

/// A response as it goes over the line, without a line end.
pub fn encode(response: &[u8]) -> Zeroizing<String> {
    // Encoded in one go: a buffer that grows would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(response.len().div_ceil(3) * 4));
    STANDARD.encode_string(response, &mut text);
    text
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(octets: &[u8]) -> Zeroizing<String> {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = Zeroizing::new(String::with_capacity(2 * octets.len()));
    for octet in octets {
        text.push(char::from(DIGITS[usize::from(octet >> 4)]));
        text.push(char::from(DIGITS[usize::from(octet & 15)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_base64_is_a_challenge() {
        // quirks: "invalid base64, padding only"
        assert_eq!(decode(b"").unwrap(), b"");
        assert_eq!(decode(b"YWI=").unwrap(), b"ab");
        for bad in [
            &b"YWI"[..],
            b"=",
            b"====",
            b"YWI=YWI=",
            b"YW I=",
            b"YWJ=",
            b"!!!!",
            b"\xff\xff\xff\xff",
            b"YWI==",
        ] {
            assert_eq!(decode(bad).unwrap_err().0, "the challenge is not base64", "{bad:?}");
        }
        assert!(decode(&vec![b'A'; MAX_CHALLENGE]).is_ok());
        assert_eq!(decode(&vec![b'A'; MAX_CHALLENGE + 4]).unwrap_err().0, "the challenge is too long");
    }

    #[test]
    fn responses_are_written_in_base64_and_digits() {
        assert_eq!(encode(b"ab").as_str(), "YWI=");
        assert_eq!(hex(&[0, 0xab, 0xff]).as_str(), "00abff");
    }
}
