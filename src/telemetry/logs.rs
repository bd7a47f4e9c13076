//! Logs on standard error: text or JSON lines, six levels, changed live.
//!
//! | level | what it adds | from `tracing` |
//! |---|---|---|
//! | `CrashOnly` | what ends the process | ERROR with the target `rpop::crash` |
//! | `Failures` | failed polls, refused messages | ERROR |
//! | `Major` | results of polls, start, stop, changes | INFO |
//! | `Problems` | passing troubles | WARN |
//! | `LowLevel` | protocol transcripts, redacted; details | TRACE with the target `rpop::transcript`, DEBUG of `rpop` |
//! | `AllInfo` | everything | DEBUG, TRACE |
//!
//! A line of text is `TIME RPOP LEVEL NAMESPACE/NAME: MESSAGE key=value`; the
//! name is there where the line is about a record. Control characters are
//! escaped, so that what a server says is never more than text.

use std::fmt;
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber, span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::domain::work::LogLevel;

/// The target of what ends the process; shown at every level.
pub const CRASH: &str = "rpop::crash";
/// The target of protocol transcripts, which the clients redact.
pub const TRANSCRIPT: &str = "rpop::transcript";
/// Where neither the command line nor `RpopSettings` say otherwise.
pub const DEFAULT_LEVEL: LogLevel = LogLevel::Problems;
/// A line is cut behind so many characters of text.
const LONGEST: usize = 4096;

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people, syslog and journald.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// All levels with their names, tersest first.
pub const LEVELS: [(LogLevel, &str); 6] = [
    (LogLevel::CrashOnly, "CrashOnly"),
    (LogLevel::Failures, "Failures"),
    (LogLevel::Major, "Major"),
    (LogLevel::Problems, "Problems"),
    (LogLevel::LowLevel, "LowLevel"),
    (LogLevel::AllInfo, "AllInfo"),
];

/// The name of a level, as in `RpopSettings.logLevel`.
pub fn level_name(level: LogLevel) -> &'static str {
    LEVELS.iter().find(|(other, _)| *other == level).map_or("AllInfo", |(_, name)| name)
}

/// Reads `crash-only`, `CrashOnly`, `crash only` and the like.
///
/// # Errors
/// Says which levels there are.
pub fn parse_level(text: &str) -> Result<LogLevel, String> {
    let plain = |text: &str| -> String {
        text.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    let wanted = plain(text);
    LEVELS.iter().find(|(_, name)| plain(name) == wanted).map(|(level, _)| *level).ok_or_else(|| {
        "the levels are crash-only, failures, major, problems, low-level and all-info".to_owned()
    })
}

/// The level at which an event is shown.
fn level_of(meta: &Metadata<'_>) -> LogLevel {
    let target = meta.target();
    let ours = target == "rpop" || target.starts_with("rpop::");
    match *meta.level() {
        Level::ERROR if target == CRASH => LogLevel::CrashOnly,
        Level::ERROR => LogLevel::Failures,
        Level::INFO if ours => LogLevel::Major,
        Level::WARN => LogLevel::Problems,
        Level::DEBUG if ours => LogLevel::LowLevel,
        Level::TRACE if target == TRANSCRIPT => LogLevel::LowLevel,
        _ => LogLevel::AllInfo,
    }
}

static DEFAULT: AtomicU8 = AtomicU8::new(DEFAULT_LEVEL as u8);
static LEVEL: AtomicU8 = AtomicU8::new(DEFAULT_LEVEL as u8);
/// The command line named a level: settings do not change it.
static FIXED: AtomicBool = AtomicBool::new(false);
static AROUND: OnceLock<Mutex<Option<indicatif::MultiProgress>>> = OnceLock::new();

/// Starts logging. To be called once, by `main`; `level` is the command line's.
pub fn start(level: Option<LogLevel>, format: Format) {
    if let Some(level) = level {
        LEVEL.store(level as u8, Ordering::Relaxed);
        FIXED.store(true, Ordering::Relaxed);
    }
    let lines = Lines::new(format, journal(), std::io::stderr().is_terminal());
    let subscriber = tracing_subscriber::registry().with(lines);
    // A second call changes nothing.
    drop(tracing::subscriber::set_global_default(subscriber));
}

/// Follows `RpopSettings.logLevel`, unless the command line named a level.
pub fn follow(level: Option<LogLevel>) {
    if FIXED.load(Ordering::Relaxed) {
        return;
    }
    let level = level.map_or_else(|| DEFAULT.load(Ordering::Relaxed), |level| level as u8);
    if LEVEL.swap(level, Ordering::Relaxed) != level {
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Changes what holds where nobody names a level; `level` is that of the
/// settings.
pub fn set_default(default: LogLevel, level: Option<LogLevel>) {
    DEFAULT.store(default as u8, Ordering::Relaxed);
    follow(level);
}

/// Lines go above these bars from now on.
pub fn write_above(bars: Option<indicatif::MultiProgress>) {
    *AROUND.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner) = bars;
}

/// Whether standard error is a stream of the journal, which adds the time and
/// takes a priority in front (sd-daemon(3)).
fn journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    rustix::fs::fstat(std::io::stderr())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Makes text from anywhere fit for one line: control characters, line
/// separators and direction overrides are written as `\u{..}`.
pub fn escape_into(out: &mut String, text: &str) {
    for c in text.chars().take(LONGEST) {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control()
                || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}') =>
            {
                out.extend(c.escape_unicode());
            }
            c => out.push(c),
        }
    }
}

