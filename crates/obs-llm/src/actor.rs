//! Who acts in a trace: agents, models, tools, MCP servers and stores, and who asked whom.

use obs_model::{Attributes, LlmCall, Money, Operation, Span, SpanId, SpanKind};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What kind of thing acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActorKind {
    /// What asked first: a service that is none of the others.
    Service,
    Workflow,
    Agent,
    Model,
    Tool,
    McpServer,
    Retriever,
    Memory,
}

impl ActorKind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workflow => "workflow",
            Self::Agent => "agent",
            Self::Model => "model",
            Self::Tool => "tool",
            Self::McpServer => "mcp_server",
            Self::Retriever => "retriever",
            Self::Memory => "memory",
        }
    }
}

/// One of those that act; the same kind and name is the same one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor {
    pub kind: ActorKind,
    pub name: String,
}

/// Keys that say what a span does, by dialect.
const KINDS: [&str; 5] = [
    "gen_ai.operation.name",
    "openinference.span.kind",
    "traceloop.span.kind",
    "langfuse.observation.type",
    "mlflow.spanType",
];

fn first(a: &Attributes, keys: &[&str]) -> Option<String> {
    keys.iter().find_map(|k| a.get_str(k).filter(|s| !s.is_empty())).map(str::to_owned)
}

/// Cuts the operation off a span's name, as the conventions write it: `invoke_agent NAME`.
fn after_verb(span: &Span, verb: &str) -> String {
    let rest = span.name.strip_prefix(verb).map(str::trim).filter(|r| !r.is_empty());
    rest.unwrap_or(&span.name).to_owned()
}

const MCP_METHOD: &str = "mcp.method.name";

fn is_mcp(span: &Span) -> bool {
    span.attributes.get_str(MCP_METHOD).is_some()
}

/// The server of a request, as one of its sides knows it; the name may be empty.
fn mcp_server(span: &Span) -> Actor {
    let name = match span.kind {
        SpanKind::Server => Some(span.service().to_owned()),
        _ => first(&span.attributes, &["mcp.server.name", "server.address"]),
    };
    Actor { kind: ActorKind::McpServer, name: name.unwrap_or_default() }
}

/// Returns who acts in a span; `None` when nobody in particular. Roll-ups and duplicates of calls
/// are no model's work.
pub fn actor_of(span: &Span, call: Option<&LlmCall>) -> Option<Actor> {
    let a = &span.attributes;
    let actor = |kind, name: Option<String>, verb: &str| {
        Some(Actor { kind, name: name.unwrap_or_else(|| after_verb(span, verb)) })
    };
    if let Some(c) = call.filter(|c| !c.is_repeated()) {
        let kind = match c.operation {
            Operation::Rerank => ActorKind::Retriever,
            _ => ActorKind::Model,
        };
        let name = Some(c.model().to_owned()).filter(|m| !m.is_empty());
        return actor(kind, name, c.operation.as_str());
    }
    if is_mcp(span) {
        return Some(match first(a, &["gen_ai.tool.name"]) {
            Some(name) if span.kind != SpanKind::Server => Actor { kind: ActorKind::Tool, name },
            _ => mcp_server(span),
        });
    }
    let says = first(a, &KINDS).unwrap_or_default().trim_matches('"').to_ascii_lowercase();
    let agent = ["gen_ai.agent.name", "agent.name", "traceloop.entity.name"];
    let tool = ["gen_ai.tool.name", "tool.name", "traceloop.entity.name", "ai.toolCall.name"];
    match says.as_str() {
        "invoke_agent" | "create_agent" | "agent" => {
            actor(ActorKind::Agent, first(a, &agent), says.as_str())
        }
        "invoke_workflow" | "workflow" => {
            let named =
                ["gen_ai.workflow.name", "traceloop.workflow.name", "traceloop.entity.name"];
            actor(ActorKind::Workflow, first(a, &named), "invoke_workflow")
        }
        "execute_tool" | "tool" => actor(ActorKind::Tool, first(a, &tool), "execute_tool"),
        "retrieval" | "retriever" => {
            actor(ActorKind::Retriever, first(a, &["gen_ai.data_source.id"]), "retrieval")
        }
        memory if memory.ends_with("_memory") || memory.ends_with("_memory_store") => {
            let named = ["gen_ai.memory.store.name", "gen_ai.memory.store.id"];
            actor(ActorKind::Memory, first(a, &named), memory)
        }
        _ if a.get("ai.toolCall.name").is_some() => actor(ActorKind::Tool, first(a, &tool), ""),
        _ => None,
    }
}

/// What somebody did, or asked another for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Deeds {
    pub calls: u64,
    pub errors: u64,
    /// Sum of the spans' lengths, ns.
    pub duration_ns: i64,
    /// Of models' own calls.
    pub tokens: u64,
    pub cost: Money,
}

impl Deeds {
    fn add(&mut self, span: &Span, call: Option<&LlmCall>) {
        self.calls += 1;
        self.errors += u64::from(span.status.is_error());
        self.duration_ns = self.duration_ns.saturating_add(span.duration_ns());
        if let Some(c) = call.filter(|c| !c.is_repeated()) {
            self.tokens += c.tokens.total();
            let cost = c.cost.as_ref().map_or(Money::ZERO, |x| x.total());
            self.cost = self.cost.saturating_add(cost);
        }
    }
}

