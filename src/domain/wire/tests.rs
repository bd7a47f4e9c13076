use proptest::prelude::*;

use super::*;

/// What a message decodes to, and what stays behind it.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    wire: Vec<u8>,
    unstuffed: Vec<u8>,
    tally: Tally,
    ended: bool,
    rest: Vec<u8>,
}

fn decode(chunks: &[&[u8]]) -> Decoded {
    let mut decoder = Decoder::new();
    let mut input = BytesMut::new();
    let (mut wire, mut unstuffed) = (Vec::new(), Vec::new());
    let mut ended = false;
    for chunk in chunks {
        input.extend_from_slice(chunk);
        if !ended {
            ended = decoder.decode(&mut input, |piece| {
                assert!(!piece.is_empty());
                assert_eq!(piece.at_line_start, wire.last().is_none_or(|last| *last == b'\n'));
                assert_eq!(piece, Piece::new(piece.bytes.clone(), piece.at_line_start));
                assert!(!piece.bytes.ends_with(b"\r"), "a piece ends between CR and LF");
                let parts: Vec<Bytes> = piece.unstuffed().collect();
                assert!(parts.iter().all(|part| !part.is_empty()));
                assert_eq!(parts.iter().map(Bytes::len).sum::<usize>(), piece.unstuffed_len());
                unstuffed.extend_from_slice(&parts.concat());
                wire.extend_from_slice(&piece.bytes);
            });
            assert!(ended || input.len() <= Decoder::MAX_UNDECIDED);
        }
    }
    Decoded { wire, unstuffed, tally: decoder.tally(), ended, rest: input.to_vec() }
}

/// The same by the letter: find the end, take one dot from each of the
/// server's lines, make every other CR and LF a line end.
fn naive(message: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    let mut at = 0;
    while at < message.len() {
        if message[at..].starts_with(b"\r\n") {
            lines.push(Vec::new());
            at += 2;
        } else {
            lines.last_mut().unwrap().push(message[at]);
            at += 1;
        }
    }
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            content.extend_from_slice(b"\r\n");
        }
        for octet in line.strip_prefix(b".").unwrap_or(line) {
            match octet {
                b'\r' | b'\n' => content.extend_from_slice(b"\r\n"),
                octet => content.push(*octet),
            }
        }
    }
    content
}

fn naive_end(input: &[u8]) -> Option<usize> {
    if input.starts_with(b".\r\n") {
        return Some(0);
    }
    (0..input.len()).find(|at| input[*at..].starts_with(b"\r\n.\r\n")).map(|at| at + 2)
}

fn assert_wire_form(wire: &[u8]) {
    for (at, octet) in wire.iter().enumerate() {
        match octet {
            b'\r' => assert_eq!(wire.get(at + 1), Some(&b'\n'), "bare CR at {at}"),
            b'\n' => assert!(at > 0 && wire[at - 1] == b'\r', "bare LF at {at}"),
            _ => {}
        }
    }
    assert!(!wire.starts_with(b".\r\n"));
    assert_eq!(memmem::find(wire, b"\n.\r\n"), None, "a line that is a lone dot");
    assert!(wire.is_empty() || wire.ends_with(b"\r\n"));
}

fn whole(input: &[u8]) -> Decoded {
    let decoded = decode(&[input]);
    assert!(decoded.ended, "{input:?}");
    assert_wire_form(&decoded.wire);
    decoded
}

#[test]
fn a_clean_message_is_passed_on_without_a_copy() {
    let mut input = BytesMut::from(&b"Subject: x\r\n\r\n..dot\r\ntext\r\n.\r\n+OK"[..]);
    let start = input.as_ptr();
    let mut pieces = Vec::new();
    assert!(Decoder::new().decode(&mut input, |piece| pieces.push(piece)));
    assert_eq!(pieces.len(), 1);
    assert_eq!(pieces[0].bytes.as_ptr(), start);
    assert_eq!(pieces[0].stuffed, 1);
    assert_eq!(&input[..], b"+OK");
}

