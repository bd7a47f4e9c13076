//! Records with `special`.

use super::*;
use crate::api::checks;
use crate::domain::work::{Special, Unified};

const SETTINGS: &str = "\
apiVersion: rpop.dev/v1alpha1
kind: RpopSettings
metadata: {name: default}
spec: {mainDomain: example.com}
";

/// A record of that account; `special` is on line 7.
fn all(account: &str, lines: &str) -> String {
    record(&format!("{}{lines}", REMOTE.replace("alice@example.com", account)))
}

fn unified() -> String {
    all("postmaster@example.com", "special: X-Real-To\n")
}

fn folder(record: &str) -> Folder {
    Folder::of(&[("d.yaml", DOMAIN), ("r.yaml", record), ("s.yaml", SECRET), ("z.yaml", SETTINGS)])
}

fn domain(name: &str, spec: &str) -> String {
    DOMAIN.replace("example.com", name).replace("{delivery: {smtp: {host: localhost}}}", spec)
}

const SAME: &str = "{delivery: {smtp: {host: localhost}}}";

fn given(read: &Configuration) -> &Unified {
    assert_eq!(read.records.len(), 1, "{}", read.report());
    read.records[0].unified.as_ref().unwrap()
}

fn names(read: &Configuration) -> Vec<&str> {
    given(read).domains.iter().flat_map(|place| place.names.iter().map(|name| &**name)).collect()
}

/// What is said of `special`, but for errors.
fn said(read: &Configuration) -> Vec<(Severity, &str)> {
    let of = read.diagnostics.iter().filter(|finding| finding.subject.ends_with(": spec.special"));
    of.filter(|finding| finding.severity < Severity::Error)
        .map(|finding| {
            assert_eq!((finding.line, finding.column), (7, 12), "{}", read.report());
            (finding.severity, &*finding.message)
        })
        .collect()
}

#[test]
fn a_unified_record_is_given_all_domains_and_says_what_it_does() {
    let text = all("PostMaster@example.net", "special: X-Real-To\nrelayForeign: true\n");
    let folder = folder(&text);
    folder.write(
        "d.yaml",
        domain("example.com", "{aliases: [Example.NET], delivery: {smtp: {host: localhost}}}").as_bytes(),
    );
    folder.write("e.yaml", domain("other.example", SAME).as_bytes());
    folder.write("f.yaml", domain("store.example", "{delivery: {lmtp: {host: store}}}").as_bytes());
    let read = folder.load();
    assert!(!read.has_errors(), "{}", read.report());
    let unified = given(&read);
    assert_eq!((&unified.special, unified.relay_foreign), (&Special::Header("X-Real-To".into()), true));
    assert_eq!(names(&read), ["example.com", "example.net", "other.example", "store.example"]);
    assert_eq!((unified.domains.len(), unified.place_of("STORE.example")), (2, Some(1)));
    assert_eq!(unified.postmaster.as_str(), "postmaster@example.com");
    assert_eq!(&*read.records[0].destination.domain, "example.com");
    assert_eq!(
        said(&read),
        [(
            Severity::Note,
            "delivers to all addresses in X-Real-To, also outside of example.com, example.net, other.example, store.example; a message without one goes to postmaster@example.com"
        )]
    );
    assert!(read.report().ends_with("1 record in 6 files, nothing is wrong\n"), "{}", read.report());

    folder.write("r.yaml", all("postmaster@example.com", "special: '*'\ndeduplicate: false\n").as_bytes());
    let read = folder.load();
    assert_eq!((&given(&read).special, given(&read).deduplicate), (&Special::Addressees, false));
    assert!(
        said(&read)[0].1.starts_with("delivers to the addresses in To, Cc and Bcc that exist in example.com")
    );
}

#[test]
fn whose_a_unified_record_must_be_is_said_with_its_place() {
    let folder = folder(&all("alice@example.com", "special: '*'\n"));
    let error = only_error(&folder.load());
    assert!(error.starts_with("5:12 spec.account: with special a record delivers to any account"), "{error}");
    assert!(error.ends_with("write account: postmaster@example.com"), "{error}");

    folder.write("r.yaml", unified().as_bytes());
    folder.write("z.yaml", SETTINGS.replace("mainDomain: example.com", "").as_bytes());
    let error = only_error(&folder.load());
    assert_eq!(error, format!("7:12 spec.special: {}", checks::NO_MAIN_DOMAIN));

    folder.write("z.yaml", SETTINGS.replace("example.com", "gone.example").as_bytes());
    let all = errors(&folder.load());
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(
        all[0].contains("spec.special: special needs the Main Domain, and the RpopDomain gone.example"),
        "{all:?}"
    );
    assert!(all[1].contains("spec.mainDomain: there is no RpopDomain gone.example"), "{all:?}");
}

