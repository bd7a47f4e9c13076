//! "Only here copies are recognised (with a special header each copy has its
//! own recipient): a message whose Message-ID is known is first retrieved for
//! its digest (without the trace headers that differ between copies: Received,
//! Return-Path, Delivered-To, X-Original-To, X-UID and the like), and
//! delivered only if it differs. Digests live 30 days, whatever UIDL lists;
//! `spec.deduplicate: false` turns it off."

use super::*;

const TO: &str = "To: alice@local.test, bob@local.test\r\n";

/// A copy as a provider stores one for each recipient.
fn copy(mark: &str, of: &str, octets: usize) -> Vec<u8> {
    let traces = format!(
        "Return-Path: <author+{of}@sender.test>\r\nDelivered-To: {of}@local.test\r\nX-Original-To: {of}@local.test\r\n\
         Received: from a.test by b.test for <{of}@local.test>; Mon, 2 Nov 2026 10:00:01 +0000\r\nX-UID: {}\r\n",
        of.len()
    );
    sized(mark, &traces, TO, octets)
}

#[test]
fn one_of_a_message_s_copies_is_delivered() {
    let test = "one_of_a_message_s_copies_is_delivered";
    let Some(place) = Place::open(test, "", Options::default()) else { return };
    place.record("\"*\"", &[]);
    // Small ones are held until their digests are known, large ones are
    // streamed, and so retrieved once more where their Message-ID is known.
    for (mark, octets, retrieved) in [("small", 0, 4), ("large", 300_000, 5)] {
        let before = place.provider.retrieved();
        place.put(&[copy(mark, "alice", octets), copy(mark, "bob", octets), copy(mark, "carol", octets)]);
        // One that differs, with the same Message-ID: a copy it is not.
        let mut other = copy(mark, "alice", octets);
        other.extend_from_slice(b"-- \r\nThis is another one.\r\n");
        place.put(&[other]);
        place.poll(false);
        place.queue.release();
        assert_eq!(place.marks("alice").iter().filter(|one| *one == mark).count(), 2, "{mark}");
        assert_eq!(place.marks("bob").iter().filter(|one| *one == mark).count(), 2, "{mark}");
        assert_eq!(place.left(), 0, "copies are done with, too");
        assert_eq!(place.provider.retrieved() - before, retrieved, "{mark}");
    }
    assert_eq!(place.home.inbox("postmaster").count() + place.home.inbox("author").count(), 0);
}

#[test]
fn copies_are_known_for_thirty_days_by_any_process() {
    let test = "copies_are_known_for_thirty_days_by_any_process";
    let Some(place) = Place::open(test, "", Options::default()) else { return };
    place.record("\"*\"", &[]);
    place.put(&[copy("m", "alice", 0)]);
    place.poll(false);
    assert_eq!(place.left(), 0);
    // The listings that follow do not have it; it is not forgotten for that.
    for _ in 0..4 {
        place.poll(false);
    }
    let ledger = place.site.ledger(NAME);
    let aged = |days: i64| {
        let day =
            jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date() - jiff::Span::new().days(days);
        let text = std::fs::read_to_string(&ledger).unwrap();
        let line = text.lines().rfind(|line| line.starts_with("copy ")).expect("it is remembered");
        let (kept, _) = line.split_once(" day=").unwrap();
        std::fs::write(&ledger, text.replace(line, &format!("{kept} day={day}"))).unwrap();
    };
    let mut delivered = 1;
    for (days, again) in [(0, false), (29, false), (31, true), (0, false)] {
        aged(days);
        place.put(&[copy("m", "bob", 0)]);
        place.poll(false);
        place.queue.release();
        delivered += usize::from(again);
        assert_eq!((place.home.inbox("alice").count(), place.left()), (delivered, 0), "after {days} days");
    }
    // Where copies are mail like any other.
    place.record("\"*\"", &["deduplicate: false"]);
    place.put(&[copy("m", "alice", 0), copy("m", "bob", 0)]);
    place.poll(false);
    place.queue.release();
    assert_eq!((place.home.inbox("alice").count(), place.left()), (delivered + 2, 0));
}

#[test]
fn with_a_header_each_copy_goes_to_its_own_recipient() {
    let test = "with_a_header_each_copy_goes_to_its_own_recipient";
    let Some(place) = Place::open(test, "", Options::default()) else { return };
    place.record("X-Original-To", &[]);
    place.put(&[copy("m", "alice", 0), copy("m", "bob", 0), copy("m", "bob", 0)]);
    place.poll(false);
    place.queue.release();
    assert_eq!((place.marks("alice"), place.marks("bob")), (vec!["m".into()], vec!["m".into(), "m".into()]));
    assert_eq!((place.left(), place.home.inbox("carol").count()), (0, 0));
}
