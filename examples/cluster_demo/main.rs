//! `make run-cluster`: RPOP as an operator, on a real API server of its own.
//!
//! kube-apiserver and etcd run on this machine, with the accounts, rights and
//! policies of `deploy/`; a Dovecot plays the provider, a second one and a
//! Postfix are the own mail system. Controller and workers are local processes,
//! each with the identity that its Pod would have. The manifests are those of
//! `examples/cluster/`, with the hosts of this run filled in.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a demonstration that cannot go on says why and ends")]
#![allow(clippy::let_underscore_must_use, clippy::must_use_candidate, clippy::new_without_default)]
#![allow(clippy::return_self_not_must_use, missing_docs, unreachable_pub)]

#[path = "../../tests/it/support/mod.rs"]
mod parts;
#[path = "../../tests/cluster/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use parts::dovecot::Dovecot;
use parts::mail::{self, census};
use parts::postfix::Postfix;
use parts::rpop::Running;
use parts::wait_for;
use support::{SYSTEM, Server, project};
use tokio::time::Instant;

/// Where the rendered manifests and the kubeconfig are left for reading.
const FOLDER: &str = ".cluster-demo";
/// `RpopSettings.checkpoint.messages`: as many may come twice when a worker is
/// killed.
const CHECKPOINT: usize = 20;
/// How many messages the busy mailbox gets while a worker is killed.
const BUSY: usize = 4000;
/// For anything that takes a poll or a fail-over, on a loaded machine.
const LONG: Duration = Duration::from_mins(4);

/// What holds because all the servers are on this machine.
const SETTINGS: &str = "\
# What this demonstration needs because all its servers are on this machine.
apiVersion: rpop.dev/v1alpha1
kind: RpopSettings
metadata: {name: default}
spec:
  allowSelfPoll: true
  remoteNetworks: {allow: [127.0.0.0/8]}
";

/// A digest, and how often it is there.
type Census = BTreeMap<String, usize>;

struct Mailbox {
    account: &'static str,
    folder: Option<&'static str>,
    messages: usize,
    octets: usize,
    /// Whether its record is one that mail comes through.
    moves: bool,
    note: &'static str,
}

const MAILBOXES: &[Mailbox] = &[
    Mailbox { account: "alice", folder: None, messages: 25, octets: 3000, moves: true, note: "to the queue" },
    Mailbox {
        account: "carol",
        folder: Some("Archive"),
        messages: 40,
        octets: 20_000,
        moves: true,
        note: "kept at the provider, folder Archive",
    },
    Mailbox {
        account: "erin",
        folder: Some("Lists"),
        messages: 500,
        octets: 4000,
        moves: true,
        note: "busy: gets thousands more later",
    },
    Mailbox {
        account: "frank",
        folder: None,
        messages: 3,
        octets: 1000,
        moves: false,
        note: "its password is outdated",
    },
    Mailbox {
        account: "mallory",
        folder: None,
        messages: 3,
        octets: 1000,
        moves: false,
        note: "its namespace may not have alice's mail",
    },
];

/// A process of the operator.
struct Process {
    pod: String,
    running: Running,
}

struct Demo {
    server: Server,
    provider: Dovecot,
    home: Dovecot,
    postfix: Option<Postfix>,
    sent: BTreeMap<&'static str, Census>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let began = Instant::now();
    let Some(mut demo) = Demo::start() else { return ExitCode::FAILURE };

    title("The operator: a controller and two workers, with the rights of their Pods");
    let mut processes = Vec::new();
    for (kind, pod) in
        [("controller", "rpop-controller-0"), ("worker", "rpop-worker-0"), ("worker", "rpop-worker-1")]
    {
        processes.push(demo.process(kind, pod).await);
    }

    title("kubectl apply -f examples/cluster");
    let manifests = demo.render();
    demo.show(&["apply", "-f", manifests.to_str().unwrap()]);

