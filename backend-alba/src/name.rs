//! Names and identities: what a namespace and an object may be called, and the random identities that are never reused.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::as_conversions,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable
    )
)]

use std::fmt;

use crate::fault::{Fault, Result};

/// Longest name of a namespace, bytes.
pub const MAX_NAMESPACE_BYTES: usize = 255;
/// Longest name of an object, bytes.
pub const MAX_NAME_BYTES: usize = 1024;

/// Refuses what is no name of a namespace: 1 to 255 bytes without control characters.
pub fn check_namespace(name: &str) -> Result<()> {
    check("namespace", name, MAX_NAMESPACE_BYTES)
}

/// Refuses what is no name of an object: 1 to 1024 bytes without control characters.
pub fn check_object(name: &str) -> Result<()> {
    check("object", name, MAX_NAME_BYTES)
}

fn check(what: &str, name: &str, most: usize) -> Result<()> {
    if name.is_empty() || name.len() > most {
        let len = name.len();
        return Err(Fault::invalid(format!(
            "the name of the {what} has {len} bytes, not 1 to {most}"
        )));
    }
    if name.chars().any(char::is_control) {
        return Err(Fault::invalid(format!("the {what} name {name:?} has a control character")));
    }
    Ok(())
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// 128 bits nobody has seen before.
            #[must_use]
            pub fn random() -> Self {
                Self(*uuid::Uuid::new_v4().as_bytes())
            }
            /// `None` for what is not 32 lower-case hexadecimal digits.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                parse_hex(text).map(Self)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }
    };
}

identity!(
    /// One backend, as its data directory and its OSDs record it.
    AlbaId
);
identity!(
    /// One OSD.
    OsdId
);
identity!(
    /// The bytes of one object. Never reused, unlike the object's own name.
    ObjectId
);
identity!(
    /// One stored fragment: the name of its file. Never reused: a fragment written anew is another one.
    FragmentId
);
identity!(
    /// One life of a namespace: a namespace deleted and created again is another one.
    NamespaceId
);

impl FragmentId {
    /// One that nobody has seen before, of a GC epoch (see `nsm::epochs`):
    ///
    /// | byte | what |
    /// |---|---|
    /// | 0-5, 7, 9-11 | random; the first one spreads the files over folders |
    /// | 6 | 8 in the upper half, random in the lower: version 8 of a UUID, made to its maker's own rules (RFC 9562) |
    /// | 8 | 10 in the upper two bits, random in the others: a UUID's variant |
    /// | 12-15 | epoch, big-endian |
    ///
    /// Releases before epochs made random UUIDs, of version 4. These, and whatever else, are of epoch 0.
    #[must_use]
    pub fn of_epoch(random: [u8; 16], epoch: u32) -> Self {
        let mut id = random;
        id[6] = 0x80 | (id[6] & 0x0f);
        id[8] = 0x80 | (id[8] & 0x3f);
        id[12..].copy_from_slice(&epoch.to_be_bytes());
        Self(id)
    }

    #[must_use]
    pub fn epoch(self) -> u32 {
        let [.., a, b, c, d] = self.0;
        if self.0[6] >> 4 == 8 { u32::from_be_bytes([a, b, c, d]) } else { 0 }
    }
}

fn parse_hex(text: &str) -> Option<[u8; 16]> {
    let mut id = [0; 16];
    if text.len() != 32 || text.bytes().any(|b| !matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fragment_knows_its_epoch() {
        let id = FragmentId::of_epoch([0xff; 16], 0x0102_0304);
        assert_eq!(id.to_string(), "ffffffffffff8fffbfffffff01020304");
        assert_eq!(id.epoch(), 0x0102_0304);
        assert_eq!(
            FragmentId::of_epoch([0; 16], 7).to_string(),
            "00000000000080008000000000000007"
        );
        // Those of releases before, and those of no release.
        for _ in 0..64 {
            assert_eq!(FragmentId::random().epoch(), 0);
        }
        assert_eq!(FragmentId([0x11; 16]).epoch(), 0);
    }
}
