//! Manifests in files: the configuration of the embedded run.
//!
//! ```text
//! files::list -> yaml::read -> schema, CEL rules -> build -> drafts
//!                                                              |
//!                  Configuration  <-  resolve (domains, secrets, settings)
//! ```
//!
//! Each finding has its place and says what to write. A document that is
//! wrong costs only itself.

mod diagnostic;
mod files;
mod kinds;
mod loader;
mod resolve;
mod schema;
mod secrets;
#[cfg(test)]
mod tests;
mod unified;
mod yaml;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use diagnostic::{Diagnostic, Severity};
pub use files::{LoadError, Watcher};
pub use secrets::MemorySecrets;

use crate::api::unified::Directory;
use crate::api::work::Sources;
use crate::domain::work::{RecordKey, Settings, Source, WorkItem};
use crate::run::Problem;

/// What the files say.
#[derive(Debug, Default)]
pub struct Configuration {
    /// `RpopSettings`, or the defaults.
    pub settings: Settings,
    /// The records that can be polled (or are Disabled), in the order of their
    /// keys.
    pub records: Vec<Arc<WorkItem>>,
    /// Records with `pollEvery: Never`.
    pub skipped: Vec<RecordKey>,
    /// Records that cannot be polled, and why.
    pub problems: BTreeMap<RecordKey, Problem>,
    /// The Secrets and ConfigMaps.
    pub secrets: MemorySecrets,
    /// All findings, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
    /// The files that were read.
    pub files: Vec<Arc<Path>>,
    /// The file of each record, as an index of `files`.
    origins: Vec<u32>,
    /// Unified records that are not polled, with their files, since `doubt`.
    held: Vec<(Arc<WorkItem>, u32)>,
    /// Why it is not certain that all domains are known, if it is not.
    doubt: Option<String>,
    /// Files of which a part could not be read.
    broken: Vec<Arc<Path>>,
    settings_broken: bool,
    /// There is a `RpopSettings` with errors, and no good one has been read:
    /// `settings` are the defaults, by which nothing may be polled, since
    /// limits of the user's own would silently fall away.
    pub settings_missing: bool,
    settings_file: Option<Arc<Path>>,
    /// What records connect from.
    sources: Sources,
    /// What domains have for that, by all their names.
    outgoing: HashMap<String, Source>,
    use_apop: bool,
    /// What unified records are given.
    directory: Directory,
    /// Records that ask for APOP while the settings have it off.
    apop_off: std::collections::HashSet<RecordKey>,
}

impl Configuration {
    /// Reads the files and folders `paths`. What is wrong with single files
    /// and documents is in [`Configuration::diagnostics`].
    ///
    /// This reads the disk: call it where blocking is allowed.
    ///
    /// # Errors
    /// When one of `paths` itself is not there or cannot be read.
    pub fn load(paths: &[PathBuf]) -> Result<Self, LoadError> {
        let mut loader = loader::Loader::new();
        for path in files::list(paths)? {
            loader.file(&path);
        }
        Ok(resolve::configuration(loader))
    }

    /// Whether anything is wrong: `rpop run --once` and `rpop check` exit
    /// with 2 then.
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|finding| finding.severity == Severity::Error)
    }

    /// Whether there are records that wait for other manifests to be mended,
    /// and can be polled then.
    pub fn waits(&self) -> bool {
        !self.held.is_empty()
    }

    /// The records' keys, polled or not.
    pub fn keys(&self) -> impl Iterator<Item = &RecordKey> {
        self.records.iter().map(|item| &item.key).chain(self.problems.keys())
    }

    /// After a live change: what cannot be read now stays as it was in
    /// `before`. That is records and settings with errors, and everything that
    /// has vanished from a file of which a part cannot be read. A record that
    /// was taken out of a sound file, or whose Secret or domain was, does not
    /// stay.
    pub fn keep_from(&mut self, before: &Self) {
        self.release_held(before);
        let unread = self.settings_file.is_none()
            && before.settings_file.as_ref().is_some_and(|file| self.broken.contains(file));
        let settings_lost = self.settings_broken || unread;
        if settings_lost {
            self.settings = before.settings.clone();
            self.settings_missing = before.settings_missing;
            self.settings_file.clone_from(&before.settings_file);
            (self.sources, self.use_apop) = (before.sources, before.use_apop);
            for item in &mut self.records {
                let apop = before.use_apop && self.apop_off.contains(&item.key);
                let outgoing = self.outgoing.get(&item.account.domain().to_ascii_lowercase());
                let source = self.sources.choose(outgoing.copied());
                if item.source_address != source || apop {
                    let item = Arc::make_mut(item);
                    item.source_address = source;
                    item.remote.apop |= apop;
                }
            }
        }
        if !self.broken.is_empty() {
            self.secrets.fill_from(&before.secrets);
        }
        let known: std::collections::HashSet<&RecordKey> =
            self.records.iter().map(|item| &item.key).chain(&self.skipped).collect();
        let kept: Vec<(Arc<WorkItem>, Arc<Path>)> = before
            .records
            .iter()
            .zip(&before.origins)
            .filter_map(|(item, origin)| {
                let file = usize::try_from(*origin).ok().and_then(|origin| before.files.get(origin))?;
                let keep = match self.problems.get(&item.key) {
                    Some(problem) => problem.keep,
                    None => self.broken.contains(file),
                };
                (keep && !known.contains(&item.key)).then(|| (Arc::clone(item), Arc::clone(file)))
            })
            .collect();
        let mut places: HashMap<Arc<Path>, u32> = HashMap::new();
        for (item, file) in kept {
            self.problems.remove(&item.key);
            let files = &mut self.files;
            let origin = *places.entry(file).or_insert_with_key(|file| {
                let at = files.iter().position(|known| known == file).unwrap_or_else(|| {
                    files.push(Arc::clone(file));
                    files.len() - 1
                });
                u32::try_from(at).unwrap_or(u32::MAX)
            });
            self.records.push(item);
            self.origins.push(origin);
        }
        let mut both: Vec<_> = self.records.drain(..).zip(self.origins.drain(..)).collect();
        both.sort_by(|(a, _), (b, _)| a.key.cmp(&b.key));
        (self.records, self.origins) = both.into_iter().unzip();
        self.keep_directory_from(before, settings_lost);
    }

    /// All findings as a compiler would print them, and a last line that
    /// counts them.
    pub fn report(&self) -> String {
        let count = |severity| self.diagnostics.iter().filter(|finding| finding.severity == severity).count();
        let number = |count: usize, what: &str| match count {
            1 => format!("1 {what}"),
            count => format!("{count} {what}s"),
        };
        let mut text: String =
            self.diagnostics.iter().flat_map(|finding| [finding.to_string(), "\n".into()]).collect();
        text.push_str(&number(self.records.len(), "record"));
        text.push_str(" in ");
        text.push_str(&number(self.files.len(), "file"));
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        for (count, what) in [(errors, "error"), (warnings, "warning")] {
            if count > 0 {
                text.push_str(", ");
                text.push_str(&number(count, what));
            }
        }
        if errors + warnings == 0 {
            text.push_str(", nothing is wrong");
        }
        text.push('\n');
        text
    }
}
