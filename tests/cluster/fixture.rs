//! The fixture itself: what the other tests build upon.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::core::DeserializeGuard;
use rpop::api::RpopRecord;
use serde_json::json;
use tokio::time::Instant;

use crate::support::{Options, Server, eventually, namespace, with_namespace};

#[tokio::test]
async fn a_token_of_a_pod_carries_the_pods_name_and_has_no_rights_of_its_own() {
    with_namespace(|client, namespace| async move {
        let server = crate::support::server().unwrap();
        let identity = server.pod_token(&namespace, "worker", "worker-0").await;
        let own = identity.client().await;
        let review: Api<SelfSubjectReview> = Api::all(own.clone());
        let who = review.create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
        let user = who.status.unwrap().user_info.unwrap();
        assert_eq!(user.username.unwrap(), format!("system:serviceaccount:{namespace}:worker"));
        assert_eq!(user.extra.unwrap()["authentication.kubernetes.io/pod-name"], ["worker-0"]);

        let records: Api<RpopRecord> = Api::namespaced(own, &namespace);
        let refused = records.list(&ListParams::default()).await.unwrap_err();
        assert!(matches!(refused, kube::Error::Api(status) if status.code == 403));
        drop(client);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_ones_own_stops_comes_back_and_collects_what_is_owned() {
    let Some(mut server) = Server::start() else { return };
    let client = server.client().await;
    let namespace = namespace(&client).await;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let made = |name: &str, owner: Option<&ConfigMap>| -> ConfigMap {
        let owners = owner.map(|owner| {
            json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": owner.name_any(), "uid": owner.uid()}])
        });
        serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owners}})).unwrap()
    };
    let owner = maps.create(&PostParams::default(), &made("owner", None)).await.unwrap();
    maps.create(&PostParams::default(), &made("owned", Some(&owner))).await.unwrap();

    server.stop();
    assert!(maps.get("owner").await.is_err());
    server.restart();
    assert_eq!(maps.get("owner").await.unwrap().uid(), owner.uid());

    let _collector = server.controller_manager();
    maps.delete("owner", &DeleteParams::default()).await.unwrap();
    eventually("the owned one to be collected", || async {
        maps.get_opt("owned").await.unwrap().is_none().then_some(())
    })
    .await;
    let all: Api<Namespace> = Api::all(client);
    all.delete(&namespace, &DeleteParams::default()).await.unwrap();
    eventually("the namespace to be gone", || async {
        all.get_opt(&namespace).await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crd_is_removed_and_put_back_and_old_objects_are_not_what_they_should_be() {
    let Some(mut server) = Server::start() else { return };
    let client = server.client().await;
    let namespace = namespace(&client).await;
    let record = |name: &str, account: serde_json::Value| {
        json!({
            "apiVersion": "rpop.dev/v1alpha1",
            "kind": "RpopRecord",
            "metadata": {"name": name, "namespace": &*namespace},
            "spec": {
                "account": account,
                "remote": {"host": "pop.isp.example", "account": "a77", "passwordSecretRef": {"name": "isp"}},
            },
        })
    };
    let before = server.requests();
    server.apply(&record("good", json!("alice@example.com")).to_string()).succeeds();
    server.store_unchecked("rpoprecords", &record("bad", json!(5)));
    assert_eq!(server.requests().since(&before).writes("rpoprecords"), 2);

    // One that cannot be read does not hide the others.
    let guarded: Api<DeserializeGuard<RpopRecord>> = Api::namespaced(client.clone(), &namespace);
    let listed = guarded.list(&ListParams::default()).await.unwrap();
    let readable: Vec<bool> = listed.items.iter().map(|item| item.0.is_ok()).collect();
    assert_eq!(readable, [false, true], "bad, good");
    // And the schema of today holds again.
    let refused = server.apply(&record("worse", json!(5)).to_string()).fails();
    assert!(refused.contains("spec.account"), "{refused}");

    server.remove_crd("rpoprecords");
    let records: Api<RpopRecord> = Api::namespaced(client.clone(), &namespace);
    let gone = records.list(&ListParams::default()).await.unwrap_err();
    assert!(matches!(gone, kube::Error::Api(status) if status.code == 404));
    server.apply_crds();
    assert!(records.list(&ListParams::default()).await.unwrap().items.is_empty());
    server.apply(&record("good", json!("alice@example.com")).to_string()).succeeds();
}

#[tokio::test(flavor = "multi_thread")]
async fn etcd_is_slow_and_stands_still() {
    let each_way = Duration::from_millis(100);
    let options = Options { may_slow_etcd: true, ..Options::default() };
    let Some(server) = Server::start_with(options) else { return };
    let client = server.client().await;
    server.slow_etcd(each_way);
    let since = Instant::now();
    let namespace = namespace(&client).await;
    assert!(since.elapsed() >= 2 * each_way);

    server.freeze_etcd(true);
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "late"}})).unwrap();
    let parameters = PostParams::default();
    let mut write = std::pin::pin!(maps.create(&parameters, &map));
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut write).await.is_err());
    server.freeze_etcd(false);
    write.await.unwrap();
}
