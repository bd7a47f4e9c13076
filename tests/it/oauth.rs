//! Access tokens: providers of every kind, and logins by what they give.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::rpop::domain::code::Code;
use ::rpop::domain::work::{Network, OAuth2, SecretKind, SecretRef, Settings, Timeouts};
use ::rpop::engine::ports::{Pending, SecretError, Secrets};
use ::rpop::local::tokens::FileTokens;
use ::rpop::net::Connector;
use ::rpop::oauth::{Access, Error, Tokens};
use base64::Engine as _;
use rustix::process::Signal;
use serde_json::json;
use sha2::Digest as _;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::support::authority::Authority;
use crate::support::dovecot::{Dovecot, TOKEN_KEY, token};
use crate::support::mail::{census, census_arrived};
use crate::support::process::Daemon;
use crate::support::provider::{Act, Asked, Provider};
use crate::support::rpop::{self, Run, Running, Site, binary};
use crate::support::{PATIENCE, folder, free_port, program, skipped, wait_until};

/// Each key is its own value; `ca.crt` is the authority's.
struct Keys(String);

impl Secrets for Keys {
    fn get<'a>(&'a self, at: &'a SecretRef) -> Pending<'a, Result<Zeroizing<Vec<u8>>, SecretError>> {
        let value = if &*at.key == "ca.crt" { &self.0 } else { &*at.key };
        Box::pin(async { Ok(Zeroizing::new(value.as_bytes().to_vec())) })
    }
}

fn at(key: &str) -> SecretRef {
    SecretRef { kind: SecretKind::Secret, namespace: "mail".into(), name: "m365".into(), key: key.into() }
}

fn oauth(url: &str) -> OAuth2 {
    OAuth2 {
        token_url: url.into(),
        client_id: "rpop".into(),
        scopes: vec!["pop".into(), "offline_access".into()],
        client_secret: None,
        refresh_token: Some(at("r0")),
        ca: None,
    }
}

fn settings(milliseconds: u64) -> Settings {
    let wait = Duration::from_millis(milliseconds);
    Settings {
        timeouts: Timeouts { connect: wait, reply: wait, ..Timeouts::default() },
        ..Settings::default()
    }
}

fn tokens(state: &Path) -> Tokens {
    let store = Arc::new(FileTokens::new(state));
    Tokens::new(Arc::new(Connector::new()), Arc::new(Keys(String::new())), store)
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

fn get(tokens: &Tokens, oauth: &OAuth2) -> Result<Access, Error> {
    block_on(tokens.get("alice", oauth, &settings(60_000)))
}

#[test]
fn one_renewal_serves_all_records_of_an_account() {
    let state = folder("tokens");
    let provider = Provider::start(|_, before| Act::token(&format!("a{before}"), 3600, None));
    let tokens = tokens(state.path());
    let way = oauth(&provider.url());
    block_on(async {
        let settings = settings(60_000);
        let all = (0..50).map(|_| tokens.get("alice", &way, &settings));
        for access in futures_util::future::join_all(all).await {
            assert_eq!(&**access.unwrap().token, "a0");
        }
        // Another account, and another scope, have tokens of their own.
        let other = tokens.get("bob", &way, &settings).await.unwrap();
        let narrow = OAuth2 { scopes: Vec::new(), ..way.clone() };
        let narrow = tokens.get("alice", &narrow, &settings).await.unwrap();
        assert_eq!((&**other.token, &**narrow.token), ("a1", "a2"));
        // One that a server does not take is not given again.
        let first = tokens.get("alice", &way, &settings).await.unwrap();
        assert!(!first.fresh);
        tokens.refused(&first);
        let second = tokens.get("alice", &way, &settings).await.unwrap();
        assert_eq!((&**second.token, second.fresh), ("a3", true));
        // Who comes late with the old one takes nobody the new one.
        tokens.refused(&first);
        assert_eq!(&**tokens.get("alice", &way, &settings).await.unwrap().token, "a3");
    });
    let asked = provider.asked();
    assert_eq!(asked.len(), 4);
    let first = &asked[0];
    let form = ["grant_type", "refresh_token", "client_id", "scope"].map(|name| first.field(name));
    assert_eq!(form, ["refresh_token", "r0", "rpop", "pop offline_access"]);
    assert_eq!((first.path.as_str(), first.form.len()), ("/token", 4));
    assert_eq!(first.header["content-type"], "application/x-www-form-urlencoded");
    assert_eq!(first.header["host"], format!("127.0.0.1:{}", provider.port));
}

#[test]
fn a_caller_that_gives_up_does_not_end_the_renewal() {
    let state = folder("tokens");
    let answer =
        json!({"token_type": "Bearer", "access_token": "a", "expires_in": 3600, "refresh_token": "r1"});
    let text = answer.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    let provider = Provider::start(move |_, _| Act::Slow((head.clone() + &text).into_bytes(), 1));
    let (tokens, way) = (tokens(state.path()), oauth(&provider.url()));
    block_on(async {
        let settings = settings(60_000);
        let mut waiting = Box::pin(tokens.get("alice", &way, &settings));
        while provider.asked().is_empty() {
            assert!(tokio::time::timeout(Duration::from_millis(5), &mut waiting).await.is_err());
        }
        drop(waiting);
        assert_eq!(&**tokens.get("alice", &way, &settings).await.unwrap().token, "a");
    });
    assert_eq!(provider.asked().len(), 1);
    assert_eq!(kept(state.path()), ["r1"]);
}

/// The refresh tokens in files.
fn kept(state: &Path) -> Vec<String> {
    let files =
        std::fs::read_dir(state.join("tokens")).into_iter().flatten().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.file_name().unwrap() != "lock")
        .map(|path| {
            assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            let file: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            file["refreshToken"].as_str().unwrap().to_owned()
        })
        .collect()
}

