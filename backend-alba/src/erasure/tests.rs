//! The codec against models that know nothing of stripes in steps.

use proptest::prelude::*;

use super::*;

fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn layout(len: usize, policy: &str, unit: u32) -> Layout {
    Layout { len: len as u64, policy: policy.parse().unwrap(), unit }
}

fn encoded(layout: Layout, pieces: &[Bytes]) -> Vec<Bytes> {
    let mut encoder = Encoder::new(layout);
    let mut fragments = vec![Vec::new(); layout.policy.total()];
    for piece in pieces {
        let shares = encoder.push(std::slice::from_ref(piece)).unwrap();
        for (fragment, share) in fragments.iter_mut().zip(shares) {
            share.iter().for_each(|bytes| fragment.extend_from_slice(bytes));
        }
    }
    fragments.into_iter().map(Bytes::from).collect()
}

/// Byte by byte: where each byte of the object belongs.
fn naive_data_fragments(layout: Layout, object: &[u8]) -> Vec<Vec<u8>> {
    let (data, unit) = (layout.policy.data(), layout.unit as usize);
    let mut fragments = vec![Vec::new(); data];
    for stripe in object.chunks(data * unit) {
        let mut unit = stripe.len().div_ceil(data);
        unit += (64 - unit % 64) % 64;
        for (n, fragment) in fragments.iter_mut().enumerate() {
            for at in n * unit..(n + 1) * unit {
                fragment.push(stripe.get(at).copied().unwrap_or(0));
            }
        }
    }
    fragments
}

#[test]
fn coding_by_ranges_is_coding_the_whole() {
    for (data, parity) in [(1, 1), (2, 2), (4, 2), (5, 4), (8, 3), (3, 9)] {
        let len = 3 * STEP + 192;
        let units: Vec<Bytes> = (0..data).map(|n| noise(len, n as u64 + 1)).collect();
        let whole = reed_solomon_simd::encode(data, parity, &units).unwrap();
        let slices: Vec<&[u8]> = units.iter().map(|unit| &unit[..]).collect();
        let stepped = encode(&slices, parity).unwrap();
        assert_eq!(stepped.bytes(), whole.concat(), "{data}+{parity}");
        for (from, to) in [(64, 128), (4096, 70_016), (len - 64, len)] {
            let range: Vec<&[u8]> = units.iter().map(|unit| &unit[from..to]).collect();
            let part = encode(&range, parity).unwrap();
            let expected: Vec<u8> = whole.iter().flat_map(|unit| unit[from..to].to_vec()).collect();
            assert_eq!(part.bytes(), expected, "{data}+{parity} {from}..{to}");
        }
    }
}

/// Objects that were stored must stay readable: a codec that computes anything else is another codec, with another number.
#[test]
fn the_codec_computes_what_it_always_did() {
    let byte = |n: u32, at: u32| (at * at * 7 + at * n * 3 + n * 101 + 1) as u8;
    let units: Vec<Vec<u8>> = (0..4).map(|n| (0..64).map(|at| byte(n, at)).collect()).collect();
    let slices: Vec<&[u8]> = units.iter().map(|unit| &unit[..]).collect();
    let parity = encode(&slices, 2).unwrap();
    assert_eq!(crc32fast::hash(parity.bytes()), 2_021_183_279, "{:02x?}", parity.bytes());
}

#[test]
fn long_ranges_are_rebuilt_whatever_is_lost() {
    for (data, parity) in [(1, 2), (2, 2), (4, 2), (5, 4), (8, 3), (3, 9), (32, 16)] {
        let len = (40 << 10) + 192;
        let mut units: Vec<Bytes> = (0..data).map(|n| noise(len, n as u64 + 1)).collect();
        let slices: Vec<&[u8]> = units.iter().map(|unit| &unit[..]).collect();
        let coded = encode(&slices, parity).unwrap().freeze();
        units.extend((0..parity).map(|n| coded.slice(n * len..(n + 1) * len)));
        let policy = Policy::new(data as u8, parity as u8, data as u8, 1).unwrap();
        // Windows of those that are left, around the end: mostly data, mostly parity, and mixed.
        for first in 0..data + parity {
            let is_kept = |n: &usize| (n + data + parity - first) % (data + parity) < data;
            let (kept, lost): (Vec<usize>, _) = (0..data + parity).partition(is_kept);
            let present: Vec<_> = kept.iter().map(|n| (*n, units[*n].clone())).collect();
            let rebuilt = rebuild(policy, &present, &lost).unwrap();
            let expected: Vec<Bytes> = lost.iter().map(|n| units[*n].clone()).collect();
            assert!(rebuilt == expected, "{data}+{parity}, kept {kept:?}");
        }
    }
}

