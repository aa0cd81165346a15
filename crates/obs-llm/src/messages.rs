//! Prompts and answers of a call as messages, from whichever form a dialect uses.

use crate::event::{DETAILS_EVENT, event_name};
use crate::media::{langfuse_mark, media};
use obs_model::{
    AttributeValue, Attributes, LogRecord, Media, MediaAt, Message, MessagePart, Span,
};
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// What was said in a call.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    pub input: Vec<Message>,
    pub output: Vec<Message>,
    /// Tool definitions offered to the model, as JSON.
    pub tools: Vec<String>,
}

/// Characters of a preview.
const PREVIEW_CHARS: usize = 200;

/// Puts a text on one line and cuts it, with a mark where something was cut.
fn line(text: &str) -> String {
    // More than is shown need not be looked at.
    let words = text.split_whitespace().take(PREVIEW_CHARS + 1);
    let mut out = String::new();
    for word in words {
        if !out.is_empty() {
            out.push(' ');
        }
        out.extend(word.chars().take(PREVIEW_CHARS + 1));
        if let Some((cut, _)) = out.char_indices().nth(PREVIEW_CHARS) {
            out.truncate(cut);
            out.push('…');
            break;
        }
    }
    out
}

/// What a message says, or asks a tool for.
fn gist(m: &Message) -> Option<String> {
    let one = |p: &MessagePart| match p {
        MessagePart::Text(t) => Some(line(t)),
        MessagePart::ToolCall { name, arguments, .. } => {
            Some(line(&format!("{name}({arguments})")))
        }
        MessagePart::ToolResult { content, .. } => Some(line(content)),
        MessagePart::Reasoning(_) => None,
        MessagePart::Media(m) if m.modality.is_empty() => Some("[media]".to_owned()),
        MessagePart::Media(m) => Some(format!("[{}]", m.modality)),
        MessagePart::Other { kind, .. } => Some(format!("[{kind}]")),
    };
    m.parts.iter().filter_map(one).find(|t| !t.is_empty())
}

impl Conversation {
    /// Returns the base64 of the inline media, in the order of the messages: a reference to one
    /// is its place here.
    pub fn inline_media(&self) -> impl Iterator<Item = (&Media, &str)> {
        let parts = self.input.iter().chain(&self.output).flat_map(|m| &m.parts);
        parts.filter_map(|p| match p {
            MessagePart::Media(m) => match &m.at {
                MediaAt::Inline(data) => Some((m, data.as_str())),
                MediaAt::Uri(_) | MediaAt::File(_) => None,
            },
            _ => None,
        })
    }

    /// Returns what was asked last and what was answered, a line of at most 200 characters each;
    /// empty where nothing was recorded.
    pub fn preview(&self) -> (String, String) {
        let asked = self.input.iter().rev().filter(|m| m.role == "user").find_map(gist);
        let asked = asked.or_else(|| self.input.iter().rev().find_map(gist));
        let answered = self.output.iter().find_map(gist);
        (asked.unwrap_or_default(), answered.unwrap_or_default())
    }
}

/// Collects a span's messages. `logs` are the log records of the span; some SDKs put the
/// messages there.
pub fn messages_of<'a>(span: &Span, logs: impl Iterator<Item = &'a LogRecord>) -> Conversation {
    let a = &span.attributes;
    let mut c = structured(a);
    if c.input.is_empty() && c.output.is_empty() {
        c = flattened(a, "llm.input_messages", "llm.output_messages", ".message.");
    }
    if c.input.is_empty() && c.output.is_empty() {
        c = flattened(a, "gen_ai.prompt", "gen_ai.completion", ".");
    }
    if c.input.is_empty() && c.output.is_empty() {
        c = from_events(logs);
    }
    if c.input.is_empty() && c.output.is_empty() {
        c = vercel(a);
    }
    if c.input.is_empty() && c.output.is_empty() {
        c = plain(a);
    }
    c.tools = tools(a);
    c
}

fn json_of(a: &Attributes, key: &str) -> Option<Json> {
    match a.get(key)? {
        AttributeValue::String(s) => serde_json::from_str(s).ok(),
        other => serde_json::from_str(&other.to_string()).ok(),
    }
}

fn string(v: &Json) -> String {
    v.as_str()
        .map_or_else(|| if v.is_null() { String::new() } else { v.to_string() }, str::to_owned)
}

fn field(v: &Json, keys: &[&str]) -> String {
    keys.iter().find_map(|k| v.get(k)).map(string).unwrap_or_default()
}

