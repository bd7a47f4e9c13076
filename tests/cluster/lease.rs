//! Membership and leadership on a real API server.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use rpop::domain::shards::holding::{Exit, Heard, Member, Order, Renewed, ShardSeen};
use rpop::domain::shards::timing::{Boot, Timing};
use rpop::domain::shards::{Incarnation, ShardId};
use rpop::k8s::client::{Cluster, boot_now};
use rpop::k8s::error::ApiError;
use rpop::k8s::lease::{
    Claim, LEADER_LEASE, Membership, Spans, Word, WorkerLease, elect, steal, worker_lease,
};
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::support::{Server, eventually, namespace, server, with_namespace};

/// Short, so that tests are; with room for a busy machine.
const SPANS: Spans = Spans {
    taken_after: Duration::from_secs(3),
    leads_for: Duration::from_secs(2),
    renew_every: Duration::from_millis(200),
};

/// A process of `pod`.
async fn process(server: &Server, namespace: &str, pod: &str) -> Cluster {
    let kubeconfig = Kubeconfig::read_from(&server.admin_kubeconfig).unwrap();
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Cluster::with(config, pod, namespace).unwrap()
}

struct Candidate {
    claim: watch::Receiver<Claim>,
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Candidate {
    fn new(cluster: &Cluster) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (claim, task) = elect(cluster, SPANS, async move { drop(stopped.await) });
        Self { claim, task, stop }
    }

    fn leads(&self) -> bool {
        self.claim.borrow().is_mine(boot_now())
    }

    async fn comes_to_lead(&self) {
        eventually("this candidate to lead", || async { self.leads().then_some(()) }).await;
    }
}

fn leases(cluster: &Cluster) -> Api<Lease> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

