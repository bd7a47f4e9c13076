//! Slices: read afresh when a shard is taken, watched from then on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::watching::{Shown, watch};
use crate::api::{RpopWorkSlice, Sliced};
use crate::domain::shards::ShardId;
use crate::domain::shards::holding::Observation;
use crate::domain::text::shown;
use crate::domain::work::RecordKey;
use crate::k8s::error::within;

/// One request.
const REQUEST: Duration = Duration::from_secs(10);
/// The first pause before a slice is read again that could not be; it doubles
/// up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(300);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// Up to so many slices have a watch each; beyond that one watch shows all of
/// the namespace, and those of other workers are passed over. Each watch is a
/// connection.
const SINGLE_WATCHES: usize = 32;
/// Objects of a page, where all are listed: a slice has up to 128 KiB.
const PAGE: u32 = 32;

/// A record that cannot be polled as its item stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    /// `metadata.uid`; empty where it cannot be told.
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    /// One line for people.
    pub(super) message: String,
}

/// A slice, read.
#[derive(Clone, Debug, Default)]
pub(super) struct Slice {
    pub(super) uid: String,
    pub(super) version: String,
    pub(super) generation: i64,
    pub(super) records: BTreeMap<RecordKey, Arc<Sliced>>,
    /// Records that cannot be polled as they stand here.
    pub(super) problems: BTreeMap<RecordKey, Problem>,
    /// Why nothing of the slice is polled.
    pub(super) unusable: Option<String>,
}

impl Slice {
    pub(super) fn read(shard: ShardId, slice: &RpopWorkSlice) -> Self {
        let mut read = Self {
            uid: slice.uid().unwrap_or_default(),
            version: slice.resource_version().unwrap_or_default(),
            generation: slice.metadata.generation.unwrap_or(0),
            ..Self::default()
        };
        if slice.spec.shard != u32::from(shard.0) {
            read.unusable =
                Some(format!("the slice says that it is of shard {}, not of {shard}", slice.spec.shard));
            return read;
        }
        match slice.spec.sliced() {
            Err(why) => read.unusable = Some(why),
            Ok(items) => {
                for item in items {
                    match item {
                        Ok(sliced) => {
                            read.records.insert(sliced.item.key.clone(), Arc::new(sliced));
                        }
                        Err(error) => {
                            let (namespace, name) = error.record.split_once('/').unwrap_or(("?", "?"));
                            let key = RecordKey { namespace: namespace.into(), name: name.into() };
                            let item = slice.spec.items.get(error.at).unwrap_or(&Value::Null);
                            let problem = Problem {
                                uid: item.get("uid").and_then(Value::as_str).unwrap_or_default().into(),
                                generation: item.get("generation").and_then(Value::as_i64).unwrap_or(0),
                                message: format!(
                                    "this worker cannot read its work item: {}",
                                    shown(&error.message)
                                ),
                            };
                            read.problems.insert(key, problem);
                        }
                    }
                }
            }
        }
        read
    }

    /// From what a watch or a `get` showed; `None` for an object that is gone.
    pub(super) fn shown(shard: ShardId, shown: Shown<RpopWorkSlice>) -> Option<Self> {
        match shown {
            Shown::Is(slice) => Some(Self::read(shard, &slice)),
            Shown::Unreadable { generation, version, uid, why, .. } => {
                let unusable = Some(format!("the slice cannot be read: {why}"));
                Some(Self { uid, version, generation, unusable, ..Self::default() })
            }
            Shown::Gone(_) | Shown::Complete => None,
        }
    }

    /// Which object it is, at which generation.
    pub(super) fn observation(&self) -> Observation {
        Observation { uid: self.uid.as_str().into(), generation: self.generation }
    }

    /// Whether it tells more than `other`, as far as can be told.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        match (self.version.parse::<u128>(), other.version.parse::<u128>()) {
            (Ok(this), Ok(that)) => this > that,
            _ => self.version != other.version,
        }
    }
}

type Slices = Api<DeserializeGuard<RpopWorkSlice>>;

/// Reads so many slices of a shard, however long it takes.
pub(super) async fn read_all(api: Slices, shard: ShardId, count: u32) -> BTreeMap<u32, Slice> {
    let mut all = BTreeMap::new();
    for number in 0..count {
        let name = shard.slice(number);
        let mut pause = PAUSE;
        let slice = loop {
            let why = match within(REQUEST, api.get(&name)).await {
                Ok(guard) => match Slice::shown(shard, Shown::from_guard(guard)) {
                    Some(slice) => break slice,
                    None => continue,
                },
                Err(error) => error,
            };
            tracing::debug!(slice = name, "it is read again: {why}");
            tokio::time::sleep(why.retry_after().unwrap_or(pause).max(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        all.insert(number, slice);
    }
    all
}

/// A slice that a watch showed; `None`: it is gone.
pub(super) type Change = (ShardId, u32, Option<Slice>);

/// The watches that show the slices of the shards held.
pub(super) struct Watches {
    api: Slices,
    changes: mpsc::Sender<Change>,
    single: BTreeMap<String, JoinHandle<()>>,
    wide: Option<JoinHandle<()>>,
}

impl Watches {
    pub(super) fn new(api: Slices, changes: mpsc::Sender<Change>) -> Self {
        Self { api, changes, single: BTreeMap::new(), wide: None }
    }

    /// Watches these, and no others.
    pub(super) fn follow(&mut self, names: &BTreeSet<String>) {
        // Not back at once: a shard that comes and goes is no reason to list
        // everything anew.
        let few = if self.wide.is_some() { SINGLE_WATCHES / 2 } else { SINGLE_WATCHES };
        if names.len() > few {
            if self.wide.is_none() {
                let config = watcher::Config::default().page_size(PAGE);
                self.wide = Some(self.start(config));
            }
            for (_, task) in std::mem::take(&mut self.single) {
                task.abort();
            }
            return;
        }
        self.single.retain(|name, task| {
            let keep = names.contains(name);
            if !keep {
                task.abort();
            }
            keep
        });
        for name in names {
            if !self.single.contains_key(name) {
                let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
                let task = self.start(config);
                self.single.insert(name.clone(), task);
            }
        }
        if let Some(task) = self.wide.take() {
            task.abort();
        }
    }

    fn start(&self, config: watcher::Config) -> JoinHandle<()> {
        let (shown, mut showing) = mpsc::channel::<(String, Option<Slice>)>(16);
        let changes = self.changes.clone();
        let api = self.api.clone();
        tokio::spawn(async move {
            let watching = watch(api, config, shown, |shown| match shown {
                Shown::Is(slice) => {
                    let name = slice.name_any();
                    let read = ShardId::parse_slice(&name).map(|(shard, _)| Slice::read(shard, &slice));
                    (name, read)
                }
                Shown::Unreadable { ref name, .. } => {
                    let name = name.clone();
                    (name, Slice::shown(ShardId(0), shown))
                }
                Shown::Gone(name) => (name, None),
                Shown::Complete => (String::new(), None),
            });
            let telling = async {
                while let Some((name, slice)) = showing.recv().await {
                    if let Some((shard, number)) = ShardId::parse_slice(&name)
                        && changes.send((shard, number, slice)).await.is_err()
                    {
                        return;
                    }
                }
            };
            tokio::join!(watching, telling);
        })
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for task in self.single.values().chain(&self.wide) {
            task.abort();
        }
    }
}
