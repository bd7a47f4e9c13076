//! TLS against servers of our own: what is accepted, and what a user is told.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::*;
use crate::domain::code::Code;
use crate::domain::work::{SecretKind, SecretRef, TlsMode, TlsPolicy};

const SOON: Duration = Duration::from_secs(20);

struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

struct Made {
    der: CertificateDer<'static>,
    pem: String,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        Self::named("a CA of the tests")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        Self { params, key: KeyPair::generate().unwrap() }
    }

    fn pem(&self) -> Vec<u8> {
        self.params.self_signed(&self.key).unwrap().pem().into_bytes()
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> Made {
        let mut params = CertificateParams::new(vec!["pop.example".to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Made { der: certificate.der().clone(), pem: certificate.pem(), key }
    }
}

impl Made {
    fn private(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    fn server(&self) -> ServerConfig {
        server_builder()
            .with_no_client_auth()
            .with_single_cert(vec![self.der.clone()], self.private())
            .unwrap()
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn server_builder() -> rustls::ConfigBuilder<ServerConfig, rustls::WantsVerifier> {
    ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().unwrap()
}

/// Greets everybody over TLS; returns its port.
async fn greeter(config: ServerConfig) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(stream).await {
                    stream.write_all(b"+OK ready\r\n").await.unwrap();
                    stream.flush().await.unwrap();
                    // Closes without close_notify.
                }
            });
        }
    });
    port
}

/// Sends `octets` to everybody and then waits for the other side to close.
async fn sender(octets: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(octets).await.unwrap();
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.unwrap_or_default();
            });
        }
    });
    port
}

fn somewhere() -> SecretRef {
    SecretRef { kind: SecretKind::Secret, namespace: "a".into(), name: "b".into(), key: "c".into() }
}

fn with_ca() -> TlsPolicy {
    TlsPolicy { ca: Some(somewhere()), ..TlsPolicy::default() }
}

fn ca(pem: Vec<u8>) -> TlsMaterial {
    TlsMaterial { ca_pem: Some(pem), client_pem: None }
}

async fn open(
    connector: &Connector,
    port: u16,
    policy: &TlsPolicy,
    material: &TlsMaterial,
) -> Result<Stream, TlsError> {
    let stream = connector.connect("127.0.0.1", port, &ConnectOptions::default(), SOON).await.unwrap();
    connector.secure(stream, "pop.example", policy, material, SOON).await
}

async fn read(mut stream: Stream) -> Vec<u8> {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).await.unwrap();
    got
}

/// Asserts that `policy` refuses the server, and that the text has `words`.
async fn refuses(
    server: ServerConfig,
    policy: &TlsPolicy,
    material: &TlsMaterial,
    words: &[&str],
) -> TlsError {
    let port = greeter(server).await;
    let error = open(&Connector::new(), port, policy, material).await.unwrap_err();
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} lacks {word:?}");
    }
    assert!(!text.contains(['\r', '\n']) && text.len() < 600, "{text}");
    error
}

#[tokio::test]
async fn a_certificate_of_the_given_ca_is_accepted_and_sessions_are_resumed() {
    let authority = Authority::new();
    let port = greeter(authority.issue(|_| {}).server()).await;
    let connector = Connector::new();
    let material = ca(authority.pem());
    let first = open(&connector, port, &with_ca(), &material).await.unwrap();
    assert!(first.is_encrypted() && !first.tls_resumed());
    assert_eq!(first.tls_version(), Some("TLSv1.3"));
    assert_eq!(first.peer().unwrap().port(), port);
    // An end without close_notify is an end.
    assert_eq!(read(first).await, b"+OK ready\r\n");
    let second = open(&connector, port, &with_ca(), &material).await.unwrap();
    assert!(second.tls_resumed());
    // Another policy must verify for itself.
    let pinned = TlsPolicy { pins: vec![[0; 32]], ..TlsPolicy::default() };
    assert!(open(&connector, port, &pinned, &material).await.is_err());
    // So must the same policy when its CA has changed.
    assert!(open(&connector, port, &with_ca(), &ca(Authority::new().pem())).await.is_err());
}

#[tokio::test]
async fn tls_1_2_is_accepted() {
    let authority = Authority::new();
    let made = authority.issue(|_| {});
    let old = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.der.clone()], made.private())
        .unwrap();
    let port = greeter(old).await;
    let stream = open(&Connector::new(), port, &with_ca(), &ca(authority.pem())).await.unwrap();
    assert_eq!(stream.tls_version(), Some("TLSv1.2"));
    let pins = TlsPolicy { pins: vec![Sha256::digest(&made.der).into()], ..TlsPolicy::default() };
    assert!(open(&Connector::new(), port, &pins, &TlsMaterial::default()).await.is_ok());
}

