//! Secrets cannot be watched. A record that failed for the sake of one is
//! looked after: its Secrets are read now and then, and when they are there,
//! or are others, the record is tried again.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::roster::Roster;
use crate::domain::code::Code;
use crate::domain::work::RecordKey;
use crate::engine::ports::SecretError;
use crate::k8s::secrets::ApiSecrets;

/// A missing Secret is looked for first after so long, then ever more seldom.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// A missing Secret is looked for at least this often.
const MISSING: Duration = Duration::from_mins(1);
/// A Secret whose password was refused, or cannot be used.
const WRONG: Duration = Duration::from_mins(2);
/// Between two reads of one worker, whatever ails.
const PACE: Duration = Duration::from_millis(100);
/// Records that are looked after; others wait for their usual turn.
const MOST: usize = 20_000;

struct Ailing {
    code: Code,
    /// The versions of its Secrets at the first look after the failure.
    versions: Option<String>,
    wait: Duration,
    /// Tells the looks of this illness from those of an earlier one.
    due: Instant,
}

/// Looks after records until nobody listens; whoever is worth a try is told to
/// `again`.
pub(super) async fn look_after(
    secrets: ApiSecrets,
    roster: Roster,
    mut ailing: mpsc::Receiver<(RecordKey, Option<Code>)>,
    again: mpsc::Sender<RecordKey>,
) {
    let mut ill: HashMap<RecordKey, Ailing> = HashMap::new();
    let mut looks: BinaryHeap<Reverse<(Instant, RecordKey)>> = BinaryHeap::new();
    loop {
        let next = looks.peek().map(|Reverse((at, _))| *at);
        tokio::select! {
            told = ailing.recv() => {
                let Some((key, code)) = told else { return };
                let Some(code) = code else {
                    ill.remove(&key);
                    continue;
                };
                let known = ill.get(&key).is_some_and(|ailing| ailing.code == code);
                if known || (ill.len() >= MOST && !ill.contains_key(&key)) {
                    continue;
                }
                // What was refused is to be known by its version as soon as may be.
                let due = Instant::now() + if code == Code::SecretMissing { FIRST_LOOK } else { Duration::ZERO };
                ill.insert(key.clone(), Ailing { code, versions: None, wait: FIRST_LOOK, due });
                looks.push(Reverse((due, key)));
            }
            () = sleep_until(next) => {
                let Some(Reverse((at, key))) = looks.pop() else { continue };
                if ill.get(&key).is_none_or(|ailing| ailing.due != at) {
                    continue;
                }
                let Some(entry) = roster.find(&key) else {
                    ill.remove(&key);
                    continue;
                };
                let found = secrets.versions(&entry.item).await;
                let Some(ailing) = ill.get_mut(&key) else { continue };
                if ailing.is_worth_a_try(found) {
                    ill.remove(&key);
                    if again.send(key).await.is_err() {
                        return;
                    }
                } else {
                    ailing.due = Instant::now() + ailing.wait;
                    looks.push(Reverse((ailing.due, key)));
                }
                tokio::time::sleep(PACE).await;
            }
        }
    }
}

impl Ailing {
    fn is_worth_a_try(&mut self, found: Result<String, SecretError>) -> bool {
        let most = if self.code == Code::SecretMissing { MISSING } else { WRONG };
        self.wait = (self.wait * 2).min(most);
        match found {
            Ok(_) if self.code == Code::SecretMissing => true,
            Ok(now) => *self.versions.get_or_insert_with(|| now.clone()) != now,
            // Whatever comes in its place is another one.
            Err(SecretError::Missing(_)) => {
                self.versions.get_or_insert_default();
                false
            }
            Err(SecretError::Unavailable(_)) => false,
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ailing(code: Code) -> Ailing {
        Ailing { code, versions: None, wait: FIRST_LOOK, due: Instant::now() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_secret_is_tried_when_it_is_there_and_asked_for_ever_more_seldom() {
        let mut missing = ailing(Code::SecretMissing);
        for _ in 0..10 {
            assert!(!missing.is_worth_a_try(Err(SecretError::Missing(String::new()))));
        }
        assert_eq!(missing.wait, MISSING);
        assert!(missing.is_worth_a_try(Ok("7".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_password_is_not_tried_again_before_it_is_another_one() {
        let mut refused = ailing(Code::AuthFailed);
        assert!(!refused.is_worth_a_try(Ok("7".to_owned())));
        assert!(!refused.is_worth_a_try(Ok("7".to_owned())));
        assert!(!refused.is_worth_a_try(Err(SecretError::Unavailable(String::new()))));
        assert!(refused.is_worth_a_try(Ok("9".to_owned())));
    }
}
