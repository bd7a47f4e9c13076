//! The kinds of objects that files may hold, with their schemas and rules.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::cel::{CompiledSchema, Validator, compile_schema};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value as Json;

use crate::api;

/// A kind that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Record,
    Domain,
    Settings,
    Secret,
    ConfigMap,
    List,
}

impl Kind {
    pub(super) const ALL: [Self; 6] =
        [Self::Record, Self::Domain, Self::Settings, Self::Secret, Self::ConfigMap, Self::List];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Record => "RpopRecord",
            Self::Domain => "RpopDomain",
            Self::Settings => "RpopSettings",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::List => "List",
        }
    }

    pub(super) fn api_version(self) -> &'static str {
        match self {
            Self::Record | Self::Domain | Self::Settings => api::API_VERSION,
            Self::Secret | Self::ConfigMap | Self::List => "v1",
        }
    }

    pub(super) fn namespaced(self) -> bool {
        matches!(self, Self::Record | Self::Secret | Self::ConfigMap)
    }
}

/// A schema with its compiled rules.
pub(super) struct Known {
    pub(super) schema: Json,
    rules: Option<CompiledSchema>,
}

/// The schemas of all kinds.
pub(super) struct Kinds {
    record: Known,
    domain: Known,
    settings: Known,
    secret: Known,
    config_map: Known,
    validator: Validator,
}

impl Kinds {
    pub(super) fn new() -> Self {
        let metadata = schema::<ObjectMeta>();
        let [domain, record, settings] = {
            let mut crds = api::crds().into_iter();
            std::array::from_fn(|_| {
                let mut schema = crds.next().as_ref().map_or(Json::Null, api::schema_of);
                let rules = compile_schema(&schema);
                complete(&mut schema, &metadata);
                Known { schema, rules: Some(rules) }
            })
        };
        let plain = |mut schema: Json| {
            complete(&mut schema, &metadata);
            Known { schema, rules: None }
        };
        Self {
            record,
            domain,
            settings,
            secret: plain(schema::<Secret>()),
            config_map: plain(schema::<ConfigMap>()),
            validator: Validator::new(),
        }
    }

    pub(super) fn known(&self, kind: Kind) -> Option<&Known> {
        match kind {
            Kind::Record => Some(&self.record),
            Kind::Domain => Some(&self.domain),
            Kind::Settings => Some(&self.settings),
            Kind::Secret => Some(&self.secret),
            Kind::ConfigMap => Some(&self.config_map),
            Kind::List => None,
        }
    }

    /// The rules of the CRD that `object` breaks, as paths and messages. It
    /// is taken as one that exists already: `pollEvery: Never` has been
    /// looked at before.
    pub(super) fn broken_rules(&self, kind: Kind, object: &Json) -> Vec<(String, String)> {
        let Some(rules) = self.known(kind).and_then(|known| known.rules.as_ref()) else { return Vec::new() };
        match self.validator.validate_compiled(rules, object, None) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.into_iter().map(|error| (error.field_path, error.message)).collect(),
        }
    }
}

/// The schema of a type of Kubernetes, without references.
fn schema<T: JsonSchema>() -> Json {
    let generator = SchemaSettings::openapi3()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .into_generator();
    let mut schema = serde_json::to_value(generator.into_root_schema_for::<T>()).unwrap_or(Json::Null);
    single_types(&mut schema);
    schema
}

/// `["string", "null"]` becomes `"string"`: an optional field may be left out.
fn single_types(schema: &mut Json) {
    match schema {
        Json::Object(map) => {
            if let Some(Json::Array(types)) = map.get("type")
                && let Some(first) = types.first().cloned()
            {
                map.insert("type".into(), first);
            }
            map.values_mut().for_each(single_types);
        }
        Json::Array(items) => items.iter_mut().for_each(single_types),
        _ => {}
    }
}

/// Adds what every object has and a CRD does not spell out.
fn complete(schema: &mut Json, metadata: &Json) {
    let Some(schema) = schema.as_object_mut() else { return };
    let properties = schema.entry("properties").or_insert_with(|| Json::Object(serde_json::Map::new()));
    if let Some(properties) = properties.as_object_mut() {
        properties.insert("apiVersion".into(), serde_json::json!({"type": "string"}));
        properties.insert("kind".into(), serde_json::json!({"type": "string"}));
        properties.insert("metadata".into(), metadata.clone());
    }
    let required = schema.entry("required").or_insert_with(|| Json::Array(Vec::new()));
    if let Some(required) = required.as_array_mut()
        && !required.iter().any(|name| name == "metadata")
    {
        required.push("metadata".into());
    }
}
