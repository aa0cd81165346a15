//! The columns of each table, and rows of the store as Arrow batches.

use crate::Source;
use crate::range::TimeRange;
use crate::table::TableKind;
use arrow::array::{
    ArrayRef, Decimal128Builder, Float64Builder, Int64Builder, RecordBatch, RecordBatchOptions,
    StringBuilder, TimestampNanosecondBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use obs_model::{
    Attributes, Budget, CallSelection, Direction, LlmCall, LogRecord, LogSelection, Money,
    SampleValue, SelectError, SeriesSelection, Span, SpanSelection, TenantId, TimestampNs,
};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Precision and scale of money columns.
const MONEY: (u8, i8) = (28, 12);
const BATCH_ROWS: usize = 8192;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Time,
    Text,
    Int,
    Float,
    Money,
}

const METRICS: &[(&str, Kind)] = &[
    ("ts", Kind::Time),
    ("tenant", Kind::Text),
    ("name", Kind::Text),
    ("labels", Kind::Text),
    ("value", Kind::Float),
];
const LOGS: &[(&str, Kind)] = &[
    ("ts", Kind::Time),
    ("tenant", Kind::Text),
    ("service", Kind::Text),
    ("level", Kind::Text),
    ("line", Kind::Text),
    ("trace_id", Kind::Text),
    ("span_id", Kind::Text),
    ("event_name", Kind::Text),
    ("stream", Kind::Text),
    ("attributes", Kind::Text),
];
const SPANS: &[(&str, Kind)] = &[
    ("ts", Kind::Time),
    ("tenant", Kind::Text),
    ("trace_id", Kind::Text),
    ("span_id", Kind::Text),
    ("parent_span_id", Kind::Text),
    ("service", Kind::Text),
    ("name", Kind::Text),
    ("kind", Kind::Text),
    ("status", Kind::Text),
    ("status_message", Kind::Text),
    ("duration_ms", Kind::Float),
    ("attributes", Kind::Text),
    ("resource", Kind::Text),
];
const CALLS: &[(&str, Kind)] = &[
    ("ts", Kind::Time),
    ("tenant", Kind::Text),
    ("trace_id", Kind::Text),
    ("span_id", Kind::Text),
    ("call_id", Kind::Text),
    ("service", Kind::Text),
    ("environment", Kind::Text),
    ("provider", Kind::Text),
    ("request_model", Kind::Text),
    ("response_model", Kind::Text),
    ("operation", Kind::Text),
    ("status", Kind::Text),
    ("error_type", Kind::Text),
    ("finish_reason", Kind::Text),
    ("user_id", Kind::Text),
    ("session_id", Kind::Text),
    ("team", Kind::Text),
    ("project", Kind::Text),
    ("agent", Kind::Text),
    ("prompt_name", Kind::Text),
    ("prompt_version", Kind::Text),
    ("tags", Kind::Text),
    ("input_tokens", Kind::Int),
    ("output_tokens", Kind::Int),
    ("cache_read_tokens", Kind::Int),
    ("cache_write_tokens", Kind::Int),
    ("reasoning_tokens", Kind::Int),
    ("audio_input_tokens", Kind::Int),
    ("audio_output_tokens", Kind::Int),
    ("duration_ms", Kind::Float),
    ("time_to_first_token_ms", Kind::Float),
    ("cost_usd", Kind::Money),
    ("cost_state", Kind::Text),
    ("reported_cost_usd", Kind::Money),
    ("price_id", Kind::Text),
    ("dialect", Kind::Text),
    ("organization", Kind::Text),
    ("service_tier", Kind::Text),
    ("region", Kind::Text),
    ("image_input_tokens", Kind::Int),
    ("image_output_tokens", Kind::Int),
    ("search_units", Kind::Int),
    ("cost_max_usd", Kind::Money),
    ("evidence", Kind::Text),
    ("revision", Kind::Int),
    ("attributes", Kind::Text),
];

const fn table(kind: TableKind) -> &'static [(&'static str, Kind)] {
    match kind {
        TableKind::Metrics => METRICS,
        TableKind::Logs => LOGS,
        TableKind::Spans => SPANS,
        TableKind::Calls => CALLS,
    }
}

