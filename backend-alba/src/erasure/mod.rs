//! Erasure coding: an object to fragments and back. Bytes in, bytes out, no I/O.
//!
//! An object is cut into stripes of k units; unit i of every stripe goes to fragment i, one after the other, and the m parity
//! units computed from a stripe to fragments k, k + 1, ... The code is systematic: the first k fragments hold the object's
//! own bytes. The units of the last stripe are as short as its bytes allow (a multiple of [`GRAIN`], the end zeroes), so all
//! fragments of an object have the same length. With k = 1 every fragment is the object itself.
//!
//! The code is *local*: [`GRAIN`] bytes at one place of a fragment depend only on the same place of the others. So any range
//! of a lost fragment is rebuilt from the same range of any k others, whatever stripes it touches, and encoding works
//! through a stripe in steps that stay in the processor's cache. A test holds the codec to this.

mod solve;

use bytes::Bytes;
use reed_solomon_simd::ReedSolomonEncoder;

use self::solve::Pattern;
use crate::fault::{Fault, Result};
use crate::preset::Policy;
use crate::trailer::ALIGN;

/// What a range of a fragment is rounded to before it can be rebuilt, bytes.
pub const GRAIN: u64 = 64;
/// Coded at once, bytes of each fragment.
const STEP: usize = 64 << 10;

/// How fragments are computed; stored with every object, so that objects outlive a change of codec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Every fragment is the object.
    Copies,
    /// Data units, and parity units as the crate reed-solomon-simd 3 computes them: Leopard over GF(2^16).
    ReedSolomonSimd3,
}

impl Codec {
    #[must_use]
    pub fn of(policy: Policy) -> Self {
        if policy.is_copies() { Self::Copies } else { Self::ReedSolomonSimd3 }
    }
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Copies => 1,
            Self::ReedSolomonSimd3 => 2,
        }
    }
    pub fn from_number(number: u8) -> Result<Self> {
        match number {
            1 => Ok(Self::Copies),
            2 => Ok(Self::ReedSolomonSimd3),
            _ => Err(Fault::corrupt(format!("codec {number} is unknown to this release"))),
        }
    }
}

/// Where the bytes of one object lie in its fragments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub len: u64,
    pub policy: Policy,
    /// Bytes of a unit; at least [`GRAIN`].
    pub unit: u32,
}

/// A part of an object that lies together in one data fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub index: usize,
    /// In the fragment.
    pub at: u64,
    pub len: u64,
}

/// Longest object: far more than any disk holds, and far from where sums of lengths would overflow.
const MAX_OBJECT_BYTES: u64 = 1 << 60;

impl Layout {
    /// Whether a stored layout can be one: `Corrupt` if not.
    pub(crate) fn check(self) -> Result<()> {
        let unit = u64::from(self.unit);
        if unit < GRAIN || !unit.is_multiple_of(GRAIN) || self.len > MAX_OBJECT_BYTES {
            let message = format!("no object has {} bytes in units of {unit}", self.len);
            return Err(Fault::corrupt(message));
        }
        Ok(())
    }

    fn data(self) -> u64 {
        self.policy.data() as u64
    }
    /// Bytes of the object in a whole stripe.
    fn stripe(self) -> u64 {
        self.data() * u64::from(self.unit)
    }

    /// Bytes of each fragment that hold whole stripes.
    fn whole(self) -> u64 {
        self.len / self.stripe() * u64::from(self.unit)
    }

    /// Bytes of a unit of the last, shorter stripe; 0 when there is none.
    fn last_unit(self) -> u64 {
        let rest = self.len % self.stripe();
        if self.policy.is_copies() {
            rest
        } else {
            rest.div_ceil(self.data()).next_multiple_of(GRAIN)
        }
    }

    /// Length of every fragment.
    #[must_use]
    pub fn fragment_len(self) -> u64 {
        self.whole() + self.last_unit()
    }

