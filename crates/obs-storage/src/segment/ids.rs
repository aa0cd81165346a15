//! Columns of trace and span ids.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::segment::columns::{
    get_ints, get_packed, push_hex, put_ints, put_packed, skip_ints, skip_packed,
};
use foldhash::HashMap;

const NONE: u8 = 0;
const ALL: u8 = 1;
/// Distinct ids, and for each row the number of its id from 1, or 0 for none.
const TABLE: u8 = 2;

/// Returns an id in hexadecimal, as it is printed; empty for none. A block has thousands, and the
/// formatting machinery takes ten times as long.
pub(crate) fn text_of<const N: usize>(id: &[u8; N]) -> String {
    let mut out = Vec::new();
    if *id != [0; N] {
        out.reserve(2 * N);
        push_hex(id, &mut out);
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Writes ids of `N` bytes; all zero is none.
pub(crate) fn put_ids<const N: usize>(e: &mut Encoder, ids: &[[u8; N]]) {
    if ids.iter().all(|id| *id == [0; N]) {
        e.u8(NONE);
        e.len(ids.len());
        return;
    }
    let mut numbers: HashMap<[u8; N], i64> = HashMap::default();
    numbers.insert([0; N], 0);
    let mut distinct = Vec::new();
    let rows: Vec<i64> = ids
        .iter()
        .map(|id| {
            let next = numbers.len() as i64;
            *numbers.entry(*id).or_insert_with(|| {
                distinct.extend_from_slice(id);
                next
            })
        })
        .collect();
    if distinct.len() == ids.len() * N {
        e.u8(ALL);
        e.len(ids.len());
    } else {
        e.u8(TABLE);
        put_ints(e, &rows);
    }
    put_packed(e, &distinct);
}

/// Passes over a column of ids.
pub(crate) fn skip_ids(d: &mut Decoder<'_>) -> Result<(), Malformed> {
    match d.u8()? {
        NONE => d.len_free().map(|_| ()),
        ALL => d.len_free().and_then(|_| skip_packed(d)),
        TABLE => skip_ints(d).and_then(|()| skip_packed(d)),
        _ => Err(d.bad()),
    }
}

pub(crate) fn get_ids<const N: usize>(d: &mut Decoder<'_>) -> Result<Vec<[u8; N]>, Malformed> {
    const ROWS_MAX: usize = 1 << 24;
    let kind = d.u8()?;
    let table = |d: &mut Decoder<'_>| -> Result<Vec<[u8; N]>, Malformed> {
        let bytes = get_packed(d)?;
        Ok(bytes.chunks_exact(N).filter_map(|c| c.try_into().ok()).collect())
    };
    let rows = match kind {
        NONE | ALL => {
            let n = Some(d.len_free()?).filter(|n| *n <= ROWS_MAX).ok_or(d.bad())?;
            if kind == NONE {
                return Ok(vec![[0; N]; n]);
            }
            let all = table(d)?;
            return if all.len() == n { Ok(all) } else { Err(d.bad()) };
        }
        TABLE => get_ints(d)?,
        _ => return Err(d.bad()),
    };
    let table = table(d)?;
    rows.into_iter()
        .map(|n| match usize::try_from(n) {
            Ok(0) => Ok([0; N]),
            Ok(n) => table.get(n - 1).copied().ok_or(d.bad()),
            Err(_) => Err(d.bad()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_any_mix_come_back() {
        for ids in [
            vec![],
            vec![[0; 8]; 5],
            (1..50_u64).map(u64::to_be_bytes).collect(),
            (0..50_u64).map(|i| (i / 7).to_be_bytes()).collect::<Vec<_>>(),
        ] {
            let mut e = Encoder::default();
            put_ids(&mut e, &ids);
            assert_eq!(get_ids::<8>(&mut Decoder::new(&e.bytes)).unwrap(), ids);
        }
    }
}
