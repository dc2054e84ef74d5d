//! Encryption: AES-256-GCM with a key of its own for each object (see the decisions in [`framed`]).
//!
//! [`framed`]: volumedriver_core::format::framed

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use volumedriver_core::format::framed::{FramedHead, KeyId, Packing, Seal, TAG_BYTES};

/// Bytes of a master key.
pub const KEY_BYTES: usize = 32;
const TAG: usize = TAG_BYTES as usize;

/// A key that objects' keys are derived from. Its bytes are wiped when it is dropped.
pub struct MasterKey {
    id: KeyId,
    prk: Prk,
}

struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl MasterKey {
    pub fn new(key: &[u8; KEY_BYTES]) -> Self {
        let prk = Salt::new(HKDF_SHA256, &[]).extract(key);
        let mut id = [0; 8];
        let okm = prk.expand(&[b"volumedriver key id"], Bytes(id.len()));
        okm.and_then(|okm| okm.fill(&mut id)).expect("HKDF gives up to 8160 bytes");
        Self { id: KeyId(id), prk }
    }

    pub fn id(&self) -> KeyId {
        self.id
    }
}

/// The key of one object.
pub struct ObjectKey(LessSafeKey);

impl ObjectKey {
    pub fn new(master: &MasterKey, head: &FramedHead, seal: &Seal) -> Self {
        let info = head.key_info(seal);
        let parts = [&info[..]];
        let okm = master.prk.expand(&parts, &AES_256_GCM).expect("HKDF gives up to 8160 bytes");
        Self(LessSafeKey::new(UnboundKey::from(okm)))
    }

    /// Encrypts `out` from `from` on, and appends the tag.
    pub fn seal(
        &self,
        (head, frame, packing): (&FramedHead, u32, Packing),
        from: usize,
        out: &mut Vec<u8>,
    ) {
        let bound = Aad::from(head.bound(frame, packing));
        let tag = self.0.seal_in_place_separate_tag(nonce(frame), bound, &mut out[from..]);
        out.extend_from_slice(tag.expect("a frame is far below the limits of GCM").as_ref());
    }

    /// Decrypts a frame into `plain`; `None` when it is not what was encrypted. Then `plain` holds nothing of use.
    #[must_use]
    pub fn open(
        &self,
        (head, frame, packing): (&FramedHead, u32, Packing),
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Option<()> {
        let (sealed, tag) = sealed.split_last_chunk::<TAG>()?;
        if sealed.len() != plain.len() {
            return None;
        }
        let bound = Aad::from(head.bound(frame, packing));
        self.0.open_separate_gather(nonce(frame), bound, sealed, tag, plain).ok()
    }
}

/// The number of the frame: a key is used for one building of one object (decision 6).
fn nonce(frame: u32) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&frame.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}
