//! Changes while the process runs, and whatever text a file may hold.

use super::*;

#[tokio::test]
async fn secrets_are_read_and_exchanged_as_a_whole() {
    let folder = Folder::of(&[("d.yaml", DOMAIN), ("r.yaml", &record(REMOTE)), ("s.yaml", SECRET)]);
    let first = folder.load();
    let in_use = first.secrets.clone();
    let at = first.records[0].remote.login.refs().next().unwrap();
    assert_eq!(in_use.get(at).await.unwrap().as_slice(), b"hunter2");
    folder.write("s.yaml", SECRET.replace("hunter2", "hunter3").as_bytes());
    let second = folder.load();
    assert_eq!(first.records, second.records);
    assert!(in_use.differs(&second.secrets, &second.records[0]));
    in_use.replace(&second.secrets);
    assert_eq!(in_use.get(at).await.unwrap().as_slice(), b"hunter3");
    assert!(!in_use.differs(&second.secrets, &second.records[0]));
    let absent = SecretRef { kind: SecretKind::ConfigMap, ..at.clone() };
    assert_eq!(in_use.get(&absent).await.unwrap_err().to_string(), "there is no ConfigMap mail/isp");
}

#[test]
fn an_edit_that_cannot_be_read_leaves_in_force_what_was() {
    let good = record(REMOTE);
    let other = good.replace("name: isp,", "name: other,");
    let folder = Folder::of(&[("d.yaml", DOMAIN), ("r.yaml", &good), ("o.yaml", &other), ("s.yaml", SECRET)]);
    let before = folder.load();
    assert_eq!(before.records.len(), 2);
    for (file, text) in [
        ("r.yaml", good.replace("account", "acount")),
        ("r.yaml", good.replace("spec:", "spec: [")),
        ("r.yaml", "\u{0}".into()),
        ("d.yaml", DOMAIN.replace("delivery", "delivry")),
        ("d.yaml", DOMAIN.replace("smtp: {host", "smtp: [host")),
        ("s.yaml", SECRET.replace("stringData: {", "stringData: [")),
    ] {
        folder.write("d.yaml", DOMAIN.as_bytes());
        folder.write("r.yaml", good.as_bytes());
        folder.write("s.yaml", SECRET.as_bytes());
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
    folder.write("s.yaml", SECRET.as_bytes());
    fs::remove_file(folder.path().join("r.yaml")).unwrap();
    let mut now = folder.load();
    now.keep_from(&before);
    assert_eq!(now.records.len(), 1);
    fs::remove_file(folder.path().join("s.yaml")).unwrap();
    let mut now = folder.load();
    now.keep_from(&before);
    assert_eq!((now.records.len(), now.problems.len()), (0, 1));
}

#[test]
fn broken_settings_are_never_taken_for_the_defaults() {
    let good = "apiVersion: rpop.dev/v1alpha1\nkind: RpopSettings\nmetadata: {name: default}\nspec: {processors: 7}\n";
    let broken = [
        good.replace("processors: 7", "processors: many"),
        good.replace("processors: 7", "procesors: 7"),
        good.replace("processors: 7}", "processors: [7}"),
        good.replace("v1alpha1", "v1"),
        good.replace("RpopSettings", "RpopSetings"),
    ];
    let folder =
        Folder::of(&[("d.yaml", DOMAIN), ("r.yaml", &record(REMOTE)), ("s.yaml", SECRET), ("z.yaml", good)]);
    let before = folder.load();
    assert!(!before.settings_missing && before.settings.processors == 7, "{}", before.report());
    for text in &broken {
        folder.write("z.yaml", text.as_bytes());
        let mut now = folder.load();
        assert!(now.settings_missing && now.has_errors(), "{text}");
        now.keep_from(&before);
        assert!(!now.settings_missing && now.settings.processors == 7, "{text}");
    }
    // So do the addresses that are connected from.
    let own =
        "postmaster: root, assignedAddresses: [192.0.2.5, '2001:db8::5'], useForOutgoing: true, delivery";
    folder.write("d.yaml", DOMAIN.replace("delivery", own).as_bytes());
    let from = |now: &Configuration| now.records[0].source_address.map(|source| source.to_string());
    folder.write("z.yaml", broken[0].replace("many", "7, useDomainAddresses: true").as_bytes());
    let before = folder.load();
    assert_eq!(from(&before).as_deref(), Some("192.0.2.5 or 2001:db8::5"), "{}", before.report());
    folder.write("z.yaml", broken[0].as_bytes());
    let mut now = folder.load();
    assert_eq!(from(&now), None);
    now.keep_from(&before);
    assert_eq!(from(&now).as_deref(), Some("192.0.2.5 or 2001:db8::5"));
    folder.write("z.yaml", broken[0].replace("many", "7").as_bytes());
    let now = folder.load();
    assert_eq!(from(&now), None);
    assert!(now.report().contains("warning: useForOutgoing has no effect"), "{}", now.report());
    // What cannot be told from anything stays what it was.
    folder.write("z.yaml", b"a: [");
    let mut now = folder.load();
    assert!(!now.settings_missing);
    now.keep_from(&before);
    assert_eq!(now.settings.processors, 7);
}

#[tokio::test(start_paused = true)]
async fn changes_are_noticed_once_they_have_settled() {
    let folder = Folder::of(&[("d.yaml", DOMAIN)]);
    let mut watcher = Watcher::new(vec![folder.path()], Duration::from_secs(2));
    let quiet = tokio::time::timeout(Duration::from_mins(1), watcher.changed()).await;
    assert!(quiet.is_err());
    folder.write("r.yaml", b"# new");
    tokio::time::timeout(Duration::from_mins(1), watcher.changed()).await.unwrap();
    // A mounted ConfigMap changes by a link that is replaced.
    let path = folder.path();
    folder.write(".a/x.yaml", b"# a");
    folder.write(".b/x.yaml", b"# b");
    std::os::unix::fs::symlink(".a", path.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/x.yaml", path.join("x.yaml")).unwrap();
    tokio::time::timeout(Duration::from_mins(1), watcher.changed()).await.unwrap();
    std::os::unix::fs::symlink(".b", path.join("..new")).unwrap();
    fs::rename(path.join("..new"), path.join("..data")).unwrap();
    tokio::time::timeout(Duration::from_mins(1), watcher.changed()).await.unwrap();
    fs::remove_file(path.join("r.yaml")).unwrap();
    tokio::time::timeout(Duration::from_mins(1), watcher.changed()).await.unwrap();
}

/// Reads a stream as if it were a file.
fn read_text(loader: &mut loader::Loader, text: &str) -> Vec<Diagnostic> {
    loader.files.push(std::path::Path::new("x.yaml").into());
    loader.stream(u32::try_from(loader.files.len() - 1).unwrap(), text);
    std::mem::take(&mut loader.diagnostics)
}

mod properties {
    use std::cell::RefCell;

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        // The rules are compiled once for all cases.
        static LOADER: RefCell<loader::Loader> = RefCell::new(loader::Loader::new());
    }

    fn quoted(text: &str) -> String {
        serde_json::to_string(text).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn no_text_makes_the_reader_panic(text in ".{0,400}") {
            LOADER.with_borrow_mut(|loader| read_text(loader, &text));
        }

        #[test]
        fn no_damage_makes_the_reader_panic(
            at in 0..200_usize,
            len in 0..20_usize,
            with in "[-:{}\\[\\]&*!|>'\"%@`#,? \n\ta-z]{0,6}",
        ) {
            let mut text: Vec<char> = record(REMOTE).chars().collect();
            let end = (at + len).min(text.len());
            text.splice(at.min(end)..end, with.chars());
            let text: String = text.into_iter().collect();
            LOADER.with_borrow_mut(|loader| read_text(loader, &text));
        }

        #[test]
        fn rules_always_have_an_answer(
            field in 0..12_usize,
            value in prop_oneof!["\\PC{0,30}", "[0-9hmskMGTi]{0,18}", "[a-z0-9:.@/\\[\\]-]{0,30}", "\\x00{1,3}a"],
        ) {
            let spec = [
                "pollEvery", "mailbox", "special", "limits.messageSize", "tls.serverName", "tls.pinSha256",
                "account", "remote.host", "remote.account", "keepForDays", "tls.mode", "onReject",
            ][field];
            let value = if spec == "tls.pinSha256" { format!("[{}]", quoted(&value)) } else { quoted(&value) };
            let line = match spec.split_once('.') {
                Some(("remote", inner)) => format!("remote: {{{inner}: {value}, passwordSecretRef: {{name: x}}}}"),
                Some((outer, inner)) => format!("{outer}: {{{inner}: {value}}}"),
                None => format!("{spec}: {value}"),
            };
            let text = if spec == "account" {
                record(&format!("{line}\nremote: {{host: x, account: y, passwordSecretRef: {{name: x}}}}"))
            } else if spec.starts_with("remote") {
                let other = if spec == "remote.host" { "account: y" } else { "host: x" };
                record(&format!("account: a@b.c\n{}", line.replacen('{', &format!("{{{other}, "), 1)))
            } else {
                record(&format!("{REMOTE}{line}"))
            };
            let found = LOADER.with_borrow_mut(|loader| {
                let found = read_text(loader, &text);
                loader.forget();
                found
            });
            for finding in found {
                prop_assert!(!finding.message.contains("evaluat"), "{text}: {}", finding.message);
                // What the rules let through, the types must take.
                prop_assert!(finding.subject.rsplit(": ").next() != Some("spec"), "{text}: {}", finding.message);
            }
        }
    }
}

/// An editor that writes in place leaves the file empty for a while.
#[tokio::test(start_paused = true)]
async fn an_emptied_file_is_given_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.yaml");
    std::fs::write(&file, "a: 1").unwrap();
    let every = Duration::from_secs(2);
    let mut watcher = Watcher::new(vec![folder.path().to_owned()], every);
    std::fs::write(&file, "").unwrap();
    let early = tokio::time::timeout(every * 4, watcher.changed()).await;
    assert!(early.is_err(), "an empty file is not believed at once");
    std::fs::write(&file, "a: 2").unwrap();
    tokio::time::timeout(Duration::from_mins(1), watcher.changed()).await.unwrap();
    std::fs::write(&file, "").unwrap();
    tokio::time::timeout(Duration::from_mins(1), watcher.changed()).await.unwrap();
}
