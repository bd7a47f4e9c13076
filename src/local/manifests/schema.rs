//! Holds a YAML tree against the structural schema of its kind: unknown
//! fields, missing ones, wrong types. The API server does the same for the
//! cluster, but it does not know the line, and it drops what it does not know.

use serde_json::Value as Json;

use super::yaml::{Node, Position, Value};
use crate::domain::text::{escape, suggest};

/// What does not fit.
#[derive(Clone, Debug)]
pub(super) struct Misfit {
    pub(super) at: Position,
    pub(super) path: String,
    pub(super) message: String,
    /// What stands behind the key must not be shown: somebody may have
    /// written a password there.
    pub(super) hide_value: bool,
}

/// Checks a tree against a schema.
pub(super) struct Check<'a> {
    root: &'a Json,
    /// Values are passwords: no message may show one.
    secret: bool,
    found: Vec<Misfit>,
}

impl<'a> Check<'a> {
    /// All that does not fit.
    pub(super) fn run(schema: &'a Json, node: &Node, secret: bool) -> Vec<Misfit> {
        let mut check = Self { root: schema, secret, found: Vec::new() };
        check.visit(schema, node, node.at, "");
        check.found
    }

    fn report(&mut self, at: Position, path: &str, message: String) {
        self.found.push(Misfit { at, path: path.to_owned(), message, hide_value: false });
    }

