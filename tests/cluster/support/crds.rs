//! The CRDs: applied, removed, put back, and bypassed.

use std::path::Path;

use serde_json::{Value, json};

use super::Server;
use crate::parts::{PATIENCE, wait_for};

impl Server {
    /// Applies `crds/` and waits until the API server serves them.
    pub fn apply_crds(&self) {
        let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
        let crds = crds.to_str().expect("a path in UTF-8");
        self.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", crds]).succeeds();
        self.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "-f", crds]).succeeds();
        // Established is said a moment before the resources are served.
        self.wait_until_served(5);
    }

    /// Deletes a CRD, `rpoprecords` for example, and with it all its objects,
    /// and waits until the resource is served no more: lists and watches of it
    /// are then answered 404. [`Server::apply_crds`] puts it back, empty.
    ///
    /// `&mut`: not on the shared server.
    pub fn remove_crd(&mut self, plural: &str) {
        self.kubectl(&["delete", "crd", &format!("{plural}.rpop.dev"), "--timeout=60s"]).succeeds();
        wait_for("the resource to be gone", PATIENCE, || {
            (!self.served().contains(&format!("{plural}.rpop.dev"))).then_some(())
        });
    }

    /// Stores an object that the CRD of today would refuse, as an older schema
    /// may have let it in: nothing of it is checked, and it stays when the
    /// schema is back. `{"spec": {"account": 5}}` cannot be deserialised.
    ///
    /// `&mut`: not on the shared server.
    pub fn store_unchecked(&mut self, plural: &str, object: &Value) {
        let name = format!("{plural}.rpop.dev");
        let version = self.kubectl(&["get", "crd", &name, "-o", "jsonpath={.spec.versions[0]}"]).succeeds();
        let version: Value = serde_json::from_str(&version).expect("a version");
        let mut open = version.clone();
        open["schema"] =
            json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        // These must point at fields of the schema.
        open.as_object_mut().expect("an object").remove("selectableFields");
        let patch = |version: &Value| {
            let patch = json!([{"op": "replace", "path": "/spec/versions/0", "value": version}]).to_string();
            self.kubectl(&["patch", "crd", &name, "--type=json", "-p", &patch]).succeeds();
        };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        let probe = |input: &Value| {
            let args = ["create", "--dry-run=server", "--validate=false", "-n", namespace, "-f", "-"];
            self.kubectl_as(&self.admin_kubeconfig, &args, &input.to_string()).success
        };
        patch(&open);
        wait_for("the open schema", PATIENCE, || probe(object).then_some(()));
        let args = ["create", "--validate=false", "-n", namespace, "-f", "-"];
        self.kubectl_as(&self.admin_kubeconfig, &args, &object.to_string()).succeeds();
        patch(&version);
        let mut again = object.clone();
        again["metadata"]["name"] = "again".into();
        wait_for("the schema of today", PATIENCE, || (!probe(&again)).then_some(()));
    }

    fn served(&self) -> Vec<String> {
        let args = ["api-resources", "--api-group=rpop.dev", "--no-headers", "-o", "name", "--cached=false"];
        self.kubectl(&args).stdout.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn wait_until_served(&self, count: usize) {
        wait_for("the resources to be served", PATIENCE, || (self.served().len() == count).then_some(()));
    }
}
