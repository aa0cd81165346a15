//! The store that several instances share.

use obs_control::{Postgres, PostgresSettings};
use obs_model::ShareState;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawControl {
    /// `postgres://USER@HOST/DATABASE`.
    postgres: Option<String>,
    password_file: Option<PathBuf>,
    /// What this instance is called in lists of instances.
    name: Option<String>,
}

/// Where instances meet, if there are several.
#[derive(Debug, Clone, Default)]
pub(crate) struct ControlSettings(Option<(PostgresSettings, String)>);

/// Returns the name of this machine.
pub(crate) fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "observatory".into(),
        n => n.into(),
    }
}

impl ControlSettings {
    pub(crate) fn read(raw: RawControl, base: &Path) -> Result<Self, String> {
        let Some(address) = raw.postgres else {
            if raw.password_file.is_some() || raw.name.is_some() {
                return Err("control: password_file and name need control.postgres".into());
            }
            return Ok(Self(None));
        };
        let password = raw.password_file.map(|f| {
            let f = base.join(f);
            std::fs::read_to_string(&f)
                .map_err(|e| format!("control.password_file: {}: {e}", f.display()))
        });
        let password = password.transpose()?;
        let password = password.as_deref().map(|p| p.trim_end_matches(['\r', '\n']));
        let settings = PostgresSettings::new(&address, password)
            .map_err(|e| format!("control.postgres: {e}"))?;
        Ok(Self(Some((settings, raw.name.unwrap_or_else(host_name)))))
    }

    /// Returns the shared store; it is connected to when it is first asked.
    pub(crate) fn open(&self) -> Option<Arc<dyn ShareState>> {
        let (settings, name) = self.0.clone()?;
        Some(Arc::new(Postgres::new(settings, name)))
    }
}
