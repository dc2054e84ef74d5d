//! The fence over a store that does no put-if-absent at all, in every order a seed can think of: writers crash, answers are
//! lost, writes arrive late, claims expire. At no time may a name have two contents.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::task::noop_waker;

use super::*;
use crate::cluster::memory::Memory;

const NAME: &str = "manifest/1";
const SEEDS: u64 = 3000;

/// What a canary breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    Nothing,
    /// The registry lets everybody create the claim.
    Claims,
    /// The store does not see what was written.
    Heads,
}

struct World {
    random: u64,
    objects: BTreeMap<String, Bytes>,
    /// Writes whose answer is out already.
    late: Vec<(String, Bytes)>,
    /// Everything that ever was at the name.
    contents: BTreeSet<Bytes>,
    broken: Broken,
}

impl World {
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) % bound
    }

    fn write(&mut self, name: &str, body: Bytes) {
        if name == NAME {
            self.contents.insert(body.clone());
        }
        self.objects.insert(name.to_owned(), body);
    }
}

/// Overwrites; fails now and then before, after or long before the work is done.
#[derive(Clone)]
struct Sloppy(Rc<RefCell<World>>);

/// What becomes of a call.
enum Fate {
    Done,
    /// Not done, or done with the answer lost.
    Lost,
    LostButDone,
    /// Done at some later time.
    Late,
}

fn lost() -> Fault {
    Fault::unavailable("no answer")
}

impl Sloppy {
    async fn fate(&self) -> Fate {
        Pause(false).await;
        match self.0.borrow_mut().below(20) {
            0 => Fate::Lost,
            1 => Fate::LostButDone,
            2 => Fate::Late,
            _ => Fate::Done,
        }
    }

    async fn seldom_fails(&self) -> Result<()> {
        Pause(false).await;
        if self.0.borrow_mut().below(20) == 0 { Err(lost()) } else { Ok(()) }
    }
}

/// Lets the others go on.
struct Pause(bool);

