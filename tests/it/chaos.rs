//! Everything goes wrong at once, at random, again and again. What must hold
//! all the same: a message is delivered or still on the server; none arrives
//! torn; none more often than there were moments that nobody can see through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::support::mail::message;
use crate::support::pop3::{self, Pop3};
use crate::support::rig::Rig;
use crate::support::smtp::{self, Smtp};
use crate::support::wait_until;

/// A small generator of numbers that are the same for the same seed, whatever
/// the threads do with each of them.
struct Dice(AtomicU64);

impl Dice {
    fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(seed)))
    }

    /// Below `sides`.
    fn roll(&self, sides: u64) -> u64 {
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut mixed = state ^ (state >> 30);
        mixed = mixed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^= mixed >> 27;
        mixed = mixed.wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

fn pop3_trouble(dice: &Dice, call: &pop3::Call<'_>) -> pop3::Act {
    use pop3::Act;
    if dice.roll(70) != 0 {
        return Act::Properly;
    }
    match (call.verb, dice.roll(7)) {
        (_, 0) => Act::Close,
        ("QUIT", 1 | 2) => Act::ProperlyUnsaid,
        ("QUIT", 3) => Act::line("-ERR some were not removed"),
        ("DELE", 1 | 2) => Act::line("-ERR not now"),
        ("DELE", 3) => Act::line("gibberish"),
        ("RETR", 1) => Act::line("-ERR it is gone"),
        ("RETR", 2) => Act::SayAndClose(b"+OK\r\nX-Rpop-Mark: torn\r\n\r\nhalf a li".to_vec()),
        ("RETR", 3) => Act::SayAndClose(b"+OK\r\nX-Rpop-Mark: torn\r\n\r\nhalf a li\r".to_vec()),
        ("RETR", 4) => Act::ProperlyThen(b"+OK\r\n".to_vec()),
        ("RETR", 5) => Act::ProperlyThen(b"+OK\r\nX-Rpop-Mark: forged\r\n\r\nx\r\n.\r\n".to_vec()),
        ("PASS" | "AUTH", 1) => Act::line("-ERR [IN-USE] locked"),
        ("UIDL" | "LIST" | "STAT" | "CAPA", 1 | 2) => Act::SayAndClose(b"+OK\r\n1 ".to_vec()),
        _ => Act::Properly,
    }
}

fn smtp_trouble(dice: &Dice, unclear: &AtomicUsize, call: &smtp::Call<'_>) -> smtp::Act {
    use smtp::Act;
    if dice.roll(60) != 0 {
        return Act::Properly;
    }
    match (call.verb, dice.roll(6)) {
        (".", 0 | 1) => {
            unclear.fetch_add(1, Ordering::SeqCst);
            Act::AcceptAndClose
        }
        (_, 0) => Act::Close,
        ("MAIL" | "RCPT" | "DATA" | ".", 2) => Act::Say("451 4.3.0 not now".into()),
        (_, 3) => Act::SayAndClose("421 4.3.2 not now".into()),
        (".", 4) => Act::Say("554 5.7.1 never".into()),
        (".", 5) => {
            unclear.fetch_add(1, Ordering::SeqCst);
            Act::ProperlyAndClose
        }
        _ => Act::Properly,
    }
}

fn survives(seed: u64, leave: bool, lmtp: bool) {
    const COUNT: usize = 60;
    const CHECKPOINT: usize = 20;
    let (dice, calm) = (Dice::new(seed), Arc::new(AtomicUsize::new(0)));
    let unclear = Arc::new(AtomicUsize::new(0));
    let (for_pop, calm_pop) = (Arc::clone(&dice), Arc::clone(&calm));
    let pop = Pop3::new().generated("c", COUNT, 900).script(move |call| {
        if calm_pop.load(Ordering::SeqCst) > 0 { pop3::Act::Properly } else { pop3_trouble(&for_pop, call) }
    });
    let (for_sink, calm_sink, counted) = (Arc::clone(&dice), Arc::clone(&calm), Arc::clone(&unclear));
    let sink = if lmtp { Smtp::lmtp() } else { Smtp::new() }.script(move |call| {
        if calm_sink.load(Ordering::SeqCst) > 0 {
            smtp::Act::Properly
        } else {
            smtp_trouble(&for_sink, &counted, call)
        }
    });
    let rig = Rig::with(pop, sink, |record| if leave { record.with("leave: true") } else { record });
    let (mut kills, mut sent) = (0, COUNT);
    for _ in 0..12 {
        rig.pop.cut_after((dice.roll(5) == 0).then(|| usize::try_from(dice.roll(90_000)).unwrap()));
        if dice.roll(4) == 0 {
            kills += 1;
            let (before, more) = (rig.sink.accepted(), usize::try_from(dice.roll(30)).unwrap());
            let mut running = rig.site.start_once();
            wait_until("a moment to kill at", || rig.sink.accepted() >= before + more || !running.runs());
            running.kill();
        } else {
            let run = rig.poll();
            assert!(matches!(run.code(), 0 | 1), "seed {seed}: {}", run.text());
        }
        wait_until("the sessions' end", || rig.pop.open() == 0 && rig.sink.open() == 0);
        let mark = format!("c-{sent:05}");
        rig.pop.put(&mark, &message(&mark, 900));
        sent += 1;
    }
    calm.store(1, Ordering::SeqCst);
    rig.pop.cut_after(None);
    rig.poll();
    rig.poll();
    let (marks, left) = (rig.sink.marks(), rig.pop.uids());
    for at in 0..sent {
        let mark = format!("c-{at:05}");
        assert!(marks.contains_key(&mark) || left.contains(&mark), "seed {seed}: {mark} is lost");
    }
    for accepted in rig.sink.mail() {
        let mark = accepted.message.mark();
        assert_eq!(accepted.message.original(), message(&mark, 900), "seed {seed}: {mark} is torn or forged");
    }
    let repeated: usize = marks.values().map(|count| count - 1).sum();
    let bound = unclear.load(Ordering::SeqCst) + kills * CHECKPOINT;
    assert!(repeated <= bound, "seed {seed}: {repeated} repeated, at most {bound} may be");
    if !leave {
        // What is neither set aside nor waiting for another try is gone there.
        let orphans: Vec<&String> = left.iter().filter(|uid| marks.contains_key(*uid)).collect();
        let set_aside = std::fs::read_to_string(rig.site.ledger(crate::support::rig::NAME)).unwrap();
        assert!(
            orphans.iter().all(|uid| set_aside.contains(uid.as_str())),
            "seed {seed}: delivered and still there: {orphans:?}\n{set_aside}"
        );
    }
    println!("seed {seed}: {repeated} of {sent} repeated ({bound} allowed), {} left", left.len());
}

fn seeds(from: u64) -> std::ops::Range<u64> {
    // RPOP_CHAOS=1000 for a night of it.
    let count = std::env::var("RPOP_CHAOS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    from..from + count
}

#[test]
fn chaos_with_deletion_over_lmtp() {
    seeds(1).for_each(|seed| survives(seed, false, true));
}

#[test]
fn chaos_with_mail_kept_over_lmtp() {
    seeds(10_000).for_each(|seed| survives(seed, true, true));
}

#[test]
fn chaos_with_deletion_over_smtp() {
    seeds(20_000).for_each(|seed| survives(seed, false, false));
}
