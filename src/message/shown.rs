//! The beginning of a header, for a notification about its message.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::domain::wire::Piece;

/// As much of a header is kept.
const MOST: usize = 32 * 1024;

/// Whole lines from the beginning of what is `kept` of a header in wire form,
/// which takes the first `end` octets of `source`; without its blank line,
/// and unstuffed. Copied only where it is in several parts.
pub(super) fn beginning(source: &Bytes, kept: &[Range<usize>], end: usize) -> Bytes {
    let end = without_blank_line(source.get(..end).unwrap_or_default());
    let mut parts = kept.iter().filter(|part| part.start < end).map(|part| part.start..part.end.min(end));
    let mut whole = match (parts.next(), parts.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => source.slice(only),
        (Some(first), Some(second)) => {
            let mut buffer = BytesMut::new();
            for part in [first, second].into_iter().chain(parts) {
                buffer.extend_from_slice(
                    source.get(part.start..part.end.min(part.start + MOST)).unwrap_or_default(),
                );
                if buffer.len() > MOST {
                    break;
                }
            }
            buffer.freeze()
        }
    };
    whole.truncate(MOST);
    whole.truncate(memchr::memrchr(b'\n', &whole).map_or(0, |at| at + 1));
    unstuffed(whole, true)
}

/// Where the last line of `header` begins if it is blank; else its end.
fn without_blank_line(header: &[u8]) -> usize {
    let blank = [&b"\r\n"[..], b"\n"].into_iter().find_map(|line_end| {
        let rest = header.strip_suffix(line_end)?;
        (rest.is_empty() || rest.ends_with(b"\n")).then_some(rest.len())
    });
    blank.unwrap_or(header.len())
}

/// Octets without the dots that wire form added.
pub(super) fn unstuffed(wire: Bytes, at_line_start: bool) -> Bytes {
    let piece = Piece::new(wire, at_line_start);
    if piece.stuffed == 0 {
        return piece.bytes;
    }
    let mut out = BytesMut::with_capacity(piece.len());
    piece.unstuffed().for_each(|part| out.extend_from_slice(&part));
    out.freeze()
}
