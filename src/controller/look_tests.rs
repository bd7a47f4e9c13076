use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::*;
use crate::domain::code::Code;
use crate::domain::work::Source;

fn meta(namespace: Option<&str>, name: &str, generation: i64) -> ObjectMeta {
    ObjectMeta {
        namespace: namespace.map(Into::into),
        name: Some(name.into()),
        uid: Some(format!("uid-of-{name}")),
        resource_version: Some(generation.to_string()),
        generation: Some(generation),
        creation_timestamp: Some(Time(jiff::Timestamp::UNIX_EPOCH)),
        ..ObjectMeta::default()
    }
}

fn key(namespace: &str, name: &str) -> RecordKey {
    RecordKey { namespace: namespace.into(), name: name.into() }
}

fn spec(more: &Value) -> Value {
    let mut spec = json!({
        "account": "alice@example.com",
        "remote": {"host": "pop.isp.example", "account": "alice77", "passwordSecretRef": {"name": "s"}},
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

fn record(view: &mut View, namespace: &str, name: &str, more: &Value) {
    let generation = view.get(&key(namespace, name)).map_or(1, |record| record.generation + 1);
    let spec = serde_json::from_value(spec(more)).map_err(|error| error.to_string());
    view.record(&meta(Some(namespace), name, generation), spec, None);
}

fn domain(view: &mut View, name: &str, generation: i64, more: &Value) {
    let mut spec = json!({"delivery": {"smtp": {"host": "mx.example.com"}}});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    view.domain(&meta(None, name, generation), serde_json::from_value(spec).map_err(|e| e.to_string()), None);
}

fn settings(view: &mut View, generation: i64, spec: Value) {
    let spec = serde_json::from_value(spec).map_err(|error| error.to_string());
    view.set_settings(&meta(None, "default", generation), &spec, None);
}

fn labels(team: &str) -> BTreeMap<String, String> {
    [("team".to_owned(), team.to_owned())].into()
}

fn view() -> View {
    let mut view = View::new("rpop-system".into());
    view.namespace("rpop-system", BTreeMap::new(), false);
    view.namespace("team-a", labels("a"), false);
    view.namespace("team-b", labels("b"), false);
    view
}

/// Looks at everything that waits for it, until nothing does.
fn settle(view: &mut View) -> BTreeMap<RecordKey, Looked> {
    let mut all = BTreeMap::new();
    for _ in 0..10 {
        for key in view.take_dirty(1000) {
            let looked = look(view, &key);
            all.insert(key, looked);
        }
    }
    all
}

fn refused(looked: &Looked) -> (Code, &str) {
    match looked {
        Looked::Refused { refusal, .. } => (refusal.reason, &refusal.message),
        other => panic!("{other:?}"),
    }
}

fn prepared(looked: &Looked) -> &Prepared {
    match looked {
        Looked::Prepared(prepared) => prepared,
        other => panic!("{other:?}"),
    }
}

fn one(view: &mut View, namespace: &str, name: &str) -> Looked {
    let key = key(namespace, name);
    settle(view).remove(&key).unwrap_or_else(|| panic!("{key} was not looked at"))
}

#[test]
fn a_record_of_the_system_namespace_needs_no_allow() {
    let mut view = view();
    domain(&mut view, "example.com", 1, &json!({"postmaster": "chief", "aliases": ["Example.NET"]}));
    record(&mut view, "rpop-system", "r", &json!({"account": "alice@EXAMPLE.net", "pollEvery": "5m"}));
    let looked = one(&mut view, "rpop-system", "r");
    let prepared = prepared(&looked);
    assert_eq!(&*prepared.item.destination.domain, "example.com");
    assert_eq!(prepared.item.postmaster.as_ref().unwrap().as_str(), "chief@example.com");
    assert_eq!((&*prepared.item.remote.host, prepared.item.remote.port), ("pop.isp.example", 995));
    assert_eq!(prepared.warnings, [""; 0]);
}

#[test]
fn a_domain_that_is_missing_is_said_and_its_records_follow_when_it_comes_and_goes() {
    let mut view = view();
    record(&mut view, "rpop-system", "r", &json!({}));
    let looked = one(&mut view, "rpop-system", "r");
    let (reason, message) = refused(&looked);
    assert_eq!(reason, Code::DomainMissing);
    assert!(message.contains("there is no RpopDomain example.com: write one"), "{message}");
    domain(&mut view, "other.example", 1, &json!({}));
    assert!(settle(&mut view).is_empty(), "another domain is of no concern");
    domain(&mut view, "example.com", 1, &json!({}));
    prepared(&one(&mut view, "rpop-system", "r"));
    view.domain_gone("example.com");
    assert_eq!(refused(&one(&mut view, "rpop-system", "r")).0, Code::DomainMissing);
}

#[test]
fn allow_decides_by_the_labels_of_the_namespace_and_the_account() {
    let mut view = view();
    let pair = |accounts: &[&str]| json!({"allow": [{"namespaces": {"matchLabels": {"team": "a"}}, "accounts": accounts}]});
    domain(&mut view, "example.com", 1, &json!({}));
    record(&mut view, "team-a", "r", &json!({}));
    let looked = one(&mut view, "team-a", "r");
    let (reason, message) = refused(&looked);
    assert_eq!(reason, Code::NotAllowed);
    for part in [
        "namespace team-a",
        "alice@example.com",
        "RpopDomain example.com",
        "allow: [{namespaces:",
        "accounts: [\"alice\"]",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    domain(&mut view, "example.com", 2, &pair(&["bob", "ali*"]));
    prepared(&one(&mut view, "team-a", "r"));
    domain(&mut view, "example.com", 3, &pair(&["bob"]));
    refused(&one(&mut view, "team-a", "r"));
    domain(&mut view, "example.com", 4, &pair(&["*"]));
    prepared(&one(&mut view, "team-a", "r"));
    view.namespace("team-a", labels("b"), false);
    refused(&one(&mut view, "team-a", "r"));
    view.namespace("team-b", labels("a"), false);
    assert!(settle(&mut view).is_empty(), "another namespace is of no concern");
}

#[test]
fn a_namespace_that_is_being_deleted_has_no_work() {
    let mut view = view();
    domain(&mut view, "example.com", 1, &json!({}));
    record(&mut view, "rpop-system", "r", &json!({}));
    prepared(&one(&mut view, "rpop-system", "r"));
    view.namespace("rpop-system", BTreeMap::new(), true);
    assert!(refused(&one(&mut view, "rpop-system", "r")).1.contains("being deleted"));
}

#[test]
fn a_record_waits_until_its_namespace_has_been_seen() {
    let mut view = view();
    domain(&mut view, "example.com", 1, &json!({}));
    record(&mut view, "late", "r", &json!({}));
    assert!(matches!(one(&mut view, "late", "r"), Looked::Later));
    view.namespace("late", BTreeMap::new(), false);
    assert_eq!(refused(&one(&mut view, "late", "r")).0, Code::NotAllowed);
}

#[test]
fn a_maildir_is_for_one_machine() {
    let mut view = view();
    domain(&mut view, "example.com", 1, &json!({"delivery": {"maildir": {"path": "/m/{local}"}}}));
    record(&mut view, "rpop-system", "r", &json!({}));
    let looked = one(&mut view, "rpop-system", "r");
    assert_eq!(refused(&looked), (Code::ConfigInvalid, "RpopDomain example.com has errors"));
    let faults = view.domain_named("example.com").unwrap().usable.as_ref().unwrap_err();
    assert!(faults[0].contains("delivery.maildir") && faults[0].contains("write smtp or lmtp"), "{faults:?}");
}

#[test]
fn what_cannot_be_done_is_refused_with_what_to_write() {
    let mut view = view();
    domain(&mut view, "example.com", 1, &json!({}));
    for (more, parts) in [
        (
            json!({"mailbox": "Archive"}),
            ["spec.mailbox: mailbox needs delivery.lmtp", "RpopDomain example.com"],
        ),
        (json!({"special": "Received"}), ["spec.special: this header has another use", "like X-Original-To"]),
        (json!({"pollEvery": "often"}), ["cannot be read by this version", "duration"]),
    ] {
        record(&mut view, "rpop-system", "r", &more);
        let looked = one(&mut view, "rpop-system", "r");
        let (reason, message) = refused(&looked);
        assert_eq!(reason, Code::ConfigInvalid);
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    }
}

#[test]
fn never_removes_what_was_seen_and_nothing_newer() {
    let mut view = view();
    record(&mut view, "team-b", "r", &json!({"pollEvery": "Never"}));
    match one(&mut view, "team-b", "r") {
        Looked::Remove { uid, version } => assert_eq!((&*uid, &*version), ("uid-of-r", "1")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn paused_and_disabled_records_are_work_that_is_not_polled() {
    let mut view = view();
    domain(&mut view, "example.com", 1, &json!({}));
    record(&mut view, "rpop-system", "p", &json!({"paused": true}));
    record(&mut view, "rpop-system", "d", &json!({"pollEvery": "Disabled"}));
    let all = settle(&mut view);
    for (name, paused) in [("p", true), ("d", false)] {
        let prepared = prepared(&all[&key("rpop-system", name)]);
        assert_eq!((prepared.item.interval, prepared.paused), (None, paused));
    }
}

#[test]
fn a_domains_addresses_are_connected_from_where_both_want_it() {
    let source = |all: &[&str]| Source::first_of(all.iter().map(|text| text.parse().unwrap()));
    let mut view = view();
    let addresses = ["192.0.2.5", "192.0.2.6", "2001:db8::5"];
    domain(&mut view, "a.example", 1, &json!({"assignedAddresses": addresses, "useForOutgoing": true}));
    domain(&mut view, "b.example", 1, &json!({"assignedAddresses": addresses}));
    for name in ["a", "b"] {
        record(&mut view, "rpop-system", name, &json!({"account": format!("x@{name}.example")}));
    }
    let mut sources = |generation, spec| {
        settings(&mut view, generation, spec);
        let all = settle(&mut view);
        ["a", "b"].map(|name| prepared(&all[&key("rpop-system", name)]).item.source_address)
    };
    assert_eq!(sources(1, json!({"sourceAddress": "192.0.2.9"})), [source(&["192.0.2.9"]); 2]);
    let own = source(&["192.0.2.5", "2001:db8::5"]);
    assert_eq!(sources(2, json!({"useDomainAddresses": true})), [own, None]);
    let both = json!({"useDomainAddresses": true, "sourceAddress": "192.0.2.9"});
    assert_eq!(sources(3, both), [own, source(&["192.0.2.9"])]);
    domain(&mut view, "a.example", 2, &json!({"assignedAddresses": ["192.0.2.7"], "useForOutgoing": true}));
    let looked = one(&mut view, "rpop-system", "a");
    assert_eq!(prepared(&looked).item.source_address, source(&["192.0.2.7"]));
}

#[test]
fn apop_needs_the_settings_and_follows_them() {
    let mut view = view();
    domain(&mut view, "example.com", 1, &json!({}));
    record(&mut view, "rpop-system", "r", &json!({"apop": true}));
    let looked = one(&mut view, "rpop-system", "r");
    assert!(!prepared(&looked).item.remote.apop);
    assert_eq!(prepared(&looked).warnings, ["spec.apop: apop has no effect: RpopSettings has useApop off"]);
    settings(&mut view, 1, json!({"useApop": true, "sourceAddress": "192.0.2.9"}));
    let looked = one(&mut view, "rpop-system", "r");
    assert!(prepared(&looked).item.remote.apop);
    assert_eq!(prepared(&looked).item.source_address, Source::first_of(["192.0.2.9".parse().unwrap()]));
    // Broken settings leave in force what was.
    let nowhere = json!({"timeZone": "Mars/Base", "windows": [{"from": "08:00", "to": "18:00"}]});
    settings(&mut view, 2, json!({"useApop": false, "activitySchedule": nowhere}));
    assert!(settle(&mut view).is_empty());
    assert!(view.settings.as_ref().unwrap().faults[0].contains("no time zone `Mars/Base`"));
    view.settings_gone();
    assert!(!prepared(&one(&mut view, "rpop-system", "r")).item.remote.apop);
}

#[test]
fn settings_that_nobody_can_read_never_mean_defaults() {
    let mut view = view();
    settings(&mut view, 1, json!({"processors": "many"}));
    domain(&mut view, "example.com", 1, &json!({}));
    record(&mut view, "rpop-system", "r", &json!({}));
    assert!(matches!(one(&mut view, "rpop-system", "r"), Looked::Later));
    settings(&mut view, 2, json!({}));
    prepared(&one(&mut view, "rpop-system", "r"));
}

#[test]
fn rivals_for_a_maildrop_are_told_both_and_no_name_of_another_namespace() {
    let mut view = view();
    let allow = json!({"allow": [{"namespaces": {}, "accounts": ["*"]}]});
    domain(&mut view, "example.com", 1, &allow);
    record(&mut view, "team-a", "r", &json!({}));
    record(&mut view, "team-a", "s", &json!({"account": "bob@example.com"}));
    let all = settle(&mut view);
    assert!(prepared(&all[&key("team-a", "r")]).warnings[0].contains("the maildrop of team-a/s too"));
    assert!(prepared(&all[&key("team-a", "s")]).warnings[0].contains("the maildrop of team-a/r too"));
    view.record_gone(&key("team-a", "s"));
    assert_eq!(prepared(&one(&mut view, "team-a", "r")).warnings, [""; 0]);
    record(&mut view, "team-b", "t", &json!({"leave": true}));
    let all = settle(&mut view);
    let warning = &prepared(&all[&key("team-a", "r")]).warnings[0];
    assert!(warning.contains("a record in another namespace") && !warning.contains("team-b"), "{warning}");
    record(&mut view, "team-a", "r", &json!({"leave": true}));
    let all = settle(&mut view);
    assert!(all.values().all(|looked| prepared(looked).warnings.is_empty()));
}

#[test]
fn an_alias_belongs_to_the_oldest_domain_and_a_name_to_its_own() {
    let mut view = view();
    domain(&mut view, "a.example", 1, &json!({"aliases": ["shared.example", "b.example"]}));
    let mut later = meta(None, "b.example", 1);
    later.creation_timestamp = Some(Time(jiff::Timestamp::from_second(60).unwrap()));
    let spec = json!({"aliases": ["shared.example"], "delivery": {"smtp": {"host": "mx"}}});
    view.domain(&later, Ok(serde_json::from_value(spec).unwrap()), None);
    record(&mut view, "rpop-system", "r", &json!({"account": "x@shared.example"}));
    record(&mut view, "rpop-system", "s", &json!({"account": "x@b.example"}));
    let all = settle(&mut view);
    let to = |name| &*prepared(&all[&key("rpop-system", name)]).item.destination.domain;
    assert_eq!((to("r"), to("s")), ("a.example", "b.example"));
    let domain = view.domain_named("b.example").unwrap();
    assert_eq!(
        view.taken_aliases("b.example", domain),
        ["shared.example belongs to RpopDomain a.example already"]
    );
    let domain = view.domain_named("a.example").unwrap();
    assert_eq!(
        view.taken_aliases("a.example", domain),
        ["b.example belongs to RpopDomain b.example already"]
    );
}

#[test]
fn a_status_written_by_workers_is_no_reason_to_look_again_and_one_that_lost_ours_is() {
    let mut view = view();
    domain(&mut view, "example.com", 1, &json!({}));
    record(&mut view, "rpop-system", "r", &json!({}));
    one(&mut view, "rpop-system", "r");
    let spec = || Ok(serde_json::from_value(spec(&json!({}))).unwrap());
    let polled = serde_json::from_value(json!({"last": "AuthFailed", "counters": {"polls": 3}})).unwrap();
    view.record(&meta(Some("rpop-system"), "r", 1), spec(), Some(&polled));
    assert!(settle(&mut view).is_empty());
    let edited = serde_json::from_value(json!({"shard": 9})).unwrap();
    view.record(&meta(Some("rpop-system"), "r", 1), spec(), Some(&edited));
    assert_eq!(settle(&mut view).len(), 1);
}

#[path = "look_unified_tests.rs"]
mod unified;
