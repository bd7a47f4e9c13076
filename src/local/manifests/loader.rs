//! Reads documents one after the other; what is kept of a record is its work
//! item and where its fields stand, so that ten thousand of them stay small.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;
use zeroize::{Zeroize, Zeroizing};

use super::diagnostic::{Diagnostic, Severity};
use super::files;
use super::kinds::{Kind, Kinds};
use super::schema::Check;
use super::secrets::Data;
use super::yaml::{self, Node, Position, Value};
use crate::api;
use crate::api::unified::Asked;
use crate::api::work::{self, Shared, Unusable};
use crate::domain::code::Code;
use crate::domain::text::{escape, suggest};
use crate::domain::work::{Destination, RecordKey, SecretKind, WorkItem};
use crate::run::Problem;

/// A place in one of the files.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) file: u32,
    pub(super) at: Position,
}

/// A record before other objects are looked at.
pub(super) struct Draft {
    pub(super) item: WorkItem,
    /// It asks for a unified account.
    pub(super) asked: Option<Asked>,
    pub(super) file: u32,
    pub(super) account: Position,
    pub(super) mailbox: Position,
    pub(super) special: Position,
    pub(super) password: Position,
    pub(super) ca: Position,
    pub(super) certificate: Position,
    pub(super) apop: Position,
}

/// A domain before Secrets are looked for.
pub(super) struct DomainDraft {
    pub(super) name: String,
    pub(super) spec: api::RpopDomainSpec,
    pub(super) place: Place,
    pub(super) delivery: Position,
    pub(super) outgoing: Position,
    pub(super) aliases: Position,
    pub(super) postmaster: Position,
}

/// Everything that was read.
pub(super) struct Loader {
    kinds: Kinds,
    pub(super) files: Vec<Arc<Path>>,
    pub(super) shared: Shared,
    pub(super) diagnostics: Vec<Diagnostic>,
    pub(super) drafts: Vec<Draft>,
    pub(super) domains: Vec<DomainDraft>,
    pub(super) broken_domains: HashSet<String>,
    /// Aliases of these, as far as they can be read.
    pub(super) broken_aliases: BTreeSet<String>,
    pub(super) settings: Option<(api::RpopSettingsSpec, Place, Position)>,
    pub(super) settings_broken: bool,
    /// The file that holds the settings, good or not.
    pub(super) settings_file: Option<u32>,
    pub(super) secrets: HashMap<(SecretKind, Arc<str>, Arc<str>), Data>,
    pub(super) secret_places: HashMap<(SecretKind, Arc<str>, Arc<str>), Place>,
    pub(super) skipped: Vec<RecordKey>,
    pub(super) problems: BTreeMap<RecordKey, Problem>,
    /// Files of which a part, or all, could not be read.
    pub(super) broken_files: HashSet<u32>,
    seen: HashMap<(Kind, String, String), Place>,
    nowhere: Arc<Destination>,
}

/// An object's kind and name, for messages.
struct Subject {
    kind: Kind,
    namespace: String,
    name: String,
}

impl Subject {
    fn text(&self, path: &str) -> String {
        let Self { kind, namespace, name } = self;
        let object = match (name.is_empty(), kind.namespaced()) {
            (true, _) => kind.name().to_owned(),
            (false, true) => format!("{} {}/{}", kind.name(), escape(namespace), escape(name)),
            (false, false) => format!("{} {}", kind.name(), escape(name)),
        };
        if path.is_empty() { object } else { format!("{object}: {path}") }
    }
}

impl Loader {
    pub(super) fn new() -> Self {
        Self {
            kinds: Kinds::new(),
            files: Vec::new(),
            shared: Shared::default(),
            diagnostics: Vec::new(),
            drafts: Vec::new(),
            domains: Vec::new(),
            broken_domains: HashSet::new(),
            broken_aliases: BTreeSet::new(),
            settings: None,
            settings_broken: false,
            settings_file: None,
            secrets: HashMap::new(),
            secret_places: HashMap::new(),
            skipped: Vec::new(),
            problems: BTreeMap::new(),
            broken_files: HashSet::new(),
            seen: HashMap::new(),
            nowhere: Arc::default(),
        }
    }

