//! Access tokens, kept in memory while they last: one renewal for all records
//! of an account, early enough that none of them ever waits for a provider
//! that is away for a moment.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::answer::{Granted, is_refresh_token};
use super::client::Reach;
use super::error::Error;
use super::renewal::{Grant, Renewer, Request};
use super::url::Url;
use crate::domain::code::Code;
use crate::domain::work::{OAuth2, SecretKind, SecretRef, Settings};
use crate::engine::ports::{SecretError, Secrets, TokenId, TokenStore};
use crate::net::{AddressPolicy, Connector};

/// A token whose provider does not say how long it lasts is used for so long.
const UNSAID: Duration = Duration::from_mins(15);
/// A token is renewed so long before its end, or a tenth of its life if that is
/// shorter: time to try again, and room for clocks that differ.
const EARLY: Duration = Duration::from_mins(5);
/// A token that has less than this left is not used: the login takes a while.
const LEAST: Duration = Duration::from_secs(10);
/// After a renewal that failed the same answer is given for so long: to the
/// records of one account that are due together.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Tokens beyond this are looked through for those that are over.
const MANY: usize = 1024;

/// Digest of all that a token depends on.
type Key = [u8; 32];
type Flight = Shared<BoxFuture<'static, Result<Arc<Token>, Error>>>;

/// An access token for one login.
#[derive(Clone)]
pub struct Access {
    /// The token.
    pub token: Zeroizing<String>,
    /// It was got for this login: if it is refused, another one will be, too.
    pub fresh: bool,
    key: Key,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("fresh", &self.fresh).finish_non_exhaustive()
    }
}

struct Token {
    access: Zeroizing<String>,
    life: Life,
}

/// How long something lasts. By the monotonic clock, which stands still while
/// the machine sleeps, and by the wall clock, which may be set: the one that
/// says that more time has passed is believed. The provider's own clock does
/// not matter, since it says how long a token lasts, and not until when.
#[derive(Clone, Copy, Debug)]
struct Life {
    from: Instant,
    wall: SystemTime,
    lasts: Duration,
}

impl Life {
    fn age(&self) -> Duration {
        self.from.elapsed().max(self.wall.elapsed().unwrap_or_default())
    }

    fn is_usable(&self) -> bool {
        self.age() + LEAST < self.lasts
    }

    fn is_early(&self) -> bool {
        self.age() + EARLY.min(self.lasts / 10).max(LEAST) < self.lasts
    }
}

#[derive(Default)]
struct Entry {
    token: Option<Arc<Token>>,
    flight: Option<Flight>,
    failed: Option<(Instant, Error)>,
}

struct Inner {
    secrets: Arc<dyn Secrets>,
    renewer: Renewer,
    entries: Mutex<HashMap<Key, Entry>>,
}

/// The access tokens of a process. A clone is the same set.
#[derive(Clone)]
pub struct Tokens(Arc<Inner>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// None yet. Secrets are read from `secrets`; refresh tokens that providers
    /// give in place of them are kept in `store`.
    pub fn new(connector: Arc<Connector>, secrets: Arc<dyn Secrets>, store: Arc<dyn TokenStore>) -> Self {
        let renewer = Renewer::new(connector, store);
        Self(Arc::new(Inner { secrets, renewer, entries: Mutex::default() }))
    }

    /// An access token for `account`. A renewal ends within the deadlines
    /// `connect` and `reply` of the settings together, goes on when its caller
    /// gives up, and is shared by all who ask meanwhile. A token that could not
    /// be renewed early is used as long as it lasts.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, account: &str, oauth: &OAuth2, settings: &Settings) -> Result<Access, Error> {
        let request = self.0.request(account, oauth, settings).await?;
        let key = key(account, oauth, &request);
        let flight = {
            let mut entries = self.0.entries();
            forget(&mut entries);
            let entry = entries.entry(key).or_default();
            if let Some(token) = entry.token.as_ref().filter(|token| token.life.is_early()) {
                return Ok(Access { token: token.access.clone(), fresh: false, key });
            }
            match (&entry.flight, &entry.failed) {
                (Some(flight), _) => flight.clone(),
                (None, Some((at, error))) if at.elapsed() < REMEMBERED => {
                    let old = usable(entry, key).filter(|_| error.is_transient());
                    return old.ok_or_else(|| error.clone());
                }
                _ => {
                    let flight = start(&self.0, key, request);
                    entry.flight = Some(flight.clone());
                    flight
                }
            }
        };
        match flight.await {
            Ok(token) => Ok(Access { token: token.access.clone(), fresh: true, key }),
            Err(error) => {
                let entries = self.0.entries();
                let old = entries.get(&key).and_then(|entry| usable(entry, key));
                old.filter(|_| error.is_transient()).ok_or(error)
            }
        }
    }

    /// A server did not take this token: it is not used again.
    pub fn refused(&self, access: &Access) {
        if let Some(entry) = self.0.entries().get_mut(&access.key)
            && entry.token.as_ref().is_some_and(|token| token.access == access.token)
        {
            entry.token = None;
        }
    }
}

/// What there is, as long as it lasts.
fn usable(entry: &Entry, key: Key) -> Option<Access> {
    let token = entry.token.as_ref().filter(|token| token.life.is_usable())?;
    Some(Access { token: token.access.clone(), fresh: false, key })
}

