//! Unified domain-wide accounts in the cluster: controller and workers as
//! processes, a provider's mailbox, and the mailboxes of those whose mail it
//! holds.

mod office;

use std::collections::BTreeMap;

use rustix::process::Signal;
use serde_json::json;

use self::office::{MAIL, Office, addressed, lmtp, smtp, stored};
use crate::parts::mail::Arrived;
use crate::parts::{PATIENCE, wait_until};
use crate::support::{SYSTEM, eventually};

const POSTMASTER: &str = "postmaster@local.test";

/// Who has which messages.
fn mail(all: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    let marks = |marks: &[&str]| marks.iter().map(|mark| (*mark).to_owned()).collect();
    all.iter().map(|(who, has)| ((*who).to_owned(), marks(has))).collect()
}

/// Delivery status notifications among an account's mail, as text.
fn reports(mail: &[Arrived]) -> Vec<String> {
    let texts = mail.iter().map(Arrived::text);
    texts.filter(|text| text.contains("report-type=delivery-status")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mail_of_a_domain_reaches_its_users_and_follows_the_domains() {
    let test = "the_mail_of_a_domain_reaches_its_users_and_follows_the_domains";
    let Some(office) = Office::open(test, 1).await else { return };
    let to = |mark: &str, to: &str| stored(mark, &format!("X-Original-To: {to}\r\n"));
    office.arrives(
        "catchall",
        &[
            to("for-alice", "alice@local.test"),
            stored("for-both", "X-Original-To: alice@local.test\r\nX-Original-To:\r\n <bob@LOCAL.test>\r\n"),
            to("by-alias", "bob@alias.test"),
            to("for-a-tag", "bob+lists@local.test"),
            to("two-ways", "alice@local.test, carol@second.test"),
            to("for-nobody-here", "eve@elsewhere.test"),
            stored("for-nobody", ""),
            to("half-unknown", "alice@local.test, zoe@local.test, nobody@second.test"),
        ],
    );
    office.record("catchall", POSTMASTER, "X-Original-To", "10s");
    office.moved("catchall");
    // The author of the message is told of both who do not exist, once.
    wait_until("the author to be told", || office.home.inbox("author").count() > 0);
    let mut wanted = mail(&[
        ("alice", &["for-alice", "for-both", "half-unknown", "two-ways"]),
        ("author", &[""]),
        ("bob", &["by-alias", "for-both"]),
        ("bob+lists", &["for-a-tag"]),
        ("carol at the branch", &["two-ways"]),
        ("postmaster", &["for-nobody", "for-nobody-here"]),
    ]);
    assert_eq!(office.mail(), wanted);
    let told = office.home.inbox("author").read();
    let [report] = &reports(&told)[..] else { panic!("{told:?}") };
    for line in [
        "Final-Recipient: rfc822; zoe@local.test",
        "Final-Recipient: rfc822; nobody@second.test",
        "Action: failed",
        "User unknown",
        "X-Rpop-Mark: half-unknown",
    ] {
        assert!(report.contains(line), "{line}:\n{report}");
    }
    assert!(!report.contains("alice@local.test"), "who has it is nobody's business: {report}");
    assert_eq!(told[0].headers("Return-Path"), ["<>"], "nobody answers it");
    for arrived in office.home.inbox("alice").read() {
        assert!(arrived.headers("X-Original-To").is_empty());
    }

    // What the user sees of it.
    office.says("catchall", "Accepted", "True", "Accepted").await;
    office.says("catchall", "Ready", "True", "Ready").await;
    let row = office.row("catchall");
    assert_eq!(row["MAILBOX/SPECIAL"], "X-Original-To", "{row:?}");
    assert_eq!((&*row["ACCOUNT"], &*row["READY"]), (POSTMASTER, "True"), "{row:?}");
    assert!(row["LAST"].ends_with('Z') && row["LAST"].contains('T'), "{row:?}");
    let counters = office.status("catchall").await.counters.unwrap();
    assert_eq!((counters.delivered, counters.rejected, counters.quarantined), (8, 0, 0));

    // A domain comes.
    office.knows("catchall", &["alias.test", "local.test", "second.test"]).await;
    office.arrives("catchall", &[to("too-early", "erin@third.test")]);
    office.moved("catchall");
    office.domain("third.test", &json!({"delivery": lmtp(office.branch.lmtp)}));
    office.knows("catchall", &["alias.test", "local.test", "second.test", "third.test"]).await;
    office.arrives("catchall", &[to("in-time", "erin@third.test")]);
    office.moved("catchall");
    // Its mail goes elsewhere.
    office.domain("third.test", &json!({"delivery": smtp(office.queue.smtp)}));
    let port = office.queue.smtp.to_string();
    let at_the_queue = |item: &serde_json::Value| {
        let places = item["unified"]["domains"].as_array().unwrap();
        let has =
            |place: &&serde_json::Value| place["names"].as_array().unwrap().contains(&json!("third.test"));
        places.iter().find(has).is_some_and(|place| place["destination"].to_string().contains(&port))
    };
    office.works_by("catchall", "third.test at the queue", |_, item| at_the_queue(item)).await;
    office.arrives("catchall", &[to("moved", "erin@third.test")]);
    office.moved("catchall");
    // An alias goes, and then a domain.
    office.main(&[]);
    office.knows("catchall", &["local.test", "second.test", "third.test"]).await;
    office.arrives("catchall", &[to("no-alias", "bob@alias.test")]);
    office.moved("catchall");
    office.server.kubectl(&["delete", "rpopdomain", "third.test"]).succeeds();
    office.knows("catchall", &["local.test", "second.test"]).await;
    office.arrives("catchall", &[to("too-late", "erin@third.test, bob@local.test")]);
    office.moved("catchall");
    wanted.extend(mail(&[
        ("bob", &["by-alias", "for-both", "too-late"]),
        ("erin", &["moved"]),
        ("erin at the branch", &["in-time"]),
        ("postmaster", &["for-nobody", "for-nobody-here", "no-alias", "too-early"]),
    ]));
    office.polls("catchall", 1).await;
    assert_eq!(office.mail(), wanted);

    // What somebody takes out of the status by hand, with our own credentials
    // since no others may, is back after the next poll.
    let none = r#"{"status": {"conditions": []}}"#;
    let us = format!("system:serviceaccount:{SYSTEM}:rpop-controller");
    let edit = [
        "--as",
        &us,
        "--as-group",
        "system:masters",
        "patch",
        "-n",
        MAIL,
        "rpop/catchall",
        "--subresource=status",
        "--type=merge",
        "-p",
        none,
    ];
    office.server.kubectl(&edit).succeeds();
    for type_ in ["Accepted", "Polled", "Delivered", "Ready"] {
        office.says("catchall", type_, "True", type_).await;
    }
    office.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_not_the_main_postmasters_says_so_and_moves_nothing() {
    let test = "a_record_that_is_not_the_main_postmasters_says_so_and_moves_nothing";
    let Some(office) = Office::open(test, 1).await else { return };
    office.arrives("other", &[stored("for-bob", "X-Original-To: bob@local.test\r\n")]);
    office.record("other", "alice@local.test", "X-Original-To", "10s");
    // One that is all right shows that time passes.
    office.record("catchall", POSTMASTER, "*", "10s");
    let why = office.says("other", "Accepted", "False", "ConfigInvalid").await;
    assert!(why.contains("spec.account: ") && why.contains("write account: postmaster@local.test"), "{why}");
    office.says("catchall", "Ready", "True", "Ready").await;
    office.polls("catchall", 1).await;
    let row = office.row("other");
    assert_eq!((&*row["LAST"], &*row["READY"]), ("ConfigInvalid", "False"), "{row:?}");
    let described = office.server.kubectl(&["describe", "rpop", "-n", MAIL, "other"]).succeeds();
    assert!(described.contains("write account: postmaster@local.test"), "{described}");
    assert_eq!(office.status("other").await.counters, None, "never polled");
    assert_eq!((office.provider.inbox("other").count(), office.mail().len()), (1, 0));

    // Done as it says, under another name of the domain.
    let mend = r#"{"spec": {"account": "Postmaster@alias.test"}}"#;
    office.server.kubectl(&["patch", "-n", MAIL, "rpop/other", "--type=merge", "-p", mend]).succeeds();
    office.says("other", "Accepted", "True", "Accepted").await;
    office.moved("other");
    assert_eq!(office.mail(), mail(&[("bob", &["for-bob"])]));
    office.says("other", "Ready", "True", "Ready").await;

    // There is no Main Domain any more: both wait, and go on when there is.
    office.settings(&json!({}));
    for record in ["other", "catchall"] {
        let why = office.says(record, "Accepted", "False", "ConfigInvalid").await;
        assert!(why.contains("write mainDomain: "), "{why}");
        assert_eq!(office.row(record)["LAST"], "ConfigInvalid");
    }
    office.arrives("other", &[stored("later", "X-Original-To: bob@local.test\r\n")]);
    office.settings(&json!({"mainDomain": "alias.test"}));
    office.says("other", "Accepted", "True", "Accepted").await;
    office.moved("other");
    assert_eq!(office.mail(), mail(&[("bob", &["for-bob", "later"])]));
    office.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_are_delivered_once_also_across_a_restart_of_the_worker() {
    let test = "copies_are_delivered_once_also_across_a_restart_of_the_worker";
    let Some(mut office) = Office::open(test, 1).await else { return };
    let copied = addressed(
        "copied",
        "To: alice@local.test, zoe@local.test\r\nCc: Bob <bob@ALIAS.test>, carol@second.test, x@far.test\r\n",
    );
    let copy = |of: &str, at: u8| {
        let trace = format!(
            "X-Original-To: {of}\r\nDelivered-To: {of}\r\n\
             Received: from a by b with ESMTP id {at}; Mon, 2 Nov 2026 10:00:0{at} +0000\r\n"
        );
        [trace.as_bytes(), copied.as_slice()].concat()
    };
    office.arrives(
        "catchall",
        &[
            copy("alice@local.test", 1),
            copy("bob@alias.test", 2),
            copy("carol@second.test", 3),
            addressed("for-a-list", "To: list@far.test\r\n"),
            addressed("unknown", "To: zoe@local.test\r\n"),
        ],
    );
    office.record("catchall", POSTMASTER, "*", "10s");
    office.moved("catchall");
    let mut wanted = mail(&[
        ("alice", &["copied"]),
        ("bob", &["copied"]),
        ("carol at the branch", &["copied"]),
        ("postmaster", &["for-a-list", "unknown"]),
    ]);
    assert_eq!(office.mail(), wanted, "and nobody is told of zoe");
    office.says("catchall", "Ready", "True", "Ready").await;
    assert_eq!(office.row("catchall")["MAILBOX/SPECIAL"], "*");
    let counted = |worker: &crate::support::Worker| {
        let metrics = worker.get("/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix("rpop_duplicates_suppressed_total "));
        line.and_then(|count| count.parse::<u32>().ok()).unwrap_or_default()
    };
    assert_eq!(counted(&office.workers[0]), 2);

    // The container starts again in the same pod; one copy came in between.
    let worker = office.workers.remove(0);
    worker.process.signal(Signal::TERM);
    let ended = worker.process.wait_at_most(PATIENCE);
    assert_eq!(ended.code(), 0, "{}", ended.text());
    let other = [copy("alice@local.test", 4).as_slice(), b"A footer that a list has added.\r\n"].concat();
    office.arrives("catchall", &[copy("dave@second.test", 5), other]);
    let worker = office.server.worker(&worker.pod).await;
    office.workers.push(worker);
    office.moved("catchall");
    // What only has the same Message-ID is another message.
    for who in ["alice", "bob", "carol at the branch"] {
        wanted.insert(who.to_owned(), vec!["copied".to_owned(); 2]);
    }
    assert_eq!(office.mail(), wanted);
    assert_eq!(counted(&office.workers[0]), 1);
    let sizes: Vec<usize> =
        office.home.inbox("alice").read().iter().map(|mail| mail.original().len()).collect();
    assert_ne!(sizes[0], sizes[1], "{sizes:?}");
    let kept = office.server.kubectl(&["get", "configmaps", "-n", MAIL, "-l", "rpop.dev/ledger", "-o=name"]);
    assert_eq!(kept.succeeds().trim(), "configmap/rpop-uids-catchall", "by it the copies are known");
    office.close();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_owed_a_message_gets_it_from_the_worker_that_takes_over() {
    let test = "who_is_owed_a_message_gets_it_from_the_worker_that_takes_over";
    let Some(mut office) = Office::open(test, 2).await else { return };
    office.branch.close("dave");
    let to = "alice@local.test, carol@second.test, dave@second.test, zoe@local.test";
    office.arrives("catchall", &[stored("owed", &format!("X-Original-To: {to}\r\n"))]);
    // The first retry is the next poll's: there is time before it.
    office.record("catchall", POSTMASTER, "X-Original-To", "25s");
    eventually("the ledger to say who is owed", || async {
        let owed = match office.status("catchall").await.last_poll_time {
            Some(_) => office.owed("catchall").await,
            None => Vec::new(),
        };
        // Dave; and zoe, of whom the sender is told when dave is done.
        (owed == [(1, 2)]).then_some(())
    })
    .await;
    // What the user sees of it.
    let why = office.says("catchall", "Delivered", "False", "Deferred").await;
    assert!(why.contains("451 "), "{why}");
    let row = office.row("catchall");
    assert!(row["READY"] == "False" && row["LAST"].ends_with('Z'), "{row:?}");
    let dead = office.holder("catchall").await;
    let dead = office.workers.remove(dead);
    dead.process.kill();
    office.queue_ran();
    let mut wanted = mail(&[("alice", &["owed"]), ("carol at the branch", &["owed"])]);
    assert_eq!(office.mail(), wanted);
    assert_eq!(office.provider.inbox("catchall").count(), 1, "it stays where it can be had again");

    office.branch.open("dave");
    office.arrives("catchall", &[stored("later", "X-Original-To: carol@second.test\r\n")]);
    office.moved("catchall");
    wanted.extend(mail(&[
        ("author", &[""]),
        ("carol at the branch", &["later", "owed"]),
        ("dave at the branch", &["owed"]),
    ]));
    assert_eq!(office.mail(), wanted, "the others got nothing again");
    let heir = office.holder("catchall").await;
    assert_ne!(office.workers[heir].pod, dead.pod);
    eventually("the ledger to owe nothing", || async {
        office.owed("catchall").await.is_empty().then_some(())
    })
    .await;
    office.says("catchall", "Ready", "True", "Ready").await;
    let counters = office.status("catchall").await.counters.unwrap();
    assert_eq!((counters.waiting, counters.quarantined), (0, 0));
    office.polls("catchall", 1).await;
    assert_eq!(office.mail(), wanted);
    let held = office.server.kubectl(&["get", "rpopshards", "-n", SYSTEM]).succeeds();
    assert!(!held.contains(&dead.me), "{held}");
    office.close();
}
