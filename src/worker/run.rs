//! A worker's parts, put together.

use std::sync::Arc;
use std::time::Duration;

use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::driver::{Driver, Input, Parts as DriverParts};
use super::fence::Fence;
use super::gate::Gate;
use super::recall::Recalling;
use super::report::Reporter;
use super::roster::Roster;
use super::{identity, mend, settings, watching};
use crate::api::RpopShard;
use crate::domain::shards::holding::{Exit, Member};
use crate::domain::shards::timing::{Timing, TimingError};
use crate::domain::work::RecordKey;
use crate::engine::Engine;
use crate::engine::owed::Owing;
use crate::engine::ports::{LedgerStore, Secrets, Stage};
use crate::engine::sink::{MailPool, Sinks};
use crate::k8s::client::{Cluster, boot_now};
use crate::k8s::events::Events;
use crate::k8s::lease::Membership;
use crate::k8s::ledger::{ConfigMapLedgers, Holdings, Owner};
use crate::k8s::secrets::ApiSecrets;
use crate::k8s::status::StatusWriter;
use crate::k8s::tokens::SecretTokens;
use crate::net::Connector;
use crate::oauth::Tokens;
use crate::run::status::Snapshot;
use crate::run::{DRAIN_LIMIT, Parts, Relay, Run, Wall};
use crate::telemetry::http::Health;
use crate::telemetry::logs::CRASH;
use crate::telemetry::metrics::Metrics;

/// What is dropped is given so long to be gone.
const LAST: Duration = Duration::from_secs(2);
/// The exit code of a process that could not close its sessions in time.
const FENCED: i32 = 3;

/// How a worker works.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long it counts as alive, and how soon it stops by itself.
    pub timing: Timing,
    /// For EHLO and trace headers.
    pub host_name: Arc<str>,
}

/// Why a worker ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The timing does not exclude two workers at one mailbox.
    #[error("the timing cannot be used")]
    Timing(#[source] TimingError),
    /// Others may poll what this worker held.
    #[error("this worker's lease is lost: others may poll what it held")]
    Lost,
    /// It was told to end, and some shards are left for the leader to take.
    #[error("some shards could not be handed over in time: the controller takes them")]
    LeftBehind,
    /// A thread could not be started.
    #[error("no thread can be started")]
    Thread(#[source] std::io::Error),
    /// A part of the worker has ended by itself.
    #[error("a defect of RPOP ended the polling; the log says where. Please report it")]
    Defect,
}

impl Error {
    /// Whether a new process may do better.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Timing(_))
    }

    /// A word of a closed list, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timing(_) => "timing",
            Self::Lost => "lost",
            Self::LeftBehind => "left_behind",
            Self::Thread(_) => "thread",
            Self::Defect => "defect",
        }
    }
}

impl Holdings for Roster {
    fn owner(&self, key: &RecordKey) -> Option<Owner> {
        let right = self.right(key)?;
        Some(Owner { uid: right.uid.to_string(), epoch: right.epoch, shard: right.shard })
    }
}

