//! The recipients of a unified account's message: who gets it by which way,
//! what became of them, and what is to be done next. Pure.
//!
//! ```text
//!   header --address--> recipients of one destination --hear--> verdicts
//!             ^                                                    |
//!             +----------- Again (the next destination) <--next----+
//!                          Notify, Postmaster, Reject, Settle, Owe, Wait
//! ```
//! A message takes one turn of this for each destination.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use super::ports::{Refusal, Verdict, Via};
use super::refusals::{is_by_account, is_cut_off, is_for_another_turn, is_our_own};
use super::report::PollError;
use super::route::{Lanes, MAIN};
use crate::domain::envelope::{Mailbox, Notify, Recipient};
use crate::domain::ledger::{Entry, Ledger, State};
use crate::domain::text::shown;
use crate::domain::work::{Special, Unified};
use crate::message::{Addressees, Refused};

/// Maildirs that one retrieval fills: each has an open file until its end.
const MOST_MAILDIRS: usize = 64;
/// Connections that one message may lose amid its recipients in one poll:
/// servers put up with so many unknown ones on each.
const MOST_CUT_OFF: u8 = 5;
/// Tries after which a sender is told of those who were refused, although
/// others are still put off: about two hours after the first.
const MOST_HELD: u16 = 5;

/// What stands fast while recipients are looked at.
#[derive(Clone, Copy)]
pub(super) struct Desk<'a> {
    pub(super) unified: &'a Unified,
    pub(super) lanes: &'a Lanes,
    /// Destinations that get nothing more in this poll.
    pub(super) away: &'a BTreeMap<usize, PollError>,
    pub(super) keys: &'a Ledger,
}

/// Which way an address goes.
enum Way {
    Lane(usize),
    /// It is no domain of ours, and those do not count.
    Foreign,
    /// It is no domain of ours, and there is no queue to put it in.
    Unqueued,
}

impl Desk<'_> {
    fn way(&self, address: &Mailbox) -> Way {
        // Whoever forges a header must not find a way out by a server of ours
        // that reads a further address out of this.
        if !self.unified.relay_foreign && address.is_routed() {
            return Way::Foreign;
        }
        match self.unified.place_of(address.domain()) {
            Some(place) => Way::Lane(self.lanes.of_place(place)),
            None if !self.unified.relay_foreign || self.unified.special == Special::Addressees => {
                Way::Foreign
            }
            None if self.lanes.via(MAIN) == Via::Smtp => Way::Lane(MAIN),
            None => Way::Unqueued,
        }
    }

    /// Whether a lane gets nothing more.
    pub(super) fn is_away(&self, lane: usize) -> bool {
        self.away.contains_key(&lane)
    }

    /// Recipients in the form that suits their lane. Who a header names is to
    /// be told of failures; who it merely mentions did not ask us.
    pub(super) fn recipients(&self, lane: usize, sent: &[Sent]) -> Vec<Recipient> {
        let notify = match (&self.unified.special, self.lanes.via(lane)) {
            (Special::Header(_), Via::Smtp) => Notify::Failure,
            (Special::Addressees, Via::Smtp) => Notify::Never,
            _ => Notify::Unsaid,
        };
        let address = |to: &Sent| match self.lanes.via(lane) {
            // Folders know nothing of aliases.
            Via::Maildir => self.by_own_name(&to.address),
            Via::Smtp | Via::Lmtp => to.address.clone(),
        };
        sent.iter().map(|to| Recipient { address: address(to), notify }).collect()
    }

    fn by_own_name(&self, address: &Mailbox) -> Mailbox {
        let owner = self.unified.owner_of(address.domain());
        let named = owner.and_then(|owner| Mailbox::parse(&format!("{}@{owner}", address.local())).ok());
        named.unwrap_or_else(|| address.clone())
    }
}

/// A recipient of a hand-over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    /// See [`Ledger::recipient`].
    pub(super) hash: u64,
    pub(super) address: Mailbox,
}

/// Who is to get a message now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// These, by this lane.
    Recipients(usize, Vec<Sent>),
    /// The postmaster of the Main Domain, and why.
    Postmaster(&'static str),
    /// Nobody; [`Standing::next`] says what is to be done.
    Nobody,
}

