//! Tokens in the words of error texts.

use crate::ast::AggregateOp;
use crate::lexer::Token;

/// Names a token as Prometheus does in its errors.
pub(super) fn describe(token: &Token, written: &str) -> String {
    let quoted = |s: &str| {
        let cut: String = s.chars().take(10).collect();
        let more = if s.chars().nth(10).is_some() { "..." } else { "" };
        format!("{}{more}", crate::printer::quoted(&cut))
    };
    let keywords = [
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "group_right",
        "bool",
        "offset",
        "anchored",
        "smoothed",
    ];
    match token {
        Token::Ident(word) => {
            let lower = word.to_ascii_lowercase();
            if AggregateOp::parse(&lower).is_some() {
                format!("<aggr:{word}>")
            } else if matches!(lower.as_str(), "and" | "or" | "unless" | "atan2") {
                format!("<op:{word}>")
            } else if keywords.contains(&lower.as_str()) {
                format!("<{word}>")
            } else if word.contains(':') {
                format!("metric identifier {}", quoted(word))
            } else {
                format!("identifier {}", quoted(word))
            }
        }
        Token::Number(_) => format!("number {}", quoted(written)),
        Token::Duration(_) => format!("duration {}", quoted(written)),
        Token::String(_) => format!("string {}", quoted(written)),
        Token::Op(op @ ("(" | ")" | "{" | "}" | "[" | "]" | "," | ":" | "=")) => format!("{op:?}"),
        Token::Op(op) => format!("<op:{op}>"),
        Token::Eof => "end of input".into(),
    }
}
