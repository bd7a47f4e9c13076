//! The pool over real sockets, with real TLS.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::domain::work::SecretKind;
use crate::engine::ports::{Pending, SecretError};

struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "a CA of the tests");
        Self { params, key: KeyPair::generate().unwrap() }
    }

    fn pem(&self) -> String {
        self.params.self_signed(&self.key).unwrap().pem()
    }

    /// A server for `name`.
    fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.params, &self.key);
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Secrets that are their own keys.
struct Spoken;

impl Secrets for Spoken {
    fn get<'a>(&'a self, at: &'a SecretRef) -> Pending<'a, Result<Zeroizing<Vec<u8>>, SecretError>> {
        Box::pin(async move { Ok(Zeroizing::new(at.key.as_bytes().to_vec())) })
    }
}

fn spoken(value: &str) -> SecretRef {
    SecretRef { kind: SecretKind::Secret, namespace: "mail".into(), name: "relay".into(), key: value.into() }
}

fn pool() -> MailPool {
    MailPool::new(Arc::new(Connector::new()), Arc::new(Spoken), "client.example".into())
}

impl Fake {
    fn connected(&self) -> usize {
        let mut state = self.state();
        state.connections += 1;
        state.open += 1;
        state.connections
    }

    /// Serves on a port of this machine; with an acceptor TLS comes first.
    async fn listen(&self, implicit: Option<TlsAcceptor>) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let fake = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (fake, implicit) = (fake.clone(), implicit.clone());
                tokio::spawn(async move {
                    let connection = fake.connected();
                    match implicit {
                        None => fake.serve(stream, connection).await,
                        Some(acceptor) => {
                            if let Ok(secured) = acceptor.accept(stream).await {
                                fake.state().secured += 1;
                                fake.serve(secured, connection).await;
                            }
                        }
                    }
                });
            }
        });
        Endpoint::Tcp("127.0.0.1".into(), port)
    }

    fn listen_unix(&self, path: &Path) -> Endpoint {
        let listener = UnixListener::bind(path).unwrap();
        let fake = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(fake.clone().serve(stream, fake.connected()));
            }
        });
        Endpoint::Unix(path.into())
    }
}

fn at(endpoint: Endpoint, mode: TlsMode, ca: Option<&str>) -> MailHost {
    let tls = TlsPolicy { mode, ca: ca.map(spoken), ..TlsPolicy::default() };
    MailHost { endpoint, tls, ..host() }
}

/// Delivers three messages, the second of some size, by one poll.
async fn three(pool: &MailPool, via: Via, host: MailHost) -> Vec<Result<Vec<Verdict>, Undelivered>> {
    let mut route = route(via, host);
    route.timeouts.connect = Duration::from_secs(10);
    let large = "Subject: 2\n\n.dot 2\n".to_owned() + &"many words of a large message\n".repeat(50_000);
    let jobs = vec![job(1, &["a@b"]), Job { content: whole(&large), ..job(2, &["a@b"]) }, job(3, &["a@b"])];
    deliver(pool.open(route), jobs).await
}

fn all_there(fake: &Fake, results: &[Result<Vec<Verdict>, Undelivered>]) {
    assert_eq!(results, [Ok(accepted(1)), Ok(accepted(1)), Ok(accepted(1))]);
    let mut taken = fake.taken();
    taken.sort_by_key(Taken::id);
    assert_eq!(taken[0].body, body_of(1));
    assert_eq!(taken[1].body.len(), body_of(2).len() + 50_000 * 31);
    assert_eq!(taken[2].body, body_of(3));
}