/// A provider whose refresh tokens are good once each; its first is `r0`. The
/// access tokens are `access`'s.
fn rotating(access: impl Fn(usize) -> String + Send + Sync + 'static, seconds: i64) -> Provider {
    let issued = AtomicUsize::new(0);
    Provider::start(move |asked, _| {
        let now = issued.load(Ordering::SeqCst);
        if asked.field("grant_type") != "refresh_token" || asked.field("refresh_token") != format!("r{now}") {
            return Act::error("invalid_grant");
        }
        issued.store(now + 1, Ordering::SeqCst);
        Act::token(&access(now), seconds, Some(&format!("r{}", now + 1)))
    })
}

#[test]
fn refresh_tokens_that_are_good_once_are_kept_before_anything_else() {
    let state = folder("tokens");
    let provider = rotating(|number| format!("a{number}"), 0);
    let way = oauth(&provider.url());
    // Each life of a process, and each renewal in one, goes on where the last one ended.
    for life in 0..3 {
        let tokens = tokens(state.path());
        for renewal in 0..2 {
            let access = get(&tokens, &way).unwrap();
            let number = 2 * life + renewal;
            assert_eq!(*access.token, format!("a{number}"));
            assert_eq!(kept(state.path()), [format!("r{}", number + 1)]);
        }
    }
    // Whoever knows another refresh token does not come by these.
    let other = OAuth2 { refresh_token: Some(at("stolen")), ..way };
    let error = get(&tokens(state.path()), &other).unwrap_err();
    assert_eq!(error.code(), Code::AuthFailed);
    assert!(error.to_string().contains("Secret mail/m365, key stolen"), "{error}");
    assert!(
        error.to_string().contains("about invalid_grant") && error.to_string().contains("sign in again"),
        "{error}"
    );
}

#[test]
fn two_processes_on_one_state_lose_no_refresh_token() {
    let state = folder("tokens");
    let provider = rotating(|number| format!("a{number}"), 0);
    let (one, other) = (tokens(state.path()), tokens(state.path()));
    let way = oauth(&provider.url());
    for _ in 0..3 {
        get(&one, &way).unwrap();
        get(&other, &way).unwrap();
    }
    assert_eq!(kept(state.path()), ["r6"]);
}

