//! `rpop status`: the columns of `kubectl get rpop`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::table::{self, Table};
use super::{Exit, Output, Status as Arguments};
use crate::domain::work::{RecordKey, TlsMode, WorkItem};
use crate::local::manifests::Configuration;
use crate::local::state::StateDir;
use crate::local::status::{StatusStore, to_json};
use crate::run::status::{LastError, RecordStatus};

/// What is known of a record: by the manifests, and by its polls.
#[derive(Default)]
struct Row {
    item: Option<Arc<WorkItem>>,
    status: Option<RecordStatus>,
}

/// Shows how each record is doing.
pub(super) fn status(arguments: &Arguments) -> Exit {
    let state = arguments.state.path();
    // With manifests there is something to show before the first run, too.
    if arguments.file.is_empty() && !state.is_dir() {
        eprintln!(
            "rpop: there is no state folder {}: name it with --state, or run `rpop run` first",
            state.display()
        );
        return Exit::Failed;
    }
    let mut rows = remembered(&state);
    let mut wrong = false;
    if !arguments.file.is_empty() {
        match Configuration::load(&arguments.file) {
            Ok(configuration) => {
                wrong = configuration.has_errors();
                let known: std::collections::HashSet<&RecordKey> = configuration.keys().collect();
                rows.retain(|key, _| known.contains(key));
                take_up(&mut rows, &configuration);
                if wrong {
                    eprint!("{}", configuration.report());
                }
            }
            Err(error) => {
                eprintln!("rpop: {error}");
                return Exit::Misconfigured;
            }
        }
    }
    let text = match arguments.output {
        Output::Table => table(&rows, &state, !arguments.file.is_empty()),
        Output::Json => json(&rows),
    };
    match super::print(text.as_bytes()) {
        Exit::Good if wrong => Exit::Misconfigured,
        exit => exit,
    }
}

fn remembered(state: &Path) -> BTreeMap<RecordKey, Row> {
    let snapshot = StatusStore::read(state);
    let row = |(key, status)| (key, Row { item: None, status: Some(status) });
    snapshot.records.into_iter().map(row).collect()
}

fn take_up(rows: &mut BTreeMap<RecordKey, Row>, configuration: &Configuration) {
    for item in &configuration.records {
        rows.entry(item.key.clone()).or_default().item = Some(Arc::clone(item));
    }
    for (key, problem) in &configuration.problems {
        let row = rows.entry(key.clone()).or_default();
        let status = row.status.get_or_insert_default();
        let error = LastError::new(problem.code, &problem.message, jiff::Timestamp::now().as_second());
        status.error = Some(Box::new(error.after(status.error.as_deref())));
    }
}

