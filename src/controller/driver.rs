//! The driver: one task that takes in what is seen, lets the pure steps
//! decide, and writes what they decided. While it does not lead it only looks,
//! so that it can lead at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::apply::{Outline, apply};
use super::figures::Figures;
use super::index::View;
use super::look::{Looked, look};
use super::order::{self, Order, Orphan};
use super::outbox::{Budget, Ended, Outbox};
use super::shown::{Fate, Shown, Told};
use super::status::{self, Notice, Wanted};
use super::take::Listings;
use super::work::Work;
use super::write::{self, Job, Target};
use crate::api::checks;
use crate::domain::shards::leader::{Answer, Config, Seen, Sight, Workers};
use crate::domain::text::causes;
use crate::domain::work::RecordKey;
use crate::k8s::client::{Cluster, boot_now};
use crate::k8s::error::ApiError;
use crate::k8s::events::{Events, Happening, record_reference};

/// Statuses: their readers are people.
const STATUSES: Budget = Budget { at_once: 8, rate: 50.0, burst: 200.0 };
/// Shards, slices and leases: work waits for them.
const ORDERS: Budget = Budget { at_once: 16, rate: 200.0, burst: 400.0 };
/// Records looked at before anything else has its turn.
const AT_A_TIME: usize = 256;
/// How often what nobody needs any more is removed, and how much at a time.
const TIDY: Duration = Duration::from_secs(5);
const TIDY_AT_ONCE: usize = 16;
/// Records that cannot be looked at yet are looked at again so often.
const LATER: Duration = Duration::from_secs(2);

/// The end of a write.
pub(super) enum Ending {
    Status { target: Target, job: Box<Job>, result: Result<(), ApiError> },
    Order { order: Box<Order>, result: Result<Option<Seen>, ApiError>, found: Option<Seen> },
    Removed { orphan: Orphan, result: Result<(), ApiError> },
}

/// What exists only while this process leads.
pub(super) struct Lead {
    pub(super) work: Work,
    pub(super) shards: u16,
    /// Accepted records whose status waits for their place.
    unplaced: BTreeMap<RecordKey, Outline>,
    statuses: Outbox<Target, Job>,
    orders: Outbox<crate::domain::shards::leader::Target, Order>,
    writes: JoinSet<Ending>,
    later: Vec<RecordKey>,
    later_at: Instant,
    tidy_at: Instant,
    connections: Option<u32>,
}

/// See the module's page.
pub(super) struct Driver {
    cluster: Cluster,
    pub(super) view: View,
    pub(super) listings: Listings,
    events: Events,
    figures: Figures,
}

impl Lead {
    /// Starts to lead, over so many shards; counting goes on.
    pub(super) fn new(config: Config, workers: Workers) -> Self {
        let now = Instant::now();
        Self {
            work: Work::new(config, workers),
            shards: config.shards,
            unplaced: BTreeMap::new(),
            statuses: Outbox::new(STATUSES, now),
            orders: Outbox::new(ORDERS, now),
            writes: JoinSet::new(),
            later: Vec::new(),
            later_at: now,
            tidy_at: now + TIDY,
            connections: None,
        }
    }

    /// It leads no more. What is under way compares and swaps: another leader is
    /// not harmed.
    pub(super) fn end(self) -> Workers {
        self.work.into_workers()
    }

    /// The end of a write; for ever if there is none under way.
    pub(super) async fn ended(&mut self) -> Ending {
        loop {
            match self.writes.join_next().await {
                Some(Ok(ending)) => return ending,
                // A write that panicked is a defect, but not a reason to stop.
                Some(Err(error)) => tracing::error!("a write ended badly: {error}"),
                None => std::future::pending().await,
            }
        }
    }
}

impl Driver {
    pub(super) fn new(cluster: &Cluster, events: Events, figures: Figures) -> Self {
        Self {
            cluster: cluster.clone(),
            view: View::new(Arc::clone(&cluster.namespace)),
            listings: Listings::default(),
            events,
            figures,
        }
    }