#[tokio::test]
async fn one_of_two_leads_and_when_it_dies_the_other_does_in_time() {
    with_namespace(|_, namespace| async move {
        let server = server().unwrap();
        let first = process(server, &namespace, "controller-a").await;
        let second = process(server, &namespace, "controller-b").await;
        let one = Candidate::new(&first);
        one.comes_to_lead().await;
        let two = Candidate::new(&second);
        eventually("the second to see who leads", || async {
            (*two.claim.borrow().holder == *first.me.as_str()).then_some(())
        })
        .await;
        // For longer than a lead lasts: it is renewed, and nobody steps in.
        let until = boot_now().after(SPANS.taken_after + SPANS.renew_every * 2);
        while boot_now() < until {
            assert!(one.leads() && !two.leads());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(one.claim.borrow().term, 1);

        // Dies as by kill -9: nothing is given away.
        one.task.abort();
        let died = boot_now();
        while !two.leads() {
            let waited = boot_now().since(died);
            assert!(waited < SPANS.taken_after + Duration::from_secs(3), "after {waited:?} nobody leads");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!one.leads(), "never two at once");
        let lease = leases(&first).get(LEADER_LEASE).await.unwrap().spec.unwrap();
        assert_eq!(lease.holder_identity.as_deref(), Some(second.me.as_str()));
        assert_eq!(lease.lease_transitions, Some(1));
    })
    .await;
}

#[tokio::test]
async fn a_leader_that_stops_gives_the_lead_away_at_once() {
    with_namespace(|_, namespace| async move {
        let server = server().unwrap();
        let one = Candidate::new(&process(server, &namespace, "controller-a").await);
        one.comes_to_lead().await;
        let two = Candidate::new(&process(server, &namespace, "controller-b").await);
        one.stop.send(()).unwrap();
        one.task.await.unwrap();
        let given = boot_now();
        two.comes_to_lead().await;
        let waited = boot_now().since(given);
        assert!(waited < SPANS.leads_for, "{waited:?}: it waited for the lease to expire");
        assert!(!one.claim.borrow().is_mine(boot_now()));
    })
    .await;
}

#[tokio::test]
async fn a_restarted_container_need_not_wait_for_its_own_past() {
    with_namespace(|_, namespace| async move {
        let server = server().unwrap();
        let before = process(server, &namespace, "controller-a").await;
        let candidate = Candidate::new(&before);
        candidate.comes_to_lead().await;
        candidate.task.abort();
        let restarted = process(server, &namespace, "controller-a").await;
        assert_ne!(before.me, restarted.me);
        let started = boot_now();
        Candidate::new(&restarted).comes_to_lead().await;
        assert!(boot_now().since(started) < SPANS.leads_for);
    })
    .await;
}

#[tokio::test]
async fn a_worker_is_there_with_what_it_says_of_itself() {
    with_namespace(|_, namespace| async move {
        let cluster = process(server().unwrap(), &namespace, "rpop-worker-a").await;
        let mut membership = Membership::new(&cluster, Timing::FAST);
        let before = boot_now();
        let word = Word { leaving: false, load: BTreeMap::from([(ShardId(7), 1.25)]), capacity: 2.0 };
        let (sent, result) = membership.renew(&word).await;
        assert_eq!(result, Renewed::Ok);
        assert!(before <= sent && sent <= boot_now());
        let lease = leases(&cluster).get(&worker_lease("rpop-worker-a")).await.unwrap();
        assert_eq!(lease.metadata.labels.as_ref().unwrap()["rpop.dev/component"], "worker");
        let joined = WorkerLease::read(&lease);
        assert_eq!((joined.holder.as_ref(), joined.stolen), (Some(&cluster.me), false));
        assert_eq!(joined.word, word);

        // Each renewal is a new version, which is what the leader looks at,
        // and says what is new.
        let leaving = Word { leaving: true, ..word };
        assert_eq!(membership.renew(&leaving).await.1, Renewed::Ok);
        let renewed = WorkerLease::read(&leases(&cluster).get(&joined.name).await.unwrap());
        assert_ne!(renewed.version, joined.version);
        assert_eq!(renewed.word, leaving);
    })
    .await;
}

#[tokio::test]
async fn a_worker_whose_lease_is_stolen_is_told_at_its_next_renewal_and_never_returns() {
    with_namespace(|_, namespace| async move {
        let cluster = process(server().unwrap(), &namespace, "rpop-worker-a").await;
        let all = leases(&cluster);
        let mut membership = Membership::new(&cluster, Timing::FAST);
        membership.renew(&Word::default()).await;
        let seen = WorkerLease::read(&all.get(&worker_lease("rpop-worker-a")).await.unwrap());

        // Whoever was renewed in between is alive: it cannot be stolen.
        assert_eq!(membership.renew(&Word::default()).await.1, Renewed::Ok);
        let missed = steal(&all, &seen.name, &seen.version, &cluster.me).await.unwrap_err();
        assert!(matches!(missed, ApiError::Conflict { .. }), "{missed}");
        assert_eq!(membership.renew(&Word::default()).await.1, Renewed::Ok);

        let seen = WorkerLease::read(&all.get(&seen.name).await.unwrap());
        let stolen = steal(&all, &seen.name, &seen.version, &cluster.me).await.unwrap();
        assert!(stolen.stolen && stolen.holder == Some(cluster.me.clone()));
        for _ in 0..3 {
            assert_eq!(membership.renew(&Word::default()).await.1, Renewed::Lost);
        }
        let after = all.get(&seen.name).await.unwrap();
        assert_eq!(after.metadata.resource_version, Some(stolen.version), "and writes nothing");

        // A new process of the pod is another worker.
        let restarted = process(server().unwrap(), &namespace, "rpop-worker-a").await;
        assert_eq!(Membership::new(&restarted, Timing::FAST).renew(&Word::default()).await.1, Renewed::Ok);
        assert_eq!(membership.renew(&Word::default()).await.1, Renewed::Lost);
        let lease = WorkerLease::read(&all.get(&seen.name).await.unwrap());
        assert_eq!(lease.holder, Some(restarted.me));
    })
    .await;
}

#[tokio::test]
async fn a_lease_that_is_gone_is_lost_and_one_touched_by_others_is_not() {
    with_namespace(|_, namespace| async move {
        let cluster = process(server().unwrap(), &namespace, "rpop-worker-a").await;
        let all = leases(&cluster);
        let name = worker_lease("rpop-worker-a");
        let mut membership = Membership::new(&cluster, Timing::FAST);
        membership.renew(&Word::default()).await;
        // The version is another, as it is when an answer to us got lost.
        let touched = json!({"metadata": {"annotations": {"example.org/note": "x"}}});
        all.patch(&name, &PatchParams::default(), &Patch::Merge(touched)).await.unwrap();
        assert_eq!(membership.renew(&Word::default()).await.1, Renewed::Ok);
        all.delete(&name, &DeleteParams::default()).await.unwrap();
        assert_eq!(membership.renew(&Word::default()).await.1, Renewed::Lost);
        assert!(all.get_opt(&name).await.unwrap().is_none(), "it is not made again");
    })
    .await;
}

/// A worker's machine with its real lease; shards are only told.
struct Worker {
    member: Member,
    words: mpsc::Sender<Word>,
    heard: mpsc::Receiver<Heard>,
    /// What was ordered when, but for renewals.
    orders: Vec<(Boot, Order)>,
    looked_at: usize,
}

impl Worker {
    fn new(cluster: &Cluster) -> Self {
        let (words, asked) = mpsc::channel(4);
        let (answers, heard) = mpsc::channel(4);
        Membership::new(cluster, Timing::FAST).spawn(asked, answers);
        let member = Member::new(cluster.me.clone(), Timing::FAST, Duration::from_secs(5));
        let mut worker = Self { member, words, heard, orders: Vec::new(), looked_at: 0 };
        let shard = ShardSeen {
            id: ShardId(0),
            version: "1".to_owned(),
            desired: Some(cluster.me.clone()),
            holder: Some(cluster.me.clone()),
            epoch: 1,
            slices: 0,
            observed: BTreeMap::new(),
        };
        worker.hear(Heard::Shard(shard));
        worker.hear(Heard::SlicesRead { shard: ShardId(0), epoch: 1, observed: BTreeMap::new() });
        worker
    }

    fn hear(&mut self, heard: Heard) {
        let now = boot_now();
        for order in self.member.hear(now, heard) {
            if let Order::Renew { leaving } = order {
                self.words.try_send(Word { leaving, ..Word::default() }).unwrap();
            } else {
                self.orders.push((now, order));
            }
        }
    }

    /// Works until that is ordered; when it was.
    async fn until(&mut self, wanted: &Order) -> Boot {
        let started = boot_now();
        loop {
            while self.looked_at < self.orders.len() {
                self.looked_at += 1;
                if let (at, order) = &self.orders[self.looked_at - 1]
                    && order == wanted
                {
                    return *at;
                }
            }
            assert!(
                boot_now().since(started) < Duration::from_mins(1),
                "not {wanted:?} but {:?}",
                self.orders
            );
            self.step(Duration::MAX).await;
        }
    }

    async fn step(&mut self, longest: Duration) {
        let wake = self.member.next_wake().since(boot_now()).min(longest);
        match tokio::time::timeout(wake, self.heard.recv()).await {
            Ok(heard) => self.hear(heard.unwrap()),
            Err(_) => self.hear(Heard::Tick),
        }
    }

    fn polls(&self) -> bool {
        self.member.may_poll(ShardId(0), boot_now()).is_some()
    }
}

const START: Order = Order::Start { shard: ShardId(0), epoch: 1 };

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_stops_a_worker_in_time_and_loses_nobody() {
    let Some(mut server) = Server::start() else { return };
    let namespace = namespace(&server.client().await).await;
    let cluster = process(&server, &namespace, "rpop-worker-a").await;
    let mut worker = Worker::new(&cluster);
    worker.until(&START).await;
    let one = Candidate::new(&process(&server, &namespace, "controller-a").await);
    one.comes_to_lead().await;
    let two = Candidate::new(&process(&server, &namespace, "controller-b").await);

    // A short stall stops nobody.
    server.freeze(true);
    let frozen = boot_now();
    while boot_now().since(frozen) < Duration::from_millis(1_500) {
        worker.step(Duration::from_millis(100)).await;
        assert!(worker.polls());
    }
    server.freeze(false);
    while boot_now().since(frozen) < Duration::from_secs(5) {
        worker.step(Duration::from_millis(100)).await;
        assert!(worker.polls(), "{:?}", worker.orders);
    }

    // A long one does: connections are taken and nothing is answered.
    server.freeze(true);
    let frozen = boot_now();
    let aborted = worker.until(&Order::AbortAll).await;
    assert!(!worker.polls());
    let closed = worker.until(&Order::CloseAll).await;
    let late = Duration::from_millis(300);
    assert!(aborted.since(frozen) <= Timing::FAST.fence_after + late, "{:?}", aborted.since(frozen));
    let pause = closed.since(aborted);
    assert!(pause <= Timing::FAST.close_within + late && closed.since(frozen) < Timing::FAST.dead_after);
    assert!(!one.leads() && !two.leads(), "nobody leads without the API server");
    server.freeze(false);
    worker.until(&START).await;
    assert!(worker.polls());
    eventually("one to lead again", || async { (one.leads() || two.leads()).then_some(()) }).await;

    // And so does one that is gone and comes back, at once.
    server.stop();
    worker.until(&Order::CloseAll).await;
    server.restart();
    worker.until(&START).await;
    assert!(worker.polls());
    eventually("one to lead again", || async { (one.leads() || two.leads()).then_some(()) }).await;
    assert!(!(one.leads() && two.leads()));
    assert!(!worker.orders.iter().any(|(_, order)| matches!(order, Order::Exit(_))), "nobody ends");

    // Until its lease is stolen.
    let all = leases(&cluster);
    let seen = eventually("the lease to be stolen", || async {
        let lease = WorkerLease::read(&all.get(&worker_lease("rpop-worker-a")).await.ok()?);
        steal(&all, &lease.name, &lease.version, &cluster.me).await.ok()
    })
    .await;
    assert_eq!(seen.holder, Some(cluster.me.clone()));
    worker.until(&Order::Exit(Exit::Lost)).await;
    assert!(!worker.polls());
    let last: Vec<_> = worker.orders.iter().rev().take(3).rev().map(|(_, order)| order).collect();
    assert_eq!(last, [&Order::AbortAll, &Order::CloseAll, &Order::Exit(Exit::Lost)]);
}

#[tokio::test]
async fn a_worker_that_leaves_is_seen_to_leave() {
    with_namespace(|_, namespace| async move {
        let cluster = process(server().unwrap(), &namespace, "rpop-worker-a").await;
        let mut worker = Worker::new(&cluster);
        worker.until(&START).await;
        worker.hear(Heard::Leave);
        let all = leases(&cluster);
        while !WorkerLease::read(&all.get(&worker_lease("rpop-worker-a")).await.unwrap()).word.leaving {
            worker.step(Duration::from_millis(50)).await;
        }
        assert!(worker.polls(), "until the leader has found another");
        let moved = ShardSeen {
            id: ShardId(0),
            version: "2".to_owned(),
            desired: Some(Incarnation::new("rpop-worker-b", 1)),
            holder: Some(Incarnation::new("rpop-worker-b", 1)),
            epoch: 2,
            slices: 0,
            observed: BTreeMap::new(),
        };
        worker.hear(Heard::Shard(moved));
        worker.until(&Order::Exit(Exit::Left)).await;
    })
    .await;
}
