//! The clock that every poll looks at before it does anything, and the thread
//! that ends the process if polls do not end in time.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::domain::shards::timing::{Boot, Timing};

/// How often the thread looks, at least.
const LOOK: Duration = Duration::from_millis(250);
/// A process that was stopped (SIGSTOP, a frozen machine) wakes up behind its
/// deadlines: so long its tasks have to find that out by themselves.
const GRACE: Duration = Duration::from_millis(500);

/// Says what `CLOCK_BOOTTIME` is.
pub type Clock = Arc<dyn Fn() -> Boot + Send + Sync>;

/// From when on this worker must not do anything with a maildrop. Shared by the
/// driver, which moves it on, by polls and by the watchdog.
#[derive(Clone)]
pub struct Fence {
    clock: Clock,
    state: Arc<State>,
    timing: Timing,
}

struct State {
    /// Milliseconds of [`Boot`].
    fenced_at: AtomicU64,
    /// Sessions that may have open sockets.
    open: AtomicUsize,
    over: AtomicBool,
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence")
            .field("fenced_at", &self.fenced_at())
            .field("open", &self.open())
            .finish_non_exhaustive()
    }
}

impl Fence {
    /// Closed until the first renewal is acknowledged.
    pub fn new(clock: Clock, timing: Timing) -> Self {
        let state =
            State { fenced_at: AtomicU64::new(0), open: AtomicUsize::new(0), over: AtomicBool::new(false) };
        Self { clock, state: Arc::new(state), timing }
    }

    /// What time it is.
    pub fn now(&self) -> Boot {
        (self.clock)()
    }

    /// A renewal that was sent then is acknowledged.
    pub fn renewed(&self, sent: Boot) {
        self.state.fenced_at.fetch_max(sent.after(self.timing.fence_after).0, Ordering::SeqCst);
    }

    /// Never again.
    pub fn close(&self) {
        self.state.over.store(true, Ordering::SeqCst);
    }

    fn fenced_at(&self) -> Boot {
        Boot(self.state.fenced_at.load(Ordering::SeqCst))
    }

    /// Whether sessions may go on.
    pub fn is_open(&self) -> bool {
        !self.state.over.load(Ordering::SeqCst) && self.now() < self.fenced_at()
    }

    /// Sessions that are under way.
    pub fn open(&self) -> usize {
        self.state.open.load(Ordering::SeqCst)
    }

    /// `session`, which is dropped, unpolled, at the first look behind the
    /// fence: nothing is sent after that. `None` is what it comes to then.
    pub fn guard<F: Future>(&self, session: F) -> Guarded<F> {
        self.state.open.fetch_add(1, Ordering::SeqCst);
        Guarded { session: Some(Box::pin(session)), fence: self.clone() }
    }

    /// Starts the thread that calls `end` when a session is still open F + A
    /// after the last acknowledged renewal was sent, however busy the runtime.
    pub fn watch(&self, end: impl Fn() + Send + 'static) -> std::io::Result<Watchdog> {
        let stop = Arc::new(AtomicBool::new(false));
        let (fence, stopped) = (self.clone(), Arc::clone(&stop));
        std::thread::Builder::new().name("fence".to_owned()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let before = fence.now();
                let closed_at = fence.fenced_at().after(fence.timing.close_within);
                let left = closed_at.since(before).clamp(Duration::from_millis(10), LOOK);
                std::thread::sleep(left);
                let slept = fence.now().since(before);
                if fence.is_overdue() {
                    if slept > left + GRACE {
                        std::thread::sleep(GRACE);
                    }
                    if fence.is_overdue() {
                        end();
                    }
                }
            }
        })?;
        Ok(Watchdog(stop))
    }

    fn is_overdue(&self) -> bool {
        self.open() > 0 && self.now() >= self.fenced_at().after(self.timing.close_within)
    }
}

/// Ends the watchdog's thread when dropped.
#[derive(Debug)]
pub struct Watchdog(Arc<AtomicBool>);

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// See [`Fence::guard`].
pub struct Guarded<F> {
    session: Option<Pin<Box<F>>>,
    fence: Fence,
}

impl<F> Guarded<F> {
    fn end(&mut self) {
        if self.session.take().is_some() {
            self.fence.state.open.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl<F: Future> Future for Guarded<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Whatever woke it, the clock is looked at first: the process may have
        // been stopped for long.
        if !self.fence.is_open() {
            self.end();
        }
        let Some(session) = &mut self.session else { return Poll::Ready(None) };
        let ended = std::task::ready!(session.as_mut().poll(cx));
        self.end();
        Poll::Ready(Some(ended))
    }
}

impl<F> Drop for Guarded<F> {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence() -> (Fence, Arc<AtomicU64>) {
        let time = Arc::new(AtomicU64::new(1_000));
        let clock = Arc::clone(&time);
        let fence = Fence::new(Arc::new(move || Boot(clock.load(Ordering::SeqCst))), Timing::FAST);
        (fence, time)
    }

    #[tokio::test]
    async fn whatever_wakes_a_session_behind_the_fence_it_sends_nothing() {
        let (fence, time) = fence();
        fence.renewed(Boot(1_000));
        let sent = Arc::new(AtomicUsize::new(0));
        let sends = Arc::clone(&sent);
        let (server, mut from_server) = tokio::sync::mpsc::channel::<()>(8);
        let session = tokio::spawn(fence.guard(async move {
            while from_server.recv().await.is_some() {
                sends.fetch_add(1, Ordering::SeqCst);
            }
        }));
        server.send(()).await.unwrap();
        while sent.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(fence.open(), 1);
        // The process is stopped for long, and its server has spoken meanwhile.
        time.store(60_000, Ordering::SeqCst);
        server.send(()).await.ok();
        assert_eq!(session.await.unwrap(), None);
        assert_eq!((sent.load(Ordering::SeqCst), fence.open()), (1, 0));
        assert!(fence.guard(async {}).await.is_none(), "and nothing new begins");
    }

    #[test]
    fn a_session_that_does_not_end_ends_the_process() {
        let (fence, time) = fence();
        fence.renewed(Boot(1_000));
        let (ended, end) = std::sync::mpsc::channel();
        let _watchdog = fence.watch(move || ended.send(()).unwrap_or(())).unwrap();
        let session = fence.guard(std::future::pending::<()>());
        // Fenced, but within A.
        time.store(1_000 + 4_500 + 900, Ordering::SeqCst);
        assert!(end.recv_timeout(LOOK * 2).is_err());
        time.store(1_000 + 4_500 + 1_000, Ordering::SeqCst);
        end.recv_timeout(Duration::from_secs(5)).unwrap();
        drop(session);
    }

    #[test]
    fn nothing_open_is_nothing_to_end() {
        let (fence, time) = fence();
        fence.renewed(Boot(1_000));
        drop(fence.guard(std::future::pending::<()>()));
        let (ended, end) = std::sync::mpsc::channel();
        let _watchdog = fence.watch(move || ended.send(()).unwrap_or(())).unwrap();
        time.store(100_000, Ordering::SeqCst);
        assert!(end.recv_timeout(LOOK * 3).is_err());
    }
}
