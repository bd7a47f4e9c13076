//! etcd and kube-apiserver on free loopback ports.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rcgen::KeyPair;
use rustix::process::{Pid, Signal, kill_process_group};

use super::tools;
use crate::parts::authority::Authority;
use crate::parts::process;
use crate::parts::proxy::Proxy;
use crate::parts::{self, free_port, tail, wait_for};

/// How long a server may take to become ready on a loaded machine.
const START: Duration = Duration::from_mins(2);
/// The token of the cluster's administrator.
const ADMIN: &str = "admin";
/// Tells the halves of kubeconfigs apart.
static PARTS: AtomicUsize = AtomicUsize::new(0);

/// How a server is.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// etcd can be slowed down: [`Server::slow_etcd`].
    pub may_slow_etcd: bool,
    /// Further flags for kube-apiserver.
    pub flags: Vec<String>,
    /// Leave the CRDs out.
    pub without_crds: bool,
}

/// A running API server with its etcd. Dropped, both are gone.
pub struct Server {
    /// `https://127.0.0.1:PORT`; the same after a restart.
    pub url: String,
    /// The certificate of its authority, PEM.
    pub ca: PathBuf,
    /// For its administrator.
    pub admin_kubeconfig: PathBuf,
    /// Its folder: data, logs, kubeconfigs. Removed with it.
    pub folder: PathBuf,
    options: Options,
    tools: &'static Path,
    port: u16,
    etcd_port: u16,
    proxy: Option<Proxy>,
    api: Option<Daemon>,
    etcd: Option<Daemon>,
}

impl Server {
    /// A server of one's own, with the CRDs. `None`: skipped, said aloud.
    ///
    /// Blocks for some seconds.
    pub fn start() -> Option<Self> {
        Self::start_with(Options::default())
    }

    /// The same, with a say in it.
    pub fn start_with(options: Options) -> Option<Self> {
        let tools = tools()?;
        let folder = parts::folder("cluster").keep();
        remove_after_us(&folder);
        let (ca, admin_kubeconfig) = (folder.join("ca.crt"), folder.join("admin.kubeconfig"));
        let mut server = Self {
            url: String::new(),
            ca,
            admin_kubeconfig,
            folder,
            options,
            tools,
            port: 0,
            etcd_port: 0,
            proxy: None,
            api: None,
            etcd: None,
        };
        server.credentials();
        // A free port can be taken by somebody else before we are there.
        let mut tries = 0..3;
        while tries.next().is_some() && !(server.start_etcd() && server.choose_port_and_start()) {}
        assert!(server.api.is_some(), "no API server:\n{}", server.logs());
        if !server.options.without_crds {
            server.apply_crds();
        }
        Some(server)
    }

    /// A client with all rights.
    ///
    /// It belongs to the runtime that it is made in.
    pub async fn client(&self) -> Client {
        Self::client_of(&self.admin_kubeconfig).await
    }

    /// A client with the rights of a kubeconfig.
    pub async fn client_of(kubeconfig: &Path) -> Client {
        let read = Kubeconfig::read_from(kubeconfig).expect("a kubeconfig");
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
        Client::try_from(config.expect("a usable kubeconfig")).expect("a client")
    }

