//! The canonical LLM call: what every telemetry dialect is translated into.

use crate::{SpanId, TimestampNs, TraceId};
pub use rust_decimal::Decimal as Money;

/// What was asked of the model (OTel `gen_ai.operation.name`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    Chat,
    TextCompletion,
    GenerateContent,
    Embeddings,
    Rerank,
}

impl Operation {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::TextCompletion => "text_completion",
            Self::GenerateContent => "generate_content",
            Self::Embeddings => "embeddings",
            Self::Rerank => "rerank",
        }
    }

    /// Whether an answer is written: what people and evaluators judge.
    pub const fn is_generation(self) -> bool {
        matches!(self, Self::Chat | Self::TextCompletion | Self::GenerateContent)
    }

    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "chat" => Self::Chat,
            "text_completion" | "completion" | "generate" => Self::TextCompletion,
            "generate_content" => Self::GenerateContent,
            "embeddings" | "embedding" => Self::Embeddings,
            "rerank" => Self::Rerank,
            _ => return None,
        })
    }
}

/// The attribute convention a call was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    OtelGenAi,
    OpenInference,
    OpenLlmetry,
    Langfuse,
    VercelAi,
    GoogleAdk,
    Genkit,
    Mlflow,
    PydanticAi,
    LiveKit,
    LiteLlm,
    /// `llm.*` attributes of no convention.
    Plain,
    /// Told by the usage API, not by telemetry.
    UsageApi,
}

const DIALECTS: [(Dialect, &str); 13] = [
    (Dialect::OtelGenAi, "otel_gen_ai"),
    (Dialect::OpenInference, "openinference"),
    (Dialect::OpenLlmetry, "openllmetry"),
    (Dialect::Langfuse, "langfuse"),
    (Dialect::VercelAi, "vercel_ai"),
    (Dialect::GoogleAdk, "google_adk"),
    (Dialect::Genkit, "genkit"),
    (Dialect::Mlflow, "mlflow"),
    (Dialect::PydanticAi, "pydantic_ai"),
    (Dialect::LiveKit, "livekit"),
    (Dialect::LiteLlm, "litellm"),
    (Dialect::Plain, "llm"),
    (Dialect::UsageApi, "usage_api"),
];

impl Dialect {
    pub const fn as_str(self) -> &'static str {
        DIALECTS[self as usize].1
    }

    pub fn parse(name: &str) -> Option<Self> {
        DIALECTS.into_iter().find(|(_, n)| *n == name).map(|(d, _)| d)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallStatus {
    Ok,
    Error,
}

impl CallStatus {
    /// Returns the value of the `status` label of `llm_requests_total`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "success",
            Self::Error => "error",
        }
    }
}

/// Whether a call's cost counts, and if not why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CostState {
    Priced,
    /// No price record for the model, or no token counts to price.
    Unpriced,
    /// The source does not say whether its parts overlap.
    Ambiguous,
    /// Repeats the usage of its descendants.
    Rollup,
    /// The same call, already counted from another span.
    Duplicate,
}

impl CostState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Priced => "priced",
            Self::Unpriced => "unpriced",
            Self::Ambiguous => "ambiguous",
            Self::Rollup => "rollup",
            Self::Duplicate => "duplicate",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "priced" => Self::Priced,
            "unpriced" => Self::Unpriced,
            "ambiguous" => Self::Ambiguous,
            "rollup" => Self::Rollup,
            "duplicate" => Self::Duplicate,
            _ => return None,
        })
    }
}

/// Token counts whose parts never overlap: their sum is what the provider bills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenUsage {
    /// Input tokens neither read from nor written to a cache, and not audio.
    pub input: u64,
    pub cache_read: u64,
    /// Written to the provider's default (5 minute) cache, or of unknown lifetime.
    pub cache_write: u64,
    pub cache_write_1h: u64,
    pub audio_input: u64,
    /// Output tokens neither reasoning nor audio.
    pub output: u64,
    pub reasoning: u64,
    pub audio_output: u64,
    pub image_input: u64,
    pub image_output: u64,
    /// Searches and other units that a provider bills beside tokens; no part of any sum.
    pub search_units: u64,
}

