//! Whether a store does what is asked of it, found out by asking.
//!
//! There are servers that take `If-None-Match: *` and overwrite all the same, and servers that let two racing writers both
//! win. On either a volume would be lost sooner or later, so a vPool is opened for the first time only on a store that
//! passes, or with a registry that guards the names ([`fenced`](super::fenced)). Everything happens in a namespace of its
//! own, which is gone afterwards.
//!
//! A lie is told in the words of the protocol, so that it can be shown to those who make the server.

mod race;
#[cfg(test)]
mod tests;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Kind, Result};

use crate::world::{ObjectInfo, ObjectStore, Purpose, Put};
use race::Race;

/// Attempts at the whole, when the store is out of reach on the way.
const ATTEMPTS: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
/// Namespaces of probes begin like this, then comes the time (seconds since 1970, 8 hexadecimal digits).
const NAMESPACE: &str = "probe-";
/// What is older was left behind by a probe that was killed.
const LEFT_BEHIND: u64 = 3600;

/// What was looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub what: What,
    /// What the store does instead; `None`: what it should.
    pub lie: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// What was written is read at once, with length and checksum.
    ReadAfterWrite,
    /// A range is exactly these bytes, and past the end is refused.
    Ranges,
    /// A put of a name that exists is refused and leaves the bytes.
    CreateOnly,
    /// Of writers of a new name one wins, and the bytes are the winner's.
    OneWinner,
    /// Lists are complete, in order, and up to date.
    Lists,
    /// What was deleted is gone, and its name can be used again.
    Deletes,
    /// An upload in parts gives the bytes, and is create-only as well.
    Parts,
}

impl What {
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::ReadAfterWrite => "read after write",
            Self::Ranges => "range reads",
            Self::CreateOnly => "put if absent: existing name",
            Self::OneWinner => "put if absent: racing writers",
            Self::Lists => "lists",
            Self::Deletes => "deletes",
            Self::Parts => "uploads in parts, if absent",
        }
    }

    /// What a lie about it means for a vPool.
    fn weight(self) -> Weight {
        match self {
            Self::CreateOnly | Self::OneWinner => Weight::NeedsFence,
            Self::Parts => Weight::WithoutParts,
            Self::ReadAfterWrite | Self::Ranges | Self::Lists | Self::Deletes => Weight::Unfit,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Weight {
    Unfit,
    NeedsFence,
    WithoutParts,
}

/// All checks of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// The first lie that nothing makes up for.
    #[must_use]
    pub fn unfit(&self) -> Option<&str> {
        self.lie(Weight::Unfit)
    }
    /// The first lie that a registry makes up for.
    #[must_use]
    pub fn needs_fence(&self) -> Option<&str> {
        self.lie(Weight::NeedsFence)
    }
    /// Whether large objects may be uploaded in parts.
    #[must_use]
    pub fn parts(&self) -> bool {
        self.checks.iter().any(|check| check.what == What::Parts && check.lie.is_none())
    }

    fn lie(&self, weight: Weight) -> Option<&str> {
        let mut lies = self.checks.iter().filter(|check| check.what.weight() == weight);
        lies.find_map(|check| check.lie.as_deref())
    }

    fn note(&mut self, what: What, lie: Option<String>) {
        self.checks.push(Check { what, lie });
    }
}

/// What is probed.
pub struct Subject<'a, S> {
    pub store: &'a S,
    /// The same store with every object uploaded in parts, where it has such.
    pub in_parts: Option<&'a S>,
    /// What the names begin with that are put.
    pub prefix: &'a str,
}

