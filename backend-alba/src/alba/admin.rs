//! Managing the backend: presets, the presets of namespaces, the roles of OSDs.

use super::Alba;
use crate::fault::Result;
use crate::name::{self, OsdId};
use crate::nsm::OsdRole;
use crate::preset::{self, Raw};

/// All presets, and which of them new namespaces get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presets {
    pub presets: Vec<(String, Raw)>,
    pub default: String,
}

impl Alba {
    pub async fn presets(&self) -> Result<Presets> {
        let nsm = &self.inner.nsm;
        Ok(Presets { presets: nsm.presets().await?, default: nsm.default_preset().await? })
    }

    /// Creates a preset, or replaces it with its next version: objects put from then on follow it. Returns the version.
    pub async fn put_preset(&self, name: &str, preset: Raw) -> Result<u32> {
        preset::check_word("preset", name)?;
        preset.check().map_err(|fault| fault.about(format!("preset {name:?}")))?;
        self.inner.nsm.put_preset(name, preset).await
    }

    /// Refused while a namespace uses it or it is the default. `false` when there is none.
    pub async fn delete_preset(&self, name: &str) -> Result<bool> {
        self.inner.nsm.delete_preset(name).await
    }

    /// New namespaces get this preset.
    pub async fn set_default_preset(&self, name: &str) -> Result<()> {
        self.inner.nsm.set_default_preset(name).await
    }

    pub async fn preset_of(&self, namespace: &str) -> Result<String> {
        name::check_namespace(namespace)?;
        self.inner.nsm.preset_of(namespace).await
    }

    /// Objects put from then on follow this preset.
    pub async fn set_preset_of(&self, namespace: &str, preset: &str) -> Result<()> {
        name::check_namespace(namespace)?;
        self.inner.nsm.set_preset_of(namespace, preset).await
    }

    /// What the OSD is used for from now on, also after a restart.
    pub async fn set_osd_role(&self, osd: OsdId, role: OsdRole) -> Result<()> {
        self.inner.nsm.set_osd_role(osd, role).await?;
        self.inner.refresh_osds().await
    }
}
