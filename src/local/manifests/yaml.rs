//! YAML as a tree that remembers where everything stands.
//!
//! A document that is broken costs only itself: reading goes on at the next
//! `---`. Aliases are expanded within a budget, so that a few hundred octets
//! cannot become gigabytes.

use std::collections::HashMap;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span};
use serde_json::Value as Json;
use zeroize::Zeroize as _;

use crate::domain::text::escape;

/// Nodes that aliases may add to one document.
const ALIAS_BUDGET: usize = 100_000;
/// Nesting of one document.
const MAX_DEPTH: usize = 64;

/// Where something stands: line and column from 1, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: u32,
    pub(super) column: u32,
    /// Characters to underline; at least 1.
    pub(super) length: u32,
}

impl Position {
    fn of(span: &Span) -> Self {
        let (start, end) = (span.start, span.end);
        let length = if start.line() == end.line() { end.col().saturating_sub(start.col()) } else { 1 };
        Self { line: number(start.line()), column: number(start.col() + 1), length: number(length.max(1)) }
    }
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// A node of the tree.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Position,
    pub(super) value: Value,
}

/// What a node is. Plain scalars are told apart as `kubectl` does it.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_at: Position,
    pub(super) node: Node,
}

/// What is wrong with a document as YAML.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) at: Position,
    pub(super) message: String,
}

impl Node {
    /// The value under `key` of a mapping.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.node)
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// Its text, if it is text.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The place to point at for `spec.remote.host` or `spec.list[2].x`: the
    /// value where it is a scalar, its key where it is more, and the nearest
    /// parent where it is not there at all.
    pub(super) fn locate(&self, path: &str) -> Position {
        let mut here = self;
        let mut at = self.at;
        for step in path.split(['.', '[', ']']).filter(|step| !step.is_empty()) {
            let next = match &here.value {
                Value::List(items) => {
                    step.parse::<usize>().ok().and_then(|index| items.get(index)).map(|node| (node, node.at))
                }
                _ => here.entry(step).map(|entry| (&entry.node, entry.key_at)),
            };
            let Some((node, key_at)) = next else { return at };
            here = node;
            at = match node.value {
                Value::Map(_) | Value::List(_) | Value::Null => key_at,
                _ => node.at,
            };
        }
        at
    }

    /// The same as JSON.
    pub(super) fn json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => (*value).into(),
            Value::Int(value) => (*value).into(),
            Value::Float(value) => (*value).into(),
            Value::Text(text) => text.as_str().into(),
            Value::List(items) => items.iter().map(Self::json).collect(),
            Value::Map(entries) => {
                Json::Object(entries.iter().map(|entry| (entry.key.clone(), entry.node.json())).collect())
            }
        }
    }

    /// Overwrites all text: it may have been passwords.
    pub(super) fn wipe(mut self) {
        fn visit(node: &mut Node) {
            match &mut node.value {
                Value::Text(text) => text.zeroize(),
                Value::List(items) => items.iter_mut().for_each(visit),
                Value::Map(entries) => entries.iter_mut().for_each(|entry| visit(&mut entry.node)),
                _ => {}
            }
        }
        visit(&mut self);
    }

    fn count(&self) -> usize {
        1 + match &self.value {
            Value::List(items) => items.iter().map(Self::count).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.node.count()).sum(),
            _ => 0,
        }
    }
}

/// Reads a stream of documents and hands each to `each` as it is complete.
/// Empty documents are left out.
pub(super) fn read(text: &str, mut each: impl FnMut(Result<Node, Fault>)) {
    if let Some(fault) = control_character(text) {
        return each(Err(fault));
    }
    let mut options = Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = MAX_DEPTH;
    options.block_nesting_limit = MAX_DEPTH;
    let mut parser = Parser::new_from_str_with_options(text, options);
    let mut builder = Builder::default();
    while let Some(event) = parser.next_event() {
        let step = match event {
            Ok((event, span)) => builder.take(event, &span),
            Err(error) => {
                let mark = error.marker();
                let at = Position { line: number(mark.line()), column: number(mark.col() + 1), length: 1 };
                Err(Fault { at, message: remedy(&error.info()) })
            }
        };
        match step {
            Ok(None) => {}
            Ok(Some(node)) => each(Ok(node)),
            Err(fault) => {
                let at = fault.at;
                each(Err(fault));
                builder = Builder::default();
                match parser.proceed_next_document() {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => return each(Err(Fault { at, message: remedy(&error.info()) })),
                }
            }
        }
    }
}

/// A character that no YAML file may hold (YAML 1.2, section 5.1): the parser
/// would speak of what it took it for.
fn control_character(text: &str) -> Option<Fault> {
    let odd = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}');
    for (line, content) in (1..).zip(text.split('\n')) {
        if let Some((column, c)) = (1..).zip(content.chars()).find(|(_, c)| odd(*c)) {
            let at = Position { line, column, length: 1 };
            let message = format!(
                "the control character U+{:04X} stands here: remove it, or write it as an escape in double quotes",
                u32::from(c)
            );
            return Some(Fault { at, message });
        }
    }
    None
}

