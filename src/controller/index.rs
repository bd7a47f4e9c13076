//! What the watches have shown, as the decisions need it. Nothing here reads
//! or writes: events go in, and the names of what is to be looked at again
//! come out.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::domains::{directory, usable};
use super::seen::{Domain, Maildrop, Namespace, Record, Rules, SettingsSeen};
use super::shown::{Fate, Shown, Told};
use crate::api::checks::{self, Claim};
use crate::api::unified::Directory;
use crate::api::work::{self, Shared};
use crate::api::{RpopDomainSpec, RpopDomainStatus, RpopRecordSpec, RpopRecordStatus};
use crate::api::{RpopSettingsSpec, RpopSettingsStatus};
use crate::domain::envelope::domain_key;
use crate::domain::text::shown as plain;
use crate::domain::work::RecordKey;

/// See the module's page.
pub(super) struct View {
    /// The namespace that RPOP runs in.
    pub(super) system: Arc<str>,
    pub(super) shared: Shared,
    records: HashMap<RecordKey, Record>,
    by_domain: HashMap<Arc<str>, BTreeSet<RecordKey>>,
    by_namespace: HashMap<Arc<str>, BTreeSet<RecordKey>>,
    /// Those with `special`: all domains concern them.
    unified: BTreeSet<RecordKey>,
    maildrops: HashMap<Maildrop, BTreeMap<RecordKey, Claim>>,
    domains: BTreeMap<Arc<str>, Domain>,
    /// Names and aliases: whose, and in which revision.
    names: HashMap<Arc<str>, (Arc<str>, u64)>,
    names_stale: bool,
    /// What unified records are given.
    pub(super) directory: Directory,
    directory_stale: bool,
    namespaces: HashMap<Arc<str>, Namespace>,
    pub(super) settings: Option<SettingsSeen>,
    /// What is in force; `None` while settings exist that nobody can read.
    rules: Option<Rules>,
    revision: u64,
    dirty: BTreeSet<RecordKey>,
    gone: BTreeSet<RecordKey>,
    dirty_domains: BTreeSet<Arc<str>>,
    settings_dirty: bool,
}

/// A record's key, from its metadata.
pub(super) fn key_of(meta: &ObjectMeta) -> Option<RecordKey> {
    Some(RecordKey { namespace: meta.namespace.as_deref()?.into(), name: meta.name.as_deref()?.into() })
}

impl View {
    pub(super) fn new(system: Arc<str>) -> Self {
        Self {
            system,
            shared: Shared::default(),
            records: HashMap::new(),
            by_domain: HashMap::new(),
            by_namespace: HashMap::new(),
            unified: BTreeSet::new(),
            maildrops: HashMap::new(),
            domains: BTreeMap::new(),
            names: HashMap::new(),
            names_stale: false,
            directory: Directory::default(),
            directory_stale: false,
            namespaces: HashMap::new(),
            settings: None,
            rules: Some(Rules { host_connections: 20, ..Rules::default() }),
            revision: 0,
            dirty: BTreeSet::new(),
            gone: BTreeSet::new(),
            dirty_domains: BTreeSet::new(),
            settings_dirty: false,
        }
    }

