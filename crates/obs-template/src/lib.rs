//! Go's text templates, as rule files, notification templates and log pipelines use them.
//!
//! The language is that of Go's `text/template`: actions, pipelines, variables, `if`, `range`,
//! `with`, `define`, `template`, `block`, `break`, `continue`, trimming and comments. Which
//! functions there are besides Go's own is up to the caller; [`prometheus`] has those of rule files.
//! A run is bounded: what it writes, how deep it nests and how many steps it takes.

mod exec;
mod format;
mod go_time;
mod lexer;
mod parser;
pub mod prometheus;
mod value;
mod zoned;

pub use exec::{Functions, Limits};
pub use format::{format_float_g, printf, quote};
pub use go_time::{Time, format_time, parse_time};
pub use value::{Object, Value};
pub use zoned::{Zoned, format_time_in, parse_time_in};

use std::collections::HashMap;
use std::sync::Arc;

/// Why a template is refused or stopped; texts follow Go's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template: {name}:{line}: {message}")]
pub struct TemplateError {
    pub name: String,
    pub line: usize,
    pub message: String,
}

/// A parsed template and those it defines.
#[derive(Debug, Clone, Default)]
pub struct Template {
    name: String,
    root: Arc<Vec<parser::Node>>,
    defined: HashMap<String, Arc<Vec<parser::Node>>>,
}

impl Template {
    /// Parses a template; `is_function` says which names are functions.
    ///
    /// # Errors
    /// With the line when the text is not a template.
    pub fn parse(
        name: &str,
        text: &str,
        is_function: &dyn Fn(&str) -> bool,
    ) -> Result<Self, TemplateError> {
        let mut template = Self { name: name.to_owned(), ..Self::default() };
        template.root = template.read(name, text, is_function)?;
        Ok(template)
    }

    /// Adds the definitions of another text; of two with one name the later stands.
    ///
    /// # Errors
    /// See [`Self::parse`].
    pub fn add(
        &mut self,
        name: &str,
        text: &str,
        is_function: &dyn Fn(&str) -> bool,
    ) -> Result<(), TemplateError> {
        self.read(name, text, is_function).map(|_| ())
    }

    fn read(
        &mut self,
        name: &str,
        text: &str,
        is_function: &dyn Fn(&str) -> bool,
    ) -> Result<Arc<Vec<parser::Node>>, TemplateError> {
        let fail = |(line, message): (usize, String)| TemplateError {
            name: name.to_owned(),
            line,
            message,
        };
        let tokens = lexer::lex(text).map_err(fail)?;
        let (root, defined) = parser::parse(tokens, is_function).map_err(fail)?;
        self.defined.extend(defined.into_iter().map(|(n, nodes)| (n, Arc::new(nodes))));
        Ok(Arc::new(root))
    }

    /// Replaces what is run; what was defined stays.
    ///
    /// # Errors
    /// See [`Self::parse`].
    pub fn set_root(
        &mut self,
        name: &str,
        text: &str,
        is_function: &dyn Fn(&str) -> bool,
    ) -> Result<(), TemplateError> {
        name.clone_into(&mut self.name);
        self.root = self.read(name, text, is_function)?;
        Ok(())
    }

    /// Returns whether a template of this name was defined.
    pub fn has(&self, name: &str) -> bool {
        self.defined.contains_key(name)
    }

    /// Runs the template with `dot` as its data.
    ///
    /// # Errors
    /// When a function fails, a field is missing, or a limit is reached.
    pub fn run(
        &self,
        dot: &Value,
        functions: &dyn Functions,
        limits: Limits,
    ) -> Result<String, TemplateError> {
        exec::run(self, dot, functions, limits, false)
    }

    /// Runs the template as HTML: what values print is escaped, unless they are HTML themselves.
    ///
    /// # Errors
    /// See [`Self::run`].
    pub fn run_html(
        &self,
        dot: &Value,
        functions: &dyn Functions,
        limits: Limits,
    ) -> Result<String, TemplateError> {
        exec::run(self, dot, functions, limits, true)
    }
}
