use super::*;
use crate::pop3::sasl::hex;

/// The CHALLENGE of MS-NLMP, section 4.2.4.3.
const CHALLENGE: &str = "4e544c4d53535000020000000c000c003800000033828ae20123456789abcdef\
    00000000000000002400240044000000060070170000000f53006500720076006500720002000c0044006f006d00\
    610069006e0001000c0053006500720076006500720000000000";

fn octets(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let value = |digit: u8| u8::try_from(char::from(digit).to_digit(16).unwrap()).unwrap();
    digits.chunks_exact(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect()
}

const LOGIN: Login<'static> = Login { user: "User", domain: "Domain", password: "Password", end_point: None };

const FRESH: Fresh = Fresh { client_challenge: [0xaa; 8], time: 0 };

/// A challenge with these flags and this target information.
fn challenge(flags: u32, info: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend_from_slice(SIGNATURE);
    message.extend_from_slice(&2_u32.to_le_bytes());
    super::field(&mut message, 2, 56);
    message.extend_from_slice(&flags.to_le_bytes());
    message.extend_from_slice(&[1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
    message.extend_from_slice(&[0; 8]);
    super::field(&mut message, info.len(), 58);
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(b"S\0");
    message.extend_from_slice(info);
    message
}

fn pairs(list: &[(u16, &[u8])]) -> Vec<u8> {
    let mut pairs = Vec::new();
    for (kind, value) in list {
        put(&mut pairs, *kind, value);
    }
    pairs
}

const FLAGS: u32 = UNICODE | NTLM | TARGET_INFO | EXTENDED_SESSION_SECURITY;

/// The fields of an AUTHENTICATE message: LM, NT, domain, user, workstation,
/// key.
fn fields(message: &[u8]) -> Vec<&[u8]> {
    (0..6)
        .map(|at| {
            let at = 12 + 8 * at;
            let len = usize::from(u16::from_le_bytes(message[at..at + 2].try_into().unwrap()));
            let offset = u32::from_le_bytes(message[at + 4..at + 8].try_into().unwrap()) as usize;
            &message[offset..offset + len]
        })
        .collect()
}

#[test]
fn the_vectors_of_the_specification_are_computed() {
    // MS-NLMP, section 4.2.4.
    let key = response_key(&LOGIN);
    assert_eq!(hex(&*key).as_str(), "0c868a403bfd7a93a3001ef22ef02e3f");
    let parsed = Challenge::parse(&octets(CHALLENGE)).unwrap();
    assert_eq!(parsed.nonce(), [1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]);
    let mut target = octets(CHALLENGE)[68..].to_vec();
    assert_eq!(target.len(), 36);
    let response = nt_response(&key, parsed.nonce(), [0xaa; 8], 0, &target);
    assert_eq!(hex(&response[..16]).as_str(), "68cd0ab851e51c96aabc927bebef6a1c");
    assert_eq!(hex(&response[16..44]).as_str(), "01010000000000000000000000000000aaaaaaaaaaaaaaaa00000000");
    assert_eq!(hex(&*hmac_md5(&*key, &[&response[..16]])).as_str(), "8de40ccadbc14a82f15cb0ad0de95ca3");
    assert_eq!(
        hex(&lm_response(&key, parsed.nonce(), [0xaa; 8])).as_str(),
        "86c35097ac9cec102554764a57cccc19aaaaaaaaaaaaaaaa"
    );
    target.truncate(32);
    assert_eq!(parsed.pairs().collect::<Vec<_>>().len(), 2);
    assert_eq!(pairs(&parsed.pairs().collect::<Vec<_>>()), target);
}

#[test]
fn a_server_that_tells_its_time_gets_a_mic_and_no_lm_answer() {
    let info = pairs(&[(2, b"D\0"), (pair::TIMESTAMP, &[1, 2, 3, 4, 5, 6, 7, 8]), (0, b"")]);
    let said = challenge(FLAGS, &info);
    let parsed = Challenge::parse(&said).unwrap();
    let first = negotiate();
    let message = parsed.answer(&LOGIN, FRESH, &first, &said).unwrap();
    let [lm, nt, domain, user, workstation, key] = fields(&message)[..] else { panic!("six fields") };
    assert_eq!(lm, [0; 24]);
    assert_eq!((domain, user), (&utf16("Domain")[..], &utf16("User")[..]));
    assert!(workstation.is_empty() && key.is_empty());
    assert_eq!(nt[24..32], [1, 2, 3, 4, 5, 6, 7, 8], "the server's time and not ours");
    let expected = pairs(&[
        (2, b"D\0"),
        (pair::TIMESTAMP, &[1, 2, 3, 4, 5, 6, 7, 8]),
        (pair::FLAGS, &[2, 0, 0, 0]),
        (pair::CHANNEL_BINDINGS, &[0; 16]),
        (0, b""),
    ]);
    assert_eq!(nt[44..nt.len() - 4], expected);

    let mut without = message.to_vec();
    without[MIC].fill(0);
    let key = hmac_md5(&*response_key(&LOGIN), &[&nt[..16]]);
    assert_eq!(message[MIC], *hmac_md5(&*key, &[&first, &said, &without]));
    assert_ne!(message[MIC], [0; 16]);
}

#[test]
fn a_server_without_a_time_gets_ours_and_no_mic() {
    for info in [pairs(&[(2, b"D\0"), (0, b"")]), Vec::new()] {
        let flags = if info.is_empty() { FLAGS & !TARGET_INFO } else { FLAGS };
        let said = challenge(flags, &info);
        let fresh = Fresh { time: 7, ..FRESH };
        let message = Challenge::parse(&said).unwrap().answer(&LOGIN, fresh, &negotiate(), &said).unwrap();
        let [lm, nt, ..] = fields(&message)[..] else { panic!("six fields") };
        assert_eq!(
            lm,
            lm_response(&response_key(&LOGIN), [1, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef], [0xaa; 8])
        );
        assert_eq!(nt[24..32], [7, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(message[MIC], [0; 16]);
    }
}

#[test]
fn what_the_server_says_in_the_clients_name_is_replaced() {
    let info = pairs(&[
        (pair::FLAGS, &[1, 0, 0, 0]),
        (pair::TARGET_NAME, b"x\0"),
        (pair::CHANNEL_BINDINGS, &[9; 16]),
        (0, b""),
    ]);
    let said = challenge(FLAGS, &info);
    let target = Challenge::parse(&said).unwrap().target(Some(&[5; 32]));
    let bound = bindings(Some(&[5; 32]));
    assert_eq!(target, pairs(&[(pair::FLAGS, &[1, 0, 0, 0]), (pair::CHANNEL_BINDINGS, &bound), (0, b"")]));
    assert_ne!(bound, [0; 16]);
}

#[test]
fn channel_bindings_are_those_of_other_implementations() {
    // The example of MS-SPNG's predecessors, as in the tests of requests-kerberos and pyspnego:
    // MD5 over five zero lengths but the last, and "tls-server-end-point:" with the digest.
    let mut whole = vec![0; 16];
    whole.extend_from_slice(&53_u32.to_le_bytes());
    whole.extend_from_slice(b"tls-server-end-point:");
    whole.extend_from_slice(&[0x11; 32]);
    let expected: [u8; 16] = Md5::digest(&whole).into();
    assert_eq!(bindings(Some(&[0x11; 32])), expected);
}

#[test]
fn only_one_character_set_is_used() {
    let said = challenge((FLAGS | OEM) & !UNICODE, &pairs(&[(0, b"")]));
    let parsed = Challenge::parse(&said).unwrap();
    let message = parsed.answer(&LOGIN, FRESH, &negotiate(), &said).unwrap();
    let [_, _, domain, user, ..] = fields(&message)[..] else { panic!("six fields") };
    assert_eq!((domain, user), (&b"Domain"[..], &b"User"[..]));
    let flags = u32::from_le_bytes(message[60..64].try_into().unwrap());
    assert_eq!(flags & (UNICODE | OEM), OEM);
    let umlaut = Login { user: "J\u{fc}rgen", ..LOGIN };
    assert_eq!(parsed.answer(&umlaut, FRESH, &negotiate(), &said).unwrap_err(), NotAscii);

    let both = challenge(FLAGS | OEM, &pairs(&[(0, b"")]));
    let message = Challenge::parse(&both).unwrap().answer(&umlaut, FRESH, &negotiate(), &both).unwrap();
    let flags = u32::from_le_bytes(message[60..64].try_into().unwrap());
    assert_eq!(flags & (UNICODE | OEM), UNICODE);
    assert_eq!(fields(&message)[3], &utf16("J\u{fc}rgen")[..]);
}

#[test]
fn names_are_taken_apart_as_people_write_them() {
    for (account, domain, user) in [
        ("alice", "", "alice"),
        ("CORP\\alice", "CORP", "alice"),
        ("alice@corp.example", "", "alice@corp.example"),
        ("CORP\\a\\b", "CORP", "a\\b"),
    ] {
        let login = Login::new(account, "p", None);
        assert_eq!((login.domain, login.user), (domain, user));
        assert_eq!(format!("{login:?}"), "Login(***)");
    }
    assert_eq!(upper("stra\u{df}e \u{e4}"), "STRA\u{df}E \u{c4}");
}

#[test]
fn time_is_counted_from_1601() {
    // 1970-01-01 and 2023-01-01T00:00:00Z.
    assert_eq!(Fresh::time_of(std::time::Duration::ZERO), 116_444_736_000_000_000);
    assert_eq!(Fresh::time_of(std::time::Duration::from_hours(464_592)), 133_170_048_000_000_000);
    assert!(Fresh::time_of(std::time::Duration::MAX) > 0);
}

#[test]
fn negotiate_says_what_it_can_and_not_who_it_is() {
    let message = negotiate();
    assert_eq!((message.len(), &message[..12]), (40, &b"NTLMSSP\0\x01\0\0\0"[..]));
    assert_eq!(message[16..], [0; 24]);
}

#[test]
fn every_field_of_a_challenge_is_checked() {
    // quirks: "oversized offsets, non-challenge text"
    let good = challenge(FLAGS, &pairs(&[(1, b"S\0"), (0, b"")]));
    assert!(Challenge::parse(&good).is_ok());
    let with = |at: usize, octets: &[u8]| {
        let mut message = good.clone();
        message[at..at + octets.len()].copy_from_slice(octets);
        message
    };
    let outside = "the target information lies outside of the challenge";
    let name_outside = "the target's name lies outside of the challenge";
    for (bad, said) in [
        (Vec::new(), "the challenge is not of NTLM"),
        (b"Password:".to_vec(), "the challenge is not of NTLM"),
        (good[..7].to_vec(), "the challenge is not of NTLM"),
        (with(0, b"n"), "the challenge is not of NTLM"),
        (with(7, b"1"), "the challenge is not of NTLM"),
        (good[..8].to_vec(), "the challenge is too short"),
        (with(8, &[1]), "the message is of another type than a challenge"),
        (with(8, &[3]), "the message is of another type than a challenge"),
        (with(11, &[1]), "the message is of another type than a challenge"),
        (good[..31].to_vec(), name_outside),
        (with(12, &[0xff, 0xff]), name_outside),
        (with(16, &[0xff; 4]), name_outside),
        (with(16, &[0xff, 0xff, 0xff, 0x7f]), name_outside),
        (with(16, &[0, 0]), name_outside),
        (with(20, &(FLAGS & !NTLM).to_le_bytes()), "the server does not want NTLM"),
        (with(20, &(FLAGS & !UNICODE).to_le_bytes()), "the server names no character set"),
        (with(40, &[0xff, 0xff]), outside),
        (with(44, &[0xff; 4]), outside),
        (with(44, &[0xfc, 0xff, 0xff, 0xff]), outside),
        (with(44, &[31, 0, 0, 0]), outside),
        (good[..good.len() - 1].to_vec(), outside),
        (with(40, &[0, 0]), "the target information ends in the middle of a pair"),
        (with(40, &[9, 0]), "the target information ends in the middle of a pair"),
        ([&good[..], &[0; 8192]].concat(), "the challenge is longer than 8192 octets"),
    ] {
        assert_eq!(Challenge::parse(&bad).unwrap_err().0, said, "{}", *hex(&bad));
    }
    // Nothing of a challenge that is cut anywhere is read beyond its end.
    for len in 0..good.len() {
        assert!(Challenge::parse(&good[..len]).is_err(), "{len}");
    }
}

#[test]
fn target_information_is_taken_whole_or_not_at_all() {
    let many: Vec<(u16, &[u8])> = std::iter::repeat_n((11, &b""[..]), 64).chain([(0, &b""[..])]).collect();
    for (bad, said) in [
        (vec![], "the target information ends in the middle of a pair"),
        (pairs(&[(1, b"S\0")]), "the target information ends in the middle of a pair"),
        (vec![1, 0, 0xff, 0xff, 0, 0, 0, 0], "the target information ends in the middle of a pair"),
        (vec![0, 0, 0], "the target information ends in the middle of a pair"),
        (pairs(&[(0, b"x")]), "the end of the target information has a value"),
        (pairs(&[(0, b""), (0, b"")]), "something stands behind the end of the target information"),
        (pairs(&[(1, b"a\0"), (1, b"b\0"), (0, b"")]), "the target information says one thing twice"),
        (pairs(&[(pair::TIMESTAMP, &[0; 7]), (0, b"")]), "the server's time is not of 8 octets"),
        (pairs(&[(pair::TIMESTAMP, &[0; 9]), (0, b"")]), "the server's time is not of 8 octets"),
        (
            pairs(&[(pair::FLAGS, &[0; 3]), (0, b"")]),
            "the flags in the target information are not of 4 octets",
        ),
        (pairs(&many), "the target information has more than 64 pairs"),
    ] {
        let message = challenge(FLAGS, &bad);
        assert_eq!(Challenge::parse(&message).unwrap_err().0, said, "{bad:?}");
    }
}
