//! One renewal: the newest refresh token goes out, an access token comes in,
//! and a refresh token that came with it is kept before anything else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use zeroize::Zeroizing;

use super::answer::{self, Granted};
use super::client::{Form, Reach, basic, post};
use super::error::Error;
use super::url::Url;
use crate::domain::code::Code;
use crate::engine::ports::{KeptToken, TokenId, TokenStore, TokenStoreError};
use crate::net::Connector;

/// Tries of one request where its failure may pass.
const TRIES: u32 = 3;
/// Before the second try; doubled for the third.
const PAUSE: Duration = Duration::from_millis(500);
/// A provider's Retry-After is waited for up to this; beyond it the poll fails,
/// and the record's delay is the wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Tries to keep a new refresh token.
const SAVES: u32 = 5;

/// What a renewal needs to know.
#[derive(Clone)]
pub(super) struct Request {
    pub(super) url: Url,
    pub(super) reach: Reach,
    pub(super) client_id: Arc<str>,
    pub(super) client_secret: Option<Zeroizing<String>>,
    pub(super) scope: String,
    pub(super) grant: Grant,
}

/// By what the token is asked for.
#[derive(Clone)]
pub(super) enum Grant {
    /// The user's refresh token, or what came in its place.
    Refresh {
        id: TokenId,
        users: Zeroizing<String>,
        /// Where the user's is, for messages: `Secret mail/x, key y`.
        place: String,
    },
    /// The client's secret.
    Client,
}

/// Makes renewals. One a process.
pub(super) struct Renewer {
    connector: Arc<Connector>,
    store: Arc<dyn TokenStore>,
    /// Refresh tokens that could not be kept: lost with the process.
    unsaved: Mutex<HashMap<TokenId, Zeroizing<String>>>,
    /// One renewal at a time by one refresh token, whatever the scope.
    turns: Mutex<HashMap<TokenId, Arc<tokio::sync::Mutex<()>>>>,
    /// Clients that prove themselves by HTTP Basic: found out by their
    /// providers' `invalid_client`.
    basics: Mutex<HashMap<(String, Arc<str>), bool>>,
}