    /// Everything is looked at again: somebody else led until now.
    pub(super) fn begin(&mut self) {
        self.view.all_dirty();
        drop(self.view.take_gone());
    }

    /// One round: looks at what is to be looked at, decides, and writes as much
    /// as there may be. Returns when the next one is due if nothing happens.
    pub(super) fn round(&mut self, lead: &mut Lead) -> Instant {
        let now = Instant::now();
        if self.listings.complete() {
            self.look(lead, now);
        }
        self.figures.records(self.view.len(), lead.work.len());
        let (held, shards) = lead.work.shards_held();
        self.figures.shards(held, shards);
        self.figures.waiting(lead.statuses.waiting(), lead.orders.waiting());
        let view = &self.view;
        let past = |key: &RecordKey| view.get(key).map(|record| record.shown.past).unwrap_or_default();
        for order in lead.work.decide(boot_now(), &past) {
            lead.orders.put(order.target().clone(), order, now);
        }
        self.tell_sight(lead.work.take_notices());
        self.pump(lead, now);
        let boot = boot_now();
        let wake = now + lead.work.next_look(boot).since(boot);
        let later = (!lead.later.is_empty()).then_some(lead.later_at);
        let more = (!self.view.idle()).then_some(now);
        let due = [lead.statuses.next_at(now), lead.orders.next_at(now), later, more];
        due.into_iter().flatten().fold(wake, Instant::min)
    }

    /// Tells people how well the leases are read: a late fail-over has its
    /// reason here.
    pub(super) fn tell_sight(&self, notices: Vec<Sight>) {
        let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        for notice in notices {
            match notice {
                Sight::Doubtful { cause, since, slowest, failed } => tracing::warn!(
                    reason = cause.reason(),
                    for_ms = millis(since),
                    slowest_read_ms = millis(slowest),
                    failed_reads = failed,
                    "it is not sure whether workers could renew their leases: those that are dead are \
                     noticed later"
                ),
                Sight::SetBack(cause) => self.figures.set_back(cause),
                Sight::Over { lasted, times, slowest, failed } => tracing::info!(
                    lasted_ms = millis(lasted),
                    set_back = times,
                    slowest_read_ms = millis(slowest),
                    failed_reads = failed,
                    "workers can renew their leases again, for all that is seen"
                ),
            }
        }
    }

    fn look(&mut self, lead: &mut Lead, now: Instant) {
        if now >= lead.later_at {
            for key in lead.later.drain(..) {
                self.view.again(key);
            }
        }
        for key in self.view.take_gone() {
            lead.work.remove(&key, boot_now());
            lead.unplaced.remove(&key);
            lead.statuses.drop_waiting(&Target::Record(key));
        }
        for key in self.view.take_dirty(AT_A_TIME) {
            self.record(lead, key, now);
        }
        // Of settings that nobody can read nothing follows, least of all that
        // there is no work.
        if self.view.all_looked_at() && self.view.rules().is_some() {
            lead.work.complete(boot_now());
        }
        for key in lead.work.take_moved() {
            if let Some(outline) = lead.unplaced.get(&key).cloned() {
                self.placed(lead, &key, outline, now);
            } else {
                // Its status says where it was.
                self.view.again(key);
            }
        }
        for name in self.view.take_dirty_domains() {
            self.domain(lead, &name, now);
        }
        if self.view.take_settings_dirty() {
            self.settings(lead, now);
        }
        if let Some(rules) = self.view.rules()
            && lead.connections.replace(rules.host_connections) != Some(rules.host_connections)
        {
            lead.work.hear(boot_now(), Seen::Connections(rules.host_connections));
        }
    }

