//! When TLS is used, and when credentials are sent.

use super::*;
use crate::domain::work::SecretKind;

fn secret(password: &str) -> SecretRef {
    // The fake's secrets are their own keys.
    SecretRef {
        kind: SecretKind::Secret,
        namespace: "mail".into(),
        name: "relay".into(),
        key: password.into(),
    }
}

fn with(mode: TlsMode, auth: Option<&str>, endpoint: Endpoint) -> MailHost {
    MailHost {
        tls: TlsPolicy { mode, ..TlsPolicy::default() },
        auth: auth.map(|password| ("user".into(), secret(password))),
        endpoint,
        ..host()
    }
}

fn remote() -> Endpoint {
    Endpoint::Tcp("mail.example".into(), 25)
}

async fn one(fake: &Fake, host: MailHost) -> Result<Vec<Verdict>, Undelivered> {
    deliver(fake.pool().open(route(Via::Smtp, host)), vec![job(1, &["a@b"])]).await.remove(0)
}

fn auth_rule(_: usize, what: &str) -> Option<Act> {
    match what {
        "STARTTLS" => say("220 go ahead"),
        "AUTH PLAIN AHVzZXIAcGFzcw==" => say("235 2.7.0 in"),
        _ if what.starts_with("AUTH") => say("535 5.7.8 bad credentials"),
        _ => None,
    }
}

fn tls_failed(result: &Result<Vec<Verdict>, Undelivered>) -> &str {
    match result {
        Err(Undelivered::Unavailable { code: Code::TlsFailed, message }) => message,
        other => panic!("{other:?}"),
    }
}

const TLS: &[&str] = &["PIPELINING", "STARTTLS", "AUTH PLAIN"];

#[tokio::test]
async fn modes_do_what_they_say() {
    for (mode, announces, secured) in [
        (TlsMode::Implicit, PLAIN, Some(1)),
        (TlsMode::StartTls, TLS, Some(1)),
        (TlsMode::StartTls, PLAIN, None),
        (TlsMode::Opportunistic, TLS, Some(1)),
        (TlsMode::Opportunistic, PLAIN, Some(0)),
        (TlsMode::None, TLS, Some(0)),
    ] {
        let fake = Fake::with(announces, auth_rule);
        let result = one(&fake, with(mode, None, remote())).await;
        if let Some(secured) = secured {
            assert_eq!(result, Ok(accepted(1)), "{mode:?}");
            assert_eq!(fake.state().secured, secured, "{mode:?}");
        } else {
            assert!(
                matches!(&result, Err(Undelivered::Unavailable { code: Code::TlsFailed, message })
                    if message.contains("does not announce STARTTLS")),
                "{result:?}"
            );
            assert!(fake.commands("MAIL").is_empty());
        }
    }
}

// quirks: "STLS stripped, refused or stalled while TLS is required aborts: never a password in clear." (of the destination)
#[tokio::test]
async fn a_refused_or_broken_starttls() {
    let refuses = |_: usize, what: &str| if what == "STARTTLS" { say("454 4.7.0 no TLS now") } else { None };
    let breaks = |_: usize, what: &str| match what {
        "STARTTLS" => say("220 go"),
        "HANDSHAKE" => Some(Act::Close),
        _ => None,
    };
    for rule in [refuses as fn(usize, &str) -> Option<Act>, breaks] {
        let fake = Fake::with(TLS, rule);
        assert_eq!(one(&fake, with(TlsMode::Opportunistic, None, remote())).await, Ok(accepted(1)));
        let mut pinned = with(TlsMode::Opportunistic, None, remote());
        pinned.tls.pins.push([0; 32]);
        for host in [with(TlsMode::StartTls, None, remote()), pinned] {
            let fake = Fake::with(TLS, rule);
            let result = one(&fake, host).await;
            assert!(
                matches!(&result, Err(Undelivered::Unavailable { code: Code::TlsFailed, .. })),
                "{result:?}"
            );
            assert!(fake.commands("MAIL").is_empty());
        }
    }
}

// quirks: "STARTTLS injection"
#[tokio::test]
async fn octets_injected_behind_starttls() {
    let fake = Fake::with(TLS, |_, what| {
        (what == "STARTTLS").then(|| Act::Say("220 go\r\n250-fake\r\n250 AUTH PLAIN\r\n".to_owned()))
    });
    let result = one(&fake, with(TlsMode::StartTls, Some("pass"), remote())).await;
    assert!(
        matches!(&result, Err(Undelivered::Unavailable { code: Code::TlsFailed, message })
            if message.contains("behind its reply to STARTTLS")),
        "{result:?}"
    );
    assert!(fake.commands("AUTH").is_empty());
}

