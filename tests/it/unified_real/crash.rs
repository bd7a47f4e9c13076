//! kill -9 of the whole process at random moments, while some recipients are
//! put off: nothing is lost, and no more is repeated than was accepted since
//! the ledger's last commit, which is `checkpoint` messages at the most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ::rpop::domain::envelope::Mailbox;
use ::rpop::domain::ledger::Ledger;
use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::support::policy::{Policy, Question};
use crate::support::raw::Raw;
use crate::support::{dovecot, wait_until};

/// `checkpoint.messages`.
const CHECKPOINT: usize = 3;

const KILLS: usize = 14;

/// New mail before each process.
const EACH: usize = 6;

/// For whom messages are, in turn. `zoe` and `yves` are nobody.
const SETS: [&[&str]; 7] = [
    &["alice@local.test", "bob@local.test", "cy@second.test"],
    &["bob@local.test", "dan@second.test"],
    &["cy@second.test"],
    &["carol@local.test", "zoe@local.test", "dan@second.test"],
    &["alice@local.test"],
    &["zoe@local.test", "yves@local.test"],
    &["alice@local.test", "bob@local.test", "carol@local.test", "cy@second.test", "dan@second.test"],
];

/// A message and one who has it; `author` has a report about it.
type Delivery = (usize, String);

fn local(address: &str) -> &str {
    address.split('@').next().unwrap()
}

fn is_known(address: &str) -> bool {
    USERS.contains(&local(address))
}

/// Numbers that are the same for the same seed.
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: usize) -> usize {
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }
}

/// Kills a process at the n-th question of a kind, before it is answered: what
/// the Postfix has by then it may still accept.
#[derive(Default)]
struct Trap {
    state: Mutex<&'static str>,
    left: AtomicUsize,
    pid: AtomicI32,
}

impl Trap {
    fn set(&self, state: &'static str, nth: usize) {
        *self.state.lock().unwrap() = state;
        self.left.store(nth, Ordering::SeqCst);
    }

