//! Lost data units by multiplication. The code is linear: a lost unit is the sum of k present ones, each times a factor that
//! follows from nothing but which ones are present. The decoder of reed-solomon-simd finds out anew in every decoding what is
//! missing (an evaluation over the whole field of 2^16 elements), and a short range costs that much; here each pattern is
//! asked about once, and its factors are kept. The arithmetic is that crate's.

use std::sync::{Arc, LazyLock};

use quick_cache::sync::Cache;
use reed_solomon_simd::ReedSolomonDecoder;
use reed_solomon_simd::engine::{DefaultEngine, Engine as _, GF_MODULUS, GfElement, tables, utils};

use super::{GRAIN, codec_fault};
use crate::fault::{Fault, Result};
use crate::preset::Policy;

/// Patterns whose factors are kept: with (8, 2) there are 45, and more than a few only where OSDs come and go.
const PATTERNS: usize = 1024;
/// Field elements lie in the crate's shards in blocks of this many bytes: 32 low halves, then their 32 high halves.
const CHUNK: usize = GRAIN as usize;
/// Multiplied at a time, so that what is added up stays in the processor's cache.
const BLOCK: usize = 8 << 10;

/// Which fragments are there, k of them, and which data units are wanted, both by index.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Pattern {
    data: usize,
    parity: usize,
    present: Vec<usize>,
    lost: Vec<usize>,
}

/// For each lost unit its factors, one for each present fragment, as logarithms. `None`: it does not count.
pub(super) struct Factors(Vec<Vec<Option<GfElement>>>);

static KNOWN: LazyLock<Cache<Pattern, Arc<Factors>>> = LazyLock::new(|| Cache::new(PATTERNS));
static ENGINE: LazyLock<DefaultEngine> = LazyLock::new(DefaultEngine::new);

impl Pattern {
    pub fn new(policy: Policy, present: Vec<usize>, lost: Vec<usize>) -> Self {
        Self { data: policy.data(), parity: policy.parity(), present, lost }
    }

    pub fn factors(self) -> Result<Arc<Factors>> {
        if let Some(known) = KNOWN.get(&self) {
            return Ok(known);
        }
        let factors = Arc::new(self.work_out()?);
        KNOWN.insert(self, factors.clone());
        Ok(factors)
    }

    /// Decodes fragments of which in the nth chunk only the nth holds anything, the number 1: what comes out is its factor.
    fn work_out(&self) -> Result<Factors> {
        let len = CHUNK * self.present.len();
        let mut decoder =
            ReedSolomonDecoder::new(self.data, self.parity, len).map_err(codec_fault)?;
        for (place, index) in self.present.iter().enumerate() {
            let mut fragment = vec![0; len];
            fragment[place * CHUNK..][..CHUNK / 2].fill(1);
            match index.checked_sub(self.data) {
                None => decoder.add_original_shard(*index, fragment),
                Some(n) => decoder.add_recovery_shard(n, fragment),
            }
            .map_err(codec_fault)?;
        }
        let decoded = decoder.decode().map_err(codec_fault)?;
        let row = |index: &usize| {
            let unit = decoded.restored_original(*index);
            let unit = unit.ok_or_else(|| Fault::bug("a unit was not restored"))?;
            Ok(unit.chunks_exact(CHUNK).map(factor).collect())
        };
        self.lost.iter().map(row).collect::<Result<_>>().map(Factors)
    }
}

/// The logarithm of what the number 1 was multiplied by.
fn factor(chunk: &[u8]) -> Option<GfElement> {
    let product = GfElement::from_le_bytes([chunk[0], chunk[CHUNK / 2]]);
    let log = |element: GfElement| u32::from(tables::get_exp_log().log[usize::from(element)]);
    let modulus = u32::from(GF_MODULUS);
    let ratio = (log(product) + modulus - log(1)) % modulus;
    (product != 0).then_some(ratio as GfElement)
}

impl Factors {
    /// The lost units into `out`, one each, from the present fragments. All are of one length, a multiple of [`GRAIN`], and
    /// what is in `out` is zeroes.
    pub fn solve(&self, present: &[&[u8]], out: &mut [&mut [u8]]) {
        let len = out.first().map_or(0, |unit| unit.len());
        let mut product = [[0; CHUNK]; BLOCK / CHUNK];
        for at in (0..len).step_by(BLOCK) {
            let to = (at + BLOCK).min(len);
            for (unit, factors) in out.iter_mut().zip(&self.0) {
                let (sum, _) = unit[at..to].as_chunks_mut::<CHUNK>();
                for (bytes, factor) in present.iter().zip(factors) {
                    let (chunks, _) = bytes[at..to].as_chunks::<CHUNK>();
                    let Some(factor) = factor else { continue };
                    let product = &mut product[..chunks.len()];
                    product.copy_from_slice(chunks);
                    ENGINE.mul(product, *factor);
                    utils::xor(sum, product);
                }
            }
        }
    }
}
