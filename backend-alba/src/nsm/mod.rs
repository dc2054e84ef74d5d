//! NSM (namespace manager): namespaces and object manifests in RocksDB, every change durable when it returns.
//!
//! | key | value |
//! |---|---|
//! | `v` | version of this table, 2 (text) |
//! | `n` name | namespace: its id, the name of its preset |
//! | `m` namespace id, name | manifest of an object |
//! | `f` OSD, fragment id | namespace id, name: the fragment's file is live |
//! | `r` fragment id | OSD: the fragment's file is to be removed |
//! | `x` namespace id | the namespace is deleted, its objects are to be dropped |
//! | `c` namespace id | number and bytes of its objects (merged) |
//! | `s` OSD | what is known of it (JSON) |
//! | `p` name | preset (JSON) |
//! | `d` | name of the preset of new namespaces |
//! | `t` | nothing: written to learn whether the NSM takes changes again |
//!
//! A change of one name holds a claim on it while it looks and writes, so changes of other names go on and share one sync
//! of the write-ahead log. Namespaces come and go under the exclusive lock. All calls block.

mod claims;
mod records;
mod upgrade;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Buf;
use rocksdb::{
    DB, Direction, ErrorKind, IteratorMode, MergeOperands, Options, WriteBatch, WriteOptions,
};

use crate::fault::{Fault, Kind, Result};
use crate::manifest::{Fragment, Manifest};
use crate::name::{FragmentId, NamespaceId, ObjectId, OsdId};
use crate::preset::{self, Preset};
use claims::Claims;

pub use records::{OsdRecord, OsdRole};
pub use upgrade::LOCAL_NODE;

/// Names read in one step of dropping a namespace.
const DROP_STEP: usize = 512;

/// Outcome of a put-if-absent that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    Created,
    /// An object of this name was there before; it is unchanged.
    Exists,
}

/// What must hold for a sequence to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    Exists,
    Absent,
    /// The object exists and its CRC-32 is this.
    HasCrc(u32),
}

/// A change of one name whose bytes, if any, are stored already.
#[derive(Clone, Debug)]
pub enum Change {
    Put(Manifest),
    Delete,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub namespaces: u64,
    pub objects: u64,
    pub object_bytes: u64,
}

/// Names in byte order, and whether there are more after the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub names: Vec<String>,
    pub more: bool,
}

pub struct Nsm {
    db: DB,
    shape: RwLock<()>,
    claims: Claims,
    /// The last change failed, and none has succeeded since.
    is_failing: AtomicBool,
}

