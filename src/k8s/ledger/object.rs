//! The objects of a ledger: their names, labels and owners.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use sha2::{Digest as _, Sha256};

use super::codec::{Chunk, Flaw, Head, Seal};
use crate::api::{API_VERSION, GROUP};
use crate::domain::work::RecordKey;
use crate::engine::ports::LedgerError;

/// Keeps a ledger when its record is deleted; on the record or on the
/// `ConfigMap`. Any value counts but `false`.
pub const KEEP_LEDGER: &str = "rpop.dev/keep-ledger";
/// Says of which record a `ConfigMap` is the ledger.
pub const LEDGER: &str = "rpop.dev/ledger";
/// What the `ConfigMap` of a record is called: this and the record's name.
pub const PREFIX: &str = "rpop-uids-";

/// Characters of a record's name: with prefix and seal it has to be a name.
const LONGEST_RECORD: usize = 180;
/// Characters of a label's value.
const LONGEST_LABEL: usize = 63;
const HEAD_KEY: &str = "head";
const CHUNK_KEY: &str = "chunk";

/// Where a record's ledger is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) namespace: Arc<str>,
    pub(super) record: Arc<str>,
    /// The name of the `ConfigMap` with the head.
    pub(super) head: String,
    label: String,
}

impl Place {
    /// # Errors
    /// [`LedgerError::Unavailable`] for what cannot be names of objects.
    pub(super) fn of(key: &RecordKey) -> Result<Self, LedgerError> {
        let plain = |name: &str| {
            let plain = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'.';
            !name.is_empty() && !name.starts_with('.') && name.bytes().all(plain)
        };
        if !plain(&key.namespace) || !plain(&key.name) || key.name.len() > LONGEST_RECORD {
            let text = format!("{:?} cannot have a ledger: its name is too long, or none", key.to_string());
            return Err(LedgerError::Unavailable(text));
        }
        Ok(Self {
            namespace: Arc::clone(&key.namespace),
            record: Arc::clone(&key.name),
            head: format!("{PREFIX}{}", key.name),
            label: label(&key.name),
        })
    }

    /// The name of a chunk.
    pub(super) fn chunk(&self, seal: Seal) -> String {
        format!("{}-{seal}", self.head)
    }

    /// For messages.
    pub(super) fn shown(&self, name: &str) -> String {
        format!("ConfigMap {}/{name}", self.namespace)
    }

    pub(super) fn damaged(&self, name: &str, what: impl std::fmt::Display) -> LedgerError {
        LedgerError::Damaged(format!(
            "{}: {what}. Put back a backup of it, or delete ConfigMap {} to fetch everything anew",
            self.shown(name),
            self.head
        ))
    }

    pub(super) fn flawed(&self, name: &str, flaw: Flaw) -> LedgerError {
        match flaw {
            Flaw::Newer(_) => {
                LedgerError::Damaged(format!("{}: {flaw}. Install that version again", self.shown(name)))
            }
            flaw => self.damaged(name, flaw),
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let pairs = [
            ("app.kubernetes.io/managed-by", "rpop"),
            ("app.kubernetes.io/part-of", "rpop"),
            (LEDGER, &self.label),
        ];
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn meta(&self, name: String, owner: Option<OwnerReference>) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.namespace.to_string()),
            labels: Some(self.labels()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        }
    }

    /// The object of a new ledger.
    pub(super) fn new_head(&self, octets: Vec<u8>, owner: Option<OwnerReference>) -> ConfigMap {
        ConfigMap {
            metadata: self.meta(self.head.clone(), owner),
            binary_data: Some(head_data(octets)),
            ..ConfigMap::default()
        }
    }

    /// The object of a chunk. Its owner is the head, so that whatever becomes
    /// of that one becomes of all.
    pub(super) fn new_chunk(&self, chunk: &Chunk, head_uid: &str) -> ConfigMap {
        let owner = self.head_as_owner(head_uid);
        let data = (CHUNK_KEY.to_owned(), ByteString(chunk.octets.clone()));
        ConfigMap {
            metadata: self.meta(self.chunk(chunk.name.seal), Some(owner)),
            binary_data: Some(BTreeMap::from([data])),
            immutable: Some(true),
            ..ConfigMap::default()
        }
    }

