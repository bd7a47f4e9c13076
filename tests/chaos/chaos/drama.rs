//! The troubles, and what must hold in each of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::fleet::{Fleet, Places, account};
use super::verdict::{Trouble, Verdict};

/// Shards that may be on their way for the sake of balance.
const BALANCING: usize = 8;

/// Some trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// kill -9 of a worker whose node is gone.
    Kill,
    /// kill -9 of a worker that starts again in the same pod.
    Restart,
    /// SIGTERM to a worker; another one comes.
    Terminate,
    /// SIGSTOP for so long, then SIGCONT.
    Freeze(Duration),
    /// kill -9 of the leader.
    KillLeader,
    /// No controller for so long.
    NoLeader(Duration),
    /// etcd stops for moments.
    SlowEtcd,
    /// The API server is killed and stays away for so long.
    Outage(Duration),
    /// Five workers, two, eight, five.
    Scale,
    /// All workers are replaced one by one.
    Roll,
}

/// A fleet in trouble.
pub struct Drama {
    pub fleet: Fleet,
    dice: u64,
    workers: usize,
    traffic: Traffic,
    troubles: Vec<Trouble>,
    /// How long shards were without a worker after its death.
    fail_overs: Vec<Duration>,
    epochs: BTreeMap<String, i64>,
}

/// Mail that arrives.
struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
}

