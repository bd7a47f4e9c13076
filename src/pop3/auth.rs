//! Logging in: APOP and USER/PASS (RFC 1939, section 7), AUTH PLAIN
//! (RFC 5034, RFC 4616).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use super::apop;
use super::client::{Client, no_status};
use super::error::Error;
use super::reply::{Reply, ResponseCode};
use crate::domain::work::AuthChoice;

/// A name and a password. Neither shows in `Debug`.
#[derive(Clone)]
pub struct Credentials {
    /// The user's name at the server.
    pub user: String,
    /// The password.
    pub password: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

impl Credentials {
    /// Octets that a name or a password may have.
    pub const MAX_LEN: usize = 4096;

    /// Whether they can be sent: CR, LF and NUL would end a line or a field
    /// in its middle.
    ///
    /// # Errors
    /// [`Error::UserName`] or [`Error::Password`] says what is wrong.
    pub fn validate(&self) -> Result<(), Error> {
        let breaks = |octets: &[u8]| octets.iter().any(|octet| matches!(octet, b'\r' | b'\n' | 0));
        if self.user.is_empty() {
            return Err(Error::UserName("the user name is empty"));
        }
        if breaks(self.user.as_bytes()) {
            return Err(Error::UserName("the user name holds a line break or NUL, which POP3 cannot send"));
        }
        if self.user.len() > Self::MAX_LEN {
            return Err(Error::UserName("the user name is longer than 4096 octets"));
        }
        if self.password.is_empty() {
            return Err(Error::Password("the password is empty"));
        }
        if breaks(&self.password) {
            return Err(Error::Password(
                "the password holds a line break or NUL, which POP3 cannot send; \
                 often it was stored with a line break behind it",
            ));
        }
        if self.password.len() > Self::MAX_LEN {
            return Err(Error::Password("the password is longer than 4096 octets"));
        }
        Ok(())
    }
}

/// What may be used for a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginPolicy {
    /// Which mechanism.
    pub choice: AuthChoice,
    /// APOP is wanted where the greeting offers it (with
    /// [`AuthChoice::Auto`]).
    pub apop: bool,
    /// The connection is encrypted.
    pub encrypted: bool,
    /// A password may be sent over a connection that is not.
    pub clear_text_allowed: bool,
}

/// How a login was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// APOP: a digest.
    Apop,
    /// AUTH PLAIN.
    Plain,
    /// USER and PASS.
    UserPass,
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Apop => "APOP",
            Self::Plain => "AUTH PLAIN",
            Self::UserPass => "USER/PASS",
        })
    }
}

