//! What a poll needs to know, resolved from manifests: the work item.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::envelope::{Mailbox, domain_key};
use super::schedule::Schedule;

/// A record's name: `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordKey {
    /// The namespace; `default` where the manifest names none.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything a worker needs to poll one record, but the secrets themselves.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkItem {
    /// Whose work it is.
    pub key: RecordKey,
    /// `metadata.uid`, or a stable digest of the key where there is none: the
    /// phase of the polls is derived from it.
    pub uid: u64,
    /// The local account that gets the mail.
    pub account: Mailbox,
    /// The maildrop.
    pub remote: Remote,
    /// How often to poll; `None` is Disabled (or paused).
    pub interval: Option<Duration>,
    /// Keep messages on the server.
    pub leave: bool,
    /// With `leave`: delete this many days after acceptance.
    pub keep_for_days: Option<u32>,
    /// With `leave` off: also delete what was delivered while it was on.
    pub delete_seen: bool,
    /// Store directly into this mailbox (LMTP detail, or Maildir folder).
    pub mailbox: Option<Arc<str>>,
    /// Where the mail goes. Shared by all records of a domain.
    pub destination: Arc<Destination>,
    /// Where mail for the postmaster goes (`onReject: Postmaster`).
    pub postmaster: Option<Mailbox>,
    /// Bounds of one message and one session.
    pub limits: Limits,
    /// What becomes of a message that the destination refuses for good.
    pub on_reject: OnReject,
    /// What becomes of a maildrop whose UIDs all changed.
    pub on_uid_change: OnUidChange,
    /// The local addresses to connect from; whichever the system takes, if
    /// there are none.
    pub source_address: Option<Source>,
    /// The maildrop collects mail of several accounts (`spec.special`): whom a
    /// message is for, its header says.
    pub unified: Option<Arc<Unified>>,
}

/// Local addresses to connect from, one a family. To a family without one
/// nothing connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl Source {
    /// The first address of each family; `None` where there is none of either.
    pub fn first_of(addresses: impl IntoIterator<Item = IpAddr>) -> Option<Self> {
        let (mut v4, mut v6) = (None, None);
        for address in addresses {
            match address.to_canonical() {
                IpAddr::V4(address) => v4 = v4.or(Some(address)),
                IpAddr::V6(address) => v6 = v6.or(Some(address)),
            }
        }
        (v4.is_some() || v6.is_some()).then_some(Self { v4, v6 })
    }

    /// The address to connect to `peer` from.
    pub fn towards(&self, peer: IpAddr) -> Option<IpAddr> {
        match peer.to_canonical() {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// The one or two addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses().map(|address| address.to_string()).collect();
        f.write_str(&addresses.join(" or "))
    }
}

/// What a unified domain-wide account needs to know. Owns all of it: an item
/// is whole without the objects that it was made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unified {
    /// Where the recipients of a message stand.
    pub special: Special,
    /// With a header: addresses of other domains count too.
    #[serde(default)]
    pub relay_foreign: bool,
    /// With `*`: copies of a message are recognised, and one is delivered.
    pub deduplicate: bool,
    /// Where mail for our own domains goes; each name is in one of them.
    pub domains: Vec<LocalDomains>,
    /// The postmaster of the Main Domain, who gets what is for nobody else.
    pub postmaster: Mailbox,
}

/// `spec.special`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Special {
    /// In all fields of this name; the name without its colon.
    Header(Arc<str>),
    /// `*`: in To, Cc and Bcc, or in the Resent- ones where there are any.
    Addressees,
}

/// Domains whose mail goes the same way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalDomains {
    /// Names and aliases, in lower case and sorted.
    pub names: Vec<Arc<str>>,
    /// For each of these the place among them of the name that its RpopDomain
    /// has; none at all where there are no aliases.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<u32>,
    /// Where their mail goes; `domain` is the first RpopDomain among them.
    pub destination: Arc<Destination>,
}

