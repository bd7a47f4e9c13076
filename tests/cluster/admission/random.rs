//! Two implementations of CEL, one answer: the API server's and the one of
//! the embedded run must agree on whatever people write.

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::{Value, json};

use super::manifests::{domain, record, settings};
use super::{broken, rules, told, twins};
use crate::support::with_namespace;

/// Values near the borders of the rules: short texts of the characters that
/// they look at, and whole values with something changed in them.
fn near(values: &'static [&'static str], alphabet: &'static str) -> impl Strategy<Value = String> {
    let letter = prop::sample::select(alphabet.chars().collect::<Vec<_>>());
    let text = prop::collection::vec(letter.clone(), 1..12).prop_map(String::from_iter);
    let changed = (prop::sample::select(values), any::<prop::sample::Index>(), letter).prop_map(
        |(value, at, letter)| {
            let mut letters: Vec<char> = value.chars().collect();
            let at = at.index(letters.len());
            letters[at] = letter;
            String::from_iter(letters)
        },
    );
    prop_oneof![1 => text, 2 => changed]
}

fn objects() -> impl Strategy<Value = Value> {
    let hosts = &["pop.example.com:995", "192.0.2.1:65535", "[2001:db8::1]:1110", "xn--pp-fka.example.com"];
    let rhythms = &["1h30m5s", "8760h", "8761h", "10s", "9s", "525600m", "Disabled", "Never", "1m0s"];
    let accounts = &["alice@example.com", "\"a b\"@example.com", "a+b@c"];
    let mailboxes = &["Archive", "Lists/Rust", "a/./b", "a/../b"];
    let headers = &["X-Real-To", "*", "Delivered-To", "Received", "tO", "Cc", "List-Id"];
    let sizes = &["50Mi", "2Gi", "1000000", "999Ti", "999999999999999"];
    let pins = &["sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="];
    let networks = &["10.0.0.0/8", "192.0.2.1", "2001:db8::/32", "::ffff:192.0.2.1", "0.0.0.0/0", "fe80::1"];
    let urls = &["https://a.b/", "http://localhost/", "http://127.0.0.1:8080/t", "http://[::1]/"];
    prop_oneof![
        near(hosts, "aZ0_-.:[]/é ").prop_map(|host| record(json!({"remote": {"host": host}}))),
        near(rhythms, "0159hmsDN ").prop_map(|every| record(json!({"pollEvery": every}))),
        (3..4usize, near(accounts, "a@<> \"\t\né")).prop_filter_map("long enough", |(least, account)| {
            (account.chars().count() >= least).then(|| record(json!({"account": account})))
        }),
        near(mailboxes, "a./ \u{1}\u{7f}é").prop_map(|mailbox| record(json!({"mailbox": mailbox}))),
        near(headers, "X-:*! é~cCoT\n").prop_map(|header| record(json!({"special": header}))),
        near(sizes, "019kKMGTi.B ").prop_map(|size| record(json!({"limits": {"messageSize": size}}))),
        near(pins, "Aa0+/=:sh").prop_map(|pin| record(json!({"tls": {"pinSha256": [pin]}}))),
        near(accounts, "a\r\n\t\0é").prop_map(|account| record(json!({"remote": {"account": account}}))),
        near(urls, "htps:/[1].@a").prop_map(|url| {
            let oauth2 = json!({"tokenUrl": url, "clientId": "a", "refreshTokenSecretRef": {"name": "a"}});
            record(json!({"remote": {"passwordSecretRef": null, "oauth2": oauth2}}))
        }),
        near(networks, "0129af.:/").prop_map(|net| settings(json!({"remoteNetworks": {"allow": [net]}}))),
        near(networks, "0129af.:/")
            .prop_filter("long enough", |address| address.len() > 1)
            .prop_map(|address| settings(json!({"sourceAddress": address}))),
        near(&["1h30m", "0s", "8760h", "999999s"], "019hms.- ")
            .prop_map(|time| settings(json!({"timeouts": {"reply": time}}))),
        near(&["example.net", "a_b.c"], "a.-_:é").prop_map(|alias| domain(json!({"aliases": [alias]}))),
        near(&["mail.example.com", "2001:db8::1"], "a.-_:[]1")
            .prop_map(|host| domain(json!({"delivery": {"smtp": {"host": host}}}))),
        // Rules over several fields.
        (any::<[bool; 4]>(), prop::option::of(prop::sample::select(vec!["*", "X-Real-To"])), any::<bool>())
            .prop_map(|([leave, keep, foreign, copies], special, mailbox)| {
                record(json!({
                    "leave": leave, "relayForeign": foreign, "deduplicate": copies, "special": special,
                    "keepForDays": keep.then_some(3), "mailbox": mailbox.then_some("Archive"),
                }))
            }),
    ]
}

#[tokio::test]
async fn whatever_is_written_files_and_the_cluster_are_told_the_same() {
    with_namespace(|client, namespace| async move {
        // A run is repeated with the seed that it prints.
        let seed = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(rand_seed);
        let config = Config { rng_seed: RngSeed::Fixed(seed), ..Config::default() };
        let mut runner = TestRunner::new(config);
        let strategy = objects();
        let objects: Vec<Value> =
            (0..600).map(|_| strategy.new_tree(&mut runner).expect("a value").current()).collect();
        let (rules, in_files) = (rules(), twins::told(&objects));
        let (mut wrong, mut refused) = (Vec::new(), 0);
        for (object, in_files) in objects.iter().zip(in_files) {
            let causes = told(&client, &namespace, object).await.err().unwrap_or_default();
            let in_cluster = broken(&causes, &rules);
            refused += usize::from(!in_cluster.is_empty());
            // To create a record with Never is refused in the cluster alone.
            let never = object["spec"]["pollEvery"] == "Never";
            if !never && in_cluster != in_files {
                wrong.push(format!(
                    "{object}:\n    the cluster is told {in_cluster:?}\n    files {in_files:?}"
                ));
            }
        }
        assert!(wrong.is_empty(), "PROPTEST_RNG_SEED={seed}\n{}", wrong.join("\n"));
        assert!((60..540).contains(&refused), "{refused} of 600 refused: both kinds are to be tried");
    })
    .await;
}

fn rand_seed() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::hash::RandomState::new().build_hasher().finish()
}