    title("kubectl get rpop -A, until all of it has moved");
    demo.watch_until_moved(&mut processes);
    demo.show_holders();
    let first = demo.prove();

    title("A worker is killed (kill -9) while mail flows");
    let victim = demo.kill_the_busy_one(&mut processes);
    let second = demo.taken_over(&mut processes, &victim);

    for process in &processes {
        let log = Path::new(FOLDER).join(format!("{}.log", process.pod));
        std::fs::write(log, process.running.text()).expect("a log");
    }
    if !(first && second) {
        println!("\nThis is not as it should be. The manifests and the logs are in {FOLDER}.");
        return ExitCode::FAILURE;
    }
    println!("\nAll of it in {:.0} s.", began.elapsed().as_secs_f32());
    demo.stay();
    next_steps();
    // Orderly: the processes say good-bye to the server before it goes.
    for process in processes {
        process.running.signal(rustix::process::Signal::TERM);
        drop(process.running.wait());
    }
    ExitCode::SUCCESS
}

impl Demo {
    fn start() -> Option<Self> {
        title("A Kubernetes API server, a provider, and a mail system of our own");
        let server = Server::start()?;
        server.deploy();
        let provider = Dovecot::start("the demonstration")?;
        let home = Dovecot::start("the demonstration")?;
        provider.add(MAILBOXES.iter().map(|mailbox| mailbox.account));
        home.add(MAILBOXES.iter().map(|mailbox| mailbox.account));
        let postfix = Postfix::start("the part of Postfix", home.lmtp);
        let mut sent = BTreeMap::new();
        for mailbox in MAILBOXES {
            let messages = provider.inbox(mailbox.account).fill_generated(
                mailbox.account,
                mailbox.messages,
                mailbox.octets,
            );
            println!("  {:8} {:>4} messages   {}", mailbox.account, messages.len(), mailbox.note);
            sent.insert(mailbox.account, census(messages.iter().map(Vec::as_slice)));
        }
        let queue = match &postfix {
            Some(postfix) => format!("Postfix, SMTP on {}", postfix.smtp),
            None => "no Postfix here".to_owned(),
        };
        println!("  cluster:  kube-apiserver at {}, with all of deploy/", server.url);
        println!("  provider: Dovecot, POP3 in TLS on {}", provider.pop3s);
        println!("  own:      {queue}; Dovecot, LMTP on {}", home.lmtp);
        Some(Self { server, provider, home, postfix, sent })
    }

    /// Starts a process with a token that is bound to its Pod.
    async fn process(&self, kind: &str, pod: &str) -> Process {
        let identity = self.server.pod_token(SYSTEM, &format!("rpop-{kind}"), pod).await;
        let listen = format!("127.0.0.1:{}", parts::free_port());
        let mut running = identity.run(&[kind, "--listen", &listen], &["RPOP_TIMING=fast", "RPOP_SHARDS=16"]);
        // A mistake on the command line ends it at once.
        std::thread::sleep(Duration::from_millis(300));
        assert!(running.runs(), "rpop {kind} ended:\n{}", running.text());
        println!("  rpop {kind:10} pid {:<7} Pod {pod}, metrics at http://{listen}/metrics", running.pid());
        Process { pod: pod.to_owned(), running }
    }

