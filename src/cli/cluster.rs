//! `rpop controller`, `rpop worker` and `rpop combined`: the processes of a
//! cluster.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr as _;
use std::sync::Arc;

use clap::Args;
use tokio::sync::watch;

use super::{Exit, Listen, parse_listen, process};
use crate::domain::shards::timing::Timing;
use crate::domain::text::causes;
use crate::engine::ports::Stage;
use crate::k8s::client::Cluster;
use crate::telemetry::http::{self, Health};
use crate::telemetry::logs::CRASH;
use crate::telemetry::metrics::Metrics;
use crate::{controller, shutdown, worker};

/// Where metrics are served in a pod when nothing is said.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9465);

/// What the processes of a cluster have in common. They find the API server by
/// KUBECONFIG or as a pod, and are told who they are by POD_NAME and
/// POD_NAMESPACE (without it: the namespace of the kubeconfig's context, or the
/// pod's own).
#[derive(Clone, Debug, Args)]
pub(crate) struct Process {
    /// Where /metrics, /livez and /readyz are served, or off
    /// [default: 0.0.0.0:9465]
    #[arg(long, env = "RPOP_LISTEN", value_name = "ADDR", value_parser = parse_listen)]
    listen: Option<Listen>,
    /// How soon a worker that is gone is replaced: default (30 s) or fast (8 s,
    /// up to a hundred workers); the same for all processes
    #[arg(long, env = "RPOP_TIMING", value_name = "TIMING", default_value = "default", value_parser = parse_timing)]
    timing: Timing,
    /// Shards to divide the records into, fixed when the controller first
    /// runs: 256, or 1024 for a large installation
    #[arg(long, env = "RPOP_SHARDS", value_name = "COUNT", default_value = "256", value_parser = clap::value_parser!(u16).range(1..=4096))]
    shards: u16,
}

fn parse_timing(text: &str) -> Result<Timing, String> {
    Timing::from_str(text).map_err(|error| error.to_string())
}

/// Which of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Makes work items of records and gives shards to workers.
    Controller,
    /// Takes shards and polls.
    Worker,
    /// Both, in one process.
    Combined,
}

type Failure = (Exit, String);

/// Runs until a signal, or until the process had better be another one.
pub(super) async fn run(part: Part, arguments: Process) -> Exit {
    match Box::pin(prepared(part, arguments)).await {
        Ok(()) => Exit::Good,
        Err((exit, message)) => {
            tracing::error!(target: CRASH, "{message}");
            exit
        }
    }
}

async fn prepared(part: Part, arguments: Process) -> Result<(), Failure> {
    let stop = shutdown::listen().map_err(|error| misconfigured(&error))?;
    arguments.timing.check().map_err(|error| misconfigured(&error))?;
    let cluster = Cluster::connect().await.map_err(|error| misconfigured(&error))?;
    let metrics = Arc::new(Metrics::new());
    let health = Arc::new(Health::default());
    process::raise_file_limit_far();
    let server = match arguments.listen.unwrap_or(Listen::At(LISTEN)) {
        Listen::At(address) => {
            let listener = http::bind(address).await.map_err(|error| misconfigured(&error))?;
            Some(tokio::spawn(http::serve(listener, Arc::clone(&metrics), Arc::clone(&health))))
        }
        Listen::Off => None,
    };
    let Process { timing, shards, .. } = arguments;
    let leads = controller::Options { timing, shards };
    let works = worker::Options { timing, host_name: process::host_name() };
    let result = match part {
        Part::Controller => {
            controller::run(cluster, leads, stop, metrics, health).await.map_err(|error| failed(&error))
        }
        Part::Worker => {
            worker::run(cluster, works, stop, metrics, health).await.map_err(|error| failed(&error))
        }
        Part::Combined => {
            // Each has a health of its own, and the process that of both.
            let other = Arc::new(Health::default());
            health.join(Arc::clone(&other));
            let (end, ended) = watch::channel(*stop.borrow());
            let controller = {
                let ended = ended.clone();
                let (cluster, metrics) = (cluster.clone(), Arc::clone(&metrics));
                async {
                    controller::run(cluster, leads, ended, metrics, other)
                        .await
                        .map_err(|error| failed(&error))
                }
            };
            let worker = async {
                worker::run(cluster, works, ended, metrics, health).await.map_err(|error| failed(&error))
            };
            Box::pin(together(worker, controller, stop, end)).await
        }
    };
    if let Some(server) = server {
        server.abort();
    }
    result
}

/// Runs both until both have ended. When one ends by itself the other is told
/// to end, too: half of the process is of no use.
async fn together(
    worker: impl Future<Output = Result<(), Failure>>,
    controller: impl Future<Output = Result<(), Failure>>,
    mut stop: watch::Receiver<Stage>,
    end: watch::Sender<Stage>,
) -> Result<(), Failure> {
    let (mut worker, mut controller) = (std::pin::pin!(worker), std::pin::pin!(controller));
    let (mut worked, mut controlled, mut speaks) = (None, None, true);
    loop {
        tokio::select! {
            result = &mut worker, if worked.is_none() => worked = Some(result),
            result = &mut controller, if controlled.is_none() => controlled = Some(result),
            changed = stop.changed(), if speaks => {
                speaks = changed.is_ok();
                let stage = *stop.borrow_and_update();
                end.send_if_modified(|now| std::mem::replace(now, stage.max(*now)) < stage);
                continue;
            }
        }
        match (worked.take(), controlled.take()) {
            (Some(worked), Some(controlled)) => return worked.and(controlled),
            (one, other) => (worked, controlled) = (one, other),
        }
        end.send_if_modified(|now| std::mem::replace(now, (*now).max(Stage::Draining)) == Stage::Running);
    }
}

fn misconfigured(error: &(dyn std::error::Error + 'static)) -> Failure {
    (Exit::Misconfigured, causes(error))
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Failure {
    (Exit::Failed, causes(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn until_told(mut stop: watch::Receiver<Stage>) -> Result<(), Failure> {
        stop.wait_for(|stage| *stage >= Stage::Draining).await.ok();
        Ok(())
    }

    #[tokio::test]
    async fn half_of_a_process_is_of_no_use() {
        let (_signal, stop) = watch::channel(Stage::Running);
        let (end, ended) = watch::channel(Stage::Running);
        let lost = async { Err((Exit::Failed, "lost".to_owned())) };
        let result = together(lost, until_told(ended), stop, end).await;
        assert_eq!(result, Err((Exit::Failed, "lost".to_owned())));
    }

    #[tokio::test]
    async fn a_signal_ends_both() {
        let (signal, stop) = watch::channel(Stage::Running);
        let (end, ended) = watch::channel(Stage::Running);
        signal.send_replace(Stage::Draining);
        let result = together(until_told(ended.clone()), until_told(ended), stop, end).await;
        assert_eq!(result, Ok(()));
    }
}
