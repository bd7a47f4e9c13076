//! Ledgers that cannot be read, and ledgers that cannot grow.

use super::*;

#[tokio::test]
async fn what_is_no_ledger_stops_the_record_and_is_left_alone() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await;
    let mut ledger = worker.load().await.unwrap();
    // A ConfigMap of somebody else's under our name.
    let foreign = json!({"metadata": {"name": HEAD}, "data": {"config.ini": "x=1"}});
    let foreign: ConfigMap = serde_json::from_value(foreign).unwrap();
    here.maps().create(&PostParams::default(), &foreign).await.unwrap();
    is_damaged(worker.load().await, "is no ledger of RPOP");
    is_damaged(worker.reserve(&mut ledger).await, "is no ledger of RPOP");
    is_damaged(worker.commit(&mut ledger, puts(0..1)).await, "is no ledger of RPOP");
    assert_eq!(here.head().await.data, foreign.data);
    here.maps().delete(HEAD, &DeleteParams::default()).await.unwrap();

    let mut ledger = worker.load().await.unwrap();
    worker.commit(&mut ledger, puts(0..3)).await.unwrap();
    let good = here.head().await.binary_data.unwrap()["head"].0.clone();
    let mut changed = good.clone();
    changed[40] ^= 1;
    for (octets, says) in [
        (changed, "its checksum does not agree"),
        (good[..good.len() - 7].to_vec(), "its checksum does not agree"),
        (Vec::new(), "does not begin as a ledger"),
        (b"something else entirely, and long enough".to_vec(), "does not begin as a ledger"),
    ] {
        here.patch_head(json!({"binaryData": {"head": ByteString(octets.clone())}})).await;
        is_damaged(worker.load().await, says);
        is_damaged(worker.load().await, "delete ConfigMap rpop-uids-first-isp to fetch everything anew");
        assert!(worker.commit(&mut ledger, puts(3..4)).await.is_err());
        assert_eq!(here.head().await.binary_data.unwrap()["head"].0, octets, "it is left as it is");
    }
    here.patch_head(json!({"binaryData": {"head": ByteString(good.clone())}})).await;
    assert_eq!(worker.load().await.unwrap().len(), 3, "what was put back is good again");
    here.patch_head(json!({"metadata": {"labels": {LEDGER: null}}})).await;
    is_damaged(worker.load().await, "put the label back");
}

#[tokio::test]
async fn chunks_that_are_missing_or_changed_are_damage() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await.folding();
    let mut ledger = worker.load().await.unwrap();
    worker.commit(&mut ledger, puts(0..100)).await.unwrap();
    let named = chunks_named(&here.head().await);
    assert!(named.len() > 3, "{named:?}");
    let chunk = here.maps().get(&named[1]).await.unwrap();
    assert_eq!(chunk.immutable, Some(true));
    assert_eq!(chunk.owner_references()[0].uid, here.head().await.uid().unwrap());

    here.maps().delete(&named[1], &DeleteParams::default()).await.unwrap();
    let other = here.worker(7, 1).await.folding();
    is_damaged(other.load().await, &format!("{}: it is missing", named[1]));
    // Nobody can change it, but one can make another one in its place.
    let mut changed = chunk.clone();
    changed.metadata.resource_version = None;
    changed.metadata.uid = None;
    let mut octets = changed.binary_data.as_ref().unwrap()["chunk"].0.clone();
    *octets.last_mut().unwrap() ^= 1;
    changed.binary_data.as_mut().unwrap().get_mut("chunk").unwrap().0 = octets;
    here.maps().create(&PostParams::default(), &changed).await.unwrap();
    is_damaged(other.load().await, &named[1]);
    assert_eq!(chunks_named(&here.head().await), named, "nothing is written over it");
    here.maps().delete(&named[1], &DeleteParams::default()).await.unwrap();
    let mut good = chunk;
    (good.metadata.resource_version, good.metadata.uid) = (None, None);
    here.maps().create(&PostParams::default(), &good).await.unwrap();
    assert_eq!(all(&other.load().await.unwrap()), all(&ledger), "what was put back is good again");
}

#[tokio::test]
async fn a_quota_of_the_namespace_is_full() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await.impatient();
    let quotas: Api<ResourceQuota> = Api::namespaced(here.admin.clone(), &here.namespace);
    let hard = json!({"count/configmaps": "0"});
    let quota = json!({"metadata": {"name": "small"}, "spec": {"hard": hard}});
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    let status = Patch::Merge(json!({"status": {"hard": hard, "used": hard}}));
    quotas.patch_status("small", &PatchParams::default(), &status).await.unwrap();
    let mut ledger = worker.load().await.unwrap();
    // Admission learns of the quota by a watch.
    let error = eventually("the quota to be known", async || {
        let error = worker.reserve(&mut ledger.clone()).await.err();
        if error.is_none() {
            drop(here.maps().delete(HEAD, &DeleteParams::default()).await);
            worker.load().await.unwrap();
        }
        error
    })
    .await;
    assert!(matches!(&error, LedgerError::Full(text) if text.contains("quota")), "{error:?}");
    assert!(worker.commit(&mut ledger, puts(0..1)).await.is_err());
}

#[tokio::test]
async fn a_full_ledger_says_so_and_forgets_nothing() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await.with(|ledgers| ledgers.with_bounds(3000, 2000, 20_000));
    let mut ledger = worker.load().await.unwrap();
    worker.reserve(&mut ledger).await.unwrap();
    worker.commit(&mut ledger, puts(0..600)).await.unwrap();
    let mut next = 600;
    let error = loop {
        match worker.commit(&mut ledger, puts(next..next + 30)).await {
            Ok(()) => next += 30,
            Err(error) => break error,
        }
        assert!(next < 2000);
    };
    assert!(matches!(&error, LedgerError::Full(text) if text.contains("keepForDays")), "{error:?}");
    let error = worker.reserve(&mut ledger).await.unwrap_err();
    assert!(matches!(error, LedgerError::Full(_)), "known before anything is fetched: {error:?}");
    let mut read = worker.load().await.unwrap();
    assert_eq!(all(&read), all(&ledger));
    // Messages that are deleted on the server make room.
    let gone: Vec<Change> = read.iter().take(400).map(|(hash, _)| Change::Forget { hash }).collect();
    worker.commit(&mut read, gone).await.unwrap();
    worker.reserve(&mut read).await.unwrap();
    worker.commit(&mut read, puts(next..next + 100)).await.unwrap();
    assert_eq!(all(&worker.load().await.unwrap()), all(&read));
}
