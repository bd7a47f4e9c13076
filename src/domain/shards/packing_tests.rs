use proptest::prelude::*;

use super::*;

fn item(record: u32, bytes: u32) -> Wanted {
    Wanted { record, digest: 1, bytes, destination: 7, destination_bytes: 500 }
}

fn items(count: u32) -> Vec<Wanted> {
    (0..count).map(|record| item(record, 400)).collect()
}

/// Writes slices as the API server would.
fn write(slices: &mut Vec<Slice>, wanted: &[Wanted], rewrites: &[Rewrite]) {
    for rewrite in rewrites {
        if slices.len() <= rewrite.slice {
            slices.resize(rewrite.slice + 1, Slice::default());
        }
        let digest = |record: u32| wanted.iter().find(|item| item.record == record).expect("wanted").digest;
        slices[rewrite.slice].items =
            rewrite.records.iter().map(|record| Held { record: *record, digest: digest(*record) }).collect();
    }
}

/// Writes until there is nothing to do; how many writes it took.
fn settle(slices: &mut Vec<Slice>, wanted: &[Wanted]) -> usize {
    let mut writes = 0;
    for _ in 0..50 {
        let before = union(slices);
        let rewrites = pack(slices, wanted);
        if rewrites.is_empty() {
            return writes;
        }
        writes += rewrites.len();
        write(slices, wanted, &rewrites);
        let after = union(slices);
        assert!(
            wanted.iter().all(|item| !before.contains(&item.record) || after.contains(&item.record)),
            "a wanted record was in no slice for a while"
        );
    }
    panic!("it never settles");
}

fn union(slices: &[Slice]) -> HashSet<u32> {
    slices.iter().flat_map(|slice| slice.items.iter().map(|item| item.record)).collect()
}

fn check(slices: &[Slice], wanted: &[Wanted]) {
    let mut all: Vec<(u32, u64)> =
        slices.iter().flat_map(|slice| slice.items.iter().map(|item| (item.record, item.digest))).collect();
    all.sort_unstable();
    let mut expected: Vec<(u32, u64)> = wanted.iter().map(|item| (item.record, item.digest)).collect();
    expected.sort_unstable();
    assert_eq!(all, expected);
    for slice in slices {
        let of = |record: u32| wanted.iter().find(|item| item.record == record).expect("wanted");
        let own: Vec<&Wanted> = slice.items.iter().map(|item| of(item.record)).collect();
        let destinations: HashSet<u64> = own.iter().map(|item| item.destination).collect();
        let bytes: u32 = own.iter().map(|item| item.bytes + 2).sum();
        let bytes = bytes as usize + EMPTY + 500 * destinations.len();
        assert!(slice.items.len() + slice.reserved.min(1) <= MOST_ITEMS);
        assert!(bytes <= MOST_BYTES || slice.items.len() == 1, "{bytes}");
    }
}

#[test]
fn an_empty_shard_needs_no_slice() {
    assert_eq!(pack(&[], &[]), []);
}

#[test]
fn records_fill_one_slice_after_the_other() {
    let (mut slices, wanted) = (Vec::new(), items(600));
    settle(&mut slices, &wanted);
    check(&slices, &wanted);
    assert_eq!(slices.len(), 3);
    assert_eq!(slices[0].items.len(), 256);
}

#[test]
fn an_edit_rewrites_one_slice() {
    let (mut slices, mut wanted) = (Vec::new(), items(600));
    settle(&mut slices, &wanted);
    wanted[300].digest = 2;
    wanted[300].bytes += 40;
    let rewrites = pack(&slices, &wanted);
    assert_eq!(rewrites.iter().map(|rewrite| rewrite.slice).collect::<Vec<_>>(), [1]);
    write(&mut slices, &wanted, &rewrites);
    check(&slices, &wanted);
}

#[test]
fn a_removal_and_a_new_record_leave_the_other_slices_alone() {
    let (mut slices, mut wanted) = (Vec::new(), items(600));
    settle(&mut slices, &wanted);
    wanted.remove(300);
    let rewrites = pack(&slices, &wanted);
    assert_eq!(rewrites.len(), 1);
    assert_eq!(rewrites[0].slice, 1);
    // In one go with an addition: still one.
    wanted.push(item(1000, 400));
    let rewrites = pack(&slices, &wanted);
    assert_eq!(rewrites.len(), 1);
    assert_eq!((rewrites[0].slice, rewrites[0].records.last()), (1, Some(&1000)));
    assert_eq!(settle(&mut slices, &wanted), 1);
}

#[test]
fn large_items_make_more_slices() {
    let wanted: Vec<Wanted> = (0..100).map(|record| item(record, 4000)).collect();
    let mut slices = Vec::new();
    settle(&mut slices, &wanted);
    check(&slices, &wanted);
    assert_eq!(slices.len(), 4);
}

#[test]
fn what_grows_out_of_its_slice_is_in_another_one_before_it_leaves() {
    let (mut slices, mut wanted) = (Vec::new(), items(250));
    settle(&mut slices, &wanted);
    for item in &mut wanted {
        item.bytes = 800;
        item.digest = 2;
    }
    let rewrites = pack(&slices, &wanted);
    assert_eq!(rewrites.iter().map(|rewrite| rewrite.slice).collect::<Vec<_>>(), [1], "first the taker");
    settle(&mut slices, &wanted);
    check(&slices, &wanted);
}

#[test]
fn one_giant_item_has_a_slice_of_its_own() {
    let (mut slices, mut wanted) = (Vec::new(), items(10));
    wanted[0].bytes = 1 << 20;
    settle(&mut slices, &wanted);
    check(&slices, &wanted);
}

#[test]
fn slices_become_fewer_when_records_do() {
    let (mut slices, mut wanted) = (Vec::new(), items(1024));
    settle(&mut slices, &wanted);
    assert_eq!(slices.len(), 4);
    wanted.retain(|item| item.record % 10 == 0);
    settle(&mut slices, &wanted);
    check(&slices, &wanted);
    let used = slices.iter().filter(|slice| !slice.items.is_empty()).count();
    assert_eq!(used, 1);
}

#[test]
fn places_of_records_on_their_way_out_are_not_filled() {
    let mut slices = vec![Slice { items: Vec::new(), reserved: 250 }];
    let wanted = items(10);
    settle(&mut slices, &wanted);
    assert_eq!(slices[0].items.len(), 6);
    assert_eq!(slices[1].items.len(), 4);
}

proptest! {
    #[test]
    fn any_history_settles_within_bounds(
        rounds in prop::collection::vec(
            prop::collection::vec((0_u32..500, 100_u32..3000, 0_u64..4, 0_u64..5), 0..300), 1..6)
    ) {
        let mut slices = Vec::new();
        for round in rounds {
            let mut wanted: Vec<Wanted> = Vec::new();
            for (record, bytes, digest, destination) in round {
                if !wanted.iter().any(|item| item.record == record) {
                    wanted.push(Wanted { record, bytes, digest, destination, destination_bytes: 500 });
                }
            }
            settle(&mut slices, &wanted);
            check(&slices, &wanted);
        }
    }
}