/// One part of the OTel schema, of OpenAI's or Anthropic's content arrays.
fn part(v: &Json) -> MessagePart {
    if let Some(s) = v.as_str() {
        let mark = langfuse_mark(s).map(MessagePart::Media);
        return mark.unwrap_or_else(|| MessagePart::Text(s.to_owned()));
    }
    let kind = v.get("type").and_then(Json::as_str).unwrap_or("text");
    match kind {
        "text" | "input_text" | "output_text" => MessagePart::Text(field(v, &["content", "text"])),
        "reasoning" | "thinking" => {
            MessagePart::Reasoning(field(v, &["content", "text", "thinking"]))
        }
        "tool_call" | "tool_use" | "tool-call" | "function" | "function_call" => {
            let f = v.get("function").unwrap_or(v);
            MessagePart::ToolCall {
                id: field(v, &["id", "toolCallId", "call_id"]),
                name: field(f, &["name", "toolName"]),
                arguments: field(f, &["arguments", "input", "args"]),
            }
        }
        "tool_call_response" | "tool_result" | "tool-result" => MessagePart::ToolResult {
            id: field(v, &["id", "tool_use_id", "toolCallId"]),
            content: field(v, &["response", "result", "content", "output"]),
        },
        other => media(v).map_or_else(
            || MessagePart::Other {
                kind: other.to_owned(),
                detail: field(v, &["mime_type", "modality"]),
            },
            MessagePart::Media,
        ),
    }
}

fn parts(v: &Json) -> Vec<MessagePart> {
    match v {
        Json::Null => Vec::new(),
        Json::Array(list) => list.iter().map(part).collect(),
        other => vec![part(other)],
    }
}

/// A message with `parts` (OTel) or `content` and `tool_calls` (OpenAI).
fn message(v: &Json, default_role: &str) -> Message {
    let role = v.get("role").and_then(Json::as_str).unwrap_or(default_role).to_owned();
    let mut list = v.get("parts").map(parts).unwrap_or_default();
    if list.is_empty() {
        list = v.get("content").map(parts).unwrap_or_default();
    }
    if role == "tool"
        && let [MessagePart::Text(content)] = list.as_slice()
    {
        list = vec![MessagePart::ToolResult {
            id: field(v, &["tool_call_id", "id"]),
            content: content.clone(),
        }];
    }
    list.extend(v.get("tool_calls").and_then(Json::as_array).into_iter().flatten().map(part));
    Message { role, parts: list, finish_reason: field(v, &["finish_reason"]) }
}

fn structured(a: &Attributes) -> Conversation {
    let list = |key: &str, role: &str| -> Vec<Message> {
        json_of(a, key)
            .as_ref()
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .map(|m| message(m, role))
            .collect()
    };
    let mut input = list("gen_ai.input.messages", "user");
    if let Some(system) = json_of(a, "gen_ai.system_instructions") {
        input.insert(
            0,
            Message { role: "system".into(), parts: parts(&system), finish_reason: String::new() },
        );
    }
    Conversation { input, output: list("gen_ai.output.messages", "assistant"), tools: Vec::new() }
}

/// `prefix.{i}.rest` keys as one map an index.
fn indexed<'a>(
    a: &'a Attributes,
    prefix: &str,
) -> BTreeMap<usize, Vec<(&'a str, &'a AttributeValue)>> {
    let mut out: BTreeMap<usize, Vec<(&str, &AttributeValue)>> = BTreeMap::new();
    for (k, v) in a.iter() {
        let Some(rest) = k.strip_prefix(prefix).and_then(|r| r.strip_prefix('.')) else { continue };
        let (index, rest) = rest.split_once('.').unwrap_or((rest, ""));
        if let Ok(i) = index.parse() {
            out.entry(i).or_default().push((rest, v));
        }
    }
    out
}

/// OpenInference (`llm.input_messages.0.message.role`) and older OpenLLMetry
/// (`gen_ai.prompt.0.role`) attributes.
fn flattened(a: &Attributes, input: &str, output: &str, separator: &str) -> Conversation {
    let inner = separator.trim_matches('.');
    let list = |prefix: &str, role: &str| -> Vec<Message> {
        indexed(a, prefix)
            .into_values()
            .map(|fields| {
                let strip = |k: &str| {
                    if inner.is_empty() {
                        k.to_owned()
                    } else {
                        k.strip_prefix(inner)
                            .and_then(|k| k.strip_prefix('.'))
                            .unwrap_or(k)
                            .to_owned()
                    }
                };
                let fields: Attributes =
                    fields.into_iter().map(|(k, v)| (strip(k), v.clone())).collect();
                flat_message(&fields, role)
            })
            .collect()
    };
    Conversation {
        input: list(input, "user"),
        output: list(output, "assistant"),
        tools: Vec::new(),
    }
}

