//! Ranges and heads.

use std::time::{Duration, Instant};

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use bytes::{Bytes, BytesMut};
use volumedriver_core::fault::{Fault, Result};

use super::body::Progress;
use super::put::CRC_METADATA;
use super::refusal::{Meaning, Refusal, chain};
use super::window::Class;
use super::{Inner, Manner};
use crate::world::ObjectInfo;

/// There are servers that show an object before its metadata; or without it for ever, when the one who put it was killed
/// meanwhile. What may be such an object and must be known is small (the last manifest), and read.
const CRC_BY_READING_BYTES: u64 = 4 << 20;
const METADATA_ATTEMPTS: u32 = 5;
const METADATA_PAUSE: Duration = Duration::from_millis(50);

impl Inner {
    /// See [`ObjectStore::get_range`](crate::world::ObjectStore::get_range).
    pub(super) async fn get_range(
        &self,
        key: &str,
        offset: u64,
        len: u64,
    ) -> Result<Option<Bytes>> {
        let past_end = || {
            let about = self.about(key);
            Fault::invalid(format!("{about}: {len} bytes from {offset} reach past its end"))
        };
        // HTTP has no empty range; and one beyond 64 bits is past the end of what is there.
        let last = match (len, offset.checked_add(len)) {
            (1.., Some(end)) => end - 1,
            _ => {
                let Some(info) = self.len_of(key).await? else { return Ok(None) };
                let fits = offset.checked_add(len).is_some_and(|end| end <= info);
                return if fits { Ok(Some(Bytes::new())) } else { Err(past_end()) };
            }
        };
        match self.get_twice_if_slow(key, offset, last).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(refusal) => match refusal.meaning {
                Meaning::Absent => Ok(None),
                Meaning::PastEnd => Err(past_end()),
                _ => Err(refusal.into_fault(&self.about(key))),
            },
        }
    }

    /// Asks again when the first GET takes longer than nearly all others; the first good answer counts.
    async fn get_twice_if_slow(&self, key: &str, first: u64, last: u64) -> Result<Bytes, Refusal> {
        let len = last - first + 1;
        let one = self.get_once(key, first, last);
        let Some(patience) = self.latencies.patience(len) else { return one.await };
        let mut one = std::pin::pin!(one);
        tokio::select! {
            biased;
            answer = &mut one => return answer,
            () = tokio::time::sleep(patience) => {}
        }
        if !self.latencies.may_ask_again() {
            return one.await;
        }
        let mut two = std::pin::pin!(self.get_once(key, first, last));
        tokio::select! {
            answer = &mut one => match answer {
                Err(refusal) if refusal.may_pass() => two.await,
                answer => answer,
            },
            answer = &mut two => match answer {
                Err(refusal) if refusal.may_pass() => one.await,
                answer => answer,
            },
        }
    }

    async fn get_once(&self, key: &str, first: u64, last: u64) -> Result<Bytes, Refusal> {
        let began = Instant::now();
        let manner = Manner::new(Class::Urgent);
        let progress = manner.progress.clone();
        let get = self.client.get_object().bucket(&self.bucket).key(key);
        let get = get.range(format!("bytes={first}-{last}"));
        let work = async {
            let output = Box::pin(get.send()).await?;
            progress.moved();
            check_range(&output, first, last)?;
            read(output, last - first + 1, &progress).await
        };
        let bytes = self.through_window(manner, work).await?;
        self.latencies.note(last - first + 1, began.elapsed());
        Ok(bytes)
    }

    /// Length of an object.
    async fn len_of(&self, key: &str) -> Result<Option<u64>> {
        Ok(self.ask_head(key).await.map_err(self.fault(key))?.map(|(len, _)| len))
    }

    pub(super) async fn head(&self, key: &str) -> Result<Option<ObjectInfo>> {
        for _ in 0..METADATA_ATTEMPTS {
            let found = self.ask_head(key).await.map_err(self.fault(key))?;
            let Some((len, crc)) = found else { return Ok(None) };
            if let Some(crc) = crc.and_then(|text| u32::from_str_radix(&text, 16).ok()) {
                return Ok(Some(ObjectInfo { len, crc }));
            }
            if len <= CRC_BY_READING_BYTES {
                let body = self.get_range(key, 0, len).await?;
                return Ok(body.map(|body| ObjectInfo { len, crc: crc32fast::hash(&body) }));
            }
            tokio::time::sleep(METADATA_PAUSE).await;
        }
        Err(Fault::corrupt(format!(
            "{}: its metadata {CRC_METADATA:?} is missing or no number: not an object of ours, or the server loses metadata",
            self.about(key)
        )))
    }

    pub(super) async fn exists(&self, key: &str) -> Result<bool> {
        Ok(self.ask_head(key).await.map_err(self.fault(key))?.is_some())
    }

    /// Length and checksum as text. An answer to HEAD has no body, and so 404 does not say what is missing: it is asked.
    async fn ask_head(&self, key: &str) -> Result<Option<(u64, Option<String>)>, Refusal> {
        let head = self.client.head_object().bucket(&self.bucket).key(key);
        match self.ask(Manner::new(Class::Urgent), Box::pin(head.send())).await {
            Ok(head) => {
                let len = head.content_length.and_then(|len| u64::try_from(len).ok());
                let len = len.ok_or_else(|| {
                    Refusal::new(Meaning::Failed, "a head without a length".to_owned())
                })?;
                let crc = head.metadata.and_then(|mut metadata| metadata.remove(CRC_METADATA));
                Ok(Some((len, crc)))
            }
            Err(refusal) => match refusal.meaning {
                Meaning::Absent => self.ask_bucket().await.map(|()| None),
                _ => Err(refusal),
            },
        }
    }

    async fn ask_bucket(&self) -> Result<(), Refusal> {
        let head = self.client.head_bucket().bucket(&self.bucket);
        match self.ask(Manner::new(Class::Urgent), Box::pin(head.send())).await {
            Ok(_) => Ok(()),
            Err(refusal) => Err(match refusal.meaning {
                Meaning::Absent => Refusal::new(Meaning::NoBucket, "there is no such bucket"),
                _ => refusal,
            }),
        }
    }
}

