//! A server's challenge of CRAM-MD5: refused, or answered in one line.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rpop::pop3::sasl::cram_md5::Challenge;

fuzz_target!(|data: &[u8]| {
    let Ok(challenge) = Challenge::parse(data) else { return };
    assert!(data.len() <= 512 && data.starts_with(b"<") && data.ends_with(b">"));
    assert!(data.iter().all(u8::is_ascii_graphic));
    let answer = challenge.answer("tim", b"tanstaaf");
    let digits = answer.strip_prefix(b"tim ").expect("the name and a blank");
    assert!(digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit));
});
