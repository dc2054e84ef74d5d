//! Random lives that end in crashes: what comes back is a prefix that holds everything flushed (P1).

use std::cell::RefCell;
use std::collections::BTreeMap;

use volumedriver_core::format::ChangeKind;

use super::disk::{CrashDisk, CrashWorld, live};
use super::*;

const VOLUMES: u8 = 3;
/// Operations in an SCO of these tests.
const SCO_OPS: u64 = 20;

#[derive(Clone, Debug)]
struct Op {
    sco: ScoSeq,
    first_index: u32,
    /// 0: a mark.
    count: u64,
}

/// What one volume was told, from its first sequence on.
#[derive(Clone, Debug, Default)]
struct Told {
    ops: Vec<Op>,
    flushed: usize,
    disposed: ScoSeq,
    epoch: u64,
}

impl Told {
    fn next_op(&self, count: u64) -> Op {
        let sco = ScoSeq(self.ops.len() as u64 / SCO_OPS + 1);
        let before = self.ops.iter().filter(|op| op.sco == sco).map(|op| op.count).sum::<u64>();
        Op { sco, first_index: before as u32, count }
    }
    /// Operations before this one may be gone: their SCO is published.
    fn first_needed(&self) -> usize {
        self.ops.iter().position(|op| op.sco > self.disposed).unwrap_or(self.ops.len())
    }
}

fn content(volume: u8, seq: u64, epoch_of_write: u64) -> u64 {
    u64::from(volume) << 48 | epoch_of_write << 32 | seq
}

type Model = RefCell<BTreeMap<u8, (Told, Vec<u64>)>>;

/// Checks what came back against what was told, and forgets what was lost.
async fn check_replay(
    buffer: &Buffer<CrashWorld>,
    replayed: Vec<ReplayedVolume>,
    model: &Model,
    context: &str,
) {
    for n in 0..VOLUMES {
        let (mut told, seeds) = model.borrow().get(&n).cloned().unwrap_or_default();
        let found = replayed.iter().find(|found| found.volume == volume(n));
        let mut changes = Vec::new();
        if let Some(found) = found {
            assert!(found.damage.is_empty(), "{context} volume {n}: {:?}", found.damage);
            let scos = found.scos.iter();
            changes = scos.flat_map(|s| s.changes.iter().map(move |c| (s.id.seq, c))).collect();
        }
        let needed = told.first_needed();
        let kept: Vec<_> = changes.iter().filter(|(sco, _)| *sco > told.disposed).collect();
        for (at, (sco, change)) in (needed..).zip(&kept) {
            assert_eq!(change.seq, Seq(at as u64 + 1), "{context} volume {n}: not a prefix");
            let op = told.ops.get(at);
            let op = op.unwrap_or_else(|| panic!("{context} volume {n}: revived {change:?}"));
            assert_eq!(*sco, op.sco, "{context} volume {n} change {at}");
            if let ChangeKind::Data { first_index, crcs } = &change.kind {
                let (_, expected) = clusters(seeds[at], op.count);
                assert_eq!((*first_index, crcs), (op.first_index, &expected), "{context}");
            }
        }
        let survived = needed + kept.len();
        assert!(
            survived >= told.flushed,
            "{context} volume {n}: {survived} of {} flushed operations survived",
            told.flushed
        );
        told.ops.truncate(survived);
        told.flushed = survived;
        told.epoch += 1;
        let log = attach(buffer, n, told.epoch, survived as u64);
        for (op, seed) in told.ops.iter().zip(&seeds).skip(needed).filter(|(op, _)| op.count > 0) {
            let bytes = log.read(op.sco, op.first_index, op.count as u32).await;
            let bytes = bytes.unwrap_or_else(|fault| panic!("{context} volume {n}: {fault}"));
            let bytes = bytes.unwrap_or_else(|| panic!("{context} volume {n}: {op:?} is gone"));
            assert!(bytes.concat() == clusters(*seed, op.count).0, "{context} volume {n} {op:?}");
        }
        let seeds = seeds[..survived].to_vec();
        model.borrow_mut().insert(n, (told, seeds));
    }
}

