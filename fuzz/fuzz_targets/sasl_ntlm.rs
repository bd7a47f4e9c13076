//! A server's challenge of NTLM: refused, or answered by a message of which
//! every field lies within it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rpop::pop3::sasl::ntlm::{Challenge, Fresh, Login, negotiate};

fuzz_target!(|data: &[u8]| {
    let Ok(challenge) = Challenge::parse(data) else { return };
    let login = Login::new("DOM\\user", "password", Some(&[7; 32]));
    let fresh = Fresh { client_challenge: [1; 8], time: 2 };
    let Ok(answer) = challenge.answer(&login, fresh, &negotiate(), data) else { return };
    assert!(answer.starts_with(b"NTLMSSP\0\x03\0\0\0"));
    assert!(answer.len() < data.len() + 400);
    let mut payload = 88;
    for at in (12..60).step_by(8) {
        let len = usize::from(u16::from_le_bytes([answer[at], answer[at + 1]]));
        let offset = u32::from_le_bytes(answer[at + 4..at + 8].try_into().expect("four")) as usize;
        assert!(offset >= 88 && offset + len <= answer.len());
        payload += len;
    }
    assert_eq!(payload, answer.len(), "the fields are all that stands behind the header");
});
