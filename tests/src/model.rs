//! What a volume may contain: the history of one guest's operations, and the states a crash may leave.
//!
//! Content is kept as one word per sector: the number of the operation that wrote it, 0 for zeroes. Every written sector
//! carries that number, the volume and its own address, so that a mismatch says which write is there instead of which.
//!
//! **Order.** Operations are ordered by real time: A comes before B when A was acknowledged before B was asked for. What was
//! under way at the same time is unordered. A *prefix* is a set of operations that contains, with each operation, all that
//! come before it.
//!
//! **P1.** After a crash the content is that of some prefix which contains every operation acknowledged before an
//! acknowledged flush was asked for, and every acknowledged FUA operation. Pieces of up to [`MAX_OP_BYTES`] are in it or not
//! as a whole.

use std::collections::{BTreeMap, BTreeSet};

use volumedriver_core::units::{MAX_OP_BYTES, SECTOR_BYTES};

use crate::world::rng::mix;

const SECTOR: usize = SECTOR_BYTES as usize;

/// Logical time of one guest: every asking and every answer has its own.
type Tick = u64;

/// Number of an operation, from 1, as its sectors carry it; 0 stands for zeroes.
pub type OpNo = u32;

/// Stands for a sector that cannot be read, where that was to be expected: nobody knows what it has.
pub const UNREADABLE: OpNo = OpNo::MAX;

/// Operations of a new owner are numbered from the next multiple of this on, so that they are told from a stale one's.
const NUMBERS_PER_OWNER: OpNo = 1 << 20;

/// Whether a sector shows something else than it should.
fn differs(should: OpNo, seen: OpNo) -> bool {
    should != seen && seen != UNREADABLE
}

/// Where data must be to survive a crash of some kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The local disk: survives a kill and a power cut.
    Journal,
    /// The object store: survives the loss of the local directory as well.
    Backend,
}

/// Sectors `first..first + count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub first: usize,
    pub count: usize,
}

impl Span {
    #[must_use]
    pub fn end(self) -> usize {
        self.first + self.count
    }
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.first < other.end() && other.first < self.end()
    }
    fn range(self) -> std::ops::Range<usize> {
        self.first..self.end()
    }
}

/// What an operation leaves in its sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    Data,
    Zeroes,
}

/// A piece of an operation that a crash leaves whole or not at all.
#[derive(Clone, Debug)]
struct Piece {
    span: Span,
    /// What its sectors carry.
    word: OpNo,
    asked: Tick,
    done: Option<Tick>,
    /// It must survive crashes that leave this place.
    safe: Option<Place>,
}

/// An operation that was asked for.
#[must_use]
#[derive(Clone, Debug)]
pub struct Asked {
    pub op: OpNo,
    pieces: Vec<u64>,
}

/// A read that was asked for: what was there then.
#[must_use]
pub struct AskedRead {
    span: Span,
    asked: Tick,
    before: Vec<OpNo>,
}

/// A flush or an upload that was asked for.
#[must_use]
#[derive(Clone, Copy)]
pub struct AskedSync(Tick);

/// One volume and its guest.
#[derive(Clone)]
pub struct Model {
    tag: u32,
    /// Sectors per cluster.
    cluster: usize,
    /// Content that is on the backend for certain.
    base: Vec<OpNo>,
    /// Pieces that are not in `base` for certain, by number.
    pieces: BTreeMap<u64, Piece>,
    /// Content with everything acknowledged.
    now: Vec<OpNo>,
    /// A prefix is at least everything before these ticks, per place (both for what survives with the place).
    least: [Tick; 2],
    tick: Tick,
    next_op: OpNo,
    next_piece: u64,
    /// Reads not yet checked: what was done since may explain them.
    reading: BTreeSet<Tick>,
    /// Sizes a crash may leave besides the present one, sectors.
    resizing: Option<usize>,
}

