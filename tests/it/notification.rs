//! Delivery status notifications, opened by a parser that is not ours:
//! Python's `email` package.

use std::cell::RefCell;

use proptest::prelude::*;
use rpop::domain::envelope::{Mailbox, ReversePath};
use rpop::domain::wire::Piece;
use rpop::message::{Notification, Refused};

use crate::support::report::{Found, Reader};

fn address(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

/// Whom to tell, and of what.
struct Case<'a> {
    to: &'a Mailbox,
    in_stead_of: Option<&'a ReversePath>,
    header: &'a [u8],
    refused: &'a [Refused],
}

impl Case<'_> {
    fn octets(&self) -> Vec<u8> {
        let notification = Notification {
            reporting_mta: "mx.example.com",
            to: self.to,
            from: &address("postmaster@example.com"),
            refused: self.refused,
            others_wait: false,
            header: self.header,
            in_stead_of: self.in_stead_of,
            now: "2026-11-23T17:35:52Z".parse().unwrap(),
            unique: 7,
            arrived: "2026-11-23T17:30:00Z".parse().unwrap(),
        };
        notification.compose().iter().flat_map(Piece::unstuffed).flatten().collect()
    }
}

/// What holds for every notification, whatever was put into it.
fn assert_sound(found: &Found, refused: &[Refused]) {
    assert_eq!(found.kind, "multipart/report");
    assert_eq!(found.report_type.as_deref(), Some("delivery-status"));
    assert_eq!(found.defects, [""; 0]);
    assert_eq!((found.preamble.as_str(), found.epilogue.as_str()), ("", ""));
    let kinds: Vec<_> = found.parts.iter().map(|part| part.kind.as_str()).collect();
    assert_eq!(kinds[..2], ["text/plain", "message/delivery-status"]);
    assert!(matches!(kinds[2..], ["text/rfc822-headers" | "message/global-headers"]), "{kinds:?}");
    let own = ["From", "To", "Subject", "Date", "Message-ID"];
    assert_eq!(found.header.names()[..5], own);
    let last = ["Auto-Submitted", "MIME-Version", "Content-Type"];
    let rest: Vec<_> = found.header.names()[5..]
        .iter()
        .filter(|name| !["In-Reply-To", "References", "Content-Transfer-Encoding"].contains(name))
        .copied()
        .collect();
    assert_eq!(rest, last, "no field but ours");

    assert_eq!(found.parts[1].encoding.as_deref(), Some("7bit"));
    assert_eq!(found.status.len(), 1 + refused.len());
    assert!(found.status_bodies.iter().all(String::is_empty), "{:?}", found.status_bodies);
    assert_eq!(found.status[0].names(), ["Reporting-MTA", "Arrival-Date"]);
    for (fields, one) in found.status[1..].iter().zip(refused) {
        let mut names = vec!["Final-Recipient", "Action", "Status", "Remote-MTA", "Diagnostic-Code"];
        names.retain(|name| *name != "Remote-MTA" || one.by.is_some());
        assert_eq!(fields.names(), names);
        if one.address.as_str().is_ascii() {
            assert_eq!(fields.value("Final-Recipient").unwrap(), format!("rfc822; {}", one.address));
        } else {
            assert!(fields.value("Final-Recipient").unwrap().starts_with("utf-8; "));
        }
        assert_eq!(fields.value("Action"), Some("failed"));
        assert!(fields.value("Status").unwrap().starts_with("5."));
        let said = fields.value("Diagnostic-Code").unwrap();
        assert!(said.starts_with(&format!("smtp; {}", one.code)), "{said}");
    }
}

#[test]
fn another_programs_parser_finds_all_that_a_notification_says() {
    let Some(mut reader) = Reader::start("another_programs_parser_finds_all_that_a_notification_says") else {
        return;
    };
    let said = "5.1.1 The address that you sent this to is not one of ours, and has not been one for years";
    let refused = [
        Refused {
            address: address("nobody@example.com"),
            code: 550,
            text: said.into(),
            by: Some("mail.example.com".into()),
        },
        Refused { address: address("jürgen@exämple.de"), code: 552, text: "zu groß".into(), by: None },
    ];
    let header = b"From: Alice <alice@example.org>\r\nSubject: hello\r\nMessage-ID: <1@example.org>\r\n";
    let to = address("alice@example.org");
    let case = Case { to: &to, in_stead_of: None, header, refused: &refused };
    let octets = case.octets();
    assert!(octets.is_ascii(), "goes through any mail system");
    let found = reader.read(&octets);
    assert_sound(&found, &refused);
    assert_eq!(found.header_defects, [""; 0]);
    for (name, value) in [
        ("From", "Mail Delivery System <postmaster@example.com>"),
        ("To", "alice@example.org"),
        ("Subject", "Your message was not delivered to 2 recipients"),
        ("Date", "Mon, 23 Nov 2026 17:35:52 +0000"),
        ("In-Reply-To", "<1@example.org>"),
        ("References", "<1@example.org>"),
        ("Auto-Submitted", "auto-replied"),
    ] {
        assert_eq!(found.header.value(name), Some(value));
    }
    assert_eq!(found.status[0].value("Reporting-MTA"), Some("dns; mx.example.com"));
    assert_eq!(found.status[0].value("Arrival-Date"), Some("Mon, 23 Nov 2026 17:30:00 +0000"));
    assert_eq!(found.status[1].value("Status"), Some("5.1.1"));
    assert_eq!(found.status[1].value("Remote-MTA"), Some("dns; mail.example.com"));
    assert_eq!(found.status[1].value("Diagnostic-Code").unwrap(), format!("smtp; 550 {said}"));
    assert_eq!(found.status[2].value("Final-Recipient"), Some("utf-8; j\\x{FC}rgen@ex\\x{E4}mple.de"));
    assert_eq!(found.status[2].value("Status"), Some("5.2.2"));
    let words = found.parts[0].text();
    for expected in
        ["\n    nobody@example.com\n", "mail.example.com said: 550 5.1.1 The", "jürgen@exämple.de", "zu groß"]
    {
        assert!(words.contains(expected), "{words}");
    }
    assert_eq!(found.parts[2].octets(), header);

    // The sender's address has UTF-8: then the header comes as it was.
    let to = address("jürgen@example.org");
    let header = "Subject: Grüße\r\nFrom: Jürgen <jürgen@example.org>\r\n".as_bytes();
    let found = reader.read(&Case { to: &to, in_stead_of: None, header, refused: &refused }.octets());
    assert_sound(&found, &refused);
    assert_eq!(found.parts[2].kind, "message/global-headers");
    assert_eq!(found.header.value("To"), Some("jürgen@example.org"));
}