    /// Fills in what this run decides: hosts, the provider's authority, and a
    /// quicker rhythm.
    fn render(&self) -> PathBuf {
        let folder = PathBuf::from(FOLDER);
        let manifests = folder.join("manifests");
        drop(std::fs::remove_dir_all(&folder));
        std::fs::create_dir_all(&manifests).expect("a folder for the manifests");
        let loopback = |port: u16| format!("{{host: 127.0.0.1, port: {port}, tls: {{mode: None}}}}");
        let mut files: Vec<PathBuf> = std::fs::read_dir(project("examples/cluster"))
            .expect("the examples")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        files.sort();
        for file in files {
            let mut text = std::fs::read_to_string(&file).expect("a manifest");
            let smtp = self.postfix.as_ref().map_or(self.home.lmtp, |postfix| postfix.smtp);
            for (from, to) in [
                ("pop.isp.example ", format!("127.0.0.1:{} ", self.provider.pop3s)),
                ("pop.isp.example\n", format!("127.0.0.1:{}\n", self.provider.pop3s)),
                ("{host: mail.example.com, port: 25}", loopback(smtp)),
                ("{host: store.example.com, port: 24}", loopback(self.home.lmtp)),
                ("pollEvery: 5m", "pollEvery: 10s".to_owned()),
                ("  # tls: {caRef", "  tls: {caRef".to_owned()),
            ] {
                text = text.replace(from, &to);
            }
            if self.postfix.is_none() {
                text = text.lines().filter(|line| !line.contains("smtp: {")).collect::<Vec<_>>().join("\n");
            }
            // In each namespace, before its records.
            let found = text.split_once("kind: Namespace\nmetadata:");
            if let Some(namespace) = found.and_then(|(_, rest)| rest.split("name: ").nth(1)) {
                let namespace: String =
                    namespace.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
                let authority = self.provider.authority.pem.trim_end().replace('\n', "\n    ");
                let secret = format!(
                    "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: isp-authority, namespace: {namespace}}}\n\
                     stringData:\n  ca.crt: |\n    {authority}\n---\n"
                );
                text = text.replacen("---\n", &secret, 1);
            }
            let name = file.file_name().expect("its name");
            std::fs::write(manifests.join(name), text).expect("a manifest");
        }
        std::fs::write(manifests.join("0-this-machine.yaml"), SETTINGS).expect("a manifest");
        let kubeconfig = folder.join("kubeconfig");
        std::fs::copy(&self.server.admin_kubeconfig, &kubeconfig).expect("the kubeconfig");
        manifests
    }

    /// `kubectl ARGS`, on the reader's terminal.
    fn show(&self, args: &[&str]) {
        println!("$ kubectl {}", args.join(" "));
        let answer = self.server.kubectl(args);
        print!("{}{}", indented(&answer.stdout), indented(&answer.stderr));
    }

    /// Shows the records whenever they have changed.
    fn watch_until_moved(&self, processes: &mut [Process]) {
        let mut shown = String::new();
        let mut when = None::<Instant>;
        wait_for("all the mail to move", LONG, || {
            alive(processes);
            let table = self.server.kubectl(&["get", "rpop", "-A"]).stdout;
            // Ages change all the time.
            let without_age: String = table
                .lines()
                .filter_map(|line| line.trim_end().rsplit_once(' '))
                .map(|(line, _)| line)
                .collect();
            let settled = self.settled(&table);
            if without_age != shown && (settled || when.is_none_or(|at| at.elapsed().as_secs() >= 2)) {
                println!("{}", indented(&table));
                shown = without_age;
                when = Some(Instant::now());
            }
            if !settled {
                std::thread::sleep(Duration::from_millis(300));
            }
            settled.then_some(())
        });
        self.show(&["-n", "lists", "get", "events", "--field-selector", "involvedObject.name=outdated"]);
        let why = "jsonpath={.status.conditions[?(@.type==\"Accepted\")].message}";
        println!("$ kubectl -n guest get rpop mallory -o '{why}'");
        let why = self.server.kubectl(&["-n", "guest", "get", "rpop", "mallory", "-o", why]);
        println!("{}", indented(&why.stdout));
    }