#[test]
fn without_a_place_for_the_next_token_none_is_used_up() {
    let state = folder("tokens");
    let provider = rotating(|number| format!("a{number}"), 0);
    let (tokens, way) = (tokens(state.path()), oauth(&provider.url()));
    get(&tokens, &way).unwrap();
    let file = std::fs::read_dir(state.path().join("tokens"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap() != "lock")
        .unwrap();
    std::fs::write(&file, "garbage").unwrap();
    let error = get(&tokens, &way).unwrap_err();
    assert!(error.to_string().contains("holds no refresh token"), "{error}");
    assert_eq!((error.code(), provider.asked().len()), (Code::SecretInvalid, 1));
}

/// How a provider answers.
type Answers = Box<dyn Fn() -> Act + Send + Sync>;

#[test]
fn what_is_no_token_is_a_clear_error_in_time() {
    let json = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let body = move |rest: &str| format!("{json}{rest}\r\n ").into_bytes();
    let answers: [(Answers, &str, usize); 16] = [
        (Box::new(|| Act::http("200 OK\r\ncontent-type: text/html", "<html>login</html>")), "text/html", 1),
        (Box::new(|| Act::http("404 No\r\ncontent-type: text/html", "<html>")), "HTTP status 404", 1),
        (
            Box::new(|| Act::http("302 X\r\nlocation: https://else.example/", "")),
            "redirects to https://else.example/",
            1,
        ),
        (Box::new(|| Act::http("307 X\r\nlocation: http://169.254.169.254/", "")), "not followed", 1),
        (Box::new(|| Act::http("503 Later", "")), "HTTP status 503", 3),
        (Box::new(|| Act::http("429 Slower\r\nretry-after: 3600", "")), "HTTP status 429", 1),
        (Box::new(|| Act::Json(200, json!({"access_token": "a"}))), "token_type is missing", 1),
        (
            Box::new(|| Act::Json(200, json!({"token_type": "Bearer", "access_token": 7}))),
            "access_token is no text",
            1,
        ),
        (Box::new(|| Act::Raw(b"220 mail.example ESMTP\r\n".to_vec())), "does not speak HTTP", 1),
        (Box::new(|| Act::Raw(Vec::new())), "broke", 3),
        (Box::new(|| Act::Silence), "within", 2),
        (Box::new(move || Act::Slow(body("content-length: 500\r\n"), 50)), "within", 2),
        (Box::new(|| Act::Endless(b"HTTP/1.1 200 OK\r\nx: y".to_vec())), "more of it than is read", 1),
        (Box::new(move || Act::Endless(body(""))), "more than 128 KiB", 1),
        (Box::new(move || Act::Endless(body("content-length: 1073741824\r\n"))), "more than 128 KiB", 1),
        (
            Box::new(move || Act::Endless(body("transfer-encoding: chunked\r\n\r\n40000000\r\n"))),
            "more than 128 KiB",
            1,
        ),
    ];
    let waits = settings(1500);
    for (answer, said, times) in answers {
        let state = folder("tokens");
        let provider = Provider::start(move |_, _| answer());
        let (tokens, way) = (tokens(state.path()), oauth(&provider.url()));
        let began = Instant::now();
        let error = block_on(tokens.get("alice", &way, &waits)).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(said) && text.contains(&format!("127.0.0.1:{}", provider.port)),
            "{said}: {text}"
        );
        assert_eq!(error.code(), Code::TokenUnavailable, "{text}");
        assert!(began.elapsed() < PATIENCE / 4, "{said} took {:?}", began.elapsed());
        // What may pass is asked again within the deadline, and what does not is not.
        assert_eq!(provider.asked().len(), times, "{said}: {text}");
    }
}

#[test]
fn a_provider_that_stumbles_is_asked_again() {
    let state = folder("tokens");
    let provider = Provider::start(|_, before| match before {
        0 => Act::http("503 Later", ""),
        1 => Act::Raw(Vec::new()),
        _ => Act::token("a", 3600, None),
    });
    let access = get(&tokens(state.path()), &oauth(&provider.url())).unwrap();
    assert_eq!((&**access.token, provider.asked().len()), ("a", 3));
}