impl fmt::Display for Special {
    /// As it stands in a manifest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header(name) => name,
            Self::Addressees => "*",
        })
    }
}

impl Unified {
    /// Which of `domains` has the domain of an address; `None` for a foreign
    /// one. Case does not matter, nor whether an internationalised name is
    /// written in its ASCII form.
    pub fn place_of(&self, domain: &str) -> Option<usize> {
        self.find(domain).map(|(place, _)| place)
    }

    /// The name of the RpopDomain that has this name or alias; `None` for a
    /// foreign one.
    pub fn owner_of(&self, domain: &str) -> Option<&str> {
        let (place, at) = self.find(domain)?;
        let domains = self.domains.get(place)?;
        let owner = domains.owners.get(at).and_then(|at| usize::try_from(*at).ok()).unwrap_or(at);
        domains.names.get(owner).or_else(|| domains.names.get(at)).map(|name| &**name)
    }

    fn find(&self, domain: &str) -> Option<(usize, usize)> {
        let domain = domain_key(domain);
        self.domains.iter().enumerate().find_map(|(place, domains)| {
            let at = domains.names.binary_search_by(|name| (**name).cmp(&*domain)).ok()?;
            Some((place, at))
        })
    }

    /// The account that an address of ours means: under the name of its
    /// RpopDomain, the local part in lower case, as mail servers take them.
    /// `None` for a foreign one.
    pub fn account_of(&self, address: &Mailbox) -> Option<(String, &str)> {
        Some((address.local().to_lowercase(), self.owner_of(address.domain())?))
    }
}

/// The maildrop of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Remote {
    /// A name or an address literal without brackets.
    pub host: Arc<str>,
    /// TCP port.
    pub port: u16,
    /// User name at the server.
    pub account: Arc<str>,
    /// What proves who we are. In a slice it is the field `password` or
    /// `oauth2`: who does not know the latter finds neither, and says so.
    #[serde(flatten)]
    pub login: Login,
    /// The mechanism to use.
    pub auth: AuthChoice,
    /// APOP may be used: the record *and* the settings say so.
    pub apop: bool,
    /// Transport security. Shared where records say the same.
    pub tls: Arc<TlsPolicy>,
}

/// What a login is done with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Login {
    /// Where the password is.
    #[serde(rename = "password")]
    Password(SecretRef),
    /// How to get access tokens.
    #[serde(rename = "oauth2")]
    OAuth2(Arc<OAuth2>),
}

impl Login {
    /// The Secrets and `ConfigMaps` that it names.
    pub fn refs(&self) -> impl Iterator<Item = &SecretRef> {
        let (password, oauth) = match self {
            Self::Password(at) => (Some(at), None),
            Self::OAuth2(oauth) => (None, Some(oauth)),
        };
        let oauth = oauth
            .into_iter()
            .flat_map(|oauth| oauth.refresh_token.iter().chain(&oauth.client_secret).chain(&oauth.ca));
        password.into_iter().chain(oauth)
    }
}

/// `spec.remote.oauth2`: how to get access tokens (RFC 6749).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OAuth2 {
    /// The provider's token endpoint: `https`, or `http` on this machine.
    pub token_url: Arc<str>,
    /// The client's identifier.
    pub client_id: Arc<str>,
    /// What to ask for; in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<Arc<str>>,
    /// Where the client's secret is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<SecretRef>,
    /// Where the user's refresh token is; without one the client asks in its
    /// own name (`client_credentials`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<SecretRef>,
    /// PEM certificates that the endpoint is trusted by instead of the
    /// platform's roots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<SecretRef>,
}

