//! Messages of unified accounts.

use super::*;
use crate::domain::ledger::Ledger;
use crate::domain::work::Special;
use crate::message::{MOST_ADDRESSEES, Unify};

fn header(name: &str) -> Special {
    Special::Header(name.into())
}

const STAR: Special = Special::Addressees;

fn digest() -> Digest {
    Ledger::new([3; 16]).digest()
}

fn composer(special: &Special) -> Composer {
    let unify = Unify { special: special.clone(), copies: Some(digest()) };
    Composer::unified(trace(), NOW, unify)
}

/// What is known of a message, and the message as it is sent without our
/// trace header; the same wherever it is cut.
fn unified(special: &Special, message: &[u8]) -> (Composed, String) {
    let whole = unified_cut(special, message, usize::MAX);
    for size in [1, 2, 3, 7, 100] {
        let (composed, out) = unified_cut(special, message, size);
        assert_eq!(out, whole.1, "cut every {size}");
        assert_eq!(composed.addressees, whole.0.addressees);
        assert_eq!(composed.header, whole.0.header);
        assert_eq!(composed.copy.unwrap().finish(), whole.0.copy.as_ref().unwrap().finish());
        assert_eq!((composed.growth, composed.utf8), (whole.0.growth, whole.0.utf8));
    }
    let (composed, out) = whole;
    let added = added().len();
    assert_eq!(signed(out.len()), signed(message.len()) + composed.growth);
    (composed, String::from_utf8_lossy(&out[added..]).into_owned())
}

fn unified_cut(special: &Special, message: &[u8], size: usize) -> (Composed, Vec<u8>) {
    let (mut composed, out, later) = run(composer(special), message, size);
    composed.copy.as_mut().unwrap().update(&later);
    (composed, out)
}

fn sent(special: &Special, message: &str) -> String {
    unified(special, message.as_bytes()).1
}

fn found(special: &Special, message: &str) -> Vec<String> {
    let addressees = unified(special, message.as_bytes()).0.addressees.unwrap();
    addressees.found.iter().map(ToString::to_string).collect()
}

fn copy(message: &str) -> u64 {
    unified(&STAR, message.as_bytes()).0.copy.unwrap().finish()
}

#[test]
fn a_plain_message_is_looked_at_no_further() {
    let message = b"X-Original-To: a@b\r\nTo: c@d\r\nBcc: e@f\r\n\r\nx\r\n";
    let composed = assert_becomes(message, message);
    assert!(composed.addressees.is_none() && composed.copy.is_none() && composed.header.is_none());
}

#[test]
fn the_special_header_says_whom_it_is_for_and_goes() {
    let message = "X-Real-To: a@b\r\nFrom: x@y\r\nx-real-to :\r\n c@d,\r\n\te@f\r\nX-Real-To-Do: g@h\r\nBcc: i@j\r\n\r\nX-Real-To: k@l\r\n";
    let (composed, out) = unified(&header("X-Real-To"), message.as_bytes());
    assert_eq!(out, "From: x@y\r\nX-Real-To-Do: g@h\r\nBcc: i@j\r\n\r\nX-Real-To: k@l\r\n");
    let addressees = composed.addressees.unwrap();
    assert_eq!(addressees.found.iter().map(Mailbox::as_str).collect::<Vec<_>>(), ["a@b", "c@d", "e@f"]);
    assert_eq!((addressees.fields, addressees.unusable, addressees.more), (2, 0, false));
    assert_eq!(unified(&header("x-real-to"), message.as_bytes()).0.addressees.unwrap(), addressees);
}

#[test]
fn delivered_to_may_be_the_special_header() {
    let message =
        "Return-Path: <s@t>\r\nDelivered-To: a@b\r\nDelivered-To: <alice@example.com>\r\nTo: c@d\r\n\r\n";
    let special = header("Delivered-To");
    let (composed, out) = unified(&special, message.as_bytes());
    assert_eq!(out, "To: c@d\r\n\r\n");
    assert_eq!(composed.sender.0.unwrap().as_str(), "s@t");
    assert_eq!(found(&special, message), ["a@b", "alice@example.com"]);
}

