//! What the API server says of manifests, and that files are told the same.

mod manifests;
mod random;
mod twins;

use std::collections::BTreeSet;

use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use kube::{Client, ResourceExt as _};
use rpop::api::{self, RpopRecord};
use serde_json::{Value, json};

use crate::support::{self, with_namespace};
use manifests::{Case, domain, merged, record, settings};

/// Field and message of each rule that was broken.
type Broken = BTreeSet<(String, String)>;

/// The rules of our CRDs that speak of the kinds that users write: kind,
/// field, message.
fn rules() -> BTreeSet<(String, String, String)> {
    fn collect(kind: &str, schema: &Value, path: &str, found: &mut BTreeSet<(String, String, String)>) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let at = format!("{path}{}", rule["fieldPath"].as_str().unwrap_or_default());
            let message = rule["message"].as_str().expect("every rule has a message");
            found.insert((kind.into(), at.trim_start_matches('.').into(), message.into()));
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            collect(kind, inner, &format!("{path}.{name}"), found);
        }
        if schema["items"].is_object() {
            collect(kind, &schema["items"], &format!("{path}[0]"), found);
        }
    }
    let mut found = BTreeSet::new();
    for crd in api::crds() {
        let kind = crd.spec.names.kind.as_str();
        if matches!(kind, "RpopRecord" | "RpopDomain" | "RpopSettings") {
            let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap();
            collect(kind, &schema["openAPIV3Schema"], "", &mut found);
        }
    }
    found
}

/// The API for an object of one of our kinds.
fn api_for(client: &Client, object: &Value, namespace: &str) -> Api<DynamicObject> {
    let kind = object["kind"].as_str().unwrap();
    let plural = if kind == "RpopSettings" { "rpopsettings".into() } else { kind.to_lowercase() + "s" };
    let resource = ApiResource {
        group: api::GROUP.into(),
        version: api::VERSION.into(),
        api_version: api::API_VERSION.into(),
        kind: kind.into(),
        plural,
    };
    match kind {
        "RpopRecord" => Api::namespaced_with(client.clone(), namespace, &resource),
        _ => Api::all_with(client.clone(), &resource),
    }
}

/// What the API server says of an object: the causes of its refusal.
async fn told(client: &Client, namespace: &str, object: &Value) -> Result<Value, Vec<(String, String)>> {
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let made: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    match api_for(client, object, namespace).create(&dry, &made).await {
        Ok(stored) => Ok(serde_json::to_value(stored).unwrap()),
        Err(kube::Error::Api(status)) if status.code == 422 => {
            let causes = status.details.map(|details| details.causes).unwrap_or_default();
            Err(causes.into_iter().map(|cause| (cause.field, cause.message)).collect())
        }
        Err(error) => panic!("{error}"),
    }
}

/// The rules of ours among the causes of a refusal.
fn broken(causes: &[(String, String)], rules: &BTreeSet<(String, String, String)>) -> Broken {
    causes
        .iter()
        .filter_map(|(field, says)| {
            let (.., message) = rules.iter().find(|(.., message)| says.ends_with(message.as_str()))?;
            Some((field.clone(), message.clone()))
        })
        .collect()
}

