//! Packing and unpacking of SCO frames on one core: bytes of clusters per second, and what is left of them.
//!
//! `cargo bench -p volumedriver-benches --bench codec`; the data is text as logs have it, and what cannot be compressed.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use volumedriver::codec::{Built, Coding, KeyRing, ScoBuilder};
use volumedriver::config::Compression;
use volumedriver::config::keys::KeySource;
use volumedriver_core::format::sco::ScoFooter;
use volumedriver_core::format::{Change, ChangeKind};
use volumedriver_core::units::*;

const SCO_BYTES: usize = 8 << 20;
const LONG: Duration = Duration::from_millis(300);

fn main() {
    let mut ring = KeyRing::default();
    let source = KeySource::Env("BENCH".to_owned());
    ring.add(&source, "5a".repeat(32).as_bytes()).expect("a key");
    let key = ring.current(&[source]);
    println!(
        "{:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>9}  MB/s of clusters",
        "data", "frame", "codec", "cipher", "pack", "unpack", "stored"
    );
    for (name, data) in [("text", text()), ("random", random())] {
        for shift in [12_u32, 14, 15, 16] {
            for compression in
                [Compression::None, Compression::Lz4, Compression::Zstd(1), Compression::Zstd(9)]
            {
                for key in [None, key] {
                    let coding = Coding { compression, key, frame_bytes: 1 << shift };
                    if !coding.is_plain() {
                        measure(name, &data, coding, &ring);
                    }
                }
            }
        }
    }
}

fn measure(name: &str, data: &Bytes, coding: Coding, ring: &KeyRing) {
    let (cluster, frame) = (ClusterSize::DEFAULT, coding.frame_bytes);
    let footer = footer(data, cluster);
    let build = || {
        let mut builder =
            ScoBuilder::new(footer.clone(), coding, ring, [1; 16]).expect("a builder");
        builder.push(std::slice::from_ref(data));
        builder.finish().expect("an object")
    };
    let packed = per_second(|| drop(black_box(build())));
    let Built { body, frames } = build();
    let object = Bytes::from(body.concat());
    let unpacked = per_second(|| {
        let step = frames.head.frame_clusters;
        for n in (0..footer.cluster_count).step_by(step as usize) {
            let range = frames.range(n, 1).expect("a frame");
            let stored = &object[range.start as usize..range.end as usize];
            black_box(frames.unpack(n, 1, stored).expect("a sound frame"));
        }
    });
    println!(
        "{name:>8} {frame:>8} {:>8} {:>8} {:>9.0} {:>9.0} {:>8.1}%",
        coding.compression.to_string(),
        if coding.key.is_some() { "aes" } else { "none" },
        packed,
        unpacked,
        object.len() as f64 * 100.0 / data.len() as f64
    );
}

/// MB of clusters per second.
fn per_second(mut work: impl FnMut()) -> f64 {
    work();
    let (began, mut times) = (Instant::now(), 0);
    while began.elapsed() < LONG {
        work();
        times += 1;
    }
    f64::from(times) * SCO_BYTES as f64 / began.elapsed().as_secs_f64() / 1e6
}

fn footer(data: &[u8], cluster: ClusterSize) -> ScoFooter {
    let crcs: Vec<_> = data.chunks(cluster.bytes() as usize).map(ClusterCrc::of).collect();
    let cluster_count = crcs.len() as u32;
    let kind = ChangeKind::Data { first_index: 0, crcs };
    let count = ClusterCount(cluster_count.into());
    ScoFooter {
        volume: VolumeId([1; 16]),
        id: ScoId { epoch: Epoch(1), seq: ScoSeq(1) },
        cluster_size: cluster,
        cluster_count,
        changes: vec![Change { seq: Seq(1), addr: ClusterAddr(0), count, kind }],
    }
}

fn words(seed: u64) -> impl Iterator<Item = u64> {
    let mut word = seed;
    std::iter::repeat_with(move || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    })
}

fn text() -> Bytes {
    const SAID: [&str; 8] = [
        "connection accepted",
        "request served",
        "cache miss for key",
        "retrying after timeout",
        "user logged in",
        "checksum verified",
        "segment recycled",
        "flush took longer than expected",
    ];
    let mut text = String::with_capacity(SCO_BYTES + 200);
    let mut at = 1_700_000_000_u64;
    for word in words(7) {
        if text.len() >= SCO_BYTES {
            break;
        }
        at += word % 50;
        let said = SAID[(word >> 20) as usize % SAID.len()];
        text += &format!(
            "{at}.{:03} host{:02} app[{}]: {said} {:x}\n",
            word % 1000,
            word >> 60,
            word >> 50,
            word >> 32 & 0xffff_ffff
        );
    }
    Bytes::from(text).slice(..SCO_BYTES)
}

fn random() -> Bytes {
    words(9).flat_map(u64::to_le_bytes).take(SCO_BYTES).collect::<Vec<u8>>().into()
}
