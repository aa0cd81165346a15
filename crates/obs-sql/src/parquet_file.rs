//! Rows of JSON as a Parquet file.

use arrow::array::{
    ArrayRef, Decimal128Builder, Float64Builder, Int64Builder, RecordBatch, StringBuilder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rust_decimal::Decimal;
use serde_json::Value;
use std::io::{self, Write};
use std::sync::Arc;

/// Rows that are turned into columns at a time.
const BATCH_ROWS: usize = 8192;
/// Digits of amounts, and those behind the point.
const MONEY: (u8, i8) = (38, 18);

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// What is no text is shown as JSON.
    Text,
    Int,
    Float,
    /// A decimal number as text.
    Money,
}

impl Cell {
    const fn data_type(self) -> DataType {
        match self {
            Self::Text => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Money => DataType::Decimal128(MONEY.0, MONEY.1),
        }
    }

    fn array<'a>(self, values: impl Iterator<Item = &'a Value>) -> io::Result<ArrayRef> {
        Ok(match self {
            Self::Text => {
                let mut b = StringBuilder::new();
                for v in values {
                    match v {
                        Value::Null => b.append_null(),
                        Value::String(s) => b.append_value(s),
                        other => b.append_value(other.to_string()),
                    }
                }
                Arc::new(b.finish())
            }
            Self::Int => {
                let mut b = Int64Builder::new();
                values.for_each(|v| b.append_option(v.as_i64()));
                Arc::new(b.finish())
            }
            Self::Float => {
                let mut b = Float64Builder::new();
                values.for_each(|v| b.append_option(v.as_f64()));
                Arc::new(b.finish())
            }
            Self::Money => {
                let mut b = Decimal128Builder::new();
                for v in values {
                    b.append_option(v.as_str().map(scaled).transpose()?);
                }
                Arc::new(b.with_data_type(self.data_type()).finish())
            }
        })
    }
}

/// Returns an amount as a whole number of its smallest part. What has more digits is an error: a
/// rounded amount would be a wrong one.
fn scaled(text: &str) -> io::Result<i128> {
    let fail = || io::Error::other(format!("amount {text:?} has too many digits"));
    let d: Decimal = text.parse().map_err(|_| fail())?;
    let d = d.normalize();
    let up = u32::try_from(MONEY.1).unwrap_or(0).checked_sub(d.scale()).ok_or_else(fail)?;
    10_i128.checked_pow(up).and_then(|f| d.mantissa().checked_mul(f)).ok_or_else(fail)
}

/// A file that is being written.
pub struct ParquetFile<W: Write + Send> {
    columns: Vec<(&'static str, Cell)>,
    schema: SchemaRef,
    rows: Vec<Value>,
    writer: ArrowWriter<W>,
}

impl<W: Write + Send> std::fmt::Debug for ParquetFile<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ParquetFile").field("columns", &self.columns).finish_non_exhaustive()
    }
}

impl<W: Write + Send> ParquetFile<W> {
    /// Begins a file of these columns, compressed with zstd.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn new(columns: &[(&'static str, Cell)], out: W) -> io::Result<Self> {
        let field = |(name, cell): &(&'static str, Cell)| Field::new(*name, cell.data_type(), true);
        let schema: SchemaRef =
            Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .build();
        let writer = ArrowWriter::try_new(out, schema.clone(), Some(properties))
            .map_err(io::Error::other)?;
        Ok(Self { columns: columns.to_vec(), schema, rows: Vec::new(), writer })
    }

    /// Adds a row: an object with the columns' names.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn push(&mut self, row: Value) -> io::Result<()> {
        self.rows.push(row);
        if self.rows.len() >= BATCH_ROWS { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let column = |(name, cell): &(&'static str, Cell)| {
            cell.array(rows.iter().map(|r| r.get(name).unwrap_or(&Value::Null)))
        };
        let arrays = self.columns.iter().map(column).collect::<io::Result<Vec<_>>>()?;
        let batch = RecordBatch::try_new(self.schema.clone(), arrays).map_err(io::Error::other)?;
        self.writer.write(&batch).map_err(io::Error::other)
    }

    /// Writes what is left and the end of the file.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush()?;
        self.writer.into_inner().map_err(io::Error::other)
    }
}
