//! `RpopWorkSlice`: records of a shard, resolved, as their worker reads them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::serde_json::Value;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::work::digest;
use crate::domain::envelope::Mailbox;
use crate::domain::work::{
    Destination, Limits, OnReject, OnUidChange, RecordKey, Remote, Source, Unified, WorkItem,
};

/// The newest format of items that this build writes and reads.
pub const SLICE_FORMAT: u32 = REACH;
/// Plain records only.
const PLAIN: u32 = 1;
/// With `unified`: who does not know it must not take the record for a plain
/// one, since all the mail would go to one account.
const UNIFIED: u32 = 2;
/// With two source addresses: who knows one only would connect to the other
/// family from any address, or not at all.
const REACH: u32 = 3;

/// Some records of a shard, with everything that their worker needs but the
/// secrets. Internal to RPOP: to be read, not to be written.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "rpop.dev",
    version = "v1alpha1",
    kind = "RpopWorkSlice",
    plural = "rpopworkslices",
    namespaced,
    derive = "PartialEq",
    doc = "Some records of a shard, with everything that their worker needs but the secrets. Internal to RPOP: to be read, not to be written.",
    printcolumn(name = "Shard", type_ = "integer", json_path = ".spec.shard"),
    printcolumn(name = "Format", type_ = "integer", json_path = ".spec.format"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct RpopWorkSliceSpec {
    /// The format of `items`. A worker that does not know it leaves the
    /// slice's records alone and says so.
    #[schemars(with = "i32", range(min = 1))]
    pub format: u32,
    /// The shard's number.
    #[schemars(with = "i32", range(min = 0))]
    pub shard: u32,
    /// The deliveries that items name by their place in this list.
    #[serde(default)]
    #[schemars(length(max = 256), schema_with = "objects")]
    pub destinations: Vec<Value>,
    /// The records: `SliceItem`s.
    #[serde(default)]
    #[schemars(length(max = 256), schema_with = "objects")]
    pub items: Vec<Value>,
}

/// A list of objects whose fields the API server does not look at: each is
/// read for itself, so that one that cannot be read costs nothing but itself.
fn objects(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    })
}

/// A record as its worker reads it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceItem {
    /// The record's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its `metadata.uid`.
    pub uid: String,
    /// The `metadata.generation` that this was made from.
    pub generation: i64,
    /// The local account.
    pub account: String,
    /// The maildrop.
    pub remote: Remote,
    /// Milliseconds between polls; absent: not polled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<u64>,
    /// Keep messages on the server.
    #[serde(default)]
    pub leave: bool,
    /// Days, with `leave`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_for_days: Option<u32>,
    /// Without `leave`, also delete what was delivered with it.
    #[serde(default)]
    pub delete_seen: bool,
    /// Store directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mailbox: Option<Arc<str>>,
    /// The place in `destinations`.
    pub destination: usize,
    /// For `onReject: Postmaster`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postmaster: Option<String>,
    /// Bounds.
    pub limits: Limits,
    /// On refused messages.
    pub on_reject: OnReject,
    /// On changed UIDs.
    pub on_uid_change: OnUidChange,
    /// The address to connect from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_address: Option<IpAddr>,
    /// That of the other family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_source_address: Option<IpAddr>,
    /// The record is a unified domain-wide account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unified: Option<Arc<Unified>>,
    /// Over how many shards the records of its host are spread: a worker has
    /// that part of the host's connections for each of them that it holds.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub factor: u32,
    /// How its polls went, as the controller knew when it wrote this.
    #[serde(default)]
    pub past: ItemPast,
}

fn one() -> u32 {
    1
}

#[allow(clippy::trivially_copy_pass_by_ref)] // as serde asks
fn is_one(factor: &u32) -> bool {
    *factor == 1
}

/// How a record's polls went: for a worker that has not polled it before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ItemPast {
    /// The end of the last poll, Unix seconds.
    pub last_poll: Option<i64>,
    /// A delay that still holds: not before, Unix seconds.
    pub not_before: Option<i64>,
    /// Failures in a row.
    pub failures: u16,
}

