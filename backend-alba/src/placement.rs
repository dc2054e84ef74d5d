//! Placement: which OSDs take the fragments of an object. Pure: health, room and randomness are arguments.
//!
//! Nodes are failure domains: no node takes more than x fragments, and fragments spread over the nodes before any of them
//! takes a second one. Among the OSDs of the same standing a weight decides: room times health, so a full or slow OSD gets
//! less, not nothing.

use std::collections::HashMap;

use crate::name::OsdId;
use crate::preset::Policy;

/// An OSD that can take a fragment now.
#[derive(Clone, Debug)]
pub struct Candidate {
    pub osd: OsdId,
    pub node: String,
    /// Above 0. An OSD of twice the weight is chosen about twice as often.
    pub weight: f64,
}

/// What a put does: each fragment, by its index, on another OSD.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct Choice {
    pub policy: Policy,
    /// Between c and k + m.
    pub osds: Vec<OsdId>,
}

/// The first policy these candidates satisfy, and the OSDs to use. `None` when they satisfy none: see [`Policy::least`]
/// for what is missing. `random` gives numbers from 0 to 1.
pub fn choose(
    policies: impl IntoIterator<Item = Policy>,
    candidates: &[Candidate],
    mut random: impl FnMut() -> f64,
) -> Option<Choice> {
    let policy =
        policies.into_iter().find(|policy| places(*policy, candidates) >= policy.least())?;
    let osds = extend(policy, &[], candidates, policy.total(), &mut random);
    Some(Choice { policy, osds })
}

/// How many fragments of an object the candidates can take under this policy.
#[must_use]
pub fn places(policy: Policy, candidates: &[Candidate]) -> usize {
    let mut of_node: HashMap<&str, usize> = HashMap::new();
    for candidate in candidates {
        *of_node.entry(&candidate.node).or_default() += 1;
    }
    let sum: usize = of_node.values().map(|count| (*count).min(policy.per_node())).sum();
    sum.min(policy.total())
}

