//! Channel bindings: what both ends of a TLS connection know of it and nobody
//! between two connections can make equal (RFC 5056).

use std::fmt;

use rustls::{ClientConnection, ProtocolVersion};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// The bindings of a TLS connection.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ChannelBindings {
    /// `tls-exporter` (RFC 9266); of TLS 1.3 only, since with 1.2 it is safe
    /// just where both ends have the extended master secret, which cannot be
    /// asked for.
    pub exporter: Option<[u8; 32]>,
    /// `tls-server-end-point` (RFC 5929, section 4), where the certificate's
    /// signature names one digest.
    pub server_end_point: Option<Vec<u8>>,
}

impl fmt::Debug for ChannelBindings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChannelBindings(***)")
    }
}

impl ChannelBindings {
    pub(super) fn of(connection: &ClientConnection) -> Self {
        let exporter = (connection.protocol_version() == Some(ProtocolVersion::TLSv1_3))
            .then(|| connection.export_keying_material([0; 32], b"EXPORTER-Channel-Binding", Some(b"")).ok())
            .flatten();
        let server = connection.peer_certificates().and_then(|chain| chain.first());
        Self { exporter, server_end_point: server.and_then(|server| end_point(server)) }
    }
}

/// The digest of a certificate in DER, by the algorithm of its own signature;
/// SHA-256 in place of MD5 and SHA-1. `None` where that algorithm has no
/// digest (Ed25519), more than one (RSA-PSS), or one that is not known.
fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // RFC 8017, appendix A.2.4: 1.2.840.113549.1.1.
    const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01];
    // RFC 5758, section 3.2: 1.2.840.10045.4.
    const ECDSA: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04];
    let algorithm = signature_algorithm(certificate)?;
    let rest = |prefix| algorithm.strip_prefix(prefix);
    match (rest(RSA), rest(ECDSA)) {
        (Some([4 | 5 | 11]), _) | (_, Some([1] | [3, 2])) => Some(Sha256::digest(certificate).to_vec()),
        (Some([12]), _) | (_, Some([3, 3])) => Some(Sha384::digest(certificate).to_vec()),
        (Some([13]), _) | (_, Some([3, 4])) => Some(Sha512::digest(certificate).to_vec()),
        _ => None,
    }
}

/// The object identifier in `Certificate.signatureAlgorithm` (RFC 5280,
/// section 4.1).
fn signature_algorithm(certificate: &[u8]) -> Option<&[u8]> {
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    let (whole, _) = element(SEQUENCE, certificate)?;
    let (_signed, behind) = element(SEQUENCE, whole)?;
    let (algorithm, _) = element(SEQUENCE, behind)?;
    element(OBJECT_IDENTIFIER, algorithm).map(|(identifier, _)| identifier)
}

/// The content of the DER element that `der` begins with, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = der.strip_prefix(&[tag])?;
    let (len, rest) = match rest.split_first()? {
        (len @ 0..=0x7f, rest) => (usize::from(*len), rest),
        (count @ 0x81..=0x84, rest) => {
            let (octets, rest) = rest.split_at_checked(usize::from(count & 0x7f))?;
            (octets.iter().fold(0, |len, octet| len << 8 | usize::from(*octet)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
        let key = rcgen::KeyPair::generate_for(algorithm).unwrap();
        let params = rcgen::CertificateParams::new(vec!["pop.example".to_owned()]).unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn the_certificate_is_digested_as_it_was_signed() {
        let one = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(end_point(&one), Some(Sha256::digest(&one).to_vec()));
        let one = certificate(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert_eq!(end_point(&one), Some(Sha384::digest(&one).to_vec()));
        let one = certificate(&rcgen::PKCS_ED25519);
        assert_eq!(end_point(&one), None);
    }

    #[test]
    fn each_algorithm_has_its_digest() {
        let with = |identifier: &[u8]| {
            let len = |octets: &[u8]| u8::try_from(octets.len()).unwrap();
            let algorithm = [&[6, len(identifier)], identifier].concat();
            let inner = [&[0x30, 1, 0, 0x30, len(&algorithm)][..], &algorithm].concat();
            [&[0x30, len(&inner)][..], &inner].concat()
        };
        let rsa = |last: u8| with(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, last]);
        let ecdsa = |last: &[u8]| with(&[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4][..], last].concat());
        for one in [rsa(4), rsa(5), rsa(11), ecdsa(&[1]), ecdsa(&[3, 2])] {
            assert_eq!(end_point(&one), Some(Sha256::digest(&one).to_vec()));
        }
        for one in [rsa(12), ecdsa(&[3, 3])] {
            assert_eq!(end_point(&one), Some(Sha384::digest(&one).to_vec()));
        }
        for one in [rsa(13), ecdsa(&[3, 4])] {
            assert_eq!(end_point(&one), Some(Sha512::digest(&one).to_vec()));
        }
        // RSA-PSS, SHA-224, and what nobody has heard of.
        for one in [rsa(10), rsa(14), ecdsa(&[3, 1]), ecdsa(&[]), with(&[]), with(&[1])] {
            assert_eq!(end_point(&one), None);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_octets_are_read_within_their_bounds(
            octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
        ) {
            let found = signature_algorithm(&octets).map_or(0, <[u8]>::len);
            proptest::prop_assert!(found < octets.len().max(1));
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_end_point() {
        let good = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        for len in 0..good.len() {
            assert_eq!(end_point(&good[..len]), None);
        }
        for bad in [
            &[0x30, 0x80][..],
            &[0x30, 0x85, 1, 1, 1, 1, 1],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0x31, 0],
        ] {
            assert_eq!(end_point(bad), None);
        }
    }
}
