//! How much memory the process may use, and what share each part gets.

use obs_model::MemoryPool;
use obs_server::ServerLimits;
use std::fs;
use std::path::{Path, PathBuf};

/// Share of the machine's or control group's memory that is used unless configured.
const SHARE: f64 = 0.6;
/// What the program itself takes: code, buffers of connections, indexes of open segments, and what
/// the allocator keeps.
const PROGRAM: u64 = 64 << 20;
/// Less than this for everything else is of no use.
const LEAST: u64 = 192 << 20;

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

/// Returns the pool that a ceiling (that of the machine when none is configured) makes, and limits
/// the part of it that requests may take which write.
pub(crate) fn divide(ceiling: Option<u64>, limits: &mut ServerLimits) -> MemoryPool {
    const UNKNOWN: u64 = 2 << 30;
    let ceiling = ceiling.unwrap_or_else(|| (available().unwrap_or(UNKNOWN) as f64 * SHARE) as u64);
    let all = ceiling.saturating_sub(PROGRAM).max(LEAST);
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    limits.ingest_bytes_max = usize::try_from((all * 2 / 5).min(512 << 20)).unwrap_or(usize::MAX);
    MemoryPool::new(signed(all), signed((all / 4).min(256 << 20)))
}

/// Returns how much of the log is read before it is flushed; twice that is in memory then.
pub(crate) fn for_replay(pool: &MemoryPool) -> usize {
    usize::try_from(pool.max() / 4).unwrap_or(usize::MAX).min(2 << 30)
}

/// Returns how much of the results of range queries is kept: answers of some ten thousand panels, and
/// no more than a small machine can spare.
pub(crate) fn for_results(pool: &MemoryPool) -> u64 {
    const MOST: u64 = 256 << 20;
    (pool.max().unsigned_abs() / 32).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_is_divided_and_never_to_nothing() {
        let mut l = ServerLimits::default();
        assert_eq!(divide(Some(1 << 30), &mut l).max().unsigned_abs() + PROGRAM, 1 << 30);
        assert_eq!(divide(Some(1), &mut l).max(), 192 << 20);
        assert!(l.ingest_bytes_max >= 64 << 20);
        assert!(divide(None, &mut l).max() > 0);
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
