//! `deploy/` on a server: accounts, rights and policies as in production.

use std::path::{Path, PathBuf};

use super::Server;
use crate::parts::{PATIENCE, wait_for};

/// The namespace that `deploy/` installs into.
pub const SYSTEM: &str = "rpop-system";

impl Server {
    /// `kubectl apply -k deploy`, and the moment from which all of it holds.
    /// Nothing runs by it: there is no kubelet. Processes get the identities
    /// of Pods by [`Self::pod_token`] in [`SYSTEM`].
    ///
    /// It is felt by every user of the server: have one of your own.
    pub fn deploy(&self) {
        let deploy = project("deploy");
        let deploy = deploy.to_str().expect("a path in UTF-8");
        // Where the CRDs came first by other means, they are this command's now.
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-k", deploy]).succeeds();
        let shard = format!(
            "{{apiVersion: rpop.dev/v1alpha1, kind: RpopShard, metadata: {{name: probe, namespace: {SYSTEM}}}, spec: {{}}}}"
        );
        let try_it = ["create", "--dry-run=server", "-f", "-"];
        wait_for("the policies to be in force", PATIENCE, || {
            let answer = self.kubectl_as(&self.admin_kubeconfig, &try_it, &shard);
            answer.stderr.contains("written by RPOP alone").then_some(())
        });
    }
}

/// A file of the project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
