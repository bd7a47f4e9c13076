//! The controller's life: watch, stand for election, lead while elected.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, ListParams};
use tokio::sync::watch::Receiver;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::driver::{Driver, Lead};
use super::error::Error;
use super::feed::{self, Source};
use super::figures::Figures;
use super::order::SHARDS;
use super::watch;
use crate::api::RpopShard;
use crate::domain::shards::ShardId;
use crate::domain::shards::leader::{Config, Workers};
use crate::domain::shards::timing::Timing;
use crate::domain::text::causes;
use crate::engine::ports::Stage;
use crate::k8s::client::{Cluster, REQUEST_DEADLINE, boot_now};
use crate::k8s::error::{ApiError, within};
use crate::k8s::events::Events;
use crate::k8s::lease::{Claim, Spans, elect};
use crate::telemetry::http::Health;
use crate::telemetry::metrics::Metrics;

/// How often the loop shows that it is alive, at least.
const BEAT: Duration = Duration::from_secs(5);
/// From a failed look at the shards to the next one.
const AGAIN: Duration = Duration::from_secs(2);
/// Changes that are taken in before anything is decided.
const TOGETHER: usize = 512;

/// What a controller is told at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The spans that all processes of an installation have in common.
    pub timing: Timing,
    /// How many shards the first start makes, 1 to 10 000. Later ones keep to
    /// what there is.
    pub shards: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { timing: Timing::DEFAULT, shards: 256 }
    }
}

/// Runs until `stop` is no longer [`Stage::Running`]. The lead is given away
/// then, so that another controller has it at once.
///
/// # Errors
/// Where it cannot go on: the process should end and be started anew.
pub async fn run(
    cluster: Cluster,
    options: Options,
    mut stop: Receiver<Stage>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
) -> Result<(), Error> {
    options.timing.check()?;
    let figures = Figures::new(metrics.registry());
    let events = Events::start(cluster.client.clone(), "rpop-controller", &cluster.pod);
    let streaming = streaming(&cluster, &mut stop, &health).await;
    let mut tasks = JoinSet::new();
    let mut changes = watch::start(&cluster.client, streaming, &mut tasks);
    let mut driver = Driver::new(&cluster, events, figures.clone());
    let mut ending = stop.clone();
    let (mut claims, mut election) = elect(&cluster, Spans::from(options.timing), async move {
        // An error means that nobody can say stop any more, hence: stop.
        drop(ending.wait_for(|stage| *stage != Stage::Running).await);
    });
    let mut taken = Vec::with_capacity(TOGETHER);
    let mut workers = Workers::new(options.timing);
    let read_every = workers.read_every();
    let source = Source {
        client: cluster.client.clone(),
        system: Arc::clone(&cluster.namespace),
        streaming,
        read_every,
        late_after: workers.late_after(),
    };
    let mut leases = feed::read_leases(source.clone(), &mut tasks);
    loop {
        // Not leading: only looks.
        figures.leading(false);
        let term = loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {
                    health.set_ready(false);
                    drop(election.await);
                    return Ok(());
                }
                ended = &mut election => return Err(election_over(ended)),
                Ok(()) = claims.changed() => {}
                read = leases.recv() => {
                    let Some((at, seen)) = read else { return Err(Error::Watches) };
                    workers.hear(at, seen);
                }
                count = changes.recv_many(&mut taken, TOGETHER) => {
                    if count == 0 {
                        return Err(Error::Watches);
                    }
                    take(&mut driver, &mut taken);
                }
                () = tokio::time::sleep(read_every) => {}
            }
            workers.look(boot_now());
            driver.tell_sight(workers.take_notices());
            health.beat();
            health.set_ready(driver.listings.complete());
            let claim = claims.borrow_and_update().clone();
            if claim.is_mine(boot_now()) && driver.listings.complete() {
                break claim.term;
            }
        };
        let count = tokio::select! {
            count = shards(&cluster, options.shards) => count,
            () = stopped(&mut stop) => continue,
        };
        let shards = match count {
            Ok(shards) => shards,
            Err(error) => {
                tracing::warn!(reason = error.reason(), "the shards cannot be counted: {}", causes(&error));
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        tracing::info!(shards, "leading");
        figures.leading(true);
        let mut lead = Lead::new(Config { shards, timing: options.timing }, workers);
        let mut feeding = JoinSet::new();
        let mut heard = feed::start(&source, &mut feeding);
        let mut seen = Vec::with_capacity(TOGETHER);
        driver.begin();
        let leads = |claim: &Claim| claim.term == term && claim.is_mine(boot_now());
        while leads(&claims.borrow_and_update()) && *stop.borrow() == Stage::Running {
            let next = driver.round(&mut lead).min(Instant::now() + BEAT);
            health.beat();
            tokio::select! {
                biased;
                () = stopped(&mut stop) => {}
                ended = &mut election => return Err(election_over(ended)),
                Ok(()) = claims.changed() => {}
                ending = lead.ended() => driver.ended(&mut lead, ending),
                read = leases.recv() => {
                    let Some((at, seen)) = read else { return Err(Error::Watches) };
                    lead.work.hear(at, seen);
                }
                count = heard.recv_many(&mut seen, TOGETHER) => {
                    if count == 0 {
                        return Err(Error::Watches);
                    }
                    for seen in seen.drain(..) {
                        lead.work.hear(boot_now(), seen);
                    }
                }
                count = changes.recv_many(&mut taken, TOGETHER) => {
                    if count == 0 {
                        return Err(Error::Watches);
                    }
                    take(&mut driver, &mut taken);
                }
                () = tokio::time::sleep_until(next) => {}
            }
        }
        workers = lead.end();
        tracing::info!("no longer leading");
    }
}

