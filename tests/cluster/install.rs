//! `deploy/` and `charts/rpop`: that they install the same, that a cluster
//! takes it without a warning, and that upgrades and removals keep the records.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::parts;
use crate::support::{Answer, Options, SYSTEM, Server, project, server};

/// By kind, namespace and name, without what says who installed it.
type Objects = BTreeMap<String, Value>;

/// Reads a stream of YAML documents.
fn objects(yaml: &str) -> Objects {
    let mut all = Objects::new();
    for document in format!("\n{yaml}").split("\n---") {
        let Ok(mut object) = serde_saphyr::from_str::<Value>(document) else {
            panic!("no YAML:\n{document}");
        };
        if object.is_null() {
            continue;
        }
        plain(&mut object);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &object["metadata"];
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        let name = format!("{} {namespace}/{name}", text(&object["kind"]));
        let metadata = object["metadata"].as_object_mut().unwrap();
        if let Some(labels) = metadata.get_mut("labels").and_then(Value::as_object_mut) {
            for ours in ["app.kubernetes.io/managed-by", "helm.sh/chart"] {
                labels.remove(ours);
            }
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("helm.sh/resource-policy");
            if annotations.is_empty() {
                metadata.remove("annotations");
            }
        }
        assert!(all.insert(name.clone(), object).is_none(), "{name} is there twice");
    }
    all
}

/// 65535.0 and 65535 are one number.
fn plain(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(plain),
        Value::Array(items) => items.iter_mut().for_each(plain),
        Value::Number(number) => {
            #[allow(clippy::cast_possible_truncation, reason = "it is whole and small")]
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 1e15) {
                *value = json!(whole as i64);
            }
        }
        _ => {}
    }
}

fn path(of: &str) -> String {
    project(of).to_str().unwrap().to_owned()
}

fn chart() -> String {
    path("charts/rpop")
}

fn without_warnings(answer: &Answer) {
    let said = &answer.stderr;
    assert!(answer.success && !said.to_lowercase().contains("warning"), "{}\n{said}", answer.stdout);
}

