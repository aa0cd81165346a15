//! How much memory the process may use, and what share each part gets.

use obs_server::ServerLimits;
use std::fs;
use std::path::{Path, PathBuf};

/// Share of the machine's or control group's memory that is used unless configured.
const SHARE: f64 = 0.6;
/// What heads, flushes, merges, caches and the program itself take at most.
const FIXED: u64 = 192 << 20;
/// Less than this for requests and queries together is of no use.
const LEAST: u64 = 128 << 20;

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Returns the limits of a control group and those above it.
fn group_limits(root: &Path, group: &str, file: &str) -> Vec<u64> {
    let mut out = Vec::new();
    let mut at: PathBuf = root.join(group.trim_start_matches('/'));
    loop {
        out.extend(number(&at.join(file)));
        if at == root || !at.pop() {
            return out;
        }
    }
}

/// Returns the memory of the machine, or of the control group if that is less.
fn available() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let total = info.lines().find(|l| l.starts_with("MemTotal:"))?;
    let kib: u64 = total.split_whitespace().nth(1)?.parse().ok()?;
    let mut least = kib << 10;
    for line in fs::read_to_string("/proc/self/cgroup").unwrap_or_default().lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, group) = (parts.next(), parts.next(), parts.next());
        let limits = match (controllers, group) {
            (Some(""), Some(g)) => group_limits(Path::new("/sys/fs/cgroup"), g, "memory.max"),
            (Some(c), Some(g)) if c.split(',').any(|c| c == "memory") => {
                group_limits(Path::new("/sys/fs/cgroup/memory"), g, "memory.limit_in_bytes")
            }
            _ => Vec::new(),
        };
        least = limits.into_iter().fold(least, u64::min);
    }
    Some(least)
}

/// Divides a ceiling (that of the machine when none is configured) between the requests that
/// write and the queries.
pub(crate) fn divide(ceiling: Option<u64>, limits: &mut ServerLimits) {
    const UNKNOWN: u64 = 2 << 30;
    let ceiling = ceiling.unwrap_or_else(|| (available().unwrap_or(UNKNOWN) as f64 * SHARE) as u64);
    let rest = ceiling.saturating_sub(FIXED).max(LEAST);
    let ingest = (rest * 2 / 5).min(512 << 20);
    limits.ingest_bytes_max = usize::try_from(ingest).unwrap_or(usize::MAX);
    limits.queries_bytes_max = i64::try_from(rest - ingest).unwrap_or(i64::MAX);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_is_divided_and_never_to_nothing() {
        let mut l = ServerLimits::default();
        divide(Some(1 << 30), &mut l);
        let sum = l.ingest_bytes_max as u64 + l.queries_bytes_max.unsigned_abs();
        assert_eq!(sum + FIXED, 1 << 30);
        divide(Some(1), &mut l);
        assert!(l.ingest_bytes_max >= 32 << 20 && l.queries_bytes_max >= 64 << 20);
        divide(None, &mut l);
        assert!(l.queries_bytes_max > 0);
    }

    #[test]
    fn limits_are_read_from_the_group_and_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(dir.path().join("a/memory.max"), "1048576\n").unwrap();
        assert_eq!(group_limits(dir.path(), "/a/b", "memory.max"), [1 << 20]);
    }
}
