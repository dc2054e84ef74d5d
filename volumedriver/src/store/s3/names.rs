//! Namespaces, lists, deletions, and uploads that were given up.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_sdk_s3::types::{Delete, ObjectIdentifier};
use volumedriver_core::fault::{Fault, Kind, Result};

use super::refusal::{Meaning, Refusal};
use super::window::Class;
use super::{Inner, Manner};

/// Keys asked for, and deleted, at once: the most there can be.
const PAGE: i32 = 1000;
/// An upload in parts that is older than this is nobody's.
const ABANDONED_AFTER: Duration = Duration::from_hours(24);
/// Pages of unfinished uploads looked at in one go.
const UPLOAD_PAGES: usize = 1000;

/// Which unfinished uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Any,
    Abandoned,
}

impl Inner {
    /// A deletion that was cut short is finished first: what is left of an earlier life must not be seen in this one.
    pub(super) async fn create_namespace(&self, namespace: &str) -> Result<()> {
        let marker = self.keys.marker(namespace)?;
        if self.exists(&self.keys.deletion(namespace)?).await? {
            self.delete_namespace(namespace).await?;
        }
        self.put_marker(&marker).await?;
        self.known().insert(namespace.to_owned());
        Ok(())
    }

    async fn put_marker(&self, key: &str) -> Result<()> {
        let put = self.client.put_object().bucket(&self.bucket).key(key).content_length(0);
        let put = put.body(Vec::new().into());
        self.ask(Manner::new(Class::Urgent), Box::pin(put.send()))
            .await
            .map(drop)
            .map_err(self.fault(key))
    }

    /// `Invalid` when there is no such namespace. Asked once: a namespace that is deleted from elsewhere meanwhile gets
    /// objects that nobody sees.
    pub(super) async fn check_namespace(&self, namespace: &str) -> Result<()> {
        if self.known().contains(namespace) {
            return Ok(());
        }
        let marker = self.keys.marker(namespace)?;
        if !self.exists(&marker).await? {
            let bucket = &self.bucket;
            return Err(Fault::invalid(format!(
                "s3://{bucket}: there is no namespace {namespace:?}"
            )));
        }
        self.known().insert(namespace.to_owned());
        Ok(())
    }

    /// 1. what says that it is going 2. its marker: now it is gone 3. its objects, page by page 4. what says so.
    pub(super) async fn delete_namespace(&self, namespace: &str) -> Result<()> {
        let (marker, deletion) = (self.keys.marker(namespace)?, self.keys.deletion(namespace)?);
        let objects = self.keys.objects_of(namespace)?;
        self.known().remove(namespace);
        if self.exists(&marker).await? {
            self.put_marker(&deletion).await?;
            self.delete(&marker).await.map_err(self.fault(&marker))?;
        }
        if let Err(fault) = self.abort_uploads(&objects, Age::Any).await {
            tracing::debug!(%fault, "unfinished uploads are left to be swept up");
        }
        self.delete_all(&objects).await?;
        self.delete(&deletion).await.map_err(self.fault(&deletion))
    }

