//! Manifests, good and bad.

use serde_json::{Map, Value, json};

/// A manifest that breaks one rule.
pub(super) struct Case {
    pub(super) object: Value,
    /// Where the API server says that it is wrong.
    pub(super) field: &'static str,
    /// The words of the rule.
    pub(super) message: String,
}

/// `base` with what `change` says: objects are merged, `null` removes.
pub(super) fn merged(base: Value, change: Value) -> Value {
    match (base, change) {
        (Value::Object(mut base), Value::Object(change)) => {
            for (name, value) in change {
                let before = base.remove(&name).unwrap_or(Value::Null);
                if !value.is_null() {
                    base.insert(name, merged(before, value));
                }
            }
            Value::Object(base)
        }
        (Value::Null, change @ Value::Object(_)) => merged(Value::Object(Map::new()), change),
        (_, change) => change,
    }
}

fn object(kind: &str, name: &str, spec: Value, change: Value) -> Value {
    json!({
        "apiVersion": "rpop.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": merged(spec, change),
    })
}

/// A record that is good but for `change` in its spec.
pub(super) fn record(change: Value) -> Value {
    let remote = json!({"host": "pop.isp.example", "account": "a77", "passwordSecretRef": {"name": "isp"}});
    object("RpopRecord", "isp", json!({"account": "alice@example.com", "remote": remote}), change)
}

/// A domain, likewise.
pub(super) fn domain(change: Value) -> Value {
    object("RpopDomain", "example.com", json!({"delivery": {"smtp": {"host": "mail.example.com"}}}), change)
}

/// Settings, likewise.
pub(super) fn settings(change: Value) -> Value {
    object("RpopSettings", "default", json!({}), change)
}

/// What files do not refuse: a new record with `Never` is left out there.
pub(super) fn only_in_the_cluster(case: &Case) -> bool {
    case.object["spec"]["pollEvery"] == "Never"
}

/// Manifests that break one rule each.
pub(super) fn rejected() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |object: Value, field: &'static str, message: &str| {
        all.push(Case { object, field, message: message.into() });
    };
    records(&mut add);
    domains(&mut add);
    whole_settings(&mut add);
    all
}

const PINS: &str =
    "write each SHA-256 digest as 64 hexadecimal digits (colons may stand between) or as base64";
const DURATION: &str = "write a duration in hours, minutes and seconds, like 90s, 5m or 1h30m";
const LONGEST: &str = "write at most a year, which is 8760h";

