//! Leases: that a worker is there, and who leads.
//!
//! Both count by clocks of their own alone. Whoever holds a lease counts from
//! the moment it *sent* the last renewal that was acknowledged; whoever waits
//! for it counts how long *it has seen* one version unchanged. What a lease
//! says about time is for people.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::client::{Cluster, REQUEST_DEADLINE, boot_now};
use super::error::{ApiError, within};
use crate::domain::shards::holding::{Heard, Renewed};
use crate::domain::shards::timing::{Boot, Timing};
use crate::domain::shards::{Incarnation, ShardId};
use crate::domain::text::{causes, shown};

pub use super::election::{Claim, LEADER_LEASE, Spans, elect};

/// Marks the leases of workers.
pub const COMPONENT_LABEL: &str = "rpop.dev/component";
/// The value of that label.
pub const WORKER: &str = "worker";
/// Its value on the lease of whoever leads.
pub const CONTROLLER: &str = "controller";
/// `"true"` on the lease of a worker that is about to end.
pub const LEAVING: &str = "rpop.dev/leaving";
/// The load of each shard: JSON, `{"shard-007": 1.5}`, session-seconds a second.
pub const LOAD: &str = "rpop.dev/load";
/// How much a worker can do, in processors.
pub const CAPACITY: &str = "rpop.dev/capacity";
/// Before the incarnation whose lease the leader took away.
pub const STOLEN: &str = "stolen/";

/// More annotation than all shards need is nobody's load.
const LONGEST_LOAD: usize = 64 * 1024;

/// The name of a worker's lease.
pub fn worker_lease(pod: &str) -> String {
    format!("rpop-worker-{pod}")
}

pub(super) fn labels(component: &str) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/managed-by", "rpop"),
        ("app.kubernetes.io/part-of", "rpop"),
        (COMPONENT_LABEL, component),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

/// What a worker says of itself in its lease.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Word {
    /// It is about to end.
    pub leaving: bool,
    /// Session-seconds a second, by shard; coarse.
    pub load: BTreeMap<ShardId, f32>,
    /// Processors.
    pub capacity: f32,
}

impl Word {
    fn annotations(&self) -> BTreeMap<String, String> {
        let load: BTreeMap<_, _> = self
            .load
            .iter()
            .filter(|(_, load)| load.is_finite())
            .map(|(shard, load)| (shard.to_string(), (load * 100.0).round() / 100.0))
            .collect();
        let mut all = BTreeMap::from([
            (LOAD.to_owned(), json!(load).to_string()),
            (CAPACITY.to_owned(), format!("{:.2}", self.capacity)),
        ]);
        if self.leaving {
            all.insert(LEAVING.to_owned(), "true".to_owned());
        }
        all
    }
}

/// A worker's lease as the leader reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerLease {
    /// The object's name.
    pub name: String,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// The worker; of a stolen lease the one it was stolen from.
    pub holder: Option<Incarnation>,
    /// The leader has taken it away.
    pub stolen: bool,
    /// What the worker says of itself; what cannot be read is left out.
    pub word: Word,
}

impl WorkerLease {
    /// Reads a lease; nothing in it can fail.
    pub fn read(lease: &Lease) -> Self {
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or("");
        let stolen = holder.strip_prefix(STOLEN);
        let annotation = |name: &str| lease.metadata.annotations.as_ref().and_then(|all| all.get(name));
        let load = annotation(LOAD)
            .filter(|text| text.len() <= LONGEST_LOAD)
            .and_then(|text| serde_json::from_str::<BTreeMap<String, f32>>(text).ok())
            .unwrap_or_default()
            .into_iter()
            .filter_map(|(shard, load)| Some((ShardId::parse(&shard)?, load)))
            .filter(|(_, load)| load.is_finite() && *load >= 0.0)
            .collect();
        let capacity = annotation(CAPACITY)
            .and_then(|text| text.parse::<f32>().ok())
            .filter(|capacity| capacity.is_finite() && *capacity > 0.0);
        Self {
            name: lease.metadata.name.clone().unwrap_or_default(),
            version: lease.metadata.resource_version.clone().unwrap_or_default(),
            holder: Incarnation::parse(stolen.unwrap_or(holder)),
            stolen: stolen.is_some(),
            word: Word {
                leaving: annotation(LEAVING).is_some_and(|value| value == "true"),
                load,
                capacity: capacity.unwrap_or(1.0),
            },
        }
    }
}

