//! What users see with `kubectl get rpop`: records' statuses, written by one
//! writer a process within a budget that all workers share.
//!
//! A change of a condition or of the result goes first, at once while the
//! budget lasts; an unchanged success waits for its turn, and what happens to
//! the record meanwhile goes with it in one write. A record's own object is
//! read once, before the first write, so that its counters go on.

mod queue;
mod view;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Client;
use kube::api::{GetParams, Patch, PatchParams};
use kube::core::request::Request;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::queue::{Budget, Queues};
use self::view::View;
use super::error::unauthorized;
use super::events::{Events, Happening, reason, record_reference};
use crate::api::{API_VERSION, RpopRecordStatus};
use crate::domain::code::Code;
use crate::domain::shards::ShardId;
use crate::domain::text::causes;
use crate::domain::work::RecordKey;
use crate::run::status::RecordStatus;

/// Who writes.
pub const FIELD_MANAGER: &str = "rpop-worker";
/// Status writes a second, of all workers together.
pub const BUDGET: f64 = 50.0;
/// Requests under way at once.
const AT_ONCE: usize = 16;
/// One request.
const REQUEST: Duration = Duration::from_secs(10);
/// The first pause of all writing when the API server cannot take it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A record whose status is refused is tried again no sooner.
const REFUSED: Duration = Duration::from_mins(1);

/// Which object is meant, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// `metadata.uid`; empty where it is not known.
    pub uid: Arc<str>,
    /// `metadata.generation` of what is polled.
    pub generation: i64,
    /// The shard that it is in.
    pub shard: ShardId,
}

/// Writes statuses; a clone is the same writer.
#[derive(Clone)]
pub struct StatusWriter {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the budget changed.
    work: Notify,
    /// Something was written or given up.
    done: Notify,
}

#[derive(Default)]
struct State {
    records: HashMap<RecordKey, Entry>,
    queues: Queues,
    /// Workers among which the budget is divided.
    workers: usize,
}

struct Entry {
    subject: Subject,
    status: RecordStatus,
    /// What the record said when it was taken; read before the first write.
    before: Option<Arc<View>>,
    /// What was written last, or read.
    told: Option<Arc<View>>,
    /// `status` is not written.
    dirty: bool,
    writing: bool,
    /// To be forgotten once it is written.
    leaving: bool,
    not_before: Option<Instant>,
}

impl fmt::Debug for StatusWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusWriter").field("records", &self.state().records.len()).finish_non_exhaustive()
    }
}

impl StatusWriter {
    /// A writer, and what does its work: to be spawned, and aborted in the end.
    pub fn new(client: Client, events: Events) -> (Self, impl Future<Output = ()> + Send) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { workers: 1, ..State::default() }),
            work: Notify::new(),
            done: Notify::new(),
        });
        let desk_of = Arc::clone(&shared);
        let work = async move {
            let shared = desk_of;
            let mut desk = Desk {
                client,
                events,
                tasks: JoinSet::new(),
                failures: 0,
                paused: None,
                budget: Budget::new(BUDGET),
            };
            loop {
                let wake = desk.start_due(&shared);
                tokio::select! {
                    Some(ended) = desk.tasks.join_next() => if let Ok((key, ended)) = ended {
                        desk.finish(&shared, &key, ended);
                    },
                    () = shared.work.notified() => {}
                    () = tokio::time::sleep_until(wake.unwrap_or_else(|| Instant::now() + REFUSED)) => {}
                }
            }
        };
        (Self { shared }, work)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The budget is divided among so many workers.
    pub fn divide(&self, workers: usize) {
        let mut state = self.state();
        if state.workers != workers.max(1) {
            state.workers = workers.max(1);
            self.shared.work.notify_one();
        }
    }

    /// A record's status is this from now on. Returns at once.
    pub fn put(&self, key: &RecordKey, subject: Subject, status: RecordStatus) {
        let mut state = self.state();
        let State { records, queues, .. } = &mut *state;
        let entry = records.entry(key.clone()).or_insert_with(|| Entry {
            subject: subject.clone(),
            status: RecordStatus::default(),
            before: None,
            told: None,
            dirty: false,
            writing: false,
            leaving: false,
            not_before: None,
        });
        if entry.subject.uid != subject.uid {
            // Another record under the same name.
            (entry.before, entry.told) = (None, None);
        }
        (entry.subject, entry.status, entry.dirty, entry.leaving) = (subject, status, true, false);
        let urgent = entry.is_urgent();
        if !entry.writing {
            queues.put(key, urgent);
            self.shared.work.notify_one();
        }
    }

    /// Like [`Self::put`] for a record that is known here already; for others
    /// nothing happens.
    pub fn update(&self, key: &RecordKey, status: RecordStatus) {
        let subject = self.state().records.get(key).map(|entry| entry.subject.clone());
        if let Some(subject) = subject {
            self.put(key, subject, status);
        }
    }

    /// The record is somebody else's soon: what is not written is written now,
    /// then it is forgotten. Returns at once; see [`Self::settled`].
    pub fn leave(&self, key: &RecordKey) {
        let mut state = self.state();
        let State { records, queues, .. } = &mut *state;
        let Some(entry) = records.get_mut(key) else { return };
        entry.leaving = true;
        if entry.dirty && !entry.writing {
            queues.put(key, true);
        } else if !entry.writing {
            records.remove(key);
        }
        self.shared.work.notify_one();
        self.shared.done.notify_waiters();
    }

    /// Nothing more is written of what is in this shard: it is somebody else's.
    pub fn drop_shard(&self, shard: ShardId) {
        self.state().records.retain(|_, entry| entry.subject.shard != shard);
        self.shared.done.notify_waiters();
    }

    /// Whether nothing of the shard's records waits or is being written.
    pub fn is_settled(&self, shard: ShardId) -> bool {
        !self.state().records.values().any(|entry| entry.subject.shard == shard && entry.leaving)
    }

    /// Waits until [`Self::is_settled`].
    pub async fn settled(&self, shard: ShardId) {
        loop {
            let done = self.shared.done.notified();
            tokio::pin!(done);
            // Registered before looking, so that nothing is missed.
            done.as_mut().enable();
            if self.is_settled(shard) {
                return;
            }
            done.await;
        }
    }

    /// Records whose status waits to be written.
    pub fn waiting(&self) -> usize {
        self.state().records.values().filter(|entry| entry.dirty).count()
    }
}

