//! OTLP names as Prometheus names, by one of Prometheus' translation strategies: escaped to
//! underscores or kept as they are, with unit and type suffixes or without
//! (OpenTelemetry's "Prometheus and OpenMetrics compatibility").

use std::sync::{Arc, PoisonError, RwLock};

/// Prometheus' `otlp.translation_strategy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Translation {
    #[default]
    UnderscoreEscapingWithSuffixes,
    UnderscoreEscapingWithoutSuffixes,
    NoUtf8EscapingWithSuffixes,
    NoTranslation,
}

impl Translation {
    /// Returns the strategy that a configuration names.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "" | "UnderscoreEscapingWithSuffixes" => Self::UnderscoreEscapingWithSuffixes,
            "UnderscoreEscapingWithoutSuffixes" => Self::UnderscoreEscapingWithoutSuffixes,
            "NoUTF8EscapingWithSuffixes" => Self::NoUtf8EscapingWithSuffixes,
            "NoTranslation" => Self::NoTranslation,
            _ => return None,
        })
    }

    /// Returns the name of a metric, without what tells the series of a histogram apart.
    pub(crate) fn metric(self, name: &str, unit: &str, kind: Kind) -> String {
        match self {
            Self::UnderscoreEscapingWithSuffixes => metric_name(name, unit, kind),
            Self::UnderscoreEscapingWithoutSuffixes => escaped(name),
            Self::NoUtf8EscapingWithSuffixes => with_suffixes(name, unit, kind),
            Self::NoTranslation => name.to_owned(),
        }
    }
}

/// Which of a metric's type suffixes may follow its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Other,
}

/// Which resource attributes become labels of every series, beside `job` and `instance`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Promoted {
    These(Vec<String>),
    AllBut(Vec<String>),
}

/// How OTLP metrics become series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naming {
    pub translation: Translation,
    pub promoted: Promoted,
    /// Whether `target_info` names the service and instance once more.
    pub keep_identifying: bool,
    /// Whether the instrumentation scope is in labels `otel_scope_*`.
    pub scopes: bool,
    /// Whether histograms with explicit bounds become native ones.
    pub native_explicit: bool,
    /// Whether an escaped label name that begins with one underscore gets `key` before it.
    pub underscore_prefix: bool,
    /// Whether escaped label names keep several underscores in a row.
    pub underscore_runs: bool,
}

impl Naming {
    /// Returns the label name of an attribute.
    pub(crate) fn label(&self, key: &str) -> String {
        match self.translation {
            Translation::UnderscoreEscapingWithSuffixes
            | Translation::UnderscoreEscapingWithoutSuffixes => {
                let mut name = label_name(key);
                if !self.underscore_runs {
                    let mut kept: Vec<char> = name.chars().collect();
                    kept.dedup_by(|a, b| *a == '_' && *b == '_');
                    name = kept.into_iter().collect();
                }
                if self.underscore_prefix && name.starts_with('_') && !name.starts_with("__") {
                    name.insert_str(0, "key");
                }
                name
            }
            Translation::NoUtf8EscapingWithSuffixes | Translation::NoTranslation => key.to_owned(),
        }
    }

    /// Tells namings apart that give other labels.
    pub(crate) fn mark(&self) -> [u8; 2] {
        let flags =
            [self.scopes, self.native_explicit, self.underscore_prefix, self.underscore_runs];
        let bits = flags.iter().fold(0, |bits, f| bits << 1 | u8::from(*f));
        [self.translation as u8, bits]
    }
}

impl Default for Naming {
    fn default() -> Self {
        let promoted = [
            "service.name",
            "service.instance.id",
            "deployment.environment.name",
            "service.version",
        ];
        Self {
            translation: Translation::default(),
            promoted: Promoted::These(promoted.map(str::to_owned).to_vec()),
            keep_identifying: false,
            scopes: false,
            native_explicit: false,
            underscore_prefix: true,
            underscore_runs: true,
        }
    }
}

/// The naming in force, which a reload may change. Clone it freely.
#[derive(Debug, Clone, Default)]
pub struct LiveNaming(Arc<RwLock<Arc<Naming>>>);

impl LiveNaming {
    pub fn get(&self) -> Arc<Naming> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, naming: Naming) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(naming);
    }
}

/// Returns a label name for an attribute key, escaped.
pub fn label_name(key: &str) -> String {
    let mut out: String =
        key.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect();
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert_str(0, "key_");
    }
    out
}

fn unit_word(unit: &str) -> &str {
    match unit {
        "d" => "days",
        "h" => "hours",
        "min" => "minutes",
        "s" => "seconds",
        "ms" => "milliseconds",
        "us" => "microseconds",
        "ns" => "nanoseconds",
        "By" => "bytes",
        "KiBy" => "kibibytes",
        "MiBy" => "mebibytes",
        "GiBy" => "gibibytes",
        "TiBy" => "tibibytes",
        "KBy" => "kilobytes",
        "MBy" => "megabytes",
        "GBy" => "gigabytes",
        "TBy" => "terabytes",
        "m" => "meters",
        "V" => "volts",
        "A" => "amperes",
        "J" => "joules",
        "W" => "watts",
        "g" => "grams",
        "Cel" => "celsius",
        "Hz" => "hertz",
        "1" => "",
        "%" => "percent",
        other => other,
    }
}

fn per_word(unit: &str) -> &str {
    match unit {
        "s" => "second",
        "m" => "minute",
        "h" => "hour",
        "d" => "day",
        "w" => "week",
        "mo" => "month",
        "y" => "year",
        other => other,
    }
}

