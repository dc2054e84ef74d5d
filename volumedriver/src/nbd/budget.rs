//! Memory for the data of requests, shared by all connections of a thread.
//!
//! Every connection may hold [`OWN_BYTES`] whatever the others do, so that requests of usual sizes never wait for another
//! connection. What a connection holds beyond comes out of a common pool, in order of asking. A connection gets no more of the
//! pool than it leaves free: the more of them hold a lot, the less each can, and however many are stuck with what they hold (a
//! volume whose buffer is full, a client that reads no replies) some of the pool stays free for the next.
//!
//! So the memory of all is bounded by the pool and `OWN_BYTES` for each connection.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

/// What each connection may hold outside the pool, bytes. A receive buffer and the replies of a round fit in it.
pub const OWN_BYTES: usize = 2 << 20;

/// The pool.
#[derive(Debug)]
pub struct Budget {
    pool: usize,
    /// Taken of the pool, bytes.
    taken: Cell<usize>,
    /// Connections that wait for a part of the pool, the first one first.
    queue: RefCell<VecDeque<(u64, Waker)>>,
    next_id: Cell<u64>,
}

impl Budget {
    /// A pool of this many bytes. With fewer than 128 MiB a connection could wait forever for the largest of requests.
    #[must_use]
    pub fn new(pool: usize) -> Rc<Self> {
        Rc::new(Self {
            pool,
            taken: Cell::new(0),
            queue: RefCell::default(),
            next_id: Cell::new(0),
        })
    }

    /// Bytes of the pool that connections hold.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.get()
    }

    /// Somebody waits for a part of the pool.
    #[must_use]
    pub fn is_contended(&self) -> bool {
        !self.queue.borrow().is_empty()
    }

    fn set_taken(&self, taken: usize) {
        let freed = taken < self.taken.get();
        self.taken.set(taken);
        if freed {
            self.wake_first();
        }
    }

    fn wake_first(&self) {
        if let Some((_, waker)) = self.queue.borrow().front() {
            waker.wake_by_ref();
        }
    }

    fn leave(&self, id: u64) {
        let mut queue = self.queue.borrow_mut();
        let before = queue.len();
        queue.retain(|(other, _)| *other != id);
        let left = queue.len() < before;
        drop(queue);
        if left {
            self.wake_first();
        }
    }

    /// Whether it is the turn of this connection; it waits in the queue if not.
    fn is_turn_of(&self, id: u64) -> bool {
        self.queue.borrow().front().is_none_or(|(first, _)| *first == id)
    }

    fn join(&self, id: u64, waker: &Waker) {
        let mut queue = self.queue.borrow_mut();
        match queue.iter_mut().find(|(other, _)| *other == id) {
            Some((_, old)) => old.clone_from(waker),
            None => queue.push_back((id, waker.clone())),
        }
    }
}

/// What one connection holds. Given back when it is dropped.
#[derive(Debug)]
pub struct Claim {
    budget: Rc<Budget>,
    id: u64,
    /// Of the pool, bytes.
    part: usize,
    queued: bool,
}

impl Claim {
    #[must_use]
    pub fn new(budget: Rc<Budget>) -> Self {
        let id = budget.next_id.get();
        budget.next_id.set(id + 1);
        Self { budget, id, part: 0, queued: false }
    }

    /// The connection holds this many bytes now.
    pub fn hold(&mut self, bytes: usize) {
        let part = bytes.saturating_sub(OWN_BYTES);
        if part == self.part {
            return;
        }
        let others = self.budget.taken().saturating_sub(self.part);
        self.part = part;
        self.budget.set_taken(others + part);
    }

    /// Takes what is needed for the connection to hold this many bytes. `false`: there is too little; the waker is woken when
    /// there may be enough.
    #[must_use]
    pub fn grow_to(&mut self, bytes: usize, waker: &Waker) -> bool {
        let part = bytes.saturating_sub(OWN_BYTES);
        if part <= self.part {
            self.give_way();
            return true;
        }
        let others = self.budget.taken().saturating_sub(self.part);
        let free = self.budget.pool.saturating_sub(others);
        let fits = part.saturating_mul(2) <= free;
        if fits && self.budget.is_turn_of(self.id) {
            self.hold(bytes);
            self.give_way();
            return true;
        }
        self.budget.join(self.id, waker);
        self.queued = true;
        false
    }

    /// Waits no more.
    pub fn give_way(&mut self) {
        if std::mem::take(&mut self.queued) {
            self.budget.leave(self.id);
        }
    }