    /// The head as the owner of its chunks.
    pub(super) fn head_as_owner(&self, uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: "v1".to_owned(),
            kind: "ConfigMap".to_owned(),
            name: self.head.clone(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }
    }

    /// The record as an owner. `blockOwnerDeletion` is left off: nobody waits
    /// for a ledger.
    pub(super) fn owner(&self, uid: &str) -> OwnerReference {
        OwnerReference {
            api_version: API_VERSION.to_owned(),
            kind: "RpopRecord".to_owned(),
            name: self.record.to_string(),
            uid: uid.to_owned(),
            ..OwnerReference::default()
        }
    }

    /// Takes a `ConfigMap` under the head's name for what it is.
    ///
    /// # Errors
    /// [`LedgerError::Damaged`] unless it is this record's ledger and whole;
    /// [`LedgerError::Unavailable`] while it is being deleted.
    pub(super) fn read_head(&self, object: &ConfigMap) -> Result<Stored, LedgerError> {
        let meta = &object.metadata;
        let head = octets(object, HEAD_KEY);
        let labelled = meta.labels.as_ref().and_then(|labels| labels.get(LEDGER));
        if labelled != Some(&self.label) {
            let found = self.shown(&self.head);
            return Err(LedgerError::Damaged(match head {
                None => format!(
                    "{found} exists and is no ledger of RPOP: delete or rename it, or rename the record"
                ),
                Some(_) => format!(
                    "{found} lacks the label {LEDGER}={}: if it is this record's ledger, put the label back; \
                     if not, delete it",
                    self.label
                ),
            }));
        }
        let head = head.ok_or_else(|| self.damaged(&self.head, "it has no binaryData.head"))?;
        let (head, seal) = Head::decode(head).map_err(|flaw| self.flawed(&self.head, flaw))?;
        let (Some(uid), Some(version)) = (&meta.uid, &meta.resource_version) else {
            let text = format!("{}: the API server tells neither uid nor version", self.shown(&self.head));
            return Err(LedgerError::Unavailable(text));
        };
        if meta.deletion_timestamp.is_some() {
            let text = format!("{} is being deleted and not gone yet", self.shown(&self.head));
            return Err(LedgerError::Unavailable(text));
        }
        Ok(Stored { uid: uid.clone(), version: version.clone(), seal, head })
    }

    /// The octets of a chunk's object.
    pub(super) fn chunk_data(object: &ConfigMap) -> Option<&[u8]> {
        octets(object, CHUNK_KEY)
    }
}

/// A head as it is on the API server.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// Of the object.
    pub(super) uid: String,
    /// `metadata.resourceVersion`.
    pub(super) version: String,
    pub(super) seal: Seal,
    pub(super) head: Head,
}

/// Whose a ledger is, by its `ownerReferences`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owned {
    /// The record's with this uid.
    Ours,
    /// A record's that had another uid.
    Others,
    /// Nobody's: it was kept.
    Nobodys,
}

pub(super) fn owned(meta: &ObjectMeta, record_uid: &str) -> Owned {
    let mut records = meta.owner_references.iter().flatten().filter(|owner| is_record(owner)).peekable();
    if records.peek().is_none() {
        Owned::Nobodys
    } else if records.any(|owner| owner.uid == record_uid) {
        Owned::Ours
    } else {
        Owned::Others
    }
}

/// The owners of an object with `record`, or no record, among them.
pub(super) fn owners(meta: &ObjectMeta, record: Option<OwnerReference>) -> Vec<OwnerReference> {
    let others = meta.owner_references.iter().flatten().filter(|owner| !is_record(owner));
    others.cloned().chain(record).collect()
}

fn is_record(owner: &OwnerReference) -> bool {
    owner.kind == "RpopRecord" && owner.api_version.split('/').next() == Some(GROUP)
}

