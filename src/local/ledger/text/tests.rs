use std::io::{self, Read};

use proptest::prelude::*;

use super::*;

fn read_back(text: &[u8]) -> (Vec<u8>, Entry, Option<(i32, u8)>) {
    read_back_on(1, text.strip_suffix(b"\n").unwrap())
}

fn read_back_on(today: i32, line: &[u8]) -> (Vec<u8>, Entry, Option<(i32, u8)>) {
    match Parser::new(today).line(line).unwrap() {
        Line::Put { uid, entry, missed } => (uid.to_vec(), entry, missed),
        other => panic!("{other:?}"),
    }
}

#[test]
fn lines_read_as_people_would_write_them() {
    let mut parser = Parser::new(77);
    let plain = Entry { state: State::Kept, day: 77, size: 0, message_id: 0, digest: 0 };
    assert_eq!(parser.line(b"kept abc"), Ok(Line::Put { uid: b"abc", entry: plain.clone(), missed: None }));
    assert_eq!(
        parser.line(b"  kept\tabc   day=1970-01-03 \r"),
        Ok(Line::Put { uid: b"abc", entry: Entry { day: 2, ..plain }, missed: None })
    );
    assert_eq!(parser.line(b""), Ok(Line::Comment));
    assert_eq!(parser.line(b" # kept abc"), Ok(Line::Comment));
    assert_eq!(parser.line(b"forget #00000000000000ff"), Ok(Line::Forget { hash: 255 }));
    let copy = Line::Copy { message_id: 15, digest: 16, origin: 0, day: 2 };
    assert_eq!(parser.line(b"copy day=1970-01-03  id=f digest=0000000000000010\r"), Ok(copy));
    let copy = Line::Copy { message_id: 15, digest: 16, origin: 17, day: 2 };
    assert_eq!(parser.line(b"copy id=f digest=10 day=1970-01-03 of=11"), Ok(copy));
    let copy = Line::Copy { message_id: 15, digest: 16, origin: 0, day: 77 };
    assert_eq!(parser.line(b"copy id=f digest=10"), Ok(copy));
}

#[test]
fn what_is_owed_reads_as_people_would_write_it() {
    let owed = |attempts, next_try, reason: &str, to: &[u64], reached| {
        let state = State::Owed { attempts, next_try, reason: reason.into(), to: to.into(), reached };
        Entry { state, day: 77, size: 0, message_id: 0, digest: 0 }
    };
    for (line, wanted) in [
        (&b"owed abc to=#00000000000000ff"[..], owed(1, 0, "", &[255], false)),
        (
            b"owed abc reached to=#00000000000000ff,#0000000000000001,#00000000000000FF tries=3 \
              next=1970-01-01T00:01:00Z reason=452 reached to=no",
            owed(3, 60, "452 reached to=no", &[1, 255], true),
        ),
    ] {
        let read = read_back_on(77, line);
        assert_eq!(read, (b"abc".to_vec(), wanted, None), "{}", String::from_utf8_lossy(line));
    }
}

