//! Reading a range of an object from its fragments: only those the range touches, and around the ones that are missing,
//! damaged or slow.
//!
//! The data fragments of the range are read side by side. When one of them fails, or takes much longer than is usual, the
//! same range of others is read until there are k of them, and what is missing is rebuilt; whatever is first counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use tokio::time::sleep;

use super::Inner;
use crate::erasure::{self, Layout, Piece};
use crate::fault::{Fault, Kind, Result};
use crate::manifest::{Fragment, Manifest};
use crate::osd::{Priority, Wanted};

/// Bytes read at once when a whole fragment is verified.
const VERIFY_STEP: u64 = 4 << 20;

/// Bytes of fragments, from one offset to another.
type Span = (u64, u64);

/// What a read came to, and the fragments it found damaged or missing on its way.
pub(super) struct Fetched {
    pub outcome: Result<Bytes>,
    pub damaged: Vec<Fragment>,
}

/// A range that lies in the object.
pub(super) async fn range(
    inner: &Arc<Inner>,
    manifest: &Arc<Manifest>,
    (from, len): (u64, u64),
    priority: Priority,
) -> Fetched {
    inner.meet_osds(manifest.fragments.iter().map(|fragment| fragment.osd)).await;
    let pieces: Vec<Piece> = manifest.layout().pieces(from, len).collect();
    let mut fetch = Fetch::new(inner, manifest, priority);
    fetch.want(&pieces);
    let outcome = fetch.run().await;
    let damaged = std::mem::take(&mut fetch.damaged);
    Fetched { outcome: outcome.map(|()| fetch.assemble(&pieces, len)), damaged }
}

/// A range of `k` fragments that are not among these: what maintenance can rebuild others from.
pub(super) async fn sources(
    inner: &Arc<Inner>,
    manifest: &Arc<Manifest>,
    (from, to): Span,
    without: &HashSet<usize>,
) -> Result<Vec<(usize, Bytes)>> {
    let mut fetch = Fetch::new(inner, manifest, Priority::Background);
    fetch.refused.clone_from(without);
    fetch.rebuild = Some((from, to));
    fetch.widen();
    loop {
        let found = fetch.covering((from, to));
        if found.len() >= fetch.layout.policy.data() {
            return Ok(found);
        }
        match fetch.running.next().await {
            Some(read) => fetch.note(read),
            None => return Err(fetch.fault()),
        }
    }
}

struct Read {
    index: usize,
    span: Span,
    outcome: Result<Bytes>,
}

struct Fetch<'a> {
    inner: &'a Arc<Inner>,
    manifest: &'a Arc<Manifest>,
    layout: Layout,
    priority: Priority,
    wanted: BTreeMap<usize, Span>,
    have: HashMap<usize, (u64, Bytes)>,
    running: FuturesUnordered<BoxFuture<'static, Read>>,
    /// What is being read of a fragment.
    asked: HashMap<usize, Span>,
    /// Fragments that failed, or are not to be used.
    refused: HashSet<usize>,
    /// Fragments that take unusually long.
    slow: HashSet<usize>,
    faults: Vec<(usize, Fault)>,
    damaged: Vec<Fragment>,
    /// What must be read of k fragments.
    rebuild: Option<Span>,
}

impl<'a> Fetch<'a> {
    fn new(inner: &'a Arc<Inner>, manifest: &'a Arc<Manifest>, priority: Priority) -> Self {
        Self {
            inner,
            manifest,
            layout: manifest.layout(),
            priority,
            wanted: BTreeMap::new(),
            have: HashMap::new(),
            running: FuturesUnordered::new(),
            asked: HashMap::new(),
            refused: HashSet::new(),
            slow: HashSet::new(),
            faults: Vec::new(),
            damaged: Vec::new(),
            rebuild: None,
        }
    }

    fn want(&mut self, pieces: &[Piece]) {
        let best = self.best_copy();
        for piece in pieces {
            let index = if self.layout.policy.is_copies() { best } else { piece.index };
            let span = (piece.at, piece.at + piece.len);
            let hull = self.wanted.entry(index).or_insert(span);
            *hull = (hull.0.min(span.0), hull.1.max(span.1));
        }
    }

    /// Of copies any will do.
    fn best_copy(&self) -> usize {
        self.sources().first().copied().unwrap_or(0)
    }

