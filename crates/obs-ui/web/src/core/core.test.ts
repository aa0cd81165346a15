import { ruleYaml } from './rules';
import { describe, expect, it } from 'vitest';
import { ago, count, duration, percent, usd } from './format';
import { range, resolve, shift, step } from './range';
import { colorIndex } from './color';
import { layout } from './graph';
import { format, fromHash, of, parse } from './matchers';
import { build, joined, pathOf, visible, type Skeleton } from './tree';

describe('format', () => {
  it('prints what people read', () => {
    expect([0, 999, 1234, 5.5e6, null].map((n) => count(n as number))).toEqual(['0', '999', '1.23 k', '5.5 M', '–']);
    expect([0.0005, 0.25, 12.34, 1500, 61_000, 3_700_000].map(duration)).toEqual(['500 ns', '250 µs', '12.3 ms', '1.5 s', '1 min 1 s', '1 h 1 min']);
    expect(['0', '0.0000084', '0.0123456', '3.12863394', '1234.5', null].map(usd)).toEqual(['$0', '$8.40e-6', '$0.01235', '$3.13', '$1,234.50', '–']);
    expect(percent(0.0123)).toBe('1.23 %');
    expect(ago(0, 90_000)).toBe('1 min ago');
  });
});

describe('range', () => {
  it('reads Grafana syntax and falls back to an hour', () => {
    expect(resolve('now-15m', 1e9)).toBe(1e9 - 900_000);
    expect(range('5', '10', 100)).toEqual({ from: 5, to: 10 });
    expect(range('junk', 'now', 4e6)).toEqual({ from: 400_000, to: 4e6 });
    expect(step({ from: 0, to: 3_600_000 }, 300)).toBe(15);
    expect(shift({ from: 0, to: 100 }, 0.5, 2)).toEqual({ from: 0, to: 200 });
  });
});

describe('color', () => {
  it('is stable by name', () => {
    expect(colorIndex('gateway')).toBe(colorIndex('gateway'));
    expect(colorIndex('gateway')).toBeLessThan(10);
  });
});

function trace(rows: [string, string | null, number, number][]): Skeleton {
  const fill = <T>(v: T) => rows.map(() => v);
  return {
    trace_id: 't', start_ms: 0, id: rows.map((r) => r[0]), parent: rows.map((r) => r[1]), service: fill('s'), name: fill('n'),
    start: rows.map((r) => r[2]), duration: rows.map((r) => r[3]), error: fill(false), kind: fill(''), model: fill(null),
    tokens_in: fill(null), tokens_out: fill(null), cost: fill(null), critical: fill(null), archived: false, total: rows.length, rollup: { spans: rows.length, services: 1, errors: 0, duration: 1, llm: { requests: 0, unpriced: 0, input_tokens: 0, output_tokens: 0, cost_usd: '0' } },
  };
}

describe('tree', () => {
  it('orders, nests and collapses', () => {
    const s = trace([['b', 'a', 5, 1], ['a', null, 0, 10], ['c', 'a', 2, 1], ['d', 'c', 3, 1], ['x', 'gone', 9, 9]]);
    const t = build(s);
    expect(t.order.map((i) => s.id[i])).toEqual(['a', 'c', 'd', 'b', 'x']);
    expect(t.order.map((i) => t.depth[i])).toEqual([0, 1, 2, 1, 0]);
    expect([t.orphans, t.end, t.size[1]]).toEqual([1, 18, 3]);
    expect(visible(t, new Set([2])).map((i) => s.id[i])).toEqual(['a', 'c', 'b', 'x']);
  });
  it('survives cycles and keeps every span', () => {
    const t = build(trace([['a', 'b', 0, 1], ['b', 'a', 1, 1], ['c', 'c', 2, 1]]));
    expect(t.order.length).toBe(3);
  });
  it('takes a chain of 50,000 without recursion', () => {
    const t = build(trace(Array.from({ length: 50_000 }, (_, i) => [String(i), i ? String(i - 1) : null, i, 1] as [string, string | null, number, number])));
    expect(t.depth[49_999]).toBe(49_999);
  });
});

describe('pages of a trace', () => {
  it('are joined column by column', () => {
    const s = joined(trace([['a', null, 0, 9]]), { ...trace([['b', 'a', 1, 2]]), total: 2 });
    expect([s.id, s.parent, s.start, s.critical, s.trace_id]).toEqual([['a', 'b'], [null, 'a'], [0, 1], [null, null], 't']);
    expect(build(s).order).toEqual([0, 1]);
  });
  it('draw their critical path as one line', () => {
    expect(pathOf([[50, 50], [0, 0.01]], 100)).toBe('M500.00 0h500.00M0.00 0h0.50');
  });
});

describe('service map', () => {
  it('places callees right of their callers and survives loops', () => {
    const edge = (from: string, to: string) => ({ from, to, calls: 2, failed: 1 });
    const nodes = layout([edge('user', 'gateway'), edge('gateway', 'router'), edge('gateway', 'memory'), edge('router', 'memory'), edge('memory', 'gateway'), edge('a', 'b'), edge('b', 'a'), edge('x', 'x')]);
    const at = Object.fromEntries(nodes.map((n) => [n.name, n.column]));
    expect(at).toEqual({ a: 0, b: 1, gateway: 1, memory: 3, router: 2, user: 0, x: 0 });
    expect(nodes.find((n) => n.name === 'memory')).toMatchObject({ calls: 4, failed: 2 });
    expect(new Set(nodes.map((n) => `${n.column} ${n.row}`)).size).toBe(nodes.length);
  });
});

describe('matchers', () => {
  it('read what people and links write, and write what they read', () => {
    for (const [text, want] of [
      ['severity=critical team=~"a|b"', 'severity="critical", team=~"a|b"'],
      ['{a="x,y", b!=c}', 'a="x,y", b!="c"'],
      ['"a.b"="say \\"hi\\"", c!~', '"a.b"="say \\"hi\\"", c!~""'],
      ['', ''],
    ] as const) {
      expect(format(parse(text))).toBe(want);
      expect(format(parse(format(parse(text))))).toBe(want);
    }
    expect(() => parse('just words')).toThrow('Not a matcher');
    expect(format(of({ a: 'b"', c: '' }))).toBe('a="b\\"", c=""');
  });
  it('lead the links of Alertmanager to our pages', () => {
    expect(fromHash('#/alerts?receiver=ops')).toBe('/alerts?receiver=ops');
    expect(fromHash('#/silences/new?filter=%7Balertname%3D%22x%22%7D')).toBe('/silences?filter=%7Balertname%3D%22x%22%7D&new=1');
    expect(fromHash('#/silences/12-ab')).toBe('/silences?id=12-ab');
    expect(fromHash('#/status')).toBe('/contacts');
    expect(fromHash('#top')).toBe(null);
  });
});

describe('rules', () => {
  it('are written as rule files have them', () => {
    expect(ruleYaml({ name: 'Down', expr: 'up == 0', hold: '5m', severity: 'critical' })).toBe('- alert: Down\n  expr: |-\n    up == 0\n  for: "5m"\n  labels:\n    severity: critical\n');
    expect(ruleYaml({ name: 'no', expr: 'a\n  > b', hold: '', severity: '' })).toBe('- alert: "no"\n  expr: |-\n    a\n      > b\n');
  });
});