/// What is to be done with a message next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Retrieve it again, for further recipients.
    Again,
    /// Tell the sender who was refused for good.
    Notify,
    /// Send it to the postmaster of the Main Domain: it is for nobody here.
    Postmaster,
    /// Treat it as the record says; with `true` it was the content that was
    /// refused.
    Reject(Refusal, bool),
    /// Nobody knows whether it was delivered.
    Uncertain(Arc<str>),
    /// All is done.
    Settle,
    /// Some of it is done: the ledger says whom it is owed.
    Owe,
    /// Nothing is done: a later poll begins anew.
    Wait,
}

/// A recipient still to be tried; the lane is not known where only the ledger
/// names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    hash: u64,
    lane: Option<usize>,
}

/// What has become of a message's recipients in this poll and, as far as the
/// ledger knows, before.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts")]
pub(super) struct Standing {
    /// Still to be tried; `None`: whoever the header names.
    to: Option<Vec<Pending>>,
    /// Owed, and not tried again in this poll.
    later: Vec<u64>,
    /// Refused for good, of which nobody was told yet.
    refused: Vec<(u64, Refused)>,
    /// The lane that refused the latest of them.
    refuser: Option<usize>,
    /// Accounts that exist, and did not take what the message holds (`*`).
    unwilling: Vec<u64>,
    /// The first refusal of these.
    spurned: Option<Refusal>,
    /// Owed, and neither in the header nor, by now, in a domain of ours.
    strays: Vec<u64>,
    /// How often a connection ended amid its recipients.
    cut_off: u8,
    /// The first refusal that is about neither the recipients nor the content.
    turned_away: Option<Refusal>,
    /// An answer was lost.
    uncertain: Option<Arc<str>>,
    /// Somebody has accepted it.
    pub(super) reached: bool,
    /// The sender was told who was refused.
    told: bool,
    /// Something need not be done again.
    settled: bool,
    /// Somebody of `later` was tried in this poll.
    tried: bool,
    /// A destination said "not now".
    pub(super) deferred: bool,
    /// Tries before this poll.
    attempts: u16,
    /// Why it is owed.
    why: Option<String>,
    /// What the ledger knows it by, once it was retrieved.
    pub(super) digest: Option<u64>,
    /// Its own copies are told by this; it is no copy itself.
    pub(super) copy: Option<(u64, u64)>,
    /// It was retrieved before in this session.
    pub(super) retrieved: bool,
    /// It is for the postmaster, whose destination is away.
    stranded: bool,
}

impl Standing {
    /// Of a message that the ledger knows so.
    pub(super) fn of(prior: Option<&Entry>) -> Self {
        let (attempts, to, reached, reason) = match prior.map(|entry| &entry.state) {
            Some(State::Owed { attempts, to, reached, reason, .. }) => (attempts, to, reached, reason),
            Some(State::Quarantined { attempts, .. }) => {
                return Self { attempts: *attempts, ..Self::default() };
            }
            _ => return Self::default(),
        };
        Self {
            to: Some(to.iter().map(|hash| Pending { hash: *hash, lane: None }).collect()),
            reached: *reached,
            settled: true,
            attempts: *attempts,
            why: Some(reason.to_string()),
            ..Self::default()
        }
    }

