//! When the latest groups outgrow the head: which runs they merge with, and
//! what chunks that makes. Pure.

use std::collections::BTreeMap;

use super::codec::{Chunk, ChunkRef, Flaw, Head, MOST_CHUNKS, MOST_OCTETS_READ, Run, Seal, pack, unpack};
use super::object::Place;
use crate::domain::ledger::{Change, Ledger};
use crate::engine::ports::LedgerError;

/// Octets of the largest head.
pub(super) const HEAD: usize = 16 << 10;
/// What a batch leaves free of it, for the names of chunks that a fold is
/// about to write.
const ROOM_FOR_NAMES: usize = 16 * MOST_CHUNKS + 64;
/// Octets of a message in a chunk; the largest ledgers are of plain ones. As
/// many as four recipients owed take.
const MESSAGE: u64 = 32;
/// What the engine reckons for one.
const RESERVED: u64 = 200;
/// An object of the API server has at most 1 MiB of data: no UID may have more
/// entries than fit one.
const LARGEST_CHUNK: usize = 1000 << 10;
/// Groups that others override and that are not worth writing anew.
const FEW_DEAD: u64 = 1000;

/// How large a ledger may become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Octets of a head that a batch writes.
    pub(super) head: usize,
    /// Octets of a chunk.
    chunk: usize,
    /// Octets of all chunks when new messages are asked for.
    roomy: u64,
    /// Octets of all chunks when new messages are added.
    full: u64,
}

impl Bounds {
    pub(super) fn new(head: usize, chunk: usize, roomy: u64) -> Self {
        Self { head: head - ROOM_FOR_NAMES, chunk, roomy, full: roomy + roomy / 4 }
    }

    /// Whether what a session may add surely has room, so that nothing is
    /// fetched that could not be remembered.
    pub(super) fn check_room(&self, place: &Place, ledger: &Ledger, octets: u64) -> Result<(), LedgerError> {
        let wanted = octets.div_ceil(RESERVED);
        let most = self.roomy / MESSAGE;
        if ledger.weight() as u64 + wanted <= most {
            return Ok(());
        }
        let contents = ledger.contents();
        Err(full(place, &format!("holds {contents}, {wanted} more are there, and the limit is {most}")))
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self::new(HEAD, 256 << 10, 16 << 20)
    }
}

fn full(place: &Place, why: &str) -> LedgerError {
    LedgerError::Full(format!(
        "{} {why}: delete mail on the server (keepForDays does), or turn leave off",
        place.shown(&place.head)
    ))
}

/// What of a ledger will be there after a commit, at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Live {
    pub(super) entries: u64,
    /// See [`Ledger::weight`].
    pub(super) weight: u64,
}

impl Live {
    pub(super) fn after(ledger: &Ledger, changes: &[Change]) -> Self {
        let grown = changes.iter().filter(|change| change.weight() > 0).count();
        let weight = ledger.weight() + changes.iter().map(Change::weight).sum::<usize>();
        Self { entries: (ledger.len() + grown) as u64, weight: weight as u64 }
    }
}

/// What is merged with the latest groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merge {
    /// So many runs stay, the oldest ones.
    pub(super) kept: usize,
    /// The chunks of the others, oldest first.
    pub(super) chunks: Vec<ChunkRef>,
}

/// The runs that are not at least twice as large as what is newer than they:
/// so there are few runs, and nothing is written anew often. All of them when
/// dead groups outnumber the live ones, or room is short and some of it is
/// taken by what is dead.
pub(super) fn merge(head: &Head, live: Live, bounds: &Bounds) -> Merge {
    // What a chunk has beside its groups is as good as some of them.
    let mut newer: u64 = 64 + head.fresh.values().map(|body| body.len() as u64 + 8).sum::<u64>();
    let dead = head.groups().saturating_sub(live.entries);
    let short = head.octets() + newer > bounds.full || head.chunks().count() > MOST_CHUNKS / 2;
    // A few that were owed to many leave more behind than their number says.
    let large = head.octets() > 2 * live.weight * MESSAGE;
    let all = dead > live.entries + FEW_DEAD || (short && (dead > live.entries / 10 || large));
    let mut kept = head.runs.len();
    while let Some(run) = head.runs[..kept].last() {
        if !all && run.octets() > 2 * newer {
            break;
        }
        newer += run.octets();
        kept -= 1;
    }
    Merge { kept, chunks: head.runs[kept..].iter().flat_map(|run| &run.0).copied().collect() }
}

/// A fold that is ready to be written.
#[derive(Debug)]
pub(super) struct Fold {
    pub(super) chunks: Vec<Chunk>,
    /// The head that names them, without the latest groups; its litter is what
    /// they replace.
    pub(super) head: Head,
}

/// Merges the latest groups with the chunks that [`merge`] named.
///
/// # Errors
/// [`LedgerError::Full`], and [`LedgerError::Damaged`] if a chunk is.
pub(super) fn fold(
    place: &Place,
    bounds: &Bounds,
    head: &Head,
    grows: bool,
    merge: &Merge,
    olds: &[impl AsRef<[u8]>],
) -> Result<Fold, LedgerError> {
    let mut groups = BTreeMap::new();
    for (name, octets) in merge.chunks.iter().zip(olds) {
        let each = |hash, body, _| {
            groups.insert(hash, body);
        };
        unpack(octets.as_ref(), name, head.salt, each)
            .map_err(|flaw: Flaw| place.flawed(&place.chunk(name.seal), flaw))?;
    }
    groups.extend(head.fresh.iter().map(|(hash, body)| (*hash, &**body)));
    let oldest = merge.kept == 0;
    // Nothing older is left that what is forgotten would have to override.
    groups.retain(|_, body| !(oldest && super::codec::Group::is_forgotten(body)));
    let groups: Vec<_> = groups.into_iter().collect();
    let chunks = pack(head.salt, super::call::random(), bounds.chunk, &groups);
    let run = Run(chunks.iter().map(|chunk| chunk.name).collect());
    let litter: Vec<Seal> = merge.chunks.iter().map(|chunk| chunk.seal).collect();
    let mut runs = head.runs[..merge.kept].to_vec();
    runs.extend((!run.0.is_empty()).then_some(run));
    let head = Head { runs, litter, fresh: BTreeMap::new(), ..head.clone() };
    let (octets, count) = (head.octets(), head.chunks().count());
    let too_large = chunks.iter().any(|chunk| chunk.octets.len() > LARGEST_CHUNK);
    if too_large {
        return Err(full(place, "has one UID for more messages than can be told apart"));
    }
    if (grows && octets > bounds.full) || octets > MOST_OCTETS_READ || count > MOST_CHUNKS {
        let most = bounds.full;
        let why =
            format!("would have {octets} octets in {count} chunks, and the limit is {most} in {MOST_CHUNKS}");
        return Err(full(place, &why));
    }
    Ok(Fold { chunks, head })
}