    /// The pipeline of one record.
    fn record(&mut self, lead: &mut Lead, key: RecordKey, now: Instant) {
        let looked = look(&mut self.view, &key);
        if !matches!(looked, Looked::Prepared(_) | Looked::Later) {
            lead.work.remove(&key, boot_now());
            lead.unplaced.remove(&key);
        }
        match looked {
            Looked::Gone => lead.statuses.drop_waiting(&Target::Record(key)),
            Looked::Later => {
                if lead.later.is_empty() {
                    lead.later_at = now + LATER;
                }
                lead.later.push(key);
            }
            Looked::Remove { uid, version } => {
                lead.statuses.put(Target::Record(key), Job::Remove { uid, version }, now);
            }
            Looked::Refused { generation, refusal } => {
                self.tell_record(lead, &key, status::of_refused(generation, &refusal), now);
            }
            Looked::Prepared(prepared) => {
                let outline = apply(&mut lead.work, prepared, boot_now());
                self.placed(lead, &key, outline, now);
            }
        }
    }

    /// An accepted record's status, once it has a place.
    fn placed(&mut self, lead: &mut Lead, key: &RecordKey, outline: Outline, now: Instant) {
        let Some(record) = self.view.get(key) else { return };
        match outline.applied(&lead.work, key) {
            Some(applied) => {
                lead.unplaced.remove(key);
                let wanted = status::of_applied(&applied, &record.shown);
                self.tell_record(lead, key, wanted, now);
            }
            None => {
                lead.unplaced.insert(key.clone(), outline);
            }
        }
    }

    fn tell_record(&mut self, lead: &mut Lead, key: &RecordKey, wanted: Wanted, now: Instant) {
        let Some(record) = self.view.get_mut(key) else { return };
        let reference = record_reference(key, &record.uid);
        let telling = Telling {
            target: Target::Record(key.clone()),
            kind: "RpopRecord",
            namespace: Some(&key.namespace),
            name: &key.name,
            uid: &record.uid,
            version: Some(&record.version).filter(|version| !version.is_empty()),
        };
        let notice = telling.tell(&mut lead.statuses, &record.shown, &mut record.told, wanted, now);
        if let Some(notice) = notice {
            self.events.tell(happening(reference, notice));
        }
    }

    fn domain(&mut self, lead: &mut Lead, name: &str, now: Instant) {
        let Some(domain) = self.view.domain_named(name) else {
            lead.statuses.drop_waiting(&Target::Domain(name.into()));
            return;
        };
        let aliases = self.view.taken_aliases(name, domain).into_iter();
        let mut warnings: Vec<String> = aliases.map(|text| format!("spec.aliases: {text}")).collect();
        let off = self.view.rules().is_some_and(|rules| !rules.sources.use_domains);
        if off && domain.usable.as_ref().is_ok_and(|usable| usable.outgoing.is_some()) {
            warnings.push(format!("spec.useForOutgoing: {}", checks::OUTGOING));
        }
        let faults = domain.usable.as_ref().err().map(Vec::as_slice).unwrap_or_default();
        let wanted = status::of_faults(domain.generation, faults, &warnings);
        let Some(domain) = self.view.domain_mut(name) else { return };
        let telling = Telling {
            target: Target::Domain(name.into()),
            kind: "RpopDomain",
            namespace: None,
            name,
            uid: &domain.uid,
            version: None,
        };
        let reference = telling.reference();
        if let Some(notice) = telling.tell(&mut lead.statuses, &domain.shown, &mut domain.told, wanted, now) {
            self.events.tell(happening(reference, notice));
        }
    }

    fn settings(&mut self, lead: &mut Lead, now: Instant) {
        let main = self.view.main_domain().map(ToOwned::to_owned);
        let missing = main.filter(|name| self.view.domain_of(name).is_none());
        let Some(settings) = &mut self.view.settings else {
            lead.statuses.drop_waiting(&Target::Settings);
            return;
        };
        let mut faults = settings.faults.clone();
        faults.extend(missing.map(|name| format!("spec.mainDomain: {}", checks::no_main_domain(&name))));
        let wanted = status::of_faults(settings.generation, &faults, &[]);
        let telling = Telling {
            target: Target::Settings,
            kind: "RpopSettings",
            namespace: None,
            name: "default",
            uid: &settings.uid,
            version: None,
        };
        let reference = telling.reference();
        let notice = telling.tell(&mut lead.statuses, &settings.shown, &mut settings.told, wanted, now);
        if let Some(notice) = notice {
            self.events.tell(happening(reference, notice));
        }
    }

