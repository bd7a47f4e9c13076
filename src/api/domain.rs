//! `RpopDomain`: a local mail domain and where its mail is delivered.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{CaRef, DeliveryAuth};
use super::status::RpopDomainStatus;

/// A domain of the local mail system, and where its mail is delivered. Its
/// name is the domain.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "rpop.dev",
    version = "v1alpha1",
    kind = "RpopDomain",
    plural = "rpopdomains",
    status = "RpopDomainStatus",
    derive = "PartialEq",
    doc = "A domain of the local mail system, and where its mail is delivered. Its name is the domain.",
    category = "mail",
    printcolumn(name = "SMTP", type_ = "string", json_path = ".spec.delivery.smtp.host"),
    printcolumn(name = "LMTP", type_ = "string", json_path = ".spec.delivery.lmtp['host','socket']"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Accepted')].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!self.useForOutgoing || has(self.assignedAddresses)").message("useForOutgoing needs assignedAddresses: write the addresses to connect from").field_path(".useForOutgoing")
)]
pub struct RpopDomainSpec {
    /// Other names of this domain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 253)))]
    #[x_kube(validation = Rule::new("self.all(name, name.matches('^[A-Za-z0-9_-]+([.][A-Za-z0-9_-]+)*$'))").message("write domain names like example.net; an internationalised one in its ASCII form, which begins with xn--"))]
    pub aliases: Vec<String>,
    /// Who gets the domain's mail that nobody else can get: an account of this
    /// domain, or a full address.
    #[serde(default = "postmaster")]
    #[schemars(length(min = 1, max = 320))]
    pub postmaster: String,
    /// The local addresses of this domain's accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 45)))]
    #[x_kube(validation = Rule::new("self.all(address, isIP(address) && !ip(address).isUnspecified())").message("write IP addresses of this host, without brackets"))]
    pub assigned_addresses: Vec<String>,
    /// Poll this domain's records from the first of `assignedAddresses`, where
    /// RpopSettings has `useDomainAddresses`: hosts that have an IPv4 address
    /// from the first one of IPv4, hosts that have an IPv6 address from the
    /// first one of IPv6.
    #[serde(default)]
    pub use_for_outgoing: bool,
    /// Where the mail goes.
    pub delivery: Delivery,
    /// Who may create records for which accounts of this domain. Without it
    /// only the namespace that RPOP runs in may. Files are not bound by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub allow: Vec<AccountsFor>,
}

fn postmaster() -> String {
    "postmaster".into()
}

/// Leave for some namespaces to create records for some accounts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccountsFor {
    /// Namespaces with these labels; `{}` means all.
    pub namespaces: LabelSelector,
    /// Local parts that they may use; `*` stands for any characters. Whoever
    /// may use the Main Domain's postmaster may write records with `special`,
    /// which deliver to all domains.
    #[schemars(length(min = 1, max = 256), inner(length(max = 64)))]
    pub accounts: Vec<String>,
}

/// Where a domain's mail goes. With only one of `smtp` and `lmtp` everything
/// goes there; with both, records with a `mailbox` go by LMTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.smtp) || has(self.lmtp) || has(self.maildir)").message("write where the mail goes: smtp: {host: mail.example.com}, lmtp: {host: ..., port: 24}, or (with rpop run -f) maildir: {path: ...}"),
    validation = Rule::new("!has(self.maildir) || !(has(self.smtp) || has(self.lmtp))").message("write maildir alone, or smtp and lmtp: a Maildir needs no mail server").field_path(".maildir")
)]
pub struct Delivery {
    /// Into the queue of a mail server, where its rules apply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smtp: Option<SmtpDelivery>,
    /// Straight into the mail store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lmtp: Option<LmtpDelivery>,
    /// Into folders of this machine, without a mail server. Only with
    /// `rpop run -f`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maildir: Option<MaildirDelivery>,
}

