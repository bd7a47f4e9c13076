use proptest::prelude::*;

use super::*;

const HEADER: &[u8] = b"From: Alice <alice@example.org>\r\nTo: nobody@example.com\r\nSubject: hello\r\n\
    Message-ID: <1@example.org>\r\n";

fn address(text: &str) -> Mailbox {
    Mailbox::parse(text).unwrap()
}

fn refused(to: &str, code: u16, text: &str) -> Refused {
    Refused { address: address(to), code, text: text.to_owned(), by: Some("mail.example.com".into()) }
}

fn octets(header: &[u8], refused: &[Refused]) -> Vec<u8> {
    to("alice@example.org", None, header, refused)
}

fn to(whom: &str, in_stead_of: Option<&ReversePath>, header: &[u8], refused: &[Refused]) -> Vec<u8> {
    let pieces = Notification {
        reporting_mta: "mx.example.com",
        to: &address(whom),
        from: &address("postmaster@example.com"),
        refused,
        others_wait: false,
        header,
        in_stead_of,
        now: "2026-11-23T17:35:52.25Z".parse().unwrap(),
        unique: 0x2a,
        arrived: "2026-11-23T17:30:00Z".parse().unwrap(),
    }
    .compose();
    assert_wire(&pieces);
    pieces.iter().flat_map(Piece::unstuffed).flatten().collect()
}

/// What [`Piece`] promises.
fn assert_wire(pieces: &[Piece]) {
    let whole: Vec<u8> = pieces.iter().flat_map(|piece| piece.bytes.to_vec()).collect();
    assert!(whole.ends_with(b"\r\n"));
    for line in String::from_utf8_lossy(&whole).split_terminator("\r\n") {
        assert!(!line.contains(['\r', '\n']), "a bare line end in {line:?}");
        assert_ne!(line, ".", "a line that ends the message");
    }
    for line in whole.split(|octet| *octet == b'\n') {
        assert!(line.len() <= LONGEST_LINE + 1, "{} octets in a line", line.len());
    }
    let mut line_start = true;
    for piece in pieces {
        assert_eq!(piece.at_line_start, line_start);
        assert_eq!(piece, &Piece::new(piece.bytes.clone(), line_start));
        line_start = piece.bytes.ends_with(b"\n");
    }
}

fn text(header: &[u8], refused: &[Refused]) -> String {
    String::from_utf8(octets(header, refused)).unwrap()
}

#[test]
fn a_notification_reads_like_this() {
    let got = text(HEADER, &[refused("nobody@example.com", 550, "5.1.1 No such user here")]);
    let expected = "From: Mail Delivery System <postmaster@example.com>
To: alice@example.org
Subject: Your message was not delivered to one recipient
Date: Mon, 23 Nov 2026 17:35:52 +0000
Message-ID: <1795455352250.000000000000002a@mx.example.com>
In-Reply-To: <1@example.org>
References: <1@example.org>
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary=\"=_rpop_000000000000002a_1a2097a7dba\"

--=_rpop_000000000000002a_1a2097a7dba
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 7bit

This is the mail system at
    mx.example.com

Your message, which arrived here on Mon, 23 Nov 2026 17:30:00 +0000, was not delivered to
one recipient. Their mail server refused it for good; it is not tried again.

    nobody@example.com
        mail.example.com said: 550 5.1.1 No such user here

All other recipients are taken care of: your message need not be sent to them
again.

The header of your message is attached.

--=_rpop_000000000000002a_1a2097a7dba
Content-Type: message/delivery-status
Content-Transfer-Encoding: 7bit

Reporting-MTA: dns; mx.example.com
Arrival-Date: Mon, 23 Nov 2026 17:30:00 +0000

Final-Recipient: rfc822; nobody@example.com
Action: failed
Status: 5.1.1
Remote-MTA: dns; mail.example.com
Diagnostic-Code: smtp; 550 5.1.1 No such user here

--=_rpop_000000000000002a_1a2097a7dba
Content-Type: text/rfc822-headers
Content-Transfer-Encoding: 7bit

From: Alice <alice@example.org>
To: nobody@example.com
Subject: hello
Message-ID: <1@example.org>

--=_rpop_000000000000002a_1a2097a7dba--
";
    assert_eq!(got.replace("\r\n", "\n"), expected);
}

