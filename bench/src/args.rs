//! `--key value` and `--flag`, no more than the harness needs.

use std::collections::HashMap;

/// What stood on the command line.
pub struct Args(HashMap<String, Vec<String>>);

impl Args {
    /// Reads `--key value` pairs; a key followed by another key is a flag.
    pub fn parse(words: impl Iterator<Item = String>) -> Self {
        let mut map: HashMap<String, Vec<String>> = HashMap::new();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let Some(key) = word.strip_prefix("--") else { fail(&format!("unexpected {word}")) };
            let value = match words.peek() {
                Some(next) if !next.starts_with("--") => words.next().unwrap_or_default(),
                _ => String::new(),
            };
            map.entry(key.to_owned()).or_default().push(value);
        }
        Self(map)
    }

    pub fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    pub fn flag(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    pub fn text(&self, key: &str) -> &str {
        match self.all(key).first() {
            Some(value) => value,
            None => fail(&format!("--{key} is missing")),
        }
    }

    pub fn text_or<'a>(&'a self, key: &str, default: &'a str) -> &'a str {
        self.all(key).first().map_or(default, String::as_str)
    }

    pub fn number(&self, key: &str, default: Option<usize>) -> usize {
        match (self.all(key).first(), default) {
            (Some(text), _) => text.parse().unwrap_or_else(|_| fail(&format!("--{key} takes a number"))),
            (None, Some(default)) => default,
            (None, None) => fail(&format!("--{key} is missing")),
        }
    }
}

fn fail(message: &str) -> ! {
    eprintln!("rpop-bench: {message}");
    std::process::exit(2);
}
