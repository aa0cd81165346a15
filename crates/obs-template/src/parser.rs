//! Parses tokens into a tree.

use crate::lexer::{Lexed, Token};
use crate::value::Value;
use std::collections::HashMap;

/// Nesting past which a template is refused.
const DEPTH_MAX: usize = 100;

#[derive(Debug, Clone)]
pub(crate) enum Node {
    Text(String),
    Action(usize, Pipeline),
    If { line: usize, condition: Pipeline, then: Vec<Self>, otherwise: Vec<Self> },
    With { line: usize, value: Pipeline, then: Vec<Self>, otherwise: Vec<Self> },
    Range { line: usize, over: Pipeline, body: Vec<Self>, otherwise: Vec<Self> },
    Template { line: usize, name: String, dot: Option<Pipeline> },
    Break,
    Continue,
}

/// Commands, each given the result of the one before, and the variables set to the last one's.
#[derive(Debug, Clone)]
pub(crate) struct Pipeline {
    pub(crate) variables: Vec<String>,
    /// Whether the variables are new.
    pub(crate) declares: bool,
    pub(crate) commands: Vec<Vec<Operand>>,
}

#[derive(Debug, Clone)]
pub(crate) enum Operand {
    Constant(Value),
    Dot,
    Function(String),
    Variable(String),
    Field(String),
    Nested(Box<Pipeline>),
    Chain(Box<Self>, String),
}

type Failed = (usize, String);
type Parsed<T> = Result<T, Failed>;
pub(crate) type Definitions = HashMap<String, Vec<Node>>;

struct Parser<'a> {
    tokens: Lexed,
    at: usize,
    depth: usize,
    loops: usize,
    is_function: &'a dyn Fn(&str) -> bool,
    /// Variables in scope.
    variables: Vec<String>,
    defined: Definitions,
}

/// What ended a list of nodes.
#[derive(Debug, Clone, PartialEq)]
enum End {
    Eof,
    Closed,
    /// `else`, and what follows it.
    Else(Option<String>),
}

/// Functions that are part of the language.
pub(crate) const BUILT_IN: [&str; 19] = [
    "and", "call", "html", "index", "slice", "js", "len", "not", "or", "print", "printf",
    "println", "urlquery", "eq", "ne", "lt", "le", "gt", "ge",
];

pub(crate) fn parse(
    tokens: Lexed,
    is_function: &dyn Fn(&str) -> bool,
) -> Parsed<(Vec<Node>, Definitions)> {
    let mut p = Parser {
        tokens,
        at: 0,
        depth: 0,
        loops: 0,
        is_function,
        variables: vec!["$".into()],
        defined: Definitions::new(),
    };
    let (nodes, end) = p.nodes()?;
    match end {
        End::Eof => Ok((nodes, p.defined)),
        End::Closed => p.fail("unexpected {{end}}"),
        End::Else(_) => p.fail("unexpected {{else}}"),
    }
}

