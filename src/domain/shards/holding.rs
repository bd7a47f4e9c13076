//! The worker's side of the protocol: what it holds, what it may poll, and
//! when it lets go. It hears what happened and answers what to do; the driver
//! around it does the input and output.
//!
//! ```text
//!            holder = me = desired          its slices read fresh
//!   Idle ---------------------------> Taking --------------------> Polling
//!    ^  \                               |                             |
//!    |   \ holder = me, desired another | desired another             | desired another
//!    |    \                             v                             v
//!    |     +-------------------------> Passing <------------------ Draining
//!    |      holder = desired, epoch+1   |        no session of it is open
//!    +----------------------------------+
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::fence::{Fence, Standing};
use super::timing::{Boot, Timing, jittered};
use super::{Incarnation, ShardId};

/// The first pause before a write or a read of a shard is tried again; it
/// doubles up to [`RETRY_MOST`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest such pause.
const RETRY_MOST: Duration = Duration::from_secs(8);
/// A worker that is about to end polls on for so long at most, for the leader
/// to find other workers; then it lets go by itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which slice a holder works by: one object, at one generation of it. A slice
/// that is deleted and made again is another object, whose generations begin
/// anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Observation {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.generation`.
    pub generation: i64,
}

/// A shard as the API server had it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShardSeen {
    /// Which.
    pub id: ShardId,
    /// `metadata.resourceVersion`: a decimal number that grows.
    pub version: String,
    /// `spec.desired`, by [`Incarnation::parse`].
    pub desired: Option<Incarnation>,
    /// `status.holder`, by [`Incarnation::named`].
    pub holder: Option<Incarnation>,
    /// `status.epoch`.
    pub epoch: i64,
    /// `spec.slices`.
    pub slices: u32,
    /// `status.observedSlices`.
    pub observed: BTreeMap<String, Observation>,
}

/// How a renewal of the lease went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Renewed {
    /// Acknowledged by the API server.
    Ok,
    /// The lease is stolen, somebody else's, or gone: it is over.
    Lost,
    /// Nobody knows: no answer, or a refusal that says nothing about the lease.
    Failed,
}

/// How a write of a shard's status went.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Written {
    /// Done: the shard as it is now.
    Ok(ShardSeen),
    /// The shard is at another version (409).
    Conflict,
    /// Nobody knows: perhaps it was done, perhaps it still will be.
    Failed,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Heard {
    /// The answer to [`Order::Renew`]. Each order gets one within R.
    RenewalAnswered {
        /// When the request was sent: taken *before* sending.
        sent: Boot,
        /// How it went.
        result: Renewed,
    },
    /// A shard as a watch, or the read asked for by [`Order::Look`], shows it.
    Shard(ShardSeen),
    /// There is no such shard (any more).
    ShardGone(ShardId),
    /// The answer to [`Order::Follow`], and again whenever later versions of
    /// the slices are in force. It promises: all slices of `spec.slices` are
    /// read, the first time by a consistent read begun after the order; and no
    /// session is open for a record of this shard that they do not name.
    SlicesRead {
        /// Which shard.
        shard: ShardId,
        /// The epoch of the order.
        epoch: i64,
        /// What was read, by the slice's name.
        observed: BTreeMap<String, Observation>,
    },
    /// The answer to [`Order::Drain`], exactly one to each: no session of the
    /// shard is open, and what its sessions had to commit is committed or
    /// given up.
    Drained {
        /// Which shard.
        shard: ShardId,
        /// The epoch of the order.
        epoch: i64,
    },
    /// The answer to [`Order::WriteStatus`], exactly one to each.
    Wrote {
        /// Which shard.
        shard: ShardId,
        /// The version of the order.
        version: String,
        /// How it went.
        result: Written,
    },
    /// The process shall end (SIGTERM).
    Leave,
    /// Time has passed: [`Member::next_wake`] is reached.
    Tick,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// Renew the lease, within [`Timing::renewal_deadline`].
    Renew {
        /// Say in it that this worker is about to end.
        leaving: bool,
    },
    /// Read the shard now, consistently, and tell it by [`Heard::Shard`].
    Look(ShardId),
    /// Read so many slices of the shard afresh, and watch them. Given again
    /// when their number changes.
    Follow {
        /// Which shard.
        shard: ShardId,
        /// To be named in the answer.
        epoch: i64,
        /// `spec.slices`.
        slices: u32,
    },
    /// Its slices are of no concern any more, and no [`Heard::Drained`] either.
    Forget(ShardId),
    /// Poll its records from now on; each poll still asks
    /// [`Member::may_poll`].
    Start {
        /// Which shard.
        shard: ShardId,
        /// For its ledgers.
        epoch: i64,
    },
    /// Start nothing more of it, end its sessions at the next message, commit;
    /// then [`Heard::Drained`].
    Drain {
        /// Which shard.
        shard: ShardId,
        /// To be named in the answer.
        epoch: i64,
    },
    /// Drop its sessions now. If it was told to drain, [`Heard::Drained`] is
    /// still due.
    Abort(ShardId),
    /// Drop all sessions now: nothing is started until the next `Start`.
    AbortAll,
    /// Whatever `AbortAll` left open: close the sockets.
    CloseAll,
    /// Write the shard's status if it still has this version.
    WriteStatus {
        /// Which shard.
        shard: ShardId,
        /// The `resourceVersion` to compare with.
        version: String,
        /// `status.holder`.
        holder: Option<Incarnation>,
        /// `status.epoch`.
        epoch: i64,
        /// `status.observedSlices`.
        observed: BTreeMap<String, Observation>,
    },
    /// End the process. Nothing is ordered any more.
    Exit(Exit),
}

