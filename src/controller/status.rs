//! What is said of a record, a domain or the settings, in their status and as
//! an Event. Pure: the writing is [`super::write`]'s.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use super::apply::Applied;
use super::shown::{Said, Shown};
use super::validate::Refusal;
use crate::api::API_VERSION;
use crate::api::condition::LONGEST_MESSAGE;

/// The manager of the fields that the controller says.
pub(super) const MANAGER: &str = "rpop-controller";

/// A record that nothing is said against.
const ACCEPTED: &str = "Accepted";
/// Reasons of `Ready` that are the controller's own: until a worker says more.
const PENDING: &[(&str, &str)] = &[
    ("Pending", "not polled yet"),
    ("Paused", "not polled: paused is true"),
    ("Disabled", "not polled: pollEvery is Disabled"),
];

/// A condition as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Say {
    pub(super) status: &'static str,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What the status shall say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) generation: i64,
    pub(super) accepted: Say,
    /// A record whose `last` and `lastError` say why it is not polled.
    pub(super) refused: bool,
    /// `None`: it is a worker's to say.
    pub(super) ready: Option<Say>,
    pub(super) shard: Option<u32>,
    pub(super) factor: Option<u32>,
}

/// Something that people are told as it happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) warning: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

fn say(status: bool, reason: &'static str, message: &str) -> Say {
    let plain = message.chars().map(|c| if c.is_control() { ' ' } else { c });
    Say {
        status: if status { "True" } else { "False" },
        reason,
        message: plain.take(LONGEST_MESSAGE).collect(),
    }
}

fn accepted(warnings: &[String]) -> Say {
    if warnings.is_empty() {
        say(true, ACCEPTED, "complete and allowed")
    } else {
        say(true, ACCEPTED, &format!("accepted, but: {}", warnings.join("; ")))
    }
}

/// Of a record that is refused.
pub(super) fn of_refused(generation: i64, refusal: &Refusal) -> Wanted {
    let said = say(false, refusal.reason.as_str(), &refusal.message);
    Wanted { generation, ready: Some(said.clone()), accepted: said, refused: true, shard: None, factor: None }
}

/// Of a record that is among the work: only what was applied can be said.
pub(super) fn of_applied(applied: &Applied, shown: &Shown) -> Wanted {
    let Applied { generation, shard, factor, warnings, polled, paused } = applied;
    let pending = match (polled, paused) {
        (true, _) => 0,
        (false, true) => 1,
        (false, false) => 2,
    };
    let (reason, message) = PENDING[pending];
    let ready = ready_is_ours(shown).then(|| Say { status: "Unknown", reason, message: message.to_owned() });
    Wanted {
        generation: *generation,
        accepted: accepted(warnings),
        refused: false,
        ready,
        shard: Some((*shard).into()),
        factor: (*factor > 1).then_some(*factor),
    }
}

/// Whether `Ready` of an accepted record is ours to say. What a worker said
/// stands; what we said, a refusal among it, does not.
fn ready_is_ours(shown: &Shown) -> bool {
    shown.ready.as_ref().is_none_or(|ready| {
        PENDING.iter().any(|(reason, _)| **reason == *ready.reason)
            || shown.accepted.as_ref().is_some_and(|said| &*said.status == "False")
    })
}

/// Whether what was to be said of a record, is to be said of it as it is shown
/// by now: a worker may have said `Ready` meanwhile.
pub(super) fn holds(wanted: &Wanted, shown: &Shown) -> bool {
    wanted.refused || wanted.ready.is_some() == ready_is_ours(shown)
}

/// Of a domain or the settings.
pub(super) fn of_faults(generation: i64, faults: &[String], warnings: &[String]) -> Wanted {
    let said = if faults.is_empty() {
        accepted(warnings)
    } else {
        say(false, crate::domain::code::Code::ConfigInvalid.as_str(), &faults.join("; "))
    };
    Wanted { generation, accepted: said, refused: false, ready: None, shard: None, factor: None }
}

/// Whether the status says so already, since whenever.
pub(super) fn says(shown: &Shown, wanted: &Wanted) -> bool {
    let is = |said: Option<&Said>, say: &Say| {
        said.is_some_and(|said| {
            &*said.status == say.status
                && &*said.reason == say.reason
                && *said.message == *say.message
                && said.generation == Some(wanted.generation)
        })
    };
    let refused = match &shown.refused {
        Some(refused) => {
            wanted.refused
                && refused.last
                && *refused.code == *wanted.accepted.reason
                && *refused.message == *wanted.accepted.message
        }
        None => !wanted.refused,
    };
    refused
        && is(shown.accepted.as_ref(), &wanted.accepted)
        && wanted.ready.as_ref().is_none_or(|say| is(shown.ready.as_ref(), say))
        && shown.generation == Some(wanted.generation)
        && shown.shard == wanted.shard
        && shown.factor == wanted.factor
}

