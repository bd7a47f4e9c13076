//! Logging in: which mechanism, and what happens when one is refused. What
//! goes over the line is in `exchange`, what is computed in
//! [`sasl`](super::sasl).

mod choice;
mod exchange;

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

use super::client::Client;
use super::error::Error;
use super::reply::ResponseCode;
use super::sasl::bearer;
use super::sasl::scram::ChannelBinding;
use crate::domain::work::AuthChoice;

/// A name and what proves it. Neither shows in `Debug`.
#[derive(Clone)]
pub struct Credentials {
    /// The user's name at the server.
    pub user: String,
    /// The password, or a token in its place.
    pub secret: Secret,
}

/// What proves who one is. Whoever logs in by OAuth 2.0 gets a token first
/// and hands it over here; [`Error::refuses_token`] says that another one is
/// to be got.
#[derive(Clone)]
pub enum Secret {
    /// A password.
    Password(Zeroizing<Vec<u8>>),
    /// An access token of OAuth 2.0 (RFC 6750).
    Bearer(Zeroizing<String>),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(***)")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password(_) => "Password(***)",
            Self::Bearer(_) => "Bearer(***)",
        })
    }
}

impl Credentials {
    /// Octets that a name or a password may have.
    pub const MAX_LEN: usize = 4096;
    /// Octets that an access token may have; those of some providers are
    /// longer than 4096.
    pub const MAX_TOKEN: usize = 32 * 1024;

    /// A login with a password.
    pub fn password(user: impl Into<String>, password: Zeroizing<Vec<u8>>) -> Self {
        Self { user: user.into(), secret: Secret::Password(password) }
    }

    /// A login with an access token.
    pub fn bearer(user: impl Into<String>, token: Zeroizing<String>) -> Self {
        Self { user: user.into(), secret: Secret::Bearer(token) }
    }

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
        match &self.secret {
            Secret::Password(password) => {
                if password.is_empty() {
                    return Err(Error::Password("the password is empty"));
                }
                if breaks(password) {
                    return Err(Error::Password(
                        "the password holds a line break or NUL, which POP3 cannot send; \
                         often it was stored with a line break behind it",
                    ));
                }
                if password.len() > Self::MAX_LEN {
                    return Err(Error::Password("the password is longer than 4096 octets"));
                }
            }
            Secret::Bearer(token) => {
                if !bearer::is_name(&self.user) {
                    return Err(Error::UserName("the user name holds a character that ends its field"));
                }
                if !bearer::is_token(token) {
                    return Err(Error::Password(
                        "the access token is empty or holds what no token has: blanks, line breaks, or more \
                         than ASCII",
                    ));
                }
                if token.len() > Self::MAX_TOKEN {
                    return Err(Error::Password("the access token is longer than 32768 octets"));
                }
            }
        }
        Ok(())
    }
}

/// What may be used for a login, and over what.
#[derive(Clone, Copy, Debug)]
pub struct LoginPolicy<'a> {
    /// Which mechanism.
    pub choice: AuthChoice,
    /// APOP is wanted where the greeting offers it (with
    /// [`AuthChoice::Auto`]).
    pub apop: bool,
    /// The connection is encrypted.
    pub encrypted: bool,
    /// A password may be sent over a connection that is not.
    pub clear_text_allowed: bool,
    /// The host that was asked for: OAUTHBEARER tells it to the server, and
    /// hosts of MSN want their own mechanism.
    pub host: &'a str,
    /// The port connected to.
    pub port: u16,
    /// What SCRAM binds the login to, where the connection has it.
    pub binding: Option<&'a ChannelBinding>,
    /// `tls-server-end-point`, for NTLM.
    pub end_point: Option<&'a [u8]>,
}

impl LoginPolicy<'_> {
    /// For tests and for connections that nothing else is known of: any
    /// mechanism, over TLS.
    pub const ENCRYPTED: LoginPolicy<'static> = LoginPolicy {
        choice: AuthChoice::Auto,
        apop: false,
        encrypted: true,
        clear_text_allowed: false,
        host: "",
        port: 0,
        binding: None,
        end_point: None,
    };
}

/// How a login was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// APOP: a digest.
    Apop,
    /// AUTH PLAIN.
    Plain,
    /// AUTH LOGIN.
    Login,
    /// USER and PASS.
    UserPass,
    /// AUTH CRAM-MD5: a digest.
    CramMd5,
    /// AUTH SCRAM-SHA-256: a proof by both sides.
    ScramSha256,
    /// AUTH SCRAM-SHA-256-PLUS: the same, bound to the TLS connection.
    ScramSha256Plus,
    /// AUTH XOAUTH2: a token.
    XOAuth2,
    /// AUTH OAUTHBEARER: a token.
    OAuthBearer,
    /// AUTH NTLM: a digest.
    Ntlm,
    /// AUTH MSN: NTLM under another name.
    Msn,
}

