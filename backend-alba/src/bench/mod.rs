//! How fast a store of objects is: loads on a [`Target`], measured by the one who asks. Every byte that is read is checked.

mod known;
mod load;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::fault::{Fault, Result};
use load::{Load, measure};

pub use known::{Check, Known};
pub use load::{Measured, Operation};

/// Deletions at once, and puts of objects that are only there to be read.
const UNMEASURED: usize = 4;

/// A store to be measured.
#[async_trait]
pub trait Target: Send + Sync + 'static {
    /// A new object.
    async fn put(&self, name: &str, body: Vec<Bytes>) -> Result<()>;
    /// Feeds the check with a range: `len` bytes from `offset`.
    async fn get(&self, name: &str, (offset, len): (u64, u64), check: &mut Check) -> Result<()>;
    async fn delete(&self, name: &str) -> Result<()>;
    /// Of all objects that have this prefix.
    async fn names(&self, prefix: &str) -> Result<Vec<String>>;
}

/// What is measured.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// Sizes of the objects.
    #[arg(long = "size", value_name = "SIZE,...", value_delimiter = ',', default_values = ["4MiB", "64MiB"])]
    pub sizes: Vec<Size>,
    /// Sizes of the ranges, which are read of the largest objects.
    #[arg(long = "range", value_name = "SIZE,...", value_delimiter = ',', default_values = ["4KiB", "16KiB", "64KiB"])]
    pub ranges: Vec<Size>,
    /// Operations at once.
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', default_values = ["1", "4", "16"])]
    pub in_flight: Vec<usize>,
    /// For so long each.
    #[arg(long, default_value_t = 3)]
    pub seconds: u64,
    /// Puts of one measurement end when they have put so much.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub most: Size,
    /// Only these.
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["put", "get", "range"])]
    pub only: Vec<Operation>,
    /// What is in the page cache of this machine when a measurement of reads begins.
    #[arg(long, value_enum, default_value = "as-is")]
    pub cache: Cache,
    /// Puts take until this directory's file system is synced: for servers on this machine that answer before bytes are
    /// durable.
    #[arg(long, value_name = "DIR")]
    pub sync: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cache {
    /// Nothing is done about it.
    AsIs,
    /// Everything was read once.
    Warm,
    /// Nothing: it is dropped, which only root can do, and no object is read twice by one measurement of whole objects.
    Cold,
}

/// A number of bytes, typed as `4096`, `64KiB`, `4MiB` or `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for Size {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self> {
        let of_unit = |(unit, bytes): &(&str, u64)| Some((text.strip_suffix(unit)?, *bytes));
        let (number, unit) = UNITS.iter().find_map(of_unit).unwrap_or((text, 1));
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        let bytes = bytes.filter(|bytes| (1..=1 << 40).contains(bytes));
        let bad = || {
            Fault::invalid(format!("size {text:?}: legal are 1 to 1024GiB, as in 64KiB or 4MiB"))
        };
        bytes.map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, bytes)| self.0.is_multiple_of(*bytes));
        match whole {
            Some((unit, bytes)) => write!(f, "{} {unit}", self.0 / bytes),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// Runs all of a plan and calls `each` with every result as it comes. Objects of one size are deleted before those of the next
/// are put, unless they are to be kept; so are those of one measurement of puts before the next.
pub async fn run(
    target: Arc<dyn Target>,
    plan: &Plan,
    keep: Keep,
    mut each: impl FnMut(&Measured),
) -> Result<Vec<Measured>> {
    plan.check()?;
    let mut bench = Bench { target, plan, known: Known::default(), results: Vec::new() };
    let largest = plan.sizes.iter().max();
    for size in &plan.sizes {
        bench.puts(size.0, &mut each).await?;
        bench.reads(size.0, Some(size) == largest, &mut each).await?;
        if keep == Keep::Nothing {
            bench.delete(size.0).await?;
        }
    }
    Ok(bench.results)
}

/// What stays in the target afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    /// The objects of the last measurement of puts of each size.
    Objects,
}

impl Plan {
    fn wants(&self, operation: Operation) -> bool {
        self.only.contains(&operation)
    }

    fn check(&self) -> Result<()> {
        let largest = self.sizes.iter().max();
        let too_long = self.ranges.iter().find(|range| Some(range) > largest.as_ref());
        if let (true, Some(range)) = (self.wants(Operation::Range), too_long) {
            return Err(Fault::invalid(format!("ranges of {range}: no object is that large")));
        }
        let legal = 1..=1024;
        match self.in_flight.iter().find(|count| !legal.contains(*count)) {
            Some(count) => Err(Fault::invalid(format!("in flight: {count}, legal is 1 to 1024"))),
            None => Ok(()),
        }
    }
}

