//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677).
//!
//! ```text
//!   Start -> first() -> ServerFirst::parse -> Expected (proof) -> ServerFinal::parse -> verify
//! ```
//!
//! The server, too, proves that it knows the password: who skips that, or
//! fails it, is an impostor. Channel binding (RFC 5929, RFC 9266) makes sure
//! that nobody sits between the two ends of the TLS connection.

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{Malformed, decode, encode, prepare};
use crate::domain::text::shown;

/// Fewer rounds than this make it too easy to guess the password from the
/// proof (RFC 7677, section 4).
pub const MIN_ITERATIONS: u32 = 4096;
/// More rounds than this are an attack on this machine's time: a million take
/// about half a second.
pub const MAX_ITERATIONS: u32 = 1_000_000;
/// Octets of the longest nonce, both parts together.
const MAX_NONCE: usize = 512;
/// Octets of the longest salt.
const MAX_SALT: usize = 512;

/// What identifies the TLS connection on both of its ends.
#[derive(Clone, PartialEq, Eq)]
pub enum ChannelBinding {
    /// `tls-exporter` (RFC 9266), for TLS 1.3.
    Exporter([u8; 32]),
    /// `tls-server-end-point` (RFC 5929, section 4): the digest of the
    /// server's certificate.
    ServerEndPoint(Vec<u8>),
}

impl std::fmt::Debug for ChannelBinding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl ChannelBinding {
    /// Its registered name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Exporter(_) => "tls-exporter",
            Self::ServerEndPoint(_) => "tls-server-end-point",
        }
    }

    fn data(&self) -> &[u8] {
        match self {
            Self::Exporter(data) => data,
            Self::ServerEndPoint(data) => data,
        }
    }
}

/// What the client says about channel binding (RFC 5802, section 6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding<'a> {
    /// `n`: it has none here.
    Impossible,
    /// `y`: it could, and the server did not offer a -PLUS mechanism. A server
    /// that did offer one notices that somebody took the offer away.
    NotOffered,
    /// `p=`: with -PLUS.
    Used(&'a ChannelBinding),
}

impl Binding<'_> {
    fn header(self) -> String {
        match self {
            Self::Impossible => "n,,".to_owned(),
            Self::NotOffered => "y,,".to_owned(),
            Self::Used(binding) => format!("p={},,", binding.name()),
        }
    }
}

/// A name as it stands in a message (RFC 5802, section 5.1).
pub(super) fn escaped(name: &str) -> String {
    name.replace('=', "=3D").replace(',', "=2C")
}

/// The client's side before the server said anything.
pub struct Start {
    header: String,
    /// The header and the binding's data, in base64.
    bound: Zeroizing<String>,
    bare: String,
    nonce: String,
}

impl std::fmt::Debug for Start {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Start(***)")
    }
}

impl Start {
    /// Begins, with 24 random octets for the nonce.
    pub fn new(user: &str, binding: Binding<'_>, random: [u8; 24]) -> Self {
        Self::with_nonce(user, binding, encode(&random).to_string())
    }

    fn with_nonce(user: &str, binding: Binding<'_>, nonce: String) -> Self {
        let header = binding.header();
        let data = match binding {
            Binding::Used(binding) => binding.data(),
            Binding::Impossible | Binding::NotOffered => &[],
        };
        let bound = encode(&[header.as_bytes(), data].concat());
        let bare = format!("n={},r={nonce}", escaped(&prepare::name(user)));
        Self { header, bound, bare, nonce }
    }

    /// The client's first message.
    pub fn message(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(format!("{}{}", self.header, self.bare).into_bytes())
    }

    /// Reads the server's first message.
    ///
    /// # Errors
    /// [`Malformed`] for what RFC 5802, section 7 does not allow, for another
    /// nonce than ours, and for rounds beyond [`MIN_ITERATIONS`] and
    /// [`MAX_ITERATIONS`].
    pub fn hear(self, first: &[u8]) -> Result<Challenged, Malformed> {
        let first = ServerFirst::parse(first)?;
        match first.nonce.strip_prefix(self.nonce.as_str()) {
            None => return Err(Malformed("the nonce does not begin with ours")),
            Some("") => return Err(Malformed("the server added nothing to the nonce")),
            Some(_) => {}
        }
        Ok(Challenged { start: self, first })
    }
}

/// The server's first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerFirst {
    /// All of it: it is signed as it came.
    text: String,
    /// Both nonces.
    pub nonce: String,
    /// Of the password.
    pub salt: Vec<u8>,
    /// Rounds of PBKDF2.
    pub iterations: u32,
}

