//! What is written reads back, and nothing else does.

use std::collections::HashMap;

use proptest::prelude::*;

use super::codec::{Chunk, ChunkRef, Flaw, Head, Run, Seal, pack, unpack};
use super::fold::{Fold, fold, merge};
use super::*;
use crate::domain::ledger::{Entry, State};

const SALT: [u8; 16] = [7; 16];

fn place() -> Place {
    Place::of(&RecordKey { namespace: "mail".into(), name: "a".into() }).unwrap()
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        6 => Just(State::Kept),
        2 => Just(State::Deleting),
        1 => Just(State::Uncertain),
        1 => (any::<u16>(), any::<i64>(), "[ -~äö]{0,120}").prop_map(|(attempts, next_try, reason)| {
            State::Quarantined { attempts, next_try, reason: reason.into() }
        }),
        1 => (any::<u16>(), any::<i64>(), "[ -~äö]{0,120}", recipients(), any::<bool>()).prop_map(
            |(attempts, next_try, reason, to, reached)| State::Owed {
                attempts, next_try, reason: reason.into(), to, reached
            }
        ),
    ]
}

fn recipients() -> impl Strategy<Value = Box<[u64]>> {
    let few = prop::collection::btree_set(any::<u64>(), 1..6);
    let many = prop::collection::btree_set(any::<u64>(), 990..=1000);
    prop_oneof![9 => few, 1 => many].prop_map(|hashes| hashes.into_iter().collect())
}

fn entry() -> impl Strategy<Value = Entry> {
    let hash = || prop_oneof![Just(0), any::<u64>()];
    let message = (state(), any::<i32>(), prop_oneof![Just(0), any::<u64>()], hash(), hash())
        .prop_map(|(state, day, size, message_id, digest)| Entry { state, day, size, message_id, digest });
    let copy = (any::<i32>(), 1..=u64::MAX, 1..=u64::MAX).prop_map(|(day, message_id, digest)| Entry {
        state: State::Copy,
        day,
        size: 0,
        message_id,
        digest,
    });
    prop_oneof![5 => message, 1 => copy]
}

fn group() -> impl Strategy<Value = Group> {
    let missed = prop_oneof![Just((0, 0)), (any::<i32>(), 1..4_u8)];
    (prop::collection::vec(entry(), 0..4), missed).prop_map(|(entries, (since, listings))| {
        let (since, listings) = if entries.is_empty() { (0, 0) } else { (since, listings) };
        Group { entries, since, listings }
    })
}

fn groups() -> impl Strategy<Value = BTreeMap<u64, Box<[u8]>>> {
    prop::collection::btree_map(any::<u64>(), group().prop_map(|group| group.body()), 0..40)
}

fn head() -> impl Strategy<Value = Head> {
    let seal = || any::<[u8; 16]>().prop_map(Seal);
    let chunk = (seal(), 0..100_000_u32, any::<u32>()).prop_map(|(seal, octets, groups)| ChunkRef {
        seal,
        octets,
        groups,
    });
    let run = prop::collection::vec(chunk, 1..4).prop_map(Run);
    let fence = (any::<[u8; 16]>(), any::<u64>(), any::<u16>(), any::<i64>());
    (fence, prop::collection::vec(run, 0..4), prop::collection::vec(seal(), 0..4), groups()).prop_map(
        |((salt, nonce, shard, epoch), runs, litter, fresh)| Head {
            salt,
            nonce,
            shard,
            epoch,
            runs,
            litter,
            fresh,
        },
    )
}

