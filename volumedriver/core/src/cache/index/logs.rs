//! Short numbers for the logs that clusters come from: (volume, epoch), counted by entry, so that an entry's key takes 12
//! bytes and is still exact.

use std::collections::BTreeMap;

use crate::units::{Epoch, VolumeId};

/// Most logs at a time; clusters of further ones are not taken in. About 100 bytes each.
pub const MOST_LOGS: usize = 1 << 16;

#[derive(Default)]
pub struct Logs {
    numbers: BTreeMap<(VolumeId, Epoch), u32>,
    uses: Vec<Use>,
    /// Numbers without entries.
    free: Vec<u32>,
}

struct Use {
    name: (VolumeId, Epoch),
    entries: u32,
}

impl Logs {
    pub fn find(&self, volume: VolumeId, epoch: Epoch) -> Option<u32> {
        self.numbers.get(&(volume, epoch)).copied()
    }

    pub fn name(&self, number: u32) -> Option<(VolumeId, Epoch)> {
        self.uses.get(number as usize).map(|log| log.name)
    }

    /// One entry more of this log; its number.
    pub fn enter(&mut self, volume: VolumeId, epoch: Epoch) -> Option<u32> {
        let name = (volume, epoch);
        let number = match (self.find(volume, epoch), self.free.pop()) {
            (Some(number), free) => {
                self.free.extend(free);
                number
            }
            (None, Some(free)) => free,
            (None, None) if self.uses.len() < MOST_LOGS => {
                self.uses.push(Use { name, entries: 0 });
                self.uses.len() as u32 - 1
            }
            (None, None) => return None,
        };
        let log = &mut self.uses[number as usize];
        if log.entries == 0 {
            log.name = name;
            self.numbers.insert(name, number);
        }
        log.entries += 1;
        Some(number)
    }

    /// One entry less of this log.
    pub fn leave(&mut self, number: u32) {
        let log = &mut self.uses[number as usize];
        log.entries -= 1;
        if log.entries == 0 {
            self.numbers.remove(&log.name);
            self.free.push(number);
        }
    }
}
