//! The header of a unified account's message, whatever it holds: the same
//! recipients wherever it is cut, each fit for an envelope, and nothing lost
//! but what must go.
#![no_main]

use std::collections::HashSet;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use rpop::domain::envelope::Mailbox;
use rpop::domain::ledger::Ledger;
use rpop::domain::wire::{Decoder, Piece};
use rpop::domain::work::Special;
use rpop::message::{Composed, Composer, MOST_ADDRESSEES, Trace, TraceContext, Unify};

fuzz_target!(|data: &[u8]| {
    let [first, kind, input @ ..] = data else { return };
    let special = match kind % 3 {
        0 => Special::Addressees,
        1 => Special::Header("X-Real-To".into()),
        _ => Special::Header("Delivered-To".into()),
    };
    let wire = wire(input);
    let (whole, sent, digest) = compose(&special, &wire, wire.len().max(1));
    let (cut, again, same) = compose(&special, &wire, usize::from(*first) + 1);
    assert_eq!(sent, again);
    assert_eq!(digest, same);
    assert_eq!(whole.addressees, cut.addressees);
    assert_eq!(whole.header, cut.header);
    assert_eq!((whole.growth, whole.utf8, whole.sender), (cut.growth, cut.utf8, cut.sender));

    let addressees = whole.addressees.expect("they are looked for");
    assert!(addressees.found.len() <= MOST_ADDRESSEES);
    let mut distinct = HashSet::new();
    for one in &addressees.found {
        assert_eq!(Mailbox::parse(one.as_str()).as_ref(), Ok(one));
        assert!(!one.as_str().chars().any(char::is_control));
        assert!(distinct.insert((one.local(), one.domain().to_lowercase())));
    }
    let header = whole.header.expect("it is kept");
    assert!(header.len() <= 32 * 1024 && (header.is_empty() || header.ends_with(b"\r\n")));

    // Nothing is left of the special header that a second reading would find,
    // unless the first line now is another one than before.
    let plain_start = |octets: &[u8]| !octets.starts_with(b"From ") && !octets.starts_with(b">From ");
    if !whole.cut && plain_start(&wire) && plain_start(&sent) && kind % 3 != 0 {
        let (twice, unchanged, _) = compose(&special, &sent, usize::MAX);
        assert_eq!(twice.addressees.expect("they are looked for").fields, 0);
        assert!(twice.cut || unchanged == sent);
    }
});

/// What is composed, what is sent without our trace header, the copy digest.
fn compose(special: &Special, wire: &[u8], size: usize) -> (Composed, Vec<u8>, u64) {
    let trace = Arc::new(Trace::new(&TraceContext {
        remote_host: "pop.isp.example".into(),
        remote_address: None,
        host_name: "mx.example.com".into(),
        encrypted: true,
        account: Mailbox::parse("postmaster@example.com").expect("an address"),
        recipients: Vec::new(),
        key: [7; 16],
    }));
    let unify = Unify { special: special.clone(), copies: Some(Ledger::new([3; 16]).digest()) };
    let mut composer = Some(Composer::unified(trace, Timestamp::UNIX_EPOCH, unify));
    let mut composed: Option<Composed> = None;
    let mut later = Vec::new();
    let mut at_line_start = true;
    for chunk in wire.chunks(size) {
        match (&composed, &mut composer) {
            (None, Some(composer)) => {
                composed = composer.push(Piece::new(Bytes::copy_from_slice(chunk), at_line_start));
            }
            _ => later.extend_from_slice(chunk),
        }
        at_line_start = chunk.ends_with(b"\n");
    }
    let mut composed = composed.or_else(|| composer.take().map(Composer::finish)).expect("one of the two");
    let mut sent: Vec<u8> = composed.pieces.iter().skip(1).flat_map(|piece| piece.bytes.to_vec()).collect();
    sent.extend_from_slice(&later);
    let mut copy = composed.copy.take().expect("it is asked for");
    copy.update(&later);
    (composed, sent, copy.finish())
}

/// As it comes from the POP3 decoder.
fn wire(input: &[u8]) -> Vec<u8> {
    let mut buffer = BytesMut::from(input);
    buffer.extend_from_slice(b"\r\n.\r\n");
    let mut wire = Vec::new();
    Decoder::new().decode(&mut buffer, |piece| wire.extend_from_slice(&piece.bytes));
    wire
}