#[test]
fn the_chart_installs_what_deploy_does() {
    let Some(server) = server() else { return };
    let by_kustomize = server.kubectl(&["kustomize", &path("deploy")]).succeeds();
    let by_helm = server.helm(&["template", "rpop", &chart(), "--namespace", SYSTEM]).succeeds();
    let (mut wanted, found) = (objects(&by_kustomize), objects(&by_helm));
    // Helm makes the namespace itself, or finds it.
    assert!(wanted.remove(&format!("Namespace /{SYSTEM}")).is_some());
    assert_eq!(wanted.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
    for (name, object) in &wanted {
        assert_eq!(object, &found[name], "{name}: left by deploy/, right by charts/rpop");
    }
}

#[test]
fn the_charts_crds_are_those_of_crds() {
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let files = |folder: &str| -> Vec<String> {
        let all = fs::read_dir(project(folder)).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<String> =
            all.filter(|path| path.extension().is_some()).map(|path| name(&path)).collect();
        names.sort();
        names
    };
    let update = std::env::var("UPDATE").as_deref() == Ok("1");
    for file in files("crds") {
        let copy = project("charts/rpop/files/crds").join(&file);
        let wanted = fs::read_to_string(project("crds").join(&file)).unwrap();
        if update {
            fs::write(&copy, &wanted).unwrap();
        }
        assert!(
            fs::read_to_string(&copy).unwrap_or_default() == wanted,
            "{} is not crds/{file}: run UPDATE=1 cargo test --test cluster crds",
            copy.display()
        );
    }
    assert_eq!(files("crds"), files("charts/rpop/files/crds"));
    let listed = fs::read_to_string(project("crds/Kustomization")).unwrap();
    for file in files("crds") {
        assert!(listed.contains(&file), "crds/Kustomization does not name {file}");
    }
}

#[test]
fn wrong_values_are_refused_with_their_names() {
    let Some(server) = server() else { return };
    for (set, said) in [
        ("wroker.replicas=3", "wroker"),
        ("mode=single", "/mode"),
        ("timing=slow", "/timing"),
        ("worker.maxUnavailable=some", "/worker/maxUnavailable"),
        ("worker.terminationGracePeriodSeconds=10", "/worker/terminationGracePeriodSeconds"),
        ("logLevel=chatty", "/logLevel"),
    ] {
        let error = server.helm(&["template", "rpop", &chart(), "--set", set]).fails();
        assert!(error.contains(said), "{set}: {error}");
    }
    server.helm(&["lint", "--strict", &chart()]).succeeds();
}

/// Makes the Pods that the Deployments of a namespace would make.
fn pods_are_admitted(server: &Server, namespace: &str) -> usize {
    let deployments = server.kubectl(&["-n", namespace, "get", "deployments", "-o", "json"]).succeeds();
    let deployments: Value = serde_json::from_str(&deployments).unwrap();
    let mut made = 0;
    for deployment in deployments["items"].as_array().unwrap() {
        let mut pod = deployment["spec"]["template"].clone();
        let name = deployment["metadata"]["name"].as_str().unwrap();
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["name"] = json!(format!("{name}-0"));
        let args = ["-n", namespace, "create", "-f", "-"];
        without_warnings(&server.kubectl_as(&server.admin_kubeconfig, &args, &pod.to_string()));
        made += 1;
    }
    made
}

#[test]
fn deploy_is_taken_without_a_warning_and_its_pods_are_restricted() {
    let nothing = Options { without_crds: true, ..Options::default() };
    let Some(server) = Server::start_with(nothing) else { return };
    let deploy = path("deploy");
    // A dry run needs the namespace and the CRDs to be there.
    without_warnings(&server.kubectl(&["apply", "--server-side", "-f", &path("deploy/namespace.yaml")]));
    without_warnings(&server.kubectl(&["apply", "--server-side", "--dry-run=server", "-k", &deploy]));
    let installed = server.kubectl(&["apply", "--server-side", "-k", &deploy]);
    without_warnings(&installed);
    let again = server.kubectl(&["apply", "--server-side", "-k", &deploy]);
    without_warnings(&again);
    assert_eq!(installed.stdout, again.stdout);
    assert_eq!(pods_are_admitted(&server, SYSTEM), 2);

    // The namespace would not take a Pod that may do more.
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "root", "namespace": SYSTEM},
        "spec": {"serviceAccountName": "rpop-worker", "containers": [{"name": "root", "image": "rpop"}]},
    });
    let error = server.apply(&pod.to_string()).fails();
    assert!(error.contains("violates PodSecurity \"restricted"), "{error}");

    // The chart takes over what kubectl installed.
    let upgrade =
        ["install", "rpop", &chart(), "--namespace", SYSTEM, "--take-ownership", "--force-conflicts"];
    without_warnings(&server.helm(&upgrade));

    // And what is deleted is gone, in the order that kubectl chooses.
    let deleted = server.kubectl(&["delete", "--wait=false", "-k", &deploy]);
    without_warnings(&deleted);
    assert_eq!(deleted.stdout.lines().count(), installed.stdout.lines().count());
}

/// A copy of the chart as an earlier version could have been: one column of a
/// CRD is missing.
fn earlier_chart(folder: &Path) -> String {
    let copy = folder.join("rpop");
    let status = std::process::Command::new("cp").arg("-r").arg(chart()).arg(&copy).status().unwrap();
    assert!(status.success());
    let change = |file: &str, from: &str, to: &str| {
        let file = copy.join(file);
        let before = fs::read_to_string(&file).unwrap();
        assert!(before.contains(from), "{} holds no {from:?}", file.display());
        fs::write(&file, before.replace(from, to)).unwrap();
    };
    let column = "    - jsonPath: .spec.slices\n      name: Slices\n      type: integer\n";
    change("files/crds/rpopshards.yaml", column, "");
    change("Chart.yaml", "\nversion: 0.1.0", "\nversion: 0.0.1");
    copy.to_str().unwrap().to_owned()
}

