//! Secrets and `ConfigMaps` as the engine reads them: by `get` alone, each time
//! anew, so that a changed password is used at the next poll.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use kube::Client;
use kube::api::GetParams;
use kube::core::request::Request;
use serde::de::{self, Deserialize, Deserializer, Visitor};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::client::is_name;
use super::error::unauthorized;
use crate::domain::text::escape;
use crate::domain::work::{SecretKind, SecretRef, WorkItem};
use crate::engine::ports::{Pending, SecretError, Secrets};

/// One poll reads several keys of one object, and records that share a Secret
/// are often due together: what was read is good for so long.
const FRESH: Duration = Duration::from_secs(1);
/// One request.
const REQUEST: Duration = Duration::from_secs(10);
/// An API server that cannot be asked is no reason to fail a poll at once: it
/// is asked again for so long.
const PATIENCE: Duration = Duration::from_secs(25);
/// Between two tries, and once more for each further one.
const PAUSE: Duration = Duration::from_millis(500);

/// Kind, namespace and name.
type Name = (SecretKind, Arc<str>, Arc<str>);
type Reading = Shared<BoxFuture<'static, Result<Arc<Object>, Trouble>>>;

/// Reads Secrets and `ConfigMaps` of any namespace with `get`.
#[derive(Clone)]
pub struct ApiSecrets {
    client: Client,
    recent: Arc<Mutex<HashMap<Name, (Instant, Reading)>>>,
}

impl fmt::Debug for ApiSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiSecrets").finish_non_exhaustive()
    }
}

/// What an object holds; wiped when the last reader lets go of it.
struct Object {
    version: String,
    data: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

#[derive(Clone)]
enum Trouble {
    Missing(Arc<str>),
    /// For a while, perhaps.
    Away(Arc<str>),
    /// As long as nobody changes anything.
    Refused(Arc<str>),
}

impl From<Trouble> for SecretError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Missing(why) => Self::Missing(why.to_string()),
            Trouble::Away(why) | Trouble::Refused(why) => Self::Unavailable(why.to_string()),
        }
    }
}

impl ApiSecrets {
    /// Reads through `client`.
    pub fn new(client: Client) -> Self {
        Self { client, recent: Arc::default() }
    }

    /// The versions of all that a poll of `item` reads on the POP3 side, as one
    /// text: it changes when one of them does.
    ///
    /// # Errors
    /// [`SecretError::Missing`] while one of them, or its key, is not there.
    pub async fn versions(&self, item: &WorkItem) -> Result<String, SecretError> {
        let mut versions = String::new();
        for at in used_by(item) {
            let object = self.object(at).await?;
            pick(&object, at)?;
            versions.push_str(&object.version);
            versions.push(' ');
        }
        Ok(versions)
    }

    async fn object(&self, at: &SecretRef) -> Result<Arc<Object>, Trouble> {
        let name: Name = (at.kind, Arc::clone(&at.namespace), Arc::clone(&at.name));
        let reading = {
            let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            match recent.get(&name) {
                Some((since, reading)) if now.duration_since(*since) < FRESH => reading.clone(),
                _ => {
                    let reading = read(self.client.clone(), name.clone()).boxed().shared();
                    recent.insert(name, (now, reading.clone()));
                    self.forget_later();
                    reading
                }
            }
        };
        reading.await
    }

    /// Nothing secret stays in memory for longer than it is of use.
    fn forget_later(&self) {
        let recent = Arc::downgrade(&self.recent);
        tokio::spawn(async move {
            tokio::time::sleep(FRESH).await;
            if let Some(recent) = recent.upgrade() {
                let now = Instant::now();
                let mut recent = recent.lock().unwrap_or_else(PoisonError::into_inner);
                recent.retain(|_, (since, _)| now.duration_since(*since) < FRESH);
            }
        });
    }
}

