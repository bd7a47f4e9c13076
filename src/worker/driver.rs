//! What the member orders is done here, and what happens is told to it: the
//! input and output around `domain::shards::holding`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt as _;
use kube::api::Api;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::fence::Fence;
use super::hosts::{self, Hosts};
use super::report::Reporter;
use super::roster::Roster;
use super::shard::{self, StatusWrite};
use super::slice::{Change, Problem, Slice, Watches, read_all};
use super::watching::Shown;
use crate::api::{RpopShard, Sliced};
use crate::domain::code::Code;
use crate::domain::shards::holding::{Exit, Heard, Observation, Order, Renewed, Written};
use crate::domain::shards::{Incarnation, ShardId};
use crate::domain::work::{RecordKey, Settings};
use crate::engine::ports::Stage;
use crate::engine::scheduler::{Moment, Past};
use crate::k8s::client::Cluster;
use crate::k8s::error::{ApiError, within};
use crate::k8s::events::{Events, Happening, reason, reference};
use crate::k8s::lease::Word;
use crate::k8s::status::{StatusWriter, Subject};
use crate::run::Desired;
use crate::run::status::{FailedHost, LastError, RecordStatus};
use crate::telemetry::http::Health;
use crate::telemetry::metrics::Metrics;

/// Changes of what is to be polled wait so long for others.
const TOGETHER: Duration = Duration::from_millis(100);
/// The clock is looked at this often: a timer does not count while the machine
/// sleeps.
const LOOK: Duration = Duration::from_secs(1);
/// A session of a record that has left its shard gets so long to end.
const STRAY_LIMIT: Duration = Duration::from_secs(30);
/// Statuses of a shard that is handed over are waited for so long.
const STATUS_LIMIT: Duration = Duration::from_secs(3);

/// What comes in from the tasks around.
pub(super) enum Input {
    /// A watch of the shards.
    Shards(Box<Shown<RpopShard>>),
    /// The answer to a look at a shard.
    Looked(ShardId, Result<Box<RpopShard>, ApiError>),
    /// The slices of a shard, read afresh.
    Read {
        shard: ShardId,
        epoch: i64,
        slices: BTreeMap<u32, Slice>,
    },
    /// A slice's watch.
    Slice(Box<Change>),
    Wrote {
        shard: ShardId,
        version: String,
        result: Written,
    },
    WroteHosts(ShardId, bool),
}

/// A shard whose slices are followed.
struct Following {
    epoch: i64,
    count: u32,
    /// All slices have been read since the order.
    fresh: bool,
    slices: BTreeMap<u32, Slice>,
    reading: Option<JoinHandle<()>>,
    /// Its records are the run's.
    active: bool,
    /// Ordered to drain, under that epoch.
    draining: Option<i64>,
    /// All but the statuses is done since then.
    flushing: Option<Instant>,
    /// The drain took too long: its sessions were dropped then.
    dropped: Option<Instant>,
    /// Taken in, but sessions of records that are no more are still open.
    pending: Option<Pending>,
    /// Slices that were said to be unusable, as they were.
    told: BTreeMap<u32, Observation>,
    /// Records that were said to be unreadable, and why.
    problems: BTreeMap<RecordKey, Problem>,
}

struct Pending {
    observed: BTreeMap<String, Observation>,
    strays: Vec<RecordKey>,
    until: Instant,
    aborted: bool,
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(reading) = &self.reading {
            reading.abort();
        }
    }
}

/// What the driver works with.
pub(super) struct Parts {
    pub(super) cluster: Cluster,
    pub(super) roster: Roster,
    pub(super) reporter: Arc<Reporter>,
    pub(super) writer: StatusWriter,
    pub(super) events: Events,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) settings: watch::Receiver<Option<Arc<Settings>>>,
    /// To the membership's task.
    pub(super) words: mpsc::Sender<Word>,
    /// To the run.
    pub(super) desired: mpsc::Sender<Desired>,
    /// Of this worker's own polls.
    pub(super) failing: watch::Receiver<Vec<FailedHost>>,
}

