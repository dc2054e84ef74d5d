//! A client of one process: one operation at a time, each checked and noted in the book.

use std::sync::Arc;
use std::time::Duration;

use backend_alba::alba::Update;
use backend_alba::fault::{Fault, Kind, Result};
use backend_alba::manifest::Manifest;
use backend_alba::{Alba, Condition as Assert, Purpose, Put};
use bytes::Bytes;
use tokio::time::sleep;

use super::book::{Book, Called, Name, space_name};
use super::estate::Estate;
use super::history::{Condition, Effect, NAMES};
use super::values::{Outcome, Value, ValueId, outcome_of, told};
use super::world::World;
use crate::world::rng::Rng;

/// A client and what it works with.
#[derive(Clone)]
pub struct Client {
    pub alba: Alba,
    pub process: usize,
    pub book: Book,
    pub world: World,
    pub estate: Arc<Estate>,
    pub rng: Rng,
}

/// A read that has been called.
struct Look {
    called: Called,
    at: Duration,
}

/// What is asked of a client.
#[derive(Clone, Copy, Debug)]
pub enum Task {
    Put(Name),
    Upload(Name),
    AbandonedUpload(Name),
    Read(Name),
    ReadWhole(Name),
    List(Name),
    Delete(Name),
    Sequence(Name),
    CreateNamespace(usize),
    DeleteNamespace(usize),
    ChangePreset(usize),
}

impl Client {
    pub async fn work(mut self, task: Task) {
        match task {
            Task::Put(name) => self.put(name).await,
            Task::Upload(name) => self.upload(name, false).await,
            Task::AbandonedUpload(name) => self.upload(name, true).await,
            Task::Read(name) => self.read(name).await,
            Task::ReadWhole(name) => self.read_whole(name).await,
            Task::List(name) => self.list(name).await,
            Task::Delete(name) => self.delete(name).await,
            Task::Sequence(name) => self.sequence(name).await,
            Task::CreateNamespace(space) => self.create_namespace(space).await,
            Task::DeleteNamespace(space) => self.delete_namespace(space).await,
            Task::ChangePreset(space) => self.change_preset(space).await,
        }
    }

    fn len(&mut self) -> u64 {
        match self.rng.below(40) {
            0 => self.rng.between(4 << 20, 6 << 20),
            1..=4 => self.rng.between(200_000, 900_000),
            5..=14 => self.rng.between(20_000, 200_000),
            15..=16 => 0,
            _ => self.rng.between(1, 20_000),
        }
    }

    fn purpose(&mut self) -> Purpose {
        if self.rng.coin() { Purpose::Data } else { Purpose::Metadata }
    }

    // ---- puts

    async fn put(&mut self, name: Name) {
        let len = self.len();
        let value = self.book.new_value(name, len);
        let body = value.pieces(self.rng.between(1, 3));
        let called = self.book.change(name, Effect::Created(name.at, value.id));
        let (space, object, purpose) = (name.space_name(), name.object(), self.purpose());
        let put = self.alba.put_if_absent(&space, &object, body, purpose).await;
        self.note_put(called, name, value.id, put);
    }

    async fn upload(&mut self, name: Name, is_abandoned: bool) {
        let len = self.len();
        let value = self.book.new_value(name, len);
        let called = self.book.change(name, Effect::Created(name.at, value.id));
        let (space, object, purpose) = (name.space_name(), name.object(), self.purpose());
        let crc = self.rng.coin().then(|| value.crc());
        let begun = self.alba.begin_put(&space, &object, (len, purpose), crc).await;
        let mut upload = match begun {
            Ok(upload) => upload,
            Err(fault) => return self.note_not_put(called, &fault),
        };
        let pieces = value.pieces(self.rng.between(1, 9));
        let most = if is_abandoned { self.rng.below(pieces.len() as u64 + 1) } else { u64::MAX };
        for piece in pieces.into_iter().take(most as usize) {
            if self.rng.below(4) == 0 {
                sleep(Duration::from_millis(self.rng.below(2000))).await;
            }
            if let Err(fault) = upload.push(piece).await {
                return self.note_not_put(called, &fault);
            }
        }
        if is_abandoned {
            drop(upload);
            return called.forget();
        }
        let put = upload.finish().await;
        self.note_put(called, name, value.id, put);
    }

    fn note_put(&self, called: Called, name: Name, value: ValueId, put: Result<Put>) {
        match put {
            Ok(Put::Created) => called.returned(Effect::Created(name.at, value)),
            Ok(Put::Exists) => called.returned(Effect::Exists(name.at)),
            Err(fault) => self.note_change(called, "put", &fault),
        }
    }

    /// It failed before its end: so it has no effect, ever.
    fn note_not_put(&self, called: Called, fault: &Fault) {
        match outcome_of(fault) {
            Outcome::Unknown | Outcome::NotMade => called.forget(),
            Outcome::NoNamespace | Outcome::Refused | Outcome::Wrong => {
                self.note_change(called, "upload", fault);
            }
        }
    }

