use proptest::prelude::*;

use super::*;
use crate::domain::envelope::Mailbox;
use crate::message::TraceContext;

mod unified;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn trace() -> Arc<Trace> {
    Arc::new(Trace::new(&TraceContext {
        remote_host: "pop.isp.example".into(),
        remote_address: Some("192.0.2.1".parse().unwrap()),
        host_name: "mx.example.com".into(),
        encrypted: true,
        account: Mailbox::parse("alice@example.com").unwrap(),
        recipients: vec![Mailbox::parse("Alice@example.com").unwrap()],
        key: [7; 16],
    }))
}

/// As the POP3 decoder cuts pieces: anywhere.
fn piece(bytes: &[u8], at_line_start: bool) -> Piece {
    Piece { stuffed: dotted_lines(bytes, at_line_start), bytes: Bytes::copy_from_slice(bytes), at_line_start }
}

fn compose_cut(message: &[u8], size: usize) -> (Composed, Vec<u8>) {
    let (composed, out, _) = run(Composer::new(trace(), NOW), message, size);
    (composed, out)
}

/// What is composed, all that is sent, and what of it came later.
fn run(mut composer: Composer, message: &[u8], size: usize) -> (Composed, Vec<u8>, Vec<u8>) {
    let mut at_line_start = true;
    let mut header: Option<Composed> = None;
    let mut body = Vec::new();
    for chunk in message.chunks(size.max(1)) {
        if header.is_some() {
            body.extend_from_slice(chunk);
        } else {
            header = composer.push(piece(chunk, at_line_start));
        }
        at_line_start = chunk.last() == Some(&b'\n');
    }
    let header = header.unwrap_or_else(|| composer.finish());
    check_pieces(&header);
    let mut out: Vec<u8> = header.pieces.iter().flat_map(|piece| piece.bytes.to_vec()).collect();
    out.extend(&body);
    (header, out, body)
}

fn check_pieces(composed: &Composed) {
    let mut at_line_start = true;
    for piece in &composed.pieces {
        assert_eq!(piece.at_line_start, at_line_start);
        assert_eq!(piece.stuffed, dotted_lines(&piece.bytes, at_line_start));
        at_line_start = piece.bytes.last() == Some(&b'\n');
    }
}

fn compose(message: &[u8]) -> (Composed, Vec<u8>) {
    let whole = compose_cut(message, usize::MAX);
    for size in [1, 2, 3, 7, 100] {
        if message.len() / size > 5000 {
            continue;
        }
        let (composed, out) = compose_cut(message, size);
        assert_eq!(out, whole.1, "cut every {size}");
        assert_eq!(composed.sender, whole.0.sender);
        assert_eq!(composed.message_id, whole.0.message_id);
        assert_eq!((composed.hops, composed.own_trace), (whole.0.hops, whole.0.own_trace));
        assert_eq!((composed.utf8, composed.growth), (whole.0.utf8, whole.0.growth));
    }
    whole
}

fn added() -> Vec<u8> {
    trace().field(NOW).to_vec()
}

/// Asserts that `message` is delivered as the trace header and `rest`.
fn assert_becomes(message: &[u8], rest: &[u8]) -> Composed {
    let (composed, out) = compose(message);
    let expected = [&added()[..], rest].concat();
    assert_eq!(
        String::from_utf8_lossy(&out),
        String::from_utf8_lossy(&expected),
        "{:?}",
        String::from_utf8_lossy(message)
    );
    let grown = signed(expected.len()) - signed(message.len());
    assert_eq!(composed.growth, grown);
    composed
}

fn sender(message: &[u8]) -> String {
    compose(message).0.sender.0.map_or_else(|| "<>".to_owned(), |one| one.to_string())
}

#[test]
fn an_ordinary_message_gets_its_trace_and_loses_its_return_path() {
    let composed = assert_becomes(
        b"Return-Path: <bob@b.example>\r\nReceived: a\r\n\tb\r\nMessage-ID: <1@b>\r\nFrom: x@y\r\n\r\nHi\r\n..\r\n",
        b"Received: a\r\n\tb\r\nMessage-ID: <1@b>\r\nFrom: x@y\r\n\r\nHi\r\n..\r\n",
    );
    assert_eq!(composed.sender.0.unwrap().as_str(), "bob@b.example");
    assert_eq!(composed.message_id.as_deref(), Some(&b"<1@b>"[..]));
    assert_eq!((composed.hops, composed.own_trace, composed.utf8, composed.cut), (1, false, false, false));
    assert_eq!(composed.pieces.len(), 2);
}

