//! Identities like those of running pods: a ServiceAccount's token that is
//! bound to a Pod and carries its name, which a token file could not.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use super::Server;
use crate::parts::program;
use crate::parts::rpop::{Running, binary};

/// A pod's identity.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The pod.
    pub pod: String,
    /// Its ServiceAccount.
    pub account: String,
    /// The namespace of both.
    pub namespace: String,
    /// What a process in that pod would be given.
    pub kubeconfig: PathBuf,
}

impl Identity {
    /// A client with its rights.
    pub async fn client(&self) -> Client {
        Server::client_of(&self.kubeconfig).await
    }

    /// Starts `rpop ARGS` with this identity, as in its pod, and with further
    /// variables (`NAME=value`).
    pub fn run(&self, args: &[&str], variables: &[&str]) -> Running {
        // `env` replaces itself: signals reach rpop.
        let mut all: Vec<OsString> = vec!["-u".into(), "KUBERNETES_SERVICE_HOST".into()];
        all.push(format!("KUBECONFIG={}", self.kubeconfig.display()).into());
        all.push(format!("POD_NAME={}", self.pod).into());
        all.push(format!("POD_NAMESPACE={}", self.namespace).into());
        all.extend(variables.iter().map(OsString::from));
        all.push(binary().into());
        all.extend(args.iter().map(OsString::from));
        Running::start(&program("env").expect("env"), &all, Path::new("/"))
    }
}

impl Server {
    /// Makes the ServiceAccount and the Pod where they are missing, and a
    /// token bound to the Pod, good for an hour: it is refused as soon as the
    /// Pod is deleted.
    pub async fn pod_token(&self, namespace: &str, account: &str, pod: &str) -> Identity {
        let client = self.client().await;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let wanted = json!({"metadata": {"name": account}});
        make(&accounts, &serde_json::from_value(wanted).expect("a ServiceAccount")).await;
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let wanted = json!({
            "metadata": {"name": pod},
            "spec": {
                "serviceAccountName": account,
                "automountServiceAccountToken": false,
                // As a namespace that enforces `restricted` wants it.
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{"name": "rpop", "image": "rpop", "securityContext": {
                    "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                }}],
            },
        });
        make(&pods, &serde_json::from_value(wanted).expect("a Pod")).await;
        let uid = pods.get(pod).await.expect("the Pod").uid();
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec!["https://kubernetes.default.svc".into()],
                expiration_seconds: Some(3600),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.into()),
                    uid,
                }),
            },
            ..TokenRequest::default()
        };
        let given = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let token = given.expect("a token").status.expect("it is in the status").token;
        let kubeconfig = self.kubeconfig(&format!("{namespace}-{pod}"), &token, namespace);
        Identity { pod: pod.into(), account: account.into(), namespace: namespace.into(), kubeconfig }
    }
}

async fn make<K>(all: &Api<K>, wanted: &K)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    match all.create(&PostParams::default(), wanted).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => panic!("{}: {error}", wanted.name_any()),
    }
}
