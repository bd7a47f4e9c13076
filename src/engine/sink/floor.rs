//! The least speed at which a destination must take a message.

use std::time::Duration;

use tokio::time::Instant;

use crate::smtp;

/// Over which the speed is averaged.
const WINDOW: Duration = Duration::from_mins(1);
/// Octets of a window.
const LEAST: u64 = 1024 * 60;

/// Adds up the time in which it was for the server to take octets of a
/// message. Time in which there was nothing to send does not count: then the
/// slow one is the source.
#[derive(Debug, Default)]
pub(super) struct Floor {
    since: Option<Instant>,
    waited: Duration,
    /// What had been written when the window began.
    from: u64,
}

impl Floor {
    /// There may be something new: the time until now counts if
    /// [`wait`](Self::wait) said so before.
    pub(super) fn wake(&mut self) {
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// It is for the server to take octets of a message, of which the stream
    /// has taken `written` so far.
    ///
    /// # Errors
    /// [`smtp::Error::TooSlow`] when it had a whole window and took too little.
    pub(super) fn wait(&mut self, written: u64) -> Result<(), smtp::Error> {
        if self.waited >= WINDOW {
            let octets = written - self.from;
            if octets < LEAST {
                return Err(smtp::Error::TooSlow { octets, over: self.waited });
            }
            (self.waited, self.from) = (Duration::ZERO, written);
        }
        self.since = Some(Instant::now());
        Ok(())
    }

    /// No message is on its way: what was slow about the last is forgotten.
    pub(super) fn rest(&mut self, written: u64) {
        *self = Self { since: None, waited: Duration::ZERO, from: written };
    }

    /// When the window ends if nothing changes.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + WINDOW.saturating_sub(self.waited))
    }
}
