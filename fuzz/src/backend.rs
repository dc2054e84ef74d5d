//! Targets for what the object backend stores and is told: manifests of objects, trailers of fragments, presets, names.

use backend_formats::erasure::Layout;
use backend_formats::manifest::Manifest;
use backend_formats::name::{self, ObjectId};
use backend_formats::preset::{Policy, Raw};
use backend_formats::trailer::{FIXED_BYTES, Trailer, blocks_of};
use volumedriver_core::units::ClusterCrc;

pub fn alba_manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::decode(bytes) else { return };
    // Version 1 comes back as version 2.
    let again = Manifest::decode(&manifest.encode()).expect("what was decoded is encoded");
    assert_eq!(again, manifest);
    if bytes.first() == Some(&2) {
        assert_eq!(manifest.encode(), bytes, "{manifest:?}");
    }
    check_layout(manifest.layout());
    for index in 0..manifest.policy.total() {
        let fragment = manifest.fragment(index);
        assert!(fragment.is_none_or(|fragment| usize::from(fragment.index) == index));
    }
}

/// Where bytes lie can be computed whatever was stored, and covers what was asked for.
fn check_layout(layout: Layout) {
    let fragment = layout.fragment_len();
    assert!(fragment <= layout.len.saturating_add(1 << 40), "{layout:?}");
    let (from, to) = (layout.len / 3, layout.len.min(layout.len / 3 + (1 << 20)));
    let mut at = from;
    for piece in layout.pieces(from, to - from).take(1000) {
        assert!(piece.len > 0 && piece.index < layout.policy.data(), "{layout:?} {piece:?}");
        assert!(piece.at + piece.len <= fragment, "{layout:?} {piece:?}");
        let (start, end) = layout.grains(piece.at, piece.at + piece.len);
        assert!(start <= piece.at && end >= piece.at + piece.len, "{layout:?} {piece:?}");
        at += piece.len;
    }
    assert!(at <= to);
}

/// The input as the end of a fragment's file.
pub fn alba_trailer(bytes: &[u8]) {
    judge_trailer(bytes);
    let mut sealed = bytes.to_vec();
    let Some(fixed) = sealed.last_chunk_mut::<FIXED_BYTES>() else { return };
    fixed[..8].copy_from_slice(b"ALBAOBJT");
    let version = 1 + u32::from(fixed[8]) % 2;
    fixed[8..12].copy_from_slice(&version.to_le_bytes());
    fixed[12..16].copy_from_slice(&65_536_u32.to_le_bytes());
    if let Some((covered, crc)) = sealed.split_last_chunk_mut::<4>() {
        *crc = ClusterCrc::of(covered).0.to_le_bytes();
    }
    judge_trailer(&sealed);
}

fn judge_trailer(bytes: &[u8]) {
    let fixed = &bytes[bytes.len().saturating_sub(FIXED_BYTES)..];
    let file_len = 1 << 40;
    if let Ok(len) = Trailer::len_from_end(fixed, file_len) {
        assert!(len <= file_len && len >= FIXED_BYTES as u64);
    }
    let Ok(trailer) = Trailer::decode(bytes) else { return };
    assert_eq!(trailer.block_crcs.len() as u64, blocks_of(trailer.len), "{trailer:?}");
    check_layout(trailer.part.layout);
    let encoded = trailer.encode();
    let own = Trailer::len_from_end(&encoded[encoded.len() - FIXED_BYTES..], u64::MAX);
    let own = usize::try_from(own.expect("an encoded trailer")).expect("as long as it is");
    let again = Trailer::decode(&encoded[encoded.len() - own..]).expect("an encoded trailer");
    assert_eq!(again, trailer);
}

/// The input as JSON of a preset, as a policy, and as what a policy means for an object.
pub fn alba_preset(bytes: &[u8]) {
    if let Ok(raw) = serde_json::from_slice::<Raw>(bytes)
        && let Ok(preset) = raw.check()
    {
        assert!(!preset.policies.is_empty() && preset.unit % (64 << 10) == 0);
        let text = serde_json::to_vec(&raw).expect("a preset is JSON");
        assert_eq!(serde_json::from_slice::<Raw>(&text).expect("and is read again"), raw);
    }
    if let Ok(policy) = std::str::from_utf8(bytes).unwrap_or_default().parse::<Policy>() {
        assert_eq!(policy.to_string().parse::<Policy>().expect("as it is shown"), policy);
        for len in [0, 1, 4096, 1 << 20, 1 << 40] {
            let meant = policy.for_len(len);
            assert_eq!(meant.parity(), policy.parity());
            assert!(meant.least() <= meant.total() && meant.data() <= meant.least());
            check_layout(Layout { len, policy: meant, unit: 1 << 20 });
        }
    }
}

/// The input as the name of a namespace, of an object, and as an identity.
pub fn alba_name(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (namespace, object) = (name::check_namespace(&text), name::check_object(&text));
    assert!(
        object.is_ok() || namespace.is_err(),
        "a namespace may not be called what an object may"
    );
    if object.is_ok() {
        assert!(!text.is_empty() && text.len() <= 1024 && !text.contains(char::is_control));
    }
    if let Some(id) = ObjectId::parse(&text) {
        assert_eq!(id.to_string(), text);
    }
}
