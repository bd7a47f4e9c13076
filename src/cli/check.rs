//! `rpop check`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::table::{self, MOST_ROWS, Table};
use super::{Check as Arguments, Exit, process, run};
use crate::domain::work::WorkItem;
use crate::engine::Checked;
use crate::engine::ports::Unobserved;
use crate::engine::report::PollError;
use crate::local::ledger::FileLedgers;
use crate::local::manifests::Configuration;
use crate::local::tokens::FileTokens;
use crate::run::outside;
use crate::telemetry::logs;

/// Validates, and with `--connect` logs in everywhere.
pub(super) async fn check(arguments: Arguments) -> Exit {
    let configuration = match run::load(arguments.manifests.file.clone()).await {
        Ok(configuration) => configuration,
        Err((exit, message)) => {
            eprintln!("rpop: {message}");
            return exit;
        }
    };
    logs::follow(configuration.settings.log_level);
    if configuration.files.is_empty() {
        eprintln!("rpop: {}", run::no_manifests(&arguments.manifests.file));
        return Exit::Misconfigured;
    }
    super::print(configuration.report().as_bytes());
    let wrong = configuration.has_errors();
    let good = if arguments.connect && !configuration.settings_missing && !configuration.records.is_empty() {
        connect(&arguments, &configuration).await
    } else {
        true
    };
    match (wrong, good) {
        (true, _) => Exit::Misconfigured,
        (false, true) => Exit::Good,
        (false, false) => Exit::Failed,
    }
}

type Row = (Arc<WorkItem>, Result<Checked, PollError>);

async fn connect(arguments: &Arguments, configuration: &Configuration) -> bool {
    let settings = Arc::new(configuration.settings.clone());
    if let Some(why) = outside(settings.activity.as_ref(), jiff::Timestamp::now()) {
        super::print(format!("\nno server was asked: {why}\n").as_bytes());
        return true;
    }
    process::raise_file_limit(settings.processors);
    let ledgers = Arc::new(FileLedgers::read_only(&arguments.state.path()));
    // A refresh token that a provider gives has to be kept, whoever asked.
    let tokens = FileTokens::new(&arguments.state.path());
    let engine =
        process::engine(configuration.secrets.clone(), tokens, ledgers, Arc::new(Unobserved), [0; 16]);
    let engine = Arc::new(engine);
    let everywhere = Arc::new(Semaphore::new(settings.processors.max(1) as usize));
    let of_one =
        if settings.host_connections == 0 { usize::MAX >> 3 } else { settings.host_connections as usize };
    let mut hosts: HashMap<(String, u16), Arc<Semaphore>> = HashMap::new();
    let mut tasks = JoinSet::new();
    for item in &configuration.records {
        let host = (item.remote.host.to_ascii_lowercase(), item.remote.port);
        let host = Arc::clone(hosts.entry(host).or_insert_with(|| Arc::new(Semaphore::new(of_one))));
        let (item, engine) = (Arc::clone(item), Arc::clone(&engine));
        let (settings, everywhere) = (Arc::clone(&settings), Arc::clone(&everywhere));
        tasks.spawn(async move {
            // In this order: who waits for a host takes nobody's processor.
            let _one = host.acquire().await;
            let _any = everywhere.acquire().await;
            let result = engine.check(&item, &settings).await;
            (item, result)
        });
    }
    let bar = ProgressBar::new(configuration.records.len() as u64);
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} accounts {wide_msg} {elapsed}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    let mut rows: Vec<Row> = Vec::with_capacity(configuration.records.len());
    while let Some(ended) = tasks.join_next().await {
        if let Ok(row) = ended {
            bar.set_message(row.0.key.to_string());
            rows.push(row);
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let complete = rows.len() == configuration.records.len();
    super::print(show(rows.as_mut_slice()).as_bytes());
    complete && rows.iter().all(|(_, result)| result.is_ok())
}

/// The table: all of a few, those that failed of many.
fn show(rows: &mut [Row]) -> String {
    rows.sort_by(|a, b| (a.1.is_ok(), &a.0.key).cmp(&(b.1.is_ok(), &b.0.key)));
    let mut table =
        Table::new(&["RECORD", "AT HOST", "TLS", "LOGIN", ">MESSAGES", ">NEW", ">SIZE", "RESULT"]);
    let mut troubles = String::new();
    for (item, result) in rows.iter().take(MOST_ROWS) {
        let mut cells = vec![item.key.to_string(), format!("{}:{}", item.remote.host, item.remote.port)];
        match result {
            Ok(checked) => cells.extend([
                checked.tls.unwrap_or("none").to_owned(),
                checked.mechanism.to_string(),
                checked.messages.to_string(),
                checked.unseen.map_or_else(|| "?".to_owned(), |unseen| unseen.to_string()),
                table::size(checked.octets),
                "ok".to_owned(),
            ]),
            Err(error) => {
                cells.extend(["", "", "", "", ""].map(str::to_owned));
                cells.push(error.code.to_string());
                logs::escape_into(&mut troubles, &format!("{}: {}: {error}", item.key, error.code));
                troubles.push('\n');
            }
        }
        table.row(cells);
    }
    let mut text = table.to_string();
    if rows.len() > MOST_ROWS {
        table::add(&mut text, format_args!("… and {} more\n", rows.len() - MOST_ROWS));
    }
    if !troubles.is_empty() {
        text.push('\n');
        text += &troubles;
    }
    let good = rows.iter().filter(|(_, result)| result.is_ok()).count();
    let messages: u64 =
        rows.iter().filter_map(|(_, result)| result.as_ref().ok()).map(|checked| checked.messages).sum();
    table::add(
        &mut text,
        format_args!(
            "\n{}: {good} good, {} failed; {}. Nothing was changed.\n",
            table::number(rows.len() as u64, "record"),
            rows.len() - good,
            table::number(messages, "message"),
        ),
    );
    text
}