impl Entry {
    /// Whether somebody who looks would see another condition or result.
    fn is_urgent(&self) -> bool {
        match (&self.before, &self.told) {
            (Some(before), Some(told)) => !View::of(before, told, &self.status, 0).is_like(told),
            // The first result of a record that is new here.
            _ => self.status.error.is_some() || self.status.last_success.is_some(),
        }
    }
}

/// What became of a write.
enum Ended {
    Written {
        before: Arc<View>,
        told: Arc<View>,
        view: Arc<View>,
    },
    /// The record is gone, or another one has its name.
    Gone,
    /// The API server has no time, or is away.
    Away(Option<Duration>, String),
    /// It does not take this.
    Refused(String),
}

struct Job {
    key: RecordKey,
    subject: Subject,
    status: RecordStatus,
    known: Option<(Arc<View>, Arc<View>)>,
}

struct Desk {
    client: Client,
    events: Events,
    tasks: JoinSet<(RecordKey, Ended)>,
    failures: u32,
    paused: Option<Instant>,
    budget: Budget,
}

impl Desk {
    /// Starts what may be written now; when to look again, if anything waits.
    fn start_due(&mut self, shared: &Shared) -> Option<Instant> {
        let now = Instant::now();
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = self.paused.filter(|until| *until > now) {
            return Some(until);
        }
        self.paused = None;
        // After a trouble one goes ahead of the others.
        let places = if self.failures > 0 { 1 } else { AT_ONCE };
        self.budget.divide(state.workers, now);
        while self.tasks.len() < places && !state.queues.is_empty() {
            if let Err(wait) = self.budget.take(now) {
                return Some(now + wait);
            }
            let State { records, queues, .. } = &mut *state;
            let Some(key) = queues.next() else { break };
            let Some(entry) = records.get_mut(&key).filter(|entry| entry.dirty && !entry.writing) else {
                self.budget.give_back();
                continue;
            };
            if entry.not_before.is_some_and(|at| at > now) && !entry.leaving {
                // Its next result brings it back.
                self.budget.give_back();
                continue;
            }
            (entry.dirty, entry.writing) = (false, true);
            let known = entry.before.clone().zip(entry.told.clone());
            let job = Job { key, subject: entry.subject.clone(), status: entry.status.clone(), known };
            self.tasks.spawn(write(self.client.clone(), job));
        }
        None
    }

    fn finish(&mut self, shared: &Shared, key: &RecordKey, ended: Ended) {
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { records, queues, .. } = &mut *state;
        // Dropped meanwhile: nothing is to be told of it.
        let Some(entry) = records.get_mut(key) else { return };
        entry.writing = false;
        match ended {
            Ended::Written { before, told, view } => {
                self.failures = 0;
                self.tell(key, &entry.subject, &told, &view);
                (entry.before, entry.told, entry.not_before) = (Some(before), Some(view), None);
            }
            Ended::Gone => {
                tracing::debug!(record = %key, "the record is gone: its status is not written");
                self.failures = 0;
                entry.dirty = false;
            }
            Ended::Refused(why) => {
                self.failures = 0;
                tracing::warn!(record = %key, "its status is not written: {why}");
                entry.not_before = Some(Instant::now() + REFUSED);
                entry.dirty = !entry.leaving;
            }
            Ended::Away(wish, why) => {
                let pause = (FIRST_PAUSE * (1 << self.failures.min(5))).min(LONGEST_PAUSE);
                self.failures = self.failures.saturating_add(1);
                let pause = wish.map_or(pause, |wish| wish.clamp(FIRST_PAUSE, LONGEST_PAUSE));
                // Workers that were turned away together do not come back so.
                let pause = pause.mul_f64(0.75 + 0.5 * fraction(key));
                tracing::debug!("statuses wait for {pause:?}: {why}");
                self.paused = Some(Instant::now() + pause);
                entry.dirty = true;
            }
        }
        if entry.dirty {
            let urgent = entry.leaving || entry.is_urgent();
            queues.put(key, urgent);
        } else if entry.leaving {
            records.remove(key);
        }
        drop(state);
        shared.done.notify_waiters();
    }

