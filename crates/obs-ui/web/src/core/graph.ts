// Layout of a service graph: columns from callers to callees. No framework, no DOM.

export interface Edge {
  from: string;
  to: string;
  calls: number;
  failed: number;
}

export interface Node {
  name: string;
  /** Column, from 0 for those that nobody calls. */
  column: number;
  /** Place in the column, from 0. */
  row: number;
  calls: number;
  failed: number;
}

/** Places each service right of its callers; a loop is cut where it closes. */
export function layout(edges: Edge[]): Node[] {
  const names = [...new Set(edges.flatMap((e) => [e.from, e.to]))].sort();
  const below = new Map<string, string[]>(names.map((n) => [n, []]));
  for (const e of edges) if (e.from !== e.to) below.get(e.from)?.push(e.to);
  // Each service once, callees before callers; an edge to a service that is still open closes a loop.
  const done = new Set<string>();
  const open = new Set<string>();
  const order: string[] = [];
  const forward: [string, string][] = [];
  const visit = (name: string) => {
    open.add(name);
    for (const next of below.get(name) ?? []) {
      if (open.has(next)) continue;
      forward.push([name, next]);
      if (!done.has(next)) visit(next);
    }
    open.delete(name);
    done.add(name);
    order.unshift(name);
  };
  const called = new Set(edges.filter((e) => e.from !== e.to).map((e) => e.to));
  for (const n of [...names.filter((n) => !called.has(n)), ...names]) if (!done.has(n)) visit(n);
  const column = new Map<string, number>(names.map((n) => [n, 0]));
  const outgoing = new Map<string, string[]>(names.map((n) => [n, []]));
  for (const [from, to] of forward) outgoing.get(from)?.push(to);
  for (const from of order) {
    for (const to of outgoing.get(from) ?? []) column.set(to, Math.max(column.get(to) ?? 0, (column.get(from) ?? 0) + 1));
  }
  const rows = new Map<number, number>();
  return names.map((name) => {
    const at = column.get(name) ?? 0;
    const row = rows.get(at) ?? 0;
    rows.set(at, row + 1);
    const to = edges.filter((e) => e.to === name);
    return { name, column: at, row, calls: sum(to.map((e) => e.calls)), failed: sum(to.map((e) => e.failed)) };
  });
}

function sum(list: number[]): number {
  return list.reduce((a, b) => a + b, 0);
}
