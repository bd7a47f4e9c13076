//! The operator's processes, as in pods of a node that is not there.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;

use super::{SYSTEM, Server, eventually};
use crate::parts::free_port;
use crate::parts::rpop::Running;

/// A worker's process.
pub struct Worker {
    pub process: Running,
    pub pod: String,
    /// `POD/BOOT`, as its lease says.
    pub me: String,
    pub port: u16,
}

impl Worker {
    /// What `http://…/PATH` answers.
    pub fn get(&self, path: &str) -> String {
        use std::io::{Read as _, Write as _};
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", self.port)) else {
            return String::new();
        };
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        drop(stream.read_to_string(&mut answer));
        answer
    }
}

impl Server {
    /// Starts a worker in a pod of that name, with the fast timing; what
    /// `deploy/` installs must be there.
    pub async fn worker(&self, pod: &str) -> Worker {
        let identity = self.pod_token(SYSTEM, "rpop-worker", pod).await;
        let port = free_port();
        let listen = format!("127.0.0.1:{port}");
        let args = ["--log-level", "low-level", "worker", "--timing", "fast", "--listen", &listen];
        let mut process = identity.run(&args, &[]);
        let leases: Api<Lease> = Api::namespaced(self.client().await, SYSTEM);
        process.wait_to_say(" works as ");
        let text = process.text();
        let me = text.split(" works as ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
        eventually("the worker's lease", || async {
            let lease = leases.get_opt(&format!("rpop-worker-{pod}")).await.unwrap()?;
            (lease.spec?.holder_identity? == me).then_some(())
        })
        .await;
        Worker { process, pod: pod.to_owned(), me, port }
    }

    /// Starts a controller in a pod of that name, likewise.
    pub async fn controller(&self, pod: &str, shards: u16) -> Running {
        let identity = self.pod_token(SYSTEM, "rpop-controller", pod).await;
        let shards = shards.to_string();
        identity.run(&["controller", "--timing", "fast", "--shards", &shards, "--listen", "off"], &[])
    }
}
