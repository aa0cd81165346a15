//! Decompression with caps on size and ratio, so that no body expands beyond what was agreed.

use std::cell::Cell;
use std::io::{BufRead, Read};

/// Bytes past which a body's ratio is looked at.
const RATIO_FREE_BYTES: usize = 1 << 20;
/// Highest ratio of decompressed to compressed size past [`RATIO_FREE_BYTES`]; telemetry
/// compresses 5 to 30 times.
const RATIO_MAX: usize = 200;

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum DecompressError {
    #[error("content encoding {0:?} is not supported; use gzip, zstd, deflate, snappy or none")]
    Unsupported(String),
    #[error("body expands beyond {max} bytes; send smaller batches")]
    TooLarge { max: usize },
    #[error("{encoding} body is damaged or cut short")]
    Damaged { encoding: &'static str },
}

/// Expands a body by its `Content-Encoding`, to at most `max` bytes.
///
/// # Errors
/// When the encoding is unknown, the body is damaged, or it expands too far.
pub fn decompress(encoding: &str, body: &[u8], max: usize) -> Result<Vec<u8>, DecompressError> {
    let eaten = Cell::new(0);
    let input = Counted { rest: body, eaten: &eaten };
    match encoding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(body.to_vec()),
        "gzip" => read_capped(flate2::bufread::MultiGzDecoder::new(input), max, &eaten, "gzip"),
        "deflate" => read_capped(flate2::bufread::ZlibDecoder::new(input), max, &eaten, "deflate"),
        "zstd" => {
            let reader = zstd::stream::read::Decoder::with_buffer(input).and_then(|mut d| {
                // A window of 8 MiB is what HTTP allows for zstd (RFC 9659).
                d.window_log_max(23)?;
                Ok(d)
            });
            read_capped(
                reader.map_err(|_| DecompressError::Damaged { encoding: "zstd" })?,
                max,
                &eaten,
                "zstd",
            )
        }
        "snappy" => snappy(body, max),
        other => Err(DecompressError::Unsupported(other.to_owned())),
    }
}

/// Compressed bytes that tells how many a decoder took.
struct Counted<'a> {
    rest: &'a [u8],
    eaten: &'a Cell<usize>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.rest.read(buf)?;
        self.eaten.set(self.eaten.get() + n);
        Ok(n)
    }
}

impl BufRead for Counted<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        // Small pieces: a decoder may count the whole of what it is shown as taken.
        Ok(self.rest.get(..self.rest.len().min(4096)).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.eaten.set(self.eaten.get() + n);
        self.rest = self.rest.get(n..).unwrap_or_default();
    }
}

/// Expands a raw snappy block, the form of remote write and Loki push.
///
/// # Errors
/// When it is damaged or declares more than `max` bytes.
pub fn snappy(body: &[u8], max: usize) -> Result<Vec<u8>, DecompressError> {
    let damaged = DecompressError::Damaged { encoding: "snappy" };
    match snap::raw::decompress_len(body) {
        Ok(n) if n > max => Err(DecompressError::TooLarge { max }),
        Ok(_) => snap::raw::Decoder::new().decompress_vec(body).map_err(|_| damaged),
        Err(_) => Err(damaged),
    }
}

/// Packs bytes as a raw snappy block.
///
/// # Errors
/// When they are too many for the format, 4 GiB.
pub fn pack_snappy(bytes: &[u8]) -> Result<Vec<u8>, DecompressError> {
    let packed = snap::raw::Encoder::new().compress_vec(bytes);
    packed.map_err(|_| DecompressError::TooLarge { max: u32::MAX as usize })
}

/// Reads until the end, `cap` bytes, or a ratio that no telemetry has: a bomb is refused after its
/// first megabytes, whatever it would expand to.
fn read_capped(
    mut reader: impl Read,
    cap: usize,
    eaten: &Cell<usize>,
    encoding: &'static str,
) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    let mut block = [0; 32 * 1024];
    loop {
        let n = reader.read(&mut block).map_err(|_| DecompressError::Damaged { encoding })?;
        let Some(part) = block.get(..n).filter(|p| !p.is_empty()) else { return Ok(out) };
        let is_bomb = out.len() + n > RATIO_FREE_BYTES && (out.len() + n) / RATIO_MAX > eaten.get();
        if is_bomb || out.len() + n > cap {
            return Err(DecompressError::TooLarge { max: cap });
        }
        // Grow by half, never past the cap: doubling would hold three times the limit.
        if out.capacity() - out.len() < n {
            out.reserve_exact((out.len() / 2).max(block.len()).min(cap - out.len()));
        }
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        e.write_all(bytes).unwrap();
        e.finish().unwrap()
    }

    #[test]
    fn bodies_come_back_and_bombs_do_not_expand() {
        let text = b"hello telemetry ".repeat(100);
        assert_eq!(decompress("gzip", &gzip(&text), 1 << 20).unwrap(), text);
        assert_eq!(
            decompress("zstd", &zstd::encode_all(&text[..], 1).unwrap(), 1 << 20).unwrap(),
            text
        );
        assert_eq!(decompress("", &text, 10).unwrap(), text);
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(matches!(
            decompress("gzip", &bomb, 256 << 20),
            Err(DecompressError::TooLarge { .. })
        ));
        let bomb = zstd::encode_all(&vec![0; 64 << 20][..], 1).unwrap();
        assert!(matches!(
            decompress("zstd", &bomb, 256 << 20),
            Err(DecompressError::TooLarge { .. })
        ));
    }

    #[test]
    fn damage_and_unknown_encodings_are_told_apart() {
        let whole = gzip(b"hello");
        let cut = whole.get(..whole.len() - 6).unwrap();
        assert_eq!(
            decompress("gzip", cut, 100),
            Err(DecompressError::Damaged { encoding: "gzip" })
        );
        assert!(matches!(decompress("br", b"", 100), Err(DecompressError::Unsupported(_))));
        assert!(matches!(
            snappy(&[0xff; 5], 100),
            Err(DecompressError::Damaged { .. } | DecompressError::TooLarge { .. })
        ));
    }
}