    /// Writes a kubeconfig for a bearer token; `namespace` is its default.
    pub fn kubeconfig(&self, name: &str, token: &str, namespace: &str) -> PathBuf {
        let path = self.folder.join(format!("{name}.kubeconfig"));
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": self.ca}}],
            "users": [{"name": "test", "user": {"token": token}}],
        });
        // Tests that share a name write the same rights: whole, or not at all.
        let part = self.folder.join(format!("{name}.{}.part", PARTS.fetch_add(1, Ordering::Relaxed)));
        fs::write(&part, text.to_string()).expect("a kubeconfig is written");
        fs::rename(&part, &path).expect("a kubeconfig is in its place");
        path
    }

    /// Ends the API server at once (kill -9). etcd stays.
    pub fn stop(&mut self) {
        self.api = None;
    }

    /// Starts it again, on the same port with the same data, and waits until
    /// it is ready.
    pub fn restart(&mut self) {
        self.api = None;
        assert!(self.start_api(), "the API server does not come back:\n{}", self.logs());
    }

    /// SIGSTOP and SIGCONT for the API server: it takes connections and
    /// answers nothing.
    pub fn freeze(&self, frozen: bool) {
        if let Some(api) = &self.api {
            api.signal(if frozen { Signal::STOP } else { Signal::CONT });
        }
    }

    /// The same for etcd: reads from the watch cache go on, writes hang.
    pub fn freeze_etcd(&self, frozen: bool) {
        if let Some(etcd) = &self.etcd {
            etcd.signal(if frozen { Signal::STOP } else { Signal::CONT });
        }
    }

    /// From now on each direction between the API server and etcd takes so
    /// much longer. Needs [`Options::may_slow_etcd`].
    pub fn slow_etcd(&self, each_way: Duration) {
        self.proxy.as_ref().expect("Options::may_slow_etcd").delay(each_way);
    }

    /// Starts kube-controller-manager with the garbage collector (owner
    /// references), the namespace controller (deletes what is in a deleted
    /// namespace), the default ServiceAccounts and the aggregation of
    /// ClusterRoles. It ends with the guard.
    pub fn controller_manager(&self) -> ControllerManager {
        let log = self.folder.join("controller-manager.log");
        let port = free_port().to_string();
        let kubeconfig = self.admin_kubeconfig.display().to_string();
        let args = [
            "--controllers=garbage-collector-controller,namespace-controller,serviceaccount-controller,clusterrole-aggregation-controller",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            "--secure-port",
            &port,
            "--kubeconfig",
            &kubeconfig,
            "--authentication-kubeconfig",
            &kubeconfig,
            "--authorization-kubeconfig",
            &kubeconfig,
            "--concurrent-gc-syncs=2",
        ];
        ControllerManager {
            _daemon: Daemon::start(&self.tools.join("kube-controller-manager"), &args, &log),
            log,
        }
    }

    /// The last lines of both logs, for messages of failed tests.
    pub fn logs(&self) -> String {
        let log = |name: &str| tail(&self.folder.join(name));
        format!("--- etcd\n{}\n--- kube-apiserver\n{}", log("etcd.log"), log("api.log"))
    }

    /// Where kubectl, helm and the like are.
    pub fn program(&self, name: &str) -> PathBuf {
        self.tools.join(name)
    }

    fn credentials(&self) {
        let authority = Authority::new();
        fs::write(&self.ca, &authority.pem).expect("the authority is written");
        authority.server(&["127.0.0.1", "localhost", "kubernetes.default.svc"]).write(&self.folder, "server");
        let signing = KeyPair::generate().expect("a key");
        let write = |name: &str, text: String| fs::write(self.folder.join(name), text).expect("a key file");
        write("sa.key", signing.serialize_pem());
        write("sa.pub", signing.public_key_pem());
        write("tokens", format!("{ADMIN},admin,admin,\"system:masters\"\n"));
    }

    fn start_etcd(&mut self) -> bool {
        if self.etcd.as_mut().is_some_and(Daemon::runs) {
            return true;
        }
        let (port, peers) = (free_port(), free_port());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let (data, log) = (self.folder.join("etcd"), self.folder.join("etcd.log"));
        let (data, members) = (data.display().to_string(), format!("test={peer}"));
        let args = [
            "--name=test",
            "--unsafe-no-fsync",
            "--data-dir",
            &data,
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &members,
            // A long chaos run must not fill it up.
            "--quota-backend-bytes=4294967296",
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=50000",
            "--log-level=warn",
        ];
        self.etcd_port = port;
        let mut daemon = Daemon::start(&self.tools.join("etcd"), &args, &log);
        let up = wait_for("etcd", START, || {
            let up = std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
            (up || !daemon.runs()).then_some(up)
        });
        if up {
            self.etcd = Some(daemon);
            // It has a runtime of its own, and may not start it inside of ours.
            let start = move || Proxy::delaying(port, Duration::ZERO);
            let relay = self.options.may_slow_etcd.then(|| std::thread::spawn(start).join());
            self.proxy = relay.map(|proxy| proxy.expect("a proxy"));
        }
        up
    }

    fn choose_port_and_start(&mut self) -> bool {
        self.port = free_port();
        self.url = format!("https://127.0.0.1:{}", self.port);
        self.kubeconfig(ADMIN, ADMIN, "default");
        self.start_api()
    }

    fn start_api(&mut self) -> bool {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let etcd = self.proxy.as_ref().map_or(self.etcd_port, |proxy| proxy.port);
        let mut args: Vec<String> = vec![
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            "--bind-address=127.0.0.1".into(),
            "--advertise-address=127.0.0.1".into(),
            format!("--secure-port={}", self.port),
            format!("--cert-dir={}", path("certificates")),
            format!("--tls-cert-file={}", path("server.crt")),
            format!("--tls-private-key-file={}", path("server.key")),
            format!("--service-account-key-file={}", path("sa.pub")),
            format!("--service-account-signing-key-file={}", path("sa.key")),
            "--service-account-issuer=https://kubernetes.default.svc".into(),
            format!("--token-auth-file={}", path("tokens")),
            "--authorization-mode=RBAC".into(),
            "--service-cluster-ip-range=10.0.0.0/24".into(),
            // There is no other server to tell of this one.
            "--endpoint-reconciler-type=none".into(),
        ];
        args.extend(self.options.flags.iter().cloned());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut daemon =
            Daemon::start(&self.tools.join("kube-apiserver"), &args, &self.folder.join("api.log"));
        let up = wait_for("the API server", START, || {
            let up = self.kubectl(&["get", "--raw", "/readyz"]).stdout == "ok";
            (up || !daemon.runs()).then_some(up)
        });
        if up {
            self.api = Some(daemon);
        }
        up
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        (self.api, self.etcd) = (None, None);
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// A running kube-controller-manager. Dropped, it is gone.
pub struct ControllerManager {
    _daemon: Daemon,
    /// Its log.
    pub log: PathBuf,
}

/// A server that is killed, not asked: nothing of it is needed afterwards, and
/// a graceful end takes kube-apiserver a minute.
struct Daemon(Child);

impl Daemon {
    fn start(program: &Path, args: &[&str], log: &Path) -> Self {
        let out = fs::File::options().create(true).append(true).open(log).expect("a log file");
        let mut command = process::command(program, "KILL");
        command.args(args).stdin(Stdio::null()).process_group(0);
        command.stdout(out.try_clone().expect("a second handle")).stderr(out);
        Self(process::spawn(command).expect("the server starts"))
    }

    fn runs(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    fn signal(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.0), signal);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        drop(self.0.wait());
    }
}

/// Removes a folder when this process has ended, however it ended: a static
/// is never dropped, and a killed process drops nothing.
fn remove_after_us(folder: &Path) {
    let mut command = Command::new("sh");
    command.args(["-c", "cat >/dev/null; sleep 1; rm -rf -- \"$0\""]).arg(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    // The pipe stays open until the process ends; nobody waits for the shell.
    match command.spawn() {
        Ok(mut child) => std::mem::forget(child.stdin.take()),
        Err(error) => {
            drop(
                std::io::stderr().write_all(format!("{} will stay: {error}\n", folder.display()).as_bytes()),
            );
        }
    }
}
