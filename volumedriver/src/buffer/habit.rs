//! Whether a flush is about to come. A database or the journal of a file system writes one record and flushes it, again and
//! again: the commit may begin with the write, and the flush finds it well under way.

/// Flushes in a row after a single operation each, until the next one is expected.
const STEADY: u32 = 4;

/// How operations and flushes follow each other.
#[derive(Default)]
pub(super) struct Habit {
    /// Operations since the last flush.
    operations: u32,
    /// Flushes in a row that each came after one operation.
    steady: u32,
}

impl Habit {
    pub fn appended(&mut self) {
        self.operations = self.operations.saturating_add(1);
    }

    pub fn flushed(&mut self) {
        match std::mem::take(&mut self.operations) {
            0 => {}
            1 => self.steady = self.steady.saturating_add(1),
            _ => self.steady = 0,
        }
    }

    /// An operation is there, and a flush will follow. One that does not come was a write too many, and the last: with the
    /// second operation nothing is expected any more.
    pub fn expects_flush(&self) -> bool {
        self.operations == 1 && self.steady >= STEADY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: &str) -> Habit {
        let mut habit = Habit::default();
        for step in steps.chars() {
            if step == 'f' { habit.flushed() } else { habit.appended() }
        }
        habit
    }

    #[test]
    fn one_write_one_flush_is_a_habit() {
        for (steps, expected) in [
            ("wfwfwfwfw", true),
            ("wfwfwfwf", false),
            ("wfwfwfw", false),
            ("wfwfwfwffffw", true),
            ("wfwfwfwfww", false),
            ("wfwfwfwfwwfw", false),
            ("wwfwwfwwfwwfwwfww", false),
            ("wwwwwwwwwwfw", false),
            ("wfwfwfwfwwfwfwfwfw", false),
            ("wfwfwfwfwwfwfwfwfwfw", true),
        ] {
            assert_eq!(after(steps).expects_flush(), expected, "{steps}");
        }
    }
}