#[test]
fn without_the_special_header_nobody_is_found() {
    let message = "From: x@y\r\nTo: a@b\r\n\r\n";
    let addressees = unified(&header("X-Real-To"), message.as_bytes()).0.addressees.unwrap();
    assert_eq!(addressees, Addressees::default());
}

#[test]
fn star_takes_the_addressees_and_leaves_their_fields() {
    let message = "To: A <a@b>\r\nCc: c@d\r\nFrom: x@y\r\n\r\n";
    assert_eq!(sent(&STAR, message), message);
    assert_eq!(found(&STAR, message), ["a@b", "c@d"]);
}

#[test]
fn blind_recipients_get_the_message_and_nobody_hears_of_them() {
    let message = "Resent-Bcc: r@s\r\nResent-To: t@u\r\nTo: a@b\r\nBcc: c@d,\r\n e@f\r\nBCC : g@h\r\nSubject: x\r\n\r\nBcc: i\r\n";
    assert_eq!(sent(&STAR, message), "Resent-To: t@u\r\nTo: a@b\r\nSubject: x\r\n\r\nBcc: i\r\n");
    assert_eq!(found(&STAR, message), ["r@s", "t@u"]);
    let message = "To: a@b\r\nBcc: c@d\r\nX-Bcc: e@f\r\n\r\n";
    assert_eq!(found(&STAR, message), ["a@b", "c@d"]);
    let shown = unified(&STAR, message.as_bytes()).0.header.unwrap();
    assert_eq!(&shown[..], b"To: a@b\r\nX-Bcc: e@f\r\n");
}

#[test]
fn a_delivered_to_of_a_recipient_goes_and_of_nobody_else() {
    // quirks: "a Delivered-To that Postfix would bounce"
    let message = "Delivered-To: BOB@Example.net\r\nDelivered-To: carl@example.net\r\nDelivered-To: alice@example.com\r\nTo: bob@example.net\r\n\r\n";
    // alice is who the trace is for.
    assert_eq!(sent(&STAR, message), "Delivered-To: carl@example.net\r\nTo: bob@example.net\r\n\r\n");
    let real = header("X-Real-To");
    let message =
        "X-Real-To: JÜRGEN@x.example\r\nDelivered-To: jürgen@X.example\r\nDelivered-To: b@x.example\r\n\r\n";
    assert_eq!(sent(&real, message), "Delivered-To: b@x.example\r\n\r\n");
}

#[test]
fn trace_loops_and_sender_are_as_in_plain_messages() {
    let again =
        [&b"Received: from here\r\nReturn-Path: <s@t>\r\n"[..], &added(), b"To: x@y\r\n\r\n"].concat();
    let (composed, _) = unified(&STAR, &again);
    assert!(composed.own_trace && composed.is_loop());
    assert_eq!((composed.hops, composed.sender.0.unwrap().as_str()), (2, "s@t"));
}

#[test]
fn many_gaps_make_one_piece_here_too() {
    let message = "A: b\r\nX-Real-To: a@b\r\n".repeat(500) + "\r\n..body\r\n";
    let (composed, out) = unified(&header("X-Real-To"), message.as_bytes());
    assert!(composed.pieces.len() <= 3);
    assert_eq!(out, "A: b\r\n".repeat(500) + "\r\n..body\r\n");
    assert_eq!(composed.addressees.unwrap().fields, 500);
}

