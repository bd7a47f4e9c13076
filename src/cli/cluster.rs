//! `rpop controller`, `rpop worker` and `rpop combined`: the processes of a
//! cluster.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr as _;
use std::sync::Arc;

use clap::Args;

use super::{Exit, Listen, parse_listen, process};
use crate::domain::shards::timing::Timing;
use crate::k8s::client::Cluster;
use crate::telemetry::http::{self, Health};
use crate::telemetry::logs::CRASH;
use crate::telemetry::metrics::Metrics;
use crate::{shutdown, worker};

/// Where metrics are served in a pod when nothing is said.
const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9465);

/// What the processes of a cluster have in common. They find the API server by
/// KUBECONFIG or as a pod, and are told who they are by POD_NAME and
/// POD_NAMESPACE.
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
    /// Takes shards and polls.
    Worker,
}

type Failure = (Exit, String);

/// Runs until a signal, or until the process had better be another one.
pub(super) async fn run(part: Part, arguments: Process) -> Exit {
    match prepared(part, arguments).await {
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
    let result = match part {
        Part::Worker => {
            let options = worker::Options { timing: arguments.timing, host_name: process::host_name() };
            worker::run(cluster, options, stop, metrics, health).await.map_err(|error| failed(&error))
        }
    };
    if let Some(server) = server {
        server.abort();
    }
    result
}

fn misconfigured(error: &dyn std::error::Error) -> Failure {
    (Exit::Misconfigured, chain(error))
}

fn failed(error: &dyn std::error::Error) -> Failure {
    (Exit::Failed, chain(error))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
