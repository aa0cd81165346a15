//! Warnings and infos that a query returns beside its result.

use crate::ast::Pos;

/// Texts in the order in which they arose, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations {
    pub warnings: Vec<(String, Pos)>,
    pub infos: Vec<(String, Pos)>,
}

impl Annotations {
    pub(crate) fn warn(&mut self, text: impl Into<String>, pos: Pos) {
        let item = (format!("PromQL warning: {}", text.into()), pos);
        if !self.warnings.contains(&item) {
            self.warnings.push(item);
        }
    }

    pub(crate) fn info(&mut self, text: impl Into<String>, pos: Pos) {
        let item = (format!("PromQL info: {}", text.into()), pos);
        if !self.infos.contains(&item) {
            self.infos.push(item);
        }
    }

    /// Returns warnings and infos with line and column of the query, as Prometheus prints them.
    pub fn print(&self, query: &str) -> (Vec<String>, Vec<String>) {
        let one = |(text, pos): &(String, Pos)| {
            let before = query.get(..pos.start).unwrap_or(query);
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            format!("{text} ({line}:{column})")
        };
        (self.warnings.iter().map(one).collect(), self.infos.iter().map(one).collect())
    }
}