fn failed(results: &[Result<Vec<Verdict>, Undelivered>]) -> (Code, &str) {
    match &results[0] {
        Err(Undelivered::Unavailable { code, message }) => (*code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn implicit_tls_and_starttls_with_the_right_ca() {
    let authority = Authority::new();
    let acceptor = authority.acceptor("127.0.0.1");
    for announces in [ALL, NO_CHUNKING, PLAIN] {
        for mode in [TlsMode::Implicit, TlsMode::StartTls, TlsMode::Opportunistic] {
            let implicit = mode == TlsMode::Implicit;
            let mut announces = announces.to_vec();
            announces.extend(["AUTH PLAIN", "STARTTLS"]);
            let fake = Fake::with(&announces, |_, what| match what {
                "AUTH PLAIN AHVzZXIAcGFzcw==" => say("235 2.7.0 in"),
                _ if what.starts_with("AUTH") => say("535 5.7.8 no"),
                _ => None,
            });
            fake.state().tls = Some(Tls::Works(acceptor.clone()));
            let endpoint = fake.listen(implicit.then(|| acceptor.clone())).await;
            let mut host = at(endpoint, mode, Some(&authority.pem()));
            host.auth = Some(("user".into(), spoken("pass")));
            let pool = pool();
            all_there(&fake, &three(&pool, Via::Smtp, host).await);
            let state = fake.state();
            assert_eq!(state.secured, state.connections, "{mode:?}: none in clear text");
        }
    }
}

#[tokio::test]
async fn a_certificate_of_another_ca_or_for_another_name_gets_no_mail() {
    let (authority, other) = (Authority::new(), Authority::new());
    for (acceptor, pem, words) in [
        (authority.acceptor("127.0.0.1"), other.pem(), "the CA in tls.caRef"),
        (authority.acceptor("mail.example"), authority.pem(), "not for this name but for mail.example"),
    ] {
        for mode in [TlsMode::Implicit, TlsMode::StartTls, TlsMode::Opportunistic] {
            let fake = Fake::new(&["STARTTLS"]);
            fake.state().tls = Some(Tls::Works(acceptor.clone()));
            let endpoint = fake.listen((mode == TlsMode::Implicit).then(|| acceptor.clone())).await;
            let results = three(&pool(), Via::Smtp, at(endpoint, mode, Some(&pem))).await;
            let (code, message) = failed(&results);
            assert_eq!(code, Code::TlsFailed, "{mode:?}");
            assert!(message.contains(words) && message.contains("destination"), "{message}");
            assert!(fake.commands("MAIL").is_empty() && fake.taken().is_empty());
            assert_eq!(results.len(), 3);
        }
    }
}

#[tokio::test]
async fn opportunistic_tls_takes_any_certificate_and_falls_back_where_there_is_none() {
    let authority = Authority::new();
    // A certificate that fits nothing is better than none.
    let fake = Fake::new(&["STARTTLS", "PIPELINING"]);
    fake.state().tls = Some(Tls::Works(authority.acceptor("elsewhere.example")));
    let host = at(fake.listen(None).await, TlsMode::Opportunistic, None);
    all_there(&fake, &three(&pool(), Via::Smtp, host).await);
    assert!(fake.state().secured > 0);

    // It says 220 and goes on in clear text, or closes at the first octet.
    let rules: [fn(usize, &str) -> Option<Act>; 2] = [
        |_, what| if what == "STARTTLS" { say("220 go") } else { None },
        |_, what| (what == "STARTTLS").then(|| Act::Bye("220 go\r\n".to_owned())),
    ];
    for rule in rules {
        let fake = Fake::with(&["STARTTLS", "PIPELINING"], rule);
        let endpoint = fake.listen(None).await;
        let lax = at(endpoint.clone(), TlsMode::Opportunistic, None);
        all_there(&fake, &three(&pool(), Via::Smtp, lax).await);
        assert_eq!(fake.state().secured, 0);
        for strict in [
            at(endpoint.clone(), TlsMode::StartTls, None),
            at(endpoint.clone(), TlsMode::Opportunistic, Some(&authority.pem())),
        ] {
            let before = fake.commands("MAIL").len();
            let results = three(&pool(), Via::Smtp, strict).await;
            assert_eq!(failed(&results).0, Code::TlsFailed);
            assert_eq!(fake.commands("MAIL").len(), before, "nothing goes in clear text");
        }
    }
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_one_that_does_not_work() {
    let fake = Fake::new(&["STARTTLS", "PIPELINING"]);
    fake.state().tls = Some(Tls::Stalls);
    let endpoint = fake.listen(None).await;
    for (mode, works) in [(TlsMode::Opportunistic, true), (TlsMode::StartTls, false)] {
        let mut route = route(Via::Smtp, at(endpoint.clone(), mode, None));
        route.timeouts.connect = Duration::from_millis(300);
        let results = deliver(pool().open(route), vec![job(1, &["a@b"])]).await;
        if works {
            assert_eq!(results, [Ok(accepted(1))]);
        } else {
            assert_eq!(failed(&results).0, Code::TlsFailed);
        }
    }
}

#[tokio::test]
async fn lmtp_over_a_unix_socket_gives_each_recipient_its_word() {
    let folder = tempfile::tempdir().unwrap();
    for announces in WAYS {
        let fake = Fake::with(announces, |_, what| match what {
            ". full@x" => say("452 4.2.2 over quota"),
            "RCPT TO:<gone@x>" => say("550 5.1.1 no such user"),
            _ => None,
        });
        let path = folder.path().join(format!("lmtp-{}", announces.len()));
        let endpoint = fake.listen_unix(&path);
        let pool = pool();
        let courier = pool.open(route(Via::Lmtp, at(endpoint.clone(), TlsMode::None, None)));
        let results = deliver(courier, vec![job(1, &["a@x", "gone@x", "full@x"])]).await;
        let codes: Vec<_> = results[0].as_ref().unwrap().iter().map(code_of).collect();
        assert_eq!(codes, [(250, ""), (550, "RCPT"), (452, ".")], "{announces:?}");
        assert_eq!(fake.taken()[0].to, ["a@x"]);
        assert_eq!(fake.commands("LHLO"), ["LHLO client.example"]);
        let others = Fake::new(announces);
        let others_at = others.listen_unix(&path.with_extension("2"));
        all_there(&others, &three(&pool, Via::Lmtp, at(others_at, TlsMode::None, None)).await);
    }
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_told_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lmtp");
    let host = at(Endpoint::Unix(path.as_path().into()), TlsMode::None, None);
    let results = three(&pool(), Via::Lmtp, host).await;
    let (code, message) = failed(&results);
    assert_eq!(code, Code::DestinationUnavailable);
    assert!(message.contains(path.to_str().unwrap()), "{message}");
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_by_its_name() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let host = at(Endpoint::Tcp("127.0.0.1".into(), gone.port()), TlsMode::None, None);
    let results = three(&pool(), Via::Smtp, host).await;
    let (code, message) = failed(&results);
    assert_eq!(code, Code::DestinationUnavailable);
    assert!(message.contains("127.0.0.1") && message.contains(&gone.port().to_string()), "{message}");
}
