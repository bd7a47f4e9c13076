//! Records with `special`.

use super::*;
use crate::domain::work::{Destination, Special, Unified};

fn given(looked: &Looked) -> &Arc<Unified> {
    prepared(looked).item.unified.as_ref().unwrap()
}

fn names(unified: &Unified) -> Vec<&str> {
    unified.domains.iter().flat_map(|place| place.names.iter().map(|name| &**name)).collect()
}

/// A Main Domain, and a record of its postmaster.
fn unified_view(more: &Value) -> View {
    let mut view = view();
    domain(&mut view, "example.com", 1, &json!({"aliases": ["Example.NET"]}));
    settings(&mut view, 1, json!({"mainDomain": "example.com"}));
    let mut spec = json!({"account": "postmaster@example.com", "special": "X-Real-To"});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    record(&mut view, "rpop-system", "all", &spec);
    view
}

#[test]
fn a_unified_record_is_given_all_domains_and_follows_them() {
    let mut view = unified_view(&json!({"relayForeign": true}));
    let looked = one(&mut view, "rpop-system", "all");
    let unified = given(&looked);
    assert_eq!(unified.special, Special::Header("X-Real-To".into()));
    assert!(unified.relay_foreign && !unified.deduplicate);
    assert_eq!(names(unified), ["example.com", "example.net"]);
    assert_eq!(unified.postmaster.as_str(), "postmaster@example.com");
    assert_eq!(&*prepared(&looked).item.destination.domain, "example.com");
    assert_eq!(prepared(&looked).warnings, [""; 0]);

    // Added, with another delivery, changed, without its alias, removed.
    domain(&mut view, "other.example", 1, &json!({"aliases": ["o.example"]}));
    let looked = one(&mut view, "rpop-system", "all");
    assert_eq!(names(given(&looked)), ["example.com", "example.net", "o.example", "other.example"]);
    assert_eq!(given(&looked).domains.len(), 1);
    domain(
        &mut view,
        "other.example",
        2,
        &json!({"aliases": ["o.example"], "delivery": {"lmtp": {"host": "store"}}}),
    );
    let looked = one(&mut view, "rpop-system", "all");
    assert_eq!(given(&looked).place_of("o.example"), Some(1));
    assert!(given(&looked).domains[1].destination.lmtp.is_some());
    domain(&mut view, "other.example", 3, &json!({"delivery": {"lmtp": {"host": "store"}}}));
    assert_eq!(given(&one(&mut view, "rpop-system", "all")).place_of("o.example"), None);
    // Of no concern: whom a domain allows.
    domain(
        &mut view,
        "other.example",
        4,
        &json!({"delivery": {"lmtp": {"host": "store"}}, "allow": [{"namespaces": {}, "accounts": ["*"]}]}),
    );
    assert!(settle(&mut view).is_empty());
    view.domain_gone("other.example");
    assert_eq!(names(given(&one(&mut view, "rpop-system", "all"))), ["example.com", "example.net"]);
    // Nor are plain records looked at for another domain.
    record(&mut view, "rpop-system", "plain", &json!({"account": "alice@example.com"}));
    one(&mut view, "rpop-system", "plain");
    domain(&mut view, "other.example", 1, &json!({}));
    assert_eq!(settle(&mut view).into_keys().collect::<Vec<_>>(), [key("rpop-system", "all")]);
}

#[test]
fn records_that_ask_for_the_same_are_given_one_and_the_same() {
    let mut view = unified_view(&json!({}));
    record(
        &mut view,
        "rpop-system",
        "second",
        &json!({"account": "PostMaster@example.NET", "special": "X-Real-To"}),
    );
    record(
        &mut view,
        "rpop-system",
        "third",
        &json!({"account": "postmaster@example.com", "special": "*", "deduplicate": false}),
    );
    let all = settle(&mut view);
    let of = |name| given(&all[&key("rpop-system", name)]);
    assert!(Arc::ptr_eq(of("all"), of("second")));
    assert_eq!((&of("third").special, of("third").deduplicate), (&Special::Addressees, false));
}

