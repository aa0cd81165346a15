//! How far files were read, in Promtail's form with what tells rotated files apart beside it.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Where reading of a file stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Position {
    /// Bytes that are stored.
    pub(crate) offset: u64,
    /// Device and inode, or empty when Promtail wrote the file.
    pub(crate) identity: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct File {
    positions: BTreeMap<String, String>,
    identities: BTreeMap<String, String>,
}

/// Positions by path, and the file that holds them.
#[derive(Debug)]
pub(crate) struct Positions {
    path: PathBuf,
    known: BTreeMap<String, Position>,
    dirty: bool,
}

/// Positions kept; the oldest names would otherwise pile up for ever.
const KNOWN_MAX: usize = 100_000;
const FILE_BYTES_MAX: u64 = 64 << 20;

impl Positions {
    /// Reads the file. A damaged one is told and moved aside: everything is read again then.
    pub(crate) fn open(path: &Path) -> Self {
        let mut out = Self { path: path.to_owned(), known: BTreeMap::new(), dirty: false };
        let Ok(meta) = std::fs::metadata(path) else { return out };
        let read = if meta.len() > FILE_BYTES_MAX {
            Err(format!("it is longer than {FILE_BYTES_MAX} bytes"))
        } else {
            std::fs::read_to_string(path).map_err(|e| e.to_string()).and_then(|text| {
                serde_saphyr::from_str::<Option<File>>(&text)
                    .map_err(|e| e.without_snippet().to_string())
            })
        };
        match read {
            Ok(file) => {
                let file = file.unwrap_or_default();
                for (name, offset) in file.positions {
                    // Cursors of other sources stand here too; they are no numbers.
                    let Ok(offset) = offset.parse() else { continue };
                    let identity = file.identities.get(&name).cloned().unwrap_or_default();
                    out.known.insert(name, Position { offset, identity });
                }
            }
            Err(e) => {
                let aside = path.with_extension("damaged");
                tracing::error!(file = %path.display(), error = e, kept = %aside.display(), "positions cannot be read; files are read from their beginning");
                let _ = std::fs::rename(path, aside);
            }
        }
        out
    }

    pub(crate) fn get(&self, path: &str) -> Option<&Position> {
        self.known.get(path)
    }

    pub(crate) fn set(&mut self, path: &str, position: Position) {
        if self.known.get(path) != Some(&position)
            && (self.known.len() < KNOWN_MAX || self.known.contains_key(path))
        {
            self.known.insert(path.to_owned(), position);
            self.dirty = true;
        }
    }

    /// Writes the file if anything changed; it is replaced whole.
    ///
    /// # Errors
    /// When the file cannot be written; it is tried again at the next call.
    pub(crate) fn save(&mut self) -> std::io::Result<()> {
        if !self.dirty {
            return Ok(());
        }
        let mut text = String::from("positions:\n");
        // JSON's quoted strings are YAML's.
        let quoted = |s: &str| Value::from(s).to_string();
        for (name, p) in &self.known {
            text.push_str(&format!("  {}: \"{}\"\n", quoted(name), p.offset));
        }
        text.push_str("identities:\n");
        for (name, p) in self.known.iter().filter(|(_, p)| !p.identity.is_empty()) {
            text.push_str(&format!("  {}: {}\n", quoted(name), quoted(&p.identity)));
        }
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let fresh = self.path.with_extension("new");
        let mut file = std::fs::File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        self.dirty = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_and_promtails_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("positions.yaml");
        let mut p = Positions::open(&path);
        let at = Position { offset: 17, identity: "1:2".into() };
        p.set("/var/log/a \"b\".log", at.clone());
        p.save().unwrap();
        assert_eq!(Positions::open(&path).get("/var/log/a \"b\".log"), Some(&at));
        std::fs::write(&path, "positions:\n  /x: \"5\"\n  cursor-j: s=abc\n").unwrap();
        let p = Positions::open(&path);
        assert_eq!(p.get("/x"), Some(&Position { offset: 5, identity: String::new() }));
        std::fs::write(&path, "positions: [").unwrap();
        assert!(Positions::open(&path).get("/x").is_none());
        assert!(dir.path().join("positions.damaged").exists());
    }
}