#[test]
fn a_dot_that_the_server_forgot_to_double_hides_no_field() {
    // Unstuffed, these are Bcc, its next line, and a field with a dot.
    let message = "To: a@b\r\n.Bcc: c@d,\r\n.\te@f\r\n..Bcc: g@h\r\n.Cc: .i@j\r\n\r\n";
    assert_eq!(found(&STAR, message), ["a@b", "c@d", "e@f"], "no local part begins with a dot");
    assert_eq!(sent(&STAR, message), "To: a@b\r\n..Bcc: g@h\r\n.Cc: .i@j\r\n\r\n");
    let shown = unified(&STAR, message.as_bytes()).0.header.unwrap();
    assert_eq!(&shown[..], b"To: a@b\r\n.Bcc: g@h\r\nCc: .i@j\r\n");
    assert_eq!(found(&header(".X"), "..X: a@b\r\n\r\n"), ["a@b"]);
    // Nor does a fold get into our trace header.
    assert_eq!(compose(b".\tx\r\n\r\n").1, [&added()[..], b"\r\n.\tx\r\n\r\n"].concat());
}

#[test]
fn the_header_for_notifications_is_that_which_is_sent() {
    let shown = |special: &Special, message: &str| {
        String::from_utf8(unified(special, message.as_bytes()).0.header.unwrap().to_vec()).unwrap()
    };
    let real = header("X-Real-To");
    assert_eq!(shown(&real, "A: b\r\nC: d\r\n\r\nE: f\r\n"), "A: b\r\nC: d\r\n");
    assert_eq!(
        shown(&real, "From x\r\nReturn-Path: <a@b>\r\nA: b\r\nX-Real-To: a@b\r\nC:\r\n d\r\n\r\nx\r\n"),
        "A: b\r\nC:\r\n d\r\n"
    );
    assert_eq!(shown(&real, "A: b\r\nno field\r\n\r\nx\r\n"), "A: b\r\n");
    assert_eq!(shown(&real, "A: b\r\n"), "A: b\r\n");
    for nothing in
        ["", "\r\n", "\r\nA: b\r\n", "X-Real-To: a@b\r\n\r\nx\r\n", " folded\r\n", "From x\r\n\r\n"]
    {
        assert_eq!(shown(&real, nothing), "", "{nothing:?}");
    }
    let line = "X: 0123456789\r\n";
    let long = line.repeat(5000);
    for message in [format!("{long}\r\nx\r\n"), format!("A: b\r\nX-Real-To: a@b\r\n{long}\r\nx\r\n")] {
        let shown = shown(&real, &message);
        assert!(shown.len() <= 32 * 1024 && shown.len() > 32 * 1024 - line.len() && shown.ends_with(line));
    }
    assert_eq!(shown(&real, &format!("A: b\r\nSubject: {}\r\n\r\n", "x".repeat(40_000))), "A: b\r\n");
    let gaps = format!("{line}X-Real-To: a@b\r\n").repeat(2500) + "\r\n";
    let shown = shown(&real, &gaps);
    assert!(shown.len() <= 32 * 1024 && shown.len() > 32 * 1024 - line.len());
    assert_eq!(shown.replace(line, ""), "");
}