/// `spec.remote.auth`; mechanisms that this build does not know are refused
/// where manifests are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AuthChoice {
    /// The strongest one that is offered and allowed.
    #[default]
    Auto,
    /// USER and PASS (RFC 1939, section 7).
    UserPass,
    /// AUTH PLAIN (RFC 5034, RFC 4616).
    Plain,
    /// AUTH LOGIN.
    Login,
    /// AUTH CRAM-MD5 (RFC 2195).
    CramMd5,
    /// AUTH SCRAM-SHA-256, with channel binding where the server offers it
    /// (RFC 5802, RFC 7677).
    ScramSha256,
    /// AUTH XOAUTH2.
    XOAuth2,
    /// AUTH OAUTHBEARER (RFC 7628).
    OAuthBearer,
    /// AUTH NTLM (MS-POP3, MS-NLMP).
    Ntlm,
    /// AUTH MSN: NTLM under another name.
    Msn,
}

/// A key of a Secret or `ConfigMap` in the record's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Secret or `ConfigMap`.
    pub kind: SecretKind,
    /// The namespace it is read from.
    pub namespace: Arc<str>,
    /// The object's name.
    pub name: Arc<str>,
    /// The key in its data.
    pub key: Arc<str>,
}

/// Which kind of object a [`SecretRef`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SecretKind {
    /// `v1/Secret`.
    Secret,
    /// `v1/ConfigMap`.
    ConfigMap,
}

/// When TLS is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum TlsMode {
    /// TLS from the first octet.
    #[default]
    Implicit,
    /// STLS or STARTTLS, required.
    StartTls,
    /// STARTTLS where offered (SMTP only); then the certificate is verified
    /// only if a CA, a pin or a server name is given.
    Opportunistic,
    /// Clear text.
    None,
}

/// Transport security of one connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsPolicy {
    /// When TLS is used.
    pub mode: TlsMode,
    /// PEM certificates trusted instead of the platform's roots.
    pub ca: Option<SecretRef>,
    /// SHA-256 digests of certificates (or of their public keys) that are
    /// accepted; any one of them. With pins the chain is not looked at.
    pub pins: Vec<[u8; 32]>,
    /// The name to verify in place of the host's.
    pub server_name: Option<Arc<str>>,
    /// A client certificate: PEM chain and key (`tls.crt`, `tls.key`).
    pub client_certificate: Option<(SecretRef, SecretRef)>,
}

/// Where a domain's mail goes: SMTP, LMTP or (embedded only) Maildir.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Destination {
    /// The RpopDomain's name, for messages to people.
    pub domain: Arc<str>,
    /// The queue of the mail system.
    pub smtp: Option<MailHost>,
    /// Direct storing.
    pub lmtp: Option<MailHost>,
    /// Folders on this machine.
    pub maildir: Option<MaildirPath>,
}

/// An SMTP or LMTP server.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MailHost {
    /// TCP or a unix socket.
    pub endpoint: Endpoint,
    /// What we call ourselves in EHLO or LHLO; `None`: this host's name.
    pub ehlo_name: Option<Arc<str>>,
    /// Transport security.
    pub tls: TlsPolicy,
    /// SASL login.
    pub auth: Option<(Arc<str>, SecretRef)>,
    /// LMTP: between the local part and `mailbox`; default `+`.
    pub detail_separator: Arc<str>,
    /// SMTP without DSN: `true` says "do not report failures" by a null
    /// sender, `false` keeps the sender.
    pub null_sender_without_dsn: bool,
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Endpoint {
    /// A host name or address, and a port.
    Tcp(Arc<str>, u16),
    /// A unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A path with the placeholders `{local}`, `{domain}` and `{mailbox}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MaildirPath(pub Arc<str>);

/// Bounds of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Octets of the largest message that is fetched.
    pub message_size: Option<u64>,
    /// Messages fetched in one session.
    pub messages_per_session: Option<u32>,
}

/// `spec.onReject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnReject {
    /// Keep it on the server, remember it, try again with back-off.
    #[default]
    Leave,
    /// Send it to the postmaster, then treat it as delivered.
    Postmaster,
    /// Treat it as delivered.
    Discard,
}

/// `spec.onUidChange`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum OnUidChange {
    /// Stop with `UidsChanged` until a person decides.
    #[default]
    Pause,
    /// Take everything as new mail.
    Fetch,
    /// Take as known what has a Message-ID that the ledger knows.
    MatchMessageId,
}

