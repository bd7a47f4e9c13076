//! A cluster with RPOP in it: an API server of its own, the RBAC and the
//! policies of `deploy/`, records, and processes that come and go like pods.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kube::api::{Api, ListParams, PostParams};
use rpop::api::{RpopRecord, RpopShard};
use rustix::process::Signal;
use tokio::time::Instant;

use super::maildrops::Maildrops;
use super::sink::Sink;
use crate::parts::free_port;
use crate::parts::rpop::Running;
use crate::support::{Identity, Server};

pub const SYSTEM: &str = "rpop-system";

/// How large, how fast.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub records: usize,
    pub hosts: usize,
    pub shards: u16,
    pub poll_every: Duration,
    /// `fast` or `default`, and its D.
    pub timing: &'static str,
    pub dead_after: Duration,
    pub host_connections: u32,
}

/// By shard its holder and epoch.
pub type Places = BTreeMap<String, (String, i64)>;

/// A process in a pod.
pub struct Process {
    pub identity: Identity,
    pub running: Running,
    /// Where it serves its metrics.
    pub port: u16,
    role: &'static str,
}

impl Process {
    pub fn name(&self) -> &str {
        &self.identity.pod
    }

    pub fn signal(&self, signal: Signal) {
        self.running.signal(signal);
    }

    /// The resident set now, and the most of it so far, KiB.
    pub fn resident(&self) -> (u64, u64) {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.running.pid())).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().nth(0)?.parse().ok()).unwrap_or(0)
        };
        (field("VmRSS:"), field("VmHWM:"))
    }
}

/// The cluster.
pub struct Fleet {
    pub server: Server,
    pub client: Client,
    pub size: Size,
    pub drops: Maildrops,
    pub sink: Sink,
    pub workers: Vec<Process>,
    pub controllers: Vec<Process>,
    /// Identities not used yet.
    spare: Vec<Identity>,
    pods: usize,
    /// What processes said that have ended.
    pub said: Vec<(String, String)>,
}

impl Fleet {
    /// Everything but the processes. `None`: skipped, said aloud.
    pub async fn new(size: Size) -> Option<Self> {
        let server = tokio::task::block_in_place(Server::start)?;
        let client = server.client().await;
        let drops = Maildrops::start((0..size.records).map(account)).await;
        let sink = Sink::start().await;
        let mut fleet = Self {
            server,
            client,
            size,
            drops,
            sink,
            workers: Vec::new(),
            controllers: Vec::new(),
            spare: Vec::new(),
            pods: 0,
            said: Vec::new(),
        };
        fleet.install();
        fleet.stock(8).await;
        fleet.make_records().await;
        Some(fleet)
    }

