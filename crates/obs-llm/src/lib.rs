//! LLM semantics: telemetry dialects → canonical calls, the price book, messages.
//!
//! Pure functions over the model's types: no HTTP, no storage, no clock. A span becomes an
//! [`LlmCall`](obs_model::LlmCall) through [`call_from_span`], a cost through
//! [`PriceBook::price`], and a conversation through [`messages_of`].

mod actor;
pub mod budget;
pub mod cache;
pub(crate) mod call;
pub mod drift;
mod embedding;
mod estimate;
mod event;
pub mod forecast;
mod kin;
pub mod ledger;
mod media;
mod messages;
#[cfg(test)]
mod noise;
mod price;
mod provider;
pub mod report;
mod score;
mod tokens;
mod usage;
mod usual;
pub mod worth;

pub use actor::{Actor, ActorGraph, ActorKind, Deeds, actor_of};
pub use call::{KEY, call_from_span, is_llm_event, keep_attributes, service_tier};
pub use event::{call_from_event, is_call_event, replacing_event, with_event};
pub use kin::{Kin, Link, links};
pub use media::inline_bytes;
pub use messages::{Conversation, messages_of};
pub use price::{
    BookFile, Discount, Imported, Match, Mode, PriceBook, PriceBookError, PriceRecord, Rate, Rates,
    Tier, Volume, import_csv, import_litellm, import_origin,
};
pub use score::{Mean, SCORE_EVENT, SCORE_NAME, Said, Score, Scored, Verdicts, latest_ratings};
pub use usage::{price_call, usage_call, usage_id};
pub use usual::Usual;
