//! Reading objects: verified ranges, and whole objects piece by piece.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::sync::Cache;

use super::repair::Notice;
use super::{Alba, Inner, check_names, fetch};
use crate::fault::{Fault, Kind, Result};
use crate::manifest::Manifest;
use crate::name::FragmentId;
use crate::osd::{Fragment, Priority};

/// A read begins again so often when the object's fragments are moved under it.
const ATTEMPTS: usize = 4;

/// Fragments kept open, by identity.
pub(super) struct OpenFragments(Cache<FragmentId, Arc<dyn Fragment>>);

impl OpenFragments {
    pub(super) fn new(count: usize) -> Self {
        Self(Cache::new(count.max(1)))
    }

    pub(super) fn get(&self, id: FragmentId) -> Option<Arc<dyn Fragment>> {
        self.0.get(&id)
    }

    pub(super) fn clear(&self) {
        self.0.clear();
    }

    /// To be called after the file was removed.
    pub(super) fn forget(&self, id: FragmentId) {
        self.0.remove(&id);
    }

    pub(super) fn keep(&self, id: FragmentId, fragment: &Arc<dyn Fragment>) {
        self.0.insert(id, fragment.clone());
        // Removed since it was opened: `forget` may have come before.
        if fragment.is_removed() {
            self.forget(id);
        }
    }
}

/// An object being read.
pub struct Reader {
    alba: Alba,
    pub manifest: Arc<Manifest>,
    source: Source,
}

/// The names of an object.
#[derive(Clone)]
struct Source {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl Source {
    fn title(&self) -> String {
        format!("object {:?} in namespace {:?}", self.name, self.namespace)
    }
}

impl Alba {
    /// Exactly `len` bytes from `offset`, verified; `None` when there is no such object. A range past its end is `Invalid`,
    /// a damaged one that cannot be rebuilt `Corrupt`.
    pub async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        let (namespace, name) = check_names(namespace, name)?;
        let source = Source { namespace: namespace.as_str().into(), name: name.as_str().into() };
        let _permit = self.inner.blocking.may_get().await?;
        let looked = self.inner.look(&source.namespace, &source.name).await?;
        let Some(manifest) = looked else { return Ok(None) };
        if let Some(bytes) = self.inner.read_at_once(&manifest, offset, len).await {
            return Ok(Some(bytes));
        }
        self.inner.read(&source, manifest, offset, len, false).await
    }

    /// Opens an object for reading it piece by piece; `None` when there is none.
    pub async fn open_object(&self, namespace: &str, name: &str) -> Result<Option<Reader>> {
        check_names(namespace, name)?;
        let source = Source { namespace: namespace.into(), name: name.into() };
        let looked = self.inner.look(&source.namespace, &source.name).await?;
        let Some(manifest) = looked else { return Ok(None) };
        Ok(Some(Reader { alba: self.clone(), manifest, source }))
    }

    /// A file that holds the object's bytes from offset 0 on, for reading without the backend in between: for direct I/O where
    /// the file system takes it. The bytes are unverified. `None` when there is no such object, or none of its fragments is
    /// the whole object in a file of this machine.
    pub async fn local_file(&self, namespace: &str, name: &str) -> Result<Option<File>> {
        let Some(manifest) = self.head(namespace, name).await? else { return Ok(None) };
        if !manifest.policy.is_copies() {
            return Ok(None);
        }
        let (mut last, mut is_asked) = (Ok(None), false);
        for fragment in &manifest.fragments {
            last = match self.inner.osds.get(fragment.osd) {
                Ok(member) if !member.has_files() => continue,
                Ok(member) => {
                    is_asked = true;
                    member.open_raw(fragment.file).await
                }
                Err(fault) => Err(fault),
            };
            if let Ok(Some(_)) = &last {
                return last;
            }
        }
        let is_gone = matches!(last, Ok(None)) && is_asked && manifest.fragments.len() == 1;
        if is_gone && self.head(namespace, name).await?.as_ref() == Some(&manifest) {
            let source = Source { namespace: namespace.into(), name: name.into() };
            let (title, len) = (source.title(), manifest.len);
            return Err(Fault::corrupt(format!("{title}: bytes 0..{len}: its file is missing")));
        }
        last
    }
}

