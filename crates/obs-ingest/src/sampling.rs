//! Head sampling: which share of traces clients should begin, from Jaeger's strategies file, fixed
//! or steered towards a number of traces a second.

use obs_model::{Span, TimestampNs};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// What a client is told for a service, or for one of its operations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rate {
    /// Share of traces, 0 to 1.
    Probability(f64),
    /// Traces a second, whatever the traffic.
    PerSecond(f64),
}

/// The answer to a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Strategy {
    pub rate: Rate,
    /// Share by operation; the service's rate holds for others.
    pub operations: BTreeMap<String, f64>,
    /// Traces a second that an operation gets at least.
    pub lower_bound: f64,
}

/// Share of services that no strategy names.
pub const DEFAULT_PROBABILITY: f64 = 0.001;

#[derive(Debug, Clone, Default, Deserialize)]
struct FileStrategy {
    #[serde(default)]
    service: String,
    #[serde(default)]
    operation: String,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    param: Option<f64>,
    #[serde(default)]
    operation_strategies: Vec<Self>,
    // Of adaptive strategies.
    #[serde(default, alias = "targetSamplesPerSecond", alias = "target_traces_per_second")]
    target_samples_per_second: Option<f64>,
    #[serde(default, alias = "maxTracesPerSecond")]
    max_traces_per_second: Option<f64>,
    #[serde(default, alias = "initialSamplingProbability")]
    initial_sampling_probability: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    service_strategies: Vec<FileStrategy>,
    #[serde(default)]
    default_strategy: Option<FileStrategy>,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Fixed(Rate),
    /// Towards so many traces a second, from a first share on.
    Adaptive {
        target: f64,
        initial: f64,
    },
}

#[derive(Debug, Clone, PartialEq)]
struct Service {
    rule: Rule,
    operations: BTreeMap<String, f64>,
}

/// The strategies of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Strategies {
    services: HashMap<String, Service>,
    default: Service,
    /// Seconds between looks at the rates of adaptive strategies.
    look_seconds: f64,
}

impl Default for Strategies {
    fn default() -> Self {
        let rule = Rule::Fixed(Rate::Probability(DEFAULT_PROBABILITY));
        let default = Service { rule, operations: BTreeMap::new() };
        Self { services: HashMap::new(), default, look_seconds: LOOK_SECONDS }
    }
}

fn probability(p: f64, of: &str) -> Result<f64, String> {
    if (0.0..=1.0).contains(&p) {
        Ok(p)
    } else {
        Err(format!("sampling probability of {of} is {p}, not between 0 and 1"))
    }
}

impl FileStrategy {
    fn rule(&self, of: &str) -> Result<Rule, String> {
        let param = self.param.unwrap_or(0.0);
        match self.kind.as_str() {
            "probabilistic" => Ok(Rule::Fixed(Rate::Probability(probability(param, of)?))),
            "ratelimiting" if param >= 0.0 => Ok(Rule::Fixed(Rate::PerSecond(param))),
            "ratelimiting" => Err(format!("rate of {of} is {param}, below zero")),
            "adaptive" => {
                let target = self
                    .target_samples_per_second
                    .or(self.max_traces_per_second)
                    .or(self.param)
                    .unwrap_or(1.0);
                let initial = self.initial_sampling_probability.unwrap_or(DEFAULT_PROBABILITY);
                if target <= 0.0 || !target.is_finite() {
                    return Err(format!("adaptive target of {of} must be above zero"));
                }
                Ok(Rule::Adaptive { target, initial: probability(initial, of)? })
            }
            other => Err(format!(
                "strategy type {other:?} of {of} is unknown: write probabilistic, ratelimiting or adaptive"
            )),
        }
    }

    fn service(&self, of: &str) -> Result<Service, String> {
        let mut operations = BTreeMap::new();
        for o in &self.operation_strategies {
            let name = format!("{of}, operation {:?}", o.operation);
            // Operations have shares alone; clients know nothing else.
            match o.rule(&name)? {
                Rule::Fixed(Rate::Probability(p)) => {
                    operations.insert(o.operation.clone(), p);
                }
                _ => {
                    return Err(format!("{name}: an operation's strategy must be probabilistic"));
                }
            }
        }
        Ok(Service { rule: self.rule(of)?, operations })
    }
}

