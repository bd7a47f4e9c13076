//! Logins at real servers: Dovecot, Dovecot with Samba's NTLM, GNU SASL.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use ::rpop::domain::code::Code;
use ::rpop::domain::work::{AuthChoice, TlsMode, TlsPolicy};
use ::rpop::net::{ConnectOptions, Connector, Stream, TlsMaterial};
use ::rpop::pop3::sasl::ntlm;
use ::rpop::pop3::{Client, Credentials, Deadlines, Error, LoginPolicy, Mechanism};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::support::authority::{Authority, Identity};
use crate::support::dovecot::{self, Dovecot, PASSWORD, TOKEN_KEY};
use crate::support::gsasl::{Gsasl, Ways};
use crate::support::mail::{census, census_arrived};
use crate::support::manifest::Record;
use crate::support::proxy::{Proxy, Weather};
use crate::support::rpop::{self, Run, Site};
use crate::support::{PATIENCE, folder, free_port, program, skipped, wait_until};

/// A destination, and a site whose Secret `ca` is of `authority`.
fn site(home: &Dovecot, authority: &Authority) -> Site {
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    site.secret("ca", "ca.crt", &authority.pem);
    site
}

fn check(site: &Site) -> Run {
    site.rpop(&["check", "-f", site.manifests().to_str().unwrap(), "--connect"])
}

/// The row of a record in the table of `rpop check`.
fn row(run: &Run, record: &str) -> String {
    let row = run.stdout.lines().find(|line| line.starts_with(&format!("mail/{record} ")));
    row.unwrap_or_else(|| panic!("no {record} in:\n{}", run.text())).to_owned()
}

/// Waits until the server's log holds `text` so often; it is written a moment
/// after the client has its answer.
fn logged(server: &Dovecot, text: &str, times: usize) {
    wait_until(text, || server.logged(text) == times);
}

#[test]
fn dovecot_is_logged_in_to_by_every_mechanism_with_a_password() {
    let test = "dovecot_is_logged_in_to_by_every_mechanism_with_a_password";
    let Some(provider) = Dovecot::with_all_mechanisms(test) else { return };
    let site = site(&provider, &provider.authority);
    let mut sent = Vec::new();
    for (auth, shown, method) in [
        ("Auto", "AUTH SCRAM-SHA-256", "SCRAM-SHA-256"),
        ("UserPass", "USER/PASS", "PLAIN"),
        ("Plain", "AUTH PLAIN", "PLAIN"),
        ("Login", "AUTH LOGIN", "LOGIN"),
        ("CramMd5", "AUTH CRAM-MD5", "CRAM-MD5"),
        ("ScramSha256", "AUTH SCRAM-SHA-256", "SCRAM-SHA-256"),
    ] {
        let auth_name = auth.to_ascii_lowercase();
        for (security, port) in [("clear", provider.pop3), ("stls", provider.pop3), ("tls", provider.pop3s)] {
            let user = format!("{auth_name}-{security}");
            let record = Record::plain(&user, port, &user).auth(auth).to(&format!("{user}.in@local.test"));
            site.record(&match security {
                "clear" => record,
                "stls" => record.starttls(),
                _ => record.implicit(),
            });
            provider.add([&user]);
            provider.add([format!("{user}.in")]);
            sent.push((user.clone(), provider.inbox(&user).fill_generated(&user, 2, 500), shown, method));
        }
    }
    let run = check(&site).expect(0);
    for (user, _, shown, _) in &sent {
        assert!(row(&run, user).contains(shown), "{user}: {}", row(&run, user));
    }
    site.once().expect(0);
    for (user, sent, _, method) in &sent {
        let arrived = provider.inbox(&format!("{user}.in")).read();
        assert_eq!(census_arrived(&arrived), census(sent.iter().map(Vec::as_slice)), "{user}");
        // Once by check, once by run; the server says by what.
        let said = format!("Login: user=<{user}>, method={method},");
        logged(&provider, &said, 2);
    }
}

#[test]
fn dovecot_is_logged_in_to_by_apop_where_both_switches_say_so() {
    let test = "dovecot_is_logged_in_to_by_apop_where_both_switches_say_so";
    let Some(provider) = Dovecot::start(test) else { return };
    let site = site(&provider, &provider.authority);
    provider.add(["alice", "bob"]);
    site.record(&Record::plain("clear", provider.pop3, "alice").with("apop: true"));
    site.record(&Record::plain("tls", provider.pop3s, "bob").implicit().with("apop: true"));
    let run = check(&site).expect(0);
    assert!(row(&run, "clear").contains("AUTH PLAIN") && row(&run, "tls").contains("AUTH PLAIN"));
    site.settings(&["useApop: true"]);
    let run = check(&site).expect(0);
    assert!(row(&run, "clear").contains("APOP") && row(&run, "tls").contains("APOP"), "{}", run.text());
    for user in ["alice", "bob"] {
        logged(&provider, &format!("Login: user=<{user}>, method=APOP"), 1);
    }
}