fn flat_message(f: &Attributes, default_role: &str) -> Message {
    let get = |k: &str| f.get(k).map(ToString::to_string).unwrap_or_default();
    let mut role = get("role");
    if role.is_empty() {
        role = default_role.to_owned();
    }
    let mut list = Vec::new();
    for fields in indexed(f, "contents").into_values() {
        let fields: Attributes = fields
            .into_iter()
            .map(|(k, v)| (k.trim_start_matches("message_content.").to_owned(), v.clone()))
            .collect();
        match (fields.get_str("type"), fields.get_str("text")) {
            (Some("reasoning" | "thinking"), Some(t)) => {
                list.push(MessagePart::Reasoning(t.to_owned()))
            }
            (_, Some(t)) => list.push(MessagePart::Text(t.to_owned())),
            (Some("image"), None) if let Some(url) = fields.get_str("image.image.url") => {
                let of = serde_json::json!({"type": "image", "image": url});
                list.extend(media(&of).map(MessagePart::Media));
            }
            (kind, None) => list.push(MessagePart::Other {
                kind: kind.unwrap_or("content").to_owned(),
                detail: String::new(),
            }),
        }
    }
    let content = get("content");
    if list.is_empty() && !content.is_empty() {
        // A JSON array of parts, where an SDK could not flatten further.
        let json =
            content.starts_with('[').then(|| serde_json::from_str::<Json>(&content).ok()).flatten();
        list = json.map_or_else(|| vec![MessagePart::Text(content.clone())], |j| parts(&j));
    }
    if role == "tool"
        && let [MessagePart::Text(content)] = list.as_slice()
    {
        list = vec![MessagePart::ToolResult { id: get("tool_call_id"), content: content.clone() }];
    }
    for fields in indexed(f, "tool_calls").into_values() {
        let fields: Attributes = fields
            .into_iter()
            .map(|(k, v)| {
                (
                    k.trim_start_matches("tool_call.").trim_start_matches("function.").to_owned(),
                    v.clone(),
                )
            })
            .collect();
        let get = |k: &str| fields.get(k).map(ToString::to_string).unwrap_or_default();
        list.push(MessagePart::ToolCall {
            id: get("id"),
            name: get("name"),
            arguments: get("arguments"),
        });
    }
    Message { role, parts: list, finish_reason: get("finish_reason") }
}

/// Per-message log events (`gen_ai.user.message`, `gen_ai.choice`) and the one-event form.
fn from_events<'a>(logs: impl Iterator<Item = &'a LogRecord>) -> Conversation {
    let mut c = Conversation::default();
    for log in logs {
        let name = event_name(log);
        let body: Json =
            serde_json::from_str(&log.line).unwrap_or_else(|_| Json::String(log.line.clone()));
        match name {
            "gen_ai.system.message" => c.input.push(message(&body, "system")),
            "gen_ai.user.message" => c.input.push(message(&body, "user")),
            "gen_ai.assistant.message" => c.input.push(message(&body, "assistant")),
            "gen_ai.tool.message" => c.input.push(message(&body, "tool")),
            "gen_ai.choice" => {
                let mut m = message(body.get("message").unwrap_or(&body), "assistant");
                m.finish_reason = field(&body, &["finish_reason"]);
                c.output.push(m);
            }
            DETAILS_EVENT => return structured(&log.attributes),
            _ => {}
        }
    }
    c
}

fn vercel(a: &Attributes) -> Conversation {
    let list = json_of(a, "ai.prompt.messages");
    let input = list
        .as_ref()
        .and_then(Json::as_array)
        .into_iter()
        .flatten()
        .map(|m| message(m, "user"))
        .collect();
    let mut answer: Vec<MessagePart> = a
        .get_str("ai.response.text")
        .map(|t| MessagePart::Text(t.to_owned()))
        .into_iter()
        .collect();
    answer.extend(
        json_of(a, "ai.response.toolCalls")
            .as_ref()
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .map(part),
    );
    let output = if answer.is_empty() {
        Vec::new()
    } else {
        vec![Message { role: "assistant".into(), parts: answer, finish_reason: String::new() }]
    };
    Conversation { input, output, tools: Vec::new() }
}

/// Whole input and output values, when nothing finer was recorded.
fn plain(a: &Attributes) -> Conversation {
    let one = |keys: [&str; 4], role: &str| -> Vec<Message> {
        let text =
            keys.iter().find_map(|k| a.get(k)).map(ToString::to_string).filter(|t| !t.is_empty());
        text.map(|t| Message {
            role: role.to_owned(),
            parts: vec![MessagePart::Text(t)],
            finish_reason: String::new(),
        })
        .into_iter()
        .collect()
    };
    Conversation {
        input: one(
            [
                "input.value",
                "traceloop.entity.input",
                "langfuse.observation.input",
                "mlflow.spanInputs",
            ],
            "user",
        ),
        output: one(
            [
                "output.value",
                "traceloop.entity.output",
                "langfuse.observation.output",
                "mlflow.spanOutputs",
            ],
            "assistant",
        ),
        tools: Vec::new(),
    }
}

