//! `RpopSettings`: what holds for all records.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration::Duration;
use super::status::RpopSettingsStatus;

/// What holds for all records. There is one, named `default`; changes take
/// effect at once.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "rpop.dev",
    version = "v1alpha1",
    kind = "RpopSettings",
    plural = "rpopsettings",
    singular = "rpopsettings",
    status = "RpopSettingsStatus",
    derive = "PartialEq",
    doc = "What holds for all records. There is one, named default; changes take effect at once.",
    category = "mail",
    validation = Rule::new("self.metadata.name == 'default'").message("name it default: there is one RpopSettings").field_path(".metadata.name"),
    printcolumn(name = "Processors", type_ = "integer", json_path = ".spec.processors"),
    printcolumn(name = "Main Domain", type_ = "string", json_path = ".spec.mainDomain"),
    printcolumn(name = "Log Level", type_ = "string", json_path = ".spec.logLevel"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RpopSettingsSpec {
    /// Simultaneous POP3 sessions of one worker process; 0 stops polling
    /// everywhere.
    #[serde(default = "processors")]
    #[schemars(with = "i32", range(min = 0, max = 100_000))]
    pub processors: u32,
    /// Simultaneous sessions to one remote host; 0 sets no limit of its own.
    #[serde(default = "host_connections")]
    #[schemars(with = "i32", range(min = 0, max = 100_000))]
    pub host_connections: u32,
    /// What is logged. Each level includes those before it. `CrashOnly`: only
    /// what ends the process. `Failures`: failed polls and refused messages.
    /// `Major`: each poll's result. `Problems`: passing troubles. `LowLevel`:
    /// protocol transcripts, without secrets. `AllInfo`: everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_level: Option<LogLevel>,
    /// The RpopDomain whose postmaster gets what has no usable address, and to
    /// whom records with `special` belong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub main_domain: Option<String>,
    /// Records may use APOP; see their `apop`.
    #[serde(default)]
    pub use_apop: bool,
    /// Records may poll our own addresses: `ownAddresses`, what the deliveries
    /// resolve to, and the addresses of this host, loopback included. Off,
    /// since mail would go round in circles.
    #[serde(default)]
    pub allow_self_poll: bool,
    /// How long a remote host is left alone after a failed connection.
    #[serde(default = "ten_minutes")]
    pub delay_failed_hosts: Duration,
    /// How long a record waits after a failed login, a locked maildrop or a
    /// broken transfer.
    #[serde(default = "ten_minutes")]
    pub delay_failed_accounts: Duration,
    /// The local address to connect from. Where it cannot be had, or is not of
    /// the remote host's family, the record says `SourceAddressUnavailable`:
    /// no other address is taken in its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 45))]
    #[x_kube(validation = Rule::new("isIP(self) && !ip(self).isUnspecified()").message("write an IP address of this host, without brackets"))]
    pub source_address: Option<String>,
    /// Connect from the first of the domain's `assignedAddresses`, where the
    /// RpopDomain has `useForOutgoing`; `sourceAddress` is for all others.
    #[serde(default)]
    pub use_domain_addresses: bool,
    /// When polling is allowed; always, if not given. Outside nothing connects
    /// to a remote server, and a poll that is under way ends at its next
    /// message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activity_schedule: Option<ActivitySchedule>,
    /// Further addresses, networks (`10.0.0.0/8`) and host names that belong
    /// to this mail system and are therefore not polled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 253)))]
    #[x_kube(validation = Rule::new("self.all(own, own.matches('^[A-Za-z0-9_.:/-]+$'))").message("write addresses like 192.0.2.1, networks like 10.0.0.0/8, or host names"))]
    pub own_addresses: Vec<String>,
    /// Networks that records may connect to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_networks: Option<RemoteNetworks>,
    /// How much may be delivered before the ledger is written: what a crash
    /// can cause to be delivered twice.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Deadlines.
    #[serde(default)]
    pub timeouts: Timeouts,
}

fn processors() -> u32 {
    256
}

fn host_connections() -> u32 {
    20
}

fn ten_minutes() -> Duration {
    Duration::from_secs(600)
}

/// What is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum LogLevel {
    /// Only what ends the process.
    CrashOnly,
    /// Failed polls and refused messages.
    Failures,
    /// And each poll's result.
    Major,
    /// And passing troubles.
    Problems,
    /// And protocol transcripts.
    LowLevel,
    /// Everything.
    AllInfo,
}

