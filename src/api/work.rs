//! From the fields of a resource to what the engine works with. What the
//! schema and its rules have already seen is not looked at twice.

use std::collections::HashSet;
use std::hash::Hasher;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use siphasher::sip::SipHasher13;

use crate::api::{self, checks};
use crate::domain::envelope::Mailbox;
use crate::domain::text::escape;
use crate::domain::work::{
    AuthChoice, Checkpoint, Destination, Endpoint, Limits, LogLevel, Login, MailHost, MaildirPath, Network,
    OAuth2, OnReject, OnUidChange, RecordKey, Remote, SecretKind, SecretRef, Settings, Source, Timeouts,
    TlsMode, TlsPolicy, WorkItem,
};
use crate::oauth::Url;

/// A field whose value cannot be used: its path and what to write.
#[derive(Debug)]
pub(crate) struct Unusable {
    pub(crate) path: &'static str,
    pub(crate) message: String,
}

fn unusable<T>(path: &'static str, message: impl Into<String>) -> Result<T, Unusable> {
    Err(Unusable { path, message: message.into() })
}

/// What many records have in common is kept once.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    texts: HashSet<Arc<str>>,
    policies: HashSet<Arc<TlsPolicy>>,
}

impl Shared {
    /// The one copy of `text`.
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.texts.insert(Arc::clone(&new));
        new
    }

    fn policy(&mut self, policy: TlsPolicy) -> Arc<TlsPolicy> {
        if let Some(known) = self.policies.get(&policy) {
            return Arc::clone(known);
        }
        let new = Arc::new(policy);
        self.policies.insert(Arc::clone(&new));
        new
    }

    fn secret(&mut self, kind: SecretKind, namespace: &Arc<str>, name: &str, key: &str) -> SecretRef {
        SecretRef { kind, namespace: Arc::clone(namespace), name: self.text(name), key: self.text(key) }
    }

    fn ca(&mut self, namespace: &Arc<str>, at: &api::CaRef) -> SecretRef {
        let kind = match at.kind {
            api::CaKind::Secret => SecretKind::Secret,
            api::CaKind::ConfigMap => SecretKind::ConfigMap,
        };
        self.secret(kind, namespace, &at.name, &at.key)
    }
}

/// A record's work item, but for what other objects say: destination,
/// postmaster, what a unified account is given, source address, and whether
/// APOP is allowed at all.
pub(crate) fn record(
    shared: &mut Shared,
    key: RecordKey,
    uid: Option<&str>,
    spec: &api::RpopRecordSpec,
    destination: &Arc<Destination>,
) -> Result<WorkItem, Vec<Unusable>> {
    let mut faults = Vec::new();
    let account = keep(&mut faults, account(&spec.account, "spec.account"));
    let endpoint = keep(&mut faults, host(&spec.remote.host, spec.tls.mode));
    let tls = keep(&mut faults, tls(shared, &key.namespace, &spec.tls));
    let login = keep(&mut faults, login(shared, &key.namespace, &spec.remote));
    // The CRD's rule may be younger than the record.
    if spec.special.as_deref().is_some_and(checks::is_taken_header) {
        faults.push(Unusable { path: "spec.special", message: checks::TAKEN_HEADER.to_owned() });
    }
    let interval = match spec.poll_every {
        api::PollEvery::Every(duration) if !spec.paused => Some(duration.0),
        _ => None,
    };
    let uid = uid.map_or_else(|| digest(&key.to_string()), digest);
    match (account, endpoint, tls, login) {
        (Some(account), Some((host, port)), Some(tls), Some(login)) if faults.is_empty() => Ok(WorkItem {
            uid,
            account,
            remote: Remote {
                host: shared.text(&host),
                port,
                account: spec.remote.account.as_str().into(),
                login,
                auth: auth(spec.remote.auth),
                apop: spec.apop,
                tls: shared.policy(tls),
            },
            interval,
            leave: spec.leave,
            keep_for_days: spec.keep_for_days,
            delete_seen: spec.delete_seen,
            mailbox: spec.mailbox.as_deref().map(|mailbox| shared.text(mailbox)),
            destination: Arc::clone(destination),
            postmaster: None,
            limits: limits(spec.limits.as_ref()),
            on_reject: match spec.on_reject {
                api::OnReject::Leave => OnReject::Leave,
                api::OnReject::Postmaster => OnReject::Postmaster,
                api::OnReject::Discard => OnReject::Discard,
            },
            on_uid_change: match spec.on_uid_change {
                api::OnUidChange::Pause => OnUidChange::Pause,
                api::OnUidChange::Fetch => OnUidChange::Fetch,
                api::OnUidChange::MatchMessageId => OnUidChange::MatchMessageId,
            },
            source_address: None,
            unified: None,
            key,
        }),
        _ => Err(faults),
    }
}