#[test]
fn too_many_names_are_refused_with_numbers() {
    let folder = folder(&unified());
    let aliases: Vec<String> =
        (0..250).map(|n| format!("{n}.{0}.{0}.{0}.{0}.example", "a".repeat(58))).collect();
    folder.write(
        "e.yaml",
        domain(
            "other.example",
            &format!("{{aliases: [{}], delivery: {{smtp: {{host: localhost}}}}}}", aliases.join(", ")),
        )
        .as_bytes(),
    );
    let read = folder.load();
    assert!(!read.has_errors() && names(&read).len() == 252, "{}", read.report());
    folder.write(
        "f.yaml",
        domain(
            "third.example",
            &format!("{{aliases: [x{}], delivery: {{smtp: {{host: localhost}}}}}}", aliases.join(", x")),
        )
        .as_bytes(),
    );
    let error = only_error(&folder.load());
    assert!(error.starts_with("7:12 spec.special: ") && error.contains("503 names"), "{error}");
}

#[tokio::test]
async fn a_secret_that_a_domain_lacks_concerns_its_mail_alone() {
    let folder = folder(&unified());
    let lacking = "{delivery: {smtp: {host: mx, auth: {username: u, passwordSecretRef: {name: relay}}}}}";
    folder.write("e.yaml", domain("other.example", lacking).as_bytes());
    let before = folder.load();
    // The domain itself says what is wrong with it.
    assert!(only_error(&before).contains("there is no Secret default/relay"), "{}", before.report());
    assert_eq!(names(&before), ["example.com", "other.example"]);
    assert_eq!(
        said(&before)[1],
        (
            Severity::Warning,
            "RpopDomain other.example lacks a Secret that can be used: mail for it waits until it has one"
        )
    );
    // The Main Domain is no other: what can be delivered is.
    folder.write("d.yaml", domain("example.com", lacking).as_bytes());
    assert_eq!(names(&folder.load()), ["example.com", "other.example"]);
    folder.write("d.yaml", DOMAIN.as_bytes());
    // When it is there, the record is worth a try at once.
    folder.write("relay.yaml", SECRET.replace("{name: isp, namespace: mail}", "{name: relay}").as_bytes());
    let now = folder.load();
    assert!(!now.has_errors(), "{}", now.report());
    assert_eq!(before.records, now.records);
    assert!(before.secrets.differs(&now.secrets, &now.records[0]));
    assert_eq!(said(&now).len(), 1);
}

#[test]
fn unified_records_follow_the_files_of_all_domains() {
    let folder = folder(&unified());
    let first = folder.load();
    assert_eq!(names(&first), ["example.com"]);
    folder.write("e.yaml", domain("other.example", SAME).as_bytes());
    let mut second = folder.load();
    second.keep_from(&first);
    assert_eq!(names(&second), ["example.com", "other.example"]);
    assert_ne!(first.records, second.records, "it is taken up");
    std::fs::remove_file(folder.path().join("e.yaml")).unwrap();
    let mut third = folder.load();
    third.keep_from(&second);
    assert_eq!(names(&third), ["example.com"]);
    // Another Main Domain, whose record it is not.
    folder.write("e.yaml", domain("other.example", SAME).as_bytes());
    folder.write("z.yaml", SETTINGS.replace("example.com", "other.example").as_bytes());
    let mut fourth = folder.load();
    fourth.keep_from(&third);
    assert!(only_error(&fourth).ends_with("write account: postmaster@other.example"));
    assert_eq!((fourth.records.len(), fourth.problems.len()), (0, 1));
}

