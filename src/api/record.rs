//! `RpopRecord`: one remote maildrop and the local account that gets its mail.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{CaRef, KeyRef, NameRef, is_true, yes};
use super::duration::PollEvery;
use super::quantity::Quantity;
use super::status::RpopRecordStatus;

/// A remote POP3 maildrop, and the local account that gets its mail.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "rpop.dev",
    version = "v1alpha1",
    kind = "RpopRecord",
    plural = "rpoprecords",
    shortname = "rpop",
    namespaced,
    status = "RpopRecordStatus",
    derive = "PartialEq",
    doc = "A remote POP3 maildrop, and the local account that gets its mail.",
    category = "mail",
    validation = Rule::new("size(self.metadata.name) <= 180").message("write a name of at most 180 characters: the record's ledger is named after it").field_path(".metadata.name"),
    validation = Rule::new("!has(self.spec.pollEvery) || self.spec.pollEvery != 'Never' || oldSelf.hasValue()").message("pollEvery: Never removes a record that exists: to create one write a duration like 5m, or Disabled").optional_old_self(true).field_path(".spec.pollEvery"),
    printcolumn(name = "Poll Every", type_ = "string", json_path = ".spec.pollEvery"),
    printcolumn(name = "Account", type_ = "string", json_path = ".spec.account"),
    printcolumn(name = "At Host", type_ = "string", json_path = ".spec.remote.host"),
    printcolumn(name = "Leave", type_ = "boolean", json_path = ".spec.leave"),
    printcolumn(name = "APOP", type_ = "boolean", json_path = ".spec.apop"),
    printcolumn(name = "TLS", type_ = "string", json_path = ".spec.tls.mode"),
    printcolumn(name = "Mailbox/Special", type_ = "string", json_path = ".spec['mailbox','special']"),
    printcolumn(name = "Last", type_ = "string", json_path = ".status.last"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.account",
    selectable = ".spec.remote.host",
    selectable = ".status.shard"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.keepForDays) || self.leave").message("keepForDays needs leave: true: without it a message is deleted as soon as it is delivered").field_path(".keepForDays"),
    validation = Rule::new("!(has(self.mailbox) && has(self.special))").message("write mailbox or special, not both: special distributes by recipient, mailbox stores for one account").field_path(".special"),
    validation = Rule::new("!self.relayForeign || (has(self.special) && self.special != '*')").message("relayForeign needs special with the name of a header").field_path(".relayForeign"),
    validation = Rule::new("self.deduplicate || (has(self.special) && self.special == '*')").message("deduplicate: false needs special: \"*\", since only there copies are recognised").field_path(".deduplicate"),
    validation = Rule::new("!has(self.remote.oauth2) || self.tls.mode != 'None'").message("with oauth2 write tls: {mode: Implicit} or {mode: StartTls}: an access token must not cross the network in clear text").field_path(".tls.mode")
)]
pub struct RpopRecordSpec {
    /// The local account that gets the mail, with its domain:
    /// `alice@example.com`. The domain, or one of its aliases, must have an
    /// RpopDomain. With `special` it only says whose record this is, and must
    /// be the postmaster of the Main Domain.
    #[schemars(length(min = 3, max = 320))]
    #[x_kube(validation = Rule::new("self.contains('@') && !self.startsWith('@') && !self.endsWith('@') && ['\\n', '\\r', '\\t', '<', '>', '@@'].all(bad, !self.contains(bad)) && (self.startsWith('\"') || !self.contains(' '))").message("write the local account with its domain, like alice@example.com"))]
    pub account: String,
    /// How often to poll: a duration of at least 10s, `Disabled` (the record
    /// is kept and not polled) or `Never` (the record is removed).
    #[serde(default)]
    pub poll_every: PollEvery,
    /// The maildrop.
    pub remote: Remote,
    /// Transport security of the POP3 connection.
    #[serde(default)]
    pub tls: Tls,
    /// Log in with APOP, so that the password does not cross an unencrypted
    /// connection. Only together with `useApop` in RpopSettings, and where the
    /// server's greeting announces it. APOP rests on MD5: prefer TLS.
    #[serde(default)]
    pub apop: bool,
    /// Leave messages on the server and remember which ones were delivered.
    #[serde(default)]
    pub leave: bool,
    /// With `leave`: delete a message there this many days after it was
    /// delivered. What is quarantined is never deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 36500))]
    pub keep_for_days: Option<u32>,
    /// When `leave` is turned off, delete also what was delivered while it
    /// was on.
    #[serde(default)]
    pub delete_seen: bool,
    /// Store straight into this mailbox of the account, without queue and
    /// rules: by LMTP to `account+mailbox@domain`, or into a folder of the
    /// Maildir. Needs `delivery.lmtp` or `delivery.maildir` in the RpopDomain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self != '' && !self.matches('[\\\\x00-\\\\x1f\\\\x7f]') && !self.startsWith('/') && !self.split('/').exists(part, part == '..' || part == '.' || part == '')").message("write the name of a mailbox, like Archive or Lists/Rust"))]
    pub mailbox: Option<String>,
    /// The maildrop collects mail of several accounts, of all local domains:
    /// the name of the header in which the provider keeps the recipients
    /// (`X-Real-To`, `Delivered-To`; it is removed), or `"*"` to take them from
    /// To, Cc and Bcc. What is for no local account goes to the postmaster of
    /// the Main Domain (`mainDomain` in RpopSettings), to whom the record must
    /// belong, since it delivers to any account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self == '*' || self.matches('^[!-9;-~]+$')").message("write the name of a header without its colon, like X-Real-To, or \"*\" for To and Cc"))]
    #[x_kube(validation = Rule::new("!self.matches('(?i)^((received|return-path|from|sender|reply-to|to|cc|bcc|subject|date|message-id|in-reply-to|references|mime-version|dkim-signature|authentication-results|errors-to|return-receipt-to|disposition-notification-to)$|(content|resent|list|arc)-)')").message("this header has another use, and RPOP would remove it: write the header in which your provider keeps the envelope recipient, like X-Original-To or Delivered-To, or \"*\" to use To and Cc"))]
    pub special: Option<String>,
    /// With `special` and a header: deliver to addresses of other domains
    /// too. The header can be forged, hence this makes a relay.
    #[serde(default)]
    pub relay_foreign: bool,
    /// With `special: "*"`: recognise copies of a message and deliver one.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub deduplicate: bool,
    /// Bounds of one message and one session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// What becomes of a message that the destination refuses for good, that
    /// loops, or that is over the limits.
    #[serde(default)]
    pub on_reject: OnReject,
    /// What to do when nearly all messages have new identifiers at once, as
    /// after a migration of the server. It needs at least 20 remembered
    /// messages, and as many unknown ones, to be noticed.
    #[serde(default)]
    pub on_uid_change: OnUidChange,
    /// Do not poll for now. As `pollEvery: Disabled`, but keeps the rhythm.
    #[serde(default)]
    pub paused: bool,
}

