//! What the controller counts.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use crate::domain::shards::leader::Cause;
use crate::k8s::error::ApiError;

/// The controller's metrics.
#[derive(Clone)]
pub(super) struct Figures {
    leading: IntGauge,
    records: IntGaugeVec,
    shards: IntGaugeVec,
    waiting: IntGaugeVec,
    writes: IntCounterVec,
    set_back: IntCounterVec,
}

impl Figures {
    /// Registered where the process shows its metrics. Where they are
    /// registered already (`combined` starts over), the new ones are not shown.
    pub(super) fn new(registry: &Registry) -> Self {
        let fixed = "metric names are fixed and valid";
        let figures = Self {
            leading: IntGauge::new("rpop_controller_leading", "1 while this process leads.").expect(fixed),
            records: IntGaugeVec::new(
                Opts::new("rpop_controller_records", "Records by whether they are among the work."),
                &["accepted"],
            )
            .expect(fixed),
            shards: IntGaugeVec::new(
                Opts::new("rpop_controller_shards", "Shards by whether a live worker polls them."),
                &["held"],
            )
            .expect(fixed),
            waiting: IntGaugeVec::new(
                Opts::new("rpop_controller_writes_waiting", "Writes that wait for their turn."),
                &["what"],
            )
            .expect(fixed),
            writes: IntCounterVec::new(
                Opts::new("rpop_controller_writes_total", "Writes to the API server by result."),
                &["result"],
            )
            .expect(fixed),
            set_back: IntCounterVec::new(
                Opts::new(
                    "rpop_controller_counts_set_back_total",
                    "Times that the counts of silent workers were set back, by reason.",
                ),
                &["reason"],
            )
            .expect(fixed),
        };
        let all: [Box<dyn prometheus::core::Collector>; 6] = [
            Box::new(figures.leading.clone()),
            Box::new(figures.records.clone()),
            Box::new(figures.shards.clone()),
            Box::new(figures.waiting.clone()),
            Box::new(figures.writes.clone()),
            Box::new(figures.set_back.clone()),
        ];
        for collector in all {
            if let Err(error) = registry.register(collector) {
                tracing::debug!("a metric is not shown: {error}");
            }
        }
        figures
    }

    pub(super) fn leading(&self, leads: bool) {
        self.leading.set(leads.into());
        if !leads {
            self.records.reset();
            self.shards.reset();
            self.waiting.reset();
        }
    }

    pub(super) fn records(&self, all: usize, accepted: usize) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.records.with_label_values(&["true"]).set(count(accepted));
        self.records.with_label_values(&["false"]).set(count(all.saturating_sub(accepted)));
    }

    pub(super) fn shards(&self, held: usize, all: usize) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.shards.with_label_values(&["true"]).set(count(held));
        self.shards.with_label_values(&["false"]).set(count(all.saturating_sub(held)));
    }

    pub(super) fn waiting(&self, statuses: usize, orders: usize) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.waiting.with_label_values(&["status"]).set(count(statuses));
        self.waiting.with_label_values(&["shard"]).set(count(orders));
    }

    pub(super) fn written<T>(&self, result: &Result<T, ApiError>) {
        let result = result.as_ref().err().map_or("ok", ApiError::reason);
        self.writes.with_label_values(&[result]).inc();
    }

    pub(super) fn set_back(&self, cause: Cause) {
        self.set_back.with_label_values(&[cause.reason()]).inc();
    }
}
