//! Put-if-absent: in one request, or in parts.
//!
//! An upload in parts becomes an object when it is completed, and that is where the condition is. Parts that fail are sent
//! again by themselves; an upload that is given up is aborted, and what cannot even be aborted is found and given up a day
//! later ([`S3Store::sweep`](super::S3Store::sweep)).

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use volumedriver_core::fault::{Fault, Kind, Result};

use super::body::{request_body, slice};
use super::refusal::{Meaning, Refusal};
use super::window::Class;
use super::{Inner, Manner, Parts};
use crate::config::ChecksumMode;
use crate::world::Put;

/// Bytes of a part; more where an object would have too many of them.
const PART_BYTES: u64 = 16 << 20;
const MAX_PARTS: u64 = 10_000;
/// Parts of one object on their way at a time.
const PARTS_UNDER_WAY: usize = 4;
/// Largest object S3 takes in one request.
const MAX_SINGLE_BYTES: u64 = 5 << 30;
/// Attempts at a part, and at a put that somebody else is in the way of.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Name of the metadata that holds the CRC-32 of the whole object.
pub(super) const CRC_METADATA: &str = "crc32";

/// An object on its way.
#[derive(Clone)]
pub(super) struct Upload {
    key: String,
    body: Arc<Vec<Bytes>>,
    len: u64,
    crc: u32,
    class: Class,
}

impl Upload {
    pub(super) fn new(key: String, body: Vec<Bytes>, class: Class) -> Self {
        let len = body.iter().map(|piece| piece.len() as u64).sum();
        Self { key, len, crc: crc_of(&body), body: Arc::new(body), class }
    }
}

fn crc_of(pieces: &[Bytes]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    pieces.iter().for_each(|piece| crc.update(piece));
    crc.finalize()
}

/// A CRC-32 as S3 writes it: base64 of its four bytes, the highest first.
fn base64(crc: u32) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits = u64::from(crc) << 4;
    let digit = |n: u32| char::from(DIGITS[(bits >> (30 - 6 * n) & 63) as usize]);
    (0..6).map(digit).chain("==".chars()).collect()
}

