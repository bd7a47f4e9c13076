//! Logins, capabilities, response codes and ends of sessions.

use std::time::Duration;

use crate::support::authority::Authority;
use crate::support::manifest::Record;
use crate::support::pop3::{Act, Call, Pop3};
use crate::support::rig::{NAME, Rig, SHORT};
use crate::support::rpop::{self, Site};
use crate::support::smtp::Smtp;

fn has_password(rig: &crate::support::pop3::FakePop3) -> bool {
    use base64::Engine as _;
    let secret = crate::support::dovecot::PASSWORD;
    let plain = base64::engine::general_purpose::STANDARD.encode(format!("\0alice\0{secret}"));
    rig.commands().iter().any(|(_, line)| line.contains(secret) || line.contains(&plain))
}

#[test]
fn servers_without_capa_are_served_too() {
    // quirks: "CAPA answered `-ERR`, or the connection dropped on CAPA"
    // quirks: "Servers without CAPA at all (popa3d, solid-pop3d)"
    let rig = Rig::new(Pop3::new().capabilities(None).generated("m", 3, 300));
    rig.poll().expect(0);
    assert_eq!((rig.marks().len(), rig.pop.uids().len()), (3, 0));
}

#[test]
fn a_server_that_drops_the_connection_on_capa_is_served_too() {
    let rig = Rig::new(Pop3::new().generated("m", 3, 300).script(|call| match call.verb {
        "CAPA" => Act::Close,
        _ => Act::Properly,
    }));
    rig.poll_until(3, 2);
    assert_eq!(rig.marks().len(), 3);
}

#[test]
fn capa_is_asked_again_after_tls_and_after_login() {
    // quirks: "CAPA differs before TLS, after TLS, after login: ask again after each."
    let authority = Authority::new();
    let config = authority.server(&["127.0.0.1"]).server_config();
    let pop = Pop3::new()
        .capabilities(Some(&[]))
        .stls(config)
        .capabilities_in_tls(&["UIDL", "USER", "PIPELINING"])
        .generated("m", 30, 300)
        .start();
    let sink = Smtp::lmtp().start();
    let site = Site::for_delivery(&rpop::lmtp(sink.port()));
    site.secret("ca", "ca.crt", &authority.pem);
    site.record(&Record::plain(NAME, pop.port(), "alice").starttls());
    site.once().expect(0);
    assert_eq!(sink.accepted(), 30);
    let verbs: Vec<String> = pop.commands().iter().map(|(_, line)| line.to_ascii_uppercase()).collect();
    let capas: Vec<usize> =
        verbs.iter().enumerate().filter(|(_, line)| *line == "CAPA").map(|(at, _)| at).collect();
    let stls = verbs.iter().position(|line| line == "STLS").unwrap();
    let login = verbs.iter().position(|line| line.starts_with("PASS") || line.starts_with("AUTH")).unwrap();
    assert!(capas.iter().any(|at| *at > stls && *at < login), "{verbs:?}");
    assert!(capas.iter().any(|at| *at > login), "{verbs:?}");
}

