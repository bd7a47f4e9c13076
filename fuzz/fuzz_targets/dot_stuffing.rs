//! Whatever a server sends, in whatever chunks: what is passed on is in wire
//! form, and unstuffed it is what a reading by the letter gives.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use rpop::domain::wire::{Decoder, Piece, stuff};

fuzz_target!(|data: &[u8]| {
    let Some((first, input)) = data.split_first() else { return };
    let size = usize::from(*first) + 1;

    let mut decoder = Decoder::new();
    let mut buffer = BytesMut::new();
    let (mut wire, mut unstuffed) = (Vec::new(), Vec::new());
    let mut ended = false;
    for chunk in input.chunks(size) {
        buffer.extend_from_slice(chunk);
        if ended {
            continue;
        }
        ended = decoder.decode(&mut buffer, |piece| {
            assert_eq!(piece, Piece::new(piece.bytes.clone(), piece.at_line_start));
            assert_eq!(piece.at_line_start, wire.last().is_none_or(|last| *last == b'\n'));
            piece.unstuffed().for_each(|part| unstuffed.extend_from_slice(&part));
            wire.extend_from_slice(&piece.bytes);
        });
        assert!(ended || buffer.len() <= Decoder::MAX_UNDECIDED);
    }

    let end = if input.starts_with(b".\r\n") {
        Some(0)
    } else {
        (0..input.len()).find(|at| input[*at..].starts_with(b"\r\n.\r\n")).map(|at| at + 2)
    };
    assert_eq!(ended, end.is_some());
    assert_wire_form(&wire);
    if let Some(end) = end {
        assert_eq!(unstuffed, by_the_letter(&input[..end]));
        assert_eq!(&buffer[..], &input[end + 3..]);
        assert_eq!(decoder.tally().normalised(), unstuffed.len() as u64);
        assert!(wire.is_empty() || wire.ends_with(b"\r\n"));
    }

    let own = stuff(input);
    assert_wire_form(&own.bytes);
    assert_eq!(own, Piece::new(own.bytes.clone(), true));
});

fn assert_wire_form(wire: &[u8]) {
    for (at, octet) in wire.iter().enumerate() {
        match octet {
            b'\r' => assert_eq!(wire.get(at + 1), Some(&b'\n')),
            b'\n' => assert!(at > 0 && wire[at - 1] == b'\r'),
            b'.' => {
                let line_start = at == 0 || wire[at - 1] == b'\n';
                assert!(!(line_start && wire[at + 1..].starts_with(b"\r\n")), "a line that is a lone dot");
            }
            _ => {}
        }
    }
}

fn by_the_letter(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    let mut own_line = true;
    while at < message.len() {
        if own_line && message[at] == b'.' {
            at += 1;
            own_line = false;
            continue;
        }
        own_line = message[at..].starts_with(b"\r\n");
        match message[at] {
            b'\r' | b'\n' => {
                out.extend_from_slice(b"\r\n");
                at += 1 + usize::from(own_line);
            }
            octet => {
                out.push(octet);
                at += 1;
            }
        }
    }
    out
}