/// When polling is allowed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActivitySchedule {
    /// The time zone of the windows, like `Europe/Berlin`. The windows mean
    /// what its clocks show: a time that they skip in spring does not come that
    /// day, and the hour that they show twice in autumn counts twice.
    #[serde(default = "utc")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$')").message("write an IANA name like Europe/Berlin or UTC"))]
    pub time_zone: String,
    /// The windows of the week in which records are polled.
    #[schemars(length(min = 1, max = 64))]
    pub windows: Vec<ActivityWindow>,
}

fn utc() -> String {
    "UTC".into()
}

/// A window of the week.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.from != self.to").message("a window that ends when it begins never opens: for the whole day write from: \"00:00\", to: \"24:00\"").field_path(".to")
)]
pub struct ActivityWindow {
    /// The days; all of them, if not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    pub days: Vec<Day>,
    /// Its beginning, like `08:00`.
    #[schemars(length(min = 5, max = 5))]
    #[x_kube(validation = Rule::new("self.matches('^([01][0-9]|2[0-3]):[0-5][0-9]$')").message("write a time of day like \"08:00\", in quotes"))]
    pub from: String,
    /// Its end, like `18:30`; `24:00` is midnight. An end before the beginning
    /// is on the next day.
    #[schemars(length(min = 5, max = 5))]
    #[x_kube(validation = Rule::new("self.matches('^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$')").message("write a time of day like \"18:30\", in quotes"))]
    pub to: String,
}

/// A day of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Day {
    /// Monday.
    Mon,
    /// Tuesday.
    Tue,
    /// Wednesday.
    Wed,
    /// Thursday.
    Thu,
    /// Friday.
    Fri,
    /// Saturday.
    Sat,
    /// Sunday.
    Sun,
}

/// Networks that records may connect to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemoteNetworks {
    /// Only these; all, if not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 49)))]
    #[x_kube(validation = Rule::new("self.all(net, isCIDR(net) || isIP(net))").message("write networks like 203.0.113.0/24 or 2001:db8::/32"))]
    pub allow: Vec<String>,
    /// Never these, whatever `allow` says.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 49)))]
    #[x_kube(validation = Rule::new("self.all(net, isCIDR(net) || isIP(net))").message("write networks like 169.254.0.0/16 or fe80::/10"))]
    pub deny: Vec<String>,
}

fn twenty() -> u32 {
    20
}

fn seconds<const N: u64>() -> Duration {
    Duration::from_secs(N)
}

/// When the ledger is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// After this many messages.
    #[serde(default = "twenty")]
    #[schemars(with = "i32", range(min = 1, max = 10_000))]
    pub messages: u32,
    /// And at least this often while messages are delivered.
    #[serde(default = "seconds::<5>")]
    #[x_kube(validation = Rule::new("!self.matches('^[0-9hms]+$') || duration(self) >= duration('1s')").message("write at least 1s"))]
    pub every: Duration,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { messages: 20, every: Duration::from_secs(5) }
    }
}

/// Deadlines of a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[self.connect, self.reply, self.data, self.afterDot, self.session].all(t, !t.matches('^([0-9]{1,6}h)?([0-9]{1,6}m)?([0-9]{1,6}s)?$') || t == '' || duration(t) >= duration('1s'))").message("write deadlines of at least 1s: a deadline of nothing would end every poll")
)]
pub struct Timeouts {
    /// For a connection, TLS included.
    #[serde(default = "seconds::<30>")]
    pub connect: Duration,
    /// For any one reply of either side.
    #[serde(default = "seconds::<60>")]
    pub reply: Duration,
    /// Without progress while a message flows.
    #[serde(default = "seconds::<60>")]
    pub data: Duration,
    /// From the end of a message to the destination's reply. Servers scan
    /// for viruses there.
    #[serde(default = "seconds::<600>")]
    pub after_dot: Duration,
    /// For a whole session.
    #[serde(default = "seconds::<3600>")]
    pub session: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            reply: Duration::from_secs(60),
            data: Duration::from_secs(60),
            after_dot: Duration::from_secs(600),
            session: Duration::from_secs(3600),
        }
    }
}
