//! Disk safety: how many more OSDs, or whole nodes, may fail before an object is lost.
//!
//! An object is readable while k of its fragments are. Of its fragments on OSDs that are not dead, the worst that n more
//! failures can do is to take the n OSDs (or nodes) that hold most of them. So the answer follows from where each object lies,
//! not from what its policy promises, and the worst object of a bucket answers for the bucket: n failures are survived by all
//! of them or not. Below zero an object is lost, by so many fragments.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::manifest::Manifest;
use crate::name::OsdId;
use crate::preset::Policy;

/// Which OSDs there are, and which of them count as failed.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The node of each OSD that is known.
    pub nodes: HashMap<OsdId, String>,
    pub dead: HashSet<OsdId>,
}

impl World {
    /// An OSD nobody knows is as good as dead.
    fn is_alive(&self, osd: OsdId) -> bool {
        self.nodes.contains_key(&osd) && !self.dead.contains(&osd)
    }
}

/// More failures that are survived whatever fails: 0 is one failure from loss, below 0 so many fragments too few are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub osds: i32,
    pub nodes: i32,
}

/// Objects that were put under one policy and have so many fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bucket {
    pub policy: Policy,
    pub fragments: usize,
}

/// What is known of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    pub objects: u64,
    pub bytes: u64,
    /// Of the worst object.
    pub standing: Standing,
    /// Objects of which fewer than k fragments are left.
    pub lost: u64,
}

/// The safety of one namespace's objects, by bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub buckets: BTreeMap<Bucket, Tally>,
}

impl Report {
    pub fn add(&mut self, manifest: &Manifest, world: &World) {
        let standing = standing(manifest, world);
        let bucket = Bucket { policy: manifest.policy, fragments: manifest.fragments.len() };
        let none = Tally { objects: 0, bytes: 0, standing, lost: 0 };
        let tally = self.buckets.entry(bucket).or_insert(none);
        tally.objects += 1;
        tally.bytes = tally.bytes.saturating_add(manifest.len);
        tally.standing.osds = tally.standing.osds.min(standing.osds);
        tally.standing.nodes = tally.standing.nodes.min(standing.nodes);
        tally.lost += u64::from(standing.osds < 0);
    }
}

/// What one object survives.
#[must_use]
pub fn standing(manifest: &Manifest, world: &World) -> Standing {
    let (mut of_osd, mut of_node) = (HashMap::new(), HashMap::new());
    for fragment in manifest.fragments.iter().filter(|f| world.is_alive(f.osd)) {
        *of_osd.entry(fragment.osd).or_insert(0) += 1;
        *of_node.entry(world.nodes.get(&fragment.osd)).or_insert(0) += 1;
    }
    let needed = manifest.policy.data();
    let osds = survived(of_osd.into_values().collect(), needed);
    Standing { osds, nodes: survived(of_node.into_values().collect(), needed) }
}

/// How many of these groups of fragments may go, the largest first, until fewer than `needed` are left.
fn survived(mut groups: Vec<usize>, needed: usize) -> i32 {
    let mut left: usize = groups.iter().sum();
    if left < needed {
        return -as_i32(needed - left);
    }
    groups.sort_unstable_by(|a, b| b.cmp(a));
    let goes = |group: &usize| {
        left -= group;
        left >= needed
    };
    as_i32(groups.iter().copied().take_while(goes).count())
}