    /// Chooses who is to get the message now, by what its header says: as many
    /// of those still to be tried as one destination serves.
    pub(super) fn address(&mut self, desk: &Desk<'_>, found: Option<&Addressees>, cut: bool) -> Aim {
        let wanted = self.to.replace(Vec::new());
        let more = found.is_some_and(|found| found.more);
        if wanted.is_none() && (cut || more) {
            return Aim::Postmaster(if cut {
                "its header is too long to be sure of all recipients"
            } else {
                "its header names too many recipients"
            });
        }
        let wanted: Option<HashSet<u64>> =
            wanted.map(|wanted| wanted.iter().map(|pending| pending.hash).collect());
        let mut strays = wanted.clone().unwrap_or_default();
        let mut seen = HashSet::new();
        let mut accounts = HashSet::new();
        let mut pending = Vec::new();
        for address in found.into_iter().flat_map(|found| &found.found) {
            let hash = desk.keys.recipient(address);
            let counts = wanted.as_ref().is_none_or(|wanted| wanted.contains(&hash));
            if !counts || !seen.insert(hash) {
                continue;
            }
            // One message for one account, by the first of its addresses. The
            // ledger names only these.
            let account = desk.unified.account_of(address).filter(|_| wanted.is_none());
            if account.is_some_and(|account| !accounts.insert(account)) {
                continue;
            }
            match desk.way(address) {
                Way::Lane(lane) if desk.is_away(lane) => self.later.push(hash),
                Way::Lane(lane) => pending.push((lane, Sent { hash, address: address.clone() })),
                Way::Unqueued => self.refused.push((hash, unqueued(address))),
                Way::Foreign => continue,
            }
            strays.remove(&hash);
        }
        self.strays.extend(strays);
        let Some(lane) = pending.first().map(|(lane, _)| *lane) else {
            if !self.strays.is_empty() && self.refused.is_empty() {
                return Aim::Postmaster(
                    "whom it is owed to is not in its header, or in no domain of ours now",
                );
            }
            let nobody = self.later.is_empty() && self.refused.is_empty();
            return if nobody && !self.reached && !self.told {
                Aim::Postmaster(if found.is_none_or(|found| found.fields == 0) {
                    "it has no header that names recipients"
                } else {
                    "no recipient in its header is in a domain of ours"
                })
            } else {
                Aim::Nobody
            };
        };
        let most = if desk.lanes.via(lane) == Via::Maildir { MOST_MAILDIRS } else { usize::MAX };
        let mut sent = Vec::new();
        let mut rest = Vec::new();
        for (by, to) in pending {
            if by == lane && sent.len() < most {
                sent.push(to);
            } else {
                rest.push(Pending { hash: to.hash, lane: Some(by) });
            }
        }
        self.to = Some(rest);
        Aim::Recipients(lane, sent)
    }

    /// The postmaster cannot have it now.
    pub(super) fn strand(&mut self) {
        self.stranded = true;
    }

    /// Takes the destination's word on those whom it was asked for.
    pub(super) fn hear(&mut self, desk: &Desk<'_>, lane: usize, sent: Vec<Sent>, verdicts: Vec<Verdict>) {
        // Each turn settles somebody, or it is the last.
        let mut goes_on = !verdicts.iter().all(is_for_another_turn);
        if verdicts.iter().any(|verdict| matches!(verdict, Verdict::Deferred(refusal) if is_cut_off(refusal)))
        {
            self.cut_off = self.cut_off.saturating_add(1);
            goes_on &= self.cut_off < MOST_CUT_OFF;
        }
        let mut verdicts = verdicts.into_iter();
        for to in sent {
            match verdicts.next() {
                Some(Verdict::Accepted) => (self.reached, self.settled) = (true, true),
                Some(verdict) if goes_on && is_for_another_turn(&verdict) => {
                    self.to.get_or_insert_default().push(Pending { hash: to.hash, lane: Some(lane) });
                }
                Some(Verdict::Refused(refusal)) => self.refuse(desk, lane, to, refusal),
                Some(Verdict::Deferred(refusal)) => {
                    self.deferred = true;
                    self.owe(to.hash, || format!("refused for now: {refusal}"));
                }
                Some(Verdict::Unknown { message }) => {
                    self.owe(to.hash, || message.to_string());
                    self.uncertain = Some(message);
                }
                None => self.owe(to.hash, || "the destination said nothing of a recipient".to_owned()),
            }
        }
    }

    fn owe(&mut self, hash: u64, why: impl FnOnce() -> String) {
        self.later.push(hash);
        if !self.tried {
            self.why = Some(why());
        }
        self.tried = true;
    }