    /// Reads a file.
    pub(super) fn file(&mut self, path: &Path) {
        let file = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        self.files.push(path.into());
        let before = self.secrets.len();
        match files::text(path) {
            Err((line, message)) => {
                self.broken_files.insert(file);
                let at = Position { line, column: u32::from(line > 0), length: 1 };
                self.report(
                    Place { file, at },
                    Severity::Error,
                    None,
                    String::new(),
                    format!("the file {message}"),
                );
            }
            Ok(text) => {
                let text = Zeroizing::new(text);
                self.stream(file, &text);
            }
        }
        if self.secrets.len() > before && files::world_readable(path) {
            let message =
                "anybody on this machine can read the Secrets in this file: chmod 600 would keep them".into();
            let place = Place { file, at: Position::default() };
            self.report(place, Severity::Note, None, String::new(), message);
        }
    }

    /// Forgets all objects, so that the next one is no duplicate.
    #[cfg(test)]
    pub(super) fn forget(&mut self) {
        self.seen.clear();
        self.drafts.clear();
        self.problems.clear();
    }

    /// Reads the documents of a file.
    pub(super) fn stream(&mut self, file: u32, text: &str) {
        let bare = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut faulty = false;
        yaml::read(bare, |document| match document {
            Ok(node) => {
                self.object(file, &node);
                node.wipe();
            }
            Err(fault) => {
                faulty = true;
                self.broken_files.insert(file);
                let place = Place { file, at: fault.at };
                let message = format!("not valid YAML: {}", fault.message);
                self.report(place, Severity::Error, None, String::new(), message);
            }
        });
        // A document that is no YAML can still say what it was meant to be.
        if faulty && self.settings_file != Some(file) && bare.contains(Kind::Settings.name()) {
            let named = |line: &str| {
                let plain: String = line.chars().filter(|c| !matches!(c, '"' | '\'' | ' ' | '-')).collect();
                plain.contains("kind:RpopSettings")
            };
            if bare.lines().any(named) {
                self.settings_broken = true;
                self.settings_file.get_or_insert(file);
            }
        }
    }

    /// Adds a finding.
    pub(super) fn report(
        &mut self,
        place: Place,
        severity: Severity,
        record: Option<&RecordKey>,
        subject: String,
        message: String,
    ) {
        let file = usize::try_from(place.file).ok().and_then(|file| self.files.get(file)).cloned();
        self.diagnostics.push(Diagnostic {
            file: file.unwrap_or_else(|| Path::new("").into()),
            line: place.at.line,
            column: place.at.column,
            length: place.at.length,
            severity,
            record: record.cloned(),
            subject,
            message,
            excerpt: None,
        });
    }