/// STLS is required, and the server does something else.
fn stls_with(script: impl Fn(&Call<'_>) -> Act + Send + Sync + 'static, offered: bool) {
    let authority = Authority::new();
    let mut pop = Pop3::new().generated("m", 1, 300);
    if offered {
        pop = pop.stls(authority.server(&["127.0.0.1"]).server_config());
    }
    let pop = pop.script(script).start();
    let sink = Smtp::lmtp().start();
    let site = Site::for_delivery(&rpop::lmtp(sink.port()));
    site.settings(&[SHORT]);
    site.secret("ca", "ca.crt", &authority.pem);
    site.record(&Record::plain(NAME, pop.port(), "alice").starttls());
    let run = site.once().expect(1);
    assert!(run.took < Duration::from_secs(12), "{:?}", run.took);
    assert!(!has_password(&pop), "{:?}", pop.commands());
    assert_eq!(sink.accepted(), 0);
}

#[test]
fn stls_with_octets_behind_the_ok_fails_the_session() {
    // quirks: "STLS: any byte after the `+OK` line before the handshake fails the session."
    stls_with(
        |call| match (call.verb, call.encrypted) {
            ("STLS", false) => Act::Say(b"+OK begin TLS\r\n+OK logged in\r\n".to_vec()),
            _ => Act::Properly,
        },
        true,
    );
}

#[test]
fn stls_stripped_refused_stalled_or_broken_never_costs_the_password() {
    stls_with(|_| Act::Properly, false);
    stls_with(|call| if call.verb == "STLS" { Act::line("-ERR not today") } else { Act::Properly }, true);
    stls_with(|call| if call.verb == "STLS" { Act::Silence } else { Act::Properly }, true);
    stls_with(|call| if call.verb == "STLS" { Act::Close } else { Act::Properly }, true);
    stls_with(
        |call| if call.verb == "STLS" { Act::SayAndClose(b"+OK\r\n".to_vec()) } else { Act::Properly },
        true,
    );
    stls_with(|call| if call.verb == "CAPA" { Act::line("-ERR no CAPA") } else { Act::Properly }, false);
}

#[test]
fn apop_needs_both_switches_and_a_strict_banner() {
    // quirks: "APOP only with a strict RFC 822 msg-id in the banner (CVE-2007-1558)"
    for (banner, record, settings, expected) in [
        ("+OK <1896.697170952@dbc.mtview.ca.us>", true, true, true),
        ("+OK <1896.697170952@dbc.mtview.ca.us>", true, false, false),
        ("+OK <1896.697170952@dbc.mtview.ca.us>", false, true, false),
        ("+OK <no at sign>", true, true, false),
        ("+OK <a\u{7f}b@c>", true, true, false),
        ("+OK ready", true, true, false),
    ] {
        let rig = Rig::with(Pop3::new().banner(banner).generated("m", 1, 300), Smtp::lmtp(), |mut file| {
            if record {
                file = file.with("apop: true");
            }
            file
        });
        if settings {
            rig.site.settings(&[SHORT, "useApop: true"]);
        }
        rig.poll();
        assert_eq!(rig.pop.count("APOP") > 0, expected, "{banner:?} {record} {settings}");
        if expected {
            // This server knows no APOP: a failed login, and no password in clear.
            assert!(!has_password(&rig.pop), "{:?}", rig.pop.commands());
            assert_eq!(rig.sink.accepted(), 0);
        } else {
            assert_eq!(rig.sink.accepted(), 1, "{banner:?}");
        }
    }
}

#[test]
fn response_codes_say_what_failed() {
    // quirks: "Response codes (RFC 2449, RFC 3206)"
    for (reply, code) in [
        ("-ERR [IN-USE] maildrop is locked", "MailboxLocked"),
        ("-ERR [LOGIN-DELAY] wait a minute", "LoginDelay"),
        ("-ERR [SYS/TEMP] database is away", "ServerBusy"),
        ("-ERR [AUTH] wrong password", "AuthFailed"),
        ("-ERR wrong password", "AuthFailed"),
    ] {
        let rig = Rig::new(Pop3::new().script(move |call| match call.verb {
            "PASS" | "AUTH" => Act::line(reply),
            _ => Act::Properly,
        }));
        rig.poll().expect(1).says(code);
    }
}

#[test]
fn gmails_and_couriers_capabilities_are_understood() {
    // quirks: "Honour `LOGIN-DELAY n` and `EXPIRE 0` capabilities"
    for list in [
        &["USER", "RESP-CODES", "EXPIRE 0", "LOGIN-DELAY 300", "TOP", "UIDL", "X-GOOGLE-RICO"][..],
        &[
            "UIDL",
            "TOP",
            "USER",
            "LOGIN-DELAY 10",
            "EXPIRENEVER",
            "EXPIRE NEVER",
            "PIPELINING",
            "IMPLEMENTATION Courier",
        ],
        &[
            "UIDL now and then",
            "USER",
            "",
            "  ",
            "LOGIN-DELAY",
            "LOGIN-DELAY x",
            "EXPIRE",
            "SASL",
            "\u{1}\u{2}",
        ],
    ] {
        let rig = Rig::new(Pop3::new().capabilities(Some(list)).generated("m", 4, 300));
        let run = rig.poll();
        assert_eq!(run.code(), 0, "{list:?} {}", run.text());
        assert_eq!(rig.marks().len(), 4, "{list:?}");
        // quirks: "TOP truncates on some servers ...: use RETR."
        assert_eq!(rig.pop.count("TOP"), 0);
    }
}

#[test]
fn utf8_is_said_before_the_login_where_it_is_announced() {
    // quirks: "Courier replaces a message with raw UTF-8 headers by a notice ... unless the client said `UTF8`"
    for announced in [true, false] {
        let mut list = vec!["USER", "UIDL", "TOP"];
        if announced {
            list.push("UTF8 USER");
        }
        let rig = Rig::new(Pop3::new().capabilities(Some(&list)).generated("m", 1, 300));
        rig.poll().expect(0);
        let verbs: Vec<String> = rig.pop.commands().into_iter().map(|(_, line)| line).collect();
        let utf8 = verbs.iter().position(|line| line == "UTF8");
        let login = verbs.iter().position(|line| line.starts_with("USER")).unwrap();
        assert_eq!(utf8.is_some_and(|at| at < login), announced, "{verbs:?}");
    }
}

#[test]
fn a_client_certificate_is_shown_where_the_record_has_one() {
    let authority = Authority::new();
    let config = authority.server(&["127.0.0.1"]).server_config_for_clients_of(&authority);
    let pop = Pop3::new().implicit_tls(config).generated("m", 2, 300).start();
    let sink = Smtp::lmtp().start();
    let site = Site::for_delivery(&rpop::lmtp(sink.port()));
    site.settings(&[SHORT]);
    site.secret("ca", "ca.crt", &authority.pem);
    let record = Record::plain(NAME, pop.port(), "alice");
    site.record(&record.clone().implicit());
    site.once().expect(1);
    assert_eq!((pop.logins(), sink.accepted()), (0, 0));
    let client = authority.client("alice");
    let pem = |text: &str| serde_json::Value::from(text).to_string();
    site.write(
        "client.yaml",
        &format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: client, namespace: mail}}\nstringData:\n  \
             tls.crt: {}\n  tls.key: {}\n",
            pem(&client.certificate),
            pem(&client.key)
        ),
    );
    site.record(&record.tls("{caRef: {name: ca, key: ca.crt}, clientCertificateSecretRef: {name: client}}"));
    site.once().expect(0);
    assert_eq!(sink.accepted(), 2);
}