impl Traffic {
    /// Forty messages a second; sometimes many at once for one maildrop.
    fn start(fleet: &Fleet, seed: u64) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let (drops, records) = (fleet.drops.clone(), fleet.size.records);
        tokio::spawn(async move {
            let mut dice = seed;
            while !stopped.load(Ordering::SeqCst) {
                let account = account(roll(&mut dice, records));
                for _ in 0..if roll(&mut dice, 50) == 0 { 45 } else { 1 } {
                    let at = count.fetch_add(1, Ordering::SeqCst);
                    drops.put(&account, &format!("{account}.{at}"));
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        Self { stop, sent }
    }
}

fn roll(dice: &mut u64, sides: usize) -> usize {
    *dice = dice.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *dice;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
}

impl Drama {
    /// Two controllers and so many workers; all maildrops have been polled.
    pub async fn begin(mut fleet: Fleet, seed: u64, workers: usize) -> Self {
        fleet.add_controller().await;
        fleet.add_controller().await;
        for _ in 0..workers {
            fleet.add_worker().await;
        }
        let took = fleet.settle(Duration::from_mins(1)).await;
        println!("all shards are placed after {took:?}");
        let traffic = Traffic::start(&fleet, seed);
        let limit = fleet.size.poll_every * 3 + Duration::from_secs(30);
        let since = Instant::now();
        while fleet.drops.untouched() > 0 {
            let untouched = fleet.drops.untouched();
            assert!(since.elapsed() < limit, "{untouched} maildrops are never polled\n{}", fleet.logs());
            sleep(Duration::from_millis(200)).await;
        }
        println!("all maildrops are polled after {:?}", since.elapsed());
        let (troubles, fail_overs, epochs) = (Vec::new(), Vec::new(), BTreeMap::new());
        Self { fleet, dice: seed, workers, traffic, troubles, fail_overs, epochs }
    }

    fn roll(&mut self, sides: usize) -> usize {
        roll(&mut self.dice, sides)
    }

    /// All kinds of trouble in any order.
    pub fn shuffled(&mut self) -> Vec<Act> {
        let seconds = Duration::from_secs;
        let mut acts = vec![
            Act::Kill,
            Act::Restart,
            Act::Terminate,
            Act::Freeze(seconds(30)),
            Act::KillLeader,
            Act::NoLeader(seconds(20)),
            Act::SlowEtcd,
            Act::Outage(seconds(60)),
            Act::Scale,
            Act::Roll,
        ];
        for at in (1..acts.len()).rev() {
            let with = self.roll(at + 1);
            acts.swap(at, with);
        }
        acts
    }

    /// Some kind of trouble.
    pub fn any(&mut self) -> Act {
        let seconds = |count: usize| Duration::from_secs(count as u64);
        match self.roll(12) {
            0..3 => Act::Kill,
            3 => Act::Restart,
            4 => Act::Terminate,
            5..7 => Act::Freeze(seconds(2 + self.roll(40))),
            7 => Act::KillLeader,
            8 => Act::NoLeader(seconds(5 + self.roll(30))),
            9 => Act::SlowEtcd,
            10 => Act::Outage(seconds(3 + self.roll(60))),
            _ => Act::Roll,
        }
    }

    /// One act, up to the moment when all is well again.
    pub async fn play(&mut self, act: Act) {
        // Not always at the same moment of everybody's rhythm.
        let pause = Duration::from_millis(self.roll(3000) as u64);
        sleep(pause).await;
        let (from, sessions) = (Instant::now(), self.fleet.drops.open());
        let logins = self.fleet.drops.logins();
        match act {
            Act::Kill => self.kill().await,
            Act::Restart => self.restart().await,
            Act::Terminate => self.terminate().await,
            Act::Freeze(span) => self.freeze(span).await,
            Act::KillLeader => self.kill_leader().await,
            Act::NoLeader(span) => self.no_leader(span).await,
            Act::SlowEtcd => self.slow_etcd().await,
            Act::Outage(span) => self.outage(span).await,
            Act::Scale => self.scale().await,
            Act::Roll => self.replace_all().await,
        }
        self.fleet.settle(self.patience()).await;
        self.check().await;
        let polls = self.fleet.drops.logins() - logins;
        println!(
            "{act:?}: {:?}, {sessions} sessions open when it began, {polls} polls meanwhile",
            from.elapsed()
        );
        self.troubles.push(Trouble { act, from, until: Instant::now() });
    }

    /// Waits for the end of all mail, and judges.
    pub async fn end(mut self) {
        self.traffic.stop.store(true, Ordering::SeqCst);
        sleep(Duration::from_millis(200)).await;
        let sent = self.traffic.sent.load(Ordering::SeqCst);
        let (since, limit) = (Instant::now(), self.fleet.size.poll_every * 4 + Duration::from_secs(30));
        while since.elapsed() < limit && (self.fleet.drops.left() > 0 || self.fleet.sink.count() < sent) {
            sleep(Duration::from_millis(200)).await;
        }
        self.check().await;
        let verdict = Verdict {
            sent,
            left: self.fleet.drops.left(),
            accepted: self.fleet.sink.accepted(),
            deleted: self.fleet.drops.deleted(),
            troubles: self.troubles,
            grace: self.fleet.size.dead_after,
        };
        let gaps = self.fleet.drops.take_gaps();
        let share = |part: usize| gaps.get(gaps.len() * part / 100).copied().unwrap_or_default();
        println!(
            "{} polls; between two of the same maildrop: median {:?}, p99 {:?}, most {:?}",
            self.fleet.drops.logins(),
            share(50),
            share(99),
            gaps.last()
        );
        println!("fail-overs: {:?}", self.fail_overs);
        if let Err(why) = verdict.judge() {
            panic!("{why}\n{}", self.fleet.logs());
        }
    }

    fn patience(&self) -> Duration {
        self.fleet.size.dead_after * 2 + Duration::from_secs(45)
    }

    /// What must hold at any time.
    async fn check(&mut self) {
        let doubles = self.fleet.drops.doubles();
        assert!(
            doubles.is_empty(),
            "{} commands of an older session are obeyed, the first: {:?}\n{}",
            doubles.len(),
            doubles[0],
            self.fleet.logs()
        );
        for (shard, (_, epoch)) in self.fleet.shards().await.unwrap_or_default() {
            let before = self.epochs.insert(shard.clone(), epoch).unwrap_or(0);
            assert!(epoch >= before, "the epoch of {shard} falls from {before} to {epoch}");
        }
        for worker in &self.fleet.workers {
            let text = worker.running.text();
            assert!(!text.contains("panicked at"), "{} panics:\n{text}", worker.name());
        }
    }

    fn some_worker(&mut self) -> usize {
        let count = self.fleet.workers.len();
        self.roll(count)
    }

    /// Waits until no shard is held by that pod's process any more.
    async fn failed_over(&mut self, holder: &str, from: Instant) {
        let limit = self.fleet.size.dead_after + Duration::from_secs(3);
        // Says how well the API server was meanwhile: a leader that cannot
        // read counts afresh, and says so.
        let (mut slowest, doubts) = (Duration::ZERO, self.fleet.doubts());
        loop {
            let asked = Instant::now();
            let shards = self.fleet.shards().await;
            slowest = slowest.max(asked.elapsed());
            if let Some(shards) = shards {
                let left = shards.values().filter(|(name, _)| name == holder).count();
                if left == 0 {
                    break;
                }
                let late = from.elapsed();
                assert!(
                    late < limit * 3,
                    "{left} shards stay at {holder}, dead for {late:?}\n{}",
                    self.fleet.logs()
                );
            }
            sleep(Duration::from_millis(100)).await;
        }
        let took = from.elapsed();
        let doubts = self.fleet.doubts() - doubts;
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        println!(
            "  fail-over in {took:?}; slowest answer of the API server {slowest:?}; \
             doubts of the leader {doubts}; load {}",
            load.trim()
        );
        self.fail_overs.push(took);
        // By the protocol a leader that cannot read counts afresh: what its
        // blindness costs is not to be held against it, only bounded.
        let blind = slowest >= self.fleet.size.dead_after / 8;
        let limit = if blind { limit * 3 } else { limit };
        assert!(
            took <= limit,
            "the shards of {holder} are without a worker for {took:?}, more than {limit:?}; \
             the slowest answer of the API server took {slowest:?}, and the leader said {doubts} times \
             that it cannot tell who is dead\n{}",
            self.fleet.logs()
        );
    }

    /// Pod and boot of a worker, as shards name it. One that was just started
    /// is given its first shards when the others are at rest: that is awaited.
    async fn holder_at(&self, at: usize) -> String {
        let prefix = format!("{}/", self.fleet.workers[at].name());
        let limit = self.fleet.size.dead_after + Duration::from_secs(30);
        let since = Instant::now();
        loop {
            let shards = self.fleet.shards().await.unwrap_or_default();
            let mut holders = shards.into_values().map(|(holder, _)| holder);
            if let Some(holder) = holders.find(|holder| holder.starts_with(&prefix)) {
                return holder;
            }
            assert!(
                since.elapsed() < limit,
                "{prefix} holds no shard after {limit:?}\n{}",
                self.fleet.logs()
            );
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn kill(&mut self) {
        let at = self.some_worker();
        let (holder, from) = (self.holder_at(at).await, Instant::now());
        self.fleet.kill_worker(at);
        self.failed_over(&holder, from).await;
        self.fleet.add_worker().await;
    }

    async fn restart(&mut self) {
        let at = self.some_worker();
        let (holder, from) = (self.holder_at(at).await, Instant::now());
        self.fleet.restart_worker(at);
        self.failed_over(&holder, from).await;
    }

    async fn terminate(&mut self) {
        let at = self.some_worker();
        self.terminate_one(at).await;
        self.fleet.add_worker().await;
    }

    /// SIGTERM; the worker has handed over everything when it ends.
    async fn terminate_one(&mut self, at: usize) {
        let holder = self.holder_at(at).await;
        let name = self.fleet.workers[at].name().to_owned();
        self.fleet.workers[at].signal(Signal::TERM);
        let status = self.fleet.outlast_worker(&name, Duration::from_mins(1)).await;
        assert!(status.success(), "{name} ends with {status}\n{}", self.fleet.logs());
        let shards = self.fleet.shards().await.unwrap_or_default();
        let left = shards.values().filter(|(name, _)| *name == holder).count();
        assert_eq!(left, 0, "{holder} ends and holds shards\n{}", self.fleet.logs());
    }

    async fn freeze(&mut self, span: Duration) {
        let at = self.some_worker();
        let (holder, from) = (self.holder_at(at).await, Instant::now());
        let name = self.fleet.workers[at].name().to_owned();
        self.fleet.workers[at].signal(Signal::STOP);
        if span > self.fleet.size.dead_after + Duration::from_secs(4) {
            self.failed_over(&holder, from).await;
        }
        sleep(span.saturating_sub(from.elapsed())).await;
        let worker = self.fleet.workers.iter().find(|worker| worker.name() == name).expect("the worker");
        worker.signal(Signal::CONT);
        // A worker that was taken for dead ends; the kubelet starts it again.
        self.revive_for(Duration::from_secs(5)).await;
    }

    async fn revive_for(&mut self, span: Duration) {
        let until = Instant::now() + span;
        while Instant::now() < until {
            self.fleet.revive();
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn leader(&self) -> Option<usize> {
        use k8s_openapi::api::coordination::v1::Lease;
        let leases = kube::Api::<Lease>::namespaced(self.fleet.client.clone(), super::fleet::SYSTEM);
        let holder = leases.get("rpop-controller").await.ok()?.spec?.holder_identity?;
        self.fleet.controllers.iter().position(|controller| {
            holder == controller.name() || holder.starts_with(&format!("{}/", controller.name()))
        })
    }

    async fn kill_leader(&mut self) {
        let at = self.leader().await.expect("a controller leads");
        let identity = self.fleet.kill_controller(at);
        self.polling_goes_on(Duration::from_secs(10)).await;
        self.fleet.start_controller(identity);
        // Somebody leads again: a worker's death is noticed.
        let limit = Duration::from_secs(45);
        let since = Instant::now();
        while self.leader().await.is_none() {
            assert!(since.elapsed() < limit, "nobody leads\n{}", self.fleet.logs());
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn no_leader(&mut self, span: Duration) {
        let mut identities = Vec::new();
        while !self.fleet.controllers.is_empty() {
            identities.push(self.fleet.kill_controller(0));
        }
        // What was on its way arrives.
        sleep(Duration::from_secs(3)).await;
        let before = self.fleet.shards().await;
        self.polling_goes_on(span).await;
        assert_eq!(self.fleet.shards().await, before, "shards move without a leader");
        for identity in identities {
            self.fleet.start_controller(identity);
        }
        self.nothing_moves(before, Duration::from_secs(15)).await;
    }

    /// As many polls as there should be, or nearly.
    async fn polling_goes_on(&mut self, span: Duration) {
        let before = self.fleet.drops.logins();
        sleep(span).await;
        let polls = self.fleet.drops.logins() - before;
        let due =
            self.fleet.size.records as f64 * span.as_secs_f64() / self.fleet.size.poll_every.as_secs_f64();
        assert!(polls as f64 > due * 0.5, "{polls} polls in {span:?}, {due} were due\n{}", self.fleet.logs());
    }

    async fn slow_etcd(&mut self) {
        let before = self.fleet.shards().await;
        for _ in 0..4 {
            self.fleet.server.freeze_etcd(true);
            let pause = Duration::from_millis(300 + self.roll(1200) as u64);
            sleep(pause).await;
            self.fleet.server.freeze_etcd(false);
            sleep(Duration::from_secs(2)).await;
        }
        self.nothing_moves(before, Duration::from_secs(1)).await;
    }

    async fn outage(&mut self, span: Duration) {
        let before = self.fleet.shards().await;
        let names: Vec<_> = self.fleet.workers.iter().map(|worker| worker.name().to_owned()).collect();
        self.fleet.server.stop();
        let until = Instant::now() + span;
        while Instant::now() < until {
            self.fleet.revive();
            sleep(Duration::from_millis(500)).await;
        }
        tokio::task::block_in_place(|| self.fleet.server.restart());
        let span = self.fleet.size.dead_after + Duration::from_secs(8);
        self.nothing_moves(before, span).await;
        for worker in &mut self.fleet.workers {
            let name = worker.name().to_owned();
            assert!(names.contains(&name) && worker.running.runs(), "{name} ends after an outage");
        }
        let members = self.fleet.members().await.unwrap_or_default();
        let stolen: Vec<_> = names
            .iter()
            .filter(|name| members.iter().any(|(_, holder)| holder.starts_with(&format!("stolen/{name}/"))))
            .collect();
        assert!(
            stolen.is_empty(),
            "living workers are taken for dead after an outage: {stolen:?}\n{}",
            self.fleet.logs()
        );
        self.polling_goes_on(Duration::from_secs(8)).await;
    }

    /// For so long shards stay where they are, but for those that are moved
    /// for balance: no worker has died.
    async fn nothing_moves(&mut self, before: Option<Places>, span: Duration) {
        let (before, until) = (before.expect("what was before"), Instant::now() + span);
        while Instant::now() < until {
            if let Some(now) = self.fleet.shards().await {
                let moved = now.iter().filter(|(shard, status)| before.get(*shard) != Some(status)).count();
                assert!(moved <= BALANCING, "{moved} shards of living workers move\n{}", self.fleet.logs());
            }
            sleep(Duration::from_millis(300)).await;
        }
    }

    async fn scale(&mut self) {
        while self.fleet.workers.len() > 2 {
            let at = self.some_worker();
            self.terminate_one(at).await;
        }
        self.fleet.settle(self.patience()).await;
        while self.fleet.workers.len() < 8 {
            self.fleet.add_worker().await;
        }
        self.fleet.settle(self.patience()).await;
        sleep(Duration::from_secs(5)).await;
        while self.fleet.workers.len() > self.workers {
            let at = self.some_worker();
            self.terminate_one(at).await;
        }
    }

    async fn replace_all(&mut self) {
        for _ in 0..self.fleet.workers.len() {
            self.fleet.add_worker().await;
            // A new worker has its share before an old one goes.
            sleep(Duration::from_secs(4)).await;
            let name = self.fleet.workers[0].name().to_owned();
            self.fleet.workers[0].signal(Signal::TERM);
            let status = self.fleet.outlast_worker(&name, Duration::from_mins(1)).await;
            assert!(status.success(), "{name} ends with {status}\n{}", self.fleet.logs());
        }
    }
}
