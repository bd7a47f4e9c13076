//! What comes from the POP3 side: messages, their ends, and what confirms
//! them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::incoming::{Ended, EndedWay, Fetch, Incoming, Rule, Started, Taken};
use super::super::ports::Part;
use super::super::report::PollError;
use super::super::route::MAIN;
use super::{Code, End, Handed, Transfer, internal};
use crate::domain::wire;
use crate::pop3::{Command, Event, Reply, ResponseCode};

impl Transfer<'_> {
    pub(super) async fn on_event(&mut self, event: Event) -> Result<Option<End>, PollError> {
        self.heard = Instant::now();
        match event {
            Event::Begin { .. } => {
                if let Some(end) = self.confirm().await? {
                    return Ok(Some(end));
                }
                let Some(fetch) = self.in_flight.front().cloned() else {
                    return Err(internal("a message begins that was not asked for"));
                };
                let id = self.next_id;
                self.next_id += 1;
                self.retrieved += u64::from(!fetch.is_again());
                let rules = self.context.judgement(&fetch, self.copies.as_ref(), &self.plan.away);
                let mut incoming = Incoming::new(id, fetch, Arc::clone(&self.context.trace), &rules);
                if self.draining || self.failed.is_some() {
                    incoming.discard();
                }
                self.current = Some(incoming);
            }
            Event::Data(piece) => {
                self.tally.counters.bytes += piece.bytes.len() as u64;
                if let Some(current) = &mut self.current {
                    let before = current.held_octets();
                    let rules = self.context.judgement(&current.fetch, self.copies.as_ref(), &self.plan.away);
                    let started = current.push(piece, &rules, &mut self.out);
                    self.held_octets = self.held_octets + current.held_octets() - before;
                    if current.is_endless(self.context.item.limits.message_size) {
                        return self.on_endless().map(Some);
                    }
                    if let Some(started) = started {
                        let fetch = current.fetch.clone();
                        self.on_started(started, fetch);
                    }
                }
            }
            Event::End(end) => self.on_end(end.tally).await?,
            Event::Reply { command, reply } => return self.on_reply(command, &reply).await,
        }
        if self.out_of_step() {
            self.give_up_message("the server is out of step").map(Some)
        } else {
            Ok(None)
        }
    }

    /// In careful fetching nothing may follow a message unasked.
    fn out_of_step(&self) -> bool {
        self.plan.careful
            && self.unconfirmed.is_some()
            && self.confirmations_due == 0
            && self.client.unsolicited()
    }

    async fn on_end(&mut self, tally: wire::Tally) -> Result<(), PollError> {
        let (Some(current), Some(fetch)) = (self.current.take(), self.in_flight.pop_front()) else {
            return Err(internal("a message ends that did not begin"));
        };
        self.in_flight_octets = self.in_flight_octets.saturating_sub(fetch.size.unwrap_or(0));
        let held = current.held_octets();
        if self.draining {
            self.again.push(fetch);
            return Ok(());
        }
        let octets = tally.octets;
        let agrees = fetch.size.is_some_and(|size| tally.agrees_with(size));
        if !agrees && !self.plan.careful {
            tracing::debug!(record = %self.context.item.key, number = fetch.number, size = fetch.size, octets,
                "size differs from LIST: fetching singly");
            self.held_octets -= held;
            self.abort_stream(&current);
            self.draining = true;
            self.again.push(fetch);
            return Ok(());
        }
        let rules = self.context.judgement(&fetch, self.copies.as_ref(), &self.plan.away);
        self.held_octets -= held;
        let ended = current.end(octets, &rules);
        if let EndedWay::Whole(job) = &ended.way {
            self.held_octets += job.envelope.size.unwrap_or(0);
        }
        self.unconfirmed = Some(ended);
        if self.plan.careful && fetch.size.is_some_and(|size| octets < size) {
            // A short copy is what an unstuffed dot leaves behind: its rest is
            // given a moment to show itself.
            let quiet = self.client.quiet(Duration::from_millis(20)).await;
            if !matches!(quiet, Ok(true)) {
                self.confirmations_due = 0;
            }
        }
        Ok(())
    }

    async fn on_reply(&mut self, command: Command, reply: &Reply) -> Result<Option<End>, PollError> {
        match command {
            Command::Noop if self.confirmations_due > 0 => {
                self.confirmations_due -= 1;
                if self.plan.careful && !reply.is_ok() {
                    return self.give_up_message("the server is out of step").map(Some);
                }
                if self.confirmations_due == 0 {
                    if self.plan.careful && self.client.unsolicited() {
                        return self.give_up_message("the server is out of step").map(Some);
                    }
                    return self.confirm().await;
                }
            }
            Command::Retr(_) => {
                if let Some(end) = self.confirm().await? {
                    return Ok(Some(end));
                }
                if let Some(fetch) = self.in_flight.pop_front() {
                    self.in_flight_octets = self.in_flight_octets.saturating_sub(fetch.size.unwrap_or(0));
                    let why = format!("the server refused to hand it over: {reply}");
                    if self.draining {
                        self.again.push(fetch);
                    } else if matches!(reply.code, Some(ResponseCode::SysTemp | ResponseCode::InUse)) {
                        self.plan.busy.push((fetch, why));
                    } else {
                        self.quarantine(&fetch, "retrieve", &why, None);
                    }
                }
            }
            Command::Dele(_) => {
                if reply.is_ok() {
                    self.deleted += 1;
                }
                return self.confirm().await;
            }
            _ => return self.confirm().await,
        }
        Ok(None)
    }

    /// The next reply has begun: the message before it is whole.
    async fn confirm(&mut self) -> Result<Option<End>, PollError> {
        if self.confirmations_due > 0 {
            return Ok(None);
        }
        let Some(ended) = self.unconfirmed.take() else { return Ok(None) };
        if !ended.taken.fetch.is_again() {
            self.tally.counters.fetched += 1;
        }
        self.judge_suspects();
        self.context.observer.fetched(&self.context.item.key, ended.taken.octets);
        if self.context.item.unified.is_some() {
            return self.confirm_unified(ended).await.map(|()| None);
        }
        let Ended { mut taken, way, .. } = ended;
        let whole = matches!(way, EndedWay::Whole(_) | EndedWay::Streamed(..));
        let looked = whole || (taken.fetch.ambiguous && matches!(way, EndedWay::Ruled(..)));
        let known = looked && self.is_known(&mut taken).await?;
        match way {
            EndedWay::Whole(job) => {
                let octets = job.envelope.size.unwrap_or(0);
                if known {
                    self.held_octets -= octets;
                } else {
                    let fetch = taken.fetch.clone();
                    let handed = Handed { taken: Some(taken), octets, fetch, lane: MAIN, unified: None };
                    self.ready.push_back((job, handed));
                }
            }
            EndedWay::Streamed(id, sender) => {
                if known {
                    self.out.withdraw(&sender);
                } else {
                    let waiting =
                        self.ready.iter_mut().find(|(job, _)| job.id == id).map(|(_, handed)| handed);
                    if let Some(handed) = self.handed.get_mut(&id).or(waiting) {
                        handed.taken = Some(taken);
                        self.out.push(&sender, Part::End);
                    }
                }
            }
            EndedWay::Ruled(..) if known => {}
            EndedWay::Ruled(rule, why) => self.on_ruled(&taken, rule, &why),
            EndedWay::Read(_) | EndedWay::Void => {}
        }
        Ok(None)
    }

    pub(super) fn on_ruled(&mut self, taken: &Taken, rule: Rule, why: &str) {
        match rule {
            Rule::KnownMessageId => self.suppress(taken),
            Rule::Loop => self.refuse(&taken.fetch, Some(taken), "loop", why, true),
        }
    }

    /// A large message of which there is enough to hand it over.
    fn on_started(&mut self, started: Started, mut fetch: Fetch) {
        let Started { job, lane, unified } = started;
        let unified = unified.map(|unified| {
            let (standing, entrusted) = *unified;
            self.note_postmaster(&fetch, &entrusted.purpose);
            fetch.standing = Some(Box::new(standing));
            Box::new(entrusted)
        });
        self.ready.push_back((job, Handed { taken: None, octets: 0, fetch, lane, unified }));
    }

    pub(super) fn on_courier_gone(&mut self) {
        self.handed.clear();
        self.fail(Code::Internal, "the delivery ended before its messages did");
    }

    pub(super) fn on_stream_gone(&mut self, sender: &mpsc::Sender<Part>) {
        if let Some(current) = &mut self.current
            && current.stream().is_some_and(|stream| stream.same_channel(sender))
        {
            current.discard();
        }
    }

    pub(super) fn abort_stream(&mut self, current: &Incoming) {
        if let Some(sender) = current.stream() {
            self.out.withdraw(sender);
        }
        let id = current.id;
        self.ready.retain(|(job, _)| job.id != id);
        self.early.remove(&id);
    }

    /// Gives up what was not confirmed: nothing of it is delivered.
    pub(super) fn abandon_unconfirmed(&mut self) {
        for ended in
            [self.current.take().and_then(|current| current.stream().cloned()), None].into_iter().flatten()
        {
            self.out.withdraw(&ended);
        }
        if let Some(Ended { way: EndedWay::Streamed(_, sender), .. }) = self.unconfirmed.take() {
            self.out.withdraw(&sender);
        }
    }
}