/// What is worth an Event: `Accepted` is no longer what it was. That a new
/// record is accepted without more ado is not.
pub(super) fn notice(shown: &Shown, wanted: &Wanted) -> Option<Notice> {
    let before = shown.accepted.as_ref();
    let Say { status, reason, message } = &wanted.accepted;
    let bad = *status == "False";
    let plain = !bad && message == &accepted(&[]).message;
    match before {
        None if plain => return None,
        Some(before) if &*before.status == *status && *before.message == **message => return None,
        _ => {}
    }
    Some(Notice { warning: !plain, reason, message: message.clone() })
}

/// The status as it is applied (server-side apply). The uid makes sure that it
/// is not another object of the same name by now.
pub(super) fn patch(
    kind: &str,
    namespace: Option<&str>,
    name: &str,
    uid: &str,
    wanted: &Wanted,
    shown: &Shown,
    now: Timestamp,
) -> Value {
    let condition = |kind: &str, say: &Say, said: Option<&Said>| Condition {
        type_: kind.into(),
        status: say.status.into(),
        reason: say.reason.into(),
        message: say.message.clone(),
        observed_generation: Some(wanted.generation),
        last_transition_time: said
            .filter(|said| &*said.status == say.status)
            .map_or(Time(now), |said| said.since.clone()),
    };
    let mut conditions = vec![condition("Accepted", &wanted.accepted, shown.accepted.as_ref())];
    conditions.extend(wanted.ready.iter().map(|say| condition("Ready", say, shown.ready.as_ref())));
    let since = conditions.first().map(|accepted| accepted.last_transition_time.clone());
    let mut status = json!({"observedGeneration": wanted.generation, "conditions": conditions});
    // Left out, they go with the refusal; what a worker wrote there is its own.
    if wanted.refused {
        let Say { reason, message, .. } = &wanted.accepted;
        status["last"] = (*reason).into();
        status["lastError"] = json!({"code": reason, "message": message, "since": since, "count": 0});
    }
    if let Some(shard) = wanted.shard {
        status["shard"] = shard.into();
    }
    if let Some(factor) = wanted.factor {
        status["shardFactor"] = factor.into();
    }
    let mut metadata = json!({"name": name, "uid": uid});
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    json!({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "status": status})
}

#[cfg(test)]
mod tests {
    use super::super::shown::Refused;
    use super::*;
    use crate::api::RpopRecordStatus;
    use crate::domain::code::Code;

    fn shown(wanted: &Wanted) -> Shown {
        let said = |say: &Say| Said {
            status: say.status.into(),
            reason: say.reason.into(),
            message: say.message.as_str().into(),
            generation: Some(wanted.generation),
            since: Time(Timestamp::UNIX_EPOCH),
        };
        Shown {
            accepted: Some(said(&wanted.accepted)),
            ready: wanted.ready.as_ref().map(said),
            refused: wanted.refused.then(|| {
                let Say { reason, message, .. } = &wanted.accepted;
                Box::new(Refused { code: (*reason).into(), message: message.as_str().into(), last: true })
            }),
            generation: Some(wanted.generation),
            shard: wanted.shard,
            factor: wanted.factor,
            ..Shown::default()
        }
    }

    fn refused() -> Wanted {
        of_refused(3, &Refusal { reason: Code::NotAllowed, message: "no\nmore".into() })
    }

    fn applied() -> Applied {
        Applied { generation: 4, shard: 7, factor: 1, warnings: Vec::new(), polled: true, paused: false }
    }