impl Nsm {
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_write_buffer_size(8 << 20);
        options.set_max_total_wal_size(32 << 20);
        options.set_max_open_files(128);
        options.set_keep_log_file_num(4);
        options.set_compression_type(rocksdb::DBCompressionType::Lz4);
        options.set_merge_operator_associative("alba.totals", merge_totals);
        let db = DB::open(&options, path).map_err(|e| store_fault("cannot open the NSM", e))?;
        let is_failing = AtomicBool::new(false);
        let nsm = Self { db, shape: RwLock::new(()), claims: Claims::default(), is_failing };
        nsm.upgrade()?;
        Ok(nsm)
    }

    /// Fails while changes fail, as they do on a full disk. To be asked before bytes are stored: a put whose change fails
    /// must keep them, because nobody knows whether the change will be there after the next start.
    pub fn check_takes_changes(&self) -> Result<()> {
        if !self.is_failing.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        batch.put(b"t", []);
        self.write(batch)
    }

    /// With the default preset when none is named. `false` when the namespace was there before.
    pub fn create_namespace(&self, namespace: &str, preset: Option<&str>) -> Result<bool> {
        let _shape = self.exclusive();
        if self.read(&namespace_key(namespace))?.is_some() {
            return Ok(false);
        }
        let preset = match preset {
            Some(name) => name.to_string(),
            None => self.default_preset()?,
        };
        self.preset(&preset)?;
        let mut batch = WriteBatch::default();
        let value = [&NamespaceId::random().0, preset.as_bytes()].concat();
        batch.put(namespace_key(namespace), value);
        self.write(batch)?;
        Ok(true)
    }

    /// Makes the namespace and its objects unreachable at once; `false` when there is none.
    pub fn delete_namespace(&self, namespace: &str) -> Result<bool> {
        let _shape = self.exclusive();
        let Some(id) = self.namespace(namespace)? else {
            return Ok(false);
        };
        let mut batch = WriteBatch::default();
        batch.delete(namespace_key(namespace));
        batch.delete(key(b'c', &id));
        batch.put(key(b'x', &id), []);
        self.write(batch)?;
        Ok(true)
    }

    pub fn list_namespaces(&self, prefix: &str, after: &str, limit: usize) -> Result<Page> {
        self.page(vec![b'n'], prefix, after, limit)
    }

    /// `None` when there is no such object or no such namespace.
    pub fn get(&self, namespace: &str, name: &str) -> Result<Option<Manifest>> {
        let Some(id) = self.namespace(namespace)? else {
            return Ok(None);
        };
        self.manifest(id, name)
    }

    /// How a new object of this name is to be stored; `None` when there is one.
    pub fn target(&self, namespace: &str, name: &str) -> Result<Option<Preset>> {
        let (id, preset) = self.namespace_and_preset(namespace)?;
        if self.manifest(id, name)?.is_some() {
            return Ok(None);
        }
        self.preset(&preset)?.check().map(Some)
    }

    /// An object, and how it would be stored now. `None` when there is none.
    pub fn object(&self, namespace: &str, name: &str) -> Result<Option<(Manifest, Preset)>> {
        let Some(value) = self.read(&namespace_key(namespace))? else { return Ok(None) };
        let (id, preset) = split_namespace(&value)?;
        let Some(manifest) = self.manifest(id, name)? else { return Ok(None) };
        Ok(Some((manifest, self.preset(&preset)?.check()?)))
    }

    /// Where an object's fragments lie is changed, if it still is this one and lies where it was believed to: each pair is
    /// a fragment that goes and one that comes. `false` when that does not hold; then nothing is changed.
    pub fn move_fragments(
        &self,
        namespace: &str,
        name: &str,
        object: ObjectId,
        moves: &[(Option<Fragment>, Option<Fragment>)],
    ) -> Result<bool> {
        let _shape = self.shared();
        let Some(id) = self.namespace(namespace)? else { return Ok(false) };
        let _claim = self.claims.claim(id, [name].into());
        let Some(mut manifest) = self.manifest(id, name)?.filter(|m| m.id == object) else {
            return Ok(false);
        };
        let mut batch = WriteBatch::default();
        for (old, new) in moves {
            if let Some(old) = old {
                let before = manifest.fragments.len();
                manifest.fragments.retain(|fragment| fragment != old);
                if manifest.fragments.len() == before {
                    return Ok(false);
                }
                drop_fragment(&mut batch, old);
            }
            if let Some(new) = new {
                if manifest.fragment(new.index.into()).is_some() {
                    return Ok(false);
                }
                add_fragment(&mut batch, id, name, new);
                manifest.fragments.push(*new);
            }
        }
        manifest.fragments.sort_by_key(|fragment| fragment.index);
        batch.put(object_key(id, name), manifest.encode());
        self.write(batch)?;
        Ok(true)
    }

    /// The linearization point of a put.
    pub fn put_if_absent(&self, namespace: &str, name: &str, manifest: &Manifest) -> Result<Put> {
        let _shape = self.shared();
        let id = self.existing(namespace)?;
        let _claim = self.claims.claim(id, [name].into());
        if self.manifest(id, name)?.is_some() {
            return Ok(Put::Exists);
        }
        let mut batch = WriteBatch::default();
        add(&mut batch, id, name, manifest);
        self.write(batch)?;
        Ok(Put::Created)
    }

    /// Forgets an object and notes its file for removal; `None` when there is no such object.
    pub fn delete(&self, namespace: &str, name: &str) -> Result<Option<Manifest>> {
        let _shape = self.shared();
        let Some(id) = self.namespace(namespace)? else {
            return Ok(None);
        };
        let _claim = self.claims.claim(id, [name].into());
        let Some(manifest) = self.manifest(id, name)? else {
            return Ok(None);
        };
        let mut batch = WriteBatch::default();
        drop_object(&mut batch, id, name, &manifest);
        self.write(batch)?;
        Ok(Some(manifest))
    }

    /// Checks all conditions and makes all changes, or none; returns the objects that are gone.
    pub fn apply(
        &self,
        namespace: &str,
        asserts: &[(String, Condition)],
        changes: &[(String, Change)],
    ) -> Result<Vec<Manifest>> {
        let _shape = self.shared();
        let id = self.existing(namespace)?;
        let names = asserts.iter().map(|(name, _)| name.as_str());
        let names = names.chain(changes.iter().map(|(name, _)| name.as_str())).collect();
        let _claim = self.claims.claim(id, names);
        for (name, condition) in asserts {
            check(name, condition, self.manifest(id, name)?)?;
        }
        let mut batch = WriteBatch::default();
        let mut gone = Vec::new();
        for (name, change) in changes {
            if let Some(old) = self.manifest(id, name)? {
                drop_object(&mut batch, id, name, &old);
                gone.push(old);
            }
            if let Change::Put(manifest) = change {
                add(&mut batch, id, name, manifest);
            }
        }
        self.write(batch)?;
        Ok(gone)
    }

    pub fn list(&self, namespace: &str, prefix: &str, after: &str, limit: usize) -> Result<Page> {
        match self.namespace(namespace)? {
            Some(id) => self.page(key(b'm', &id), prefix, after, limit),
            None => Ok(Page::default()),
        }
    }

    /// Some manifest names this fragment.
    pub fn is_live(&self, osd: OsdId, file: FragmentId) -> Result<bool> {
        Ok(self.read(&fragment_key(osd, file))?.is_some())
    }

    /// Up to `limit` files noted for removal, of fragments after this one.
    pub fn removals(
        &self,
        after: Option<FragmentId>,
        limit: usize,
    ) -> Result<Vec<(FragmentId, OsdId)>> {
        let mut from = key(b'r', &after.map_or([0; 16], |id| id.0));
        if after.is_some() {
            from.push(0);
        }
        let mut found = Vec::new();
        for entry in self.from(&from).take(limit) {
            let (key, value) = entry.map_err(|e| store_fault("cannot read the NSM", e))?;
            let Some(id) = key.strip_prefix(b"r") else { break };
            found.push((FragmentId(as_id(id)?), OsdId(as_id(&value)?)));
        }
        Ok(found)
    }

    /// These files are gone. Not durable at once: removing a file twice does no harm.
    pub fn removed(&self, ids: &[FragmentId]) -> Result<()> {
        let mut batch = WriteBatch::default();
        ids.iter().for_each(|id| batch.delete(key(b'r', &id.0)));
        self.db.write(batch).map_err(|e| store_fault("cannot write the NSM", e))
    }

    /// Notes the files of some objects of a deleted namespace for removal; `false` when none is left to drop.
    pub fn drop_some(&self) -> Result<bool> {
        let Some(entry) = self.from(b"x").next() else {
            return Ok(false);
        };
        let (tomb, _) = entry.map_err(|e| store_fault("cannot read the NSM", e))?;
        let Some(id) = tomb.strip_prefix(b"x") else {
            return Ok(false);
        };
        let prefix = key(b'm', id);
        let mut batch = WriteBatch::default();
        let mut dropped = 0;
        for entry in self.from(&prefix).take(DROP_STEP) {
            let (key_of, value) = entry.map_err(|e| store_fault("cannot read the NSM", e))?;
            if !key_of.starts_with(&prefix) {
                break;
            }
            let manifest = Manifest::decode(&value)?;
            batch.delete(&key_of);
            manifest.fragments.iter().for_each(|fragment| drop_fragment(&mut batch, fragment));
            dropped += 1;
        }
        if dropped < DROP_STEP {
            batch.delete(&tomb);
        }
        self.write(batch)?;
        Ok(true)
    }

    pub fn totals(&self) -> Result<Totals> {
        let mut totals = Totals::default();
        for entry in self.from(b"c") {
            let (key, value) = entry.map_err(|e| store_fault("cannot read the NSM", e))?;
            if !key.starts_with(b"c") {
                break;
            }
            let (objects, bytes) = decode_totals(&value);
            totals.objects = totals.objects.saturating_add_signed(objects);
            totals.object_bytes = totals.object_bytes.saturating_add_signed(bytes);
        }
        for entry in self.from(b"n") {
            let (key, _) = entry.map_err(|e| store_fault("cannot read the NSM", e))?;
            if !key.starts_with(b"n") {
                break;
            }
            totals.namespaces += 1;
        }
        Ok(totals)
    }

    fn namespace(&self, namespace: &str) -> Result<Option<[u8; 16]>> {
        let found = self.read(&namespace_key(namespace))?;
        found.map(|value| split_namespace(&value).map(|(id, _)| id)).transpose()
    }

    fn existing(&self, namespace: &str) -> Result<[u8; 16]> {
        let missing = || Fault::not_found(format!("there is no namespace {namespace:?}"));
        self.namespace(namespace)?.ok_or_else(missing)
    }

    fn namespace_and_preset(&self, namespace: &str) -> Result<([u8; 16], String)> {
        let missing = || Fault::not_found(format!("there is no namespace {namespace:?}"));
        let value = self.read(&namespace_key(namespace))?.ok_or_else(missing)?;
        split_namespace(&value)
    }

    fn manifest(&self, namespace: [u8; 16], name: &str) -> Result<Option<Manifest>> {
        let found = self.read(&object_key(namespace, name))?;
        found.map(|value| Manifest::decode(&value).map_err(|f| f.about(name))).transpose()
    }

    fn page(&self, area: Vec<u8>, prefix: &str, after: &str, limit: usize) -> Result<Page> {
        let wanted = [&area[..], prefix.as_bytes()].concat();
        let from = if after < prefix {
            wanted.clone()
        } else {
            // The least key greater than `after`.
            [&area[..], after.as_bytes(), &[0]].concat()
        };
        let mut page = Page::default();
        for entry in self.from(&from) {
            let (key, _) = entry.map_err(|e| store_fault("cannot read the NSM", e))?;
            if !key.starts_with(&wanted) {
                break;
            }
            if page.names.len() == limit {
                page.more = true;
                break;
            }
            let name = key.get(area.len()..).unwrap_or_default();
            page.names.push(String::from_utf8_lossy(name).into_owned());
        }
        Ok(page)
    }

    fn from<'a>(&'a self, key: &'a [u8]) -> rocksdb::DBIterator<'a> {
        self.db.iterator(IteratorMode::From(key, Direction::Forward))
    }

    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.db.get(key).map_err(|e| store_fault("cannot read the NSM", e))
    }

    fn write(&self, batch: WriteBatch) -> Result<()> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        let outcome = self.db.write_opt(batch, &options);
        self.is_failing.store(outcome.is_err(), Ordering::Relaxed);
        // Never "no space, nothing was changed": what failed half-way may be read from the log by the next start.
        outcome.map_err(|e| Fault {
            kind: Kind::Unavailable,
            ..store_fault("cannot write the NSM", e)
        })
    }

    // The locks guard nothing in memory, so a panic elsewhere leaves nothing half done.
    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.shape.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
    fn exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.shape.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn check(name: &str, condition: &Condition, found: Option<Manifest>) -> Result<()> {
    let why = match (condition, found) {
        (Condition::Exists, Some(_)) | (Condition::Absent, None) => return Ok(()),
        (Condition::HasCrc(crc), Some(m)) if m.crc == *crc => return Ok(()),
        (Condition::Exists, None) => "it does not exist".into(),
        (Condition::Absent, Some(_)) => "it exists".into(),
        (Condition::HasCrc(crc), None) => {
            format!("it does not exist, checksum {crc:08x} was asserted")
        }
        (Condition::HasCrc(crc), Some(m)) => {
            format!("its checksum is {:08x}, not {crc:08x}", m.crc)
        }
    };
    Err(Fault::new(Kind::AssertFailed, format!("assert on object {name:?} failed: {why}")))
}

