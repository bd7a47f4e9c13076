//! The JSON by which a server refuses an access token: what of it reaches
//! people cannot harm a log.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rpop::pop3::sasl::bearer::Refusal;

fuzz_target!(|data: &[u8]| {
    let Ok(refusal) = Refusal::parse(data) else { return };
    for text in [Some(refusal.text), refusal.status, refusal.scope].into_iter().flatten() {
        assert!(!text.chars().any(char::is_control) && text.chars().count() <= 200);
    }
});
