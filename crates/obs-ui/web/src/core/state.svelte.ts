// The URL is the state: path, range and every page's settings live in it.

import { errorText } from './api';
import { range, shift, type Range } from './range';

class Location {
  path = $state(location.pathname);
  search = $state(location.search);
  now = $state(Date.now());

  params = $derived(new URLSearchParams(this.search));
  from = $derived(this.params.get('from') ?? 'now-1h');
  to = $derived(this.params.get('to') ?? 'now');
  range: Range = $derived(range(this.from, this.to, this.now));

  get(name: string): string {
    return this.params.get(name) ?? '';
  }

  all(name: string): string[] {
    return this.params.getAll(name);
  }

  #read = () => {
    this.path = location.pathname;
    this.search = location.search;
  };

  constructor() {
    addEventListener('popstate', this.#read);
  }

  /** Goes to a path of ours; the range goes along unless the link names one. */
  go(href: string) {
    const url = new URL(href, location.origin);
    for (const name of ['from', 'to']) {
      const value = this.params.get(name);
      if (value && !url.searchParams.has(name)) url.searchParams.set(name, value);
    }
    history.pushState(null, '', url);
    // A new page looks at the present, not at the moment the first one was opened.
    this.now = Date.now();
    this.#read();
    document.querySelector('main')?.scrollTo(0, 0);
  }

  /** Goes to a path of ours with all of its parameters, the range among them. */
  show(path: string, query: string) {
    history.pushState(null, '', query ? `${path}?${query}` : path);
    this.now = Date.now();
    this.#read();
  }

  /** Changes parameters of the current page; empty values are removed. */
  set(changes: Record<string, string | string[] | null>, replace = false) {
    const next = new URLSearchParams(this.search);
    for (const [name, value] of Object.entries(changes)) {
      next.delete(name);
      for (const v of Array.isArray(value) ? value : [value]) if (v) next.append(name, v);
    }
    const text = next.toString();
    const url = this.path + (text ? `?${text}` : '');
    if (replace) history.replaceState(null, '', url);
    else history.pushState(null, '', url);
    this.#read();
  }

  setRange(r: Range) {
    this.set({ from: String(r.from), to: String(r.to) });
  }

  move(by: number, scale: number) {
    this.setRange(shift(this.range, by, scale));
  }

  refresh() {
    this.now = Date.now();
  }
}

export const nav = new Location();

/** Builds a link that keeps the current range. */
export function link(path: string, params: Record<string, string | string[]> = {}): string {
  const q = new URLSearchParams(Object.entries(params).flatMap(([n, v]) => [v].flat().map((x) => [n, x])));
  for (const name of ['from', 'to']) {
    const value = nav.params.get(name);
    if (value && !q.has(name)) q.set(name, value);
  }
  const text = q.toString();
  return path + (text ? `?${text}` : '');
}

/** Loads data again whenever what `load` reads changes; keeps the old data meanwhile. */
export class Loader<T> {
  data = $state<T | null>(null);
  error = $state<string | null>(null);
  loading = $state(false);

  constructor(load: (signal: AbortSignal) => Promise<T> | null) {
    $effect(() => {
      const abort = new AbortController();
      const promise = load(abort.signal);
      if (!promise) return;
      this.loading = true;
      promise
        .then((data) => {
          this.data = data;
          this.error = null;
          this.loading = false;
        })
        .catch((e: unknown) => {
          if (abort.signal.aborted) return;
          this.error = errorText(e);
          this.loading = false;
        });
      return () => abort.abort();
    });
  }
}
