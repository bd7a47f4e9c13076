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
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, wanted).unwrap();
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
fn every_example_is_free_of_errors() {
    for path in ["examples/one-machine", "examples/maildir.yaml", "examples/many-mailboxes.yaml"] {
        let read = Configuration::load(&[project(path)]).unwrap();
        assert!(!read.has_errors(), "{}", read.report());
        assert!(!read.records.is_empty(), "{path}");
        assert!(read.problems.is_empty(), "{path}");
    }
}