#[test]
fn clients_ask_in_their_own_name_and_prove_themselves_as_their_provider_wants() {
    let state = folder("tokens");
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("rpop:s%20cret"));
    let wants_basic = Provider::start(move |asked, _| match asked.header.get("authorization") {
        Some(proof) if *proof == basic => Act::token("by-basic", 0, None),
        _ => Act::Json(401, json!({"error": "invalid_client"})),
    });
    let wants_form = Provider::start(|asked, _| match asked.field("client_secret") {
        "s cret" => Act::token("by-form", 0, None),
        _ => Act::Json(401, json!({"error": "invalid_client", "error_description": "not s cret"})),
    });
    let tokens = tokens(state.path());
    let way = |provider: &Provider, secret: &str| OAuth2 {
        refresh_token: None,
        client_secret: Some(at(secret)),
        ..oauth(&provider.url())
    };
    for provider in [&wants_basic, &wants_form] {
        get(&tokens, &way(provider, "s cret")).unwrap();
        get(&tokens, &way(provider, "s cret")).unwrap();
    }
    // Found out once; then known.
    assert_eq!((wants_basic.asked().len(), wants_form.asked().len()), (3, 2));
    let asked = &wants_form.asked()[0];
    assert_eq!((asked.field("grant_type"), asked.field("refresh_token")), ("client_credentials", ""));
    assert!(!asked.header.contains_key("authorization"));
    assert!(kept(state.path()).is_empty());
    let error = get(&tokens, &way(&wants_form, "wrong")).unwrap_err();
    assert_eq!(error.code(), Code::AuthFailed);
    assert!(error.to_string().contains("clientSecretRef"), "{error}");
}

#[test]
fn https_is_verified_and_addresses_that_are_not_allowed_are_not_asked() {
    let state = folder("tokens");
    let authority = Authority::new();
    let provider =
        Provider::with_tls(&authority.server(&["127.0.0.1"]), |_, _| Act::token("over-tls", 3600, None));
    let store = Arc::new(FileTokens::new(state.path()));
    let tokens = Tokens::new(Arc::new(Connector::new()), Arc::new(Keys(authority.pem.clone())), store);
    let untrusted = oauth(&provider.url());
    let error = get(&tokens, &untrusted).unwrap_err();
    assert_eq!(error.code(), Code::TlsFailed, "{error}");
    let trusted = OAuth2 { ca: Some(at("ca.crt")), ..untrusted };
    let refused =
        Settings { deny_networks: vec![Network::parse("127.0.0.0/8").unwrap()], ..settings(60_000) };
    let stranger = OAuth2 { client_id: "stranger".into(), ..trusted.clone() };
    let error = block_on(tokens.get("alice", &stranger, &refused)).unwrap_err();
    assert_eq!(error.code(), Code::AddressRefused, "{error}");
    assert!(provider.asked().is_empty());
    // (The error of a moment ago is still remembered for a moment.)
    wait_until("a token over TLS", || {
        get(&tokens, &trusted).is_ok_and(|access| &**access.token == "over-tls")
    });
    assert_eq!(provider.asked().len(), 1);
}

/// A record of `user` whose tokens come from `provider`.
fn record(site: &Site, name: &str, port: u16, provider: &Provider, auth: &str) {
    let url = provider.url();
    site.write(
        &format!("record-{name}.yaml"),
        &format!(
            "apiVersion: rpop.dev/v1alpha1\nkind: RpopRecord\nmetadata: {{name: {name}, namespace: mail}}\nspec:\n\
             \x20 account: {name}.in@local.test\n  pollEvery: 5m\n  remote:\n    host: \"127.0.0.1:{port}\"\n\
             \x20   account: {name}\n    auth: {auth}\n    oauth2:\n      tokenUrl: {url}\n      clientId: {name}\n\
             \x20     scopes: [pop]\n      refreshTokenSecretRef: {{name: refresh, key: refreshToken}}\n\
             \x20 tls: {{caRef: {{name: ca}}}}\n"
        ),
    );
}

fn site(home: &Dovecot) -> Site {
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    site.secret("ca", "ca.crt", &home.authority.pem);
    site.secret("refresh", "refreshToken", "r0");
    site
}

fn check(site: &Site) -> Run {
    site.rpop(&[
        "check",
        "-f",
        site.manifests().to_str().unwrap(),
        "--connect",
        "--state",
        site.state.to_str().unwrap(),
    ])
}

