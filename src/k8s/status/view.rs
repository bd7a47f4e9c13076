//! What is written into a record's status: pure, from what it said when the
//! worker took the record, and from what has happened since.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::api::{API_VERSION, Counters, RpopRecordStatus};
use crate::domain::code::Code;
use crate::domain::work::RecordKey;
use crate::run::status::{LastError, RecordStatus, Refusals};

/// The conditions that are the worker's, in the order of [`View::conditions`].
const TYPES: [&str; 4] = ["Polled", "Delivered", "Ready", "Authenticated"];
const POLLED: usize = 0;
const DELIVERED: usize = 1;
/// What it says follows from those before it.
const READY: usize = 2;
const AUTHENTICATED: usize = 3;
/// Why messages wait, where it is not known better.
const WAITING: &str = "recipients were refused for now: they are tried again";

/// A condition but its type and generation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// `None` is Unknown.
    pub(super) status: Option<bool>,
    pub(super) reason: Box<str>,
    pub(super) message: Box<str>,
    /// Of the last transition; Unix seconds.
    pub(super) since: i64,
}

/// A failure that lasts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lasting {
    pub(super) code: Box<str>,
    pub(super) message: Box<str>,
    pub(super) since: i64,
    pub(super) count: u32,
    pub(super) refusals: Option<Refusals>,
}

/// What a record's status says, as far as it is the worker's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    last: Option<Box<str>>,
    last_poll: Option<i64>,
    next_poll: Option<i64>,
    pub(super) error: Option<Box<Lasting>>,
    pub(super) counters: Counters,
    conditions: [Known; 4],
}

impl View {
    /// What the record said when this worker took it.
    pub(super) fn read(status: &RpopRecordStatus) -> Self {
        let known = |type_: &str| {
            let condition = status.conditions.iter().find(|condition| condition.type_ == type_);
            condition.map_or_else(Known::default, |condition| Known {
                status: match condition.status.as_str() {
                    "True" => Some(true),
                    "False" => Some(false),
                    _ => None,
                },
                reason: condition.reason.as_str().into(),
                message: condition.message.as_str().into(),
                since: condition.last_transition_time.0.as_second(),
            })
        };
        // A refusal is the controller's to say, and to take away.
        let refusal = status.last_error.as_ref().filter(|error| error.is_refusal());
        let last = status.last.as_deref().filter(|last| refusal.is_none_or(|refusal| refusal.code != *last));
        Self {
            last: last.map(Into::into),
            last_poll: status.last_poll_time.as_ref().map(|time| time.0.as_second()),
            next_poll: status.next_poll_time.as_ref().map(|time| time.0.as_second()),
            error: status.last_error.as_ref().filter(|_| refusal.is_none()).map(|error| {
                Box::new(Lasting {
                    code: error.code.as_str().into(),
                    message: error.message.as_str().into(),
                    since: error.since.as_ref().map_or(0, |since| since.0.as_second()),
                    count: error.count,
                    refusals: error.refused_logins.as_ref().map(|refused| Refusals {
                        since: refused.since.0.as_second(),
                        count: refused.count,
                        credentials: refused.credentials.as_deref().map(Into::into),
                    }),
                })
            }),
            counters: status.counters.unwrap_or_default(),
            conditions: TYPES.map(known),
        }
    }

    /// What it says now: `before`, continued by what has happened in this
    /// worker since. `told` is what was written last.
    pub(super) fn of(before: &Self, told: &Self, status: &RecordStatus, now: i64) -> Self {
        let polled = status.totals.polls > 0 || status.error.is_some();
        let error = match &status.error {
            Some(error) => {
                // A success in between would have ended the earlier one.
                let before = before.error.as_deref().filter(|_| status.last_success.is_none());
                let earlier = before.filter(|earlier| *earlier.code == *error.code.as_str());
                Some(Box::new(Lasting {
                    refusals: refusals(before.and_then(|before| before.refusals.as_ref()), error),
                    code: error.code.as_str().into(),
                    message: error.message.clone(),
                    since: earlier.map_or(error.since, |earlier| earlier.since),
                    count: error.count.saturating_add(earlier.map_or(0, |earlier| earlier.count)),
                }))
            }
            None if status.last_success.is_some() => None,
            None => before.error.clone(),
        };
        let last = if polled { Some(status.last().into_boxed_str()) } else { before.last.clone() };
        let known = |at: usize| told.conditions.get(at).cloned().unwrap_or_default();
        let mut view = Self {
            last: last.filter(|last| !last.is_empty()),
            last_poll: status.last_poll.or(before.last_poll),
            next_poll: status.next_poll,
            error,
            counters: counters(before, status),
            conditions: [known(POLLED), known(DELIVERED), known(READY), known(AUTHENTICATED)],
        };
        view.judge(status, now);
        view
    }

