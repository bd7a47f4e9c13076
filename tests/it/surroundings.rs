//! What runs beside the polls: metrics, health, status, completions, and the
//! demonstration itself.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};

use base64::Engine as _;
use rustix::process::Signal;

use crate::support::mail::message;
use crate::support::manifest::Record;
use crate::support::pop3::{Act, Pop3};
use crate::support::rig::{NAME, Rig};
use crate::support::rpop::Running;
use crate::support::smtp::Smtp;
use crate::support::{free_port, program, skipped, wait_for, wait_until};

/// The status line and the body.
fn get(port: u16, path: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), body.to_owned()))
}

#[test]
fn metrics_and_health_are_served_and_prometheus_understands_them() {
    let test = "metrics_and_health_are_served_and_prometheus_understands_them";
    let rig = Rig::new(Pop3::new().generated("m", 5, 300));
    let silent = Pop3::new().script(|call| {
        if call.verb == "PASS" || call.verb == "AUTH" { Act::line("-ERR no") } else { Act::Properly }
    });
    let silent = silent.start();
    rig.site.record(&Record::plain("secret-name-of-a-record", silent.port(), "alice"));
    let port = free_port();
    let mut running = rig.site.start(&["--listen", &format!("127.0.0.1:{port}")]);
    let metrics = wait_for("five deliveries in the metrics", crate::support::PATIENCE, || {
        let (_, body) = get(port, "/metrics")?;
        let done = body.contains("rpop_messages_delivered_total{via=\"lmtp\"} 5")
            && body.contains("auth_failures_total 1");
        done.then_some(body)
    });
    assert!(get(port, "/livez").unwrap().0.contains("200"));
    assert!(get(port, "/readyz").unwrap().0.contains("200"));
    assert!(!metrics.contains("secret-name-of-a-record"), "a record's name is no label");
    assert!(running.runs());
    running.signal(Signal::TERM);
    running.wait().expect(0);
    let Some(promtool) = program("promtool") else {
        return skipped(test, "promtool is not installed; scripts/bootstrap installs it");
    };
    let mut check = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}\n{metrics}");
}

#[test]
fn a_process_of_a_cluster_says_what_it_lacks_once_and_ends_with_2() {
    let folder = crate::support::folder("kubeconfig");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cluster = "clusters: [{name: a, cluster: {server: 'http://127.0.0.1:9'}}]\ncurrent-context: a\n";
    let plain = write("plain", &format!("{cluster}contexts: [{{name: a, context: {{cluster: a}}}}]\n"));
    let broken = write("broken", "users: [{name: a, user: {token: sesam}}\n");
    let missing = folder.path().join("missing").to_str().unwrap().to_owned();
    let home = format!("HOME={}", folder.path().display());
    for part in ["controller", "worker", "combined"] {
        for (kubeconfig, says) in [
            (&*plain, "set POD_NAMESPACE to the one that it is installed in"),
            (&*broken, "the kubeconfig cannot be used: failed to parse"),
            (&*missing, "the kubeconfig cannot be used: failed to read"),
            ("", "no API server is known: set KUBECONFIG"),
        ] {
            let kubeconfig = format!("KUBECONFIG={kubeconfig}");
            let own =
                ["-u", "KUBERNETES_SERVICE_HOST", "-u", "POD_NAMESPACE", &home, "POD_NAME=a", &kubeconfig];
            let binary = crate::support::rpop::binary();
            let rest = [binary.to_str().unwrap(), part, "--listen", "off"];
            let args = [&own[..], &rest[..]].concat();
            let run = Running::start(&program("env").unwrap(), &args, folder.path()).wait().expect(2);
            let text = run.text();
            run.says(says);
            assert_eq!(text.trim().lines().count(), 1, "{text}");
            assert!(text.matches("No such file").count() <= 1 && !text.contains("sesam"), "{text}");
        }
    }
}

#[test]
fn status_shows_the_last_success_or_the_error() {
    let rig = Rig::new(Pop3::new().generated("m", 2, 300));
    let refusing = Pop3::new().account("bob", "another").start();
    rig.site.record(&Record::plain("refused", refusing.port(), "bob"));
    rig.poll().expect(1);
    let (manifests, state) = (rig.site.manifests(), rig.site.state.clone());
    let base = ["status", "-f", manifests.to_str().unwrap(), "--state", state.to_str().unwrap()];
    let table = rig.site.rpop(&base);
    table.says(NAME);
    table.says("AuthFailed");
    table.says("alice@local.test");
    let json = rig.site.rpop(&[&base[..], &["-o", "json"]].concat());
    let parsed: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    assert!(parsed.to_string().contains("AuthFailed"), "{parsed}");
    assert!(!json.text().contains(crate::support::dovecot::PASSWORD));
}

#[test]
fn a_hangup_has_the_manifests_read_again_and_ends_nothing() {
    let rig = Rig::new(Pop3::new().generated("m", 1, 300));
    let mut running = rig.site.start(&[]);
    running.wait_to_say("polls 1 record");
    running.signal(Signal::HUP);
    running.wait_to_say("SIGHUP: the manifests are read again");
    running.wait_to_say("the manifests have changed: 1 record");
    running.signal(Signal::TERM);
    running.wait().expect(0);
}