#[test]
fn mail_is_fetched_with_tokens_that_are_renewed_while_it_goes_on() {
    let test = "mail_is_fetched_with_tokens_that_are_renewed_while_it_goes_on";
    let Some(dovecot) = Dovecot::with_all_mechanisms(test) else { return };
    let site = site(&dovecot);
    let mut sent = Vec::new();
    for (user, auth) in [("auto", "Auto"), ("xoauth2", "XOAuth2"), ("bearer", "OAuthBearer")] {
        let provider = rotating(move |_| token(user, TOKEN_KEY, 3600), 3600);
        record(&site, user, dovecot.pop3s, &provider, auth);
        dovecot.add([user, &format!("{user}.in")]);
        sent.push((user, dovecot.inbox(user).fill_generated(user, 3, 500), provider));
    }
    check(&site).expect(0).says("AUTH XOAUTH2");
    site.once().expect(0);
    for (user, sent, provider) in &sent {
        let arrived = dovecot.inbox(&format!("{user}.in")).read();
        assert_eq!(census_arrived(&arrived), census(sent.iter().map(Vec::as_slice)), "{user}");
        // Two processes, each with a token of its own, by refresh tokens that are good once.
        assert_eq!(provider.asked().len(), 2, "{user}");
    }
    assert_eq!(kept(&site.state), ["r2", "r2", "r2"]);
    // The user's own Secret is used up by now, and nobody looks at it any more.
    site.once().expect(0);
    for said in [
        "user=<xoauth2>, method=XOAUTH2",
        "user=<bearer>, method=OAUTHBEARER",
        "user=<auto>, method=OAUTHBEARER",
    ] {
        wait_until(said, || dovecot.logged(said) == 3);
    }
}

#[test]
fn a_token_that_the_server_does_not_take_is_exchanged_once() {
    let test = "a_token_that_the_server_does_not_take_is_exchanged_once";
    let Some(dovecot) = Dovecot::with_all_mechanisms(test) else { return };
    dovecot.add(["alice", "alice.in", "mallory", "mallory.in"]);
    let site = site(&dovecot);
    site.settings(&["delayFailedAccounts: 10s"]);
    // Its clock and the server's do not agree: a token is over before it says so.
    let stale = rotating(|number| token("alice", TOKEN_KEY, if number == 0 { 4 } else { 3600 }), 3600);
    let others = rotating(|_| token("alice", TOKEN_KEY, 3600), 3600);
    record(&site, "alice", dovecot.pop3s, &stale, "Auto");
    record(&site, "mallory", dovecot.pop3s, &others, "Auto");
    let path = site.manifests().join("record-alice.yaml");
    let text = std::fs::read_to_string(&path).unwrap().replace("pollEvery: 5m", "pollEvery: 10s");
    std::fs::write(&path, text).unwrap();
    let run = site.start(&[]);
    wait_until("a login by the second token", || {
        stale.asked().len() == 2 && dovecot.logged("Login: user=<alice>") >= 2
    });
    // Somebody else's token is refused though it is fresh: that is a failed login.
    let status = || site.rpop(&["status", "--state", site.state.to_str().unwrap()]).stdout;
    wait_until("the failure", || status().contains("AuthFailed"));
    run.signal(Signal::TERM);
    let run = run.wait();
    assert!(!run.text().contains("r0") && !run.text().contains("eyJ"), "{}", run.text());
    assert!(run.text().contains("trying another token"), "{}", run.text());
    assert_eq!(dovecot.logged("Login: user=<mallory>"), 0);
    // One attempt a poll, and a renewal each: 10 s, 20 s, … between.
    assert!(others.asked().len() <= 4, "{}", others.asked().len());
}

#[test]
fn a_sign_in_that_is_over_is_told_with_what_to_do_and_mended_live() {
    let test = "a_sign_in_that_is_over_is_told_with_what_to_do_and_mended_live";
    let Some(dovecot) = Dovecot::with_all_mechanisms(test) else { return };
    dovecot.add(["alice", "alice.in"]);
    dovecot.inbox("alice").fill_generated("alice", 1, 100);
    let site = site(&dovecot);
    site.secret("refresh", "refreshToken", "stale-token");
    let provider = Provider::start(|asked: &Asked, _| match asked.field("refresh_token") {
        "good" => Act::token(&token("alice", TOKEN_KEY, 3600), 3600, None),
        _ => Act::Json(
            400,
            json!({"error": "invalid_grant", "error_description": "AADSTS700082: \u{1b}[31mstale-token has expired"}),
        ),
    });
    record(&site, "alice", dovecot.pop3s, &provider, "Auto");
    let run = check(&site).expect(1);
    run.says("AuthFailed");
    run.says("AADSTS700082");
    assert!(!run.text().contains('\u{1b}'), "{}", run.text());
    let running = site.start(&[]);
    let status = || site.rpop(&["status", "-o", "json", "--state", site.state.to_str().unwrap()]).stdout;
    wait_until("the failure", || status().contains("sign in again (rpop oauth login)"));
    assert!(status().contains("Secret mail/refresh, key refreshToken"), "{}", status());
    assert!(!status().contains("stale-token"), "{}", status());
    site.secret("refresh", "refreshToken", "good");
    wait_until("the mail", || dovecot.inbox("alice.in").read().len() == 1);
    running.signal(Signal::TERM);
    running.wait().expect(0);
}