fn keep<T>(faults: &mut Vec<Unusable>, result: Result<T, Unusable>) -> Option<T> {
    result.map_err(|fault| faults.push(fault)).ok()
}

/// The stable digest that phases of polls are derived from.
pub(crate) fn digest(text: &str) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(text.as_bytes());
    hasher.finish()
}

fn account(text: &str, path: &'static str) -> Result<Mailbox, Unusable> {
    let account = Mailbox::parse(text).map(Mailbox::with_ascii_domain);
    account.map_err(|error| Unusable { path, message: format!("`{}`: {error}", escape(text)) })
}

fn auth(auth: api::Auth) -> AuthChoice {
    match auth {
        api::Auth::Auto => AuthChoice::Auto,
        api::Auth::UserPass => AuthChoice::UserPass,
        api::Auth::Plain => AuthChoice::Plain,
        api::Auth::Login => AuthChoice::Login,
        api::Auth::CramMd5 => AuthChoice::CramMd5,
        api::Auth::ScramSha256 => AuthChoice::ScramSha256,
        api::Auth::XOAuth2 => AuthChoice::XOAuth2,
        api::Auth::OAuthBearer => AuthChoice::OAuthBearer,
        api::Auth::Ntlm => AuthChoice::Ntlm,
        api::Auth::Msn => AuthChoice::Msn,
    }
}

fn login(shared: &mut Shared, namespace: &Arc<str>, remote: &api::Remote) -> Result<Login, Unusable> {
    let oauth = match (&remote.password_secret_ref, &remote.oauth2) {
        (Some(at), None) => {
            return Ok(Login::Password(shared.secret(SecretKind::Secret, namespace, &at.name, &at.key)));
        }
        (_, Some(oauth)) => oauth,
        (None, None) => return unusable("spec.remote", "write passwordSecretRef: {name: SECRET}"),
    };
    if let Err(message) = Url::parse(&oauth.token_url) {
        return unusable("spec.remote.oauth2.tokenUrl", message);
    }
    let mut secret = |at: &api::KeyRef| shared.secret(SecretKind::Secret, namespace, &at.name, &at.key);
    let client_secret = oauth.client_secret_ref.as_ref().map(&mut secret);
    let refresh_token = oauth.refresh_token_secret_ref.as_ref().map(&mut secret);
    Ok(Login::OAuth2(Arc::new(OAuth2 {
        token_url: shared.text(&oauth.token_url),
        client_id: shared.text(&oauth.client_id),
        scopes: oauth.scopes.iter().map(|scope| shared.text(scope)).collect(),
        client_secret,
        refresh_token,
        ca: oauth.ca_ref.as_ref().map(|at| shared.ca(namespace, at)),
    })))
}

/// Splits `name[:port]` or `[v6]:port`; the host in lower case, without
/// brackets.
fn host(text: &str, mode: api::TlsMode) -> Result<(String, u16), Unusable> {
    const PATH: &str = "spec.remote.host";
    let usual = if mode == api::TlsMode::Implicit { 995 } else { 110 };
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((host, port)) = rest.split_once(']') else {
                return unusable(PATH, "the bracket of the IPv6 address is not closed");
            };
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return unusable(PATH, format!("`{}` is not an IPv6 address", escape(host)));
            }
            (host, port.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port = match port.map(str::parse::<u16>) {
        None => usual,
        Some(Ok(port)) if port > 0 => port,
        Some(_) => return unusable(PATH, "the port must be a number from 1 to 65535"),
    };
    Ok((host.trim_end_matches('.').to_ascii_lowercase(), port))
}