    fn refuse(&mut self, desk: &Desk<'_>, lane: usize, to: Sent, refusal: Refusal) {
        if !matches!(refusal.at, "RCPT" | ".") && refusal.code != 552 {
            self.owe(to.hash, || refusal.to_string());
            self.turned_away.get_or_insert(refusal);
            return;
        }
        if let Special::Header(_) = desk.unified.special {
            let text = String::from_utf8_lossy(&refusal.text).into_owned();
            let by = desk.lanes.host(lane).filter(|_| !is_our_own(&refusal));
            self.refuser = Some(lane);
            self.refused.push((to.hash, Refused { address: to.address, code: refusal.code, text, by }));
            return;
        }
        self.settled = true;
        if refusal.at == "RCPT" && !is_by_account(&refusal) {
            return;
        }
        self.unwilling.push(to.hash);
        if !self.tried {
            self.why = Some(refusal.to_string());
        }
        self.tried = true;
        self.spurned.get_or_insert(refusal);
    }

    /// Gives up those who did not take what others did (`onReject: Discard`).
    pub(super) fn discard_unwilling(&mut self) {
        if self.reached {
            self.unwilling.clear();
        }
    }

    /// Whether it is owed to somebody whom nobody can name.
    pub(super) fn has_strays(&self) -> bool {
        !self.strays.is_empty()
    }

    /// The postmaster has it in their stead.
    pub(super) fn give_strays_up(&mut self) {
        self.strays.clear();
        (self.reached, self.settled) = (true, true);
    }

    /// The postmaster cannot have it now: it stays owed to them.
    pub(super) fn keep_strays(&mut self, why: &str) {
        for hash in std::mem::take(&mut self.strays) {
            self.owe(hash, || why.to_owned());
        }
    }

    /// The destination is not there: these were not tried.
    pub(super) fn put_back(&mut self, sent: &[Sent]) {
        self.later.extend(sent.iter().map(|to| to.hash));
    }

    /// Nobody knows whether these got it.
    pub(super) fn doubt(&mut self, sent: &[Sent], message: &Arc<str>) {
        for to in sent {
            self.owe(to.hash, || message.to_string());
        }
        self.uncertain = Some(Arc::clone(message));
    }

    /// Does not try those whose destination is away.
    pub(super) fn put_off(&mut self, is_away: impl Fn(usize) -> bool) {
        let Some(to) = &mut self.to else { return };
        let later = &mut self.later;
        to.retain(|pending| {
            let away = pending.lane.is_some_and(&is_away);
            later.extend(away.then_some(pending.hash));
            !away
        });
    }

    /// Those who were refused are settled: somebody was told.
    pub(super) fn tell(&mut self) {
        self.refused.clear();
        (self.told, self.settled) = (true, true);
    }

    /// Nobody could be told: a later poll finds out again, and tells.
    pub(super) fn leave_untold(&mut self, why: &str) {
        for (hash, _) in std::mem::take(&mut self.refused) {
            self.owe(hash, || why.to_owned());
        }
    }

    /// Who was refused and is not told of.
    pub(super) fn refused(&self) -> Vec<Refused> {
        self.refused.iter().map(|(_, refused)| refused.clone()).collect()
    }

    /// The lane that refused the latest of them.
    pub(super) fn refuser(&self) -> Option<usize> {
        self.refuser
    }

    /// Whether the sender is better told of them later: with those who are put
    /// off now, and may be refused as well. One notification a message.
    pub(super) fn holds_back(&self) -> bool {
        self.deferred && self.attempts < MOST_HELD
    }

    /// Whether others than those who were refused are still to get it.
    pub(super) fn is_pending(&self) -> bool {
        !self.later.is_empty() || !self.strays.is_empty()
    }

    /// How many these are.
    pub(super) fn refused_count(&self) -> usize {
        self.refused.len()
    }

    /// Nobody has it, and somebody was told so.
    pub(super) fn is_bounced(&self) -> bool {
        self.told && !self.reached
    }

    /// The refusal of the content that others took.
    pub(super) fn spurned(&self) -> Option<&Refusal> {
        self.spurned.as_ref()
    }

    /// Whether somebody to whom it is owed was tried in this poll.
    pub(super) fn is_tried(&self) -> bool {
        self.tried
    }

    /// Whether all that is left to be tried has nowhere to go.
    pub(super) fn is_stuck(&self, is_away: impl Fn(usize) -> bool) -> bool {
        let stuck = |pending: &Pending| pending.lane.is_some_and(&is_away);
        self.to.as_ref().is_some_and(|to| !to.is_empty() && to.iter().all(stuck))
    }

