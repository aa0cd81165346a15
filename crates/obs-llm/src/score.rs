//! Scores: what evaluators, programs and people said of calls, traces and sessions.
//!
//! They come by the API, as OpenTelemetry's event `gen_ai.evaluation.result` (of a span, or as a log
//! record), and as OpenInference's evaluations and annotations of a span. All are kept alike: as a log
//! record of the stream `{score_name="…", service_name="…"}` whose line is the score as JSON, so that
//! LogQL draws them and alerts on them.

use crate::forecast::z_of;
use obs_model::{
    AttributeValue, Attributes, Labels, LlmCall, LogRecord, Resource, Span, SpanId, TimestampNs,
    TraceId,
};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// The event of OpenTelemetry's conventions.
pub const SCORE_EVENT: &str = "gen_ai.evaluation.result";
/// The label that the streams of scores have.
pub const SCORE_NAME: &str = "score_name";

/// What streams have for a service that nobody named, as OpenTelemetry says.
const NO_SERVICE: &str = "unknown_service";

/// Bytes of one score's texts.
const SCORE_BYTES_MAX: usize = 16 << 10;

/// What somebody said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
pub struct Score {
    pub name: String,
    pub value: Option<f64>,
    /// A verdict in words, also where there is a value.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub explanation: String,
    /// Who said it: `human`, `model`, `code`, or what the sender wrote.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub model: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub response_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub session_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_id: String,
}

/// What a score is about, and when it was said.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    pub score: Score,
    pub at: TimestampNs,
    pub service: String,
    pub trace_id: Option<TraceId>,
    pub span_id: Option<SpanId>,
}

fn number(v: Option<&AttributeValue>) -> Option<f64> {
    match v? {
        AttributeValue::Bool(b) => Some(f64::from(u8::from(*b))),
        other => other.as_f64().filter(|f| f.is_finite()),
    }
}

fn text(a: &Attributes, key: &str) -> String {
    a.get_str(key).unwrap_or_default().to_owned()
}

/// Reads the attributes of OpenTelemetry's event.
fn of_event(a: &Attributes) -> Option<Score> {
    let score = Score {
        name: text(a, "gen_ai.evaluation.name"),
        value: number(a.get("gen_ai.evaluation.score.value")),
        label: text(a, "gen_ai.evaluation.score.label"),
        explanation: text(a, "gen_ai.evaluation.explanation"),
        source: text(a, "gen_ai.evaluation.source"),
        model: text(a, "gen_ai.request.model"),
        response_id: text(a, "gen_ai.response.id"),
        session_id: text(a, "gen_ai.conversation.id"),
        user_id: text(a, "user.id"),
    };
    score.check().is_ok().then_some(score)
}

/// Reads OpenInference's numbered evaluations or annotations of a span.
fn numbered(a: &Attributes, list: &str, item: &str) -> Vec<Score> {
    let mut out = Vec::new();
    for i in 0..100 {
        let key = |k: &str| format!("{list}.{i}.{item}.{k}");
        let score = Score {
            name: text(a, &key("name")),
            value: number(a.get(&key("score"))),
            label: text(a, &key("label")),
            explanation: text(a, &key("explanation")),
            source: text(a, &key("annotator_kind")).to_lowercase(),
            ..Score::default()
        };
        if score.name.is_empty() {
            break;
        }
        out.extend(score.check().is_ok().then_some(score));
    }
    out
}

fn service(r: &Resource) -> String {
    text(&r.attributes, "service.name")
}

impl Score {
    /// Tells what is wrong with it.
    ///
    /// # Errors
    /// When it has no name, says nothing, or is too long.
    pub fn check(&self) -> Result<(), String> {
        if self.name.trim().is_empty() {
            return Err("a score must have a name".into());
        }
        if self.value.is_none() && self.label.is_empty() {
            return Err(format!("score {:?} has neither a value nor a label", self.name));
        }
        if self.value.is_some_and(|v| !v.is_finite()) {
            return Err(format!("the value of score {:?} is no number", self.name));
        }
        let texts = [
            &self.name,
            &self.label,
            &self.explanation,
            &self.source,
            &self.model,
            &self.response_id,
            &self.session_id,
            &self.user_id,
        ];
        let bytes: usize = texts.iter().map(|t| t.len()).sum();
        if bytes > SCORE_BYTES_MAX {
            return Err(format!("a score may have {SCORE_BYTES_MAX} bytes; this one has {bytes}"));
        }
        Ok(())
    }
}

