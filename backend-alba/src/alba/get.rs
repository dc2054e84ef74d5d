//! Reading objects: verified ranges, and whole objects piece by piece.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::sync::Cache;

use super::{Alba, Inner, check_names};
use crate::fault::{Fault, Result};
use crate::manifest::Manifest;
use crate::name::ObjectId;
use crate::osd::ObjectFile;

/// Objects kept open, by identity.
pub(super) struct OpenObjects(Cache<ObjectId, Arc<ObjectFile>>);

impl OpenObjects {
    pub(super) fn new(count: usize) -> Self {
        Self(Cache::new(count.max(1)))
    }

    /// To be called after the file was removed.
    pub(super) fn forget(&self, id: ObjectId) {
        self.0.remove(&id);
    }

    fn keep(&self, id: ObjectId, object: &Arc<ObjectFile>) {
        self.0.insert(id, object.clone());
        // Removed since it was opened: `forget` may have come before.
        if object.is_removed() {
            self.forget(id);
        }
    }
}

/// An object being read.
pub struct Reader {
    alba: Alba,
    pub manifest: Manifest,
    object: Arc<ObjectFile>,
    title: Arc<str>,
}

impl Alba {
    /// Exactly `len` bytes from `offset`, verified; `None` when there is no such object. A range past its end is `Invalid`,
    /// a damaged one `Corrupt`.
    pub async fn get_range(
        &self,
        namespace: &str,
        name: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        let (namespace, name) = check_names(namespace, name)?;
        let permit = self.inner.blocking.may_get().await?;
        self.run(move |inner| {
            let _permit = permit;
            let Some((manifest, object)) = inner.open_object(&namespace, &name)? else {
                return Ok(None);
            };
            let title = title(&namespace, &name);
            let range =
                check_range(manifest.len, offset, Some(len)).map_err(|f| f.about(&title))?;
            object.read(offset, range).map(Some).map_err(|f| f.about(&title))
        })
        .await
    }

    /// Opens an object for reading it piece by piece; `None` when there is none.
    pub async fn open_object(&self, namespace: &str, name: &str) -> Result<Option<Reader>> {
        let (namespace, name) = check_names(namespace, name)?;
        let title = title(&namespace, &name).into();
        let opened = self.run(move |inner| inner.open_object(&namespace, &name)).await?;
        let reader = |(manifest, object)| Reader { alba: self.clone(), manifest, object, title };
        Ok(opened.map(reader))
    }

    /// The file of an object, which holds its bytes from offset 0 on, for reading without the backend in between: for
    /// direct I/O where the file system takes it. The bytes are unverified. `None` when there is no such object.
    pub async fn local_file(&self, namespace: &str, name: &str) -> Result<Option<File>> {
        let (namespace, name) = check_names(namespace, name)?;
        self.run(move |inner| {
            let Some(manifest) = inner.nsm.get(&namespace, &name)? else {
                return Ok(None);
            };
            if let Some(file) = inner.osd(manifest.osd)?.open_raw(manifest.id)? {
                return Ok(Some(file));
            }
            inner.missing(&namespace, &name, &manifest).map(|()| None)
        })
        .await
    }
}

impl Reader {
    /// What remains of the object from `offset`, or `len` bytes of it: the length of the range if it is legal.
    pub fn check_range(&self, offset: u64, len: Option<u64>) -> Result<u64> {
        check_range(self.manifest.len, offset, len).map_err(|f| f.about(&self.title))
    }

    /// A verified range that [`Reader::check_range`] found legal.
    pub async fn read(&self, offset: u64, len: u64) -> Result<Bytes> {
        self.check_range(offset, Some(len))?;
        // For each read anew, so that a client that stalls keeps nobody else waiting.
        let _permit = self.alba.inner.blocking.may_get().await?;
        let (object, title) = (self.object.clone(), self.title.clone());
        self.alba.run(move |_| object.read(offset, len).map_err(|f| f.about(title))).await
    }
}

impl Inner {
    fn open_object(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<(Manifest, Arc<ObjectFile>)>> {
        let Some(manifest) = self.nsm.get(namespace, name)? else {
            return Ok(None);
        };
        if let Some(object) = self.open_objects.0.get(&manifest.id) {
            return Ok(Some((manifest, object)));
        }
        let opened = self.osd(manifest.osd)?.open_object(manifest.id, manifest.len, manifest.crc);
        let Some(object) = opened.map_err(|f| f.about(title(namespace, name)))? else {
            return self.missing(namespace, name, &manifest).map(|()| None);
        };
        let object = Arc::new(object);
        self.open_objects.keep(manifest.id, &object);
        Ok(Some((manifest, object)))
    }

    /// An object's file is missing: fine when the object was deleted meanwhile, else damage.
    fn missing(&self, namespace: &str, name: &str, manifest: &Manifest) -> Result<()> {
        if !self.nsm.is_live(manifest.id)? {
            return Ok(());
        }
        let (title, len) = (title(namespace, name), manifest.len);
        Err(Fault::corrupt(format!("{title}: bytes 0..{len}: its file is missing")))
    }
}

fn title(namespace: &str, name: &str) -> String {
    format!("object {name:?} in namespace {namespace:?}")
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