#[test]
fn rpop_oauth_login_waits_for_its_person_and_writes_what_rpop_reads() {
    let provider = Provider::start(|asked, before| match (&*asked.path, before) {
        ("/device", _) => Act::Json(
            200,
            json!({"device_code": "d-1", "user_code": "WDJB-MJHT", "expires_in": 60, "interval": 1,
                "verification_uri": "https://login.example/device"}),
        ),
        (_, 1) => Act::error("authorization_pending"),
        _ => Act::token("a", 3600, Some("r: \"1\"")),
    });
    let state = folder("login");
    let (secret, out) = (state.path().join("client"), state.path().join("secret.yaml"));
    std::fs::write(&secret, "s-1\n").unwrap();
    let site = Site::new();
    let device = provider.url().replace("/token", "/device");
    let (url, secret) = (provider.url(), secret.to_str().unwrap());
    let mut line = vec![
        "oauth",
        "login",
        "--device-url",
        &device,
        "--token-url",
        &url,
        "--client-id",
        "rpop",
        "--scope",
        "pop",
        "--name",
        "m365",
        "-n",
        "mail",
        "--client-secret-file",
        secret,
    ];
    let run = site.rpop(&line).expect(0);
    run.says("https://login.example/device and type in the code WDJB-MJHT");
    assert!(run.stdout.contains(r#"refreshToken: "r: \"1\"""#), "{}", run.stdout);
    assert!(!run.stderr.contains("r: \"1\"") && !run.text().contains("d-1"), "{}", run.stderr);
    line.extend(["-o", out.to_str().unwrap()]);
    let run = site.rpop(&line).expect(0);
    assert!(run.stdout.is_empty(), "{}", run.stdout);
    assert_eq!(std::fs::metadata(&out).unwrap().mode() & 0o777, 0o600);
    let asked = provider.asked();
    let grant = asked[1].field("grant_type");
    assert_eq!(
        (grant, asked[1].field("device_code")),
        ("urn:ietf:params:oauth:grant-type:device_code", "d-1")
    );
    assert_eq!((asked[0].field("scope"), asked[1].field("client_secret")), ("pop", "s-1"));

    let never = Provider::start(|_, _| Act::error("unauthorized_client"));
    let device = never.url();
    let run =
        site.rpop(&["oauth", "login", "--device-url", &device, "--token-url", &device, "--client-id", "x"]);
    run.expect(1).says("unauthorized_client (about unauthorized_client)");
}

#[test]
fn a_browser_on_this_machine_brings_the_code() {
    let provider = Provider::start(|asked, _| {
        let verifier = asked.field("code_verifier");
        if asked.field("code") == "c/1" && verifier.len() == 43 && asked.field("redirect_uri").ends_with('/')
        {
            Act::token("a", 3600, Some(&format!("r-{verifier}")))
        } else {
            Act::error("invalid_grant")
        }
    });
    let folder = folder("browser");
    let (url, auth) = (provider.url(), provider.url().replace("/token", "/authorize?x=y"));
    let line = ["oauth", "login", "--auth-url", &auth, "--token-url", &url, "--client-id", "rpop"];
    let mut run = Running::start(&binary(), &line, folder.path());
    run.wait_to_say("code_challenge_method=S256");
    let text = run.text();
    let address = text.lines().find(|line| line.starts_with("http://")).unwrap();
    let field = |name: &str| {
        let start = address.find(&format!("&{name}=")).unwrap() + name.len() + 2;
        address[start..].split('&').next().unwrap().to_owned()
    };
    let port: u16 =
        field("redirect_uri").trim_end_matches("%2F").rsplit("%3A").next().unwrap().parse().unwrap();
    // What another page of the browser sends does not count.
    assert!(visit(port, "/?code=forged&state=guessed").starts_with("HTTP/1.1 404"));
    let page = visit(port, &format!("/?state={}&code=c%2F1", field("state")));
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("Signed in"), "{page}");
    let run = run.wait().expect(0);
    // What was promised is what was shown (RFC 7636, section 4.6).
    let verifier = run.stdout.split("\"r-").nth(1).unwrap().split('"').next().unwrap();
    let digest = sha2::Sha256::digest(verifier.as_bytes());
    assert_eq!(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digest), field("code_challenge"));
    assert_eq!(provider.asked().len(), 1);
}

