use std::sync::Arc;

use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use super::*;
use crate::domain::code::Code;
use crate::domain::work::AuthChoice;
use crate::pop3::{Credentials, Error, LoginPolicy, Mechanism, Scope};

fn credentials(password: &str) -> Credentials {
    Credentials::password("alice77", Zeroizing::new(password.as_bytes().to_vec()))
}

const SAFE: LoginPolicy<'static> = LoginPolicy::ENCRYPTED;
const CLEAR: LoginPolicy<'static> = LoginPolicy { encrypted: false, clear_text_allowed: true, ..SAFE };
const BARE: LoginPolicy<'static> = LoginPolicy { encrypted: false, ..SAFE };

const CAPA_BOTH: Step = ("CAPA", b"+OK\r\nUSER\r\nSASL LOGIN PLAIN\r\n.\r\n");

async fn login(
    policy: LoginPolicy<'_>,
    password: &str,
    steps: impl IntoIterator<Item = Step> + Send + 'static,
) -> (Result<Mechanism, Error>, String) {
    let steps: Vec<Step> = steps.into_iter().collect();
    let asks = steps.iter().any(|step| step.0 == "CAPA");
    let (near, server) = server(steps);
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    if asks {
        client.capabilities().await.unwrap();
    }
    let outcome = client.login(&credentials(password), &policy).await;
    drop(client);
    let mut rest = String::new();
    server.await.unwrap().read_to_string(&mut rest).await.unwrap();
    (outcome, rest)
}

#[tokio::test]
async fn auto_takes_the_strongest_that_is_offered() {
    let plain: Step = ("AUTH PLAIN AGFsaWNlNzcAc2VjcmV0", b"+OK in\r\n");
    let (outcome, _) = login(SAFE, "secret", [("", &b"+OK <1.2@h>\r\n"[..]), CAPA_BOTH, plain]).await;
    assert_eq!(outcome.unwrap(), Mechanism::Plain);

    let (outcome, _) = login(
        SAFE,
        "secret",
        [
            ("", &b"+OK\r\n"[..]),
            ("CAPA", b"+OK\r\nUSER\r\n.\r\n"),
            ("USER alice77", b"+OK\r\n"),
            ("PASS secret", b"+OK\r\n"),
        ],
    )
    .await;
    assert_eq!(outcome.unwrap(), Mechanism::UserPass);

    // Nothing is known of it.
    let (outcome, _) = login(
        CLEAR,
        "secret",
        [("", &b"+OK\r\n"[..]), ("USER alice77", b"+OK\r\n"), ("PASS secret", b"+OK\r\n")],
    )
    .await;
    assert_eq!(outcome.unwrap(), Mechanism::UserPass);

    let (outcome, _) = login(
        LoginPolicy { apop: true, ..BARE },
        "tanstaaf",
        [
            ("", &b"+OK POP3 server ready <1896.697170952@dbc.mtview.ca.us>\r\n"[..]),
            ("APOP alice77 c4c9334bac560ecc979e58001b3e22fb", b"+OK\r\n"),
        ],
    )
    .await;
    assert_eq!(outcome.unwrap(), Mechanism::Apop);
}

#[tokio::test]
async fn user_and_pass_go_together_where_pipelining_is_announced() {
    let capa: Step = ("CAPA", b"+OK\r\nUSER\r\nPIPELINING\r\n.\r\n");
    let (outcome, _) =
        login(SAFE, "s", [("", &b"+OK\r\n"[..]), capa, ("USER alice77", b""), ("PASS s", b"+OK\r\n+OK\r\n")])
            .await;
    assert_eq!(outcome.unwrap(), Mechanism::UserPass);
    let (outcome, _) = login(
        SAFE,
        "s",
        [("", &b"+OK\r\n"[..]), capa, ("USER alice77", b""), ("PASS s", b"-ERR who\r\n-ERR USER first\r\n")],
    )
    .await;
    assert!(matches!(outcome, Err(Error::Refused { command: "USER", .. })));
}

#[tokio::test]
async fn no_password_goes_out_in_clear_unless_that_is_allowed() {
    // quirks: "STLS stripped, refused or stalled while TLS is required aborts: never a password in clear."
    for choice in [AuthChoice::Auto, AuthChoice::UserPass, AuthChoice::Plain] {
        let policy = LoginPolicy { choice, ..BARE };
        let (outcome, sent) = login(policy, "secret", [("", &b"+OK <1.2@h>\r\n"[..]), CAPA_BOTH]).await;
        assert_eq!(outcome.unwrap_err().code(), Code::AuthUnavailable);
        assert_eq!(sent, "");
    }
}