struct Bench<'a> {
    target: Arc<dyn Target>,
    plan: &'a Plan,
    known: Known,
    results: Vec<Measured>,
}

impl Bench<'_> {
    async fn puts(&mut self, size: u64, each: &mut impl FnMut(&Measured)) -> Result<()> {
        let mut first = self.next_number(size).await?;
        if !self.plan.wants(Operation::Put) {
            if first == 0 {
                let load = Load { in_flight: UNMEASURED, ..self.load(Operation::Put, size, size) };
                measure(&self.target, &self.known, load, Vec::new()).await?;
            }
            return Ok(());
        }
        for in_flight in &self.plan.in_flight {
            // Otherwise the disk would fill up.
            self.delete(size).await?;
            self.sync()?;
            let load =
                Load { in_flight: *in_flight, first, ..self.load(Operation::Put, size, size) };
            let measured = measure(&self.target, &self.known, load, Vec::new()).await?;
            let begun = Instant::now();
            self.sync()?;
            first += measured.count();
            self.note(measured.and_sync(begun.elapsed()), each);
        }
        Ok(())
    }

    async fn reads(
        &mut self,
        size: u64,
        with_ranges: bool,
        each: &mut impl FnMut(&Measured),
    ) -> Result<()> {
        let names = self.names(size).await?;
        let mut loads = vec![(Operation::Get, size)];
        if with_ranges {
            loads.extend(self.plan.ranges.iter().map(|range| (Operation::Range, range.0)));
        }
        loads.retain(|(operation, _)| self.plan.wants(*operation));
        if self.plan.cache == Cache::Warm && !loads.is_empty() {
            self.read_all(size, &names).await?;
        }
        for (operation, bytes) in loads {
            for in_flight in &self.plan.in_flight {
                let mut load = self.load(operation, size, bytes);
                load.in_flight = *in_flight;
                load.most = u64::MAX;
                if self.plan.cache == Cache::Cold {
                    drop_caches()?;
                    if operation == Operation::Get {
                        load.most = names.len() as u64;
                    }
                }
                let measured = measure(&self.target, &self.known, load, names.clone()).await?;
                self.note(measured, each);
            }
        }
        Ok(())
    }

    async fn read_all(&self, size: u64, names: &[String]) -> Result<()> {
        let most = names.len() as u64;
        let time = Duration::MAX;
        let load =
            Load { most, time, in_flight: UNMEASURED, ..self.load(Operation::Get, size, size) };
        measure(&self.target, &self.known, load, names.to_vec()).await.map(drop)
    }

    fn note(&mut self, measured: Measured, each: &mut impl FnMut(&Measured)) {
        each(&measured);
        self.results.push(measured);
    }

    fn load(&self, operation: Operation, object_bytes: u64, bytes: u64) -> Load {
        let (time, most) = (Duration::from_secs(self.plan.seconds), self.plan.most.0 / bytes);
        Load { operation, object_bytes, bytes, in_flight: 1, time, most, first: 0 }
    }

    async fn names(&self, size: u64) -> Result<Vec<String>> {
        self.target.names(&format!("{size}-")).await
    }

    /// After those of all objects of this size.
    async fn next_number(&self, size: u64) -> Result<u64> {
        let names = self.names(size).await?;
        let numbers = names.iter().filter_map(|name| name.rsplit_once('-')?.1.parse::<u64>().ok());
        Ok(numbers.max().map_or(0, |last| last + 1))
    }

    async fn delete(&self, size: u64) -> Result<()> {
        let delete = |name: String| {
            let target = self.target.clone();
            async move { target.delete(&name).await }
        };
        let names = self.names(size).await?;
        stream::iter(names).map(delete).buffer_unordered(UNMEASURED).try_collect().await
    }

    fn sync(&self) -> Result<()> {
        self.plan.sync.as_deref().map_or(Ok(()), sync)
    }
}

/// Blocks the thread: nothing else is to be done meanwhile.
fn sync(directory: &Path) -> Result<()> {
    let io = |e| Fault::io(format!("cannot sync {}", directory.display()), e);
    let directory = File::open(directory).map_err(io)?;
    rustix::fs::syncfs(directory).map_err(|e| io(e.into()))
}

fn drop_caches() -> Result<()> {
    rustix::fs::sync();
    let dropped = std::fs::write("/proc/sys/vm/drop_caches", "1");
    dropped.map_err(|e| Fault::io("cannot drop the page cache: only root can", e))
}
