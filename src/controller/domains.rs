//! What the cluster's domains are to records.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::allow::Allow;
use super::seen::Domain;
use crate::api::RpopDomainSpec;
use crate::api::unified::{Directory, Local};
use crate::api::work::{self, Shared};
use crate::domain::envelope::Mailbox;
use crate::domain::work::{Destination, Source};

/// What records need of a domain.
#[derive(Debug)]
pub(super) struct Usable {
    pub(super) destination: Arc<Destination>,
    pub(super) postmaster: Mailbox,
    pub(super) allow: Vec<Allow>,
    /// What its records connect from, where the settings want that.
    pub(super) outgoing: Option<Source>,
}

/// A domain's spec as records need it.
pub(super) fn usable(
    shared: &mut Shared,
    system: &Arc<str>,
    name: &str,
    spec: &RpopDomainSpec,
) -> Result<Usable, Vec<String>> {
    let mut faults = Vec::new();
    if spec.delivery.maildir.is_some() {
        faults.push(
            "spec.delivery.maildir: a Maildir is on one machine, hence only with `rpop run -f`: write smtp or lmtp"
                .to_owned(),
        );
    }
    // A domain has no namespace: its Secrets are those of the namespace that
    // RPOP runs in.
    let namespace = |_, _: &str| Arc::clone(system);
    let destination = work::destination(shared, name, spec, &namespace).map_err(|all| {
        faults.extend(all.iter().map(|fault| format!("{}: {}", fault.path, fault.message)));
    });
    let postmaster = work::postmaster(name, &spec.postmaster)
        .map_err(|fault| faults.push(format!("{}: {}", fault.path, fault.message)));
    let outgoing =
        work::outgoing(spec).map_err(|fault| faults.push(format!("{}: {}", fault.path, fault.message)));
    let mut allow = Vec::with_capacity(spec.allow.len());
    for (at, pair) in spec.allow.iter().enumerate() {
        match Allow::new(pair) {
            Ok(pair) => allow.push(pair),
            Err(_) => faults.push(format!(
                "spec.allow[{at}].namespaces: write matchLabels, or matchExpressions with the operator In, NotIn, Exists or DoesNotExist"
            )),
        }
    }
    match (destination, postmaster, outgoing) {
        (Ok(destination), Ok(postmaster), Ok(outgoing)) if faults.is_empty() => {
            Ok(Usable { destination: Arc::new(destination), postmaster, allow, outgoing })
        }
        _ => Err(faults),
    }
}

/// What unified records are given: all domains, each with the names that it
/// owns; mail for those that have errors waits.
pub(super) fn directory(
    domains: &BTreeMap<Arc<str>, Domain>,
    names: &HashMap<Arc<str>, (Arc<str>, u64)>,
    main: Option<&str>,
) -> Directory {
    let mut owned: HashMap<&str, Vec<Arc<str>>> = HashMap::with_capacity(domains.len());
    for (name, (owner, _)) in names {
        owned.entry(owner).or_default().push(Arc::clone(name));
    }
    let (mut locals, mut left_out) = (Vec::with_capacity(domains.len()), Vec::new());
    let mut aliases = Vec::new();
    for (name, domain) in domains {
        let Ok(usable) = &domain.usable else {
            left_out.push(Arc::clone(name));
            aliases.extend(owned.remove(&**name).unwrap_or_default());
            continue;
        };
        let mut names = owned.remove(&**name).unwrap_or_default();
        names.sort();
        locals.push(Local {
            name: Arc::clone(name),
            names,
            destination: Arc::clone(&usable.destination),
            postmaster: usable.postmaster.clone(),
        });
    }
    Directory::new(locals, left_out, main).with_aliases(aliases)
}