#[tokio::test]
async fn a_refused_apop_is_a_failed_login() {
    // quirks: "a banner that shows one while APOP is refused falls back only where policy allows clear text."
    for policy in [LoginPolicy { apop: true, ..BARE }, LoginPolicy { apop: true, ..CLEAR }] {
        let digest = crate::pop3::apop::answer(b"<1.2@h>", b"secret");
        let line: &'static str = Box::leak(format!("APOP alice77 {}", digest.as_str()).into_boxed_str());
        let (outcome, sent) =
            login(policy, "secret", [("", &b"+OK <1.2@h>\r\n"[..]), CAPA_BOTH, (line, b"-ERR no\r\n")]).await;
        assert_eq!(outcome.unwrap_err().code(), Code::AuthFailed);
        assert_eq!(sent, "", "something followed a refused APOP");
    }
    // Encrypted, the password may follow; but not where it would not help.
    let policy = LoginPolicy { apop: true, ..SAFE };
    let digest = crate::pop3::apop::answer(b"<1.2@h>", b"secret");
    let line: &'static str = Box::leak(format!("APOP alice77 {}", digest.as_str()).into_boxed_str());
    let (outcome, _) = login(
        policy,
        "secret",
        [
            ("", &b"+OK <1.2@h>\r\n"[..]),
            CAPA_BOTH,
            (line, b"-ERR no\r\n"),
            ("AUTH PLAIN AGFsaWNlNzcAc2VjcmV0", b"+OK\r\n"),
        ],
    )
    .await;
    assert_eq!(outcome.unwrap(), Mechanism::Plain);
    let (outcome, sent) =
        login(policy, "secret", [("", &b"+OK <1.2@h>\r\n"[..]), CAPA_BOTH, (line, b"-ERR [IN-USE] no\r\n")])
            .await;
    assert_eq!(outcome.unwrap_err().code(), Code::MailboxLocked);
    assert_eq!(sent, "");
}

#[tokio::test]
async fn a_fake_challenge_is_not_answered() {
    // quirks: "APOP only with a strict RFC 822 msg-id in the banner (CVE-2007-1558)"
    let policy = LoginPolicy { apop: true, ..BARE };
    for greeting in [&b"+OK <1\x80\xff@h>\r\n"[..], b"+OK <a>\r\n", b"+OK\r\n"] {
        let (outcome, sent) = login(policy, "secret", [("", greeting), CAPA_BOTH]).await;
        assert_eq!(outcome.unwrap_err().code(), Code::AuthUnavailable);
        assert_eq!(sent, "");
    }
}

#[tokio::test]
async fn a_long_auth_line_goes_in_two_steps() {
    // quirks: "AUTH line over 255 octets must use the two-step form (RFC 5034)"
    // quirks: "`+OK` instead of a `+` continuation"
    let password = "x".repeat(400);
    let encoded = {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(format!("\0alice77\0{password}"))
    };
    let encoded: &'static str = Box::leak(encoded.into_boxed_str());
    for go_on in [&b"+ \r\n"[..], b"+\r\n", b"+OK\r\n", b"+OK go ahead\r\n", b"+ go\r\n"] {
        let (outcome, _) = login(
            SAFE,
            &password,
            [("", &b"+OK\r\n"[..]), CAPA_BOTH, ("AUTH PLAIN", go_on), (encoded, b"+OK\r\n")],
        )
        .await;
        assert_eq!(outcome.unwrap(), Mechanism::Plain);
    }
    let (outcome, sent) =
        login(SAFE, &password, [("", &b"+OK\r\n"[..]), CAPA_BOTH, ("AUTH PLAIN", b"-ERR no\r\n")]).await;
    assert_eq!(outcome.unwrap_err().code(), Code::AuthFailed);
    assert_eq!(sent, "");
}

#[tokio::test]
async fn a_server_that_asks_again_for_the_response_gets_it() {
    let (outcome, _) = login(
        SAFE,
        "secret",
        [
            ("", &b"+OK\r\n"[..]),
            CAPA_BOTH,
            ("AUTH PLAIN AGFsaWNlNzcAc2VjcmV0", b"+ \r\n"),
            ("AGFsaWNlNzcAc2VjcmV0", b"+OK\r\n"),
        ],
    )
    .await;
    assert_eq!(outcome.unwrap(), Mechanism::Plain);
}

