//! A provider that collects the mail of whole domains, the mail system of
//! those domains, and the operator between them: all real.

use std::collections::BTreeMap;

use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use rpop::api::{RpopRecord, RpopRecordStatus, RpopShard, RpopWorkSlice, RpopWorkSliceSpec};
use rpop::domain::ledger::State;
use rpop::domain::shards::ShardId;
use rpop::domain::work::RecordKey;
use rpop::engine::ports::LedgerStore as _;
use rpop::k8s::ledger::{ConfigMapLedgers, Holdings, Owner};
use serde_json::{Value, json};

use crate::parts::dovecot::{Dovecot, PASSWORD};
use crate::parts::mail::{Arrived, message};
use crate::parts::postfix::Postfix;
use crate::parts::rpop::Running;
use crate::parts::wait_until;
use crate::support::{SYSTEM, Server, Worker, eventually};

/// The namespace of the records.
pub const MAIL: &str = "mail";

/// See the module's page.
pub struct Office {
    pub server: Server,
    client: Client,
    /// Its accounts are `catchall` and `other`.
    pub provider: Dovecot,
    /// The queue of `local.test` (alias `alias.test`), which is the Main Domain:
    /// it knows the accounts of `home`, and hands over to it.
    pub queue: Postfix,
    /// Where `alice`, `bob`, `postmaster` and `erin` read their mail; and
    /// `author`, who writes to them from `sender.test`.
    pub home: Dovecot,
    /// Where `carol`, `dave` and `erin` read theirs: `second.test`, by LMTP.
    pub branch: Dovecot,
    controller: Running,
    pub workers: Vec<Worker>,
}

/// Accounts of an office, as it is when the test begins.
const QUEUED: &[&str] = &[
    "alice@local.test",
    "bob@local.test",
    "postmaster@local.test",
    "alice@alias.test",
    "bob@alias.test",
    "erin@third.test",
    "author@sender.test",
];

impl Office {
    /// One with a Main Domain, a second domain and that many workers.
    pub async fn open(test: &str, workers: usize) -> Option<Self> {
        let server = Server::start()?;
        let (provider, home, branch) = (Dovecot::start(test)?, Dovecot::start(test)?, Dovecot::start(test)?);
        let queue = Postfix::start_for(test, home.lmtp, QUEUED)?;
        provider.add(["catchall", "other"]);
        home.add(["alice", "bob", "postmaster", "erin", "author"]);
        branch.add(["carol", "dave", "erin"]);
        server.deploy();
        let client = server.client().await;
        let controller = server.controller("rpop-controller-0", 4).await;
        let mut office =
            Self { server, client, provider, queue, home, branch, controller, workers: Vec::new() };
        for number in 0..workers {
            office.workers.push(office.server.worker(&format!("rpop-worker-{number}")).await);
        }
        office.server.kubectl(&["create", "namespace", MAIL]).succeeds();
        office.apply("v1", "Secret", "provider", &json!({"stringData": {"password": PASSWORD}}));
        office.settings(&json!({"mainDomain": "local.test"}));
        office.main(&["alias.test"]);
        office.domain("second.test", &json!({"delivery": lmtp(office.branch.lmtp)}));
        Some(office)
    }

    fn apply(&self, version: &str, kind: &str, name: &str, more: &Value) {
        let mut object =
            json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": MAIL}});
        for (field, value) in more.as_object().unwrap() {
            object[field] = value.clone();
        }
        self.server.apply(&object.to_string()).succeeds();
    }

    /// The settings: those that loopback needs, and these.
    pub fn settings(&self, more: &Value) {
        let mut spec = json!({
            "allowSelfPoll": true, "remoteNetworks": {"allow": ["127.0.0.0/8"]},
            "delayFailedHosts": "10s", "delayFailedAccounts": "10s",
        });
        for (field, value) in more.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let object = json!({
            "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopSettings", "metadata": {"name": "default"},
            "spec": spec,
        });
        self.server.apply(&object.to_string()).succeeds();
    }

    /// The Main Domain with these aliases: its accounts may be used in the
    /// records' namespace.
    pub fn main(&self, aliases: &[&str]) {
        let labels = json!({"matchLabels": {"kubernetes.io/metadata.name": MAIL}});
        let allow = json!([{"namespaces": labels, "accounts": ["postmaster", "alice"]}]);
        let delivery = smtp(self.queue.smtp);
        self.domain("local.test", &json!({"aliases": aliases, "delivery": delivery, "allow": allow}));
    }

