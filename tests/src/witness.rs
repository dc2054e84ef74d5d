//! Knows what a volume may show after a crash: a verifying writer, and the judge of what is found afterwards (P1).
//!
//! The writer keeps many requests in flight, never two on the same block, and notes when each was sent and acknowledged.
//! Each 4 KiB block it writes carries the request's number. The judge asks of the blocks found:
//! - no block is torn, and each shows a request that wrote it (or what was there before);
//! - nothing that was acknowledged before an acknowledged FLUSH was sent, or acknowledged with FUA, is missing;
//! - a prefix: if a request is there, so is every request acknowledged before that one was sent;
//! - a request is there as a whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;
use std::time::Instant;

use crate::nbd::{
    CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE, CMD_WRITE_ZEROES, Connection, FLAG_FUA, Reply,
};

pub const BLOCK: usize = 4096;
/// Requests in flight.
const DEPTH: usize = 32;
/// Most blocks of one request: 256 KiB, the largest that is atomic over a crash.
const MAX_BLOCKS: u64 = 64;

/// A request's number, from 1; 0 in a block stands for zeroes never written.
type Number = u64;

/// Reproducible randomness (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % bound
    }
}

/// One change that was sent.
#[derive(Debug)]
struct Change {
    first: u64,
    blocks: u64,
    zeroes: bool,
    /// Moments, counted in events of this writer.
    sent: u64,
    acknowledged: Option<u64>,
    durable: bool,
}

/// What is in flight, by cookie.
#[derive(Debug)]
enum Pending {
    Change(Number),
    /// Changes acknowledged before this moment are durable when it returns.
    Flush(u64),
    Read {
        first: u64,
        blocks: u64,
    },
}

/// The writer and its memory of one volume.
pub struct Witness {
    blocks: u64,
    random: Random,
    moment: u64,
    /// Changes since the last [`Witness::accept`], by number.
    changes: BTreeMap<Number, Change>,
    next: Number,
    /// Changes before this one are on the backend, see [`Witness::mark_published`].
    published: Number,
    /// Per block: what it showed when last accepted, then the changes of it since, in order.
    accepted: Vec<Number>,
    since: Vec<Vec<Number>>,
    pending: HashMap<u64, Pending>,
    busy: Vec<bool>,
    /// Requests acknowledged so far, to see that there was load.
    pub acknowledged: u64,
    pub flushes: u64,
}

impl Witness {
    /// For a volume that reads as zeroes.
    #[must_use]
    pub fn new(size_bytes: u64, seed: u64) -> Self {
        let blocks = size_bytes / BLOCK as u64;
        let count = usize::try_from(blocks).unwrap();
        Self {
            blocks,
            random: Random::new(seed),
            moment: 0,
            changes: BTreeMap::new(),
            next: 1,
            published: 1,
            accepted: vec![0; count],
            since: vec![Vec::new(); count],
            pending: HashMap::new(),
            busy: vec![false; count],
            acknowledged: 0,
            flushes: 0,
        }
    }

    /// Writes, trims, zeroes, flushes and reads until `end`, then waits for all replies. An error means that the
    /// connection broke. Wrong bytes or an error reply panic.
    pub fn work(&mut self, socket: &Path, disk: &str, end: Instant) -> io::Result<()> {
        let mut connection = Connection::open(socket, disk)?;
        while Instant::now() < end {
            while self.pending.len() < DEPTH {
                self.send_one(&mut connection)?;
            }
            self.receive_one(&mut connection)?;
        }
        while !self.pending.is_empty() {
            self.receive_one(&mut connection)?;
        }
        connection.disconnect()
    }

    /// From now on only what was acknowledged until now counts as durable: it is on the backend, and what comes later
    /// may be lost with the local state.
    pub fn mark_published(&mut self) {
        for change in self.changes.values_mut() {
            change.durable = change.acknowledged.is_some();
        }
        self.published = self.next;
    }

    /// The local state is lost: only what was published must be there.
    pub fn lose_local_state(&mut self) {
        for (_, change) in self.changes.range_mut(self.published..) {
            change.durable = false;
        }
    }

