//! The records that are to be polled, and the shard that each belongs to.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::RecordSeen;
use crate::domain::shards::ShardId;
use crate::domain::shards::mapping::{self, Scale};
use crate::domain::shards::packing::Wanted;
use crate::domain::work::RecordKey;

/// What a poll is taken to last until it is measured, in seconds.
const POLL_SECONDS: f64 = 1.5;
/// All hosts are looked at again when the number of records has changed by
/// this part of it.
const DRIFT: u64 = 16;

/// A record by number; numbers of records that nothing mentions any more are
/// used again.
pub(super) type Number = u32;

/// A slice: its shard and its number.
pub(super) type Place = (ShardId, u32);

struct Wish {
    maildrop: u64,
    host: usize,
    digest: u64,
    bytes: u32,
    destination: u64,
    destination_bytes: u32,
    rate: f64,
    /// Where it belongs, and over how many shards its host is spread.
    target: (ShardId, u32),
}

struct Record {
    key: RecordKey,
    wish: Option<Wish>,
    /// Slices that have it, or may have it.
    places: Vec<Place>,
    /// Slices that it was taken out of, where its session may still be open.
    leaving: Vec<Place>,
    /// The shard of the slice that had it last, as far as this leader knows.
    home: Option<ShardId>,
}

struct Host {
    hash: u64,
    count: u64,
    factor: Option<u32>,
}

/// All records that are wanted, or of which something is left.
pub(super) struct Records {
    shards: u16,
    limit: u32,
    numbers: HashMap<RecordKey, Number>,
    all: Vec<Record>,
    free: Vec<Number>,
    host_numbers: HashMap<(Arc<str>, u16), usize>,
    hosts: Vec<Host>,
    /// Records that are wanted; at the last look at all hosts.
    count: u64,
    counted: Option<u64>,
    by_shard: BTreeMap<ShardId, BTreeSet<Number>>,
    /// Polls of a shard's records, in session-seconds per second, estimated.
    rates: BTreeMap<ShardId, f64>,
    /// Shards whose slices may have to be written.
    pub(super) dirty: BTreeSet<ShardId>,
}