#[test]
fn an_empty_message_ends_at_once() {
    // quirks: "1 MB line, 3 MB header, NUL, lone CR, lone LF, 8-bit, 0-byte message"
    let decoded = whole(b".\r\n");
    assert!(decoded.wire.is_empty());
    assert_eq!(decoded.tally, Tally::default());
}

#[test]
fn only_the_exact_terminator_ends_a_message() {
    // quirks: "End only on exact `CRLF . CRLF`."
    for fake in
        [&b"a\n.\r\n"[..], b"a\r\n.\n", b"a\n.\n", b"a\r.\r\n", b"a\r\n.\rb", b"a\r\n. \r\n", b"a\r\n.\r\r\n"]
    {
        let mut input = fake.to_vec();
        input.extend_from_slice(b"+OK 5 octets\r\nFrom: attacker\r\n\r\n.\r\n-next");
        let decoded = whole(&input);
        assert_eq!(decoded.rest, b"-next", "{fake:?}");
        assert!(memmem::find(&decoded.unstuffed, b"From: attacker").is_some());
    }
}

#[test]
fn bare_line_ends_become_crlf_and_dots_behind_them_are_stuffed() {
    // quirks: "Normalise bare CR and bare LF to CRLF, then stuff"
    for (input, wire) in [
        (&b"a\nb\r\n.\r\n"[..], &b"a\r\nb\r\n"[..]),
        (b"a\n.\r\nb\r\n.\r\n", b"a\r\n..\r\nb\r\n"),
        (b"a\n.\nb\r\n.\r\n", b"a\r\n..\r\nb\r\n"),
        (b"a\r.b\r\n.\r\n", b"a\r\n..b\r\n"),
        (b"a\r\r\nb\r\n.\r\n", b"a\r\n\r\nb\r\n"),
        (b"\n\r\n.\r\n", b"\r\n\r\n"),
        (b"a\r\n.\nb\r\n.\r\n", b"a\r\n\r\nb\r\n"),
        (b"a\r\n.\rb\r\n.\r\n", b"a\r\n\r\nb\r\n"),
        (b"a\n..b\r\n.\r\n", b"a\r\n...b\r\n"),
    ] {
        assert_eq!(whole(input).wire, wire, "{input:?}");
    }
}

#[test]
fn dots_are_taken_away_exactly_once() {
    // quirks: "Un-stuff dots exactly once; chunk boundaries may fall between CR, LF and dot."
    let input = b"..\r\n...\r\n.x\r\n....y\r\nz..\r\n.\r\n";
    let decoded = whole(input);
    assert_eq!(decoded.unstuffed, b".\r\n..\r\nx\r\n...y\r\nz..\r\n");
    for split in 0..=input.len() {
        let (head, tail) = input.split_at(split);
        assert_eq!(decode(&[head, tail]), decoded, "split at {split}");
    }
    let single: Vec<&[u8]> = input.chunks(1).collect();
    assert_eq!(decode(&single), decoded);
}

#[test]
fn octets_are_counted_as_the_server_sent_them() {
    let decoded = whole(b"..a\r\nb\nc\r\n.\r\n");
    assert_eq!(decoded.tally, Tally { octets: 9, lines: 3, rewritten: 1 });
    assert_eq!(decoded.tally.normalised(), decoded.unstuffed.len() as u64);
    for announced in [9, 10, 7] {
        assert!(decoded.tally.agrees_with(announced), "{announced}");
    }
    assert!(!decoded.tally.agrees_with(8));
    assert!(!decoded.tally.agrees_with(0));
}

#[test]
fn a_message_of_bare_line_ends_makes_few_pieces() {
    let mut input = BytesMut::new();
    for _ in 0..10_000 {
        input.extend_from_slice(b"a line that ends in LF\n");
    }
    let mut pieces = 0;
    Decoder::new().decode(&mut input, |_| pieces += 1);
    assert!(pieces < 20, "{pieces}");
}

