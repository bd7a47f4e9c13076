//! NTLM (MS-NLMP) with NTLMv2 answers only: what `AUTH NTLM` carries in the
//! servers of Microsoft's and `AUTH MSN` in those of MSN (MS-POP3).
//!
//! ```text
//!   NEGOTIATE -> Challenge::parse -> Challenge::answer: AUTHENTICATE
//! ```
//!
//! Neither the LM hash nor NTLMv1 is ever sent, whatever a server says that it
//! can do: both are broken within hours. Where the server sends its time, a
//! MIC over all three messages shows that nobody changed one.

mod challenge;

pub use challenge::Challenge;

use hmac::{Hmac, KeyInit as _, Mac as _};
use md4::Md4;
use md5::{Digest as _, Md5};
use zeroize::Zeroizing;

/// How every message begins.
const SIGNATURE: &[u8; 8] = b"NTLMSSP\0";

/// Text is UTF-16.
const UNICODE: u32 = 0x0000_0001;
/// Text is in the server's code page: of that only ASCII is sure.
const OEM: u32 = 0x0000_0002;
/// The server may name itself.
const REQUEST_TARGET: u32 = 0x0000_0004;
const NTLM: u32 = 0x0000_0200;
const ALWAYS_SIGN: u32 = 0x0000_8000;
const EXTENDED_SESSION_SECURITY: u32 = 0x0008_0000;
/// The challenge holds target information.
const TARGET_INFO: u32 = 0x0080_0000;
const KEY_128: u32 = 0x2000_0000;

/// What the client can do.
const OURS: u32 =
    UNICODE | OEM | REQUEST_TARGET | NTLM | ALWAYS_SIGN | EXTENDED_SESSION_SECURITY | TARGET_INFO | KEY_128;

/// Kinds of attribute-value pairs (MS-NLMP, section 2.2.2.1).
mod pair {
    pub(super) const END: u16 = 0;
    pub(super) const FLAGS: u16 = 6;
    pub(super) const TIMESTAMP: u16 = 7;
    pub(super) const TARGET_NAME: u16 = 9;
    pub(super) const CHANNEL_BINDINGS: u16 = 10;
}

/// In the pair FLAGS: the message has a MIC.
const HAS_MIC: u32 = 2;
/// Where it stands in AUTHENTICATE.
const MIC: std::ops::Range<usize> = 72..88;

/// The first message: what the client can do, and nothing about who it is.
pub fn negotiate() -> Vec<u8> {
    let mut message = Vec::with_capacity(40);
    message.extend_from_slice(SIGNATURE);
    message.extend_from_slice(&1_u32.to_le_bytes());
    message.extend_from_slice(&OURS.to_le_bytes());
    // Neither domain nor workstation, no version.
    message.resize(40, 0);
    message
}

/// Who logs in.
#[derive(Clone, Copy)]
pub struct Login<'a> {
    /// The user's name, without a domain.
    pub user: &'a str,
    /// The domain; may be empty.
    pub domain: &'a str,
    /// The password.
    pub password: &'a str,
    /// The `tls-server-end-point` of the connection (RFC 5929), for servers
    /// with Extended Protection; its mere digest.
    pub end_point: Option<&'a [u8]>,
}

impl<'a> Login<'a> {
    /// From a name as people write it: `DOMAIN\user`, `user@domain` (which
    /// is one name), or `user`.
    pub fn new(account: &'a str, password: &'a str, end_point: Option<&'a [u8]>) -> Self {
        let (domain, user) = account.split_once('\\').unwrap_or(("", account));
        Self { user, domain, password, end_point }
    }
}

impl std::fmt::Debug for Login<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(***)")
    }
}

/// What must not be the same twice.
#[derive(Clone, Copy, Debug)]
pub struct Fresh {
    /// Eight random octets.
    pub client_challenge: [u8; 8],
    /// Units of 100 ns since 1601, in UTC; used where the server does not say
    /// its own time.
    pub time: u64,
}