/// Clients whose way of proving themselves is remembered.
const MOST_BASICS: usize = 1024;

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Renewer {
    pub(super) fn new(connector: Arc<Connector>, store: Arc<dyn TokenStore>) -> Self {
        Self {
            connector,
            store,
            unsaved: Mutex::default(),
            turns: Mutex::default(),
            basics: Mutex::default(),
        }
    }

    /// An access token.
    ///
    /// # Errors
    /// See [`Error`]; the advice says what to do.
    pub(super) async fn renew(&self, request: &Request) -> Result<Granted, Error> {
        match &request.grant {
            Grant::Client => {
                let form = Form::default().with("grant_type", "client_credentials");
                self.ask(request, form, None).await.map_err(|error| advised(error, None))
            }
            Grant::Refresh { id, users, place } => {
                let turn = Arc::clone(locked(&self.turns).entry(id.clone()).or_default());
                let result = {
                    let _turn = turn.lock().await;
                    self.refresh(request, id, users).await
                };
                let mut turns = locked(&self.turns);
                drop(turn);
                turns.retain(|_, turn| Arc::strong_count(turn) > 1);
                result.map_err(|error| advised(error, Some(place)))
            }
        }
    }

    async fn refresh(&self, request: &Request, id: &TokenId, users: &str) -> Result<Granted, Error> {
        let mut kept = self.load(id).await?;
        let unsaved = locked(&self.unsaved).get(id).cloned();
        let first = match (&unsaved, &kept) {
            (Some(unsaved), _) => unsaved.clone(),
            (None, Some(kept)) => kept.token.clone(),
            (None, None) => Zeroizing::new(users.to_owned()),
        };
        let mut used = first;
        let mut result = self.by(request, &used).await;
        if result.as_ref().is_err_and(Error::is_invalid_grant) {
            // Another process may have had its turn meanwhile.
            let now = self.load(id).await?;
            let stored = now.as_ref().map(|kept| kept.token.clone());
            kept = now;
            // A provider that lets old tokens live takes the user's again.
            let others = [stored, Some(Zeroizing::new(users.to_owned()))];
            for other in others.into_iter().flatten() {
                if *other != *used && result.as_ref().is_err_and(Error::is_invalid_grant) {
                    result = self.by(request, &other).await;
                    used = other;
                }
            }
        }
        let granted = result?;
        match &granted.refresh {
            Some(new) if **new != *used => self.keep(id, new, kept).await,
            // What was used is good, and perhaps not yet kept.
            _ if unsaved.is_some_and(|unsaved| *unsaved == *used) => self.keep(id, &used, kept).await,
            _ => {}
        }
        Ok(granted)
    }

    async fn load(&self, id: &TokenId) -> Result<Option<KeptToken>, Error> {
        self.store.load(id).await.map_err(|error| match error {
            TokenStoreError::Damaged(message) => Error::local(Code::SecretInvalid, message),
            TokenStoreError::Conflict(message) | TokenStoreError::Unavailable(message) => {
                Error::unavailable(message)
            }
        })
    }

    /// Keeps a new refresh token. Where that fails it is used by this process
    /// alone, and tried again at the next renewal.
    async fn keep(&self, id: &TokenId, token: &Zeroizing<String>, mut before: Option<KeptToken>) {
        locked(&self.unsaved).insert(id.clone(), token.clone());
        let mut pause = PAUSE;
        for attempt in 1..=SAVES {
            let version = before.as_ref().map(|kept| &*kept.version);
            match self.store.save(id, token, version).await {
                Ok(()) => {
                    locked(&self.unsaved).remove(id);
                    return;
                }
                Err(error) => {
                    let conflict = matches!(error, TokenStoreError::Conflict(_));
                    tracing::warn!(
                        "the new refresh token of {} is not kept yet (try {attempt} of {SAVES}): {error}",
                        crate::domain::text::escape(&id.account)
                    );
                    if conflict {
                        // Whoever wrote had its token earlier than we ours, or as good as at once:
                        // the last to be given is the one that lives.
                        if let Ok(now) = self.store.load(id).await {
                            if now.as_ref().is_some_and(|kept| kept.token == *token) {
                                // An earlier try of which no answer came.
                                locked(&self.unsaved).remove(id);
                                return;
                            }
                            before = now;
                            continue;
                        }
                    }
                }
            }
            if attempt < SAVES {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
        }
        tracing::error!(
            "the new refresh token of {} at {} could not be kept: if this process ends before that succeeds, \
             somebody has to sign in again (rpop oauth login)",
            crate::domain::text::escape(&id.account),
            crate::domain::text::escape(&id.token_url)
        );
    }

    async fn by(&self, request: &Request, refresh: &str) -> Result<Granted, Error> {
        let form = Form::default().with("grant_type", "refresh_token").with("refresh_token", refresh);
        self.ask(request, form, Some(refresh)).await
    }

    /// One grant: as often as its failures may pass, within the deadlines.
    async fn ask(&self, request: &Request, form: Form, refresh: Option<&str>) -> Result<Granted, Error> {
        let until = Instant::now() + request.reach.connect + request.reach.reply;
        let form = if request.scope.is_empty() { form } else { form.with("scope", &request.scope) };
        let mut pause = PAUSE;
        let mut attempt = 1;
        loop {
            let rest = until.saturating_duration_since(Instant::now());
            let tried = tokio::time::timeout(rest, self.proven(request, &form, refresh)).await;
            let error = match tried {
                Ok(Ok(granted)) => return Ok(granted),
                Ok(Err(error)) => error,
                Err(_) => {
                    let after = (request.reach.connect + request.reach.reply).as_secs_f32();
                    return Err(Error::unavailable(format!(
                        "{} gives no access token within {after} s",
                        request.url
                    )));
                }
            };
            let Error::Unavailable { passing: true, retry_after, .. } = &error else { return Err(error) };
            let wait = retry_after.unwrap_or(pause).max(pause);
            if attempt == TRIES || wait > LONGEST_PAUSE || Instant::now() + wait >= until {
                return Err(error);
            }
            tracing::debug!("{error}: it is asked again");
            tokio::time::sleep(wait).await;
            pause *= 2;
            attempt += 1;
        }
    }

    /// The client proves itself by fields of the form, as all large providers
    /// want it, or (where these are not known) by HTTP Basic.
    async fn proven(&self, request: &Request, form: &Form, refresh: Option<&str>) -> Result<Granted, Error> {
        let Some(secret) = &request.client_secret else {
            let form = form.clone().with("client_id", &request.client_id);
            return self.send(request, &form, None, refresh).await;
        };
        let in_form = form.clone().with("client_id", &request.client_id).with("client_secret", secret);
        let header = basic(&request.client_id, secret);
        let key = (request.url.authority.clone(), Arc::clone(&request.client_id));
        let known = locked(&self.basics).get(&key).copied();
        let by = |basic: bool| {
            let form = if basic { form } else { &in_form };
            self.send(request, form, basic.then_some(&**header), refresh)
        };
        let by_basic = known.unwrap_or(false);
        let result = by(by_basic).await;
        if known.is_some() || !result.as_ref().is_err_and(Error::is_invalid_client) {
            return result;
        }
        let other = by(!by_basic).await;
        if other.as_ref().is_err_and(Error::is_invalid_client) {
            // It was the secret after all.
            return result;
        }
        let mut basics = locked(&self.basics);
        if basics.len() >= MOST_BASICS {
            basics.clear();
        }
        basics.insert(key, !by_basic);
        drop(basics);
        other
    }

    async fn send(
        &self,
        request: &Request,
        form: &Form,
        authorization: Option<&str>,
        refresh: Option<&str>,
    ) -> Result<Granted, Error> {
        let answer = post(&self.connector, &request.url, &request.reach, form, authorization).await?;
        let secret = request.client_secret.as_ref().map(|secret| secret.as_str());
        let secrets: Vec<&str> = refresh.into_iter().chain(secret).collect();
        answer::token(&request.url.to_string(), &answer, &secrets)
    }
}

/// Fills in what to do about a refusal. `place` is where the user's refresh
/// token is.
pub(super) fn advised(error: Error, place: Option<&str>) -> Error {
    let Error::Refused { host, error, description, .. } = error else { return error };
    let sign_in = || match place {
        Some(place) => format!("sign in again (rpop oauth login) and put the new refresh token into {place}"),
        None => "look at the permissions that the provider gives to this client".to_owned(),
    };
    let advice = match &*error {
        "invalid_client" => {
            "look at clientId and at the secret of clientSecretRef, which may have run out".to_owned()
        }
        "unauthorized_client" | "unsupported_grant_type" => match place {
            Some(_) => "the provider does not let this client use refresh tokens: look at its registration",
            None => "the provider does not let this client ask in its own name: look at its registration, or sign in as \
                     a person (rpop oauth login)",
        }
        .to_owned(),
        "invalid_scope" => "look at scopes: they must be those that were signed in for, or fewer".to_owned(),
        "invalid_request" | "invalid_target" => {
            "the provider does not understand the request: look at tokenUrl, clientId and scopes".to_owned()
        }
        _ => sign_in(),
    };
    Error::Refused { host, error, description, advice }
}
