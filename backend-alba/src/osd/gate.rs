//! Who may use a disk now: so many operations at once, those of clients before those of maintenance.
//!
//! Maintenance gets at most a quarter of the places, and none while a client waits; but of [`TURN`] places given away while
//! both wait one is its own, so that it ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::fault::{Fault, Result};

/// Of so many places given away while both wait, one goes to maintenance.
const TURN: u32 = 16;
/// Maintenance has one place in so many.
const SHARE: usize = 4;

/// For whom something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Priority {
    /// Somebody waits for it.
    #[default]
    Foreground,
    /// Repair, rebalancing, verification.
    Background,
}

#[derive(Clone, Debug)]
pub struct Gate(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    free: usize,
    /// Places that maintenance has, and may have.
    background: usize,
    most_background: usize,
    clients: VecDeque<oneshot::Sender<Place>>,
    maintenance: VecDeque<oneshot::Sender<Place>>,
    /// Places given to clients since maintenance had its turn, while it waited.
    passed: u32,
}

/// Leave to use the disk; given back when dropped.
#[derive(Debug)]
pub struct Place {
    gate: Gate,
    priority: Priority,
}

impl Gate {
    #[must_use]
    pub fn new(places: usize) -> Self {
        let free = places.max(1);
        Self(Arc::new(Mutex::new(State {
            free,
            background: 0,
            most_background: (free / SHARE).max(1),
            clients: VecDeque::new(),
            maintenance: VecDeque::new(),
            passed: 0,
        })))
    }

    /// Waits for a place. Whoever no longer waits loses its turn only.
    pub async fn enter(&self, priority: Priority) -> Result<Place> {
        let (sender, turn) = oneshot::channel();
        match priority {
            Priority::Foreground => self.lock().clients.push_back(sender),
            Priority::Background => self.lock().maintenance.push_back(sender),
        }
        self.give_away();
        turn.await.map_err(|_| Fault::bug("the gate of an OSD is gone"))
    }

    fn give_away(&self) {
        let mut refused = Vec::new();
        {
            let mut state = self.lock();
            while let Some((priority, sender)) = state.next() {
                let place = Place { gate: self.clone(), priority };
                refused.extend(sender.send(place).err());
            }
        }
        // Given to someone who went away in this very moment: not dropped under the lock.
        drop(refused);
    }

    // Each change is whole before anything can panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    /// Who is next, counted in.
    fn next(&mut self) -> Option<(Priority, oneshot::Sender<Place>)> {
        for queue in [&mut self.clients, &mut self.maintenance] {
            while queue.front().is_some_and(oneshot::Sender::is_closed) {
                queue.pop_front();
            }
        }
        if self.free == 0 {
            return None;
        }
        let may_maintain = !self.maintenance.is_empty() && self.background < self.most_background;
        let is_its_turn = self.clients.is_empty() || self.passed + 1 >= TURN;
        if may_maintain && is_its_turn {
            let sender = self.maintenance.pop_front()?;
            self.passed = 0;
            self.free -= 1;
            self.background += 1;
            return Some((Priority::Background, sender));
        }
        let sender = self.clients.pop_front()?;
        self.passed += u32::from(may_maintain);
        self.free -= 1;
        Some((Priority::Foreground, sender))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.free += 1;
        if self.priority == Priority::Background {
            state.background -= 1;
        }
        drop(state);
        self.gate.give_away();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt as _;

    use super::*;

    type Waiting<'a> = Pin<Box<dyn Future<Output = Result<Place>> + Send + 'a>>;

    fn ask(gate: &Gate, priority: Priority) -> (Waiting<'_>, Option<Place>) {
        let mut waiting: Waiting<'_> = Box::pin(gate.enter(priority));
        let now = waiting.as_mut().now_or_never().map(Result::unwrap);
        (waiting, now)
    }

    #[test]
    fn maintenance_has_a_quarter_and_waits_for_clients() {
        let gate = Gate::new(8);
        let background: Vec<_> = (0..4).map(|_| ask(&gate, Priority::Background)).collect();
        let inside = background.iter().filter(|(_, place)| place.is_some()).count();
        assert_eq!(inside, 2);
        let clients: Vec<_> = (0..7).map(|_| ask(&gate, Priority::Foreground)).collect();
        assert_eq!(clients.iter().filter(|(_, place)| place.is_some()).count(), 6);
        let mut background = background.into_iter();
        let (_, first) = background.next().unwrap();
        // Its place goes to the client that waits, not to the next of maintenance.
        drop(first);
        let mut clients = clients;
        let (mut last, _) = clients.pop().unwrap();
        assert!(last.as_mut().now_or_never().is_some());
        let (_, second) = background.next().unwrap();
        drop(second);
        let (mut third, _) = background.next().unwrap();
        assert!(third.as_mut().now_or_never().is_some());
    }

    #[test]
    fn clients_that_never_pause_do_not_starve_maintenance() {
        let gate = Gate::new(1);
        let (_, mut holder) = ask(&gate, Priority::Foreground);
        let (mut maintenance, none) = ask(&gate, Priority::Background);
        assert!(none.is_none());
        let mut served = 0;
        loop {
            let (mut client, _) = ask(&gate, Priority::Foreground);
            drop(holder.take());
            holder = client.as_mut().now_or_never().map(Result::unwrap);
            if maintenance.as_mut().now_or_never().is_some() {
                break;
            }
            served += 1;
            assert!(served < 2 * TURN);
        }
        assert_eq!(served, TURN - 1);
    }

    #[test]
    fn who_no_longer_waits_costs_no_place() {
        let gate = Gate::new(1);
        let (_, holder) = ask(&gate, Priority::Foreground);
        let (gone, _) = ask(&gate, Priority::Foreground);
        let (mut stays, _) = ask(&gate, Priority::Foreground);
        // One leaves before the place is free, one after it was given the place.
        drop(gone);
        drop(holder);
        let given = stays.as_mut().now_or_never().unwrap().unwrap();
        let (given_late, _) = ask(&gate, Priority::Background);
        drop(given);
        drop(given_late);
        assert!(ask(&gate, Priority::Foreground).1.is_some());
    }
}
