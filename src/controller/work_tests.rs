use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

use super::*;
use crate::api::unified::{Asked, Directory, Local, MOST_BYTES};
use crate::api::work::{self as read, Shared};
use crate::domain::envelope::Mailbox;
use crate::domain::shards::leader::Answer;
use crate::domain::shards::packing;
use crate::domain::shards::timing::Timing;
use crate::domain::work::Unified;

/// The work, and an API server with one shard that no worker holds.
struct Stage {
    work: Work,
    now: Boot,
    version: i64,
    shard: Option<ShardSeen>,
    /// As text, as an API server gives them back.
    slices: BTreeMap<String, String>,
}

impl Stage {
    fn new() -> Self {
        let config = Config { shards: 1, timing: Timing::FAST };
        let mut work = Work::new(config, Workers::new(Timing::FAST));
        let now = Boot(1_000_000);
        work.complete(now);
        work.hear(now, Seen::Shards(Vec::new()));
        work.hear(now, Seen::Slices(Vec::new()));
        work.hear(now, Seen::Leases { sent: now, leases: Vec::new(), leader: "1".into() });
        Self { work, now, version: 1, shard: None, slices: BTreeMap::new() }
    }

    fn put(&mut self, item: WorkItem) {
        let uid: Arc<str> = format!("uid-of-{}", item.key.name).into();
        self.work.put(Arc::new(item), &uid, 1, self.now);
    }

    /// Has everything written that the work wants written; which slices that
    /// were.
    fn settle(&mut self) -> Vec<String> {
        let mut written = Vec::new();
        for _ in 0..100 {
            let orders = self.work.decide(self.now, &|_| ItemPast { failures: 3, ..ItemPast::default() });
            if orders.is_empty() {
                return written;
            }
            for order in orders {
                let target = order.target().clone();
                let seen = match order {
                    Order::Slice { body, .. } => {
                        written.push(body.name.clone());
                        Seen::Slice(self.write(&body))
                    }
                    Order::Other { decree, .. } => Seen::Shard(self.place(decree)),
                };
                self.work.hear(self.now, seen);
                self.work.hear(self.now, Seen::Answered { target, answer: Answer::Done });
            }
        }
        panic!("it is never done: {written:?}");
    }

    fn write(&mut self, body: &SliceBody) -> SliceSeen {
        self.version += 1;
        let metadata = ObjectMeta {
            name: Some(body.name.clone()),
            uid: Some(format!("uid-of-{}", body.name)),
            resource_version: Some(self.version.to_string()),
            generation: Some(self.version),
            ..ObjectMeta::default()
        };
        let slice = RpopWorkSlice { metadata, spec: body.spec.clone() };
        self.slices.insert(body.name.clone(), serde_json::to_string(&slice).unwrap());
        slice_seen(&self.slice(&body.name)).unwrap()
    }

    fn slice(&self, name: &str) -> RpopWorkSlice {
        serde_json::from_str(&self.slices[name]).unwrap()
    }

    fn place(&mut self, decree: Decree) -> ShardSeen {
        self.version += 1;
        let version = self.version.to_string();
        let shard = match decree {
            Decree::CreateShard(id) => ShardSeen {
                id,
                version,
                desired: None,
                holder: None,
                epoch: 0,
                slices: 0,
                observed: BTreeMap::new(),
            },
            Decree::SetDesired { desired, slices, .. } => {
                ShardSeen { version, desired, slices, ..self.shard.clone().unwrap() }
            }
            other => panic!("{other:?}"),
        };
        self.shard = Some(shard.clone());
        shard
    }

    /// The records of each slice; none is too large, and each can be read.
    fn packed(&self) -> BTreeMap<String, Vec<WorkItem>> {
        let read = |name: &String| {
            let slice = self.slice(name);
            let octets = serde_json::to_vec(&slice.spec).unwrap().len();
            assert!(octets <= packing::MOST_BYTES, "{name} has {octets} octets");
            let items = slice.spec.sliced().unwrap().into_iter().map(|item| item.unwrap().item).collect();
            (name.clone(), items)
        };
        self.slices.keys().map(read).collect()
    }
}

fn plain(name: &str) -> WorkItem {
    let spec = json!({
        "account": "postmaster@example.com",
        "remote": {"host": "pop.isp.example", "account": name, "passwordSecretRef": {"name": "s"}},
    });
    let key = RecordKey { namespace: "mail".into(), name: name.into() };
    let uid = format!("uid-of-{name}");
    let spec = serde_json::from_value(spec).unwrap();
    read::record(&mut Shared::default(), key, Some(&uid), &spec, &Arc::default()).unwrap()
}