impl Mechanism {
    /// The command, as it goes over the line and stands in messages.
    pub fn command(self) -> &'static str {
        match self {
            Self::Apop => "APOP",
            Self::Plain => "AUTH PLAIN",
            Self::Login => "AUTH LOGIN",
            Self::UserPass => "USER/PASS",
            Self::CramMd5 => "AUTH CRAM-MD5",
            Self::ScramSha256 => "AUTH SCRAM-SHA-256",
            Self::ScramSha256Plus => "AUTH SCRAM-SHA-256-PLUS",
            Self::XOAuth2 => "AUTH XOAUTH2",
            Self::OAuthBearer => "AUTH OAUTHBEARER",
            Self::Ntlm => "AUTH NTLM",
            Self::Msn => "AUTH MSN",
        }
    }

    /// Whether the server, and whoever reads along, learns the password.
    pub fn is_clear_text(self) -> bool {
        matches!(self, Self::Plain | Self::Login | Self::UserPass)
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.command())
    }
}

/// How far a login had come when it was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shown {
    /// Nothing that depends on the password had been sent: it was the
    /// mechanism that was refused.
    Nothing,
    /// The server had seen a proof, and did not like it.
    Proof,
}

/// A login that failed.
struct Failed {
    error: Error,
    shown: Shown,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Client<S> {
    /// Logs in by the strongest mechanism that is offered and allowed, or by
    /// the one that the policy names.
    ///
    /// Where a server refuses a mechanism before it has seen a proof, as one
    /// that offers SCRAM does for users of whom it has another kind of hash,
    /// the next one follows; a proof that is refused is a failed login. Over
    /// a connection that is not encrypted, nothing but a digest follows a
    /// digest: a password in clear text is sent there only where it is allowed
    /// and nothing better was offered.
    ///
    /// # Errors
    /// [`Error::Refused`] with the server's reason; [`Error::NoMechanism`],
    /// [`Error::UserName`] and [`Error::Password`] before anything was sent;
    /// [`Error::Challenge`] and [`Error::Impostor`] for servers that are not
    /// what they should be.
    pub async fn login(
        &mut self,
        credentials: &Credentials,
        policy: &LoginPolicy<'_>,
    ) -> Result<Mechanism, Error> {
        credentials.validate()?;
        self.secrets.push(match &credentials.secret {
            Secret::Password(password) => password.clone(),
            Secret::Bearer(token) => Zeroizing::new(token.as_bytes().to_vec()),
        });
        let known = self.capabilities.as_ref().filter(|capabilities| capabilities.known);
        let offer = choice::Offer { known, apop: self.greeting().challenge.is_some() };
        let mut candidates = choice::candidates(&credentials.secret, policy, offer)?.into_iter();
        let mut mechanism = candidates.next();
        while let Some(current) = mechanism {
            let Err(failed) = self.attempt(current, credentials, policy).await else {
                self.logged_in = true;
                return Ok(current);
            };
            mechanism = candidates.find(|next| goes_on(&failed, current, *next, policy));
            match mechanism {
                Some(next) => tracing::debug!("{}; trying {next}", failed.error),
                None => return Err(failed.error),
            }
        }
        Err(Error::NoMechanism("no mechanism is left".to_owned()))
    }
}

/// Whether `next` may follow a failed attempt by `current`.
fn goes_on(failed: &Failed, current: Mechanism, next: Mechanism, policy: &LoginPolicy<'_>) -> bool {
    let Error::Refused { reply, said, .. } = &failed.error else { return false };
    // Without channel binding the server would say the same again, unless it
    // was the binding that it does not know (RFC 5802, section 7).
    if (current, next) == (Mechanism::ScramSha256Plus, Mechanism::ScramSha256)
        && said.as_deref() != Some("unsupported-channel-binding-type")
    {
        return false;
    }
    // What is said of the maildrop, or of the server, holds for all of them.
    if !matches!(reply.code, None | Some(ResponseCode::Auth | ResponseCode::Other)) {
        return false;
    }
    // Of APOP it cannot be told whether it was the password or the mechanism.
    let mechanism_refused = failed.shown == Shown::Nothing || current == Mechanism::Apop;
    mechanism_refused && (policy.encrypted || !next.is_clear_text())
}
