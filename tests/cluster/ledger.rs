//! Ledgers in `ConfigMaps`, under the rights of a worker.

mod damage;
mod gate;
mod owed;
mod owners;
mod unified;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ResourceQuota};
use k8s_openapi::api::rbac::v1::{ClusterRole, RoleBinding};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use rpop::api::{RpopRecord, RpopShard};
use rpop::domain::ledger::{Change, Entry, Ledger, State};
use rpop::domain::shards::ShardId;
use rpop::domain::work::RecordKey;
use rpop::engine::ports::{LedgerError, LedgerStore as _};
use rpop::k8s::ledger::{ConfigMapLedgers, Holdings, KEEP_LEDGER, LEDGER, Owner};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{Server, eventually, namespace, server};
use gate::{Fate, Gate};

const HEAD: &str = "rpop-uids-first-isp";

/// What one worker believes to hold.
#[derive(Default)]
struct Held(Mutex<HashMap<RecordKey, Owner>>);

impl Holdings for Held {
    fn owner(&self, key: &RecordKey) -> Option<Owner> {
        self.0.lock().unwrap().get(key).cloned()
    }
}

/// A namespace with a record, and the way of workers to it.
struct Here {
    admin: Client,
    gate: Gate,
    namespace: Arc<str>,
    key: RecordKey,
}

impl Here {
    async fn new() -> Option<Self> {
        Some(Self::on(server()?).await)
    }

