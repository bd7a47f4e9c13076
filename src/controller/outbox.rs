//! What is to be written, in the order in which it came up: one write at a
//! time for each object, few at once, not too often, and again after a pause
//! where the API server could not take it. Pure: time is an argument.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::time::Duration;

use tokio::time::Instant;

/// The first pause; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How many writes there may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// At once.
    pub(super) at_once: usize,
    /// On an average, in a second.
    pub(super) rate: f64,
    /// So many may follow one another without a pause.
    pub(super) burst: f64,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Done, or of no use any more.
    Done,
    /// To be tried again, and not before so long.
    Again(Option<Duration>),
}

struct Waiting<J> {
    job: J,
    due: (Instant, u64),
}

/// See the module's page.
pub(super) struct Outbox<K, J> {
    budget: Budget,
    waiting: HashMap<K, Waiting<J>>,
    /// When each is due; those of one moment in the order they came.
    due: BTreeMap<(Instant, u64), K>,
    running: HashSet<K>,
    failures: HashMap<K, u32>,
    count: u64,
    tokens: f64,
    filled: Instant,
    /// The API server asked for patience.
    quiet_until: Instant,
}

impl<K: Clone + Eq + Hash, J> Outbox<K, J> {
    pub(super) fn new(budget: Budget, now: Instant) -> Self {
        Self {
            budget,
            waiting: HashMap::new(),
            due: BTreeMap::new(),
            running: HashSet::new(),
            failures: HashMap::new(),
            count: 0,
            tokens: budget.burst,
            filled: now,
            quiet_until: now,
        }
    }

    /// To be written. What waits for the same object is replaced, and keeps
    /// its place.
    pub(super) fn put(&mut self, key: K, job: J, now: Instant) {
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.job = job;
            return;
        }
        self.enqueue(key, job, now);
    }

    fn enqueue(&mut self, key: K, job: J, at: Instant) {
        self.count += 1;
        let due = (at, self.count);
        self.due.insert(due, key.clone());
        self.waiting.insert(key, Waiting { job, due });
    }

    /// What waits for this object is of no use any more.
    pub(super) fn drop_waiting(&mut self, key: &K) {
        if let Some(waiting) = self.waiting.remove(key) {
            self.due.remove(&waiting.due);
        }
    }

    /// The next write, if one may begin. It runs until [`Outbox::ended`].
    pub(super) fn next(&mut self, now: Instant) -> Option<(K, J)> {
        self.fill(now);
        if self.running.len() >= self.budget.at_once || self.tokens < 1.0 || now < self.quiet_until {
            return None;
        }
        let next = self.due.range(..=(now, u64::MAX)).find(|(_, key)| !self.running.contains(*key));
        let (due, key) = next.map(|(due, key)| (*due, key.clone()))?;
        self.due.remove(&due);
        let waiting = self.waiting.remove(&key)?;
        self.tokens -= 1.0;
        self.running.insert(key.clone());
        Some((key, waiting.job))
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * self.budget.rate).min(self.budget.burst);
        self.filled = now;
    }

    /// A write ended; `job` is what to try again.
    pub(super) fn ended(&mut self, key: K, job: J, ended: Ended, now: Instant) {
        self.running.remove(&key);
        match ended {
            Ended::Done => {
                self.failures.remove(&key);
            }
            Ended::Again(asked) => {
                let failures = self.failures.entry(key.clone()).or_insert(0);
                *failures = failures.saturating_add(1);
                let pause = pause(*failures).max(asked.unwrap_or_default());
                self.quiet_for(asked.unwrap_or_default(), now);
                // Newer than what failed, but the server is no better for it.
                let job = self.waiting.remove(&key).map_or(job, |newer| {
                    self.due.remove(&newer.due);
                    newer.job
                });
                self.enqueue(key, job, now + pause);
            }
        }
    }

    /// The API server asks for patience: nothing begins before that.
    pub(super) fn quiet_for(&mut self, asked: Duration, now: Instant) {
        self.quiet_until = self.quiet_until.max(now + asked.min(LONGEST_PAUSE));
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When [`Outbox::next`] is worth a call, if nothing ends until then.
    pub(super) fn next_at(&self, now: Instant) -> Option<Instant> {
        if self.running.len() >= self.budget.at_once {
            return None;
        }
        let (due, _) = self.due.iter().find(|(_, key)| !self.running.contains(*key))?.0;
        let missing = (1.0 - self.tokens).max(0.0) / self.budget.rate;
        let filled = self.filled + Duration::from_secs_f64(missing);
        Some((*due).max(filled).max(self.quiet_until).max(now))
    }
}

