//! `rpop run`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::process;
use super::progress::Progress;
use super::{Exit, Run as Arguments, table};
use crate::domain::work::LogLevel;
use crate::engine::Engine;
use crate::engine::owed::{Always, Owing};
use crate::engine::ports::{Observer, Stage};
use crate::local::identity;
use crate::local::ledger::FileLedgers;
use crate::local::manifests::{Configuration, Diagnostic, MemorySecrets, Severity, Watcher};
use crate::local::state::{StateDir, StateError};
use crate::local::status::StatusStore;
use crate::local::tokens::FileTokens;
use crate::run::{Audience, Desired, Nobody, Parts, Relay, Run, Wall};
use crate::shutdown;
use crate::telemetry::http::{self, Health};
use crate::telemetry::logs::{self, CRASH};
use crate::telemetry::metrics::Metrics;

/// How often manifests are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Runs until a signal, or once.
pub(super) async fn run(arguments: Arguments) -> Exit {
    match prepared(arguments).await {
        Ok(exit) => exit,
        Err((exit, message)) => {
            tracing::error!(target: CRASH, "{message}");
            exit
        }
    }
}

type Failure = (Exit, String);

/// The command line, the files or the state folder are to blame.
fn misconfigured(error: &(impl std::fmt::Display + ?Sized)) -> Failure {
    (Exit::Misconfigured, error.to_string())
}

/// Nothing to do is rarely what was meant.
pub(super) fn no_manifests(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    format!("there are no manifests (*.yaml, *.yml, *.json) in {}", paths.join(", "))
}

async fn prepared(arguments: Arguments) -> Result<Exit, Failure> {
    let stop = shutdown::listen().map_err(|error| misconfigured(&error))?;
    let paths = arguments.manifests.file.clone();
    let mut watcher = if arguments.once {
        None
    } else {
        Some(Changes::new(&paths).map_err(|error| misconfigured(&error))?)
    };
    let mut configuration = load(paths.clone()).await?;
    let metrics = Arc::new(Metrics::new());
    let wrong = configuration.has_errors();
    metrics.configured(!wrong);
    logs::follow(configuration.settings.log_level);
    tell(&configuration.diagnostics);
    if configuration.records.is_empty() && wrong && (arguments.once || !configuration.waits()) {
        return Err(misconfigured(
            "no record can be polled: mend the manifests (`rpop check -f …` explains)",
        ));
    }
    if configuration.files.is_empty() {
        let nothing = no_manifests(&paths);
        if arguments.once {
            return Err(misconfigured(&nothing));
        }
        tracing::warn!("{nothing}: waiting for some");
    }
    if configuration.settings_missing && arguments.once {
        return Err(misconfigured("RpopSettings has errors, so nothing is polled: mend it"));
    }
    let state = StateDir::open(arguments.state.path()).map_err(|error| {
        let exit = if matches!(error, StateError::InUse { .. }) { Exit::Failed } else { Exit::Misconfigured };
        (exit, error.to_string())
    })?;
    let state = Arc::new(state);
    let health = Arc::new(Health::default());
    let server = match arguments.address() {
        Some(address) => {
            let listener = http::bind(address).await.map_err(|error| misconfigured(&error))?;
            tracing::info!("metrics are served at http://{address}/metrics");
            Some(tokio::spawn(http::serve(listener, Arc::clone(&metrics), Arc::clone(&health))))
        }
        None => None,
    };
    if let (true, Some(watcher)) = (configuration.settings_missing, &mut watcher) {
        let Some(good) = good_settings(&paths, configuration, watcher, &health, stop.clone()).await else {
            return Ok(Exit::Good);
        };
        configuration = good;
        metrics.configured(!configuration.has_errors());
        logs::follow(configuration.settings.log_level);
    }
    process::raise_file_limit(configuration.settings.processors);

    let progress = arguments.once.then(|| Arc::new(Progress::new()));
    if progress.as_ref().is_some_and(|progress| progress.visible()) {
        // The bars and the table say the rest.
        logs::set_default(LogLevel::Failures, configuration.settings.log_level);
    }
    let secrets = configuration.secrets.clone();
    let watching = progress.clone().map(|progress| progress as Arc<dyn Observer>);
    let (observer, heard) = Relay::new(Arc::clone(&metrics), watching);
    let ledgers = Arc::new(Owing::new(Arc::new(FileLedgers::new(Arc::clone(&state))), Always));
    let trace_key = identity::trace_key(&state).map_err(|error| misconfigured(&error))?;
    let engine: Engine = process::engine(
        secrets.clone(),
        FileTokens::new(state.path()),
        ledgers,
        Arc::new(observer),
        trace_key,
    );
    let statuses = StatusStore::new(Arc::clone(&state));
    let past = statuses.load_all().await;
    if let Some(progress) = &progress {
        for (key, problem) in &configuration.problems {
            progress.refused(key, problem.code, &problem.message);
        }
    }
    let audience: Arc<dyn Audience> =
        progress.clone().map_or_else(|| Arc::new(Nobody) as _, |progress| progress as _);
    let parts = Parts {
        poller: Arc::new(engine),
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
        audience,
        statuses: Arc::new(statuses.clone()),
        past,
        heard,
        wall: Wall::default(),
    };
    let desired = Desired {
        settings: Arc::new(configuration.settings.clone()),
        items: configuration.records.clone(),
        retry: HashSet::new(),
        problems: configuration.problems.clone(),
        ..Desired::default()
    };
    let unpolled = configuration.problems.len() as u64;
    tracing::info!(
        "rpop {} polls {}, state in {}",
        env!("CARGO_PKG_VERSION"),
        table::number(desired.items.len() as u64, "record"),
        state.path().display()
    );
    let started = Instant::now();
    let run = Run::new(parts, desired, arguments.once);
    health.set_ready(true);
    let (changes, desired_later) = mpsc::channel(1);
    let reload = watcher.map(|watcher| {
        let reload = Reload { paths, secrets, metrics, changes };
        tokio::spawn(reload.run(watcher, configuration, stop.clone()))
    });
    let mut summary = run.go(stop, desired_later).await;
    if let Some(reload) = reload {
        reload.abort();
    }
    // All statuses are written before the lock is given up.
    if let Err(error) = statuses.flush().await {
        tracing::warn!("statuses are not written: {error}");
    }
    if let Some(server) = server {
        server.abort();
    }
    tracing::info!("{} succeeded, {} failed", table::number(summary.good, "poll"), summary.failed);
    let Some(progress) = progress else { return Ok(Exit::Good) };
    progress.close();
    summary.failed += unpolled;
    super::print(progress.summary(summary, started.elapsed()).as_bytes());
    Ok(match summary {
        _ if wrong => Exit::Misconfigured,
        summary if summary.failed > 0 || summary.refused > 0 || summary.ended_early => Exit::Failed,
        _ => Exit::Good,
    })
}

