//! The copy digest: equal for the copies of one message that a provider
//! stored for each recipient, different for different messages.

use super::header::{Field, Name};
use crate::domain::ledger::Digest;

/// Whether the field `name` may differ between copies of one message, so that
/// the copy digest leaves it out.
///
/// Left out is what systems on the way add to a message, each for itself: it
/// says how *this copy* came here, and no person reads it. Everything that the
/// author wrote stays in, above all:
/// - To, Cc, Bcc and Resent-*: they say who gets the message. The copies for
///   blind recipients may be the only ones with a Bcc, and whoever takes such
///   a one for known mail never delivers it to them.
/// - Subject, Date, From, Message-ID, MIME and List-*: the message itself.
/// - DKIM-Signature: made by the author's domain before a message is divided
///   among recipients, so equal in all copies; and it changes with the body.
///
/// What is missing here costs a second copy, what is too much here costs a
/// message: in doubt a field stays in.
pub(super) fn differs(name: &[u8]) -> bool {
    EXACT.iter().any(|one| name.eq_ignore_ascii_case(one.as_bytes()))
        || BEGINNINGS
            .iter()
            .any(|one| name.get(..one.len()).is_some_and(|start| start.eq_ignore_ascii_case(one.as_bytes())))
}

/// Return-Path (VERP: a sender for each recipient), Received (an id, a time
/// and `for <…>`, for each) and Delivered-To are known to the scanner by names
/// of their own and left out alike.
const EXACT: [&str; 26] = [
    // The envelope recipient of this copy, as mail systems write it: Postfix
    // (X-Original-To), Exim (Envelope-To), fetchmail's manual
    // (X-Envelope-To), CommuniGate Pro (X-Real-To, X-Rcpt-To), Fastmail
    // (X-Delivered-To, X-Resolved-To), old sendmail (Apparently-To).
    "X-Original-To",
    "Envelope-To",
    "X-Envelope-To",
    "X-Real-To",
    "X-Rcpt-To",
    "X-Delivered-To",
    "X-Resolved-To",
    "Apparently-To",
    // When this copy was written to a mailbox (Exim).
    "Delivery-Date",
    // The number and the flags of this copy in its mailbox: Dovecot, UW imapd,
    // qpopper, mutt.
    "X-UID",
    "X-UIDL",
    "X-IMAP",
    "X-IMAPbase",
    "Status",
    "X-Status",
    "X-Keywords",
    // What mbox writers count; a longer trace makes another length.
    "Content-Length",
    "Lines",
    // A Received of Google's.
    "X-Received",
    // What a receiving system checked, for each copy at its own time
    // (RFC 8601, RFC 7208), and Microsoft's name for it.
    "Authentication-Results",
    "X-Authentication-Results",
    "Received-SPF",
    // The same sealed by one forwarder after another, with times (RFC 8617).
    // Unlike a DKIM-Signature they are made late, on each copy's way.
    "ARC-Seal",
    "ARC-Message-Signature",
    "ARC-Authentication-Results",
    // A mail reader that worked on the mailbox.
    "X-Mozilla-Keys",
];

const BEGINNINGS: [&str; 3] = [
    // Scores, times, and words that a user's own filter has learned.
    "X-Spam-",
    "X-Virus-",
    // And X-Mozilla-Status2.
    "X-Mozilla-Status",
];

/// Takes what copies have in common of `source`, which begins with the header
/// and may hold body behind it; `mbox` octets of a `From ` line go before.
pub(super) fn take(digest: &mut Digest, source: &[u8], mbox: usize, fields: &[Field]) {
    let mut from = mbox;
    for field in fields {
        let left_out = matches!(
            field.name,
            Name::ReturnPath | Name::DeliveredTo | Name::Received | Name::Special | Name::Varying
        );
        if left_out {
            digest.update(source.get(from..field.all.start).unwrap_or_default());
            from = field.all.end;
        }
    }
    digest.update(source.get(from..).unwrap_or_default());
}
