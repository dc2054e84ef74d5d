//! Records of the NSM besides objects: presets and OSDs.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Nsm;
use super::keys::{self, NamespaceRecord, as_id};
use super::kv::{Commit, Value};
use super::retry::Retry;
use crate::fault::{Fault, Result};
use crate::name::OsdId;
use crate::preset::{self, Preset};

/// What an OSD may be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OsdRole {
    /// Everything.
    #[default]
    Active,
    /// Reads and deletes; its fragments stay.
    Disabled,
    /// Reads and deletes; its fragments are moved to others.
    Decommissioning,
}

/// What is known of an OSD, given to this process or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsdRecord {
    /// Where it was last seen.
    pub path: String,
    /// The failure domain it belongs to.
    pub node: String,
    pub labels: Vec<String>,
    #[serde(default)]
    pub role: OsdRole,
}

impl Nsm {
    /// All presets by name.
    pub async fn presets(&self) -> Result<Vec<(String, preset::Raw)>> {
        let named = |(name, value): (Vec<u8>, Vec<u8>)| {
            let name = String::from_utf8_lossy(&name).into_owned();
            let raw = parse(&format!("preset {name}"), &value)?;
            Ok((name, raw))
        };
        self.all(0, b"p").await?.into_iter().map(named).collect()
    }

    pub async fn preset(&self, name: &str) -> Result<preset::Raw> {
        let [value] = self.read(0, [keys::preset(name)]).await?;
        parse(&format!("preset {name}"), &value.ok_or_else(|| no_preset(name))?)
    }