/// See the module's page.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact that comes by itself")]
pub(super) struct Driver {
    parts: Parts,
    fence: Fence,
    shards: Api<RpopShard>,
    inputs: mpsc::Sender<Input>,
    watches: Watches,
    /// All shards, as last seen.
    seen: BTreeMap<ShardId, RpopShard>,
    following: BTreeMap<ShardId, Following>,
    hosts: Hosts,
    retry: HashSet<RecordKey>,
    /// Records that the run has been given before.
    given: HashSet<RecordKey>,
    /// What is to be polled has changed, to be told then.
    dirty: Option<Instant>,
    /// All shards have been shown.
    complete: bool,
    ready: bool,
    /// The run has been told of records.
    polls: bool,
    leaving: bool,
    exit: Option<Exit>,
}

impl Driver {
    pub(super) fn new(parts: Parts, inputs: mpsc::Sender<Input>) -> Self {
        let (client, namespace) = (&parts.cluster.client, &parts.cluster.namespace);
        let (changes, mut changed) = mpsc::channel(64);
        let watches = Watches::new(Api::namespaced(client.clone(), namespace), changes);
        let slices = inputs.clone();
        tokio::spawn(async move {
            while let Some(change) = changed.recv().await {
                if slices.send(Input::Slice(Box::new(change))).await.is_err() {
                    return;
                }
            }
        });
        Self {
            fence: parts.roster.fence().clone(),
            shards: Api::namespaced(client.clone(), namespace),
            inputs,
            watches,
            seen: BTreeMap::new(),
            following: BTreeMap::new(),
            hosts: Hosts::default(),
            retry: HashSet::new(),
            given: HashSet::new(),
            dirty: None,
            complete: false,
            ready: false,
            polls: false,
            leaving: false,
            exit: None,
            parts,
        }
    }

    /// Works until the member says that it is over.
    pub(super) async fn go(
        mut self,
        mut inputs: mpsc::Receiver<Input>,
        mut heard: mpsc::Receiver<Heard>,
        mut again: mpsc::Receiver<RecordKey>,
        mut stop: watch::Receiver<Stage>,
    ) -> Exit {
        let mut stage = Stage::Running;
        let mut speaks = true;
        self.hear(Heard::Tick);
        loop {
            if let Some(exit) = self.exit {
                return exit;
            }
            let wake = self.wake();
            tokio::select! {
                biased;
                // The clock first, whatever else there is to do.
                () = tokio::time::sleep_until(wake) => self.hear(Heard::Tick),
                Some(heard) = heard.recv() => self.hear_renewal(heard),
                changed = stop.changed(), if speaks => {
                    speaks = changed.is_ok();
                    let now = *stop.borrow_and_update();
                    if now > stage {
                        stage = now;
                        self.reach(stage);
                    }
                }
                Some(input) = inputs.recv() => self.take(input),
                () = self.parts.roster.closed() => {}
                () = self.parts.reporter.let_go.notified() => {}
                Some(key) = again.recv() => {
                    self.retry.insert(key);
                    self.is_dirty();
                }
                Ok(()) = self.parts.settings.changed() => self.is_dirty(),
                Ok(()) = self.parts.failing.changed() => {
                    let failing = self.parts.failing.borrow_and_update().clone();
                    self.hosts.found(failing);
                }
            }
            if !self.polls {
                // Later the run does.
                self.parts.health.beat();
            }
            self.look_at_drains();
            self.look_at_strays();
            self.write_hosts();
            self.tell_run();
            let ready = self.complete && self.polls && self.fence.is_open();
            if ready && !self.leaving && !std::mem::replace(&mut self.ready, true) {
                self.parts.health.set_ready(true);
            }
        }
    }

    fn wake(&self) -> Instant {
        let now = self.fence.now();
        let next = self.parts.roster.next_wake().since(now).min(LOOK);
        let wake = Instant::now() + next.max(Duration::from_millis(1));
        self.dirty.map_or(wake, |dirty| dirty.min(wake)).max(Instant::now())
    }

    fn is_dirty(&mut self) {
        self.dirty.get_or_insert_with(|| Instant::now() + TOGETHER);
    }

    fn hear_renewal(&mut self, heard: Heard) {
        if let Heard::RenewalAnswered { sent, result } = &heard {
            self.parts.metrics.renewed(self.fence.now().since(*sent));
            match result {
                Renewed::Ok => self.fence.renewed(*sent),
                Renewed::Lost => self.fence.close(),
                Renewed::Failed => {}
            }
        }
        self.hear(heard);
    }

