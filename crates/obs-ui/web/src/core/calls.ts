// What a page of calls is narrowed by; the URL holds it.

import { nav } from './state.svelte';

/** Dimensions that calls are counted and filtered by, with their titles. */
export const facetNames: [string, string][] = [['model', 'Model'], ['provider', 'Provider'], ['service', 'Service'], ['environment', 'Environment'], ['operation', 'Operation'], ['status', 'Status'], ['finish_reason', 'Finish reason'], ['cost_state', 'Price'], ['user', 'User']];

/** The filters of the current page: values by dimension, of those that have some. */
export function filters(): Record<string, string[]> {
  const all = [...facetNames.map(([n]) => n), 'session'].map((n): [string, string[]] => [n, nav.all(n)]);
  return Object.fromEntries(all.filter(([, values]) => values.length));
}

/** Takes a value into the filters, or out of them. */
export function toggle(name: string, value: string) {
  const now = nav.all(name);
  nav.set({ [name]: now.includes(value) ? now.filter((v) => v !== value) : [...now, value] });
}

/** What names a call in URLs: its trace and span. */
export const callKey = (c: { trace_id: string; span_id: string }) => `${c.trace_id}:${c.span_id}`;