impl Model {
    #[must_use]
    pub fn new(tag: u32, sectors: usize, cluster: usize) -> Self {
        Self {
            tag,
            cluster,
            base: vec![0; sectors],
            pieces: BTreeMap::new(),
            now: vec![0; sectors],
            least: [0; 2],
            tick: 0,
            next_op: 1,
            next_piece: 0,
            reading: BTreeSet::new(),
            resizing: None,
        }
    }

    #[must_use]
    pub fn sectors(&self) -> usize {
        self.now.len()
    }

    fn take_tick(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    /// The guest asks for a change.
    pub fn ask(&mut self, span: Span, fill: Fill) -> Asked {
        let op = self.next_op;
        self.next_op += 1;
        let asked = self.take_tick();
        let word = if fill == Fill::Data { op } else { 0 };
        let mut pieces = Vec::new();
        for span in self.cut(span, fill) {
            self.pieces
                .insert(self.next_piece, Piece { span, word, asked, done: None, safe: None });
            pieces.push(self.next_piece);
            self.next_piece += 1;
        }
        Asked { op, pieces }
    }

    /// The atomic pieces: writes longer than [`MAX_OP_BYTES`] are cut every so many bytes from the first cluster on; zeroing
    /// is one piece but for partial clusters at its edges.
    fn cut(&self, span: Span, fill: Fill) -> Vec<Span> {
        let start = span.first / self.cluster * self.cluster;
        let cuts: Vec<usize> = match fill {
            Fill::Data if span.count * SECTOR <= MAX_OP_BYTES as usize => Vec::new(),
            Fill::Data => {
                (start..span.end()).step_by(MAX_OP_BYTES as usize / SECTOR).skip(1).collect()
            }
            Fill::Zeroes => {
                let inner = span.first.next_multiple_of(self.cluster);
                let tail = span.end() / self.cluster * self.cluster;
                vec![inner.min(span.end()), tail.max(inner).min(span.end())]
            }
        };
        let mut pieces = Vec::new();
        let mut first = span.first;
        for cut in cuts.into_iter().chain([span.end()]) {
            if cut > first {
                pieces.push(Span { first, count: cut - first });
                first = cut;
            }
        }
        pieces
    }

    /// The change was acknowledged; `safe` when it was with FUA, and how far that reaches.
    pub fn done(&mut self, asked: &Asked, safe: Option<Place>) {
        let done = self.take_tick();
        for number in &asked.pieces {
            let Some(piece) = self.pieces.get_mut(number) else { continue };
            (piece.done, piece.safe) = (Some(done), safe);
            self.now[piece.span.range()].fill(piece.word);
        }
    }

    /// The guest asks for a flush, or for everything to be uploaded.
    pub fn ask_sync(&mut self) -> AskedSync {
        AskedSync(self.take_tick())
    }

    /// Everything acknowledged before this was asked for has reached the place.
    pub fn synced(&mut self, asked: AskedSync, place: Place) {
        for piece in self.pieces.values_mut().filter(|p| p.done.is_some_and(|done| done < asked.0))
        {
            piece.safe = piece.safe.max(Some(place));
        }
        self.fold();
    }

    /// Moves what is on the backend for certain, and everything before it, to the base.
    fn fold(&mut self) {
        let is_safe = |p: &&Piece| p.safe == Some(Place::Backend);
        let Some(last) = self.pieces.values().filter(is_safe).map(|p| p.asked).max() else {
            return;
        };
        self.least = self.least.map(|least| least.max(last));
        let oldest_read = self.reading.first().copied().unwrap_or(Tick::MAX);
        let mut folded: Vec<(Tick, u64)> = Vec::new();
        for (number, piece) in &self.pieces {
            match piece.done {
                Some(done) if done >= oldest_read => {}
                Some(done) if piece.safe == Some(Place::Backend) || done < last => {
                    folded.push((done, *number));
                }
                _ => {}
            }
        }
        folded.sort_unstable();
        for (_, number) in folded {
            if let Some(piece) = self.pieces.remove(&number) {
                self.base[piece.span.range()].fill(piece.word);
            }
        }
    }

    pub fn ask_resize(&mut self, sectors: usize) {
        self.resizing = Some(sectors);
    }

    pub fn resized(&mut self, sectors: usize) {
        self.resizing = None;
        self.base.resize(sectors, 0);
        self.now.resize(sectors, 0);
    }

    pub fn ask_read(&mut self, span: Span) -> AskedRead {
        let asked = self.take_tick();
        self.reading.insert(asked);
        AskedRead { span, asked, before: self.now[span.range()].to_vec() }
    }

    /// P2 and the order during life: each sector is what it was when the read was asked for, or what an operation left there
    /// that was under way meanwhile.
    pub fn check_read(&mut self, read: &AskedRead, data: &[u8]) -> Result<(), String> {
        self.forget_read(read);
        if data.len() != read.span.count * SECTOR {
            return Err(format!(
                "a read of {} sectors returned {} bytes",
                read.span.count,
                data.len()
            ));
        }
        let words = self.decode(read.span.first, data)?;
        self.check_words(read, &words)
    }

    /// The read needs no more checking.
    pub fn forget_read(&mut self, read: &AskedRead) {
        self.reading.remove(&read.asked);
    }

    /// The same for sectors that are known to read as zeroes.
    pub fn check_zeroes(&self, read: &AskedRead, part: Span) -> Result<(), String> {
        let skip = part.first - read.span.first;
        let before = read.before[skip..skip + part.count].to_vec();
        let part = AskedRead { span: part, asked: read.asked, before };
        self.check_words(&part, &vec![0; part.span.count])
    }

    fn check_words(&self, read: &AskedRead, words: &[OpNo]) -> Result<(), String> {
        if words == read.before {
            return Ok(());
        }
        let meanwhile =
            |p: &&Piece| p.done.is_none_or(|done| done > read.asked) && p.span.overlaps(read.span);
        let rivals: Vec<&Piece> = self.pieces.values().filter(meanwhile).collect();
        for (n, (word, before)) in words.iter().zip(&read.before).enumerate() {
            let sector = read.span.first + n;
            let at = Span { first: sector, count: 1 };
            if word != before && !rivals.iter().any(|p| p.word == *word && p.span.overlaps(at)) {
                return Err(format!(
                    "sector {sector} has operation {word} instead of {before} (read of {:?}, {} rivals)",
                    read.span,
                    rivals.len()
                ));
            }
        }
        Ok(())
    }

    /// The bytes an operation writes.
    #[must_use]
    pub fn bytes(&self, op: OpNo, span: Span) -> Vec<u8> {
        let mut data = vec![0; span.count * SECTOR];
        for (n, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
            let words = sector_words(self.tag, op, span.first + n);
            for (bytes, word) in sector.chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
        }
        data
    }

    /// The operation each sector belongs to; an error for bytes that no operation wrote there.
    pub fn decode(&self, first: usize, data: &[u8]) -> Result<Vec<OpNo>, String> {
        let sectors = data.chunks_exact(SECTOR).enumerate();
        sectors.map(|(n, bytes)| self.decode_sector(first + n, bytes)).collect()
    }

    fn decode_sector(&self, sector: usize, bytes: &[u8]) -> Result<OpNo, String> {
        let word =
            |n: usize| u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().unwrap_or_default());
        let op = (word(0) >> 32) as OpNo;
        if op == 0 && bytes.iter().all(|b| *b == 0) {
            return Ok(0);
        }
        if sector_words(self.tag, op, sector).enumerate().all(|(n, expected)| word(n) == expected) {
            return Ok(op);
        }
        let (tag, address) = (word(0) as u32, word(1));
        let same =
            sector_words(self.tag, op, sector).enumerate().filter(|(n, w)| word(*n) == *w).count();
        Err(format!(
            "sector {sector} of volume {} has wrong bytes: they claim operation {op} of volume {tag}, sector {address}; \
             {same} of 64 words agree",
            self.tag
        ))
    }