    fn send_one(&mut self, connection: &mut Connection) -> io::Result<()> {
        self.moment += 1;
        match self.random.below(100) {
            0..7 => {
                let cookie = connection.send((CMD_FLUSH, 0), 0, 0, &[])?;
                self.pending.insert(cookie, Pending::Flush(self.moment));
                Ok(())
            }
            7..15 => self.send_read(connection),
            15..23 => self.send_change(connection, CMD_TRIM, 0),
            23..27 => self.send_change(connection, CMD_WRITE_ZEROES, 0),
            27..33 => self.send_change(connection, CMD_WRITE, FLAG_FUA),
            _ => self.send_change(connection, CMD_WRITE, 0),
        }
    }

    /// A range that no request in flight touches; mostly short.
    fn free_range(&mut self) -> Option<(u64, u64)> {
        let most = if self.random.below(10) == 0 { MAX_BLOCKS } else { 4 };
        let count = 1 + self.random.below(most);
        let first = self.random.below(self.blocks - count);
        let free = (first..first + count).all(|block| !self.busy[block as usize]);
        free.then_some((first, count))
    }

    fn occupy(&mut self, (first, blocks): (u64, u64), busy: bool) {
        (first..first + blocks).for_each(|block| self.busy[block as usize] = busy);
    }

    fn send_read(&mut self, connection: &mut Connection) -> io::Result<()> {
        let Some(range @ (first, blocks)) = self.free_range() else { return Ok(()) };
        let (offset, len) = bytes_of(range);
        let cookie = connection.send((CMD_READ, 0), offset, len, &[])?;
        self.occupy(range, true);
        self.pending.insert(cookie, Pending::Read { first, blocks });
        Ok(())
    }

    fn send_change(
        &mut self,
        connection: &mut Connection,
        command: u16,
        flags: u16,
    ) -> io::Result<()> {
        let Some(range @ (first, blocks)) = self.free_range() else { return Ok(()) };
        let number = self.next;
        self.next += 1;
        let zeroes = command != CMD_WRITE;
        let durable = false;
        let change =
            Change { first, blocks, zeroes, sent: self.moment, acknowledged: None, durable };
        self.changes.insert(number, change);
        (first..first + blocks).for_each(|block| self.since[block as usize].push(number));
        self.occupy(range, true);
        let (offset, len) = bytes_of(range);
        let data = match command {
            CMD_WRITE => (first..first + blocks).flat_map(|block| stamp(number, block)).collect(),
            _ => Vec::new(),
        };
        let cookie = connection.send((command, flags), offset, len, &data)?;
        self.pending.insert(cookie, Pending::Change(number));
        if flags & FLAG_FUA != 0 {
            // Counts only together with the acknowledgement.
            self.changes.get_mut(&number).unwrap().durable = true;
        }
        Ok(())
    }

    fn receive_one(&mut self, connection: &mut Connection) -> io::Result<()> {
        let Reply { cookie, error, data } = connection.receive()?;
        let pending = self.pending.remove(&cookie).expect("a reply to a request in flight");
        assert_eq!(error, 0, "error {error} for {pending:?}");
        self.moment += 1;
        match pending {
            Pending::Change(number) => {
                let change = self.changes.get_mut(&number).unwrap();
                change.acknowledged = Some(self.moment);
                let range = (change.first, change.blocks);
                self.occupy(range, false);
                self.acknowledged += 1;
            }
            Pending::Flush(sent) => {
                let before = |change: &&mut Change| change.acknowledged.is_some_and(|at| at < sent);
                self.changes.values_mut().filter(before).for_each(|change| change.durable = true);
                self.flushes += 1;
            }
            Pending::Read { first, blocks } => {
                self.judge_read(first, &data);
                self.occupy((first, blocks), false);
            }
        }
        Ok(())
    }

