//! "`special: Header`: recipients from that header (all instances), header
//! removed, `NOTIFY=FAILURE`. Only addresses in our RpopDomains and their
//! aliases count; `relayForeign: true` on the record lifts that. […] No usable
//! address, or no such header: to the postmaster of the Main Domain."

use super::*;
use crate::support::postfix::{QueuedRecipient, Ret};
use crate::support::raw::Raw;

#[test]
fn all_instances_of_the_header_name_recipients_and_none_is_left() {
    let test = "all_instances_of_the_header_name_recipients_and_none_is_left";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    place.record(HEADER, &[]);
    let instances = [
        "alice@local.test",
        "\"Bob (no)\" <bob+lists@LOCAL.test> (yes),\r\n\tal@alias.test",
        "undisclosed: carol@local.test, alice@local.test;",
        "team@local.test",
    ];
    place.put(&[enveloped("all", &instances)]);
    place.poll(false);
    let held = &place.held()["all"];
    assert_eq!((held.sender.as_str(), held.ret), ("author@sender.test", Some(Ret::Headers)));
    let recipient = |said: &str, address: &str, orcpt: &str| QueuedRecipient {
        said: said.into(),
        address: address.into(),
        notify: "FAILURE".into(),
        orcpt: format!("rfc822;{orcpt}"),
    };
    // Postfix writes the domain in lower case, and what it makes of aliases.
    assert_eq!(
        held.recipients,
        [
            recipient("alice@local.test", "alice@local.test", "alice@local.test"),
            recipient("bob+lists@LOCAL.test", "bob+lists@LOCAL.test", "bob+lists@LOCAL.test"),
            recipient("al@alias.test", "alice@local.test", "al@alias.test"),
            recipient("carol@local.test", "carol@local.test", "carol@local.test"),
            recipient("team@local.test", "alice@local.test", "team@local.test"),
            recipient("team@local.test", "bob@local.test", "team@local.test"),
        ]
    );
    let sent = mail("all", "", "From: author@sender.test\r\n");
    assert_eq!(held.message.original(), sent, "what the author wrote is as it was");
    assert_eq!(held.message.headers(HEADER), [""; 0]);
    place.queue.release();
    assert_eq!(place.marks("alice"), ["all"; 3], "by her name, her alias and her team");
    assert_eq!(place.marks("bob"), ["all"], "for the team");
    assert_eq!(marks(&place.home.mailbox("bob", Some("lists")).read()), ["all"]);
    assert_eq!(place.marks("carol"), ["all"]);
    for account in ["alice", "bob", "carol"] {
        for mail in place.home.inbox(account).read() {
            assert_eq!((mail.headers(HEADER), mail.original()), (Vec::new(), sent.clone()), "{account}");
        }
    }
    assert_eq!((place.left(), place.home.inbox("author").count()), (0, 0));
    assert_eq!(place.provider.retrieved(), 1);
}

#[test]
fn what_cannot_be_delivered_later_is_reported_to_the_sender() {
    let test = "what_cannot_be_delivered_later_is_reported_to_the_sender";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    place.record(HEADER, &[]);
    place.provider.add(["star"]);
    let star = Record::plain("star", place.provider.pop3, "star").to("postmaster@local.test");
    place.site.record(&star.with("special: \"*\""));
    // The Postfix believes in ghost, nobody at home knows him.
    place.put(&[enveloped("header", &["ghost@local.test", "alice@local.test"])]);
    let sent = addressed("star", "To: ghost@local.test, alice@local.test\r\n");
    place.provider.inbox("star").fill(0, [sent.as_slice()]);
    place.poll(false);
    let held = place.held();
    assert_eq!(held["header"].asked(), [("ghost@local.test", "FAILURE"), ("alice@local.test", "FAILURE")]);
    assert_eq!(held["star"].asked(), [("ghost@local.test", "NEVER"), ("alice@local.test", "NEVER")]);
    place.queue.release();
    assert_eq!(place.marks("alice"), ["header", "star"]);
    assert_eq!(place.queue.logged("status=bounced"), 2);
    assert_eq!(place.bounces("author"), ["header"], "the Postfix's own report, as NOTIFY asks for");
    assert_eq!(place.home.inbox("author").count(), 1);
}

