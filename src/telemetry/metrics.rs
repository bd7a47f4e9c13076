//! Every metric of the process. Labels come from closed lists, never from a
//! record; what concerns one record is in its status. `docs/metrics.md`
//! explains each.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::domain::code::Code;
use crate::domain::work::RecordKey;
use crate::engine::ports::{Observer, Via};
use crate::engine::report::Report;
use crate::engine::scheduler::Figures;

use super::process::Process;

/// The states of `rpop_records`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordStates {
    /// The last poll succeeded.
    pub ready: u32,
    /// The last poll failed.
    pub failing: u32,
    /// Not polled yet.
    pub pending: u32,
    /// Disabled or paused.
    pub disabled: u32,
    /// Of all these such as wait longer and longer, since their logins are
    /// refused.
    pub refused: u32,
}

/// The metrics, and their registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    polls: IntCounterVec,
    poll_duration: Histogram,
    poll_lag: Histogram,
    fetched: IntCounter,
    delivered: [IntCounter; 3],
    rejected: IntCounterVec,
    duplicates: IntCounter,
    uncertain: IntCounter,
    bytes: IntCounter,
    sessions: IntGauge,
    processors: IntGauge,
    active: IntGauge,
    overdue: IntGauge,
    lag: Gauge,
    required: Gauge,
    failed_hosts: IntGauge,
    auth_failures: IntCounter,
    refused: IntGauge,
    commits: [IntCounter; 2],
    commit_time: Histogram,
    reloads: IntCounterVec,
    valid: IntGauge,
    states: [IntGauge; 4],
    shards: IntGauge,
    moves: IntCounterVec,
    renewals: Histogram,
    left_alone: IntCounter,
}

/// From half a millisecond to four minutes, doubling at first.
const COMMIT_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];
const POLL_BUCKETS: &[f64] =
    &[0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0];
const LAG_BUCKETS: &[f64] = &[0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0];

const RENEW_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0];

struct Maker<'a>(&'a Registry);

