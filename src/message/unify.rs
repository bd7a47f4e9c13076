//! What unified accounts want to know of a header.

use crate::domain::envelope::Mailbox;
use crate::domain::ledger::Digest;
use crate::domain::work::Special;

/// The most recipients that a header gives. Whoever writes to more has no
/// hand-written header, and a message for so many is not for people here.
pub const MOST_ADDRESSEES: usize = 1000;

/// What is looked for in the header of a unified account's messages.
#[derive(Clone, Debug)]
pub struct Unify {
    /// Where the recipients stand.
    pub special: Special,
    /// Begins the copy digest; `None`: no copies are looked for.
    pub copies: Option<Digest>,
}

/// Whom a header says that a message is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addressees {
    /// Distinct addresses (domains are compared without case, local parts
    /// exactly) in order of appearance; at most [`MOST_ADDRESSEES`].
    pub found: Vec<Mailbox>,
    /// Header fields that were looked at.
    pub fields: u32,
    /// What looked like an address and fits no envelope.
    pub unusable: u32,
    /// There are more than [`MOST_ADDRESSEES`].
    pub more: bool,
}