    /// The pieces of a range of the object, in order. The range must lie in the object.
    pub fn pieces(self, offset: u64, len: u64) -> impl Iterator<Item = Piece> {
        let end = offset + len;
        let mut at = offset;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let piece = self.piece_at(at, end);
                at += piece.len;
                piece
            })
        })
    }

    fn piece_at(self, at: u64, end: u64) -> Piece {
        if self.policy.is_copies() {
            return Piece { index: 0, at, len: end - at };
        }
        let stripe = at / self.stripe();
        let base = stripe * u64::from(self.unit);
        let unit = if base < self.whole() { u64::from(self.unit) } else { self.last_unit() };
        let inside = at % self.stripe();
        let len = (unit - inside % unit).min(end - at);
        Piece { index: (inside / unit) as usize, at: base + inside % unit, len }
    }

    /// The range of fragments that must be read to rebuild this one.
    #[must_use]
    pub fn grains(self, from: u64, to: u64) -> (u64, u64) {
        if self.policy.is_copies() {
            return (from, to);
        }
        (from / GRAIN * GRAIN, to.next_multiple_of(GRAIN).min(self.fragment_len()))
    }
}

/// Turns an object, as it arrives, into its fragments.
pub struct Encoder {
    layout: Layout,
    /// Bytes of the object taken so far.
    taken: u64,
    /// The stripe being gathered.
    stripe: Aligned,
    filled: usize,
}

/// What to append to each fragment, by index.
pub type Shares = Vec<Vec<Bytes>>;

impl Encoder {
    #[must_use]
    pub fn new(layout: Layout) -> Self {
        Self { layout, taken: 0, stripe: Aligned::default(), filled: 0 }
    }

    /// The next bytes of the object; more than its length is `Invalid`.
    pub fn push(&mut self, pieces: &[Bytes]) -> Result<Shares> {
        let total = self.layout.policy.total();
        let given: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if given > self.layout.len - self.taken {
            let (given, len) = (given + self.taken, self.layout.len);
            return Err(Fault::invalid(format!("{given} bytes given, {len} announced")));
        }
        if self.layout.policy.is_copies() {
            self.taken += given;
            return Ok(vec![pieces.to_vec(); total]);
        }
        let mut shares = vec![Vec::new(); total];
        for piece in pieces {
            self.gather(piece, &mut shares)?;
        }
        Ok(shares)
    }

    /// Fewer bytes than the object's length are `Invalid`.
    pub fn check_complete(&self) -> Result<()> {
        let (given, len) = (self.taken, self.layout.len);
        if given != len {
            return Err(Fault::invalid(format!("{given} bytes given, {len} announced")));
        }
        Ok(())
    }