fn tls(shared: &mut Shared, namespace: &Arc<str>, tls: &api::Tls) -> Result<TlsPolicy, Unusable> {
    Ok(TlsPolicy {
        mode: match tls.mode {
            api::TlsMode::Implicit => TlsMode::Implicit,
            api::TlsMode::StartTls => TlsMode::StartTls,
            api::TlsMode::None => TlsMode::None,
        },
        ca: tls.ca_ref.as_ref().map(|at| shared.ca(namespace, at)),
        pins: pins(&tls.pin_sha256, "spec.tls.pinSha256")?,
        server_name: tls.server_name.as_deref().map(|name| shared.text(name)),
        client_certificate: tls.client_certificate_secret_ref.as_ref().map(|at| {
            let chain = shared.secret(SecretKind::Secret, namespace, &at.name, "tls.crt");
            (chain, shared.secret(SecretKind::Secret, namespace, &at.name, "tls.key"))
        }),
    })
}

fn pins(texts: &[String], path: &'static str) -> Result<Vec<[u8; 32]>, Unusable> {
    texts
        .iter()
        .map(|text| {
            pin(text).ok_or_else(|| Unusable {
                path,
                message: format!(
                    "`{}` is not a SHA-256 digest: write its 64 hexadecimal digits",
                    escape(text)
                ),
            })
        })
        .collect()
}

fn pin(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        text.chars().filter_map(|c| c.to_digit(16)).filter_map(|d| u8::try_from(d).ok()).collect();
    if digits.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit() || c == ':') {
        let octets: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        return octets.try_into().ok();
    }
    STANDARD.decode(text.strip_prefix("sha256//").unwrap_or(text)).ok()?.try_into().ok()
}

fn limits(limits: Option<&api::Limits>) -> Limits {
    Limits {
        message_size: limits.and_then(|limits| limits.message_size.as_ref()).map(api::Quantity::octets),
        messages_per_session: limits.and_then(|limits| limits.messages_per_session),
    }
}

/// A domain's destination. The Secrets it names are looked for in `namespace`.
pub(crate) fn destination(
    shared: &mut Shared,
    name: &str,
    spec: &api::RpopDomainSpec,
    namespace: &dyn Fn(SecretKind, &str) -> Arc<str>,
) -> Result<Destination, Vec<Unusable>> {
    let mut faults = Vec::new();
    let smtp = spec.delivery.smtp.as_ref().and_then(|smtp| {
        let implicit = smtp.tls.mode == api::DeliveryTlsMode::Implicit;
        let port = smtp.port.unwrap_or(if implicit { 465 } else { 25 });
        let tls = keep(
            &mut faults,
            delivery_tls(shared, &smtp.tls, namespace, "spec.delivery.smtp.tls.pinSha256"),
        )?;
        Some(MailHost {
            endpoint: Endpoint::Tcp(shared.text(&smtp.host.to_ascii_lowercase()), port),
            ehlo_name: smtp.ehlo_name.as_deref().map(|name| shared.text(name)),
            tls,
            auth: smtp.auth.as_ref().map(|auth| delivery_login(shared, auth, namespace)),
            detail_separator: shared.text("+"),
            null_sender_without_dsn: smtp.without_dsn == api::WithoutDsn::NullSender,
        })
    });
    let lmtp = spec.delivery.lmtp.as_ref().and_then(|lmtp| {
        let endpoint = match (&lmtp.host, &lmtp.socket) {
            (Some(host), None) => {
                Endpoint::Tcp(shared.text(&host.to_ascii_lowercase()), lmtp.port.unwrap_or(24))
            }
            (None, Some(socket)) => Endpoint::Unix(PathBuf::from(socket)),
            _ => {
                faults.push(Unusable { path: "spec.delivery.lmtp", message: "write host or socket".into() });
                return None;
            }
        };
        let tls = keep(
            &mut faults,
            delivery_tls(shared, &lmtp.tls, namespace, "spec.delivery.lmtp.tls.pinSha256"),
        )?;
        Some(MailHost {
            endpoint,
            ehlo_name: lmtp.ehlo_name.as_deref().map(|name| shared.text(name)),
            tls,
            auth: lmtp.auth.as_ref().map(|auth| delivery_login(shared, auth, namespace)),
            detail_separator: shared.text(&lmtp.detail_separator),
            null_sender_without_dsn: true,
        })
    });
    let maildir = spec.delivery.maildir.as_ref().and_then(|maildir| {
        keep(&mut faults, maildir_path(&maildir.path)).map(|path| MaildirPath(path.into()))
    });
    if faults.is_empty() {
        Ok(Destination { domain: shared.text(name), smtp, lmtp, maildir })
    } else {
        Err(faults)
    }
}

