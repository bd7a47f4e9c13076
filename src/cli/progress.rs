//! What a run that polls once shows: bars while it goes on (on a terminal),
//! and its results at the end.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::table::{self, MOST_ROWS, Table};
use crate::domain::code::Code;
use crate::domain::work::{RecordKey, WorkItem};
use crate::engine::ports::Observer;
use crate::engine::report::{Counters, Report};
use crate::run::{Audience, Summary};
use crate::telemetry::logs;

/// Accounts that have a line of their own at a time.
const MOST_LINES: usize = 10;
const TICK: Duration = Duration::from_millis(100);

/// Shows and collects.
pub(crate) struct Progress {
    bars: Option<Bars>,
    results: Mutex<Vec<Row>>,
}

struct Bars {
    all: MultiProgress,
    overall: ProgressBar,
    lines: Mutex<HashMap<RecordKey, Line>>,
    done: Mutex<Done>,
}

#[derive(Clone)]
struct Line {
    bar: ProgressBar,
    /// The sizes are known: the bar counts octets, and else messages.
    by_octets: bool,
}

#[derive(Default)]
struct Done {
    planned: usize,
    records: usize,
    failed: usize,
    messages: u64,
    octets: u64,
}

struct Row {
    key: RecordKey,
    counters: Counters,
    took: Duration,
    failure: Option<(Code, String)>,
    refused: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Progress {
    /// With bars if standard error is a terminal.
    pub(crate) fn new() -> Self {
        let bars = std::io::stderr().is_terminal().then(Bars::new);
        Self { bars, results: Mutex::default() }
    }

    /// Whether there are bars.
    pub(crate) fn visible(&self) -> bool {
        self.bars.is_some()
    }

    /// Removes the bars; the results follow them.
    pub(crate) fn close(&self) {
        if let Some(bars) = &self.bars {
            logs::write_above(None);
            lock(&bars.lines).clear();
            // A terminal that has gone away needs no clearing.
            bars.all.clear().ok();
        }
    }

    /// The table of results.
    pub(crate) fn summary(&self, summary: Summary, took: Duration) -> String {
        let mut rows = lock(&self.results);
        // What wants attention first, then what got mail.
        rows.sort_by(|a, b| {
            let rank = |row: &Row| {
                (
                    row.failure.is_none(),
                    row.counters.refused() == 0,
                    row.counters.in_quarantine + row.counters.waiting == 0,
                    row.counters.fetched == 0,
                )
            };
            rank(a).cmp(&rank(b)).then_with(|| a.key.cmp(&b.key))
        });
        let shown = rows.len().min(MOST_ROWS);
        if rows.len() <= MOST_ROWS {
            rows.sort_by(|a, b| a.key.cmp(&b.key));
        }
        let mut table = Table::new(&[
            "RECORD",
            ">LISTED",
            ">NEW",
            ">DELIVERED",
            ">REFUSED",
            ">DELETED",
            ">SIZE",
            ">TIME",
            "RESULT",
        ]);
        let (mut delivered, mut octets) = (0, 0);
        for (at, row) in rows.iter().enumerate() {
            let counters = &row.counters;
            delivered += counters.delivered;
            octets += counters.bytes;
            if at < shown {
                let result = row.failure.as_ref().map_or_else(
                    || match (counters.refused(), counters.in_quarantine, counters.waiting) {
                        (0, 0, 0) => "ok".to_owned(),
                        // Of earlier polls: nothing new, and no failure.
                        (0, aside, 0) => format!("ok, {aside} set aside"),
                        (0, 0, waiting) => format!("ok, {waiting} waiting"),
                        (0, aside, waiting) => format!("ok, {aside} set aside, {waiting} waiting"),
                        _ => Code::MessageRejected.to_string(),
                    },
                    |(code, _)| code.to_string(),
                );
                let figures = [
                    counters.listed,
                    counters.unseen,
                    counters.delivered,
                    counters.refused(),
                    counters.deleted,
                ];
                let mut cells = vec![row.key.to_string()];
                cells.extend(figures.map(|figure| figure.to_string()));
                cells.extend([table::size(counters.bytes), table::span(row.took), result]);
                table.row(cells);
            }
        }
        let mut text = if rows.is_empty() { String::new() } else { table.to_string() };
        if rows.len() > shown {
            table::add(&mut text, format_args!("… and {} more\n", rows.len() - shown));
        }
        let troubles: Vec<String> = rows.iter().filter_map(trouble).collect();
        if !troubles.is_empty() {
            text.push('\n');
        }
        for trouble in troubles.iter().take(MOST_ROWS) {
            logs::escape_into(&mut text, trouble);
            text.push('\n');
        }
        if troubles.len() > MOST_ROWS {
            table::add(&mut text, format_args!("… and {} more\n", troubles.len() - MOST_ROWS));
        }
        let seconds = took.as_secs_f64().max(0.001);
        table::add(
            &mut text,
            format_args!(
                "\n{}: {} good, {} failed; {} delivered ({}), {} refused; {}, {:.0} messages/s\n",
                table::number(rows.len() as u64, "record"),
                summary.good,
                summary.failed,
                table::number(delivered, "message"),
                table::size(octets),
                summary.refused,
                table::span(took),
                delivered as f64 / seconds,
            ),
        );
        text
    }

    /// A record that cannot even be tried, for the table.
    pub(crate) fn refused(&self, key: &RecordKey, code: Code, message: &str) {
        lock(&self.results).push(Row {
            key: key.clone(),
            counters: Counters::default(),
            took: Duration::ZERO,
            failure: Some((code, message.to_owned())),
            refused: None,
        });
    }
}

fn trouble(row: &Row) -> Option<String> {
    match (&row.failure, &row.refused) {
        (Some((code, message)), _) => Some(format!("{}: {code}: {message}", row.key)),
        (None, Some(note)) if row.counters.refused() == 0 => Some(format!("{}: {note}", row.key)),
        (None, Some(refused)) => Some(format!("{}: {}: {refused}", row.key, Code::MessageRejected)),
        (None, None) => None,
    }
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let overall = all.add(ProgressBar::no_length());
        overall.set_style(style("{spinner} {pos}/{len} accounts {wide_msg} {elapsed}"));
        overall.enable_steady_tick(TICK);
        logs::write_above(Some(all.clone()));
        Self { all, overall, lines: Mutex::default(), done: Mutex::default() }
    }