#[test]
fn a_unified_record_that_is_not_the_postmasters_is_told_whose_it_must_be() {
    let mut view = unified_view(&json!({"account": "alice@example.com"}));
    domain(&mut view, "other.example", 1, &json!({"allow": [{"namespaces": {}, "accounts": ["*"]}]}));
    let looked = one(&mut view, "rpop-system", "all");
    let (reason, message) = refused(&looked);
    assert_eq!(reason, Code::ConfigInvalid);
    assert!(
        message.starts_with("spec.account: ") && message.ends_with("write account: postmaster@example.com"),
        "{message}"
    );
    // Of another domain: only whom it concerns is told what the main one is called.
    record(&mut view, "team-a", "x", &json!({"account": "postmaster@other.example", "special": "*"}));
    let looked = one(&mut view, "team-a", "x");
    let (reason, message) = refused(&looked);
    assert_eq!(reason, Code::ConfigInvalid);
    assert!(
        message.contains("RpopSettings names as mainDomain") && !message.contains("example.com"),
        "{message}"
    );
    // `allow` of the Main Domain says who may write one.
    record(&mut view, "team-a", "x", &json!({"account": "postmaster@example.com", "special": "*"}));
    assert_eq!(refused(&one(&mut view, "team-a", "x")).0, Code::NotAllowed);
    domain(&mut view, "example.com", 2, &json!({"allow": [{"namespaces": {}, "accounts": ["postmaster"]}]}));
    given(&one(&mut view, "team-a", "x"));
}

#[test]
fn the_main_domain_is_named_renamed_and_gone() {
    let mut view = unified_view(&json!({}));
    record(&mut view, "rpop-system", "plain", &json!({}));
    let plain = |view: &mut View| {
        view.again(key("rpop-system", "plain"));
        drop(prepared(&one(view, "rpop-system", "plain")).item.clone());
    };
    view.settings_gone();
    let looked = one(&mut view, "rpop-system", "all");
    let (reason, message) = refused(&looked);
    assert_eq!(reason, Code::ConfigInvalid);
    assert!(message.starts_with("spec.special: ") && message.contains("write mainDomain: "), "{message}");
    plain(&mut view);
    // By an alias it is the same.
    settings(&mut view, 2, json!({"mainDomain": "EXAMPLE.net"}));
    assert_eq!(given(&one(&mut view, "rpop-system", "all")).postmaster.as_str(), "postmaster@example.com");
    settings(&mut view, 3, json!({"mainDomain": "new.example"}));
    assert!(refused(&one(&mut view, "rpop-system", "all")).1.contains("RpopDomain new.example"));
    domain(&mut view, "new.example", 1, &json!({"postmaster": "chief"}));
    let looked = one(&mut view, "rpop-system", "all");
    assert!(refused(&looked).1.ends_with("write account: chief@new.example"), "{looked:?}");
    plain(&mut view);
    record(&mut view, "rpop-system", "all", &json!({"account": "Chief@new.example", "special": "*"}));
    let looked = one(&mut view, "rpop-system", "all");
    assert_eq!(given(&looked).postmaster.as_str(), "chief@new.example");
    assert_eq!(&*prepared(&looked).item.destination.domain, "new.example");
    // It is gone, and then it is there with an error.
    view.domain_gone("new.example");
    assert_eq!(refused(&one(&mut view, "rpop-system", "all")).0, Code::DomainMissing);
    domain(&mut view, "new.example", 2, &json!({"postmaster": "a b"}));
    assert_eq!(
        refused(&one(&mut view, "rpop-system", "all")),
        (Code::ConfigInvalid, "RpopDomain new.example has errors")
    );
    plain(&mut view);
}

