//! What only unified accounts have, in files.

use super::*;

#[tokio::test]
async fn what_is_owed_and_what_was_copied_read_well() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    let owed = |next_try, reached| State::Owed {
        attempts: 2,
        next_try,
        reason: "452 4.2.2 mailbox full".into(),
        to: [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210].into(),
        reached,
    };
    let copy = Change::Copy { message_id: 3, digest: 0xabc, day: 20_000 };
    here.commit(&mut ledger, vec![put("abc", owed(1_700_000_000, true)), copy]).await;
    here.commit(&mut ledger, vec![put("d e", owed(0, false))]).await;
    let text = here.text();
    let (head, lines) = text.split_at(text.find("\nowed").unwrap() + 1);
    assert_eq!(
        lines.lines().collect::<Vec<_>>(),
        [
            "owed abc day=2024-10-04 size=10 id=0000000000000003 digest=0000000000000004 tries=2 \
             next=2023-11-14T22:13:20Z to=#0123456789abcdef,#fedcba9876543210 reached \
             reason=452 4.2.2 mailbox full",
            "copy id=0000000000000003 digest=0000000000000abc day=2024-10-04",
            "owed d%20e day=2024-10-04 size=10 id=0000000000000003 digest=0000000000000004 tries=2 \
             next=1970-01-01T00:00:00Z to=#0123456789abcdef,#fedcba9876543210 \
             reason=452 4.2.2 mailbox full",
        ]
    );
    assert_eq!(
        head.lines().skip(1).collect::<Vec<_>>(),
        [
            "# What rpop took from this mailbox, one message a line: STATE UID and what is known of it.",
            "#   kept         delivered, and left on the server on purpose",
            "#   deleting     delivered; to be deleted on the server, or deleted in the last session",
            "#   uncertain    the destination's answer was lost: tried once more",
            "#   quarantined  refused or unreadable: tried again at next=",
            "#   owed         done with for some of its recipients: tried again at next= for those of to= alone",
            "#                (hashes of their addresses); 'reached' says that somebody has got it",
            "# Of several lines for one UID the last one counts. To have a message fetched again, delete its",
            "# lines; to keep one from being fetched, add a line 'kept UID'. Edit while rpop does not run.",
            "# A line 'copy' is of a message that was delivered, whatever its UID: for 30 days another one of its",
            "# Message-ID and content counts as a copy of it, but not the message itself ('of', a hash of its UID).",
            "# Each line ends with a line feed.",
            "# --- Leave this line in its place: without it and without a message the file counts as cut off. ---",
        ]
    );
    assert_eq!(all(&here.restart().load().await), all(&ledger));
}

#[tokio::test]
async fn a_person_may_settle_what_is_owed_and_take_copies_out() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    let to: Box<[u64]> = [1, 2].into();
    let owed = State::Owed { attempts: 2, next_try: 0, reason: "452 full".into(), to, reached: true };
    let copies = [1, 2].map(|digest| Change::Copy { message_id: 7, digest, day: today() });
    here.commit(&mut ledger, vec![put("a", owed.clone()), put("b", owed.clone()), put("c", owed)]).await;
    here.commit(&mut ledger, copies.to_vec()).await;
    here.edit(|text| {
        let lines = text.lines().filter(|line| !line.contains("copy id=0000000000000007 digest=0000000000000001"));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        text.replace("owed a ", "kept a day=2024-10-04\n# owed a ").replace("owed b", "owed b reached").replace(
            "owed c day=2024-10-04 size=10 id=0000000000000003 digest=0000000000000004 tries=2 next=1970-01-01T00:00:00Z \
             to=#0000000000000001,#0000000000000002 reached",
            "owed c to=#0000000000000002",
        )
    });
    let ledger = here.load().await;
    let state = |uid: &[u8]| ledger.entries(ledger.hash(uid)).next().unwrap().state;
    assert_eq!(state(b"a"), State::Kept);
    assert!(matches!(state(b"b"), State::Owed { to, reached: true, .. } if *to == [1, 2]));
    assert!(matches!(state(b"c"), State::Owed { to, reached: false, attempts: 1, .. } if *to == [2]));
    assert_eq!(ledger.copies(today()).collect::<Vec<_>>(), [(7, 2)]);
}

