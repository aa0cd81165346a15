//! Blocks of LLM calls: one wide row each.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::records::{
    LATER_COUNTS, LATER_TEXTS, counts, get_extras, get_money, later_counts, later_texts,
    later_texts_mut, put_extras, put_money, set_later_counts,
};
use crate::segment::attrs::{Sink, Source, get_doubles, put_doubles};
use crate::segment::columns::{
    Context, RowIds, Strings, Texts, get_ints, get_strings, get_texts, put_ints, put_strings,
    put_texts,
};
use crate::segment::ids::{get_ids, put_ids};
use crate::segment::rows::{Row, RowFilter, VisitRow};
use crate::segment::{SegmentError, Signal};
use obs_model::{
    CallCost, CallStatus, CostState, Dialect, LlmCall, Operation, SpanId, TimestampNs, TokenUsage,
    TraceId,
};
use std::ops::ControlFlow;

const TEXTS: usize = 18;

fn texts(c: &LlmCall) -> [&str; TEXTS] {
    [
        &c.call_id,
        &c.service,
        &c.environment,
        &c.provider,
        &c.request_model,
        &c.response_model,
        &c.error_type,
        &c.finish_reason,
        &c.user_id,
        &c.session_id,
        &c.team,
        &c.project,
        &c.agent,
        &c.prompt_name,
        &c.prompt_version,
        c.operation.as_str(),
        c.dialect.as_str(),
        c.cost_state.as_str(),
    ]
}

fn put_costs(e: &mut Encoder, c: &LlmCall) {
    e.u8(u8::from(c.cost.is_some()) | (u8::from(c.reported_cost.is_some()) << 1));
    if let Some(cost) = &c.cost {
        for (_, m) in cost.parts() {
            put_amount(e, m);
        }
    }
    if let Some(m) = c.reported_cost {
        put_amount(e, m);
    }
}

/// Writes an amount as its scale and digits, or whole when they are too many.
fn put_amount(e: &mut Encoder, m: obs_model::Money) {
    const WHOLE: u8 = 255;
    match i64::try_from(m.mantissa()) {
        Ok(digits) if digits >= 0 => {
            e.u8(m.scale() as u8);
            e.uint(digits.unsigned_abs());
        }
        _ => {
            e.u8(WHOLE);
            put_money(e, m);
        }
    }
}

fn get_amount(d: &mut Decoder<'_>) -> Result<obs_model::Money, Malformed> {
    let scale = d.u8()?;
    if scale > 28 {
        return get_money(d);
    }
    let digits = i64::try_from(d.uint()?).map_err(|_| d.bad())?;
    Ok(obs_model::Money::new(digits, scale.into()))
}

impl Row for LlmCall {
    const SIGNAL: Signal = Signal::Calls;
    const BLOCK_ROWS: usize = 4096;
    const BY_TRACE: bool = true;

    fn arrange(rows: &mut Vec<Self>) {
        rows.sort_by_key(|r| (r.start, r.span_id));
        rows.dedup_by(|b, a| a.span_id == b.span_id && a == b);
    }

    fn size(&self) -> usize {
        self.size_bytes()
    }