    /// After racing operations: finds the order in which they happened from what is there now.
    pub fn settle_race(
        &mut self,
        racers: &[Asked],
        first: usize,
        data: &[u8],
    ) -> Result<(), String> {
        let seen = self.decode(first, data)?;
        let numbers: Vec<u64> = racers.iter().flat_map(|r| r.pieces.iter().copied()).collect();
        for order in permutations(&numbers) {
            let mut state = self.now[first..first + seen.len()].to_vec();
            for number in &order {
                let piece = &self.pieces[number];
                let start = piece.span.first - first;
                state[start..start + piece.span.count].fill(piece.word);
            }
            if state == seen {
                for number in order {
                    let done = self.take_tick();
                    if let Some(piece) = self.pieces.get_mut(&number) {
                        piece.done = Some(done);
                        self.now[piece.span.range()].fill(piece.word);
                    }
                }
                return Ok(());
            }
        }
        Err(format!("no order of racing operations gives what sectors {first} on show"))
    }
}

/// The 64 words of a sector.
fn sector_words(tag: u32, op: OpNo, sector: usize) -> impl Iterator<Item = u64> {
    let head = u64::from(op) << 32 | u64::from(tag);
    let seed = mix(head ^ mix(sector as u64));
    (0..64).map(move |n| match n {
        0 => head,
        1 => sector as u64,
        n => seed.wrapping_mul(2 * n + 1),
    })
}