/// Takes the lease of a worker away, if it still has that version: from then
/// on `incarnation` can never renew it.
///
/// # Errors
/// [`ApiError::Conflict`] if the worker has renewed it in between; with any
/// other error it may or may not be stolen.
pub async fn steal(
    leases: &Api<Lease>,
    name: &str,
    version: &str,
    incarnation: &Incarnation,
) -> Result<WorkerLease, ApiError> {
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": version},
        "spec": {"holderIdentity": format!("{STOLEN}{incarnation}")},
    }));
    let params = PatchParams::default();
    let stolen = within(REQUEST_DEADLINE, leases.patch(name, &params, &patch)).await?;
    Ok(WorkerLease::read(&stolen))
}

/// A worker's own lease.
pub struct Membership {
    leases: Api<Lease>,
    name: String,
    me: Incarnation,
    timing: Timing,
    /// The lease as it was when it was known last.
    known: Option<Lease>,
    /// A renewal has been acknowledged: from then on the lease is ours, or
    /// lost.
    joined: bool,
}

enum Found {
    Ours(Box<Lease>),
    /// An earlier process of this pod had it, or nobody.
    Free(Box<Lease>),
    Nothing,
    Taken(String),
}

impl Membership {
    /// Of the pod of this process. Nothing is asked or written yet.
    pub fn new(cluster: &Cluster, timing: Timing) -> Self {
        Self {
            leases: Api::namespaced(cluster.client.clone(), &cluster.namespace),
            name: worker_lease(&cluster.pod),
            me: cluster.me.clone(),
            timing,
            known: None,
            joined: false,
        }
    }

    /// Renews the lease, or takes it at first; within
    /// [`Timing::renewal_deadline`]. Tells when the decisive request was sent.
    pub async fn renew(&mut self, word: &Word) -> (Boot, Renewed) {
        let mut sent = boot_now();
        let limit = self.timing.renewal_deadline();
        match within_all(limit, self.try_renew(word, &mut sent)).await {
            Ok(result) => (sent, result),
            Err(error) => {
                tracing::warn!(
                    reason = error.reason(),
                    "the lease {} is not renewed: {}",
                    self.name,
                    causes(&error)
                );
                (sent, Renewed::Failed)
            }
        }
    }

    async fn try_renew(&mut self, word: &Word, sent: &mut Boot) -> Result<Renewed, ApiError> {
        // A reply may get lost, so that our own write looks like a conflict:
        // what the lease says decides. Whoever writes in between is the leader,
        // who steals once.
        for _ in 0..3 {
            if self.known.is_none() {
                match self.find().await? {
                    Found::Ours(lease) | Found::Free(lease) => self.known = Some(*lease),
                    Found::Nothing if self.joined => return Ok(self.lost("it is gone")),
                    Found::Nothing => {}
                    Found::Taken(by) => return Ok(self.lost(&format!("it belongs to {}", shown(&by)))),
                }
            }
            let lease = self.next(word);
            *sent = boot_now();
            let answer = if self.known.is_some() {
                self.leases.replace(&self.name, &PostParams::default(), &lease).await
            } else {
                self.leases.create(&PostParams::default(), &lease).await
            };
            match answer.map_err(ApiError::from) {
                Ok(lease) => {
                    self.known = Some(lease);
                    self.joined = true;
                    return Ok(Renewed::Ok);
                }
                Err(ApiError::NotFound { .. }) if self.joined => return Ok(self.lost("it is gone")),
                Err(ApiError::Conflict { .. } | ApiError::NotFound { .. }) => self.known = None,
                Err(error) => return Err(error),
            }
        }
        Err(ApiError::Conflict { said: format!("somebody else writes the lease {} all the time", self.name) })
    }

    async fn find(&self) -> Result<Found, ApiError> {
        let Some(lease) = self.leases.get_opt(&self.name).await? else { return Ok(Found::Nothing) };
        let lease = Box::new(lease);
        let holder = lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default();
        Ok(if holder == self.me.as_str() {
            Found::Ours(lease)
        } else if self.joined || holder.strip_prefix(STOLEN) == Some(self.me.as_str()) {
            Found::Taken(holder)
        } else {
            // The name is our pod's: whoever it was has ended.
            Found::Free(lease)
        })
    }