/// Deadlines of one poll; DESIGN, "One poll".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS.
    pub connect: Duration,
    /// Any one reply of either side.
    pub reply: Duration,
    /// Without progress in a message.
    pub data: Duration,
    /// From the final dot to its reply.
    pub after_dot: Duration,
    /// The whole session.
    pub session: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            reply: Duration::from_mins(1),
            data: Duration::from_mins(1),
            after_dot: Duration::from_mins(10),
            session: Duration::from_hours(1),
        }
    }
}

/// How much may be accepted between two ledger commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Messages.
    pub messages: u32,
    /// Time since the first uncommitted acceptance.
    pub every: Duration,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { messages: 20, every: Duration::from_secs(5) }
    }
}

/// The settings that the engine and its scheduler follow, resolved from
/// `RpopSettings`.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Simultaneous POP3 sessions of this process; 0 stops polling.
    pub processors: u32,
    /// Simultaneous sessions to one remote host; 0 is no limit.
    pub host_connections: u32,
    /// After a failed connect, how long a host is left alone.
    pub delay_failed_hosts: Duration,
    /// After a failed login or transfer, how long a record waits.
    pub delay_failed_accounts: Duration,
    /// Polling one's own addresses is allowed.
    pub allow_self_poll: bool,
    /// Addresses, networks or names that are this mail system's own.
    pub own_addresses: Vec<Arc<str>>,
    /// Networks that may be connected to (empty: all) and that may not.
    pub allow_networks: Vec<Network>,
    /// See `allow_networks`; wins.
    pub deny_networks: Vec<Network>,
    /// Commit rhythm.
    pub checkpoint: Checkpoint,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// When polling is allowed; always, if there is none.
    pub activity: Option<Arc<Schedule>>,
    /// `RpopSettings.logLevel`, if given there.
    pub log_level: Option<LogLevel>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            processors: 256,
            host_connections: 20,
            delay_failed_hosts: Duration::from_mins(10),
            delay_failed_accounts: Duration::from_mins(10),
            allow_self_poll: false,
            own_addresses: Vec::new(),
            allow_networks: Vec::new(),
            deny_networks: Vec::new(),
            checkpoint: Checkpoint::default(),
            timeouts: Timeouts::default(),
            activity: None,
            log_level: None,
        }
    }
}

/// CommuniGate Pro's six levels, from the tersest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what ends the process.
    CrashOnly,
    /// Failed polls and refused messages.
    Failures,
    /// And each poll's result.
    Major,
    /// And passing troubles.
    Problems,
    /// And protocol transcripts, redacted.
    LowLevel,
    /// Everything.
    AllInfo,
}

/// An IP network in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// Its address.
    pub address: IpAddr,
    /// Leading bits that count.
    pub prefix: u8,
}

impl Network {
    /// Parses `10.0.0.0/8`, `::1/128` or a plain address.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().ok()?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(bits);
        (prefix <= bits).then_some(Self { address, prefix })
    }

    /// Whether `address` lies in it. An IPv4-mapped IPv6 address counts as the
    /// IPv4 address that it reaches.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address.to_canonical(), address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => {
                let keep = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                (net.to_bits() ^ ip.to_bits()) & keep == 0
            }
            (IpAddr::V6(net), IpAddr::V6(ip)) => {
                let keep = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                (net.to_bits() ^ ip.to_bits()) & keep == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_their_own_and_mapped_addresses() {
        let ten = Network::parse("10.0.0.0/8").unwrap();
        assert!(ten.contains("10.9.8.7".parse().unwrap()));
        assert!(ten.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!ten.contains("11.0.0.1".parse().unwrap()));
        let all = Network::parse("0.0.0.0/0").unwrap();
        assert!(all.contains("203.0.113.9".parse().unwrap()));
        assert!(!all.contains("2001:db8::1".parse().unwrap()));
        assert!(Network::parse("10.0.0.0/33").is_none());
        assert!(Network::parse("here").is_none());
    }
}
