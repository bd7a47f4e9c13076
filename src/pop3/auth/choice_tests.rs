use zeroize::Zeroizing;

use super::*;
use crate::domain::code::Code;
use crate::pop3::sasl::scram::ChannelBinding;

const TLS: LoginPolicy<'static> = LoginPolicy::ENCRYPTED;
/// `tls: {mode: None}`.
const CLEAR: LoginPolicy<'static> = LoginPolicy { encrypted: false, clear_text_allowed: true, ..TLS };
/// Clear text, and no leave to send a password over it.
const BARE: LoginPolicy<'static> = LoginPolicy { clear_text_allowed: false, ..CLEAR };

const BINDING: &ChannelBinding = &ChannelBinding::Exporter([1; 32]);
const BOUND: LoginPolicy<'static> = LoginPolicy { binding: Some(BINDING), ..TLS };

fn chosen(policy: &LoginPolicy<'_>, capa: Option<&str>, secret: &Secret) -> Result<Vec<Mechanism>, Error> {
    let known = capa.map(|lines| {
        let mut known = Capabilities { known: true, ..Capabilities::default() };
        for line in lines.split(';') {
            known.see(line.as_bytes());
        }
        known
    });
    candidates(secret, policy, Offer { known: known.as_ref(), apop: true })
}

fn password(policy: &LoginPolicy<'_>, capa: &str) -> Vec<Mechanism> {
    chosen(policy, Some(capa), &Secret::Password(Zeroizing::default())).unwrap_or_default()
}

fn bearer(policy: &LoginPolicy<'_>, capa: &str) -> Vec<Mechanism> {
    chosen(policy, Some(capa), &Secret::Bearer(Zeroizing::default())).unwrap_or_default()
}

#[test]
fn auto_takes_the_strongest_that_is_offered_and_fits() {
    use Mechanism::{CramMd5, Login, Plain, ScramSha256, ScramSha256Plus, UserPass};
    let all = "USER;SASL LOGIN PLAIN CRAM-MD5 NTLM XOAUTH2 SCRAM-SHA-256 SCRAM-SHA-256-PLUS DIGEST-MD5";
    assert_eq!(password(&BOUND, all), [ScramSha256Plus, ScramSha256, Plain]);
    assert_eq!(password(&TLS, all), [ScramSha256, Plain], "this connection has nothing to bind to");
    assert_eq!(password(&CLEAR, all), [ScramSha256, CramMd5, Plain]);
    assert_eq!(password(&BARE, all), [ScramSha256, CramMd5]);

    assert_eq!(password(&TLS, "USER;SASL PLAIN CRAM-MD5"), [Plain]);
    assert_eq!(password(&TLS, "SASL CRAM-MD5"), [CramMd5]);
    assert_eq!(password(&CLEAR, "USER;SASL CRAM-MD5"), [CramMd5, UserPass]);
    assert_eq!(password(&TLS, "SASL LOGIN"), [Login]);
    assert_eq!(password(&TLS, "USER;SASL LOGIN"), [UserPass]);
    assert_eq!(password(&TLS, "USER"), [UserPass]);
    assert_eq!(password(&TLS, "TOP"), [UserPass]);
    assert_eq!(password(&BARE, "USER;SASL PLAIN LOGIN"), []);
}

#[test]
fn apop_needs_to_be_wanted_and_stands_behind_scram() {
    use Mechanism::{Apop, CramMd5, Plain, ScramSha256};
    let wanted = LoginPolicy { apop: true, ..CLEAR };
    assert_eq!(
        password(&wanted, "USER;SASL PLAIN CRAM-MD5 SCRAM-SHA-256"),
        [ScramSha256, Apop, CramMd5, Plain]
    );
    assert_eq!(password(&LoginPolicy { apop: true, ..BARE }, "USER"), [Apop]);
    assert_eq!(password(&CLEAR, "SASL PLAIN"), [Plain]);
}

