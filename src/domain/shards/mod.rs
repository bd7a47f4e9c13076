//! Who polls which record: the protocol as arithmetic and state machines.
//! Time is an argument; nothing here reads, writes or waits.

pub mod fence;
pub mod holding;
pub mod leader;
pub mod mapping;
pub mod packing;
pub mod placement;
pub mod timing;

use std::fmt;
use std::sync::Arc;

/// A share of the records; its `Display` is the name of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

impl ShardId {
    /// Reads `shard-007`; `None` for anything else, other spellings of the
    /// number among it.
    pub fn parse(name: &str) -> Option<Self> {
        let id = Self(name.strip_prefix("shard-")?.parse().ok()?);
        (id.to_string() == name).then_some(id)
    }

    /// The name of its slice with that number: `shard-007-2`.
    pub fn slice(self, number: u32) -> String {
        format!("{self}-{number}")
    }

    /// Reads the name of a slice, `shard-007-2`; `None` for anything else.
    pub fn parse_slice(name: &str) -> Option<(Self, u32)> {
        let (shard, number) = name.rsplit_once('-')?;
        let (shard, number) = (Self::parse(shard)?, number.parse().ok()?);
        (shard.slice(number) == name).then_some((shard, number))
    }
}

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

    /// Whoever is named where a shard's worker is named: what cannot be read
    /// is a worker that nobody knows, and must not pass for nobody. `None`
    /// only for an empty text.
    pub fn named(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(text.into()))
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

/// Whose a membership Lease is: its `spec.holderIdentity`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LeaseHolder {
    /// Nobody's: given back.
    Nobody,
    /// A worker's, `POD/BOOT`.
    Worker(Incarnation),
    /// Taken away from that worker, for good: `stolen/POD/BOOT`.
    Stolen(Incarnation),
}

impl LeaseHolder {
    /// Reads a `spec.holderIdentity`; an empty one is nobody.
    pub fn parse(text: &str) -> Self {
        match text.strip_prefix("stolen/").and_then(Incarnation::parse) {
            Some(worker) => Self::Stolen(worker),
            None => Incarnation::named(text).map_or(Self::Nobody, Self::Worker),
        }
    }
}

impl fmt::Display for LeaseHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => Ok(()),
            Self::Worker(worker) => write!(f, "{worker}"),
            Self::Stolen(worker) => write!(f, "stolen/{worker}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_shards_and_slices_are_read_as_they_are_written() {
        for number in [0, 7, 255, 1023, u16::MAX] {
            let shard = ShardId(number);
            assert_eq!(ShardId::parse(&shard.to_string()), Some(shard));
            assert_eq!(ShardId::parse_slice(&shard.slice(12)), Some((shard, 12)));
        }
        assert_eq!(ShardId(7).to_string(), "shard-007");
        assert_eq!(ShardId(7).slice(0), "shard-007-0");
        for foreign in ["shard-7", "shard-0007", "shard-+07", "shard-", "shard-99999", "other-007"] {
            assert_eq!(ShardId::parse(foreign), None, "{foreign}");
        }
        for foreign in ["shard-007", "shard-007-", "shard-007-01", "shard-7-1"] {
            assert_eq!(ShardId::parse_slice(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_process_is_known_by_its_pod_and_its_boot() {
        let worker = Incarnation::new("rpop-worker-5c7", 0xbeef);
        assert_eq!(worker.to_string(), "rpop-worker-5c7/0000beef");
        assert_eq!(worker.pod(), "rpop-worker-5c7");
        assert_eq!(Incarnation::parse(worker.as_str()), Some(worker));
        for foreign in ["", "pod", "/boot", "pod/", "stolen/pod/boot"] {
            assert_eq!(Incarnation::parse(foreign), None, "{foreign}");
        }
        assert_eq!(Incarnation::named(""), None);
        assert!(Incarnation::named("whoever").is_some(), "an unknown holder is not nobody");
    }

    #[test]
    fn a_stolen_lease_says_whose_it_was() {
        let worker = Incarnation::new("pod", 1);
        for holder in [LeaseHolder::Nobody, LeaseHolder::Worker(worker.clone()), LeaseHolder::Stolen(worker)]
        {
            assert_eq!(LeaseHolder::parse(&holder.to_string()), holder);
        }
    }
}
