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

/// Both ways: a test without a promise shows nobody anything.
#[test]
fn the_promises_of_unified_accounts_and_their_tests_are_the_same() {
    let page = fs::read_to_string(root().join("docs/unified-accounts.md")).unwrap();
    let (_, table) = page.split_once("| promise | test |\n").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with("| ") || line.starts_with("|--"));
    let named: BTreeSet<String> =
        rows.flat_map(|row| row.split('`')).filter(|word| word.contains("::")).map(str::to_owned).collect();
    let mut sources = Vec::new();
    files(&root().join("tests/it/unified_real"), "rs", &mut sources);
    let mut tests = BTreeSet::new();
    for source in sources {
        let text = fs::read_to_string(&source).unwrap();
        let module = source.file_stem().unwrap().to_string_lossy();
        for test in text.split("#[test]\nfn ").skip(1) {
            tests.insert(format!("{module}::{}", test.split('(').next().unwrap()));
        }
    }
    assert_eq!(named, tests);
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
