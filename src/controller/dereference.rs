//! Step 1: what a record refers to, out of what the watches have shown.

use std::sync::Arc;

use super::index::View;
use super::seen::{Domain, Namespace, Record, Rules};
use crate::domain::work::RecordKey;

/// A record with everything that decides about it.
pub(super) struct ReferencedObjects<'v> {
    pub(super) key: &'v RecordKey,
    pub(super) record: &'v Record,
    pub(super) namespace: &'v Namespace,
    /// By the domain of its account; `None` if nobody has that name.
    pub(super) domain: Option<(&'v Arc<str>, &'v Domain)>,
    pub(super) rules: &'v Rules,
    /// The namespace that RPOP runs in.
    pub(super) system: &'v str,
}

/// Why a record is not looked at now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DereferenceError {
    /// It is gone, or about to be.
    #[error("the record is gone")]
    Gone,
    /// The watch of namespaces is behind that of records.
    #[error("its namespace has not been seen yet")]
    NamespaceUnknown,
    /// Settings exist that nobody can read, and there were none before.
    #[error("the settings cannot be read")]
    SettingsUnknown,
}

impl DereferenceError {
    /// Whether it is worth another look a little later.
    pub(super) fn is_transient(self) -> bool {
        !matches!(self, Self::Gone)
    }
}

/// Finds what the record refers to.
pub(super) fn dereference<'v>(
    view: &'v View,
    key: &'v RecordKey,
) -> Result<ReferencedObjects<'v>, DereferenceError> {
    let record = view.get(key).filter(|record| !record.deleting).ok_or(DereferenceError::Gone)?;
    let namespace = view.namespace_of(&key.namespace).ok_or(DereferenceError::NamespaceUnknown)?;
    let rules = view.rules().ok_or(DereferenceError::SettingsUnknown)?;
    let domain = record.domain.as_deref().and_then(|name| view.domain_of(name));
    Ok(ReferencedObjects { key, record, namespace, domain, rules, system: &view.system })
}