#[test]
fn a_wrong_password_is_tried_once_whatever_the_mechanism() {
    let test = "a_wrong_password_is_tried_once_whatever_the_mechanism";
    let Some(provider) = Dovecot::with_all_mechanisms(test) else { return };
    let site = site(&provider, &provider.authority);
    site.secret("wrong", "password", "incorrect horse");
    let auths = ["Auto", "UserPass", "Plain", "Login", "CramMd5", "ScramSha256", "Ntlm"];
    for auth in auths {
        let user = auth.to_ascii_lowercase();
        provider.add([&user]);
        site.record(&Record::plain(&user, provider.pop3s, &user).implicit().auth(auth).secret("wrong"));
    }
    let run = check(&site).expect(1);
    for auth in auths {
        let user = auth.to_ascii_lowercase();
        assert!(row(&run, &user).contains("AuthFailed"), "{}", run.text());
        assert!(!run.text().contains("incorrect horse"));
    }
    let tried = "auth failed, 1 attempts";
    wait_until("the server's log", || provider.logged("auth failed") == auths.len());
    assert_eq!(provider.logged(tried), auths.len(), "{}", provider.log());
}

#[test]
fn an_account_of_which_only_a_hash_is_stored_is_served_in_tls_and_not_betrayed_without() {
    let test = "an_account_of_which_only_a_hash_is_stored_is_served_in_tls_and_not_betrayed_without";
    let Some(provider) = Dovecot::with_all_mechanisms(test) else { return };
    provider.add_hashed("henry");
    provider.add_hashed("iris");
    let site = site(&provider, &provider.authority);
    site.record(&Record::plain("tls", provider.pop3s, "henry").implicit());
    site.record(&Record::plain("clear", provider.pop3, "iris"));
    let run = check(&site).expect(1);
    assert!(row(&run, "tls").contains("AUTH PLAIN"), "{}", run.text());
    assert!(row(&run, "clear").contains("AuthFailed"), "{}", run.text());
    logged(&provider, "Login: user=<henry>, method=PLAIN", 1);
    wait_until("the server's log", || provider.logged("user=<iris>") > 0);
    assert_eq!(provider.logged("user=<iris>, method=PLAIN"), 0, "{}", provider.log());
}

/// A connection; TLS to `server` where it is given.
async fn connect(port: u16, server: Option<&Identity>) -> Stream {
    let policy = TlsPolicy {
        mode: if server.is_some() { TlsMode::Implicit } else { TlsMode::None },
        pins: server.map(|server| Sha256::digest(&server.der).into()).into_iter().collect(),
        ..TlsPolicy::default()
    };
    let (options, material) = (ConnectOptions::default(), TlsMaterial::default());
    Connector::new().open("127.0.0.1", port, &options, &policy, &material, PATIENCE).await.unwrap()
}

