//! What peers said, made fit for logs, errors and status.

/// Characters of a peer's text that reach people.
pub const LONGEST: usize = 200;

/// `text` as one line of at most [`LONGEST`] characters: control characters,
/// those that hide or turn the text around them, and what is no UTF-8 are
/// escaped (`\n`, `\u{1b}`, `\xff`), and what is too long ends in `…`.
pub fn shown(text: impl AsRef<[u8]>) -> String {
    let text = text.as_ref();
    // Enough for the longest line even if each character takes four octets.
    let text = text.get(..4 * LONGEST + 4).unwrap_or(text);
    let mut line = Line { out: String::with_capacity(text.len().min(LONGEST)), count: 0, cut: 0 };
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            let fits = if is_plain(c) { line.add([c]) } else { line.add(c.escape_default()) };
            if !fits {
                return line.cut_off();
            }
        }
        for octet in chunk.invalid() {
            if !line.add(std::ascii::escape_default(*octet).map(char::from)) {
                return line.cut_off();
            }
        }
    }
    line.out
}

/// A name or value that a person wrote, for a message: printable and at most
/// 80 characters.
pub fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len().min(80));
    for (at, c) in text.chars().enumerate() {
        if at == 80 {
            safe.push('…');
            break;
        }
        if c.is_control() {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    safe
}

struct Line {
    out: String,
    count: usize,
    /// Octets of `out` behind which there is room for `…`.
    cut: usize,
}

impl Line {
    /// Adds what must not be taken apart; false if it does not fit.
    fn add(&mut self, part: impl IntoIterator<Item = char>) -> bool {
        for c in part {
            self.out.push(c);
            self.count += 1;
        }
        if self.count < LONGEST {
            self.cut = self.out.len();
        }
        self.count <= LONGEST
    }

    fn cut_off(mut self) -> String {
        self.out.truncate(self.cut);
        self.out.push('…');
        self.out
    }
}

/// Neither a control character, nor a line separator, nor one that hides or
/// reorders text.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // quirks: "Log lines and status messages escape and cap what servers sent."
    #[test]
    fn what_servers_say_cannot_harm_a_log() {
        assert_eq!(shown(b"a\x1b[31m\xff\0b\r\nc"), "a\\u{1b}[31m\\xff\\u{0}b\\r\\nc");
        assert_eq!(shown("grüß \u{1f600}"), "grüß \u{1f600}");
        assert_eq!(shown("a\u{202e}b\u{2066}\u{200b}\u{feff}"), "a\\u{202e}b\\u{2066}\\u{200b}\\u{feff}");
        assert_eq!(shown(""), "");
    }

    #[test]
    fn it_is_cut_where_it_is_too_long_and_only_there() {
        for whole in ["x".repeat(LONGEST), "\u{1f600}".repeat(LONGEST)] {
            assert_eq!(shown(&whole), whole);
            let cut = shown(format!("{whole}x"));
            assert_eq!((cut.chars().count(), cut.ends_with('…')), (LONGEST, true));
        }
        assert_eq!(shown([b'x'; 5000]).chars().count(), LONGEST);
        // An escape is not cut apart.
        assert_eq!(shown([0xff; 5000]), "\\xff".repeat(49) + "…");
    }

    proptest! {
        #[test]
        fn any_octets_become_a_short_line(octets in prop::collection::vec(any::<u8>(), 0..1200)) {
            let line = shown(&octets);
            prop_assert!(line.chars().count() <= LONGEST);
            prop_assert!(line.chars().all(is_plain));
        }
    }
}