fn add(batch: &mut WriteBatch, namespace: [u8; 16], name: &str, manifest: &Manifest) {
    batch.put(object_key(namespace, name), manifest.encode());
    for fragment in &manifest.fragments {
        add_fragment(batch, namespace, name, fragment);
    }
    batch.merge(key(b'c', &namespace), encode_totals(1, manifest.len.cast_signed()));
}

fn drop_object(batch: &mut WriteBatch, namespace: [u8; 16], name: &str, manifest: &Manifest) {
    batch.delete(object_key(namespace, name));
    manifest.fragments.iter().for_each(|fragment| drop_fragment(batch, fragment));
    batch.merge(key(b'c', &namespace), encode_totals(-1, -manifest.len.cast_signed()));
}

fn add_fragment(batch: &mut WriteBatch, namespace: [u8; 16], name: &str, fragment: &Fragment) {
    let value = [&namespace[..], name.as_bytes()].concat();
    batch.put(fragment_key(fragment.osd, fragment.file), value);
}

/// Its file is to be removed.
fn drop_fragment(batch: &mut WriteBatch, fragment: &Fragment) {
    batch.delete(fragment_key(fragment.osd, fragment.file));
    batch.put(key(b'r', &fragment.file.0), fragment.osd.0);
}

fn key(kind: u8, rest: &[u8]) -> Vec<u8> {
    [&[kind], rest].concat()
}
fn namespace_key(namespace: &str) -> Vec<u8> {
    key(b'n', namespace.as_bytes())
}
fn fragment_key(osd: OsdId, file: FragmentId) -> Vec<u8> {
    [b"f", &osd.0[..], &file.0[..]].concat()
}
fn object_key(namespace: [u8; 16], name: &str) -> Vec<u8> {
    [b"m", &namespace[..], name.as_bytes()].concat()
}