#[test]
fn transcripts_show_the_protocol_and_never_a_password() {
    let sink = Smtp::new().login("relay", "open sesame");
    let rig = Rig::with(Pop3::new().generated("m", 2, 300), sink, |record| record);
    let delivery = format!(
        "{{smtp: {{host: 127.0.0.1, port: {}, tls: {{mode: None}}, \
         auth: {{username: relay, passwordSecretRef: {{name: relay, key: password}}}}}}}}",
        rig.sink.port()
    );
    rig.site.write("domain.yaml", &crate::support::manifest::domain("local.test", &delivery));
    rig.site.secret("relay", "password", "open sesame");
    rig.site.settings(&["logLevel: AllInfo"]);
    let run = rig.poll();
    run.says("RETR");
    let base64 = base64::engine::general_purpose::STANDARD;
    for secret in [crate::support::dovecot::PASSWORD, "open sesame"] {
        assert!(!run.text().contains(secret));
        for user in ["alice", "relay"] {
            assert!(!run.text().contains(&base64.encode(format!("\0{user}\0{secret}"))));
        }
    }
    assert!(!run.text().contains("lorem ipsum"), "bodies are nobody's business");
}

#[test]
fn logs_are_json_where_asked() {
    let rig = Rig::new(Pop3::new().generated("m", 1, 300));
    let (manifests, state) = (rig.site.manifests(), rig.site.state.clone());
    let run = rig.site.rpop(&[
        "--log-format",
        "json",
        "run",
        "--once",
        "-f",
        manifests.to_str().unwrap(),
        "--state",
        state.to_str().unwrap(),
    ]);
    let run = run.expect(0);
    assert!(!run.stderr.is_empty());
    for line in run.stderr.lines() {
        let parsed: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(parsed.is_object());
    }
}

#[test]
fn a_large_message_takes_no_more_memory_than_a_small_one() {
    let huge = message("huge", 120_000_000);
    let plain = |_: &Rig| {};
    let small = peak(Pop3::new().generated("m", 4, 4000), plain, 4);
    let large = peak(Pop3::new().mail("huge", &huge).generated("m", 3, 4000), plain, 4);
    assert!(large < small + 16 * 1024, "{large} KiB resident, and {small} with small messages");
}

/// Known for a copy by all of its octets; retrieved for each of two domains.
#[test]
fn a_large_message_for_many_takes_no_more_memory_than_a_small_one() {
    let header = b"X-Real-To: alice@local.test, bob@second.test\r\n";
    let message = |octets| [&header[..], &message("m", octets)].concat();
    let second = Smtp::lmtp().counting_only().start();
    for (special, accepted) in [("\"*\"", 1), ("X-Real-To", 2)] {
        let unified = |rig: &Rig| {
            rig.site.settings(&["mainDomain: local.test"]);
            let delivery = crate::support::rpop::lmtp(second.port());
            rig.site.write("second.yaml", &crate::support::manifest::domain("second.test", &delivery));
            let record = Record::plain(NAME, rig.pop.port(), "alice").to("postmaster@local.test");
            rig.site.record(&record.with(&format!("special: {special}")));
        };
        let mail = |octets| {
            let (text, before) = (message(octets), second.accepted());
            let peak = peak(Pop3::new().mail("u1", &text).mail("u2", &text), unified, accepted);
            assert_eq!(second.accepted() - before, if accepted == 2 { 2 } else { 0 });
            peak
        };
        let (small, large) = (mail(4000), mail(60_000_000));
        assert!(
            large < small + 16 * 1024,
            "{special}: {large} KiB resident, and {small} with small messages"
        );
    }
}

/// Runs until `count` messages are delivered; the most KiB that were resident.
fn peak(pop: Pop3, change: impl FnOnce(&Rig), count: usize) -> u64 {
    let rig = Rig::to(pop, Smtp::lmtp().counting_only());
    change(&rig);
    let mut running = rig.site.start_once();
    let path = format!("/proc/{}/status", running.pid());
    let mut peak = 0_u64;
    while running.runs() {
        let status = std::fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak = peak.max(line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    running.wait().expect(0);
    assert_eq!((rig.sink.accepted(), rig.pop.uids().len()), (count, 0));
    peak
}

#[test]
fn the_demonstration_proves_itself() {
    let test = "the_demonstration_proves_itself";
    let demo = crate::support::rpop::binary().with_file_name("examples").join("demo");
    if !demo.exists() {
        return skipped(test, "the example `demo` is not built (cargo build --examples)");
    }
    if crate::support::dovecot::Dovecot::start(test).is_none() {
        return;
    }
    let folder = crate::support::folder("demo");
    let run = Running::start::<&str>(&demo, &[], folder.path()).wait().expect(0);
    assert!(!run.stdout.contains("WRONG"), "{}", run.stdout);
    run.says("2000 in INBOX    0 lost or changed, 0 repeated");
    run.says("nobody could log in");
}

#[test]
fn nothing_is_left_behind_by_a_finished_run() {
    let rig = Rig::new(Pop3::new().generated("m", 3, 300));
    rig.poll().expect(0);
    wait_until("all connections' end", || rig.pop.open() == 0 && rig.sink.open() == 0);
    assert_eq!((rig.pop.count("QUIT"), rig.sink.broken_off()), (1, 0), "it left without a word");
    let mut left: Vec<_> =
        std::fs::read_dir(&rig.site.state).unwrap().map(|entry| entry.unwrap().path()).collect();
    left.sort();
    assert!(!left.iter().any(|path| path.file_name().unwrap().to_string_lossy().contains("tmp")), "{left:?}");
}