    fn object(&mut self, file: u32, node: &Node) {
        let Value::Map(_) = node.value else {
            self.broken_files.insert(file);
            let message = "an object was expected here: it begins with apiVersion and kind".into();
            return self.report(Place { file, at: node.at }, Severity::Error, None, String::new(), message);
        };
        let kind = match kind_of(node) {
            Ok(Some(kind)) => kind,
            Ok(None) => {
                let kind = node.get("kind").and_then(Node::text).unwrap_or("");
                let all = Kind::ALL.map(Kind::name).join(", ");
                let message = format!("a {} is left out: RPOP reads {all}", escape(kind));
                let place = Place { file, at: node.locate("kind") };
                return self.report(place, Severity::Warning, None, String::new(), message);
            }
            Err((at, message)) => {
                self.broken_files.insert(file);
                let kind = node.get("kind").and_then(Node::text).unwrap_or_default();
                if kind == Kind::Settings.name()
                    || suggest(kind, [Kind::Settings.name()].into_iter()).is_some()
                {
                    self.settings_broken = true;
                    self.settings_file.get_or_insert(file);
                }
                return self.report(Place { file, at }, Severity::Error, None, String::new(), message);
            }
        };
        if kind == Kind::List {
            if let Some(Value::List(items)) = node.get("items").map(|items| &items.value) {
                return items.iter().for_each(|item| self.object(file, item));
            }
            self.broken_files.insert(file);
            let message = "a List needs items".into();
            return self.report(Place { file, at: node.at }, Severity::Error, None, "List".into(), message);
        }
        let metadata = |key| node.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Node::text);
        let subject = Subject {
            kind,
            namespace: match (kind.namespaced(), metadata("namespace")) {
                (false, _) => String::new(),
                (true, None) => "default".into(),
                (true, Some(namespace)) => namespace.to_owned(),
            },
            name: metadata("name").unwrap_or("").to_owned(),
        };
        let faults = self.faults(&subject, node);
        let key = (kind == Kind::Record && !subject.name.is_empty()).then(|| RecordKey {
            namespace: self.shared.text(&subject.namespace),
            name: self.shared.text(&subject.name),
        });
        let broken = !faults.is_empty();
        let first = faults.first().map(|(_, path, message)| plain_message(path, message));
        for (at, path, message) in faults {
            self.report(Place { file, at }, Severity::Error, key.as_ref(), subject.text(&path), message);
        }
        let place = Place { file, at: node.locate("metadata.name") };
        if !subject.name.is_empty()
            && let Some(earlier) =
                self.seen.insert((kind, subject.namespace.clone(), subject.name.clone()), place)
        {
            // The first one counts, so that nothing depends on the order of
            // what follows; it stays on record.
            if kind == Kind::Domain {
                // Perhaps a name was copied, and the domain's own is not known.
                self.broken_files.insert(file);
                self.broken_aliases.extend(aliases_of(node));
            }
            self.seen.insert((kind, subject.namespace.clone(), subject.name.clone()), earlier);
            let where_ = usize::try_from(earlier.file).ok().and_then(|file| self.files.get(file)).cloned();
            let message = format!(
                "this name is taken: first in {}:{}. Give one of the two another name",
                where_.as_deref().unwrap_or(Path::new("")).display(),
                earlier.at.line
            );
            return self.report(place, Severity::Error, key.as_ref(), subject.text("metadata.name"), message);
        }
        if kind == Kind::Settings {
            self.settings_file = Some(file);
        }
        match (kind, broken) {
            (Kind::Record, true) => {
                if let Some(key) = key {
                    self.problem(key, Code::ConfigInvalid, first.unwrap_or_default(), true);
                }
            }
            (Kind::Domain, true) => {
                let name = subject.name.to_ascii_lowercase();
                if bad_name(&name, false).is_some() {
                    // Whose mail it is about nobody knows.
                    self.broken_files.insert(file);
                } else {
                    self.broken_domains.insert(name);
                }
                self.broken_aliases.extend(aliases_of(node));
            }
            (Kind::Settings, true) => self.settings_broken = true,
            (Kind::Record, false) => {
                if let Some(key) = key {
                    self.record(file, node, &subject, key);
                }
            }
            (Kind::Domain, false) => self.domain(file, node, &subject),
            (Kind::Settings, false) => self.settings(file, node, &subject),
            (Kind::Secret, false) => self.secret(SecretKind::Secret, file, node, &subject),
            (Kind::ConfigMap, false) => self.secret(SecretKind::ConfigMap, file, node, &subject),
            _ => {}
        }
    }

    /// What the schema, the name rules and the CEL rules find.
    fn faults(&self, subject: &Subject, node: &Node) -> Vec<(Position, String, String)> {
        let Some(known) = self.kinds.known(subject.kind) else { return Vec::new() };
        let mut faults: Vec<_> = Check::run(&known.schema, node, subject.kind == Kind::Secret)
            .into_iter()
            .map(|misfit| {
                let mut at = misfit.at;
                if misfit.hide_value {
                    // A length of 0 cuts the excerpt behind the key.
                    at.length |= HIDE;
                }
                (at, misfit.path, misfit.message)
            })
            .collect();
        for (field, value) in [("name", &subject.name), ("namespace", &subject.namespace)] {
            let path = format!("metadata.{field}");
            let given = node.get("metadata").and_then(|metadata| metadata.get(field)).is_some();
            if field == "name" && !given && node.get("metadata").is_some() {
                faults.push((
                    node.locate("metadata"),
                    path,
                    "`name` is missing: write metadata: {name: …}".into(),
                ));
            } else if given && let Some(message) = bad_name(value, field == "namespace") {
                faults.push((node.locate(&path), path, message));
            }
        }
        if faults.is_empty() && matches!(subject.kind, Kind::Record | Kind::Domain | Kind::Settings) {
            let json = node.json();
            if !(subject.kind == Kind::Record && never(node)) {
                for (path, message) in self.kinds.broken_rules(subject.kind, &json) {
                    faults.push((node.locate(&path), path, message));
                }
            }
        }
        faults
    }

    pub(super) fn problem(&mut self, key: RecordKey, code: Code, message: String, keep: bool) {
        self.problems.entry(key).or_insert(Problem { code, message, keep });
    }

    /// Reports fields that cannot be used; the first one, for the status.
    fn unusable(
        &mut self,
        file: u32,
        node: &Node,
        subject: &Subject,
        key: Option<&RecordKey>,
        faults: Vec<Unusable>,
    ) -> String {
        let first = faults.first().map(|fault| plain_message(fault.path, &fault.message)).unwrap_or_default();
        for Unusable { path, message } in faults {
            let place = Place { file, at: node.locate(path) };
            self.report(place, Severity::Error, key, subject.text(path), message);
        }
        first
    }

    fn record(&mut self, file: u32, node: &Node, subject: &Subject, key: RecordKey) {
        if never(node) {
            let place = Place { file, at: node.locate("spec.pollEvery") };
            let message =
                "pollEvery is Never: this record is left out. Its ledger is kept; the file can be removed"
                    .into();
            self.report(place, Severity::Note, Some(&key), subject.text("spec.pollEvery"), message);
            self.skipped.push(key);
            return;
        }
        let uid = node.get("metadata").and_then(|metadata| metadata.get("uid")).and_then(Node::text);
        let spec: api::RpopRecordSpec = match typed(node) {
            Ok(spec) => spec,
            Err(error) => {
                self.report(
                    Place { file, at: node.at },
                    Severity::Error,
                    Some(&key),
                    subject.text("spec"),
                    error.clone(),
                );
                return self.problem(key, Code::ConfigInvalid, error, true);
            }
        };
        match work::record(&mut self.shared, key.clone(), uid, &spec, &self.nowhere) {
            Ok(item) => self.drafts.push(Draft {
                item,
                asked: Asked::of(&spec),
                file,
                account: node.locate("spec.account"),
                mailbox: node.locate("spec.mailbox"),
                special: node.locate("spec.special"),
                password: node.locate(match &spec.remote.oauth2 {
                    None => "spec.remote.passwordSecretRef.name",
                    Some(_) => "spec.remote.oauth2.refreshTokenSecretRef.name",
                }),
                ca: node.locate("spec.tls.caRef.name"),
                certificate: node.locate("spec.tls.clientCertificateSecretRef.name"),
                apop: node.locate("spec.apop"),
            }),
            Err(faults) => {
                let first = self.unusable(file, node, subject, Some(&key), faults);
                self.problem(key, Code::ConfigInvalid, first, true);
            }
        }
    }

    fn domain(&mut self, file: u32, node: &Node, subject: &Subject) {
        let name = subject.name.to_ascii_lowercase();
        match typed(node) {
            Ok(spec) => self.domains.push(DomainDraft {
                name,
                spec,
                place: Place { file, at: node.locate("metadata.name") },
                delivery: node.locate("spec.delivery"),
                outgoing: node.locate("spec.useForOutgoing"),
                aliases: node.locate("spec.aliases"),
                postmaster: node.locate("spec.postmaster"),
            }),
            Err(error) => {
                self.broken_domains.insert(name);
                self.broken_aliases.extend(aliases_of(node));
                self.report(Place { file, at: node.at }, Severity::Error, None, subject.text("spec"), error);
            }
        }
    }

    fn settings(&mut self, file: u32, node: &Node, subject: &Subject) {
        let spec: Result<api::RpopSettingsSpec, String> = typed(node);
        match spec {
            Ok(spec) => match work::settings(&spec) {
                Ok(_) => {
                    let place = Place { file, at: node.locate("metadata.name") };
                    self.settings = Some((spec, place, node.locate("spec.mainDomain")));
                }
                Err(faults) => {
                    self.settings_broken = true;
                    self.unusable(file, node, subject, None, faults);
                }
            },
            Err(error) => {
                self.settings_broken = true;
                self.report(Place { file, at: node.at }, Severity::Error, None, subject.text("spec"), error);
            }
        }
    }

    fn secret(&mut self, kind: SecretKind, file: u32, node: &Node, subject: &Subject) {
        let mut data = Data::new();
        let encoded = if kind == SecretKind::Secret { "data" } else { "binaryData" };
        let plain = if kind == SecretKind::Secret { "stringData" } else { "data" };
        for (field, is_encoded) in [(encoded, true), (plain, false)] {
            let Some(Value::Map(entries)) = node.get(field).map(|node| &node.value) else { continue };
            for entry in entries {
                let Some(text) = entry.node.text() else { continue };
                let octets = if is_encoded {
                    let mut packed: Vec<u8> = text.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
                    let decoded = STANDARD.decode(&packed);
                    packed.zeroize();
                    let Ok(octets) = decoded else {
                        let message = format!(
                            "`{}` is not base64: write plain text under {plain}: instead",
                            escape(&entry.key)
                        );
                        let place = Place { file, at: entry.key_at };
                        let path = format!("{field}.{}", escape(&entry.key));
                        self.report(place, Severity::Error, None, subject.text(&path), message);
                        continue;
                    };
                    octets
                } else {
                    text.as_bytes().to_vec()
                };
                data.insert(entry.key.as_str().into(), Zeroizing::new(octets));
            }
        }
        let id = (kind, self.shared.text(&subject.namespace), self.shared.text(&subject.name));
        self.secret_places.insert(id.clone(), Place { file, at: node.locate("metadata.name") });
        self.secrets.insert(id, data);
    }
}