    /// A domain.
    pub fn domain(&self, name: &str, spec: &Value) {
        let object = json!({
            "apiVersion": "rpop.dev/v1alpha1", "kind": "RpopDomain", "metadata": {"name": name}, "spec": spec,
        });
        self.server.apply(&object.to_string()).succeeds();
    }

    /// A record of the provider's account of that name.
    pub fn record(&self, name: &str, account: &str, special: &str, poll_every: &str) {
        let spec = json!({
            "account": account, "special": special, "pollEvery": poll_every, "tls": {"mode": "None"},
            "remote": {
                "host": format!("127.0.0.1:{}", self.provider.pop3), "account": name,
                "passwordSecretRef": {"name": "provider"},
            },
        });
        self.apply("rpop.dev/v1alpha1", "RpopRecord", name, &json!({"spec": spec}));
    }

    /// Mail arrives at one of the provider's accounts.
    pub fn arrives(&self, account: &str, mail: &[Vec<u8>]) {
        use std::sync::atomic::{AtomicUsize, Ordering};
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let first = NUMBER.fetch_add(mail.len(), Ordering::Relaxed);
        self.provider.inbox(account).fill(first, mail.iter().map(Vec::as_slice));
    }

    /// Waits until all of an account's mail is fetched and passed on.
    pub fn moved(&self, account: &str) {
        wait_until("the provider's account to be empty", || self.provider.inbox(account).count() == 0);
        self.queue_ran();
    }

    /// Waits until nothing is in the queue.
    pub fn queue_ran(&self) {
        wait_until("the queue to be empty", || self.queue.queued() == 0);
    }

    /// Everybody's mail: the marks of what each has, sorted; what is there
    /// twice, twice. What was not sent by the test has no mark.
    pub fn mail(&self) -> BTreeMap<String, Vec<String>> {
        let stores = [
            (&self.home, &["alice", "bob", "postmaster", "erin", "author"][..], ""),
            (&self.branch, &["carol", "dave", "erin"][..], " at the branch"),
        ];
        let mut all = BTreeMap::new();
        for (store, accounts, place) in stores {
            for account in accounts {
                let marks = marks(&store.inbox(account).read());
                if !marks.is_empty() {
                    all.insert(format!("{account}{place}"), marks);
                }
            }
        }
        let tagged = marks(&self.home.mailbox("bob", Some("lists")).read());
        if !tagged.is_empty() {
            all.insert("bob+lists".to_owned(), tagged);
        }
        all
    }

    pub async fn status(&self, record: &str) -> RpopRecordStatus {
        let records: Api<RpopRecord> = Api::namespaced(self.client.clone(), MAIL);
        records.get(record).await.unwrap().status.unwrap_or_default()
    }

    /// Waits until a condition of a record is this, for this reason; its
    /// message.
    pub async fn says(&self, record: &str, type_: &str, status: &str, reason: &str) -> String {
        eventually(&format!("{record} to be {type_}={status} ({reason})"), || async {
            let said = self.status(record).await.conditions;
            let found = said.into_iter().find(|said| said.type_ == type_)?;
            (found.status == status && found.reason == reason).then_some(found.message)
        })
        .await
    }

    /// Waits for the end of as many further polls.
    pub async fn polls(&self, record: &str, more: u64) {
        let count = || async { self.status(record).await.counters.unwrap_or_default().polls };
        let before = count().await;
        eventually(&format!("{more} polls of {record}"), || async {
            (count().await >= before + more).then_some(())
        })
        .await;
    }

    /// The line of a record in `kubectl get rpop`, by its columns.
    pub fn row(&self, record: &str) -> BTreeMap<String, String> {
        let table = self.server.kubectl(&["get", "rpop", "-n", MAIL, record]).succeeds();
        let mut lines = table.lines();
        let (names, row) = (lines.next().unwrap(), lines.next().unwrap());
        // Names of columns have single spaces, what is between them has more.
        let gap = |at: &usize| names[..*at].ends_with("  ") && !names[*at..].starts_with(' ');
        let starts: Vec<usize> = std::iter::once(0).chain((1..names.len()).filter(gap)).collect();
        let ends = starts.iter().skip(1).copied().chain([usize::MAX]);
        let cell = |line: &str, from: usize, to: usize| {
            line.get(from..to.min(line.len())).unwrap_or_default().trim().to_owned()
        };
        starts.iter().zip(ends).map(|(from, to)| (cell(names, *from, to), cell(row, *from, to))).collect()
    }

