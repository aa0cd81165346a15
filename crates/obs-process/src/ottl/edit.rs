//! What statements do to a record.

use super::eval::{Scratch, as_text};
use super::{Editor, Expr, Key, Place, Statement, Strategy, Target};
use crate::context::Context;
use obs_model::{AttributeValue, Attributes};
use regex::Regex;

type Pairs = Vec<(String, AttributeValue)>;

/// Goes down into a value, making the maps that are not there.
fn at_mut<'a>(mut v: &'a mut AttributeValue, keys: &[Key]) -> Option<&'a mut AttributeValue> {
    for key in keys {
        if let (AttributeValue::Empty, Key::Name(_)) = (&*v, key) {
            *v = AttributeValue::Map(Vec::new());
        }
        v = match (v, key) {
            (AttributeValue::Map(m), Key::Name(k)) => {
                let at = m.iter().position(|(n, _)| n == k).unwrap_or_else(|| {
                    m.push((k.clone(), AttributeValue::Empty));
                    m.len() - 1
                });
                &mut m.get_mut(at)?.1
            }
            (AttributeValue::Array(a), Key::Index(i)) => a.get_mut(*i)?,
            _ => return None,
        };
    }
    Some(v)
}

impl Place {
    /// Changes what is there.
    fn edit(
        &self,
        c: &mut dyn Context,
        scratch: &mut Scratch,
        f: impl FnOnce(&mut AttributeValue),
    ) -> Result<(), String> {
        let attributes = match self.target {
            Target::Field(of, field) => {
                let mut v = c.field(of, field);
                let before = v.clone();
                f(&mut v);
                if v != before && !c.set_field(of, field, v) {
                    return Err("the value is not of the field's type".into());
                }
                return Ok(());
            }
            Target::Attributes(of) => c.attributes_mut(of).ok_or("there are no attributes")?,
            Target::Cache => &mut scratch.0,
        };
        let mut whole = AttributeValue::Map(std::mem::take(attributes).into_pairs());
        if let Some(v) = at_mut(&mut whole, &self.keys) {
            f(v);
        }
        if let AttributeValue::Map(pairs) = whole {
            *attributes = Attributes::from(pairs);
        }
        Ok(())
    }

    /// Changes a map; anything else is an error.
    fn edit_map(
        &self,
        c: &mut dyn Context,
        scratch: &mut Scratch,
        f: impl FnOnce(&mut Pairs),
    ) -> Result<(), String> {
        if !matches!(self.read(c, scratch), AttributeValue::Map(_)) {
            return Err("there is no map".into());
        }
        self.edit(c, scratch, |v| {
            if let AttributeValue::Map(pairs) = v {
                f(pairs);
            }
        })
    }
}

/// Replaces every match; `$1` in the replacement is a group.
fn replaced(regex: &Regex, text: &str, with: &str) -> Option<String> {
    regex.is_match(text).then(|| regex.replace_all(text, with).into_owned())
}

fn flatten(pairs: &mut Pairs, prefix: &str) {
    fn put(out: &mut Pairs, name: String, v: AttributeValue, depth: usize) {
        match v {
            AttributeValue::Map(m) if depth < 16 => {
                m.into_iter().for_each(|(k, v)| put(out, format!("{name}.{k}"), v, depth + 1));
            }
            AttributeValue::Array(a) if depth < 16 => a
                .into_iter()
                .enumerate()
                .for_each(|(i, v)| put(out, format!("{name}.{i}"), v, depth + 1)),
            v => out.push((name, v)),
        }
    }
    let mut out = Vec::new();
    for (k, v) in std::mem::take(pairs) {
        let name = if prefix.is_empty() { k } else { format!("{prefix}.{k}") };
        put(&mut out, name, v, 0);
    }
    *pairs = out;
}

fn merge(pairs: &mut Pairs, source: Pairs, strategy: Strategy) {
    for (k, v) in source {
        match pairs.iter_mut().find(|(n, _)| *n == k) {
            Some(slot) if strategy != Strategy::Insert => slot.1 = v,
            None if strategy != Strategy::Update => pairs.push((k, v)),
            _ => {}
        }
    }
}

fn truncate(v: &mut AttributeValue, n: usize) {
    if let AttributeValue::String(s) = v {
        let end = (0..=n.min(s.len())).rev().find(|i| s.is_char_boundary(*i)).unwrap_or(0);
        s.truncate(end);
    }
}

fn keep_first(pairs: &mut Pairs, n: usize, keep: &[String]) {
    let mut left = n.saturating_sub(pairs.iter().filter(|(k, _)| keep.contains(k)).count());
    pairs.retain(|(k, _)| {
        let is_kept = keep.contains(k) || left > 0;
        left -= usize::from(is_kept && !keep.contains(k));
        is_kept
    });
}