fn take(driver: &mut Driver, taken: &mut Vec<watch::Change>) {
    for change in taken.drain(..) {
        driver.listings.take(&mut driver.view, change);
    }
}

async fn stopped(stop: &mut Receiver<Stage>) {
    drop(stop.wait_for(|stage| *stage != Stage::Running).await);
}

fn election_over(ended: Result<(), tokio::task::JoinError>) -> Error {
    if let Err(error) = ended {
        tracing::error!("the election ended badly: {error}");
    }
    Error::Election
}

/// Asks the API server what it can do, until it answers.
async fn streaming(cluster: &Cluster, stop: &mut Receiver<Stage>, health: &Health) -> bool {
    loop {
        match within(REQUEST_DEADLINE, cluster.client.apiserver_version()).await {
            Ok(version) => return watch::lists_by_streams(&version.major, &version.minor),
            Err(ApiError::Forbidden { .. } | ApiError::NotFound { .. }) => return false,
            Err(error) => {
                tracing::warn!(reason = error.reason(), "the API server cannot be asked: {}", causes(&error));
            }
        }
        health.beat();
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = stopped(stop) => return false,
        }
    }
}

/// How many shards there are, or shall be: the first start decides. Every
/// shard says it, since that start may have been cut short.
async fn shards(cluster: &Cluster, wanted: u16) -> Result<u16, ApiError> {
    let api: Api<RpopShard> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let there = within(REQUEST_DEADLINE, api.list_metadata(&ListParams::default())).await?;
    let mut said = None;
    let mut most = None;
    for shard in &there.items {
        let Some(id) = shard.metadata.name.as_deref().and_then(ShardId::parse) else { continue };
        most = most.max(Some(id.0.saturating_add(1)));
        let annotation = shard.metadata.annotations.as_ref().and_then(|all| all.get(SHARDS));
        said = said.max(annotation.and_then(|text| text.parse::<u16>().ok()));
    }
    let Some(count) = said.or(most) else { return Ok(wanted) };
    if count != wanted {
        tracing::warn!(
            there = count,
            wanted,
            "there are shards already: their number stays as it is; another one takes a new installation"
        );
    }
    Ok(count.max(1))
}
