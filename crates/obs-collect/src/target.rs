//! From what was discovered to something that can be scraped.

use crate::config::{PrometheusConfig, ScrapeConfig, format_duration, parse_duration};
use crate::relabel::relabel;
use obs_model::{Labels, LabelsBuilder};
use std::time::Duration;

/// What discovery found in one place: targets with their labels, and labels of all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TargetGroup {
    pub targets: Vec<Labels>,
    pub labels: Labels,
}

/// A target, after relabelling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// As found, with the settings as labels.
    pub discovered: Labels,
    /// With those that begin with `__`, which say where and how to scrape.
    all: Labels,
    /// What every sample gets.
    pub labels: Labels,
    pub interval: Duration,
    pub timeout: Duration,
}

/// What became of a discovered target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    Target(Box<Target>),
    /// Relabelling dropped it; its labels as found.
    Dropped(Labels),
}

impl Target {
    /// Makes a target of what was found.
    ///
    /// # Errors
    /// When it has no address or its settings are wrong.
    pub fn make(
        c: &PrometheusConfig,
        job: &ScrapeConfig,
        group: &Labels,
        own: &Labels,
    ) -> Result<Made, String> {
        let (interval, timeout) = c.timing(job);
        let mut b = LabelsBuilder::default();
        for (n, v) in group.iter().chain(own.iter()) {
            b.set(n, v);
        }
        let found = b.clone().build();
        for (name, value) in [
            ("job", job.job_name.as_str()),
            ("__scrape_interval__", &format_duration(interval)),
            ("__scrape_timeout__", &format_duration(timeout)),
            ("__metrics_path__", &job.metrics_path),
            ("__scheme__", &job.scheme),
        ] {
            if found.get(name).is_empty() {
                b.set(name, value);
            }
        }
        for (name, values) in &job.params {
            if let Some(first) = values.first() {
                b.set(&format!("__param_{name}"), first);
            }
        }
        let discovered = b.build();
        let Some(all) = relabel(&discovered, &job.relabel_configs) else {
            return Ok(Made::Dropped(discovered));
        };
        let address = all.get("__address__");
        if address.is_empty() {
            return Ok(Made::Dropped(discovered));
        }
        if address.contains('/') {
            return Err(format!("{address:?} is not a valid hostname"));
        }
        let span = |name: &str| {
            let text = all.get(name);
            parse_duration(text)
                .filter(|d| !d.is_zero())
                .ok_or_else(|| format!("error parsing {name}: {text:?}"))
        };
        let (interval, timeout) = (span("__scrape_interval__")?, span("__scrape_timeout__")?);
        if timeout > interval {
            return Err(format!(
                "scrape timeout cannot be greater than scrape interval ({} > {})",
                format_duration(timeout),
                format_duration(interval)
            ));
        }
        let mut b = LabelsBuilder::default();
        for (n, v) in all.iter().filter(|(n, _)| !n.starts_with("__")) {
            b.push(n, v);
        }
        if all.get("instance").is_empty() {
            b.push("instance", address);
        }
        let labels = b.build();
        Ok(Made::Target(Box::new(Self { discovered, all, labels, interval, timeout })))
    }

    /// Returns the address to scrape.
    ///
    /// # Errors
    /// When the labels make no URL.
    pub fn url(&self, job: &ScrapeConfig) -> Result<url::Url, String> {
        let all = &self.all;
        let path = all.get("__metrics_path__");
        let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
        let text = format!("{}://{}{slash}{path}", all.get("__scheme__"), all.get("__address__"));
        let mut url = url::Url::parse(&text).map_err(|e| format!("{text}: {e}"))?;
        let mut params: Vec<(String, String)> = Vec::new();
        for (name, values) in &job.params {
            params.extend(values.iter().map(|v| (name.clone(), v.clone())));
        }
        // What relabelling set stands for the first value.
        for (name, value) in all.iter() {
            let Some(name) = name.strip_prefix("__param_") else { continue };
            match params.iter_mut().find(|p| p.0 == name) {
                Some(p) => p.1 = value.to_owned(),
                None => params.push((name.to_owned(), value.to_owned())),
            }
        }
        if !params.is_empty() {
            url.query_pairs_mut().extend_pairs(params);
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn make(job: &str, labels: &[(&str, &str)]) -> Result<Made, String> {
        let c =
            crate::config::read(&format!("scrape_configs:\n- {job}\n"), Path::new(".")).unwrap();
        Target::make(
            &c,
            &c.scrape_configs[0],
            &Labels::default(),
            &Labels::from_pairs(labels.iter().copied()),
        )
    }

    #[test]
    fn labels_and_url_follow_the_configuration() {
        let job = "{job_name: j, metrics_path: /m, scheme: https, params: {a: [1, 2], b: [x]}, relabel_configs: [{source_labels: [__meta_x], target_label: x}, {target_label: __param_b, replacement: y}]}";
        let Made::Target(t) = make(job, &[("__address__", "h:1"), ("__meta_x", "v")]).unwrap()
        else {
            panic!()
        };
        assert_eq!(t.labels.to_string(), "{instance=\"h:1\", job=\"j\", x=\"v\"}");
        let c =
            crate::config::read(&format!("scrape_configs:\n- {job}\n"), Path::new(".")).unwrap();
        assert_eq!(t.url(&c.scrape_configs[0]).unwrap().as_str(), "https://h:1/m?a=1&a=2&b=y");
        assert_eq!(t.interval, Duration::from_secs(60));
    }

    #[test]
    fn targets_without_address_are_dropped() {
        assert!(matches!(make("{job_name: j}", &[("a", "b")]), Ok(Made::Dropped(_))));
        assert!(make("{job_name: j}", &[("__address__", "h/x")]).is_err());
        let long =
            "{job_name: j, relabel_configs: [{target_label: __scrape_timeout__, replacement: 2m}]}";
        assert!(make(long, &[("__address__", "h:1")]).unwrap_err().contains("cannot be greater"));
    }
}
