//! What Secrets hold for TLS, parsed from PEM (RFC 7468).

use std::fmt;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::domain::code::Code;

/// The most octets of PEM that are looked at: a bundle of all public roots
/// has 220 KB.
const MOST_OCTETS: usize = 1024 * 1024;

/// The contents of the Secrets and `ConfigMaps` that a `TlsPolicy` names.
#[derive(Clone, Default)]
pub struct TlsMaterial {
    /// PEM certificates to trust instead of the platform's roots.
    pub ca_pem: Option<Vec<u8>>,
    /// A client certificate chain and its key, both PEM.
    pub client_pem: Option<(Vec<u8>, Zeroizing<Vec<u8>>)>,
}

impl fmt::Debug for TlsMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsMaterial")
            .field("ca", &self.ca_pem.is_some())
            .field("client", &self.client_pem.is_some())
            .finish()
    }
}

/// What is wrong with a PEM text. `what` names the field of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaterialError {
    /// The policy names a Secret whose contents were not handed over.
    #[error("{what} is given but its contents are missing")]
    Absent {
        /// The field.
        what: &'static str,
    },
    /// No PEM block of the kind that is needed.
    #[error("{what} holds no {needed} in PEM form (a block that begins with -----BEGIN {label}-----){hint}")]
    Missing {
        /// The field.
        what: &'static str,
        /// `certificate` or `private key`.
        needed: &'static str,
        /// The PEM label.
        label: &'static str,
        /// What it seems to be instead.
        hint: &'static str,
    },
    /// A PEM block is broken.
    #[error("{what} holds a damaged PEM block: {detail}")]
    Damaged {
        /// The field.
        what: &'static str,
        /// What is wrong; never the contents.
        detail: &'static str,
    },
    /// Too long to be what it should be.
    #[error("{what} is longer than 1 MiB")]
    TooLong {
        /// The field.
        what: &'static str,
    },
    /// A certificate cannot be parsed, or is none to trust.
    #[error("{what}: certificate {at} cannot be used: {detail}")]
    Certificate {
        /// The field.
        what: &'static str,
        /// Counted from 1.
        at: usize,
        /// What is wrong.
        detail: String,
    },
    /// Key and certificate do not fit, or the key is of an unknown kind.
    #[error("tls.clientCertificateSecretRef cannot be used: {0}")]
    Client(String),
}

impl MaterialError {
    /// The code for status and metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::Absent { .. } => Code::SecretMissing,
            _ => Code::SecretInvalid,
        }
    }
}

pub(super) const CA: &str = "tls.caRef";
const CLIENT_CHAIN: &str = "tls.clientCertificateSecretRef (tls.crt)";
const CLIENT_KEY: &str = "tls.clientCertificateSecretRef (tls.key)";

/// A parsed client certificate.
pub(super) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

impl TlsMaterial {
    /// Checks that everything in it can be used, without a connection: for
    /// validation before the first poll.
    ///
    /// # Errors
    /// What is wrong, and with which field.
    pub fn check(&self) -> Result<(), MaterialError> {
        if self.ca_pem.is_some() {
            super::verify::roots(&self.ca()?)?;
        }
        if self.client_pem.is_some() {
            self.client()?;
        }
        Ok(())
    }

    pub(super) fn ca(&self) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
        certificates(CA, self.ca_pem.as_deref().ok_or(MaterialError::Absent { what: CA })?)
    }

    pub(super) fn client(&self) -> Result<Identity, MaterialError> {
        let (chain, key) = self
            .client_pem
            .as_ref()
            .ok_or(MaterialError::Absent { what: "tls.clientCertificateSecretRef" })?;
        Ok((certificates(CLIENT_CHAIN, chain)?, private_key(key)?))
    }

    pub(super) fn ca_digest(&self) -> Option<[u8; 32]> {
        self.ca_pem.as_ref().map(|pem| Sha256::digest(pem).into())
    }

    pub(super) fn client_digest(&self) -> Option<[u8; 32]> {
        self.client_pem.as_ref().map(|(chain, key)| {
            let mut hash = Sha256::new();
            hash.update((chain.len() as u64).to_be_bytes());
            hash.update(chain);
            hash.update(key.as_slice());
            hash.finalize().into()
        })
    }
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    bounded(what, pem)?;
    let list: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| damaged(what, &error))?;
    if list.is_empty() {
        return Err(MaterialError::Missing {
            what,
            needed: "certificate",
            label: "CERTIFICATE",
            hint: hint(pem),
        });
    }
    Ok(list)
}

fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, MaterialError> {
    bounded(CLIENT_KEY, pem)?;
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => MaterialError::Missing {
            what: CLIENT_KEY,
            needed: "private key",
            label: "PRIVATE KEY",
            hint: hint(pem),
        },
        error => damaged(CLIENT_KEY, &error),
    })
}

fn bounded(what: &'static str, pem: &[u8]) -> Result<(), MaterialError> {
    if pem.len() > MOST_OCTETS { Err(MaterialError::TooLong { what }) } else { Ok(()) }
}

/// Says which kind of damage there is, without quoting what may be a secret.
fn damaged(what: &'static str, error: &pem::Error) -> MaterialError {
    let detail = match error {
        pem::Error::MissingSectionEnd { .. } => "its -----END line is missing",
        pem::Error::IllegalSectionStart { .. } => "its -----BEGIN line is malformed",
        pem::Error::Base64Decode(_) => "it is not base64",
        _ => "it cannot be read",
    };
    MaterialError::Damaged { what, detail }
}

fn hint(octets: &[u8]) -> &'static str {
    let has = |text: &str| memchr::memmem::find(octets, text.as_bytes()).is_some();
    if octets.iter().all(u8::is_ascii_whitespace) {
        "; it is empty"
    } else if octets.starts_with(&[0x30, 0x82]) || octets.starts_with(&[0x30, 0x80]) {
        "; it looks like DER: convert it with openssl x509 -inform der"
    } else if has("BEGIN ENCRYPTED PRIVATE KEY") {
        "; its key is encrypted, and there is nobody to ask for the passphrase: store it without one"
    } else if has("PRIVATE KEY-----") {
        "; it holds a private key"
    } else if has("BEGIN CERTIFICATE-----") {
        "; it holds a certificate"
    } else if octets.starts_with(b"LS0tLS1CRUdJT") {
        "; it looks like base64 of PEM: decode it once, or move it from stringData to data"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca(pem: &[u8]) -> TlsMaterial {
        TlsMaterial { ca_pem: Some(pem.to_vec()), client_pem: None }
    }

    #[test]
    fn a_good_bundle_passes() {
        let first = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let second = rcgen::generate_simple_self_signed(["b.example".to_owned()]).unwrap();
        let text = format!("comment\n{}\n{}", first.cert.pem(), second.cert.pem());
        assert_eq!(ca(text.as_bytes()).check(), Ok(()));
        assert_eq!(ca(text.as_bytes()).ca().unwrap().len(), 2);
        let client =
            (first.cert.pem().into_bytes(), Zeroizing::new(first.signing_key.serialize_pem().into_bytes()));
        assert_eq!(TlsMaterial { ca_pem: None, client_pem: Some(client) }.check(), Ok(()));
    }

    #[test]
    fn what_is_no_pem_is_told_apart() {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let key = made.signing_key.serialize_pem();
        for (octets, said) in [
            (made.cert.der().to_vec(), "looks like DER"),
            (key.clone().into_bytes(), "holds a private key"),
            (Vec::new(), "it is empty"),
            (b"\n \n".to_vec(), "it is empty"),
            (b"LS0tLS1CRUdJTiBDRVJU".to_vec(), "base64 of PEM"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n".to_vec(), "-----END line is missing"),
            (b"-----BEGIN CERTIFICATE-----\n@@@@\n-----END CERTIFICATE-----\n".to_vec(), "not base64"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec(), "certificate 1"),
            (vec![b'x'; MOST_OCTETS + 1], "longer than 1 MiB"),
        ] {
            let error = ca(&octets).check().unwrap_err();
            assert!(error.to_string().contains(said), "{error} lacks {said}");
            assert!(error.to_string().starts_with("tls.caRef"), "{error}");
            assert_eq!(error.code(), Code::SecretInvalid);
        }
        let encrypted = b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
        let material = TlsMaterial {
            ca_pem: None,
            client_pem: Some((made.cert.pem().into_bytes(), Zeroizing::new(encrypted.to_vec()))),
        };
        assert!(material.check().unwrap_err().to_string().contains("encrypted"));
    }

    #[test]
    fn debug_shows_no_key() {
        let material = TlsMaterial {
            ca_pem: None,
            client_pem: Some((b"chain".to_vec(), Zeroizing::new(b"s3cret".to_vec()))),
        };
        assert!(!format!("{material:?}").contains("s3cret"));
    }
}