impl Parser<'_> {
    fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.0)
    }

    fn peek(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::Eof, |t| &t.1)
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        self.at += 1;
        token
    }

    fn fail<T>(&self, message: impl Into<String>) -> Parsed<T> {
        Err((self.line(), message.into()))
    }

    fn close(&mut self, context: &str) -> Parsed<()> {
        if *self.peek() == Token::Close {
            self.at += 1;
            return Ok(());
        }
        self.fail(format!("unexpected {} in {context}", describe(self.peek())))
    }

    /// Parses nodes up to the end of their block; the closing action is consumed, except that
    /// what follows `else` is left.
    fn nodes(&mut self) -> Parsed<(Vec<Node>, End)> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.fail(format!("nested deeper than {DEPTH_MAX} levels"));
        }
        let known = self.variables.len();
        let mut out = Vec::new();
        let end = loop {
            match self.next() {
                Token::Eof => {
                    self.at -= 1;
                    break End::Eof;
                }
                Token::Text(t) => out.push(Node::Text(t)),
                Token::Open => {
                    if let Some(end) = self.action(&mut out)? {
                        break end;
                    }
                }
                other => return self.fail(format!("unexpected {}", describe(&other))),
            }
        };
        self.variables.truncate(known);
        self.depth -= 1;
        Ok((out, end))
    }

    fn action(&mut self, out: &mut Vec<Node>) -> Parsed<Option<End>> {
        let line = self.line();
        let word = if let Token::Word(w) = self.peek() { w.clone() } else { String::new() };
        match word.as_str() {
            "end" => {
                self.at += 1;
                self.close("end")?;
                return Ok(Some(End::Closed));
            }
            "else" => {
                self.at += 1;
                let then = match self.peek() {
                    Token::Word(w) if w == "if" || w == "with" => Some(w.clone()),
                    _ => None,
                };
                if then.is_none() {
                    self.close("else")?;
                }
                return Ok(Some(End::Else(then)));
            }
            "if" | "with" | "range" => {
                self.at += 1;
                out.push(self.control(&word, line)?);
            }
            "break" | "continue" if self.loops == 0 => {
                return self.fail(format!("{{{{{word}}}}} outside {{{{range}}}}"));
            }
            "break" | "continue" => {
                self.at += 1;
                self.close(&word)?;
                out.push(if word == "break" { Node::Break } else { Node::Continue });
            }
            "define" | "block" => {
                self.at += 1;
                let Token::Str(name) = self.next() else {
                    self.at -= 1;
                    return self
                        .fail(format!("unexpected {} in {word} clause", describe(self.peek())));
                };
                let dot = if word == "block" { Some(self.pipeline("block clause")?) } else { None };
                self.close(&format!("{word} clause"))?;
                // Variables do not reach into another template.
                let outer = std::mem::replace(&mut self.variables, vec!["$".into()]);
                let loops = std::mem::take(&mut self.loops);
                let (body, end) = self.nodes()?;
                self.variables = outer;
                self.loops = loops;
                if end != End::Closed {
                    return self.fail(format!("unexpected end of {word} {name:?}"));
                }
                if word == "block" {
                    self.defined.entry(name.clone()).or_insert(body);
                    out.push(Node::Template { line, name, dot });
                } else {
                    self.defined.insert(name, body);
                }
            }
            "template" => {
                self.at += 1;
                let Token::Str(name) = self.next() else {
                    self.at -= 1;
                    return self
                        .fail(format!("unexpected {} in template clause", describe(self.peek())));
                };
                let dot = if *self.peek() == Token::Close {
                    None
                } else {
                    Some(self.pipeline("template clause")?)
                };
                self.close("template clause")?;
                out.push(Node::Template { line, name, dot });
            }
            _ => {
                let pipeline = self.pipeline("command")?;
                self.close("command")?;
                out.push(Node::Action(line, pipeline));
            }
        }
        Ok(None)
    }

    fn control(&mut self, word: &str, line: usize) -> Parsed<Node> {
        let known = self.variables.len();
        let pipeline = self.pipeline(word)?;
        self.close(word)?;
        self.loops += usize::from(word == "range");
        let (then, end) = self.nodes()?;
        self.loops -= usize::from(word == "range");
        let otherwise = match end {
            End::Closed => Vec::new(),
            End::Eof => return self.fail("unexpected EOF"),
            End::Else(None) => {
                let (nodes, end) = self.nodes()?;
                match end {
                    End::Closed => nodes,
                    End::Eof => return self.fail("unexpected EOF"),
                    End::Else(_) => return self.fail("expected end; found {{else}}"),
                }
            }
            // `else if` shares its end with the `if` it belongs to.
            End::Else(Some(next)) if next == word => {
                let line = self.line();
                self.at += 1;
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return self.fail(format!("nested deeper than {DEPTH_MAX} levels"));
                }
                let node = self.control(&next, line)?;
                self.depth -= 1;
                vec![node]
            }
            End::Else(Some(next)) => return self.fail(format!("unexpected {next} in else clause")),
        };
        self.variables.truncate(known);
        Ok(match word {
            "if" => Node::If { line, condition: pipeline, then, otherwise },
            "with" => Node::With { line, value: pipeline, then, otherwise },
            _ => Node::Range { line, over: pipeline, body: then, otherwise },
        })
    }

    fn pipeline(&mut self, context: &str) -> Parsed<Pipeline> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return self.fail(format!("nested deeper than {DEPTH_MAX} levels"));
        }
        let mut p = Pipeline { variables: Vec::new(), declares: false, commands: Vec::new() };
        self.declaration(context, &mut p)?;
        loop {
            let command = self.command(context)?;
            if command.is_empty() {
                return self.fail(if p.commands.is_empty() {
                    format!("missing value for {context}")
                } else {
                    "empty command".to_owned()
                });
            }
            if !p.commands.is_empty() && !is_callable(command.first()) {
                let n = p.commands.len() + 1;
                return self.fail(format!("non executable command in pipeline stage {n}"));
            }
            p.commands.push(command);
            if *self.peek() == Token::Pipe {
                self.at += 1;
            } else {
                break;
            }
        }
        if p.declares {
            self.variables.extend(p.variables.iter().cloned());
        }
        self.depth -= 1;
        Ok(p)
    }

    /// Parses `$x :=`, `$x =` and `$i, $x :=`.
    fn declaration(&mut self, context: &str, p: &mut Pipeline) -> Parsed<()> {
        let Token::Variable(first) = self.peek().clone() else { return Ok(()) };
        let at = self.at;
        self.at += 1;
        p.variables.push(first);
        if context == "range"
            && *self.peek() == Token::Comma
            && let Some((_, Token::Variable(second))) = self.tokens.get(self.at + 1).cloned()
        {
            self.at += 2;
            p.variables.push(second);
        }
        match self.next() {
            Token::Declare => p.declares = true,
            Token::Assign => {
                if let Some(unknown) = p.variables.iter().find(|v| !self.variables.contains(v)) {
                    return self.fail(format!("undefined variable {unknown:?}"));
                }
            }
            _ => {
                self.at = at;
                p.variables.clear();
            }
        }
        Ok(())
    }

    fn command(&mut self, context: &str) -> Parsed<Vec<Operand>> {
        let mut out = Vec::new();
        loop {
            let operand = match self.next() {
                Token::Close | Token::Pipe | Token::Right => {
                    self.at -= 1;
                    return Ok(out);
                }
                Token::Dot => Operand::Dot,
                Token::Field(name) => Operand::Field(name),
                Token::Variable(name) => {
                    if !self.variables.contains(&name) {
                        return self.fail(format!("undefined variable {name:?}"));
                    }
                    Operand::Variable(name)
                }
                Token::Str(s) => Operand::Constant(s.into()),
                Token::Int(i) => Operand::Constant(Value::Int(i)),
                Token::Float(f) => Operand::Constant(Value::Float(f)),
                Token::Word(w) => match w.as_str() {
                    "true" | "false" => Operand::Constant(Value::Bool(w == "true")),
                    "nil" => Operand::Constant(Value::Nil),
                    name if BUILT_IN.contains(&name) || (self.is_function)(name) => {
                        Operand::Function(w)
                    }
                    _ => return self.fail(format!("function {w:?} not defined")),
                },
                Token::Left => {
                    let inner = self.pipeline("parenthesized pipeline")?;
                    if self.next() != Token::Right {
                        self.at -= 1;
                        return self.fail("unclosed left paren");
                    }
                    Operand::Nested(Box::new(inner))
                }
                other => {
                    self.at -= 1;
                    return self.fail(format!("unexpected {} in {context}", describe(&other)));
                }
            };
            let mut operand = operand;
            while let Token::Chain(name) = self.peek().clone() {
                self.at += 1;
                operand = Operand::Chain(Box::new(operand), name);
            }
            out.push(operand);
        }
    }
}

fn is_callable(o: Option<&Operand>) -> bool {
    !matches!(o, None | Some(Operand::Constant(_) | Operand::Dot))
}

fn describe(t: &Token) -> String {
    match t {
        Token::Text(_) => "text".into(),
        Token::Open => "\"{{\"".into(),
        Token::Close => "\"}}\"".into(),
        Token::Word(w) => format!("<{w}>"),
        Token::Field(n) | Token::Chain(n) => format!("<.{n}>"),
        Token::Variable(v) => format!("{v:?}"),
        Token::Dot => "<.>".into(),
        Token::Str(s) => format!("{s:?}"),
        Token::Int(i) => format!("{i:?}"),
        Token::Float(f) => format!("{f:?}"),
        Token::Pipe => "\"|\"".into(),
        Token::Declare => "\":=\"".into(),
        Token::Assign => "\"=\"".into(),
        Token::Comma => "\",\"".into(),
        Token::Left => "\"(\"".into(),
        Token::Right => "\")\"".into(),
        Token::Eof => "EOF".into(),
    }
}
