//! The messages of `tests/corpus/unified`, whose README says what they are.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use super::{Addressees, Composed, Composer, Trace, TraceContext, Unify};
use crate::domain::envelope::Mailbox;
use crate::domain::ledger::Ledger;
use crate::domain::wire::Piece;
use crate::domain::work::Special;

struct Case {
    file: String,
    title: String,
    /// `special`, and what is expected for it.
    expected: Vec<(String, String)>,
    message: Vec<u8>,
}

fn corpus() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/unified");
    let files = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|end| end == "txt")).collect();
    files.sort();
    let mut cases = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = format!("\n{}", text.trim_end_matches('\n'));
        cases.extend(text.split("\n=== ").skip(1).map(|case| Case::read(&file, case)));
    }
    cases
}

impl Case {
    fn read(file: &str, text: &str) -> Self {
        let (head, message) =
            text.split_once("\n---\n").unwrap_or_else(|| panic!("{file}: no --- in {text}"));
        let (title, expected) = head.split_once('\n').unwrap_or_else(|| panic!("{file}: {head}"));
        let expected = expected.lines().map(|line| {
            let (special, expected) = line.split_once(": ").unwrap_or_else(|| panic!("{file}: {line}"));
            (special.to_owned(), expected.to_owned())
        });
        let mut octets = Vec::new();
        for line in message.strip_suffix('\n').unwrap_or(message).split('\n') {
            let mut rest = line;
            while let Some((before, code)) = rest.split_once("<0x") {
                octets.extend_from_slice(before.as_bytes());
                let (code, after) = code.split_once('>').unwrap();
                octets.push(u8::from_str_radix(code, 16).unwrap());
                rest = after;
            }
            octets.extend_from_slice(rest.as_bytes());
            octets.extend_from_slice(b"\r\n");
        }
        Self { file: file.to_owned(), title: title.to_owned(), expected: expected.collect(), message: octets }
    }
}

fn special(text: &str) -> Special {
    if text == "*" { Special::Addressees } else { Special::Header(text.into()) }
}

fn compose(special: &Special, message: &[u8], size: usize) -> (Composed, Vec<u8>) {
    let trace = Arc::new(Trace::new(&TraceContext {
        remote_host: "pop.isp.example".into(),
        remote_address: None,
        host_name: "mx.example.com".into(),
        encrypted: true,
        account: Mailbox::parse("postmaster@main.example").unwrap(),
        recipients: vec![],
        key: [7; 16],
    }));
    let copies = Some(Ledger::new([3; 16]).digest());
    let mut composer = Composer::unified(
        Arc::clone(&trace),
        Timestamp::UNIX_EPOCH,
        Unify { special: special.clone(), copies },
    );
    let mut composed: Option<Composed> = None;
    let mut body = Vec::new();
    let mut at_line_start = true;
    for chunk in message.chunks(size) {
        match &mut composed {
            Some(composed) => {
                composed.copy.as_mut().unwrap().update(chunk);
                body.extend_from_slice(chunk);
            }
            None => composed = composer.push(Piece::new(Bytes::copy_from_slice(chunk), at_line_start)),
        }
        at_line_start = chunk.ends_with(b"\n");
    }
    let composed = composed.unwrap_or_else(|| composer.finish());
    let mut out: Vec<u8> = composed.pieces.iter().flat_map(|piece| piece.bytes.to_vec()).collect();
    out.extend(body);
    let out = out.split_off(trace.field(Timestamp::UNIX_EPOCH).len());
    (composed, out)
}

fn shown(addressees: &Addressees) -> String {
    let found: Vec<&str> = addressees.found.iter().map(Mailbox::as_str).collect();
    let mut text = if found.is_empty() { "-".to_owned() } else { found.join(" | ") };
    if addressees.unusable > 0 {
        write!(text, " ({} unusable)", addressees.unusable).unwrap();
    }
    text
}