    /// Holds a part of the pool that another connection waits for.
    #[must_use]
    pub fn is_in_the_way(&self) -> bool {
        self.part > 0 && self.budget.is_contended()
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.hold(0);
        self.give_way();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn quiet() -> Waker {
        Waker::noop().clone()
    }

    #[test]
    fn usual_requests_never_wait() {
        let budget = Budget::new(128 * MIB);
        let mut hog = Claim::new(budget.clone());
        assert!(!hog.grow_to(OWN_BYTES + 65 * MIB, &quiet()), "more than it would leave free");
        assert!(hog.grow_to(OWN_BYTES + 64 * MIB, &quiet()));
        let mut other = Claim::new(budget.clone());
        assert!(other.grow_to(OWN_BYTES, &quiet()));
        assert!(!other.grow_to(OWN_BYTES + 33 * MIB, &quiet()));
        assert!(other.grow_to(OWN_BYTES, &quiet()), "also behind a request that waits");
        assert!(!budget.is_contended());
    }

    #[test]
    fn however_many_are_stuck_something_stays_free() {
        let budget = Budget::new(128 * MIB);
        let mut stuck = Vec::new();
        for _ in 0..4 {
            let mut claim = Claim::new(budget.clone());
            let mut held = OWN_BYTES;
            while claim.grow_to(held + MIB, &quiet()) {
                held += MIB;
            }
            claim.give_way();
            stuck.push(claim);
        }
        let mut newcomer = Claim::new(budget.clone());
        assert!(newcomer.grow_to(OWN_BYTES + MIB, &quiet()));
        assert!(budget.taken() <= 128 * MIB);
    }

    #[test]
    fn whoever_waits_is_served_in_order_when_room_is_made() {
        let budget = Budget::new(128 * MIB);
        let mut hog = Claim::new(budget.clone());
        assert!(hog.grow_to(OWN_BYTES + 64 * MIB, &quiet()));
        let bells = [Arc::<Bell>::default(), Arc::default()];
        let [first_waker, second_waker] = bells.clone().map(Waker::from);
        let mut first = Claim::new(budget.clone());
        let mut second = Claim::new(budget.clone());
        assert!(!first.grow_to(OWN_BYTES + 40 * MIB, &first_waker));
        assert!(!second.grow_to(OWN_BYTES + MIB, &second_waker), "it is not its turn");
        assert!(hog.is_in_the_way() && !first.is_in_the_way());
        drop(hog);
        let rung = |n: usize| bells[n].0.load(Ordering::Relaxed);
        assert_eq!((rung(0), rung(1)), (1, 0));
        assert!(!second.grow_to(OWN_BYTES + MIB, &second_waker));
        assert!(first.grow_to(OWN_BYTES + 40 * MIB, &first_waker));
        assert_eq!(rung(1), 1, "the next one's turn");
        assert!(second.grow_to(OWN_BYTES + MIB, &second_waker));
        drop((first, second));
        assert_eq!((budget.taken(), budget.is_contended()), (0, false));
    }

    #[test]
    fn whoever_gives_up_lets_the_next_one_go_on() {
        let budget = Budget::new(128 * MIB);
        let mut hog = Claim::new(budget.clone());
        assert!(hog.grow_to(OWN_BYTES + 64 * MIB, &quiet()));
        let mut first = Claim::new(budget.clone());
        assert!(!first.grow_to(OWN_BYTES + 40 * MIB, &quiet()));
        let bell = Arc::<Bell>::default();
        let waker = Waker::from(bell.clone());
        let mut second = Claim::new(budget.clone());
        assert!(!second.grow_to(OWN_BYTES + MIB, &waker));
        drop(first);
        assert_eq!(bell.0.load(Ordering::Relaxed), 1);
        assert!(second.grow_to(OWN_BYTES + MIB, &waker));
    }

    proptest! {
        /// However connections come, hold and go: the sum is right and bounded, and nobody waits in an empty pool.
        #[test]
        fn the_pool_is_never_overdrawn(steps in prop::collection::vec((0..6_usize, 0..40_usize), 1..200)) {
            let budget = Budget::new(128 * MIB);
            let mut claims: Vec<Claim> = (0..6).map(|_| Claim::new(budget.clone())).collect();
            for (who, mib) in steps {
                match mib {
                    0 => claims[who] = Claim::new(budget.clone()),
                    1..8 => claims[who].hold(0),
                    _ => {
                        let granted = claims[who].grow_to(OWN_BYTES + mib * MIB, &quiet());
                        prop_assert!(granted || budget.is_contended());
                    }
                }
                let sum: usize = claims.iter().map(|claim| claim.part).sum();
                prop_assert_eq!(budget.taken(), sum);
                prop_assert!(sum <= 128 * MIB);
            }
            drop(claims);
            prop_assert_eq!((budget.taken(), budget.is_contended()), (0, false));
        }
    }
}
