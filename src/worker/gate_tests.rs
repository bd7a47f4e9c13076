use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinHandle;

use super::super::fence::Clock;
use super::*;
use crate::api::{ItemPast, Sliced};
use crate::domain::envelope::Mailbox;
use crate::domain::ledger::{Change, Ledger};
use crate::domain::shards::holding::{Heard, Member, Order, Renewed, ShardSeen};
use crate::domain::shards::timing::{Boot, Timing};
use crate::domain::shards::{Incarnation, ShardId};
use crate::domain::work::{
    AuthChoice, Destination, Limits, Login, OnReject, OnUidChange, RecordKey, Remote, SecretKind, SecretRef,
    TlsPolicy,
};
use crate::engine::ports::{LedgerError, LedgerStore};

const SHARD: ShardId = ShardId(7);

fn work(name: &str) -> WorkItem {
    let at = |name: &str| SecretRef {
        kind: SecretKind::Secret,
        namespace: "mail".into(),
        name: name.into(),
        key: "password".into(),
    };
    WorkItem {
        key: RecordKey { namespace: "mail".into(), name: name.into() },
        uid: 1,
        account: Mailbox::parse("alice@example.com").unwrap(),
        remote: Remote {
            host: "pop.example".into(),
            port: 995,
            account: name.into(),
            login: Login::Password(at("isp")),
            auth: AuthChoice::Auto,
            apop: false,
            tls: Arc::new(TlsPolicy::default()),
        },
        interval: Some(Duration::from_mins(1)),
        leave: false,
        keep_for_days: None,
        delete_seen: false,
        mailbox: None,
        destination: Arc::new(Destination::default()),
        postmaster: None,
        limits: Limits { message_size: None, messages_per_session: None },
        on_reject: OnReject::Leave,
        on_uid_change: OnUidChange::Pause,
        source_address: None,
        unified: None,
    }
}

fn items(names: &[&str]) -> BTreeMap<RecordKey, Arc<Sliced>> {
    let sliced = |name: &&str| {
        let item = work(name);
        let uid = format!("uid-{name}");
        let sliced = Sliced { item, uid, generation: 1, factor: 1, past: ItemPast::default() };
        (sliced.item.key.clone(), Arc::new(sliced))
    };
    names.iter().map(sliced).collect()
}

/// A ledger that may be out of reach.
#[derive(Default)]
struct Disk {
    down: AtomicBool,
    tried: AtomicUsize,
    committed: AtomicUsize,
}

impl LedgerStore for Disk {
    fn load<'a>(&'a self, _: &'a RecordKey) -> Pending<'a, Result<Ledger, LedgerError>> {
        Box::pin(async { Ok(Ledger::new([7; 16])) })
    }

    fn commit<'a>(
        &'a self,
        _: &'a RecordKey,
        _: &'a mut Ledger,
        changes: Vec<Change>,
    ) -> Pending<'a, Result<(), LedgerError>> {
        Box::pin(async move {
            self.tried.fetch_add(1, Ordering::SeqCst);
            if self.down.load(Ordering::SeqCst) {
                return Err(LedgerError::Unavailable("down".into()));
            }
            self.committed.fetch_add(changes.len(), Ordering::SeqCst);
            Ok(())
        })
    }
}

/// Polls until it is told to end, and then a while.
struct Sessions {
    open: AtomicUsize,
    started: AtomicUsize,
    slow: Duration,
    /// Where what was accepted by the end of a session is left uncommitted.
    ledgers: Option<Arc<Owing<Roster>>>,
}

struct Opened<'a>(&'a Sessions, RecordKey);

impl Drop for Opened<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        if let Some(ledgers) = &self.0.ledgers {
            ledgers.owe(&self.1, [7; 16], vec![Change::Forget { hash: 1 }]);
        }
    }
}