    /// Fragments that may be read, those on the best OSDs first, data before parity.
    fn sources(&self) -> Vec<usize> {
        let rank = |fragment: &&Fragment| match self.inner.osds.get(fragment.osd) {
            Err(_) => (2, 0),
            Ok(member) => {
                let health = member.health();
                (u8::from(health.is_failing()), health.latency().as_millis() / 20)
            }
        };
        let usable = |f: &&Fragment| !self.refused.contains(&usize::from(f.index));
        let mut found: Vec<&Fragment> = self.manifest.fragments.iter().filter(usable).collect();
        found.sort_by_key(|fragment| (rank(fragment), fragment.index));
        found.iter().map(|fragment| usize::from(fragment.index)).collect()
    }

    async fn run(&mut self) -> Result<()> {
        for (index, span) in self.wanted.clone() {
            self.start(index, span);
        }
        let hedge = sleep(self.inner.osds.patience());
        tokio::pin!(hedge);
        let mut is_hedged = self.manifest.fragments.len() <= self.layout.policy.data();
        while !self.complete().await? {
            if self.running.is_empty() {
                return Err(self.fault());
            }
            tokio::select! {
                biased;
                Some(read) = self.running.next() => self.note(read),
                () = &mut hedge, if !is_hedged => {
                    is_hedged = true;
                    self.hedge();
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, index: usize, (from, to): Span) {
        let Some(fragment) = self.manifest.fragment(index).copied() else {
            let fault = Fault::corrupt("it is not stored");
            let missing = Read { index, span: (from, to), outcome: Err(fault) };
            self.running.push(Box::pin(async move { missing }));
            return;
        };
        self.asked.insert(index, (from, to));
        let (inner, layout, priority) = (self.inner.clone(), self.layout, self.priority);
        self.running.push(Box::pin(async move {
            let outcome = inner.read_fragment(layout, &fragment, (from, to), priority).await;
            Read { index, span: (from, to), outcome }
        }));
    }

    fn note(&mut self, Read { index, span, outcome }: Read) {
        self.slow.remove(&index);
        // The same fragment may have been asked for more meanwhile.
        if self.asked.get(&index) == Some(&span) {
            self.asked.remove(&index);
        }
        match outcome {
            Ok(bytes) => {
                let has_more = |have: &(u64, Bytes)| covers(span_of(have), span);
                if !self.have.get(&index).is_some_and(has_more) {
                    self.have.insert(index, (span.0, bytes));
                }
                if self.rebuild.is_some() {
                    self.widen();
                }
            }
            Err(fault) => {
                self.refused.insert(index);
                let damaged = self.manifest.fragment(index).filter(|_| fault.kind == Kind::Corrupt);
                self.damaged.extend(damaged);
                self.faults.push((index, fault));
                self.widen();
            }
        }
    }

    /// What is not here yet takes unusually long: others are asked too.
    fn hedge(&mut self) {
        let patience = self.inner.osds.patience();
        for (index, fragment) in
            self.asked.keys().filter_map(|n| Some((*n, self.manifest.fragment(*n)?)))
        {
            self.slow.insert(index);
            if let Ok(member) = self.inner.osds.get(fragment.osd) {
                member.note_slow(patience);
            }
        }
        self.widen();
    }

    /// Reads what is still needed to rebuild all that is missing.
    fn widen(&mut self) {
        let missing = self.wanted.iter().filter(|(n, _)| !self.have.contains_key(*n));
        let hull = missing.map(|(_, span)| *span).chain(self.rebuild);
        let Some((from, to)) = hull.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))) else { return };
        let span = self.layout.grains(from, to);
        self.rebuild = Some(span);
        let is_promised = |n: &usize, asked: Span| covers(asked, span) && !self.slow.contains(n);
        let promised = self.asked.iter().filter(|(n, asked)| is_promised(n, **asked));
        let promised: HashSet<usize> = promised.map(|(n, _)| *n).collect();
        // One that is here and asked for again counts once.
        let here = self.covering(span).into_iter().map(|(n, _)| n);
        let mut count = here.filter(|n| !promised.contains(n)).count() + promised.len();
        for index in self.sources() {
            let is_read = self.have.get(&index).is_some_and(|have| covers(span_of(have), span));
            if count >= self.layout.policy.data() {
                break;
            }
            if is_read || promised.contains(&index) || self.slow.contains(&index) {
                continue;
            }
            let wanted = self.wanted.get(&index).copied().unwrap_or(span);
            self.start(index, (wanted.0.min(span.0), wanted.1.max(span.1)));
            count += 1;
        }
    }

