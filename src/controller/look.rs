//! The first three steps for one record, out of what the watches have shown:
//! dereference, validate, build. Pure.

use std::sync::Arc;

use super::build::{Prepared, build};
use super::dereference::dereference;
use super::index::View;
use super::validate::{Refusal, Verdict, validate};
use crate::api::checks;
use crate::api::unified::Directory;
use crate::api::work::Shared;
use crate::domain::work::RecordKey;

/// What is to become of a record.
#[derive(Debug)]
pub(super) enum Looked {
    /// It is gone: none of the work.
    Gone,
    /// Something that decides is not known yet.
    Later,
    /// To be removed (`pollEvery: Never`), if it is still what was seen.
    Remove { uid: Arc<str>, version: Arc<str> },
    /// None of the work, and why.
    Refused { generation: i64, refusal: Refusal },
    /// To be put among the work.
    Prepared(Prepared),
}

/// Looks at a record.
pub(super) fn look(view: &mut View, key: &RecordKey) -> Looked {
    let mut shared = std::mem::take(&mut view.shared);
    let mut directory = std::mem::take(&mut view.directory);
    let looked = steps(view, &mut shared, &mut directory, key);
    (view.shared, view.directory) = (shared, directory);
    match looked {
        Looked::Prepared(mut prepared) => {
            let (maildrop, claim) = prepared.claim();
            view.claim(key, Some((maildrop.clone(), claim)));
            if let Some(other) = view.rival(key, &maildrop, claim) {
                // Who else has a mailbox is not everybody's to know.
                let told = (other.namespace == key.namespace).then_some(other);
                prepared.warnings.push(format!("spec.remote: {}", checks::rival(told)));
            }
            Looked::Prepared(prepared)
        }
        Looked::Later => Looked::Later,
        other => {
            view.claim(key, None);
            other
        }
    }
}

fn steps(view: &View, shared: &mut Shared, directory: &mut Directory, key: &RecordKey) -> Looked {
    let refs = match dereference(view, key) {
        Ok(refs) => refs,
        Err(error) if error.is_transient() => {
            tracing::debug!(record = %key, "not looked at yet: {error}");
            return Looked::Later;
        }
        Err(_) => return Looked::Gone,
    };
    match validate(&refs, shared, directory) {
        Ok(Verdict::Accepted(validated)) => Looked::Prepared(build(*validated, refs.record)),
        Ok(Verdict::Remove) => {
            Looked::Remove { uid: Arc::clone(&refs.record.uid), version: Arc::clone(&refs.record.version) }
        }
        Err(refusal) => Looked::Refused { generation: refs.record.generation, refusal },
    }
}

#[cfg(test)]
#[path = "look_tests.rs"]
mod tests;