    fn hear(&mut self, heard: Heard) {
        // Orders may call for another hearing, never the other way round.
        let mut waiting = vec![heard];
        while let Some(heard) = waiting.pop() {
            for order in self.parts.roster.hear(heard) {
                waiting.extend(self.obey(order));
            }
        }
        let held = self.parts.roster.held().len();
        self.parts.metrics.holds(held);
    }

    fn reach(&mut self, stage: Stage) {
        self.parts.health.set_ready(false);
        if !std::mem::replace(&mut self.leaving, true) {
            self.hear(Heard::Leave);
        }
        if stage == Stage::Aborting {
            self.parts.roster.tell(None, Stage::Aborting);
        }
    }

    /// Does what is ordered; what it comes to, if that is known at once.
    fn obey(&mut self, order: Order) -> Option<Heard> {
        match order {
            Order::Renew { leaving } => {
                let held = self.parts.roster.held();
                let capacity =
                    self.parts.settings.borrow().as_ref().map_or(0, |settings| settings.processors);
                let word = Word {
                    leaving,
                    load: self.parts.reporter.loads(&held),
                    capacity: capacity.max(1) as f32,
                };
                if self.parts.words.try_send(word).is_err() {
                    tracing::debug!("a renewal is still under way");
                }
            }
            Order::Look(shard) => self.look(shard),
            Order::Follow { shard, epoch, slices } => self.follow(shard, epoch, slices),
            Order::Forget(shard) => self.forget(shard),
            Order::Start { shard, epoch } => {
                if let Some(following) = self.following.get_mut(&shard)
                    && !std::mem::replace(&mut following.active, true)
                {
                    self.parts.metrics.moved("taken");
                    tracing::info!(%shard, epoch, "its records are polled from now on");
                    self.hosts.recall();
                }
                self.parts.roster.open_up();
                self.is_dirty();
            }
            Order::Drain { shard, epoch } => {
                if let Some(following) = self.following.get_mut(&shard) {
                    following.active = false;
                    following.draining = Some(epoch);
                    (following.flushing, following.dropped) = (None, None);
                }
                tracing::info!(%shard, epoch, "its sessions end, then it is handed over");
                self.parts.roster.tell(Some(shard), Stage::Draining);
                // Who waits at the gate need not any more.
                self.parts.roster.open_up();
                self.dirty = Some(Instant::now());
            }
            Order::Abort(shard) => {
                if let Some(following) = self.following.get_mut(&shard) {
                    if following.draining.is_some() {
                        tracing::warn!(%shard, "sessions that have not ended in time are dropped");
                        following.dropped = Some(Instant::now());
                    }
                    if std::mem::replace(&mut following.active, false) {
                        self.parts.metrics.moved("lost");
                        tracing::warn!(%shard, "it is another worker's: its sessions are dropped");
                        self.dirty = Some(Instant::now());
                    }
                }
                self.parts.roster.tell(Some(shard), Stage::Aborting);
            }
            Order::AbortAll => {
                tracing::warn!("the lease is not renewed in time: all sessions are dropped until it is");
                self.parts.roster.tell(None, Stage::Aborting);
            }
            Order::CloseAll => self.parts.roster.tell(None, Stage::Aborting),
            Order::WriteStatus { shard, version, holder, epoch, observed } => {
                self.write(shard, version, holder, epoch, observed);
            }
            Order::Exit(exit) => self.exit = Some(exit),
        }
        None
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Shards(shown) => match *shown {
                Shown::Is(object) => self.see(object),
                Shown::Gone(name) => {
                    if let Some(shard) = ShardId::parse(&name) {
                        self.lose(shard);
                    }
                }
                Shown::Unreadable { name, why, .. } => {
                    tracing::error!(shard = name, "it cannot be understood and stays as it was: {why}");
                }
                Shown::Complete => self.complete = true,
            },
            Input::Looked(_, Ok(object)) => self.see(*object),
            Input::Looked(shard, Err(ApiError::NotFound { .. })) => self.lose(shard),
            Input::Looked(shard, Err(error)) => tracing::debug!(%shard, "it cannot be read now: {error}"),
            Input::Read { shard, epoch, slices } => {
                if let Some(following) = self.following.get_mut(&shard)
                    && following.epoch == epoch
                {
                    following.fresh = true;
                    for (number, slice) in slices {
                        following.put(number, slice);
                    }
                    self.take_in(shard);
                }
            }
            Input::Slice(change) => {
                let (shard, number, slice) = *change;
                // A slice that vanished was deleted by somebody: the leader makes
                // it again, and until then what is known of it holds. Its
                // successor is another object, and is observed as that.
                let (Some(following), Some(slice)) = (self.following.get_mut(&shard), slice) else { return };
                if number < following.count && following.put(number, slice) {
                    self.take_in(shard);
                }
            }
            Input::Wrote { shard, version, result } => {
                if let Written::Ok(seen) = &result
                    && seen.holder.as_ref() != Some(&self.parts.cluster.me)
                {
                    self.parts.metrics.moved("handed_over");
                    tracing::info!(%shard, epoch = seen.epoch, "handed over");
                }
                self.hear(Heard::Wrote { shard, version, result });
            }
            Input::WroteHosts(shard, done) => self.hosts.written(shard, done),
        }
    }

    fn see(&mut self, object: RpopShard) {
        let Some(seen) = shard::seen(&object) else {
            tracing::debug!(name = object.name_any(), "not a shard of ours");
            return;
        };
        let id = seen.id;
        let mine = seen.holder.as_ref() == Some(&self.parts.cluster.me);
        if !mine
            && let Some(status) = &object.status
            && self.hosts.learn(&status.failed_hosts)
        {
            self.is_dirty();
        }
        let holder = |object: &RpopShard| object.status.as_ref().and_then(|status| status.holder.clone());
        let before = self.seen.insert(id, object);
        if before.as_ref().and_then(holder) != self.seen.get(&id).and_then(holder) {
            let holders: BTreeSet<String> = self.seen.values().filter_map(holder).collect();
            self.parts.writer.divide(holders.len());
        }
        self.hear(Heard::Shard(seen));
    }

    fn lose(&mut self, shard: ShardId) {
        self.seen.remove(&shard);
        self.hear(Heard::ShardGone(shard));
    }

    fn look(&self, shard: ShardId) {
        let (shards, inputs) = (self.shards.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let found = within(shard::REQUEST, shards.get(&shard.to_string())).await;
            inputs.send(Input::Looked(shard, found.map(Box::new))).await.ok();
        });
    }

    fn follow(&mut self, shard: ShardId, epoch: i64, count: u32) {
        let api = Api::namespaced(self.parts.cluster.client.clone(), &self.parts.cluster.namespace);
        let inputs = self.inputs.clone();
        let reading = tokio::spawn(async move {
            let slices = read_all(api, shard, count).await;
            inputs.send(Input::Read { shard, epoch, slices }).await.ok();
        });
        let following = self.following.entry(shard).or_insert_with(|| Following::new(epoch));
        if following.epoch != epoch {
            *following = Following::new(epoch);
        }
        following.count = count;
        following.slices.retain(|number, _| *number < count);
        if let Some(before) = following.reading.replace(reading) {
            before.abort();
        }
        self.follow_slices();
    }

    fn follow_slices(&mut self) {
        let names = self
            .following
            .iter()
            .flat_map(|(shard, following)| (0..following.count).map(|number| shard.slice(number)))
            .collect();
        self.watches.follow(&names);
    }

    fn forget(&mut self, shard: ShardId) {
        if let Some(following) = self.following.remove(&shard) {
            self.parts.roster.tell(Some(shard), Stage::Aborting);
            self.parts.roster.forget(shard);
            self.parts.writer.drop_shard(shard);
            for key in following.keys() {
                self.given.remove(&key);
            }
            self.follow_slices();
            self.is_dirty();
        }
    }

    /// Works by the slices as they are now.
    fn take_in(&mut self, shard: ShardId) {
        let Some(following) = self.following.get_mut(&shard).filter(|following| following.is_whole()) else {
            return;
        };
        let mut records: BTreeMap<RecordKey, Arc<Sliced>> = BTreeMap::new();
        let mut observed = BTreeMap::new();
        for (number, slice) in &following.slices {
            records.extend(slice.records.iter().map(|(key, sliced)| (key.clone(), Arc::clone(sliced))));
            let seen = slice.observation();
            observed.insert(shard.slice(*number), seen.clone());
            if let Some(why) = &slice.unusable
                && following.told.insert(*number, seen.clone()) != Some(seen)
            {
                let name = shard.slice(*number);
                tracing::error!(%shard, slice = name, "its records are left alone: {why}");
                self.parts.metrics.slice_left_alone();
                self.parts.events.tell(Happening {
                    regarding: reference("RpopWorkSlice", &self.parts.cluster.namespace, &name, &slice.uid),
                    warning: true,
                    reason: reason::NEWER_SLICE,
                    action: "Reading",
                    note: why.clone(),
                });
            }
        }
        following.tell_problems(shard, &self.parts.writer);
        let strays = self.parts.roster.assign(shard, &records);
        for key in &strays {
            self.parts.roster.tell_record(key, Stage::Draining);
        }
        following.pending =
            Some(Pending { observed, strays, until: Instant::now() + STRAY_LIMIT, aborted: false });
        if following.active {
            self.is_dirty();
        }
        self.look_at_strays();
    }

    /// Slices are taken in once no session is open that they do not name.
    fn look_at_strays(&mut self) {
        let now = Instant::now();
        let mut taken = Vec::new();
        for (shard, following) in &mut self.following {
            let Some(pending) = &mut following.pending else { continue };
            pending.strays.retain(|key| self.parts.roster.is_open(key, *shard));
            if pending.strays.is_empty() {
                taken.extend(
                    following.pending.take().map(|pending| (*shard, following.epoch, pending.observed)),
                );
            } else if now >= pending.until && !std::mem::replace(&mut pending.aborted, true) {
                for key in &pending.strays {
                    self.parts.roster.tell_record(key, Stage::Aborting);
                }
            }
        }
        for (shard, epoch, observed) in taken {
            self.hear(Heard::SlicesRead { shard, epoch, observed });
        }
    }

    /// A shard is drained when the run has let go of it and its statuses are
    /// written (or cannot be).
    fn look_at_drains(&mut self) {
        let Parts { roster, reporter, writer, .. } = &self.parts;
        let now = Instant::now();
        let mut drained = Vec::new();
        for (shard, following) in &mut self.following {
            let Some(epoch) = following.draining else { continue };
            // What counts are the sessions; the run's word is for the statuses.
            let patient = following.dropped.is_none_or(|since| now.duration_since(since) < STATUS_LIMIT);
            if roster.open(*shard) > 0 || (patient && !reporter.has_let_go(*shard)) {
                continue;
            }
            let since = *following.flushing.get_or_insert(now);
            if writer.is_settled(*shard) || now.duration_since(since) >= STATUS_LIMIT {
                writer.drop_shard(*shard);
                following.draining = None;
                drained.push(Heard::Drained { shard: *shard, epoch });
            }
        }
        for heard in drained {
            self.hear(heard);
        }
    }

    fn write(
        &self,
        shard: ShardId,
        version: String,
        holder: Option<Incarnation>,
        epoch: i64,
        observed: BTreeMap<String, Observation>,
    ) {
        let before = self.seen.get(&shard).and_then(|object| object.status.as_ref());
        let before =
            before.map(|status| status.observed_slices.keys().cloned().collect()).unwrap_or_default();
        let write = StatusWrite { shard, version, holder, epoch, observed, before };
        let (shards, inputs) = (self.shards.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let result = write.write(&shards).await;
            let StatusWrite { shard, version, .. } = write;
            inputs.send(Input::Wrote { shard, version, result }).await.ok();
        });
    }

    fn write_hosts(&mut self) {
        if self.leaving {
            return;
        }
        let active = self.active();
        for (shard, patch) in self.hosts.due(&self.parts.roster, &active) {
            let (shards, inputs) = (self.shards.clone(), self.inputs.clone());
            tokio::spawn(async move {
                let done = hosts::write(&shards, shard, &patch).await;
                inputs.send(Input::WroteHosts(shard, done)).await.ok();
            });
        }
    }

    fn active(&self) -> BTreeSet<ShardId> {
        self.following.iter().filter(|(_, following)| following.active).map(|(shard, _)| *shard).collect()
    }

    /// Tells the run what is to be polled, once changes have come together.
    fn tell_run(&mut self) {
        if self.dirty.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let settings = self.parts.settings.borrow_and_update().clone();
        let Some(settings) = settings else {
            // Nothing is polled before the settings are known.
            self.dirty = None;
            return;
        };
        let Ok(place) = self.parts.desired.try_reserve() else {
            self.dirty = Some(Instant::now() + TOGETHER);
            return;
        };
        self.dirty = None;
        let active = self.active();
        let entries = self.parts.roster.records_of(&active);
        let mut past = HashMap::new();
        for following in self.following.values().filter(|following| following.active) {
            for slice in following.slices.values() {
                let new = slice.records.iter().filter(|(key, _)| !self.given.contains(*key));
                past.extend(new.map(|(key, sliced)| (key.clone(), past_of(sliced))));
            }
        }
        let keys = entries.iter().map(|entry| (&entry.item.key, entry.shard));
        self.parts.reporter.hand_out(keys);
        self.given = entries.iter().map(|entry| entry.item.key.clone()).collect();
        self.polls = true;
        let host_limits = hosts::limits(&entries, settings.host_connections);
        place.send(Desired {
            settings,
            items: entries.into_iter().map(|entry| entry.item).collect(),
            retry: std::mem::take(&mut self.retry),
            problems: BTreeMap::new(),
            past,
            host_limits,
            hosts: self.hosts.news(),
        });
    }
}

