//! Random work on a store, and the oracle that knows what must come back.
//!
//! Every write carries one sample, one log record, one span and one call, all marked with its
//! number, so that a whole batch is there or none of it. An acknowledged write must be found after
//! any crash, exactly as it was sent; an unacknowledged one may be; nothing else may.

use crate::sim::{Faults, Rng, SimVfs};
use obs_model::*;
use obs_storage::{Elsewhere, Store, StoreConfig, TierConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Acked,
    /// No answer, or one that says that it may have been stored.
    Unknown,
    /// Its trace was deleted and the deletion acknowledged.
    TraceDeleted,
    /// The deletion of its trace was begun.
    TraceDeleting,
}

/// What was sent and what became of it.
#[derive(Debug, Default)]
pub struct Oracle {
    writes: BTreeMap<u64, Verdict>,
}

/// What a run did.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub acked: u64,
    pub unknown: u64,
    pub crashes: u64,
    pub checks: u64,
    pub injected: u64,
    pub crashed_in: BTreeSet<&'static str>,
}

/// A time after all data.
const LATER: TimestampNs = TimestampNs::from_nanos(i64::MAX);

/// Times are spread over three days, so that segments of several days exist.
fn time_ns(n: u64) -> i64 {
    1_780_000_000_000_000_000 + (n as i64 % 3) * 86_400_000_000_000 + n as i64 * 1_000_000
}

fn trace_of(n: u64) -> TraceId {
    let mut id = [7; 16];
    for (to, from) in id.iter_mut().skip(8).zip((n / 3 + 1).to_be_bytes()) {
        *to = from;
    }
    TraceId::from_slice(&id).unwrap_or_else(|| unreachable!("not zero"))
}

fn span_of(n: u64) -> SpanId {
    SpanId::from_slice(&(n + 1).to_be_bytes()).unwrap_or_else(|| unreachable!("not zero"))
}

fn labels_of(n: u64) -> Labels {
    Labels::from_pairs([("__name__", "m".to_owned()), ("i", (n % 7).to_string())])
}

fn line_of(n: u64) -> String {
    let mut rng = Rng::new(n);
    let mut line = format!("{{\"n\":{n},\"id\":\"{:016x}\",\"text\":\"", rng.next());
    for _ in 0..rng.below(12) {
        let _ = write!(line, "word{} ", rng.below(50));
    }
    line.push_str("\"}");
    line
}

fn log_of(n: u64) -> LogRecord {
    LogRecord {
        stream: Labels::from_pairs([("app", format!("a{}", n % 3))]),
        timestamp: TimestampNs::from_nanos(time_ns(n)),
        observed: TimestampNs::from_nanos(time_ns(n) + 5),
        line: line_of(n),
        severity_number: (n % 24) as u8,
        severity_text: String::new(),
        event_name: String::new(),
        trace_id: Some(trace_of(n)),
        span_id: n.is_multiple_of(2).then(|| span_of(n)),
        attributes: Attributes::from_iter([("n", n as i64)]),
        resource: Arc::default(),
    }
}

fn span_record(n: u64) -> Span {
    let mut attributes = Attributes::from_iter([("n", AttributeValue::Int(n as i64))]);
    if n.is_multiple_of(5) {
        let turns: Vec<String> =
            (0..n % 9).map(|i| format!("{{\"turn\":{i}}}{}", "x".repeat(90))).collect();
        attributes.push("gen_ai.input.messages", format!("[{}]", turns.join(",")));
    }
    Span {
        trace_id: trace_of(n),
        span_id: span_of(n),
        parent_id: (!n.is_multiple_of(3)).then(|| span_of(n - 1)),
        name: format!("op{}", n % 5),
        kind: SpanKind::Server,
        start: TimestampNs::from_nanos(time_ns(n)),
        end: TimestampNs::from_nanos(time_ns(n) + 1000),
        status: if n.is_multiple_of(4) { SpanStatus::Error("e".into()) } else { SpanStatus::Unset },
        trace_state: String::new(),
        attributes,
        events: vec![],
        links: vec![],
        resource: Arc::default(),
        scope: Arc::default(),
    }
}

fn batch_of(n: u64) -> WriteBatch {
    let sample = Sample::float(time_ns(n) / 1_000_000, n as f64 / 4.0);
    WriteBatch {
        points: vec![(labels_of(n), sample)],
        logs: vec![log_of(n)],
        spans: vec![span_record(n)],
        ..WriteBatch::default()
    }
}