#[test]
fn the_postmaster_is_told_why_it_is_told() {
    let one = [refused("nobody@example.com", 550, "no")];
    let got = to("postmaster@example.com", Some(&ReversePath(None)), HEADER, &one);
    let got = String::from_utf8(got).unwrap();
    assert!(got.contains("Subject: A message was not delivered to one recipient\r\n"), "{got}");
    assert!(got.contains("the message has the null sender"), "{got}");
    let sender = ReversePath(Some(address("alice@example.org")));
    let got = String::from_utf8(to("postmaster@example.com", Some(&sender), HEADER, &one)).unwrap();
    assert!(got.contains("no way to tell the sender:\r\n    alice@example.org\r\n"), "{got}");
}

#[test]
fn the_status_is_the_servers_or_what_its_reply_code_says() {
    for (code, said, expected) in [
        (550, "5.7.26 not authenticated", "5.7.26"),
        (550, "5.1.1", "5.1.1"),
        (550, "  5.2.1 disabled", "5.2.1"),
        (550, "2.0.0 a contradiction", "5.0.0"),
        (550, "5.1 half a code", "5.0.0"),
        (550, "5.1.1.1 one too many", "5.0.0"),
        (550, "5.1.1111 no code", "5.0.0"),
        (550, "5.1.x", "5.0.0"),
        (550, "No user 5.1.1", "5.0.0"),
        (550, "", "5.0.0"),
        (552, "mailbox full", "5.2.2"),
        (553, "bad address", "5.1.3"),
        (556, "takes no mail", "5.1.10"),
        (u16::MAX, "", "5.0.0"),
    ] {
        let got = text(HEADER, &[refused("n@example.com", code, said)]);
        assert!(got.contains(&format!("Action: failed\r\nStatus: {expected}\r\n")), "{code} {said}: {got}");
    }
}

#[test]
fn many_recipients_are_all_in_the_report_and_a_hundred_in_words() {
    let all: Vec<_> =
        (0..1000).map(|at| refused(&format!("user{at}@example.com"), 550, "5.1.1 no")).collect();
    let got = text(HEADER, &all);
    assert_eq!(got.matches("\r\nFinal-Recipient: rfc822; user").count(), 1000);
    assert_eq!(got.matches(" said: 550 5.1.1 no\r\n").count(), MOST_IN_WORDS);
    assert!(got.contains("and to 900 more;"));
    assert!(got.contains("not delivered to 1000 recipients\r\n"));
}

#[test]
fn what_is_not_ascii_is_encoded_and_nothing_is_lost() {
    let one = [refused("jürgen+x@exämple.de", 550, "5.1.1 Empfänger unbekannt")];
    let got = text("Subject: Grüße\r\n".as_bytes(), &one);
    assert!(got.is_ascii(), "{got}");
    for expected in [
        "\r\nFinal-Recipient: utf-8; j\\x{FC}rgen\\x{2B}x@ex\\x{E4}mple.de\r\n",
        "\r\nDiagnostic-Code: smtp; 550 5.1.1 Empf\\x{E4}nger unbekannt\r\n",
        "\r\n    j=C3=BCrgen+x@ex=C3=A4mple.de\r\n",
        "Content-Type: text/rfc822-headers; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n\
         Subject: Gr=C3=BC=C3=9Fe\r\n",
    ] {
        assert!(got.contains(expected), "{expected} is not in\n{got}");
    }
}

