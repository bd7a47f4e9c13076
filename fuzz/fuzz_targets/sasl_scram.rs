//! A server's two messages of SCRAM: refused, or within all bounds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use rpop::pop3::sasl::scram::{Binding, MAX_ITERATIONS, MIN_ITERATIONS, ServerFinal, ServerFirst, Start};

/// `Start` with zeroes for random octets has this nonce.
const NONCE: &[u8] = b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fuzz_target!(|data: &[u8]| {
    if let Ok(first) = ServerFirst::parse(data) {
        assert!((MIN_ITERATIONS..=MAX_ITERATIONS).contains(&first.iterations));
        assert!(!first.salt.is_empty() && first.salt.len() <= 512);
        assert!(first.nonce.len() <= 512 && first.nonce.bytes().all(|octet| octet.is_ascii_graphic()));
        assert!(data.starts_with(b"r="));
    }
    // A server that goes on with our nonce, as one has to.
    if let Some(rest) = data.strip_prefix(b"r=") {
        let first = [b"r=", NONCE, rest].concat();
        if Start::new("user", Binding::Impossible, [0; 24]).hear(&first).is_ok() {
            assert!(ServerFirst::parse(&first).is_ok() && !rest.starts_with(b","));
        }
    }
    match ServerFinal::parse(data) {
        Ok(ServerFinal::Signature(_)) => assert!(data.starts_with(b"v=")),
        Ok(ServerFinal::Refusal(said)) => {
            assert!(data.starts_with(b"e="));
            assert!(!said.chars().any(char::is_control) && said.chars().count() <= 200);
        }
        Err(_) => {}
    }
});