impl Fresh {
    /// The time in NTLM's units, of that since 1970.
    pub fn time_of(since_1970: std::time::Duration) -> u64 {
        const SECONDS_1601_TO_1970: u64 = 11_644_473_600;
        since_1970
            .as_secs()
            .saturating_add(SECONDS_1601_TO_1970)
            .saturating_mul(10_000_000)
            .saturating_add(u64::from(since_1970.subsec_nanos() / 100))
    }
}

/// A name cannot be written in the server's code page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAscii;

impl Challenge {
    /// The AUTHENTICATE message (MS-NLMP, section 3.1.5.1.2) to `self`, which
    /// came in the octets `challenge`, behind the message `negotiate`.
    ///
    /// # Errors
    /// [`NotAscii`] where the server takes no Unicode and the name needs it.
    pub fn answer(
        &self,
        login: &Login<'_>,
        fresh: Fresh,
        negotiate: &[u8],
        challenge: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, NotAscii> {
        let unicode = self.flags() & UNICODE != 0;
        let text = |text: &str| {
            if unicode {
                Ok(utf16(text))
            } else if text.is_ascii() {
                Ok(Zeroizing::new(text.as_bytes().to_vec()))
            } else {
                Err(NotAscii)
            }
        };
        let (domain, user) = (text(login.domain)?, text(login.user)?);
        let key = response_key(login);
        let time = self.timestamp();
        let target = self.target(login.end_point);
        let response =
            nt_response(&key, self.nonce(), fresh.client_challenge, time.unwrap_or(fresh.time), &target);
        let lm = match time {
            // Of no use to a server that tells its time (section 3.1.5.1.2).
            Some(_) => [0; 24],
            None => lm_response(&key, self.nonce(), fresh.client_challenge),
        };
        let flags = self.flags() & OURS & !if unicode { OEM } else { UNICODE };

        let mut message = Zeroizing::new(Vec::with_capacity(
            MIC.end + domain.len() + user.len() + lm.len() + response.len(),
        ));
        message.extend_from_slice(SIGNATURE);
        message.extend_from_slice(&3_u32.to_le_bytes());
        let after_names = MIC.end + domain.len() + user.len();
        field(&mut message, lm.len(), after_names);
        field(&mut message, response.len(), after_names + lm.len());
        field(&mut message, domain.len(), MIC.end);
        field(&mut message, user.len(), MIC.end + domain.len());
        // The name of this machine, and a session key, are nobody's business.
        field(&mut message, 0, after_names);
        field(&mut message, 0, after_names + lm.len() + response.len());
        message.extend_from_slice(&flags.to_le_bytes());
        message.resize(MIC.end, 0);
        for part in [&domain[..], &user, &lm, &response] {
            message.extend_from_slice(part);
        }
        if time.is_some() {
            let session_key = hmac_md5(&*key, &[&response[..16]]);
            let mic = hmac_md5(&*session_key, &[negotiate, challenge, &message]);
            message[MIC].copy_from_slice(&*mic);
        }
        Ok(message)
    }

    /// The server's target information with what the client adds to it.
    fn target(&self, end_point: Option<&[u8]>) -> Vec<u8> {
        let mut target = Vec::with_capacity(self.pairs_len() + 48);
        let mut flags = 0;
        for (kind, value) in self.pairs() {
            match kind {
                pair::FLAGS => flags = value.try_into().map_or(0, u32::from_le_bytes),
                // The client's to say.
                pair::TARGET_NAME | pair::CHANNEL_BINDINGS => {}
                _ => put(&mut target, kind, value),
            }
        }
        if self.timestamp().is_some() {
            flags |= HAS_MIC;
        }
        if flags != 0 {
            put(&mut target, pair::FLAGS, &flags.to_le_bytes());
        }
        if self.pairs_len() > 0 {
            put(&mut target, pair::CHANNEL_BINDINGS, &bindings(end_point));
        }
        put(&mut target, pair::END, &[]);
        target
    }
}

fn put(target: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Values come from a challenge that is not that long, or are short.
    let len = u16::try_from(value.len()).unwrap_or_default();
    target.extend_from_slice(&kind.to_le_bytes());
    target.extend_from_slice(&len.to_le_bytes());
    target.extend_from_slice(value.get(..usize::from(len)).unwrap_or_default());
}

fn field(message: &mut Vec<u8>, len: usize, offset: usize) {
    // A response is a little longer than the challenge, which is bounded, and
    // names are of at most 4096 octets.
    let len = u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes();
    message.extend_from_slice(&len);
    message.extend_from_slice(&len);
    message.extend_from_slice(&u32::try_from(offset).unwrap_or(u32::MAX).to_le_bytes());
}

/// MD5 of a `gss_channel_bindings_struct` (RFC 4121, section 4.1.1.2) of which
/// only the application's data are there; zero where there are none.
fn bindings(end_point: Option<&[u8]>) -> [u8; 16] {
    const PREFIX: &[u8] = b"tls-server-end-point:";
    let Some(end_point) = end_point else { return [0; 16] };
    let mut digest = Md5::new();
    digest.update([0; 16]);
    digest.update(u32::try_from(PREFIX.len() + end_point.len()).unwrap_or(u32::MAX).to_le_bytes());
    digest.update(PREFIX);
    digest.update(end_point);
    digest.finalize().into()
}

/// NTOWFv2 (section 3.3.2).
fn response_key(login: &Login<'_>) -> Zeroizing<[u8; 16]> {
    let hash: Zeroizing<[u8; 16]> = Zeroizing::new(Md4::digest(utf16(login.password)).into());
    hmac_md5(&*hash, &[&utf16(&upper(login.user)), &utf16(login.domain)])
}

/// `NtChallengeResponse` (section 3.3.2): the proof, and what it is of.
fn nt_response(
    key: &[u8; 16],
    server_challenge: [u8; 8],
    client_challenge: [u8; 8],
    time: u64,
    target: &[u8],
) -> Zeroizing<Vec<u8>> {
    let mut response = Zeroizing::new(Vec::with_capacity(16 + 28 + target.len() + 4));
    response.resize(16, 0);
    response.extend_from_slice(&[1, 1, 0, 0, 0, 0, 0, 0]);
    response.extend_from_slice(&time.to_le_bytes());
    response.extend_from_slice(&client_challenge);
    response.extend_from_slice(&[0; 4]);
    response.extend_from_slice(target);
    response.extend_from_slice(&[0; 4]);
    let proof = hmac_md5(key, &[&server_challenge, &response[16..]]);
    response[..16].copy_from_slice(&*proof);
    response
}

/// `LmChallengeResponse` (section 3.3.2): as good as the other one, for servers
/// that look here.
fn lm_response(key: &[u8; 16], server_challenge: [u8; 8], client_challenge: [u8; 8]) -> [u8; 24] {
    let mut response = [0; 24];
    response[..16].copy_from_slice(&*hmac_md5(key, &[&server_challenge, &client_challenge]));
    response[16..].copy_from_slice(&client_challenge);
    response
}

fn hmac_md5(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 16]> {
    let mut mac = Hmac::<Md5>::new_from_slice(key).expect("HMAC takes keys of any length");
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

fn utf16(text: &str) -> Zeroizing<Vec<u8>> {
    let mut octets = Zeroizing::new(Vec::with_capacity(2 * text.len()));
    for unit in text.encode_utf16() {
        octets.extend_from_slice(&unit.to_le_bytes());
    }
    octets
}

/// In capitals, one for one: `ß` stays, as it does in Windows.
fn upper(text: &str) -> String {
    let one = |letter: char| {
        let mut capitals = letter.to_uppercase();
        match (capitals.next(), capitals.next()) {
            (Some(capital), None) => capital,
            _ => letter,
        }
    };
    text.chars().map(one).collect()
}

#[cfg(test)]
mod tests;