#[test]
fn a_domain_with_errors_is_ours_all_the_same_and_leads_nowhere() {
    let mut view = unified_view(&json!({}));
    one(&mut view, "rpop-system", "all");
    domain(&mut view, "odd.example", 1, &json!({"delivery": {"maildir": {"path": "/m/{local}"}}}));
    let looked = one(&mut view, "rpop-system", "all");
    assert_eq!(names(given(&looked)), ["example.com", "example.net", "odd.example"]);
    let place = given(&looked).place_of("odd.example").unwrap();
    let nowhere = Destination { domain: "odd.example".into(), ..Destination::default() };
    assert_eq!(*given(&looked).domains[place].destination, nowhere);
    assert_eq!(
        prepared(&looked).warnings,
        ["spec.special: RpopDomain odd.example has errors: until it is mended, mail for its addresses waits"]
    );
    domain(&mut view, "odd.example", 2, &json!({}));
    let looked = one(&mut view, "rpop-system", "all");
    assert_eq!(names(given(&looked)), ["example.com", "example.net", "odd.example"]);
    assert_eq!(prepared(&looked).warnings, [""; 0]);
    // What cannot be read at all keeps the aliases that it had.
    domain(&mut view, "odd.example", 3, &json!({"aliases": ["o.example"]}));
    one(&mut view, "rpop-system", "all");
    domain(&mut view, "odd.example", 4, &json!({"delivery": 5}));
    let looked = one(&mut view, "rpop-system", "all");
    assert_eq!(names(given(&looked)), ["example.com", "example.net", "o.example", "odd.example"]);
    assert_eq!(given(&looked).domains[1].destination.smtp, None);
}

#[test]
fn without_smtp_senders_cannot_be_told_and_that_is_said() {
    let mut view = unified_view(&json!({}));
    domain(&mut view, "example.com", 2, &json!({"delivery": {"lmtp": {"host": "store"}}}));
    let looked = one(&mut view, "rpop-system", "all");
    let warning = &prepared(&looked).warnings[0];
    assert!(
        warning.contains("no delivery.smtp") && warning.contains("postmaster@example.com is told"),
        "{warning}"
    );
    // Under * nobody is told anyway.
    record(&mut view, "rpop-system", "all", &json!({"account": "postmaster@example.com", "special": "*"}));
    assert_eq!(prepared(&one(&mut view, "rpop-system", "all")).warnings, [""; 0]);
}

#[test]
fn too_many_names_are_refused_with_numbers_and_cost_nobody_else() {
    let mut view = unified_view(&json!({}));
    record(&mut view, "rpop-system", "plain", &json!({}));
    let aliases: Vec<String> = (0..400).map(|n| format!("{n}{}.example", "a".repeat(170))).collect();
    domain(&mut view, "other.example", 1, &json!({"aliases": aliases}));
    let all = settle(&mut view);
    let (reason, message) = refused(&all[&key("rpop-system", "all")]);
    assert_eq!(reason, Code::ConfigInvalid);
    assert!(message.contains("403 names") && message.contains("of 65536"), "{message}");
    prepared(&all[&key("rpop-system", "plain")]);
    domain(&mut view, "other.example", 2, &json!({}));
    given(&one(&mut view, "rpop-system", "all"));
}

#[test]
fn a_postmaster_in_another_domain_gets_his_mail_there() {
    let mut view = unified_view(&json!({}));
    let main = |to: &str| json!({"postmaster": to, "delivery": {"lmtp": {"host": "a"}}});
    domain(&mut view, "other.example", 1, &json!({"delivery": {"lmtp": {"host": "store"}}}));
    domain(&mut view, "example.com", 2, &main("pm@other.example"));
    let looked = one(&mut view, "rpop-system", "all");
    assert_eq!(&*prepared(&looked).item.destination.domain, "other.example");
    // And follows what becomes of that one.
    domain(&mut view, "other.example", 2, &json!({"delivery": {"lmtp": {"host": "store2"}}}));
    let looked = one(&mut view, "rpop-system", "all");
    assert_eq!(prepared(&looked).item.destination, given(&looked).domains[1].destination);
    domain(&mut view, "example.com", 3, &main("pm@far.example"));
    let looked = one(&mut view, "rpop-system", "all");
    let warnings = &prepared(&looked).warnings;
    assert!(
        warnings[0].contains("pm@far.example of RpopDomain example.com is in no RpopDomain"),
        "{warnings:?}"
    );
}
