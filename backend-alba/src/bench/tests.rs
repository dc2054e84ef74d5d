use std::collections::BTreeMap;
use std::sync::Mutex;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    plan: Plan,
}

fn plan(line: &str) -> Plan {
    Line::parse_from(std::iter::once("bench").chain(line.split_whitespace())).plan
}

#[derive(Default)]
struct Memory {
    objects: Mutex<BTreeMap<String, Bytes>>,
    puts: Mutex<u64>,
    /// It flips a bit of what is read.
    lies: bool,
}

#[async_trait]
impl Target for Memory {
    async fn put(&self, name: &str, body: Vec<Bytes>) -> Result<()> {
        *self.puts.lock().unwrap() += 1;
        let before = self.objects.lock().unwrap().insert(name.into(), body.concat().into());
        assert!(before.is_none(), "{name} was put twice");
        Ok(())
    }
    async fn get(&self, name: &str, (offset, len): (u64, u64), check: &mut Check) -> Result<()> {
        let whole = self.objects.lock().unwrap().get(name).cloned().unwrap();
        let mut bytes = whole[offset as usize..(offset + len) as usize].to_vec();
        if self.lies {
            bytes[len as usize / 2] ^= 1;
        }
        check.take(&bytes)
    }
    async fn delete(&self, name: &str) -> Result<()> {
        assert!(self.objects.lock().unwrap().remove(name).is_some());
        Ok(())
    }
    async fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let objects = self.objects.lock().unwrap();
        Ok(objects.keys().filter(|name| name.starts_with(prefix)).cloned().collect())
    }
}

const SMALL: &str = "--size 64KiB,128KiB --range 4KiB,8KiB --in-flight 1,3 --seconds 0 --most 1MiB";

#[tokio::test]
async fn every_load_of_a_plan_is_measured_and_nothing_stays() {
    let target = Arc::new(Memory::default());
    let mut seen = 0;
    let results = run(target.clone(), &plan(SMALL), Keep::Nothing, |_| seen += 1).await.unwrap();
    let what: Vec<_> = results
        .iter()
        .map(|m| (m.operation.name(), m.object_bytes >> 10, m.bytes >> 10, m.in_flight))
        .collect();
    let put_get = |size| {
        [
            ("put", size, size, 1),
            ("put", size, size, 3),
            ("get", size, size, 1),
            ("get", size, size, 3),
        ]
    };
    let ranges =
        [("range", 128, 4, 1), ("range", 128, 4, 3), ("range", 128, 8, 1), ("range", 128, 8, 3)];
    assert_eq!(what, [&put_get(64)[..], &put_get(128), &ranges].concat());
    assert_eq!(seen, results.len());
    assert!(results.iter().all(|m| m.count() == m.in_flight as u64 && m.seconds > 0.0));
    assert!(target.objects.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_was_kept_is_read_again_and_not_put_again() {
    let target = Arc::new(Memory::default());
    let kept = plan("--size 64KiB --only put --in-flight 2,4 --seconds 0");
    run(target.clone(), &kept, Keep::Objects, |_| ()).await.unwrap();
    assert_eq!((target.objects.lock().unwrap().len(), *target.puts.lock().unwrap()), (4, 6));
    let reads = plan("--size 64KiB --only get,range --range 4KiB --seconds 0 --cache warm");
    let results = run(target.clone(), &reads, Keep::Objects, |_| ()).await.unwrap();
    assert_eq!(results.len(), 6);
    assert_eq!(*target.puts.lock().unwrap(), 6);
    // More puts do not meet the names of those before.
    run(target.clone(), &kept, Keep::Objects, |_| ()).await.unwrap();
    assert_eq!(target.objects.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn a_wrong_byte_ends_it() {
    let target = Arc::new(Memory { lies: true, ..Memory::default() });
    let fault = run(target, &plan(SMALL), Keep::Nothing, |_| ()).await.unwrap_err();
    assert!(fault.message.contains("are not what was put"), "{fault}");
}

#[tokio::test]
async fn plans_that_cannot_be_are_refused() {
    for (line, part) in [
        ("--size 64KiB --range 128KiB", "ranges of 128 KiB: no object is that large"),
        ("--in-flight 0", "in flight: 0"),
    ] {
        let fault = run(Arc::new(Memory::default()), &plan(line), Keep::Nothing, |_| ()).await;
        assert!(fault.unwrap_err().message.contains(part), "{line}");
    }
}

#[test]
fn sizes_are_read_as_they_are_typed() {
    for (text, bytes, shown) in [
        ("4096", 4096, "4 KiB"),
        ("64KiB", 65_536, "64 KiB"),
        ("4MiB", 4 << 20, "4 MiB"),
        ("1GiB", 1 << 30, "1 GiB"),
        ("1000", 1000, "1000 bytes"),
    ] {
        let size: Size = text.parse().unwrap();
        assert_eq!((size.0, size.to_string().as_str()), (bytes, shown));
    }
    for text in ["", "0", "4 MiB", "4MB", "-1", "2048GiB", "99999999999GiB", "KiB"] {
        assert!(text.parse::<Size>().is_err(), "{text}");
    }
}
