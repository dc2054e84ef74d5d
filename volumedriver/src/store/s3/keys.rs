//! Where things lie in the bucket.
//!
//! | key | what |
//! |---|---|
//! | `PREFIX/n/NAMESPACE` | empty: the namespace exists |
//! | `PREFIX/d/NAMESPACE` | empty: the namespace is being deleted |
//! | `PREFIX/o/NAMESPACE/NAME` | an object; its CRC-32 is in its metadata as `crc32`, eight hexadecimal digits |
//!
//! A namespace is its marker and not its objects: a put that arrives late in a namespace that was deleted brings nothing back
//! to life, and a deletion that was cut short is seen and can be finished.

use volumedriver_core::fault::{Fault, Result};

/// Longest namespace, bytes.
const MAX_NAMESPACE_BYTES: usize = 255;
/// Longest key S3 takes, bytes.
const MAX_KEY_BYTES: usize = 1024;

/// Makes keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// Empty, or ends with a slash.
    root: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { root: if prefix.is_empty() { String::new() } else { format!("{prefix}/") } }
    }

    pub(super) fn markers(&self) -> String {
        format!("{}n/", self.root)
    }
    pub(super) fn deletions(&self) -> String {
        format!("{}d/", self.root)
    }
    /// Of all namespaces.
    pub(super) fn objects(&self) -> String {
        format!("{}o/", self.root)
    }

    pub(super) fn marker(&self, namespace: &str) -> Result<String> {
        check_namespace(namespace)?;
        Ok(format!("{}{namespace}", self.markers()))
    }
    pub(super) fn deletion(&self, namespace: &str) -> Result<String> {
        check_namespace(namespace)?;
        Ok(format!("{}{namespace}", self.deletions()))
    }
    /// What all objects of the namespace begin with.
    pub(super) fn objects_of(&self, namespace: &str) -> Result<String> {
        check_namespace(namespace)?;
        Ok(format!("{}o/{namespace}/", self.root))
    }
    pub(super) fn object(&self, namespace: &str, name: &str) -> Result<String> {
        let odd = |part: &str| matches!(part, "" | "." | "..");
        if name.chars().any(char::is_control) || name.split('/').any(odd) {
            return Err(Fault::invalid(format!(
                "{name:?} cannot be an object's name: no control characters, and no \"\", \".\" or \"..\" between slashes"
            )));
        }
        let key = format!("{}{name}", self.objects_of(namespace)?);
        match key.len() {
            0..=MAX_KEY_BYTES => Ok(key),
            len => Err(Fault::invalid(format!(
                "{name:?} cannot be an object's name: its key would have {len} bytes, {MAX_KEY_BYTES} are allowed"
            ))),
        }
    }
}

fn check_namespace(namespace: &str) -> Result<()> {
    let legal = |c: char| !c.is_control() && c != '/';
    let length = (1..=MAX_NAMESPACE_BYTES).contains(&namespace.len());
    if length && namespace.chars().all(legal) && !matches!(namespace, "." | "..") {
        return Ok(());
    }
    Err(Fault::invalid(format!(
        "{namespace:?} cannot be a namespace: 1 to {MAX_NAMESPACE_BYTES} bytes without '/' and control characters"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spelled_as_the_table_says() {
        let keys = Keys::new("pool/a");
        assert_eq!(keys.marker("vd-1").unwrap(), "pool/a/n/vd-1");
        assert_eq!(keys.deletion("vd-1").unwrap(), "pool/a/d/vd-1");
        assert_eq!(keys.object("vd-1", "sco/1").unwrap(), "pool/a/o/vd-1/sco/1");
        assert_eq!(Keys::new("").object("vd-1", "sco/1").unwrap(), "o/vd-1/sco/1");
    }

    #[test]
    fn names_that_would_mean_another_key_are_refused() {
        let keys = Keys::new("p");
        for name in ["", "/a", "a/", "a//b", ".", "a/../b", "a\nb", &"n".repeat(1020)] {
            assert!(keys.object("ns", name).is_err(), "{name:?}");
        }
        for namespace in ["", "a/b", ".", "..", "a\0", &"n".repeat(256)] {
            assert!(keys.object(namespace, "x").is_err(), "{namespace:?}");
        }
    }
}