/// An item of a slice, ready for work.
#[derive(Clone, Debug, PartialEq)]
pub struct Sliced {
    /// What to poll.
    pub item: WorkItem,
    /// The record's `metadata.uid`.
    pub uid: String,
    /// The record's `metadata.generation`.
    pub generation: i64,
    /// Over how many shards the records of its host are spread, at least 1.
    pub factor: u32,
    /// How its polls went.
    pub past: ItemPast,
}

/// An item that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("item {at} of the slice ({record}) cannot be read: {message}")]
pub struct ItemError {
    /// Its place.
    pub at: usize,
    /// `namespace/name`, as far as it can be told.
    pub record: String,
    /// Why.
    pub message: String,
}

impl SliceItem {
    /// An item of `work`, whose destination is at that place in the slice; its
    /// host is not spread.
    pub fn new(work: &WorkItem, uid: &str, generation: i64, past: ItemPast, destination: usize) -> Self {
        let mut sources = work.source_address.iter().flat_map(Source::addresses);
        Self {
            namespace: work.key.namespace.to_string(),
            name: work.key.name.to_string(),
            uid: uid.to_owned(),
            generation,
            account: work.account.as_str().to_owned(),
            remote: work.remote.clone(),
            interval: work.interval.map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX)),
            leave: work.leave,
            keep_for_days: work.keep_for_days,
            delete_seen: work.delete_seen,
            mailbox: work.mailbox.clone(),
            destination,
            postmaster: work.postmaster.as_ref().map(|postmaster| postmaster.as_str().to_owned()),
            limits: work.limits,
            on_reject: work.on_reject,
            on_uid_change: work.on_uid_change,
            source_address: sources.next(),
            other_source_address: sources.next(),
            unified: work.unified.clone(),
            factor: 1,
            past,
        }
    }

    fn work(self, destinations: &[Arc<Destination>]) -> Result<Sliced, String> {
        let address = |text: &str| Mailbox::parse(text).map_err(|error| error.to_string());
        let item = WorkItem {
            key: RecordKey { namespace: self.namespace.into(), name: self.name.into() },
            uid: digest(&self.uid),
            account: address(&self.account)?,
            remote: self.remote,
            interval: self.interval.map(Duration::from_millis),
            leave: self.leave,
            keep_for_days: self.keep_for_days,
            delete_seen: self.delete_seen,
            mailbox: self.mailbox,
            destination: destinations
                .get(self.destination)
                .cloned()
                .ok_or("its destination is not in the slice")?,
            postmaster: self.postmaster.as_deref().map(address).transpose()?,
            limits: self.limits,
            on_reject: self.on_reject,
            on_uid_change: self.on_uid_change,
            source_address: Source::first_of(
                self.source_address.into_iter().chain(self.other_source_address),
            ),
            unified: self.unified,
        };
        let factor = self.factor.max(1);
        Ok(Sliced { item, uid: self.uid, generation: self.generation, factor, past: self.past })
    }
}

