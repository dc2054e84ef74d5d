//! Records of the NSM besides objects: presets and OSDs.

use rocksdb::WriteBatch;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Nsm, as_id, key, namespace_key, split_namespace, store_fault};
use crate::fault::{Fault, Result};
use crate::name::OsdId;
use crate::preset;

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
    pub fn presets(&self) -> Result<Vec<(String, preset::Raw)>> {
        let named = |(name, value): (Vec<u8>, Vec<u8>)| {
            let name = String::from_utf8_lossy(&name).into_owned();
            let raw = parse(&format!("preset {name}"), &value)?;
            Ok((name, raw))
        };
        self.records(b'p')?.into_iter().map(named).collect()
    }

    pub fn preset(&self, name: &str) -> Result<preset::Raw> {
        let missing = || Fault::not_found(format!("there is no preset {name:?}"));
        let value = self.read(&key(b'p', name.as_bytes()))?.ok_or_else(missing)?;
        parse(&format!("preset {name}"), &value)
    }

    /// Creates it, or replaces it with its next version; returns the version.
    pub fn put_preset(&self, name: &str, mut preset: preset::Raw) -> Result<u32> {
        let _shape = self.exclusive();
        let before = self.read(&key(b'p', name.as_bytes()))?;
        let before = before.map(|value| parse::<preset::Raw>(name, &value)).transpose()?;
        preset.version = before.map_or(1, |before| before.version.saturating_add(1));
        let mut batch = WriteBatch::default();
        batch.put(key(b'p', name.as_bytes()), to_json(&preset)?);
        self.write(batch)?;
        Ok(preset.version)
    }

    /// Refused while a namespace uses it or it is the default. `false` when there is none.
    pub fn delete_preset(&self, name: &str) -> Result<bool> {
        let _shape = self.exclusive();
        if self.read(&key(b'p', name.as_bytes()))?.is_none() {
            return Ok(false);
        }
        if self.default_preset()? == name {
            return Err(Fault::invalid(format!("preset {name:?} is the default")));
        }
        for (namespace, value) in self.records(b'n')? {
            if split_namespace(&value)?.1 == name {
                let namespace = String::from_utf8_lossy(&namespace).into_owned();
                let message = format!("preset {name:?} is used by namespace {namespace:?}");
                return Err(Fault::invalid(message));
            }
        }
        let mut batch = WriteBatch::default();
        batch.delete(key(b'p', name.as_bytes()));
        self.write(batch)?;
        Ok(true)
    }

    /// Of new namespaces.
    pub fn default_preset(&self) -> Result<String> {
        let value = self.read(b"d")?;
        let missing = || Fault::bug("the NSM names no default preset");
        value.map(|name| String::from_utf8_lossy(&name).into_owned()).ok_or_else(missing)
    }

    pub fn set_default_preset(&self, name: &str) -> Result<()> {
        let _shape = self.exclusive();
        self.preset(name)?;
        let mut batch = WriteBatch::default();
        batch.put(b"d", name);
        self.write(batch)
    }

    /// The built-in presets and the default one of them, in an NSM that has none.
    pub fn ensure_presets(&self, default: &str) -> Result<()> {
        let _shape = self.exclusive();
        if self.read(b"d")?.is_some() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for (name, raw) in preset::built_in() {
            batch.put(key(b'p', name.as_bytes()), to_json(&raw)?);
        }
        batch.put(b"d", default);
        self.write(batch)
    }

    pub fn preset_of(&self, namespace: &str) -> Result<String> {
        Ok(self.namespace_and_preset(namespace)?.1)
    }

    /// Objects put from now on follow it.
    pub fn set_preset_of(&self, namespace: &str, preset: &str) -> Result<()> {
        let _shape = self.exclusive();
        self.preset(preset)?;
        let (id, _) = self.namespace_and_preset(namespace)?;
        let mut batch = WriteBatch::default();
        batch.put(namespace_key(namespace), [&id, preset.as_bytes()].concat());
        self.write(batch)
    }

    /// All OSDs ever given.
    pub fn osds(&self) -> Result<Vec<(OsdId, OsdRecord)>> {
        let known = |(id, value): (Vec<u8>, Vec<u8>)| {
            let id = OsdId(as_id(&id)?);
            Ok((id, parse(&format!("OSD {id}"), &value)?))
        };
        self.records(b's')?.into_iter().map(known).collect()
    }

    /// The OSD was given to this process at this place; returns the role it has.
    pub fn note_osd(&self, id: OsdId, seen: OsdRecord) -> Result<OsdRole> {
        let _shape = self.exclusive();
        let before = self.read(&key(b's', &id.0))?;
        let before = before.map(|value| parse::<OsdRecord>("OSD", &value)).transpose()?;
        let role = before.map_or(seen.role, |before| before.role);
        self.put_osd(id, &OsdRecord { role, ..seen })?;
        Ok(role)
    }

    pub fn set_osd_role(&self, id: OsdId, role: OsdRole) -> Result<()> {
        let _shape = self.exclusive();
        let missing = || Fault::not_found(format!("there is no OSD {id}"));
        let value = self.read(&key(b's', &id.0))?.ok_or_else(missing)?;
        let record: OsdRecord = parse("OSD", &value)?;
        self.put_osd(id, &OsdRecord { role, ..record })
    }

    fn put_osd(&self, id: OsdId, record: &OsdRecord) -> Result<()> {
        let mut batch = WriteBatch::default();
        batch.put(key(b's', &id.0), to_json(record)?);
        self.write(batch)
    }

    /// All keys of a kind without it, and their values.
    fn records(&self, kind: u8) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut found = Vec::new();
        for entry in self.from(&[kind]) {
            let (key, value) = entry.map_err(|e| store_fault("cannot read the NSM", e))?;
            let Some(name) = key.strip_prefix(&[kind]) else { break };
            found.push((name.to_vec(), value.to_vec()));
        }
        Ok(found)
    }
}

fn parse<T: DeserializeOwned>(what: &str, value: &[u8]) -> Result<T> {
    let broken = |e: serde_json::Error| Fault {
        source: Some(Box::new(e)),
        ..Fault::corrupt(format!("NSM record of {what}"))
    };
    serde_json::from_slice(value).map_err(broken)
}

pub(super) fn to_json(record: &impl Serialize) -> Result<Vec<u8>> {
    let failed = |e: serde_json::Error| Fault {
        source: Some(Box::new(e)),
        ..Fault::bug("a record cannot be written as JSON")
    };
    serde_json::to_vec(record).map_err(failed)
}
