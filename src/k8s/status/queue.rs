//! What is written next, and how much.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::work::RecordKey;

/// Of so many writes one is not urgent, however many urgent ones wait.
const PATIENT_SHARE: u32 = 8;

/// Records that wait: each once, urgent ones first.
#[derive(Debug, Default)]
pub(super) struct Queues {
    urgent: VecDeque<RecordKey>,
    patient: VecDeque<RecordKey>,
    /// Which of them it is in now: an entry in the other one is void.
    waits: HashMap<RecordKey, bool>,
    turn: u32,
}

impl Queues {
    /// It keeps its place, unless it becomes urgent.
    pub(super) fn put(&mut self, key: &RecordKey, urgent: bool) {
        match self.waits.get_mut(key) {
            Some(now) if *now || !urgent => return,
            Some(now) => *now = true,
            None => {
                self.waits.insert(key.clone(), urgent);
            }
        }
        let queue = if urgent { &mut self.urgent } else { &mut self.patient };
        queue.push_back(key.clone());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waits.is_empty()
    }

    pub(super) fn next(&mut self) -> Option<RecordKey> {
        self.turn = self.turn.wrapping_add(1);
        let patient_first = self.turn.is_multiple_of(PATIENT_SHARE);
        for urgent in [!patient_first, patient_first] {
            let queue = if urgent { &mut self.urgent } else { &mut self.patient };
            while let Some(key) = queue.pop_front() {
                if self.waits.get(&key) == Some(&urgent) {
                    self.waits.remove(&key);
                    return Some(key);
                }
            }
        }
        None
    }
}

/// A bucket of writes that fills with time.
#[derive(Debug)]
pub(super) struct Budget {
    /// A second, of all workers.
    all: f64,
    workers: f64,
    filled: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(all: f64) -> Self {
        Self { all, workers: 1.0, filled: all, at: Instant::now() }
    }

    fn rate(&self) -> f64 {
        self.all / self.workers
    }

    /// Two seconds' worth, and enough for a few changes at once.
    fn most(&self) -> f64 {
        (2.0 * self.rate()).max(10.0)
    }

    pub(super) fn divide(&mut self, workers: usize, now: Instant) {
        self.fill(now);
        self.workers = workers.max(1) as f64;
        self.filled = self.filled.min(self.most());
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.filled = (self.filled + passed * self.rate()).min(self.most());
        self.at = now;
    }

    /// One write, or how long to wait for it.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        if self.filled >= 1.0 {
            self.filled -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((1.0 - self.filled) / self.rate()).max(Duration::from_millis(1)))
        }
    }

    pub(super) fn give_back(&mut self) {
        self.filled += 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(at: usize) -> RecordKey {
        RecordKey { namespace: "mail".into(), name: format!("r{at}").into() }
    }

    #[test]
    fn changes_come_first_and_nobody_waits_for_ever() {
        let mut queues = Queues::default();
        for at in 0..100 {
            queues.put(&key(at), at >= 50);
        }
        queues.put(&key(0), true);
        let order: Vec<RecordKey> = std::iter::from_fn(|| queues.next()).collect();
        assert_eq!(order.len(), 100, "each once");
        let place = |at: usize| order.iter().position(|other| *other == key(at)).unwrap();
        assert!(place(0) < 60, "it has become urgent");
        assert!(place(1) < PATIENT_SHARE as usize);
        let patient_before = (1..50).filter(|at| place(*at) < place(99)).count();
        assert!((5..=8).contains(&patient_before), "{patient_before}");
        assert!(queues.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_shared_and_kept() {
        let mut budget = Budget::new(50.0);
        for (workers, wanted) in [(1, 500..=610), (10, 49..=65)] {
            budget.divide(workers, Instant::now());
            let until = Instant::now() + Duration::from_secs(10);
            let mut count = 0;
            while Instant::now() < until {
                match budget.take(Instant::now()) {
                    Ok(()) => count += 1,
                    Err(wait) => tokio::time::sleep(wait).await,
                }
            }
            assert!(wanted.contains(&count), "{workers}: {count}");
        }
    }
}
