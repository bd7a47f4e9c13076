//! `process_*` metrics in the manner of Prometheus' client libraries, read
//! from `/proc`; where there is no `/proc` they are left out.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge};

/// Clock ticks a second in what `/proc` shows: USER_HZ, 100 on every
/// architecture that Rust's standard library supports on Linux.
const TICKS: f64 = 100.0;

pub(super) struct Process {
    cpu: Counter,
    resident: Gauge,
    virtual_memory: Gauge,
    open_files: Gauge,
    max_files: Gauge,
    threads: Gauge,
    started: Gauge,
}

impl Process {
    pub(super) fn new() -> Result<Self, prometheus::Error> {
        let process = Self {
            cpu: Counter::new(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
            )?,
            resident: Gauge::new("process_resident_memory_bytes", "Resident memory size in bytes.")?,
            virtual_memory: Gauge::new("process_virtual_memory_bytes", "Virtual memory size in bytes.")?,
            open_files: Gauge::new("process_open_fds", "Number of open file descriptors.")?,
            max_files: Gauge::new("process_max_fds", "Maximum number of open file descriptors.")?,
            threads: Gauge::new("process_threads", "Number of OS threads in the process.")?,
            started: Gauge::new(
                "process_start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
            )?,
        };
        if let Some(started) = started() {
            process.started.set(started);
        }
        Ok(process)
    }

    fn refresh(&self) {
        if let Some(spent) = stat_fields().and_then(|fields| {
            // utime and stime are fields 14 and 15, counted behind the name.
            Some((fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?) / TICKS)
        }) {
            let more = spent - self.cpu.get();
            if more > 0.0 {
                self.cpu.inc_by(more);
            }
        }
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let figure = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                line.split_whitespace().next()?.parse::<f64>().ok()
            };
            if let Some(kib) = figure("VmRSS:") {
                self.resident.set(kib * 1024.0);
            }
            if let Some(kib) = figure("VmSize:") {
                self.virtual_memory.set(kib * 1024.0);
            }
            if let Some(threads) = figure("Threads:") {
                self.threads.set(threads);
            }
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            // One of them is the folder being read.
            self.open_files.set(files.count().saturating_sub(1) as f64);
        }
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        self.max_files.set(limit.map_or(f64::INFINITY, |limit| limit as f64));
    }
}

fn stat_fields() -> Option<Vec<String>> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name may hold anything, also spaces and brackets.
    let (_, rest) = stat.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn started() -> Option<f64> {
    let ticks: f64 = stat_fields()?.get(19)?.parse().ok()?;
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / TICKS)
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        let mut all = self.cpu.desc();
        for gauge in self.gauges() {
            all.extend(gauge.desc());
        }
        all
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.refresh();
        let mut all = self.cpu.collect();
        for gauge in self.gauges() {
            all.extend(gauge.collect());
        }
        all
    }
}

impl Process {
    fn gauges(&self) -> [&Gauge; 6] {
        [
            &self.resident,
            &self.virtual_memory,
            &self.open_files,
            &self.max_files,
            &self.threads,
            &self.started,
        ]
    }
}