#[test]
fn what_cannot_be_read_leaves_to_unified_records_what_they_had() {
    let folder = folder(&unified());
    let other = domain("other.example", "{aliases: [o.example], delivery: {lmtp: {host: store}}}");
    folder.write("e.yaml", other.as_bytes());
    let before = folder.load();
    let good = [("d.yaml", DOMAIN.to_owned()), ("e.yaml", other.clone()), ("z.yaml", SETTINGS.to_owned())];
    for (file, text) in [
        ("e.yaml", other.replace("delivery", "delivry")),
        ("e.yaml", other.replace("lmtp: {", "lmtp: [")),
        ("e.yaml", other.replace("o.example]", "o.example], postmaster: 'a b'")),
        ("d.yaml", DOMAIN.replace("delivery", "delivry")),
        ("d.yaml", DOMAIN.replace("smtp: {", "smtp: [")),
        ("z.yaml", SETTINGS.replace("mainDomain", "mainDomian")),
        ("z.yaml", SETTINGS.replace("{mainDomain", "[mainDomain")),
    ] {
        for (file, text) in &good {
            folder.write(file, text.as_bytes());
        }
        folder.write(file, text.as_bytes());
        let mut now = folder.load();
        assert!(now.has_errors(), "{text}");
        now.keep_from(&before);
        assert_eq!(now.records, before.records, "{text}\n{}", now.report());
        // And once more, from what was kept.
        let mut later = folder.load();
        later.keep_from(&now);
        assert_eq!(later.records, before.records, "{text}");
    }
    // What can be read is taken up meanwhile.
    folder.write("z.yaml", SETTINGS.as_bytes());
    folder.write("e.yaml", other.replace("delivery", "delivry").as_bytes());
    folder.write("f.yaml", domain("third.example", SAME).as_bytes());
    folder.write("r.yaml", all("postmaster@example.com", "special: '*'\n").as_bytes());
    let mut now = folder.load();
    assert!(said(&now).iter().any(|(severity, message)| *severity == Severity::Warning
        && message.contains("RpopDomain other.example has errors")));
    now.keep_from(&before);
    assert_eq!(names(&now), ["example.com", "third.example", "o.example", "other.example"]);
    assert_eq!(given(&now).special, Special::Addressees);
}

/// What keeps domains from being known: the file `e.yaml` (`None`: a link that
/// leads nowhere) and words of what is said of it.
fn doubtful() -> Vec<(Option<String>, &'static str)> {
    let other = domain("other.example", "{aliases: [o.example], delivery: {lmtp: {host: store}}}");
    let file = "what cannot be read in ";
    vec![
        (Some(other.replace("other.example}", "other.example")), file),
        (Some(other.replace("spec: ", "spec:\n\t")), file),
        (Some(other.replace("RpopDomain", "RpopDomian")), file),
        (Some(other.replace("v1alpha1", "v1")), file),
        (Some(other.replace("{name: other.example}", "{}")), file),
        (Some(other.replace("{name: other.example}", "{name: other_example}")), file),
        (Some(format!("- {}", other.replace('\n', "\n  "))), file),
        (Some("apiVersion: v1\nkind: List\n".to_owned()), file),
        // The domain's own name is not known.
        (Some(other.replace("name: other.example", "name: example.com")), file),
        (Some("\u{0}".to_owned()), file),
        (None, file),
        (Some(other.replace("spec: {", "spec: {foo: bar, ")), "RpopDomain other.example has errors"),
        (
            Some(other.replace("host: store", "host: store, port: 99999")),
            "RpopDomain other.example has errors",
        ),
        (Some(domain("other.example", "{}")), "RpopDomain other.example has errors"),
        (Some(other.replace("spec: {", "spec: {postmaster: 'a b', ")), "RpopDomain other.example has errors"),
    ]
}

/// With a domain missing, its recipients would count as foreign.
#[test]
fn while_a_domain_may_be_missing_unified_records_are_not_polled_from_a_start() {
    for special in ["X-Real-To", "'*'"] {
        for (text, words) in doubtful() {
            let folder = folder(&all("postmaster@example.com", &format!("special: {special}\n")));
            let plain = record(REMOTE).replace("name: isp,", "name: plain,");
            folder.write("p.yaml", plain.as_bytes());
            match &text {
                Some(text) => folder.write("e.yaml", text.as_bytes()),
                None => std::os::unix::fs::symlink("/nonexistent/x", folder.path().join("e.yaml")).unwrap(),
            }
            let first = folder.load();
            let polled: Vec<String> = first.records.iter().map(|item| item.key.to_string()).collect();
            assert_eq!(polled, ["mail/plain"], "{text:?}");
            assert!(first.waits());
            let problem = first.problems.values().next().unwrap();
            assert!(
                problem.message.starts_with("not polled, since ") && problem.message.contains(words),
                "{text:?}: {}",
                problem.message
            );
            assert!(errors(&first).iter().any(|error| error.contains("spec.special: not polled, since ")));
            // Another edit while it is so, and then it is mended.
            folder.write("f.yaml", domain("third.example", SAME).as_bytes());
            let mut second = folder.load();
            second.keep_from(&first);
            assert_eq!((second.records.len(), second.problems.len()), (1, 1), "{text:?}");
            std::fs::remove_file(folder.path().join("e.yaml")).unwrap();
            folder.write("e.yaml", domain("other.example", SAME).as_bytes());
            let mut third = folder.load();
            third.keep_from(&second);
            assert_eq!((third.records.len(), third.problems.len()), (2, 0), "{}", third.report());
            let unified = third.records.iter().find_map(|item| item.unified.as_ref()).unwrap();
            assert!(unified.place_of("other.example").is_some(), "{text:?}");
        }
    }
}

