//! Which record a ledger belongs to, and when it goes.

use super::*;

#[tokio::test]
async fn a_record_made_anew_does_not_inherit_unless_the_ledger_was_kept() {
    let Some(here) = Here::new().await else { return };
    let first = here.worker(7, 1).await;
    let mut ledger = first.load().await.unwrap();
    first.commit(&mut ledger, puts(0..3)).await.unwrap();

    // Nobody collects garbage here: the old ledger is still there.
    here.make_record_anew(&[]).await;
    let second = here.worker(7, 1).await;
    let mut ledger = second.load().await.unwrap();
    assert!(ledger.is_empty(), "another record, another maildrop");
    assert!(here.objects().await.is_empty());
    // A worker that has not heard of it yet touches nothing.
    second.commit(&mut ledger, puts(0..5)).await.unwrap();
    is_conflict(first.load().await);
    assert_eq!(second.load().await.unwrap().len(), 5);
    assert_eq!(here.head().await.owner_references()[0].uid, second.owner_uid());

    // Kept by an annotation of the ConfigMap.
    here.patch_head(json!({"metadata": {"annotations": {KEEP_LEDGER: ""}}})).await;
    assert_eq!(second.load().await.unwrap().len(), 5);
    assert!(here.head().await.owner_references().is_empty(), "nothing deletes it any more");
    here.make_record_anew(&[]).await;
    let third = here.worker(7, 1).await;
    let mut ledger = third.load().await.unwrap();
    assert_eq!(ledger.len(), 5, "readopted");
    third.commit(&mut ledger, puts(5..6)).await.unwrap();
    assert!(here.head().await.owner_references().is_empty());
    // No longer.
    here.patch_head(json!({"metadata": {"annotations": {KEEP_LEDGER: null}}})).await;
    assert_eq!(third.load().await.unwrap().len(), 6);
    assert_eq!(here.head().await.owner_references()[0].uid, third.owner_uid());

    // Kept by an annotation of the record, from its first message on.
    here.maps().delete(HEAD, &DeleteParams::default()).await.unwrap();
    here.make_record_anew(&[(KEEP_LEDGER, "true")]).await;
    let fourth = here.worker(7, 1).await;
    let mut ledger = fourth.load().await.unwrap();
    fourth.commit(&mut ledger, puts(0..2)).await.unwrap();
    assert!(here.head().await.owner_references().is_empty());
}

#[tokio::test]
async fn a_record_that_is_gone_or_a_namespace_that_is_going_gets_no_ledger() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await;
    let mut ledger = worker.load().await.unwrap();
    let all: Api<Namespace> = Api::all(here.admin.clone());
    // Without a namespace controller it stays as it is: being deleted.
    all.delete(&here.namespace, &DeleteParams::default()).await.unwrap();
    let error = worker.reserve(&mut ledger).await.unwrap_err();
    assert!(
        matches!(&error, LedgerError::Unavailable(text) if text.contains("the namespace is being deleted")),
        "{error:?}"
    );
    here.records().delete("first-isp", &DeleteParams::default()).await.unwrap();
    is_conflict(worker.commit(&mut ledger, puts(0..1)).await);
    assert!(here.objects().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_record_leaves_behind_is_collected() {
    let Some(server) = Server::start() else { return };
    let _collector = server.controller_manager();
    let here = Here::on(&server).await;
    let fill = async || {
        let worker = here.worker(7, 1).await.folding();
        let mut ledger = worker.load().await.unwrap();
        worker.commit(&mut ledger, puts(0..100)).await.unwrap();
        assert!(here.objects().await.len() > 3);
        worker
    };
    fill().await;
    here.records().delete("first-isp", &DeleteParams::default()).await.unwrap();
    eventually("the ledger to be collected", async || here.objects().await.is_empty().then_some(())).await;

    here.make_record(&[(KEEP_LEDGER, "true")]).await;
    fill().await;
    let before = here.objects().await;
    here.make_record_anew(&[]).await;
    // Something that is collected later than a kept ledger would be.
    let orphan = json!({"metadata": {"name": "orphan", "ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "0fa2e3b4-9a35-4bd6-b7c8-5d2b0c6a8f11"},
    ]}});
    let orphan: ConfigMap = serde_json::from_value(orphan).unwrap();
    here.maps().create(&PostParams::default(), &orphan).await.unwrap();
    eventually("the collector to come by", async || {
        here.maps().get_opt("orphan").await.unwrap().is_none().then_some(())
    })
    .await;
    assert_eq!(here.objects().await, before);
    let worker = here.worker(7, 1).await;
    assert_eq!(worker.load().await.unwrap().len(), 100, "readopted");
    here.records().delete("first-isp", &DeleteParams::default()).await.unwrap();
    eventually("it to be collected after all", async || here.objects().await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_ledger_that_was_put_back_from_a_backup_is_the_records_again() {
    let Some(here) = Here::new().await else { return };
    let worker = here.worker(7, 1).await.folding();
    let mut ledger = worker.load().await.unwrap();
    worker.commit(&mut ledger, puts(0..100)).await.unwrap();
    let mut backup = Vec::new();
    for name in here.objects().await {
        let mut object = here.maps().get(&name).await.unwrap();
        here.maps().delete(&name, &DeleteParams::default()).await.unwrap();
        let meta = &mut object.metadata;
        (meta.uid, meta.resource_version, meta.owner_references) = (None, None, None);
        backup.push(object);
    }
    for object in &backup {
        here.maps().create(&PostParams::default(), object).await.unwrap();
    }
    let later = here.worker(7, 1).await.folding();
    let mut read = later.load().await.unwrap();
    assert_eq!(all(&read), all(&ledger));
    let head = here.head().await;
    assert_eq!(head.owner_references()[0].uid, later.owner_uid());
    for name in chunks_named(&head) {
        let chunk = here.maps().get(&name).await.unwrap();
        assert_eq!(chunk.owner_references()[0].uid, head.uid().unwrap());
    }
    later.commit(&mut read, puts(100..200)).await.unwrap();
}
