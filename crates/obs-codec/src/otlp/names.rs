//! OTLP names as Prometheus names: underscores, unit and type suffixes
//! (OpenTelemetry's "Prometheus and OpenMetrics compatibility").

/// Returns a label name for an attribute key.
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

/// Returns a metric name: sanitised, with its unit and `_total` (counters) or `_ratio` (gauges of
/// unit 1). Words already in the name are not added again.
pub fn metric_name(name: &str, unit: &str, is_counter: bool, is_gauge: bool) -> String {
    let mut words = tokens(name);
    let (main, per) = unit.split_once('/').map_or((unit, ""), |(a, b)| (a, b));
    // Annotations such as {token} are comments.
    let plain = |u: &str| if u.contains(['{', '}']) { String::new() } else { u.trim().to_owned() };
    for word in tokens(unit_word(&plain(main))) {
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let per = plain(per);
    if !per.is_empty() {
        for word in tokens(per_word(&per)) {
            if !words.contains(&word) {
                words.push("per".into());
                words.push(word);
            }
        }
    }
    if is_counter {
        words.retain(|w| w != "total");
        words.push("total".into());
    }
    if unit == "1" && is_gauge {
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
            ("http.server.duration", "s", false, false, "http_server_duration_seconds"),
            ("gen_ai.client.token.usage", "{token}", false, false, "gen_ai_client_token_usage"),
            ("gen_ai.client.token.usage", "token", false, false, "gen_ai_client_token_usage"),
            (
                "gen_ai.client.generation.choices",
                "choice",
                true,
                false,
                "gen_ai_client_generation_choices_choice_total",
            ),
            ("requests", "1", true, false, "requests_total"),
            ("requests_total", "", true, false, "requests_total"),
            ("cpu.utilization", "1", false, true, "cpu_utilization_ratio"),
            ("disk.io", "By/s", false, true, "disk_io_bytes_per_second"),
            ("gen_ai.usage.cost", "USD", true, false, "gen_ai_usage_cost_USD_total"),
            ("2xx", "", false, true, "_2xx"),
        ];
        for (name, unit, counter, gauge, want) in cases {
            assert_eq!(metric_name(name, unit, counter, gauge), want);
        }
        assert_eq!(label_name("service.name"), "service_name");
        assert_eq!(label_name("1st"), "key_1st");
    }
}
