//! The kinds of objects that files may hold, with their schemas and rules.

use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;

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
    rules: Option<Rules>,
}

/// The rules of a CRD, in two parts: those of single values, whose results are
/// remembered (ten thousand records have few hosts and rhythms between them,
/// and each rule compiles its expressions anew), and those of whole objects.
struct Rules {
    objects: CompiledSchema,
    values: CompiledSchema,
    results: RefCell<HashMap<(String, String), Vec<String>>>,
}

/// Results that are remembered of one kind.
const REMEMBERED: usize = 4096;

impl Rules {
    fn new(schema: &Json) -> Self {
        // Each rule is compiled once, in the part that it belongs to.
        fn split(node: &mut Json, objects: bool) {
            let Some(node) = node.as_object_mut() else { return };
            if node.contains_key("properties") != objects {
                node.remove("x-kubernetes-validations");
            }
            if let Some(Json::Object(properties)) = node.get_mut("properties") {
                properties.values_mut().for_each(|inner| split(inner, objects));
            }
        }
        let part = |objects| {
            let mut schema = schema.clone();
            split(&mut schema, objects);
            compile_schema(&schema)
        };
        Self { objects: part(true), values: part(false), results: RefCell::default() }
    }

    fn broken(&self, validator: &Validator, object: &Json) -> Vec<(String, String)> {
        let mut found = Vec::new();
        self.visit(validator, &self.values, object, "", &mut found);
        if let Err(errors) = validator.validate_compiled(&self.objects, object, None) {
            // A rule of the whole object that names a field does it with a dot.
            let path = |path: String| path.strip_prefix('.').map_or(path.clone(), str::to_owned);
            found.extend(errors.into_iter().map(|error| (path(error.field_path), error.message)));
        }
        found
    }

    fn visit(
        &self,
        validator: &Validator,
        node: &CompiledSchema,
        value: &Json,
        path: &str,
        found: &mut Vec<(String, String)>,
    ) {
        if let (Json::Object(fields), false) = (value, node.properties.is_empty()) {
            for (name, value) in fields {
                if let Some(inner) = node.properties.get(name) {
                    let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    self.visit(validator, inner, value, &below, found);
                }
            }
        } else if !node.validations.is_empty() {
            let question = (path.to_owned(), value.to_string());
            let mut results = self.results.borrow_mut();
            let known = results.get(&question).cloned();
            let messages = known.unwrap_or_else(|| {
                let messages: Vec<String> = match validator.validate_compiled(node, value, None) {
                    Ok(()) => Vec::new(),
                    Err(errors) => errors.into_iter().map(|error| error.message).collect(),
                };
                if results.len() >= REMEMBERED {
                    results.clear();
                }
                results.insert(question, messages.clone());
                messages
            });
            found.extend(messages.into_iter().map(|message| (path.to_owned(), message)));
        }
    }
}

/// The schemas of all kinds, each made when it is first asked for.
pub(super) struct Kinds {
    metadata: OnceCell<Json>,
    known: [OnceCell<Option<Known>>; Kind::ALL.len()],
    validator: Validator,
}

impl Kinds {
    pub(super) fn new() -> Self {
        Self { metadata: OnceCell::new(), known: Default::default(), validator: Validator::new() }
    }

    pub(super) fn known(&self, kind: Kind) -> Option<&Known> {
        let at = Kind::ALL.iter().position(|known| *known == kind)?;
        self.known.get(at)?.get_or_init(|| self.make(kind)).as_ref()
    }

    fn make(&self, kind: Kind) -> Option<Known> {
        let own = match kind {
            Kind::Record | Kind::Domain | Kind::Settings => Some(api::schema_of(&api::crd_of(kind.name())?)),
            _ => None,
        };
        let rules = own.as_ref().map(Rules::new);
        let mut schema = match kind {
            Kind::Secret => schema::<Secret>(),
            Kind::ConfigMap => schema::<ConfigMap>(),
            _ => own?,
        };
        complete(&mut schema, self.metadata.get_or_init(schema_of_metadata));
        Some(Known { schema, rules })
    }

    /// The rules of the CRD that `object`, taken as a new one, breaks: paths
    /// and messages.
    pub(super) fn broken_rules(&self, kind: Kind, object: &Json) -> Vec<(String, String)> {
        let Some(rules) = self.known(kind).and_then(|known| known.rules.as_ref()) else { return Vec::new() };
        rules.broken(&self.validator, object)
    }
}

fn schema_of_metadata() -> Json {
    schema::<ObjectMeta>()
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
