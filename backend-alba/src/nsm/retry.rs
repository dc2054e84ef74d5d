//! How long a change that others keep getting in front of goes on trying.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::fault::{Fault, Result};
use crate::outside::Outside;

/// Someone gets through every time, so this is far more than it takes.
const PATIENCE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

pub(super) struct Retry<'a> {
    outside: &'a Outside,
    begun: Instant,
    pause: Duration,
}

impl<'a> Retry<'a> {
    pub fn new(outside: &'a Outside) -> Self {
        Self { outside, begun: Instant::now(), pause: Duration::ZERO }
    }

    /// Waits until it is worth trying again: not at all the first time, then longer and longer.
    pub async fn again(&mut self) -> Result<()> {
        if self.begun.elapsed() > PATIENCE {
            let waited = PATIENCE.as_secs();
            return Err(Fault::unavailable(format!(
                "others changed the same names for {waited} s; nothing was changed, try again"
            )));
        }
        if !self.pause.is_zero() {
            sleep(self.pause.mul_f64(self.outside.fraction())).await;
        }
        self.pause = (self.pause * 2).clamp(Duration::from_millis(1), LONGEST_PAUSE);
        Ok(())
    }
}