impl Maker<'_> {
    fn put<C: prometheus::core::Collector + Clone + 'static>(&self, made: prometheus::Result<C>) -> C {
        let collector = made.expect("metric names are fixed and valid");
        self.0.register(Box::new(collector.clone())).expect("metric names are fixed and differ");
        collector
    }

    fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.put(IntCounter::with_opts(Opts::new(name, help)))
    }

    fn counters(&self, name: &str, help: &str, label: &str) -> IntCounterVec {
        self.put(IntCounterVec::new(Opts::new(name, help), &[label]))
    }

    fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.put(IntGauge::with_opts(Opts::new(name, help)))
    }

    fn figure(&self, name: &str, help: &str) -> Gauge {
        self.put(Gauge::with_opts(Opts::new(name, help)))
    }

    fn gauges(&self, name: &str, help: &str, label: &str) -> IntGaugeVec {
        self.put(IntGaugeVec::new(Opts::new(name, help), &[label]))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        self.put(Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All of them, at nought.
    pub fn new() -> Self {
        let registry = Registry::new();
        let make = Maker(&registry);
        let polls = make.counters(
            "rpop_polls_total",
            "Polls that ended, by result: ok, or the error code.",
            "result",
        );
        // Alerts want a series before the first failure.
        polls.with_label_values(&["ok"]);
        for code in Code::ALL {
            polls.with_label_values(&[code.as_str()]);
        }
        let delivered =
            make.counters("rpop_messages_delivered_total", "Messages accepted by a destination.", "via");
        let commits = make.counters("rpop_ledger_commits_total", "Commits to ledgers.", "result");
        let records = make.gauges("rpop_records", "Records of this process by state.", "state");
        let moves = make.counters(
            "rpop_shard_moves_total",
            "Shards that this worker took, handed over as it was told to, or lost.",
            "reason",
        );
        for reason in ["taken", "handed_over", "lost"] {
            moves.with_label_values(&[reason]);
        }
        let build = make.gauges("rpop_build_info", "The version that runs; always 1.", "version");
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        make.put(Process::new().map(Arc::new).map(Shared));
        Self {
            poll_duration: make.histogram(
                "rpop_poll_duration_seconds",
                "From the start of a poll's connection to its end.",
                POLL_BUCKETS,
            ),
            poll_lag: make.histogram(
                "rpop_poll_lag_seconds",
                "How late polls began: from when they were due to when they had a processor.",
                LAG_BUCKETS,
            ),
            fetched: make.counter("rpop_messages_fetched_total", "Messages retrieved."),
            delivered: [Via::Smtp, Via::Lmtp, Via::Maildir]
                .map(|via| delivered.with_label_values(&[via.as_str()])),
            rejected: make.counters(
                "rpop_messages_rejected_total",
                "Messages that were refused or set aside, by reason.",
                "reason",
            ),
            duplicates: make
                .counter("rpop_duplicates_suppressed_total", "Copies that were not delivered again."),
            uncertain: make.counter(
                "rpop_deliveries_uncertain_total",
                "Deliveries whose outcome is unknown: the connection was lost behind the final dot.",
            ),
            bytes: make.counter("rpop_retrieved_bytes_total", "Octets of the messages retrieved."),
            sessions: make.gauge("rpop_sessions_active", "Polls under way."),
            processors: make.gauge("rpop_processors", "The most polls that may be under way at once."),
            active: make.gauge(
                "rpop_schedule_open",
                "1 while polling is allowed by activitySchedule, or there is none; else 0.",
            ),
            overdue: make.gauge("rpop_overdue_records", "Records that are due and wait for their turn."),
            lag: make.figure(
                "rpop_overdue_seconds",
                "How long the first of the overdue records has been waiting.",
            ),
            required: make.figure(
                "rpop_required_sessions",
                "Sessions needed at once so that no poll is late: the records' rhythm times the mean duration of a poll, and the backlog.",
            ),
            failed_hosts: make.gauge("rpop_failed_hosts", "Remote hosts that are left alone for a while."),
            auth_failures: make.counter("rpop_auth_failures_total", "Logins that a server refused."),
            refused: make.gauge(
                "rpop_auth_failing_records",
                "Records whose last login was refused: they are tried ever more seldom.",
            ),
            commits: ["ok", "error"].map(|result| commits.with_label_values(&[result])),
            commit_time: make.histogram(
                "rpop_ledger_commit_seconds",
                "How long a commit took until it was durable.",
                COMMIT_BUCKETS,
            ),
            reloads: make.counters(
                "rpop_configuration_loads_total",
                "Times that the manifests were read.",
                "result",
            ),
            valid: make.gauge(
                "rpop_configuration_valid",
                "1 when the manifests as they are now are in use; 0 when they are wrong and the last good ones are.",
            ),
            states: ["ready", "failing", "pending", "disabled"]
                .map(|state| records.with_label_values(&[state])),
            shards: make.gauge("rpop_shards_held", "Shards whose holder this worker is."),
            moves,
            renewals: make.histogram(
                "rpop_lease_renew_seconds",
                "From the sending of a renewal of the worker's lease to the answer.",
                RENEW_BUCKETS,
            ),
            left_alone: make.counter(
                "rpop_slices_left_alone_total",
                "Slices of records that were left alone, since they cannot be read: a newer controller wrote them.",
            ),
            polls,
            registry,
        }
    }

    /// The registry, for adapters with metrics of their own.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A poll got its processor this long after it was due.
    pub fn started(&self, lag: Duration) {
        self.poll_lag.observe(lag.as_secs_f64());
    }

    /// A poll ended.
    pub fn polled(&self, report: &Report) {
        let result = match &report.result {
            Ok(()) => "ok",
            Err(error) => {
                if error.code == Code::AuthFailed {
                    self.auth_failures.inc();
                }
                error.code.as_str()
            }
        };
        self.polls.with_label_values(&[result]).inc();
        self.poll_duration.observe(report.took.as_secs_f64());
    }

    /// The manifests were read.
    pub fn configured(&self, valid: bool) {
        self.reloads.with_label_values(&[if valid { "ok" } else { "error" }]).inc();
        self.valid.set(i64::from(valid));
    }

    /// Polling is allowed by the activity schedule, or not.
    pub fn active(&self, active: bool) {
        self.active.set(i64::from(active));
    }

    /// A renewal of the worker's lease was answered, this long after it was sent.
    pub fn renewed(&self, took: Duration) {
        self.renewals.observe(took.as_secs_f64());
    }

    /// The worker holds so many shards.
    pub fn holds(&self, shards: usize) {
        self.shards.set(i64::try_from(shards).unwrap_or(i64::MAX));
    }

    /// A shard was `taken`, `handed_over` or `lost`.
    pub fn moved(&self, reason: &'static str) {
        self.moves.with_label_values(&[reason]).inc();
    }

    /// A slice cannot be read.
    pub fn slice_left_alone(&self) {
        self.left_alone.inc();
    }

    /// The scheduler's figures as they are now.
    pub fn figures(&self, figures: &Figures, processors: u32, records: RecordStates) {
        self.sessions.set(figures.polling.into());
        self.processors.set(processors.into());
        self.overdue.set(figures.overdue.into());
        self.lag.set(figures.lag.as_secs_f64());
        self.failed_hosts.set(figures.failed_hosts.into());
        let polls = self.poll_duration.get_sample_count();
        let mean = if polls == 0 { 0.0 } else { self.poll_duration.get_sample_sum() / polls as f64 };
        // The backlog is to be gone within a minute.
        let needed = (figures.rate + f64::from(figures.overdue) / 60.0) * mean;
        self.required.set(needed);
        let counts = [records.ready, records.failing, records.pending, records.disabled];
        self.refused.set(records.refused.into());
        for (gauge, count) in self.states.iter().zip(counts) {
            gauge.set(count.into());
        }
    }

    /// The text exposition format.
    ///
    /// # Errors
    /// When a metric cannot be encoded: a defect.
    pub fn encode(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut out = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(out)
    }
}

/// The registry wants collectors that can be cloned where we make them.
#[derive(Clone)]
struct Shared(Arc<Process>);

impl prometheus::core::Collector for Shared {
    fn desc(&self) -> Vec<&prometheus::core::Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<prometheus::proto::MetricFamily> {
        self.0.collect()
    }
}

impl Observer for Metrics {
    fn fetched(&self, _: &RecordKey, octets: u64) {
        self.fetched.inc();
        self.bytes.inc_by(octets);
    }

    fn delivered(&self, _: &RecordKey, via: Via) {
        let [smtp, lmtp, maildir] = &self.delivered;
        match via {
            Via::Smtp => smtp,
            Via::Lmtp => lmtp,
            Via::Maildir => maildir,
        }
        .inc();
    }

    fn rejected(&self, _: &RecordKey, reason: &'static str) {
        self.rejected.with_label_values(&[reason]).inc();
    }

    fn duplicate(&self, _: &RecordKey) {
        self.duplicates.inc();
    }

    fn uncertain(&self, _: &RecordKey) {
        self.uncertain.inc();
    }

    fn committed(&self, took: Duration, ok: bool) {
        let [good, bad] = &self.commits;
        if ok { good } else { bad }.inc();
        self.commit_time.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::report::{Counters, PollError, Scope};

    fn report(result: Result<(), PollError>) -> Report {
        Report {
            result,
            counters: Counters::default(),
            took: Duration::from_secs(2),
            login_delay: None,
            refused: None,
        }
    }

    fn used() -> Metrics {
        let metrics = Metrics::new();
        let key = RecordKey { namespace: "mail".into(), name: "secret-customer".into() };
        metrics.fetched(&key, 4000);
        metrics.delivered(&key, Via::Lmtp);
        metrics.rejected(&key, "refused");
        metrics.committed(Duration::from_millis(3), true);
        metrics.started(Duration::from_millis(3));
        metrics.polled(&report(Ok(())));
        metrics.polled(&report(Err(PollError {
            code: Code::AuthFailed,
            message: "no".to_owned(),
            scope: Scope::Account,
        })));
        metrics.configured(true);
        let figures = Figures { rate: 100.0, ..Figures::default() };
        metrics.figures(&figures, 256, RecordStates { ready: 1, ..RecordStates::default() });
        metrics
    }

    #[test]
    fn what_polls_do_can_be_read_off() {
        let text = String::from_utf8(used().encode().unwrap()).unwrap();
        for line in [
            "rpop_polls_total{result=\"ok\"} 1",
            "rpop_polls_total{result=\"AuthFailed\"} 1",
            "rpop_auth_failures_total 1",
            "rpop_messages_delivered_total{via=\"lmtp\"} 1",
            "rpop_retrieved_bytes_total 4000",
            "rpop_records{state=\"ready\"} 1",
            "rpop_processors 256",
            "rpop_required_sessions 200",
            "rpop_ledger_commits_total{result=\"ok\"} 1",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("secret-customer"), "no record's name is a label");
        assert!(text.contains("process_resident_memory_bytes"));
    }

    #[test]
    fn every_metric_is_documented_and_nothing_else_is() {
        let text = String::from_utf8(used().encode().unwrap()).unwrap();
        let exported: BTreeSet<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        let documented: BTreeSet<&str> = include_str!("../../docs/metrics.md")
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|line| line.split(['`', '{']).next())
            .collect();
        assert_eq!(exported, documented);
    }
}