/// Returns the nearest place above each that acts; a loop among parents ends where it closes. Each
/// place is passed once: a deep trace of many actors must not take the square of its length.
fn askers(actors: &[Option<Actor>], parent: impl Fn(usize) -> Option<usize>) -> Vec<Option<usize>> {
    let acts = |i: usize| actors.get(i).is_some_and(Option::is_some);
    let mut known: Vec<Option<Option<usize>>> = vec![None; actors.len()];
    for i in 0..actors.len() {
        let (mut path, mut at) = (Vec::new(), i);
        let found = loop {
            let Some(place) = known.get_mut(at) else { break None };
            if let Some(found) = *place {
                break found;
            }
            *place = Some(None);
            path.push(at);
            match parent(at) {
                Some(up) if !acts(up) => at = up,
                end => break end,
            }
        };
        for p in path {
            known.get_mut(p).into_iter().for_each(|k| *k = Some(found.filter(|f| *f != p)));
        }
    }
    known.into_iter().map(Option::flatten).collect()
}

/// Who acts in some traces, and who asked whom.
#[derive(Debug, Default, PartialEq)]
pub struct ActorGraph {
    pub actors: BTreeMap<Actor, Deeds>,
    pub edges: BTreeMap<(Actor, Actor), Deeds>,
}

impl ActorGraph {
    /// Adds a trace; `calls` has each span's own call.
    pub fn add(&mut self, spans: &[Arc<Span>], calls: &[Option<Arc<LlmCall>>]) {
        let call = |i: usize| calls.get(i).and_then(Option::as_deref);
        let places: HashMap<SpanId, usize> =
            spans.iter().enumerate().map(|(i, s)| (s.span_id, i)).collect();
        let parent = |i: usize| {
            let of = spans.get(i)?.parent_id?;
            places.get(&of).copied().filter(|p| *p != i)
        };
        let mut actors: Vec<Option<Actor>> =
            spans.iter().enumerate().map(|(i, s)| actor_of(s, call(i))).collect();
        let above = askers(&actors, parent);
        let asker = |actors: &[Option<Actor>], above: &[Option<usize>], i: usize| {
            above.get(i).copied().flatten().and_then(|up| actors.get(up)).cloned().flatten()
        };
        let asks = |s: &Arc<Span>| is_mcp(s) && s.kind != SpanKind::Server;
        // The request of a tool that has a span of its own is its call of the server.
        for (i, span) in spans.iter().enumerate().filter(|(_, s)| asks(s)) {
            let tool = asker(&actors, &above, i);
            if let Some(own) = actors.get_mut(i)
                && *own == tool
            {
                *own = Some(mcp_server(span));
            }
        }
        // A server's span below its client's is the same request, seen from the other side.
        for (i, _) in spans.iter().enumerate().filter(|(_, s)| is_mcp(s) && !asks(s)) {
            let client = parent(i).filter(|p| spans.get(*p).is_some_and(asks));
            let is_server = |a: &Actor| a.kind == ActorKind::McpServer;
            let asked = client.and_then(|p| actors.get(p)).and_then(Option::as_ref);
            if asked.is_some_and(is_server)
                && let Some(client) = client
                && let Some(peer) = actors.get_mut(i).and_then(Option::take)
                && let Some(asked) = actors.get_mut(client)
            {
                *asked = Some(peer);
            }
        }
        for a in actors.iter_mut().flatten().filter(|a| a.name.is_empty()) {
            "mcp".clone_into(&mut a.name);
        }
        let above = askers(&actors, parent);
        for (i, span) in spans.iter().enumerate() {
            let Some(actor) = actors.get(i).and_then(Option::as_ref) else { continue };
            self.actors.entry(actor.clone()).or_default().add(span, call(i));
            let asker = asker(&actors, &above, i).unwrap_or_else(|| {
                let above = spans.get(parent(i).unwrap_or(i)).unwrap_or(span);
                Actor { kind: ActorKind::Service, name: above.service().to_owned() }
            });
            if asker.kind == ActorKind::Service {
                self.actors.entry(asker.clone()).or_default();
            }
            self.edges.entry((asker, actor.clone())).or_default().add(span, call(i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_above_is_found_and_loops_end() {
        let actor = || Some(Actor { kind: ActorKind::Agent, name: "a".into() });
        // 0 acts; 1 and 2 lead to 3, which acts; 4 and 5 are a loop; 6 acts in a loop with 7.
        let actors = [actor(), None, None, actor(), None, None, actor(), None];
        let parents = [None, Some(0), Some(1), Some(2), Some(5), Some(4), Some(7), Some(6)];
        let above = askers(&actors, |i| parents[i]);
        assert_eq!(above, [None, Some(0), Some(0), Some(0), None, None, None, Some(6)]);
        // A hundred thousand below one another, and as many that act at the end.
        let n = 100_000;
        let many: Vec<_> = (0..2 * n).map(|i| if i < n { None } else { actor() }).collect();
        let above = askers(&many, |i| if i < n { i.checked_sub(1) } else { Some(n - 1) });
        assert_eq!(above.iter().flatten().count(), 0);
    }
}