impl Future for Pause {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl ObjectStore for Sloppy {
    async fn create_namespace(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn delete_namespace(&self, _: &str) -> Result<()> {
        Ok(())
    }
    async fn list_namespaces(&self, _: &str) -> Result<Vec<String>> {
        Ok(vec![])
    }
    async fn put_if_absent(
        &self,
        _: &str,
        name: &str,
        body: Vec<Bytes>,
        _: Purpose,
    ) -> Result<Put> {
        let body = Bytes::from(body.concat());
        let fate = self.fate().await;
        let mut world = self.0.borrow_mut();
        match fate {
            Fate::Done => world.write(name, body),
            Fate::Lost => return Err(lost()),
            Fate::LostButDone => {
                world.write(name, body);
                return Err(lost());
            }
            Fate::Late => {
                world.late.push((name.to_owned(), body));
                return Err(lost());
            }
        }
        Ok(Put::Created)
    }
    async fn get_range(&self, _: &str, name: &str, at: u64, len: u64) -> Result<Option<Bytes>> {
        self.seldom_fails().await?;
        let found = self.0.borrow().objects.get(name).cloned();
        Ok(found.map(|body| body.slice(at as usize..(at + len) as usize)))
    }
    async fn head(&self, _: &str, name: &str) -> Result<Option<ObjectInfo>> {
        self.seldom_fails().await?;
        let world = self.0.borrow();
        let seen = world.objects.get(name).filter(|_| world.broken != Broken::Heads);
        Ok(seen.map(|body| ObjectInfo { len: body.len() as u64, crc: crc32fast::hash(body) }))
    }
    async fn list(&self, _: &str, _: &str, _: Option<&str>, _: u32) -> Result<Vec<String>> {
        Ok(self.0.borrow().objects.keys().cloned().collect())
    }
    async fn delete(&self, _: &str, name: &str) -> Result<()> {
        self.seldom_fails().await?;
        self.0.borrow_mut().objects.remove(name);
        Ok(())
    }
}

/// The registry in memory, with answers that get lost.
#[derive(Clone)]
struct Shaky {
    memory: Memory,
    world: Rc<RefCell<World>>,
}

impl Shaky {
    async fn may_fail(&self) -> Result<()> {
        Sloppy(self.world.clone()).seldom_fails().await
    }
}

impl Registry for Shaky {
    async fn create(&self, key: &str, value: Bytes) -> Result<Created> {
        self.may_fail().await?;
        if self.world.borrow().broken == Broken::Claims {
            self.memory.delete(key).await?;
        }
        let created = self.memory.create(key, value).await?;
        self.may_fail().await.map(|()| created)
    }
    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        self.may_fail().await?;
        self.memory.get(key).await
    }
    async fn retire(&self, key: &str, old: Bytes, new: Bytes, life: Duration) -> Result<bool> {
        self.may_fail().await?;
        let retired = self.memory.retire(key, old, new, life).await?;
        self.may_fail().await.map(|()| retired)
    }
    async fn remove(&self, key: &str, old: Bytes) -> Result<()> {
        self.may_fail().await?;
        self.memory.remove(key, old).await
    }
    async fn delete(&self, key: &str) -> Result<()> {
        self.memory.delete(key).await
    }
    async fn delete_all(&self, prefix: &str) -> Result<()> {
        self.memory.delete_all(prefix).await
    }
}

type Writer = Pin<Box<dyn Future<Output = Option<Bytes>>>>;

/// Tries until the outcome is known; its bytes if they were the first.
fn writer(fenced: Fenced<Sloppy, Shaky>, body: Bytes) -> Writer {
    Box::pin(async move {
        loop {
            let put = fenced.put_if_absent("ns", NAME, vec![body.clone()], Purpose::Metadata);
            match put.await {
                Ok(Put::Created) => return Some(body),
                Ok(Put::Exists) => return None,
                Err(fault) => {
                    assert_eq!(fault.kind, volumedriver_core::fault::Kind::Unavailable, "{fault}")
                }
            }
        }
    })
}

/// One run; what went wrong.
fn run(seed: u64, broken: Broken) -> Result<(), String> {
    let random = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let world = World {
        random,
        objects: BTreeMap::new(),
        late: Vec::new(),
        contents: BTreeSet::new(),
        broken,
    };
    let world = Rc::new(RefCell::new(world));
    let registry = Shaky { memory: Memory::default(), world: world.clone() };
    let fenced = Fenced::new(Sloppy(world.clone()), registry.clone(), &["manifest/"]);
    let mut writers: Vec<Writer> = (0..4_u8)
        .map(|n| writer(fenced.clone(), Bytes::from(vec![n; 100 + usize::from(n)])))
        .collect();
    let mut won = Vec::new();
    let waker = noop_waker();
    let mut context = Context::from_waker(&waker);
    for _ in 0..100_000 {
        if writers.is_empty() {
            break;
        }
        let chance = world.borrow_mut().below(100);
        let chosen = world.borrow_mut().below(writers.len() as u64) as usize;
        match chance {
            // It crashes; the last one must find its way.
            0 if writers.len() > 1 => drop(writers.swap_remove(chosen)),
            1..=3 => arrive(&world),
            4..=6 => registry.memory.forget_retired(),
            _ => {
                if let Poll::Ready(outcome) = writers[chosen].as_mut().poll(&mut context) {
                    won.extend(outcome);
                    drop(writers.swap_remove(chosen));
                }
            }
        }
        if world.borrow().contents.len() > 1 {
            return Err("the name had two contents".into());
        }
    }
    while !world.borrow().late.is_empty() {
        arrive(&world);
    }
    verdict(&world.borrow(), &won, writers.len())
}

fn arrive(world: &RefCell<World>) {
    let mut world = world.borrow_mut();
    if let Some((name, body)) = world.late.pop() {
        world.write(&name, body);
    }
}

fn verdict(world: &World, won: &[Bytes], unfinished: usize) -> Result<(), String> {
    if unfinished > 0 {
        return Err("a writer gets no answer: the name is wedged".into());
    }
    if world.contents.len() != 1 {
        return Err(format!("the name had {} contents", world.contents.len()));
    }
    match won {
        [] => Ok(()),
        [winner] if world.contents.contains(winner) => Ok(()),
        [_] => Err("the bytes are not the winner's".into()),
        _ => Err("two writers won".into()),
    }
}

#[test]
fn a_name_has_one_content_whatever_happens() {
    for seed in 0..SEEDS {
        run(seed, Broken::Nothing).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// A check that cannot fail is none.
#[test]
fn a_broken_registry_or_store_is_found() {
    for broken in [Broken::Claims, Broken::Heads] {
        let found = (0..SEEDS).find(|seed| run(*seed, broken).is_err());
        assert!(found.is_some(), "{broken:?} goes unnoticed");
    }
}

#[test]
fn claims_are_spelled_as_the_table_says() {
    let place = Place { namespace: "ns", name: NAME };
    let id = "0123456789abcdef0123456789abcdef";
    let claim = Claim { state: State::Open, id: id.into(), len: 5, crc: 0x3610_a686 };
    let text = format!("v1 open {id} 5 3610a686");
    assert_eq!(claim.encode(), text);
    assert_eq!(Claim::decode(&place, text.as_bytes()).unwrap(), claim);
    let done = text.replace("open", "done");
    assert_eq!(Claim::decode(&place, done.as_bytes()).unwrap().state, State::Done);
    assert_eq!(claim.draft(), format!("draft/{id}"));
    assert_eq!(place.key(), "fence/ns/manifest/1");
    for bad in [
        "",
        "v1",
        &text.replace("v1", "v2"),
        &text.replace("open", "Open"),
        &text.replace("0123", "g123"),
        &text.replace(" 5 ", " +5 "),
        &text.replace(" 5 ", " 05 "),
        &text.replace("3610a686", "3610A686"),
        &format!("{text} "),
        "\u{fffd}\0",
    ] {
        assert!(Claim::decode(&place, bad.as_bytes()).is_err(), "{bad:?}");
    }
}
