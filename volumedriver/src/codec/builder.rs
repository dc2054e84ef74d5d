//! Builds the object of an SCO in frames, a few clusters at a time.

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::framed::{
    self, FRAME_BYTES, FramedHead, KeyId, Seal, StoredFrame, TABLE_FRAME, TAG_BYTES,
};
use volumedriver_core::format::sco::ScoFooter;

use super::pack::Packer;
use super::reader::Frames;
use super::ring::KeyRing;
use super::seal::ObjectKey;
use crate::config::{Compression, Encryption, VdiskSettings};

/// Pieces of the object are this long, and up to a frame more.
const PIECE_BYTES: usize = 1 << 20;

/// How SCOs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coding {
    pub compression: Compression,
    /// The master key.
    pub key: Option<KeyId>,
    /// Plain clusters in a frame, bytes.
    pub frame_bytes: u32,
}

impl Coding {
    /// As these settings want it, with the keys there are.
    pub fn of(settings: &VdiskSettings, ring: &KeyRing) -> Result<Self> {
        let compression = settings.compression;
        let key = match settings.encryption {
            Encryption::None => None,
            // Never unencrypted instead.
            Encryption::Aes256Gcm => {
                let key = ring.current(&settings.encryption_key);
                Some(key.ok_or_else(|| Fault::invalid("there is no key to encrypt with"))?)
            }
        };
        Ok(Self { compression, key, frame_bytes: FRAME_BYTES })
    }

    /// Whether SCOs are stored in frames at all.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.compression == Compression::None && self.key.is_none()
    }
}

/// An SCO that is being built.
pub struct ScoBuilder {
    footer: ScoFooter,
    head: FramedHead,
    packer: Packer,
    key: Option<ObjectKey>,
    /// Clusters of a frame that is not full.
    pending: Vec<u8>,
    frames: Vec<StoredFrame>,
    piece: Vec<u8>,
    body: Vec<Bytes>,
}

/// The object, and what it takes to read it.
pub struct Built {
    pub body: Vec<Bytes>,
    pub frames: Frames,
}

impl ScoBuilder {
    /// `salt`: random, and never given to another builder.
    pub fn new(footer: ScoFooter, coding: Coding, ring: &KeyRing, salt: [u8; 16]) -> Result<Self> {
        let packer = Packer::new(coding.compression)?;
        let seal = coding.key.map(|key| Seal { key, salt });
        let head = FramedHead::new(&footer, packer.packing(), coding.frame_bytes, seal);
        let key = ring.key_of(&head)?;
        let frames = Vec::with_capacity(head.frame_count() as usize);
        let (pending, piece, body) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { footer, head, packer, key, pending, frames, piece, body })
    }

    /// Takes the next clusters, in order.
    pub fn push(&mut self, clusters: &[Bytes]) {
        for clusters in clusters {
            let mut rest = &clusters[..];
            while !rest.is_empty() {
                let wanted = self.head.plain_bytes(self.frames.len() as u32) as usize;
                if self.pending.is_empty() && wanted > 0 && rest.len() >= wanted {
                    let (frame, after) = rest.split_at(wanted);
                    self.pack(frame);
                    rest = after;
                    continue;
                }
                let room = wanted.saturating_sub(self.pending.len()).clamp(1, rest.len());
                let (part, after) = rest.split_at(room);
                self.pending.extend_from_slice(part);
                rest = after;
                if self.pending.len() == wanted {
                    let frame = std::mem::take(&mut self.pending);
                    self.pack(&frame);
                    self.pending = frame;
                    self.pending.clear();
                }
            }
        }
    }

    fn pack(&mut self, plain: &[u8]) {
        if self.piece.capacity() == 0 {
            self.piece.reserve_exact(PIECE_BYTES + plain.len() + TAG_BYTES as usize);
        }
        let start = self.piece.len();
        let packing = self.packer.pack(plain, &mut self.piece);
        if let Some(key) = &self.key {
            let frame = self.frames.len() as u32;
            key.seal((&self.head, frame, packing), start, &mut self.piece);
        }
        let stored_bytes = (self.piece.len() - start) as u32;
        self.frames.push(StoredFrame { packing, stored_bytes });
        if self.piece.len() >= PIECE_BYTES {
            self.body.push(std::mem::take(&mut self.piece).into());
        }
    }

    /// The whole object; all its clusters were pushed.
    pub fn finish(mut self) -> Result<Built> {
        if self.frames.len() != self.head.frame_count() as usize || !self.pending.is_empty() {
            return Err(Fault::bug(format!("SCO {} was built of other clusters", self.head.id)));
        }
        let plain = framed::encode_table(&self.frames, &self.footer.changes);
        let frames = self.head.decode_table(&plain)?.frames;
        let mut table = plain;
        if let Some(key) = &self.key {
            key.seal((&self.head, TABLE_FRAME, self.head.packing), 0, &mut table);
        }
        self.piece.shrink_to_fit();
        self.body.push(self.piece.into());
        self.body.push(self.head.encode_end(&table));
        self.body.retain(|piece| !piece.is_empty());
        let frames = Frames { head: self.head, table: frames, key: self.key };
        Ok(Built { body: self.body, frames })
    }
}
