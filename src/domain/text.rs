//! What peers said, made fit for logs, errors and status.

use std::error::Error;

/// Characters of a peer's text that reach people.
pub const LONGEST: usize = 200;
/// Characters of an error with its causes: each of them may quote a peer.
pub const LONGEST_CAUSES: usize = 3 * LONGEST;

/// `text` as one line of at most [`LONGEST`] characters: control characters,
/// those that hide or turn the text around them, and what is no UTF-8 are
/// escaped (`\n`, `\u{1b}`, `\xff`), and what is too long ends in `…`.
pub fn shown(text: impl AsRef<[u8]>) -> String {
    line(text.as_ref(), LONGEST)
}

/// An error with what caused it, in one line: escaped as by [`shown`], and at
/// most [`LONGEST_CAUSES`] characters. What an error says of its cause by
/// itself is not said twice.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = line(error.to_string().as_bytes(), LONGEST_CAUSES);
    let mut next = error.source();
    while let Some(cause) = next {
        let said = line(cause.to_string().as_bytes(), LONGEST_CAUSES);
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    line(text.as_bytes(), LONGEST_CAUSES)
}

fn line(text: &[u8], most: usize) -> String {
    // Enough for the longest line even if each character takes four octets.
    let text = text.get(..4 * most + 4).unwrap_or(text);
    let mut line = Line { out: String::with_capacity(text.len().min(most)), count: 0, cut: 0, most };
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
        if is_plain(c) {
            safe.push(c);
        } else {
            safe.extend(c.escape_default());
        }
    }
    safe
}

struct Line {
    out: String,
    count: usize,
    /// Octets of `out` behind which there is room for `…`.
    cut: usize,
    /// Characters that it may have.
    most: usize,
}

impl Line {
    /// Adds what must not be taken apart; false if it does not fit.
    fn add(&mut self, part: impl IntoIterator<Item = char>) -> bool {
        for c in part {
            self.out.push(c);
            self.count += 1;
        }
        if self.count < self.most {
            self.cut = self.out.len();
        }
        self.count <= self.most
    }

    fn cut_off(mut self) -> String {
        self.out.truncate(self.cut);
        self.out.push('…');
        self.out
    }
}

/// Neither a control character, nor a line separator, nor one that hides or
/// reorders text, nor one that YAML, and hence the API server, does not take.
fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{fdd0}'..='\u{fdef}')
        && u32::from(c) & 0xfffe != 0xfffe
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The word that was probably meant.
pub(crate) fn suggest<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let lower = word.to_ascii_lowercase();
    let longest = (word.chars().count() / 3).clamp(1, 3);
    known
        .filter_map(|candidate| {
            let other = candidate.to_ascii_lowercase();
            // `password` is meant as the beginning of `passwordSecretRef`.
            let distance =
                if lower.len() >= 4 && other.starts_with(&lower) { 1 } else { distance(&lower, &other) };
            (distance <= longest).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let width = b.len() + 1;
    let mut table = vec![0; (a.len() + 1) * width];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            table[i * width + j] = if i == 0 || j == 0 {
                i + j
            } else {
                let same = usize::from(a[i - 1] != b[j - 1]);
                let mut best = (table[(i - 1) * width + j] + 1)
                    .min(table[i * width + j - 1] + 1)
                    .min(table[(i - 1) * width + j - 1] + same);
                if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                    best = best.min(table[(i - 2) * width + j - 2] + 1);
                }
                best
            };
        }
    }
    table[a.len() * width + b.len()]
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

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Told {
        text: String,
        #[source]
        cause: Option<Box<Told>>,
    }

    fn told(text: &str, cause: Option<Told>) -> Told {
        Told { text: text.to_owned(), cause: cause.map(Box::new) }
    }

    #[test]
    fn an_error_and_its_causes_are_one_line_that_says_nothing_twice() {
        let chain = told("no connection", Some(told("TLS: bad\nname", Some(told("bad\nname", None)))));
        assert_eq!(causes(&chain), "no connection: TLS: bad\\nname");
        let chain = told("a", Some(told("b", Some(told("c", None)))));
        assert_eq!(causes(&chain), "a: b: c");
        assert_eq!(causes(&told("a b c", Some(chain))), "a b c", "a cause that is quoted in full");
    }

    #[test]
    fn causes_are_cut_where_they_are_too_long() {
        let chain = told(&"x".repeat(LONGEST_CAUSES - 3), Some(told(&"\u{202e}".repeat(5_000), None)));
        let text = causes(&chain);
        assert_eq!(text, format!("{}: …", "x".repeat(LONGEST_CAUSES - 3)));
    }

    #[test]
    fn suggests_what_was_meant() {
        let known = ["pollEvery", "passwordSecretRef", "host", "account", "apop", "paused"];
        for (word, meant) in [
            ("pollevery", Some("pollEvery")),
            ("poll_every", Some("pollEvery")),
            ("password", Some("passwordSecretRef")),
            ("hots", Some("host")),
            ("acount", Some("account")),
            ("colour", None),
            ("x", None),
        ] {
            assert_eq!(suggest(word, known.iter().copied()), meant, "{word}");
        }
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
