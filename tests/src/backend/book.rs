//! The model: what was put under which name, and the history of every group of names.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::history::{self, Effect, MOST, Op, Verdict};
use super::values::{Value, ValueId};
use super::world::locked;

/// A name: its namespace, its group there, its place in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    pub space: usize,
    pub group: usize,
    pub at: usize,
}

impl Name {
    #[must_use]
    pub fn object(self) -> String {
        format!("g{}.{}", self.group, self.at)
    }
    #[must_use]
    pub fn space_name(self) -> String {
        space_name(self.space)
    }
    /// What the names of its group begin with.
    #[must_use]
    pub fn prefix(self) -> String {
        format!("g{}.", self.group)
    }
}

#[must_use]
pub fn space_name(space: usize) -> String {
    format!("ns{space}")
}

#[derive(Clone, Default)]
pub struct Book(Arc<Mutex<Pages>>);

#[derive(Default)]
struct Pages {
    clock: u64,
    values: Vec<Value>,
    of_name: BTreeMap<Name, Vec<ValueId>>,
    groups: BTreeMap<(usize, usize), Vec<Option<Op>>>,
    spaces: BTreeMap<usize, Vec<Option<Op>>>,
}

/// Where an operation is written down.
#[derive(Clone, Copy, Debug)]
enum Page {
    Group(usize, usize),
    Space(usize),
}

/// An operation that has been called.
#[must_use]
pub struct Called {
    book: Book,
    page: Page,
    called: u64,
    /// Its place, when it is noted from its call on.
    at: Option<usize>,
}

impl Book {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        locked(&self.0)
    }

    pub fn new_value(&self, name: Name, len: u64) -> Value {
        let mut pages = self.pages();
        let id = ValueId(pages.values.len() as u32 + 1);
        let value = Value { id, len };
        pages.values.push(value);
        pages.of_name.entry(name).or_default().push(id);
        value
    }

    /// All that anyone ever began to put there.
    #[must_use]
    pub fn values_of(&self, name: Name) -> Vec<Value> {
        let pages = self.pages();
        let ids = pages.of_name.get(&name).cloned().unwrap_or_default();
        ids.iter().map(|id| pages.values[id.0 as usize - 1]).collect()
    }

    /// Looks only: nothing is noted unless it returns.
    pub fn look(&self, name: Name) -> Called {
        self.call(Page::Group(name.space, name.group), None)
    }
    /// May have this effect, also if it never returns.
    pub fn change(&self, name: Name, effect: Effect) -> Called {
        self.call(Page::Group(name.space, name.group), Some(effect))
    }
    /// The same of a namespace.
    pub fn change_space(&self, space: usize, effect: Effect) -> Called {
        self.call(Page::Space(space), Some(effect))
    }

    fn call(&self, page: Page, effect: Option<Effect>) -> Called {
        let mut pages = self.pages();
        let called = pages.tick();
        let at = effect.map(|effect| {
            let ops = pages.ops(page);
            ops.push(Some(Op { called, returned: None, effect }));
            ops.len() - 1
        });
        Called { book: self.clone(), page, called, at }
    }

    /// Whether a group can have more operations.
    #[must_use]
    pub fn has_room(&self, name: Name) -> bool {
        let mut pages = self.pages();
        let of_space = pages.ops(Page::Space(name.space)).len();
        pages.ops(Page::Group(name.space, name.group)).len() + of_space + 16 < MOST
    }
    #[must_use]
    pub fn space_has_room(&self, space: usize) -> bool {
        self.pages().ops(Page::Space(space)).len() < 12
    }

    /// Names that were ever put.
    #[must_use]
    pub fn names(&self) -> Vec<Name> {
        self.pages().of_name.keys().copied().collect()
    }

    /// Groups that no order explains, told in full, and the number of undecided ones.
    #[must_use]
    pub fn check(&self) -> (Vec<String>, u64) {
        let pages = self.pages();
        let (mut found, mut undecided) = (Vec::new(), 0);
        for ((space, group), ops) in &pages.groups {
            let of_space = pages.spaces.get(space).into_iter().flatten();
            let mut all: Vec<Op> = ops.iter().chain(of_space).flatten().cloned().collect();
            all.sort_by_key(|op| op.called);
            match history::check(&all) {
                Verdict::Explained => {}
                Verdict::Undecided => undecided += 1,
                Verdict::Unexplained => {
                    found.push(format!("no order explains ns{space} g{group}:{}", told(&all)));
                }
            }
        }
        (found, undecided)
    }
}

impl Pages {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
    fn ops(&mut self, page: Page) -> &mut Vec<Option<Op>> {
        match page {
            Page::Group(space, group) => self.groups.entry((space, group)).or_default(),
            Page::Space(space) => self.spaces.entry(space).or_default(),
        }
    }
}

impl Called {
    /// It returned, and this is what it was.
    pub fn returned(self, effect: Effect) {
        self.returned_all(vec![effect]);
    }

    /// It was several independent ones.
    pub fn returned_all(self, effects: Vec<Effect>) {
        let mut pages = self.book.pages();
        let (called, returned) = (self.called, Some(pages.tick()));
        let ops = pages.ops(self.page);
        if let Some(at) = self.at {
            ops[at] = None;
        }
        ops.extend(effects.into_iter().map(|effect| Some(Op { called, returned, effect })));
    }

    /// It certainly had no effect and told nothing.
    pub fn forget(self) {
        self.returned_all(Vec::new());
    }

    /// Nobody knows: it stays as it was called.
    pub fn unknown(self) {}
}

fn told(ops: &[Op]) -> String {
    let line = |op: &Op| {
        let returned = op.returned.map_or("?".into(), |at| at.to_string());
        format!("\n      {:>4}..{returned:<4} {:?}", op.called, op.effect)
    };
    ops.iter().map(line).collect()
}