#[test]
fn long_lines_and_odd_octets_stay_as_they_are() {
    // quirks: "1 MB line, 3 MB header, NUL, lone CR, lone LF, 8-bit, 0-byte message"
    let mut content = vec![b'x'; 1 << 20];
    content.extend_from_slice(b"\0\xff\x80\xc3\xbc\t");
    content.extend_from_slice(b"\r\n");
    let mut input = content.clone();
    input.extend_from_slice(b".\r\n");
    let chunks: Vec<&[u8]> = input.chunks(8191).collect();
    let decoded = decode(&chunks);
    assert!(decoded.ended);
    assert_eq!(decoded.wire, content);
}

#[test]
fn a_glued_terminator_is_noticed() {
    // quirks: "Terminator glued to the last line (Exchange 2000)"
    for (input, glued) in [
        (&b"last line.\r\n"[..], true),
        (b"last line\r\n", false),
        (b"last line.\r\nx", false),
        (b"last line.", false),
        (b"", false),
    ] {
        for size in [1, 2, 3, 100] {
            let mut decoder = Decoder::new();
            let mut buffer = BytesMut::new();
            for chunk in input.chunks(size) {
                buffer.extend_from_slice(chunk);
                assert!(!decoder.decode(&mut buffer, |_| {}));
            }
            assert_eq!(decoder.ends_with_dot_crlf(), glued, "{input:?}");
        }
    }
}

#[test]
fn pieces_split_and_unstuff() {
    let mut piece = stuff(b".a\n..b\rc");
    assert_eq!(&piece.bytes[..], b"..a\r\n...b\r\nc\r\n");
    assert_eq!(piece.stuffed, 2);
    let head = piece.split_to(5);
    assert_eq!((head.stuffed, head.at_line_start), (1, true));
    assert_eq!((piece.stuffed, piece.at_line_start), (1, true));
    assert_eq!(piece.unstuffed().collect::<Vec<_>>().concat(), b"..b\r\nc\r\n");
    assert!(stuff(b"").is_empty());
}

fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let octet = prop_oneof![
        4 => Just(b'\r'), 4 => Just(b'\n'), 4 => Just(b'.'), 2 => Just(b'a'), 1 => any::<u8>(),
    ];
    let part = prop_oneof![
        3 => octet.prop_map(|octet| vec![octet]),
        2 => Just(b"\r\n".to_vec()),
        1 => Just(b"\r\n.".to_vec()),
        1 => (1_usize..4000).prop_map(|len| vec![b'x'; len]),
    ];
    prop::collection::vec(part, 0..80).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 400 } else { 20_000 }))]

    #[test]
    fn decodes_as_the_naive_reading_does(message in hostile(), cuts in prop::collection::vec(0_usize..6000, 0..12)) {
        let mut input = message;
        input.extend_from_slice(b"\r\n.\r\n");
        let end = naive_end(&input).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        cuts.sort_unstable();
        let mut chunks = Vec::new();
        let mut from = 0;
        for cut in cuts {
            chunks.push(&input[from..cut]);
            from = cut;
        }
        chunks.push(&input[from..]);
        let decoded = decode(&chunks);
        prop_assert!(decoded.ended);
        prop_assert_eq!(&decoded.unstuffed, &naive(&input[..end]));
        prop_assert_eq!(&decoded.rest, &input[end + 3..]);
        prop_assert_eq!(decoded.tally.normalised(), decoded.unstuffed.len() as u64);
        assert_wire_form(&decoded.wire);
    }

    #[test]
    fn own_content_survives_stuffing(content in hostile()) {
        let piece = stuff(&content);
        assert_wire_form(&piece.bytes);
        prop_assert_eq!(&piece, &Piece::new(piece.bytes.clone(), true));
        let mut input = BytesMut::from(&piece.bytes[..]);
        input.extend_from_slice(b".\r\n");
        let mut wire = Vec::new();
        prop_assert!(Decoder::new().decode(&mut input, |piece| wire.extend_from_slice(&piece.bytes)));
        prop_assert_eq!(&wire, &piece.bytes);
    }
}
