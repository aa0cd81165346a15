//! Sums of calls by what they are asked by: model, team, day and so on.

use crate::call::KEY;
use obs_model::{CallStatus, CostState, DAY_NS, LlmCall, Money, TimestampNs};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What calls are summed by. An attribute that a call lacks is the empty text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dimension {
    Provider,
    Model,
    RequestModel,
    Service,
    Environment,
    User,
    Session,
    Team,
    Project,
    Organization,
    Agent,
    Prompt,
    PromptVersion,
    Operation,
    Status,
    FinishReason,
    CostState,
    ServiceTier,
    Region,
    PriceId,
    /// A call counts under each of its tags.
    Tag,
    Hour,
    Day,
    Week,
    Month,
    /// The provider's or gateway's id of the key that paid.
    Key,
    /// A further attribute, by its whole name here: `attribute:customer.id`.
    Attribute(Arc<str>),
}

/// What names of further attributes begin with.
const ATTRIBUTE: &str = "attribute:";
/// Bytes that the name of a further attribute may have.
const ATTRIBUTE_BYTES_MAX: usize = 128;

const NAMES: [(&str, Dimension); 26] = [
    ("provider", Dimension::Provider),
    ("model", Dimension::Model),
    ("request_model", Dimension::RequestModel),
    ("service", Dimension::Service),
    ("environment", Dimension::Environment),
    ("user", Dimension::User),
    ("session", Dimension::Session),
    ("team", Dimension::Team),
    ("project", Dimension::Project),
    ("organization", Dimension::Organization),
    ("agent", Dimension::Agent),
    ("prompt", Dimension::Prompt),
    ("prompt_version", Dimension::PromptVersion),
    ("operation", Dimension::Operation),
    ("status", Dimension::Status),
    ("finish_reason", Dimension::FinishReason),
    ("cost_state", Dimension::CostState),
    ("service_tier", Dimension::ServiceTier),
    ("region", Dimension::Region),
    ("price_id", Dimension::PriceId),
    ("tag", Dimension::Tag),
    ("hour", Dimension::Hour),
    ("day", Dimension::Day),
    ("week", Dimension::Week),
    ("month", Dimension::Month),
    ("key", Dimension::Key),
];

impl Dimension {
    /// Returns the dimension of a name; the peers' `user_id` and the like are known too.
    pub fn parse(name: &str) -> Option<Self> {
        let name = match name {
            "user_id" => "user",
            "session_id" => "session",
            "project_id" => "project",
            "organization_id" | "org" => "organization",
            "model_id" => "model",
            "env" => "environment",
            "tags" => "tag",
            "api_key" | "api_key_id" | "key_id" => "key",
            other => other,
        };
        if let Some(attribute) = name.strip_prefix(ATTRIBUTE) {
            let fits = (1..=ATTRIBUTE_BYTES_MAX).contains(&attribute.len());
            return fits.then(|| Self::Attribute(name.into()));
        }
        NAMES.iter().find(|(n, _)| *n == name).map(|(_, d)| d.clone())
    }

    pub fn name(&self) -> &str {
        match self {
            Self::Attribute(name) => name,
            _ => NAMES.iter().find(|(_, d)| d == self).map_or("", |(n, _)| n),
        }
    }

    /// Returns the attribute's name, of a further attribute.
    pub fn attribute(&self) -> Option<&str> {
        match self {
            Self::Attribute(name) => name.strip_prefix(ATTRIBUTE),
            _ => None,
        }
    }

    /// Returns what can be asked for, for messages.
    pub fn names() -> String {
        let names = NAMES.iter().map(|(n, _)| *n).chain(["attribute:NAME"]);
        names.collect::<Vec<_>>().join(", ")
    }

