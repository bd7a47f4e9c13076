//! The reference of the resources in Markdown, generated from their schemas,
//! so that it cannot say anything else than `kubectl explain`.

use std::fmt::{self, Write as _};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

/// What this version knows of and cannot do yet: it is refused where it is
/// written, never ignored.
pub const NOT_YET: &[(&str, &str)] = &[];

/// The reference page of one CRD.
pub fn page(crd: &CustomResourceDefinition) -> String {
    let mut page = String::new();
    write(crd, &mut page).expect("a String takes everything");
    page
}

fn write(crd: &CustomResourceDefinition, page: &mut String) -> fmt::Result {
    let names = &crd.spec.names;
    let schema = super::schema_of(crd);
    writeln!(page, "<!-- Generated from the types in src/api: UPDATE=1 cargo test --test it -->\n")?;
    writeln!(page, "# {}\n", names.kind)?;
    writeln!(page, "{}\n", text(&schema))?;
    let scope = if crd.spec.scope == "Namespaced" { "namespaced" } else { "cluster-scoped" };
    let short = names
        .short_names
        .iter()
        .flatten()
        .next()
        .map(|name| format!(", short name `{name}`"))
        .unwrap_or_default();
    writeln!(page, "`apiVersion: {}`, {scope}{short}.\n", super::API_VERSION)?;
    for (part, title) in [("spec", "Spec"), ("status", "Status")] {
        let Some(section) = schema.get("properties").and_then(|all| all.get(part)) else { continue };
        writeln!(page, "## {title}\n")?;
        let says = if part == "spec" {
            "Fields without a default may be left out, but for those marked **required**."
        } else {
            "Written by RPOP. In files it is ignored."
        };
        writeln!(page, "{says}\n")?;
        page.push_str("| Field | Type | Default | Meaning |\n|---|---|---|---|\n");
        rows(section, "", page)?;
        page.push('\n');
    }
    let later: Vec<&str> =
        NOT_YET.iter().filter(|(kind, _)| *kind == names.kind).map(|(_, field)| *field).collect();
    if !later.is_empty() {
        page.push_str("## Not yet\n\nThis version refuses, with a message:\n\n");
        for field in later {
            writeln!(page, "- `{field}`")?;
        }
        page.push('\n');
    }
    let mut rules = Vec::new();
    messages(&schema, "", &mut rules);
    if !rules.is_empty() {
        page.push_str("## Rules\n\nThe API server, `rpop run` and `rpop check` answer with these words:\n\n");
        page.push_str("| At | Message |\n|---|---|\n");
        for (at, message) in rules {
            writeln!(page, "| `{at}` | {} |", cell(&message))?;
        }
    }
    Ok(())
}

fn rows(schema: &Value, path: &str, page: &mut String) -> fmt::Result {
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let below = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let default = match field.get("default") {
            Some(Value::Object(_)) | None => String::new(),
            Some(value) => format!("`{}`", value.as_str().map_or_else(|| value.to_string(), str::to_owned)),
        };
        let must = if required.contains(&name.as_str()) { "**required** " } else { "" };
        writeln!(page, "| `{below}` | {} | {default} | {must}{} |", kind(field), cell(&text(field)))?;
        let inner = field.get("items").unwrap_or(field);
        // Kubernetes' own types are documented there.
        let own = inner
            .get("properties")
            .is_some_and(|all| all.get("matchLabels").is_none() && all.get("lastTransitionTime").is_none());
        if own {
            let below = if field.get("items").is_some() { format!("{below}[]") } else { below };
            rows(inner, &below, page)?;
        }
    }
    Ok(())
}

fn kind(field: &Value) -> String {
    let number = |key| field.get(key).and_then(Value::as_f64);
    if let Some(values) = field.get("enum").and_then(Value::as_array) {
        return values
            .iter()
            .filter_map(Value::as_str)
            .map(|value| format!("`{value}`"))
            .collect::<Vec<_>>()
            .join(" ");
    }
    if field.get("x-kubernetes-int-or-string").is_some() {
        return "size".into();
    }
    match field.get("type").and_then(Value::as_str) {
        Some("array") => {
            let inner = field.get("items").map(kind).unwrap_or_default();
            format!("list of {inner}")
        }
        Some("integer") => match (number("minimum"), number("maximum")) {
            (Some(min), Some(max)) => format!("{min} to {max}"),
            (Some(min), None) => format!("number from {min}"),
            _ => "number".into(),
        },
        Some("string") if field.get("format").is_some_and(|format| format == "date-time") => "time".into(),
        Some("string") => "text".into(),
        Some("boolean") => "`true` `false`".into(),
        Some("object") => "mapping".into(),
        _ => String::new(),
    }
}

fn messages(schema: &Value, path: &str, found: &mut Vec<(String, String)>) {
    for rule in schema.get("x-kubernetes-validations").and_then(Value::as_array).into_iter().flatten() {
        let field = rule.get("fieldPath").and_then(Value::as_str).unwrap_or("");
        let at = format!("{path}{field}");
        let at = at.trim_start_matches('.').to_owned();
        if let Some(message) = rule.get("message").and_then(Value::as_str) {
            found.push((at, message.to_owned()));
        }
    }
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        messages(field, &format!("{path}.{name}"), found);
        if let Some(items) = field.get("items") {
            messages(items, &format!("{path}.{name}[]"), found);
        }
    }
}

fn text(schema: &Value) -> String {
    let text = schema.get("description").and_then(Value::as_str).unwrap_or("");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
