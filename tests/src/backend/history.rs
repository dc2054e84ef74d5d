//! What clients did and saw, and whether some order of it explains all.
//!
//! Names come in groups of a few; a sequence stays within one. Each group's operations, with those on its namespace, are
//! checked for linearizability: every operation takes effect at one moment between its call and its return, one whose
//! outcome is unknown at any moment after its call, or never (Wing and Gong 1993, with the memory of states of Lowe 2017).
//! Time is a counter of calls and returns.

use std::collections::HashSet;

use super::values::ValueId;

/// Names in a group.
pub const NAMES: usize = 3;
/// Operations of one group that can be checked.
pub const MOST: usize = 120;
/// States looked at before a group is given up as undecided.
const EFFORT: usize = 300_000;

/// What a group holds: whether its namespace is there, and the value of each name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    pub lives: bool,
    pub values: [Option<ValueId>; NAMES],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Exists,
    Absent,
    /// One of these values, which are alike in what is compared.
    Is(Vec<ValueId>),
}

/// What an operation was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A put that found the name free.
    Created(usize, ValueId),
    /// A put that found it taken.
    Exists(usize),
    /// Refused because there is no such namespace.
    NoNamespace,
    /// One of these was there; `None` for nothing.
    Read(usize, Vec<Option<ValueId>>),
    Listed(usize, bool),
    Deleted(usize),
    NothingToDelete(usize),
    Applied(Vec<(usize, Condition)>, Vec<(usize, Option<ValueId>)>),
    /// An assert did not hold.
    Refused(Vec<(usize, Condition)>),
    Began,
    WasThere,
    Ended,
    WasNotThere,
}

/// From call to return; without return, its outcome is unknown and this is what it may have done.
#[derive(Clone, Debug)]
pub struct Op {
    pub called: u64,
    pub returned: Option<u64>,
    pub effect: Effect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Explained,
    Unexplained,
    Undecided,
}

impl Effect {
    /// It changes nothing, whatever there is.
    fn only_looks(&self) -> bool {
        match self {
            Self::Exists(_)
            | Self::NoNamespace
            | Self::Read(..)
            | Self::Listed(..)
            | Self::NothingToDelete(_)
            | Self::Refused(_)
            | Self::WasThere
            | Self::WasNotThere => true,
            Self::Created(..)
            | Self::Deleted(_)
            | Self::Applied(..)
            | Self::Began
            | Self::Ended => false,
        }
    }
}

impl State {
    /// The state after it; `None` when it cannot happen now.
    #[must_use]
    pub fn after(self, effect: &Effect) -> Option<Self> {
        let mut next = self;
        let can = match effect {
            Effect::Created(name, value) => {
                next.values[*name] = Some(*value);
                self.lives && self.values[*name].is_none()
            }
            Effect::Exists(name) => self.lives && self.values[*name].is_some(),
            Effect::NoNamespace => !self.lives,
            Effect::Read(name, seen) => seen.contains(&self.values[*name]),
            Effect::Listed(name, is_there) => self.values[*name].is_some() == *is_there,
            Effect::Deleted(name) => next.values[*name].take().is_some(),
            Effect::NothingToDelete(name) => self.values[*name].is_none(),
            Effect::Applied(asserts, updates) => {
                updates.iter().for_each(|(name, value)| next.values[*name] = *value);
                self.lives && self.holds(asserts)
            }
            Effect::Refused(asserts) => self.lives && !self.holds(asserts),
            Effect::Began => {
                next = Self { lives: true, ..Self::default() };
                !self.lives
            }
            Effect::WasThere => self.lives,
            Effect::Ended => {
                next = Self::default();
                self.lives
            }
            Effect::WasNotThere => !self.lives,
        };
        can.then_some(next)
    }

    fn holds(self, asserts: &[(usize, Condition)]) -> bool {
        asserts.iter().all(|(name, condition)| match (condition, self.values[*name]) {
            (Condition::Exists, found) => found.is_some(),
            (Condition::Absent, found) => found.is_none(),
            (Condition::Is(values), found) => found.is_some_and(|found| values.contains(&found)),
        })
    }
}

/// Whether some order explains these operations of one group.
#[must_use]
pub fn check(ops: &[Op]) -> Verdict {
    if ops.len() > 128 {
        return Verdict::Undecided;
    }
    let mut search = Search { ops, seen: HashSet::new() };
    match search.from(0, State::default()) {
        true => Verdict::Explained,
        false if search.seen.len() >= EFFORT => Verdict::Undecided,
        false => Verdict::Unexplained,
    }
}

struct Search<'a> {
    ops: &'a [Op],
    seen: HashSet<(u128, State)>,
}