/// Finds out. A fault is no verdict: the store was out of reach, or its credentials are wrong, ... .
pub async fn probe<S: ObjectStore>(subject: Subject<'_, S>) -> Result<Report> {
    let mut left = ATTEMPTS;
    loop {
        left -= 1;
        match probe_once(&subject).await {
            Err(fault) if fault.kind == Kind::Unavailable && left > 0 => {
                tracing::debug!(%fault, "the probe begins again");
            }
            done => return done,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn probe_once<S: ObjectStore>(subject: &Subject<'_, S>) -> Result<Report> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let namespace = format!("{NAMESPACE}{now:08x}-{}", uuid::Uuid::new_v4().simple());
    subject.store.create_namespace(&namespace).await?;
    let place = Place { namespace: &namespace, prefix: subject.prefix };
    let outcome = Box::pin(all(subject, &place)).await;
    let cleaned = clean(subject.store, &namespace, now).await;
    let report = outcome?;
    // A store that lies may not let itself be cleaned.
    if report.checks.iter().all(|check| check.lie.is_none()) {
        cleaned?;
    }
    Ok(report)
}

async fn all<S: ObjectStore>(subject: &Subject<'_, S>, place: &Place<'_>) -> Result<Report> {
    let mut report = Report::default();
    let store = subject.store;
    report.note(What::ReadAfterWrite, read_after_write(store, place).await?);
    if report.unfit().is_some() {
        // Nothing else could be told from its answers.
        return Ok(report);
    }
    report.note(What::Ranges, ranges(store, place).await?);
    report.note(What::CreateOnly, create_only(store, place, "only").await?);
    report.note(What::Lists, lists(store, place).await?);
    report.note(What::Deletes, deletes(store, place).await?);
    report.note(What::OneWinner, Box::pin(Race::of_single_puts().run(store, place)).await?);
    if let Some(in_parts) = subject.in_parts {
        report.note(What::Parts, parts(in_parts, place).await?);
    }
    Ok(report)
}

/// Where the probe's objects are.
struct Place<'a> {
    namespace: &'a str,
    prefix: &'a str,
}

impl Place<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

async fn put<S: ObjectStore>(
    store: &S,
    place: &Place<'_>,
    name: &str,
    body: &Bytes,
) -> Result<Put> {
    let name = place.name(name);
    store.put_if_absent(place.namespace, &name, vec![body.clone()], Purpose::Metadata).await
}

/// The whole object, by its own word about its length.
async fn read<S: ObjectStore>(store: &S, place: &Place<'_>, name: &str) -> Result<Option<Bytes>> {
    let name = place.name(name);
    let Some(info) = store.head(place.namespace, &name).await? else { return Ok(None) };
    store.get_range(place.namespace, &name, 0, info.len).await
}

/// Bytes that no two offsets have alike for long.
fn noise(len: usize, seed: u32) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(seed) << 32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

async fn read_after_write<S: ObjectStore>(store: &S, place: &Place<'_>) -> Result<Option<String>> {
    // The last is so large that its checksum must come from its metadata.
    for (name, len) in
        [("read/a", 5000), ("read/empty", 0), ("read/b", 100_001), ("read/c", 5 << 20)]
    {
        let body = noise(len, 1);
        if put(store, place, name, &body).await? == Put::Exists {
            return Ok(Some("the first put of a new name is answered with 412".into()));
        }
        let wanted = ObjectInfo { len: len as u64, crc: crc32fast::hash(&body) };
        match store.head(place.namespace, &place.name(name)).await {
            Ok(Some(info)) if info == wanted => {}
            Ok(Some(info)) => {
                return Ok(Some(format!(
                    "HEAD after a put of {len} bytes tells of {} bytes with checksum {:08x} instead of {:08x}",
                    info.len, info.crc, wanted.crc
                )));
            }
            Ok(None) => return Ok(Some("HEAD does not find what was just put".into())),
            Err(fault) if fault.kind == Kind::Corrupt => return Ok(Some(fault.message)),
            Err(fault) => return Err(fault),
        }
        match store.get_range(place.namespace, &place.name(name), 0, len as u64).await? {
            Some(got) if got == body => {}
            Some(_) => return Ok(Some("GET gives other bytes than were just put".into())),
            None => return Ok(Some("GET does not find what was just put".into())),
        }
    }
    Ok(None)
}

async fn ranges<S: ObjectStore>(store: &S, place: &Place<'_>) -> Result<Option<String>> {
    let (len, name) = (100_001_usize, place.name("read/b"));
    let body = noise(len, 1);
    for (from, to) in [(0, 1), (1, 4097), (65_535, 65_537), (99_999, len), (len - 1, len), (0, len)]
    {
        let asked = format!("Range: bytes={from}-{}", to - 1);
        match store.get_range(place.namespace, &name, from as u64, (to - from) as u64).await {
            Ok(Some(got)) if got == body.slice(from..to) => {}
            Ok(Some(_)) => return Ok(Some(format!("{asked} is answered with other bytes"))),
            Ok(None) => return Ok(Some(format!("{asked} is answered with 404"))),
            // The client sees a wrong answer as one that may pass; here it has been asked often enough.
            Err(fault) if repeated(store, place, &name, (from, to)).await => {
                return Ok(Some(format!("{asked}: {}", fault.message)));
            }
            Err(fault) => return Err(fault),
        }
    }
    for (from, count) in [(len as u64, 1), (len as u64 - 1, 2)] {
        match store.get_range(place.namespace, &name, from, count).await {
            Err(fault) if fault.kind == Kind::Invalid => {}
            Err(fault) => return Err(fault),
            Ok(_) => {
                return Ok(Some(format!(
                    "Range: bytes={from}-{}, past the end, is answered with bytes",
                    from + count - 1
                )));
            }
        }
    }
    Ok(None)
}

/// Whether the range fails again and again while the object as such can be seen.
async fn repeated<S: ObjectStore>(
    store: &S,
    place: &Place<'_>,
    name: &str,
    (from, to): (usize, usize),
) -> bool {
    for _ in 0..ATTEMPTS {
        let get = store.get_range(place.namespace, name, from as u64, (to - from) as u64);
        if get.await.is_ok() || store.head(place.namespace, name).await.is_err() {
            return false;
        }
    }
    true
}

/// A second put of the name, with other bytes of the same and of another length.
async fn create_only<S: ObjectStore>(
    store: &S,
    place: &Place<'_>,
    name: &str,
) -> Result<Option<String>> {
    let first = noise(3000, 2);
    if put(store, place, name, &first).await? == Put::Exists {
        return Ok(Some("the first put of a new name is answered with 412".into()));
    }
    for second in [noise(3000, 3), noise(10, 3), first.clone()] {
        let said = put(store, place, name, &second).await?;
        let kept = read(store, place, name).await?.as_ref() == Some(&first);
        let lie = match (said, kept, second == first) {
            (Put::Exists, true, _) => continue,
            (Put::Exists, false, _) => {
                "the server answers 412 to If-None-Match: * on an existing key, and overwrites it all the same"
            }
            (Put::Created, false, _) => {
                "the server answers 200 to If-None-Match: * on an existing key, and overwrites it"
            }
            (Put::Created, true, false) => {
                "the server answers 200 to If-None-Match: * on an existing key, and throws the new bytes away"
            }
            (Put::Created, true, true) => {
                "the server answers 200 to If-None-Match: * on an existing key with the same bytes"
            }
        };
        return Ok(Some(lie.into()));
    }
    Ok(None)
}

async fn lists<S: ObjectStore>(store: &S, place: &Place<'_>) -> Result<Option<String>> {
    let names: Vec<String> = (0..12).map(|n| place.name(&format!("list/{n:02}"))).collect();
    for (n, name) in names.iter().enumerate() {
        put(store, place, &format!("list/{n:02}"), &noise(10, 4)).await?;
        let listed = store.list(place.namespace, &place.name("list/"), None, 100).await?;
        if listed != names[..=n] {
            return Ok(Some(format!(
                "a list after the put of {name} gives {} of {} names",
                listed.len(),
                n + 1
            )));
        }
    }
    let after = store.list(place.namespace, &place.name("list/"), Some(&names[4]), 3).await?;
    if after != names[5..8] {
        return Ok(Some(format!("start-after={} max-keys=3 is answered with {after:?}", names[4])));
    }
    store.delete(place.namespace, &names[3]).await?;
    let listed = store.list(place.namespace, &place.name("list/"), None, 100).await?;
    if listed.contains(&names[3]) {
        return Ok(Some("a list names what was deleted before".into()));
    }
    Ok((listed.len() != 11).then(|| "a list after a delete is not complete".into()))
}

async fn deletes<S: ObjectStore>(store: &S, place: &Place<'_>) -> Result<Option<String>> {
    let name = place.name("delete");
    put(store, place, "delete", &noise(100, 5)).await?;
    store.delete(place.namespace, &name).await?;
    if store.head(place.namespace, &name).await?.is_some() {
        return Ok(Some("HEAD finds what was deleted before".into()));
    }
    store.delete(place.namespace, &name).await?;
    let again = noise(200, 6);
    if put(store, place, "delete", &again).await? == Put::Exists {
        return Ok(Some("a put of a name that was deleted is answered with 412".into()));
    }
    let right = read(store, place, "delete").await?.as_ref() == Some(&again);
    Ok((!right).then(|| "a name that was deleted and put again has other bytes".into()))
}

/// Large enough for two parts.
const IN_PARTS_BYTES: usize = (17 << 20) + 1;

/// Faults are lies here: nobody is obliged to know uploads in parts.
async fn parts<S: ObjectStore>(store: &S, place: &Place<'_>) -> Result<Option<String>> {
    let body = noise(IN_PARTS_BYTES, 7);
    let looked = async {
        if put(store, place, "parts", &body).await? == Put::Exists {
            return Ok(Some("the first put of a new name is answered with 412".to_owned()));
        }
        if read(store, place, "parts").await?.as_ref() != Some(&body) {
            return Ok(Some("an upload in two parts gives other bytes".to_owned()));
        }
        if let Some(lie) = create_only(store, place, "parts-only").await? {
            return Ok(Some(lie));
        }
        Race::of_uploads_in_parts().run(store, place).await
    };
    match looked.await {
        Ok(verdict) => Ok(verdict),
        Err(fault) => Ok(Some(fault.to_string())),
    }
}

/// Deletes what this probe made, and what others left behind.
async fn clean<S: ObjectStore>(store: &S, namespace: &str, now: u64) -> Result<()> {
    store.delete_namespace(namespace).await?;
    let left = store.list_namespaces(NAMESPACE).await?;
    if left.iter().any(|left| left == namespace) {
        return Err(Fault::unavailable(format!(
            "the namespace {namespace} is listed after it was deleted"
        )));
    }
    for old in left.iter().filter(|left| is_left_behind(left, now)) {
        store.delete_namespace(old).await?;
    }
    Ok(())
}

fn is_left_behind(namespace: &str, now: u64) -> bool {
    let digits = namespace.strip_prefix(NAMESPACE).and_then(|rest| rest.get(..8));
    let made = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    made.is_some_and(|made| now.saturating_sub(made) > LEFT_BEHIND)
}