impl Strategies {
    /// Names of built-in strategies, the default first.
    pub const PROFILES: [&'static str; 2] = ["observatory", "llm-optimizer"];

    /// Returns built-in strategies.
    ///
    /// # Errors
    /// When there are none of the name.
    pub fn of_profile(name: &str) -> Result<Self, String> {
        match name {
            "observatory" => Self::parse(include_str!("../sampling/observatory.json")),
            "llm-optimizer" => Self::parse(include_str!("../sampling/llm-optimizer.json")),
            _ => Err(format!("no sampling profile {name:?}")),
        }
    }

    /// Reads Jaeger's strategies file.
    ///
    /// # Errors
    /// With what is wrong, and where.
    pub fn parse(json: &str) -> Result<Self, String> {
        let file: File = serde_json::from_str(json).map_err(|e| e.to_string())?;
        let default = match &file.default_strategy {
            Some(d) => d.service("the default strategy")?,
            None => Self::default().default,
        };
        let mut services = HashMap::new();
        for s in &file.service_strategies {
            if s.service.is_empty() {
                return Err("a service strategy names no service".into());
            }
            let mut service = s.service(&format!("service {:?}", s.service))?;
            // What the default says of an operation holds where a service says nothing of it.
            if matches!(service.rule, Rule::Fixed(Rate::Probability(_))) {
                for (name, p) in &default.operations {
                    service.operations.entry(name.clone()).or_insert(*p);
                }
            }
            services.insert(s.service.clone(), service);
        }
        Ok(Self { services, default, ..Self::default() })
    }

    /// Sets how often the rates of adaptive strategies are looked at.
    ///
    /// # Errors
    /// When that is more often than rates are counted, or hardly ever.
    pub fn every(mut self, seconds: u32) -> Result<Self, String> {
        if !(5..=3600).contains(&seconds) {
            return Err(format!("{seconds} seconds are not between 5 and 3600"));
        }
        self.look_seconds = f64::from(seconds);
        Ok(self)
    }

    fn of(&self, service: &str) -> &Service {
        self.services.get(service).unwrap_or(&self.default)
    }

    fn is_adaptive(&self) -> bool {
        let mut all = self.services.values().chain([&self.default]);
        all.any(|s| matches!(s.rule, Rule::Adaptive { .. }))
    }
}

/// How an operation is steered.
#[derive(Debug, Clone, Copy)]
struct Steered {
    probability: f64,
    /// Traces begun since the last look.
    traces: u64,
}

/// Operations that are steered at once; more get the initial share.
const STEERED_MAX: usize = 10_000;
const PROBABILITY_MIN: f64 = 1e-5;
/// A rate this near its target is left alone.
const TOLERANCE: f64 = 0.3;
/// A share grows by this much a look at most.
const GROWTH_MAX: f64 = 0.5;
/// Seconds between looks unless configured, as Jaeger's calculation interval.
const LOOK_SECONDS: f64 = 60.0;

#[derive(Debug, Default)]
struct State {
    steered: HashMap<(String, String), Steered>,
    looked: Option<TimestampNs>,
}

/// Answers clients, and steers operations by the traces that come in.
#[derive(Debug, Default)]
pub struct Sampling {
    strategies: RwLock<Arc<Strategies>>,
    state: Mutex<State>,
}

impl Sampling {
    /// Replaces the strategies; what was learnt about operations stays.
    pub fn set(&self, s: Strategies) {
        *self.strategies.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(s);
    }