#[test]
fn the_body_is_not_copied() {
    let message = piece(b"Return-Path: <a@b>\r\nSubject: x\r\n\r\nbody\r\n", true);
    let octets = message.bytes.as_ptr_range();
    let composed = Composer::new(trace(), NOW).push(message).unwrap();
    let rest = composed.pieces[1].bytes.as_ptr_range();
    assert!(octets.start < rest.start && rest.end == octets.end);
}

#[test]
fn all_return_paths_go_and_the_first_is_the_sender() {
    let message =
        b"Return-Path: <a@a>\r\nX: 1\r\nreturn-path:\r\n <b@b>\r\nRETURN-PATH : <c@c>\r\nY: 2\r\n\r\n";
    let composed = assert_becomes(message, b"X: 1\r\nY: 2\r\n\r\n");
    assert_eq!(composed.sender.0.unwrap().as_str(), "a@a");
}

#[test]
fn many_gaps_make_one_piece() {
    let message = [&b"A: b\r\nReturn-Path: <a@b>\r\n".repeat(500)[..], b"\r\n..body\r\n"].concat();
    let (composed, out) = compose(&message);
    assert!(composed.pieces.len() <= 3);
    assert_eq!(out, [&added()[..], &b"A: b\r\n".repeat(500), b"\r\n..body\r\n"].concat());
}

#[test]
fn the_sender_is_chosen_in_the_order_of_the_design() {
    let all = "Resent-Sender: rs@x\r\nResent-From: rf@x\r\nSender: s@x\r\nFrom: f@x\r\n";
    assert_eq!(sender(format!("{all}Return-Path: <rp@x>\r\n\r\n").as_bytes()), "rp@x");
    assert_eq!(sender(format!("{all}Return-Path: <>\r\n\r\n").as_bytes()), "<>");
    assert_eq!(sender(format!("{all}\r\n").as_bytes()), "rs@x");
    assert_eq!(sender(b"From: f@x\r\nSender: s@x\r\nResent-From: Bob <rf@x>\r\n\r\n"), "rf@x");
    assert_eq!(sender(b"From: f@x, g@x\r\nSender: s@x\r\n\r\n"), "s@x");
    assert_eq!(sender(b"From: =?utf-8?q?F?= <f@x>,\r\n g@x\r\n\r\n"), "f@x");
    assert_eq!(sender(b"Sender: nonsense\r\nFrom: f@x\r\n\r\n"), "f@x");
    assert_eq!(sender(b"Subject: x\r\n\r\nFrom: body@x\r\n"), "<>");
    assert!(!sender(b"From: a@b>\0 RCPT TO:<c@d>\r\n\r\n").contains(' '));
}

#[test]
fn a_delivered_to_of_a_recipient_goes_and_others_stay() {
    // quirks: "A loop through our own trace header, the Received-hop cap, a Delivered-To that Postfix would bounce"
    let composed = assert_becomes(
        b"Delivered-To: ALICE@Example.COM\r\nDelivered-To: bob@example.com\r\ndelivered-to:\r\n <alice@example.com>\r\n\r\n",
        b"Delivered-To: bob@example.com\r\n\r\n",
    );
    assert!(!composed.is_loop(), "never by a Delivered-To alone");
}

#[test]
fn our_own_trace_and_too_many_hops_are_loops() {
    // quirks: "A loop through our own trace header, the Received-hop cap"
    let again = [&b"Received: from here\r\n"[..], &added(), b"Subject: x\r\n\r\n"].concat();
    let (composed, _) = compose(&again);
    assert!(composed.own_trace && composed.is_loop());
    assert_eq!(composed.hops, 2);

    let mut other = TraceContext {
        remote_host: "pop.isp.example".into(),
        remote_address: None,
        host_name: "mx.example.com".into(),
        encrypted: true,
        account: Mailbox::parse("bob@example.com").unwrap(),
        recipients: vec![],
        key: [7; 16],
    };
    let for_bob = Trace::new(&other).field(NOW);
    assert!(!compose(&[&for_bob[..], b"\r\n"].concat()).0.is_loop());
    other.account = Mailbox::parse("alice@example.com").unwrap();
    other.key = [9; 16];
    let elsewhere = Trace::new(&other).field(NOW);
    assert!(!compose(&[&elsewhere[..], b"\r\n"].concat()).0.is_loop());
    let in_subject = String::from_utf8(added()).unwrap().replacen("Received", "Subject", 1);
    assert!(!compose(in_subject.as_bytes()).0.is_loop());

    let most = b"Received: x\r\n".repeat(MAX_HOPS as usize);
    assert!(!compose(&[&most[..], b"\r\n"].concat()).0.is_loop());
    assert!(compose(&[&most[..], b"received:\r\n y\r\n\r\n"].concat()).0.is_loop());
}

