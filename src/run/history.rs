//! What is said of a poll, and what one run tells the next.

use std::time::Duration;

use super::status::{RecordStatus, Refusals};
use crate::domain::code::Code;
use crate::domain::work::{RecordKey, WorkItem};
use crate::engine::report::Report;
use crate::engine::scheduler::{Moment, Past};

/// Logs what a poll came to. A failure that lasts is told once, and again when
/// it becomes another one or ends.
pub(super) fn say(item: &WorkItem, report: &Report, told: Option<Code>, next: Option<Duration>) {
    let key = &item.key;
    let counters = &report.counters;
    let took = report.took.as_secs_f64();
    let next = next.map(|next| format!("{}s", next.as_secs()));
    let next = next.as_deref();
    match &report.refused {
        Some(refused) if counters.refused() > 0 => {
            tracing::error!(record = %key, code = %Code::MessageRejected, "a message was refused or set aside: {refused}");
        }
        Some(note) => tracing::info!(record = %key, "{note}"),
        None => {}
    }
    match &report.result {
        Ok(()) if counters.fetched > 0 || counters.deleted > 0 || told.is_some() => tracing::info!(
            record = %key,
            "{} of {} delivered, {} deleted, {} octets, {took:.1} s",
            counters.delivered, messages(counters.listed), counters.deleted, counters.bytes,
        ),
        Ok(()) => {
            tracing::debug!(record = %key, "nothing new among {}, {took:.1} s", messages(counters.listed));
        }
        Err(error) if error.code == Code::Interrupted => {
            tracing::info!(record = %key, "{}: {} delivered", error.message, messages(counters.delivered));
        }
        Err(error) if told == Some(error.code) => {
            tracing::warn!(record = %key, code = %error.code, next, "still: {}", error.message);
        }
        Err(error) => tracing::error!(record = %key, code = %error.code, next, "{}", error.message),
    }
}

/// Logs that logins are refused in a row, and when the next one is made.
pub(super) fn say_refused(key: &RecordKey, refusals: &Refusals, next: Option<Duration>) {
    let next = next.map(|next| format!("{}s", next.as_secs()));
    let since = jiff::Timestamp::from_second(refusals.since).unwrap_or_default();
    let logins = if refusals.count == 1 { "login was" } else { "logins were" };
    tracing::warn!(
        record = %key, code = %Code::AuthFailed, count = refusals.count, %since, next,
        "{} {logins} refused in a row: the next one waits, or comes when the record or its Secret changes",
        refusals.count,
    );
}

/// `1 message`, `2 messages`.
fn messages(count: u64) -> String {
    format!("{count} message{}", if count == 1 { "" } else { "s" })
}

/// What the scheduler wants to know of earlier runs.
pub(super) fn past(status: &RecordStatus, once: bool, delay: Duration) -> Past {
    let code = status.error.as_ref().map(|error| error.code);
    // Whether its host answered at the last poll, however that ended.
    let silent = matches!(
        code,
        Some(
            Code::HostNotFound
                | Code::HostUnreachable
                | Code::TimedOut
                | Code::AddressRefused
                | Code::SelfPoll
                | Code::TlsFailed
                | Code::ServerBusy
        )
    );
    let answered = status.last_poll.is_some() && !silent;
    if once {
        return Past { at_once: true, answered, ..Past::default() };
    }
    let refusals = status.error.as_ref().and_then(|error| error.refusals.as_ref());
    // Whether a login that was refused is still the same is looked at when its
    // turn comes: the Secret may be another one by now.
    let marked = code == Some(Code::AuthFailed) && refusals.is_some_and(|known| known.credentials.is_some());
    Past {
        last_poll: status.last_poll.map(moment),
        // A restart is how many people say “I have mended it”: a long back-off is
        // not held against them, yet a process that restarts again and again
        // troubles nobody.
        not_before: status.next_poll.filter(|_| code.is_some() && !marked).map(|next| {
            let soonest = moment(status.last_poll.unwrap_or(next)).after(delay);
            moment(next).min(soonest)
        }),
        failures: status.error.as_ref().map_or(0, |error| u16::try_from(error.count).unwrap_or(u16::MAX)),
        refused: refusals.map_or(0, |refusals| u16::try_from(refusals.count).unwrap_or(u16::MAX)),
        answered,
        at_once: false,
    }
}

pub(super) fn moment(unix: i64) -> Moment {
    Moment(u64::try_from(unix).unwrap_or(0).saturating_mul(1000))
}