impl Scored {
    /// Returns the score that a log record is, if it is OpenTelemetry's event.
    pub fn of_log(r: &LogRecord) -> Option<Self> {
        let named = r.event_name == SCORE_EVENT
            || r.attributes.get_str("event.name").is_some_and(|n| n == SCORE_EVENT);
        if !named || !r.stream.get(SCORE_NAME).is_empty() {
            return None;
        }
        let of_stream = r.stream.get("service_name").to_owned();
        let of_resource = service(&r.resource);
        Some(Self {
            score: of_event(&r.attributes)?,
            at: r.timestamp,
            service: if of_resource.is_empty() { of_stream } else { of_resource },
            trace_id: r.trace_id,
            span_id: r.span_id,
        })
    }

    /// Returns the scores that a span carries.
    pub fn of_span(s: &Span) -> Vec<Self> {
        let events = s.events.iter().filter(|e| e.name == SCORE_EVENT);
        let mut found: Vec<(Score, TimestampNs)> =
            events.filter_map(|e| Some((of_event(&e.attributes)?, e.timestamp))).collect();
        if s.attributes
            .iter()
            .any(|(k, _)| k.starts_with("evaluations.") || k.starts_with("annotations."))
        {
            for (list, item) in [("evaluations", "evaluation"), ("annotations", "annotation")] {
                found.extend(numbered(&s.attributes, list, item).into_iter().map(|x| (x, s.end)));
            }
        }
        let of = |key: &str| text(&s.attributes, key);
        let one = |(mut score, at): (Score, TimestampNs)| {
            for (slot, keys) in [
                (
                    &mut score.model,
                    &["gen_ai.response.model", "gen_ai.request.model", "llm.model_name"][..],
                ),
                (&mut score.response_id, &["gen_ai.response.id"]),
                (&mut score.session_id, &["gen_ai.conversation.id", "session.id"]),
                (&mut score.user_id, &["user.id", "enduser.id"]),
            ] {
                if slot.is_empty() {
                    *slot = keys.iter().map(|k| of(k)).find(|v| !v.is_empty()).unwrap_or_default();
                }
            }
            Self {
                score,
                at,
                service: service(&s.resource),
                trace_id: Some(s.trace_id),
                span_id: Some(s.span_id),
            }
        };
        found.into_iter().map(one).collect()
    }

    /// Writes the score as it is kept.
    pub fn record(&self) -> LogRecord {
        let service = if self.service.is_empty() { NO_SERVICE } else { &self.service };
        LogRecord {
            stream: Labels::from_pairs([
                (SCORE_NAME, self.score.name.as_str()),
                ("service_name", service),
            ]),
            timestamp: self.at,
            observed: self.at,
            // Texts and one number that was checked: nothing that JSON lacks.
            line: serde_json::to_string(&self.score).unwrap_or_default(),
            trace_id: self.trace_id,
            span_id: self.span_id,
            ..LogRecord::default()
        }
    }

    /// Reads a kept score.
    pub fn read(r: &LogRecord) -> Option<Self> {
        Some(Self {
            score: serde_json::from_str(&r.line).ok()?,
            at: r.timestamp,
            service: Some(r.stream.get("service_name"))
                .filter(|s| *s != NO_SERVICE)
                .unwrap_or_default()
                .to_owned(),
            trace_id: r.trace_id,
            span_id: r.span_id,
        })
    }
}

/// Names of scores that are people's ratings, whoever sent them.
const RATINGS: [&str; 6] =
    ["user_feedback", "user-feedback", "feedback", "rating", "thumbs", "thumbs_up"];
/// Words of verdicts that mean yes, and no.
const GOOD: [&str; 8] =
    ["positive", "thumbs_up", "thumbs-up", "up", "good", "correct", "pass", "like"];
const BAD: [&str; 8] =
    ["negative", "thumbs_down", "thumbs-down", "down", "bad", "incorrect", "fail", "dislike"];