/// What [`Member::may_settle`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// It may.
    Now,
    /// The worker does not know whether it counts as alive: perhaps later.
    Later,
    /// Others may have polled since, or the shard is to go now.
    Never,
}

/// Why the process shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// The lease is lost: others may poll what this worker held.
    Lost,
    /// As it was told to, with everything handed over.
    Left,
    /// As it was told to, but not everything could be handed over in time.
    LeftBehind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// Somebody else's, or nobody's.
    Idle,
    /// Ours, but its slices are not read yet.
    Taking,
    Polling,
    Draining {
        /// Then its sessions are dropped.
        until: Boot,
        aborted: bool,
    },
    /// Nothing of it is open; to be handed over.
    Passing,
}

/// A status write, from its order until it is known what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Write {
    UnderWay {
        base: String,
    },
    /// Perhaps done: look at time `at`, or try again.
    Unknown {
        base: String,
        at: Boot,
    },
    /// Not done: the shard had changed. Look, and again at time `at`.
    Outdated {
        base: String,
        at: Boot,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Holding {
    seen: ShardSeen,
    phase: Phase,
    /// Number of slices in the last `Follow`.
    followed: Option<u32>,
    /// What we work by; `None` until all slices were read in this epoch.
    taken: Option<BTreeMap<String, Observation>>,
    write: Option<Write>,
    /// Failures in a row of `write`.
    failures: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Renewing {
    ordered: Boot,
    leaving: bool,
}

/// A worker; see the module's page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    me: Incarnation,
    timing: Timing,
    drain_limit: Duration,
    /// Spreads this worker's pauses away from those of others.
    salt: u64,
    fence: Fence,
    shards: BTreeMap<ShardId, Holding>,
    renewing: Option<Renewing>,
    renew_at: Boot,
    renewal_failures: u8,
    leaving: Option<Boot>,
    /// That it leaves is acknowledged in its lease.
    announced: bool,
    exited: bool,
}

impl Member {
    /// A worker without membership yet, and without shards. Its sessions get
    /// `drain_limit` to end by themselves where a shard moves.
    pub fn new(me: Incarnation, timing: Timing, drain_limit: Duration) -> Self {
        // FNV-1a: anything that tells incarnations apart does.
        let salt = me.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, octet| {
            (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
        });
        Self {
            me,
            timing,
            drain_limit,
            salt,
            fence: Fence::new(timing),
            shards: BTreeMap::new(),
            renewing: None,
            renew_at: Boot(0),
            renewal_failures: 0,
            leaving: None,
            announced: false,
            exited: false,
        }
    }

    /// Who this is.
    pub fn me(&self) -> &Incarnation {
        &self.me
    }

    /// The epoch under which a poll of a record of `shard` may start at `now`;
    /// `None` if none may.
    pub fn may_poll(&self, shard: ShardId, now: Boot) -> Option<i64> {
        let holding = self.shards.get(&shard)?;
        (!self.exited && holding.phase == Phase::Polling && self.fence.standing(now) == Standing::Valid)
            .then_some(holding.seen.epoch)
    }

    /// The epoch under which sessions of `shard` commit: also while it drains,
    /// and while the worker does not know whether it still counts as alive
    /// (the ledger's compare-and-swap is what protects a commit).
    pub fn epoch(&self, shard: ShardId) -> Option<i64> {
        let holding = self.shards.get(&shard)?;
        let open = matches!(holding.phase, Phase::Polling | Phase::Draining { .. });
        (open && !self.exited).then_some(holding.seen.epoch)
    }

    /// Whether what a session of `shard` that was cut off in this `epoch` left
    /// uncommitted may be committed at `now`: while the shard has been held
    /// ever since, also while it drains, and only while polls could begin.
    pub fn may_settle(&self, shard: ShardId, epoch: i64, now: Boot) -> Settling {
        let held = self.shards.get(&shard).is_some_and(|holding| {
            let open = matches!(holding.phase, Phase::Polling | Phase::Draining { aborted: false, .. });
            open && holding.seen.epoch == epoch
        });
        match self.fence.standing(now) {
            _ if !held || self.exited => Settling::Never,
            Standing::Lost => Settling::Never,
            Standing::Valid => Settling::Now,
            Standing::Fenced | Standing::Closed => Settling::Later,
        }
    }

    /// How far the worker has stopped itself at `now`.
    pub fn standing(&self, now: Boot) -> Standing {
        self.fence.standing(now)
    }

    /// The shards that are polled, whether or not that is allowed just now.
    pub fn polled(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.shards.iter().filter(|(_, holding)| holding.phase == Phase::Polling).map(|(&id, _)| id)
    }

    /// The shards of which this worker is the holder.
    pub fn held(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.shards.iter().filter(|(_, holding)| self.holds(&holding.seen)).map(|(&id, _)| id)
    }

    /// Whether it was told to leave, or has ended.
    pub fn is_leaving(&self) -> bool {
        self.leaving.is_some() || self.exited
    }

    /// When [`Heard::Tick`] is due if nothing else is heard before.
    pub fn next_wake(&self) -> Boot {
        if self.exited {
            return Boot::NEVER;
        }
        let shards = self.shards.values().map(|holding| {
            let write = match &holding.write {
                Some(Write::Unknown { at, .. } | Write::Outdated { at, .. }) => *at,
                Some(Write::UnderWay { .. }) | None => Boot::NEVER,
            };
            match holding.phase {
                Phase::Draining { until, aborted: false } => write.min(until),
                _ => write,
            }
        });
        let leaving = self.leaving.map_or(Boot::NEVER, |since| {
            if holding_on(&self.shards) || self.held().next().is_none() {
                since.after(self.patience())
            } else {
                self.last_moment(since)
            }
        });
        let renewal = self
            .renewing
            .map_or(self.renew_at, |renewing| renewing.ordered.after(self.timing.renew_every * 2));
        shards.fold(renewal.min(self.fence.next_change()).min(leaving), Boot::min)
    }

    /// Takes in what happened, at `now`; what is to be done about it.
    pub fn hear(&mut self, now: Boot, heard: Heard) -> Vec<Order> {
        let mut orders = Vec::new();
        if self.exited {
            return orders;
        }
        // Before anything else the clock: this process may have been stopped.
        // Only a renewal may count first, since it is dated itself.
        if let Heard::RenewalAnswered { sent, result } = &heard {
            self.note_renewal(now, *sent, *result);
        }
        self.look_at_the_clock(now, &mut orders);
        if self.exited {
            return orders;
        }
        match heard {
            Heard::RenewalAnswered { .. } | Heard::Tick => {}
            Heard::Shard(seen) => self.see(now, seen, &mut orders),
            Heard::ShardGone(id) => self.lose_shard(id, &mut orders),
            Heard::SlicesRead { shard, epoch, observed } => self.take_slices(shard, epoch, observed),
            Heard::Drained { shard, epoch } => {
                if let Some(holding) = self.shards.get_mut(&shard)
                    && matches!(holding.phase, Phase::Draining { .. })
                    && holding.seen.epoch == epoch
                {
                    holding.phase = Phase::Passing;
                }
            }
            Heard::Wrote { shard, version, result } => {
                self.note_written(now, shard, &version, result, &mut orders);
            }
            Heard::Leave => {
                if self.leaving.is_none() {
                    self.leaving = Some(now);
                    self.renew_at = now;
                }
            }
        }
        self.settle_all(now, &mut orders);
        self.renew(now, &mut orders);
        self.leave(now, &mut orders);
        orders
    }

    fn note_renewal(&mut self, now: Boot, sent: Boot, result: Renewed) {
        let asked = self.renewing.take();
        match result {
            Renewed::Ok => {
                self.fence.renewed(sent);
                self.renewal_failures = 0;
                self.announced |= asked.is_some_and(|asked| asked.leaving);
                self.renew_at = sent.after(jittered(self.timing.renew_every, 10, self.salt ^ sent.0));
            }
            Renewed::Lost => self.fence.lose(),
            Renewed::Failed => {
                let pause = self.timing.renew_every / 16 * (1 << self.renewal_failures.min(3));
                self.renewal_failures = self.renewal_failures.saturating_add(1).min(4);
                self.renew_at = now.after(jittered(pause, 2, self.salt ^ now.0));
            }
        }
        if self.leaving.is_some() && asked.is_some_and(|asked| !asked.leaving) {
            self.renew_at = now;
        }
    }

    fn look_at_the_clock(&mut self, now: Boot, orders: &mut Vec<Order>) {
        match self.fence.look(now) {
            None | Some((Standing::Closed | Standing::Lost, Standing::Fenced)) => {}
            Some((_, Standing::Valid)) => {
                for (&shard, holding) in &self.shards {
                    if holding.phase == Phase::Polling {
                        orders.push(Order::Start { shard, epoch: holding.seen.epoch });
                    }
                }
            }
            Some((_, Standing::Fenced)) => orders.push(Order::AbortAll),
            Some((Standing::Fenced, Standing::Closed)) => orders.push(Order::CloseAll),
            Some((_, Standing::Closed)) => orders.extend([Order::AbortAll, Order::CloseAll]),
            Some((_, Standing::Lost)) => {
                orders.extend([Order::AbortAll, Order::CloseAll, Order::Exit(Exit::Lost)]);
                self.exited = true;
            }
        }
    }

    fn see(&mut self, now: Boot, seen: ShardSeen, orders: &mut Vec<Order>) {
        let id = seen.id;
        let Some(holding) = self.shards.get_mut(&id) else {
            self.shards.insert(id, Holding::new(seen));
            self.settle(id, now, orders);
            return;
        };
        // A watch may lag behind the answer to a write, and start anew from
        // the past: what was is never believed again.
        if is_newer(&seen.version, &holding.seen.version) {
            // A write that was outrun without effect will have none: it would
            // have met another version.
            if let Some(Write::Unknown { base, .. } | Write::Outdated { base, .. }) = &holding.write
                && is_newer(&seen.version, base)
            {
                holding.write = None;
            }
            let epoch_before = holding.seen.epoch;
            holding.seen = seen;
            if holding.seen.epoch != epoch_before {
                holding.begin_epoch(orders);
            }
        }
        self.settle(id, now, orders);
    }

    fn lose_shard(&mut self, id: ShardId, orders: &mut Vec<Order>) {
        if let Some(mut holding) = self.shards.remove(&id) {
            holding.begin_epoch(orders);
            holding.forget(orders);
        }
    }

    fn take_slices(&mut self, id: ShardId, epoch: i64, observed: BTreeMap<String, Observation>) {
        if let Some(holding) = self.shards.get_mut(&id)
            && holding.followed.is_some()
            && holding.seen.epoch == epoch
            // Read before the last one was added: another answer will follow.
            && observed.len() >= usize::try_from(holding.seen.slices).unwrap_or(usize::MAX)
        {
            holding.taken = Some(observed);
        }
    }

    fn note_written(&mut self, now: Boot, id: ShardId, base: &str, result: Written, orders: &mut Vec<Order>) {
        let salt = self.salt_of(id, now);
        let Some(holding) = self.shards.get_mut(&id) else { return };
        // Not of a write that was overtaken by a new epoch.
        if !matches!(&holding.write, Some(Write::UnderWay { base: expected }) if expected == base) {
            return;
        }
        holding.write = None;
        match result {
            Written::Ok(seen) => {
                holding.failures = 0;
                self.see(now, seen, orders);
            }
            // What is known already is newer than what the write was based on:
            // it was not done, or else it would show, and cannot be done now.
            Written::Conflict | Written::Failed if is_newer(&holding.seen.version, base) => {}
            Written::Conflict => {
                orders.push(Order::Look(id));
                let at = holding.pause(now, salt);
                holding.write = Some(Write::Outdated { base: base.to_owned(), at });
            }
            Written::Failed => {
                let at = holding.pause(now, salt);
                holding.write = Some(Write::Unknown { base: base.to_owned(), at });
            }
        }
    }

    fn settle_all(&mut self, now: Boot, orders: &mut Vec<Order>) {
        let ids: Vec<_> = self.shards.keys().copied().collect();
        for id in ids {
            self.settle(id, now, orders);
        }
    }

    /// Takes the steps that are due for one shard.
    fn settle(&mut self, id: ShardId, now: Boot, orders: &mut Vec<Order>) {
        let valid = self.fence.standing(now) == Standing::Valid;
        let leaving = self.leaving.is_some();
        let impatient = self.leaving.is_some_and(|since| now >= since.after(self.patience()));
        let deadline = now.after(self.drain_limit);
        let deadline = self.leaving.map_or(deadline, |since| deadline.min(since.after(self.drain_limit)));
        let salt = self.salt_of(id, now);
        let Some(holding) = self.shards.get_mut(&id) else { return };
        if holding.seen.holder.as_ref() != Some(&self.me) {
            if holding.phase != Phase::Idle {
                holding.begin_epoch(orders);
                holding.forget(orders);
            }
            return;
        }
        if holding.write.as_ref().is_some_and(|write| write.is_due(now))
            && let Some(Write::Outdated { base, .. }) = holding.write.take()
        {
            orders.push(Order::Look(id));
            holding.write = Some(Write::Outdated { base, at: holding.pause(now, salt) });
        }
        let wanted = holding.seen.desired.as_ref() == Some(&self.me) && !impatient;
        // At most: Idle, Taking, Polling; or Draining, Passing, Taking, Polling.
        loop {
            holding.phase = match (&holding.phase, wanted) {
                (Phase::Idle, true) if !leaving => Phase::Taking,
                (Phase::Idle, _) => Phase::Passing,
                (Phase::Taking, _) if !wanted || leaving => Phase::Passing,
                (Phase::Taking, _) if holding.taken.is_some() => {
                    if valid {
                        orders.push(Order::Start { shard: id, epoch: holding.seen.epoch });
                    }
                    Phase::Polling
                }
                (Phase::Polling, false) => {
                    orders.push(Order::Drain { shard: id, epoch: holding.seen.epoch });
                    Phase::Draining { until: deadline, aborted: false }
                }
                (&Phase::Draining { until, aborted: false }, _) if now >= until => {
                    orders.push(Order::Abort(id));
                    Phase::Draining { until, aborted: true }
                }
                // Wanted back before it was given away, and no write under way
                // that may still give it away.
                (Phase::Passing, true) if !leaving && holding.write.is_none() => Phase::Taking,
                _ => break,
            };
        }
        if matches!(holding.phase, Phase::Taking | Phase::Polling | Phase::Draining { .. })
            && holding.followed != Some(holding.seen.slices)
        {
            holding.followed = Some(holding.seen.slices);
            orders.push(Order::Follow { shard: id, epoch: holding.seen.epoch, slices: holding.seen.slices });
        }
        if holding.write.is_none() {
            let observed = holding.taken.as_ref().unwrap_or(&holding.seen.observed).clone();
            let (holder, epoch) = match holding.phase {
                Phase::Polling if observed != holding.seen.observed => {
                    (Some(self.me.clone()), holding.seen.epoch)
                }
                Phase::Passing => {
                    let heir = holding.seen.desired.clone().filter(|desired| *desired != self.me);
                    (heir, holding.seen.epoch.saturating_add(1))
                }
                _ => return,
            };
            let version = holding.seen.version.clone();
            holding.write = Some(Write::UnderWay { base: version.clone() });
            orders.push(Order::WriteStatus { shard: id, version, holder, epoch, observed });
        }
    }

    fn renew(&mut self, now: Boot, orders: &mut Vec<Order>) {
        let leaving = self.leaving.is_some();
        // An answer that is overdue by so much will not come.
        let free = self.renewing.is_none_or(|last| now >= last.ordered.after(self.timing.renew_every * 2));
        if free && now >= self.renew_at {
            self.renewing = Some(Renewing { ordered: now, leaving });
            // Until the answer says better.
            self.renew_at = now.after(self.timing.renew_every);
            orders.push(Order::Renew { leaving });
        }
    }

    fn leave(&mut self, now: Boot, orders: &mut Vec<Order>) {
        let Some(since) = self.leaving else { return };
        let exit = if self.held().next().is_none() {
            // Somebody may be about to give it a shard.
            if !self.announced && now < since.after(self.patience()) {
                return;
            }
            Exit::Left
        } else if now >= self.last_moment(since) {
            orders.extend([Order::AbortAll, Order::CloseAll]);
            Exit::LeftBehind
        } else {
            return;
        };
        orders.push(Order::Exit(exit));
        self.exited = true;
    }

    fn holds(&self, seen: &ShardSeen) -> bool {
        seen.holder.as_ref() == Some(&self.me)
    }

    fn salt_of(&self, id: ShardId, now: Boot) -> u64 {
        self.salt ^ now.0 ^ (u64::from(id.0) << 48)
    }

    fn patience(&self) -> Duration {
        PATIENCE.min(self.drain_limit / 3)
    }

    /// When a leaving worker ends whatever is left: sessions have been dropped
    /// at the drain limit, their shards' last writes got one R.
    fn last_moment(&self, since: Boot) -> Boot {
        since.after(self.drain_limit).after(self.timing.close_within).after(self.timing.renew_every)
    }
}

impl Holding {
    fn new(seen: ShardSeen) -> Self {
        Self { seen, phase: Phase::Idle, followed: None, taken: None, write: None, failures: 0 }
    }

    /// What was known and done under an epoch that is over counts no more.
    fn begin_epoch(&mut self, orders: &mut Vec<Order>) {
        if matches!(self.phase, Phase::Polling | Phase::Draining { .. }) {
            orders.push(Order::Abort(self.seen.id));
        }
        self.forget(orders);
        self.phase = Phase::Idle;
        self.taken = None;
        self.write = None;
        self.failures = 0;
    }

    fn forget(&mut self, orders: &mut Vec<Order>) {
        if self.followed.take().is_some() {
            orders.push(Order::Forget(self.seen.id));
        }
    }

    /// When to try again, later after each failure.
    fn pause(&mut self, now: Boot, salt: u64) -> Boot {
        let pause = RETRY_MOST.min(RETRY_FIRST * (1 << self.failures.min(4)));
        self.failures = self.failures.saturating_add(1).min(5);
        now.after(jittered(pause, 2, salt))
    }
}

impl Write {
    fn is_due(&self, now: Boot) -> bool {
        match self {
            Self::UnderWay { .. } => false,
            Self::Unknown { at, .. } | Self::Outdated { at, .. } => now >= *at,
        }
    }
}

fn holding_on(shards: &BTreeMap<ShardId, Holding>) -> bool {
    shards.values().any(|holding| matches!(holding.phase, Phase::Taking | Phase::Polling))
}

/// Compares two resource versions, which are decimal numbers of any length
/// without leading zeros.
fn is_newer(version: &str, than: &str) -> bool {
    (version.len(), version) > (than.len(), than)
}

#[cfg(test)]
#[path = "holding_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "holding_random.rs"]
mod random;
