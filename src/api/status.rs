//! What RPOP says of the resources.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What RPOP says of a record.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RpopRecordStatus {
    /// The time of the last successful poll (RFC 3339), the code of the error
    /// that the last one ended with, or that of why the record is not accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// When the last poll ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_poll_time: Option<Time>,
    /// When the next one is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_poll_time: Option<Time>,
    /// Why polls fail, while they do, or why the record is not accepted and
    /// hence not polled at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(merge_strategy = MapMerge::Atomic)]
    pub last_error: Option<LastError>,
    /// What has been done since the record was created.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Counters>,
    /// The shard that the record is in: `rpopshard` of that number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 0, max = 65535))]
    pub shard: Option<u32>,
    /// Over how many shards the records of the remote host were spread when
    /// this record was placed: 1, or for a host of very many records a power
    /// of two. Kept, so that records stay where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65536))]
    pub shard_factor: Option<u32>,
    /// The generation of the record that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`: the record is complete and allowed. `Polled`: the last
    /// session went through. `Delivered`: all that was retrieved was accepted,
    /// by all its recipients. `Ready`: all of them. `Authenticated`: the server
    /// took the last login; if not, since when it refuses them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A failure that lasts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastError {
    /// A code from the closed list in `docs/errors.md`.
    pub code: String,
    /// What happened and what to do.
    pub message: String,
    /// Since when each poll has failed, or the record has not been accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// How many polls in a row have failed; 0 for a record that is not accepted.
    #[serde(default)]
    #[schemars(with = "i32", range(min = 0))]
    pub count: u32,
    /// Logins that the server refused in a row, whatever other errors came
    /// between. The next one is made at `nextPollTime`, ever later, or when the
    /// record or its Secret changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_logins: Option<RefusedLogins>,
}

/// Logins that the server refused in a row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct RefusedLogins {
    /// When the first of them was.
    pub since: Time,
    /// How many there were.
    #[schemars(with = "i32", range(min = 1))]
    pub count: u32,
    /// With what the last one was made: the generation of the record, and the
    /// versions of its Secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub credentials: Option<String>,
}

impl LastError {
    /// Whether it is the controller's, who does not accept the record, and not
    /// that of a poll.
    pub fn is_refusal(&self) -> bool {
        self.count == 0
    }
}

/// Figures of a record since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct Counters {
    /// Polls that ended, well or not.
    #[schemars(with = "i64", range(min = 0))]
    pub polls: u64,
    /// Messages retrieved.
    #[schemars(with = "i64", range(min = 0))]
    pub fetched: u64,
    /// Messages that the destination accepted.
    #[schemars(with = "i64", range(min = 0))]
    pub delivered: u64,
    /// Messages refused for good.
    #[schemars(with = "i64", range(min = 0))]
    pub rejected: u64,
    /// Messages that are set aside and still in the maildrop.
    #[schemars(with = "i64", range(min = 0))]
    pub quarantined: u64,
    /// Messages that were refused for now, by all their recipients or some,
    /// and wait in the maildrop.
    #[schemars(with = "i64", range(min = 0))]
    pub waiting: u64,
    /// Octets retrieved.
    #[schemars(with = "i64", range(min = 0))]
    pub bytes: u64,
}

/// What RPOP says of a domain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RpopDomainStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`: the domain can be delivered to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What RPOP says of the settings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RpopSettingsStatus {
    /// The generation that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`: the settings are in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
