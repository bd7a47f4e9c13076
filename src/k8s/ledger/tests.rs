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
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    let hash = || prop_oneof![Just(0), any::<u64>()];
    (state(), any::<i32>(), prop_oneof![Just(0), any::<u64>()], hash(), hash())
        .prop_map(|(state, day, size, message_id, digest)| Entry { state, day, size, message_id, digest })
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
    prop_oneof![
        6 => (uid(), small).prop_map(|(uid, entry)| Change::Put { uid, entry }),
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
        let groups = changed(ledger, changes);
        let live = (ledger.len() + groups.len()) as u64;
        self.head.fresh.extend(groups);
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
    let missed = changed(&ledger, &[Change::Missed { hash: known, since: 20_701, listings: 1 }]);
    assert_eq!(Group::parse(&missed[&known]).unwrap().listings, 1);
}

#[test]
fn a_newer_format_says_so() {
    let mut octets = Head::new(SALT).encode().0;
    octets.truncate(octets.len() - 16);
    octets[8] = 2;
    let (octets, _) = codec::resealed(octets);
    assert_eq!(Head::decode(&octets).unwrap_err(), Flaw::Newer(2));
    let error = place().flawed("rpop-uids-a", Flaw::Newer(2));
    assert!(
        matches!(&error, LedgerError::Damaged(text) if text.contains("newer RPOP (format 2") && text.contains("Install that version"))
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
    bounds.check_room(&place(), 600, 25 * 200).unwrap();
    let error = bounds.check_room(&place(), 600, 26 * 200).unwrap_err();
    assert!(matches!(&error, LedgerError::Full(text) if text.contains("the limit is 625")), "{error}");
    let mut paper = Paper::new(bounds);
    let mut ledger = Ledger::new(SALT);
    for number in 0..600 {
        paper.commit(&mut ledger, &[message(number)]);
    }
    let mut head = paper.head.clone();
    head.fresh = changed(&ledger, &(600..2000).map(message).collect::<Vec<_>>());
    let merge_all = merge(&head, 2000, &paper.bounds);
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
        let merge = merge(&head, 1, &Bounds::default());
        fold(&place(), &Bounds::default(), &head, true, &merge, &[] as &[Vec<u8>])
    };
    assert_eq!(fold_of(40_000).unwrap().chunks.len(), 1);
    assert!(matches!(fold_of(120_000), Err(LedgerError::Full(text)) if text.contains("one UID")));
}
