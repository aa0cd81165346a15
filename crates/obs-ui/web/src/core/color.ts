// Colours that stay with a name on every page.

const SIZE = 10;

/** Returns the palette index of a name. */
export function colorIndex(name: string): number {
  let h = 2166136261;
  for (let i = 0; i < name.length; i++) h = Math.imul(h ^ name.charCodeAt(i), 16777619);
  return (h >>> 0) % SIZE;
}

/** Returns the CSS colour of a name. */
export function color(name: string): string {
  return `var(--s${colorIndex(name)})`;
}

/** Returns distinct palette indices for the names of one chart: by name, moved on where taken. */
export function chartColors(names: string[]): number[] {
  const taken = new Set<number>();
  return names.map((name) => {
    let i = colorIndex(name);
    for (let k = 0; k < SIZE && taken.has(i); k++) i = (i + 1) % SIZE;
    if (taken.size >= SIZE) taken.clear();
    taken.add(i);
    return i;
  });
}