impl Score {
    /// Whether a person said that it is good or bad; `None` for what is no rating. Numbers are good
    /// above zero.
    pub fn rating(&self) -> Option<bool> {
        let is_rating = matches!(self.source.to_ascii_lowercase().as_str(), "human" | "user")
            || RATINGS.contains(&self.name.to_ascii_lowercase().as_str());
        match self.value {
            _ if !is_rating => None,
            Some(v) => Some(v > 0.0),
            None => self.verdict(),
        }
    }

    /// Whether its label says yes or no.
    pub(crate) fn verdict(&self) -> Option<bool> {
        let label = self.label.to_ascii_lowercase();
        let good = GOOD.contains(&label.as_str());
        (good || BAD.contains(&label.as_str())).then_some(good)
    }

    /// What makes a later score take the place of an earlier one: the same says it of the same.
    /// `None` where nobody in particular says it, or of nothing in particular.
    fn place(&self, s: &Scored) -> Option<String> {
        let about = match (s.trace_id, s.span_id) {
            (Some(t), Some(span)) => format!("{t}/{span}"),
            _ if !self.response_id.is_empty() => self.response_id.clone(),
            (Some(t), None) => t.to_string(),
            _ if !self.session_id.is_empty() => self.session_id.clone(),
            _ => return None,
        };
        let who = &self.user_id;
        let is_told = self.rating().is_some() && !who.is_empty();
        is_told.then(|| format!("{}\0{}\0{who}\0{about}", self.name, self.source))
    }
}

/// Leaves of each person's ratings of one thing the latest: who changes their mind is one voice.
/// `scores` are the newest first.
pub fn latest_ratings(scores: &mut Vec<Scored>) {
    let mut seen = HashSet::new();
    scores.retain(|s| s.score.place(s).is_none_or(|p| seen.insert(p)));
}

/// What was said of one call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Said {
    /// Ratings with when they were given.
    pub ratings: Vec<(TimestampNs, bool)>,
    /// Evaluations: names and values.
    pub scores: Vec<(Arc<str>, f64)>,
}

/// Scores by what they are about.
#[derive(Debug, Default)]
pub struct Verdicts {
    by_span: HashMap<(TraceId, SpanId), Said>,
    by_response: HashMap<String, Said>,
    /// Of a trace as a whole, said of the first of its answers that asks.
    by_trace: HashMap<TraceId, Said>,
    names: HashMap<String, Arc<str>>,
}

impl Verdicts {
    /// Sorts scores, the newest first, of which each person's latest counts.
    pub fn of(mut scores: Vec<Scored>) -> Self {
        latest_ratings(&mut scores);
        let mut out = Self::default();
        for s in scores {
            let slot = match (s.trace_id, s.span_id) {
                (Some(t), Some(span)) => out.by_span.entry((t, span)).or_default(),
                _ if !s.score.response_id.is_empty() => {
                    out.by_response.entry(s.score.response_id.clone()).or_default()
                }
                (Some(t), None) => out.by_trace.entry(t).or_default(),
                _ => continue,
            };
            match (s.score.rating(), s.score.value) {
                (Some(good), _) => slot.ratings.push((s.at, good)),
                (None, Some(v)) => {
                    let name = out.names.entry(s.score.name.clone());
                    let name = name.or_insert_with(|| s.score.name.as_str().into());
                    slot.scores.push((name.clone(), v));
                }
                (None, None) => {}
            }
        }
        out
    }

    /// Takes what was said of a call; what was said of its whole trace goes to one answer in it.
    pub fn take(&mut self, c: &LlmCall) -> Option<Said> {
        let response = |m: &mut HashMap<String, Said>| {
            if c.call_id.is_empty() { None } else { m.remove(&c.call_id) }
        };
        self.by_span
            .remove(&(c.trace_id, c.span_id))
            .or_else(|| response(&mut self.by_response))
            .or_else(|| {
                let answers = c.operation.is_generation();
                answers.then(|| self.by_trace.remove(&c.trace_id)).flatten()
            })
    }
}

/// Beyond this, a difference of two shares is told as one: chance makes it once in 740 looks.
pub(crate) const Z_SIGNIFICANT: f64 = 3.0;

/// How many standard errors one share is above another (two-proportion z).
pub(crate) fn significance(a: (f64, usize), b: (f64, usize)) -> f64 {
    let (n, m) = (a.1 as f64, b.1 as f64);
    let pooled = a.0.mul_add(n, b.0 * m) / (n + m);
    let error = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    if error > 0.0 { (a.0 - b.0) / error } else { 0.0 }
}

