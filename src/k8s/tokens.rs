//! Refresh tokens that providers have given, in Secrets of our own:
//! `rpop-token-HASH` in the system namespace. Each write is a compare-and-swap
//! on `resourceVersion`.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use kube::api::{GetParams, PostParams};
use kube::core::request::Request;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::error::{ApiError, within};
use crate::domain::text::{causes, escape};
use crate::engine::ports::{KeptToken, Pending, TokenId, TokenStore, TokenStoreError};
use crate::oauth::answer::is_refresh_token;

/// One request.
const REQUEST: Duration = Duration::from_secs(10);
/// What the type of these Secrets is; the admission policy knows it, too.
pub const TYPE: &str = "rpop.dev/token";
/// The key in their data.
const KEY: &str = "refreshToken";

/// Keeps refresh tokens in Secrets.
#[derive(Clone)]
pub struct SecretTokens {
    client: Client,
    namespace: String,
}

impl fmt::Debug for SecretTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretTokens").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Meta {
    #[serde(rename = "resourceVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Raw<'t> {
    metadata: Meta,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, borrow)]
    data: BTreeMap<String, &'t str>,
}

impl SecretTokens {
    /// In that namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    /// The name of a token's Secret.
    pub fn name(id: &TokenId) -> String {
        format!("rpop-token-{}", id.hex())
    }

    fn requests(&self) -> Request {
        Request::new(format!("/api/v1/namespaces/{}/secrets", self.namespace))
    }

    fn what(&self, id: &TokenId) -> String {
        format!("Secret {}/{}", self.namespace, Self::name(id))
    }

    async fn read(&self, id: &TokenId) -> Result<Option<KeptToken>, TokenStoreError> {
        let what = self.what(id);
        let request = self
            .requests()
            .get(&Self::name(id), &GetParams::default())
            .map_err(|error| TokenStoreError::Unavailable(format!("{what} cannot be asked for: {error}")))?;
        let text = match within(REQUEST, self.client.request_text(request)).await {
            Ok(text) => Zeroizing::new(text),
            Err(ApiError::NotFound { .. }) => return Ok(None),
            Err(error) => {
                return Err(TokenStoreError::Unavailable(format!(
                    "{what} cannot be read: {}",
                    causes(&error)
                )));
            }
        };
        parse(&text).map(Some).ok_or_else(|| {
            TokenStoreError::Damaged(format!(
                "{what} holds no refresh token that can be read: put it back from a backup, or sign in again (rpop \
                 oauth login)"
            ))
        })
    }

    async fn write(&self, id: &TokenId, token: &str, before: Option<&str>) -> Result<(), TokenStoreError> {
        let (what, name) = (self.what(id), Self::name(id));
        let coded = Zeroizing::new(STANDARD.encode(token));
        let object = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": TYPE,
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "resourceVersion": before,
                "labels": {"app.kubernetes.io/managed-by": "rpop", "rpop.dev/token": ""},
                "annotations": {
                    "rpop.dev/account": escape(&id.account),
                    "rpop.dev/token-url": escape(&id.token_url),
                },
            },
            "data": {KEY: coded.as_str()},
        });
        let unusable = |error: &dyn fmt::Display| {
            TokenStoreError::Unavailable(format!("{what} cannot be written: {error}"))
        };
        let body = serde_json::to_vec(&object).map_err(|error| unusable(&error))?;
        let request = match before {
            None => self.requests().create(&PostParams::default(), body),
            Some(_) => self.requests().replace(&name, &PostParams::default(), body),
        };
        let request = request.map_err(|error| unusable(&error))?;
        match within(REQUEST, self.client.request_text(request)).await {
            Ok(text) => {
                drop(Zeroizing::new(text));
                Ok(())
            }
            Err(error @ (ApiError::Conflict { .. } | ApiError::NotFound { .. })) if before.is_some() => {
                Err(TokenStoreError::Conflict(format!("{what}: {error}")))
            }
            Err(error @ ApiError::Conflict { .. }) => {
                Err(TokenStoreError::Conflict(format!("{what}: {error}")))
            }
            Err(error) => Err(unusable(&causes(&error))),
        }
    }
}

fn parse(text: &str) -> Option<KeptToken> {
    let raw: Raw<'_> = serde_json::from_str(text).ok()?;
    if raw.kind != TYPE {
        return None;
    }
    let octets = Zeroizing::new(STANDARD.decode(raw.data.get(KEY)?).ok()?);
    let token = std::str::from_utf8(&octets).ok().filter(|token| is_refresh_token(token))?;
    Some(KeptToken { token: Zeroizing::new(token.to_owned()), version: raw.metadata.version })
}

impl TokenStore for SecretTokens {
    fn load<'a>(&'a self, id: &'a TokenId) -> Pending<'a, Result<Option<KeptToken>, TokenStoreError>> {
        Box::pin(self.read(id))
    }

    fn save<'a>(
        &'a self,
        id: &'a TokenId,
        token: &'a str,
        before: Option<&'a str>,
    ) -> Pending<'a, Result<(), TokenStoreError>> {
        Box::pin(self.write(id, token, before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_of_another_kind_is_no_token() {
        let text = |kind: &str, data: &str| {
            format!(r#"{{"metadata":{{"resourceVersion":"7","uid":"u"}},"type":"{kind}","data":{data}}}"#)
        };
        let kept = parse(&text(TYPE, r#"{"refreshToken":"cjI=","x":""}"#)).unwrap();
        assert_eq!((&**kept.token, &*kept.version), ("r2", "7"));
        for bad in [
            text("Opaque", r#"{"refreshToken":"cjI="}"#),
            text(TYPE, r#"{"refresh":"cjI="}"#),
            text(TYPE, r#"{"refreshToken":"!"}"#),
            text(TYPE, r#"{"refreshToken":""}"#),
            text(TYPE, r#"{"refreshToken":"cgo="}"#),
            text(TYPE, "null"),
            "{}".to_owned(),
        ] {
            assert!(parse(&bad).is_none(), "{bad}");
        }
    }
}
