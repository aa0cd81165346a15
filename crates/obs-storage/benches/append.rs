//! A batch of samples through the log to the head, synced to disk.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use obs_model::{Append as _, Labels, Sample, Series, TenantId, WriteBatch};
use obs_storage::vfs::OsVfs;
use obs_storage::{Store, StoreConfig};
use std::sync::Arc;

const SERIES: i64 = 5000;

fn append(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::new(dir.path()) };
    let store = Store::open(config, Arc::new(OsVfs)).unwrap();
    let labels: Vec<Labels> = (0..SERIES)
        .map(|i| Labels::from_pairs([("__name__", "m".to_owned()), ("i", i.to_string())]))
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tenant = TenantId::default();
    let mut time = 0;
    let mut group = c.benchmark_group("store");
    group.throughput(Throughput::Elements(SERIES.unsigned_abs()));
    group.bench_function("append samples", |b| {
        b.iter(|| {
            time += 15_000;
            let one =
                |l: &Labels| Series { labels: l.clone(), samples: vec![Sample::float(time, 1.5)] };
            let batch =
                WriteBatch { series: labels.iter().map(one).collect(), ..WriteBatch::default() };
            runtime.block_on(store.append(&tenant, batch)).unwrap();
        });
    });
    group.finish();
    store.close();
}

criterion_group!(benches, append);
criterion_main!(benches);