fn permutations(items: &[u64]) -> Vec<Vec<u64>> {
    if items.len() <= 1 {
        return vec![items.to_vec()];
    }
    let mut all = Vec::new();
    for (n, first) in items.iter().enumerate() {
        let mut rest = items.to_vec();
        rest.remove(n);
        for mut tail in permutations(&rest) {
            tail.insert(0, *first);
            all.push(tail);
        }
    }
    all
}

// ---- after a crash ----

/// A prefix that explains what a crash left: its latest tick, and the pieces under way then that are in it, in order.
struct Explanation {
    until: Tick,
    included: Vec<u64>,
}

/// The search for an [`Explanation`]: the state with everything done before some tick, moving forward in time.
struct Search<'a> {
    model: &'a Model,
    seen: &'a [OpNo],
    state: Vec<OpNo>,
    wrong: usize,
    /// Best failed attempt, for the message: sectors left wrong, tick.
    nearest: (usize, Tick),
}

impl Model {
    /// The same history as another owner continues it.
    #[must_use]
    pub fn taken_over(&self) -> Self {
        let mut model = self.clone();
        model.next_op = (self.next_op / NUMBERS_PER_OWNER + 1) * NUMBERS_PER_OWNER;
        model
    }

    /// Checks content against P1 without going on from there; sectors may be [`UNREADABLE`].
    pub fn check(&self, seen: Vec<OpNo>, kept: Place) -> Result<(), String> {
        self.clone().recover(seen, kept)
    }

    /// As [`Model::recover`] from the local disk, but what was flushed there only may be missing: it may have decayed before
    /// anything told that it was durable. Still a prefix, with everything that is on the backend.
    pub fn recover_torn(&mut self, seen: Vec<OpNo>) -> Result<(), String> {
        self.go_on_from(seen, Place::Backend, Place::Journal)
    }

    /// Checks what a crash left against P1, and goes on from there. `kept`: the place that survived.
    pub fn recover(&mut self, seen: Vec<OpNo>, kept: Place) -> Result<(), String> {
        self.go_on_from(seen, kept, kept)
    }

    /// Everything that reached `demanded` must be there; what is there lies in `kept`.
    fn go_on_from(&mut self, seen: Vec<OpNo>, demanded: Place, kept: Place) -> Result<(), String> {
        if seen.len() != self.now.len() {
            if self.resizing != Some(seen.len()) {
                return Err(format!(
                    "the volume has {} sectors instead of {}",
                    seen.len(),
                    self.now.len()
                ));
            }
            self.resized(seen.len());
        }
        self.resizing = None;
        self.reading.clear();
        let explanation = self.explain(&seen, demanded)?;
        let tick = self.take_tick();
        let Explanation { until, included } = explanation;
        self.pieces.retain(|number, piece| {
            piece.done.is_some_and(|done| done < until) || included.contains(number)
        });
        for number in included {
            let done = self.take_tick();
            if let Some(piece) = self.pieces.get_mut(&number) {
                piece.done = Some(piece.done.map_or(done, |d| d.max(tick).max(done)));
            }
        }
        self.now = seen;
        if kept == Place::Backend {
            self.base = self.now.clone();
            self.pieces.clear();
        }
        Ok(())
    }

