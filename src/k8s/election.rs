//! Who leads. Workers go on without a leader; what it writes is guarded by
//! compare-and-swap as well, so two for a moment cost work, not mail.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::{Cluster, REQUEST_DEADLINE, boot_now};
use super::error::{ApiError, within};
use super::lease::{CONTROLLER, labels, whole_seconds, within_all};
use crate::domain::shards::Incarnation;
use crate::domain::shards::timing::{Boot, Timing, jittered};
use crate::domain::text::{causes, shown};

/// The lease that the leader holds.
pub const LEADER_LEASE: &str = "rpop-controller";

/// How long a leader leads without renewing, and when others step in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans {
    /// A candidate that has seen no renewal for so long takes the lease.
    pub taken_after: Duration,
    /// A leader leads for so long from when it sent the last acknowledged
    /// renewal; shorter by more than clocks drift apart.
    pub leads_for: Duration,
    /// The leader renews, candidates look so often.
    pub renew_every: Duration,
}

impl From<Timing> for Spans {
    /// Half the time in which a worker counts as dead: 15, 10 and 2 seconds
    /// (what Kubernetes' own controllers take), or 4, 2.7 and 0.5.
    fn from(timing: Timing) -> Self {
        Self {
            taken_after: timing.dead_after / 2,
            leads_for: timing.dead_after / 3,
            renew_every: timing.dead_after / 15,
        }
    }
}

/// Who leads, as far as this candidate knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claim {
    /// The leader that was seen last; empty if there is none.
    pub holder: Arc<str>,
    /// This process leads until then.
    until: Option<Boot>,
    /// Counts the terms of this process: a leader that lost the lead and got
    /// it back has missed things.
    pub term: u64,
}

impl Claim {
    /// Whether this process leads at `now`.
    pub fn is_mine(&self, now: Boot) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// Stands for election until `stop` is done, then gives the lead away if it
/// has it: by then the caller should have stopped leading. The claim is told
/// anew at each renewal, and when it ends. If the task ends before `stop`
/// does, nobody stands any more: end the process.
pub fn elect(
    cluster: &Cluster,
    spans: Spans,
    stop: impl Future<Output = ()> + Send + 'static,
) -> (watch::Receiver<Claim>, JoinHandle<()>) {
    let (claims, receiver) = watch::channel(Claim::default());
    let candidate = Candidate {
        leases: Api::namespaced(cluster.client.clone(), &cluster.namespace),
        me: cluster.me.clone(),
        spans,
        claims,
        seen: None,
    };
    (receiver, tokio::spawn(candidate.stand(stop)))
}

struct Candidate {
    leases: Api<Lease>,
    me: Incarnation,
    spans: Spans,
    claims: watch::Sender<Claim>,
    /// The lease as it was seen last, and since when it is unchanged.
    seen: Option<(Lease, Boot)>,
}

impl Candidate {
    async fn stand(mut self, stop: impl Future<Output = ()> + Send) {
        let mut stop = std::pin::pin!(stop);
        let salt =
            self.me.as_str().bytes().fold(0, |sum: u64, octet| sum.wrapping_mul(31) + u64::from(octet));
        loop {
            let until = self.claims.borrow().until.unwrap_or(Boot::NEVER);
            let (now, began) = (boot_now(), Instant::now());
            tokio::select! {
                () = &mut stop => break,
                // A lead ends on time whatever a request does.
                () = tokio::time::sleep(until.since(now).min(REQUEST_DEADLINE * 2)), if until != Boot::NEVER => {
                    self.look_at_the_clock();
                }
                result = self.round() => if let Err(error) = result {
                    // What happened meanwhile cannot be known: the time in
                    // which nothing was seen does not count.
                    self.seen = None;
                    tracing::warn!(
                        reason = error.reason(),
                        "the lease {LEADER_LEASE} cannot be read or renewed: {}", causes(&error)
                    );
                }
            }
            self.look_at_the_clock();
            // From the last one's begin: where answers are slow, a lead that
            // counts from when a renewal was sent has no time to lose.
            let pause =
                jittered(self.spans.renew_every, 5, salt ^ boot_now().0).saturating_sub(began.elapsed());
            let until = self.claims.borrow().until.map_or(pause, |until| until.since(boot_now()));
            tokio::select! {
                () = &mut stop => break,
                () = tokio::time::sleep(pause.min(until)) => {}
            }
            self.look_at_the_clock();
        }
        self.release().await;
    }

    fn look_at_the_clock(&self) {
        self.claims.send_if_modified(|claim| {
            let ended = claim.until.is_some_and(|until| boot_now() >= until);
            if ended {
                claim.until = None;
                tracing::warn!("leads no more: no renewal was acknowledged in time");
            }
            ended
        });
    }