#[tokio::test]
async fn every_rule_refuses_with_its_own_words_in_the_cluster_and_in_files() {
    with_namespace(|client, namespace| async move {
        let rules = rules();
        let cases = manifests::rejected();
        let in_files = twins::told(&cases.iter().map(|case| case.object.clone()).collect::<Vec<_>>());
        let (mut proved, mut wrong) = (BTreeSet::new(), Vec::new());
        for (case, in_files) in cases.iter().zip(&in_files) {
            let Case { object, field, message } = case;
            let causes = told(&client, &namespace, object).await.err().unwrap_or_default();
            let wanted = Broken::from([((*field).to_owned(), message.clone())]);
            let for_files = if manifests::only_in_the_cluster(case) { Broken::new() } else { wanted.clone() };
            if broken(&causes, &rules) != wanted {
                wrong.push(format!("{object}: {wanted:?}: the API server says {causes:?}"));
            }
            if *in_files != for_files {
                wrong.push(format!("{object}: {for_files:?}: files are told {in_files:?}"));
            }
            proved.insert((
                object["kind"].as_str().unwrap().to_owned(),
                (*field).to_owned(),
                message.clone(),
            ));
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let unproved: Vec<_> = rules.difference(&proved).collect();
        assert!(unproved.is_empty(), "no manifest breaks these: {unproved:#?}");
    })
    .await;
}

#[tokio::test]
async fn accepts_what_people_write() {
    with_namespace(|client, namespace| async move {
        let accepted = manifests::accepted();
        let in_files = twins::told(&accepted);
        for (at, object) in accepted.iter().enumerate() {
            if let Err(causes) = told(&client, &namespace, object).await {
                panic!("{object} is refused: {causes:?}");
            }
            assert!(in_files[at].is_empty(), "{object}: in files it is refused: {:?}", in_files[at]);
        }
    })
    .await;
}

#[tokio::test]
async fn defaults_are_written_into_what_is_stored() {
    with_namespace(|client, namespace| async move {
        let stored = told(&client, &namespace, &record(json!({}))).await.unwrap();
        let spec = &stored["spec"];
        let wanted = json!({
            "pollEvery": "5m", "tls": {"mode": "Implicit"}, "apop": false, "leave": false, "deleteSeen": false,
            "relayForeign": false, "deduplicate": true, "onReject": "Leave", "onUidChange": "Pause", "paused": false,
            "remote": {"auth": "Auto", "passwordSecretRef": {"key": "password"}},
        });
        assert_eq!(merged(spec.clone(), wanted), *spec);
        let stored = told(&client, &namespace, &settings(json!({}))).await.unwrap();
        let wanted = json!({
            "processors": 256, "hostConnections": 20, "delayFailedHosts": "10m", "delayFailedAccounts": "10m",
            "useApop": false, "allowSelfPoll": false, "checkpoint": {"messages": 20, "every": "5s"},
            "timeouts": {"connect": "30s", "reply": "1m", "data": "1m", "afterDot": "10m", "session": "1h"},
        });
        assert_eq!(merged(stored["spec"].clone(), wanted), stored["spec"]);
        let stored = told(&client, &namespace, &domain(json!({}))).await.unwrap();
        let wanted = json!({"postmaster": "postmaster", "delivery": {"smtp": {"tls": {"mode": "Opportunistic"}}}});
        assert_eq!(merged(stored["spec"].clone(), wanted), stored["spec"]);
    })
    .await;
}

#[tokio::test]
async fn never_is_refused_for_a_new_record_and_taken_for_one_that_exists() {
    with_namespace(|client, namespace| async move {
        let server = support::server().unwrap();
        let never = record(json!({"pollEvery": "Never"}));
        let says = server.apply(&in_namespace(&never, &namespace)).fails();
        let message = "pollEvery: Never removes a record that exists: to create one write a duration like 5m, or Disabled";
        assert!(says.contains(message), "{says}");
        assert!(says.contains("spec.pollEvery"), "{says}");

        server.apply(&in_namespace(&record(json!({})), &namespace)).succeeds();
        server.apply(&in_namespace(&never, &namespace)).succeeds();
        // A status, or a second look, is no new creation either.
        server.apply(&in_namespace(&never, &namespace)).succeeds();
        let records: Api<RpopRecord> = Api::namespaced(client, &namespace);
        assert_eq!(records.get("isp").await.unwrap().spec.poll_every.to_string(), "Never");
    })
    .await;
}

#[tokio::test]
async fn kubectl_says_nothing_but_what_it_did() {
    let Some(server) = support::server() else { return };
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/crds");
    let applied = server.kubectl(&["apply", "--server-side", "-f", crds]);
    assert_eq!(applied.stderr, "", "the API server warns about the CRDs");
    assert_eq!(applied.succeeds().lines().count(), 5);
    // A CRD that cannot be served says so in a condition of its own.
    let unsound = server
        .kubectl(&[
            "get",
            "crd",
            "-o",
            "jsonpath={.items[*].status.conditions[?(@.type=='NonStructuralSchema')]}",
        ])
        .succeeds();
    assert_eq!(unsound, "");
    with_namespace(|_, namespace| async move {
        let applied = server.apply(&in_namespace(&record(json!({})), &namespace));
        assert_eq!(applied.stderr, "");
        assert_eq!(applied.succeeds(), "rpoprecord.rpop.dev/isp created\n");
        // A misspelt field is not dropped in silence.
        let misspelt = server.apply(&in_namespace(&record(json!({"pollevery": "5m"})), &namespace));
        assert!(misspelt.fails().contains("unknown field \"spec.pollevery\""));
    })
    .await;
}

#[tokio::test]
async fn kubectl_get_rpop_is_the_table_that_people_know() {
    with_namespace(|client, namespace| async move {
        let server = support::server().unwrap();
        let get = |args: &[&str]| {
            let mut all = vec!["-n", &*namespace, "get"];
            all.extend(args);
            server.kubectl(&all).succeeds()
        };
        let spec = json!({"pollEvery": "1h30m", "leave": true, "mailbox": "Archive", "tls": {"mode": "StartTls"}});
        server.apply(&in_namespace(&record(spec), &namespace)).succeeds();
        let records: Api<RpopRecord> = Api::namespaced(client.clone(), &namespace);
        let status = json!({"status": {
            "last": "AuthFailed", "shard": 7, "shardFactor": 1,
            "conditions": [{
                "type": "Ready", "status": "False", "reason": "AuthFailed", "message": "the password is wrong",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        }});
        let patch = Patch::Merge(status);
        records.patch_status("isp", &PatchParams::default(), &patch).await.unwrap();

        let table = get(&["rpop"]);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
            .collect();
        let columns = [
            "NAME", "POLL EVERY", "ACCOUNT", "AT HOST", "LEAVE", "APOP", "TLS", "MAILBOX/SPECIAL", "LAST", "READY", "AGE",
        ];
        assert_eq!(rows[0], columns, "{table}");
        let row = [
            "isp", "1h30m", "alice@example.com", "pop.isp.example", "true", "false", "StartTls", "Archive",
            "AuthFailed", "False",
        ];
        assert_eq!(rows[1][..10], row, "{table}");

        // Among thousands, by what people know of a record.
        for selector in ["spec.account=alice@example.com", "spec.remote.host=pop.isp.example", "status.shard=7"] {
            assert_eq!(get(&["rpop", "--field-selector", selector, "-o", "name"]), "rpoprecord.rpop.dev/isp\n");
        }
        assert_eq!(get(&["rpop", "--field-selector", "status.shard=8", "-o", "name"]), "");
        assert!(get(&["mail"]).contains("pop.isp.example"));
        // Nobody is told of a new generation by a new status.
        assert_eq!(records.get("isp").await.unwrap().metadata.generation, Some(1));

        // In the same column: where the recipients stand.
        for special in ["X-Original-To", "*"] {
            let unified = record(json!({"special": special, "account": "postmaster@example.com"}));
            let mut unified = in_namespace(&unified, &namespace);
            unified = unified.replace("\"isp\",\"namespace\"", "\"all\",\"namespace\"");
            server.apply(&unified).succeeds();
            let table = get(&["rpop", "all"]);
            assert!(table.lines().nth(1).unwrap().contains(&format!(" {special} ")), "{table}");
        }
    })
    .await;
}

#[tokio::test]
async fn kubectl_explain_knows_every_field() {
    let Some(server) = support::server() else { return };
    for (path, words) in [
        ("rpop", "A remote POP3 maildrop, and the local account that gets its mail."),
        ("rpop.spec.remote.host", "The POP3 server"),
        ("rpop.spec.onReject", "What becomes of a message that the destination refuses for good"),
        ("rpopdomain.spec.allow.namespaces.matchLabels", "matchLabels"),
        ("rpopsettings.spec.timeouts.afterDot", "From the end of a message to the destination's reply"),
        ("rpopshard.status.holder", "Nobody else does"),
        ("rpopworkslice.spec.items", "The records"),
    ] {
        let says = server.kubectl(&["explain", path]).succeeds();
        let plain = says.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(plain.contains(words), "{path}: {says}");
    }
    let spec = server.kubectl(&["explain", "rpop.spec", "--recursive"]).succeeds();
    assert!(spec.contains("enum: Leave, Postmaster, Discard"), "{spec}");
}

#[tokio::test]
async fn a_shards_epoch_never_falls() {
    with_namespace(|client, namespace| async move {
        let shards: Api<api::RpopShard> = Api::namespaced(client, &namespace);
        let mut shard = api::RpopShard::new("shard-000", api::RpopShardSpec::default());
        shard = shards.create(&PostParams::default(), &shard).await.unwrap();
        for (epoch, taken) in [(1, true), (3, true), (3, true), (2, false), (-1, false)] {
            let status = api::RpopShardStatus { epoch, holder: Some("a/1".into()), ..Default::default() };
            shard.status = Some(status);
            match shards.replace_status("shard-000", &PostParams::default(), &shard).await {
                Ok(stored) => {
                    assert!(taken, "{epoch}");
                    shard = stored;
                }
                Err(kube::Error::Api(status)) => {
                    assert!(!taken && status.code == 422, "{epoch}: {}", status.message);
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(shard.name_any(), "shard-000");
    })
    .await;
}

#[tokio::test]
async fn a_slice_keeps_what_it_is_given_and_counts_its_changes() {
    with_namespace(|client, namespace| async move {
        let slices: Api<api::RpopWorkSlice> = Api::namespaced(client, &namespace);
        // Nothing of an item is dropped, known to this version's CRD or not.
        let item =
            |name: usize| json!({"name": name.to_string(), "remote": {"tls": {"of": ["a", {"later": 1.5}]}}});
        let spec = |items: usize| api::RpopWorkSliceSpec {
            format: 99,
            shard: 7,
            destinations: vec![json!({"smtp": {"endpoint": {"Tcp": ["mail.example.com", 25]}}})],
            items: (0..items).map(item).collect(),
        };
        let most = api::RpopWorkSlice::new("shard-007-0", spec(256));
        let mut stored = slices.create(&PostParams::default(), &most).await.unwrap();
        assert_eq!(stored.spec, most.spec);
        assert_eq!(stored.metadata.generation, Some(1));
        stored.spec.items.truncate(3);
        let stored = slices.replace("shard-007-0", &PostParams::default(), &stored).await.unwrap();
        assert_eq!(stored.metadata.generation, Some(2), "the holder acknowledges generations");

        let more = api::RpopWorkSlice::new("shard-007-1", spec(257));
        let refused = slices.create(&PostParams::default(), &more).await.unwrap_err();
        assert!(matches!(refused, kube::Error::Api(status) if status.message.contains("256")));
    })
    .await;
}

/// The object as YAML for `kubectl apply`, in this namespace.
fn in_namespace(object: &Value, namespace: &str) -> String {
    let mut object = object.clone();
    object["metadata"]["namespace"] = namespace.into();
    object.to_string()
}
