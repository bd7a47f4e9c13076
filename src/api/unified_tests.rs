use super::*;
use crate::domain::work::{Endpoint, TlsPolicy};

fn smtp(host: &str) -> MailHost {
    MailHost {
        endpoint: Endpoint::Tcp(host.into(), 25),
        ehlo_name: None,
        tls: TlsPolicy::default(),
        auth: None,
        detail_separator: "+".into(),
        null_sender_without_dsn: true,
    }
}

fn local(name: &str, aliases: &[&str], host: &str) -> Local {
    let mut names: Vec<Arc<str>> = aliases.iter().map(|alias| (*alias).into()).collect();
    names.push(name.into());
    names.sort();
    Local {
        name: name.into(),
        names,
        destination: Arc::new(Destination {
            domain: name.into(),
            smtp: Some(smtp(host)),
            ..Destination::default()
        }),
        postmaster: address(&format!("postmaster@{name}")),
    }
}

fn address(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn asked(change: &serde_json::Value) -> Option<Asked> {
    let mut spec = serde_json::json!({
        "account": "postmaster@example.com",
        "remote": {"host": "pop.isp.example", "account": "all", "passwordSecretRef": {"name": "s"}},
    });
    for (field, value) in change.as_object().unwrap() {
        spec[field] = value.clone();
    }
    Asked::of(&serde_json::from_value(spec).unwrap())
}

fn header() -> Asked {
    asked(&serde_json::json!({"special": "X-Real-To"})).unwrap()
}

fn directory(main: Option<&str>) -> Directory {
    let locals = vec![
        local("example.net", &["alias.example", "zz.example"], "mx"),
        local("example.com", &["b.example"], "mx"),
        local("other.example", &[], "mx2"),
    ];
    Directory::new(locals, Vec::new(), main)
}

#[test]
fn a_record_asks_for_what_belongs_to_its_kind_only() {
    assert_eq!(asked(&serde_json::json!({})), None);
    let all = asked(&serde_json::json!({"special": "*", "relayForeign": true})).unwrap();
    assert_eq!((all.special, all.relay_foreign, all.deduplicate), (Special::Addressees, false, true));
    let all = asked(&serde_json::json!({"special": "*", "deduplicate": false})).unwrap();
    assert!(!all.deduplicate);
    let one = asked(&serde_json::json!({"special": "X-Real-To", "relayForeign": true})).unwrap();
    assert_eq!(one.special, Special::Header("X-Real-To".into()));
    assert!(one.relay_foreign && !one.deduplicate, "with a header each copy has its own recipient");
}

#[test]
fn domains_with_the_same_deliveries_are_together_and_each_name_is_found() {
    let mut directory = directory(Some("Example.COM"));
    let unified = directory.unified(&header(), &address("postmaster@example.com")).unwrap();
    let names: Vec<Vec<&str>> =
        unified.domains.iter().map(|place| place.names.iter().map(|name| &**name).collect()).collect();
    let first = vec!["alias.example", "b.example", "example.com", "example.net", "zz.example"];
    assert_eq!(names, [first, vec!["other.example"]]);
    assert_eq!(&*unified.domains[0].destination.domain, "example.com");
    for name in ["B.Example", "example.com", "alias.example", "zz.example"] {
        assert_eq!(unified.place_of(name), Some(0), "{name}");
    }
    assert_eq!((unified.place_of("OTHER.example"), unified.place_of("example.org")), (Some(1), None));
    assert_eq!(unified.postmaster, address("postmaster@example.com"));
}

#[test]
fn records_that_ask_for_the_same_share_it() {
    let mut directory = directory(Some("example.com"));
    let owner = address("postmaster@example.com");
    let one = directory.unified(&header(), &owner).unwrap();
    let two = directory.unified(&header(), &address("PostMaster@B.example")).unwrap();
    assert!(Arc::ptr_eq(&one, &two));
    let all = asked(&serde_json::json!({"special": "*"})).unwrap();
    let other = directory.unified(&all, &owner).unwrap();
    assert!(!Arc::ptr_eq(&one, &other) && directory.made.len() == 2);
    // What nobody has any more is not kept.
    drop((one, two, other));
    let foreign = asked(&serde_json::json!({"special": "X-To", "relayForeign": true})).unwrap();
    assert!(directory.unified(&foreign, &owner).unwrap().relay_foreign);
    assert_eq!(directory.made.len(), 1);
}

#[test]
fn a_record_belongs_to_the_postmaster_of_the_main_domain() {
    let refused = |directory: &mut Directory, account: &str| {
        directory.unified(&header(), &address(account)).err().map(|refused| {
            let (known, hidden) = (refused.message(true), refused.message(false));
            assert!(!hidden.contains("example.com") || refused == Refused::NoMainDomain, "{hidden}");
            (refused.path(), known)
        })
    };
    let (at, says) = refused(&mut directory(None), "postmaster@example.com").unwrap();
    assert_eq!(at, "spec.special");
    assert!(says.contains("write mainDomain: example.com in RpopSettings"), "{says}");
    let (at, says) = refused(&mut directory(Some("gone.example")), "postmaster@example.com").unwrap();
    assert_eq!(at, "spec.special");
    assert!(
        says.contains("RpopDomain gone.example") && says.contains("is not there or has errors"),
        "{says}"
    );
    // The Main Domain may be named by an alias.
    for main in ["example.com", "B.example"] {
        let mut directory = directory(Some(main));
        for good in ["postmaster@example.com", "POSTMASTER@EXAMPLE.com", "Postmaster@b.Example"] {
            assert_eq!(refused(&mut directory, good), None, "{main} {good}");
        }
        for bad in ["alice@example.com", "postmaster@example.net", "postmaster@other.example"] {
            let (at, says) = refused(&mut directory, bad).unwrap();
            assert_eq!(at, "spec.account");
            assert!(says.ends_with("write account: postmaster@example.com"), "{says}");
        }
    }
}

#[test]
fn the_postmaster_may_be_called_otherwise_and_live_elsewhere() {
    let mut chief = local("example.com", &["b.example"], "mx");
    chief.postmaster = address("Chief@b.example");
    let mut directory = Directory::new(vec![chief.clone()], Vec::new(), Some("example.com"));
    let unified = directory.unified(&header(), &address("chief@example.com")).unwrap();
    assert_eq!(unified.postmaster, address("Chief@b.example"));
    let refused = directory.unified(&header(), &address("postmaster@example.com")).unwrap_err();
    assert_eq!(refused, Refused::NotOwner(address("Chief@b.example")));

    // Somebody of no local domain can own no record: the account can that
    // every domain has.
    chief.postmaster = address("chief@elsewhere.example");
    let mut directory = Directory::new(vec![chief], Vec::new(), Some("example.com"));
    let unified = directory.unified(&header(), &address("postmaster@example.com")).unwrap();
    assert_eq!(unified.postmaster, address("chief@elsewhere.example"));
}

#[test]
fn what_does_not_fit_is_refused_with_numbers() {
    let names = |count: usize| -> Vec<String> {
        (0..count).map(|n| format!("{n:03}{}.example", "a".repeat(180))).collect()
    };
    let with = |count| {
        let names = names(count);
        let aliases: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut directory =
            Directory::new(vec![local("example.com", &aliases, "mx")], Vec::new(), Some("example.com"));
        directory.unified(&header(), &address("postmaster@example.com"))
    };
    let most = with(325).unwrap();
    assert!(serde_json::to_vec(&most).unwrap().len() > 60 * 1024);
    let refused = with(340).unwrap_err();
    let Refused::TooLarge { octets, names: 341, deliveries: 1 } = refused else { panic!("{refused:?}") };
    assert!(octets > MOST_BYTES);
    let says = refused.message(true);
    for part in ["341 names", "1 different", &octets.to_string(), "65536", "remove aliases"] {
        assert!(says.contains(part), "{part}: {says}");
    }
}

#[test]
fn nothing_is_different_where_unified_records_are_given_the_same() {
    let one = directory(Some("example.com"));
    assert!(one.says_the_same(&directory(Some("EXAMPLE.com"))));
    assert!(!one.says_the_same(&directory(Some("example.net"))));
    let broken = Directory::new(one.locals.clone(), vec!["x.example".into()], Some("example.com"));
    assert!(!one.says_the_same(&broken));
    let mut moved = one.locals.clone();
    moved[2] = local("other.example", &[], "mx3");
    assert!(!one.says_the_same(&Directory::new(moved, Vec::new(), Some("example.com"))));
}

#[test]
fn domains_that_cannot_be_read_stay_what_they_were_and_take_nothing_away() {
    let before = directory(Some("example.com"));
    // other.example is broken, example.net is gone for good, and its alias is
    // another domain's now.
    let locals = vec![local("example.com", &["b.example", "alias.example"], "mx")];
    let mut now = Directory::new(locals, vec!["other.example".into()], None);
    now.keep_from(&before, |name| name == "other.example", true);
    assert!(now.left_out().is_empty());
    let unified = now.unified(&header(), &address("postmaster@example.com")).unwrap();
    assert_eq!(unified.place_of("other.example"), Some(1));
    assert_eq!((unified.place_of("zz.example"), unified.place_of("alias.example")), (None, Some(0)));
    // All files are in doubt.
    let locals = vec![local("example.com", &["b.example", "alias.example"], "mx9")];
    let mut now = Directory::new(locals, Vec::new(), Some("example.com"));
    now.keep_from(&before, |_| true, false);
    let unified = now.unified(&header(), &address("postmaster@example.com")).unwrap();
    let place = |name| unified.place_of(name).map(|at| &*unified.domains[at].destination.domain);
    assert_eq!((place("alias.example"), place("zz.example")), (Some("example.com"), Some("example.net")));
}

#[test]
fn an_alias_means_the_account_under_its_domains_own_name() {
    let mut directory = directory(Some("example.com"));
    let unified = directory.unified(&header(), &address("postmaster@example.com")).unwrap();
    let account =
        |text: &str| unified.account_of(&address(text)).map(|(local, name)| format!("{local}@{name}"));
    for alias in ["alice@alias.example", "ALICE@Example.NET", "alice@zz.example"] {
        assert_eq!(account(alias).as_deref(), Some("alice@example.net"), "{alias}");
    }
    assert_eq!(account("alice@B.example").as_deref(), Some("alice@example.com"));
    assert_eq!(account("alice@other.example").as_deref(), Some("alice@other.example"));
    assert_eq!(account("alice@foreign.example"), None);
    // As a slice of work holds it.
    let read: Unified = serde_json::from_value(serde_json::to_value(&*unified).unwrap()).unwrap();
    assert_eq!(read, *unified);
    let without = Directory::new(vec![local("a.example", &[], "mx")], Vec::new(), Some("a.example"))
        .unified(&header(), &address("postmaster@a.example"))
        .unwrap();
    assert!(!serde_json::to_string(&*without).unwrap().contains("owners"));
    assert_eq!(without.owner_of("A.example"), Some("a.example"));
}

#[test]
fn an_internationalised_domain_is_one_however_it_is_written() {
    let locals = vec![local("xn--exmple-cua.com", &["xn--bcher-kva.example"], "mx")];
    let mut directory = Directory::new(locals, Vec::new(), Some("exämple.com"));
    let unified = directory.unified(&header(), &address("postmaster@EXÄMPLE.com")).unwrap();
    for name in ["xn--exmple-cua.com", "exämple.com", "XN--EXMPLE-CUA.COM", "Bücher.example"] {
        assert_eq!(unified.owner_of(name), Some("xn--exmple-cua.com"), "{name}");
    }
    assert_eq!(unified.place_of("exmple.com"), None);
}

#[test]
fn the_postmasters_mail_goes_to_the_domain_that_he_is_in() {
    let with = |postmaster: &str, main_smtp: bool, his_smtp: bool| {
        let mut locals = vec![local("example.com", &[], "mx"), local("example.org", &["o.example"], "mx2")];
        for (local, smtp) in locals.iter_mut().zip([main_smtp, his_smtp]) {
            let mut destination = (*local.destination).clone();
            if !smtp {
                destination.lmtp = destination.smtp.take();
            }
            local.destination = Arc::new(destination);
        }
        locals[0].postmaster = address(postmaster);
        let directory = Directory::new(locals, Vec::new(), Some("example.com"));
        let to = directory.to_postmaster().unwrap().domain.to_string();
        (to, directory.postmaster_elsewhere().unwrap_or_default())
    };
    for (main, his) in [(true, true), (false, true), (false, false)] {
        for postmaster in ["pm@example.org", "pm@O.example"] {
            assert_eq!(with(postmaster, main, his), ("example.org".to_owned(), String::new()));
        }
        assert_eq!(with("pm@example.com", main, his), ("example.com".to_owned(), String::new()));
    }
    // Senders are told by SMTP, which only the Main Domain has.
    let (to, said) = with("pm@example.org", true, false);
    assert!(to == "example.com" && said.contains("since RpopDomain example.org has none"), "{said}");
    // A server with a queue sends mail anywhere, and one without does not.
    assert_eq!(with("pm@far.example", true, true), ("example.com".to_owned(), String::new()));
    let (to, said) = with("pm@far.example", false, true);
    assert!(
        to == "example.com" && said.contains("pm@far.example of RpopDomain example.com is in no"),
        "{said}"
    );
}
