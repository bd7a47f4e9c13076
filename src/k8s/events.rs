//! Events: what users see with `kubectl describe`. One recorder a process,
//! behind a bounded queue and a bounded rate: an Event may be lost, a status
//! never is.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::error::ApiError;
use crate::api::API_VERSION;
use crate::domain::text::causes;
use crate::domain::work::RecordKey;

/// Events that wait.
const QUEUE: usize = 256;
/// On an average not more often than this, after a burst of [`BURST`].
const EVERY: Duration = Duration::from_millis(200);
const BURST: u32 = 25;
/// One request.
const REQUEST: Duration = Duration::from_secs(10);
/// Octets of a note that the API server takes, with room for an ellipsis.
const LONGEST_NOTE: usize = 1000;

/// What has happened to what.
#[derive(Clone, Debug, PartialEq)]
pub struct Happening {
    /// The object: a record, a slice.
    pub regarding: ObjectReference,
    /// A trouble, or good news.
    pub warning: bool,
    /// From a closed list: the codes of `docs/errors.md`, `Recovered`, and
    /// those of [`reason`].
    pub reason: &'static str,
    /// What was being done.
    pub action: &'static str,
    /// For people; cut at 1000 octets.
    pub note: String,
}

/// Reasons beside the error codes.
pub mod reason {
    /// Polls succeed again.
    pub const RECOVERED: &str = "Recovered";
    /// A message was set aside.
    pub const SET_ASIDE: &str = "MessageSetAside";
    /// A slice was written by a newer controller.
    pub const NEWER_SLICE: &str = "NewerSlice";
}

/// Takes Events; a clone is the same one.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Happening>,
}

impl Events {
    /// Starts the recorder. It ends when all clones are gone.
    pub fn start(client: Client, controller: &str, instance: &str) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let reporter = Reporter { controller: controller.to_owned(), instance: Some(instance.to_owned()) };
        tokio::spawn(publish(Recorder::new(client, reporter), waiting));
        Self { queue }
    }

    /// Events go to the receiver: for tests.
    #[cfg(test)]
    pub(crate) fn heard() -> (Self, mpsc::Receiver<Happening>) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        (Self { queue }, waiting)
    }

    /// Returns at once; what does not fit the queue is not told.
    pub fn tell(&self, happening: Happening) {
        if let Err(error) = self.queue.try_send(happening) {
            let (mpsc::error::TrySendError::Full(lost) | mpsc::error::TrySendError::Closed(lost)) = error;
            tracing::debug!(reason = lost.reason, "too many Events: one is not told");
        }
    }
}

/// How Events name a record.
pub fn record_reference(key: &RecordKey, uid: &str) -> ObjectReference {
    reference("RpopRecord", &key.namespace, &key.name, uid)
}

/// How Events name an object of ours.
pub fn reference(kind: &str, namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some(API_VERSION.to_owned()),
        kind: Some(kind.to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    }
}

async fn publish(recorder: Recorder, mut waiting: mpsc::Receiver<Happening>) {
    // The moment up to which the budget is spent: it lags behind the clock by
    // what may come in a burst.
    let mut spent = Instant::now();
    while let Some(happening) = waiting.recv().await {
        let now = Instant::now();
        spent = spent.max(now.checked_sub(EVERY * BURST).unwrap_or(now)) + EVERY;
        tokio::time::sleep_until(spent).await;
        let event = Event {
            type_: if happening.warning { EventType::Warning } else { EventType::Normal },
            reason: happening.reason.to_owned(),
            note: Some(cut(happening.note)),
            action: happening.action.to_owned(),
            secondary: None,
        };
        let published = tokio::time::timeout(REQUEST, recorder.publish(&event, &happening.regarding)).await;
        match published {
            Ok(Ok(())) => {}
            // The namespace is going, or the API server is away: nobody reads it.
            Ok(Err(error)) => {
                let error = ApiError::from(error);
                tracing::debug!(reason = happening.reason, "an Event is not told: {}", causes(&error));
            }
            Err(_) => tracing::debug!(reason = happening.reason, "an Event is not told: no answer"),
        }
    }
}

fn cut(mut note: String) -> String {
    if note.len() > LONGEST_NOTE {
        let end = (0..=LONGEST_NOTE).rev().find(|at| note.is_char_boundary(*at)).unwrap_or(0);
        note.truncate(end);
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_fit_what_the_api_server_takes() {
        assert_eq!(cut("short".to_owned()), "short");
        let long = cut("ä".repeat(700));
        assert!(long.len() <= 1024 && long.ends_with("ä…"), "{}", long.len());
    }

    #[tokio::test]
    async fn a_flood_is_cut_and_never_waits() {
        let (events, mut heard) = Events::heard();
        for at in 0..1000 {
            let key = RecordKey { namespace: "mail".into(), name: format!("r{at}").into() };
            events.tell(Happening {
                regarding: record_reference(&key, "u"),
                warning: true,
                reason: "AuthFailed",
                action: "Polling",
                note: String::new(),
            });
        }
        let mut count = 0;
        while heard.try_recv().is_ok() {
            count += 1;
        }
        assert_eq!(count, QUEUE);
    }
}
