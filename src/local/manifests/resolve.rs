//! Puts the objects together: records find their domains, and everybody their
//! Secrets.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::Configuration;
use super::diagnostic::{Diagnostic, Severity};
use super::files;
use super::loader::{DomainDraft, Draft, HIDE, Loader, Place};
use super::secrets::MemorySecrets;
use super::unified;
use super::yaml::Position;
use crate::api::checks::{self, Claim};
use crate::api::work::{self, Sources};
use crate::domain::code::Code;
use crate::domain::envelope::{Mailbox, domain_key};
use crate::domain::work::{Destination, Login, OAuth2, SecretKind, SecretRef, Settings, Source};
use crate::run::Problem;

/// A domain, or an alias of one, that records can be delivered to.
pub(super) struct Local {
    /// The domain's own.
    pub(super) name: Arc<str>,
    pub(super) destination: Arc<Destination>,
    pub(super) postmaster: Mailbox,
    /// What its records connect from, where the settings want that.
    pub(super) outgoing: Option<Source>,
    pub(super) problem: Option<Problem>,
}

/// The namespace of objects that name none.
const DEFAULT: &str = "default";

pub(super) fn configuration(mut loader: Loader) -> Configuration {
    let secrets = MemorySecrets::new(std::mem::take(&mut loader.secrets));
    let sources = loader.settings.as_ref().map(|(spec, ..)| Sources::of(spec)).unwrap_or_default();
    let (domains, left_out) = domains(&mut loader, &secrets, sources);
    let mut settings = Settings::default();
    let mut main_domain = None;
    let mut use_apop = false;
    let settings_broken = loader.settings_broken && loader.settings.is_none();
    let mut apop_off = std::collections::HashSet::new();
    if let Some((spec, place, main)) = loader.settings.take() {
        use_apop = spec.use_apop;
        if let Ok(built) = work::settings(&spec) {
            settings = built;
        }
        main_domain = spec.main_domain;
        let missing = |name: &&String| !domains.contains_key(&*domain_key(name));
        if let Some(name) = main_domain.as_ref().filter(missing) {
            let message = checks::no_main_domain(name);
            let place = Place { at: main, ..place };
            loader.report(
                place,
                Severity::Error,
                None,
                "RpopSettings default: spec.mainDomain".into(),
                message,
            );
        }
    }
    rivals(&mut loader);
    let mut directory =
        unified::directory(&domains, &left_out, &loader.broken_aliases, main_domain.as_deref());
    let doubt = unified::doubt(&loader, &left_out);
    let (mut records, mut held) = (Vec::with_capacity(loader.drafts.len()), Vec::new());
    for mut draft in std::mem::take(&mut loader.drafts) {
        let key = draft.item.key.clone();
        if draft.item.remote.apop && !use_apop {
            draft.item.remote.apop = false;
            apop_off.insert(key.clone());
            let message = checks::APOP_OFF.into();
            warn(&mut loader, &draft, draft.apop, Severity::Warning, "spec.apop", message);
        }
        let settled = settle(&mut loader, &mut draft, &domains, &secrets)
            .and_then(|()| unified::unify(&loader, &mut draft, &mut directory, settings_broken));
        match settled {
            Ok(()) => {
                let outgoing = domains.get(&draft.item.account.domain().to_ascii_lowercase());
                draft.item.source_address = sources.choose(outgoing.and_then(|local| local.outgoing));
                unified::explain(&mut loader, &draft, &domains, &directory);
                if let (Some(doubt), Some(_)) = (&doubt, &draft.item.unified) {
                    warn(&mut loader, &draft, draft.special, Severity::Error, "spec.special", doubt.clone());
                    let problem = Problem { code: Code::ConfigInvalid, message: doubt.clone(), keep: false };
                    loader.problems.entry(key).or_insert(problem);
                    held.push((Arc::new(draft.item), draft.file));
                } else {
                    records.push((Arc::new(draft.item), draft.file));
                }
            }
            Err((at, path, problem)) => {
                warn(&mut loader, &draft, at, Severity::Error, path, problem.message.clone());
                loader.problems.entry(key).or_insert(problem);
            }
        }
    }
    let outgoing = domains.iter().filter_map(|(name, local)| Some((name.clone(), local.outgoing?))).collect();
    records.sort_by(|(a, _), (b, _)| a.key.cmp(&b.key));
    let (records, origins) = records.into_iter().unzip();
    let mut diagnostics = loader.diagnostics;
    diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    excerpts(&mut diagnostics);
    let broken = loader
        .broken_files
        .iter()
        .filter_map(|file| usize::try_from(*file).ok().and_then(|file| loader.files.get(file)).cloned())
        .collect();
    let settings_file = loader
        .settings_file
        .and_then(|file| usize::try_from(file).ok().and_then(|file| loader.files.get(file)).cloned());
    Configuration {
        settings,
        records,
        skipped: loader.skipped,
        problems: loader.problems,
        secrets,
        diagnostics,
        files: loader.files,
        origins,
        held,
        doubt,
        broken,
        settings_broken,
        settings_missing: settings_broken,
        settings_file,
        sources,
        outgoing,
        use_apop,
        directory,
        apop_off,
    }
}

