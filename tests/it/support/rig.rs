//! One scripted mailbox, one scripted destination, one record between them.

use super::manifest::Record;
use super::pop3::{FakePop3, Pop3};
use super::rpop::{self, Run, Site};
use super::smtp::{FakeSmtp, Smtp};

/// The record's name; its account is `alice@local.test`.
pub const NAME: &str = "r";

/// Deadlines for peers that never answer.
pub const SHORT: &str = "timeouts: {connect: 3s, reply: 3s, data: 3s, afterDot: 4s, session: 25s}";

/// The three of them.
pub struct Rig {
    /// The remote server.
    pub pop: FakePop3,
    /// The destination.
    pub sink: FakeSmtp,
    /// The manifests and the state.
    pub site: Site,
}

impl Rig {
    /// A record in clear text that deletes what it fetched, to an LMTP server
    /// that takes everything.
    pub fn new(pop: Pop3) -> Self {
        Self::with(pop, Smtp::lmtp(), |record| record)
    }

    /// The same, keeping the mail on the server.
    pub fn keeping(pop: Pop3) -> Self {
        Self::with(pop, Smtp::lmtp(), |record| record.with("leave: true"))
    }

    /// With another destination.
    pub fn to(pop: Pop3, sink: Smtp) -> Self {
        Self::with(pop, sink, |record| record)
    }

    /// With another destination and another record.
    pub fn with(pop: Pop3, sink: Smtp, change: impl FnOnce(Record) -> Record) -> Self {
        let is_lmtp = sink.is_lmtp();
        let (pop, sink) = (pop.start(), sink.start());
        let delivery = if is_lmtp { rpop::lmtp(sink.port()) } else { rpop::smtp(sink.port()) };
        let site = Site::for_delivery(&delivery);
        site.settings(&[SHORT]);
        site.record(&change(Record::plain(NAME, pop.port(), "alice")));
        Self { pop, sink, site }
    }

    /// One poll.
    pub fn poll(&self) -> Run {
        self.site.once()
    }

    /// Polls until the sink holds `count` messages, at most `polls` times.
    pub fn poll_until(&self, count: usize, polls: usize) {
        for _ in 0..polls {
            let run = self.poll();
            assert!(matches!(run.code(), 0 | 1), "{}", run.text());
            if self.sink.accepted() >= count {
                return;
            }
        }
        panic!("{} of {count} messages after {polls} polls; {:?}", self.sink.accepted(), self.pop.commands());
    }

    /// The marks of what arrived, sorted; each must have come once.
    pub fn marks(&self) -> Vec<String> {
        let marks = self.sink.marks();
        assert!(marks.values().all(|count| *count == 1), "repeated: {marks:?}");
        marks.into_keys().collect()
    }
}
