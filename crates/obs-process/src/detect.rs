//! The processor `resourcedetection`: what is known of this machine.

use obs_model::AttributeValue;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(default)]
pub(crate) struct RawDetection {
    detectors: Vec<String>,
    #[serde(rename = "override")]
    replaces: bool,
}

impl Default for RawDetection {
    fn default() -> Self {
        Self { detectors: vec!["env".into()], replaces: true }
    }
}

/// Reads `k=v,k=v` with percent-encoded values.
fn from_environment(text: &str) -> Vec<(String, AttributeValue)> {
    let decoded =
        |v: &str| percent_encoding::percent_decode_str(v).decode_utf8_lossy().into_owned();
    let pair = |p: &str| {
        let (k, v) = p.split_once('=')?;
        Some((k.trim().to_owned(), decoded(v.trim()).into()))
    };
    text.split(',').filter_map(pair).collect()
}

fn host() -> Vec<(String, AttributeValue)> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    [("host.name", name.trim()), ("os.type", std::env::consts::OS)]
        .into_iter()
        .filter(|(_, v)| !v.is_empty())
        .map(|(k, v)| (k.to_owned(), v.into()))
        .collect()
}

/// What a detection found, and whether it replaces what a resource has.
pub(crate) type Detected = (Vec<(String, AttributeValue)>, bool);

/// Runs the detectors; of equal keys the first detector's counts.
pub(crate) fn detect(
    raw: &RawDetection,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Detected, String> {
    let mut out: Vec<(String, AttributeValue)> = Vec::new();
    for d in &raw.detectors {
        let found = match d.as_str() {
            "env" => from_environment(&env("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default()),
            "system" | "docker" => host(),
            _ => {
                return Err(format!(
                    "detector {d:?} is not supported; there are env, system, docker"
                ));
            }
        };
        for (k, v) in found {
            if !out.iter().any(|(n, _)| *n == k) {
                out.push((k, v));
            }
        }
    }
    Ok((out, raw.replaces))
}
