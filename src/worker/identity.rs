//! The key by which all workers of an installation know its own traces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};

use crate::k8s::client::Cluster;
use crate::k8s::error::{ApiError, within};

/// The object in the system namespace that holds it.
pub(super) const NAME: &str = "rpop-trace-key";
const KEY: &str = "key";
const REQUEST: Duration = Duration::from_secs(10);

/// Reads the key; the first worker of all makes it.
///
/// # Errors
/// When it cannot be read or made now. `Ok(None)`: it is there and is not
/// ours; another key in its place would let mail that loops pass once more.
pub(super) async fn trace_key(cluster: &Cluster) -> Result<Option<[u8; 16]>, ApiError> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    match within(REQUEST, maps.get(NAME)).await {
        Ok(map) => return Ok(read(&map)),
        Err(ApiError::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    let mut key = [0; 16];
    if let Err(error) = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut key)) {
        tracing::error!("no random numbers are to be had: {error}");
        return Ok(None);
    }
    let labels = [("app.kubernetes.io/managed-by", "rpop"), ("app.kubernetes.io/part-of", "rpop")];
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.to_owned(), hex(key))])),
        ..ConfigMap::default()
    };
    match within(REQUEST, maps.create(&PostParams::default(), &map)).await {
        Ok(map) => Ok(read(&map)),
        // Another worker was faster.
        Err(ApiError::Conflict { .. }) => Ok(read(&within(REQUEST, maps.get(NAME)).await?)),
        Err(error) => Err(error),
    }
}

fn hex(key: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(key))
}

fn read(map: &ConfigMap) -> Option<[u8; 16]> {
    let text = map.data.as_ref()?.get(KEY)?.trim();
    let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32)?;
    Some(number.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_reads_back_and_nothing_else_does() {
        let map = |text: &str| ConfigMap {
            data: Some(BTreeMap::from([(KEY.to_owned(), text.to_owned())])),
            ..ConfigMap::default()
        };
        let key = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255];
        assert_eq!(read(&map(&hex(key))), Some(key));
        for text in ["", "0", "zz", &"0".repeat(31)] {
            assert_eq!(read(&map(text)), None, "{text}");
        }
        assert_eq!(read(&ConfigMap::default()), None);
    }
}