    /// Creates it, or replaces it with its next version; returns the version.
    pub async fn put_preset(&self, name: &str, mut preset: preset::Raw) -> Result<u32> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let [before] = self.read(0, [keys::preset(name)]).await?;
            let known = before.as_deref().map(parse_preset(name)).transpose()?;
            preset.version = known.map_or(1, |known| known.version.saturating_add(1));
            let mut commit = Commit::default();
            commit.is_still(keys::preset(name), before);
            commit.put(keys::preset(name), to_json(&preset)?);
            if self.commit(0, commit).await? {
                return Ok(preset.version);
            }
            retry.again().await?;
        }
    }

    /// Refused while a namespace uses it or it is the default. `false` when there is none.
    pub async fn delete_preset(&self, name: &str) -> Result<bool> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let (default, uses) = (keys::DEFAULT_PRESET.to_vec(), keys::PRESET_USES.to_vec());
            let wanted = [keys::preset(name), default.clone(), uses.clone()];
            let [before, default_now, uses_now] = self.read(0, wanted).await?;
            if before.is_none() {
                return Ok(false);
            }
            if default_name(default_now.as_deref())? == name {
                return Err(Fault::invalid(format!("preset {name:?} is the default")));
            }
            for (namespace, value) in self.all(0, b"n").await? {
                if NamespaceRecord::decode(&value)?.preset == name {
                    let namespace = String::from_utf8_lossy(&namespace).into_owned();
                    let message = format!("preset {name:?} is used by namespace {namespace:?}");
                    return Err(Fault::invalid(message));
                }
            }
            let mut commit = Commit::default();
            commit.is_still(keys::preset(name), before);
            commit.is_still(default, default_now).is_still(uses, uses_now);
            commit.delete(keys::preset(name));
            if self.commit(0, commit).await? {
                return Ok(true);
            }
            retry.again().await?;
        }
    }

    /// Of new namespaces.
    pub async fn default_preset(&self) -> Result<String> {
        let [value] = self.read(0, [keys::DEFAULT_PRESET.to_vec()]).await?;
        default_name(value.as_deref())
    }

    pub async fn set_default_preset(&self, name: &str) -> Result<()> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let [known] = self.read(0, [keys::preset(name)]).await?;
            let mut commit = Commit::default();
            commit.is(keys::preset(name), known.ok_or_else(|| no_preset(name))?);
            commit.put(keys::DEFAULT_PRESET.to_vec(), name);
            if self.commit(0, commit).await? {
                return Ok(());
            }
            retry.again().await?;
        }
    }

    /// The built-in presets and the default one of them, in an NSM that has none.
    pub async fn ensure_presets(&self, default: &str) -> Result<()> {
        let [known] = self.read(0, [keys::DEFAULT_PRESET.to_vec()]).await?;
        if known.is_some() {
            return Ok(());
        }
        let mut commit = Commit::default();
        commit.is_absent(keys::DEFAULT_PRESET.to_vec());
        for (name, raw) in preset::built_in() {
            commit.put(keys::preset(name), to_json(&raw)?);
        }
        commit.put(keys::DEFAULT_PRESET.to_vec(), default);
        // If not, someone else was faster.
        self.commit(0, commit).await.map(drop)
    }

    pub async fn preset_of(&self, namespace: &str) -> Result<String> {
        let [value] = self.read(0, [keys::namespace(namespace)]).await?;
        let value = value.ok_or_else(|| Self::no_namespace(namespace))?;
        Ok(NamespaceRecord::decode(&value)?.preset)
    }

    /// The preset that a namespace has now; at once if it is the one that is expected.
    pub(super) async fn preset_now(&self, namespace: &str, expected: &str) -> Result<Preset> {
        let wanted = [keys::namespace(namespace), keys::preset(expected)];
        let [record, preset] = self.read(0, wanted).await?;
        let record = record.ok_or_else(|| Self::no_namespace(namespace))?;
        let name = NamespaceRecord::decode(&record)?.preset;
        match preset {
            Some(preset) if name == expected => parse_preset(&name)(&preset)?.check(),
            _ => self.preset(&name).await?.check(),
        }
    }

    /// Objects put from now on follow it.
    pub async fn set_preset_of(&self, namespace: &str, preset: &str) -> Result<()> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let wanted = [keys::namespace(namespace), keys::preset(preset)];
            let [record, known] = self.read(0, wanted).await?;
            let known = known.ok_or_else(|| no_preset(preset))?;
            let record = record.ok_or_else(|| Self::no_namespace(namespace))?;
            let changed =
                NamespaceRecord { preset: preset.into(), ..NamespaceRecord::decode(&record)? };
            let mut commit = Commit::default();
            commit.is(keys::namespace(namespace), record).is(keys::preset(preset), known);
            commit.put(keys::namespace(namespace), changed.encode());
            commit.put(keys::PRESET_USES.to_vec(), self.outside.bytes());
            if self.commit(0, commit).await? {
                self.spaces.remove(namespace);
                return Ok(());
            }
            retry.again().await?;
        }
    }

    /// All OSDs ever given.
    pub async fn osds(&self) -> Result<Vec<(OsdId, OsdRecord)>> {
        let known = |(id, value): (Vec<u8>, Vec<u8>)| {
            let id = OsdId(as_id(&id)?);
            Ok((id, parse(&format!("OSD {id}"), &value)?))
        };
        self.all(0, b"s").await?.into_iter().map(known).collect()
    }

    /// The OSD was given to this process at this place; returns the role it has.
    pub async fn note_osd(&self, id: OsdId, seen: OsdRecord) -> Result<OsdRole> {
        let noted = self.change_osd(id, |before| {
            let role = before.map_or(seen.role, |before| before.role);
            Ok(OsdRecord { role, ..seen.clone() })
        });
        Ok(noted.await?.role)
    }

    pub async fn set_osd_role(&self, id: OsdId, role: OsdRole) -> Result<()> {
        let changed = self.change_osd(id, |before| {
            let missing = || Fault::not_found(format!("there is no OSD {id}"));
            Ok(OsdRecord { role, ..before.ok_or_else(missing)? })
        });
        changed.await.map(drop)
    }

    /// Some manifest names a fragment that is there.
    pub async fn uses_osd(&self, id: OsdId) -> Result<bool> {
        let prefix = keys::fragments_of(id);
        for home in 0..self.clusters.len() {
            let (found, _) = self.step(home, &prefix, prefix.clone(), 1).await?;
            if !found.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// There is no such OSD any more.
    pub async fn forget_osd(&self, id: OsdId) -> Result<()> {
        let mut commit = Commit::default();
        commit.delete(keys::osd(id));
        self.commit(0, commit).await.map(drop)
    }

    async fn change_osd(
        &self,
        id: OsdId,
        change: impl Fn(Option<OsdRecord>) -> Result<OsdRecord>,
    ) -> Result<OsdRecord> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let [before] = self.read(0, [keys::osd(id)]).await?;
            let known = before.as_deref().map(|value| parse(&format!("OSD {id}"), value));
            let after = change(known.transpose()?)?;
            let value = to_json(&after)?;
            if before.as_ref() == Some(&value) {
                return Ok(after);
            }
            let mut commit = Commit::default();
            commit.is_still(keys::osd(id), before).put(keys::osd(id), value);
            if self.commit(0, commit).await? {
                return Ok(after);
            }
            retry.again().await?;
        }
    }
}

pub(super) fn no_preset(name: &str) -> Fault {
    Fault::not_found(format!("there is no preset {name:?}"))
}

pub(super) fn default_name(value: Option<&[u8]>) -> Result<String> {
    let missing = || Fault::bug("the NSM names no default preset");
    value.map(|name| String::from_utf8_lossy(name).into_owned()).ok_or_else(missing)
}

fn parse_preset(name: &str) -> impl Fn(&[u8]) -> Result<preset::Raw> {
    move |value| parse(&format!("preset {name}"), value)
}

fn parse<T: DeserializeOwned>(what: &str, value: &[u8]) -> Result<T> {
    let broken = |e: serde_json::Error| Fault {
        source: Some(Box::new(e)),
        ..Fault::corrupt(format!("NSM record of {what}"))
    };
    serde_json::from_slice(value).map_err(broken)
}

pub(super) fn to_json(record: &impl Serialize) -> Result<Value> {
    let failed = |e: serde_json::Error| Fault {
        source: Some(Box::new(e)),
        ..Fault::bug("a record cannot be written as JSON")
    };
    serde_json::to_vec(record).map_err(failed)
}