#[test]
fn a_forged_header_makes_no_open_relay() {
    let test = "a_forged_header_makes_no_open_relay";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    let mixed = ["eve@far.test, alice@local.test", "al@alias.test", "root@[127.0.0.1]", "bob@sub.local.test"];
    place.record(HEADER, &[]);
    place.put(&[enveloped("mixed", &mixed), enveloped("foreign", &["eve@far.test", "author@sender.test"])]);
    place.poll(false);
    let held = place.held();
    assert_eq!(held["mixed"].asked(), [("alice@local.test", "FAILURE"), ("al@alias.test", "FAILURE")]);
    // Nobody of ours: nothing goes to the others, nor back to the sender.
    assert_eq!(held["foreign"].asked(), [("postmaster@local.test", "NEVER")]);
    assert_eq!(held.len(), 2);
    place.queue.release();

    place.record(HEADER, &["relayForeign: true"]);
    place.put(&[enveloped("relayed", &["author@sender.test", "alice@local.test", "al@alias.test"])]);
    place.poll(false);
    let relayed =
        [("author@sender.test", "FAILURE"), ("alice@local.test", "FAILURE"), ("al@alias.test", "FAILURE")];
    assert_eq!(place.held()["relayed"].asked(), relayed);
    place.queue.release();
    assert_eq!(place.marks("author"), ["relayed"]);
    assert_eq!(place.marks("alice"), ["mixed", "mixed", "relayed", "relayed"]);
    assert_eq!(place.marks("postmaster"), ["foreign"]);
    assert_eq!(place.left(), 0);
}

#[test]
fn what_names_nobody_is_the_postmaster_s() {
    let test = "what_names_nobody_is_the_postmaster_s";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    place.record(HEADER, &[]);
    place.put(&[
        addressed("none", "To: alice@local.test\r\n"),
        enveloped("empty", &[""]),
        enveloped("broken", &["alice, <>, @local.test, (nobody)"]),
        enveloped("injected", &["<alice@local.test\0>"]),
    ]);
    place.poll(false);
    let held = place.held();
    assert_eq!(held.len(), 4);
    for (mark, queued) in &held {
        assert_eq!(queued.asked(), [("postmaster@local.test", "NEVER")], "{mark}");
        assert_eq!(queued.sender, "author@sender.test", "{mark}");
    }
    place.queue.release();
    assert_eq!(place.marks("postmaster"), ["broken", "empty", "injected", "none"]);
    assert_eq!((place.left(), place.home.inbox("alice").count()), (0, 0));
}

/// All of the way, from a sender's RCPT at the provider: as reliable as SMTP.
#[test]
fn blind_copies_and_lists_arrive_where_the_provider_kept_the_envelope() {
    let test = "blind_copies_and_lists_arrive_where_the_provider_kept_the_envelope";
    let Some(place) = Place::open(test, "", Options::default()) else { return };
    // The recipe for Postfix of docs/unified-accounts.md, by `lmtp` with `flags=O`.
    let settings = format!(
        "default_transport = traced:inet:127.0.0.1:{}\ntraced_destination_recipient_limit = 1\n\
         virtual_alias_domains = local.test, alias.test\n\
         virtual_alias_maps = inline:{{ {{ @local.test = {NAME}@isp.test }}, {{ @alias.test = {NAME}@isp.test }} }}\n",
        place.provider.lmtp
    );
    let Some(isp) = Postfix::start_with(test, place.provider.lmtp, &settings) else { return };
    place.record("X-Original-To", &[]);
    for (mark, from, to) in [
        ("blind", "author@sender.test", &["alice@local.test", "bob@local.test"][..]),
        ("list", "list-bounces+carol=local.test@lists.test", &["carol@local.test"]),
        ("alias", "author@sender.test", &["al@alias.test"]),
        ("unknown", "author@sender.test", &["zoe@local.test"]),
    ] {
        let text = mail(mark, "", "From: author@sender.test\r\nTo: all@lists.test\r\n");
        for to in to {
            let reply = Raw::connect(isp.smtp).deliver("EHLO x", from, to, &text);
            assert!(reply.starts_with("250"), "{reply}");
        }
    }
    isp.settle();
    assert_eq!(place.left(), 5);
    place.poll(true);
    place.queue.release();
    assert_eq!(place.marks("alice"), ["alias", "blind"]);
    assert_eq!(place.marks("bob"), ["blind"]);
    assert_eq!(place.marks("carol"), ["list"]);
    let list = &place.home.inbox("carol").read()[0];
    assert_eq!(list.headers("Return-Path"), ["<list-bounces+carol=local.test@lists.test>"]);
    assert_eq!(list.headers("X-Original-To"), [""; 0]);
    let told = place.home.inbox("author").read();
    assert_eq!(told.len(), 1);
    assert_eq!(returned_mark(&told[0].text()), "unknown");
    assert_eq!((place.left(), place.home.inbox("postmaster").count()), (0, 0));
}
