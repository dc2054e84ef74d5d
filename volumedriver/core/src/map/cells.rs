//! The words of one page (512 clusters), in the smallest of a few shapes: 16 bytes for one run, 10 bytes a run while they are
//! few, 8 bytes a cluster when they are many.
//!
//! `REST` is the word outside a lone run: a hole in the base, [`ABSENT`] in the overlay. `Blank` is "nothing known": not
//! loaded in the base, no entry in the overlay.

use super::word::{ABSENT, PAGE, continues, is_location, nth};

/// Bookkeeping of the allocator per block, bytes (an estimate that makes budgets honest).
pub(super) const ALLOC_OVERHEAD: u64 = 16;
/// Most runs kept as runs; a page with more is dense.
const MAX_RUNS: usize = 128;
/// An edit of this many clusters of a dense page is worth a look whether it became a page of runs.
const WORTH_COMPACTING: u16 = 32;

pub(super) enum Cells<const REST: u64> {
    Blank,
    Span { start: u16, end: u16, word: u64 },
    Runs4(Box<Runs<4>>),
    Runs12(Box<Runs<12>>),
    Runs40(Box<Runs<40>>),
    Runs128(Box<Runs<MAX_RUNS>>),
    Dense(Box<[u64; PAGE as usize]>),
}

/// Runs in order; the first starts at 0, each ends where the next starts, unused ones start at [`PAGE`].
pub(super) struct Runs<const N: usize> {
    starts: [u16; N],
    words: [u64; N],
}

impl<const N: usize> Runs<N> {
    fn new(list: &RunList) -> Self {
        let mut runs = Self { starts: [PAGE; N], words: [0; N] };
        runs.fill(list);
        runs
    }
    fn fill(&mut self, list: &RunList) {
        self.starts[..list.len].copy_from_slice(&list.starts[..list.len]);
        self.starts[list.len..].fill(PAGE);
        self.words[..list.len].copy_from_slice(&list.words[..list.len]);
    }
}

/// Runs being put together, joined where they continue each other.
struct RunList {
    len: usize,
    starts: [u16; MAX_RUNS + 4],
    words: [u64; MAX_RUNS + 4],
}

impl RunList {
    fn new() -> Self {
        Self { len: 0, starts: [PAGE; MAX_RUNS + 4], words: [0; MAX_RUNS + 4] }
    }
    fn push(&mut self, start: u16, end: u16, word: u64) {
        if start == end {
            return;
        }
        if let Some(last) = self.len.checked_sub(1) {
            let len = u64::from(start - self.starts[last]);
            if continues(self.words[last], len, word) {
                return;
            }
        }
        self.starts[self.len] = start;
        self.words[self.len] = word;
        self.len += 1;
    }
    fn end_of(&self, i: usize) -> u16 {
        if i + 1 < self.len { self.starts[i + 1] } else { PAGE }
    }
}

impl<const REST: u64> Cells<REST> {
    pub(super) fn uniform(word: u64) -> Self {
        Self::Span { start: 0, end: PAGE, word }
    }

    /// A page from the word of each of its clusters.
    pub(super) fn from_words(words: Box<[u64; PAGE as usize]>) -> Self {
        let mut cells = Self::Dense(words);
        cells.compact();
        cells
    }

    /// A page from runs that cover it in order, as (start, word); each ends where the next starts.
    pub(super) fn from_runs(runs: &[(u16, u64)]) -> Self {
        let ends = runs.iter().skip(1).map(|run| run.0).chain([PAGE]);
        if runs.len() <= MAX_RUNS {
            let mut cells = Self::Blank;
            let mut list = RunList::new();
            runs.iter().zip(ends).for_each(|((start, word), end)| list.push(*start, end, *word));
            cells.store(&list);
            return cells;
        }
        let mut words = Box::new([REST; PAGE as usize]);
        for ((start, word), end) in runs.iter().zip(ends) {
            for at in *start..end {
                words[usize::from(at)] = nth(*word, u64::from(at - start));
            }
        }
        Self::from_words(words)
    }

    #[inline]
    pub(super) fn is_blank(&self) -> bool {
        matches!(self, Self::Blank)
    }

    /// The word of a page that is one non-location word throughout.
    pub(super) fn uniform_word(&self) -> Option<u64> {
        match self {
            Self::Span { start: 0, end: PAGE, word } if !is_location(*word) => Some(*word),
            _ => None,
        }
    }

