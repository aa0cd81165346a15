// Matchers as people write them: severity="critical" team=~a|b, with or without commas and braces.

export interface Matcher { name: string; value: string; isRegex: boolean; isEqual: boolean }

const ONE = /^\s*(?:"((?:[^"\\]|\\.)*)"|([^\s=!~,{}"]+))\s*(=~|!~|!=|=)\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,}]*))\s*,?/;

/** Parses a list of matchers; throws with the place that is wrong. */
export function parse(text: string): Matcher[] {
  let rest = text.trim().replace(/^\{/, '').replace(/\}$/, '').trim();
  const out: Matcher[] = [];
  const plain = (s: string) => s.replace(/\\(n|.)/g, (_, c: string) => (c === 'n' ? '\n' : c));
  while (rest) {
    const m = ONE.exec(rest);
    if (!m) throw new Error(`Not a matcher: ${rest}`);
    const op = m[3];
    out.push({ name: plain(m[1] ?? m[2] ?? ''), value: plain(m[4] ?? m[5] ?? ''), isRegex: op === '=~' || op === '!~', isEqual: op === '=' || op === '=~' });
    rest = rest.slice(m[0].length).trim();
  }
  return out;
}

/** Writes matchers so that `parse` and the server read them. */
export function format(list: Matcher[]): string {
  const quote = (s: string) => `"${s.replace(/[\\"]/g, '\\$&').replaceAll('\n', '\\n')}"`;
  const name = (s: string) => (/^[A-Za-z_:][A-Za-z0-9_:]*$/.test(s) ? s : quote(s));
  return list.map((m) => `${name(m.name)}${m.isEqual ? (m.isRegex ? '=~' : '=') : m.isRegex ? '!~' : '!='}${quote(m.value)}`).join(', ');
}

/** Returns matchers that hold for exactly these labels, and more. */
export function of(labels: Record<string, string>): Matcher[] {
  return Object.entries(labels).map(([name, value]) => ({ name, value, isRegex: false, isEqual: true }));
}

/** Leads a link of Alertmanager's page (`#/alerts?…`, `#/silences/new?…`) to ours; null for others. */
export function fromHash(hash: string): string | null {
  const m = /^#\/(alerts|silences|status|receivers)(\/[^?]*)?(?:\?(.*))?$/.exec(hash);
  if (!m) return null;
  const given = new URLSearchParams(m[3] ?? '');
  const q = new URLSearchParams();
  for (const name of ['filter', 'receiver']) if (given.get(name)) q.set(name, given.get(name)!);
  if (m[1] === 'status' || m[1] === 'receivers') return '/contacts';
  if (m[1] === 'alerts') return `/alerts?${q}`;
  const rest = (m[2] ?? '').slice(1);
  if (rest === 'new') q.set('new', '1');
  else if (rest) q.set('id', rest.replace(/\/edit$/, ''));
  return `/silences?${q}`;
}