    /// Why it is owed, or waits.
    pub(super) fn why(&self) -> &str {
        self.why.as_deref().unwrap_or("the destination of a recipient is away")
    }

    /// What is to be done once the recipients of one destination are heard of.
    pub(super) fn next(&self, special: &Special) -> Next {
        match &self.to {
            None => return Next::Wait,
            Some(_) if self.stranded => return Next::Wait,
            Some(to) if !to.is_empty() => return Next::Again,
            Some(_) => {}
        }
        if !self.refused.is_empty() {
            return Next::Notify;
        }
        if !self.strays.is_empty() {
            return Next::Postmaster;
        }
        if !self.later.is_empty() || (self.reached && !self.unwilling.is_empty()) {
            return match (&self.uncertain, &self.turned_away) {
                _ if self.settled => Next::Owe,
                (Some(message), _) => Next::Uncertain(Arc::clone(message)),
                (None, Some(refusal)) if !self.deferred => Next::Reject(refusal.clone(), false),
                _ => Next::Wait,
            };
        }
        match (special, &self.spurned) {
            _ if self.reached || self.told => Next::Settle,
            (Special::Addressees, Some(refusal)) => Next::Reject(refusal.clone(), true),
            _ => Next::Postmaster,
        }
    }

    /// Whom the ledger is to say that the message is owed; `None` where
    /// nothing of it is settled, or nobody is left.
    fn owed(&self) -> Option<Box<[u64]>> {
        let to = self.to.iter().flatten().map(|pending| pending.hash);
        let refused = self.refused.iter().map(|(hash, _)| *hash);
        let rest = [&self.later, &self.unwilling, &self.strays].into_iter().flatten().copied();
        let mut all: Vec<u64> = to.chain(rest).chain(refused).collect();
        all.sort_unstable();
        all.dedup();
        (self.settled && !all.is_empty()).then(|| all.into())
    }

    /// What the ledger is to say before the message is retrieved again: a
    /// process that dies goes on there.
    pub(super) fn interim(&self, now: i64) -> Option<State> {
        self.state(self.attempts.max(1), now, "not all of its recipients were tried yet")
    }

    /// What the ledger is to say at the end of the poll. The first retry is
    /// the next poll's, and so is each one of a destination that was away: the
    /// record itself waits longer and longer for that.
    pub(super) fn at_last(&self, now: i64) -> Option<State> {
        if !self.tried {
            return self.state(self.attempts.max(1), now, self.why());
        }
        let attempts = self.attempts.saturating_add(1);
        self.state(attempts, now + wait(attempts, self.reached), self.why())
    }

    /// Likewise where nothing is settled, and it was tried in vain.
    pub(super) fn at_last_to_all(&self, now: i64) -> Option<State> {
        Self { settled: true, ..self.clone() }.at_last(now)
    }

    fn state(&self, attempts: u16, next_try: i64, why: &str) -> Option<State> {
        let reason = shown(why.as_bytes()).into();
        let reached = self.reached;
        self.owed().map(|to| State::Owed { attempts, next_try, reason, to, reached })
    }

    /// What the ledger is to say of one that is set aside: tried in vain, and
    /// still owed to the others where somebody has it or was told.
    pub(super) fn set_aside(&mut self, now: i64, was_owed: bool, why: &str) -> Option<State> {
        (self.tried, self.why) = (true, Some(why.to_owned()));
        self.at_last(now).filter(|_| was_owed || self.reached || self.told)
    }
}

/// Seconds until the next of so many tries and one: at most a day, or an hour
/// where nobody has the message.
pub(super) fn wait(attempts: u16, reached: bool) -> i64 {
    match attempts {
        0 | 1 => 0,
        more => (900_i64 << u32::from(more - 2).min(7)).min(if reached { 86_400 } else { 3600 }),
    }
}

fn unqueued(address: &Mailbox) -> Refused {
    Refused {
        address: address.clone(),
        code: 550,
        text: "5.7.1 mail for other domains needs the queue of the Main Domain, which has none".to_owned(),
        by: None,
    }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
