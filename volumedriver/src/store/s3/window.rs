//! How many requests a server gets at once: as many as it takes without complaint.
//!
//! The window opens by one for every window's worth of answers while it is what holds requests back, and halves when the
//! server says "slow down" (429, 503), at most once for the requests that were under way together. Bulk (bodies on their way
//! up, deletes) never takes all of it, so that reads do not starve behind uploads.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

const FIRST: f64 = 32.0;
const SMALLEST: f64 = 1.0;
const LARGEST: f64 = 128.0;

/// Who waits behind whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Somebody waits for the answer: reads, questions, metadata.
    Urgent,
    /// What can wait: data on its way up, deletes.
    Bulk,
}

/// Shared by its clones.
#[derive(Clone, Debug, Default)]
pub(super) struct Window(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    size: f64,
    under_way: usize,
    bulk: usize,
    /// Requests begun before this have had their "slow down" counted.
    last_cut: Option<Instant>,
    urgent_queue: VecDeque<oneshot::Sender<Permit>>,
    bulk_queue: VecDeque<oneshot::Sender<Permit>>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            size: FIRST,
            under_way: 0,
            bulk: 0,
            last_cut: None,
            urgent_queue: VecDeque::new(),
            bulk_queue: VecDeque::new(),
        }
    }
}

impl State {
    fn whole(&self) -> usize {
        self.size as usize
    }

    /// Three quarters of the window, and never none of it.
    fn for_bulk(&self) -> usize {
        (self.whole() * 3 / 4).max(1)
    }

    fn has_room(&self, class: Class) -> bool {
        let fits = self.under_way < self.whole();
        fits && (class == Class::Urgent || self.bulk < self.for_bulk())
    }

    fn queue(&mut self, class: Class) -> &mut VecDeque<oneshot::Sender<Permit>> {
        match class {
            Class::Urgent => &mut self.urgent_queue,
            Class::Bulk => &mut self.bulk_queue,
        }
    }

    fn take(&mut self, class: Class) {
        self.under_way += 1;
        self.bulk += usize::from(class == Class::Bulk);
    }

    /// Whom to let in next.
    fn next(&mut self) -> Option<(Class, oneshot::Sender<Permit>)> {
        if self.has_room(Class::Urgent)
            && let Some(waiter) = self.urgent_queue.pop_front()
        {
            self.take(Class::Urgent);
            return Some((Class::Urgent, waiter));
        }
        if self.has_room(Class::Bulk)
            && let Some(waiter) = self.bulk_queue.pop_front()
        {
            self.take(Class::Bulk);
            return Some((Class::Bulk, waiter));
        }
        None
    }
}

impl Window {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a place.
    pub(super) async fn enter(&self, class: Class) -> Permit {
        loop {
            let turn = {
                let mut state = self.state();
                let queue = state.queue(class);
                while queue.front().is_some_and(oneshot::Sender::is_closed) {
                    queue.pop_front();
                }
                if queue.is_empty() && state.has_room(class) {
                    state.take(class);
                    drop(state);
                    return self.permit(class);
                }
                let (sender, turn) = oneshot::channel();
                state.queue(class).push_back(sender);
                turn
            };
            if let Ok(permit) = turn.await {
                return permit;
            }
        }
    }

    /// Requests the server would get at once by now.
    #[cfg(test)]
    pub(super) fn size(&self) -> usize {
        self.state().whole()
    }

    fn permit(&self, class: Class) -> Permit {
        Permit { window: self.clone(), class, began: Instant::now() }
    }

    fn let_in(&self) {
        loop {
            let Some((class, waiter)) = self.state().next() else { return };
            // One that waits no more gives its place back by dropping it.
            drop(waiter.send(self.permit(class)));
        }
    }
}

/// A place in the window until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    window: Window,
    class: Class,
    began: Instant,
}

impl Permit {
    /// The server did what was asked.
    pub(super) fn answered(&self) {
        let mut state = self.window.state();
        // Below that, the window is not what limits us, and its size says nothing.
        if state.under_way + 1 >= state.whole() {
            state.size = (state.size + 1.0 / state.size).min(LARGEST);
        }
    }

    /// The server asked for less.
    pub(super) fn slow_down(&self) {
        let mut state = self.window.state();
        if state.last_cut.is_none_or(|cut| self.began > cut) {
            state.size = (state.size / 2.0).max(SMALLEST);
            state.last_cut = Some(Instant::now());
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.window.state();
            state.under_way -= 1;
            state.bulk -= usize::from(self.class == Class::Bulk);
        }
        self.window.let_in();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn fill(window: &Window, class: Class) -> Vec<Permit> {
        let mut permits = Vec::new();
        while let Some(permit) = window.enter(class).now_or_never() {
            permits.push(permit);
            assert!(permits.len() <= LARGEST as usize);
        }
        permits
    }

    #[test]
    fn bulk_leaves_a_quarter_to_those_who_wait() {
        let window = Window::default();
        let bulk = fill(&window, Class::Bulk);
        assert_eq!(bulk.len(), 24);
        let urgent = fill(&window, Class::Urgent);
        assert_eq!(urgent.len(), 8);
        drop((bulk, urgent));
        assert_eq!(fill(&window, Class::Urgent).len(), 32);
    }

    #[test]
    fn slow_down_halves_once_for_those_under_way_together() {
        let window = Window::default();
        let permits = fill(&window, Class::Urgent);
        permits.iter().for_each(Permit::slow_down);
        assert_eq!(window.size(), 16);
        drop(permits);
        let permits = fill(&window, Class::Urgent);
        assert_eq!(permits.len(), 16);
        permits.iter().for_each(Permit::slow_down);
        assert_eq!(window.size(), 8);
        for _ in 0..9 {
            assert_eq!(permits.len(), 16);
            let permit =
                Permit { window: window.clone(), class: Class::Urgent, began: Instant::now() };
            window.state().take(Class::Urgent);
            permit.slow_down();
        }
        assert_eq!(window.size(), 1, "one request is always allowed");
    }

    #[test]
    fn answers_open_it_by_one_for_a_windows_worth_and_only_when_it_is_full() {
        let window = Window::default();
        let one = window.enter(Class::Urgent).now_or_never().unwrap();
        (0..1000).for_each(|_| one.answered());
        assert_eq!(window.size(), 32, "an idle server's answers say nothing");
        drop(one);
        let permits = fill(&window, Class::Urgent);
        for _ in 0..2 {
            permits.iter().for_each(Permit::answered);
        }
        assert_eq!(window.size(), 33);
        let mut permits = permits;
        for _ in 0..200 {
            permits.extend(fill(&window, Class::Urgent));
            permits.iter().for_each(Permit::answered);
        }
        assert_eq!(window.size(), LARGEST as usize);
    }

    #[tokio::test]
    async fn who_waits_gets_the_next_place_and_who_left_gives_it_back() {
        let window = Window::default();
        let mut permits = fill(&window, Class::Urgent);
        let waits = |class| {
            let window = window.clone();
            tokio::spawn(async move { window.enter(class).await })
        };
        let (bulk, gone, urgent) = (waits(Class::Bulk), waits(Class::Urgent), waits(Class::Urgent));
        tokio::task::yield_now().await;
        gone.abort();
        tokio::task::yield_now().await;
        permits.pop();
        let urgent = urgent.await.unwrap();
        assert!(!bulk.is_finished(), "bulk waits behind reads");
        drop((permits, urgent));
        bulk.await.unwrap();
        assert_eq!(window.state().under_way, 0);
        assert_eq!(window.state().bulk, 0);
    }
}