#[test]
fn copies_have_one_digest_though_each_came_its_own_way() {
    let rest = "DKIM-Signature: v=1; b=x\r\nFrom: x@y\r\nTo: a@b, c@d\r\nMessage-ID: <1@y>\r\nSubject: s\r\n\r\nbody\r\n..\r\n";
    let plain = copy(rest);
    for way in [
        "Return-Path: <verp+a@y>\r\n",
        "Received: from a by b for <a@b>; now\r\n",
        "Received: from a\r\n\tby b\r\nReceived: c\r\n",
        "Delivered-To: a@b\r\nX-Original-To: a@b\r\n",
        "Envelope-To: a@b\r\nX-Envelope-To: a@b\r\nDelivery-Date: now\r\n",
        "X-Real-To: a@b\r\nX-Rcpt-To: a@b\r\nX-Delivered-To: a@b\r\nX-Resolved-To: a@b\r\nApparently-To: a@b\r\n",
        "X-UID: 7\r\nX-UIDL: abc\r\nX-IMAP: 1 2\r\nX-IMAPbase: 1 2\r\n",
        "Status: RO\r\nX-Status: A\r\nX-Keywords: a\r\n b\r\nContent-Length: 9\r\nLines: 2\r\n",
        "X-Received: by c\r\nAuthentication-Results: d\r\nX-Authentication-Results: e\r\nReceived-SPF: pass\r\n",
        "ARC-Seal: i=1\r\nARC-Message-Signature: i=1\r\nARC-Authentication-Results: i=1\r\n",
        "x-spam-score: 1\r\nX-Spam-Status: No,\r\n\tscore=1\r\nX-VIRUS-Scanned: yes\r\n",
        "X-Mozilla-Status: 1\r\nX-Mozilla-Status2: 2\r\nX-Mozilla-Keys:\r\n",
        "From a@b Mon Nov 16 2026\r\n",
        ">From a@b Mon Nov 16 2026\r\nReceived: x\r\n",
    ] {
        assert_eq!(copy(&format!("{way}{rest}")), plain, "{way}");
    }
    assert_eq!(copy(&rest.replace("Subject", "Status: O\r\nSubject")), plain, "in the middle");
    assert_eq!(copy(&rest.replace("\r\n\r\n", "\r\nX-UID: 8\r\n\r\n")), plain, "at the end");
}

#[test]
fn different_messages_have_different_digests() {
    let rest = "DKIM-Signature: v=1; b=x\r\nFrom: x@y\r\nTo: a@b, c@d\r\nMessage-ID: <1@y>\r\nSubject: s\r\n\r\nbody\r\n";
    let plain = copy(rest);
    for (old, new) in [
        ("Subject: s", "Subject: t"),
        ("Subject: s\r\n", ""),
        ("body", "Body"),
        ("body\r\n", "body\r\n\r\n"),
        ("body", "Status: O\r\nbody"),
        ("b=x", "b=y"),
        ("a@b", "z@b"),
        ("To: a@b", "To: a@b\r\nBcc: z@b"),
        ("To: a@b", "To: a@b\r\nResent-To: z@b"),
        ("To: a@b", "To: a@b\r\nX-Spam: yes"),
        ("To: a@b", "To: a@b\r\nX-Other: yes"),
        ("To: a@b", "To: a@b\r\nStatuses: yes"),
        ("To: a@b", "To: a@b\r\nList-Id: yes"),
        ("From: x", "From: z"),
        ("<1@y>", "<2@y>"),
    ] {
        let other = rest.replace(old, new);
        assert_ne!(other, rest);
        assert_ne!(copy(&other), plain, "{new}");
    }
    let other_key = Unify { special: STAR, copies: Some(Ledger::new([4; 16]).digest()) };
    let composed = Composer::unified(trace(), NOW, other_key).push(piece(rest.as_bytes(), true)).unwrap();
    assert_ne!(composed.copy.unwrap().finish(), plain, "nobody can foresee a digest");
}

#[test]
fn the_copy_digest_goes_on_with_later_pieces_and_only_where_it_is_wanted() {
    let mut whole = digest();
    whole.update(b"A: b\r\n\r\nbody\r\nmore\r\n");
    let first = piece(b"A: b\r\nStatus: O\r\n\r\nbody\r\n", true);
    let mut copy = composer(&STAR).push(first.clone()).unwrap().copy.unwrap();
    copy.update(b"more\r\n");
    assert_eq!(copy.finish(), whole.finish());
    let unify = Unify { special: STAR, copies: None };
    assert!(Composer::unified(trace(), NOW, unify).push(first).unwrap().copy.is_none());
    assert_eq!(composer(&STAR).finish().copy.unwrap().finish(), digest().finish(), "an empty message");
}