/// Whether the annotation is there that keeps a ledger.
pub(super) fn keeps(meta: &ObjectMeta) -> bool {
    let value = meta.annotations.as_ref().and_then(|annotations| annotations.get(KEEP_LEDGER));
    value.is_some_and(|value| value != "false")
}

pub(super) fn head_data(octets: Vec<u8>) -> BTreeMap<String, ByteString> {
    BTreeMap::from([(HEAD_KEY.to_owned(), ByteString(octets))])
}

fn octets<'a>(object: &'a ConfigMap, key: &str) -> Option<&'a [u8]> {
    Some(&object.binary_data.as_ref()?.get(key)?.0)
}

/// A record's name as a label's value; a digest of it where it is too long.
fn label(name: &str) -> String {
    use std::fmt::Write as _;
    if name.len() <= LONGEST_LABEL {
        return name.to_owned();
    }
    let mut text = String::from("sha256-");
    for octet in Sha256::digest(name).iter().take(16) {
        write!(text, "{octet:02x}").expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> RecordKey {
        RecordKey { namespace: "mail".into(), name: name.into() }
    }

    #[test]
    fn the_longest_record_name_makes_names_and_labels_that_kubernetes_takes() {
        let name = "a".repeat(LONGEST_RECORD);
        let place = Place::of(&key(&name)).unwrap();
        assert!(place.chunk(Seal([255; 16])).len() <= 253);
        assert!(place.label.len() <= LONGEST_LABEL);
        assert!(Place::of(&key(&"a".repeat(LONGEST_RECORD + 1))).is_err());
        for bad in ["", "a/b", "../x", "a b", "a%2fb"] {
            assert!(Place::of(&key(bad)).is_err(), "{bad}");
        }
        assert_eq!(Place::of(&key("first-isp")).unwrap().label, "first-isp");
    }

    #[test]
    fn what_is_no_ledger_of_the_record_says_what_to_do() {
        let place = Place::of(&key("a")).unwrap();
        let mut object = place.new_head(Head::new([1; 16]).encode().0, None);
        (object.metadata.uid, object.metadata.resource_version) = (Some("u".into()), Some("1".into()));
        place.read_head(&object).unwrap();
        let damaged = |object: &ConfigMap, says: &str| {
            let error = place.read_head(object).unwrap_err();
            assert!(matches!(&error, LedgerError::Damaged(text) if text.contains(says)), "{error}");
        };
        let foreign = ConfigMap { metadata: object.metadata.clone(), ..ConfigMap::default() };
        damaged(&foreign, "no binaryData.head");
        let mut unlabelled = object.clone();
        unlabelled.metadata.labels = None;
        damaged(&unlabelled, "put the label back");
        unlabelled.binary_data = None;
        damaged(&unlabelled, "is no ledger of RPOP: delete or rename it");
        let mut cut = object.clone();
        cut.binary_data = Some(head_data(Head::new([1; 16]).encode().0[..40].to_vec()));
        damaged(&cut, "delete ConfigMap rpop-uids-a to fetch everything anew");
        cut.binary_data = Some(head_data(Vec::new()));
        damaged(&cut, "does not begin as a ledger");
        object.metadata.labels = Place::of(&key("b")).unwrap().new_head(Vec::new(), None).metadata.labels;
        damaged(&object, "lacks the label rpop.dev/ledger=a");
    }

    #[test]
    fn owners_that_are_no_records_stay() {
        let place = Place::of(&key("a")).unwrap();
        let other = OwnerReference { kind: "Backup".into(), uid: "b".into(), ..OwnerReference::default() };
        let mut meta = ObjectMeta::default();
        assert_eq!(owned(&meta, "1"), Owned::Nobodys);
        meta.owner_references = Some(vec![other.clone()]);
        assert_eq!(owned(&meta, "1"), Owned::Nobodys);
        meta.owner_references = Some(owners(&meta, Some(place.owner("1"))));
        assert_eq!((owned(&meta, "1"), owned(&meta, "2")), (Owned::Ours, Owned::Others));
        assert_eq!(owners(&meta, None), [other]);
    }
}