#[test]
fn every_message_is_for_whom_it_says() {
    let cases = corpus();
    assert!(cases.len() >= 200, "{} messages", cases.len());
    let mut wrong = String::new();
    for case in &cases {
        for (name, expected) in &case.expected {
            let (composed, _) = compose(&special(name), &case.message, usize::MAX);
            let addressees = composed.addressees.unwrap();
            assert!(!addressees.more && !composed.cut);
            let got = shown(&addressees);
            if got != *expected {
                writeln!(wrong, "{}: {}\n  {name}: {expected}\n  found: {got}", case.file, case.title)
                    .unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn where_a_message_is_cut_does_not_matter() {
    for case in corpus() {
        for (name, _) in &case.expected {
            let special = special(name);
            let (whole, out) = compose(&special, &case.message, usize::MAX);
            for size in [1, 2, 13, 100] {
                let (cut, again) = compose(&special, &case.message, size);
                assert_eq!(out, again, "{}: {}", case.file, case.title);
                assert_eq!(whole.addressees, cut.addressees);
                assert_eq!(whole.header, cut.header);
                assert_eq!(whole.copy.as_ref().unwrap().finish(), cut.copy.unwrap().finish());
                assert_eq!((whole.growth, &whole.sender), (cut.growth, &cut.sender));
            }
        }
    }
}

#[test]
fn only_what_must_go_is_removed() {
    for case in corpus() {
        for (name, _) in &case.expected {
            let (composed, out) = compose(&special(name), &case.message, usize::MAX);
            let found = composed.addressees.unwrap().found;
            let expected = without(&case.message, |field, value| {
                let is = |other: &str| field.eq_ignore_ascii_case(other);
                let delivered = value.trim().trim_start_matches('<').trim_end_matches('>');
                is("Return-Path")
                    || is(name)
                    || (name == "*" && (is("Bcc") || is("Resent-Bcc")))
                    || (is("Delivered-To") && found.iter().any(|one| one.as_str() == delivered))
            });
            let odd = String::from_utf8_lossy(&case.message);
            assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&expected), "{name}: {odd}");
        }
    }
}

/// A simple reading of the header, to compare with.
fn without(message: &[u8], gone: impl Fn(&str, &str) -> bool) -> Vec<u8> {
    let mut lines: Vec<&[u8]> = message.split_inclusive(|octet| *octet == b'\n').collect();
    if lines[0].starts_with(b"From ") {
        lines.remove(0);
    }
    let name = |line: &[u8]| {
        let (name, value) =
            std::str::from_utf8(line).ok()?.split_once(':').map(|(name, value)| (name.trim_end(), value))?;
        (!name.is_empty() && !name.contains([' ', '\t'])).then(|| (name.to_owned(), value.to_owned()))
    };
    let is_field = |line: &[u8]| line.first().is_some_and(u8::is_ascii_graphic) && line.contains(&b':');
    let is_fold = |line: &[u8]| line.starts_with(b" ") || line.starts_with(b"\t");
    let mut out = Vec::new();
    let mut at = 0;
    while at < lines.len() && (is_field(lines[at]) || lines[at].starts_with(b">From ")) {
        let end = (at + 1..lines.len()).find(|line| !is_fold(lines[*line])).unwrap_or(lines.len());
        if !name(lines[at]).is_some_and(|(name, value)| gone(&name, &value)) {
            lines[at..end].iter().for_each(|line| out.extend_from_slice(line));
        }
        at = end;
    }
    lines[at..].iter().for_each(|line| out.extend_from_slice(line));
    out
}

#[test]
fn ten_thousand_addresses_are_cut_off_at_a_thousand() {
    let list: Vec<String> = (0..10_000).map(|at| format!("user{at}@corp.example")).collect();
    let message = format!("From: x@y.example\r\nTo: {}\r\n\r\nx\r\n", list.join(",\r\n "));
    assert!(message.len() > 200_000 && message.len() < super::MAX_HEADER + 10_000);
    let message = message.replace("@corp.example", "@a.example");
    for size in [usize::MAX, 16_384] {
        let (composed, out) = compose(&Special::Addressees, message.as_bytes(), size);
        let addressees = composed.addressees.unwrap();
        assert!(addressees.more && !composed.cut);
        assert_eq!(addressees.found.len(), super::MOST_ADDRESSEES);
        assert_eq!(addressees.found[999].as_str(), "user999@a.example");
        assert_eq!((addressees.fields, addressees.unusable), (1, 0));
        assert_eq!(out, message.as_bytes());
    }
}

#[test]
fn two_megabytes_of_to_are_cut() {
    let list: Vec<String> = (0..80_000).map(|at| format!("user{at:05}@corp.example")).collect();
    let message = format!(
        "Received: x\r\nFrom: x@y.example\r\nTo: {}\r\nCc: kim@corp.example\r\n\r\nx\r\n",
        list.join(",\r\n\t")
    );
    assert!(message.len() > 2_000_000);
    for size in [usize::MAX, 65_536, 1_000] {
        let (composed, out) = compose(&Special::Addressees, message.as_bytes(), size);
        assert!(composed.cut, "the engine sends it to the postmaster");
        assert!(composed.header.unwrap().len() <= 32 * 1024);
        assert_eq!(out, message.as_bytes(), "and nothing of it is lost");
        let (composed, _) = compose(&Special::Header("X-Original-To".into()), message.as_bytes(), size);
        assert!(composed.cut && composed.addressees.unwrap().found.is_empty());
    }
}