fn config(rng: &mut Rng, fs: &SimVfs) -> StoreConfig {
    StoreConfig {
        tier: Some(TierConfig {
            objects: Arc::new(fs.clone()),
            after: Duration::ZERO,
            local_bytes_max: None,
            cache_bytes_max: rng.below(200_000),
            id: 7,
        }),
        disk_reserve_bytes: 0,
        replay_bytes_max: 500 + rng.below(20_000) as usize,
        head_bytes_max: 500 + rng.below(20_000) as usize,
        wal_file_bytes_max: 1_000 + rng.below(20_000),
        segment_bytes_max: 1 << 20,
        inline: true,
        ..StoreConfig::new("/data")
    }
}

/// What a store shows.
#[derive(Debug, Default)]
struct Shown {
    samples: BTreeMap<(Labels, i64), u64>,
    logs: Vec<Arc<LogRecord>>,
    spans: Vec<Arc<Span>>,
    missing: Vec<String>,
}

fn read(store: &Store) -> Result<Shown, SelectError> {
    let tenant = TenantId::default();
    let budget = Budget::new(i64::MAX, i64::MAX);
    let mut out = Shown::default();
    let all = SeriesSelection { matchers: &[], start: TimestampMs::MIN, end: TimestampMs::MAX };
    for s in store.select(&tenant, &all, &budget)? {
        for x in &s.samples {
            if let SampleValue::Float(f) = x.value {
                out.samples.insert((s.labels.clone(), x.timestamp.millis()), f.to_bits());
            }
        }
    }
    let logs = LogSelection::ALL;
    store.select_logs(&tenant, &logs, &budget, &mut |r| {
        out.logs.push(r.clone());
        ControlFlow::Continue(())
    })?;
    let spans = SpanSelection::ALL;
    store.select_spans(&tenant, &spans, &budget, &mut |s| {
        out.spans.push(s.clone());
        ControlFlow::Continue(())
    })?;
    out.missing = budget.missing();
    Ok(out)
}

fn number_of(a: &Attributes) -> Option<u64> {
    u64::try_from(a.get("n")?.as_i64()?).ok()
}

impl Oracle {
    /// Compares what a store shows with what was sent.
    ///
    /// # Errors
    /// The first difference, in words.
    fn check(&self, shown: &Shown) -> Result<(), String> {
        let mut logs: BTreeMap<u64, u32> = BTreeMap::new();
        for r in &shown.logs {
            let n = number_of(&r.attributes).ok_or("log record without a number")?;
            if **r != log_of(n) {
                return Err(format!("log record {n} was altered: {r:?}"));
            }
            *logs.entry(n).or_default() += 1;
        }
        let mut spans: BTreeMap<u64, u32> = BTreeMap::new();
        for s in &shown.spans {
            let n = number_of(&s.attributes).ok_or("span without a number")?;
            if **s != span_record(n) {
                return Err(format!("span {n} was altered: {s:?}"));
            }
            *spans.entry(n).or_default() += 1;
        }
        for n in logs.keys().chain(spans.keys()) {
            if !self.writes.contains_key(n) {
                return Err(format!("write {n} was never sent"));
            }
        }
        for (n, verdict) in &self.writes {
            let point = (labels_of(*n), time_ns(*n) / 1_000_000);
            let value = shown.samples.get(&point);
            if value.is_some_and(|v| *v != (*n as f64 / 4.0).to_bits()) {
                return Err(format!("sample {n} was altered"));
            }
            let (log, span) =
                (logs.get(n).copied().unwrap_or(0), spans.get(n).copied().unwrap_or(0));
            if log > 1 || span > 1 {
                return Err(format!("write {n} is there {log} and {span} times"));
            }
            let sample = u32::from(value.is_some());
            let good = match verdict {
                Verdict::Acked => (sample, log, span) == (1, 1, 1),
                Verdict::Unknown => log == span && log == sample,
                Verdict::TraceDeleted => (sample, log, span) == (1, 0, 0),
                Verdict::TraceDeleting => sample == 1,
            };
            if !good {
                return Err(format!(
                    "write {n} ({verdict:?}): {sample} samples, {log} logs, {span} spans"
                ));
            }
        }
        let sent: BTreeSet<_> =
            self.writes.keys().map(|n| (labels_of(*n), time_ns(*n) / 1_000_000)).collect();
        match shown.samples.keys().find(|k| !sent.contains(*k)) {
            Some(k) => Err(format!("sample {k:?} was never sent")),
            None => Ok(()),
        }
    }
}

/// Runs a future that never waits for anything but the store, which answers at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(v) = future.as_mut().poll(&mut context) {
            return v;
        }
    }
}

fn open(rng: &mut Rng, fs: &SimVfs) -> Result<Store, String> {
    Store::open(config(rng, fs), Arc::new(fs.clone())).map_err(|e| {
        let mut text = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(s) = source {
            let _ = write!(text, ": {s}");
            source = s.source();
        }
        text
    })
}