#[test]
fn more_than_announced_is_refused() {
    for policy in ["1,1,1,1", "2,1,2,1"] {
        let mut encoder = Encoder::new(layout(100, policy, 65_536));
        encoder.push(&[noise(60, 1)]).unwrap();
        let fault = encoder.push(&[noise(41, 1)]).err().unwrap();
        assert!(fault.message.contains("101 bytes given, 100 announced"), "{fault}");
    }
}

#[test]
fn too_few_fragments_are_refused() {
    let fault = rebuild("2,1,2,1".parse().unwrap(), &[(0, noise(64, 1))], &[1]).unwrap_err();
    assert!(fault.message.contains("2 needed"), "{fault}");
}

fn any_layout() -> impl Strategy<Value = Layout> {
    // Units of no real preset: more stripes in fewer bytes.
    (0usize..5000, 1u8..7, 0u8..5, prop::sample::select(vec![64u32, 128, 320])).prop_map(
        |(len, data, parity, unit)| {
            let policy = Policy::new(data, parity, data, 1).unwrap();
            Layout { len: len as u64, policy, unit }
        },
    )
}

proptest! {
    #[test]
    fn data_fragments_are_the_object_in_turns(layout in any_layout(), cut in 0usize..5000) {
        let object = noise(layout.len as usize, 3);
        let cut = cut.min(object.len());
        let fragments = encoded(layout, &[object.slice(..cut), object.slice(cut..)]);
        if layout.policy.is_copies() {
            prop_assert!(fragments.iter().all(|fragment| *fragment == object));
        } else {
            let naive = naive_data_fragments(layout, &object);
            prop_assert_eq!(&fragments[..naive.len()], &naive[..]);
        }
        for fragment in &fragments {
            prop_assert_eq!(fragment.len() as u64, layout.fragment_len());
        }
    }

    #[test]
    fn pieces_give_any_range_back(layout in any_layout(), from in 0u64..5000, len in 0u64..5000) {
        let object = noise(layout.len as usize, 4);
        let fragments = encoded(layout, std::slice::from_ref(&object));
        let from = from.min(layout.len);
        let len = len.min(layout.len - from);
        let mut got = Vec::new();
        for piece in layout.pieces(from, len) {
            prop_assert!(piece.len > 0);
            let at = piece.at as usize;
            got.extend_from_slice(&fragments[piece.index][at..at + piece.len as usize]);
        }
        prop_assert_eq!(got, &object[from as usize..(from + len) as usize]);
    }

    #[test]
    fn any_k_fragments_give_any_other_back(
        layout in any_layout(), seed: u64, from in 0u64..3000, len in 1u64..3000,
    ) {
        let fragments = encoded(layout, &[noise(layout.len as usize, 5)]);
        let total = layout.fragment_len();
        let (from, to) = layout.grains(from.min(total), (from + len).min(total));
        let mut order: Vec<usize> = (0..fragments.len()).collect();
        order.sort_by_key(|n| (*n as u64 + 1).wrapping_mul(seed | 1).rotate_left(17));
        let range = |n: usize| fragments[n].slice(from as usize..to as usize);
        let (kept, lost) = order.split_at(layout.policy.data());
        let present: Vec<(usize, Bytes)> = kept.iter().map(|n| (*n, range(*n))).collect();
        let rebuilt = rebuild(layout.policy, &present, lost).unwrap();
        let expected: Vec<Bytes> = lost.iter().map(|n| range(*n)).collect();
        prop_assert_eq!(rebuilt, expected);
    }
}