    fn strategies(&self) -> Arc<Strategies> {
        self.strategies.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what a service's clients should do.
    pub fn strategy(&self, service: &str) -> Strategy {
        let strategies = self.strategies();
        let s = strategies.of(service);
        let mut operations = s.operations.clone();
        let (rate, lower_bound) = match s.rule {
            Rule::Fixed(rate) => (rate, 0.0),
            Rule::Adaptive { initial, .. } => {
                let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                let own = state.steered.iter().filter(|((of, _), _)| of == service);
                for ((_, operation), s) in own {
                    operations.entry(operation.clone()).or_insert(s.probability);
                }
                // One trace a minute of an operation, however rare it is.
                (Rate::Probability(initial), 1.0 / 60.0)
            }
        };
        Strategy { rate, operations, lower_bound }
    }

    /// Counts the traces that spans begin.
    pub fn observe(&self, spans: &[Span]) {
        let strategies = self.strategies();
        if !strategies.is_adaptive() {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for s in spans.iter().filter(|s| s.parent_id.is_none()) {
            let Rule::Adaptive { initial, .. } = strategies.of(s.service()).rule else { continue };
            let key = (s.service().to_owned(), s.name.clone());
            let is_full = state.steered.len() >= STEERED_MAX;
            match state.steered.get_mut(&key) {
                Some(o) => o.traces += 1,
                None if is_full => {}
                None => {
                    state.steered.insert(key, Steered { probability: initial, traces: 1 });
                }
            }
        }
    }

    /// Moves shares towards their targets, when it is time again.
    pub fn tick(&self, now: TimestampNs) {
        let strategies = self.strategies();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(looked) = state.looked else {
            state.looked = Some(now);
            return;
        };
        let seconds = now.nanos().saturating_sub(looked.nanos()) as f64 / 1e9;
        if seconds < strategies.look_seconds {
            return;
        }
        state.looked = Some(now);
        state.steered.retain(|(service, _), o| {
            let Rule::Adaptive { target, .. } = strategies.of(service).rule else { return false };
            o.probability = steer(o.probability, o.traces as f64 / seconds, target);
            o.traces = 0;
            true
        });
    }
}

/// Returns the next share of an operation of which `rate` traces a second came in.
fn steer(probability: f64, rate: f64, target: f64) -> f64 {
    let next = if rate == 0.0 {
        probability * 2.0
    } else if (rate - target).abs() / target <= TOLERANCE {
        probability
    } else {
        let wanted = probability * target / rate;
        if wanted > probability { wanted.min(probability * (1.0 + GROWTH_MAX)) } else { wanted }
    };
    next.clamp(PROBABILITY_MIN, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::{Attributes, Resource, SpanId, SpanKind, SpanStatus, TraceId};

    const FILE: &str = r#"{
      "service_strategies": [
        {"service": "llm-observatory-collector", "type": "probabilistic", "param": 1.0,
         "operation_strategies": [{"operation": "otlp.receive", "type": "probabilistic", "param": 1.0}]},
        {"service": "llm-observatory-storage", "type": "probabilistic", "param": 0.1,
         "operation_strategies": [
           {"operation": "write_span", "type": "probabilistic", "param": 0.01},
           {"operation": "query_traces", "type": "probabilistic", "param": 1.0}]},
        {"service": "batch", "type": "ratelimiting", "param": 5},
        {"service": "api-gateway", "type": "adaptive", "max_traces_per_second": 50}
      ],
      "default_strategy": {"type": "probabilistic", "param": 0.001,
        "operation_strategies": [{"operation": "GET /health", "type": "probabilistic", "param": 0.0}]}
    }"#;

    fn root(service: &str, name: &str) -> Span {
        Span {
            trace_id: TraceId::from_slice(&[1; 16]).unwrap(),
            span_id: SpanId::from_slice(&[1; 8]).unwrap(),
            parent_id: None,
            name: name.into(),
            kind: SpanKind::Server,
            start: TimestampNs::from_nanos(0),
            end: TimestampNs::from_nanos(0),
            status: SpanStatus::Unset,
            trace_state: String::new(),
            attributes: Attributes::default(),
            events: vec![],
            links: vec![],
            resource: Arc::new(Resource {
                attributes: Attributes::from_iter([("service.name", service)]),
            }),
            scope: Arc::default(),
        }
    }

    #[test]
    fn a_file_is_read_as_jaeger_reads_it() {
        let s = Sampling::default();
        assert_eq!(s.strategy("any").rate, Rate::Probability(0.001));
        s.set(Strategies::parse(FILE).unwrap());
        let storage = s.strategy("llm-observatory-storage");
        assert_eq!(storage.rate, Rate::Probability(0.1));
        let expected = [("GET /health", 0.0), ("query_traces", 1.0), ("write_span", 0.01)];
        let got: Vec<_> = storage.operations.iter().map(|(k, v)| (k.as_str(), *v)).collect();
        assert_eq!(got, expected);
        assert_eq!(s.strategy("batch").rate, Rate::PerSecond(5.0));
        let unknown = s.strategy("unknown");
        assert_eq!((unknown.rate, unknown.operations.len()), (Rate::Probability(0.001), 1));
        for (bad, part) in [
            (r#"{"default_strategy":{"type":"probabilistic","param":2}}"#, "not between"),
            (r#"{"default_strategy":{"type":"often","param":1}}"#, "unknown"),
            (r#"{"service_strategies":[{"type":"probabilistic","param":1}]}"#, "no service"),
            ("[", "EOF"),
        ] {
            let e = Strategies::parse(bad).unwrap_err();
            assert!(e.contains(part), "{e}");
        }
    }

    #[test]
    fn profiles_are_built_in() {
        let rate = |profile: &str, service: &str| {
            let s = Sampling::default();
            s.set(Strategies::of_profile(profile).unwrap());
            s.strategy(service)
        };
        assert!(Strategies::PROFILES.iter().all(|p| Strategies::of_profile(p).is_ok()));
        let storage = rate("observatory", "llm-observatory-storage");
        assert_eq!(
            (storage.rate, storage.operations["write_span"]),
            (Rate::Probability(0.1), 0.01)
        );
        let ml = rate("llm-optimizer", "ml-service");
        assert_eq!(ml.rate, Rate::Probability(0.1));
        assert_eq!(ml.operations["POST /api/v1/ml/predict"], 0.5);
        assert_eq!(ml.operations["GET /health"], 0.001);
    }

    #[test]
    fn an_operation_is_steered_to_its_target() {
        let s = Sampling::default();
        s.set(Strategies::parse(FILE).unwrap());
        let minute = |n: i64| TimestampNs::from_nanos(n * 60_000_000_000);
        s.tick(minute(0));
        // 100,000 requests a second, of which the share told so far arrives.
        let requests = 100_000.0;
        for n in 1..=30 {
            let share = s.strategy("api-gateway").operations.get("op").copied().unwrap_or(0.001);
            let spans = vec![root("api-gateway", "op"); 1000];
            let mut left = (requests * 60.0 * share) as usize;
            while left > 0 {
                let now = left.min(1000);
                s.observe(&spans[..now]);
                left -= now;
            }
            s.tick(minute(n));
        }
        let rate = requests * s.strategy("api-gateway").operations["op"];
        assert!((35.0..=65.0).contains(&rate), "{rate} traces a second");
        assert_eq!(s.strategy("batch").operations.len(), 0);
    }
}