    fn must_stay(piece: &Piece, kept: Place) -> bool {
        piece.done.is_some() && piece.safe.is_some_and(|safe| safe >= kept)
    }

    fn explain(&self, seen: &[OpNo], kept: Place) -> Result<Explanation, String> {
        let must = self.pieces.values().filter(|p| Self::must_stay(p, kept)).map(|p| p.asked).max();
        let least = self.least[kept as usize].max(must.unwrap_or(0));
        let mut search = Search::new(self, seen);
        let mut by_done: Vec<(Tick, u64)> =
            self.pieces.iter().filter_map(|(n, p)| Some((p.done?, *n))).collect();
        by_done.sort_unstable();
        let mut by_done = by_done.into_iter().peekable();
        let mut ticks: Vec<Tick> =
            self.pieces.values().map(|p| p.asked).filter(|t| *t > least).collect();
        ticks.push(least);
        ticks.sort_unstable();
        ticks.dedup();
        let mut found = None;
        for until in ticks {
            while let Some((_, number)) = by_done.next_if(|(done, _)| *done < until) {
                search.apply(number);
            }
            if let Some(included) = search.attempt(until, kept) {
                found = Some(Explanation { until, included });
            }
        }
        found.ok_or_else(|| search.complaint(least, kept))
    }
}

impl<'a> Search<'a> {
    fn new(model: &'a Model, seen: &'a [OpNo]) -> Self {
        let state = model.base.clone();
        let wrong = state.iter().zip(seen).filter(|(a, b)| differs(**a, **b)).count();
        Self { model, seen, state, wrong, nearest: (usize::MAX, 0) }
    }

    fn wrong_in(&self, span: Span) -> usize {
        self.state[span.range()]
            .iter()
            .zip(&self.seen[span.range()])
            .filter(|(a, b)| differs(**a, **b))
            .count()
    }

    fn apply(&mut self, number: u64) {
        let piece = &self.model.pieces[&number];
        self.wrong -= self.wrong_in(piece.span);
        self.state[piece.span.range()].fill(piece.word);
        self.wrong += self.wrong_in(piece.span);
    }

    /// Which pieces under way at this tick are in the prefix, if some choice gives what was seen.
    fn attempt(&mut self, until: Tick, kept: Place) -> Option<Vec<u64>> {
        let flying: Vec<(u64, &Piece)> = self.flying(until);
        let reach: usize = flying.iter().map(|(_, p)| p.span.count).sum();
        if self.wrong > reach {
            self.remember(self.wrong - reach, until);
            return None;
        }
        let mut included = Vec::new();
        let mut explained = 0;
        for group in groups(&flying) {
            let (order, corrected) = self.explain_group(&group, kept).or_else(|| {
                self.remember(self.wrong - explained, until);
                None
            })?;
            included.extend(order);
            explained += corrected;
        }
        if self.wrong == explained {
            return Some(included);
        }
        self.remember(self.wrong - explained, until);
        None
    }

    fn flying(&self, until: Tick) -> Vec<(u64, &'a Piece)> {
        let under_way = |p: &Piece| p.asked <= until && p.done.is_none_or(|done| done >= until);
        self.model.pieces.iter().filter(|(_, p)| under_way(p)).map(|(n, p)| (*n, p)).collect()
    }

    fn remember(&mut self, wrong: usize, until: Tick) {
        self.nearest = self.nearest.min((wrong, until));
    }