impl Poller for Sessions {
    fn poll<'a>(
        &'a self,
        item: &'a WorkItem,
        _: &'a Settings,
        mut stop: watch::Receiver<Stage>,
    ) -> Pending<'a, Report> {
        Box::pin(async move {
            self.started.fetch_add(1, Ordering::SeqCst);
            self.open.fetch_add(1, Ordering::SeqCst);
            let _open = Opened(self, item.key.clone());
            stop.wait_for(|stage| *stage >= Stage::Draining).await.ok();
            tokio::time::sleep(self.slow).await;
            Report {
                result: Ok(()),
                counters: Counters::default(),
                took: Duration::ZERO,
                login_delay: None,
                refused: None,
            }
        })
    }
}

struct Site {
    gate: Arc<Gate<Sessions>>,
    roster: Roster,
    me: Incarnation,
    disk: Arc<Disk>,
}

impl Site {
    /// A worker that holds the shard and may poll it.
    fn new(slow: Duration) -> Self {
        Self::with(slow, false)
    }

    /// The same, with sessions that never commit.
    fn owing() -> Self {
        Self::with(Duration::from_secs(100), true)
    }

    fn with(slow: Duration, owing: bool) -> Self {
        let start = Instant::now();
        let clock: Clock = Arc::new(move || Boot(1_000).after(start.elapsed()));
        let fence = Fence::new(clock, Timing::FAST);
        let me = Incarnation::new("worker-0", 7);
        let member = Member::new(me.clone(), Timing::FAST, Duration::from_secs(30));
        let roster = Roster::new(member, fence);
        let disk = Arc::new(Disk::default());
        let ledgers = Arc::new(Owing::new(Arc::clone(&disk) as _, roster.clone()));
        let (open, started) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let sessions = Sessions { open, started, slow, ledgers: owing.then(|| Arc::clone(&ledgers)) };
        let gate = Arc::new(Gate::new(Arc::new(sessions), roster.clone(), ledgers));
        let site = Self { gate, roster, me, disk };
        site.roster.hear(Heard::Tick);
        site.renew();
        site.see(Some(site.me.clone()), "5");
        site.roster.assign(SHARD, &items(&["a", "b"]));
        let orders =
            site.roster.hear(Heard::SlicesRead { shard: SHARD, epoch: 3, observed: BTreeMap::new() });
        assert!(orders.contains(&Order::Start { shard: SHARD, epoch: 3 }), "{orders:?}");
        site
    }

    fn renew(&self) {
        let sent = self.roster.fence().now();
        self.roster.fence().renewed(sent);
        self.roster.hear(Heard::RenewalAnswered { sent, result: Renewed::Ok });
    }

    fn see(&self, desired: Option<Incarnation>, version: &str) -> Vec<Order> {
        self.see_held(desired, self.me.clone(), 3, version)
    }

    fn see_held(
        &self,
        desired: Option<Incarnation>,
        holder: Incarnation,
        epoch: i64,
        version: &str,
    ) -> Vec<Order> {
        let (holder, observed) = (Some(holder), BTreeMap::new());
        let version = version.to_owned();
        let seen = ShardSeen { id: SHARD, version, desired, holder, epoch, slices: 0, observed };
        self.roster.hear(Heard::Shard(seen))
    }

    /// F passes without a renewal: the sessions are dropped, as the driver does.
    async fn fence(&self) {
        tokio::time::sleep(Duration::from_millis(4_600)).await;
        self.roster.hear(Heard::Tick);
        self.roster.tell(None, Stage::Aborting);
        settle().await;
        assert_eq!((self.open(), self.roster.fence().open()), (0, 0), "no socket is open");
    }

    /// The API server is back.
    async fn reopen(&self) {
        self.renew();
        self.roster.open_up();
        settle().await;
    }

    fn committed(&self) -> usize {
        self.disk.committed.load(Ordering::SeqCst)
    }

    fn poll(&self, name: &str) -> (watch::Sender<Stage>, JoinHandle<Report>) {
        let (stop, stopped) = watch::channel(Stage::Running);
        let (gate, item) = (Arc::clone(&self.gate), work(name));
        let poll = tokio::spawn(async move { gate.poll(&item, &Settings::default(), stopped).await });
        (stop, poll)
    }

    fn open(&self) -> usize {
        self.gate.inner.open.load(Ordering::SeqCst)
    }

