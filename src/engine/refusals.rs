//! What a destination's word on a recipient is about, by its codes
//! (RFC 5321, section 4.2.3; RFC 3463).

use super::ports::{Refusal, Verdict};

/// What the sink says of a recipient whom the connection's end left without
/// an answer, while others in the same transaction had been refused.
pub(super) const CUT_OFF: (u16, &str) = (421, "RCPT");

/// Our own words, not the destination's: it announces too small a SIZE.
pub(super) const TOO_LARGE: &str = "5.3.4 the message is larger than the destination's SIZE limit";
/// Likewise: it does not announce SMTPUTF8.
pub(super) const NEEDS_UTF8: &str = "5.6.7 the address needs SMTPUTF8, which the destination does not have";

/// Whether the destination was not even asked.
pub(super) fn is_our_own(refusal: &Refusal) -> bool {
    refusal.text == TOO_LARGE.as_bytes() || refusal.text == NEEDS_UTF8.as_bytes()
}

/// Whether it is for a further turn, if this one got anywhere: refused only as
/// one recipient too many (RFC 5321, section 4.5.3.1.10), or not answered.
pub(super) fn is_for_another_turn(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Deferred(refusal) | Verdict::Refused(refusal) => {
            is_for_number(refusal) || is_cut_off(refusal)
        }
        Verdict::Accepted | Verdict::Unknown { .. } => false,
    }
}

/// RFC 821 had 552 for it; full mailboxes have that, too, and are told by
/// their enhanced codes, or by being refused alone as well.
fn is_for_number(refusal: &Refusal) -> bool {
    let text = refusal.text.to_ascii_lowercase();
    let says_so = || memchr::memmem::find(&text, b"too many recipients").is_some();
    refusal.at == "RCPT"
        && match refusal.code {
            452 => text.starts_with(b"4.5.3") || says_so(),
            552 => !text.starts_with(b"5.2.") && !text.starts_with(b"5.3."),
            _ => false,
        }
}

/// See [`CUT_OFF`].
pub(super) fn is_cut_off(refusal: &Refusal) -> bool {
    (refusal.code, refusal.at) == CUT_OFF
}

/// Whether a refusal at RCPT is by an account that exists: it is full, or
/// closed, or the message is too large for it. Everything else there means
/// that there is no such account, as far as we are concerned.
pub(super) fn is_by_account(refusal: &Refusal) -> bool {
    refusal.code == 552 || refusal.text.starts_with(b"5.2.") || refusal.text.starts_with(b"5.3.4")
}

/// Whether it was said before any of the message was sent: about us, or about
/// whoever it is for, not about what it holds.
pub(super) fn is_before_content(refusal: &Refusal) -> bool {
    matches!(refusal.at, "MAIL" | "RCPT" | "DATA")
}
