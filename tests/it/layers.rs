//! The layering that `src/lib.rs` draws, held against the code.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(under: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(under).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Lines of code (not comments) under `src/layer` that hold one of `words`.
fn mentions(layer: &str, words: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(layer), &mut files);
    assert!(!files.is_empty(), "src/{layer} holds no code: has it moved?");
    let mut found = Vec::new();
    for file in files {
        for (at, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            let code = line.trim_start();
            if !code.starts_with("//") && words.iter().any(|word| code.contains(word)) {
                found.push(format!("{}:{}: {code}", file.display(), at + 1));
            }
        }
    }
    found
}

#[test]
fn protocols_and_engine_do_not_know_kubernetes() {
    for layer in ["domain", "net", "pop3", "smtp", "message", "engine"] {
        let found = mentions(layer, &["kube::", "k8s_openapi::", "crate::api", "crate::local", "crate::cli"]);
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}

#[test]
fn the_domain_does_no_input_or_output() {
    let found = mentions(
        "domain",
        &["tokio::", "std::fs", "std::net::Tcp", "SystemTime::now", "Timestamp::now", "crate::engine"],
    );
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn protocols_do_not_know_the_engine() {
    for layer in ["net", "pop3", "smtp", "message"] {
        let found = mentions(layer, &["crate::engine", "crate::telemetry"]);
        assert!(found.is_empty(), "{}", found.join("\n"));
    }
}
