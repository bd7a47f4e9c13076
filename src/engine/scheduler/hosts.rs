//! Remote hosts: whose turn it is, and which are left alone.

use std::collections::VecDeque;
use std::sync::Arc;

use super::entries::State;
use super::{Id, Moment, Scheduler, index, reserve};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    Unknown,
    Answers,
    /// Failed; one probe at a time.
    Failed,
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: (Arc<str>, u16),
    pub(super) records: u32,
    pub(super) polling: u32,
    pub(super) trust: Trust,
    /// Left alone until then; in `failed`.
    pub(super) until: Option<Moment>,
    pub(super) queue: VecDeque<u32>,
    /// In one of the ready queues.
    pub(super) ready: bool,
}

impl Scheduler {
    /// In a run that polls each record once: takes the records that are due and
    /// wait for a host (in lower case). They will not be polled.
    pub fn abandon_host(&mut self, host: &str, port: u16) -> Vec<Id> {
        let Some(&host) = self.by_host.get(&(Arc::from(host), port)) else { return Vec::new() };
        let others: Vec<u32> =
            self.host_mut(host).map(|host| host.queue.drain(..).collect()).unwrap_or_default();
        for other in &others {
            if let Some(entry) = self.entry_mut(*other) {
                entry.state = State::Off;
            }
        }
        others.into_iter().map(Id).collect()
    }

    /// The hosts that are left alone, and until when.
    pub fn failed_hosts(&self) -> impl Iterator<Item = (&str, u16, Moment)> {
        self.failed.iter().filter_map(|(until, at)| {
            let host = self.hosts.get(*at as usize)?.as_ref()?;
            Some((&*host.name.0, host.name.1, *until))
        })
    }

    /// Goes on leaving a host alone that an earlier run found to have failed,
    /// if a record is there; not longer than a failure would make it now.
    pub fn leave_alone(&mut self, host: &str, port: u16, until: Moment, now: Moment) {
        let until = until.min(now.after(self.rules.delay_failed_hosts));
        if until > now
            && let Some(&at) = self.by_host.get(&(Arc::from(host.to_ascii_lowercase()), port))
        {
            self.fail_until(at, until);
        }
    }

    pub(super) fn host_mut(&mut self, host: u32) -> Option<&mut Host> {
        self.hosts.get_mut(host as usize)?.as_mut()
    }

    pub(super) fn host(&mut self, name: &Arc<str>, port: u16) -> u32 {
        let lower: Arc<str> = if name.bytes().any(|b| b.is_ascii_uppercase()) {
            name.to_ascii_lowercase().into()
        } else {
            Arc::clone(name)
        };
        let name = (lower, port);
        if let Some(&host) = self.by_host.get(&name) {
            return host;
        }
        let host = Host {
            name: name.clone(),
            records: 0,
            polling: 0,
            trust: Trust::Unknown,
            until: None,
            queue: VecDeque::new(),
            ready: false,
        };
        let at = if let Some(at) = self.free_hosts.pop() {
            if let Some(slot) = self.hosts.get_mut(at as usize) {
                *slot = Some(host);
            }
            at
        } else {
            self.hosts.push(Some(host));
            index(self.hosts.len() - 1)
        };
        self.by_host.insert(name, at);
        at
    }

    pub(super) fn leave_host(&mut self, at: u32) {
        if let Some(host) = self.host_mut(at) {
            host.records -= 1;
        }
        self.vacate(at);
        self.offer(at);
    }

    /// Forgets a host that nobody needs.
    pub(super) fn vacate(&mut self, at: u32) {
        let Some(host) = self.host_mut(at) else { return };
        if host.records > 0 || host.polling > 0 {
            return;
        }
        let (name, until) = (host.name.clone(), host.until);
        if let Some(until) = until {
            self.failed.remove(&(until, at));
        }
        self.ready.retain(|other| *other != at);
        self.doubtful_ready.retain(|other| *other != at);
        self.by_host.remove(&name);
        if let Some(slot) = self.hosts.get_mut(at as usize) {
            *slot = None;
        }
        self.free_hosts.push(at);
    }

    /// Puts a host among the ready ones if a record of it may be polled.
    pub(super) fn offer(&mut self, at: u32) {
        let limit = self.rules.host_connections;
        let Some(host) = self.hosts.get_mut(at as usize).and_then(Option::as_mut) else { return };
        let limit = self.limits.get(&host.name).copied().unwrap_or(limit);
        let limit = match host.trust {
            Trust::Failed => 1,
            _ if limit == 0 => u32::MAX,
            _ => limit,
        };
        if host.ready || host.until.is_some() || host.queue.is_empty() || host.polling >= limit {
            return;
        }
        host.ready = true;
        if host.trust == Trust::Answers {
            self.ready.push_back(at);
        } else {
            self.doubtful_ready.push_back(at);
        }
    }

    /// Ends a failed host's delay.
    pub(super) fn release(&mut self, at: u32) {
        if let Some(until) = self.host_mut(at).and_then(|host| host.until.take()) {
            self.failed.remove(&(until, at));
            self.offer(at);
        }
    }

    pub(super) fn retract(&mut self, at: u32) {
        if let Some(host) = self.host_mut(at)
            && std::mem::take(&mut host.ready)
        {
            self.ready.retain(|other| *other != at);
            self.doubtful_ready.retain(|other| *other != at);
        }
    }

    pub(super) fn trust(&mut self, at: u32) {
        let Some(host) = self.host_mut(at) else { return };
        let until = host.until.take();
        if host.trust != Trust::Answers {
            host.trust = Trust::Answers;
            self.retract(at);
        }
        if let Some(until) = until {
            self.failed.remove(&(until, at));
        }
        self.offer(at);
    }

    pub(super) fn fail_until(&mut self, at: u32, until: Moment) {
        let Some(host) = self.host_mut(at) else { return };
        host.trust = Trust::Failed;
        let before = host.until.replace(until);
        self.retract(at);
        if let Some(before) = before {
            self.failed.remove(&(before, at));
        }
        self.failed.insert((until, at));
    }

    /// The record whose turn it is.
    pub(super) fn choose(&mut self) -> Option<u32> {
        if self.polling >= self.rules.processors {
            return None;
        }
        let room = self.rules.processors - reserve(self.rules.processors);
        loop {
            let at = if let Some(at) = self.ready.pop_front() {
                at
            } else if self.doubtful < room {
                self.doubtful_ready.pop_front()?
            } else {
                return None;
            };
            let Self { hosts, entries, busy, .. } = self;
            let Some(host) = hosts.get_mut(at as usize).and_then(Option::as_mut) else { continue };
            host.ready = false;
            // The host is offered again when a poll of it ends.
            let is_free = |id: &u32| {
                let entry = entries.get(*id as usize).and_then(Option::as_ref);
                entry.is_some_and(|entry| !busy.contains(&(at, entry.maildrop)))
            };
            if host.until.is_none()
                && let Some(next) = host.queue.iter().position(is_free)
            {
                return host.queue.remove(next);
            }
        }
    }
}