/// What a record is given where there are so many aliases of 200 octets.
fn unified(special: &str, aliases: usize) -> Arc<Unified> {
    let mut names: Vec<Arc<str>> =
        (0..aliases).map(|n| format!("{n:03}{}.example", "a".repeat(190)).into()).collect();
    names.push("example.com".into());
    let local = Local {
        name: "example.com".into(),
        names,
        destination: Arc::new(Destination { domain: "example.com".into(), ..Destination::default() }),
        postmaster: Mailbox::parse("postmaster@example.com").unwrap(),
    };
    let spec = json!({
        "account": "postmaster@example.com", "special": special,
        "remote": {"host": "h", "account": "a", "passwordSecretRef": {"name": "s"}},
    });
    let asked = Asked::of(&serde_json::from_value(spec).unwrap()).unwrap();
    let mut directory = Directory::new(vec![local.clone()], Vec::new(), Some("example.com"));
    directory.unified(&asked, &local.postmaster).unwrap()
}

fn large(name: &str, special: &str, aliases: usize) -> WorkItem {
    WorkItem { unified: Some(unified(special, aliases)), ..plain(name) }
}

fn octets(unified: &Unified) -> usize {
    serde_json::to_vec(unified).unwrap().len()
}

#[test]
fn unified_records_are_written_once_and_then_left_alone() {
    let mut stage = Stage::new();
    assert!((58 * 1024..MOST_BYTES).contains(&octets(&unified("X-To", 295))));
    for n in 0..300 {
        stage.put(plain(&format!("p{n}")));
    }
    stage.put(large("all", "X-To", 295));
    stage.put(large("copies", "*", 295));
    stage.settle();
    let packed = stage.packed();
    assert_eq!(packed.values().map(Vec::len).sum::<usize>(), 302);
    for (name, items) in &packed {
        let wanted = if items.iter().any(|item| item.unified.is_some()) { 2 } else { 1 };
        assert_eq!(stage.slice(name).spec.format, wanted, "{name}");
    }
    let all = packed.values().flatten().find(|item| &*item.key.name == "all").unwrap();
    assert_eq!(all.unified, Some(unified("X-To", 295)));
    for name in ["all", "copies", "p299"] {
        let key = RecordKey { namespace: "mail".into(), name: name.into() };
        assert!(stage.work.placed(&key).is_some(), "{name}");
    }
    // Looked at again, nothing is written.
    stage.put(large("all", "X-To", 295));
    stage.put(plain("p7"));
    assert_eq!(stage.settle(), [""; 0]);
    // Nor by another leader, that knows only what is written.
    let mut work = Work::new(Config { shards: 1, timing: Timing::FAST }, Workers::new(Timing::FAST));
    std::mem::swap(&mut stage.work, &mut work);
    let slices: Vec<RpopWorkSlice> = stage.slices.keys().map(|name| stage.slice(name)).collect();
    for item in packed.into_values().flatten() {
        stage.put(item);
    }
    stage.work.complete(stage.now);
    stage.work.hear(stage.now, Seen::Shards(stage.shard.iter().cloned().collect()));
    stage.work.hear(stage.now, Seen::Slices(slices.iter().filter_map(slice_seen).collect()));
    stage.work.hear(stage.now, Seen::Leases { sent: stage.now, leases: Vec::new(), leader: "1".into() });
    assert_eq!(stage.settle(), [""; 0]);
}

#[test]
fn a_domain_more_writes_one_slice_and_a_large_growth_moves_what_must() {
    let mut stage = Stage::new();
    stage.put(large("all", "X-To", 3));
    for n in 0..150 {
        stage.put(plain(&format!("p{n}")));
    }
    stage.settle();
    stage.put(large("all", "X-To", 4));
    assert_eq!(stage.settle().len(), 1);
    stage.packed();
    stage.put(large("all", "X-To", 295));
    stage.settle();
    let packed = stage.packed();
    let names: BTreeSet<_> = packed.values().flatten().map(|item| item.key.clone()).collect();
    assert_eq!(names.len(), 151);
    assert_eq!(packed.values().flatten().count(), 151, "each is in one slice");
    let all = packed.values().flatten().find(|item| &*item.key.name == "all").unwrap();
    assert_eq!(all.unified, Some(unified("X-To", 295)));
}