    /// Starts as many writes as there may be.
    fn pump(&mut self, lead: &mut Lead, now: Instant) {
        if now >= lead.tidy_at {
            lead.tidy_at = now + TIDY;
            for orphan in lead.work.orphans().into_iter().take(TIDY_AT_ONCE) {
                let (client, system) = (self.cluster.client.clone(), Arc::clone(&self.cluster.namespace));
                lead.writes.spawn(async move {
                    let result = order::remove(&client, &system, &orphan).await;
                    Ending::Removed { orphan, result }
                });
            }
        }
        while let Some((_, order)) = lead.orders.next(now) {
            let (client, system, shards) =
                (self.cluster.client.clone(), Arc::clone(&self.cluster.namespace), lead.shards);
            lead.writes.spawn(async move {
                let result = order::execute(&client, &system, shards, &order).await;
                let found = match &result {
                    Err(error) if order::answer(error) == Answer::Conflict => {
                        order::look_again(&client, &system, &order).await
                    }
                    _ => None,
                };
                Ending::Order { order: Box::new(order), result, found }
            });
        }
        while let Some((target, mut job)) = lead.statuses.next(now) {
            if let (Target::Record(key), Job::Status { wanted, version: Some(version), .. }) =
                (&target, &mut job)
                && let Some(record) = self.view.decided(key)
                && status::holds(wanted, &record.shown)
            {
                // What has happened since was no reason to decide otherwise.
                version.clone_from(&record.version);
            }
            let client = self.cluster.client.clone();
            lead.writes.spawn(async move {
                let result = write::write(&client, &target, &job).await;
                Ending::Status { target, job: Box::new(job), result }
            });
        }
    }

    /// A write ended.
    pub(super) fn ended(&mut self, lead: &mut Lead, ending: Ending) {
        let now = Instant::now();
        match ending {
            Ending::Order { order, result, found } => {
                let target = order.target().clone();
                self.figures.written(&result);
                if let Some(found) = found {
                    lead.work.hear(boot_now(), found);
                }
                let answer = match result {
                    Ok(seen) => {
                        if let Some(seen) = seen {
                            lead.work.hear(boot_now(), seen);
                        }
                        Answer::Done
                    }
                    Err(error) => {
                        let answer = order::answer(&error);
                        lead.orders.quiet_for(error.retry_after().unwrap_or_default(), now);
                        let what = order.what();
                        if answer == Answer::Conflict {
                            tracing::debug!(?target, "{what}: {}", causes(&error));
                        } else {
                            tracing::warn!(?target, reason = error.reason(), "{what}: {}", causes(&error));
                        }
                        answer
                    }
                };
                lead.orders.ended(target.clone(), *order, Ended::Done, now);
                lead.work.hear(boot_now(), Seen::Answered { target, answer });
            }
            Ending::Removed { orphan, result } => {
                self.figures.written(&result);
                match result {
                    Ok(()) => tracing::info!(?orphan, "removed: there are not so many shards"),
                    Err(error) => tracing::debug!(?orphan, "not removed: {}", causes(&error)),
                }
            }
            Ending::Status { target, job, result } => {
                self.figures.written(&result);
                let ended = match &result {
                    Ok(()) => Ended::Done,
                    Err(error) => write::ended(error),
                };
                self.status_written(&target, &job, &result);
                lead.statuses.ended(target, *job, ended, now);
            }
        }
    }