#[test]
fn a_sender_with_utf8_gets_the_header_as_it_was() {
    let one = [refused("n@example.com", 550, "no")];
    let got = to("jürgen@example.org", None, "Subject: Grüße\r\n".as_bytes(), &one);
    let got = String::from_utf8(got).unwrap();
    assert!(got.contains("\r\nTo: jürgen@example.org\r\n"));
    let part =
        "Content-Type: message/global-headers\r\nContent-Transfer-Encoding: 8bit\r\n\r\nSubject: Grüße\r\n";
    assert!(got.contains(part), "{got}");
    let (own, _) = got.split_once("\r\n\r\n").unwrap();
    assert!(own.contains("Content-Transfer-Encoding: 8bit"), "{own}");
    // Latin-1 is no UTF-8, and stays encoded.
    let got = to("jürgen@example.org", None, b"Subject: Gr\xfc\xdfe\r\n", &one);
    assert!(String::from_utf8(got).unwrap().contains("quoted-printable\r\n\r\nSubject: Gr=FC=DFe\r\n"));
}

#[test]
fn hostile_headers_stay_within_their_part() {
    let one = [refused("n@example.com", 550, "no")];
    let boundary = "--=_rpop_000000000000002a_1a2097a7dba";
    let long = format!("X: {}\r\n", "y".repeat(5000));
    let forged = format!("A: b\r\n{boundary}--\r\n{boundary}\r\nC: d\r\n");
    for (header, expected) in [
        (forged.as_bytes(), "A: b\r\n--=3D_rpop"),
        (long.as_bytes(), "X: yyyyyyy"),
        (b"A: b\rBcc: x\r\n", "A: b=0DBcc: x\r\n"),
        (b"A: b\nBcc: x\r\n", "A: b=0ABcc: x\r\n"),
        (b"A: \0\x1b[31m \r\n", "A: =00=1B[31m=20\r\n"),
        (b".\r\n..\r\n", "\r\n\r\n.\r\n..\r\n"),
        (b"", "Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\r\n--="),
        (
            b"\r\n\r\n\n\n",
            "Content-Type: text/rfc822-headers\r\nContent-Transfer-Encoding: 7bit\r\n\r\n\r\n--=",
        ),
    ] {
        let got = text(header, &one);
        assert!(got.contains(expected), "{expected} is not in\n{got}");
        assert_eq!(got.matches(&format!("\r\n{boundary}")).count(), 4, "{got}");
    }
}

#[test]
fn no_more_than_a_bounded_part_of_a_header_is_returned() {
    let line = format!("X-Filler: {}\r\n", "z".repeat(88));
    let got = text(line.repeat(3000).as_bytes(), &[refused("n@example.com", 550, "no")]);
    assert!(got.len() < MOST_HEADER + 4096, "{}", got.len());
    assert_eq!(got.matches("X-Filler").count(), MOST_HEADER / line.len(), "whole lines");
    let got = text(&vec![b'z'; 1 << 20], &[refused("n@example.com", 550, "no")]);
    assert!(got.len() < 2 * MOST_HEADER, "{}", got.len());
}

#[test]
fn texts_of_servers_cannot_add_lines_or_fields() {
    let said = "5.1.1 no\r\nBcc: x@y\r\n\r\n.\r\n--=_rpop_000000000000002a_1a2097a7dba--";
    let got = text(HEADER, &[refused("n@example.com", 550, said)]);
    assert!(!got.contains("\nBcc") && !got.contains("\n.\r\n"), "{got}");
    assert_eq!(got.matches("\r\n--=_rpop").count(), 4, "{got}");
    let mut evil = refused("n@example.com", 550, "no");
    evil.by = Some("mail.example\r\nBcc: x".into());
    assert!(text(HEADER, &[evil]).contains("Remote-MTA: dns; mail.example--Bcc--x\r\n"));
}

