//! Several NSMs on one table, interleaved at every call of the table, which fails now and then before or after it did what
//! was asked: what they answer must be explained by some order of the operations against a `BTreeMap`, and what is left must
//! fit together.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use async_trait::async_trait;
use proptest::prelude::*;

use super::super::kv::{Key, Value};
use super::*;
use crate::fault::Fault;

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Op {
    Get(usize),
    Put(usize),
    Delete(usize),
    /// Moves the fragment of the object of this name that was seen last.
    Move(usize),
    /// Asserts, and which names are put (or deleted).
    Apply(Vec<(usize, bool)>, Vec<(usize, bool)>),
}

/// What an operation came to. `None` when nobody knows.
type Answer = Option<Seen>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// The object that is there.
    Object(Option<u8>),
    Done(bool),
}

/// One operation as it was seen from outside: when it began and ended, with the objects it puts.
#[derive(Clone, Debug)]
struct Event {
    op: Op,
    /// Ids of the objects it puts, from this one on.
    id: u8,
    began: u64,
    ended: u64,
    answer: Answer,
}

/// A table that lets others go first, and fails.
#[derive(Debug)]
struct Rough {
    inner: Memory,
    dice: Dice,
    is_calm: AtomicBool,
    fails: AtomicBool,
}

#[derive(Debug)]
struct Dice(Mutex<u64>);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 20) % sides
    }
    async fn wait(&self) {
        for _ in 0..self.roll(4) {
            tokio::task::yield_now().await;
        }
    }
}

impl Rough {
    fn new(seed: u64) -> Self {
        let (dice, fails) = (Dice(Mutex::new(seed | 1)), AtomicBool::new(false));
        Self { inner: Memory::default(), dice, is_calm: AtomicBool::new(true), fails }
    }
    async fn wait(&self) {
        if !self.is_calm.load(Ordering::SeqCst) {
            self.dice.wait().await;
        }
    }
    fn fail(&self) -> Result<()> {
        if self.fails.load(Ordering::SeqCst) && self.dice.roll(8) == 0 {
            return Err(Fault::unavailable("the dice say so"));
        }
        Ok(())
    }
}

#[async_trait]
impl Kv for Rough {
    fn place(&self) -> String {
        "rough".into()
    }
    fn is_shared(&self) -> bool {
        true
    }
    fn writes_at_once(&self) -> usize {
        4
    }
    async fn get(&self, keys: Vec<Key>) -> Result<Vec<Option<Value>>> {
        self.wait().await;
        self.fail()?;
        let found = self.inner.get(keys).await;
        self.wait().await;
        found
    }
    async fn range(&self, from: Key, to: Key, limit: usize) -> Result<Vec<(Key, Value)>> {
        self.wait().await;
        self.fail()?;
        self.inner.range(from, to, limit).await
    }
    async fn commit(&self, commit: Commit) -> Result<bool> {
        self.wait().await;
        self.fail()?;
        let outcome = self.inner.commit(commit).await;
        self.wait().await;
        self.fail()?;
        outcome
    }
}

