// The PromQL editor: completion and checks come from the server's own series.

import { autocompletion, closeBrackets, completionKeymap } from '@codemirror/autocomplete';
import { defaultKeymap, history, historyKeymap } from '@codemirror/commands';
import { HighlightStyle, bracketMatching, syntaxHighlighting } from '@codemirror/language';
import { EditorState, Prec } from '@codemirror/state';
import { EditorView, keymap } from '@codemirror/view';
import { tags } from '@lezer/highlight';
import { PromQLExtension } from '@prometheus-io/codemirror-promql';

const theme = EditorView.theme({
  '&': { fontSize: '12px', backgroundColor: 'transparent', color: 'var(--fg)' },
  '.cm-content': { fontFamily: 'var(--mono)', caretColor: 'var(--fg)' },
  '.cm-tooltip': { backgroundColor: 'var(--panel)', border: '1px solid var(--line)', color: 'var(--fg)' },
  '.cm-tooltip-autocomplete ul li[aria-selected]': { backgroundColor: 'var(--accent-bg)', color: 'var(--accent)' },
  '&.cm-focused .cm-selectionBackground, .cm-selectionBackground': { backgroundColor: 'var(--accent-bg) !important' },
});

const colours = HighlightStyle.define([
  { tag: [tags.keyword, tags.operator, tags.modifier], color: 'var(--accent)' },
  { tag: tags.string, color: 'var(--ok)' },
  { tag: tags.number, color: 'var(--warn)' },
  { tag: [tags.labelName, tags.variableName], color: 'var(--info)' },
  { tag: tags.comment, color: 'var(--fg3)' },
]);

export function mountPromql(parent: HTMLElement, doc: string, label: string, changed: (text: string) => void, run: (text: string) => void) {
  const promql = new PromQLExtension().setComplete({ remote: { url: '/prometheus', fetchFn: fetch.bind(window) } });
  const enter = Prec.highest(keymap.of([{ key: 'Enter', run: (v) => (run(v.state.doc.toString()), true) }, { key: 'Shift-Enter', run: (v) => (v.dispatch(v.state.replaceSelection('\n')), true) }]));
  // An open completion list takes Enter first.
  const complete = Prec.highest(keymap.of(completionKeymap));
  const view = new EditorView({
    parent,
    state: EditorState.create({
      doc,
      extensions: [
        complete, enter, history(), closeBrackets(), bracketMatching(), autocompletion(), promql.asExtension(), syntaxHighlighting(colours), theme,
        keymap.of([...defaultKeymap, ...historyKeymap]), EditorView.lineWrapping, EditorView.contentAttributes.of({ 'aria-label': label, 'data-search': '' }),
        EditorView.updateListener.of((u) => { if (u.docChanged) changed(u.state.doc.toString()); }),
      ],
    }),
  });
  changed(doc);
  return {
    set: (text: string) => view.dispatch({ changes: { from: 0, to: view.state.doc.length, insert: text } }),
    destroy: () => view.destroy(),
  };
}
