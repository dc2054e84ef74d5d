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