fn tools(a: &Attributes) -> Vec<String> {
    if let Some(list) = json_of(a, "gen_ai.tool.definitions").as_ref().and_then(Json::as_array) {
        return list.iter().map(Json::to_string).collect();
    }
    let inference = indexed(a, "llm.tools").into_values().filter_map(|f| {
        f.into_iter().find(|(k, _)| *k == "tool.json_schema").map(|(_, v)| v.to_string())
    });
    let functions = indexed(a, "llm.request.functions").into_values().map(|f| {
        let map: serde_json::Map<String, Json> =
            f.into_iter().map(|(k, v)| (k.to_owned(), Json::String(v.to_string()))).collect();
        Json::Object(map).to_string()
    });
    inference.chain(functions).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(role: &str, t: &str) -> Message {
        Message {
            role: role.into(),
            parts: vec![MessagePart::Text(t.into())],
            finish_reason: String::new(),
        }
    }

    #[test]
    fn every_form_gives_the_same_messages() {
        let input = vec![text("system", "Be terse."), text("user", "Capital?")];
        let otel: Attributes = [
            ("gen_ai.system_instructions", r#"[{"type":"text","content":"Be terse."}]"#),
            ("gen_ai.input.messages", r#"[{"role":"user","parts":[{"type":"text","content":"Capital?"}]}]"#),
            ("gen_ai.output.messages", r#"[{"role":"assistant","parts":[{"type":"tool_call","id":"c1","name":"f","arguments":{"a":1}}],"finish_reason":"tool_call"}]"#),
        ]
        .into_iter()
        .collect();
        let c = structured(&otel);
        assert_eq!(c.input, input);
        assert_eq!(
            c.output[0].parts,
            [MessagePart::ToolCall {
                id: "c1".into(),
                name: "f".into(),
                arguments: r#"{"a":1}"#.into()
            }]
        );

        let inference: Attributes = [
            ("llm.input_messages.0.message.role", "system"),
            ("llm.input_messages.0.message.content", "Be terse."),
            ("llm.input_messages.1.message.role", "user"),
            ("llm.input_messages.1.message.contents.0.message_content.text", "Capital?"),
            ("llm.input_messages.1.message.contents.0.message_content.type", "text"),
            ("llm.output_messages.0.message.role", "assistant"),
            ("llm.output_messages.0.message.tool_calls.0.tool_call.id", "c1"),
            ("llm.output_messages.0.message.tool_calls.0.tool_call.function.name", "f"),
            (
                "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments",
                r#"{"a":1}"#,
            ),
        ]
        .into_iter()
        .collect();
        let c = flattened(&inference, "llm.input_messages", "llm.output_messages", ".message.");
        assert_eq!(c.input, input);
        assert_eq!(
            c.output[0].parts,
            [MessagePart::ToolCall {
                id: "c1".into(),
                name: "f".into(),
                arguments: r#"{"a":1}"#.into()
            }]
        );

        let older: Attributes = [
            ("gen_ai.prompt.0.role", "system"),
            ("gen_ai.prompt.0.content", "Be terse."),
            ("gen_ai.prompt.1.role", "user"),
            ("gen_ai.prompt.1.content", "Capital?"),
            ("gen_ai.completion.0.role", "assistant"),
            ("gen_ai.completion.0.content", "Paris"),
            ("gen_ai.completion.0.finish_reason", "stop"),
        ]
        .into_iter()
        .collect();
        let c = flattened(&older, "gen_ai.prompt", "gen_ai.completion", ".");
        assert_eq!((c.input, c.output[0].finish_reason.as_str()), (input, "stop"));
    }

    #[test]
    fn events_carry_messages_too() {
        let log = |name: &str, body: &str| LogRecord {
            stream: obs_model::Labels::default(),
            timestamp: obs_model::TimestampNs::from_nanos(1),
            observed: obs_model::TimestampNs::from_nanos(1),
            line: body.into(),
            severity_number: 9,
            severity_text: String::new(),
            event_name: name.into(),
            trace_id: None,
            span_id: None,
            attributes: Attributes::default(),
            resource: Default::default(),
        };
        let logs = [
            log("gen_ai.user.message", r#"{"content":"hi"}"#),
            log(
                "gen_ai.choice",
                r#"{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hello"}}"#,
            ),
        ];
        let c = from_events(logs.iter());
        assert_eq!(c.input, [text("user", "hi")]);
        assert_eq!(
            c.output,
            [Message { finish_reason: "stop".into(), ..text("assistant", "hello") }]
        );
    }
}
