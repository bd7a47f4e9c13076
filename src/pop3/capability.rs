//! What a server says that it can do (RFC 2449, section 6).

use std::time::Duration;

use super::reply::number;
use crate::domain::text::shown;

/// How long a server keeps messages (RFC 2449, 6.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expire {
    /// `EXPIRE NEVER`.
    Never,
    /// Days; 0 means that mail that was retrieved is gone after QUIT.
    Days(u32),
}

/// The answer to CAPA. What a server leaves out is `false` or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a line of the answer")]
pub struct Capabilities {
    /// The server answered CAPA; without that nothing is known, and
    /// everything may be tried.
    pub known: bool,
    /// TOP.
    pub top: bool,
    /// UIDL.
    pub uidl: bool,
    /// USER.
    pub user: bool,
    /// SASL mechanisms, in upper case.
    pub sasl: Vec<Box<str>>,
    /// STLS (RFC 2595).
    pub stls: bool,
    /// PIPELINING.
    pub pipelining: bool,
    /// RESP-CODES.
    pub resp_codes: bool,
    /// AUTH-RESP-CODE (RFC 3206).
    pub auth_resp_code: bool,
    /// LOGIN-DELAY: the shortest time between two logins. Where it depends on
    /// the user, the largest there is until after the login (RFC 2449, 6.5).
    pub login_delay: Option<Duration>,
    /// EXPIRE.
    pub expire: Option<Expire>,
    /// UTF8 (RFC 6856).
    pub utf8: bool,
    /// UTF8 USER: user names and passwords may be UTF-8.
    pub utf8_user: bool,
    /// LANG (RFC 6856).
    pub lang: bool,
    /// IMPLEMENTATION, escaped and capped.
    pub implementation: Option<Box<str>>,
}

impl Capabilities {
    /// Lines of an answer that are read; a longer answer breaks the protocol.
    pub const MAX_LINES: u64 = 256;

    /// More than this no server can ask for: LOGIN-DELAY is cut to it.
    pub const MAX_LOGIN_DELAY: Duration = Duration::from_hours(24);

    /// Of a server that does not know CAPA.
    pub fn unknown() -> Self {
        Self::default()
    }

    /// Whether a SASL mechanism is announced.
    pub fn has_sasl(&self, mechanism: &str) -> bool {
        self.sasl.iter().any(|known| known.eq_ignore_ascii_case(mechanism))
    }

    /// Takes in one line of the answer, without its line end. What it does
    /// not know is passed over (RFC 2449, section 5).
    pub fn see(&mut self, line: &[u8]) {
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let Some(tag) = words.next() else { return };
        let tag = tag.to_ascii_uppercase();
        match tag.as_slice() {
            b"TOP" => self.top = true,
            b"UIDL" => self.uidl = true,
            b"USER" => self.user = true,
            b"STLS" => self.stls = true,
            b"PIPELINING" => self.pipelining = true,
            b"RESP-CODES" => self.resp_codes = true,
            b"AUTH-RESP-CODE" => self.auth_resp_code = true,
            b"LANG" => self.lang = true,
            b"SASL" => {
                for word in words.filter(|word| word.len() <= 40).take(40) {
                    if let Ok(word) = std::str::from_utf8(word)
                        && !self.has_sasl(word)
                        && self.sasl.len() < 40
                    {
                        self.sasl.push(word.to_ascii_uppercase().into());
                    }
                }
            }
            b"LOGIN-DELAY" => {
                let delay = words.next().and_then(number).map(Duration::from_secs);
                self.login_delay = delay.map(|delay| delay.min(Self::MAX_LOGIN_DELAY));
            }
            b"EXPIRE" => {
                self.expire = words.next().and_then(|word| {
                    if word.eq_ignore_ascii_case(b"NEVER") {
                        Some(Expire::Never)
                    } else {
                        number(word).map(|days| Expire::Days(u32::try_from(days).unwrap_or(u32::MAX)))
                    }
                });
            }
            // As one server writes it.
            b"EXPIRENEVER" => self.expire = Some(Expire::Never),
            b"UTF8" => {
                self.utf8 = true;
                self.utf8_user = words.any(|word| word.eq_ignore_ascii_case(b"USER"));
            }
            b"IMPLEMENTATION" => {
                let text = line.trim_ascii().get(tag.len()..).unwrap_or_default();
                self.implementation = Some(shown(text.trim_ascii()).into());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lines: &[&str]) -> Capabilities {
        let mut capabilities = Capabilities { known: true, ..Capabilities::default() };
        for line in lines {
            capabilities.see(line.as_bytes());
        }
        capabilities
    }

    #[test]
    fn capabilities_are_read() {
        let dovecot = of(&[
            "CAPA",
            "TOP",
            "UIDL",
            "RESP-CODES",
            "PIPELINING",
            "AUTH-RESP-CODE",
            "STLS",
            "USER",
            "SASL PLAIN LOGIN plain",
        ]);
        assert!(dovecot.top && dovecot.uidl && dovecot.resp_codes && dovecot.pipelining);
        assert!(dovecot.auth_resp_code && dovecot.stls && dovecot.user);
        assert!(dovecot.has_sasl("plain") && dovecot.has_sasl("LOGIN") && !dovecot.has_sasl("NTLM"));
        assert_eq!(dovecot.sasl.len(), 2);
        let case = of(&["stls", " uidl "]);
        assert!(case.stls && case.uidl);
    }

    #[test]
    fn login_delay_and_expire_are_read() {
        // quirks: "Honour `LOGIN-DELAY n` and `EXPIRE 0` capabilities"
        let gmail = of(&["EXPIRE 0", "LOGIN-DELAY 300", "X-GOOGLE-RICO", "IMPLEMENTATION Google  x"]);
        assert_eq!(gmail.expire, Some(Expire::Days(0)));
        assert_eq!(gmail.login_delay, Some(Duration::from_mins(5)));
        assert_eq!(gmail.implementation.as_deref(), Some("Google  x"));
        assert!(!gmail.pipelining);
        assert_eq!(of(&["EXPIRE 5 USER"]).expire, Some(Expire::Days(5)));
        assert_eq!(of(&["LOGIN-DELAY 120 USER"]).login_delay, Some(Duration::from_mins(2)));
        let absurd = of(&["LOGIN-DELAY 18446744073709551615"]);
        assert_eq!(absurd.login_delay, Some(Capabilities::MAX_LOGIN_DELAY));
        assert_eq!(of(&["EXPIRE soon", "LOGIN-DELAY"]), of(&[]));
    }

    #[test]
    fn expire_never_is_read_in_one_word_and_in_two() {
        // quirks: "`EXPIRE NEVER`, and `EXPIRENEVER` in one word."
        assert_eq!(of(&["EXPIRE NEVER"]).expire, Some(Expire::Never));
        assert_eq!(of(&["EXPIRENEVER"]).expire, Some(Expire::Never));
    }
}
