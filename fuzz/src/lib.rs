//! What the fuzzer does with its bytes: one plain function per decoder, so that an ordinary test replays the corpus.
//!
//! A random input never carries the right checksum. So every target decodes its input twice: as it is, and once more with
//! magic, length and checksum put right, which is what a hostile writer would send. A decoder may refuse; it may not panic
//! nor allocate beyond its input, and what it accepts must encode to the very same bytes.

pub mod backend;
pub mod format;
pub mod map;
pub mod nbd;

/// Judges one input; panics when a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by the name of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("alba_manifest", backend::alba_manifest),
    ("alba_name", backend::alba_name),
    ("alba_preset", backend::alba_preset),
    ("alba_trailer", backend::alba_trailer),
    ("cache_header", format::cache_header),
    ("cache_page", format::cache_page),
    ("journal", format::journal),
    ("key_marker", format::key_marker),
    ("manifest", format::manifest),
    ("nbd_handshake", nbd::handshake),
    ("nbd_transmission", nbd::transmission),
    ("page", map::page),
    ("run", map::run),
    ("sco", format::sco),
    ("sco_framed", format::sco_framed),
    ("segment", format::segment),
    ("tlog", format::tlog),
];

#[must_use]
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).map(|(_, target)| *target)
}