#[test]
fn only_a_safe_message_id_is_taken_over() {
    for (header, expected) in [
        ("Message-ID: <a@b>\r\n", Some("<a@b>")),
        ("X: y\r\nmessage-id : <a$1.2!=@[127.0.0.1]>\r\n", Some("<a$1.2!=@[127.0.0.1]>")),
        ("Message-ID:\r\n <a@b>\r\nX: y\r\n", Some("<a@b>")),
        ("Message-ID: <a@b> (x)\r\nMessage-ID: <c@d>\r\n", Some("<a@b>")),
        ("Message-ID: <a\r\n @b>\r\n", None),
        ("Message-ID: <a b@c>\r\n", None),
        ("Message-ID: <a>\r\n", None),
        ("Message-ID: a@b\r\nX: <c@d>\r\n", None),
        ("Message-ID: <<a@b>\r\n", None),
        ("Message-ID: <\"a\"@b>\r\n", None),
        ("Message-ID: <a\r@b>\r\n", None),
        ("Message-ID: <ä@b>\r\n", None),
        ("Message-IDs: <a@b>\r\n", None),
        (" Message-ID: <a@b>\r\n", None),
        ("Message-ID: <a@b", None),
        ("Message-ID:", None),
        ("", None),
    ] {
        assert_eq!(message_id(header.as_bytes()), expected, "{header:?}");
    }
    let long = format!("Message-ID: <{}@b>\r\n", "a".repeat(300));
    assert_eq!(message_id(long.as_bytes()), None);
}

#[test]
fn an_address_that_grows_beyond_a_line_is_folded() {
    let long = format!("{}@{}.de", "ä".repeat(32), "\u{7ff}".repeat(126));
    let got = text(HEADER, &[refused(&long, 550, &"ü".repeat(200))]);
    assert!(got.contains("\r\nFinal-Recipient: utf-8; \\x{E4}"), "{got}");
    assert!(got.contains("\\x{E4}\r\n @\\x{7FF}"), "{got}");
    assert!(got.contains("\\x{FC}...\r\n"), "a diagnostic is cut: {got}");
}

/// An independent little decoder.
fn decoded(text: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(text.to_vec()).unwrap().replace("=\r\n", "");
    let mut out = Vec::new();
    let mut rest = text.as_str();
    while let Some((before, behind)) = rest.split_once('=') {
        out.extend_from_slice(before.as_bytes());
        let (digits, behind) = behind.split_at(2);
        out.push(u8::from_str_radix(digits, 16).unwrap());
        rest = behind;
    }
    out.extend_from_slice(rest.as_bytes());
    out
}

/// Octets that hurt, and others.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let known: [&[u8]; 9] =
        [b"\r\n", b"\r", b"\n", b"--=_rpop_", b".", b" ", b"=", b"Message-ID: <a@b>", "ü".as_bytes()];
    let fragment = prop_oneof![
        prop::sample::select(known.to_vec()).prop_map(<[u8]>::to_vec),
        any::<[u8; 4]>().prop_map(|octets| octets.to_vec()),
    ];
    prop::collection::vec(fragment, 0..40).prop_map(|fragments| fragments.concat())
}

proptest! {
    #[test]
    fn quoted_printable_keeps_every_octet(octets in hostile()) {
        let mut encoded = Vec::new();
        quoted_printable(&mut encoded, &octets);
        prop_assert!(encoded.is_ascii());
        for line in String::from_utf8(encoded.clone()).unwrap().split("\r\n") {
            prop_assert!(line.len() <= 76 && !line.ends_with([' ', '\t']) && !line.contains(['\r', '\n']));
        }
        prop_assert_eq!(decoded(&encoded), octets);
    }

    #[test]
    fn any_input_makes_a_message_of_three_ascii_parts(
        header in hostile(),
        said in hostile(),
        by in hostile(),
        code in any::<u16>(),
    ) {
        let [said, by] = [said, by].map(|octets| String::from_utf8_lossy(&octets).into_owned());
        let one = Refused { address: address("n@example.com"), code, text: said, by: Some(by.into()) };
        let got = octets(&header, &[one]);
        prop_assert!(got.is_ascii());
        let got = String::from_utf8(got).unwrap();
        prop_assert_eq!(got.matches("\r\n--=_rpop_").count(), 4);
        prop_assert_eq!(got.matches("\r\nFinal-Recipient:").count(), 1);
    }
}