    fn status_written(&mut self, target: &Target, job: &Job, result: &Result<(), ApiError>) {
        let told = match target {
            Target::Record(key) => self.view.get_mut(key).map(|record| &mut record.told),
            Target::Domain(name) => self.view.domain_mut(name).map(|domain| &mut domain.told),
            Target::Settings => self.view.settings.as_mut().map(|settings| &mut settings.told),
        };
        match (result, job) {
            (Ok(()), Job::Status { wanted, .. }) => became(told, wanted, Fate::Written),
            (Ok(()), Job::Remove { uid, .. }) => {
                tracing::info!("{target}: removed, since its pollEvery is Never");
                if let Target::Record(key) = target {
                    let reference = record_reference(key, uid);
                    let message = "removed, since its pollEvery is Never".to_owned();
                    self.events
                        .tell(happening(reference, Notice { warning: false, reason: "Removed", message }));
                }
            }
            (Err(ApiError::NotFound { .. }), _) => {}
            (Err(ApiError::Conflict { said }), job) => {
                tracing::debug!("{target}: it has changed: {said}");
                let version = match job {
                    Job::Status { wanted, version, .. } => {
                        became(told, wanted, Fate::Refused);
                        version.as_deref()
                    }
                    Job::Remove { version, .. } => Some(&**version),
                };
                if let (Target::Record(key), Some(version)) = (target, version) {
                    self.view.outrun(key, version);
                }
            }
            (Err(error), job) => {
                if let Job::Status { wanted, .. } = job
                    && write::ended(error) == Ended::Done
                {
                    became(told, wanted, Fate::Refused);
                }
                tracing::warn!(
                    reason = error.reason(),
                    "{target}: its status is not written: {}",
                    causes(error)
                );
            }
        }
    }
}

/// Whom something is told of.
struct Telling<'a> {
    target: Target,
    kind: &'static str,
    namespace: Option<&'a str>,
    name: &'a str,
    uid: &'a str,
    /// Of the object as it was seen, where the decision rests on its status:
    /// `Ready` is the controller's or a worker's. Written over what a worker
    /// said meanwhile, it could not be taken back.
    version: Option<&'a Arc<str>>,
}

impl Telling<'_> {
    fn reference(&self) -> k8s_openapi::api::core::v1::ObjectReference {
        k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(crate::api::API_VERSION.to_owned()),
            kind: Some(self.kind.to_owned()),
            name: Some(self.name.to_owned()),
            namespace: self.namespace.map(ToOwned::to_owned),
            uid: Some(self.uid.to_owned()),
            ..Default::default()
        }
    }

    /// Has the status written unless it says so already, or is about to.
    fn tell(
        self,
        statuses: &mut Outbox<Target, Job>,
        shown: &Shown,
        told: &mut Option<Told>,
        wanted: Wanted,
        now: Instant,
    ) -> Option<Notice> {
        let standing = told.as_ref().and_then(Told::standing);
        if standing.is_some_and(|told| *told == wanted) {
            return None;
        }
        if standing.is_none() && status::says(shown, &wanted) {
            *told = None;
            return None;
        }
        let before = told.take();
        let body = status::patch(
            self.kind,
            self.namespace,
            self.name,
            self.uid,
            &wanted,
            shown,
            jiff::Timestamp::now(),
        );
        let notice = match &before {
            // It was told a moment ago, and is not seen yet.
            Some(before) if before.wanted.accepted == wanted.accepted => None,
            _ => status::notice(shown, &wanted),
        };
        let version = self.version.cloned();
        statuses.put(self.target, Job::Status { wanted: wanted.clone(), body, version }, now);
        *told = Some(Told { wanted, fate: Fate::Sent });
        notice
    }
}

/// What became of something that was said, if nothing else was said since.
fn became(told: Option<&mut Option<Told>>, wanted: &Wanted, fate: Fate) {
    if let Some(told) = told.and_then(Option::as_mut)
        && told.wanted == *wanted
    {
        told.fate = fate;
    }
}

fn happening(regarding: k8s_openapi::api::core::v1::ObjectReference, notice: Notice) -> Happening {
    let Notice { warning, reason, message } = notice;
    Happening { regarding, warning, reason, action: "Accept", note: message }
}