/// How often an interval holds the true mean.
const CONFIDENCE: f64 = 0.95;

/// A mean with the interval that holds the true one in 95 of 100 cases.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    pub n: usize,
    pub mean: f64,
    pub low: f64,
    pub high: f64,
    /// The share of values above zero.
    pub positive: f64,
}

impl Mean {
    /// Computes it: for values of two kinds (0 and 1, -1 and 1) by Wilson's interval, which holds for
    /// few and for one-sided ones too; for others by Student's t with the deviation of the sample.
    pub fn of(values: &[f64]) -> Option<Self> {
        let (n, z) = (values.len(), z_of(CONFIDENCE));
        let (first, count) = (*values.first()?, n as f64);
        let mean = values.iter().sum::<f64>() / count;
        let positive = values.iter().filter(|v| **v > 0.0).count() as f64 / count;
        let low_kind = if values.contains(&-1.0) { -1.0 } else { 0.0 };
        if values.iter().all(|v| *v == 1.0 || *v == low_kind) {
            let p = positive;
            let middle = (p + z * z / (2.0 * count)) / (1.0 + z * z / count);
            let half = z / (1.0 + z * z / count)
                * (p * (1.0 - p) / count + z * z / (4.0 * count * count)).sqrt();
            let scale = |x: f64| low_kind + x.clamp(0.0, 1.0) * (1.0 - low_kind);
            return Some(Self {
                n,
                mean,
                low: scale(middle - half),
                high: scale(middle + half),
                positive,
            });
        }
        if n < 2 {
            return Some(Self {
                n,
                mean: first,
                low: f64::NEG_INFINITY,
                high: f64::INFINITY,
                positive,
            });
        }
        let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let half = student(n - 1) * (variance / count).sqrt();
        Some(Self { n, mean, low: mean - half, high: mean + half, positive })
    }
}