    /// Whether all that can move has moved, and the table says the rest.
    fn settled(&self, table: &str) -> bool {
        let queued = self.postfix.as_ref().map_or(0, Postfix::queued);
        let moved = MAILBOXES.iter().filter(|mailbox| mailbox.moves).all(|mailbox| {
            let arrived = self.home.mailbox(mailbox.account, mailbox.folder).count();
            let left = self.provider.inbox(mailbox.account).count();
            arrived >= mailbox.messages && (left == 0 || mailbox.account == "carol")
        });
        let said =
            table.contains("AuthFailed") && table.lines().filter(|line| line.contains("True")).count() >= 3;
        queued == 0 && moved && said
    }

    /// How many shards each worker holds.
    fn show_holders(&self) {
        let holders = self.server.kubectl(&[
            "-n",
            SYSTEM,
            "get",
            "rpopshards",
            "-o",
            "jsonpath={range .items[*]}{.status.holder}{\"\\n\"}{end}",
        ]);
        let mut counts = BTreeMap::<&str, usize>::new();
        for holder in holders.stdout.lines().filter(|line| !line.is_empty()) {
            *counts.entry(holder).or_default() += 1;
        }
        println!("\n  shards (kubectl -n {SYSTEM} get rpopshards):");
        for (holder, count) in counts {
            println!("    {holder:32} holds {count}");
        }
    }

    /// Compares what arrived with what was sent: nothing lost, nothing twice.
    fn prove(&self) -> bool {
        title("Proof: each message arrived once, octet for octet (SHA-256)");
        let mut all = true;
        for mailbox in MAILBOXES {
            let nothing = Census::new();
            let wanted = if mailbox.moves { &self.sent[mailbox.account] } else { &nothing };
            all &= self.compare(mailbox, wanted, 0);
        }
        all
    }

    fn compare(&self, mailbox: &Mailbox, wanted: &Census, repeats: usize) -> bool {
        let arrived = self.home.mailbox(mailbox.account, mailbox.folder).read();
        let found = mail::census_arrived(&arrived);
        let lost = wanted.keys().filter(|digest| !found.contains_key(*digest)).count();
        let strange = found.keys().filter(|digest| !wanted.contains_key(*digest)).count();
        let repeated: usize = found.values().map(|count| count - 1).sum();
        let good = lost == 0 && strange == 0 && repeated <= repeats;
        println!(
            "  {} {:8} {:>5} in {:8} {lost} lost or changed, {repeated} repeated",
            if good { "ok   " } else { "WRONG" },
            mailbox.account,
            arrived.len(),
            mailbox.folder.unwrap_or("INBOX"),
        );
        good
    }

    /// Fills the busy mailbox, and kills its worker when mail flows.
    fn kill_the_busy_one(&mut self, processes: &mut Vec<Process>) -> String {
        let busy = MAILBOXES.iter().find(|mailbox| mailbox.account == "erin").expect("it is in the list");
        let arrivals = self.home.mailbox(busy.account, busy.folder);
        let before = arrivals.count();
        let more: Vec<Vec<u8>> =
            (0..BUSY).map(|at| mail::message(&format!("more-{at:05}"), busy.octets)).collect();
        self.provider.inbox(busy.account).fill(busy.messages, more.iter().map(Vec::as_slice));
        let sent = self.sent.get_mut(busy.account).expect("it is in the list");
        sent.extend(census(more.iter().map(Vec::as_slice)));
        println!("  {BUSY} new messages are in erin's mailbox at the provider");

        wait_for("the new mail to flow", LONG, || {
            alive(processes);
            (arrivals.count() >= before + BUSY / 10).then_some(())
        });
        let holder = self.holder_of_busy();
        let at = processes
            .iter()
            .position(|process| holder.starts_with(&format!("{}/", process.pod)))
            .unwrap_or_else(|| panic!("no process of ours holds the shard, but {holder:?}"));
        let victim = processes.remove(at);
        println!("  $ kill -9 {}      # {holder}", victim.running.pid());
        victim.running.kill();
        let arrived = arrivals.count() - before;
        println!("  {arrived} of them had arrived; its Lease now goes stale, and the leader counts");
        assert!(arrived < BUSY, "this machine is too fast: all of it had arrived before the kill");
        holder
    }

