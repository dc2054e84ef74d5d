//! A bucket of any server that speaks S3, as a store of fragments.
//!
//! A put goes up once, as it comes: nothing of it is held to be sent again, and so the server is given no checksum of it. What
//! is damaged on the way is found by whoever reads it, or at once with a preset that verifies uploads. Questions and
//! deletions are repeated by the library. Put-if-absent is `If-None-Match: *`; only the chain of owners needs it.

mod body;
mod connect;
#[cfg(test)]
mod fake;
mod refusal;
mod tally;
#[cfg(test)]
mod tests;
mod url;

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::Bytes;
use tokio::sync::{OnceCell, mpsc};

use self::refusal::{Meaning, Refusal, chain};
use self::tally::Tally;
pub use self::url::S3Url;
use super::Room;
use super::objects::{Created, Objects, Page};
use crate::fault::{Fault, Kind, Result};
use crate::net::Gathered;

/// The largest object S3 takes in one request, bytes.
const LONGEST: u64 = 5 << 30;
/// Times a put is repeated that somebody else is in the way of.
const CONFLICTS: usize = 5;

#[derive(Debug)]
pub struct Bucket(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    url: S3Url,
    /// Made when first needed.
    client: OnceCell<Client>,
    tally: Tally,
}

impl Bucket {
    /// Asks nothing yet.
    #[must_use]
    pub fn new(url: S3Url) -> Self {
        let tally = Tally::new(url.capacity_gib.map(|gib| gib << 30));
        Self(Arc::new(Inner { url, client: OnceCell::new(), tally }))
    }
}

impl Inner {
    /// A file that is missing, or wrong, may be put right: until then the OSD is out of reach.
    async fn client(&self) -> Result<&Client> {
        let made = self.client.get_or_try_init(|| Box::pin(connect::client(&self.url))).await;
        made.map_err(|fault| Fault { kind: Kind::Unavailable, ..fault })
    }

    fn key(&self, key: &str) -> String {
        match self.url.prefix.as_str() {
            "" => key.to_owned(),
            prefix => format!("{prefix}/{key}"),
        }
    }

    async fn put(&self, key: &str, len: u64, body: mpsc::Receiver<Bytes>) -> Result<()> {
        let put = self.client().await?.put_object().bucket(&self.url.bucket).key(self.key(key));
        let put = put.content_length(as_i64(len)).body(body::of_queue(body, len));
        let sent = Box::pin(put.send()).await;
        sent.map(drop).map_err(|error| Refusal::from(error).into())
    }

    async fn put_if_absent(&self, key: &str, value: &Bytes) -> Result<(), Refusal> {
        let client = self.client().await;
        let client = client.map_err(|fault| Refusal::new(Meaning::Failed, fault.to_string()))?;
        let put = client.put_object().bucket(&self.url.bucket).key(self.key(key));
        let put = put.if_none_match("*").body(value.clone().into());
        Ok(Box::pin(put.send()).await.map(drop)?)
    }

    /// What the server gives for this range of a key, and its header.
    async fn ask(&self, key: &str, range: &str) -> Result<Option<GetObjectOutput>> {
        let get = self.client().await?.get_object().bucket(&self.url.bucket).key(self.key(key));
        let asked = Box::pin(get.range(format!("bytes={range}")).send()).await;
        match asked.map_err(Refusal::from) {
            Ok(output) => Ok(Some(output)),
            Err(refusal) if refusal.meaning == Meaning::Absent => Ok(None),
            Err(refusal) => Err(refusal.into()),
        }
    }

    async fn get(&self, key: &str, from: u64, len: u64) -> Result<Option<Bytes>> {
        let last = from + len - 1;
        let Some(output) = self.ask(key, &format!("{from}-{last}")).await? else {
            return Ok(None);
        };
        let (first, until, total) = range_of(&output)?;
        if total <= last {
            let to = last + 1;
            return Err(Fault::corrupt(format!("bytes {from}..{to}: the object has {total}")));
        }
        if (first, until) != (from, last + 1) {
            let message = format!("asked for bytes {from}-{last}, it answers {first}..{until}");
            return Err(Fault::unavailable(message));
        }
        collect(output, len).await.map(Some)
    }

    async fn end(&self, key: &str, len: u64) -> Result<Option<(u64, Bytes)>> {
        let Some(output) = self.ask(key, &format!("-{len}")).await? else { return Ok(None) };
        let (first, until, total) = range_of(&output)?;
        if until != total || until - first != len.min(total) {
            let message =
                format!("asked for the last {len} bytes of {total}, it answers {first}..{until}");
            return Err(Fault::unavailable(message));
        }
        Ok(Some((total, collect(output, until - first).await?)))
    }