/// One simulated life of a store: work, crashes, faults, and a check after each recovery.
///
/// # Errors
/// The first invariant that did not hold.
pub fn run(seed: u64) -> Result<Tally, String> {
    let mut rng = Rng::new(seed);
    let fs = SimVfs::new(seed);
    let mut oracle = Oracle::default();
    let mut tally = Tally::default();
    let mut next = 0;
    let lives = 2 + rng.below(4);
    for life in 0..lives {
        // Up to three crashes in a row while recovering.
        let mut store = None;
        for _ in 0..4 {
            if rng.one_in(3) {
                fs.crash_in(1 + rng.below(40));
            }
            let opened = open(&mut rng, &fs);
            if fs.is_off() {
                drop(opened);
                fs.restart();
                tally.crashes += 1;
                continue;
            }
            store = Some(opened.map_err(|e| format!("life {life}: cannot open: {e}"))?);
            break;
        }
        let store = match store {
            Some(s) => s,
            None => open(&mut rng, &fs).map_err(|e| format!("life {life}: cannot open: {e}"))?,
        };
        let shown = read(&store);
        if !fs.is_off() {
            let shown = shown.map_err(|e| format!("life {life}: cannot read: {e}"))?;
            if !shown.missing.is_empty() {
                return Err(format!("life {life}: unreadable: {:?}", shown.missing));
            }
            oracle.check(&shown).map_err(|e| format!("life {life}, after opening: {e}"))?;
            tally.checks += 1;
        }
        if life > 0 && rng.one_in(3) {
            let one_in = |rng: &mut Rng| if rng.one_in(2) { 20 + rng.below(200) } else { 0 };
            fs.set_faults(Faults {
                error: one_in(&mut rng),
                no_space: one_in(&mut rng),
                short_write: one_in(&mut rng),
            });
        }
        if life + 1 < lives {
            fs.crash_in(5 + rng.below(400));
        }
        work(&store, &fs, &mut rng, &mut oracle, &mut tally, &mut next)
            .map_err(|e| format!("life {life}: {e}"))?;
        fs.set_faults(Faults::default());
        drop(store);
        if life + 1 < lives || fs.is_off() || rng.one_in(2) {
            fs.restart();
            tally.crashes += 1;
        }
    }
    let store = open(&mut rng, &fs).map_err(|e| format!("at the end: cannot open: {e}"))?;
    let shown = read(&store).map_err(|e| e.to_string())?;
    oracle.check(&shown).map_err(|e| format!("at the end: {e}"))?;
    drop(shown);
    // Everything can move, and nothing is left in the bucket that no segment is read from.
    store.tier(LATER).and_then(|_| store.tier(LATER)).map_err(|e| format!("at the end: {e}"))?;
    let ((_, remote, _), bucket) = (store.tier_bytes(), fs.bucket_bytes());
    if remote != bucket {
        return Err(format!("{bucket} bytes in the bucket, {remote} are of segments"));
    }
    let shown = read(&store).map_err(|e| e.to_string())?;
    oracle.check(&shown).map_err(|e| format!("at the end, all moved: {e}"))?;
    if !shown.missing.is_empty() {
        return Err(format!("at the end, all moved: unreadable: {:?}", shown.missing));
    }
    drop(store);
    let report = obs_storage::verify(
        std::path::Path::new("/data"),
        &fs,
        &Elsewhere::Moved(Arc::new(fs.clone())),
    );
    let report = report.map_err(|e| e.to_string())?;
    if let Some(f) = report.findings.iter().find(|f| f.is_damage) {
        return Err(format!("verify at the end: {}: {}", f.file, f.problem));
    }
    (tally.crashed_in, tally.injected) = fs.coverage();
    Ok(tally)
}