// quirks: "STARTTLS injection" (opportunistic: whoever injects wants clear text)
#[tokio::test]
async fn octets_injected_behind_starttls_never_lead_to_clear_text() {
    for reply in ["220 go\r\n250-fake\r\n250 AUTH PLAIN\r\n", "454 no\r\n250 fake\r\n", "220 go\r\n250"] {
        for auth in [None, Some("pass")] {
            for endpoint in [remote(), Endpoint::Tcp("127.0.0.1".into(), 25)] {
                let fake =
                    Fake::with(TLS, move |_, what| (what == "STARTTLS").then(|| Act::Say(reply.to_owned())));
                let result = one(&fake, with(TlsMode::Opportunistic, auth, endpoint)).await;
                let message = tls_failed(&result);
                assert!(message.contains("behind its reply to STARTTLS"), "{message}");
                assert!(message.contains("tls: {mode: StartTls}") && message.contains("tls: {mode: None}"));
                assert_eq!(fake.connections(), 1, "no second try in clear text");
                assert!(fake.commands("AUTH").is_empty() && fake.commands("MAIL").is_empty());
            }
        }
    }
}

// quirks: "STLS stripped, refused or stalled while TLS is required aborts: never a password in clear." (opportunistic, with a login)
#[tokio::test(start_paused = true)]
async fn with_a_login_a_starttls_that_does_not_work_never_leads_to_clear_text() {
    let refuses = |_: usize, what: &str| if what == "STARTTLS" { say("454 4.7.0 no TLS now") } else { None };
    let breaks = |_: usize, what: &str| match what {
        "STARTTLS" => say("220 go"),
        "HANDSHAKE" => Some(Act::Close),
        _ => None,
    };
    let closes = |_: usize, what: &str| (what == "STARTTLS").then_some(Act::Close);
    let stalls = |_: usize, what: &str| (what == "STARTTLS").then_some(Act::Hang);
    for rule in [refuses as fn(usize, &str) -> Option<Act>, breaks, closes, stalls] {
        for (endpoint, advice) in [
            (remote(), "by tls: {mode: None} without auth"),
            (Endpoint::Tcp("127.0.0.1".into(), 25), "or write tls: {mode: None} to accept clear text"),
            (Endpoint::Unix("/run/lmtp".into()), "or write tls: {mode: None} to accept clear text"),
        ] {
            let fake = Fake::with(TLS, rule);
            let result = one(&fake, with(TlsMode::Opportunistic, Some("pass"), endpoint)).await;
            let message = tls_failed(&result);
            assert!(message.contains(advice) && message.contains("tls: {mode: StartTls}"), "{message}");
            assert_eq!(fake.connections(), 1, "no second try in clear text");
            assert!(fake.commands("AUTH").is_empty() && fake.commands("MAIL").is_empty());
        }
    }
}

#[tokio::test]
async fn credentials_only_over_tls_or_on_this_machine() {
    let local = |name: &str| Endpoint::Tcp(name.into(), 25);
    for (mode, endpoint, sent) in [
        (TlsMode::StartTls, remote(), true),
        (TlsMode::Implicit, remote(), true),
        (TlsMode::Opportunistic, remote(), true),
        (TlsMode::None, remote(), false),
        (TlsMode::None, local("10.0.0.1"), false),
        (TlsMode::None, local("localhost.evil.example"), false),
        (TlsMode::None, local("localhost"), true),
        (TlsMode::None, local("127.0.0.2"), true),
        (TlsMode::None, local("::1"), true),
        (TlsMode::None, local("::ffff:127.0.0.1"), true),
        (TlsMode::None, Endpoint::Unix("/run/lmtp".into()), true),
    ] {
        let fake = Fake::with(TLS, auth_rule);
        let result = one(&fake, with(mode, Some("pass"), endpoint.clone())).await;
        assert_eq!(result == Ok(accepted(1)), sent, "{mode:?} {endpoint}: {result:?}");
        assert_eq!(fake.commands("AUTH").len(), usize::from(sent));
    }
    // Opportunistic, and nothing to seize: no password in clear text either.
    let fake = Fake::with(&["AUTH PLAIN"], auth_rule);
    let result = one(&fake, with(TlsMode::Opportunistic, Some("pass"), remote())).await;
    assert!(matches!(&result, Err(Undelivered::Unavailable { code: Code::DestinationRefused, .. })));
    assert!(fake.commands("AUTH").is_empty());
}

#[tokio::test]
async fn logins_that_fail_say_why_and_keep_the_secret() {
    for (password, announces, code, part) in [
        ("wrong", TLS, Code::DestinationRefused, "AUTH was answered with 535 5.7.8 bad credentials"),
        ("pass\n", TLS, Code::SecretInvalid, "a CR, LF or NUL"),
        ("pass", &["STARTTLS"], Code::DestinationRefused, "neither AUTH PLAIN nor AUTH LOGIN"),
    ] {
        let fake = Fake::with(announces, auth_rule);
        let result = one(&fake, with(TlsMode::StartTls, Some(password), remote())).await;
        let Err(Undelivered::Unavailable { code: told, message }) = result else { panic!("{result:?}") };
        assert_eq!(told, code);
        assert!(message.contains(part), "{message}");
        assert!(!message.contains("wrong") && fake.commands("MAIL").is_empty());
    }
}
