//! Unified domain-wide accounts: what a record with `special` is given of all
//! local domains, and whose it must be. The same for files and for the cluster.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use super::{RpopRecordSpec, checks};
use crate::domain::envelope::{Mailbox, domain_key};
use crate::domain::work::{Destination, LocalDomains, MailHost, MaildirPath, Special, Unified};

/// Octets of a [`Unified`] as JSON at most: with it an item takes half a slice.
pub(crate) const MOST_BYTES: usize = 64 * 1024;

/// What a record itself says of how its mail is distributed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    special: Special,
    relay_foreign: bool,
    deduplicate: bool,
}

impl Asked {
    /// `None` for a plain record.
    pub(crate) fn of(spec: &RpopRecordSpec) -> Option<Self> {
        let special = match spec.special.as_deref()? {
            "*" => Special::Addressees,
            header => Special::Header(header.into()),
        };
        // Each belongs to one of the two; the rules refuse it with the other.
        let addressees = special == Special::Addressees;
        Some(Self {
            special,
            relay_foreign: spec.relay_foreign && !addressees,
            deduplicate: spec.deduplicate && addressees,
        })
    }

    /// What the record said that this was made for.
    pub(crate) fn again(unified: &Unified) -> Self {
        let Unified { special, relay_foreign, deduplicate, domains: _, postmaster: _ } = unified;
        Self { special: special.clone(), relay_foreign: *relay_foreign, deduplicate: *deduplicate }
    }
}

/// A domain that mail can be delivered to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Local {
    /// The RpopDomain's name.
    pub(crate) name: Arc<str>,
    /// The names that are its own, aliases among them: in lower case, sorted.
    pub(crate) names: Vec<Arc<str>>,
    pub(crate) destination: Arc<Destination>,
    pub(crate) postmaster: Mailbox,
}

impl Local {
    /// Whether `name` is one of its own, however it is written.
    fn has(&self, name: &str) -> bool {
        let name = domain_key(name);
        self.names.binary_search_by(|known| (**known).cmp(&*name)).is_ok()
    }

    /// Whose unified records are if this is the Main Domain: its postmaster's.
    /// Where that is nobody of the domain, the account that every domain has.
    fn owner(&self) -> Option<Mailbox> {
        if self.has(self.postmaster.domain()) {
            return Some(self.postmaster.clone());
        }
        Mailbox::parse(&format!("postmaster@{}", self.name)).ok()
    }
}

/// Why a record cannot have a unified account; which is a matter of
/// `ConfigInvalid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The settings name no Main Domain.
    NoMainDomain,
    /// They name one that is not there, or that has errors.
    MainDomainUnusable(Arc<str>),
    /// The record is not this one's.
    NotOwner(Mailbox),
    /// So much does not fit an item of work.
    TooLarge {
        /// Octets as JSON.
        octets: usize,
        /// Names and aliases.
        names: usize,
        /// Different deliveries.
        deliveries: usize,
    },
}

impl Refused {
    /// The field that is to blame.
    pub(crate) fn path(&self) -> &'static str {
        match self {
            Self::NotOwner(_) => "spec.account",
            _ => "spec.special",
        }
    }

    /// What is wrong and what to write. What the Main Domain is called is not
    /// everybody's to know.
    pub(crate) fn message(&self, may_know: bool) -> String {
        match self {
            Self::NoMainDomain => checks::NO_MAIN_DOMAIN.to_owned(),
            Self::MainDomainUnusable(name) => checks::unusable_main_domain(may_know.then_some(name)),
            Self::NotOwner(owner) => checks::not_the_postmasters(may_know.then_some(owner)),
            Self::TooLarge { octets, names, deliveries } => {
                checks::unified_too_large(*octets, MOST_BYTES, *names, *deliveries)
            }
        }
    }
}

/// All local domains, as unified records are given them.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    /// By name.
    locals: Vec<Local>,
    /// Domains with errors, by name: their mail waits.
    left_out: Vec<Arc<str>>,
    /// Aliases of these.
    aliases: Vec<Arc<str>>,
    /// `mainDomain`, in lower case.
    main: Option<Arc<str>>,
    /// `locals`, gathered by where their mail goes.
    domains: Vec<LocalDomains>,
    /// Those in use: records that ask for the same share one.
    made: HashMap<Asked, Weak<Unified>>,
}

