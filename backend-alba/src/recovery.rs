//! Recovery: from what the files of fragments say of themselves to the manifests of a lost NSM. Pure.
//!
//! Files of one object id with the same layout and checksum are fragments of one object; with k different ones it is
//! complete. Of the complete objects of a name the newest counts. What cannot be told apart this way is reported: an object
//! that was deleted whose files were still there comes back, and so may one whose put never succeeded.

use std::collections::BTreeMap;

use crate::erasure::{Codec, Layout};
use crate::manifest::{Fragment, Manifest};
use crate::name::{FragmentId, ObjectId, OsdId};
use crate::trailer::Trailer;

/// What was found, by namespace and name.
#[derive(Debug, Default)]
pub struct Recovery {
    found: BTreeMap<(String, String), Vec<Life>>,
    files: u64,
    newest_epoch: u32,
}

/// The files of one object.
#[derive(Debug)]
struct Life {
    id: ObjectId,
    layout: Layout,
    crc: u32,
    created_ms: u64,
    /// In the order they were found; an index may be there twice.
    fragments: Vec<Fragment>,
}

/// What is to be done, and what a person should know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Objects by namespace and name.
    pub objects: Vec<(String, String, Manifest)>,
    /// Files looked at, and those of them that are in `objects`.
    pub files: u64,
    pub used_files: u64,
    /// Fewer than k fragments were found, of an object that has no complete one of its name.
    pub incomplete: Vec<Incomplete>,
    /// Names of which several complete objects were found; the newest counts.
    pub contested: Vec<Contested>,
    /// Names whose object has fewer than k + m fragments.
    pub lacking: Vec<(String, String)>,
    /// The latest GC epoch of all files.
    pub newest_epoch: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incomplete {
    pub namespace: String,
    pub name: String,
    pub found: usize,
    pub needed: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested {
    pub namespace: String,
    pub name: String,
    pub chosen: ObjectId,
    pub others: Vec<ObjectId>,
}

impl Recovery {
    /// A fragment's file on an OSD, and its trailer.
    pub fn add(&mut self, osd: OsdId, file: FragmentId, trailer: Trailer) {
        let Trailer { crc, created_ms, namespace, name, part, .. } = trailer;
        let fragment = Fragment { index: part.index, osd, file, crc };
        let lives = self.found.entry((namespace, name)).or_default();
        let same = |life: &&mut Life| {
            (life.id, life.layout, life.crc) == (part.object, part.layout, part.object_crc)
        };
        self.files += 1;
        self.newest_epoch = self.newest_epoch.max(file.epoch());
        match lives.iter_mut().find(same) {
            Some(life) => {
                life.created_ms = life.created_ms.min(created_ms);
                life.fragments.push(fragment);
            }
            None => lives.push(Life {
                id: part.object,
                layout: part.layout,
                crc: part.object_crc,
                created_ms,
                fragments: vec![fragment],
            }),
        }
    }

    #[must_use]
    pub fn decide(self) -> Outcome {
        let (files, newest_epoch) = (self.files, self.newest_epoch);
        let mut outcome = Outcome { files, newest_epoch, ..Outcome::default() };
        for ((namespace, name), lives) in self.found {
            outcome.decide(namespace, name, lives);
        }
        outcome
    }
}

impl Outcome {
    fn decide(&mut self, namespace: String, name: String, lives: Vec<Life>) {
        let mut whole = Vec::new();
        let mut best = (0, 0);
        for life in lives {
            let needed = life.layout.policy.data();
            match life.manifest() {
                Ok(manifest) => whole.push(manifest),
                Err(found) if best.1 == 0 || found > best.0 => best = (found, needed),
                Err(_) => {}
            }
        }
        // The newest; of those of one moment the one with most fragments, so that two runs decide alike.
        whole.sort_by_key(|m| (m.created_ms, m.fragments.len(), m.id));
        let Some(chosen) = whole.pop() else {
            let (found, needed) = best;
            self.incomplete.push(Incomplete { namespace, name, found, needed });
            return;
        };
        if !whole.is_empty() {
            let (namespace, name) = (namespace.clone(), name.clone());
            let others = whole.iter().map(|manifest| manifest.id).collect();
            self.contested.push(Contested { namespace, name, chosen: chosen.id, others });
        }
        if chosen.fragments.len() < chosen.policy.total() {
            self.lacking.push((namespace.clone(), name.clone()));
        }
        self.used_files += chosen.fragments.len() as u64;
        self.objects.push((namespace, name, chosen));
    }
}

impl Life {
    /// The number of different fragments when they are too few.
    fn manifest(self) -> Result<Manifest, usize> {
        let Self { id, layout, crc, created_ms, .. } = self;
        let policy = layout.policy;
        let fragments = self.one_of_each();
        if fragments.len() < policy.data() {
            return Err(fragments.len());
        }
        let (len, unit, codec) = (layout.len, layout.unit, Codec::of(policy));
        Ok(Manifest { id, len, crc, created_ms, policy, codec, unit, fragments })
    }

    /// By index. Of several with one index any will do if they say that they are alike, and none if they do not.
    fn one_of_each(&self) -> Vec<Fragment> {
        let mut by_index: BTreeMap<u8, Option<Fragment>> = BTreeMap::new();
        for fragment in &self.fragments {
            let is_wrong = self.layout.policy.is_copies() && fragment.crc != self.crc;
            if is_wrong {
                continue;
            }
            let slot = by_index.entry(fragment.index).or_insert(Some(*fragment));
            match slot {
                Some(other) if other.crc != fragment.crc => *slot = None,
                Some(other) if (fragment.osd, fragment.file) < (other.osd, other.file) => {
                    *slot = Some(*fragment);
                }
                Some(_) | None => {}
            }
        }
        by_index.into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trailer::Part;

    /// File `n` of an object.
    fn file(object: u8, index: u8, policy: &str, created_ms: u64) -> Trailer {
        let layout = Layout { len: 1000, policy: policy.parse().unwrap(), unit: 65_536 };
        let part = Part { object: ObjectId([object; 16]), layout, object_crc: 7, index };
        Trailer {
            id: FragmentId([0; 16]),
            len: layout.fragment_len(),
            crc: if layout.policy.is_copies() { 7 } else { index.into() },
            created_ms,
            namespace: "ns".into(),
            name: "x".into(),
            part,
            block_crcs: vec![],
        }
    }

    fn decide(files: &[Trailer]) -> Outcome {
        let mut recovery = Recovery::default();
        for (n, trailer) in files.iter().enumerate() {
            recovery.add(OsdId([n as u8; 16]), FragmentId([n as u8; 16]), trailer.clone());
        }
        recovery.decide()
    }

    #[test]
    fn k_fragments_make_an_object_and_fewer_do_not() {
        let of = |indexes: &[u8]| {
            decide(&indexes.iter().map(|i| file(1, *i, "2,2,3,4", 5)).collect::<Vec<_>>())
        };
        let whole = of(&[3, 0, 2, 1]);
        let (_, _, manifest) = &whole.objects[0];
        let indexes: Vec<u8> = manifest.fragments.iter().map(|f| f.index).collect();
        assert_eq!((indexes, manifest.created_ms), (vec![0, 1, 2, 3], 5));
        assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), *manifest);
        assert_eq!((whole.used_files, whole.lacking.len()), (4, 0));
        let two = of(&[3, 2]);
        assert_eq!((two.objects.len(), two.lacking.len()), (1, 1));
        for few in [&[3][..], &[3, 3, 3]] {
            let outcome = of(few);
            assert!(outcome.objects.is_empty());
            let (found, needed) = (outcome.incomplete[0].found, outcome.incomplete[0].needed);
            assert_eq!((found, needed), (1, 2));
        }
    }

    #[test]
    fn the_newest_complete_object_of_a_name_counts() {
        let old = [file(1, 0, "1,1,1,2", 5), file(1, 1, "1,1,1,2", 5)];
        let new = file(2, 0, "1,1,1,2", 6);
        let half = file(3, 0, "2,1,3,2", 9);
        let outcome = decide(&[old[0].clone(), new, old[1].clone(), half]);
        assert_eq!(outcome.objects[0].2.id, ObjectId([2; 16]));
        let contested = &outcome.contested[0];
        assert_eq!(
            (contested.chosen, &contested.others[..]),
            (ObjectId([2; 16]), &[ObjectId([1; 16])][..])
        );
        assert!(outcome.incomplete.is_empty(), "there is a complete one of this name");
        assert_eq!((outcome.files, outcome.used_files), (4, 1));
    }

    #[test]
    fn fragments_that_disagree_are_not_used() {
        let policy = "2,2,3,4";
        let (good, twice) = ([0, 1, 2].map(|i| file(1, i, policy, 5)), file(1, 1, policy, 5));
        let wrong = Trailer { crc: 99, ..file(1, 2, policy, 5) };
        let mut files = good.to_vec();
        files.extend([twice, wrong]);
        let outcome = decide(&files);
        let indexes: Vec<u8> = outcome.objects[0].2.fragments.iter().map(|f| f.index).collect();
        assert_eq!(indexes, [0, 1]);
        let copy = Trailer { crc: 8, ..file(1, 0, "1,1,1,2", 5) };
        assert!(decide(&[copy]).objects.is_empty(), "a copy that is not the object");
        let mut other = file(1, 1, policy, 5);
        other.part.object_crc = 8;
        assert!(decide(&[file(1, 0, policy, 5), other]).objects.is_empty(), "not of one object");
    }

    proptest! {
        /// What is put and loses any m of its files is the same again, in whatever order they are found.
        #[test]
        fn any_k_files_in_any_order_are_the_object(
            lost in proptest::collection::btree_set(0u8..6, 0..3),
            shuffle in Just((0u8..6).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let kept: Vec<Trailer> = shuffle.iter().filter(|i| !lost.contains(i))
                .map(|i| file(1, *i, "4,2,5,3", 5)).collect();
            let outcome = decide(&kept);
            let (namespace, name, manifest) = &outcome.objects[0];
            prop_assert_eq!((namespace.as_str(), name.as_str()), ("ns", "x"));
            prop_assert_eq!((manifest.len, manifest.crc, manifest.fragments.len()), (1000, 7, 6 - lost.len()));
            prop_assert!(Manifest::decode(&manifest.encode()).is_ok());
        }
    }
}