/// Changes to few UIDs, so that they meet.
fn change() -> impl Strategy<Value = Change> {
    let uid = || (0..12_u8).prop_map(|number| vec![b'u', number].into_boxed_slice());
    let hash = || (0..12_u8).prop_map(|number| Ledger::new(SALT).hash(&[b'u', number]));
    let small = (state(), 20_700..20_800_i32, 0..4_u64, 0..3_u64, 0..4_u64)
        .prop_map(|(state, day, size, message_id, digest)| Entry { state, day, size, message_id, digest });
    let copy = || {
        (1..4_u64, 1..12_u64, 20_700..20_704_i32).prop_map(|(message_id, digest, day)| Change::Copy {
            message_id,
            digest,
            day,
        })
    };
    prop_oneof![
        6 => (uid(), small).prop_map(|(uid, entry)| Change::Put { uid, entry }),
        4 => copy(),
        1 => copy().prop_map(|copy| Change::Forget { hash: Ledger::new(SALT).hash_of(&copy) }),
        1 => hash().prop_map(|hash| Change::Forget { hash }),
        2 => (hash(), 20_700..20_800_i32, 0..5_u8)
            .prop_map(|(hash, since, listings)| Change::Missed { hash, since, listings }),
    ]
}

/// All that a ledger says, in an order of its own.
fn all(ledger: &Ledger) -> Vec<String> {
    let line = |(hash, entry): (u64, Entry)| format!("{hash:016x} {entry:?} {:?}", ledger.missed(hash));
    let mut all: Vec<String> = ledger.iter().map(line).collect();
    all.sort();
    all
}

/// A store without an API server: the head and the chunks.
struct Paper {
    head: Head,
    chunks: HashMap<Seal, Vec<u8>>,
    bounds: Bounds,
}

impl Paper {
    fn new(bounds: Bounds) -> Self {
        Self { head: Head::new(SALT), chunks: HashMap::new(), bounds }
    }

    fn commit(&mut self, ledger: &mut Ledger, changes: &[Change]) {
        let live = Live::after(ledger, changes);
        self.head.fresh.extend(changed(ledger, changes));
        if self.head.size() > self.bounds.head {
            let merge = merge(&self.head, live, &self.bounds);
            let olds: Vec<_> = merge.chunks.iter().map(|chunk| self.chunks[&chunk.seal].clone()).collect();
            let Fold { chunks, head } =
                fold(&place(), &self.bounds, &self.head, true, &merge, &olds).unwrap();
            self.chunks.extend(chunks.into_iter().map(|chunk| (chunk.name.seal, chunk.octets)));
            for seal in &head.litter {
                self.chunks.remove(seal).expect("what is replaced was there");
            }
            self.head = head;
        }
        for change in changes {
            ledger.apply(change);
        }
    }

    fn read(&self) -> Ledger {
        let (head, _) = Head::decode(&self.head.encode().0).unwrap();
        assert_eq!(head, self.head);
        let mut ledger = Ledger::new(head.salt);
        let mut put = |hash, group: Group| {
            ledger.apply(&Change::Forget { hash });
            group.put_into(&mut ledger, hash);
        };
        for name in head.chunks() {
            unpack(&self.chunks[&name.seal], name, SALT, |hash, _, group| put(hash, group)).unwrap();
        }
        for (hash, body) in &head.fresh {
            put(*hash, Group::parse(body).unwrap());
        }
        ledger
    }
}

