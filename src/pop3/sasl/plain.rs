//! PLAIN (RFC 4616). LOGIN, which was never a standard, sends the same two
//! words one after the other.

use zeroize::Zeroizing;

/// The one message of PLAIN: no authorisation identity, name, password.
pub fn message(user: &str, password: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut message = Zeroizing::new(Vec::with_capacity(user.len() + password.len() + 2));
    message.push(0);
    message.extend_from_slice(user.as_bytes());
    message.push(0);
    message.extend_from_slice(password);
    message
}