    fn line(&self, key: &RecordKey) -> Option<Line> {
        lock(&self.lines).get(key).cloned()
    }

    fn total(&self) {
        let done = lock(&self.done);
        let seconds = self.overall.elapsed().as_secs_f64().max(0.001);
        self.overall.set_position(done.records as u64);
        self.overall.set_message(format!(
            "{}{}, {}, {:.0} messages/s",
            if done.failed > 0 { format!("{} failed, ", done.failed) } else { String::new() },
            table::number(done.messages, "message"),
            table::size(done.octets),
            done.messages as f64 / seconds,
        ));
    }
}

impl Audience for Progress {
    fn planned(&self, records: usize) {
        if let Some(bars) = &self.bars {
            lock(&bars.done).planned = records;
            bars.overall.set_length(records as u64);
            bars.total();
        }
    }

    fn started(&self, item: &WorkItem) {
        let Some(bars) = &self.bars else { return };
        let mut lines = lock(&bars.lines);
        if lines.len() >= MOST_LINES || lines.contains_key(&item.key) {
            return;
        }
        let line = bars.all.insert_before(&bars.overall, ProgressBar::no_length());
        line.set_style(style("{prefix:32} {spinner} {wide_msg}"));
        line.set_prefix(table::cut(&item.key.to_string(), 32));
        line.set_message("connecting");
        line.enable_steady_tick(TICK);
        lines.insert(item.key.clone(), Line { bar: line, by_octets: false });
    }

    fn ended(&self, item: &WorkItem, report: &Report) {
        let failure = report.result.as_ref().err().map(|error| (error.code, error.message.clone()));
        if let Some(bars) = &self.bars {
            let few = {
                let mut done = lock(&bars.done);
                done.records += 1;
                done.failed += usize::from(failure.is_some());
                done.planned <= MOST_LINES
            };
            if few {
                if let Some(Line { bar, .. }) = bars.line(&item.key) {
                    let what = failure.as_ref().map_or_else(
                        || format!("{} delivered", table::number(report.counters.delivered, "message")),
                        |(code, _)| code.to_string(),
                    );
                    bar.set_style(style("{prefix:32} {wide_msg} {elapsed}"));
                    bar.finish_with_message(what);
                }
            } else if let Some(line) = lock(&bars.lines).remove(&item.key) {
                line.bar.finish_and_clear();
            }
            bars.total();
        }
        lock(&self.results).push(Row {
            key: item.key.clone(),
            counters: report.counters,
            took: report.took,
            failure,
            refused: report.refused.clone(),
        });
    }
}

