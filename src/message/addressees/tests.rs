use std::collections::HashSet;

use mail_parser::HeaderValue;
use mail_parser::parsers::MessageStream;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::message::header::Scanner;
use crate::message::{MAX_HEADER, Unify};

/// What `scan` hands over; `?` for what fits no envelope.
fn all(value: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    let end = scan::scan(value, |one| {
        found.push(one.map_or_else(|| "?".to_owned(), |one| one.to_string()));
        ControlFlow::Continue(())
    });
    assert_eq!(end, ControlFlow::Continue(()));
    found
}

fn found(special: &Special, header: &[u8]) -> Addressees {
    let mut scanner = Scanner::unified(&Unify { special: special.clone(), copies: None });
    scanner.finish(header);
    find(special, &scanner.fields, |field| Bytes::copy_from_slice(&header[field.value..field.all.end]))
}

fn names(addressees: &Addressees) -> Vec<&str> {
    addressees.found.iter().map(Mailbox::as_str).collect()
}

/// RCPT with an A-label needs no SMTPUTF8, and is what the domain is called.
#[test]
fn an_internationalised_domain_is_found_by_its_ascii_form_once() {
    let header = "X-Real-To: alice@exämple.com, Alice <alice@XN--EXMPLE-CUA.com>\r\n <ü@EXÄMPLE.com>\r\n\r\n";
    let found = found(&Special::Header("X-Real-To".into()), header.as_bytes());
    assert_eq!(names(&found), ["alice@xn--exmple-cua.com", "ü@xn--exmple-cua.com"]);
}