#[test]
fn a_name_whose_first_address_is_dead_is_reached_by_the_next() {
    // `localhost` is ::1 too on most machines, and nothing listens there.
    let rig = Rig::new(Pop3::new().generated("m", 1, 300));
    let mut record = Record::plain(NAME, rig.pop.port(), "alice");
    record.host = format!("localhost:{}", rig.pop.port());
    rig.site.record(&record);
    let run = rig.poll().expect(0);
    assert!(run.took < Duration::from_secs(5), "{:?}", run.took);
}

#[test]
fn without_uidl_mail_is_fetched_and_deleted_where_it_is_not_to_be_kept() {
    let rig =
        Rig::new(Pop3::new().capabilities(None).generated("m", 5, 300).script(|call| match call.verb {
            "UIDL" => Act::line("-ERR unknown command"),
            _ => Act::Properly,
        }));
    rig.poll().expect(0);
    assert_eq!((rig.marks().len(), rig.pop.uids().len()), (5, 0));
}

#[test]
fn an_auth_line_over_255_octets_goes_in_two_steps() {
    // quirks: "AUTH line over 255 octets must use the two-step form (RFC 5034)"
    let password = "p".repeat(400);
    let pop = Pop3::new().account("long", &password).generated("m", 1, 300).start();
    let sink = Smtp::lmtp().start();
    let site = Site::for_delivery(&rpop::lmtp(sink.port()));
    site.secret("long", "password", &password);
    let record = Record::plain(NAME, pop.port(), "long").secret("long").auth("Plain").to("alice@local.test");
    site.record(&record);
    site.once().expect(0);
    assert_eq!(sink.accepted(), 1);
    let lines: Vec<String> = pop.commands().into_iter().map(|(_, line)| line).collect();
    assert!(lines.iter().any(|line| line.eq_ignore_ascii_case("AUTH PLAIN")), "{lines:?}");
    assert!(lines.iter().all(|line| line.len() <= 253), "{lines:?}");
}