/// A maildrop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.passwordSecretRef) || has(self.oauth2)").message("write where the password is: passwordSecretRef: {name: SECRET, key: password}"),
    validation = Rule::new("!(has(self.passwordSecretRef) && has(self.oauth2))").message("write passwordSecretRef or oauth2, not both").field_path(".oauth2"),
    validation = Rule::new("!(self.auth in ['XOAuth2', 'OAuthBearer']) || has(self.oauth2)").message("auth: XOAuth2 and OAuthBearer need oauth2").field_path(".auth"),
    validation = Rule::new("self.auth in ['Auto', 'XOAuth2', 'OAuthBearer'] || !has(self.oauth2)").message("with oauth2 write auth: Auto, XOAuth2 or OAuthBearer: the others need a password").field_path(".auth")
)]
pub struct Remote {
    /// The POP3 server: `name`, `name:port`, an IPv4 address or an IPv6
    /// address in brackets (`[2001:db8::1]:995`). The port is 995 with
    /// implicit TLS and 110 without.
    #[schemars(length(min = 1, max = 261))]
    #[x_kube(validation = Rule::new("!self.contains('://')").message("write the host alone, like pop.example.com:995, without a scheme"))]
    #[x_kube(validation = Rule::new("self.matches('^[\\\\x00-\\\\x7F]*$')").message("write the host in its ASCII form, which begins with xn--"))]
    #[x_kube(validation = Rule::new("self.contains('://') || !self.matches('^[\\\\x00-\\\\x7F]*$') || self.matches('^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*[.]?|\\\\[[0-9A-Fa-f:.]+\\\\])(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$')").message("write a host name or an address, with a port if it is not the usual one: pop.example.com, pop.example.com:1110, 192.0.2.1 or [2001:db8::1]:995"))]
    pub host: String,
    /// The user name at that server.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("['\\n', '\\r', '\\t', '\\u0000'].all(bad, !self.contains(bad))").message("write the user name without line breaks and control characters"))]
    pub account: String,
    /// Where the password is: a Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<KeyRef>,
    /// Log in with OAuth 2.0 (XOAUTH2 or OAUTHBEARER) instead of a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth2: Option<OAuth2>,
    /// The mechanism. `Auto` takes the strongest one that the server offers
    /// and that the connection's security allows.
    #[serde(default)]
    pub auth: Auth,
}

