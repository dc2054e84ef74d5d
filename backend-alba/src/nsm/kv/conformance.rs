//! What every table must do; run by the tests of each kind.

use std::sync::Arc;

use super::*;

pub async fn check(kv: Arc<dyn Kv>) {
    commits_are_guarded_by_value(&*kv).await;
    ranges_are_ascending_and_end_where_asked(&*kv).await;
    any_bytes_are_keys_and_values(&*kv).await;
    nothing_of_a_refused_commit_is_made(&*kv).await;
    one_of_many_commits_is_made(&kv).await;
    counting_up_side_by_side_loses_nothing(&kv).await;
}

async fn put(kv: &dyn Kv, key: &[u8], value: &[u8]) {
    let mut commit = Commit::default();
    commit.put(key.to_vec(), value);
    assert!(kv.commit(commit).await.unwrap());
}

async fn get(kv: &dyn Kv, key: &[u8]) -> Option<Value> {
    kv.get(vec![key.to_vec()]).await.unwrap().pop().unwrap()
}

async fn commits_are_guarded_by_value(kv: &dyn Kv) {
    let attempt = async |expected: Option<&[u8]>, value: &[u8]| {
        let mut commit = Commit::default();
        commit.is_still(b"Ca".to_vec(), expected.map(<[u8]>::to_vec)).put(b"Ca".to_vec(), value);
        kv.commit(commit).await.unwrap()
    };
    assert!(!attempt(Some(b"0"), b"1").await);
    assert!(attempt(None, b"1").await);
    assert!(!attempt(None, b"2").await);
    assert!(!attempt(Some(b"2"), b"3").await);
    assert!(attempt(Some(b"1"), b"").await);
    assert!(!attempt(None, b"2").await, "empty is not absent");
    assert_eq!(get(kv, b"Ca").await.as_deref(), Some(&b""[..]));
    let mut delete = Commit { durability: Durability::Later, ..Commit::default() };
    delete.is(b"Ca".to_vec(), vec![]).delete(b"Ca".to_vec()).delete(b"Cnone".to_vec());
    assert!(kv.commit(delete).await.unwrap());
    assert_eq!(get(kv, b"Ca").await, None);
    assert!(kv.commit(Commit::default()).await.unwrap(), "nothing always succeeds");
}

async fn ranges_are_ascending_and_end_where_asked(kv: &dyn Kv) {
    for n in [5u8, 3, 9, 1, 7] {
        put(kv, &[b'R', n], &[n]).await;
    }
    let keys = async |from: &[u8], to: &[u8], limit| {
        let found = kv.range(from.to_vec(), to.to_vec(), limit).await.unwrap();
        found.iter().for_each(|(key, value)| assert_eq!(key[1..], value[..]));
        found.into_iter().map(|(key, _)| key[1]).collect::<Vec<u8>>()
    };
    assert_eq!(keys(b"R", b"S", 99).await, [1, 3, 5, 7, 9]);
    assert_eq!(keys(b"R\x03", b"R\x07", 99).await, [3, 5]);
    assert_eq!(keys(b"R\x04", b"R\x08", 99).await, [5, 7]);
    assert_eq!(keys(b"R", b"S", 2).await, [1, 3]);
    assert_eq!(keys(b"R", b"S", 0).await, [0; 0]);
    assert_eq!(keys(b"R\x07", b"R\x03", 9).await, [0; 0]);
    assert_eq!(keys(b"R\x03", b"R\x03", 9).await, [0; 0]);
    let wanted: Vec<Key> = [9, 2, 1, 9].iter().map(|n| vec![b'R', *n]).collect();
    let found = kv.get(wanted).await.unwrap();
    assert_eq!(found, [Some(vec![9]), None, Some(vec![1]), Some(vec![9])]);
    assert_eq!(kv.get(vec![]).await.unwrap(), Vec::<Option<Value>>::new());
    for n in 0..1200u32 {
        let mut commit = Commit { durability: Durability::Later, ..Commit::default() };
        commit.put([b"S", &n.to_be_bytes()[..]].concat(), vec![7; 100]);
        assert!(kv.commit(commit).await.unwrap());
    }
    let found = kv.range(b"S".to_vec(), b"T".to_vec(), 1100).await.unwrap();
    assert_eq!(found.len(), 1100);
    for ((key, _), n) in found.iter().zip(0u32..) {
        assert_eq!(key[1..], n.to_be_bytes());
    }
    let many = (0..300u32).map(|n| [b"S", &n.to_be_bytes()[..]].concat()).collect();
    assert!(kv.get(many).await.unwrap().iter().all(Option::is_some));
}