#[test]
fn a_thousand_refusals_are_one_notification() {
    let Some(mut reader) = Reader::start("a_thousand_refusals_are_one_notification") else { return };
    let refused: Vec<_> = (0..1000)
        .map(|at| Refused {
            address: address(&format!("user{at}@example.com")),
            code: 550,
            text: "5.1.1 unknown".into(),
            by: None,
        })
        .collect();
    let to = address("postmaster@example.com");
    let null = ReversePath(None);
    let case = Case { to: &to, in_stead_of: Some(&null), header: b"A: b\r\n", refused: &refused };
    let found = reader.read(&case.octets());
    assert_sound(&found, &refused);
    assert_eq!(found.header_defects, [""; 0]);
    assert_eq!(found.header.value("Subject"), Some("A message was not delivered to 1000 recipients"));
}

/// Octets that hurt, and others.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let known: [&[u8]; 12] = [
        b"\r\n",
        b"\r\n\r\n",
        b"\r",
        b"\n",
        b"--=_rpop_0000000000000007_1a2097a7cc0",
        b"\r\n.\r\n",
        b"Content-Type: multipart/mixed; boundary=x\r\n",
        b"\r\nMessage-ID: <a@b>",
        b"Subject: =?utf-8?q?=0D=0ABcc:?=",
        b"\0",
        b"\xff\xfe",
        "ü\u{202e}".as_bytes(),
    ];
    let fragment = prop_oneof![
        3 => prop::sample::select(known.to_vec()).prop_map(<[u8]>::to_vec),
        2 => any::<[u8; 4]>().prop_map(|octets| octets.to_vec()),
        1 => (any::<u8>(), 1..1200_usize).prop_map(|(octet, count)| vec![octet; count]),
    ];
    prop::collection::vec(fragment, 0..24).prop_map(|fragments| fragments.concat())
}

/// Lines that could stand in a part as they are, were they not what they are.
fn hostile_lines() -> impl Strategy<Value = Vec<u8>> {
    let lines = [
        "--=_rpop_0000000000000007_1a2097a7cc0",
        "--=_rpop_0000000000000007_1a2097a7cc0--",
        "--",
        ".",
        "..",
        "",
        " folded",
        "From nobody",
        "Message-ID: <a@b>",
        "In-Reply-To: <a@b>",
        "Content-Type: multipart/mixed; boundary=x",
    ];
    prop::collection::vec(prop::sample::select(lines.to_vec()), 0..12)
        .prop_map(|lines| lines.join("\r\n").into_bytes())
}

/// Addresses of all forms that an envelope can hold.
fn mailbox() -> impl Strategy<Value = Mailbox> {
    "([!#$%&'*+/=?^_`{|}~a-z-]{1,20}|\"([ !#-Z^-~]|\\\\[ -~]){1,20}\"|[a-zäß→]{1,20})@([a-z]{1,9}\\.example|exämple\\.de|\\[192\\.0\\.2\\.1\\])"
        .prop_filter_map("an address", |text| Mailbox::parse(&text).ok())
}

#[test]
fn hostile_texts_addresses_and_headers_break_nothing() {
    let Some(reader) = Reader::start("hostile_texts_addresses_and_headers_break_nothing") else { return };
    let reader = RefCell::new(reader);
    let refused = (mailbox(), any::<u16>(), hostile(), prop::option::of(hostile())).prop_map(
        |(address, code, text, by)| Refused {
            address,
            code,
            text: String::from_utf8_lossy(&text).into_owned(),
            by: by.map(|by| String::from_utf8_lossy(&by).into_owned().into()),
        },
    );
    let all =
        (mailbox(), prop::option::of(prop::option::of(mailbox())), prop_oneof![hostile(), hostile_lines()]);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) };
    proptest!(config, |((to, stead, header) in all, refused in prop::collection::vec(refused, 1..4))| {
        let stead = stead.map(ReversePath);
        let case = Case { to: &to, in_stead_of: stead.as_ref(), header: &header, refused: &refused };
        let octets = case.octets();
        prop_assert!(to.needs_utf8() || octets.is_ascii());
        let found = reader.borrow_mut().read(&octets);
        assert_sound(&found, &refused);
        if !to.needs_utf8() {
            prop_assert_eq!(&found.header_defects, &[""; 0]);
            let mut kept = header.as_slice();
            while let Some(rest) = kept.strip_suffix(b"\n").or_else(|| kept.strip_suffix(b"\r")) {
                kept = rest;
            }
            let end: &[u8] = if kept.is_empty() { b"" } else { b"\r\n" };
            let returned = found.parts[2].octets();
            prop_assert_eq!(returned, [kept, end].concat(), "every octet but line ends behind it");
        }
    });
}