    fn judge(&mut self, status: &RecordStatus, now: i64) {
        let went_through = || (Some(true), "Polled", "the last session went through");
        let failed = status.error.as_deref();
        let said = |code: Code| {
            matches!(code, Code::DestinationUnavailable | Code::DestinationRefused | Code::MessageRejected)
        };
        let (polled, delivered) = match failed {
            Some(error) if said(error.code) => {
                (Some(went_through()), Some((Some(false), error.code.as_str(), &*error.message)))
            }
            Some(error) => (Some((Some(false), error.code.as_str(), &*error.message)), None),
            None if status.last_success.is_none() => (None, None),
            None if status.totals.in_quarantine > 0 => {
                let why = status.set_aside.as_deref().map_or("messages are set aside", |why| &**why);
                (Some(went_through()), Some((Some(false), Code::MessageRejected.as_str(), why)))
            }
            None if status.totals.waiting > 0 => {
                let why = status.set_aside.as_deref().map_or(WAITING, |why| &**why);
                (Some(went_through()), Some((Some(false), "Deferred", why)))
            }
            None => {
                (Some(went_through()), Some((Some(true), "Delivered", "all that was retrieved was accepted")))
            }
        };
        let unknown = (None, "NotPolledYet", "no poll has ended yet");
        for (at, said) in [(POLLED, polled), (DELIVERED, delivered)] {
            let known = self.conditions.get(at).is_some_and(|known| !known.reason.is_empty());
            if let Some(said) = said.or((!known).then_some(unknown)) {
                self.set(at, said, now);
            }
        }
        let bad = self.conditions.iter().take(READY).find(|known| known.status != Some(true)).cloned();
        match bad {
            Some(bad) => self.set(READY, (bad.status, &bad.reason, &bad.message), now),
            None => self.set(READY, (Some(true), "Ready", "polled, and all was delivered"), now),
        }
        self.judge_login(status, now);
    }

    fn judge_login(&mut self, status: &RecordStatus, now: i64) {
        let taken = match &status.error {
            Some(error) => error.code.is_behind_login(),
            None => status.last_success.is_some(),
        };
        if let Some(error) = self.error.as_deref().filter(|error| error.refusals.is_some()) {
            let Some(refusals) = error.refusals.as_ref() else { return };
            let since = refusals.since;
            let times = match refusals.count {
                1 => format!("the login at {} was refused", shown_time(since)),
                count => format!("{count} logins in a row were refused since {}", shown_time(since)),
            };
            let next = self.next_poll.map(|next| format!(" until {}", shown_time(next))).unwrap_or_default();
            let why = if *error.code == *Code::AuthFailed.as_str() { &*error.message } else { "" };
            let colon = if why.is_empty() { "" } else { ": " };
            let message = format!(
                "{times}; the next one waits{next}, or for a change of the record or its Secret{colon}{why}"
            );
            self.set(AUTHENTICATED, (Some(false), Code::AuthFailed.as_str(), &message), now);
            if let Some(known) = self.conditions.get_mut(AUTHENTICATED) {
                known.since = since;
            }
        } else if taken {
            self.set(AUTHENTICATED, (Some(true), "Authenticated", "the server took the last login"), now);
        } else if self.conditions.get(AUTHENTICATED).is_none_or(|known| known.reason.is_empty()) {
            self.set(AUTHENTICATED, (None, "NotPolledYet", "no login has been made yet"), now);
        }
    }

    fn set(&mut self, at: usize, (status, reason, message): (Option<bool>, &str, &str), now: i64) {
        let Some(known) = self.conditions.get_mut(at) else { return };
        if known.status != status || known.reason.is_empty() {
            known.since = now;
        }
        known.status = status;
        reason.clone_into_box(&mut known.reason);
        message.clone_into_box(&mut known.message);
    }

