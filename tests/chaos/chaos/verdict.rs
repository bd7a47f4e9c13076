//! What became of the mail.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::CHECKPOINT;
use super::drama::Act;
use super::sink::Accepted;

/// Trouble that may have repeated messages.
#[derive(Debug)]
pub struct Trouble {
    pub act: Act,
    pub from: Instant,
    pub until: Instant,
}

/// All that is to be judged.
pub struct Verdict {
    pub sent: usize,
    /// Messages still in their maildrops.
    pub left: usize,
    pub accepted: Accepted,
    pub deleted: BTreeSet<String>,
    pub troubles: Vec<Trouble>,
    /// How long trouble may last on.
    pub grace: Duration,
}

impl Verdict {
    /// Every message arrived and is deleted; it was repeated only by trouble,
    /// and within the checkpoint.
    pub fn judge(&self) -> Result<(), String> {
        let lost: Vec<_> = self.deleted.iter().filter(|mark| !self.accepted.contains_key(*mark)).collect();
        if !lost.is_empty() {
            return Err(format!("{} messages are lost: {:?}…", lost.len(), &lost[..lost.len().min(5)]));
        }
        if self.accepted.len() < self.sent || self.left > 0 {
            let (arrived, sent) = (self.accepted.len(), self.sent);
            return Err(format!(
                "{arrived} of {sent} messages arrived, {} are still in their maildrops",
                self.left
            ));
        }
        let mut repeats: BTreeMap<(usize, &str), usize> = BTreeMap::new();
        for (mark, times) in &self.accepted {
            for time in times.iter().rev().skip(1) {
                let trouble = self.troubles.iter().rposition(|trouble| {
                    *time + Duration::from_secs(10) >= trouble.from && *time <= trouble.until + self.grace
                });
                let Some(trouble) = trouble else {
                    return Err(format!("{mark} is repeated, and nothing had happened"));
                };
                let account = mark.split('.').next().unwrap_or_default();
                *repeats.entry((trouble, account)).or_default() += 1;
            }
        }
        println!("{} messages, {} repeated", self.sent, repeats.values().sum::<usize>());
        for (at, trouble) in self.troubles.iter().enumerate() {
            let of_it: Vec<_> = repeats.iter().filter(|((of, _), _)| *of == at).collect();
            if let Some(((_, account), most)) = of_it.iter().max_by_key(|(_, count)| **count) {
                let all: usize = of_it.iter().map(|(_, count)| **count).sum();
                println!("  {:?} repeats {all} messages of {} maildrops", trouble.act, of_it.len());
                // Of a long trouble with several deaths each may repeat as many.
                let deaths = match trouble.act {
                    Act::Roll | Act::Scale => 12,
                    _ => 1,
                };
                if **most > CHECKPOINT * deaths {
                    return Err(format!("{most} messages of {account} are repeated by {:?}", trouble.act));
                }
            }
        }
        Ok(())
    }
}