fn table(rows: &BTreeMap<RecordKey, Row>, state: &Path, with_manifests: bool) -> String {
    let mut text = String::new();
    if rows.is_empty() {
        text += "No record has been polled yet.\n";
    } else {
        let many =
            rows.keys().any(|key| Some(&key.namespace) != rows.keys().next().map(|key| &key.namespace));
        let mut columns = if many { vec!["NAMESPACE", "NAME"] } else { vec!["NAME"] };
        if with_manifests {
            columns.extend(["POLL EVERY", "ACCOUNT", "AT HOST", "LEAVE", "APOP", "TLS", "MAILBOX/SPECIAL"]);
        }
        columns.extend(["LAST", "READY", "NEXT", "DELIVERED"]);
        let mut table = Table::new(&columns);
        let now = jiff::Timestamp::now();
        for (key, row) in rows {
            let mut cells = Vec::with_capacity(columns.len());
            if many {
                cells.push(key.namespace.to_string());
            }
            cells.push(key.name.to_string());
            if with_manifests {
                cells.extend(manifest_cells(row.item.as_deref()));
            }
            cells.extend(status_cells(row, now));
            table.row(cells);
        }
        text += &table.to_string();
    }
    for (key, row) in rows {
        if let Some(error) = row.status.as_ref().and_then(|status| status.error.as_ref()) {
            let times = if error.count > 1 { format!(" ({} times)", error.count) } else { String::new() };
            let line = format!("{key}: {}{times}: {}", error.code, error.message);
            text.push('\n');
            crate::telemetry::logs::escape_into(&mut text, &line);
            if let Some(refusals) = &error.refusals {
                let since = jiff::Timestamp::from_second(refusals.since).unwrap_or_default();
                let refused = table::number(refusals.count.into(), "login");
                table::add(
                    &mut text,
                    format_args!(
                        "\n{key}: {refused} refused in a row since {since}; the next one waits, or comes when the \
                         record or its Secret changes"
                    ),
                );
            }
        }
    }
    for (key, row) in rows {
        if let Some(line) = row.status.as_ref().and_then(|status| set_aside(key, status)) {
            text.push('\n');
            crate::telemetry::logs::escape_into(&mut text, &line);
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    match StateDir::runner(state) {
        Some(pid) => table::add(&mut text, format_args!("\nrpop runs as process {pid}.\n")),
        None => text += "\nrpop does not run on this state folder.\n",
    }
    text
}

/// What is said of messages that are set aside, or wait.
fn set_aside(key: &RecordKey, status: &RecordStatus) -> Option<String> {
    let (count, what, see) = match (status.totals.in_quarantine, status.totals.waiting) {
        (0, 0) => return None,
        (0, 1) => (1, "waits", ""),
        (0, count) => (count, "wait", ""),
        (1, _) => (1, "is set aside", ", see docs/errors.md#MessageRejected"),
        (count, _) => (count, "are set aside", ", see docs/errors.md#MessageRejected"),
    };
    let messages = table::number(count.into(), "message");
    let reason = status.set_aside.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let again = if count == 1 { "it is tried again by itself" } else { "they are tried again by themselves" };
    Some(format!("{key}: {messages} {what}{reason}; {again}{see}"))
}

fn manifest_cells(item: Option<&WorkItem>) -> [String; 7] {
    let Some(item) = item else { return Default::default() };
    let tls = match item.remote.tls.mode {
        TlsMode::Implicit => "Implicit",
        TlsMode::StartTls => "StartTls",
        TlsMode::Opportunistic => "Opportunistic",
        TlsMode::None => "None",
    };
    [
        item.interval.map_or_else(|| "Disabled".to_owned(), table::interval),
        item.account.to_string(),
        item.remote.host.to_string(),
        item.leave.to_string(),
        item.remote.apop.to_string(),
        tls.to_owned(),
        match &item.unified {
            Some(unified) => unified.special.to_string(),
            None => item.mailbox.as_deref().unwrap_or_default().to_owned(),
        },
    ]
}

fn status_cells(row: &Row, now: jiff::Timestamp) -> [String; 4] {
    let status = row.status.as_ref();
    let last = status.map(RecordStatus::last).unwrap_or_default();
    let ready = match status {
        Some(status) if status.error.is_some() => "False",
        // What is set aside, or waits, is not delivered.
        Some(status) if status.totals.in_quarantine > 0 || status.totals.waiting > 0 => "False",
        Some(status) if status.last_success.is_some() => "True",
        _ => "Unknown",
    };
    let polled = row.item.as_ref().is_none_or(|item| item.interval.is_some());
    let next =
        status.and_then(|status| status.next_poll).filter(|_| polled).map(|next| {
            match u64::try_from(next - now.as_second()) {
                Ok(wait) if wait > 0 => format!("in {}", table::interval(Duration::from_secs(wait))),
                _ => "due".to_owned(),
            }
        });
    let totals = status.map(|status| status.totals);
    let delivered = totals.map(|totals| totals.delivered.to_string());
    [last, ready.to_owned(), next.unwrap_or_default(), delivered.unwrap_or_default()]
}

fn json(rows: &BTreeMap<RecordKey, Row>) -> String {
    let items: Vec<serde_json::Value> = rows
        .iter()
        .map(|(key, row)| {
            let mut object = serde_json::json!({
                "namespace": &*key.namespace,
                "name": &*key.name,
                "status": row.status.as_ref().map(|status| serde_json::from_str::<serde_json::Value>(&to_json(status, key)).ok()),
            });
            if let (Some(item), Some(object)) = (&row.item, object.as_object_mut()) {
                let spec = serde_json::json!({
                    "account": item.account.as_str(),
                    "pollEvery": item.interval.map_or_else(|| "Disabled".to_owned(), table::interval),
                    "host": &*item.remote.host,
                    "port": item.remote.port,
                    "remoteAccount": &*item.remote.account,
                    "leave": item.leave,
                    "apop": item.remote.apop,
                    "mailbox": item.mailbox.as_deref(),
                    "special": item.unified.as_ref().map(|unified| unified.special.to_string()),
                });
                object.insert("spec".to_owned(), spec);
            }
            object
        })
        .collect();
    let mut text = serde_json::to_string_pretty(&serde_json::json!({ "items": items })).unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::report::Counters;

    #[test]
    fn messages_that_are_set_aside_are_told_with_their_reason() {
        let key = RecordKey { namespace: "mail".into(), name: "a".into() };
        let mut status = RecordStatus::default();
        status.succeeded(1, &Counters { listed: 5, in_quarantine: 2, ..Counters::default() });
        status.tell_set_aside(Some("550 no"));
        // Neither a quiet poll nor one that fails early makes them invisible.
        status.tell_set_aside(None);
        status.failed(2, crate::domain::code::Code::TimedOut, "silent", &Counters::default());
        let rows = BTreeMap::from([(key, Row { item: None, status: Some(status.clone()) })]);
        let text = table(&rows, Path::new("/nonexistent"), false);
        let line = "mail/a: 2 messages are set aside: 550 no; they are tried again by themselves, see docs/errors.md#MessageRejected";
        assert!(text.contains(line) && text.contains("False"), "{text}");
        status.succeeded(3, &Counters { listed: 1, waiting: 1, ..Counters::default() });
        status.tell_set_aside(Some("refused for now: 452 full"));
        let key = rows.keys().next().unwrap();
        let rows = BTreeMap::from([(key.clone(), Row { item: None, status: Some(status.clone()) })]);
        let text = table(&rows, Path::new("/nonexistent"), false);
        let line = "mail/a: 1 message waits: refused for now: 452 full; it is tried again by itself\n";
        assert!(text.contains(line) && text.contains("False"), "{text}");
        status.succeeded(4, &Counters::default());
        status.tell_set_aside(None);
        assert!(set_aside(rows.keys().next().unwrap(), &status).is_none() && status.set_aside.is_none());
    }
    #[test]
    fn a_unified_account_shows_where_its_recipients_stand() {
        let manifests = [
            r#"{"apiVersion": "rpop.dev/v1alpha1", "kind": "RpopSettings", "metadata": {"name": "default"},
                "spec": {"mainDomain": "example.com"}}"#,
            r#"{"apiVersion": "rpop.dev/v1alpha1", "kind": "RpopDomain", "metadata": {"name": "example.com"},
                "spec": {"delivery": {"smtp": {"host": "localhost"}}}}"#,
            r#"{"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "isp"}, "stringData": {"password": "x"}}"#,
            r#"{"apiVersion": "rpop.dev/v1alpha1", "kind": "RpopRecord", "metadata": {"name": "all"}, "spec": {
                "account": "postmaster@example.com", "special": "X-Original-To",
                "remote": {"host": "pop.isp.example", "account": "a", "passwordSecretRef": {"name": "isp"}}}}"#,
        ];
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("all.yaml"), manifests.join("\n---\n")).unwrap();
        let read = Configuration::load(&[folder.path().to_owned()]).unwrap();
        let mut rows = BTreeMap::new();
        take_up(&mut rows, &read);
        let text = table(&rows, folder.path(), true);
        assert!(text.lines().nth(1).unwrap().contains(" X-Original-To "), "{text}\n{}", read.report());
        assert!(json(&rows).contains(r#""special": "X-Original-To""#));
    }
}