    #[test]
    fn a_refused_record_is_not_ready_for_the_same_reason() {
        let wanted = refused();
        assert_eq!(wanted.ready, Some(wanted.accepted.clone()));
        let object = patch("RpopRecord", Some("a"), "b", "u", &wanted, &Shown::default(), Timestamp::now());
        let conditions = object["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 2);
        assert_eq!(conditions[1]["type"], "Ready");
        assert_eq!(conditions[1]["reason"], "NotAllowed");
        assert_eq!(conditions[1]["message"], "no more");
        assert!(object["status"].get("shard").is_none());
    }

    #[test]
    fn last_names_what_a_refused_record_lacks_until_it_is_accepted() {
        let body = |wanted: &Wanted, shown: &Shown| {
            let object = patch("RpopRecord", Some("a"), "b", "u", wanted, shown, Timestamp::now());
            let status: RpopRecordStatus = serde_json::from_value(object["status"].clone()).unwrap();
            status
        };
        let refused = refused();
        let status = body(&refused, &Shown::default());
        assert_eq!(status.last.as_deref(), Some("NotAllowed"));
        let error = status.last_error.clone().unwrap();
        assert_eq!((&*error.code, &*error.message, error.count), ("NotAllowed", "no more", 0));
        let seen = Shown::of_record(&status);
        assert!(says(&seen, &refused));
        assert_eq!(seen.past.failures, 0, "it was not polled");

        // A worker that ends its last poll only now writes over it.
        let mut late = status.clone();
        late.last = Some("2030-01-01T00:00:00Z".into());
        late.last_error = None;
        let late = Shown::of_record(&late);
        assert!(!says(&late, &refused) && !seen.says_the_same(&late));
        let mut ready = status.clone();
        ready.conditions[1].status = "True".into();
        assert!(!seen.says_the_same(&Shown::of_record(&ready)));

        let accepted = of_applied(&applied(), &seen);
        assert!(!says(&seen, &accepted), "it is to be taken away");
        let status = body(&accepted, &seen);
        assert_eq!((status.last, status.last_error), (None, None));
    }

    #[test]
    fn nothing_is_written_for_a_status_that_says_so_already() {
        let wanted = refused();
        assert!(says(&shown(&wanted), &wanted));
        assert!(!says(&Shown::default(), &wanted));
        let newer = Wanted { generation: 9, ..wanted.clone() };
        assert!(!says(&shown(&wanted), &newer));
    }

    #[test]
    fn the_time_of_a_transition_is_kept_while_the_status_is() {
        let before = shown(&refused());
        let other = of_refused(3, &Refusal { reason: Code::DomainMissing, message: "gone".into() });
        let object = patch("RpopRecord", Some("a"), "b", "u", &other, &before, Timestamp::now());
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        let accepted = of_applied(&applied(), &before);
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let object = patch("RpopRecord", Some("a"), "b", "u", &accepted, &before, now);
        assert_eq!(object["status"]["conditions"][0]["lastTransitionTime"], "2030-01-01T00:00:00Z");
    }

    #[test]
    fn ready_is_unknown_until_a_worker_has_polled_and_then_the_workers() {
        let wanted = of_applied(&applied(), &shown(&refused()));
        assert_eq!(wanted.ready.as_ref().unwrap().reason, "Pending");
        assert_eq!(wanted.shard, Some(7));
        let mut polled = shown(&wanted);
        polled.ready.as_mut().unwrap().reason = "Polled".into();
        assert_eq!(of_applied(&applied(), &polled).ready, None);
        let paused = Applied { polled: false, paused: true, ..applied() };
        assert_eq!(of_applied(&paused, &Shown::default()).ready.unwrap().reason, "Paused");
    }

    #[test]
    fn what_a_worker_said_while_it_waited_to_be_written_is_not_written_over() {
        let pending = of_applied(&applied(), &Shown::default());
        assert!(holds(&pending, &Shown::default()) && holds(&pending, &shown(&pending)));
        let mut polled = shown(&pending);
        polled.ready.as_mut().unwrap().reason = "Polled".into();
        assert!(!holds(&pending, &polled));
        assert!(holds(&of_applied(&applied(), &polled), &polled));
        // A refusal is said whatever a worker says.
        assert!(holds(&refused(), &polled));
    }

    #[test]
    fn events_tell_changes_only() {
        let good = of_applied(&applied(), &Shown::default());
        assert_eq!(notice(&Shown::default(), &good), None);
        assert!(notice(&Shown::default(), &refused()).unwrap().warning);
        assert_eq!(notice(&shown(&refused()), &refused()), None);
        let now_good = notice(&shown(&refused()), &good).unwrap();
        assert_eq!((now_good.warning, now_good.reason), (false, "Accepted"));
        let warned = Applied { warnings: vec!["apop has no effect".into()], ..applied() };
        let warned = of_applied(&warned, &Shown::default());
        assert!(notice(&shown(&good), &warned).unwrap().warning);
    }
}