    /// Whether a reader of `kubectl get rpop` would call it the same: then it
    /// is not urgent.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let code = |view: &Self| view.error.as_ref().map(|error| error.code.clone());
        code(self) == code(other)
            && self.counters.quarantined == other.counters.quarantined
            && self
                .conditions
                .iter()
                .zip(&other.conditions)
                .all(|(one, two)| one.status == two.status && one.reason == two.reason)
    }

    /// Logins refused in a row, and what the condition says of them.
    pub(super) fn refused(&self) -> (u32, &str) {
        let count =
            self.error.as_deref().and_then(|error| error.refusals.as_ref()).map_or(0, |all| all.count);
        (count, self.conditions.get(AUTHENTICATED).map_or("", |known| &*known.message))
    }

    /// Why messages are set aside, as the condition says it.
    pub(super) fn why_set_aside(&self) -> &str {
        self.conditions.get(DELIVERED).map_or("", |known| &*known.message)
    }

    /// The patch for server-side apply: all that is the worker's, and the uid,
    /// so that a record made anew under the same name is not meant.
    pub(super) fn patch(&self, key: &RecordKey, uid: &str, generation: i64) -> Value {
        let conditions: Vec<Value> = TYPES
            .iter()
            .zip(&self.conditions)
            .map(|(type_, known)| {
                json!({
                    "type": type_,
                    "status": match known.status { Some(true) => "True", Some(false) => "False", None => "Unknown" },
                    "reason": known.reason,
                    "message": known.message,
                    "observedGeneration": generation,
                    "lastTransitionTime": time(known.since),
                })
            })
            .collect();
        let mut status = Map::new();
        let mut put =
            |name: &str, value: Option<Value>| value.map(|value| status.insert(name.to_owned(), value));
        put("last", self.last.as_deref().map(Value::from));
        put("lastPollTime", self.last_poll.map(time));
        put("nextPollTime", self.next_poll.map(time));
        put("lastError", self.error.as_deref().map(|error| {
            let number = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
            let mut said = json!({
                "code": error.code, "message": error.message, "since": time(error.since), "count": number(error.count),
            });
            if let Some(Refusals { since, count, credentials }) = &error.refusals {
                said["refusedLogins"] = json!({"since": time(*since), "count": number(*count)});
                if let Some(credentials) = credentials {
                    said["refusedLogins"]["credentials"] = Value::from(&**credentials);
                }
            }
            said
        }));
        put("counters", serde_json::to_value(self.counters).ok());
        put("conditions", Some(conditions.into()));
        let mut metadata = json!({"name": key.name, "namespace": key.namespace});
        if !uid.is_empty() {
            metadata["uid"] = uid.into();
        }
        json!({"apiVersion": API_VERSION, "kind": "RpopRecord", "metadata": metadata, "status": status})
    }
}

trait IntoBox {
    /// Allocates only where it differs.
    fn clone_into_box(&self, place: &mut Box<str>);
}

impl IntoBox for str {
    fn clone_into_box(&self, place: &mut Box<str>) {
        if **place != *self {
            *place = self.into();
        }
    }
}

fn counters(before: &View, status: &RecordStatus) -> Counters {
    let (base, since) = (before.counters, status.totals);
    let seen = status.last_success.is_some() || since.in_quarantine > 0 || since.waiting > 0;
    Counters {
        polls: base.polls.saturating_add(since.polls),
        fetched: base.fetched.saturating_add(since.fetched),
        delivered: base.delivered.saturating_add(since.delivered),
        rejected: base.rejected.saturating_add(since.rejected),
        quarantined: if seen { since.in_quarantine.into() } else { base.quarantined },
        waiting: if seen { since.waiting.into() } else { base.waiting },
        bytes: base.bytes.saturating_add(since.bytes),
    }
}

/// Refused logins go on after a move, unless others were made with what is
/// another Secret by now.
fn refusals(before: Option<&Refusals>, error: &LastError) -> Option<Refusals> {
    match (before, &error.refusals) {
        (Some(before), Some(now)) if before.credentials == now.credentials => Some(Refusals {
            since: before.since,
            count: before.count.saturating_add(now.count),
            ..now.clone()
        }),
        (_, Some(now)) => Some(now.clone()),
        (before, None) => before.filter(|_| !error.code.is_behind_login()).cloned(),
    }
}

