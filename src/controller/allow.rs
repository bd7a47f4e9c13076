//! Who may create records for which accounts of a domain.

use std::collections::BTreeMap;

use kube::core::{ParseExpressionError, Selector, SelectorExt as _};

use crate::api::AccountsFor;

/// One pair of a domain's `allow`.
#[derive(Clone, Debug)]
pub(super) struct Allow {
    namespaces: Selector,
    accounts: Vec<String>,
}

impl Allow {
    /// Reads a pair.
    pub(super) fn new(pair: &AccountsFor) -> Result<Self, ParseExpressionError> {
        Ok(Self { namespaces: pair.namespaces.clone().try_into()?, accounts: pair.accounts.clone() })
    }

    /// Whether a namespace with these labels may create records for that local
    /// part.
    pub(super) fn admits(&self, labels: &BTreeMap<String, String>, local: &str) -> bool {
        self.namespaces.matches(labels) && self.accounts.iter().any(|pattern| matches(pattern, local))
    }
}

/// Whether `text` is of the form `pattern`, in which `*` stands for any
/// characters. ASCII letters count the same in both cases, as mail stores see
/// them.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_ascii_lowercase(), text.to_ascii_lowercase());
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = rest.get(at + part.len()..).unwrap_or("");
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

    use super::*;

    #[test]
    fn patterns_stand_for_any_characters_and_nothing_else_does() {
        for (pattern, text, wanted) in [
            ("*", "anything", true),
            ("alice", "alice", true),
            ("alice", "Alice", true),
            ("alice", "alice2", false),
            ("alice*", "alice", true),
            ("sales-*", "sales-eu", true),
            ("sales-*", "presales-eu", false),
            ("*-eu", "sales-eu", true),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("a.c", "abc", false),
            ("", "", true),
            ("", "a", false),
            ("**", "", true),
        ] {
            assert_eq!(matches(pattern, text), wanted, "{pattern} {text}");
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_pair_admits_a_namespace_only_with_its_own_accounts() {
        let pair = AccountsFor {
            namespaces: LabelSelector {
                match_labels: Some(labels(&[("team", "a")])),
                match_expressions: None,
            },
            accounts: vec!["alice".into()],
        };
        let allow = Allow::new(&pair).unwrap();
        assert!(allow.admits(&labels(&[("team", "a"), ("x", "y")]), "alice"));
        assert!(!allow.admits(&labels(&[("team", "a")]), "bob"));
        assert!(!allow.admits(&labels(&[("team", "b")]), "alice"));
        let all = AccountsFor { namespaces: LabelSelector::default(), accounts: vec!["*".into()] };
        assert!(Allow::new(&all).unwrap().admits(&labels(&[]), "bob"));
    }

    #[test]
    fn a_selector_that_cannot_be_read_is_an_error() {
        let odd = LabelSelectorRequirement { key: "team".into(), operator: "Like".into(), values: None };
        let namespaces = LabelSelector { match_labels: None, match_expressions: Some(vec![odd]) };
        assert!(Allow::new(&AccountsFor { namespaces, accounts: vec!["*".into()] }).is_err());
    }
}