    /// Everything whose key begins with this.
    async fn delete_all(&self, prefix: &str) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let page = self.page(prefix, after.as_deref(), PAGE).await?;
            self.delete_page(&page.keys).await?;
            match page.keys.last() {
                Some(last) if page.more => after = Some(last.clone()),
                _ => return Ok(()),
            }
        }
    }

    async fn delete_page(&self, keys: &[String]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        match self.delete_together(keys).await {
            Ok(()) => return Ok(()),
            Err(refusal) if refusal.may_pass() && refusal.meaning != Meaning::Failed => {
                return Err(refusal.into_fault(&self.about(&keys[0])));
            }
            // Not every server knows this, or knows it in the form we ask it in.
            Err(refusal) => tracing::debug!(?refusal, "objects are deleted one by one"),
        }
        for key in keys {
            self.delete(key).await.map_err(self.fault(key))?;
        }
        Ok(())
    }

    async fn delete_together(&self, keys: &[String]) -> Result<(), Refusal> {
        let wrong =
            |e| Refusal::new(Meaning::Failed, format!("no deletion can be made of it: {e}"));
        let mut list = Delete::builder().quiet(true);
        for key in keys {
            list = list.objects(ObjectIdentifier::builder().key(key).build().map_err(wrong)?);
        }
        let list = list.build().map_err(wrong)?;
        let delete = self.client.delete_objects().bucket(&self.bucket).delete(list);
        let answer = self.ask(Manner::new(Class::Bulk), Box::pin(delete.send())).await?;
        match answer.errors().first() {
            None => Ok(()),
            Some(error) => {
                let code = error.code().unwrap_or_default();
                let words = error.message().unwrap_or_default();
                let key = error.key().unwrap_or_default();
                Err(Refusal::new(Meaning::Failed, format!("{key} is not deleted: {code} {words}")))
            }
        }
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), Refusal> {
        let delete = self.client.delete_object().bucket(&self.bucket).key(key);
        match self.ask(Manner::new(Class::Bulk), Box::pin(delete.send())).await {
            Err(refusal) if refusal.meaning == Meaning::Absent => Ok(()),
            answer => answer.map(drop),
        }
    }

    pub(super) async fn list_namespaces(&self, prefix: &str) -> Result<Vec<String>> {
        self.list(&self.keys.markers(), prefix, None, u32::MAX).await
    }

    /// Names are keys without `base`.
    pub(super) async fn list(
        &self,
        base: &str,
        prefix: &str,
        after: Option<&str>,
        limit: u32,
    ) -> Result<Vec<String>> {
        let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
        let whole = format!("{base}{prefix}");
        let mut names: Vec<String> = Vec::new();
        let mut after = after.map(|after| format!("{base}{after}"));
        while names.len() < wanted {
            let left = i32::try_from(wanted - names.len()).unwrap_or(PAGE).min(PAGE);
            let page = self.page(&whole, after.as_deref(), left).await?;
            let names_of = page.keys.iter().filter_map(|key| key.strip_prefix(base));
            names.extend(names_of.map(str::to_owned));
            match page.keys.last() {
                Some(last) if page.more => after = Some(last.clone()),
                _ => break,
            }
        }
        names.truncate(wanted);
        Ok(names)
    }

    /// Keys after `after`, in order. A server that gives others is not believed.
    async fn page(&self, prefix: &str, after: Option<&str>, count: i32) -> Result<Page> {
        let list = self.client.list_objects_v2().bucket(&self.bucket).prefix(prefix);
        let list = list.set_start_after(after.map(str::to_owned)).max_keys(count);
        let answer = self.ask(Manner::new(Class::Urgent), Box::pin(list.send())).await;
        let answer = answer.map_err(self.fault(prefix))?;
        let more = answer.is_truncated.unwrap_or_default();
        let keys: Vec<String> =
            answer.contents.into_iter().flatten().filter_map(|object| object.key).collect();
        let mut last = after;
        for key in &keys {
            if last.is_some_and(|last| last >= key.as_str()) || !key.starts_with(prefix) {
                let about = self.about(prefix);
                return Err(Fault::unavailable(format!(
                    "{about}: the server lists {key:?} where a key after {last:?} was asked for"
                )));
            }
            last = Some(key);
        }
        Ok(Page { keys, more })
    }

    /// Aborts unfinished uploads of keys that begin with this; how many.
    pub(super) async fn abort_uploads(&self, prefix: &str, age: Age) -> Result<usize> {
        let mut aborted = 0;
        let mut markers: (Option<String>, Option<String>) = (None, None);
        for _ in 0..UPLOAD_PAGES {
            let list = self.client.list_multipart_uploads().bucket(&self.bucket).prefix(prefix);
            let (key, id) = markers;
            let list = list.set_key_marker(key).set_upload_id_marker(id);
            let answer = self.ask(Manner::new(Class::Bulk), Box::pin(list.send())).await;
            let answer = answer.map_err(self.fault(prefix))?;
            for upload in answer.uploads() {
                let begun = upload.initiated().map(|begun| begun.secs());
                if let (Some(key), Some(id)) = (upload.key(), upload.upload_id())
                    && key.starts_with(prefix)
                    && (age == Age::Any || is_abandoned(begun))
                {
                    self.abort_upload(key, id).await?;
                    aborted += 1;
                }
            }
            if !answer.is_truncated.unwrap_or_default() {
                return Ok(aborted);
            }
            markers = (answer.next_key_marker, answer.next_upload_id_marker);
        }
        Err(Fault::new(
            Kind::Unavailable,
            "there are more unfinished uploads than are looked at at once",
        ))
    }
}

struct Page {
    keys: Vec<String>,
    more: bool,
}

/// By the server's clock and ours: a day is longer than they differ by.
fn is_abandoned(begun_s: Option<i64>) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let begun = begun_s.and_then(|s| u64::try_from(s).ok());
    begun.is_some_and(|begun| now.saturating_sub(begun) > ABANDONED_AFTER.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_old_uploads_are_nobodys() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        for (begun, abandoned) in [
            (None, false),
            (Some(now), false),
            (Some(now + 1000), false),
            (Some(now - 86_000), false),
            (Some(now - 87_000), true),
            (Some(0), true),
            (Some(-1), false),
        ] {
            assert_eq!(is_abandoned(begun), abandoned, "{begun:?}");
        }
    }
}