    fn install(&self) {
        let namespaces = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: {SYSTEM}}}}}\n---\n\
             {{apiVersion: v1, kind: Namespace, metadata: {{name: mail}}}}\n"
        );
        self.server.apply(&namespaces).succeeds();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
        for file in ["rbac.yaml", "policies.yaml", "flowschema.yaml"] {
            let path = folder.join(file);
            self.server.kubectl(&["apply", "--server-side", "-f", path.to_str().unwrap()]).succeeds();
        }
        let (smtp, hosts) = (self.sink.port, self.size.host_connections);
        self.server
            .apply(&format!(
                "apiVersion: rpop.dev/v1alpha1\nkind: RpopSettings\nmetadata: {{name: default}}\n\
                 spec:\n  allowSelfPoll: true\n  remoteNetworks: {{allow: [127.0.0.0/8]}}\n  \
                 hostConnections: {hosts}\n  delayFailedHosts: 10s\n  delayFailedAccounts: 10s\n\
                 ---\napiVersion: rpop.dev/v1alpha1\nkind: RpopDomain\nmetadata: {{name: local.test}}\n\
                 spec:\n  postmaster: postmaster@local.test\n  \
                 delivery: {{smtp: {{host: 127.0.0.1, port: {smtp}, tls: {{mode: None}}}}}}\n  \
                 allow: [{{namespaces: {{}}, accounts: ['*']}}]\n\
                 ---\napiVersion: v1\nkind: Secret\nmetadata: {{name: password, namespace: mail}}\n\
                 stringData: {{password: secret}}\n"
            ))
            .succeeds();
    }

    async fn make_records(&self) {
        let records: Api<RpopRecord> = Api::namespaced(self.client.clone(), "mail");
        let made = stream::iter(0..self.size.records).map(|at| {
            let host = at % self.size.hosts;
            let record = serde_json::json!({
                "apiVersion": "rpop.dev/v1alpha1",
                "kind": "RpopRecord",
                "metadata": {"name": account(at)},
                "spec": {
                    "account": format!("{}@local.test", account(at)),
                    "pollEvery": format!("{}s", self.size.poll_every.as_secs()),
                    "remote": {
                        "host": format!("127.0.{}.{}:{}", 1 + host / 200, 1 + host % 200, self.drops.port),
                        "account": account(at),
                        "passwordSecretRef": {"name": "password"},
                    },
                    "tls": {"mode": "None"},
                },
            });
            let (records, record) = (&records, serde_json::from_value(record).expect("a record"));
            async move { records.create(&PostParams::default(), &record).await.map(drop) }
        });
        let failed: Vec<_> =
            made.buffer_unordered(16).filter_map(|made| async { made.err() }).collect().await;
        assert!(failed.is_empty(), "{} records are refused, the first: {}", failed.len(), failed[0]);
    }

    /// Makes so many identities of workers in advance: while the API server is
    /// away nobody gets one.
    pub async fn stock(&mut self, count: usize) {
        while self.spare.len() < count {
            self.pods += 1;
            let pod = format!("rpop-worker-{}", self.pods);
            self.spare.push(self.server.pod_token(SYSTEM, "rpop-worker", &pod).await);
        }
    }

    /// A worker in a new pod; its place.
    pub async fn add_worker(&mut self) -> usize {
        self.stock(1).await;
        let identity = self.spare.remove(0);
        self.workers.push(self.start("worker", identity));
        self.workers.len() - 1
    }

    pub async fn add_controller(&mut self) -> usize {
        self.pods += 1;
        let pod = format!("rpop-controller-{}", self.pods);
        let identity = self.server.pod_token(SYSTEM, "rpop-controller", &pod).await;
        self.controllers.push(self.start("controller", identity));
        self.controllers.len() - 1
    }

    fn start(&self, role: &'static str, identity: Identity) -> Process {
        let (port, shards) = (free_port(), self.size.shards.to_string());
        let listen = format!("127.0.0.1:{port}");
        let args = [role, "--listen", &listen, "--timing", self.size.timing, "--shards", &shards];
        let running = identity.run(&args, &["RPOP_LOG_FORMAT=text"]);
        Process { identity, running, port, role }
    }

    /// kill -9 without anything after it: the node is gone. What it was called.
    pub fn kill_worker(&mut self, at: usize) -> String {
        let process = self.workers.remove(at);
        self.bury(process)
    }

    /// kill -9, and the container starts again in the same pod.
    pub fn restart_worker(&mut self, at: usize) {
        let process = self.workers.remove(at);
        let identity = process.identity.clone();
        self.bury(process);
        self.workers.push(self.start("worker", identity));
    }

    pub fn kill_controller(&mut self, at: usize) -> Identity {
        let process = self.controllers.remove(at);
        let identity = process.identity.clone();
        self.bury(process);
        identity
    }

    pub fn start_controller(&mut self, identity: Identity) {
        let process = self.start("controller", identity);
        self.controllers.push(process);
    }

    fn bury(&mut self, process: Process) -> String {
        let name = process.name().to_owned();
        self.said.push((name.clone(), process.running.text()));
        process.running.kill();
        name
    }

    /// Waits for the end of a worker that was told to end; how it ended.
    pub async fn outlast_worker(&mut self, name: &str, limit: Duration) -> ExitStatus {
        let at = self.workers.iter().position(|worker| worker.name() == name).expect("a worker");
        let until = Instant::now() + limit;
        while self.workers[at].running.runs() {
            assert!(
                Instant::now() < until,
                "{name} does not end:\n{}",
                last(&self.workers[at].running.text())
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let process = self.workers.remove(at);
        let run = process.running.wait();
        self.said.push((process.identity.pod, run.text()));
        run.status
    }

    /// Starts again whatever has ended, as a kubelet would; their names.
    pub fn revive(&mut self) -> Vec<String> {
        let mut names = Vec::new();
        for role in ["worker", "controller"] {
            let list = if role == "worker" { &mut self.workers } else { &mut self.controllers };
            let mut at = 0;
            let mut ended = Vec::new();
            while at < list.len() {
                if list[at].running.runs() {
                    at += 1;
                } else {
                    ended.push(list.remove(at));
                }
            }
            for process in ended {
                let (role, identity) = (process.role, process.identity.clone());
                names.push(self.bury(process));
                let started = self.start(role, identity);
                if role == "worker" { &mut self.workers } else { &mut self.controllers }.push(started);
            }
        }
        names
    }

    /// Each shard's holder and epoch; `None` while the API server is away.
    pub async fn shards(&self) -> Option<Places> {
        Some(self.placement().await?.0)
    }

    /// The same, and whether no shard is on its way.
    async fn placement(&self) -> Option<(Places, bool)> {
        let shards: Api<RpopShard> = Api::namespaced(self.client.clone(), SYSTEM);
        let list = tokio::time::timeout(Duration::from_secs(5), shards.list(&ListParams::default()))
            .await
            .ok()?
            .ok()?;
        let rests = list.iter().all(|shard| {
            shard.spec.desired == shard.status.as_ref().and_then(|status| status.holder.clone())
        });
        let status = |shard: RpopShard| {
            let status = shard.status.unwrap_or_default();
            (shard.metadata.name.unwrap_or_default(), (status.holder.unwrap_or_default(), status.epoch))
        };
        Some((list.into_iter().map(status).collect(), rests))
    }

    /// By pod, whom its membership lease names.
    pub async fn members(&self) -> Option<BTreeMap<String, String>> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), SYSTEM);
        let of_workers = ListParams::default().labels("rpop.dev/component=worker");
        let list = tokio::time::timeout(Duration::from_secs(5), leases.list(&of_workers)).await.ok()?.ok()?;
        let holder = |lease: Lease| {
            let holder = lease.spec.unwrap_or_default().holder_identity.unwrap_or_default();
            let name = lease.metadata.name.unwrap_or_default();
            (name.trim_start_matches("rpop-worker-").to_owned(), holder)
        };
        Some(list.into_iter().map(holder).collect())
    }

    /// Whether all shards are with workers that run, to stay there.
    pub async fn settled(&mut self) -> bool {
        let Some((shards, true)) = self.placement().await else { return false };
        let names: Vec<_> = self.workers.iter().map(|worker| format!("{}/", worker.name())).collect();
        shards.len() == usize::from(self.size.shards)
            && shards.values().all(|(holder, _)| names.iter().any(|name| holder.starts_with(name)))
    }

    /// Waits until all shards are with workers that run; how long it took.
    pub async fn settle(&mut self, limit: Duration) -> Duration {
        let since = Instant::now();
        while !self.settled().await {
            let shards = self.shards().await;
            assert!(
                since.elapsed() < limit,
                "shards without workers after {limit:?}: {shards:?}\n{}",
                self.logs()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        since.elapsed()
    }

    /// How often leaders have said that they cannot tell who is dead.
    pub fn doubts(&self) -> usize {
        let running = self.controllers.iter().map(|process| process.running.text());
        let ended = self.said.iter().map(|(_, text)| text.clone());
        running.chain(ended).map(|text| text.matches("not sure whether workers could renew").count()).sum()
    }

    /// The last words of all processes.
    pub fn logs(&self) -> String {
        let running = self.workers.iter().chain(&self.controllers);
        let texts = running.map(|process| (process.name().to_owned(), process.running.text()));
        let ended =
            self.said.iter().rev().take(6).map(|(name, text)| (format!("{name} (ended)"), text.clone()));
        let all: Vec<_> =
            texts.chain(ended).map(|(name, text)| format!("--- {name}\n{}\n", last(&text))).collect();
        all.concat()
    }
}

/// The name of the record, the local account and the remote account.
pub fn account(at: usize) -> String {
    format!("u{at:05}")
}

fn last(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