impl Following {
    fn new(epoch: i64) -> Self {
        Self {
            epoch,
            count: 0,
            fresh: false,
            slices: BTreeMap::new(),
            reading: None,
            active: false,
            draining: None,
            flushing: None,
            dropped: None,
            pending: None,
            told: BTreeMap::new(),
            problems: BTreeMap::new(),
        }
    }

    /// Keeps the newer of what is known and this; whether that is this.
    fn put(&mut self, number: u32, slice: Slice) -> bool {
        match self.slices.get(&number) {
            Some(known) if !slice.is_newer_than(known) => false,
            _ => {
                self.slices.insert(number, slice);
                true
            }
        }
    }

    /// Says of records that cannot be read that it is so.
    fn tell_problems(&mut self, shard: ShardId, writer: &StatusWriter) {
        let all = self.slices.values().flat_map(|slice| &slice.problems);
        let problems: BTreeMap<RecordKey, Problem> =
            all.map(|(key, problem)| (key.clone(), problem.clone())).collect();
        for key in self.problems.keys().filter(|key| !problems.contains_key(*key)) {
            writer.leave(key);
        }
        for (key, problem) in problems.iter().filter(|(key, now)| self.problems.get(*key) != Some(*now)) {
            tracing::error!(record = %key, code = %Code::ConfigInvalid, "{}", problem.message);
            let subject = Subject { uid: Arc::clone(&problem.uid), generation: problem.generation, shard };
            let now = jiff::Timestamp::now().as_second();
            let error = Some(Box::new(LastError::new(Code::ConfigInvalid, &problem.message, now)));
            writer.put(key, subject, RecordStatus { error, ..RecordStatus::default() });
        }
        self.problems = problems;
    }

    fn is_whole(&self) -> bool {
        self.fresh && (0..self.count).all(|number| self.slices.contains_key(&number))
    }

    fn keys(&self) -> impl Iterator<Item = RecordKey> + '_ {
        self.slices.values().flat_map(|slice| slice.records.keys().cloned())
    }
}

fn past_of(sliced: &Sliced) -> Past {
    let moment = |unix: i64| Moment(u64::try_from(unix).unwrap_or(0).saturating_mul(1000));
    let past = sliced.past;
    Past {
        last_poll: past.last_poll.map(moment),
        not_before: past.not_before.map(moment),
        failures: past.failures,
        // The record itself says it, when its turn comes.
        refused: 0,
        answered: past.last_poll.is_some() && past.failures == 0,
        at_once: false,
    }
}