    fn visit(&mut self, schema: &Json, node: &Node, key_at: Position, path: &str) {
        let name = path.rsplit('.').next().unwrap_or(path);
        if schema.get("x-kubernetes-int-or-string").is_some_and(|flag| flag == true) {
            if !matches!(node.value, Value::Int(_) | Value::Text(_)) {
                self.report(
                    node.at,
                    path,
                    format!("`{name}` must be a number or text, found {}", kind(node)),
                );
            }
            return;
        }
        let wanted = schema.get("type").and_then(Json::as_str).unwrap_or("");
        if matches!(node.value, Value::Null) && !wanted.is_empty() {
            let message = format!("`{name}` is empty: write a value, or remove the line");
            return self.report(key_at, path, message);
        }
        match (wanted, &node.value) {
            ("object", Value::Map(_)) => self.object(schema, node, key_at, path),
            ("array", Value::List(items)) => {
                self.bounds(schema, items.len(), "minItems", "maxItems", "entries", node.at, path);
                if let Some(inner) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.visit(inner, item, item.at, &format!("{path}[{index}]"));
                    }
                }
            }
            ("string", Value::Text(text)) => self.text(schema, text, node.at, path),
            ("integer", Value::Int(value)) => self.integer(schema, *value, node.at, path),
            ("boolean", Value::Bool(_)) | ("number", Value::Int(_) | Value::Float(_)) | ("", _) => {}
            _ => {
                let message = format!(
                    "`{name}` must be {}",
                    if self.secret {
                        hidden_type(wanted, node)
                    } else {
                        wrong_type(schema, wanted, name, node)
                    }
                );
                self.report(node.at, path, message);
            }
        }
    }

    fn object(&mut self, schema: &Json, node: &Node, key_at: Position, path: &str) {
        let Value::Map(entries) = &node.value else { return };
        let properties = schema.get("properties").and_then(Json::as_object);
        let others = schema.get("additionalProperties").filter(|others| others.is_object());
        let open = (properties.is_none() && others.is_none())
            || schema.get("x-kubernetes-preserve-unknown-fields").is_some_and(|flag| flag == true);
        for entry in entries {
            let below = if path.is_empty() { entry.key.clone() } else { format!("{path}.{}", entry.key) };
            if let Some(inner) = properties.and_then(|known| known.get(&entry.key)).or(others) {
                self.visit(inner, &entry.node, entry.key_at, &below);
            } else if !open {
                let known: Vec<&str> =
                    properties.into_iter().flatten().map(|(key, _)| key.as_str()).collect();
                let message = self.unknown(&entry.key, &known, path);
                self.found.push(Misfit { at: entry.key_at, path: below, message, hide_value: true });
            }
        }
        for required in schema.get("required").and_then(Json::as_array).into_iter().flatten() {
            let Some(required) = required.as_str() else { continue };
            if node.get(required).is_none() {
                let below = if path.is_empty() { required.to_owned() } else { format!("{path}.{required}") };
                let says = properties
                    .and_then(|known| known.get(required))
                    .and_then(|inner| inner.get("description"))
                    .and_then(Json::as_str)
                    .and_then(|text| text.split(". ").next())
                    .map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
                let message = match says {
                    Some(says) => format!("`{required}` is missing. {}", says.trim_end_matches('.')),
                    None => format!("`{required}` is missing"),
                };
                self.report(key_at, &below, message);
            }
        }
    }

    fn unknown(&self, key: &str, known: &[&str], path: &str) -> String {
        let shown = escape(key);
        if let Some(close) = suggest(key, known.iter().copied()) {
            return format!("unknown field `{shown}`: did you mean `{close}`?");
        }
        let called =
            ELSEWHERE_CALLED.iter().find(|(words, _)| words.contains(&key.to_ascii_lowercase().as_str()));
        if let Some((_, ours)) = called.filter(|(_, ours)| known.contains(ours)) {
            return format!("unknown field `{shown}`: here it is called `{ours}`");
        }
        let mut places = Vec::new();
        elsewhere(self.root, key, "", &mut places);
        places
            .retain(|place| place != path && !place.starts_with("status") && !place.starts_with("metadata"));
        match (places.first(), known.is_empty()) {
            (Some(place), _) if place.is_empty() => {
                format!("unknown field `{shown}` here: it belongs at the top")
            }
            (Some(place), _) => format!("unknown field `{shown}` here: it belongs under `{place}`"),
            (None, true) => format!("unknown field `{shown}`"),
            (None, false) => format!("unknown field `{shown}`: known here are {}", known.join(", ")),
        }
    }

    fn text(&mut self, schema: &Json, text: &str, at: Position, path: &str) {
        let name = path.rsplit('.').next().unwrap_or(path);
        if let Some(values) = schema.get("enum").and_then(Json::as_array) {
            let known: Vec<&str> = values.iter().filter_map(Json::as_str).collect();
            if !known.contains(&text) {
                let all = known.join(", ");
                let message = match suggest(text, known.iter().copied()) {
                    Some(close) => {
                        format!(
                            "`{name}` cannot be `{}`: did you mean `{close}`? (one of {all})",
                            escape(text)
                        )
                    }
                    None => format!("`{name}` cannot be `{}`: write one of {all}", escape(text)),
                };
                self.report(at, path, message);
            }
            return;
        }
        self.bounds(schema, text.chars().count(), "minLength", "maxLength", "characters", at, path);
    }

    #[expect(clippy::too_many_arguments, reason = "the two bounds differ in nothing but their names")]
    fn bounds(
        &mut self,
        schema: &Json,
        len: usize,
        min: &str,
        max: &str,
        what: &str,
        at: Position,
        path: &str,
    ) {
        let name = path.rsplit('.').next().unwrap_or(path);
        let bound =
            |key| schema.get(key).and_then(Json::as_u64).and_then(|bound| usize::try_from(bound).ok());
        if bound(min).is_some_and(|min| len < min) {
            let least = bound(min).unwrap_or(0);
            let message = if len == 0 {
                format!("`{name}` is empty: write a value, or remove the line")
            } else {
                format!("`{name}` has {len} {what}: it needs at least {least}")
            };
            self.report(at, path, message);
        }
        if let Some(most) = bound(max).filter(|max| len > *max) {
            self.report(at, path, format!("`{name}` has {len} {what}: at most {most} are allowed"));
        }
    }

    fn integer(&mut self, schema: &Json, value: i64, at: Position, path: &str) {
        let name = path.rsplit('.').next().unwrap_or(path);
        // The schema's bounds are floats in a CRD; ours are small and whole.
        #[expect(clippy::cast_possible_truncation, reason = "bounds in our schemas are whole and below 2^53")]
        let bound = |key| schema.get(key).and_then(Json::as_f64).map(|bound| bound as i64);
        match (bound("minimum"), bound("maximum")) {
            (Some(min), Some(max)) if value < min || value > max => {
                self.report(
                    at,
                    path,
                    format!("`{name}` cannot be {value}: write a number from {min} to {max}"),
                );
            }
            (Some(min), None) if value < min => {
                self.report(at, path, format!("`{name}` cannot be {value}: write at least {min}"));
            }
            _ => {}
        }
    }
}

