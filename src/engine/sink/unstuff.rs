//! Message octets without their dot-stuffing, for BDAT and for files.

use bytes::Bytes;

use crate::domain::wire::Piece;

/// Takes the pieces of one message in order and yields their octets as they
/// were before dot-stuffing: slices, never copies.
#[derive(Debug)]
pub(crate) struct Unstuffer {
    line_start: bool,
    end: [u8; 2],
}

impl Default for Unstuffer {
    fn default() -> Self {
        Self { line_start: true, end: *b"\r\n" }
    }
}

impl Unstuffer {
    /// Hands the octets of `piece` to `take`, dots removed.
    pub(crate) fn piece(&mut self, piece: &Piece, mut take: impl FnMut(Bytes)) {
        let octets = piece.bytes.as_ref();
        let mut from = 0;
        // A doubled dot may be cut in two by the border of pieces, and then
        // either of them may have counted it: hence the look at the borders.
        let border = (self.line_start && octets.first() == Some(&b'.')) || octets.ends_with(b"\n.");
        if piece.stuffed > 0 || border {
            if self.line_start && octets.first() == Some(&b'.') {
                from = 1;
            }
            for newline in memchr::memchr_iter(b'\n', octets) {
                if newline + 1 >= from && octets.get(newline + 1) == Some(&b'.') {
                    take(piece.bytes.slice(from..=newline));
                    from = newline + 2;
                }
            }
        }
        if from < octets.len() {
            take(piece.bytes.slice(from..));
        }
        match octets {
            [.., a, b] => self.end = [*a, *b],
            [b] => self.end = [self.end[1], *b],
            [] => return,
        }
        self.line_start = self.end[1] == b'\n';
    }

    /// Whether what was handed over so far ends in CRLF, as a message must.
    pub(crate) fn ends_line(&self) -> bool {
        self.end == *b"\r\n"
    }
}

/// Octets of a message without its dot-stuffing.
pub(crate) fn unstuffed_len(pieces: &[Piece]) -> u64 {
    let mut total = 0;
    let mut unstuffer = Unstuffer::default();
    for piece in pieces {
        unstuffer.piece(piece, |octets| total += octets.len() as u64);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stuff(lines: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
        let (mut plain, mut wire) = (Vec::new(), Vec::new());
        for line in lines {
            if line.first() == Some(&b'.') {
                wire.push(b'.');
            }
            wire.extend_from_slice(line);
            wire.extend_from_slice(b"\r\n");
            plain.extend_from_slice(line);
            plain.extend_from_slice(b"\r\n");
        }
        (plain, wire)
    }

    proptest! {
        // quirks: "Un-stuff dots exactly once; chunk boundaries may fall between CR, LF and dot."
        #[test]
        fn dots_are_removed_once_wherever_pieces_are_cut(
            lines in prop::collection::vec("[.a]{0,4}", 0..20),
            cuts in prop::collection::vec(1usize..6, 0..60),
            first_counts in any::<bool>(),
        ) {
            let lines: Vec<&[u8]> = lines.iter().map(String::as_bytes).collect();
            let (plain, wire) = stuff(&lines);
            let wire = Bytes::from(wire);
            let dots: Vec<usize> = (0..wire.len())
                .filter(|&at| wire[at] == b'.' && (at == 0 || wire[at - 1] == b'\n'))
                .map(|at| if first_counts { at } else { at + 1 })
                .collect();
            let (mut at, mut cuts, mut pieces) = (0, cuts.into_iter(), Vec::new());
            while at < wire.len() {
                let end = (at + cuts.next().unwrap_or(50)).min(wire.len());
                pieces.push(Piece {
                    bytes: wire.slice(at..end),
                    stuffed: u32::try_from(dots.iter().filter(|dot| (at..end).contains(dot)).count()).unwrap(),
                    at_line_start: at == 0 || wire[at - 1] == b'\n',
                });
                at = end;
            }
            let (mut out, mut unstuffer) = (Vec::new(), Unstuffer::default());
            for piece in &pieces {
                unstuffer.piece(piece, |octets| out.extend_from_slice(&octets));
            }
            prop_assert_eq!(&out, &plain);
            prop_assert_eq!(unstuffed_len(&pieces), plain.len() as u64);
            prop_assert!(unstuffer.ends_line());
        }
    }
}