    pub(super) fn heap_bytes(&self) -> u64 {
        let bytes = match self {
            Self::Blank | Self::Span { .. } => return 0,
            Self::Runs4(_) => size_of::<Runs<4>>(),
            Self::Runs12(_) => size_of::<Runs<12>>(),
            Self::Runs40(_) => size_of::<Runs<40>>(),
            Self::Runs128(_) => size_of::<Runs<MAX_RUNS>>(),
            Self::Dense(_) => size_of::<[u64; PAGE as usize]>(),
        };
        bytes as u64 + ALLOC_OVERHEAD
    }

    /// [`ABSENT`] from a blank page.
    #[inline]
    pub(super) fn word_at(&self, at: u16) -> u64 {
        match self {
            Self::Dense(words) => words[usize::from(at)],
            Self::Span { start, end, word } if (*start..*end).contains(&at) => {
                nth(*word, u64::from(at - start))
            }
            Self::Span { .. } => REST,
            Self::Blank => ABSENT,
            Self::Runs4(runs) => find(&runs.starts, &runs.words, at),
            Self::Runs12(runs) => find(&runs.starts, &runs.words, at),
            Self::Runs40(runs) => find(&runs.starts, &runs.words, at),
            Self::Runs128(runs) => find(&runs.starts, &runs.words, at),
        }
    }

    /// Visits the runs of `from..to` in order as (start, end, word).
    #[inline]
    pub(super) fn each(&self, from: u16, to: u16, visit: &mut impl FnMut(u16, u16, u64)) {
        if from >= to {
            return;
        }
        match self {
            Self::Blank => visit(from, to, ABSENT),
            Self::Span { start, end, word } => {
                clip(0, *start, REST, from, to, visit);
                clip(*start, *end, *word, from, to, visit);
                clip(*end, PAGE, REST, from, to, visit);
            }
            Self::Runs4(runs) => each_run(&runs.starts, &runs.words, from, to, visit),
            Self::Runs12(runs) => each_run(&runs.starts, &runs.words, from, to, visit),
            Self::Runs40(runs) => each_run(&runs.starts, &runs.words, from, to, visit),
            Self::Runs128(runs) => each_run(&runs.starts, &runs.words, from, to, visit),
            Self::Dense(words) => each_dense(words, from, to, visit),
        }
    }

    /// Clusters of `from..to` that map to a location.
    pub(super) fn data_in(&self, from: u16, to: u16) -> u64 {
        let mut data = 0;
        if let Self::Dense(words) = self {
            let range = &words[usize::from(from)..usize::from(to)];
            return range.iter().filter(|word| is_location(**word)).count() as u64;
        }
        self.each(from, to, &mut |start, end, word| {
            if is_location(word) {
                data += u64::from(end - start);
            }
        });
        data
    }

    /// Makes `start..end` the run that begins with `word`.
    pub(super) fn replace(&mut self, start: u16, end: u16, word: u64) {
        assert!(start < end && end <= PAGE);
        if start == 0 && end == PAGE {
            *self = Self::uniform(word);
            return;
        }
        if let Self::Dense(words) = self {
            for (n, cell) in words[usize::from(start)..usize::from(end)].iter_mut().enumerate() {
                *cell = nth(word, n as u64);
            }
            if end - start >= WORTH_COMPACTING {
                self.compact();
            }
            return;
        }
        let mut list = RunList::new();
        self.each(0, start, &mut |s, e, w| list.push(s, e, w));
        list.push(start, end, word);
        self.each(end, PAGE, &mut |s, e, w| list.push(s, e, w));
        self.store(&list);
    }

    /// Gives up those of `start..end` that still are the run that begins with `word`: they say `REST` again.
    pub(super) fn clear(&mut self, start: u16, end: u16, word: u64) {
        if let Self::Dense(words) = self {
            for (n, cell) in words[usize::from(start)..usize::from(end)].iter_mut().enumerate() {
                if *cell == nth(word, n as u64) {
                    *cell = REST;
                }
            }
            if words.iter().all(|word| *word == REST) {
                *self = Self::Blank;
            }
            return;
        }
        let mut list = RunList::new();
        self.each(0, start, &mut |s, e, w| list.push(s, e, w));
        self.each(start, end, &mut |s, e, w| {
            let same = w == nth(word, u64::from(s - start));
            list.push(s, e, if same { REST } else { w });
        });
        self.each(end, PAGE, &mut |s, e, w| list.push(s, e, w));
        self.store(&list);
    }

