//! What the documents promise.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(under: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(under).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, ending, found);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            found.push(path);
        }
    }
}

/// The names of all functions and modules in the sources.
fn names() -> BTreeSet<String> {
    let mut sources = Vec::new();
    files(&root().join("src"), "rs", &mut sources);
    files(&root().join("tests"), "rs", &mut sources);
    let mut names = BTreeSet::new();
    for source in sources {
        let text = fs::read_to_string(source).unwrap();
        for part in text.split("fn ").skip(1).chain(text.split("mod ").skip(1)) {
            let name: String = part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            names.insert(name);
        }
    }
    names
}

#[test]
fn every_test_that_the_quirks_page_names_exists() {
    let known = names();
    let page = fs::read_to_string(root().join("docs/quirks-coverage.md")).unwrap();
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let tests = row.rsplit(" | ").next().unwrap();
        // Test names are the only words of this length and form.
        for word in tests.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            if word.matches('_').count() >= 2 && !word.starts_with("rpop_") {
                named += 1;
                assert!(
                    known.contains(word),
                    "docs/quirks-coverage.md names {word}, which is no test: {row}"
                );
            }
        }
    }
    assert!(named > 100, "only {named} tests are named: has the page changed its form?");
}

/// Relative links in the documents lead to files that exist.
#[test]
fn links_between_documents_lead_somewhere() {
    let mut pages = vec![root().join("README.md"), root().join("CHANGELOG.md")];
    files(&root().join("docs"), "md", &mut pages);
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.contains(' ') {
                continue;
            }
            let path = page.parent().unwrap().join(target);
            assert!(path.exists(), "{} links to {target}, which is not there", page.display());
        }
    }
}