fn maildir_path(path: &str) -> Result<&str, Unusable> {
    const PATH: &str = "spec.delivery.maildir.path";
    let mut rest = path;
    while let Some((_, behind)) = rest.split_once('{') {
        let Some((name, behind)) = behind.split_once('}') else {
            return unusable(PATH, "a `{` is not closed");
        };
        if !matches!(name, "local" | "domain" | "mailbox") {
            return unusable(
                PATH,
                format!(
                    "unknown placeholder `{{{}}}`: known are {{local}}, {{domain}} and {{mailbox}}",
                    escape(name)
                ),
            );
        }
        rest = behind;
    }
    if path.split('/').any(|part| part == "..") {
        return unusable(PATH, "write the path without `..`");
    }
    Ok(path)
}

fn delivery_tls(
    shared: &mut Shared,
    tls: &api::DeliveryTls,
    namespace: &dyn Fn(SecretKind, &str) -> Arc<str>,
    path: &'static str,
) -> Result<TlsPolicy, Unusable> {
    Ok(TlsPolicy {
        mode: match tls.mode {
            api::DeliveryTlsMode::Opportunistic => TlsMode::Opportunistic,
            api::DeliveryTlsMode::StartTls => TlsMode::StartTls,
            api::DeliveryTlsMode::Implicit => TlsMode::Implicit,
            api::DeliveryTlsMode::None => TlsMode::None,
        },
        ca: tls.ca_ref.as_ref().map(|at| {
            let kind = match at.kind {
                api::CaKind::Secret => SecretKind::Secret,
                api::CaKind::ConfigMap => SecretKind::ConfigMap,
            };
            shared.ca(&namespace(kind, &at.name), at)
        }),
        pins: pins(&tls.pin_sha256, path)?,
        server_name: tls.server_name.as_deref().map(|name| shared.text(name)),
        client_certificate: None,
    })
}

fn delivery_login(
    shared: &mut Shared,
    auth: &api::DeliveryAuth,
    namespace: &dyn Fn(SecretKind, &str) -> Arc<str>,
) -> (Arc<str>, SecretRef) {
    let at = &auth.password_secret_ref;
    let place = namespace(SecretKind::Secret, &at.name);
    (shared.text(&auth.username), shared.secret(SecretKind::Secret, &place, &at.name, &at.key))
}

/// The postmaster of a domain.
pub(crate) fn postmaster(domain: &str, text: &str) -> Result<Mailbox, Unusable> {
    let full = if text.contains('@') { text.to_owned() } else { format!("{text}@{domain}") };
    account(&full, "spec.postmaster")
}

/// The addresses that a domain's records connect from, if it wants that.
pub(crate) fn outgoing(spec: &api::RpopDomainSpec) -> Result<Option<Source>, Unusable> {
    const PATH: &str = "spec.assignedAddresses";
    if !spec.use_for_outgoing {
        return Ok(None);
    }
    let read = |text: &String| address(text).map_err(|message| Unusable { path: PATH, message });
    let addresses: Vec<IpAddr> = spec.assigned_addresses.iter().map(read).collect::<Result<_, _>>()?;
    match Source::first_of(addresses) {
        None => unusable(PATH, "useForOutgoing needs assignedAddresses: write the addresses to connect from"),
        source => Ok(source),
    }
}

/// An address that can be connected from.
fn address(text: &str) -> Result<IpAddr, String> {
    match text.parse::<IpAddr>() {
        Ok(address) if !address.to_canonical().is_unspecified() => Ok(address),
        // It would mean any.
        Ok(address) => Err(format!("{address} is no address of a host")),
        Err(_) => Err(format!("`{}` is not an IP address", escape(text))),
    }
}

/// Which addresses records connect from: the domain's, where settings and
/// domain want that, or else those of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sources {
    /// `sourceAddress`.
    pub(crate) own: Option<Source>,
    /// `useDomainAddresses`.
    pub(crate) use_domains: bool,
}

