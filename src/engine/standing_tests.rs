//! What becomes of recipients, verdict by verdict, and the laws that hold
//! whatever destinations say.

use std::collections::HashMap;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::domain::ledger::MOST_OWED;
use crate::domain::work::{Destination, Endpoint, LocalDomains, MailHost, MaildirPath, Timeouts, TlsPolicy};
use crate::engine::ports::Route;

const NOW: i64 = 1_795_000_000;

/// Domains `a.test` (the Main Domain), `b.test` and `c.test`, each with a
/// destination of its own.
struct World {
    unified: Unified,
    lanes: Lanes,
    away: BTreeMap<usize, PollError>,
    keys: Ledger,
}

fn host(name: &str) -> MailHost {
    MailHost {
        endpoint: Endpoint::Tcp(name.into(), 25),
        ehlo_name: None,
        tls: TlsPolicy::default(),
        auth: None,
        detail_separator: "+".into(),
        null_sender_without_dsn: true,
    }
}

fn world(special: Special, vias: [Via; 3]) -> World {
    let destination = |domain: &str, via: Via| {
        let mut to = Destination { domain: domain.into(), ..Destination::default() };
        match via {
            Via::Smtp => to.smtp = Some(host(domain)),
            Via::Lmtp => to.lmtp = Some(host(domain)),
            Via::Maildir => to.maildir = Some(MaildirPath(format!("/{domain}/{{local}}").into())),
        }
        Arc::new(to)
    };
    let names = ["a.test", "b.test", "c.test"];
    let destinations: Vec<_> = names.iter().zip(vias).map(|(name, via)| destination(name, via)).collect();
    let unified = Unified {
        special,
        relay_foreign: false,
        deduplicate: true,
        domains: names
            .iter()
            .zip(&destinations)
            .map(|(name, destination)| LocalDomains {
                names: vec![(*name).into()],
                owners: Vec::new(),
                destination: Arc::clone(destination),
            })
            .collect(),
        postmaster: mailbox("postmaster@a.test"),
    };
    let main = Route {
        destination: Arc::clone(&destinations[0]),
        via: vias[0],
        mailbox: None,
        unified: true,
        timeouts: Timeouts::default(),
    };
    let lanes = Lanes::of(main, Some(&unified));
    World { unified, lanes, away: BTreeMap::new(), keys: Ledger::new([7; 16]) }
}

fn header() -> World {
    world(Special::Header("X-Real-To".into()), [Via::Smtp; 3])
}

fn addressees() -> World {
    world(Special::Addressees, [Via::Smtp; 3])
}

impl World {
    fn desk(&self) -> Desk<'_> {
        Desk { unified: &self.unified, lanes: &self.lanes, away: &self.away, keys: &self.keys }
    }

    fn lose(&mut self, lane: usize) {
        let scope = super::super::report::Scope::Local;
        let code = crate::domain::code::Code::DestinationUnavailable;
        self.away.insert(lane, PollError { code, message: "away".into(), scope });
    }

    fn hash(&self, address: &str) -> u64 {
        self.keys.recipient(&mailbox(address))
    }

    /// A turn: who is asked for, and what is next after these replies.
    fn turn(&self, standing: &mut Standing, to: &[&str], replies: &[&str]) -> (Vec<String>, Next) {
        let aim = standing.address(&self.desk(), Some(&found(to)), false);
        let Aim::Recipients(lane, sent) = aim else { panic!("{aim:?}") };
        let asked = sent.iter().map(|to| to.address.to_string()).collect();
        standing.hear(&self.desk(), lane, sent, replies.iter().map(|reply| verdict(reply)).collect());
        (asked, standing.next(&self.unified.special))
    }
}