fn visit(port: u16, target: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

/// A real provider: oidc-provider of the npm registry.
struct OidcProvider {
    port: u16,
    folder: PathBuf,
    node: PathBuf,
    _process: Daemon,
}

impl OidcProvider {
    fn start(test: &str, site: &Site) -> Option<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/oidc");
        let Some(node) = program("node").filter(|_| folder.join("node_modules/oidc-provider").exists())
        else {
            skipped(test, "oidc-provider or Node.js is not installed; see make oauth");
            return None;
        };
        let (port, log) = (free_port(), site.path("oidc.log"));
        let (script, number) = (folder.join("provider.mjs"), port.to_string());
        let key = std::str::from_utf8(TOKEN_KEY).unwrap();
        let process = Daemon::start(&node, &[script.to_str().unwrap(), &number, key], &log);
        wait_until("the provider", || {
            std::fs::read_to_string(&log).unwrap_or_default().contains("it listens")
        });
        Some(Self { port, folder, node, _process: process })
    }

    /// A person opens `address`, signs in as `name`, and agrees.
    fn sign_in(&self, address: &str, name: &str) {
        let script = self.folder.join("person.mjs");
        let done = Command::new(&self.node).arg(script).args([address, name]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }
}

#[test]
#[ignore = "needs Node.js and npm: make oauth"]
fn a_person_signs_in_at_a_real_provider_and_mail_comes() {
    let test = "a_person_signs_in_at_a_real_provider_and_mail_comes";
    let Some(dovecot) = Dovecot::with_all_mechanisms(test) else { return };
    let site = site(&dovecot);
    let Some(provider) = OidcProvider::start(test, &site) else { return };
    dovecot.add(["alice", "alice.in", "machine", "machine.in"]);
    let (device, url) = (provider.url("device/auth"), provider.url("token"));
    let secret = site.manifests().join("secret-refresh.yaml");
    let line = [
        "oauth login --client-id rpop --scope openid --scope offline_access --scope pop --name refresh -n mail \
         --device-url",
        &device,
        "--token-url",
        &url,
        "-o",
        secret.to_str().unwrap(),
    ]
    .join(" ");
    let line: Vec<&str> = line.split_whitespace().collect();
    let mut login = Running::start(&binary(), &line, &site.manifests());
    login.wait_to_say("The code is good for 10 minutes");
    let text = login.text();
    let address = text.lines().find_map(|line| line.strip_prefix("or open ")).unwrap();
    provider.sign_in(address, "alice");
    login.wait().expect(0);

    let oauth = |record: &str, client: &str| {
        format!(
            "apiVersion: rpop.dev/v1alpha1\nkind: RpopRecord\nmetadata: {{name: {record}, namespace: mail}}\nspec:\n\
             \x20 account: {record}.in@local.test\n  pollEvery: 5m\n  tls: {{caRef: {{name: ca}}}}\n  remote:\n\
             \x20   host: \"127.0.0.1:{}\"\n    account: {record}\n    oauth2: {{tokenUrl: \"{url}\", {client}}}\n",
            dovecot.pop3s
        )
    };
    let person = "clientId: rpop, scopes: [pop], refreshTokenSecretRef: {name: refresh, key: refreshToken}";
    site.write("record-alice.yaml", &oauth("alice", person));
    site.secret("machine", "secret", "s3 cret/");
    let machine = "clientId: machine, scopes: [pop], clientSecretRef: {name: machine, key: secret}";
    site.write("record-machine.yaml", &oauth("machine", machine));
    for user in ["alice", "machine"] {
        dovecot.inbox(user).fill_generated(user, 2, 500);
    }
    // The second time by the refresh token that came the first time: each is good once.
    for round in 1..=2 {
        site.once().expect(0);
        for user in ["alice", "machine"] {
            let login = format!("Login: user=<{user}>, method=OAUTHBEARER");
            wait_until(&login, || dovecot.logged(&login) == round);
            assert_eq!(dovecot.inbox(&format!("{user}.in")).read().len(), 2, "{user}");
        }
        assert_eq!(kept(&site.state).len(), 1);
    }
}