    /// Puts `word` beneath: clusters of which nothing is said take it.
    pub(super) fn underlay(&mut self, word: u64) {
        let mut said = [ABSENT; PAGE as usize];
        self.each(0, PAGE, &mut |start, end, w| {
            for at in start..end {
                said[usize::from(at)] = nth(w, u64::from(at - start));
            }
        });
        for cell in &mut said {
            if *cell == ABSENT {
                *cell = word;
            }
        }
        *self = Self::from_words(Box::new(said));
    }

    /// Back from dense to runs when they are few enough (half the most, so that it does not flap).
    pub(super) fn compact(&mut self) {
        let Self::Dense(words) = self else { return };
        let mut list = RunList::new();
        let mut few = true;
        each_dense(words, 0, PAGE, &mut |start, end, word| {
            few &= list.len < MAX_RUNS / 2;
            if few {
                list.push(start, end, word);
            }
        });
        if few {
            self.store(&list);
        }
    }

    fn store(&mut self, list: &RunList) {
        if let Some(span) = lone(list) {
            *self = span;
            return;
        }
        match (list.len, self) {
            (..=4, Self::Runs4(runs)) => runs.fill(list),
            (5..=12, Self::Runs12(runs)) => runs.fill(list),
            (13..=40, Self::Runs40(runs)) => runs.fill(list),
            (41..=MAX_RUNS, Self::Runs128(runs)) => runs.fill(list),
            (..=4, cells) => *cells = Self::Runs4(Box::new(Runs::new(list))),
            (5..=12, cells) => *cells = Self::Runs12(Box::new(Runs::new(list))),
            (13..=40, cells) => *cells = Self::Runs40(Box::new(Runs::new(list))),
            (41..=MAX_RUNS, cells) => *cells = Self::Runs128(Box::new(Runs::new(list))),
            (_, cells) => *cells = Self::Dense(dense(list)),
        }
    }
}

/// The list as a lone run with `REST` around it, if it is one.
fn lone<const REST: u64>(list: &RunList) -> Option<Cells<REST>> {
    if list.len == 1 {
        let word = list.words[0];
        let blank = REST == ABSENT && word == ABSENT;
        return Some(if blank { Cells::Blank } else { Cells::uniform(word) });
    }
    let mut said = (0..list.len).filter(|i| list.words[*i] != REST);
    let first = said.next()?;
    let span =
        Cells::Span { start: list.starts[first], end: list.end_of(first), word: list.words[first] };
    said.next().is_none().then_some(span)
}

fn dense(list: &RunList) -> Box<[u64; PAGE as usize]> {
    let mut words = Box::new([0; PAGE as usize]);
    for i in 0..list.len {
        let range = usize::from(list.starts[i])..usize::from(list.end_of(i));
        for (n, cell) in words[range].iter_mut().enumerate() {
            *cell = nth(list.words[i], n as u64);
        }
    }
    words
}

#[inline]
fn find(starts: &[u16], words: &[u64], at: u16) -> u64 {
    // The first run starts at 0, so at least one counts. Counting all is branch-free and vectorises.
    let i = starts.iter().map(|start| usize::from(*start <= at)).sum::<usize>() - 1;
    nth(words[i], u64::from(at - starts[i]))
}

#[inline]
fn clip(
    start: u16,
    end: u16,
    word: u64,
    from: u16,
    to: u16,
    visit: &mut impl FnMut(u16, u16, u64),
) {
    let (first, last) = (start.max(from), end.min(to));
    if first < last {
        visit(first, last, nth(word, u64::from(first - start)));
    }
}

fn each_run(
    starts: &[u16],
    words: &[u64],
    from: u16,
    to: u16,
    visit: &mut impl FnMut(u16, u16, u64),
) {
    for (i, (start, word)) in starts.iter().zip(words).enumerate() {
        if *start >= to {
            return;
        }
        let end = starts.get(i + 1).copied().unwrap_or(PAGE);
        clip(*start, end, *word, from, to, visit);
    }
}

fn each_dense(
    words: &[u64; PAGE as usize],
    from: u16,
    to: u16,
    visit: &mut impl FnMut(u16, u16, u64),
) {
    let mut start = from;
    let mut first = words[usize::from(from)];
    for at in from + 1..to {
        let word = words[usize::from(at)];
        if !continues(first, u64::from(at - start), word) {
            visit(start, at, first);
            (start, first) = (at, word);
        }
    }
    visit(start, to, first);
}
