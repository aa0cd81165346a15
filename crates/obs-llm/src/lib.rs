//! LLM semantics: telemetry dialects → canonical calls, the price book, messages.
//!
//! Pure functions over the model's types: no HTTP, no storage, no clock. A span becomes an
//! [`LlmCall`](obs_model::LlmCall) through [`call_from_span`], a cost through
//! [`PriceBook::price`], and a conversation through [`messages_of`].

mod call;
mod messages;
mod price;
mod provider;
mod tokens;

pub use call::{call_from_span, is_llm_event};
pub use messages::{Conversation, messages_of};
pub use price::{PriceBook, PriceBookError, PriceRecord, Tier};
