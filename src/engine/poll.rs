//! The driver: one poll of one record, from its ledger to its report.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::Engine;
use super::batch::Batch;
use super::plan::{Plan, Tally};
use super::ports::{Observer, Stage};
use super::report::{Counters, PollError, Report, Scope};
use super::route::{self, Lanes, MAIN};
use super::session::{self, Checked, Maildrop, Session};
use super::transfer::{Context, Copies, Couriers, End, Transfer, knows_copies, ledger_error};
use super::work::{Work, wanted};
use crate::domain::code::Code;
use crate::domain::ledger::{Change, Entry, Findings, Ledger, State, SurveyPolicy, day_of};
use crate::domain::work::{OnUidChange, RecordKey, Settings, WorkItem};
use crate::pop3::Command;

/// Sessions of one poll, however well each goes.
const SESSIONS: u32 = 200;
/// Sessions of one poll that may break.
const BROKEN: u32 = 8;
/// From the third broken one on this is waited before the next, and once more
/// for each further one.
const PAUSE: Duration = Duration::from_millis(500);

/// What a poll has done. Dropped with the poll, it is told nonetheless: others
/// have the mail, and the record's figures are to say so.
struct Unreported<'a> {
    tally: Tally,
    observer: &'a dyn Observer,
    key: &'a RecordKey,
}

impl Drop for Unreported<'_> {
    fn drop(&mut self) {
        if self.tally.counters != Counters::default() {
            self.observer.cut_off(self.key, &self.tally.counters);
        }
    }
}

impl Engine {
    /// Polls `item` once. Ends at the next message when `stop` says so; when
    /// the future is dropped everything is dropped, and nothing is lost: the
    /// observer hears of what was done by then ([`Observer::cut_off`]).
    ///
    /// Not more than `checkpoint.messages` are ever handed over and not
    /// committed, hence repeated at most after a crash.
    pub async fn poll(&self, item: &WorkItem, settings: &Settings, stop: watch::Receiver<Stage>) -> Report {
        let started = Instant::now();
        let mut unreported =
            Unreported { tally: Tally::default(), observer: &*self.observer, key: &item.key };
        // The session's deadline ends it at a message; this one is for what
        // does not come to an end of its own.
        let hard = started + settings.timeouts.session + settings.timeouts.after_dot;
        let result = match timeout_at(hard, self.sessions(item, settings, stop, &mut unreported.tally)).await
        {
            Ok(result) => result,
            Err(_) => Err(PollError {
                code: Code::TimedOut,
                message: format!("the poll did not end within {:?}", settings.timeouts.session),
                scope: Scope::Account,
            }),
        };
        let tally = std::mem::take(&mut unreported.tally);
        Report {
            result,
            counters: tally.counters,
            took: started.elapsed(),
            login_delay: tally.login_delay,
            refused: tally.refused,
        }
    }

    async fn sessions(
        &self,
        item: &WorkItem,
        settings: &Settings,
        mut stop: watch::Receiver<Stage>,
        tally: &mut Tally,
    ) -> Result<(), PollError> {
        let until = Instant::now() + settings.timeouts.session;
        let mut plan = Plan { budget: item.limits.messages_per_session.map(u64::from), ..Plan::default() };
        // A large ledger takes as long to read as a login takes.
        let load = async { self.ledgers.load(&item.key).await.map_err(|error| ledger_error(&error)) };
        let (ledger, first) = tokio::try_join!(load, session::open(self, item, settings, &mut plan))?;
        let mut first = Some(first);
        let mut batch = Batch::new(
            Arc::clone(&self.ledgers),
            Arc::clone(&self.observer),
            item.key.clone(),
            settings.checkpoint,
            ledger,
        );
        for _ in 0..SESSIONS {
            if *stop.borrow() >= Stage::Draining {
                return Ok(());
            }
            // Logins in quick succession lock accounts.
            if let Some(more @ 1..) = plan.broken.checked_sub(2) {
                tokio::time::sleep(PAUSE * more).await;
            }
            let session = match first.take() {
                Some(first) => first,
                None => session::open(self, item, settings, &mut plan).await?,
            };
            match self
                .session(item, settings, session, &mut batch, &mut plan, tally, until, &mut stop)
                .await?
            {
                // What the others got, they keep.
                End::Complete => return plan.away.pop_first().map_or(Ok(()), |(_, error)| Err(error)),
                End::Again if plan.broken >= BROKEN => break,
                End::Again => {}
            }
        }
        Err(PollError {
            code: Code::ConnectionLost,
            message: format!("{BROKEN} sessions broke in one poll: the next one goes on"),
            scope: Scope::Account,
        })
    }