    async fn on(server: &Server) -> Self {
        let admin = server.client().await;
        let namespace = namespace(&admin).await;
        // As the operator's own: no list, no watch.
        let role = json!({
            "metadata": {"name": "ledger-test-worker"},
            "rules": [
                {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "update", "patch", "delete"]},
                {"apiGroups": ["rpop.dev"], "resources": ["rpoprecords", "rpopshards"], "verbs": ["get"]},
            ],
        });
        let roles: Api<ClusterRole> = Api::all(admin.clone());
        let params = PatchParams::apply("test").force();
        let with_kind = |mut value: Value, kind: &str| {
            value["apiVersion"] = "rbac.authorization.k8s.io/v1".into();
            value["kind"] = kind.into();
            value
        };
        roles
            .patch("ledger-test-worker", &params, &Patch::Apply(with_kind(role, "ClusterRole")))
            .await
            .unwrap();
        let binding = json!({
            "metadata": {"name": "worker"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "ledger-test-worker"},
            "subjects": [{"kind": "ServiceAccount", "name": "worker", "namespace": &*namespace}],
        });
        let bindings: Api<RoleBinding> = Api::namespaced(admin.clone(), &namespace);
        bindings.patch("worker", &params, &Patch::Apply(with_kind(binding, "RoleBinding"))).await.unwrap();
        let worker = server.pod_token(&namespace, "worker", "worker-0").await.client().await;
        let gate = Gate::before(worker).await;
        let key = RecordKey { namespace: Arc::clone(&namespace), name: "first-isp".into() };
        let here = Self { admin, gate, namespace, key };
        here.make_record(&[]).await;
        here
    }

    async fn make_record(&self, annotations: &[(&str, &str)]) -> String {
        let annotations: HashMap<_, _> = annotations.iter().copied().collect();
        let record = json!({
            "apiVersion": "rpop.dev/v1alpha1",
            "kind": "RpopRecord",
            "metadata": {"name": &*self.key.name, "annotations": annotations},
            "spec": {
                "account": "alice@example.com",
                "pollEvery": "5m",
                "remote": {"host": "pop.isp.example", "account": "alice77", "passwordSecretRef": {"name": "first-isp"}},
            },
        });
        let record: RpopRecord = serde_json::from_value(record).unwrap();
        self.records().create(&PostParams::default(), &record).await.unwrap().uid().unwrap()
    }

    /// Deletes the record and makes another one of its name.
    async fn make_record_anew(&self, annotations: &[(&str, &str)]) {
        self.records().delete(&self.key.name, &DeleteParams::default()).await.unwrap();
        self.make_record(annotations).await;
    }

    fn records(&self) -> Api<RpopRecord> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    fn maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.admin.clone(), &self.namespace)
    }

    /// A worker that holds the record's shard in `epoch`.
    async fn worker(&self, shard: u16, epoch: i64) -> Worker {
        let uid = self.records().get(&self.key.name).await.unwrap().uid().unwrap();
        let held = Arc::new(Held::default());
        let owner = Owner { uid, epoch, shard: ShardId(shard) };
        held.0.lock().unwrap().insert(self.key.clone(), owner);
        let ledgers = ConfigMapLedgers::new(self.gate.client(), Arc::clone(&held) as Arc<dyn Holdings>);
        Worker { ledgers, held, key: self.key.clone() }
    }

    async fn head(&self) -> ConfigMap {
        self.maps().get(HEAD).await.unwrap()
    }

    /// The names of the ledger's objects.
    async fn objects(&self) -> Vec<String> {
        let labelled = ListParams::default().labels(LEDGER);
        self.maps().list(&labelled).await.unwrap().iter().map(ConfigMap::name_any).collect()
    }

    async fn patch_head(&self, patch: Value) {
        self.maps().patch(HEAD, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
}

#[derive(Clone)]
struct Worker {
    ledgers: ConfigMapLedgers,
    held: Arc<Held>,
    key: RecordKey,
}

impl Worker {
    async fn load(&self) -> Result<Ledger, LedgerError> {
        self.ledgers.load(&self.key).await
    }

    async fn commit(&self, ledger: &mut Ledger, changes: Vec<Change>) -> Result<(), LedgerError> {
        self.ledgers.commit(&self.key, ledger, changes).await
    }

    async fn reserve(&self, ledger: &mut Ledger) -> Result<(), LedgerError> {
        self.ledgers.reserve(&self.key, ledger, 2000).await
    }

    fn with(&self, change: impl FnOnce(ConfigMapLedgers) -> ConfigMapLedgers) -> Self {
        Self { ledgers: change(self.ledgers.clone()), ..self.clone() }
    }

    /// With heads and chunks so small that folds are frequent.
    fn folding(&self) -> Self {
        self.with(|ledgers| ledgers.with_bounds(3000, 600, 1 << 20))
    }

    fn impatient(&self) -> Self {
        self.with(|ledgers| ledgers.with_patience(Duration::from_millis(500), Duration::from_secs(2)))
    }
}

fn put(number: u64) -> Change {
    let hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let entry = Entry {
        state: State::Kept,
        day: 20_780,
        size: 1000 + number % 90_000,
        message_id: hash,
        digest: hash.rotate_left(20),
    };
    Change::Put { uid: format!("uid-{number:012}").into_bytes().into(), entry }
}

fn puts(numbers: std::ops::Range<u64>) -> Vec<Change> {
    numbers.map(put).collect()
}

fn all(ledger: &Ledger) -> Vec<String> {
    let line = |(hash, entry): (u64, Entry)| format!("{hash:016x} {entry:?} {:?}", ledger.missed(hash));
    let mut all: Vec<String> = ledger.iter().map(line).collect();
    all.sort();
    all
}

#[track_caller]
fn is_conflict<T>(result: Result<T, LedgerError>) {
    let error = result.err().expect("it must be refused");
    assert!(matches!(error, LedgerError::Conflict(_)), "{error:?}");
}

#[track_caller]
fn is_damaged<T>(result: Result<T, LedgerError>, says: &str) {
    let error = result.err().expect("it must be refused");
    assert!(matches!(&error, LedgerError::Damaged(text) if text.contains(says)), "{error:?}");
}

#[tokio::test]
async fn a_batch_is_one_write_and_another_process_reads_it() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await;
    let mut ledger = worker.load().await.unwrap();
    assert!(ledger.is_empty());
    assert!(here.gate.writes().is_empty(), "reading makes nothing");
    worker.commit(&mut ledger, vec![]).await.unwrap();
    assert!(here.gate.requests().is_empty());
    worker.reserve(&mut ledger).await.unwrap();
    assert_eq!(here.gate.writes(), ["POST configmaps"]);
    for batch in 0..10 {
        worker.reserve(&mut ledger).await.unwrap();
        worker.commit(&mut ledger, puts(batch * 20..batch * 20 + 20)).await.unwrap();
        assert_eq!(here.gate.requests(), [format!("PATCH {HEAD}")]);
    }
    let missed = Change::Missed { hash: ledger.hash(b"uid-000000000003"), since: 20_781, listings: 1 };
    worker.commit(&mut ledger, vec![missed.clone()]).await.unwrap();
    worker.commit(&mut ledger, vec![missed, put(4)]).await.unwrap();
    assert_eq!(here.gate.requests(), [format!("PATCH {HEAD}")], "what is known already is not written again");

    let other = here.worker(7, 1).await;
    let read = other.load().await.unwrap();
    assert_eq!((all(&read), read.salt()), (all(&ledger), ledger.salt()));
    let reread = worker.load().await.unwrap();
    assert_eq!(all(&reread), all(&ledger));

    let head = here.head().await;
    assert_eq!(head.labels()[LEDGER], "first-isp");
    let owner = &head.owner_references()[0];
    assert_eq!((&*owner.kind, &*owner.name), ("RpopRecord", "first-isp"));
    assert_eq!((owner.controller, owner.block_owner_deletion), (None, None));
}