/// Says something of a record.
pub(super) fn warn(
    loader: &mut Loader,
    draft: &Draft,
    at: Position,
    severity: Severity,
    path: &str,
    message: String,
) {
    let key = &draft.item.key;
    let place = Place { file: draft.file, at };
    loader.report(place, severity, Some(key), format!("RpopRecord {key}: {path}"), message);
}

/// All names that mail can be delivered under, and the domains with errors.
fn domains(
    loader: &mut Loader,
    secrets: &MemorySecrets,
    sources: Sources,
) -> (HashMap<String, Arc<Local>>, BTreeSet<String>) {
    let mut left_out: BTreeSet<String> = loader.broken_domains.iter().cloned().collect();
    let mut known: HashMap<String, Arc<Local>> = HashMap::new();
    let mut owners: HashMap<String, String> = HashMap::new();
    for draft in std::mem::take(&mut loader.domains) {
        let Some(local) = domain(loader, &draft, secrets, sources) else {
            left_out.insert(draft.name.clone());
            loader.broken_domains.insert(draft.name.clone());
            let aliases = draft.spec.aliases.iter().map(|alias| alias.to_ascii_lowercase());
            loader.broken_aliases.extend(aliases.clone());
            loader.broken_domains.extend(aliases);
            continue;
        };
        let local = Arc::new(local);
        let aliases = draft.spec.aliases.iter().map(|alias| (alias.to_ascii_lowercase(), draft.aliases));
        for (name, at) in std::iter::once((draft.name.clone(), draft.place.at)).chain(aliases) {
            if let Some(owner) = owners.get(&name).filter(|owner| **owner != draft.name) {
                let message = checks::taken(&name, owner);
                let place = Place { at, ..draft.place };
                loader.report(place, Severity::Error, None, format!("RpopDomain {}", draft.name), message);
                continue;
            }
            owners.insert(name.clone(), draft.name.clone());
            known.insert(name, Arc::clone(&local));
        }
    }
    (known, left_out)
}

