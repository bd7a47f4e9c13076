//! A mark by which refused credentials are known again.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

use super::Engine;
use crate::domain::work::WorkItem;

impl Engine {
    /// The mark of the credentials of `item` as they are now; `None` where they
    /// cannot be read. Sixteen bits of a keyed digest: too few to tell a password by, and enough that a
    /// changed one has another mark but once in 65 536 times, in which it waits
    /// for its next turn.
    pub async fn credentials(&self, item: &WorkItem) -> Option<Box<str>> {
        let remote = &item.remote;
        let mut hasher = SipHasher24::new_with_key(&self.trace_key);
        hasher.write(&serde_json::to_vec(remote).ok()?);
        let client = remote.tls.client_certificate.iter().flat_map(|(chain, key)| [chain, key]);
        for at in std::iter::once(&remote.password).chain(client) {
            let octets = self.secrets.get(at).await.ok()?;
            hasher.write_usize(octets.len());
            hasher.write(&octets);
        }
        Some(format!("{:04x}", hasher.finish() & 0xffff).into())
    }
}