/// The answer must be about the bytes that were asked for.
fn check_range(output: &GetObjectOutput, first: u64, last: u64) -> Result<(), Refusal> {
    let len = last - first + 1;
    let Some(said) = &output.content_range else {
        // A range that is the whole object may be answered without saying so.
        let whole =
            first == 0 && output.content_length.and_then(|l| u64::try_from(l).ok()) == Some(len);
        return match whole {
            true => Ok(()),
            false => Err(Refusal::new(
                Meaning::Failed,
                "the server does not say which range its answer is (it may ignore Range)",
            )),
        };
    };
    let wrong = || {
        let message = format!("asked for bytes {first}-{last}, the server answers {said:?}");
        Refusal::new(Meaning::Failed, message)
    };
    let (from, to, total) = parse_range(said).ok_or_else(wrong)?;
    if total <= last {
        return Err(Refusal::new(Meaning::PastEnd, format!("it has {total} bytes")));
    }
    if (from, to) == (first, last) { Ok(()) } else { Err(wrong()) }
}

/// `bytes FIRST-LAST/TOTAL`.
fn parse_range(said: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = said.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?, total.parse().ok()?))
}

/// The body, which must have exactly this length.
async fn read(output: GetObjectOutput, len: u64, progress: &Progress) -> Result<Bytes, Refusal> {
    let broken =
        |got: usize| Refusal::new(Meaning::Garbled, format!("{got} of {len} bytes arrived"));
    let mut body = output.body;
    let mut one = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| {
            let got = one.len() + all.len();
            let why = chain(&error);
            Refusal::new(Meaning::Garbled, format!("{got} of {len} bytes arrived, then: {why}"))
        })?;
        progress.moved();
        let received = (one.len() + all.len() + chunk.len()) as u64;
        if received > len {
            return Err(Refusal::new(Meaning::Garbled, format!("more than {len} bytes arrive")));
        }
        if received == len && one.is_empty() && all.is_empty() {
            // The whole range in one chunk needs no copy.
            one = chunk;
        } else {
            if all.is_empty() {
                all.reserve(usize::try_from(len).unwrap_or_default());
            }
            all.extend_from_slice(&chunk);
        }
    }
    let bytes = if one.is_empty() { all.freeze() } else { one };
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(broken(bytes.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_or_refused() {
        assert_eq!(parse_range("bytes 3-9/10"), Some((3, 9, 10)));
        for said in ["", "bytes", "bytes 3-9", "bytes 3-9/*", "bytes */10", "3-9/10", "bytes a-b/c"]
        {
            assert_eq!(parse_range(said), None, "{said}");
        }
        let answer = |range: Option<&str>, len| {
            GetObjectOutput::builder()
                .set_content_range(range.map(str::to_owned))
                .content_length(len)
                .build()
        };
        let meaning =
            |output: GetObjectOutput| check_range(&output, 3, 9).map_err(|refusal| refusal.meaning);
        assert_eq!(meaning(answer(Some("bytes 3-9/10"), 7)), Ok(()));
        assert_eq!(meaning(answer(Some("bytes 3-8/9"), 6)), Err(Meaning::PastEnd));
        assert_eq!(meaning(answer(Some("bytes 2-8/20"), 7)), Err(Meaning::Failed));
        assert_eq!(meaning(answer(None, 7)), Err(Meaning::Failed));
        assert!(check_range(&answer(None, 10), 0, 9).is_ok());
        assert!(check_range(&answer(None, 20), 0, 9).is_err());
    }
}