    /// A record is there, or changed.
    pub(super) fn record(
        &mut self,
        meta: &ObjectMeta,
        spec: Result<RpopRecordSpec, String>,
        status: Option<&RpopRecordStatus>,
    ) {
        let Some(key) = key_of(meta) else { return };
        let (uid, generation) = identity(meta);
        let shown = status.map(Shown::of_record).unwrap_or_default();
        let deleting = meta.deletion_timestamp.is_some();
        let version: Arc<str> = meta.resource_version.as_deref().unwrap_or("").into();
        if let Some(known) = self.records.get_mut(&key)
            && known.uid == uid
            && known.generation == generation
            && known.deleting == deleting
            && known.spec.is_ok() == spec.is_ok()
        {
            // Only its status changed: of interest if it is not what we wrote.
            let ours = known.shown.says_the_same(&shown);
            let outrun = std::mem::take(&mut known.outrun);
            known.shown = shown;
            known.version = version;
            forget_written(&mut known.told);
            if outrun || !ours {
                self.dirty.insert(key);
            }
            return;
        }
        let maildrop = self.records.remove(&key).and_then(|before| self.unlink(&key, before));
        let spec = spec.map(Arc::new).map_err(|error| plain(error).into());
        let domain = spec.as_ref().ok().and_then(|spec| domain_of(&spec.account));
        if let Some(domain) = &domain {
            self.by_domain.entry(Arc::clone(domain)).or_default().insert(key.clone());
        }
        self.by_namespace.entry(Arc::clone(&key.namespace)).or_default().insert(key.clone());
        if spec.as_ref().is_ok_and(|spec| spec.special.is_some()) {
            self.unified.insert(key.clone());
        }
        let record = Record {
            uid,
            version,
            outrun: false,
            generation,
            deleting,
            spec,
            shown,
            told: None,
            domain,
            maildrop,
        };
        self.records.insert(key.clone(), record);
        self.gone.remove(&key);
        self.dirty.insert(key);
    }

    /// A record is gone.
    pub(super) fn record_gone(&mut self, key: &RecordKey) {
        self.claim(key, None);
        if let Some(before) = self.records.remove(key) {
            self.unlink(key, before);
        }
        self.dirty.remove(key);
        self.gone.insert(key.clone());
    }

    fn unlink(&mut self, key: &RecordKey, record: Record) -> Option<Maildrop> {
        if let Some(domain) = &record.domain {
            forget(&mut self.by_domain, domain, key);
        }
        forget(&mut self.by_namespace, &key.namespace, key);
        self.unified.remove(key);
        record.maildrop
    }

    /// After a full list: records that it did not name are gone.
    pub(super) fn keep_records(&mut self, named: &std::collections::HashSet<RecordKey>) {
        let missing: Vec<RecordKey> =
            self.records.keys().filter(|key| !named.contains(*key)).cloned().collect();
        for key in missing {
            self.record_gone(&key);
        }
    }

    /// What a record takes out of which maildrop; the others of that maildrop
    /// are looked at again.
    pub(super) fn claim(&mut self, key: &RecordKey, wanted: Option<(Maildrop, Claim)>) {
        let Some(record) = self.records.get_mut(key) else { return };
        let before = record.maildrop.clone();
        if let (Some(before), Some((maildrop, claim))) = (&before, &wanted)
            && before == maildrop
            && self.maildrops.get(before).and_then(|all| all.get(key)) == Some(claim)
        {
            return;
        }
        record.maildrop = wanted.as_ref().map(|(maildrop, _)| maildrop.clone());
        if let Some(before) = before
            && let Some(all) = self.maildrops.get_mut(&before)
        {
            all.remove(key);
            self.dirty.extend(all.keys().cloned());
            if all.is_empty() {
                self.maildrops.remove(&before);
            }
        }
        if let Some((maildrop, claim)) = wanted {
            let all = self.maildrops.entry(maildrop).or_default();
            self.dirty.extend(all.keys().cloned());
            all.insert(key.clone(), claim);
        }
    }

    /// Another record that disputes this one's maildrop.
    pub(super) fn rival(&self, key: &RecordKey, maildrop: &Maildrop, claim: Claim) -> Option<&RecordKey> {
        let all = self.maildrops.get(maildrop)?;
        all.iter().find(|(other, theirs)| *other != key && claim.disputes(**theirs)).map(|(other, _)| other)
    }