impl Sources {
    /// Of settings, though something else in them may be wrong.
    pub(crate) fn of(spec: &api::RpopSettingsSpec) -> Self {
        let own = spec.source_address.as_deref().and_then(|text| address(text).ok());
        Self { own: Source::first_of(own), use_domains: spec.use_domain_addresses }
    }

    /// For a record whose domain has these.
    pub(crate) fn choose(self, outgoing: Option<Source>) -> Option<Source> {
        outgoing.filter(|_| self.use_domains).or(self.own)
    }
}

/// The settings but for [`Sources`].
pub(crate) fn settings(spec: &api::RpopSettingsSpec) -> Result<Settings, Vec<Unusable>> {
    let mut faults = Vec::new();
    let activity = spec.activity_schedule.as_ref().and_then(|spec| {
        let read = super::schedule::schedule(spec);
        read.map_err(|all| faults.extend(all)).ok().map(Arc::new)
    });
    let mut networks = |texts: &[String], path| {
        texts
            .iter()
            .filter_map(|text| {
                let network = Network::parse(text);
                if network.is_none() {
                    let message = format!("`{}` is not a network like 203.0.113.0/24", escape(text));
                    faults.push(Unusable { path, message });
                }
                network
            })
            .collect::<Vec<_>>()
    };
    let remote = spec.remote_networks.clone().unwrap_or_default();
    let allow_networks = networks(&remote.allow, "spec.remoteNetworks.allow");
    let deny_networks = networks(&remote.deny, "spec.remoteNetworks.deny");
    if let Some(Err(message)) = spec.source_address.as_deref().map(address) {
        faults.push(Unusable { path: "spec.sourceAddress", message });
    }
    let settings = Settings {
        processors: spec.processors,
        host_connections: spec.host_connections,
        delay_failed_hosts: spec.delay_failed_hosts.0,
        delay_failed_accounts: spec.delay_failed_accounts.0,
        allow_self_poll: spec.allow_self_poll,
        own_addresses: spec.own_addresses.iter().map(|own| own.to_ascii_lowercase().into()).collect(),
        allow_networks,
        deny_networks,
        checkpoint: Checkpoint { messages: spec.checkpoint.messages, every: spec.checkpoint.every.0 },
        timeouts: Timeouts {
            connect: spec.timeouts.connect.0,
            reply: spec.timeouts.reply.0,
            data: spec.timeouts.data.0,
            after_dot: spec.timeouts.after_dot.0,
            session: spec.timeouts.session.0,
        },
        activity,
        log_level: spec.log_level.map(|level| match level {
            api::LogLevel::CrashOnly => LogLevel::CrashOnly,
            api::LogLevel::Failures => LogLevel::Failures,
            api::LogLevel::Major => LogLevel::Major,
            api::LogLevel::Problems => LogLevel::Problems,
            api::LogLevel::LowLevel => LogLevel::LowLevel,
            api::LogLevel::AllInfo => LogLevel::AllInfo,
        }),
    };
    if faults.is_empty() { Ok(settings) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_ports() {
        let implicit = |text| host(text, api::TlsMode::Implicit);
        assert_eq!(implicit("POP.Example.com").unwrap(), ("pop.example.com".into(), 995));
        assert_eq!(host("pop.example.com", api::TlsMode::StartTls).unwrap(), ("pop.example.com".into(), 110));
        assert_eq!(implicit("192.0.2.1:1110").unwrap(), ("192.0.2.1".into(), 1110));
        assert_eq!(implicit("[2001:DB8::1]:110").unwrap(), ("2001:db8::1".into(), 110));
        assert_eq!(implicit("[2001:db8::1]").unwrap(), ("2001:db8::1".into(), 995));
        assert!(implicit("[2001:db8::1").is_err());
        assert!(implicit("[pop.example.com]").is_err());
        assert!(implicit("a:0").is_err());
        assert!(implicit("a:65536").is_err());
    }

    #[test]
    fn pins_in_three_notations() {
        let hex = "ab".repeat(32);
        let colons = vec!["AB"; 32].join(":");
        let base64 = STANDARD.encode([0xab; 32]);
        for text in [&hex, &colons, &base64, &format!("sha256//{base64}")] {
            assert_eq!(pin(text), Some([0xab; 32]), "{text}");
        }
        assert_eq!(pin("abcd"), None);
    }
}