    #[expect(clippy::too_many_arguments, reason = "the state of a poll, passed down once")]
    async fn session(
        &self,
        item: &WorkItem,
        settings: &Settings,
        mut session: Session,
        batch: &mut Batch,
        plan: &mut Plan,
        tally: &mut Tally,
        until: Instant,
        stop: &mut watch::Receiver<Stage>,
    ) -> Result<End, PollError> {
        let now = jiff::Timestamp::now().as_second();
        let Some(ledger) = batch.ledger() else {
            return Err(PollError {
                code: Code::Internal,
                message: "the ledger is out on a commit".into(),
                scope: Scope::Local,
            });
        };
        let keys = Ledger::new(ledger.salt());
        let policy = SurveyPolicy {
            now,
            leave: item.leave,
            keep_for_days: item.keep_for_days,
            delete_seen: item.delete_seen,
            on_uid_change: item.on_uid_change,
        };
        let maildrop = session.survey(item, ledger.survey(policy)).await?;
        tally.login_delay = session.login_delay;
        let mut work = Work::default();
        match maildrop {
            Maildrop::Listed(findings)
                if findings.all_changed && item.on_uid_change == OnUidChange::Pause =>
            {
                return Err(uids_changed(&findings));
            }
            Maildrop::Listed(mut findings) => {
                let sizes = session.sizes(&wanted(&findings)).await?;
                let size_of = |number: u32| sizes.get(&number).copied().unwrap_or(0);
                findings.check_against_list(size_of, |hash| plan.undeleted.contains(&hash));
                work.take_findings(findings, &sizes, ledger, &policy, plan, tally);
            }
            Maildrop::Counted(messages) => {
                let numbers: Vec<u32> = (1..=messages).filter(|number| !plan.skip.contains(number)).collect();
                let sizes = session.sizes(&numbers).await?;
                work.take_numbers(&numbers, &sizes, tally);
            }
        }
        work.apply_limits(item, plan, tally, &*self.observer, now);
        let Work { queue, deletions, durable_deletions, changes, pruning, known, moved, twins, without_uids } =
            work;
        plan.undeleted.extend(durable_deletions.iter().filter_map(|(change, _)| match change {
            Change::Put { uid, .. } => Some(keys.hash(uid)),
            _ => None,
        }));
        for (change, number) in durable_deletions {
            batch.add(change, Some(number));
        }
        for change in changes {
            batch.add(change, None);
        }
        let octets = queue.iter().filter_map(|fetch| fetch.size).sum();
        self.observer.surveyed(&item.key, queue.len() as u64, octets);

        if !queue.is_empty() {
            // A disk that is full now would cost repeats at every poll.
            let uids = queue.iter().map(|fetch| fetch.uid.as_ref().map_or(24, |uid| uid.len() as u64)).sum();
            // A unified account's may be owed to many.
            let each = if item.unified.is_some() { 2000 } else { 200 };
            batch.reserve(queue.len(), uids, each).await.map_err(|error| ledger_error(&error))?;
        }
        let lanes = Lanes::new(item, settings.timeouts)?;
        let recipient = lanes.recipient(item)?;
        let postmaster =
            item.unified.as_ref().map(|unified| &unified.postmaster).or(item.postmaster.as_ref());
        let postmaster = postmaster.map(|to| route::to_mailbox(to.clone(), lanes.via(MAIN)));
        let copies = batch.ledger().filter(|_| item.unified.as_deref().is_some_and(knows_copies));
        let copies = copies.map(|ledger| Copies::of(ledger, &pruning, day_of(now)));
        let trace = session.trace(item, self, &recipient);
        let (pipelining, expires_at_once) = (session.pipelining, session.expires_at_once);
        let context = Context {
            item,
            recipient,
            postmaster,
            lanes,
            observer: &*self.observer,
            trace,
            host_name: Arc::clone(&self.host_name),
            keys,
            known,
            moved,
            twins,
            until,
            now,
            pipelining,
            expires_at_once,
            last_session: session.login_delay.is_some(),
        };
        let couriers = Couriers::new(&*self.sink, context.lanes.routes());
        plan.left_cleanly = false;
        let end = Transfer::new(context, session.client, couriers, copies, batch, plan, tally)
            .run(queue, deletions, stop)
            .await?;
        for change in pruning {
            // What was delivered in this session may have the Message-ID of
            // copies that were too old when it began.
            let renewed = |ledger: &Ledger| match &change {
                Change::Forget { hash } => ledger.has_copy(*hash, day_of(now)),
                _ => false,
            };
            if !batch.ledger().is_some_and(renewed) {
                batch.add(change, None);
            }
        }
        if without_uids && plan.left_cleanly {
            // No listing will ever show that they are gone. What is owed stays
            // on the server, and no listing has a say about copies.
            let is_gone = |entry: &Entry| !matches!(entry.state, State::Owed { .. } | State::Copy);
            let forget = |ledger: &Ledger| -> Vec<Change> {
                let gone = ledger.iter().filter(|(_, entry)| is_gone(entry));
                let gone = gone.map(|(hash, _)| Change::Forget { hash });
                gone.chain(ledger.outdated_copies(day_of(now))).collect()
            };
            for change in batch.ledger().map(forget).unwrap_or_default() {
                batch.add(change, None);
            }
        }
        batch.flush().await.map_err(|error| ledger_error(&error))?;
        Ok(end)
    }

