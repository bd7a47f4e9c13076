//! Sessions that break, fall out of step or take too long: which message is
//! to blame, and whether another session goes on behind it.

use super::super::incoming::EndedWay;
use super::super::report::{PollError, Scope};
use super::{End, Transfer, internal};
use crate::domain::code::Code;
use crate::pop3;

impl Transfer<'_> {
    /// A message that twice did not come whole is set aside, the session is
    /// dropped without QUIT, and another one goes on behind it.
    pub(super) fn give_up_message(&mut self, why: &str) -> Result<End, PollError> {
        self.in_step = false;
        self.plan.broken += 1;
        let fetch = self.unconfirmed.take().map(|ended| {
            if let EndedWay::Streamed(_, sender) = &ended.way {
                self.out.withdraw(sender);
            }
            ended.taken.fetch
        });
        match fetch.or_else(|| self.in_flight.pop_front()) {
            Some(fetch) => {
                self.quarantine(
                    &fetch,
                    "out-of-step",
                    &format!("{why}: the message did not come whole"),
                    None,
                );
                Ok(End::Again)
            }
            None => {
                Err(PollError { code: Code::ProtocolError, message: why.to_owned(), scope: Scope::Account })
            }
        }
    }

    /// More comes than can be a message: the session is dropped, and the next
    /// one goes on behind it.
    pub(super) fn on_endless(&mut self) -> Result<End, PollError> {
        self.in_step = false;
        self.plan.broken += 1;
        let Some(current) = self.current.take() else { return Err(internal("no message flows")) };
        self.abort_stream(&current);
        if self.draining {
            // Which message this is, is not certain here: one by one it will be.
            self.plan.careful = true;
        } else {
            let why = "it is far longer than LIST or the record's limit says, and has no end";
            self.quarantine(&current.fetch, "endless", why, None);
        }
        Ok(End::Again)
    }

    /// The session's time is up, and the server is not at the end of what it
    /// was asked for.
    pub(super) fn on_overdue(&mut self) -> PollError {
        self.in_step = false;
        if let Some(current) = self.current.take() {
            self.abort_stream(&current);
        }
        PollError {
            code: Code::TimedOut,
            message: "the session took longer than timeouts.session allows".to_owned(),
            scope: Scope::Account,
        }
    }

    /// The server has shown that it can hand messages over: those at which
    /// sessions broke are set aside.
    pub(super) fn judge_suspects(&mut self) {
        for (fetch, why) in std::mem::take(&mut self.plan.suspects) {
            self.quarantine(&fetch, "broken", &why, None);
        }
        for (fetch, why) in std::mem::take(&mut self.plan.busy) {
            self.quarantine(&fetch, "retrieve", &why, None);
        }
    }

    /// Nothing came behind what the server refused for now: the trouble is its
    /// own, and all of that is for a later poll, or session if the poll goes on.
    pub(super) fn judge_busy(&mut self, at_end: bool) {
        let first = std::mem::take(&mut self.plan.busy).into_iter().next();
        if let Some((_, why)) = first.filter(|_| at_end && self.failed.is_none()) {
            self.failed = Some(PollError { code: Code::ServerBusy, message: why, scope: Scope::Account });
        }
    }

    /// The session broke. The message under way may be the cause: the next
    /// session fetches singly, and sets it aside if it breaks there again.
    pub(super) fn on_broken(&mut self, error: &pop3::Error) -> Result<End, PollError> {
        self.in_step = false;
        let failed = PollError { code: error.code(), message: error.to_string(), scope: Scope::Account };
        let unconfirmed = self.unconfirmed.as_ref().map(|ended| ended.taken.fetch.clone());
        let Some(fetch) = unconfirmed.or_else(|| self.in_flight.front().cloned()) else { return Err(failed) };
        self.plan.broken += 1;
        if !self.plan.suspects.is_empty() && self.tally.counters.fetched == self.fetched_before {
            // First one message, now another, and nothing between them: the
            // fault is not in the messages.
            self.plan.suspects.clear();
            return Err(failed);
        }
        let strikes = self.plan.strikes.entry(fetch.clone().uid.ok_or(fetch.number)).or_default();
        *strikes += 1;
        if is_glued(error) || self.context.last_session {
            self.quarantine(&fetch, "broken", &failed.message, None);
        } else if *strikes > 1 {
            self.plan.suspects.push((fetch, failed.message));
        } else {
            self.plan.careful = true;
        }
        Ok(End::Again)
    }
}

/// The terminator is there, but not on a line of its own.
fn is_glued(error: &pop3::Error) -> bool {
    matches!(error, pop3::Error::Stalled { ends_with_dot_crlf: true, .. })
}