    fn put_block(rows: &[Self], e: &mut Encoder, _sink: &mut Sink<'_>) -> Result<(), SegmentError> {
        e.len(rows.len());
        put_ids(e, &rows.iter().map(|r| *r.trace_id.as_bytes()).collect::<Vec<_>>());
        put_ints(e, &rows.iter().map(|r| r.start.nanos()).collect::<Vec<_>>());
        put_ids(e, &rows.iter().map(|r| *r.span_id.as_bytes()).collect::<Vec<_>>());
        let duration = |r: &Self| r.end.nanos().wrapping_sub(r.start.nanos());
        put_ints(e, &rows.iter().map(duration).collect::<Vec<_>>());
        for i in 0..TEXTS {
            let column: Vec<&[u8]> =
                rows.iter().filter_map(|r| texts(r).get(i).map(|t| t.as_bytes())).collect();
            put_strings(e, &column, Context::default());
        }
        put_ints(
            e,
            &rows.iter().map(|r| i64::from(r.status == CallStatus::Error)).collect::<Vec<_>>(),
        );
        let tags: Vec<Vec<u8>> = rows
            .iter()
            .map(|r| {
                let mut one = Encoder::default();
                r.tags.iter().for_each(|t| one.str(t));
                one.bytes
            })
            .collect();
        put_texts(e, &tags.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for i in 0..8 {
            let column: Vec<i64> =
                rows.iter().filter_map(|r| counts(&r.tokens).get(i).map(|n| *n as i64)).collect();
            put_ints(e, &column);
        }
        let ttft = |r: &Self| r.time_to_first_token_ms.unwrap_or(f64::NAN);
        put_doubles(e, &rows.iter().map(ttft).collect::<Vec<_>>());
        let costs: Vec<Vec<u8>> = rows
            .iter()
            .map(|r| {
                let mut one = Encoder::default();
                put_costs(&mut one, r);
                one.bytes
            })
            .collect();
        put_texts(e, &costs.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let prices: Vec<&[u8]> = rows
            .iter()
            .map(|r| r.cost.as_ref().map_or(&[][..], |c| c.price_id.as_bytes()))
            .collect();
        put_strings(e, &prices, Context::default());
        for i in 0..LATER_TEXTS {
            let column: Vec<&[u8]> =
                rows.iter().filter_map(|r| later_texts(r).get(i).map(|t| t.as_bytes())).collect();
            put_strings(e, &column, Context::default());
        }
        for i in 0..LATER_COUNTS {
            let column: Vec<i64> =
                rows.iter().filter_map(|r| later_counts(r).get(i).copied()).collect();
            put_ints(e, &column);
        }
        let most: Vec<Vec<u8>> = rows
            .iter()
            .map(|r| {
                let mut one = Encoder::default();
                r.cost_max.into_iter().for_each(|m| put_amount(&mut one, m));
                one.bytes
            })
            .collect();
        put_texts(e, &most.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let extras: Vec<Vec<u8>> = rows
            .iter()
            .map(|r| {
                let mut one = Encoder::default();
                if !r.attributes.is_empty() || !r.embedding.is_empty() {
                    put_extras(&mut one, r);
                }
                one.bytes
            })
            .collect();
        put_texts(e, &extras.iter().map(Vec::as_slice).collect::<Vec<_>>());
        Ok(())
    }

    fn filter(_rows: &[Self]) -> Option<Vec<u8>> {
        None
    }

    fn get_block(
        block: &[u8],
        filter: &RowFilter<'_>,
        _source: &mut Source<'_>,
        visit: VisitRow<'_, Self>,
    ) -> Result<ControlFlow<()>, SegmentError> {
        let mut d = Decoder::new(block);
        let n = d.len_free()?;
        let traces = get_ids::<16>(&mut d)?;
        let starts = get_ints(&mut d)?;
        if traces.len() != n || starts.len() != n {
            return Err(d.bad().into());
        }
        let ids = get_ids::<8>(&mut d)?;
        let durations = get_ints(&mut d)?;
        let columns = (0..TEXTS).map(|_| get_strings(&mut d)).collect::<Result<Vec<_>, _>>()?;
        let errors = get_ints(&mut d)?;
        let tags = get_texts(&mut d)?;
        let tokens = (0..8).map(|_| get_ints(&mut d)).collect::<Result<Vec<_>, _>>()?;
        let ttft = get_doubles(&mut d)?;
        let costs = get_texts(&mut d)?;
        let prices = get_strings(&mut d)?;
        // Blocks of the first version end here.
        let later = if d.is_done() { None } else { Some(Later::get(&mut d)?) };
        for i in 0..n {
            let bad = Malformed(i);
            let (trace, start) = traces.get(i).zip(starts.get(i)).ok_or(bad)?;
            let revised = later.as_ref().is_some_and(|l| l.is_revision(i));
            if !filter.admits(*start, trace) || (filter.revisions_only && !revised) {
                continue;
            }
            let text = |c: usize| -> Result<String, Malformed> {
                columns.get(c).ok_or(bad)?.string(i, RowIds::default())
            };
            let count = |c: usize| -> Result<u64, Malformed> {
                tokens.get(c).and_then(|t| t.get(i)).map(|n| *n as u64).ok_or(bad)
            };
            let (cost, reported_cost) = read_costs(costs.get(i).ok_or(bad)?, &prices, i)?;
            let mut tag_bytes = Decoder::new(tags.get(i).ok_or(bad)?);
            let mut tag_list = Vec::new();
            while !tag_bytes.is_done() {
                tag_list.push(tag_bytes.string()?);
            }
            let ttft = *ttft.get(i).ok_or(bad)?;
            let at = TimestampNs::from_nanos(*start);
            let trace_id = TraceId::from_slice(trace).ok_or(bad)?;
            let span_id = ids.get(i).and_then(|s| SpanId::from_slice(s)).ok_or(bad)?;
            let dialect = Dialect::parse(&text(16)?).ok_or(bad)?;
            let mut call = Self {
                end: TimestampNs::from_nanos(start.wrapping_add(*durations.get(i).ok_or(bad)?)),
                call_id: text(0)?,
                service: text(1)?,
                environment: text(2)?,
                provider: text(3)?,
                request_model: text(4)?,
                response_model: text(5)?,
                error_type: text(6)?,
                finish_reason: text(7)?,
                user_id: text(8)?,
                session_id: text(9)?,
                team: text(10)?,
                project: text(11)?,
                agent: text(12)?,
                prompt_name: text(13)?,
                prompt_version: text(14)?,
                operation: Operation::parse(&text(15)?).ok_or(bad)?,
                cost_state: CostState::parse(&text(17)?).ok_or(bad)?,
                status: if errors.get(i) == Some(&0) { CallStatus::Ok } else { CallStatus::Error },
                tags: tag_list,
                tokens: TokenUsage {
                    input: count(0)?,
                    cache_read: count(1)?,
                    cache_write: count(2)?,
                    cache_write_1h: count(3)?,
                    audio_input: count(4)?,
                    output: count(5)?,
                    reasoning: count(6)?,
                    audio_output: count(7)?,
                    ..TokenUsage::default()
                },
                time_to_first_token_ms: (!ttft.is_nan()).then_some(ttft),
                cost,
                reported_cost,
                booked_at: TimestampNs::from_nanos(0),
                ..Self::new(at, trace_id, span_id, dialect)
            };
            if let Some(later) = &later {
                later.fill(i, &mut call)?;
            }
            if visit(call)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// The columns that blocks of the first version lack.
struct Later {
    texts: Vec<Strings>,
    counts: Vec<Vec<i64>>,
    cost_max: Texts,
    /// Absent in blocks of the second version.
    extras: Option<Texts>,
}

impl Later {
    fn get(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            texts: (0..LATER_TEXTS).map(|_| get_strings(d)).collect::<Result<_, _>>()?,
            counts: (0..LATER_COUNTS).map(|_| get_ints(d)).collect::<Result<_, _>>()?,
            cost_max: get_texts(d)?,
            extras: if d.is_done() { None } else { Some(get_texts(d)?) },
        })
    }

    fn is_revision(&self, i: usize) -> bool {
        self.counts.get(4).and_then(|c| c.get(i)).is_some_and(|revision| *revision > 0)
    }

    fn fill(&self, i: usize, call: &mut LlmCall) -> Result<(), Malformed> {
        let bad = Malformed(i);
        for (text, column) in later_texts_mut(call).into_iter().zip(&self.texts) {
            *text = column.string(i, RowIds::default())?;
        }
        let mut counts = [0; LATER_COUNTS];
        for (n, column) in counts.iter_mut().zip(&self.counts) {
            *n = *column.get(i).ok_or(bad)?;
        }
        set_later_counts(call, counts);
        let mut d = Decoder::new(self.cost_max.get(i).ok_or(bad)?);
        call.cost_max = if d.is_done() { None } else { Some(get_amount(&mut d)?) };
        if let Some(extras) = &self.extras {
            let mut d = Decoder::new(extras.get(i).ok_or(bad)?);
            if !d.is_done() {
                get_extras(&mut d, call)?;
            }
        }
        Ok(())
    }
}

fn read_costs(
    bytes: &[u8],
    prices: &Strings,
    i: usize,
) -> Result<(Option<CallCost>, Option<obs_model::Money>), Malformed> {
    let mut d = Decoder::new(bytes);
    let flags = d.u8()?;
    let cost = if flags & 1 == 0 {
        None
    } else {
        Some(CallCost {
            input: get_amount(&mut d)?,
            cache_read: get_amount(&mut d)?,
            cache_write: get_amount(&mut d)?,
            output: get_amount(&mut d)?,
            request: get_amount(&mut d)?,
            price_id: prices.string(i, RowIds::default())?,
        })
    };
    Ok((cost, if flags & 2 == 0 { None } else { Some(get_amount(&mut d)?) }))
}
