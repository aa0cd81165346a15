//! The built web page, embedded and precompressed.
//!
//! Sources are in `web/`, the build result in `dist/` (committed, so that a Rust toolchain is all
//! a build needs); `make ui` rebuilds it and `make ui-verify` checks that it matches.

/// A file of the page in three encodings.
#[derive(Debug)]
pub struct Asset {
    pub mime: &'static str,
    /// Quoted, as the header wants it.
    pub etag: &'static str,
    pub raw: &'static [u8],
    pub gzip: &'static [u8],
    pub brotli: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// Returns the asset at a path without leading slash.
pub fn asset(path: &str) -> Option<&'static Asset> {
    ASSETS
        .binary_search_by(|(name, _)| (*name).cmp(path))
        .ok()
        .and_then(|i| ASSETS.get(i))
        .map(|(_, a)| a)
}

#[cfg(test)]
mod tests {
    use super::asset;

    #[test]
    fn the_page_and_its_scripts_are_here() {
        let page = asset("index.html").expect("index.html");
        let text = std::str::from_utf8(page.raw).unwrap();
        let script =
            text.split("src=\"").nth(1).and_then(|s| s.split(['"', '?']).next()).expect("a script");
        assert!(asset(script.trim_start_matches('/')).is_some(), "{script}");
    }
}