#[test]
fn lines_that_cannot_be_understood_say_why() {
    let mut parser = Parser::new(1);
    for (line, why) in [
        (&b"seen abc"[..], "begins with"),
        (b"kept", "UID is missing"),
        (b"kept abc yesterday", "name=value"),
        (b"kept abc day=2026-02-30", "day="),
        (b"kept abc day=26-1-1", "day="),
        (b"kept abc size=-1", "size="),
        (b"kept abc size=18446744073709551616", "size="),
        (b"kept abc colour=red", "fields are"),
        (b"kept abc tries=1", "belong to quarantined"),
        (b"kept abc reached", "name=value"),
        (b"kept abc to=#0000000000000001", "to belongs to owed"),
        (b"quarantined abc to=#0000000000000001", "to belongs to owed"),
        (b"owed abc", "'owed' takes to="),
        (b"owed abc reached reason=to=#0000000000000001", "'owed' takes to="),
        (b"owed abc to=", "a hash is"),
        (b"owed abc to=#0000000000000001,", "a hash is"),
        (b"owed abc to=alice@example.com", "a hash is"),
        (b"owed abc to=#0000000000000001 settled", "name=value"),
        (b"copy", "'copy' takes"),
        (b"copy #0000000000000001", "'copy' takes"),
        (b"copy id=1 day=2026-01-01", "'copy' takes"),
        (b"copy id=1 digest=0", "'copy' takes"),
        (b"copy id=1 digest=2 size=3", "'copy' takes"),
        (b"copy id=1 digest=2 of=", "'copy' takes"),
        (b"copy id=1 digest=2 of=0100000000000000", "'copy' takes"),
        (b"copy id=1 digest=2 day=soon", "'copy' takes"),
        (b"kept a%zz", "two hexadecimal"),
        (b"kept a%2", "two hexadecimal"),
        (b"quarantined abc next=soon", "next="),
        (b"forget abc", "a hash is"),
        (b"forget #00 x", "a hash is"),
        (b"missing #0000000000000000 day=2026-01-01", "listings"),
        (b"\0\0\0\0", "begins with"),
        (b"\xff\xfe", "begins with"),
    ] {
        let error = parser.line(line).map(|line| format!("{line:?}")).unwrap_err();
        assert!(error.contains(why), "{}: {error}", String::from_utf8_lossy(line));
    }
}

// quirks: "Equal UIDs for different messages ...; UIDs of 71, 128, 1000, 20000 characters; spaces, 8-bit, `/`"
#[test]
fn long_and_odd_uids_come_back_as_they_were() {
    for uid in [
        &b""[..],
        b" ",
        b"%",
        b"a b",
        b"#",
        b"/../../etc",
        b"\r\n",
        b"\0\xff\x80",
        &[b'x'; 71],
        &[b'y'; 128],
        &[b'%'; 1000],
        &vec![0xe4; 20_000],
        &vec![b' '; MOST_UID],
    ] {
        let entry = Entry { state: State::Kept, day: 20_000, size: 1, message_id: 2, digest: 3 };
        let mut text = Vec::new();
        write_put(&mut text, uid, &entry, None);
        assert_eq!(memchr::memchr(b'\n', &text), Some(text.len() - 1));
        assert_eq!(read_back(&text), (uid.to_vec(), entry, None));
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        uid in prop::collection::vec(any::<u8>(), 0..80),
        kind in 0..5,
        day in -700_000..2_000_000_i32,
        numbers in any::<(u64, u64, u64)>(),
        missed in prop::option::of((0..100_000_i32, 1..4_u8)),
        (attempts, next_try, reason) in (any::<u16>(), 0..4_000_000_000_i64, "[ -~äö]{0,120}"),
        (to, reached) in (prop::collection::btree_set(any::<u64>(), 1..30), any::<bool>()),
    ) {
        let state = match kind {
            0 => State::Kept,
            1 => State::Deleting,
            2 => State::Uncertain,
            3 => State::Quarantined { attempts, next_try, reason: reason.trim().into() },
            _ => {
                let (reason, to) = (reason.trim().into(), to.into_iter().collect());
                State::Owed { attempts, next_try, reason, to, reached }
            }
        };
        let entry = Entry { state, day, size: numbers.0, message_id: numbers.1, digest: numbers.2 };
        let mut text = Vec::new();
        write_put(&mut text, &uid, &entry, missed);
        prop_assert_eq!(read_back(&text), (uid, entry, missed));
    }

    #[test]
    fn a_copy_that_is_written_reads_back(message_id in 1..=u64::MAX, digest in 1..=u64::MAX, origin in 0..1_u64 << 56, day in -700_000..2_000_000_i32) {
        let mut text = Vec::new();
        write_copy(&mut text, message_id, digest, origin, day);
        let line = text.strip_suffix(b"\n").unwrap();
        let mut parser = Parser::new(1);
        prop_assert_eq!(parser.line(line), Ok(Line::Copy { message_id, digest, origin, day }));
    }

    #[test]
    fn no_line_makes_the_parser_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(why) = Parser::new(1).line(&line) {
            prop_assert!(!why.is_empty());
        }
    }

    #[test]
    fn garbage_behind_a_state_does_not_make_the_parser_panic(rest in "[ =/%#a-z0-9-]{0,60}") {
        for word in ["kept", "quarantined", "owed", "owed u", "copy", "missing", "forget"] {
            if let Err(why) = Parser::new(1).line(format!("{word} {rest}").as_bytes()) {
                prop_assert!(!why.is_empty());
            }
        }
    }

    #[test]
    fn scanning_in_any_portions_sees_the_same_lines(
        lines in prop::collection::vec("[a-z]{0,40}", 0..50), tail in "[a-z]{0,10}", portion in 1..50_usize,
    ) {
        struct Portions<'a>(&'a [u8], usize);
        impl Read for Portions<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let count = self.1.min(self.0.len()).min(buffer.len());
                buffer[..count].copy_from_slice(&self.0[..count]);
                self.0 = &self.0[count..];
                Ok(count)
            }
        }
        let mut text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
        let length = text.len() as u64;
        text.push_str(&tail);
        let mut seen = Vec::new();
        let scanned = scan(Portions(text.as_bytes(), portion), 7, |_, line| {
            seen.push(String::from_utf8(line.to_vec()).unwrap());
            Ok::<_, ()>(())
        });
        let wanted = Scanned { length, torn: tail.len() as u64, lines: lines.len() as u64 };
        prop_assert_eq!(scanned.unwrap(), wanted);
        prop_assert_eq!(seen, lines);
    }
}