/// Forgets what is over, once there is much of it.
fn forget(entries: &mut HashMap<Key, Entry>) {
    if entries.len() >= MANY && entries.len() == entries.capacity() {
        entries.retain(|_, entry| {
            entry.flight.is_some() || entry.token.as_ref().is_some_and(|token| token.life.is_usable())
        });
    }
}

/// A renewal of its own: who waits for it may be dropped at any time, and a
/// refresh token that comes of it must not be lost with them.
fn start(inner: &Arc<Inner>, key: Key, request: Request) -> Flight {
    let inner = Arc::clone(inner);
    let task = tokio::spawn(async move {
        let (from, wall) = (Instant::now(), SystemTime::now());
        let result = inner.renewer.renew(&request).await.map(|Granted { access, lasts, .. }| {
            let life = Life { from, wall, lasts: lasts.unwrap_or(UNSAID) };
            Arc::new(Token { access, life })
        });
        let mut entries = inner.entries();
        let entry = entries.entry(key).or_default();
        entry.flight = None;
        match &result {
            Ok(token) => {
                entry.token = Some(Arc::clone(token));
                entry.failed = None;
            }
            Err(error) => entry.failed = Some((Instant::now(), error.clone())),
        }
        result
    });
    let defect = |_| Error::local(Code::Internal, "a defect of RPOP ended the renewal of an access token");
    task.map(move |ended| ended.map_err(defect).flatten()).boxed().shared()
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn request(&self, account: &str, oauth: &OAuth2, settings: &Settings) -> Result<Request, Error> {
        let url = Url::parse(&oauth.token_url).map_err(|why| {
            Error::local(Code::ConfigInvalid, format!("spec.remote.oauth2.tokenUrl: {why}"))
        })?;
        let client_secret = match &oauth.client_secret {
            Some(at) => Some(self.text(at, "client secret").await?),
            None => None,
        };
        let ca_pem = match &oauth.ca {
            Some(at) => Some(self.secrets.get(at).await.map_err(missing)?.to_vec()),
            None => None,
        };
        let grant = match &oauth.refresh_token {
            Some(at) => {
                let users = self.text(at, "refresh token").await?;
                let digest = digest(&[&oauth.token_url, &oauth.client_id, account, &users]);
                let mut short = [0; 20];
                short.copy_from_slice(digest.get(..20).unwrap_or(&[0; 20]));
                let id = TokenId {
                    digest: short,
                    account: account.into(),
                    token_url: Arc::clone(&oauth.token_url),
                };
                Grant::Refresh { id, users, place: place(at) }
            }
            None => Grant::Client,
        };
        // A provider may well be on this network, or on this machine.
        let settings = Settings { allow_self_poll: true, ..settings.clone() };
        Ok(Request {
            url,
            reach: Reach {
                ca_pem,
                policy: AddressPolicy::new(&settings),
                connect: settings.timeouts.connect,
                reply: settings.timeouts.reply,
            },
            client_id: Arc::clone(&oauth.client_id),
            client_secret,
            scope: oauth.scopes.join(" "),
            grant,
        })
    }

    async fn text(&self, at: &SecretRef, what: &str) -> Result<Zeroizing<String>, Error> {
        let octets = self.secrets.get(at).await.map_err(missing)?;
        check(&octets, what).map_err(|why| Error::local(Code::SecretInvalid, format!("{}: {why}", place(at))))
    }
}

/// Looks whether what a Secret holds can be a refresh token or a client's
/// secret: text of one line.
///
/// # Errors
/// Says what is wrong, never what it is.
pub(crate) fn check(octets: &[u8], what: &str) -> Result<Zeroizing<String>, String> {
    let wrong = |is: &str| Err(format!("the {what} {is}"));
    match octets {
        [] => wrong("is empty"),
        [.., b'\n' | b'\r'] => wrong(
            "ends with a line break: encode it with `echo -n`, or write it in one line under stringData",
        ),
        octets => match std::str::from_utf8(octets) {
            Ok(text) if is_refresh_token(text) => Ok(Zeroizing::new(text.to_owned())),
            _ => wrong("is too long, or holds what none has: line breaks, or more than ASCII"),
        },
    }
}

fn missing(error: SecretError) -> Error {
    match error {
        SecretError::Missing(message) | SecretError::Unavailable(message) => {
            Error::local(Code::SecretMissing, message)
        }
    }
}

fn place(at: &SecretRef) -> String {
    let kind = match at.kind {
        SecretKind::Secret => "Secret",
        SecretKind::ConfigMap => "ConfigMap",
    };
    format!("{kind} {}/{}, key {}", at.namespace, at.name, at.key)
}

fn key(account: &str, oauth: &OAuth2, request: &Request) -> Key {
    let secret = request.client_secret.as_ref().map_or("", |secret| secret.as_str());
    let refresh = match &request.grant {
        Grant::Refresh { users, .. } => users.as_str(),
        Grant::Client => "",
    };
    digest(&[&oauth.token_url, &oauth.client_id, account, &request.scope, secret, refresh])
}

/// Of texts, each with its length in front.
fn digest(parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

#[cfg(test)]
#[path = "tokens_tests.rs"]
mod tests;
