//! Which mechanisms to try, in which order.

use super::{LoginPolicy, Mechanism, Secret};
use crate::domain::text::shown;
use crate::domain::work::AuthChoice;
use crate::pop3::capability::Capabilities;
use crate::pop3::error::Error;

/// What the server offers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer<'a> {
    /// Its answer to CAPA, where it gave one.
    pub(super) known: Option<&'a Capabilities>,
    /// The greeting holds a challenge for APOP.
    pub(super) apop: bool,
}

impl Offer<'_> {
    fn has(&self, mechanism: &str) -> bool {
        self.known.is_some_and(|known| known.has_sasl(mechanism))
    }

    fn list(&self) -> String {
        let names = self.known.map_or(String::new(), |known| known.sasl.join(" "));
        if names.is_empty() { "nothing".to_owned() } else { shown(names) }
    }
}

/// The mechanisms for a login, best first; never none.
///
/// # Errors
/// [`Error::NoMechanism`] says what is missing.
pub(super) fn candidates(
    secret: &Secret,
    policy: &LoginPolicy<'_>,
    offer: Offer<'_>,
) -> Result<Vec<Mechanism>, Error> {
    match secret {
        Secret::Bearer(_) => bearer(policy, offer).map(|mechanism| vec![mechanism]),
        Secret::Password(_) if policy.choice == AuthChoice::Auto => auto(policy, offer),
        Secret::Password(_) => named(policy, offer).map(|mechanism| vec![mechanism]),
    }
}

/// A token is as good as a password to whoever reads it on the way: RFC 6750
/// and RFC 7628 leave no choice.
fn bearer(policy: &LoginPolicy<'_>, offer: Offer<'_>) -> Result<Mechanism, Error> {
    if !policy.encrypted {
        return none("an access token goes over TLS only: write tls: {mode: Implicit} or StartTls");
    }
    let said = offer.known.is_some_and(|known| !known.sasl.is_empty());
    match policy.choice {
        AuthChoice::XOAuth2 if offer.has("XOAUTH2") || !said => Ok(Mechanism::XOAuth2),
        AuthChoice::OAuthBearer if offer.has("OAUTHBEARER") || !said => Ok(Mechanism::OAuthBearer),
        AuthChoice::XOAuth2 | AuthChoice::OAuthBearer => none(format!(
            "the server does not offer this mechanism on this connection (offered: {}); try auth: Auto",
            offer.list()
        )),
        AuthChoice::Auto if offer.has("OAUTHBEARER") => Ok(Mechanism::OAuthBearer),
        AuthChoice::Auto if offer.has("XOAUTH2") || !said => Ok(Mechanism::XOAuth2),
        AuthChoice::Auto => {
            none(format!("the server takes no access tokens on this connection (offered: {})", offer.list()))
        }
        _ => none("this mechanism needs a password, and there is an access token"),
    }
}

/// The one that the record names.
fn named(policy: &LoginPolicy<'_>, offer: Offer<'_>) -> Result<Mechanism, Error> {
    let (mechanism, name) = match policy.choice {
        AuthChoice::UserPass => (Mechanism::UserPass, None),
        AuthChoice::Plain => (Mechanism::Plain, Some("PLAIN")),
        AuthChoice::Login => (Mechanism::Login, Some("LOGIN")),
        AuthChoice::CramMd5 => (Mechanism::CramMd5, Some("CRAM-MD5")),
        AuthChoice::ScramSha256 => match plus(policy, offer) {
            Some(plus) => (plus, None),
            None => (Mechanism::ScramSha256, Some("SCRAM-SHA-256")),
        },
        // Servers that know these do not always say so.
        AuthChoice::Ntlm => (Mechanism::Ntlm, None),
        AuthChoice::Msn => (Mechanism::Msn, None),
        AuthChoice::XOAuth2 | AuthChoice::OAuthBearer => {
            return none("this mechanism needs an access token: write oauth2");
        }
        AuthChoice::Auto => return none("no mechanism is named"),
    };
    if mechanism.is_clear_text() {
        clear_text_is_allowed(policy)?;
    }
    match name {
        Some(name) if offer.known.is_some() && !offer.has(name) => none(format!(
            "the server does not offer {mechanism} on this connection (offered: {}); try auth: Auto",
            offer.list()
        )),
        _ => Ok(mechanism),
    }
}

/// All that fit, best first. NTLM is not among them but for hosts of MSN: the
/// user has to ask for it.
fn auto(policy: &LoginPolicy<'_>, offer: Offer<'_>) -> Result<Vec<Mechanism>, Error> {
    let mut list = Vec::with_capacity(4);
    if is_msn(policy.host) {
        list.push(Mechanism::Msn);
    }
    list.extend(plus(policy, offer));
    if offer.has("SCRAM-SHA-256") {
        list.push(Mechanism::ScramSha256);
    }
    if policy.apop && offer.apop {
        list.push(Mechanism::Apop);
    }
    let clear = clear_text(policy, offer);
    let digest = offer.has("CRAM-MD5").then_some(Mechanism::CramMd5);
    match (clear, digest) {
        // In TLS a password is safer than a server that must keep it in clear
        // text to check a digest; without TLS it is not.
        (Ok(clear), _) if policy.encrypted => list.push(clear),
        (clear, digest) => {
            list.extend(digest);
            match clear {
                Ok(clear) => list.push(clear),
                Err(error) if list.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
    }
    Ok(list)
}

/// SCRAM with channel binding, where both sides have it.
fn plus(policy: &LoginPolicy<'_>, offer: Offer<'_>) -> Option<Mechanism> {
    (policy.encrypted && policy.binding.is_some() && offer.has("SCRAM-SHA-256-PLUS"))
        .then_some(Mechanism::ScramSha256Plus)
}

/// The mechanism that sends the password as it is.
fn clear_text(policy: &LoginPolicy<'_>, offer: Offer<'_>) -> Result<Mechanism, Error> {
    clear_text_is_allowed(policy)?;
    let Some(known) = offer.known else {
        // What every server had before there was CAPA.
        return Ok(Mechanism::UserPass);
    };
    if offer.has("PLAIN") {
        return Ok(Mechanism::Plain);
    }
    // A server that names no way at all has left that out.
    if known.user || known.sasl.is_empty() {
        return Ok(Mechanism::UserPass);
    }
    if offer.has("LOGIN") {
        return Ok(Mechanism::Login);
    }
    let advice = match () {
        () if offer.has("NTLM") => "; for NTLM write auth: Ntlm",
        () if offer.has("XOAUTH2") || offer.has("OAUTHBEARER") => "; for access tokens write oauth2",
        () if !policy.encrypted => "; it may want TLS first",
        () => "",
    };
    none(format!(
        "the server offers nothing that a password is enough for on this connection: neither USER/PASS nor AUTH \
         PLAIN, nor a digest that is known (offered: {}){advice}",
        offer.list()
    ))
}

fn clear_text_is_allowed(policy: &LoginPolicy<'_>) -> Result<(), Error> {
    if policy.encrypted || policy.clear_text_allowed {
        return Ok(());
    }
    none("the connection is not encrypted, and a password in clear text is not allowed over it")
}

/// Hosts under `.msn.com`.
fn is_msn(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let start = host.len().checked_sub(".msn.com".len());
    start.and_then(|start| host.get(start..)).is_some_and(|end| end.eq_ignore_ascii_case(".msn.com"))
}

fn none<T>(why: impl Into<String>) -> Result<T, Error> {
    Err(Error::NoMechanism(why.into()))
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