#[test]
fn ntlm_is_for_those_who_ask_and_for_hosts_of_msn() {
    use Mechanism::{Msn, Ntlm, Plain, UserPass};
    let secret = Secret::Password(Zeroizing::default());
    let error = chosen(&TLS, Some("SASL NTLM"), &secret).unwrap_err();
    assert_eq!(error.code(), Code::AuthUnavailable);
    assert!(error.to_string().contains("write auth: Ntlm"), "{error}");
    for capa in ["USER;SASL NTLM PLAIN", "USER"] {
        assert_eq!(password(&LoginPolicy { choice: AuthChoice::Ntlm, ..TLS }, capa), [Ntlm]);
        assert_eq!(password(&LoginPolicy { choice: AuthChoice::Msn, ..TLS }, capa), [Msn]);
    }
    for host in ["pop3.email.msn.com", "POP3.MSN.COM", "pop3.msn.com."] {
        assert_eq!(password(&LoginPolicy { host, ..TLS }, "USER"), [Msn, UserPass]);
        assert_eq!(password(&LoginPolicy { host, ..CLEAR }, "SASL PLAIN"), [Msn, Plain]);
        assert_eq!(password(&LoginPolicy { host, choice: AuthChoice::Plain, ..TLS }, "SASL PLAIN"), [Plain]);
    }
    for host in ["msn.com", "pop3.msn.com.example", "popmsn.com", "pop3.xmsn.com", "", "\u{e4}.com"] {
        assert_eq!(password(&LoginPolicy { host, ..TLS }, "USER"), [UserPass]);
    }
}

#[test]
fn a_named_mechanism_is_taken_or_nothing_is() {
    for (choice, name, mechanism) in [
        (AuthChoice::Plain, "PLAIN", Mechanism::Plain),
        (AuthChoice::Login, "LOGIN", Mechanism::Login),
        (AuthChoice::CramMd5, "CRAM-MD5", Mechanism::CramMd5),
        (AuthChoice::ScramSha256, "SCRAM-SHA-256", Mechanism::ScramSha256),
        (AuthChoice::ScramSha256, "SCRAM-SHA-256 SCRAM-SHA-256-PLUS", Mechanism::ScramSha256Plus),
    ] {
        let policy = LoginPolicy { choice, ..BOUND };
        assert_eq!(password(&policy, &format!("USER;SASL {name} XOTHER")), [mechanism]);
        let secret = Secret::Password(Zeroizing::default());
        assert_eq!(chosen(&policy, None, &secret).unwrap().len(), 1, "nothing is known of the server");
        let error = chosen(&policy, Some("USER;SASL XOTHER"), &secret).unwrap_err();
        assert!(error.to_string().contains("(offered: XOTHER)"), "{error}");
    }
    for choice in [AuthChoice::Plain, AuthChoice::Login, AuthChoice::UserPass] {
        assert_eq!(password(&LoginPolicy { choice, ..BARE }, "USER;SASL PLAIN LOGIN"), []);
        assert_eq!(password(&LoginPolicy { choice, ..CLEAR }, "USER;SASL PLAIN LOGIN").len(), 1);
    }
    for choice in [AuthChoice::CramMd5, AuthChoice::ScramSha256, AuthChoice::Ntlm] {
        assert_eq!(password(&LoginPolicy { choice, ..BARE }, "SASL CRAM-MD5 SCRAM-SHA-256").len(), 1);
    }
    for choice in [AuthChoice::XOAuth2, AuthChoice::OAuthBearer] {
        assert_eq!(password(&LoginPolicy { choice, ..TLS }, "SASL XOAUTH2 OAUTHBEARER"), []);
    }
}

#[test]
fn tokens_go_by_their_own_mechanisms_and_over_tls_only() {
    use Mechanism::{OAuthBearer, XOAuth2};
    assert_eq!(bearer(&TLS, "SASL PLAIN XOAUTH2 OAUTHBEARER"), [OAuthBearer]);
    assert_eq!(bearer(&TLS, "SASL PLAIN XOAUTH2"), [XOAuth2]);
    assert_eq!(bearer(&TLS, "USER"), [XOAuth2]);
    assert_eq!(
        bearer(&LoginPolicy { choice: AuthChoice::XOAuth2, ..TLS }, "SASL XOAUTH2 OAUTHBEARER"),
        [XOAuth2]
    );
    assert_eq!(
        bearer(&LoginPolicy { choice: AuthChoice::OAuthBearer, ..TLS }, "SASL OAUTHBEARER"),
        [OAuthBearer]
    );
    for (policy, capa) in [
        (TLS, "USER;SASL PLAIN LOGIN"),
        (LoginPolicy { choice: AuthChoice::OAuthBearer, ..TLS }, "SASL XOAUTH2"),
        (LoginPolicy { choice: AuthChoice::XOAuth2, ..TLS }, "SASL OAUTHBEARER"),
        (LoginPolicy { choice: AuthChoice::Plain, ..TLS }, "SASL PLAIN"),
        (CLEAR, "SASL XOAUTH2"),
        (LoginPolicy { choice: AuthChoice::XOAuth2, ..CLEAR }, "SASL XOAUTH2"),
    ] {
        let error = chosen(&policy, Some(capa), &Secret::Bearer(Zeroizing::default())).unwrap_err();
        assert_eq!(error.code(), Code::AuthUnavailable);
    }
}
