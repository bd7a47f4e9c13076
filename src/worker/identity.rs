//! The key by which all workers of an installation know its own traces.

use std::time::Duration;

use kube::ResourceExt as _;
use kube::api::Api;
use sha2::{Digest as _, Sha256};

use crate::api::RpopShard;
use crate::domain::shards::ShardId;
use crate::domain::text::causes;
use crate::k8s::error::{ApiError, within};

const REQUEST: Duration = Duration::from_secs(10);
/// The first pause before the shard is read again; it doubles up to
/// [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Derives the key from the uid of the first shard. All workers read that
/// object, nobody outside of the cluster knows its uid, and it is there as long
/// as the installation: no Secret of our own is needed, nor the right to write
/// one.
pub(super) async fn trace_key(shards: &Api<RpopShard>) -> [u8; 16] {
    let mut pause = PAUSE;
    loop {
        match within(REQUEST, shards.get(&ShardId(0).to_string())).await {
            Ok(shard) => {
                if let Some(uid) = shard.uid() {
                    return derive(&uid);
                }
            }
            Err(ApiError::NotFound { .. }) => tracing::debug!("there is no {} yet", ShardId(0)),
            Err(error) => tracing::warn!("{} cannot be read: {}", ShardId(0), causes(&error)),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn derive(uid: &str) -> [u8; 16] {
    let digest = Sha256::new().chain_update(b"rpop trace key ").chain_update(uid.as_bytes()).finalize();
    let mut key = [0; 16];
    key.copy_from_slice(digest.get(..16).unwrap_or(&[0; 16]));
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_one_installation_share_a_key_and_others_do_not() {
        let uid = "8d3c4f9e-6a55-4c8e-9c53-0d2f6a1b7c11";
        assert_eq!(derive(uid), derive(uid));
        assert_ne!(derive(uid), derive("8d3c4f9e-6a55-4c8e-9c53-0d2f6a1b7c12"));
        assert_ne!(derive(uid), [0; 16]);
    }
}
