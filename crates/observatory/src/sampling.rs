//! The `sampling` section: a strategies file as Jaeger reads it, or a profile that is built in.

use crate::config::ConfigError;
use obs_ingest::{RawTail, Strategies, TailConfig};
use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawSampling {
    strategies_file: Option<PathBuf>,
    profile: Option<String>,
    calculation_interval_seconds: Option<u32>,
    tail: Option<RawTail>,
}

/// Which strategies hold; the file is read at start and at each reload.
#[derive(Debug, Clone, Default)]
pub(crate) struct SamplingSettings {
    file: Option<PathBuf>,
    profile: String,
    interval: Option<u32>,
    tail: Option<RawTail>,
}

impl SamplingSettings {
    pub(crate) fn read(raw: RawSampling, base: &Path) -> Result<Self, String> {
        let profile = raw.profile.unwrap_or_else(|| Strategies::PROFILES[0].to_owned());
        if !Strategies::PROFILES.contains(&profile.as_str()) {
            let known = Strategies::PROFILES.join(", ");
            return Err(format!("sampling.profile: {profile:?} is unknown; there are {known}"));
        }
        let settings = Self {
            file: raw.strategies_file.map(|f| base.join(f)),
            profile,
            interval: raw.calculation_interval_seconds,
            tail: raw.tail,
        };
        settings.tail(None)?;
        Ok(settings)
    }

    /// Returns the rules of tail sampling, if there are any: ours, or those of a collector's file.
    pub(crate) fn tail(&self, other: Option<TailConfig>) -> Result<Option<TailConfig>, String> {
        let read = |raw| TailConfig::read(raw).map_err(|e| format!("sampling.tail: {e}"));
        let own = self.tail.clone().map(read).transpose()?;
        match (own, other) {
            (Some(_), Some(_)) => {
                Err("sampling.tail: the collector's file samples too; keep one of them".into())
            }
            (own, other) => Ok(own.or(other)),
        }
    }

    /// Reads and checks the strategies.
    pub(crate) fn load(&self) -> Result<Strategies, ConfigError> {
        let own = |message| ConfigError { file: "sampling".into(), place: None, message };
        let strategies = self.strategies(&own)?;
        let Some(seconds) = self.interval else { return Ok(strategies) };
        let named = |e: String| own(format!("calculation_interval_seconds: {e}"));
        strategies.every(seconds).map_err(named)
    }

    fn strategies(&self, own: &dyn Fn(String) -> ConfigError) -> Result<Strategies, ConfigError> {
        let Some(file) = &self.file else {
            return Strategies::of_profile(&self.profile).map_err(own);
        };
        let fail = |message: String| ConfigError {
            file: file.display().to_string(),
            place: None,
            message,
        };
        let text =
            std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
        Strategies::parse(&text).map_err(fail)
    }
}
