mod live;
mod unified;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::domain::code::Code;
use crate::domain::work::{AuthChoice, Endpoint, Login, OnReject, SecretKind, SecretRef, TlsMode};
use crate::engine::ports::Secrets as _;

const DOMAIN: &str = "\
apiVersion: rpop.dev/v1alpha1
kind: RpopDomain
metadata: {name: example.com}
spec: {delivery: {smtp: {host: localhost}}}
";

const SECRET: &str = "\
apiVersion: v1
kind: Secret
metadata: {name: isp, namespace: mail}
stringData: {password: hunter2}
";

/// A folder with files.
struct Folder(tempfile::TempDir);

impl Folder {
    fn of(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, text) in files {
            folder.write(name, text.as_bytes());
        }
        folder
    }

    fn write(&self, name: &str, octets: &[u8]) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, octets).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    fn load(&self) -> Configuration {
        Configuration::load(&[self.path()]).unwrap()
    }
}

fn load(files: &[(&str, &str)]) -> Configuration {
    Folder::of(files).load()
}

/// A record with further lines in its spec; they begin on line 5.
fn record(lines: &str) -> String {
    let mut text = String::from(
        "apiVersion: rpop.dev/v1alpha1\nkind: RpopRecord\nmetadata: {name: isp, namespace: mail}\nspec:\n",
    );
    for line in lines.lines() {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

const REMOTE: &str = "account: alice@example.com\nremote: {host: pop.isp.example, account: a77, passwordSecretRef: {name: isp}}\n";

/// One record that is complete but for these lines.
fn with(lines: &str) -> Configuration {
    let text = record(&format!("{REMOTE}{lines}"));
    load(&[("domain.yaml", DOMAIN), ("record.yaml", &text), ("secret.yaml", SECRET)])
}

/// Errors as `LINE:COLUMN FIELD: MESSAGE`.
fn errors(read: &Configuration) -> Vec<String> {
    read.diagnostics
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .map(|finding| {
            let field = finding.subject.rsplit(": ").next().unwrap_or("");
            format!("{}:{} {field}: {}", finding.line, finding.column, finding.message)
        })
        .collect()
}

#[track_caller]
fn only_error(read: &Configuration) -> String {
    let all = errors(read);
    assert_eq!(all.len(), 1, "{}", read.report());
    all.into_iter().next().unwrap()
}

#[test]
fn a_complete_record_becomes_a_work_item() {
    let read = with(
        "pollEvery: 1h30m\ntls: {mode: StartTls, serverName: mail.isp.example}\nleave: true\nkeepForDays: 30\n\
         limits: {messageSize: 50Mi, messagesPerSession: 1000}\nonReject: Postmaster\n",
    );
    assert_eq!(errors(&read), Vec::<String>::new());
    let item = &read.records[0];
    assert_eq!(item.key.to_string(), "mail/isp");
    assert_eq!(item.account.as_str(), "alice@example.com");
    assert_eq!((&*item.remote.host, item.remote.port), ("pop.isp.example", 110));
    assert_eq!(item.remote.tls.mode, TlsMode::StartTls);
    assert_eq!(item.interval, Some(Duration::from_mins(90)));
    assert_eq!(item.keep_for_days, Some(30));
    assert_eq!(item.limits.message_size, Some(50 << 20));
    assert_eq!(item.on_reject, OnReject::Postmaster);
    assert_eq!(item.postmaster.as_ref().unwrap().as_str(), "postmaster@example.com");
    let smtp = item.destination.smtp.as_ref().unwrap();
    assert_eq!(smtp.endpoint, Endpoint::Tcp("localhost".into(), 25));
}

#[test]
fn a_typo_is_reported_with_its_place_and_what_was_meant() {
    let read = with("pollevery: 5m\n");
    assert_eq!(only_error(&read), "7:3 spec.pollevery: unknown field `pollevery`: did you mean `pollEvery`?");
    let report = read.report();
    assert!(report.contains("record.yaml:7:3\n"), "{report}");
    assert!(report.contains("7 |   pollevery: …\n  |   ^^^^^^^^^\n"), "{report}");
    assert_eq!(read.problems.len(), 1);
}

#[test]
fn what_other_programs_call_it_is_translated() {
    let text = record(&REMOTE.replace("account: a77", "user: a77"));
    let read = load(&[("d.yaml", DOMAIN), ("r.yaml", &text), ("s.yaml", SECRET)]);
    let all = errors(&read).join("\n");
    assert!(all.contains("unknown field `user`: here it is called `account`"), "{all}");
}

#[test]
fn broken_yaml_comes_with_a_remedy() {
    for (text, line, remedy) in [
        ("a:\n\tb: 1\n", 2, "indent with spaces"),
        ("a: *b\n", 1, "begins with * must be in quotes"),
        ("a: @b\n", 1, "begins with @, % or ` must be in quotes"),
        ("a:\n  b: 1\n c: 2\n", 3, "indented alike"),
        ("a: 1\nb\nc: 2\n", 2, "a colon and a space are missing"),
        ("a: b: c\n", 1, "must be in quotes"),
        ("a: \"b\n", 1, "end the value with the quote that it begins with"),
    ] {
        let read = load(&[("x.yaml", text)]);
        let error = only_error(&read);
        assert!(error.contains(remedy), "{text}: {error}");
        assert!(read.diagnostics[0].excerpt.is_some(), "{text}");
        assert_eq!(read.diagnostics[0].line, line, "{text}: {error}");
    }
}

#[test]
fn fields_in_the_wrong_place_are_told_where_they_belong() {
    assert_eq!(
        only_error(&with("host: pop.isp.example\n")),
        "7:3 spec.host: unknown field `host` here: it belongs under `spec.remote`"
    );
}

#[test]
fn all_errors_of_all_files_are_reported_at_once() {
    let first = record(
        "account: alice\nremote: {host: 'pop3://x', account: a, passwordSecretRef: {name: isp}}\nleave: 5\n",
    );
    let second = record("acount: x@example.com\nremote: {host: x}\n").replace("name: isp,", "name: other,");
    let read = load(&[("a.yaml", &first), ("b.yaml", &second), ("secret.yaml", SECRET)]);
    let all = errors(&read).join("\n");
    // The rules look at an object only once its fields have the right types.
    for part in [
        "`leave` must be true or false, found the number 5",
        "unknown field `acount`: did you mean `account`?",
        "`account` is missing.",
    ] {
        assert!(all.contains(part), "{part} in\n{all}");
    }
}

#[test]
fn rules_of_the_crds_are_evaluated_and_point_at_the_field() {
    for (lines, at, message) in [
        ("keepForDays: 3\n", "7:16 spec.keepForDays", "keepForDays needs leave: true"),
        ("pollEvery: 5s\n", "7:14 spec.pollEvery", "write at least 10s"),
        ("pollEvery: often\n", "7:14 spec.pollEvery", "write a duration of at least 10s, like 5m"),
        ("tls: {mode: None, serverName: x.example}\n", "7:3 spec.tls", "there is no TLS: remove caRef"),
        ("tls: {pinSha256: [abc]}\n", "7:9 spec.tls.pinSha256", "64 hexadecimal digits"),
        ("limits: {messageSize: 50MB}\n", "7:25 spec.limits.messageSize", "like 50Mi"),
        ("limits: {messageSize: 0}\n", "7:25 spec.limits.messageSize", "like 50Mi"),
        ("mailbox: ../etc\n", "7:12 spec.mailbox", "write the name of a mailbox"),
        ("mailbox: a\nspecial: X-To\n", "8:12 spec.special", "write mailbox or special, not both"),
        ("relayForeign: true\n", "7:17 spec.relayForeign", "needs special"),
        ("special: Received\n", "7:12 spec.special", "like X-Original-To or Delivered-To, or \"*\" to use"),
        ("special: content-type\n", "7:12 spec.special", "this header has another use"),
    ] {
        let error = only_error(&with(lines));
        assert!(error.starts_with(at) && error.contains(message), "{lines}: {error}");
    }
}

#[test]
fn accounts_and_hosts_that_cannot_be() {
    for (host, message) in [
        ("'pop3://pop.isp.example'", "write the host alone"),
        ("bücher.example", "xn--"),
        ("'pop.isp.example:70000'", "write a host name or an address"),
        ("'2001:db8::1'", "[2001:db8::1]:995"),
        ("'[2001:zz::1]'", "write a host name or an address"),
        ("'[2001:db8::1::2]'", "not an IPv6 address"),
        ("'a b'", "write a host name or an address"),
        ("''", "`host` is empty"),
    ] {
        let text = record(&REMOTE.replace("pop.isp.example", host));
        let read = load(&[("domain.yaml", DOMAIN), ("record.yaml", &text), ("secret.yaml", SECRET)]);
        let all = errors(&read);
        assert!(all.iter().any(|error| error.contains(message)), "{host}: {all:?}");
        assert_eq!(read.problems.len(), 1, "{host}");
    }
    let read = load(&[("r.yaml", &record(&REMOTE.replace("alice@example.com", "'a b@example.com'")))]);
    assert!(only_error(&read).contains("write the local account with its domain"));
}

#[test]
fn every_mechanism_that_can_be_written_reaches_the_engine() {
    for (auth, choice) in [
        ("Auto", AuthChoice::Auto),
        ("UserPass", AuthChoice::UserPass),
        ("Plain", AuthChoice::Plain),
        ("Login", AuthChoice::Login),
        ("CramMd5", AuthChoice::CramMd5),
        ("ScramSha256", AuthChoice::ScramSha256),
        ("Ntlm", AuthChoice::Ntlm),
        ("Msn", AuthChoice::Msn),
    ] {
        let text = record(&REMOTE.replace("account: a77", &format!("account: a77, auth: {auth}")));
        let read = load(&[("d.yaml", DOMAIN), ("record.yaml", &text), ("secret.yaml", SECRET)]);
        assert!(read.problems.is_empty(), "{auth}: {:?}", read.problems);
        assert_eq!(read.records[0].remote.auth, choice);
    }
}

#[test]
fn access_tokens_need_what_they_are_got_by() {
    let oauth = |more: &str| {
        let oauth = format!("oauth2: {{tokenUrl: 'https://x.example/', clientId: c, {more}}}");
        record(&REMOTE.replace("passwordSecretRef: {name: isp}", &oauth))
    };
    let text = oauth(
        "refreshTokenSecretRef: {name: isp}, clientSecretRef: {name: isp, key: secret}, scopes: [a, b]",
    );
    let secret = |lines: &str| SECRET.replace("stringData: {password: hunter2}", lines);
    let good = secret("stringData: {password: r0, secret: s}");
    let read = load(&[("d.yaml", DOMAIN), ("r.yaml", &text), ("s.yaml", &good)]);
    assert!(!read.has_errors(), "{}", read.report());
    let Login::OAuth2(way) = &read.records[0].remote.login else { panic!("no tokens") };
    let scopes: Vec<&str> = way.scopes.iter().map(|scope| &**scope).collect();
    assert_eq!((&*way.token_url, scopes), ("https://x.example/", vec!["a", "b"]));
    for (lines, said, code) in [
        ("stringData: {secret: s}", "has no key `password`", Code::SecretMissing),
        ("stringData: {password: r0}", "has no key `secret`", Code::SecretMissing),
        (
            "stringData: {password: \"r0\\n\", secret: s}",
            "the refresh token ends with a line break",
            Code::SecretInvalid,
        ),
        ("stringData: {password: r0, secret: \"\"}", "the client secret is empty", Code::SecretInvalid),
    ] {
        let read = load(&[("d.yaml", DOMAIN), ("r.yaml", &text), ("s.yaml", &secret(lines))]);
        assert!(only_error(&read).contains(said), "{lines}: {}", read.report());
        assert_eq!(read.problems.values().next().unwrap().code, code);
    }
    let neither = load(&[("d.yaml", DOMAIN), ("r.yaml", &oauth("scopes: [a]")), ("s.yaml", &good)]);
    assert!(only_error(&neither).contains("rpop oauth login"), "{}", neither.report());
    let clear = text.replace("https://", "http://");
    let clear = load(&[("d.yaml", DOMAIN), ("r.yaml", &clear), ("s.yaml", &good)]);
    assert!(only_error(&clear).contains("must not cross the network in clear text"), "{}", clear.report());
}

#[test]
fn mailbox_needs_a_destination_that_can_store_directly() {
    let read = with("mailbox: Archive\n");
    let error = only_error(&read);
    assert!(
        error.starts_with("7:12 spec.mailbox: mailbox needs delivery.lmtp or delivery.maildir"),
        "{error}"
    );
    let lmtp = DOMAIN.replace("smtp: {host: localhost}", "lmtp: {host: localhost}");
    let text = record(&format!("{REMOTE}mailbox: Archive\n"));
    let read = load(&[("d.yaml", &lmtp), ("r.yaml", &text), ("s.yaml", SECRET)]);
    assert!(!read.has_errors(), "{}", read.report());
    assert_eq!(read.records[0].mailbox.as_deref(), Some("Archive"));
}

#[test]
fn a_missing_secret_stops_its_record_and_no_other() {
    let other = record(REMOTE).replace("name: isp,", "name: other,").replace("{name: isp}", "{name: absent}");
    let text = record(REMOTE);
    let read = load(&[("d.yaml", DOMAIN), ("a.yaml", &text), ("b.yaml", &other), ("s.yaml", SECRET)]);
    assert_eq!(read.records.len(), 1);
    let (key, problem) = read.problems.iter().next().unwrap();
    assert_eq!((key.to_string().as_str(), problem.code), ("mail/other", Code::SecretMissing));
    assert_eq!(problem.message, "there is no Secret mail/absent");
    assert!(only_error(&read).starts_with("6:75 spec.remote.passwordSecretRef"), "{}", only_error(&read));

    let elsewhere = SECRET.replace("namespace: mail", "namespace: other");
    let read = load(&[("d.yaml", DOMAIN), ("a.yaml", &text), ("s.yaml", &elsewhere)]);
    assert!(only_error(&read).contains("of that name is in namespace other"));

    let key = SECRET.replace("password:", "pw:");
    let read = load(&[("d.yaml", DOMAIN), ("a.yaml", &text), ("s.yaml", &key)]);
    assert!(only_error(&read).contains("has no key `password`: it has pw"));
}

// quirks: "AUTH line over 255 octets … CR, LF or NUL in user or password is refused before anything is sent."
#[test]
fn passwords_that_cannot_be_sent_are_refused_with_the_remedy() {
    let text = record(REMOTE);
    for (line, message) in [
        ("data: {password: aHVudGVyMgo=}", "ends with a line break: encode it with `echo -n`"),
        ("stringData: {password: \"a\\r\\nb\"}", "holds a line break or NUL"),
        ("stringData: {password: \"a\\0b\"}", "holds a line break or NUL"),
        ("stringData: {password: \"\"}", "the password is empty"),
    ] {
        let secret = SECRET.replace("stringData: {password: hunter2}", line);
        let read = load(&[("d.yaml", DOMAIN), ("r.yaml", &text), ("s.yaml", &secret)]);
        assert!(only_error(&read).contains(message), "{line}: {}", read.report());
        assert_eq!(read.problems.values().next().unwrap().code, Code::SecretInvalid);
    }
    let user = record(&REMOTE.replace("account: a77", "account: \"a\\r\\nb\""));
    let read = load(&[("d.yaml", DOMAIN), ("r.yaml", &user), ("s.yaml", SECRET)]);
    assert!(only_error(&read).contains("without line breaks and control characters"));
}

#[test]
fn secrets_never_show_in_what_is_printed() {
    let cases = [
        // Wrong types, bad base64, unknown fields and broken YAML near a password.
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: 987654321}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {password: 987654321}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {password: '987654321 !'}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringdata: {password: x987654321}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  password: @987654321\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  password: *987654321\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  password: !987654321 x\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {password: {a987654321: 1}}\n",
        "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData:\n  password: \"987654321\n",
    ];
    for text in cases {
        let read = load(&[("s.yaml", text)]);
        assert!(read.has_errors(), "{text}");
        let printed = format!("{}{:?}", read.report(), read);
        assert!(!printed.contains("987654321"), "{text}\n{printed}");
    }
    let text = record(&REMOTE.replace("passwordSecretRef: {name: isp}", "password: s987654321"));
    let read = load(&[("r.yaml", &text)]);
    assert!(read.report().contains("did you mean `passwordSecretRef`?"), "{}", read.report());
    assert!(!format!("{}{:?}", read.report(), read).contains("987654321"), "{}", read.report());
}

#[test]
fn names_that_are_taken_are_reported_with_both_places() {
    let text = record(REMOTE);
    let read = load(&[("d.yaml", DOMAIN), ("a.yaml", &text), ("b.yaml", &text), ("s.yaml", SECRET)]);
    let error = only_error(&read);
    assert!(error.contains("this name is taken: first in ") && error.contains("a.yaml:3"), "{error}");
    assert_eq!(read.records.len(), 1);
}

#[test]
fn names_cannot_leave_their_folder() {
    for name in ["../../etc/passwd", "a/b", "A", ".hidden", "-x", "'a b'"] {
        let text = record(REMOTE)
            .replace("{name: isp, namespace: mail}", &format!("{{name: {name}, namespace: mail}}"));
        let error = only_error(&load(&[("r.yaml", &text)]));
        assert!(error.contains("cannot be a name"), "{name}: {error}");
    }
    let long = record(REMOTE).replace("name: isp,", &format!("name: {},", "x".repeat(181)));
    let error = only_error(&load(&[("r.yaml", &long)]));
    assert!(error.contains("at most 180 characters"), "{error}");
}

#[test]
fn a_record_without_its_domain_says_which_one_is_missing() {
    let read = load(&[("r.yaml", &record(REMOTE)), ("s.yaml", SECRET)]);
    let error = only_error(&read);
    assert!(error.starts_with("5:12 spec.account: there is no RpopDomain example.com"), "{error}");
    let alias = DOMAIN
        .replace("name: example.com", "name: example.org")
        .replace("{delivery", "{aliases: [Example.Com], delivery");
    let read = load(&[("d.yaml", &alias), ("r.yaml", &record(REMOTE)), ("s.yaml", SECRET)]);
    assert!(!read.has_errors(), "{}", read.report());
}

#[test]
fn unknown_kinds_and_versions() {
    for (from, to, message) in [
        ("kind: RpopDomain", "kind: RpopDomian", "did you mean `RpopDomain`?"),
        ("kind: RpopDomain", "kind: Mailbox", "unknown kind `Mailbox`: RPOP reads RpopRecord"),
        (
            "rpop.dev/v1alpha1",
            "rpop.dev/v1",
            "unknown apiVersion `rpop.dev/v1` for RpopDomain: write rpop.dev/v1alpha1",
        ),
        ("kind: RpopDomain\n", "", "`kind` is missing"),
    ] {
        let error = only_error(&load(&[("d.yaml", &DOMAIN.replace(from, to))]));
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn what_belongs_to_others_is_left_out_with_a_warning() {
    let other = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n";
    let read = load(&[("d.yaml", DOMAIN), ("x.yaml", other)]);
    assert!(!read.has_errors());
    assert!(read.report().contains("warning: a Deployment is left out"), "{}", read.report());
}

#[test]
fn a_broken_document_costs_only_itself() {
    let text = format!("{DOMAIN}---\n{}---\nkind: [\n---\n{SECRET}", record(REMOTE));
    let read = load(&[("all.yaml", &text)]);
    assert!(only_error(&read).contains("not valid YAML"));
    assert_eq!(read.records.len(), 1);
}

#[test]
fn lists_json_and_windows_line_ends_are_read() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Secret\n  metadata: {name: isp, namespace: mail}\n  data: {password: aHVudGVyMg==}\n";
    let json = r#"{"apiVersion": "rpop.dev/v1alpha1", "kind": "RpopDomain", "metadata": {"name": "example.com"},
        "spec": {"delivery": {"smtp": {"host": "localhost"}}}}"#;
    let text = record(REMOTE).replace('\n', "\r\n");
    let text = format!("\u{feff}{text}");
    let read = load(&[("l.yaml", list), ("d.json", json), ("r.yml", &text)]);
    assert!(!read.has_errors(), "{}", read.report());
    assert_eq!(read.records.len(), 1);
}

#[test]
fn editors_copies_and_hidden_files_are_not_read() {
    let read = load(&[
        ("d.yaml", DOMAIN),
        ("d.yaml~", "{"),
        (".d.yaml.swp", "{"),
        ("#d.yaml#", "{"),
        (".#d.yaml", "{"),
        (".hidden/x.yaml", "{"),
        ("README.md", "{"),
        ("d.yaml.bak", "{"),
        ("below/s.yaml", SECRET),
    ]);
    assert!(!read.has_errors(), "{}", read.report());
    assert_eq!(read.files.len(), 2);
}

#[test]
fn hostile_files_are_bounded() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = level - 1;
        let aliases = vec![format!("*a{before}"); 10].join(", ");
        laughs = format!("{laughs}a{level}: &a{level} [{aliases}]\n");
    }
    assert!(only_error(&load(&[("x.yaml", &laughs)])).contains("aliases make this document larger"));
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(only_error(&load(&[("x.yaml", &deep)])).contains("not valid YAML"));

    let folder = Folder::of(&[("d.yaml", DOMAIN)]);
    folder.write("latin.yaml", b"# ok\n# caf\xe9\n");
    folder.write("huge.yaml", &vec![b'#'; 16 * 1024 * 1024 + 1]);
    std::os::unix::fs::symlink("nowhere", folder.path().join("dangling.yaml")).unwrap();
    std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).unwrap();
    let read = folder.load();
    let all = errors(&read).join("\n");
    for part in ["is not UTF-8", "larger than 16 MiB", "cannot be read: No such file"] {
        assert_eq!(all.matches(part).count(), 1, "{part} in {all}");
    }
    let latin = read.diagnostics.iter().find(|finding| finding.message.contains("UTF-8")).unwrap();
    assert_eq!(latin.line, 2);
}