/// Up to `count` more OSDs for an object whose other fragments lie on OSDs of the nodes `taken`, one entry per fragment.
/// The candidates must not hold a fragment of the object.
pub fn extend(
    policy: Policy,
    taken: &[String],
    candidates: &[Candidate],
    count: usize,
    mut random: impl FnMut() -> f64,
) -> Vec<OsdId> {
    let mut of_node: HashMap<&str, usize> = HashMap::new();
    for node in taken {
        *of_node.entry(node).or_default() += 1;
    }
    // Smallest first is a draw without replacement by weight (Efraimidis and Spirakis 2006).
    let mut draw = |c: &Candidate| -random().max(f64::MIN_POSITIVE).ln() / c.weight;
    let mut drawn: Vec<(f64, &Candidate)> = candidates.iter().map(|c| (draw(c), c)).collect();
    drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut chosen = Vec::new();
    for level in 1..=policy.per_node() {
        drawn.retain(|(_, candidate)| {
            let held = of_node.entry(&candidate.node).or_default();
            if chosen.len() == count || *held >= level {
                return true;
            }
            *held += 1;
            chosen.push(candidate.osd);
            false
        });
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidates(nodes: &[usize]) -> Vec<Candidate> {
        let of = |(node, count): (usize, &usize)| {
            (0..*count).map(move |n| Candidate {
                osd: OsdId([(node * 16 + n) as u8; 16]),
                node: format!("n{node}"),
                weight: 1.0,
            })
        };
        nodes.iter().enumerate().flat_map(of).collect()
    }

    fn policies(list: &[&str]) -> Vec<Policy> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn sequence(seed: u64) -> impl FnMut() -> f64 {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64
        }
    }

    #[test]
    fn the_first_satisfiable_policy_wins() {
        let list = policies(&["5,4,8,3", "2,2,3,4", "1,1,2,1"]);
        let chosen = |nodes: &[usize]| {
            let choice = choose(list.clone(), &candidates(nodes), sequence(1))?;
            Some((choice.policy.to_string(), choice.osds.len()))
        };
        let is = |text: &str, count| Some((text.to_string(), count));
        assert_eq!(chosen(&[3, 3, 3]), is("(5,4,8,3)", 9));
        assert_eq!(chosen(&[3, 3, 2]), is("(5,4,8,3)", 8));
        assert_eq!(chosen(&[4, 3, 1]), is("(2,2,3,4)", 4));
        assert_eq!(chosen(&[8]), is("(2,2,3,4)", 4));
        assert_eq!(chosen(&[3]), is("(2,2,3,4)", 3));
        assert_eq!(chosen(&[1, 1]), is("(1,1,2,1)", 2));
        assert_eq!(chosen(&[2]), None);
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn fragments_spread_over_nodes_first() {
        let list = policies(&["4,2,6,3"]);
        for seed in 0..50 {
            let choice = choose(list.clone(), &candidates(&[5, 5, 5]), sequence(seed)).unwrap();
            for node in 0..3 {
                let held = choice.osds.iter().filter(|osd| usize::from(osd.0[0]) / 16 == node);
                assert_eq!(held.count(), 2);
            }
        }
    }

    #[test]
    fn emptier_and_healthier_take_more_and_none_takes_nothing() {
        let mut all = candidates(&[4]);
        all[0].weight = 8.0;
        all[3].weight = 0.25;
        let mut random = sequence(7);
        let mut counts = [0; 4];
        for _ in 0..4000 {
            let choice = choose(policies(&["1,0,1,1"]), &all, &mut random).unwrap();
            counts[usize::from(choice.osds[0].0[0])] += 1;
        }
        // Weights 8, 1, 1, 0.25 of 10.25.
        assert!((2900..3350).contains(&counts[0]), "{counts:?}");
        assert!((40..180).contains(&counts[3]), "{counts:?}");
    }

    proptest! {
        #[test]
        fn no_node_takes_more_than_x_and_no_osd_twice(
            nodes in proptest::collection::vec(0usize..6, 0..6),
            (data, parity) in (1u8..6, 0u8..5), more in 0u8..5, per_node in 1u8..6, seed: u64,
        ) {
            let total = data + parity;
            let policy = Policy::new(data, parity, (data + more).min(total), per_node.min(total)).unwrap();
            let all = candidates(&nodes);
            let possible = places(policy, &all);
            match choose([policy], &all, sequence(seed)) {
                None => prop_assert!(possible < policy.least()),
                Some(choice) => {
                    prop_assert_eq!(choice.osds.len(), possible);
                    let mut of_node = HashMap::new();
                    let mut seen = std::collections::HashSet::new();
                    for osd in &choice.osds {
                        *of_node.entry(osd.0[0] / 16).or_insert(0usize) += 1;
                        prop_assert!(seen.insert(*osd));
                    }
                    prop_assert!(of_node.values().all(|count| *count <= policy.per_node()));
                }
            }
        }

        #[test]
        fn what_is_added_keeps_to_x_too(taken in proptest::collection::vec(0usize..3, 0..4), count in 0usize..6, seed: u64) {
            let policy: Policy = "3,3,4,2".parse().unwrap();
            let taken: Vec<String> = taken.iter().map(|n| format!("n{n}")).collect();
            let added = extend(policy, &taken, &candidates(&[3, 3, 3]), count, sequence(seed));
            let room: usize = (0..3)
                .map(|n| 2usize.saturating_sub(taken.iter().filter(|t| **t == format!("n{n}")).count()))
                .sum();
            prop_assert_eq!(added.len(), count.min(room));
            for n in 0..3usize {
                let here = added.iter().filter(|osd| usize::from(osd.0[0]) / 16 == n).count();
                let before = taken.iter().filter(|t| **t == format!("n{n}")).count();
                prop_assert!(here == 0 || here + before <= 2);
            }
        }
    }
}
