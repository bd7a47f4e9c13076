//! Secrets and ConfigMaps from files, in memory.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use zeroize::Zeroizing;

use crate::domain::work::{SecretKind, SecretRef, WorkItem};
use crate::engine::ports::{Pending, SecretError, Secrets};

/// The data of one object.
pub(super) type Data = BTreeMap<Box<str>, Zeroizing<Vec<u8>>>;
/// Kind, namespace and name.
type Name = (SecretKind, Arc<str>, Arc<str>);

/// The Secrets and ConfigMaps of the files. A clone is the same set; when files
/// change, [`MemorySecrets::replace`] changes what everybody sees at once.
#[derive(Clone, Default)]
pub struct MemorySecrets {
    objects: Arc<RwLock<Arc<HashMap<Name, Data>>>>,
}

impl fmt::Debug for MemorySecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySecrets").field("objects", &self.objects().len()).finish_non_exhaustive()
    }
}

impl MemorySecrets {
    pub(super) fn new(objects: HashMap<Name, Data>) -> Self {
        Self { objects: Arc::new(RwLock::new(Arc::new(objects))) }
    }

    fn objects(&self) -> Arc<HashMap<Name, Data>> {
        Arc::clone(&self.objects.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes over what `other` holds now.
    pub fn replace(&self, other: &Self) {
        let objects = other.objects();
        *self.objects.write().unwrap_or_else(PoisonError::into_inner) = objects;
    }

    /// Adds the objects of `before` that are not here.
    pub(super) fn fill_from(&self, before: &Self) {
        let mut all = HashMap::clone(&before.objects());
        all.extend(self.objects().iter().map(|(name, data)| (name.clone(), data.clone())));
        *self.objects.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(all);
    }

    /// Whether a Secret or ConfigMap that `item` uses differs between the two
    /// sets: such a record is worth a new try at once, although its work item
    /// is the same.
    pub fn differs(&self, other: &Self, item: &WorkItem) -> bool {
        let (ours, theirs) = (self.objects(), other.objects());
        let same = |at: &SecretRef| lookup(&ours, at) == lookup(&theirs, at);
        !used_by(item).all(same)
    }

    /// The octets under a key, if they are there.
    ///
    /// # Errors
    /// Says which object or key is missing.
    pub(super) fn find(&self, at: &SecretRef) -> Result<Zeroizing<Vec<u8>>, String> {
        let objects = self.objects();
        match objects.get(&(at.kind, Arc::clone(&at.namespace), Arc::clone(&at.name))) {
            None => Err(format!("there is no {}", describe(at))),
            Some(data) => data.get(&*at.key).cloned().ok_or_else(|| {
                let keys: Vec<&str> = data.keys().map(|key| &**key).collect();
                let has =
                    if keys.is_empty() { "is empty".into() } else { format!("has {}", keys.join(", ")) };
                format!("{} has no key `{}`: it {has}", describe(at), at.key)
            }),
        }
    }

    /// The namespaces that hold an object of this kind and name.
    pub(super) fn namespaces(&self, kind: SecretKind, name: &str) -> Vec<Arc<str>> {
        let mut found: Vec<Arc<str>> = self
            .objects()
            .keys()
            .filter(|(its, _, called)| *its == kind && **called == *name)
            .map(|(_, namespace, _)| Arc::clone(namespace))
            .collect();
        found.sort();
        found
    }
}

fn describe(at: &SecretRef) -> String {
    let kind = match at.kind {
        SecretKind::Secret => "Secret",
        SecretKind::ConfigMap => "ConfigMap",
    };
    format!("{kind} {}/{}", at.namespace, at.name)
}

fn lookup<'o>(objects: &'o HashMap<Name, Data>, at: &SecretRef) -> Option<&'o [u8]> {
    let data = objects.get(&(at.kind, Arc::clone(&at.namespace), Arc::clone(&at.name)))?;
    data.get(&*at.key).map(|octets| octets.as_slice())
}

/// Every Secret and ConfigMap that a poll of `item` may read.
pub(super) fn used_by(item: &WorkItem) -> impl Iterator<Item = &SecretRef> {
    let tls = &item.remote.tls;
    let everywhere = item.unified.iter().flat_map(|unified| &unified.domains);
    let hosts = std::iter::once(&item.destination)
        .chain(everywhere.map(|place| &place.destination))
        .flat_map(|to| to.smtp.iter().chain(&to.lmtp));
    item.remote
        .login
        .refs()
        .chain(&tls.ca)
        .chain(tls.client_certificate.iter().flat_map(|(chain, key)| [chain, key]))
        .chain(
            hosts.flat_map(|host| host.tls.ca.iter().chain(host.auth.iter().map(|(_, password)| password))),
        )
}

impl Secrets for MemorySecrets {
    fn get<'a>(&'a self, at: &'a SecretRef) -> Pending<'a, Result<Zeroizing<Vec<u8>>, SecretError>> {
        let found = self.find(at).map_err(SecretError::Missing);
        Box::pin(std::future::ready(found))
    }
}