impl Search<'_> {
    /// Whether the operations that are not done yet can follow this state.
    fn from(&mut self, mut done: u128, state: State) -> bool {
        // What only looks may as well happen as soon as it can.
        loop {
            let fits = |n: &usize| {
                let effect = &self.ops[*n].effect;
                effect.only_looks() && state.after(effect).is_some()
            };
            let next = self.next_of(done).find(fits);
            match next {
                Some(n) => done |= 1 << n,
                None => break,
            }
        }
        let is_left = |(n, op): (usize, &Op)| done & (1 << n) == 0 && op.returned.is_some();
        if !self.ops.iter().enumerate().any(is_left) {
            return true;
        }
        if self.seen.len() >= EFFORT || !self.seen.insert((done, state)) {
            return false;
        }
        let next: Vec<usize> = self.next_of(done).collect();
        // Those that have returned first: the others need not have happened.
        let (known, unknown): (Vec<usize>, Vec<usize>) =
            next.into_iter().partition(|n| self.ops[*n].returned.is_some());
        known.into_iter().chain(unknown).any(|n| {
            let after = state.after(&self.ops[n].effect);
            after.is_some_and(|after| self.from(done | 1 << n, after))
        })
    }

    /// Operations that may be the next: called before any other that is left has returned.
    fn next_of(&self, done: u128) -> impl Iterator<Item = usize> + use<'_> {
        let left = move |n: &usize| done & (1 << n) == 0;
        let returns = (0..self.ops.len()).filter(left).filter_map(|n| self.ops[n].returned);
        let first = returns.min().unwrap_or(u64::MAX);
        (0..self.ops.len()).filter(left).filter(move |n| self.ops[*n].called < first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(called: u64, returned: u64, effect: Effect) -> Op {
        Op { called, returned: Some(returned), effect }
    }
    fn unknown(called: u64, effect: Effect) -> Op {
        Op { called, returned: None, effect }
    }
    fn value(n: u32) -> ValueId {
        ValueId(n)
    }
    fn read(name: usize, seen: Option<u32>) -> Effect {
        Effect::Read(name, vec![seen.map(ValueId)])
    }
    fn judge(mut ops: Vec<Op>) -> Verdict {
        ops.insert(0, op(0, 1, Effect::Began));
        check(&ops)
    }

    #[test]
    fn one_put_of_two_wins() {
        let race = |second| {
            vec![
                op(2, 5, Effect::Created(0, value(1))),
                op(3, 4, second),
                op(6, 7, read(0, Some(1))),
            ]
        };
        assert_eq!(judge(race(Effect::Exists(0))), Verdict::Explained);
        assert_eq!(judge(race(Effect::Created(0, value(2)))), Verdict::Unexplained);
    }

    #[test]
    fn what_was_acknowledged_is_read_from_then_on() {
        let put = op(2, 3, Effect::Created(0, value(1)));
        assert_eq!(judge(vec![put.clone(), op(4, 5, read(0, None))]), Verdict::Unexplained);
        let both = vec![put, op(4, 8, Effect::Deleted(0)), op(5, 6, read(0, None))];
        assert_eq!(judge(both), Verdict::Explained);
    }

    #[test]
    fn what_is_unknown_may_come_later_but_not_twice() {
        let put = unknown(2, Effect::Created(0, value(1)));
        let late = vec![put.clone(), op(3, 4, read(0, None)), op(5, 6, read(0, Some(1)))];
        assert_eq!(judge(late.clone()), Verdict::Explained);
        let mut gone = late;
        gone.push(op(7, 8, read(0, None)));
        assert_eq!(judge(gone.clone()), Verdict::Unexplained);
        gone.insert(3, op(6, 7, Effect::Deleted(0)));
        gone.push(op(9, 10, read(0, Some(1))));
        assert_eq!(judge(gone), Verdict::Unexplained);
    }

    #[test]
    fn sequences_are_whole() {
        let updates = vec![(0, Some(value(1))), (1, Some(value(2)))];
        let applied = unknown(2, Effect::Applied(vec![(0, Condition::Absent)], updates));
        let half = vec![applied, op(3, 4, read(0, Some(1))), op(5, 6, read(1, None))];
        assert_eq!(judge(half), Verdict::Unexplained);
        let refused = vec![op(2, 3, Effect::Refused(vec![(0, Condition::Exists)]))];
        assert_eq!(judge(refused), Verdict::Explained);
    }

    #[test]
    fn what_would_change_nothing_now_may_change_something_later() {
        let ops = vec![
            op(2, 5, Effect::Applied(vec![], vec![(0, None)])),
            op(3, 4, Effect::Created(0, value(1))),
            op(6, 7, Effect::Created(0, value(2))),
        ];
        assert_eq!(judge(ops), Verdict::Explained);
    }

    #[test]
    fn a_deleted_namespace_takes_its_objects_along() {
        let history = |last| {
            vec![
                op(2, 3, Effect::Created(0, value(1))),
                op(4, 5, Effect::Ended),
                op(6, 7, Effect::Began),
                op(8, 9, last),
            ]
        };
        assert_eq!(judge(history(read(0, None))), Verdict::Explained);
        assert_eq!(judge(history(read(0, Some(1)))), Verdict::Unexplained);
        assert_eq!(judge(history(Effect::NoNamespace)), Verdict::Unexplained);
    }
}