#[tokio::test]
async fn any_pin_of_a_certificate_or_of_its_key_is_enough() {
    // Expired, for another name, and of a CA that nobody knows.
    let made = Authority::new().issue(|params| {
        params.not_after = date_time_ymd(2020, 1, 1);
        params.subject_alt_names = vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())];
    });
    let port = greeter(made.server()).await;
    let connector = Connector::new();
    let certificate: [u8; 32] = Sha256::digest(&made.der).into();
    let key: [u8; 32] = Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&made.key)).into();
    for pins in [vec![certificate], vec![key], vec![[1; 32], key], vec![certificate, [2; 32]]] {
        let policy = TlsPolicy { pins, ..TlsPolicy::default() };
        let stream = open(&connector, port, &policy, &TlsMaterial::default()).await.unwrap();
        assert_eq!(read(stream).await, b"+OK ready\r\n");
    }
    let policy = TlsPolicy { pins: vec![[1; 32], [2; 32]], ..TlsPolicy::default() };
    let error = refuses(made.server(), &policy, &TlsMaterial::default(), &["neither", "tls.pinSha256"]).await;
    assert_eq!(error.code(), Code::TlsFailed);
    let shown = u128::from_be_bytes(certificate[..16].try_into().unwrap());
    assert!(
        error.to_string().contains(&format!("{shown:032x}")),
        "the fingerprint to compare is told: {error}"
    );
}

#[tokio::test]
async fn refusals_of_certificates_say_what_to_do() {
    let authority = Authority::new();
    let material = ca(authority.pem());
    let expired = authority.issue(|params| params.not_after = date_time_ymd(2020, 1, 31));
    refuses(expired.server(), &with_ca(), &material, &["pop.example", "expired on 2020-01-31"]).await;
    let early = authority.issue(|params| {
        params.not_before = date_time_ymd(2999, 1, 1);
        params.not_after = date_time_ymd(3000, 1, 1);
    });
    refuses(early.server(), &with_ca(), &material, &["2999-01-01", "clock"]).await;
    let other = authority.issue(|params| {
        params.subject_alt_names = vec![rcgen::SanType::DnsName("mail.isp.example".try_into().unwrap())];
    });
    refuses(other.server(), &with_ca(), &material, &["for mail.isp.example;", "tls.serverName"]).await;
    let namesake = Authority::new().issue(|_| {});
    refuses(namesake.server(), &with_ca(), &material, &["is it an older one?"]).await;
    let stranger = Authority::named("another CA").issue(|_| {});
    refuses(stranger.server(), &with_ca(), &material, &["not issued by the CA in tls.caRef"]).await;
    // With the platform's roots; where it has none, that is what is said.
    refuses(stranger.server(), &TlsPolicy::default(), &TlsMaterial::default(), &["tls.caRef"]).await;
}

#[tokio::test]
async fn server_name_is_verified_in_place_of_the_host() {
    let authority = Authority::new();
    let made = authority.issue(|params| {
        params.subject_alt_names = vec![
            rcgen::SanType::DnsName("mail.isp.example".try_into().unwrap()),
            rcgen::SanType::IpAddress("192.0.2.1".parse().unwrap()),
        ];
    });
    let port = greeter(made.server()).await;
    for (name, good) in
        [("mail.isp.example", true), ("mail.isp.example.", true), ("192.0.2.1", true), ("192.0.2.2", false)]
    {
        let policy = TlsPolicy { server_name: Some(name.into()), ..with_ca() };
        let result = open(&Connector::new(), port, &policy, &ca(authority.pem())).await;
        assert_eq!(result.is_ok(), good, "{name}");
    }
    let policy = TlsPolicy { server_name: Some("not a name".into()), ..with_ca() };
    let error = open(&Connector::new(), port, &policy, &ca(authority.pem())).await.unwrap_err();
    assert_eq!(error.code(), Code::ConfigInvalid);
}

