//! TLS sessions by rustls: 1.2 and 1.3, resumed where the server lets them.
//!
//! A `ClientConfig` is kept for each way of verifying and each client
//! certificate, since sessions are resumed within one configuration only: a
//! session that was accepted under one policy is never resumed under another.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::error::TlsError;
use super::material::{MaterialError, TlsMaterial};
use super::verify::Verifier;
use crate::domain::work::{TlsMode, TlsPolicy};

/// Configurations kept; the one unused for longest goes first.
const MOST_CONFIGS: usize = 256;

/// Sessions kept for resumption by one configuration, 8 of them a server.
const SESSIONS: usize = 512;

/// The platform's roots are read again after a day: certificates come and go
/// while a daemon runs for months.
const ROOTS_LAST: Duration = Duration::from_hours(24);

/// How a server's certificate is judged under a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trust {
    Platform,
    Own([u8; 32]),
    Pins(Vec<[u8; 32]>),
    Anything,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    trust: Trust,
    client: Option<[u8; 32]>,
}

struct Kept {
    config: Arc<ClientConfig>,
    used: Instant,
}

type Roots = Arc<OnceCell<Arc<dyn ServerCertVerifier>>>;

/// The configurations of a process.
pub(super) struct Configs {
    provider: Arc<CryptoProvider>,
    kept: Mutex<HashMap<Key, Kept>>,
    /// Loaded when the first policy needs them: they cost time and memory
    /// that a process with its own CA or with pins never needs to spend.
    roots: Mutex<(Instant, Roots)>,
}

impl Configs {
    pub(super) fn new() -> Self {
        Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            kept: Mutex::new(HashMap::new()),
            roots: Mutex::new((Instant::now(), Roots::default())),
        }
    }

    /// The configuration for `policy` with `material`.
    pub(super) async fn config(
        &self,
        policy: &TlsPolicy,
        material: &TlsMaterial,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let key = key(policy, material)?;
        self.refresh_roots();
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(found) = kept.get_mut(&key) {
                found.used = Instant::now();
                return Ok(Arc::clone(&found.config));
            }
        }
        let verifier = self.verifier(&key.trust, material).await?;
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| TlsError::Setup(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = if key.client.is_some() {
            let (chain, secret) = material.client()?;
            builder.with_client_auth_cert(chain, secret).map_err(|error| client_error(&error))?
        } else {
            builder.with_no_client_auth()
        };
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        let config = Arc::new(config);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Another connection may have made it meanwhile: one of them must
        // win, or the sessions of the other would never be resumed.
        if let Some(found) = kept.get(&key) {
            return Ok(Arc::clone(&found.config));
        }
        while kept.len() >= MOST_CONFIGS {
            let Some(oldest) = kept.iter().min_by_key(|(_, one)| one.used).map(|(key, _)| key.clone()) else {
                break;
            };
            kept.remove(&oldest);
        }
        kept.insert(key, Kept { config: Arc::clone(&config), used: Instant::now() });
        Ok(config)
    }

    async fn verifier(
        &self,
        trust: &Trust,
        material: &TlsMaterial,
    ) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        Ok(match trust {
            Trust::Platform => {
                let cell = Arc::clone(&self.roots.lock().unwrap_or_else(PoisonError::into_inner).1);
                let provider = Arc::clone(&self.provider);
                // Reading them blocks on files.
                let load = || async move {
                    tokio::task::spawn_blocking(move || Verifier::platform(&provider))
                        .await
                        .map_err(|error| TlsError::Setup(error.to_string()))?
                        .map(|verifier| Arc::new(verifier) as Arc<dyn ServerCertVerifier>)
                        .map_err(|error| TlsError::Roots(error.to_string()))
                };
                Arc::clone(cell.get_or_try_init(load).await?)
            }
            Trust::Own(_) => Arc::new(Verifier::own(&self.provider, material.ca()?)?),
            Trust::Pins(pins) => Arc::new(Verifier::pins(&self.provider, pins.clone())),
            Trust::Anything => Arc::new(Verifier::anything(&self.provider)),
        })
    }

    /// Forgets the platform's roots, and what was built on them, once a day.
    fn refresh_roots(&self) {
        let mut roots = self.roots.lock().unwrap_or_else(PoisonError::into_inner);
        if roots.0.elapsed() < ROOTS_LAST {
            return;
        }
        *roots = (Instant::now(), Roots::default());
        drop(roots);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|key, _| key.trust != Trust::Platform);
    }
}

/// What `policy` trusts. A Secret that is named but was not handed over is an
/// error here, never a weaker check.
fn key(policy: &TlsPolicy, material: &TlsMaterial) -> Result<Key, TlsError> {
    let trust = if !policy.pins.is_empty() {
        let mut pins = policy.pins.clone();
        pins.sort_unstable();
        Trust::Pins(pins)
    } else if policy.ca.is_some() {
        Trust::Own(material.ca_digest().ok_or(MaterialError::Absent { what: super::material::CA })?)
    } else if policy.mode == TlsMode::Opportunistic && policy.server_name.is_none() {
        Trust::Anything
    } else {
        Trust::Platform
    };
    let client = if policy.client_certificate.is_some() {
        Some(
            material
                .client_digest()
                .ok_or(MaterialError::Absent { what: "tls.clientCertificateSecretRef" })?,
        )
    } else {
        None
    };
    Ok(Key { trust, client })
}

fn client_error(error: &rustls::Error) -> TlsError {
    let text = match error {
        rustls::Error::InconsistentKeys(_) => "its key does not belong to its certificate".to_owned(),
        error => crate::domain::text::shown(error.to_string()),
    };
    MaterialError::Client(text).into()
}