impl Observer for Progress {
    fn surveyed(&self, key: &RecordKey, unseen: u64, octets: u64) {
        let Some(bars) = &self.bars else { return };
        let mut lines = lock(&bars.lines);
        let Some(Line { bar, by_octets }) = lines.get_mut(key) else { return };
        *by_octets = octets > 0;
        if octets > 0 {
            bar.set_length(octets);
            bar.set_style(style(
                "{prefix:32} [{bar:20}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {wide_msg} {eta} left",
            ));
        } else {
            bar.set_length(unseen);
            bar.set_style(style("{prefix:32} [{bar:20}] {pos}/{len} {per_sec} {wide_msg} {eta} left"));
        }
        bar.set_message(table::number(unseen, "message"));
        bar.reset_eta();
    }

    fn fetched(&self, key: &RecordKey, octets: u64) {
        let Some(bars) = &self.bars else { return };
        let many = {
            let mut done = lock(&bars.done);
            done.messages += 1;
            done.octets += octets;
            done.messages.is_multiple_of(64)
        };
        if many {
            bars.total();
        }
        if let Some(line) = bars.line(key) {
            line.bar.inc(if line.by_octets { octets } else { 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize) -> Progress {
        let progress = Progress { bars: None, results: Mutex::default() };
        for n in 0..count {
            let key = RecordKey { namespace: "mail".into(), name: format!("r{n:04}").into() };
            lock(&progress.results).push(Row {
                key,
                counters: Counters {
                    listed: 5,
                    unseen: 2,
                    fetched: 2,
                    delivered: 2,
                    bytes: 8000,
                    ..Counters::default()
                },
                took: Duration::from_millis(250),
                failure: (n == 7).then(|| (Code::AuthFailed, "the server said \u{1b}[2Jno".to_owned())),
                refused: None,
            });
        }
        progress
    }

    #[test]
    fn the_table_tells_what_each_record_came_to() {
        let summary = Summary { good: 9, failed: 1, ..Summary::default() };
        let text = rows(10).summary(summary, Duration::from_secs(2));
        assert!(
            text.contains("mail/r0007       5    2          2        0        0  8.0 kB  0.25s  AuthFailed"),
            "{text}"
        );
        assert!(text.contains("\nmail/r0007: AuthFailed: the server said \\u{1b}[2Jno\n"), "{text}");
        let last = "10 records: 9 good, 1 failed; 20 messages delivered (80.0 kB), 0 refused; 2.00s, 10 messages/s\n";
        assert!(text.ends_with(last), "{text}");
    }

    #[test]
    fn what_was_set_aside_earlier_is_shown_and_is_no_failure() {
        let progress = rows(4);
        {
            let mut rows = lock(&progress.results);
            rows[3].counters = Counters { in_quarantine: 1, waiting: 2, ..rows[3].counters };
            rows[0].counters.in_quarantine = 12;
            rows[1].counters = Counters { rejected: 1, quarantined: 1, in_quarantine: 3, ..rows[1].counters };
            rows[1].refused = Some("550 no".into());
            rows[2].refused = Some("only a note".into());
        }
        let text = progress.summary(Summary { good: 3, refused: 1, ..Summary::default() }, Duration::ZERO);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].ends_with("ok, 12 set aside"), "{text}");
        assert!(lines[2].ends_with("MessageRejected"), "{text}");
        assert!(lines[3].ends_with("  ok"), "{text}");
        assert!(lines[4].ends_with("ok, 1 set aside, 2 waiting"), "{text}");
        assert!(text.contains("mail/r0001: MessageRejected: 550 no\nmail/r0002: only a note\n"), "{text}");
    }

    #[test]
    fn of_many_records_those_that_failed_come_first() {
        let text = rows(1000).summary(Summary::default(), Duration::from_secs(2));
        assert!(text.lines().count() < 50);
        assert!(text.lines().nth(1).is_some_and(|line| line.contains("mail/r0007")), "{text}");
        assert!(text.contains("… and 960 more"));
    }
}