    /// Keys and lengths.
    async fn page(&self, prefix: &str, after: &str) -> Result<(Vec<(String, u64)>, bool)> {
        let (prefix, root) = (self.key(prefix), self.key(""));
        let list = self.client().await?.list_objects_v2().bucket(&self.url.bucket).prefix(&prefix);
        let start = (!after.is_empty()).then(|| self.key(after));
        let listed = Box::pin(list.set_start_after(start.clone()).send()).await;
        let listed = listed.map_err(|error| Fault::from(Refusal::from(error)))?;
        let (mut found, mut last) = (Vec::new(), start);
        for object in listed.contents.into_iter().flatten() {
            let (Some(key), len) = (object.key, object.size.unwrap_or_default()) else { continue };
            if last.as_ref().is_some_and(|last| *last >= key) || !key.starts_with(&prefix) {
                let message = format!("asked for keys after {last:?}, it lists {key:?}");
                return Err(Fault::unavailable(message));
            }
            let own = key.strip_prefix(&root).unwrap_or_default().to_owned();
            found.push((own, u64::try_from(len).unwrap_or_default()));
            last = Some(key);
        }
        Ok((found, listed.is_truncated.unwrap_or_default()))
    }

    async fn count(&self) -> Result<u64> {
        let (mut bytes, mut after) = (0_u64, String::new());
        loop {
            let (found, more) = self.page("", &after).await?;
            bytes = found.iter().fold(bytes, |sum, (_, len)| sum.saturating_add(*len));
            match found.into_iter().next_back() {
                Some((last, _)) if more => after = last,
                _ => return Ok(bytes),
            }
        }
    }
}

#[async_trait]
impl Objects for Bucket {
    fn place(&self) -> String {
        self.0.url.to_string()
    }
    fn longest(&self) -> u64 {
        LONGEST
    }

    async fn room(&self) -> Result<Room> {
        if self.0.tally.begin() {
            let bucket: Weak<Inner> = Arc::downgrade(&self.0);
            tokio::spawn(async move {
                let Some(bucket) = bucket.upgrade() else { return };
                let counted = bucket.count().await;
                if let Err(fault) = &counted {
                    tracing::debug!(%fault, place = %bucket.url, "a bucket cannot be counted");
                }
                bucket.tally.end(counted.ok());
            });
        }
        Ok(self.0.tally.room())
    }

    async fn put(&self, key: &str, len: u64, body: mpsc::Receiver<Bytes>) -> Result<()> {
        self.0.tally.put(len);
        let promised = Promised { tally: &self.0.tally, len };
        self.0.put(key, len, body).await?;
        std::mem::forget(promised);
        Ok(())
    }

    async fn put_if_absent(&self, key: &str, value: Bytes) -> Result<Created> {
        for _ in 0..CONFLICTS {
            match self.0.put_if_absent(key, &value).await {
                Ok(()) => return Ok(Created::Now),
                Err(refusal) => match refusal.meaning {
                    Meaning::Exists => return Ok(Created::Exists),
                    Meaning::Conflict => {}
                    _ => return Err(refusal.into()),
                },
            }
        }
        Err(Fault::unavailable("others write its marker again and again (409)"))
    }

    async fn get(&self, key: &str, from: u64, len: u64) -> Result<Option<Bytes>> {
        self.0.get(key, from, len).await
    }

    async fn end(&self, key: &str, len: u64) -> Result<Option<(u64, Bytes)>> {
        self.0.end(key, len).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let url = &self.0.url;
        let delete = self.0.client().await?.delete_object().bucket(&url.bucket);
        let deleted = Box::pin(delete.key(self.0.key(key)).send()).await;
        self.0.tally.deleted();
        match deleted.map_err(Refusal::from) {
            Err(refusal) if refusal.meaning != Meaning::Absent => Err(refusal.into()),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    async fn list(&self, prefix: &str, after: &str) -> Result<Page> {
        let (found, more) = self.0.page(prefix, after).await?;
        Ok(Page { keys: found.into_iter().map(|(key, _)| key).collect(), more })
    }
}

/// Takes back what was counted of a put that ends otherwise.
struct Promised<'a> {
    tally: &'a Tally,
    len: u64,
}

impl Drop for Promised<'_> {
    fn drop(&mut self) {
        self.tally.not_put(self.len);
    }
}

fn as_i64(len: u64) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

/// From, to, and the length of the whole object. A range that is all of it may be answered without saying so.
fn range_of(output: &GetObjectOutput) -> Result<(u64, u64, u64)> {
    let wrong = |said: &str| {
        Fault::unavailable(format!("it does not say which range it answers: {said:?}"))
    };
    let Some(said) = &output.content_range else {
        let len = output.content_length.and_then(|len| u64::try_from(len).ok());
        return len.map(|len| (0, len, len)).ok_or_else(|| wrong("no length"));
    };
    let parsed = || {
        let (range, total) = said.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let total: u64 = total.parse().ok()?;
        (first <= last && last < total).then_some((first, last + 1, total))
    };
    parsed().ok_or_else(|| wrong(said))
}

/// The body, which must have exactly this length.
async fn collect(output: GetObjectOutput, len: u64) -> Result<Bytes> {
    let (mut body, mut gathered) = (output.body, Gathered::of(len));
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| {
            let (got, why) = (gathered.count(), chain(&error));
            Fault::unavailable(format!("{got} of {len} bytes arrived, then: {why}"))
        })?;
        gathered.add(chunk).map_err(Fault::unavailable)?;
    }
    gathered.finish().map_err(Fault::unavailable)
}