    fn find(&self, what: &str, fault: &Fault) {
        self.world.find(format!("process {}: {what}: {}", self.process, told(fault)));
    }

    // ---- reads

    /// What a manifest says is there: of the values ever put under its name those that are like it. There is one, except
    /// where several are empty.
    fn likes(&self, name: Name, manifest: &Manifest) -> Vec<Value> {
        let is_like = |value: &Value| value.len == manifest.len && value.crc() == manifest.crc;
        let found: Vec<Value> = self.book.values_of(name).into_iter().filter(is_like).collect();
        if found.is_empty() {
            let (len, crc) = (manifest.len, manifest.crc);
            self.world
                .find(format!("{name:?} has {len} bytes, checksum {crc:08x}: nobody put that"));
        }
        found
    }

    /// Looks only: nothing is noted unless it returns.
    fn look(&self, name: Name) -> Look {
        Look { called: self.book.look(name), at: self.world.now() }
    }

    /// What is there, noted; `None` also when that cannot be learned.
    pub async fn head(&self, name: Name) -> Option<(Value, Manifest)> {
        let look = self.look(name);
        let manifest = match self.alba.head(&name.space_name(), &name.object()).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => {
                self.note_read(look, name, vec![None]);
                return None;
            }
            Err(fault) => {
                self.check_look("head", &fault);
                look.called.forget();
                return None;
            }
        };
        let likes = self.likes(name, &manifest);
        self.note_read(look, name, ids(&likes));
        Some((*likes.first()?, manifest))
    }

    async fn read(&mut self, name: Name) {
        let Some((value, manifest)) = self.head(name).await else { return };
        if value.len == 0 {
            return;
        }
        let offset = self.rng.below(value.len);
        let most = (value.len - offset).min(if self.rng.coin() { 5000 } else { 400_000 });
        let len = self.rng.between(1, most);
        let (look, troubles) = (self.look(name), self.world.troubles());
        let is_readable = self.estate.is_readable(self.process, &manifest);
        let got = self.alba.get_range(&name.space_name(), &name.object(), offset, len).await;
        match got {
            Ok(None) => self.note_read(look, name, vec![None]),
            Ok(Some(bytes)) => match self.whose(name, offset, &bytes) {
                None => self.world.find(format!("{name:?}: wrong bytes at {offset}")),
                Some(seen) => self.note_read(look, name, seen),
            },
            // Another object may have come under it meanwhile.
            Err(fault) if fault.kind == Kind::Invalid => look.called.forget(),
            Err(fault) => {
                look.called.forget();
                self.check_look("get_range", &fault);
                let is_calm = is_readable && troubles == self.world.troubles();
                if is_calm && self.estate.is_readable(self.process, &manifest) {
                    self.find(&format!("{name:?} is not read though it could be"), &fault);
                }
            }
        }
    }

    /// While the NSM does not answer, and until it is known to again, a process reads by what it remembers.
    fn note_read(&self, look: Look, name: Name, seen: Vec<Option<ValueId>>) {
        if self.world.is_heard_since(look.at) {
            look.called.returned(Effect::Read(name.at, seen));
        } else {
            look.called.forget();
        }
    }

    fn whose(&self, name: Name, offset: u64, bytes: &Bytes) -> Option<Vec<Option<ValueId>>> {
        let mut whose = self.book.values_of(name);
        whose.retain(|value| value.has(offset, bytes));
        (!whose.is_empty()).then(|| ids(&whose))
    }

    /// Piece by piece; whether all of it could be read.
    pub async fn read_all(&self, name: Name) -> Result<()> {
        let look = self.look(name);
        let opened = self.alba.open_object(&name.space_name(), &name.object()).await;
        let reader = match opened {
            Ok(Some(reader)) => reader,
            Ok(None) => {
                self.note_read(look, name, vec![None]);
                return Ok(());
            }
            Err(fault) => {
                look.called.forget();
                return Err(fault);
            }
        };
        let likes = self.likes(name, &reader.manifest);
        self.note_read(look, name, ids(&likes));
        let Some(value) = likes.first() else { return Ok(()) };
        let step = (value.len / 3).max(1000);
        let mut at = 0;
        while at < value.len {
            let len = step.min(value.len - at);
            let bytes = reader.read(at, len).await?;
            if bytes.len() as u64 != len || !value.has(at, &bytes) {
                self.world.find(format!("{name:?}: wrong bytes at {at}"));
            }
            at += len;
        }
        Ok(())
    }

    async fn read_whole(&mut self, name: Name) {
        if let Err(fault) = self.read_all(name).await {
            self.check_look("read", &fault);
        }
    }

    fn check_look(&self, what: &str, fault: &Fault) {
        match outcome_of(fault) {
            Outcome::Unknown | Outcome::NoNamespace => {}
            Outcome::NotMade if fault.kind == Kind::Corrupt => {}
            Outcome::NotMade | Outcome::Refused | Outcome::Wrong => self.find(what, fault),
        }
    }

    pub async fn list(&self, name: Name) {
        let called = self.book.look(name);
        let (space, prefix) = (name.space_name(), name.prefix());
        let (mut names, mut after) = (Vec::new(), String::new());
        loop {
            match self.alba.list(&space, &prefix, &after, 2).await {
                Ok(page) => {
                    names.extend(page.names);
                    match names.last() {
                        Some(last) if page.more => after.clone_from(last),
                        _ => break,
                    }
                }
                Err(fault) => {
                    self.check_look("list", &fault);
                    return called.forget();
                }
            }
        }
        let seen = |at: usize| {
            let object = Name { at, ..name }.object();
            Effect::Listed(at, names.contains(&object))
        };
        called.returned_all((0..NAMES).map(seen).collect());
    }

    // ---- changes

    async fn delete(&mut self, name: Name) {
        let called = self.book.change(name, Effect::Deleted(name.at));
        match self.alba.delete(&name.space_name(), &name.object()).await {
            Ok(true) => called.returned(Effect::Deleted(name.at)),
            Ok(false) => called.returned(Effect::NothingToDelete(name.at)),
            Err(fault) => self.note_change(called, "delete", &fault),
        }
    }

    fn note_change(&self, called: Called, what: &str, fault: &Fault) {
        match outcome_of(fault) {
            Outcome::Unknown => called.unknown(),
            Outcome::NotMade => called.forget(),
            Outcome::NoNamespace => called.returned(Effect::NoNamespace),
            Outcome::Refused | Outcome::Wrong => {
                self.find(what, fault);
                called.forget();
            }
        }
    }

    async fn sequence(&mut self, name: Name) {
        let (mut asserts, mut updates) = (Vec::new(), Vec::new());
        let (mut real_asserts, mut real_updates) = (Vec::new(), Vec::new());
        for at in 0..NAMES {
            let name = Name { at, ..name };
            if self.rng.coin() {
                let (condition, real) = self.condition(name);
                asserts.push((at, condition));
                real_asserts.push((name.object(), real));
            }
            match self.rng.below(4) {
                0 => {
                    updates.push((at, None));
                    real_updates.push((name.object(), Update::Delete));
                }
                1 | 2 => {
                    let value = self.book.new_value(name, self.rng.clone().between(1, 40_000));
                    self.rng.next_word();
                    updates.push((at, Some(value.id)));
                    let bytes = Bytes::from(value.bytes(0, value.len));
                    real_updates.push((name.object(), Update::Put(bytes)));
                }
                _ => {}
            }
        }
        let applied = Effect::Applied(asserts.clone(), updates);
        let called = self.book.change(name, applied.clone());
        let space = name.space_name();
        match self.alba.apply_sequence(&space, real_asserts, real_updates).await {
            Ok(()) => called.returned(applied),
            Err(fault) if fault.kind == Kind::AssertFailed => {
                called.returned(Effect::Refused(asserts));
            }
            Err(fault) => self.note_change(called, "sequence", &fault),
        }
    }

    fn condition(&mut self, name: Name) -> (Condition, Assert) {
        let values = self.book.values_of(name);
        match self.rng.below(3) {
            0 => (Condition::Absent, Assert::Absent),
            1 if !values.is_empty() => {
                let value = values[self.rng.below(values.len() as u64) as usize];
                let crc = value.crc();
                let alike = values.iter().filter(|value| value.crc() == crc);
                (Condition::Is(alike.map(|value| value.id).collect()), Assert::HasCrc(crc))
            }
            _ => (Condition::Exists, Assert::Exists),
        }
    }

    async fn create_namespace(&mut self, space: usize) {
        let called = self.book.change_space(space, Effect::Began);
        let preset = self.estate.preset_name(&mut self.rng);
        match self.alba.create_namespace_with(&space_name(space), Some(&preset)).await {
            Ok(true) => called.returned(Effect::Began),
            Ok(false) => called.returned(Effect::WasThere),
            Err(fault) => self.note_change(called, "create_namespace", &fault),
        }
    }

    async fn delete_namespace(&mut self, space: usize) {
        let called = self.book.change_space(space, Effect::Ended);
        match self.alba.delete_namespace(&space_name(space)).await {
            Ok(true) => called.returned(Effect::Ended),
            Ok(false) => called.returned(Effect::WasNotThere),
            Err(fault) => self.note_change(called, "delete_namespace", &fault),
        }
    }

    async fn change_preset(&mut self, space: usize) {
        let preset = self.estate.preset_name(&mut self.rng);
        let changed = if self.rng.coin() {
            self.alba.set_preset_of(&space_name(space), &preset).await
        } else {
            let raw = self.estate.preset(&preset, &mut self.rng);
            self.alba.put_preset(&preset, raw).await.map(drop)
        };
        if let Err(fault) = changed {
            self.check_look("preset", &fault);
        }
    }
}

fn ids(values: &[Value]) -> Vec<Option<ValueId>> {
    values.iter().map(|value| Some(value.id)).collect()
}
