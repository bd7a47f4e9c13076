//! Replies of an SMTP or LMTP server that says anything at all: the same
//! whatever the chunks, bounded, and fit for a log.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use rpop::smtp::reply::Decoder;

fuzz_target!(|data: &[u8]| {
    let Some((first, said)) = data.split_first() else { return };
    let whole = decode(said, said.len().max(1));
    let cut = decode(said, usize::from(*first) + 1);
    assert_eq!(whole, cut);
});

/// The replies as logs show them, and whether it ended in an error.
fn decode(said: &[u8], size: usize) -> (Vec<(u16, String)>, bool) {
    let mut decoder = Decoder::default();
    let mut input = BytesMut::new();
    let mut replies = Vec::new();
    for chunk in said.chunks(size) {
        input.extend_from_slice(chunk);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(reply)) => {
                    let shown = reply.shown();
                    assert!((200..600).contains(&reply.code()));
                    assert!(!shown.chars().any(char::is_control) && shown.chars().count() <= 200);
                    replies.push((reply.code(), shown));
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().chars().any(char::is_control));
                    return (replies, true);
                }
            }
        }
    }
    (replies, false)
}
