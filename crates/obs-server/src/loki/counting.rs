//! What a query read, for the statistics of its answer.

use obs_model::{
    Budget, Labels, LogRecord, LogScan, LogSelection, SelectError, SelectLogs, TenantId, Visit,
    VisitScan,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Counts the records that pass through.
pub(super) struct Counting<'a> {
    inner: &'a dyn SelectLogs,
    began: Instant,
    lines: AtomicU64,
    bytes: AtomicU64,
}

impl<'a> Counting<'a> {
    pub(super) fn new(inner: &'a dyn SelectLogs) -> Self {
        Self { inner, began: Instant::now(), lines: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    pub(super) fn done(&self, returned: usize) -> Stats {
        Stats {
            seconds: self.began.elapsed().as_secs_f64(),
            lines: self.lines.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            returned,
        }
    }
}

impl SelectLogs for Counting<'_> {
    fn select_logs(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
        visit: Visit<'_, LogRecord>,
    ) -> Result<(), SelectError> {
        let (mut lines, mut bytes) = (0, 0);
        let out = self.inner.select_logs(tenant, selection, budget, &mut |r: &Arc<LogRecord>| {
            lines += 1;
            bytes += r.line.len() as u64;
            visit(r)
        });
        self.lines.fetch_add(lines, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        out
    }

    fn scan_logs(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        scan: LogScan<'_>,
        budget: &Budget,
        visit: VisitScan<'_>,
    ) -> Result<(), SelectError> {
        let (mut lines, mut bytes) = (0, 0);
        let out = self.inner.scan_logs(tenant, selection, scan, budget, &mut |r, rows| {
            let n = rows.count() as u64;
            lines += n;
            bytes += n * r.line.len() as u64;
            visit(r, rows)
        });
        self.lines.fetch_add(lines, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        out
    }

    fn streams(
        &self,
        tenant: &TenantId,
        selection: &LogSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        self.inner.streams(tenant, selection, budget)
    }
}

/// What a query read, and how long it took. Lines that the store sorted out by itself do not count.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stats {
    seconds: f64,
    lines: u64,
    bytes: u64,
    returned: usize,
}

impl Stats {
    /// The object that Loki's clients read.
    pub(super) fn json(self) -> serde_json::Value {
        let Self { seconds, lines, bytes, returned } = self;
        let rate = |n: u64| if seconds > 0.0 { (n as f64 / seconds) as u64 } else { 0 };
        serde_json::json!({
            "summary": {
                "bytesProcessedPerSecond": rate(bytes),
                "linesProcessedPerSecond": rate(lines),
                "totalBytesProcessed": bytes,
                "totalLinesProcessed": lines,
                "execTime": seconds,
                "queueTime": 0,
                "subqueries": 0,
                "totalEntriesReturned": returned,
                "splits": 0,
                "shards": 0,
                "totalPostFilterLines": returned,
                "totalStructuredMetadataBytesProcessed": 0
            },
            "querier": {"store": {
                "totalChunksRef": 0, "totalChunksDownloaded": 0, "chunksDownloadTime": 0,
                "chunk": {
                    "headChunkBytes": 0, "headChunkLines": 0, "decompressedBytes": bytes,
                    "decompressedLines": lines, "compressedBytes": 0, "totalDuplicates": 0
                }
            }},
            "ingester": {
                "totalReached": 0, "totalChunksMatched": 0, "totalBatches": 0, "totalLinesSent": 0,
                "store": {
                    "totalChunksRef": 0, "totalChunksDownloaded": 0, "chunksDownloadTime": 0,
                    "chunk": {
                        "headChunkBytes": 0, "headChunkLines": 0, "decompressedBytes": 0,
                        "decompressedLines": 0, "compressedBytes": 0, "totalDuplicates": 0
                    }
                }
            }
        })
    }
}