struct Lines {
    format: Format,
    journal: bool,
    colour: bool,
}

impl Lines {
    fn new(format: Format, journal: bool, terminal: bool) -> Self {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { format, journal, colour: colour && format == Format::Text && !journal }
    }

    fn write(line: &str) {
        let write = || {
            // Nobody is left to be told when standard error is gone.
            drop(std::io::stderr().lock().write_all(line.as_bytes()));
        };
        let bars = AROUND.get().map(|bars| bars.lock().unwrap_or_else(PoisonError::into_inner));
        match bars.as_deref() {
            Some(Some(bars)) => bars.suspend(write),
            _ => write(),
        }
    }

    fn line(&self, level: LogLevel, now: jiff::Timestamp, said: &Said) -> String {
        let mut line = String::with_capacity(160);
        match self.format {
            Format::Text => self.text(&mut line, level, now, said),
            Format::Json => json(&mut line, level, now, said),
        }
        line.push('\n');
        line
    }

    fn text(&self, line: &mut String, level: LogLevel, now: jiff::Timestamp, said: &Said) {
        if self.journal {
            let priority = match level {
                LogLevel::CrashOnly => "2",
                LogLevel::Failures => "3",
                LogLevel::Problems => "4",
                LogLevel::Major => "6",
                LogLevel::LowLevel | LogLevel::AllInfo => "7",
            };
            line.extend(["<", priority, ">"]);
        } else {
            line.extend([format!("{now:.0}").as_str(), " "]);
        }
        let name = level_name(level);
        if self.colour {
            let colour = match level {
                LogLevel::CrashOnly | LogLevel::Failures => "31",
                LogLevel::Problems => "33",
                LogLevel::Major => "32",
                LogLevel::LowLevel | LogLevel::AllInfo => "2",
            };
            line.extend(["RPOP \u{1b}[", colour, "m", name, "\u{1b}[0m "]);
        } else {
            line.extend(["RPOP ", name, " "]);
        }
        if !said.record.is_empty() {
            escape_into(line, &said.record);
            line.push_str(": ");
        }
        escape_into(line, &said.message);
        for (key, value) in &said.fields {
            line.push(' ');
            line.push_str(key);
            line.push('=');
            if value.is_empty() || value.contains(|c: char| c.is_whitespace() || c == '"') {
                line.push('"');
                escape_into(line, &value.replace('"', "\\\""));
                line.push('"');
            } else {
                escape_into(line, value);
            }
        }
    }
}

fn json(line: &mut String, level: LogLevel, now: jiff::Timestamp, said: &Said) {
    let mut separator = '{';
    let mut put = |key: &str, value: &str| {
        line.push(separator);
        separator = ',';
        let value: String = value.chars().take(LONGEST).collect();
        // Text always has a JSON form, and what is in it is escaped.
        let text = |text: &str| serde_json::Value::from(text).to_string();
        line.extend([text(key), ":".to_owned(), text(&value)]);
    };
    put("time", &format!("{now:.3}"));
    put("tag", "RPOP");
    put("level", level_name(level));
    if !said.record.is_empty() {
        put("record", &said.record);
    }
    put("message", &said.message);
    for (key, value) in &said.fields {
        // What the line itself is made of is not overwritten by a field.
        let taken = matches!(*key, "time" | "tag" | "level" | "record" | "message");
        put(if taken { "field" } else { key }, value);
    }
    line.push('}');
}