#[test]
fn a_special_header_of_a_megabyte_is_bounded() {
    let list = (0..60_000).fold("a@b".to_owned(), |list, at| format!("{list},\r\n u{at}@x.example"));
    let message = format!("X-Real-To: {list}\r\nFrom: x@y\r\n\r\nbody\r\n");
    for size in [usize::MAX, 65_536, 4_000] {
        let (composed, out) = unified_cut(&header("X-Real-To"), message.as_bytes(), size);
        assert!(composed.cut);
        assert_eq!(out, [&added()[..], message.as_bytes()].concat(), "kept for the postmaster");
    }
    // Many fields, each of them short: those that were seen.
    let message = "X-Real-To: a@b\r\n".repeat(60_000) + "\r\n";
    let (composed, _) = unified_cut(&header("X-Real-To"), message.as_bytes(), 30_000);
    assert!(composed.cut && composed.addressees.unwrap().found.len() == 1);
    let many = (0..2000).fold(String::new(), |all, at| format!("{all}X-Real-To: u{at}@b\r\n"));
    let (composed, out) = unified_cut(&header("X-Real-To"), format!("{many}\r\n").as_bytes(), 30_000);
    let addressees = composed.addressees.unwrap();
    assert!(addressees.more && addressees.found.len() == MOST_ADDRESSEES && addressees.fields == 2000);
    assert_eq!(out, [&added()[..], b"\r\n"].concat());
}

#[test]
fn many_delivered_to_and_many_recipients_take_little_time() {
    let to = (0..1000).fold("To: a@b".to_owned(), |all, at| format!("{all},u{at}@x.example"));
    let message = format!("{}{to}\r\n\r\n", "Delivered-To: nobody@x\r\n".repeat(9_000));
    let began = tokio::time::Instant::now();
    let (composed, _) = unified_cut(&STAR, message.as_bytes(), usize::MAX);
    assert!(!composed.cut && began.elapsed().as_secs() < 4, "{:?}", began.elapsed());
}

proptest! {
    #[test]
    fn any_octets_of_a_unified_account_come_out_the_same(
        lines in proptest::collection::vec(
            prop_oneof![
                "(To|Cc|bcc|Resent-To|Resent-Bcc|X-Real-To|Delivered-To) ?: ?[a-c@.,<>\"() ]{0,20}",
                "(Received|Status|X-Spam-Flag|Resent-From|Resent-Date|Subject): [a-c]{0,5}",
                "[ \t][a-c@,<>:;]{0,10}",
                Just("From x".to_owned()),
                Just(String::new()),
                "\\.{1,2}(Bcc|X-Real-To): [a-c@]{0,5}",
                "\\.{1,2}[ -~ü\0]{1,10}",
                "[a-z ü\0]{0,10}",
            ],
            0..14,
        ),
        size in 1_usize..40,
        star in any::<bool>(),
    ) {
        let message: String = lines.iter().filter(|line| *line != ".").flat_map(|line| [line.as_str(), "\r\n"]).collect();
        let special = if star { STAR } else { header("X-Real-To") };
        let (whole, out) = unified_cut(&special, message.as_bytes(), usize::MAX);
        let (cut, again) = unified_cut(&special, message.as_bytes(), size);
        prop_assert_eq!(&out, &again);
        prop_assert_eq!(signed(out.len()), signed(message.len()) + whole.growth);
        prop_assert_eq!(whole.copy.unwrap().finish(), cut.copy.unwrap().finish());
        prop_assert_eq!(&whole.header, &cut.header);
        let addressees = whole.addressees.unwrap();
        prop_assert_eq!(Some(&addressees), cut.addressees.as_ref());
        for one in &addressees.found {
            prop_assert!(Mailbox::parse(one.as_str()).is_ok());
        }
        // Taken from what is sent, a second reading finds no field to remove,
        // and under a header's name nobody.
        let sent = &out[added().len()..];
        if !sent.starts_with(b"From ") && !sent.starts_with(b" ") && !sent.starts_with(b"\t") {
            let (_, twice) = unified_cut(&special, sent, usize::MAX);
            if !star {
                prop_assert_eq!(&twice[added().len()..], sent);
            }
        }
        let shown = whole.header.unwrap();
        prop_assert!(shown.is_empty() || shown.ends_with(b"\n"));
    }
}