/// A bit in [`Diagnostic::length`] while files are read: the excerpt ends
/// behind the key.
pub(super) const HIDE: u32 = 1 << 31;

fn plain_message(path: &str, message: &str) -> String {
    if path.is_empty() { message.to_owned() } else { format!("{path}: {message}") }
}

/// The aliases of a domain with errors, as far as they are names.
fn aliases_of(node: &Node) -> Vec<String> {
    let Some(Value::List(names)) =
        node.get("spec").and_then(|spec| spec.get("aliases")).map(|aliases| &aliases.value)
    else {
        return Vec::new();
    };
    let names = names.iter().filter_map(Node::text).map(str::to_ascii_lowercase);
    names.filter(|name| bad_name(name, false).is_none()).collect()
}

fn never(node: &Node) -> bool {
    node.get("spec").and_then(|spec| spec.get("pollEvery")).and_then(Node::text) == Some("Never")
}

/// The `spec` of an object as its type.
fn typed<T: serde::de::DeserializeOwned>(node: &Node) -> Result<T, String> {
    let spec = node.get("spec").map_or(Json::Null, Node::json);
    serde_json::from_value(spec).map_err(|error| error.to_string())
}

/// The kind of an object; nothing for what is clearly somebody else's, as a
/// folder of manifests for a cluster holds other things too.
fn kind_of(node: &Node) -> Result<Option<Kind>, (Position, String)> {
    let field = |name: &str| match node.get(name) {
        None => Err((node.at, format!("`{name}` is missing: an object begins with apiVersion and kind"))),
        Some(value) => value.text().ok_or_else(|| (node.locate(name), format!("`{name}` must be text"))),
    };
    let kind = field("kind")?;
    let version = field("apiVersion")?;
    let Some(known) = Kind::ALL.into_iter().find(|known| known.name() == kind) else {
        let names = Kind::ALL.into_iter().map(Kind::name);
        let message = if let Some(close) = suggest(kind, names.clone()) {
            format!("unknown kind `{}`: did you mean `{close}`?", escape(kind))
        } else if version.starts_with(api::GROUP) {
            let all = names.collect::<Vec<_>>().join(", ");
            format!("unknown kind `{}`: RPOP reads {all}", escape(kind))
        } else {
            return Ok(None);
        };
        return Err((node.locate("kind"), message));
    };
    if version != known.api_version() {
        let message =
            format!("unknown apiVersion `{}` for {kind}: write {}", escape(version), known.api_version());
        return Err((node.locate("apiVersion"), message));
    }
    Ok(Some(known))
}

/// What Kubernetes demands of names (RFC 1123); files and folders are named
/// after records, so nothing else may pass.
fn bad_name(name: &str, label: bool) -> Option<String> {
    let most = if label { 63 } else { 253 };
    let good = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    let well = if label { good(name) } else { name.split('.').all(good) };
    (!well || name.len() > most).then(|| {
        let dots = if label { "" } else { ", dots" };
        format!(
            "`{}` cannot be a name: write lower-case letters, digits{dots} and hyphens, at most {most}, like my-isp",
            escape(name)
        )
    })
}
