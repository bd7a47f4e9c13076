//! The CRDs, their reference and the examples are what the code says.

use std::fs;
use std::path::{Path, PathBuf};

use rpop::api;
use rpop::local::manifests::Configuration;

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares a file with what it must be, or writes it with `UPDATE=1`.
fn held_against(path: &str, wanted: &str) {
    let path = project(path);
    if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder that can be made");
        fs::write(&path, wanted).expect("a file that can be written");
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "{} is not what the code says: run UPDATE=1 cargo test --test it",
        path.display()
    );
}

#[test]
fn crd_files_are_what_the_code_says() {
    for crd in api::crds() {
        let name = &crd.spec.names.plural;
        held_against(&format!("crds/{name}.yaml"), &api::crd_yaml(&crd));
    }
}

#[test]
fn the_reference_is_what_the_code_says() {
    for crd in api::crds() {
        let name = &crd.spec.names.singular.clone().unwrap_or_default();
        held_against(&format!("docs/reference/{name}.md"), &api::reference::page(&crd));
    }
}

#[test]
fn kubectl_get_rpop_shows_the_columns_that_people_look_for() {
    let crd = api::crds().into_iter().find(|crd| crd.spec.names.kind == "RpopRecord").unwrap();
    assert_eq!(crd.spec.names.short_names, Some(vec!["rpop".to_owned()]));
    let columns = crd.spec.versions[0].additional_printer_columns.clone().unwrap();
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "Poll Every",
            "Account",
            "At Host",
            "Leave",
            "APOP",
            "TLS",
            "Mailbox/Special",
            "Last",
            "Ready",
            "Age"
        ]
    );
}

#[test]
fn crds_read_back_as_they_were() {
    for crd in api::crds() {
        let read: serde_json::Value = serde_saphyr::from_str(&api::crd_yaml(&crd)).unwrap();
        assert_eq!(read, serde_json::to_value(&crd).unwrap());
    }
    assert_eq!(api::crds_yaml().matches("\nkind: CustomResourceDefinition\n").count(), 5);
}

#[test]
fn integers_are_signed_and_every_field_is_explained() {
    fn visit(schema: &serde_json::Value, path: &str) {
        let format = schema.get("format").and_then(serde_json::Value::as_str).unwrap_or("");
        assert!(!format.starts_with("uint"), "{path}: API servers warn about {format}");
        for (name, field) in
            schema.get("properties").and_then(serde_json::Value::as_object).into_iter().flatten()
        {
            let explained = field.get("description").is_some() || path.is_empty();
            assert!(explained, "{path}.{name} has no description for kubectl explain");
            visit(field, &format!("{path}.{name}"));
        }
        if let Some(items) = schema.get("items") {
            visit(items, path);
        }
    }
    for crd in api::crds() {
        let schema = crd.spec.versions[0].schema.as_ref().unwrap();
        visit(&serde_json::to_value(&schema.open_api_v3_schema).unwrap(), "");
    }
}

#[test]
fn every_example_is_free_of_errors() {
    for path in ["examples/one-machine", "examples/maildir.yaml", "examples/many-mailboxes.yaml"] {
        let read = Configuration::load(&[project(path)]).unwrap();
        assert!(!read.has_errors(), "{}", read.report());
        assert!(!read.records.is_empty(), "{path}");
        assert!(read.problems.is_empty(), "{path}");
    }
}