/// Student's t for 97.5 % with so many degrees of freedom.
fn student(freedom: usize) -> f64 {
    const SMALL: [f64; 10] =
        [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    if let Some(t) = freedom.checked_sub(1).and_then(|i| SMALL.get(i)) {
        return *t;
    }
    // Expansion by Cornish and Fisher; off by less than 0.001 from here on.
    let (v, z) = (freedom as f64, z_of(CONFIDENCE));
    let (z3, z5, z7) = (z.powi(3), z.powi(5), z.powi(7));
    z + (z3 + z) / (4.0 * v)
        + (5.0 * z5 + 16.0 * z3 + 3.0 * z) / (96.0 * v * v)
        + (3.0 * z7 + 19.0 * z5 + 17.0 * z3 - 15.0 * z) / (384.0 * v.powi(3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attributes(pairs: &[(&str, AttributeValue)]) -> Attributes {
        pairs.iter().cloned().collect()
    }

    #[test]
    fn events_and_evaluations_become_scores_and_come_back() {
        let s = |v: &str| AttributeValue::from(v);
        let event = attributes(&[
            ("gen_ai.evaluation.name", s("Relevance")),
            ("gen_ai.evaluation.score.value", AttributeValue::Double(0.8)),
            ("gen_ai.evaluation.score.label", s("relevant")),
            ("gen_ai.response.id", s("r-1")),
        ]);
        let score = of_event(&event).unwrap();
        assert_eq!((score.value, score.label.as_str()), (Some(0.8), "relevant"));
        assert_eq!(of_event(&attributes(&[("gen_ai.evaluation.name", s("x"))])), None);
        let many = attributes(&[
            ("evaluations.0.evaluation.name", s("correct")),
            ("evaluations.0.evaluation.score", AttributeValue::Int(1)),
            ("evaluations.0.evaluation.annotator_kind", s("LLM")),
            ("evaluations.1.evaluation.name", s("tone")),
            ("evaluations.1.evaluation.label", s("polite")),
        ]);
        let found = numbered(&many, "evaluations", "evaluation");
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].value, found[0].source.as_str()), (Some(1.0), "llm"));
        let scored = Scored {
            score,
            at: TimestampNs::from_nanos(5),
            service: "api".into(),
            trace_id: TraceId::from_slice(&[7; 16]),
            span_id: None,
        };
        let record = scored.record();
        assert_eq!(record.stream.get(SCORE_NAME), "Relevance");
        assert_eq!(Scored::read(&record), Some(scored));
        // What is kept is no event that would be kept again.
        assert_eq!(Scored::of_log(&record), None);
    }

    #[test]
    fn who_changes_their_mind_is_one_voice() {
        let rating = |value: f64, user: &str, at: i64| Scored {
            score: Score {
                name: "user_feedback".into(),
                value: Some(value),
                source: "human".into(),
                user_id: user.into(),
                ..Score::default()
            },
            at: TimestampNs::from_nanos(at),
            service: String::new(),
            trace_id: TraceId::from_slice(&[7; 16]),
            span_id: SpanId::from_slice(&[8; 8]),
        };
        let mut list = vec![
            rating(1.0, "ann", 3),
            rating(-1.0, "bob", 2),
            rating(-1.0, "ann", 1),
            rating(1.0, "", 1),
            rating(1.0, "", 0),
        ];
        latest_ratings(&mut list);
        let kept: Vec<i64> = list.iter().map(|s| s.at.nanos()).collect();
        assert_eq!(kept, [3, 2, 1, 0], "ann's first word is gone, nobody's are not");
        let mut relevance = rating(0.4, "", 5);
        relevance.score.name = "relevance".into();
        relevance.score.source = "model".into();
        list.insert(0, relevance);
        let mut v = Verdicts::of(list);
        let c = LlmCall::new(
            TimestampNs::from_nanos(0),
            TraceId::from_slice(&[7; 16]).unwrap(),
            SpanId::from_slice(&[8; 8]).unwrap(),
            obs_model::Dialect::Plain,
        );
        let about_all = Scored { span_id: None, ..rating(1.0, "cy", 9) };
        let mut of_trace = Verdicts::of(vec![about_all]);
        let embedding = LlmCall { operation: obs_model::Operation::Embeddings, ..c.clone() };
        assert_eq!(
            of_trace.take(&embedding),
            None,
            "what was said of a trace is said of its answer"
        );
        assert_eq!(of_trace.take(&c).unwrap().ratings.len(), 1);
        let said = v.take(&c).unwrap();
        assert_eq!(said.ratings.iter().filter(|r| r.1).count(), 3);
        assert_eq!(said.scores, [("relevance".into(), 0.4)]);
        assert_eq!(v.take(&c), None);
    }

    #[test]
    fn intervals_hold_what_they_claim() {
        // Wilson's interval for 8 of 10, from the literature: 0.490 to 0.943.
        let m = Mean::of(&[1., 1., 1., 1., 1., 1., 1., 1., 0., 0.]).unwrap();
        assert!((m.low - 0.4902).abs() < 1e-3 && (m.high - 0.9433).abs() < 1e-3, "{m:?}");
        // The same as ratings of minus one and one.
        let m = Mean::of(&[1., 1., 1., 1., 1., 1., 1., 1., -1., -1.]).unwrap();
        assert!((m.low - (2. * 0.4902 - 1.)).abs() < 2e-3 && (m.mean - 0.6).abs() < 1e-12, "{m:?}");
        assert_eq!(Mean::of(&[1., 1.]).unwrap().high, 1.0);
        assert!(Mean::of(&[1., 1.]).unwrap().low < 0.5, "two are not many");
        assert!((student(30) - 2.0423).abs() < 1e-3 && (student(11) - 2.201).abs() < 1e-3);
        assert!(Mean::of(&[]).is_none() && Mean::of(&[0.4]).unwrap().high.is_infinite());
        // Of 2,000 samples of ten from a known source about 95 % hold its mean.
        let mut seed = 7_u64;
        let mut uniform = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 11) as f64 / (1_u64 << 53) as f64
        };
        let mut held = 0;
        for _ in 0..2000 {
            let sample: Vec<f64> =
                (0..10).map(|_| (0..12).map(|_| uniform()).sum::<f64>()).collect();
            let m = Mean::of(&sample).unwrap();
            held += u32::from(m.low <= 6.0 && 6.0 <= m.high);
        }
        assert!((1860..=1940).contains(&held), "{held}");
    }
}