/// An SMTP server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SmtpDelivery {
    /// Its name or address; an IPv6 address without brackets.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_.-]+$') || self.matches('^[0-9A-Fa-f:.]+$')").message("write the name or address alone, like mail.example.com, and the port under port"))]
    pub host: String,
    /// Its port; 465 with implicit TLS and 25 otherwise, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// What RPOP calls itself in EHLO; the host's own name, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_.:\\\\[\\\\]-]+$')").message("write a domain name like rpop.example.com, or an address in brackets"))]
    pub ehlo_name: Option<String>,
    /// Transport security.
    #[serde(default)]
    pub tls: DeliveryTls,
    /// The login, where the server wants one. The password is sent over TLS,
    /// and in clear text only to a loopback address,
    /// where the server announces no STARTTLS or `tls` has `mode: None`. A
    /// STARTTLS that does not work is then never passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<DeliveryAuth>,
    /// How to say "do not report failures" to a server without DSN: by a null
    /// sender, or not at all.
    #[serde(default)]
    pub without_dsn: WithoutDsn,
}

/// What an SMTP server without DSN is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum WithoutDsn {
    /// The null sender: nobody gets a report.
    #[default]
    NullSender,
    /// The message's own sender, who may get a report.
    KeepSender,
}

/// An LMTP server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.host) != has(self.socket)").message("write host and port, or socket: one of the two"),
    validation = Rule::new("!has(self.port) || has(self.host)").message("port needs host").field_path(".port")
)]
pub struct LmtpDelivery {
    /// Its name or address; an IPv6 address without brackets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_.-]+$') || self.matches('^[0-9A-Fa-f:.]+$')").message("write the name or address alone, like mail.example.com, and the port under port"))]
    pub host: Option<String>,
    /// Its port; 24, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// The path of its unix socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 107))]
    #[x_kube(validation = Rule::new("self.startsWith('/')").message("write the whole path of the socket, like /run/dovecot/lmtp"))]
    pub socket: Option<String>,
    /// What RPOP calls itself in LHLO; the host's own name, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_.:\\\\[\\\\]-]+$')").message("write a domain name like rpop.example.com, or an address in brackets"))]
    pub ehlo_name: Option<String>,
    /// Transport security.
    #[serde(default)]
    pub tls: DeliveryTls,
    /// The login, where the server wants one. The password is sent over TLS,
    /// and in clear text only to a loopback address or a unix socket,
    /// where the server announces no STARTTLS or `tls` has `mode: None`. A
    /// STARTTLS that does not work is then never passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<DeliveryAuth>,
    /// What stands between the account and the mailbox: `alice+Archive`.
    #[serde(default = "plus")]
    #[schemars(length(min = 1, max = 4))]
    #[x_kube(validation = Rule::new("self.matches('^[!#$%&*+/=?^_|~.-]+$')").message("write the separator that the mail store uses, like \"+\""))]
    pub detail_separator: String,
}

fn plus() -> String {
    "+".into()
}

/// Folders of this machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MaildirDelivery {
    /// The path of an account's Maildir. `{local}` and `{domain}` stand for
    /// the parts of the account's address, `{mailbox}` for the record's
    /// `mailbox`.
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self.startsWith('/')").message("write the whole path, like /home/{local}/Maildir"))]
    pub path: String,
}

/// Transport security of a delivery.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.mode != 'None' || !(has(self.caRef) || has(self.pinSha256) || has(self.serverName))").message("with mode: None there is no TLS: remove caRef, pinSha256 and serverName, or write mode: StartTls")
)]
pub struct DeliveryTls {
    /// `Opportunistic`: STARTTLS where the server offers it; the certificate
    /// is then verified only with `caRef`, `pinSha256` or `serverName`.
    /// `StartTls`: required and verified. `Implicit`: TLS from the first
    /// octet, verified. `None`: no TLS.
    #[serde(default)]
    pub mode: DeliveryTlsMode,
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
}

/// When TLS is used with a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum DeliveryTlsMode {
    /// Where offered.
    #[default]
    Opportunistic,
    /// By STARTTLS, required.
    StartTls,
    /// From the first octet.
    Implicit,
    /// Not at all.
    None,
}