impl RpopWorkSliceSpec {
    /// The format of a slice of these records: the oldest that can say it.
    pub fn format_of<'i>(items: impl IntoIterator<Item = &'i WorkItem>) -> u32 {
        let format = |item: &WorkItem| match item {
            _ if item.source_address.is_some_and(|source| source.addresses().count() > 1) => REACH,
            WorkItem { unified: Some(_), .. } => UNIFIED,
            _ => PLAIN,
        };
        items.into_iter().map(format).max().unwrap_or(PLAIN)
    }

    /// The items, each for itself.
    ///
    /// # Errors
    /// The slice's own: a format that this build does not know.
    pub fn sliced(&self) -> Result<Vec<Result<Sliced, ItemError>>, String> {
        if self.format > SLICE_FORMAT {
            return Err(format!(
                "the slice has format {}, and this worker knows {SLICE_FORMAT}: it was written by a newer controller; update the workers",
                self.format
            ));
        }
        let destinations: Vec<Result<Arc<Destination>, String>> = self
            .destinations
            .iter()
            .map(|value| Destination::deserialize(value).map(Arc::new).map_err(|error| error.to_string()))
            .collect();
        // An unreadable one keeps its place, and is the fault of its items.
        let known: Vec<Arc<Destination>> =
            destinations.iter().map(|read| read.clone().unwrap_or_default()).collect();
        let read = |value: &Value| {
            let item = SliceItem::deserialize(value).map_err(|error| error.to_string())?;
            if let Some(Err(message)) = destinations.get(item.destination) {
                return Err(format!("its destination: {message}"));
            }
            item.work(&known)
        };
        let text =
            |value: &Value, field: &str| value.get(field).and_then(Value::as_str).unwrap_or("?").to_owned();
        Ok(self
            .items
            .iter()
            .enumerate()
            .map(|(at, value)| {
                read(value).map_err(|message| ItemError {
                    at,
                    record: format!("{}/{}", text(value, "namespace"), text(value, "name")),
                    message,
                })
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::work::{
        AuthChoice, Endpoint, LocalDomains, Login, MailHost, OAuth2, SecretKind, SecretRef, Special, TlsMode,
        TlsPolicy,
    };

    fn work() -> WorkItem {
        let secret = |name: &str, key: &str| SecretRef {
            kind: SecretKind::Secret,
            namespace: "mail".into(),
            name: name.into(),
            key: key.into(),
        };
        let host = MailHost {
            endpoint: Endpoint::Tcp("mx.example.com".into(), 25),
            ehlo_name: Some("rpop.example.com".into()),
            tls: TlsPolicy { mode: TlsMode::Opportunistic, ..TlsPolicy::default() },
            auth: Some(("rpop".into(), secret("relay", "password"))),
            detail_separator: "+".into(),
            null_sender_without_dsn: true,
        };
        let lmtp = MailHost { endpoint: Endpoint::Unix("/run/lmtp".into()), ..host.clone() };
        let destination =
            Destination { domain: "example.com".into(), smtp: Some(host), lmtp: Some(lmtp), maildir: None };
        WorkItem {
            key: RecordKey { namespace: "mail".into(), name: "first-isp".into() },
            uid: digest("8d3c"),
            account: Mailbox::parse("alice@example.com").unwrap(),
            remote: Remote {
                host: "pop.isp.example".into(),
                port: 995,
                account: "alice77".into(),
                login: Login::Password(secret("first-isp", "password")),
                auth: AuthChoice::Plain,
                apop: true,
                tls: Arc::new(TlsPolicy {
                    pins: vec![[7; 32]],
                    client_certificate: Some((secret("c", "tls.crt"), secret("c", "tls.key"))),
                    ..TlsPolicy::default()
                }),
            },
            interval: Some(Duration::from_mins(5)),
            leave: true,
            keep_for_days: Some(30),
            delete_seen: true,
            mailbox: Some("Archive".into()),
            destination: Arc::new(destination),
            postmaster: Some(Mailbox::parse("postmaster@example.com").unwrap()),
            limits: Limits { message_size: Some(1 << 40), messages_per_session: Some(7) },
            on_reject: OnReject::Postmaster,
            on_uid_change: OnUidChange::MatchMessageId,
            source_address: Source::first_of(["192.0.2.1", "2001:db8::1"].map(|text| text.parse().unwrap())),
            unified: None,
        }
    }

    fn slice(items: Vec<Value>) -> RpopWorkSliceSpec {
        let destinations = vec![serde_json::to_value(&*work().destination).unwrap()];
        RpopWorkSliceSpec { format: SLICE_FORMAT, shard: 3, destinations, items }
    }

    #[test]
    fn a_worker_reads_what_the_controller_wrote() {
        let past = ItemPast { last_poll: Some(5), not_before: Some(9), failures: 2 };
        let item = SliceItem::new(&work(), "8d3c", 4, past, 0);
        let read = slice(vec![serde_json::to_value(item).unwrap()]).sliced().unwrap();
        let wanted = Sliced { item: work(), uid: "8d3c".into(), generation: 4, factor: 1, past };
        assert_eq!(read, [Ok(wanted)]);
    }

    #[test]
    fn access_tokens_are_told_and_old_workers_see_that_they_do_not_know_them() {
        let secret = |key: &str| SecretRef {
            kind: SecretKind::Secret,
            namespace: "mail".into(),
            name: "m365".into(),
            key: key.into(),
        };
        let oauth = OAuth2 {
            token_url: "https://login.example/token".into(),
            client_id: "c".into(),
            scopes: vec!["a".into(), "b".into()],
            client_secret: None,
            refresh_token: Some(secret("refreshToken")),
            ca: Some(secret("ca.crt")),
        };
        let mut work = work();
        work.remote.login = Login::OAuth2(Arc::new(oauth));
        let item = SliceItem::new(&work, "8d3c", 4, ItemPast::default(), 0);
        let mut value = serde_json::to_value(item).unwrap();
        let read = slice(vec![value.clone()]).sliced().unwrap();
        assert_eq!(read[0].as_ref().unwrap().item, work);
        // What a worker of before needs is not there, so that it does nothing.
        assert!(value["remote"].get("password").is_none());
        // And a login of tomorrow is none of today's.
        let oauth = value["remote"].as_object_mut().unwrap().remove("oauth2").unwrap();
        value["remote"]["passkey"] = oauth;
        assert!(slice(vec![value]).sliced().unwrap()[0].is_err());
    }

    fn unified(special: Special) -> WorkItem {
        let plain = work();
        let unified = Unified {
            special,
            relay_foreign: true,
            deduplicate: false,
            domains: vec![LocalDomains {
                names: vec!["example.com".into(), "example.net".into()],
                owners: Vec::new(),
                destination: Arc::clone(&plain.destination),
            }],
            postmaster: Mailbox::parse("postmaster@example.com").unwrap(),
        };
        WorkItem { unified: Some(Arc::new(unified)), mailbox: None, ..plain }
    }

    #[test]
    fn a_unified_account_is_whole_in_its_slice() {
        for special in [Special::Header("X-Real-To".into()), Special::Addressees] {
            let work = unified(special);
            let item = SliceItem::new(&work, "8d3c", 4, ItemPast::default(), 0);
            let value = serde_json::to_value(item).unwrap();
            let read = slice(vec![value.clone()]).sliced().unwrap();
            assert_eq!(read[0].as_ref().unwrap().item, work);
            let again = SliceItem::deserialize(&value).unwrap();
            assert_eq!(serde_json::to_value(again).unwrap(), value);
        }
    }

    #[test]
    fn who_does_not_know_unified_accounts_is_not_given_one_as_a_plain_record() {
        let (plain, unified) = (work(), unified(Special::Addressees));
        let one = |item: WorkItem| WorkItem {
            source_address: Source::first_of(["192.0.2.1".parse().unwrap()]),
            ..item
        };
        let (two, plain, unified) = (plain.clone(), one(plain), one(unified));
        assert_eq!(RpopWorkSliceSpec::format_of([&plain]), 1);
        assert_eq!(RpopWorkSliceSpec::format_of([&plain, &unified]), 2);
        assert_eq!(RpopWorkSliceSpec::format_of([&plain, &two, &unified]), SLICE_FORMAT);
    }

    #[test]
    fn an_item_that_cannot_be_read_costs_only_itself() {
        let good = serde_json::to_value(SliceItem::new(&work(), "8d3c", 4, ItemPast::default(), 0)).unwrap();
        let lost = serde_json::to_value(SliceItem::new(&work(), "8d3c", 4, ItemPast::default(), 1)).unwrap();
        let mut odd = good.clone();
        odd["remote"]["tls"]["mode"] = "Quantum".into();
        let read = slice(vec![odd, good, lost]).sliced().unwrap();
        let error = read[0].as_ref().unwrap_err().to_string();
        assert!(error.contains("mail/first-isp") && error.contains("Quantum"), "{error}");
        assert!(read[1].is_ok());
        assert!(read[2].as_ref().unwrap_err().to_string().contains("destination"));
    }

    #[test]
    fn a_slice_of_a_newer_format_is_left_alone_and_said() {
        let newer = RpopWorkSliceSpec { format: SLICE_FORMAT + 1, ..slice(Vec::new()) };
        assert!(newer.sliced().unwrap_err().contains("update the workers"));
    }
}