#[tokio::test]
async fn a_self_signed_certificate_can_be_its_own_ca() {
    // As `openssl req -x509` makes them: a CA that is also the server.
    for is_ca in [IsCa::Ca(BasicConstraints::Unconstrained), IsCa::NoCa] {
        let mut params = CertificateParams::new(vec!["pop.example".to_owned()]).unwrap();
        params.is_ca = is_ca;
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let made = Made { der: certificate.der().clone(), pem: certificate.pem(), key };
        let material = ca(made.pem.clone().into_bytes());
        let port = greeter(made.server()).await;
        let connector = Connector::new();
        assert!(open(&connector, port, &with_ca(), &material).await.is_ok());
        let policy = TlsPolicy { server_name: Some("other.example".into()), ..with_ca() };
        refuses(made.server(), &policy, &material, &["not for this name but for pop.example"]).await;
    }
    let mut params = CertificateParams::new(vec!["pop.example".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_after = date_time_ymd(2020, 1, 1);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let made = Made { der: certificate.der().clone(), pem: certificate.pem(), key };
    refuses(made.server(), &with_ca(), &ca(made.pem.clone().into_bytes()), &["expired on 2020-01-01"]).await;
}

#[tokio::test]
async fn a_self_signed_certificate_is_called_so() {
    let mut params = CertificateParams::new(vec!["pop.example".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let made = Made { der: certificate.der().clone(), pem: certificate.pem(), key };
    let words = ["it is self-signed: give it as tls.caRef, or pin it", "SHA-256"];
    let platform = TlsPolicy { server_name: Some("pop.example".into()), ..TlsPolicy::default() };
    for (policy, material) in [(platform, TlsMaterial::default()), (with_ca(), ca(Authority::new().pem()))] {
        let error = refuses(made.server(), &policy, &material, &words).await;
        assert!(!error.to_string().contains("CaUsedAsEndEntity"), "{error}");
    }
}

#[tokio::test]
async fn opportunistic_tls_verifies_only_what_it_was_told_to() {
    let stranger = Authority::new().issue(|_| {});
    let port = greeter(stranger.server()).await;
    let connector = Connector::new();
    let lax = TlsPolicy { mode: TlsMode::Opportunistic, ..TlsPolicy::default() };
    assert!(open(&connector, port, &lax, &TlsMaterial::default()).await.is_ok());
    for strict in [
        TlsPolicy { ca: Some(somewhere()), ..lax.clone() },
        TlsPolicy { pins: vec![[1; 32]], ..lax.clone() },
        TlsPolicy { server_name: Some("pop.example".into()), ..lax.clone() },
    ] {
        let error = open(&connector, port, &strict, &ca(Authority::new().pem())).await.unwrap_err();
        assert_eq!(error.code(), Code::TlsFailed, "{error}");
    }
}

#[tokio::test]
async fn a_secret_that_was_not_handed_over_is_never_a_weaker_check() {
    let authority = Authority::new();
    let port = greeter(authority.issue(|_| {}).server()).await;
    for mode in [TlsMode::Implicit, TlsMode::StartTls, TlsMode::Opportunistic] {
        let client = Some((somewhere(), somewhere()));
        for policy in [
            TlsPolicy { mode, ..with_ca() },
            TlsPolicy { mode, client_certificate: client, ..TlsPolicy::default() },
        ] {
            let error = open(&Connector::new(), port, &policy, &TlsMaterial::default()).await.unwrap_err();
            assert_eq!(error.code(), Code::SecretMissing, "{error}");
        }
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_a_server_that_asks() {
    let authority = Authority::new();
    let made = authority.issue(|_| {});
    let mut roots = rustls::RootCertStore::empty();
    let pem = authority.pem();
    roots.add(ca(pem.clone()).ca().unwrap().remove(0)).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    // With TLS 1.2 the refusal comes within the handshake.
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![made.der.clone()], made.private())
        .unwrap();
    let port = greeter(server).await;
    let ours = authority.issue(|_| {});
    let key = Zeroizing::new(ours.key.serialize_pem().into_bytes());
    let policy = TlsPolicy { client_certificate: Some((somewhere(), somewhere())), ..with_ca() };
    let material =
        TlsMaterial { ca_pem: Some(pem.clone()), client_pem: Some((ours.pem.clone().into_bytes(), key)) };
    let stream = open(&Connector::new(), port, &policy, &material).await.unwrap();
    assert_eq!(read(stream).await, b"+OK ready\r\n");

    let error = open(&Connector::new(), port, &with_ca(), &ca(pem.clone())).await.unwrap_err();
    assert!(error.to_string().contains("tls.clientCertificateSecretRef"), "{error}");

    let foreign = Zeroizing::new(made.key.serialize_pem().into_bytes());
    let material = TlsMaterial { ca_pem: Some(pem), client_pem: Some((ours.pem.into_bytes(), foreign)) };
    let error = open(&Connector::new(), port, &policy, &material).await.unwrap_err();
    assert!(error.to_string().contains("does not belong to its certificate"), "{error}");
    assert_eq!(error.code(), Code::SecretInvalid);
}

#[tokio::test]
async fn a_clear_text_port_is_recognised() {
    for greeting in [&b"+OK Dovecot ready.\r\n"[..], b"220 mx.example.com ESMTP\r\n", b"-ERR busy\r\n"] {
        let port = sender(greeting).await;
        let error = open(&Connector::new(), port, &with_ca(), &ca(Authority::new().pem())).await.unwrap_err();
        assert!(matches!(error, TlsError::NotTls(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("does not speak TLS on this port"), "{text}");
        assert!(text.contains(&format!("use port {port} with tls.mode StartTls")), "{text}");
        assert!(text.contains("995") && text.contains("465"), "{text}");
    }
}

#[tokio::test]
async fn a_server_of_the_past_is_told_what_it_must_offer() {
    // A TLS alert: protocol_version.
    let port = sender(&[21, 3, 1, 0, 2, 2, 70]).await;
    let error = open(&Connector::new(), port, &with_ca(), &ca(Authority::new().pem())).await.unwrap_err();
    assert!(error.to_string().contains("TLS 1.2 or 1.3"), "{error}");
    assert_eq!(error.code(), Code::TlsFailed);
}

#[tokio::test]
async fn a_connection_closed_in_the_handshake_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = [0; 64];
        stream.read_exact(&mut hello).await.unwrap();
    });
    let error = open(&Connector::new(), port, &with_ca(), &ca(Authority::new().pem())).await.unwrap_err();
    assert!(error.to_string().contains("closed the connection during the TLS handshake"), "{error}");
    assert!(error.is_transient());
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_has_a_deadline() {
    // quirks: "STLS stripped, refused or stalled while TLS is required aborts"
    // quirks: "no phase without a deadline (CVE-2011-1947)."
    let (ours, _theirs) = tokio::io::duplex(4096);
    let began = tokio::time::Instant::now();
    let error = Connector::new()
        .secure(Stream::other(ours), "pop.example", &with_ca(), &ca(Authority::new().pem()), SOON)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::TimedOut);
    assert!(error.to_string().contains("tls.mode StartTls"), "{error}");
    assert_eq!(began.elapsed(), SOON);
}

#[tokio::test(start_paused = true)]
async fn a_handshake_of_one_octet_a_second_has_a_deadline() {
    // quirks: "One byte a second: a floor on the rate, not only on the silence."
    let (ours, mut theirs) = tokio::io::duplex(4096);
    tokio::spawn(async move {
        // The head of a handshake record of 16 KB, and never its end.
        for octet in [22, 3, 3, 0x3f, 0xff].into_iter().chain(std::iter::repeat(2)) {
            if theirs.write_all(&[octet]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let error = Connector::new()
        .secure(Stream::other(ours), "pop.example", &with_ca(), &ca(Authority::new().pem()), SOON)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::TimedOut);
}

#[test]
fn clearance_is_given_only_where_the_policy_is_kept() {
    // quirks: "STLS stripped, refused or stalled while TLS is required aborts: never a password in clear."
    let (ours, _theirs) = tokio::io::duplex(64);
    let clear = Stream::other(ours);
    for (mode, good) in [
        (TlsMode::Implicit, false),
        (TlsMode::StartTls, false),
        (TlsMode::Opportunistic, true),
        (TlsMode::None, true),
    ] {
        let policy = TlsPolicy { mode, ..TlsPolicy::default() };
        match clear.clearance(&policy) {
            Ok(clearance) => assert!(good && !clearance.encrypted()),
            Err(error) => {
                assert!(!good, "{mode:?}");
                assert_eq!(error.code(), Code::TlsFailed);
            }
        }
    }
}

#[tokio::test]
async fn tls_over_any_transport_gives_clearance() {
    let authority = Authority::new();
    let acceptor = TlsAcceptor::from(Arc::new(authority.issue(|_| {}).server()));
    let (ours, theirs) = tokio::io::duplex(65_536);
    let server = tokio::spawn(async move {
        let mut stream = acceptor.accept(theirs).await.unwrap();
        let mut got = [0; 4];
        stream.read_exact(&mut got).await.unwrap();
        got
    });
    let connector = Connector::new();
    let (policy, material) = (with_ca(), ca(authority.pem()));
    let mut stream =
        connector.secure(Stream::other(ours), "pop.example", &policy, &material, SOON).await.unwrap();
    assert!(stream.clearance(&policy).unwrap().encrypted());
    stream.write_all(b"QUIT").await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(&server.await.unwrap(), b"QUIT");
    let twice = connector.secure(stream, "pop.example", &policy, &material, SOON).await.unwrap_err();
    assert_eq!(twice.code(), Code::Internal);
}