#[tokio::test]
async fn a_later_holder_shuts_out_the_earlier_one() {
    let Some(here) = Here::new().await else { return };
    let (old, new) = (here.worker(7, 4).await, here.worker(7, 5).await);
    let mut olds = old.load().await.unwrap();
    old.commit(&mut olds, puts(0..3)).await.unwrap();
    // The new holder writes its epoch before it hands over anything.
    let mut news = new.load().await.unwrap();
    here.gate.requests();
    new.reserve(&mut news).await.unwrap();
    assert_eq!(here.gate.writes().len(), 1);
    new.reserve(&mut news).await.unwrap();
    assert!(here.gate.requests().is_empty());
    is_conflict(old.commit(&mut olds, puts(3..6)).await);
    is_conflict(old.load().await);
    is_conflict(old.reserve(&mut olds).await);
    new.commit(&mut news, puts(6..9)).await.unwrap();
    assert_eq!(all(&new.load().await.unwrap()), all(&news));
    // Who does not hold the record does nothing at all.
    new.held.0.lock().unwrap().clear();
    here.gate.requests();
    is_conflict(new.commit(&mut news, puts(9..10)).await);
    is_conflict(new.load().await);
    assert!(here.gate.requests().is_empty());
}

#[tokio::test]
async fn of_two_that_believe_to_hold_a_record_one_commits() {
    let Some(here) = Here::new().await else { return };
    let (one, other) = (here.worker(7, 1).await, here.worker(7, 1).await);
    let (mut ones, mut others) = (one.load().await.unwrap(), other.load().await.unwrap());
    one.commit(&mut ones, puts(0..2)).await.unwrap();
    let before = all(&others);
    is_conflict(other.commit(&mut others, puts(0..2)).await);
    assert_eq!(all(&others), before, "a refused commit changes nothing");
    others = other.load().await.unwrap();
    other.commit(&mut others, puts(2..4)).await.unwrap();
    is_conflict(one.commit(&mut ones, puts(4..6)).await);
    assert_eq!(all(&one.load().await.unwrap()), all(&others));
}

#[tokio::test]
async fn a_record_that_moved_to_another_shard_takes_its_ledger_along() {
    let Some(here) = Here::new().await else { return };
    let old = here.worker(7, 40).await;
    let mut ledger = old.load().await.unwrap();
    old.commit(&mut ledger, puts(0..3)).await.unwrap();
    let new = here.worker(9, 2).await;
    let mut moved = new.load().await.unwrap();
    assert_eq!(all(&moved), all(&ledger));
    new.commit(&mut moved, puts(3..4)).await.unwrap();
    is_conflict(old.commit(&mut ledger, puts(5..6)).await);
}

