//! Logins that a real server refuses: how often they are made, by its own log.

use std::time::Duration;

use crate::support::dovecot::{Dovecot, PASSWORD};
use crate::support::manifest::Record;
use crate::support::rpop::{self, Running, Site};
use crate::support::wait_for;

/// Polls come every ten seconds, and a loaded machine is slow.
const SOME_POLLS: Duration = Duration::from_secs(90);

fn start(site: &Site) -> Running {
    site.start(&["--log-level", "low-level"])
}

/// Logins of that account that Dovecot took, and such as it refused.
fn logins(server: &Dovecot, account: &str) -> (usize, usize) {
    let taken = server.logged(&format!("Login: user=<{account}>"));
    let refused = server.logged(&format!("user=<{account}>")) - taken;
    // Of each session one, of its mechanisms.
    assert_eq!(server.logged("(auth failed"), server.logged("(auth failed, 1 attempts"), "{}", server.log());
    (taken, refused)
}

/// Waits until other records of the same server have been polled `times` more.
fn others_go_on(server: &Dovecot, times: usize) {
    let before = logins(server, "alice").0;
    wait_for("polls of another account", SOME_POLLS, || {
        (logins(server, "alice").0 >= before + times).then_some(())
    });
}

#[test]
fn a_refused_login_is_not_repeated_before_its_time_nor_by_a_restart() {
    let test = "a_refused_login_is_not_repeated_before_its_time_nor_by_a_restart";
    let (Some(server), Some(home)) = (Dovecot::start(test), Dovecot::start(test)) else { return };
    server.add(["alice", "bob"]);
    home.add(["alice", "bob"]);
    let site = Site::for_delivery(&rpop::lmtp(home.lmtp));
    let often = |record: Record| record.yaml().replace("pollEvery: 5m", "pollEvery: 10s");
    site.write("alice.yaml", &often(Record::plain("alice", server.pop3, "alice")));
    site.write("bob.yaml", &often(Record::plain("bob", server.pop3, "bob").secret("bob")));
    site.secret("bob", "password", "not it");

    let run = start(&site);
    wait_for("the refusal", SOME_POLLS, || (logins(&server, "bob") == (0, 1)).then_some(()));
    others_go_on(&server, 2);
    assert_eq!(logins(&server, "bob"), (0, 1), "its next login is ten minutes away\n{}", server.log());
    run.kill();

    // A restart, however sudden, is no reason.
    let mut run = start(&site);
    run.wait_to_say("1 login was refused in a row: the next one waits");
    others_go_on(&server, 2);
    assert_eq!(logins(&server, "bob"), (0, 1), "{}", server.log());
    let (manifests, state) = (site.manifests(), site.state.clone());
    let status =
        site.rpop(&["status", "-f", manifests.to_str().unwrap(), "--state", state.to_str().unwrap()]);
    status.says("mail/bob: 1 login refused in a row since ");
    let stored = std::fs::read_to_string(state.join("status/mail/bob.json")).unwrap();
    assert!(stored.contains("refusedLogins") && !stored.contains("not it"), "{stored}");

    // Another password is, at once.
    site.secret("bob", "password", "nor this");
    wait_for("the next refusal", SOME_POLLS, || (logins(&server, "bob") == (0, 2)).then_some(()));
    others_go_on(&server, 1);
    assert_eq!(logins(&server, "bob"), (0, 2), "{}", server.log());
    run.kill();
    // Also one that was written while nothing ran.
    site.secret("bob", "password", PASSWORD);
    let run = start(&site);
    wait_for("a login that is taken", SOME_POLLS, || (logins(&server, "bob").0 > 0).then_some(()));
    assert_eq!(logins(&server, "bob").1, 2, "{}", server.log());
    assert!(!run.text().contains("not it") && !run.text().contains("nor this"), "{}", run.text());
    run.kill();
}