async fn carry_out(nsm: &Nsm, op: &Op, id: u8, seen: &mut Option<Manifest>) -> Result<Seen> {
    Ok(match op {
        Op::Get(name) => {
            let found = nsm.get("ns", NAMES[*name]).await?;
            let answer = Seen::Object(found.as_ref().map(|m| m.id.0[0]));
            *seen = found.or(seen.take());
            answer
        }
        Op::Put(name) => {
            let put = nsm.put_if_absent("ns", NAMES[*name], &manifest(id)).await?;
            Seen::Done(put == Put::Created)
        }
        Op::Delete(name) => Seen::Done(nsm.delete("ns", NAMES[*name]).await?.is_some()),
        Op::Move(name) => match seen {
            Some(known) => {
                let moves = [(known.fragments.first().copied(), Some(fragment(0, id)))];
                let name = NAMES[*name];
                // Whether it is done depends on where the fragment lies, which the model does not know.
                nsm.move_fragments(("ns", name), known.id, &moves, &|_, _| true).await?;
                return Err(Fault::unavailable("not modelled"));
            }
            None => return Err(Fault::unavailable("nothing to move")),
        },
        Op::Apply(asserts, changes) => {
            let condition = |(name, exists): &(usize, bool)| {
                let condition = if *exists { Condition::Exists } else { Condition::Absent };
                (NAMES[*name].to_string(), condition)
            };
            let change = |(n, (name, puts)): (usize, &(usize, bool))| {
                let put = Change::Put(manifest(id + n as u8));
                (NAMES[*name].to_string(), if *puts { put } else { Change::Delete })
            };
            let asserts: Vec<_> = asserts.iter().map(condition).collect();
            let changes: Vec<_> = changes.iter().enumerate().map(change).collect();
            match nsm.apply("ns", &asserts, &changes).await {
                Ok(_) => Seen::Done(true),
                Err(fault) if fault.kind == Kind::AssertFailed => Seen::Done(false),
                Err(fault) => return Err(fault),
            }
        }
    })
}

type Model = BTreeMap<usize, u8>;

/// What the operation does to the model, and what it would answer.
fn act(model: &Model, event: &Event) -> (Model, Seen) {
    let mut after = model.clone();
    let seen = match &event.op {
        Op::Get(name) => Seen::Object(model.get(name).copied()),
        Op::Put(name) => {
            let is_free = !model.contains_key(name);
            after.entry(*name).or_insert(event.id);
            Seen::Done(is_free)
        }
        Op::Delete(name) => Seen::Done(after.remove(name).is_some()),
        // Changes where an object is, not which one is there.
        Op::Move(_) => Seen::Done(true),
        Op::Apply(asserts, changes) => {
            let holds = asserts.iter().all(|(name, exists)| model.contains_key(name) == *exists);
            for (n, (name, puts)) in changes.iter().enumerate().filter(|_| holds) {
                match puts {
                    true => after.insert(*name, event.id + n as u8),
                    false => after.remove(name),
                };
            }
            Seen::Done(holds)
        }
    };
    (after, seen)
}

/// Some order of the events in which each comes after those that had ended before it began explains every answer, and ends
/// with what is there. What nobody knows the outcome of may have happened or not.
fn is_explained(
    events: &[Event],
    done: u32,
    model: &Model,
    end: &Model,
    tried: &mut Tried,
) -> bool {
    let is_open = |n: usize| done & (1 << n) == 0;
    let known = |n: &usize| events[*n].answer.is_some();
    if (0..events.len()).filter(known).all(|n| !is_open(n)) && model == end {
        return true;
    }
    if !tried.insert((done, model.clone())) {
        return false;
    }
    let earliest = (0..events.len()).filter(|n| is_open(*n) && known(n));
    let earliest = earliest.map(|n| events[n].ended).min().unwrap_or(u64::MAX);
    (0..events.len()).filter(|n| is_open(*n) && events[*n].began <= earliest).any(|n| {
        let (after, seen) = act(model, &events[n]);
        let fits = events[n].answer.as_ref().is_none_or(|answer| *answer == seen);
        fits && is_explained(events, done | 1 << n, &after, end, tried)
    })
}

type Tried = HashSet<(u32, Model)>;