impl TokenUsage {
    pub const fn input_total(&self) -> u64 {
        self.input
            .saturating_add(self.cache_read)
            .saturating_add(self.cache_write)
            .saturating_add(self.cache_write_1h)
            .saturating_add(self.audio_input)
            .saturating_add(self.image_input)
    }

    pub const fn output_total(&self) -> u64 {
        self.output
            .saturating_add(self.reasoning)
            .saturating_add(self.audio_output)
            .saturating_add(self.image_output)
    }

    pub const fn total(&self) -> u64 {
        self.input_total().saturating_add(self.output_total())
    }
}

/// The finish reason of answers that a filter or the model withheld, whatever the provider calls it.
pub const CONTENT_FILTER: &str = "content_filter";

/// One request to a model, whichever dialect told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct LlmCall {
    pub start: TimestampNs,
    pub end: TimestampNs,
    pub trace_id: TraceId,
    pub span_id: SpanId,
    /// The provider's response id, or empty.
    pub call_id: String,
    pub service: String,
    pub environment: String,
    /// Canonical provider (`openai`, `anthropic`, `aws.bedrock`, …), or empty.
    pub provider: String,
    pub request_model: String,
    pub response_model: String,
    pub operation: Operation,
    pub status: CallStatus,
    pub error_type: String,
    pub finish_reason: String,
    pub user_id: String,
    pub session_id: String,
    pub team: String,
    pub project: String,
    pub agent: String,
    pub prompt_name: String,
    pub prompt_version: String,
    pub tags: Vec<String>,
    pub tokens: TokenUsage,
    /// Milliseconds from the request to the first token, when the source tells.
    pub time_to_first_token_ms: Option<f64>,
    /// USD; `None` unless `cost_state` is priced (or ambiguous: then the lower bound).
    pub cost: Option<CallCost>,
    pub cost_state: CostState,
    /// The cost that the telemetry itself claimed, in USD.
    pub reported_cost: Option<Money>,
    pub dialect: Dialect,
    pub organization: String,
    /// How the provider served it: `batch`, `flex`, `priority`, or empty for the standard way.
    pub service_tier: String,
    pub region: String,
    /// What the provider says of the system behind the model (`system_fingerprint`).
    pub fingerprint: String,
    /// Which attribute each count came from and how overlaps were solved.
    pub evidence: String,
    /// Whether tokens were missing and counted from the text.
    pub estimated: bool,
    /// The upper bound, in USD, of a call whose state is ambiguous.
    pub cost_max: Option<Money>,
    /// What is known of a call is never changed but told again: the highest revision holds.
    pub revision: u32,
    /// When this revision was written.
    pub booked_at: TimestampNs,
    /// Why a later revision was written.
    pub reason: String,
    /// Further attributes that somebody asks by (`key`, and those that configuration or a budget
    /// names), by name.
    pub attributes: Vec<(String, String)>,
    /// The direction of what was said: an embedding on at most 32 fixed axes. Empty without one.
    pub embedding: Vec<f32>,
}

/// A priced amount and the price record it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct CallCost {
    pub input: Money,
    pub cache_read: Money,
    pub cache_write: Money,
    pub output: Money,
    pub request: Money,
    /// Id of the price record, `book-version/provider/model`.
    pub price_id: String,
}