#[test]
fn an_edit_by_which_a_domain_may_be_missing_leaves_it_what_it_was() {
    let folder = folder(&unified());
    let other = domain("other.example", "{aliases: [o.example], delivery: {lmtp: {host: store}}}");
    for (text, _) in doubtful() {
        std::fs::remove_file(folder.path().join("e.yaml")).ok();
        folder.write("e.yaml", other.as_bytes());
        let before = folder.load();
        if let Some(text) = &text {
            folder.write("e.yaml", text.as_bytes());
        } else {
            std::fs::remove_file(folder.path().join("e.yaml")).unwrap();
            std::os::unix::fs::symlink("/nonexistent/x", folder.path().join("e.yaml")).unwrap();
        }
        let mut now = folder.load();
        now.keep_from(&before);
        assert_eq!(now.records, before.records, "{text:?}\n{}", now.report());
        assert!(now.has_errors() && now.problems.is_empty(), "{text:?}");
        assert!(!now.report().contains("not polled"), "it is polled: {}", now.report());
    }
}

/// A domain that nobody knew before is ours as soon as it has a name.
#[test]
fn a_new_domain_with_errors_is_owed_its_mail() {
    let folder = folder(&unified());
    let before = folder.load();
    folder.write("e.yaml", domain("other.example", "{aliases: [o.example], delivery: {}}").as_bytes());
    let mut now = folder.load();
    now.keep_from(&before);
    assert_eq!(names(&now), ["example.com", "o.example", "other.example"]);
    assert!(given(&now).domains[1].destination.smtp.is_none());
}

#[test]
fn a_postmaster_in_another_domain_gets_his_mail_there() {
    let folder = folder(&unified());
    let main =
        |to: &str| domain("example.com", &format!("{{postmaster: {to}, delivery: {{lmtp: {{host: a}}}}}}"));
    folder.write("d.yaml", main("pm@other.example").as_bytes());
    let other = domain("other.example", "{delivery: {lmtp: {host: store}}}");
    folder.write("e.yaml", other.as_bytes());
    let before = folder.load();
    assert!(!before.has_errors(), "{}", before.report());
    assert_eq!(&*before.records[0].destination.domain, "other.example");
    folder.write("e.yaml", other.replace("host: store", "hots: store").as_bytes());
    let mut now = folder.load();
    now.keep_from(&before);
    assert_eq!(now.records, before.records);
    folder.write("e.yaml", other.replace("host: store", "host: store2").as_bytes());
    let mut now = folder.load();
    now.keep_from(&before);
    assert_eq!(now.records[0].destination, given(&now).domains[1].destination);
    // Nobody's.
    folder.write("d.yaml", main("pm@far.example").as_bytes());
    let read = folder.load();
    assert!(
        said(&read).iter().any(|(severity, text)| *severity == Severity::Warning
            && text.contains("pm@far.example of RpopDomain example.com is in no RpopDomain")),
        "{}",
        read.report()
    );
}

#[test]
fn without_smtp_senders_cannot_be_told_which_is_noted() {
    let folder = folder(&unified());
    folder.write("d.yaml", domain("example.com", "{delivery: {maildir: {path: '/m/{local}'}}}").as_bytes());
    let read = folder.load();
    assert!(!read.has_errors(), "{}", read.report());
    let (severity, message) = said(&read)[1];
    assert_eq!(severity, Severity::Note);
    assert!(
        message.contains("no delivery.smtp") && message.contains("postmaster@example.com is told"),
        "{message}"
    );
    folder.write("r.yaml", all("postmaster@example.com", "special: '*'\n").as_bytes());
    assert_eq!(said(&folder.load()).len(), 1, "under * nobody is told anyway");
}