#[test]
fn a_password_that_could_be_a_command_is_refused_before_anything_is_sent() {
    // quirks: "CR, LF or NUL in user or password is refused before anything is sent."
    for password in ["two\r\nDELE 1", "line\nfeed", "nul\0inside"] {
        let rig = Rig::with(Pop3::new().generated("m", 1, 300), Smtp::lmtp(), |record| record.secret("odd"));
        rig.site.secret("odd", "password", password);
        let run = rig.poll();
        assert_ne!(run.code(), 0, "{}", run.text());
        assert_eq!(rig.pop.count("PASS") + rig.pop.count("AUTH") + rig.pop.count("DELE"), 0);
        assert!(!run.text().contains("DELE 1"), "{}", run.text());
    }
    // The commonest of such accidents is explained.
    let rig = Rig::with(Pop3::new().generated("m", 1, 300), Smtp::lmtp(), |record| record.secret("file"));
    rig.site.secret("file", "password", &format!("{}\n", crate::support::dovecot::PASSWORD));
    let run = rig.poll();
    assert_ne!(run.code(), 0);
    run.says("ends with a line break");
}

#[test]
fn deletions_that_did_not_happen_are_made_up_for() {
    // quirks: "DELE answered with garbage on some messages; QUIT answered `-ERR` or dropped"
    type Script = fn(&Call<'_>) -> Act;
    let scripts: [(&str, Script); 5] = [
        ("DELE garbage", |call| match (call.session, call.verb, call.number()) {
            (1, "DELE", 2 | 4) => Act::line("what?"),
            _ => Act::Properly,
        }),
        ("DELE -ERR", |call| match (call.session, call.verb, call.number()) {
            (1, "DELE", 1) => Act::line("-ERR no"),
            _ => Act::Properly,
        }),
        ("QUIT -ERR", |call| match (call.session, call.verb) {
            (1, "QUIT") => Act::line("-ERR some deleted messages not removed"),
            _ => Act::Properly,
        }),
        ("QUIT dropped", |call| match (call.session, call.verb) {
            (1, "QUIT") => Act::Close,
            _ => Act::Properly,
        }),
        ("QUIT done and dropped", |call| match (call.session, call.verb) {
            (1, "QUIT") => Act::ProperlyUnsaid,
            _ => Act::Properly,
        }),
    ];
    for (name, script) in scripts {
        let rig = Rig::new(Pop3::new().generated("m", 6, 300).script(script));
        rig.poll();
        rig.poll_until(6, 2);
        rig.poll();
        assert_eq!(rig.marks().len(), 6, "{name}");
        assert!(rig.pop.uids().is_empty(), "{name}: orphans {:?}", rig.pop.uids());
    }
}

#[test]
fn a_connection_that_ends_at_any_phase_loses_nothing() {
    // quirks: "EOF anywhere", "no phase without a deadline (CVE-2011-1947)"
    for verb in ["CONNECT", "CAPA", "USER", "PASS", "AUTH", "STAT", "UIDL", "LIST", "RETR", "DELE", "QUIT"] {
        for (what, act) in [("close", Act::Close), ("silence", Act::Silence)] {
            let script = move |call: &Call<'_>| {
                if call.session == 1 && call.verb == verb { act.clone() } else { Act::Properly }
            };
            let rig = Rig::new(Pop3::new().generated("m", 3, 300).script(script));
            let run = rig.poll();
            assert!(run.took < Duration::from_secs(20), "{verb} {what}: {:?}", run.took);
            rig.poll_until(3, 3);
            rig.poll();
            assert_eq!(rig.marks().len(), 3, "{verb} {what}");
            assert!(rig.pop.uids().is_empty(), "{verb} {what}: {:?}", rig.pop.uids());
        }
    }
}

