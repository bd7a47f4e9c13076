//! `rpop worker` on a real API server, under its own rights and policies, with
//! a leader that the test plays.

mod accepted;
mod logins;
mod stage;

use std::time::Duration;

use rpop::api::SLICE_FORMAT;
use rpop::domain::work::Login;
use rustix::process::Signal;

use self::stage::{Stage, each_once, prepare, server};
use crate::parts::pop3::{Act, Pop3};
use crate::parts::smtp::Smtp;
use crate::parts::{PATIENCE, wait_for, wait_until};
use crate::support::{Options, SYSTEM, Server, Worker, eventually, project};

#[tokio::test(flavor = "multi_thread")]
async fn a_record_of_a_held_shard_is_polled_and_its_status_says_so() {
    let Some(server) = server() else { return };
    let stage = Stage::new(server).await;
    let (pop3, smtp) = (Pop3::new().generated("m", 5, 2000).start(), Smtp::new().start());
    let item = stage.record("isp", pop3.port(), smtp.port()).await;
    stage.share("shard-001", &[vec![item]]).await;
    let worker = stage.worker("polls").await;
    // Nobody has given it anything.
    assert_eq!(pop3.sessions(), 0);
    stage.give("shard-001", &worker.me).await;
    wait_until("the mail", || smtp.accepted() == 5);
    assert_eq!(stage.condition("isp", "Ready", "True").await, "Ready");
    let status = eventually("the counters", || async {
        let status = stage.records().get("isp").await.unwrap().status?;
        (status.counters?.delivered == 5).then_some(status)
    })
    .await;
    assert!(status.last.unwrap().ends_with('Z') && status.last_error.is_none());
    assert!(status.last_poll_time.is_some() && status.next_poll_time.is_some());
    let shard = stage.shard("shard-001").await.status.unwrap();
    let observed = &shard.observed_slices["shard-001-0"];
    assert_eq!(observed.generation, 1);
    assert!(!observed.uid.is_empty(), "it says which object of that name it is");
    wait_until("readiness", || worker.get("/readyz").contains("200 OK"));
    let metrics = worker.get("/metrics");
    assert!(metrics.contains("rpop_shards_held 1\n"), "{metrics}");
    assert!(metrics.contains("rpop_shard_moves_total{reason=\"taken\"} 1\n"));

    // A slice without the record ends its polls; only then it is observed.
    stage.slice("shard-001", 0, &[], SLICE_FORMAT).await;
    eventually("the slice to be taken in", || async {
        let status = stage.shard("shard-001").await.status.unwrap();
        (status.observed_slices["shard-001-0"].generation == 2).then_some(())
    })
    .await;
    assert_eq!(pop3.open(), 0);
    let before = pop3.sessions();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(pop3.sessions(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_moves_between_messages_and_counters_go_on() {
    let Some(server) = server() else { return };
    let stage = Stage::new(server).await;
    // Slow enough to be moved in the middle.
    let slow = |call: &crate::parts::pop3::Call<'_>| {
        if call.verb == "RETR" {
            std::thread::sleep(Duration::from_millis(100));
        }
        Act::Properly
    };
    let pop3 =
        Pop3::new().capabilities(Some(&["UIDL", "USER"])).generated("m", 60, 2000).script(slow).start();
    let smtp = Smtp::new().start();
    let item = stage.record("moved", pop3.port(), smtp.port()).await;
    stage.share("shard-002", &[vec![item]]).await;
    let (one, two) = (stage.worker("moves-a").await, stage.worker("moves-b").await);
    stage.give("shard-002", &one.me).await;
    wait_until("some mail", || smtp.accepted() >= 5);
    stage.desire("shard-002", &two.me).await;
    let shard = stage.held_by("shard-002", &two.me).await;
    assert_eq!(shard.status.unwrap().epoch, 2);
    assert!(smtp.accepted() < 60, "it ended at a message");
    wait_until("the rest", || {
        assert!(pop3.open() <= 1, "never two at one maildrop");
        smtp.accepted() >= 60
    });
    stage.condition("moved", "Ready", "True").await;
    eventually("both workers' counters together", || async {
        let counters = stage.records().get("moved").await.unwrap().status?.counters?;
        (counters.delivered == 60).then_some(())
    })
    .await;
    assert_eq!((smtp.accepted(), smtp.marks().len()), (60, 60));
    assert!(each_once(&smtp.marks()));

    // SIGTERM: the leader finds another worker, the last one takes it.
    two.process.signal(Signal::TERM);
    wait_until("unreadiness", || !worker_ready(&two));
    stage.desire("shard-002", &one.me).await;
    stage.held_by("shard-002", &one.me).await;
    let ended = two.process.wait_at_most(PATIENCE);
    assert_eq!(ended.code(), 0, "{}", ended.text());
}

fn worker_ready(worker: &Worker) -> bool {
    worker.get("/readyz").contains("200 OK")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_that_comes_or_changes_is_used_soon() {
    let Some(server) = server() else { return };
    let stage = Stage::new(server).await;
    let (pop3, smtp) = (Pop3::new().generated("m", 1, 500).start(), Smtp::new().start());
    let mut item = stage.record("secretive", pop3.port(), smtp.port()).await;
    let Login::Password(at) = &mut item.remote.login else { panic!("a password") };
    at.name = "later".into();
    stage.share("shard-003", &[vec![item]]).await;
    let worker = stage.worker("secrets").await;
    stage.give("shard-003", &worker.me).await;
    assert_eq!(stage.condition("secretive", "Polled", "False").await, "SecretMissing");
    let note = stage.event(&stage.namespace, "secretive", "SecretMissing").await;
    assert!(note.contains("there is no Secret"), "{note}");
    assert_eq!(pop3.sessions(), 0);

    stage.secret("later", "wrong").await;
    eventually("the wrong password to be refused", || async {
        let error = stage.records().get("secretive").await.unwrap().status?.last_error?;
        (error.code == "AuthFailed").then_some(())
    })
    .await;
    stage.secret("later", crate::parts::dovecot::PASSWORD).await;
    stage.condition("secretive", "Ready", "True").await;
    stage.event(&stage.namespace, "secretive", "Recovered").await;
    wait_until("the mail", || smtp.accepted() == 1);
    assert!(!worker.process.text().contains("wrong"), "no password in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_of_a_newer_version_is_left_alone_and_said() {
    let Some(server) = server() else { return };
    let stage = Stage::new(server).await;
    let (old, new) = (Pop3::new().generated("m", 1, 500).start(), Pop3::new().start());
    let smtp = Smtp::new().start();
    let known = stage.record("known", old.port(), smtp.port()).await;
    let newer = stage.record("newer", new.port(), smtp.port()).await;
    stage.share("shard-004", &[vec![known], vec![newer.clone()]]).await;
    stage.slice("shard-004", 1, std::slice::from_ref(&newer), SLICE_FORMAT + 1).await;
    let worker = stage.worker("older").await;
    stage.give("shard-004", &worker.me).await;
    wait_until("the other slice's mail", || smtp.accepted() == 1);
    let note = stage.event(SYSTEM, "shard-004-1", "NewerSlice").await;
    assert!(note.contains("update the workers"), "{note}");
    assert!(worker.process.text().contains("its records are left alone"));
    assert!(worker.get("/metrics").contains("rpop_slices_left_alone_total 1\n"));
    assert_eq!(new.sessions(), 0);
    // The controller was rolled back.
    stage.slice("shard-004", 1, &[newer], SLICE_FORMAT).await;
    wait_until("its poll", || new.sessions() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_slept_through_its_death_says_nothing_more_to_its_servers() {
    let Some(server) = server() else { return };
    let stage = Stage::new(server).await;
    let slow = |call: &crate::parts::pop3::Call<'_>| {
        if call.verb == "RETR" {
            std::thread::sleep(Duration::from_millis(300));
        }
        Act::Properly
    };
    let make = || Pop3::new().capabilities(Some(&["UIDL", "USER"])).generated("m", 200, 2000);
    let (pop3, smtp) = (make().script(slow).start(), Smtp::new().start());
    let item = stage.record("asleep", pop3.port(), smtp.port()).await;
    stage.share("shard-005", &[vec![item]]).await;
    let (one, two) = (stage.worker("sleeps").await, stage.worker("wakes").await);
    stage.give("shard-005", &one.me).await;
    wait_until("some mail", || smtp.accepted() >= 3);
    one.process.signal(Signal::STOP);
    // What was on its way arrives; then there is silence.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let said = pop3.commands().len();
    stage.steal(&one).await;
    stage.give("shard-005", &two.me).await;
    wait_until("the other worker to log in", || pop3.logins() >= 2);
    one.process.signal(Signal::CONT);
    let ended = one.process.wait_at_most(PATIENCE);
    assert_eq!(ended.code(), 1, "{}", ended.text());
    let of_the_first: Vec<_> =
        pop3.commands().into_iter().skip(said).filter(|(session, _)| *session == 1).collect();
    assert_eq!(of_the_first, [], "the old session obeyed nothing more");
    wait_until("more mail by the other one", || smtp.accepted() > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_stops_polls_in_time_and_for_that_time() {
    let Some(mut server) = Server::start() else { return };
    prepare(&server);
    let (pop3, smtp) = (Pop3::new().generated("m", 1, 500).start(), Smtp::new().start());
    let mut worker = {
        let stage = Stage::new(&server).await;
        let item = stage.record("away", pop3.port(), smtp.port()).await;
        stage.share("shard-006", &[vec![item]]).await;
        let worker = stage.worker("away").await;
        stage.give("shard-006", &worker.me).await;
        stage.condition("away", "Ready", "True").await;
        worker
    };
    server.stop();
    worker.process.wait_to_say("all sessions are dropped until it is");
    wait_for("the last session's end", Duration::from_secs(2), || (pop3.open() == 0).then_some(()));
    let before = pop3.sessions();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(pop3.sessions(), before, "a fenced worker starts nothing");
    server.restart();
    wait_until("polls again", || pop3.sessions() > before);
    let stage_after = server.client().await;
    let shards: kube::Api<rpop::api::RpopShard> = kube::Api::namespaced(stage_after, SYSTEM);
    let status = shards.get("shard-006").await.unwrap().status.unwrap();
    assert_eq!((status.holder.as_deref(), status.epoch), (Some(worker.me.as_str()), 1), "nobody took it");
    assert!(worker.process.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_is_controller_and_worker_where_that_is_enough() {
    // The chart brings the CRDs.
    let bare = Options { without_crds: true, ..Options::default() };
    let Some(server) = Server::start_with(bare) else { return };
    server.kubectl(&["create", "namespace", SYSTEM]).succeeds();
    let chart = project("charts/rpop");
    let chart = chart.to_str().unwrap();
    server.helm(&["install", "rpop", chart, "--namespace", SYSTEM, "--set", "mode=combined"]).succeeds();
    let (pop3, smtp) = (Pop3::new().generated("m", 3, 2000).start(), Smtp::new().start());
    let manifests = format!(
        "apiVersion: rpop.dev/v1alpha1\nkind: RpopSettings\nmetadata: {{name: default}}\nspec:\n\
         \x20 allowSelfPoll: true\n  remoteNetworks: {{allow: [127.0.0.0/8]}}\n---\n\
         apiVersion: rpop.dev/v1alpha1\nkind: RpopDomain\nmetadata: {{name: local.test}}\nspec:\n\
         \x20 delivery: {{smtp: {{host: 127.0.0.1, port: {}, tls: {{mode: None}}}}}}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {{name: isp, namespace: {SYSTEM}}}\n\
         stringData: {{password: {}}}\n---\n\
         apiVersion: rpop.dev/v1alpha1\nkind: RpopRecord\nmetadata: {{name: isp, namespace: {SYSTEM}}}\nspec:\n\
         \x20 account: alice@local.test\n  pollEvery: 10s\n  leave: true\n\
         \x20 remote: {{host: \"127.0.0.1:{}\", account: alice, passwordSecretRef: {{name: isp}}}}\n\
         \x20 tls: {{mode: None}}\n",
        smtp.port(),
        serde_json::Value::from(crate::parts::dovecot::PASSWORD),
        pop3.port(),
    );
    wait_for("the kinds to be served", PATIENCE, || server.apply(&manifests).success.then_some(()));
    let identity = server.pod_token(SYSTEM, "rpop-combined", "rpop-combined-0").await;
    let args = ["combined", "--timing", "fast", "--shards", "4", "--listen", "off"];
    let process = identity.run(&args, &[]);
    wait_until("the mail", || {
        assert!(smtp.accepted() <= 3, "each once");
        smtp.accepted() == 3
    });
    let records: kube::Api<rpop::api::RpopRecord> = kube::Api::namespaced(server.client().await, SYSTEM);
    eventually("the record to be ready", || async {
        let status = records.get("isp").await.unwrap().status?;
        let is = |type_: &str| status.conditions.iter().any(|c| c.type_ == type_ && c.status == "True");
        (is("Accepted") && is("Ready") && status.shard.is_some()).then_some(())
    })
    .await;
    process.signal(Signal::TERM);
    let ended = process.wait_at_most(PATIENCE);
    assert_eq!(ended.code(), 0, "{}", ended.text());
}
