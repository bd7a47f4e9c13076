//! The custom resources of the group `rpop.dev`: types, validation rules and
//! the CRDs that are generated from them.
//!
//! The doc comments of the fields are what `kubectl explain` and
//! `docs/reference` show, so they are written for the users of the resources.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

pub(crate) mod checks;
// The derive copies each struct into a function, `pub` included; columns repeat
// their types, and switches are what users know them as.
#[allow(unreachable_pub)]
mod common;
pub mod condition;
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod domain;
mod duration;
mod quantity;
#[allow(unreachable_pub, clippy::duplicated_attributes, clippy::struct_excessive_bools)]
mod record;
pub mod reference;
mod schedule;
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod settings;
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod shard;
#[allow(unreachable_pub, clippy::duplicated_attributes)]
mod slice;
#[allow(unreachable_pub)]
mod status;
pub(crate) mod unified;
pub(crate) mod work;

pub use common::{CaKind, CaRef, DeliveryAuth, KeyRef, NameRef};
pub use domain::{
    AccountsFor, Delivery, DeliveryTls, DeliveryTlsMode, LmtpDelivery, MaildirDelivery, RpopDomain,
    RpopDomainSpec, SmtpDelivery, WithoutDsn,
};
pub use duration::{Duration, DurationError, PollEvery};
pub use quantity::{Quantity, QuantityError};
pub use record::{
    Auth, Limits, OAuth2, OnReject, OnUidChange, Remote, RpopRecord, RpopRecordSpec, Tls, TlsMode,
};
pub use settings::{
    ActivitySchedule, ActivityWindow, Checkpoint, Day, LogLevel, RemoteNetworks, RpopSettings,
    RpopSettingsSpec, Timeouts,
};
pub use shard::{ObservedSlice, RpopShard, RpopShardSpec, RpopShardStatus, ShardFailedHost};
pub use slice::{ItemError, ItemPast, RpopWorkSlice, RpopWorkSliceSpec, SLICE_FORMAT, SliceItem, Sliced};
pub use status::{
    Counters, LastError, RefusedLogins, RpopDomainStatus, RpopRecordStatus, RpopSettingsStatus,
};

/// The API group.
pub const GROUP: &str = "rpop.dev";
/// The version that this build reads and writes.
pub const VERSION: &str = "v1alpha1";
/// `group/version`, as in `apiVersion`.
pub const API_VERSION: &str = "rpop.dev/v1alpha1";

/// The CRDs, in the order in which they are best applied.
pub fn crds() -> Vec<CustomResourceDefinition> {
    [RpopDomain::crd(), RpopRecord::crd(), RpopSettings::crd(), RpopShard::crd(), RpopWorkSlice::crd()]
        .into_iter()
        .map(polished)
        .collect()
}

/// The CRD of a kind of ours.
pub(crate) fn crd_of(kind: &str) -> Option<CustomResourceDefinition> {
    let crd = match kind {
        "RpopRecord" => RpopRecord::crd(),
        "RpopDomain" => RpopDomain::crd(),
        "RpopSettings" => RpopSettings::crd(),
        _ => return None,
    };
    Some(polished(crd))
}

/// One CRD as YAML, the content of its file under `crds/`.
///
/// # Panics
/// Never: a CRD always has a YAML form.
pub fn crd_yaml(crd: &CustomResourceDefinition) -> String {
    let tree = serde_json::to_value(crd).expect("a CRD serializes");
    serde_saphyr::to_string(&tree).expect("JSON has a YAML form")
}

/// All CRDs as one YAML stream, ready for `kubectl apply -f -`.
pub fn crds_yaml() -> String {
    crds().iter().fold(String::new(), |mut all, crd| {
        all.push_str("---\n");
        all.push_str(&crd_yaml(crd));
        all
    })
}

/// The structural schema of a CRD's only version.
pub(crate) fn schema_of(crd: &CustomResourceDefinition) -> Value {
    crd.spec
        .versions
        .first()
        .and_then(|version| version.schema.as_ref())
        .and_then(|schema| serde_json::to_value(&schema.open_api_v3_schema).ok())
        .unwrap_or(Value::Null)
}

/// A CRD as it is applied, from what the derive makes.
fn polished(crd: CustomResourceDefinition) -> CustomResourceDefinition {
    let mut tree = serde_json::to_value(&crd).unwrap_or(Value::Null);
    without_nullable(&mut tree);
    with_name(&mut tree);
    serde_json::from_value(tree).unwrap_or(crd)
}

/// An optional field may be left out; `null` in its place is an error. With
/// `nullable` the rules would have to tell three cases apart.
fn without_nullable(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if map.get("nullable").is_some_and(Value::is_boolean) {
                map.remove("nullable");
            }
            map.values_mut().for_each(without_nullable);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nullable),
        _ => {}
    }
}

/// A rule that finds fault with the name says so at `metadata.name` (without a
/// path the API server would print `<nil>`): a path must be one of the schema.
fn with_name(crd: &mut Value) {
    let Some(versions) = crd.pointer_mut("/spec/versions").and_then(Value::as_array_mut) else { return };
    for schema in versions.iter_mut().filter_map(|version| version.pointer_mut("/schema/openAPIV3Schema")) {
        let rules = schema.get("x-kubernetes-validations").and_then(Value::as_array);
        let speaks = |rule: &Value| rule.get("fieldPath").is_some_and(|path| path == ".metadata.name");
        if rules.is_some_and(|rules| rules.iter().any(speaks))
            && let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut)
        {
            let name = serde_json::json!({"type": "string", "description": "The name of the object."});
            let metadata = serde_json::json!({"type": "object", "properties": {"name": name}});
            properties.insert("metadata".into(), metadata);
        }
    }
}
