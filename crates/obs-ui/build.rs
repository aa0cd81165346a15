//! Turns the committed `dist/` into a table of precompressed assets. No npm, no network: a
//! missing file fails the build instead of shipping a binary without its page.

#![allow(
    clippy::disallowed_methods,
    reason = "cargo speaks to build scripts through the environment"
)]

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn files(dir: &Path, out: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            files(&path, out)?;
        } else {
            out.push(path);
        }
    }
    Ok(())
}

fn mime(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("html") => "text/html; charset=utf-8",
        Some("js") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("svg") => "image/svg+xml",
        Some("json") => "application/json",
        Some("png") => "image/png",
        _ => "text/plain; charset=utf-8",
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=OBSERVATORY_UI_DIST");
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let dist =
        env::var("OBSERVATORY_UI_DIST").map_or_else(|_| manifest.join("dist"), PathBuf::from);
    println!("cargo:rerun-if-changed={}", dist.display());
    if !dist.join("index.html").is_file() {
        return Err(format!("{} has no index.html; run `make ui`", dist.display()).into());
    }
    let out_dir = PathBuf::from(env::var("OUT_DIR")?);
    let mut list = Vec::new();
    files(&dist, &mut list)?;
    list.sort();
    let mut table = String::from("static ASSETS: &[(&str, Asset)] = &[\n");
    for (i, path) in list.iter().enumerate() {
        let name = path.strip_prefix(&dist)?.to_string_lossy().replace('\\', "/");
        let raw = fs::read(path)?;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&raw)?;
        let mut brotli = Vec::new();
        brotli::CompressorWriter::new(&mut brotli, 4096, 9, 22).write_all(&raw)?;
        // FNV-1a: an identity of the content, not a defence.
        let hash = raw.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
            (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
        });
        for (suffix, bytes) in [("raw", &raw), ("gz", &gzip.finish()?), ("br", &brotli)] {
            fs::write(out_dir.join(format!("{i}.{suffix}")), bytes)?;
        }
        let include =
            |suffix: &str| format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{i}.{suffix}\"))");
        writeln!(
            table,
            "({name:?}, Asset {{ mime: {:?}, etag: \"\\\"{hash:016x}\\\"\", raw: {}, gzip: {}, brotli: {} }}),",
            mime(&name),
            include("raw"),
            include("gz"),
            include("br")
        )?;
    }
    table.push_str("];\n");
    fs::write(out_dir.join("assets.rs"), table)?;
    Ok(())
}