impl Inner {
    pub(super) async fn put(self: Arc<Self>, upload: Upload, parts: Parts) -> Result<Put> {
        let in_parts = match parts {
            Parts::Never => false,
            Parts::Above(bytes) => upload.len > bytes,
        };
        if !in_parts && upload.len > MAX_SINGLE_BYTES {
            return Err(Fault::invalid(format!(
                "{}: {} bytes are more than one request holds, and uploads in parts are off",
                self.about(&upload.key),
                upload.len
            )));
        }
        let mut pause = FIRST_PAUSE;
        for _ in 0..ATTEMPTS {
            let outcome = match in_parts {
                true => self.put_in_parts(&upload).await,
                false => self.put_at_once(&upload).await,
            };
            match outcome {
                Ok(()) => return Ok(Put::Created),
                Err(refusal) => match refusal.meaning {
                    Meaning::Exists => return Ok(Put::Exists),
                    // Somebody else is writing it: soon it exists, or does not.
                    Meaning::Conflict => {}
                    _ => return Err(refusal.into_fault(&self.about(&upload.key))),
                },
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        let key = self.about(&upload.key);
        Err(Fault::unavailable(format!("{key}: others are writing it again and again (409)")))
    }

    async fn put_at_once(&self, upload: &Upload) -> Result<(), Refusal> {
        let manner = Manner::upload(upload.class);
        let body = request_body(upload.body.to_vec(), manner.progress.clone());
        let put = self.client.put_object().bucket(&self.bucket).key(&upload.key);
        let put = put
            .if_none_match("*")
            .content_length(upload.len.try_into().unwrap_or(i64::MAX))
            .metadata(CRC_METADATA, format!("{:08x}", upload.crc))
            .set_checksum_crc32(self.checksum(upload.crc))
            .body(body);
        self.ask(manner, Box::pin(put.send())).await.map(drop)
    }

    fn checksum(&self, crc: u32) -> Option<String> {
        match self.checksum {
            ChecksumMode::WhenRequired => None,
            ChecksumMode::WhenSupported => Some(base64(crc)),
        }
    }

    async fn put_in_parts(&self, upload: &Upload) -> Result<(), Refusal> {
        let id = self.begin(upload).await?;
        let outcome = match self.send_parts(upload, &id).await {
            Ok(parts) => self.complete(upload, &id, parts).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(refusal) = outcome {
            // After an unknown outcome either the completion or this comes first: the object is there, or never will be.
            if let Err(left) = self.abort(&upload.key, &id).await {
                tracing::debug!(key = upload.key, ?left, "an upload is left to be swept up");
            }
            return match refusal.meaning {
                Meaning::NoUpload => self.after_lost_upload(upload).await,
                _ => Err(refusal),
            };
        }
        Ok(())
    }

    async fn begin(&self, upload: &Upload) -> Result<String, Refusal> {
        let mut begin = self.client.create_multipart_upload().bucket(&self.bucket);
        begin = begin.key(&upload.key).metadata(CRC_METADATA, format!("{:08x}", upload.crc));
        if self.checksum == ChecksumMode::WhenSupported {
            begin = begin
                .checksum_algorithm(ChecksumAlgorithm::Crc32)
                .checksum_type(ChecksumType::FullObject);
        }
        let begun = self.ask(Manner::new(upload.class), Box::pin(begin.send())).await?;
        let missing = || Refusal::new(Meaning::Failed, "an upload was begun without an id");
        begun.upload_id.ok_or_else(missing)
    }

    async fn send_parts(&self, upload: &Upload, id: &str) -> Result<Vec<CompletedPart>, Refusal> {
        let part_bytes = PART_BYTES.max(upload.len.div_ceil(MAX_PARTS));
        let count = upload.len.div_ceil(part_bytes).max(1);
        let numbers = 1..=i32::try_from(count).unwrap_or(i32::MAX);
        let send = |number: i32| async move {
            let from = u64::from(number.unsigned_abs() - 1) * part_bytes;
            let pieces = slice(&upload.body, from, part_bytes.min(upload.len - from));
            self.send_part_patiently(upload, id, number, pieces).await
        };
        stream::iter(numbers.map(send)).buffered(PARTS_UNDER_WAY).try_collect().await
    }

    async fn send_part_patiently(
        &self,
        upload: &Upload,
        id: &str,
        number: i32,
        pieces: Vec<Bytes>,
    ) -> Result<CompletedPart, Refusal> {
        let mut pause = FIRST_PAUSE;
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            match self.send_part(upload, id, number, pieces.clone()).await {
                Err(refusal) if refusal.may_pass() && left > 0 => {
                    tracing::debug!(key = upload.key, number, ?refusal, "a part is sent again");
                }
                done => return done,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    async fn send_part(
        &self,
        upload: &Upload,
        id: &str,
        number: i32,
        pieces: Vec<Bytes>,
    ) -> Result<CompletedPart, Refusal> {
        let manner = Manner::upload(upload.class);
        let len: usize = pieces.iter().map(Bytes::len).sum();
        let crc = self.checksum(crc_of(&pieces));
        let part = self.client.upload_part().bucket(&self.bucket).key(&upload.key);
        let part = part
            .upload_id(id)
            .part_number(number)
            .content_length(i64::try_from(len).unwrap_or(i64::MAX))
            .set_checksum_crc32(crc.clone())
            .body(request_body(pieces, manner.progress.clone()));
        let sent = self.ask(manner, Box::pin(part.send())).await?;
        let tag = sent.e_tag.ok_or_else(|| {
            Refusal::new(Meaning::Failed, format!("part {number} was taken without an ETag"))
        })?;
        Ok(CompletedPart::builder().part_number(number).e_tag(tag).set_checksum_crc32(crc).build())
    }

    async fn complete(
        &self,
        upload: &Upload,
        id: &str,
        parts: Vec<CompletedPart>,
    ) -> Result<(), Refusal> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = self.client.complete_multipart_upload().bucket(&self.bucket);
        let mut complete = complete.key(&upload.key).upload_id(id).multipart_upload(parts);
        complete = complete.if_none_match("*");
        if let Some(crc) = self.checksum(upload.crc) {
            complete = complete.checksum_crc32(crc).checksum_type(ChecksumType::FullObject);
        }
        let manner = Manner::upload(upload.class);
        let completed = self.ask(manner, Box::pin(complete.send())).await?;
        // A failure may come with status 200, once the server has begun to answer.
        match completed.e_tag.is_some() {
            true => Ok(()),
            false => Err(Refusal::new(
                Meaning::Failed,
                "an upload was completed with status 200 but without an ETag",
            )),
        }
    }

    async fn abort(&self, key: &str, id: &str) -> Result<(), Refusal> {
        let abort = self.client.abort_multipart_upload().bucket(&self.bucket).key(key);
        match self.ask(Manner::new(Class::Bulk), Box::pin(abort.upload_id(id).send())).await {
            Err(refusal) if refusal.meaning == Meaning::NoUpload => Ok(()),
            answer => answer.map(drop),
        }
    }

    pub(super) async fn abort_upload(&self, key: &str, id: &str) -> Result<()> {
        self.abort(key, id).await.map_err(self.fault(key))
    }

    /// The upload is gone: completed by an attempt whose answer was lost, or aborted by somebody.
    async fn after_lost_upload(&self, upload: &Upload) -> Result<(), Refusal> {
        match self.head(&upload.key).await {
            Ok(Some(_)) => Err(Refusal::new(Meaning::Exists, "the upload was completed before")),
            Ok(None) => Err(Refusal::new(Meaning::Failed, "the upload was aborted by somebody")),
            Err(fault) if fault.kind == Kind::Corrupt => {
                Err(Refusal::new(Meaning::Exists, "an object of somebody else's"))
            }
            Err(fault) => Err(Refusal::new(Meaning::Failed, fault.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_written_as_s3_writes_them() {
        // CRC-32 of "123456789" is cbf43926, of nothing 0.
        assert_eq!(base64(0xcbf4_3926), "y/Q5Jg==");
        assert_eq!(base64(0), "AAAAAA==");
        assert_eq!(base64(u32::MAX), "/////w==");
    }
}