fn mailbox(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn found(to: &[&str]) -> Addressees {
    Addressees { found: to.iter().map(|to| mailbox(to)).collect(), fields: 1, unusable: 0, more: false }
}

/// `250`, or a code, the command that it answers, and a text.
fn verdict(reply: &str) -> Verdict {
    let mut words = reply.splitn(3, ' ');
    let code: u16 = words.next().unwrap().parse().unwrap();
    let at = match words.next() {
        None | Some("RCPT") => "RCPT",
        Some("MAIL") => "MAIL",
        Some("DATA") => "DATA",
        Some(".") => ".",
        other => panic!("{other:?}"),
    };
    let text = Bytes::copy_from_slice(words.next().unwrap_or_default().as_bytes());
    match code / 100 {
        2 => Verdict::Accepted,
        4 => Verdict::Deferred(Refusal { code, text, at }),
        5 => Verdict::Refused(Refusal { code, text, at }),
        _ => Verdict::Unknown { message: "lost".into() },
    }
}

fn owed(state: Option<State>) -> (u16, i64, Vec<u64>, bool) {
    match state {
        Some(State::Owed { attempts, next_try, to, reached, .. }) => {
            (attempts, next_try - NOW, to.to_vec(), reached)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_addresses_of_our_domains_count_unless_foreign_ones_are_relayed() {
    let to = ["x@elsewhere.test", "al@A.Test", "bo@b.test", "al@a.test"];
    let mut world = header();
    let aim = Standing::default().address(&world.desk(), Some(&found(&to)), false);
    let Aim::Recipients(0, sent) = aim else { panic!("{aim:?}") };
    assert_eq!(sent.iter().map(|to| to.address.as_str()).collect::<Vec<_>>(), ["al@A.Test"]);

    world.unified.relay_foreign = true;
    let aim = Standing::default().address(&world.desk(), Some(&found(&to)), false);
    let Aim::Recipients(0, sent) = aim else { panic!("{aim:?}") };
    assert_eq!(sent.len(), 2, "the Main Domain's queue takes foreign ones");

    // With `*` anybody could write anything there.
    world.unified.special = Special::Addressees;
    let aim = Standing::default().address(&world.desk(), Some(&found(&to[..1])), false);
    assert!(matches!(aim, Aim::Postmaster(_)), "{aim:?}");

    // And without a queue they are refused.
    let mut world = self::world(Special::Header("X-Real-To".into()), [Via::Lmtp, Via::Smtp, Via::Smtp]);
    world.unified.relay_foreign = true;
    let mut standing = Standing::default();
    assert_eq!(standing.address(&world.desk(), Some(&found(&to[..1])), false), Aim::Nobody);
    assert_eq!(standing.next(&world.unified.special), Next::Notify);
    assert_eq!(standing.refused()[0].address.as_str(), to[0]);
}

/// Postfix makes `evil@elsewhere.test` of each of these, and sends the mail
/// there for us, whom it trusts.
#[test]
fn addresses_of_ours_that_lead_elsewhere_do_not_count_unless_foreign_ones_do() {
    let routed =
        ["evil%elsewhere.test@a.test", "elsewhere.test!evil@a.test", "\"evil@elsewhere.test\"@a.test"];
    for mut world in [header(), addressees()] {
        let aim = Standing::default().address(&world.desk(), Some(&found(&routed)), false);
        assert!(matches!(aim, Aim::Postmaster(_)), "{aim:?}");
        let to = [&routed[..], &["al@a.test"]].concat();
        let mut standing = Standing::default();
        let (asked, next) = world.turn(&mut standing, &to, &["250"]);
        assert_eq!((asked, next), (vec!["al@a.test".to_owned()], Next::Settle));
        world.unified.relay_foreign = true;
        let aim = Standing::default().address(&world.desk(), Some(&found(&routed)), false);
        assert!(matches!(&aim, Aim::Recipients(0, sent) if sent.len() == 3), "{aim:?}");
    }
}

/// With the alias `z.test` of `a.test`.
fn with_alias(mut world: World) -> World {
    let place = &mut world.unified.domains[0];
    (place.names, place.owners) = (vec!["a.test".into(), "z.test".into()], vec![0, 0]);
    world
}

#[test]
fn an_account_gets_one_message_by_the_first_of_its_addresses() {
    for world in [with_alias(header()), with_alias(addressees())] {
        let to =
            ["Al@Z.test", "al@a.test", "AL@z.test", "bo@a.test", "al+tag@a.test", "al@b.test", "bo@z.test"];
        let mut standing = Standing::default();
        let (asked, next) = world.turn(&mut standing, &to, &["250", "450", "250"]);
        assert_eq!(
            (asked, next),
            (vec!["Al@Z.test".into(), "bo@a.test".into(), "al+tag@a.test".into()], Next::Again)
        );
        let (asked, next) = world.turn(&mut standing, &to, &["250"]);
        assert_eq!((asked, next), (vec!["al@b.test".to_owned()], Next::Owe));
        // Later, too, and by the address that the ledger names.
        let state = standing.at_last(NOW).unwrap();
        let entry = Entry { state, day: 0, size: 1, message_id: 0, digest: 0 };
        let mut standing = Standing::of(Some(&entry));
        let (asked, next) = world.turn(&mut standing, &to, &["250"]);
        assert_eq!((asked, next), (vec!["bo@a.test".to_owned()], Next::Settle));
    }
    // Of other domains only they know which are one.
    let mut world = header();
    world.unified.relay_foreign = true;
    let aim = Standing::default().address(&world.desk(), Some(&found(&["x@f.test", "X@f.test"])), false);
    assert!(matches!(&aim, Aim::Recipients(0, sent) if sent.len() == 2), "{aim:?}");
}

/// Aliases have no folders of their own.
#[test]
fn a_maildir_is_that_of_the_domains_own_name() {
    let mut world =
        with_alias(world(Special::Header("X-Real-To".into()), [Via::Maildir, Via::Smtp, Via::Smtp]));
    let sent = |world: &World, to: &str| {
        let aim = Standing::default().address(&world.desk(), Some(&found(&[to])), false);
        let Aim::Recipients(lane, sent) = aim else { panic!("{aim:?}") };
        world.desk().recipients(lane, &sent)[0].address.to_string()
    };
    assert_eq!(sent(&world, "Al@z.test"), "Al@a.test");
    world = with_alias(header());
    assert_eq!(sent(&world, "Al@z.test"), "Al@z.test", "a server knows its aliases");
}

#[test]
fn what_is_for_nobody_is_the_postmasters() {
    for world in [header(), addressees()] {
        let no_field = Addressees::default();
        let too_many = Addressees { more: true, ..found(&["al@a.test"]) };
        for (found, cut) in [
            (Some(&found(&["x@elsewhere.test"])), false),
            (Some(&no_field), false),
            (None, false),
            (Some(&too_many), false),
            (Some(&found(&["al@a.test"])), true),
        ] {
            let aim = Standing::default().address(&world.desk(), found, cut);
            assert!(matches!(aim, Aim::Postmaster(_)), "{aim:?}");
        }
    }
}

#[test]
fn each_destination_has_its_turn_and_each_recipient_one() {
    let world = header();
    let to = ["1@b.test", "2@a.test", "3@b.test", "4@c.test", "2@a.test"];
    let mut standing = Standing::default();
    assert_eq!(
        world.turn(&mut standing, &to, &["250", "450"]),
        (vec!["1@b.test".into(), "3@b.test".into()], Next::Again)
    );
    let rest = [world.hash("2@a.test"), world.hash("3@b.test"), world.hash("4@c.test")];
    let mut expected = rest.to_vec();
    expected.sort_unstable();
    assert_eq!(owed(standing.interim(NOW)), (1, 0, expected, true));
    assert_eq!(world.turn(&mut standing, &to, &["250"]), (vec!["2@a.test".into()], Next::Again));
    assert_eq!(world.turn(&mut standing, &to, &["250"]), (vec!["4@c.test".into()], Next::Owe));
    assert_eq!(owed(standing.at_last(NOW)), (1, 0, vec![rest[1]], true));
}

#[test]
fn retries_are_for_the_owed_alone_and_rarer_and_rarer() {
    let world = header();
    let to = ["1@a.test", "2@a.test"];
    let mut standing = Standing::default();
    world.turn(&mut standing, &to, &["250", "450"]);
    let mut waits = Vec::new();
    for _ in 0..10 {
        let state = standing.at_last(NOW).unwrap();
        let (attempts, wait, hashes, reached) = owed(Some(state.clone()));
        assert_eq!((hashes, reached), (vec![world.hash("2@a.test")], true));
        waits.push((attempts, wait));
        standing = Standing::of(Some(&Entry { state, day: 0, size: 1, message_id: 0, digest: 0 }));
        assert_eq!(world.turn(&mut standing, &to, &["450"]), (vec!["2@a.test".into()], Next::Owe));
    }
    let waits: Vec<_> = waits.iter().map(|(attempts, wait)| (*attempts, *wait / 60)).collect();
    let expected = [0, 15, 30, 60, 120, 240, 480, 960, 1440, 1440];
    assert_eq!(waits, (1..11).zip(expected).collect::<Vec<_>>());
    standing = Standing::of(Some(&Entry {
        state: standing.at_last(NOW).unwrap(),
        day: 0,
        size: 1,
        message_id: 0,
        digest: 0,
    }));
    assert_eq!(world.turn(&mut standing, &to, &["250"]).1, Next::Settle);
    assert_eq!(standing.at_last(NOW), None);
}

#[test]
fn a_destination_that_is_away_holds_up_only_its_own() {
    let mut world = header();
    world.lose(1);
    let to = ["1@b.test", "2@a.test"];
    let mut standing = Standing::default();
    assert_eq!(world.turn(&mut standing, &to, &["250"]), (vec!["2@a.test".into()], Next::Owe));
    // It was not tried: the next poll does, and no attempt is counted.
    assert_eq!(owed(standing.at_last(NOW)), (1, 0, vec![world.hash("1@b.test")], true));

    let mut standing = Standing::default();
    assert_eq!(standing.address(&world.desk(), Some(&found(&to[..1])), false), Aim::Nobody);
    assert_eq!(standing.next(&world.unified.special), Next::Wait, "nothing is settled: it stays as it was");
    assert_eq!(standing.at_last(NOW), None);

    // Lost between two turns.
    world.away.clear();
    let mut standing = Standing::default();
    assert_eq!(world.turn(&mut standing, &["2@a.test", "1@b.test"], &["250"]).1, Next::Again);
    world.lose(1);
    assert!(standing.is_stuck(|lane| world.away.contains_key(&lane)));
    standing.put_off(|lane| world.away.contains_key(&lane));
    assert_eq!(standing.next(&world.unified.special), Next::Owe);
}

#[test]
fn a_header_s_refused_ones_are_told_once_all_were_tried() {
    let world = header();
    let to = ["1@a.test", "2@a.test", "3@b.test", "4@a.test", "5@a.test"];
    let mut standing = Standing::default();
    let replies = ["250", "550 RCPT 5.1.1 unknown", "552 . 5.2.2 full", "450 RCPT"];
    assert_eq!(world.turn(&mut standing, &to, &replies).1, Next::Again);
    assert_eq!(world.turn(&mut standing, &to, &["553 RCPT"]).1, Next::Notify);
    let refused = standing.refused();
    let told: Vec<_> =
        refused.iter().map(|one| (one.address.as_str(), one.code, one.text.as_str())).collect();
    assert_eq!(
        told,
        [("2@a.test", 550, "5.1.1 unknown"), ("4@a.test", 552, "5.2.2 full"), ("3@b.test", 553, "")]
    );
    assert_eq!(refused[0].by.as_deref(), Some("a.test"));
    assert_eq!(owed(standing.interim(NOW)).2.len(), 4, "until somebody is told they are owed");

    let mut untold = standing.clone();
    untold.leave_untold("later");
    assert_eq!(untold.next(&world.unified.special), Next::Owe);
    assert_eq!(owed(untold.at_last(NOW)).2.len(), 4);

    standing.tell();
    assert_eq!(standing.next(&world.unified.special), Next::Owe);
    assert_eq!(owed(standing.at_last(NOW)).2, [world.hash("5@a.test")]);
}

#[test]
fn when_all_were_refused_the_sender_is_told_and_the_message_is_done() {
    let world = header();
    let mut standing = Standing::default();
    assert_eq!(world.turn(&mut standing, &["1@a.test"], &["550"]).1, Next::Notify);
    assert_eq!(standing.interim(NOW), None, "nothing is settled");
    standing.tell();
    assert_eq!(standing.next(&world.unified.special), Next::Settle);
    assert!(standing.is_bounced());
}

#[test]
fn with_a_star_unknown_ones_are_passed_over() {
    let world = addressees();
    let to = ["1@a.test", "2@a.test"];
    let next = |replies: &[&str]| world.turn(&mut Standing::default(), &to, replies).1;
    assert_eq!(next(&["250", "550"]), Next::Settle);
    assert_eq!(next(&["550", "550"]), Next::Postmaster);
    assert_eq!(next(&["550", "450"]), Next::Owe);
    assert_eq!(next(&["450", "450"]), Next::Wait);
    // An account that exists is not passed over: it is full, or dislikes what
    // others took.
    for reply in ["554 .", "552 . 5.2.2 full", "552 RCPT 5.2.2 full", "550 RCPT 5.2.1 closed"] {
        let mut standing = Standing::default();
        assert_eq!(world.turn(&mut standing, &to, &["250", reply]).1, Next::Owe, "{reply}");
        assert_eq!(owed(standing.at_last(NOW)), (1, 0, vec![world.hash("2@a.test")], true), "{reply}");
        standing.discard_unwilling();
        assert_eq!(standing.next(&world.unified.special), Next::Settle, "onReject: Discard");
    }
    // A word on the content, and nobody has it: as for any other record.
    assert!(matches!(next(&["554 .", "554 ."]), Next::Reject(_, true)));
    assert!(matches!(next(&["550", "554 ."]), Next::Reject(_, true)));
    assert!(matches!(next(&["552 MAIL", "552 MAIL"]), Next::Reject(_, true)));
    assert_eq!(next(&["450", "554 ."]), Next::Owe);
}

#[test]
fn a_refused_sender_is_not_the_recipients_fault() {
    for world in [header(), addressees()] {
        let to = ["1@a.test", "2@b.test"];
        for at in ["MAIL", "DATA"] {
            let refused = format!("550 {at}");
            let mut standing = Standing::default();
            assert_eq!(world.turn(&mut standing, &to, &[&refused]).1, Next::Again);
            let mut reached = standing.clone();
            assert!(matches!(world.turn(&mut standing, &to, &[&refused]).1, Next::Reject(_, false)));
            assert_eq!(world.turn(&mut reached, &to, &["250"]).1, Next::Owe);
            assert_eq!(owed(reached.at_last(NOW)).2, [world.hash("1@a.test")]);
        }
    }
}

#[test]
fn a_lost_answer_is_uncertain_only_while_nothing_is_settled() {
    let world = header();
    let mut standing = Standing::default();
    let aim = standing.address(&world.desk(), Some(&found(&["1@a.test"])), false);
    let Aim::Recipients(_, sent) = aim else { panic!("{aim:?}") };
    standing.doubt(&sent, &"lost".into());
    assert_eq!(standing.next(&world.unified.special), Next::Uncertain("lost".into()));
    let mut standing = Standing::default();
    assert_eq!(world.turn(&mut standing, &["1@a.test", "2@a.test"], &["250", "999"]).1, Next::Owe);
    assert_eq!(owed(standing.at_last(NOW)), (1, 0, vec![world.hash("2@a.test")], true));
}

// RFC 5321, section 4.5.3.1.10
#[test]
fn too_many_recipients_at_a_time_are_served_in_several_turns() {
    let world = header();
    let to = ["1@a.test", "2@a.test", "3@a.test"];
    let mut standing = Standing::default();
    let full = "452 RCPT 4.5.3 Error: too many recipients";
    assert_eq!(world.turn(&mut standing, &to, &["250", full, full]).1, Next::Again);
    assert_eq!(world.turn(&mut standing, &to, &["250", full]).0, ["2@a.test", "3@a.test"]);
    assert_eq!(world.turn(&mut standing, &to, &[full]).1, Next::Owe, "one is never too many");
    // RFC 821's code for it; a full mailbox has it as well.
    for full in ["552 RCPT Too many recipients", "552 RCPT 5.5.3 too many", "552 RCPT"] {
        for world in [header(), addressees()] {
            let mut standing = Standing::default();
            assert_eq!(world.turn(&mut standing, &to, &["250", full, full]).1, Next::Again, "{full}");
            assert_eq!(world.turn(&mut standing, &to, &["250", full]).0, ["2@a.test", "3@a.test"]);
            assert_eq!(world.turn(&mut standing, &to, &["250"]).1, Next::Settle);
        }
    }
    // And a Maildir's files are not all open at once.
    let world = self::world(Special::Addressees, [Via::Maildir; 3]);
    let to: Vec<String> = (0..100).map(|at| format!("{at}@a.test")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let mut standing = Standing::default();
    assert_eq!(world.turn(&mut standing, &to, &["250"; 64]).1, Next::Again);
    assert_eq!(world.turn(&mut standing, &to, &["250"; 36]).1, Next::Settle);
}

#[test]
fn a_connection_that_ends_amid_the_recipients_has_asked_for_some_of_them() {
    let cut = "421 RCPT 4.4.2";
    let to: Vec<String> = (0..40).map(|at| format!("{at}@a.test")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    for world in [header(), addressees()] {
        let mut standing = Standing::default();
        let mut replies = vec!["550"; 20];
        replies.extend([cut; 20]);
        assert_eq!(world.turn(&mut standing, &to, &replies).1, Next::Again);
        assert_eq!(world.turn(&mut standing, &to, &replies[19..39]).0, to[20..]);
        let (asked, _) = world.turn(&mut standing, &to, &["250"; 19]);
        assert_eq!(asked, to[21..]);
        // Not for ever in one poll, and not where nobody at all was heard of.
        let mut standing = Standing::default();
        for _ in 1..MOST_CUT_OFF {
            assert_eq!(world.turn(&mut standing, &to, &[&["550"], &[cut; 39][..]].concat()).1, Next::Again);
        }
        world.turn(&mut standing, &to, &[&["550"], &[cut; 39][..]].concat());
        assert!(standing.deferred && !standing.later.is_empty());
        let mut standing = Standing::default();
        assert_eq!(world.turn(&mut standing, &to, &[cut; 40]).1, Next::Wait);
    }
}

#[test]
fn the_sender_is_told_once_where_others_may_be_refused_yet() {
    let world = header();
    let to = ["1@a.test", "2@a.test"];
    let mut standing = Standing::default();
    assert_eq!(world.turn(&mut standing, &to, &["550", "450"]).1, Next::Notify);
    assert!(standing.holds_back() && standing.is_pending());
    // Not for ever.
    standing.attempts = MOST_HELD;
    assert!(!standing.holds_back());
    // Nor for a destination that is away.
    let mut standing = Standing::default();
    assert_eq!(world.turn(&mut standing, &["1@a.test", "2@b.test"], &["550"]).1, Next::Again);
    standing.put_off(|lane| lane == 1);
    assert_eq!(standing.next(&world.unified.special), Next::Notify);
    assert!(!standing.holds_back() && standing.is_pending());
}

#[test]
fn who_is_owed_and_gone_from_the_header_is_the_postmasters() {
    let world = header();
    let mut first = Standing::default();
    world.turn(&mut first, &["1@a.test", "2@a.test"], &["250", "450"]);
    let entry = Entry { state: first.at_last(NOW).unwrap(), day: 0, size: 1, message_id: 0, digest: 0 };
    let mut standing = Standing::of(Some(&entry));
    let aim = standing.address(&world.desk(), Some(&found(&["1@a.test", "3@a.test"])), false);
    assert!(matches!(aim, Aim::Postmaster(_)), "{aim:?}");
    assert_eq!(owed(standing.interim(NOW)).2, [world.hash("2@a.test")], "until he has it");
    let mut kept = standing.clone();
    kept.keep_strays("later");
    assert_eq!(kept.next(&world.unified.special), Next::Owe);
    assert_eq!(owed(kept.at_last(NOW)).2, [world.hash("2@a.test")]);
    standing.give_strays_up();
    assert_eq!(standing.next(&world.unified.special), Next::Settle);

    // The others get theirs first.
    let mut first = Standing::default();
    world.turn(&mut first, &["1@a.test", "2@a.test", "3@a.test"], &["250", "450", "450"]);
    let entry = Entry { state: first.at_last(NOW).unwrap(), day: 0, size: 1, message_id: 0, digest: 0 };
    let mut standing = Standing::of(Some(&entry));
    let (asked, next) = world.turn(&mut standing, &["3@a.test"], &["250"]);
    assert_eq!((asked, next), (vec!["3@a.test".into()], Next::Postmaster));
    assert_eq!(owed(standing.interim(NOW)).2, [world.hash("2@a.test")]);
}

/// What a destination says of one recipient at one attempt.
const REPLIES: [&str; 9] = [
    "250",
    "450",
    "550",
    "554 .",
    "550 MAIL",
    "999",
    "452 RCPT 4.5.3 too many recipients",
    "552 RCPT too many recipients",
    "421 RCPT",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Polls of one message until it is done with: nobody is sent it after he
    /// has accepted it, and at the end everybody has it, was refused for good,
    /// or is the postmaster's.
    #[test]
    fn nobody_gets_it_twice_and_nobody_is_forgotten(
        star in any::<bool>(),
        to in prop::collection::vec((0usize..12, 0usize..3), 1..20),
        replies in prop::collection::vec(0usize..REPLIES.len(), 400),
        away in prop::collection::vec(prop::option::weighted(0.3, 0usize..3), 30),
        tells in prop::collection::vec(any::<bool>(), 60),
    ) {
        let mut world = if star { addressees() } else { header() };
        let to: Vec<String> = to.iter().map(|(at, domain)| format!("{at}@{}.test", ["a", "b", "c"][*domain])).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        let (mut replies, mut tells) = (replies.into_iter(), tells.into_iter());
        let mut last: HashMap<u64, &str> = HashMap::new();
        let mut told: HashSet<u64> = HashSet::new();
        let mut prior: Option<Entry> = None;
        let mut over = false;
        for lost in away {
            world.away.clear();
            if let Some(lane) = lost {
                world.lose(lane);
            }
            let mut standing = Standing::of(prior.as_ref());
            let mut turns = 0;
            let mut next = Next::Again;
            while next == Next::Again {
                turns += 1;
                prop_assert!(turns < 60, "it ends");
                let aim = standing.address(&world.desk(), Some(&found(&to)), false);
                let Aim::Recipients(lane, sent) = aim else {
                    next = standing.next(&world.unified.special);
                    prop_assert_ne!(&next, &Next::Again);
                    break;
                };
                let mut verdicts = Vec::new();
                let hashes: Vec<u64> = sent.iter().map(|to| to.hash).collect();
                // MAIL is refused for all.
                let mut words: Vec<&str> = hashes.iter().map(|_| REPLIES[replies.next().unwrap_or(0)]).collect();
                if words.contains(&"550 MAIL") {
                    words.fill("550 MAIL");
                }
                for (hash, word) in hashes.iter().zip(words) {
                    prop_assert_ne!(last.get(hash), Some(&"250"), "sent again");
                    prop_assert!(!told.contains(hash), "told that it was refused for good, and sent again");
                    last.insert(*hash, word);
                    verdicts.push(verdict(word));
                }
                standing.hear(&world.desk(), lane, sent, verdicts);
                let lost = |lane| world.away.contains_key(&lane);
                standing.put_off(lost);
                next = standing.next(&world.unified.special);
                if next == Next::Notify {
                    if tells.next().unwrap_or(true) {
                        told.extend(standing.refused.iter().map(|(hash, _)| *hash));
                        standing.tell();
                    } else {
                        standing.leave_untold("");
                    }
                    next = standing.next(&world.unified.special);
                }
                // A process that dies here goes on from there.
                if let Some(State::Owed { to, .. }) = standing.interim(NOW) {
                    prop_assert!(!to.is_empty() && to.len() <= MOST_OWED);
                    prop_assert!(to.iter().all(|hash| last.get(hash) != Some(&"250") && !told.contains(hash)));
                }
            }
            let entry = |state| Entry { state, day: 0, size: 1, message_id: 0, digest: 0 };
            match next {
                Next::Owe => prior = standing.at_last(NOW).map(entry),
                Next::Wait | Next::Uncertain(_) => prop_assert!(prior.is_none(), "what is settled stays so"),
                Next::Reject(..) => {
                    prop_assert!(!last.values().any(|word| *word == "250"));
                    prior = None;
                }
                Next::Postmaster => {
                    prop_assert!(star && !last.values().any(|word| *word == "250"));
                    over = true;
                }
                Next::Settle => over = true,
                Next::Again | Next::Notify => prop_assert!(false, "{next:?}"),
            }
            if over {
                break;
            }
        }
        if over {
            for address in &to {
                let word = last.get(&world.hash(address)).copied();
                let done = match word {
                    Some("250") => true,
                    Some("550") => star || told.contains(&world.hash(address)),
                    Some("554 ." | "552 RCPT too many recipients") => told.contains(&world.hash(address)),
                    _ => false,
                };
                prop_assert!(done, "{address} heard {word:?}");
            }
        }
    }
}