    fn started(&self) -> usize {
        self.gate.inner.started.load(Ordering::SeqCst)
    }
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn only_records_that_are_ours_as_they_are_now_are_polled() {
    let site = Site::new(Duration::ZERO);
    let (_stop, stranger) = site.poll("c");
    assert_eq!(stranger.await.unwrap().result.unwrap_err().code, Code::Interrupted);
    let (_stop, _poll) = site.poll("a");
    settle().await;
    assert_eq!((site.open(), site.roster.open(SHARD)), (1, 1));
    assert!(site.roster.is_open(&work("a").key, SHARD));
    // Twice at once is never right, whoever asks.
    let (_stop, second) = site.poll("a");
    assert!(second.await.unwrap().result.is_err());
    // An item of yesterday.
    let old = WorkItem { leave: true, ..work("b") };
    let (_stop, stopped) = watch::channel(Stage::Running);
    assert!(site.gate.poll(&old, &Settings::default(), stopped).await.result.is_err());
    assert_eq!(site.started(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_drained_shard_counts_as_open_until_its_last_session_has_ended() {
    let site = Site::new(Duration::from_secs(2));
    let (_stop, a) = site.poll("a");
    settle().await;
    let orders = site.see(Some(Incarnation::new("worker-1", 1)), "6");
    assert!(orders.contains(&Order::Drain { shard: SHARD, epoch: 3 }), "{orders:?}");
    site.roster.tell(Some(SHARD), Stage::Draining);
    let (_stop, b) = site.poll("b");
    assert!(b.await.unwrap().result.is_err(), "nothing new");
    assert_eq!(site.roster.open(SHARD), 1);
    // It may still commit.
    assert_eq!(site.roster.right(&work("a").key).unwrap().epoch, 3);
    site.roster.closed().await;
    assert_eq!((site.roster.open(SHARD), site.open()), (0, 0));
    assert!(a.await.unwrap().result.is_ok());
    site.roster.hear(Heard::Drained { shard: SHARD, epoch: 3 });
    assert_eq!(site.roster.right(&work("a").key), None, "nothing of it is written any more");
}

#[tokio::test(start_paused = true)]
async fn an_aborted_session_is_dropped_at_once() {
    let site = Site::new(Duration::from_secs(100));
    let (_stop, a) = site.poll("a");
    settle().await;
    site.roster.tell(Some(ShardId(8)), Stage::Aborting);
    settle().await;
    assert_eq!(site.open(), 1, "another shard's end is nothing to it");
    site.roster.tell(None, Stage::Aborting);
    assert_eq!(a.await.unwrap().result.unwrap_err().code, Code::Interrupted);
    assert_eq!((site.open(), site.roster.open(SHARD)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn polls_wait_while_the_worker_does_not_know_whether_it_is_alive() {
    let site = Site::new(Duration::ZERO);
    let (_stop, a) = site.poll("a");
    settle().await;
    // F passes without a renewal.
    tokio::time::sleep(Duration::from_millis(4_600)).await;
    site.roster.hear(Heard::Tick);
    site.roster.tell(None, Stage::Aborting);
    assert!(a.await.unwrap().result.is_err());
    let (stop, a) = site.poll("a");
    let (_stop, b) = site.poll("b");
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!((site.started(), site.open()), (1, 0));
    // Who need not be polled any more does not wait.
    stop.send_replace(Stage::Draining);
    assert!(a.await.unwrap().result.is_err());
    site.renew();
    site.roster.open_up();
    settle().await;
    assert_eq!((site.started(), site.open()), (2, 1));
    drop(b);
}

#[tokio::test(start_paused = true)]
async fn the_run_ends_a_poll_at_its_next_message_and_may_drop_it() {
    let site = Site::new(Duration::from_secs(1));
    let (stop, a) = site.poll("a");
    settle().await;
    stop.send_replace(Stage::Draining);
    assert!(a.await.unwrap().result.is_ok());
    let (_stop, b) = site.poll("b");
    settle().await;
    b.abort();
    settle().await;
    assert_eq!((site.open(), site.roster.open(SHARD), site.roster.fence().open()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_record_that_leaves_its_slice_is_told_of_while_its_session_is_open() {
    let site = Site::new(Duration::from_secs(1));
    let (_stop, a) = site.poll("a");
    settle().await;
    let strays = site.roster.assign(SHARD, &items(&["b"]));
    assert_eq!(strays, [work("a").key]);
    assert!(site.roster.right(&work("a").key).is_some(), "what it was given it may still commit");
    site.roster.tell_record(&strays[0], Stage::Draining);
    assert!(a.await.unwrap().result.is_ok());
    assert!(!site.roster.is_open(&strays[0], SHARD));
    assert_eq!(site.roster.right(&strays[0]), None);
    assert_eq!(site.roster.assign(SHARD, &items(&["b"])), []);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_fenced_itself_first_commits_what_was_accepted() {
    let site = Site::owing();
    let (_stop, a) = site.poll("a");
    settle().await;
    site.fence().await;
    tokio::time::sleep(Duration::from_mins(10)).await;
    assert_eq!(site.disk.tried.load(Ordering::SeqCst), 0, "it may be another's by now");
    assert!(!a.is_finished() && site.roster.is_open(&work("a").key, SHARD), "the next poll waits for it");
    site.reopen().await;
    assert_eq!(a.await.unwrap().result.unwrap_err().code, Code::Interrupted);
    assert_eq!((site.committed(), site.roster.open(SHARD)), (1, 0));
    assert!(!site.gate.ledgers.owes(&work("a").key));
    // And then goes on.
    let (_stop, _a) = site.poll("a");
    settle().await;
    assert_eq!(site.open(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_accepted_is_another_workers_once_that_may_have_polled() {
    let site = Site::owing();
    let (_stop, a) = site.poll("a");
    settle().await;
    site.fence().await;
    // It was given away, and is given back later.
    let other = Incarnation::new("worker-1", 1);
    site.see_held(Some(other.clone()), other, 4, "6");
    a.await.unwrap().result.unwrap_err();
    assert!(!site.gate.ledgers.owes(&work("a").key), "it is forgotten");
    site.see_held(Some(site.me.clone()), site.me.clone(), 5, "7");
    site.reopen().await;
    assert_eq!(site.committed(), 0);

    let site = Site::owing();
    let (_stop, a) = site.poll("a");
    settle().await;
    site.fence().await;
    let sent = site.roster.fence().now();
    site.roster.hear(Heard::RenewalAnswered { sent, result: Renewed::Lost });
    a.await.unwrap().result.unwrap_err();
    assert_eq!((site.committed(), site.roster.open(SHARD)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_shard_is_not_handed_over_before_what_was_accepted_is_committed_or_given_up() {
    for is_down in [false, true] {
        let site = Site::owing();
        let (_stop, a) = site.poll("a");
        settle().await;
        site.fence().await;
        let orders = site.see(Some(Incarnation::new("worker-1", 1)), "6");
        assert!(orders.contains(&Order::Drain { shard: SHARD, epoch: 3 }), "{orders:?}");
        site.disk.down.store(is_down, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(site.roster.open(SHARD), 1);
        site.reopen().await;
        if is_down {
            assert_eq!(site.roster.open(SHARD), 1);
            // The drain limit.
            tokio::time::sleep(Duration::from_secs(11)).await;
            site.roster.hear(Heard::Tick);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        assert!(a.is_finished() && site.roster.open(SHARD) == 0);
        assert_eq!(site.committed(), usize::from(!is_down));
    }
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_cannot_be_written_is_left_to_the_next_poll_after_a_minute() {
    let site = Site::owing();
    site.disk.down.store(true, Ordering::SeqCst);
    let (_stop, a) = site.poll("a");
    settle().await;
    site.fence().await;
    site.reopen().await;
    let began = Instant::now();
    while !a.is_finished() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        site.renew();
    }
    let took = began.elapsed();
    assert!(took > SETTLE / 2 && took <= SETTLE + LOOK, "{took:?}");
    assert!(site.disk.tried.load(Ordering::SeqCst) <= 12, "ever more seldom");
    assert!(site.gate.ledgers.owes(&work("a").key));
    site.disk.down.store(false, Ordering::SeqCst);
    site.gate.ledgers.load(&work("a").key).await.unwrap();
    assert_eq!(site.committed(), 1);
}
