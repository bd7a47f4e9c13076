//! Which certificates are accepted.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};

use super::material::{CA, MaterialError};

/// The rule that a certificate is held against. Whatever the rule, the server
/// must prove that it has the certificate's key.
#[derive(Debug)]
pub(super) struct Verifier {
    rule: Rule,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
enum Rule {
    /// The platform's roots.
    Platform(Arc<dyn ServerCertVerifier>),
    /// The user's own, and certificates of the bundle themselves.
    Own { chain: Arc<WebPkiServerVerifier>, listed: Vec<CertificateDer<'static>> },
    /// Any one of these digests.
    Pins(Vec<[u8; 32]>),
    /// Everything: only against those who merely listen.
    Anything,
}

/// A refusal, with what helps to mend it.
#[derive(Debug)]
pub(super) struct Refused {
    /// Why.
    pub(super) cause: Error,
    /// SHA-256 of the server's certificate.
    pub(super) fingerprint: [u8; 32],
    /// The issuer and the subject are one: self-signed.
    pub(super) pinned: bool,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)
    }
}

impl std::error::Error for Refused {}

impl Verifier {
    /// Trusts the platform's roots; reads them from disk.
    pub(super) fn platform(provider: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let platform = rustls_platform_verifier::Verifier::new(Arc::clone(provider))?;
        Ok(Self::new(provider, Rule::Platform(Arc::new(platform))))
    }

    /// Trusts `listed` and nothing else: as issuers, and as servers.
    pub(super) fn own(
        provider: &Arc<CryptoProvider>,
        listed: Vec<CertificateDer<'static>>,
    ) -> Result<Self, MaterialError> {
        let roots = Arc::new(roots(&listed)?);
        let chain = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider))
            .build()
            .map_err(|error| MaterialError::Certificate { what: CA, at: 1, detail: error.to_string() })?;
        Ok(Self::new(provider, Rule::Own { chain, listed }))
    }

    pub(super) fn pins(provider: &Arc<CryptoProvider>, pins: Vec<[u8; 32]>) -> Self {
        Self::new(provider, Rule::Pins(pins))
    }

    pub(super) fn anything(provider: &Arc<CryptoProvider>) -> Self {
        Self::new(provider, Rule::Anything)
    }

    fn new(provider: &Arc<CryptoProvider>, rule: Rule) -> Self {
        Self { rule, algorithms: provider.signature_verification_algorithms }
    }
}

/// A store of `listed`.
pub(super) fn roots(listed: &[CertificateDer<'static>]) -> Result<RootCertStore, MaterialError> {
    let mut store = RootCertStore::empty();
    for (at, certificate) in listed.iter().enumerate() {
        store.add(certificate.clone()).map_err(|error| MaterialError::Certificate {
            what: CA,
            at: at + 1,
            detail: crate::domain::text::shown(error.to_string()),
        })?;
    }
    Ok(store)
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let result = match &self.rule {
            Rule::Platform(inner) => {
                inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            }
            Rule::Own { chain, listed } => {
                let result =
                    chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
                match result {
                    // What `openssl req -x509` makes is a CA as well as a
                    // server. Its validity has been checked by then.
                    Err(error) if is_ca_as_server(&error) && listed.iter().any(|one| one == end_entity) => {
                        ParsedCertificate::try_from(end_entity)
                            .and_then(|parsed| verify_server_name(&parsed, server_name))
                            .map(|()| ServerCertVerified::assertion())
                    }
                    result => result,
                }
            }
            Rule::Pins(pins) => pinned(pins, end_entity),
            Rule::Anything => Ok(ServerCertVerified::assertion()),
        };
        result.map_err(|cause| {
            let refused = Refused {
                cause,
                fingerprint: Sha256::digest(end_entity).into(),
                pinned: matches!(self.rule, Rule::Pins(_)),
            };
            CertificateError::Other(OtherError(Arc::new(refused))).into()
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn pinned(pins: &[[u8; 32]], certificate: &CertificateDer<'_>) -> Result<ServerCertVerified, Error> {
    let whole: [u8; 32] = Sha256::digest(certificate).into();
    if pins.contains(&whole) {
        return Ok(ServerCertVerified::assertion());
    }
    let key = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    let key: [u8; 32] = Sha256::digest(&key).into();
    if pins.contains(&key) {
        return Ok(ServerCertVerified::assertion());
    }
    Err(CertificateError::ApplicationVerificationFailure.into())
}

/// webpki's `CaUsedAsEndEntity` reaches us in a wrapper.
pub(super) fn is_ca_as_server(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(other)) = error else { return false };
    other.0.to_string().contains("CaUsedAsEndEntity")
}