    /// A domain is there, or changed.
    pub(super) fn domain(
        &mut self,
        meta: &ObjectMeta,
        spec: Result<RpopDomainSpec, String>,
        status: Option<&RpopDomainStatus>,
    ) {
        let Some(name) = meta.name.as_deref().map(Arc::<str>::from) else { return };
        let (uid, generation) = identity(meta);
        let shown = status.map(|status| Shown::of_conditions(status.observed_generation, &status.conditions));
        let shown = shown.unwrap_or_default();
        if let Some(known) = self.domains.get_mut(&name)
            && known.uid == uid
            && known.generation == generation
        {
            let ours = known.shown.says_the_same(&shown);
            known.shown = shown;
            forget_written(&mut known.told);
            if !ours {
                self.dirty_domains.insert(name);
            }
            return;
        }
        self.revision += 1;
        let mut aliases = Vec::new();
        let usable = match spec {
            Ok(spec) => {
                aliases.extend(spec.aliases.iter().map(|alias| Arc::from(alias.to_ascii_lowercase())));
                usable(&mut self.shared, &self.system, &name, &spec)
            }
            Err(error) => {
                // Its names stay its own.
                aliases.extend(self.domains.get(&name).into_iter().flat_map(|known| known.aliases.clone()));
                Err(vec![format!("it cannot be read: {}", plain(error))])
            }
        };
        let domain = Domain {
            uid,
            generation,
            created: meta.creation_timestamp.clone(),
            aliases,
            usable: usable.map(Arc::new),
            shown,
            told: None,
            revision: self.revision,
        };
        self.domains.insert(Arc::clone(&name), domain);
        self.dirty_domains.insert(name);
        self.names_stale = true;
    }

    /// A domain is gone.
    pub(super) fn domain_gone(&mut self, name: &str) {
        if self.domains.remove(name).is_some() {
            self.names_stale = true;
        }
    }

    /// After a full list.
    pub(super) fn keep_domains(&mut self, named: &BTreeSet<Arc<str>>) {
        let before = self.domains.len();
        self.domains.retain(|name, _| named.contains(name));
        self.names_stale |= before != self.domains.len();
    }

    /// A namespace is there, or changed.
    pub(super) fn namespace(&mut self, name: &str, labels: BTreeMap<String, String>, terminating: bool) {
        let seen = Namespace { labels, terminating };
        if self.namespaces.get(name) == Some(&seen) {
            return;
        }
        self.namespaces.insert(name.into(), seen);
        self.dirty.extend(self.by_namespace.get(name).into_iter().flatten().cloned());
    }