/// The parser's words, and what helps against the mistakes that are made most.
fn remedy(message: &str) -> String {
    const REMEDIES: &[(&str, &str)] = &[
        ("tab", "indent with spaces"),
        ("unknown anchor", "a value that begins with * must be in quotes"),
        ("unexpected character", "a value that begins with @, % or ` must be in quotes"),
        ("expected key", "look whether this line and the one above are indented alike"),
        ("expected ':'", "a colon and a space are missing behind a name, or a quote is not closed"),
        ("mapping values are not allowed", "a value that holds a colon and a space must be in quotes"),
        ("unclosed quote", "end the value with the quote that it begins with"),
    ];
    // A character that it cites may be the first of a password.
    let message = message.split(": `").next().unwrap_or(message);
    match REMEDIES.iter().find(|(part, _)| message.contains(part)) {
        Some((_, remedy)) => format!("{message}: {remedy}"),
        None => message.to_owned(),
    }
}

/// Puts events together.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Node>,
    spent: usize,
}

struct Open {
    at: Position,
    anchor: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Node>),
    Map(Vec<Entry>, Option<(String, Position)>),
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: &Span) -> Result<Option<Node>, Fault> {
        let at = Position::of(span);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.as_deref();
                if tag.is_some_and(|tag| !tag.is_yaml_core_schema() && tag.suffix() != "!") {
                    // It is not shown: it may be the beginning of a password.
                    let message = "this begins with `!`, which makes it a YAML tag: put the value in quotes";
                    return Err(Fault { at, message: message.into() });
                }
                let as_text = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let value = if style == ScalarStyle::Plain && !as_text {
                    plain(&text)
                } else {
                    Value::Text(text.into_owned())
                };
                self.close(Node { at, value }, anchor)?;
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(Fault { at, message: "an alias to what is not yet complete".into() });
                };
                self.spent += node.count();
                if self.spent > ALIAS_BUDGET {
                    return Err(Fault {
                        at,
                        message: format!("aliases make this document larger than {ALIAS_BUDGET} nodes"),
                    });
                }
                let node = Node { at, value: node.value.clone() };
                self.close(node, 0)?;
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Open { at, anchor, kind: Kind::List(Vec::new()) });
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(Open { at, anchor, kind: Kind::Map(Vec::new(), None) });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.open.pop() {
                    let value = match open.kind {
                        Kind::List(items) => Value::List(items),
                        Kind::Map(entries, _) => Value::Map(merge(entries)?),
                    };
                    self.close(Node { at: open.at, value }, open.anchor)?;
                }
            }
            Event::DocumentEnd => {
                let root = self.root.take();
                *self = Self::default();
                return Ok(root.filter(|node| !matches!(node.value, Value::Null)));
            }
            _ => {}
        }
        Ok(None)
    }

    fn close(&mut self, node: Node, anchor: usize) -> Result<(), Fault> {
        if anchor != 0 {
            self.spent += node.count();
            if self.spent > ALIAS_BUDGET {
                return Err(Fault {
                    at: node.at,
                    message: format!("more than {ALIAS_BUDGET} nodes are anchored"),
                });
            }
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut().map(|open| &mut open.kind) {
            None => self.root = Some(node),
            Some(Kind::List(items)) => items.push(node),
            Some(Kind::Map(entries, pending)) => {
                if let Some((key, key_at)) = pending.take() {
                    entries.push(Entry { key, key_at, node });
                } else {
                    *pending = Some((key_of(entries, &node)?, node.at));
                }
            }
        }
        Ok(())
    }
}

/// The text of a key that is new to the mapping.
fn key_of(entries: &[Entry], node: &Node) -> Result<String, Fault> {
    let key = match &node.value {
        Value::Text(text) => text.clone(),
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::List(_) | Value::Map(_) => {
            return Err(Fault { at: node.at, message: "a key must be a plain word".into() });
        }
    };
    match entries.iter().find(|entry| entry.key == key && key != "<<") {
        None => Ok(key),
        Some(first) => {
            let line = first.key_at.line;
            let message = format!("`{}` is written twice; first on line {line}", escape(&key));
            Err(Fault { at: node.at, message })
        }
    }
}

/// Replaces `<<` by what it names; keys that are written out win.
fn merge(entries: Vec<Entry>) -> Result<Vec<Entry>, Fault> {
    if !entries.iter().any(|entry| entry.key == "<<") {
        return Ok(entries);
    }
    let (merges, mut own): (Vec<Entry>, Vec<Entry>) =
        entries.into_iter().partition(|entry| entry.key == "<<");
    for entry in merges {
        let sources = match entry.node.value {
            Value::List(items) => items,
            value => vec![Node { at: entry.node.at, value }],
        };
        for source in sources {
            let Value::Map(inherited) = source.value else {
                return Err(Fault { at: entry.key_at, message: "`<<` needs an alias to a mapping".into() });
            };
            for inherited in inherited {
                if own.iter().all(|known| known.key != inherited.key) {
                    own.push(inherited);
                }
            }
        }
    }
    Ok(own)
}

/// The type of a plain scalar. `yes`, `on` and their like are booleans, since
/// `kubectl` takes them so and a file must mean the same in both.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_or_else(|_| text.parse().map_or(Value::Null, Value::Float), Value::Int);
    }
    if let Some(hex) = text.strip_prefix("0x")
        && let Ok(value) = i64::from_str_radix(hex, 16)
    {
        return Value::Int(value);
    }
    let like_float = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().any(|b| b.is_ascii_digit())
        && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    match text.parse::<f64>() {
        Ok(value) if like_float && value.is_finite() => Value::Float(value),
        _ => Value::Text(text.to_owned()),
    }
}