#[test]
fn a_path_that_is_not_there_is_an_error_of_the_command_line() {
    let error = Configuration::load(&["/nonexistent/rpop".into()]).unwrap_err();
    assert!(error.to_string().starts_with("cannot read /nonexistent/rpop: No such file"), "{error}");
}

#[test]
fn never_leaves_a_record_out_with_a_note() {
    let read = with("pollEvery: Never\n");
    assert!(!read.has_errors(), "{}", read.report());
    assert_eq!((read.records.len(), read.skipped.len()), (0, 1));
    assert_eq!(read.diagnostics.iter().filter(|finding| finding.message.contains("Never")).count(), 1);
    for lines in ["pollEvery: Disabled\n", "paused: true\n"] {
        assert_eq!(with(lines).records[0].interval, None);
    }
}

#[test]
fn types_are_explained() {
    for (lines, message) in [
        (
            "pollEvery: 300\n",
            "`pollEvery` must be text, found the number 300: write a duration of at least 10s",
        ),
        ("mailbox: 2024\n", "`mailbox` must be text, found the number 2024: put it in quotes: \"2024\""),
        ("leave: 'true'\n", "`leave` must be true or false, found text"),
        ("keepForDays: '3'\nleave: true\n", "`keepForDays` must be a number: remove the quotes"),
        ("keepForDays: 0\nleave: true\n", "`keepForDays` cannot be 0: write a number from 1 to 36500"),
        ("tls: StartTls\n", "`tls` must be a mapping, found text: its fields are"),
        ("tls: {mode: starttls}\n", "`mode` cannot be `starttls`: did you mean `StartTls`?"),
        ("tls: {pinSha256: abc}\n", "`pinSha256` must be a list: write `pinSha256: [VALUE]`"),
        ("mailbox:\n", "`mailbox` is empty: write a value, or remove the line"),
        ("mailbox: yes\n", "`mailbox` must be text, found the boolean true: put it in quotes"),
        ("leave: true\nleave: false\n", "`leave` is written twice; first on line 7"),
    ] {
        let error = only_error(&with(lines));
        assert!(error.contains(message), "{lines}: {error}");
    }
}

