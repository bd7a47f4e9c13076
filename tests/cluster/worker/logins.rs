//! A login that a real server refuses, from worker to worker.

use std::time::Duration;

use rpop::domain::work::Login;

use super::stage::{Stage, server};
use crate::parts::dovecot::{Dovecot, PASSWORD};
use crate::parts::smtp::Smtp;
use crate::parts::wait_for;
use crate::support::eventually;

const SOME_POLLS: Duration = Duration::from_mins(1);

/// Logins of that account that Dovecot took, and such as it refused.
fn logins(dovecot: &Dovecot, account: &str) -> (usize, usize) {
    let taken = dovecot.logged(&format!("Login: user=<{account}>"));
    (taken, dovecot.logged(&format!("user=<{account}>")) - taken)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_waits_on_another_worker_as_it_did_on_the_first() {
    let test = "a_refused_login_waits_on_another_worker_as_it_did_on_the_first";
    let Some(server) = server() else { return };
    let Some(dovecot) = Dovecot::start(test) else { return };
    dovecot.add(["alice", "bob"]);
    let smtp = Smtp::new().start();
    let stage = Stage::new(server).await;
    stage.secret("wrong", "not it").await;
    let mut refused = stage.record("refused", dovecot.pop3, smtp.port()).await;
    refused.remote.account = "bob".into();
    let Login::Password(password) = &mut refused.remote.login else { panic!("a password") };
    password.name = "wrong".into();
    let fine = stage.record("fine", dovecot.pop3, smtp.port()).await;
    stage.share("shard-007", &[vec![refused, fine]]).await;
    let (one, two) = (stage.worker("refused-a").await, stage.worker("refused-b").await);
    let others_go_on = |times: usize| {
        let before = logins(&dovecot, "alice").0;
        wait_for("polls of another account", SOME_POLLS, || {
            (logins(&dovecot, "alice").0 >= before + times).then_some(())
        });
    };
    stage.give("shard-007", &one.me).await;

    assert_eq!(stage.condition("refused", "Authenticated", "False").await, "AuthFailed");
    let note = stage.event(&stage.namespace, "refused", "AuthFailed").await;
    assert!(!note.contains("not it"), "{note}");
    stage.condition("fine", "Authenticated", "True").await;
    let status = stage.records().get("refused").await.unwrap().status.unwrap();
    let logins_of = status.last_error.unwrap().refused_logins.unwrap();
    assert_eq!(logins_of.count, 1);
    let said = status.conditions.iter().find(|said| said.type_ == "Authenticated").unwrap();
    assert_eq!(said.last_transition_time, logins_of.since);
    assert!(said.message.contains("the next one waits until"), "{}", said.message);
    others_go_on(3);
    assert_eq!(logins(&dovecot, "bob"), (0, 1), "{}", dovecot.log());
    let metrics = one.get("/metrics");
    assert!(metrics.contains("rpop_auth_failures_total 1\n"), "{metrics}");
    assert!(metrics.contains("rpop_auth_failing_records 1\n"), "{metrics}");

    // Its worker dies, and another one takes the shard.
    one.process.kill();
    stage.steal_lease("refused-a", &one.me).await;
    stage.give("shard-007", &two.me).await;
    let mut second = two.process;
    second.wait_to_say("1 login was refused in a row: the next one waits");
    others_go_on(3);
    assert_eq!(logins(&dovecot, "bob"), (0, 1), "{}", dovecot.log());
    let after = stage.records().get("refused").await.unwrap().status.unwrap();
    assert_eq!(after.last_error.unwrap().refused_logins, Some(logins_of.clone()));
    assert_eq!(after.next_poll_time, status.next_poll_time);

    // The second worker notices another password, and counts anew.
    stage.secret("wrong", "nor this").await;
    let anew = eventually("the next refusal", || async {
        let error = stage.records().get("refused").await.unwrap().status?.last_error?.refused_logins?;
        (error.credentials != logins_of.credentials).then_some(error)
    })
    .await;
    assert_eq!((anew.count, logins(&dovecot, "bob")), (1, (0, 2)), "{}", dovecot.log());
    stage.secret("wrong", PASSWORD).await;
    stage.condition("refused", "Authenticated", "True").await;
    stage.event(&stage.namespace, "refused", "Recovered").await;
    assert_eq!(logins(&dovecot, "bob").1, 2, "{}", dovecot.log());
    assert!(!second.text().contains("not it"), "no password in the log");
}
