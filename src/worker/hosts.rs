//! Remote hosts that do not answer: told to other workers in the status of the
//! shards, and learned from theirs.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::roster::{Entry, Roster};
use super::shard::REQUEST;
use crate::api::{RpopShard, ShardFailedHost};
use crate::domain::code::Code;
use crate::domain::shards::ShardId;
use crate::k8s::error::within;
use crate::run::status::{FailedHost, LastError};

/// Hosts that one shard's status names, at most.
const MOST: usize = 64;
/// A shard's hosts are written no more often than this.
const EVERY: Duration = Duration::from_secs(5);

/// What is known of hosts.
#[derive(Default)]
pub(super) struct Hosts {
    /// Found by this worker's own polls.
    own: Vec<FailedHost>,
    own_changed: bool,
    /// By other workers: until when, and why.
    others: HashMap<String, (i64, Code)>,
    /// Of these such as the run has not heard of.
    news: BTreeSet<String>,
    written: BTreeMap<ShardId, Written>,
    next: Option<Instant>,
}

struct Written {
    hosts: Vec<ShardFailedHost>,
    under_way: bool,
}

impl Hosts {
    /// This worker's polls have found these.
    pub(super) fn found(&mut self, hosts: Vec<FailedHost>) {
        self.own_changed |= self.own != hosts;
        self.own = hosts;
    }

    /// Others have found these; whether that is news.
    pub(super) fn learn(&mut self, hosts: &[ShardFailedHost]) -> bool {
        let now = Timestamp::now().as_second();
        self.others.retain(|_, (until, _)| *until > now);
        let mut news = false;
        for host in hosts.iter().take(MOST) {
            let until = host.until.0.as_second();
            if until > now && self.others.get(&host.host).is_none_or(|(known, _)| *known < until) {
                let code = Code::parse(&host.code).unwrap_or(Code::HostUnreachable);
                self.others.insert(host.host.clone(), (until, code));
                self.news.insert(host.host.clone());
                news = true;
            }
        }
        news
    }

    /// A shard was taken: what was learned before concerns its records, too.
    pub(super) fn recall(&mut self) {
        self.news.extend(self.others.keys().cloned());
    }

    /// What the run is to hear.
    pub(super) fn news(&mut self) -> Vec<FailedHost> {
        let told = |host: &String| {
            let (until, code) = self.others.get(host)?;
            let error = LastError::new(*code, "another worker found it so", Timestamp::now().as_second());
            Some(FailedHost { host: host.as_str().into(), until: *until, error })
        };
        let news = self.news.iter().filter_map(told).collect();
        self.news.clear();
        news
    }

    /// Which statuses are to be written now. What is written of a shard is what
    /// its records have to do with.
    pub(super) fn due(
        &mut self,
        roster: &Roster,
        active: &BTreeSet<ShardId>,
    ) -> Vec<(ShardId, Vec<ShardFailedHost>)> {
        self.written.retain(|shard, _| active.contains(shard));
        let now = Instant::now();
        if !self.own_changed || self.next.is_some_and(|next| next > now) {
            return Vec::new();
        }
        self.own_changed = false;
        self.next = Some(now + EVERY);
        let mut by_host: HashMap<String, BTreeSet<ShardId>> = HashMap::new();
        let own: BTreeSet<&str> = self.own.iter().map(|host| &*host.host).collect();
        for entry in roster.records_of(active) {
            let remote = &entry.item.remote;
            let name = format!("{}:{}", remote.host.to_ascii_lowercase(), remote.port);
            if own.contains(name.as_str()) {
                by_host.entry(name).or_default().insert(entry.shard);
            }
        }
        let mut wanted: BTreeMap<ShardId, Vec<ShardFailedHost>> = BTreeMap::new();
        for host in &self.own {
            for shard in by_host.get(&*host.host).into_iter().flatten() {
                let hosts = wanted.entry(*shard).or_default();
                if hosts.len() < MOST
                    && let Ok(until) = Timestamp::from_second(host.until)
                {
                    let code = host.error.code.to_string();
                    hosts.push(ShardFailedHost { host: host.host.to_string(), until: Time(until), code });
                }
            }
        }
        let mut due = Vec::new();
        for shard in active {
            let hosts = wanted.remove(shard).unwrap_or_default();
            let written =
                self.written.entry(*shard).or_insert_with(|| Written { hosts: Vec::new(), under_way: false });
            if written.hosts == hosts {
                continue;
            }
            if written.under_way {
                self.own_changed = true;
                continue;
            }
            (written.hosts, written.under_way) = (hosts.clone(), true);
            due.push((*shard, hosts));
        }
        due
    }

    /// A write has ended.
    pub(super) fn written(&mut self, shard: ShardId, done: bool) {
        if let Some(written) = self.written.get_mut(&shard) {
            written.under_way = false;
            if !done {
                written.hosts.clear();
                self.own_changed = true;
            }
        }
    }
}

/// How many sessions this worker may have with hosts whose records are spread
/// over several shards: of the limit its part for each of those it holds.
pub(super) fn limits(entries: &[Entry], limit: u32) -> HashMap<(Arc<str>, u16), u32> {
    let mut parts: HashMap<(Arc<str>, u16), BTreeMap<ShardId, u32>> = HashMap::new();
    if limit == 0 {
        return HashMap::new();
    }
    for entry in entries.iter().filter(|entry| entry.factor > 1) {
        let remote = &entry.item.remote;
        let host = (remote.host.to_ascii_lowercase().into(), remote.port);
        // While the factor changes, shards may differ: the smaller part counts.
        let part = (limit / entry.factor).max(1);
        let known = parts.entry(host).or_default().entry(entry.shard).or_insert(part);
        *known = part.min(*known);
    }
    let sum = |shards: BTreeMap<ShardId, u32>| shards.values().sum::<u32>().min(limit);
    parts.into_iter().map(|(host, shards)| (host, sum(shards))).collect()
}

/// Writes them; whether that was done.
pub(super) async fn write(shards: &Api<RpopShard>, shard: ShardId, hosts: &[ShardFailedHost]) -> bool {
    let patch = Patch::Merge(json!({"status": {"failedHosts": hosts}}));
    let (name, parameters) = (shard.to_string(), PatchParams::default());
    match within(REQUEST, shards.patch_status(&name, &parameters, &patch)).await {
        Ok(_) => true,
        Err(error) => {
            tracing::debug!(%shard, "its failed hosts are not written: {error}");
            false
        }
    }
}