fn records(add: &mut impl FnMut(Value, &'static str, &str)) {
    let mut named = record(json!({}));
    named["metadata"]["name"] = "a".repeat(181).into();
    add(
        named,
        "metadata.name",
        "write a name of at most 180 characters: the record's ledger is named after it",
    );

    let message = "write the local account with its domain, like alice@example.com";
    for account in
        ["alice", "@example.com", "alice@", "alice smith@example.com", "a@@b", "<alice@example.com>"]
    {
        add(record(json!({"account": account})), "spec.account", message);
    }
    add(
        record(json!({"pollEvery": "Never"})),
        "spec.pollEvery",
        "pollEvery: Never removes a record that exists: to create one write a duration like 5m, or Disabled",
    );
    let message = "write a duration of at least 10s, like 5m or 1h30m, or Disabled (keep the record, do not poll) or Never (remove the record)";
    for every in ["often", "5 minutes", "5", "m", "never"] {
        add(record(json!({"pollEvery": every})), "spec.pollEvery", message);
    }
    let message = "write at least 10s and at most 8760h: servers lock out accounts that log in more often than every few seconds";
    for every in ["9s", "0s", "8761h", "0h0m1s"] {
        add(record(json!({"pollEvery": every})), "spec.pollEvery", message);
    }
    for (host, message) in [
        ("pop3://pop.example.com", "write the host alone, like pop.example.com:995, without a scheme"),
        ("pöp.example.com", "write the host in its ASCII form, which begins with xn--"),
        (
            "pop.example.com:0",
            "write a host name or an address, with a port if it is not the usual one: pop.example.com, pop.example.com:1110, 192.0.2.1 or [2001:db8::1]:995",
        ),
    ] {
        add(record(json!({"remote": {"host": host}})), "spec.remote.host", message);
    }
    add(
        record(json!({"remote": {"account": "a\r\nPASS x"}})),
        "spec.remote.account",
        "write the user name without line breaks and control characters",
    );
    remotes(add);

    let message = "write the name of a mailbox, like Archive or Lists/Rust";
    for mailbox in ["/Archive", "../x", "a/../b", "a//b", "a/", ".", "a\u{7}"] {
        add(record(json!({"mailbox": mailbox})), "spec.mailbox", message);
    }
    let message = "write the name of a header without its colon, like X-Real-To, or \"*\" for To and Cc";
    for special in ["X-Real-To:", "X Real", "Ä", "**:"] {
        add(record(json!({"special": special})), "spec.special", message);
    }
    let message = "this header has another use, and RPOP would remove it: write the header in which your provider keeps the envelope recipient, like X-Original-To or Delivered-To, or \"*\" to use To and Cc";
    for special in ["Received", "from", "TO", "Bcc", "Message-ID", "Content-Type", "Resent-To", "List-Id"] {
        add(record(json!({"special": special})), "spec.special", message);
    }
    add(
        record(json!({"limits": {"messageSize": "50MB"}})),
        "spec.limits.messageSize",
        "write a size as a whole number with a unit, like 50Mi or 2Gi",
    );
    add(
        record(json!({"keepForDays": 3})),
        "spec.keepForDays",
        "keepForDays needs leave: true: without it a message is deleted as soon as it is delivered",
    );
    add(
        record(json!({"mailbox": "Archive", "special": "*"})),
        "spec.special",
        "write mailbox or special, not both: special distributes by recipient, mailbox stores for one account",
    );
    let message = "relayForeign needs special with the name of a header";
    add(record(json!({"relayForeign": true})), "spec.relayForeign", message);
    add(record(json!({"relayForeign": true, "special": "*"})), "spec.relayForeign", message);
    add(
        record(json!({"deduplicate": false, "special": "X-Real-To"})),
        "spec.deduplicate",
        "deduplicate: false needs special: \"*\", since only there copies are recognised",
    );
    for without in
        [json!({"serverName": "x"}), json!({"caRef": {"name": "x"}}), json!({"pinSha256": ["ab".repeat(32)]})]
    {
        add(
            record(json!({"tls": merged(json!({"mode": "None"}), without)})),
            "spec.tls",
            "with mode: None there is no TLS: remove caRef, pinSha256, serverName and clientCertificateSecretRef, or write mode: Implicit or StartTls",
        );
    }
    add(record(json!({"tls": {"pinSha256": ["ab"]}})), "spec.tls.pinSha256", PINS);
}

const NAMES: &str =
    "write the object's name as Kubernetes has it, like first-isp: lower-case letters, digits, - and dots";

fn remotes(add: &mut impl FnMut(Value, &'static str, &str)) {
    let oauth2 = |token: &str| json!({"tokenUrl": token, "clientId": "rpop", "refreshTokenSecretRef": {"name": "isp"}});
    let good = || oauth2("https://login.example/token");
    let remote = |change: Value| record(json!({"remote": change}));
    add(
        remote(json!({"passwordSecretRef": null})),
        "spec.remote",
        "write where the password is: passwordSecretRef: {name: SECRET, key: password}",
    );
    add(
        remote(json!({"oauth2": good()})),
        "spec.remote.oauth2",
        "write passwordSecretRef or oauth2, not both",
    );
    add(
        record(json!({"remote": {"passwordSecretRef": null, "oauth2": good()}, "tls": {"mode": "None"}})),
        "spec.tls.mode",
        "with oauth2 write tls: {mode: Implicit} or {mode: StartTls}: an access token must not cross the network in \
         clear text",
    );
    add(remote(json!({"auth": "XOAuth2"})), "spec.remote.auth", "auth: XOAuth2 and OAuthBearer need oauth2");
    add(
        remote(json!({"passwordSecretRef": null, "oauth2": good(), "auth": "Plain"})),
        "spec.remote.auth",
        "with oauth2 write auth: Auto, XOAuth2 or OAuthBearer: the others need a password",
    );
    for name in ["../../other/secrets/theirs", "pw?x=1", "p%77", "Pw", "pw/", "-pw", "."] {
        let reference = json!({"name": name});
        add(remote(json!({"passwordSecretRef": reference})), "spec.remote.passwordSecretRef.name", NAMES);
        add(record(json!({"tls": {"caRef": reference}})), "spec.tls.caRef.name", NAMES);
        let certificate = json!({"tls": {"clientCertificateSecretRef": reference}});
        add(record(certificate), "spec.tls.clientCertificateSecretRef.name", NAMES);
    }
    let with = |field: &str| {
        let mut oauth2 = good();
        oauth2[field] = json!({"name": "../isp"});
        remote(json!({"passwordSecretRef": null, "oauth2": oauth2}))
    };
    add(with("refreshTokenSecretRef"), "spec.remote.oauth2.refreshTokenSecretRef.name", NAMES);
    add(with("clientSecretRef"), "spec.remote.oauth2.clientSecretRef.name", NAMES);
    add(with("caRef"), "spec.remote.oauth2.caRef.name", NAMES);
    add(
        remote(
            json!({"passwordSecretRef": null, "oauth2": {"tokenUrl": "https://login.example/", "clientId": "rpop"}}),
        ),
        "spec.remote.oauth2",
        "write refreshTokenSecretRef, which `rpop oauth login` makes, or clientSecretRef alone for a client that asks \
         in its own name",
    );
    for scope in ["mail imap", "m\u{e4}il", "a\n"] {
        let mut oauth2 = good();
        oauth2["scopes"] = json!([scope]);
        add(
            remote(json!({"passwordSecretRef": null, "oauth2": oauth2})),
            "spec.remote.oauth2.scopes",
            "write each scope as an item of its own, without blanks",
        );
    }
    for token in [
        "https://a:b@login.example/token",
        "https://login.example/token#x",
        "https://login.example/a b",
        "https://login.example:0/",
        "https://",
    ] {
        add(
            remote(json!({"passwordSecretRef": null, "oauth2": oauth2(token)})),
            "spec.remote.oauth2.tokenUrl",
            "write the address of the token endpoint, like https://login.example/oauth2/token, without blanks, user name \
             and fragment",
        );
    }
    for token in ["http://login.example/token", "http://localhost.example/", "login.example"] {
        add(
            remote(json!({"passwordSecretRef": null, "oauth2": oauth2(token)})),
            "spec.remote.oauth2.tokenUrl",
            "write an https:// address: a token must not cross the network in clear text",
        );
    }
}

fn domains(add: &mut impl FnMut(Value, &'static str, &str)) {
    add(
        domain(json!({"aliases": ["Example.NET", "exämple.org"]})),
        "spec.aliases",
        "write domain names like example.net; an internationalised one in its ASCII form, which begins with xn--",
    );
    for wrong in ["[::1]", "0.0.0.0", "eth0"] {
        add(
            domain(json!({"assignedAddresses": ["192.0.2.1", wrong]})),
            "spec.assignedAddresses",
            "write IP addresses of this host, without brackets",
        );
    }
    add(
        domain(json!({"useForOutgoing": true})),
        "spec.useForOutgoing",
        "useForOutgoing needs assignedAddresses: write the addresses to connect from",
    );
    let delivery = |change: Value| domain(json!({"delivery": change}));
    let lmtp =
        |change: Value| json!({"smtp": null, "lmtp": merged(json!({"host": "mail.example.com"}), change)});
    let odd = || json!({"name": "../isp"});
    let login = || json!({"auth": {"username": "rpop", "passwordSecretRef": odd()}});
    let ca = || json!({"tls": {"caRef": odd()}});
    let smtp = |change: Value| json!({"smtp": merged(json!({"host": "mail.example.com"}), change)});
    add(delivery(smtp(login())), "spec.delivery.smtp.auth.passwordSecretRef.name", NAMES);
    add(delivery(smtp(ca())), "spec.delivery.smtp.tls.caRef.name", NAMES);
    add(delivery(lmtp(login())), "spec.delivery.lmtp.auth.passwordSecretRef.name", NAMES);
    add(delivery(lmtp(ca())), "spec.delivery.lmtp.tls.caRef.name", NAMES);
    add(
        delivery(json!({"smtp": null})),
        "spec.delivery",
        "write where the mail goes: smtp: {host: mail.example.com}, lmtp: {host: ..., port: 24}, or (with rpop run -f) maildir: {path: ...}",
    );
    add(
        delivery(json!({"maildir": {"path": "/var/mail/{local}"}})),
        "spec.delivery.maildir",
        "write maildir alone, or smtp and lmtp: a Maildir needs no mail server",
    );
    add(
        delivery(json!({"smtp": null, "maildir": {"path": "mail/{local}"}})),
        "spec.delivery.maildir.path",
        "write the whole path, like /home/{local}/Maildir",
    );
    let message = "write the name or address alone, like mail.example.com, and the port under port";
    add(delivery(json!({"smtp": {"host": "mail.example.com:25"}})), "spec.delivery.smtp.host", message);
    add(delivery(lmtp(json!({"host": "[::1]"}))), "spec.delivery.lmtp.host", message);
    let message = "write a domain name like rpop.example.com, or an address in brackets";
    add(delivery(json!({"smtp": {"ehloName": "my host"}})), "spec.delivery.smtp.ehloName", message);
    add(delivery(lmtp(json!({"ehloName": "ä"}))), "spec.delivery.lmtp.ehloName", message);
    let message = "write host and port, or socket: one of the two";
    add(delivery(lmtp(json!({"host": null}))), "spec.delivery.lmtp", message);
    add(delivery(lmtp(json!({"socket": "/run/lmtp"}))), "spec.delivery.lmtp", message);
    add(
        delivery(lmtp(json!({"host": null, "socket": "/run/lmtp", "port": 24}))),
        "spec.delivery.lmtp.port",
        "port needs host",
    );
    add(
        delivery(lmtp(json!({"host": null, "socket": "run/lmtp"}))),
        "spec.delivery.lmtp.socket",
        "write the whole path of the socket, like /run/dovecot/lmtp",
    );
    add(
        delivery(lmtp(json!({"detailSeparator": " "}))),
        "spec.delivery.lmtp.detailSeparator",
        "write the separator that the mail store uses, like \"+\"",
    );
    let message =
        "with mode: None there is no TLS: remove caRef, pinSha256 and serverName, or write mode: StartTls";
    let bare = json!({"tls": {"mode": "None", "serverName": "x"}});
    add(delivery(json!({"smtp": bare.clone()})), "spec.delivery.smtp.tls", message);
    add(delivery(lmtp(bare)), "spec.delivery.lmtp.tls", message);
    let pins = json!({"tls": {"pinSha256": ["ab:cd"]}});
    add(delivery(json!({"smtp": pins.clone()})), "spec.delivery.smtp.tls.pinSha256", PINS);
    add(delivery(lmtp(pins)), "spec.delivery.lmtp.tls.pinSha256", PINS);
}

fn whole_settings(add: &mut impl FnMut(Value, &'static str, &str)) {
    let mut named = settings(json!({}));
    named["metadata"]["name"] = "main".into();
    add(named, "metadata.name", "name it default: there is one RpopSettings");
    for (field, name) in
        [("spec.delayFailedHosts", "delayFailedHosts"), ("spec.delayFailedAccounts", "delayFailedAccounts")]
    {
        add(settings(json!({name: "10 minutes"})), field, DURATION);
        add(settings(json!({name: "9000h"})), field, LONGEST);
    }
    for (field, name) in [
        ("spec.timeouts.connect", "connect"),
        ("spec.timeouts.reply", "reply"),
        ("spec.timeouts.data", "data"),
        ("spec.timeouts.afterDot", "afterDot"),
        ("spec.timeouts.session", "session"),
    ] {
        add(settings(json!({"timeouts": {name: "1 s"}})), field, DURATION);
        add(settings(json!({"timeouts": {name: "9000h"}})), field, LONGEST);
        add(
            settings(json!({"timeouts": {name: "0s"}})),
            "spec.timeouts",
            "write deadlines of at least 1s: a deadline of nothing would end every poll",
        );
    }
    add(settings(json!({"checkpoint": {"every": "1d"}})), "spec.checkpoint.every", DURATION);
    add(settings(json!({"checkpoint": {"every": "9000h"}})), "spec.checkpoint.every", LONGEST);
    add(settings(json!({"checkpoint": {"every": "0s"}})), "spec.checkpoint.every", "write at least 1s");
    add(
        settings(json!({"sourceAddress": "0.0.0.0"})),
        "spec.sourceAddress",
        "write an IP address of this host, without brackets",
    );
    add(
        settings(json!({"sourceAddress": "[::1]"})),
        "spec.sourceAddress",
        "write an IP address of this host, without brackets",
    );
    add(
        settings(json!({"ownAddresses": ["10.0.0.0/8", "a b"]})),
        "spec.ownAddresses",
        "write addresses like 192.0.2.1, networks like 10.0.0.0/8, or host names",
    );
    add(
        settings(json!({"remoteNetworks": {"allow": ["10.0.0.0/33"]}})),
        "spec.remoteNetworks.allow",
        "write networks like 203.0.113.0/24 or 2001:db8::/32",
    );
    add(
        settings(json!({"remoteNetworks": {"deny": ["localhost"]}})),
        "spec.remoteNetworks.deny",
        "write networks like 169.254.0.0/16 or fe80::/10",
    );
    let schedule =
        |from: &str, to: &str| settings(json!({"activitySchedule": {"windows": [{"from": from, "to": to}]}}));
    add(
        schedule("24:00", "18:30"),
        "spec.activitySchedule.windows[0].from",
        "write a time of day like \"08:00\", in quotes",
    );
    add(
        schedule("08:00", "24:01"),
        "spec.activitySchedule.windows[0].to",
        "write a time of day like \"18:30\", in quotes",
    );
    add(
        schedule("08:00", "08:00"),
        "spec.activitySchedule.windows[0].to",
        "a window that ends when it begins never opens: for the whole day write from: \"00:00\", to: \"24:00\"",
    );
    add(
        settings(json!({"activitySchedule": {
            "timeZone": "../localtime", "windows": [{"from": "08:00", "to": "18:00"}]
        }})),
        "spec.activitySchedule.timeZone",
        "write an IANA name like Europe/Berlin or UTC",
    );
}

/// Manifests that are good.
pub(super) fn accepted() -> Vec<Value> {
    let mut all = vec![record(json!({})), domain(json!({})), settings(json!({}))];
    for every in ["10s", "90s", "1h30m", "24h", "8760h", "Disabled"] {
        all.push(record(json!({"pollEvery": every})));
    }
    for host in [
        "pop.example.com:1110",
        "192.0.2.1",
        "192.0.2.1:110",
        "[2001:db8::1]",
        "[2001:db8::1]:995",
        "localhost",
        "xn--pp-fka.example.com",
        "POP.Example.COM.",
        "a_b.example.com:65535",
    ] {
        all.push(record(json!({"remote": {"host": host}})));
    }
    for account in ["a@b", "alice+isp@example.com", "\"alice smith\"@example.com", "jürgen@example.com"] {
        all.push(record(json!({"account": account})));
    }
    for mailbox in ["Archive", "Lists/Rust", "Gelöschte Objekte", "..."] {
        all.push(record(json!({"mailbox": mailbox})));
    }
    for special in ["*", "X-Real-To", "Delivered-To", "Envelope-To", "X-From", "Tom"] {
        all.push(record(json!({"special": special})));
    }
    for size in [json!(1024), json!("50Mi"), json!("2Gi"), json!("1000000")] {
        all.push(record(json!({"limits": {"messageSize": size, "messagesPerSession": 1}})));
    }
    all.push(record(json!({"leave": true, "keepForDays": 30})));
    all.push(record(json!({"special": "*", "deduplicate": false})));
    all.push(record(json!({"special": "X-Real-To", "relayForeign": true})));
    for pin in ["ab".repeat(32), ["AB"; 32].join(":"), format!("sha256//{}=", "A".repeat(43))] {
        all.push(record(json!({"tls": {"mode": "StartTls", "pinSha256": [pin]}})));
    }
    let oauth2 = |token: &str| json!({"tokenUrl": token, "clientId": "rpop", "scopes": ["mail"], "refreshTokenSecretRef": {"name": "isp"}});
    for token in [
        "https://login.example/token",
        "http://localhost:8080/",
        "http://127.0.0.1/token",
        "http://[::1]:80/",
    ] {
        all.push(record(json!({"remote": {"passwordSecretRef": null, "oauth2": oauth2(token)}})));
    }
    let client =
        json!({"tokenUrl": "https://login.example/", "clientId": "rpop", "clientSecretRef": {"name": "c"}});
    all.push(record(json!({"remote": {"passwordSecretRef": null, "oauth2": client}})));
    let own = json!({
        "tokenUrl": "https://login.example/a@b", "clientId": "rpop",
        "refreshTokenSecretRef": {"name": "c", "key": "refreshToken"},
        "scopes": ["https://mail.google.com/", "offline_access"], "caRef": {"kind": "ConfigMap", "name": "ca"},
    });
    all.push(record(json!({"remote": {"passwordSecretRef": null, "oauth2": own}})));
    let mut named = record(json!({}));
    named["metadata"]["name"] = "a".repeat(180).into();
    all.push(named);
    all.push(domain(json!({"delivery": {"lmtp": {"socket": "/run/dovecot/lmtp", "detailSeparator": "--"}}})));
    all.push(domain(
        json!({"delivery": {"smtp": {"host": "2001:db8::1", "port": 587, "ehloName": "[192.0.2.1]"}}}),
    ));
    all.push(domain(json!({"delivery": {"smtp": null, "maildir": {"path": "/home/{local}/Maildir"}}})));
    all.push(domain(json!({
        "aliases": ["example.net", "xn--exmple-cua.org"],
        "assignedAddresses": ["192.0.2.1", "2001:db8::1"], "useForOutgoing": true,
        "allow": [{"namespaces": {}, "accounts": ["*"]}, {"namespaces": {"matchLabels": {"a": "b"}}, "accounts": ["alice", "team-*"]}],
    })));
    all.push(settings(json!({
        "processors": 0, "hostConnections": 0, "delayFailedHosts": "0s", "logLevel": "LowLevel",
        "sourceAddress": "2001:db8::1", "ownAddresses": ["10.0.0.0/8", "::1", "mail.example.com"],
        "remoteNetworks": {"allow": ["0.0.0.0/0", "2001:db8::/32", "192.0.2.1"], "deny": ["169.254.0.0/16"]},
        "activitySchedule": {"timeZone": "Europe/Berlin", "windows": [{"days": ["Mon"], "from": "22:00", "to": "24:00"}]},
        "timeouts": {"connect": "1s"},
    })));
    all
}