async fn history(plans: Vec<Vec<Op>>, seed: u64, fails: bool) -> (Vec<Event>, Nsm) {
    let table = Arc::new(Rough::new(seed));
    let calm = over(vec![table.clone()]).await;
    calm.create_namespace("ns", None).await.unwrap();
    let mut instances = Vec::new();
    for _ in &plans {
        instances.push(Nsm::open(vec![table.clone()], Outside::default()).await.unwrap());
    }
    table.is_calm.store(false, Ordering::SeqCst);
    table.fails.store(fails, Ordering::SeqCst);
    let clock = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for ((n, plan), nsm) in plans.into_iter().enumerate().zip(instances) {
        let clock = clock.clone();
        tasks.push(tokio::spawn(async move {
            let (mut events, mut seen) = (Vec::new(), None);
            for (k, op) in plan.into_iter().enumerate() {
                let id = (n * 64 + k * 4 + 1) as u8;
                let began = clock.fetch_add(1, Ordering::SeqCst);
                let answer = carry_out(&nsm, &op, id, &mut seen).await.ok();
                let ended = clock.fetch_add(1, Ordering::SeqCst);
                events.push(Event { op, id, began, ended, answer });
            }
            events
        }));
    }
    let mut events = Vec::new();
    for task in tasks {
        events.extend(task.await.unwrap());
    }
    table.is_calm.store(true, Ordering::SeqCst);
    table.fails.store(false, Ordering::SeqCst);
    (events, calm)
}

/// What the manifests say and what the other keys say is the same.
async fn fits_together(nsm: &Nsm) -> Model {
    let mut model = Model::new();
    let mut fragments = BTreeSet::new();
    for (n, name) in NAMES.iter().enumerate() {
        if let Some(found) = nsm.get("ns", name).await.unwrap() {
            model.insert(n, found.id.0[0]);
            fragments.extend(found.fragments.iter().map(|f| f.file));
        }
    }
    let live = nsm.all(0, b"f").await.unwrap().into_iter().map(|(key, _)| {
        let (_, file) = key.split_at(16);
        FragmentId(file.try_into().unwrap())
    });
    assert_eq!(live.collect::<BTreeSet<_>>(), fragments);
    for file in noted(nsm).await {
        assert!(!fragments.contains(&file), "a live file is to be removed");
    }
    let totals = nsm.totals().await.unwrap();
    assert_eq!(
        (totals.objects, totals.object_bytes),
        (model.len() as u64, 100 * model.len() as u64)
    );
    model
}

fn ops() -> impl Strategy<Value = Op> {
    let name = || 0..NAMES.len();
    let parts = || proptest::collection::btree_map(name(), any::<bool>(), 0..3);
    prop_oneof![
        name().prop_map(Op::Get),
        name().prop_map(Op::Put),
        name().prop_map(Op::Delete),
        name().prop_map(Op::Move),
        (parts(), parts())
            .prop_map(|(a, c)| Op::Apply(a.into_iter().collect(), c.into_iter().collect())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn some_order_explains_what_was_answered(
        plans in proptest::collection::vec(proptest::collection::vec(ops(), 1..6), 1..4),
        seed: u64,
        fails: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let (events, end) = runtime.block_on(async {
            let (events, nsm) = history(plans, seed, fails).await;
            (events, fits_together(&nsm).await)
        });
        let explained = is_explained(&events, 0, &Model::new(), &end, &mut Tried::new());
        prop_assert!(explained, "{events:#?} end with {end:?}");
    }
}

#[test]
fn a_wrong_answer_is_not_explained() {
    let event =
        |op, id, began, answer| Event { op, id, began, ended: began + 1, answer: Some(answer) };
    let put = event(Op::Put(0), 1, 0, Seen::Done(true));
    let is = |events: &[Event], end: &[(usize, u8)]| {
        let end = end.iter().copied().collect();
        is_explained(events, 0, &Model::new(), &end, &mut Tried::new())
    };
    assert!(is(std::slice::from_ref(&put), &[(0, 1)]));
    assert!(!is(std::slice::from_ref(&put), &[]), "acknowledged and lost");
    assert!(is(&[Event { answer: None, ..put.clone() }], &[]));
    let twice = event(Op::Put(0), 5, 2, Seen::Done(true));
    assert!(!is(&[put.clone(), twice], &[(0, 5)]), "created twice");
    let late = event(Op::Get(0), 0, 2, Seen::Object(None));
    assert!(!is(&[put.clone(), late.clone()], &[(0, 1)]), "not seen after it was acknowledged");
    assert!(is(&[Event { ended: 9, ..put }, Event { began: 1, ..late }], &[(0, 1)]));
}