    /// Waits until the worker has taken in that the record's work is so.
    pub async fn works_by(
        &self,
        record: &str,
        what: &str,
        holds: impl Fn(&RpopWorkSliceSpec, &Value) -> bool,
    ) {
        let slices: Api<RpopWorkSlice> = Api::namespaced(self.client.clone(), SYSTEM);
        let shards: Api<RpopShard> = Api::namespaced(self.client.clone(), SYSTEM);
        eventually(&format!("{record} to be polled with {what}"), || async {
            let all = slices.list(&ListParams::default()).await.unwrap();
            let is_it = |item: &&Value| item["name"] == record && item["namespace"] == MAIL;
            let (slice, item) =
                all.iter().find_map(|slice| Some((slice, slice.spec.items.iter().find(is_it)?)))?;
            let shard = shards.get(&format!("shard-{:03}", slice.spec.shard)).await.unwrap().status?;
            let taken = shard.observed_slices.get(&slice.name_any())?;
            (holds(&slice.spec, item) && Some(taken.generation) == slice.metadata.generation).then_some(())
        })
        .await;
    }

    /// Waits until addresses in these domains count, and in no others.
    pub async fn knows(&self, record: &str, domains: &[&str]) {
        self.works_by(record, &format!("{domains:?}"), |_, item| {
            let places = item["unified"]["domains"].as_array();
            let names = places.into_iter().flatten().filter_map(|place| place["names"].as_array()).flatten();
            let mut names: Vec<&str> = names.filter_map(Value::as_str).collect();
            names.sort_unstable();
            names == domains
        })
        .await;
    }

    /// Who polls a record: the place among the workers.
    pub async fn holder(&self, record: &str) -> usize {
        let shard = self.shard(record).await;
        let holder = shard.1.status.unwrap().holder.unwrap();
        self.workers.iter().position(|worker| worker.me == holder).expect("it is one of ours")
    }

    async fn shard(&self, record: &str) -> (ShardId, RpopShard) {
        let number = self.status(record).await.shard.expect("it has a place");
        let id = ShardId(u16::try_from(number).unwrap());
        let shards: Api<RpopShard> = Api::namespaced(self.client.clone(), SYSTEM);
        (id, shards.get(&id.to_string()).await.unwrap())
    }

    /// What the record's ledger in the cluster says is owed: how often it was
    /// tried and to how many recipients, for each message.
    pub async fn owed(&self, record: &str) -> Vec<(u16, usize)> {
        struct One(Owner);
        impl Holdings for One {
            fn owner(&self, _: &RecordKey) -> Option<Owner> {
                Some(self.0.clone())
            }
        }
        let records: Api<RpopRecord> = Api::namespaced(self.client.clone(), MAIL);
        let uid = records.get(record).await.unwrap().uid().unwrap();
        let (shard, object) = self.shard(record).await;
        let owner = Owner { uid, epoch: object.status.unwrap().epoch, shard };
        let ledgers = ConfigMapLedgers::new(self.client.clone(), std::sync::Arc::new(One(owner)));
        let key = RecordKey { namespace: MAIL.into(), name: record.into() };
        let ledger = ledgers.load(&key).await.unwrap();
        let owed = ledger.iter().filter_map(|(_, entry)| match entry.state {
            State::Owed { attempts, to, .. } => Some((attempts, to.len())),
            _ => None,
        });
        owed.collect()
    }

    /// Ends what runs, in peace.
    pub fn close(self) {
        for running in self.workers.into_iter().map(|worker| worker.process).chain([self.controller]) {
            running.signal(rustix::process::Signal::TERM);
            let ended = running.wait();
            assert_eq!(ended.code(), 0, "{}", ended.text());
            assert!(!ended.text().contains("panicked at"), "{}", ended.text());
        }
    }
}

/// The `delivery` by SMTP to a loopback port.
pub fn smtp(port: u16) -> Value {
    json!({"smtp": {"host": "127.0.0.1", "port": port, "tls": {"mode": "None"}}})
}

/// The `delivery` by LMTP to a loopback port.
pub fn lmtp(port: u16) -> Value {
    json!({"lmtp": {"host": "127.0.0.1", "port": port, "tls": {"mode": "None"}}})
}

/// A message of `author@sender.test`, with `fields` (whole lines) in front, as
/// a provider stores it.
pub fn stored(mark: &str, fields: &str) -> Vec<u8> {
    [b"Return-Path: <author@sender.test>\r\n", fields.as_bytes(), message(mark, 2000).as_slice()].concat()
}

/// One with other recipients in its header (whole lines).
pub fn addressed(mark: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(stored(mark, "")).unwrap();
    text.replacen("To: somebody@local.test\r\n", to, 1).into_bytes()
}

fn marks(mail: &[Arrived]) -> Vec<String> {
    let mut marks: Vec<String> = mail.iter().map(Arrived::mark).collect();
    marks.sort();
    marks
}
