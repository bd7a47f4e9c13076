//! "`special: "*"`: To, Cc, Bcc addresses (Resent- ones first when present);
//! only those in local domains whose account the destination accepts at RCPT
//! time; others ignored silently; `NOTIFY=NEVER`; none accepted → the
//! postmaster of the Main Domain."

use super::*;

#[test]
fn those_it_is_addressed_to_and_the_destination_knows_get_it() {
    let test = "those_it_is_addressed_to_and_the_destination_knows_get_it";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    place.record("\"*\"", &[]);
    let names = "To: Alice <alice@local.test>, eve@far.test, zoe@local.test\r\n\
        Cc: friends: bob+lists@local.test, \"Z. Y.\" <zoe@alias.test>;\r\n\
        Bcc: carol@local.test, team@LOCAL.TEST\r\n";
    let resent = "Resent-To: bob@local.test\r\nResent-Cc: eve@far.test\r\nTo: alice@local.test\r\nCc: carol@local.test\r\n";
    let resent_blind = "Resent-Bcc: carol@local.test\r\nTo: alice@local.test\r\n";
    place.put(&[
        addressed("all", names),
        addressed("alias", "To: al@alias.test\r\n"),
        addressed("resent", resent),
        addressed("resent-blind", resent_blind),
    ]);
    // A header of the provider's that the record does not name is none.
    place.put(&[mail("other", &format!("{HEADER}: carol@local.test\r\n"), "To: alice@local.test\r\n")]);
    let run = place.poll(false);
    let held = place.held();
    let never = |to: &[&'static str]| to.iter().map(|to| (*to, "NEVER")).collect::<Vec<_>>();
    let asked = |mark: &str| {
        let mut asked = held[mark].asked();
        // Both people of the team.
        asked.dedup();
        asked
    };
    assert_eq!(
        asked("all"),
        never(&["alice@local.test", "bob+lists@local.test", "carol@local.test", "team@LOCAL.TEST"])
    );
    assert_eq!(asked("alias"), never(&["al@alias.test"]));
    assert_eq!(asked("resent"), never(&["bob@local.test"]));
    assert_eq!(asked("resent-blind"), never(&["carol@local.test"]));
    assert_eq!(asked("other"), never(&["alice@local.test"]));
    for (mark, queued) in &held {
        let sender = if mark == "other" { "" } else { "author@sender.test" };
        assert_eq!((queued.sender.as_str(), queued.ret), (sender, None), "{mark}");
        assert_eq!(queued.message.headers("Bcc"), [""; 0], "it would tell the blind to all");
        assert_eq!(queued.message.headers("Resent-Bcc"), [""; 0]);
    }
    assert!(!run.text().contains("zoe"), "in silence:\n{}", run.text());
    place.queue.release();
    assert_eq!(place.marks("alice"), ["alias", "all", "all", "other"], "hers, and the team's");
    assert_eq!(place.marks("bob"), ["all", "resent"], "the team's");
    assert_eq!(marks(&place.home.mailbox("bob", Some("lists")).read()), ["all"]);
    assert_eq!(place.marks("carol"), ["all", "resent-blind"]);
    let told: usize = ["author", "postmaster"].iter().map(|one| place.home.inbox(one).count()).sum();
    assert_eq!((told, place.left()), (0, 0));
    assert_eq!(place.provider.retrieved(), 5);
}

#[test]
fn what_nobody_takes_is_the_postmaster_s() {
    let test = "what_nobody_takes_is_the_postmaster_s";
    let Some(place) = Place::start(test, "", Options::default()) else { return };
    place.record("\"*\"", &[]);
    place.put(&[
        addressed("unknown", "To: zoe@local.test, yves@alias.test\r\n"),
        addressed("foreign", "To: eve@far.test\r\n"),
        addressed("nobody", ""),
    ]);
    place.poll(false);
    let held = place.held();
    assert_eq!(held.len(), 3);
    for (mark, queued) in &held {
        assert_eq!(queued.asked(), [("postmaster@local.test", "NEVER")], "{mark}");
        assert_eq!(queued.sender, "author@sender.test", "{mark}");
    }
    place.queue.release();
    assert_eq!(place.marks("postmaster"), ["foreign", "nobody", "unknown"]);
    assert_eq!((place.left(), place.home.inbox("author").count()), (0, 0));
    // Retrieved again only where the destination had to be asked first.
    assert_eq!(place.provider.retrieved(), 4);
}