    /// A block nobody is changing shows its last change.
    fn judge_read(&self, first: u64, data: &[u8]) {
        for (block, found) in (first..).zip(data.chunks(BLOCK)) {
            let last = self.since[block as usize].last().copied();
            let expected = last.map_or(self.accepted[block as usize], |number| {
                if self.changes[&number].zeroes { 0 } else { number }
            });
            let shown = shown(found, block);
            assert_eq!(
                shown,
                Ok(expected),
                "block {block} read while running (Ok: request number, 0 zeroes)"
            );
        }
    }

    /// Reads the whole volume after a crash and judges it; what is found is the truth from then on.
    pub fn judge_and_accept(&mut self, socket: &Path, disk: &str) -> Result<(), String> {
        let found = self.read_all(socket, disk)?;
        self.judge(&found)?;
        self.accept(found);
        Ok(())
    }

    fn read_all(&self, socket: &Path, disk: &str) -> Result<Vec<Number>, String> {
        let fail = |error: io::Error| format!("reading the volume after the crash: {error}");
        let mut connection = Connection::open(socket, disk).map_err(fail)?;
        let mut found = Vec::new();
        for first in (0..self.blocks).step_by(256) {
            let range = (first, 256.min(self.blocks - first));
            let (offset, len) = bytes_of(range);
            let data = connection.read(offset, len).map_err(fail)?;
            for (block, bytes) in (first..).zip(data.chunks(BLOCK)) {
                found.push(shown(bytes, block)?);
            }
        }
        connection.disconnect().map_err(fail)?;
        Ok(found)
    }

    fn judge(&self, found: &[Number]) -> Result<(), String> {
        let mut latest_seen = 0;
        for (block, number) in found.iter().enumerate() {
            let (oldest, _) = self.candidates(block, *number)?;
            if let Some(change) = self.changes.get(&oldest) {
                latest_seen = latest_seen.max(change.sent);
                self.judge_whole(oldest, change, found)?;
            }
        }
        for (number, change) in &self.changes {
            let acknowledged = change.acknowledged.unwrap_or(u64::MAX);
            let why = match () {
                () if change.durable && acknowledged != u64::MAX => "is durable but missing",
                () if acknowledged < latest_seen => "is missing though a later one is there",
                () => continue,
            };
            self.judge_there(*number, change, found)
                .map_err(|at| format!("request {number} ({change:?}) {why}: {at}"))?;
        }
        Ok(())
    }

    fn judge_whole(&self, number: Number, change: &Change, found: &[Number]) -> Result<(), String> {
        self.judge_there(number, change, found)
            .map_err(|at| format!("request {number} ({change:?}) is there only in part: {at}"))
    }

    /// Every block of the change shows it or something newer.
    fn judge_there(&self, number: Number, change: &Change, found: &[Number]) -> Result<(), String> {
        for block in change.first..change.first + change.blocks {
            let shown = found[block as usize];
            let (_, newest) = self.candidates(block as usize, shown)?;
            if newest < number {
                return Err(format!("block {block} shows {shown} (newest it may be: {newest})"));
            }
        }
        Ok(())
    }

    /// The oldest and the newest request that what a block shows may stem from; 0: what was accepted before.
    fn candidates(&self, block: usize, shown: Number) -> Result<(Number, Number), String> {
        let as_accepted = (self.accepted[block] == shown).then_some(0);
        let since = self.since[block].iter().copied().filter(|number| {
            let zeroes = self.changes[number].zeroes;
            if shown == 0 { zeroes } else { *number == shown && !zeroes }
        });
        let all: Vec<Number> = as_accepted.into_iter().chain(since).collect();
        match (all.first(), all.last()) {
            (Some(oldest), Some(newest)) => Ok((*oldest, *newest)),
            _ => Err(format!(
                "block {block} shows {shown}, before the crash it held {} and then {:?}",
                self.accepted[block], self.since[block]
            )),
        }
    }

    fn accept(&mut self, found: Vec<Number>) {
        self.accepted = found;
        self.changes.clear();
        self.since.iter_mut().for_each(Vec::clear);
        self.pending.clear();
        self.busy.fill(false);
    }
}