const RECORD: &str = "
apiVersion: rpop.dev/v1alpha1
kind: RpopRecord
metadata: {name: kept, namespace: default}
spec:
  account: alice@example.com
  pollEvery: 5m
  remote: {host: pop.isp.example, account: alice77, passwordSecretRef: {name: first-isp}}
";

#[test]
fn the_chart_is_installed_upgraded_removed_and_installed_again_and_records_stay() {
    let nothing = Options { without_crds: true, ..Options::default() };
    let Some(server) = Server::start_with(nothing) else { return };
    let folder = parts::folder("chart");
    let earlier = earlier_chart(folder.path());
    let chart = chart();
    let here = ["--namespace", "mail-system"];
    let helm = |args: &[&str]| server.helm(&[args, &here].concat());
    let get = |args: &[&str]| server.kubectl(&[&["-n", "mail-system", "get"], args].concat()).stdout;

    let labels = "{apiVersion: v1, kind: Namespace, metadata: {name: mail-system, labels: \
                  {pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/warn: restricted}}}";
    server.apply(labels).succeeds();
    let installed = helm(&["install", "rpop", &earlier]);
    without_warnings(&installed);
    assert!(installed.stdout.contains("kubectl get rpop -A"), "{}", installed.stdout);
    assert_eq!(pods_are_admitted(&server, "mail-system"), 2);
    server.kubectl(&["wait", "--for=condition=Established", "crd", "--all"]).succeeds();
    server.apply(RECORD).succeeds();

    let columns = "jsonpath={.spec.versions[0].additionalPrinterColumns[*].name}";
    assert!(!get(&["crd", "rpopshards.rpop.dev", "-o", columns]).contains("Slices"));
    without_warnings(&helm(&["upgrade", "rpop", &chart, "--set", "worker.replicas=5"]));
    assert!(get(&["crd", "rpopshards.rpop.dev", "-o", columns]).contains("Slices"), "CRDs are upgraded, too");
    assert_eq!(get(&["deployment", "rpop-worker", "-o", "jsonpath={.spec.replicas}"]), "5");

    let error = helm(&["upgrade", "rpop", &chart, "--set", "shards=512"]).fails();
    assert!(error.contains("shards is 256 since the first installation"), "{error}");

    without_warnings(&helm(&["upgrade", "rpop", &chart, "--set", "mode=combined"]));
    assert_eq!(get(&["deployments,serviceaccounts", "-o", "name"]).matches("rpop-").count(), 2);
    let error = helm(&["upgrade", "rpop", &chart, "--set", "shards=512"]).fails();
    assert!(error.contains("shards is 256"), "another mode is no way round it: {error}");
    assert_eq!(pods_are_admitted(&server, "mail-system"), 1);

    // Two autoscaled releases side by side: nothing of one is in the other's way.
    let beside = ["--namespace", "other", "--create-namespace", "--set", "crds.install=false"];
    without_warnings(&server.helm(
        &[&["install", "second", &chart, "--set", "worker.replicas=null"], beside.as_slice()].concat(),
    ));

    helm(&["uninstall", "rpop"]).succeeds();
    assert_eq!(
        get(&["all,roles,networkpolicies", "-o", "name"]).matches("rpop").count(),
        3,
        "the Pods we made"
    );
    assert!(server.kubectl(&["get", "rpop", "kept"]).success, "records stay");
    without_warnings(&helm(&["install", "rpop", &chart]));
    assert!(server.kubectl(&["get", "rpop", "kept"]).success);
}

#[test]
fn the_examples_are_taken_without_a_warning() {
    let Some(server) = Server::start() else { return };
    let examples = server.kubectl(&["apply", "-f", &path("examples/cluster")]);
    without_warnings(&examples);
    assert_eq!(examples.stdout.matches("rpoprecord.rpop.dev/").count(), 5, "{}", examples.stdout);
}
