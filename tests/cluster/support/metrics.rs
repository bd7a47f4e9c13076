//! What the API server counted: for budgets of writes.

use std::collections::BTreeMap;

use super::Server;

/// Requests since the API server was started, by verb and resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests(BTreeMap<(String, String), u64>);

impl Requests {
    /// Those that wrote to a resource, `rpoprecords` or `rpoprecords/status`
    /// for example; to any, for an empty name.
    pub fn writes(&self, resource: &str) -> u64 {
        self.count(resource, |verb| {
            matches!(verb, "POST" | "PUT" | "PATCH" | "APPLY" | "DELETE" | "DELETECOLLECTION")
        })
    }

    /// Those that read from it.
    pub fn reads(&self, resource: &str) -> u64 {
        self.count(resource, |verb| matches!(verb, "GET" | "LIST"))
    }

    /// Watches of it that have ended.
    pub fn watches(&self, resource: &str) -> u64 {
        self.count(resource, |verb| verb == "WATCH")
    }

    /// What came after `before`, of the same server in the same life.
    pub fn since(&self, before: &Self) -> Self {
        let less = |(key, count): (&(String, String), &u64)| {
            (key.clone(), count.saturating_sub(before.0.get(key).copied().unwrap_or(0)))
        };
        Self(self.0.iter().map(less).filter(|(_, count)| *count > 0).collect())
    }

    fn count(&self, resource: &str, verbs: impl Fn(&str) -> bool) -> u64 {
        let counts =
            self.0.iter().filter(|((verb, of), _)| verbs(verb) && (resource.is_empty() || of == resource));
        counts.map(|(_, count)| count).sum()
    }
}

impl Server {
    /// The requests so far, the API server's own to itself and dry runs left
    /// out.
    pub fn requests(&self) -> Requests {
        let text = self.kubectl(&["get", "--raw", "/metrics"]).succeeds();
        let mut found = Requests::default();
        for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
            let Some((labels, count)) = line.split_once("} ") else { continue };
            let label = |name: &str| {
                let value = labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
                value.unwrap_or("").trim_end_matches('"').to_owned()
            };
            if !label("dry_run").is_empty() || label("resource").is_empty() {
                continue;
            }
            let mut resource = label("resource");
            if !label("subresource").is_empty() {
                resource = format!("{resource}/{}", label("subresource"));
            }
            // From a million on it is written with an exponent.
            let count: f64 = count.trim().parse().expect("a count");
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            let count = count as u64;
            *found.0.entry((label("verb"), resource)).or_default() += count;
        }
        found
    }
}