#[tokio::test]
async fn refusals_say_what_they_are_about() {
    // quirks: "Response codes (RFC 2449, RFC 3206)"
    for (said, code, scope) in [
        (&b"-ERR wrong\r\n"[..], Code::AuthFailed, Scope::Account),
        (b"+ERR wrong\r\n", Code::AuthFailed, Scope::Account),
        (b"-ERR [AUTH] wrong\r\n", Code::AuthFailed, Scope::Account),
        (b"-ERR [IN-USE] busy\r\n", Code::MailboxLocked, Scope::Account),
        (b"-ERR [LOGIN-DELAY] wait\r\n", Code::LoginDelay, Scope::Account),
        (b"-ERR [SYS/TEMP] later\r\n", Code::ServerBusy, Scope::Host),
        (b"-ERR [SYS/PERM] broken\r\n", Code::ServerBusy, Scope::Account),
    ] {
        let (outcome, _) =
            login(CLEAR, "p", [("", &b"+OK\r\n"[..]), ("USER alice77", b"+OK\r\n"), ("PASS p", said)]).await;
        let error = outcome.unwrap_err();
        assert_eq!((error.code(), error.scope()), (code, scope), "{error}");
        assert!(!error.to_string().contains("alice77"));
    }
}

#[tokio::test]
async fn names_and_passwords_that_would_break_a_line_are_not_sent() {
    // quirks: "CR, LF or NUL in user or password is refused before anything is sent."
    for (user, password) in [
        ("alice\r\nDELE 1", "secret"),
        ("alice\0", "secret"),
        ("alice", "secret\n"),
        ("alice", "sec\rret"),
        ("alice", "\0secret"),
        ("alice", ""),
        ("", "secret"),
    ] {
        let (mut client, server) = client([]).await;
        let credentials = Credentials::password(user, Zeroizing::new(password.as_bytes().to_vec()));
        let error = client.login(&credentials, &SAFE).await.unwrap_err();
        let expected = if user == "alice" { Code::SecretInvalid } else { Code::ConfigInvalid };
        assert_eq!(error.code(), expected);
        assert!(!format!("{error} {error:?} {credentials:?}").contains("secret"));
        drop(client);
        let mut sent = Vec::new();
        server.await.unwrap().read_to_end(&mut sent).await.unwrap();
        assert!(sent.is_empty());
    }
}

#[tokio::test]
async fn a_lost_connection_is_the_hosts_trouble_before_the_login_and_the_accounts_after_it() {
    let (near, far) = server([("", &b"+OK\r\n"[..]), ("USER alice77", b"+OK\r\n"), ("PASS p", b"+OK\r\n")]);
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    client.login(&credentials("p"), &SAFE).await.unwrap();
    drop(far.await.unwrap());
    let error = client.stat().await.unwrap_err();
    assert_eq!((error.code(), error.scope()), (Code::ConnectionLost, Scope::Account));

    let (near, far) = server([("", &b"+OK\r\n"[..])]);
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    drop(far.await.unwrap());
    let error = client.login(&credentials("p"), &SAFE).await.unwrap_err();
    assert_eq!((error.code(), error.scope()), (Code::HostUnreachable, Scope::Host));
}

#[tokio::test]
async fn a_server_that_repeats_the_password_is_not_quoted() {
    let answers: [(&'static str, &[u8]); 3] = [
        ("-ERR ***", b"-ERR unknown command PASS secret\r\n"),
        ("-ERR [AUTH] ***", b"-ERR [AUTH] not secret enough\r\n"),
        ("is no POP3 reply: ***", b"secret\r\n"),
    ];
    for (quoted, said) in answers {
        let script = [("", &b"+OK\r\n"[..]), ("USER alice77", b"+OK\r\n"), ("PASS secret", said)];
        let (outcome, _) = login(CLEAR, "secret", script).await;
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(quoted) && !error.contains("secret"), "{error}");
    }
}

/// What was logged while it was subscribed.
#[derive(Clone, Default)]
pub(super) struct Found(Arc<std::sync::Mutex<Vec<u8>>>);

impl Found {
    /// Collects everything that this thread logs.
    pub(super) fn subscribe(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Found {
    fn write(&mut self, octets: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(octets);
        Ok(octets.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn transcripts_hold_no_secrets() {
    let found = Found::default();
    let guard = found.subscribe();
    let plain: Step = ("AUTH PLAIN AGFsaWNlNzcAc2VjcmV0", b"+OK in\r\n");
    let (outcome, _) = login(SAFE, "secret", [("", &b"+OK\r\n"[..]), CAPA_BOTH, plain]).await;
    outcome.unwrap();
    let (outcome, _) = login(
        CLEAR,
        "secret",
        [("", &b"+OK\r\n"[..]), ("USER alice77", b"+OK\r\n"), ("PASS secret", b"+OK\r\n")],
    )
    .await;
    outcome.unwrap();
    drop(guard);
    let log = found.text();
    for secret in ["secret", "alice77", "AGFsaWNl"] {
        assert!(!log.contains(secret), "{log}");
    }
}