/// A client that has asked for the capabilities.
async fn client(port: u16, server: Option<&Identity>) -> Client<Stream> {
    let stream = connect(port, server).await;
    let mut client = Client::greet(stream, Deadlines::new(PATIENCE, PATIENCE)).await.unwrap();
    client.capabilities().await.unwrap();
    client
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn by_token(provider: &Dovecot, choice: AuthChoice, token: &str) -> Result<Mechanism, Error> {
    let mut client = client(provider.pop3s, Some(&provider.identity)).await;
    let credentials = Credentials::bearer("alice", Zeroizing::new(token.to_owned()));
    let policy = LoginPolicy { choice, host: "127.0.0.1", port: provider.pop3s, ..LoginPolicy::ENCRYPTED };
    let mechanism = client.login(&credentials, &policy).await?;
    assert_eq!(client.stat().await?.messages, 1);
    Ok(mechanism)
}

#[test]
fn dovecot_takes_access_tokens_and_says_why_not() {
    let Some(provider) = Dovecot::with_all_mechanisms("dovecot_takes_access_tokens_and_says_why_not") else {
        return;
    };
    provider.inbox("alice").fill_generated("alice", 1, 100);
    let good = dovecot::token("alice", TOKEN_KEY, 3600);
    let expired = dovecot::token("alice", TOKEN_KEY, -60);
    let forged = dovecot::token("alice", b"somebody else's key, of 32 octets", 3600);
    let others = dovecot::token("mallory", TOKEN_KEY, 3600);
    block_on(async {
        for (choice, mechanism) in [
            (AuthChoice::Auto, Mechanism::OAuthBearer),
            (AuthChoice::OAuthBearer, Mechanism::OAuthBearer),
            (AuthChoice::XOAuth2, Mechanism::XOAuth2),
        ] {
            assert_eq!(by_token(&provider, choice, &good).await.unwrap(), mechanism);
            for bad in [&expired, &forged, &others, "not-a-token"] {
                let error = by_token(&provider, choice, bad).await.unwrap_err();
                assert_eq!(error.code(), Code::AuthFailed, "{error}");
                assert!(error.refuses_token(), "{error}");
                assert!(error.to_string().contains(r#"{"status":"#), "{error}");
            }
        }
    });
    logged(&provider, "Login: user=<alice>, method=OAUTHBEARER", 2);
    logged(&provider, "Login: user=<alice>, method=XOAUTH2", 1);
}

#[test]
fn sambas_ntlm_takes_ntlmv2_with_its_mic() {
    let test = "sambas_ntlm_takes_ntlmv2_with_its_mic";
    let Some(provider) = Dovecot::with_all_mechanisms(test) else { return };
    provider.add(["bob"]);
    let sent = provider.inbox("alice").fill_generated("alice", 3, 500);
    let site = site(&provider, &provider.authority);
    // Dovecot has one helper, which cannot tell logins apart.
    site.settings(&["processors: 1"]);
    site.secret("wrong", "password", "incorrect horse");
    let wrong = Record::plain("wrong", provider.pop3, "alice").auth("Ntlm").secret("wrong");
    for (name, user) in [("plain", "alice"), ("domain", "TEST\\alice")] {
        let record = |security: &str, port| {
            let mut record = Record::plain(&format!("{name}-{security}"), port, "alice").auth("Ntlm");
            record.user = format!("'{user}'");
            record.to("bob@local.test")
        };
        site.record(&record("clear", provider.pop3));
        site.record(&record("tls", provider.pop3s).implicit());
    }
    site.record(&wrong);
    let run = check(&site).expect(1);
    for name in ["plain-clear", "plain-tls", "domain-clear", "domain-tls"] {
        assert!(row(&run, name).contains("AUTH NTLM"), "{}", run.text());
    }
    assert!(row(&run, "wrong").contains("AuthFailed"), "{}", run.text());
    logged(&provider, "Login: user=<alice>, method=NTLM", 4);
    site.remove("record-wrong.yaml");
    site.once().expect(0);
    let arrived = provider.inbox("bob").read();
    assert_eq!(census_arrived(&arrived), census(sent.iter().map(Vec::as_slice)));
}

#[test]
fn samba_notices_who_changes_a_message_on_the_way() {
    let Some(provider) = Dovecot::with_all_mechanisms("samba_notices_who_changes_a_message_on_the_way")
    else {
        return;
    };
    let first = ntlm::negotiate();
    let mut weaker = first.clone();
    // No longer 128 bits.
    weaker[15] ^= 0x20;
    let line = |octets: &[u8]| &*STANDARD.encode(octets).leak();
    for (passes_on, expected) in [(&first, 0), (&weaker, 1)] {
        let weather = Weather { translate: Some((line(&first), line(passes_on))), ..Weather::default() };
        let between = Proxy::start(provider.pop3, weather);
        let site = site(&provider, &provider.authority);
        site.record(&Record::plain("r", between.port, "alice").auth("Ntlm"));
        let run = check(&site).expect(expected);
        assert_eq!(row(&run, "r").contains("AuthFailed"), expected == 1, "{}", run.text());
    }
}

#[test]
fn auth_msn_is_ntlm_under_another_name() {
    let Some(provider) = Dovecot::with_all_mechanisms("auth_msn_is_ntlm_under_another_name") else { return };
    provider.add(["bob"]);
    let sent = provider.inbox("alice").fill_generated("alice", 2, 500);
    let weather = Weather { translate: Some(("AUTH MSN", "AUTH NTLM")), ..Weather::default() };
    let msn = Proxy::start(provider.pop3, weather);
    let site = site(&provider, &provider.authority);
    site.record(&Record::plain("msn", msn.port, "alice").auth("Msn").to("bob@local.test"));
    assert!(row(&check(&site).expect(0), "msn").contains("AUTH MSN"));
    site.once().expect(0);
    assert_eq!(census_arrived(&provider.inbox("bob").read()), census(sent.iter().map(Vec::as_slice)));
    // Without a word in the record where the host is one of MSN's.
    block_on(async {
        let mut client = client(msn.port, None).await;
        let credentials = Credentials::password("alice", Zeroizing::new(PASSWORD.into()));
        let policy = LoginPolicy {
            host: "pop3.email.msn.com",
            encrypted: false,
            clear_text_allowed: true,
            ..LoginPolicy::ENCRYPTED
        };
        assert_eq!(client.login(&credentials, &policy).await.unwrap(), Mechanism::Msn);
    });
    logged(&provider, "Login: user=<alice>, method=NTLM", 3);
    // A server that does not know it gets no password in its place.
    block_on(async {
        let mut client = client(provider.pop3, None).await;
        let credentials = Credentials::password("alice", Zeroizing::new("incorrect horse".into()));
        let policy = LoginPolicy {
            choice: AuthChoice::Msn,
            encrypted: false,
            clear_text_allowed: true,
            ..LoginPolicy::ENCRYPTED
        };
        assert_eq!(client.login(&credentials, &policy).await.unwrap_err().code(), Code::AuthFailed);
    });
}

/// `rpop check` of one record at GNU SASL.
fn at_gsasl(test: &str, auth: &str, ways: Ways) -> Option<(Run, Gsasl)> {
    let authority = Authority::new();
    let identity = authority.server(&["127.0.0.1"]);
    let server = Gsasl::start(test, identity.server_config(), ways)?;
    let site = Site::for_delivery(&rpop::lmtp(1));
    site.secret("ca", "ca.crt", &authority.pem);
    site.record(&Record::plain("r", server.port, "alice").implicit().auth(auth));
    Some((check(&site), server))
}

#[test]
fn gnu_sasl_binds_the_login_to_the_tls_connection() {
    let test = "gnu_sasl_binds_the_login_to_the_tls_connection";
    for auth in ["Auto", "ScramSha256"] {
        let ways = Ways { offers: "PLAIN SCRAM-SHA-256 SCRAM-SHA-256-PLUS", binds: true, between: false };
        let Some((run, server)) = at_gsasl(test, auth, ways) else { return };
        let run = run.expect(0);
        assert!(row(&run, "r").contains("AUTH SCRAM-SHA-256-PLUS"), "{}", run.text());
        assert_eq!(server.verdict(), "ok alice");
    }
    // Without it, too.
    let ways = Ways { offers: "PLAIN SCRAM-SHA-256", ..Ways::default() };
    let Some((run, server)) = at_gsasl(test, "Auto", ways) else { return };
    assert!(row(&run.expect(0), "r").contains("AUTH SCRAM-SHA-256 "));
    assert_eq!(server.verdict(), "ok alice");
}

#[test]
fn whoever_sits_between_is_noticed_by_gnu_sasl() {
    let test = "whoever_sits_between_is_noticed_by_gnu_sasl";
    for (ways, command) in [
        // Passes the offer on: the binding is of another connection.
        (
            Ways { offers: "PLAIN SCRAM-SHA-256 SCRAM-SHA-256-PLUS", binds: true, between: true },
            "AUTH SCRAM-SHA-256-PLUS",
        ),
        // Takes it away: the client says that it could have.
        (Ways { offers: "SCRAM-SHA-256", binds: true, between: false }, "AUTH SCRAM-SHA-256"),
    ] {
        let Some((run, server)) = at_gsasl(test, "ScramSha256", ways) else { return };
        assert!(row(&run.expect(1), "r").contains("AuthFailed"));
        assert!(server.verdict().starts_with("no "), "{}", server.verdict());
        assert_eq!(server.commands(), ["CAPA", command], "and no password followed");
    }
}

#[test]
fn openssl_exports_what_we_export() {
    let test = "openssl_exports_what_we_export";
    let Some(program) = program("openssl") else {
        skipped(test, "openssl is not installed; it comes with ca-certificates");
        return;
    };
    let folder = folder("openssl");
    let identity = Authority::new().server(&["127.0.0.1"]);
    let (certificate, key) = identity.write(folder.path(), "server");
    for (version, has_exporter) in [("-tls1_3", true), ("-tls1_2", false)] {
        let port = free_port();
        let mut command = Command::new(&program);
        command
            .args(["s_server", version, "-accept", &format!("127.0.0.1:{port}"), "-naccept", "1"])
            .args(["-keymatexport", "EXPORTER-Channel-Binding", "-keymatexportlen", "32", "-cert"])
            .arg(&certificate)
            .arg("-key")
            .arg(&key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut server = command.spawn().unwrap();
        let mut said = BufReader::new(server.stdout.take().unwrap()).lines().map(Result::unwrap);
        said.find(|line| line == "ACCEPT").unwrap();
        let bindings = block_on(async {
            let stream = connect(port, Some(&identity)).await;
            stream.channel_bindings()
        });
        let exported = said.find_map(|line| line.trim().strip_prefix("Keying material: ").map(str::to_owned));
        drop(server.kill());
        drop(server.wait());
        let hex =
            |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02X}")).collect::<Vec<_>>().concat();
        let ours = bindings.exporter.map(|exporter| hex(&exporter));
        // With TLS 1.2 it is safe only where both ends have the extended
        // master secret.
        assert_eq!(ours, exported.filter(|_| has_exporter), "{version}");
        assert_eq!(ours.is_some(), has_exporter);
        assert_eq!(hex(&bindings.server_end_point.unwrap()), identity.pin.to_uppercase());
    }
}
