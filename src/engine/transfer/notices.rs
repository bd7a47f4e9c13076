//! Recipients that were refused for good: whether that is to be believed, and
//! who is told.

use super::super::incoming::{Entrusted, Fetch, Heading, Purpose, Taken};
use super::super::ports::{Content, Job, Verdict, Via};
use super::super::route::{MAIN, to_mailbox};
use super::super::standing::Standing;
use super::{Answer, Handed, REFUSALS, Transfer};
use crate::domain::envelope::{Envelope, ReversePath};
use crate::message::Notification;

/// A message that nobody got, of which nobody is told yet.
pub(super) struct Doubted {
    lane: usize,
    fetch: Fetch,
    taken: Option<Taken>,
    heading: Heading,
    standing: Standing,
}

impl Transfer<'_> {
    /// All of a message's recipients are settled for now, and some were
    /// refused for good.
    ///
    /// A destination that refuses everybody is misconfigured more often than
    /// all its recipients are unknown. So nobody is told of a message that
    /// nobody got before the destination has accepted another one, or there is
    /// nothing more to try; and after [`REFUSALS`] such messages in a row the
    /// destination is not believed.
    pub(super) fn report(
        &mut self,
        fetch: Fetch,
        taken: Option<Taken>,
        heading: Option<Heading>,
        mut standing: Standing,
    ) {
        let is_main_away = self.plan.away.contains_key(&MAIN);
        let heading = heading.filter(|heading| heading.header.is_some() && !is_main_away);
        let Some(heading) = heading.filter(|_| !standing.holds_back()) else {
            standing.leave_untold("a refused recipient was not reported to the sender yet");
            return self.conclude(fetch, taken, None, standing);
        };
        let lane = standing.refuser().filter(|_| !standing.reached);
        let refused = |lane: usize| self.bad_streaks.get(lane).map_or(0, |streak| streak.refused);
        match lane.map(|lane| (lane, refused(lane))) {
            Some((_, REFUSALS..)) => {
                self.set_aside_untold(
                    fetch,
                    taken.as_ref(),
                    standing,
                    "its destination refuses everybody's mail",
                );
            }
            Some((lane, 1..)) => self.doubted.push(Doubted { lane, fetch, taken, heading, standing }),
            _ => self.notify(fetch, taken, heading, standing, false),
        }
    }

    /// The destination of a lane, or with `None` of any, is believed.
    pub(super) fn believe(&mut self, lane: Option<usize>) {
        let (believed, doubted) = std::mem::take(&mut self.doubted)
            .into_iter()
            .partition::<Vec<_>, _>(|doubted| lane.is_none_or(|lane| lane == doubted.lane));
        self.doubted = doubted;
        for Doubted { fetch, taken, heading, standing, .. } in believed {
            self.notify(fetch, taken, heading, standing, false);
        }
    }

    /// The destination of a lane is not believed: what it refused stays.
    pub(super) fn disbelieve(&mut self, lane: usize, why: &str) {
        let (disbelieved, doubted) = std::mem::take(&mut self.doubted)
            .into_iter()
            .partition::<Vec<_>, _>(|doubted| doubted.lane == lane);
        self.doubted = doubted;
        for Doubted { fetch, taken, standing, .. } in disbelieved {
            self.set_aside_untold(fetch, taken.as_ref(), standing, why);
        }
    }

    /// Nobody has the message, and nobody is told: it stays where it is.
    fn set_aside_untold(
        &mut self,
        mut fetch: Fetch,
        taken: Option<&Taken>,
        mut standing: Standing,
        why: &str,
    ) {
        standing.leave_untold(why);
        standing.retrieved = true;
        fetch.standing = Some(Box::new(standing));
        self.tally.counters.rejected += 1;
        self.quarantine(&fetch, "destination", why, taken);
    }

    /// Tells the sender, or in its stead the postmaster of the Main Domain, of
    /// those who were refused for good.
    pub(super) fn notify(
        &mut self,
        mut fetch: Fetch,
        taken: Option<Taken>,
        heading: Heading,
        standing: Standing,
        in_stead: bool,
    ) {
        let Some(unified) = self.context.item.unified.as_deref() else { return };
        self.remember(&mut fetch, taken.as_ref(), &standing);
        let via = self.context.lanes.via(MAIN);
        let sender = heading.sender.0.as_ref().filter(|_| via == Via::Smtp && !in_stead);
        let to = sender.unwrap_or(&unified.postmaster).clone();
        let in_stead = sender.is_none();
        let id = self.next_id;
        self.next_id += 1;
        let unique = self.context.keys.hash(&[&id.to_be_bytes()[..], to.as_str().as_bytes()].concat());
        let refused = standing.refused();
        let notification = Notification {
            reporting_mta: &self.context.host_name,
            to: &to,
            from: &unified.postmaster,
            refused: &refused,
            header: heading.header.as_deref().unwrap_or_default(),
            others_wait: standing.is_pending(),
            in_stead_of: in_stead.then_some(&heading.sender),
            now: jiff::Timestamp::now(),
            unique,
            arrived: heading.arrived,
        };
        let utf8_header = notification.needs_utf8();
        let pieces = notification.compose();
        let octets: u64 = pieces.iter().map(|piece| piece.unstuffed_len() as u64).sum();
        let envelope = Envelope {
            sender: ReversePath(None),
            recipients: vec![to_mailbox(to, via)],
            size: Some(octets),
            utf8_header,
            envid: None,
            await_recipients: false,
        };
        self.held_octets += octets;
        fetch.standing = Some(Box::new(standing));
        let unified = Some(Box::new(Entrusted { purpose: Purpose::Notification(in_stead), heading }));
        let job = Job { id, envelope, content: Content::Whole(pieces.into()), leave: None };
        self.ready.push_back((job, Handed { taken, octets, fetch, lane: MAIN, unified }));
    }

    pub(super) fn on_notification(
        &mut self,
        fetch: Fetch,
        taken: Option<Taken>,
        heading: Heading,
        mut standing: Standing,
        in_stead: bool,
        answer: Answer,
    ) {
        let (key, count) = (&self.context.item.key, standing.refused_count());
        match answer.map(|verdicts| verdicts.into_iter().next()) {
            Ok(Some(Verdict::Accepted)) => {
                let whom = if in_stead { "the postmaster" } else { "the sender" };
                tracing::info!(record = %key, number = fetch.number, count,
                    "{whom} was told of recipients who were refused for good");
                standing.tell();
            }
            Ok(Some(Verdict::Refused(refusal))) if !in_stead => {
                tracing::info!(record = %key, number = fetch.number,
                    "the notification to the sender was refused, the postmaster gets it: {refusal}");
                return self.notify(fetch, taken, heading, standing, true);
            }
            Ok(Some(Verdict::Refused(refusal))) if !standing.reached => {
                let why = format!("nobody has it, and nobody could be told: {refusal}");
                return self.set_aside_untold(fetch, taken.as_ref(), standing, &why);
            }
            Ok(Some(Verdict::Refused(refusal))) => {
                tracing::warn!(record = %key, number = fetch.number, count,
                    "nobody could be told of recipients who were refused for good: {refusal}");
                standing.tell();
            }
            _ => standing.leave_untold("the notification to the sender could not be sent yet"),
        }
        self.conclude(fetch, taken, Some(heading), standing);
    }
}
