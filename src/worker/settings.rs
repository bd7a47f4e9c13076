//! `RpopSettings`, followed live.

use std::sync::Arc;

use kube::Client;
use kube::api::Api;
use kube::core::DeserializeGuard;
use kube::runtime::watcher;
use tokio::sync::{mpsc, watch};

use super::watching::{self, Shown};
use crate::api::{RpopSettings, RpopSettingsSpec, work};
use crate::domain::work::{Network, Settings};
use crate::telemetry::metrics::Metrics;

/// The one object of its kind that counts.
const NAME: &str = "default";

/// Addresses that a record in a cluster must not reach unless
/// `remoteNetworks.allow` names them: this host, its link, and the metadata
/// services of the large clouds, which hand out credentials.
const REFUSED: [&str; 9] = [
    "127.0.0.0/8",
    "::1/128",
    "0.0.0.0/8",
    "169.254.0.0/16",
    "fe80::/10",
    "fd00:ec2::254/128",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
];

/// What a manifest's settings mean in a cluster.
pub(super) fn in_cluster(mut settings: Settings) -> Settings {
    let allowed = |refused: &Network| {
        settings.allow_networks.iter().any(|allow| {
            // Somebody who allows all the world did not mean these.
            allow.prefix >= refused.prefix && refused.contains(allow.address)
        })
    };
    let refused: Vec<Network> =
        REFUSED.iter().filter_map(|text| Network::parse(text)).filter(|network| !allowed(network)).collect();
    settings.deny_networks.extend(refused);
    settings
}

fn read(spec: &RpopSettingsSpec) -> Result<Settings, String> {
    match work::settings(spec) {
        Ok(settings) => Ok(in_cluster(settings)),
        Err(faults) => {
            let faults: Vec<String> =
                faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message)).collect();
            Err(faults.join("; "))
        }
    }
}

/// Follows the settings: `None` until they are known. Settings that cannot be
/// used leave those before in force.
pub(super) fn follow(client: Client, metrics: Arc<Metrics>) -> watch::Receiver<Option<Arc<Settings>>> {
    let (now, later) = watch::channel(None);
    let (tell, mut shown) = mpsc::channel(8);
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let api: Api<DeserializeGuard<RpopSettings>> = Api::all(client);
    tokio::spawn(async move { watching::watch(api, config, tell, |shown| shown).await });
    tokio::spawn(async move {
        let mut there = false;
        while let Some(shown) = shown.recv().await {
            there = match shown {
                Shown::Is(_) | Shown::Unreadable { .. } => true,
                Shown::Gone(_) => false,
                Shown::Complete => there,
            };
            let found = match shown {
                Shown::Is(settings) => read(&settings.spec),
                Shown::Unreadable { why, .. } => Err(why),
                Shown::Gone(_) => Ok(in_cluster(defaults())),
                // There are none: the defaults hold.
                Shown::Complete if !there && now.borrow().is_none() => Ok(in_cluster(defaults())),
                Shown::Complete => continue,
            };
            metrics.configured(found.is_ok());
            match found {
                Ok(settings) => {
                    now.send_if_modified(|now| {
                        let new = now.as_deref() != Some(&settings);
                        *now = Some(Arc::new(settings));
                        new
                    });
                }
                Err(why) if now.borrow().is_some() => {
                    tracing::error!("RpopSettings cannot be used, those before stay in force: {why}");
                }
                Err(why) => {
                    // By the defaults in their place limits of the user's own
                    // would fall away.
                    tracing::error!(
                        "RpopSettings cannot be used, nothing is polled until they are mended: {why}"
                    );
                }
            }
        }
    });
    later
}

fn defaults() -> Settings {
    let spec: Option<RpopSettingsSpec> = serde_json::from_value(serde_json::json!({})).ok();
    spec.and_then(|spec| work::settings(&spec).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::net::AddressPolicy;

    fn policy(allow: &[&str]) -> AddressPolicy {
        let allow_networks = allow.iter().map(|text| Network::parse(text).unwrap()).collect();
        let settings = Settings { allow_networks, allow_self_poll: true, ..Settings::default() };
        AddressPolicy::new(&in_cluster(settings))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_record_does_not_reach_the_node_or_its_metadata_by_default() {
        let default = policy(&[]);
        for refused in
            ["127.0.0.1", "::1", "169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "fd00:ec2::254"]
        {
            assert!(default.check(ip(refused)).is_err(), "{refused}");
        }
        for fine in ["10.0.0.7", "192.0.2.1", "2001:db8::1"] {
            assert!(default.check(ip(fine)).is_ok(), "{fine}");
        }
    }

    #[test]
    fn what_is_allowed_by_name_is_allowed_and_all_the_world_is_not_a_name() {
        let some = policy(&["127.0.0.1/32", "10.0.0.0/8"]);
        assert!(some.check(ip("127.0.0.1")).is_ok());
        assert!(some.check(ip("169.254.169.254")).is_err());
        let world = policy(&["0.0.0.0/0", "::/0"]);
        assert!(world.check(ip("127.0.0.1")).is_err());
        assert!(world.check(ip("192.0.2.1")).is_ok());
    }
}