impl Directory {
    /// Of the domains that can be delivered to, the names of those with
    /// errors, and what the settings name as Main Domain.
    pub(crate) fn new(mut locals: Vec<Local>, mut left_out: Vec<Arc<str>>, main: Option<&str>) -> Self {
        locals.sort_by(|a, b| a.name.cmp(&b.name));
        left_out.sort();
        let main = main.map(|name| domain_key(name).into());
        let domains = gathered(&locals, &left_out);
        Self { locals, left_out, aliases: Vec::new(), main, domains, made: HashMap::new() }
    }

    /// Domains with errors have these names, too.
    pub(crate) fn with_aliases(mut self, mut aliases: Vec<Arc<str>>) -> Self {
        aliases.sort();
        let names: Vec<Arc<str>> = self.left_out.iter().chain(&aliases).cloned().collect();
        self.domains = gathered(&self.locals, &names);
        self.aliases = aliases;
        self
    }

    /// Whether unified records are given the same.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        let Self { locals, left_out, aliases, main, domains: _, made: _ } = other;
        self.locals == *locals && self.left_out == *left_out && self.aliases == *aliases && self.main == *main
    }

    /// Domains that cannot be delivered to, since they have errors.
    pub(crate) fn left_out(&self) -> &[Arc<str>] {
        &self.left_out
    }

    /// The Main Domain, if there is one that can be delivered to.
    pub(crate) fn main(&self) -> Option<&Local> {
        let main = self.main.as_deref()?;
        self.locals.iter().find(|local| local.has(main))
    }

    /// Where the mail of its postmaster goes, and notifications: to the domain
    /// that he is in. But where that has no queue, which notifications to
    /// senders need, and the Main Domain has one, it is the Main Domain's.
    pub(crate) fn to_postmaster(&self) -> Option<&Arc<Destination>> {
        let main = self.main()?;
        let his = self.locals.iter().find(|local| local.has(main.postmaster.domain()));
        let his = his.filter(|his| his.destination.smtp.is_some() || main.destination.smtp.is_none());
        Some(&his.unwrap_or(main).destination)
    }

    /// What is to be said of a postmaster who is nobody of the Main Domain.
    pub(crate) fn postmaster_elsewhere(&self) -> Option<String> {
        let main = self.main()?;
        let (to, has_queue) = (&main.postmaster, main.destination.smtp.is_some());
        match self.locals.iter().find(|local| local.has(to.domain())) {
            Some(his) if has_queue && his.destination.smtp.is_none() => {
                Some(checks::postmaster_by_main(to, &his.name, &main.name))
            }
            None if !has_queue => Some(checks::postmaster_nowhere(to, &main.name)),
            _ => None,
        }
    }

    /// Whether `domain` is a name of the Main Domain.
    pub(crate) fn is_main(&self, domain: &str) -> bool {
        self.main().is_some_and(|main| main.has(domain))
    }

    /// What a record of `account` that asks for it is given; the same for all
    /// that ask for the same.
    ///
    /// # Errors
    /// Why it can have none.
    pub(crate) fn unified(&mut self, asked: &Asked, account: &Mailbox) -> Result<Arc<Unified>, Refused> {
        let name = self.main.as_ref().ok_or(Refused::NoMainDomain)?;
        let unusable = || Refused::MainDomainUnusable(Arc::clone(name));
        let main = self.main().ok_or_else(unusable)?;
        let owner = main.owner().ok_or_else(unusable)?;
        let his = account.local().eq_ignore_ascii_case(owner.local()) && main.has(account.domain());
        if !his {
            return Err(Refused::NotOwner(owner));
        }
        if let Some(known) = self.made.get(asked).and_then(Weak::upgrade) {
            return Ok(known);
        }
        let Asked { special, relay_foreign, deduplicate } = asked.clone();
        let unified = Unified {
            special,
            relay_foreign,
            deduplicate,
            domains: self.domains.clone(),
            postmaster: main.postmaster.clone(),
        };
        let octets = serde_json::to_vec(&unified).map_or(usize::MAX, |text| text.len());
        if octets > MOST_BYTES {
            return Err(Refused::TooLarge {
                octets,
                names: self.locals.iter().map(|local| local.names.len()).sum(),
                deliveries: self.domains.len(),
            });
        }
        let unified = Arc::new(unified);
        self.made.retain(|_, made| made.strong_count() > 0);
        self.made.insert(asked.clone(), Arc::downgrade(&unified));
        Ok(unified)
    }

    /// Takes over from `before` the domains that cannot be read now (those for
    /// which `lost` holds), and the Main Domain's name if the settings cannot.
    pub(crate) fn keep_from(&mut self, before: &Self, lost: impl Fn(&str) -> bool, settings_lost: bool) {
        let mut taken: BTreeSet<Arc<str>> =
            self.locals.iter().flat_map(|local| local.names.iter().cloned()).collect();
        let mut locals = std::mem::take(&mut self.locals);
        for local in before.locals.iter().filter(|local| lost(&local.name)) {
            if locals.iter().any(|known| known.name == local.name) {
                continue;
            }
            let mut kept = local.clone();
            kept.names.retain(|name| taken.insert(Arc::clone(name)));
            locals.push(kept);
        }
        let left_out = std::mem::take(&mut self.left_out)
            .into_iter()
            .filter(|name| !locals.iter().any(|local| local.name == *name))
            .collect();
        let main = if settings_lost { before.main.as_deref() } else { self.main.as_deref() };
        let aliases = std::mem::take(&mut self.aliases);
        *self = Self::new(locals, left_out, main).with_aliases(aliases);
    }
}