    /// This span of the fragments that are here.
    fn covering(&self, (from, to): Span) -> Vec<(usize, Bytes)> {
        let part = |(index, have): (&usize, &(u64, Bytes))| {
            let (begin, end) = span_of(have);
            let inside = begin <= from && to <= end;
            inside.then(|| (*index, have.1.slice((from - begin) as usize..(to - begin) as usize)))
        };
        self.have.iter().filter_map(part).collect()
    }

    /// Whether all that is wanted is here, if need be after rebuilding it.
    async fn complete(&mut self) -> Result<bool> {
        let missing = self.wanted.keys().filter(|n| !self.have.contains_key(*n));
        let missing: Vec<usize> = missing.copied().collect();
        if missing.is_empty() {
            return Ok(true);
        }
        let Some(span) = self.rebuild else { return Ok(false) };
        let present = self.covering(span);
        if present.len() < self.layout.policy.data() {
            return Ok(false);
        }
        let policy = self.layout.policy;
        let (lost, work) = (missing.clone(), move || erasure::rebuild(policy, &present, &missing));
        let rebuilt = self.inner.blocking.run(work).await?;
        for (index, bytes) in lost.into_iter().zip(rebuilt) {
            self.have.insert(index, (span.0, bytes));
        }
        Ok(true)
    }

    fn assemble(&self, pieces: &[Piece], len: u64) -> Bytes {
        let copies = self.layout.policy.is_copies();
        let part = |piece: &Piece| {
            let index = if copies { *self.wanted.keys().next()? } else { piece.index };
            let (begin, bytes) = self.have.get(&index)?;
            let at = (piece.at - begin) as usize;
            Some(bytes.slice(at..at + piece.len as usize))
        };
        if let [piece] = pieces {
            return part(piece).unwrap_or_default();
        }
        let mut out = BytesMut::with_capacity(len as usize);
        pieces.iter().filter_map(part).for_each(|bytes| out.extend_from_slice(&bytes));
        out.freeze()
    }

    /// Why too few fragments can be read: for good when too many of them are damaged.
    fn fault(&mut self) -> Fault {
        let lost = self.faults.iter().filter(|(_, fault)| fault.kind == Kind::Corrupt).count();
        let stored = self.manifest.fragments.len();
        if stored == 1
            && let Some((_, fault)) = self.faults.pop()
        {
            return fault;
        }
        let listed = |(index, fault): &(usize, Fault)| format!("fragment {index}: {fault}");
        let list: Vec<String> = self.faults.iter().map(listed).collect();
        let (data, list) = (self.layout.policy.data(), list.join("; "));
        let kind = if stored < lost + data { Kind::Corrupt } else { Kind::Unavailable };
        let message = format!("fewer than {data} of its {stored} fragments can be read: {list}");
        Fault::new(kind, message)
    }
}

fn covers(outer: Span, inner: Span) -> bool {
    outer.0 <= inner.0 && inner.1 <= outer.1
}

fn span_of((from, bytes): &(u64, Bytes)) -> Span {
    (*from, from + bytes.len() as u64)
}

impl Inner {
    /// A verified range of a fragment.
    pub(super) async fn read_fragment(
        &self,
        layout: Layout,
        fragment: &Fragment,
        (from, to): Span,
        priority: Priority,
    ) -> Result<Bytes> {
        let len = layout.fragment_len();
        let member = self.osds.get(fragment.osd)?;
        let open = match self.open_fragments.get(fragment.file) {
            Some(open) => open,
            None => {
                let wanted = Wanted { file: fragment.file, len, crc: fragment.crc };
                let opened = member.open(wanted, priority).await?;
                let missing = || Fault::corrupt(format!("bytes 0..{len}: its file is missing"));
                let open = opened.ok_or_else(missing)?;
                self.open_fragments.keep(fragment.file, &open);
                open
            }
        };
        member.read(open, (from, to), priority).await
    }

    /// Reads all of a fragment: its bytes are what the manifest says.
    pub(super) async fn verify(
        &self,
        layout: Layout,
        fragment: &Fragment,
        priority: Priority,
    ) -> Result<()> {
        let len = layout.fragment_len();
        let mut from = 0;
        while from < len {
            let to = (from + VERIFY_STEP).min(len);
            self.read_fragment(layout, fragment, (from, to), priority).await?;
            from = to;
        }
        Ok(())
    }
}
