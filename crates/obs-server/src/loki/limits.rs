//! Loki's limits of tenants, under the names and with the answers of its `limits_config`.
//!
//! They stand beside the limits of all records and queries and hold where Loki's API is spoken. What is
//! not configured is not limited here.

use super::{Api, bad};
use crate::body::Refusal;
use http::StatusCode;
use obs_model::{Labels, LogRecord, TenantId, TimestampNs};
use obs_promql::duration::{format_ms, parse_ms};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

/// Entries that a log query may return unless configured.
const ENTRIES_MAX: usize = 5000;
/// A stream that took nothing for so long is none of the active ones; ns.
const IDLE_NS: i64 = 3_600_000_000_000;

/// Tenants whose use is known before quiet ones are forgotten.
const TENANTS_MAX: usize = 10_000;

macro_rules! raw_limits {
    ($($(#[$attribute:meta])* $name:ident: $kind:ty,)*) => {
        /// The section as it is written; sizes as `256KB`, durations as `168h` or `1w`.
        #[derive(Debug, Default, Clone, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct RawLokiLimits {
            $($(#[$attribute])* $name: Option<$kind>,)*
        }

        impl RawLokiLimits {
            const NAMES: &[&str] = &[$(stringify!($name)),*];

            /// Returns these limits, and those of `base` where there are none.
            #[must_use]
            pub fn over(self, base: &Self) -> Self {
                Self { $($name: self.$name.or_else(|| base.$name.clone())),* }
            }
        }
    };
}

raw_limits! {
    ingestion_rate_mb: f64,
    ingestion_burst_size_mb: f64,
    per_stream_rate_limit: Size,
    per_stream_rate_limit_burst: Size,
    max_line_size: Size,
    max_line_size_truncate: bool,
    #[serde(alias = "max_streams_per_user")]
    max_global_streams_per_user: usize,
    max_label_names_per_series: usize,
    max_label_name_length: usize,
    max_label_value_length: usize,
    reject_old_samples: bool,
    reject_old_samples_max_age: String,
    creation_grace_period: String,
    max_query_length: String,
    max_entries_limit_per_query: usize,
    max_query_series: usize,
}

/// A number of bytes, with a unit or without.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(usize),
    Text(String),
}

impl Size {
    fn bytes(&self) -> Option<usize> {
        let text = match self {
            Self::Bytes(n) => return Some(*n),
            Self::Text(t) => t.trim(),
        };
        let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(at);
        // Loki's units are powers of 1,024 with and without the `i`.
        let power =
            match unit.trim().to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
                "" => 0,
                "K" => 1,
                "M" => 2,
                "G" => 3,
                _ => return None,
            };
        let bytes = number.parse::<f64>().ok()? * 1024_f64.powi(power);
        (bytes.is_finite() && bytes >= 0.0).then_some(bytes as usize)
    }
}

impl RawLokiLimits {
    /// Reads the section of a file of Loki's own, which has names that are no limits here; returns
    /// those too.
    ///
    /// # Errors
    /// With the name of what is written wrongly.
    pub fn of_file(section: Map<String, Value>) -> Result<(Self, Vec<String>), String> {
        let is_known = |n: &str| Self::NAMES.contains(&n) || n == "max_streams_per_user";
        let (known, others): (Map<_, _>, Map<_, _>) =
            section.into_iter().partition(|(n, v)| is_known(n) && !v.is_null());
        let limits = serde_json::from_value(Value::Object(known)).map_err(|e| e.to_string())?;
        Ok((limits, others.into_iter().map(|(n, _)| n).collect()))
    }

    fn read(&self) -> Result<Limits, String> {
        let size = |name: &str, s: &Option<Size>| match s {
            None => Ok(None),
            Some(s) => {
                let text = || format!("{name}: {s:?} is no size; write 256KB");
                s.bytes().map(Some).ok_or_else(text)
            }
        };
        let ms = |name: &str, t: &Option<String>| match t {
            None => Ok(None),
            Some(t) => {
                let text = || format!("{name}: {t:?} is no duration; write 168h");
                parse_ms(t).map(Some).ok_or_else(text)
            }
        };
        let mb = |v: f64| v * f64::from(1 << 20);
        let rate = |rate: Option<f64>, burst: Option<f64>| {
            let rate = rate.filter(|r| *r > 0.0)?;
            Some(Rate { per_second: rate, burst: burst.unwrap_or(rate).max(0.0) })
        };
        let float = |n: Option<usize>| n.map(|n| n as f64);
        const WEEK_MS: i64 = 168 * 3_600_000;
        let age = ms("reject_old_samples_max_age", &self.reject_old_samples_max_age)?;
        let some = |n: Option<usize>| n.filter(|n| *n > 0);
        Ok(Limits {
            rate: rate(self.ingestion_rate_mb.map(mb), self.ingestion_burst_size_mb.map(mb)),
            stream_rate: rate(
                float(size("per_stream_rate_limit", &self.per_stream_rate_limit)?),
                float(size("per_stream_rate_limit_burst", &self.per_stream_rate_limit_burst)?),
            ),
            line_bytes: some(size("max_line_size", &self.max_line_size)?),
            truncates: self.max_line_size_truncate.unwrap_or(false),
            streams: some(self.max_global_streams_per_user),
            label_names: some(self.max_label_names_per_series),
            label_name_bytes: some(self.max_label_name_length),
            label_value_bytes: some(self.max_label_value_length),
            age_ms: self
                .reject_old_samples
                .unwrap_or(age.is_some())
                .then(|| age.unwrap_or(WEEK_MS)),
            grace_ms: ms("creation_grace_period", &self.creation_grace_period)?,
            query_ms: ms("max_query_length", &self.max_query_length)?.filter(|ms| *ms > 0),
            entries: some(self.max_entries_limit_per_query),
            series: some(self.max_query_series),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate {
    /// Bytes.
    per_second: f64,
    burst: f64,
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Limits {
    rate: Option<Rate>,
    stream_rate: Option<Rate>,
    line_bytes: Option<usize>,
    truncates: bool,
    streams: Option<usize>,
    label_names: Option<usize>,
    label_name_bytes: Option<usize>,
    label_value_bytes: Option<usize>,
    age_ms: Option<i64>,
    grace_ms: Option<i64>,
    query_ms: Option<i64>,
    entries: Option<usize>,
    series: Option<usize>,
}

/// Loki's limits of every tenant: its own, or those of all.
#[derive(Debug, Default, Clone)]
pub struct LokiLimits {
    all: Limits,
    own: HashMap<TenantId, Limits>,
}

impl LokiLimits {
    /// Reads the limits of all, and what tenants have instead.
    ///
    /// # Errors
    /// With the name of what is written wrongly.
    pub fn read(
        all: RawLokiLimits,
        overrides: BTreeMap<String, RawLokiLimits>,
    ) -> Result<Self, String> {
        let mut own = HashMap::new();
        for (name, raw) in overrides {
            let at = |e: String| format!("overrides.{name}: {e}");
            let tenant = TenantId::new(&name).map_err(|e| at(e.to_string()))?;
            own.insert(tenant, raw.over(&all).read().map_err(at)?);
        }
        Ok(Self { all: all.read().map_err(|e| format!("limits_config: {e}"))?, own })
    }

    fn of(&self, tenant: &TenantId) -> &Limits {
        self.own.get(tenant).unwrap_or(&self.all)
    }
}

/// Bytes that may come now, as they flow in at a rate up to a burst.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: TimestampNs,
}

impl Bucket {
    /// Takes bytes if all of them are there.
    fn take(&mut self, bytes: usize, rate: Rate, now: TimestampNs) -> bool {
        let seconds = now.nanos().saturating_sub(self.at.nanos()).max(0) as f64 / 1e9;
        self.left = (self.left + seconds * rate.per_second).min(rate.burst);
        self.at = now;
        let has = bytes as f64 <= self.left;
        if has {
            self.left -= bytes as f64;
        }
        has
    }
}

#[derive(Debug)]
struct Stream {
    used: TimestampNs,
    bucket: Option<Bucket>,
}

#[derive(Debug, Default)]
struct Tenant {
    used: TimestampNs,
    bucket: Option<Bucket>,
    streams: HashMap<Labels, Stream>,
}

impl Tenant {
    /// Returns an active stream, a new one if there may be more.
    fn stream(&mut self, of: &Labels, most: usize, now: TimestampNs) -> Option<&mut Stream> {
        if !self.streams.contains_key(of) && self.streams.len() >= most {
            let idle_since = now.add_nanos(-IDLE_NS);
            self.streams.retain(|_, s| s.used > idle_since);
            if self.streams.len() >= most {
                return None;
            }
        }
        let new = || Stream { used: now, bucket: None };
        let s = self.streams.entry(of.clone()).or_insert_with(new);
        s.used = now;
        Some(s)
    }
}

/// A limit that an entry breaks: Loki's name of the reason, and its text.
type Broken = (&'static str, String);

/// What was refused of a push, and how that is answered.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Texts, and how often each; the first ones.
    texts: BTreeMap<String, usize>,
    /// By Loki's name of the reason.
    reasons: BTreeMap<&'static str, u64>,
    is_too_much: bool,
}

impl Refused {
    fn add(&mut self, (reason, text): Broken) {
        const KEPT: usize = 10;
        *self.reasons.entry(reason).or_default() += 1;
        if self.texts.len() < KEPT || self.texts.contains_key(&text) {
            *self.texts.entry(text).or_default() += 1;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// Returns how many entries were refused, by Loki's name of the reason.
    pub(super) fn reasons(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.reasons.iter().map(|(r, n)| (*r, *n))
    }

    /// Returns the answer, with other reasons behind.
    pub(super) fn into_refusal(self, others: &[String]) -> Refusal {
        let one = |(text, n): (&String, &usize)| match n {
            1 => text.clone(),
            n => format!("{n} errors like: {text}"),
        };
        let texts: Vec<String> = self.texts.iter().map(one).chain(others.iter().cloned()).collect();
        let status = match self.is_too_much {
            true => StatusCode::TOO_MANY_REQUESTS,
            false => StatusCode::BAD_REQUEST,
        };
        Refusal::new(status, texts.join("; "))
    }
}

/// The limits, and what tenants used of them.
#[derive(Debug)]
pub(crate) struct LokiGuard {
    limits: LokiLimits,
    tenants: Mutex<HashMap<TenantId, Tenant>>,
}

/// The size of a record as Loki counts it.
fn size(r: &LogRecord) -> usize {
    let pairs = r.attributes.iter();
    r.line.len() + pairs.map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum::<usize>()
}

impl Limits {
    fn stream(&self, s: &Labels) -> Result<(), Broken> {
        if let Some(most) = self.label_names.filter(|most| s.len() > *most) {
            let text = format!("entry for stream '{s}' has {} label names; limit {most}", s.len());
            return Err(("max_label_names_per_series", text));
        }
        for (name, value) in s.iter() {
            if self.label_name_bytes.is_some_and(|most| name.len() > most) {
                let text = format!("stream '{s}' has label name too long: '{name}'");
                return Err(("label_name_too_long", text));
            }
            if self.label_value_bytes.is_some_and(|most| value.len() > most) {
                let text = format!("stream '{s}' has label value too long: '{value}'");
                return Err(("label_value_too_long", text));
            }
        }
        Ok(())
    }

    fn entry(&self, r: &mut LogRecord, now: TimestampNs) -> Result<(), Broken> {
        // Loki prints times without fractions.
        let shown = |t: TimestampNs| {
            let text = t.to_string();
            format!("{}Z", text.split('.').next().unwrap_or_default())
        };
        if let Some(age) = self.age_ms {
            let oldest = now.add_nanos(-ns_of(age));
            if r.timestamp < oldest {
                return Err((
                    "greater_than_max_sample_age",
                    format!(
                        "entry for stream '{}' has timestamp too old: {}, oldest acceptable timestamp is: {}",
                        r.stream,
                        shown(r.timestamp),
                        shown(oldest)
                    ),
                ));
            }
        }
        if self.grace_ms.is_some_and(|ms| r.timestamp > now.add_nanos(ns_of(ms))) {
            let time = shown(r.timestamp);
            let text = format!("entry for stream '{}' has timestamp too new: {time}", r.stream);
            return Err(("too_far_in_future", text));
        }
        match self.line_bytes {
            Some(most) if r.line.len() > most && self.truncates => {
                let at = (0..=most).rev().find(|i| r.line.is_char_boundary(*i)).unwrap_or(0);
                r.line.truncate(at);
            }
            Some(most) if r.line.len() > most => {
                return Err((
                    "line_too_long",
                    format!(
                        "Max entry size '{most}' bytes exceeded for stream '{}' while adding an entry with length '{}' bytes",
                        r.stream,
                        r.line.len()
                    ),
                ));
            }
            _ => {}
        }
        Ok(())
    }
}

const fn ns_of(ms: i64) -> i64 {
    ms.saturating_mul(1_000_000)
}

impl LokiGuard {
    pub(crate) fn new(limits: LokiLimits) -> Self {
        Self { limits, tenants: Mutex::default() }
    }

    /// Takes out of a push what the tenant's limits leave no room for.
    ///
    /// # Errors
    /// When the tenant sends faster than it may: nothing is taken then.
    pub(super) fn screen(
        &self,
        tenant: &TenantId,
        records: &mut Vec<LogRecord>,
        now: TimestampNs,
    ) -> Result<Refused, Refusal> {
        let l = self.limits.of(tenant);
        let mut refused = Refused::default();
        let mut judged: Option<(Labels, Result<(), Broken>)> = None;
        records.retain_mut(|r| {
            if judged.as_ref().is_none_or(|(s, _)| *s != r.stream) {
                judged = Some((r.stream.clone(), l.stream(&r.stream)));
            }
            let of_stream = judged.as_ref().map_or(Ok(()), |(_, verdict)| verdict.clone());
            let verdict = of_stream.and_then(|()| l.entry(r, now));
            verdict.map_err(|broken| refused.add(broken)).is_ok()
        });
        if l.rate.is_none() && l.stream_rate.is_none() && l.streams.is_none() {
            return Ok(refused);
        }
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= TENANTS_MAX && !tenants.contains_key(tenant) {
            // Tenants are whoever says so: those that are quiet are forgotten.
            let idle_since = now.add_nanos(-IDLE_NS);
            tenants.retain(|_, t| t.used > idle_since);
        }
        let known = tenants.entry(tenant.clone()).or_default();
        known.used = now;
        if let Some(rate) = l.rate {
            let bytes = records.iter().map(size).sum();
            let bucket = known.bucket.get_or_insert(Bucket { left: rate.burst, at: now });
            if !bucket.take(bytes, rate, now) {
                let text = format!(
                    "ingestion rate limit exceeded for user {tenant} (limit: {} bytes/sec) while attempting to ingest '{}' lines totaling '{bytes}' bytes, reduce log volume or contact your Loki administrator to see if the limit can be increased",
                    rate.per_second as u64,
                    records.len()
                );
                return Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, text));
            }
        }
        if l.streams.is_none() && l.stream_rate.is_none() {
            return Ok(refused);
        }
        records.retain(|r| {
            // Without a limit of their own streams are counted for their rates alone.
            const STREAMS_MAX: usize = 1_000_000;
            let Some(stream) = known.stream(&r.stream, l.streams.unwrap_or(STREAMS_MAX), now) else {
                refused.is_too_much = true;
                refused.add(("stream_limit", format!(
                    "Maximum active stream limit exceeded when trying to create stream {}, reduce the number of active streams (reduce labels or reduce label values), or contact your Loki administrator to see if the limit can be increased, user: '{tenant}'",
                    r.stream
                )));
                return false;
            };
            let Some(rate) = l.stream_rate else { return true };
            let bucket = stream.bucket.get_or_insert(Bucket { left: rate.burst, at: now });
            let fits = bucket.take(size(r), rate, now);
            if !fits {
                refused.is_too_much = true;
                refused.add(("per_stream_rate_limit", format!(
                    "Per stream rate limit exceeded (limit: {}B/sec) while attempting to ingest for stream '{}' totaling {}B, consider splitting a stream via additional labels or contact your Loki administrator to see if the limit can be increased",
                    rate.per_second as u64, r.stream, size(r)
                )));
            }
            fits
        });
        Ok(refused)
    }

    /// Returns how many entries a tenant's query may return.
    pub(super) fn entries(&self, tenant: &TenantId) -> usize {
        self.limits.of(tenant).entries.unwrap_or(ENTRIES_MAX)
    }

    /// Checks the time that a query covers.
    pub(super) fn check_length(
        &self,
        tenant: &TenantId,
        (start, end): (TimestampNs, TimestampNs),
    ) -> Api<()> {
        let Some(most) = self.limits.of(tenant).query_ms else { return Ok(()) };
        let length = end.nanos().saturating_sub(start.nanos()) / 1_000_000;
        if length <= most {
            return Ok(());
        }
        Err(bad(format!(
            "the query time range exceeds the limit (query length: {}, limit: {})",
            format_ms(length),
            format_ms(most)
        )))
    }

    /// Checks how many series a query found.
    pub(super) fn check_series(&self, tenant: &TenantId, found: usize) -> Api<()> {
        match self.limits.of(tenant).series.filter(|most| found > *most) {
            None => Ok(()),
            Some(most) => {
                Err(bad(format!("maximum of series ({most}) reached for a single query")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(yaml: &str) -> LokiGuard {
        let raw: RawLokiLimits = serde_json::from_str(yaml).unwrap();
        LokiGuard::new(LokiLimits::read(raw, BTreeMap::new()).unwrap())
    }

    fn record(app: &str, ms: i64, line: &str) -> LogRecord {
        LogRecord {
            stream: Labels::from_pairs([("app", app)]),
            timestamp: at(ms),
            line: line.into(),
            ..LogRecord::default()
        }
    }

    fn at(ms: i64) -> TimestampNs {
        TimestampNs::from_nanos(1_800_000_000_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn entries_are_held_to_lokis_limits_one_by_one() {
        let g = guard(
            r#"{"max_line_size": "8B", "reject_old_samples": true, "creation_grace_period": "10m",
                "max_label_value_length": 9}"#,
        );
        let t = TenantId::default();
        let week = 7 * 86_400_000;
        let mut all = vec![
            record("a", 0, "12345678"),
            record("a", 0, "123456789"),
            record("a", -week - 1, "old"),
            record("a", -week, "not yet"),
            record("a", 600_001, "new"),
            record("0123456789", 0, "long"),
            record("0123456789", 1, "long"),
        ];
        let refused = g.screen(&t, &mut all, at(0)).unwrap();
        let left: Vec<&str> = all.iter().map(|r| r.line.as_str()).collect();
        assert_eq!(left, ["12345678", "not yet"]);
        assert_eq!(
            refused.reasons().collect::<Vec<_>>(),
            [
                ("greater_than_max_sample_age", 1),
                ("label_value_too_long", 2),
                ("line_too_long", 1),
                ("too_far_in_future", 1)
            ]
        );
        let answer = refused.into_refusal(&[]);
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        for text in [
            "Max entry size '8' bytes exceeded for stream '{app=\"a\"}' while adding an entry with length '9' bytes",
            "entry for stream '{app=\"a\"}' has timestamp too old: 2027-01-08T07:59:59Z, oldest acceptable timestamp is: 2027-01-08T08:00:00Z",
            "entry for stream '{app=\"a\"}' has timestamp too new: 2027-01-15T08:10:00Z",
            "2 errors like: stream '{app=\"0123456789\"}' has label value too long: '0123456789'",
        ] {
            assert!(answer.message.contains(text), "{}", answer.message);
        }
        let g = guard(r#"{"max_line_size": 4, "max_line_size_truncate": true}"#);
        let mut cut = vec![record("a", 0, "123é5")];
        assert!(g.screen(&t, &mut cut, at(0)).unwrap().is_empty());
        assert_eq!(cut[0].line, "123");
    }

    #[test]
    fn rates_and_streams_are_bounded_by_tenant() {
        let g = guard(r#"{"ingestion_rate_mb": 0.001, "ingestion_burst_size_mb": 0.002}"#);
        let t = TenantId::default();
        let push = |ms: i64, bytes: usize| {
            g.screen(&t, &mut vec![record("a", 0, &"x".repeat(bytes))], at(ms)).map(|_| ())
        };
        assert!(push(0, 2000).is_ok());
        let refused = push(0, 200).unwrap_err();
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        let text = "ingestion rate limit exceeded for user default (limit: 1048 bytes/sec) while attempting to ingest '1' lines totaling '200' bytes";
        assert!(refused.message.starts_with(text), "{}", refused.message);
        assert!(push(200, 200).is_ok());
        assert!(push(200, 200).is_err());
        // The burst is all that comes together in a quiet time.
        assert!(push(1_000_000, 2098).is_err());
        assert!(push(1_000_000, 2097).is_ok());
        let other = TenantId::new("other").unwrap();
        assert!(g.screen(&other, &mut vec![record("a", 0, "x")], at(0)).is_ok());

        let g = guard(r#"{"max_streams_per_user": 2, "per_stream_rate_limit": "10B"}"#);
        let mut all: Vec<_> = ["a", "b", "c", "a"].iter().map(|a| record(a, 0, "12345")).collect();
        all.push(record("a", 0, "x"));
        let refused = g.screen(&t, &mut all, at(0)).unwrap();
        assert_eq!(all.len(), 3);
        let reasons: Vec<_> = refused.reasons().collect();
        assert_eq!(reasons, [("per_stream_rate_limit", 1), ("stream_limit", 1)]);
        let answer = refused.into_refusal(&[]);
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
        assert!(answer.message.contains(
            "Maximum active stream limit exceeded when trying to create stream {app=\"c\"}"
        ));
        // Streams that went quiet make room.
        let mut late = vec![record("c", 0, "x")];
        assert!(g.screen(&t, &mut late, at(3_600_001)).unwrap().is_empty());
    }

    #[test]
    fn tenants_have_what_they_have_of_their_own_and_the_rest_of_all() {
        let raw = |text: &str| serde_json::from_str::<RawLokiLimits>(text).unwrap();
        let all = raw(r#"{"max_query_length": "30d", "max_query_series": 500}"#);
        let own = BTreeMap::from([("a".to_owned(), raw(r#"{"max_query_series": 7}"#))]);
        let g = LokiGuard::new(LokiLimits::read(all, own).unwrap());
        let (a, b) = (TenantId::new("a").unwrap(), TenantId::default());
        assert!(g.check_series(&a, 8).is_err() && g.check_series(&b, 500).is_ok());
        let e = g.check_length(&a, (at(0), at(31 * 86_400_000))).unwrap_err();
        assert_eq!(e.1, "the query time range exceeds the limit (query length: 31d, limit: 30d)");
        assert_eq!(g.entries(&a), 5000);
        for (bad, text) in [
            (r#"{"max_line_size": "many"}"#, "max_line_size"),
            (r#"{"max_query_length": "long"}"#, "max_query_length"),
        ] {
            let e = LokiLimits::read(raw(bad), BTreeMap::new()).unwrap_err();
            assert!(e.starts_with("limits_config: ") && e.contains(text), "{e}");
        }
    }
}