/// The longest command line, its line end included (RFC 2449, section 4).
const MAX_COMMAND: usize = 255;

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Client<S> {
    /// Logs in by the strongest mechanism that is offered and allowed, or by
    /// the one that the policy names. A password goes over an unencrypted
    /// connection only where that is allowed, and never behind a refused
    /// APOP.
    ///
    /// # Errors
    /// [`Error::Refused`] with the server's reason; [`Error::NoMechanism`],
    /// [`Error::UserName`] and [`Error::Password`] before anything was sent.
    pub async fn login(
        &mut self,
        credentials: &Credentials,
        policy: &LoginPolicy,
    ) -> Result<Mechanism, Error> {
        credentials.validate()?;
        self.secrets.push(credentials.password.clone());
        let clear = self.clear_mechanism(*policy);
        if policy.choice == AuthChoice::Auto
            && policy.apop
            && let Some(challenge) = self.greeting().challenge.clone()
        {
            match self.login_apop(credentials, &challenge).await {
                Err(Error::Refused { reply, .. })
                    if policy.encrypted
                        && matches!(reply.code, None | Some(ResponseCode::Auth | ResponseCode::Other))
                        && clear.is_ok() => {}
                outcome => return self.done(outcome, Mechanism::Apop),
            }
        }
        let mechanism = clear?;
        let outcome = match mechanism {
            Mechanism::Plain => self.login_plain(credentials).await,
            _ => self.login_user(credentials).await,
        };
        self.done(outcome, mechanism)
    }

    fn done(&mut self, outcome: Result<(), Error>, mechanism: Mechanism) -> Result<Mechanism, Error> {
        outcome?;
        self.logged_in = true;
        Ok(mechanism)
    }

    /// The mechanism that sends the password as it is.
    fn clear_mechanism(&self, policy: LoginPolicy) -> Result<Mechanism, Error> {
        if !policy.encrypted && !policy.clear_text_allowed {
            return Err(Error::NoMechanism(
                "the connection is not encrypted, and a password in clear text is not allowed over it"
                    .to_owned(),
            ));
        }
        let known = self.capabilities.as_ref().filter(|capabilities| capabilities.known);
        let has_plain = known.map(|capabilities| capabilities.has_sasl("PLAIN"));
        let has_user = known.map(|capabilities| capabilities.user);
        match policy.choice {
            AuthChoice::UserPass => Ok(Mechanism::UserPass),
            AuthChoice::Plain if has_plain != Some(false) => Ok(Mechanism::Plain),
            AuthChoice::Plain => Err(Error::NoMechanism(
                "the server does not offer AUTH PLAIN on this connection; try auth: Auto".to_owned(),
            )),
            AuthChoice::Auto if has_plain == Some(true) => Ok(Mechanism::Plain),
            AuthChoice::Auto if has_user != Some(false) => Ok(Mechanism::UserPass),
            // A server that names no way at all has left out what every server
            // had before there was CAPA.
            AuthChoice::Auto if known.is_some_and(|capabilities| capabilities.sasl.is_empty()) => {
                Ok(Mechanism::UserPass)
            }
            AuthChoice::Auto => {
                let offered = known.map_or(String::new(), |capabilities| capabilities.sasl.join(" "));
                Err(Error::NoMechanism(format!(
                    "the server offers neither USER/PASS nor AUTH PLAIN on this connection (offered: {}){}",
                    if offered.is_empty() { "nothing" } else { &offered },
                    if policy.encrypted { "" } else { "; it may want TLS first" },
                )))
            }
        }
    }

    async fn login_apop(&mut self, credentials: &Credentials, challenge: &[u8]) -> Result<(), Error> {
        self.in_step()?;
        let digest = apop::answer(challenge, &credentials.password);
        self.secrets.push(Zeroizing::new(digest.as_bytes().to_vec()));
        self.queue_secret("APOP", &[b"APOP ", credentials.user.as_bytes(), b" ", digest.as_bytes(), b"\r\n"]);
        let (reply, _) = self.reply("APOP").await?;
        accepted("APOP", reply)
    }

    /// USER and PASS; in one flight where the server takes that.
    async fn login_user(&mut self, credentials: &Credentials) -> Result<(), Error> {
        self.in_step()?;
        let user = credentials.user.as_bytes();
        let password: [&[u8]; 3] = [b"PASS ", &credentials.password, b"\r\n"];
        self.queue_secret("USER", &[b"USER ", user, b"\r\n"]);
        let at_once = self.pipelines();
        if at_once {
            self.queue_secret("PASS", &password);
        }
        let (reply, _) = self.reply("USER").await?;
        if at_once {
            let (pass, _) = self.reply("PASS").await?;
            accepted("USER", reply)?;
            return accepted("PASS", pass);
        }
        accepted("USER", reply)?;
        self.in_step()?;
        self.queue_secret("PASS", &password);
        let (reply, _) = self.reply("PASS").await?;
        accepted("PASS", reply)
    }

    /// AUTH PLAIN, with the response in the command where it is short enough
    /// (RFC 5034, section 4).
    async fn login_plain(&mut self, credentials: &Credentials) -> Result<(), Error> {
        const AUTH: &str = "AUTH PLAIN";
        self.in_step()?;
        let mut message =
            Zeroizing::new(Vec::with_capacity(credentials.user.len() + credentials.password.len() + 2));
        message.push(0);
        message.extend_from_slice(credentials.user.as_bytes());
        message.push(0);
        message.extend_from_slice(&credentials.password);
        let encoded = Zeroizing::new(STANDARD.encode(&message[..]));
        self.secrets.push(Zeroizing::new(encoded.as_bytes().to_vec()));
        if AUTH.len() + 1 + encoded.len() + 2 <= MAX_COMMAND {
            self.queue_secret(AUTH, &[AUTH.as_bytes(), b" ", encoded.as_bytes(), b"\r\n"]);
        } else {
            self.queue_secret(AUTH, &[AUTH.as_bytes(), b"\r\n"]);
            let (line, _) = self.line(AUTH).await?;
            if !is_continuation(&line) {
                // Some servers say +OK in its place.
                accepted(AUTH, Reply::parse(&line).ok_or_else(|| no_status(AUTH, &line))?)?;
            }
            self.in_step()?;
            self.queue_secret("AUTH PLAIN response", &[encoded.as_bytes(), b"\r\n"]);
        }
        let (line, _) = self.line(AUTH).await?;
        match Reply::parse(&line) {
            Some(reply) => accepted(AUTH, reply),
            // It did not take the response that came with the command, and
            // asks for it.
            None if is_continuation(&line) => {
                self.in_step()?;
                self.queue_secret("AUTH PLAIN response", &[encoded.as_bytes(), b"\r\n"]);
                let (reply, _) = self.reply(AUTH).await?;
                accepted(AUTH, reply)
            }
            None => Err(no_status(AUTH, &line)),
        }
    }
}

/// `+`, with or without a blank and text behind it (RFC 5034, section 4).
fn is_continuation(line: &[u8]) -> bool {
    line == b"+" || line.starts_with(b"+ ")
}

fn accepted(command: &'static str, reply: Reply) -> Result<(), Error> {
    if reply.is_ok() { Ok(()) } else { Err(Error::Refused { command, reply, login: true }) }
}
