//! What the destination had accepted when a worker fenced itself.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::Api;
use rpop::api::RpopRecord;
use rustix::process::Signal;

use super::stage::{Stage, each_once, prepare};
use crate::parts::pop3::{Act, Call, FakePop3, Pop3};
use crate::parts::smtp::{FakeSmtp, Smtp};
use crate::parts::{PATIENCE, wait_for, wait_until};
use crate::support::{Server, Worker, eventually};

/// Messages of the maildrop: more than are out at once by far.
const ALL: usize = 120;
/// Of `checkpoint`, by default.
const CHECKPOINT: usize = 20;
const SETTLED: &str = "is in the ledger now, and not fetched again";

/// Flows for some seconds.
fn maildrop() -> FakePop3 {
    let slow = |call: &Call<'_>| {
        if call.verb == "RETR" {
            std::thread::sleep(Duration::from_millis(30));
        }
        Act::Properly
    };
    Pop3::new().capabilities(Some(&["UIDL", "USER"])).generated("m", ALL, 2000).script(slow).start()
}

async fn worker_of(stage: &Stage<'_>, pop3: &FakePop3, smtp: &FakeSmtp, shard: &str, name: &str) -> Worker {
    let item = stage.record(name, pop3.port(), smtp.port()).await;
    stage.share(shard, &[vec![item]]).await;
    let worker = stage.worker(name).await;
    stage.give(shard, &worker.me).await;
    wait_until("some mail", || smtp.accepted() >= 5);
    worker
}

/// Waits until the worker has fenced itself amid its session: it has handed
/// over all that may be out without a commit.
fn fenced(worker: &mut Worker, pop3: &FakePop3, smtp: &FakeSmtp) {
    worker.process.wait_to_say("all sessions are dropped until it is");
    wait_for("the last session's end", Duration::from_secs(2), || (pop3.open() == 0).then_some(()));
    let accepted = smtp.accepted();
    assert!(accepted + CHECKPOINT < ALL, "{accepted} accepted: it was to be amid its session");
    assert!(accepted >= CHECKPOINT, "{accepted} accepted: no more without a commit");
    assert_eq!(pop3.uids().len(), ALL, "nothing is deleted before QUIT");
}

/// All arrive once, and are deleted.
fn goes_on(worker: &mut Worker, pop3: &FakePop3, smtp: &FakeSmtp) {
    wait_until("the deletions", || pop3.uids().is_empty());
    let (accepted, marks) = (smtp.accepted(), smtp.marks());
    assert_eq!(marks.len(), ALL, "none is lost");
    assert!(each_once(&marks), "{} repeated: {marks:?}", accepted - ALL);
    worker.process.wait_to_say(SETTLED);
    assert!(worker.process.runs());
}

/// The record's status counts what the session had delivered that was cut off.
async fn counts_all(client: Client, namespace: &str, name: &str) {
    let records: Api<RpopRecord> = Api::namespaced(client, namespace);
    let counted = || async {
        let counters = records.get(name).await.ok()?.status?.counters?;
        assert!(counters.delivered <= ALL as u64, "each counts once: {counters:?}");
        (counters.delivered == ALL as u64).then_some(())
    };
    eventually("the counters to say what was delivered", counted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_api_server_amid_a_session_repeats_nothing() {
    let Some(mut server) = Server::start() else { return };
    prepare(&server);
    let (pop3, smtp) = (maildrop(), Smtp::new().start());
    let (mut worker, namespace) = {
        let stage = Stage::new(&server).await;
        (worker_of(&stage, &pop3, &smtp, "shard-001", "outage").await, Arc::clone(&stage.namespace))
    };
    server.stop();
    fenced(&mut worker, &pop3, &smtp);
    server.restart();
    goes_on(&mut worker, &pop3, &smtp);
    counts_all(server.client().await, &namespace, "outage").await;
}

/// Writes hang until nobody waits for them any more, and are carried out after
/// all: what was written meanwhile was written by this very worker.
#[tokio::test(flavor = "multi_thread")]
async fn commits_that_were_carried_out_late_are_not_taken_for_somebody_elses() {
    let Some(server) = Server::start() else { return };
    prepare(&server);
    let (pop3, smtp) = (maildrop(), Smtp::new().start());
    let stage = Stage::new(&server).await;
    let mut worker = worker_of(&stage, &pop3, &smtp, "shard-001", "late").await;
    server.freeze_etcd(true);
    fenced(&mut worker, &pop3, &smtp);
    // Longer than the ledger waits for an answer.
    tokio::time::sleep(Duration::from_secs(32)).await;
    server.freeze_etcd(false);
    goes_on(&mut worker, &pop3, &smtp);
    counts_all(stage.admin.clone(), &stage.namespace, "late").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_accepted_that_was_stolen_is_its_heirs_to_fetch_again() {
    let Some(mut server) = Server::start() else { return };
    prepare(&server);
    let (pop3, smtp) = (maildrop(), Smtp::new().start());
    let mut one = {
        let stage = Stage::new(&server).await;
        worker_of(&stage, &pop3, &smtp, "shard-001", "stolen").await
    };
    server.stop();
    fenced(&mut one, &pop3, &smtp);
    let uncommitted = smtp.accepted();
    one.process.signal(Signal::STOP);
    server.restart();
    let stage = Stage::new(&server).await;
    let two = stage.worker("heir").await;
    stage.steal(&one).await;
    stage.give("shard-001", &two.me).await;
    wait_until("mail by the heir", || smtp.accepted() > uncommitted);
    one.process.signal(Signal::CONT);
    let ended = one.process.wait_at_most(PATIENCE);
    assert_eq!(ended.code(), 1, "{}", ended.text());
    assert!(!ended.text().contains(SETTLED), "{}", ended.text());
    wait_until("the deletions", || pop3.uids().is_empty());
    let marks = smtp.marks();
    assert_eq!(marks.len(), ALL, "none is lost");
    let repeated = smtp.accepted() - ALL;
    assert!((1..=CHECKPOINT).contains(&repeated), "{repeated} repeated");
}