impl Reader {
    /// What remains of the object from `offset`, or `len` bytes of it: the length of the range if it is legal.
    pub fn check_range(&self, offset: u64, len: Option<u64>) -> Result<u64> {
        check_range(self.manifest.len, offset, len).map_err(|f| f.about(self.source.title()))
    }

    /// A verified range that [`Reader::check_range`] found legal.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Bytes> {
        self.check_range(offset, Some(len))?;
        // For each read anew, so that a client that stalls keeps nobody else waiting.
        let _permit = self.alba.inner.blocking.may_get().await?;
        let manifest = self.manifest.clone();
        let read = self.alba.inner.read(&self.source, manifest, offset, len, true).await?;
        let gone = || Fault::not_found(format!("{} was deleted meanwhile", self.source.title()));
        read.ok_or_else(gone)
    }
}

impl Inner {
    /// Where there is nothing to choose from: an object whole in an open file of the only OSD. `None` when it is not that
    /// simple, or fails.
    async fn read_at_once(&self, manifest: &Manifest, offset: u64, len: u64) -> Option<Bytes> {
        let [fragment] = &manifest.fragments[..] else { return None };
        let is_legal = check_range(manifest.len, offset, Some(len)).is_ok();
        if !is_legal || !manifest.policy.is_copies() || self.osds.count() > 1 {
            return None;
        }
        let open = self.open_fragments.get(fragment.file)?;
        let read = self.blocking.run(move || Ok(open.read_here(offset, offset + len)));
        read.await.ok()??.ok()
    }

    /// A range of an object whose manifest was this. `None` when the object is gone; if it is pinned, also when it is
    /// another.
    async fn read(
        self: &Arc<Self>,
        source: &Source,
        mut manifest: Arc<Manifest>,
        offset: u64,
        len: u64,
        is_pinned: bool,
    ) -> Result<Option<Bytes>> {
        for attempt in 1.. {
            let legal = check_range(manifest.len, offset, Some(len));
            let len = legal.map_err(|f| f.about(source.title()))?;
            let fetched =
                Box::pin(fetch::range(self, &manifest, (offset, len), Priority::Foreground)).await;
            self.notice(Notice::damaged(&source.namespace, &source.name, &fetched.damaged));
            let fault = match fetched.outcome {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(fault) => fault,
            };
            let now = self.nsm.get(&source.namespace, &source.name).await?;
            match now {
                None => return Ok(None),
                Some(now) if is_pinned && !is_same_object(&now, &manifest) => return Ok(None),
                Some(now) if now == *manifest || attempt == ATTEMPTS => {
                    return Err(fault.about(source.title()));
                }
                Some(now) => manifest = Arc::new(now),
            }
        }
        Err(Fault::new(Kind::Bug, "attempts without end"))
    }
}

/// Maintenance may have stored it anew, and nothing else keeps all of these.
fn is_same_object(a: &Manifest, b: &Manifest) -> bool {
    let content = |manifest: &Manifest| (manifest.len, manifest.crc, manifest.created_ms);
    a.id == b.id || content(a) == content(b)
}

fn check_range(object_len: u64, offset: u64, len: Option<u64>) -> Result<u64> {
    let left = object_len.checked_sub(offset);
    let len = len.or(left);
    match (left, len) {
        (Some(left), Some(len)) if len <= left => Ok(len),
        (_, len) => {
            let end = offset.saturating_add(len.unwrap_or(0));
            Err(Fault::invalid(format!("bytes {offset}..{end} asked of {object_len}")))
        }
    }
}