    /// One look or one renewal.
    async fn round(&mut self) -> Result<(), ApiError> {
        let limit = (self.spans.leads_for / 2).min(REQUEST_DEADLINE);
        if let Some((lease, _)) = &self.seen
            && holder(lease) == self.me.as_str()
        {
            let lease = lease.clone();
            return self.take(limit, Some(lease)).await;
        }
        let sent = boot_now();
        let found = within(limit, self.leases.get_opt(LEADER_LEASE)).await?;
        let Some(lease) = found else { return self.take(limit, None).await };
        let by = holder(&lease);
        let of_this_pod = Incarnation::parse(by).is_some_and(|by| by.pod() == self.me.pod());
        let unchanged_since = match &self.seen {
            Some((seen, since)) if seen.metadata.resource_version == lease.metadata.resource_version => {
                *since
            }
            _ => boot_now(),
        };
        // Released; or ours, though the answer got lost; or an earlier process
        // of this pod had it, and that has ended; or nobody renews it.
        if by.is_empty() || of_this_pod || sent.since(unchanged_since) >= self.spans.taken_after {
            return self.take(limit, Some(lease)).await;
        }
        self.lead_of(by, None);
        self.seen = Some((lease, unchanged_since));
        Ok(())
    }

    /// Takes or renews the lease by compare-and-swap with what it was.
    async fn take(&mut self, limit: Duration, before: Option<Lease>) -> Result<(), ApiError> {
        let lease = self.next(before.as_ref(), self.me.as_str());
        let sent = boot_now();
        let answer = if before.is_some() {
            within(limit, self.leases.replace(LEADER_LEASE, &PostParams::default(), &lease)).await
        } else {
            within(limit, self.leases.create(&PostParams::default(), &lease)).await
        };
        match answer {
            Ok(lease) => {
                self.seen = Some((lease, sent));
                self.lead_of(self.me.as_str(), Some(sent.after(self.spans.leads_for)));
                Ok(())
            }
            // Somebody was faster, or our own write of before was not in vain:
            // the next round sees.
            Err(ApiError::Conflict { .. } | ApiError::NotFound { .. }) => {
                self.seen = None;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn lead_of(&self, by: &str, until: Option<Boot>) {
        let now = boot_now();
        self.claims.send_if_modified(|claim| {
            let led = claim.is_mine(now);
            if until.is_some() && !led {
                claim.term += 1;
                tracing::info!("leads from now on");
            } else if until.is_none() && led {
                tracing::warn!("leads no more: {} does", shown(by));
            }
            let changed = claim.until != until || *claim.holder != *by;
            claim.until = until;
            if *claim.holder != *by {
                claim.holder = by.into();
            }
            changed
        });
    }

    async fn release(&mut self) {
        self.claims.send_modify(|claim| claim.until = None);
        let limit = self.spans.leads_for.min(REQUEST_DEADLINE);
        let given = match within_all(limit, self.give_away()).await {
            // A renewal may have been under way when it was time to stop.
            Err(ApiError::Conflict { .. }) => within_all(limit, self.give_away()).await,
            given => given,
        };
        if let Err(error) = given {
            tracing::warn!(
                reason = error.reason(),
                "the lead is not given away, the next leader waits for it to expire: {}",
                causes(&error)
            );
        }
    }

    async fn give_away(&mut self) -> Result<(), ApiError> {
        let known = self.seen.take().map(|(lease, _)| lease);
        let lease = match known {
            Some(lease) => lease,
            None => match self.leases.get_opt(LEADER_LEASE).await? {
                Some(lease) => lease,
                None => return Ok(()),
            },
        };
        if holder(&lease) == self.me.as_str() {
            let lease = self.next(Some(&lease), "");
            self.leases.replace(LEADER_LEASE, &PostParams::default(), &lease).await?;
            tracing::info!("the lead is given away");
        }
        Ok(())
    }

    fn next(&self, before: Option<&Lease>, holder_identity: &str) -> Lease {
        let now = Timestamp::now();
        let spec = before.and_then(|lease| lease.spec.as_ref());
        let same = before.is_some_and(|lease| holder(lease) == holder_identity);
        let transitions = spec.and_then(|spec| spec.lease_transitions).unwrap_or(0);
        let acquired = spec.filter(|_| same).and_then(|spec| spec.acquire_time.clone());
        Lease {
            metadata: ObjectMeta {
                name: Some(LEADER_LEASE.to_owned()),
                namespace: self.leases.namespace().map(str::to_owned),
                resource_version: before.and_then(|lease| lease.metadata.resource_version.clone()),
                // Without it a deleted lease would be made anew.
                uid: before.and_then(|lease| lease.metadata.uid.clone()),
                labels: Some(labels(CONTROLLER)),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder_identity.to_owned()),
                lease_duration_seconds: Some(whole_seconds(self.spans.taken_after)),
                acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
                renew_time: Some(MicroTime(now)),
                lease_transitions: Some(if same || before.is_none() {
                    transitions
                } else {
                    transitions.saturating_add(1)
                }),
                ..LeaseSpec::default()
            }),
        }
    }
}

fn holder(lease: &Lease) -> &str {
    lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_stops_before_another_starts_whatever_clocks_drift() {
        for timing in [Timing::DEFAULT, Timing::FAST] {
            let spans = Spans::from(timing);
            assert!(spans.leads_for.mul_f64(1.05) < spans.taken_after.mul_f64(0.95));
            assert!(spans.renew_every * 3 < spans.leads_for);
        }
    }

    #[test]
    fn a_claim_ends_by_the_clock() {
        let claim = Claim { holder: "a/1".into(), until: Some(Boot(10)), term: 1 };
        assert!(claim.is_mine(Boot(9)) && !claim.is_mine(Boot(10)));
        assert!(!Claim::default().is_mine(Boot(0)));
    }
}