    /// A namespace is gone.
    pub(super) fn namespace_gone(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// After a full list.
    pub(super) fn keep_namespaces(&mut self, named: &BTreeSet<Arc<str>>) {
        self.namespaces.retain(|name, _| named.contains(name));
    }

    /// The settings are there, or changed. Where they cannot be used, what was
    /// in force stays so.
    pub(super) fn set_settings(
        &mut self,
        meta: &ObjectMeta,
        spec: &Result<RpopSettingsSpec, String>,
        status: Option<&RpopSettingsStatus>,
    ) {
        let (uid, generation) = identity(meta);
        let shown = status.map(|status| Shown::of_conditions(status.observed_generation, &status.conditions));
        let shown = shown.unwrap_or_default();
        if let Some(known) = &mut self.settings
            && known.uid == uid
            && known.generation == generation
        {
            self.settings_dirty |= !known.shown.says_the_same(&shown);
            known.shown = shown;
            forget_written(&mut known.told);
            return;
        }
        let first = self.settings.is_none();
        let (rules, faults) = match spec {
            Ok(spec) => match work::settings(spec) {
                Ok(_) => (Some(rules_of(spec)), Vec::new()),
                Err(faults) => {
                    let texts = faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message));
                    // At a start there is nothing to go on with, and these
                    // are known whatever else is wrong.
                    (first.then(|| rules_of(spec)), texts.collect())
                }
            },
            Err(error) => (None, vec![format!("it cannot be read: {}", plain(error))]),
        };
        if first && rules.is_none() {
            self.rules = None;
        }
        self.settings = Some(SettingsSeen { uid, generation, faults, shown, told: None });
        self.settings_dirty = true;
        if let Some(rules) = rules {
            self.put_rules(rules);
        }
    }

    /// There are no settings: all have their defaults.
    pub(super) fn settings_gone(&mut self) {
        self.settings = None;
        self.put_rules(Rules { host_connections: 20, ..Rules::default() });
    }

    fn put_rules(&mut self, rules: Rules) {
        if self.rules.as_ref() == Some(&rules) {
            return;
        }
        self.rules = Some(rules);
        self.directory_stale = true;
        self.dirty.extend(self.records.keys().cloned());
        self.dirty_domains.extend(self.domains.keys().cloned());
    }

    /// The settings in force; `None` while those that exist cannot be read.
    pub(super) fn rules(&self) -> Option<&Rules> {
        self.rules.as_ref()
    }

    /// The record of that name.
    pub(super) fn get(&self, key: &RecordKey) -> Option<&Record> {
        self.records.get(key)
    }

    /// The record of that name, to be told something.
    pub(super) fn get_mut(&mut self, key: &RecordKey) -> Option<&mut Record> {
        self.records.get_mut(key)
    }

    /// The domain that a name or an alias belongs to.
    pub(super) fn domain_of(&self, name: &str) -> Option<(&Arc<str>, &Domain)> {
        let (owner, _) = self.names.get(name)?;
        self.domains.get_key_value(owner)
    }

    /// The domain of that name.
    pub(super) fn domain_named(&self, name: &str) -> Option<&Domain> {
        self.domains.get(name)
    }

    /// The domain of that name, to be told something.
    pub(super) fn domain_mut(&mut self, name: &str) -> Option<&mut Domain> {
        self.domains.get_mut(name)
    }

    /// The namespace of that name.
    pub(super) fn namespace_of(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// How many records there are.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Everything is looked at again: somebody else decided until now.
    pub(super) fn all_dirty(&mut self) {
        self.dirty.extend(self.records.keys().cloned());
        self.dirty_domains.extend(self.domains.keys().cloned());
        self.settings_dirty = self.settings.is_some();
        for record in self.records.values_mut() {
            record.told = None;
        }
        for domain in self.domains.values_mut() {
            domain.told = None;
        }
        if let Some(settings) = &mut self.settings {
            settings.told = None;
        }
    }

    /// The record is to be looked at again.
    pub(super) fn again(&mut self, key: RecordKey) {
        if self.records.contains_key(&key) {
            self.dirty.insert(key);
        }
    }

    /// The record of that name, unless it is to be looked at again.
    pub(super) fn decided(&self, key: &RecordKey) -> Option<&Record> {
        self.records.get(key).filter(|_| !self.dirty.contains(key))
    }

    /// What was decided upon this version of the record could not be written:
    /// somebody else wrote first. Decided anew as soon as that is seen.
    pub(super) fn outrun(&mut self, key: &RecordKey, version: &str) {
        let Some(record) = self.records.get_mut(key) else { return };
        if *record.version == *version {
            record.outrun = true;
        } else {
            self.dirty.insert(key.clone());
        }
    }

    /// Whether no record waits to be looked at.
    pub(super) fn all_looked_at(&self) -> bool {
        self.dirty.is_empty() && !self.is_stale()
    }

    fn is_stale(&self) -> bool {
        self.names_stale || self.directory_stale
    }

    /// The Main Domain, if the settings in force name one.
    pub(super) fn main_domain(&self) -> Option<&str> {
        self.rules.as_ref()?.main_domain.as_deref()
    }

    /// Up to `most` records to look at. They are taken: what is not done with
    /// them must be put back with [`View::again`].
    pub(super) fn take_dirty(&mut self, most: usize) -> Vec<RecordKey> {
        self.settle();
        let mut taken = Vec::with_capacity(most.min(self.dirty.len()));
        while taken.len() < most
            && let Some(key) = self.dirty.pop_first()
        {
            taken.push(key);
        }
        taken
    }

    /// Records that are gone since the last call.
    pub(super) fn take_gone(&mut self) -> BTreeSet<RecordKey> {
        std::mem::take(&mut self.gone)
    }

    /// Domains whose status is to be looked at.
    pub(super) fn take_dirty_domains(&mut self) -> BTreeSet<Arc<str>> {
        self.settle();
        std::mem::take(&mut self.dirty_domains)
    }

    /// Whether the status of the settings is to be looked at.
    pub(super) fn take_settings_dirty(&mut self) -> bool {
        self.settle();
        std::mem::take(&mut self.settings_dirty)
    }

    /// Whether there is anything to look at.
    pub(super) fn idle(&self) -> bool {
        self.dirty.is_empty()
            && self.gone.is_empty()
            && self.dirty_domains.is_empty()
            && !self.settings_dirty
            && !self.is_stale()
    }

    /// What follows from all domains together.
    fn settle(&mut self) {
        self.settle_names();
        if std::mem::take(&mut self.directory_stale) {
            let directory = directory(&self.domains, &self.names, self.main_domain());
            if !self.directory.says_the_same(&directory) {
                self.directory = directory;
                self.dirty.extend(self.unified.iter().cloned());
            }
        }
    }

    /// Gives every name to one domain: its own name to each, and an alias to
    /// the oldest domain that has it, so that a new one takes nothing away.
    fn settle_names(&mut self) {
        if !std::mem::take(&mut self.names_stale) {
            return;
        }
        self.directory_stale = true;
        let mut names: HashMap<Arc<str>, (Arc<str>, u64)> = HashMap::with_capacity(self.names.len());
        for (name, domain) in &self.domains {
            names.insert(name.to_ascii_lowercase().into(), (Arc::clone(name), domain.revision));
        }
        let mut by_age: Vec<(&Arc<str>, &Domain)> = self.domains.iter().collect();
        by_age.sort_by(|(a, x), (b, y)| (&x.created, a).cmp(&(&y.created, b)));
        for (name, domain) in by_age {
            for alias in &domain.aliases {
                let owner =
                    names.entry(Arc::clone(alias)).or_insert_with(|| (Arc::clone(name), domain.revision));
                if owner.0 != *name || self.names.get(alias).is_none_or(|(before, _)| before != name) {
                    self.dirty_domains.insert(Arc::clone(name));
                }
            }
        }
        let before = std::mem::replace(&mut self.names, names);
        let changed = |name: &Arc<str>| before.get(name) != self.names.get(name);
        for name in self.names.keys().chain(before.keys()).filter(|name| changed(name)) {
            self.dirty.extend(self.by_domain.get(name).into_iter().flatten().cloned());
        }
        // The settings name one of them.
        self.settings_dirty |= self.settings.is_some();
    }

    /// Aliases of a domain that belong to others: what to say of each.
    pub(super) fn taken_aliases(&self, name: &str, domain: &Domain) -> Vec<String> {
        let others = domain.aliases.iter().filter_map(|alias| {
            let (owner, _) = self.names.get(alias)?;
            (&**owner != name).then(|| checks::taken(alias, owner))
        });
        others.collect()
    }
}

fn forget(index: &mut HashMap<Arc<str>, BTreeSet<RecordKey>>, at: &Arc<str>, key: &RecordKey) {
    if let Some(all) = index.get_mut(at) {
        all.remove(key);
        if all.is_empty() {
            index.remove(at);
        }
    }
}

/// What has been written is in what is seen from now on.
fn forget_written(told: &mut Option<Told>) {
    if told.as_ref().is_some_and(|told| told.fate == Fate::Written) {
        *told = None;
    }
}

fn identity(meta: &ObjectMeta) -> (Arc<str>, i64) {
    (meta.uid.as_deref().unwrap_or("").into(), meta.generation.unwrap_or(0))
}

/// The domain of an account, in lower case and ASCII.
fn domain_of(account: &str) -> Option<Arc<str>> {
    account.rsplit_once('@').map(|(_, domain)| domain_key(domain).into())
}

fn rules_of(spec: &RpopSettingsSpec) -> Rules {
    Rules {
        use_apop: spec.use_apop,
        sources: work::Sources::of(spec),
        host_connections: spec.host_connections,
        main_domain: spec.main_domain.as_deref().map(|name| domain_key(name).into_owned()),
    }
}