    fn next(&self, word: &Word) -> Lease {
        let now = Timestamp::now();
        let before = self.known.as_ref().and_then(|lease| lease.spec.as_ref());
        let ours = before.is_some_and(|spec| spec.holder_identity.as_deref() == Some(self.me.as_str()));
        let acquired = before.filter(|_| ours).and_then(|spec| spec.acquire_time.clone());
        let transitions = before.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                namespace: self.leases.namespace().map(str::to_owned),
                resource_version: self
                    .known
                    .as_ref()
                    .and_then(|lease| lease.metadata.resource_version.clone()),
                // The API server makes a lease anew that is replaced after it
                // was deleted, whatever version is named, unless the object
                // is named, too.
                uid: self.known.as_ref().and_then(|lease| lease.metadata.uid.clone()),
                labels: Some(labels(WORKER)),
                annotations: Some(word.annotations()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.me.to_string()),
                lease_duration_seconds: Some(whole_seconds(self.timing.dead_after)),
                acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(if ours || before.is_none() {
                    transitions
                } else {
                    transitions.saturating_add(1)
                }),
                ..LeaseSpec::default()
            }),
        }
    }

    fn lost(&self, why: &str) -> Renewed {
        tracing::error!(
            "the lease {} is lost, {why}: another worker may poll what this one polled",
            self.name
        );
        Renewed::Lost
    }

    /// Renews in a task of its own, one at a time: once for each word, and
    /// each is answered. Ends when either channel is closed.
    pub fn spawn(mut self, mut words: mpsc::Receiver<Word>, heard: mpsc::Sender<Heard>) -> JoinHandle<()> {
        tokio::spawn(async move {
            while let Some(word) = words.recv().await {
                let (sent, result) = self.renew(&word).await;
                if heard.send(Heard::RenewalAnswered { sent, result }).await.is_err() {
                    return;
                }
            }
        })
    }
}

pub(super) fn whole_seconds(span: Duration) -> i32 {
    i32::try_from(span.as_millis().div_ceil(1_000)).unwrap_or(i32::MAX).max(1)
}

pub(super) async fn within_all<T>(
    limit: Duration,
    requests: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    tokio::time::timeout(limit, requests).await.unwrap_or(Err(ApiError::TimedOut { after: limit }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_says_is_what_the_leader_reads() {
        let word = Word {
            leaving: true,
            load: BTreeMap::from([(ShardId(7), 1.504), (ShardId(1_023), 0.0), (ShardId(8), f32::NAN)]),
            capacity: 3.5,
        };
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(worker_lease("rpop-worker-a")),
                resource_version: Some("12".to_owned()),
                annotations: Some(word.annotations()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some("rpop-worker-a/0000002a".to_owned()),
                ..LeaseSpec::default()
            }),
        };
        let read = WorkerLease::read(&lease);
        assert_eq!(read.name, "rpop-worker-rpop-worker-a");
        assert_eq!(read.version, "12");
        assert_eq!((read.holder, read.stolen), (Some(Incarnation::new("rpop-worker-a", 42)), false));
        assert_eq!(
            read.word,
            Word {
                leaving: true,
                load: BTreeMap::from([(ShardId(7), 1.5), (ShardId(1_023), 0.0)]),
                capacity: 3.5
            }
        );
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let mut lease = Lease::default();
        assert_eq!(WorkerLease::read(&lease).word, Word { capacity: 1.0, ..Word::default() });
        lease.metadata.annotations = Some(BTreeMap::from([
            (LOAD.to_owned(), r#"{"shard-007": -1, "shard-008": 2, "else": 3}"#.to_owned()),
            (CAPACITY.to_owned(), "-inf".to_owned()),
            (LEAVING.to_owned(), "yes".to_owned()),
        ]));
        lease.spec =
            Some(LeaseSpec { holder_identity: Some("stolen/a/0000002a".to_owned()), ..LeaseSpec::default() });
        let read = WorkerLease::read(&lease);
        assert_eq!(
            read.word,
            Word { load: BTreeMap::from([(ShardId(8), 2.0)]), capacity: 1.0, leaving: false }
        );
        assert_eq!((read.holder, read.stolen), (Some(Incarnation::new("a", 42)), true));
    }

    #[test]
    fn the_load_of_all_shards_of_one_worker_fits() {
        let load = (0..1_024).map(|shard| (ShardId(shard), 1_234.567)).collect();
        let word = Word { load, ..Word::default() };
        assert!(word.annotations()[LOAD].len() < LONGEST_LOAD);
    }
}