impl CallCost {
    /// Returns the parts by their names.
    pub const fn parts(&self) -> [(&'static str, Money); 5] {
        [
            ("input", self.input),
            ("cache_read", self.cache_read),
            ("cache_write", self.cache_write),
            ("output", self.output),
            ("request", self.request),
        ]
    }

    /// Returns the sum of the parts in USD.
    pub fn total(&self) -> Money {
        self.parts().into_iter().map(|p| p.1).sum()
    }
}

impl LlmCall {
    /// Returns a call of which nothing else is known: no names, no tokens, no price.
    pub fn new(start: TimestampNs, trace_id: TraceId, span_id: SpanId, dialect: Dialect) -> Self {
        Self {
            start,
            end: start,
            trace_id,
            span_id,
            call_id: String::new(),
            service: String::new(),
            environment: String::new(),
            provider: String::new(),
            request_model: String::new(),
            response_model: String::new(),
            operation: Operation::Chat,
            status: CallStatus::Ok,
            error_type: String::new(),
            finish_reason: String::new(),
            user_id: String::new(),
            session_id: String::new(),
            team: String::new(),
            project: String::new(),
            agent: String::new(),
            prompt_name: String::new(),
            prompt_version: String::new(),
            tags: Vec::new(),
            tokens: TokenUsage::default(),
            time_to_first_token_ms: None,
            cost: None,
            cost_state: CostState::Unpriced,
            reported_cost: None,
            dialect,
            organization: String::new(),
            service_tier: String::new(),
            region: String::new(),
            fingerprint: String::new(),
            evidence: String::new(),
            estimated: false,
            cost_max: None,
            revision: 0,
            booked_at: start,
            reason: String::new(),
            attributes: Vec::new(),
            embedding: Vec::new(),
        }
    }

    /// Returns a further attribute, or the empty text.
    pub fn attribute(&self, name: &str) -> &str {
        self.attributes.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// Keeps a further attribute; an empty one, and one that is there, changes nothing.
    pub fn keep_attribute(&mut self, name: &str, value: String) {
        if !value.is_empty() && self.attribute(name).is_empty() {
            self.attributes.push((name.to_owned(), value));
            self.attributes.sort_unstable();
        }
    }

    pub fn duration_ms(&self) -> f64 {
        self.end.nanos().saturating_sub(self.start.nanos()) as f64 / 1e6
    }

    /// Whether the usage is counted by another call too, so that sums leave this one out.
    pub const fn is_repeated(&self) -> bool {
        matches!(self.cost_state, CostState::Rollup | CostState::Duplicate)
    }

    /// Whether a filter or the model itself withheld the answer.
    pub fn is_refused(&self) -> bool {
        self.finish_reason == CONTENT_FILTER
    }

    /// Makes the usage count elsewhere, as a roll-up or a duplicate: then it costs nothing here.
    pub fn count_elsewhere(&mut self, state: CostState) {
        self.cost_state = state;
        (self.cost, self.cost_max) = (None, None);
    }

    /// Returns the cost that counts, in USD: zero while it is unknown.
    pub fn cost_usd(&self) -> Money {
        self.cost.as_ref().map_or(Money::ZERO, CallCost::total)
    }

    /// Returns the served model, or the requested one when the response did not name it.
    pub fn model(&self) -> &str {
        if self.response_model.is_empty() { &self.request_model } else { &self.response_model }
    }

    pub fn size_bytes(&self) -> usize {
        let attributes = self.attributes.iter().map(|(n, v)| n.len() + v.len() + 48);
        840 + self.evidence.len()
            + self.tags.iter().map(|t| t.len() + 24).sum::<usize>()
            + attributes.sum::<usize>()
            + self.embedding.len() * 4
    }
}

/// A part of a message (`facts`: OTel GenAI message parts).
#[derive(Debug, Clone, PartialEq)]
pub enum MessagePart {
    Text(String),
    Reasoning(String),
    ToolCall {
        id: String,
        name: String,
        arguments: String,
    },
    ToolResult {
        id: String,
        content: String,
    },
    Media(Media),
    /// Anything else; a short description.
    Other {
        kind: String,
        detail: String,
    },
}

/// An image, a sound, a video or a document in a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// `image`, `audio`, `video`, `document`; empty if nobody says.
    pub modality: String,
    /// `image/png`; may be empty.
    pub mime_type: String,
    pub at: MediaAt,
}

/// Where media is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaAt {
    Uri(String),
    /// The provider's id of an uploaded file.
    File(String),
    /// Base64 in the message itself.
    Inline(String),
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    pub parts: Vec<MessagePart>,
    pub finish_reason: String,
}
