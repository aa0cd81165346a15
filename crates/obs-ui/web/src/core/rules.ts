// Alert rules as files have them. No framework, no DOM.

export interface Draft {
  name: string;
  expr: string;
  /** A duration as rule files write it, or empty. */
  hold: string;
  severity: string;
}

/** Quotes a text for YAML unless it is plainly a word. */
function scalar(text: string): string {
  return /^[A-Za-z_][\w-]*$/.test(text) && !/^(true|false|null|yes|no|on|off|y|n)$/i.test(text) ? text : JSON.stringify(text);
}

/** Writes a rule as an entry of a group's `rules`. */
export function ruleYaml(d: Draft): string {
  const expr = d.expr.split('\n').map((l) => `    ${l}`.trimEnd()).join('\n');
  const out = [`- alert: ${scalar(d.name || 'Unnamed')}`, '  expr: |-', expr];
  if (d.hold) out.push(`  for: ${scalar(d.hold)}`);
  if (d.severity) out.push('  labels:', `    severity: ${scalar(d.severity)}`);
  return out.join('\n') + '\n';
}
