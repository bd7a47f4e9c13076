//! Unified accounts among files: what their records are given, what is said of
//! it, and what stays in force while a file cannot be read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::Configuration;
use super::diagnostic::Severity;
use super::loader::{Draft, Loader};
use super::resolve::{Local, Unsettled, warn};
use crate::api::checks;
use crate::api::unified::{self, Asked, Directory, Refused};
use crate::domain::code::Code;
use crate::run::Problem;

/// All domains, by the names that they own.
pub(super) fn directory(
    known: &HashMap<String, Arc<Local>>,
    left_out: &BTreeSet<String>,
    aliases: &BTreeSet<String>,
    main: Option<&str>,
) -> Directory {
    let mut locals: BTreeMap<&str, unified::Local> = BTreeMap::new();
    for (name, local) in known {
        let Local { name: own, destination, postmaster, outgoing: _, problem: _ } = &**local;
        let entry = locals.entry(own).or_insert_with(|| unified::Local {
            name: Arc::clone(own),
            names: Vec::new(),
            destination: Arc::clone(destination),
            postmaster: postmaster.clone(),
        });
        entry.names.push(name.as_str().into());
    }
    for local in locals.values_mut() {
        local.names.sort();
    }
    let left_out = left_out.iter().filter(|name| !locals.contains_key(name.as_str()));
    let left_out = left_out.map(|name| name.as_str().into()).collect();
    let aliases = aliases.iter().map(|name| name.as_str().into()).collect();
    Directory::new(locals.into_values().collect(), left_out, main).with_aliases(aliases)
}

/// Why it is not certain that all domains are known. The recipients in one
/// that is not known would count as foreign, and lose their mail.
pub(super) fn doubt(loader: &Loader, left_out: &BTreeSet<String>) -> Option<String> {
    let files: BTreeSet<_> =
        loader.broken_files.iter().filter_map(|file| usize::try_from(*file).ok()).collect();
    let files: Vec<String> = files
        .into_iter()
        .filter_map(|file| loader.files.get(file).map(|path| path.display().to_string()))
        .collect();
    let domains: Vec<&String> = left_out.iter().collect();
    checks::not_all_domains(&files, &domains)
}

/// Gives a record all domains, if it asks for them. A Secret that one of them
/// lacks is of no concern here: only the mail for that domain needs it.
pub(super) fn unify(
    loader: &Loader,
    draft: &mut Draft,
    directory: &mut Directory,
    settings_broken: bool,
) -> Result<(), Unsettled> {
    let Some(asked) = &draft.asked else { return Ok(()) };
    let refused = match directory.unified(asked, &draft.item.account) {
        Ok(unified) => {
            draft.item.unified = Some(unified);
            if let Some(destination) = directory.to_postmaster() {
                draft.item.destination = Arc::clone(destination);
            }
            return Ok(());
        }
        Err(refused) => refused,
    };
    let at = if refused.path() == "spec.account" { draft.account } else { draft.special };
    // What may stand in a part that cannot be read is not taken for gone.
    let unread = !loader.broken_files.is_empty();
    let (keep, message) = match &refused {
        Refused::NoMainDomain if settings_broken => (true, checks::SETTINGS_BROKEN.to_owned()),
        Refused::NoMainDomain => (unread, refused.message(true)),
        Refused::MainDomainUnusable(name) => {
            (unread || loader.broken_domains.contains(&**name), refused.message(true))
        }
        Refused::NotOwner(_) | Refused::TooLarge { .. } => (false, refused.message(true)),
    };
    Err((at, refused.path(), Problem { code: Code::ConfigInvalid, message, keep }))
}

/// Says what a record with `special` is going to do, and what it lacks.
pub(super) fn explain(
    loader: &mut Loader,
    draft: &Draft,
    domains: &HashMap<String, Arc<Local>>,
    directory: &Directory,
) {
    let Some(unified) = &draft.item.unified else { return };
    let waiting: BTreeSet<&str> =
        domains.values().filter(|local| local.problem.is_some()).map(|local| &*local.name).collect();
    let waiting: Vec<&str> = waiting.into_iter().collect();
    let said = [
        (Severity::Note, Some(checks::distributes(unified))),
        (Severity::Note, checks::without_notifications(unified, &draft.item.destination)),
        (Severity::Warning, directory.postmaster_elsewhere()),
        (Severity::Warning, checks::left_out(directory.left_out())),
        (Severity::Warning, checks::waiting(&waiting)),
    ];
    for (severity, message) in said {
        if let Some(message) = message {
            warn(loader, draft, draft.special, severity, "spec.special", message);
        }
    }
}

impl Configuration {
    /// Part of [`Configuration::keep_from`]: unified records that would not be
    /// polled from a start are, if all domains were known in `before`.
    pub(super) fn release_held(&mut self, before: &Self) {
        // What was known completely stays known: nothing is in doubt.
        if before.doubt.is_some() {
            return;
        }
        let Some(doubt) = self.doubt.take() else { return };
        for (item, origin) in std::mem::take(&mut self.held) {
            self.problems.remove(&item.key);
            self.diagnostics.retain(|said| said.record.as_ref() != Some(&item.key) || said.message != doubt);
            self.records.push(item);
            self.origins.push(origin);
        }
    }

    /// Part of [`Configuration::keep_from`]: domains that cannot be read now
    /// are to unified records what they were.
    pub(super) fn keep_directory_from(&mut self, before: &Self, settings_lost: bool) {
        let left_out: BTreeSet<Arc<str>> = self.directory.left_out().iter().cloned().collect();
        if left_out.is_empty() && self.broken.is_empty() && !settings_lost {
            return;
        }
        let unread = !self.broken.is_empty();
        let lost = |name: &str| unread || left_out.contains(name);
        self.directory.keep_from(&before.directory, lost, settings_lost);
        for item in &mut self.records {
            let Some(given) = &item.unified else { continue };
            // Where it cannot be made anew, what it has stays.
            let Ok(now) = self.directory.unified(&Asked::again(given), &item.account) else { continue };
            let destination = self.directory.to_postmaster().unwrap_or(&item.destination);
            if now != *given || *destination != item.destination {
                let destination = Arc::clone(destination);
                let item = Arc::make_mut(item);
                (item.unified, item.destination) = (Some(now), destination);
            }
        }
    }
}