/// The head as it was before there were messages that are owed, and copies.
#[tokio::test]
async fn files_with_the_head_of_earlier_builds_take_new_lines() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    here.commit(&mut ledger, puts(0..1)).await;
    let old = "rpop-ledger 1 salt=00112233445566778899aabbccddeeff\n\
        # What rpop took from this mailbox, one message a line: STATE UID and what is known of it.\n\
        #   kept         delivered, and left on the server on purpose\n\
        #   deleting     delivered; to be deleted on the server, or deleted in the last session\n\
        #   uncertain    the destination's answer was lost: tried once more\n\
        #   quarantined  refused or unreadable: tried again at next=\n\
        # Of several lines for one UID the last one counts. To have a message fetched again, delete its\n\
        # lines; to keep one from being fetched, add a line 'kept UID'. Edit while rpop does not run.\n\
        # Each line ends with a line feed.\n\
        # --- Leave this line in its place: without it and without a message the file counts as cut off. ---\n";
    fs::write(here.path(), old).unwrap();
    let mut ledger = here.load().await;
    assert!(ledger.is_empty());
    let to: Box<[u64]> = [1].into();
    let owed = State::Owed { attempts: 1, next_try: 0, reason: "452".into(), to, reached: true };
    here.commit(&mut ledger, vec![put("a", owed), Change::Copy { message_id: 7, digest: 8, day: 20_000 }])
        .await;
    assert_eq!(all(&here.load().await), all(&ledger));
    assert!(here.text().starts_with(old), "comments stay as they are");
    // A file of which copies alone are left is no damaged one.
    let forget = Change::Forget { hash: ledger.hash(b"a") };
    here.commit(&mut ledger, vec![forget]).await;
    here.edit(|text| text.lines().filter(|line| !line.starts_with('#')).flat_map(|l| [l, "\n"]).collect());
    assert_eq!((here.load().await.len(), here.load().await.copies_len()), (1, 1));
}

#[tokio::test]
async fn what_is_owed_and_copies_are_written_anew_like_the_rest() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    let many: Box<[u64]> = (1..=1000).collect();
    let owed = |attempts| State::Owed {
        attempts,
        next_try: 0,
        reason: "452".into(),
        to: many.clone(),
        reached: false,
    };
    here.commit(&mut ledger, puts(0..3)).await;
    let mut longest = 0;
    for round in 1..100 {
        let copy = Change::Copy { message_id: round % 3 + 1, digest: round, day: 20_000 };
        here.commit(&mut ledger, vec![put("many", owed(u16::try_from(round).unwrap())), copy]).await;
        longest = longest.max(here.text().lines().count());
    }
    assert_eq!((ledger.len(), ledger.copies_len()), (3 + 1 + 24, 24));
    assert!(longest < 150, "{longest} lines for 28 entries");
    let here = here.restart();
    assert_eq!(all(&here.load().await), all(&ledger));
}

#[tokio::test]
async fn a_message_that_is_owed_to_nobody_or_to_too_many_is_refused() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    let owed = |count: u64| State::Owed {
        attempts: 1,
        next_try: 0,
        reason: "452".into(),
        to: (0..count).collect(),
        reached: true,
    };
    here.commit(&mut ledger, vec![put("a", owed(1000))]).await;
    for count in [0, 1001] {
        let error = here.ledgers.commit(&key("a"), &mut ledger, vec![put("b", owed(count))]).await;
        assert!(matches!(&error, Err(LedgerError::Full(text)) if text.contains(&format!("not to {count}"))));
    }
    assert_eq!(all(&here.load().await), all(&ledger), "what could not be read is never written");
}

#[tokio::test]
async fn a_full_ledger_says_so_before_anything_is_fetched() {
    let here = Fixture::new();
    let mut ledger = here.load().await;
    for number in 0..3970_u32 {
        let to = (0..1000).map(|one| u64::from(number) << 32 | one).collect();
        let state = State::Owed { attempts: 1, next_try: 0, reason: "452".into(), to, reached: true };
        ledger.apply(&put(&format!("uid-{number}"), state));
    }
    for digest in 1..=3000 {
        ledger.apply(&Change::Copy { message_id: digest, digest, day: 20_000 });
    }
    assert_eq!(ledger.weight(), 3970 * 251 + 3000);
    here.ledgers.reserve(&key("a"), &mut ledger, 100 * 200).await.unwrap();
    let error = here.ledgers.reserve(&key("a"), &mut ledger, 1000 * 200).await.unwrap_err();
    let LedgerError::Full(text) = &error else { panic!("{error:?}") };
    let wanted = "holds 3970 messages, 3970000 recipients owed, 3000 digests of the last 30 days, and the limit is 1000000";
    assert!(text.contains(wanted), "{text}");
    let more =
        (5000..5600).map(|number| Change::Copy { message_id: number, digest: 1, day: 20_000 }).collect();
    let error = here.ledgers.commit(&key("a"), &mut ledger, more).await.unwrap_err();
    assert!(matches!(error, LedgerError::Full(_)), "{error:?}");
    // What is settled can be written, and makes room.
    for digest in 3001..=5000 {
        ledger.apply(&Change::Copy { message_id: digest, digest, day: 20_000 });
    }
    let settled = vec![put("uid-0", State::Kept)];
    here.commit(&mut ledger, settled).await;
    assert_eq!(ledger.weight(), 3969 * 251 + 1 + 5000);
}