fn domain(
    loader: &mut Loader,
    draft: &DomainDraft,
    secrets: &MemorySecrets,
    sources: Sources,
) -> Option<Local> {
    let subject = |path: &str| format!("RpopDomain {}: {path}", draft.name);
    let default: Arc<str> = loader.shared.text(DEFAULT);
    // A domain has no namespace. Its Secrets are those of the namespace that
    // RPOP runs in; among files, the only one of that name.
    let namespace = |kind, name: &str| {
        let found = secrets.namespaces(kind, name);
        if found.contains(&default) {
            Arc::clone(&default)
        } else {
            found.first().cloned().unwrap_or_else(|| Arc::clone(&default))
        }
    };
    let destination = work::destination(&mut loader.shared, &draft.name, &draft.spec, &namespace);
    let postmaster = work::postmaster(&draft.name, &draft.spec.postmaster);
    let destination = match destination {
        Ok(destination) => Arc::new(destination),
        Err(faults) => {
            for fault in faults {
                let place = Place { at: draft.delivery, ..draft.place };
                loader.report(place, Severity::Error, None, subject(fault.path), fault.message);
            }
            return None;
        }
    };
    let postmaster = match postmaster {
        Ok(postmaster) => postmaster,
        Err(fault) => {
            let place = Place { at: draft.postmaster, ..draft.place };
            loader.report(place, Severity::Error, None, subject(fault.path), fault.message);
            return None;
        }
    };
    let outgoing = match work::outgoing(&draft.spec) {
        Ok(outgoing) => outgoing,
        Err(fault) => {
            let place = Place { at: draft.outgoing, ..draft.place };
            loader.report(place, Severity::Error, None, subject(fault.path), fault.message);
            return None;
        }
    };
    if outgoing.is_some() && !sources.use_domains {
        let message = checks::OUTGOING.into();
        let place = Place { at: draft.outgoing, ..draft.place };
        loader.report(place, Severity::Warning, None, subject("spec.useForOutgoing"), message);
    }
    let mut problem = None;
    for host in destination.smtp.iter().chain(&destination.lmtp) {
        let password = host.auth.iter().map(|(_, at)| check_password(secrets, at));
        let ca = host.tls.ca.iter().map(|at| check_pem(secrets, at, "CERTIFICATE"));
        for (code, message) in password.chain(ca).filter_map(Result::err) {
            let place = Place { at: draft.delivery, ..draft.place };
            loader.report(place, Severity::Error, None, subject("spec.delivery"), message.clone());
            problem.get_or_insert(Problem {
                code,
                message: format!("RpopDomain {}: {message}", draft.name),
                keep: false,
            });
        }
    }
    Some(Local { name: Arc::clone(&destination.domain), destination, postmaster, outgoing, problem })
}