/// Authentication mechanisms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Auth {
    /// The strongest one that is offered and allowed.
    #[default]
    Auto,
    /// USER and PASS.
    UserPass,
    /// AUTH PLAIN.
    Plain,
    /// AUTH LOGIN.
    Login,
    /// AUTH CRAM-MD5.
    CramMd5,
    /// AUTH SCRAM-SHA-256, bound to the TLS connection where the server offers
    /// that.
    ScramSha256,
    /// AUTH XOAUTH2.
    XOAuth2,
    /// AUTH OAUTHBEARER.
    OAuthBearer,
    /// AUTH NTLM.
    Ntlm,
    /// AUTH MSN.
    Msn,
}

/// How to get access tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct OAuth2 {
    /// The provider's token endpoint.
    #[schemars(length(min = 1, max = 2048))]
    #[x_kube(validation = Rule::new("self.startsWith('https://') || self.matches('^http://(localhost|127[.][0-9]+[.][0-9]+[.][0-9]+|\\\\[::1\\\\])(:[0-9]+)?(/|$)')").message("write an https:// address: a token must not cross the network in clear text"))]
    pub token_url: String,
    /// The client's identifier at the provider.
    #[schemars(length(min = 1, max = 1024))]
    pub client_id: String,
    /// The scopes to ask for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 512)))]
    pub scopes: Vec<String>,
    /// The client's secret, where the provider demands one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<KeyRef>,
    /// The refresh token to begin with.
    pub refresh_token_secret_ref: KeyRef,
}

/// Transport security of the POP3 connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'None' || !(has(self.caRef) || has(self.pinSha256) || has(self.serverName) || has(self.clientCertificateSecretRef))").message("with mode: None there is no TLS: remove caRef, pinSha256, serverName and clientCertificateSecretRef, or write mode: Implicit or StartTls")
)]
pub struct Tls {
    /// `Implicit`: TLS from the first octet (port 995). `StartTls`: begins in
    /// clear text and must be upgraded by STLS before the login. `None`: no
    /// TLS; the password and the mail cross the network in clear text.
    #[serde(default)]
    pub mode: TlsMode,
    /// Certificates to trust in place of the platform's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_ref: Option<CaRef>,
    /// SHA-256 digests of the server's certificate, or of its public key, in
    /// hexadecimal or base64. One of them must match; the chain, the name and
    /// the dates are then not looked at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 128)))]
    #[x_kube(validation = Rule::new("self.all(pin, pin.matches('^([0-9A-Fa-f]{2}:?){31}[0-9A-Fa-f]{2}$') || pin.matches('^(sha256//)?[A-Za-z0-9+/]{43}=$'))").message("write each SHA-256 digest as 64 hexadecimal digits (colons may stand between) or as base64"))]
    pub pin_sha256: Vec<String>,
    /// The name to expect in the server's certificate, if it is not the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
    /// A client certificate to show to the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate_secret_ref: Option<NameRef>,
}

/// When TLS is used with a POP3 server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TlsMode {
    /// From the first octet.
    #[default]
    Implicit,
    /// By STLS, required.
    StartTls,
    /// Not at all.
    None,
}

/// Bounds of one message and one session.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// The largest message to retrieve, like `50Mi`; what becomes of a larger
    /// one, `onReject` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_size: Option<Quantity>,
    /// Messages to retrieve in one session; the others wait for the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 1_000_000))]
    pub messages_per_session: Option<u32>,
}

/// What becomes of a message that cannot be delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum OnReject {
    /// It stays on the server, is remembered and tried again ever more rarely.
    #[default]
    Leave,
    /// It goes to the domain's postmaster.
    Postmaster,
    /// It is treated as delivered.
    Discard,
}

/// What to do when the identifiers of nearly all messages changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum OnUidChange {
    /// Stop polling this record until a person decides.
    #[default]
    Pause,
    /// Take everything as new mail.
    Fetch,
    /// Take as known what has a Message-ID that was seen before.
    MatchMessageId,
}