fn shown_time(unix: i64) -> String {
    Timestamp::from_second(unix).unwrap_or_default().to_string()
}

fn time(unix: i64) -> Value {
    Timestamp::from_second(unix).unwrap_or_default().to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::report::Counters as Done;

    fn good(fetched: u64) -> Done {
        Done { listed: fetched, fetched, delivered: fetched, bytes: 100 * fetched, ..Done::default() }
    }

    fn next(before: &View, told: &View, status: &RecordStatus) -> View {
        View::of(before, told, status, 1_700_000_000)
    }

    fn condition(view: &View, type_: &str) -> (String, String) {
        let key = RecordKey { namespace: "mail".into(), name: "isp".into() };
        let patch = view.patch(&key, "u", 3);
        let conditions = patch["status"]["conditions"].as_array().unwrap().clone();
        let found = conditions.into_iter().find(|condition| condition["type"] == type_).unwrap();
        (found["status"].as_str().unwrap().to_owned(), found["reason"].as_str().unwrap().to_owned())
    }

    fn is(status: &str, reason: &str) -> (String, String) {
        (status.to_owned(), reason.to_owned())
    }

    #[test]
    fn counters_and_failures_go_on_after_a_move() {
        let mut first = RecordStatus::default();
        first.succeeded(1000, &good(5));
        first.failed(1300, Code::AuthFailed, "refused", &good(0));
        first.failed(1600, Code::AuthFailed, "refused", &good(0));
        let none = View::default();
        let told = next(&none, &none, &first);
        let key = RecordKey { namespace: "mail".into(), name: "isp".into() };
        let written: RpopRecordStatus =
            serde_json::from_value(told.patch(&key, "u", 3)["status"].clone()).unwrap();
        let before = View::read(&written);

        let mut second = RecordStatus::default();
        second.failed(1900, Code::AuthFailed, "refused again", &good(0));
        let view = next(&before, &before, &second);
        assert_eq!((view.counters.polls, view.counters.fetched), (4, 5));
        let error = view.error.clone().unwrap();
        assert_eq!((error.since, error.count, &*error.message), (1300, 3, "refused again"));
        assert!(view.is_like(&before), "the same failure is no news");
        let refusals = error.refusals.unwrap();
        assert_eq!((refusals.since, refusals.count), (1300, 3));
        assert_eq!(condition(&view, "Authenticated"), is("False", "AuthFailed"));
        let (count, said) = view.refused();
        assert!(
            count == 3 && said.contains("3 logins in a row were refused since 1970-01-01T00:21:40Z"),
            "{said}"
        );
        assert_eq!(view.conditions[AUTHENTICATED].since, 1300);

        second.succeeded(2200, &good(2));
        let view = next(&before, &view, &second);
        assert_eq!((view.error.is_none(), view.counters.delivered, view.counters.bytes), (true, 7, 700));
        assert_eq!(condition(&view, "Authenticated"), is("True", "Authenticated"));
        assert!(!view.is_like(&before));
        second.failed(2500, Code::AuthFailed, "once more", &good(0));
        let error = next(&before, &view, &second).error.unwrap();
        assert_eq!((error.since, error.count), (2500, 1), "a success lay between");
    }

    #[test]
    fn conditions_say_which_side_is_in_trouble() {
        let none = View::default();
        let mut status = RecordStatus::default();
        let view = next(&none, &none, &status);
        assert_eq!(condition(&view, "Ready"), is("Unknown", "NotPolledYet"));
        status.succeeded(10, &good(1));
        let view = next(&none, &view, &status);
        for type_ in TYPES {
            assert_eq!(condition(&view, type_).0, "True", "{type_}");
        }
        status.failed(20, Code::DestinationUnavailable, "refused", &good(0));
        let view = next(&none, &view, &status);
        assert_eq!(condition(&view, "Polled"), is("True", "Polled"));
        assert_eq!(condition(&view, "Delivered"), is("False", "DestinationUnavailable"));
        assert_eq!(condition(&view, "Ready"), is("False", "DestinationUnavailable"));
        // What is known of the deliveries stays while the server is away.
        status.failed(30, Code::HostUnreachable, "no route", &good(0));
        let view = next(&none, &view, &status);
        assert_eq!(condition(&view, "Polled"), is("False", "HostUnreachable"));
        assert_eq!(condition(&view, "Delivered"), is("False", "DestinationUnavailable"));
        assert_eq!(condition(&view, "Ready"), is("False", "HostUnreachable"));
        // Nor is mail delivered that some of its recipients lack.
        status.succeeded(35, &Done { waiting: 1, ..good(1) });
        status.tell_set_aside(Some("refused for now: 452 full"));
        let view = next(&none, &view, &status);
        assert_eq!(condition(&view, "Delivered"), is("False", "Deferred"));
        assert_eq!(condition(&view, "Ready"), is("False", "Deferred"));
        assert_eq!((view.why_set_aside(), view.counters.waiting), ("refused for now: 452 full", 1));
        // Quarantined mail is not delivered mail.
        status.succeeded(40, &Done { in_quarantine: 1, ..good(1) });
        status.tell_set_aside(Some("550 no"));
        let view = next(&none, &view, &status);
        assert_eq!(condition(&view, "Polled"), is("True", "Polled"));
        assert_eq!(condition(&view, "Delivered"), is("False", "MessageRejected"));
        assert_eq!(condition(&view, "Ready"), is("False", "MessageRejected"));
    }

    #[test]
    fn a_transition_has_a_time_and_a_success_that_lasts_keeps_it() {
        let none = View::default();
        let mut status = RecordStatus::default();
        status.succeeded(10, &good(1));
        let first = View::of(&none, &none, &status, 10);
        status.succeeded(310, &good(1));
        let second = View::of(&none, &first, &status, 310);
        assert_eq!(second.conditions[READY].since, 10);
        assert!(second.is_like(&first) && second != first);
        status.failed(610, Code::TimedOut, "", &good(0));
        let third = View::of(&none, &second, &status, 610);
        assert_eq!(third.conditions[READY].since, 610);
    }

    #[test]
    fn a_status_without_a_poll_keeps_what_others_wrote() {
        let none = View::default();
        let mut status = RecordStatus::default();
        status.succeeded(1000, &good(5));
        let before = next(&none, &none, &status);
        let waiting = RecordStatus { next_poll: Some(5000), ..RecordStatus::default() };
        let view = next(&before, &before, &waiting);
        assert_eq!((view.last.as_deref(), view.last_poll), (Some("1970-01-01T00:16:40Z"), Some(1000)));
        assert_eq!(view.counters, before.counters);
        assert_eq!(view.next_poll, Some(5000));
        assert!(view.is_like(&before));
    }

    #[test]
    fn a_refusal_does_not_outlive_itself_in_what_a_worker_writes() {
        let refused: RpopRecordStatus = serde_json::from_value(json!({
            "last": "NotAllowed",
            "lastError": {"code": "NotAllowed", "message": "no", "since": time(500), "count": 0},
            "counters": {"polls": 7},
        }))
        .unwrap();
        let before = View::read(&refused);
        let waiting = next(&before, &before, &RecordStatus::default());
        assert_eq!((waiting.last.as_deref(), waiting.error.is_none()), (None, true));
        assert_eq!(waiting.counters.polls, 7);
        let mut status = RecordStatus::default();
        status.succeeded(1000, &good(1));
        assert_eq!(next(&before, &waiting, &status).last.as_deref(), Some("1970-01-01T00:16:40Z"));
    }

    #[test]
    fn the_patch_has_nothing_of_the_controllers() {
        let mut status = RecordStatus::default();
        status.succeeded(1000, &good(5));
        let none = View::default();
        let key = RecordKey { namespace: "mail".into(), name: "isp".into() };
        let patch = next(&none, &none, &status).patch(&key, "8d3c", 3);
        assert_eq!(patch["metadata"]["uid"], "8d3c");
        let status = patch["status"].as_object().unwrap();
        assert!(!status.contains_key("shard") && !status.contains_key("observedGeneration"));
        assert!(!status.contains_key("lastError"), "left out is removed");
        let types: Vec<&str> = patch["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|condition| condition["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, TYPES);
    }
}