/// Takes shards and polls their records until `stop` has it hand them over, or
/// until its lease is lost.
///
/// # Errors
/// See [`Error`]; each of them ends the process.
pub async fn run(
    cluster: Cluster,
    options: Options,
    stop: watch::Receiver<Stage>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
) -> Result<(), Error> {
    options.timing.check().map_err(Error::Timing)?;
    let client = &cluster.client;
    // All of them end with this function.
    let mut tasks = JoinSet::new();

    let fence = Fence::new(Arc::new(boot_now), options.timing);
    let watchdog = fence.watch(|| {
        tracing::error!(target: CRASH, "sessions are open although this worker no longer counts as alive: the process ends");
        std::process::exit(FENCED);
    });
    let _watchdog = watchdog.map_err(Error::Thread)?;
    let member = Member::new(cluster.me.clone(), options.timing, DRAIN_LIMIT);
    let roster = Roster::new(member, fence.clone());
    let events = Events::start(client.clone(), "rpop-worker", &cluster.pod);
    let (writer, writing) = StatusWriter::new(client.clone(), events.clone());
    tasks.spawn(writing);
    let secrets = ApiSecrets::new(client.clone());
    let (ailing, ill) = mpsc::channel(1024);
    let (again, well) = mpsc::channel(64);
    tasks.spawn(mend::look_after(secrets.clone(), roster.clone(), ill, again));
    let (reporter, failing) = Reporter::new(roster.clone(), writer.clone(), ailing);

    let (observer, answers) = Relay::new(Arc::clone(&metrics), None);
    let ledgers =
        ConfigMapLedgers::new(client.clone(), Arc::new(roster.clone())).with_shards_in(&cluster.namespace);
    let ledgers = Arc::new(Owing::new(Arc::new(ledgers), roster.clone()));
    let (desired, mut wishes) = mpsc::channel(1);
    let (end, ended) = watch::channel(Stage::Running);
    let shards: Api<RpopShard> = Api::namespaced(client.clone(), &cluster.namespace);
    let tokens = SecretTokens::new(client.clone(), &cluster.namespace);
    let polls = (Arc::clone(&metrics), Arc::clone(&health), Arc::clone(&reporter), roster.clone());
    let records = client.clone();
    let mut polling = tokio::spawn(async move {
        let ((metrics, health, reporter, roster), client) = (polls, records);
        // The first wish comes when the settings are known.
        let Some(first) = wishes.recv().await else { return };
        let trace_key = identity::trace_key(&shards).await;
        let engine = engine(
            secrets.clone(),
            tokens,
            Arc::clone(&ledgers) as _,
            observer,
            trace_key,
            options.host_name,
        );
        let gate = Gate::new(Arc::new(engine), roster.clone(), ledgers);
        let parts = Parts {
            poller: Arc::new(Recalling::new(gate, client, secrets, roster)),
            metrics,
            health,
            audience: Arc::clone(&reporter) as _,
            statuses: reporter,
            past: Snapshot::default(),
            heard: answers,
            wall: Wall::default(),
        };
        Run::new(parts, first, false).go(ended, wishes).await;
    });

    let (words, spoken) = mpsc::channel(2);
    let (renewed, renewals) = mpsc::channel(8);
    let membership = Membership::new(&cluster, options.timing).spawn(spoken, renewed);
    let (inputs, coming) = mpsc::channel(256);
    let shards: Api<DeserializeGuard<RpopShard>> = Api::namespaced(client.clone(), &cluster.namespace);
    let shown = inputs.clone();
    tasks.spawn(async move {
        watching::watch(shards, watcher::Config::default(), shown, |shown| Input::Shards(Box::new(shown)))
            .await;
    });
    let settings = settings::follow(client.clone(), Arc::clone(&metrics));
    tracing::info!("rpop {} works as {}", env!("CARGO_PKG_VERSION"), cluster.me);
    let driver = Driver::new(
        DriverParts {
            cluster,
            roster,
            reporter,
            writer,
            events,
            metrics,
            health: Arc::clone(&health),
            settings,
            words,
            desired,
            failing,
        },
        inputs,
    );
    let result = tokio::select! {
        exit = driver.go(coming, renewals, well, stop) => match exit {
            Exit::Left => Ok(()),
            Exit::LeftBehind => Err(Error::LeftBehind),
            Exit::Lost => Err(Error::Lost),
        },
        _ = &mut polling => Err(Error::Defect),
    };
    health.set_ready(false);
    fence.close();
    end.send_replace(Stage::Aborting);
    if !polling.is_finished() && tokio::time::timeout(LAST, &mut polling).await.is_err() {
        polling.abort();
    }
    membership.abort();
    result
}

fn engine(
    secrets: ApiSecrets,
    tokens: SecretTokens,
    ledgers: Arc<dyn LedgerStore>,
    observer: Relay,
    trace_key: [u8; 16],
    host_name: Arc<str>,
) -> Engine {
    let connector = Arc::new(Connector::new());
    let secrets: Arc<dyn Secrets> = Arc::new(secrets);
    let mail = MailPool::new(Arc::clone(&connector), Arc::clone(&secrets), Arc::clone(&host_name));
    let sink = Arc::new(Sinks::new(Arc::new(mail), None));
    let tokens = Tokens::new(Arc::clone(&connector), Arc::clone(&secrets), Arc::new(tokens));
    let observer = Arc::new(observer);
    Engine { connector, secrets, tokens, ledgers, sink, observer, host_name, trace_key }
}