    /// The largest choice and order of these overlapping pieces that gives what was seen on their sectors, and how many
    /// wrong sectors it puts right.
    fn explain_group(&self, group: &[(u64, &Piece)], kept: Place) -> Option<(Vec<u64>, usize)> {
        let first = group.iter().map(|(_, p)| p.span.first).min()?;
        let end = group.iter().map(|(_, p)| p.span.end()).max()?;
        let seen = &self.seen[first..end];
        let wrong = self.wrong_in(Span { first, count: end - first });
        let numbers: Vec<u64> = group.iter().map(|(n, _)| *n).collect();
        let must = |n: &u64| group.iter().any(|(m, p)| m == n && Model::must_stay(p, kept));
        for choice in choices(&numbers) {
            if numbers.iter().any(|n| must(n) && !choice.contains(n)) {
                continue;
            }
            for order in permutations(&choice) {
                let mut state = self.state[first..end].to_vec();
                for number in &order {
                    let piece = &self.model.pieces[number];
                    state[piece.span.first - first..piece.span.end() - first].fill(piece.word);
                }
                if !state.iter().zip(seen).any(|(a, b)| differs(*a, *b)) {
                    return Some((order, wrong));
                }
            }
        }
        None
    }

    fn complaint(&self, least: Tick, kept: Place) -> String {
        let (wrong, until) = self.nearest;
        let mut state = self.model.base.clone();
        let mut done: Vec<(Tick, &Piece)> =
            self.model.pieces.values().filter_map(|p| Some((p.done?, p))).collect();
        done.sort_unstable_by_key(|(done, _)| *done);
        for (_, piece) in done.iter().filter(|(done, _)| *done < until) {
            state[piece.span.range()].fill(piece.word);
        }
        let mut text = format!(
            "P1: volume {} shows no prefix that contains everything up to tick {least} ({kept:?} survived); \
             nearest is tick {until} of {} with {wrong} wrong sectors:",
            self.model.tag, self.model.tick
        );
        let wrong: Vec<usize> =
            (0..state.len()).filter(|n| differs(state[*n], self.seen[*n])).collect();
        for (first, count) in runs(&wrong).into_iter().take(12) {
            let part = |content: &[OpNo]| numbered(&content[first..first + count]);
            text += &format!(" [{first}+{count}] {} for {};", part(self.seen), part(&state));
        }
        for (_, piece) in self.flying(until).iter().take(12) {
            text += &format!(
                " (under way: {} at {}+{}, {:?}..{:?} {:?})",
                piece.word, piece.span.first, piece.span.count, piece.asked, piece.done, piece.safe
            );
        }
        text
    }
}

/// Consecutive numbers as (first, count).
fn runs(numbers: &[usize]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == number => *count += 1,
            _ => runs.push((number, 1)),
        }
    }
    runs
}

/// Content as operation numbers with their repetitions.
fn numbered(content: &[OpNo]) -> String {
    let chunks = content.chunk_by(|a, b| a == b);
    chunks.map(|same| format!("{}x{}", same[0], same.len())).collect::<Vec<_>>().join(",")
}

/// Pieces that overlap, directly or through others, together.
fn groups<'a>(flying: &[(u64, &'a Piece)]) -> Vec<Vec<(u64, &'a Piece)>> {
    let mut sorted = flying.to_vec();
    sorted.sort_by_key(|(n, p)| (p.span.first, *n));
    let mut groups: Vec<(usize, Vec<(u64, &Piece)>)> = Vec::new();
    for item in sorted {
        match groups.last_mut() {
            Some((end, group)) if item.1.span.first < *end => {
                *end = (*end).max(item.1.span.end());
                group.push(item);
            }
            _ => groups.push((item.1.span.end(), vec![item])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// All subsets, larger ones first (what was seen may not tell; then more history is the safer assumption).
fn choices(items: &[u64]) -> Vec<Vec<u64>> {
    let mut all: Vec<Vec<u64>> = (0..1u32 << items.len().min(8))
        .map(|bits| (0..items.len()).filter(|n| bits >> n & 1 == 1).map(|n| items[n]).collect())
        .collect();
    all.sort_by_key(|choice: &Vec<u64>| std::cmp::Reverse(choice.len()));
    all
}

#[cfg(test)]
mod tests;