impl Secrets for ApiSecrets {
    fn get<'a>(&'a self, at: &'a SecretRef) -> Pending<'a, Result<Zeroizing<Vec<u8>>, SecretError>> {
        Box::pin(async move {
            let until = Instant::now() + PATIENCE;
            let mut pause = PAUSE;
            loop {
                match self.object(at).await {
                    Ok(object) => return pick(&object, at),
                    Err(Trouble::Away(why)) if Instant::now() + pause < until => {
                        tracing::debug!("{why}: it is asked for again");
                        tokio::time::sleep(pause.max(FRESH)).await;
                        pause += PAUSE;
                    }
                    Err(trouble) => return Err(trouble.into()),
                }
            }
        })
    }
}

/// What a poll of `item` reads for its maildrop.
fn used_by(item: &WorkItem) -> impl Iterator<Item = &SecretRef> {
    let tls = &item.remote.tls;
    let client = tls.client_certificate.iter().flat_map(|(chain, key)| [chain, key]);
    item.remote.login.refs().chain(&tls.ca).chain(client)
}

fn pick(object: &Object, at: &SecretRef) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    object.data.get(&*at.key).cloned().ok_or_else(|| {
        let keys: Vec<&str> = object.data.keys().map(|key| &**key).take(10).collect();
        let has = if keys.is_empty() { "is empty".into() } else { format!("has {}", keys.join(", ")) };
        SecretError::Missing(format!(
            "{} has no key `{}`: it {has}",
            describe(at.kind, &at.namespace, &at.name),
            at.key
        ))
    })
}

fn describe(kind: SecretKind, namespace: &str, name: &str) -> String {
    match kind {
        SecretKind::Secret => format!("Secret {namespace}/{}", escape(name)),
        SecretKind::ConfigMap => format!("ConfigMap {namespace}/{}", escape(name)),
    }
}

/// Not by `Api::get`: that logs what it cannot understand, and leaves copies
/// behind.
async fn read(client: Client, (kind, namespace, name): Name) -> Result<Arc<Object>, Trouble> {
    let what = describe(kind, &namespace, &name);
    let plural = match kind {
        SecretKind::Secret => "secrets",
        SecretKind::ConfigMap => "configmaps",
    };
    // The name becomes a part of a path, which must not lead elsewhere.
    if !is_name(&namespace, 63) || !is_name(&name, 253) {
        return Err(Trouble::Missing(format!("there is no {what}: that is no name of an object").into()));
    }
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/{plural}"))
        .get(&name, &GetParams::default())
        .map_err(|error| Trouble::Refused(format!("{what} cannot be asked for: {error}").into()))?;
    let text = match tokio::time::timeout(REQUEST, client.request_text(request)).await {
        Ok(Ok(text)) => Zeroizing::new(text),
        Ok(Err(kube::Error::Api(status))) => {
            return Err(match status.code {
                404 => Trouble::Missing(format!("there is no {what}").into()),
                401 => {
                    Trouble::Away(format!("{what} cannot be read now: {}", unauthorized(&status.reason)).into())
                }
                403 => Trouble::Refused(
                    format!("{what} may not be read: the worker's ServiceAccount needs `get` on {plural} in that namespace")
                        .into(),
                ),
                code @ (400 | 402 | 405..=407 | 410..=428 | 430..=499) => Trouble::Refused(
                    format!("{what} cannot be read: the API server says {code} {}", status.reason).into(),
                ),
                code => Trouble::Away(format!("{what} cannot be read now: the API server says {code} {}", status.reason).into()),
            });
        }
        Ok(Err(error)) => {
            return Err(Trouble::Away(format!("{what} cannot be read now: {}", plain(&error)).into()));
        }
        Err(_) => {
            return Err(Trouble::Away(
                format!("{what} cannot be read now: no answer within {REQUEST:?}").into(),
            ));
        }
    };
    parse(kind, &text)
        .map(Arc::new)
        .map_err(|why| Trouble::Refused(format!("{what} cannot be understood ({why})").into()))
}

/// Errors of the transport say nothing of what was transported.
fn plain(error: &kube::Error) -> Cow<'static, str> {
    match error {
        kube::Error::HyperError(_) | kube::Error::Service(_) => "the API server cannot be reached".into(),
        kube::Error::Auth(_) => "the worker's own token cannot be had".into(),
        _ => "the request failed".into(),
    }
}

