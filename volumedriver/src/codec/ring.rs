//! The key ring: master keys, read from their sources and found by their id.
//!
//! A key is never shown, logged or sent anywhere; what is shown is its id. Texts that keys were read from are wiped.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::framed::{FramedHead, KeyId};
use zeroize::Zeroizing;

use super::seal::{KEY_BYTES, MasterKey, ObjectKey};
use crate::config::keys::KeySource;

/// Longest text that is read from a source, bytes.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// A command must have ended by then.
const COMMAND_PATIENCE: Duration = Duration::from_secs(30);
const COMMAND_PERIOD: Duration = Duration::from_millis(10);

type Secret = Zeroizing<Vec<u8>>;

/// All keys this node has.
#[derive(Default)]
pub struct KeyRing {
    keys: BTreeMap<KeyId, MasterKey>,
    /// The first key of each source.
    first: BTreeMap<KeySource, KeyId>,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

impl KeyRing {
    /// Reads these sources, each once. This takes as long as the slowest command.
    pub fn load<'a>(sources: impl IntoIterator<Item = &'a KeySource>) -> Result<Self> {
        let mut ring = Self::default();
        for source in sources {
            if !ring.first.contains_key(source) {
                let text = read(source).map_err(|fault| fault.about(format!("key {source}")))?;
                ring.add(source, &text)?;
            }
        }
        Ok(ring)
    }

    /// Adds the keys that a source's text has.
    pub fn add(&mut self, source: &KeySource, text: &[u8]) -> Result<()> {
        let about = |what: String| Fault::invalid(format!("key {source}: {what}"));
        let mut first = None;
        for (line, number) in text.split(|byte| *byte == b'\n').zip(1..) {
            let line = line.trim_ascii();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let key = read_key(line).ok_or_else(|| {
                let digits = 2 * KEY_BYTES;
                let has = line.len();
                about(format!("line {number} ({has} bytes) is not {digits} hexadecimal digits"))
            })?;
            let key = MasterKey::new(&key);
            first.get_or_insert(key.id());
            self.keys.insert(key.id(), key);
        }
        let first = first.ok_or_else(|| {
            about(format!("holds no key; one is made with `openssl rand -hex {KEY_BYTES}`"))
        })?;
        self.first.insert(source.clone(), first);
        Ok(())
    }

    /// The key that new SCOs are encrypted with, under these sources.
    #[must_use]
    pub fn current(&self, sources: &[KeySource]) -> Option<KeyId> {
        sources.first().and_then(|source| self.first.get(source)).copied()
    }

    #[must_use]
    pub fn has(&self, key: KeyId) -> bool {
        self.keys.contains_key(&key)
    }

    /// The key of an object, if it is encrypted. `Invalid`: its master key is not here.
    pub(super) fn key_of(&self, head: &FramedHead) -> Result<Option<ObjectKey>> {
        let Some(seal) = &head.seal else { return Ok(None) };
        let master = self.keys.get(&seal.key);
        let master = master.ok_or_else(|| self.lacks(seal.key, &format!("SCO {}", head.id)))?;
        Ok(Some(ObjectKey::new(master, head, seal)))
    }

    /// The message for a key that is not here.
    #[must_use]
    pub fn lacks(&self, key: KeyId, what: &str) -> Fault {
        let ours: Vec<String> = self.keys.keys().map(KeyId::to_string).collect();
        let ours = if ours.is_empty() { "none".to_owned() } else { ours.join(", ") };
        Fault::invalid(format!(
            "{what} is encrypted with key {key}, which is not among the keys of this node ({ours}); \
             add it to encryption_key"
        ))
    }
}

fn read_key(line: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    if line.len() != 2 * KEY_BYTES {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, digits) in key.iter_mut().zip(line.chunks(2)) {
        let &[high, low] = digits else { return None };
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(key)
}

fn read(source: &KeySource) -> Result<Secret> {
    match source {
        KeySource::File(path) => read_file(path),
        KeySource::Env(name) => match std::env::var(name) {
            Ok(text) => Ok(Zeroizing::new(text.into_bytes())),
            Err(_) => Err(Fault::invalid("there is no such variable in the daemon's environment")),
        },
        KeySource::Command(command) => run(command, COMMAND_PATIENCE),
    }
}

fn read_file(path: &Path) -> Result<Secret> {
    let about = |e: std::io::Error| Fault::invalid("cannot be read").because(e);
    let file = std::fs::File::open(path).map_err(about)?;
    let mode = file.metadata().map_err(about)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "this key file can be read by other users: chmod 600");
    }
    read_text(file)
}

fn read_text(from: impl Read) -> Result<Secret> {
    // Never grown: a copy left behind could not be wiped.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_TEXT_BYTES + 1));
    let read = from.take(MAX_TEXT_BYTES as u64 + 1).read_to_end(&mut text);
    read.map_err(|e| Fault::invalid("cannot be read").because(e))?;
    if text.len() > MAX_TEXT_BYTES {
        return Err(Fault::invalid(format!("longer than {MAX_TEXT_BYTES} bytes")));
    }
    Ok(text)
}

/// What a command writes to its standard output. It is ended, with what it started, when it takes too long.
pub(super) fn run(command: &str, patience: Duration) -> Result<Secret> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|e| Fault::invalid("cannot be run").because(e))?;
    let (heard, hearing) = std::sync::mpsc::channel();
    if let Some(out) = child.stdout.take() {
        std::thread::spawn(move || {
            // Nobody listens any more when it took too long.
            let _unheard = heard.send(read_text(out));
        });
    }
    let deadline = Instant::now() + patience;
    let too_long = || Fault::invalid(format!("did not end within {} s", patience.as_secs()));
    let outcome = match hearing.recv_timeout(patience) {
        Ok(Ok(text)) => match end_of(&mut child, deadline) {
            Some(status) if status.success() => Ok(text),
            Some(status) => Err(Fault::invalid(format!("failed: {status}"))),
            None => Err(too_long()),
        },
        Ok(Err(fault)) => Err(fault),
        Err(_) => Err(too_long()),
    };
    outcome.inspect_err(|_| kill(&mut child))
}

fn end_of(child: &mut Child, deadline: Instant) -> Option<std::process::ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(COMMAND_PERIOD),
            Ok(None) | Err(_) => return None,
        }
    }
}

fn kill(child: &mut Child) {
    let killed = kill_process_group(Pid::from_child(child), Signal::KILL);
    if killed.is_ok() {
        // It is dead: this does not wait.
        let _status = child.wait();
    }
}