/// With jitter: many writers that failed together do not come back together.
fn pause(failures: u32) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
    let random = RandomState::new().hash_one(failures) % 512;
    // From a half to the whole.
    whole / 2 + whole.mul_f64(f64::from(u32::try_from(random).unwrap_or(0)) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: Budget = Budget { at_once: 2, rate: 10.0, burst: 3.0 };

    fn outbox(now: Instant) -> Outbox<&'static str, u32> {
        Outbox::new(BUDGET, now)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_newer_takes_the_place_of_what_waits() {
        let now = Instant::now();
        let mut outbox = outbox(now);
        outbox.put("a", 1, now);
        outbox.put("b", 2, now);
        outbox.put("a", 3, now);
        assert_eq!(outbox.next(now), Some(("a", 3)));
        outbox.put("a", 4, now);
        assert_eq!(outbox.next(now), Some(("b", 2)));
        assert_eq!(outbox.next(now), None, "two at once, and one a object");
        outbox.ended("a", 3, Ended::Done, now);
        assert_eq!(outbox.next(now), Some(("a", 4)));
    }

    #[tokio::test(start_paused = true)]
    async fn writes_keep_to_the_rate() {
        let now = Instant::now();
        let mut outbox = outbox(now);
        for name in ["a", "b", "c", "d"] {
            outbox.put(name, 0, now);
        }
        for _ in 0..3 {
            let (key, job) = outbox.next(now).unwrap();
            outbox.ended(key, job, Ended::Done, now);
        }
        assert_eq!(outbox.next(now), None);
        let later = outbox.next_at(now).unwrap();
        assert_eq!(later - now, Duration::from_millis(100));
        assert!(outbox.next(later).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_failed_is_tried_again_later_and_later_with_what_is_newest() {
        let now = Instant::now();
        let mut outbox = outbox(now);
        outbox.put("a", 1, now);
        let mut pauses = Vec::new();
        let mut at = now;
        for _ in 0..12 {
            let (key, job) = outbox.next(at).unwrap();
            outbox.put("a", 2, at);
            outbox.ended(key, job, Ended::Again(None), at);
            assert_eq!(outbox.next(at), None);
            let next = outbox.next_at(at).unwrap();
            pauses.push(next - at);
            at = next;
        }
        assert!(pauses[0] >= FIRST_PAUSE / 2 && pauses[0] <= FIRST_PAUSE);
        assert!(pauses[11] >= LONGEST_PAUSE / 2 && pauses[11] <= LONGEST_PAUSE, "{pauses:?}");
        assert_eq!(outbox.next(at), Some(("a", 2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_asks_for_patience_gets_it_from_all() {
        let now = Instant::now();
        let mut outbox = outbox(now);
        outbox.put("a", 1, now);
        let (key, job) = outbox.next(now).unwrap();
        outbox.ended(key, job, Ended::Again(Some(Duration::from_secs(4))), now);
        outbox.put("b", 1, now);
        assert_eq!(outbox.next(now), None);
        let at = outbox.next_at(now).unwrap();
        assert_eq!(at - now, Duration::from_secs(4));
        assert!(outbox.next(at).is_some());
    }
}