impl ServerFirst {
    /// Reads `r=NONCE,s=SALT,i=ROUNDS`, with extensions behind it that are
    /// passed over.
    ///
    /// # Errors
    /// [`Malformed`] names the part.
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(message).map_err(|_| Malformed("the challenge is not UTF-8"))?;
        let mut parts = text.split(',');
        let mut part = |name: char, missing: &'static str| {
            let value =
                parts.next().and_then(|part| part.strip_prefix(name)).and_then(|rest| rest.strip_prefix('='));
            value.ok_or(Malformed(missing))
        };
        if text.starts_with("m=") {
            return Err(Malformed("the server demands an extension that is not known"));
        }
        let nonce = part('r', "the nonce is missing")?;
        if nonce.is_empty() || nonce.len() > MAX_NONCE || !nonce.bytes().all(|octet| octet.is_ascii_graphic())
        {
            return Err(Malformed("the nonce is empty, too long or not printable"));
        }
        let salt = part('s', "the salt is missing")?;
        let salt = decode(salt.as_bytes()).map_err(|_| Malformed("the salt is not base64"))?;
        if salt.is_empty() || salt.len() > MAX_SALT {
            return Err(Malformed("the salt is empty or too long"));
        }
        let iterations = part('i', "the number of rounds is missing")?;
        let is_number = iterations.len() <= 9
            && iterations.bytes().all(|octet| octet.is_ascii_digit())
            && !iterations.starts_with('0');
        let iterations: u32 = Some(iterations)
            .filter(|_| is_number)
            .and_then(|digits| digits.parse().ok())
            .ok_or(Malformed("the number of rounds is no number"))?;
        if iterations < MIN_ITERATIONS {
            return Err(Malformed("fewer than 4096 rounds would give the password away"));
        }
        if iterations > MAX_ITERATIONS {
            return Err(Malformed("more than a million rounds would cost too much time"));
        }
        if !parts.all(is_extension) {
            return Err(Malformed("something stands behind the number of rounds that is no extension"));
        }
        let nonce = nonce.to_owned();
        Ok(Self { text: text.to_owned(), nonce, salt, iterations })
    }
}

/// `attr-val` of RFC 5802, section 7; `m` would change what must be
/// understood, and is none.
fn is_extension(part: &str) -> bool {
    let mut octets = part.bytes();
    let name = octets.next();
    name.is_some_and(|name| name.is_ascii_alphabetic() && name != b'm')
        && octets.next() == Some(b'=')
        && octets.len() > 0
        && !part.contains('\0')
}

/// Both first messages are known.
#[derive(Debug)]
pub struct Challenged {
    start: Start,
    first: ServerFirst,
}

impl Challenged {
    /// Makes the proof. Takes time: some milliseconds, or half a second with
    /// [`MAX_ITERATIONS`].
    pub fn prove(self, password: &[u8]) -> Proof {
        let Self { start, first } = self;
        let password = prepare::password(password);
        let mut salted = Zeroizing::new([0; 32]);
        pbkdf2::pbkdf2_hmac::<Sha256>(&password, &first.salt, first.iterations, &mut *salted);
        let without_proof = format!("c={},r={}", *start.bound, first.nonce);
        let signed = format!("{},{},{without_proof}", start.bare, first.text);

        let client_key = keyed(&*salted, b"Client Key");
        let stored_key: [u8; 32] = Sha256::digest(*client_key).into();
        let mut proof = keyed(&stored_key, signed.as_bytes());
        for (octet, key) in proof.iter_mut().zip(client_key.iter()) {
            *octet ^= key;
        }
        let server_key = keyed(&*salted, b"Server Key");
        let mut signature = mac(&*server_key);
        signature.update(signed.as_bytes());
        let message = Zeroizing::new(format!("{without_proof},p={}", *encode(&*proof)).into_bytes());
        Proof { message, signature }
    }
}

/// The client has shown that it knows the password.
pub struct Proof {
    message: Zeroizing<Vec<u8>>,
    signature: Hmac<Sha256>,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Proof(***)")
    }
}

impl Proof {
    /// The client's final message.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// Whether the server knows the password as well; in constant time.
    pub fn is_by_the_server(self, signature: &[u8; 32]) -> bool {
        self.signature.verify_slice(signature).is_ok()
    }
}

/// The server's final message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerFinal {
    /// `v=`: its own signature.
    Signature([u8; 32]),
    /// `e=`: the reason of a refusal; escaped and capped.
    Refusal(String),
}

impl ServerFinal {
    /// Reads it.
    ///
    /// # Errors
    /// [`Malformed`] for what RFC 5802, section 7 does not allow.
    pub fn parse(message: &[u8]) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(message).map_err(|_| Malformed("the challenge is not UTF-8"))?;
        let mut parts = text.split(',');
        let first = parts.next().unwrap_or_default();
        let read = if let Some(reason) = first.strip_prefix("e=") {
            if reason.is_empty() {
                return Err(Malformed("the server's reason is empty"));
            }
            Self::Refusal(shown(reason))
        } else if let Some(signature) = first.strip_prefix("v=") {
            let signature = decode(signature.as_bytes())
                .map_err(|_| Malformed("the server's signature is not base64"))?;
            let signature =
                signature.try_into().map_err(|_| Malformed("the server's signature is not of 32 octets"))?;
            Self::Signature(signature)
        } else {
            return Err(Malformed("the server's last message holds no signature"));
        };
        if !parts.all(is_extension) {
            return Err(Malformed("something stands behind the server's signature that is no extension"));
        }
        Ok(read)
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn keyed(key: &[u8], text: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut mac = mac(key);
    mac.update(text);
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
#[path = "scram_tests.rs"]
mod tests;
