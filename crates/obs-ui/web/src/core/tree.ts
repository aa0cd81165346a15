// A trace as a flat, pre-ordered tree: O(n), no recursion, so that 100,000 spans are no problem.

export interface Skeleton {
  trace_id: string;
  start_ms: number;
  id: string[];
  parent: (string | null)[];
  service: string[];
  name: string[];
  start: number[];
  duration: number[];
  error: boolean[];
  kind: string[];
  model: (string | null)[];
  tokens_in: (number | null)[];
  tokens_out: (number | null)[];
  cost: (string | null)[];
  /** When the span is on the critical path: starts and lengths. */
  critical: ([number, number][] | null)[];
  /** Whether only the archive has it. */
  archived: boolean;
  /** Spans of the whole trace; the columns may be a page of them. */
  total: number;
  rollup: Rollup;
}

/** What a whole trace amounts to. */
export interface Rollup {
  spans: number;
  services: number;
  errors: number;
  duration: number;
  llm: { requests: number; unpriced: number; input_tokens: number; output_tokens: number; cost_usd: string };
}

/** Appends a further page. */
export function joined(a: Skeleton, b: Skeleton): Skeleton {
  const out: Record<string, unknown> = { ...a };
  for (const [key, list] of Object.entries(a)) if (Array.isArray(list)) out[key] = list.concat(b[key as keyof Skeleton]);
  return out as unknown as Skeleton;
}

/** One line along the stretches of the critical path, in thousandths of the trace. */
export const pathOf = (stretches: [number, number][], end: number) =>
  stretches.map(([at, length]) => `M${((1000 * at) / end).toFixed(2)} 0h${Math.max(0.5, (1000 * length) / end).toFixed(2)}`).join('');

export interface Tree {
  /** Span index by row, parents before children, siblings by start. */
  order: number[];
  /** Depth by span index. */
  depth: number[];
  /** Number of descendants by span index. */
  size: number[];
  /** Spans whose parent is not in the trace. */
  orphans: number;
  /** End of the last span, ns since the trace began. */
  end: number;
}

/** Orders the spans. Cycles and missing parents make roots; nothing is lost. */
export function build(s: Skeleton): Tree {
  const n = s.id.length;
  const index = new Map<string, number>();
  for (let i = 0; i < n; i++) index.set(s.id[i]!, i);
  const children: number[][] = Array.from({ length: n }, () => []);
  const roots: number[] = [];
  let orphans = 0;
  for (let i = 0; i < n; i++) {
    const parent = s.parent[i];
    const p = parent == null ? undefined : index.get(parent);
    if (p === undefined || p === i) {
      roots.push(i);
      if (parent != null) orphans++;
    } else children[p]!.push(i);
  }
  const byStart = (a: number, b: number) => s.start[a]! - s.start[b]! || a - b;
  const order: number[] = [];
  const depth = new Array<number>(n).fill(0);
  const seen = new Uint8Array(n);
  const walk = (root: number) => {
    const stack = [root];
    while (stack.length) {
      const i = stack.pop()!;
      if (seen[i]) continue;
      seen[i] = 1;
      order.push(i);
      const list = children[i]!.sort(byStart);
      for (let k = list.length - 1; k >= 0; k--) {
        depth[list[k]!] = depth[i]! + 1;
        stack.push(list[k]!);
      }
    }
  };
  roots.sort(byStart).forEach(walk);
  // What is left hangs in a cycle.
  for (let i = 0; i < n; i++) if (!seen[i]) walk(i);
  const size = new Array<number>(n).fill(0);
  let end = 1;
  for (let r = order.length - 1; r >= 0; r--) {
    const i = order[r]!;
    const parent = s.parent[i];
    const p = parent == null ? undefined : index.get(parent);
    if (p !== undefined && p !== i && depth[i]! > 0) size[p]! += size[i]! + 1;
    end = Math.max(end, s.start[i]! + s.duration[i]!);
  }
  return { order, depth, size, orphans, end };
}

/** Returns the rows that show when the given spans are collapsed. */
export function visible(t: Tree, collapsed: ReadonlySet<number>): number[] {
  if (collapsed.size === 0) return t.order;
  const out: number[] = [];
  for (let r = 0; r < t.order.length; r++) {
    const i = t.order[r]!;
    out.push(i);
    if (collapsed.has(i)) r += t.size[i]!;
  }
  return out;
}
