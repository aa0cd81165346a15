//! Arrow batches as JSON rows. Decimals and 64-bit integers past 2^53 are strings.

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde_json::{Map, Number, Value};

pub(crate) fn append_rows(
    batch: &RecordBatch,
    rows: &mut Vec<Map<String, Value>>,
) -> Result<(), ArrowError> {
    let options = FormatOptions::default().with_timestamp_tz_format(None);
    let schema = batch.schema();
    let columns: Vec<_> = schema
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(f, c)| {
            Ok((f.name().clone(), f.data_type().clone(), c, ArrayFormatter::try_new(c, &options)?))
        })
        .collect::<Result<_, ArrowError>>()?;
    for i in 0..batch.num_rows() {
        let mut row = Map::with_capacity(columns.len());
        for (name, kind, column, format) in &columns {
            let value = if column.is_null(i) {
                Value::Null
            } else {
                value(kind, format.value(i).to_string())
            };
            row.insert(name.clone(), value);
        }
        rows.push(row);
    }
    Ok(())
}

/// Integers that a JavaScript reader cannot hold are better strings than wrong.
const EXACT_MAX: i64 = 1 << 53;

fn value(kind: &DataType, text: String) -> Value {
    match kind {
        DataType::Boolean => Value::Bool(text == "true"),
        k if k.is_integer() => match text.parse::<i64>() {
            Ok(n) if n.abs() <= EXACT_MAX => Value::Number(n.into()),
            _ => Value::String(text),
        },
        k if k.is_floating() => match text.parse::<f64>().ok().and_then(Number::from_f64) {
            Some(n) => Value::Number(n),
            None => Value::String(text),
        },
        _ => Value::String(text),
    }
}
