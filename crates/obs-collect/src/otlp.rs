//! The section `otlp` of prometheus.yml.

use obs_codec::otlp::{Naming, Promoted, Translation};
use serde::Deserialize;

/// How OTLP metrics become series.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    pub promote_resource_attributes: Option<Vec<String>>,
    pub promote_all_resource_attributes: bool,
    pub ignore_resource_attributes: Vec<String>,
    pub keep_identifying_resource_attributes: bool,
    pub translation_strategy: String,
    pub convert_histograms_to_nhcb: bool,
    pub promote_scope_metadata: bool,
    pub label_name_underscore_sanitization: Option<bool>,
    pub label_name_preserve_multiple_underscores: Option<bool>,
}

impl Otlp {
    /// Checks what the section says.
    ///
    /// # Errors
    /// When it contradicts itself, as Prometheus words it.
    pub(crate) fn check(&self) -> Result<(), String> {
        if Translation::parse(&self.translation_strategy).is_none() {
            return Err(format!(
                "unsupported OTLP translation strategy {:?}",
                self.translation_strategy
            ));
        }
        if self.promote_all_resource_attributes && self.promote_resource_attributes.is_some() {
            return Err("'promote_all_resource_attributes' and 'promote_resource_attributes' cannot be configured simultaneously".into());
        }
        if !self.promote_all_resource_attributes && !self.ignore_resource_attributes.is_empty() {
            return Err("'ignore_resource_attributes' cannot be configured unless 'promote_all_resource_attributes' is true".into());
        }
        Ok(())
    }

    /// Returns the naming that the section asks for; what it leaves out is as without it.
    pub fn naming(&self) -> Naming {
        let base = Naming::default();
        let promoted = match &self.promote_resource_attributes {
            _ if self.promote_all_resource_attributes => {
                Promoted::AllBut(self.ignore_resource_attributes.clone())
            }
            Some(keys) => Promoted::These(keys.clone()),
            None => base.promoted,
        };
        Naming {
            translation: Translation::parse(&self.translation_strategy).unwrap_or_default(),
            promoted,
            keep_identifying: self.keep_identifying_resource_attributes,
            scopes: self.promote_scope_metadata,
            native_explicit: self.convert_histograms_to_nhcb,
            underscore_prefix: self
                .label_name_underscore_sanitization
                .unwrap_or(base.underscore_prefix),
            underscore_runs: self
                .label_name_preserve_multiple_underscores
                .unwrap_or(base.underscore_runs),
        }
    }
}