/// Returns a table's schema.
pub(crate) fn schema(kind: TableKind) -> SchemaRef {
    let field = |(name, kind): &(&str, Kind)| {
        let data_type = match kind {
            Kind::Time => DataType::Timestamp(TimeUnit::Nanosecond, None),
            Kind::Text => DataType::Utf8,
            Kind::Int => DataType::Int64,
            Kind::Float => DataType::Float64,
            Kind::Money => DataType::Decimal128(MONEY.0, MONEY.1),
        };
        Field::new(*name, data_type, true)
    };
    Arc::new(Schema::new(table(kind).iter().map(field).collect::<Vec<_>>()))
}

/// A value on its way into a column.
enum Cell<'a> {
    Null,
    Time(i64),
    /// Empty text is NULL: absent and empty are the same in telemetry.
    Text(&'a str),
    /// Text that is made when a query reads the column.
    Made(&'a dyn Fn() -> String),
    Int(u64),
    Float(f64),
    Money(Money),
}

enum Builder {
    Time(TimestampNanosecondBuilder),
    Text(StringBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Money(Decimal128Builder),
}

impl Builder {
    fn new(kind: Kind) -> Self {
        match kind {
            Kind::Time => Self::Time(TimestampNanosecondBuilder::new()),
            Kind::Text => Self::Text(StringBuilder::new()),
            Kind::Int => Self::Int(Int64Builder::new()),
            Kind::Float => Self::Float(Float64Builder::new()),
            Kind::Money => Self::Money(
                Decimal128Builder::new().with_data_type(DataType::Decimal128(MONEY.0, MONEY.1)),
            ),
        }
    }

    fn push(&mut self, cell: Cell<'_>) {
        match (self, cell) {
            (Self::Time(b), Cell::Time(t)) => b.append_value(t),
            (Self::Text(b), Cell::Text(t)) if !t.is_empty() => b.append_value(t),
            (Self::Text(b), Cell::Made(make)) => {
                let text = make();
                b.append_option(Some(text).filter(|t| !t.is_empty()));
            }
            (Self::Int(b), Cell::Int(n)) => b.append_value(i64::try_from(n).unwrap_or(i64::MAX)),
            (Self::Float(b), Cell::Float(f)) => b.append_value(f),
            (Self::Money(b), Cell::Money(m)) => {
                let mut m = m;
                m.rescale(MONEY.1.unsigned_abs().into());
                b.append_value(m.mantissa());
            }
            (Self::Time(b), _) => b.append_null(),
            (Self::Text(b), _) => b.append_null(),
            (Self::Int(b), _) => b.append_null(),
            (Self::Float(b), _) => b.append_null(),
            (Self::Money(b), _) => b.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Time(b) => Arc::new(b.finish()),
            Self::Text(b) => Arc::new(b.finish()),
            Self::Int(b) => Arc::new(b.finish()),
            Self::Float(b) => Arc::new(b.finish()),
            Self::Money(b) => Arc::new(b.finish()),
        }
    }
}

/// Collects rows into batches.
struct Rows {
    /// Of the columns that are read.
    schema: SchemaRef,
    /// Of all columns of the table; `None`: nobody reads it.
    builders: Vec<Option<Builder>>,
    /// The columns that are read, in the order in which they are wanted.
    order: Vec<usize>,
    rows: usize,
    out: Vec<RecordBatch>,
    failure: Option<SelectError>,
}

impl Rows {
    fn new(kind: TableKind, order: Vec<usize>, schema: SchemaRef) -> Self {
        let builder = |(i, (_, kind)): (usize, &(&str, Kind))| {
            order.contains(&i).then(|| Builder::new(*kind))
        };
        let builders = table(kind).iter().enumerate().map(builder).collect();
        Self { schema, builders, order, rows: 0, out: Vec::new(), failure: None }
    }

    fn push<const N: usize>(&mut self, cells: [Cell<'_>; N]) -> ControlFlow<()> {
        debug_assert_eq!(N, self.builders.len());
        for (b, c) in self.builders.iter_mut().zip(cells) {
            if let Some(b) = b {
                b.push(c);
            }
        }
        self.rows += 1;
        if self.rows >= BATCH_ROWS { self.flush() } else { ControlFlow::Continue(()) }
    }

    fn flush(&mut self) -> ControlFlow<()> {
        if self.rows == 0 {
            return ControlFlow::Continue(());
        }
        // A query that only counts reads no column.
        let options =
            RecordBatchOptions::new().with_row_count(Some(std::mem::take(&mut self.rows)));
        let builders = &mut self.builders;
        let column = |i: &usize| builders.get_mut(*i)?.as_mut().map(Builder::finish);
        let columns = self.order.iter().filter_map(column).collect();
        match RecordBatch::try_new_with_options(self.schema.clone(), columns, &options) {
            Ok(b) => {
                self.out.push(b);
                ControlFlow::Continue(())
            }
            Err(e) => {
                self.failure = Some(SelectError::Storage(e.to_string()));
                ControlFlow::Break(())
            }
        }
    }

    fn finish(mut self) -> Result<Vec<RecordBatch>, SelectError> {
        let _ = self.flush();
        self.failure.map_or(Ok(self.out), Err)
    }
}

fn id(id: Option<impl ToString>) -> String {
    id.map_or_else(String::new, |id| id.to_string())
}

fn attributes_json(a: &Attributes) -> String {
    obs_model::AttributeValue::Map(a.iter().cloned().collect()).to_string()
}

fn labels_json(l: &obs_model::Labels) -> String {
    let map: serde_json::Map<_, _> = l
        .iter()
        .filter(|(n, _)| *n != obs_model::METRIC_NAME)
        .map(|(n, v)| (n.to_owned(), v.into()))
        .collect();
    serde_json::Value::Object(map).to_string()
}

/// Reads the rows of a table in a time range: of each the columns in `order`, whose schema it
/// takes along.
pub(crate) fn read(
    kind: TableKind,
    (order, schema): (Vec<usize>, SchemaRef),
    source: &dyn Source,
    tenant: &TenantId,
    range: TimeRange,
    budget: &Budget,
) -> Result<Vec<RecordBatch>, SelectError> {
    let mut rows = Rows::new(kind, order, schema);
    let (start, end) = (TimestampNs::from_nanos(range.start), TimestampNs::from_nanos(range.end));
    match kind {
        TableKind::Metrics => metrics(source, tenant, range, budget, &mut rows)?,
        TableKind::Logs => {
            let selection = LogSelection {
                matchers: &[],
                start,
                end,
                direction: Direction::Forward,
                trace_id: None,
                needles: &[],
            };
            source.select_logs(tenant, &selection, budget, &mut |r| log(&mut rows, tenant, r))?;
        }
        TableKind::Spans => {
            let selection = SpanSelection { start, end, service: None, operation: None };
            let mut seen = HashSet::new();
            source.select_spans(tenant, &selection, budget, &mut |s| {
                if seen.insert((s.trace_id, s.span_id)) {
                    span(&mut rows, tenant, s)
                } else {
                    ControlFlow::Continue(())
                }
            })?;
        }
        TableKind::Calls => {
            let selection = CallSelection { start, end, trace_id: None, revisions_only: false };
            source
                .current_calls(tenant, &selection, budget, &mut |c| call(&mut rows, tenant, c))?;
        }
    }
    rows.finish()
}

fn metrics(
    source: &dyn Source,
    tenant: &TenantId,
    range: TimeRange,
    budget: &Budget,
    rows: &mut Rows,
) -> Result<(), SelectError> {
    // The half-open nanosecond range as closed milliseconds.
    let start =
        range.start.div_euclid(1_000_000) + i64::from(range.start.rem_euclid(1_000_000) != 0);
    let end = range.end.saturating_sub(1).div_euclid(1_000_000);
    let selection = SeriesSelection {
        matchers: &[],
        start: obs_model::TimestampMs::from_millis(start),
        end: obs_model::TimestampMs::from_millis(end),
    };
    for s in source.select(tenant, &selection, budget)? {
        let labels = std::cell::LazyCell::new(|| labels_json(&s.labels));
        for x in &s.samples {
            // Native histograms have no single value.
            let SampleValue::Float(f) = x.value else { continue };
            let cells = [
                Cell::Time(x.timestamp.to_nanos().nanos()),
                Cell::Text(tenant.as_str()),
                Cell::Text(s.labels.metric_name()),
                Cell::Made(&|| labels.clone()),
                Cell::Float(f),
            ];
            if rows.push(cells).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn log(rows: &mut Rows, tenant: &TenantId, r: &LogRecord) -> ControlFlow<()> {
    rows.push([
        Cell::Time(r.timestamp.nanos()),
        Cell::Text(tenant.as_str()),
        Cell::Text(r.stream.get("service_name")),
        Cell::Text(r.level()),
        Cell::Text(&r.line),
        Cell::Made(&|| id(r.trace_id)),
        Cell::Made(&|| id(r.span_id)),
        Cell::Text(&r.event_name),
        Cell::Made(&|| labels_json(&r.stream)),
        Cell::Made(&|| attributes_json(&r.attributes)),
    ])
}

fn span(rows: &mut Rows, tenant: &TenantId, s: &Span) -> ControlFlow<()> {
    let message = if let obs_model::SpanStatus::Error(m) = &s.status { m.as_str() } else { "" };
    rows.push([
        Cell::Time(s.start.nanos()),
        Cell::Text(tenant.as_str()),
        Cell::Made(&|| s.trace_id.to_string()),
        Cell::Made(&|| s.span_id.to_string()),
        Cell::Made(&|| id(s.parent_id)),
        Cell::Text(s.service()),
        Cell::Text(&s.name),
        Cell::Text(s.kind.as_str()),
        Cell::Text(s.status.as_str()),
        Cell::Text(message),
        Cell::Float(s.duration_ns() as f64 / 1e6),
        Cell::Made(&|| attributes_json(&s.attributes)),
        Cell::Made(&|| attributes_json(&s.resource.attributes)),
    ])
}

fn call(rows: &mut Rows, tenant: &TenantId, c: &LlmCall) -> ControlFlow<()> {
    let t = &c.tokens;
    let tags = || serde_json::Value::from(c.tags.clone()).to_string();
    let attributes = || {
        let pairs = c.attributes.iter().map(|(n, v)| (n.clone(), v.clone().into()));
        serde_json::Value::Object(pairs.collect()).to_string()
    };
    rows.push([
        Cell::Time(c.start.nanos()),
        Cell::Text(tenant.as_str()),
        Cell::Made(&|| c.trace_id.to_string()),
        Cell::Made(&|| c.span_id.to_string()),
        Cell::Text(&c.call_id),
        Cell::Text(&c.service),
        Cell::Text(&c.environment),
        Cell::Text(&c.provider),
        Cell::Text(&c.request_model),
        Cell::Text(&c.response_model),
        Cell::Text(c.operation.as_str()),
        Cell::Text(c.status.as_str()),
        Cell::Text(&c.error_type),
        Cell::Text(&c.finish_reason),
        Cell::Text(&c.user_id),
        Cell::Text(&c.session_id),
        Cell::Text(&c.team),
        Cell::Text(&c.project),
        Cell::Text(&c.agent),
        Cell::Text(&c.prompt_name),
        Cell::Text(&c.prompt_version),
        if c.tags.is_empty() { Cell::Null } else { Cell::Made(&tags) },
        Cell::Int(t.input),
        Cell::Int(t.output),
        Cell::Int(t.cache_read),
        Cell::Int(t.cache_write + t.cache_write_1h),
        Cell::Int(t.reasoning),
        Cell::Int(t.audio_input),
        Cell::Int(t.audio_output),
        Cell::Float(c.duration_ms()),
        c.time_to_first_token_ms.map_or(Cell::Null, Cell::Float),
        c.cost.as_ref().map_or(Cell::Null, |x| Cell::Money(x.total())),
        Cell::Text(c.cost_state.as_str()),
        c.reported_cost.map_or(Cell::Null, Cell::Money),
        c.cost.as_ref().map_or(Cell::Null, |x| Cell::Text(&x.price_id)),
        Cell::Text(c.dialect.as_str()),
        Cell::Text(&c.organization),
        Cell::Text(&c.service_tier),
        Cell::Text(&c.region),
        Cell::Int(t.image_input),
        Cell::Int(t.image_output),
        Cell::Int(t.search_units),
        c.cost_max.map_or(Cell::Null, Cell::Money),
        Cell::Text(&c.evidence),
        Cell::Int(c.revision.into()),
        if c.attributes.is_empty() { Cell::Null } else { Cell::Made(&attributes) },
    ])
}