async fn any_bytes_are_keys_and_values(kv: &dyn Kv) {
    let every: Vec<u8> = (0..=u8::MAX).collect();
    for key in [&b"B\0"[..], b"B\0\0", b"B\xff", b"B\xff\xff", &every] {
        put(kv, key, &every).await;
        assert_eq!(get(kv, key).await.as_ref(), Some(&every));
        let mut commit = Commit::default();
        commit.is(key.to_vec(), every.clone()).put(key.to_vec(), []);
        assert!(kv.commit(commit).await.unwrap());
    }
    let found = kv.range(b"B".to_vec(), after_prefix(b"B\xff"), 9).await.unwrap();
    let keys: Vec<&[u8]> = found.iter().map(|(key, _)| &key[..]).collect();
    assert_eq!(keys, [&b"B\0"[..], b"B\0\0", b"B\xff", b"B\xff\xff"]);
}

async fn nothing_of_a_refused_commit_is_made(kv: &dyn Kv) {
    put(kv, b"N1", b"a").await;
    let mut commit = Commit::default();
    commit.is(b"N1".to_vec(), b"a".to_vec()).is_absent(b"N2".to_vec());
    commit.is(b"N3".to_vec(), b"a".to_vec());
    commit.put(b"N2".to_vec(), b"x".to_vec()).delete(b"N1".to_vec());
    assert!(!kv.commit(commit.clone()).await.unwrap());
    assert_eq!(get(kv, b"N1").await.as_deref(), Some(&b"a"[..]));
    assert_eq!(get(kv, b"N2").await, None);
    commit.guards.pop();
    assert!(kv.commit(commit).await.unwrap());
    assert_eq!(get(kv, b"N1").await, None);
    assert_eq!(get(kv, b"N2").await.as_deref(), Some(&b"x"[..]));
}

async fn one_of_many_commits_is_made(kv: &Arc<dyn Kv>) {
    for round in 0..5u8 {
        let race = |n: u8| {
            let kv = kv.clone();
            tokio::spawn(async move {
                let mut commit = Commit::default();
                commit.is_absent(vec![b'O', round]).put(vec![b'O', round], [n]);
                kv.commit(commit).await.unwrap().then_some(n)
            })
        };
        let mut winners = Vec::new();
        for task in (0..16).map(race).collect::<Vec<_>>() {
            winners.extend(task.await.unwrap());
        }
        assert_eq!(get(&**kv, &[b'O', round]).await, Some(winners.clone()));
        assert_eq!(winners.len(), 1);
    }
}

async fn counting_up_side_by_side_loses_nothing(kv: &Arc<dyn Kv>) {
    let count = |_| {
        let kv = kv.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                loop {
                    let before = get(&*kv, b"K").await;
                    let next = before.as_ref().map_or(1, |value| value[0] + 1);
                    let mut commit = Commit::default();
                    commit.is_still(b"K".to_vec(), before).put(b"K".to_vec(), [next]);
                    if kv.commit(commit).await.unwrap() {
                        break;
                    }
                }
            }
        })
    };
    for task in (0..8).map(count).collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(get(&**kv, b"K").await, Some(vec![80]));
}

#[tokio::test]
async fn memory_conforms() {
    check(Arc::new(super::super::memory::Memory::default())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rocksdb_conforms() {
    let dir = tempfile::tempdir().unwrap();
    check(Arc::new(super::super::rocks::Rocks::open(dir.path()).unwrap())).await;
    // All of it is there after the next start, and the directory was free for it.
    let kv = super::super::rocks::Rocks::open(dir.path()).unwrap();
    assert_eq!(get(&kv, b"K").await, Some(vec![80]));
    assert_eq!(kv.range(b"S".to_vec(), b"T".to_vec(), 9999).await.unwrap().len(), 1200);
}
