//! Where the columns of a block of spans lie: found by passing over each of them.

use crate::bin::{Decoder, Malformed};
use crate::segment::columns::{skip_ints, skip_packed, skip_strings, skip_texts};
use crate::segment::ids::skip_ids;
use std::ops::Range;

/// Where the columns of a block lie.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) traces: Range<usize>,
    pub(crate) starts: Range<usize>,
    pub(crate) ids: Range<usize>,
    pub(crate) parents: Range<usize>,
    pub(crate) elsewhere: Range<usize>,
    pub(crate) names: Range<usize>,
    pub(crate) kinds: Range<usize>,
    pub(crate) durations: Range<usize>,
    pub(crate) statuses: Range<usize>,
    pub(crate) messages: Range<usize>,
    pub(crate) states: Range<usize>,
    pub(crate) resources: Range<usize>,
    pub(crate) scopes: Range<usize>,
    pub(crate) events: Range<usize>,
    pub(crate) links: Range<usize>,
    pub(crate) attributes: Range<usize>,
}

/// Passes over one column and returns where it lies.
fn column(
    d: &mut Decoder<'_>,
    skip: fn(&mut Decoder<'_>) -> Result<(), Malformed>,
) -> Result<Range<usize>, Malformed> {
    let from = d.at();
    skip(d)?;
    Ok(from..d.at())
}

fn skip_table(d: &mut Decoder<'_>) -> Result<(), Malformed> {
    skip_packed(d)?;
    skip_ints(d)
}

impl Places {
    /// Returns the number of rows, and where everything is.
    pub(crate) fn read(block: &[u8]) -> Result<(usize, Self), Malformed> {
        let d = &mut Decoder::new(block);
        let n = d.len_free()?;
        let all = Self {
            traces: column(d, skip_ids)?,
            starts: column(d, skip_ints)?,
            ids: column(d, skip_ids)?,
            parents: column(d, skip_ints)?,
            elsewhere: column(d, skip_ids)?,
            names: column(d, skip_strings)?,
            kinds: column(d, skip_ints)?,
            durations: column(d, skip_ints)?,
            statuses: column(d, skip_ints)?,
            messages: column(d, skip_strings)?,
            states: column(d, skip_strings)?,
            resources: column(d, skip_table)?,
            scopes: column(d, skip_table)?,
            events: column(d, skip_texts)?,
            links: column(d, skip_texts)?,
            attributes: d.at()..block.len(),
        };
        Ok((n, all))
    }
}
