//! Rebalance: which fragments move where, so that OSDs fill alike. Pure: fill levels are an argument.
//!
//! An OSD is high or low when its fill is more than the band above or below that of all OSDs together. Fragments go from a high
//! OSD to one below the mean, or from one above the mean to a low one, and only while the target stays emptier than the source;
//! so every move brings the two nearer, and it ends when no OSD is high or low. No move puts more than x fragments of an
//! object on a node, or two on an OSD.

use std::collections::HashMap;

use crate::manifest::Manifest;
use crate::name::OsdId;

/// How full an OSD is.
#[derive(Clone, Debug, PartialEq)]
pub struct Fill {
    pub osd: OsdId,
    pub node: String,
    pub labels: Vec<String>,
    pub used_bytes: u64,
    pub capacity_bytes: u64,
    /// What may still be put there.
    pub free_bytes: u64,
    /// It may be given fragments.
    pub may_take: bool,
}

impl Fill {
    /// From 0 to 1.
    #[must_use]
    pub fn level(&self) -> f64 {
        self.used_bytes as f64 / self.capacity_bytes.max(1) as f64
    }
}

/// All OSDs, and what is too high and too low.
#[derive(Clone, Debug)]
pub struct Levels {
    fills: Vec<Fill>,
    mean: f64,
    /// Half of the width of what is alike enough.
    band: f64,
}

impl Levels {
    #[must_use]
    pub fn new(mut fills: Vec<Fill>, band_percent: u32) -> Self {
        fills.sort_by(|a, b| b.level().total_cmp(&a.level()));
        let sum = |of: fn(&Fill) -> u64| fills.iter().map(|fill| of(fill) as f64).sum::<f64>();
        let mean = sum(|fill| fill.used_bytes) / sum(|fill| fill.capacity_bytes).max(1.0);
        Self { fills, mean, band: f64::from(band_percent) / 100.0 }
    }

    /// OSDs that something should leave for another, fullest first.
    #[must_use]
    pub fn sources(&self) -> Vec<OsdId> {
        let from = |fill: &&Fill| self.fills.iter().any(|to| self.is_worth(fill, to));
        self.fills.iter().filter(from).map(|fill| fill.osd).collect()
    }

    fn is_worth(&self, from: &Fill, to: &Fill) -> bool {
        let is_high = from.level() > self.mean + self.band;
        let is_low = to.level() < self.mean - self.band;
        let is_across = from.level() > self.mean && to.level() < self.mean;
        to.may_take && is_across && (is_high || is_low)
    }

    /// Where the object's fragment on this OSD should go: to the emptiest OSD it may lie on.
    #[must_use]
    pub fn target(&self, manifest: &Manifest, from: OsdId, labels: &[String]) -> Option<OsdId> {
        let source = self.fills.iter().find(|fill| fill.osd == from)?;
        let len = manifest.layout().fragment_len();
        let node_of = |osd| self.fills.iter().find(|f| f.osd == osd).map(|f| f.node.as_str());
        let mut of_node: HashMap<&str, usize> = HashMap::new();
        for fragment in manifest.fragments.iter().filter(|f| f.osd != from) {
            *of_node.entry(node_of(fragment.osd).unwrap_or_default()).or_default() += 1;
        }
        let is_fit = |to: &&Fill| {
            let held = of_node.get(to.node.as_str()).copied().unwrap_or(0);
            let is_held = manifest.fragments.iter().any(|fragment| fragment.osd == to.osd);
            !is_held
                && held < manifest.policy.per_node()
                && labels.iter().all(|label| to.labels.contains(label))
                && to.free_bytes > len
                && self.is_worth(source, to)
                && stays_emptier(source, to, len)
        };
        self.fills.iter().rev().find(is_fit).map(|to| to.osd)
    }

    /// So many bytes went from one to the other.
    pub fn moved(&mut self, from: OsdId, to: OsdId, bytes: u64) {
        for fill in &mut self.fills {
            if fill.osd == from {
                fill.used_bytes = fill.used_bytes.saturating_sub(bytes);
            } else if fill.osd == to {
                fill.used_bytes += bytes;
                fill.free_bytes = fill.free_bytes.saturating_sub(bytes);
            }
        }
        self.fills.sort_by(|a, b| b.level().total_cmp(&a.level()));
    }
}