/// How a domain's mail goes, whatever the domain is called.
type Way<'l> = (&'l Option<MailHost>, &'l Option<MailHost>, &'l Option<MaildirPath>);

/// Domains with the same deliveries together, in an order that only changes
/// when they do. Names of domains with errors come last, with a destination
/// that leads nowhere: their recipients are ours, and owed the mail until the
/// domain is mended. Without them they would count as foreign, and lose it.
fn gathered(locals: &[Local], broken: &[Arc<str>]) -> Vec<LocalDomains> {
    let mut places: HashMap<Way<'_>, usize> = HashMap::new();
    let mut all: Vec<LocalDomains> = Vec::new();
    for local in locals.iter().filter(|local| !local.names.is_empty()) {
        let Destination { domain: _, smtp, lmtp, maildir } = &*local.destination;
        let at = *places.entry((smtp, lmtp, maildir)).or_insert_with(|| {
            let destination = Arc::clone(&local.destination);
            all.push(LocalDomains { names: Vec::new(), owners: Vec::new(), destination });
            all.len() - 1
        });
        if let Some(place) = all.get_mut(at) {
            place.names.extend(local.names.iter().cloned());
        }
    }
    let taken: BTreeSet<&Arc<str>> = locals.iter().flat_map(|local| &local.names).collect();
    let names: BTreeSet<Arc<str>> = broken.iter().filter(|name| !taken.contains(name)).cloned().collect();
    if let Some(first) = names.first() {
        let destination = Destination { domain: Arc::clone(first), ..Destination::default() };
        let (names, owners) = (names.into_iter().collect(), Vec::new());
        all.push(LocalDomains { names, owners, destination: Arc::new(destination) });
    }
    let owners: HashMap<&str, &Arc<str>> =
        locals.iter().flat_map(|local| local.names.iter().map(|name| (&**name, &local.name))).collect();
    for place in &mut all {
        place.names.sort();
        let owner = |(at, name): (usize, &Arc<str>)| {
            let own = owners.get(&**name).and_then(|own| place.names.binary_search(own).ok());
            u32::try_from(own.unwrap_or(at)).unwrap_or(u32::MAX)
        };
        let owners: Vec<u32> = place.names.iter().enumerate().map(owner).collect();
        if owners.iter().zip(0..).any(|(owner, at)| *owner != at) {
            place.owners = owners;
        }
    }
    all
}

#[cfg(test)]
#[path = "unified_tests.rs"]
mod tests;