    /// The worker that polls the busy mailbox.
    fn holder_of_busy(&self) -> String {
        let shard = self
            .server
            .kubectl(&["-n", "lists", "get", "rpop", "busy", "-o", "jsonpath={.status.shard}"])
            .succeeds();
        let shard = format!("shard-{:03}", shard.parse::<u16>().expect("the record's shard"));
        self.server
            .kubectl(&["-n", SYSTEM, "get", "rpopshard", &shard, "-o", "jsonpath={.status.holder}"])
            .succeeds()
    }

    fn taken_over(&self, processes: &mut [Process], victim: &str) -> bool {
        let killed = Instant::now();
        wait_for("another worker to take over", LONG, || {
            alive(processes);
            let holder = self.holder_of_busy();
            (holder != victim && !holder.is_empty()).then_some(())
        });
        println!(
            "  {} has its shards after {:.1} s (timing: fast, 8 s)",
            self.holder_of_busy(),
            killed.elapsed().as_secs_f32()
        );
        let mailbox = MAILBOXES.iter().find(|mailbox| mailbox.account == "erin").expect("it is in the list");
        let arrivals = self.home.mailbox(mailbox.account, mailbox.folder);
        let mut told = Instant::now();
        wait_for("the rest of the mail", LONG, || {
            alive(processes);
            if told.elapsed().as_secs() >= 5 {
                told = Instant::now();
                println!("  {} of {} there", arrivals.count(), mailbox.messages + BUSY);
            }
            std::thread::sleep(Duration::from_millis(50));
            let all = self.provider.inbox(mailbox.account).count() == 0;
            (all && arrivals.count() >= mailbox.messages + BUSY).then_some(())
        });
        println!("  the rest had arrived after {:.1} s", killed.elapsed().as_secs_f32());
        self.show_holders();
        title(&format!("Proof: nothing is lost; at most {CHECKPOINT} (the checkpoint) may be there twice"));
        let mut all = true;
        for mailbox in MAILBOXES.iter().filter(|mailbox| mailbox.moves) {
            all &= self.compare(mailbox, &self.sent[mailbox.account], CHECKPOINT);
        }
        println!();
        self.show(&["get", "rpop", "-A"]);
        all
    }

    /// With `STAY=1` everything runs on until Enter is pressed.
    fn stay(&self) {
        if std::env::var("STAY").as_deref() != Ok("1") {
            return;
        }
        println!("\nAll of it still runs. In another terminal:");
        println!("  export KUBECONFIG=$PWD/{FOLDER}/kubeconfig");
        println!("  {} get rpop -A -w", self.server.program("kubectl").display());
        println!("Enter ends it.");
        drop(std::io::stdin().read_line(&mut String::new()));
    }
}

fn next_steps() {
    println!("Next, in a cluster of your own (docs/cluster.md):");
    println!(
        "  docker build -f deploy/Dockerfile -t REGISTRY/rpop:0.1.0 . && docker push REGISTRY/rpop:0.1.0"
    );
    println!(
        "  helm install rpop charts/rpop -n {SYSTEM} --create-namespace --set image.repository=REGISTRY/rpop"
    );
    println!("  cp -r examples/cluster my-mail && $EDITOR my-mail/*.yaml && kubectl apply -f my-mail");
    println!("Or look around in this one: make run-cluster STAY=1");
}

/// A process that has ended by itself ends the demonstration.
fn alive(processes: &mut [Process]) {
    for process in processes {
        assert!(
            process.running.runs(),
            "{} ended by itself:\n{}",
            process.pod,
            last_lines(&process.running.text())
        );
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(30)).copied().collect::<Vec<_>>().join("\n")
}

fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |all, line| all + "  " + line + "\n")
}

fn title(text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{text}\x1b[0m");
    } else {
        println!("\n{text}");
    }
}
