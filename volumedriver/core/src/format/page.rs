//! Page of the map as the local page store keeps it: 512 mappings, run-length encoded, with a checksum.

use bytes::{BufMut, Bytes};

use super::frame::{Frame, Reader};
use crate::fault::Result;
use crate::units::{Location, Mapping, PageNo};

const FRAME: Frame = Frame { name: "map page", magic: *b"VDPG", version: 1 };
const SHAPE_RUNS: u32 = 0;
const SHAPE_DENSE: u32 = 1;
const RUN_BYTES: usize = 10;
const DENSE_BYTES: usize = 512 * 8;
/// [`PAGE_CLUSTERS`](crate::units::PAGE_CLUSTERS), as the small numbers used inside a page.
const PAGE: u16 = 512;

/// Mappings from `start` (a cluster of the page) up to the next run: `mapping`, `mapping.nth(1)`, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    pub start: u16,
    pub mapping: Mapping,
}

/// Encodes a page. The runs cover it: the first starts at 0, starts increase.
///
/// The envelope of [`frame`](super::frame), magic `VDPG`, with this body:
///
/// | offset | bytes | field |
/// |---|---|---|
/// | 0 | 8 | page number |
/// | 8 | 4 | shape: 0 runs, 1 dense |
/// | 12 | 10 each | runs: start (2), map word (8) |
/// | 12 | 8 each | dense: 512 map words |
#[must_use]
pub fn encode(page: PageNo, runs: &[PageRun]) -> Bytes {
    let by_runs = runs.len() * RUN_BYTES;
    let dense = by_runs >= DENSE_BYTES;
    let mut body = Vec::with_capacity(12 + by_runs.min(DENSE_BYTES));
    body.put_u64_le(page.0);
    body.put_u32_le(if dense { SHAPE_DENSE } else { SHAPE_RUNS });
    if dense {
        put_dense(&mut body, runs);
    } else {
        for run in runs {
            body.put_u16_le(run.start);
            body.put_u64_le(run.mapping.to_word());
        }
    }
    let mut out = Vec::new();
    FRAME.wrap(&body, &mut out);
    out.into()
}

/// The runs of an encoded page.
///
/// # Errors
/// `Corrupt` for bytes that are not page `page`; `Invalid` for a version this program does not know.
pub fn decode(page: PageNo, bytes: &[u8]) -> Result<Vec<PageRun>> {
    let mut reader = FRAME.body(bytes)?;
    let number = reader.u64()?;
    if number != page.0 {
        return Err(reader.corrupt(format!("it holds page {number}, not {page}")));
    }
    let runs = match reader.u32()? {
        SHAPE_RUNS => get_runs(&mut reader),
        SHAPE_DENSE => get_dense(&mut reader),
        shape => Err(reader.corrupt(format!("shape {shape}"))),
    }?;
    if !is_cover(&runs) {
        return Err(reader.corrupt("its runs do not cover the page in order"));
    }
    reader.end()?;
    Ok(runs)
}

fn put_dense(out: &mut Vec<u8>, runs: &[PageRun]) {
    let ends = runs.iter().skip(1).map(|run| run.start).chain([PAGE]);
    for (run, end) in runs.iter().zip(ends) {
        for n in 0..end.saturating_sub(run.start) {
            out.put_u64_le(run.mapping.nth(u64::from(n)).to_word());
        }
    }
}

fn get_runs(reader: &mut Reader<'_>) -> Result<Vec<PageRun>> {
    let mut runs = Vec::new();
    while !reader.is_at_end() {
        let start = reader.array().map(u16::from_le_bytes)?;
        runs.push(PageRun { start, mapping: get_mapping(reader)? });
        if runs.len() > usize::from(PAGE) {
            return Err(reader.corrupt("it has more runs than clusters"));
        }
    }
    Ok(runs)
}

fn get_dense(reader: &mut Reader<'_>) -> Result<Vec<PageRun>> {
    (0..PAGE).map(|start| Ok(PageRun { start, mapping: get_mapping(reader)? })).collect()
}

fn get_mapping(reader: &mut Reader<'_>) -> Result<Mapping> {
    let word = reader.u64()?;
    Mapping::from_word(word).ok_or_else(|| reader.corrupt(format!("{word:#x} is no mapping")))
}

