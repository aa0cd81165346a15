// Numbers, durations, money and times as people read them. No framework, no DOM.

/** Formats a count with thousands shortened: 1234 → "1.23 k". */
export function count(n: number | null | undefined): string {
  if (n == null || !Number.isFinite(n)) return '–';
  const units: [number, string][] = [[1e12, ' T'], [1e9, ' B'], [1e6, ' M'], [1e3, ' k']];
  for (const [size, unit] of units) if (Math.abs(n) >= size) return trim(n / size, 3) + unit;
  return trim(n, 3);
}

function trim(n: number, digits: number): string {
  return Number(n.toPrecision(digits)).toString();
}

/** Formats milliseconds: 0.25 → "250 µs", 61000 → "1 min 1 s". */
export function duration(ms: number | null | undefined): string {
  if (ms == null || !Number.isFinite(ms)) return '–';
  if (ms === 0) return '0 ms';
  const abs = Math.abs(ms);
  if (abs < 0.001) return trim(ms * 1e6, 3) + ' ns';
  if (abs < 1) return trim(ms * 1000, 3) + ' µs';
  if (abs < 1000) return trim(ms, 3) + ' ms';
  if (abs < 60_000) return trim(ms / 1000, 3) + ' s';
  const minutes = Math.floor(abs / 60_000);
  const seconds = Math.round((abs % 60_000) / 1000);
  return (ms < 0 ? '-' : '') + (minutes >= 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes} min ${seconds} s`);
}

/** Formats a decimal string of dollars. Small amounts keep four significant digits; never "$0" for a positive amount. */
export function usd(text: string | number | null | undefined): string {
  if (text == null || text === '') return '–';
  const n = Number(text);
  if (!Number.isFinite(n)) return '–';
  if (n === 0) return '$0';
  if (Math.abs(n) >= 1) return '$' + n.toLocaleString('en-US', { minimumFractionDigits: 2, maximumFractionDigits: 2 });
  if (Math.abs(n) >= 0.0001) return '$' + Number(n.toPrecision(4)).toString();
  return '$' + n.toExponential(2);
}

/** Formats a share: 0.1234 → "12.3 %". */
export function percent(share: number | null | undefined): string {
  return share == null || !Number.isFinite(share) ? '–' : trim(share * 100, 3) + ' %';
}

const two = (n: number) => String(n).padStart(2, '0');

/** Formats a Unix time in ms as local date and time with milliseconds. */
export function time(ms: number): string {
  const d = new Date(ms);
  return `${d.getFullYear()}-${two(d.getMonth() + 1)}-${two(d.getDate())} ${clock(ms)}.${String(d.getMilliseconds()).padStart(3, '0')}`;
}

/** Formats a Unix time in ms as local time of day. */
export function clock(ms: number): string {
  const d = new Date(ms);
  return `${two(d.getHours())}:${two(d.getMinutes())}:${two(d.getSeconds())}`;
}

/** Formats how long ago a time was. */
export function ago(ms: number, now: number): string {
  const s = Math.max(0, Math.round((now - ms) / 1000));
  if (s < 60) return `${s} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  return s < 86_400 ? `${Math.floor(s / 3600)} h ago` : `${Math.floor(s / 86_400)} d ago`;
}