/// Octets behind base64, or text as it is.
struct Coded(Zeroizing<Vec<u8>>);
struct Plain(Zeroizing<Vec<u8>>);

struct Reader(bool);

impl Visitor<'_> for Reader {
    type Value = Zeroizing<Vec<u8>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
        if self.0 {
            // The decoder's own error would quote what it met.
            STANDARD.decode(text).map(Zeroizing::new).map_err(|_| E::custom("no base64"))
        } else {
            Ok(Zeroizing::new(text.as_bytes().to_vec()))
        }
    }
}

impl<'de> Deserialize<'de> for Coded {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Reader(true)).map(Self)
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Reader(false)).map(Self)
    }
}

#[derive(serde::Deserialize)]
struct Meta {
    #[serde(default, rename = "resourceVersion")]
    version: String,
}

#[derive(serde::Deserialize)]
struct RawSecret {
    metadata: Meta,
    #[serde(default)]
    data: Option<BTreeMap<String, Coded>>,
}

#[derive(serde::Deserialize)]
struct RawConfigMap {
    metadata: Meta,
    #[serde(default)]
    data: Option<BTreeMap<String, Plain>>,
    #[serde(default, rename = "binaryData")]
    binary: Option<BTreeMap<String, Coded>>,
}

/// The error names a place, never what is there.
fn parse(kind: SecretKind, text: &str) -> Result<Object, String> {
    let place = |error: serde_json::Error| format!("at column {}", error.column());
    match kind {
        SecretKind::Secret => {
            let raw: RawSecret = serde_json::from_str(text).map_err(place)?;
            let data = raw.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
            Ok(Object { version: raw.metadata.version, data })
        }
        SecretKind::ConfigMap => {
            let raw: RawConfigMap = serde_json::from_str(text).map_err(place)?;
            let text = raw.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
            let binary = raw.binary.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0));
            Ok(Object { version: raw.metadata.version, data: text.chain(binary).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kind: SecretKind, key: &str) -> SecretRef {
        SecretRef { kind, namespace: "mail".into(), name: "isp".into(), key: key.into() }
    }

    #[test]
    fn secrets_and_config_maps_are_understood() {
        let text = r#"{"metadata":{"resourceVersion":"7"},"data":{"password":"c2VzYW0=","empty":""}}"#;
        let secret = parse(SecretKind::Secret, text).unwrap();
        assert_eq!(secret.version, "7");
        assert_eq!(&**pick(&secret, &at(SecretKind::Secret, "password")).unwrap(), b"sesam");
        assert_eq!(&**pick(&secret, &at(SecretKind::Secret, "empty")).unwrap(), b"");
        let text = r#"{"metadata":{},"data":{"ca.crt":"a\nb"},"binaryData":{"ca.der":"AAE="}}"#;
        let map = parse(SecretKind::ConfigMap, text).unwrap();
        assert_eq!(&**pick(&map, &at(SecretKind::ConfigMap, "ca.crt")).unwrap(), b"a\nb");
        assert_eq!(&**pick(&map, &at(SecretKind::ConfigMap, "ca.der")).unwrap(), [0, 1]);
        assert!(parse(SecretKind::Secret, r#"{"metadata":{}}"#).unwrap().data.is_empty());
    }

    #[test]
    fn errors_name_the_key_and_never_what_is_secret() {
        let secret = parse(SecretKind::Secret, r#"{"metadata":{},"data":{"pass":"c2VzYW0="}}"#).unwrap();
        let error = pick(&secret, &at(SecretKind::Secret, "password")).unwrap_err().to_string();
        assert_eq!(error, "Secret mail/isp has no key `password`: it has pass");
        for text in [
            r#"{"metadata":{},"data":{"pass":"sesam!"}}"#,
            r#"{"metadata":{},"data":{"pass":["sesam"]}}"#,
            r#"{"metadata":{},"data":"sesam"}"#,
        ] {
            let error = parse(SecretKind::Secret, text).err().unwrap();
            assert!(!error.contains("sesam"), "{error}");
        }
    }
}
