//! What peers said, made fit for logs and status messages.

/// The most characters of a peer's text that a message quotes.
const CAP: usize = 200;

/// `text` without control characters and at most [`CAP`] characters long.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(CAP * 4));
    for (at, c) in text.chars().enumerate() {
        if at == CAP {
            out.push('…');
            break;
        }
        // Besides controls: marks that turn the direction of the text around
        // them, and separators that some viewers take for line ends.
        let unsafe_ =
            c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}');
        out.push(if unsafe_ { '\u{fffd}' } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_are_replaced_and_length_is_capped() {
        // quirks: "Log lines and status messages escape and cap what servers sent."
        assert_eq!(printable("a\r\nb\x1b[31m\u{202e}"), "a\u{fffd}\u{fffd}b\u{fffd}[31m\u{fffd}");
        assert_eq!(printable(&"x".repeat(5000)).chars().count(), CAP + 1);
    }
}
