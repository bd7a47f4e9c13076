//! Message octets in wire form, as POP3 (RFC 1939, section 3) and SMTP
//! (RFC 5321, section 4.5.2) both carry them: lines end in CRLF and nothing
//! else, and a line that begins with a dot has a second one before it.

use bytes::Bytes;

/// A part of a message in wire form.
///
/// Invariants: every CR is followed by LF and every LF preceded by CR, counted
/// over the sequence of pieces; a leading dot is doubled; the terminating
/// `.` CRLF is not part of it; the last piece of a message ends in CRLF.
#[derive(Clone, Debug, Default)]
pub struct Piece {
    /// The octets.
    pub bytes: Bytes,
    /// Lines in it that begin with a doubled dot: 0 lets an unstuffing sink
    /// take `bytes` as they are.
    pub stuffed: u32,
    /// The piece begins at the start of a line.
    pub at_line_start: bool,
}