fn bytes_of((first, blocks): (u64, u64)) -> (u64, u32) {
    (first * BLOCK as u64, u32::try_from(blocks * BLOCK as u64).unwrap())
}

/// What a request writes into a block: its number, the block's, and words that follow from both.
fn stamp(number: Number, block: u64) -> Vec<u8> {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block.rotate_left(32);
    let rest = std::iter::repeat_with(|| {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        word
    });
    [number, block].into_iter().chain(rest).take(BLOCK / 8).flat_map(u64::to_le_bytes).collect()
}

/// The number in a block, 0 for zeroes; an error when it is neither: torn, or another block's.
fn shown(bytes: &[u8], block: u64) -> Result<Number, String> {
    let (number, _) = bytes.split_first_chunk().ok_or("a short block")?;
    let number = u64::from_le_bytes(*number);
    let whole = match number {
        0 => bytes.iter().all(|byte| *byte == 0),
        number => bytes == stamp(number, block),
    };
    if whole { Ok(number) } else { Err(format!("block {block} is torn: it begins with {number}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A witness of eight blocks to which these changes were sent one after the other, each acknowledged at once:
    /// (first block, blocks, zeroes, durable).
    fn witness(changes: &[(u64, u64, bool, bool)]) -> Witness {
        let mut witness = Witness::new(8 * BLOCK as u64, 1);
        for (first, blocks, zeroes, durable) in changes.iter().copied() {
            let number = witness.next;
            witness.next += 1;
            let (sent, acknowledged) = (witness.moment + 1, Some(witness.moment + 2));
            witness.moment += 2;
            let change = Change { first, blocks, zeroes, sent, acknowledged, durable };
            witness.changes.insert(number, change);
            (first..first + blocks).for_each(|block| witness.since[block as usize].push(number));
        }
        witness
    }

    fn judged(witness: &Witness, found: [Number; 8]) -> bool {
        witness.judge(&found).is_ok()
    }

    #[test]
    fn every_prefix_is_fine_and_nothing_else() {
        let w = witness(&[
            (0, 1, false, false),
            (1, 1, false, false),
            (0, 1, true, false),
            (2, 1, false, false),
        ]);
        for good in [[0; 3], [1, 0, 0], [1, 2, 0], [0, 2, 0], [0, 2, 4]] {
            assert!(judged(&w, [good[0], good[1], good[2], 0, 0, 0, 0, 0]), "{good:?}");
        }
        for bad in [[0, 0, 4], [1, 2, 4], [1, 0, 4], [2, 0, 0], [0, 1, 0]] {
            assert!(!judged(&w, [bad[0], bad[1], bad[2], 0, 0, 0, 0, 0]), "{bad:?}");
        }
    }

    #[test]
    fn what_is_durable_must_be_there() {
        let w = witness(&[(0, 1, false, true), (1, 1, false, false)]);
        assert!(judged(&w, [1, 0, 0, 0, 0, 0, 0, 0]));
        assert!(judged(&w, [1, 2, 0, 0, 0, 0, 0, 0]));
        assert!(!judged(&w, [0; 8]));
    }

    #[test]
    fn a_request_in_flight_is_there_as_a_whole_or_not() {
        let mut w = witness(&[(0, 3, false, false)]);
        w.changes.get_mut(&1).unwrap().acknowledged = None;
        assert!(judged(&w, [0; 8]));
        assert!(judged(&w, [1, 1, 1, 0, 0, 0, 0, 0]));
        assert!(!judged(&w, [1, 1, 0, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn a_torn_block_and_anothers_block_are_found() {
        let mut bytes = stamp(5, 7);
        assert_eq!(shown(&bytes, 7), Ok(5));
        assert!(shown(&bytes, 8).is_err());
        bytes[4000] ^= 1;
        assert!(shown(&bytes, 7).is_err());
        assert_eq!(shown(&[0; BLOCK], 7), Ok(0));
        let mut torn = stamp(5, 7);
        torn[..512].fill(0);
        assert!(shown(&torn, 7).is_err());
    }
}