impl Statement {
    /// Runs the statement on a record.
    ///
    /// # Errors
    /// When it cannot be done of this record, which stays as it is.
    pub(crate) fn run(&self, c: &mut dyn Context, scratch: &mut Scratch) -> Result<(), String> {
        if let Some(condition) = &self.condition
            && !condition.holds(c, scratch)?
        {
            return Ok(());
        }
        let text = |e: &Expr, c: &dyn Context, s: &Scratch| -> Result<String, String> {
            as_text(&e.value(c, s)?).ok_or_else(|| "there is no replacement".to_owned())
        };
        let texts = |list: &[Expr], c: &dyn Context, s: &Scratch| -> Result<Vec<String>, String> {
            list.iter().map(|e| text(e, c, s)).collect()
        };
        match &self.editor {
            Editor::Set(p, e) => {
                let v = e.value(c, scratch)?;
                // Nothing is not a value: what is there stays.
                if v == AttributeValue::Empty {
                    return Ok(());
                }
                p.edit(c, scratch, |slot| *slot = v)
            }
            Editor::Append(p, e) => {
                let v = e.value(c, scratch)?;
                p.edit(c, scratch, |slot| {
                    let mut items = match std::mem::replace(slot, AttributeValue::Empty) {
                        AttributeValue::Empty => Vec::new(),
                        AttributeValue::Array(a) => a,
                        other => vec![other],
                    };
                    match v {
                        AttributeValue::Array(more) => items.extend(more),
                        one => items.push(one),
                    }
                    *slot = AttributeValue::Array(items);
                })
            }
            Editor::DeleteKeys(p, keys) => {
                let keys = texts(keys, c, scratch)?;
                p.edit_map(c, scratch, |m| m.retain(|(k, _)| !keys.contains(k)))
            }
            Editor::KeepKeys(p, keys) => {
                let keys = texts(keys, c, scratch)?;
                p.edit_map(c, scratch, |m| m.retain(|(k, _)| keys.contains(k)))
            }
            Editor::DeleteMatching(p, r) => {
                p.edit_map(c, scratch, |m| m.retain(|(k, _)| !r.is_match(k)))
            }
            Editor::KeepMatching(p, r) => {
                p.edit_map(c, scratch, |m| m.retain(|(k, _)| r.is_match(k)))
            }
            Editor::Flatten(p, prefix) => {
                p.edit_map(c, scratch, |m| flatten(m, prefix.as_deref().unwrap_or_default()))
            }
            Editor::Limit(p, n, keep) => p.edit_map(c, scratch, |m| keep_first(m, *n, keep)),
            Editor::Merge(p, source, strategy) => match source.value(c, scratch)? {
                AttributeValue::Map(source) => {
                    p.edit_map(c, scratch, |m| merge(m, source, *strategy))
                }
                _ => Err("only a map is merged".into()),
            },
            Editor::ReplaceMatch(p, ..) | Editor::ReplacePattern(p, ..)
                if p.read(c, scratch) == AttributeValue::Empty =>
            {
                Ok(())
            }
            Editor::ReplaceMatch(p, r, with) => {
                let with = text(with, c, scratch)?;
                p.edit(c, scratch, |v| {
                    if v.as_str().is_some_and(|s| r.is_match(s)) {
                        *v = with.into();
                    }
                })
            }
            Editor::ReplaceAllMatches(p, r, with) => {
                let with = text(with, c, scratch)?;
                p.edit_map(c, scratch, |m| {
                    for (_, v) in m {
                        if v.as_str().is_some_and(|s| r.is_match(s)) {
                            *v = with.as_str().into();
                        }
                    }
                })
            }
            Editor::ReplacePattern(p, r, with) => {
                let with = text(with, c, scratch)?;
                p.edit(c, scratch, |v| {
                    if let Some(new) = v.as_str().and_then(|s| replaced(r, s, &with)) {
                        *v = new.into();
                    }
                })
            }
            Editor::ReplaceAllPatterns(p, of_keys, r, with) => {
                let with = text(with, c, scratch)?;
                p.edit_map(c, scratch, |m| {
                    for (k, v) in m {
                        if *of_keys {
                            *k = replaced(r, k, &with).unwrap_or_else(|| std::mem::take(k));
                        } else if let Some(new) = v.as_str().and_then(|s| replaced(r, s, &with)) {
                            *v = new.into();
                        }
                    }
                })
            }
            Editor::Truncate(p, n) => {
                p.edit_map(c, scratch, |m| m.iter_mut().for_each(|(_, v)| truncate(v, *n)))
            }
        }
    }
}
