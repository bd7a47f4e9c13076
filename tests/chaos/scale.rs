//! Ten thousand records and ten workers on one machine: what it costs in the
//! steady state. `make scale`, with the release build.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::chaos::fleet::{Fleet, Process, Size};

const SIZE: Size = Size {
    records: 10_000,
    hosts: 400,
    shards: 256,
    poll_every: Duration::from_mins(5),
    timing: "default",
    dead_after: Duration::from_secs(30),
    host_connections: 20,
};
const WORKERS: usize = 10;
/// As long as the interval: each record is polled once.
const MEASURED: Duration = SIZE.poll_every;

/// Samples of a metrics page: each series with its labels, as printed.
struct Page(Vec<(String, f64)>);

impl Page {
    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        Self(
            samples
                .filter_map(|line| line.rsplit_once(' '))
                .filter_map(|(series, value)| Some((series.to_owned(), value.parse().ok()?)))
                .collect(),
        )
    }

    /// The sum of the series of that name that have all these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is = |series: &str| {
            series.split('{').next() == Some(name) && labels.iter().all(|label| series.contains(label))
        };
        self.0.iter().filter(|(series, _)| is(series)).map(|(_, value)| value).sum()
    }
}

fn of_process(process: &Process) -> Page {
    let fetch = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", process.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    Page::parse(&fetch().expect("metrics"))
}

fn of_server(fleet: &Fleet) -> Page {
    Page::parse(&fleet.server.kubectl(&["get", "--raw", "/metrics"]).succeeds())
}

/// The least bound below which that part of the observations are, over all
/// workers, since `before`.
fn quantile(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, part: f64) -> f64 {
    let mut counts: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| {
            let bound = bound.parse().unwrap_or(f64::INFINITY);
            (
                bound,
                count
                    - before
                        .get(&bound.to_string())
                        .or_else(|| before.get("+Inf").filter(|_| bound.is_infinite()))
                        .copied()
                        .unwrap_or(0.0),
            )
        })
        .collect();
    counts.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = counts.last().map_or(0.0, |(_, count)| *count);
    counts.iter().find(|(_, count)| *count >= all * part).map_or(f64::NAN, |(bound, _)| *bound)
}

/// Counts by upper bound.
fn lags(fleet: &Fleet) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for worker in &fleet.workers {
        for (series, value) in of_process(worker).0 {
            let Some(rest) = series.strip_prefix("rpop_poll_lag_seconds_bucket{") else { continue };
            let Some((_, bound)) = rest.split_once("le=\"") else { continue };
            let bound = bound.split('"').next().unwrap_or_default();
            let bound = bound.parse::<f64>().map_or_else(|_| bound.to_owned(), |bound| bound.to_string());
            *sums.entry(bound).or_insert(0.0) += value;
        }
    }
    sums
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "twelve minutes and the release build: make scale"]
async fn ten_thousand_records() {
    let Some(mut fleet) = Fleet::new(SIZE).await else { return };
    let since = Instant::now();
    fleet.add_controller().await;
    fleet.add_controller().await;
    for _ in 0..WORKERS {
        fleet.add_worker().await;
    }
    let placed = fleet.settle(Duration::from_mins(2)).await;
    let limit = SIZE.poll_every * 2 + Duration::from_mins(1);
    while fleet.drops.untouched() > 0 {
        let untouched = fleet.drops.untouched();
        assert!(since.elapsed() < limit, "{untouched} maildrops are never polled\n{}", fleet.logs());
        sleep(Duration::from_secs(1)).await;
    }
    let first_round = since.elapsed();
    // At the start all are polled at once and no record has a result: the
    // steady state is what follows when each has found its own rhythm.
    sleep((SIZE.poll_every + Duration::from_mins(1)).saturating_sub(since.elapsed())).await;
    drop(fleet.drops.take_gaps());
    let (before, lag_before, logins) = (of_server(&fleet), lags(&fleet), fleet.drops.logins());
    let measured = Instant::now();
    sleep(MEASURED).await;
    let span = measured.elapsed().as_secs_f64();
    let (after, lag_after) = (of_server(&fleet), lags(&fleet));
    let polls = (fleet.drops.logins() - logins) as f64 / span;
    let rate = |name: &str, labels: &[&str]| (after.sum(name, labels) - before.sum(name, labels)) / span;
    let writes = |resource: &str| -> f64 {
        let resource = format!("resource=\"{resource}\"");
        let verbs = ["POST", "PUT", "PATCH", "APPLY", "DELETE"].map(|verb| format!("verb=\"{verb}\""));
        verbs.iter().map(|verb| rate("apiserver_request_total", &[verb, &resource])).sum()
    };
    println!("| 10 000 records every 5 min, 10 workers | |\n|---|---:|");
    println!("| all shards placed, s | {:.1} |", placed.as_secs_f64());
    println!("| every record polled once, s | {:.0} |", first_round.as_secs_f64());
    println!("| polls/s | {polls:.1} |");
    let mut all = 0.0;
    for resource in ["leases", "rpopshards", "rpopworkslices", "rpoprecords", "configmaps", "events"] {
        let writes = writes(resource);
        all += writes;
        println!("| writes/s, {resource} | {writes:.2} |");
    }
    println!("| writes/s, all of these | {all:.1} |");
    let reads: f64 = ["GET", "LIST"]
        .iter()
        .map(|verb| rate("apiserver_request_total", &[&format!("verb=\"{verb}\"")]))
        .sum();
    println!("| reads/s | {reads:.1} |");
    println!("| watch events/s | {:.1} |", rate("apiserver_watch_events_total", &[]));
    println!("| watch traffic, KiB/s | {:.1} |", rate("apiserver_watch_events_sizes_sum", &[]) / 1024.0);
    let mib =
        |process: &Process| (process.resident().0 as f64 / 1024.0, process.resident().1 as f64 / 1024.0);
    let most = |processes: &[Process]| {
        processes
            .iter()
            .map(mib)
            .fold((0.0_f64, 0.0_f64), |most, here| (most.0.max(here.0), most.1.max(here.1)))
    };
    let (controller, worker) = (most(&fleet.controllers), most(&fleet.workers));
    println!("| controller, resident (peak), MiB | {:.1} ({:.1}) |", controller.0, controller.1);
    println!("| worker, resident (peak), MiB | {:.1} ({:.1}) |", worker.0, worker.1);
    let (median, p99) = (quantile(&lag_before, &lag_after, 0.5), quantile(&lag_before, &lag_after, 0.99));
    println!("| lateness, s: half below, p99 below | {median}, {p99} |");
    assert!(fleet.drops.doubles().is_empty(), "two sessions at one maildrop: {:?}", fleet.drops.doubles()[0]);
    assert!(all <= 100.0, "{all} writes a second, at most 100 may be");
    assert!(p99 <= 30.0, "the lateness is {p99} s, at most 30 may be");
}