    /// Events are about what a status says for the first time.
    fn tell(&self, key: &RecordKey, subject: &Subject, told: &View, view: &View) {
        let happening = |warning, reason, note: String| Happening {
            regarding: record_reference(key, &subject.uid),
            warning,
            reason,
            action: "Polling",
            note,
        };
        match (told.error.as_deref(), view.error.as_deref()) {
            (before, Some(now)) if before.is_none_or(|before| before.code != now.code) => {
                let code = Code::parse(&now.code).unwrap_or(Code::Internal);
                self.events.tell(happening(true, code.as_str(), now.message.to_string()));
            }
            // Ever more seldom, as the logins themselves.
            (Some(_), Some(now))
                if view.refused().0 > told.refused().0.max(1) && *now.code == *Code::AuthFailed.as_str() =>
            {
                self.events.tell(happening(true, Code::AuthFailed.as_str(), view.refused().1.to_owned()));
            }
            (Some(before), None) => {
                let note =
                    format!("polls succeed again, after {} that failed with {}", before.count, before.code);
                self.events.tell(happening(false, reason::RECOVERED, note));
            }
            _ => {}
        }
        if view.counters.quarantined > told.counters.quarantined {
            let note = format!("{}: {} set aside", view.why_set_aside(), view.counters.quarantined);
            self.events.tell(happening(true, reason::SET_ASIDE, note));
        }
    }
}

/// A number in `0..1` that differs from record to record.
fn fraction(key: &RecordKey) -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    (RandomState::new().hash_one(key) >> 11) as f64 / (1_u64 << 53) as f64
}

async fn write(client: Client, job: Job) -> (RecordKey, Ended) {
    let ended = match tokio::time::timeout(REQUEST, written(&client, &job)).await {
        Ok(Ok(ended) | Err(ended)) => ended,
        Err(_) => Ended::Away(None, "the API server does not answer".to_owned()),
    };
    (job.key, ended)
}

#[derive(serde::Deserialize)]
struct Seen {
    metadata: SeenMeta,
    #[serde(default)]
    status: Option<serde_json::Value>,
}

#[derive(serde::Deserialize)]
struct SeenMeta {
    #[serde(default)]
    uid: String,
}

async fn written(client: &Client, job: &Job) -> Result<Ended, Ended> {
    let Job { key, subject, status, known } = job;
    let request = Request::new(format!("/apis/{API_VERSION}/namespaces/{}/rpoprecords", key.namespace));
    let impossible = |error: &dyn fmt::Display| Ended::Refused(error.to_string());
    let (before, told) = if let Some((before, told)) = known {
        (Arc::clone(before), Arc::clone(told))
    } else {
        let get = request.get(&key.name, &GetParams::default()).map_err(|error| impossible(&error))?;
        let text = client.request_text(get).await.map_err(judged)?;
        let seen: Seen = serde_json::from_str(&text).map_err(|error| impossible(&error))?;
        if !subject.uid.is_empty() && seen.metadata.uid != *subject.uid {
            return Ok(Ended::Gone);
        }
        // A status that cannot be read is written anew.
        let status: RpopRecordStatus =
            seen.status.and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default();
        let before = Arc::new(View::read(&status));
        (Arc::clone(&before), before)
    };
    let view = View::of(&before, &told, status, jiff::Timestamp::now().as_second());
    let patch = Patch::Apply(view.patch(key, &subject.uid, subject.generation));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    let patch = request
        .patch_subresource("status", &key.name, &parameters, &patch)
        .map_err(|error| impossible(&error))?;
    client.request_text(patch).await.map_err(judged)?;
    Ok(Ended::Written { before, told, view: Arc::new(view) })
}

fn judged(error: kube::Error) -> Ended {
    match error {
        kube::Error::Api(status) => match status.code {
            404 | 409 => Ended::Gone,
            401 => Ended::Away(None, unauthorized(&status.reason)),
            429 | 500.. => {
                let wish = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
                let wish = (wish > 0).then(|| Duration::from_secs(wish.into()));
                Ended::Away(wish, format!("the API server says {} {}", status.code, status.reason))
            }
            code => Ended::Refused(format!(
                "the API server says {code}: {}",
                crate::domain::text::shown(&status.message)
            )),
        },
        other => Ended::Away(None, causes(&other)),
    }
}