#[test]
fn a_leading_mbox_line_is_dropped() {
    // quirks: "1 MB line, 3 MB header, NUL, lone CR, lone LF, 8-bit, 0-byte message, ..., leading `From ` line."
    assert_becomes(b"From a@b Mon Nov 23 17:41:02 2026\r\nA: b\r\n\r\nx\r\n", b"A: b\r\n\r\nx\r\n");
    assert_becomes(b">From a@b Mon Nov 23 17:41:02 2026\r\nA: b\r\n\r\nx\r\n", b"A: b\r\n\r\nx\r\n");
    assert_becomes(b"From : a@b\r\n\r\n", b"From : a@b\r\n\r\n");
    assert_becomes(b"From x\r\n", b"\r\n");
    // In the middle it is kept, and does not end the header.
    let composed = assert_becomes(
        b"A: b\r\n>From a@b Mon Nov 23 2026\r\n folded\r\nReturn-Path: <c@d>\r\n\r\nFrom x\r\n",
        b"A: b\r\n>From a@b Mon Nov 23 2026\r\n folded\r\n\r\nFrom x\r\n",
    );
    assert_eq!(composed.sender.0.unwrap().as_str(), "c@d");
}

#[test]
fn an_empty_message_is_its_trace_and_a_blank_line() {
    // quirks: "0-byte message"
    let composed = assert_becomes(b"", b"\r\n");
    assert_eq!(composed.sender, ReversePath(None));
    assert_eq!(composed.message_id, None);
    assert_becomes(b"\r\n", b"\r\n");
    assert_becomes(b"Return-Path: <a@b>\r\n", b"\r\n");
}

#[test]
fn odd_headers_keep_their_octets() {
    // quirks: "no blank line after the header, blank first line, malformed header line"
    for odd in [
        &b"A: b\r\nC: d\r\n"[..],
        b"\r\nA: b\r\n\r\nbody\r\n",
        b"A: b\r\nThis is no header line\r\nReturn-Path: <in@body>\r\n\r\nbody\r\n",
        b"no header at all\r\nReturn-Path: <in@body>\r\n",
        b": no name\r\n\r\n",
        b"A\xffB: x\r\n\r\n",
        b"A: \0 \xff\xfe\r\n\r\n\0\r\n",
        b"..dotted: x\r\n\r\n..\r\n",
        b"A: b\r\n \r\n\tc\r\n\r\n",
    ] {
        assert_becomes(odd, odd);
    }
    assert_eq!(sender(b"A: b\r\nno header line\r\nReturn-Path: <in@body>\r\n\r\n"), "<>");
}

#[test]
fn a_folded_first_line_does_not_become_part_of_the_trace() {
    assert_becomes(b" folded\r\nA: b\r\n", b"\r\n folded\r\nA: b\r\n");
    assert_becomes(b"From x\r\n\tfolded\r\n", b"\r\n\tfolded\r\n");
}

#[test]
fn a_return_path_broken_by_a_carriage_return_injects_nothing() {
    // quirks: "Return-Path with spaces, CR, NUL, ...: never an injected command."
    // The normaliser has made CRLF of the bare CR.
    let message = b"Return-Path: <a@b\r\nRCPT TO:<c@d>>\r\nA: b\r\n\r\n";
    let composed = assert_becomes(message, b"RCPT TO:<c@d>>\r\nA: b\r\n\r\n");
    assert_eq!(composed.sender, ReversePath(None));
}

#[test]
fn a_header_of_three_megabytes_is_bounded_and_kept() {
    // quirks: "1 MB line, 3 MB header"
    let fields = b"X-Filler: 0123456789012345678901234567890123456789\r\n".repeat(60_000);
    let rest = [&fields[..], b"Return-Path: <late@b>\r\n\r\nbody\r\n"].concat();
    let message = [b"Return-Path: <a@b>\r\n", &rest[..]].concat();
    for size in [usize::MAX, 65_536, 4_000] {
        let (composed, out) = compose_cut(&message, size);
        assert!(composed.cut);
        assert_eq!(composed.sender.0.as_ref().unwrap().as_str(), "a@b");
        assert_eq!(out, [&added()[..], &rest].concat());
    }
}

