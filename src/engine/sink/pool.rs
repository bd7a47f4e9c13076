//! Idle connections, kept for the next poll that goes the same way.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::session::{Session, Terms};
use crate::domain::work::MailHost;
use crate::smtp::client::Protocol;

/// How long an unused connection is kept; servers give up after minutes.
const KEPT: Duration = Duration::from_secs(30);
/// Connections of one way, all polls together: Postfix takes 50 from one
/// client (`smtpd_client_connection_count_limit`) and refuses the rest.
const MOST: usize = 48;
/// How long a poll waits for one of them before it opens one of its own: those
/// may be held by streams that are slow, and these hold up nobody else.
const PATIENCE: Duration = Duration::from_secs(5);

/// What makes two connections interchangeable: the whole of what was
/// configured for them, TLS policy and identity included.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    protocol: Protocol,
    host: MailHost,
}

/// The shelves of a process, one for each way.
#[derive(Debug)]
pub(super) struct Shelves<S>(Mutex<HashMap<Key, Arc<Shelf<S>>>>);

impl<S> Default for Shelves<S> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<S> Shelves<S> {
    /// The shelf of one way.
    pub(super) fn of(&self, protocol: Protocol, host: &MailHost) -> Arc<Shelf<S>> {
        let mut shelves = lock(&self.0);
        let key = Key { protocol, host: host.clone() };
        if let Some(shelf) = shelves.get(&key) {
            return Arc::clone(shelf);
        }
        // Ways come and go with the manifests: forget those that nobody uses.
        shelves.retain(|_, shelf| {
            Arc::strong_count(shelf) > 1
                || !lock(&shelf.idle).is_empty()
                || shelf.no_chunking.load(Ordering::Relaxed)
        });
        Arc::clone(shelves.entry(key).or_default())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Shelves<S> {
    /// Says QUIT on all idle connections, as far as that takes no waiting.
    pub(super) fn close(&self) {
        for shelf in lock(&self.0).values() {
            for idle in lock(&shelf.idle).drain(..) {
                idle.session.farewell();
            }
        }
    }
}

/// The idle connections of one way.
#[derive(Debug)]
pub(super) struct Shelf<S> {
    idle: Mutex<Vec<Idle<S>>>,
    seats: Semaphore,
    /// CHUNKING is announced there, and BDAT is not known.
    no_chunking: AtomicBool,
}

#[derive(Debug)]
struct Idle<S> {
    session: Session<S>,
    since: Instant,
}

impl<S> Default for Shelf<S> {
    fn default() -> Self {
        Self { idle: Mutex::default(), seats: Semaphore::new(MOST), no_chunking: AtomicBool::new(false) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is whole at every step: a panic elsewhere spoils nothing.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Shelf<S> {
    /// Connections that may be opened at once.
    pub(super) fn free(&self) -> usize {
        self.seats.available_permits()
    }

    /// Waits for the right to use a connection; not for ever: `None` means to
    /// go on without.
    pub(super) async fn seat(&self) -> Option<SemaphorePermit<'_>> {
        tokio::time::timeout(PATIENCE, self.seats.acquire()).await.ok()?.ok()
    }

    /// From now on DATA is used, whatever is announced.
    pub(super) fn forgo_chunking(&self) {
        self.no_chunking.store(true, Ordering::Relaxed);
    }

    /// Whether [`forgo_chunking`](Self::forgo_chunking) was called.
    pub(super) fn forgoes_chunking(&self) -> bool {
        self.no_chunking.load(Ordering::Relaxed)
    }

    /// The most recently used connection that is still alive.
    pub(super) fn take(&self, terms: Terms) -> Option<Session<S>> {
        loop {
            let idle = lock(&self.idle).pop()?;
            if idle.since.elapsed() < KEPT
                && let Some(session) = idle.session.resume(terms)
            {
                return Some(session);
            }
        }
    }

    /// Keeps a connection for a while.
    pub(super) fn put(self: &Arc<Self>, session: Session<S>) {
        let mut idle = lock(&self.idle);
        if idle.len() >= MOST {
            drop(idle);
            return session.farewell();
        }
        idle.push(Idle { session, since: Instant::now() });
        if idle.len() == 1 {
            tokio::spawn(clear(Arc::downgrade(self)));
        }
    }
}

/// Closes what has been idle for too long, until nothing is left.
async fn clear<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(shelf: Weak<Shelf<S>>) {
    loop {
        tokio::time::sleep(KEPT / 2).await;
        let Some(shelf) = shelf.upgrade() else { return };
        let expired: Vec<_> = {
            let mut idle = lock(&shelf.idle);
            let fresh = idle.iter().position(|idle| idle.since.elapsed() < KEPT).unwrap_or(idle.len());
            idle.drain(..fresh).collect()
        };
        for idle in expired {
            idle.session.farewell();
        }
        if lock(&shelf.idle).is_empty() {
            return;
        }
    }
}