/// Fragments are at most 48.
fn as_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erasure::Codec;
    use crate::manifest::Fragment;
    use crate::name::{FragmentId, ObjectId};
    use proptest::prelude::*;

    fn osd(n: u8) -> OsdId {
        OsdId([n; 16])
    }

    fn object(policy: &str, osds: &[u8]) -> Manifest {
        let policy: Policy = policy.parse().unwrap();
        let of = |(index, n): (usize, &u8)| Fragment {
            index: index as u8,
            osd: osd(*n),
            file: FragmentId([index as u8; 16]),
            crc: 0,
        };
        Manifest {
            id: ObjectId([1; 16]),
            len: 10,
            crc: 0,
            created_ms: 0,
            policy,
            codec: Codec::of(policy),
            unit: 65_536,
            fragments: osds.iter().enumerate().map(of).collect(),
        }
    }

    /// Three OSDs on each of four nodes: OSD 4 is the second of node 1.
    fn world(dead: &[u8]) -> World {
        let nodes = (0..12).map(|n| (osd(n), format!("n{}", n / 3))).collect();
        World { nodes, dead: dead.iter().map(|n| osd(*n)).collect() }
    }

    fn at(osds: i32, nodes: i32) -> Standing {
        Standing { osds, nodes }
    }

    #[test]
    fn what_is_survived_follows_from_where_the_fragments_lie() {
        let spread = object("5,4,8,3", &[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(standing(&spread, &world(&[])), at(4, 1));
        assert_eq!(standing(&spread, &world(&[0])), at(3, 1));
        // Two gone of one node: the next node takes three of seven, and four are too few.
        assert_eq!(standing(&spread, &world(&[0, 1])), at(2, 0));
        assert_eq!(standing(&spread, &world(&[0, 1, 3, 6])), at(0, 0));
        assert_eq!(standing(&spread, &world(&[0, 1, 2, 3, 4])), at(-1, -1));
        let gone: Vec<u8> = (0..12).collect();
        assert_eq!(standing(&spread, &world(&gone)), at(-5, -5));
        // Copies on two nodes, and two copies on one of them.
        assert_eq!(standing(&object("1,2,2,2", &[0, 1, 3]), &world(&[])), at(2, 1));
        assert_eq!(standing(&object("1,0,1,1", &[0]), &world(&[])), at(0, 0));
        assert_eq!(standing(&object("1,0,1,1", &[40]), &world(&[])), at(-1, -1));
        // Never placed so by us, and judged rightly all the same: two fragments on one OSD.
        assert_eq!(standing(&object("2,2,3,4", &[0, 0, 1, 3]), &world(&[])), at(1, 0));
    }

    #[test]
    fn the_worst_object_answers_for_its_bucket() {
        let mut report = Report::default();
        for osds in [[0, 3, 6, 9], [0, 1, 2, 3], [0, 1, 3, 4]] {
            report.add(&object("2,2,3,4", &osds), &world(&[1]));
        }
        report.add(&object("2,2,3,4", &[0, 1, 3]), &world(&[1]));
        report.add(&object("2,2,3,4", &[0, 1]), &world(&[1]));
        let policy: Policy = "2,2,3,4".parse().unwrap();
        let of = |fragments| report.buckets[&Bucket { policy, fragments }];
        assert_eq!(of(4), Tally { objects: 3, bytes: 30, standing: at(1, 0), lost: 0 });
        assert_eq!(of(3), Tally { objects: 1, bytes: 10, standing: at(0, 0), lost: 0 });
        assert_eq!(of(2), Tally { objects: 1, bytes: 10, standing: at(-1, -1), lost: 1 });
        assert_eq!(report.buckets.len(), 3);
    }

    /// Whether every choice of `count` of these leaves k fragments.
    fn survives_all(placed: &[u8], k: usize, group: impl Fn(u8) -> u8, count: usize) -> bool {
        (0u32..1 << 12)
            .filter(|set| set.count_ones() as usize == count)
            .all(|set| placed.iter().filter(|osd| set & (1 << group(**osd)) == 0).count() >= k)
    }

    proptest! {
        #[test]
        fn it_is_what_trying_all_failures_says(
            placed in proptest::collection::vec(0u8..12, 1..9),
            k in 1u8..5, dead in proptest::collection::hash_set(0u8..12, 0..4),
        ) {
            let policy = format!("{k},{},{k},9", 9 - k);
            let dead: Vec<u8> = dead.into_iter().collect();
            let found = standing(&object(&policy, &placed), &world(&dead));
            let left: Vec<u8> = placed.iter().copied().filter(|n| !dead.contains(n)).collect();
            let k = usize::from(k);
            if left.len() < k {
                prop_assert_eq!(found.osds, left.len() as i32 - k as i32);
                prop_assert_eq!(found.nodes, found.osds);
            } else {
                let most = |group: &dyn Fn(u8) -> u8| {
                    (0..=12).take_while(|n| survives_all(&left, k, group, *n)).last().unwrap() as i32
                };
                prop_assert_eq!(found.osds, most(&|osd| osd));
                prop_assert_eq!(found.nodes, most(&|osd| osd / 3));
            }
        }
    }
}