    fn gather(&mut self, mut bytes: &[u8], shares: &mut Shares) -> Result<()> {
        while !bytes.is_empty() {
            let left = self.layout.len - self.taken;
            let begun = self.filled as u64;
            let wanted = self.layout.stripe().min(begun + left) as usize;
            if self.filled == 0 {
                let unit = self.unit_now(wanted);
                self.stripe = Aligned::zeroed(unit * self.layout.policy.data());
            }
            let (now, later) = bytes.split_at(bytes.len().min(wanted - self.filled));
            self.stripe.bytes_mut()[self.filled..self.filled + now.len()].copy_from_slice(now);
            self.filled += now.len();
            self.taken += now.len() as u64;
            if self.filled == wanted {
                self.emit(shares)?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn unit_now(&self, wanted: usize) -> usize {
        let is_whole = wanted as u64 == self.layout.stripe();
        if is_whole { self.layout.unit as usize } else { self.layout.last_unit() as usize }
    }

    fn emit(&mut self, shares: &mut Shares) -> Result<()> {
        let policy = self.layout.policy;
        let stripe = std::mem::take(&mut self.stripe);
        self.filled = 0;
        let unit = stripe.bytes().len() / policy.data();
        let units: Vec<&[u8]> = stripe.bytes().chunks_exact(unit).collect();
        let parity = encode(&units, policy.parity())?;
        let (stripe, parity) = (stripe.freeze(), parity.freeze());
        let unit_of = |bytes: &Bytes, n: usize| bytes.slice(n * unit..(n + 1) * unit);
        for (index, share) in shares.iter_mut().enumerate() {
            share.push(match index.checked_sub(policy.data()) {
                None => unit_of(&stripe, index),
                Some(n) => unit_of(&parity, n),
            });
        }
        Ok(())
    }
}

/// The parity units of data units of equal length, one after the other.
fn encode(units: &[&[u8]], parity: usize) -> Result<Aligned> {
    let len = units.first().map_or(0, |unit| unit.len());
    let mut out = Aligned::zeroed(len * parity);
    if parity == 0 {
        return Ok(out);
    }
    let mut encoder = None;
    for at in (0..len).step_by(STEP) {
        let to = (at + STEP).min(len);
        let encoder = match &mut encoder {
            None => encoder.insert(
                ReedSolomonEncoder::new(units.len(), parity, to - at).map_err(codec_fault)?,
            ),
            Some(encoder) => {
                encoder.reset(units.len(), parity, to - at).map_err(codec_fault)?;
                encoder
            }
        };
        for unit in units {
            encoder.add_original_shard(&unit[at..to]).map_err(codec_fault)?;
        }
        let coded = encoder.encode().map_err(codec_fault)?;
        for (n, bytes) in coded.recovery_iter().enumerate() {
            out.bytes_mut()[n * len + at..n * len + to].copy_from_slice(bytes);
        }
    }
    Ok(out)
}

/// The same range of the wanted fragments, from that range of any k others: `present` are their indexes and bytes, all of
/// one length; a range that [`Layout::grains`] gave.
pub fn rebuild(policy: Policy, present: &[(usize, Bytes)], wanted: &[usize]) -> Result<Vec<Bytes>> {
    let (data, parity) = (policy.data(), policy.parity());
    let Some((_, first)) = present.first().filter(|_| present.len() >= data) else {
        let count = present.len();
        return Err(Fault::bug(format!("{count} fragments to rebuild from, {data} needed")));
    };
    if policy.is_copies() {
        return Ok(vec![first.clone(); wanted.len()]);
    }
    let len = first.len();
    let mut units: Vec<Option<Bytes>> = vec![None; data];
    for (index, bytes) in present {
        if let Some(unit) = units.get_mut(*index) {
            *unit = Some(bytes.clone());
        }
    }
    let wants_parity = wanted.iter().any(|index| *index >= data);
    let lost: Vec<usize> =
        (0..data).filter(|n| units[*n].is_none() && (wants_parity || wanted.contains(n))).collect();
    for (n, bytes) in lost.iter().zip(decode(policy, present, &lost, len)?) {
        units[*n] = Some(bytes);
    }
    let coded = if wants_parity {
        let units: Vec<&[u8]> = units.iter().flatten().map(|unit| &unit[..]).collect();
        encode(&units, parity)?.freeze()
    } else {
        Bytes::new()
    };
    let of = |index: &usize| match index.checked_sub(data) {
        Some(n) => Some(coded.slice(n * len..(n + 1) * len)),
        None => units[*index].clone(),
    };
    let missing = || Fault::bug("a fragment was not rebuilt");
    wanted.iter().map(|index| of(index).ok_or_else(missing)).collect()
}

/// Lost data units.
fn decode(
    policy: Policy,
    present: &[(usize, Bytes)],
    lost: &[usize],
    len: usize,
) -> Result<Vec<Bytes>> {
    if lost.is_empty() {
        return Ok(Vec::new());
    }
    // In order, whoever came first: each order would be a pattern of its own.
    let mut present: Vec<&(usize, Bytes)> = present.iter().collect();
    present.sort_unstable_by_key(|(index, _)| *index);
    present.truncate(policy.data());
    if present.iter().any(|(_, bytes)| bytes.len() != len) {
        return Err(Fault::bug("fragments of two lengths"));
    }
    let indexes = present.iter().map(|(index, _)| *index).collect();
    let factors = Pattern::new(policy, indexes, lost.to_vec()).factors()?;
    let mut out: Vec<Aligned> = lost.iter().map(|_| Aligned::zeroed(len)).collect();
    let present: Vec<&[u8]> = present.iter().map(|(_, bytes)| &bytes[..]).collect();
    let mut units: Vec<&mut [u8]> = out.iter_mut().map(Aligned::bytes_mut).collect();
    factors.solve(&present, &mut units);
    Ok(out.into_iter().map(Aligned::freeze).collect())
}

fn codec_fault(error: reed_solomon_simd::Error) -> Fault {
    Fault { source: Some(Box::new(error)), ..Fault::bug("erasure coding") }
}

/// Memory that begins at a multiple of [`ALIGN`], so that direct I/O takes it as it is.
#[derive(Default)]
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn zeroed(len: usize) -> Self {
        let align = ALIGN as usize;
        let memory = vec![0; len + align];
        let start = memory.as_ptr().addr().next_multiple_of(align) - memory.as_ptr().addr();
        Self { memory, start, len }
    }
    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
    fn freeze(self) -> Bytes {
        Bytes::from(self.memory).slice(self.start..self.start + self.len)
    }
}

#[cfg(test)]
mod tests;