proptest! {
    #[test]
    fn a_group_reads_back(group in group()) {
        let body = group.body();
        prop_assert_eq!(Group::is_forgotten(&body), group.entries.is_empty());
        prop_assert_eq!(Group::parse(&body), Ok(group));
    }

    #[test]
    fn a_head_reads_back(head in head()) {
        let (octets, seal) = head.encode();
        prop_assert_eq!(octets.len(), head.size());
        prop_assert_eq!(Head::decode(&octets), Ok((head, seal)));
    }

    #[test]
    fn any_change_of_an_octet_is_noticed(head in head(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let (mut octets, _) = head.encode();
        let at = at.index(octets.len());
        octets[at] ^= flip;
        prop_assert!(Head::decode(&octets).is_err());
        octets.truncate(at);
        prop_assert!(Head::decode(&octets).is_err());
    }

    #[test]
    fn what_passes_the_checksum_and_is_nonsense_does_not_panic(
        kind in prop_oneof![Just(b'H'), Just(b'C')], payload in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let octets = codec::sealed(kind, &payload);
        if let Ok((head, _)) = Head::decode(&octets.0) {
            prop_assert_eq!(Head::decode(&head.encode().0).unwrap().0, head);
        }
        let name = ChunkRef { seal: octets.1, octets: u32::try_from(octets.0.len()).unwrap(), groups: 1 };
        unpack(&octets.0, &name, SALT, |_, _, _| {}).ok();
        drop(Group::parse(&payload));
    }

    #[test]
    fn chunks_read_back_and_keep_within_their_size(groups in groups(), most in 300..3000_usize) {
        let wanted: Vec<(u64, &[u8])> = groups.iter().map(|(hash, body)| (*hash, &**body)).collect();
        let chunks = pack(SALT, 3, most, &wanted);
        let mut found: Vec<(u64, Vec<u8>)> = Vec::new();
        for Chunk { name, octets } in &chunks {
            prop_assert!(octets.len() <= most || name.groups == 1, "{} > {most}", octets.len());
            unpack(octets, name, SALT, |hash, body, _| found.push((hash, body.to_vec()))).unwrap();
            unpack(octets, name, [8; 16], |_, _, _| {}).unwrap_err();
            unpack(&octets[1..], name, SALT, |_, _, _| {}).unwrap_err();
        }
        let wanted: Vec<_> = groups.into_iter().map(|(hash, body)| (hash, body.into_vec())).collect();
        prop_assert_eq!(found, wanted);
    }

    /// Tiny heads and chunks: what is written in some hundred batches reads
    /// back as it would be if all of it were in memory.
    #[test]
    fn a_ledger_reads_back_whatever_was_folded_and_merged(
        batches in prop::collection::vec(prop::collection::vec(change(), 0..8), 0..60),
    ) {
        let mut paper = Paper::new(Bounds::new(2300, 300, 1 << 20));
        let mut ledger = Ledger::new(SALT);
        for batch in &batches {
            paper.commit(&mut ledger, batch);
            prop_assert_eq!(all(&paper.read()), all(&ledger));
        }
        let named: Vec<Seal> = paper.head.chunks().map(|chunk| chunk.seal).collect();
        prop_assert_eq!(paper.chunks.len(), named.len(), "no orphans");
    }
}

#[test]
fn what_changes_nothing_is_not_written() {
    let mut ledger = Ledger::new(SALT);
    let entry = Entry { state: State::Kept, day: 20_700, size: 5, message_id: 1, digest: 2 };
    let put = |uid: &str| Change::Put { uid: uid.as_bytes().into(), entry: entry.clone() };
    assert_eq!(changed(&ledger, &[put("a"), put("b")]).len(), 2);
    ledger.apply(&put("a"));
    let (known, unknown) = (ledger.hash(b"a"), ledger.hash(b"b"));
    assert!(changed(&ledger, &[put("a")]).is_empty());
    assert!(changed(&ledger, &[Change::Forget { hash: unknown }]).is_empty());
    assert!(changed(&ledger, &[Change::Missed { hash: known, since: 0, listings: 0 }]).is_empty());
    assert!(changed(&ledger, &[put("b"), Change::Forget { hash: unknown }]).is_empty());
    let copy = |digest, day| Change::Copy { message_id: 7, digest, day };
    assert_eq!(changed(&ledger, &[copy(1, 20_700), copy(2, 20_700)]).len(), 1, "one group");
    ledger.apply(&copy(1, 20_700));
    assert!(changed(&ledger, &[copy(1, 20_700), copy(0, 20_700)]).is_empty());
    assert_eq!(changed(&ledger, &[copy(1, 20_701)]).len(), 1);
    let missed = changed(&ledger, &[Change::Missed { hash: known, since: 20_701, listings: 1 }]);
    assert_eq!(Group::parse(&missed[&known]).unwrap().listings, 1);
}

#[test]
fn a_newer_format_says_so() {
    let mut octets = Head::new(SALT).encode().0;
    octets.truncate(octets.len() - 16);
    octets[8] = 3;
    let (octets, _) = codec::resealed(octets);
    assert_eq!(Head::decode(&octets).unwrap_err(), Flaw::Newer(3));
    let error = place().flawed("rpop-uids-a", Flaw::Newer(3));
    assert!(
        matches!(&error, LedgerError::Damaged(text) if text.contains("newer RPOP (format 3, this one reads 2)") && text.contains("Install that version"))
    );
    let other = pack(SALT, 1, 1000, &[(1, &[0])]).remove(0).octets;
    assert!(matches!(Head::decode(&other), Err(Flaw::Malformed(_))));
    assert_eq!(Head::decode(b""), Err(Flaw::Foreign));
    assert_eq!(Head::decode(b"RPOPUIDS"), Err(Flaw::Checksum));
}

/// A mailbox of 100 000 messages, taken in batches of 20.
#[test]
fn a_hundred_thousand_messages_are_few_chunks_and_written_seldom() {
    let mut paper = Paper::new(Bounds::default());
    let mut ledger = Ledger::new(SALT);
    let (mut written, mut folds) = (0, 0);
    for batch in 0..5000_u64 {
        let changes: Vec<Change> = (batch * 20..batch * 20 + 20).map(message).collect();
        let before: Vec<Seal> = paper.head.chunks().map(|chunk| chunk.seal).collect();
        paper.commit(&mut ledger, &changes);
        let new = paper.head.chunks().filter(|chunk| !before.contains(&chunk.seal));
        let octets: u64 = new.map(|chunk| u64::from(chunk.octets)).sum();
        written += octets;
        folds += u64::from(octets > 0);
        assert!(paper.head.size() <= 16 << 10);
        if [20, 500].contains(&batch) {
            let (octets, chunks) = (paper.head.octets(), paper.head.chunks().count());
            println!("{} messages: {octets} octets in {chunks} chunks", batch * 20);
        }
    }
    let (octets, chunks, runs) = (paper.head.octets(), paper.head.chunks().count(), paper.head.runs.len());
    println!(
        "100 000 messages: {octets} octets in {chunks} chunks, {runs} runs; {folds} folds wrote {written}"
    );
    assert!(octets < 3_200_000 && chunks < 30 && runs < 10 && folds < 300);
    assert!(written < 12 * octets, "each message is written some times, not often");
    assert_eq!(all(&paper.read()), all(&ledger));

    // And when all of it is gone at once, so is what was written of it.
    let hashes: Vec<u64> = ledger.iter().map(|(hash, _)| hash).collect();
    for gone in hashes.chunks(16_384) {
        let forget: Vec<Change> = gone.iter().map(|hash| Change::Forget { hash: *hash }).collect();
        paper.commit(&mut ledger, &forget);
    }
    assert!(paper.read().is_empty());
    assert!(paper.head.octets() < 400_000, "{}", paper.head.octets());
}

/// A message that is owed to `count` recipients.
fn owed(number: u64, count: u64, attempts: u16) -> Change {
    let Change::Put { uid, entry } = message(number) else { unreachable!() };
    let hash = entry.digest;
    let mut to: Vec<u64> = (1..=count).map(|one| hash.wrapping_mul(2 * one + 1)).collect();
    to.sort_unstable();
    let reason = "452 4.2.2 mailbox full".into();
    let state = State::Owed { attempts, next_try: 1_790_000_000, reason, to: to.into(), reached: true };
    Change::Put { uid, entry: Entry { state, ..entry } }
}

fn format(paper: &Paper) -> (u8, Vec<u8>) {
    let chunks = paper.head.chunks().map(|chunk| paper.chunks[&chunk.seal][8]);
    (paper.head.encode().0[8], chunks.collect())
}

/// Each takes half of the head.
#[test]
fn messages_that_are_owed_to_a_thousand_go_into_chunks_when_the_head_is_full() {
    let bounds = Bounds::default();
    let mut paper = Paper::new(bounds);
    let mut ledger = Ledger::new(SALT);
    let most = std::cell::Cell::new(0);
    let commit = |paper: &mut Paper, ledger: &mut Ledger, changes: &[Change]| {
        paper.commit(ledger, changes);
        most.set(most.get().max(paper.head.size()));
        assert!(paper.head.size() <= bounds.head, "{}", paper.head.size());
        assert_eq!(all(&paper.read()), all(ledger));
    };
    commit(&mut paper, &mut ledger, &(0..100).map(message).collect::<Vec<_>>());
    for number in 100..110 {
        commit(&mut paper, &mut ledger, &[owed(number, 1000, 1)]);
    }
    assert!(most.get() > 8000 + 3000, "one of them stands in the head, beside plain ones: {most:?}");
    // A whole batch of them, and again what is known already.
    commit(&mut paper, &mut ledger, &(110..130).map(|number| owed(number, 1000, 1)).collect::<Vec<_>>());
    for attempts in 2..12 {
        commit(
            &mut paper,
            &mut ledger,
            &(100..130).map(|number| owed(number, 1000, attempts)).collect::<Vec<_>>(),
        );
    }
    let octets = paper.head.octets();
    assert!(octets < 4 * 30 * 8000, "{octets} octets for 30 messages of 8 KB: what is out of date goes");
    for number in 101..130 {
        commit(&mut paper, &mut ledger, &[owed(number, 1, 12), message(number)]);
    }
    assert_eq!(ledger.weight(), 130 + 250, "one is still owed to all");
}

#[test]
fn what_was_owed_to_many_leaves_its_room_to_others_when_it_is_settled() {
    let bounds = Bounds::new(16 << 10, 256 << 10, 400_000);
    let mut paper = Paper::new(bounds);
    let mut ledger = Ledger::new(SALT);
    paper.commit(&mut ledger, &(0..45).map(|number| owed(number, 1000, 1)).collect::<Vec<_>>());
    assert!(paper.head.octets() > 350_000);
    paper.commit(&mut ledger, &(0..45).map(message).collect::<Vec<_>>());
    let mut next = 45;
    while bounds.check_room(&place(), &ledger, 500 * 200).is_ok() {
        paper.commit(&mut ledger, &(next..next + 500).map(message).collect::<Vec<_>>());
        next += 500;
    }
    assert!(next > 11_000, "{next}");
    assert_eq!(all(&paper.read()), all(&ledger));
}

#[test]
fn twins_that_are_owed_to_a_thousand_each_share_a_chunk() {
    let mut paper = Paper::new(Bounds::default());
    let mut ledger = Ledger::new(SALT);
    let twins = (1..=40).map(|number| {
        let Change::Put { entry, .. } = owed(number, 1000, 1) else { unreachable!() };
        Change::Put { uid: b"same".as_slice().into(), entry }
    });
    paper.commit(&mut ledger, &twins.collect::<Vec<_>>());
    assert_eq!((ledger.len(), paper.head.chunks().count()), (40, 1), "larger than a chunk ought to be");
    assert_eq!(all(&paper.read()), all(&ledger));
}

#[test]
fn what_older_builds_cannot_read_says_so_and_the_rest_is_as_it_was() {
    let mut paper = Paper::new(Bounds::new(4000, 600, 1 << 20));
    let mut ledger = Ledger::new(SALT);
    paper.commit(&mut ledger, &(0..200).map(message).collect::<Vec<_>>());
    let (head, chunks) = format(&paper);
    assert!(head == 1 && chunks.len() > 5 && chunks.iter().all(|format| *format == 1));
    for newer in [owed(200, 1, 1), Change::Copy { message_id: 5, digest: 6, day: 20_780 }] {
        let hash = ledger.hash_of(&newer);
        paper.commit(&mut ledger, &[newer]);
        assert_eq!(format(&paper).0, 2);
        // Out of the head, and of the way.
        let before = paper.head.chunks().count();
        while paper.head.chunks().count() == before || !paper.head.fresh.is_empty() {
            let number = ledger.len() as u64 + 1000;
            paper.commit(&mut ledger, &[message(number)]);
        }
        let (head, chunks) = format(&paper);
        let newer: Vec<u8> = chunks.into_iter().filter(|format| *format != 1).collect();
        assert_eq!((head, &newer[..]), (1, &[2][..]), "the one that holds it");
        // And when it is gone so is what was written of it.
        paper.commit(&mut ledger, &[Change::Forget { hash }]);
        let forget: Vec<_> = ledger.iter().map(|(hash, _)| Change::Forget { hash }).collect();
        paper.commit(&mut ledger, &forget);
        paper.commit(&mut ledger, &(0..200).map(message).collect::<Vec<_>>());
        assert!(format(&paper).1.iter().all(|format| *format == 1));
    }
}

/// Written by a program of its own, from the description in the design record.
#[test]
fn objects_are_as_the_design_record_says() {
    const PLAIN: &str = "\
        52504f5055494453014807070707070707070707070707070707000000000000000107060000030504708c05e8070123\
        456789abcdeffedcba987654321004068e0503ec030280c49fd50c06353530206e6fa302000b7286736a0fffcc27aced\
        0356bed7a6";
    const NEWER: &str = "\
        52504f5055494453024807070707070707070707070707070707000000000000000107060000050504708c05e8070123\
        456789abcdeffedcba987654321004068e0503ec030280c49fd50c06353530206e6f4404748c05e8070123456789abcd\
        effedcba98765432100280c49fd50c083435322066756c6c05000000000000000380000000000000000108658c050000\
        0000000000010000000000000002658e0500000000000000010000000000000003de0100dc72a0de13bf78f49f315cb1\
        9e81ada0";
    let group = |entries: &[Entry]| Group { entries: entries.to_vec(), since: 0, listings: 0 };
    let entry = |state| Entry {
        state,
        day: 20_780,
        size: 1000,
        message_id: 0x0123_4567_89ab_cdef,
        digest: 0xfedc_ba98_7654_3210,
    };
    let quarantined = State::Quarantined { attempts: 2, next_try: 1_700_000_000, reason: "550 no".into() };
    let quarantined = Entry { state: quarantined, day: 20_700, size: 0, message_id: 0, digest: 0 };
    let owed = State::Owed {
        attempts: 2,
        next_try: 1_700_000_000,
        reason: "452 full".into(),
        to: [3, 1 << 63].into(),
        reached: true,
    };
    let copy = |day, digest| Entry { state: State::Copy, day, size: 0, message_id: 1, digest };
    let mut head = Head { nonce: 1, shard: 7, epoch: 3, ..Head::new(SALT) };
    head.fresh.insert(5, group(&[entry(State::Kept)]).body());
    head.fresh.insert(9, Group { since: 20_781, listings: 2, ..group(&[quarantined]) }.body());
    head.fresh.insert(300, group(&[]).body());
    for (wanted, more) in [(PLAIN, false), (NEWER, true)] {
        if more {
            head.fresh.insert(77, group(&[entry(owed.clone())]).body());
            head.fresh.insert(78, group(&[copy(20_780, 2), copy(20_781, 3)]).body());
        }
        let (octets, seal) = head.encode();
        let hex: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(hex.concat(), wanted);
        assert_eq!(Head::decode(&octets), Ok((head.clone(), seal)));
    }
}

#[test]
fn recipients_out_of_order_and_copies_of_nothing_are_malformed() {
    let parse = |entry: Entry| {
        let body = Group { entries: vec![entry], since: 0, listings: 0 }.body();
        Group::parse(&body).map(|_| ())
    };
    let owed = |to: &[u64]| {
        let state =
            State::Owed { attempts: 1, next_try: 0, reason: "".into(), to: to.into(), reached: false };
        parse(Entry { state, day: 20_780, size: 0, message_id: 0, digest: 0 })
    };
    assert_eq!(owed(&[1, 2]), Ok(()));
    let many: Vec<u64> = (0..=1000).collect();
    for to in [&[][..], &[2, 1], &[1, 1], &many] {
        assert!(matches!(owed(to), Err(Flaw::Malformed(_))), "{to:?}");
    }
    let copy =
        |message_id, digest| parse(Entry { state: State::Copy, day: 20_780, size: 0, message_id, digest });
    assert_eq!(copy(1, 2), Ok(()));
    assert!(copy(0, 2).is_err() && copy(1, 0).is_err());
}

#[test]
fn what_is_owed_and_copies_count_towards_the_room() {
    let bounds = Bounds::new(2300, 1000, 20_000);
    let mut ledger = Ledger::new(SALT);
    (0..2).for_each(|number| ledger.apply(&owed(number, 1000, 1)));
    (1..=100).for_each(|digest| ledger.apply(&Change::Copy { message_id: digest, digest, day: 20_780 }));
    bounds.check_room(&place(), &ledger, 23 * 200).unwrap();
    let error = bounds.check_room(&place(), &ledger, 24 * 200).unwrap_err();
    let wanted = "holds 2 messages, 2000 recipients owed, 100 digests of the last 30 days, 24 more are there, \
                  and the limit is 625";
    assert!(matches!(&error, LedgerError::Full(text) if text.contains(wanted)), "{error}");
}

fn message(number: u64) -> Change {
    let mut digest = Ledger::new(SALT).digest();
    digest.update(&number.to_be_bytes());
    let hash = digest.finish();
    let entry = Entry {
        state: State::Kept,
        day: 20_780,
        size: 2_000 + number % 90_000,
        message_id: hash,
        digest: hash.rotate_left(17),
    };
    Change::Put { uid: format!("{number:016x}").into_bytes().into(), entry }
}

#[test]
fn a_full_ledger_takes_no_more_and_still_forgets() {
    let bounds = Bounds::new(2300, 1000, 20_000);
    let mut paper = Paper::new(bounds);
    let mut ledger = Ledger::new(SALT);
    for number in 0..600 {
        paper.commit(&mut ledger, &[message(number)]);
    }
    bounds.check_room(&place(), &ledger, 25 * 200).unwrap();
    let error = bounds.check_room(&place(), &ledger, 26 * 200).unwrap_err();
    assert!(matches!(&error, LedgerError::Full(text) if text.contains("the limit is 625")), "{error}");
    let mut head = paper.head.clone();
    head.fresh = changed(&ledger, &(600..2000).map(message).collect::<Vec<_>>());
    let merge_all = merge(&head, Live { entries: 2000, weight: 2000 }, &paper.bounds);
    let olds: Vec<_> = merge_all.chunks.iter().map(|chunk| paper.chunks[&chunk.seal].clone()).collect();
    let error = fold(&place(), &paper.bounds, &head, true, &merge_all, &olds).unwrap_err();
    assert!(matches!(&error, LedgerError::Full(text) if text.contains("keepForDays")), "{error}");
    let forget: Vec<_> = ledger.iter().map(|(hash, _)| Change::Forget { hash }).collect();
    paper.commit(&mut ledger, &forget);
    assert!(paper.read().is_empty());
}

#[test]
fn more_messages_of_one_uid_than_an_object_holds_are_refused() {
    let entry = |digest| Entry { state: State::Kept, day: 20_780, size: 9, message_id: 0, digest };
    let twins = |count| Group { entries: (1..count).map(entry).collect(), since: 0, listings: 0 };
    let fold_of = |count| {
        let mut head = Head::new(SALT);
        head.fresh.insert(1, twins(count).body());
        let merge = merge(&head, Live { entries: 1, weight: 1 }, &Bounds::default());
        fold(&place(), &Bounds::default(), &head, true, &merge, &[] as &[Vec<u8>])
    };
    assert_eq!(fold_of(40_000).unwrap().chunks.len(), 1);
    assert!(matches!(fold_of(120_000), Err(LedgerError::Full(text)) if text.contains("one UID")));
}
