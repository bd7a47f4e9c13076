//! What a login is done with: a password, or an access token that is got for
//! it.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;
use zeroize::Zeroizing;

use super::Engine;
use super::ports::{SecretError, Secrets};
use super::report::{PollError, Scope};
use crate::domain::code::Code;
use crate::domain::work::{Login, SecretRef, Settings, WorkItem};
use crate::oauth::{self, Access};
use crate::pop3::{Credentials, Error};

/// Credentials, and the token among them.
pub(super) struct Ready {
    pub(super) credentials: Credentials,
    token: Option<Access>,
}

impl Ready {
    /// Reads the Secrets, and asks the provider where there is no token yet.
    ///
    /// # Errors
    /// Each says what to mend.
    pub(super) async fn new(
        engine: &Engine,
        item: &WorkItem,
        settings: &Settings,
    ) -> Result<Self, PollError> {
        let user = &*item.remote.account;
        match &item.remote.login {
            Login::Password(at) => {
                let password = secret(&*engine.secrets, at).await?;
                let credentials = Credentials::password(user, password);
                credentials.validate().map_err(|error| unusable(at, &error))?;
                Ok(Self { credentials, token: None })
            }
            Login::OAuth2(oauth) => {
                let token =
                    engine.tokens.get(user, oauth, settings).await.map_err(|error| no_token(&error))?;
                let credentials = Credentials::bearer(user, token.token.clone());
                credentials.validate().map_err(|error| local(error.code(), error.to_string()))?;
                Ok(Self { credentials, token: Some(token) })
            }
        }
    }

    /// The server did not take the token. Whether another one is worth a try:
    /// this one was not got for this login, and may have been revoked, or be
    /// over by the server's clock.
    pub(super) fn refused(&self, engine: &Engine) -> bool {
        let Some(token) = &self.token else { return false };
        engine.tokens.refused(token);
        !token.fresh
    }
}

fn no_token(error: &oauth::Error) -> PollError {
    let scope = if matches!(error, oauth::Error::Local { .. }) { Scope::Local } else { Scope::Account };
    PollError { code: error.code(), message: error.to_string(), scope }
}

/// What is under a key.
pub(super) async fn secret(secrets: &dyn Secrets, at: &SecretRef) -> Result<Zeroizing<Vec<u8>>, PollError> {
    secrets.get(at).await.map_err(|error| match error {
        SecretError::Missing(message) | SecretError::Unavailable(message) => {
            local(Code::SecretMissing, message)
        }
    })
}

/// Credentials that cannot be sent; whoever is to mend a password is told where
/// it is.
fn unusable(at: &SecretRef, error: &Error) -> PollError {
    let message = match error {
        Error::Password(_) => format!("Secret {}/{}, key {}: {error}", at.namespace, at.name, at.key),
        _ => error.to_string(),
    };
    local(error.code(), message)
}

fn local(code: Code, message: String) -> PollError {
    PollError { code, message, scope: Scope::Local }
}

impl Engine {
    /// The mark of the credentials of `item` as they are now; `None` where they
    /// cannot be read. Sixteen bits of a keyed digest: too few to tell a password by, and enough that a
    /// changed one has another mark but once in 65 536 times, in which it waits
    /// for its next turn.
    pub async fn credentials(&self, item: &WorkItem) -> Option<Box<str>> {
        let remote = &item.remote;
        let mut hasher = SipHasher24::new_with_key(&self.trace_key);
        hasher.write(&serde_json::to_vec(remote).ok()?);
        let client = remote.tls.client_certificate.iter().flat_map(|(chain, key)| [chain, key]);
        for at in remote.login.refs().chain(client) {
            let octets = self.secrets.get(at).await.ok()?;
            hasher.write_usize(octets.len());
            hasher.write(&octets);
        }
        Some(format!("{:04x}", hasher.finish() & 0xffff).into())
    }
}