#[test]
fn apop_works_only_with_both_switches() {
    let settings = |on| {
        format!(
            "apiVersion: rpop.dev/v1alpha1\nkind: RpopSettings\nmetadata: {{name: default}}\nspec: {{useApop: {on}}}\n"
        )
    };
    let text = record(&format!("{REMOTE}apop: true\n"));
    for (on, apop, warnings) in [(true, true, 0), (false, false, 1)] {
        let read =
            load(&[("d.yaml", DOMAIN), ("r.yaml", &text), ("s.yaml", SECRET), ("t.yaml", &settings(on))]);
        assert!(!read.has_errors(), "{}", read.report());
        assert_eq!(read.records[0].remote.apop, apop);
        let found = read.diagnostics.iter().filter(|finding| finding.severity == Severity::Warning).count();
        assert_eq!(found, warnings, "{}", read.report());
    }
}

#[test]
fn settings_are_taken_over() {
    let text = "\
apiVersion: rpop.dev/v1alpha1
kind: RpopSettings
metadata: {name: default}
spec:
  processors: 0
  hostConnections: 3
  logLevel: LowLevel
  delayFailedHosts: 1m
  ownAddresses: [10.0.0.0/8, Mail.Example.com]
  remoteNetworks: {deny: ['169.254.0.0/16', 'fe80::/10']}
  checkpoint: {messages: 5}
  timeouts: {afterDot: 2m}
  sourceAddress: 192.0.2.7
";
    let record = record(REMOTE);
    let read = load(&[("t.yaml", text), ("d.yaml", DOMAIN), ("r.yaml", &record), ("s.yaml", SECRET)]);
    assert!(!read.has_errors(), "{}", read.report());
    let settings = &read.settings;
    assert_eq!((settings.processors, settings.host_connections), (0, 3));
    assert_eq!(settings.delay_failed_hosts, Duration::from_mins(1));
    assert_eq!(settings.delay_failed_accounts, Duration::from_mins(10));
    assert_eq!(settings.checkpoint.messages, 5);
    assert_eq!(settings.checkpoint.every, Duration::from_secs(5));
    assert_eq!(settings.timeouts.after_dot, Duration::from_mins(2));
    assert_eq!(settings.timeouts.reply, Duration::from_mins(1));
    assert_eq!(settings.deny_networks.len(), 2);
    assert_eq!(&*settings.own_addresses[1], "mail.example.com");
    assert_eq!(read.records[0].source_address, Source::first_of(["192.0.2.7".parse().unwrap()]));

    let wrong = text.replace("name: default", "name: main");
    assert!(only_error(&load(&[("t.yaml", &wrong)])).contains("name it default"));
    for (from, to, message) in [
        ("169.254.0.0/16", "169.254.0.0/33", "write networks like"),
        ("sourceAddress: 192.0.2.7", "sourceAddress: eth0", "write an IP address"),
        ("processors: 0", "processors: -1", "`processors` cannot be -1"),
        ("afterDot: 2m", "afterDot: 0s", "write deadlines of at least 1s"),
        ("delayFailedHosts: 1m", "delayFailedHosts: soon", "write a duration in hours, minutes and seconds"),
    ] {
        let error = only_error(&load(&[("t.yaml", &text.replace(from, to))]));
        assert!(error.contains(message), "{to}: {error}");
    }
}

#[test]
fn two_records_of_one_maildrop_are_warned_of_unless_both_leave_the_mail() {
    for (lines, warnings) in [("leave: true\n", 0), ("leave: false\n", 1)] {
        let text = record(&format!("{REMOTE}{lines}"));
        let other = text.replace("name: isp,", "name: other,");
        let read = load(&[("d.yaml", DOMAIN), ("a.yaml", &text), ("b.yaml", &other), ("s.yaml", SECRET)]);
        let found: Vec<_> =
            read.diagnostics.iter().filter(|finding| finding.severity == Severity::Warning).collect();
        assert_eq!(found.len(), warnings, "{}", read.report());
        assert!(found.iter().all(|finding| finding.message.contains("the maildrop of mail/isp too")));
    }
}

#[test]
fn a_file_that_is_named_twice_is_read_once() {
    let folder = Folder::of(&[("d.yaml", DOMAIN)]);
    let read = Configuration::load(&[folder.path(), folder.path().join("d.yaml")]).unwrap();
    assert!(!read.has_errors(), "{}", read.report());
    assert_eq!(read.files.len(), 1);
}
