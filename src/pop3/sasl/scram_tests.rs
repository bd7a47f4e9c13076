use super::*;

const SERVER_FIRST: &str =
    "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

/// RFC 7677, section 3.
fn example(binding: Binding<'_>) -> Start {
    Start::with_nonce("user", binding, "rOprNGfwEbeRWgbNEkqO".to_owned())
}

#[test]
fn the_example_of_the_rfc_is_answered() {
    let start = example(Binding::Impossible);
    assert_eq!(start.message().as_slice(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
    let proof = start.hear(SERVER_FIRST.as_bytes()).unwrap().prove(b"pencil");
    assert_eq!(
        std::str::from_utf8(proof.message()).unwrap(),
        "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
         p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    );
    let last = ServerFinal::parse(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
    let ServerFinal::Signature(signature) = last else { panic!("{last:?}") };
    assert!(proof.is_by_the_server(&signature));
}

#[test]
fn a_server_that_does_not_know_the_password_is_noticed() {
    for password in [&b"pencils"[..], b"Pencil", b""] {
        let proof = example(Binding::Impossible).hear(SERVER_FIRST.as_bytes()).unwrap().prove(password);
        let last = ServerFinal::parse(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=").unwrap();
        let ServerFinal::Signature(signature) = last else { panic!("{last:?}") };
        assert!(!proof.is_by_the_server(&signature));
    }
}

#[test]
fn what_is_said_of_channel_binding_is_signed() {
    let exporter = ChannelBinding::Exporter([7; 32]);
    let end_point = ChannelBinding::ServerEndPoint(vec![9; 48]);
    let mut proofs = Vec::new();
    for (binding, header, data) in [
        (Binding::Impossible, "n,,", &[][..]),
        (Binding::NotOffered, "y,,", &[]),
        (Binding::Used(&exporter), "p=tls-exporter,,", &[7; 32]),
        (Binding::Used(&end_point), "p=tls-server-end-point,,", &[9; 48]),
    ] {
        let start = example(binding);
        let first = start.message();
        assert!(first.starts_with(header.as_bytes()) && first.ends_with(b",,n=user,r=rOprNGfwEbeRWgbNEkqO"));
        let proof = start.hear(SERVER_FIRST.as_bytes()).unwrap().prove(b"pencil");
        let last = std::str::from_utf8(proof.message()).unwrap().to_owned();
        let bound = encode(&[header.as_bytes(), data].concat());
        assert!(last.starts_with(&format!("c={},r=", *bound)), "{last}");
        proofs.push(last.split_once(",p=").unwrap().1.to_owned());
    }
    proofs.sort();
    proofs.dedup();
    assert_eq!(proofs.len(), 4);
}

#[test]
fn names_are_prepared_and_escaped() {
    let start = Start::with_nonce("a=b,\u{aa}", Binding::Impossible, "x".to_owned());
    assert_eq!(start.message().as_slice(), b"n,,n=a=3Db=2Ca,r=x");
    let random = Start::new("u", Binding::Impossible, [0xff; 24]);
    assert_eq!(random.message().as_slice(), b"n,,n=u,r=////////////////////////////////");
}

#[test]
fn extensions_are_passed_over_and_signed() {
    let with = format!("{SERVER_FIRST},x=1,y=a=b");
    let proof = example(Binding::Impossible).hear(with.as_bytes()).unwrap().prove(b"pencil");
    let without = example(Binding::Impossible).hear(SERVER_FIRST.as_bytes()).unwrap().prove(b"pencil");
    assert_ne!(proof.message(), without.message());
}

#[test]
fn every_field_of_the_first_message_is_checked() {
    let long_nonce = format!("r={},s=QQ==,i=4096", "x".repeat(513));
    let long_salt = format!("r=ab,s={},i=4096", *encode(&[1; 513]));
    for (bad, said) in [
        (&b""[..], "the nonce is missing"),
        (b"\xff", "the challenge is not UTF-8"),
        (b"m=x,r=ab,s=QQ==,i=4096", "the server demands an extension that is not known"),
        (b"s=QQ==,r=ab,i=4096", "the nonce is missing"),
        (b"R=ab,s=QQ==,i=4096", "the nonce is missing"),
        (b"r,s=QQ==,i=4096", "the nonce is missing"),
        (b"r=,s=QQ==,i=4096", "the nonce is empty, too long or not printable"),
        (b"r=a b,s=QQ==,i=4096", "the nonce is empty, too long or not printable"),
        (b"r=a\x00b,s=QQ==,i=4096", "the nonce is empty, too long or not printable"),
        (long_nonce.as_bytes(), "the nonce is empty, too long or not printable"),
        (b"r=ab", "the salt is missing"),
        (b"r=ab,i=4096", "the salt is missing"),
        (b"r=ab,s=,i=4096", "the salt is empty or too long"),
        (long_salt.as_bytes(), "the salt is empty or too long"),
        (b"r=ab,s=QQ,i=4096", "the salt is not base64"),
        (b"r=ab,s=\x21,i=4096", "the salt is not base64"),
        (b"r=ab,s=QQ==", "the number of rounds is missing"),
        (b"r=ab,s=QQ==,x=4096", "the number of rounds is missing"),
        (b"r=ab,s=QQ==,i=", "the number of rounds is no number"),
        (b"r=ab,s=QQ==,i=-4096", "the number of rounds is no number"),
        (b"r=ab,s=QQ==,i=+4096", "the number of rounds is no number"),
        (b"r=ab,s=QQ==,i=04096", "the number of rounds is no number"),
        (b"r=ab,s=QQ==,i=4096 ", "the number of rounds is no number"),
        (b"r=ab,s=QQ==,i=4294967297", "the number of rounds is no number"),
        (b"r=ab,s=QQ==,i=1", "fewer than 4096 rounds would give the password away"),
        (b"r=ab,s=QQ==,i=4095", "fewer than 4096 rounds would give the password away"),
        (b"r=ab,s=QQ==,i=1000001", "more than a million rounds would cost too much time"),
        (b"r=ab,s=QQ==,i=4096,", "something stands behind the number of rounds that is no extension"),
        (b"r=ab,s=QQ==,i=4096,x", "something stands behind the number of rounds that is no extension"),
        (b"r=ab,s=QQ==,i=4096,x=", "something stands behind the number of rounds that is no extension"),
        (b"r=ab,s=QQ==,i=4096,m=1", "something stands behind the number of rounds that is no extension"),
        (b"r=ab,s=QQ==,i=4096,1=1", "something stands behind the number of rounds that is no extension"),
    ] {
        assert_eq!(ServerFirst::parse(bad).unwrap_err().0, said, "{}", String::from_utf8_lossy(bad));
    }
    for good in [&b"r=ab,s=QQ==,i=4096"[..], b"r=ab,s=QQ==,i=1000000,a=b"] {
        assert!(ServerFirst::parse(good).is_ok());
    }
}

#[test]
fn another_nonce_than_ours_is_refused() {
    for (nonce, said) in [
        ("rOprNGfwEbeRWgbNEkqO", "the server added nothing to the nonce"),
        ("rOprNGfwEbeRWgbNEkqX%hv", "the nonce does not begin with ours"),
        ("%hvrOprNGfwEbeRWgbNEkqO", "the nonce does not begin with ours"),
        ("r", "the nonce does not begin with ours"),
    ] {
        let first = format!("r={nonce},s=QQ==,i=4096");
        assert_eq!(example(Binding::Impossible).hear(first.as_bytes()).unwrap_err().0, said);
    }
}

#[test]
fn every_field_of_the_last_message_is_checked() {
    let good = encode(&[3; 32]);
    for (bad, said) in [
        (String::new(), "the server's last message holds no signature"),
        ("ok".to_owned(), "the server's last message holds no signature"),
        ("v".to_owned(), "the server's last message holds no signature"),
        ("e=".to_owned(), "the server's reason is empty"),
        ("v=".to_owned(), "the server's signature is not of 32 octets"),
        ("v=!".to_owned(), "the server's signature is not base64"),
        (format!("v={}", *encode(&[3; 31])), "the server's signature is not of 32 octets"),
        (format!("v={}", *encode(&[3; 33])), "the server's signature is not of 32 octets"),
        (format!("v={},", *good), "something stands behind the server's signature that is no extension"),
        (format!("v={},e", *good), "something stands behind the server's signature that is no extension"),
    ] {
        assert_eq!(ServerFinal::parse(bad.as_bytes()).unwrap_err().0, said, "{bad}");
    }
    assert!(ServerFinal::parse(b"v=\xff").is_err());
    assert_eq!(
        ServerFinal::parse(format!("v={},x=1", *good).as_bytes()),
        Ok(ServerFinal::Signature([3; 32]))
    );
    assert_eq!(
        ServerFinal::parse(b"e=invalid-proof\x1b[2J"),
        Ok(ServerFinal::Refusal("invalid-proof\\u{1b}[2J".to_owned()))
    );
}

#[test]
fn nothing_secret_is_shown() {
    let binding = ChannelBinding::Exporter([7; 32]);
    let start = example(Binding::Used(&binding));
    let proof = start.hear(SERVER_FIRST.as_bytes()).unwrap().prove(b"pencil");
    assert_eq!(format!("{binding:?} {proof:?}"), "tls-exporter Proof(***)");
}