fn tokens(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != ':')
        .filter(|t| !t.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Returns the words of a unit, and of what it is counted by (`By/s`); empty where there are none.
fn unit_words(unit: &str) -> (String, String) {
    let (main, per) = unit.split_once('/').map_or((unit, ""), |(a, b)| (a, b));
    // Annotations such as {token} are comments.
    let plain = |u: &str| if u.contains(['{', '}']) { String::new() } else { u.trim().to_owned() };
    (unit_word(&plain(main)).to_owned(), per_word(&plain(per)).to_owned())
}

/// Returns a name with its characters alone escaped.
fn escaped(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == ':' || c == '_';
    let words: Vec<&str> = name.split(|c| !is_plain(c)).filter(|w| !w.is_empty()).collect();
    let out = words.join("_");
    if out.starts_with(|c: char| c.is_ascii_digit()) { format!("_{out}") } else { out }
}

/// Returns a name as it is with the suffixes that it does not end in already.
fn with_suffixes(name: &str, unit: &str, kind: Kind) -> String {
    let mut out = name.to_owned();
    let mut add = |suffix: &str| {
        if !suffix.is_empty() && !out.ends_with(suffix) {
            out.push('_');
            out.push_str(suffix);
        }
    };
    let (main, per) = unit_words(unit);
    add(&main);
    if !per.is_empty() {
        add(&format!("per_{per}"));
    }
    match kind {
        Kind::Counter => add("total"),
        Kind::Gauge if unit == "1" => add("ratio"),
        Kind::Gauge | Kind::Other => {}
    }
    out
}

/// Returns a metric name: sanitised, with its unit and `_total` (counters) or `_ratio` (gauges of
/// unit 1). Words already in the name are not added again.
fn metric_name(name: &str, unit: &str, kind: Kind) -> String {
    let mut words = tokens(name);
    let (main, per) = unit_words(unit);
    for word in tokens(&main) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    if !per.is_empty() {
        for word in tokens(&per) {
            if !words.contains(&word) {
                words.push("per".into());
                words.push(word);
            }
        }
    }
    if kind == Kind::Counter {
        words.retain(|w| w != "total");
        words.push("total".into());
    }
    if unit == "1" && kind == Kind::Gauge {
        words.retain(|w| w != "ratio");
        words.push("ratio".into());
    }
    let mut out = words.join("_");
    if out.starts_with(|c: char| c.is_ascii_digit()) {
        out.insert(0, '_');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_prometheus() {
        let cases = [
            ("http.server.duration", "s", Kind::Other, "http_server_duration_seconds"),
            ("gen_ai.client.token.usage", "{token}", Kind::Other, "gen_ai_client_token_usage"),
            ("gen_ai.client.token.usage", "token", Kind::Other, "gen_ai_client_token_usage"),
            (
                "gen_ai.client.generation.choices",
                "choice",
                Kind::Counter,
                "gen_ai_client_generation_choices_choice_total",
            ),
            ("requests", "1", Kind::Counter, "requests_total"),
            ("requests_total", "", Kind::Counter, "requests_total"),
            ("cpu.utilization", "1", Kind::Gauge, "cpu_utilization_ratio"),
            ("disk.io", "By/s", Kind::Gauge, "disk_io_bytes_per_second"),
            ("gen_ai.usage.cost", "USD", Kind::Counter, "gen_ai_usage_cost_USD_total"),
            ("2xx", "", Kind::Gauge, "_2xx"),
        ];
        for (name, unit, kind, want) in cases {
            assert_eq!(metric_name(name, unit, kind), want);
        }
        assert_eq!(label_name("service.name"), "service_name");
        assert_eq!(label_name("1st"), "key_1st");
    }
    #[test]
    fn each_strategy_has_names_of_its_own() {
        let of = |strategy: &str, name: &str, unit: &str, kind| {
            let t = Translation::parse(strategy).unwrap();
            (
                t.metric(name, unit, kind),
                Naming { translation: t, ..Naming::default() }.label("http.route"),
            )
        };
        let cases = [
            (
                "UnderscoreEscapingWithoutSuffixes",
                "a.b--c",
                "s",
                Kind::Counter,
                "a_b_c",
                "http_route",
            ),
            ("UnderscoreEscapingWithoutSuffixes", "2.x", "s", Kind::Other, "_2_x", "http_route"),
            (
                "NoUTF8EscapingWithSuffixes",
                "a.b",
                "By/s",
                Kind::Counter,
                "a.b_bytes_per_second_total",
                "http.route",
            ),
            (
                "NoUTF8EscapingWithSuffixes",
                "gen_ai.client.token.usage",
                "token",
                Kind::Other,
                "gen_ai.client.token.usage_token",
                "http.route",
            ),
            (
                "NoUTF8EscapingWithSuffixes",
                "wait.seconds",
                "s",
                Kind::Other,
                "wait.seconds",
                "http.route",
            ),
            (
                "NoUTF8EscapingWithSuffixes",
                "cpu.use",
                "1",
                Kind::Gauge,
                "cpu.use_ratio",
                "http.route",
            ),
            ("NoTranslation", "a.b", "By", Kind::Counter, "a.b", "http.route"),
        ];
        for (strategy, name, unit, kind, want, label) in cases {
            assert_eq!(of(strategy, name, unit, kind), (want.into(), label.into()), "{strategy}");
        }
        assert_eq!(Translation::parse("nope"), None);
    }
}