#[test]
fn thousands_of_deletions_are_made_in_batches() {
    // quirks: "20 000 DELEs in one session: commit in batches by QUIT and reconnect."
    const COUNT: usize = 3000;
    let rig = Rig::to(Pop3::new().generated("m", COUNT, 120), Smtp::lmtp().counting_only());
    rig.poll().expect(0);
    assert_eq!(rig.sink.accepted(), COUNT);
    assert!(rig.pop.uids().is_empty());
}

#[test]
fn our_own_addresses_are_not_polled_unless_the_settings_say_so() {
    // quirks: "self-poll through an alias name or an IP address"
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let rig = Rig::with(Pop3::new().generated("m", 1, 300), Smtp::lmtp(), |record| record);
        let mut record = Record::plain(NAME, rig.pop.port(), "alice");
        record.host = format!("{host}:{}", rig.pop.port());
        rig.site.record(&record);
        rig.site.write("settings.yaml", &crate::support::manifest::settings(&["allowSelfPoll: false"]));
        let run = rig.poll().expect(1);
        run.says("SelfPoll");
        run.says("allowSelfPoll");
        assert_eq!(rig.pop.logins(), 0, "{host}");
    }
}

#[test]
fn a_network_that_is_not_allowed_is_not_connected_to() {
    let rig = Rig::new(Pop3::new().generated("m", 1, 300));
    rig.site.settings(&["remoteNetworks: {deny: [127.0.0.0/8]}"]);
    rig.poll().expect(1).says("AddressRefused");
    assert_eq!(rig.pop.sessions(), 0);
}

#[test]
fn check_logs_in_counts_and_changes_nothing() {
    let rig = Rig::new(Pop3::new().generated("m", 7, 300));
    let manifests = rig.site.manifests();
    let run = rig.site.rpop(&["check", "-f", manifests.to_str().unwrap(), "--connect"]).expect(0);
    run.says("7");
    assert_eq!((rig.pop.logins(), rig.pop.uids().len(), rig.sink.accepted()), (1, 7, 0));
    assert_eq!(rig.pop.count("RETR") + rig.pop.count("DELE"), 0);
    assert!(!rig.site.state.join("rpopids").exists());
}

#[test]
fn disabled_and_paused_records_are_not_polled() {
    let rig =
        Rig::with(Pop3::new().generated("m", 1, 300), Smtp::lmtp(), |record| record.with("paused: true"));
    rig.poll().expect(0);
    let yaml =
        Record::plain(NAME, rig.pop.port(), "alice").yaml().replace("pollEvery: 5m", "pollEvery: Disabled");
    rig.site.write("record-r.yaml", &yaml);
    rig.poll().expect(0);
    let yaml = yaml.replace("pollEvery: Disabled", "pollEvery: Never");
    rig.site.write("record-r.yaml", &yaml);
    rig.poll().expect(0);
    assert_eq!(rig.pop.sessions(), 0);
}