#[test]
fn it_breaks_off_when_told() {
    let mut seen = 0;
    let end = scan::scan(b"a@b, c@d, e@f", |_| {
        seen += 1;
        if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!((seen, end), (2, ControlFlow::Break(())));
}

#[test]
fn addresses_are_never_made_of_what_stands_apart() {
    for (value, expected) in [
        ("alice smith@b.example", &["smith@b.example"][..]),
        ("<alice smith@b.example>", &["?"]),
        ("<alice> <@b.example>", &["?", "?"]),
        ("alice \"x\"@b.example", &["x@b.example"]),
        ("alice\"x\"@b.example", &["?"]),
        ("\"x\"alice@b.example", &["?"]),
        ("<\"x\"alice@b.example>", &["?"]),
        ("<\"x\" \"y\"@b.example>", &["?"]),
        ("a@b.example c", &["a@b.example"]),
        ("<a@b.example c>", &["?"]),
        ("<a@b.example (c) d>", &["?"]),
        ("a@b.example\r\n c@d.example", &["a@b.example", "c@d.example"]),
        ("=?u?q?a?=@b.example", &["?"]),
        ("a=?u?q?b?=@c.example", &["a=?u?q?b?=@c.example"]),
    ] {
        assert_eq!(all(value.as_bytes()), expected, "{value}");
    }
}

#[test]
fn quotes_are_kept_only_where_they_are_needed() {
    for (value, expected) in [
        (r#""a"@b"#, "a@b"),
        (r#""a b"@c"#, r#""a b"@c"#),
        (r#""\"a\""@b"#, r#""\"a\""@b"#),
        (r#""\a\ b"@c"#, r#""a b"@c"#),
        (r#"<"a."@b>"#, r#""a."@b"#),
        (r#"<"a"."b"@c>"#, "a.b@c"),
        (r#""a@b"@c"#, r#""a@b"@c"#),
        (r#""a@b""#, "a@b"),
    ] {
        assert_eq!(all(value.as_bytes()), [expected], "{value}");
    }
    let long = format!("\"{}\"@b", "\\\"".repeat(40));
    assert_eq!(all(long.as_bytes()), ["?"], "64 octets are allowed, with the quotes and what they need");
}

#[test]
fn overlong_addresses_take_no_memory() {
    let long =
        format!("{}@b.example, c@{}, \"{}\"@d.example", "a".repeat(9000), "b".repeat(9000), "c".repeat(9000));
    assert_eq!(all(long.as_bytes()), ["?", "?", "?"]);
    assert_eq!(all(format!("{}, a@b", "@".repeat(9000)).as_bytes()), ["?", "a@b"]);
}

#[test]
fn a_name_of_many_addresses_is_none() {
    let list = vec!["a@b"; 150].join(" ");
    assert!(all(format!("{list} <c@d>").as_bytes()).len() > 100);
    let list = vec!["a@b"; 50].join(" ");
    assert_eq!(all(format!("{list} <c@d>").as_bytes()), ["c@d"]);
}

#[test]
fn distinct_addresses_are_counted_and_bounded() {
    let header = Special::Header("X-To".into());
    let list = |to: usize| {
        (0..to).fold(String::new(), |list, at| format!("{list}X-To: u{at}@a.example, U{at}@A.example\r\n"))
    };
    let some = found(&header, format!("{}X-To: bad@, <>\r\n\r\n", list(500)).as_bytes());
    assert_eq!((some.found.len(), some.fields, some.unusable, some.more), (1000, 501, 1, false));
    let same = found(&header, format!("{0}{0}\r\n", list(500)).as_bytes());
    assert_eq!((same.found.len(), same.fields, same.more), (1000, 1000, false));
    let more = found(&header, format!("{}X-To: one@more.example\r\n\r\n", list(500)).as_bytes());
    assert_eq!((more.found.len(), more.fields, more.more), (MOST_ADDRESSEES, 501, true));
    assert_eq!(found(&header, b"To: a@b\r\n\r\n"), Addressees::default());
}

#[test]
fn the_fields_of_a_resent_message_come_from_one_block() {
    let star = Special::Addressees;
    for (header, expected) in [
        ("To: a@x\r\nCc: b@x\r\nBcc: c@x\r\n", &["a@x", "b@x", "c@x"][..]),
        ("Resent-To: r@x\r\nTo: a@x\r\n", &["r@x"]),
        ("To: a@x\r\nResent-Bcc: r@x\r\n", &["r@x"]),
        ("Resent-From: f@x\r\nTo: a@x\r\n", &["a@x"]),
        ("Resent-To: 2@x\r\nReceived: y\r\nResent-To: 1@x\r\nTo: a@x\r\n", &["2@x"]),
        ("Resent-To: 2@x\r\nX-Other: y\r\nResent-Cc: 1@x\r\nTo: a@x\r\n", &["2@x"]),
        ("Resent-To: 2@x\r\n folded@x\r\nResent-Cc: 3@x\r\nTo: a@x\r\n", &["2@x", "folded@x", "3@x"]),
        ("Resent-Date: y\r\nResent-To: 2@x\r\nResent-Date: z\r\nResent-To: 1@x\r\n", &["2@x"]),
        ("Resent-To: 2@x\r\nResent-From: y\r\nResent-From: z\r\nResent-To: 1@x\r\n", &["2@x"]),
        ("Resent-From: y\r\nResent-From: z\r\nResent-To: 1@x\r\n", &["1@x"]),
        ("Resent-From: y\r\nReceived: z\r\nResent-To: 1@x\r\nReceived: z\r\nResent-To: 0@x\r\n", &["1@x"]),
        ("Resent-Unknown: y\r\nresent-TO: 1@x\r\nResent-Reply-To: z@x\r\n", &["1@x"]),
        ("Resent: y@x\r\nTo: a@x\r\n", &["a@x"]),
    ] {
        assert_eq!(names(&found(&star, format!("{header}\r\n").as_bytes())), expected, "{header}");
    }
}

#[test]
fn time_grows_with_the_length_and_not_with_its_square() {
    let patterns: [&str; 34] = [
        "(",
        ")",
        "\"",
        "\\",
        "(\\",
        "\"\\",
        "=?",
        "=?u?q?",
        "=?u?q? ",
        "=?u?q?x ,",
        "<",
        "<<a",
        "<@a,",
        "<@a,,,, ",
        "@[",
        "@[1 ",
        "@",
        "@.",
        "a@b ",
        "a@b,",
        "a@b;",
        "a@b<",
        "a@b:",
        ":",
        ",",
        "\r\n ",
        "<\"",
        "()",
        "((a)",
        "a (b)",
        "\"a\" ",
        "\"a\"@b ",
        "'a@b' ",
        ". ",
    ];
    for pattern in patterns {
        for start in ["", "<"] {
            let value = format!("{start}{}", pattern.repeat(MAX_HEADER / pattern.len()));
            let began = Instant::now();
            all(value.as_bytes());
            // A square would take minutes.
            assert!(began.elapsed().as_secs() < 4, "{start}{pattern}: {:?}", began.elapsed());
        }
    }
}

#[test]
fn many_addresses_and_fields_take_little_time() {
    let star = Special::Addressees;
    let headers = [
        (0..10_000).fold("To: x@y".to_owned(), |all, at| format!("{all},\r\n u{at}@some.domain")),
        "To: a@b\r\n".repeat(25_000),
        "Resent-To: a@b\r\n".repeat(15_000),
        "Resent-To:\r\n".repeat(20_000),
        "Resent-From: a\r\n".repeat(16_000),
    ];
    for header in headers {
        assert!(header.len() <= MAX_HEADER + 10_000);
        let began = Instant::now();
        found(&star, header.as_bytes());
        assert!(began.elapsed().as_secs() < 4, "{:?}", began.elapsed());
    }
}

/// Whatever may hold nothing, where white space may stand.
fn blank() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => Just(String::new()),
        3 => Just(" ".to_owned()),
        1 => Just("\r\n ".to_owned()),
        1 => Just("\t".to_owned()),
        1 => Just("(c)".to_owned()),
        1 => Just(" (a (b@c.example, \"d) \\) \\( <e@f.example>;:)\r\n\t".to_owned()),
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        "[A-Za-z]{1,8}( [A-Z]\\.)?( [A-Za-z]{1,8})?",
        Just("shown@elsewhere.example".to_owned()),
        "[ -!#-\\[\\]-~]{0,20}".prop_map(|name| format!("\"{name}\"")),
        Just("\"a \\\" b@c.example, <d@e.example> \\\\\"".to_owned()),
        Just("\"folded\r\n name\"".to_owned()),
        "[a-z=@,_]{1,12}".prop_map(|text| format!("=?utf-8?Q?{text}?=")),
        "[a-zA-Z0-9+/]{4,12}".prop_map(|text| format!("=?koi8-r*ru?b?{text}?=")),
        Just("Grüße, 你好".to_owned()),
    ]
}

fn local() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z0-9!#$%&*+/=^_`{|}~-]{1,8}(\\.[a-zA-Z0-9ü]{1,5}){0,2}",
        1 => "[a-z]{1,3} [ -!#-\\[\\]-~]{0,12}".prop_map(|text| format!("\"{text}\"")),
        1 => Just("\"with \\\"quotes\\\" and \\\\\"".to_owned()),
        1 => Just("\"@\"".to_owned()),
    ]
}

fn domain() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => "[a-z0-9]{1,6}(-[a-z0-9]{1,4})?(\\.[a-zA-Zäß]{1,5}){0,2}",
        1 => Just("[192.0.2.1]".to_owned()),
        1 => Just("[IPv6:2001:db8::1]".to_owned()),
    ]
}

/// An address, and one of the ways to write it.
fn written() -> impl Strategy<Value = (String, String)> {
    (local(), domain(), name(), any::<bool>(), proptest::collection::vec(blank(), 6), 0..4_u8).prop_map(
        |(local, domain, name, angle, blanks, route)| {
            let mut blanks = blanks.iter();
            let mut blank = || blanks.next().map_or("", String::as_str);
            let address = format!("{}{local}{}@{}{domain}{}", blank(), blank(), blank(), blank());
            let text = match (angle, route) {
                (false, _) => address,
                (true, 0) => format!("{}{name}{}<@r.example,@s.example:{address}>", blank(), blank()),
                (true, _) => format!("{}{name}<{address}>{}", blank(), blank()),
            };
            (format!("{local}@{domain}"), text)
        },
    )
}

/// How a list goes on behind an address.
#[derive(Clone, Debug)]
enum Then {
    Comma,
    Commas,
    OpenGroup,
    CloseGroup,
}

fn then() -> impl Strategy<Value = Then> {
    prop_oneof![4 => Just(Then::Comma), 1 => Just(Then::Commas), 1 => Just(Then::OpenGroup), 1 => Just(Then::CloseGroup)]
}

/// Like the others, but as a sane program writes.
fn plainly() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just(String::new()),
        "[A-Za-z]{1,8}( [A-Za-z]{1,8})? ",
        "[A-Za-z,.;:<>@() ]{1,12}".prop_map(|name| format!("\"{name}\" ")),
        "[A-Za-z=_]{1,12}".prop_map(|text| format!("=?utf-8?Q?{text}?= ")),
    ];
    let address = "[a-z0-9+_-]{1,8}(\\.[a-z]{1,4})?@[a-z0-9]{1,8}\\.example";
    let one = prop_oneof![
        (name, address).prop_map(|(name, address)| format!("{name}<{address}>")),
        address.prop_map(|address| address),
        ("[A-Za-z ]{1,8}", address).prop_map(|(name, address)| format!("{address} ({name})")),
    ];
    let list = proptest::collection::vec(one, 1..6);
    prop_oneof![
        list.clone().prop_map(|list| list.join(", ")),
        list.clone().prop_map(|list| list.join(",\r\n ")),
        list.prop_map(|list| format!("Some group: {};", list.join(",\r\n\t"))),
    ]
}

proptest! {
    #[test]
    fn every_address_is_found_however_it_is_written(
        list in proptest::collection::vec((written(), then()), 0..8),
    ) {
        let mut value = String::new();
        let mut in_group = false;
        let mut expected: Vec<String> = Vec::new();
        let mut seen = HashSet::new();
        for ((address, text), then) in list {
            value.push_str(&text);
            value.push_str(match then {
                Then::Commas => ",\r\n , ,",
                Then::OpenGroup if !in_group => ", A \"group:\" (of, people) :",
                Then::CloseGroup if in_group => ";\r\n\t,",
                _ => ",",
            });
            in_group = match then {
                Then::OpenGroup => true,
                Then::CloseGroup => false,
                _ => in_group,
            };
            let address = Mailbox::parse(&address).unwrap().with_ascii_domain();
            if seen.insert((address.local().to_owned(), address.domain().to_lowercase())) {
                expected.push(address.to_string());
            }
        }
        let message = format!("To:{value}\r\nSubject: x\r\n\r\n");
        let got = found(&Special::Addressees, message.as_bytes());
        prop_assert_eq!(names(&got), expected, "{}", value);
        prop_assert_eq!((got.unusable, got.fields, got.more), (0, 1, false));
    }

    #[test]
    fn where_mail_parser_does_well_both_find_the_same(value in plainly()) {
        let line = format!("{value}\r\n");
        let HeaderValue::Address(list) = MessageStream::new(line.as_bytes()).parse_address() else {
            panic!("mail-parser found nothing in {value}")
        };
        let theirs: Vec<String> = list.iter().filter_map(|one| one.address()).map(str::to_owned).collect();
        prop_assert_eq!(all(value.as_bytes()), theirs, "{}", value);
    }

    #[test]
    fn no_octets_make_an_invalid_address(
        value in proptest::collection::vec(any::<u8>(), 0..400)
            .prop_map(|octets| octets.iter().map(|octet| *b"@@..<>(),;:\"\"\\\\[]='? \r\n\tab=?u?q?".get(usize::from(octet / 5)).unwrap_or(octet)).collect::<Vec<u8>>()),
    ) {
        let found = all(&value);
        prop_assert!(found.len() <= value.len());
        for one in found.iter().filter(|one| *one != "?") {
            let parsed = Mailbox::parse(one);
            prop_assert!(parsed.is_ok(), "{one}");
            prop_assert!(!one.chars().any(char::is_control));
        }
        prop_assert_eq!(all(&value), found);
    }

    #[test]
    fn a_good_address_behind_anything_closed_is_found(text in "[a-z@.,;:()\"<>\\[\\]\\\\=?' ]{0,40}") {
        // Whatever went before: a comma, and nothing is open any more.
        let opens = text.contains(['(', '"', '<', '[', '\\']) || text.contains("=?");
        let value = format!("{text}, kim@corp.example");
        prop_assert!(opens || all(value.as_bytes()).last().is_some_and(|last| last == "kim@corp.example"), "{value}");
    }
}