    fn see(&self, question: &Question) {
        if *self.state.lock().unwrap() == question.state && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            let pid = Pid::from_raw(self.pid.load(Ordering::SeqCst)).expect("a process runs");
            // It may have ended a moment ago.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

struct Crash {
    place: Place,
    special: &'static str,
    dice: Dice,
    trap: Arc<Trap>,
    _policy: Policy,
    /// The UIDs of all messages that ever were, with their numbers.
    uids: BTreeMap<String, usize>,
    sent: usize,
    /// What was delivered and committed: whoever has it never gets it again.
    frozen: BTreeMap<Delivery, usize>,
    /// What was delivered when it was last looked at.
    census: BTreeMap<Delivery, usize>,
}

impl Crash {
    fn start(test: &str, special: &'static str, seed: u64) -> Option<Self> {
        let trap = Arc::new(Trap::default());
        let sprung = Arc::clone(&trap);
        let (known, luck) = (Mutex::new(BTreeSet::new()), Dice(AtomicU64::new(seed ^ 0xdead)));
        let policy = Policy::start(move |question| {
            sprung.see(question);
            // Greylisting: one in three, once for each message and recipient.
            let pair = (question.sender.clone(), question.recipient.clone());
            let first = question.state == "RCPT" && known.lock().unwrap().insert(pair);
            (first && luck.roll(3) == 0).then(|| "450 4.2.1 greylisted".to_owned())
        });
        let ask = policy.restriction();
        let settings = format!(
            "smtpd_recipient_restrictions = reject_unlisted_recipient, {ask}, permit_mynetworks, reject\n\
             smtpd_data_restrictions = {ask}\nsmtpd_end_of_data_restrictions = {ask}\n\
             virtual_mailbox_domains = local.test\n\
             virtual_mailbox_maps = inline:{{ {{ alice@local.test = x }}, {{ bob@local.test = x }}, \
             {{ carol@local.test = x }}, {{ postmaster@local.test = x }}, {{ author@local.test = x }} }}\n\
             virtual_alias_domains = sender.test\n\
             virtual_alias_maps = inline:{{ {{ @sender.test = author@local.test }} }}\n"
        );
        let place = Place::open(test, &settings, Options::default())?;
        place.second();
        place.record(special, &[]);
        let checkpoint = format!("checkpoint: {{messages: {CHECKPOINT}, every: 5s}}");
        place.site.settings(&["mainDomain: local.test", &checkpoint]);
        place.home.inbox("cy").fill(0, std::iter::empty());
        let dice = Dice(AtomicU64::new(seed));
        let (uids, frozen, census) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Some(Self { place, special, dice, trap, _policy: policy, uids, sent: 0, frozen, census })
    }

    fn is_star(&self) -> bool {
        self.special != HEADER
    }

    /// Who must have message `at` in the end.
    fn wanted(&self, at: usize) -> Vec<&'static str> {
        let to = SETS[at % SETS.len()];
        let mut all: Vec<&str> = to.iter().filter(|to| is_known(to)).map(|to| local(to)).collect();
        if self.is_star() && all.is_empty() {
            all.push("postmaster");
        } else if !self.is_star() && all.len() < to.len() {
            all.push("author");
        }
        all
    }

    fn put(&mut self) {
        let new = (self.sent..self.sent + EACH).map(|at| {
            let to = SETS[at % SETS.len()].join(", ");
            let traces = format!("Return-Path: <s{at}@sender.test>\r\n{HEADER}: {to}\r\n");
            // Some are streamed.
            let octets = if at % 5 == 4 { 200_000 } else { 0 };
            sized(&format!("m{at}"), &traces, &format!("To: {to}\r\n"), octets)
        });
        self.place.put(&new.collect::<Vec<_>>());
        self.sent += EACH;
        // As a mail reader finds out the UIDs.
        let mut pop = Raw::connect(self.place.provider.pop3);
        pop.line();
        for login in [format!("USER {NAME}"), format!("PASS {}", dovecot::PASSWORD)] {
            assert!(pop.ask(&login).starts_with("+OK"));
        }
        assert!(pop.ask("UIDL").starts_with("+OK"));
        for line in pop.until_dot() {
            let (number, uid) = line.split_once(' ').unwrap();
            assert!(pop.ask(&format!("TOP {number} 0")).starts_with("+OK"));
            let head = pop.until_dot();
            let mark = head.iter().find_map(|line| line.strip_prefix(&format!("{MARK}: m"))).unwrap();
            self.uids.insert(uid.to_owned(), mark.parse().unwrap());
        }
        assert!(pop.ask("QUIT").starts_with("+OK"));
    }

    /// How often everybody has each message.
    fn census(&self) -> BTreeMap<Delivery, usize> {
        let mut census = BTreeMap::new();
        for account in USERS {
            for mail in self.place.home.inbox(account).read() {
                let mark = if account == "author" { returned_mark(&mail.text()) } else { mail.mark() };
                let at = mark.strip_prefix('m').unwrap().parse().unwrap();
                *census.entry((at, account.to_owned())).or_default() += 1;
            }
        }
        census
    }

    /// Runs a process, and kills it at some moment of its poll. Whether that
    /// was before its end.
    fn kill(&self, kind: usize) -> bool {
        let state = ["RCPT", "END-OF-MESSAGE", "DATA", "", ""][kind % 5];
        self.trap.set(state, 1 + self.dice.roll(5));
        let logouts = || self.place.provider.logged("Disconnected: Logged out");
        let changes = || std::fs::metadata(self.place.site.ledger(NAME)).map_or(0, |file| file.len());
        let stored = || self.place.home.inbox("dan").count() + self.place.home.inbox("cy").count();
        let (before, ledger, mail) = (logouts(), changes(), stored());
        let more = self.dice.roll(4);
        let mut running = self.place.site.start(&[]);
        self.trap.pid.store(i32::try_from(running.pid()).unwrap(), Ordering::SeqCst);
        wait_until("a moment to kill at", || {
            let here = match kind % 5 {
                // A line is some 100 octets.
                3 => changes() > ledger + 100 * u64::try_from(more).unwrap(),
                4 => stored() > mail + more,
                _ => false,
            };
            here || !running.runs() || logouts() > before
        });
        let interrupted = logouts() == before;
        running.kill();
        // What the servers have is delivered, what they have half is not.
        self.place.provider.settle();
        self.place.queue.settle();
        self.place.home.settle();
        interrupted
    }

    /// To whom the ledger owes what, by the numbers of the messages; `None`:
    /// nothing more is known to be owed.
    fn owed(&self) -> BTreeMap<usize, Option<BTreeSet<&'static str>>> {
        let text = std::fs::read_to_string(self.place.site.ledger(NAME)).unwrap_or_default();
        let salt = text.split_once("salt=").map_or("0", |(_, rest)| rest.split_whitespace().next().unwrap());
        let keys = Ledger::new(u128::from_str_radix(salt, 16).unwrap().to_be_bytes());
        let lines = self.place.ledger();
        let left = marks(&self.place.provider.inbox(NAME).read());
        let owed = |(uid, &at): (&String, &usize)| {
            let all = SETS[at % SETS.len()];
            let line = lines.iter().find(|line| line.split(' ').nth(1) == Some(uid));
            let owes = match line.map(|line| (line.split(' ').next().unwrap(), line)) {
                Some(("deleting", _)) => None,
                Some(("owed", line)) => {
                    let to = line.split_once(" to=").unwrap().1.split(' ').next().unwrap();
                    let hash = |to: &str| format!("#{:016x}", keys.recipient(&Mailbox::parse(to).unwrap()));
                    let of = all.iter().copied().filter(|of| to.split(',').any(|one| one == hash(of)));
                    let of: BTreeSet<&str> = of.collect();
                    assert_eq!(of.len(), to.split(',').count(), "{line}");
                    Some(of)
                }
                _ => left.contains(&format!("m{at}")).then(|| all.iter().copied().collect()),
            };
            (at, owes)
        };
        self.uids.iter().map(owed).collect()
    }