/// A namespace's id and the name of its preset. Namespaces older than presets have no name there.
fn split_namespace(value: &[u8]) -> Result<([u8; 16], String)> {
    let (id, preset) = value.split_at_checked(16).unwrap_or((value, &[]));
    let preset = match preset {
        [] => preset::SINGLE.to_string(),
        name => String::from_utf8_lossy(name).into_owned(),
    };
    Ok((as_id(id)?, preset))
}

fn as_id(bytes: &[u8]) -> Result<[u8; 16]> {
    let wrong = |_| Fault::corrupt(format!("NSM record: an identity of {} bytes", bytes.len()));
    bytes.try_into().map_err(wrong)
}

fn encode_totals(objects: i64, bytes: i64) -> [u8; 16] {
    let mut out = [0; 16];
    let (a, b) = out.split_at_mut(8);
    a.copy_from_slice(&objects.to_le_bytes());
    b.copy_from_slice(&bytes.to_le_bytes());
    out
}

fn decode_totals(mut bytes: &[u8]) -> (i64, i64) {
    let objects = bytes.try_get_i64_le().unwrap_or_default();
    (objects, bytes.try_get_i64_le().unwrap_or_default())
}

fn merge_totals(_key: &[u8], before: Option<&[u8]>, operands: &MergeOperands) -> Option<Vec<u8>> {
    let (mut objects, mut bytes) = decode_totals(before.unwrap_or_default());
    for operand in operands {
        let (more_objects, more_bytes) = decode_totals(operand);
        objects = objects.saturating_add(more_objects);
        bytes = bytes.saturating_add(more_bytes);
    }
    Some(encode_totals(objects, bytes).to_vec())
}

fn store_fault(what: &str, error: rocksdb::Error) -> Fault {
    let text = error.to_string();
    let kind = match error.kind() {
        ErrorKind::Corruption => Kind::Corrupt,
        _ if text.contains("No space left") => Kind::NoSpace,
        _ => Kind::Unavailable,
    };
    Fault { source: Some(Box::new(error)), ..Fault::new(kind, what) }
}

#[cfg(test)]
mod tests;
