//! The same manifests for `rpop run -f`.

use std::collections::BTreeSet;
use std::fs;

use rpop::local::manifests::{Configuration, Severity};
use serde_json::Value;

use super::{Broken, rules};

/// What `rpop check -f` says of each object, of the rules of ours. Each
/// stands in a file of its own; a name that occurs twice is no fault here.
pub(super) fn told(objects: &[Value]) -> Vec<Broken> {
    let messages: BTreeSet<String> = rules().into_iter().map(|(.., message)| message).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (at, object) in objects.iter().enumerate() {
        let mut object = object.clone();
        // Two of one name in one configuration would be an error of its own.
        if object["kind"] == "RpopRecord" {
            object["metadata"]["namespace"] = format!("mail-{at}").into();
        }
        let path = folder.path().join(format!("{at}.yaml"));
        // JSON lets it stand as it is; YAML does not.
        fs::write(&path, object.to_string().replace('\u{7f}', "\\u007f")).unwrap();
        paths.push(path);
    }
    let (cluster_scoped, records): (Vec<usize>, Vec<usize>) =
        (0..objects.len()).partition(|at| objects[*at]["kind"] != "RpopRecord");
    let mut found = vec![Broken::new(); objects.len()];
    let mut load = |which: &[usize]| {
        let some: Vec<_> = which.iter().map(|at| paths[*at].clone()).collect();
        let read = Configuration::load(&some).unwrap();
        for finding in read.diagnostics.iter().filter(|finding| finding.severity == Severity::Error) {
            let at = which.iter().find(|at| *paths[**at] == *finding.file).unwrap();
            let field = finding.subject.rsplit(": ").next().unwrap_or_default();
            if messages.contains(&finding.message) {
                found[*at].insert((field.to_owned(), finding.message.clone()));
            }
        }
    };
    load(&records);
    for at in cluster_scoped {
        load(&[at]);
    }
    found
}