#[tokio::test]
async fn epochs_from_before_the_shards_were_made_anew_stop_nobody() {
    let Some(here) = Here::new().await else { return };
    let before = here.worker(7, 40).await;
    let mut ledger = before.load().await.unwrap();
    before.commit(&mut ledger, puts(0..3)).await.unwrap();
    let namespace = here.namespace.to_string();
    let now = here.worker(7, 2).await.with(|ledgers| ledgers.with_shards_in(&namespace));
    is_conflict(now.load().await);
    let shards: Api<RpopShard> = Api::namespaced(here.admin.clone(), &here.namespace);
    let shard: RpopShard = serde_json::from_value(json!({
        "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopShard", "metadata": {"name": "shard-007"}, "spec": {},
    }))
    .unwrap();
    shards.create(&PostParams::default(), &shard).await.unwrap();
    let at = async |epoch: i64| {
        let patch = Patch::Merge(json!({"status": {"epoch": epoch}}));
        shards.patch_status("shard-007", &PatchParams::default(), &patch).await.unwrap();
    };
    at(2).await;
    let mut found = now.load().await.unwrap();
    assert_eq!(all(&found), all(&ledger));
    now.reserve(&mut found).await.unwrap();
    now.commit(&mut found, puts(3..5)).await.unwrap();
    assert_eq!(all(&now.load().await.unwrap()), all(&found));
    // And where the shard has come that far, it is an earlier holder's.
    let late = here.worker(7, 1).await.with(|ledgers| ledgers.with_shards_in(&namespace));
    is_conflict(late.load().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_found_out_about() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await.folding();
    let mut ledger = worker.load().await.unwrap();
    let mut next = 0;
    for (at, fate) in [Fate::LoseAnswer, Fate::Drop, Fate::Refuse(503), Fate::Refuse(429), Fate::Refuse(500)]
        .into_iter()
        .enumerate()
    {
        // Each of the first writes, then each of the creations and removals
        // of chunks, meets it once.
        for method in ["POST", "PATCH", "DELETE"] {
            let mut met = false;
            here.gate.judge(move |found, _| {
                if found.as_str() == method && !std::mem::replace(&mut met, true) { fate } else { Fate::Pass }
            });
            let count = 40 + at as u64;
            for _ in 0..2 {
                worker.commit(&mut ledger, puts(next..next + count)).await.unwrap();
                next += count;
            }
        }
    }
    here.gate.open();
    let fresh = here.worker(7, 1).await.folding();
    assert_eq!(all(&fresh.load().await.unwrap()), all(&ledger));
    assert_eq!(ledger.len() as u64, next);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_is_not_waited_for_without_end() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await.impatient();
    let mut ledger = worker.load().await.unwrap();
    worker.commit(&mut ledger, puts(0..3)).await.unwrap();
    for fate in [Fate::Drop, Fate::Refuse(503), Fate::Refuse(429)] {
        here.gate.judge(move |_, _| fate);
        let began = Instant::now();
        let error = worker.commit(&mut ledger, puts(3..6)).await.unwrap_err();
        assert!(matches!(error, LedgerError::Unavailable(_)), "{error:?}");
        let error = worker.load().await.unwrap_err();
        assert!(matches!(&error, LedgerError::Unavailable(text) if text.contains(HEAD)), "{error:?}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
        here.gate.open();
    }
    // The batch that was not written can still be.
    worker.commit(&mut ledger, puts(3..6)).await.unwrap();
    assert_eq!(all(&worker.load().await.unwrap()), all(&ledger));
}

#[tokio::test]
async fn a_person_who_annotates_in_the_middle_of_a_poll_costs_nothing() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await;
    let mut ledger = worker.load().await.unwrap();
    worker.commit(&mut ledger, puts(0..3)).await.unwrap();
    here.patch_head(json!({"metadata": {"annotations": {"note": "hello"}}})).await;
    worker.commit(&mut ledger, puts(3..6)).await.unwrap();
    assert_eq!(here.head().await.annotations()["note"], "hello");
    // Removed: everything is to be fetched anew.
    here.maps().delete(HEAD, &DeleteParams::default()).await.unwrap();
    is_conflict(worker.commit(&mut ledger, puts(6..9)).await);
    assert!(worker.load().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_nobody_waits_for_goes_to_its_end() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await;
    let mut ledger = worker.load().await.unwrap();
    worker.commit(&mut ledger, puts(0..3)).await.unwrap();
    let before = here.head().await.resource_version();
    tokio::select! {
        biased;
        _ = worker.commit(&mut ledger, puts(3..6)) => panic!("it was not to be waited for"),
        () = tokio::task::yield_now() => {}
    }
    let loaded = worker.load().await.unwrap();
    assert_ne!(here.head().await.resource_version(), before);
    assert_eq!(loaded.len(), 6, "reading waits for it");
}

/// Ends a worker at each of its requests, before and after it is carried out,
/// while it folds.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_folds_leaves_no_damage_and_no_orphans() {
    let Some(here) = Here::new().await else { return };
    let mut next = 0;
    let mut died = 0;
    for death in 0..30 {
        let worker = here.worker(7, 1).await.folding();
        let ledger = worker.load().await.unwrap();
        let before = all(&ledger);
        let mut doomed = ledger.clone();
        let mut whole = ledger;
        let batch = puts(next..next + 40);
        for change in &batch {
            whole.apply(change);
        }
        let after = all(&whole);
        next += 40;
        let (left, carried_out) = (death / 2, death % 2 == 1);
        let mut seen = 0;
        here.gate.judge(move |_, _| {
            seen += 1;
            match seen - 1 {
                at if at < left => Fate::Pass,
                at if at == left && carried_out => Fate::LoseAnswer,
                _ => Fate::Drop,
            }
        });
        let brief = Duration::from_millis(300);
        let dying = worker.with(|ledgers| ledgers.with_patience(brief, brief));
        let done = dying.commit(&mut doomed, batch).await;
        here.gate.open();
        let found = all(&here.worker(7, 1).await.load().await.unwrap());
        if done.is_ok() {
            assert_eq!(found, after);
        } else {
            died += 1;
            assert!(found == before || found == after, "death {death}: neither nor");
        }
    }
    assert!(died > 8, "{died}");
    // A worker that lives removes what was left.
    let worker = here.worker(7, 2).await.folding();
    let mut ledger = worker.load().await.unwrap();
    for number in 0..3 {
        worker.commit(&mut ledger, puts(next + number..next + number + 1)).await.unwrap();
    }
    let mut chunks = here.objects().await;
    chunks.retain(|name| name != HEAD);
    assert!(!chunks.is_empty());
    assert_eq!(chunks, chunks_named(&here.head().await));
    assert_eq!(all(&here.worker(7, 2).await.load().await.unwrap()), all(&ledger));
}

/// The chunks that a head names, by the format in the design record.
fn chunks_named(head: &ConfigMap) -> Vec<String> {
    fn number(rest: &mut &[u8]) -> u64 {
        let (mut number, mut shift) = (0, 0);
        loop {
            let octet = rest.split_off_first().unwrap();
            number |= u64::from(octet & 0x7f) << shift;
            shift += 7;
            if *octet < 0x80 {
                return number;
            }
        }
    }
    let octets = &head.binary_data.as_ref().unwrap()["head"].0;
    let rest = &mut &octets[10 + 16 + 8..];
    let (_shard, _epoch, runs) = (number(rest), number(rest), number(rest));
    let mut named = Vec::new();
    for _ in 0..runs {
        for _ in 0..number(rest) {
            let seal = rest.split_off(..16).unwrap();
            let seal = u128::from_be_bytes(seal.try_into().unwrap());
            named.push(format!("{HEAD}-{seal:032x}"));
            let (_octets, _groups) = (number(rest), number(rest));
        }
    }
    named.sort();
    named
}

impl Worker {
    fn owner_uid(&self) -> String {
        self.held.owner(&self.key).unwrap().uid
    }
}

/// Sizes and times are printed: `docs/design/0006` tells them.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_messages_are_remembered() {
    const MANY: u64 = 100_000;
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await;
    let mut ledger = worker.load().await.unwrap();
    let began = Instant::now();
    for batch in 0..MANY / 500 {
        worker.commit(&mut ledger, puts(batch * 500..batch * 500 + 500)).await.unwrap();
    }
    println!("{MANY} messages in batches of 500: {:?}", began.elapsed());
    here.gate.requests();
    let began = Instant::now();
    for batch in 0..100 {
        let first = MANY + batch * 20;
        worker.commit(&mut ledger, puts(first..first + 20)).await.unwrap();
    }
    let (took, writes) = (began.elapsed(), here.gate.writes());
    let patches = writes.iter().filter(|write| write.starts_with("PATCH")).count();
    println!("100 batches of 20: {took:?}, {patches} writes of the head, {} in all", writes.len());
    assert!(writes.len() < 140, "{writes:?}");

    let began = Instant::now();
    let cold = here.worker(7, 1).await;
    let read = cold.load().await.unwrap();
    let (first, chunks) = (began.elapsed(), here.gate.requests().len());
    let began = Instant::now();
    cold.load().await.unwrap();
    println!("read: {first:?} with {chunks} requests; read again: {:?}", began.elapsed());
    assert_eq!(here.gate.requests(), [format!("GET {HEAD}")], "chunks are read once");
    assert_eq!(all(&read), all(&ledger));

    let mut octets = 0;
    for name in here.objects().await {
        let data = here.maps().get(&name).await.unwrap().binary_data.unwrap();
        let size: usize = data.values().map(|data| data.0.len()).sum();
        assert!(size <= if name == HEAD { 16 << 10 } else { 256 << 10 }, "{name}: {size}");
        octets += size;
    }
    let objects = here.objects().await.len();
    println!("{octets} octets in {objects} objects");
    assert_eq!(objects, chunks_named(&here.head().await).len() + 1, "no orphans");
}