/// Whether the runs begin at 0, go up, stay in the page, and no location counts past the end of an SCO.
fn is_cover(runs: &[PageRun]) -> bool {
    let ends = runs.iter().skip(1).map(|run| run.start).chain([PAGE]);
    runs.first().is_some_and(|run| run.start == 0)
        && runs.iter().zip(ends).all(|(run, end)| {
            let inside = run.start < end && end <= PAGE;
            let clusters = end.saturating_sub(run.start);
            inside && fits_sco(run.mapping, u64::from(clusters))
        })
}

/// Whether `count` clusters from this mapping stay within the largest SCO.
pub(super) fn fits_sco(mapping: Mapping, count: u64) -> bool {
    match mapping {
        Mapping::At(Location { index, .. }) => u64::from(index)
            .checked_add(count)
            .is_some_and(|end| end <= u64::from(Location::MAX_CLUSTERS)),
        Mapping::Hole | Mapping::Zero => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    use super::*;
    use crate::fault::Kind;
    use crate::units::ScoSeq;

    fn mapping() -> impl Strategy<Value = Mapping> {
        let data = (1..=Location::MAX_SCO, 0..65_000_u32)
            .prop_map(|(sco, index)| Mapping::At(Location { sco: ScoSeq(sco), index }));
        prop_oneof![1 => Just(Mapping::Hole), 1 => Just(Mapping::Zero), 6 => data]
    }

    fn runs() -> impl Strategy<Value = Vec<PageRun>> {
        (mapping(), btree_map(1..PAGE, mapping(), 0..512)).prop_map(|(first, mut runs)| {
            runs.insert(0, first);
            runs.into_iter().map(|(start, mapping)| PageRun { start, mapping }).collect()
        })
    }

    /// The mapping of each cluster: a dense page comes back as single clusters.
    fn clusters(runs: &[PageRun]) -> Vec<Mapping> {
        let run = |at| runs.iter().rfind(|run| run.start <= at).unwrap();
        (0..PAGE).map(|at| run(at).mapping.nth(u64::from(at - run(at).start))).collect()
    }

    proptest! {
        #[test]
        fn round_trip(runs in runs()) {
            let bytes = encode(PageNo(9), &runs);
            prop_assert!(bytes.len() <= (28 + 10 * runs.len()).min(28 + 4096));
            prop_assert_eq!(clusters(&decode(PageNo(9), &bytes).unwrap()), clusters(&runs));
            prop_assert_eq!(decode(PageNo(8), &bytes).unwrap_err().kind, Kind::Corrupt);
        }

        #[test]
        fn one_flipped_bit_is_seen(runs in runs(), at in any::<prop::sample::Index>(), bit in 0..8) {
            let mut bytes = encode(PageNo(9), &runs).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert_eq!(decode(PageNo(9), &bytes).unwrap_err().kind, Kind::Corrupt);
        }

        #[test]
        fn nonsense_is_refused_or_covers(body in vec(any::<u8>(), 0..100), shape in 0..3_u32) {
            let body = [&9_u64.to_le_bytes()[..], &shape.to_le_bytes(), &body].concat();
            let mut bytes = Vec::new();
            FRAME.wrap(&body, &mut bytes);
            if let Ok(runs) = decode(PageNo(9), &bytes) {
                prop_assert!(is_cover(&runs));
            }
        }
    }

    #[test]
    fn runs_that_do_not_cover_are_refused() {
        let hole = |start| PageRun { start, mapping: Mapping::Hole };
        let last = Mapping::At(Location { sco: ScoSeq(1), index: 65_535 });
        let cases = [
            vec![],
            vec![hole(1)],
            vec![hole(0), hole(0)],
            vec![hole(0), hole(9), hole(8)],
            vec![hole(0), hole(512)],
            vec![PageRun { start: 0, mapping: last }],
        ];
        for runs in cases {
            let bytes = encode(PageNo(0), &runs);
            assert_eq!(decode(PageNo(0), &bytes).unwrap_err().kind, Kind::Corrupt, "{runs:?}");
        }
    }
}