#[test]
fn the_longest_line_there_can_be_is_read() {
    let to: Box<[u64]> = (0..MOST_OWED as u64).collect();
    let state = State::Owed {
        attempts: u16::MAX,
        next_try: 253_000_000_000,
        reason: "\u{1f4a9}".repeat(200).into(),
        to,
        reached: true,
    };
    let entry = Entry { state, day: 2_932_896, size: u64::MAX, message_id: u64::MAX, digest: u64::MAX };
    let mut text = Vec::new();
    write_put(&mut text, &vec![0xff; MOST_UID], &entry, Some((2_932_896, 3)));
    assert!(text.len() <= MOST_LINE, "{}", text.len());
    let mut lines = 0;
    scan(&text[..], 0, |_, line| {
        lines += 1;
        assert_eq!(Parser::new(1).line(line).map(|line| matches!(line, Line::Put { .. })), Ok(true));
        Ok::<_, ()>(())
    })
    .unwrap();
    assert_eq!(lines, 1);
    assert_eq!(read_back(&text), (vec![0xff; MOST_UID], entry, Some((2_932_896, 3))));
    let more = [&text[..text.len() - 1], b" to="].concat();
    let more = String::from_utf8(more).unwrap().replace("to=", "to=#0000000000000000,");
    assert!(Parser::new(1).line(more.as_bytes()).unwrap_err().contains("1000"));
}

#[test]
fn an_endless_line_ends_the_scan() {
    let scanned = scan(io::repeat(b'x'), 0, |_, _| Ok::<_, ()>(()));
    assert!(matches!(scanned, Err(ScanError::Endless(1))));
}

#[test]
fn the_header_gives_its_salt_back() {
    let salt = *b"\x00\x01\xfe\xffabcdefghijkl";
    let text = header(salt);
    let first = text.split(|octet| *octet == b'\n').next().unwrap();
    assert_eq!(parse_header(first), Ok(salt));
    assert!(parse_header(b"rpop-ledger 2 salt=").unwrap_err().contains("newer"));
    assert!(parse_header(b"kept abc").is_err());
}