    /// Holds what was delivered against what the ledger knows. The messages
    /// that the process which just died had accepted for somebody, and not
    /// committed.
    fn audit(&mut self) -> BTreeSet<usize> {
        let census = self.census();
        for (delivery, times) in &self.frozen {
            assert_eq!(census.get(delivery), Some(times), "{delivery:?} after it was committed");
        }
        let owed = self.owed();
        let mut uncommitted = BTreeSet::new();
        for (delivery, times) in &census {
            let (at, account) = delivery;
            let is_owed = owed[at].as_ref().is_some_and(|owed| match account.as_str() {
                // Of him a report is, of the unknown ones.
                "author" => owed.iter().any(|to| !is_known(to)),
                "postmaster" => true,
                account => owed.iter().any(|to| local(to) == account),
            });
            if !is_owed {
                self.frozen.insert(delivery.clone(), *times);
            } else if self.census.get(delivery) != Some(times) {
                uncommitted.insert(*at);
            }
        }
        self.census = census;
        uncommitted
    }

    /// Everything that waits for a later time is due now: a person may edit
    /// the ledger while nothing runs.
    fn hurry(&self) {
        let path = self.place.site.ledger(NAME);
        let text = std::fs::read_to_string(&path).unwrap();
        let due = |word: &str| {
            if word.starts_with("next=") { "next=2026-01-01T00:00:00Z".to_owned() } else { word.to_owned() }
        };
        let line = |line: &str| line.split(' ').map(due).collect::<Vec<_>>().join(" ") + "\n";
        std::fs::write(&path, text.lines().map(line).collect::<Vec<_>>().concat()).unwrap();
    }

    fn run(mut self, seed: u64) {
        let (mut interrupted, mut uncommitted, mut owed) = (0, 0, 0);
        self.place.home.break_inbox("cy", true);
        for kill in 0..KILLS {
            self.put();
            interrupted += usize::from(self.kill(kill));
            if kill == KILLS / 2 {
                self.place.home.break_inbox("cy", false);
            }
            let open = self.audit();
            assert!(open.len() <= CHECKPOINT, "seed {seed}, kill {kill}: {open:?} would be repeated");
            uncommitted += open.len();
            owed += self.place.owed().len();
        }
        // The test would show nothing if there had been nothing to show.
        assert!(
            interrupted >= KILLS / 3 && uncommitted > 0 && owed > 0,
            "{interrupted} {uncommitted} {owed}"
        );
        self.trap.set("", 0);
        let mut polls = 0;
        while self.place.left() > 0 {
            polls += 1;
            assert!(polls <= 12, "seed {seed}: {:?}", self.place.ledger());
            self.hurry();
            let run = self.place.site.once();
            assert!(matches!(run.code(), 0 | 1), "seed {seed}: {}", run.text());
            self.place.queue.settle();
            self.audit();
        }
        let census = self.census();
        let mut repeated = BTreeSet::new();
        for at in 0..self.sent {
            let wanted = self.wanted(at);
            for account in &wanted {
                let times = census.get(&(at, (*account).to_owned())).copied().unwrap_or(0);
                assert!(times > 0, "seed {seed}: m{at} is lost to {account}");
                if times > 1 {
                    repeated.insert(at);
                }
            }
            let has = census.keys().filter(|(of, _)| *of == at).count();
            assert_eq!(has, wanted.len(), "seed {seed}: m{at} went to others, too: {census:?}");
        }
        assert!(
            repeated.len() <= uncommitted,
            "seed {seed}: {repeated:?} were repeated, {uncommitted} may have been"
        );
        println!(
            "seed {seed}, {}: {} messages, {interrupted} of {KILLS} kills in a poll, {owed} times owed, \
             {uncommitted} accepted and not committed (of {} at most), {} repeated",
            self.special,
            self.sent,
            KILLS * CHECKPOINT,
            repeated.len()
        );
    }
}

/// RPOP_CHAOS=100 for a night of it.
fn seeds(from: u64) -> std::ops::Range<u64> {
    let count = std::env::var("RPOP_CHAOS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    from..from + count
}

#[test]
fn a_killed_run_by_header_loses_nothing_and_repeats_no_more_than_the_checkpoint() {
    for seed in seeds(1) {
        let test = "a_killed_run_by_header";
        let Some(crash) = Crash::start(test, HEADER, seed) else { return };
        crash.run(seed);
    }
}

#[test]
fn a_killed_run_by_addressees_loses_nothing_and_repeats_no_more_than_the_checkpoint() {
    for seed in seeds(10_000) {
        let test = "a_killed_run_by_addressees";
        let Some(crash) = Crash::start(test, "\"*\"", seed) else { return };
        crash.run(seed);
    }
}