/// Waits until `RpopSettings` can be read: by the defaults in its place limits
/// of the user's own would fall away. `None` when a signal came first.
async fn good_settings(
    paths: &[PathBuf],
    mut before: Configuration,
    watcher: &mut Changes,
    health: &Health,
    mut stop: watch::Receiver<Stage>,
) -> Option<Configuration> {
    tracing::error!("RpopSettings has errors: nothing is polled until it is mended");
    let mut beat = tokio::time::interval(Duration::from_secs(5));
    loop {
        tokio::select! {
            () = watcher.changed() => {}
            _ = beat.tick() => {
                health.beat();
                continue;
            }
            _ = stop.wait_for(|stage| *stage > Stage::Running) => return None,
        }
        match load(paths.to_vec()).await {
            Ok(mut now) => {
                now.keep_from(&before);
                tell(now.diagnostics.iter().filter(|finding| !before.diagnostics.contains(finding)));
                if !now.settings_missing {
                    return Some(now);
                }
                before = now;
            }
            Err((_, message)) => tracing::error!("{message}"),
        }
    }
}

/// Reads manifests off the runtime's threads.
pub(super) async fn load(paths: Vec<PathBuf>) -> Result<Configuration, Failure> {
    match tokio::task::spawn_blocking(move || Configuration::load(&paths)).await {
        Ok(loaded) => loaded.map_err(|error| misconfigured(&error)),
        Err(_) => Err((Exit::Failed, "a defect of RPOP ended the reading of the manifests".to_owned())),
    }
}

/// Logs what is to be said of the manifests.
fn tell<'a>(findings: impl IntoIterator<Item = &'a Diagnostic>) {
    for finding in findings {
        let line = finding.line();
        match (finding.severity, &finding.record) {
            (Severity::Error, Some(record)) => tracing::error!(%record, "{line}"),
            (Severity::Error, None) => tracing::error!("{line}"),
            (Severity::Warning, Some(record)) => tracing::warn!(%record, "{line}"),
            (Severity::Warning, None) => tracing::warn!("{line}"),
            (Severity::Note, _) => tracing::info!("{line}"),
        }
    }
}

/// When manifests are to be read again: when they differ, or somebody says so.
struct Changes {
    watcher: Watcher,
    hangup: Signal,
}

impl Changes {
    /// From now on SIGHUP does not end the process.
    fn new(paths: &[PathBuf]) -> std::io::Result<Self> {
        let watcher = Watcher::new(paths.to_vec(), LOOK);
        Ok(Self { watcher, hangup: signal(SignalKind::hangup())? })
    }

    /// Waits. Cancel-safe.
    async fn changed(&mut self) {
        tokio::select! {
            () = self.watcher.changed() => {}
            Some(()) = self.hangup.recv() => tracing::info!("SIGHUP: the manifests are read again"),
        }
    }
}

/// Takes changed manifests up.
struct Reload {
    paths: Vec<PathBuf>,
    secrets: MemorySecrets,
    metrics: Arc<Metrics>,
    changes: mpsc::Sender<Desired>,
}

impl Reload {
    async fn run(self, mut watcher: Changes, mut before: Configuration, mut stop: watch::Receiver<Stage>) {
        loop {
            tokio::select! {
                () = watcher.changed() => {}
                _ = stop.wait_for(|stage| *stage > Stage::Running) => return,
            }
            let mut now = match load(self.paths.clone()).await {
                Ok(now) => now,
                Err((_, message)) => {
                    self.metrics.configured(false);
                    tracing::error!("{message}; what was read before stays in force");
                    continue;
                }
            };
            now.keep_from(&before);
            // What was said before is not said again at each edit.
            tell(now.diagnostics.iter().filter(|finding| !before.diagnostics.contains(finding)));
            self.metrics.configured(!now.has_errors());
            let retry = now
                .records
                .iter()
                .filter(|item| self.secrets.differs(&now.secrets, item))
                .map(|item| item.key.clone())
                .collect();
            self.secrets.replace(&now.secrets);
            let records = table::number(now.records.len() as u64, "record");
            tracing::info!("the manifests have changed: {records}");
            let desired = Desired {
                settings: Arc::new(now.settings.clone()),
                items: now.records.clone(),
                retry,
                problems: now.problems.clone(),
                ..Desired::default()
            };
            before = now;
            if self.changes.send(desired).await.is_err() {
                return;
            }
        }
    }
}
