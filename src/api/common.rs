//! Parts that several resources share.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(super) fn yes() -> bool {
    true
}

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(super) fn is_true(value: &bool) -> bool {
    *value
}

pub(super) fn default_password_key() -> String {
    "password".into()
}

fn default_ca_key() -> String {
    "ca.crt".into()
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// The name of the Secret, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$')").message("write the object's name as Kubernetes has it, like first-isp: lower-case letters, digits, - and dots"))]
    pub name: String,
    /// The key in the Secret's data.
    #[serde(default = "default_password_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A Secret as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NameRef {
    /// The name of the Secret, of type `kubernetes.io/tls`, in the same
    /// namespace: `tls.crt` is the certificate chain and `tls.key` its
    /// private key, both in PEM.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$')").message("write the object's name as Kubernetes has it, like first-isp: lower-case letters, digits, - and dots"))]
    pub name: String,
}

/// Where certificates of authorities are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum CaKind {
    /// `v1/Secret`.
    #[default]
    Secret,
    /// `v1/ConfigMap`.
    ConfigMap,
}

/// A key of a Secret or ConfigMap that holds PEM certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaRef {
    /// Secret or ConfigMap.
    #[serde(default)]
    pub kind: CaKind,
    /// The name of that object, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$')").message("write the object's name as Kubernetes has it, like first-isp: lower-case letters, digits, - and dots"))]
    pub name: String,
    /// The key in its data.
    #[serde(default = "default_ca_key")]
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// The login at a destination (SASL).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryAuth {
    /// The user name.
    #[schemars(length(min = 1, max = 255))]
    pub username: String,
    /// Where the password is: a Secret in the namespace that RPOP runs in;
    /// with `rpop run -f`, a Secret of that name in the files.
    pub password_secret_ref: KeyRef,
}
