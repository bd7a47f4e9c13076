//! A certificate authority for one test.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;

/// A CA and what it signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The CA's certificate.
    pub pem: String,
}

/// A certificate with its key, both PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The chain: the certificate alone, since the CA signs it directly.
    pub certificate: String,
    /// PKCS#8.
    pub key: String,
    /// SHA-256 of the certificate's DER, lower-case hex.
    pub pin: String,
    /// DER of the same.
    pub der: Vec<u8>,
    /// DER of the key.
    pub key_der: Vec<u8>,
}

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, "RPOP test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A server's certificate for `names` (host names or addresses).
    pub fn server(&self, names: &[&str]) -> Identity {
        self.issue(names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// A client's certificate.
    pub fn client(&self, name: &str) -> Identity {
        self.issue(&[name], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(&self, names: &[&str], usage: ExtendedKeyUsagePurpose) -> Identity {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).expect("names");
        params.distinguished_name.push(rcgen::DnType::CommonName, names.first().cloned().unwrap_or_default());
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).expect("a signature");
        let pin = super::mail::digest(certificate.der());
        Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            pin,
            der: certificate.der().to_vec(),
            key_der: key.serialize_der(),
        }
    }
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key` into `folder`.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let (certificate, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        std::fs::write(&certificate, &self.certificate).expect("the certificate is written");
        std::fs::write(&key, &self.key).expect("the key is written");
        (certificate, key)
    }

    /// For a rustls server.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.config(None)
    }

    /// For one that wants a client certificate signed by `authority`.
    pub fn server_config_for_clients_of(&self, authority: &Authority) -> Arc<ServerConfig> {
        self.config(Some(authority))
    }

    fn config(&self, clients_of: Option<&Authority>) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![self.der.clone().into()];
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(self.key_der.clone().into());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = match clients_of {
            None => builder.with_no_client_auth(),
            Some(authority) => {
                let mut roots = rustls::RootCertStore::empty();
                let pem = CertificateDer::from_pem_slice(authority.pem.as_bytes()).expect("our own PEM");
                roots.add(pem).expect("a usable authority");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        Arc::new(builder.with_single_cert(chain, key).expect("a usable certificate"))
    }
}