#[test]
fn a_line_of_a_megabyte_is_kept() {
    // quirks: "1 MB line"
    let long = vec![b'x'; 1 << 20];
    let subject = [b"Return-Path: <a@b>\r\nSubject: ", &long[..], b"\r\n\r\nbody\r\n"].concat();
    let path = [b"A: b\r\nReturn-Path: <", &long[..], b"@b>\r\nC: d\r\n\r\nbody\r\n"].concat();
    let nothing = [&long[..], b"\r\nReturn-Path: <a@b>\r\n"].concat();
    for size in [usize::MAX, 10_000] {
        let (composed, out) = compose_cut(&subject, size);
        assert_eq!(composed.sender.0.unwrap().as_str(), "a@b");
        assert_eq!(out, [&added()[..], &subject[20..]].concat());
        // What was not seen whole stays; the sender is then unknown.
        let (composed, out) = compose_cut(&path, size);
        assert_eq!(composed.sender, ReversePath(None));
        assert_eq!(out, [&added()[..], &path].concat());
        let (composed, out) = compose_cut(&nothing, size);
        assert_eq!(composed.sender, ReversePath(None));
        assert_eq!(out, [&added()[..], &nothing].concat());
    }
}

#[test]
fn utf8_is_told_from_other_eight_bit_text() {
    assert!(compose("Subject: grüße\r\n\r\n".as_bytes()).0.utf8);
    assert!(!compose(b"Subject: gr\xfc\xdfe\r\n\r\n").0.utf8);
    assert!(!compose("Subject: x\r\n\r\ngrüße\r\n".as_bytes()).0.utf8);
    assert!(!compose("Return-Path: <ü@x>\r\nSubject: x\r\n\r\n".as_bytes()).0.utf8);
}

#[test]
fn message_ids_are_found_in_all_shapes() {
    for (value, expected) in [
        (" <a@b>", Some("<a@b>")),
        ("\r\n <a@b>", Some("<a@b>")),
        (" <a\r\n\t@b> (x)", Some("<a@b>")),
        (" a@b ", Some("a@b")),
        (" <a@b", Some("<a@b")),
        ("", None),
        ("\r\n ", None),
    ] {
        let (composed, _) = compose(format!("message-id:{value}\r\nMessage-ID: <2@b>\r\n\r\n").as_bytes());
        assert_eq!(composed.message_id.as_deref(), expected.map(str::as_bytes), "{value:?}");
    }
    assert_eq!(compose(b"A: b\r\n\r\nMessage-ID: <a@b>\r\n").0.message_id, None);
}

proptest! {
    #[test]
    fn any_octets_in_any_cut_come_out_the_same(
        lines in proptest::collection::vec(
            prop_oneof![
                Just("Return-Path: <a@b>".to_owned()),
                Just("Delivered-To: alice@example.com".to_owned()),
                Just("From x".to_owned()),
                Just(String::new()),
                Just("..".to_owned()),
                Just(" folded".to_owned()),
                Just("Received: by x".to_owned()),
                "[A-Za-z]{1,5} ?: ?[ -~]{0,20}".prop_filter("no dots first", |s| !s.starts_with('.')),
                "[a-z ü\0]{0,10}",
            ],
            0..12,
        ),
        size in 1usize..40,
    ) {
        let message: String = lines.iter().flat_map(|line| [line.as_str(), "\r\n"]).collect();
        let (whole, out) = compose_cut(message.as_bytes(), usize::MAX);
        let (cut, again) = compose_cut(message.as_bytes(), size);
        prop_assert_eq!(&out, &again);
        prop_assert_eq!(whole.sender, cut.sender);
        prop_assert_eq!(whole.growth, cut.growth);
        prop_assert_eq!(signed(out.len()), signed(message.len()) + whole.growth);
        prop_assert!(out.starts_with(&added()));
    }

    #[test]
    fn no_octets_at_all_do_harm(
        message in proptest::collection::vec(any::<u8>(), 0..300)
            .prop_map(|octets| octets.iter().map(|octet| *b"\r\n: <.F\t".get(usize::from(octet / 8)).unwrap_or(octet)).collect::<Vec<u8>>()),
        size in 1usize..50,
    ) {
        let (whole, out) = compose_cut(&message, usize::MAX);
        let (_, again) = compose_cut(&message, size);
        prop_assert_eq!(&out, &again);
        prop_assert_eq!(signed(out.len()), signed(message.len()) + whole.growth);
    }
}
