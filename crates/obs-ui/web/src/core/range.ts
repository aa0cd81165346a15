// Time ranges in Grafana's syntax: `now-1h`, or epoch milliseconds.

const UNITS: Record<string, number> = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000, w: 604_800_000 };

/** Resolves one end of a range to epoch ms; NaN if it is not one. */
export function resolve(text: string, now: number): number {
  if (/^-?\d+$/.test(text)) return Number(text);
  const m = /^now(?:-(\d+)([smhdw]))?$/.exec(text);
  if (!m) return NaN;
  return m[1] ? now - Number(m[1]) * (UNITS[m[2] ?? 's'] ?? NaN) : now;
}

export interface Range {
  from: number;
  to: number;
}

/** Resolves a range; anything unreadable becomes the last hour. */
export function range(from: string, to: string, now: number): Range {
  const r = { from: resolve(from, now), to: resolve(to, now) };
  return Number.isFinite(r.from) && Number.isFinite(r.to) && r.from < r.to ? r : { from: now - 3_600_000, to: now };
}

const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 86_400];

/** Picks a round step in seconds that gives at most `points` points. */
export function step(r: Range, points: number): number {
  const seconds = (r.to - r.from) / 1000 / points;
  return STEPS.find((s) => s >= seconds) ?? Math.ceil(seconds / 86_400) * 86_400;
}

/** Moves or scales a range around its middle. */
export function shift(r: Range, by: number, scale: number): Range {
  const width = (r.to - r.from) * scale;
  const middle = (r.from + r.to) / 2 + (r.to - r.from) * by;
  return { from: Math.round(middle - width / 2), to: Math.round(middle + width / 2) };
}