    /// Logs in, counts, and changes nothing: `rpop check --connect`.
    ///
    /// # Errors
    /// What a poll would fail with.
    pub async fn check(&self, item: &WorkItem, settings: &Settings) -> Result<Checked, PollError> {
        let hard = Instant::now() + settings.timeouts.session;
        let looked = async {
            let ledger = self.ledgers.load(&item.key).await.map_err(|error| ledger_error(&error))?;
            Lanes::new(item, settings.timeouts)?.recipient(item)?;
            let mut plan = Plan::default();
            let mut session = session::open(self, item, settings, &mut plan).await?;
            let policy = SurveyPolicy {
                now: jiff::Timestamp::now().as_second(),
                leave: item.leave,
                keep_for_days: item.keep_for_days,
                delete_seen: item.delete_seen,
                on_uid_change: item.on_uid_change,
            };
            let unseen = match session.survey(item, ledger.survey(policy)).await? {
                Maildrop::Listed(findings) => Some(findings.unseen_total),
                Maildrop::Counted(_) => None,
            };
            let checked = session.checked(unseen);
            session.client.send(Command::Quit);
            // The answer does not matter: nothing was marked as deleted.
            drop(session.client.event().await);
            Ok(checked)
        };
        timeout_at(hard, looked).await.unwrap_or_else(|_| {
            Err(PollError {
                code: Code::TimedOut,
                message: format!("the check did not end within {:?}", settings.timeouts.session),
                scope: Scope::Account,
            })
        })
    }
}

fn uids_changed(findings: &Findings) -> PollError {
    PollError {
        code: Code::UidsChanged,
        message: format!(
            "nearly all UIDs changed at once ({} kept or owed messages are remembered, {} of {} listed are unknown): has the \
             server been migrated? Nothing was fetched. Set spec.onUidChange to MatchMessageId to recognise messages \
             by their Message-ID, or to Fetch to take all of them as new",
            findings.remembered, findings.unseen_total, findings.listed
        ),
        scope: Scope::Account,
    }
}
