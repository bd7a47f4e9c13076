//! What concerns the process as a whole.

use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::domain::work::{Settings, WorkItem};
use crate::engine::Engine;
use crate::engine::ports::{LedgerStore, Observer, Pending, Secrets, Stage};
use crate::engine::report::Report;
use crate::engine::sink::{MailPool, Sinks};
use crate::local::maildir::MaildirSink;
use crate::local::tokens::FileTokens;
use crate::net::Connector;
use crate::oauth::Tokens;
use crate::run::Poller;

/// Descriptors beside those of sessions: logs, ledgers, metrics, manifests.
const OTHER_FILES: u64 = 256;
const MANY_FILES: u64 = 65_536;

/// An engine over the real network.
pub(super) fn engine(
    secrets: impl Secrets + 'static,
    tokens: FileTokens,
    ledgers: Arc<dyn LedgerStore>,
    observer: Arc<dyn Observer>,
    trace_key: [u8; 16],
) -> Engine {
    let host_name = host_name();
    let connector = Arc::new(Connector::new());
    let secrets: Arc<dyn Secrets> = Arc::new(secrets);
    let mail = MailPool::new(Arc::clone(&connector), Arc::clone(&secrets), Arc::clone(&host_name));
    let maildir = MaildirSink::new(&host_name);
    let sink = Arc::new(Sinks::new(Arc::new(mail), Some(Arc::new(maildir))));
    let tokens = Tokens::new(Arc::clone(&connector), Arc::clone(&secrets), Arc::new(tokens));
    Engine { connector, secrets, tokens, ledgers, sink, observer, host_name, trace_key }
}

impl Poller for Engine {
    fn poll<'a>(
        &'a self,
        item: &'a WorkItem,
        settings: &'a Settings,
        stop: tokio::sync::watch::Receiver<Stage>,
    ) -> Pending<'a, Report> {
        Box::pin(Self::poll(self, item, settings, stop))
    }

    fn credentials<'a>(&'a self, item: &'a WorkItem) -> Pending<'a, Option<Box<str>>> {
        Box::pin(Self::credentials(self, item))
    }
}

/// This host's name: letters, digits, hyphens and dots, as EHLO wants it.
pub(super) fn host_name() -> Arc<str> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if name.is_empty() || name.len() > 255 || !name.chars().all(fits) { "localhost" } else { name }.into()
}

/// Lets the process open a POP3 and an SMTP connection for each of its
/// sessions, as far as the system allows.
pub(super) fn raise_file_limit(processors: u32) {
    let limit = getrlimit(Resource::Nofile);
    let wanted = u64::from(processors) * 3 + OTHER_FILES;
    let Some(current) = limit.current.filter(|current| *current < wanted) else { return };
    let possible = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    // If it may not be raised, the warning below says all there is to say.
    setrlimit(Resource::Nofile, Rlimit { current: Some(possible.max(current)), ..limit }).ok();
    if possible < wanted {
        tracing::warn!(
            "{possible} files may be open, {wanted} may be needed for {processors} processors: raise the limit \
             (LimitNOFILE= of a systemd unit, or ulimit -n), or lower RpopSettings.processors"
        );
    }
}

/// Lets the process open as many files as it may, up to a bound that is enough
/// for any number of processors: in a cluster that number changes live.
pub(super) fn raise_file_limit_far() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(MANY_FILES, |maximum| maximum.min(MANY_FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        // If it may not be raised, the metrics of open files show it.
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), ..limit }).ok();
    }
}

/// Panics are logged with their place; the poll that panicked fails alone.
pub(super) fn log_panics() {
    std::panic::set_hook(Box::new(|info| {
        let what = info.payload_as_str().unwrap_or("no message");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!("a defect of RPOP, please report it: {what} at {place}");
    }));
}