    /// Returns whether something holds of a value under which a call counts: one, or one a tag.
    pub fn any(&self, c: &LlmCall, mut holds: impl FnMut(&str) -> bool) -> bool {
        match self {
            Self::Provider => holds(&c.provider),
            Self::Model => holds(c.model()),
            Self::RequestModel => holds(&c.request_model),
            Self::Service => holds(&c.service),
            Self::Environment => holds(&c.environment),
            Self::User => holds(&c.user_id),
            Self::Session => holds(&c.session_id),
            Self::Team => holds(&c.team),
            Self::Project => holds(&c.project),
            Self::Organization => holds(&c.organization),
            Self::Agent => holds(&c.agent),
            Self::Prompt => holds(&c.prompt_name),
            Self::PromptVersion => holds(&c.prompt_version),
            Self::Operation => holds(c.operation.as_str()),
            Self::Status => holds(c.status.as_str()),
            Self::FinishReason => holds(&c.finish_reason),
            Self::CostState => holds(c.cost_state.as_str()),
            Self::ServiceTier => holds(&c.service_tier),
            Self::Region => holds(&c.region),
            Self::PriceId => holds(c.cost.as_ref().map_or("", |x| &x.price_id)),
            Self::Tag if c.tags.is_empty() => holds(""),
            Self::Tag => c.tags.iter().any(|t| holds(t)),
            Self::Hour => {
                holds(&format!("{}:00:00Z", c.start.to_string().get(..13).unwrap_or_default()))
            }
            Self::Day => holds(&day_text(c.start.nanos().div_euclid(DAY_NS))),
            Self::Week => {
                let today = c.start.nanos().div_euclid(DAY_NS);
                // 1970-01-01 was a Thursday; weeks begin on Monday.
                holds(&day_text(today - (today + 3).rem_euclid(7)))
            }
            Self::Month => holds(c.start.to_string().get(..7).unwrap_or_default()),
            Self::Key => holds(c.attribute(KEY)),
            Self::Attribute(_) => holds(c.attribute(self.attribute().unwrap_or_default())),
        }
    }

    /// Returns the values under which a call counts: one, or one a tag.
    pub fn values(&self, c: &LlmCall) -> Vec<String> {
        let mut out = Vec::new();
        self.any(c, |v| {
            out.push(v.to_owned());
            false
        });
        out
    }

    /// Returns whether a call has one of some values here. A value may end in `*`.
    pub fn matches(&self, c: &LlmCall, wanted: &[String]) -> bool {
        self.any(c, |have| wanted.iter().any(|want| fits(have, want)))
    }
}

/// Whether a value is what is wanted, or begins so where that ends in `*`.
pub(crate) fn fits(have: &str, want: &str) -> bool {
    want.strip_suffix('*').map_or(have == want, |start| have.starts_with(start))
}

/// Returns the date of a number of days since 1970.
pub fn day_text(day: i64) -> String {
    let text = TimestampNs::from_nanos(day.saturating_mul(DAY_NS)).to_string();
    text.get(..10).unwrap_or_default().to_owned()
}

/// What a set of calls amounts to. Repeated calls (roll-ups, duplicates) are not in any sum.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Totals {
    pub requests: u64,
    pub errors: u64,
    pub unpriced: u64,
    pub ambiguous: u64,
    pub estimated: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cached_tokens: u64,
    pub cache_write_tokens: u64,
    pub reasoning_tokens: u64,
    /// USD by part: input (cache included) and output (request fees included).
    pub input_usd: Money,
    pub output_usd: Money,
    pub usd: Money,
    /// What ambiguous calls may cost more.
    pub uncertain_usd: Money,
    /// What the telemetry itself claimed, over the calls that claim something, and what those
    /// calls cost by the book.
    pub reported_usd: Money,
    pub reported_computed_usd: Money,
}

impl Totals {
    pub fn add(&mut self, c: &LlmCall) {
        if c.is_repeated() {
            return;
        }
        self.requests += 1;
        self.errors += u64::from(c.status == CallStatus::Error);
        self.unpriced += u64::from(c.cost_state == CostState::Unpriced);
        self.ambiguous += u64::from(c.cost_state == CostState::Ambiguous);
        self.estimated += u64::from(c.estimated);
        let t = &c.tokens;
        self.input_tokens += t.input_total();
        self.output_tokens += t.output_total();
        self.cached_tokens += t.cache_read;
        self.cache_write_tokens += t.cache_write.saturating_add(t.cache_write_1h);
        self.reasoning_tokens += t.reasoning;
        if let Some(x) = &c.cost {
            let input = x.input.saturating_add(x.cache_read).saturating_add(x.cache_write);
            self.input_usd = self.input_usd.saturating_add(input);
            self.output_usd = self.output_usd.saturating_add(x.output).saturating_add(x.request);
            self.usd = self.usd.saturating_add(x.total());
            if let Some(most) = c.cost_max {
                let more = most.saturating_sub(x.total());
                self.uncertain_usd = self.uncertain_usd.saturating_add(more);
            }
        }
        if let Some(claimed) = c.reported_cost {
            self.reported_usd = self.reported_usd.saturating_add(claimed);
            self.reported_computed_usd = self.reported_computed_usd.saturating_add(c.cost_usd());
        }
    }

