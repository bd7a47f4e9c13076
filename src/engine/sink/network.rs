//! Connections over the real network, with the Secrets that they need.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::dial::{Dial, Trouble};
use crate::domain::code::Code;
use crate::domain::work::{Endpoint, MailHost, SecretRef};
use crate::engine::ports::{SecretError, Secrets};
use crate::net::{ConnectOptions, Connector, Stream, TlsMaterial};

/// Dials by TCP or unix socket and secures by rustls.
pub struct Network {
    connector: Arc<Connector>,
    secrets: Arc<dyn Secrets>,
    host_name: Arc<str>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Network").field("host_name", &self.host_name).finish_non_exhaustive()
    }
}

impl Network {
    /// `host_name` is what we call ourselves where a destination sets no
    /// `ehloName`.
    pub fn new(connector: Arc<Connector>, secrets: Arc<dyn Secrets>, host_name: Arc<str>) -> Self {
        Self { connector, secrets, host_name }
    }

    async fn material(&self, host: &MailHost) -> Result<TlsMaterial, Trouble> {
        let ca_pem = match &host.tls.ca {
            Some(at) => Some(self.secret(at).await?.to_vec()),
            None => None,
        };
        let client_pem = match &host.tls.client_certificate {
            Some((chain, key)) => Some((self.secret(chain).await?.to_vec(), self.secret(key).await?)),
            None => None,
        };
        Ok(TlsMaterial { ca_pem, client_pem })
    }
}

/// What the certificate must be for.
fn name_of(host: &MailHost) -> &str {
    match &host.endpoint {
        Endpoint::Tcp(name, _) => name,
        Endpoint::Unix(_) => "localhost",
    }
}

impl Dial for Network {
    type Stream = Stream;

    async fn connect(&self, host: &MailHost, within: Duration) -> Result<Stream, Trouble> {
        let unreachable = |error: &dyn fmt::Display| Trouble {
            code: Code::DestinationUnavailable,
            message: format!("destination: {error}").into(),
        };
        match &host.endpoint {
            Endpoint::Unix(path) => {
                self.connector.connect_unix(path, within).await.map_err(|error| unreachable(&error))
            }
            Endpoint::Tcp(name, port) => self
                .connector
                .connect(name, *port, &ConnectOptions::default(), within)
                .await
                .map_err(|error| unreachable(&error)),
        }
    }

    async fn secure(&self, stream: Stream, host: &MailHost, within: Duration) -> Result<Stream, Trouble> {
        let material = self.material(host).await?;
        self.connector.secure(stream, name_of(host), &host.tls, &material, within).await.map_err(|error| {
            Trouble {
                // Also a handshake without end is one that does not work.
                code: match error.code() {
                    Code::TimedOut => Code::TlsFailed,
                    code => code,
                },
                message: format!("destination: {error}").into(),
            }
        })
    }

    async fn secret(&self, at: &SecretRef) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        self.secrets.get(at).await.map_err(|error| Trouble {
            code: match error {
                SecretError::Missing(_) => Code::SecretMissing,
                SecretError::Unavailable(_) => Code::DestinationUnavailable,
            },
            message: format!("destination: {error}").into(),
        })
    }

    fn host_name(&self) -> Arc<str> {
        Arc::clone(&self.host_name)
    }
}