fn stays_emptier(from: &Fill, to: &Fill, bytes: u64) -> bool {
    let after = |fill: &Fill, used: u64| used as f64 / fill.capacity_bytes.max(1) as f64;
    let left = after(from, from.used_bytes.saturating_sub(bytes));
    after(to, to.used_bytes.saturating_add(bytes)) <= left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erasure::Codec;
    use crate::manifest::Fragment;
    use crate::name::{FragmentId, ObjectId};
    use proptest::prelude::*;

    fn osd(n: usize) -> OsdId {
        OsdId([n as u8; 16])
    }

    fn fills(used: &[u64]) -> Vec<Fill> {
        let of = |(n, used): (usize, &u64)| Fill {
            osd: osd(n),
            node: format!("n{}", n / 2),
            labels: Vec::new(),
            used_bytes: *used,
            capacity_bytes: 1000,
            free_bytes: 1000 - used,
            may_take: true,
        };
        used.iter().enumerate().map(of).collect()
    }

    fn object(policy: &str, len: u64, osds: &[usize]) -> Manifest {
        let policy = policy.parse().unwrap();
        let of = |(index, n): (usize, &usize)| Fragment {
            index: index as u8,
            osd: osd(*n),
            file: FragmentId([index as u8; 16]),
            crc: 0,
        };
        let (codec, unit) = (Codec::of(policy), 64);
        let (id, crc, created_ms) = (ObjectId([0; 16]), 0, 0);
        let fragments = osds.iter().enumerate().map(of).collect();
        Manifest { id, len, crc, created_ms, policy, codec, unit, fragments }
    }

    #[test]
    fn only_what_is_out_of_the_band_moves() {
        assert!(Levels::new(fills(&[500, 510, 490, 480]), 3).sources().is_empty());
        assert!(Levels::new(Vec::new(), 3).sources().is_empty());
        // One is low: all above the mean may give.
        assert_eq!(Levels::new(fills(&[500, 520, 0, 300]), 5).sources(), [osd(1), osd(0)]);
        // One is high.
        assert_eq!(Levels::new(fills(&[900, 500, 500, 500]), 20).sources(), [osd(0)]);
        let mut full = fills(&[500, 520, 0]);
        full[2].may_take = false;
        assert!(Levels::new(full, 5).sources().is_empty());
    }

    #[test]
    fn x_labels_and_room_bind_the_target() {
        let levels = Levels::new(fills(&[900, 800, 100, 200, 300, 800]), 5);
        let target =
            |policy: &str, osds: &[usize]| levels.target(&object(policy, 10, osds), osd(0), &[]);
        assert_eq!(target("1,2,2,1", &[0]), Some(osd(2)));
        assert_eq!(target("1,2,2,2", &[0, 2]), Some(osd(3)));
        assert_eq!(target("1,2,2,1", &[0, 2]), Some(osd(4)), "x of node 1");
        assert_eq!(target("1,3,2,1", &[0, 2, 4]), None);
        assert_eq!(levels.target(&object("1,0,1,1", 10, &[0]), osd(0), &["ssd".into()]), None);
        assert_eq!(levels.target(&object("1,0,1,1", 850, &[0]), osd(0), &[]), None, "no overshoot");
        let mut small = fills(&[900, 100]);
        small[1].free_bytes = 5;
        let levels = Levels::new(small, 5);
        assert_eq!(levels.target(&object("1,0,1,1", 10, &[0]), osd(0), &[]), None, "room");
    }

    proptest! {
        #[test]
        fn it_converges_and_keeps_to_x(
            placed in proptest::collection::vec(proptest::sample::subsequence(vec![0usize, 1, 2, 3, 4, 5], 3), 30..120),
            parity in 2u8..3, x in 1usize..3,
        ) {
            // Objects that honour x, on three nodes of two OSDs; a fourth node is new and empty.
            let honours = |osds: &[usize]| (0..4).all(|n| osds.iter().filter(|o| **o / 2 == n).count() <= x);
            let policy = format!("1,{parity},1,{x}");
            let mut objects: Vec<Manifest> =
                placed.iter().filter(|osds| honours(osds)).map(|osds| object(&policy, 5, osds)).collect();
            let used = |objects: &[Manifest]| -> Vec<u64> {
                (0..8).map(|n| objects.iter().flat_map(|o| &o.fragments).filter(|f| f.osd == osd(n)).count() as u64 * 5).collect()
            };
            let mut moves = 0;
            loop {
                let levels = Levels::new(fills(&used(&objects)), 1);
                let best = levels.sources().into_iter().find_map(|from| {
                    objects.iter().enumerate().find_map(|(n, o)| {
                        o.fragments.iter().any(|f| f.osd == from).then_some(())?;
                        Some((n, from, levels.target(o, from, &[])?))
                    })
                });
                let Some((n, from, to)) = best else { break };
                objects[n].fragments.iter_mut().find(|f| f.osd == from).unwrap().osd = to;
                moves += 1;
                prop_assert!(moves < 2000, "no end");
                let osds: Vec<usize> = objects[n].fragments.iter().map(|f| f.osd.0[0].into()).collect();
                prop_assert!(honours(&osds));
                prop_assert_eq!(osds.iter().collect::<std::collections::HashSet<_>>().len(), osds.len());
            }
            let levels: Vec<f64> = fills(&used(&objects)).iter().map(Fill::level).collect();
            let mean = levels.iter().sum::<f64>() / 8.0;
            // Three copies with x = 1 fill four nodes evenly at most; a fragment is 0.5 %.
            prop_assert!(levels.iter().all(|level| (level - mean).abs() <= 0.0151 + 0.005), "{:?}", levels);
        }
    }
}
