//! Step 2: whether a record is complete and allowed. Pure.

use std::sync::Arc;

use super::dereference::ReferencedObjects;
use super::domains::Usable;
use crate::api::checks;
use crate::api::unified::{Asked, Directory};
use crate::api::work::{self, Shared};
use crate::api::{PollEvery, RpopRecordSpec};
use crate::domain::code::Code;
use crate::domain::text::{escape, shown};
use crate::domain::work::{RecordKey, WorkItem};

/// A record that is polled, or may be.
#[derive(Debug)]
pub(super) struct ValidatedRecord {
    pub(super) item: WorkItem,
    pub(super) domain: Arc<Usable>,
    pub(super) paused: bool,
    pub(super) warnings: Vec<String>,
}

/// What a record asks for.
#[derive(Debug)]
pub(super) enum Verdict {
    /// To be among the work.
    Accepted(Box<ValidatedRecord>),
    /// `pollEvery: Never`: to be removed.
    Remove,
}

/// Why a record is not among the work: the reason of its conditions, and what
/// to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub(super) struct Refusal {
    pub(super) reason: Code,
    pub(super) message: String,
}

fn refuse<T>(reason: Code, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, message: message.into() })
}

/// Decides about a record.
pub(super) fn validate(
    refs: &ReferencedObjects<'_>,
    shared: &mut Shared,
    directory: &mut Directory,
) -> Result<Verdict, Refusal> {
    let ReferencedObjects { key, record, namespace, domain, rules, system: _ } = refs;
    let spec = match &record.spec {
        Ok(spec) => spec,
        Err(error) => {
            return refuse(
                Code::ConfigInvalid,
                format!("the record cannot be read by this version of RPOP: {error}"),
            );
        }
    };
    if spec.poll_every == PollEvery::Never {
        return Ok(Verdict::Remove);
    }
    if namespace.terminating {
        return refuse(Code::NotAllowed, format!("namespace {} is being deleted", key.namespace));
    }
    let name = spec.account.rsplit_once('@').map_or("", |(_, domain)| domain);
    let Some((owner, domain)) = domain else {
        // The names of other domains are not everybody's to know.
        return refuse(Code::DomainMissing, checks::no_domain(name, &[]));
    };
    allowed(refs, spec, owner)?;
    let usable = match &domain.usable {
        Ok(usable) => Arc::clone(usable),
        Err(_) => return refuse(Code::ConfigInvalid, checks::broken_domain(owner)),
    };
    let mut item = build_item(shared, key, &record.uid, spec, &usable)?;
    if let Some(message) = checks::mailbox_without_store(&item, &usable.destination, false) {
        return refuse(Code::ConfigInvalid, format!("spec.mailbox: {message}"));
    }
    let mut warnings = Vec::new();
    if let Some(asked) = Asked::of(spec) {
        unify(refs, directory, &asked, &mut item, &mut warnings)?;
    }
    if item.remote.apop && !rules.use_apop {
        item.remote.apop = false;
        warnings.push(format!("spec.apop: {}", checks::APOP_OFF));
    }
    item.source_address = rules.sources.choose(usable.outgoing);
    Ok(Verdict::Accepted(Box::new(ValidatedRecord { item, domain: usable, paused: spec.paused, warnings })))
}

fn build_item(
    shared: &mut Shared,
    key: &RecordKey,
    uid: &str,
    spec: &RpopRecordSpec,
    usable: &Usable,
) -> Result<WorkItem, Refusal> {
    let key = RecordKey { namespace: shared.text(&key.namespace), name: Arc::clone(&key.name) };
    work::record(shared, key, Some(uid), spec, &usable.destination).map_err(|faults| {
        let texts: Vec<String> =
            faults.iter().map(|fault| format!("{}: {}", fault.path, fault.message)).collect();
        Refusal { reason: Code::ConfigInvalid, message: texts.join("; ") }
    })
}

/// A unified account is given all domains.
fn unify(
    refs: &ReferencedObjects<'_>,
    directory: &mut Directory,
    asked: &Asked,
    item: &mut WorkItem,
    warnings: &mut Vec<String>,
) -> Result<(), Refusal> {
    let unified = directory.unified(asked, &item.account).map_err(|refused| {
        // Who writes for another domain need not know how the main one is called.
        let may_know = *refs.key.namespace == *refs.system || directory.is_main(item.account.domain());
        let message = format!("{}: {}", refused.path(), refused.message(may_know));
        Refusal { reason: Code::ConfigInvalid, message }
    })?;
    if let Some(destination) = directory.to_postmaster() {
        item.destination = Arc::clone(destination);
    }
    let notes = [
        directory.postmaster_elsewhere(),
        checks::left_out(directory.left_out()),
        checks::without_notifications(&unified, &item.destination),
    ];
    warnings.extend(notes.into_iter().flatten().map(|note| format!("spec.special: {note}")));
    item.unified = Some(unified);
    Ok(())
}

/// The domain's pairs of namespaces and accounts decide.
fn allowed(refs: &ReferencedObjects<'_>, spec: &RpopRecordSpec, owner: &str) -> Result<(), Refusal> {
    let (namespace, account) = (&refs.key.namespace, escape(&spec.account));
    // Of a domain with errors nobody knows whom it allows.
    let Some(Ok(usable)) = refs.domain.map(|(_, domain)| &domain.usable) else { return Ok(()) };
    if usable.allow.is_empty() {
        if **namespace == *refs.system {
            return Ok(());
        }
    } else {
        let local = spec.account.rsplit_once('@').map_or("", |(local, _)| local);
        if usable.allow.iter().any(|pair| pair.admits(&refs.namespace.labels, local)) {
            return Ok(());
        }
    }
    let local = shown(spec.account.rsplit_once('@').map_or("", |(local, _)| local));
    refuse(
        Code::NotAllowed,
        format!(
            "namespace {namespace} may not create records for {account}: whoever owns RpopDomain {owner} can write there allow: [{{namespaces: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}, accounts: [\"{local}\"]}}]"
        ),
    )
}