/// What an event or a span carries.
#[derive(Clone, Default)]
struct Said {
    record: String,
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Said {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        match field.name() {
            "record" => self.record = value.to_string(),
            "message" => self.message = value.to_string(),
            name => self.fields.push((name, value.to_string())),
        }
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn register_callsite(&self, meta: &'static Metadata<'static>) -> Interest {
        if shown(meta) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, meta: &Metadata<'_>, _: Context<'_, S>) -> bool {
        shown(meta)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(if LEVEL.load(Ordering::Relaxed) < LogLevel::LowLevel as u8 {
            LevelFilter::INFO
        } else {
            LevelFilter::TRACE
        })
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut said = Said::default();
        attributes.record(&mut said);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(said);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        if said.record.is_empty() {
            let spans = context.event_scope(event).into_iter().flatten();
            for span in spans {
                if let Some(outer) = span.extensions().get::<Said>()
                    && !outer.record.is_empty()
                {
                    said.record.clone_from(&outer.record);
                    break;
                }
            }
        }
        Self::write(&self.line(level_of(event.metadata()), jiff::Timestamp::now(), &said));
    }
}

/// Spans of ours are always there: they carry the record's name.
fn shown(meta: &Metadata<'_>) -> bool {
    let level = LEVEL.load(Ordering::Relaxed);
    if meta.is_span() {
        return meta.target().starts_with("rpop") && *meta.level() <= Level::INFO;
    }
    !is_indiscreet(meta.target()) && level_of(meta) as u8 <= level
}

/// The client writes whole answers of the API server out, Secrets among them,
/// when it cannot read them; its watches dump each refusal, at each try. What
/// they ended with is told by whoever asked.
fn is_indiscreet(target: &str) -> bool {
    target.starts_with("kube_client::client") || target.starts_with("kube_runtime::watcher")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(record: &str, message: &str) -> Said {
        Said {
            record: record.to_owned(),
            message: message.to_owned(),
            fields: vec![("code", "AuthFailed".to_owned()), ("text", "two words".to_owned())],
        }
    }

    fn at() -> jiff::Timestamp {
        "2026-11-23T17:00:00.25Z".parse().unwrap()
    }

    #[test]
    fn a_line_says_when_what_about_which_record() {
        let lines = Lines { format: Format::Text, journal: false, colour: false };
        assert_eq!(
            lines.line(LogLevel::Major, at(), &said("mail/first-isp", "3 messages")),
            "2026-11-23T17:00:00Z RPOP Major mail/first-isp: 3 messages code=AuthFailed text=\"two words\"\n"
        );
        let journal = Lines { format: Format::Text, journal: true, colour: false };
        assert!(journal.line(LogLevel::Failures, at(), &said("", "no")).starts_with("<3>RPOP Failures no"));
    }

    #[test]
    fn json_lines_carry_the_tag() {
        let lines = Lines { format: Format::Json, journal: false, colour: false };
        let line = lines.line(LogLevel::Failures, at(), &said("mail/a", "a \"quoted\"\nline"));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["tag"], "RPOP");
        assert_eq!(value["level"], "Failures");
        assert_eq!(value["record"], "mail/a");
        assert_eq!(value["time"], "2026-11-23T17:00:00.250Z");
        assert_eq!(value["code"], "AuthFailed");
        assert_eq!(line.lines().count(), 1);
    }

    // quirks: "Log lines and status messages escape and cap what servers sent."
    #[test]
    fn what_a_server_says_stays_one_line_of_plain_text() {
        let lines = Lines { format: Format::Text, journal: false, colour: false };
        let evil = "-ERR\r\n2026-11-23T17:00:00Z RPOP Major fake\u{1b}[2J\u{202e}\0\u{9b}";
        let line = lines.line(LogLevel::Problems, at(), &said("mail/a", evil));
        assert_eq!(line.lines().count(), 1);
        assert!(!line.trim_end().contains(|c: char| c.is_control() || c == '\u{202e}'), "{line:?}");
        let long = lines.line(LogLevel::Problems, at(), &said("", &"x".repeat(1_000_000)));
        assert!(long.len() < 5000);
    }

    #[test]
    fn levels_are_named_as_people_write_them() {
        for text in ["crash-only", "CrashOnly", "CRASH_ONLY", "Crash Only"] {
            assert_eq!(parse_level(text), Ok(LogLevel::CrashOnly));
        }
        for (level, name) in LEVELS {
            assert_eq!(parse_level(name), Ok(level));
            assert_eq!(level_name(level), name);
        }
        assert!(parse_level("debug").unwrap_err().contains("low-level"));
    }
}
