//! Notifications that nobody takes, and those that come back: each ends.

use super::*;

/// Polls until nothing changes any more; how many messages the Postfix ever
/// had in its queue.
fn until_quiet(place: &Place) -> usize {
    let mut before = (usize::MAX, usize::MAX);
    for _ in 0..8 {
        // 1: a message was set aside.
        let run = place.site.once();
        assert!(matches!(run.code(), 0 | 1), "{}", run.text());
        place.queue.release();
        let now = (place.queue.ever_queued(), place.left());
        if now == before {
            return now.0;
        }
        before = now;
    }
    panic!("it goes on and on: {before:?}");
}

#[test]
fn a_notification_that_cannot_be_delivered_is_the_last_there_is() {
    let test = "a_notification_that_cannot_be_delivered_is_the_last_there_is";
    let Some(place) = Place::open(test, "", Options::default()) else { return };
    place.record(HEADER, &[]);
    // The Postfix believes in that sender, and finds nobody at home who knows him.
    let traces = format!("Return-Path: <lost@sender.test>\r\n{HEADER}: zoe@local.test\r\n");
    place.put(&[mail("m", &traces, "")]);
    assert_eq!(until_quiet(&place), 1);
    assert_eq!(place.queue.logged("to=<lost@sender.test>"), 1);
    assert_eq!(
        (place.queue.logged("status=bounced"), place.queue.logged("sender non-delivery notification")),
        (1, 0)
    );
    let all: usize = USERS.iter().map(|user| place.home.inbox(user).count()).sum();
    assert_eq!((all, place.left()), (0, 0));
}

#[test]
fn a_notification_that_is_refused_goes_to_the_postmaster() {
    let test = "a_notification_that_is_refused_goes_to_the_postmaster";
    let Some(place) = Place::open(test, "", Options::default()) else { return };
    place.record(HEADER, &[]);
    let traces = format!("Return-Path: <nobody@sender.test>\r\n{HEADER}: zoe@local.test\r\n");
    place.put(&[mail("m", &traces, "")]);
    assert_eq!(until_quiet(&place), 1);
    let told = place.home.inbox("postmaster").read();
    assert_eq!(told.len(), 1);
    assert_eq!((returned_mark(&told[0].text()).as_str(), place.left()), ("m", 0));
}

/// Somebody's mail goes on to the very mailbox that is polled: his messages,
/// and the notifications for him, come back once and no more.
#[test]
fn what_comes_back_to_the_maildrop_goes_round_once() {
    let test = "what_comes_back_to_the_maildrop_goes_round_once";
    let Some(provider) = Dovecot::start(test) else { return };
    provider.add([NAME]);
    let settings = format!(
        "virtual_alias_maps = inline:{{ {{ fred@local.test = {NAME}@isp.test }} }}\n\
         transport_maps = inline:{{ {{ isp.test = traced:inet:127.0.0.1:{} }} }}\n",
        provider.lmtp
    );
    let Some(mut place) = Place::open(test, &settings, Options::default()) else { return };
    place.provider = provider;
    place.record("X-Original-To", &[]);
    // To a user who is forwarded, and from him to nobody: a notification for him.
    place.put(&[
        mail("to", "Return-Path: <author@sender.test>\r\nX-Original-To: fred@local.test\r\n", ""),
        mail("from", "Return-Path: <fred@local.test>\r\nX-Original-To: zoe@local.test\r\n", ""),
    ]);
    // Once out for each, and the notification once more: it is known for one
    // that has been here when it comes again.
    assert_eq!(until_quiet(&place), 3);
    let ledger = place.ledger();
    assert_eq!(place.left(), 2, "{ledger:?}");
    assert_eq!(ledger.iter().filter(|line| line.starts_with("quarantined ")).count(), 2, "{ledger:?}");
    assert!(ledger.iter().all(|line| !line.starts_with("quarantined ") || line.contains("been here before")));
    let all: usize = USERS.iter().map(|user| place.home.inbox(user).count()).sum();
    assert_eq!(all, 0, "nobody is told of anything");
    // A person may have them sent to the postmaster.
    place.record("X-Original-To", &["onReject: Postmaster"]);
    let text = std::fs::read_to_string(place.site.ledger(NAME)).unwrap();
    let again: String = text
        .lines()
        .filter(|line| !line.starts_with("quarantined "))
        .fold(String::new(), |text, line| text + line + "\n");
    std::fs::write(place.site.ledger(NAME), again).unwrap();
    assert_eq!(until_quiet(&place), 5);
    assert_eq!((place.left(), place.home.inbox("postmaster").count()), (0, 2));
}