/// Where, which field, and why a record cannot be polled.
pub(super) type Unsettled = (Position, &'static str, Problem);

/// Gives a record its domain and looks whether its Secrets are there.
fn settle(
    loader: &mut Loader,
    draft: &mut Draft,
    domains: &HashMap<String, Arc<Local>>,
    secrets: &MemorySecrets,
) -> Result<(), Unsettled> {
    let item = &mut draft.item;
    let name = domain_key(item.account.domain()).into_owned();
    let Some(local) = domains.get(&name) else {
        // If the domain is there but broken, or may have been in a part of a
        // file that cannot be read, then what was in force stays so.
        let broken = loader.broken_domains.contains(&name);
        let message = if broken {
            checks::broken_domain(&name)
        } else {
            let all: Vec<&str> = domains.keys().map(String::as_str).collect();
            checks::no_domain(&name, &all)
        };
        let keep = broken || !loader.broken_files.is_empty();
        return Err((draft.account, "spec.account", Problem { code: Code::ConfigInvalid, message, keep }));
    };
    if let (Some(problem), None) = (&local.problem, &draft.asked) {
        return Err((draft.account, "spec.account", problem.clone()));
    }
    if let Some(message) = checks::mailbox_without_store(item, &local.destination, true) {
        let problem = Problem { code: Code::ConfigInvalid, message, keep: false };
        return Err((draft.mailbox, "spec.mailbox", problem));
    }
    item.destination = Arc::clone(&local.destination);
    item.postmaster = Some(local.postmaster.clone());
    let keep = !loader.broken_files.is_empty();
    let problem = |(code, message): (Code, String)| Problem {
        code,
        message,
        keep: keep && code == Code::SecretMissing,
    };
    match &item.remote.login {
        Login::Password(at) => check_password(secrets, at)
            .map_err(|error| (draft.password, "spec.remote.passwordSecretRef", problem(error)))?,
        Login::OAuth2(oauth) => {
            check_oauth(secrets, oauth).map_err(|(path, error)| (draft.password, path, problem(error)))?;
        }
    }
    if let Some(ca) = &item.remote.tls.ca {
        check_pem(secrets, ca, "CERTIFICATE")
            .map_err(|error| (draft.ca, "spec.tls.caRef", problem(error)))?;
    }
    if let Some((chain, key)) = &item.remote.tls.client_certificate {
        check_pem(secrets, chain, "CERTIFICATE")
            .and_then(|()| check_pem(secrets, key, "PRIVATE KEY"))
            .map_err(|error| (draft.certificate, "spec.tls.clientCertificateSecretRef", problem(error)))?;
    }
    Ok(())
}

/// A password is text without line breaks: with one it could never be sent,
/// and it comes from `echo` without `-n` nearly always.
fn check_password(secrets: &MemorySecrets, at: &SecretRef) -> Result<(), (Code, String)> {
    let password =
        secrets.find(at).map_err(|message| (Code::SecretMissing, missing(secrets, at, message)))?;
    let place = format!("Secret {}/{}, key {}", at.namespace, at.name, at.key);
    let wrong = match password.as_slice() {
        [] => "the password is empty",
        [.., b'\n' | b'\r'] => {
            "the password ends with a line break: encode it with `echo -n`, or write it in one line under stringData"
        }
        octets if octets.iter().any(|b| matches!(b, b'\n' | b'\r' | 0)) => {
            "the password holds a line break or NUL, which no server can be sent"
        }
        octets if octets.len() > 4096 => "the password is longer than 4096 octets",
        _ => return Ok(()),
    };
    Err((Code::SecretInvalid, format!("{place}: {wrong}")))
}

/// What is said of the Secrets of `oauth2`, and of which of them.
type Unfit = (&'static str, (Code, String));

fn check_oauth(secrets: &MemorySecrets, oauth: &OAuth2) -> Result<(), Unfit> {
    const REFRESH: &str = "spec.remote.oauth2.refreshTokenSecretRef";
    const SECRET: &str = "spec.remote.oauth2.clientSecretRef";
    let texts =
        [(&oauth.refresh_token, REFRESH, "refresh token"), (&oauth.client_secret, SECRET, "client secret")];
    for (at, path, what) in texts.into_iter().filter_map(|(at, path, what)| Some((at.as_ref()?, path, what)))
    {
        let octets = secrets
            .find(at)
            .map_err(|message| (path, (Code::SecretMissing, missing(secrets, at, message))))?;
        crate::oauth::check_secret(&octets, what).map_err(|why| {
            (
                path,
                (Code::SecretInvalid, format!("Secret {}/{}, key {}: {why}", at.namespace, at.name, at.key)),
            )
        })?;
    }
    match &oauth.ca {
        Some(ca) => {
            check_pem(secrets, ca, "CERTIFICATE").map_err(|error| ("spec.remote.oauth2.caRef", error))
        }
        None => Ok(()),
    }
}

fn check_pem(secrets: &MemorySecrets, at: &SecretRef, what: &str) -> Result<(), (Code, String)> {
    let pem = secrets.find(at).map_err(|message| (Code::SecretMissing, missing(secrets, at, message)))?;
    let found = memchr::memmem::find_iter(&pem, b"-----BEGIN ").any(|at| {
        pem.get(at..)
            .and_then(|rest| rest.split(|b| *b == b'\n').next())
            .is_some_and(|line| memchr::memmem::find(line, what.as_bytes()).is_some())
    });
    if found {
        return Ok(());
    }
    let message = format!("{}/{}, key {}: no PEM `{what}` in it", at.namespace, at.name, at.key);
    Err((Code::SecretInvalid, message))
}

fn missing(secrets: &MemorySecrets, at: &SecretRef, message: String) -> String {
    let elsewhere = secrets.namespaces(at.kind, &at.name);
    let what = if at.kind == SecretKind::Secret { "a Secret" } else { "a ConfigMap" };
    match elsewhere.first().filter(|_| !elsewhere.contains(&at.namespace)) {
        Some(other) => {
            format!("{message}; {what} of that name is in namespace {other}, where it is not looked for")
        }
        None => message,
    }
}

/// Two records of one maildrop are well only if neither takes mail away from
/// the other.
fn rivals(loader: &mut Loader) {
    let mut seen: HashMap<_, usize> = HashMap::new();
    let mut found = Vec::new();
    for (at, draft) in loader.drafts.iter().enumerate() {
        let remote = &draft.item.remote;
        match seen.entry((&remote.host, remote.port, &remote.account)) {
            Entry::Vacant(place) => {
                place.insert(at);
            }
            Entry::Occupied(first) => {
                let first = &loader.drafts[*first.get()].item;
                if Claim::of(first).disputes(Claim::of(&draft.item)) {
                    found.push((at, first.key.clone()));
                }
            }
        }
    }
    drop(seen);
    for (at, first) in found {
        let draft = &loader.drafts[at];
        let (key, place) = (draft.item.key.clone(), Place { file: draft.file, at: draft.account });
        let message = checks::rival(Some(&first));
        loader.report(
            place,
            Severity::Warning,
            Some(&key),
            format!("RpopRecord {key}: spec.remote"),
            message,
        );
    }
}

/// Reads the lines that findings point at. Lines of Secrets are not shown,
/// and of an unknown field only its name: somebody may have put a password
/// there.
fn excerpts(findings: &mut [Diagnostic]) {
    let mut last: Option<Lines> = None;
    for finding in findings {
        let hide = finding.length & HIDE != 0;
        finding.length &= !HIDE;
        if finding.line == 0 {
            continue;
        }
        if last.as_ref().is_none_or(|lines| lines.file != finding.file) {
            last = Some(Lines::of(&finding.file));
        }
        let Some(lines) = &last else { continue };
        let line = usize::try_from(finding.line).ok().and_then(|line| lines.get(line - 1));
        // Where the YAML itself is broken nobody knows whose line it is.
        let secret = finding.subject.starts_with("Secret ")
            || (finding.subject.is_empty()
                && (lines.hold_secrets()
                    || line.is_some_and(|line| line.to_ascii_lowercase().contains("pass"))));
        if let (Some(line), false) = (line, secret) {
            let end = finding.column.saturating_sub(1).saturating_add(finding.length);
            let shown = if hide { end.min(160) } else { 160 };
            let mut excerpt: String = line
                .trim_end()
                .chars()
                .take(usize::try_from(shown).unwrap_or(0))
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect();
            if hide {
                excerpt.push_str(": …");
            }
            finding.excerpt = Some(excerpt.into());
        }
    }
}

/// A file's text, and where its lines end.
struct Lines {
    file: Arc<Path>,
    text: Zeroizing<String>,
    ends: Vec<usize>,
}

impl Lines {
    fn of(file: &Arc<Path>) -> Self {
        let text = files::text(file).unwrap_or_default();
        let mut ends: Vec<usize> = memchr::memchr_iter(b'\n', text.as_bytes()).collect();
        ends.push(text.len());
        Self { file: Arc::clone(file), text: Zeroizing::new(text), ends }
    }

    /// Whether any object in it may be a Secret, however it is written.
    fn hold_secrets(&self) -> bool {
        self.text.match_indices("Secret").any(|(at, _)| {
            let before = self.text.get(..at).unwrap_or("");
            before.trim_end_matches([' ', ':', '"', '\'', '\n', '\r', '\t']).ends_with("kind")
        })
    }

    fn get(&self, line: usize) -> Option<&str> {
        let start = if line == 0 { 0 } else { self.ends.get(line - 1)? + 1 };
        let text = self.text.get(start..*self.ends.get(line)?)?;
        Some(if line == 0 { text.strip_prefix('\u{feff}').unwrap_or(text) } else { text })
    }
}