    pub const fn tokens(&self) -> u64 {
        self.input_tokens.saturating_add(self.output_tokens)
    }

    pub fn usd_per_request(&self) -> Money {
        self.usd.checked_div(Money::from(self.requests)).unwrap_or_default()
    }

    pub fn usd_per_1k_tokens(&self) -> Money {
        let thousands = Money::from(self.tokens()).checked_div(Money::ONE_THOUSAND);
        thousands.and_then(|t| self.usd.checked_div(t)).unwrap_or_default()
    }
}

/// Groups beyond which values are summed under [`OTHERS`].
const GROUPS_MAX: usize = 100_000;
pub const OTHERS: &str = "(others)";

/// Totals of everything, and by the values of some dimensions.
#[derive(Debug, Clone, Default)]
pub struct Report {
    by: Vec<Dimension>,
    pub total: Totals,
    pub groups: BTreeMap<Vec<String>, Totals>,
}

impl Report {
    pub fn new(by: Vec<Dimension>) -> Self {
        Self { by, ..Self::default() }
    }

    pub fn add(&mut self, c: &LlmCall) {
        if c.is_repeated() {
            return;
        }
        self.total.add(c);
        if self.by.is_empty() {
            return;
        }
        let mut keys: Vec<Vec<String>> = vec![Vec::new()];
        for d in &self.by {
            let values = d.values(c);
            keys = keys
                .into_iter()
                .flat_map(|k| values.iter().map(move |v| [k.clone(), vec![v.clone()]].concat()))
                .collect();
        }
        for mut key in keys {
            if self.groups.len() >= GROUPS_MAX && !self.groups.contains_key(&key) {
                key = vec![OTHERS.to_owned(); self.by.len()];
            }
            self.groups.entry(key).or_default().add(c);
        }
    }

    /// Returns the groups, the most expensive first.
    pub fn ranked(&self) -> Vec<(&[String], &Totals)> {
        let mut out: Vec<_> = self.groups.iter().map(|(k, t)| (k.as_slice(), t)).collect();
        out.sort_by(|a, b| b.1.usd.cmp(&a.1.usd).then(a.0.cmp(b.0)));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage_call;

    #[test]
    fn days_weeks_months_and_tags() {
        let at = |t: &str| {
            let mut c = usage_call("p", "m", TimestampNs::parse_rfc3339(t).unwrap());
            c.tags = vec!["a".into(), "b".into()];
            c
        };
        let sunday = at("2026-11-22T23:59:59Z");
        let values = |d: Dimension| d.values(&sunday).join(",");
        assert_eq!(values(Dimension::Day), "2026-11-22");
        assert_eq!(values(Dimension::Week), "2026-11-16");
        assert_eq!(values(Dimension::Month), "2026-11");
        assert_eq!(values(Dimension::Hour), "2026-11-22T23:00:00Z");
        let mut r = Report::new(vec![Dimension::Tag, Dimension::Day]);
        r.add(&sunday);
        r.add(&at("2026-11-23T00:00:00Z"));
        assert_eq!((r.groups.len(), r.total.requests), (4, 2));
        assert!(Dimension::Model.matches(&sunday, &["x".into(), "m*".into()]));
        assert!(!Dimension::Model.matches(&sunday, &["mm".into()]));
        for (n, d) in NAMES {
            assert_eq!((Dimension::parse(n).as_ref(), d.name()), (Some(&d), n));
        }
        let tier = Dimension::parse("attribute:customer.tier").unwrap();
        assert_eq!(tier.name(), "attribute:customer.tier");
        let mut c = sunday.clone();
        c.keep_attribute("customer.tier", "gold".into());
        c.keep_attribute(KEY, "k-1".into());
        assert_eq!(
            (tier.values(&c), Dimension::Key.values(&c)),
            (vec!["gold".into()], vec!["k-1".into()])
        );
        assert_eq!(
            (tier.values(&sunday), Dimension::parse("attribute:")),
            (vec![String::new()], None)
        );
    }
}
