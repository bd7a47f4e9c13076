//! The protocol of the distribution, model-checked: every order of events that
//! two workers, two leaders, late requests, crashes, pauses and partitions can
//! bring about, within a bound on how much goes wrong. And the same protocol
//! with one thing left out, which must be found out.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::unused_self,
    clippy::struct_excessive_bools,
    missing_docs,
    unreachable_pub,
    reason = "in tests a failed expectation is a failed test"
)]

mod leader;
mod protocol;
mod state;
mod worker;

use protocol::{Mutant, Protocol};
use state::Budget;
use stateright::{Checker, HasDiscoveries, Model};

/// Every state is visited; every invariant holds, everything hoped for happens.
fn holds(protocol: Protocol) {
    let checker = protocol.checker().spawn_bfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    assert!(checker.is_done());
    checker.assert_properties();
}

/// An invariant breaks whose name begins so.
fn is_caught(protocol: Protocol, invariants: &[&str]) {
    let mutant = protocol.mutant.unwrap();
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let found: Vec<_> = checker.discoveries().into_iter().collect();
    println!("{mutant:?}: {} states", checker.unique_state_count());
    for (name, path) in &found {
        println!("  {name}: {:?}", path.clone().into_actions());
    }
    assert!(
        found.iter().any(|(name, _)| invariants.iter().any(|invariant| name.starts_with(invariant))),
        "{mutant:?} passes"
    );
}

/// One shard moves between two workers; two leaders act, one out of date.
fn shards() -> Protocol {
    Protocol {
        shards: 1,
        leaders: 2,
        budget: Budget { crashes: 1, moves: 1, renewals: 1, ..Budget::default() },
        ..Protocol::default()
    }
}

/// Workers are stopped and cut off.
fn fencing() -> Protocol {
    Protocol {
        shards: 1,
        leaders: 1,
        budget: Budget { pauses: 1, fences: 1, renewals: 1, losses: 1, ..Budget::default() },
        ..Protocol::default()
    }
}

/// A record moves between two shards while they move, too.
fn records() -> Protocol {
    Protocol {
        shards: 2,
        leaders: 1,
        budget: Budget { edits: 1, moves: 2, ..Budget::default() },
        ..Protocol::default()
    }
}

fn with(mutant: Mutant, mut protocol: Protocol) -> Protocol {
    protocol.mutant = Some(mutant);
    protocol
}

#[test]
fn a_shard_has_one_worker_whoever_crashes() {
    holds(shards());
}

#[test]
fn a_worker_that_is_stopped_or_cut_off_never_acts_late() {
    holds(fencing());
}

#[test]
fn a_record_has_one_worker_while_it_moves() {
    holds(records());
}

/// Its old or its new worker dies on the way.
fn records_and_crashes() -> Protocol {
    Protocol { budget: Budget { edits: 1, crashes: 1, ..Budget::default() }, ..records() }
}

#[test]
fn a_record_has_one_worker_while_it_moves_and_workers_die() {
    holds(records_and_crashes());
}

/// Somebody deletes slices while the record moves.
fn deletions() -> Protocol {
    Protocol { budget: Budget { edits: 1, deletions: 1, moves: 1, ..Budget::default() }, ..records() }
}

#[test]
fn a_record_has_one_worker_although_slices_are_deleted_by_hand() {
    holds(deletions());
}

/// Leases run out under workers that do not notice, so that two poll at once:
/// repeats, but nothing is lost and nothing deleted too early.
fn blind() -> Protocol {
    Protocol {
        shards: 1,
        leaders: 1,
        budget: Budget { fences: 1, losses: 1, ..Budget::default() },
        broken_clocks: true,
        ..Protocol::default()
    }
}

#[test]
fn without_clocks_the_ledger_still_keeps_the_mail_safe() {
    holds(blind());
}

#[test]
fn a_lease_stolen_whatever_its_version_is_found_out() {
    is_caught(with(Mutant::StealWithoutCas, shards()), &["I1", "I6"]);
}

#[test]
fn an_incarnation_used_twice_is_found_out() {
    is_caught(with(Mutant::ReuseIncarnation, shards()), &["I1", "I6"]);
}

#[test]
fn a_shard_written_whatever_its_version_is_found_out() {
    is_caught(with(Mutant::WriteWithoutCas, shards()), &["I1", "I4", "I6"]);
}

#[test]
fn a_hand_over_before_the_session_ends_is_found_out() {
    is_caught(with(Mutant::HandOverEarly, shards()), &["I1"]);
}

#[test]
fn a_deletion_before_its_commit_is_found_out() {
    is_caught(with(Mutant::DeleteEarly, shards()), &["I2"]);
}

#[test]
fn a_record_added_before_it_is_removed_is_found_out() {
    is_caught(with(Mutant::AddFirst, records()), &["I1"]);
}

#[test]
fn a_record_added_before_its_removal_is_acknowledged_is_found_out() {
    is_caught(with(Mutant::AddUnacknowledged, records()), &["I1"]);
}

#[test]
fn a_removal_acknowledged_before_the_session_ends_is_found_out() {
    is_caught(with(Mutant::AckBeforeEnd, records()), &["I1"]);
}

#[test]
fn a_slice_read_under_an_earlier_holding_is_found_out() {
    is_caught(with(Mutant::StaleSlice, records()), &["I1"]);
}

#[test]
fn a_new_slice_acknowledged_by_a_generation_of_the_old_one_is_found_out() {
    is_caught(with(Mutant::AckByGeneration, deletions()), &["I1"]);
}

#[test]
fn a_new_slice_taken_for_all_that_was_ever_there_is_found_out() {
    is_caught(with(Mutant::TrustTheNewSlice, deletions()), &["I1"]);
}
