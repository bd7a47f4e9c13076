//! What the watches tell goes into the index.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PartialObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;

use super::index::{View, key_of};
use super::watch::{Change, name_of};
use crate::api::{RpopDomain, RpopRecord, RpopSettings};
use crate::domain::work::RecordKey;

/// Which objects the current listing of each kind has named so far, and which
/// kinds have been listed.
#[derive(Debug, Default)]
pub(super) struct Listings {
    records: HashSet<RecordKey>,
    domains: BTreeSet<Arc<str>>,
    namespaces: BTreeSet<Arc<str>>,
    settings: bool,
    complete: Complete,
}

#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "one a kind")]
struct Complete {
    records: bool,
    domains: bool,
    namespaces: bool,
    settings: bool,
}

impl Listings {
    /// Whether every kind has been listed once: before that, what is missing
    /// may only be late.
    pub(super) fn complete(&self) -> bool {
        let Complete { records, domains, namespaces, settings } = self.complete;
        records && domains && namespaces && settings
    }

    /// Takes a change in.
    pub(super) fn take(&mut self, view: &mut View, change: Change) {
        match change {
            Change::Record(event) => self.record(view, event),
            Change::Domain(event) => self.domain(view, event),
            Change::Settings(event) => self.settings(view, event),
            Change::Namespace(event) => self.namespace(view, event),
        }
    }

    fn record(&mut self, view: &mut View, event: Event<DeserializeGuard<RpopRecord>>) {
        let mut put = |object: DeserializeGuard<RpopRecord>| match object.0 {
            Ok(RpopRecord { metadata, spec, status }) => view.record(&metadata, Ok(spec), status.as_ref()),
            Err(invalid) => view.record(&invalid.metadata, Err(invalid.error), None),
        };
        match event {
            Event::Init => self.records.clear(),
            Event::InitApply(object) => {
                self.records.extend(key_of(meta_of(&object)));
                put(object);
            }
            Event::InitDone => {
                view.keep_records(&std::mem::take(&mut self.records));
                self.complete.records = true;
            }
            Event::Apply(object) => put(object),
            Event::Delete(object) => {
                if let Some(key) = key_of(meta_of(&object)) {
                    view.record_gone(&key);
                }
            }
        }
    }

    fn domain(&mut self, view: &mut View, event: Event<DeserializeGuard<RpopDomain>>) {
        let mut put = |object: DeserializeGuard<RpopDomain>| match object.0 {
            Ok(RpopDomain { metadata, spec, status }) => view.domain(&metadata, Ok(spec), status.as_ref()),
            Err(invalid) => view.domain(&invalid.metadata, Err(invalid.error), None),
        };
        match event {
            Event::Init => self.domains.clear(),
            Event::InitApply(object) => {
                self.domains.insert(name_of(meta_of(&object)));
                put(object);
            }
            Event::InitDone => {
                view.keep_domains(&std::mem::take(&mut self.domains));
                self.complete.domains = true;
            }
            Event::Apply(object) => put(object),
            Event::Delete(object) => view.domain_gone(&name_of(meta_of(&object))),
        }
    }

    fn settings(&mut self, view: &mut View, event: Event<DeserializeGuard<RpopSettings>>) {
        // The schema lets nothing else exist.
        let ours = |object: &DeserializeGuard<RpopSettings>| &*name_of(meta_of(object)) == "default";
        let mut put = |object: DeserializeGuard<RpopSettings>| match object.0 {
            Ok(RpopSettings { metadata, spec, status }) => {
                view.set_settings(&metadata, &Ok(spec), status.as_ref());
            }
            Err(invalid) => view.set_settings(&invalid.metadata, &Err(invalid.error), None),
        };
        match event {
            Event::Init => self.settings = false,
            Event::InitApply(object) if ours(&object) => {
                self.settings = true;
                put(object);
            }
            Event::InitDone => {
                if !self.settings {
                    view.settings_gone();
                }
                self.complete.settings = true;
            }
            Event::Apply(object) if ours(&object) => put(object),
            Event::Delete(object) if ours(&object) => view.settings_gone(),
            Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => {}
        }
    }

    fn namespace(&mut self, view: &mut View, event: Event<PartialObjectMeta<Namespace>>) {
        let mut put = |object: PartialObjectMeta<Namespace>| {
            let meta = object.metadata;
            let name = name_of(&meta);
            let terminating = meta.deletion_timestamp.is_some();
            view.namespace(&name, meta.labels.unwrap_or_default(), terminating);
        };
        match event {
            Event::Init => self.namespaces.clear(),
            Event::InitApply(object) => {
                self.namespaces.insert(name_of(&object.metadata));
                put(object);
            }
            Event::InitDone => {
                view.keep_namespaces(&std::mem::take(&mut self.namespaces));
                self.complete.namespaces = true;
            }
            Event::Apply(object) => put(object),
            Event::Delete(object) => view.namespace_gone(&name_of(&object.metadata)),
        }
    }
}

fn meta_of<K>(object: &DeserializeGuard<K>) -> &ObjectMeta
where
    K: kube::Resource,
{
    kube::Resource::meta(object)
}
