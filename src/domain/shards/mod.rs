//! Who polls which record: the protocol as arithmetic and state machines.
//! Time is an argument; nothing here reads, writes or waits.

use std::fmt;
use std::sync::Arc;

pub mod fence;
pub mod holding;
pub mod timing;

/// A share of the records; its `Display` is the name of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard-{:03}", self.0)
    }
}

/// One process of one pod, `POD/BOOT`: a restarted process is another one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(Arc<str>);

impl Incarnation {
    /// The process of `pod` that drew `boot` at its start.
    pub fn new(pod: &str, boot: u32) -> Self {
        Self(format!("{pod}/{boot:08x}").into())
    }

    /// Reads `POD/BOOT`; `None` for anything else, `stolen/POD/BOOT` among it.
    pub fn parse(text: &str) -> Option<Self> {
        let (pod, boot) = text.split_once('/')?;
        (!pod.is_empty() && !boot.is_empty() && !boot.contains('/')).then(|| Self(text.into()))
    }

    /// The pod's name.
    pub fn pod(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(pod, _)| pod)
    }

    /// `POD/BOOT`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
