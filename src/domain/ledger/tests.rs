use super::*;
use crate::domain::work::OnUidChange;

const DAY: i64 = 86_400;

fn keep() -> SurveyPolicy {
    SurveyPolicy {
        now: 20_000 * DAY,
        leave: true,
        keep_for_days: None,
        delete_seen: false,
        on_uid_change: OnUidChange::Pause,
    }
}

fn entry(state: State, size: u64, digest: u64) -> Entry {
    Entry { state, day: 20_000, size, message_id: 0, digest }
}

fn put(uid: &str, entry: Entry) -> Change {
    Change::Put { uid: uid.as_bytes().into(), entry }
}

fn ledger(changes: &[Change]) -> Ledger {
    let mut ledger = Ledger::new([7; 16]);
    changes.iter().for_each(|change| ledger.apply(change));
    ledger
}

fn list(ledger: &Ledger, policy: SurveyPolicy, uids: &[&str]) -> Findings {
    let mut survey = ledger.survey(policy);
    for (at, uid) in uids.iter().enumerate() {
        survey.see(u32::try_from(at + 1).unwrap(), uid.as_bytes());
    }
    survey.finish()
}

fn numbers(found: &Findings) -> Vec<u32> {
    found.unseen.iter().map(|candidate| candidate.number).collect()
}

#[test]
fn what_is_kept_is_neither_fetched_nor_deleted() {
    let ledger = ledger(&[put("a", entry(State::Kept, 1, 1))]);
    let found = list(&ledger, keep(), &["a", "b"]);
    assert_eq!((numbers(&found), found.known, found.listed), (vec![2], 1, 2));
    assert!(found.delete.is_empty() && found.pruning.is_empty() && !found.all_changed);
}