fn wrong_type(schema: &Json, wanted: &str, name: &str, node: &Node) -> String {
    let found = kind(node);
    let duration = schema
        .get("x-kubernetes-validations")
        .and_then(|rules| rules.get(0)?.get("message")?.as_str())
        .filter(|message| message.starts_with("write a duration"));
    match (wanted, &node.value) {
        ("string", Value::Int(_)) if let Some(message) = duration => {
            format!("text, found {found}: {message}")
        }
        ("string", Value::Int(value)) => format!("text, found {found}: put it in quotes: \"{value}\""),
        ("string", Value::Bool(_) | Value::Float(_)) => format!("text, found {found}: put it in quotes"),
        ("string", _) => format!("text, found {found}"),
        ("integer", Value::Text(text)) if text.parse::<i64>().is_ok() => {
            "a number: remove the quotes".to_owned()
        }
        ("integer", _) => format!("a whole number, found {found}"),
        ("boolean", _) => format!("true or false, found {found}"),
        ("array", Value::Map(_)) => format!("a list, found {found}: begin each entry with `- `"),
        ("array", _) => format!("a list: write `{name}: [VALUE]`"),
        ("object", _) => {
            let fields: Vec<&str> = schema
                .get("properties")
                .and_then(Json::as_object)
                .into_iter()
                .flatten()
                .map(|(key, _)| key.as_str())
                .collect();
            if fields.is_empty() {
                format!("a mapping, found {found}")
            } else {
                format!("a mapping, found {found}: its fields are {}", fields.join(", "))
            }
        }
        _ => format!("of type {wanted}, found {found}"),
    }
}

/// As [`wrong_type`], without the value.
fn hidden_type(wanted: &str, node: &Node) -> String {
    match (wanted, &node.value) {
        ("string", Value::Int(_) | Value::Float(_) | Value::Bool(_)) => {
            "text, found a number or a boolean: put it in quotes".to_owned()
        }
        ("string", _) => "text".to_owned(),
        ("object", _) => "a mapping".to_owned(),
        _ => format!("of type {wanted}"),
    }
}

fn kind(node: &Node) -> String {
    match &node.value {
        Value::Null => "nothing".into(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Int(value) => format!("the number {value}"),
        Value::Float(value) => format!("the number {value}"),
        Value::Text(_) => "text".into(),
        Value::List(_) => "a list".into(),
        Value::Map(_) => "a mapping".into(),
    }
}

/// What other programs call our fields. Only for suggestions: which fields
/// there are, the schema says.
const ELSEWHERE_CALLED: &[(&[&str], &str)] = &[
    (&["user", "username", "login"], "account"),
    (&["server", "hostname", "via"], "host"),
    (&["ssl", "starttls", "sslproto"], "tls"),
    (&["interval", "every", "daemon", "schedule", "poll"], "pollEvery"),
    (&["keep", "nokeep", "leaveonserver"], "leave"),
    (&["folder"], "mailbox"),
    (&["secretref", "secret", "secretkeyref"], "passwordSecretRef"),
    (&["fingerprint", "sslfingerprint", "sha256"], "pinSha256"),
    (&["delete_after", "deleteafter"], "keepForDays"),
    (&["protocol"], "mode"),
];

/// Where in the schema a property of this name is.
fn elsewhere(schema: &Json, key: &str, path: &str, places: &mut Vec<String>) {
    for (name, inner) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
        if name == key {
            places.push(path.to_owned());
        }
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        elsewhere(inner, key, &below, places);
    }
}