fn work(
    store: &Store,
    fs: &SimVfs,
    rng: &mut Rng,
    oracle: &mut Oracle,
    tally: &mut Tally,
    next: &mut u64,
) -> Result<(), String> {
    let tenant = TenantId::default();
    for _ in 0..20 + rng.below(60) {
        if fs.is_off() {
            return Ok(());
        }
        match rng.below(21) {
            20 => drop(store.tier(LATER)),
            0 => drop(now(store.flush())),
            1 => drop(now(store.merge())),
            2 if *next > 0 => {
                let trace = trace_of(rng.below(*next));
                let of_trace: Vec<u64> =
                    oracle.writes.keys().copied().filter(|n| trace_of(*n) == trace).collect();
                // Only what is settled can be said to be gone afterwards.
                let settled = |n: &u64| oracle.writes.get(n) != Some(&Verdict::Unknown);
                if !of_trace.iter().all(settled) {
                    continue;
                }
                let done = now(store.delete(&tenant, DeleteScope::Trace(trace))).is_ok();
                let verdict = if done { Verdict::TraceDeleted } else { Verdict::TraceDeleting };
                for n in of_trace {
                    let known = oracle.writes.get(&n).copied();
                    if known != Some(Verdict::TraceDeleted) {
                        oracle.writes.insert(n, verdict);
                    }
                }
                // What is written to the trace later is new.
                *next = (*next / 3 + 1) * 3;
            }
            3 => {
                let shown = match read(store) {
                    Ok(s) => s,
                    Err(_) if fs.is_off() => return Ok(()),
                    Err(e) => return Err(format!("cannot read: {e}")),
                };
                if !fs.is_off() && shown.missing.is_empty() {
                    // Unknown writes may be in the log and not shown until the next start.
                    oracle.check(&shown).map_err(|e| format!("while running: {e}"))?;
                    tally.checks += 1;
                }
            }
            _ => {
                let n = *next;
                *next += 1;
                match now(store.append(&tenant, batch_of(n))) {
                    Ok(_) => {
                        oracle.writes.insert(n, Verdict::Acked);
                        tally.acked += 1;
                    }
                    Err(_) => {
                        oracle.writes.insert(n, Verdict::Unknown);
                        tally.unknown += 1;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Fills a store, damages one thing on its disk, and looks at what is left.
///
/// Returns (whether the damage was noticed, writes lost).
///
/// # Errors
/// When altered data is shown, the store does not open, or more is lost than the damage explains.
pub fn damage(seed: u64, whole_page: bool) -> Result<(bool, usize), String> {
    let mut rng = Rng::new(seed);
    let fs = SimVfs::new(seed);
    let mut oracle = Oracle::default();
    let store = open(&mut rng, &fs)?;
    let tenant = TenantId::default();
    for n in 0..60 + rng.below(200) {
        if now(store.append(&tenant, batch_of(n))).is_ok() {
            oracle.writes.insert(n, Verdict::Acked);
        }
        if rng.one_in(60) {
            now(store.flush())?;
        }
        if rng.one_in(90) {
            now(store.merge())?;
        }
    }
    drop(store);
    let what = fs.damage(whole_page).ok_or("nothing to damage")?;
    let told = |e: String| format!("{what}: {e}");
    let report = obs_storage::verify(std::path::Path::new("/data"), &fs, &Elsewhere::Nothing)
        .map_err(|e| told(e.to_string()))?;
    let found_offline = !report.findings.is_empty();
    let store = open(&mut rng, &fs).map_err(told)?;
    let shown = read(&store).map_err(|e| told(e.to_string()))?;
    // What is shown must be what was sent; what is missing must be told.
    let mut kept = Oracle::default();
    let whole: BTreeSet<u64> = shown.logs.iter().filter_map(|r| number_of(&r.attributes)).collect();
    let mut lost = 0;
    for n in oracle.writes.keys() {
        let point = (labels_of(*n), time_ns(*n) / 1_000_000);
        let is_there = whole.contains(n)
            && shown.samples.contains_key(&point)
            && shown.spans.iter().any(|s| s.span_id == span_of(*n));
        lost += usize::from(!is_there);
    }
    for n in oracle.writes.keys() {
        kept.writes.insert(*n, Verdict::Unknown);
    }
    let altered = kept.altered(&shown);
    if let Some(e) = altered {
        return Err(told(e));
    }
    let recovery = store.recovery();
    let noticed_at_start =
        recovery.bad_frames > 0 || recovery.torn_bytes > 0 || !recovery.manifest_damage.is_empty();
    if lost > 0 && shown.missing.is_empty() && !noticed_at_start {
        return Err(told(format!("{lost} writes are gone and nothing says so")));
    }
    if !found_offline {
        return Err(told("verify found nothing".into()));
    }
    Ok((found_offline, lost))
}

impl Oracle {
    /// Returns the first record that is not what was sent, if any.
    fn altered(&self, shown: &Shown) -> Option<String> {
        for r in &shown.logs {
            match number_of(&r.attributes) {
                Some(n) if self.writes.contains_key(&n) && **r == log_of(n) => {}
                other => return Some(format!("log record {other:?} was altered")),
            }
        }
        for s in &shown.spans {
            match number_of(&s.attributes) {
                Some(n) if self.writes.contains_key(&n) && **s == span_record(n) => {}
                other => return Some(format!("span {other:?} was altered")),
            }
        }
        let sent: BTreeMap<_, _> = self
            .writes
            .keys()
            .map(|n| ((labels_of(*n), time_ns(*n) / 1_000_000), (*n as f64 / 4.0).to_bits()))
            .collect();
        let bad = shown.samples.iter().find(|(k, v)| sent.get(*k) != Some(*v));
        bad.map(|(k, _)| format!("sample {k:?} was altered"))
    }
}
