//! What a token endpoint, or a device authorization endpoint, answers: a token
//! that can be sent, or a line that cannot harm a log and holds no secret.
//! The first octet chooses the status and the Content-Type.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use rpop::oauth::answer::{self, Answer};
use rpop::oauth::device;
use zeroize::Zeroizing;

const SECRET: &str = "s3cret-refresh-token";

fuzz_target!(|data: &[u8]| {
    let Some((choice, body)) = data.split_first() else { return };
    let statuses = [200, 200, 400, 401, 307, 404, 429, 503];
    let types = [Some("application/json"), Some("application/x+json; charset=utf-8"), Some("text/html"), None];
    let answer = Answer {
        status: statuses[usize::from(choice & 7)],
        content_type: types[usize::from(choice >> 3 & 3)].map(str::to_owned),
        location: Some(String::from_utf8_lossy(body).into_owned()),
        retry_after: None,
        body: Zeroizing::new(body.to_vec()),
    };
    match answer::token("login.example", &answer, &[SECRET]) {
        Ok(granted) => {
            assert!(!granted.access.is_empty() && granted.access.len() <= 32 * 1024);
            assert!(granted.access.bytes().all(|octet| octet.is_ascii_graphic()));
            assert!(granted.lasts.is_none_or(|lasts| lasts <= Duration::from_secs(86_400)));
            assert!(granted.refresh.is_none_or(|refresh| answer::is_refresh_token(&refresh)));
        }
        Err(error) => {
            let text = error.to_string();
            assert!(!text.chars().any(char::is_control) && text.chars().count() <= 700, "{text}");
            assert!(answer.status < 400 || !text.contains(SECRET), "{text}");
        }
    }
    if let Ok(started) = device::started("login.example", &answer) {
        assert!(started.place.starts_with("http") && !started.user_code.chars().any(char::is_control));
        assert!(started.lasts <= Duration::from_secs(3600));
    }
});