async fn one_life(disk: &CrashDisk, model: &Model, context: &str) {
    let config = BufferConfig { linger: Duration::from_millis(1), ..small_config() };
    let opened = Buffer::open(CrashWorld::new(disk.clone()), config).await;
    let (buffer, replayed) = opened.unwrap_or_else(|fault| panic!("{context}: {fault}"));
    assert_eq!(replayed.lost, None, "{context}");
    check_replay(&buffer, replayed.volumes, model, context).await;
    let logs: Vec<_> = (0..VOLUMES)
        .map(|n| {
            let (epoch, seq) = {
                let model = model.borrow();
                (model[&n].0.epoch, model[&n].0.ops.len() as u64)
            };
            attach(&buffer, n, epoch, seq)
        })
        .collect();
    // A database: every write is flushed, and the buffer learns to expect it.
    let flushes_each = disk.random(4) == 0;
    for _ in 0..200 + disk.random(400) {
        let n = disk.random(u64::from(VOLUMES)) as u8;
        if flushes_each && disk.random(20) > 0 {
            append(&logs[n as usize], n, 20, disk, model);
            for _ in 0..disk.random(6) {
                tokio::task::yield_now().await;
            }
            flush(&buffer, model, context).await;
            continue;
        }
        match disk.random(40) {
            0..4 => flush(&buffer, model, context).await,
            4 => dispose(&logs[n as usize], n, model),
            5..8 => tokio::task::yield_now().await,
            other => append(&logs[n as usize], n, other, disk, model),
        }
        if buffer.used_bytes() * 2 > buffer.capacity_bytes() {
            for (n, log) in (0..).zip(&logs) {
                dispose(log, n, model);
            }
        }
    }
}

fn append(log: &VolumeLog<CrashWorld>, n: u8, kind: u64, disk: &CrashDisk, model: &Model) {
    let mut model = model.borrow_mut();
    let Some((told, seeds)) = model.get_mut(&n) else { return };
    let count = if kind == 8 { 0 } else { 1 + disk.random(12) * u64::from(kind < 14) };
    let op = told.next_op(count);
    let seq = told.ops.len() as u64 + 1;
    let seed = content(n, seq, told.epoch);
    let addr = ClusterAddr(seq * 7 % 1000);
    let done = if count == 0 {
        log.append_mark(Seq(seq), addr, ClusterCount(5), Mark::Hole, op.sco)
    } else {
        let (data, crcs) = clusters(seed, count);
        log.append_data(Seq(seq), addr, op.sco, op.first_index, &crcs, &data)
    };
    if done.is_some() {
        told.ops.push(op);
        seeds.push(seed);
    }
}

async fn flush(buffer: &Buffer<CrashWorld>, model: &Model, context: &str) {
    let before: Vec<usize> = model.borrow().values().map(|(told, _)| told.ops.len()).collect();
    buffer.flush().await.unwrap_or_else(|fault| panic!("{context}: {fault}"));
    for ((told, _), flushed) in model.borrow_mut().values_mut().zip(before) {
        told.flushed = told.flushed.max(flushed);
    }
}

/// As after an upload: only what is flushed and complete.
fn dispose(log: &VolumeLog<CrashWorld>, n: u8, model: &Model) {
    let mut model = model.borrow_mut();
    let Some((told, _)) = model.get_mut(&n) else { return };
    let complete = ScoSeq(told.flushed as u64 / SCO_OPS);
    if complete > told.disposed {
        told.disposed = complete;
        log.dispose(complete);
    }
}

#[test]
fn crashes_leave_a_prefix_with_everything_flushed() {
    let seeds = std::env::var("BUFFER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    for seed in 1..=seeds {
        let disk = CrashDisk::seeded(seed);
        let model = Model::default();
        for life in 0..12 {
            let context = format!("seed {seed} life {life}");
            disk.crash_after(1 + disk.random(if life % 4 == 3 { 10 } else { 200 }));
            live(&disk, one_life(&disk, &model, &context));
            disk.restart();
        }
    }
}