impl Records {
    pub(super) fn new(shards: u16) -> Self {
        Self {
            shards,
            limit: 0,
            numbers: HashMap::new(),
            all: Vec::new(),
            free: Vec::new(),
            host_numbers: HashMap::new(),
            hosts: Vec::new(),
            count: 0,
            counted: None,
            by_shard: BTreeMap::new(),
            rates: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// The record's number, a new one where it has none.
    pub(super) fn number(&mut self, key: &RecordKey) -> Number {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let record =
            Record { key: key.clone(), wish: None, places: Vec::new(), leaving: Vec::new(), home: None };
        let number = self.free.pop().unwrap_or_else(|| Number::try_from(self.all.len()).unwrap_or(0));
        match self.all.get_mut(number as usize) {
            Some(place) => *place = record,
            None => self.all.push(record),
        }
        self.numbers.insert(key.clone(), number);
        number
    }

    fn at(&mut self, number: Number) -> &mut Record {
        &mut self.all[number as usize]
    }

    pub(super) fn key(&self, number: Number) -> &RecordKey {
        &self.all[number as usize].key
    }

    /// Forgets a record of which nothing is left.
    fn tidy(&mut self, number: Number) {
        let record = &self.all[number as usize];
        let unused = record.wish.is_none() && record.places.is_empty() && record.leaving.is_empty();
        if unused && self.numbers.remove(&record.key).is_some() {
            self.free.push(number);
        }
    }

    fn host(&mut self, name: &str, port: u16) -> usize {
        let key = (Arc::from(name.to_ascii_lowercase()), port);
        if let Some(host) = self.host_numbers.get(&key) {
            return *host;
        }
        let host = self.hosts.len();
        self.hosts.push(Host { hash: mapping::host_hash(name, port), count: 0, factor: None });
        self.host_numbers.insert(key, host);
        host
    }

    pub(super) fn limit(&mut self, limit: u32) {
        if self.limit != limit {
            self.limit = limit;
            self.counted = None;
        }
    }

    /// Exactly these are wanted.
    pub(super) fn replace(&mut self, all: &[RecordSeen]) {
        let mut gone: BTreeSet<RecordKey> = BTreeSet::new();
        gone.extend(self.all.iter().filter(|record| record.wish.is_some()).map(|record| record.key.clone()));
        for record in all {
            gone.remove(&record.key);
        }
        for key in &gone {
            self.remove(key);
        }
        for record in all {
            self.put(record);
        }
    }

    pub(super) fn put(&mut self, seen: &RecordSeen) {
        let number = self.number(&seen.key);
        let host = self.host(&seen.host, seen.port);
        let before = self.withdraw(number);
        let factor = self.hosts[host].factor.unwrap_or(1);
        let target = (mapping::shard(self.hosts[host].hash, seen.maildrop, factor, self.shards), factor);
        let wish = Wish {
            maildrop: seen.maildrop,
            host,
            digest: seen.digest,
            bytes: seen.bytes,
            destination: seen.destination,
            destination_bytes: seen.destination_bytes,
            rate: seen.interval.map_or(0.0, |every| POLL_SECONDS / every.as_secs_f64().max(1.0)),
            target,
        };
        let same = before.is_some_and(|before| before.digest == wish.digest && before.target == wish.target);
        self.enter(number, wish);
        let scale = self.scale();
        let host = &self.hosts[host];
        if scale.factor(host.factor, host.count) != factor {
            // It has become a giant, or is one no more.
            self.counted = None;
        }
        if same {
            return;
        }
        self.dirty.insert(target.0);
        self.disturb(number);
    }

    pub(super) fn remove(&mut self, key: &RecordKey) {
        if let Some(number) = self.numbers.get(key).copied() {
            self.withdraw(number);
            self.disturb(number);
            self.tidy(number);
        }
    }

    fn enter(&mut self, number: Number, wish: Wish) {
        self.hosts[wish.host].count += 1;
        self.count += 1;
        self.by_shard.entry(wish.target.0).or_default().insert(number);
        *self.rates.entry(wish.target.0).or_default() += wish.rate;
        self.at(number).wish = Some(wish);
    }

    fn withdraw(&mut self, number: Number) -> Option<Wish> {
        let wish = self.at(number).wish.take()?;
        self.hosts[wish.host].count -= 1;
        self.count -= 1;
        if let Some(all) = self.by_shard.get_mut(&wish.target.0) {
            all.remove(&number);
        }
        if let Some(rate) = self.rates.get_mut(&wish.target.0) {
            *rate = (*rate - wish.rate).max(0.0);
        }
        Some(wish)
    }

    /// Its slices, present and to come, are looked at.
    fn disturb(&mut self, number: Number) {
        let record = &self.all[number as usize];
        self.dirty.extend(record.places.iter().map(|(shard, _)| *shard));
        self.dirty.extend(record.wish.as_ref().map(|wish| wish.target.0));
    }

    /// How the slices say that hosts are spread: at the start.
    pub(super) fn recall(&mut self, items: Vec<(Number, u32)>) {
        let mut said: HashMap<(usize, u32), u64> = HashMap::new();
        for (number, factor) in items {
            if let Some(wish) = &self.all[number as usize].wish {
                *said.entry((wish.host, factor)).or_default() += 1;
            }
        }
        let mut best: HashMap<usize, (u64, u32)> = HashMap::new();
        for ((host, factor), count) in said {
            let factor = factor.max(1).next_power_of_two();
            let most = best.entry(host).or_insert((count, factor));
            *most = (*most).max((count, factor));
        }
        for (host, (_, factor)) in best {
            self.hosts[host].factor = Some(factor);
        }
        self.counted = None;
    }

    fn scale(&self) -> Scale {
        Scale { records: self.count, shards: self.shards, limit: self.limit }
    }

    /// Spreads hosts that have become giants, and gathers those that are none
    /// any more.
    pub(super) fn spread(&mut self) {
        let all = self.counted.is_none_or(|counted| self.count.abs_diff(counted) * DRIFT > counted);
        if !all {
            return;
        }
        self.counted = Some(self.count);
        let scale = self.scale();
        for host in &mut self.hosts {
            host.factor = (host.count > 0).then(|| scale.factor(host.factor, host.count));
        }
        for number in 0..self.all.len() {
            let Some(wish) = &self.all[number].wish else { continue };
            let host = &self.hosts[wish.host];
            let factor = host.factor.unwrap_or(1);
            let target = (mapping::shard(host.hash, wish.maildrop, factor, self.shards), factor);
            if target == wish.target {
                continue;
            }
            let number = Number::try_from(number).unwrap_or(0);
            self.disturb(number);
            if let Some(wish) = self.withdraw(number) {
                self.enter(number, Wish { target, ..wish });
            }
            self.disturb(number);
        }
    }

    /// What the slices of the shard are to hold: the records that belong there
    /// and are neither in another shard nor perhaps still polled for one.
    ///
    /// The holder of a `blind` shard may poll by a slice that nobody has seen:
    /// until it says by what, a record of which it is not known that another
    /// shard had it is added to that shard alone.
    pub(super) fn wanted(&self, shard: ShardId, blind: &BTreeSet<ShardId>) -> Vec<Wanted> {
        let here = |place: &Place| place.0 == shard;
        let all = self.by_shard.get(&shard).into_iter().flatten();
        all.filter_map(|number| {
            let record = &self.all[*number as usize];
            let wish = record.wish.as_ref()?;
            let elsewhere =
                |blind: &ShardId| *blind != shard && record.home.is_none_or(|home| home == *blind);
            // Whoever put it here knew that no other shard polls it, whatever
            // an old slice may still say.
            let may = if record.places.is_empty() {
                record.leaving.iter().all(here) && !blind.iter().any(elsewhere)
            } else {
                record.places.iter().all(here) && record.leaving.iter().all(here)
            };
            may.then(|| Wanted {
                record: *number,
                digest: said(wish.digest, wish.target.1),
                bytes: wish.bytes,
                destination: wish.destination,
                destination_bytes: wish.destination_bytes,
            })
        })
        .collect()
    }

    /// Over how many shards the record's host is spread.
    pub(super) fn factor(&self, number: Number) -> u32 {
        self.all[number as usize].wish.as_ref().map_or(1, |wish| wish.target.1)
    }

    /// The shard whose slices have the record, if it is the right one, and its
    /// host's factor.
    pub(super) fn placed(&self, key: &RecordKey) -> Option<(ShardId, u32)> {
        let record = &self.all[*self.numbers.get(key)? as usize];
        let target = record.wish.as_ref()?.target;
        record.places.iter().any(|(shard, _)| *shard == target.0).then_some(target)
    }

    pub(super) fn rate(&self, shard: ShardId) -> f64 {
        self.rates.get(&shard).copied().unwrap_or(0.0)
    }

    /// Whether the record is to be in that shard.
    pub(super) fn belongs(&self, number: Number, shard: ShardId) -> bool {
        self.all[number as usize].wish.as_ref().is_some_and(|wish| wish.target.0 == shard)
    }

    /// Whether no slice has it, although that shard's are to.
    pub(super) fn is_awaited(&self, number: Number, shard: ShardId) -> bool {
        self.all[number as usize].places.is_empty() && self.belongs(number, shard)
    }

    /// What waits for slices may be in them now.
    pub(super) fn disturb_all(&mut self) {
        self.dirty.extend(self.by_shard.keys());
    }

    pub(super) fn arrive(&mut self, number: Number, at: Place) {
        let record = self.at(number);
        record.home = Some(at.0);
        if !record.places.contains(&at) {
            record.places.push(at);
        }
    }

    pub(super) fn leave(&mut self, number: Number, at: Place) {
        self.at(number).places.retain(|place| *place != at);
        self.disturb(number);
        self.tidy(number);
    }

    pub(super) fn begin_leaving(&mut self, number: Number, at: Place) {
        let record = self.at(number);
        if !record.leaving.contains(&at) {
            record.leaving.push(at);
        }
    }

    pub(super) fn has_left(&mut self, number: Number, at: Place) {
        self.at(number).leaving.retain(|place| *place != at);
        self.disturb(number);
        self.tidy(number);
    }
}

/// What an item says: its digest, and its host's factor.
pub(super) fn said(digest: u64, factor: u32) -> u64 {
    digest ^ u64::from(factor).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
