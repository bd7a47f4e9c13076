//! Each SASL mechanism against servers that follow it, and against servers
//! that do anything else.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::AsyncReadExt as _;
use zeroize::Zeroizing;

use super::*;
use crate::domain::code::Code;
use crate::domain::work::AuthChoice;
use crate::pop3::sasl::scram::ChannelBinding;
use crate::pop3::{Credentials, Error, LoginPolicy, Mechanism, sasl};

const TLS: LoginPolicy<'static> = LoginPolicy::ENCRYPTED;
const CLEAR: LoginPolicy<'static> = LoginPolicy { encrypted: false, clear_text_allowed: true, ..TLS };

fn by(choice: AuthChoice) -> LoginPolicy<'static> {
    LoginPolicy { choice, ..TLS }
}

fn password() -> Credentials {
    Credentials::password("tim", Zeroizing::new(b"tanstaaftanstaaf".to_vec()))
}

fn token(token: &str) -> Credentials {
    Credentials::bearer("user@example.com", Zeroizing::new(token.to_owned()))
}

/// A line that the server waits for, or `?` for any; then what it says.
type Turn = (String, String);

fn turn(heard: impl Into<String>, said: impl Into<String>) -> Turn {
    (heard.into(), said.into())
}

/// What the client made of a server with these turns behind a greeting and a
/// CAPA with this line, and all lines it sent.
async fn login(
    credentials: &Credentials,
    policy: &LoginPolicy<'_>,
    capa: &str,
    turns: Vec<Turn>,
) -> (Result<Mechanism, Error>, Vec<String>) {
    let (near, far) = duplex(64 * 1024);
    let capa = format!("+OK\r\n{capa}\r\n.\r\n");
    let server = tokio::spawn(async move {
        let mut far = BufReader::new(far);
        let mut heard = Vec::new();
        far.get_mut().write_all(b"+OK ready <1.2@h>\r\n").await.unwrap();
        for (wanted, said) in std::iter::once(turn("CAPA", capa)).chain(turns) {
            let mut line = String::new();
            far.read_line(&mut line).await.unwrap();
            let line = line.trim_end_matches("\r\n").to_owned();
            assert!(wanted == "?" || wanted == line, "waited for {wanted}, heard {line}");
            heard.push(line);
            if !said.is_empty() {
                far.get_mut()
                    .write_all(format!("{}\r\n", said.trim_end_matches("\r\n")).as_bytes())
                    .await
                    .unwrap();
            }
        }
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.unwrap();
        heard.extend(rest.lines().map(str::to_owned));
        heard
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    client.capabilities().await.unwrap();
    let outcome = client.login(credentials, policy).await;
    drop(client);
    (outcome, server.await.unwrap())
}

fn base64(text: impl AsRef<[u8]>) -> String {
    STANDARD.encode(text)
}

#[tokio::test]
async fn auth_login_asks_twice() {
    for ask in ["+ VXNlcm5hbWU6", "+", "+OK"] {
        let turns = vec![
            turn("AUTH LOGIN", ask),
            turn("dGlt", "+ UGFzc3dvcmQ6"),
            turn("dGFuc3RhYWZ0YW5zdGFhZg==", "+OK in"),
        ];
        let (outcome, _) = login(&password(), &TLS, "SASL LOGIN", turns).await;
        assert_eq!(outcome.unwrap(), Mechanism::Login);
    }
    // Who asks a third time is not told anything else.
    let turns = vec![turn("AUTH LOGIN", "+"), turn("dGlt", "+"), turn("?", "+ T25jZSBtb3Jl")];
    let (outcome, heard) = login(&password(), &TLS, "SASL LOGIN", turns).await;
    assert_eq!(outcome.unwrap_err().code(), Code::ProtocolError);
    assert_eq!(heard.len(), 4);
    for (turns, lines) in [
        (vec![turn("AUTH LOGIN", "-ERR no")], 2),
        (vec![turn("AUTH LOGIN", "+"), turn("dGlt", "-ERR who")], 3),
        (vec![turn("AUTH LOGIN", "+"), turn("dGlt", "+"), turn("?", "-ERR wrong")], 4),
    ] {
        let (outcome, heard) = login(&password(), &TLS, "SASL LOGIN", turns).await;
        assert_eq!(outcome.unwrap_err().code(), Code::AuthFailed);
        assert_eq!(heard.len(), lines, "{heard:?}");
    }
}

#[tokio::test]
async fn cram_md5_answers_the_challenge() {
    let challenge = format!("+ {}", base64("<1896.697170952@postoffice.reston.mci.net>"));
    let answer = base64("tim b913a602c7eda7a495b4e6e7334d3890");
    for policy in [CLEAR, by(AuthChoice::CramMd5)] {
        let turns = vec![turn("AUTH CRAM-MD5", &challenge), turn(&answer, "+OK in")];
        let (outcome, _) = login(&password(), &policy, "USER\r\nSASL PLAIN CRAM-MD5", turns).await;
        assert_eq!(outcome.unwrap(), Mechanism::CramMd5);
    }
}

#[tokio::test]
async fn no_clear_text_follows_a_refused_digest_over_an_unencrypted_connection() {
    let challenge = format!("+ {}", base64("<1@h>"));
    for turns in [
        vec![turn("AUTH CRAM-MD5", "-ERR no")],
        vec![turn("AUTH CRAM-MD5", &challenge), turn("?", "-ERR no")],
    ] {
        let (outcome, heard) = login(&password(), &CLEAR, "USER\r\nSASL PLAIN CRAM-MD5", turns).await;
        assert_eq!(outcome.unwrap_err().code(), Code::AuthFailed);
        assert!(!heard.join("\n").contains("PLAIN") && !heard.join("\n").contains("USER"), "{heard:?}");
    }
    let capa = "USER\r\nSASL PLAIN SCRAM-SHA-256";
    let (outcome, heard) = login(&password(), &CLEAR, capa, vec![turn("?", "-ERR [AUTH] no")]).await;
    assert_eq!(outcome.unwrap_err().code(), Code::AuthFailed);
    assert_eq!(heard.len(), 2, "{heard:?}");
    // Another digest may.
    let capa = "USER\r\nSASL PLAIN SCRAM-SHA-256 CRAM-MD5";
    let turns = vec![turn("?", "-ERR [AUTH] no"), turn("AUTH CRAM-MD5", &challenge), turn("?", "+OK")];
    let (outcome, _) = login(&password(), &CLEAR, capa, turns).await;
    assert_eq!(outcome.unwrap(), Mechanism::CramMd5);
}

#[tokio::test]
async fn in_tls_another_mechanism_follows_one_that_was_refused_unseen_and_no_refused_proof() {
    let capa = "USER\r\nSASL PLAIN SCRAM-SHA-256";
    let plain = format!("AUTH PLAIN {}", base64("\0tim\0tanstaaftanstaaf"));
    // A server that has no SCRAM hash of this user.
    let turns = vec![turn("?", "-ERR [AUTH] no"), turn(&plain, "+OK")];
    let (outcome, _) = login(&password(), &TLS, capa, turns).await;
    assert_eq!(outcome.unwrap(), Mechanism::Plain);
    // The maildrop is locked, whatever the mechanism.
    for (said, code) in [
        ("-ERR [IN-USE] no", Code::MailboxLocked),
        ("-ERR [SYS/TEMP] no", Code::ServerBusy),
        ("-ERR [LOGIN-DELAY] no", Code::LoginDelay),
    ] {
        let (outcome, heard) = login(&password(), &TLS, capa, vec![turn("?", said)]).await;
        assert_eq!(outcome.unwrap_err().code(), code);
        assert_eq!(heard.len(), 2);
    }
    // A wrong password counts once.
    let (outcome, heard) = scram(&TLS, &Fake { refuses: Some("-ERR [AUTH] no"), ..Fake::default() }).await;
    assert_eq!(outcome.unwrap_err().code(), Code::AuthFailed);
    assert_eq!(heard.len(), 3, "{heard:?}");
}

/// A server's side of SCRAM-SHA-256, which can do each step wrong.
#[derive(Clone, Debug, Default)]
struct Fake {
    /// Replaces its first message; `NONCE` stands for the client's.
    first: Option<String>,
    /// Replaces its last message.
    last: Option<&'static str>,
    /// Replaces its answer to the proof.
    refuses: Option<&'static str>,
    /// Does not take the response that comes with the command.
    asks_again: bool,
    /// Offers it with channel binding.
    plus: bool,
    /// Refuses the binding, before any proof.
    unbound: Option<&'static str>,
}

impl Fake {
    /// It said why in SCRAM's own words: the refusal proper follows.
    fn has_refused(&self) -> bool {
        self.unbound.is_some() || self.last.is_some_and(|last| last.starts_with("e="))
    }
}

/// A login by SCRAM at such a server: the outcome and the lines that came,
/// those of SCRAM decoded.
async fn scram(policy: &LoginPolicy<'_>, fake: &Fake) -> (Result<Mechanism, Error>, Vec<String>) {
    let (near, far) = duplex(64 * 1024);
    let script = fake.clone();
    let server = tokio::spawn(async move {
        let mut far = BufReader::new(far);
        let mut heard = Vec::new();
        let offer = if script.plus { " SCRAM-SHA-256-PLUS" } else { "" };
        let capa = format!("+OK\r\nUSER\r\nSASL PLAIN SCRAM-SHA-256{offer}\r\n.\r\n");
        let mut bare = String::new();
        let mut first = String::new();
        let mut say = b"+OK\r\n".to_vec();
        loop {
            far.get_mut().write_all(&say).await.unwrap();
            let mut line = String::new();
            if far.read_line(&mut line).await.unwrap() == 0 {
                return heard;
            }
            let line = line.trim_end_matches("\r\n").to_owned();
            let (command, text) = match line.rsplit_once(' ') {
                Some((command, text)) => (command.to_owned(), text.to_owned()),
                None => (String::new(), line.clone()),
            };
            let decoded = STANDARD.decode(&text).ok().and_then(|text| String::from_utf8(text).ok());
            say = match decoded {
                _ if line == "CAPA" => capa.clone().into_bytes(),
                _ if line == "*" => b"-ERR cancelled\r\n".to_vec(),
                _ if line.is_empty() && script.has_refused() => b"-ERR [AUTH] sorry\r\n".to_vec(),
                _ if line.is_empty() => b"+OK in\r\n".to_vec(),
                Some(message) if message.contains(",,n=") && script.asks_again && !command.is_empty() => {
                    heard.push(format!("{command} {message}"));
                    b"+ \r\n".to_vec()
                }
                Some(message) if message.starts_with("p=") && script.unbound.is_some() => {
                    heard.push(format!("{command} {message}"));
                    script.unbound.unwrap().as_bytes().to_vec()
                }
                Some(message) if message.contains(",,n=") => {
                    bare = message.split_once(",,").unwrap().1.to_owned();
                    let nonce = bare.split_once(",r=").unwrap().1.to_owned();
                    first = format!("r={nonce}theirs,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
                    if let Some(other) = &script.first {
                        first = other.replace("NONCE", &nonce);
                    }
                    heard.push(format!("{command} {message}"));
                    format!("+ {}\r\n", base64(&first)).into_bytes()
                }
                Some(message) if message.starts_with("c=") => {
                    let (without, _) = message.split_once(",p=").unwrap();
                    let last = format!("v={}", base64(signature(&format!("{bare},{first},{without}"))));
                    heard.push(message);
                    let last = script.last.map_or(last, str::to_owned);
                    match script.refuses {
                        Some(refusal) => format!("{refusal}\r\n").into_bytes(),
                        None => format!("+ {}\r\n", base64(last)).into_bytes(),
                    }
                }
                _ => b"-ERR what?\r\n".to_vec(),
            };
            if line == "*" || line.is_empty() || line.starts_with("AUTH PLAIN") || line == "CAPA" {
                heard.push(line);
            }
        }
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    client.capabilities().await.unwrap();
    let outcome = client.login(&password(), policy).await;
    drop(client);
    (outcome, server.await.unwrap())
}

/// The server's signature, with the arithmetic of RFC 5802 written anew.
fn signature(text: &str) -> Vec<u8> {
    use hmac::{Hmac, KeyInit as _, Mac as _};
    use sha2::Sha256;
    let mac = |key: &[u8], text: &[u8]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        mac.update(text);
        mac.finalize().into_bytes().to_vec()
    };
    let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let mut block = mac(b"tanstaaftanstaaf", &[&salt[..], &[0, 0, 0, 1]].concat());
    let mut salted = block.clone();
    for _ in 1..4096 {
        block = mac(b"tanstaaftanstaaf", &block);
        for (octet, other) in salted.iter_mut().zip(&block) {
            *octet ^= other;
        }
    }
    mac(&mac(&salted, b"Server Key"), text.as_bytes())
}

#[tokio::test]
async fn scram_proves_both_sides() {
    for policy in [TLS, CLEAR, by(AuthChoice::ScramSha256)] {
        for asks_again in [false, true] {
            let (outcome, heard) = scram(&policy, &Fake { asks_again, ..Fake::default() }).await;
            assert_eq!(outcome.unwrap(), Mechanism::ScramSha256);
            assert!(heard[1].starts_with("AUTH SCRAM-SHA-256 n,,n=tim,r="), "{heard:?}");
            assert_eq!(heard.last().unwrap(), "");
        }
    }
}

#[tokio::test]
async fn two_logins_have_two_nonces() {
    let (_, one) = scram(&TLS, &Fake::default()).await;
    let (_, other) = scram(&TLS, &Fake::default()).await;
    assert_ne!(one[1], other[1]);
}

#[tokio::test]
async fn scram_says_of_channel_binding_what_is_so() {
    let binding = ChannelBinding::Exporter([7; 32]);
    let bound = LoginPolicy { binding: Some(&binding), ..TLS };
    for (policy, plus, said, mechanism) in [
        // Offered and possible.
        (bound, true, "AUTH SCRAM-SHA-256-PLUS p=tls-exporter,,", Mechanism::ScramSha256Plus),
        // Possible, and not offered: a server that offers it will notice that
        // somebody took the offer away.
        (bound, false, "AUTH SCRAM-SHA-256 y,,", Mechanism::ScramSha256),
        // Offered, and not possible.
        (TLS, true, "AUTH SCRAM-SHA-256 n,,", Mechanism::ScramSha256),
        (TLS, false, "AUTH SCRAM-SHA-256 n,,", Mechanism::ScramSha256),
        // Whatever a caller says, there is none without TLS.
        (LoginPolicy { encrypted: false, ..bound }, true, "AUTH SCRAM-SHA-256 n,,", Mechanism::ScramSha256),
    ] {
        for choice in [AuthChoice::Auto, AuthChoice::ScramSha256] {
            let (outcome, heard) =
                scram(&LoginPolicy { choice, ..policy }, &Fake { plus, ..Fake::default() }).await;
            assert_eq!(outcome.unwrap(), mechanism);
            assert!(heard[1].starts_with(said), "{heard:?}");
            if mechanism == Mechanism::ScramSha256Plus {
                let data = [&b"p=tls-exporter,,"[..], &[7; 32]].concat();
                assert!(heard[2].starts_with(&format!("c={},r=", base64(data))), "{heard:?}");
            }
        }
    }
}

/// `e=unsupported-channel-binding-type`.
const UNKNOWN_TYPE: &str = "+ ZT11bnN1cHBvcnRlZC1jaGFubmVsLWJpbmRpbmctdHlwZQ==\r\n";

#[tokio::test]
async fn a_refused_channel_binding_is_not_left_out_in_silence() {
    let binding = ChannelBinding::Exporter([7; 32]);
    let bound = LoginPolicy { binding: Some(&binding), ..TLS };
    let named = LoginPolicy { choice: AuthChoice::ScramSha256, ..bound };
    for (unbound, told) in [("-ERR [AUTH] no\r\n", "no"), (UNKNOWN_TYPE, "unsupported-channel-binding-type")]
    {
        let fake = Fake { plus: true, unbound: Some(unbound), ..Fake::default() };
        let (outcome, heard) = scram(&named, &fake).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.code(), Code::AuthFailed);
        assert!(error.to_string().contains(told), "{error}");
        let others = heard.iter().filter(|line| line.starts_with("AUTH")).count();
        assert_eq!(others, 1, "{heard:?}");
    }
    // With auto what follows is what is safe in TLS.
    let fake = Fake { plus: true, unbound: Some("-ERR [AUTH] no\r\n"), ..Fake::default() };
    let (_, heard) = scram(&bound, &fake).await;
    assert!(heard[2].starts_with("AUTH PLAIN "), "{heard:?}");
    let fake = Fake { plus: true, unbound: Some(UNKNOWN_TYPE), ..Fake::default() };
    let (_, heard) = scram(&bound, &fake).await;
    assert!(heard[3].starts_with("AUTH SCRAM-SHA-256 n,,"), "{heard:?}");
}

#[tokio::test]
async fn a_server_that_proves_nothing_is_an_impostor() {
    for (last, refuses) in [
        (Some("v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), None),
        (None, Some("+OK in")),
        (None, Some("+OK")),
    ] {
        for choice in [AuthChoice::Auto, AuthChoice::ScramSha256] {
            let (outcome, heard) = scram(&by(choice), &Fake { last, refuses, ..Fake::default() }).await;
            let error = outcome.unwrap_err();
            assert!(matches!(error, Error::Impostor { .. }), "{error}");
            assert_eq!(error.code(), Code::AuthFailed);
            assert!(!heard.iter().any(|line| line.contains("PLAIN") || line.is_empty()), "{heard:?}");
        }
    }
    // Before it has seen anything, too.
    let (outcome, _) = login(&password(), &TLS, "SASL SCRAM-SHA-256", vec![turn("?", "+OK in")]).await;
    assert_eq!(outcome.unwrap_err().code(), Code::ProtocolError);
}

#[tokio::test]
async fn a_malformed_message_of_scram_is_never_answered_with_a_proof() {
    for first in [
        "",
        "x",
        "r=NONCE,s=QQ==,i=4096",
        "r=other,s=QQ==,i=4096",
        "r=NONCEx,s=,i=4096",
        "r=NONCEx,s=!,i=4096",
        "r=NONCEx,s=QQ==,i=0",
        "r=NONCEx,s=QQ==,i=1",
        "r=NONCEx,s=QQ==,i=4294967295",
        "m=x,r=NONCEx,s=QQ==,i=4096",
        "r=NONCEx,s=QQ==",
        "r=NONCEx,s=QQ==,i=4096,,",
        "r=NONCE\u{e4},s=QQ==,i=4096",
    ] {
        let fake = Fake { first: Some(first.to_owned()), ..Fake::default() };
        let (outcome, heard) = scram(&by(AuthChoice::ScramSha256), &fake).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.code(), Code::ProtocolError, "{first}: {error}");
        assert!(!heard.iter().any(|line| line.starts_with("c=")), "{first}: {heard:?}");
        // An empty message means that the server asks for ours again.
        assert_eq!(heard.last().unwrap(), "*", "{first}");
    }
    for last in ["", "v=", "v=!", "v=QUFB", "x=1"] {
        let fake = Fake { last: Some(last), ..Fake::default() };
        let (outcome, heard) = scram(&by(AuthChoice::ScramSha256), &fake).await;
        assert_eq!(outcome.unwrap_err().code(), Code::ProtocolError, "{last}");
        assert_eq!(heard.last().unwrap(), "*", "{last}");
    }
    let fake = Fake { last: Some("e=invalid-proof\u{1b}[2J"), ..Fake::default() };
    let (outcome, _) = scram(&by(AuthChoice::ScramSha256), &fake).await;
    let error = outcome.unwrap_err();
    assert_eq!(error.code(), Code::AuthFailed);
    assert!(error.to_string().ends_with("sorry (its reason: invalid-proof\\u{1b}[2J)"), "{error}");
}

#[tokio::test]
async fn a_reason_in_scrams_own_words_is_told() {
    let (near, far) = duplex(64 * 1024);
    let server = tokio::spawn(async move {
        let mut far = BufReader::new(far);
        for said in ["+OK\r\n", "+ ZT11bmtub3duLXVzZXI=\r\n", "-ERR [AUTH] sorry\r\n"] {
            far.get_mut().write_all(said.as_bytes()).await.unwrap();
            let mut line = String::new();
            far.read_line(&mut line).await.unwrap();
        }
    });
    let mut client = Client::greet(near, deadlines()).await.unwrap();
    let error = client.login(&password(), &by(AuthChoice::ScramSha256)).await.unwrap_err();
    assert_eq!(error.code(), Code::AuthFailed);
    assert!(error.to_string().contains("sorry (its reason: unknown-user)"), "{error}");
    drop(client);
    server.await.unwrap();
}

#[tokio::test]
async fn xoauth2_goes_in_two_steps_and_oauthbearer_in_one_where_it_fits() {
    // quirks: "O365 XOAUTH2 needs it always"
    let first = base64("user=user@example.com\x01auth=Bearer tok\x01\x01");
    for ask in ["+ ", "+", "+OK"] {
        let turns = vec![turn("AUTH XOAUTH2", ask), turn(&first, "+OK in")];
        let (outcome, _) = login(&token("tok"), &TLS, "SASL PLAIN XOAUTH2", turns).await;
        assert_eq!(outcome.unwrap(), Mechanism::XOAuth2);
    }
    let policy = LoginPolicy { host: "pop.example", port: 995, ..TLS };
    let first = base64("n,a=user@example.com,\x01host=pop.example\x01port=995\x01auth=Bearer tok\x01\x01");
    let turns = vec![turn(format!("AUTH OAUTHBEARER {first}"), "+OK in")];
    let (outcome, _) = login(&token("tok"), &policy, "SASL XOAUTH2 OAUTHBEARER", turns).await;
    assert_eq!(outcome.unwrap(), Mechanism::OAuthBearer);
    // quirks: "tokens over 4096 characters"
    let long = "t".repeat(6000);
    let first = base64(format!(
        "n,a=user@example.com,\x01host=pop.example\x01port=995\x01auth=Bearer {long}\x01\x01"
    ));
    let turns = vec![turn("AUTH OAUTHBEARER", "+ "), turn(&first, "+OK in")];
    let (outcome, _) = login(&token(&long), &policy, "SASL OAUTHBEARER", turns).await;
    assert_eq!(outcome.unwrap(), Mechanism::OAuthBearer);
}

#[tokio::test]
async fn the_reason_of_a_refused_token_is_told_and_asked_for() {
    // quirks: "XOAUTH2's JSON error challenge needs an empty reply"
    let reason = r#"{"status":"invalid_token","scope":"https://mail.example/\u001b"}"#;
    for (capa, command, nothing) in
        [("SASL XOAUTH2", "AUTH XOAUTH2", ""), ("SASL OAUTHBEARER", "AUTH OAUTHBEARER", "AQ==")]
    {
        for (challenge, shown) in [
            (base64(reason), "invalid_token"),
            (base64("not json"), "the server's reason is not a JSON object"),
            ("!!!".to_owned(), "the challenge is not base64"),
            (base64(format!("{{\"status\":\"{}\"}}", "x".repeat(5000))), "xxxxx"),
        ] {
            let mut turns = vec![turn("?", format!("+ {challenge}")), turn(nothing, "-ERR [AUTH] no")];
            if command == "AUTH XOAUTH2" {
                turns.insert(0, turn(command, "+ "));
            }
            let (outcome, _) = login(&token("secrettoken"), &TLS, capa, turns).await;
            let error = outcome.unwrap_err();
            assert_eq!(error.code(), Code::AuthFailed);
            assert!(error.refuses_token());
            let text = error.to_string();
            assert!(text.contains(shown) && text.len() < 400, "{text}");
            assert!(!text.contains("secrettoken") && !text.chars().any(char::is_control), "{text}");
        }
    }
    // Trouble of the server's is no reason to get another token.
    let turns = vec![turn("AUTH XOAUTH2", "+ "), turn("?", "-ERR [SYS/TEMP] later")];
    let (outcome, _) = login(&token("t"), &TLS, "SASL XOAUTH2", turns).await;
    let error = outcome.unwrap_err();
    assert_eq!((error.code(), error.refuses_token()), (Code::ServerBusy, false));
    // A reason, and then all is well: it is not.
    let turns =
        vec![turn("AUTH XOAUTH2", "+ "), turn("?", format!("+ {}", base64(reason))), turn("", "+OK in")];
    let (outcome, _) = login(&token("t"), &TLS, "SASL XOAUTH2", turns).await;
    assert_eq!(outcome.unwrap_err().code(), Code::ProtocolError);
    // And reasons without end.
    let again = format!("+ {}", base64(reason));
    let turns = vec![turn("AUTH XOAUTH2", "+ "), turn("?", &again), turn("", &again)];
    let (outcome, _) = login(&token("t"), &TLS, "SASL XOAUTH2", turns).await;
    assert_eq!(outcome.unwrap_err().code(), Code::ProtocolError);
}

#[tokio::test]
async fn a_token_that_cannot_be_sent_is_not() {
    for (user, token) in [("u", ""), ("u", "a b"), ("u", "a\r\nDELE 1"), ("u", "a\u{1}b"), ("u\u{1}", "t")] {
        let credentials = Credentials::bearer(user, Zeroizing::new(token.to_owned()));
        let (outcome, heard) = login(&credentials, &TLS, "SASL XOAUTH2", vec![]).await;
        let expected = if user == "u" { Code::SecretInvalid } else { Code::ConfigInvalid };
        assert_eq!(outcome.unwrap_err().code(), expected);
        assert_eq!(heard, ["CAPA"]);
    }
    let (outcome, heard) = login(&token("t"), &CLEAR, "SASL XOAUTH2", vec![]).await;
    assert_eq!(outcome.unwrap_err().code(), Code::AuthUnavailable);
    assert_eq!(heard, ["CAPA"]);
}

/// A CHALLENGE without target information.
fn ntlm_challenge() -> Vec<u8> {
    let mut challenge = b"NTLMSSP\0\x02\0\0\0".to_vec();
    challenge.extend_from_slice(&[0; 8]);
    challenge.extend_from_slice(&[1, 2, 0, 0]);
    challenge.extend_from_slice(&[7; 8]);
    challenge
}

#[tokio::test]
async fn ntlm_is_spoken_under_both_of_its_names() {
    // quirks: "`+OK` instead of a `+` continuation"
    let negotiate = base64(sasl::ntlm::negotiate());
    let (ntlm, msn) = (by(AuthChoice::Ntlm), by(AuthChoice::Msn));
    let host = LoginPolicy { host: "pop3.email.msn.com", ..TLS };
    for (policy, command, mechanism) in [
        (ntlm, "AUTH NTLM", Mechanism::Ntlm),
        (msn, "AUTH MSN", Mechanism::Msn),
        (host, "AUTH MSN", Mechanism::Msn),
    ] {
        for ask in ["+ ", "+OK", "+"] {
            let turns = vec![
                turn(command, ask),
                turn(&negotiate, format!("+ {}", base64(ntlm_challenge()))),
                turn("?", "+OK in"),
            ];
            let (outcome, heard) = login(&password(), &policy, "USER\r\nSASL NTLM", turns).await;
            assert_eq!(outcome.unwrap(), mechanism);
            let answer = STANDARD.decode(&heard[3]).unwrap();
            assert!(answer.starts_with(b"NTLMSSP\0\x03\0\0\0"));
        }
    }
}

#[tokio::test]
async fn a_malformed_challenge_is_cancelled_and_nothing_of_the_password_sent() {
    // quirks: "invalid base64, padding only, oversized offsets, non-challenge text, cancel"
    let good = ntlm_challenge();
    let mut oversized = good.clone();
    oversized[12..20].copy_from_slice(&[0xff; 8]);
    let mut bad: Vec<String> =
        [&b""[..], b"<1@h>", &good[..31], &oversized, &[0xff; 4096]].map(base64).to_vec();
    bad.extend(["!!!!", "=", "====", "YWI", "NTLM supported"].map(str::to_owned));
    for challenge in &bad {
        let turns =
            vec![turn("AUTH NTLM", "+"), turn("?", format!("+ {challenge}")), turn("*", "-ERR cancelled")];
        let (outcome, heard) = login(&password(), &by(AuthChoice::Ntlm), "SASL NTLM", turns).await;
        let error = outcome.unwrap_err();
        assert_eq!(error.code(), Code::ProtocolError, "{challenge}: {error}");
        assert!(matches!(error, Error::Challenge { .. }), "{challenge}: {error}");
        assert_eq!(heard.len(), 4, "{heard:?}");
    }
    let mut bad: Vec<String> = [&b""[..], b"<>", b"hello", b"<a b>", &[0xff; 40], &good].map(base64).to_vec();
    bad.extend(["!!!!", "=", "YWI"].map(str::to_owned));
    for challenge in &bad {
        let turns = vec![turn("AUTH CRAM-MD5", format!("+ {challenge}")), turn("*", "-ERR cancelled")];
        let (outcome, heard) = login(&password(), &by(AuthChoice::CramMd5), "SASL CRAM-MD5", turns).await;
        assert!(matches!(outcome.unwrap_err(), Error::Challenge { .. }), "{challenge}");
        assert_eq!(heard.len(), 3, "{heard:?}");
    }
}

#[tokio::test]
async fn a_challenge_without_an_end_is_cut_off() {
    let endless = "A".repeat(2 * sasl::MAX_CHALLENGE);
    for (choice, turns) in [
        (AuthChoice::Ntlm, vec![turn("?", "+"), turn("?", format!("+ {endless}"))]),
        (AuthChoice::CramMd5, vec![turn("?", format!("+ {endless}"))]),
        (AuthChoice::ScramSha256, vec![turn("?", format!("+ {endless}"))]),
        (AuthChoice::Login, vec![turn("?", format!("+ {endless}"))]),
        (AuthChoice::Plain, vec![turn("?", format!("+OK {endless}"))]),
    ] {
        let capa = "SASL PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256 NTLM";
        let (outcome, _) = login(&password(), &by(choice), capa, turns).await;
        assert_eq!(outcome.unwrap_err().code(), Code::ProtocolError);
    }
    // A long status line is no challenge.
    let turns = vec![turn("?", format!("+OK {}", "A".repeat(5000)))];
    let (outcome, _) = login(&password(), &by(AuthChoice::Plain), "SASL PLAIN", turns).await;
    assert_eq!(outcome.unwrap_err().code(), Code::ProtocolError);
}

#[tokio::test]
async fn a_challenge_that_repeats_a_short_password_is_understood_all_the_same() {
    let credentials = Credentials::password("tim", Zeroizing::new(b"P".to_vec()));
    let challenge = base64("<1@h>");
    assert!(challenge.contains('P'));
    let turns = vec![turn("AUTH CRAM-MD5", format!("+ {challenge}")), turn("?", "+OK in")];
    let (outcome, _) = login(&credentials, &by(AuthChoice::CramMd5), "SASL CRAM-MD5", turns).await;
    assert_eq!(outcome.unwrap(), Mechanism::CramMd5);
}

#[tokio::test]
async fn a_name_that_the_server_cannot_write_is_not_sent() {
    let mut challenge = ntlm_challenge();
    challenge[20] = 2;
    let user = Credentials::password("J\u{fc}rgen", Zeroizing::new(b"p4ssw0rd".to_vec()));
    let turns = vec![turn("?", "+"), turn("?", format!("+ {}", base64(&challenge))), turn("*", "-ERR")];
    let (outcome, _) = login(&user, &by(AuthChoice::Ntlm), "SASL NTLM", turns).await;
    assert_eq!(outcome.unwrap_err().code(), Code::ConfigInvalid);

    let bytes = Credentials::password("tim", Zeroizing::new(b"caf\xe9".to_vec()));
    let (outcome, heard) = login(&bytes, &by(AuthChoice::Ntlm), "SASL NTLM", vec![]).await;
    assert_eq!(outcome.unwrap_err().code(), Code::SecretInvalid);
    assert_eq!(heard, ["CAPA"]);
}

#[tokio::test]
async fn no_answer_shows_in_a_transcript_or_an_error() {
    let found = super::login::Found::default();
    let guard = found.subscribe();
    let challenge = format!("+ {}", base64("<1896.697170952@postoffice.reston.mci.net>"));
    let answer = base64("tim b913a602c7eda7a495b4e6e7334d3890");
    let turns = vec![turn("AUTH CRAM-MD5", &challenge), turn(&answer, format!("-ERR what is {answer}?"))];
    let (outcome, _) = login(&password(), &by(AuthChoice::CramMd5), "SASL CRAM-MD5", turns).await;
    let error = outcome.unwrap_err().to_string();
    assert!(!error.contains(&answer) && error.contains("***"), "{error}");
    let (outcome, scrams) = scram(&TLS, &Fake::default()).await;
    outcome.unwrap();
    let turns = vec![
        turn("AUTH NTLM", "+ "),
        turn("?", format!("+ {}", base64(ntlm_challenge()))),
        turn("?", "+OK in"),
    ];
    let (outcome, ntlms) = login(&password(), &by(AuthChoice::Ntlm), "SASL NTLM", turns).await;
    outcome.unwrap();
    let turns = vec![turn("AUTH XOAUTH2", "+ "), turn("?", "+OK in")];
    let (outcome, tokens) = login(&token("secrettoken"), &TLS, "SASL XOAUTH2", turns).await;
    outcome.unwrap();
    drop(guard);
    let log = found.text();
    assert!(log.contains("AUTH NTLM ***") && log.contains("<< + ("), "{log}");
    let proof = base64(&scrams[2]);
    let encoded = base64("tanstaaftanstaaf");
    for secret in [answer.as_str(), &proof, &ntlms[3], &tokens[2], "tanstaaf", "secrettoken", &encoded] {
        assert!(!log.contains(secret), "{secret}: {log}");
    }
}
